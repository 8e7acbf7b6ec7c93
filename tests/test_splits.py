"""What an evaluation keeps of its training images for validation."""
from collections import Counter

import pytest

from input_pipeline.splits import hold_out

SAMPLES = [(f"{name}/{i}", label) for label, (name, n) in enumerate((("ant", 40), ("bee", 11))) for i in range(n)]


def test_the_same_part_of_every_class_is_kept_for_validation():
    rest, held_out = hold_out(SAMPLES, ["ant", "bee"], 0.2)
    assert Counter(label for _, label in held_out) == {0: 8, 1: 2} and sorted(rest + held_out) == sorted(SAMPLES)
    assert (rest, held_out) == hold_out(SAMPLES, ["ant", "bee"], 0.2)
    assert held_out[:8] != SAMPLES[:8]  # drawn
    assert hold_out(SAMPLES, ["ant", "bee"], None) == (SAMPLES, [])


@pytest.mark.parametrize("portion", [0.0, 0.09])
def test_a_class_without_an_image_to_validate_is_named(portion):
    name, count = ("ant", 40) if portion == 0 else ("bee", 11)
    with pytest.raises(ValueError, match=rf"--valid_portion {portion} leaves .*{name} \(it has {count}\)"):
        hold_out(SAMPLES, ["ant", "bee"], portion)

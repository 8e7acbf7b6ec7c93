"""experiments/agreement.py: whether searches agree, on alphas whose agreement is known."""
import json

import numpy as np
import pytest
from scripts import run

from genotypes import PRIMITIVES

CYCLE = [1 + i % 7 for i in range(14)]  # each choice on two edges


def write_search(folder, normal: list, reduce: list) -> str:
    """A run directory with the alphas of stage 1: per epoch the operation that leads on each of the 14 edges."""
    folder.mkdir()
    (folder / "args.json").write_text(json.dumps({"kind": "search", "args": {}}))
    leading = {"stage1_normal": normal, "stage1_reduce": reduce}
    np.savez(folder / "alphas.npz", **{key: np.eye(len(PRIMITIVES))[epochs] for key, epochs in leading.items()})
    return str(folder)


def lines(*searches) -> list[list[str]]:
    outcome = run("experiments/agreement.py", *searches)
    assert outcome.code == 0, outcome
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in outcome.out.splitlines()]


def test_an_epochs_line_counts_equal_choices_and_correlates_alphas_with_and_without_an_operations_mean(tmp_path):
    opposite = [8 - choice for choice in CYCLE]  # the same on the 2 edges of operation 4
    a = write_search(tmp_path / "a", [CYCLE, CYCLE], [[3] * 7 + [4] * 7, CYCLE])
    b = write_search(tmp_path / "b", [CYCLE, opposite], [[3] * 6 + [4] * 8, opposite])
    head, rule, first, second = lines(a, b)
    assert len(head) == len(rule) == 7 and [first[0], second[0]] == ["0", "1"]
    assert first[1:4] == ["14.0", "1.00", "1.00"] and first[4] == "13.0"
    assert second[1] == second[4] == "2.0" and float(second[3]) == pytest.approx(0, abs=0.02)
    # 14 edges of 8 alphas: 112 values, one in 8 of them a winner's, shared on 13 edges.
    assert float(first[5]) == pytest.approx((13 / 112 - 1 / 64) / (1 / 8 - 1 / 64), abs=0.005)


def test_the_zero_operation_leads_and_is_no_choice(tmp_path):
    folder = tmp_path / "a"
    a, b = (write_search(tmp_path / name, [CYCLE], [CYCLE]) for name in "ab")
    alphas = np.eye(len(PRIMITIVES))[[CYCLE]]
    alphas[..., 0] = 5
    np.savez(folder / "alphas.npz", stage1_normal=alphas, stage1_reduce=alphas)
    assert lines(a, b)[2][1] == "14.0"


def test_a_line_is_a_mean_over_all_pairs(tmp_path):
    """Three searches, of which two are the same: pairs that share 14, 7 and 7 edges."""
    searches = [write_search(tmp_path / name, [[i] * 7 + [4] * 7], [CYCLE])
                for i, name in ((1, "a"), (1, "b"), (2, "c"))]
    assert lines(*searches)[2][1] == f"{28 / 3:.1f}"


@pytest.mark.parametrize("names, status, text", [([], 2, "required"), (["a"], 1, "one search"),
                                                 (["a", "a"], 1, "one search"),
                                                 (["a", "longer"], 1, "1 and 2 epochs"),
                                                 (["a", "nowhere"], 1, "nowhere is not a run"),
                                                 (["a", "evaluation"], 1, "kind eval"),
                                                 (["a", "damaged"], 1, "damaged/alphas.npz")])
def test_bad_input_is_one_line(names, status, text, tmp_path):
    write_search(tmp_path / "a", [CYCLE], [CYCLE])
    write_search(tmp_path / "longer", [CYCLE] * 2, [CYCLE] * 2)
    write_search(tmp_path / "damaged", [CYCLE], [CYCLE])
    (tmp_path / "damaged" / "alphas.npz").write_text("no zip file")
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation" / "args.json").write_text(json.dumps({"kind": "eval", "args": {}}))
    outcome = run("experiments/agreement.py", *[tmp_path / name for name in names])
    assert outcome.code == status and text in outcome.err and not outcome.out
    assert len(outcome.err.splitlines()) == 1

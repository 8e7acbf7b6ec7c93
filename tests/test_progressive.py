"""The rules of the search against the 60 recorded searches, and the schedules against SPEC's formulas."""
import copy
import json
import math

import numpy as np
import pytest
import torch

import progressive
from genotypes import PRIMITIVES
from progressive import derive_genotype, prune, recommended, restrict_skip_connects, skip_dropout_rate, stage_table


@pytest.fixture(scope="module")
def searches(golden):
    return golden("pruning.json")


def last_stage(search: dict) -> list:
    """The arguments of derive_genotype and restrict_skip_connects."""
    keys = ("candidates_normal", "probs_normal", "candidates_reduce", "probs_reduce")
    return [search["stages"][2][key] for key in keys]


def as_json(genotype) -> dict:
    return json.loads(json.dumps(genotype._asdict()))


def skips(genotype: dict) -> int:
    return sum(op == "skip_connect" for op, _ in genotype["normal"])


@pytest.mark.parametrize("stage, num_drop", [(0, 3), (1, 2)])
@pytest.mark.parametrize("cell", ["normal", "reduce"])
def test_pruning_keeps_what_the_published_code_kept(searches, stage, num_drop, cell):
    assert len(searches) == 60
    for search in searches:
        recorded = search["stages"][stage]
        assert prune(recorded[f"candidates_{cell}"], recorded[f"probs_{cell}"], num_drop) == recorded[f"kept_{cell}"]


def test_derived_genotypes_equal_the_published_ones(searches):
    for search in searches:
        assert as_json(derive_genotype(*last_stage(search))) == search["genotype"]


def test_restriction_gives_the_published_genotypes_for_exactly_the_published_limits(searches):
    for search in searches:
        restricted = restrict_skip_connects(*last_stage(search))
        assert {str(M): as_json(genotype) for M, genotype in restricted.items()} == search["restricted"]
        assert all(type(M) is int for M in restricted)


def test_the_rules_leave_their_arguments_alone(searches):
    for search in searches[:10]:
        arguments = last_stage(search)
        before = copy.deepcopy(arguments)
        prune(arguments[0], arguments[1], 1)
        derive_genotype(*arguments)
        restrict_skip_connects(*arguments)
        assert arguments == before


def test_recommended_has_at_most_max_skip_skips_and_the_reduction_cell_untouched(searches):
    for search in searches:
        genotype = derive_genotype(*last_stage(search))
        restricted = restrict_skip_connects(*last_stage(search))
        for max_skip in range(9):
            chosen = as_json(recommended(genotype, restricted, max_skip))
            enough = skips(search["genotype"]) <= max_skip
            assert chosen == (search["genotype"] if enough else search["restricted"][str(max_skip)])
            assert skips(chosen) <= max_skip
            assert chosen["reduce"] == search["genotype"]["reduce"]


def test_pruning_lets_none_compete_and_keeps_the_order():
    names = ["none", "max_pool_3x3", "skip_connect", "sep_conv_3x3", "dil_conv_5x5"]
    assert prune([names], [[0.1, 0.3, 0.15, 0.25, 0.2]], 2) == [["max_pool_3x3", "sep_conv_3x3", "dil_conv_5x5"]]
    assert prune([names], [[0.4, 0.1, 0.2, 0.05, 0.25]], 2) == [["none", "skip_connect", "dil_conv_5x5"]]


def test_none_is_never_derived_and_still_lowers_its_edges_score():
    """On every edge none wins; of node 3's edges those from states 1 and 4 have the best remaining candidates."""
    names = [["none", "skip_connect", "sep_conv_3x3"]] * 14
    node_3 = [[0.9, 0.06, 0.04], [0.5, 0.1, 0.4], [0.7, 0.2, 0.1], [0.8, 0.1, 0.1], [0.4, 0.35, 0.25]]
    probs = [[0.6, 0.3, 0.1]] * 9 + node_3
    genotype = derive_genotype(names, probs, names, probs)
    assert genotype.normal[:2] == [("skip_connect", 0), ("skip_connect", 1)]
    assert genotype.normal[6:] == [("sep_conv_3x3", 1), ("skip_connect", 4)]
    assert genotype.reduce == genotype.normal
    assert genotype.normal_concat == genotype.reduce_concat == [2, 3, 4, 5]


def test_the_published_command_gives_the_published_stages():
    stages = stage_table(5, 16, [6, 12], [0, 0], [0.1, 0.4, 0.7])
    assert [stage.layers for stage in stages] == [5, 11, 17]
    assert [stage.channels for stage in stages] == [16, 16, 16]
    assert [stage.num_candidates for stage in stages] == [8, 5, 3]
    assert [stage.num_drop for stage in stages[:2]] == [3, 2]
    assert [stage.skip_dropout for stage in stages] == [0.1, 0.4, 0.7]


def test_two_additions_are_stages_2_and_3_and_three_are_all_stages():
    two = stage_table(4, 8, [1, 2], [10, 20], [0, 0, 0])
    assert [(stage.layers, stage.channels) for stage in two] == [(4, 8), (5, 18), (6, 28)]
    three = stage_table(4, 8, [1, 2, 3], [10, 20, 30], [0, 0, 0])
    assert [(stage.layers, stage.channels) for stage in three] == [(5, 18), (6, 28), (7, 38)]
    mixed = stage_table(4, 8, [1, 2, 3], [10, 20], [0, 0, 0])
    assert [(stage.layers, stage.channels) for stage in mixed] == [(5, 8), (6, 18), (7, 28)]


@pytest.mark.parametrize("option, add_layers, add_width, skip_dropout", [
    *[("--add_layers", [1] * n, [0, 0], [0, 0, 0]) for n in (0, 1, 4)],
    *[("--add_width", [6, 12], [1] * n, [0, 0, 0]) for n in (0, 1, 4)],
    *[("--dropout_rate", [6, 12], [0, 0], [0.1] * n) for n in (0, 1, 2, 4)],
])
def test_any_other_count_is_an_error_of_one_line_that_says_so(option, add_layers, add_width, skip_dropout):
    with pytest.raises(ValueError, match=option) as error:
        stage_table(5, 16, add_layers, add_width, skip_dropout)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("initial", [0.1, 0.4, 0.7])
def test_skip_dropout_follows_the_formula_in_all_25_epochs_of_a_stage(initial):
    warm_up = [initial * (24 - e) / 25 for e in range(10)]
    expected = warm_up + [initial * math.e ** (-(e - 10) / 5) for e in range(10, 25)]
    assert [skip_dropout_rate(initial, e, 25, 10) for e in range(25)] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("initial, epoch, expected", [
    (0.1, 0, 0.096), (0.4, 9, 0.24), (0.4, 10, 0.4), (0.4, 15, 0.4 * 0.36787944117144233),
    (0.7, 9, 0.42), (0.7, 10, 0.7), (0.7, 24, 0.7 * 0.060810062625217975), (0.0, 3, 0.0), (0.0, 20, 0.0),
])
def test_skip_dropout_computed_by_hand_jumps_back_up_after_warm_up(initial, epoch, expected):
    assert skip_dropout_rate(initial, epoch, 25, 10) == pytest.approx(expected, rel=1e-12)


def test_without_warm_up_skip_dropout_starts_at_its_initial_rate():
    assert skip_dropout_rate(0.3, 0, 5, 0) == pytest.approx(0.3)


def test_even_choices_have_full_entropy_and_no_lead():
    assert progressive.measure_choices([[0.125] * 8, [0.2] * 5]) == pytest.approx(
        {"entropy": 1.0, "lead": 0.0, "clear_edges": 0})


def test_entropy_and_lead_of_choices_are_those_worked_out_by_hand():
    """Of 4 candidates 1/2, 1/4, 1/8, 1/8: 1.75 bits of 2; of two candidates 0.9, 0.1: 0.4690 bits of 1."""
    measured = progressive.measure_choices([[0.125, 0.5, 0.25, 0.125], [0.9, 0.1], [0.51, 0.49]])
    bits = -(0.9 * math.log2(0.9) + 0.1 * math.log2(0.1)), -(0.51 * math.log2(0.51) + 0.49 * math.log2(0.49))
    assert bits[0] == pytest.approx(0.4690, abs=1e-4)
    assert measured["entropy"] == pytest.approx((1.75 / 2 + sum(bits)) / 3)
    assert measured["lead"] == pytest.approx(1.0)  # of 100%, 800% and 4.1%
    assert measured["clear_edges"] == 2


def test_a_choice_that_is_certain_has_no_entropy_and_a_finite_lead():
    measured = progressive.measure_choices([[1.0, 0.0, 0.0]])
    assert measured["entropy"] == 0 and math.isfinite(measured["lead"]) and measured["clear_edges"] == 1


def walk(steps: int, gradient: float, decay: float) -> tuple[list, list]:
    """The published Adam on 1,400 edges' 8 alphas, under noise of this RMS: the alphas at the start and at the end."""
    generator = torch.Generator().manual_seed(0)
    alphas = torch.nn.Parameter(1e-3 * torch.randn(1400, 8, generator=generator))
    start = alphas.detach().clone()
    adam = torch.optim.Adam([alphas], RATE, betas=(0.5, 0.999), weight_decay=decay, fused=True)
    for _ in range(steps):
        noise = torch.randn(alphas.shape, generator=generator)
        noise -= noise.mean(1, keepdim=True)  # as behind a softmax, an edge's gradients add up to 0
        alphas.grad = noise * gradient / (7 / 8) ** 0.5
        adam.step()
    return start.tolist(), alphas.tolist()


RATE = 1.2e-3


@pytest.mark.parametrize("steps, gradient, decay", [(100, 7e-3, 1e-3), (2000, 7e-3, 0), (2000, 7e-3, 1e-3),
                                                    (2000, 1e-3, 1e-3)])
def test_a_walk_without_direction_has_the_displacement_of_an_adam_that_decays(steps, gradient, decay):
    """A step is RATE * (noise + decay * alpha / gradient), noise of RMS 1. So the mean square after n steps is RATE^2 *
    n * (1 - exp(-2x)) / 2x with x = RATE * decay * n / gradient: 0.84^2 after 2,000 steps, and 0.44^2 for gradients
    of 1e-3 (a small supernet's are 7e-3).

    Tolerance: a mean square over 1,400 * 7 free values has a deviation of sqrt(2 / 9800), so its root one of 0.7%; four
    of them. At step t Adam divides by the root of a mean of t squares, which adds 2 / t to a step's square: ln(n) / n
    in all.
    """
    x = RATE * decay * steps / gradient
    expected = ((1 - math.exp(-2 * x)) / (2 * x)) ** 0.5 if x else 1.0
    measured = progressive.measure_walk(*walk(steps, gradient, decay), RATE, steps)
    assert measured["displacement"] == pytest.approx(expected, rel=4 * 0.0072 + math.log(steps) / steps)
    assert measured["drift"] < 0.04  # sqrt(((1 + 4 * 0.0072 + ln(100) / 100)^2 - 1) / 100)


def test_a_displacement_is_the_one_worked_out_by_hand():
    """Without its mean an edge moves by -0.1, 0.1; the other, moved as a whole, by 0: RMS 0.1 / sqrt(2)."""
    start, moved = [[0.0, 0.1], [0.0, 0.0]], [[0.3, 0.6], [5.0, 5.0]]
    measured = progressive.measure_walk(start, moved, learning_rate=0.01, steps=4)
    assert measured["displacement"] == pytest.approx(0.1 / 2 ** 0.5 / (0.01 * 2))  # 3.54
    assert measured["drift"] == pytest.approx(((0.1 / 2 ** 0.5 / 0.02) ** 2 - 1) ** 0.5 / 2)


def test_the_drift_is_what_steps_have_in_common_and_does_not_grow_with_them():
    """Each step adds 0.2 learning rates in one direction, and noise of one: the square is n + (0.2 n)^2."""
    for steps in (100, 400):
        moved = (steps + (0.2 * steps) ** 2) ** 0.5
        assert progressive.measure_walk([[0.0, 0.0]], [[moved, -moved]], 1.0, steps)["drift"] == pytest.approx(0.2)
    assert progressive.measure_walk([[0.0, 0.0]], [[1.0, -1.0]], 1.0, 400)["drift"] == 0  # less than a walk


@pytest.mark.parametrize("rate, steps", [(0.0, 100), (6e-4, 0)])
def test_alphas_that_cannot_move_have_no_displacement(rate, steps):
    assert progressive.measure_walk([[0.0, 0.1]], [[0.0, 0.1]], rate, steps) == {"displacement": None, "drift": None}


def test_the_cell_of_the_first_stage_alone_leaves_out_none_and_keeps_to_the_limit_of_skips():
    """Everywhere none is likeliest, then the skip-connect, then sep_conv_5x5, surest on edges from the inputs."""
    alphas = np.zeros((2, 14, 8))  # two epochs, of which the last counts
    for name, value in (("none", 3), ("skip_connect", 2), ("sep_conv_5x5", 1)):
        alphas[1, :, PRIMITIVES.index(name)] = value
    surer = [0, 1, 2, 3, 5, 6, 9, 10]
    alphas[1, surer, PRIMITIVES.index("skip_connect")] += 0.5
    alphas[1, surer, PRIMITIVES.index("sep_conv_5x5")] += 0.5
    names = np.array([PRIMITIVES] * 14)
    file = {f"stage1_{cell}{what}": value for cell in ("normal", "reduce")
            for what, value in (("", alphas), ("_candidates", names))}
    free, limited = (progressive.first_stage_genotype(file, max_skip) for max_skip in (8, 0))
    assert free.normal == free.reduce == limited.reduce == [("skip_connect", 0), ("skip_connect", 1)] * 4
    assert limited.normal == [("sep_conv_5x5", 0), ("sep_conv_5x5", 1)] * 4


def test_a_cell_has_14_edges():
    assert progressive.EDGES == 2 + 3 + 4 + 5

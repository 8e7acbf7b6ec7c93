"""experiments/agreement.py: whether searches agree, on alphas whose agreement is known."""
import json

import numpy as np
import pytest
from scripts import figures, run

from experiments import agreement
from experiments.significance import Agreement
from genotypes import PRIMITIVES

CYCLE = [1 + i % 7 for i in range(14)]  # each choice on two edges
SHIFTED = [*CYCLE[1:], CYCLE[0]]  # each choice on two edges, never the same ones
EPOCHS = 3  # per stage, one of them warm-up


def write_search(folder, normal: list, reduce: list, size: float = 1.0, stage2=None, script="train_search.py") -> str:
    """A run directory with the alphas of stage 1: per epoch the operation that leads on each of the 14 edges.

    stage2: per edge the 5 candidates of stage 2 in both cells, of which the first leads.
    """
    folder.mkdir()
    args = {"epochs": len(normal), "warmup_epochs": 1}
    (folder / "args.json").write_text(json.dumps({"kind": "search", "args": args, "command": f"python {script}"}))
    alphas = {}
    for cell, epochs in (("normal", normal), ("reduce", reduce)):
        alphas[f"stage1_{cell}"] = size * np.eye(len(PRIMITIVES))[epochs]
        alphas[f"stage1_{cell}_candidates"] = [PRIMITIVES] * 14
        if stage2:
            alphas[f"stage2_{cell}"] = np.tile(size * np.eye(5)[0], (len(normal), 14, 1))
            alphas[f"stage2_{cell}_candidates"] = stage2
    np.savez(folder / "alphas.npz", **alphas)
    decided = {"entropy": 0.5, "lead": 0.5, "clear_edges": 14}
    metrics = [{"stage": stage, "epoch": epoch, "alpha_steps": 100 * epoch, **decided}
               for stage in ((1, 2) if stage2 else (1,)) for epoch in range(len(normal))]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in metrics))
    return str(folder)


def lines(*searches) -> list[dict]:
    outcome = run("experiments/agreement.py", *searches)
    assert outcome.code == 0, outcome
    head, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in outcome.out.splitlines()]
    assert len(set(head)) == len(head)
    return [dict(zip(head, row)) for row in rows]


def test_a_stage_has_a_line_after_its_first_alpha_steps_and_one_at_its_end_for_each_cell(tmp_path):
    halves = [3] * 7 + [4] * 7
    a = write_search(tmp_path / "a", [CYCLE] * EPOCHS, [halves, halves, CYCLE])
    b = write_search(tmp_path / "b", [SHIFTED, CYCLE, SHIFTED], [halves, [3] * 6 + [4] * 8, CYCLE])
    rows = lines(a, b)
    assert [(row["stage"], row["alpha steps"], row["cell"], row["pairs"]) for row in rows] == [
        ("1", "100", "normal", "1"), ("1", "100", "reduction", "1"), ("1", "200", "normal", "1"),
        ("1", "200", "reduction", "1")]
    first, reduction, last, _ = rows
    assert (first["correlation"], first["beyond means"], first["same"]) == ("1.00", "1.00", "14.0")
    # Each of 7 choices is on 2 of 14 edges in both: by chance 7 * 2 * 2 / 14. Of 10,000, only the data is so good.
    assert first["by chance"] == "2.0" and first["p (beyond)"] == first["p (same)"] == "0.0001"
    assert (last["same"], last["by chance"], last["p (same)"]) == ("0.0", "2.0", "1.0000")
    # Without equal edges, the 112 values of which 14 lead correlate by (0 - 1/64) / (1/8 - 1/64).
    assert last["correlation"] == f"{-1 / 7:.2f}" and last["beyond means"] == f"{-1 / 6:.2f}"
    # Means over the edges: 7 and 7 of 14, and 6 and 8 of 14: by chance (7 * 6 + 7 * 8) / 14.
    assert (reduction["same"], reduction["by chance"]) == ("13.0", "7.0")


def test_what_all_edges_prefer_correlates_but_is_beyond_no_mean(tmp_path):
    """Both searches prefer operation 3, each on all edges but two of its own."""
    a, b = ([[4] * 2 + [3] * 12], [[3] * 12 + [4] * 2])
    a, b = (write_search(tmp_path / name, choice * EPOCHS, choice * EPOCHS) for name, choice in (("a", a), ("b", b)))
    row = lines(a, b)[-1]
    # 12 of 14 edges and 2 of 14: by chance (12 * 12 + 2 * 2) / 14, and 10 are the same.
    assert (row["same"], row["by chance"]) == ("10.0", f"{148 / 14:.1f}")
    assert float(row["correlation"]) > 0.6 and float(row["beyond means"]) < 0 and float(row["p (beyond)"]) == 1


def test_edges_from_the_inputs_are_also_permuted_apart_from_the_others(tmp_path):
    """Nodes 0 to 3 have 2 to 5 edges, the first two of them from the inputs, which prefer operation 3 in both."""
    choice = [3, 3, 3, 3, 4, 3, 3, 4, 4, 3, 3, 4, 4, 4]
    row = lines(*(write_search(tmp_path / name, [choice] * EPOCHS, [choice] * EPOCHS) for name in ("a", "b")))[-1]
    assert row["beyond means"] == "1.00" and float(row["p (beyond)"]) < 0.01 and row["p (within)"] == "1.0000"


def test_the_zero_operation_leads_and_is_no_choice():
    probs = np.full((14, 8), 0.1)
    probs[range(14), CYCLE] = 0.2
    probs[:, 0] = 0.5
    assert agreement.same_choice(probs, probs).trace() == 14 and agreement.same_choice(probs, probs).sum() == 28


def test_dropped_candidates_have_no_probability_in_the_next_stage(tmp_path):
    kept, other = ([name for name in PRIMITIVES[1:6]], [name for name in PRIMITIVES[3:8]])
    a, b = (write_search(tmp_path / name, [CYCLE] * EPOCHS, [CYCLE] * EPOCHS, stage2=[names] * 14)
            for name, names in (("a", kept), ("b", other)))
    rows = lines(a, b)
    assert [row["stage"] for row in rows] == ["1"] * 4 + ["2"] * 4
    alphas = {f"stage2_normal{end}": value for end, value in (("", np.tile(np.log([4, 1, 1, 1, 1]), (1, 14, 1))),
                                                              ("_candidates", np.array([kept] * 14)))}
    expected = [0, 0.5, 0.125, 0.125, 0.125, 0.125, 0, 0]
    assert np.allclose(agreement.probabilities(alphas, 2, "normal", 0), [expected] * 14)
    # The two prefer operations 1 and 3, each on all of its edges.
    assert (rows[-1]["same"], rows[-1]["by chance"], rows[-1]["p (same)"]) == ("0.0", "0.0", "1.0000")


def test_a_line_is_a_mean_over_all_pairs(tmp_path):
    """Three searches, of which two are the same: pairs that share 14, 7 and 7 edges."""
    searches = [write_search(tmp_path / name, [[i] * 7 + [4] * 7] * EPOCHS, [CYCLE] * EPOCHS)
                for i, name in ((1, "a"), (1, "b"), (2, "c"))]
    row = lines(*searches)[0]
    assert row["same"] == f"{28 / 3:.1f}" and row["pairs"] == "3"


def test_a_stage_is_compared_if_two_searches_have_ended_it(tmp_path):
    candidates = [PRIMITIVES[1:6]] * 14
    searches = [write_search(tmp_path / name, [CYCLE] * EPOCHS, [CYCLE] * EPOCHS, stage2=stage2)
                for name, stage2 in (("a", None), ("b", candidates), ("c", candidates))]
    assert [(row["stage"], row["alpha steps"], row["pairs"]) for row in lines(*searches)[::2]] == [
        ("1", "100", "3"), ("1", "200", "3"), ("2", "100", "1"), ("2", "200", "1")]


def test_searches_are_compared_only_with_those_after_against(tmp_path):
    """a and b share all 14 edges, and c and d; one of the first and one of these share 7."""
    searches = [write_search(tmp_path / name, [[i] * 7 + [4] * 7] * EPOCHS, [CYCLE] * EPOCHS)
                for i, name in ((1, "a"), (1, "b"), (2, "c"), (2, "d"))]
    row = lines(*searches[:2], "--against", *searches[2:])[0]
    assert (row["pairs"], row["same"], row["by chance"]) == ("4", "7.0", "3.5")
    # Copies are no further evidence: the edges of all searches after --against are permuted alike.
    one, copies = (lines(searches[0], "--against", *others)[0] for others in (searches[2:3], searches[2:]))
    assert one["pairs"] == "1" and copies == one | {"pairs": "2"}


def test_searches_without_metrics_are_compared_too(tmp_path):
    searches = [write_search(tmp_path / name, [CYCLE] * EPOCHS, [CYCLE] * EPOCHS) for name in "ab"]
    (tmp_path / "a" / "metrics.jsonl").unlink()
    (tmp_path / "b" / "metrics.jsonl").unlink()
    assert [(row["alpha steps"], row["same"]) for row in lines(*searches)] == [("–", "14.0")] * 4


def test_the_figure_has_a_line_per_cell(tmp_path):
    searches = [write_search(tmp_path / name, [CYCLE] * EPOCHS, [SHIFTED] * EPOCHS) for name in ("a", "b")]
    outcome = run("experiments/agreement.py", *searches, "--plot", tmp_path / "sketch.svg", change=figures)
    assert outcome.code == 0 and (tmp_path / "sketch.svg").read_text().startswith("<svg>")
    found = {cell: {"1: 100": Agreement(1.0, 0.1, 0.2, 0.0001), "1: 200": Agreement(0.5, 0.1, 0.2, 0.0001)}
             for cell in ("normal cell", "reduction cell")}
    agreement.plot(found, tmp_path / "agreement.svg")
    text = (tmp_path / "agreement.svg").read_text()
    assert all(f">{word}<" in text for word in ("1: 100", "1: 200", "normal cell", "reduction cell"))


@pytest.mark.parametrize("seeds, warned", [((1, 2, 3), False), ((1, 1), False), ((1, 2, 1), True)])
def test_searches_of_one_seed_among_others_are_warned_of(seeds, warned, tmp_path, caplog):
    """Two alone, a search and its repetition, are a question of its own."""
    for i, seed in enumerate(seeds):
        (tmp_path / str(i)).mkdir()
        (tmp_path / str(i) / "args.json").write_text(json.dumps({"kind": "search", "args": {"seed": seed}}))
    agreement.warn_of_repetitions([str(tmp_path / str(i)) for i in range(len(seeds))])
    assert ("more than one search has the seed 1," in caplog.text) is warned


@pytest.mark.parametrize("names, status, text", [([], 2, "required"), (["a"], 1, "one search"),
                                                 (["a", "a"], 1, "a is given twice"),
                                                 (["a", "b", "--against", "a"], 1, "a is given twice"),
                                                 (["a", "noise"], 1, "a (P-DARTS) and noise (noise) are searches"),
                                                 (["a", "--against", "b", "noise"], 1, "b (P-DARTS) and noise"),
                                                 (["a", "longer"], 1, "2 epochs (1 of them warm-up) and 3 epochs"),
                                                 (["a", "nowhere"], 1, "nowhere is not a run"),
                                                 (["a", "evaluation"], 1, "kind eval"),
                                                 (["a", "unfinished"], 1, "no two searches"),
                                                 (["a", "b", "--against", "unfinished"], 1, "no two searches"),
                                                 (["a", "damaged"], 1, "damaged/alphas.npz"),
                                                 (["a", "own"], 1, "own has the operation silu_conv: start this by"),
                                                 (["a", "b", "--plot=x.pdf"], 2, ".svg or .png")])
def test_bad_input_is_one_line(names, status, text, tmp_path):
    for name in ("a", "b"):
        write_search(tmp_path / name, [CYCLE] * 2, [CYCLE] * 2)
    write_search(tmp_path / "noise", [CYCLE] * 2, [CYCLE] * 2, script="'/my code/experiments/controls.py' noise")
    write_search(tmp_path / "longer", [CYCLE] * 3, [CYCLE] * 3)
    write_search(tmp_path / "damaged", [CYCLE] * 2, [CYCLE] * 2)
    (tmp_path / "damaged" / "alphas.npz").write_text("no zip file")
    write_search(tmp_path / "own", [CYCLE] * 2, [CYCLE] * 2, stage2=[["silu_conv", *PRIMITIVES[:4]]] * 14)
    write_search(tmp_path / "unfinished", [CYCLE], [CYCLE])
    (tmp_path / "unfinished" / "args.json").write_text((tmp_path / "a" / "args.json").read_text())
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation" / "args.json").write_text(json.dumps({"kind": "eval", "args": {}}))
    outcome = run("experiments/agreement.py", *names, cwd=tmp_path)
    assert outcome.code == status and text in outcome.err and not outcome.out
    assert len(outcome.err.splitlines()) == 1

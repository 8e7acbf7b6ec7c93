"""experiments/collect.py: the records of finished runs, and nothing else."""
import json
from types import SimpleNamespace

import numpy as np
import pytest
from scripts import error_line, run, snapshot
from test_compare import write_evaluation, write_search

from genotypes import PRIMITIVES

ALPHAS = {f"stage1_{cell}{end}": value for cell in ("normal", "reduce")
          for end, value in (("", np.zeros((1, 14, 8))), ("_candidates", [PRIMITIVES] * 14))}


def files(folder) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_finished_runs_leave_their_records_without_weights_and_without_the_path_of_the_script(tmp_path):
    runs = tmp_path / "out" / "runs"
    runs.mkdir(parents=True)
    write_search(runs / "search-1", seed=1)
    np.savez(runs / "search-1" / "alphas.npz", **ALPHAS)
    write_evaluation(runs / "eval-1", [0.0, 95.0])
    write_evaluation(runs / "eval-2", [90.0])  # the first of two epochs
    write_search(runs / "search-2", seed=2, genotype=None, epochs=2)  # still in its first stage
    write_search(runs / "search-3", seed=3, genotype=None)  # stopped after its first stage
    np.savez(runs / "search-3" / "alphas.npz", **ALPHAS)
    for name in ("search-1", "search-2", "search-3", "eval-1", "eval-2"):
        record = json.loads((runs / name / "args.json").read_text())
        record["command"] = "python '/home/some one/p-darts/train.py' --arch 'a b' --seed 1"
        (runs / name / "args.json").write_text(json.dumps(record))
        (runs / name / "weights.pt").write_bytes(b"weights")
    (runs / "eval-3").mkdir()  # killed at birth
    (runs / "eval-3" / "args.json.tmp").write_text("{")
    outcome = run("experiments/collect.py", tmp_path / "out", tmp_path / "results")
    assert outcome.code == 0 and "3 of 5 runs" in outcome.out + outcome.err, outcome
    written = files(tmp_path / "results")
    assert written == {name for name in files(runs) if name.startswith(("search-1", "search-3", "eval-1"))
                       and not name.endswith("weights.pt")}
    for name in ("search-1", "eval-1"):
        kept = SimpleNamespace(**json.loads((tmp_path / "results" / name / "args.json").read_text()))
        assert kept.command == "python train.py --arch 'a b' --seed 1"
        assert kept.args == json.loads((runs / name / "args.json").read_text())["args"]
        metrics = f"{name}/metrics.jsonl"
        assert (tmp_path / "results" / metrics).read_bytes() == (runs / metrics).read_bytes()


@pytest.fixture
def out(tmp_path):
    """The --out of an experiment: a search, an evaluation, a control, and the losses of a supernet."""
    for folder in ("runs", "controls", "supernets"):
        (tmp_path / "out" / folder).mkdir(parents=True)
    for path in (tmp_path / "out" / "runs" / "search-a", tmp_path / "out" / "controls" / "search-twin"):
        write_search(path, seed=1)
        np.savez(path / "alphas.npz", **ALPHAS)
    write_evaluation(tmp_path / "out" / "runs" / "eval-a", [0.0, 95.0])
    for path in (tmp_path / "out").glob("*/*/args.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"command": "python train.py"}))
    (tmp_path / "out" / "supernets" / "a.json").write_text("{}")
    (tmp_path / "out" / "supernets" / "a.pt").write_bytes(b"weights")
    return tmp_path / "out"


def test_controls_and_what_was_measured_on_supernets_are_collected_beside_older_records(out, tmp_path):
    write_evaluation(tmp_path / "eval-fashion", [0.0, 80.0])
    before = snapshot(tmp_path / "eval-fashion")
    assert run("experiments/collect.py", out, tmp_path).code == 0
    assert {path.name for path in tmp_path.iterdir()} == {"out", "search-a", "search-twin", "eval-a", "eval-fashion",
                                                          "supernets"}
    assert files(tmp_path / "supernets") == {"a.json"} and snapshot(tmp_path / "eval-fashion") == before


@pytest.mark.parametrize("name", ["runs/search-a/alphas.npz", "controls/search-twin/metrics.jsonl",
                                  "runs/eval-a/genotype.json"])
def test_a_damaged_record_is_one_line_and_nothing_is_overwritten(name, out, tmp_path):
    assert run("experiments/collect.py", out, tmp_path / "results").code == 0
    (out / name).write_text("{")
    before = snapshot(tmp_path)
    assert name.rpartition("/")[0] in error_line(run("experiments/collect.py", out, tmp_path / "results"), 1)
    assert snapshot(tmp_path) == before


def test_a_folder_without_runs_is_refused(tmp_path):
    outcome = run("experiments/collect.py", tmp_path, tmp_path / "results")
    assert outcome.code == 1 and "holds no runs" in outcome.err and not (tmp_path / "results").exists()

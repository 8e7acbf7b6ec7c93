"""experiments/collect.py: the records of finished runs, and nothing else."""
import json
from types import SimpleNamespace

from scripts import run
from test_compare import write_evaluation, write_search


def files(folder) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_finished_runs_leave_their_records_without_weights_and_without_the_path_of_the_script(tmp_path):
    runs = tmp_path / "out" / "runs"
    runs.mkdir(parents=True)
    write_search(runs / "search-1", seed=1)
    write_evaluation(runs / "eval-1", [0.0, 95.0])
    write_evaluation(runs / "eval-2", [90.0])  # the first of two epochs
    for name in ("search-1", "eval-1", "eval-2"):
        record = json.loads((runs / name / "args.json").read_text())
        record["command"] = "python '/home/some one/p-darts/train.py' --arch 'a b' --seed 1"
        (runs / name / "args.json").write_text(json.dumps(record))
        (runs / name / "weights.pt").write_bytes(b"weights")
    (runs / "eval-3").mkdir()  # killed at birth
    (runs / "eval-3" / "args.json.tmp").write_text("{")
    outcome = run("experiments/collect.py", tmp_path / "out", tmp_path / "results")
    assert outcome.code == 0 and "2 of 3 runs" in outcome.out + outcome.err, outcome
    written = files(tmp_path / "results")
    assert written == {name for name in files(runs) if name.startswith(("search-1", "eval-1"))
                       and not name.endswith("weights.pt")}
    for name in ("search-1", "eval-1"):
        kept = SimpleNamespace(**json.loads((tmp_path / "results" / name / "args.json").read_text()))
        assert kept.command == "python train.py --arch 'a b' --seed 1"
        assert kept.args == json.loads((runs / name / "args.json").read_text())["args"]
        metrics = f"{name}/metrics.jsonl"
        assert (tmp_path / "results" / metrics).read_bytes() == (runs / metrics).read_bytes()


def test_a_folder_without_runs_is_refused(tmp_path):
    outcome = run("experiments/collect.py", tmp_path, tmp_path / "results")
    assert outcome.code == 1 and "holds no runs" in outcome.err and not (tmp_path / "results").exists()

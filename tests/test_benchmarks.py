"""The benchmarks as a person runs them: what they count does not depend on the machine, so the targets are asserted."""
import json
import sys
from argparse import Namespace

import pytest
import torch
from scripts import ROOT, error_line, run

sys.path.insert(0, str(ROOT / "benchmarks"))
import gpu
import steps


@pytest.mark.slow
def test_the_search_step_keeps_and_dispatches_a_fraction_of_the_plain_formulation(tmp_path):
    """In stage 3, where the shares are largest, at the size of docs/performance.md's table but for channels and batch,
    which hardly matter. Seconds are printed, not judged."""
    file = tmp_path / "stage3.json"
    outcome = run("benchmarks/search_step.py", "--stages", 3, "--channels", 2, "--batch_size", 2, "--repeats", 1,
                  "--device", "cpu", "--json", file)
    assert outcome.code == 0, outcome
    assert torch.backends.cpu.get_cpu_capability() in outcome.out.splitlines()[0]
    assert "default: a weight step takes as long as" in outcome.out
    plain, default, checkpoint = json.loads(file.read_text())["results"]["3"].values()
    for step in ("weight", "alpha"):
        assert default[f"dispatches_{step}"] <= 0.5 * plain[f"dispatches_{step}"]
        assert default[f"kept_{step}"] <= 0.45 * plain[f"kept_{step}"]
        assert checkpoint[f"kept_{step}"] <= 0.03 * plain[f"kept_{step}"]


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """What gpu.py prints and writes, at toy sizes."""
    file = tmp_path_factory.mktemp("gpu") / "gpu.json"
    outcome = run("benchmarks/gpu.py", "--device", "cpu", "--json", file)
    assert outcome.code == 0, outcome
    return outcome.out, json.loads(file.read_text())


@pytest.mark.slow
def test_the_gpu_report_holds_every_vector_both_ways(report):
    rows = [row for row in report[1]["results"] if row["what"].startswith("vectors")]
    names = {row["what"].removeprefix("vectors ") for row in rows}
    assert names == {path.stem for path in (ROOT / "tests/golden").glob("*.npz")}
    for name in names:
        ways = {row["way"] for row in rows if row["what"] == f"vectors {name}"}
        assert ways >= {"definition", "fast"} and ("fast, checkpointed" in ways) == ("ops" in name)
    assert all(row["error"] < 1e-8 for row in rows)


@pytest.mark.slow
def test_the_gpu_report_measures_and_profiles_every_step(report):
    rows = {(row["what"], row["way"]): row for row in report[1]["results"]}
    for step in [f"stage {n} {kind}" for n in (1, 2, 3) for kind in ("weight", "alpha")] + ["evaluation training"]:
        for way in (*gpu.NEEDED, *gpu.OPTIONAL):
            if step.startswith("evaluation") and "checkpointed" in way:
                continue
            row = rows[step, way]
            assert min(row[field] for field in ("seconds", "times", "images_per_second", "peak_mb")) > 0
            if way in gpu.NEEDED:
                assert row["kernels"] > 0 and row["busy"] > 0 and row["times"] == pytest.approx(
                    rows[step, "plain"]["seconds"] / row["seconds"])
    assert rows["twice stage 1", "deterministic"]["error"] == rows["twice evaluation", "deterministic"]["error"] == 0
    assert rows["third weight step", "float32"]["error"] < 1e-3 > rows["float64 stage 1", "fast"]["error"]
    assert all(row["images_per_second"] > 0 for (what, _), row in rows.items() if what.startswith("input"))


@pytest.mark.slow
def test_the_gpu_reports_hours_are_those_of_its_steps(report):
    """Published: 25 epochs a stage, 10 of them warm-up, half of 50,000 images; 600 epochs of all of them."""
    rows, args = {(row["what"], row["way"]): row for row in report[1]["results"]}, report[1]["args"]
    batches, evaluation_batches = -(-25000 // args["batch_size"]), -(-50000 // args["evaluation_batch_size"])
    for way in (*gpu.NEEDED, *gpu.OPTIONAL):
        seconds = sum(batches * (10 * weight + 15 * (weight + alpha)) for weight, alpha in (
            [rows[f"stage {n} {kind}", way]["seconds"] for kind in ("weight", "alpha")] for n in (1, 2, 3)))
        assert rows["published search", way]["hours"] == pytest.approx(seconds / 3600)
        if "checkpointed" not in way:
            seconds = 600 * evaluation_batches * rows["evaluation training", way]["seconds"]
            assert rows["published evaluation", way]["hours"] == pytest.approx(seconds / 3600)


@pytest.mark.slow
def test_the_gpu_report_ends_in_a_table_of_all_rows(report):
    out, record = report
    machine, empty, titles, _, *table = out.splitlines()[-len(record["results"]) - 4:]
    assert record["machine"] in machine and not empty and titles.count("|") == 1 + len(gpu.FIELDS)
    for line, row in zip(table, record["results"], strict=True):
        assert row.keys() == gpu.FIELDS.keys() and line.startswith(f"| {row['what']} | {row['way']} |")


def test_what_fails_or_comes_too_late_is_a_note_in_its_row():
    def fail(error):
        raise error
    args = Namespace(minutes=0, device="cpu", json=None)
    late = gpu.Report(args)
    gpu.add_steps(late, args, gpu.OPTIONAL, optional=True)
    assert {row["note"] for row in late.rows} == {"skipped after 0 minutes"}
    assert steps.attempt(fail, torch.cuda.OutOfMemoryError("CUDA")) == {"note": "out of memory"}
    assert steps.attempt(fail, ValueError("a\nb")) == {"note": "ValueError: a b"}


def test_wrong_numbers_end_the_gpu_report_in_an_error():
    wrong = gpu.Report(Namespace(minutes=0, device="cpu", json=None))
    for what, error in (("vectors a", 1e-7), ("vectors b", float("nan")), ("vectors c", None), ("vectors d", 1e-9)):
        wrong.add(what, "fast", {"error": error})
    with pytest.raises(ValueError, match=r"vectors a \(fast\), vectors b \(fast\), vectors c \(fast\)$"):
        wrong.reject_errors()


def test_without_a_gpu_its_report_is_refused():
    outcome = run("benchmarks/gpu.py", env={"CUDA_VISIBLE_DEVICES": ""})
    assert "--device cpu" in error_line(outcome, 2) and outcome.err.count("\n") == 1


@pytest.mark.parametrize("script, options, bad", [
    ("search_step.py", ["--repeats", 0], "--repeats"), ("search_step.py", ["--stages", 4], "--stages"),
    ("search_step.py", ["--json", "nowhere/x.json"], "nowhere/x.json"), ("search_step.py", ["--device", "tpu"], "tpu"),
    ("evaluation_step.py", ["--batch_size", 0], "--batch_size"), ("image_loading.py", ["--thread"], "--thread"),
    ("fashion_subset.py", ["out", "--train", 3], "--train"), ("gpu.py", ["--minutes", -1], "--minutes"),
    ("gpu.py", ["--device", "tpu"], "tpu")])
def test_a_benchmark_refuses_what_it_cannot_measure(script, options, bad):
    assert bad in error_line(run(f"benchmarks/{script}", *options), 2)

"""The benchmarks as a person runs them: what they count does not depend on the machine, so the targets are asserted."""
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from argparse import Namespace
from types import SimpleNamespace

import pytest
import torch
from scripts import ROOT, error_line, run, start

import utils
from harness import cli

sys.path.insert(0, str(ROOT / "benchmarks"))
import gpu
import gpu_groups
import loops
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


# ---- gpu.py, whole

@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """What gpu.py prints and writes, at toy sizes."""
    file = tmp_path_factory.mktemp("gpu") / "gpu.json"
    outcome = run("benchmarks/gpu.py", "--device", "cpu", "--minutes", 30, "--json", file, timeout=1800)
    assert outcome.code == 0, outcome
    return outcome.out, json.loads(file.read_text())


@pytest.fixture(scope="module")
def rows(report):
    return {(row["what"], row["way"]): row for row in report[1]["results"]}


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
def test_the_gpu_report_measures_and_profiles_every_step(rows):
    for step in [f"stage {n} {kind}" for n in (1, 2, 3) for kind in ("weight", "alpha")] + [
            "evaluation training", "imagenet training"]:
        for way in (*gpu.NEEDED, *gpu.OPTIONAL):
            if "training" in step and "checkpointed" in way:
                continue
            row = rows[step, way]
            assert min(row[field] for field in ("seconds", "times", "images_per_second", "peak_mb")) > 0
            if way in gpu.NEEDED:
                assert row["kernels"] > 0 and row["busy"] > 0 and row["times"] == pytest.approx(
                    rows[step, "plain"]["seconds"] / row["seconds"])
    assert rows["twice stage 1", "deterministic"]["error"] == rows["twice evaluation", "deterministic"]["error"] == 0
    assert rows["third weight step", "float32"]["error"] < 1e-3 > rows["float64 stage 1", "fast"]["error"]
    assert {way for what, way in rows if what == "third weight step"} == {"float32", "tf32", "bf16", "fp16"}


@pytest.mark.slow
def test_the_gpu_report_runs_the_scripts_loops_and_the_validation_of_every_network(rows):
    for script in ("train_search.py", "train_cifar.py", "train_imagenet.py"):
        assert rows[f"input {script}", "alone"]["images_per_second"] > 0
        assert rows[f"loop {script}", "fast"]["images_per_second"] > 0
        assert re.fullmatch(r"[\d.]+ times the rate of the step alone", rows[f"loop {script}", "fast"]["note"])
        for way in ("fast", "fast, fp16"):
            row = rows[f"waits {script}", way]
            assert row["error"] is None and row["note"] == "the loop runs; only a GPU tells whether it waits"
    for name in gpu.NETWORKS:
        assert rows[f"{name} validation", "definition"]["images_per_second"] > 0
    assert rows["evaluation training, batch 3", "fast"]["peak_mb"] > 0


@pytest.mark.slow
def test_the_gpu_reports_hours_are_those_of_its_steps(report, rows):
    """Published: 25 epochs a stage, 10 of them warm-up, half of 50,000 images; 600 epochs of all of them."""
    args = report[1]["args"]
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
    assert [row["what"] for row in record["results"][-5:]] == [f"quicker {name}" for name in gpu.NETWORKS]


@pytest.mark.slow
def test_ctrl_c_ends_the_gpu_report_in_one_line_and_keeps_its_rows(tmp_path):
    file = tmp_path / "gpu.json"
    script = start("benchmarks/gpu.py", "--device", "cpu", "--groups", "vectors", "--json", file)
    script.wait_until(lambda: script.output("out").count("\n") > 2)
    script.signal(signal.SIGINT)
    outcome = script.wait()
    kept = len(json.loads(file.read_text())["results"])
    assert outcome.code == 130 and kept > 2
    assert outcome.err == f"stopped by a signal; {kept} rows are in {file}\n"


PRELOADING = """
import importlib, sys
import torch
sys.path.insert(0, "benchmarks")
def asked(*args): raise AssertionError("CUDA is asked for")
torch._C._cuda_getDeviceCount = torch._C._cuda_init = torch.cuda.is_available = torch.cuda.device_count = asked
for name in sys.argv[1:]:
    importlib.import_module(name)
"""


@pytest.mark.slow
def test_the_server_of_the_groups_does_not_open_cuda():
    """Once it has asked for devices, the processes that it forks could not use one."""
    done = subprocess.run([sys.executable, "-c", PRELOADING, *gpu.PRELOADED], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# ---- gpu.py's groups: what fails in one is a row, and the others go on

def names_the_device(args, rows):
    yield "device", "", {"note": "a device"}


def works(args, rows):
    yield "works", "fast", {"seconds": 0.5, "note": f"after {len(rows)} rows"}


def raises(args, rows):
    yield "begun", "fast", {}
    raise RuntimeError("CUDA error:\nan illegal | access")


def is_killed(args, rows):
    os.kill(os.getpid(), signal.SIGKILL)
    yield


def hangs(args, rows):
    yield "begun", "slow", {}
    time.sleep(1000)


def exceeds(args, rows):
    yield "vectors a", "fast", {"error": 1e-7}


@pytest.fixture
def gpu_report(monkeypatch, tmp_path):
    """gpu_report({group: function}, options...): the rows that a run of these groups leaves, and its error."""
    def run_groups(groups, *options):
        file = tmp_path / "gpu.json"
        monkeypatch.setattr(gpu, "GROUPS", {"device": names_the_device, **groups})
        monkeypatch.setattr(sys, "argv", ["gpu.py", "--device", "cpu", "--json", str(file), *options])
        error = None
        try:
            gpu.main(gpu.parse_args())
        except (ValueError, cli.Stopped) as caught:
            error = caught
        rows = json.loads(file.read_text())["results"]
        return [(row["what"], row["note"]) for row in rows if not row["what"].startswith("quicker")], error
    return run_groups


def test_a_group_that_fails_is_a_row_with_its_reason_and_the_others_go_on(gpu_report, capfd):
    rows, error = gpu_report({"raises": raises, "is_killed": is_killed, "works": works, "exceeds": exceeds})
    assert rows == [("device", "a device"), ("begun", None),
                    ("raises", "failed: RuntimeError: CUDA error: an illegal / access"),
                    ("is_killed", "failed: the process ended by SIGKILL"), ("works", "after 4 rows"),
                    ("vectors a", None)]
    assert str(error) == ("wrong or missing on this device, see the table: raises (), is_killed (), vectors a (fast)")
    assert "| is_killed |" in capfd.readouterr().out


def test_a_group_that_hangs_leaves_time_to_the_others(gpu_report, monkeypatch):
    def measure_group(report, group, measure=gpu.measure_group):
        monkeypatch.setattr(gpu, "MAX_SECONDS", 3 if group == "hangs" else 180)
        measure(report, group)
    monkeypatch.setattr(gpu, "measure_group", measure_group)
    rows, error = gpu_report({"hangs": hangs, "works": works})
    assert ("hangs", "failed: not done within 3 s") in rows and rows[-1][0] == "works" and "hangs ()" in str(error)


def test_what_comes_too_late_is_left_out(gpu_report):
    rows, error = gpu_report({"raises": raises, "compiled": raises}, "--minutes", "0")
    assert rows[1:] == [(name, "left out: no time") for name in ("raises", "compiled")] and error is None
    rows, error = gpu_report({"vectors": raises}, "--minutes", "0")
    assert "missing on this device, see the table: vectors ()" in str(error)  # what must be known is


def test_a_device_that_does_not_work_ends_the_report_at_once(gpu_report):
    rows, error = gpu_report({"device": raises, "works": works})
    assert "nothing can be measured on cpu: failed: RuntimeError: CUDA error" in str(error) and len(rows) == 2


def test_an_interrupted_report_keeps_its_rows(gpu_report, monkeypatch):
    def interrupted(report, group):
        if group == "hangs":
            raise KeyboardInterrupt
        report.add(group, "", {"note": "a device"})
    monkeypatch.setattr(gpu, "measure_group", interrupted)
    rows, error = gpu_report({"hangs": hangs})
    assert rows == [("device", "a device")] and error.args[0] == 130 and error.args[1].startswith(
        "stopped by a signal; 1 rows are in /")


def test_what_fails_in_a_row_is_its_note(capsys):
    def fail(error):
        raise error
    assert steps.attempt(fail, torch.cuda.OutOfMemoryError("CUDA")) == {"note": "out of memory"}
    assert steps.attempt(fail, RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when")) == {"note": "out of memory"}
    assert steps.attempt(fail, RuntimeError("CUDA error: out of memory")) == {"note": "out of memory"}
    assert steps.attempt(fail, ValueError("a\nb")) == {"note": "failed: ValueError: a b"}


@pytest.mark.parametrize("what, result, wrong", [
    ("vectors a", {"error": 1e-7}, True), ("vectors a", {"error": math.nan}, True), ("vectors a", {}, True),
    ("vectors a", {"error": 1e-9}, False), ("stage 1 weight", {"seconds": math.nan}, True),
    ("stage 1 weight", {"note": "out of memory"}, False), ("stage 1 weight", {"note": "failed: x"}, True),
    ("third weight step", {"note": "unsupported: --amp bf16: X only emulates it"}, False),
    ("waits train_cifar.py", {"error": 1.0}, True), ("loop train_cifar.py", {"images_per_second": math.inf}, True)])
def test_wrong_numbers_end_the_gpu_report_in_an_error(what, result, wrong):
    report = gpu.Report(Namespace(minutes=0, device="cuda", json=None))
    report.add(what, "fast", result)
    if not wrong:
        return report.reject_wrong()
    with pytest.raises(ValueError, match=rf"{what} \(fast\)$"):
        report.reject_wrong()


def test_the_gpu_report_says_which_way_is_quicker_and_what_to_set():
    report = gpu.Report(Namespace(minutes=0, device="cuda", json=None))
    for way, weight, alpha, training in (("fast", 2.0, 1.0, 3.0), ("definition", 3.0, 2.0, 1.0)):
        for kind, seconds in (("stage 1 weight", weight), ("stage 1 alpha", alpha), ("evaluation training", training)):
            report.add(kind, way, {"seconds": seconds})
    gpu.add_verdicts(report)
    stage, evaluation = (report.find(f"quicker {name}", way) for name, way in (
        ("stage 1", "fast"), ("evaluation", "definition")))
    assert stage["times"] == pytest.approx((25 * 3 + 15 * 2) / (25 * 2 + 15 * 1)) and evaluation["times"] == 3
    assert stage["note"] == "train with --fast on; utils.FAST_BY_DEFAULT['cuda'] is True, as it should be"
    assert evaluation["note"] == ("train with --fast off; utils.FAST_BY_DEFAULT['cuda'] is True: if most networks "
                                  "agree, set it to False")
    assert report.find("quicker stage 2", "")["note"] == "unknown: not timed both ways"


@pytest.mark.parametrize("waits", [False, True])
def test_a_loop_is_checked_for_waiting_after_its_first_steps(waits, monkeypatch, tmp_path):
    calls = []
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", calls.append)

    def train(batches, meter):
        for batch in batches:
            calls.append(batch)
            if waits and batch == 3:
                raise RuntimeError("called a synchronizing CUDA operation")
    monkeypatch.setitem(loops.LOOPS, "a.py", lambda *case: loops.Loop(range(100), train))
    found = loops.waits("a.py", "off", Namespace(device="cuda"), tmp_path)
    assert calls == [0, 1, "error", 2, 3, *([] if waits else [4]), "default"]
    assert found["error"] == waits and ("tests/test_benchmarks.py:" in found.get("note", "")) == waits


def test_a_scaler_that_skips_a_step_does_not_change_which_step_is_the_third(monkeypatch):
    """fp16 begins with a scale that may be too large; the skipped step is repeated."""
    losses = iter([1.0, 2.0, 2.0, 3.0])
    scales = iter([8, 8, 8, 4, 4, 4, 4, 4])
    monkeypatch.setattr(gpu_groups, "weight_step", lambda *step: (torch.tensor(next(losses)), None))
    monkeypatch.setattr(utils, "set_precision", lambda *case: SimpleNamespace(get_scale=lambda: next(scales)))
    assert gpu_groups.third_loss("fp16", Namespace(device="cpu", **gpu.SIZES["cpu"])) == 3.0


# ---- bad input

def test_without_a_gpu_its_report_is_refused():
    outcome = run("benchmarks/gpu.py", env={"CUDA_VISIBLE_DEVICES": ""})
    assert "--device cpu" in error_line(outcome, 2) and outcome.err.count("\n") == 1


@pytest.mark.parametrize("script, options, bad", [
    ("search_step.py", ["--repeats", 0], "--repeats"), ("search_step.py", ["--stages", 4], "--stages"),
    ("search_step.py", ["--json", "nowhere/x.json"], "nowhere/x.json"), ("search_step.py", ["--device", "tpu"], "tpu"),
    ("evaluation_step.py", ["--batch_size", 0], "--batch_size"), ("image_loading.py", ["--thread"], "--thread"),
    ("fashion_subset.py", ["out", "--train", 3], "--train"), ("gpu.py", ["--minutes", -1], "--minutes"),
    ("gpu.py", ["--device", "tpu"], "tpu"), ("gpu.py", ["--groups", "vector"], "vector"),
    ("gpu.py", ["--device", "cpu", "--json", "nowhere/x.json"], "nowhere/x.json")])
def test_a_benchmark_refuses_what_it_cannot_measure(script, options, bad):
    assert bad in error_line(run(f"benchmarks/{script}", *options), 2)

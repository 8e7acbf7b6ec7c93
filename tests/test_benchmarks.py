"""The benchmarks as a person runs them: what they count does not depend on the machine, so the targets are asserted."""
import json

import pytest
from scripts import error_line, run, run_fresh


@pytest.mark.slow
def test_the_search_step_keeps_and_dispatches_a_fraction_of_the_plain_formulation(tmp_path):
    """In stage 3, where the shares are largest. Seconds are printed, not judged."""
    file = tmp_path / "stage3.json"
    outcome = run_fresh("benchmarks/search_step.py", "--stages", 3, "--channels", 8, "--batch_size", 4,
                        "--repeats", 1, "--device", "cpu", "--json", file)
    assert outcome.code == 0, outcome
    plain, default, checkpoint = json.loads(file.read_text())["results"]["3"].values()
    for step in ("weight", "alpha"):
        assert default[f"dispatches_{step}"] <= 0.5 * plain[f"dispatches_{step}"]
        assert default[f"kept_{step}"] <= 0.45 * plain[f"kept_{step}"]
        assert checkpoint[f"kept_{step}"] <= 0.03 * plain[f"kept_{step}"]


@pytest.mark.parametrize("script, options, bad", [
    ("search_step.py", ["--repeats", 0], "--repeats"), ("search_step.py", ["--stages", 4], "--stages"),
    ("search_step.py", ["--json", "nowhere/x.json"], "nowhere/x.json"), ("search_step.py", ["--device", "tpu"], "tpu"),
    ("evaluation_step.py", ["--batch_size", 0], "--batch_size"), ("input_pipeline.py", ["--thread"], "--thread"),
    ("fashion_subset.py", ["out", "--train", 3], "--train")])
def test_a_benchmark_refuses_what_it_cannot_measure(script, options, bad):
    assert bad in error_line(run(f"benchmarks/{script}", *options), 2)

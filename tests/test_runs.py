"""The time to come, by hand-computed values; the run that a restart continues."""
import json
import os
import time
from argparse import Namespace

import pytest

from harness import runs
from harness.runs import in_words, seconds_left


def test_before_the_first_epoch_ends_its_steps_tell():
    assert seconds_left([1, 1, 1, 1], [], fraction=0.25, elapsed=5) == 75  # a quarter took 5 s
    assert seconds_left([2, 3, 3], [], fraction=0.5, elapsed=10) == 70  # 10 s a unit, 7 units to come


def test_later_the_epochs_tell_in_proportion_to_what_they_cost():
    assert seconds_left([1, 1, 3], [10, 10]) == 30
    assert seconds_left([1, 1, 3], [10, 10], fraction=2 / 3, elapsed=99) == pytest.approx(10)


def test_only_the_last_five_epochs_tell():
    assert seconds_left([1] * 8, [1000, 2, 2, 2, 2, 2]) == 4


def test_a_search_counts_all_its_stages():
    """Cells, candidates and alpha steps: 5 * 8, 11 * 5 and 17 * 3, of which the second epoch has alpha steps, too."""
    import progressive
    import train_search
    args = train_search.get_args_parser().parse_args(["--epochs", "2", "--warmup_epochs", "1", "--init_channels", "2"])
    args.add_layers, args.add_width, args.dropout_rate = [6, 12], [0, 0], [0.0, 0.0, 0.0]
    costs = progressive.epoch_costs(train_search.make_stages(args), args.epochs, args.warmup_epochs)
    assert costs == pytest.approx([80, 128, 110, 176, 102, 163.2])


@pytest.mark.parametrize("seconds, words", [(0.2, "0 s"), (59.4, "59 s"), (61, "1 min"), (3599, "1 h 00 min"),
                                            (3 * 3600 + 290, "3 h 05 min"), (90000, "25 h 00 min")])
def test_times_in_words(seconds, words):
    assert in_words(seconds) == words


@pytest.mark.parametrize("script, commit", [
    (r"printf 'v1-\377\n'", "v1-\ufffd"), ("exit 128", None), ("cat", None), ("echo abc; sleep 60", None),
    ("kill -9 $$", None), (None, None)], ids=["odd bytes", "no repository", "reads", "hangs", "dies", "not installed"])
def test_git_stops_no_run(script, commit, tmp_path, monkeypatch):
    if script:
        (tmp_path / "git").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "git").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin" if script else str(tmp_path))
    monkeypatch.setattr(runs, "GIT_SECONDS", 0.5 if script and "sleep" in script else 10)
    begun = time.monotonic()
    assert runs._git_commit() == commit and time.monotonic() - begun < 10


def test_an_epoch_on_another_number_of_processes_says_so_and_hours_count_it(tmp_path, monkeypatch):
    import engine
    from harness import parallel
    monkeypatch.setattr(runs.Run, "save", lambda run: None)
    monkeypatch.setattr(runs, "check_not_lost", lambda run_dir: None)  # since nothing is saved
    (tmp_path / "args.json").write_text('{"kind": "eval", "args": {}, "processes": 1}')
    args = Namespace(epochs=2, tensorboard=False, resume=str(tmp_path), save="runs")
    monkeypatch.setattr(parallel, "catch_signals", lambda: None)
    monkeypatch.setattr(runs, "log_to_file", lambda path: None)
    done = []
    for processes in (1, 4):
        monkeypatch.setattr(parallel, "world_size", lambda: processes)  # noqa: B023
        run = runs.Run.open("eval", args, "a CPU", engine.Best())
        run.metrics = done
        run.end_epoch({"epoch": len(run.metrics), "seconds": 3600.0})
        done = run.metrics
    assert [row.get("processes") for row in done] == [None, 4] and run.device_hours() == 5


def test_a_restart_continues_the_newest_run_of_its_launch_with_its_options(tmp_path, monkeypatch):
    """An id may be given again, and so may a process id in a container."""
    monkeypatch.setattr(runs.launchers, "is_torchrun", lambda: True)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "100")
    for i, (launch, seed) in enumerate([("100", 1), ("100", 1), ("100", 2), ("7", 1)]):
        folder = tmp_path / f"eval-{i}"
        folder.mkdir()
        record = {"kind": "eval", "args": {"seed": seed, "dropout_rate": [0.1]}, "launch": launch}
        (folder / "args.json").write_text(json.dumps(record))
        os.utime(folder / "args.json", (i, i))
    for restarts, seed, expected in (("1", 1, "eval-1"), ("1", 2, "eval-2"), ("1", 3, None), ("0", 1, None)):
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", restarts)
        found = runs._restarted_run(tmp_path, "eval", Namespace(seed=seed, dropout_rate=(0.1,)))
        assert found == (expected and str(tmp_path / expected))


@pytest.mark.parametrize("files, words", [
    (["args.json"], None), (["metrics.jsonl", "checkpoint.pt", "previous.pt"], None),
    (["metrics.jsonl"], "restore it, or start a new run"), (["metrics.jsonl", "previous.pt"], "mv "),
    (["previous.pt"], "mv ")])
def test_a_run_that_has_lost_its_checkpoint_is_not_begun_anew(files, words, tmp_path):
    for name in files:
        (tmp_path / name).touch()
    if words is None:
        return runs.check_not_lost(tmp_path)
    with pytest.raises(ValueError, match="has lost its checkpoint.pt: .*" + words):
        runs.check_not_lost(tmp_path)

"""experiments/restore_search.py: the record of a search is enough to continue it with its next stage."""
import shutil

import kill_loop
import numpy as np
import pytest
from scripts import error_line, run, snapshot

from experiments import matrix, step_runs
from harness import checkpoints


def copy_record(search, folder, epochs: int):
    """What collect.py keeps of a search that was stopped after so many epochs."""
    folder.mkdir()
    for name in ("args.json", "alphas.npz"):
        shutil.copy(search / name, folder)
    lines = (search / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text("".join(lines[:epochs]))
    return folder


def assert_continues(search, folder, epochs: int):
    record = copy_record(search, folder, epochs)
    assert run("experiments/restore_search.py", record).code == 0
    outcome = run("train_search.py", "--resume", record)
    assert outcome.code == 0, outcome.err
    kill_loop.assert_same_result(record, search)


@pytest.mark.parametrize("epochs", [3, 5, 6])
def test_a_search_continued_from_its_record_ends_as_if_it_had_never_stopped(epochs, search, tmp_path):
    assert_continues(search, tmp_path / search.name, epochs)


def test_a_search_on_image_files_is_continued_in_the_same_way(data, tmp_path):
    options = [*kill_loop.OPTIONS["train_search.py"], *data, "--dataset", "imagenet", "--image_size", 32, "--epochs", 1,
               "--warmup_epochs", 0, "--train_portion", 0.5]
    options.remove("--cutout")  # is for images in memory
    search = kill_loop.undisturbed("train_search.py", options, tmp_path / "runs")
    assert_continues(search, tmp_path / search.name, epochs=1)


@pytest.mark.parametrize("epochs, reason", [(2, "0 complete stages"), (9, "3 complete stages")])
def test_a_record_without_a_next_stage_is_refused(epochs, reason, search, tmp_path):
    record = copy_record(search, tmp_path / "search", epochs)
    before = snapshot(record)
    assert reason in error_line(run("experiments/restore_search.py", record), 1)
    assert snapshot(record) == before


def test_alphas_that_lack_a_complete_stage_are_one_line(search, tmp_path):
    record = copy_record(search, tmp_path / "search", epochs=6)
    with np.load(search / "alphas.npz") as alphas:
        np.savez(record / "alphas.npz", **{name: rows for name, rows in alphas.items() if name.startswith("stage1")})
    before = snapshot(record)
    assert "alphas.npz has no complete stage 2" in error_line(run("experiments/restore_search.py", record), 1)
    assert snapshot(record) == before


def test_a_search_that_has_its_checkpoint_is_left_alone(search, tmp_path):
    copy = shutil.copytree(search, tmp_path / "search")
    before = snapshot(copy)
    assert "resume it" in error_line(run("experiments/restore_search.py", copy), 1)
    assert snapshot(copy) == before


def test_the_driver_keeps_a_checkpoint_after_stage_1_as_a_supernet_but_not_a_restored_one(search, tmp_path):
    for folder in ("runs", "supernets"):
        (tmp_path / folder).mkdir()
    step = matrix.Step("search", "x-pdarts-0", ("train_search.py", "--save", "runs"))
    record = copy_record(search, tmp_path / "runs" / "search-x-pdarts-0-20261128-172814", epochs=3)
    assert run("experiments/restore_search.py", record).code == 0
    step_runs.save_supernet(tmp_path, step)
    assert not [*(tmp_path / "supernets").iterdir()]  # it is of stage 2, and has no weights
    checkpoints.save(record, {"kind": "search", "stage": 1})
    step_runs.save_supernet(tmp_path, step)
    assert (tmp_path / "supernets" / "x-pdarts-0.pt").read_bytes() == (record / "checkpoint.pt").read_bytes()

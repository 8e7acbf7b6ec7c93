"""Files from strangers: whatever is in a run directory is read as it is, or refused in one line; nothing hangs."""
import contextlib
import functools
import json
import math
import os
import random
import shutil
import signal

import numpy
import pytest
import torch
from matplotlib.figure import Figure
from scripts import ROOT, add_axes, sketch, snapshot, subplots

import compare
import genotypes
import hubconf
import train_cifar
import train_search
from harness import checkpoints, cli, records, weights
from reporting import cells
from reporting.page import draw_run

ODD = [None, True, "x", "", [], [1], {}, -1, 1.5, 10**400, math.nan, math.inf]
SEARCH, TRAINING = "search", "training"


@contextlib.contextmanager
def in_time(seconds: int = 20):
    """Fail if a block takes longer."""
    def late(number, frame):
        pytest.fail("it hangs")  # no Exception, which a reader could take for damage
    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture
def copy(search, training, tmp_path, monkeypatch):
    """copy(name) -> a copy of that run; figures are sketches, and nothing waits for a disk."""
    for name, change in (("savefig", sketch), ("subplots", subplots), ("add_axes", add_axes)):
        monkeypatch.setattr(Figure, name, change)
    monkeypatch.setattr(cells, "arrange", lambda edges: {point: 0.0 for _, points in edges for point in points})
    monkeypatch.setattr(os, "fsync", lambda file: None)
    return lambda name: shutil.copytree({SEARCH: search, TRAINING: training}[name], tmp_path / name)


# ---- what is read, as a value that can be compared

def compared(run_dir):
    return json.dumps(compare.compare([str(run_dir)]), default=str)


def drawn(run_dir):
    shutil.rmtree(run_dir.parent / "out", ignore_errors=True)
    draw_run(run_dir, run_dir.parent / "out")
    return snapshot(run_dir.parent / "out")


def resumed(run_dir):
    """The options of a resumed run that decide its result."""
    module = train_search if run_dir.name == SEARCH else train_cifar
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["train.py", "--resume", str(run_dir)])
        try:
            args = vars(module.parse_args())
        except SystemExit as ended:  # options that contradict each other
            assert ended.code == 2
            raise ValueError("--resume") from None
    return {name: value for name, value in args.items() if name not in {*cli.MAY_CHANGE, "save"}}


def of_data(run_dir):
    return {key: repr(value) for key, value in records.read_data(run_dir).items()}


def of_weights(run_dir):
    return weights.sizes(str(run_dir / "weights.pt"))


READERS = {"compare": compared, "visualize": drawn, "resume": resumed, "hub": of_data, "weights": of_weights}


def read(reader, run_dir):
    """What a reader makes of a run; None if it refuses it in one line."""
    with in_time():
        try:
            return READERS[reader](run_dir)
        except (ValueError, OSError) as error:
            assert len(str(error).splitlines()) == 1 and len(str(error)) < 1500, error
            return None


CASES = [("compare", SEARCH, "args.json"), ("compare", TRAINING, "args.json"), ("visualize", SEARCH, "args.json"),
         ("visualize", TRAINING, "args.json"), ("resume", SEARCH, "args.json"), ("resume", TRAINING, "args.json"),
         ("compare", SEARCH, "metrics.jsonl"), ("compare", TRAINING, "metrics.jsonl"),
         ("visualize", SEARCH, "metrics.jsonl"), ("visualize", TRAINING, "metrics.jsonl"),
         ("compare", SEARCH, "genotypes.json"), ("visualize", SEARCH, "genotypes.json"),
         ("compare", SEARCH, "genotype.json"), ("compare", TRAINING, "genotype.json"), ("hub", TRAINING, "data.json"),
         ("visualize", TRAINING, "classes.json")]


@pytest.fixture
def loaded_once(monkeypatch):
    """An undamaged checkpoint is loaded once, since that takes most of the time."""
    monkeypatch.setattr(checkpoints, "load", functools.cache(checkpoints.load))


def decoded(path) -> list:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.suffix == ".jsonl" else [
        json.loads(path.read_text())]


def encoded(path, records_: list) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records_))


def places(value, at=()):
    """Every entry of a decoded file, as keys from the top; of a file of lines, those of the last."""
    if at:
        yield at
    if "versions" in at:  # any names and values
        return
    if len(at) < 4 and isinstance(value, dict):
        for key in value:
            yield from places(value[key], (*at, key))
    elif len(at) < 4 and isinstance(value, list) and value:
        yield from places(value[-1], (*at, len(value) - 1))


def shape(value):
    """What only values of the same type have in common, so that nothing can know which of two was meant."""
    if isinstance(value, dict):
        return {key: key if key == "versions" else shape(value[key]) for key in value}
    if isinstance(value, list):
        return [shape(one) for one in value]
    return float if type(value) in (int, float) else type(value)


@pytest.mark.parametrize("reader, kind, name", CASES)
@pytest.mark.usefixtures("loaded_once")
def test_an_entry_that_is_missing_or_of_another_type_is_refused_or_does_not_matter(reader, kind, name, copy):
    run_dir = copy(kind)
    expected, whole, refused = read(reader, run_dir), decoded(run_dir / name), 0
    assert expected is not None
    for place in places(whole):
        for value in [KeyError, *ODD[::3 if reader == "visualize" else 1]]:
            damaged = json.loads(json.dumps(whole))
            inner = damaged
            for key in place[:-1]:
                inner = inner[key]
            old = inner[place[-1]]
            if value is KeyError:
                del inner[place[-1]]
            else:
                inner[place[-1]] = value
            encoded(run_dir / name, damaged)
            found = read(reader, run_dir)
            refused += found is None
            legal = place[-1] in records.NULLABLE if value is None or old is None else (
                type(value) is type(old) or {type(value), type(old)} == {int, float}) and value is not KeyError
            shorter = isinstance(place[-1], int) and value is KeyError  # a list, or an epoch less
            assert found in (None, expected) or (legal or shorter) and reader != "resume", (place, value)
    assert refused > 10


FLIPS = 200


@pytest.mark.parametrize("reader, kind, name", CASES)
@pytest.mark.usefixtures("loaded_once")
def test_a_flipped_bit_is_refused_or_does_not_matter_or_is_another_legal_value(reader, kind, name, copy):
    run_dir, rng = copy(kind), random.Random(0)
    expected, content = read(reader, run_dir), (run_dir / name).read_bytes()
    whole = shape(decoded(run_dir / name))
    for _ in range(FLIPS):
        damaged, at = bytearray(content), rng.randrange(len(content))
        damaged[at] ^= 1 << rng.randrange(8)
        (run_dir / name).write_bytes(damaged)
        found = read(reader, run_dir)
        assert found in (None, expected) or reader != "resume" and shape(decoded(run_dir / name)) == whole, (
            bytes(damaged[at - 30:at + 30]))


@pytest.mark.parametrize("reader, kind, name", [
    ("visualize", SEARCH, "alphas.npz"), ("weights", TRAINING, "weights.pt"), ("resume", TRAINING, "checkpoint.pt")])
def test_a_flipped_bit_of_a_binary_file_is_refused_or_does_not_matter(reader, kind, name, copy):
    """Of weights any bit may be another legal number."""
    run_dir, rng = copy(kind), random.Random(0)
    expected, content = read(reader, run_dir), (run_dir / name).read_bytes()
    for _ in range(FLIPS):
        damaged = bytearray(content)
        damaged[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        (run_dir / name).write_bytes(damaged)
        assert read(reader, run_dir) in (None, expected) or name == "weights.pt"


# ---- alphas.npz

def change(**new):
    return lambda arrays: arrays | new


def without(name):
    return lambda arrays: {key: value for key, value in arrays.items() if key != name}


CANDIDATES = numpy.array([genotypes.PRIMITIVES] * 14)


@pytest.mark.parametrize("damage", [
    without("stage1_normal"), without("stage2_reduce"), without("stage2_normal_candidates"),
    change(stage1_normal=numpy.zeros((3, 13, 8))), change(stage1_normal=numpy.zeros((3, 14))),
    change(stage1_normal=numpy.zeros((0, 14, 8))), change(stage1_normal=numpy.zeros((3, 14, 8), int)),
    change(stage1_normal=numpy.full((3, 14, 8), numpy.nan)), change(stage1_normal=numpy.zeros((3, 14, 8), complex)),
    change(stage1_normal=numpy.array("x")), change(stage1_normal_candidates=CANDIDATES[:, :5]),
    change(stage1_normal_candidates=CANDIDATES.astype("S20")), change(stage1_normal_candidates=numpy.zeros((14, 8))),
    change(stage1_normal_candidates=numpy.where(CANDIDATES == "none", "skip_connect", CANDIDATES)),
    change(stage7_normal=numpy.zeros((3, 14, 3))), change(stagex=numpy.zeros(1)), lambda arrays: {}])
def test_alphas_of_other_names_shapes_or_types_are_refused(damage, copy):
    run_dir = copy(SEARCH)
    numpy.savez(run_dir / "alphas.npz", **damage(dict(numpy.load(run_dir / "alphas.npz"))))
    with pytest.raises(ValueError, match="alphas.npz is missing or damaged"):
        draw_run(run_dir)


# ---- files that are no files, or other text

@pytest.mark.parametrize("name, reader", [
    ("args.json", "compare"), ("metrics.jsonl", "compare"), ("genotype.json", "compare"), ("data.json", "hub"),
    ("weights.pt", "weights"), ("mistakes.npz", "visualize"), ("checkpoint.pt", "resume")])
def test_a_pipe_in_place_of_a_file_is_refused_at_once(name, reader, copy):
    run_dir = copy(TRAINING)
    (run_dir / name).unlink()
    os.mkfifo(run_dir / name)
    with in_time(5):
        assert read(reader, run_dir) is None


def test_a_search_with_pipes_is_refused_at_once(copy):
    run_dir = copy(SEARCH)
    for name, reader in (("alphas.npz", "visualize"), ("genotypes.json", "compare")):
        (run_dir / name).unlink()
        os.mkfifo(run_dir / name)
        assert read(reader, run_dir) is None
        shutil.rmtree(run_dir)
        run_dir = copy(SEARCH)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("kind, name, reader", [
    (TRAINING, "args.json", "compare"), (TRAINING, "args.json", "resume"), (TRAINING, "metrics.jsonl", "visualize"),
    (TRAINING, "data.json", "hub"), (SEARCH, "genotypes.json", "compare"), (SEARCH, "genotype.json", "visualize")])
def test_text_that_windows_has_rewritten_is_read(kind, name, reader, encoding, copy):
    run_dir = copy(kind)
    expected, path = read(reader, run_dir), run_dir / name
    path.write_bytes(path.read_text().replace("\n", "\r\n").encode(encoding))
    assert read(reader, run_dir) == expected is not None


# ---- hub

def test_a_hub_network_takes_four_entries_of_data_json_and_nothing_else(copy):
    run_dir = copy(TRAINING)
    data = json.loads((run_dir / "data.json").read_text())
    odd = {"forward": 3, "training": True, "cells": [], "fast": "x", "_modules": {}, "__class__": 1}
    (run_dir / "data.json").write_text(json.dumps(data | odd))
    network = hubconf.pdarts_cifar(weights=run_dir).eval()
    assert network(torch.zeros(1, 3, 8, 8)).shape == (1, 2) and not hasattr(network, "digest")
    assert {name: getattr(network, name) for name in ("classes", "mean", "std", "image_size")} == {
        name: data[name] for name in ("classes", "mean", "std", "image_size")}


# ---- older runs

def test_options_that_an_older_run_lacks_have_their_old_meaning(copy):
    run_dir = copy(SEARCH)
    expected, row = resumed(run_dir), compared(run_dir)
    record = json.loads((run_dir / "args.json").read_text())
    for name in records.OLD_MEANING["search"].keys() & record["args"].keys():
        del record["args"][name]
    (run_dir / "args.json").write_text(json.dumps(record))
    assert resumed(run_dir) == expected and compared(run_dir) == row
    assert records.CANDIDATES == genotypes.PRIMITIVES


@pytest.mark.parametrize("candidates", [["none"] * 8, genotypes.PRIMITIVES[:6], ["none", 3]])
def test_a_resumed_search_needs_candidates_for_three_stages(candidates, copy):
    run_dir = copy(SEARCH)
    (run_dir / "checkpoint.pt").unlink()  # it would differ
    record = json.loads((run_dir / "args.json").read_text())
    record["args"]["candidates"] = candidates
    (run_dir / "args.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match="args.json: 'candidates' can't be"):
        resumed(run_dir)


def test_every_option_is_of_the_first_version_or_has_an_old_meaning():
    """Runs of the first version are in results/; only a search has a stage."""
    first = {}
    for path in (ROOT / "results").glob("*/args.json"):
        record = json.loads(path.read_text())
        first.setdefault(record["kind"], record["args"].keys())
    for module, kind in ((train_search, "search"), (train_cifar, "eval")):
        names = {action.dest for action in module.get_args_parser()._actions} - {"help"}
        assert names <= first[kind] | records.OLD_MEANING[kind].keys()


def test_a_checkpoint_without_options_still_resumes(copy):
    run_dir = copy(TRAINING)
    checkpoint = checkpoints.load(run_dir, "eval")
    assert checkpoint.pop("args")["epochs"] == resumed(run_dir)["epochs"]
    checkpoints.save(run_dir, checkpoint)
    assert read("resume", run_dir)
    record = json.loads((run_dir / "args.json").read_text())
    record["args"]["epochs"] = "7"
    (run_dir / "args.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match="args.json: 'epochs' can't be '7'"):
        resumed(run_dir)


def test_weights_refuses_nothing_that_is_used(copy):
    assert weights.sizes(str(copy(TRAINING) / "weights.pt"))["num_classes"] == 2

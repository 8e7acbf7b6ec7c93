"""Files of weights as people have them: names, wrappings, what lies beside; none of it runs code."""
import argparse
import os
import pickle
import re
from pathlib import Path

import numpy
import pytest
import torch
from scripts import error_line, run, snapshot, the_run, write_images
from torch import nn

import genotypes
from harness import weights
from model import NetworkCIFAR, NetworkImageNet

TINY = ["--init_channels", 2, "--layers", 3, "--device", "cpu"]


def network(classes=10, auxiliary=False, cell="PDARTS"):
    return NetworkCIFAR(2, classes, 3, auxiliary, genotypes.load(cell))


@pytest.fixture(scope="module")
def state():
    torch.manual_seed(3)
    return network().state_dict()


def renamed(prefix):
    return lambda state: {prefix + name: value for name, value in state.items()}


def with_thop(state):
    counts = {f"cells.0.{name}": torch.zeros(1, dtype=torch.float64) for name in ("total_ops", "total_params")}
    return {**state, **counts, "total_ops": torch.zeros(1), "module.total_params": torch.zeros(1)}


FORMS = {
    "plain": lambda state: state,
    "module.": renamed("module."), "_orig_mod.": renamed("_orig_mod."),
    "module._orig_mod.": renamed("module._orig_mod."), "_orig_mod.module.": renamed("_orig_mod.module."),
    "module.module._orig_mod.module.": renamed("module.module._orig_mod.module."),
    "compiled parts": lambda state: {name.replace("cells.0.", "cells.0._orig_mod."): state[name] for name in state},
    "state_dict": lambda state: {"state_dict": state, "epoch": 3}, "network": lambda state: {"network": state},
    "model": lambda state: {"model": state}, "model_state_dict": lambda state: {"model_state_dict": state},
    "nested": lambda state: {"model": {"state_dict": renamed("module.")(state)}, "optimizer": {"lr": 0.1}},
    "thop": with_thop,
    "numpy scalar": lambda state: {"state_dict": state, "best_acc": numpy.float64(97.5), "n": numpy.int64(3),
                                   "old": numpy.float32(1), "is_best": numpy.bool_(True)},
    "Namespace": lambda state: {"state_dict": state, "args": argparse.Namespace(
        lr=0.1, save=Path("runs"), acc=numpy.float64(1), inner=argparse.Namespace(a=[1]))},
}


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("form", FORMS)
def test_weights_are_read_as_people_save_them(form, zipped, state, tmp_path):
    torch.save(FORMS[form](state), tmp_path / "w.pt", _use_new_zipfile_serialization=zipped)
    fresh = network()
    weights.load(str(tmp_path / "w.pt"), fresh)
    for name, value in fresh.state_dict().items():
        assert torch.equal(value, state[name]), name


def test_a_checkpoint_as_others_write_it_is_tested_by_the_script(state, tmp_path):
    torch.save(FORMS["Namespace"](renamed("module.")(with_thop(state))), tmp_path / "model_best.pth.tar")
    outcome = run("train_cifar.py", *TINY, "--eval", "--weights", tmp_path / "model_best.pth.tar", cwd=tmp_path)
    assert outcome.code == 0 and "test accuracy" in outcome.err, outcome


class Malicious:
    """Code that runs when it is unpickled, by the names that are passed over elsewhere."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


class Setting:
    """Somebody's own class beside the weights."""


def wrong(name, state, canary):
    """Contents that are refused."""
    code = Malicious(os.mkdir, str(canary))
    return {
        "code in a Namespace": {"state_dict": state, "args": argparse.Namespace(a=code)},
        "code in a scalar": {"state_dict": state, "best": Malicious(numpy.float64(1).__reduce__()[0], code)},
        "eval": {"state_dict": state, "args": Malicious(eval, f"__import__('os').mkdir({str(canary)!r})")},
        "a class": {"state_dict": state, "args": Setting()},
        "a scalar for a tensor": {**state, "classifier.bias": numpy.float64(1)},
        "a Namespace": argparse.Namespace(state_dict=state),
        "twice": {**state, **renamed("module.")(state)},
        "in itself": (lambda record: record.update(model=record) or record)({}),
        "whole": network(), "wrapped": nn.DataParallel(network()), "whole, beside": {"model": network(), "epoch": 1},
        "other classes": network(100).state_dict(), "no head": {k: v for k, v in state.items() if "classif" not in k},
        "another cell": network(cell="random:1").state_dict(),
        "sparse": {**state, "classifier.weight": state["classifier.weight"].to_sparse()},
        "nowhere": {**state, "classifier.weight": state["classifier.weight"].to("meta")},
        "whole numbers": {**state, "classifier.weight": state["classifier.weight"].to(torch.int8)},
        "diverged": {**state, "classifier.weight": state["classifier.weight"] * float("nan")},
    }[name]


WHOLE = "whole pickled network.*torch.save\\(network.state_dict\\(\\), FILE\\)"


@pytest.mark.parametrize("name, text", [
    ("code in a Namespace", r"more than weights \(posix.mkdir\)"), ("code in a scalar", "more than weights"),
    ("eval", r"more than weights \(.*eval"), ("a class", "more than weights.*Setting"),
    ("a scalar for a tensor", "no state_dict"), ("a Namespace", "no state_dict"), ("twice", "twice"),
    ("in itself", "no state_dict"), ("whole", WHOLE), ("wrapped", WHOLE), ("whole, beside", WHOLE),
    ("other classes", "are for 100 classes .* the data has 10"), ("no head", "lack the classifier"),
    ("another cell", "another network's"), *((name, "1 entries that are not finite.*classifier.weight") for name
                                             in ("sparse", "nowhere", "whole numbers", "diverged"))])
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.filterwarnings("ignore:Couldn't retrieve source code")
def test_what_holds_no_weights_of_the_network_is_refused_in_one_line(name, text, zipped, state, tmp_path):
    path, canary = tmp_path / "w.pt", tmp_path / "executed"
    torch.save(wrong(name, state, canary), path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError) as error:
        weights.load(str(path), network())
    assert re.search(text, str(error.value)) and str(path) in str(error.value) and "\n" not in str(error.value)
    assert not canary.exists()


@pytest.mark.parametrize("what, text", [("whole", WHOLE), ("other classes", "are for 100 classes")])
def test_the_script_says_so_too(what, text, state, tmp_path):
    torch.save(wrong(what, state, None), tmp_path / "w.pt")
    outcome = run("train_cifar.py", *TINY, "--eval", "--weights", "w.pt", cwd=tmp_path)
    assert re.search(text, error_line(outcome, 1)) and [path.name for path in tmp_path.iterdir()] == ["w.pt"]


def test_a_missing_auxiliary_head_is_named_and_a_needless_one_passed_over(state, tmp_path):
    torch.save(state, tmp_path / "without.pt")
    with pytest.raises(ValueError, match="no matching auxiliary head.*omit --auxiliary"):
        weights.load(str(tmp_path / "without.pt"), network(auxiliary=True))
    torch.save(network(auxiliary=True).state_dict(), tmp_path / "with.pt")
    weights.load(str(tmp_path / "with.pt"), network())


def test_a_plain_pickle_is_refused(state, tmp_path):
    (tmp_path / "w.pkl").write_bytes(pickle.dumps(state))
    with pytest.raises(ValueError, match="w.pkl"):
        weights.load(str(tmp_path / "w.pkl"), network())


# ---- weights to start from

@pytest.mark.parametrize("network_class, theirs, ours, anew", [
    (NetworkCIFAR, (10, False), (10, False), []), (NetworkCIFAR, (10, False), (3, False), ["classifier"]),
    (NetworkCIFAR, (10, True), (10, False), []), (NetworkCIFAR, (10, True), (10, True), []),
    (NetworkImageNet, (10, True), (3, True), ["classifier", "auxiliary head"]),
    (NetworkCIFAR, (10, False), (10, True), ["auxiliary head"])])
def test_a_training_starts_from_weights_and_with_new_heads_where_the_sizes_differ(
        network_class, theirs, ours, anew, tmp_path, caplog):
    torch.manual_seed(0)
    found, own = (network_class(4, classes, 1, auxiliary, genotypes.load("PDARTS")) for classes, auxiliary in
                  (theirs, ours))
    torch.save({"state_dict": renamed("module.")(found.state_dict())}, tmp_path / "w.pt")
    before = {name: value.clone() for name, value in own.state_dict().items()}
    with caplog.at_level("INFO", logger="pdarts"):
        weights.start_from(str(tmp_path / "w.pt"), own)
    for name, value in own.state_dict().items():
        kept = name.split(".")[0].replace("_", " ") in anew
        assert torch.equal(value, before[name] if kept else found.state_dict()[name]), name
    message, = caplog.messages
    assert message.endswith(f"re-initialised, sizes differ: {' and '.join(anew)}" if anew else "w.pt")


def test_a_backbone_without_a_classifier_gets_a_new_one(state, tmp_path):
    torch.save({name: value for name, value in state.items() if "classif" not in name}, tmp_path / "w.pt")
    own = network(3)
    weights.start_from(str(tmp_path / "w.pt"), own)
    assert torch.equal(own.stem[0].weight, state["stem.0.weight"]) and len(own.classifier.weight) == 3


@pytest.mark.parametrize("name, text", [("another cell", "another network's.*--arch"), ("whole", WHOLE),
                                        ("twice", "twice"), ("a class", "more than weights")])
def test_other_weights_to_start_from_are_refused(name, text, state, tmp_path):
    torch.save(wrong(name, state, tmp_path / "executed"), tmp_path / "w.pt")
    with pytest.raises(ValueError, match=text) as error:
        weights.start_from(str(tmp_path / "w.pt"), network())
    assert str(error.value).startswith(f"--init_weights {tmp_path / 'w.pt'} ")


def test_a_run_starts_from_weights_and_says_so(state, tmp_path):
    write_images(tmp_path / "images", val=2)
    torch.save(state, tmp_path / "w.pt")
    options = [*TINY, "--dataset", "folder", "--tmp_data_dir", "images", "--image_size", 8, "--batch_size", 24,
               "--epochs", 1, "--init_weights", "w.pt"]
    outcome = run("train_cifar.py", *options, "--learning_rate", 0, cwd=tmp_path)
    assert outcome.code == 0, outcome
    run_dir = the_run(tmp_path / "runs")
    said = "starting from the weights of w.pt; re-initialised, sizes differ: classifier"
    assert said in (run_dir / "log.txt").read_text().splitlines()[0] and said in outcome.err
    trained = torch.load(run_dir / "weights.pt", weights_only=True)
    for name, _ in network(2).named_parameters():
        assert name.startswith("classifier.") or torch.equal(trained[name], state[name]), name
    before = snapshot(tmp_path)
    outcome = run("train_cifar.py", *options, "--eval", "--weights", run_dir / "weights.pt", cwd=tmp_path)
    assert "--init_weights" in error_line(outcome, 2) and snapshot(tmp_path) == before

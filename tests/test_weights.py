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
from model_search import Network

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
    return {**state, **counts, "total_ops": torch.zeros(1), "module.total_params": torch.zeros(1),
            "n_averaged": torch.tensor(3)}  # of torch.optim.swa_utils.AveragedModel


def attributed(value):
    value = value.clone()
    for name in ("float", "isfinite", "is_floating_point", "dim", "is_complex", "detach", "to_sparse", "mine"):
        setattr(value, name, 3)
    return value


def with_counter(value):
    return lambda state: {**state, "stem.1.num_batches_tracked": value}


FORMS = {
    "plain": lambda state: state,
    "module.": renamed("module."), "_orig_mod.": renamed("_orig_mod."),
    "module._orig_mod.": renamed("module._orig_mod."), "_orig_mod.module.": renamed("_orig_mod.module."),
    "module.module._orig_mod.module.": renamed("module.module._orig_mod.module."),
    "compiled parts": lambda state: {name.replace("cells.0.", "cells.0._orig_mod."): state[name] for name in state},
    "state_dict": lambda state: {"state_dict": state, "epoch": 3}, "network": lambda state: {"network": state},
    "model": lambda state: {"model": state}, "model_state_dict": lambda state: {"model_state_dict": state},
    "nested": lambda state: {"model": {"state_dict": renamed("module.")(state)}, "optimizer": {"lr": 0.1}},
    "Lightning's model.": lambda state: {"state_dict": renamed("model.")(state), "callbacks": {}, "epoch": 1},
    "Lightning's net.": lambda state: {"state_dict": renamed("net.")(state)},
    "Lightning's, compiled": lambda state: {"state_dict": renamed("model._orig_mod.")(state)},
    "ema": lambda state: {"state_dict_ema": renamed("module.")(state), "epoch": 1},
    "ema, nested": lambda state: {"model": {"state_dict_ema": state}},
    "both": lambda state: {"state_dict": state, "state_dict_ema": {k: v + 1 for k, v in state.items()}},
    "with attributes": lambda state: {k: attributed(v) for k, v in state.items()},
    "thop": with_thop,
    "numpy scalar": lambda state: {"state_dict": state, "best_acc": numpy.float64(97.5), "n": numpy.int64(3),
                                   "old": numpy.float32(1), "is_best": numpy.bool_(True)},
    "Namespace": lambda state: {"state_dict": state, "args": argparse.Namespace(
        lr=0.1, save=Path("runs"), acc=numpy.float64(1), inner=argparse.Namespace(a=[1]))},
}


@pytest.mark.parametrize("kind", ["pipe", "link to a pipe", "device"])
@pytest.mark.parametrize("option", ["--weights", "--init_weights"])
def test_a_pipe_or_a_device_is_refused_without_waiting_for_it(option, kind, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "w.pt").symlink_to("/dev/zero" if kind == "device" else tmp_path / "pipe")
    path = tmp_path / ("pipe" if kind == "pipe" else "w.pt")
    with pytest.raises(ValueError, match=f"{option} {path} can't be read .not a regular file.: use a file"):
        weights.read(str(path), option)


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
    code, weight = Malicious(os.mkdir, str(canary)), state["classifier.weight"]
    return {
        "code in a Namespace": lambda: {"state_dict": state, "args": argparse.Namespace(a=code)},
        "code in a scalar": lambda: {"state_dict": state, "best": Malicious(numpy.float64(1).__reduce__()[0], code)},
        "eval": lambda: {"state_dict": state, "args": Malicious(eval, f"__import__('os').mkdir({str(canary)!r})")},
        "a class": lambda: {"state_dict": state, "args": Setting()},
        "a scalar for a tensor": lambda: {**state, "classifier.bias": numpy.float64(1)},
        "a Namespace": lambda: argparse.Namespace(state_dict=state),
        "twice": lambda: {**state, **renamed("module.")(state)},
        "in itself": lambda: (lambda record: record.update(model=record) or record)({}),
        "whole": network, "wrapped": lambda: nn.DataParallel(network()),
        "whole, beside": lambda: {"model": network(), "epoch": 1},
        "other classes": lambda: network(100).state_dict(),
        "no head": lambda: {k: v for k, v in state.items() if "classif" not in k},
        "another cell": lambda: network(cell="random:1").state_dict(),
        "sparse": lambda: {**state, "classifier.weight": weight.to_sparse()},
        "nowhere": lambda: {**state, "classifier.weight": weight.to("meta")},
        "whole numbers": lambda: {**state, "classifier.weight": weight.to(torch.int8)},
        "diverged": lambda: {**state, "classifier.weight": weight * float("nan")},
    }[name]()


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
    assert said in (run_dir / "log.txt").read_text() and said in outcome.err
    trained = torch.load(run_dir / "weights.pt", weights_only=True)
    for name, _ in network(2).named_parameters():
        assert name.startswith("classifier.") or torch.equal(trained[name], state[name]), name
    before = snapshot(tmp_path)
    outcome = run("train_cifar.py", *options, "--eval", "--weights", run_dir / "weights.pt", cwd=tmp_path)
    assert "--init_weights" in error_line(outcome, 2) and snapshot(tmp_path) == before


# ---- weights of other networks

def small(C=2, num_classes=10, layers=3, auxiliary=False, arch="PDARTS"):
    return NetworkCIFAR(C, num_classes, layers, auxiliary, genotypes.load(arch))


def prefixed(state):
    return {f"module.{name}": value for name, value in state.items()}


@pytest.mark.parametrize("form", [
    lambda state: state,
    lambda state: {"state_dict": state, "epoch": 600, "best_acc_top1": 75.6},
    lambda state: {"network": state, "epoch": 600},
    prefixed,
    lambda state: {"state_dict": prefixed(state)},
    lambda state: {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")},
], ids=["plain", "state_dict", "network", "module.", "state_dict of module.", "of old versions"])
@pytest.mark.parametrize("auxiliary", [False, True])
def test_weights_load_in_every_form_people_have_also_with_an_auxiliary_head_too_many(form, auxiliary, tmp_path):
    torch.manual_seed(0)
    state = small(auxiliary=auxiliary).state_dict()
    torch.save(form(state), tmp_path / "weights.pt")
    network = small()
    weights.load(str(tmp_path / "weights.pt"), network)
    for name, value in network.state_dict().items():
        assert torch.equal(value, state[name]) or name.endswith("num_batches_tracked")


def of_a_supernet(path, prefix=""):
    candidates = [["max_pool_3x3", "skip_connect", "sep_conv_3x3"]] * 14
    torch.save({prefix + k: v for k, v in Network(2, 10, 3, candidates, candidates).state_dict().items()}, path)
    return "supernet"


def of_a_supernet_under_data_parallel(path):
    return of_a_supernet(path, "module.")


def of_a_supernets_checkpoint(path):
    of_a_supernet(path)
    torch.save({"network": torch.load(path), "stage": 3}, path)
    return "supernet"


def of_another_cell(path):
    torch.save(small(arch="DARTS_V2").state_dict(), path)
    return "--arch"


def of_another_class_count(path):
    torch.save(small(num_classes=100).state_dict(), path)
    return "dataset"


def of_other_channels(path):
    torch.save(small(C=3).state_dict(), path)
    return "--init_channels"


def of_more_layers(path):
    torch.save(small(layers=4).state_dict(), path)
    return "--layers"


def of_half_a_network(path):
    torch.save(dict(list(small().state_dict().items())[::2]), path)
    return "differ"


def no_weights(path):
    path.write_text("no weights")
    return "use"


def truncated(path):
    torch.save(small().state_dict(), path)
    path.write_bytes(path.read_bytes()[:2000])
    return "damaged"


def missing(path):
    return "no such file"


def whole_module(path):
    torch.save(small(), path)  # pickled code
    return "use"


def list_of_tensors(path):
    torch.save([torch.zeros(3)], path)
    return "state_dict"


def numbers_for_names(path):
    torch.save({0: torch.zeros(3)}, path)
    return str(path)


def no_entries(path):
    torch.save({}, path)
    return str(path)


OTHER_WEIGHTS = [of_a_supernet, of_a_supernet_under_data_parallel, of_a_supernets_checkpoint, of_another_cell,
                 of_another_class_count, of_other_channels, of_more_layers, of_half_a_network, no_weights, truncated,
                 missing, whole_module, list_of_tensors, numbers_for_names, no_entries]


@pytest.mark.parametrize("make", OTHER_WEIGHTS)
def test_weights_of_something_else_are_refused_in_one_line_that_says_of_what(make, tmp_path):
    word, network = make(tmp_path / "weights.pt"), small()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(ValueError) as caught:
        weights.load(str(tmp_path / "weights.pt"), network)
    message = str(caught.value)
    assert word in message and str(tmp_path / "weights.pt") in message and "\n" not in message
    assert ("supernet" in message) == (word == "supernet")
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


# ---- files from strangers

@pytest.mark.parametrize("change", [
    with_counter(torch.zeros(3)), with_counter(torch.tensor(1j)), with_counter(torch.tensor(float("nan"))),
    lambda state: {**state, "classifier.bias": torch.zeros(10, dtype=torch.complex64)},
    lambda state: {**state, "stem.0.weight": torch.tensor(1.0)},
    lambda state: {**state, "classifier.weight": torch.tensor(1.0), "stem.0.weight": torch.tensor(1.0)},
    lambda state: {**state, "classifier.bias": torch.zeros(10, dtype=torch.bool)}])
def test_tensors_of_other_kinds_are_refused_in_one_line(change, state, tmp_path):
    torch.save(change(state), tmp_path / "w.pt")
    for read in (weights.load, weights.start_from):
        with pytest.raises(ValueError) as error:
            read(str(tmp_path / "w.pt"), network())
        assert "w.pt" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["stem.0.weight", "classifier.weight"])
@pytest.mark.parametrize("value", [torch.tensor(1.0), torch.zeros(3), torch.zeros(2, 2, 2)])
def test_sizes_of_a_tensor_without_them_are_refused(name, value, state, tmp_path):
    torch.save({**state, name: value}, tmp_path / "w.pt")
    with pytest.raises(ValueError, match="not those of a trained cell"):
        weights.sizes(str(tmp_path / "w.pt"))


@pytest.mark.parametrize("value", [torch.tensor(7), torch.tensor(7.0), torch.tensor(True)])
def test_a_counter_of_another_type_is_no_matter(value, state, tmp_path):
    torch.save(with_counter(value)(state), tmp_path / "w.pt")
    weights.load(str(tmp_path / "w.pt"), network())


def test_the_log_says_which_of_two_sets_of_weights_is_used(state, tmp_path, caplog):
    torch.save(FORMS["both"](state), tmp_path / "w.pt")
    with caplog.at_level("INFO", logger="pdarts"):
        weights.read(str(tmp_path / "w.pt"))
    assert "using its state_dict, not its state_dict_ema" in caplog.text


def test_weights_that_are_a_pipe_are_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "w.pt")
    with pytest.raises(ValueError, match="not a regular file"):
        weights.read(str(tmp_path / "w.pt"))

"""What all tests share: the modules on the path, one thread, the vectors of golden/, and small runs."""
import gc
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import kill_loop
import numpy as np
import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent.parent))
torch.set_num_threads(1)


def pytest_collection_finish():
    """What is imported by now is no garbage; a collector that passes over it makes networks in half the time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def golden():
    """golden(file): a vector file's content, decoded JSON or the arrays of an .npz."""
    def read(name: str):
        path = Path(__file__).parent / "golden" / name
        return json.loads(path.read_text(encoding="utf-8")) if path.suffix == ".json" else np.load(path)
    return read


@pytest.fixture
def quick_counting(monkeypatch):
    """Multiply-adds are counted without what they don't depend on."""
    import utils
    for layer in (nn.Conv2d, nn.BatchNorm2d, nn.Linear):  # counting needs no values
        monkeypatch.setattr(layer, "reset_parameters", lambda self: None)
    for layer in (nn.BatchNorm2d, nn.ReLU):  # nor what keeps the shape
        monkeypatch.setattr(layer, "forward", lambda self, x: x)
    monkeypatch.setattr(utils, "copy", SimpleNamespace(deepcopy=lambda network: network))


# ---- runs that tests of several files look at, and copy where they change one

@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """The options that name a small image folder, which is the last of them."""
    return kill_loop.image_options(tmp_path_factory.mktemp("data") / "images")


@pytest.fixture(scope="session")
def search(data, tmp_path_factory):
    """The directory of kill_loop's search, which nobody stopped."""
    script = "train_search.py"
    return kill_loop.undisturbed(script, [*kill_loop.OPTIONS[script], *data], tmp_path_factory.mktemp("search"))


@pytest.fixture(scope="session")
def training(data, tmp_path_factory):
    """The directory of its training."""
    script = "train_cifar.py"
    return kill_loop.undisturbed(script, [*kill_loop.OPTIONS[script], *data], tmp_path_factory.mktemp("training"))

"""What all tests share: the modules on the path, one thread, the vectors of golden/, and small runs."""
import gc
import json
import sys
from pathlib import Path

import kill_loop
import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))
torch.set_num_threads(1)


def pytest_collection_finish():
    """What is imported is never garbage: without it to search, networks are made in half the time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def golden():
    """golden(file): a vector file's content, decoded JSON or the arrays of an .npz."""
    def read(name: str):
        path = Path(__file__).parent / "golden" / name
        return json.loads(path.read_text(encoding="utf-8")) if path.suffix == ".json" else np.load(path)
    return read


# ---- runs that tests of several files look at, and copy where they change one

@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """The options that name a small image folder; the last of them is its path."""
    return kill_loop.image_options(tmp_path_factory.mktemp("data") / "images")


@pytest.fixture(scope="session")
def search(data, tmp_path_factory):
    """The run directory of kill_loop's search, uninterrupted."""
    script = "train_search.py"
    return kill_loop.undisturbed(script, [*kill_loop.OPTIONS[script], *data], tmp_path_factory.mktemp("search"))


@pytest.fixture(scope="session")
def training(data, tmp_path_factory):
    """The run directory of kill_loop's training, uninterrupted."""
    script = "train_cifar.py"
    return kill_loop.undisturbed(script, [*kill_loop.OPTIONS[script], *data], tmp_path_factory.mktemp("training"))

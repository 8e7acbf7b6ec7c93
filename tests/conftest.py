"""What all tests share: the modules on the path, one thread, and the vectors of golden/."""
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent.parent))
torch.set_num_threads(1)


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

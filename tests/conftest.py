"""What all tests share: the modules on the path, one thread, and the vectors of golden/."""
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def golden():
    """golden(file): a vector file's content, decoded JSON or the arrays of an .npz."""
    def read(name: str):
        path = Path(__file__).parent / "golden" / name
        return json.loads(path.read_text(encoding="utf-8")) if path.suffix == ".json" else np.load(path)
    return read

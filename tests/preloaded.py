"""What the server of scripts.py imports before it forks: all that a script may import."""
import gc
import html  # noqa: F401
import sys
import xml.etree.ElementTree  # noqa: F401
from pathlib import Path

import sklearn.datasets  # noqa: F401
import sklearn.metrics  # noqa: F401
import sklearn.model_selection  # noqa: F401
import torch._dynamo  # noqa: F401
import torch.utils.data  # noqa: F401
import torchvision.datasets  # noqa: F401
import torchvision.transforms.v2  # noqa: F401
from PIL import Image

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]
import scripts  # noqa: E402, F401

import compare  # noqa: E402, F401
import export  # noqa: E402, F401
import train_cifar  # noqa: E402, F401
import train_imagenet  # noqa: E402, F401
import train_search  # noqa: E402, F401
import visualize  # noqa: E402, F401

Image.init()
gc.collect()
gc.freeze()  # what is imported is never garbage: a script's collector skips it, and its memory stays shared

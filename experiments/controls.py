"""Run stage 1 of a P-DARTS search in which one thing is made meaningless: what does the search prefer then?

    python experiments/controls.py CONTROL [options of train_search.py]
CONTROL is one of
    plain            stage 1 of the unchanged search
    shuffled-labels  the labels of all training images are permuted: there is no task
    swapped-halves   the images for the weights train the alphas, and vice versa
    noise            Gaussian noise replaces dil_conv_3x3: an operation that is useless
    twin             a second sep_conv_3x3 replaces dil_conv_3x3: two operations that are equally useful
Expect a run directory like that of train_search.py, with one stage. The candidates keep their names in it.
"""
import dataclasses
import sys
from argparse import Namespace
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent.parent))
import model_search
import train_search
from harness import cli
from input_pipeline import DataSet, search_parts
from operations import SepConv

CONTROLS = ("plain", "shuffled-labels", "swapped-halves", "noise", "twin")


class Noise(nn.Module):
    """Standard normal noise with the shape of an operation's output: (B, C, H, W) -> (B, C, H/stride, W/stride)."""

    def __init__(self, stride: int):
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return torch.randn_like(x[:, :, ::self.stride, ::self.stride])


def first_stage_only(args: Namespace) -> list:
    return [dataclasses.replace(stages(args)[0], num_drop=0)]


def load_shuffled(*args, **options) -> DataSet:
    dataset = load(*args, **options)
    order = torch.randperm(len(dataset.train_target), generator=torch.Generator().manual_seed(0))
    return dataset._replace(train_target=dataset.train_target[order])


def replace_dil_conv(make):
    """A model_search.build that returns make(C, stride) for dil_conv_3x3."""
    def build_replaced(primitive: str, C: int, stride: int, affine: bool = True) -> nn.Module:
        return make(C, stride) if primitive == "dil_conv_3x3" else build(primitive, C, stride, affine)
    return build_replaced


# The originals, which the functions above call.
stages, load, split, build = (train_search.make_stages, search_parts.load, search_parts.search_split,
                              model_search.build)


def apply(control: str) -> None:
    """Turn the search, in this process, into a control."""
    train_search.make_stages = first_stage_only
    if control == "shuffled-labels":
        search_parts.load = load_shuffled
    elif control == "swapped-halves":
        search_parts.search_split = lambda *args: split(*args)[::-1]
    elif control == "noise":
        model_search.build = replace_dil_conv(lambda C, stride: Noise(stride))
    elif control == "twin":
        model_search.build = replace_dil_conv(lambda C, stride: SepConv(C, 3, stride, affine=False))


def parse_args() -> Namespace:
    control = sys.argv[1] if len(sys.argv) > 1 else ""
    if control not in CONTROLS:
        parser = cli.Parser(__doc__)
        parser.add_argument("control", metavar="CONTROL", choices=CONTROLS, help="what is made meaningless")
        parser.parse_args(sys.argv[1:2])
    apply(control)
    full, sys.argv = sys.argv, [sys.argv[0], *sys.argv[2:]]
    try:
        return train_search.parse_args()
    finally:
        sys.argv = full  # args.json records the control, too


if __name__ == "__main__":
    cli.run(train_search.main, parse_args)

"""Write a small, fixed subset of Fashion-MNIST, as idx files for --dataset fashion_mnist or as folders of PNG images.

    python benchmarks/fashion_subset.py OUT --train 6000 --test 2000  # then: --tmp_data_dir OUT
    python benchmarks/fashion_subset.py OUT --train 200 --test 100 --tree  # then: train_imagenet.py, or folder
It takes the first images of each class, equally many per class, in stored order. Fashion-MNIST itself is read from
./data or from Debian's package dataset-fashion-mnist, and otherwise downloaded to ./data.
"""
import struct
import sys
from pathlib import Path

import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent.parent))
from harness import cli
from input_pipeline import DataSet, load


def first_of_each_class(target: torch.Tensor, n: int) -> list[int]:
    """The indices, in order, of the first n // 10 images of every class."""
    return sorted(i for label in range(10) for i in (target == label).nonzero().flatten()[:n // 10].tolist())


def write_idx(path: Path, values: torch.Tensor) -> None:
    """Write bytes after a magic number and the big-endian sizes (the format of http://yann.lecun.com/exdb/mnist)."""
    header = struct.pack(f">{1 + values.dim()}i", 0x0800 + values.dim(), *values.shape)
    path.write_bytes(header + values.to(torch.uint8).numpy().tobytes())


def write_subset(full: DataSet, folder: Path, train: int, test: int) -> None:
    """Write the first images of each class, `train` and `test` of them in total, as idx files."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, images, target, n in (("train", full.train_images, full.train_target, train),
                                    ("t10k", full.test_images, full.test_target, test)):
        chosen = first_of_each_class(target, n)
        write_idx(folder / f"{name}-images-idx3-ubyte", images[chosen, 0])
        write_idx(folder / f"{name}-labels-idx1-ubyte", target[chosen])


def write_tree(full: DataSet, folder: Path, train: int, test: int) -> None:
    """Write the same images as PNG files in train/CLASS and val/CLASS."""
    for split, images, target, n in (("train", full.train_images, full.train_target, train),
                                     ("val", full.test_images, full.test_target, test)):
        for i in first_of_each_class(target, n):
            path = folder / split / full.classes[target[i]].replace("/", "-") / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(images[i, 0].numpy()).save(path)


def get_args_parser() -> cli.Parser:
    parser = cli.Parser(__doc__)
    parser.add_argument("out", type=Path, help="folder to write to")
    parser.add_argument("--train", type=cli.number(int, 10), default=6000, help="number of training images")
    parser.add_argument("--test", type=cli.number(int, 10), default=2000, help="number of test images")
    parser.add_argument("--tree", action="store_true", help="write PNG images to train/CLASS and val/CLASS")
    return parser


def main(args) -> None:
    full = load("fashion_mnist", "data", image_size=28)
    (write_tree if args.tree else write_subset)(full, args.out, args.train, args.test)


if __name__ == "__main__":
    cli.run(main, get_args_parser().parse_args)

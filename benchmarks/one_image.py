"""Sizes of exported files, and the time of one image on one core, PyTorch eager against ONNX Runtime, in one process.

    python benchmarks/one_image.py          # PDARTS at both published sizes: 36 x 20 at 32x32, 48 x 14 at 224x224
The weights are random, and the batch norm statistics are those of random images; neither changes sizes or times. Each
file is first compared with PyTorch, as in export.py. Runs are interleaved, and times are medians.
"""
import argparse
import statistics
import sys
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent.parent))
from measure import file_to_write, machine, take_turns, write_json

import export
import genotypes
import hubconf
from harness import cli
from input_pipeline import imagenet
from input_pipeline.sets import describe

NETWORKS = {"CIFAR, 36 x 20": (hubconf.pdarts_cifar, 32), "ImageNet, 48 x 14": (hubconf.pdarts_imagenet, 224)}


def get_args_parser() -> cli.Parser:
    parser = cli.Parser(__doc__)
    parser.add_argument("--arch", default="PDARTS", help="the cell: a name, random:SEED, a run or a file")
    parser.add_argument("--repeats", type=cli.number(int, 1), default=21, help="timed runs, after one warm-up")
    parser.add_argument("--json", type=file_to_write, help="write all numbers to this file")
    return parser


def settle(network: nn.Module, images: Tensor) -> nn.Module:
    """Set the batch norm statistics to those of these images: otherwise all images have nearly the same logits.

    The batch norm biases become 1, so that most values pass the ReLUs: otherwise deep random networks would amplify
    every rounding error ten thousand times, and equal logits could not be distinguished from others.
    """
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
            nn.init.ones_(module.bias)
    network.fast = False
    network.train()(images)
    return network.eval()


def onnx_session(path: Path):
    """A function that runs an ONNX file on one core."""
    import onnxruntime
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda images: session.run(None, {"images": images.numpy()})


@torch.no_grad()
def measure(network: nn.Module, size: int, genotype: genotypes.Genotype, folder: Path, repeats: int) -> dict:
    """Per file its size in bytes and its largest difference from PyTorch's logits; and the seconds of both runtimes."""
    settle(network, torch.randn(8, 3, size, size))
    images, result = torch.randn(4, 3, size, size), {}
    program = export.trace(network, images)
    metadata = describe(["?"] * network.classifier.out_features, *imagenet.STATS, size, size)
    metadata["genotype"] = genotype._asdict()
    for suffix in export.FORMATS:
        path = folder / f"{size}.{suffix}"
        difference = export.export(suffix, path, network, program, images, metadata)
        result[suffix] = {"bytes": path.stat().st_size, "difference": difference}
    runtimes = {"eager": network, "onnxruntime": onnx_session(folder / f"{size}.onnx")}
    times = take_turns({name: (runtime, images[:1]) for name, runtime in runtimes.items()}, repeats)
    return result | {"seconds": {name: statistics.median(values) for name, values in times.items()}}


def main(args: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    import onnxruntime
    print(f"{machine()}, onnxruntime {onnxruntime.__version__}, {args.arch}, median of {args.repeats}", flush=True)
    genotype, results = genotypes.load(args.arch), {}
    with tempfile.TemporaryDirectory() as folder:
        for name, (entry, size) in NETWORKS.items():
            results[name] = row = measure(entry(genotype), size, genotype, Path(folder), args.repeats)
            files = ", ".join(f"{suffix} {row[suffix]['bytes'] / 1e6:.1f} MB ({row[suffix]['difference']:.0e})"
                              for suffix in export.FORMATS)
            eager, onnx = (1000 * row["seconds"][runtime] for runtime in ("eager", "onnxruntime"))
            print(f"{name}: {files}; one image: eager {eager:.1f} ms, ONNX Runtime {onnx:.1f} ms ({eager / onnx:.1f}x)")
    write_json(args, results)


if __name__ == "__main__":
    cli.run(main, get_args_parser().parse_args)

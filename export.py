"""Export a trained network to files that do not need this repository: ONNX, torch.export's pt2, safetensors.

    python export.py RUN_DIR --onnx network.onnx --pt2 network.pt2 --safetensors network.safetensors
RUN_DIR is a run of train_cifar.py or train_imagenet.py, or a cell, as for --arch, if --weights FILE names the weights,
and --dataset and --tmp_data_dir the images. The exported network takes any number of images at once. Before a file is
put in place, it is run on test images, and its logits are compared with those of PyTorch. The file also holds the
metadata: class names, mean, standard deviation, image size, genotype, accuracy and commit.
"""
import contextlib
import copy
import importlib.util
import io
import json
import logging
import os
import sys
import warnings
from argparse import Namespace
from pathlib import Path

sys.path.insert(0, __file__.removesuffix("export.py"))  # python -I and -P omit it

import torch
from torch import Tensor, nn

import genotypes
import hubconf
from harness import cli, records, weights
from harness.files import replace_file
from harness.log import log
from input_pipeline import imagenet, load
from input_pipeline.batches import eval_batches
from input_pipeline.sets import DATASETS, as_in_run, describe_set

PACKAGES = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "pt2": (), "safetensors": ("safetensors",)}
TOLERANCE = 1e-5  # for logits up to 1, otherwise relative to the largest; see `tolerance`
CHECKED = 16  # the number of test images that every file is run on


def get_args_parser() -> cli.Parser:
    parser = cli.Parser(__doc__)
    add = parser.add_argument
    add("run", metavar="RUN_DIR", help="run directory of an evaluation, or a cell, as for --arch")
    add("--weights", help="file of the weights; default: the run's weights.pt")
    add("--onnx", metavar="FILE", help="write the ONNX file NAME.onnx; default: none")
    add("--pt2", metavar="FILE", help="write NAME.pt2, for torch.export.load; default: none")
    add("--safetensors", metavar="FILE", help="write NAME.safetensors, only the weights; default: none")
    add("--force", action="store_true", help="replace existing files")
    add("--tmp_data_dir", help="where the dataset is; default: where it was for the run")
    add("--dataset", choices=DATASETS, help="dataset that the weights were trained on; default: the run's")
    add("--image_size", type=cli.number(int, 1), help="side of the images; default: the run's, or the dataset's own")
    return parser


def parse_args(argv: list[str] | None = None) -> Namespace:
    """The command line, or these words; exits with status 2 if it is invalid or a package is not installed."""
    parser = get_args_parser()
    args = parser.parse_args(argv)
    args.files = {suffix: Path(vars(args)[suffix]) for suffix in PACKAGES if vars(args)[suffix] is not None}
    if not args.files:
        parser.error("nothing to write: use --onnx FILE, --pt2 FILE or --safetensors FILE")
    for suffix, path in args.files.items():
        if path.suffix != f".{suffix}":
            parser.error(f"--{suffix} {path}: the file's name must end in .{suffix}")
        missing = [name for name in PACKAGES[suffix] if importlib.util.find_spec(name) is None]
        if missing:
            parser.error(f"--{suffix} needs packages that are not installed: pip install {' '.join(missing)}")
    return args


# ---- the content of the files: the network, test images, metadata

def open_trained(args: Namespace) -> tuple[nn.Module, Tensor, dict]:
    """The network in evaluation mode, test images (B, 3, H, W) for it, and the metadata of both.

    Raises ValueError, OSError if one of them is missing or they do not match.
    """
    is_run = os.path.exists(os.path.join(args.run, "args.json"))  # Path.exists fails on a long text
    genotype = genotypes.load_file(args.run) if is_run else genotypes.load(args.run)
    record, accuracy = records.read_args(args.run) if is_run else {}, None
    if record.get("kind") not in ("eval", "imagenet"):
        record = {}  # a search's directory counts as a cell
    if record:
        args.weights = args.weights or records.last_weights(args.run)
        accuracy = accuracy_of(args.run, args.weights)
    elif args.weights is None:
        raise ValueError(f"{args.run} is a cell without weights: use --weights FILE, or the run directory of an "
                         "evaluation")
    sizes = weights.sizes(args.weights)
    kind = sizes.pop("kind")
    if record and record["kind"] != kind:
        raise ValueError(f"--weights {args.weights} are another network's: {args.run} is a run of kind "
                         f"{record['kind']}, not {kind}")
    entry = {"eval": hubconf.pdarts_cifar, "imagenet": hubconf.pdarts_imagenet}[kind]
    network = entry(genotype, **sizes, weights=args.weights).eval()
    images, metadata = read_images(kind, args, record.get("args", {}))
    if len(metadata["classes"]) != sizes["num_classes"]:
        raise ValueError(f"--weights {args.weights} are for {sizes['num_classes']} classes, the data has "
                         f"{len(metadata['classes'])}: use the dataset that they were trained on")
    size = metadata["image_size"]
    metadata |= {"genotype": genotype._asdict(), "accuracy": accuracy, "commit": record.get("git"),
              "input": f"float32 (batch, 3, {size}, {size}), RGB, (pixel / 255 - mean) / std, the centre of an image "
                       f"whose shorter side has {metadata['resize']} pixels"}
    return network, images, metadata


def accuracy_of(run_dir: str, path: str) -> float | None:
    """The test accuracy in % that the run has recorded for its weights.pt or best.pt; None for another file."""
    _, metrics = records.read_run(run_dir, "epoch", "test_acc")
    known = dict(zip(("weights.pt", "best.pt"), records.test_accuracies(metrics)))
    return next((value for name, value in known.items() if Path(path).resolve() == Path(run_dir, name).resolve()), None)


def read_images(kind: str, args: Namespace, trained: dict) -> tuple[Tensor, dict]:
    """A few test images (B, 3, H, W), as the network takes them, and the metadata of the data it was trained on."""
    root, name, size = (vars(args)[key] or trained.get(key) for key in ("tmp_data_dir", "dataset", "image_size"))
    if kind == "imagenet" and not root:
        raise ValueError("--tmp_data_dir is missing: set it to the folder that holds train/CLASS/* and val/CLASS/*")
    if kind == "imagenet":
        _, loader, data = imagenet.loaders(root, size or 224, CHECKED, 0, 0, "cpu", training=False)
        records.use_data(args.weights, data)  # its moments are ImageNet's
        images = next(iter(loader))[0]
    elif name is None:
        raise ValueError("--dataset is missing: set it to the dataset that the weights were trained on")
    else:
        dataset = as_in_run(load(name, root or "data", size), args.weights)
        images = next(eval_batches(dataset.test_images[:CHECKED], dataset.test_target, CHECKED, dataset, "cpu"))[0]
        data = describe_set(dataset)
    metadata = {key: data[key] for key in ("classes", "mean", "std", "image_size", "resize")}
    return images.contiguous(), metadata | {"crop": data["image_size"]}


# ---- the three formats: each has a function for a file's content, and one that runs a file on images (B, 3, H, W)

BATCH = ({0: torch.export.Dim("batch")},)  # any number of images


def trace(network: nn.Module, images: Tensor) -> torch.export.ExportedProgram:
    """The network as a graph for any number of images (B, 3, H, W) of this size."""
    program = torch.export.export(network, (torch.zeros(2, *images.shape[1:]),), dynamic_shapes=BATCH)
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # it holds paths of this machine
    return program


def to_onnx(network: nn.Module, program: torch.export.ExportedProgram, metadata: dict) -> bytes:
    onnx = torch.onnx.export(program, (), dynamo=True, verbose=False, dynamic_shapes=BATCH, input_names=["images"],
                             output_names=["logits"])
    onnx.model.metadata_props.update(as_texts(metadata))
    return onnx.model_proto.SerializeToString()


def run_onnx(path: Path, network: nn.Module, images: Tensor) -> Tensor:
    import onnxruntime
    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])


def to_pt2(network: nn.Module, program: torch.export.ExportedProgram, metadata: dict) -> bytes:
    buffer = io.BytesIO()
    torch.export.save(program, buffer, extra_files=as_texts(metadata))
    return buffer.getvalue()


def run_pt2(path: Path, network: nn.Module, images: Tensor) -> Tensor:
    with open(path, "rb") as file:  # torch requires a name to end in .pt2
        return torch.export.load(file).module()(images)


def to_safetensors(network: nn.Module, program: None, metadata: dict) -> bytes:
    from safetensors.torch import save
    return save({name: value.contiguous() for name, value in network.state_dict().items()},
                metadata={"format": "pt", **as_texts(metadata)})


def run_safetensors(path: Path, network: nn.Module, images: Tensor) -> Tensor:
    from safetensors.torch import load
    network = copy.deepcopy(network)
    for value in network.state_dict().values():
        value.zero_()
    network.load_state_dict(load(path.read_bytes()))
    return network(images)


FORMATS = {"onnx": (to_onnx, run_onnx), "pt2": (to_pt2, run_pt2), "safetensors": (to_safetensors, run_safetensors)}


def as_texts(metadata: dict) -> dict[str, str]:
    """Each entry as JSON, since a file's metadata hold only texts."""
    return {name: json.dumps(value) for name, value in metadata.items()}


# ---- writing

def check_target(path: Path, force: bool) -> None:
    """Raise OSError if a file can't be written, or must not be replaced."""
    if path.exists() and not force:
        raise OSError(f"{path} exists: choose another name, or replace it with --force")
    if not os.access(path.absolute().parent, os.W_OK):
        raise OSError(f"can't write {path}: create the folder {path.absolute().parent}, or fix access to it")


def tolerance(network: nn.Module, images: Tensor, logits: Tensor) -> float:
    """The bound on the difference of a file's logits from PyTorch's: 1e-5, or 4 times that of PyTorch's from float64.

    A network that has hardly been trained can amplify rounding in float32 to 1e-3, in PyTorch as in any other runtime.
    """
    rounding = (copy.deepcopy(network).double()(images.double()) - logits).abs().max().item()
    return max(TOLERANCE * max(1.0, logits.abs().max().item()), 4 * rounding)


@contextlib.contextmanager
def quiet():
    """Silence the exporters' own output."""
    with warnings.catch_warnings(), open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)  # some versions of the ONNX exporter log them
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)


def export(suffix: str, path: Path, network: nn.Module, program: torch.export.ExportedProgram | None, images: Tensor,
           metadata: dict) -> float:
    """Write a file of one format -> the largest difference of its logits, for one image and for all, from PyTorch's.

    Raises ValueError if that exceeds the tolerance, OSError if the file can't be written; then there is no new file.
    """
    to_bytes, run_file = FORMATS[suffix]
    expected = network(images)

    def check(temporary: Path) -> float:
        differences = [run_file(temporary, network, images[:count]) - expected[:count] for count in (1, len(images))]
        largest = torch.cat(differences).abs().max().item()
        if not largest <= tolerance(network, images, expected):  # so that NaN is rejected, too
            raise ValueError(f"{path} is not written, its logits differ from PyTorch's by {largest:.1e}: try other "
                             "versions of torch and of the packages that write it")
        return largest
    with quiet():
        return replace_file(path, to_bytes(network, program, metadata), check)


@torch.no_grad()
def main(args: Namespace) -> None:
    # Targets are checked first, since loading and tracing take seconds.
    for path in args.files.values():
        check_target(path, args.force)
    network, images, metadata = open_trained(args)
    with quiet():
        program = trace(network, images) if args.files.keys() & {"onnx", "pt2"} else None
    for suffix, path in args.files.items():
        difference = export(suffix, path, network, program, images, metadata)
        log.info(f"{path}: {path.stat().st_size / 1e6:.2f} MB; its logits for {len(images)} test images differ from "
                 f"PyTorch's by at most {difference:.1e}")


if __name__ == "__main__":
    cli.run(main, parse_args)

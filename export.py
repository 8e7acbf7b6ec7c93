"""Write a trained network into files that need nothing of this repository: ONNX, torch.export's pt2, safetensors.

    python export.py RUN_DIR --onnx network.onnx --pt2 network.pt2 --safetensors network.safetensors
RUN_DIR is of train_cifar.py or train_imagenet.py. In its place stands a cell as --arch takes it, if --weights FILE says
which weights and --dataset and --tmp_data_dir where the images are. Any number of images may be given to the file's
network at once. Before a file gets its name, it is run on test images, and its logits are compared with PyTorch's. What
a user must know is in the file, too: class names, mean, standard deviation, image size, genotype, accuracy and commit.
"""
import contextlib
import copy
import importlib.util
import io
import json
import os
import warnings
from argparse import Namespace
from pathlib import Path

import torch
from torch import Tensor, nn

import genotypes
import hubconf
from harness import cli, records, weights
from harness.files import replace_file
from harness.log import log
from input_pipeline import imagenet, load
from input_pipeline.batches import eval_batches
from input_pipeline.sets import DATASETS, describe

PACKAGES = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "pt2": (), "safetensors": ("safetensors",)}
TOLERANCE = 1e-5  # of logits up to 1, relative to the largest of larger ones; see `tolerance`
CHECKED = 16  # test images that every file is run on


def get_args_parser() -> cli.Parser:
    parser = cli.Parser(__doc__)
    add = parser.add_argument
    add("run", metavar="RUN_DIR", help="a training's run directory, or a cell as --arch takes it")
    add("--weights", help="a file of weights; default: the run's weights.pt")
    add("--onnx", metavar="FILE", help="write NAME.onnx; default: none")
    add("--pt2", metavar="FILE", help="write NAME.pt2, for torch.export.load; default: none")
    add("--safetensors", metavar="FILE", help="write NAME.safetensors, the weights alone; default: none")
    add("--force", action="store_true", help="replace files that exist")
    add("--tmp_data_dir", help="where the data set is; default: where it was for the run")
    add("--dataset", choices=DATASETS, help="that the weights were trained on; default: the run's")
    add("--image_size", type=cli.number(int, 1), help="default: the run's, or the data set's own")
    return parser


def parse_args() -> Namespace:
    """The command line; exits with status 2 where it can't be right, or a package is missing that it needs."""
    parser = get_args_parser()
    args = parser.parse_args()
    args.files = {suffix: Path(vars(args)[suffix]) for suffix in PACKAGES if vars(args)[suffix] is not None}
    if not args.files:
        parser.error("nothing to write: give --onnx FILE, --pt2 FILE or --safetensors FILE")
    for suffix, path in args.files.items():
        if path.suffix != f".{suffix}":
            parser.error(f"--{suffix} {path}: the file's name must end in .{suffix}")
        missing = [name for name in PACKAGES[suffix] if importlib.util.find_spec(name) is None]
        if missing:
            parser.error(f"--{suffix} needs what is not installed: pip install {' '.join(missing)}")
    return args


# ---- what is exported: the network, test images, and what is to be known

def open_trained(args: Namespace) -> tuple[nn.Module, Tensor, dict]:
    """The network in evaluation mode, test images (B, 3, H, W) for it, and what the files say of both.

    Raises ValueError, OSError where they are not there or don't fit each other.
    """
    record, accuracy = records.read_args(args.run) if Path(args.run, "args.json").exists() else {}, None
    if record.get("kind") not in ("eval", "imagenet"):
        record = {}  # a search's directory is a cell, like others
    if record:
        args.weights = args.weights or records.last_weights(args.run)
        accuracy = accuracy_of(args.run, args.weights)
    elif args.weights is None:
        genotypes.load(args.run)  # or it is no cell either
        raise ValueError(f"{args.run} is a cell without weights: give them with --weights FILE, or name the directory "
                         "of a training")
    sizes = weights.sizes(args.weights)
    kind = sizes.pop("kind")
    if record and record["kind"] != kind:
        raise ValueError(f"--weights {args.weights} are another network's: {args.run} is a run of kind "
                         f"{record['kind']}, not {kind}")
    entry = {"eval": hubconf.pdarts_cifar, "imagenet": hubconf.pdarts_imagenet}[kind]
    genotype = genotypes.load(args.run)
    network = entry(genotype, **sizes, weights=args.weights).eval()
    images, about = read_images(kind, args, record.get("args", {}))
    if len(about["classes"]) != sizes["num_classes"]:
        raise ValueError(f"--weights {args.weights} are for {sizes['num_classes']} classes, the data has "
                         f"{len(about['classes'])}: name the data set that they were trained on")
    size = about["image_size"]
    cut = f", the centre of an image whose shorter side has {size * 256 // 224} pixels" if kind == "imagenet" else ""
    about |= {"genotype": genotype._asdict(), "accuracy": accuracy, "commit": record.get("git"),
              "input": f"float32 (batch, 3, {size}, {size}), RGB, (pixel / 255 - mean) / std{cut}"}
    return network, images, about


def accuracy_of(run_dir: str, path: str) -> float | None:
    """The test accuracy in % that the run has recorded of its weights.pt or best.pt; None for any other file."""
    _, metrics = records.read_run(run_dir)
    accuracies = [record["test_acc"] for record in metrics] or [None]
    known = {"weights.pt": accuracies[-1], "best.pt": max(accuracies)}
    return next((value for name, value in known.items() if Path(path).resolve() == Path(run_dir, name).resolve()), None)


def read_images(kind: str, args: Namespace, trained: dict) -> tuple[Tensor, dict]:
    """Some test images (B, 3, H, W), as the network takes them, and what there is to know of the data set."""
    root, name, size = (vars(args)[key] or trained.get(key) for key in ("tmp_data_dir", "dataset", "image_size"))
    if kind == "imagenet" and not root:
        raise ValueError("--tmp_data_dir is missing: name the folder that holds train/CLASS/* and val/CLASS/*")
    if kind == "imagenet":
        size = size or 224
        _, loader, classes = imagenet.loaders(root, size, CHECKED, 0, 0, "cpu", training=False)
        images, about = next(iter(loader))[0], describe(classes, *imagenet.STATS, size)
    elif name is None:
        raise ValueError("--dataset is missing: name the data set that the weights were trained on")
    else:
        dataset = load(name, root or "data", size)
        batches = eval_batches(dataset.test_images[:CHECKED], dataset.test_target, CHECKED, dataset, "cpu")
        images = next(batches)[0]
        about = describe(dataset.classes, dataset.mean, dataset.std, images.size(-1))
    return images.contiguous(), about


# ---- the three forms: each gives a file's content, and runs a file on images (B, 3, H, W)

BATCH = ({0: torch.export.Dim("batch")},)  # any number of images


def trace(network: nn.Module, images: Tensor) -> torch.export.ExportedProgram:
    """The network as a graph for images (B, 3, H, W) of this size."""
    program = torch.export.export(network, (torch.zeros(2, *images.shape[1:]),), dynamic_shapes=BATCH)
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of this machine
    return program


def to_onnx(network: nn.Module, program: torch.export.ExportedProgram, about: dict) -> bytes:
    onnx = torch.onnx.export(program, (), dynamo=True, verbose=False, dynamic_shapes=BATCH, input_names=["images"],
                             output_names=["logits"])
    onnx.model.metadata_props.update(texts(about))
    return onnx.model_proto.SerializeToString()


def run_onnx(path: Path, network: nn.Module, images: Tensor) -> Tensor:
    import onnxruntime
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])


def to_pt2(network: nn.Module, program: torch.export.ExportedProgram, about: dict) -> bytes:
    buffer = io.BytesIO()
    torch.export.save(program, buffer, extra_files=texts(about))
    return buffer.getvalue()


def run_pt2(path: Path, network: nn.Module, images: Tensor) -> Tensor:
    with open(path, "rb") as file:  # by its name it would have to end in .pt2
        return torch.export.load(file).module()(images)


def to_safetensors(network: nn.Module, program: None, about: dict) -> bytes:
    from safetensors.torch import save
    return save({name: value.contiguous() for name, value in network.state_dict().items()},
                metadata={"format": "pt", **texts(about)})


def run_safetensors(path: Path, network: nn.Module, images: Tensor) -> Tensor:
    from safetensors.torch import load_file
    network = copy.deepcopy(network)
    for value in network.state_dict().values():
        value.zero_()
    network.load_state_dict(load_file(path))
    return network(images)


FORMS = {"onnx": (to_onnx, run_onnx), "pt2": (to_pt2, run_pt2), "safetensors": (to_safetensors, run_safetensors)}


def texts(about: dict) -> dict[str, str]:
    """As metadata hold it: texts, each of them JSON."""
    return {name: json.dumps(value) for name, value in about.items()}


# ---- writing

def check_target(path: Path, force: bool) -> None:
    """Raise OSError where a file can't be written, or must not be replaced."""
    if path.exists() and not force:
        raise OSError(f"{path} exists: choose another name, or replace it with --force")
    if not os.access(path.absolute().parent, os.W_OK):
        raise OSError(f"can't write {path}: make the folder {path.absolute().parent}, or rights there")


def tolerance(network: nn.Module, images: Tensor, logits: Tensor) -> float:
    """How far a file's logits may be from PyTorch's: 1e-5, or 4 times as far as those are from float64's.

    A network that has hardly been trained can enlarge float32's rounding to 1e-3, in PyTorch as in any other runtime.
    """
    rounding = (copy.deepcopy(network).double()(images.double()) - logits).abs().max().item()
    return max(TOLERANCE * max(1.0, logits.abs().max().item()), 4 * rounding)


@contextlib.contextmanager
def quiet():
    """Without what exporters say of their own inner life."""
    with warnings.catch_warnings(), open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        warnings.simplefilter("ignore")
        yield


def export(suffix: str, path: Path, network: nn.Module, program: torch.export.ExportedProgram | None, images: Tensor,
           about: dict) -> float:
    """Write a file of one form -> by how much its logits of `images`, the first alone and all, differ from PyTorch's.

    Raises ValueError where that is too much, OSError where the file can't be written; then there is no new file.
    """
    to_bytes, run_file = FORMS[suffix]
    expected = network(images)

    def check(temporary: Path) -> float:
        differences = [run_file(temporary, network, images[:count]) - expected[:count] for count in (1, len(images))]
        largest = torch.cat(differences).abs().max().item()
        if not largest <= tolerance(network, images, expected):  # nor where it is no number
            raise ValueError(f"{path} is not written, its logits differ from PyTorch's by {largest:.1e}: try other "
                             "versions of torch and of the packages that write it")
        return largest
    with quiet():
        return replace_file(path, to_bytes(network, program, about), check)


@torch.no_grad()
def main(args: Namespace) -> None:
    for path in args.files.values():
        check_target(path, args.force)
    network, images, about = open_trained(args)
    with quiet():
        program = trace(network, images) if args.files.keys() & {"onnx", "pt2"} else None
    for suffix, path in args.files.items():
        difference = export(suffix, path, network, program, images, about)
        log.info(f"{path}: {path.stat().st_size / 1e6:.2f} MB; its logits of {len(images)} test images differ from "
                 f"PyTorch's by at most {difference:.1e}")


if __name__ == "__main__":
    cli.run(main, parse_args)

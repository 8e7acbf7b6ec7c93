"""Files of weights in their usual forms: nested dictionaries, prefixed names; reading them never runs code."""
import io
import re
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from harness.files import write_file
from harness.log import log

NESTED = ("state_dict", "network", "model", "model_state_dict", "state_dict_ema")  # keys of the weights
WRAPPERS = {"module", "_orig_mod", "model", "net"}  # parts of names, added by DataParallel, torch.compile and Lightning
COUNTERS = ("total_ops", "total_params", "n_averaged")  # buffers that thop and torch's AveragedModel add to a network
EXTRAS = (  # often saved along with weights, not needed for testing
    "argparse.Namespace", "numpy.dtype", "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar",
    "pathlib.PosixPath", "pathlib._local.PosixPath", "pathlib.WindowsPath", "pathlib._local.WindowsPath",
)


class Ignored:
    """A placeholder for an object of EXTRAS: it calls nothing and keeps nothing."""

    def __new__(cls, *args):
        return object.__new__(cls)

    def __init__(self, *args):
        pass

    def __setstate__(self, state):
        pass


def read(path: str, option: str = "--weights") -> dict[str, Tensor]:
    """The tensors in a file by their unprefixed names. Raises ValueError, in one line that begins with `option`."""
    if Path(path).exists() and not Path(path).is_file():  # reading a pipe would wait for ever
        raise ValueError(f"{option} {path} can't be read (not a regular file): use a file of tensors")
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals([(Ignored, name) for name in EXTRAS]):
            warnings.simplefilter("ignore")  # about files that are rejected below
            weights = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ValueError(f"{option} {path}: no such file; use a file of saved weights") from None
    except Exception as error:  # damage, or code, can surface as any exception
        raise ValueError(f"{option} {path} {_cause(path, str(error))}") from None
    for _ in range(8):  # a hostile file can nest without end
        weights = dict.copy(weights) if isinstance(weights, dict) else weights  # without attributes, which can be odd
        keys = [key for key in NESTED if isinstance(weights, dict) and isinstance(weights.get(key), dict)]
        if len(keys) > 1:
            log.info(f"{option} {path}: using its {keys[0]}, not its {' or '.join(keys[1:])}")
        weights = weights[keys[0]] if keys else weights
    if not isinstance(weights, dict) or not all(isinstance(name, str) and isinstance(value, Tensor)
                                                for name, value in weights.items()):
        raise ValueError(f"{option} {path} holds no state_dict: use a file of a network's weights")
    tensors = {name: Tensor.detach(value) for name, value in weights.items() if name.split(".")[-1] not in COUNTERS}
    unprefixed = {_unprefixed(name): value for name, value in tensors.items()}
    if len(unprefixed) < len(tensors):
        raise ValueError(f"{option} {path} holds weights twice, with and without module. or _orig_mod. in their "
                         "names: use a file of one network's weights")
    return unprefixed


def load(path: str, network: nn.Module) -> None:
    """Load weights for evaluation, from a file as for `read`; an auxiliary head's only if the network has one.

    Raises ValueError, in one line, if they do not match this network.
    """
    _load("--weights", path, _read_weights("--weights", path, network), network)


def start_from(path: str, network: nn.Module) -> None:
    """Load the weights of --init_weights for further training, and log it.

    The classifier, or the auxiliary head, stays as it is if the file's has other sizes, or is missing. Raises
    ValueError, in one line, if the rest does not match this network.
    """
    found, own = _read_weights("--init_weights", path, network), network.state_dict()
    differing, reset = _differing(found, own), []
    for head in ("classifier", "auxiliary_head"):
        if any(name.startswith(f"{head}.") for name in differing):
            found |= {name: value for name, value in own.items() if name.startswith(f"{head}.")}
            reset.append(head.replace("_", " "))
    _load("--init_weights", path, found, network)
    log.info(f"starting from the weights of {path}"
             + (f"; re-initialised, sizes differ: {' and '.join(reset)}" if reset else ""))


def sizes(path: str) -> dict:
    """An evaluation network's sizes from its weights: kind (of run), init_channels, num_classes, layers.

    Raises ValueError like `read`, and if they are not such a network's.
    """
    tensors = read(path)
    kind, stem = ("eval", "stem.0.weight") if "stem.0.weight" in tensors else ("imagenet", "stem0.3.weight")
    cells = {name.split(".")[1] for name in tensors if name.startswith("cells.")}
    dims = [tensors[name].dim() if name in tensors else 0 for name in (stem, "classifier.weight")]
    if dims != [4, 2] or not cells or "alphas_normal" in tensors:
        raise ValueError(f"--weights {path} are not those of a trained cell's network: use a training's weights.pt")
    channels = len(tensors[stem])
    return {"kind": kind, "num_classes": len(tensors["classifier.weight"]), "layers": len(cells),
            "init_channels": channels // 3 if kind == "eval" else channels}


def save(path: Path, network: nn.Module) -> None:
    """Write a network's state_dict, on the CPU. Raises OSError."""
    buffer = io.BytesIO()
    torch.save({name: value.cpu() for name, value in network.state_dict().items()}, buffer)
    write_file(path, buffer.getvalue())


def check_finite(network: nn.Module, label: str) -> None:
    """Raise ValueError if the weights are not finite: the losses do not yet show an epoch's last step."""
    if not all(bool(p.isfinite().all()) for p in network.parameters()):
        raise ValueError(f"the weights are not finite after {label}: lower --learning_rate or use --amp off; the last "
                         "checkpoint is kept")


# ---- whether they match the network

def _read_weights(option: str, path: str, network: nn.Module) -> dict:
    """A file's weights, without those of an auxiliary head or a classifier if the network has none."""
    found, own = read(path, option), network.state_dict()
    if "alphas_normal" in found or any("m_ops" in name for name in found):
        raise ValueError(f"{option} {path} are a search supernet's: train its genotype and use those weights")
    unusable = sorted(name for name in own.keys() & found.keys() if not _are_usable(found[name], own[name]))
    if unusable:
        raise ValueError(f"{option} {path} have {len(unusable)} entries that are not finite, dense floats, e.g. "
                         f"{unusable[0]}: use those of an intact training, neither quantized nor sparse")
    heads = {name.split(".")[0] for name in own}
    absent = tuple(f"{head}." for head in ("auxiliary_head", "classifier") if head not in heads)
    return {name: value for name, value in found.items() if not name.startswith(absent)}


def _differing(found: dict, own: dict) -> set[str]:
    """The names that only one of two state_dicts has, and those whose shapes differ."""
    return {name for name in own.keys() | found.keys()
            if (name not in own or name not in found or own[name].shape != found[name].shape)
            and not (name.endswith("num_batches_tracked") and (name in own) != (name in found))}


def _load(option: str, path: str, found: dict, network: nn.Module) -> None:
    own = network.state_dict()
    if differing := _differing(found, own):
        raise ValueError(f"{option} {path} {_mismatch(differing, found, own)}")
    network.load_state_dict(found, strict=False)


def _mismatch(differing: set[str], found: dict, own: dict) -> str:
    """How weights differ from the network's own, and what to do."""
    heads = {name for name in own if name.split(".")[-2:-1] == ["classifier"]}
    name = "classifier.weight"
    if found and differing <= heads and not differing & found.keys():
        return f"lack the classifier ({', '.join(sorted(differing))}): use those of the whole network"
    if differing <= heads and name in differing & found.keys() and found[name].dim() == 2:
        return (f"are for {len(found[name])} classes ({name}), the data has {len(own[name])}: use the dataset that "
                "they were trained on; --arch and the sizes match")
    if all(name.startswith("auxiliary_head.") for name in differing):
        return "have no matching auxiliary head: omit --auxiliary, testing needs none"
    return (f"are another network's ({len(differing)} of {len(own)} entries differ, e.g. {min(differing)}): check "
            "the cell (--arch), --init_channels, --layers and the dataset")


def _are_usable(value: Tensor, own: Tensor) -> bool:
    """Whether these numbers can replace a network's own: dense, finite, and floats if those are; not quantized."""
    if value.layout != torch.strided or value.is_nested or value.is_meta or value.is_complex() or value.is_quantized:
        return False
    return bool(value.float().isfinite().all()) if value.is_floating_point() else not own.is_floating_point()


# ---- reading a file

def _unprefixed(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def _cause(path: str, error: str) -> str:
    """Why a file of weights was not read, and what to do."""
    try:
        whole = b"torch.nn.modules." in Path(path).read_bytes()  # the class of a layer, by name
    except OSError as unread:
        return f"can't be read ({unread.strerror}): use a file of tensors"
    if whole:
        return ("is a whole pickled network, and opening it would run code: next to its own code, run "
                "torch.save(network.state_dict(), FILE) and use FILE")
    if found := re.search(r"GLOBAL ([\w.]+)", error):
        return f"holds more than weights ({found[1][:60]}), which could be code: save only the state_dict"
    return "is damaged, or holds more than weights: use a file of tensors"

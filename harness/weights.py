"""Files of weights as people have them: what lies around the tensors, what their names begin with; no code is run."""
import io
import re
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from harness.files import write_file
from harness.log import log

NESTED = ("state_dict", "network", "model", "model_state_dict")  # what checkpoints call the weights
WRAPPERS = {"module", "_orig_mod"}  # of DataParallel and torch.compile, in names
COUNTED = ("total_ops", "total_params")  # what thop leaves in a network
BESIDE = (  # what people save beside weights, and nobody needs to test them
    "argparse.Namespace", "numpy.dtype", "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar",
    "pathlib.PosixPath", "pathlib._local.PosixPath", "pathlib.WindowsPath", "pathlib._local.WindowsPath",
)


class Ignored:
    """Stands for an object of BESIDE, of which nothing is called and nothing kept."""

    def __new__(cls, *args):
        return object.__new__(cls)

    def __init__(self, *args):
        pass

    def __setstate__(self, state):
        pass


def read(path: str, option: str = "--weights") -> dict[str, Tensor]:
    """The tensors in a file by their plain names. Raises ValueError, in one line that calls it what `option` says."""
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals([(Ignored, name) for name in BESIDE]):
            warnings.simplefilter("ignore")  # about what is refused below anyway
            weights = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ValueError(f"{option} {path}: no such file; name one that weights were saved in") from None
    except Exception as error:  # damage, or code, can show itself in any way
        raise ValueError(f"{option} {path} {_cause(path, str(error))}") from None
    for _ in range(8):  # a hostile file can nest without end
        weights = next((weights[key] for key in NESTED if isinstance(weights, dict) and
                        isinstance(weights.get(key), dict)), weights)
    if not isinstance(weights, dict) or not all(isinstance(name, str) and isinstance(value, Tensor)
                                                for name, value in weights.items()):
        raise ValueError(f"{option} {path} holds no state_dict: give a file of a network's weights")
    kept = {name: value for name, value in weights.items() if name.split(".")[-1] not in COUNTED}
    plain = {_plain(name): value for name, value in kept.items()}
    if len(plain) < len(kept):
        raise ValueError(f"{option} {path} holds weights twice, with and without module. or _orig_mod. in their "
                         "names: give a file of one network's")
    return plain


def load(path: str, network: nn.Module) -> None:
    """Load weights for evaluation, from a file as `read` takes it; an auxiliary head's only where there is one.

    Raises ValueError, in one line, where they are not this network's.
    """
    _load("--weights", path, _read_weights("--weights", path, network), network)


def start_from(path: str, network: nn.Module) -> None:
    """Load the weights that --init_weights names, to be trained further; the log says of it.

    The classifier, or the auxiliary head, stays as it is where the file's has other sizes, or where there is none.
    Raises ValueError, in one line, where the rest is not this network's.
    """
    found, own = _read_weights("--init_weights", path, network), network.state_dict()
    strange, anew = _strange(found, own), []
    for head in ("classifier", "auxiliary_head"):
        if any(name.startswith(f"{head}.") for name in strange):
            found |= {name: value for name, value in own.items() if name.startswith(f"{head}.")}
            anew.append(head.replace("_", " "))
    _load("--init_weights", path, found, network)
    log.info(f"starting from the weights of {path}"
             + (f"; anew, because the sizes differ: {' and '.join(anew)}" if anew else ""))


def sizes(path: str) -> dict:
    """What an evaluation network's weights tell of it: kind (of run), init_channels, num_classes, layers.

    Raises ValueError as `read`, and where they are no such network's.
    """
    tensors = read(path)
    kind, stem = ("eval", "stem.0.weight") if "stem.0.weight" in tensors else ("imagenet", "stem0.3.weight")
    cells = {name.split(".")[1] for name in tensors if name.startswith("cells.")}
    if not {stem, "classifier.weight"} <= tensors.keys() or not cells or "alphas_normal" in tensors:
        raise ValueError(f"--weights {path} are not those of a trained cell's network: give a training's weights.pt")
    channels = len(tensors[stem])
    return {"kind": kind, "num_classes": len(tensors["classifier.weight"]), "layers": len(cells),
            "init_channels": channels // 3 if kind == "eval" else channels}


def save(path: Path, network: nn.Module) -> None:
    """Write a network's state_dict, on the CPU. Raises OSError."""
    buffer = io.BytesIO()
    torch.save({name: value.cpu() for name, value in network.state_dict().items()}, buffer)
    write_file(path, buffer.getvalue())


def check_finite(network: nn.Module, label: str) -> None:
    """Raise ValueError if the last step of an epoch, whose effect no loss has shown yet, has spoilt the weights."""
    if not all(bool(p.isfinite().all()) for p in network.parameters()):
        raise ValueError(f"the weights are not finite after {label}: lower --learning_rate or use --amp off; the last "
                         "checkpoint is kept")


# ---- how they fit

def _read_weights(option: str, path: str, network: nn.Module) -> dict:
    """A file's weights, without an auxiliary head if the network has none."""
    found, own = read(path, option), network.state_dict()
    if "alphas_normal" in found or any("m_ops" in name for name in found):
        raise ValueError(f"{option} {path} are a search supernet's: train its genotype and give the weights of that")
    odd = sorted(name for name in own.keys() & found.keys() if not _are_usable(found[name], own[name]))
    if odd:
        raise ValueError(f"{option} {path} have {len(odd)} entries that are no finite numbers of floating point, as "
                         f"{odd[0]}: give those of a sound training, neither quantized nor sparse")
    return {name: value for name, value in found.items() if name in own or not name.startswith("auxiliary_head.")}


def _strange(found: dict, own: dict) -> set[str]:
    """The names that only one of two state_dicts has, or with another shape."""
    return {name for name in own.keys() | found.keys() if not name.endswith("num_batches_tracked") and
            (name not in own or name not in found or own[name].shape != found[name].shape)}


def _load(option: str, path: str, found: dict, network: nn.Module) -> None:
    own = network.state_dict()
    if strange := _strange(found, own):
        raise ValueError(f"{option} {path} {_misfit(strange, found, own)}")
    network.load_state_dict(found, strict=False)


def _misfit(strange: set[str], found: dict, own: dict) -> str:
    """How weights differ from the network's own, and what to do."""
    heads = {name for name in own if name.split(".")[-2:-1] == ["classifier"]}
    name = "classifier.weight"
    if found and strange <= heads and not strange & found.keys():
        return f"lack the classifier ({', '.join(sorted(strange))}): give those of the whole network"
    if strange <= heads and name in strange & found.keys() and found[name].dim() == 2:
        return (f"are for {len(found[name])} classes ({name}), the data has {len(own[name])}: give the data set that "
                "they were trained on; --arch and the sizes fit")
    if all(name.startswith("auxiliary_head.") for name in strange):
        return "have no auxiliary head that fits: leave out --auxiliary, testing needs none"
    return (f"are another network's ({len(strange)} of {len(own)} entries differ, as {min(strange)}): check the "
            "cell (--arch), --init_channels, --layers and the data set")


def _are_usable(value: Tensor, own: Tensor) -> bool:
    """Whether a network can take these numbers for its own: dense, finite, and of floating point where those are.

    Quantized ones are not of floating point.
    """
    if value.layout != torch.strided or value.is_nested or value.is_meta:
        return False
    return bool(value.float().isfinite().all()) if value.is_floating_point() else not own.is_floating_point()


# ---- how they lie in a file

def _plain(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def _cause(path: str, error: str) -> str:
    """Why a file of weights was not read, and what to do."""
    try:
        whole = b"torch.nn.modules." in Path(path).read_bytes()  # the class of some layer, by name
    except OSError as unread:
        return f"can't be read ({unread.strerror}): name a file of tensors"
    if whole:
        return ("is a whole pickled network, and to open that is to run code: where its own code is, write "
                "torch.save(network.state_dict(), FILE) and give FILE")
    if found := re.search(r"GLOBAL ([\w.]+)", error):
        return f"holds more than weights ({found[1][:60]}), which could be code: save the state_dict alone"
    return "is damaged, or holds more than weights: give a file of tensors"

"""What the three training scripts share: command line, devices, processes, run directories, checkpoints, counting."""
import argparse
import contextlib
import copy
import difflib
import hashlib
import importlib.util
import io
import itertools
import json
import logging
import os
import platform
import re
import resource
import shlex
import signal
import subprocess
import sys
import warnings
from datetime import datetime
from pathlib import Path

import numpy
import torch
import torch.distributed as dist
import torchvision
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

log = logging.getLogger("pdarts")


# ---- command line

class Parser(argparse.ArgumentParser):
    """An argument parser without abbreviations, whose errors are one line."""

    def __init__(self, description: str):
        super().__init__(description=description, allow_abbrev=False,
                         formatter_class=argparse.RawDescriptionHelpFormatter)

    def error(self, message: str):
        options = [option for action in self._actions for option in action.option_strings]
        words = [word.split("=")[0] for word in message.split() if word.startswith("--")]
        near = difflib.get_close_matches(words[0], options) if words and "unrecognized" in message else []
        hint = f"did you mean {' or '.join(near)}?" if near else "--help lists the options"
        self.exit(2, f"{self.prog}: error: {' '.join(message.split())}; {hint}\n")


def number(kind: type, low: float, high: float = 1e38):
    """The type of a numeric option: `kind` (int or float), at least `low`, below `high` (float32's range)."""
    def parse(text: str):
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not low <= value < high:
            what = "a whole number" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"{text[:40]!r} must be {what}, at least {low} and below {high:g}")
        return value
    return parse


def file_name(text: str) -> str:
    """The type of an option that becomes part of a file's name."""
    if not text.isprintable() or {"/", os.sep} & set(text):
        raise argparse.ArgumentTypeError(f"{text[:40]!r} becomes part of a directory's name: leave out slashes")
    return text


def add_run_options(parser: Parser, seed: int, report_freq: int) -> None:
    """The options that all scripts have."""
    parser.add_argument("--save", default="runs", help="the run directory is SAVE/KIND-NOTE-TIME")
    parser.add_argument("--note", type=file_name, default="try", help="a name for this run")
    parser.add_argument("--seed", type=number(int, 0), default=seed)
    parser.add_argument("--report_freq", type=number(int, 1), default=report_freq, help="steps between log lines")
    parser.add_argument("--resume", metavar="RUN_DIR", help="continue this run where it was saved last")
    parser.add_argument("--device", help="cuda, mps or cpu; default: the best there is")
    parser.add_argument("--amp", choices=["off", "bf16", "fp16"], default="off", help="mixed precision")
    parser.add_argument("--compile", action="store_true", help="compile the network: a slow start, then faster steps")
    parser.add_argument("--tensorboard", action="store_true", help="write the scalars for TensorBoard too")
    parser.add_argument("--deterministic", action="store_true", help="bit-identical repeats on CUDA too, slower")


# what doesn't change a run's result, and so may change when it is resumed
MAY_CHANGE = {"resume", "tmp_data_dir", "workers", "report_freq", "device", "tensorboard", "grad_checkpoint"}


def parse_args(parser: Parser, kind: str) -> argparse.Namespace:
    """The command line; with --resume that run's options, which it must not contradict (exit status 2)."""
    args = parser.parse_args()
    if args.tensorboard and importlib.util.find_spec("tensorboard") is None:
        parser.error("--tensorboard: TensorBoard is not installed; pip install tensorboard, or leave it out")
    if args.resume is None:
        return args
    record, _ = read_run(args.resume)
    if record["kind"] != kind:
        raise ValueError(f"--resume {args.resume} is a run of kind {record['kind']}, not {kind}: use its own script")
    saved = record["args"]
    unset = argparse.Namespace(**dict.fromkeys(vars(args)))  # None: not on the command line
    for name, value in vars(parser.parse_args(namespace=unset)).items():
        if value is None:
            setattr(args, name, saved.get(name, getattr(args, name)))
        elif name not in MAY_CHANGE and value != saved.get(name):
            parser.error(f"--{name} {value} differs from the run's {saved.get(name)}: leave it out with --resume")
    return args


def choose_dataset(parser: Parser, args: argparse.Namespace) -> None:
    """Fill in --dataset and --tmp_data_dir; exits with status 2 where --cifar100 contradicts --dataset."""
    if args.cifar100 and args.dataset not in (None, "cifar100"):
        parser.error(f"--cifar100 and --dataset {args.dataset} contradict each other: leave one out")
    args.dataset = args.dataset or ("cifar100" if args.cifar100 else "cifar10" if args.tmp_data_dir else "digits")
    args.tmp_data_dir = args.tmp_data_dir or "data"


class Stopped(Exception):
    """SIGINT or SIGTERM asked the run to end."""


_signals: list[int] = []


def _remember(number: int, frame) -> None:
    _signals.append(number)
    # A second one ends the process at once; but torchrun passes on what a terminal or a cluster sent to all already.
    signal.signal(number, signal.SIG_IGN if dist.is_torchelastic_launched() else signal.SIG_DFL)


def arch_of(args: argparse.Namespace) -> str:
    """The cell to train: --arch, or what the run to resume has kept of it, which nobody has moved or changed."""
    return args.resume if args.resume and (Path(args.resume) / "genotype.json").exists() else args.arch


def stop_if_asked() -> None:
    """Raise Stopped on all processes where a signal has come to one; all of them call it, between steps."""
    number = torch.tensor(_signals[0] if _signals else 0)
    if dist.is_initialized():
        dist.all_reduce(number, dist.ReduceOp.MAX)
    if number > 0:
        raise Stopped(int(number))


def run(main, parse) -> None:
    """Call main(parse()); what a person can mend ends in one line and exit status 1, a signal in 128 + its number."""
    handler = logging.StreamHandler()
    handler.setLevel(logging.INFO if os.environ.get("RANK", "0") == "0" else logging.ERROR)
    log.addHandler(handler)
    log.setLevel(logging.DEBUG)
    try:
        args = parse()
        main(args)
    except Stopped as stopped:
        number = stopped.args[0]
        log.error(f"stopped by {signal.Signals(number).name}; continue with: {resume_command(args)}")
        sys.exit(128 + number)
    except KeyboardInterrupt:
        log.error("stopped by SIGINT before the run began")
        sys.exit(128 + signal.SIGINT)
    except (ValueError, OSError) as error:
        _fail(error)
    except (RuntimeError, MemoryError) as error:
        if not isinstance(error, MemoryError) and not re.search("out of memory|allocate memory", str(error)):
            raise
        hint = "--grad_checkpoint, or " if "grad_checkpoint" in args and not args.grad_checkpoint else ""
        _fail(f"out of memory: try {hint}a new run with --batch_size {max(1, args.batch_size // 2)}")
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def _fail(error) -> None:
    log.debug("traceback of the error below", exc_info=True)  # into log.txt only
    log.error("error: " + " ".join(str(error).split()))
    sys.exit(1)


# ---- devices, precision, seeds

def pick_device(name: str | None, deterministic: bool) -> torch.device:
    """The device of that name; without one CUDA, MPS or the CPU, whichever there is first. Raises ValueError."""
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.benchmark = not deterministic  # shapes repeat: let it choose by trying
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
        if device.type not in ("cuda", "mps", "cpu"):
            raise RuntimeError
    except (RuntimeError, AssertionError):  # no such name; torch built without it
        raise ValueError(f"--device {name} can't be used here: leave it out, or say cpu") from None
    if device.type == "cuda" and dist.is_torchelastic_launched():
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    return device


def describe_device(device: torch.device) -> str:
    """The device in words, for logs and result tables."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} {device.type.upper()}, {torch.get_num_threads()} threads"


def seed_everything(seed: int, *position: int) -> None:
    """Seed torch on all devices from the run's seed and a position in it (stage, epoch, step), differently per rank.

    Seeding anew for each step is what makes a resumed run equal an undisturbed one: no state needs to be saved.
    """
    torch.manual_seed(derive_seed(seed, rank(), *position))


def derive_seed(*words: int) -> int:
    """One seed out of several numbers; different numbers give unrelated seeds."""
    return int(numpy.random.SeedSequence(words).generate_state(1)[0])


def set_precision(network: nn.Module, device: torch.device, amp: str) -> torch.amp.GradScaler:
    """Put the network's forward under autocast ("off", "bf16" or "fp16"); returns the gradient scaler to go with it."""
    if amp != "off":
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[amp]
        forward = torch.autocast(device.type, dtype)(network.forward)
        network.forward = lambda images: tree_map_only(Tensor, Tensor.float, forward(images))  # losses are float32's
    return torch.amp.GradScaler(device.type, enabled=amp == "fp16")


def clipped_step(optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, grad_clip: float) -> None:
    """An optimizer's step on its gradients, unscaled, their norm clipped."""
    scaler.unscale_(optimizer)
    nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], grad_clip)
    scaler.step(optimizer)
    scaler.update()


# ---- processes (torchrun)

def init_distributed(device: torch.device) -> None:
    """Join the other processes where torchrun started this one: tensors on the CPU go by gloo, on GPUs by NCCL."""
    if dist.is_torchelastic_launched():
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        store, rank, world_size = next(dist.rendezvous("env://"))
        # A restart under --max-restarts must not find the addresses of the processes before it in the store.
        store = dist.PrefixStore(f"restart{os.environ['TORCHELASTIC_RESTART_COUNT']}", store)
        dist.init_process_group(backend, store=store, rank=rank, world_size=world_size)


def rank() -> int:
    """This process's number; 0 writes the files."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


@contextlib.contextmanager
def rank0_first():
    """Let rank 0 through, and the others when it is done."""
    if rank() > 0:
        wait_for_all()
    yield
    if rank() == 0:
        wait_for_all()


def sum_over_ranks(values: Tensor) -> Tensor:
    """The sum of a tensor over all processes."""
    if dist.is_initialized():
        dist.all_reduce(values)
    return values


def wait_for_all() -> None:
    """Go on when all processes have come here."""
    if dist.is_initialized():
        dist.barrier()


def average_gradients(parameters) -> None:
    """Replace every gradient by its mean over the processes, in one message."""
    if dist.is_initialized():
        grads = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([grad.flatten() for grad in grads])
        dist.all_reduce(flat)
        flat /= world_size()
        for grad, mean in zip(grads, flat.split([grad.numel() for grad in grads]), strict=True):
            grad.copy_(mean.view_as(grad))


def share_rank0(network: nn.Module, buffers_only: bool = False) -> None:
    """Give every process the parameters and batch norm statistics of rank 0."""
    if dist.is_initialized():
        tensors = list(network.buffers()) + ([] if buffers_only else list(network.parameters()))
        for tensor in tensors:
            dist.broadcast(tensor.detach(), src=0)


# ---- run directories

def open_run_dir(kind: str, args: argparse.Namespace, device: torch.device) -> Path:
    """The directory of this run: a new SAVE/KIND-NOTE-TIME, or the one that --resume or a torchrun restart continues.

    From here on log lines go to its log.txt too, and signals end the run between steps. Raises OSError.
    """
    box = [None]  # rank 0 decides, the others are told
    if rank() == 0:
        box[0] = args.resume or _restarted_run(Path(args.save), kind) or _new_run(Path(args.save), kind, args, device)
    if dist.is_initialized():
        dist.broadcast_object_list(box, src=0)
    args.resume = str(box[0])
    if rank() == 0:
        path = Path(args.resume) / "log.txt"
        try:
            handler = logging.FileHandler(path)
        except OSError as error:
            raise OSError(f"can't write {path} ({error.strerror}): make room or rights there") from error
        handler.handleError = lambda record: None  # a full disk is said where it matters
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
        log.addHandler(handler)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _remember)
    return Path(args.resume)


def _new_run(save: Path, kind: str, args: argparse.Namespace, device: torch.device) -> str:
    record = {
        "kind": kind, "args": vars(args), "command": shlex.join(["python", *sys.argv]),
        "device": describe_device(device),
        "processes": world_size(), "launch": _launch_id(), "git": _git_commit(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__,
                     "torchvision": torchvision.__version__, "numpy": numpy.__version__},
    }
    name = f"{kind}-{args.note}-{datetime.now():%Y%m%d-%H%M%S}"
    for i in itertools.count(1):  # two runs may start in the same second
        run_dir = save / (name if i == 1 else f"{name}-{i}")
        try:
            save.mkdir(parents=True, exist_ok=True)
            run_dir.mkdir()
            write_file(run_dir / "args.json", json.dumps(record, indent=2).encode())
        except FileExistsError:
            if run_dir.is_dir():
                continue
            raise OSError(f"can't make the directory {run_dir}: a file is in its way; choose another --save") from None
        except OSError as error:
            with contextlib.suppress(OSError):
                run_dir.rmdir()  # it has no args.json
            raise OSError(f"can't make the directory {run_dir} ({error.strerror}): choose another --save") from error
        return str(run_dir)


def _launch_id() -> str | None:
    """What a torchrun launch and its restarts have in common: its run id, or where it was given none its process."""
    if not dist.is_torchelastic_launched():
        return None
    run_id = os.environ["TORCHELASTIC_RUN_ID"]
    return run_id if run_id != "none" else f"{platform.node()}-{os.getppid()}"


def _restarted_run(save: Path, kind: str) -> str | None:
    """The directory that this torchrun launch began before a process died (--max-restarts)."""
    if int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0:
        for path in save.glob(f"{kind}-*/args.json"):
            if json.loads(path.read_text())["launch"] == _launch_id():
                return str(path.parent)
    return None


def _git_commit() -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40"]
    with contextlib.suppress(OSError):  # git is not installed
        return subprocess.run(command, capture_output=True, text=True).stdout.strip() or None


def read_run(run_dir) -> tuple[dict, list[dict]]:
    """A run's args.json and its epochs' records. Raises ValueError where the directory is no run."""
    try:
        record = json.loads((Path(run_dir) / "args.json").read_text())
        path = Path(run_dir) / "metrics.jsonl"  # there from the first epoch's end
        metrics = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        return record | {"kind": str(record["kind"]), "args": dict(record["args"])}, metrics
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise ValueError(f"{run_dir} is no run (it has no args.json that can be read): name a run directory") from None


def resume_command(args: argparse.Namespace) -> str:
    """The command line that continues this run."""
    launcher = f"torchrun --nproc_per_node={world_size()}" if world_size() > 1 else "python"
    return f"{launcher} {shlex.quote(sys.argv[0])} --resume {shlex.quote(str(args.resume))}"


# ---- files

def write_file(path: Path, content: bytes) -> None:
    """Write a file whole or not at all. Raises OSError."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as f:
            f.write(content)
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise OSError(f"can't write {path} ({error.strerror}): make room or rights there, then continue with --resume; "
                      "what was saved before is whole") from error


def save_checkpoint(run_dir: Path, state: dict) -> None:
    """Write checkpoint.pt, keeping the one before as previous.pt. Raises OSError.

    Behind what torch.save writes stands its SHA-256, since torch.load does not notice flipped bits; nor does it mind.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    path = run_dir / "checkpoint.pt"
    if path.exists():
        write_file(run_dir / "previous.pt", path.read_bytes())  # a copy: at no moment is there no checkpoint
    write_file(path, buffer.getvalue() + hashlib.sha256(buffer.getbuffer()).digest())


def load_checkpoint(run_dir: Path, kind: str) -> dict | None:
    """A run's checkpoint, on the CPU, or None before the first; never runs code. Raises ValueError if it is damaged."""
    path, previous = run_dir / "checkpoint.pt", run_dir / "previous.pt"
    if not path.exists():
        return None
    content = path.read_bytes()
    if hashlib.sha256(content[:-32]).digest() == content[-32:]:
        with contextlib.suppress(Exception):  # what others wrote can fail in any way
            state = torch.load(io.BytesIO(content[:-32]), map_location="cpu", weights_only=True)
            if state["kind"] == kind:
                return state
    command = shlex.join(["mv", str(previous), str(path)])
    hint = f"go on from the one before with {command}" if previous.exists() else "start the run anew"
    raise ValueError(f"{path} is damaged or of another kind of run: {hint}")


def load_part(name: str, part, state: dict) -> None:
    """Load a checkpoint's state into a network, optimizer, ... Raises ValueError where it doesn't fit."""
    try:
        part.load_state_dict(state)
    except RuntimeError:
        raise ValueError(f"the checkpoint's {name} doesn't fit: give the data that the run began with") from None


def write_metrics(run_dir: Path, records: list[dict]) -> None:
    """Write metrics.jsonl, an epoch a line; all of it each time, so that it can't differ from the checkpoint."""
    write_file(run_dir / "metrics.jsonl", "".join(json.dumps(record) + "\n" for record in records).encode())


def save_weights(path: Path, network: nn.Module) -> None:
    """Write a network's state_dict, on the CPU. Raises OSError."""
    buffer = io.BytesIO()
    torch.save({name: value.cpu() for name, value in network.state_dict().items()}, buffer)
    write_file(path, buffer.getvalue())


def load_weights(path: str, network: nn.Module) -> None:
    """Load weights for evaluation: a state_dict, plain or under "state_dict", or a checkpoint.pt; never runs code.

    An auxiliary head's are passed over where the network has none. Raises ValueError, in one line, for anything else.
    """
    try:
        with warnings.catch_warnings(action="ignore"):  # about what is refused below anyway
            weights = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ValueError(f"--weights {path}: no such file; name one that weights were saved in") from None
    except Exception:  # damage, or code, can show itself in any way
        raise ValueError(f"--weights {path} is damaged, or holds more than weights: give a file of tensors") from None
    for key in ("state_dict", "network"):  # what others' and our checkpoints call them
        if isinstance(weights, dict) and isinstance(weights.get(key), dict):
            weights = weights[key]
    if not isinstance(weights, dict) or not all(isinstance(name, str) and isinstance(value, Tensor)
                                                for name, value in weights.items()):
        raise ValueError(f"--weights {path} holds no state_dict: give a file of a network's weights")
    weights = {name.removeprefix("module."): value for name, value in weights.items()}
    if "alphas_normal" in weights or any("m_ops" in name for name in weights):
        raise ValueError(f"--weights {path} are a search supernet's: train its genotype and test those")
    own = network.state_dict()
    weights = {name: value for name, value in weights.items() if name in own or not name.startswith("auxiliary_head.")}
    strange = [name for name in own.keys() | weights.keys() if not name.endswith("num_batches_tracked") and
               (name not in own or name not in weights or own[name].shape != weights[name].shape)]
    if strange:
        raise ValueError(f"--weights {path} are another network's ({len(strange)} of {len(own)} entries differ, as "
                         f"{min(strange)}): check --arch, --init_channels, --layers and the data set")
    network.load_state_dict(weights, strict=False)


def scalar_writer(args: argparse.Namespace, run_dir: Path, done: int):
    """A function that writes an epoch's record for TensorBoard, if --tensorboard; `done` epochs are written already."""
    if not args.tensorboard or rank() > 0:
        return lambda epoch, record: None
    from torch.utils.tensorboard import SummaryWriter
    writer = SummaryWriter(run_dir / "tensorboard", purge_step=done)

    def write(epoch: int, record: dict) -> None:
        for name, value in record.items():
            if value is not None:
                writer.add_scalar(name, value, epoch)
        writer.flush()
    return write


# ---- measuring

def compile_seconds() -> float:
    """What torch.compile has taken so far."""
    dynamo = sys.modules.get("torch._dynamo.utils")  # slow to import for those who don't need it
    return dynamo.calculate_time_spent()["total_wall_time"] if dynamo else 0.0


def peak_memory_mb(device: torch.device) -> float:
    """The most memory used so far: what torch allocated on a GPU, the process's resident set on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def count_parameters(network: nn.Module, auxiliary: bool = False) -> int:
    """The number of parameters, those of an auxiliary head counted only if asked."""
    return sum(p.numel() for name, p in network.named_parameters() if auxiliary or not name.startswith("auxiliary"))


@torch.no_grad()
def count_multiply_adds(network: nn.Module, image_size: int, published: bool = False) -> int:
    """Multiply-adds of the convolutions and linear layers for one image, the auxiliary head's left out.

    The published convention adds 2 for every output of a batch norm and 1 for every output of a ReLU.
    """
    total = 0

    def count(module, inputs, output):
        nonlocal total
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            total += output[0].numel() * module.weight[0].numel()
        elif published:
            total += output[0].numel() * {nn.BatchNorm2d: 2, nn.ReLU: 1}.get(type(module), 0)

    network = copy.deepcopy(network).to("meta").eval()  # shapes only
    for module in network.modules():
        module.register_forward_hook(count)
    network(torch.empty(1, 3, image_size, image_size, device="meta"))
    return total

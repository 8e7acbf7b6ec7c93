"""Command lines: the parser, types of options, the options that several scripts have; and how a run ends."""
import argparse
import contextlib
import difflib
import importlib.util
import logging
import os
import re
import shlex
import signal
import sys
from argparse import Namespace
from logging.handlers import MemoryHandler

import torch.distributed as dist

import data
import parallel
import runs
from runs import log


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Names each option's default, where the option's help doesn't."""

    def _get_help_string(self, action):
        needless = action.required or action.dest == "help" or (action.default is None and action.nargs != 0)
        if not action.option_strings or needless or "default" in action.help:
            return action.help
        return action.help + ("; default: off" if action.nargs == 0 else "; default: %(default)s")


class Parser(argparse.ArgumentParser):
    """An argument parser without abbreviations, whose errors are one line."""

    def __init__(self, description: str):
        super().__init__(description=description, allow_abbrev=False, formatter_class=HelpFormatter)

    def error(self, message: str):
        options = [option for action in self._actions for option in action.option_strings]
        words = [word.split("=")[0] for word in message.split() if word.startswith("--")]
        near = difflib.get_close_matches(words[0], options) if words and "unrecognized" in message else []
        if any(word.startswith(("--local-rank", "--local_rank")) for word in words):
            near, hint = [], "that is python -m torch.distributed.launch: start by torchrun --nproc_per_node=N instead"
        else:
            hint = f"did you mean {' or '.join(near)}?" if near else "--help lists the options"
        # The processes of a launch have the same command line: one of them says what is wrong with it.
        self.exit(2, f"{self.prog}: error: {' '.join(message.split())}; {hint}\n" if _is_first() else None)


def number(kind: type, low: float, high: float = 1e38):
    """The type of a numeric option: `kind` (int or float), at least `low`, below `high` (float32's range)."""
    def parse(text: str):
        with contextlib.suppress(ValueError):
            if low <= kind(text) < high:
                return kind(text)
        what = "a whole number" if kind is int else "a number"
        raise argparse.ArgumentTypeError(f"{text[:40]!r} must be {what}, at least {low} and below {high:g}")
    return parse


def file_name(text: str) -> str:
    """The type of an option that becomes part of a file's name."""
    if not text.isprintable() or {"/", os.sep} & set(text):
        raise argparse.ArgumentTypeError(f"{text[:40]!r} becomes part of a directory's name: leave out slashes")
    return text


# ---- options that several scripts have; what these functions return adds one more to their group

def add_image_options(parser: Parser, datasets: tuple[str, ...] = data.DATASETS):
    """The data of a search and of the small networks."""
    add = parser.add_argument_group("data").add_argument
    add("--tmp_data_dir", help="where the data set is, or is downloaded to; default: data")
    add("--dataset", choices=datasets, help="default: cifar10, or digits without --tmp_data_dir")
    add("--cifar100", action="store_true", help="the same as --dataset cifar100")
    add("--image_size", type=number(int, 1), help="resize the images; default: the data set's own size")
    add("--cutout", action="store_true", help="cut a square out of training images")
    add("--cutout_length", type=number(int, 1), help="its side; default: half the image's")
    add("--workers", type=number(int, 0), default=2, help="per rank, to read images in a search on imagenet")
    return add


def add_weight_options(add, rate: str) -> None:
    """The training of weights by SGD; `rate` explains the learning rate."""
    add("--batch_size", type=number(int, 1), help="total over all processes")
    add("--learning_rate", type=number(float, 0), help=rate)
    add("--momentum", type=number(float, 0, 1), default=0.9, help="of SGD")
    add("--weight_decay", type=number(float, 0), help="of the weights")
    add("--grad_clip", type=number(float, 0), default=5.0, help="largest gradient norm of a step")


def add_evaluation_options(parser: Parser, fewest_channels: int, rate: str):
    """What an evaluation trains and how, and testing without training."""
    add = parser.add_argument_group("network").add_argument
    add("--arch", default="PDARTS", help="name, random:SEED, run, file or a printed Genotype(...)")
    add("--init_channels", type=number(int, fewest_channels), help="channels of the first cell")
    add("--layers", type=number(int, 1), help="cells")
    add("--auxiliary", action="store_true", help="train with the auxiliary head")
    add("--auxiliary_weight", type=number(float, 0), default=0.4, help="of its loss")
    add("--drop_path_prob", type=number(float, 0, 1), help="reached at the last epoch")
    optimization = parser.add_argument_group("optimization").add_argument
    optimization("--epochs", type=number(int, 1), help="passes over the training images")
    add_weight_options(optimization, rate)
    optimization("--init_weights", metavar="FILE", help="start from these weights; default: from random ones")
    add = parser.add_argument_group("testing").add_argument
    add("--eval", action="store_true", help="only test --weights on the test set")
    add("--weights", help="a state_dict, or a checkpoint that holds one; no default: --eval needs it")
    return optimization


def add_run_options(parser: Parser, seed: int, report_freq: int):
    """The options that all training scripts have."""
    add = parser.add_argument_group("run").add_argument
    add("--save", default="runs", help="the run directory is SAVE/KIND-NOTE-TIME")
    add("--note", type=file_name, default="try", help="a name for this run")
    add("--seed", type=number(int, 0), default=seed, help="of everything random")
    add("--report_freq", type=number(int, 1), default=report_freq, help="steps between log lines")
    add("--resume", metavar="RUN_DIR", help="continue this run where it was saved; default: a new run")
    add("--device", help="cuda, mps or cpu; default: the best there is")
    add("--amp", choices=["off", "bf16", "fp16"], default="off", help="mixed precision")
    add("--compile", action="store_true", help="compile the network: a slow start, then faster steps")
    add("--tensorboard", action="store_true", help="write the scalars for TensorBoard too")
    add("--deterministic", action="store_true", help="bit-identical repeats on CUDA too, slower")
    return add


# what doesn't change a run's result, and so may change when it is resumed
MAY_CHANGE = {"resume", "tmp_data_dir", "workers", "report_freq", "device", "tensorboard", "grad_checkpoint"}


def parse_args(parser: Parser, kind: str) -> Namespace:
    """The command line; with --resume that run's options. Exits with status 2 where it contradicts them, or itself."""
    args = parser.parse_args()
    if args.tensorboard and importlib.util.find_spec("tensorboard") is None:
        parser.error("--tensorboard: TensorBoard is not installed; pip install tensorboard, or leave it out")
    if args.resume is not None:
        record = runs.read_args(args.resume)
        if record["kind"] != kind:
            raise ValueError(f"--resume {args.resume} is a run of kind {record['kind']}, not {kind}: "
                             "use its own script")
        saved = record["args"]
        unset = Namespace(**dict.fromkeys(vars(args)))  # None: not on the command line
        for name, value in vars(parser.parse_args(namespace=unset)).items():
            if value is None:
                setattr(args, name, saved.get(name, getattr(args, name)))
            elif name not in MAY_CHANGE and value != saved.get(name):
                parser.error(f"--{name} {value} differs from the run's {saved.get(name)}: leave it out with --resume")
    if "eval" in args and args.eval != bool(args.weights):
        parser.error("--eval and --weights go together: --eval --weights FILE tests the weights in FILE")
    if "eval" in args and args.eval and args.init_weights:
        parser.error("--eval trains nothing that --init_weights could start: leave one out")
    return args


def choose_dataset(parser: Parser, args: Namespace) -> None:
    """Fill in --dataset and --tmp_data_dir; exits with status 2 where --cifar100 contradicts --dataset."""
    if args.cifar100 and args.dataset not in (None, "cifar100"):
        parser.error(f"--cifar100 and --dataset {args.dataset} contradict each other: leave one out")
    args.dataset = args.dataset or ("cifar100" if args.cifar100 else "cifar10" if args.tmp_data_dir else "digits")
    args.tmp_data_dir = args.tmp_data_dir or "data"


def run(main, parse) -> None:
    """Call main(parse()); what a person can mend ends in one line and exit status 1, a signal in 128 + its number."""
    handler = logging.StreamHandler()
    handler.setLevel(logging.INFO if _is_first() else logging.ERROR)
    log.addHandler(handler)
    log.addHandler(MemoryHandler(10_000))  # until there is a log.txt
    log.setLevel(logging.DEBUG)
    args = Namespace()
    try:
        args = parse()
        main(args)
    except parallel.Stopped as stopped:  # all processes, for the same reason
        status, why = stopped.args[0], " ".join(stopped.args[1].split())  # a file's name may have line breaks
        if vars(args).get("resume"):
            why += "; continue with: " + parallel.continue_command(shlex.join([sys.argv[0], "--resume", args.resume]))
        if parallel.rank() == 0:
            log.error(why)
        sys.exit(status)
    except KeyboardInterrupt:
        log.error("stopped by SIGINT before the run began")
        sys.exit(128 + signal.SIGINT)
    except (ValueError, OSError, RuntimeError, MemoryError) as error:
        line = _explain(error, args)
        if line is None:
            raise
        log.debug("traceback of the error below", exc_info=True)  # into log.txt only
        log.error(f"error: {line}")
        sys.exit(1)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def _is_first() -> bool:
    """Whether this process is alone, or the first of several, before they have met; one in doubt speaks for itself."""
    try:
        return not parallel.launched() or os.environ["RANK"] == "0"
    except ValueError:  # half a set, which is refused later
        return True


def _explain(error: Exception, args: Namespace) -> str | None:
    """An error in one line, with what to do; None for one that only a programmer can mend."""
    text, known = " ".join(str(error).split()), vars(args)
    if not isinstance(error, (RuntimeError, MemoryError)):
        return text
    if "DataLoader worker" in text and re.search("shared memory|Bus error|No space left", text):
        return ("a process that reads images had too little shared memory (/dev/shm): give fewer --workers, or 0, or "
                f"more of it, in Docker by --shm-size=8g{_go_on(known)}")
    if re.search("DataLoader worker .*(is killed|exited unexpectedly)", text):
        return f"a process that reads images was killed, for lack of memory maybe: give fewer --workers{_go_on(known)}"
    if parallel.world_size() > 1 and re.search("onnection (closed|reset) by|Broken pipe|remote process exited", text):
        return f"another process of this run has ended, its own output says why{_go_on(known)}"
    if isinstance(error, RuntimeError) and not re.search("out of memory|allocate memory", text):
        return None
    hints = ["--grad_checkpoint"] if known.get("grad_checkpoint") is False else []
    size, processes = known.get("batch_size", 0), parallel.world_size()
    fewest = 1 if known.get("eval") else 2 * processes  # batch norm trains on 2 or more
    smaller = max(fewest, size // 2 // processes * processes)
    hints += [f"a new run with --batch_size {smaller}"] if smaller < size else []
    return f"out of memory: try {', or '.join([*hints, 'a device with more memory'])}"


def _go_on(args: dict) -> str:
    return f"; continue with --resume {args['resume']}" if args.get("resume") else ""

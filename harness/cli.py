"""Command lines: the parser, option types, the options that several scripts share, and how a program runs and ends."""
import argparse
import contextlib
import difflib
import glob
import importlib.util
import itertools
import logging
import os
import re
import shlex
import signal
import sys
from argparse import Namespace
from pathlib import Path

from harness import errors, launchers, process, records
from harness.log import log, printable
from harness.process import Stopped


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Adds each option's default, unless its help names it."""

    def _get_help_string(self, action):
        unneeded = action.required or action.dest == "help" or (action.default is None and action.nargs != 0)
        if not action.option_strings or unneeded or "default" in action.help:
            return action.help
        return action.help + ("; default: off" if action.nargs == 0 else "; default: %(default)s")


class Parser(argparse.ArgumentParser):
    """An argument parser without abbreviations, whose errors are one line."""

    def __init__(self, description: str):
        super().__init__(description=description, allow_abbrev=False, formatter_class=HelpFormatter)

    def parse_known_args(self, args=None, namespace=None):
        """Expands ~ in any option, and * in RUN_DIR..., since not every shell does."""
        words = [re.sub("^(--[a-z_]+=)?(~.*)", lambda match: (match[1] or "") + os.path.expanduser(match[2]), word,
                        flags=re.DOTALL) for word in (sys.argv[1:] if args is None else args)]
        found, rest = super().parse_known_args(words, namespace)
        if "run_dirs" in found:
            found.run_dirs = [path for name in found.run_dirs
                              for path in (not os.path.exists(name) and sorted(glob.glob(name)) or [name])]
        return found, rest

    def error(self, message: str):
        options = [option for action in self._actions for option in action.option_strings]
        words = [word.split("=")[0] for word in message.split() if word.startswith("--")]
        lists = [action.option_strings[0] for action in self._actions if isinstance(action, argparse._AppendAction)]
        near = difflib.get_close_matches(words[0], options) if words and "unrecognized" in message else []
        if any(word.startswith(("--local-rank", "--local_rank")) for word in words):
            near, hint = [], "python -m torch.distributed.launch adds it: use torchrun --nproc_per_node=N instead"
        elif lists and (found := re.search(rf"argument ({'|'.join(lists)}): '[^']*[ ,]|arguments: [\d.]", message)):
            hint = "repeat the option for each of its values: {0} FIRST {0} SECOND".format(found[1] or lists[0])
        else:
            hint = f"did you mean {' or '.join(near)}?" if near else "--help lists the options"
        # All processes of a launch have the same command line: the first reports the error.
        line = printable(f"{self.prog}: error: {message}; {hint}")
        self.exit(2, f"{line}\n" if _is_first() else None)


def number(kind: type, low: float, high: float = 1e38):
    """The type of a numeric option: `kind` (int or float) in [low, high); by default up to float32's range."""
    def parse(text: str):
        with contextlib.suppress(ValueError):
            if low <= kind(text) < high:
                return kind(text)
        what = "a whole number" if kind is int else "a number"
        raise argparse.ArgumentTypeError(f"{text[:40]!r} must be {what}, at least {low} and below {high:g}")
    return parse


def file_name(text: str) -> str:
    """The type of an option that becomes part of a file's name."""
    if len(os.fsencode(text)) > 200:
        raise argparse.ArgumentTypeError(f"{text[:40]!r}... becomes part of a directory's name: use at most 200 bytes")
    if not text.isprintable() or {"/", os.sep} & set(text):
        raise argparse.ArgumentTypeError(f"{text[:40]!r} becomes part of a directory's name: omit slashes")
    return text


# ---- options that several scripts share; each function returns the group's add_argument, to add more

def add_image_options(parser: Parser, datasets: tuple[str, ...]):
    """The data of train_search.py and train_cifar.py."""
    add = parser.add_argument_group("data").add_argument
    add("--tmp_data_dir", help="where the dataset is, or is downloaded to; default: data")
    add("--dataset", choices=datasets, help="default: cifar10, or digits without --tmp_data_dir")
    add("--cifar100", action="store_true", help="the same as --dataset cifar100")
    add("--image_size", type=number(int, 1), help="resize the images; default: the dataset's own size")
    add("--cutout", action="store_true", help="cut a square out of training images")
    add("--cutout_length", type=number(int, 1), help="cutout side; default: image side/2")
    add("--workers", type=number(int, 0), default=2, help="loader workers per rank (imagenet search only)")
    return add


def add_weight_options(add, rate: str) -> None:
    """The training of the weights by SGD. rate: help on the learning rate."""
    add("--batch_size", type=number(int, 1), help="global batch size, over all ranks")
    add("--learning_rate", type=number(float, 0), help=rate)
    add("--momentum", type=number(float, 0, 1), default=0.9, help="SGD momentum")
    add("--weight_decay", type=number(float, 0), help="weight decay of the weights")
    add("--grad_clip", type=number(float, 0), default=5.0, help="largest gradient norm: larger ones are scaled")


def add_evaluation_options(parser: Parser, min_channels: int, rate: str):
    """The network of an evaluation, its training, and testing without training."""
    add = parser.add_argument_group("network").add_argument
    add("--arch", default="PDARTS", help="the cell: a name, random:SEED, a run, a file or Genotype(...)")
    add("--init_channels", type=number(int, min_channels), help="channels of the first cell")
    add("--max_multiply_adds", type=number(float, 0), metavar="M",
        help="the most channels within M million multiply-adds, as published; default: off")
    add("--layers", type=number(int, 1), help="number of cells")
    add("--auxiliary", action="store_true", help="train with the auxiliary head")
    add("--auxiliary_weight", type=number(float, 0), default=0.4, help="weight of the auxiliary loss")
    add("--drop_path_prob", type=number(float, 0, 1), help="final drop path probability, linear from 0")
    optimization = parser.add_argument_group("optimization").add_argument
    optimization("--epochs", type=number(int, 1), help="passes over the training images")
    add_weight_options(optimization, rate)
    optimization("--valid_portion", type=number(float, 0, 1),
                 help="fraction held out to choose best.pt; default: none")
    optimization("--init_weights", metavar="FILE", help="start from these weights; default: random weights")
    add = parser.add_argument_group("testing").add_argument
    add("--eval", action="store_true", help="only test --weights on the test set")
    add("--weights", help="state_dict, or checkpoint with one, for --eval; default: none")
    add("--predictions", metavar="FILE", help="CSV file that --eval writes, a line per image; default: none")
    return optimization


def add_run_options(parser: Parser, seed: int, report_freq: int):
    """The options that all training scripts share."""
    add = parser.add_argument_group("run").add_argument
    add("--save", default="runs", help="the run directory is SAVE/KIND-NOTE-TIME")
    add("--note", type=file_name, default="try", help="a name for this run")
    add("--seed", type=number(int, 0, 2**63), default=seed, help="seed of everything random")
    add("--report_freq", type=number(int, 1), default=report_freq, help="steps between log lines")
    add("--resume", metavar="RUN_DIR", help="resume this run; default: a new run")
    add("--device", help="cuda, mps or cpu; default: the first available")
    add("--amp", choices=["off", "bf16", "fp16"], default="off", help="mixed precision")
    add("--tf32", action="store_true", help="float32 convolutions and matmuls in TF32 (10 bits) on recent GPUs")
    add("--fast", choices=["auto", "on", "off"], default="auto", help="off: train the reference networks without fast/")
    add("--compile", action="store_true", help="compile the network: a slow start, then faster steps")
    add("--tensorboard", action="store_true", help="also write the scalars for TensorBoard")
    add("--deterministic", action="store_true", help="bit-identical repeats on CUDA too; slower")
    return add


# options that do not change a run's result, and so may change when it is resumed
MAY_CHANGE = {"resume", "tmp_data_dir", "workers", "report_freq", "device", "tensorboard", "grad_checkpoint", "fast"}


def parse_args(parser: Parser, kind: str, argv: list[str] | None = None) -> Namespace:
    """The command line (argv: its words, by default the program's); with --resume that run's options.

    Exits with status 2 if it contradicts them, or itself.
    """
    args = parser.parse_args(argv)
    given = vars(parser.parse_args(argv, Namespace(**dict.fromkeys(vars(args)))))  # None: not on the command line
    if args.tensorboard and importlib.util.find_spec("tensorboard") is None:
        parser.error("--tensorboard: TensorBoard is not installed; pip install tensorboard, or omit it")
    if args.resume is not None:
        record = records.read_args(args.resume)
        if record["kind"] != kind:
            raise ValueError(f"--resume {args.resume} is a run of kind {record['kind']}, not {kind}: "
                             "use its own script")
        saved = _parse_saved(parser, Path(args.resume, "args.json"), record)
        for name, value in given.items():
            if value is None:
                setattr(args, name, saved[name])
            elif name not in MAY_CHANGE and value != saved[name]:
                parser.error(f"--{name} {value} differs from the run's {saved[name]}: omit it with --resume")
    if "eval" in args and args.eval != bool(args.weights):
        parser.error("--eval and --weights go together: --eval --weights FILE tests the weights in FILE")
    if vars(args).get("max_multiply_adds") is not None and args.resume is None and given["init_channels"] is not None:
        parser.error("--max_multiply_adds chooses the channels, so --init_channels is unused: omit one")
    if "eval" in args and args.predictions and not args.eval:
        parser.error("--predictions goes with --eval: a training run writes predictions.csv without it")
    if "eval" in args and args.eval and args.init_weights:
        parser.error("--eval does not train, so --init_weights is unused: omit one")
    return args


def _parse_saved(parser: Parser, path: Path, record: dict) -> dict:
    """A run's options, parsed as a command line is, and compared with those in its checkpoint. Raises ValueError."""
    from harness import checkpoints  # it imports torch
    def reject(message: str):
        raise ValueError(f"{path}: {message}: restore the file")

    saved, words = records.options_of(record), []
    for action in parser._actions[1:]:  # the first is --help
        if action.dest not in saved:
            reject(f"no {action.dest!r}")
        value = saved[action.dest]
        if action.nargs == 0:
            words += action.option_strings[:value is True]
        elif value is not None:
            words += [f"{action.option_strings[0]}={one}" for one in (value if isinstance(value, list) else [value])]
    parser.error = reject
    parsed = vars(parser.parse_args(words))
    del parser.error
    kept = (checkpoints.load(path.parent, record["kind"]) or {}).get("args", {})  # older checkpoints have none
    for name, value in (saved | parsed).items():  # the candidates of a search are no option
        if saved[name] != value or kept.get(name, value) != value:
            reject(f"{name!r} can't be {str(saved[name])[:40]!r} in this run")
    return parsed


def choose_dataset(parser: Parser, args: Namespace) -> None:
    """Fill in --dataset and --tmp_data_dir; exits with status 2 if --cifar100 contradicts --dataset."""
    if args.cifar100 and args.dataset not in (None, "cifar100"):
        parser.error(f"--cifar100 and --dataset {args.dataset} contradict each other: omit one")
    args.dataset = args.dataset or ("cifar100" if args.cifar100 else "cifar10" if args.tmp_data_dir else "digits")
    args.tmp_data_dir = args.tmp_data_dir or "data"


def run(main, parse) -> None:
    """Call main(parse()); a fixable error ends in one line and exit status 1, a signal in 128 + its number."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # it is closed: without this, a file of the run would get its number
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w"))
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # tables on a terminal without Unicode, such as cp1252
    with process.restored(logging.INFO if _is_first() else logging.ERROR):
        args, together = Namespace(), False  # whether all ranks end, and for the same reason
        try:
            args = parse()
            main(args)
            sys.stdout.flush()  # here an error is explained; at the interpreter's exit it is not
            together = True
        except Stopped as stopped:
            together = True
            status, reason = stopped.args[0], " ".join(stopped.args[1].split())  # a file's name may have line breaks
            if vars(args).get("resume"):
                first = itertools.takewhile(lambda word: not word.startswith("-"), sys.argv[1:])  # a control's name
                words = shlex.join([sys.argv[0], *first, "--resume", args.resume])
                reason += f"; continue with: {launchers.continue_command(words)}"
            if launchers.rank() == 0:
                log.error(reason)
            sys.exit(status)
        except KeyboardInterrupt:
            resume = errors.resume_hint(vars(args))
            log.error(f"stopped by SIGINT; the unfinished epoch is lost{resume}" if resume else
                      "stopped by SIGINT before the run began")
            sys.exit(128 + signal.SIGINT)
        except (ValueError, OSError, RuntimeError, MemoryError, ImportError) as error:
            line = errors.explain(error, args)
            if line is None:
                raise
            log.debug("traceback of the error below", exc_info=True)  # into log.txt only
            log.error(f"error: {line}")
            _discard_output()
            sys.exit(1)
        finally:
            if parallel := sys.modules.get("harness.parallel"):  # it imports torch, which not every program needs
                parallel.leave(together)


def _discard_output() -> None:
    """Discard what can't be printed, or the interpreter would try again at its exit, and fail with status 120."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError):  # it has no file descriptor
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _is_first() -> bool:
    """Whether this process is alone, or the first of several, before their rendezvous; if in doubt, True."""
    try:
        return launchers.rank() == 0
    except ValueError:  # an incomplete set of variables, rejected later
        return True

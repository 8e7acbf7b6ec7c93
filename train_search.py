"""Search for a cell with P-DARTS: three stages over deeper supernets and fewer candidates (arXiv 1904.12760).

One device (CUDA, else MPS, else the CPU); the published command works unchanged:
    python train_search.py --tmp_data_dir DIR --save log_path --add_layers 6 --add_layers 12 \\
        --dropout_rate 0.1 --dropout_rate 0.4 --dropout_rate 0.7 --note note_of_this_run
Several GPUs:
    torchrun --nproc_per_node=8 train_search.py --tmp_data_dir DIR
Without --tmp_data_dir and --dataset it searches on scikit-learn's 8x8 digits, which need no download. Writes
SAVE/search-NOTE-TIME/ with genotype.json, the cell for train_cifar.py --arch, and all measurements.
"""
import json
import sys
from argparse import Namespace
from dataclasses import dataclass, field

sys.path.insert(0, __file__.removesuffix("train_search.py"))  # python -I and -P omit it

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import engine
import fast
import genotypes
import progressive
import utils
from architect import Architect
from genotypes import Genotype, count_skips
from harness import cli, parallel, process, records, weights
from harness.cli import number
from harness.files import write_file
from harness.log import log
from harness.runs import Run
from input_pipeline import search_parts
from input_pipeline.search_parts import SearchData
from input_pipeline.sets import DATASETS
from model import NetworkCIFAR, NetworkImageNet
from model_search import Network
from progressive import Choices, Stage
from reporting.page import training_command, try_to_draw


def get_args_parser() -> cli.Parser:
    parser = cli.Parser(__doc__)
    add = cli.add_image_options(parser, (*DATASETS, "imagenet"))
    add("--train_portion", type=number(float, 0.001, 1), default=0.5, help="fraction of images for the weights")
    add("--valid_portion", type=number(float, 0.001, 1), help="fraction of images for the alphas; default: the rest")
    add = parser.add_argument_group("stages").add_argument
    add("--stem", choices=["cifar", "imagenet"], help="stem for small or large images; default: by --dataset")
    add("--layers", type=number(int, 1), default=5, help="number of cells in stage 1")
    add("--add_layers", type=number(int, 0), action="append", help="cells added in stages 2, 3; default: 6 12")
    add("--init_channels", type=number(int, 1), default=16, help="channels of the first cell")
    add("--add_width", type=number(int, 0), action="append", help="channels added in stages 2, 3; default: 0 0")
    add("--dropout_rate", type=number(float, 0, 1), action="append",
        help="initial skip dropout, once per stage; default: 0.1 0.4 0.7")
    add("--epochs", type=number(int, 1), default=25, help="epochs per stage")
    add("--warmup_epochs", type=number(int, 0), default=10, help="first epochs of a stage, weights only")
    add("--max_skip", type=number(int, 0), default=2, help="limit M on skip-connects in the normal cell")
    add = parser.add_argument_group("weights").add_argument
    cli.add_weight_options(add, rate="learning rate of epoch 0, then cosine to --learning_rate_min")
    add("--learning_rate_min", type=number(float, 0), default=0.0, help="final learning rate of the cosine schedule")
    add("--drop_path_prob", type=number(float, 0, 1), default=0.3, help="unused, as in the published search")
    add = parser.add_argument_group("alphas").add_argument
    add("--arch_learning_rate", type=number(float, 0), default=6e-4, help="learning rate of the alphas (Adam)")
    add("--arch_weight_decay", type=number(float, 0), default=1e-3, help="weight decay of the alphas")
    add = cli.add_run_options(parser, seed=2, report_freq=50)
    add("--grad_checkpoint", action="store_true", help="activation checkpointing per cell: least memory, slower")
    parser.set_defaults(batch_size=96, learning_rate=0.025, weight_decay=3e-4)
    return parser


def parse_args(argv: list[str] | None = None) -> Namespace:
    """The command line, or these words, with its defaults filled in; exits with status 2 if it is invalid."""
    parser = get_args_parser()
    args = cli.parse_args(parser, "search", argv)
    cli.choose_dataset(parser, args)
    check_options(parser, args)
    args.dropout_rate = args.dropout_rate or [0.1, 0.4, 0.7]  # deviation: none in the published code
    args.add_layers, args.add_width = args.add_layers or [6, 12], args.add_width or [0, 0]
    try:
        stages = make_stages(args)
    except ValueError as error:
        parser.error(str(error))
    args.candidates = genotypes.PRIMITIVES  # recorded, since a script can replace some (docs/own-operations.md)
    if args.resume:
        args.candidates = records.options_of(records.read_args(args.resume))["candidates"]
        if not sum(stage.num_drop for stage in stages) + 1 < len({*args.candidates}) == len(args.candidates):
            raise ValueError(f"{args.resume}/args.json: 'candidates' can't be {args.candidates}: restore the file")
    if args.warmup_epochs >= args.epochs:
        parser.error(f"--warmup_epochs {args.warmup_epochs} leaves no alpha steps in --epochs {args.epochs}: lower it")
    return args


def check_options(parser: cli.Parser, args: Namespace) -> None:
    """Fill in what --dataset imagenet implies; exits with status 2 if options contradict each other."""
    streamed = args.dataset == "imagenet"
    args.stem = args.stem or ("imagenet" if streamed else "cifar")
    if streamed:
        args.image_size = args.image_size or 224
    if streamed and args.cutout:
        parser.error("--cutout is for images in memory, --dataset imagenet has random crops: omit it")
    if args.stem == "imagenet" and args.init_channels < 2:
        parser.error(f"--init_channels {args.init_channels} is too narrow for --stem imagenet: use 2 or more")
    if args.valid_portion is not None and args.train_portion + args.valid_portion > 1 + 1e-9:
        parser.error(f"--train_portion {args.train_portion} and --valid_portion {args.valid_portion} overlap: lower "
                     "one, their sum must not exceed 1")
    for option in ("compile", "grad_checkpoint"):
        if args.fast == "off" and getattr(args, option):
            parser.error(f"--{option} is a part of fast/, which --fast off does not use: omit one of them")


def make_stages(args: Namespace) -> list[Stage]:
    return progressive.stage_table(args.layers, args.init_channels, args.add_layers, args.add_width, args.dropout_rate)


# ---- the search

@dataclass
class Progress:
    """The state of a search besides its epoch."""
    normal: list  # candidates per edge
    reduce: list
    stage: int = 1
    alphas: dict = field(default_factory=dict)  # content of alphas.npz


def begin(args: Namespace) -> Progress:
    """The state of a search before its first epoch: every edge has all candidates."""
    candidates = [args.candidates] * progressive.EDGES
    return Progress(candidates, candidates)


@process.restored()
def main(args: Namespace) -> None:
    stages = make_stages(args)
    costs = progressive.epoch_costs(stages, args.epochs, args.warmup_epochs)
    device = utils.pick_device(args.device, args.deterministic, args.tf32, args.amp)
    parallel.init_distributed(device)
    source = search_parts.open_data(args, device)
    check_size(stages[0], source.data["image_size"], args, device)  # what later stages need depends on their candidates
    device_words = utils.describe_device(device)
    run = Run.open("search", args, device_words, begin(args), costs)
    engine.keep_data(run, source.data)
    log_start(run, source)
    for stage in stages[run.state.stage - 1:]:  # deeper supernets over fewer candidates
        # Each stage begins with fresh weights and fresh alphas.
        architect, optimizer = build_stage(stage, run, source, device)
        for epoch in run.epochs_left():
            label = f"stage {stage.number} epoch {epoch}"
            meter = engine.Meter(label, len(source.train_batches), args.report_freq, run.seconds_left)
            with run.epoch(meter):  # on a signal or a bad image, saves run and meter mid-epoch
                search_parts.seek(source, stage.number, epoch, meter.steps, args)
                record = search_epoch(stage, epoch, architect, optimizer, source, meter, args)
                if epoch >= args.epochs - 4:  # the last 4 epochs of a stage, as published
                    record |= engine.validate(architect.model, source.validation(), label, meter)
            end_epoch(run, architect, record)
        log_choices(run.metrics[-1])
        # The weakest candidates of each edge are dropped, so the next supernet can be deeper.
        choices = read_choices(run.state, architect.alphas)
        if stage.num_drop:
            start_next_stage(run, stage, choices)
    # The strongest candidates of stage 3 form the cell, whose skip-connects are then limited (section 3.3).
    genotype, restricted = progressive.derive_genotype(*choices), progressive.restrict_skip_connects(*choices)
    if parallel.rank() == 0:
        report(run, genotype, restricted, device)


def search_epoch(stage: Stage, epoch: int, architect: Architect, optimizer: torch.optim.Optimizer, source: SearchData,
                 meter: engine.Meter, args: Namespace) -> dict:
    """One pass over the weights' images -> its record. After warm-up every step is bilevel: alphas, then weights."""
    network = architect.model
    optimizer.param_groups[0]["lr"] = lr = engine.cosine(args.learning_rate, args.learning_rate_min, epoch, args.epochs)
    network.skip_dropout = progressive.skip_dropout_rate(stage.skip_dropout, epoch, args.epochs, args.warmup_epochs)
    bilevel = epoch >= args.warmup_epochs
    # The alphas have their own endless stream of batches; warm-up takes none of it.
    pairs = ((batch, source.valid_batches.next() if bilevel else None) for batch in source.train_batches)
    for (images, target), held_out in meter.remaining(pairs):
        # Reseeding each step makes a resumed run equal an uninterrupted one.
        utils.seed_everything(args.seed, stage.number, 1 + epoch, meter.steps)
        # First order: the alphas' gradient is taken at the current weights, on the held-out split.
        if bilevel:
            architect.step(*held_out)
        # Then the weights take their step with the alphas fixed.
        loss, logits = weight_step(network, optimizer, images, target, args.grad_clip, architect.scaler)
        meter.update(loss, logits, target)
    loss, top1, _ = meter.finish()
    parallel.broadcast(network, buffers_only=True)  # batch norm statistics differ between ranks
    weights.check_finite(network, meter.label)
    return {"stage": stage.number, "epoch": epoch, "lr": lr, "skip_dropout": network.skip_dropout, "train_loss": loss,
            "train_acc": top1, "valid_loss": None, "valid_acc": None, **meter.timing,
            "alpha_steps": len(source.train_batches) * max(0, epoch + 1 - args.warmup_epochs)}


def weight_step(model: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, target: Tensor, grad_clip: float,
                scaler: torch.amp.GradScaler | None = None) -> tuple[Tensor, Tensor]:
    """One update of the weights on a batch (B, 3, H, W), (B,), the alphas fixed -> loss (), logits (B, num_classes)."""
    scaler = scaler or torch.amp.GradScaler(images.device.type, enabled=False)
    for alpha in (model.alphas_normal, model.alphas_reduce):
        alpha.requires_grad_(False)  # nothing is saved for their backward pass
    logits = model(images)
    loss = F.cross_entropy(logits, target)
    optimizer.zero_grad()
    scaler.scale(loss).backward()
    for alpha in (model.alphas_normal, model.alphas_reduce):
        alpha.requires_grad_(True)
    parallel.average_gradients(optimizer.param_groups[0]["params"])
    utils.clipped_step(optimizer, scaler, grad_clip)
    return loss.detach(), logits.detach()


def start_next_stage(run: Run, stage: Stage, choices: Choices) -> None:
    """Prune the candidates of each edge, advance to the next stage, and draw the run so far."""
    advance(run.state, stage, choices)
    run.next_epoch = 0
    if parallel.rank() == 0:
        try_to_draw(run.path)


def advance(progress: Progress, stage: Stage, choices: Choices) -> None:
    """Prune the candidates of each edge for the stage that follows this one."""
    normal, normal_probs, reduce, reduce_probs = choices
    progress.normal = progressive.prune(normal, normal_probs, stage.num_drop)
    progress.reduce = progressive.prune(reduce, reduce_probs, stage.num_drop)
    progress.stage = stage.number + 1


def read_choices(progress: Progress, alphas: list[Tensor]) -> Choices:
    """The candidates of a stage and their probabilities (alphas: both cells', (14, K)), from which to choose."""
    normal, reduce = (F.softmax(alpha.detach(), dim=-1).tolist() for alpha in alphas)
    return Choices(progress.normal, normal, progress.reduce, reduce)


# ---- set-up, records and results

def check_size(stage: Stage, image_size: int, args: Namespace, device: torch.device) -> None:
    """Raise ValueError if images are too small for the stem, or so large that the stage does not fit on the device."""
    if args.stem == "imagenet" and image_size < 32:
        raise ValueError(f"--stem imagenet needs images of 32x32 or more, not {image_size}x{image_size}: use "
                         "--stem cifar, or a larger --image_size")
    images = args.batch_size / parallel.world_size() / (1 if args.amp == "off" else 2)
    size = image_size / (8 if args.stem == "imagenet" else 1)
    needed = images * progressive.min_bytes(stage, size, args.grad_checkpoint)
    memory = utils.device_memory(device)
    if memory is not None and needed > memory:
        instead = [hint for hint, helps in (("--stem imagenet", args.stem == "cifar" and image_size >= 32),
                                            ("--grad_checkpoint", not args.grad_checkpoint)) if helps]
        raise ValueError(f"stage {stage.number} needs at least {needed / 2**30:.0f} GiB of memory at "
                         f"{image_size}x{image_size} with --stem {args.stem}, and there are {memory / 2**30:.1f}: use "
                         f"{', '.join([*instead, 'a smaller --batch_size or --image_size'])}")


def log_start(run: Run, source: SearchData) -> None:
    """Log the data, the device, and how many steps a stage takes."""
    args, steps, size = run.args, len(source.train_batches), source.data["image_size"]
    log.info(f"{run.path}: {args.dataset}, {len(source.data['classes'])} classes at {size}x{size}, "
             f"{source.num_images[0]} training images for the weights, {source.num_images[1]} for the alphas, on "
             f"{parallel.world_size()} x {run.device}; a stage takes {args.epochs * steps} weight "
             f"steps and {(args.epochs - args.warmup_epochs) * steps} alpha steps")


def build_stage(stage: Stage, run: Run, source: SearchData,
                device: torch.device) -> tuple[Architect, torch.optim.Optimizer]:
    """A stage's supernet with its optimizers, restored from the checkpoint if the run is resumed in the stage."""
    args = run.args
    utils.seed_everything(args.seed, stage.number)
    network = Network(stage.channels, len(source.data["classes"]), stage.layers, run.state.normal, run.state.reduce,
                      stem=args.stem).to(device)
    network.grad_checkpoint, network.fast = args.grad_checkpoint, utils.use_fast(args.fast, device)
    if args.compile and network.fast:
        fast.compile_cells(network)
    parallel.broadcast(network)
    architect = Architect(network, args.arch_learning_rate, args.arch_weight_decay, args.grad_clip)
    architect.scaler = utils.set_precision(network, args.amp)
    optimizer = utils.sgd(architect.weights, args.learning_rate, args.momentum, args.weight_decay)
    run.keep(network=network, optimizer=optimizer, alpha_optimizer=architect.optimizer, scaler=architect.scaler,
             train_batches=source.train_batches, valid_batches=source.valid_batches)
    return architect, optimizer


def end_epoch(run: Run, architect: Architect, record: dict) -> None:
    """Add to an epoch's record how decided the alphas are and how far they moved, and save the run."""
    network, choices = architect.model, read_choices(run.state, architect.alphas)
    # A resumed run builds the same supernet again before it restores it, so its alphas start at the same values.
    start, alphas = (torch.cat(pair).tolist() for pair in (architect.start, architect.alphas))  # (28, K)
    genotype = progressive.derive_genotype(*choices)
    record |= {"skips": count_skips(genotype.normal),
               **progressive.measure_choices(choices.normal_probs + choices.reduce_probs),
               **progressive.measure_walk(start, alphas, run.args.arch_learning_rate, record["alpha_steps"]),
               "peak_memory_mb": utils.peak_memory_mb(network.alphas_normal.device)}
    for cell in ("normal", "reduce"):
        name, alphas = f"stage{record['stage']}_{cell}", getattr(network, f"alphas_{cell}")
        run.state.alphas.setdefault(name, []).append(alphas.detach().cpu().clone())
        run.state.alphas[f"{name}_candidates"] = getattr(run.state, cell)
    run.end_epoch(record)


def log_choices(record: dict) -> None:
    """Log how decided the choices of a stage are, from its last record."""
    if "lead" in record:  # older runs lack it
        log.info(f"stage {record['stage']}: {progressive.describe_choices(record)}")
    if record.get("displacement") is not None:  # nor had the alphas a learning rate of 0
        log.info(progressive.DIRECTION)


def describe(max_skip: int | None, genotype: Genotype, stem: str = "cifar") -> dict:
    """A row of genotypes.json: a cell and its network's size, in the evaluation setting that matches the stem."""
    with torch.device("meta"):  # only shapes are needed
        network, size = ((NetworkImageNet(48, 1000, 14, False, genotype), 224) if stem == "imagenet" else
                         (NetworkCIFAR(36, 10, 20, False, genotype), 32))
    return {"max_skip": max_skip, "skips": count_skips(genotype.normal), "parameters": utils.count_parameters(network),
            "multiply_adds": utils.count_multiply_adds(network, size), "genotype": genotype._asdict()}


def report(run: Run, genotype: Genotype, restricted: dict[int, Genotype], device: torch.device) -> None:
    """Write genotypes.json (each limit M that changes the cell) and genotype.json; log the cost and next command."""
    args, max_skip = run.args, run.args.max_skip
    table = [describe(M, cell, args.stem) for M, cell in {None: genotype, **restricted}.items()]
    write_file(run.path / "genotypes.json", json.dumps(table, indent=1).encode())
    chosen = progressive.recommended(genotype, restricted, max_skip)
    write_file(run.path / "genotype.json", genotypes.to_json(chosen))
    for row in table:
        name = "unrestricted" if row["max_skip"] is None else f"M = {row['max_skip']}"
        log.info(f"{name}: {row['skips']} skip-connects, "
                 f"{row['parameters'] / 1e6:.2f}M parameters, {row['multiply_adds'] / 1e6:.1f}M multiply-adds")
    try_to_draw(run.path)
    log.info(f"genotype (at most {max_skip} skip-connects): {chosen}")
    hours, kind = run.device_hours(), "CPU" if device.type == "cpu" else "GPU"
    log.info(f"search cost: {hours:.2f} {kind}-hours, {hours / 24:.3f} {kind}-days")
    log.info(f"train it: {training_command(run.path, vars(args))}")


if __name__ == "__main__":
    cli.run(main, parse_args)

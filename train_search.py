"""Search for a cell with P-DARTS: three stages over deeper supernets and fewer candidates (arXiv 1904.12760).

One GPU (or MPS, or the CPU, whatever there is); the published command works as it stands:
    python train_search.py --tmp_data_dir DIR --save log_path --add_layers 6 --add_layers 12 \\
        --dropout_rate 0.1 --dropout_rate 0.4 --dropout_rate 0.7 --note note_of_this_run
Several GPUs:
    torchrun --nproc_per_node=8 train_search.py --tmp_data_dir DIR
Without --tmp_data_dir and --dataset it searches on scikit-learn's 8x8 digits, which need no download. Expect
SAVE/search-NOTE-TIME/ with genotype.json, to be trained by train_cifar.py --arch, and everything that was measured.
"""
import json
import time
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import cli
import data
import engine
import fast
import genotypes
import parallel
import progressive
import runs
import search_data
import utils
import visualize
from architect import Architect
from cli import number
from genotypes import Genotype, count_skips
from model import NetworkCIFAR, NetworkImageNet
from model_search import Network
from progressive import Stage
from report import training_command
from runs import log


def get_args_parser() -> cli.Parser:
    parser = cli.Parser(__doc__)
    add = cli.add_image_options(parser, (*data.DATASETS, "imagenet"))
    add("--train_portion", type=number(float, 0.001, 1), default=0.5, help="share of the images that trains weights")
    add("--valid_portion", type=number(float, 0.001, 1), help="share that trains alphas; default: the rest")
    add = parser.add_argument_group("stages").add_argument
    add("--stem", choices=["cifar", "imagenet"], help="imagenet: for large images; default: with --dataset imagenet")
    add("--layers", type=number(int, 1), default=5, help="cells of stage 1")
    add("--add_layers", type=number(int, 0), action="append", help="in stages 2, 3; default: 6 12")
    add("--init_channels", type=number(int, 1), default=16, help="channels of the first cell")
    add("--add_width", type=number(int, 0), action="append", help="in stages 2, 3; default: 0 0")
    add("--dropout_rate", type=number(float, 0, 1), action="append", help="on skips; default: 0.1 0.4 0.7")
    add("--epochs", type=number(int, 1), default=25, help="per stage")
    add("--warmup_epochs", type=number(int, 0), default=10, help="of these, without alpha steps")
    add("--max_skip", type=number(int, 0), default=2, help="skip-connects in the normal cell")
    add = parser.add_argument_group("weights").add_argument
    cli.add_weight_options(add, rate="of epoch 0, cosine to --learning_rate_min")
    add("--learning_rate_min", type=number(float, 0), default=0.0, help="approached in the last epoch")
    add = parser.add_argument_group("alphas").add_argument
    add("--arch_learning_rate", type=number(float, 0), default=6e-4, help="of Adam")
    add("--arch_weight_decay", type=number(float, 0), default=1e-3, help="of the alphas")
    add = cli.add_run_options(parser, seed=2, report_freq=50)
    add("--grad_checkpoint", action="store_true", help="keep only cells' outputs: least memory, slower")
    parser.set_defaults(batch_size=96, learning_rate=0.025, weight_decay=3e-4)
    return parser


def parse_args() -> Namespace:
    """The command line with its defaults filled in; exits with status 2 where it can't be right."""
    parser = get_args_parser()
    args = cli.parse_args(parser, "search")
    cli.choose_dataset(parser, args)
    choose_large_images(parser, args)
    args.dropout_rate = args.dropout_rate or [0.1, 0.4, 0.7]  # deviation: published, no flag means none
    args.add_layers, args.add_width = args.add_layers or [6, 12], args.add_width or [0, 0]
    try:
        make_stages(args)
    except ValueError as error:
        parser.error(str(error))
    if args.warmup_epochs >= args.epochs:
        parser.error(f"--warmup_epochs {args.warmup_epochs} leaves no alpha steps in --epochs {args.epochs}: lower it")
    return args


def choose_large_images(parser: cli.Parser, args: Namespace) -> None:
    """Fill in what --dataset imagenet implies; exits with status 2 where options contradict each other."""
    streamed = args.dataset == "imagenet"
    args.stem = args.stem or ("imagenet" if streamed else "cifar")
    if streamed:
        args.image_size = args.image_size or 224
    if streamed and args.cutout:
        parser.error("--cutout is for images in memory, --dataset imagenet has random crops: leave it out")
    if args.stem == "imagenet" and args.init_channels < 2:
        parser.error(f"--init_channels {args.init_channels} is too narrow for --stem imagenet: give 2 or more")
    if args.valid_portion is not None and args.train_portion + args.valid_portion > 1 + 1e-9:
        parser.error(f"--train_portion {args.train_portion} and --valid_portion {args.valid_portion} overlap: lower "
                     "one, their sum must not exceed 1")


def make_stages(args: Namespace) -> list[Stage]:
    return progressive.stage_table(args.layers, args.init_channels, args.add_layers, args.add_width, args.dropout_rate)


# ---- the search

def main(args: Namespace) -> None:
    device = utils.pick_device(args.device, args.deterministic)
    parallel.init_distributed(device)
    source = search_data.open_data(args, device)
    search_data.check_size(make_stages(args)[0], source.image_size, args, device)
    run_dir = runs.open_run_dir("search", args, device)
    log_start(run_dir, source, args, device)
    candidates = [genotypes.PRIMITIVES] * progressive.EDGES
    state = runs.load_state(run_dir, "search", stage=1, normal=candidates, reduce=candidates, alphas={})
    write_scalars = runs.scalar_writer(args, run_dir, done=len(state["metrics"]))

    for stage in make_stages(args)[state["stage"] - 1:]:  # deeper supernets over fewer candidates
        architect, parts = build_stage(stage, state, source, args, device)
        for epoch in range(state["epoch"], args.epochs):
            label, steps = f"stage {stage.number} epoch {epoch}", len(parts.train_batches)
            with engine.epoch_meter(label, steps, args, run_dir, state, vars(parts), epoch_costs(args)) as meter:
                search_data.seek(source, stage.number, epoch, meter.steps, args)
                record = search_epoch(stage, epoch, architect, parts, meter, args)
                if epoch >= args.epochs - 4:  # as published: in a stage's last 4 epochs
                    record |= validate(parts.network, source, label, record)
            save_epoch(run_dir, state, record, parts)
            write_scalars(len(state["metrics"]) - 1, record)
        say_how_decided(state["metrics"][-1])
        normal, normal_probs, reduce, reduce_probs = rows = competing(state, parts.network)
        if stage.num_drop:
            state |= {"stage": stage.number + 1, "epoch": 0,
                      "normal": progressive.prune(normal, normal_probs, stage.num_drop),
                      "reduce": progressive.prune(reduce, reduce_probs, stage.num_drop)}
            if parallel.rank() == 0:
                visualize.draw_run(run_dir)
    genotype, restricted = progressive.derive_genotype(*rows), progressive.restrict_skip_connects(*rows)
    if parallel.rank() == 0:
        report(run_dir, state, genotype, restricted, args, device)


def search_epoch(stage: Stage, epoch: int, architect: Architect, parts: SimpleNamespace, meter: engine.Meter,
                 args: Namespace) -> dict:
    """One pass over the training half -> its record. After warm-up every step is bilevel: alphas, then weights."""
    network = parts.network
    parts.optimizer.param_groups[0]["lr"] = lr = engine.cosine(
        args.learning_rate, args.learning_rate_min, epoch, args.epochs)
    network.skip_dropout = progressive.skip_dropout_rate(stage.skip_dropout, epoch, args.epochs, args.warmup_epochs)
    bilevel = epoch >= args.warmup_epochs
    pairs = ((batch, parts.valid_batches.next() if bilevel else None) for batch in parts.train_batches)
    for (images, target), held_out in meter.rest_of(pairs):
        utils.seed_everything(args.seed, stage.number, 1 + epoch, meter.steps)
        if bilevel:
            architect.step(*held_out)
        loss, logits = weight_step(network, parts.optimizer, images, target, args.grad_clip, parts.scaler)
        meter.update(loss, logits, target)
    loss, top1, _ = meter.finish()
    parallel.share_rank0(network, buffers_only=True)  # batch norm statistics differ between ranks
    engine.check_finite(network, meter.label)
    return {"stage": stage.number, "epoch": epoch, "lr": lr, "skip_dropout": network.skip_dropout, "train_loss": loss,
            "train_acc": top1, "valid_loss": None, "valid_acc": None, **meter.timing,
            "alpha_steps": len(parts.train_batches) * max(0, epoch + 1 - args.warmup_epochs)}


def weight_step(model: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, target: Tensor, grad_clip: float,
                scaler: torch.amp.GradScaler | None = None) -> tuple[Tensor, Tensor]:
    """One update of the weights on a batch (B, 3, H, W), (B,), the alphas fixed -> loss (), logits (B, num_classes)."""
    scaler = scaler or torch.amp.GradScaler(images.device.type, enabled=False)
    for alpha in (model.alphas_normal, model.alphas_reduce):
        alpha.requires_grad_(False)  # saves what their gradient would need
    logits = model(images)
    loss = F.cross_entropy(logits, target)
    optimizer.zero_grad()
    scaler.scale(loss).backward()
    for alpha in (model.alphas_normal, model.alphas_reduce):
        alpha.requires_grad_(True)
    parallel.average_gradients(optimizer.param_groups[0]["params"])
    utils.clipped_step(optimizer, scaler, grad_clip)
    return loss.detach(), logits.detach()


def competing(state: dict, network: Network) -> tuple:
    """(normal candidates, their probabilities, reduction candidates, their probabilities): nested lists (14, K)."""
    normal, reduce = (F.softmax(a.detach(), dim=-1).tolist() for a in (network.alphas_normal, network.alphas_reduce))
    return state["normal"], normal, state["reduce"], reduce


# ---- what it needs and leaves

def log_start(run_dir: Path, source: search_data.SearchData, args: Namespace, device: torch.device) -> None:
    """Say what is searched on, and how many steps a stage takes."""
    steps = len(source.train_batches)
    log.info(f"{run_dir}: {args.dataset}, {len(source.classes)} classes at {source.image_size}x{source.image_size}, "
             f"{source.num_images[0]} training images for the weights, {source.num_images[1]} for the alphas, on "
             f"{parallel.world_size()} x {utils.describe_device(device)}; a stage takes {args.epochs * steps} steps "
             f"of the weights and {(args.epochs - args.warmup_epochs) * steps} of the alphas")


def build_stage(stage: Stage, state: dict, source: search_data.SearchData, args: Namespace,
                device: torch.device) -> tuple[Architect, SimpleNamespace]:
    """A stage's architect, and what a checkpoint keeps (supernet, optimizers, batches), in the state that it has."""
    utils.seed_everything(args.seed, stage.number)
    network = Network(stage.channels, len(source.classes), stage.layers, state["normal"], state["reduce"],
                      stem=args.stem).to(device)
    network.grad_checkpoint = args.grad_checkpoint
    if args.compile:
        fast.compile_cells(network)
    parallel.share_rank0(network)
    architect = Architect(network, args.arch_learning_rate, args.arch_weight_decay, args.grad_clip)
    architect.scaler = scaler = utils.set_precision(network, device, args.amp)
    weights = [p for name, p in network.named_parameters() if not name.startswith("alphas")]
    optimizer = torch.optim.SGD(weights, args.learning_rate, args.momentum, weight_decay=args.weight_decay, fused=True)
    parts = SimpleNamespace(network=network, optimizer=optimizer, alpha_optimizer=architect.optimizer, scaler=scaler,
                            train_batches=source.train_batches, valid_batches=source.valid_batches)
    runs.restore(state, vars(parts))
    return architect, parts


def epoch_costs(args: Namespace) -> list[float]:
    """What each epoch of the search costs, relative to each other: an alpha step takes about 0.6 of a weight step."""
    return [stage.layers * stage.num_candidates * stage.channels * (1.6 if epoch >= args.warmup_epochs else 1.0)
            for stage in make_stages(args) for epoch in range(args.epochs)]


def validate(network: Network, source: search_data.SearchData, label: str, record: dict) -> dict:
    """Loss and accuracy on the images that train the alphas, without augmentation (deviation: published with)."""
    start = time.perf_counter()
    loss, top1, _ = engine.evaluate(network, source.validation(), f"{label} validation")
    return {"valid_loss": loss, "valid_acc": top1, "seconds": record["seconds"] + time.perf_counter() - start}


def save_epoch(run_dir: Path, state: dict, record: dict, parts: SimpleNamespace) -> None:
    """Add to an epoch what its alphas say, and save it."""
    normal, normal_probs, reduce, reduce_probs = competing(state, parts.network)
    genotype = progressive.derive_genotype(normal, normal_probs, reduce, reduce_probs)
    record |= {"skips": count_skips(genotype.normal), **progressive.measure_choices(normal_probs + reduce_probs),
               "peak_memory_mb": utils.peak_memory_mb(parts.network.alphas_normal.device)}
    for cell in ("normal", "reduce"):
        name = f"stage{record['stage']}_{cell}"
        state["alphas"].setdefault(name, []).append(getattr(parts.network, f"alphas_{cell}").detach().cpu().clone())
        state["alphas"][f"{name}_candidates"] = state[cell]
    runs.end_epoch(run_dir, state, record, vars(parts))


def say_how_decided(record: dict) -> None:
    """Log at the end of a stage, whose last record is given, what its choices are worth."""
    if "lead" in record:  # not in runs from before it was measured
        log.info(f"stage {record['stage']}: {progressive.describe_choices(record)}")
        if progressive.next_to_chance(record):
            log.info(progressive.ADVICE)


def describe(max_skip: int | None, genotype: Genotype, stem: str = "cifar") -> dict:
    """A row of genotypes.json: a cell and its size at the evaluation setting that the stem is for."""
    with torch.device("meta"):  # no need of numbers
        network, size = ((NetworkImageNet(48, 1000, 14, False, genotype), 224) if stem == "imagenet" else
                         (NetworkCIFAR(36, 10, 20, False, genotype), 32))
    return {"max_skip": max_skip, "skips": count_skips(genotype.normal), "parameters": utils.count_parameters(network),
            "multiply_adds": utils.count_multiply_adds(network, size), "genotype": genotype._asdict()}


def report(run_dir: Path, state: dict, genotype: Genotype, restricted: dict[int, Genotype], args: Namespace,
           device: torch.device) -> None:
    """Write genotypes.json (all limits M that matter, with sizes) and genotype.json (recommended); say what is next."""
    table = [describe(M, cell, args.stem) for M, cell in {None: genotype, **restricted}.items()]
    runs.write_file(run_dir / "genotypes.json", json.dumps(table, indent=1).encode())
    chosen = progressive.recommended(genotype, restricted, args.max_skip)
    genotypes.save(chosen, run_dir / "genotype.json")
    for row in table:
        name = "unrestricted" if row["max_skip"] is None else f"M = {row['max_skip']}"
        log.info(f"{name}: {row['skips']} skip-connects, "
                 f"{row['parameters'] / 1e6:.2f}M parameters, {row['multiply_adds'] / 1e6:.1f}M multiply-adds")
    log.info(f"pictures: {visualize.draw_run(run_dir)}")
    log.info(f"genotype (at most {args.max_skip} skip-connects): {chosen}")
    hours = sum(record["seconds"] for record in state["metrics"]) * parallel.world_size() / 3600
    kind = "CPU" if device.type == "cpu" else "GPU"
    log.info(f"search cost: {hours:.2f} {kind}-hours, {hours / 24:.3f} {kind}-days")
    log.info(f"train it: {training_command(run_dir, vars(args))}")


if __name__ == "__main__":
    cli.run(main, parse_args)

"""Search for a cell with P-DARTS: three stages over deeper supernets and fewer candidates (arXiv 1904.12760).

One GPU (or MPS, or the CPU, whatever there is); the published command works as it stands:
    python train_search.py --tmp_data_dir DIR --save log_path --add_layers 6 --add_layers 12 \\
        --dropout_rate 0.1 --dropout_rate 0.4 --dropout_rate 0.7 --note note_of_this_run
Several GPUs:
    torchrun --nproc_per_node=8 train_search.py --tmp_data_dir DIR
Without --tmp_data_dir it searches on scikit-learn's 8x8 digits, which need no download. Expect SAVE/search-NOTE-TIME/
with genotype.json, to be trained by train_cifar.py --arch, and everything that was measured on the way.
"""
import argparse
import io
import json
import shlex
import time
from pathlib import Path
from types import SimpleNamespace

import numpy
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import data
import engine
import fast
import genotypes
import progressive
import utils
import visualize
from architect import Architect
from genotypes import Genotype, count_skips
from model import NetworkCIFAR
from model_search import Network
from progressive import Stage
from utils import log, number


def get_args_parser() -> utils.Parser:
    parser = utils.Parser(__doc__)
    # data
    parser.add_argument("--tmp_data_dir", help="where the data set is, or is downloaded to")
    parser.add_argument("--dataset", choices=data.DATASETS, help="default: cifar10, or digits without --tmp_data_dir")
    parser.add_argument("--cifar100", action="store_true", help="the same as --dataset cifar100")
    parser.add_argument("--image_size", type=number(int, 1), help="resize the images; default: the data set's own size")
    parser.add_argument("--train_portion", type=number(float, 0.01, 1), default=0.5, help="share that trains weights")
    parser.add_argument("--cutout", action="store_true", help="cut a square out of training images")
    parser.add_argument("--cutout_length", type=number(int, 1), help="its side; default: half the image's")
    parser.add_argument("--workers", type=number(int, 0), default=2, help="unused: the images live on the device")
    # stages
    parser.add_argument("--layers", type=number(int, 1), default=5, help="cells of stage 1")
    parser.add_argument("--add_layers", type=number(int, 0), action="append", help="in stages 2 and 3: 6 and 12")
    parser.add_argument("--init_channels", type=number(int, 1), default=16, help="channels of the first cell")
    parser.add_argument("--add_width", type=number(int, 0), action="append", help="in stages 2 and 3: 0 and 0")
    parser.add_argument("--dropout_rate", type=number(float, 0, 1), action="append", help="on skips: 0.1 0.4 0.7")
    parser.add_argument("--epochs", type=number(int, 1), default=25, help="per stage")
    parser.add_argument("--warmup_epochs", type=number(int, 0), default=10, help="of these, without alpha steps")
    parser.add_argument("--max_skip", type=number(int, 0), default=2, help="skip-connects in the normal cell")
    # weights
    parser.add_argument("--batch_size", type=number(int, 1), default=96, help="total over all processes")
    parser.add_argument("--learning_rate", type=number(float, 0), default=0.025)
    parser.add_argument("--learning_rate_min", type=number(float, 0), default=0.0)
    parser.add_argument("--momentum", type=number(float, 0, 1), default=0.9)
    parser.add_argument("--weight_decay", type=number(float, 0), default=3e-4)
    parser.add_argument("--grad_clip", type=number(float, 0), default=5.0, help="largest gradient norm of a step")
    # alphas
    parser.add_argument("--arch_learning_rate", type=number(float, 0), default=6e-4)
    parser.add_argument("--arch_weight_decay", type=number(float, 0), default=1e-3)
    # run
    parser.add_argument("--grad_checkpoint", action="store_true", help="keep only cells' outputs: least memory, slower")
    utils.add_run_options(parser, seed=2, report_freq=50)
    return parser


def parse_args() -> argparse.Namespace:
    """The command line with its defaults filled in; exits with status 2 where it can't be right."""
    parser = get_args_parser()
    args = utils.parse_args(parser, "search")
    utils.choose_dataset(parser, args)
    args.dropout_rate = args.dropout_rate or [0.1, 0.4, 0.7]  # deviation: published, no flag means none
    args.add_layers, args.add_width = args.add_layers or [6, 12], args.add_width or [0, 0]
    try:
        make_stages(args)
    except ValueError as error:
        parser.error(str(error))
    if args.warmup_epochs >= args.epochs:
        parser.error(f"--warmup_epochs {args.warmup_epochs} leaves no alpha steps in --epochs {args.epochs}: lower it")
    return args


def make_stages(args: argparse.Namespace) -> list[Stage]:
    return progressive.stage_table(args.layers, args.init_channels, args.add_layers, args.add_width, args.dropout_rate)


def main(args: argparse.Namespace) -> None:
    device = utils.pick_device(args.device, args.deterministic)
    utils.init_distributed(device)
    with utils.rank0_first():  # one process downloads
        dataset = data.load(args.dataset, args.tmp_data_dir, args.image_size)
    train_half, valid_half = data.search_split(dataset, args.train_portion)
    train_batches = make_batches(dataset, *train_half, args, device, seed=utils.derive_seed(args.seed, 0))
    valid_batches = make_batches(dataset, *valid_half, args, device, seed=utils.derive_seed(args.seed, 1))
    run_dir = utils.open_run_dir("search", args, device)
    log.info(f"{run_dir}: {args.dataset}, {len(dataset.train_images)} training images, {len(dataset.classes)} classes, "
             f"on {utils.world_size()} x {utils.describe_device(device)}")

    all_primitives = [genotypes.PRIMITIVES] * progressive.EDGES
    state = utils.load_checkpoint(run_dir, "search") or {
        "kind": "search", "stage": 1, "epoch": 0, "normal": all_primitives, "reduce": all_primitives, "metrics": [],
        "alphas": {}}
    if utils.rank() == 0 and state["metrics"]:
        write_history(state, run_dir)  # a kill may have come before it
    write_scalars = utils.scalar_writer(args, run_dir, done=len(state["metrics"]))
    for stage in make_stages(args)[state["stage"] - 1:]:
        parts = build_stage(stage, state, len(dataset.classes), train_batches, valid_batches, args, device)
        for epoch in range(state["epoch"], args.epochs):
            label = f"stage {stage.number} epoch {epoch}"
            with engine.epoch_meter(label, len(train_batches), args, run_dir, state, stateful(parts)) as meter:
                record = search_epoch(stage, epoch, parts, meter, args)
                if epoch >= args.epochs - 4:  # as published: in a stage's last 4 epochs
                    record |= validate(parts.network, dataset, valid_half, record, args, device)
            save_epoch(state, record, parts, run_dir, device)
            write_scalars(len(state["metrics"]) - 1, record)
        normal_probs, reduce_probs = softmax_rows(parts.network)
        if stage.num_drop:
            state = {
                "kind": "search", "stage": stage.number + 1, "epoch": 0, "metrics": state["metrics"],
                "alphas": state["alphas"],
                "normal": progressive.prune(state["normal"], normal_probs, stage.num_drop),
                "reduce": progressive.prune(state["reduce"], reduce_probs, stage.num_drop)}
            if utils.rank() == 0:
                visualize.draw_run(run_dir)
    if utils.rank() == 0:
        report(state, normal_probs, reduce_probs, run_dir, args, device, dataset.train_images.size(-1))


def make_batches(dataset: data.DataSet, images: Tensor, target: Tensor, args: argparse.Namespace, device: torch.device,
                 seed: int) -> data.Batches:
    """Shuffled, augmented batches of one half of the training set."""
    cutout = (args.cutout_length or images.size(-1) // 2) if args.cutout else 0
    return data.Batches(images, target, args.batch_size, dataset, device, seed, cutout, utils.rank(),
                        utils.world_size())


def build_stage(stage: Stage, state: dict, num_classes: int, train_batches: data.Batches, valid_batches: data.Batches,
                args: argparse.Namespace, device: torch.device) -> SimpleNamespace:
    """A stage's fresh supernet, its optimizers and the batches, in the state that the checkpoint has of them."""
    utils.seed_everything(args.seed, stage.number)
    network = Network(stage.channels, num_classes, stage.layers, state["normal"], state["reduce"]).to(device)
    network.grad_checkpoint = args.grad_checkpoint
    if args.compile:
        fast.compile_cells(network)
    utils.share_rank0(network)
    architect = Architect(network, args.arch_learning_rate, args.arch_weight_decay, args.grad_clip)
    architect.scaler = scaler = utils.set_precision(network, device, args.amp)
    weights = [p for name, p in network.named_parameters() if not name.startswith("alphas")]
    optimizer = torch.optim.SGD(weights, args.learning_rate, args.momentum, weight_decay=args.weight_decay,
                                fused=True)
    parts = SimpleNamespace(network=network, architect=architect, optimizer=optimizer, scaler=scaler,
                            train_batches=train_batches, valid_batches=valid_batches)
    for name, part in stateful(parts).items():
        if name in state:
            utils.load_part(name, part, state[name])
    return parts


def stateful(parts: SimpleNamespace) -> dict:
    """What a checkpoint keeps of a stage, by name."""
    return {"network": parts.network, "optimizer": parts.optimizer, "alpha_optimizer": parts.architect.optimizer,
            "scaler": parts.scaler, "train_batches": parts.train_batches, "valid_batches": parts.valid_batches}


def search_epoch(stage: Stage, epoch: int, parts: SimpleNamespace, meter: engine.Meter,
                 args: argparse.Namespace) -> dict:
    """One pass over the training half -> its record. After warm-up every step is bilevel: alphas, then weights."""
    network = parts.network
    lr = engine.cosine(args.learning_rate, args.learning_rate_min, epoch, args.epochs)
    engine.set_learning_rate(parts.optimizer, lr)
    network.skip_dropout = progressive.skip_dropout_rate(stage.skip_dropout, epoch, args.epochs, args.warmup_epochs)
    for images, target in meter.rest_of(parts.train_batches):
        utils.seed_everything(args.seed, stage.number, 1 + epoch, meter.steps)
        if epoch >= args.warmup_epochs:
            parts.architect.step(*parts.valid_batches.next())
        loss, logits = weight_step(network, parts.optimizer, images, target, args.grad_clip, parts.scaler)
        meter.update(loss, logits, target)
    loss, top1, _ = meter.finish()
    utils.share_rank0(network, buffers_only=True)  # batch norm statistics differ between ranks
    engine.check_finite(network, meter.label)
    return {"stage": stage.number, "epoch": epoch, "lr": lr, "skip_dropout": network.skip_dropout, "train_loss": loss,
            "train_acc": top1, "valid_loss": None, "valid_acc": None, **meter.timing}


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
    utils.average_gradients(optimizer.param_groups[0]["params"])
    utils.clipped_step(optimizer, scaler, grad_clip)
    return loss.detach(), logits.detach()


def validate(network: Network, dataset: data.DataSet, half: tuple[Tensor, Tensor], record: dict,
             args: argparse.Namespace, device: torch.device) -> dict:
    """Loss and accuracy on the half that trains the alphas, without augmentation (deviation: published with)."""
    start = time.perf_counter()
    batches = data.eval_batches(*half, args.batch_size, dataset, device, utils.rank(), utils.world_size())
    loss, top1, _ = engine.evaluate(network, batches, f"stage {record['stage']} epoch {record['epoch']} validation")
    return {"valid_loss": loss, "valid_acc": top1, "seconds": record["seconds"] + time.perf_counter() - start}


def softmax_rows(network: Network) -> tuple[list, list]:
    """The probabilities of the candidates on each edge of the normal and the reduction cell: (14, K) nested lists."""
    return tuple(F.softmax(a.detach(), dim=-1).tolist() for a in (network.alphas_normal, network.alphas_reduce))


def save_epoch(state: dict, record: dict, parts: SimpleNamespace, run_dir: Path, device: torch.device) -> None:
    """Log an epoch and write checkpoint.pt, then what follows from it."""
    normal_probs, reduce_probs = softmax_rows(parts.network)
    genotype = progressive.derive_genotype(state["normal"], normal_probs, state["reduce"], reduce_probs)
    record |= {"skips": count_skips(genotype.normal), "peak_memory_mb": utils.peak_memory_mb(device)}
    log.info(json.dumps(record))
    state["epoch"] += 1
    state["metrics"].append(record)
    for cell in ("normal", "reduce"):
        name = f"stage{record['stage']}_{cell}"
        state["alphas"].setdefault(name, []).append(getattr(parts.network, f"alphas_{cell}").detach().cpu().clone())
        state["alphas"][f"{name}_candidates"] = state[cell]
    engine.save(run_dir, state, stateful(parts))
    if utils.rank() == 0:
        write_history(state, run_dir)


def write_history(state: dict, run_dir: Path) -> None:
    """Write metrics.jsonl and alphas.npz as the checkpoint has them."""
    utils.write_metrics(run_dir, state["metrics"])
    buffer = io.BytesIO()
    numpy.savez(buffer, **{name: numpy.array(rows) for name, rows in state["alphas"].items()})  # (epochs, 14, K)
    utils.write_file(run_dir / "alphas.npz", buffer.getvalue())


def describe(max_skip: int | None, genotype: Genotype) -> dict:
    """A row of genotypes.json: a cell and its size at the CIFAR evaluation setting."""
    with torch.device("meta"):  # no need of numbers
        network = NetworkCIFAR(36, 10, 20, False, genotype)
    return {"max_skip": max_skip, "skips": count_skips(genotype.normal), "parameters": utils.count_parameters(network),
            "multiply_adds": utils.count_multiply_adds(network, 32), "genotype": genotype._asdict()}


def report(state: dict, normal_probs: list, reduce_probs: list, run_dir: Path, args: argparse.Namespace,
           device: torch.device, image_size: int) -> None:
    """Write genotypes.json (unrestricted and every M, with sizes) and genotype.json (recommended); say what is next."""
    rows = (state["normal"], normal_probs, state["reduce"], reduce_probs)
    genotype, restricted = progressive.derive_genotype(*rows), progressive.restrict_skip_connects(*rows)
    table = [describe(None, genotype)] + [describe(M, cell) for M, cell in restricted.items()]
    utils.write_file(run_dir / "genotypes.json", json.dumps(table, indent=1).encode())
    chosen = progressive.recommended(genotype, restricted, args.max_skip)
    genotypes.save(chosen, run_dir / "genotype.json")
    for row in table:
        name = "unrestricted" if row["max_skip"] is None else f"M = {row['max_skip']}"
        log.info(f"{name}: {row['skips']} skip-connects, "
                 f"{row['parameters'] / 1e6:.2f}M parameters, {row['multiply_adds'] / 1e6:.1f}M multiply-adds")
    log.info(f"pictures: {visualize.draw_run(run_dir)}")
    log.info(f"genotype (at most {args.max_skip} skip-connects): {chosen}")
    hours = sum(record["seconds"] for record in state["metrics"]) * utils.world_size() / 3600
    kind = "CPU" if device.type == "cpu" else "GPU"
    log.info(f"search cost: {hours:.2f} {kind}-hours, {hours / 24:.3f} {kind}-days")
    published = ["--auxiliary", "--cutout"] if image_size >= 29 else []  # smaller ones have no room for them
    command = ["python", "train_cifar.py", "--tmp_data_dir", args.tmp_data_dir, "--dataset", args.dataset,
               "--arch", str(run_dir), *published]
    log.info(f"train it: {shlex.join(command)}")


if __name__ == "__main__":
    utils.run(main, parse_args)

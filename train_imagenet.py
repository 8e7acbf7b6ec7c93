"""Train a cell from scratch on ImageNet (mobile setting, section 4.4) or any image folders, and test it.

One device (CUDA, else MPS, else the CPU); the published command works unchanged:
    python train_imagenet.py --tmp_data_dir DIR --save log_path --auxiliary --note note_of_this_run
Several GPUs, on one machine or several:
    torchrun --nproc_per_node=8 train_imagenet.py --tmp_data_dir DIR --auxiliary
Images are read from DIR/imagenet/{train,val}/CLASS/* or DIR/{train,val}/CLASS/*. Writes SAVE/imagenet-NOTE-TIME/ with
metrics.jsonl, weights.pt (of the last epoch) and best.pt. The paper reports 24.4% top-1 error for its cell, after 250
epochs.
"""
import sys
from argparse import Namespace
from functools import partial

sys.path.insert(0, __file__.removesuffix("train_imagenet.py"))  # python -I and -P omit it

import engine
import genotypes
import utils
from harness import cli, parallel, process, records
from harness.cli import number
from input_pipeline import imagenet
from model import NetworkImageNet


def get_args_parser() -> cli.Parser:
    parser = cli.Parser(__doc__)
    add = parser.add_argument_group("data").add_argument
    add("--tmp_data_dir", help="folder with [imagenet/]{train,val}; default: none, required")
    add("--image_size", type=number(int, 32), default=224, help="side of the training crops, in pixels")
    add("--workers", type=number(int, 0), default=4, help="data-loading workers per rank")
    add = cli.add_evaluation_options(parser, min_channels=2,
                                     rate="peak learning rate; default: 0.1 at batch size 256, 0.5 at 1024")
    add("--lr_scheduler", choices=["linear", "cosine"], default="linear", help="learning rate schedule")
    add("--label_smooth", type=number(float, 0, 1), default=0.1, help="label smoothing of the training loss")
    cli.add_run_options(parser, seed=0, report_freq=100)
    parser.set_defaults(init_channels=48, layers=14, drop_path_prob=0.0, epochs=250,  # section 4.4
                        batch_size=1024, weight_decay=3e-5)
    return parser


def parse_args(argv: list[str] | None = None) -> Namespace:
    """The command line, or these words, with its defaults filled in; exits with status 2 if it is invalid."""
    parser = get_args_parser()
    args = cli.parse_args(parser, "imagenet", argv)
    if args.tmp_data_dir is None:
        parser.error("--tmp_data_dir is missing: set it to the folder that holds train/CLASS/* and val/CLASS/*")
    if args.learning_rate is None:  # both published points lie on this line
        B = args.batch_size
        args.learning_rate = 0.1 + 0.4 * (B - 256) / 768 if B > 256 else 0.1 * B / 256
    if args.lr_scheduler == "linear" and args.epochs <= 5:
        parser.error(f"--lr_scheduler linear needs more than 5 epochs, not {args.epochs}: use cosine")
    return args


def learning_rate(args: Namespace, epoch: int) -> float:
    """The learning rate of `epoch` (from 0): the schedule's, with 5 epochs of linear warm-up for batches above 256."""
    high, E = args.learning_rate, args.epochs
    if args.lr_scheduler == "cosine":
        scheduled = engine.cosine(high, 0.0, epoch, E)
    elif E - epoch > 5:
        scheduled = high * (E - 5 - epoch) / (E - 5)
    else:  # a slower decay at the end
        scheduled = high * (E - epoch) / (5 * (E - 5))
    return scheduled * (epoch + 1) / 5 if args.batch_size > 256 and epoch < 5 else scheduled


@process.restored()
def main(args: Namespace) -> None:
    device = utils.pick_device(args.device, args.deterministic, args.tf32, args.amp)
    parallel.init_distributed(device)
    genotype = genotypes.load(records.arch_of(args))
    if args.auxiliary and args.image_size < 193:  # its 7x7 input is 1/32 of the image
        raise ValueError(f"--auxiliary needs --image_size 193 or more, not {args.image_size}: omit it")
    train_loader, val_loader, data = imagenet.loaders(
        args.tmp_data_dir, args.image_size, args.batch_size, args.workers, args.seed, device, parallel.rank(),
        parallel.world_size(), training=not args.eval, valid_portion=args.valid_portion)
    classes = len(data["classes"])
    if args.max_multiply_adds is not None:
        args.init_channels = utils.most_channels(lambda channels: NetworkImageNet(
            channels, classes, args.layers, False, genotype), args.image_size, args.max_multiply_adds)
    utils.seed_everything(args.seed)
    network = NetworkImageNet(args.init_channels, classes, args.layers, args.auxiliary, genotype).to(device)
    files = [path for path, _ in val_loader.of_all_ranks.samples]
    if args.eval:
        records.use_data(args.weights, data)
        return engine.test_weights(network, val_loader, args, data["classes"], files)

    run = engine.open_run("imagenet", network, genotype, data, args)
    valid_batches = train_loader.held_out and partial(iter, train_loader.held_out)
    optimizer = utils.sgd(network.parameters(), args.learning_rate, args.momentum, args.weight_decay)
    trained, scaler = engine.prepare(network, args)
    run.keep(network=network, optimizer=optimizer, scaler=scaler)
    for epoch in run.epochs_left():
        # The learning rate warms up and decays; drop path, off in the mobile setting, grows linearly.
        optimizer.param_groups[0]["lr"] = lr = learning_rate(args, epoch)
        network.drop_path_prob = args.drop_path_prob * epoch / args.epochs
        record = {"epoch": epoch, "lr": lr, "drop_path_prob": network.drop_path_prob}
        meter = engine.Meter(f"epoch {epoch}", len(train_loader), args.report_freq, run.seconds_left)
        with run.epoch(meter):  # a signal, or a bad image, saves the run and the meter mid-epoch
            imagenet.set_epoch(train_loader, epoch, meter.steps)  # shuffles; skips the steps that the meter has counted
            record |= engine.train_one_epoch(trained, train_loader, optimizer, scaler, epoch, meter, args)
            record |= engine.judge(run, network, valid_batches, partial(iter, val_loader), epoch, meter)
        # The checkpoint, and best.pt if this epoch is the best so far.
        engine.end_epoch(run, network, record)
    engine.report(run, network, val_loader, data["classes"], files, lambda i: val_loader.of_all_ranks[i][0])


if __name__ == "__main__":
    cli.run(main, parse_args)

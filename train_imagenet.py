"""Train a cell from scratch on ImageNet (mobile setting, section 4.4) or any tree of image folders, and test it.

One GPU (or MPS, or the CPU, whatever there is); the published command works as it stands:
    python train_imagenet.py --tmp_data_dir DIR --save log_path --auxiliary --note note_of_this_run
Several GPUs, on one machine or several:
    torchrun --nproc_per_node=8 train_imagenet.py --tmp_data_dir DIR --auxiliary
Images are read from DIR/imagenet/{train,val}/CLASS/* or DIR/{train,val}/CLASS/*. Expect SAVE/imagenet-NOTE-TIME/ with
metrics.jsonl, weights.pt (of the last epoch) and best.pt. The paper reports 24.4% top-1 error for its cell, after 250
epochs.
"""
from argparse import Namespace

import engine
import genotypes
import utils
from harness import cli, parallel, records
from harness.cli import number
from input_pipeline import imagenet
from input_pipeline.sets import describe
from model import NetworkImageNet


def get_args_parser() -> cli.Parser:
    parser = cli.Parser(__doc__)
    add = parser.add_argument_group("data").add_argument
    add("--tmp_data_dir", help="holds imagenet/{train,val} or {train,val}; no default: it is needed")
    add("--image_size", type=number(int, 32), default=224, help="pixels of the square training crops")
    add("--workers", type=number(int, 0), default=4, help="processes per rank that read images")
    add = cli.add_evaluation_options(parser, fewest_channels=2, rate="default: 0.1 at batch 256, 0.5 at 1024")
    add("--lr_scheduler", choices=["linear", "cosine"], default="linear", help="its way down")
    add("--label_smooth", type=number(float, 0, 1), default=0.1, help="of the one-hot target")
    cli.add_run_options(parser, seed=0, report_freq=100)
    parser.set_defaults(init_channels=48, layers=14, drop_path_prob=0.0, epochs=250,  # section 4.4
                        batch_size=1024, weight_decay=3e-5)
    return parser


def parse_args() -> Namespace:
    """The command line with its defaults filled in; exits with status 2 where it can't be right."""
    parser = get_args_parser()
    args = cli.parse_args(parser, "imagenet")
    if args.tmp_data_dir is None:
        parser.error("--tmp_data_dir is missing: name the folder that holds train/CLASS/* and val/CLASS/*")
    if args.learning_rate is None:  # both published points lie on this line
        B = args.batch_size
        args.learning_rate = 0.1 + 0.4 * (B - 256) / 768 if B > 256 else 0.1 * B / 256
    if args.lr_scheduler == "linear" and args.epochs <= 5:
        parser.error(f"--lr_scheduler linear needs more than 5 epochs, not {args.epochs}: use cosine")
    return args


def learning_rate(args: Namespace, epoch: int) -> float:
    """The learning rate of `epoch` (from 0): the schedule's, over 5 epochs of warm-up where the batch is large."""
    high, E = args.learning_rate, args.epochs
    if args.lr_scheduler == "cosine":
        scheduled = engine.cosine(high, 0.0, epoch, E)
    elif E - epoch > 5:
        scheduled = high * (E - 5 - epoch) / (E - 5)
    else:  # a slower end
        scheduled = high * (E - epoch) / (5 * (E - 5))
    return scheduled * (epoch + 1) / 5 if args.batch_size > 256 and epoch < 5 else scheduled


def main(args: Namespace) -> None:
    device = utils.pick_device(args.device, args.deterministic)
    parallel.init_distributed(device)
    genotype = genotypes.load(records.arch_of(args))
    if args.auxiliary and args.image_size < 193:  # its 7x7 input is five halvings down
        raise ValueError(f"--auxiliary needs --image_size 193 or more, not {args.image_size}: omit it")
    train_loader, val_loader, classes = imagenet.loaders(
        args.tmp_data_dir, args.image_size, args.batch_size, args.workers, args.seed, device, parallel.rank(),
        parallel.world_size(), training=not args.eval)
    utils.seed_everything(args.seed)
    network = NetworkImageNet(args.init_channels, len(classes), args.layers, args.auxiliary, genotype).to(device)
    if args.eval:
        return engine.test_weights(network, val_loader, args)

    run = engine.open_run("imagenet", network, genotype, describe(classes, *imagenet.STATS, args.image_size), args)
    optimizer = utils.sgd(network.parameters(), args)
    trained, scaler = engine.prepare(network, args)
    run.keep(network=network, optimizer=optimizer, scaler=scaler)
    for epoch in run.epochs_left():
        # The learning rate falls; drop path, which the mobile setting does without, grows linearly.
        optimizer.param_groups[0]["lr"] = lr = learning_rate(args, epoch)
        network.drop_path_prob = args.drop_path_prob * epoch / args.epochs
        record = {"epoch": epoch, "lr": lr, "drop_path_prob": network.drop_path_prob}
        meter = engine.Meter(f"epoch {epoch}", len(train_loader), args.report_freq, run.seconds_left)
        with run.epoch(meter):  # a signal, or a bad image, saves the run and the meter mid-epoch
            imagenet.set_epoch(train_loader, epoch, meter.steps)  # shuffles; resumes where the meter is
            record |= engine.train_one_epoch(trained, train_loader, optimizer, scaler, epoch, meter, args)
            record |= engine.test(network, val_loader, f"epoch {epoch} test")
        engine.end_epoch(run, network, record)
    engine.report(run, network)


if __name__ == "__main__":
    cli.run(main, parse_args)

"""Train a cell from scratch on ImageNet (mobile setting, section 4.4) or any tree of image folders, and test it.

One GPU (or MPS, or the CPU, whatever there is); the published command works as it stands:
    python train_imagenet.py --tmp_data_dir DIR --save log_path --auxiliary --note note_of_this_run
Several GPUs, on one machine or several:
    torchrun --nproc_per_node=8 train_imagenet.py --tmp_data_dir DIR --auxiliary
Images are read from DIR/imagenet/{train,val}/CLASS/* or DIR/{train,val}/CLASS/*. Expect SAVE/imagenet-NOTE-TIME/ with
metrics.jsonl, weights.pt (of the last epoch) and best.pt; the released cell reaches 24.4% top-1 error after 250 epochs.
"""
import argparse

import torch

import data
import engine
import genotypes
import utils
import visualize
from model import NetworkImageNet
from utils import log, number


def get_args_parser() -> utils.Parser:
    parser = utils.Parser(__doc__)
    # data
    parser.add_argument("--tmp_data_dir", help="holds imagenet/{train,val} or {train,val}")
    parser.add_argument("--image_size", type=number(int, 32), default=224, help="pixels of the square training crops")
    parser.add_argument("--workers", type=number(int, 0), default=4, help="processes per rank that read images")
    # network
    parser.add_argument("--arch", default="PDARTS", help="published name, genotype.json, run directory or random:SEED")
    parser.add_argument("--init_channels", type=number(int, 2), default=48, help="channels of the first cell")
    parser.add_argument("--layers", type=number(int, 1), default=14, help="cells")
    parser.add_argument("--auxiliary", action="store_true", help="train with the auxiliary head")
    parser.add_argument("--auxiliary_weight", type=number(float, 0), default=0.4, help="of its loss")
    parser.add_argument("--drop_path_prob", type=number(float, 0, 1), default=0.0, help="reached at the last epoch")
    # optimization
    parser.add_argument("--epochs", type=number(int, 1), default=250)
    parser.add_argument("--batch_size", type=number(int, 1), default=1024, help="total over all processes")
    parser.add_argument("--learning_rate", type=number(float, 0), help="default: 0.1 at batch 256, 0.5 at 1024")
    parser.add_argument("--lr_scheduler", choices=["linear", "cosine"], default="linear")
    parser.add_argument("--momentum", type=number(float, 0, 1), default=0.9)
    parser.add_argument("--weight_decay", type=number(float, 0), default=3e-5)
    parser.add_argument("--grad_clip", type=number(float, 0), default=5.0, help="largest gradient norm of a step")
    parser.add_argument("--label_smooth", type=number(float, 0, 1), default=0.1, help="label smoothing")
    # testing
    parser.add_argument("--eval", action="store_true", help="only test --weights on the validation set")
    parser.add_argument("--weights", help="a state_dict, or a checkpoint that holds one")
    # run
    utils.add_run_options(parser, seed=0, report_freq=100)
    return parser


def parse_args() -> argparse.Namespace:
    """The command line with its defaults filled in; exits with status 2 where it can't be right."""
    parser = get_args_parser()
    args = utils.parse_args(parser, "imagenet")
    if args.tmp_data_dir is None:
        parser.error("--tmp_data_dir is missing: name the folder that holds train/CLASS/* and val/CLASS/*")
    if args.learning_rate is None:  # both published points lie on this line
        B = args.batch_size
        args.learning_rate = 0.1 + 0.4 * (B - 256) / 768 if B > 256 else 0.1 * B / 256
    if args.lr_scheduler == "linear" and args.epochs <= 5:
        parser.error(f"--lr_scheduler linear needs more than 5 epochs, not {args.epochs}: use cosine")
    if args.eval != bool(args.weights):
        parser.error("--eval and --weights go together: --eval --weights FILE tests the weights in FILE")
    return args


def learning_rate(args: argparse.Namespace, epoch: int) -> float:
    """The learning rate of `epoch` (from 0): the schedule's, over 5 epochs of warm-up where the batch is large."""
    high, E = args.learning_rate, args.epochs
    if args.lr_scheduler == "cosine":
        scheduled = engine.cosine(high, 0.0, epoch, E)
    elif E - epoch > 5:
        scheduled = high * (E - 5 - epoch) / (E - 5)
    else:  # a slower end
        scheduled = high * (E - epoch) / (5 * (E - 5))
    return scheduled * (epoch + 1) / 5 if args.batch_size > 256 and epoch < 5 else scheduled


def main(args: argparse.Namespace) -> None:
    device = utils.pick_device(args.device, args.deterministic)
    utils.init_distributed(device)
    genotype = genotypes.load(utils.arch_of(args))
    if args.auxiliary and args.image_size < 193:  # its 7x7 input is five halvings down
        raise ValueError(f"--auxiliary needs --image_size 193 or more, not {args.image_size}: leave it out")
    train_loader, val_loader, classes = data.imagenet_loaders(
        args.tmp_data_dir, args.image_size, args.batch_size, args.workers, args.seed, device, utils.rank(),
        utils.world_size())
    utils.seed_everything(args.seed)
    network = NetworkImageNet(args.init_channels, len(classes), args.layers, args.auxiliary, genotype).to(device)
    if args.eval:
        utils.load_weights(args.weights, network)
        log.info("{test_acc:.2f}% top-1, {test_acc_top5:.2f}% top-5 accuracy, loss {test_loss:.4f}".format(
            **engine.test(network, val_loader, "test")))
        return
    run_dir = utils.open_run_dir("imagenet", args, device)
    if utils.rank() == 0:
        genotypes.save(genotype, run_dir / "genotype.json")
    engine.log_start(run_dir, args, device, network, args.image_size)
    optimizer = torch.optim.SGD(network.parameters(), args.learning_rate, args.momentum, weight_decay=args.weight_decay,
                                fused=True)
    trained, scaler = engine.prepare(network, device, args)
    parts = {"network": network, "optimizer": optimizer, "scaler": scaler}
    state = engine.restore(run_dir, "imagenet", parts)
    write_scalars = utils.scalar_writer(args, run_dir, done=state["epoch"])
    for epoch in range(state["epoch"], args.epochs):
        lr = learning_rate(args, epoch)
        engine.set_learning_rate(optimizer, lr)
        network.drop_path_prob = args.drop_path_prob * epoch / args.epochs
        record = {"epoch": epoch, "lr": lr, "drop_path_prob": network.drop_path_prob}
        with engine.epoch_meter(f"epoch {epoch}", len(train_loader), args, run_dir, state, parts) as meter:
            data.set_epoch(train_loader, epoch, meter.steps)
            record |= engine.train_one_epoch(trained, train_loader, optimizer, scaler, epoch, meter, args,
                                             args.label_smooth)
            record |= engine.test(network, val_loader, f"epoch {epoch} test")
        engine.finish_epoch(state, record, parts, run_dir)
        write_scalars(epoch, record)
    engine.report(state, network, run_dir)
    if utils.rank() == 0:
        log.info(f"pictures: {visualize.draw_run(run_dir)}")


if __name__ == "__main__":
    utils.run(main, parse_args)

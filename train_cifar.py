"""Train a cell from scratch on CIFAR-10, CIFAR-100 or another set of small images (section 4.3), and test it.

One GPU (or MPS, or the CPU, whatever there is); the published command works as it stands:
    python train_cifar.py --tmp_data_dir DIR --auxiliary --cutout --save log_path --note note_of_this_run
Several GPUs:
    torchrun --nproc_per_node=8 train_cifar.py --tmp_data_dir DIR --auxiliary --cutout
The cell is --arch: a published name, a genotype.json, a run directory of train_search.py, or random:SEED. Expect
SAVE/eval-NOTE-TIME/ with metrics.jsonl, weights.pt (of the last epoch) and best.pt; the released cell reaches 2.5% test
error on CIFAR-10 after 600 epochs.
"""
import argparse

import torch

import data
import engine
import genotypes
import utils
import visualize
from model import NetworkCIFAR
from utils import log, number


def get_args_parser() -> utils.Parser:
    parser = utils.Parser(__doc__)
    # data
    parser.add_argument("--tmp_data_dir", help="where the data set is, or is downloaded to")
    parser.add_argument("--dataset", choices=data.DATASETS, help="default: cifar10, or digits without --tmp_data_dir")
    parser.add_argument("--cifar100", action="store_true", help="the same as --dataset cifar100")
    parser.add_argument("--image_size", type=number(int, 1), help="resize the images; default: the data set's own size")
    parser.add_argument("--cutout", action="store_true", help="cut a square out of training images")
    parser.add_argument("--cutout_length", type=number(int, 1), help="its side; default: half the image's")
    parser.add_argument("--workers", type=number(int, 0), default=2, help="unused: the images live on the device")
    # network
    parser.add_argument("--arch", default="PDARTS", help="published name, genotype.json, run directory or random:SEED")
    parser.add_argument("--init_channels", type=number(int, 1), default=36, help="channels of the first cell")
    parser.add_argument("--layers", type=number(int, 1), default=20, help="cells")
    parser.add_argument("--auxiliary", action="store_true", help="train with the auxiliary head")
    parser.add_argument("--auxiliary_weight", type=number(float, 0), default=0.4, help="of its loss")
    parser.add_argument("--drop_path_prob", type=number(float, 0, 1), default=0.3, help="reached at the last epoch")
    # optimization
    parser.add_argument("--epochs", type=number(int, 1), default=600)
    parser.add_argument("--batch_size", type=number(int, 1), default=128, help="total over all processes")
    parser.add_argument("--learning_rate", type=number(float, 0), default=0.025, help="cosine to 0")
    parser.add_argument("--momentum", type=number(float, 0, 1), default=0.9)
    parser.add_argument("--weight_decay", type=number(float, 0), default=3e-4)
    parser.add_argument("--grad_clip", type=number(float, 0), default=5.0, help="largest gradient norm of a step")
    # testing
    parser.add_argument("--eval", action="store_true", help="only test --weights on the test set")
    parser.add_argument("--weights", help="a state_dict, or a checkpoint that holds one")
    # run
    utils.add_run_options(parser, seed=0, report_freq=50)
    return parser


def parse_args() -> argparse.Namespace:
    """The command line with its defaults filled in; exits with status 2 where it can't be right."""
    parser = get_args_parser()
    args = utils.parse_args(parser, "eval")
    utils.choose_dataset(parser, args)
    if args.eval != bool(args.weights):
        parser.error("--eval and --weights go together: --eval --weights FILE tests the weights in FILE")
    return args


def main(args: argparse.Namespace) -> None:
    device = utils.pick_device(args.device, args.deterministic)
    utils.init_distributed(device)
    genotype = genotypes.load(utils.arch_of(args))
    with utils.rank0_first():  # one process downloads
        dataset = data.load(args.dataset, args.tmp_data_dir, args.image_size)
    image_size = dataset.train_images.size(-1)
    if args.auxiliary and image_size < 29:  # its 8x8 input is two reductions down
        raise ValueError(f"--auxiliary needs images of 29x29 or more, not {image_size}x{image_size}: leave it out, or "
                         "give --image_size 32")
    utils.seed_everything(args.seed)
    network = NetworkCIFAR(args.init_channels, len(dataset.classes), args.layers, args.auxiliary, genotype).to(device)
    if args.eval:
        utils.load_weights(args.weights, network)
        log.info("{test_acc:.2f}% test accuracy, {test_acc_top5:.2f}% top-5, loss {test_loss:.4f}".format(
            **engine.test(network, test_batches(dataset, args, device), "test")))
        return
    cutout = (args.cutout_length or image_size // 2) if args.cutout else 0
    batches = data.Batches(dataset.train_images, dataset.train_target, args.batch_size, dataset, device,
                           utils.derive_seed(args.seed), cutout, utils.rank(), utils.world_size())
    run_dir = utils.open_run_dir("eval", args, device)
    if utils.rank() == 0:
        genotypes.save(genotype, run_dir / "genotype.json")
    engine.log_start(run_dir, args, device, network, image_size)
    optimizer = torch.optim.SGD(network.parameters(), args.learning_rate, args.momentum, weight_decay=args.weight_decay,
                                fused=True)
    trained, scaler = engine.prepare(network, device, args)
    parts = {"network": network, "optimizer": optimizer, "scaler": scaler, "batches": batches}
    state = engine.restore(run_dir, "eval", parts)
    write_scalars = utils.scalar_writer(args, run_dir, done=state["epoch"])
    for epoch in range(state["epoch"], args.epochs):
        lr = engine.cosine(args.learning_rate, 0.0, epoch, args.epochs)
        engine.set_learning_rate(optimizer, lr)
        network.drop_path_prob = args.drop_path_prob * epoch / args.epochs
        record = {"epoch": epoch, "lr": lr, "drop_path_prob": network.drop_path_prob}
        with engine.epoch_meter(f"epoch {epoch}", len(batches), args, run_dir, state, parts) as meter:
            record |= engine.train_one_epoch(trained, batches, optimizer, scaler, epoch, meter, args)
            record |= engine.test(network, test_batches(dataset, args, device), f"epoch {epoch} test")
        engine.finish_epoch(state, record, parts, run_dir)
        write_scalars(epoch, record)
    engine.report(state, network, run_dir)
    if utils.rank() == 0:
        log.info(f"pictures: {visualize.draw_run(run_dir)}")


def test_batches(dataset: data.DataSet, args: argparse.Namespace, device: torch.device):
    """This process's share of the test set."""
    return data.eval_batches(dataset.test_images, dataset.test_target, args.batch_size, dataset, device, utils.rank(),
                             utils.world_size())


if __name__ == "__main__":
    utils.run(main, parse_args)

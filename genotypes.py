"""Cells as data: the primitives, the published genotypes, and reading and writing one as JSON."""
import difflib
import json
import os
import random
from pathlib import Path
from typing import NamedTuple

PRIMITIVES = [  # the order of every alpha row
    "none", "max_pool_3x3", "avg_pool_3x3", "skip_connect",
    "sep_conv_3x3", "sep_conv_5x5", "dil_conv_3x3", "dil_conv_5x5",
]
OPERATIONS = PRIMITIVES[1:] + ["sep_conv_7x7", "conv_7x1_1x7"]  # what an evaluation cell may hold


class Genotype(NamedTuple):
    """A normal and a reduction cell: genes are (operation, source state) pairs, two for each node in order.

    States 0 and 1 are the outputs of the two previous cells, 2, 3, ... the nodes; *_concat lists the states that form
    the cell's output.
    """
    normal: list
    normal_concat: list
    reduce: list
    reduce_concat: list


def load(name_or_path: str) -> Genotype:
    """The genotype of a published cell's name, a genotype.json, a search's run directory, or random:SEED.

    Raises ValueError, in one line, for an unknown name or a file that holds no genotype.
    """
    if name_or_path in PUBLISHED:
        return PUBLISHED[name_or_path]
    if name_or_path.startswith("random:"):
        seed = name_or_path.removeprefix("random:")
        if not (seed.isascii() and seed.isdigit() and len(seed) < 19):
            raise ValueError(f"{name_or_path[:60]!r}: the seed must be a whole number, as in random:0")
        return random_genotype(int(seed))
    path = Path(name_or_path)
    shown = repr(name_or_path[-200:])  # one line, whatever it holds
    try:
        if path.is_dir():
            path = path / "genotype.json"
            if not path.is_file():
                raise ValueError("no genotype.json in it, name the directory of a finished search")
        if path.is_file():
            return parse(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, OSError, RecursionError) as error:  # not UTF-8, not JSON, no genotype, ...
        raise ValueError(f"{shown} holds no genotype: {' '.join(str(error).split())}") from None
    upper = {name.upper(): name for name in PUBLISHED}
    near = difflib.get_close_matches(name_or_path.upper(), upper, n=5, cutoff=0.5)
    hint = "near names: " + ", ".join(upper[name] for name in near) if near else "names: " + ", ".join(PUBLISHED)
    raise ValueError(f"{shown} is neither a published cell nor a file; {hint}")


def save(genotype: Genotype, path) -> None:
    """Write a genotype as JSON, whole or not at all. Raises OSError."""
    temporary = Path(f"{path}.tmp")
    try:
        temporary.write_text(json.dumps(genotype._asdict()) + "\n", encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OSError(f"can't write {path} ({error.strerror}): make room or rights there") from error


def parse(record) -> Genotype:
    """The genotype of a decoded JSON object {"normal": [["op", state], ...], "normal_concat": [state, ...], ...}.

    Raises ValueError, in one line, for anything that an evaluation network can't be built from.
    """
    if not isinstance(record, dict) or set(record) != set(Genotype._fields):
        raise ValueError(f"expected a JSON object with the keys {', '.join(Genotype._fields)}")
    for cell in ("normal", "reduce"):
        _check_genes(cell, record[cell])
        _check_concat(cell, record[f"{cell}_concat"], nodes=len(record[cell]) // 2)
    return Genotype([tuple(gene) for gene in record["normal"]], record["normal_concat"],
                    [tuple(gene) for gene in record["reduce"]], record["reduce_concat"])


def _check_genes(cell: str, genes) -> None:
    if not isinstance(genes, list) or not 2 <= len(genes) <= 32 or len(genes) % 2:
        raise ValueError(f"'{cell}' must list [operation, state] pairs, two for each of 1 to 16 nodes")
    for i, gene in enumerate(genes):
        if not (isinstance(gene, list) and len(gene) == 2 and isinstance(gene[0], str) and type(gene[1]) is int):
            raise ValueError(f"'{cell}' gene {i} must be an [operation, state] pair")
        op, state = gene
        if op not in OPERATIONS:
            raise ValueError(f"'{cell}' gene {i} has the unknown operation {op[:40]!r}; known: {', '.join(OPERATIONS)}")
        if not 0 <= state < 2 + i // 2:
            raise ValueError(f"'{cell}' gene {i} takes state {str(state)[:20]}; node {i // 2} takes 0 to {1 + i // 2}")


def _check_concat(cell: str, concat, nodes: int) -> None:
    allowed = range(2, 2 + nodes)
    if not (isinstance(concat, list) and concat and all(type(state) is int and state in allowed for state in concat)
            and len(set(concat)) == len(concat)):
        raise ValueError(f"'{cell}_concat' must list different nodes out of 2 to {1 + nodes}")


def random_genotype(seed: int) -> Genotype:
    """A cell drawn uniformly from the search space: per node two different states, each with any operation but none."""
    rng = random.Random(seed)
    normal, reduce = ([(rng.choice(PRIMITIVES[1:]), state)
                       for node in range(4) for state in sorted(rng.sample(range(2 + node), 2))] for _ in range(2))
    return Genotype(normal, [2, 3, 4, 5], reduce, [2, 3, 4, 5])


def count_skips(genes: list) -> int:
    """The number of skip-connects among a cell's genes."""
    return sum(op == "skip_connect" for op, _ in genes)


# The published cells, under the names their papers use; sources and reported figures: tests/golden/genotypes.json.
PUBLISHED = {
    "NASNet": Genotype(
        [("sep_conv_5x5", 1), ("sep_conv_3x3", 0), ("sep_conv_5x5", 0), ("sep_conv_3x3", 0), ("avg_pool_3x3", 1),
         ("skip_connect", 0), ("avg_pool_3x3", 0), ("avg_pool_3x3", 0), ("sep_conv_3x3", 1),
         ("skip_connect", 1)], [2, 3, 4, 5, 6],
        [("sep_conv_5x5", 1), ("sep_conv_7x7", 0), ("max_pool_3x3", 1), ("sep_conv_7x7", 0), ("avg_pool_3x3", 1),
         ("sep_conv_5x5", 0), ("skip_connect", 3), ("avg_pool_3x3", 2), ("sep_conv_3x3", 2),
         ("max_pool_3x3", 1)], [4, 5, 6]),
    "AmoebaNet": Genotype(
        [("avg_pool_3x3", 0), ("max_pool_3x3", 1), ("sep_conv_3x3", 0), ("sep_conv_5x5", 2), ("sep_conv_3x3", 0),
         ("avg_pool_3x3", 3), ("sep_conv_3x3", 1), ("skip_connect", 1), ("skip_connect", 0),
         ("avg_pool_3x3", 1)], [4, 5, 6],
        [("avg_pool_3x3", 0), ("sep_conv_3x3", 1), ("max_pool_3x3", 0), ("sep_conv_7x7", 2), ("sep_conv_7x7", 0),
         ("avg_pool_3x3", 1), ("max_pool_3x3", 0), ("max_pool_3x3", 1), ("conv_7x1_1x7", 0),
         ("sep_conv_3x3", 5)], [3, 4, 6]),
    "DARTS_V1": Genotype(
        [("sep_conv_3x3", 1), ("sep_conv_3x3", 0), ("skip_connect", 0), ("sep_conv_3x3", 1), ("skip_connect", 0),
         ("sep_conv_3x3", 1), ("sep_conv_3x3", 0), ("skip_connect", 2)], [2, 3, 4, 5],
        [("max_pool_3x3", 0), ("max_pool_3x3", 1), ("skip_connect", 2), ("max_pool_3x3", 0), ("max_pool_3x3", 0),
         ("skip_connect", 2), ("skip_connect", 2), ("avg_pool_3x3", 0)], [2, 3, 4, 5]),
    "DARTS_V2": Genotype(
        [("sep_conv_3x3", 0), ("sep_conv_3x3", 1), ("sep_conv_3x3", 0), ("sep_conv_3x3", 1), ("sep_conv_3x3", 1),
         ("skip_connect", 0), ("skip_connect", 0), ("dil_conv_3x3", 2)], [2, 3, 4, 5],
        [("max_pool_3x3", 0), ("max_pool_3x3", 1), ("skip_connect", 2), ("max_pool_3x3", 1), ("max_pool_3x3", 0),
         ("skip_connect", 2), ("skip_connect", 2), ("max_pool_3x3", 1)], [2, 3, 4, 5]),
    "PDARTS": Genotype(
        [("skip_connect", 0), ("dil_conv_3x3", 1), ("skip_connect", 0), ("sep_conv_3x3", 1), ("sep_conv_3x3", 1),
         ("sep_conv_3x3", 3), ("sep_conv_3x3", 0), ("dil_conv_5x5", 4)], [2, 3, 4, 5],
        [("avg_pool_3x3", 0), ("sep_conv_5x5", 1), ("sep_conv_3x3", 0), ("dil_conv_5x5", 2), ("max_pool_3x3", 0),
         ("dil_conv_3x3", 1), ("dil_conv_3x3", 1), ("dil_conv_5x5", 3)], [2, 3, 4, 5]),
    "PC_DARTS_cifar": Genotype(
        [("sep_conv_3x3", 1), ("skip_connect", 0), ("sep_conv_3x3", 0), ("dil_conv_3x3", 1), ("sep_conv_5x5", 0),
         ("sep_conv_3x3", 1), ("avg_pool_3x3", 0), ("dil_conv_3x3", 1)], [2, 3, 4, 5],
        [("sep_conv_5x5", 1), ("max_pool_3x3", 0), ("sep_conv_5x5", 1), ("sep_conv_5x5", 2), ("sep_conv_3x3", 0),
         ("sep_conv_3x3", 3), ("sep_conv_3x3", 1), ("sep_conv_3x3", 2)], [2, 3, 4, 5]),
    "PC_DARTS_image": Genotype(
        [("skip_connect", 1), ("sep_conv_3x3", 0), ("sep_conv_3x3", 0), ("skip_connect", 1), ("sep_conv_3x3", 1),
         ("sep_conv_3x3", 3), ("sep_conv_3x3", 1), ("dil_conv_5x5", 4)], [2, 3, 4, 5],
        [("sep_conv_3x3", 0), ("skip_connect", 1), ("dil_conv_5x5", 2), ("max_pool_3x3", 1), ("sep_conv_3x3", 2),
         ("sep_conv_3x3", 1), ("sep_conv_5x5", 0), ("sep_conv_3x3", 3)], [2, 3, 4, 5]),
    "SNAS": Genotype(
        [("sep_conv_3x3", 0), ("sep_conv_3x3", 1), ("skip_connect", 0), ("dil_conv_3x3", 1), ("skip_connect", 1),
         ("skip_connect", 0), ("skip_connect", 0), ("sep_conv_3x3", 1)], [2, 3, 4, 5],
        [("max_pool_3x3", 0), ("max_pool_3x3", 1), ("max_pool_3x3", 1), ("skip_connect", 2), ("skip_connect", 2),
         ("max_pool_3x3", 1), ("max_pool_3x3", 0), ("dil_conv_5x5", 2)], [2, 3, 4, 5]),
    "MdeNAS": Genotype(
        [("sep_conv_5x5", 1), ("sep_conv_3x3", 0), ("skip_connect", 0), ("sep_conv_5x5", 1), ("sep_conv_5x5", 3),
         ("sep_conv_3x3", 1), ("dil_conv_5x5", 3), ("max_pool_3x3", 4)], [2, 3, 4, 5],
        [("max_pool_3x3", 0), ("sep_conv_5x5", 1), ("skip_connect", 0), ("skip_connect", 1), ("sep_conv_3x3", 3),
         ("skip_connect", 2), ("dil_conv_3x3", 3), ("sep_conv_5x5", 0)], [2, 3, 4, 5]),
    "FairDARTS_d": Genotype(
        [("sep_conv_3x3", 0), ("sep_conv_5x5", 1), ("max_pool_3x3", 0), ("dil_conv_3x3", 1), ("dil_conv_3x3", 0),
         ("dil_conv_3x3", 1), ("sep_conv_3x3", 0), ("dil_conv_5x5", 1)], [2, 3, 4, 5],
        [("max_pool_3x3", 0), ("sep_conv_5x5", 1), ("avg_pool_3x3", 0), ("dil_conv_5x5", 2), ("avg_pool_3x3", 0),
         ("dil_conv_3x3", 3), ("avg_pool_3x3", 0), ("skip_connect", 3)], [2, 3, 4, 5]),
    "SGAS_Cri1_CIFAR_best": Genotype(
        [("sep_conv_3x3", 0), ("dil_conv_3x3", 1), ("sep_conv_3x3", 0), ("sep_conv_3x3", 1), ("sep_conv_5x5", 1),
         ("sep_conv_5x5", 3), ("skip_connect", 0), ("dil_conv_5x5", 2)], [2, 3, 4, 5],
        [("max_pool_3x3", 0), ("dil_conv_5x5", 1), ("sep_conv_3x3", 0), ("skip_connect", 2), ("sep_conv_3x3", 1),
         ("skip_connect", 2), ("max_pool_3x3", 0), ("max_pool_3x3", 1)], [2, 3, 4, 5]),
    "SGAS_Cri2_CIFAR_best": Genotype(
        [("sep_conv_3x3", 0), ("sep_conv_3x3", 1), ("sep_conv_3x3", 0), ("sep_conv_3x3", 2), ("max_pool_3x3", 0),
         ("sep_conv_3x3", 3), ("sep_conv_3x3", 2), ("sep_conv_3x3", 3)], [2, 3, 4, 5],
        [("sep_conv_3x3", 0), ("max_pool_3x3", 1), ("dil_conv_3x3", 0), ("max_pool_3x3", 1), ("max_pool_3x3", 0),
         ("sep_conv_3x3", 2), ("max_pool_3x3", 0), ("sep_conv_5x5", 2)], [2, 3, 4, 5]),
    "SGAS_Cri2_ImageNet_best": Genotype(
        [("sep_conv_3x3", 0), ("sep_conv_3x3", 1), ("sep_conv_3x3", 0), ("sep_conv_3x3", 1), ("dil_conv_5x5", 0),
         ("dil_conv_3x3", 2), ("sep_conv_3x3", 1), ("dil_conv_5x5", 3)], [2, 3, 4, 5],
        [("sep_conv_5x5", 0), ("dil_conv_3x3", 1), ("max_pool_3x3", 0), ("max_pool_3x3", 1), ("dil_conv_3x3", 0),
         ("dil_conv_5x5", 2), ("max_pool_3x3", 0), ("avg_pool_3x3", 1)], [2, 3, 4, 5]),
    "SGAS_Cri1_CIFAR_1": Genotype(
        [("skip_connect", 0), ("sep_conv_3x3", 1), ("sep_conv_3x3", 0), ("sep_conv_5x5", 1), ("sep_conv_3x3", 1),
         ("sep_conv_3x3", 2), ("dil_conv_5x5", 2), ("dil_conv_3x3", 3)], [2, 3, 4, 5],
        [("max_pool_3x3", 0), ("dil_conv_3x3", 1), ("sep_conv_3x3", 0), ("sep_conv_5x5", 2), ("max_pool_3x3", 1),
         ("skip_connect", 2), ("skip_connect", 2), ("skip_connect", 3)], [2, 3, 4, 5]),
    "SGAS_Cri1_CIFAR_2": Genotype(
        [("sep_conv_3x3", 0), ("dil_conv_3x3", 1), ("skip_connect", 0), ("dil_conv_3x3", 2), ("sep_conv_3x3", 1),
         ("sep_conv_3x3", 2), ("sep_conv_3x3", 2), ("sep_conv_5x5", 4)], [2, 3, 4, 5],
        [("avg_pool_3x3", 0), ("sep_conv_3x3", 1), ("max_pool_3x3", 0), ("skip_connect", 2), ("max_pool_3x3", 0),
         ("sep_conv_5x5", 2), ("max_pool_3x3", 1), ("dil_conv_5x5", 3)], [2, 3, 4, 5]),
    "SGAS_Cri2_CIFAR_5": Genotype(
        [("sep_conv_3x3", 0), ("sep_conv_5x5", 1), ("skip_connect", 0), ("sep_conv_5x5", 1), ("dil_conv_3x3", 1),
         ("dil_conv_3x3", 2), ("sep_conv_3x3", 2), ("dil_conv_5x5", 3)], [2, 3, 4, 5],
        [("sep_conv_5x5", 0), ("skip_connect", 1), ("max_pool_3x3", 1), ("sep_conv_5x5", 2), ("max_pool_3x3", 0),
         ("sep_conv_5x5", 3), ("max_pool_3x3", 0), ("skip_connect", 2)], [2, 3, 4, 5]),
    "SDARTS_RS": Genotype(
        [("sep_conv_3x3", 1), ("sep_conv_3x3", 0), ("sep_conv_5x5", 1), ("skip_connect", 0), ("sep_conv_3x3", 3),
         ("skip_connect", 1), ("sep_conv_3x3", 1), ("dil_conv_3x3", 2)], [2, 3, 4, 5],
        [("max_pool_3x3", 0), ("sep_conv_3x3", 1), ("skip_connect", 2), ("max_pool_3x3", 0), ("dil_conv_5x5", 3),
         ("max_pool_3x3", 0), ("sep_conv_3x3", 2), ("sep_conv_5x5", 3)], [2, 3, 4, 5]),
    "SDARTS_ADV": Genotype(
        [("sep_conv_3x3", 0), ("sep_conv_3x3", 1), ("sep_conv_3x3", 1), ("skip_connect", 0), ("sep_conv_5x5", 0),
         ("dil_conv_3x3", 3), ("dil_conv_3x3", 4), ("skip_connect", 0)], [2, 3, 4, 5],
        [("max_pool_3x3", 0), ("sep_conv_5x5", 1), ("skip_connect", 2), ("max_pool_3x3", 0), ("skip_connect", 3),
         ("skip_connect", 2), ("skip_connect", 2), ("sep_conv_5x5", 4)], [2, 3, 4, 5]),
    "DrNAS_cifar10": Genotype(
        [("sep_conv_3x3", 0), ("sep_conv_5x5", 1), ("sep_conv_3x3", 1), ("sep_conv_3x3", 2), ("skip_connect", 0),
         ("sep_conv_3x3", 1), ("sep_conv_3x3", 2), ("dil_conv_5x5", 3)], [2, 3, 4, 5],
        [("max_pool_3x3", 0), ("sep_conv_5x5", 1), ("dil_conv_5x5", 2), ("sep_conv_5x5", 1), ("sep_conv_5x5", 1),
         ("dil_conv_5x5", 3), ("skip_connect", 4), ("sep_conv_5x5", 1)], [2, 3, 4, 5]),
    "DrNAS_imagenet": Genotype(
        [("sep_conv_3x3", 1), ("sep_conv_3x3", 0), ("sep_conv_3x3", 0), ("sep_conv_3x3", 1), ("sep_conv_3x3", 0),
         ("dil_conv_3x3", 3), ("skip_connect", 0), ("sep_conv_3x3", 1)], [2, 3, 4, 5],
        [("max_pool_3x3", 0), ("sep_conv_3x3", 1), ("sep_conv_3x3", 0), ("skip_connect", 2), ("sep_conv_3x3", 0),
         ("sep_conv_3x3", 2), ("sep_conv_3x3", 3), ("sep_conv_3x3", 1)], [2, 3, 4, 5]),
    "DARTS_PT_s5_0": Genotype(
        [("sep_conv_3x3", 0), ("sep_conv_3x3", 1), ("sep_conv_5x5", 0), ("dil_conv_3x3", 1), ("skip_connect", 0),
         ("skip_connect", 2), ("skip_connect", 0), ("max_pool_3x3", 4)], [2, 3, 4, 5],
        [("sep_conv_3x3", 0), ("avg_pool_3x3", 1), ("dil_conv_5x5", 1), ("dil_conv_3x3", 2), ("avg_pool_3x3", 0),
         ("max_pool_3x3", 2), ("sep_conv_3x3", 2), ("skip_connect", 4)], [2, 3, 4, 5]),
    "DARTS_PT_s5_1": Genotype(
        [("sep_conv_3x3", 0), ("sep_conv_3x3", 1), ("sep_conv_3x3", 0), ("dil_conv_3x3", 1), ("max_pool_3x3", 0),
         ("skip_connect", 2), ("skip_connect", 0), ("dil_conv_3x3", 4)], [2, 3, 4, 5],
        [("dil_conv_5x5", 0), ("avg_pool_3x3", 1), ("max_pool_3x3", 0), ("sep_conv_5x5", 2), ("max_pool_3x3", 1),
         ("dil_conv_3x3", 3), ("sep_conv_5x5", 0), ("sep_conv_3x3", 4)], [2, 3, 4, 5]),
    "DARTS_PT_s5_2": Genotype(
        [("skip_connect", 0), ("sep_conv_3x3", 1), ("sep_conv_3x3", 0), ("dil_conv_3x3", 1), ("skip_connect", 2),
         ("dil_conv_3x3", 3), ("max_pool_3x3", 1), ("skip_connect", 2)], [2, 3, 4, 5],
        [("avg_pool_3x3", 0), ("max_pool_3x3", 1), ("avg_pool_3x3", 0), ("sep_conv_3x3", 1), ("dil_conv_5x5", 2),
         ("skip_connect", 3), ("sep_conv_3x3", 2), ("sep_conv_5x5", 4)], [2, 3, 4, 5]),
    "DARTS_PT_s5_3": Genotype(
        [("sep_conv_3x3", 0), ("sep_conv_3x3", 1), ("sep_conv_3x3", 0), ("sep_conv_3x3", 1), ("skip_connect", 0),
         ("skip_connect", 2), ("sep_conv_3x3", 1), ("skip_connect", 3)], [2, 3, 4, 5],
        [("avg_pool_3x3", 0), ("sep_conv_5x5", 1), ("max_pool_3x3", 1), ("skip_connect", 2), ("dil_conv_5x5", 1),
         ("max_pool_3x3", 3), ("sep_conv_5x5", 2), ("skip_connect", 3)], [2, 3, 4, 5]),
    "CDARTS_cifar": Genotype(
        [("sep_conv_3x3", 0), ("sep_conv_3x3", 1), ("sep_conv_3x3", 1), ("sep_conv_3x3", 2), ("sep_conv_3x3", 0),
         ("sep_conv_3x3", 1), ("skip_connect", 0), ("skip_connect", 2)], [2, 3, 4, 5],
        [("sep_conv_5x5", 1), ("max_pool_3x3", 0), ("dil_conv_5x5", 2), ("skip_connect", 0), ("sep_conv_3x3", 0),
         ("sep_conv_5x5", 1), ("sep_conv_3x3", 0), ("dil_conv_5x5", 2)], [2, 3, 4, 5]),
    "CDARTS_imagenet": Genotype(
        [("sep_conv_3x3", 1), ("sep_conv_3x3", 0), ("sep_conv_3x3", 0), ("sep_conv_5x5", 2), ("sep_conv_5x5", 2),
         ("sep_conv_3x3", 1), ("sep_conv_3x3", 1), ("sep_conv_5x5", 4)], [2, 3, 4, 5],
        [("sep_conv_5x5", 1), ("avg_pool_3x3", 0), ("max_pool_3x3", 1), ("dil_conv_5x5", 2), ("sep_conv_5x5", 1),
         ("dil_conv_5x5", 2), ("sep_conv_3x3", 3), ("dil_conv_3x3", 4)], [2, 3, 4, 5]),
    "UnNAS_ImageNet_CLS": Genotype(
        [("sep_conv_3x3", 1), ("sep_conv_3x3", 0), ("sep_conv_3x3", 1), ("sep_conv_3x3", 0), ("sep_conv_3x3", 0),
         ("sep_conv_3x3", 2), ("sep_conv_5x5", 1), ("sep_conv_3x3", 0)], [2, 3, 4, 5],
        [("max_pool_3x3", 0), ("skip_connect", 1), ("max_pool_3x3", 0), ("dil_conv_5x5", 2), ("max_pool_3x3", 0),
         ("sep_conv_3x3", 2), ("sep_conv_3x3", 4), ("dil_conv_5x5", 3)], [2, 3, 4, 5]),
    "UnNAS_ImageNet_ROT": Genotype(
        [("sep_conv_3x3", 0), ("sep_conv_3x3", 1), ("sep_conv_3x3", 0), ("sep_conv_3x3", 1), ("sep_conv_3x3", 1),
         ("sep_conv_3x3", 0), ("sep_conv_3x3", 0), ("sep_conv_3x3", 1)], [2, 3, 4, 5],
        [("sep_conv_3x3", 1), ("sep_conv_3x3", 0), ("sep_conv_3x3", 2), ("sep_conv_3x3", 1), ("sep_conv_3x3", 1),
         ("sep_conv_3x3", 2), ("sep_conv_3x3", 4), ("sep_conv_5x5", 2)], [2, 3, 4, 5]),
    "UnNAS_ImageNet_COL": Genotype(
        [("skip_connect", 0), ("sep_conv_3x3", 1), ("sep_conv_3x3", 1), ("skip_connect", 0), ("sep_conv_3x3", 0),
         ("sep_conv_3x3", 3), ("sep_conv_3x3", 0), ("sep_conv_3x3", 2)], [2, 3, 4, 5],
        [("max_pool_3x3", 0), ("sep_conv_3x3", 1), ("max_pool_3x3", 0), ("sep_conv_3x3", 1), ("max_pool_3x3", 0),
         ("sep_conv_5x5", 3), ("max_pool_3x3", 0), ("sep_conv_3x3", 4)], [2, 3, 4, 5]),
    "UnNAS_ImageNet_JIG": Genotype(
        [("sep_conv_3x3", 0), ("sep_conv_3x3", 1), ("sep_conv_3x3", 0), ("sep_conv_3x3", 1), ("sep_conv_3x3", 0),
         ("sep_conv_3x3", 3), ("sep_conv_3x3", 1), ("sep_conv_5x5", 0)], [2, 3, 4, 5],
        [("sep_conv_5x5", 0), ("sep_conv_3x3", 1), ("sep_conv_3x3", 0), ("sep_conv_3x3", 1), ("sep_conv_3x3", 0),
         ("sep_conv_3x3", 1), ("sep_conv_5x5", 0), ("sep_conv_3x3", 1)], [2, 3, 4, 5]),
    "PNASNet": Genotype(
        [("sep_conv_5x5", 0), ("max_pool_3x3", 0), ("sep_conv_7x7", 1), ("max_pool_3x3", 1), ("sep_conv_5x5", 1),
         ("sep_conv_3x3", 1), ("sep_conv_3x3", 4), ("max_pool_3x3", 1), ("sep_conv_3x3", 0),
         ("skip_connect", 1)], [2, 3, 4, 5, 6],
        [("sep_conv_5x5", 0), ("max_pool_3x3", 0), ("sep_conv_7x7", 1), ("max_pool_3x3", 1), ("sep_conv_5x5", 1),
         ("sep_conv_3x3", 1), ("sep_conv_3x3", 4), ("max_pool_3x3", 1), ("sep_conv_3x3", 0),
         ("skip_connect", 1)], [2, 3, 4, 5, 6]),
    "GDAS_V1": Genotype(
        [("skip_connect", 0), ("skip_connect", 1), ("skip_connect", 0), ("sep_conv_5x5", 2), ("sep_conv_3x3", 3),
         ("skip_connect", 0), ("sep_conv_5x5", 4), ("sep_conv_3x3", 3)], [2, 3, 4, 5],
        [("sep_conv_5x5", 0), ("sep_conv_3x3", 1), ("sep_conv_5x5", 2), ("sep_conv_5x5", 1), ("dil_conv_5x5", 2),
         ("sep_conv_3x3", 1), ("sep_conv_5x5", 0), ("sep_conv_5x5", 1)], [2, 3, 4, 5]),
    "PTDARTS_khanrc_cifar10": Genotype(
        [("sep_conv_3x3", 0), ("dil_conv_5x5", 1), ("skip_connect", 0), ("dil_conv_3x3", 2), ("sep_conv_3x3", 1),
         ("skip_connect", 0), ("sep_conv_3x3", 1), ("skip_connect", 0)], [2, 3, 4, 5],
        [("max_pool_3x3", 0), ("max_pool_3x3", 1), ("max_pool_3x3", 0), ("skip_connect", 2), ("skip_connect", 3),
         ("max_pool_3x3", 0), ("skip_connect", 2), ("max_pool_3x3", 0)], [2, 3, 4, 5]),
    "MMRazor_DARTS_cifar10": Genotype(
        [("sep_conv_3x3", 0), ("sep_conv_3x3", 1), ("skip_connect", 0), ("sep_conv_5x5", 1), ("sep_conv_3x3", 0),
         ("skip_connect", 1), ("skip_connect", 0), ("skip_connect", 1)], [2, 3, 4, 5],
        [("max_pool_3x3", 0), ("sep_conv_3x3", 1), ("max_pool_3x3", 0), ("dil_conv_5x5", 2), ("max_pool_3x3", 0),
         ("skip_connect", 2), ("max_pool_3x3", 0), ("skip_connect", 2)], [2, 3, 4, 5]),
    "CARS_I": Genotype(
        [("sep_conv_3x3", 0), ("sep_conv_3x3", 1), ("skip_connect", 0), ("sep_conv_5x5", 1), ("skip_connect", 2),
         ("sep_conv_3x3", 3), ("sep_conv_3x3", 0), ("dil_conv_5x5", 4)], [2, 3, 4, 5],
        [("dil_conv_3x3", 0), ("skip_connect", 1), ("max_pool_3x3", 0), ("max_pool_3x3", 2), ("skip_connect", 1),
         ("sep_conv_5x5", 3), ("dil_conv_3x3", 1), ("max_pool_3x3", 4)], [2, 3, 4, 5]),
    "DropNAS": Genotype(
        [("skip_connect", 0), ("sep_conv_3x3", 1), ("sep_conv_3x3", 1), ("max_pool_3x3", 2), ("sep_conv_3x3", 1),
         ("sep_conv_5x5", 2), ("sep_conv_5x5", 0), ("sep_conv_5x5", 1)], [2, 3, 4, 5],
        [("max_pool_3x3", 0), ("sep_conv_5x5", 1), ("dil_conv_5x5", 2), ("sep_conv_5x5", 1), ("dil_conv_5x5", 2),
         ("dil_conv_5x5", 3), ("dil_conv_5x5", 2), ("dil_conv_5x5", 4)], [2, 3, 4, 5]),
}

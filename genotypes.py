"""Cells as data: the primitives, the published genotypes, and reading (in every form people use) and writing one."""
import ast
import difflib
import hashlib
import json
import logging
import os
import random
import re
import warnings
from pathlib import Path
from typing import NamedTuple

PRIMITIVES = [  # the order of every alpha row
    "none", "max_pool_3x3", "avg_pool_3x3", "skip_connect",
    "sep_conv_3x3", "sep_conv_5x5", "dil_conv_3x3", "dil_conv_5x5",
]
NODES = 4  # intermediate nodes of a cell in the search space: 2 + 3 + 4 + 5 = 14 edges
OPERATIONS = PRIMITIVES[1:] + ["sep_conv_7x7", "conv_7x1_1x7"]  # what an evaluation cell may hold
ALIASES = {  # what the methods' own repositories call them, in the plain form of `_plain`
    "darts": "DARTS_V2", "darts1st": "DARTS_V1", "darts2nd": "DARTS_V2",
    "pcdarts": "PC_DARTS_cifar", "pcdartscifar10": "PC_DARTS_cifar", "pcdartsimagenet": "PC_DARTS_image",
}
log = logging.getLogger("pdarts")


class Genotype(NamedTuple):
    """A normal and a reduction cell: genes are (operation, source state) pairs, two for each node in order.

    States 0 and 1 are the outputs of the two previous cells, 2, 3, ... the nodes; *_concat lists the states that form
    the cell's output.
    """
    normal: list
    normal_concat: list
    reduce: list
    reduce_concat: list


def load(source: str) -> Genotype:
    """The genotype of a published cell's name, a file, a search's run directory, random:SEED, or as text.

    Names may be written in any case, with or without - and _. A file, or the text itself, holds our JSON or what
    searches print, see `read`; a file comes before a name that is not spelt as in PUBLISHED. Raises ValueError, in one
    line, for an unknown name and for what holds no genotype, or several that differ.
    """
    if source in PUBLISHED:
        return PUBLISHED[source]
    if source.startswith("random:"):
        seed = source.removeprefix("random:")
        if not (seed.isascii() and seed.isdigit() and len(seed) < 19):
            raise ValueError(f"{source[:60]!r}: the seed must be a whole number, as in random:0")
        return random_genotype(int(seed))
    try:
        if os.path.isdir(source):
            if not os.path.isfile(Path(source, "genotype.json")):
                raise ValueError("no genotype.json in it, name the directory of a finished search")
            return read(_content(Path(source, "genotype.json")))
        if os.path.isfile(source):
            return read(_content(Path(source)))
        if PRINTED.search(source) or source.lstrip().startswith("{"):
            return read(source)
    except (ValueError, OSError, RecursionError) as error:  # not UTF-8, not JSON, no genotype, ...
        shown = repr(source[-200:]) if os.path.exists(source) else repr(source[:60])  # one line, whatever it holds
        raise ValueError(f"{shown} holds no genotype: {_one_line(error)}") from None
    return _by_name(source)


def _by_name(name: str) -> Genotype:
    known = {_plain(published): published for published in PUBLISHED}
    plain = _plain(name)
    if plain in ALIASES:
        log.info(f"{name}: taken as {ALIASES[plain]}")
    if found := ALIASES.get(plain) or known.get(plain):
        return PUBLISHED[found]
    near = [name for name in known if plain and (name.startswith(plain) or plain.startswith(name))]
    near = near or difflib.get_close_matches(plain[:100], known, n=5, cutoff=0.5)
    if near:
        hint = "near names: " + ", ".join(known[name] for name in near)
    elif re.search(r"[(\[{]", name):  # no name at all
        hint = 'give its text as Genotype(normal=[...], ...) or JSON, {"normal": [...], ...}'
    else:
        hint = "names: " + ", ".join(PUBLISHED)
    raise ValueError(f"{name[-200:]!r} is neither a published cell nor a file; {hint}")


def label(source: str) -> str:
    """What `load` took, short enough for a line or a file's name: itself, or for a pasted text a name of its cell's."""
    if os.path.exists(source) or not (PRINTED.search(source) or source.lstrip().startswith("{")):
        return source
    return f"pasted-{hashlib.sha256(json.dumps(load(source)).encode()).hexdigest()[:8]}"


def _plain(name: str) -> str:
    return re.sub(r"[-_\s]", "", name).lower()


def _one_line(error) -> str:
    return " ".join(str(error).split())[:600]


def _content(path: Path) -> str:
    if path.stat().st_size > 2 ** 26:
        raise ValueError(f"{path.stat().st_size >> 20} MB are no genotype, name a text file")
    return path.read_text(encoding="utf-8-sig")


def save(genotype: Genotype, path) -> None:
    """Write a genotype as JSON, whole or not at all. Raises OSError."""
    temporary = Path(f"{path}.tmp")
    try:
        temporary.write_text(json.dumps(genotype._asdict()) + "\n", encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OSError(f"can't write {path} ({error.strerror}): make room or rights there") from error


def read(text: str) -> Genotype:
    """The genotype in a text: JSON, or Genotype(normal=[...], ...) as searches print it, with anything around it.

    Genes may be listed flat or node by node, with a weight as third entry; the output states as a list or a range. A
    text that holds several genotypes, as a whole log does, must hold the same one throughout. Nothing is executed.
    Raises ValueError or RecursionError.
    """
    if not PRINTED.search(text):
        try:
            record = json.loads(text)
        except ValueError as error:
            raise ValueError(f"expected JSON ({_one_line(error)}) or a printed Genotype(...)") from None
        return parse(record)
    found, match = [], PRINTED.search(text)
    while match:
        end = _closing(text, match.end())
        genotype = parse(_decode(text[match.start():end]))
        if genotype not in found:
            found.append(genotype)
        match = PRINTED.search(text, end)
    if len(found) > 1:
        raise ValueError(f"there are {len(found)} different ones in it: give the text of one, from Genotype( to )")
    return found[0]


PRINTED = re.compile(r"Genotype\s*\(")  # after anything: a module's name, or what colours a log
BRACKETS = re.compile(r"""'[^'\n]*'|"[^"\n]*"|\#[^\n]*|[()\[\]{}]""")  # or strings and comments, which may hold some
SCALARS = {"int32", "int64", "float16", "float32", "float64", "str_", "tensor"}  # of numpy and torch, as printed


def _closing(text: str, start: int) -> int:
    """The end of the call whose arguments begin at `start`."""
    depth = 1
    for match in BRACKETS.finditer(text, start, start + 20_000):
        depth += {"(": 1, "[": 1, "{": 1, ")": -1, "]": -1, "}": -1}.get(match[0], 0)
        if depth > 8:  # Python's parser is not to be trusted with much more
            break
        if depth == 0:
            return match.end()
    raise ValueError("Genotype( is never closed, or holds too much: give all of it, up to its )")


def _decode(text: str) -> dict:
    """A printed Genotype(...) as JSON would hold it: a dict of lists, strings and numbers."""
    try:
        with warnings.catch_warnings():  # a \d in a string is none of our concern
            warnings.simplefilter("ignore")
            call = ast.parse(text, mode="eval").body
    except (SyntaxError, MemoryError, RecursionError) as error:
        raise ValueError(f"Genotype(...) is cut or garbled ({_one_line(error)[:60]})") from None
    if not isinstance(call, ast.Call) or len(call.args) > len(Genotype._fields):
        raise ValueError("expected Genotype(normal=..., normal_concat=..., reduce=..., reduce_concat=...)")
    entries = [*zip(Genotype._fields, call.args), *((keyword.arg, keyword.value) for keyword in call.keywords)]
    record = {name: _literal(value, text) for name, value in entries}
    if len(record) < len(entries):
        raise ValueError("Genotype(...) gives an entry twice")
    # GDAS and its descendants print two more
    return {name: value for name, value in record.items() if name not in ("connectN", "connects") or value is not None}


def _literal(node: ast.expr, text: str):
    """What a piece of the parsed text says, if it is a list, a string, a number or a range."""
    match node:
        case ast.Constant(value=str() | int() | float() | None as value):
            return value
        case ast.List(elts=elements) | ast.Tuple(elts=elements):
            return [_literal(element, text) for element in elements]
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as value)):
            return -value
        case ast.Call(func=ast.Name(id="range"), args=args, keywords=[]) if 0 < len(args) < 4:
            numbers = [_literal(arg, text) for arg in args]
            if all(type(number) is int for number in numbers) and 0 not in numbers[2:]:
                return list(range(*numbers)[:100])
        case ast.Call(func=ast.Name(id="list" | "tuple"), args=[inner], keywords=[]):
            return _literal(inner, text)
        case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name), args=[ast.Constant() as number]) \
                if name in SCALARS:
            return _literal(number, text)
    shown = (ast.get_source_segment(text, node) or "")[:60]
    raise ValueError(f"{shown!r} is code, which is not run: put what it stands for")


def parse(record) -> Genotype:
    """The genotype of a decoded JSON object {"normal": [["op", state], ...], "normal_concat": [state, ...], ...}.

    Genes may be listed node by node, and have a weight as third entry. Raises ValueError, in one line, for anything
    that an evaluation network can't be built from.
    """
    if not isinstance(record, dict) or set(record) != set(Genotype._fields):
        raise ValueError(f"expected a JSON object or Genotype(...) with the entries {', '.join(Genotype._fields)}")
    cells = {cell: _pairs(cell, record[cell]) for cell in ("normal", "reduce")}
    for cell, genes in cells.items():
        _check_genes(cell, genes)
        _check_concat(cell, record[f"{cell}_concat"], nodes=len(genes) // 2)
    return Genotype([tuple(gene) for gene in cells["normal"]], record["normal_concat"],
                    [tuple(gene) for gene in cells["reduce"]], record["reduce_concat"])


def _pairs(cell: str, genes):
    """Genes as a flat list of [operation, state], out of lists per node and without weights."""
    if not isinstance(genes, list):
        return genes
    if genes and all(isinstance(node, list) and node and isinstance(node[0], list) for node in genes):
        for i, node in enumerate(genes):
            if len(node) != 2:
                raise ValueError(f"'{cell}' is nested per node, and node {i} has {len(node)} gene(s): it must have two")
        genes = [gene for node in genes for gene in node]
    kinds = [[type(entry) for entry in gene[:4]] if isinstance(gene, list) else [] for gene in genes]
    if [str, int, int] in kinds:
        raise ValueError(f"'{cell}' gene {kinds.index([str, int, int])} is an (operation, node, source) triple: cells "
                         "of any number of genes per node can't be read; give (operation, source) pairs, two per node")
    return [gene[:2] if kind == [str, int, float] else gene for gene, kind in zip(genes, kinds)]  # a search's weight


def _check_genes(cell: str, genes) -> None:
    if not isinstance(genes, list) or not 2 <= len(genes) <= 32 or len(genes) % 2:
        raise ValueError(f"'{cell}' must list (operation, source) pairs, two for each of 1 to 16 nodes")
    for i, gene in enumerate(genes):
        if not (isinstance(gene, list) and len(gene) == 2 and isinstance(gene[0], str) and type(gene[1]) is int):
            raise ValueError(f"'{cell}' gene {i} must be an (operation, source) pair, not {str(gene)[:40]!r}")
        op, state = gene
        if op == "none":
            raise ValueError(f"'{cell}' lists (operation, source) pairs, but gene {i} is 'none', which is no part of a "
                             "cell: choose another operation")
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
                       for node in range(NODES) for state in sorted(rng.sample(range(2 + node), 2))] for _ in range(2))
    concat = list(range(2, 2 + NODES))
    return Genotype(normal, concat, reduce, concat)


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

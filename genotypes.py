"""Cells as data: the primitives, the published genotypes, and reading genotypes (in every common form) and writing."""
import ast
import difflib
import hashlib
import json
import logging
import os
import random
import re
import secrets
import warnings
from pathlib import Path
from typing import NamedTuple

PRIMITIVES = [  # the order of every alpha row; a script may replace a name, see docs/own-operations.md
    "none", "max_pool_3x3", "avg_pool_3x3", "skip_connect",
    "sep_conv_3x3", "sep_conv_5x5", "dil_conv_3x3", "dil_conv_5x5",
]
NODES = 4  # intermediate nodes of a cell in the search space: 2 + 3 + 4 + 5 = 14 edges
OPERATIONS = [  # allowed in an evaluation cell, besides what a script adds to PRIMITIVES
    "max_pool_3x3", "avg_pool_3x3", "skip_connect", "sep_conv_3x3", "sep_conv_5x5", "dil_conv_3x3", "dil_conv_5x5",
    "sep_conv_7x7", "conv_7x1_1x7",
]
ALIASES = {  # names in the methods' own repositories, normalised by `_normalise`
    "darts": "DARTS_V2", "darts1st": "DARTS_V1", "darts2nd": "DARTS_V2",
    "pcdarts": "PC_DARTS_cifar", "pcdartscifar10": "PC_DARTS_cifar", "pcdartsimagenet": "PC_DARTS_image",
}
log = logging.getLogger("pdarts")


class Genotype(NamedTuple):
    """A normal and a reduction cell: genes are (operation, source state) pairs, two per node, in the nodes' order.

    States 0 and 1 are the outputs of the two previous cells, 2, 3, ... those of the nodes; the cell's output
    concatenates the states in *_concat.
    """
    normal: list
    normal_concat: list
    reduce: list
    reduce_concat: list


def load(source: str) -> Genotype:
    """The genotype that `source` names or holds: a published name, random:SEED, a file, a search's directory or a text.

    Names ignore case, - and _. A file or a text holds our JSON or what searches print, see `read`; a file takes
    precedence over a name that is not spelt exactly as in PUBLISHED. Raises ValueError, in one line, if the name is
    unknown, or if `source` holds no genotype or several different ones.
    """
    if source in PUBLISHED:
        return PUBLISHED[source]
    if source.startswith("random:"):
        seed = source.removeprefix("random:")
        if not (seed.isascii() and seed.isdigit() and len(seed) < 19):
            raise ValueError(f"{source[:60]!r}: the seed must be a whole number, as in random:0")
        return random_genotype(int(seed))
    if os.path.exists(source):
        return load_file(source)
    try:
        if _is_text(source):
            return read(source)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"can't load {source[:60]!r}: {_one_line(error)}") from None
    return _by_name(source)


def load_file(path) -> Genotype:
    """The genotype in a file, or in a run directory, whatever its name is. Raises ValueError, in one line."""
    path = Path(path)
    try:
        if path.is_dir() and not (path / "genotype.json").exists():
            raise ValueError("it has no genotype.json, use the directory of a finished search")
        return read(_read_file(path / "genotype.json" if path.is_dir() else path))
    except (ValueError, OSError, RecursionError) as error:  # not UTF-8, not JSON, no genotype, ...
        raise ValueError(f"can't load {str(path)[-200:]!r}: {_one_line(error)}") from None


def load_table(run_dir) -> list[dict]:
    """The rows of a search's genotypes.json, as `train_search.describe` makes them. Raises ValueError, in one line."""
    path = Path(run_dir) / "genotypes.json"
    try:
        rows = json.loads(_read_file(path))
        if not isinstance(rows, list) or not rows:
            raise ValueError("expected a list of cells")
        for row in rows:
            numbers = {name: row[name] for name in ("max_skip", "skips", "parameters", "multiply_adds")}
            if not all(type(number) is int and 0 <= number < 10**15 or (name, number) == ("max_skip", None)
                       for name, number in numbers.items()):
                raise ValueError(f"numbers can't be {numbers}")
            row["genotype"] = parse(row["genotype"])
        if len({row["max_skip"] for row in rows}) < len(rows):
            raise ValueError("a limit is listed twice")
        return rows
    except (ValueError, TypeError, KeyError, OSError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: --resume the run to rewrite it ({_one_line(error)})") from None


def _read_file(path: Path) -> str:
    """A text in UTF-8, or in what Windows' tools make of it. Raises ValueError or OSError."""
    if not path.is_file():
        raise ValueError("it is a pipe, a socket or a device, use a file")
    if path.stat().st_size > 2 ** 26:
        raise ValueError(f"{path.stat().st_size >> 20} MB is too large for a genotype, use a text file")
    content = path.read_bytes()
    return content.decode(json.detect_encoding(content))


def _by_name(name: str) -> Genotype:
    known = {_normalise(published): published for published in PUBLISHED}
    normalised = _normalise(name)
    if normalised in ALIASES:
        log.info(f"{name}: taken as {ALIASES[normalised]}")
    if found := ALIASES.get(normalised) or known.get(normalised):
        return PUBLISHED[found]
    similar = [name for name in known if normalised and (name.startswith(normalised) or normalised.startswith(name))]
    similar = similar or difflib.get_close_matches(normalised[:100], known, n=5, cutoff=0.5)
    if similar:
        hint = "similar names: " + ", ".join(known[name] for name in similar)
    elif re.search(r"[(\[{]", name):  # a text, not a name
        hint = 'use Genotype(normal=[...], ...) or JSON, {"normal": [...], ...}'
    else:
        hint = "names: " + ", ".join(PUBLISHED)
    raise ValueError(f"{name[-200:]!r} is neither a published cell nor a file; {hint}")


def label(source: str) -> str:
    """A short name of `source` for log lines and file names: itself, or for a pasted text one made from its cell."""
    if os.path.exists(source) or not _is_text(source):
        return source
    return f"pasted-{hashlib.sha256(json.dumps(load(source)).encode()).hexdigest()[:8]}"


def _is_text(source: str) -> bool:
    """Whether a source is the text of a cell, not a name: a printed Genotype, JSON, or a configuration amid text."""
    return bool(PRINTED.search(source) or CONFIG.search(source)) or source.lstrip().startswith("{")


def _normalise(name: str) -> str:
    return re.sub(r"[-_\s]", "", name).lower()


def _one_line(error) -> str:
    return " ".join(str(error).split())[:600]


def to_json(genotype: Genotype) -> bytes:
    return json.dumps(genotype._asdict()).encode() + b"\n"


def save(genotype: Genotype, path) -> None:
    """Write a genotype as JSON, whole or not at all; a link at `path` is replaced. Raises OSError."""
    temporary = Path(f"{path}.{secrets.token_hex(4)}.tmp")  # no file of this name exists yet
    try:
        temporary.write_bytes(to_json(genotype))
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OSError(f"can't write {path} ({error.strerror}): free space or fix access") from error


def read(text: str) -> Genotype:
    """The genotype in a text: JSON, or Genotype(normal=[...], ...) as searches print it, amid any other text.

    Genes may be listed flat or node by node, with a weight as third entry; the output states as a list or a range. All
    genotypes in a text, such as a log, must be the same. For configurations of NAS-Bench-301, see `to_config`. Nothing
    is executed. Raises ValueError or RecursionError.
    """
    if not PRINTED.search(text):
        if CONFIG.search(text):
            return _read_config(text)
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
        raise ValueError(f"it holds {len(found)} different genotypes: use the text of one, from Genotype( to )")
    return found[0]


PRINTED = re.compile(r"Genotype\s*\(")  # maybe preceded by a module's name, or a log's colour codes
BRACKETS = re.compile(r"""'[^'\n]*'|"[^"\n]*"|\#[^\n]*|[()\[\]{}]""")  # strings and comments may hold brackets
SCALARS = {"int32", "int64", "float16", "float32", "float64", "str_", "tensor"}  # printed by numpy and torch


def _closing(text: str, start: int) -> int:
    """The end of the call whose arguments begin at `start`."""
    depth = 1
    for match in BRACKETS.finditer(text, start, start + 20_000):
        depth += {"(": 1, "[": 1, "{": 1, ")": -1, "]": -1, "}": -1}.get(match[0], 0)
        if depth > 8:  # far deeper nesting can crash Python's parser
            break
        if depth == 0:
            return match.end()
    raise ValueError("Genotype( is not closed, or is too long: use all of it, up to its )")


def _decode(text: str) -> dict:
    """A printed Genotype(...) as decoded JSON: a dict of lists, strings and numbers."""
    try:
        with warnings.catch_warnings():  # of a \d in a string, for example
            warnings.simplefilter("ignore")
            call = ast.parse(text, mode="eval").body
    except (SyntaxError, MemoryError, RecursionError) as error:
        raise ValueError(f"Genotype(...) is truncated or garbled ({_one_line(error)[:60]})") from None
    if not isinstance(call, ast.Call) or len(call.args) > len(Genotype._fields):
        raise ValueError("expected Genotype(normal=..., normal_concat=..., reduce=..., reduce_concat=...)")
    entries = [*zip(Genotype._fields, call.args), *((keyword.arg, keyword.value) for keyword in call.keywords)]
    record = {name: _literal(value, text) for name, value in entries}
    if len(record) < len(entries):
        raise ValueError("Genotype(...) has an entry twice")
    # GDAS and its descendants also print these two, as None.
    return {name: value for name, value in record.items() if name not in ("connectN", "connects") or value is not None}


def _literal(node: ast.expr, text: str):
    """The value of a piece of the parsed text, if it is a list, a string, a number or a range."""
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
    raise ValueError(f"{shown!r} is code, which is not run: put its value instead")


def parse(record) -> Genotype:
    """The genotype of a decoded JSON object {"normal": [["op", state], ...], "normal_concat": [state, ...], ...}.

    Genes may be listed node by node, and have a weight as third entry. Raises ValueError, in one line, if an evaluation
    network can't be built from it.
    """
    if not isinstance(record, dict) or set(record) != set(Genotype._fields):
        raise ValueError(f"expected a JSON object or Genotype(...) with the entries {', '.join(Genotype._fields)}")
    cells = {cell: _pairs(cell, record[cell]) for cell in ("normal", "reduce")}
    for cell, genes in cells.items():
        _check_genes(cell, genes)
        _check_concat(cell, record[f"{cell}_concat"], nodes=len(genes) // 2)
    return Genotype([tuple(gene) for gene in cells["normal"]], record["normal_concat"],
                    [tuple(gene) for gene in cells["reduce"]], record["reduce_concat"])


CONFIG = re.compile(r"""darts:(edge|inputs_node)_(normal|reduce)_(\d+)["']\s*:\s*["'](\w*)""")  # an entry of to_config


def to_config(genotype: Genotype) -> dict[str, str]:
    """The cell as a configuration of NAS-Bench-301 (arXiv 2008.09777): the operations of its edges, its nodes' inputs.

    Edges are counted from 0 to 13, and nodes from 2, whose inputs are always 0 and 1. Raises ValueError if a cell is
    outside that space. `load` reads it again, each node's genes in the order of their sources; it ignores other keys.
    """
    config = {}
    for cell, genes, concat in (("normal", *genotype[:2]), ("reduce", *genotype[2:])):
        pairs = [sorted(pair, key=lambda gene: gene[1]) for pair in zip(genes[::2], genes[1::2])]
        if len(pairs) != NODES or list(concat) != [2, 3, 4, 5] or any(
                first[1] == second[1] or not {first[0], second[0]} <= set(OPERATIONS[:7]) for first, second in pairs):
            raise ValueError("NAS-Bench-301 has four nodes, all in the output, each with two different inputs, and "
                             f"{', '.join(OPERATIONS[:7])}; '{cell}' is {genes}, output {concat}")
        for node, pair in enumerate(pairs):
            config |= {f"edge_{cell}_{node * (node + 3) // 2 + state}": op for op, state in pair}
            config |= {f"inputs_node_{cell}_{2 + node}": f"{pair[0][1]}_{pair[1][1]}"} if node else {}
    return {f"NetworkSelectorDatasetInfo:darts:{key}": value for key, value in config.items()}


def _read_config(text: str) -> Genotype:
    """The genotype in a configuration of NAS-Bench-301, see `to_config`. Raises ValueError."""
    entries = {(f"{kind}_{cell}_{number}", value) for kind, cell, number, value in CONFIG.findall(text)}
    config, record = dict(entries), {}
    if len(config) < len(entries):
        raise ValueError("it holds several configurations of NAS-Bench-301: use the text of one")
    for cell in ("normal", "reduce"):
        record |= {cell: [], f"{cell}_concat": list(range(2, 2 + NODES))}
        for node in range(NODES):
            inputs = config.get(f"inputs_node_{cell}_{2 + node}") if node else "0_1"
            states = [state for state in range(2 + node) if str(state) in (inputs or "").split("_")]
            edges = [f"edge_{cell}_{node * (node + 3) // 2 + state}" for state in states]
            if len(states) != 2 or inputs != "{}_{}".format(*states) or not config.keys() >= set(edges):
                raise ValueError(f"inputs_node_{cell}_{2 + node} is {inputs!r:.40}: it must be two of the states 0 to "
                                 f"{1 + node}, as in 0_1, and their edges must have operations (here: {edges})")
            record[cell] += [[config[edge], state] for edge, state in zip(edges, states)]
    return parse(record)


def _pairs(cell: str, genes):
    """Genes as a flat list of [operation, state]: lists per node are joined, weights dropped."""
    if not isinstance(genes, list):
        return genes
    if genes and all(isinstance(node, list) and node and isinstance(node[0], list) for node in genes):
        for i, node in enumerate(genes):
            if len(node) != 2:
                raise ValueError(f"'{cell}' is nested per node, and node {i} has {len(node)} gene(s): it must have two")
        genes = [gene for node in genes for gene in node]
    kinds = [[type(entry) for entry in gene[:4]] if isinstance(gene, list) else [] for gene in genes]
    if [str, int, int] in kinds:
        raise ValueError(f"'{cell}' gene {kinds.index([str, int, int])} is an (operation, node, source) triple: any "
                         "number of genes per node is not supported, use (operation, source) pairs, two per node")
    return [gene[:2] if kind == [str, int, float] else gene for gene, kind in zip(genes, kinds)]  # weights of a search


def _check_genes(cell: str, genes) -> None:
    if not isinstance(genes, list) or not 2 <= len(genes) <= 32 or len(genes) % 2:
        raise ValueError(f"'{cell}' must list (operation, source) pairs, two for each of 1 to 16 nodes")
    for i, gene in enumerate(genes):
        if not (isinstance(gene, list) and len(gene) == 2 and isinstance(gene[0], str) and type(gene[1]) is int):
            raise ValueError(f"'{cell}' gene {i} must be an (operation, source) pair, not {str(gene)[:40]!r}")
        op, state = gene
        if op == "none":
            raise ValueError(f"'{cell}' lists (operation, source) pairs, but gene {i} is 'none', which a cell "
                             "can't contain: choose another operation")
        known = [*OPERATIONS, *(op for op in PRIMITIVES if op not in ("none", *OPERATIONS))]
        if op not in known:
            raise ValueError(f"'{cell}' gene {i} has the unknown operation {op[:40]!r}; known: {', '.join(known)}")
        if not 0 <= state < 2 + i // 2:
            raise ValueError(f"'{cell}' gene {i} takes state {str(state)[:20]}; node {i // 2} takes 0 to {1 + i // 2}")


def _check_concat(cell: str, concat, nodes: int) -> None:
    allowed = range(2, 2 + nodes)
    if not (isinstance(concat, list) and concat and all(type(state) is int and state in allowed for state in concat)
            and len(set(concat)) == len(concat)):
        raise ValueError(f"'{cell}_concat' must list distinct nodes from 2 to {1 + nodes}")


def random_genotype(seed: int) -> Genotype:
    """A cell sampled uniformly from the search space: two distinct states per node, each with an operation but none."""
    rng = random.Random(seed)
    found = [op for op in PRIMITIVES if op != "none"]
    normal, reduce = ([(rng.choice(found), state)
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

"""Genotypes: the published cells, files, random cells, and whatever else a genotype file may hold."""
import json
import os
import random
import warnings
from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import genotypes
from genotypes import Genotype
from model import Cell

SEARCHED = ["max_pool_3x3", "avg_pool_3x3", "skip_connect",
            "sep_conv_3x3", "sep_conv_5x5", "dil_conv_3x3", "dil_conv_5x5"]
CASES = Path(__file__).parent / "cases" / "genotypes"
KNOWN = SEARCHED + ["sep_conv_7x7", "conv_7x1_1x7"]  # SPEC section 1; none is no part of a cell


def record(name: str = "PDARTS", **changes) -> dict:
    """A published cell as decoded JSON, with some of its four entries changed."""
    return json.loads(json.dumps(genotypes.load(name)._asdict())) | changes


def with_gene(gene, cell: str = "normal", index: int = 2) -> dict:
    """PDARTS with one gene replaced; gene 2 is node 1's first, which can take states 0 to 2."""
    genes = record()[cell]
    return record(**{cell: [*genes[:index], gene, *genes[index + 1:]]})


def pairs(genes):
    """Decoded genes, two lists per node joined to one, weights left out; anything else as it is."""
    if isinstance(genes, list) and genes and all(
            isinstance(node, list) and len(node) == 2 and isinstance(node[0], list) for node in genes):
        genes = sum(genes, [])
    if not isinstance(genes, list):
        return genes
    return [gene[:2] if isinstance(gene, list) and len(gene) == 3 and isinstance(gene[2], float) else gene
            for gene in genes]


def is_valid(decoded) -> bool:
    """Whether decoded JSON is a genotype, by SPEC section 1: two earlier states a node, concat of different nodes."""
    if not isinstance(decoded, dict) or sorted(decoded) != sorted(Genotype._fields):
        return False
    decoded = decoded | {cell: pairs(decoded[cell]) for cell in ("normal", "reduce")}
    for genes, concat in ((decoded["normal"], decoded["normal_concat"]), (decoded["reduce"], decoded["reduce_concat"])):
        if not (isinstance(genes, list) and genes and len(genes) % 2 == 0 and isinstance(concat, list) and concat):
            return False
        if not all(isinstance(gene, list) and len(gene) == 2 and gene[0] in KNOWN and type(gene[1]) is int
                   and 0 <= gene[1] < 2 + i // 2 for i, gene in enumerate(genes)):
            return False
        if not all(type(state) is int and 2 <= state < 2 + len(genes) // 2 for state in concat):
            return False
        if len(set(concat)) < len(concat):
            return False
    return True


def test_published_cells_equal_the_vectors(golden):
    assert {name: record(name) for name in genotypes.PUBLISHED} == {
        name: cell["genotype"] for name, cell in golden("genotypes.json").items()}


def test_a_saved_genotype_loads_by_file_and_by_run_directory(tmp_path):
    for name in genotypes.PUBLISHED:
        genotype = genotypes.load(name)
        genotypes.save(genotype, tmp_path / "genotype.json")
        assert genotypes.load(str(tmp_path / "genotype.json")) == genotype
        assert genotypes.load(str(tmp_path)) == genotype
        assert json.loads((tmp_path / "genotype.json").read_text()) == record(name)
    assert [path.name for path in tmp_path.iterdir()] == ["genotype.json"]


def test_names_are_read_in_any_case_with_or_without_hyphens(golden):
    for name in golden("genotypes.json"):
        for spelt in (name.lower(), name.upper(), name.replace("_", ""), name.replace("_", "-"), f" {name} ",
                      name.swapcase().replace("_", " ")):
            assert genotypes.load(spelt) == genotypes.PUBLISHED[name], spelt
    assert genotypes.load("P-DARTS") == genotypes.PUBLISHED["PDARTS"]
    assert genotypes.load("amoeba-net") == genotypes.PUBLISHED["AmoebaNet"]


def test_no_plain_spelling_stands_for_two_cells(golden):
    plain = [name.lower().replace("_", "") for name in golden("genotypes.json")]
    assert len(set(plain)) == 36 and not set(plain) & set(genotypes.ALIASES)


@pytest.mark.parametrize("name, meant", [  # as the methods' own genotypes.py say: DARTS = DARTS_V2, ...
    ("DARTS", "DARTS_V2"), ("darts", "DARTS_V2"), ("PCDARTS", "PC_DARTS_cifar"), ("PC_DARTS", "PC_DARTS_cifar"),
    ("PC-DARTS", "PC_DARTS_cifar"), ("pc darts imagenet", "PC_DARTS_image"), ("DARTS_2nd", "DARTS_V2")])
def test_the_names_people_use_are_read_and_the_log_says_for_which_cell(name, meant, caplog):
    with caplog.at_level("INFO", "pdarts"):
        assert genotypes.load(name) == genotypes.PUBLISHED[meant]
    assert caplog.messages == [f"{name}: taken as {meant}"]


def test_a_file_comes_before_a_name_spelt_in_another_way(tmp_path, monkeypatch):
    genotypes.save(genotypes.load("random:1"), tmp_path / "darts")
    monkeypatch.chdir(tmp_path)
    assert genotypes.load("darts") == genotypes.load("random:1")
    assert genotypes.load("DARTS") == genotypes.load("DARTS_V2")


@pytest.mark.parametrize("name, near", [
    ("PDART", "PDARTS"), ("DARTS_V3", "DARTS_V2"), ("PC_DART", "PC_DARTS_cifar"), ("AmebaNet", "AmoebaNet"),
    ("DrNAS", "DrNAS_imagenet"), ("DrNAS", "DrNAS_cifar10"), ("CDARTS", "CDARTS_image"), ("SGAS_Cri2", "SGAS_Cri2_"),
    ("P-DARTS-CIFAR100", "similar names: PDARTS$"), ("NASNet-A", "similar names: NASNet$")])
def test_an_unknown_name_lists_the_near_ones(name, near):
    with pytest.raises(ValueError, match=near) as error:
        genotypes.load(name)
    assert name in str(error.value)


@pytest.mark.parametrize("name", [
    "", "no such cell", "two\nlines", "a\u2028b", "nul\0", "x" * 300, "x" * 100_000, "/dev/null",
    "random:", "random:-1", "random:1.5", "random:x", "random:\n", "random:" + "9" * 5000,
], ids=lambda name: repr(name[:20]))
def test_a_name_that_is_no_cell_is_an_error_of_one_line(name):
    with pytest.raises(ValueError) as error:
        genotypes.load(name)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("form", [
    str, lambda cell: str(cell).replace("G", "g", 1), lambda cell: str(dict(cell._asdict()))[1:],
    lambda cell: f"12:00 {json.dumps(cell._asdict())}"], ids=["tuple", "genotype(", "dict(", "JSON after something"])
def test_a_text_in_another_form_is_told_the_two_forms_there_are_instead_of_36_names(form):
    cell = genotypes.load("PDARTS")
    message = one_line(form(tuple(cell) if form is str else cell))
    assert "Genotype(normal=" in message and "JSON" in message and "AmoebaNet" not in message


def test_a_directory_without_genotype_is_an_error_that_names_it(tmp_path):
    with pytest.raises(ValueError, match="genotype.json") as error:
        genotypes.load(str(tmp_path))
    assert str(tmp_path) in str(error.value)


@pytest.mark.parametrize("kind", ["pipe", "link to a pipe", "device", "in a directory"])
def test_a_pipe_or_a_device_is_refused_without_waiting_for_it(kind, tmp_path):
    path = tmp_path / "cell.json"
    if kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "in a directory":
        os.mkfifo(tmp_path / "genotype.json")
        path = tmp_path
    else:
        os.mkfifo(tmp_path / "pipe")
        path.symlink_to(tmp_path / "pipe")
    with pytest.raises(ValueError, match="pipe, a socket or a device") as error:
        genotypes.load(str(tmp_path / "pipe" if kind == "pipe" else path))
    assert "AmoebaNet" not in str(error.value)


def test_random_cells_are_valid_and_reproducible():
    for seed in range(200):
        genotype = genotypes.load(f"random:{seed}")
        assert is_valid(json.loads(json.dumps(genotype._asdict())))
        assert genotype == genotypes.load(f"random:{seed}")
        for genes, concat in ((genotype.normal, genotype.normal_concat), (genotype.reduce, genotype.reduce_concat)):
            assert len(genes) == 8 and concat == [2, 3, 4, 5]
            assert {op for op, _ in genes} <= set(SEARCHED)
            assert all(first < second for (_, first), (_, second) in zip(genes[::2], genes[1::2], strict=True))
    assert len({str(genotypes.load(f"random:{seed}")) for seed in range(200)}) == 200


def test_random_cells_are_spread_uniformly():
    """Over n seeds each of k equally likely outcomes comes n / k times, give or take 5 standard deviations."""
    n = 2000
    cells = [cell for seed in range(n) for cell in genotypes.load(f"random:{seed}")[::2]]
    for i in range(8):
        counts = Counter(genes[i][0] for genes in cells)
        expected = len(cells) / 7
        assert len(counts) == 7 and all(abs(count - expected) < 5 * expected ** 0.5 for count in counts.values())
    for node, pairs in enumerate((1, 3, 6, 10)):
        counts = Counter((genes[2 * node][1], genes[2 * node + 1][1]) for genes in cells)
        expected = len(cells) / pairs
        assert len(counts) == pairs and all(abs(count - expected) < 5 * expected ** 0.5 for count in counts.values())


@pytest.mark.parametrize("content", [
    b"", b"{", b"not json", b"null", b"3", b"[]", b"{}", b'"PDARTS"', b"\xff\xfe\x00", b"1" * 5000,
    b"[" * 100_000, b"[" * 100_000 + b"]" * 100_000, b'{"normal":' * 100_000 + b"1" + b"}" * 100_000,
    b'{"normal": ' + b"[" * 900 + b"]" * 900 + b', "normal_concat": [2], "reduce": [], "reduce_concat": [2]}',
], ids=lambda content: repr(content[:20]))
def test_a_file_without_genotype_is_an_error_of_one_line_that_names_it(content, tmp_path):
    (tmp_path / "bad.json").write_bytes(content)
    with pytest.raises(ValueError, match="bad.json") as error:
        genotypes.load(str(tmp_path / "bad.json"))
    assert len(str(error.value).splitlines()) == 1 and len(str(error.value)) < 1000


@pytest.mark.parametrize("bad", [
    with_gene(["sep_conv_9x9", 0]), with_gene(["none", 0]), with_gene(["", 0]), with_gene(["two\nlines\u2028", 0]),
    with_gene(["x" * 10_000, 0]), with_gene([["sep_conv_3x3"], 0]), with_gene([None, 0]), with_gene([3, 0]),
    with_gene(["sep_conv_3x3", -1]), with_gene(["sep_conv_3x3", 3]), with_gene(["sep_conv_3x3", 10 ** 300]),
    with_gene(["sep_conv_3x3", 2], index=0), with_gene(["sep_conv_3x3", 5], cell="reduce", index=7),
    with_gene(["sep_conv_3x3", True]), with_gene(["sep_conv_3x3", 1.0]), with_gene(["sep_conv_3x3", "1"]),
    with_gene(["sep_conv_3x3", None]), with_gene(["sep_conv_3x3", float("nan")]), with_gene(["sep_conv_3x3"]),
    with_gene(["sep_conv_3x3", 0, 0]), with_gene([]), with_gene("ab"), with_gene(None), with_gene({"sep_conv_3x3": 0}),
    record(normal=record()["normal"][:-1]), record(reduce=[]), record(normal=None), record(reduce="sep_conv_3x3"),
    record(normal_concat=[]), record(normal_concat=[2, 2]), record(normal_concat=[1, 2]), record(reduce_concat=[2, 6]),
    record(reduce_concat=[2, True]), record(reduce_concat=[2, 3.0]), record(reduce_concat=[[2]]),
    record(reduce_concat=3), record(extra=1), {"normal": record()["normal"]}, [record()],
], ids=lambda bad: json.dumps(bad)[:60])
def test_a_damaged_genotype_is_an_error_of_one_line(bad, tmp_path):
    (tmp_path / "genotype.json").write_text(json.dumps(bad))
    with pytest.raises(ValueError) as error:
        genotypes.load(str(tmp_path))
    assert len(str(error.value).splitlines()) == 1 and len(str(error.value)) < 1000


# ---- the forms that people pass on

EXPECTED = json.loads((CASES / "expected.json").read_text())


@pytest.mark.parametrize("file", EXPECTED)
@pytest.mark.parametrize("as_text", [False, True], ids=["file", "argument"])
def test_the_cases_hold_what_they_should(file, as_text, tmp_path, monkeypatch):
    argument = (CASES / file).read_text() if as_text else str(CASES / file)
    monkeypatch.chdir(tmp_path)
    if EXPECTED[file]:
        assert json.loads(json.dumps(genotypes.load(argument)._asdict())) == EXPECTED[file]
    else:
        one_line(argument)
    assert not list(tmp_path.iterdir())  # code.txt would make a file


def one_line(argument) -> str:
    """The error, of one line, with which an argument is refused."""
    with pytest.raises(ValueError) as error:
        genotypes.load(argument)
    message = str(error.value)
    assert len(message.splitlines()) == 1 and len(message) < 1000, message
    return message


@pytest.mark.parametrize("file, words", [
    ("op_node_source.txt", ["(operation, node, source)", "'normal'", "gene 0"]), ("none_gene.json", ["'none'", "pair"]),
    ("code.txt", ["__import__('os')", "not run"])])
def test_a_refused_layout_is_named(file, words):
    message = one_line(str(CASES / file))
    assert all(word in message for word in [file, *words])


@pytest.mark.parametrize("change, words", [
    (lambda genes: [genes[:3], genes[3:6], genes[6:]], ["nested per node", "node 0 has 3 gene"]),
    (lambda genes: [genes[:2], genes[2:4], genes[4:5], genes[5:]], ["nested per node", "node 2 has 1 gene"]),
    (lambda genes: genes[:6], ["normal_concat", "2 to 4"]),  # three nodes, but the output takes four
    (lambda genes: [(source, op) for op, source in genes], ["gene 0", "(operation, source)"]),
    (lambda genes: genes[:-1], ["two for each"]),
    (lambda genes: [*genes[:4], ("none", 0), *genes[5:]], ["gene 4", "'none'"]),
    (lambda genes: [*genes[:4], ("skip", 0), *genes[5:]], ["gene 4", "'skip'", "skip_connect"]),
])
def test_other_search_spaces_are_refused_by_what_is_wrong(change, words):
    cell = genotypes.load("PDARTS")
    message = one_line(str(cell._replace(normal=change(cell.normal))))
    assert all(word in message for word in words), message


def test_the_line_that_a_search_logs_can_be_given_as_it_is(tmp_path):
    for name in genotypes.PUBLISHED:
        cell = genotypes.load(name)
        line = f"2031-01-02 03:04:05 genotype (at most 2 skip-connects): {cell}"
        assert genotypes.load(line) == genotypes.load(str(cell)) == cell
        (tmp_path / "log.txt").write_text(f"2031-01-02 03:04:04 pictures: x\n{line}\n03:04:05 search cost: 1")
        assert genotypes.load(str(tmp_path / "log.txt")) == cell


def test_a_log_of_several_cells_must_not_pick_one(tmp_path):
    one, other = (str(genotypes.load(name)) for name in ("PDARTS", "DARTS_V1"))
    (tmp_path / "log.txt").write_text(f"03:04 {one}\n03:05 {other}\n03:06 {other}")
    assert "2 different" in one_line(str(tmp_path / "log.txt"))
    (tmp_path / "log.txt").write_text(f"03:04 {other}\n03:05 {other}")
    assert genotypes.load(str(tmp_path / "log.txt")) == genotypes.load("DARTS_V1")


def test_json_is_read_from_an_argument_and_nested_or_with_weights():
    expected = genotypes.load("PDARTS")
    assert genotypes.load(json.dumps(record())) == expected
    assert genotypes.load(json.dumps(record(), indent=2) + "\n") == expected
    nested = {cell: [record()[cell][i:i + 2] for i in range(0, 8, 2)] for cell in ("normal", "reduce")}
    assert genotypes.load(json.dumps(record(**nested))) == expected
    weighed = {cell: [[*gene, 0.25] for gene in record()[cell]] for cell in ("normal", "reduce")}
    assert genotypes.load(json.dumps(record(**weighed))) == expected


@pytest.mark.parametrize("form", [
    "Genotype({normal}, {normal_concat}, {reduce}, {reduce_concat})",  # as in our own genotypes.py
    "Genotype(normal={normal}, normal_concat=list(range(2, 6)), reduce={reduce}, reduce_concat=tuple(range(2, 6)))",
    "Genotype(normal={normal}, normal_concat=(2, 3, 4, 5), reduce={reduce}, reduce_concat=range(2, 6, 1))",
    "gt.Genotype(reduce={reduce}, normal={normal}, reduce_concat=[2, 3, 4, 5], normal_concat=range(np.int64(2), 6))",
    "Genotype(normal={normal}, normal_concat={normal_concat}, reduce={reduce}, reduce_concat={reduce_concat}, "
    "connectN=None, connects=None)",  # GDAS
    "Genotype(  # don't (mind this\n normal={normal},  # [\n normal_concat={normal_concat}, reduce={reduce},\n"
    "reduce_concat={reduce_concat},\n)",
    "\x1b[32mGenotype({normal}, {normal_concat}, {reduce}, {reduce_concat})\x1b[0m",  # a coloured log
])
def test_other_ways_to_write_the_same_cell(form):
    cell = genotypes.load("PDARTS")
    assert genotypes.load(form.format(**cell._asdict())) == cell
    as_numpy = form.format(**cell._asdict() | {  # as NumPy 2 prints its numbers
        "normal": "[" + ", ".join(f"(np.str_({op!r}), np.int64({i}), np.float32(0.5))" for op, i in cell.normal) + "]"})
    assert genotypes.load(as_numpy) == cell


CELL = "normal=[('skip_connect', 0), ('skip_connect', 1)], normal_concat=[2], reduce=[('skip_connect', 0), " \
       "('skip_connect', 1)], reduce_concat="


@pytest.mark.parametrize("text", [
    "Genotype(", "Genotype()", "Genotype(\0)", "Genotype(\ud800)", "Genotype(" * 50_000, "Genotype()" * 50_000,
    "Genotype(" + "[" * 90 + "]" * 90 + ")", "Genotype(" + "-" * 9000 + "1)", "Genotype(" + "1+" * 9000 + "1)",
    "Genotype(" + "a." * 9000 + "a)", "Genotype(" + "not " * 4000 + "1)", "Genotype(x" + "()" * 9000 + ")",
    "Genotype(" + "lambda:" * 2000 + "1)", "Genotype(normal=0x" + "F" * 9000 + ")", "Genotype('" + "x" * 100_000 + "')",
    "Genotype(**{})", "Genotype(*[1])", "Genotype(1, 2, 3, 4, 5)", "Genotype(normal=[], normal=[])", "{", "{}", '{"a":',
    f"Genotype({CELL}range(10**9))", f"Genotype({CELL}range(2, 10 ** 30))", f"Genotype({CELL}range(2, 3, 0))",
    f"Genotype({CELL}range(0x{'F' * 50}))", f"Genotype({CELL}range(2.0, 3))", f"Genotype({CELL}range())",
    f"Genotype({CELL}[True])", f"Genotype({CELL}[2.0])", f"Genotype({CELL}{{2}})", f"Genotype({CELL}[2 for _ in 'a'])",
    f"Genotype({CELL}(2))", f"Genotype({CELL}exit())", f"Genotype({CELL}[2], other=1)", f"Genotype({CELL}b'2')",
    f"Genotype({CELL}f'{{exit()}}')", f"Genotype({CELL}[2] if exit() else [2])", f"Genotype({CELL}np.int64(2))",
    f"Genotype({CELL}'\\d')", f"Genotype({CELL}[int64(exit())])", f"Genotype({CELL}range(2, 3)[:])",
], ids=lambda text: repr(text[:12] + text[-20:]))
def test_a_text_that_is_no_cell_is_an_error_of_one_line_and_nothing_runs(text):
    assert genotypes.load(f"Genotype({CELL}[2])").normal == [("skip_connect", 0), ("skip_connect", 1)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        one_line(text)


def test_a_file_too_large_for_a_cell_is_not_read(tmp_path):
    with open(tmp_path / "weights.pt", "wb") as file:
        file.truncate(2 ** 40)  # a hole
    assert "weights.pt" in one_line(str(tmp_path / "weights.pt"))


# ---- drawn genotypes, printed and damaged

def draw_cell(rng) -> Genotype:
    """Any cell that can be evaluated: 1 to 16 nodes, the two cells apart."""
    entries = []
    for _ in range(2):
        nodes = rng.choice([1, 2, 3, 4, 4, 4, 5, 16])
        entries.append([(rng.choice(KNOWN), rng.randrange(2 + i // 2)) for i in range(2 * nodes)])
        entries.append(rng.sample(range(2, 2 + nodes), rng.randint(1, nodes)) if rng.random() < 0.5
                       else list(range(rng.randint(2, 1 + nodes), 2 + nodes)))
    return Genotype(*entries)


def write(rng, cell: Genotype, damage=lambda genes: genes) -> str:
    """A genotype in one of the layouts of the issue; `damage` changes the normal cell's (operation, source) texts."""
    space, quote, weights = rng.choice(["", " ", "\n    ", "\t"]), rng.choice("'\""), rng.random() < 0.3

    def listed(items):
        items, comma = list(items), rng.choice([",", ", ", f" ,{space}"])
        end = rng.choice(["", ","]) if items else ""
        return rng.choice(["[{}]", "[{}]", "({})" if end or len(items) != 1 else "[{}]"]).format(
            space + comma.join(items) + end + space)

    def genes(pairs, nested):
        texts = ["({})".format(f",{space}".join(map(str, [f"{quote}{op}{quote}", *rest]))) for op, *rest in pairs]
        return listed([listed(texts[i:i + 2]) for i in range(0, len(texts), 2)] if nested else texts)

    nested, entries = rng.random() < 0.4, {}
    for name, value in cell._asdict().items():
        if name in ("normal", "reduce"):
            pairs = [(*gene, *([round(rng.random(), rng.randint(1, 17))] if weights else [])) for gene in value]
            entries[name] = genes(damage(pairs) if name == "normal" else pairs, nested)
        elif value == list(range(value[0], value[-1] + 1)) and rng.random() < 0.5:
            entries[name] = f"range({value[0]},{space}{value[-1] + 1})"
        else:
            entries[name] = listed(map(str, value))
    before = rng.choice(["", "", "03/14 05:12:44 PM ", "2031-01-02 03:04:05,123 INFO genotype = ", "CELL_1 = ", "\n\n",
                         "genotype (at most 2): ", "a = 'it' # Genotype\nb=", "import os\nCELL=gt."])
    body = f",{space}".join(f"{name}{rng.choice(['=', ' = '])}{value}" for name, value in entries.items())
    after = rng.choice(["", "\n", " # (", ".", "; x"])
    return f"{before}Genotype({space}{body}{rng.choice(['', ','])}{space}){after}"


def test_500_printed_genotypes_are_read_as_they_were_drawn(tmp_path):
    rng = random.Random(0)
    for i in range(500):
        cell = draw_cell(rng)
        text = write(rng, cell)
        path = tmp_path / f"{i}.txt"
        path.write_text(text)
        assert genotypes.load(text) == genotypes.load(str(path)) == cell, text


def damaged(rng) -> str:
    """A printed genotype that is none any more."""
    cell = draw_cell(rng)
    i = rng.randrange(len(cell.normal))

    def replaced(*gene):
        return lambda pairs: [*pairs[:i], gene, *pairs[i + 1:]]

    op, source = cell.normal[i]
    changes = [
        replaced("none", source), replaced("sep_conv_9x9", source), replaced("", source), replaced(op, -1),
        replaced(op, 2 + i // 2), replaced(op, "None"), replaced(op, f"{source}.0"), replaced(op, f"'{source}'"),
        replaced(op, "True"), replaced(op), replaced(op, 2, source), replaced(op, source, "0.5", "0.5"),
        replaced(op, "exit()"), replaced(op, f"{source} or exit()"), replaced(op, f"*[{source}]"), replaced(op, "\0"),
        replaced(op, "(lambda: 0)()"), replaced(op, "9" * 5000), replaced(op, "1 +"), replaced(op, "[" * 99 + "]" * 99),
        lambda pairs: pairs[:-1], lambda pairs: [], lambda pairs: pairs + pairs[:1], lambda pairs: pairs * 17,
    ]
    kind = rng.randrange(len(changes) + 6)
    if kind < len(changes):
        return write(rng, cell, changes[kind])
    if kind == len(changes):
        cell = cell._replace(normal_concat=[2, 2])
    elif kind == len(changes) + 1:
        cell = cell._replace(reduce_concat=[2 + len(cell.reduce) // 2])
    text = str(cell)
    if kind == len(changes) + 2:
        return text[:rng.randrange(len("Genotype("), len(text))]  # cut
    if kind == len(changes) + 3:
        at = rng.choice([i for i, letter in enumerate(text) if letter in "()[]"][1:])
        return text[:at] + text[at + 1:]  # a bracket is missing
    if kind == len(changes) + 4:
        return text.replace("reduce=", rng.choice(["reduction=", "normal=", ""]))
    if kind == len(changes) + 5:
        at = text.index(", normal_concat")
        return text[:at] + rng.choice([" for x in y", " + []", "[0]", ".copy()", " # "]) + text[at:]
    return text


def test_300_damaged_genotypes_are_refused_in_one_line(tmp_path):
    rng = random.Random(1)
    for i in range(300):
        text = damaged(rng)
        message = one_line(text)
        assert message.startswith(f"can't load {text[:60]!r}")
        path = tmp_path / f"{i}.txt"
        path.write_text(text)
        assert path.name in one_line(str(path))


def test_printed_genotypes_with_letters_changed_load_as_cells_or_are_refused_in_one_line():
    rng, loaded = random.Random(2), 0
    for _ in range(1000):
        letters = list(write(rng, draw_cell(rng)))
        for _ in range(rng.randint(1, 2)):
            at = rng.randrange(len(letters))
            letters[at] = rng.choice(["", letters[at] * 2, *"()[]'\",=#0129.\n\0x\u2028"])
        text = "".join(letters)
        if "Genotype(" not in text:
            continue
        try:
            genotype = genotypes.load(text)
        except ValueError as error:
            assert len(str(error).splitlines()) == 1 and len(str(error)) < 1000
        else:
            loaded += 1
            assert is_valid(json.loads(json.dumps(genotype._asdict()))), text
    assert loaded > 20  # a digit changed, a space doubled


# ---- NAS-Bench-301

DARTS = "NetworkSelectorDatasetInfo:darts:"
# A configuration as NAS-Bench-301's repository has one among its results, shortened by keys of the training.
CONFIG = {
    "ImageAugmentation:cutout_holes": 1, "OptimizerSelector:sgd:momentum": 0.9, f"{DARTS}auxiliary": "True",
    f"{DARTS}layers": 20, **{DARTS + key: value for key, value in {
        "edge_normal_0": "skip_connect", "edge_normal_1": "sep_conv_3x3", "edge_normal_2": "sep_conv_3x3",
        "edge_normal_3": "skip_connect", "edge_normal_5": "dil_conv_3x3", "edge_normal_7": "dil_conv_5x5",
        "edge_normal_10": "sep_conv_3x3", "edge_normal_11": "skip_connect", "inputs_node_normal_3": "0_1",
        "inputs_node_normal_4": "0_2", "inputs_node_normal_5": "1_2", "edge_reduce_0": "max_pool_3x3",
        "edge_reduce_1": "avg_pool_3x3", "edge_reduce_2": "skip_connect", "edge_reduce_3": "dil_conv_5x5",
        "edge_reduce_6": "sep_conv_3x3", "edge_reduce_7": "sep_conv_5x5", "edge_reduce_11": "sep_conv_3x3",
        "edge_reduce_12": "dil_conv_3x3", "inputs_node_reduce_3": "0_1", "inputs_node_reduce_4": "1_2",
        "inputs_node_reduce_5": "2_3"}.items()}}


@pytest.mark.parametrize("write", [json.dumps, str, lambda config: json.dumps({"config": config, "budget": 1500}),
                                   lambda config: f"03:04 Configuration(values={config})"],
                         ids=["JSON", "printed", "a record of results", "a log"])
def test_a_configuration_of_nas_bench_301_is_read_in_a_file_and_as_an_argument(write, tmp_path):
    """Edges by hand: node 2 has 0 and 1, node 3 has 2 to 4, node 4 has 5 to 8, node 5 has 9 to 13."""
    (tmp_path / "config.json").write_text(write(CONFIG))
    expected = Genotype(
        [("skip_connect", 0), ("sep_conv_3x3", 1), ("sep_conv_3x3", 0), ("skip_connect", 1), ("dil_conv_3x3", 0),
         ("dil_conv_5x5", 2), ("sep_conv_3x3", 1), ("skip_connect", 2)], [2, 3, 4, 5],
        [("max_pool_3x3", 0), ("avg_pool_3x3", 1), ("skip_connect", 0), ("dil_conv_5x5", 1), ("sep_conv_3x3", 1),
         ("sep_conv_5x5", 2), ("sep_conv_3x3", 2), ("dil_conv_3x3", 3)], [2, 3, 4, 5])
    assert genotypes.load(str(tmp_path / "config.json")) == expected
    cells = (f"{DARTS}edge", f"{DARTS}inputs")
    assert genotypes.to_config(expected) == {key: value for key, value in CONFIG.items() if key.startswith(cells)}
    assert genotypes.load(write(CONFIG)) == expected


def in_nas_bench_301(genotype) -> bool:
    """Its space: four nodes, all in the output, two different inputs each, the seven operations of the search."""
    return all(len(genes) == 8 and concat == [2, 3, 4, 5] and {op for op, _ in genes} <= set(SEARCHED) and
               all(a != b for (_, a), (_, b) in zip(genes[::2], genes[1::2]))
               for genes, concat in (genotype[:2], genotype[2:]))


@pytest.mark.parametrize("name", [*genotypes.PUBLISHED, *(f"random:{seed}" for seed in range(20))])
def test_a_cell_goes_to_nas_bench_301_and_back_or_is_refused_in_one_line(name):
    genotype = genotypes.load(name)
    if not in_nas_bench_301(genotype):
        with pytest.raises(ValueError, match="NAS-Bench-301 has four nodes") as error:
            genotypes.to_config(genotype)
        assert len(str(error.value).splitlines()) == 1
        return
    config = genotypes.to_config(genotype)
    assert len(config) == 2 * (8 + 3)
    normal, reduce = (sum((sorted(genes[i:i + 2], key=lambda gene: gene[1]) for i in range(0, 8, 2)), [])
                      for genes in genotype[::2])
    read = genotypes.load(json.dumps(config))
    assert read == genotype._replace(normal=normal, reduce=reduce) and genotypes.to_config(read) == config


def test_33_of_the_36_published_cells_are_in_nas_bench_301():
    """NASNet, AmoebaNet and PNASNet have five nodes."""
    outside = {name for name, genotype in genotypes.PUBLISHED.items() if not in_nas_bench_301(genotype)}
    assert len(genotypes.PUBLISHED) == 36 and outside == {"NASNet", "AmoebaNet", "PNASNet"}


@pytest.mark.parametrize("change, words", [
    ({"edge_normal_7": None}, ["inputs_node_normal_4 is '0_2'", "edge_normal_7"]),
    ({"inputs_node_reduce_5": None}, ["inputs_node_reduce_5 is None", "0 to 4"]),
    ({"inputs_node_normal_3": "1_1"}, ["inputs_node_normal_3 is '1_1'"]),
    ({"inputs_node_normal_3": "0_3"}, ["inputs_node_normal_3 is '0_3'", "0 to 2"]),
    ({"inputs_node_normal_4": "0_1_2"}, ["inputs_node_normal_4 is '0_1_2'"]),
    ({"edge_normal_0": "sep_conv_9x9"}, ["'sep_conv_9x9'", "gene 0"]), ({"edge_reduce_0": "none"}, ["'none'"])])
def test_a_damaged_configuration_is_refused_with_its_values(change, words):
    changed = {key: value for key, value in (CONFIG | {DARTS + key: value for key, value in change.items()}).items()
               if value is not None}
    message = one_line(json.dumps(changed))
    assert all(word in message for word in words), message


def test_several_configurations_in_one_text_must_not_pick_one():
    other = genotypes.to_config(genotypes.load("PDARTS"))
    assert "several configurations" in one_line(json.dumps([CONFIG, other]).replace("[", "{", 1))


# ---- whatever a genotype file may hold

LEAVES = (st.none() | st.booleans() | st.integers(-2, 7) | st.integers() | st.floats() | st.text(max_size=5)
          | st.sampled_from([*KNOWN, "none"]))
JSON = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(
    st.sampled_from(Genotype._fields) | st.text(max_size=5), inner, max_size=5), max_leaves=10)


@st.composite
def mutated(draw) -> bytes:
    """A published cell as JSON with up to three places replaced, removed or doubled."""
    decoded = record(draw(st.sampled_from(sorted(genotypes.PUBLISHED))))
    for _ in range(draw(st.integers(0, 3))):
        part = decoded
        while True:
            key = draw(st.sampled_from(sorted(part) if isinstance(part, dict) else range(len(part))))
            if not (isinstance(part[key], list | dict) and part[key] and draw(st.booleans())):
                break
            part = part[key]
        match draw(st.sampled_from(["replace", "replace", "double", "remove"] if len(part) > 1 else ["replace"])):
            case "replace":
                part[key] = draw(LEAVES | JSON)
            case "remove":
                del part[key]
            case "double" if isinstance(part, list):
                part.insert(key, part[key])
    return json.dumps(decoded).encode()


@settings(max_examples=500, derandomize=True, database=None, deadline=None,
          suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.one_of(mutated(), mutated(), mutated(), JSON.map(lambda value: json.dumps(value).encode()),
                         st.binary(max_size=50)))
def test_any_file_gives_cells_that_run_or_an_error_of_one_line(content, tmp_path):
    path = tmp_path / "fuzz.json"
    path.write_bytes(content)
    try:
        genotype = genotypes.load(str(path))
    except ValueError as error:
        assert len(str(error).splitlines()) == 1 and len(str(error)) < 1000
        try:
            decoded = json.loads(content)
        except (ValueError, RecursionError):
            return
        assert not is_valid(decoded)
    else:
        assert is_valid(json.loads(content))
        for reduction, concat in ((False, genotype.normal_concat), (True, genotype.reduce_concat)):
            states = Cell(genotype, 2, 2, 2, reduction, False)(torch.randn(1, 2, 6, 6), torch.randn(1, 2, 6, 6), 0.0)
            assert states.shape[1] == 2 * len(concat)


# ---- texts of other systems

@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("form", [lambda cell: json.dumps(cell._asdict()), lambda cell: f"INFO {cell}\r\n",
                                  lambda cell: f"cell = {cell}  # trained"])
def test_a_file_that_a_windows_shell_has_written_is_read(form, encoding, tmp_path):
    cell = genotypes.load("random:5")
    (tmp_path / "cell.json").write_bytes(form(cell).encode(encoding))
    assert genotypes.load(str(tmp_path / "cell.json")) == cell


def test_a_pipe_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "cell.json")
    os.mkfifo(tmp_path / "genotype.json")
    for source in (tmp_path / "cell.json", tmp_path):
        with pytest.raises(ValueError, match="it is a pipe, a socket or a device"):
            genotypes.load(str(source))

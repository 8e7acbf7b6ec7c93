"""Genotypes: the published cells, files, random cells, and whatever else a genotype file may hold."""
import json
from collections import Counter

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import genotypes
from genotypes import Genotype
from model import Cell

SEARCHED = ["max_pool_3x3", "avg_pool_3x3", "skip_connect",
            "sep_conv_3x3", "sep_conv_5x5", "dil_conv_3x3", "dil_conv_5x5"]
KNOWN = SEARCHED + ["sep_conv_7x7", "conv_7x1_1x7"]  # SPEC section 1; none is no part of a cell


def record(name: str = "PDARTS", **changes) -> dict:
    """A published cell as decoded JSON, with some of its four entries changed."""
    return json.loads(json.dumps(genotypes.load(name)._asdict())) | changes


def with_gene(gene, cell: str = "normal", index: int = 2) -> dict:
    """PDARTS with one gene replaced; gene 2 is node 1's first, which can take states 0 to 2."""
    genes = record()[cell]
    return record(**{cell: [*genes[:index], gene, *genes[index + 1:]]})


def is_valid(decoded) -> bool:
    """Whether decoded JSON is a genotype, by SPEC section 1: two earlier states a node, concat of different nodes."""
    if not isinstance(decoded, dict) or sorted(decoded) != sorted(Genotype._fields):
        return False
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


@pytest.mark.parametrize("name, near", [("PDART", "PDARTS"), ("pdarts", "PDARTS"), ("DARTSV2", "DARTS_V2"),
                                        ("PC_DARTS", "PC_DARTS_cifar"), ("AmebaNet", "AmoebaNet")])
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


def test_a_directory_without_genotype_is_an_error_that_names_it(tmp_path):
    with pytest.raises(ValueError, match="genotype.json") as error:
        genotypes.load(str(tmp_path))
    assert str(tmp_path) in str(error.value)


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

"""experiments/differences.py: kinds of cells side by side, and the figure of their sizes, on runs written by hand."""
import json

import pytest
from PIL import Image
from scripts import figures, run
from test_compare import write_evaluation, write_search

import genotypes
import utils
from experiments import differences
from experiments.differences import Cell
from model import NetworkCIFAR

SIZE = {"init_channels": 8, "layers": 8, "image_size": 16}


def evaluation(folder, arch: str, error: float, **options) -> str:
    cell = arch if arch in genotypes.PUBLISHED else f"random:{sum(map(ord, arch))}"
    return write_evaluation(folder / f"eval-{len(list(folder.iterdir()))}", [0.0, 100 - error],
                            genotypes.load(cell), arch=arch, **SIZE | options)


@pytest.fixture
def runs(tmp_path) -> list[str]:
    """Three random cells, two dealt ones, one published cell trained twice, and a search with its cell."""
    errors = [("random:0", 10.0), ("random:1", 12.0), ("random:2", 14.0), ("cells/x-dealt-0-0.json", 8.0),
              ("cells/x-dealt-0-1.json", 9.0), ("PDARTS", 7.0), ("PDARTS", 8.0)]
    made = [evaluation(tmp_path, *pair, seed=seed) for seed, pair in enumerate(errors)]
    return [*made, write_search(tmp_path / "search-a", seed=1), write_evaluation(tmp_path / "e", [0.0, 96.0], **SIZE)]


def rows(outcome) -> dict[str, list[str]]:
    assert outcome.code == 0, outcome
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in outcome.out.splitlines() if "|" in line]
    return {line[0]: line[1:] for line in lines}


def test_kinds_of_cells_are_compared_cell_by_cell(runs):
    table = rows(run("experiments/differences.py", *runs))
    assert list(table)[2:] == ["P-DARTS − dealt", "P-DARTS − random", "P-DARTS − published", "dealt − random",
                               "dealt − published", "random − published"]
    # 8.5 - 12: of the 10 ways to choose two cells of five, only these and the two worst have means as far apart.
    assert table["dealt − random"][:2] == ["2, 3", "−3.50"] and table["dealt − random"][3:] == ["0.2000", "−1.8"]
    # Errors: 1/12 + 4/3 = 17/12; degrees (17/12)^2 / (1/4^2 + (4/3)^2 / 2) = 2.6, between t = 4.303 and 3.182.
    low, high = (float(end.replace("−", "-")) for end in table["dealt − random"][2].split(" to "))
    assert -3.5 - 4.303 * 1.258 < low < -3.5 - 3.182 * 1.258 and low + high == pytest.approx(-7, abs=0.011)
    # One cell that was trained twice counts once, and has no deviation.
    assert table["random − published"] == ["3, 1", "+4.50", "–", "0.2500", "+2.2"]
    assert table["P-DARTS − published"] == ["1, 1", "−3.50", "–", "1.0000", "−1.8"]


def test_cells_of_the_same_searches_are_also_compared_search_by_search(tmp_path):
    """Own cells 10, 11 and 15; dealt ones 12 and 14 (mean 13), 12 and, of a search that is not here, 30."""
    searches = [("10", "random:50", 10.0), ("11", "random:51", 11.0), ("12", "random:52", 15.0)]
    dealt = [("10-0", 12.0), ("10-1", 14.0), ("11-1", 12.0), ("19-1", 30.0)]
    runs = [write_search(tmp_path / f"search-x-pdarts-{seed}-20261128-172814", int(seed), genotypes.load(cell))
            for seed, cell, _ in searches]
    runs += [write_evaluation(tmp_path / f"eval-{seed}", [0.0, 100 - error], genotypes.load(cell), **SIZE)
             for seed, cell, error in searches]
    runs += [evaluation(tmp_path, f"cells/x-dealt-{name}.json", error) for name, error in dealt]
    table = rows(run("experiments/differences.py", *runs))
    assert table["P-DARTS − dealt"][:2] == ["3, 4", "−5.00"]
    # -3 and -1: mean -2, error 1, a 97.5% quantile of 12.706; of 4 choices of signs two are as extreme.
    assert table["P-DARTS − dealt, by search"] == ["2", "−2.00", "−14.71 to +10.71", "0.5000", "–"]


def test_searches_of_one_note_are_compared_apart(tmp_path):
    """As README's commands name them; both have a one-stage cell."""
    runs = [write_search(tmp_path / f"search-try-20261128-17281{i}", i, genotypes.load(f"random:5{i}")) for i in (0, 1)]
    runs += [write_evaluation(tmp_path / f"eval-{i}", [0.0, 90.0 - i], genotypes.load(f"random:5{i}"), **SIZE)
             for i in (0, 1)]
    cells = differences.read_settings(runs)
    assert [cell.origin for of_setting in cells.values() for cell in of_setting] == [
        "search-try-20261128-172810", "search-try-20261128-172811"]


def test_the_cell_of_a_control_is_not_a_found_one(tmp_path):
    control, search = (write_search(tmp_path / f"search-{name}", 1, genotypes.load(f"random:{seed}"))
                       for name, seed in (("noise", 50), ("x", 51)))
    record = json.loads((tmp_path / "search-noise" / "args.json").read_text())
    (tmp_path / "search-noise" / "args.json").write_text(json.dumps(
        record | {"command": "python experiments/controls.py noise --seed 1"}))
    trained = [write_evaluation(tmp_path / f"eval-{seed}", [0.0, 90.0], genotypes.load(f"random:{seed}"), **SIZE)
               for seed in (50, 51)]
    (cells,) = differences.read_settings([control, search, *trained]).values()
    assert [cell.kind for cell in cells] == ["P-DARTS", "other"]


def test_settings_are_not_mixed(runs, tmp_path):
    longer = [evaluation(tmp_path, arch, 5.0, epochs=2, drop_path_prob=0.3) for arch in ("random:0", "PDARTS")]
    outcome = run("experiments/differences.py", *runs[:7], *longer)
    assert outcome.out.count("drop_path_prob 0.3:") == 1 and outcome.out.count("| random − published |") == 2
    assert "| random − published | 1, 1 | +0.00 | – | 1.0000 | – |" in outcome.out


def test_the_multiply_adds_are_those_of_the_trained_network():
    genotype = genotypes.load("PDARTS")
    args = {"dataset": "folder", **SIZE}
    network = NetworkCIFAR(8, 10, 8, False, genotype)
    found = differences.multiply_adds(Cell("published", 1.0, "", genotype._asdict()), args)
    assert found == utils.count_multiply_adds(network, 16)
    assert differences.multiply_adds(Cell("published", 1.0, "", genotype._asdict()), args | {"image_size": None}) > (
        3 * found)  # at 32x32
    imagenet = differences.multiply_adds(Cell("published", 1.0, "", genotype._asdict()), {
        "dataset": "imagenet", "init_channels": 48, "layers": 14})
    assert imagenet / 1e6 == pytest.approx(543, abs=1)  # the published size


def test_a_cell_without_its_file_has_no_size():
    with pytest.raises(ValueError, match="--plot: eval-0 has no genotype.json"):
        differences.multiply_adds(Cell("published", 1.0, "eval-0", None), {"dataset": "folder", **SIZE})


def test_the_figure_has_a_dot_per_cell_and_names_the_kinds(runs, tmp_path):
    settings = differences.read_settings(runs)
    for name in ("sizes.svg", "sizes.png"):
        differences.plot(settings, differences.read_options(runs), tmp_path / name)
    text = (tmp_path / "sizes.svg").read_text()
    assert all(f">{kind}<" in text for kind in ("P-DARTS", "dealt", "random", "published"))
    assert text.count("<use ") >= 7 + 4  # and the legend's
    assert "8 cells; correlation" in text and Image.open(tmp_path / "sizes.png").width > 800


def test_runs_of_one_name_and_with_a_budget_are_drawn_too(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        write_evaluation(tmp_path / folder / "eval", [0.0, 90.0], arch="PDARTS", **SIZE, max_multiply_adds=5.0)
    runs = [tmp_path / "a" / "eval", tmp_path / "b" / "eval"]
    assert run("experiments/differences.py", *runs, "--plot", tmp_path / "sizes.svg", change=figures).code == 0
    assert [options["init_channels"] for options in differences.read_options(runs).values()] == [8] * 3


def test_the_command_draws_the_figure(runs, tmp_path):
    assert run("experiments/differences.py", *runs, "--plot", tmp_path / "sizes.svg", change=figures).code == 0
    assert (tmp_path / "sizes.svg").read_text().startswith("<svg>")  # a sketch


@pytest.mark.parametrize("words, status, text", [
    ([], 2, "required"), (["search"], 1, "none of these runs is a finished evaluation"),
    (["evaluation", "damaged"], 1, "damaged/metrics.jsonl"), (["evaluation", "nowhere"], 1, "nowhere is not a run"),
    (["evaluation", "--plot", "x.pdf"], 2, ".svg or .png")])
def test_bad_input_is_one_line(words, status, text, tmp_path):
    write_search(tmp_path / "search", seed=1)
    write_evaluation(tmp_path / "evaluation", [0.0, 95.0])
    write_evaluation(tmp_path / "damaged", [0.0, 95.0])
    (tmp_path / "damaged" / "metrics.jsonl").write_text('{"epoch": 0}\n{"ep')
    outcome = run("experiments/differences.py", *words, cwd=tmp_path)
    assert outcome.code == status and text in outcome.err and not outcome.out
    assert len(outcome.err.splitlines()) == 1

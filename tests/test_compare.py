"""Runs side by side: which evaluation belongs to which search, statistics worked out by hand, well-formed tables."""
import json
import subprocess
import sys
from pathlib import Path

import pytest

import cli
import compare
import genotypes
from runs import log

ROOT = Path(__file__).parent.parent
FOUND = genotypes.load("random:3")


def write_run(run_dir: Path, args: dict, metrics: list[dict], genotype=FOUND) -> str:
    """A run directory as the training scripts leave it."""
    run_dir.mkdir()
    record = {"kind": "eval" if "arch" in args else "search", "args": args, "device": "NVIDIA H100", "processes": 2}
    (run_dir / "args.json").write_text(json.dumps(record))
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in metrics))
    if genotype:
        genotypes.save(genotype, run_dir / "genotype.json")
    return str(run_dir)


def write_search(run_dir: Path, seed: int, genotype=FOUND) -> str:
    """A search of 3 epochs of 600 seconds on 2 processes: 1 hour."""
    metrics = [{"stage": stage, "epoch": 0, "seconds": 600.0} for stage in (1, 2, 3)]
    write_run(run_dir, {"dataset": "cifar10", "seed": seed, "epochs": 1}, metrics, genotype)
    if genotype:
        rows = [{"max_skip": None, "skips": 5, "parameters": 1, "multiply_adds": 1,
                 "genotype": genotypes.load("DARTS_V1")._asdict()},
                {"max_skip": 2, "skips": 2, "parameters": 3433798, "multiply_adds": 532200000,
                 "genotype": genotype._asdict()}]
        (run_dir / "genotypes.json").write_text(json.dumps(rows))
    return str(run_dir)


def write_evaluation(run_dir: Path, accuracies: list[float], genotype=FOUND, **options) -> str:
    """An evaluation of 2 epochs with these test accuracies."""
    metrics = [{"epoch": epoch, "test_acc": accuracy, "seconds": 1.0} for epoch, accuracy in enumerate(accuracies)]
    args = {"dataset": "cifar10", "arch": "somewhere/genotype.json", "seed": 0, "epochs": 2, "init_channels": 36,
            "layers": 20, "cutout": True, "batch_size": 128}
    return write_run(run_dir, args | options, metrics, genotype)


@pytest.fixture
def runs(tmp_path) -> list[str]:
    """Two searches, three evaluations of what the first found (one unfinished), two of PDARTS."""
    PDARTS = genotypes.load("PDARTS")
    return [write_search(tmp_path / "search-a_1", seed=1),
            write_search(tmp_path / "search-b|&", seed=2, genotype=None),
            write_evaluation(tmp_path / "eval-0", [97.0, 96.0], seed=0),
            write_evaluation(tmp_path / "eval-1", [96.0, 97.0], seed=1),
            write_evaluation(tmp_path / "eval-2", [50.0], seed=2),
            write_evaluation(tmp_path / "eval-3", [90.0, 92.5], PDARTS, arch="PDARTS"),
            write_evaluation(tmp_path / "eval-4", [1.0, 3.0], PDARTS, arch="PDARTS", cutout=False)]


def run_compare(words: list[str], monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", ["compare.py", *words])
    monkeypatch.setattr(log, "handlers", [])
    cli.run(compare.main, compare.parse_args)


def test_a_search_has_its_numbers_and_the_statistics_of_its_evaluations(runs):
    row = compare.compare(runs)[0]
    assert row["run"] == "search-a_1" and row["seed"] == 1 and row["data"] == "cifar10" and row["state"] == "finished"
    assert row["genotype"] == FOUND._asdict()
    assert (row["skips"], row["parameters"], row["multiply_adds"]) == (2, 3433798, 532200000)
    assert row["hours"] == pytest.approx(1.0) and row["device"] == "2 x NVIDIA H100"
    assert row["n"] == 2 and row["seeds"] == [0, 1] and row["runs"] == ["eval-0", "eval-1"]
    assert row["last_error"] == pytest.approx(3.5)  # errors 4 and 3
    assert row["last_std"] == pytest.approx(0.5 ** 0.5)  # (0.5^2 + 0.5^2) / (2 - 1)
    assert row["last_accuracy"] == pytest.approx(96.5)
    assert row["best_error"] == pytest.approx(3.0) and row["best_std"] == pytest.approx(0.0)
    assert row["unfinished"] == {"eval-2": "epoch 1/2"}


def test_three_evaluations_have_the_textbook_deviation(tmp_path):
    row, = compare.compare([write_evaluation(tmp_path / f"eval-{i}", [0.0, accuracy], seed=i)
                            for i, accuracy in enumerate((97.0, 95.0, 93.0))])
    assert row["last_error"] == pytest.approx(5.0) and row["last_std"] == pytest.approx(2.0) and row["n"] == 3


def test_other_cells_and_other_settings_have_rows_of_their_own(runs):
    rows = compare.compare(runs)
    assert [(row["run"], row["cell"], row["n"]) for row in rows] == [
        ("search-a_1", "somewhere/genotype.json", 2), ("search-b|&", None, None), (None, "PDARTS", 1),
        (None, "PDARTS", 1)]
    assert [row["setting"]["cutout"] for row in rows[2:]] == [True, False]
    assert [row["last_std"] for row in rows[2:]] == [None, None]  # of one run there is none
    assert all(set(row) == set(compare.FIELDS) for row in rows)


def test_one_search_trained_on_two_data_sets_has_two_rows(tmp_path):
    runs = [write_search(tmp_path / "search", seed=1), write_evaluation(tmp_path / "eval-0", [1.0, 2.0]),
            write_evaluation(tmp_path / "eval-1", [1.0, 2.0], dataset="cifar100")]
    assert [(row["run"], row["setting"]["dataset"]) for row in compare.compare(runs)] == [
        ("search", "cifar10"), ("search", "cifar100")]


def test_imagenet_runs_have_no_data_set_option(tmp_path):
    run = write_evaluation(tmp_path / "imagenet-0", [1.0, 2.0])
    record = json.loads((tmp_path / "imagenet-0" / "args.json").read_text())
    del record["args"]["dataset"]
    (tmp_path / "imagenet-0" / "args.json").write_text(json.dumps(record))
    assert compare.compare([run])[0]["setting"]["dataset"] == "imagenet"


def test_an_evaluation_that_has_not_begun_belongs_to_the_search_it_names(tmp_path):
    search = write_search(tmp_path / "search", seed=1)
    row, = compare.compare([search, write_evaluation(tmp_path / "eval", [], genotype=None, arch=f"{search}/")])
    assert row["run"] == "search" and row["n"] == 0 and row["unfinished"] == {"eval": "no epoch yet"}
    assert row["last_error"] is None


def test_a_run_named_twice_counts_once(runs):
    assert compare.compare(runs + [f"{run}/" for run in runs]) == compare.compare(runs)


def test_the_table_for_the_eye_says_what_is_unfinished(runs, monkeypatch, capsys):
    run_compare(runs, monkeypatch)
    lines = capsys.readouterr().out.splitlines()
    assert set(lines[1]) == {"-", " "}
    assert "3.50 ± 0.71" in lines[2] and "3.00 ± 0.00" in lines[2] and "eval-2: epoch 1/2" in lines[2]
    assert "search: stage 3, epoch 1/1" in lines[3]
    assert f"search-a_1: {json.dumps(FOUND._asdict())}" in lines


def test_json_holds_all_rows(runs, monkeypatch, capsys):
    run_compare([*runs, "--json"], monkeypatch)
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(compare.compare(runs)))


def test_markdown_has_as_many_cells_in_every_line(runs, monkeypatch, capsys):
    run_compare([*runs, "--markdown"], monkeypatch)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6 and set(lines[1]) == set("|- ")
    assert len({line.replace("\\|", "").count("|") for line in lines}) == 1
    assert lines[3].startswith("| search-b\\|& |") and "3.50 ± 0.71" in lines[2]


def test_latex_is_escaped_and_has_as_many_cells_in_every_line(runs, monkeypatch, capsys):
    run_compare([*runs, "--latex"], monkeypatch)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(r"\begin{tabular}{") and lines[-1] == r"\end{tabular}"
    assert (lines[1], lines[3], lines[-2]) == (r"\toprule", r"\midrule", r"\bottomrule")
    table = [lines[2], *lines[4:-2]]
    assert all(line.endswith(r" \\") for line in table) and len(table) == 5
    columns = lines[0].count("l", lines[0].rindex("{"))
    assert {line.replace(r"\&", "").count("&") + 1 for line in table} == {columns}
    assert r"search-a\_1" in table[1] and r"search-b|\&" in table[2] and r"3.50 $\pm$ 0.71" in table[1]
    assert r"error, last (\%)" in table[0]


@pytest.mark.parametrize("words, status, text", [([], 2, "required"), (["."], 1, ". is no run"),
                                                 (["--jsn", "."], 2, "did you mean --json"),
                                                 ([".", "--json", "--latex"], 2, "not allowed with")])
def test_bad_input_gets_one_line(words, status, text, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as exit:
        run_compare(words, monkeypatch)
    lines = capsys.readouterr().err.splitlines()
    assert exit.value.code == status and len(lines) == 1 and text in lines[0]


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"args": 3}'])
def test_a_directory_without_a_readable_record_is_no_run(content, tmp_path):
    (tmp_path / "args.json").write_text(content)
    with pytest.raises(ValueError, match="is no run"):
        compare.compare([str(tmp_path)])


def test_the_script_starts(runs):
    done = subprocess.run([sys.executable, ROOT / "compare.py", *runs], capture_output=True, text=True)
    assert done.returncode == 0 and "search-a_1" in done.stdout and done.stderr == ""

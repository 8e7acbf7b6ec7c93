"""Runs side by side: which evaluation belongs to which search, statistics worked out by hand, well-formed tables."""
import argparse
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scripts

import compare
import export
import genotypes
import hubconf
import utils
from harness import cli, records, weights
from harness.log import log
from reporting import tables
from reporting.page import training_command
from reporting.runs import read_run

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


def write_search(run_dir: Path, seed: int, genotype=FOUND, **options) -> str:
    """A search of 3 epochs of 600 seconds on 2 processes: 1 hour."""
    metrics = [{"stage": stage, "epoch": 0, "seconds": 600.0} for stage in (1, 2, 3)]
    write_run(run_dir, {"dataset": "cifar10", "seed": seed, "epochs": 1} | options, metrics, genotype)
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
    """Two searches, not finished the second, three evaluations of what the first found (one unfinished), two of PDARTS.

    The searches differ in their epochs, so that they have rows of their own.
    """
    PDARTS = genotypes.load("PDARTS")
    return [write_search(tmp_path / "search-a_1", seed=1),
            write_search(tmp_path / "search-b|&", seed=2, genotype=None, epochs=2),
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


@pytest.fixture
def validated(tmp_path) -> list[str]:
    """Three searches of one kind, each with evaluations of [validation, test accuracy of best.pt] in %, by seed."""
    runs = []
    for i, found in enumerate(([(90.0, 80.0), (94.0, 90.0)], [(93.0, 84.0)], [(70.0, 99.0)])):
        genotype = genotypes.load(f"random:{i}")
        runs.append(write_search(tmp_path / f"search-{i}", i, genotype))
        for seed, (valid, test) in enumerate(found):
            run_dir = tmp_path / f"eval-{i}-{seed}"
            runs.append(write_evaluation(run_dir, [0.0, 1.0], genotype, seed=seed, valid_portion=0.1))
            records = [{"epoch": 0, "seconds": 1.0, "valid_acc": valid},
                       {"epoch": 1, "seconds": 1.0, "valid_acc": valid - 1, "test_acc": 50.0, "best_test_acc": test}]
            (run_dir / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
            record = json.loads((run_dir / "args.json").read_text())
            command = f"python train_cifar.py --arch 'a b' --valid_portion 0.1 --seed {seed} --note {i}"
            (run_dir / "args.json").write_text(json.dumps(record | {"command": command}))
    return runs


def test_validation_has_a_column_beside_the_tests(validated):
    row, = compare.compare(validated)
    assert row["valid_error"] == pytest.approx((8 + 7 + 30) / 3)
    assert row["best_error"] == pytest.approx((15 + 16 + 1) / 3)
    assert row["last_error"] == 50
    line = compare.tables.format_row(row)
    assert line["validation error, best epoch (%)"] == "15.00 ± 13.00"
    assert line["top-1 error, best epoch (%)"].startswith("10.67")


def test_the_cell_that_validation_prefers_is_named_with_its_test_accuracy_and_how_to_retrain_it(
        validated, monkeypatch, capsys):
    """By the mean over its evaluations: 93 of search-1, rather than the 94 of one run of search-0."""
    run_compare([*validated, "--choose"], monkeypatch)
    text = capsys.readouterr().out
    assert "P-DARTS: of 3 cell(s), validation prefers search-1: " in text
    assert "validation accuracy 93.00%, test accuracy 84.00% (mean of all: 89.33%)" in text  # (85 + 84 + 99) / 3
    assert "on all images: python train_cifar.py --arch 'a b' --seed 0 --note 1\n" in text


def test_choosing_needs_runs_with_validation(runs, monkeypatch, capsys):
    with pytest.raises(SystemExit) as exit:
        run_compare([*runs, "--choose"], monkeypatch)
    assert exit.value.code == 1 and "--valid_portion" in capsys.readouterr().err.splitlines()[-1]


def test_cells_that_a_budget_has_made_as_wide_as_it_allows_are_compared(tmp_path):
    rows = compare.compare([
        write_evaluation(tmp_path / f"eval-{i}", [0.0, 90.0 + i], genotypes.load(f"random:{i}"), arch=f"random:{i}",
                         init_channels=8 + 4 * i, max_multiply_adds=600.0) for i in range(2)])
    assert [row["n"] for row in rows] == [2]
    assert "at most 600M multiply-adds, 20 cells" in compare.tables.as_text(rows)


@pytest.mark.parametrize("form", [[], ["--markdown"], ["--latex"]], ids=["text", "markdown", "latex"])
def test_found_cells_have_a_mobile_network_within_a_budget(form, runs, monkeypatch, capsys):
    monkeypatch.setattr(utils, "most_channels", lambda make, size, limit: 48 if (size, limit) == (224, 600) else None)
    run_compare([runs[5], runs[0], *form, "--max_multiply_adds", "600"], monkeypatch)
    lines = [re.split(r"\s*\|\s*|\s{2,}| & ", line.removesuffix(r" \\").strip("| "))
             for line in capsys.readouterr().out.splitlines()]
    assert ["PDARTS", "48", "4.94", "557.1"] in lines  # as in the paper: 4.9M, 557M
    assert ["cell", "mobile setting: channels", "params (M)", "published mult-adds (M)"] in lines


def test_a_cell_has_its_mobile_network_in_each_of_its_rows(tmp_path):
    runs = [write_evaluation(tmp_path / f"eval-{epochs}", [90.0] * epochs, genotypes.load("PDARTS"), arch="PDARTS",
                             epochs=epochs) for epochs in (1, 2)]
    rows = compare.compare(runs)
    compare.add_mobile(rows, 600)
    assert [part["mobile"]["channels"] for row in rows for part in row["cells"]] == [48, 48]  # as in the paper


def test_searches_with_an_own_operation_have_a_row_that_names_it(tmp_path):
    own = [*records.CANDIDATES[:7], "silu_conv"]
    runs = [write_search(tmp_path / f"search-{seed}", seed=seed, **{"candidates": own} if seed > 1 else {})
            for seed in range(4)]
    assert [row["run"] for row in compare.compare(runs)] == ["P-DARTS", "P-DARTS, with silu_conv"]


def test_controls_have_a_row_of_their_own(tmp_path):
    """Controls record the options of the unchanged search; only their command says what was changed."""
    runs = [write_search(tmp_path / name, seed=seed) for seed, name in enumerate(["a", "b", "c", "d", "plain"])]
    for name, words in (("c", "experiments/controls.py noise"), ("d", "'/my code/experiments/controls.py' noise"),
                        ("plain", "experiments/controls.py plain")):
        path = tmp_path / name / "args.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"command": f"python {words} --seed 1"}))
    assert [(row["run"], row["seed"]) for row in compare.compare(runs)] == [
        ("P-DARTS", [0, 1]), ("P-DARTS, noise", [2, 3]), ("plain", 4)]


def test_fast_may_differ_between_runs_of_a_row(tmp_path):
    rows = compare.compare([write_evaluation(tmp_path / f"eval-{fast}", [0.0, 90.0], seed=seed, fast=fast)
                            for seed, fast in enumerate(("off", "auto"))])
    assert [row["n"] for row in rows] == [2]


def test_dealt_cells_share_a_row(tmp_path):
    dealt = [write_evaluation(tmp_path / f"eval-{i}", [0.0, accuracy], genotypes.load(f"random:{i}"),
                              arch=f"cells/cifar-dealt-10-{i}.json") for i, accuracy in enumerate((96.0, 94.0))]
    row, = compare.compare(dealt)
    assert (row["kind"], row["cell"], row["over"], row["n"]) == ("dealt", "dealt cells", "cells", 2)
    assert row["last_error"] == pytest.approx(5.0) and row["last_std"] == pytest.approx(2 ** 0.5)


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
    record["kind"] = "imagenet"
    (tmp_path / "imagenet-0" / "args.json").write_text(json.dumps(record))
    assert compare.compare([run])[0]["setting"]["dataset"] == "imagenet"


def test_an_evaluation_that_has_not_begun_belongs_to_the_search_it_names(tmp_path):
    search = write_search(tmp_path / "search", seed=1)
    row, = compare.compare([search, write_evaluation(tmp_path / "eval", [], genotype=None, arch=f"{search}/")])
    assert row["run"] == "search" and row["n"] == 0 and row["unfinished"] == {"eval": "no epoch yet"}
    assert row["last_error"] is None


def test_a_folder_is_a_data_set_by_its_name_wherever_a_machine_has_it(tmp_path):
    rows = compare.compare([write_evaluation(tmp_path / f"eval-{i}", [0.0, accuracy], dataset="folder",
                                             tmp_data_dir=folder)
                            for i, (folder, accuracy) in enumerate([("/a/birds", 95.0), ("/b/birds/", 93.0),
                                                                    ("/a/cars", 55.0)])])
    assert [(row["setting"]["tmp_data_dir"], row["n"]) for row in rows] == [("birds", 2), ("cars", 1)]
    assert rows[0]["last_error"] == pytest.approx(6.0)


def test_different_images_in_folders_of_one_name_are_named(tmp_path, caplog):
    """By the digest in data.json, which a collected run lacks."""
    runs = [write_evaluation(tmp_path / f"eval-{i}", [0.0, 95.0], dataset="folder", tmp_data_dir=f"/{i}/images",
                             arch="PDARTS") for i in range(4)]
    for run, digest in zip(runs, "aab"):
        data = {"classes": ["cat"], "mean": [0.5] * 3, "std": [0.2] * 3, "image_size": 16, "resize": 16, "images": [9],
                "digest": digest}
        Path(run, "data.json").write_text(json.dumps(data))
    with caplog.at_level("WARNING", logger=log.name):
        compare.compare(runs[:2] + runs[3:])
        assert not caplog.messages
        compare.compare(runs)
    assert ["eval-0 and eval-2 have different images" in message for message in caplog.messages] == [True]


def test_where_a_published_set_lies_makes_no_difference(tmp_path):
    rows = compare.compare([write_evaluation(tmp_path / f"eval-{i}", [0.0, 95.0], seed=i, tmp_data_dir=f"/data{i}")
                            for i in (0, 1)])
    assert [row["n"] for row in rows] == [2] and "tmp_data_dir" not in rows[0]["setting"]


def test_runs_that_share_even_the_seed_count_and_are_named(tmp_path, monkeypatch, capsys):
    run_compare([write_search(tmp_path / f"search-{i}", 2, genotypes.load(f"random:{i}")) for i in (0, 1)]
                + [write_evaluation(tmp_path / f"eval-{i}", [0.0, 95.0], genotypes.load("PDARTS"), arch="PDARTS",
                                    seed=3) for i in (0, 1)], monkeypatch)
    searches, evaluations = capsys.readouterr().err.splitlines()
    assert "P-DARTS: several runs have the seed 2" in searches and "PDARTS: several runs have the seed 3" in evaluations


def test_a_run_named_twice_counts_once(runs):
    assert compare.compare(runs + [f"{run}/" for run in runs]) == compare.compare(runs)


def test_the_table_for_the_eye_says_what_is_unfinished(runs, monkeypatch, capsys):
    run_compare(runs, monkeypatch)
    lines = capsys.readouterr().out.splitlines()
    assert set(lines[1]) == {"-", " "}
    assert "3.50 ± 0.71" in lines[2] and "3.00 ± 0.00" in lines[2] and "eval-2: epoch 1/2" in lines[2]
    assert "search: stage 3, epoch 1/2" in lines[3]
    assert f"search-a_1: {json.dumps(FOUND._asdict())}" in lines


def test_the_unfinished_searches_of_a_row_are_counted(tmp_path):
    runs = [write_search(tmp_path / f"search-{seed}", seed, None if seed else FOUND, epochs=2) for seed in range(3)]
    assert "2 of 3 searches: stage 3, epoch 1/2" in compare.tables.as_markdown(compare.compare(runs))


def test_two_ways_to_name_cifar100_are_one_setting(tmp_path):
    """--cifar100 is what the published code calls --dataset cifar100."""
    rows = compare.compare([write_evaluation(tmp_path / f"eval-{i}", [0.0, 80.0], dataset="cifar100", cifar100=i == 1)
                            for i in (0, 1)])
    assert [row["n"] for row in rows] == [2]


def test_json_holds_all_rows(runs, monkeypatch, capsys):
    run_compare([*runs, "--json"], monkeypatch)
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(compare.compare(runs)))


def test_markdown_has_as_many_cells_in_every_line(runs, monkeypatch, capsys):
    run_compare([*runs, "--markdown"], monkeypatch)
    *lines, _, shared = capsys.readouterr().out.splitlines()
    assert shared == "Data of all searches: cifar10. Device of all searches: 2 x NVIDIA H100."
    assert "device" not in lines[0]
    assert len(lines) == 6 and set(lines[1]) == set("|- ")
    assert len({line.replace("\\|", "").count("|") for line in lines}) == 1
    assert lines[3].startswith("| search-b\\|& |") and "3.50 ± 0.71" in lines[2]


def test_latex_is_escaped_and_has_as_many_cells_in_every_line(runs, monkeypatch, capsys):
    run_compare([*runs, "--latex"], monkeypatch)
    *lines, shared = capsys.readouterr().out.splitlines()
    assert shared == "% Data of all searches: cifar10. Device of all searches: 2 x NVIDIA H100."
    assert lines[0].startswith(r"\begin{tabular}{") and lines[-1] == r"\end{tabular}"
    assert (lines[1], lines[3], lines[-2]) == (r"\toprule", r"\midrule", r"\bottomrule")
    table = [lines[2], *lines[4:-2]]
    assert all(line.endswith(r" \\") for line in table) and len(table) == 5
    columns = lines[0].count("l", lines[0].rindex("{"))
    assert {line.replace(r"\&", "").count("&") + 1 for line in table} == {columns}
    assert r"search-a\_1" in table[1] and r"search-b\textbar{}\&" in table[2] and r"3.50 $\pm$ 0.71" in table[1]
    assert r"top-1 error, last epoch (\%)" in table[0]


def three_searches(tmp_path) -> list[str]:
    """Searches that found random:10, 11 and 12, each trained twice: their errors are 3 and 5, 6 and 6, 7 and 9."""
    written = []
    for i, accuracies in enumerate([(97, 95), (94, 94), (93, 91)]):
        genotype = genotypes.load(f"random:{10 + i}")
        written.append(write_search(tmp_path / f"search-{i}", i, genotype, init_channels=16))
        written += [write_evaluation(tmp_path / f"eval-{i}-{seed}", [0.0, accuracy], genotype, seed=seed)
                    for seed, accuracy in enumerate(accuracies)]
    return written


def two_random_cells(tmp_path, **options) -> list[str]:
    """Errors 9 and 11: 10 on average, with a deviation of the square root of 2."""
    return [write_evaluation(tmp_path / f"random-{i}-{len(options)}", [0.0, accuracy], genotypes.load(f"random:{i}"),
                             arch=f"random:{i}", **options) for i, accuracy in enumerate((91.0, 89.0))]


def test_searches_that_differ_in_the_seed_alone_share_a_row_over_searches(tmp_path):
    row, = compare.compare(three_searches(tmp_path))
    assert row["run"] == row["kind"] == "P-DARTS" and row["seed"] == [0, 1, 2] and row["state"] == "3 of 3 finished"
    assert row["n"] == 3 and row["over"] == "searches" and row["seeds"] == [0, 1, 0, 1, 0, 1]
    assert row["last_error"] == pytest.approx(6.0) and row["last_std"] == pytest.approx(2.0)  # of 4, 6 and 8
    assert row["hours"] == pytest.approx(1.0) and row["evaluation_hours"] == pytest.approx(2 * 2 / 3600)
    assert [part["last_errors"] for part in row["cells"]] == [[3.0, 5.0], [6.0, 6.0], [7.0, 9.0]]
    assert row["found_skips"] == 5 and row["genotype"] is None


def test_a_search_whose_cell_is_not_trained_yet_is_in_its_row_and_not_counted(tmp_path):
    late = write_search(tmp_path / "search-late", 7, genotype=None, init_channels=16)
    row, = compare.compare([*three_searches(tmp_path), late])
    assert row["n"] == 3 and row["seed"] == [0, 1, 2, 7] and row["state"] == "3 of 4 finished"
    assert row["last_error"] == pytest.approx(6.0)


def test_searches_with_other_options_have_a_row_that_names_them(tmp_path):
    plain = [write_search(tmp_path / f"none-{i}", i, genotypes.load(f"random:{20 + i}"), init_channels=16,
                          dropout_rate=[0, 0, 0]) for i in (0, 1)]
    wide = [write_search(tmp_path / f"wide-{i}", i, genotypes.load(f"random:{30 + i}"), init_channels=8)
            for i in (0, 1)]
    names = [row["run"] for row in compare.compare([*three_searches(tmp_path), *plain, *wide])]
    assert names == ["P-DARTS, init_channels 16", "P-DARTS, init_channels 8",
                     "without skip dropout, init_channels 16"]


def test_random_cells_of_a_setting_are_one_row_that_the_others_are_compared_with(tmp_path):
    rows = compare.compare([*three_searches(tmp_path), *two_random_cells(tmp_path),
                            *two_random_cells(tmp_path, layers=8)])
    found, baseline, shallow = rows
    assert [row["cell"] for row in rows[1:]] == ["random cells"] * 2
    assert baseline["n"] == 2 and baseline["over"] == "cells"
    assert baseline["last_error"] == pytest.approx(10.0) and baseline["last_std"] == pytest.approx(2 ** 0.5)
    assert found["difference"] == pytest.approx(-4.0) and found["difference_in_std"] == pytest.approx(-4 / 2 ** 0.5)
    assert baseline["difference"] is shallow["difference"] is None


def test_one_random_cell_is_a_baseline_without_a_deviation(tmp_path):
    PDARTS = write_evaluation(tmp_path / "eval", [0.0, 95.0], genotypes.load("PDARTS"), arch="PDARTS")
    baseline, row = compare.compare([two_random_cells(tmp_path)[0], PDARTS])
    assert baseline["cell"] == "random:0" and row["difference"] == pytest.approx(-4.0)
    assert row["difference_in_std"] is None


def write_alphas(run_dir: Path, op: str = "sep_conv_3x3") -> genotypes.Genotype:
    """Alphas of a first stage that wants `op` everywhere, most on edges from the cell's inputs; its cell."""
    alphas = np.zeros((1, 14, 8))
    alphas[0, :, genotypes.PRIMITIVES.index(op)] = 1
    alphas[0, [0, 1, 2, 3, 5, 6, 9, 10], genotypes.PRIMITIVES.index(op)] = 2
    names = np.array([genotypes.PRIMITIVES] * 14)
    np.savez(run_dir / "alphas.npz", stage1_normal=alphas, stage1_reduce=alphas, stage1_normal_candidates=names,
             stage1_reduce_candidates=names)
    genes = [(op, 0), (op, 1)] * 4
    return genotypes.Genotype(genes, [2, 3, 4, 5], genes, [2, 3, 4, 5])


def test_the_cell_that_one_stage_would_have_given_has_a_row_with_that_stages_hours(tmp_path):
    search = write_search(tmp_path / "search", seed=1)
    genotype = write_alphas(tmp_path / "search")
    rows = compare.compare([search, write_evaluation(tmp_path / "eval-0", [0.0, 95.0]),
                            write_evaluation(tmp_path / "eval-1", [0.0, 94.0], genotype)])
    assert [(row["run"], row["kind"]) for row in rows] == [("search", "P-DARTS"), ("one stage of search", "one stage")]
    assert [row["last_error"] for row in rows] == pytest.approx([5.0, 6.0])
    assert [row["hours"] for row in rows] == pytest.approx([1.0, 1 / 3])


def test_first_stages_with_and_without_skip_dropout_have_names_of_their_own(tmp_path):
    written = []
    for i, op in enumerate(["sep_conv_3x3", "sep_conv_5x5", "dil_conv_3x3", "dil_conv_5x5"]):
        folder, rates = tmp_path / f"search-{i}", [0.1, 0.4, 0.7] if i < 2 else [0, 0, 0]
        written.append(write_search(folder, i % 2, genotypes.load(f"random:{i}"), dropout_rate=rates))
        written.append(write_evaluation(tmp_path / f"eval-{i}", [0.0, 95.0], write_alphas(folder, op)))
    assert [row["run"] for row in compare.compare(written)] == [
        "P-DARTS", "without skip dropout", "one stage", "one stage without skip dropout"]


@pytest.mark.parametrize("form", ["--markdown", "--latex"])
def test_tables_hold_searches_baseline_and_differences(form, tmp_path, monkeypatch, capsys):
    run_compare([*three_searches(tmp_path), *two_random_cells(tmp_path), form], monkeypatch)
    out = capsys.readouterr().out
    minus, plus_minus = ("$-$", r"$\pm$") if form == "--latex" else ("−", "±")
    assert f"6.00 {plus_minus} 2.00" in out and f"10.00 {plus_minus} 1.41" in out
    assert f"{minus}4.00" in out and f"{minus}2.8" in out and "3 searches" in out and "2 cells" in out


@pytest.mark.parametrize("name, start", [("dots.svg", b"<?xml"), ("dots.png", b"\x89PNG")])
def test_the_picture_has_a_dot_per_run_of_each_cell(name, start, tmp_path, monkeypatch):
    words = [*three_searches(tmp_path), *two_random_cells(tmp_path), "--plot", str(tmp_path / name)]
    run_compare(words, monkeypatch)
    content = (tmp_path / name).read_bytes()
    assert content.startswith(start)
    if name.endswith("svg"):
        dots = re.findall(r"<use [^>]*fill-opacity: 0.7", content.decode())
        assert len(dots) == 6 + 2 and "random cells" in content.decode()


def test_the_picture_names_searches_of_one_kind_and_cells_as_they_are(tmp_path, monkeypatch):
    words = [write_search(tmp_path / name, 1, genotypes.load(f"random:{i}"), max_skip=i)
             for i, name in enumerate(("short", "long"))]
    words += [write_evaluation(tmp_path / f"eval-{i}", [0.0, 95.0], genotypes.load(f"random:{i}")) for i in (0, 1)]
    words += [write_evaluation(tmp_path / "eval-2", [0.0, 95.0], genotypes.load("random:2"), arch="$a$b")]
    run_compare([*words, "--plot", str(tmp_path / "dots.svg")], monkeypatch)
    texts = re.findall(r"<text [^>]*>([^<]*)</text>", (tmp_path / "dots.svg").read_text())
    assert {"short", "long", "$a$b"} <= set(texts) and "P-DARTS" not in texts


def test_a_picture_of_nothing_trained_is_refused(tmp_path, monkeypatch, capsys):
    with pytest.raises(SystemExit) as exit:
        run_compare([write_search(tmp_path / "search", 1), "--plot", str(tmp_path / "dots.svg")], monkeypatch)
    assert exit.value.code == 1 and "--plot" in capsys.readouterr().err and not (tmp_path / "dots.svg").exists()


@pytest.mark.parametrize("words, status, text", [([], 2, "required"), (["."], 1, ". is not a run"),
                                                 (["--jsn", "."], 2, "did you mean --json"),
                                                 ([".", "--json", "--latex"], 2, "not allowed with"),
                                                 ([".", "--plot", "dots.pdf"], 2, "must end in .svg or .png")])
def test_bad_input_gets_one_line(words, status, text, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as exit:
        run_compare(words, monkeypatch)
    lines = capsys.readouterr().err.splitlines()
    assert exit.value.code == status and len(lines) == 1 and text in lines[0]


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"args": 3}'])
def test_a_directory_without_a_readable_record_is_no_run(content, tmp_path):
    (tmp_path / "args.json").write_text(content)
    with pytest.raises(ValueError, match="is not a run"):
        compare.compare([str(tmp_path)])


@pytest.mark.parametrize("content", ["", "3", "[{}]", '[{"genotype": "no cell"}]'])
def test_damaged_sizes_are_named(content, tmp_path):
    search = write_search(tmp_path / "search", 1)
    (tmp_path / "search" / "genotypes.json").write_text(content)
    with pytest.raises(ValueError, match="search/genotypes.json is damaged: --resume"):
        compare.compare([search])


def test_the_script_starts(runs):
    done = subprocess.run([sys.executable, ROOT / "compare.py", *runs], capture_output=True, text=True)
    assert done.returncode == 0 and "search-a_1" in done.stdout and done.stderr == ""


# ---- which search to retrain

def test_on_digits_two_small_searches_are_searched_trained_and_chosen_from(tmp_path):
    tiny = ["--device", "cpu", "--save", tmp_path / "runs", "--layers", 2, "--batch_size", 300]
    for seed in (1, 2):
        outcome = scripts.run("train_search.py", *tiny, "--init_channels", 2, "--add_layers", 0, "--add_layers", 0,
                              "--epochs", 2, "--warmup_epochs", 1, "--seed", seed, "--note", seed)
        assert outcome.code == 0, outcome
        search, = (tmp_path / "runs").glob(f"search-{seed}-*")
        outcome = scripts.run("train_cifar.py", *tiny, "--init_channels", 4, "--epochs", 3, "--drop_path_prob", 0,
                              "--arch", search, "--valid_portion", 0.2, "--note", seed)
        assert outcome.code == 0, outcome
    outcome = scripts.run("compare.py", *(tmp_path / "runs").iterdir(), "--choose")
    assert outcome.code == 0, outcome
    valid = {run_dir.name: max(record["valid_acc"] for record in scripts.metrics(run_dir))
             for run_dir in (tmp_path / "runs").glob("eval-*")}
    chosen = re.search(r"of 2 cell\(s\), validation prefers search-(\d)-.*: validation accuracy (\S+)%", outcome.out)
    assert chosen[2] == f"{max(valid.values()):.2f}"
    assert max(valid.values()) == next(value for name, value in valid.items() if name.startswith(f"eval-{chosen[1]}-"))
    assert "validation error, best epoch (%)" in outcome.out and "top-1 error, best epoch (%)" in outcome.out


# ---- names are no keys

def test_runs_of_one_name_in_two_folders_keep_their_rows(tmp_path, caplog):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    runs = [write_search(tmp_path / folder / "search-try", seed, genotypes.load(f"random:{seed}"), max_skip=seed)
            for seed, folder in enumerate("ab")]
    runs += [write_evaluation(tmp_path / folder / "eval-try", [50.0], genotypes.load("random:0"), seed=seed)
             for seed, folder in enumerate("ab")]
    rows = compare.compare(runs)
    assert {row["run"] for row in rows} == set(runs[:2]) and set(rows[0]["unfinished"]) == set(runs[2:])
    assert tables.list_genotypes(rows).count("\n") == 1


@pytest.mark.parametrize("name", ["PDARTS", "DARTS_V2", "random:3", "random:x", "Genotype(normal=[])", "{}", "darts"])
def test_a_run_directory_is_a_path_whatever_its_name_is(name, tmp_path, monkeypatch):
    cell = genotypes.load("random:7")
    monkeypatch.chdir(tmp_path)
    write_evaluation(Path(name), [0.0, 95.0], cell)
    assert read_run(name)["genotype"] == genotypes.load_file(name) == cell
    assert genotypes.load(records.arch_of(argparse.Namespace(resume=name, arch="PDARTS"))) == cell
    weights.save(Path(name, "weights.pt"), hubconf.pdarts_cifar(cell, 10, 2, 3))
    assert hubconf.pdarts_cifar(weights=name).arguments[0] == str(cell)
    network, _, metadata = export.open_trained(argparse.Namespace(
        run=name, weights=None, tmp_data_dir=None, dataset="digits", image_size=None))
    assert metadata["genotype"] == cell._asdict()


@pytest.mark.parametrize("name", ["PDARTS", "DARTS_V1"])
def test_the_command_that_trains_a_cell_names_its_directory(name):
    args = {"image_size": 8, "dataset": "digits", "tmp_data_dir": None}
    assert f"--arch ./{name}" in training_command(Path(name), args)


def test_an_evaluation_of_the_published_cell_is_not_of_a_search_with_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_search(Path("PDARTS"), seed=1, genotype=None)
    evaluation = write_evaluation(Path("eval"), [0.0, 95.0], genotypes.load("PDARTS"), arch="PDARTS")
    rows = compare.compare(["PDARTS", evaluation])
    assert [row["kind"] for row in rows] == ["P-DARTS", "published"] and rows[0]["n"] is None


@pytest.mark.parametrize("arch", ["Genotype(\n  normal=[],\n)", "a\nb", "a\r\nb|c", "\x1b[2J"])
def test_an_arch_of_several_lines_stays_in_its_cell(arch, tmp_path):
    if "Genotype" in arch:
        arch = str(FOUND).replace("], ", "],\n  ")
    runs = [write_evaluation(tmp_path / "eval", [0.0, 95.0], arch=arch)]
    rows = compare.compare(runs)
    for form in (tables.as_markdown, tables.as_latex, tables.as_text, tables.list_genotypes):
        assert form(rows).replace("\n", "").isprintable()
    table = tables.as_markdown(rows).splitlines()
    assert len(table) == 3 and len({len(re.findall(r"(?<!\\)\|", line)) for line in table}) == 1


def test_searches_that_found_one_cell_are_told_apart_from_two_trainings(tmp_path, caplog):
    runs = [write_search(tmp_path / f"search-{seed}", seed) for seed in (1, 2)]
    runs += [write_evaluation(tmp_path / f"eval-{seed}", [0.0, 95.0 + seed], seed=seed) for seed in (0, 1)]
    compare.warn_of_repeats(compare.compare(runs))
    message, = caplog.messages
    assert "2 searches found 1 different cell(s)" in message and "P-DARTS" in message
    caplog.clear()
    other = write_search(tmp_path / "search-3", 3, genotypes.load("random:9"))
    compare.warn_of_repeats(compare.compare([runs[0], other, *runs[2:], write_evaluation(
        tmp_path / "eval-9", [0.0, 90.0], genotypes.load("random:9"), seed=9)]))
    assert not caplog.messages


@pytest.mark.parametrize("processes, expected", [((None, None, None), 3 * 600 * 2), ((None, 4, 4), 600 * (2 + 4 + 4)),
                                                 ((1, None, 8), 600 * (1 + 2 + 8))])
def test_hours_count_the_processes_of_each_epoch(processes, expected, tmp_path):
    search = write_search(tmp_path / "search", seed=1)
    lines = [json.loads(line) for line in (tmp_path / "search/metrics.jsonl").read_text().splitlines()]
    lines = [row | ({"processes": n} if n else {}) for row, n in zip(lines, processes)]
    (tmp_path / "search/metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    assert compare.compare([search])[0]["hours"] == pytest.approx(expected / 3600)

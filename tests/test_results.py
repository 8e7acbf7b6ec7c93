"""results/: the records of the runs that README and docs/evidence.md quote, and the tables made from them."""
import fnmatch
import itertools
import re

import numpy as np
import pytest
from scipy import stats
from scripts import ROOT, run

import compare
from experiments import agreement, matrix, significance
from experiments.dropped import read_alphas
from genotypes import PRIMITIVES
from harness import records
from reporting.runs import read_run

RESULTS = ROOT / "results"
# The names of the runs that the table of a setting is made from, as in the commands of docs/evidence.md.
FASHION = ["search-fashion-*", "eval-fashion-*"]
CIFAR = ["search-cifar-pdarts-*", *(f"eval-cifar-{cell}-{matrix.SETTINGS['cifar'].epochs}ep-0-*" for cell in (
    "random-[0-7]", "random-10[0-2]", "PDARTS", "DARTS_V[12]", "PC_DARTS_cifar", "pdarts-1[0-5]", "one-stage-1[0-5]",
    "dealt-1[0-5]-[01]"))]
PLANTED = ["search-cifar-noise-*", "search-cifar-twin-*", CIFAR[0]]
SHUFFLED = ["search-cifar-shuffled-labels-*"]
CELLS = ("normal", "reduction")
CONTROLS = ["search-cifar-swapped-halves-*", *PLANTED[:2], *SHUFFLED]


def runs(*patterns: str) -> list[str]:
    """The run directories of these names, as a shell lists them in the root of the repository."""
    found = [str(path.relative_to(ROOT)) for pattern in patterns for path in sorted(RESULTS.glob(pattern))]
    assert found, patterns
    return found


def printed(script: str, *words: str) -> str:
    outcome = run(script, *words)
    assert outcome.code == 0, outcome
    return outcome.out.strip()


def table(script: str, patterns: list[str]) -> dict[str, list[str]]:
    """The table that a script prints: first column -> the others."""
    lines = printed(f"experiments/{script}.py", *runs(*patterns)).splitlines()
    return {first: others for first, *others in (line.strip("| ").split(" | ") for line in lines)}


def text(document: str) -> str:
    return (ROOT / document).read_text()


def prose(document: str) -> str:
    """Its text in one line, in which a quoted sentence can be found."""
    return " ".join(text(document).split())


def test_the_records_are_small_and_hold_no_weights_and_no_path_of_a_machine():
    files = [path for path in RESULTS.rglob("*") if path.is_file()]
    assert files and sum(path.stat().st_size for path in files) < 5e6
    assert {path.name for path in files if path.parent.name != "supernets"} <= {
        "args.json", "metrics.jsonl", "alphas.npz", "genotype.json", "genotypes.json"}
    assert {path.suffix for path in files if path.parent.name == "supernets"} <= {".json"}
    for path in files:
        assert path.suffix == ".npz" or not re.search(r"[\"' ]/\w|/(root|home|tmp)/", path.read_text()), path


def test_the_tables_of_a_setting_are_made_from_its_own_runs():
    """Of the steps of cifar, those that compare cells: no controls, no drop path."""
    def chosen(names, patterns):
        return {name for name in names if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)}

    names = {f"{'eval' if step.command[0] == 'train_cifar.py' else 'search'}-{step.name}-20261128-172814": step.part
             for step in matrix.steps(matrix.SETTINGS["cifar"])}
    assert chosen(names, CIFAR) == {name for name, part in names.items() if part not in ("control", "drop-path")}
    assert not chosen(names, FASHION)
    assert not chosen([path.name for path in RESULTS.glob("*-fashion-*")], CIFAR)


@pytest.mark.parametrize("document", ["README.md", "docs/evidence.md"])
def test_the_table_of_results_is_what_compare_makes_of_the_records(document):
    assert printed("compare.py", *runs(*CIFAR), "--markdown") in text(document)


def test_the_table_of_drop_path_is_what_compare_makes_of_the_records():
    cells, infixes = ("PDARTS", "pdarts-10", "dealt-10-0", "random-0"), ("", "drop-path-")
    found = runs(*(f"eval-cifar-{cell}-{infix}12ep-0-*" for cell in cells for infix in infixes))
    assert len(found) == 8 and printed("compare.py", *found, "--markdown") in text("docs/evidence.md")


def test_the_table_of_the_first_attempt_is_what_compare_makes_of_the_records():
    assert printed("compare.py", *runs(*FASHION), "--markdown") in text("docs/evidence.md")


@pytest.mark.parametrize("script, patterns", [
    ("differences", CIFAR), ("traits", CIFAR[1:]), ("agreement", CIFAR[:1]), ("planted", PLANTED),
    ("dropped", [CIFAR[0], *CONTROLS]), ("agreement", SHUFFLED)])
def test_the_other_tables_are_what_the_scripts_make_of_the_records(script, patterns):
    assert printed(f"experiments/{script}.py", *runs(*patterns)) in text("docs/evidence.md")


@pytest.mark.parametrize("control", [SHUFFLED[0], "search-cifar-swapped-halves-*"])
def test_the_tables_of_agreement_with_a_control_are_what_agreement_makes_of_the_records(control):
    found = printed("experiments/agreement.py", *runs(control), "--against", *runs(CIFAR[0]))
    assert found in text("docs/evidence.md")


# Runs of stage 1 with the same seed, which differ in their rounding, and what the table calls them.
AGAIN = {"12": ("pdarts", "plain"), "13": ("pdarts", "plain"), "14": ("pdarts", "plain"), "15": ("pdarts", "plain"),
         "13, AVX2": ("plain", "avx2"), "14, AVX2": ("plain", "avx2")}


def twice(name: str) -> list[str]:
    return [run_dir for kind in AGAIN[name] for run_dir in runs(f"search-cifar-{kind}-{name[:2]}-*")]


@pytest.mark.parametrize("seed", [10, 11])
def test_a_repeated_stage_1_is_the_same_bit_for_bit_on_cpus_of_one_make(seed):
    first, again = (read_alphas(run_dir) for kind in ("pdarts", "plain")
                    for run_dir in runs(f"search-cifar-{kind}-{seed}-*"))
    assert first.keys() == again.keys() and all(np.array_equal(first[cell], again[cell]) for cell in first)


def test_a_repeated_stage_1_with_other_rounding_agrees_as_quoted():
    quoted = prose("docs/evidence.md")
    lines = [line.replace("| 1 | 522 |", f"| {name} |").replace(" | 1 | ", " | ") for name in AGAIN
             for line in printed("experiments/agreement.py", *twice(name)).splitlines()[-2:]]
    assert "\n".join(lines) in text("docs/evidence.md")
    again = [np.mean([float(line.split(" | ")[3]) for line in lines if f"| {cell} |" in line]) for cell in CELLS]
    of_seeds = printed("experiments/agreement.py", *runs(CIFAR[0])).splitlines()[4:6]
    seeds = [float(line.split(" | ")[5]) for line in of_seeds]
    assert ("agree more (on average {:.2f} in the normal cell and {:.2f} in the reduction cell) than those of two "
            "seeds do ({:.2f} and {:.2f}).".format(*again, *seeds) in quoted)
    assert ("ends with alphas that agree better ({:.2f} and {:.2f} beyond means) than those of two seeds ({:.2f} and "
            "{:.2f})".format(*again, *seeds) in quoted)
    shares = [100 * (same - other) / (1 - other) for same, other in zip(again, seeds)]
    assert "comes from the seed ({:.0f}% in the normal cell, {:.0f}% in the reduction cell)".format(*shares) in quoted


def test_the_cells_of_a_repeated_stage_1_have_as_much_in_common_as_quoted():
    """Pairs of an edge and its operation, of eight in each cell."""
    def genes(run_dir: str, cell: str) -> set:
        genotype = compare.first_stage_cell(read_run(str(ROOT / run_dir)))
        return {(i // 2, *gene) for i, gene in enumerate(getattr(genotype, cell))}

    in_common = {}
    for cell in ("normal", "reduce"):
        searches = [genes(run_dir, cell) for run_dir in runs(CIFAR[0])]
        again = [set.intersection(*(genes(run_dir, cell) for run_dir in twice(name))) for name in AGAIN]
        in_common[cell] = ([len(same) for same in again],
                           np.mean([len(a & b) for a, b in itertools.combinations(searches, 2)]))
    (normal, seeds), (reduce, seeds_reduce) = in_common.values()
    quoted = prose("docs/evidence.md")
    assert (f"its normal cells share only {np.mean(normal):.1f} of eight operations, those of two seeds {seeds:.1f}."
            in quoted)
    words = ("have {}, {}, {}, {}, {} and {} of their eight operations on the same edge in common, those of two seeds "
             "{:.1f} on average (in the reduction cell {}, {}, {}, {}, {} and {}, and {:.1f})")
    assert words.format(*normal, seeds, *reduce, seeds_reduce) in quoted


def test_the_table_of_removed_candidates_is_what_ablation_makes_of_the_records():
    found, quoted = printed("experiments/ablation.py", "results"), prose("docs/evidence.md")
    assert found in text("docs/evidence.md")
    lines = [line.strip("| ").split(" | ") for line in found.splitlines()[2:]]
    (normal, convolutions), (reduction, convolutions_reduction) = (
        [[float(line[column]) for line in lines if line[1] == cell] for column in (4, 6)] for cell in CELLS)
    assert len(normal) == 6 and min(*normal, *reduction) > 0
    assert (f"the rank correlation is {np.mean(normal):.2f} in the normal cell and {np.mean(reduction):.2f} in the "
            "reduction cell).") in quoted
    p, p_reduction = (stats.ttest_1samp(of_cell, 0).pvalue for of_cell in (convolutions, convolutions_reduction))
    assert (f"correlation is {np.mean(convolutions):.2f} on average in the normal cell (t test of six: p = {p:.2f}) "
            f"and {np.mean(convolutions_reduction):.2f} in the reduction cell (p = {p_reduction:.2f}).") in quoted


def test_the_quoted_differences_are_those_of_the_records():
    found = table("differences", CIFAR)
    quoted, readme = (prose(document) for document in ("docs/evidence.md", "README.md"))
    (n, points, _, p, std), (n2, points2, _, p2, _), (*_, std1) = (
        found[line] for line in ("P-DARTS − random", "P-DARTS − dealt", "one stage − random"))
    (searches, random), dealt = n.split(", "), n2.split(", ")[1]
    assert searches == "6" and (f"six searches have {points.strip('−')} points fewer errors than {random} random ones, "
                                f"and {points2.strip('−')} fewer than {dealt} dealt ones,") in quoted
    one_stage = found["P-DARTS − one stage"]
    assert f"on average, they have {one_stage[1].strip('−')} points fewer errors." in quoted
    assert f"on average, no change is shown (p = {float(one_stage[3]):.2f})" in quoted
    assert f"P-DARTS has {std.strip('−')}, one stage {std1.strip('−')}," in quoted
    assert (f"Six found cells show no clear lead over random or dealt ones (p = {float(p):.2f}, {float(p2):.2f})"
            in readme)
    assert f"published cells have {found['random − published'][1].strip('+')} points fewer errors" in quoted


def test_the_checklist_quotes_the_best_of_five_random_cells():
    errors = [float(values[0]) for cell, values in table("traits", CIFAR[1:]).items() if cell.startswith("random:")]
    best = np.mean([min(five) for five in itertools.combinations(errors, 5)])
    found = float(table("differences", CIFAR)["P-DARTS − random"][1].replace("−", "-")) + np.mean(errors)
    assert (f"chosen on the test images, has an error of {best:.1f}% on average, a cell of P-DARTS {found:.1f}%."
            in text("docs/evidence.md"))


def test_readme_quotes_the_agreement_of_the_searches():
    """In the reduction cell at the end of stage 1, the fourth line."""
    searches = runs(CIFAR[0])
    p, shuffled = (float(printed("experiments/agreement.py", *compared).splitlines()[5].split(" | ")[6])
                   for compared in (searches, [*runs(*SHUFFLED), "--against", *searches]))
    assert len(searches) == 6
    assert (f"six searches agree on edges of the reduction cell (p = {p:.4f})" in prose("README.md"))
    assert f"but not with those on shuffled labels (-0.04, p = {shuffled:.2f})" in prose("docs/evidence.md")


def test_what_is_left_of_the_candidates_correlates_as_quoted():
    """Beyond means, as 0 or 1, in stages 2 and 3."""
    searches = [records.read_alphas(ROOT / run_dir) for run_dir in runs(CIFAR[0])]
    found = []
    for stage, cell in itertools.product((2, 3), ("normal", "reduce")):
        kept = [(agreement.probabilities(alphas, stage, cell, -1) > 0).astype(float) for alphas in searches]
        centred = [edges - edges.mean(axis=0) for edges in kept]
        pairs = {(a, b): agreement.products(centred[a], centred[b]) for a, b in itertools.combinations(range(6), 2)}
        found.append([significance.agreement(pairs, groups) for groups in ((), agreement.GROUPS)])
    quoted = prose("docs/evidence.md")
    assert ("is {:.2f} in the normal cell and {:.2f} in the reduction cell of stage 2, and {:.2f} and {:.2f} in stage 3"
            .format(*(of_all.value for of_all, _ in found)) in quoted)
    (normal2, *others) = (within.p for _, within in found)
    assert (f"(p of at most {max(of_all.p for of_all, _ in found):.4f}). Within the two groups of edges, this is not "
            f"shown of what stage 1 drops in the normal cell (p = {normal2:.2f}), but of what is dropped by the end of "
            f"stage 2 in both cells (p of at most {max(others[1:]):.4f}).") in quoted


def test_the_mean_alphas_of_separable_and_dilated_convolutions_differ_as_quoted():
    """On average over a cell's edges, in each search; a sign test of six has p = 2 / 2^6."""
    def gaps(pattern: str, cell: str) -> list[float]:
        means = [read_alphas(run_dir)[cell].mean(axis=0) for run_dir in runs(pattern)]
        separable, dilated = ([i for i, name in enumerate(PRIMITIVES) if name.startswith(kind)]
                              for kind in ("sep", "dil"))
        return [mean[separable].mean() - mean[dilated].mean() for mean in means]

    quoted = " ".join(text("docs/evidence.md").replace("−", "-").split())
    (normal, reduce), (normal0, reduce0) = ([gaps(pattern, cell) for cell in ("normal", "reduce")]
                                            for pattern in (CIFAR[0], SHUFFLED[0]))
    assert len(normal) == 6 and min(*normal, *reduce) > 0
    assert (f"by {min(normal):.3f} to {max(normal):.3f} in the normal cell, and {min(reduce):.3f} to {max(reduce):.3f} "
            "in the reduction cell.") in quoted
    p, p_reduce = significance.difference(normal, normal0).p, significance.difference(reduce, reduce0).p
    assert (("(normal {:.3f} and {:.3f}, reduction {:.3f} and {:.3f}; against the six, p = {:.2f} and {:.2f})"
             .format(*normal0, *reduce0, p, p_reduce)) in quoted)
    assert f"more than two searches on shuffled labels do (p = {p:.2f})." in quoted


@pytest.mark.parametrize("pattern", [SHUFFLED[0], CIFAR[0]])
def test_with_shuffled_labels_too_convolutions_have_larger_probabilities_than_skip_connects_and_pools(pattern):
    """In the normal cell, on average over its edges, at the end of stage 1."""
    means = np.mean([agreement.probabilities(records.read_alphas(ROOT / run_dir), 1, "normal", -1).mean(axis=0)
                     for run_dir in runs(pattern)], axis=0)
    by_name = dict(zip(PRIMITIVES, means))
    convolutions = [mean for name, mean in by_name.items() if "conv" in name]
    assert len(convolutions) == 4
    assert min(convolutions) > max(by_name[name] for name in ("skip_connect", "max_pool_3x3", "avg_pool_3x3"))


def test_readme_quotes_what_becomes_of_noise():
    found = table("planted", PLANTED)
    noise = [values[:2] for run_dir, values in found.items() if "-noise-" in run_dir]
    assert noise == [["noise", "28"]] * 2
    assert "drops planted noise from all 28 edges" in prose("README.md")


def test_the_first_attempts_spread_without_drop_path_is_that_of_its_records():
    found = printed("compare.py", *runs("eval-fashion-random-[0-2]-*"), "--markdown")
    quoted = "of `random:0` to `random:2` falls from 0.72 to 0.06 points"
    assert "± 0.72" in found and "± 0.06" in found and quoted in text("docs/evidence.md")


def test_the_first_attempts_agreement_is_that_of_its_records():
    lines = [[cell.strip() for cell in line.split("|")] for line in
             printed("experiments/agreement.py", *runs("search-fashion-pdarts-*")).splitlines()]
    assert f"the smallest is {min(float(line[column]) for line in lines[2:] for column in (7, 8, 11)):.2f}" in text(
        "docs/evidence.md")
    *_, same, by_chance, p, _ = next(line for line in lines if line[1:4] == ["1", "790", "normal"])
    quoted = f"on {same} of the normal cell's 14 edges; by chance, it would be {by_chance} (p = {float(p):.2f})"
    assert quoted in prose("docs/evidence.md")


def test_the_first_attempts_differences_are_those_of_its_records():
    found = printed("experiments/differences.py", *runs(*FASHION))
    for line, quoted in (("| P-DARTS − random | 3, 8 | −0.13 | −1.55 to +1.29 | 0.7697 |",
                          "by 0.13 points (Welch's interval: 1.55 better to 1.29 worse; p = 0.77)"),
                         ("| P-DARTS − one stage | 3, 3 | −0.53 | −2.15 to +1.08 |",
                          "by 0.53 points on average, but the interval includes 0 (2.15 better to 1.08 worse)")):
        assert line in found and quoted in prose("docs/evidence.md")

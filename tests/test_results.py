"""results/: the records of the runs that README and docs/evidence.md quote, and the tables made from them."""
import fnmatch
import json
import re

import pytest
from scripts import ROOT, run

from experiments import matrix

RESULTS = ROOT / "results"
# The names of the runs that the tables of a setting are made from, as in the commands of docs/evidence.md.
FASHION = ["search-fashion-*", "eval-fashion-*-80ep-*"]
CIFAR = ["search-cifar-pdarts-*", *(f"eval-cifar-{cell}-{matrix.SETTINGS['cifar'].epochs}ep-0-*" for cell in (
    "random-[0-7]", "PDARTS", "DARTS_V2", "pdarts-1[0-5]", "one-stage-1[0-5]", "dealt-1[0-5]-[01]"))]


def runs(*patterns: str) -> list[str]:
    """The run directories of these names, as a shell lists them in the root of the repository."""
    found = [str(path.relative_to(ROOT)) for pattern in patterns for path in sorted(RESULTS.glob(pattern))]
    assert found, patterns
    return found


def printed(script: str, *words: str) -> str:
    outcome = run(script, *words)
    assert outcome.code == 0, outcome
    return outcome.out.strip()


def text(document: str) -> str:
    return (ROOT / document).read_text()


def test_the_records_are_small_and_hold_no_weights_and_no_path_of_a_machine():
    files = [path for path in RESULTS.rglob("*") if path.is_file()]
    assert files and sum(path.stat().st_size for path in files) < 5e6
    assert {path.name for path in files if path.parent.name != "supernets"} <= {
        "args.json", "metrics.jsonl", "alphas.npz", "genotype.json", "genotypes.json"}
    assert {path.suffix for path in files if path.parent.name == "supernets"} <= {".json"}
    for path in files:
        assert path.suffix == ".npz" or not re.search(r"[\"' ]/\w|/(root|home|tmp)/", path.read_text()), path


def test_the_tables_of_a_setting_are_made_from_its_own_runs():
    """Of the steps of cifar, those that compare cells: no choice of a length, no controls, no drop path."""
    def chosen(names, patterns):
        return {name for name in names if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)}

    names = {f"{'eval' if step.command[0] == 'train_cifar.py' else 'search'}-{step.name}-20261128-172814": step.part
             for step in matrix.steps(matrix.SETTINGS["cifar"])}
    assert chosen(names, CIFAR) == {name for name, part in names.items() if part in ("search", "baseline", "found",
                                                                                     "dealt")}
    assert not chosen(names, FASHION)
    assert not chosen([path.name for path in RESULTS.glob("*-fashion-*")], CIFAR)


@pytest.mark.parametrize("document", ["README.md", "docs/evidence.md"])
def test_the_table_of_results_is_what_compare_makes_of_the_records(document):
    assert printed("compare.py", *runs(*FASHION), "--markdown") in text(document)


def test_the_table_of_the_short_evaluations_is_what_compare_makes_of_the_records():
    assert printed("compare.py", *runs("eval-fashion-*-20ep-*"), "--markdown") in text("docs/evidence.md")


def test_the_table_of_agreement_is_what_the_script_makes_of_the_records():
    assert printed("experiments/agreement.py", *runs("search-fashion-pdarts-*")) in text("docs/evidence.md")


def test_the_table_of_drop_path_is_what_compare_makes_of_the_records():
    pairs = [path for cell in ("PDARTS", "random-[0-2]", "pdarts-[02]") for drop_path in ("80ep", "no-drop-path")
             for path in runs(f"eval-fashion-{cell}-{drop_path}-0-*")]
    assert len(pairs) == 12
    searches = runs("search-fashion-pdarts-[02]-*")
    assert printed("compare.py", *searches, *pairs, "--markdown") in text("docs/evidence.md")


def test_the_table_of_traits_is_what_the_script_makes_of_the_records():
    assert printed("experiments/traits.py", *runs("eval-fashion-*-80ep-*")) in text("docs/evidence.md")


def test_the_table_of_how_decided_the_searches_are_is_what_they_have_recorded():
    for search in runs("search-fashion-*"):
        note = json.loads(text(f"{search}/args.json"))["args"]["note"].removeprefix("fashion-")
        records = [json.loads(line) for line in text(f"{search}/metrics.jsonl").splitlines()]
        for stage in (1, 2, 3):
            end = [record for record in records if record["stage"] == stage][-1]
            assert (f"| {note} | {stage} | {end['alpha_steps']} | {end['entropy']:.3f} | {100 * end['lead']:.1f}% | "
                    f"{end['clear_edges']} | {end['skips']} |\n") in text("docs/evidence.md")

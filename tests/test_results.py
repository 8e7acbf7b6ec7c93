"""results/: the records of the runs that README and docs/evidence.md quote, and the tables made from them."""
import json
import re

import pytest
from scripts import ROOT, run

RESULTS = ROOT / "results"


def runs(pattern: str) -> list[str]:
    """The run directories of this name, as a shell lists them in the root of the repository."""
    return [str(path.relative_to(ROOT)) for path in sorted(RESULTS.glob(pattern))]


def printed(script: str, *words: str) -> str:
    outcome = run(script, *words)
    assert outcome.code == 0, outcome
    return outcome.out.strip()


def text(document: str) -> str:
    return (ROOT / document).read_text()


def test_the_records_are_small_and_hold_no_weights_and_no_path_of_a_machine():
    files = [path for path in RESULTS.rglob("*") if path.is_file()]
    assert files and sum(path.stat().st_size for path in files) < 5e6
    assert {path.name for path in files} <= {"args.json", "metrics.jsonl", "alphas.npz", "genotype.json",
                                             "genotypes.json"}
    for path in files:
        assert path.suffix == ".npz" or not re.search(r"[\"' ]/\w|/(root|home|tmp)/", path.read_text()), path


@pytest.mark.parametrize("document", ["README.md", "docs/evidence.md"])
def test_the_table_of_results_is_what_compare_makes_of_the_records(document):
    assert printed("compare.py", *runs("search-*"), *runs("*-80ep-*"), "--markdown") in text(document)


def test_the_table_of_the_short_evaluations_is_what_compare_makes_of_the_records():
    assert printed("compare.py", *runs("*-20ep-*"), "--markdown") in text("docs/evidence.md")


def test_the_table_of_agreement_is_what_the_script_makes_of_the_records():
    assert printed("experiments/agreement.py", *runs("search-fashion-pdarts-*")) in text("docs/evidence.md")


def test_the_table_of_drop_path_is_what_compare_makes_of_the_records():
    pairs = [path for cell in ("PDARTS", "random-[0-2]", "pdarts-[02]") for drop_path in ("80ep", "no-drop-path")
             for path in runs(f"eval-fashion-{cell}-{drop_path}-0-*")]
    assert len(pairs) == 12
    searches = runs("search-fashion-pdarts-[02]-*")
    assert printed("compare.py", *searches, *pairs, "--markdown") in text("docs/evidence.md")


def test_the_table_of_traits_is_what_the_script_makes_of_the_records():
    assert printed("experiments/traits.py", *runs("*-80ep-*")) in text("docs/evidence.md")


def test_the_table_of_how_decided_the_searches_are_is_what_they_have_recorded():
    for search in runs("search-*"):
        note = json.loads(text(f"{search}/args.json"))["args"]["note"].removeprefix("fashion-")
        records = [json.loads(line) for line in text(f"{search}/metrics.jsonl").splitlines()]
        for stage in (1, 2, 3):
            end = [record for record in records if record["stage"] == stage][-1]
            assert (f"| {note} | {stage} | {end['alpha_steps']} | {end['entropy']:.3f} | {100 * end['lead']:.1f}% | "
                    f"{end['clear_edges']} | {end['skips']} |\n") in text("docs/evidence.md")

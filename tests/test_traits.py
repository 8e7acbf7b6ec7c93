"""experiments/traits.py: traits counted and correlated by hand."""
import pytest
from scripts import run
from test_compare import write_run, write_search

import genotypes

WIDE = genotypes.Genotype([("skip_connect", 0), ("sep_conv_3x3", 1)] * 4, [2, 3, 4, 5],
                          [("max_pool_3x3", 0)] * 8, [2, 3, 4, 5])
DEEP = genotypes.Genotype([("avg_pool_3x3", 0), ("dil_conv_5x5", 1), *[("sep_conv_5x5", 2), ("skip_connect", 0)] * 3],
                          [2, 3, 4, 5], [("skip_connect", 0)] * 8, [2, 3, 4, 5])


def write_evaluation(folder, genotype, train_acc, test_acc, arch="cells/a.json", epochs=1) -> str:
    metrics = [{"epoch": 0, "seconds": 1.0, "train_acc": train_acc, "test_acc": test_acc}]
    return write_run(folder, {"dataset": "cifar10", "arch": arch, "seed": 0, "epochs": epochs}, metrics, genotype)


def test_traits_of_the_normal_cell_stand_beside_the_errors_the_best_first(tmp_path):
    outcome = run("experiments/traits.py", write_evaluation(tmp_path / "a", DEEP, 80.0, 80.0, "random:3"),
                  write_evaluation(tmp_path / "b", WIDE, 90.0, 92.0),
                  write_evaluation(tmp_path / "c", WIDE, 85.0, 89.0, "PDARTS"))
    assert outcome.code == 0, outcome
    assert outcome.out.splitlines()[2:] == [
        "| a | 8.00 | 10.00 | 4 | 0 | 4 | 0 | 8 |",
        "| PDARTS | 11.00 | 15.00 | 4 | 0 | 4 | 0 | 8 |",
        "| random:3 | 20.00 | 20.00 | 3 | 1 | 3 | 1 | 5 |",
        # 8, 11, 20 with 10, 15, 20: 60 / sqrt(78 * 50); with 4, 4, 3: -7 / sqrt(78 * 2 / 3)
        "| correlation | 1.00 | 0.96 | -0.97 | 0.97 | -0.97 | 0.97 | -0.97 |"]


def test_a_trait_that_all_share_has_no_correlation(tmp_path):
    outcome = run("experiments/traits.py", *[write_evaluation(tmp_path / str(i), WIDE, 80.0, 80.0 + i)
                                             for i in range(3)])
    assert outcome.code == 0 and outcome.out.splitlines()[-1] == "| correlation | 1.00 | – | – | – | – | – | – |"


@pytest.mark.parametrize("names, status, text", [([], 2, "required"), (["a", "b"], 1, "2 runs"),
                                                 (["a", "b", "search"], 1, "search is not a finished evaluation"),
                                                 (["a", "b", "unfinished"], 1,
                                                  "unfinished is not a finished evaluation"),
                                                 (["a", "b", "no cell"], 1, "no cell has no genotype.json"),
                                                 (["a", "b", "nowhere"], 1, "nowhere is not a run")])
def test_bad_input_is_one_line(names, status, text, tmp_path):
    for name in "ab":
        write_evaluation(tmp_path / name, WIDE, 80.0, 80.0)
    write_search(tmp_path / "search", seed=0)
    write_evaluation(tmp_path / "unfinished", WIDE, 80.0, 80.0, epochs=2)
    write_evaluation(tmp_path / "no cell", None, 80.0, 80.0)
    outcome = run("experiments/traits.py", *[tmp_path / name for name in names])
    assert outcome.code == status and text in outcome.err and not outcome.out
    assert len(outcome.err.splitlines()) == 1

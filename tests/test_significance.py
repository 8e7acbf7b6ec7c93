"""experiments/significance.py: intervals and tests against tables worked out by hand and against SciPy."""
import itertools
import statistics

import numpy as np
import pytest
from scipy import stats

from experiments.significance import DRAWS, agreement, difference, paired_difference


def test_welchs_interval_is_the_one_worked_out_by_hand():
    """Means 3 and 7, variances 1 and 4 of 3 values each: error sqrt(5 / 3).

    It has (5/3)^2 / ((1/9 + 16/9) / 2) = 50/17 degrees of freedom, a little less than 3; for 3, printed tables have a
    97.5% quantile of 3.182, for 2 one of 4.303.
    """
    result = difference([2.0, 3.0, 4.0], [5.0, 7.0, 9.0])
    assert result.value == pytest.approx(-4)
    half = stats.t.ppf(0.975, 50 / 17) * (5 / 3) ** 0.5
    assert 3.182 < half / (5 / 3) ** 0.5 < 3.3
    assert (result.low, result.high) == pytest.approx((-4 - half, -4 + half))


def test_the_permutation_test_counts_every_division():
    """Of the 20 ways to choose 3 of 6 values, the two extreme ones differ as much as these."""
    assert difference([1.0, 2.0, 3.0], [4.0, 5.0, 6.0]).p == pytest.approx(2 / 20)
    # 0.1 + 0.2 and 0.3 differ by rounding, which must not hide equal differences: all three ways are equal.
    assert difference([0.3], [0.3, 0.1 + 0.2]).p == 1


@pytest.mark.parametrize("sizes", [(6, 8), (2, 8), (1, 8), (4, 1)])
def test_the_permutation_test_equals_a_loop_over_all_divisions(sizes):
    rng = np.random.default_rng(sum(sizes))
    values = rng.normal(size=sum(sizes)).round(2).tolist()
    (n, m), found = sizes, abs(statistics.mean(values[:sizes[0]]) - statistics.mean(values[sizes[0]:]))
    count = [abs(sum(values[i] for i in chosen) / n - sum(v for i, v in enumerate(values) if i not in chosen) / m)
             >= found - 1e-12 for chosen in itertools.combinations(range(n + m), n)]
    assert difference(values[:n], values[n:]).p == pytest.approx(statistics.mean(count))


def test_large_groups_are_divided_at_random():
    """30 values in the worst order: no random division is as extreme."""
    assert difference(list(range(15)), list(range(15, 30))).p == 1 / (DRAWS + 1)


@pytest.mark.parametrize("first, second", [([1.0], [2.0, 3.0]), ([1.0, 1.0], [2.0, 2.0])])
def test_groups_without_a_deviation_have_no_interval(first, second):
    result = difference(first, second)
    assert result.low is result.high is None and result.value < 0


def test_paired_differences_have_students_interval_and_every_choice_of_signs():
    """1, 2 and 3: mean 2, error 1 / sqrt(3), a 97.5% quantile of 4.303; of 8 choices of signs two are as extreme."""
    result = paired_difference([1.0, 2.0, 3.0])
    assert (result.value, result.low, result.high) == pytest.approx((2, 2 - 4.303 / 3 ** 0.5, 2 + 4.303 / 3 ** 0.5),
                                                                    abs=1e-3)
    assert result.p == pytest.approx(2 / 8)
    # Mixed signs: -1 + 2 + 4 = 5, and as extreme are 1 + 2 + 4 = 7 and both with all signs changed.
    assert paired_difference([-1.0, 2.0, 4.0]).p == pytest.approx(4 / 8)
    assert paired_difference([0.1, 0.2, -0.3]).p == 1  # their sum is 0 but for rounding
    equal = paired_difference([1.0, 1.0])
    assert equal.low is equal.high is None and equal.p == pytest.approx(2 / 4)
    assert paired_difference([1.0] * 30).p == 1 / (DRAWS + 1)  # too many choices: random ones


def test_agreement_counts_matching_rows_and_their_number_by_chance():
    """Rows of kinds 0, 0, 1 twice: 3 match; by chance 3 * (2/3 * 2/3 + 1/3 * 1/3); 1/3 of all orders keep the kinds."""
    kinds = np.array([0, 0, 1])
    result = agreement({(0, 1): (kinds[:, None] == kinds).astype(float)})
    assert (result.value, result.by_chance) == pytest.approx((3, 5 / 3))
    assert result.p == pytest.approx(1 / 3, abs=4 * (2 / 9 / 9999) ** 0.5)  # four deviations of a binomial fraction


def test_groups_of_rows_are_permuted_separately():
    """Rows 0 to 2 match each other, and so do 3 and 4: any order does within these groups, 12 of 120 orders of all."""
    kinds = np.array([0, 0, 0, 1, 1])
    table = {(0, 1): (kinds[:, None] == kinds).astype(float)}
    within = agreement(table, ([0, 1, 2], [3, 4]))
    assert within == (5, 5, 5, 1)
    assert agreement(table).p == pytest.approx(0.1, abs=4 * (0.09 / 9999) ** 0.5)
    # A row that matches one of its group only: by chance 1 of 3.
    assert agreement({(0, 1): np.eye(5)}, ([0, 1, 2], [3, 4])).by_chance == pytest.approx(2)


def test_five_percent_of_the_permutations_exceed_the_limit():
    """Of the 24 orders of 4 rows, 1 keeps all, 6 keep two, 8 one, 9 none: under 5% keep more than two, 29% two."""
    assert agreement({(0, 1): np.eye(4)}).limit == 2


def test_agreement_of_several_pairs_is_a_mean_over_pairs_and_keeps_an_objects_order_in_all_of_them():
    """Three equal objects with 3 different rows: of the 36 orders of the second and third only one agrees in all."""
    same = np.eye(3)
    result = agreement({pair: same for pair in itertools.combinations(range(3), 2)})
    assert (result.value, result.by_chance) == pytest.approx((3, 1))
    assert result.p == pytest.approx(1 / 36, abs=4 * (1 / 36 / 9999) ** 0.5)


def test_rows_that_do_not_agree_have_a_p_that_is_uniform():
    """The p-values of 200 random tables are uniform, by Kolmogorov and Smirnov."""
    rng = np.random.default_rng(0)
    ps = [agreement({(0, 1): rng.normal(size=(14, 1)) * rng.normal(size=14)}).p for _ in range(200)]
    assert stats.kstest(ps, "uniform").pvalue > 0.001

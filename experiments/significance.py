"""Is it more than chance? Pure functions: the difference of two groups, and the agreement of rows that match."""
import itertools
import math
from typing import NamedTuple

import numpy as np
from scipy import stats

DRAWS = 9999  # random permutations: the smallest p is 1 / (DRAWS + 1)


class Difference(NamedTuple):
    value: float  # the first group's mean minus the second's
    low: float | None  # 95% interval; None if a group has a single value, or no value differs from its group's
    high: float | None
    p: float  # two-sided, of a permutation test


def difference(first: list[float], second: list[float]) -> Difference:
    """How much two groups differ in the mean, with Welch's interval.

    The permutation test takes every way to divide the values into groups of these sizes (the data and DRAWS random ways
    if there are more than 200,000); p is the fraction of ways with at least this difference, in either direction.
    """
    n, m, values = len(first), len(second), np.array([*first, *second], float)
    low = high = None
    if min(n, m) > 1 and any(np.ptp(group) > 0 for group in (first, second)):
        low, high = map(float, stats.ttest_ind(first, second, equal_var=False).confidence_interval(0.95))
    if math.comb(n + m, n) <= 200_000:
        ways = np.array(list(itertools.combinations(range(n + m), n)))  # the first of them is the data
    else:
        ways = np.tile(np.arange(n + m), (DRAWS + 1, 1))
        ways[1:] = np.random.default_rng(0).permuted(ways[1:], axis=1)
    sums = values[ways[:, :n]].sum(axis=1)
    found = sums / n - (values.sum() - sums) / m
    return Difference(float(found[0]), low, high, two_sided(found))


def two_sided(found: np.ndarray) -> float:
    """The fraction of the permutations' values that are as far from 0 as the first, which is the data's."""
    # The same value, summed in another order, may differ by rounding.
    return float(np.mean(np.abs(found) >= abs(found[0]) - 1e-9))


def paired_difference(values: list[float]) -> Difference:
    """How much the mean of paired differences differs from 0: Student's interval, and a test that changes their signs.

    It takes every choice of signs (the data and DRAWS random choices if there are more than 200,000).
    """
    n, values = len(values), np.array(values, float)
    low = high = None
    if n > 1 and np.ptp(values) > 0:
        low, high = map(float, stats.ttest_1samp(values, 0).confidence_interval(0.95))
    if 2 ** n <= 200_000:
        signs = np.array(list(itertools.product((1, -1), repeat=n)))  # the first of them is the data
    else:
        signs = np.random.default_rng(0).choice((1, -1), (DRAWS + 1, n))
        signs[0] = 1
    found = signs @ values / n
    return Difference(float(found[0]), low, high, two_sided(found))


class Agreement(NamedTuple):
    value: float  # sum over the matching rows, mean over the pairs
    by_chance: float  # its mean over all permutations
    limit: float  # which 5% of the permutations exceed
    p: float  # one-sided, of a permutation test


def agreement(tables: dict[tuple[int, int], np.ndarray], groups: tuple[list[int], ...] = ()) -> Agreement:
    """Whether rows that match agree more than rows that do not.

    tables: for each pair (a, b) of objects 0, 1, 2, ... how much row i of a agrees with row j of b, (rows, rows). The
    test permutes the rows of each object but the first, those of each group separately; p is the fraction of DRAWS
    permutations, and of the data itself, with at least this agreement. No groups: all rows are one.
    """
    rows, rng = len(next(iter(tables.values()))), np.random.default_rng(0)
    groups = groups or (list(range(rows)),)
    orders = [np.tile(np.arange(rows), (DRAWS + 1, 1)) for _ in range(1 + max(b for _, b in tables))]
    for order in orders[1:]:  # (DRAWS + 1, rows); the first line stays as it is: the data
        for group in groups:
            order[1:, group] = rng.permuted(order[1:, group], axis=1)
    sums = np.mean([table[orders[a], orders[b]].sum(axis=1) for (a, b), table in tables.items()], axis=0)
    by_chance = np.mean([sum(table[np.ix_(group, group)].mean() * len(group) for group in groups)
                         for table in tables.values()])
    return Agreement(float(sums[0]), float(by_chance), float(np.quantile(sums, 0.95)),
                     float(np.mean(sums >= sums[0] - 1e-9)))

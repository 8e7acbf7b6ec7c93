"""Splits of the training images: stratified subsets for a search, and what an evaluation keeps for validation."""
from collections import Counter

import numpy as np

Samples = list[tuple[str, int]]  # (path, label)


def split_ends(count: int, train_portion: float, valid_portion: float | None, what: str) -> tuple[int, int]:
    """Where the weights' split of `count` images ends, and the alphas' split after it: the rest, or a fraction.

    Raises ValueError, which names the images by `what`, if either split is empty.
    """
    n = int(count * train_portion)
    end = count if valid_portion is None else n + int(count * valid_portion)
    if not 0 < n < end:
        option, value = ("--train_portion", train_portion) if valid_portion is None or not n else (
            "--valid_portion", valid_portion)
        raise ValueError(f"{option} {value} leaves no image of {what} (it has {count}) for the "
                         f"{'alphas' if n else 'weights'}: change it, or add images")
    return n, end


def stratified_split(samples: Samples, classes: list[str], train_portion: float, valid_portion: float | None,
                     seed: int) -> tuple[Samples, Samples]:
    """Two disjoint stratified subsets, sampled with `seed`; if valid_portion is None, the second is the rest.

    Raises ValueError if one of them lacks a class.
    """
    random, splits, of_class = np.random.default_rng(seed), ([], []), [[] for _ in classes]
    for sample in samples:
        of_class[sample[1]].append(sample)
    for name, own in zip(classes, of_class):
        n, end = split_ends(len(own), train_portion, valid_portion, f"class {name}")
        order = random.permutation(len(own))
        for split, chosen in zip(splits, (order[:n], order[n:end])):
            split += [own[i] for i in chosen]
    return splits


def hold_out(samples: Samples, classes: list[str], valid_portion: float | None) -> tuple[Samples, Samples]:
    """The samples to train on, and those kept for validation: this fraction of each class, whatever --seed.

    Raises ValueError if that leaves a class without an image for validation.
    """
    if valid_portion is None:
        return samples, []
    counts = Counter(label for _, label in samples)
    for label, name in enumerate(classes):
        if int(counts[label] * valid_portion) == 0:
            raise ValueError(f"--valid_portion {valid_portion} leaves no image of class {name} (it has "
                             f"{counts[label]}) for validation: use a larger one, or add images")
    held_out, rest = stratified_split(samples, classes, valid_portion, None, seed=0)
    return rest, held_out

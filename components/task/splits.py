"""A stratified split that is the same everywhere: 70 % of each class to train on, 15 % to validate, 15 % to test."""

import numpy as np
from numpy.typing import NDArray

from .protocol import SPLITS

_BOUNDS = (0.70, 0.85)


def stratified_splits(labels: NDArray[np.int64], seed: int) -> NDArray[np.object_]:
    """The split's name of each sample, [samples], from the labels, [samples], alone."""
    splits = np.empty(len(labels), dtype=object)
    random = np.random.default_rng(seed)
    for label in np.unique(labels):
        rows = random.permutation(np.flatnonzero(labels == label))
        bounds = [round(len(rows) * bound) for bound in _BOUNDS]
        for name, part in zip(SPLITS, np.split(rows, bounds), strict=True):
            splits[part] = name
    return splits

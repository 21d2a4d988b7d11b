"""A stratified split: shares to within a sample, by labels and seed alone."""

from collections import Counter

import numpy as np
from convergate.components.task import SPLITS
from convergate.components.task.splits import stratified_splits
from hypothesis import given
from hypothesis import strategies as st


@given(labels=st.lists(st.integers(0, 4), min_size=1, max_size=300), seed=st.integers(0, 2**32 - 1))
def test_each_class_is_split_by_the_shares_to_within_a_sample(labels: list[int], seed: int) -> None:
    array = np.array(labels)
    splits = stratified_splits(array, seed)
    assert splits.shape == array.shape
    for label in set(labels):
        counts = Counter(splits[array == label])
        assert counts.keys() <= set(SPLITS)
        for split, share in zip(SPLITS, (0.70, 0.15, 0.15), strict=True):
            assert abs(counts[split] - share * labels.count(label)) <= 1


def test_the_seed_alone_moves_samples() -> None:
    labels = np.repeat([0, 1], 50)
    same, again, other = (stratified_splits(labels, seed).tolist() for seed in (0, 0, 1))
    assert same == again != other

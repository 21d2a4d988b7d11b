"""Which samples a rank sees: the same global batches however they are shared out."""

from itertools import islice

import numpy as np
import pytest
from convergate.components.errors import UserError
from convergate.components.training.data_order import DataOrder
from hypothesis import given
from hypothesis import strategies as st


@given(
    st.integers(1, 4), st.integers(1, 4), st.integers(1, 4), st.integers(0, 100), st.integers(0, 60), st.integers(0, 9)
)
def test_ranks_and_micro_batches_share_a_global_batch(
    world_size: int, accumulation: int, each: int, more: int, step: int, seed: int
) -> None:
    batch_size = world_size * accumulation * each
    ranks = [
        DataOrder(batch_size + more, batch_size, seed, rank, world_size, accumulation) for rank in range(world_size)
    ]
    parts = [part.tolist() for order in ranks for part in order.micro_batches(step)]
    alone = DataOrder(batch_size + more, batch_size, seed, 0, 1)
    assert [index for part in parts for index in part] == alone.global_batch(step).tolist()
    assert {len(part) for part in parts} == {each}
    assert {order.samples_per_step for order in ranks} == {accumulation * each}


def test_an_epoch_has_each_sample_once_and_is_another_order_than_the_next() -> None:
    order = DataOrder(num_samples=26, batch_size=4, seed=3, rank=0, world_size=1)
    first, second = (np.concatenate([order.global_batch(step) for step in range(begin, begin + 6)]) for begin in (0, 6))
    assert len(set(first.tolist())) == len(set(second.tolist())) == 24
    assert first.tolist() != second.tolist()


@pytest.mark.parametrize("accumulation", [1, 2])
def test_it_begins_anywhere_as_if_it_had_come_there(accumulation: int) -> None:
    order = DataOrder(100, 12, 5, 1, 3, accumulation)
    later = DataOrder(100, 12, 5, 1, 3, accumulation, start_step=11)
    whole = list(islice(order, 40 * accumulation))
    assert list(islice(later, 29 * accumulation)) == whole[11 * accumulation :]


def test_a_dataset_smaller_than_a_batch_is_refused() -> None:
    with pytest.raises(UserError, match="batch_size = 8: the training split has 7 samples, not one full batch"):
        DataOrder(num_samples=7, batch_size=8, seed=0, rank=0, world_size=1)

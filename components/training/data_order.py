"""Which samples a rank sees at a step: a pure function of the seed and the step, so a resume needs no state.

Each epoch is a permutation of the training split of its own; its last, partial global batch is dropped. The global
batch of a step is the same samples whatever the number of processes or accumulation steps.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

from ..errors import UserError


@lru_cache(maxsize=2)
def _permutation(num_samples: int, seed: int, epoch: int) -> NDArray[np.int64]:
    return np.random.default_rng([seed, epoch]).permutation(num_samples)


@dataclass(frozen=True)
class DataOrder:
    """The micro-batches of one rank, from `start_step` on, without end; a `batch_sampler` for a `DataLoader`."""

    num_samples: int
    batch_size: int
    """Global, in samples."""
    seed: int
    rank: int
    world_size: int
    accumulation: int = 1
    start_step: int = 0

    def __post_init__(self) -> None:
        if self.num_samples < self.batch_size:
            raise UserError(
                f"training.batch_size = {self.batch_size}: the training split has {self.num_samples} samples,"
                f" not one full batch → at most {self.num_samples}"
            )

    def global_batch(self, step: int) -> NDArray[np.int64]:
        """The sample indices of a step, over all ranks; shape [batch_size]."""
        per_epoch = self.num_samples // self.batch_size
        epoch, position = divmod(step, per_epoch)
        order = _permutation(self.num_samples, self.seed, epoch)
        return order[position * self.batch_size : (position + 1) * self.batch_size]

    def micro_batches(self, step: int) -> list[NDArray[np.int64]]:
        """This rank's part of a step, cut into its accumulation steps."""
        batch = self.global_batch(step)
        return [batch[part] for part in self._parts]

    @cached_property
    def samples_per_step(self) -> int:
        """Samples that this rank sees in a step."""
        return sum(part.stop - part.start for part in self._parts)

    @cached_property
    def _parts(self) -> list[slice]:
        """Where this rank's micro-batches lie in a global batch."""
        mine = np.array_split(np.arange(self.batch_size), self.world_size)[self.rank]
        return [slice(int(part[0]), int(part[-1]) + 1) for part in np.array_split(mine, self.accumulation)]

    def __iter__(self) -> Iterator[list[int]]:
        step = self.start_step
        while True:
            for indices in self.micro_batches(step):
                yield indices.tolist()
            step += 1

"""The random state of one process: torch's, CUDA's, NumPy's and Python's own."""

import random
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

_PYTHON_VERSION = 3
"""The layout of `random.getstate()` since Python 2.6."""


def seed(value: int) -> None:
    """Seed them all from one number."""
    torch.manual_seed(value)
    np.random.seed(value % 2**32)  # the global state, which users' transforms draw from
    random.seed(value)


class RandomState(NamedTuple):
    """All states at one moment, as their libraries give them: taking one costs microseconds."""

    cpu: Tensor
    cuda: Tensor | None
    numpy: Any
    python: Any

    @classmethod
    def now(cls, device: torch.device) -> Self:
        """The states of this process; CUDA's is that of `device`."""
        cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
        return cls(torch.get_rng_state(), cuda, np.random.get_state(), random.getstate())

    def set_again(self, device: torch.device) -> None:
        """Go back to this moment."""
        torch.set_rng_state(self.cpu)
        if self.cuda is not None and device.type == "cuda":
            torch.cuda.set_rng_state(self.cuda, device)
        np.random.set_state(self.numpy)
        random.setstate(self.python)

    def to_tensors(self) -> dict[str, Tensor]:
        """As tensors by name, for a checkpoint; the inverse of `from_tensors`."""
        _, keys, *numpy_rest = self.numpy
        _, words, gauss = self.python
        tensors = {
            "cpu": self.cpu,
            "numpy": torch.from_numpy(np.array(keys, dtype=np.int64)),
            "numpy_rest": torch.tensor(numpy_rest, dtype=torch.float64),
            "python": torch.tensor(words, dtype=torch.int64),
            "python_rest": torch.tensor([] if gauss is None else [gauss], dtype=torch.float64),
        }
        return tensors if self.cuda is None else {**tensors, "cuda": self.cuda}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> Self:
        """The states that `to_tensors` gave."""
        position, has_gauss, cached = tensors["numpy_rest"].tolist()
        keys = tensors["numpy"].numpy().astype(np.uint32)
        return cls(
            cpu=tensors["cpu"],
            cuda=tensors.get("cuda"),
            numpy=("MT19937", keys, int(position), int(has_gauss), cached),
            python=(
                _PYTHON_VERSION,
                tuple(tensors["python"].tolist()),
                next(iter(tensors["python_rest"].tolist()), None),
            ),
        )

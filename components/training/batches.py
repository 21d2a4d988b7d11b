"""A collated batch of the user's own kind: a tensor, or dicts, lists and (named) tuples of them."""

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.data import DataLoader

from ..errors import UserError


def to_device(batch: Any, device: torch.device) -> Any:
    """A collated batch with its tensors on the device."""
    return tree_map_only(Tensor, lambda tensor: tensor.to(device, non_blocking=True), batch)


def batch_size(batch: Any) -> int:
    """Samples in a collated batch: the first dimension of its first tensor.

    Raises:
        UserError: when there is no tensor in it.
    """
    for leaf in tree_leaves(batch):
        if isinstance(leaf, Tensor) and leaf.ndim:
            return int(leaf.shape[0])
    raise UserError(f"a batch of the task's dataset holds no tensor, but {type(batch).__name__} → items with tensors")


def loader(dataset: Any, **options: Any) -> DataLoader[Any]:
    """A DataLoader that leaves the global random state alone; torch's draws a seed from it at every start."""
    return DataLoader(dataset, generator=torch.Generator(), **options)

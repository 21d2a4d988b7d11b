"""A collated batch of the user's own kind: a tensor, or dicts, lists and tuples of them."""

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader


def to_device(batch: Any, device: torch.device) -> Any:
    """A collated batch with its tensors on the device."""
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, dict):
        return {key: to_device(value, device) for key, value in batch.items()}
    if isinstance(batch, list | tuple):
        return type(batch)(to_device(value, device) for value in batch)
    return batch


def batch_size(batch: Any) -> int:
    """Samples in a collated batch: the first dimension of its first tensor."""
    if isinstance(batch, Tensor):
        return int(batch.shape[0])
    return batch_size(next(iter(batch.values())) if isinstance(batch, dict) else batch[0])


def loader(dataset: Any, **options: Any) -> DataLoader[Any]:
    """A DataLoader that leaves the global random state alone; torch's draws a seed from it at every start."""
    return DataLoader(dataset, generator=torch.Generator(), **options)

"""A collated batch of the user's own kind: a tensor, or dicts, lists and (named) tuples of them."""

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only
from torch.utils.data import DataLoader


def to_device(batch: Any, device: torch.device) -> Any:
    """A collated batch with its tensors on the device; collating leaves them on the CPU."""
    if device.type == "cpu":
        return batch
    return tree_map_only(Tensor, lambda tensor: tensor.to(device, non_blocking=True), batch)


def loader(dataset: Any, **options: Any) -> DataLoader[Any]:
    """A DataLoader that leaves the global random state alone; torch's draws a seed from it at every start."""
    return DataLoader(dataset, generator=torch.Generator(), **options)

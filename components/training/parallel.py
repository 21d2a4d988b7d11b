"""How a model is spread over the processes: replicated (DDP), or sharded (FSDP2); the task's loss notices neither.

Under DDP (arXiv:2006.15704) every process holds a replica. Under FSDP2 (`fully_shard`, arXiv:2304.11277) it holds its
part of each parameter, of the gradient and of the optimizer's state, and a block's parameters are gathered only while
the block computes. Buffers are replicas under both, and rank 0's count.

Both reduce the gradients, and carry a few numbers of the sync guard on a reduction that happens anyway.
"""

import math
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from ..errors import UserError

NUM_CARRIED = 3
"""Numbers that ride on a reduction."""
NOT_GATHERED = (
    "a parameter is used outside its block's forward(), where distributed.strategy = fsdp2 has not gathered it"
    " → call the block, or strategy: ddp"
)
CHANGED_IN_PLACE = (
    "what a block or the model returned is changed in place, where distributed.strategy = fsdp2 loses its gradient"
    " → x = x + y instead of x += y, or strategy: ddp"
)
TORCH_SAYS = {
    "InvalidCxxCompiler": "training.compile = true: there is no C++ compiler → install g++, or compile: false",
    "Expected to have finished reduction in the prior iteration": (
        "the model has parameters that take no part in the loss → use them, or set requires_grad = False"
    ),
    "mixed torch.Tensor and DTensor": NOT_GATHERED,
    "out of bounds for storage of size 0": CHANGED_IN_PLACE,
}
"""Parts of what torch says when a strategy meets a model that it cannot train, and what it means."""
CLIP_EPSILON = 1e-6
"""As in `torch.nn.utils.clip_grad_norm_`."""
_RIDING = "_convergate_riding"


class Alone:
    """A process without others: nothing to reduce."""

    def __init__(self, module: nn.Module, *, compiled: bool) -> None:
        self.module = module
        """The user's own module."""
        # Not module.compile(): that leaves a Sequential as it is, in silence.
        self.model: Any = torch.compile(module) if compiled else module
        """What the loss is called with."""

    def before_forward(self, *, reduces: bool) -> None:
        """Say whether the gradients of the coming micro-batch complete the step's, and are to be reduced."""

    def backward(self, loss: Tensor, carried: Tensor | None) -> None:
        """Call backward; in the micro-batch that reduces, with the numbers to carry, shape [NUM_CARRIED]."""
        loss.backward()  # type: ignore[no-untyped-call]

    @cached_property
    def parameters(self) -> list[nn.Parameter]:
        """The module's; to look for them takes as long as a small layer."""
        return list(self.module.parameters())

    def clip(self, limit: float) -> tuple[float, list[float] | None]:
        """Clip the gradients to a norm of `limit`, over the whole model.

        Returns:
            The norm before, and the mean over all processes of what was carried; the same in each. None where no other
            process could be heard.
        """
        norm = get_total_norm(parameter.grad for parameter in self.parameters if parameter.grad is not None)
        found = norm.item()
        if found + CLIP_EPSILON > limit:  # torch's clip_grad_norm_ multiplies by 1 otherwise
            clip_grads_with_norm_(self.parameters, limit, norm)
        return found, None


class Replicated(Alone):
    """DDP; what is carried is the gradient of one more parameter, in DDP's buckets."""

    def __init__(self, module: nn.Module, device: torch.device, *, compiled: bool) -> None:
        super().__init__(module, compiled=compiled)
        self._riding = nn.Parameter(torch.zeros(NUM_CARRIED, device=device))
        # DDP looks for parameters once; nobody else is to find this one.
        module.register_parameter(_RIDING, self._riding)
        devices = [device.index] if device.type == "cuda" else None
        self._replica = DistributedDataParallel(self.model, device_ids=devices)
        delattr(module, _RIDING)
        self.model = self._replica

    def before_forward(self, *, reduces: bool) -> None:
        """See `Alone`."""
        self._replica.require_backward_grad_sync = reduces

    def backward(self, loss: Tensor, carried: Tensor | None) -> None:
        """See `Alone`."""
        if carried is not None:
            loss = loss + torch.dot(self._riding, carried).to(loss.dtype)
        super().backward(loss, carried)

    def clip(self, limit: float) -> tuple[float, list[float] | None]:
        """See `Alone`."""
        assert self._riding.grad is not None
        carried: list[float] = self._riding.grad.tolist()
        self._riding.grad = None
        return super().clip(limit)[0], carried


class Sharded(Alone):
    """FSDP2; the module's parameters become DTensors, so that the optimizer is built afterwards.

    What is carried rides on the norm's all-reduce. The gradients of every micro-batch are reduced at once: a process
    never holds more than its part of them.

    Raises:
        UserError: for a parameter that cannot be sharded.
    """

    def __init__(
        self, module: nn.Module, device: torch.device, low_precision: torch.dtype | None, *, compiled: bool
    ) -> None:
        super().__init__(module, compiled=compiled)
        _refuse_scalars(module)
        # It warns of every view that a module returns; where one is changed in place, the step fails in words.
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module")
        policy = MixedPrecisionPolicy()
        if low_precision is not None:
            # Autocast casts activations under both strategies; gathered parameters are cast beforehand here.
            policy = MixedPrecisionPolicy(low_precision, reduce_dtype=torch.float32, cast_forward_inputs=False)
        mesh = init_device_mesh(device.type, (dist.get_world_size(),))
        for part in [*blocks(module), module]:
            fully_shard(part, mesh=mesh, mp_policy=policy)
        module.register_forward_pre_hook(_before_forward)
        self._carried = torch.zeros(NUM_CARRIED, device=device)

    def backward(self, loss: Tensor, carried: Tensor | None) -> None:
        """See `Alone`."""
        if carried is not None:
            self._carried = carried
        super().backward(loss, carried)

    def clip(self, limit: float) -> tuple[float, list[float] | None]:
        """See `Alone`."""
        gradients = [_local(parameter.grad) for parameter in self.parameters if parameter.grad is not None]
        square = torch.stack(torch._foreach_norm(gradients)).double().square().sum()
        sums = torch.cat([square[None], self._carried.double()])
        dist.all_reduce(sums)
        square, *carried = sums.tolist()
        norm = math.sqrt(square)
        if norm + CLIP_EPSILON > limit:
            torch._foreach_mul_(gradients, limit / (norm + CLIP_EPSILON))
        return norm, [each / dist.get_world_size() for each in carried]


def _local(tensor: Tensor) -> Tensor:
    if not isinstance(tensor, DTensor):
        raise UserError(CHANGED_IN_PLACE)  # the gradient was not reduced
    local: Tensor = tensor.to_local()
    return local


def _refuse_scalars(module: nn.Module) -> None:
    for name, parameter in module.named_parameters():
        if parameter.ndim == 0:
            raise UserError(
                f"the model's parameter {name} has no dimension, which distributed.strategy = fsdp2 cannot shard"
                " → give it the shape [1], or strategy: ddp"
            )


def blocks(module: nn.Module) -> list[nn.Module]:
    """The parts that FSDP2 gathers one at a time, the innermost first; what is in none is gathered with the root.

    A block is an element of a `Sequential` or a `ModuleList` that has layers of its own. One that shares a parameter
    with the rest of the model is left to the part that holds both.
    """
    uses, found = _uses(module), set[nn.Module]()
    for container in module.modules():
        if isinstance(container, nn.Sequential | nn.ModuleList):
            found.update(part for part in container if _is_composite(part))
    innermost_first = [part for part in module.modules() if part in found][::-1]
    return [part for part in innermost_first if all(uses[key] == count for key, count in _uses(part).items())]


def _is_composite(part: nn.Module) -> bool:
    return not isinstance(part, nn.ModuleList | nn.ModuleDict) and any(
        next(child.parameters(), None) is not None for child in part.children()
    )


def _uses(module: nn.Module) -> Counter[int]:
    """How many layers hold each parameter, by its identity."""
    return Counter(id(parameter) for part in module.modules() for parameter in part.parameters(recurse=False))


def share_buffers(module: nn.Module) -> None:
    """Give every process rank 0's buffers."""
    if dist.get_world_size() > 1:
        for work in [dist.broadcast(buffer, 0, async_op=True) for buffer in module.buffers()]:
            work.wait()


def _before_forward(module: nn.Module, _inputs: Any) -> None:
    """In training, as DDP does."""
    if module.training:
        share_buffers(module)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """The module in evaluation mode, with rank 0's buffers and without gradients.

    Under FSDP2 a forward pass is a collective: every process has to make as many of them.
    """
    share_buffers(module)
    training = {part: part.training for part in module.modules()}
    module.eval()
    try:
        with torch.no_grad():  # what FSDP2 gathers in inference mode could not be trained with afterwards
            yield
    finally:
        for part, mode in training.items():
            part.training = mode  # a frozen part of the user's stays in evaluation mode
        if isinstance(module, FSDPModule):
            module.reshard()  # no backward pass does it

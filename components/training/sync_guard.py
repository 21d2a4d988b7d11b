"""The sync guard: ranks agree on what they run, on every step's rates, and on their replicas.

A few numbers of each rank ride on the gradient reduction, which happens anyway: whether it wants to stop, and a hash of
its step, rates and digest. DDP reduces them as the gradient of one more parameter, so there is no collective of its own
on the hot path. Every rank reads the same means in the same step: so all know at once that one wants to stop, and
gather why. A rank whose hash is not the mean says so in the next step.
"""

import hashlib
import math
import socket
from collections import deque
from typing import Any, Literal, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from ..errors import ConvergateError
from ..schedule import Schedule

StopKind = Literal["diverged", "lr_sync_error", "interrupted", "budget"]
_SEVERITY: tuple[StopKind, ...] = ("lr_sync_error", "diverged", "interrupted", "budget")
_HASH_BITS = 12
"""Per number: float32 keeps the mean of as many equal ones to far less than the difference of two."""
_HASH_MASK = (1 << _HASH_BITS) - 1


class SyncError(ConvergateError):
    """Ranks disagree on what they run, or their replicas differ."""


class Stop(Exception):  # noqa: N818 - an agreed end of the loop, not an error
    """All ranks agreed to stop at `step`: the updates before it are applied."""

    def __init__(self, kind: StopKind, step: int, detail: str) -> None:
        super().__init__(detail)
        self.kind, self.step, self.detail = kind, step, detail


class Heard(NamedTuple):
    """What a reduction brought: the same on every rank."""

    stop: bool
    """A rank wants to stop."""
    finite: bool
    """Every rank's loss is finite."""


class _Said(NamedTuple):
    """What the hash of a step stands for."""

    step: int
    rates: tuple[float, ...]
    digest: str


class SyncGuard:
    """One rank's side of the agreement."""

    def __init__(self, rank: int, world_size: int, digest: str) -> None:
        self.rank, self.world_size = rank, world_size
        self.host = socket.gethostname()
        self._digest, self._number = digest, int(digest[:15], 16)
        self._hashes = (0, 0)
        self._said: deque[_Said] = deque(maxlen=2)
        self._reasons: dict[StopKind, str] = {}

    def agree_before_start(self, facts: dict[str, Any]) -> None:
        """Compare what each rank believes it runs: digests, code, schedule, seed, data, resume point.

        Raises:
            SyncError: on every rank, naming the fact, the ranks and both values.
        """
        everyone = self._gather({"host": self.host, **facts})
        for name, value in everyone[0].items():
            if name == "host":
                continue
            for rank, other in enumerate(everyone):
                if other[name] != value:
                    raise SyncError(
                        f"rank {rank} on {other['host']} has {name} {other[name]!r}, rank 0 on"
                        f" {everyone[0]['host']} has {value!r} → start all ranks from one config, code and data"
                    )

    def check_rates(self, step: int, schedule: Schedule, optimizer: Optimizer) -> float:
        """Compare the optimizer's rates with the plan, bit for bit; returns the planned rate of the first group."""
        planned = schedule.lr(step)
        rates = []
        for group in optimizer.param_groups:
            applied, expected = float(group["lr"]), planned * group.get("lr_scale", 1.0)
            rates.append(applied)
            if applied != expected:
                self.ask_to_stop(
                    "lr_sync_error",
                    f"rank {self.rank} on {self.host} at step {step}: the optimizer has lr {applied!r},"
                    f" the plan {expected!r}",
                )
        if self.world_size > 1:
            said = _Said(step, tuple(rates), self._digest)
            self._said.append(said)
            # Python hashes numbers alike in every process; text it does not.
            number = hash((said.step, said.rates, self._number))
            self._hashes = (number & _HASH_MASK, number >> _HASH_BITS & _HASH_MASK)
        return planned

    def ask_to_stop(self, kind: StopKind, detail: str) -> None:
        """Let all ranks stop at their next update; of reasons of one kind the first stands."""
        self._reasons.setdefault(kind, detail)

    def answered(self, kind: StopKind) -> None:
        """Go on in spite of a reason to stop."""
        self._reasons.pop(kind, None)

    def numbers(self, seen: Tensor) -> Tensor | None:
        """What rides on this step's reduction, shape [3]: whether this rank wants to stop, and its hash.

        None where no other rank could hear it.

        Args:
            seen: scalar without gradient, the step's loss: where it is not finite, NaN rides, since an infinite loss
                can have a finite gradient.
        """
        if self.world_size == 1:
            return None
        return torch.tensor((float(bool(self._reasons)), *self._hashes), device=seen.device) + seen * 0

    def hear(self, loss: float, means: list[float] | None) -> Heard:
        """After the reduction: what the ranks agree on in this step, from the means of their numbers."""
        if means is None:
            return Heard(bool(self._reasons), math.isfinite(loss))
        stop, *hashes = means
        finite = math.isfinite(stop)
        if finite and any(abs(mine - mean) > 1 / 4 for mine, mean in zip(self._hashes, hashes, strict=True)):
            self.ask_to_stop("lr_sync_error", "")
        return Heard(stop > 0, finite)

    def agreed_stop(self, step: int, *, finite: bool) -> Stop:
        """On every rank, once all know that they stop: why.

        The most severe reason of all ranks stands, and of ranks that diverged the one whose own loss did, which is
        not `finite`.
        """
        kind = min(self._reasons, key=_SEVERITY.index, default=_SEVERITY[-1])
        detail = self._reasons.get(kind, "")
        reasons = self._gather((_SEVERITY.index(kind), detail == "", finite, detail))
        everyone = self._gather((self.host, list(self._said)))
        severity, unnamed, _, detail = min(reasons)
        return Stop(_SEVERITY[severity], step, _difference(everyone) if unnamed else detail)

    def compare_replicas(self, step: int, module: nn.Module) -> None:
        """Compare a checksum over all parameters, bit for bit: equal rates don't mean equal replicas.

        Raises:
            Stop: where a hash of the last step was not the mean, which the next step, if there is one, would tell.
            SyncError: naming the ranks that differ from rank 0.
        """
        gathered = self._gather((checksum(module), "lr_sync_error" in self._reasons))
        if any(off_plan for _, off_plan in gathered):
            raise self.agreed_stop(step, finite=True)
        everyone = [value for value, _ in gathered]
        different = [rank for rank, value in enumerate(everyone) if value != everyone[0]]
        if different:
            raise SyncError(f"after {step} updates the parameters of ranks {different} differ from those of rank 0")

    def _gather(self, value: Any) -> list[Any]:
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values


def checksum(module: nn.Module) -> str:
    """Over the bits of all parameters that a rank has whole; 32 hex digits. A shard has no replica to compare with."""
    digest = hashlib.blake2b(digest_size=16)
    for parameter in module.parameters():
        if not isinstance(parameter, DTensor):
            digest.update(parameter.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _difference(everyone: list[tuple[str, list[_Said]]]) -> str:
    """The first rank whose step, rates or digest were not rank 0's, in words."""
    first_host, first = everyone[0]
    for rank, (host, said) in enumerate(everyone):
        for mine, theirs in zip(said, first, strict=False):
            if mine != theirs:
                return f"rank {rank} on {host} runs {mine}, rank 0 on {first_host} runs {theirs}"
    return "the ranks' hashes of step, rates and digest differed"

"""The sync guard: ranks agree on what they run, on every step's rate, and on their replicas.

A rank that finds its optimizer off plan, is asked to stop, is out of budget, or has a loss that is not finite makes
its own gradient NaN. The gradient reduction, which happens anyway, carries that to every rank within the same step: all
see a gradient norm that is not finite, none applies the update, and all gather why. So there is no collective of its
own on the hot path.
"""

import hashlib
import math
import socket
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch.optim import Optimizer

from ..errors import ConvergateError
from ..schedule import Schedule

StopKind = Literal["diverged", "lr_sync_error", "interrupted", "budget"]
_SEVERITY: tuple[StopKind, ...] = ("lr_sync_error", "interrupted", "budget", "diverged")


class SyncError(ConvergateError):
    """Ranks disagree on what they run, or their replicas differ."""


class Stop(Exception):  # noqa: N818 - an agreed end of the loop, not an error
    """All ranks agreed to stop before the update of `step`."""

    def __init__(self, kind: StopKind, step: int, detail: str) -> None:
        super().__init__(detail)
        self.kind, self.step, self.detail = kind, step, detail


class SyncGuard:
    """One rank's side of the agreement."""

    def __init__(self, schedule: Schedule, rank: int, world_size: int) -> None:
        self.schedule, self.rank, self.world_size = schedule, rank, world_size
        self.host = socket.gethostname()
        self._pending: tuple[StopKind, str] | None = None

    def agree_before_start(self, facts: dict[str, Any]) -> None:
        """Compare what each rank believes it runs: digests, schedule, seed, data, resume point.

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

    def check_rate(self, step: int, optimizer: Optimizer) -> float:
        """Compare the optimizer's rate with the plan, bit for bit; returns the planned rate."""
        planned = self.schedule.lr(step)
        for group in optimizer.param_groups:
            applied, expected = group["lr"], planned * group.get("lr_scale", 1.0)
            if applied != expected:
                self.ask_to_stop(
                    "lr_sync_error",
                    f"rank {self.rank} on {self.host} at step {step}: the optimizer has lr {applied!r},"
                    f" the plan {expected!r}",
                )
        return planned

    def ask_to_stop(self, kind: StopKind, detail: str) -> None:
        """Let all ranks stop before their next update; the first reason stands."""
        if self._pending is None:
            self._pending = (kind, detail)

    def poisoned(self, loss: torch.Tensor) -> torch.Tensor:
        """The loss to call backward on: its gradient is NaN where this rank wants to stop, or the loss is not finite.

        An infinite loss can have a finite gradient, which alone would let the run go on.
        """
        if self._pending is not None:
            return loss * math.nan
        return loss * (loss.detach() * 0 + 1)

    def agreed_stop(self, step: int, loss: float, grad_norm: float) -> Stop:
        """After a gradient norm that is not finite, on every rank: why.

        The most severe reason of all ranks stands, and of ranks that diverged the one whose own loss did.
        """
        figures = f"loss {loss:g}, gradient norm {grad_norm:g} at step {step} on rank {self.rank}"
        kind, detail = self._pending or ("diverged", figures)
        reasons = self._gather((_SEVERITY.index(kind), math.isfinite(loss), kind, detail))
        _, _, kind, detail = min(reasons)
        return Stop(kind, step, detail)

    def compare_replicas(self, step: int, module: torch.nn.Module) -> None:
        """Compare a checksum over all parameters, bit for bit: equal rates don't mean equal replicas.

        Raises:
            SyncError: naming the ranks that differ from rank 0.
        """
        checksum = hashlib.blake2b(digest_size=16)
        for parameter in module.parameters():
            checksum.update(parameter.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        everyone = self._gather(checksum.hexdigest())
        different = [rank for rank, value in enumerate(everyone) if value != everyone[0]]
        if different:
            raise SyncError(f"after {step} updates the parameters of ranks {different} differ from those of rank 0")

    def _gather(self, value: Any) -> list[Any]:
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

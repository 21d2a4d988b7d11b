"""Anomaly detectors: small classes with one rule each, the same online and over a finished trace."""

import math
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from .trace import StepRecord

WINDOW = 128
"""Steps that the detectors look back on."""
SMALLEST_NORM = 1e-12
"""A median below it counts as this much: from gradients of zero no factor can be told."""


@dataclass(frozen=True, slots=True)
class Detection:
    """Something a detector saw: at which step, which rule, and the figures in words."""

    step: int
    kind: str
    detail: str


class Detector(Protocol):
    """Looks at each step once, in order."""

    def observe(self, record: StepRecord) -> Detection | None:
        """A detection at this step, or None."""
        ...


class NonFinite:
    """The loss is NaN or infinite, or the gradient norm of an update that was applied.

    A skipped update with a finite loss is none: so fp16 finds its loss scale; elsewhere the loop itself tells it.
    """

    def observe(self, record: StepRecord) -> Detection | None:
        """See `Detector`."""
        if math.isfinite(record.loss) and (math.isfinite(record.grad_norm) or not record.applied):
            return None
        return Detection(
            record.step,
            "non_finite_loss",
            f"loss {record.loss}, gradient norm {record.grad_norm} at lr {record.lr:g}",
        )


class ExplodingGradient:
    """The gradient norm is more than `factor` times its median over the last `window` steps."""

    def __init__(self, factor: float = 100.0, window: int = WINDOW, warmup: int = 10) -> None:
        self._factor, self._window, self._warmup = factor, window, warmup
        self._norms: deque[float] = deque()
        self._ordered: list[float] = []

    def observe(self, record: StepRecord) -> Detection | None:
        """See `Detector`."""
        norm, ordered = record.grad_norm, self._ordered
        if not math.isfinite(norm):
            return None
        detection = None
        if len(ordered) >= self._warmup:
            median = max(ordered[len(ordered) // 2], SMALLEST_NORM)
            if norm > self._factor * median:
                detail = f"gradient norm {norm:.3g}, {norm / median:.0f} × its median"
                detection = Detection(record.step, "exploding_gradient", detail)
        self._norms.append(norm)
        insort(ordered, norm)
        if len(ordered) > self._window:
            del ordered[bisect_left(ordered, self._norms.popleft())]
        return detection


class OffPlan:
    """The learning rate in the optimizer is not the planned one."""

    def observe(self, record: StepRecord) -> Detection | None:
        """See `Detector`."""
        if record.lr == record.lr_planned:
            return None
        return Detection(record.step, "lr_off_plan", f"applied {record.lr!r}, planned {record.lr_planned!r}")


def detectors() -> list[Detector]:
    """A fresh one of each."""
    return [NonFinite(), ExplodingGradient(), OffPlan()]


def detect(records: Iterable[StepRecord]) -> list[Detection]:
    """Run every detector over a finished trace of one rank, in step order; the first of each kind is kept."""
    found: dict[str, Detection] = {}
    rules = detectors()
    for record in records:
        for rule in rules:
            detection = rule.observe(record)
            if detection is not None:
                found.setdefault(detection.kind, detection)
    return list(found.values())

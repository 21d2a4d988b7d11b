"""What the loop saw, over all attempts: it is part of every checkpoint, so that no restart forgets an anomaly."""

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from ..telemetry import Detection, StepRecord
from ..telemetry.detectors import WINDOW, Detector, detectors

ANOMALIES = frozenset(
    {"non_finite_loss", "exploding_gradient", "lr_off_plan", "diverged", "update_skipped", "rolled_back"}
)
"""Kinds of events that make a run anomalous."""


@dataclass
class Progress:
    """The figures of one rank, or of all once they are merged."""

    recent: deque[StepRecord] = field(default_factory=lambda: deque(maxlen=WINDOW))
    max_lr_deviation: float = 0.0
    """Largest |applied - planned| / planned."""
    detections: list[Detection] = field(default_factory=list)
    """What the detectors saw since the last rollback."""
    events: list[Detection] = field(default_factory=list)
    """What became of the run, the same on every rank: restarts, skipped updates, rollbacks with what led to them."""
    save_seconds: float = 0.0
    """The longest save of a checkpoint."""

    def __post_init__(self) -> None:
        self._rules: list[Detector] = detectors()

    def observe(self, record: StepRecord) -> None:
        """Take in a step: its deviation from the plan, and what the detectors say of it."""
        self.recent.append(record)
        if record.lr != record.lr_planned:
            deviation = abs(record.lr - record.lr_planned) / max(record.lr_planned, 1e-300)
            self.max_lr_deviation = max(self.max_lr_deviation, deviation)
        for rule in self._rules:
            detection = rule.observe(record)
            if detection is not None:
                self.detections.append(detection)

    def anomalies(self) -> list[Detection]:
        """Of what was seen since the last rollback."""
        return [detection for detection in self.detections if detection.kind in ANOMALIES]

    def first_detections(self) -> list[Detection]:
        """The earliest one of each kind."""
        first: dict[str, Detection] = {}
        for detection in self.detections:
            first.setdefault(detection.kind, detection)
        return list(first.values())

    def untreated(self) -> list[Detection]:
        """Anomalies that no policy of the config answered: they are in the weights."""
        skipped: set[int] = set()
        for event in self.events:
            if event.kind == "rolled_back":
                skipped = {step for step in skipped if step < event.step}
            elif event.kind == "update_skipped":
                skipped.add(event.step)
        return [anomaly for anomaly in self.anomalies() if anomaly.step not in skipped]

    def recent_loss(self) -> float:
        """Mean over the recent steps; NaN where there were none."""
        return sum(record.loss for record in self.recent) / len(self.recent) if self.recent else math.nan

    @classmethod
    def merged(cls, ranks: Iterable["Progress"]) -> Self:
        """The figures of all ranks as one; the recent steps are the first rank's.

        Of each kind of detection the earliest one is kept, and those of the last `WINDOW` steps, one a step.
        """
        everyone = list(ranks)
        now = max((progress.recent[-1].step for progress in everyone if progress.recent), default=0)
        first: dict[str, Detection] = {}
        kept: dict[tuple[str, int], Detection] = {}
        for detection in sorted((d for progress in everyone for d in progress.detections), key=lambda d: d.step):
            if first.setdefault(detection.kind, detection) is detection or detection.step > now - WINDOW:
                kept.setdefault((detection.kind, detection.step), detection)
        return cls(
            recent=everyone[0].recent,
            max_lr_deviation=max(progress.max_lr_deviation for progress in everyone),
            detections=list(kept.values()),
            events=everyone[0].events,
            save_seconds=max(progress.save_seconds for progress in everyone),
        )

    def to_state(self) -> dict[str, Any]:
        """As JSON values, for a checkpoint; the inverse of `from_state`."""
        return {
            "recent": [list(record) for record in self.recent],
            "max_lr_deviation": self.max_lr_deviation,
            "detections": [asdict(detection) for detection in self.detections],
            "events": [asdict(event) for event in self.events],
            "save_seconds": self.save_seconds,
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Self:
        """Progress as it was saved; the detectors look back on the same steps again."""
        progress = cls()
        for values in state["recent"]:
            # JSON has no NaN and no infinity: a manifest holds them as text.
            fields = [float(value) if isinstance(value, str) else value for value in values]
            progress.observe(StepRecord._make(fields))
        progress.max_lr_deviation, progress.save_seconds = state["max_lr_deviation"], state["save_seconds"]
        progress.detections = [Detection(**detection) for detection in state["detections"]]
        progress.events = [Detection(**event) for event in state["events"]]
        return progress

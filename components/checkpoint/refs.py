"""How checkpoints, and what was given up, are named: everything that a listing tells."""

import re
from dataclasses import dataclass
from typing import NamedTuple

from ..storage import S3Location

_NAME = re.compile(r"attempt-(\d{3})-step-(\d{9})$")
LARGEST_ATTEMPT, _LARGEST_STEP = 999, 999_999_999
ATTEMPTS, COMMITS, TOMBSTONES = "attempts", "commits", "tombstones"
"""Folders in a run's."""
FOLDER = re.compile(r"(attempt-\d{3}-step-\d{9})-[0-9a-f]{8}$")
"""Name of a checkpoint's folder: its own, and a nonce."""


@dataclass(frozen=True, slots=True, order=True)
class CheckpointRef:
    """A checkpoint of a run; ordered by generation, the newest last."""

    attempt: int
    step: int
    root: S3Location
    """The run's."""

    @classmethod
    def parse(cls, uri: str) -> "CheckpointRef | None":
        """The checkpoint that a URI names; None where it is no name that a run gives to one."""
        location = S3Location.parse(uri)
        match = _NAME.fullmatch(location.name)
        return cls(int(match[1]), int(match[2]), location.parent) if match else None

    @classmethod
    def of_marker(cls, location: S3Location) -> "CheckpointRef | None":
        """The checkpoint whose marker stands there; None where that is no marker's key."""
        match = _NAME.search(location.name.removesuffix(".json"))
        return cls(int(match[1]), int(match[2]), location.parent.parent) if match else None

    @property
    def name(self) -> str:
        """Its name in the run."""
        return f"attempt-{self.attempt:03}-step-{self.step:09}"

    @property
    def uri(self) -> str:
        """Its `s3://` URI; the folder beside it has the same name and a few digits that make it unique."""
        return str(self.root / self.name)

    @property
    def marker(self) -> S3Location:
        """Where its marker stands, under a key that sorts the newest checkpoint first."""
        generation = f"{LARGEST_ATTEMPT - self.attempt:03}-{_LARGEST_STEP - self.step:09}"
        return self.root / COMMITS / f"{generation}-{self.name}.json"


class Tombstone(NamedTuple):
    """Attempt `attempt` went on from step `step`: what attempts before it committed beyond that is given up."""

    attempt: int
    step: int

    @classmethod
    def parse(cls, location: S3Location) -> "Tombstone | None":
        """What a key says; None where it is no tombstone's."""
        match = _NAME.fullmatch(location.name)
        return cls(int(match[1]), int(match[2])) if match else None

    def covers(self, ref: CheckpointRef) -> bool:
        """Whether a checkpoint is one of those that are given up."""
        return ref.attempt < self.attempt and ref.step > self.step

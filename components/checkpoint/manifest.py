"""The commit document of a checkpoint: every object with its size and checksum, every tensor's place in them."""

import hashlib
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..errors import OutsideError

if TYPE_CHECKING:
    from torch import Tensor

MANIFEST_NAME = "manifest.json"


class CheckpointError(OutsideError):
    """A checkpoint is missing, incomplete or not what its manifest says."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")


class StoredObject(_Frozen):
    """One object of the checkpoint, by its name below the checkpoint's prefix."""

    name: str
    size: int
    """Bytes."""
    sha256: str


class StoredTensor(_Frozen):
    """One contiguous chunk of a tensor: row-major, little-endian."""

    name: str
    dtype: str
    """torch's name without the prefix, for example `float32`."""
    size: tuple[int, ...]
    """Shape of the whole tensor."""
    offset: tuple[int, ...]
    """Where in the whole tensor the chunk begins, per dimension."""
    shape: tuple[int, ...]
    """Shape of the chunk."""
    object_name: str
    start: int
    """First byte in the object."""
    length: int
    """Bytes."""


class Manifest(_Frozen):
    """What a checkpoint holds; its own SHA-256 is the checkpoint's digest."""

    schema_version: Literal[1] = 1
    run_id: str
    attempt: int
    step: int
    """Updates done: the next one to do is number `step`."""
    world_size: int
    training_digest: str
    created: datetime = Field(default_factory=lambda: datetime.now(UTC))
    previous: str | None = None
    """URI of the checkpoint that this attempt resumed from, or saved before."""
    metrics: dict[str, float] = {}
    """The latest validation's."""
    state: dict[str, Any] = {}
    """What is not a tensor: the schedule's state, the data order, counters."""
    objects: list[StoredObject]
    tensors: list[StoredTensor]

    def to_bytes(self) -> bytes:
        """The manifest as JSON."""
        return self.model_dump_json(indent=1).encode()

    def described(self, prefix: str) -> dict[str, "Tensor"]:
        """The tensors below a prefix, by the rest of their names, without values: on the device `meta`."""
        import torch

        return {
            stored.name.removeprefix(prefix): torch.empty(
                stored.size, dtype=getattr(torch, stored.dtype), device="meta"
            )
            for stored in self.tensors
            if stored.name.startswith(prefix)
        }

    @classmethod
    def from_bytes(cls, data: bytes, uri: str, digest: str | None = None) -> "Manifest":
        """Parse a manifest, verified first against `digest` where one is known.

        Raises:
            CheckpointError: when the digest differs, or it is no manifest.
        """
        if digest is not None and manifest_digest(data) != digest:
            raise CheckpointError(
                f"{uri}: the manifest's SHA-256 is {manifest_digest(data)[:12]}…, not {digest[:12]}…: it was changed"
                " → it is not loaded; use another checkpoint"
            )
        try:
            return cls.model_validate_json(data)
        except ValidationError as error:
            raise CheckpointError(f"{uri}: not a checkpoint manifest ({error.error_count()} problems)") from error


def manifest_digest(data: bytes) -> str:
    """The digest of a checkpoint: SHA-256 of its manifest's bytes, 64 hex digits."""
    return hashlib.sha256(data).hexdigest()

"""The two documents that make a checkpoint: the manifest says what it holds, the marker says that it exists."""

import hashlib
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ..config.signature import SignatureError, sign, verify
from ..errors import OutsideError
from ..storage import S3Location
from ..storage.streams import Part

if TYPE_CHECKING:
    import torch
    from torch import Tensor

MANIFEST_NAME = "manifest.json"
KEY_VARIABLE = "CONVERGATE_CHECKPOINT_KEY"
"""Names the file of an Ed25519 key: whoever saves signs with a private one; with either only signed ones count."""


class CheckpointError(OutsideError):
    """A checkpoint is missing, incomplete or not what its manifest says."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")

    def to_bytes(self) -> bytes:
        """The document as JSON."""
        return self.model_dump_json(indent=1).encode()

    @classmethod
    def parse(cls, data: bytes, uri: str) -> Self:
        """Read the document.

        Raises:
            CheckpointError: when it is none of this kind and version.
        """
        try:
            return cls.model_validate_json(data)
        except ValidationError as error:
            kind = cls.__name__.lower()
            raise CheckpointError(f"{uri}: not a checkpoint {kind} ({error.error_count()} problems)") from error


class StoredObject(_Frozen):
    """One object of the checkpoint, by its name in the checkpoint's folder."""

    name: str
    size: int
    """Bytes."""
    part_bytes: Annotated[int, Field(gt=0, multiple_of=64)]
    """Of each part but the last, which may be shorter; a multiple of 64, as a tensor's first byte is."""
    crc64nvme: str
    """Of the whole object, as S3 has it too; 16 hex digits."""
    parts: tuple[Part, ...]

    def extent(self, number: int) -> tuple[int, int]:
        """The first byte of a part, and the one after its last."""
        return number * self.part_bytes, min((number + 1) * self.part_bytes, self.size)


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

    @property
    def torch_dtype(self) -> "torch.dtype":
        """Its dtype.

        Raises:
            CheckpointError: when torch has none of that name.
        """
        import torch

        found = getattr(torch, self.dtype, None)
        if not isinstance(found, torch.dtype):
            raise CheckpointError(f"{self.name} has the dtype {self.dtype!r}, which this version of torch has not")
        return found


class Report(_Frozen):
    """What one rank wrote: its object, none where it had nothing to write, and what is in it."""

    objects: tuple[StoredObject, ...]
    tensors: tuple[StoredTensor, ...]
    verified: Literal["by the server", "read back"]
    signature: str = ""
    """Ed25519, over all of it and whose it is; empty where no key was given."""

    def signed(self, folder: str, rank: int) -> Self:
        """It, signed as this rank's report in this folder where there is a key."""
        key = key_file()
        return self if key is None else self.model_copy(update={"signature": sign(self._signed(folder, rank), key)})

    def check(self, folder: str, rank: int) -> None:
        """Refuse what is not this rank's.

        Raises:
            CheckpointError: when it names another's object, or there is a key and it is not signed by it.
        """
        mine = object_name(rank)
        if {stored.name for stored in self.objects} - {mine} or {one.object_name for one in self.tensors} - {mine}:
            raise CheckpointError(f"the report of rank {rank} in {folder} tells of another rank's object")
        require_signature(self._signed(folder, rank), self.signature, f"the report of rank {rank} in {folder}")

    def _signed(self, folder: str, rank: int) -> dict[str, Any]:
        return {"folder": folder, "rank": rank} | self.model_dump(mode="json", exclude={"signature"})


class Manifest(_Frozen):
    """What a checkpoint holds; its own SHA-256 is the checkpoint's digest."""

    schema_version: Literal[2] = 2
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
    objects: tuple[StoredObject, ...]
    tensors: tuple[StoredTensor, ...]

    @model_validator(mode="after")
    def _has_what_it_names(self) -> Self:
        sizes = {stored.name: stored.size for stored in self.objects}
        if len(sizes) < len(self.objects) or len({(one.name, one.offset) for one in self.tensors}) < len(self.tensors):
            raise ValueError("an object or a chunk is there twice")
        for stored in self.tensors:
            if stored.length and not 0 <= stored.start <= sizes.get(stored.object_name, -1) - stored.length:
                raise ValueError(f"{stored.name} is not in {stored.object_name}")
        return self

    def described(self, prefix: str) -> dict[str, "Tensor"]:
        """The tensors below a prefix, by the rest of their names, without values: on the device `meta`."""
        import torch

        return {
            stored.name.removeprefix(prefix): torch.empty(stored.size, dtype=stored.torch_dtype, device="meta")
            for stored in self.tensors
            if stored.name.startswith(prefix)
        }

    @classmethod
    def from_bytes(cls, data: bytes, uri: str, digest: str | None = None) -> "Manifest":
        """Parse a manifest, verified first against `digest` where one is known.

        Raises:
            CheckpointError: when the digest differs, or it is no manifest.
        """
        if digest is not None and document_digest(data) != digest:
            raise CheckpointError(
                f"{uri}: the manifest's SHA-256 is {document_digest(data)[:12]}…, not {digest[:12]}…: it was changed"
                " → it is not loaded; use another checkpoint"
            )
        return cls.parse(data, uri)


class Marker(_Frozen):
    """The commit of a checkpoint, with what a list of them shows."""

    schema_version: Literal[1] = 1
    run_id: str
    attempt: int
    step: int
    folder: str
    """Name of the checkpoint's folder; no two writers share one."""
    manifest_sha256: str
    size: int
    """Bytes of all objects."""
    world_size: int
    created: datetime
    metrics: dict[str, float]
    verified: Literal["by the server", "read back"]
    """Who compared the stored bytes with their checksums before the commit."""
    signature: str = ""
    """Ed25519, over all the rest; empty where no key was given."""

    @classmethod
    def of(cls, manifest: Manifest, data: bytes, folder: str, verified: Literal["by the server", "read back"]) -> Self:
        """The marker of a manifest, given as its bytes too, signed where there is a key."""
        marker = cls(
            run_id=manifest.run_id,
            attempt=manifest.attempt,
            step=manifest.step,
            folder=folder,
            manifest_sha256=document_digest(data),
            size=sum(stored.size for stored in manifest.objects),
            world_size=manifest.world_size,
            created=manifest.created,
            metrics=manifest.metrics,
            verified=verified,
        )
        key = key_file()
        return marker if key is None else marker.model_copy(update={"signature": sign(marker._signed, key)})

    @property
    def _signed(self) -> dict[str, Any]:
        return self.model_dump(mode="json", exclude={"signature"})

    def check_signature(self, uri: str) -> None:
        """Refuse a checkpoint that is not signed by the key that `CONVERGATE_CHECKPOINT_KEY` names, if it names one.

        Raises:
            CheckpointError: when it is not signed, or by another key, or was changed.
        """
        require_signature(self._signed, self.signature, uri)


def require_signature(value: dict[str, Any], signature: str, what: str) -> None:
    """Refuse what is not signed by the key that `CONVERGATE_CHECKPOINT_KEY` names, if it names one.

    Raises:
        CheckpointError: when it is not signed, or by another key, or was changed.
    """
    key = key_file()
    if key is None:
        return
    if not signature:
        raise CheckpointError(f"{what} is not signed, and {KEY_VARIABLE} is set → it is not loaded")
    try:
        verify(value, signature, key)
    except SignatureError as error:
        raise CheckpointError(f"{what}: {error}") from error


def object_name(rank: int) -> str:
    """Of the object that a rank writes."""
    return f"rank-{rank:05}.bin"


def document_digest(data: bytes) -> str:
    """SHA-256 of a document's bytes, 64 hex digits; that of its manifest is a checkpoint's digest."""
    return hashlib.sha256(data).hexdigest()


def key_file() -> Path | None:
    """The file that `CONVERGATE_CHECKPOINT_KEY` names; None where it names none."""
    name = os.environ.get(KEY_VARIABLE)
    return Path(name) if name else None


def require_private_key() -> None:
    """Find out before anything is saved whether it can be signed, where it has to be.

    Raises:
        UserError: when the key cannot be read, or is a public one.
    """
    key = key_file()
    if key is not None:
        sign("", key)


def manifest_location(folder: S3Location) -> S3Location:
    """Where the manifest of a checkpoint stands, in its folder."""
    return folder / MANIFEST_NAME

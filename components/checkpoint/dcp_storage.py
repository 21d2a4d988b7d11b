"""The storage layer below `torch.distributed.checkpoint`: raw tensors to S3 and back, no pickle on either side."""

import hashlib
import io
import os
from collections.abc import Callable
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, SavePlan, SavePlanner, WriteItemType
from torch.distributed.checkpoint.storage import StorageReader, StorageWriter, WriteResult
from torch.futures import Future

from ..storage import S3Location, S3Store
from ..storage.s3 import upload
from .manifest import CheckpointError, Manifest, StoredObject, StoredTensor


def _done(value: Any) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result(value)
    return future


class S3Writer(StorageWriter):
    """Writes one object a rank; `commit` gets the finished lists on the coordinator and writes the manifest."""

    def __init__(
        self, prefix: S3Location, rank: int, commit: Callable[[list[StoredObject], list[StoredTensor]], None]
    ) -> None:
        self._prefix, self._rank, self._commit = prefix, rank, commit

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Nothing is kept between saves."""

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Nothing to set up: the prefix is this save's own."""

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """The plan as it is."""
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """The plans as they are."""
        return plans

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Pack this rank's chunks into one object and upload it.

        Raises:
            CheckpointError: for a value that is no tensor.
        """
        name, packed, tensors = f"rank-{self._rank:05}.bin", bytearray(), []
        for item in plan.items:
            if item.type is WriteItemType.BYTE_IO or item.tensor_data is None:
                raise CheckpointError(f"{item.index.fqn} is no tensor: it belongs into the JSON state")
            tensor = planner.resolve_data(item)
            assert isinstance(tensor, torch.Tensor)
            data = tensor_bytes(tensor)
            stored = StoredTensor(
                name=item.index.fqn,
                dtype=str(item.tensor_data.properties.dtype).removeprefix("torch."),
                size=tuple(item.tensor_data.size),
                offset=tuple(item.tensor_data.chunk.offsets),
                shape=tuple(item.tensor_data.chunk.sizes),
                object_name=name,
                start=len(packed),
                length=len(data),
            )
            packed += data
            tensors.append((item.index, stored))
        if not tensors:
            return _done([])
        written = StoredObject(name=name, size=len(packed), sha256=hashlib.sha256(packed).hexdigest())
        location = self._prefix / name
        upload(location, io.BytesIO(packed))
        return _done([WriteResult(index, stored.length, (written, stored)) for index, stored in tensors])

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Commit: only the coordinator gets here, after every rank has reported."""
        pairs = [result.storage_data for rank_results in results for result in rank_results]
        objects = {written.name: written for written, _ in pairs}
        self._commit(list(objects.values()), [stored for _, stored in pairs])

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Whether this is an S3 URI."""
        return str(checkpoint_id).startswith("s3://")


class S3Reader(StorageReader):
    """Reads the chunks that a plan asks for, each object verified as a whole before anything is taken from it."""

    def __init__(self, prefix: S3Location, manifest: Manifest) -> None:
        self._prefix, self._manifest = prefix, manifest
        self._tensors = {(stored.name, stored.offset): stored for stored in manifest.tensors}
        self._objects: dict[str, bytes] = {}

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Nothing to reset: a reader reads one checkpoint."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """DCP's metadata, built from the manifest."""
        return build_metadata(self._manifest)

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Nothing to set up."""

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """The plan as it is."""
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """The plans as they are."""
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Copy every chunk of the plan into its destination."""
        for item in plan.items:
            source = self._chunk(item.storage_index)
            for dimension, (start, length) in enumerate(zip(item.storage_offsets, item.lengths, strict=True)):
                source = source.narrow(dimension, start, length)
            target = planner.resolve_tensor(item).detach()
            target.copy_(source)
            planner.commit_tensor(item, target)
        return _done(None)

    def _chunk(self, index: MetadataIndex) -> torch.Tensor:
        stored = self._tensors[index.fqn, tuple(index.offset or ())]
        if stored.object_name not in self._objects:
            self._objects[stored.object_name] = read_verified(self._prefix, self._manifest, stored.object_name)
        return tensor_from_bytes(stored, self._objects[stored.object_name])

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Whether this is an S3 URI."""
        return str(checkpoint_id).startswith("s3://")


def build_metadata(manifest: Manifest) -> Metadata:
    """DCP's metadata of a checkpoint: every tensor with its chunks."""
    tensors: dict[str, Any] = {}
    for stored in manifest.tensors:
        chunk = ChunkStorageMetadata(torch.Size(stored.offset), torch.Size(stored.shape))
        if stored.name in tensors:
            tensors[stored.name].chunks.append(chunk)
            continue
        properties = TensorProperties(dtype=getattr(torch, stored.dtype))
        tensors[stored.name] = TensorStorageMetadata(properties, torch.Size(stored.size), [chunk])
    return Metadata(state_dict_metadata=tensors)


def read_verified(prefix: S3Location, manifest: Manifest, name: str) -> bytes:
    """An object's bytes, after its size and SHA-256 were compared with the manifest.

    Raises:
        CheckpointError: when they differ.
        S3Error: when it cannot be read.
    """
    expected = next(stored for stored in manifest.objects if stored.name == name)
    data = S3Store().read(prefix / name)
    if len(data) != expected.size or hashlib.sha256(data).hexdigest() != expected.sha256:
        raise CheckpointError(f"{prefix / name}: {len(data)} bytes do not match the manifest's size and SHA-256")
    return data


def tensor_bytes(tensor: torch.Tensor) -> bytes:
    """A tensor's values, row-major, on the CPU."""
    flat = tensor.detach().to("cpu").contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""


def tensor_from_bytes(stored: StoredTensor, data: bytes) -> torch.Tensor:
    """A chunk as a tensor of its own memory; the inverse of `tensor_bytes`."""
    dtype = getattr(torch, stored.dtype)
    if stored.length == 0:
        return torch.empty(stored.shape, dtype=dtype)
    raw = torch.frombuffer(bytearray(data[stored.start : stored.start + stored.length]), dtype=torch.uint8)
    return raw.view(dtype).reshape(stored.shape)

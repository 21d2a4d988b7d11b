"""The storage layer below `torch.distributed.checkpoint`: DCP plans, raw bytes travel, nothing is pickled."""

import os
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import (
    LoadPlan,
    LoadPlanner,
    SavePlan,
    SavePlanner,
    WriteItem,
    WriteItemType,
)
from torch.distributed.checkpoint.storage import StorageReader, StorageWriter, WriteResult
from torch.futures import Future

from ..storage import S3Location
from .manifest import CheckpointError, Manifest, StoredTensor, object_name
from .parts import PartsBuffer, aligned

_WHOLE = (Tensor, torch.nn.Parameter)


def _done(value: Any) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result(value)
    return future


class _Placed(NamedTuple):
    """An item of the plan, and where in the staging buffer its bytes go."""

    item: WriteItem
    stored: StoredTensor
    view: Tensor


class S3Writer(StorageWriter):
    """Stages one rank's part of the state, as DCP plans it, in one buffer that later saves use again.

    What DCP waits for is the copy into the buffer, and no more: the buffer is the object, byte for byte, and its
    upload follows. While the state keeps its names, shapes and dtypes, `stage_again` needs no plan and no collective.
    """

    def __init__(self, rank: int) -> None:
        self.object_name = object_name(rank)
        self.most_bytes = 0
        """Of any rank's object; known on the coordinator."""
        self._buffer = torch.empty(0, dtype=torch.uint8)
        self._placed: list[_Placed] = []
        self._size = 0

    @property
    def staged(self) -> memoryview:
        """The bytes of this rank's object."""
        return self._buffer.numpy().data[: self._size]

    @property
    def tensors(self) -> tuple[StoredTensor, ...]:
        """What lies in them."""
        return tuple(placed.stored for placed in self._placed)

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Nothing to reset: the buffer stays for the next save."""

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Nothing to set up."""

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """The plan as it is."""
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """The plans as they are."""
        return plans

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Lay out the buffer by the plan, and copy what the plan names into it.

        Raises:
            CheckpointError: for a value that is no tensor.
        """
        layout, size = _layout(plan.items, self.object_name)
        tensors = [_resolved(planner, item) for item, _ in layout]
        if size > self._buffer.numel():
            # Drop the old buffer before the new one is made.
            self._placed, self._buffer = [], torch.empty(0, dtype=torch.uint8)
            # Zeros: what lies between two tensors is part of the object.
            pinned = any(tensor.is_cuda for tensor in tensors)
            self._buffer = torch.zeros(size, dtype=torch.uint8, pin_memory=pinned)
        self._size = size
        self._placed = [_Placed(item, stored, _view(self._buffer, stored.start, stored)) for item, stored in layout]
        _copy(tensors, self._placed)
        return _done([WriteResult(placed.item.index, placed.stored.length, self._size) for placed in self._placed])

    def stage_again(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy the state's new values over the old ones in the buffer."""
        planner = DefaultSavePlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
        planner.set_up_planner(dict(tensors))
        values = [(tensors[placed.item.index.fqn], placed.item) for placed in self._placed]
        # A whole tensor is what DCP finds too, only later.
        _copy([one if type(one) in _WHOLE else _resolved(planner, item) for one, item in values], self._placed)

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """On the coordinator, once every rank has staged."""
        self.most_bytes = max((result.storage_data for one in results for result in one), default=0)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Whether this is an S3 URI."""
        return str(checkpoint_id).startswith("s3://")


class S3Reader(StorageReader):
    """Reads what a plan asks for: every part of an object that it needs is verified before any tensor is changed."""

    def __init__(self, folder: S3Location, manifest: Manifest) -> None:
        self._folder, self._manifest = folder, manifest
        self._tensors = {(stored.name, stored.offset): stored for stored in manifest.tensors}

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
        chunks = [self._chunk(item.storage_index) for item in plan.items]
        parts = PartsBuffer(self._folder, self._manifest, chunks)
        parts.fetch()
        for item, stored in zip(plan.items, chunks, strict=True):
            source = _view(parts.buffer, parts.position(stored), stored)
            for dimension, (start, length) in enumerate(zip(item.storage_offsets, item.lengths, strict=True)):
                source = source.narrow(dimension, start, length)
            target = planner.resolve_tensor(item).detach()
            target.copy_(source)
            planner.commit_tensor(item, target)
        return _done(None)

    def _chunk(self, index: MetadataIndex) -> StoredTensor:
        return self._tensors[index.fqn, tuple(index.offset or ())]

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
        properties = TensorProperties(dtype=stored.torch_dtype)
        tensors[stored.name] = TensorStorageMetadata(properties, torch.Size(stored.size), [chunk])
    return Metadata(state_dict_metadata=tensors)


def _layout(items: Iterable[WriteItem], object_name: str) -> tuple[list[tuple[WriteItem, StoredTensor]], int]:
    """Where each item's bytes go, by name, so that the model's lie together; and the bytes in all."""
    layout, end = [], 0
    for item in sorted(items, key=lambda item: (item.index.fqn, tuple(item.index.offset or ()))):
        if item.type is WriteItemType.BYTE_IO or item.tensor_data is None:
            raise CheckpointError(f"{item.index.fqn} is no tensor: it belongs into the JSON state")
        data = item.tensor_data
        start = aligned(end)
        length = data.chunk.sizes.numel() * data.properties.dtype.itemsize
        stored = StoredTensor(
            name=item.index.fqn,
            dtype=str(data.properties.dtype).removeprefix("torch."),
            size=tuple(data.size),
            offset=tuple(data.chunk.offsets),
            shape=tuple(data.chunk.sizes),
            object_name=object_name,
            start=start,
            length=length,
        )
        layout.append((item, stored))
        end = start + length
    return layout, end


def _resolved(planner: SavePlanner, item: WriteItem) -> Tensor:
    tensor = planner.resolve_data(item)
    assert isinstance(tensor, Tensor)
    return tensor


@torch.no_grad()
def _copy(tensors: list[Tensor], placed: list[_Placed]) -> None:
    for tensor, (_, _, view) in zip(tensors, placed, strict=True):
        view.copy_(tensor, non_blocking=True)
    for device in {tensor.device for tensor in tensors if tensor.is_cuda}:
        torch.cuda.current_stream(device).synchronize()


def _view(buffer: Tensor, start: int, stored: StoredTensor) -> Tensor:
    """A chunk's place in a buffer of bytes, as a tensor of its dtype and shape."""
    return buffer[start : start + stored.length].view(stored.torch_dtype).view(stored.shape)

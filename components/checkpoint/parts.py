"""The parts of a checkpoint's objects that somebody needs: fetched in parallel, verified, in one buffer."""

from collections.abc import Iterable, Iterator
from itertools import islice

import torch

from ..storage import BucketNotFoundError, S3Location, S3NotFoundError
from ..storage.streams import DamagedError, Fetch, download
from .manifest import CheckpointError, Manifest, StoredObject, StoredTensor

ALIGNMENT = 64
"""Bytes: what begins at a multiple of it in a buffer can be looked at in place as a tensor of any dtype."""
BATCH_PARTS = 8
"""Parts that are in memory at once where they are only verified."""


def aligned(position: int) -> int:
    """The next multiple of `ALIGNMENT`."""
    return -(-position // ALIGNMENT) * ALIGNMENT


class PartsBuffer:
    """The parts that hold some tensors; a tensor's bytes lie in one piece at `position`."""

    def __init__(self, folder: S3Location, manifest: Manifest, tensors: Iterable[StoredTensor]) -> None:
        self._folder = folder
        self._objects = {stored.name: stored for stored in manifest.objects}
        self._places: dict[tuple[str, int], int] = {}
        end = 0
        for name, number in sorted({part for stored in tensors for part in self._parts_of(stored)}):
            self._places[name, number] = end
            first, last = self._objects[name].extent(number)
            end = aligned(end + last - first)
        self.buffer = torch.empty(end, dtype=torch.uint8)

    def fetch(self) -> None:
        """Read and verify all of them.

        Raises:
            CheckpointError: when an object is missing or its bytes are not the manifest's.
            S3Error: when S3 fails.
        """
        data = self.buffer.numpy().data
        _download(
            _fetch(self._folder, self._objects[name], number, data[place:])
            for (name, number), place in self._places.items()
        )

    def position(self, stored: StoredTensor) -> int:
        """Where in the buffer a tensor's bytes begin."""
        if stored.length == 0:
            return 0
        stored_object = self._objects[stored.object_name]
        number = stored.start // stored_object.part_bytes
        return self._places[stored.object_name, number] + stored.start - stored_object.extent(number)[0]

    def _parts_of(self, stored: StoredTensor) -> Iterator[tuple[str, int]]:
        size = self._objects[stored.object_name].part_bytes if stored.length else 1
        for number in range(stored.start // size, -(-(stored.start + stored.length) // size) if stored.length else 0):
            yield stored.object_name, number


def verify_objects(folder: S3Location, manifest: Manifest) -> Iterator[int]:
    """Read every byte of a checkpoint and compare it with the manifest; gives the bytes of each batch of parts.

    Raises:
        CheckpointError: when an object is missing or its bytes are not the manifest's.
        S3Error: when S3 fails.
    """
    parts = ((stored, number) for stored in manifest.objects for number in range(len(stored.parts)))
    buffers: dict[int, memoryview] = {}
    while batch := list(islice(parts, BATCH_PARTS)):
        fetches = []
        for place, (stored, number) in enumerate(batch):
            start, end = stored.extent(number)
            if len(buffers.get(place, b"")) < end - start:
                buffers[place] = memoryview(bytearray(end - start))
            fetches.append(_fetch(folder, stored, number, buffers[place]))
        _download(fetches)
        yield sum(len(fetch.target) for fetch in fetches)


def _fetch(folder: S3Location, stored: StoredObject, number: int, memory: memoryview) -> Fetch:
    start, end = stored.extent(number)
    return Fetch(folder / stored.name, start, memory[: end - start], stored.parts[number])


def _download(fetches: Iterable[Fetch]) -> None:
    try:
        download(fetches)
    except BucketNotFoundError:
        raise
    except (DamagedError, S3NotFoundError) as error:
        raise CheckpointError(str(error)) from error

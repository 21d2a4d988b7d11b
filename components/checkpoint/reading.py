"""Read checkpoints: verified from the marker over the manifest down to each part, before a tensor is changed."""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, NamedTuple

from ..errors import UserError
from ..storage import BucketNotFoundError, S3Error, S3Location, S3NotFoundError, S3Store
from ..storage.transfer import TRIES
from .manifest import CheckpointError, Manifest, Marker, document_digest, manifest_location
from .refs import FOLDER, CheckpointRef

if TYPE_CHECKING:
    from torch import Tensor

MODEL_PREFIX = "model."
"""Tensors of the model carry it in the state, so that the model alone can be loaded."""


@contextmanager
def without_advice() -> Iterator[None]:
    """Without DCP's warning that one process is alone, which is what was asked for."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


def read_marker(uri: str) -> Marker:
    """A checkpoint's marker, its signature checked where there is a key.

    Raises:
        CheckpointError: when there is none, or it is not this checkpoint's.
        S3Error: when S3 fails.
    """
    ref = CheckpointRef.parse(uri)
    if ref is None:
        raise CheckpointError(f"{uri} is not the URI of a checkpoint → …/attempt-001-step-000000100")
    try:
        data = S3Store().read(ref.marker)
    except BucketNotFoundError:
        raise
    except S3NotFoundError as error:
        raise CheckpointError(f"{uri} is not committed, or deleted: {error}") from error
    marker = Marker.parse(data, str(ref.marker))
    found, wanted = (marker.run_id, marker.attempt, marker.step), (ref.root.name, ref.attempt, ref.step)
    if found != wanted or not _is_folder_of(marker.folder, ref):
        raise CheckpointError(f"{ref.marker} is the marker of another checkpoint: it was changed → use another one")
    marker.check_signature(uri)
    return marker


def _is_folder_of(name: str, ref: CheckpointRef) -> bool:
    match = FOLDER.fullmatch(name)
    return match is not None and match[1] == ref.name


class OpenCheckpoint(NamedTuple):
    """A checkpoint whose manifest is read and verified."""

    uri: str
    folder: S3Location
    """Where its objects lie."""
    manifest: Manifest
    digest: str


def open_checkpoint(uri: str, digest: str | None = None) -> OpenCheckpoint:
    """Read a checkpoint's manifest, and verify it.

    A copy that a release keeps is a folder without a marker: whoever refers to it has its digest.

    Raises:
        CheckpointError: when it is not committed, or the manifest is not what the marker or `digest` says, also when
            both are read again: what was spoilt on the way is no damage.
        S3Error: when S3 fails, or there is no such release.
    """
    for _ in range(TRIES - 1):
        with suppress(CheckpointError):
            return _open_once(uri, digest)
    return _open_once(uri, digest)


def _open_once(uri: str, digest: str | None) -> OpenCheckpoint:
    ref, folder, expected = CheckpointRef.parse(uri), S3Location.parse(uri), digest
    if ref is not None:
        marker = read_marker(uri)
        folder, expected = ref.root / marker.folder, digest or marker.manifest_sha256
    location = manifest_location(folder)
    try:
        data = S3Store().read(location)
    except S3NotFoundError as error:
        if ref is None or isinstance(error, BucketNotFoundError):
            raise
        raise CheckpointError(f"{uri}: its manifest is missing: {error}") from error
    manifest = Manifest.from_bytes(data, str(location), expected)
    found = (manifest.run_id, manifest.attempt, manifest.step)
    if ref is not None and found != (ref.root.name, ref.attempt, ref.step):
        raise CheckpointError(f"{location} is the manifest of another checkpoint: it was changed → use another one")
    return OpenCheckpoint(uri, folder, manifest, document_digest(data))


def read_manifest(uri: str, digest: str | None = None) -> tuple[Manifest, str]:
    """A checkpoint's manifest and its digest.

    Raises:
        CheckpointError: when it is not committed, differs from `digest`, or is no manifest.
    """
    found = open_checkpoint(uri, digest)
    return found.manifest, found.digest


def verify(uri: str, digest: str | None = None) -> Iterator[int]:
    """Read every byte of a checkpoint and compare it with the manifest; gives the bytes of each batch that did.

    Raises:
        CheckpointError: when it is not committed, or an object is missing or differs.
    """
    from .parts import verify_objects

    found = open_checkpoint(uri, digest)
    yield from verify_objects(found.folder, found.manifest)


def restore(uri: str, digest: str | None = None, only: str = "") -> tuple[dict[str, "Tensor"], Manifest]:
    """Load the tensors whose name starts with `only`, whole and on the CPU.

    Raises:
        CheckpointError: when it is not committed, the manifest's SHA-256 is not `digest`, or an object is missing or
            differs from the manifest.
        S3Error: when S3 fails; that is never taken for a damaged checkpoint.
    """
    import torch

    found = open_checkpoint(uri, digest)
    loaded = {
        stored.name: torch.empty(stored.size, dtype=stored.torch_dtype)
        for stored in found.manifest.tensors
        if stored.name.startswith(only)
    }
    fill(found, loaded)
    return loaded, found.manifest


def fill(found: OpenCheckpoint, tensors: Mapping[str, "Tensor"]) -> None:
    """Load a checkpoint's values into tensors of the same names and shapes, resharded where those are.

    What is needed is read and verified as a whole before any tensor is changed.

    Raises:
        CheckpointError: when an object is missing or differs from the manifest.
        UserError: when the checkpoint has not such a tensor, or in another shape.
        S3Error: when S3 fails; that is never taken for a damaged checkpoint.
    """
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.state_dict_loader import load

    from .dcp_storage import S3Reader

    sizes = {stored.name: stored.size for stored in found.manifest.tensors}
    for name, tensor in tensors.items():
        if sizes.get(name) != tuple(tensor.shape):
            has = f"{name} as {list(sizes[name])}" if name in sizes else f"no {name}"
            raise UserError(f"{found.uri} has {has}, {list(tensor.shape)} is wanted → a checkpoint of this model")
    try:
        with without_advice():
            load(dict(tensors), storage_reader=S3Reader(found.folder, found.manifest), no_dist=True)
    except CheckpointException as error:
        _, (cause, _) = min(error.failures.items())
        if not isinstance(cause, Exception) or isinstance(cause, S3Error):
            raise cause from error  # an interrupt, or S3 itself
        raise CheckpointError(f"{found.uri} cannot be loaded: {cause}") from error


def load_model_state(uri: str, digest: str | None = None) -> dict[str, "Tensor"]:
    """The model's state_dict alone, on the CPU, every byte of it verified.

    Raises:
        CheckpointError: when the manifest's SHA-256 is not `digest`, or an object is missing or differs from the
            manifest.
        S3Error: when S3 fails.
    """
    loaded, _ = restore(uri, digest, only=MODEL_PREFIX)
    return {name.removeprefix(MODEL_PREFIX): tensor for name, tensor in loaded.items()}


def copy_checkpoint(uri: str, digest: str, target: S3Location) -> tuple[str, str]:
    """Copy a checkpoint to where retention never comes, and verify the copy; returns (uri, digest).

    Repeating it is harmless: objects are the same bytes, and the manifest is written last.

    Raises:
        CheckpointError: when the source is not what its digest says.
    """
    from .parts import verify_objects

    found, store = open_checkpoint(uri, digest), S3Store()
    for stored in found.manifest.objects:
        store.copy(found.folder / stored.name, target / stored.name)
    for _ in verify_objects(target, found.manifest):
        pass
    store.copy(manifest_location(found.folder), manifest_location(target))
    return str(target), found.digest

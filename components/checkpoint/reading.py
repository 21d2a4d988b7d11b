"""Read checkpoints: verified from the marker over the manifest down to each part, before a tensor is changed."""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

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


def open_checkpoint(uri: str, digest: str | None = None) -> tuple[S3Location, Manifest, str]:
    """Where a checkpoint's objects lie, its manifest, verified, and its digest.

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


def _open_once(uri: str, digest: str | None) -> tuple[S3Location, Manifest, str]:
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
    return folder, manifest, document_digest(data)


def read_manifest(uri: str, digest: str | None = None) -> tuple[Manifest, str]:
    """A checkpoint's manifest and its digest.

    Raises:
        CheckpointError: when it is not committed, differs from `digest`, or is no manifest.
    """
    _, manifest, found = open_checkpoint(uri, digest)
    return manifest, found


def verify(uri: str, digest: str | None = None) -> Iterator[int]:
    """Read every byte of a checkpoint and compare it with the manifest; gives the bytes of each batch that did.

    Raises:
        CheckpointError: when it is not committed, or an object is missing or differs.
    """
    from .parts import verify_objects

    folder, manifest, _ = open_checkpoint(uri, digest)
    yield from verify_objects(folder, manifest)


def restore(
    uri: str, digest: str | None = None, only: str = "", into: Mapping[str, "Tensor"] | None = None
) -> tuple[dict[str, "Tensor"], Manifest]:
    """Load tensors: into those of `into`, resharded, or all whose name starts with `only`, whole and on the CPU.

    What is needed is read and verified as a whole before any tensor is changed.

    Raises:
        CheckpointError: when it is not committed, the manifest's SHA-256 is not `digest`, or an object is missing or
            differs from the manifest.
        UserError: when `into` has a tensor that the checkpoint has not, or in another shape.
        S3Error: when S3 fails; that is never taken for a damaged checkpoint.
    """
    import torch
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.state_dict_loader import load

    from .dcp_storage import S3Reader, build_metadata

    folder, manifest, _ = open_checkpoint(uri, digest)
    entries: Mapping[str, Any] = build_metadata(manifest).state_dict_metadata
    loaded = (
        dict(into)
        if into is not None
        else {
            name: torch.empty(entry.size, dtype=entry.properties.dtype)
            for name, entry in entries.items()
            if name.startswith(only)
        }
    )
    for name, tensor in loaded.items():
        if name not in entries or entries[name].size != tensor.shape:
            has = f"{name} as {list(entries[name].size)}" if name in entries else f"no {name}"
            raise UserError(f"{uri} has {has}, {list(tensor.shape)} is wanted → a checkpoint of this model")
    try:
        with without_advice():
            load(loaded, storage_reader=S3Reader(folder, manifest), no_dist=True)
    except CheckpointException as error:
        _, (cause, _) = min(error.failures.items())
        if not isinstance(cause, Exception) or isinstance(cause, S3Error):
            raise cause from error  # an interrupt, or S3 itself
        raise CheckpointError(f"{uri} cannot be loaded: {cause}") from error
    return loaded, manifest


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

    folder, manifest, found = open_checkpoint(uri, digest)
    store = S3Store()
    for stored in manifest.objects:
        store.copy(folder / stored.name, target / stored.name)
    for _ in verify_objects(target, manifest):
        pass
    store.copy(manifest_location(folder), manifest_location(target))
    return str(target), found

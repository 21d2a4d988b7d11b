"""Damage to what is stored, after its commit: by a disk, a hand, or somebody who wants to deceive."""

import hashlib
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path

from convergate.components.checkpoint import CheckpointRef
from convergate.components.checkpoint.manifest import manifest_location
from convergate.components.checkpoint.reading import read_marker
from convergate.components.storage import S3Location, S3Store
from proxy import flip_a_bit
from story import Story

Damage = Callable[[Story, CheckpointRef], None]


def canary(story: Story) -> Path:
    """The file that would be there if a pickle had been loaded."""
    return Path(f"{story.scene.home}/{story.name}-was-unpickled")


class _Canary:
    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self._path),)


def _objects(ref: CheckpointRef) -> list[S3Location]:
    folder = ref.root / read_marker(ref.uri).folder
    return [location for location in S3Store().list(folder) if str(location).endswith(".bin")]


def _manifest(ref: CheckpointRef) -> S3Location:
    return manifest_location(ref.root / read_marker(ref.uri).folder)


def _change(location: S3Location, change: Callable[[bytes], bytes]) -> None:
    store = S3Store()
    store.write(location, change(store.read(location)))


def bit_in_object(story: Story, ref: CheckpointRef) -> None:
    """One bit of the tensors' bytes."""
    _change(story.chance.choice(_objects(ref)), lambda data: flip_a_bit(data, story.chance.random()))


def bit_in_manifest(story: Story, ref: CheckpointRef) -> None:
    """One bit of the manifest."""
    _change(_manifest(ref), lambda data: flip_a_bit(data, story.chance.random()))


def bit_in_digest(story: Story, ref: CheckpointRef) -> None:
    """One bit of the manifest's SHA-256 in the marker."""

    def change(data: bytes) -> bytes:
        document = json.loads(data)
        digest = bytes.fromhex(document["manifest_sha256"])
        return json.dumps({**document, "manifest_sha256": flip_a_bit(digest, story.chance.random()).hex()}).encode()

    _change(ref.marker, change)


def short_object(story: Story, ref: CheckpointRef) -> None:
    """An object's end is cut off."""
    _change(story.chance.choice(_objects(ref)), lambda data: data[: int(len(data) * story.chance.random())])


def no_object(story: Story, ref: CheckpointRef) -> None:
    """An object is missing."""
    S3Store().delete(story.chance.choice(_objects(ref)))


def no_manifest(story: Story, ref: CheckpointRef) -> None:
    """The manifest is missing, the marker there."""
    S3Store().delete(_manifest(ref))


def garbage_marker(story: Story, ref: CheckpointRef) -> None:
    """The marker is anything."""
    S3Store().write(ref.marker, story.chance.choice((b"", b"{}", b"null", b"\xff\x00", story.chance.randbytes(300))))


def other_marker(story: Story, ref: CheckpointRef) -> None:
    """The marker is that of the checkpoint before, which would bring an old state back as a new one."""
    before = CheckpointRef(ref.attempt, ref.step - 10, ref.root)
    _change(ref.marker, lambda _: S3Store().read(before.marker))


def pickled_manifest(story: Story, ref: CheckpointRef) -> None:
    """The manifest is a pickle that acts when it is loaded."""
    _change(_manifest(ref), lambda _: pickle.dumps(_Canary(canary(story))))


def pickled_marker(story: Story, ref: CheckpointRef) -> None:
    """The marker is such a pickle."""
    S3Store().write(ref.marker, pickle.dumps(_Canary(canary(story))))


def pickled_object(story: Story, ref: CheckpointRef) -> None:
    """The tensors' bytes are such a pickle, as long as they were."""
    trap = pickle.dumps(_Canary(canary(story)))
    _change(_objects(ref)[0], lambda data: trap + data[len(trap) :])


def forgery(story: Story, ref: CheckpointRef) -> None:
    """Manifest and marker are changed together, so that their digests agree; only a signature shows it."""
    location = _manifest(ref)
    manifest = json.loads(S3Store().read(location))
    data = json.dumps({**manifest, "metrics": {"val_loss": 0.0}}).encode()
    S3Store().write(location, data)
    digest = hashlib.sha256(data).hexdigest()
    _change(ref.marker, lambda marker: json.dumps({**json.loads(marker), "manifest_sha256": digest}).encode())


def unsigned_forgery(story: Story, ref: CheckpointRef) -> None:
    """The same, with the signature left out."""
    forgery(story, ref)
    _change(ref.marker, lambda marker: json.dumps({**json.loads(marker), "signature": ""}).encode())


DAMAGES: dict[str, Damage] = {
    "a bit flipped in an object": bit_in_object,
    "a bit flipped in a manifest": bit_in_manifest,
    "a bit flipped in a marker's digest": bit_in_digest,
    "an object cut short": short_object,
    "manifest without an object": no_object,
    "marker without a manifest": no_manifest,
    "a marker of garbage": garbage_marker,
    "another checkpoint's marker": other_marker,
    "a pickle for a manifest": pickled_manifest,
    "a pickle for a marker": pickled_marker,
    "a pickle for an object": pickled_object,
}
ANYWHERE = list(DAMAGES.values())[:7]
"""Those that also the first checkpoint of a run can have."""
FORGERIES: dict[str, Damage] = {
    "a forged manifest, signed run": forgery,
    "a forged manifest without signature, signed run": unsigned_forgery,
}

"""What goes wrong for one process that saves and restores: on the network, at the server, and at rest."""

import os
import re
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from unittest import mock

from at_rest import ANYWHERE, Damage, canary
from convergate.components.checkpoint.manifest import KEY_VARIABLE
from convergate.components.storage import S3Store
from convergate.components.storage.client import s3_client
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from proxy import Fault, Kind
from story import INTERVAL, SIZES, Story, Writer

Happens = Callable[[], object]
EVENTS = (Kind.BEFORE, Kind.AFTER, Kind.INSTEAD)
SAVE_FAULTS = [kind for kind in Kind if kind not in EVENTS]
RESTORE_FAULTS = [kind for kind in SAVE_FAULTS if kind is not Kind.CORRUPT_UPLOAD]
RETRIED = set(RESTORE_FAULTS) - {Kind.DENIED, Kind.NO_BUCKET}
"""What a single occurrence of costs nothing but time."""
WRONG_BYTES = {Kind.TRUNCATED, Kind.CORRUPT_ANSWER}
"""What a reader, if it lasts, cannot tell from damage at rest."""
TIMES = (1, 1, 2, None)


def _nothing() -> None:
    pass


def saving(story: Story, kind: Kind, happens: Happens = _nothing, afterwards: Happens = _nothing) -> None:
    """A fault at any request of a save."""
    writer = story.writer(keep_last=1)
    fault = drawn(story, kind, requests_of_a_save(story, writer), happens)
    with story.proxy.injecting(fault):
        done = story.save(writer, 30)
    afterwards()
    judge_fault(story, fault, done)
    story.go_on()


def restoring(story: Story, kind: Kind, happens: Happens = _nothing, afterwards: Happens = _nothing) -> None:
    """A fault at any request of a restore."""
    story.save_well(story.writer(), 10, 20)
    with story.proxy.injecting():
        story.read()
        lines = list(story.proxy.lines)
    if kind is Kind.CORRUPT_ANSWER:
        # No checksum covers a listing: there TLS has to see to it.
        lines = [line for line in lines if "prefix=" not in line]
    fault = drawn(story, kind, lines, happens)
    with story.proxy.injecting(fault), story.heard() as failed:
        found = story.read()
        story.hold(found is not None, f"{kind} at {fault.requests} is called 'no checkpoint'")
        behind = story.newest.step - found.step if found else 0
        lasting = fault.times is None and kind in WRONG_BYTES
        story.hold(behind <= INTERVAL * lasting, f"{kind} at {fault.requests} costs {behind} steps")
    afterwards()
    judge_fault(story, fault, not failed)
    story.go_on()


def server_killed(story: Story, play: Callable[..., None], back: bool) -> None:
    """The server is killed at any request, and back at once, or only after the error."""
    place, down, busy = story.scene, list[list[str]](), threading.Lock()

    def strike() -> None:
        with busy:
            command = place.server.kill()
            place.start_server(command) if back else down.append(command)

    def start() -> None:
        with busy:  # not before it has come back
            for command in down:
                place.start_server(command)

    play(story, story.chance.choice((Kind.INSTEAD, Kind.AFTER)), strike, start)


def damaged(story: Story, damage: Damage) -> None:
    """The newest checkpoint is damaged: the one before is loaded."""
    story.save_well(story.writer(), 10, 20)
    with story.scene.direct():
        damage(story, story.newest)
    story.go_on(damaged=(story.newest,))
    story.hold(any("damaged" in line for line in story.log), "the damage is no warning")
    story.hold(not canary(story).exists(), "a pickle was loaded")


def forged(story: Story, damage: Damage) -> None:
    """The same in a run that signs."""
    with tempfile.NamedTemporaryFile(suffix=".pem") as file:
        key = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        Path(file.name).write_bytes(key)
        with mock.patch.dict(os.environ, {KEY_VARIABLE: file.name}):
            damaged(story, damage)


def all_damaged(story: Story) -> None:
    """Every checkpoint is damaged: that is an error, and not a start from nothing."""
    story.save_well(story.writer(), 10, 20)
    with story.scene.direct():
        for ref in story.reported:
            story.chance.choice(ANYWHERE)(story, ref)
        with story.heard() as failed:
            story.problems.append(f"{story.read()} was found, although all are damaged")
    story.hold(bool(failed), "damage everywhere is no error")


def abandoned(story: Story) -> None:
    """A multipart upload that nobody completes is in nobody's way, and can be given up."""
    writer = story.writer()
    story.save_well(writer, 10)
    root, store = story.newest.root, S3Store()
    place = root / "attempt-001-step-000000020-00000000" / "rank-00000.bin"
    with story.scene.direct():
        arguments = {"Bucket": place.bucket, "Key": place.key}
        begun = s3_client().create_multipart_upload(**arguments)["UploadId"]
        s3_client().upload_part(**arguments, UploadId=begun, PartNumber=1, Body=story.chance.randbytes(1000))
    story.save_well(writer, 20)
    story.go_on()
    with story.scene.direct():
        for upload in list(store.uploads(root)):
            store.abort(upload)
        story.hold(not list(store.uploads(root)), "an abandoned upload stays")
    story.judge()


def disk_full(story: Story) -> None:
    """The server's disk is full in the middle of a save; the run goes on when there is room again."""
    story.num_bytes = SIZES[-1]
    writer = story.writer(keep_last=1000)
    steps = range(INTERVAL, 100 * INTERVAL, INTERVAL)
    story.hold(not all(story.save(writer, step) for step in steps), "the disk does not fill up")
    newest = story.judge()
    with story.scene.direct():
        for ref in story.reported:
            if ref != newest:
                writer.store.delete(ref)
    story.go_on()


def requests_of_a_save(story: Story, writer: Writer) -> list[str]:
    """The requests of the second save, which has retention to do."""
    story.save_well(writer, 10)
    with story.proxy.injecting():
        story.save_well(writer, 20)
        return list(story.proxy.lines)


def drawn(story: Story, kind: Kind, lines: list[str], happens: Happens = _nothing) -> Fault:
    """A fault at one of the requests."""
    patterns = [_pattern(line) for line in lines]
    at = story.chance.randrange(len(lines))
    times = 1 if kind in EVENTS else story.chance.choice(TIMES)
    nth = patterns[: at + 1].count(patterns[at])
    return Fault(kind, patterns[at], nth, times, story.chance.random(), happens)


def judge_fault(story: Story, fault: Fault, done: bool) -> None:
    """What has to follow from one fault."""
    story.hold(fault.met > 0, f"no request was like {fault.requests}")
    story.garbled = fault.kind is Kind.CORRUPT_UPLOAD and not done
    if fault.times == 1 and fault.kind in RETRIED:
        story.hold(done, f"one {fault.kind} at {fault.requests} ended it: {story.last}")
    if fault.kind is Kind.DENIED and not done:
        story.hold("permission denied" in story.last, f"a refusal is called something else: {story.last}")


def _pattern(line: str) -> str:
    """A request without what differs from save to save: step, nonce, upload ID."""
    method, target = line.split(" ", 1)
    path, _, query = target.partition("?")
    folder, _, name = path.rpartition("/")
    if part := re.search(r"partNumber=\d+", query):
        return rf"^{method} \S+/{re.escape(name)}\?.*\b{part[0]}\b"
    if listed := re.search(r"prefix=\S*?(commits|tombstones|attempt)", query):
        return rf"^{method} \S+prefix=\S*{listed[1]}"
    if query.startswith(("uploads", "uploadId")):
        return rf"^{method} \S+/{re.escape(name)}\?{query.partition('=')[0]}"
    if folder.endswith(("commits", "tombstones")):
        return rf"^{method} \S+/{folder.rpartition('/')[2]}/"
    return rf"^{method} \S*/{re.escape(name)}(\?|$)"

"""Large objects from memory to S3 and back: parallel parts, no copy, checksums from end to end.

An upload sends each part's CRC64-NVME with it. A server that compares it says so (`checksums.server_compares`); from
another one the object is read back and compared here, before the upload counts as done. A download compares each part
that it read; what does not match, or broke off, is read again a few times before it counts as damaged.
"""

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import suppress
from http.client import HTTPException
from typing import Any, Literal, NamedTuple

from .answers import broken_off, is_bad_request, is_refused_checksum, translated, was_repeated
from .checksums import Part, crc64nvme, for_header, server_compares, whole_crc64nvme
from .client import shown_endpoint, stream_client
from .errors import BrokenOffError, DamagedError, S3Error, S3NotFoundError, UploadGoneError
from .s3 import S3Location
from .transfer import BLOCK_BYTES, Pace, Transfer, allowed_seconds, persist

__all__ = ["PART_BYTES", "DamagedError", "Fetch", "Pace", "Part", "Uploaded", "allowed_seconds", "download", "upload"]

PART_BYTES = 16 * 2**20
MAX_PARTS = 10_000
"""Of a multipart upload; S3's limit."""


class Uploaded(NamedTuple):
    """An object that is on S3 and was compared with the memory that it came from.

    Args:
        size: bytes.
        part_bytes: of each part but the last.
        crc64nvme: of the whole object, 16 hexadecimal digits.
        parts: checksums of each part.
        verified: who compared.
    """

    size: int
    part_bytes: int
    crc64nvme: str
    parts: tuple[Part, ...]
    verified: Literal["by the server", "read back"]


class Fetch(NamedTuple):
    """A part to read: the bytes from `start` on that fill `target`, and their checksums."""

    location: S3Location
    start: int
    target: memoryview
    part: Part


class _Piece(NamedTuple):
    """A part to send: its number from 1, and its place."""

    number: int
    start: int
    data: memoryview


def upload(location: S3Location, data: memoryview, *, sealed: bool = False, pace: Pace | None = None) -> Uploaded:
    """Write an object from memory, which must not change meanwhile, over an older one if there is one.

    Args:
        location: of the object.
        data: contiguous.
        sealed: with a SHA-256 of each part too.
        pace: a throttle.

    Raises:
        S3Error: when S3 fails, or it takes longer than `allowed_seconds`; a multipart upload is aborted.
        DamagedError: when other bytes are read back.
    """
    data = data.cast("B")
    size = len(data)
    part_bytes = max(1, -(-size // (MAX_PARTS * PART_BYTES))) * PART_BYTES
    pieces = [
        _Piece(number, start, data[start : start + part_bytes])
        for number, start in enumerate(range(0, size or 1, part_bytes), start=1)
    ]
    with Transfer(f"upload {location}", size, pace) as transfer:
        compares = server_compares(location, in_parts=len(pieces) > 1)

        def once() -> tuple[list[Part], bool]:
            parts, answered = _put_in_parts(transfer, location, pieces, sealed)
            if not (compares and answered):
                _read_back(transfer, location, pieces, parts)
            return parts, compares and answered

        parts, compared = persist(once, _may_pass, transfer.nap)
    whole = whole_crc64nvme(parts, part_bytes, size)
    return Uploaded(size, part_bytes, whole, tuple(parts), "by the server" if compared else "read back")


def download(fetches: Iterable[Fetch]) -> None:
    """Read parts into their places and compare them with their checksums.

    Raises:
        DamagedError: when an object is too short or its bytes are others, also when read again.
        S3NotFoundError: when there is no such object.
        S3Error: when S3 fails, or it takes longer than `allowed_seconds`.
    """
    fetches = list(fetches)
    if not fetches:
        return
    with Transfer(f"read {fetches[0].location}", sum(len(fetch.target) for fetch in fetches)) as transfer:
        transfer.map(
            lambda one: _read(transfer, one.location, one.start, len(one.target), one.part, one.target), fetches
        )


def _put_in_parts(
    transfer: Transfer, location: S3Location, pieces: list[_Piece], sealed: bool
) -> tuple[list[Part], bool]:
    """Send all pieces, one alone as it is; gives their checksums, and whether the server answered that all is there."""
    if len(pieces) == 1:
        return [part for part, _ in transfer.map(lambda piece: _put(transfer, location, piece, sealed), pieces)], True
    client: Any = stream_client()
    where = {"Bucket": location.bucket, "Key": location.key}
    with translated(location, "upload"):
        created = client.create_multipart_upload(**where, ChecksumAlgorithm="CRC64NVME", ChecksumType="FULL_OBJECT")
        where["UploadId"] = created["UploadId"]
    try:
        sent = transfer.map(lambda piece: _put(transfer, location, piece, sealed, where["UploadId"]), pieces)
        return [part for part, _ in sent], _complete(location, where, pieces, sent)
    except BaseException:
        with suppress(S3Error), translated(location, "abort the upload of"):
            client.abort_multipart_upload(**where)
        raise


def _put(
    transfer: Transfer, location: S3Location, piece: _Piece, sealed: bool, upload_id: str | None = None
) -> tuple[Part, str]:
    """Send a piece, as an object or as a part of an upload; gives its checksums and ETag."""
    part, client = Part.of(piece.data, sealed=sealed), stream_client()
    send: Any = client.put_object if upload_id is None else client.upload_part
    which: dict[str, Any] = {} if upload_id is None else {"UploadId": upload_id, "PartNumber": piece.number}

    def once() -> str:
        with translated(location, "upload"):
            answer = send(
                Bucket=location.bucket,
                Key=location.key,
                Body=transfer.body(piece.data),
                ChecksumCRC64NVME=for_header(part.crc64nvme),
                **which,
            )
        return str(answer["ETag"])

    return part, persist(once, lambda error: is_refused_checksum(error.__cause__), transfer.nap)


def _complete(location: S3Location, where: dict[str, str], pieces: list[_Piece], sent: list[tuple[Part, str]]) -> bool:
    """Make an object of the parts; gives whether the server answered that it did."""
    client: Any = stream_client()
    listed = [
        {"PartNumber": piece.number, "ETag": etag, "ChecksumCRC64NVME": for_header(part.crc64nvme)}
        for piece, (part, etag) in zip(pieces, sent, strict=True)
    ]
    size = pieces[-1].start + len(pieces[-1].data)
    whole = whole_crc64nvme([part for part, _ in sent], len(pieces[0].data), size)
    try:
        with translated(location, "upload"):
            client.complete_multipart_upload(
                **where,
                MultipartUpload={"Parts": listed},
                ChecksumCRC64NVME=for_header(whole),
                ChecksumType="FULL_OBJECT",
            )
    except S3NotFoundError as error:
        # A request that was repeated because its answer got lost meets an upload that is done with.
        if not was_repeated(error):
            raise
        return False
    return True


def _read_back(transfer: Transfer, location: S3Location, pieces: list[_Piece], parts: list[Part]) -> None:
    """Read what was sent, and compare it."""
    pairs = zip(pieces, parts, strict=True)
    transfer.map(lambda pair: _read(transfer, location, pair[0].start, len(pair[0].data), pair[1]), pairs)


def _read(
    transfer: Transfer, location: S3Location, start: int, size: int, part: Part, target: memoryview | None = None
) -> None:
    """Read a part, into its target where there is one, and compare it."""
    memory = memoryview(bytearray(min(size, BLOCK_BYTES))) if target is None else target

    def once() -> None:
        checksum = 0
        for block in _blocks(transfer, location, start, size, memory):
            checksum = crc64nvme(block, checksum)
        differs = f"{checksum:016x}" != part.crc64nvme
        if target is not None and part.sha256 and not differs:
            differs = hashlib.sha256(target).hexdigest() != part.sha256
        if differs:
            raise DamagedError(f"{location}: bytes {start} to {start + size} are not those that were written")

    persist(once, _may_pass, transfer.nap)


def _blocks(
    transfer: Transfer, location: S3Location, start: int, size: int, memory: memoryview
) -> Iterator[memoryview]:
    """Bytes of an object as they arrive in memory, from its beginning again where it is full."""
    if size == 0:
        return
    with translated(location, "read"):
        answer = stream_client().get_object(
            Bucket=location.bucket, Key=location.key, Range=f"bytes={start}-{start + size - 1}"
        )
    body: Any = answer["Body"]
    with body as stream:
        length = answer.get("ContentLength", size)
        if length < size:
            raise DamagedError(f"{location} is shorter than it should be: {start + length} bytes")
        if length > size:
            raise S3Error(
                f"cannot read {location}: {shown_endpoint()} gave {length} bytes for a range of {size} → see its log"
            )
        received = 0
        try:
            with transfer.cut_short(stream.shutdown):
                while received < size:
                    transfer.check()
                    at = received % len(memory)
                    # Past urllib3, which would copy it once more and hold Python's lock meanwhile.
                    count = stream._fp.readinto(memory[at : at + min(BLOCK_BYTES, size - received)])
                    if not count:
                        raise broken_off(location)
                    yield memory[at : at + count]
                    received += count
        except (OSError, HTTPException) as error:
            raise broken_off(location, error) from error
        if stream._fp.isclosed():
            stream.release_conn()


def _may_pass(error: S3Error) -> bool:
    """Whether to try again: what an answer or a request became on the way, it may not become the next time."""
    return isinstance(error, DamagedError | BrokenOffError | UploadGoneError) or is_bad_request(error)

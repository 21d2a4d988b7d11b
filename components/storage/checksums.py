"""Checksums of an object's parts, and whether the server compares them with what it got.

CRC64-NVME finds what goes wrong by accident, at memory speed; S3 keeps it for a whole object, however that was cut.
SHA-256 is what somebody who wants to deceive cannot match.
"""

import base64
import hashlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from secrets import token_hex
from typing import Any, NamedTuple

from .answers import is_refused_checksum, translated
from .client import endpoint_url, stream_client
from .errors import S3Error
from .s3 import S3Location, S3Store

_answers: dict[tuple[str | None, bool], bool] = {}
"""What `server_compares` found, by endpoint and way of sending."""


class Part(NamedTuple):
    """The checksums of one part of an object: hexadecimal, `sha256` empty where it is not sealed."""

    crc64nvme: str
    sha256: str = ""

    @classmethod
    def of(cls, data: memoryview, *, sealed: bool) -> "Part":
        """Those of these bytes."""
        return cls(f"{crc64nvme(data):016x}", hashlib.sha256(data).hexdigest() if sealed else "")


def crc64nvme(data: memoryview | bytes, before: int = 0) -> int:
    """CRC64-NVME of the bytes, going on from that of the bytes before them."""
    from awscrt import checksums

    return int(checksums.crc64nvme(data, before))


def whole_crc64nvme(parts: Sequence[Part], part_bytes: int, size: int) -> str:
    """CRC64-NVME of an object, from those of its parts; all but the last have `part_bytes`."""
    from awscrt import checksums

    whole = 0
    for number, part in enumerate(parts):
        length = min(part_bytes, size - number * part_bytes)
        whole = checksums.combine_crc64nvme(whole, int(part.crc64nvme, 16), length)
    return f"{whole:016x}"


def for_header(crc64nvme_hex: str) -> str:
    """A CRC64-NVME as S3 wants it in a header."""
    return base64.b64encode(bytes.fromhex(crc64nvme_hex)).decode()


def server_compares(location: S3Location, *, in_parts: bool) -> bool:
    """Whether the endpoint refuses bytes that do not match their checksum; asked once a process and way of sending.

    A few bytes with a wrong checksum are sent, as an object or as a part of one, beside `location` under a name that
    nobody else uses, and deleted where they are taken.

    Raises:
        S3Error: when S3 fails.
    """
    asked = endpoint_url(), in_parts
    if asked not in _answers:
        probe = location.parent / f"checksum-probe-{token_hex(8)}"
        with translated(location, "upload"):
            _answers[asked] = (_refuses_as_a_part if in_parts else _refuses_as_an_object)(probe)
    return _answers[asked]


_DATA = b"not what the checksum says"


def _refuses_as_an_object(probe: S3Location) -> bool:
    if _refuses(stream_client().put_object, Bucket=probe.bucket, Key=probe.key):
        return True
    # Who may write and not delete keeps these few bytes.
    with suppress(S3Error):
        S3Store().delete(probe)
    return False


def _refuses_as_a_part(probe: S3Location) -> bool:
    client: Any = stream_client()
    where = {"Bucket": probe.bucket, "Key": probe.key}
    begun = client.create_multipart_upload(**where, ChecksumAlgorithm="CRC64NVME", ChecksumType="FULL_OBJECT")
    where["UploadId"] = begun["UploadId"]
    try:
        return _refuses(client.upload_part, **where, PartNumber=1)
    finally:
        with suppress(S3Error), translated(probe, "abort the upload of"):
            client.abort_multipart_upload(**where)


def _refuses(send: Callable[..., object], **where: Any) -> bool:
    from botocore.exceptions import ClientError

    wrong = for_header(f"{crc64nvme(_DATA) ^ 1:016x}")
    try:
        send(**where, Body=_DATA, ChecksumCRC64NVME=wrong)
    except ClientError as error:
        if is_refused_checksum(error):
            return True
        raise
    return False

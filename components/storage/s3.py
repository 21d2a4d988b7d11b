"""S3 with bounded time and retries, and errors that name the thing, the cause and the fix.

The endpoint is `S3_ENDPOINT_URL`, else boto3's own `AWS_ENDPOINT_URL_S3` and `AWS_ENDPOINT_URL`; credentials and
region come from boto3's usual chain. Conditional writes use `If-None-Match`/`If-Match`; a server that ignores them
(rclone does) is met by looking first, which leaves a race of milliseconds between two writers.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache, partial
from random import SystemRandom
from textwrap import shorten
from typing import TYPE_CHECKING, Any, BinaryIO, Self

from ..errors import OutsideError

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

CONNECT_TIMEOUT_S = 3
READ_TIMEOUT_S = 20
MAX_ATTEMPTS = 3
MULTIPART_BYTES = 32 * 2**20
MESSAGE_CHARACTERS = 200


class S3Error(OutsideError):
    """S3 cannot be reached, or refused."""


class S3NotFoundError(S3Error):
    """There is no such object, or no such bucket."""


class ObjectExistsError(S3Error):
    """A create-only write met an object, or a conditional one met another version."""


@dataclass(frozen=True, slots=True)
class S3Location:
    """A place on S3: a bucket, and a key or prefix without a slash at its ends."""

    bucket: str
    key: str = ""

    @classmethod
    def parse(cls, uri: str) -> Self:
        """Parse `s3://bucket/key`.

        Raises:
            S3Error: when it is no S3 URI.
        """
        scheme, _, rest = uri.partition("://")
        bucket, _, key = rest.partition("/")
        if scheme != "s3" or not bucket:
            raise S3Error(f"{uri!r}: not an S3 URI → s3://bucket/prefix")
        return cls(bucket, key.strip("/"))

    def __truediv__(self, part: str) -> Self:
        key = "/".join(piece for piece in (self.key, part.strip("/")) if piece)
        return type(self)(self.bucket, key)

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.key}".rstrip("/")


def endpoint_url() -> str | None:
    """The configured endpoint, or None for AWS itself."""
    for name in ("S3_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"):
        if os.environ.get(name):
            return os.environ[name]
    return None


@cache
def _shared_client(endpoint: str | None, _key: str | None, _profile: str | None, _pid: int) -> "S3Client":
    import boto3
    from botocore.config import Config

    config = Config(
        connect_timeout=CONNECT_TIMEOUT_S,
        read_timeout=READ_TIMEOUT_S,
        retries={"total_max_attempts": MAX_ATTEMPTS, "mode": "standard"},
        s3={"addressing_style": "path"} if endpoint else {},
        request_checksum_calculation="when_required" if endpoint else "when_supported",
        response_checksum_validation="when_required" if endpoint else "when_supported",
    )
    # Not boto3's default session, which keeps the first credentials that it met.
    session = boto3.Session()
    region = os.environ.get("AWS_REGION") or session.region_name or "us-east-1"
    try:
        with _jitter_of_its_own():
            return session.client("s3", endpoint_url=endpoint, region_name=region, config=config)
    except ValueError as error:
        raise S3Error(f"the S3 endpoint {_shown(endpoint)} is no URL → AWS_ENDPOINT_URL=https://host:port") from error


@contextmanager
def _jitter_of_its_own() -> Iterator[None]:
    """A client made in here leaves Python's global random state alone; botocore draws the wait before a retry from it.

    The global state is the training's: a retry would change what the run does next.
    """
    from botocore.retries import standard

    backoff = standard.ExponentialBackoff
    standard.ExponentialBackoff = partial(backoff, random=SystemRandom().random)  # type: ignore[assignment,misc]
    try:
        yield
    finally:
        standard.ExponentialBackoff = backoff  # type: ignore[misc]


def s3_client() -> "S3Client":
    """The process's client; thread-safe, made anew after a fork or when the endpoint, key or profile changes."""
    key, profile = os.environ.get("AWS_ACCESS_KEY_ID"), os.environ.get("AWS_PROFILE")
    return _shared_client(endpoint_url(), key, profile, os.getpid())


class S3Store:
    """Whole objects, read and written in one request; large streams have their own writers."""

    def read(self, location: S3Location) -> bytes:
        """The object's bytes.

        Raises:
            S3NotFoundError: when there is none.
            S3Error: for anything else.
        """
        with _translated(location, "read"):
            return s3_client().get_object(Bucket=location.bucket, Key=location.key)["Body"].read()

    def write(self, location: S3Location, data: bytes, content_type: str = "application/octet-stream") -> None:
        """Write an object, over an older one if there is one."""
        with _translated(location, "write"):
            s3_client().put_object(Bucket=location.bucket, Key=location.key, Body=data, ContentType=content_type)

    def create(self, location: S3Location, data: bytes, content_type: str = "application/json") -> None:
        """Write an object only where there is none.

        Raises:
            ObjectExistsError: when there is one.
        """
        if self.exists(location):
            raise ObjectExistsError(f"{location} exists already, and is never overwritten")
        with _translated(location, "create"):
            s3_client().put_object(
                Bucket=location.bucket, Key=location.key, Body=data, ContentType=content_type, IfNoneMatch="*"
            )

    def read_versioned(self, location: S3Location) -> tuple[bytes, str]:
        """The object's bytes and its ETag, for `replace`."""
        with _translated(location, "read"):
            answer = s3_client().get_object(Bucket=location.bucket, Key=location.key)
            return answer["Body"].read(), answer["ETag"]

    def replace(self, location: S3Location, data: bytes, etag: str) -> None:
        """Write over the version with this ETag only (compare and swap).

        Raises:
            ObjectExistsError: when the object is another version by now.
        """
        if self.read_versioned(location)[1] != etag:
            raise ObjectExistsError(f"{location} was changed by somebody else meanwhile")
        with _translated(location, "replace"):
            s3_client().put_object(
                Bucket=location.bucket,
                Key=location.key,
                Body=data,
                ContentType="application/json",
                IfMatch=etag,
            )

    def exists(self, location: S3Location) -> bool:
        """Whether there is an object at this key."""
        try:
            with _translated(location, "look up"):
                s3_client().head_object(Bucket=location.bucket, Key=location.key)
        except S3NotFoundError:
            return False
        return True

    def list(self, prefix: S3Location) -> Iterator[S3Location]:
        """All objects below a prefix, in key order; nothing where there is no such bucket or prefix."""
        start = f"{prefix.key}/" if prefix.key else ""
        try:
            with _translated(prefix, "list"):
                pages = s3_client().get_paginator("list_objects_v2").paginate(Bucket=prefix.bucket, Prefix=start)
                for page in pages:
                    for item in page.get("Contents", []):
                        yield S3Location(prefix.bucket, item["Key"])
        except S3NotFoundError:
            return

    def delete(self, location: S3Location) -> None:
        """Delete an object; none there is fine."""
        with _translated(location, "delete"):
            s3_client().delete_object(Bucket=location.bucket, Key=location.key)

    def ensure_bucket(self, location: S3Location) -> None:
        """Create the bucket where it is missing."""
        try:
            with _translated(location, "look up"):
                s3_client().head_bucket(Bucket=location.bucket)
        except S3NotFoundError:
            region = s3_client().meta.region_name
            where: Any = {} if region == "us-east-1" else {"CreateBucketConfiguration": {"LocationConstraint": region}}
            # Another process may have been faster.
            with suppress(ObjectExistsError), _translated(location, "create the bucket"):
                s3_client().create_bucket(Bucket=location.bucket, **where)


def upload(location: S3Location, stream: BinaryIO) -> None:
    """Write an object from a stream, in parallel parts where it is large."""
    from boto3.s3.transfer import TransferConfig

    parts = TransferConfig(multipart_threshold=MULTIPART_BYTES, multipart_chunksize=MULTIPART_BYTES, max_concurrency=4)
    with _translated(location, "upload"):
        s3_client().upload_fileobj(stream, location.bucket, location.key, Config=parts)


class _translated:  # noqa: N801 - reads as a statement: `with _translated(...)`
    """boto3's errors inside this block, as `S3Error` in one line; no credential appears in it."""

    def __init__(self, location: S3Location, action: str) -> None:
        self.location, self.action = location, action

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if error is None or isinstance(error, S3Error):
            return
        from boto3.exceptions import Boto3Error
        from botocore.exceptions import BotoCoreError, ClientError

        if isinstance(error, Boto3Error) and isinstance(error.__context__, ClientError | BotoCoreError):
            error = error.__context__
        if isinstance(error, ClientError):
            raise _from_answer(error.response, self.location, self.action) from error
        if isinstance(error, BotoCoreError | Boto3Error):
            raise _without_answer(error, self.location, self.action) from error


def _shown(endpoint: str | None) -> str:
    """The endpoint in a message: a user and password in it are left out."""
    return re.sub(r"[^/@]*@", "", endpoint) if endpoint else "AWS S3"


def _without_answer(error: Exception, location: S3Location, action: str) -> S3Error:
    """No answer came: the server is away, or boto3 found nothing to ask it with."""
    from botocore.exceptions import ConnectionError as NoConnectionError
    from botocore.exceptions import HTTPClientError

    if isinstance(error, HTTPClientError | NoConnectionError):
        cause = type(error).__name__.removesuffix("Error")
        return S3Error(
            f"cannot {action} {location}: {_shown(endpoint_url())} does not answer ({cause})"
            " → check AWS_ENDPOINT_URL and the network"
        )
    cause = shorten(str(error), MESSAGE_CHARACTERS, placeholder=" …")
    return S3Error(f"cannot {action} {location}: {cause} → check the credentials, AWS_ENDPOINT_URL and the URI")


def _from_answer(response: object, location: S3Location, action: str) -> S3Error:
    assert isinstance(response, dict)
    code = str(response.get("Error", {}).get("Code", ""))
    status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    if code in ("NoSuchKey", "NoSuchBucket", "404", "NotFound"):
        missing = " (no such bucket) → create it, or check the URI" if code == "NoSuchBucket" else ""
        return S3NotFoundError(f"{location} does not exist{missing}")
    if code in ("PreconditionFailed", "ConditionalRequestConflict") or status in (409, 412):
        return ObjectExistsError(f"cannot {action} {location}: it exists, or was changed meanwhile")
    if status in (401, 403):
        return S3Error(f"cannot {action} {location}: permission denied ({code}) → check the credentials and the policy")
    answer = " ".join(dict.fromkeys([str(status), code]))
    return S3Error(f"cannot {action} {location}: {_shown(endpoint_url())} answered {answer} → see its log")

"""Objects on S3: places, and whole objects read, written, listed and deleted.

Conditional writes use `If-None-Match`/`If-Match`; a server that ignores them (rclone does) is met by looking first,
which leaves a race of milliseconds between two writers.
"""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple, Self

from .answers import broken_off, translated, was_repeated
from .client import s3_client
from .errors import BrokenOffError, ObjectExistsError, S3DeniedError, S3Error, S3NotFoundError, UploadGoneError
from .transfer import persist

COPY_BYTES = 5 * 2**30
"""The most that S3 copies by one request; larger objects are copied in parts of the second size."""
COPY_PART_BYTES = 512 * 2**20


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

    @property
    def name(self) -> str:
        """The last part of the key."""
        return self.key.rpartition("/")[2]

    @property
    def parent(self) -> Self:
        """One level up."""
        return type(self)(self.bucket, self.key.rpartition("/")[0])

    def __truediv__(self, part: str) -> Self:
        key = "/".join(piece for piece in (self.key, part.strip("/")) if piece)
        return type(self)(self.bucket, key)

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.key}".rstrip("/")


class Entry(NamedTuple):
    """An object in a listing."""

    location: S3Location
    size: int
    modified: datetime


class PendingUpload(NamedTuple):
    """A multipart upload that was begun, and neither completed nor aborted."""

    location: S3Location
    upload_id: str
    initiated: datetime


class S3Store:
    """Whole objects, read and written in one request; large ones go by `streams`."""

    def read(self, location: S3Location) -> bytes:
        """The object's bytes.

        Raises:
            S3NotFoundError: when there is none.
            S3Error: for anything else.
        """
        return self.read_versioned(location)[0]

    def write(self, location: S3Location, data: bytes, content_type: str = "application/octet-stream") -> None:
        """Write an object, over an older one if there is one."""
        with translated(location, "write"):
            s3_client().put_object(Bucket=location.bucket, Key=location.key, Body=data, ContentType=content_type)

    def create(self, location: S3Location, data: bytes, content_type: str = "application/json") -> None:
        """Write an object only where there is none.

        Raises:
            ObjectExistsError: when there is one.
        """
        if self.exists(location):
            raise ObjectExistsError(f"{location} exists already, and is never overwritten")
        self._write_conditionally(location, data, "create", ContentType=content_type, IfNoneMatch="*")

    def read_versioned(self, location: S3Location) -> tuple[bytes, str]:
        """The object's bytes and its ETag, for `replace`; an answer that breaks off is asked for again."""
        from botocore.exceptions import BotoCoreError

        def once() -> tuple[bytes, str]:
            with translated(location, "read"):
                answer = s3_client().get_object(Bucket=location.bucket, Key=location.key)
            try:
                return answer["Body"].read(), answer["ETag"]
            except BotoCoreError as error:
                raise broken_off(location, error) from error

        return persist(once, lambda error: isinstance(error, BrokenOffError))

    def replace(self, location: S3Location, data: bytes, etag: str) -> None:
        """Write over the version with this ETag only (compare and swap).

        Raises:
            ObjectExistsError: when the object is another version by now.
        """
        if self.read_versioned(location)[1] != etag:
            raise ObjectExistsError(f"{location} was changed by somebody else meanwhile")
        self._write_conditionally(location, data, "replace", ContentType="application/json", IfMatch=etag)

    def _write_conditionally(self, location: S3Location, data: bytes, action: str, **conditions: Any) -> None:
        """Write under a condition; a request that was repeated because its answer got lost may meet its own object."""
        try:
            with translated(location, action):
                s3_client().put_object(Bucket=location.bucket, Key=location.key, Body=data, **conditions)
        except ObjectExistsError as error:
            if not was_repeated(error) or self.read(location) != data:
                raise

    def exists(self, location: S3Location) -> bool:
        """Whether there is an object at this key."""
        try:
            with translated(location, "look up"):
                s3_client().head_object(Bucket=location.bucket, Key=location.key)
        except S3NotFoundError:
            return False
        return True

    def list(self, prefix: S3Location) -> Iterator[S3Location]:
        """All objects below a prefix, in key order; nothing where there is no such bucket or prefix."""
        with suppress(S3NotFoundError):
            for entry in self.entries(prefix):
                yield entry.location

    def entries(self, prefix: S3Location, limit: int | None = None) -> Iterator[Entry]:
        """All objects below a prefix, with size and age, in key order.

        Args:
            prefix: a folder.
            limit: at most so many, asked for at once (S3 gives 1,000 to a request).

        Raises:
            BucketNotFoundError: when there is no such bucket.
        """
        pages = {"PageSize": limit, "MaxItems": limit} if limit else {}
        for item in self._pages(prefix, "list_objects_v2", "Contents", PaginationConfig=pages):
            yield Entry(S3Location(prefix.bucket, item["Key"]), item["Size"], item["LastModified"])

    def folders(self, prefix: S3Location) -> Iterator[S3Location]:
        """The folders right below a prefix, in key order.

        Raises:
            BucketNotFoundError: when there is no such bucket.
        """
        for item in self._pages(prefix, "list_objects_v2", "CommonPrefixes", Delimiter="/"):
            yield S3Location(prefix.bucket, item["Prefix"].rstrip("/"))

    def uploads(self, prefix: S3Location) -> Iterator[PendingUpload]:
        """The multipart uploads below a prefix that are pending: running, or abandoned.

        Raises:
            BucketNotFoundError: when there is no such bucket.
        """
        with suppress(UploadGoneError):  # rclone's answer where a bucket has none
            for item in self._pages(prefix, "list_multipart_uploads", "Uploads"):
                yield PendingUpload(S3Location(prefix.bucket, item["Key"]), item["UploadId"], item["Initiated"])

    def _pages(self, prefix: S3Location, operation: Any, items: str, **arguments: Any) -> Iterator[Any]:
        start = f"{prefix.key}/" if prefix.key else ""
        with translated(prefix, "list"):
            pages = s3_client().get_paginator(operation)
            for page in pages.paginate(Bucket=prefix.bucket, Prefix=start, **arguments):
                yield from page.get(items, [])

    def parts(self, upload: PendingUpload) -> Iterator[Entry]:
        """The parts that a pending upload has, in order; none where it is gone."""
        location = upload.location
        where: Any = {"Bucket": location.bucket, "Key": location.key, "UploadId": upload.upload_id}
        with suppress(S3NotFoundError), translated(location, "look up the upload of"):
            for page in s3_client().get_paginator("list_parts").paginate(**where):
                for part in page.get("Parts", []):
                    yield Entry(location, part["Size"], part["LastModified"])

    def abort(self, upload: PendingUpload) -> None:
        """Give a multipart upload up and free its parts; one that is gone already is fine."""
        location = upload.location
        with suppress(S3NotFoundError), translated(location, "abort the upload of"):
            s3_client().abort_multipart_upload(Bucket=location.bucket, Key=location.key, UploadId=upload.upload_id)

    def copy(self, source: S3Location, target: S3Location) -> None:
        """Copy an object within S3, in parts where it is larger than one request may copy."""
        from boto3.s3.transfer import TransferConfig

        where: Any = {"Bucket": source.bucket, "Key": source.key}
        config = TransferConfig(multipart_threshold=COPY_BYTES, multipart_chunksize=COPY_PART_BYTES)
        with translated(source, "copy"):
            s3_client().copy(where, target.bucket, target.key, Config=config)

    def delete(self, location: S3Location) -> None:
        """Delete an object; none there is fine."""
        with translated(location, "delete"):
            s3_client().delete_object(Bucket=location.bucket, Key=location.key)

    def ensure_bucket(self, location: S3Location) -> None:
        """Create the bucket where it is missing.

        Keys that may not look at a bucket as a whole take it to be there: what is read or written next tells.
        """
        try:
            with translated(location, "look up"):
                s3_client().head_bucket(Bucket=location.bucket)
        except S3DeniedError:
            return
        except S3NotFoundError:
            region = s3_client().meta.region_name
            where: Any = {} if region == "us-east-1" else {"CreateBucketConfiguration": {"LocationConstraint": region}}
            # Another process may have been faster.
            with suppress(ObjectExistsError), translated(location, "create the bucket"):
                s3_client().create_bucket(Bucket=location.bucket, **where)

"""boto3's errors in words: one line each that names the thing, the cause and the fix, and no credential."""

from http import HTTPStatus
from textwrap import shorten
from types import TracebackType
from typing import Any

from .client import shown_endpoint
from .errors import (
    BrokenOffError,
    BucketNotFoundError,
    DamagedError,
    ObjectExistsError,
    S3DeniedError,
    S3Error,
    S3NotFoundError,
    UploadGoneError,
)

MESSAGE_CHARACTERS = 200
_REFUSED_CHECKSUM = ("Digest", "Checksum")
"""In the error codes for one that is wrong: `BadDigest` (AWS, Ceph), `XAmzContentChecksumMismatch` (MinIO)."""
_NOT_FOUND = ("NoSuchKey", "NoSuchBucket", "404", "NotFound")


class translated:  # noqa: N801 - reads as a statement: `with translated(...)`
    """boto3's errors inside this block, as `S3Error`.

    Args:
        location: what the block is about.
        action: what it does there, a verb.
    """

    def __init__(self, location: object, action: str) -> None:
        self.location, self.action = location, action

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _trace: TracebackType | None) -> None:
        if error is None or isinstance(error, S3Error):
            return
        from boto3.exceptions import Boto3Error
        from botocore.exceptions import BotoCoreError, ClientError
        from botocore.parsers import ResponseParserError

        if isinstance(error, Boto3Error) and isinstance(error.__context__, ClientError | BotoCoreError):
            error = error.__context__
        if isinstance(error, ClientError):
            raise self._from_answer(error.response) from error
        if isinstance(error, BotoCoreError | Boto3Error):
            raise self._without_answer(error) from error
        if isinstance(error, ResponseParserError | KeyError | ValueError):
            raise BrokenOffError(
                f"cannot {self.action} {self.location}: {shown_endpoint()} gave an answer that makes no sense"
                " → check that it is an S3 server, and the network"
            ) from error

    def _without_answer(self, error: Exception) -> S3Error:
        """No answer came: the server is away, or boto3 found nothing to ask it with."""
        from botocore.exceptions import ConnectionError as NoConnectionError
        from botocore.exceptions import HTTPClientError

        if isinstance(error, HTTPClientError | NoConnectionError):
            cause = type(error).__name__.removesuffix("Error")
            return S3Error(
                f"cannot {self.action} {self.location}: {shown_endpoint()} does not answer ({cause})"
                " → check AWS_ENDPOINT_URL and the network"
            )
        cause = shorten(str(error), MESSAGE_CHARACTERS, placeholder=" …")
        return S3Error(
            f"cannot {self.action} {self.location}: {cause} → check the credentials, AWS_ENDPOINT_URL and the URI"
        )

    def _from_answer(self, response: object) -> S3Error:
        assert isinstance(response, dict)
        code = str(response.get("Error", {}).get("Code", ""))
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        if code in _NOT_FOUND:
            if code == "NoSuchBucket":
                return BucketNotFoundError(
                    f"{self.location} does not exist (no such bucket) → create it, or check the URI"
                )
            return S3NotFoundError(f"{self.location} does not exist")
        if code == "NoSuchUpload":
            return UploadGoneError(f"cannot {self.action} {self.location}: its multipart upload does not exist")
        if code == "InvalidRange":
            return DamagedError(f"{self.location} is shorter than it should be")
        if code in ("PreconditionFailed", "ConditionalRequestConflict") or status in (409, 412):
            return ObjectExistsError(f"cannot {self.action} {self.location}: it exists, or was changed meanwhile")
        denied = status in (401, 403)
        if denied:
            cause = f"permission denied ({code}) → check the credentials and the policy"
        else:
            cause = f"{shown_endpoint()} answered {' '.join(dict.fromkeys([str(status), code]))} → see its log"
        return (S3DeniedError if denied else S3Error)(f"cannot {self.action} {self.location}: {cause}")


def was_repeated(error: S3Error) -> bool:
    """Whether boto3 had sent the request before: that answer got lost, so this one may be about what it did."""
    return bool(_answer(error.__cause__, "ResponseMetadata").get("RetryAttempts"))


def is_bad_request(error: S3Error) -> bool:
    """Whether the server could not make sense of the request."""
    return bool(_answer(error.__cause__, "ResponseMetadata").get("HTTPStatusCode") == HTTPStatus.BAD_REQUEST)


def is_refused_checksum(error: BaseException | None) -> bool:
    """Whether this error of boto3's is the server's, that the bytes it got do not match their checksum."""
    return any(word in str(_answer(error, "Error").get("Code")) for word in _REFUSED_CHECKSUM)


def _answer(error: BaseException | None, part: str) -> Any:
    """What boto3 keeps of the answer behind its error; nothing where there was none."""
    return (getattr(error, "response", None) or {}).get(part, {})


def broken_off(location: object, error: Exception | None = None) -> BrokenOffError:
    """The error of a body that ended early, or came no further."""
    cause = type(error).__name__.removesuffix("Error") if error else "too short"
    return BrokenOffError(f"cannot read {location}: the answer broke off ({cause}) → check the network")

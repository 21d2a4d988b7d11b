"""The process's clients for S3: bounded time and retries, and what the environment sets.

The endpoint is `S3_ENDPOINT_URL`, else boto3's own `AWS_ENDPOINT_URL_S3` and `AWS_ENDPOINT_URL`; credentials, profile
(`AWS_PROFILE`) and region come from boto3's usual chain. Beside them:

- `CONVERGATE_S3_SSE`: `AES256` or `aws:kms`, the server-side encryption that every written object asks for.
  Not set: the bucket's default.
- `CONVERGATE_S3_SSE_KMS_KEY_ID`: the key for `aws:kms`. Not set: the bucket's or account's own.
- `CONVERGATE_S3_ADDRESSING`: `path`, `virtual` or `auto`. Not set: `path` with an endpoint, else what boto3's
  configuration says.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, partial
from random import SystemRandom
from threading import Lock
from typing import TYPE_CHECKING, Any

from ..errors import UserError
from .errors import S3Error

if TYPE_CHECKING:
    import boto3
    from mypy_boto3_s3 import S3Client

CONNECT_TIMEOUT_S = 3
READ_TIMEOUT_S = 20
MAX_ATTEMPTS = 3
POOL_CONNECTIONS = 10
STREAM_POOL_CONNECTIONS = 32
_ENDPOINT_VARIABLES = ("S3_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
_making: dict[int, Lock] = {}
"""By process: a fork may come while another thread holds it."""
_ENCRYPTED_OPERATIONS = ("PutObject", "CreateMultipartUpload", "CopyObject")


@dataclass(frozen=True)
class _Options:
    """What a client is made from; another value makes another client, and so does a fork."""

    endpoint: str | None = field(repr=False)
    access_key: str | None = field(repr=False)
    profile: str | None
    encryption: str | None
    encryption_key: str | None
    addressing: str | None
    process: int

    @classmethod
    def from_environment(cls) -> "_Options":
        encryption = _chosen("CONVERGATE_S3_SSE", ("AES256", "aws:kms"))
        encryption_key = os.environ.get("CONVERGATE_S3_SSE_KMS_KEY_ID") or None
        if encryption_key and encryption != "aws:kms":
            raise UserError("CONVERGATE_S3_SSE_KMS_KEY_ID is set without its encryption → CONVERGATE_S3_SSE=aws:kms")
        return cls(
            endpoint=_without_user(endpoint_url()),
            access_key=os.environ.get("AWS_ACCESS_KEY_ID"),
            profile=os.environ.get("AWS_PROFILE"),
            encryption=encryption,
            encryption_key=encryption_key,
            addressing=_chosen("CONVERGATE_S3_ADDRESSING", ("path", "virtual", "auto")),
            process=os.getpid(),
        )


def s3_client() -> "S3Client":
    """The process's client; thread-safe, made anew after a fork or when the environment says something else.

    Raises:
        UserError: for a variable with a wrong value.
        S3Error: for an endpoint that is no URL.
    """
    return _only_one_at_a_time(_Options.from_environment(), streams=False)


def stream_client() -> "S3Client":
    """As `s3_client`, for large bodies whose checksums the caller sends and compares: payloads are not signed.

    A signature over the payload is a SHA-256 of every byte, which takes longer than sending it.
    """
    return _only_one_at_a_time(_Options.from_environment(), streams=True)


def _without_user(endpoint: str | None) -> str | None:
    """The endpoint; nothing of it may be a secret, for it is in messages."""
    if endpoint is not None and "@" in endpoint:
        raise UserError(
            "the S3 endpoint holds a user or a password → leave them out; AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY"
        )
    return endpoint


def endpoint_url() -> str | None:
    """The configured endpoint, or None for AWS itself."""
    return next((os.environ[name] for name in _ENDPOINT_VARIABLES if os.environ.get(name)), None)


def shown_endpoint() -> str:
    """The endpoint for a message."""
    return endpoint_url() or "AWS S3"


def _chosen(name: str, values: tuple[str, ...]) -> str | None:
    value = os.environ.get(name) or None
    if value is not None and value not in values:
        raise UserError(f"{name}={value!r} is unknown → {', '.join(values[:-1])} or {values[-1]}")
    return value


def _only_one_at_a_time(options: _Options, *, streams: bool) -> "S3Client":
    with _making.setdefault(options.process, Lock()):
        return _client(options, streams)


@cache
def _session(_options: _Options) -> "boto3.Session":
    """Not boto3's default session, which keeps the first credentials that it met; making one takes 0.1 s."""
    import boto3

    return boto3.Session()


@cache
def _client(options: _Options, streams: bool) -> "S3Client":
    from botocore.config import Config

    addressing = options.addressing or ("path" if options.endpoint else None)
    style: Any = {"addressing_style": addressing} if addressing else {}
    checksums: Any = "when_required" if streams or options.endpoint else "when_supported"
    config = Config(
        # urllib3 bounds sending by the timeout for connecting, and a large block may wait for the server's disk.
        connect_timeout=READ_TIMEOUT_S if streams else CONNECT_TIMEOUT_S,
        read_timeout=READ_TIMEOUT_S,
        retries={"total_max_attempts": MAX_ATTEMPTS, "mode": "standard"},
        max_pool_connections=STREAM_POOL_CONNECTIONS if streams else POOL_CONNECTIONS,
        s3=style | ({"payload_signing_enabled": False} if streams else {}),
        request_checksum_calculation=checksums,
        response_checksum_validation=checksums,
    )
    session = _session(options)
    region = os.environ.get("AWS_REGION") or session.region_name or "us-east-1"
    try:
        with _jitter_of_its_own():
            client = session.client("s3", endpoint_url=options.endpoint, region_name=region, config=config)
    except ValueError as error:
        raise S3Error(f"the S3 endpoint {shown_endpoint()} is no URL → AWS_ENDPOINT_URL=https://host:port") from error
    encrypted: Any = partial(_encrypted, options)
    for operation in _ENCRYPTED_OPERATIONS if options.encryption else ():
        client.meta.events.register(f"provide-client-params.s3.{operation}", encrypted)
    return client


def _encrypted(options: _Options, params: dict[str, Any], **_: object) -> dict[str, Any]:
    """The parameters of a write, with the encryption that it asks for."""
    key = {"SSEKMSKeyId": options.encryption_key} if options.encryption_key else {}
    return {**params, "ServerSideEncryption": options.encryption, **key}


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

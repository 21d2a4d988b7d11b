"""S3: clients with bounded time and retries, errors in words, large streams, and a run's documents.

- `s3`: `S3Store`, `S3Location`: whole objects, listings.
- `streams`: large objects from and into memory, in parallel parts, checked from end to end.
- `checksums`: CRC64-NVME and SHA-256 of their parts, and whether the server compares them.
- `transfer`: the threads of a stream: bounded time, one end for all, their pace.
- `client`: boto3's clients and the environment's say in them; the only place that makes one.
- `answers`, `errors`: what S3 answers, in words and as exceptions.
- `run_store`: `RunStore`, the documents, trace and report of one run under its prefix.
"""

from .errors import BucketNotFoundError, DamagedError, ObjectExistsError, S3Error, S3NotFoundError
from .run_store import RunStore
from .s3 import Entry, PendingUpload, S3Location, S3Store

__all__ = [
    "BucketNotFoundError",
    "DamagedError",
    "Entry",
    "ObjectExistsError",
    "PendingUpload",
    "RunStore",
    "S3Error",
    "S3Location",
    "S3NotFoundError",
    "S3Store",
]

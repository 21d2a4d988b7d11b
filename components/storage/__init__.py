"""S3: one client with bounded time and retries, errors in words, and a run's documents.

- `s3`: `S3Store`, `S3Location`; the only place that talks to boto3 apart from checkpoints' own streams.
- `run_store`: `RunStore`, the documents, trace and report of one run under its prefix.
"""

from .run_store import RunStore
from .s3 import ObjectExistsError, S3Error, S3Location, S3NotFoundError, S3Store

__all__ = ["ObjectExistsError", "RunStore", "S3Error", "S3Location", "S3NotFoundError", "S3Store"]

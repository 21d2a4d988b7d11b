"""The number of a start of the processes: claimed once, on S3, so that no two ever share one."""

import json
import os
from contextlib import suppress

from ..checkpoint import CheckpointStore
from ..errors import UserError
from ..storage import ObjectExistsError, S3Location, S3Store
from .job import Job

MAX_ATTEMPTS = 1000
CLAIMS = ".attempts"
"""What is added to the URI of a result, for the folder of its claims."""


def last_attempt(result_uri: str, checkpoints: CheckpointStore) -> int:
    """The largest number that is taken, by a claim beside the result or by what the checkpoints know; 0 for none.

    The claims alone would not do: where they are gone, a number that is older than a checkpoint's would never count.
    """
    claims = S3Store().list(S3Location.parse(result_uri + CLAIMS))
    return max([checkpoints.newest_attempt(), *(int(location.name.removesuffix(".json")) for location in claims)])


def claim_attempt(job: Job) -> int:
    """The next number, the same on every rank, claimed by rank 0; a rollback begins a new attempt too."""
    from ..checkpoint.ranks import from_rank_0  # torch, which whoever launches the processes does without

    return from_rank_0(lambda: _claim(job))


def _claim(job: Job) -> int:
    store, root = S3Store(), S3Location.parse(job.result_uri + CLAIMS)
    taken = last_attempt(job.result_uri, CheckpointStore(job.checkpoint_uri, job.run_id))
    for number in range(taken + 1, MAX_ATTEMPTS):
        with suppress(ObjectExistsError):
            store.create(root / f"{number:03}.json", json.dumps({"pid": os.getpid()}).encode())
            return number
    raise UserError(f"run {job.run_id} was started {MAX_ATTEMPTS - 1} times → another name: --run NAME")

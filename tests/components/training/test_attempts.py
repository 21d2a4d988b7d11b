"""Numbers of attempts: each once, and beyond whatever the checkpoints know of."""

import pytest
import torch
from convergate.components.checkpoint import CheckpointStore
from convergate.components.storage import S3Location, S3Store
from convergate.components.training.attempts import CLAIMS, claim_attempt, last_attempt
from convergate.components.training.job import Job

from ...checkpoints import commit


@pytest.fixture
def job(s3: str) -> Job:
    return Job(
        run_id="run",
        config_text="",
        seed=1,
        checkpoint_uri=f"{s3}/checkpoints",
        trace_uri=f"{s3}/trace",
        result_uri=f"{s3}/training.json",
    )


def taken(job: Job) -> int:
    return last_attempt(job.result_uri, CheckpointStore(job.checkpoint_uri, job.run_id))


def test_each_start_gets_the_next_number(job: Job) -> None:
    assert taken(job) == 0
    assert [claim_attempt(job) for _ in range(3)] == [1, 2, 3]
    assert taken(job) == 3


@pytest.mark.parametrize("known_by", ["a checkpoint", "a tombstone"])
def test_where_the_claims_are_gone_the_checkpoints_tell(job: Job, known_by: str) -> None:
    claim_attempt(job)
    store = CheckpointStore(job.checkpoint_uri, job.run_id)
    if known_by == "a checkpoint":
        commit(job.checkpoint_uri, job.run_id, {"w": torch.ones(1)}, attempt=4)
    else:
        store.give_up(4, 100)
    for claim in list(S3Store().list(S3Location.parse(job.result_uri + CLAIMS))):
        S3Store().delete(claim)
    assert taken(job) == 4
    assert claim_attempt(job) == 5
    commit(job.checkpoint_uri, job.run_id, {"w": torch.ones(1)}, attempt=5, step=300)
    assert next(store.live()).attempt == 5

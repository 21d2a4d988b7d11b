"""Job: what the launcher tells every worker process, in one JSON file that holds a list of them."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from ..config import RunConfig, parse_config
from ..errors import UserError

Phase = Literal["canary", "train"]
"""Which of a run's launches."""


class Job(BaseModel):
    """One training, or a part of one, that a launch of worker processes does."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    run_id: str
    config_text: str
    seed: int
    checkpoint_uri: str
    trace_uri: str
    result_uri: str
    """Where rank 0 writes the TrainingResult."""
    oldest_attempt: int = 1
    """Checkpoints of attempts before it are not resumed; the newest of the others is."""
    resume_from: str | None = None
    """The checkpoint to resume where there is none such yet; None starts anew."""
    init_uri: str = ""
    """The checkpoint whose model's weights a start anew begins with; empty is random ones."""
    init_digest: str = ""
    stop_at_step: int | None = None
    """End before this step without finishing the schedule; the canary runs the first steps only."""
    total_steps: int | None = None
    """Compress the schedule to this many steps."""
    checkpoint_every: int | None = None
    accumulation: int | None = None
    """Instead of the config's, so that fewer processes keep the global batch."""
    kill_at_step: int | None = None
    """In the first attempt, the last rank kills itself (SIGKILL) before this step: the canary's restart drill."""

    def config(self) -> RunConfig:
        """The run's config."""
        return parse_config(self.config_text)


JOBS = TypeAdapter(list[Job])
"""A launch's jobs, to and from JSON."""
_ARGUMENTS = TypeAdapter(list[dict[str, Any]])


def jobs_to_argument(jobs: list[Job]) -> str:
    """A launch's jobs as the JSON of one argument, without their config, which is too long for one: it is mounted."""
    return JOBS.dump_json(jobs, exclude={"__all__": {"config_text"}}, exclude_defaults=True).decode()


def jobs_from_argument(argument: str, config_text: str) -> list[Job]:
    """The jobs that `jobs_to_argument` gave, with their config again.

    Raises:
        UserError: when it is not such JSON.
    """
    try:
        return [Job.model_validate({**job, "config_text": config_text}) for job in _ARGUMENTS.validate_json(argument)]
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UserError(
            f"--jobs: not a JSON list of this version's jobs: {where} {first['msg']} → the image of the step that"
            " launches and that of the nodes have to be one"
        ) from error

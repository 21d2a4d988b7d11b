"""RunPlan: what `validate_config` gives to every later step."""

from .document import Document, Verdict


class RunPlan(Document):
    """A validated config with everything that is derived from it."""

    verdict: Verdict
    problems: list[str] = []
    """Errors and warnings, one line each; errors alone make the verdict FAIL."""
    num_checks: int
    experiment: str
    model: str
    training_digest: str
    policy_digest: str
    seed: str
    """The run's derived 32-bit seed, in decimal; a string since KFP numbers are doubles."""
    total_steps: int
    steps_per_epoch: int
    num_train_samples: int
    world_size: int
    commit: str | None = None
    """The commit of the code that ran, where it is known."""
    image: str | None = None
    """The image, by digest where it is known."""

"""RunPlan: what `validate_config` gives to every later step."""

import os
import subprocess
from collections.abc import Callable
from time import perf_counter

from pydantic import Field

from ..errors import UserError
from .digest import config_digests, derive_seed
from .document import Document, Verdict
from .identity import identity
from .loading import parse_config
from .models import RunConfig
from .preflight import Facts, InitialWeights, preflight
from .problems import Problem, ProblemsError


class RunPlan(Document):
    """A validated config with everything that is derived from it; of a config that is not valid, what is wrong."""

    verdict: Verdict
    problems: list[str] = Field(default_factory=list)
    """Errors and warnings, one line each; errors alone make the verdict FAIL."""
    num_checks: int
    experiment: str
    model: str
    training_digest: str
    """Empty where the config is not valid, and so are the next two."""
    policy_digest: str
    seed: str
    """The run's derived 32-bit seed, in decimal; a string since KFP numbers are doubles."""
    total_steps: int | None
    """Updates of the run; None where the config counts in epochs, until the data is known."""
    world_size: int
    init_uri: str = ""
    """The checkpoint that `training.init_from` means in this run; empty where the weights are random."""
    init_digest: str = ""
    commit: str | None = None
    """The commit of the code that ran, where it is known."""
    image: str | None = None
    """The image, by digest where it is known."""

    @property
    def reason(self) -> str:
        """The first error, or nothing."""
        return next((problem for problem in self.problems if problem.startswith("error")), "")

    def to_markdown(self) -> str:
        """The plan as a person reads it in the UI."""
        lines = [f"**{self.verdict}** {self.summary}", "", *(f"- {problem}" for problem in self.problems), ""]
        facts = {
            "training digest": self.training_digest,
            "policy digest": self.policy_digest,
            "seed": self.seed,
            "steps": self.total_steps,
            "initial weights": self.init_uri,
            "their digest": self.init_digest,
            "commit": self.commit,
        }
        return "\n".join([*lines, *(f"- {name}: `{value}`" for name, value in facts.items() if value)]) + "\n"


def plan_run(
    config_text: str,
    run_id: str,
    find_initial: Callable[[RunConfig, str], InitialWeights | None] = lambda _config, _run_id: None,
) -> RunPlan:
    """The plan of a config's text; a text that is no valid config gets FAIL, with every problem.

    Args:
        config_text: The YAML.
        run_id: The run's id.
        find_initial: Finds what `training.init_from` means in this run; nothing where the key is null.

    Raises:
        UserError: when the text does not even name an experiment and a model.
    """
    try:
        config = parse_config(config_text)
    except ProblemsError as error:
        problems = error.problems
    else:
        return make_plan(config, run_id, Facts(initial=find_initial(config, run_id)))
    named = identity(config_text)
    return RunPlan(
        run_id=run_id,
        summary=f"{len(problems)} problem{'s' * (len(problems) > 1)}",
        verdict="FAIL",
        problems=[_line(problem) for problem in problems],
        num_checks=0,
        experiment=named.experiment,
        model=named.model,
        training_digest="",
        policy_digest="",
        seed="",
        total_steps=None,
        world_size=0,
        commit=current_commit(),
        image=os.environ.get("CONVERGATE_IMAGE"),
    )


def make_plan(config: RunConfig, run_id: str, facts: Facts | None = None) -> RunPlan:
    """Run preflight and derive what the run needs.

    Raises:
        UserError: when the config names initial weights, and the facts don't say which checkpoint that is.
    """
    started = perf_counter()
    facts = facts or Facts()
    if config.training.init_from is not None and facts.initial is None:
        raise UserError(f"training.init_from = {config.training.init_from}: nobody looked it up → Facts(initial=…)")
    found, initial = preflight(config, facts), facts.initial or InitialWeights()
    digests = config_digests(config)
    total_steps = config.schedule.total_steps
    if total_steps is None and facts.num_train_samples is not None:
        total_steps = config.total_steps(facts.num_train_samples)
    warnings = len(found.problems) - len(found.errors)
    return RunPlan(
        run_id=run_id,
        seconds=perf_counter() - started,
        summary=f"{found.num_checks} checks" + (f", {warnings} warning{'s' * (warnings > 1)}" if warnings else ""),
        verdict="FAIL" if found.errors else "PASS",
        problems=[_line(problem) for problem in found.problems],
        num_checks=found.num_checks,
        experiment=config.experiment,
        model=config.promotion.model,
        training_digest=digests.training,
        policy_digest=digests.policy,
        seed=str(derive_seed(config, run_id)),
        total_steps=total_steps,
        world_size=config.distributed.world_size,
        init_uri=initial.uri,
        init_digest=initial.digest,
        commit=current_commit(),
        image=os.environ.get("CONVERGATE_IMAGE"),
    )


def _line(problem: Problem) -> str:
    return f"{problem.level}: {problem.line}"


def current_commit() -> str | None:
    """The commit from the environment of an image, or of the checkout that this runs in."""
    if os.environ.get("CONVERGATE_COMMIT"):
        return os.environ["CONVERGATE_COMMIT"]
    try:
        answer = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()

"""Measure the candidate, and the champion on the same samples, and judge."""

import math
from textwrap import shorten
from time import perf_counter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic.dataclasses import dataclass
from torch import nn
from torch.utils.data import DataLoader

from ..checkpoint import CheckpointError, load_model_state
from ..config import Check, RunConfig
from ..config.document import Verdict, overall
from ..config.models import TaskConfig
from ..errors import ConvergateError, UserError
from ..storage import RunStore, S3Error, S3NotFoundError
from ..task import Task, load_task
from ..training.batches import to_device
from ..training.result import TrainingResult
from .interval import mean_interval
from .result import Evaluation

BATCH_SIZE = 256
MESSAGE_CHARACTERS = 300


@dataclass(frozen=True, slots=True)
class Champion:
    """The model to beat: its released checkpoint; both empty where there is none yet."""

    uri: str = ""
    digest: str = ""
    task: TaskConfig | None = None
    """What makes its model; None where nobody kept it, and the candidate's task has to do."""


def evaluate_candidate(config: RunConfig, training: TrainingResult, champion: Champion) -> Evaluation:
    """Evaluate the checkpoint of a training; stores and returns the evaluation.

    Raises:
        UserError: when the task has no score of the configured name, an empty test split, or scores that fail.
        CheckpointError: when the candidate's checkpoint does not verify, or does not fit its model.
        S3Error: when S3 fails, also while the champion is scored.
    """
    started = perf_counter()
    task = load_task(config.task)
    scores = score_model(task, load_model(task, training.checkpoint_uri, training.checkpoint_digest))
    name, policy = config.evaluation.metric, config.evaluation
    if name not in scores:
        raise UserError(f"evaluation.metric = {name}: the task scores {', '.join(sorted(scores))} → one of these")
    values = scores[name]
    value, (low, high) = float(values.mean()), mean_interval(values)
    checks = [_finite(scores), _target(value, policy.target, policy.mode)]
    champion_value, comparison = _against_champion(task, champion, name, value, config)
    if comparison is not None:
        checks.append(comparison)
    reached = checks[1].passed
    beaten = "no champion yet" if not champion.uri else f"champion {_number(champion_value)}"
    evaluation = Evaluation(
        run_id=training.run_id,
        seconds=perf_counter() - started,
        summary=f"{name} {value:.3f} [{low:.3f}, {high:.3f}], target {policy.target:g}, {beaten}",
        verdict=overall(checks),
        checks=checks,
        metric=name,
        value=value,
        low=low,
        high=high,
        target=policy.target,
        num_samples=values.size,
        metrics={score: float(v.mean()) for score, v in scores.items()},
        champion_uri=champion.uri or None,
        champion_value=champion_value,
        checkpoint_uri=training.checkpoint_uri,
        checkpoint_digest=training.checkpoint_digest,
        reached_target=reached,
    )
    RunStore(config.storage.uri, training.run_id).put("evaluation", evaluation)
    return evaluation


def load_model(task: Task, uri: str, digest: str) -> nn.Module:
    """The task's model with the weights of a checkpoint, on the CPU.

    Raises:
        UserError: when the task gives no model.
        CheckpointError: when the checkpoint does not verify, or does not fit the model.
    """
    state = load_model_state(uri, digest)
    try:
        model = task.model()
    except Exception as error:
        raise UserError(f"task.model() failed: {_in_a_line(error)}") from error
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        cause = shorten(str(error), MESSAGE_CHARACTERS, placeholder=" …")
        raise CheckpointError(f"{uri} does not fit the task's model: {cause}") from error
    return model


def score_model(task: Task, model: nn.Module) -> dict[str, NDArray[np.float64]]:
    """Every score of every test sample, by name; arrays of shape [samples].

    Raises:
        UserError: when the test split is empty, or a score fails, or is not one value a sample.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device).eval()
    dataset: Any = task.dataset("test")
    if len(dataset) == 0:
        raise UserError("the task's test split is empty: nothing can be evaluated")
    parts: dict[str, list[NDArray[np.float64]]] = {}
    with torch.inference_mode():
        for batch in DataLoader(dataset, batch_size=BATCH_SIZE):
            try:
                found = task.scores(model, to_device(batch, device))
            except Exception as error:
                raise UserError(f"the task's scores() failed: {_in_a_line(error)}") from error
            for name, values in found.items():
                parts.setdefault(name, []).append(np.atleast_1d(values.double().cpu().numpy()))
    scores = {name: np.concatenate(values) for name, values in parts.items()}
    for name, array in scores.items():
        if array.shape != (len(dataset),):
            raise UserError(
                f"the task's scores() gave {name} in the shape {list(array.shape)} for {len(dataset)} samples"
                " → one value a sample"
            )
    return scores


def _finite(scores: dict[str, NDArray[np.float64]]) -> Check:
    bad = {name: int((~np.isfinite(values)).sum()) for name, values in scores.items()}
    total = sum(bad.values())
    reason = "" if total == 0 else f"the model gives scores that are not finite: {bad}"
    return _check("finite scores", total == 0, f"{total} not finite", "0", reason)


def _target(value: float, target: float, mode: str) -> Check:
    good = value >= target if mode == "max" else value <= target
    relation = "≥" if mode == "max" else "≤"
    return _check("target", good, f"{value:.4g}", f"{relation} {target:g}", f"{value:.4g} misses the target {target:g}")


def _against_champion(
    task: Task, champion: Champion, name: str, value: float, config: RunConfig
) -> tuple[float | None, Check | None]:
    """The champion's value on the same samples, and the check; nothing where there is no champion.

    Its own task makes its model, which may be another one than the candidate's; `task` gives samples and scores.
    """
    if not champion.uri:
        return None, None
    label, policy = "not worse than the champion", config.evaluation
    best, problem = math.nan, f"its {name} is not finite"
    try:
        own = load_task(champion.task) if champion.task else task
        best = float(score_model(task, load_model(own, champion.uri, champion.digest))[name].mean())
    except ConvergateError as error:
        if isinstance(error, S3Error) and not isinstance(error, S3NotFoundError):
            raise  # S3 fails, and not the champion: the step is tried again
        problem = str(error)
    if not math.isfinite(best):
        reason = f"the champion cannot be measured: {problem}"
        return None, Check(name=label, verdict="INCONCLUSIVE", figure="unknown", threshold="", reason=reason)
    margin = policy.margin_vs_champion
    good = value >= best - margin if policy.mode == "max" else value <= best + margin
    threshold = f"≥ {best:.4g} - {margin:g}" if policy.mode == "max" else f"≤ {best:.4g} + {margin:g}"
    return best, _check(label, good, f"{value:.4g}", threshold, f"the champion has {best:.4g} on the same samples")


def _check(name: str, good: bool, figure: str, threshold: str, reason: str) -> Check:
    verdict: Verdict = "PASS" if good else "FAIL"
    return Check(name=name, verdict=verdict, figure=figure, threshold=threshold, reason="" if good else reason)


def _in_a_line(error: Exception) -> str:
    return shorten(f"{type(error).__name__}: {error}", MESSAGE_CHARACTERS, placeholder=" …")


def _number(value: float | None) -> str:
    return "unknown" if value is None or not math.isfinite(value) else f"{value:.3f}"

"""Measure the candidate, and the champion on the same samples, and judge."""

import math
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from ..checkpoint import CheckpointError, load_model_state
from ..config import Check, RunConfig
from ..config.document import Verdict, overall
from ..errors import ConvergateError, UserError
from ..storage import RunStore
from ..task import Task, load_task
from ..training.batches import to_device
from ..training.result import TrainingResult
from .interval import mean_interval
from .result import Evaluation

BATCH_SIZE = 256


@dataclass(frozen=True, slots=True)
class Champion:
    """The model to beat: its released checkpoint; both empty where there is none yet."""

    uri: str = ""
    digest: str = ""


def evaluate_candidate(config: RunConfig, training: TrainingResult, champion: Champion) -> Evaluation:
    """Evaluate the checkpoint of a training; stores and returns the evaluation.

    Raises:
        UserError: when the task has no score of the configured name, or an empty test split.
        CheckpointError: when the candidate's checkpoint does not verify.
    """
    started = perf_counter()
    task = load_task(config.task)
    scores = score_checkpoint(task, training.checkpoint_uri, training.checkpoint_digest)
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


def score_checkpoint(task: Task, uri: str, digest: str) -> dict[str, NDArray[np.float64]]:
    """Every score of every test sample, by name; arrays of shape [samples].

    Raises:
        CheckpointError: when the checkpoint does not verify, or does not fit the model.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = task.model()
    state = load_model_state(uri, digest)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise CheckpointError(f"{uri} does not fit the task's model: {str(error).splitlines()[0]}") from error
    model.to(device).eval()
    dataset: Any = task.dataset("test")
    if len(dataset) == 0:
        raise UserError("the task's test split is empty: nothing can be evaluated")
    parts: dict[str, list[NDArray[np.float64]]] = {}
    with torch.inference_mode():
        for batch in DataLoader(dataset, batch_size=BATCH_SIZE):
            for name, values in task.scores(model, to_device(batch, device)).items():
                parts.setdefault(name, []).append(values.double().cpu().numpy())
    return {name: np.concatenate(values) for name, values in parts.items()}


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
    """The champion's value on the same samples, and the check; nothing where there is no champion."""
    if not champion.uri:
        return None, None
    label, policy = "not worse than the champion", config.evaluation
    try:
        best = float(score_checkpoint(task, champion.uri, champion.digest)[name].mean())
    except ConvergateError as error:
        reason = f"the champion cannot be measured: {error}"
        return None, Check(name=label, verdict="INCONCLUSIVE", figure="unknown", threshold="", reason=reason)
    margin = policy.margin_vs_champion
    good = value >= best - margin if policy.mode == "max" else value <= best + margin
    threshold = f"{best:.4g} {'-' if policy.mode == 'max' else '+'} {margin:g}"
    return best, _check(label, good, f"{value:.4g}", threshold, f"the champion has {best:.4g} on the same samples")


def _check(name: str, good: bool, figure: str, threshold: str, reason: str) -> Check:
    verdict: Verdict = "PASS" if good else "FAIL"
    return Check(name=name, verdict=verdict, figure=figure, threshold=threshold, reason="" if good else reason)


def _number(value: float | None) -> str:
    return "unknown" if value is None or not math.isfinite(value) else f"{value:.3f}"

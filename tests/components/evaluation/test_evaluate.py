"""A candidate from a real checkpoint: its exact score, against its target and against the champion.

Models here answer every image alike, by the bias of their head, so that each score is known exactly.
"""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from convergate.components.checkpoint import CheckpointError, CheckpointRef
from convergate.components.checkpoint.reading import read_manifest
from convergate.components.config import RunConfig
from convergate.components.config.models import TaskConfig
from convergate.components.errors import ExitCode, UserError
from convergate.components.evaluation import Evaluation
from convergate.components.evaluation.evaluate import Champion, evaluate_candidate
from convergate.components.evaluation.interval import binomial_interval
from convergate.components.storage import RunStore, S3Error, S3Location, S3NotFoundError, S3Store
from convergate.components.task.resnet import ResNet
from convergate.components.training.result import TrainingResult

from ...checkpoints import blob
from ...checkpoints import commit as commit_checkpoint

WIDTH = 4
NUM_TEST = 269
SHARE_OF_3, SHARE_OF_8 = 27 / NUM_TEST, 26 / NUM_TEST
"""The test split's accuracy of models that say 3, or 8, to every image."""

NOBODY = Champion()

MakeConfig = Callable[..., RunConfig]


@pytest.fixture
def config(s3: str) -> MakeConfig:
    """A config whose evaluation is given."""

    def make(task: str = "convergate.components.task.digits:DigitsTask", **evaluation: Any) -> RunConfig:
        raw: dict[str, Any] = {
            "schema_version": 1,
            "experiment": "digits",
            "task": {"factory": task, "params": {"width": WIDTH}},
            "schedule": {"lr0": 0.1, "total_steps": 10},
            "training": {"batch_size": 8},
            "storage": {"uri": s3},
            "evaluation": {"metric": "accuracy", "target": 0.05} | evaluation,
            "promotion": {"model": "digits"},
        }
        return RunConfig.model_validate(raw)

    return make


TASKS = """
import os
from torch import nn
from torch.utils.data import Subset
from convergate.components.task.digits import DigitsTask

class Empty(DigitsTask):
    def dataset(self, split):
        return Subset(super().dataset(split), [])

class Mean(DigitsTask):
    def scores(self, model, batch):
        return {name: values.mean() for name, values in super().scores(model, batch).items()}

class Pairs(DigitsTask):
    def scores(self, model, batch):
        return {name: values.repeat(2, 1).T for name, values in super().scores(model, batch).items()}

class Modelless(DigitsTask):
    def model(self):
        raise OSError("no such file: weights.bin")

class Rows(DigitsTask):
    def model(self):
        return nn.Sequential(nn.Flatten(), nn.Linear(3, 10))

class Locking(DigitsTask):
    def __init__(self, width):
        super().__init__(width)
        os.environ["AWS_ACCESS_KEY_ID"] = "nobody"
"""


@pytest.fixture
def odd_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module `odd_tasks` in the current folder."""
    (tmp_path / "odd_tasks.py").write_text(TASKS)
    monkeypatch.chdir(tmp_path)


def save(root: str, run_id: str, bias: list[float], width: int = WIDTH) -> Champion:
    """A committed checkpoint of a model whose logits are `bias` for every image."""
    state = ResNet(width=width, num_classes=10).state_dict()
    state["head.weight"] = torch.zeros_like(state["head.weight"])
    state["head.bias"] = torch.tensor(bias)
    return commit(root, run_id, state)


def commit(root: str, run_id: str, state: Mapping[str, torch.Tensor]) -> Champion:
    """A committed checkpoint of a model."""
    tensors = {f"model.{name}": tensor for name, tensor in state.items()}
    ref = commit_checkpoint(f"{root}/checkpoints", run_id, tensors)
    return Champion(ref.uri, read_manifest(ref.uri)[1])


def says(digit: int, confidence: float = 3.0) -> list[float]:
    return [confidence if other == digit else 0.0 for other in range(10)]


def training(checkpoint: Champion) -> TrainingResult:
    """The result of a training that ended with this checkpoint."""
    return TrainingResult(
        run_id="run-1",
        verdict="PASS",
        reason="",
        status="completed",
        attempts=1,
        final_step=10,
        total_steps=10,
        train_loss=1.0,
        val_metrics={},
        max_lr_deviation=0.0,
        lr_sync_errors=0,
        anomalous=False,
        untreated=[],
        checkpoint_uri=checkpoint.uri,
        checkpoint_digest=checkpoint.digest,
        trace_uri="s3://b/trace",
        world_size=1,
        device="cpu",
        train_seconds=1.0,
        gpu_hours=0.0,
    )


def evaluate(config: RunConfig, bias: list[float], champion: Champion = NOBODY) -> Evaluation:
    return evaluate_candidate(config, training(save(config.storage.uri, "run-1", bias)), champion)


def verdicts(evaluation: Evaluation) -> dict[str, str]:
    return {check.name: check.verdict for check in evaluation.checks}


def test_its_scores_are_exact_and_the_evaluation_is_stored(config: MakeConfig) -> None:
    chosen = config()
    found = evaluate(chosen, says(3))
    assert found.value == pytest.approx(SHARE_OF_3, abs=1e-12)
    assert (found.low, found.high) == binomial_interval(27, NUM_TEST)
    assert (found.metric, found.num_samples, found.target) == ("accuracy", NUM_TEST, 0.05)
    total = math.log(math.exp(3) + 9)
    assert found.metrics["loss"] == pytest.approx(total - 3 * SHARE_OF_3, rel=1e-6)
    assert found.metrics["accuracy"] == found.value
    assert (found.verdict, found.reached_target, found.reason) == ("PASS", True, "")
    assert found.summary == "accuracy 0.100 [0.067, 0.143], target 0.05, no champion yet"
    assert (found.champion_uri, found.champion_value) == (None, None)
    assert RunStore(chosen.storage.uri, "run-1").get("evaluation", Evaluation) == found


@pytest.mark.parametrize(
    ("evaluation", "reached"),
    [
        ({"metric": "accuracy", "mode": "max", "target": SHARE_OF_3}, True),
        ({"metric": "accuracy", "mode": "max", "target": SHARE_OF_3 + 1e-9}, False),
        ({"metric": "accuracy", "mode": "min", "target": SHARE_OF_3}, True),
        ({"metric": "accuracy", "mode": "min", "target": SHARE_OF_3 - 1e-9}, False),
        ({"metric": "loss", "mode": "min", "target": 3.1}, True),
        ({"metric": "loss", "mode": "min", "target": 3.0}, False),
    ],
)
def test_the_target_is_reached_from_its_own_side(config: MakeConfig, evaluation: dict[str, Any], reached: bool) -> None:
    found = evaluate(config(**evaluation), says(3))
    assert verdicts(found) == {"finite scores": "PASS", "target": "PASS" if reached else "FAIL"}
    assert (found.verdict, found.reached_target) == ("PASS" if reached else "FAIL", reached)
    assert ("misses the target" in found.reason) != reached


BETTER = {"max": (3, 8), "min": (8, 3)}


@pytest.mark.parametrize(
    ("mode", "candidate", "champion", "margin", "good"),
    [
        ("max", 0, 1, 0.0, True),
        ("max", 1, 0, 0.0, False),
        ("max", 1, 0, 0.003, False),
        ("max", 1, 0, 0.004, True),
        ("max", 0, 0, 0.0, True),
        ("min", 0, 1, 0.0, True),
        ("min", 1, 0, 0.003, False),
        ("min", 1, 0, 0.004, True),
    ],
)
def test_the_champion_is_measured_on_the_same_samples(
    config: MakeConfig, s3: str, mode: str, candidate: int, champion: int, margin: float, good: bool
) -> None:
    """Accuracies of 26 and 27 in 269, 0.0037 apart; `candidate` and `champion` are 0 for the better of the two."""
    digits = BETTER[mode]
    chosen = config(target=0.05 if mode == "max" else 0.2, mode=mode, margin_vs_champion=margin)
    found = evaluate(chosen, says(digits[candidate]), save(s3, "champion", says(digits[champion])))
    value = {3: SHARE_OF_3, 8: SHARE_OF_8}[digits[champion]]
    assert found.champion_value == pytest.approx(value, abs=1e-12)
    assert verdicts(found)["not worse than the champion"] == ("PASS" if good else "FAIL")
    assert found.verdict == ("PASS" if good else "FAIL")
    assert f"champion {value:.3f}" in found.summary
    sign = {"max": f"≥ {value:.4g} - {margin:g}", "min": f"≤ {value:.4g} + {margin:g}"}[mode]
    assert found.checks[-1].threshold == sign


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_scores_that_are_not_finite_fail_and_have_no_interval(config: MakeConfig, s3: str, bad: float) -> None:
    found = evaluate(config(metric="loss", mode="min", target=100), [bad] * 10, save(s3, "champion", says(3)))
    assert verdicts(found) == {"finite scores": "FAIL", "target": "FAIL", "not worse than the champion": "FAIL"}
    assert found.checks[0].figure == f"{NUM_TEST} not finite"
    assert found.reason.startswith("finite scores: the model gives scores that are not finite: {'loss': 269")
    assert math.isnan(found.value)
    assert math.isnan(found.low)
    stored = RunStore(s3, "run-1").get("evaluation", Evaluation)
    assert math.isnan(stored.value)
    assert "nan" in stored.to_markdown()


def test_a_score_that_is_not_the_metric_has_to_be_finite_too(config: MakeConfig) -> None:
    found = evaluate(config(), [math.nan] * 10)
    assert found.metric == "accuracy"
    assert found.verdict == "FAIL"
    assert not math.isnan(found.value)


def digits_task(**params: Any) -> TaskConfig:
    return TaskConfig(factory="convergate.components.task.digits:DigitsTask", params=params)


@pytest.mark.parametrize(("digit", "better"), [(3, True), (8, False)])
def test_a_champion_of_another_architecture_is_measured_with_its_own_model(
    config: MakeConfig, s3: str, digit: int, better: bool
) -> None:
    """As find_champion's JSON hands it on: the candidate has half the champion's channels."""
    saved = save(s3, "champion", says(3 if digit == 8 else 8), width=8)
    reference = json.dumps({"uri": saved.uri, "digest": saved.digest, "task": digits_task(width=8).model_dump()})
    found = evaluate(config(), says(digit), Champion(**json.loads(reference)))
    assert found.champion_value == pytest.approx(SHARE_OF_8 if better else SHARE_OF_3, abs=1e-12)
    assert (found.verdict, verdicts(found)["not worse than the champion"]) == (
        ("PASS",) * 2 if better else ("FAIL",) * 2
    )


def damaged(root: str) -> Champion:
    champion = save(root, "champion", says(3))
    S3Store().write(blob_at(champion.uri), b"garbage")
    return champion


def blob_at(uri: str) -> S3Location:
    ref = CheckpointRef.parse(uri)
    assert ref is not None
    return blob(ref)


def incomplete(root: str) -> Champion:
    champion = save(root, "champion", says(3))
    S3Store().delete(blob_at(champion.uri))
    return champion


def of_task(root: str, task: TaskConfig) -> Champion:
    champion = save(root, "champion", says(3))
    return Champion(champion.uri, champion.digest, task)


def of_rows(root: str) -> Champion:
    state = {"1.weight": torch.zeros(10, 3), "1.bias": torch.zeros(10)}
    champion = commit(root, "champion", state)
    return Champion(champion.uri, champion.digest, TaskConfig(factory="odd_tasks:Rows"))


CHAMPIONS: dict[str, tuple[Callable[[str], Champion], str]] = {
    "gone": (lambda root: Champion(f"{root}/releases/none", "0" * 64), "manifest.json does not exist"),
    "no bucket": (lambda root: Champion("s3://no-such-bucket-here/x", "0" * 64), "no such bucket"),
    "changed": (lambda root: Champion(save(root, "champion", says(3)).uri, "0" * 64), "it was changed"),
    "damaged": (damaged, "rank-00000.bin is shorter than it should be"),
    "incomplete": (incomplete, "rank-00000.bin does not exist"),
    "another model": (lambda root: save(root, "champion", says(3), width=8), "does not fit the task's model"),
    "not its task": (lambda root: of_task(root, digits_task(width=8)), "does not fit the task's model"),
    "its task is gone": (lambda root: of_task(root, TaskConfig(factory="gone.tasks:Digits")), "no module gone"),
    "its task is another": (lambda root: of_task(root, digits_task(depth=3)), "task.params: DigitsTask cannot be made"),
    "no model": (lambda root: of_task(root, TaskConfig(factory="odd_tasks:Modelless")), "task.model() failed: OSError"),
    "for other samples": (of_rows, "the task's scores() failed: RuntimeError: mat1 and mat2 shapes cannot be"),
    "not finite": (lambda root: save(root, "champion", [math.nan] * 10), "its loss is not finite"),
}


@pytest.mark.parametrize(("make", "cause"), CHAMPIONS.values(), ids=CHAMPIONS.keys())
def test_a_champion_that_cannot_be_measured_leaves_it_undecided(
    config: MakeConfig, s3: str, odd_tasks: None, make: Callable[[str], Champion], cause: str
) -> None:
    champion = make(s3)
    found = evaluate(config(metric="loss", mode="min", target=100), says(3), champion)
    assert (found.verdict, found.reached_target) == ("INCONCLUSIVE", True)
    assert verdicts(found)["not worse than the champion"] == "INCONCLUSIVE"
    assert found.reason.startswith("not worse than the champion: the champion cannot be measured: ")
    assert cause in found.reason
    assert "\n" not in found.reason
    assert (found.champion_uri, found.champion_value) == (champion.uri, None)
    assert found.summary.endswith("champion unknown")


@pytest.mark.usefixtures("odd_tasks")
def test_s3_that_fails_while_the_champion_is_scored_is_no_verdict(config: MakeConfig, s3: str) -> None:
    """It raises, so that the step is tried again; here S3 refuses from the moment that the champion's task is made."""
    champion = of_task(s3, TaskConfig(factory="odd_tasks:Locking", params={"width": WIDTH}))
    with pytest.raises(S3Error, match=r"cannot read s3://.*/champion/commits/.*\.json: permission denied") as caught:
        evaluate(config(), says(3), champion)
    assert caught.value.exit_code == ExitCode.OUTSIDE


def test_a_candidate_that_fails_is_a_fail_whatever_the_champion(config: MakeConfig, s3: str) -> None:
    assert evaluate(config(target=0.5), says(3), Champion(f"{s3}/none", "0" * 64)).verdict == "FAIL"


def test_a_metric_that_the_task_does_not_score_is_said(config: MakeConfig) -> None:
    with pytest.raises(UserError) as caught:
        evaluate(config(metric="f1"), says(3))
    assert str(caught.value) == "evaluation.metric = f1: the task scores accuracy, loss → one of these"
    assert caught.value.exit_code == ExitCode.USAGE


def test_a_candidate_that_is_gone_changed_or_of_another_model_is_an_outside_failure(
    config: MakeConfig, s3: str
) -> None:
    saved, wider = save(s3, "run-1", says(3)), save(s3, "run-2", says(3), width=8)
    S3Store().delete(blob_at(saved.uri))
    for candidate, kind, message in (
        (Champion(f"{s3}/none", saved.digest), S3NotFoundError, "manifest.json does not exist"),
        (Champion(saved.uri, "0" * 64), CheckpointError, "it was changed"),
        (saved, CheckpointError, "cannot be loaded: .*rank-00000.bin does not exist"),
        (wider, CheckpointError, "does not fit the task's model: Error.* size mismatch for"),
    ):
        with pytest.raises(kind, match=message) as caught:
            evaluate_candidate(config(), training(candidate), Champion())
        assert caught.value.exit_code == ExitCode.OUTSIDE
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Empty", "the task's test split is empty"),
        ("Mean", r"scores\(\) gave loss in the shape \[2\] for 269 samples → one value a sample"),
        ("Pairs", r"scores\(\) gave loss in the shape \[269, 2\] for 269 samples → one value a sample"),
        ("Modelless", r"task.model\(\) failed: OSError: no such file: weights.bin"),
    ],
)
def test_a_task_that_gives_no_score_a_sample_is_told_so(
    config: MakeConfig, odd_tasks: None, name: str, message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        evaluate(config(task=f"odd_tasks:{name}"), says(3))
    assert "\n" not in str(caught.value)


def test_the_same_checkpoint_is_scored_the_same_each_time(config: MakeConfig, s3: str) -> None:
    chosen, result = config(metric="loss", mode="min", target=9), training(save(s3, "run-1", says(3)))
    first, again = (evaluate_candidate(chosen, result, NOBODY) for _ in range(2))
    assert first.metrics == again.metrics
    assert (first.low, first.high) == (again.low, again.high)
    assert first.low < first.value < first.high

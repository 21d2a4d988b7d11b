"""What the loop saw comes back from a checkpoint's manifest as it was, whatever the losses were."""

import math
from collections.abc import Sequence

import pytest
from convergate.components.checkpoint import Manifest
from convergate.components.telemetry import Detection, StepRecord
from convergate.components.training.progress import Progress


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_steps_that_were_not_finite_come_back(value: float) -> None:
    progress = Progress()
    progress.observe(StepRecord(0, 0.1, 0.1, 2.0, 1.0, 0.01, 32))
    progress.observe(StepRecord(1, 0.1, 0.1, value, value, 0.01, 32, applied=False))
    manifest = Manifest(
        run_id="run", attempt=1, step=2, world_size=1, training_digest="", objects=[], tensors=[],
        state={"progress": progress.to_state()},
    )  # fmt: skip
    again = Progress.from_state(Manifest.from_bytes(manifest.to_bytes(), "").state["progress"])
    assert str(again) == str(progress)  # NaN is not equal to itself
    assert [detection.kind for detection in again.detections] == ["non_finite_loss"]


def _progress(
    detections: list[tuple[int, str]], events: Sequence[tuple[int, str]] = (), last_step: int = 0
) -> Progress:
    progress = Progress(
        detections=[Detection(step, kind, "") for step, kind in detections],
        events=[Detection(step, kind, "") for step, kind in events],
    )
    progress.recent.append(StepRecord(last_step, 0.1, 0.1, 1.0, 1.0, 0.1, 8))
    return progress


def test_an_old_anomaly_does_not_hide_one_of_its_kind_that_came_just_now() -> None:
    kind = "exploding_gradient"
    ranks = [_progress([(20, kind), (700, kind), (4990, kind)], last_step=5000), _progress([(4990, kind)])]
    merged = Progress.merged(ranks)
    assert [detection.step for detection in merged.detections] == [20, 4990]
    assert [detection.step for detection in merged.first_detections()] == [20]


def test_what_a_policy_answered_is_not_in_the_weights() -> None:
    skipped = (5, "update_skipped")
    assert _progress([(5, "non_finite_loss")], [skipped]).untreated() == []
    # The branch that was rolled back at step 8 shares step 5 with the one that goes on, and not step 12.
    events = [skipped, (12, "update_skipped"), (8, "rolled_back")]
    found = _progress([(5, "non_finite_loss"), (12, "non_finite_loss"), (3, "exploding_gradient")], events)
    assert [anomaly.step for anomaly in found.untreated()] == [12, 3]

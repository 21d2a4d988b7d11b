"""What the loop saw comes back from a checkpoint's manifest as it was, whatever the losses were."""

import math

import pytest
from convergate.components.checkpoint import Manifest
from convergate.components.telemetry import StepRecord
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

"""What a training's result says that is not written in it."""

import pytest
from convergate.components.training.result import TrainingResult


@pytest.mark.parametrize(("save_seconds", "grace"), [(0.0, 30), (9.9, 30), (10.1, 31), (60.0, 130), (600.2, 1211)])
def test_the_grace_period_holds_the_longest_save_twice(save_seconds: float, grace: int) -> None:
    assert TrainingResult.model_construct(save_seconds=save_seconds).grace_seconds == grace

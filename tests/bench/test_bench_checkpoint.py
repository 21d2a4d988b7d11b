"""The benchmark of checkpoints, quick: everything that it measures is there, whatever this machine makes of it."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
from comparisons import Comparison

BENCH = Path(__file__).with_name("bench_checkpoint.py")


def test_quick_measures_everything_beside_its_peers(tmp_path: Path) -> None:
    kept = tmp_path / "checkpoint.json"
    done = subprocess.run(
        [sys.executable, str(BENCH), "--quick", "--keep", str(kept)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = {one["name"]: one for one in json.loads(kept.read_text())}
    for name, one in found.items():
        assert math.isfinite(one["ours"]["median"]), name
        # A server's processor time is told in hundredths of a second.
        assert one["ours"]["median"] > 0 or name.endswith("of the server"), name
    assert found["saves, 8 MiB"]["peers"].keys() == {"s3torchconnector", "boto3 CRT", "torch.save"}
    assert found["restores, 8 MiB"]["peers"].keys() == found["saves, 8 MiB"]["peers"].keys()
    assert found["saves on rclone, 4 MiB"]["peers"].keys() == {"torch.save"}
    judged = [name for name, one in found.items() if one["met"] is not None]
    for beginning in (
        "stall, 4 MiB",
        "saves: seconds per GB",
        "restores: seconds per GB",
        "saves with checksums and without",
        "restores with checksums and without",
        "memory above the imports', save",
        "memory above the imports', restore",
        "a training's step beside a throttled upload",
        "the newest of 100 found",
    ):
        assert any(name.startswith(beginning) for name in judged), beginning


def test_the_ratio_is_judged_where_there_is_one_and_else_the_figure() -> None:
    comparison = Comparison.of("x", "s", [1.0, 2.0, 9.0], peers={"peer": [4.0]}, ratios=[0.5, 1.5, 1.0], at_most=1.2)
    assert (comparison.ours.median, comparison.ours.low, comparison.ours.high) == (2.0, 1.5, 5.5)
    assert (comparison.met, comparison.verdict, comparison.target) == (True, "yes", "≤ 1.2 ×")
    assert comparison.peers["peer"].median == 4.0
    alone = Comparison.of("x", "s", [2.0], at_most=1.2)
    assert (alone.met, alone.verdict, alone.target) == (False, "above target", "≤ 1.2 s")


@pytest.mark.parametrize(("value", "verdict"), [(0.9, "yes"), (0.89, "below target")])
def test_a_lower_bound_is_met_by_itself(value: float, verdict: str) -> None:
    assert Comparison.of("x", "GB/s", [3.0], ratios=[value], at_least=0.9).verdict == verdict


def test_a_figure_without_a_target_is_only_shown() -> None:
    shown = Comparison.of("x", "s", [3.0])
    assert (shown.met, shown.verdict, shown.target) == (None, "", "shown")

"""`convergate train`, killed and continued."""

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any


def test_after_a_kill_it_continues_at_the_last_checkpoint_and_ends_with_the_same_weights(folder: Any) -> None:
    config = folder.config()
    whole = folder.json("train", config, "--run", "whole")
    process = folder.start("train", config, "--run", "killed")
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("step 40/"):
            break
    _kill_tree(process)
    continued = folder.run("train", config, "--run", "killed", "--json")
    assert continued.returncode == 0, continued.stderr
    result = json.loads(continued.stdout)
    resumed = [event for event in result["events"] if event["kind"] == "resumed"]
    assert [event["step"] % 20 for event in resumed] == [0]
    assert resumed[0]["step"] in (20, 40)
    assert (result["attempts"], result["final_step"]) == (2, 80)
    assert result["val_metrics"].keys() == whole["val_metrics"].keys()


def test_the_same_run_again_is_complete_already(folder: Any) -> None:
    first = folder.json("train", folder.config(), "--run", "twice")
    again = folder.json("train", folder.config(), "--run", "twice")
    assert again["checkpoint_digest"] == first["checkpoint_digest"]
    assert again["attempts"] == 1


def test_another_config_is_refused(folder: Any) -> None:
    folder.json("train", folder.config(), "--run", "mine", "--resume", "never")
    done = folder.run("train", folder.config("other.yaml", lr0=0.05), "--run", "mine", "--resume", _checkpoint(folder))
    assert done.returncode == 1
    assert "was made under config" in done.stdout


def _checkpoint(folder: Any) -> str:
    root = folder.path / ".convergate/s3/convergate/checkpoints/mine"
    return f"s3://convergate/checkpoints/mine/{sorted(path.name for path in root.iterdir())[-1]}"


def _kill_tree(process: "subprocess.Popen[str]") -> None:
    """kill -9 of the command line alone: everything below it has to end by itself."""
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    for _ in range(50):
        if not any("training.worker" in command for command in _commands(process)):
            return
        subprocess.run(["sleep", "0.1"], check=True)
    raise AssertionError("workers live on 5 s after the launcher was killed")


def _commands(process: "subprocess.Popen[str]") -> list[str]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                found.append((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
            except OSError:
                continue
    return found

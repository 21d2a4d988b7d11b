"""`convergate train`, killed and continued."""

import contextlib
import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest


def test_after_a_kill_it_continues_at_the_last_checkpoint_and_ends_with_the_same_weights(folder: Any) -> None:
    config = folder.config()
    whole = folder.json("train", config, "--run", "whole")
    process = folder.start("train", config, "--run", "killed")
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("step 60/"):  # the save of step 40 began when that of step 20 was done
            break
    _kill_tree(process, folder)
    continued = folder.run("train", config, "--run", "killed", "--json")
    assert continued.returncode == 0, continued.stderr
    result = json.loads(continued.stdout)
    resumed = [event for event in result["events"] if event["kind"] == "resumed"]
    assert [event["step"] % 20 for event in resumed] == [0]
    assert resumed[0]["step"] in (20, 40, 60)
    assert (result["attempts"], result["final_step"]) == (2, 80)
    assert result["val_metrics"].keys() == whole["val_metrics"].keys()
    again = folder.json("train", config, "--run", "whole")
    assert (again["checkpoint_digest"], again["attempts"]) == (whole["checkpoint_digest"], 1), "complete already"


@pytest.mark.parametrize("whom", ["group", "worker"])
def test_an_interruption_saves_and_the_same_command_continues(folder: Any, whom: str) -> None:
    """Ctrl-C in a terminal, which reaches the whole process group; and SIGTERM to one worker, as from a lost node."""
    config = folder.config()
    process = folder.start("train", config, "--run", whom)
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("step 20/"):
            break
    if whom == "group":
        os.killpg(process.pid, signal.SIGINT)
    else:
        os.kill(_workers(folder)[-1], signal.SIGTERM)
    _, error = process.communicate(timeout=60)
    assert process.returncode == (130 if whom == "group" else 143)
    assert "Traceback" not in error
    continued = folder.json("train", config, "--run", whom)
    resumed = [event for event in continued["events"] if event["kind"] == "resumed"]
    assert (continued["status"], continued["attempts"]) == ("completed", 2)
    assert resumed[0]["step"] >= 20


def test_another_config_or_seed_is_refused(folder: Any) -> None:
    folder.json("train", folder.config(), "--run", "mine", "--resume", "never")
    other = folder.config("other.yaml", lr0=0.05)
    for arguments, message in (
        (("--run", "mine"), "was trained under config"),
        (("--run", "theirs", "--resume", _checkpoint(folder)), "was made under config"),
        (("--run", "none", "--resume", "s3://convergate/checkpoints/x"), "--resume s3://convergate/checkpoints/x: s3:"),
    ):
        done = folder.run("train", other, *arguments)
        assert done.returncode == 2
        assert message in done.stdout + done.stderr


def _checkpoint(folder: Any) -> str:
    root = folder.path / ".convergate/s3/convergate/checkpoints/mine"
    newest = max(path.name for path in root.glob("attempt-*"))
    return f"s3://convergate/checkpoints/mine/{newest.rpartition('-')[0]}"


def _kill_tree(process: "subprocess.Popen[str]", folder: Any) -> None:
    """kill -9 of the command line alone: everything below it has to end by itself."""
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    for _ in range(50):
        if not _workers(folder):
            return
        subprocess.run(["sleep", "0.1"], check=True)
    raise AssertionError("workers live on 5 s after the launcher was killed")


def _workers(folder: Any) -> list[int]:
    """The ids of the worker processes that live, of this folder's runs; the agent names them after its options."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if not entry.name.isdigit() or (entry / "cwd").readlink() != folder.path:
                continue
            if b"training.worker" in (entry / "cmdline").read_bytes().partition(b"\0--")[0]:
                found.append(int(entry.name))
    return sorted(found)

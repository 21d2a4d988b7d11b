"""Runs that something outside ends: an S3 that is not there, Ctrl-C, SIGTERM."""

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest


def test_s3_that_cannot_be_reached_is_named_in_time(folder: Any) -> None:
    started = time.monotonic()
    done = folder.run("retrain", folder.config(), AWS_ENDPOINT_URL="http://127.0.0.1:9", AWS_ACCESS_KEY_ID="a",
                      AWS_SECRET_ACCESS_KEY="very-secret")  # fmt: skip
    assert done.returncode == 4
    assert "http://127.0.0.1:9" in done.stderr
    assert "Traceback" not in done.stderr
    assert "very-secret" not in done.stderr + done.stdout
    assert time.monotonic() - started < 120


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_stops_everything_and_says_so(folder: Any, signum: int, code: int) -> None:
    """Ctrl-C in the middle: nothing that was started lives on, and the ledger knows."""
    process = folder.start("retrain", folder.config(), MLFLOW_TRACKING_URI="")
    assert process.stdout is not None
    for line in process.stdout:
        if "validate data" in line:
            break
    process.send_signal(signum)
    process.communicate(timeout=120)
    assert process.returncode == code
    left = [args for args in _processes() if str(folder.path) in args]
    assert left == []
    newest = folder.json("runs")[0]
    assert newest["class"] == "interrupted"


def _processes() -> list[str]:
    """Command lines of all live processes, with their working folder in front."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            found.append(f"{(entry / 'cwd').readlink()} {command}")
        except OSError:
            continue
    return found

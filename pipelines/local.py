"""A compiled pipeline under kfp.local: `python -m convergate.pipelines.local IR ARGUMENTS ROOT`.

In a process of its own, whose output is the pipeline's log. It ends with 0 when the pipeline succeeded, and with 1
when a step failed; what was decided stands in the run's documents, not here.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from time import monotonic, sleep

from ..components.training.lifetime import PARENT_VARIABLE, die_with_parent

POLL_SECONDS = 0.1
STOP_SECONDS = 90.0
"""Workers save after SIGTERM, within their grace."""


def run_pipeline(ir: Path, arguments: dict[str, str], folder: Path, on_poll: Callable[[], None] = lambda: None) -> int:
    """Run the IR with its output in `<folder>/pipeline.log`; returns its exit code.

    When this process is interrupted, the pipeline and all its steps are ended, and waited for, before the
    interruption goes on.
    """
    folder.mkdir(parents=True, exist_ok=True)
    inputs = folder / "arguments.json"
    inputs.write_text(json.dumps(arguments))
    command = [
        sys.executable,
        "-m",
        "convergate.pipelines.local",
        str(ir),
        str(inputs),
        str(folder / "artifacts"),
    ]
    with (folder / "pipeline.log").open("ab") as log:
        process = subprocess.Popen(
            command,
            env={**os.environ, PARENT_VARIABLE: str(os.getpid())},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            while process.poll() is None:
                on_poll()
                sleep(POLL_SECONDS)
        except BaseException:
            end_group(process.pid)
            process.wait()
            raise
    on_poll()
    return process.returncode


def end_group(group: int) -> None:
    """SIGTERM to a process group, wait until all of it is gone, and SIGKILL what is left after that."""
    for signum, seconds in ((signal.SIGTERM, STOP_SECONDS), (signal.SIGKILL, 5.0)):
        deadline = monotonic() + seconds
        try:
            os.killpg(group, signum)
            while monotonic() < deadline:
                _reap(group)
                os.killpg(group, 0)
                sleep(POLL_SECONDS)
        except ProcessLookupError:
            return


def _reap(pid: int) -> None:
    """Collect the group's leader, our child, so that it no longer counts as alive."""
    try:
        os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return


def main(ir: str, inputs: str, root: str) -> int:
    """Run the pipeline in this process; returns its exit code."""
    die_with_parent()
    from kfp import components, local

    local.init(
        runner=local.SubprocessRunner(use_venv=False),
        pipeline_root=root,
        raise_on_error=True,
        enable_caching=False,
    )
    pipeline = components.load_component_from_file(ir)
    try:
        pipeline(**json.loads(Path(inputs).read_text()))
    except RuntimeError as error:
        print(error, file=sys.stderr)  # noqa: T201 - the pipeline's log
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

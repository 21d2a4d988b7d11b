"""A SIGTERM that comes while a pod's process is still importing."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

MODULE = """
import sys, time
print(sys.argv[1:], flush=True)
time.sleep(float(sys.argv[1]))
"""


@pytest.mark.parametrize(("seconds", "code"), [("60", 143), ("0", 0)])
def test_a_module_ends_at_a_sigterm_before_it_has_a_handler_of_its_own(tmp_path: Path, seconds: str, code: int) -> None:
    (tmp_path / "slow.py").write_text(MODULE)
    process = subprocess.Popen(
        [sys.executable, "-m", "convergate.components.process_one", "slow", seconds],
        env={"PYTHONPATH": str(tmp_path)},
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == f"['{seconds}']\n"
        if code:
            process.send_signal(signal.SIGTERM)
        assert process.wait(30) == code


def test_it_imports_nothing_that_takes_time() -> None:
    check = "import sys, convergate.components.process_one; sys.exit('pydantic' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0

"""The steps as commands, as a container of Argo starts them: real processes, a real S3."""

import importlib.util
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from convergate.components.config.plan import RunPlan
from convergate.components.storage import RunStore, S3Location, S3Store
from convergate.pipelines.compiling import step_faces

from ..documents import config_text, make_plan

Run = Callable[..., "CompletedProcess[str]"]


@pytest.fixture
def config(tmp_path: Path, s3: str) -> str:
    """The option of a config in a file."""
    (tmp_path / "run.yaml").write_text(config_text(s3))
    return f"--config=@{tmp_path / 'run.yaml'}"


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Runs `python -m convergate.<room> …` with its outputs in `tmp_path/outputs`."""

    def ran(room: str, *arguments: str, **environment: str) -> "CompletedProcess[str]":
        outputs = [f"--outputs={tmp_path / 'outputs'}"] if arguments else []
        command = [sys.executable, "-m", f"convergate.{room}", *arguments, *outputs]
        return subprocess.run(
            command,
            env=os.environ | environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    return ran


def _one_line(done: "CompletedProcess[str]") -> str:
    (line,) = done.stderr.splitlines()
    return line


def test_every_step_of_the_pipelines_has_its_command() -> None:
    for name, face in step_faces().items():
        package = face.python_func.__module__.rpartition(".")[0]
        assert importlib.util.find_spec(f"{package}.__main__") is not None, name


def test_the_options_and_the_help_are_those_of_the_function(run: Run) -> None:
    done = run("components.slo", "gate", "--help")
    assert done.returncode == 0
    shown = " ".join(done.stdout.split())
    assert "Decide by the convergence SLO: REJECT, HOLD, CHALLENGER or PROMOTE." in shown
    options = [
        "config",
        "run-id",
        "plan",
        "training",
        "evaluation",
        "decision",
        "summary",
        "metrics",
        "outputs",
        "debug",
    ]
    found = [line.split()[0] for line in done.stdout.splitlines() if line.startswith("  --")]
    assert found == [f"--{name}" for name in [*options, "help"]]
    assert "--plan DOCUMENT The RunPlan of validate_config, as JSON. [required]" in shown
    assert "verdict: PASS when an alias may be set" in shown


def test_a_room_of_several_steps_lists_them(run: Run) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "convergate.components.promotion", "--help"], capture_output=True, text=True, check=True
    )
    assert [line.split()[0] for line in done.stdout.partition("Commands:")[2].splitlines() if line] == [
        "find_champion", "promote",
    ]  # fmt: skip


def test_what_a_step_returns_stands_in_files_and_in_a_line(run: Run, config: str, tmp_path: Path, s3: str) -> None:
    """The name of a room's only step may be left out."""
    place = "--plan=storage:runs/r-1/plan.json"
    done = run("components.config", config, "--run-id=r-1", place)
    assert done.returncode == 0, done.stderr
    stored = S3Store().read(S3Location.parse(f"{s3}/runs/r-1/plan.json"))
    plan = RunPlan.from_json(stored)
    told = {
        "verdict": "PASS",
        "reason": "",
        "config_digest": plan.training_digest,
        "plan": f"{s3}/runs/r-1/plan.json#sha256={sha256(stored).hexdigest()}",
    }
    assert json.loads(done.stdout.splitlines()[-1]) == told
    outputs = tmp_path / "outputs"
    assert {name: (outputs / name).read_text() for name in told} == told
    assert "warmup" in (outputs / "summary").read_text() or (outputs / "summary").stat().st_size > 0


def test_argo_finds_no_template_in_what_a_step_returns(run: Run, config: str, tmp_path: Path) -> None:
    """It would compute it: `{{=1+1}}` in a reason came out as 2."""
    file = Path(config.partition("@")[2])
    file.write_text(re.sub(r"factory: .*", 'factory: "{{{=1+1}}}:A"}', file.read_text()))
    done = run("components.config", config, "--run-id=r-1", "--plan=storage:runs/r-1/plan.json")
    assert "{{{=1+1}}}" in json.loads(done.stdout.splitlines()[-1])["reason"]
    reason = (tmp_path / "outputs" / "reason").read_text()
    assert "{ { {=1+1}}}" in reason
    assert "{{" not in reason


def test_a_document_that_the_step_itself_does_not_store_gets_its_place(run: Run, config: str, s3: str) -> None:
    done = run("components.promotion", "find_champion", config, "--champion=storage:runs/r-1/champion.json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    stored = S3Store().read(S3Location.parse(f"{s3}/runs/r-1/champion.json"))
    assert told["Output"] == json.loads(stored)["uri"] == ""
    assert told["champion"].endswith(sha256(stored).hexdigest())


def test_an_input_is_what_the_step_before_wrote(run: Run, config: str, s3: str) -> None:
    store = RunStore(s3, "r-1")
    place = store.put("plan", make_plan(run_id="r-1"))
    digest = sha256(store.store.read(S3Location.parse(place))).hexdigest()
    store.put("plan", make_plan(run_id="r-1", summary="another hand"))
    done = run("components.training", config, f"--plan={place}#sha256={digest}")
    assert done.returncode == 4
    assert _one_line(done).startswith(f"convergate: {place}: not what the step before wrote: SHA-256 ")
    assert store.names() == {"plan"}, "the training did not start"


@pytest.mark.parametrize(
    ("arguments", "code", "line"),
    [
        (
            ["components.data", "--run-id=r"],
            2,
            "Missing option '--config' → python -m convergate.components.data --help",
        ),
        (["components.slo"], 2, "Missing command → python -m convergate.components.slo --help"),
        (["components.slo", "gates"], 2, "No such command 'gates'"),
        (
            ["components.data", "--config=@gone.yaml", "--run-id=r"],
            2,
            "--config gone.yaml: No such file or directory → ",
        ),
        (["canary", "--config=a: 1", "--plan=gone.json"], 2, "document gone.json: No such file or directory → "),
        (
            ["components.config", "--config=a: 1", "--run-id=r"],
            2,
            "the config names no experiment and promotion.model → ",
        ),
        (["pipelines", "stop", "--reason=canary: no step\nis finite"], 1, "stopped: canary: no step"),
    ],
)
def test_what_a_user_can_cause_is_a_line_and_a_code(run: Run, arguments: list[str], code: int, line: str) -> None:
    done = run(*arguments)
    assert done.returncode == code, done.stderr
    assert done.stderr.splitlines()[0].startswith(f"convergate: {line}")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--config=@latin.yaml"], "--config latin.yaml: byte 6 is no UTF-8 → a text file in UTF-8"),
        (["--outputs=mine"], "mine: File exists → --outputs, or a place, that the step can write"),
        (["--outputs=mine/out"], "mine/out: Not a directory → --outputs, or a place, that the step can write"),
        (["--plan=mine/plan.json"], "mine: File exists → --outputs, or a place, that the step can write"),
    ],
)
def test_a_text_that_is_none_and_a_place_that_cannot_be_written(
    config: str, tmp_path: Path, arguments: list[str], line: str
) -> None:
    (tmp_path / "latin.yaml").write_bytes("team: Übung".encode("latin-1") + b"\n")
    (tmp_path / "mine").write_text("")
    done = subprocess.run(
        [sys.executable, "-m", "convergate.components.config", config, "--run-id=r", "--outputs=out", *arguments],
        cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert (done.returncode, _one_line(done)) == (2, f"convergate: {line}")


def test_debug_shows_the_trace(run: Run) -> None:
    done = run("components.config", "--config=a: 1", "--run-id=r", "--debug")
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "UserError" in done.stderr


def test_a_step_that_is_told_to_end_ends(tmp_path: Path, config: str) -> None:
    """While it waits for S3: a server that takes the connection and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(60)
        silent = {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.getsockname()[1]}"}
        process = subprocess.Popen(
            [sys.executable, "-m", "convergate.components.promotion", "find_champion", config, f"--outputs={tmp_path}"],
            env=os.environ | silent, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            connection, _ = server.accept()
            with connection:
                process.terminate()
                _, said = process.communicate(timeout=60)
        finally:
            process.kill()
            process.wait()
    assert process.returncode == 143
    assert said == "convergate: the step was told to end (SIGTERM)\n"

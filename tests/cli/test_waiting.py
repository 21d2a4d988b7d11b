"""retrain and canary on a cluster with --wait: how a run ends is the exit code, and what is waited through."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import kfp_api
import pytest
from convergate.components.storage import RunStore
from convergate.pipelines.kfp_api import PipelinesApi, PipelinesError
from kfp_api import Fault, KfpApi, steps

from ..documents import config_text, make_canary, make_decision, make_plan, save_start
from .conftest import TOKEN, Convergate, to

BEFORE = {"open_run": "SUCCEEDED", "validate_config": "SUCCEEDED", "validate_data": "SUCCEEDED"}
TRAINED = {**BEFORE, "canary": "SUCCEEDED", "train": "SUCCEEDED"}
CLOSED = {"close_run": "SUCCEEDED"}


@pytest.mark.parametrize(
    ("ended", "code", "said"),
    [
        (steps("SUCCEEDED", **TRAINED, gate="SUCCEEDED", promote="SUCCEEDED"), 0, "every step succeeded"),
        (steps("FAILED", **TRAINED, gate="SUCCEEDED", stop_undecided="FAILED"), 3, "gate could not tell"),
    ],
)
def test_the_exit_code_is_the_runs(
    convergate: Convergate, api: KfpApi, ended: kfp_api.Node, code: int, said: str
) -> None:
    """Without any right on S3."""
    api.script = [steps("PENDING"), {}, steps(open_run="RUNNING"), ended]
    answer = convergate("retrain", *to(api, "--wait"))
    assert (answer.code, answer.err) == (code, "")
    assert answer.out.splitlines() == [f"{api.url}/#/runs/details/{api.runs[0]['run_id']}", said]


@pytest.mark.parametrize(
    ("name", "document", "code", "reason"),
    [
        ("plan", make_plan(verdict="FAIL", problems=["error: a is b"]), 2, "plan FAIL: error: a is b"),
        ("canary", make_canary("FAIL", reason="loss rose"), 1, "canary FAIL: falling loss: loss rose"),
        ("canary", make_canary("INCONCLUSIVE", reason="S3 away"), 3, "canary INCONCLUSIVE: falling loss: S3 away"),
        ("decision", make_decision("HOLD", "budget spent"), 3, "HOLD: budget spent"),
    ],
)
def test_who_can_read_the_documents_is_told_why(
    convergate: Convergate, api: KfpApi, s3: str, tmp_path: Path, name: str, document: object, code: int,
    reason: str, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Also where the steps alone would say something else: they all failed."""
    text = config_text(s3)
    (tmp_path / "run.yaml").write_text(text)
    created = KfpApi._runs

    def run_and_leave(self: KfpApi, method: str, *rest: object) -> kfp_api.Node:
        answer = created(self, method, *rest)  # type: ignore[arg-type]
        if method == "POST":
            save_start(text, answer["run_id"])
            RunStore(s3, answer["run_id"]).put(name, document)  # type: ignore[arg-type]
        return answer

    monkeypatch.setattr(KfpApi, "_runs", run_and_leave)
    api.script = [steps("FAILED", **TRAINED, gate="FAILED", **CLOSED)]
    answer = convergate("retrain", *to(api, "--wait", "--json"))
    assert answer.code == code
    assert (answer.json["read_from"], answer.json["reason"]) == ("documents", reason)
    assert answer.json["steps"]["gate"] == "FAILED"
    assert answer.json["url"] in answer.err


def test_a_terminal_sees_each_step_end(convergate: Convergate, api: KfpApi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    api.script = [
        steps(open_run="RUNNING"),
        steps(open_run="SUCCEEDED", validate_config="RUNNING"),
        steps("FAILED", **BEFORE, canary="FAILED", **CLOSED),
    ]
    shown = convergate("canary", *to(api, "--wait")).out
    assert re.findall("[✓✗] [a-z ]+", shown) == [
        "✓ open run",
        "✓ validate config",
        "✓ validate data",
        "✗ canary",
        "✓ close run",
    ]


def test_documents_that_are_not_there_change_nothing(
    convergate: Convergate, api: KfpApi, s3: str, tmp_path: Path
) -> None:
    (tmp_path / "run.yaml").write_text(config_text(s3))
    api.script = [steps("SUCCEEDED", **BEFORE, canary="SUCCEEDED", passed="SUCCEEDED", **CLOSED)]
    answer = convergate("canary", *to(api, "--wait", "--json"))
    assert (answer.code, answer.json["read_from"], answer.json["steps"]["passed"]) == (0, "steps", "SUCCEEDED")


def test_an_outage_is_waited_through(convergate: Convergate, api: KfpApi) -> None:
    api.script = [steps(), steps("SUCCEEDED")]
    api.faults = [Fault("GET", "/runs/", 503, times=3), Fault("GET", "/runs/", kfp_api.DROP, times=3)]
    assert convergate("retrain", *to(api, "--wait")).code == 0


def test_an_outage_is_not_waited_for_for_ever(
    convergate: Convergate, api: KfpApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("convergate.pipelines.watching.OUTAGE_SECONDS", 0.2)
    api.faults = [Fault("GET", "/runs/", 502, times=10**6)]
    answer = convergate("retrain", *to(api, "--wait"))
    assert answer.code == 4
    url = answer.out.strip()
    assert answer.err.endswith(
        f"502 ordered for the test; you sent Bearer [token] → try again later; the run goes on: {url}\n"
    )


@pytest.mark.parametrize("rotated", ["", None])
def test_a_token_that_is_being_written_is_waited_for(
    convergate: Convergate, api: KfpApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rotated: str | None
) -> None:
    """The file is empty, or gone; what the server says is told without the token that it was sent."""
    token, missed = tmp_path / "token", []
    api.script = [steps(), steps("SUCCEEDED")]
    follow, at = KfpApi._runs, PipelinesApi.run

    def empty(self: KfpApi, method: str, *rest: object) -> kfp_api.Node:
        if method == "GET":
            token.write_text(rotated) if rotated is not None else token.unlink(missing_ok=True)
        return follow(self, method, *rest)  # type: ignore[arg-type]

    def ask(self: PipelinesApi, run_id: str) -> object:
        try:
            return at(self, run_id)
        except PipelinesError as error:
            missed.append(str(error))
            token.write_text(TOKEN)
            raise

    monkeypatch.setattr(KfpApi, "_runs", empty)
    monkeypatch.setattr(PipelinesApi, "run", ask)
    answer = convergate("retrain", *to(api, "--wait"))
    assert (answer.code, answer.err, bool(missed)) == (0, "", True)


def test_a_token_that_never_comes_back_leaves_the_run(
    convergate: Convergate, api: KfpApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("convergate.pipelines.watching.OUTAGE_SECONDS", 0.2)
    follow = KfpApi._runs

    def empty(self: KfpApi, method: str, *rest: object) -> kfp_api.Node:
        (tmp_path / "token").write_text("" if method == "GET" else TOKEN)
        return follow(self, method, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(KfpApi, "_runs", empty)
    answer = convergate("retrain", *to(api, "--wait"))
    assert (answer.code, answer.err) == (
        4,
        f"convergate: --token-file token: not a token → one line, nothing else; the run goes on: {answer.out}",
    )


def test_the_token_that_was_sent_is_the_one_that_is_not_told(
    convergate: Convergate, api: KfpApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rotate(self: KfpApi, *_: object) -> kfp_api.Node:
        (tmp_path / "token").write_text("another")
        raise kfp_api.RefusedError(403, f"no: {self.token}")

    monkeypatch.setattr(KfpApi, "_runs", rotate)
    answer = convergate("retrain", *to(api))
    assert answer.code == 4
    assert "403 no: [token] → " in answer.error
    assert TOKEN not in answer.err


def test_a_run_that_was_deleted_does_not_go_on(convergate: Convergate, api: KfpApi) -> None:
    api.faults = [Fault("GET", "/runs/", 404)]
    answer = convergate("retrain", *to(api, "--wait"))
    assert answer.code == 4
    assert answer.err.endswith("404 ordered for the test; you sent Bearer [token] → somebody has deleted it\n")


def test_a_token_that_expires_is_read_again(
    convergate: Convergate, api: KfpApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    api.script = [steps(), steps("SUCCEEDED")]
    follow = KfpApi._runs

    def rotate(self: KfpApi, method: str, *rest: object) -> kfp_api.Node:
        self.token = f"{TOKEN}-{len(self.calls)}"
        (tmp_path / "token").write_text(self.token)
        return follow(self, method, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(KfpApi, "_runs", rotate)
    assert convergate("retrain", *to(api, "--wait")).code == 0


def test_a_wait_that_is_over_leaves_the_run(convergate: Convergate, api: KfpApi) -> None:
    answer = convergate("retrain", *to(api, "--wait", "--timeout", "0.001"))
    assert answer.code == 3
    assert "the run goes on after 0.001 minutes: " in answer.err
    assert "longer --timeout" in answer.err


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interruption_ends_the_wait_and_not_the_run(api: KfpApi, tmp_path: Path, signum: int, code: int) -> None:
    command = [sys.executable, "-m", "convergate.cli.main", "retrain", *to(api, "--wait")]
    process = subprocess.Popen(
        command, cwd=tmp_path, env=os.environ | {"NO_PROXY": "127.0.0.1"}, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 60
        while api.looks == 0 and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signum)
        out, err = process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait()
    url = out.strip()
    assert (process.returncode, err) == (
        code,
        f"convergate: stopped waiting; the run goes on → Terminate at {url} stops it\n",
    )
    assert not [call for call in api.calls if "terminate" in call or "DELETE" in call]

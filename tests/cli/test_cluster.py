"""retrain and canary on a cluster: what is sent, how the end of the run becomes the exit code, and what fails."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import kfp_api
import pytest
from convergate.components.storage import RunStore
from kfp_api import Fault, KfpApi, steps

from ..documents import config_text, make_canary, make_config, make_decision, make_plan, save_start
from .conftest import Convergate

TOKEN = "eyJhbGciOi-very-secret"
BEFORE = {"open_run": "SUCCEEDED", "validate_config": "SUCCEEDED", "validate_data": "SUCCEEDED"}
TRAINED = {**BEFORE, "canary": "SUCCEEDED", "train": "SUCCEEDED"}
CLOSED = {"close_run": "SUCCEEDED"}


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[KfpApi]:
    """A server that knows one token, asked without pauses; the caller's files lie in the folder."""
    monkeypatch.setattr("convergate.pipelines.watching.POLL_SECONDS", 0.01)
    monkeypatch.setattr("convergate.pipelines.kfp_api.PATIENCE_SECONDS", 3.0)
    monkeypatch.setenv("CONVERGATE_COMMIT", "0123456789abcdef0123456789abcdef01234567")
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    (tmp_path / "run.yaml").write_text(config_text())
    with kfp_api.kfp_api(token=TOKEN) as server:
        yield server


def to(api: KfpApi, *more: str) -> list[str]:
    return ["run.yaml", "--host", api.url, "--token-file", "token", *more]


class TestSubmission:
    def test_the_run_is_the_configs_own(self, convergate: Convergate, api: KfpApi) -> None:
        answer = convergate("retrain", *to(api))
        (run,) = api.runs
        assert (answer.code, answer.err) == (0, "")
        assert answer.out == f"{api.url}/#/runs/details/{run['run_id']}\n"
        assert [experiment["display_name"] for experiment in api.experiments] == ["digits"]
        assert run["experiment_id"] == api.experiments[0]["experiment_id"]
        assert run["display_name"].startswith("digits-digits-retrain-")
        assert run["service_account"] == "convergate-pipeline"
        parameters = run["runtime_config"]["parameters"]
        assert (parameters["config"], parameters["run_id"]) == (config_text(), "")
        assert parameters["submitter"]
        plan = make_plan(make_config())
        assert run["description"].splitlines() == [
            "convergate retrain of digits, model digits, team vision",
            f"config {plan.training_digest}",
            f"policy {plan.policy_digest}",
            "commit 0123456789abcdef0123456789abcdef01234567",
        ]
        platform = run["pipeline_spec"]["platform_spec"]["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
        for executor in platform.values():
            labels = executor["podMetadata"]["labels"]
            assert labels["convergate.io/experiment"] == "digits"
            assert labels["convergate.io/config-digest"] == plan.training_digest[:16]
            assert labels["convergate.io/commit"] == "0123456789ab"
        resources = run["pipeline_spec"]["pipeline_spec"]["deploymentSpec"]["executors"]["exec-train"]["container"]
        assert resources["resources"]["accelerator"]["resourceCount"] == "2"
        assert TOKEN not in json.dumps(run)

    def test_another_run_joins_the_experiment(self, convergate: Convergate, api: KfpApi) -> None:
        first = convergate("canary", *to(api, "--json")).json
        second = convergate("retrain", *to(api, "--json")).json
        assert [run["run_id"] for run in api.runs] == [first["run_id"], second["run_id"]]
        names = [run["pipeline_spec"]["pipeline_spec"]["pipelineInfo"]["name"] for run in api.runs]
        assert names == ["convergate-canary", "convergate-retrain"]
        assert len(api.experiments) == 1

    def test_it_is_compiled_for_the_launcher_of_the_config(
        self, convergate: Convergate, api: KfpApi, tmp_path: Path
    ) -> None:
        (tmp_path / "run.yaml").write_text(config_text(more="distributed: {launcher: trainjob, nodes: 2}\n"))
        assert convergate("retrain", *to(api)).code == 0
        spec = api.runs[0]["pipeline_spec"]["pipeline_spec"]["deploymentSpec"]["executors"]["exec-train"]["container"]
        assert spec["env"] == [{"name": "CONVERGATE_LAUNCHER", "value": "trainjob"}]

    def test_each_process_has_a_gpu_unless_none_has(self, convergate: Convergate, api: KfpApi) -> None:
        """The canary has two processes by default."""
        refused = convergate("canary", *to(api, "--gpus", "1"))
        assert refused.code == 2
        assert refused.error == (
            "--gpus 1: the config has 2 processes in a pod, one GPU each"
            " → --gpus 2, fewer procs_per_node, or --gpus 0 for CPUs"
        )
        assert api.runs == []
        for more, count in (((), "2"), (("--gpus", "0"), None)):
            assert convergate("canary", *to(api, *more)).code == 0
            executors = api.runs[-1]["pipeline_spec"]["pipeline_spec"]["deploymentSpec"]["executors"]
            resources = executors["exec-canary"]["container"]["resources"]
            assert resources.get("accelerator", {}).get("resourceCount") == count

    def test_a_config_that_its_first_step_would_refuse_is_not_sent(
        self, convergate: Convergate, api: KfpApi, tmp_path: Path
    ) -> None:
        (tmp_path / "run.yaml").write_text(config_text().replace("warmup: {steps: 4}", "warmup: {steps: 400}"))
        answer = convergate("retrain", *to(api))
        assert (answer.code, answer.out, api.calls) == (2, "", [])
        assert "not shorter than the run" in answer.err

    def test_a_server_for_many_users_is_told_whose_run_it_is(
        self, convergate: Convergate, api: KfpApi, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        api.namespace = "team-vision"
        refused = convergate("retrain", *to(api))
        assert (refused.code, refused.error) == (2, f"{api.url} serves many users → --namespace, your profile's")
        assert convergate("retrain", *to(api, "--namespace", "team-vision")).code == 0
        assert api.experiments[0]["namespace"] == "team-vision"
        denied = convergate("retrain", *to(api, "--namespace", "team-audio"))
        assert denied.code == 4
        assert "403 User is not authorized in namespace team-audio → " in denied.error

    def test_an_answer_that_is_lost_is_no_second_run(self, convergate: Convergate, api: KfpApi) -> None:
        api.faults = [Fault("POST", "/runs$", kfp_api.DROP_AFTER)]
        assert convergate("retrain", *to(api)).code == 0
        assert len(api.runs) == 1

    def test_a_call_that_was_lost_is_made_again(self, convergate: Convergate, api: KfpApi) -> None:
        api.faults = [Fault("POST", "/runs$", kfp_api.DROP), Fault("GET", "/experiments$", 503, times=2)]
        assert convergate("retrain", *to(api)).code == 0
        assert len(api.runs) == 1


class TestFailures:
    @pytest.mark.parametrize(
        ("fault", "said"),
        [
            (Fault("POST", "/runs$", 401), "401 ordered for the test; you sent Bearer [token] → a fresh token"),
            (Fault("POST", "/runs$", 403), "403 ordered for the test; you sent Bearer [token] → a right in that"),
            (Fault("POST", "/runs$", 500, times=9), "500 ordered for the test; you sent Bearer [token] → try again"),
            (Fault("GET", "/healthz$", 404), "→ check --host: behind Kubeflow's gateway it ends in /pipeline"),
            (Fault("GET", "/healthz$", kfp_api.LOGIN_PAGE), "what answers is not its API, or a login page → check"),
            (Fault("POST", "/runs$", kfp_api.DROP, times=9), "→ check --host and the network"),
        ],
    )
    def test_each_is_one_line_without_the_token(
        self, convergate: Convergate, api: KfpApi, fault: Fault, said: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(0)
        api.faults = [fault]
        answer = convergate("retrain", *to(api))
        assert answer.code == 4
        assert answer.error.startswith(f"Kubeflow Pipelines at {api.url}: ")
        assert said in answer.error
        assert TOKEN not in answer.err
        assert TOKEN not in caplog.text

    def test_a_server_that_is_not_there(self, convergate: Convergate, api: KfpApi) -> None:
        answer = convergate("retrain", "run.yaml", "--host", "http://127.0.0.1:9")
        assert answer.code == 4
        assert answer.error == (
            "Kubeflow Pipelines at http://127.0.0.1:9: [Errno 111] Connection refused → check --host and the network"
        )

    def test_a_certificate_that_nobody_signed_is_named_and_can_be_trusted(
        self, convergate: Convergate, tmp_path: Path, api: KfpApi
    ) -> None:
        with kfp_api.kfp_api(certificate=tmp_path / "ca.pem") as server:
            refused = convergate("retrain", "run.yaml", "--host", server.url)
            assert refused.code == 4
            assert refused.error == (
                f"Kubeflow Pipelines at {server.url}: self-signed certificate"
                " → --ca-file with the certificates it is signed by"
            )
            assert server.calls == []
            assert convergate("retrain", "run.yaml", "--host", server.url, "--ca-file", "ca.pem").code == 0
            assert len(server.runs) == 1

    @pytest.mark.parametrize(
        ("arguments", "line"),
        [
            (["--host", "kfp.example.org"], "--host kfp.example.org: not a URL → https://…"),
            (["--wait"], "--wait without --host: what runs here is waited for → leave it out, or --host URL"),
            (
                ["--host", "http://h", "--token-file", "none"],
                "--token-file none: No such file or directory → a file with a bearer token",
            ),
            (
                ["--host", "http://h", "--token-file", "run.yaml"],
                "--token-file run.yaml: not a token → one line, nothing else",
            ),
            (["--host", "http://h", "--ca-file", "none"], "--ca-file none: no such file → a PEM file"),
            (
                ["--host", "http://h", "--toleration", "a=b:c"],
                "--toleration a=b:c: not a taint → key=value:effect, effect one of NoSchedule, PreferNoSchedule,"
                " NoExecute",
            ),
            (
                ["--host", "http://h", "--node-selector", "gpu"],
                "--node-selector gpu: not a label of a node → key=value",
            ),
        ],
    )
    def test_wrong_options_are_one_line(
        self, convergate: Convergate, api: KfpApi, arguments: list[str], line: str
    ) -> None:
        answer = convergate("canary", "run.yaml", *arguments)
        assert (answer.code, answer.error) == (2, line)


class TestWaiting:
    @pytest.mark.parametrize(
        ("ended", "code", "said"),
        [
            (steps("SUCCEEDED", **TRAINED, gate="SUCCEEDED", promote="SUCCEEDED"), 0, "every step succeeded"),
            (steps("FAILED", **TRAINED, gate="SUCCEEDED", stop_undecided="FAILED"), 3, "gate could not tell"),
        ],
    )
    def test_the_exit_code_is_the_runs(
        self, convergate: Convergate, api: KfpApi, ended: kfp_api.Node, code: int, said: str
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
        self, convergate: Convergate, api: KfpApi, s3: str, tmp_path: Path, name: str, document: object, code: int,
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

    def test_a_terminal_sees_each_step_end(
        self, convergate: Convergate, api: KfpApi, monkeypatch: pytest.MonkeyPatch
    ) -> None:
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
        self, convergate: Convergate, api: KfpApi, s3: str, tmp_path: Path
    ) -> None:
        (tmp_path / "run.yaml").write_text(config_text(s3))
        api.script = [steps("SUCCEEDED", **BEFORE, canary="SUCCEEDED", passed="SUCCEEDED", **CLOSED)]
        answer = convergate("canary", *to(api, "--wait", "--json"))
        assert (answer.code, answer.json["read_from"], answer.json["steps"]["passed"]) == (0, "steps", "SUCCEEDED")

    def test_an_outage_is_waited_through(self, convergate: Convergate, api: KfpApi) -> None:
        api.script = [steps(), steps("SUCCEEDED")]
        api.faults = [Fault("GET", "/runs/", 503, times=3), Fault("GET", "/runs/", kfp_api.DROP, times=3)]
        assert convergate("retrain", *to(api, "--wait")).code == 0

    def test_not_for_ever(self, convergate: Convergate, api: KfpApi, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("convergate.pipelines.watching.OUTAGE_SECONDS", 0.2)
        api.faults = [Fault("GET", "/runs/", 502, times=10**6)]
        answer = convergate("retrain", *to(api, "--wait"))
        assert answer.code == 4
        assert "502" in answer.err

    def test_a_token_that_expires_is_read_again(
        self, convergate: Convergate, api: KfpApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        api.script = [steps(), steps("SUCCEEDED")]
        follow = KfpApi._runs

        def rotate(self: KfpApi, method: str, *rest: object) -> kfp_api.Node:
            self.token = f"{TOKEN}-{len(self.calls)}"
            (tmp_path / "token").write_text(self.token)
            return follow(self, method, *rest)  # type: ignore[arg-type]

        monkeypatch.setattr(KfpApi, "_runs", rotate)
        assert convergate("retrain", *to(api, "--wait")).code == 0

    def test_a_wait_that_is_over_leaves_the_run(self, convergate: Convergate, api: KfpApi) -> None:
        answer = convergate("retrain", *to(api, "--wait", "--timeout", "0.001"))
        assert answer.code == 3
        assert "the run goes on after 0.001 minutes: " in answer.err
        assert "longer --timeout" in answer.err

    @pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
    def test_an_interruption_ends_the_wait_and_not_the_run(
        self, api: KfpApi, tmp_path: Path, signum: int, code: int
    ) -> None:
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

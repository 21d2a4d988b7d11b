"""retrain and canary on a cluster: what is sent, and what fails."""

import json
from pathlib import Path

import kfp_api
import pytest
from kfp_api import Fault, KfpApi

from ..documents import config_text, make_config, make_plan
from .conftest import TOKEN, Convergate, to


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
            f"config {plan.training_digest[:16]}",
            f"policy {plan.policy_digest[:16]}",
            "commit 0123456789ab",
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

    @pytest.mark.parametrize("done", [kfp_api.DROP_AFTER, kfp_api.LATE])
    def test_an_answer_that_is_lost_is_no_second_run(self, convergate: Convergate, api: KfpApi, done: str) -> None:
        """Also where the server is still at it when it is looked for."""
        api.faults = [Fault("POST", "/runs$", done)]
        answer = convergate("retrain", *to(api, "--json"))
        assert (answer.code, [run["run_id"] for run in api.runs]) == (0, [answer.json["run_id"]])

    def test_nor_is_the_answer_to_the_second_try(self, convergate: Convergate, api: KfpApi) -> None:
        api.faults = [Fault("POST", "/runs$", kfp_api.DROP), Fault("POST", "/runs$", kfp_api.DROP_AFTER)]
        answer = convergate("retrain", *to(api, "--json"))
        assert (answer.code, [run["run_id"] for run in api.runs]) == (0, [answer.json["run_id"]])

    @pytest.mark.parametrize(
        ("more", "options", "hours"),
        [
            ("", (), 24),
            ("budget: {max_gpu_hours: 100}\n", (), 101),
            ("budget: {max_gpu_hours: 100}\n", ("--train-hours", "120"), 120),
            ("distributed: {launcher: trainjob, nodes: 2}\n", (), 48),
            ("distributed: {launcher: trainjob, nodes: 2}\nbudget: {max_gpu_hours: 300}\n", (), 174),
            ("budget: {max_gpu_hours: 1.0e+15}\n", (), 596523),
        ],
    )
    def test_train_has_the_time_that_the_budget_allows(
        self, convergate: Convergate, api: KfpApi, tmp_path: Path, more: str, options: tuple[str, ...], hours: int
    ) -> None:
        """Of all processes together: two nodes with one each take 150 hours for 300."""
        (tmp_path / "run.yaml").write_text(config_text(more=more))
        answer = convergate("retrain", *to(api, *options))
        assert (answer.code, answer.err) == (0, "")
        pods = api.runs[0]["pipeline_spec"]["platform_spec"]["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
        assert int(pods["exec-train"]["activeDeadlineSeconds"]) == hours * 3600

    def test_less_time_than_that_is_refused(self, convergate: Convergate, api: KfpApi, tmp_path: Path) -> None:
        (tmp_path / "run.yaml").write_text(config_text(more="budget: {max_gpu_hours: 100}\n"))
        answer = convergate("retrain", *to(api, "--train-hours", "99"))
        assert (answer.code, answer.error) == (
            2,
            "--train-hours 99: training may take 100.0 hours by budget.max_gpu_hours"
            " → --train-hours 101, or a smaller budget",
        )
        assert api.runs == []
        assert convergate("canary", *to(api, "--train-hours", "99")).code == 0

    def test_long_names_are_cut_where_the_server_would_refuse_the_run(
        self, convergate: Convergate, api: KfpApi, tmp_path: Path
    ) -> None:
        text = config_text().replace("experiment: digits", f"experiment: {'e' * 63}")
        (tmp_path / "run.yaml").write_text(text.replace("team: vision", f"team: {'t' * 99}"))
        for command, kind in (("retrain", "runs"), ("recurring", "recurring_runs")):
            arguments = to(api) if command == "retrain" else ["run.yaml", "--cron", "0 2 * * *", *to(api)[1:]]
            answer = convergate(command, *arguments)
            assert (answer.code, answer.err) == (0, "")
            (run,) = getattr(api, kind)
            first, *others = run["description"].splitlines()
            assert first.startswith(f"convergate retrain of {'e' * 63}, model digits, team ttt")
            assert first.endswith("t…")
            assert [line.partition(" ")[0] for line in others][:2] == ["config", "policy"]
            assert len(run["description"]) == 255

    def test_an_error_of_the_servers_own_is_no_lost_call(self, convergate: Convergate, api: KfpApi) -> None:
        """It may have made the Workflow before: a second call would be a second training."""
        api.faults = [Fault("POST", "/runs$", 500)]
        assert convergate("retrain", *to(api)).code == 4
        assert [call for call in api.calls if call.endswith("/runs")] == ["POST /apis/v2beta1/runs"]

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
            (Fault("POST", "/runs$", 500, times=9), "500 ordered for the test; you sent Bearer [token] → mend what"),
            (Fault("POST", "/runs$", 503, times=9), "503 ordered for the test; you sent Bearer [token] → try again"),
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
            (["--host", ""], "--host '': not a URL → https://…"),
            (["--host", "http://"], "--host http://: not a URL → https://…"),
            (
                ["--host", "http://h", "--token-file", "dashed"],
                "--token-file dashed: not a token → one line, nothing else",
            ),
            (
                ["--host", "http://h", "--wait", "--timeout", "nan"],
                "Invalid value for '--timeout': nan is no number of minutes → convergate canary --help",
            ),
            (
                ["--host", "http://h", "--gpu-type", ""],
                "--gpu-type '': not a resource of a node → nvidia.com/gpu, or another's name",
            ),
            *(
                (given, f"{given[0]} without --host: it is for a run on a cluster → leave it out, or --host URL")
                for given in (["--wait"], ["--timeout", "5"], ["--gpus", "2"], ["--toleration", "spot"])
            ),
            (
                ["--host", "http://h", "--timeout", "5"],
                "--timeout without --wait: nothing waits → leave it out, or --wait",
            ),
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
        Path("dashed").write_text("eyJhbGciOi—secret", encoding="utf-8")
        for command in ("canary", "retrain"):
            answer = convergate(command, "run.yaml", *arguments)
            assert (answer.code, answer.error) == (2, line.replace("canary", command))
        assert not Path(".convergate").exists()

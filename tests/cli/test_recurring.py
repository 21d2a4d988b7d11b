"""recurring: one schedule for a config's experiment and model, made, changed and ended over HTTP."""

from collections.abc import Iterator
from pathlib import Path

import kfp_api
import pytest
from kfp_api import Fault, KfpApi

from ..documents import config_text
from .conftest import Convergate

NAME = "convergate-digits-digits-retrain"
NIGHTLY = ("--cron", "0 2 * * *")


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[KfpApi]:
    monkeypatch.setattr("convergate.pipelines.kfp_api.PATIENCE_SECONDS", 1.0)
    (tmp_path / "run.yaml").write_text(config_text())
    with kfp_api.kfp_api() as server:
        monkeypatch.setenv("KF_PIPELINES_ENDPOINT", server.url)
        yield server


def test_it_is_created_shown_paused_resumed_and_deleted(convergate: Convergate, api: KfpApi) -> None:
    answer = convergate("recurring", "run.yaml", *NIGHTLY)
    assert (answer.code, answer.out) == (0, f"{NAME}  0 0 2 * * *  on  created\n")
    (run,) = api.recurring_runs
    assert run["trigger"] == {"cron_schedule": {"cron": "0 0 2 * * *"}}
    assert (run["max_concurrency"], run["no_catchup"], run["mode"]) == ("1", True, "ENABLE")
    assert run["service_account"] == "convergate-pipeline"
    assert run["runtime_config"]["parameters"] == {
        "config": config_text(), "run_id": "", "submitter": f"recurring run {NAME}",
    }  # fmt: skip
    tasks = run["pipeline_spec"]["pipeline_spec"]["root"]["dag"]["tasks"]
    assert tasks["close-run"]["cachingOptions"] == {}

    said = [convergate("recurring", "run.yaml", f"--{action}").out for action in ("pause", "show", "resume", "show")]
    assert said == [
        f"{NAME}  0 0 2 * * *  paused  paused\n",
        f"{NAME}  0 0 2 * * *  paused  convergate retrain of digits, model digits, team vision\n",
        f"{NAME}  0 0 2 * * *  on  resumed\n",
        f"{NAME}  0 0 2 * * *  on  convergate retrain of digits, model digits, team vision\n",
    ]
    shown = convergate("recurring", "run.yaml", "--show", "--json").json
    assert shown["schedules"][0]["recurring_run_id"] == run["recurring_run_id"]
    assert convergate("recurring", "run.yaml", "--delete").code == 0
    assert [what for what, _ in api.log] == ["create", "disable", "enable", "disable", "delete"]
    missing = convergate("recurring", "run.yaml", "--show")
    assert (missing.code, missing.error) == (
        2, f"{NAME}: no such recurring run → convergate recurring --cron …",
    )  # fmt: skip


def test_the_same_again_changes_nothing(convergate: Convergate, api: KfpApi, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also from another commit: a CI that makes it each time makes it once."""
    monkeypatch.setenv("CONVERGATE_COMMIT", "a" * 40)
    convergate("recurring", "run.yaml", *NIGHTLY)
    monkeypatch.setenv("CONVERGATE_COMMIT", "b" * 40)
    assert convergate("recurring", "run.yaml", *NIGHTLY).out.endswith("unchanged\n")
    assert [what for what, _ in api.log] == ["create"]
    assert convergate("recurring", "run.yaml", *NIGHTLY, "--paused").out.endswith("paused  paused\n")
    assert api.recurring_runs[0]["status"] == "DISABLED"


@pytest.mark.parametrize("change", ["config", "cron", "cluster"])
def test_a_new_one_stands_before_the_old_one_goes(
    convergate: Convergate, api: KfpApi, tmp_path: Path, change: str
) -> None:
    convergate("recurring", "run.yaml", *NIGHTLY)
    more: tuple[str, ...] = NIGHTLY
    if change == "config":
        (tmp_path / "run.yaml").write_text(config_text(more="seed: 18\n"))
    elif change == "cron":
        more = ("--cron", "30 2 * * mon-fri")
    else:
        more = (*NIGHTLY, "--gpus", "0")
    assert convergate("recurring", "run.yaml", *more).out.endswith("on  replaced\n")
    first, second = [identity for what, identity in api.log if what == "create"]
    assert api.log == [("create", first), ("create", second), ("disable", first), ("delete", first)]
    assert [run["recurring_run_id"] for run in api.recurring_runs] == [second]


def test_a_change_that_was_broken_off_is_ended_by_the_next_try(
    convergate: Convergate, api: KfpApi, tmp_path: Path
) -> None:
    convergate("recurring", "run.yaml", *NIGHTLY)
    (tmp_path / "run.yaml").write_text(config_text(more="seed: 18\n"))
    api.faults = [Fault("DELETE", "recurringruns", 500, times=9)]
    broken = convergate("recurring", "run.yaml", *NIGHTLY)
    assert broken.code == 4
    assert len(api.recurring_runs) == 2
    api.faults = []
    assert convergate("recurring", "run.yaml", *NIGHTLY).out.endswith("on  unchanged\n")
    assert [run["runtime_config"]["parameters"]["config"] for run in api.recurring_runs] == [
        config_text(more="seed: 18\n")
    ]


def test_a_new_one_is_paused_where_the_old_one_was(convergate: Convergate, api: KfpApi, tmp_path: Path) -> None:
    convergate("recurring", "run.yaml", *NIGHTLY)
    convergate("recurring", "run.yaml", "--pause")
    (tmp_path / "run.yaml").write_text(config_text(more="seed: 18\n"))
    answer = convergate("recurring", "run.yaml", *NIGHTLY)
    assert answer.out.endswith("paused  replaced, and paused as before → --resume\n")
    assert [(run["mode"], run["status"]) for run in api.recurring_runs] == [("DISABLE", "DISABLED")]
    (tmp_path / "run.yaml").write_text(config_text(more="seed: 19\n"))
    told = convergate("recurring", "run.yaml", *NIGHTLY, "--json").json
    assert (told["change"], told["schedules"][0]["enabled"]) == ("replaced", False)


def test_a_schedule_is_not_deleted_while_a_run_of_it_goes_on(
    convergate: Convergate, api: KfpApi, tmp_path: Path
) -> None:
    """The cluster would take the run away with it, in the middle of its training."""
    convergate("recurring", "run.yaml", *NIGHTLY)
    (first,) = api.recurring_runs
    api.runs.append({key: first[key] for key in ("recurring_run_id", "experiment_id")})
    kept = f"{NAME}  0 0 2 * * *  paused  kept while a run of it goes on → then --delete, or --cron\n"
    assert convergate("recurring", "run.yaml", "--delete").out == kept
    assert convergate("recurring", "run.yaml", "--resume").out.endswith("on  resumed\n")

    (tmp_path / "run.yaml").write_text(config_text(more="seed: 18\n"))
    assert convergate("recurring", "run.yaml", *NIGHTLY).out == f"{NAME}  0 0 2 * * *  on  replaced\n{kept}"
    assert [run["status"] for run in api.recurring_runs] == ["DISABLED", "ENABLED"]
    shown = convergate("recurring", "run.yaml", "--show", "--json").json
    assert [one["enabled"] for one in (*shown["schedules"], *shown["kept"])] == [True, False]
    for action in ("pause", "resume"):
        assert convergate("recurring", "run.yaml", f"--{action}").code == 0
    assert [run["status"] for run in api.recurring_runs] == ["DISABLED", "ENABLED"]

    (tmp_path / "run.yaml").write_text(config_text())
    assert "on  replaced\n" in convergate("recurring", "run.yaml", *NIGHTLY).out
    assert [run["status"] for run in api.recurring_runs] == ["DISABLED", "ENABLED"]
    assert api.lost == []
    api.runs[0]["state"] = "FAILED"
    assert convergate("recurring", "run.yaml", *NIGHTLY).out == f"{NAME}  0 0 2 * * *  on  unchanged\n"
    assert [run["status"] for run in api.recurring_runs] == ["ENABLED"]


@pytest.mark.parametrize("fault", [kfp_api.DROP_AFTER, 404])
def test_a_delete_is_done_when_it_is_gone(convergate: Convergate, api: KfpApi, fault: int | str) -> None:
    """Its answer was lost, or somebody else was faster."""
    convergate("recurring", "run.yaml", *NIGHTLY)
    api.faults = [Fault("DELETE", "recurringruns", fault)]
    answer = convergate("recurring", "run.yaml", "--delete")
    assert (answer.code, answer.out) == (0, f"{NAME}  0 0 2 * * *  on  deleted\n")


def test_a_schedule_that_somebody_deletes_meanwhile_is_not_for_another_host(
    convergate: Convergate, api: KfpApi
) -> None:
    convergate("recurring", "run.yaml", *NIGHTLY)
    api.faults = [Fault("POST", ":disable$", 404)]
    answer = convergate("recurring", "run.yaml", "--pause")
    assert answer.code == 4
    assert answer.error.endswith("→ somebody has deleted it")


def test_train_has_the_time_that_the_budget_allows(convergate: Convergate, api: KfpApi, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(config_text(more="budget: {max_gpu_hours: 100}\n"))
    convergate("recurring", "run.yaml", *NIGHTLY)
    platform = api.recurring_runs[0]["pipeline_spec"]["platform_spec"]["platforms"]["kubernetes"]
    assert int(platform["deploymentSpec"]["executors"]["exec-train"]["activeDeadlineSeconds"]) == 101 * 3600


def test_canary_and_retrain_have_schedules_of_their_own(convergate: Convergate, api: KfpApi) -> None:
    convergate("recurring", "run.yaml", *NIGHTLY)
    convergate("recurring", "run.yaml", *NIGHTLY, "--pipeline", "canary", "--paused")
    assert [(run["display_name"], run["status"]) for run in api.recurring_runs] == [
        (NAME, "ENABLED"),
        (NAME.replace("retrain", "canary"), "DISABLED"),
    ]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([], "one of --cron, --show, --pause, --resume, --delete → convergate recurring --help"),
        (["--show", *NIGHTLY], "one of --cron, --show, --pause, --resume, --delete → convergate recurring --help"),
        (["--show", "--delete"], "one of --cron, --show, --pause, --resume, --delete → convergate recurring --help"),
        (["--show", "--paused"], "--paused goes with --cron → --pause"),
        (
            ["--cron", "0 2 * *"],
            "--cron '0 2 * *': 4 fields → minute hour day month weekday, such as '0 2 * * *', or seconds first",
        ),
        (
            ["--cron", "0 25 * * *"],
            "--cron '0 25 * * *': '25' is no hour → 0 to 23, *, a-b, or */n",
        ),
    ],
)
def test_wrong_options_are_one_line(convergate: Convergate, api: KfpApi, arguments: list[str], line: str) -> None:
    answer = convergate("recurring", "run.yaml", *arguments)
    assert (answer.code, answer.error) == (2, line)
    assert api.recurring_runs == []

"""train and canary alone, where a config asks for weights to begin with."""

from pathlib import Path

import pytest
from convergate.components.config import RunConfig
from convergate.components.config.plan import RunPlan
from convergate.components.promotion.champion import ChampionRecord, Release, read_champion, write_champion
from convergate.components.storage import RunStore, S3Location, S3Store

from ..components.promotion.conftest import save_checkpoint
from ..documents import config_text, make_config
from .conftest import Convergate


def write(root: str) -> None:
    """A config of four steps in one process, so that a training takes as long as its start."""
    text = config_text(root).replace("eval_every_steps: 20", "eval_every_steps: 4, init_from: champion")
    Path("run.yaml").write_text(text.replace("total_steps: 40, warmup: {steps: 4}", "total_steps: 4"))


def crown(config: RunConfig, version: str) -> tuple[str, str]:
    """Make a new model champion; URI and digest of its checkpoint."""
    root, model = config.storage.uri, config.promotion.model
    uri, digest = save_checkpoint(config, f"run-{version}", seed=int(version))
    release = Release(version=version, run_id=f"run-{version}", uri=uri, digest=digest)
    record = ChampionRecord(
        run_id=release.run_id, model=model, champion=release, action="promote", actor="ada", reason="good"
    )
    write_champion(root, record, expected=read_champion(root, model))
    return uri, digest


@pytest.mark.parametrize("command", ["train", "canary"])
def test_without_a_champion_nothing_is_started(convergate: Convergate, s3: str, command: str) -> None:
    write(s3)
    answer = convergate(command, "run.yaml")
    assert (answer.code, answer.out) == (2, "")
    assert answer.err.splitlines() == [
        "convergate: run.yaml: 1 problem",
        "  training.init_from = champion  digits has no champion yet",
        "                                 → promote a run first, or begin with random weights: init_from: null",
    ]
    assert list(S3Store().list(S3Location.parse(s3))) == []


def test_a_run_keeps_the_champion_that_it_began_with(convergate: Convergate, s3: str) -> None:
    """Started again from nothing, after another was promoted."""
    write(s3)
    config = make_config(s3)
    first = crown(config, "1")
    assert convergate("train", "run.yaml", "--run", "mine").code == 0
    crown(config, "2")
    again = convergate("train", "run.yaml", "--run", "mine", "--resume", "never", "--json").json
    assert (again["attempts"], again["init_uri"], again["init_digest"]) == (2, *first)
    plan = RunStore(s3, "mine").get("plan", RunPlan)
    assert (plan.init_uri, plan.init_digest) == first
    Path("run.yaml").write_text(Path("run.yaml").read_text().replace("lr0: 0.1", "lr0: 0.2"))
    refused = convergate("train", "run.yaml", "--run", "mine")
    assert (refused.code, "run mine was trained under config" in refused.error) == (2, True)
    assert RunStore(s3, "mine").get("plan", RunPlan) == plan


@pytest.mark.parametrize("command", ["train", "canary", "retrain"])
@pytest.mark.parametrize(
    ("endpoint", "where"), [("", "the embedded S3 server"), ("http://localhost:9000", "http://localhost:9000")]
)
def test_pods_are_not_sent_to_an_s3_on_this_machine(
    convergate: Convergate, monkeypatch: pytest.MonkeyPatch, command: str, endpoint: str, where: str
) -> None:
    Path("run.yaml").write_text(config_text(more="distributed: {launcher: trainjob, nodes: 2}\n"))
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    answer = convergate(command, "run.yaml")
    assert (answer.code, answer.error) == (
        2,
        f"distributed.launcher = trainjob: pods cannot reach {where} → AWS_ENDPOINT_URL of an S3 that they reach,"
        " --host URL, or launcher: local",
    )
    assert not Path(".convergate").exists()

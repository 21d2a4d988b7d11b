"""Which checkpoint `training.init_from` means: the champion's or a named one, as it was, and the same in a retry."""

from collections.abc import Callable

import pytest
from convergate.components.checkpoint import CheckpointRef
from convergate.components.config import Problem, RunConfig
from convergate.components.config.plan import RunPlan, make_plan
from convergate.components.config.preflight import Facts, InitialWeights
from convergate.components.errors import ExitCode, UserError
from convergate.components.promotion.champion import ChampionRecord, Release, read_champion, write_champion
from convergate.components.promotion.initial import find_initial
from convergate.components.storage import RunStore, S3Error, S3Store

from ...checkpoints import folder
from .conftest import MakeConfig, save_checkpoint

Checkpoint = tuple[str, str]
DIGEST = "0" * 64


def begin_from(make_config: MakeConfig, root: str, init_from: str | None) -> RunConfig:
    return make_config(root, training={"batch_size": 8, "init_from": init_from})


def crown(config: RunConfig, checkpoint: Checkpoint, version: str = "1") -> None:
    root, model = config.storage.uri, config.promotion.model
    release = Release(version=version, run_id=f"run-{version}", uri=checkpoint[0], digest=checkpoint[1])
    record = ChampionRecord(
        run_id=release.run_id, model=model, champion=release, action="promote", actor="ada", reason="good"
    )
    write_champion(root, record, expected=read_champion(root, model))


def kept(config: RunConfig, run_id: str) -> RunPlan:
    """The run's plan, as the step of the DAG keeps it."""
    plan = make_plan(config, run_id, Facts(initial=find_initial(config, run_id)))
    RunStore(config.storage.uri, run_id).put("plan", plan)
    return plan


def test_random_weights_ask_nobody(make_config: MakeConfig) -> None:
    """There is no S3 here."""
    assert find_initial(make_config("s3://convergate"), "run") is None


def test_the_champion_is_the_one_of_the_moment_and_stays_the_runs_own(s3: str, make_config: MakeConfig) -> None:
    config = begin_from(make_config, s3, "champion")
    first, second = (save_checkpoint(config, f"run-{n}", seed=n) for n in (1, 2))
    crown(config, first)
    plan = kept(config, "mine")
    assert (plan.verdict, plan.init_uri, plan.init_digest) == ("PASS", *first)
    assert f"- initial weights: `{first[0]}`\n- their digest: `{first[1]}`" in plan.to_markdown()
    crown(config, second, version="2")
    assert find_initial(config, "mine") == InitialWeights(*first), "a retry"
    assert find_initial(config, "next") == InitialWeights(*second)
    named = begin_from(make_config, s3, second[0])
    assert find_initial(named, "mine") == InitialWeights(*second), "of another config the plan says nothing"


def test_a_named_checkpoint_gets_its_digest_whether_it_is_pinned_or_not(s3: str, make_config: MakeConfig) -> None:
    uri, digest = save_checkpoint(make_config(s3), "run-1", seed=1)
    for init_from in (uri, f"{uri}/", f"{uri}@sha256:{digest}"):
        assert find_initial(begin_from(make_config, s3, init_from), "mine") == InitialWeights(uri, digest)


def spoilt(root: str, uri: str) -> str:
    ref = CheckpointRef.parse(uri)
    assert ref is not None
    S3Store().write(folder(ref) / "manifest.json", b"{}")
    return uri


CASES: dict[str, tuple[Callable[[str, str], str], str]] = {
    "gone": (lambda root, uri: f"{root}/checkpoints/none", "{root}/checkpoints/none/manifest.json does not exist"),
    "no bucket": (lambda root, uri: "s3://no-such-bucket-here/x", "x/manifest.json does not exist (no such bucket)"),
    "the manifest itself": (lambda root, uri: f"{uri}/manifest.json", "manifest.json/manifest.json does not exist"),
    "pinned to another": (lambda root, uri: f"{uri}@sha256:{DIGEST}", "not 000000000000…: it was changed"),
    "changed": (spoilt, "it was changed"),
}


@pytest.mark.parametrize(("spoil", "reason"), CASES.values(), ids=CASES.keys())
def test_a_checkpoint_that_is_not_there_as_it_was_fails_the_plan(
    s3: str, make_config: MakeConfig, spoil: Callable[[str, str], str], reason: str
) -> None:
    uri, _ = save_checkpoint(make_config(s3), "run-1", seed=1)
    config = begin_from(make_config, s3, spoil(s3, uri))
    plan = kept(config, "mine")
    assert (plan.verdict, plan.init_uri, plan.init_digest) == ("FAIL", "", "")
    assert plan.reason.startswith(f"error: training.init_from = {config.training.init_from}: ")
    assert reason.format(root=s3) in plan.reason
    assert plan.reason.endswith(" → the prefix of a checkpoint that is committed, as it was")


def test_without_a_champion_it_is_said_what_to_do(s3: str, make_config: MakeConfig) -> None:
    config = begin_from(make_config, s3, "champion")
    found = find_initial(config, "mine")
    reason = f"{config.promotion.model} has no champion yet"
    fix = "promote a run first, or begin with random weights: init_from: null"
    assert found == InitialWeights(problem=Problem("training.init_from", reason, "champion", fix))
    crown(config, ("s3://no-such-bucket-here/x", DIGEST))
    assert "no such bucket" in kept(config, "mine").reason, "a release that was deleted by hand"


def test_an_s3_that_refuses_is_no_missing_checkpoint(
    s3: str, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = begin_from(make_config, s3, "champion")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    with pytest.raises(S3Error, match="permission denied") as caught:
        find_initial(config, "mine")
    assert caught.value.exit_code == ExitCode.OUTSIDE


def test_a_plan_that_does_not_know_its_weights_is_not_made(make_config: MakeConfig) -> None:
    with pytest.raises(UserError, match=r"training\.init_from = champion: nobody looked it up"):
        make_plan(begin_from(make_config, "s3://convergate", "champion"), "run")

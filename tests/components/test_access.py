"""Each kind of step can do on S3 what its code does, and nothing else; shown by a server that enforces the policies."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from convergate.components import access
from convergate.components.access import ACCESS, Kind
from convergate.components.checkpoint.reading import read_manifest
from convergate.components.config import parse_config
from convergate.components.evaluation.evaluate import Champion, evaluate_candidate
from convergate.components.promotion.initial import find_initial
from convergate.components.storage import RunStore, S3Error, S3Location, S3Store, checksums, s3
from convergate.components.storage.errors import S3DeniedError
from convergate.components.storage.streams import PART_BYTES, upload
from convergate.components.task.tabular import TabularTask
from convergate.components.training.initial_weights import load_initial_weights
from convergate.components.training.result import TrainingResult
from convergate.pipelines import compiling

from ..policies import Enforcer, Use, enforcing, needs

MODULES = {
    "open_run": "convergate.components.slo",
    "gate": "convergate.components.slo",
    "validate_config": "convergate.components.config",
    "validate_data": "convergate.components.data",
    "canary": "convergate.canary",
    "train": "convergate.components.training",
    "find_champion": "convergate.components.promotion",
    "promote": "convergate.components.promotion",
    "evaluate": "convergate.components.evaluation",
    "close_run": "convergate.pipelines",
}


def config_text(root: str, **training: Any) -> str:
    raw = {
        "schema_version": 1,
        "experiment": "access",
        "task": {"factory": "convergate.components.task.tabular:TabularTask", "params": {"width": 4}},
        "schedule": {"kind": "cosine", "lr0": 0.1, "total_steps": 12},
        "training": {"batch_size": 64, "eval_every_steps": 12, **training},
        "distributed": {"procs_per_node": 1},
        "canary": {"min_steps": 4, "max_steps": 4, "procs_per_node": 1},
        "checkpoint": {"uri": f"{root}/checkpoints", "every_steps": 4, "keep_last": 1, "keep_best": 0},
        "storage": {"uri": root},
        "evaluation": {"metric": "accuracy", "target": 0.0},
        "slo": {"min_runs": 1},
        "promotion": {"model": f"access-{root[-8:]}"},
    }
    return yaml.safe_dump(raw)


@dataclass
class Run:
    """A run whose steps are processes of their own, each with its kind's identity and settings and no other."""

    folder: Path
    root: str
    run_id: str
    settings: dict[str, str]
    text: str
    told: dict[str, str] = field(default_factory=dict)
    """What the steps told: the references of their documents."""

    def step(self, name: str, **options: str) -> dict[str, str]:
        config = self.folder / f"{self.run_id}.yaml"
        config.write_text(self.text)
        arguments = [f"--{key.replace('_', '-')}={value}" for key, value in options.items()]
        command = [sys.executable, "-m", MODULES[name], name, f"--config=@{config}", *arguments]
        outputs = f"--outputs={self.folder / self.run_id / name}"
        answer = subprocess.run(
            [*command, outputs],
            env={**_plain(), **self._identity(access.kind_of(name))},
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert answer.returncode == 0, f"{name}: {answer.stdout}\n{answer.stderr}"
        lines = [line for line in answer.stdout.splitlines() if line.startswith("{")]
        self.told |= json.loads(lines[-1]) if lines else {}
        return self.told

    def _identity(self, kind: Kind) -> dict[str, str]:
        given = {name: self.settings[name] for name in access.settings(kind) if name in self.settings}
        return {**given, "AWS_ACCESS_KEY_ID": kind, "AWS_SECRET_ACCESS_KEY": "a secret"}

    def place(self, name: str) -> str:
        return f"storage:runs/{self.run_id}/{name}.json"


def _plain() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "MLFLOW_", "COVERAGE_"))}


@pytest.fixture
def enforcer(moto: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Enforcer]:
    """The policies of all kinds over a fresh bucket, in front of moto; the environment leads to it, as nobody."""
    port = int(os.environ["AWS_ENDPOINT_URL"].rpartition(":")[2])
    with enforcing(port, {kind: access.policy(kind, moto) for kind in ACCESS}) as running:
        monkeypatch.setenv("AWS_ENDPOINT_URL", running.url)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
        yield running


@pytest.fixture
def as_kind(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    return lambda kind: monkeypatch.setenv("AWS_ACCESS_KEY_ID", kind)


def retrain(run: Run) -> None:
    """The DAG of a retraining, as Argo calls its steps."""
    run.step("open_run", run_id=run.run_id, job_id="", kind="retrain", submitter="somebody")
    plan = run.step("validate_config", run_id=run.run_id, plan=run.place("plan"))["plan"]
    run.step("validate_data", run_id=run.run_id)
    assert run.step("canary", plan=plan)["verdict"] == "PASS"
    training = run.step("train", plan=plan, training=run.place("training"))["training"]
    champion = run.step("find_champion", champion=run.place("champion"))["champion"]
    place = run.place("evaluation")
    evaluation = run.step("evaluate", training=training, champion=champion, evaluation=place)["evaluation"]
    documents = {"plan": plan, "training": training, "evaluation": evaluation}
    decision = run.step("gate", run_id=run.run_id, **documents, decision=run.place("decision"))["decision"]
    assert run.step("promote", run_id=run.run_id, decision=decision)["alias"] == "champion"
    run.step("close_run", run_id=run.run_id, job_id="")


def test_every_kind_may_do_what_its_code_does_and_nothing_else(
    enforcer: Enforcer,
    moto: str,
    mlflow_server: str,
    tmp_path: Path,
    as_kind: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = {"AWS_ENDPOINT_URL": enforcer.url, "AWS_REGION": "us-east-1", "MLFLOW_TRACKING_URI": mlflow_server}
    settings |= {"MLFLOW_DISABLE_TELEMETRY": "true"}
    run = Run(tmp_path, moto, "run-1", settings, config_text(moto))
    retrain(run)
    # Whether the bucket is there is not theirs to know: only who may list all of it is told.
    assert enforcer.refused == {Use(kind, "s3:ListBucket", moto.removeprefix("s3://")) for kind in ("ledger", "train")}
    enforcer.refused.clear()
    begin_with_the_champion_and_stand_against_it(moto, as_kind)
    monkeypatch.setattr(s3, "COPY_BYTES", PART_BYTES)
    monkeypatch.setattr(s3, "COPY_PART_BYTES", PART_BYTES // 2)
    give_up_large_uploads(moto, enforcer, as_kind)
    assert enforcer.refused == set()

    assert {use for use in enforcer.used if use.action != "s3:ListBucket"} == set(allowed(enforcer))
    # Where it reads, a kind may be told that something is not there.
    assert {use.identity for use in enforcer.used if use.action == "s3:ListBucket"} == set(ACCESS)


def begin_with_the_champion_and_stand_against_it(root: str, as_kind: Callable[[str], None]) -> None:
    """What the steps of a second run read more; also where it is not there."""
    as_kind("check")
    champion = find_initial(parse_config(config_text(root, init_from="champion")), "run-2")
    assert champion is not None
    for gone in (f"{root}/checkpoints/none/attempt-001-step-000000004", f"{root}/releases/none/none#sha256={'0' * 64}"):
        found = find_initial(parse_config(config_text(root, init_from=gone)), "run-2")
        assert found is not None
        assert found.problem is not None
    as_kind("train")
    load_initial_weights(TabularTask(width=4).model(), champion.uri, champion.digest)
    result = RunStore(root, "run-1").get("training", TrainingResult)
    as_kind("evaluate")
    config = parse_config(config_text(root))
    against = Champion(uri=champion.uri, digest=champion.digest, task=config.task)
    assert evaluate_candidate(config, result, against).verdict == "PASS"
    against = Champion(uri=f"{root}/releases/none/none", digest="0" * 64)
    assert evaluate_candidate(config, result, against).verdict == "INCONCLUSIVE"


def give_up_large_uploads(root: str, enforcer: Enforcer, as_kind: Callable[[str], None]) -> None:
    """Objects of several parts: the upload is given up of what the server is asked by, and of a copy that fails."""
    as_kind("train")
    for place in ("checkpoints/run-1/large", "runs/run-1/canary/large"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(checksums, "_answers", {})  # each is a process of its own
            upload(S3Location.parse(f"{root}/{place}"), memoryview(bytearray(PART_BYTES + 1)))
    as_kind("promote")
    enforcer.broken = "partNumber=2"
    with pytest.raises(S3Error, match="400"):
        S3Store().copy(S3Location.parse(f"{root}/checkpoints/run-1/large"), S3Location.parse(f"{root}/releases/large"))


def allowed(enforcer: Enforcer) -> Iterator[Use]:
    """All that the policies allow on objects, one by one."""
    for kind, policy in enforcer.policies.items():
        for statement in policy["Statement"]:
            if statement["Action"] != ["s3:ListBucket"]:
                for resource in statement["Resource"]:
                    yield Use(kind, statement["Action"][0], resource.removeprefix("arn:aws:s3:::"))


WRITERS: dict[str, set[Kind]] = {
    "ledger/access/model/2026-11-28/120000000000-r/start.json": {"ledger"},
    "ledger/access/model/2026-11-28/120000000000-r/end.json": {"ledger"},
    "runs/r/config.yaml": {"ledger"},
    "runs/r/report.html": {"ledger"},
    "runs/r/plan.json": {"check"},
    "runs/r/data.json": {"check"},
    "runs/r/champion.json": {"check"},
    "runs/r/canary.json": {"train"},
    "runs/r/canary/first-steps/result.json": {"train"},
    "runs/r/training.json": {"train"},
    "runs/r/training.json.attempts/001.json": {"train"},
    "runs/r/trace/steps/rank-00000/attempt-001/000000000.parquet": {"train"},
    "checkpoints/r/commits/998-999999995-attempt-001-step-000000004.json": {"train"},
    "runs/r/evaluation.json": {"evaluate"},
    "runs/r/decision.json": {"gate"},
    "runs/r/decisions/0000.json": {"promote"},
    "runs/r/promotion.json": {"promote"},
    "champions/model/champion.json": {"promote"},
    "champions/model/audit/20261128T120000-r.json": {"promote"},
    "releases/model/r/manifest.json": {"promote"},
    "runs/r/approvals/0000.json": set(),  # a person's
    "anything.txt": set(),
}


@pytest.mark.parametrize("kind", get_args(Kind))
def test_a_kind_writes_its_own_documents_and_is_refused_the_others(
    kind: Kind, enforcer: Enforcer, moto: str, as_kind: Callable[[str], None]
) -> None:
    as_kind(kind)
    written = set()
    for key in WRITERS:
        try:
            S3Store().write(S3Location.parse(f"{moto}/{key}"), b"{}")
        except S3DeniedError:
            continue
        written.add(key)
    assert written == {key for key, writers in WRITERS.items() if kind in writers}


@pytest.mark.parametrize("kind", get_args(Kind))
def test_only_training_deletes_and_only_its_own(
    kind: Kind, enforcer: Enforcer, moto: str, as_kind: Callable[[str], None]
) -> None:
    as_kind(kind)
    for key in WRITERS:
        location = S3Location.parse(f"{moto}/{key}")
        if kind == "train" and key.startswith(("checkpoints/", "runs/r/canary/")):
            S3Store().delete(location)
        else:
            with pytest.raises(S3DeniedError):
                S3Store().delete(location)


def test_every_step_of_the_dag_that_reads_or_writes_has_one_kind() -> None:
    steps = [step for access_of in ACCESS.values() for step in access_of.steps]
    assert len(set(steps)) == len(steps)
    assert set(compiling.step_faces()) - set(steps) == {"stop", "stop_undecided", "passed"}
    with pytest.raises(KeyError):
        access.kind_of("stop")


@pytest.mark.parametrize(
    "text",
    [
        f'"{access.CONFIG_FOLDER}"',
        *(f'"{name}"' for name in (access.RUNTIME_VARIABLE, access.QUEUE_VARIABLE, access.LAUNCHER_VARIABLE)),
        *(f'"{name}"' for name in (access.POD_VARIABLE, access.NAMESPACE_VARIABLE)),
        f'"{access.config_map_name("")}',
        "user_code",
    ],
)
def test_a_name_of_the_cluster_stands_once(text: str) -> None:
    root = Path(access.__file__).parents[1]
    rooms = ("canary", "cli", "components", "manifests", "pipelines")
    holders = [path for room in rooms for path in (root / room).rglob("*.py") if text in path.read_text()]
    assert [path.name for path in holders] == ["access.py"] * (text != "user_code")


def test_a_policy_follows_the_uris_of_the_config() -> None:
    found = access.policy("evaluate", "s3://models/team-a", "s3://scratch/team-a/checkpoints")
    by_sid = {statement["Sid"]: statement for statement in found["Statement"]}
    assert by_sid["ListModels"]["Resource"] == ["arn:aws:s3:::models"]
    assert by_sid["ListScratch"]["Condition"] == {"StringLike": {"s3:prefix": ["team-a/checkpoints/*"]}}
    assert by_sid["Write"]["Resource"] == ["arn:aws:s3:::models/team-a/runs/*/evaluation.json"]
    assert "arn:aws:s3:::scratch/team-a/checkpoints/*" in by_sid["Read"]["Resource"]


def test_the_proxy_asks_for_what_s3_asks_for() -> None:
    copy = {"x-amz-copy-source": "/b/from"}
    assert [need.action for need in needs("PUT", "/b/to", copy)] == ["s3:PutObject", "s3:GetObject"]
    assert needs("GET", "/b?list-type=2&prefix=a%2F", {}) == [("s3:ListBucket", "b", "a/")]
    assert needs("HEAD", "/b", {}) == [("s3:ListBucket", "b", None)]
    assert needs("DELETE", "/b/k?uploadId=1", {}) == [("s3:AbortMultipartUpload", "b/k", None)]
    assert needs("POST", "/b/k?uploads", {}) == [("s3:PutObject", "b/k", None)]
    assert needs("PUT", "/b", {}) == [("s3:CreateBucket", "b", None)]


def test_a_manifest_alone_is_no_right(enforcer: Enforcer, moto: str, as_kind: Callable[[str], None]) -> None:
    as_kind("gate")
    with pytest.raises(S3Error, match="permission denied"):
        read_manifest(f"{moto}/checkpoints/run/attempt-001-step-000000001")

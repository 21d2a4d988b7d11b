"""promote, rollback: a person's approval over a run on S3 and in MLflow, as the command line does it."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import pytest
from convergate.components.config.signature import generate_key
from convergate.components.promotion.approval import approval_uri, find_approval
from convergate.components.promotion.champion import ChampionRecord, read_champion
from convergate.components.promotion.promote import promote_run
from convergate.components.promotion.registry import mlflow_client
from convergate.components.slo.decision import Decision
from convergate.components.storage import RunStore, S3Location, S3Store

from ..components.promotion.conftest import save_checkpoint
from ..documents import config_text, make_config, save_run
from .conftest import Convergate

APPROVE = ("--approve", "--reason", "checked on site", "--key", "ada.pem")


@pytest.fixture
def name() -> str:
    """Of an experiment and model that no other test uses: they share MLflow."""
    return f"digits-{uuid4().hex[:8]}"


@pytest.fixture
def _key(tmp_path: Path) -> None:
    generate_key(tmp_path / "ada.pem")


@pytest.fixture
def _no_mlflow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing answers there: what is refused is refused before the registry is asked."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")


def objects(root: str) -> dict[str, bytes]:
    store = S3Store()
    return {str(location): store.read(location) for location in store.list(S3Location.parse(root))}


def decision_of(root: str, run: str) -> Decision:
    return RunStore(root, run).get("decision", Decision)


class TestShown:
    """Without --approve."""

    def test_it_shows_what_would_be_and_changes_nothing(self, convergate: Convergate, s3: str) -> None:
        save_run(config_text(s3), "run-1")
        before = objects(s3)
        told, read = (
            convergate("promote", "run-1", "--root", s3),
            convergate("promote", "run-1", "--root", s3, "--json"),
        )
        assert told.code == read.code == 3
        assert objects(s3) == before
        decision = decision_of(s3, "run-1")
        assert {name: read.json[name] for name in ("run", "model", "decision", "reasons", "champion", "approval")} == {
            "run": "run-1", "model": "digits", "decision": "CHALLENGER", "reasons": decision.reasons,
            "champion": None, "approval": None,
        }  # fmt: skip
        assert read.json["metric"] == {
            "metric": "accuracy", "value": 0.98, "low": 0.96, "high": 0.99, "target": 0.95, "champion_value": None,
        }  # fmt: skip
        assert [check["name"] for check in read.json["checks"]] == [check.name for check in decision.checks]
        assert told.out.startswith("digits, run run-1: CHALLENGER: history is short")
        assert "   accuracy              0.98 [0.96, 0.99], target 0.95\n" in told.out
        assert "   champion              none yet\n" in told.out
        assert told.out.endswith('Next: `convergate promote run-1 --approve --reason "…" --key FILE`\n')

    def test_a_reject_is_a_negative_answer(self, convergate: Convergate, s3: str) -> None:
        save_run(config_text(s3), "run-1", verdict="FAIL", reached_target=False)
        answer = convergate("promote", "run-1", "--root", s3)
        assert answer.code == 1
        assert answer.out.endswith("A decision that is REJECT cannot be approved.\n")

    @pytest.mark.parametrize(
        ("measured_against", "hours", "told"),
        [
            ("run-0", -1, ""),
            ("run-0", 1, ", which the decision did not know"),
            ("", -1, ", which the decision did not know"),
        ],
        ids=["known", "there and back since", "another"],
    )
    def test_whether_the_decision_knew_the_champion(
        self, convergate: Convergate, s3: str, measured_against: str, hours: int, told: str
    ) -> None:
        save_run(config_text(s3), "run-1", champion_uri=f"{s3}/releases/digits/{measured_against}")
        champion = {"version": "7", "run_id": "run-0", "uri": f"{s3}/releases/digits/run-0", "digest": "cd" * 32}
        record = {"run_id": "run-0", "model": "digits", "champion": champion}
        record |= {"created": datetime.now(UTC) + timedelta(hours=hours)}
        record |= {"action": "promote", "actor": "bob", "reason": "good"}
        location = S3Location.parse(s3) / "champions" / "digits" / "champion.json"
        S3Store().write(location, ChampionRecord.model_validate(record).to_json())
        answer = convergate("promote", "run-1", "--root", s3)
        assert answer.code == 3
        assert f"v7 of run run-0{told}\n" in answer.out
        assert ("a new run is measured against it" in answer.out.splitlines()[-1]) == bool(told)


@pytest.mark.usefixtures("_key", "_no_mlflow")
class TestRefused:
    @pytest.mark.parametrize(
        "arguments", [("--approve",), ("--approve", "--reason", "x"), ("--approve", "--key", "ada.pem")]
    )
    def test_an_approval_says_why_and_is_signed(
        self, convergate: Convergate, s3: str, arguments: tuple[str, ...]
    ) -> None:
        answer = convergate("promote", "run-1", "--root", s3, *arguments)
        assert answer.code == 2
        assert answer.error == "--approve needs --reason and --key → convergate promote --help"

    @pytest.mark.parametrize("command", [("promote", "run-1", "--approve"), ("rollback", "run.yaml")])
    def test_a_blank_reason_is_none(self, convergate: Convergate, command: tuple[str, ...]) -> None:
        answer = convergate(*command, "--reason", " \n ")
        assert answer.code == 2
        assert "is blank: say why" in answer.error

    @pytest.mark.parametrize("hours", ["0", "169", "nan"])
    def test_it_expires_within_a_week(self, convergate: Convergate, s3: str, hours: str) -> None:
        answer = convergate("promote", "run-1", "--root", s3, *APPROVE, "--valid-hours", hours)
        assert answer.code == 2
        assert "--valid-hours" in answer.error

    def test_a_negative_decision_cannot_be_approved(self, convergate: Convergate, s3: str) -> None:
        save_run(config_text(s3), "run-1", verdict="FAIL", reached_target=False)
        answer = convergate("promote", "run-1", "--root", s3, *APPROVE)
        assert answer.code == 1
        assert answer.error == "the decision of run run-1 is REJECT, which nobody can approve → retrain"
        assert read_champion(s3, "digits") is None

    def test_a_key_that_is_not_there(self, convergate: Convergate, s3: str) -> None:
        save_run(config_text(s3), "run-1")
        answer = convergate("promote", "run-1", "--root", s3, *APPROVE[:-1], "bob.pem")
        assert answer.code == 2
        assert answer.error.startswith("bob.pem: cannot be read")
        assert find_approval(s3, decision_of(s3, "run-1")) is None

    def test_a_run_that_was_not_decided(self, convergate: Convergate, s3: str) -> None:
        save_run(config_text(s3), "run-1")
        S3Store().delete(S3Location.parse(s3) / "runs" / "run-1" / "decision.json")
        answer = convergate("promote", "run-1", "--root", s3, *APPROVE)
        assert answer.code == 2
        assert answer.error.startswith("nothing was decided over run run-1")


@pytest.mark.usefixtures("_key", "mlflow_server")
def test_approved_champion_and_back(convergate: Convergate, s3: str, name: str, tmp_path: Path) -> None:
    """Two challengers in turn, then one step back, told as a person and as a machine read it."""
    text, config = config_text(s3, name), make_config(s3, name)
    (tmp_path / "run.yaml").write_text(text)
    save_run(text, "run-1", save_checkpoint(config, "run-1", 1))
    told = convergate("promote", "run-1", "--root", s3, *APPROVE, "--valid-hours", "1")
    assert told.code == 0, told.err
    record = read_champion(s3, name)
    assert record is not None
    assert (record.champion.run_id, record.reason) == ("run-1", "checked on site")
    first_line, audit, approval = told.out.splitlines()
    assert first_line == f"{name} v1 is `champion`, approved by {record.actor}"
    assert ChampionRecord.from_json(S3Store().read(S3Location.parse(audit.split()[1]))) == record
    assert approval.split()[1] == record.approval_uri == approval_uri(s3, decision_of(s3, "run-1"))
    assert told.err.startswith(f"approved by {record.actor} until 20")

    before = objects(s3)
    again = convergate("promote", "run-1", "--root", s3, *APPROVE)
    assert (again.code, again.out) == (0, told.out)
    assert objects(s3) == before
    shown = convergate("promote", "run-1", "--root", s3)
    assert shown.code == 3
    assert f"by {record.actor}: checked on site" in shown.out
    assert shown.out.endswith("It is champion already.\n")

    champion_uri = record.champion.uri
    save_run(text, "run-2", save_checkpoint(config, "run-2", 2), champion_uri=champion_uri, champion_value=0.97)
    save_run(text, "run-3", save_checkpoint(config, "run-3", 3), champion_uri=champion_uri, champion_value=0.97)
    assert "v1 of run run-1\n" in convergate("promote", "run-2", "--root", s3).out
    read = convergate("promote", "run-2", "--root", s3, *APPROVE, "--json")
    assert (read.code, read.json["alias"], read.json["version"], read.err) == (0, "champion", "2", "")
    late = convergate("promote", "run-3", "--root", s3, *APPROVE)
    assert late.code == 3
    assert "the champion was changed meanwhile, to v2 of run run-2" in late.err.splitlines()[-1]

    back = convergate("rollback", "run.yaml", "--reason", "worse at night")
    assert (back.code, back.out) == (0, f"{name} v1 is champion again, v2 is not: worse at night\n")
    with mlflow_client() as client:
        assert client.get_model_version_by_alias(name, "champion").version == "1"
    retried = convergate("promote", "run-2", "--root", s3, *APPROVE)
    assert retried.code == 1
    assert "decide again, then approve: convergate gate run-2" in retried.err.splitlines()[-1]
    further = convergate("rollback", "run.yaml", "--reason", "worse at night", "--json")
    assert further.code == 1
    assert further.error == f"{name} has no previous champion: there is nothing to go back to"


@pytest.mark.usefixtures("mlflow_server")
def test_a_rollback_for_a_machine(convergate: Convergate, s3: str, name: str, tmp_path: Path) -> None:
    """Of what the decisions alone promoted."""
    (tmp_path / "run.yaml").write_text(config_text(s3, name))
    config, champion = make_config(s3, name), None
    for run in ("run-1", "run-2"):
        save_run(config_text(s3, name), run, save_checkpoint(config, run, 1), champion_uri=champion)
        decided = decision_of(s3, run).model_copy(update={"decision": "PROMOTE"})
        champion = promote_run(config, run, decided).uri
    answer = convergate("rollback", "run.yaml", "--reason", "worse  at\nnight", "--json")
    assert answer.code == 0
    assert answer.json["action"] == "rollback"
    assert answer.json["reason"] == "worse at night"
    assert answer.json == read_champion(s3, name).model_dump(mode="json")  # type: ignore[union-attr]

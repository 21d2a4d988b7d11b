"""A person's approval: what it covers, what it cannot do, and how it is carried out and audited."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from convergate.components.config.signature import SignatureError, generate_key
from convergate.components.errors import OutsideError, UserError
from convergate.components.promotion.approval import (
    Approval,
    ApprovalError,
    approval_uri,
    approve,
    decision_digest,
    find_approval,
)
from convergate.components.promotion.champion import ChampionChangedError, read_champion
from convergate.components.promotion.promote import Promotion, PromotionError, promote_run, roll_back
from convergate.components.slo.decision import Decision
from convergate.components.storage import ObjectExistsError, RunStore, S3Location, S3Store
from cryptography.hazmat.primitives import serialization
from pydantic import ValidationError

from .conftest import MakeConfig, MakeDecision
from .test_promote import aliases, audits

HOUR = timedelta(hours=1)


@pytest.fixture
def key(tmp_path: Path) -> Path:
    generate_key(tmp_path / "ada.pem")
    return tmp_path / "ada.pem"


@pytest.fixture
def public_key(key: Path) -> Path:
    private = serialization.load_pem_private_key(key.read_bytes(), password=None)
    file = key.with_suffix(".pub")
    file.write_bytes(
        private.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    return file


@pytest.fixture
def decision(s3: str, make_config: MakeConfig, make_decision: MakeDecision) -> Decision:
    return make_decision(make_config(s3), "run-1", decision="CHALLENGER")


def ada_approves(root: str, decision: Decision, key: Path, valid_for: timedelta = HOUR, why: str = "seen") -> Approval:
    return approve(root, decision, reason=why, key_file=key, valid_for=valid_for, approver="ada")


class TestApprove:
    def test_it_is_stored_beside_the_runs_documents(self, s3: str, decision: Decision, key: Path) -> None:
        before = datetime.now(UTC)
        approval = ada_approves(s3, decision, key)
        assert (approval.run_id, approval.approver, approval.reason) == ("run-1", "ada", "seen")
        assert approval.decision_digest == decision_digest(decision)
        assert before + HOUR <= approval.expires <= datetime.now(UTC) + HOUR
        assert approval_uri(s3, decision) == f"{s3}/runs/run-1/approvals/{approval.decision_digest}.json"
        stored = S3Store().read(S3Location.parse(approval_uri(s3, decision)))
        assert Approval.from_json(stored) == approval == find_approval(s3, decision)
        approval.require(decision)

    @pytest.mark.parametrize(("outcome", "way_out"), [("REJECT", "retrain"), ("HOLD", "convergate gate run-1")])
    def test_a_negative_decision_can_never_be_approved(
        self, s3: str, decision: Decision, key: Path, outcome: str, way_out: str
    ) -> None:
        negative = decision.model_copy(update={"decision": outcome})
        with pytest.raises(ApprovalError, match=f"is {outcome}, which nobody can approve → .*{way_out}"):
            ada_approves(s3, negative, key)
        assert find_approval(s3, negative) is None

    def test_the_first_one_stands(self, s3: str, decision: Decision, key: Path, public_key: Path) -> None:
        """Who repeats it gets it as it is, and needs the public key alone: not a longer one, not another reason."""
        first = ada_approves(s3, decision, key)
        assert ada_approves(s3, decision, public_key, 5 * HOUR, "other") == first
        assert find_approval(s3, decision) == first

    def test_of_two_at_once_one_stands(
        self, s3: str, decision: Decision, key: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Another approval lands after this one has looked, and before it writes."""
        create = S3Store.create

        def late(store: S3Store, location: S3Location, data: bytes) -> None:
            monkeypatch.setattr(S3Store, "create", create)
            ada_approves(s3, decision, key, why="first")
            with pytest.raises(ObjectExistsError):
                create(store, location, data)
            raise ObjectExistsError("lost")

        monkeypatch.setattr(S3Store, "create", late)
        assert ada_approves(s3, decision, key, why="second").reason == "first"

    def test_another_decision_of_the_run_needs_an_approval_of_its_own(
        self, s3: str, decision: Decision, key: Path
    ) -> None:
        approval = ada_approves(s3, decision, key)
        again = decision.model_copy(update={"created": datetime.now(UTC), "decision": "PROMOTE"})
        with pytest.raises(ApprovalError, match="by ada is about another decision of run run-1"):
            approval.require(again)
        assert find_approval(s3, again) is None
        ada_approves(s3, again, key).require(again)

    def test_only_a_private_key_approves(self, s3: str, decision: Decision, public_key: Path) -> None:
        with pytest.raises(UserError, match="a public key cannot sign"):
            ada_approves(s3, decision, public_key)
        assert find_approval(s3, decision) is None

    def test_without_a_reason_it_is_none(self, s3: str, decision: Decision, key: Path) -> None:
        with pytest.raises(ValidationError):
            ada_approves(s3, decision, key, why="")


class TestSignature:
    @pytest.mark.parametrize(
        "change",
        [
            {"reason": "whatever"},
            {"approver": "bob"},
            {"expires": datetime(2100, 1, 1, tzinfo=UTC)},
            {"created": datetime(2020, 1, 1, tzinfo=UTC)},
            {"decision_digest": "0" * 64},
            {"run_id": "run-2"},
            {"signature": ""},
            {"signature": "é"},
        ],
    )
    def test_it_covers_everything(
        self, s3: str, decision: Decision, key: Path, public_key: Path, change: dict[str, object]
    ) -> None:
        """A stored approval that was changed is met when it is carried out again."""
        approval = ada_approves(s3, decision, key)
        approval.verify(public_key)
        changed = approval.model_copy(update=change)
        with pytest.raises(SignatureError, match="the approval of run run-[12] by (ada|bob): the signature does not"):
            changed.verify(public_key)
        S3Store().write(S3Location.parse(approval_uri(s3, decision)), changed.to_json())
        with pytest.raises(SignatureError):
            ada_approves(s3, decision, key)

    def test_another_persons_key_does_not_verify_it(
        self, s3: str, decision: Decision, key: Path, tmp_path: Path
    ) -> None:
        ada_approves(s3, decision, key)
        generate_key(tmp_path / "bob.pem")
        with pytest.raises(SignatureError, match=r"under .*bob\.pem"):
            ada_approves(s3, decision, tmp_path / "bob.pem")

    def test_it_survives_being_stored(self, s3: str, decision: Decision, key: Path) -> None:
        Approval.from_json(ada_approves(s3, decision, key, why="größer, “besser” 😀").to_json()).verify(key)


class TestExpiry:
    def test_an_expired_one_is_refused_and_not_renewed(
        self, s3: str, make_config: MakeConfig, decision: Decision, key: Path
    ) -> None:
        config = make_config(s3)
        expired = ada_approves(s3, decision, key, timedelta(0))
        message = r"by ada expired at .* UTC → decide again, then approve: convergate gate run-1"
        for approval in (expired, ada_approves(s3, decision, key)):
            with pytest.raises(ApprovalError, match=message):
                promote_run(config, "run-1", decision, approval)
        assert read_champion(s3, config.promotion.model) is None
        assert RunStore(s3, "run-1").find("promotion", Promotion) is None

    def test_it_holds_to_the_end(self, decision: Decision, monkeypatch: pytest.MonkeyPatch) -> None:
        end = datetime(2026, 11, 24, 12, tzinfo=UTC)
        approval = Approval(
            run_id="run-1", decision_digest=decision_digest(decision), approver="ada", reason="seen", expires=end
        )
        clock = {"now": end - timedelta(microseconds=1)}
        fake = type("Clock", (), {"now": staticmethod(lambda _: clock["now"])})
        monkeypatch.setattr("convergate.components.promotion.approval.datetime", fake)
        approval.require(decision)
        clock["now"] = end
        with pytest.raises(ApprovalError, match="expired at 2026-11-24 12:00 UTC"):
            approval.require(decision)


@pytest.mark.usefixtures("mlflow_server")
class TestCarriedOut:
    def test_the_challenger_becomes_champion_and_the_audit_says_by_whom(
        self, s3: str, make_config: MakeConfig, make_decision: MakeDecision, decision: Decision, key: Path
    ) -> None:
        config, model = make_config(s3), make_config(s3).promotion.model
        promote_run(config, "run-1", decision)
        newer = make_decision(config, "run-2", 1, decision="CHALLENGER")
        promote_run(config, "run-2", newer)
        assert aliases(model) == {"challenger": "2"}
        approval = ada_approves(s3, decision, key)
        result = promote_run(config, "run-1", decision, approval)
        assert (result.alias, result.version) == ("champion", "1")
        assert result.summary == f"{model} v1 is `champion`, approved by ada"
        assert f"- approval: `{approval_uri(s3, decision)}`" in result.to_markdown()
        assert aliases(model) == {"challenger": "2", "champion": "1"}, "the newest challenger stays open"
        (audit,) = audits(s3, model)
        assert audit == read_champion(s3, model)
        assert (audit.action, audit.actor, audit.reason) == ("promote", "ada", "seen")
        assert audit.approval_uri == result.approval_uri == approval_uri(s3, decision)
        assert audit.champion.decision_digest == decision_digest(decision) == approval.decision_digest

        again = promote_run(config, "run-1", decision, ada_approves(s3, decision, key, why="other"))
        assert again == result, "the same approval, carried out twice"
        assert promote_run(config, "run-1", decision) == result, "a retried step takes nothing back"
        assert audits(s3, model) == [audit]
        assert aliases(model) == {"challenger": "2", "champion": "1"}
        with pytest.raises(ChampionChangedError, match="run run-2 refused: the champion was changed"):
            promote_run(config, "run-2", newer, ada_approves(s3, newer, key))
        assert read_champion(s3, model) == audit

    def test_what_was_rolled_back_is_not_brought_back_by_the_old_approval(
        self, s3: str, make_config: MakeConfig, make_decision: MakeDecision, decision: Decision, key: Path
    ) -> None:
        config, model = make_config(s3), make_config(s3).promotion.model
        first = promote_run(config, "run-1", decision, ada_approves(s3, decision, key))
        second = make_decision(config, "run-2", 1, decision="CHALLENGER", champion_uri=first.uri)
        approval = ada_approves(s3, second, key)
        promote_run(config, "run-2", second, approval)
        assert aliases(model) == {"champion": "2", "previous_champion": "1"}
        roll_back(config, "worse", "bob")
        with pytest.raises(PromotionError, match="was carried out, and the champion is v1 of run run-1 since"):
            promote_run(config, "run-2", second, approval)
        assert aliases(model)["champion"] == "1"
        decided_again = second.model_copy(update={"created": datetime.now(UTC)})
        promote_run(config, "run-2", decided_again, ada_approves(s3, decided_again, key, why="mended"))
        assert aliases(model)["champion"] == "2"
        assert [(entry.action, entry.actor) for entry in audits(s3, model)] == [
            ("promote", "ada"), ("promote", "ada"), ("rollback", "bob"), ("promote", "ada"),
        ]  # fmt: skip
        for decided in (decision, second, decided_again):
            kept = S3Location.parse(s3) / f"runs/{decided.run_id}/decisions/{decision_digest(decided)}.json"
            assert Decision.from_json(S3Store().read(kept)) == decided, "the audit's decisions can all be read"

    def test_a_champion_that_went_and_came_back_was_not_approved_against(
        self, moto: str, make_config: MakeConfig, make_decision: MakeDecision, key: Path
    ) -> None:
        """Another run was champion between decision and approval; what is decided anew can be approved."""
        config, model = make_config(moto), make_config(moto).promotion.model
        first = promote_run(config, "run-1", make_decision(config, "run-1"))
        waiting, other = (
            make_decision(config, run, seed, decision=outcome, champion_uri=first.uri)
            for run, seed, outcome in (("run-2", 1, "CHALLENGER"), ("run-3", 2, "PROMOTE"))
        )
        promote_run(config, "run-3", other)
        rolled_back = roll_back(config, "worse", "bob")
        with pytest.raises(ChampionChangedError, match="run run-2 refused: the champion was changed meanwhile, to v1"):
            promote_run(config, "run-2", waiting, ada_approves(moto, waiting, key))
        assert read_champion(moto, model) == rolled_back
        decided_again = waiting.model_copy(update={"created": datetime.now(UTC)})
        promote_run(config, "run-2", decided_again, ada_approves(moto, decided_again, key))
        record = read_champion(moto, model)
        assert record is not None
        assert (record.champion.run_id, record.actor) == ("run-2", "ada")

    def test_where_it_breaks_off_a_retry_finishes_it(
        self, s3: str, make_config: MakeConfig, decision: Decision, key: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        config, model = make_config(s3), make_config(s3).promotion.model
        approval = ada_approves(s3, decision, key)

        def broken(*_: object) -> None:
            raise OutsideError("gone")

        with monkeypatch.context() as patch:
            patch.setattr("convergate.components.promotion.promote._reconcile", broken)
            with pytest.raises(OutsideError, match="gone"):
                promote_run(config, "run-1", decision, approval)
        assert promote_run(config, "run-1", decision, approval).alias == "champion"
        assert aliases(model) == {"champion": "1"}
        assert len(audits(s3, model)) == 1


def test_no_rollback_is_written_while_mlflow_is_away(
    s3: str, make_config: MakeConfig, make_decision: MakeDecision, mlflow_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Repeated when it is back it goes one step back, not two."""
    config, champion = make_config(s3), None
    for number in (1, 2):
        run_id = f"run-{number}"
        champion = promote_run(config, run_id, make_decision(config, run_id, number, champion_uri=champion)).uri
    with monkeypatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", "")
        with pytest.raises(OutsideError, match="no MLflow server is configured"):
            roll_back(config, "worse", "ada")
    record = read_champion(s3, config.promotion.model)
    assert record is not None
    assert record.champion.version == "2"
    assert roll_back(config, "worse", "ada").champion.version == "1"

"""Promotion on a real registry: what is set, what is refused, what a retry or a rollback does."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import torch
from convergate.components.checkpoint import CheckpointError, CheckpointStore, load_model_state
from convergate.components.checkpoint.reading import read_manifest
from convergate.components.checkpoint.retention import Retention, collect, find_runs, retain
from convergate.components.config.signature import SignatureError, generate_key
from convergate.components.errors import OutsideError
from convergate.components.promotion.approval import approve
from convergate.components.promotion.champion import ChampionChangedError, ChampionRecord, read_champion
from convergate.components.promotion.promote import (
    Promotion,
    PromotionError,
    promote_run,
    reconcile,
    roll_back,
)
from convergate.components.promotion.registry import mlflow_client
from convergate.components.slo.decision import KEY_VARIABLE
from convergate.components.storage import RunStore, S3Location, S3Store

from .conftest import MakeConfig, MakeDecision, trained_model

HEX_DIGEST = 64


def aliases(model: str) -> dict[str, str]:
    with mlflow_client() as client:
        found: dict[str, str] = client.get_registered_model(model).aliases
    return found


def audits(root: str, model: str) -> list[ChampionRecord]:
    store = S3Store()
    found = store.list(S3Location.parse(root) / "champions" / model / "audit")
    return [ChampionRecord.from_json(store.read(location)) for location in found]


@pytest.mark.usefixtures("mlflow_server")
class TestPromote:
    def test_a_challenger_gets_its_alias_and_nobody_is_crowned(
        self, s3: str, make_config: MakeConfig, make_decision: MakeDecision
    ) -> None:
        config = make_config(s3)
        model = config.promotion.model
        decision = make_decision(config, "run-1", decision="CHALLENGER")
        result = promote_run(config, "run-1", decision)
        assert (result.alias, result.version, result.audit_uri) == ("challenger", "1", "")
        assert result.summary == f"{model} v1 is `challenger`"
        assert result.uri == f"{s3}/releases/{model}/run-1"
        assert read_manifest(result.uri, decision.checkpoint_digest)[1] == result.digest
        assert aliases(model) == {"challenger": "1"}
        assert read_champion(s3, model) is None
        assert RunStore(s3, "run-1").get("promotion", Promotion) == result
        assert result.to_markdown().startswith(f"**{model} v1 is `challenger`**\n\n- checkpoint: `s3://")
        assert "audit" not in result.to_markdown()

    def test_champions_follow_each_other_and_each_change_is_audited(
        self, s3: str, make_config: MakeConfig, make_decision: MakeDecision
    ) -> None:
        config = make_config(s3)
        model = config.promotion.model
        first = promote_run(config, "run-1", make_decision(config, "run-1"), actor="ada")
        assert (first.alias, first.version) == ("champion", "1")
        assert aliases(model) == {"challenger": "1", "champion": "1"}
        second = promote_run(config, "run-2", make_decision(config, "run-2", 1, champion_uri=first.uri), actor="bob")
        assert aliases(model) == {"challenger": "2", "champion": "2", "previous_champion": "1"}
        record = read_champion(s3, model)
        assert record is not None
        assert record.previous is not None
        assert (record.champion.version, record.previous.version, record.actor) == ("2", "1", "bob")
        assert (record.champion.uri, record.champion.digest) == (second.uri, second.digest)
        assert record.champion.task == config.task
        assert len(record.champion.decision_digest) == HEX_DIGEST
        assert record.champion.decision_digest == second.decision_digest != first.decision_digest
        assert [entry.actor for entry in audits(s3, model)] == ["ada", "bob"]
        assert ChampionRecord.from_json(S3Store().read(S3Location.parse(second.audit_uri))) == record

    def test_a_version_tells_which_weights_its_training_began_with(
        self, s3: str, make_config: MakeConfig, make_decision: MakeDecision
    ) -> None:
        config = make_config(s3)
        decision = make_decision(config, "run-1", init_uri="s3://b/champion", init_digest="0a" * 32)
        result = promote_run(config, "run-1", decision)
        with mlflow_client() as client:
            tags = client.get_model_version(result.model, result.version).tags
        assert (tags["convergate.init_uri"], tags["convergate.init_digest"]) == ("s3://b/champion", "0a" * 32)

    def test_who_was_measured_against_another_champion_is_refused(
        self, s3: str, make_config: MakeConfig, make_decision: MakeDecision
    ) -> None:
        config = make_config(s3)
        model = config.promotion.model
        late = make_decision(config, "run-2", 1)
        promote_run(config, "run-1", make_decision(config, "run-1"))
        with pytest.raises(ChampionChangedError, match="run run-2 refused: the champion was changed"):
            promote_run(config, "run-2", late)
        assert aliases(model) == {"challenger": "2", "champion": "1"}
        assert len(audits(s3, model)) == 1
        assert RunStore(s3, "run-2").find("promotion", Promotion) is None

    def test_repeating_it_changes_nothing(self, s3: str, make_config: MakeConfig, make_decision: MakeDecision) -> None:
        config = make_config(s3)
        decision = make_decision(config, "run-1")
        result = promote_run(config, "run-1", decision)
        assert promote_run(config, "run-1", decision) == result
        assert len(audits(s3, config.promotion.model)) == 1
        assert aliases(config.promotion.model) == {"challenger": "1", "champion": "1"}

    @pytest.mark.parametrize("step", ["write_audit", "_reconcile", "RunStore.put"])
    def test_where_it_breaks_off_a_retry_finishes_it(
        self,
        s3: str,
        make_config: MakeConfig,
        make_decision: MakeDecision,
        monkeypatch: pytest.MonkeyPatch,
        step: str,
    ) -> None:
        config = make_config(s3)
        model = config.promotion.model
        decision = make_decision(config, "run-1")

        def broken(*_: object, **__: object) -> None:
            raise OutsideError("gone")

        module = "convergate.components.promotion."
        place = module + ("champion." if step == "write_audit" else "promote.") + step
        with monkeypatch.context() as patch:
            patch.setattr(place, broken)
            with pytest.raises(OutsideError, match="gone"):
                promote_run(config, "run-1", decision)
        record = read_champion(s3, model)
        assert record is not None
        assert record.champion.version == "1"
        result = promote_run(config, "run-1", decision)
        assert aliases(model) == {"challenger": "1", "champion": "1"}
        assert audits(s3, model) == [record]
        assert ChampionRecord.from_json(S3Store().read(S3Location.parse(result.audit_uri))) == record
        assert read_champion(s3, model) == record

    def test_a_retry_after_a_rollback_does_not_undo_it(
        self, s3: str, make_config: MakeConfig, make_decision: MakeDecision
    ) -> None:
        config = make_config(s3)
        first = promote_run(config, "run-1", make_decision(config, "run-1"))
        decision = make_decision(config, "run-2", 1, champion_uri=first.uri)
        promote_run(config, "run-2", decision)
        roll_back(config, "worse in production", "ada")
        promote_run(config, "run-2", decision)
        assert aliases(config.promotion.model)["champion"] == "1"

    def test_nor_where_the_first_try_broke_off_behind_the_record(
        self, moto: str, make_config: MakeConfig, make_decision: MakeDecision, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The champion is again the one that was decided against; only the record's time tells that it came back."""
        config = make_config(moto)
        model = config.promotion.model
        first = promote_run(config, "run-1", make_decision(config, "run-1"))
        decision = make_decision(config, "run-2", 1, champion_uri=first.uri)

        def broken(*_: object) -> None:
            raise OutsideError("gone")

        with monkeypatch.context() as patch:
            patch.setattr("convergate.components.promotion.promote._reconcile", broken)
            with pytest.raises(OutsideError, match="gone"):
                promote_run(config, "run-2", decision)
        rolled_back = roll_back(config, "worse in production", "ada")
        with pytest.raises(ChampionChangedError, match="run run-2 refused: the champion was changed meanwhile, to v1"):
            promote_run(config, "run-2", decision)
        assert read_champion(moto, model) == rolled_back
        assert RunStore(moto, "run-2").find("promotion", Promotion) is None
        decided_again = decision.model_copy(update={"created": datetime.now(UTC)})
        assert promote_run(config, "run-2", decided_again).alias == "champion"
        assert aliases(model) == {"challenger": "2", "champion": "2", "previous_champion": "1"}
        assert [entry.action for entry in audits(moto, model)] == ["promote", "promote", "rollback", "promote"]

    def test_a_release_is_never_overwritten(
        self, s3: str, make_config: MakeConfig, make_decision: MakeDecision
    ) -> None:
        config = make_config(s3)
        first = promote_run(config, "run-1", make_decision(config, "run-1", decision="CHALLENGER"))
        other = make_decision(config, "run-9", 9)
        decision = other.model_copy(update={"run_id": "run-1"})
        with pytest.raises(PromotionError, match="a release is never overwritten → retrain as a new run"):
            promote_run(config, "run-1", decision)
        assert read_manifest(first.uri)[1] == first.digest

    def test_what_an_alias_refers_to_outlives_retention_and_gc(
        self, s3: str, make_config: MakeConfig, make_decision: MakeDecision, tmp_path: Path
    ) -> None:
        """Previous champion, champion and an open challenger, after all checkpoints of their runs were collected."""
        config = make_config(s3)
        first = promote_run(config, "run-1", make_decision(config, "run-1"))
        second = promote_run(config, "run-2", make_decision(config, "run-2", 1, champion_uri=first.uri))
        decision = make_decision(config, "run-3", 2, champion_uri=second.uri, decision="CHALLENGER")
        third = promote_run(config, "run-3", decision)
        before = {str(location) for location in S3Store().list(S3Location.parse(f"{s3}/releases"))}
        for run in ("run-1", "run-2", "run-3"):
            store = CheckpointStore(config.checkpoint.uri, run)
            retain(store, Retention(keep_last=1))
            store.give_up(2, 0)
        collect([*find_runs(config.checkpoint.uri), *find_runs(s3)], timedelta(hours=-1))
        assert not [
            location
            for location in S3Store().list(S3Location.parse(config.checkpoint.uri))
            if location.name.endswith(".bin")
        ]
        assert {str(location) for location in S3Store().list(S3Location.parse(f"{s3}/releases"))} == before
        for release, seed in ((first, 0), (second, 1), (third, 2)):
            weights = load_model_state(release.uri, release.digest)
            assert all(torch.equal(weights[name], tensor) for name, tensor in trained_model(seed).state_dict().items())
        key = tmp_path / "key.pem"
        generate_key(key)
        approval = approve(s3, decision, reason="checked", key_file=key, valid_for=timedelta(hours=1))
        assert promote_run(config, "run-3", decision, approval).uri == third.uri
        assert roll_back(config, "worse", "ada").champion.uri == second.uri
        assert roll_back(config, "worse", "ada").champion.uri == first.uri

    def test_the_alias_is_the_configs(self, s3: str, make_config: MakeConfig, make_decision: MakeDecision) -> None:
        config = make_config(s3)
        config = make_config(s3, promotion={"model": config.promotion.model, "alias": "live"})
        assert promote_run(config, "run-1", make_decision(config, "run-1")).alias == "live"
        assert aliases(config.promotion.model) == {"challenger": "1", "live": "1"}

    def test_an_alias_that_somebody_else_keeps_writing_is_named(
        self, s3: str, make_config: MakeConfig, make_decision: MakeDecision, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        config = make_config(s3)
        decision = make_decision(config, "run-1", decision="CHALLENGER")
        monkeypatch.setattr(
            "mlflow.MlflowClient.get_model_version_by_alias", lambda *_: type("V", (), {"version": "7"})
        )
        with pytest.raises(OutsideError, match="@challenger is v7 after it was set to v1: somebody"):
            promote_run(config, "run-1", decision)


@pytest.mark.usefixtures("mlflow_server")
class TestRollBack:
    def test_it_goes_back_and_further_back_and_never_forward(
        self, s3: str, make_config: MakeConfig, make_decision: MakeDecision
    ) -> None:
        config = make_config(s3)
        model = config.promotion.model
        champion = None
        for number in (1, 2, 3):
            run_id = f"run-{number}"
            champion = promote_run(config, run_id, make_decision(config, run_id, number, champion_uri=champion)).uri
        record = roll_back(config, "worse in production", "ada")
        assert record.champion.task == config.task
        assert record.summary == f"{model} v2 is champion again, v3 is not"
        assert (record.action, record.actor, record.reason) == ("rollback", "ada", "worse in production")
        assert aliases(model) == {"challenger": "3", "champion": "2", "previous_champion": "1"}
        roll_back(config, "that one too", "ada")
        assert aliases(model) == {"challenger": "3", "champion": "1"}
        with pytest.raises(PromotionError, match="no previous champion"):
            roll_back(config, "and on", "ada")
        assert [entry.action for entry in audits(s3, model)] == ["promote"] * 3 + ["rollback"] * 2

    def test_not_to_a_release_that_was_changed(
        self, s3: str, make_config: MakeConfig, make_decision: MakeDecision
    ) -> None:
        config = make_config(s3)
        first = promote_run(config, "run-1", make_decision(config, "run-1"))
        promote_run(config, "run-2", make_decision(config, "run-2", 1, champion_uri=first.uri))
        S3Store().write(S3Location.parse(first.uri) / "manifest.json", b"{}")
        with pytest.raises(CheckpointError, match="it was changed"):
            roll_back(config, "worse", "ada")
        assert aliases(config.promotion.model)["champion"] == "2"

    def test_aliases_that_somebody_moved_are_reconciled_to_the_record(
        self, s3: str, make_config: MakeConfig, make_decision: MakeDecision
    ) -> None:
        config = make_config(s3)
        model = config.promotion.model
        first = promote_run(config, "run-1", make_decision(config, "run-1"))
        promote_run(config, "run-2", make_decision(config, "run-2", 1, champion_uri=first.uri))
        with mlflow_client() as client:
            client.set_registered_model_alias(model, "champion", "1")
            client.delete_registered_model_alias(model, "previous_champion")
        reconcile(config)
        assert aliases(model) == {"challenger": "2", "champion": "2", "previous_champion": "1"}


class TestRefusals:
    """Decided before anything is written; MLflow isn't even configured here."""

    @pytest.mark.parametrize("outcome", ["REJECT", "HOLD"])
    def test_a_negative_decision(
        self, s3: str, make_config: MakeConfig, make_decision: MakeDecision, outcome: str
    ) -> None:
        config = make_config(s3)
        with pytest.raises(PromotionError, match=f"run run-1 is {outcome}: no alias may be set"):
            promote_run(config, "run-1", make_decision(config, "run-1", decision=outcome))

    def test_a_decision_about_another_run(self, s3: str, make_config: MakeConfig, make_decision: MakeDecision) -> None:
        config = make_config(s3)
        with pytest.raises(PromotionError, match="about run run-1, not run-2"):
            promote_run(config, "run-2", make_decision(config, "run-1"))

    @pytest.mark.parametrize("changed", [{"training": {"batch_size": 4}}, {"slo": {"min_runs": 1}}])
    def test_a_decision_about_another_config(
        self,
        s3: str,
        make_config: MakeConfig,
        make_decision: MakeDecision,
        changed: dict[str, dict[str, int]],
    ) -> None:
        decision = make_decision(make_config(s3), "run-1")
        with pytest.raises(PromotionError, match="about another config"):
            promote_run(make_config(s3, **changed), "run-1", decision)

    def test_a_checkpoint_that_was_changed_since(
        self, s3: str, make_config: MakeConfig, make_decision: MakeDecision
    ) -> None:
        config = make_config(s3)
        with pytest.raises(CheckpointError, match="it was changed"):
            promote_run(config, "run-1", make_decision(config, "run-1", checkpoint_digest="0" * HEX_DIGEST))

    def test_a_signature_is_asked_for_where_a_key_is_configured(
        self,
        s3: str,
        make_config: MakeConfig,
        make_decision: MakeDecision,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        config = make_config(s3)
        decision = make_decision(config, "run-1", decision="CHALLENGER")
        key = tmp_path / "key.pem"
        generate_key(key)
        monkeypatch.setenv(KEY_VARIABLE, str(key))
        with pytest.raises(SignatureError, match="is not signed"):
            promote_run(config, "run-1", decision)
        forged = decision.signed().model_copy(update={"decision": "PROMOTE"})
        with pytest.raises(SignatureError, match="does not match"):
            promote_run(config, "run-1", forged)
        with pytest.raises(OutsideError, match="no MLflow server is configured"):
            promote_run(config, "run-1", decision.signed())

"""slo, runs, report, gate, over a ledger and documents on a real S3 server."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from convergate.components.config import parse_config
from convergate.components.slo import Ledger, take_standing
from convergate.components.slo.decision import Decision
from convergate.components.slo.gate import open_run
from convergate.components.storage import RunStore, S3Location, S3Store

from ..documents import config_text, make_end, save_run, save_start
from .conftest import Convergate

TOLERANT = "slo: {anomalous_rate: 0.5}\n"
"""Fourteen runs without an anomaly prove that at most half of them are anomalous."""


def history(root: str, classes: str, more: str = "", **changes: object) -> None:
    """Ended runs, oldest first: C converged, N not converged, R rejected before training."""
    names = {"C": "converged", "N": "not_converged", "R": "rejected"}
    text = config_text(root, more=more)
    for number, letter in enumerate(classes):
        config = save_start(text, f"run-{number:02}")
        ledger = Ledger(root, config.experiment, config.promotion.model)
        ledger.close(make_end(names[letter], f"run-{number:02}", reason=f"ended {letter}", **changes))


@pytest.fixture
def config(s3: str, tmp_path: Path) -> Iterator[str]:
    (tmp_path / "run.yaml").write_text(config_text(s3))
    return "run.yaml"


class TestSlo:
    @pytest.mark.parametrize(
        ("classes", "more", "verdict", "code"),
        [("C", "", "INSUFFICIENT", 3), ("NNNNN", "", "FAIL", 1), ("C" * 14, TOLERANT, "PASS", 0)],
    )
    def test_the_verdict_is_the_exit_code(
        self, convergate: Convergate, s3: str, classes: str, more: str, verdict: str, code: int
    ) -> None:
        history(s3, classes, more)
        told, read = convergate("slo", "--root", s3), convergate("slo", "--root", s3, "--json")
        assert told.code == read.code == code
        assert told.out.startswith(f"digits / digits: {verdict}\n")
        standing = take_standing(parse_config(config_text(s3, more=more)).slo, Ledger(s3, "digits", "digits").runs())
        assert read.json == standing.model_dump(mode="json")
        assert all(sli.line in told.out for sli in standing.slis)
        assert f"{standing.failures} of 10 failures spent" in told.out

    def test_of_a_config_that_never_ran(self, convergate: Convergate, config: str) -> None:
        answer = convergate("slo", config)
        assert answer.code == 3
        assert "no runs yet" in answer.out

    def test_without_a_config_it_is_the_newest_runs_that_had_a_valid_one(self, convergate: Convergate, s3: str) -> None:
        save_start(config_text(s3, "older"), "run-1")
        save_start(config_text(s3, "newer"), "run-2")
        open_run(config_text(s3, "broken").replace("lr0: 0.1", "lr0: -1"), "run-3")
        assert convergate("slo", "--root", s3).out.startswith("newer / newer: ")

    def test_without_a_config_and_without_runs(self, convergate: Convergate, s3: str) -> None:
        answer = convergate("slo", "--root", s3)
        assert answer.code == 2
        assert answer.error == f"there are no runs under {s3} yet → convergate slo CONFIG"


class TestRuns:
    def test_the_newest_come_first(self, convergate: Convergate, s3: str) -> None:
        history(s3, "CNR")
        save_start(config_text(s3), "run-03")
        read = convergate("runs", "--root", s3, "--json")
        assert read.code == 0
        assert [(row["run"], row["class"], row["reason"]) for row in read.json] == [
            ("run-03", "running", ""),
            ("run-02", "rejected", "ended R"),
            ("run-01", "not_converged", "ended N"),
            ("run-00", "converged", "ended C"),
        ]
        told = convergate("runs", "--root", s3, "--limit", "2").out.splitlines()
        assert [line.split()[:2] for line in told] == [["run-03", "running"], ["run-02", "rejected"]]

    def test_a_long_id_stands_apart_from_its_class(self, convergate: Convergate, s3: str) -> None:
        save_start(config_text(s3), "r" * 80)
        assert convergate("runs", "--root", s3).out.split() == ["r" * 80, "running", "0"]

    def test_there_are_none(self, convergate: Convergate, s3: str) -> None:
        assert convergate("runs", "--root", s3, "--json").json == []
        answer = convergate("runs", "--root", s3)
        assert (answer.code, answer.out) == (0, f"no runs under {s3} yet\n")

    def test_a_root_that_is_none(self, convergate: Convergate, s3: str) -> None:
        answer = convergate("runs", "--root", "here")
        assert answer.code == 2
        assert "not an S3 URI → s3://bucket/prefix" in answer.error


class TestReport:
    def test_the_page_is_written_where_it_is_wanted(self, convergate: Convergate, s3: str, tmp_path: Path) -> None:
        save_run(config_text(s3), "run-1")
        answer = convergate("report", "run-1", "--root", s3)
        assert (answer.code, answer.out) == (0, "run-1.html\n")
        assert "run-1" in (tmp_path / "run-1.html").read_text()
        asked = convergate("report", "run-1", "--root", s3, "-o", "page.html", "--json")
        assert asked.json == {"report": "page.html"}
        assert (tmp_path / "page.html").read_text().startswith("<!")

    def test_of_a_run_whose_config_was_not_valid(self, convergate: Convergate, s3: str, tmp_path: Path) -> None:
        open_run(config_text(s3).replace("lr0: 0.1", "lr0: -1"), "run-1")
        assert convergate("report", "run-1", "--root", s3).code == 0
        assert "run-1" in (tmp_path / "run-1.html").read_text()

    def test_a_path_that_cannot_be_written(self, convergate: Convergate, s3: str) -> None:
        save_start(config_text(s3), "run-1")
        answer = convergate("report", "run-1", "--root", s3, "-o", "missing/page.html")
        assert answer.code == 2
        assert answer.error == "missing/page.html: No such file or directory"


class TestGate:
    def test_it_decides_with_what_is_known_now(self, convergate: Convergate, s3: str) -> None:
        """The first run is a challenger; four more, and it is to be promoted. No alias is set."""
        save_run(config_text(s3), "first")
        before = RunStore(s3, "first").get("decision", Decision)
        assert before.decision == "CHALLENGER"
        history(s3, "CCCC")
        answer = convergate("gate", "first", "--root", s3)
        assert answer.code == 0
        assert "\nPROMOTE " in answer.out
        assert answer.out.endswith("Next: `convergate promote first`\n")
        after = RunStore(s3, "first").get("decision", Decision)
        assert after.decision == "PROMOTE"
        assert (after.checkpoint_digest, after.seed) == (before.checkpoint_digest, before.seed)
        assert list(S3Store().list(S3Location.parse(s3) / "champions")) == []

    def test_reject_and_hold_have_exit_codes_of_their_own(self, convergate: Convergate, s3: str) -> None:
        save_run(config_text(s3), "bad", verdict="FAIL", reached_target=False)
        answer = convergate("gate", "bad", "--root", s3, "--json")
        assert (answer.code, answer.json["decision"]) == (1, "REJECT")
        save_run(config_text(s3, "other"), "good")
        text = config_text(s3, "other")
        save_start(text, "torn")
        Ledger(s3, "other", "other").close(make_end("not_converged", "torn", lr_sync_errors=1))
        answer = convergate("gate", "good", "--root", s3)
        assert answer.code == 3
        assert "\nHOLD " in answer.out
        assert "Next" not in answer.out

    def test_a_run_that_was_not_evaluated(self, convergate: Convergate, s3: str) -> None:
        save_start(config_text(s3), "run-1")
        answer = convergate("gate", "run-1", "--root", s3)
        assert answer.code == 2
        assert answer.error == "run run-1 was not evaluated: there is nothing to decide → convergate runs"

    def test_a_document_that_is_none_is_named(self, convergate: Convergate, s3: str) -> None:
        save_run(config_text(s3), "run-1")
        S3Store().write(S3Location.parse(s3) / "runs" / "run-1" / "plan.json", b"{}")
        answer = convergate("gate", "run-1", "--root", s3)
        assert answer.code == 4
        assert f"{s3}/runs/run-1/plan.json" in answer.error


@pytest.mark.parametrize("command", [["report"], ["gate"], ["promote"]])
def test_a_run_that_is_not_there(convergate: Convergate, s3: str, command: list[str]) -> None:
    answer = convergate(*command, "nope", "--root", s3)
    assert answer.code == 2
    assert answer.error == f"there is no run nope under {s3} → convergate runs"

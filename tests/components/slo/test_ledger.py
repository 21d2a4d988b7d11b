"""The ledger on real S3 servers: rclone, which ignores conditional writes, and moto, which honours them."""

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest
from convergate.components.errors import NotFoundError, UserError
from convergate.components.slo.ledger import Ledger, LedgerError, all_runs, find_run
from convergate.components.storage import ObjectExistsError, S3Location, S3Store

STORE = S3Store()
FIRST = datetime(2026, 11, 24, 23, 59, 59, 999_999, tzinfo=UTC)


def keys(root: str) -> list[str]:
    return [location.key for location in STORE.list(S3Location.parse(root))]


@pytest.fixture(params=["s3", "moto"])
def root(request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue(request.param))


def test_a_run_has_one_place_by_its_start(root: str, make: SimpleNamespace) -> None:
    ledger = Ledger(root, "digits", "net")
    start = make.start("run-1", created=FIRST)
    assert ledger.open(start) == start
    assert keys(root) == ["ledger/digits/net/2026-11-24/235959999999-run-1/start.json"]
    assert ledger.close(make.end("converged", "run-1"))
    assert keys(root) == [f"ledger/digits/net/2026-11-24/235959999999-run-1/{name}.json" for name in ("end", "start")]


def test_the_day_is_that_of_utc(s3: str, make: SimpleNamespace) -> None:
    east = datetime.fromisoformat("2026-11-25T01:30:00+02:00")
    Ledger(s3, "digits", "net").open(make.start("run-1", created=east))
    assert keys(s3) == ["ledger/digits/net/2026-11-24/233000000000-run-1/start.json"]


def test_what_was_recorded_comes_back_whole(root: str, make: SimpleNamespace) -> None:
    ledger = Ledger(root, "digits", "net")
    start = make.start("r", kind="sweep", submitter="ada", team="vision", training_digest="1" * 64)
    end = make.end("not_converged", "r", reason="loss", decision="REJECT", gpu_hours=0.25, attempts=2, anomalous=True)
    ledger.open(start)
    ledger.close(end)
    found = ledger.find("r")
    assert found is not None
    assert (found.start, found.end) == (start, end)
    assert not end.first_attempt


def test_the_first_end_stands(root: str, make: SimpleNamespace) -> None:
    ledger = Ledger(root, "digits", "net")
    ledger.open(make.start("r"))
    assert ledger.close(make.end("interrupted", "r"))
    assert not ledger.close(make.end("converged", "r"))
    found = ledger.find("r")
    assert found is not None
    assert found.run_class == "interrupted"


def test_a_server_with_conditional_writes_settles_a_race(moto: str, make: SimpleNamespace) -> None:
    class Blind(S3Store):
        def exists(self, location: S3Location) -> bool:  # somebody writes just after the look
            return False

    at = S3Location.parse(moto) / "end.json"
    Blind().create(at, b"first")
    with pytest.raises(ObjectExistsError):
        Blind().create(at, b"second")
    assert STORE.read(at) == b"first"


def test_a_retried_open_is_the_same_run(root: str, make: SimpleNamespace) -> None:
    ledger = Ledger(root, "digits", "net")
    first = ledger.open(make.start("r", created=FIRST))
    assert ledger.open(make.start("r", created=FIRST + timedelta(minutes=5))) == first
    assert len(keys(root)) == 1


def test_a_run_id_is_not_given_to_another_config(s3: str, make: SimpleNamespace) -> None:
    ledger = Ledger(s3, "digits", "net")
    ledger.open(make.start("r", training_digest="1" * 64))
    with pytest.raises(UserError, match="run id r was opened with another config"):
        ledger.open(make.start("r", training_digest="2" * 64))
    assert len(keys(s3)) == 1


@pytest.mark.parametrize("run_id", ["a/b", "../x", " ", "ü", "x" * 129])
def test_a_run_id_that_would_hide_the_run_is_refused(s3: str, make: SimpleNamespace, run_id: str) -> None:
    with pytest.raises(UserError, match="run id"):
        Ledger(s3, "digits", "net").open(make.start(run_id))
    assert keys(s3) == []


def test_a_run_that_was_never_opened_cannot_be_closed(s3: str, make: SimpleNamespace) -> None:
    with pytest.raises(NotFoundError, match="never opened"):
        Ledger(s3, "digits", "net").close(make.end("converged", "r"))


def test_runs_are_newest_first_and_of_one_model(s3: str, make: SimpleNamespace) -> None:
    ledger, other = Ledger(s3, "digits", "net"), Ledger(s3, "digits", "net2")
    for number, hours in enumerate([3, 30, 1]):
        ledger.open(make.start(f"r{number}", created=FIRST + timedelta(hours=hours)))
    other.open(make.start("o", created=FIRST + timedelta(hours=9)))
    assert [run.start.run_id for run in ledger.runs()] == ["r1", "r0", "r2"]
    assert [run.start.run_id for run in ledger.runs(limit=2)] == ["r1", "r0"]
    assert [run.start.run_id for run in other.runs()] == ["o"]
    assert [run.start.run_id for run in all_runs(s3)] == ["r1", "o", "r0", "r2"]


def test_a_run_is_found_across_experiments(s3: str, make: SimpleNamespace) -> None:
    Ledger(s3, "digits", "net").open(make.start("a"))
    Ledger(s3, "images", "resnet").open(make.start("b", experiment="images"))
    found = find_run(s3, "b")
    assert found is not None
    assert found.start.experiment == "images"
    assert find_run(s3, "c") is None
    assert Ledger(s3, "digits", "net").find("b") is None


def test_an_empty_ledger_and_a_missing_bucket_have_no_runs(s3: str) -> None:
    assert Ledger(s3, "digits", "net").runs() == []
    assert Ledger("s3://no-such-bucket-here", "digits", "net").runs() == []


def test_a_start_without_an_end_runs_until_its_deadline(s3: str, make: SimpleNamespace) -> None:
    ledger, now = Ledger(s3, "digits", "net"), datetime.now(UTC)
    ledger.open(make.start("alive", deadline=now + timedelta(hours=1)))
    ledger.open(make.start("dead", deadline=now - timedelta(seconds=1)))
    classes = {run.start.run_id: (run.run_class, run.reached_training) for run in ledger.runs()}
    assert classes == {"alive": ("running", False), "dead": ("not_converged", True)}


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"run_id": "r"}', b'{"schema_version": 2}'])
@pytest.mark.parametrize("name", ["start", "end"])
def test_a_corrupt_record_is_an_error_that_names_its_key(
    s3: str, make: SimpleNamespace, name: str, content: bytes
) -> None:
    ledger = Ledger(s3, "digits", "net")
    ledger.open(make.start("r", created=FIRST))
    ledger.close(make.end("converged", "r"))
    key = S3Location.parse(s3) / f"ledger/digits/net/2026-11-24/235959999999-r/{name}.json"
    STORE.write(key, content)
    with pytest.raises(LedgerError, match=rf"235959999999-r/{name}\.json is no ledger record") as caught:
        ledger.runs()
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 4


def test_a_record_in_another_runs_place_is_an_error(s3: str, make: SimpleNamespace) -> None:
    ledger = Ledger(s3, "digits", "net")
    ledger.open(make.start("r", created=FIRST))
    place = S3Location.parse(s3) / "ledger/digits/net/2026-11-24/235959999999-r"
    STORE.write(place / "end.json", make.end("converged", "another").to_json())
    with pytest.raises(LedgerError, match=r"end\.json is the record of run another"):
        ledger.runs()


def test_a_start_that_was_deleted_is_an_error(s3: str, make: SimpleNamespace) -> None:
    ledger = Ledger(s3, "digits", "net")
    ledger.open(make.start("r", created=FIRST))
    ledger.close(make.end("not_converged", "r"))
    STORE.delete(S3Location.parse(s3) / "ledger/digits/net/2026-11-24/235959999999-r/start.json")
    with pytest.raises(LedgerError, match=r"start\.json is missing"):
        ledger.runs()

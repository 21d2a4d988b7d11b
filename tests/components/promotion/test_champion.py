"""The champion record: compare and swap, and what it keeps."""

import json
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
from convergate.components.config.models import TaskConfig
from convergate.components.errors import ExitCode, OutsideError
from convergate.components.promotion.champion import (
    NUM_EARLIER,
    ChampionChangedError,
    ChampionRecord,
    Release,
    champion_reference,
    read_champion,
    write_audit,
    write_champion,
)
from convergate.components.storage import S3Location, S3Store

TASK = TaskConfig(factory="mine.tasks:Digits", params={"width": 8, "dropout": 0.1, "stages": [1, None]})


def release(number: int, task: TaskConfig | None = TASK) -> Release:
    return Release(
        version=str(number), run_id=f"run-{number}", uri=f"s3://b/releases/{number}", digest=f"{number}" * 64, task=task
    )


def record(number: int, previous: ChampionRecord | None = None) -> ChampionRecord:
    before, earlier = previous.succeeded_by(release(number)) if previous else (None, ())
    return ChampionRecord(
        run_id=f"run-{number}",
        model="digits",
        champion=release(number),
        previous=before,
        earlier=earlier,
        action="promote",
        actor="ada",
        reason="good",
    )


def audits(root: str) -> list[S3Location]:
    return list(S3Store().list(S3Location.parse(root) / "champions" / "digits" / "audit"))


def test_there_is_no_champion_at_first(s3: str) -> None:
    assert read_champion(s3, "digits") is None
    assert json.loads(champion_reference(s3, "digits")) == {"uri": "", "digest": "", "task": None}


def test_a_champion_is_written_audited_and_read_back(s3: str) -> None:
    first = record(1)
    audit = write_champion(s3, first, expected=None)
    assert read_champion(s3, "digits") == first
    assert audit == f"{s3}/champions/digits/audit/{first.created:%Y%m%dT%H%M%S%f}-run-1.json"
    assert ChampionRecord.from_json(S3Store().read(S3Location.parse(audit))) == first
    reference = {"uri": "s3://b/releases/1", "digest": "1" * 64, "task": TASK.model_dump()}
    assert json.loads(champion_reference(s3, "digits")) == reference


def test_a_record_from_before_tasks_were_kept_is_read(s3: str) -> None:
    old = record(1).model_dump(mode="json")
    del old["champion"]["task"]
    S3Store().write(S3Location.parse(s3) / "champions" / "digits" / "champion.json", json.dumps(old).encode())
    found = read_champion(s3, "digits")
    assert found is not None
    assert found.champion == release(1, task=None)
    reference = {"uri": "s3://b/releases/1", "digest": "1" * 64, "task": None}
    assert json.loads(champion_reference(s3, "digits")) == reference
    write_champion(s3, record(2, found), expected=found)


def test_the_next_one_remembers_those_before_and_every_change_is_audited(s3: str) -> None:
    records = [record(1)]
    write_champion(s3, records[0], expected=None)
    for number in range(2, NUM_EARLIER + 5):
        records.append(record(number, records[-1]))
        write_champion(s3, records[-1], expected=records[-2])
    last = read_champion(s3, "digits")
    assert last is not None
    assert last.previous == release(NUM_EARLIER + 3)
    assert last.earlier == tuple(release(n) for n in range(NUM_EARLIER + 2, 2, -1))
    assert len(audits(s3)) == NUM_EARLIER + 4


@pytest.mark.parametrize("expected", [None, record(7), record(1)], ids=["nobody", "another", "before there and back"])
def test_a_champion_that_was_not_expected_is_not_overwritten(s3: str, expected: ChampionRecord | None) -> None:
    """Also where the same release was put there by another change."""
    write_champion(s3, record(1), expected=None)
    with pytest.raises(ChampionChangedError, match="changed meanwhile, to v1 of run run-1") as caught:
        write_champion(s3, record(2), expected=expected)
    assert caught.value.exit_code == ExitCode.UNDECIDED
    found = read_champion(s3, "digits")
    assert found is not None
    assert found.champion == release(1)
    assert len(audits(s3)) == 1


@pytest.mark.parametrize("there_is_one", [False, True])
def test_the_server_refuses_what_was_changed_between_look_and_write(
    moto: str, monkeypatch: pytest.MonkeyPatch, there_is_one: bool
) -> None:
    """Both looked, and saw the same; the server's conditional write alone tells them apart."""
    start = record(1) if there_is_one else None
    if start:
        write_champion(moto, start, expected=None)
    other = record(2, start)
    put = S3Store.replace if there_is_one else S3Store.create

    def late(store: S3Store, location: S3Location, *rest: str) -> None:
        if location.key.endswith("champion.json"):
            monkeypatch.setattr(S3Store, put.__name__, put)
            write_champion(moto, other, expected=start)
            monkeypatch.setattr(S3Store, "exists", lambda *_: False)
            seen = store.read_versioned
            monkeypatch.setattr(S3Store, "read_versioned", lambda *_: (b"", rest[1]))
            try:
                put(store, location, *rest)  # type: ignore[arg-type]
            finally:
                monkeypatch.setattr(S3Store, "read_versioned", lambda _, place: seen(place))
        else:
            put(store, location, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(S3Store, put.__name__, late)
    with pytest.raises(ChampionChangedError, match="to v2 of run run-2"):
        write_champion(moto, record(3, start), expected=start)
    found = read_champion(moto, "digits")
    assert found is not None
    assert found.champion == release(2)


@pytest.mark.parametrize("there_is_one", [False, True])
def test_of_promoters_at_once_exactly_one_wins(moto: str, there_is_one: bool) -> None:
    start = record(1) if there_is_one else None
    if start:
        write_champion(moto, start, expected=None)
    barrier = Barrier(4)

    def promote(number: int) -> str:
        barrier.wait(10)
        try:
            write_champion(moto, record(number, start), expected=start)
        except ChampionChangedError as error:
            return str(error)
        return "won"

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(promote, (2, 3, 4, 5)))
    assert results.count("won") == 1
    winner = results.index("won") + 2
    found = read_champion(moto, "digits")
    assert found is not None
    assert found.champion == release(winner)
    lost = [result for result in results if result != "won"]
    assert all(f"to v{winner} of run run-{winner} → a new run is measured against it" in line for line in lost)
    assert len(audits(moto)) == (2 if there_is_one else 1)


def test_an_audit_record_is_written_once(s3: str) -> None:
    first = record(1)
    assert write_audit(s3, first) == write_audit(s3, first)
    assert len(audits(s3)) == 1


def test_a_broken_record_is_named_with_the_way_out(s3: str) -> None:
    S3Store().write(S3Location.parse(s3) / "champions" / "digits" / "champion.json", b"{}")
    with pytest.raises(OutsideError, match="not a champion record → restore it from audit/"):
        read_champion(s3, "digits")

"""Retention and gc on a real S3 server: what counts stays whole, what nobody will use goes, also beside a save."""

import math
import os
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from itertools import permutations
from time import time
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import pytest
import torch
from convergate.components.checkpoint import CheckpointRef, CheckpointStore, copy_checkpoint, load_model_state
from convergate.components.checkpoint.manifest import Marker
from convergate.components.checkpoint.reading import read_manifest, verify
from convergate.components.checkpoint.retention import Garbage, Retention, collect, find_runs, retain
from convergate.components.checkpoint.saver import Saver
from convergate.components.errors import UserError
from convergate.components.storage import S3Location, S3Store
from convergate.components.storage.client import s3_client
from convergate.components.storage.streams import Pace
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from proxy import Fault, Kind, Proxy, running_proxy

from ...checkpoints import commit, folder

DAY = timedelta(hours=24)
EVERYTHING_IS_OLD = timedelta(hours=-1)
"""A grace for what a server gives no other age: an upload that is pending."""


@pytest.fixture
def store(s3: str) -> CheckpointStore:
    return CheckpointStore(f"{s3}/checkpoints", "run")


@pytest.fixture
def proxy(s3: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """In front of the S3 server, for faults."""
    with running_proxy(urlsplit(os.environ["AWS_ENDPOINT_URL"]).port or 0) as running:
        monkeypatch.setenv("AWS_ENDPOINT_URL", running.url)
        yield running


def put(store: CheckpointStore, attempt: int, step: int, nonce: str = "0123abcd", **metrics: float) -> CheckpointRef:
    """A marker and a folder, as small as they can be."""
    ref = CheckpointRef(attempt, step, store.root)
    name = f"{ref.name}-{nonce}"
    fields = {"run_id": store.run_id, "attempt": attempt, "step": step, "folder": name, "manifest_sha256": "ab" * 32}
    fields |= {"size": 8, "world_size": 1, "created": "2026-01-01T00:00:00Z", "verified": "by the server"}
    S3Store().write(store.root / name / "rank-00000.bin", b"12345678")
    S3Store().write(ref.marker, Marker.model_validate({**fields, "metrics": metrics}).to_bytes())
    return ref


def steps(refs: Iterable[CheckpointRef]) -> list[int]:
    return sorted(ref.step for ref in refs)


def objects(place: str | S3Location) -> set[str]:
    return {str(location) for location in S3Store().list(S3Location.parse(str(place)))}


def folders(root: S3Location) -> set[str]:
    return {location.name for location in S3Store().folders(root)}


class TestRetain:
    @pytest.mark.parametrize(
        ("saved", "policy", "kept"),
        [
            ([10, 20, 30, 40], {"keep_last": 2}, [30, 40]),
            ([10, 20, 30, 40], {"keep_last": 9}, [10, 20, 30, 40]),
            ([10, 20, 30, 35, 40], {"keep_last": 2}, [30, 40]),
            ([10, 20, 30, 35], {"keep_last": 2}, [20, 30, 35]),
            ([4, 7], {"keep_last": 1}, [7]),
            ([10, 20, 30, 40, 50], {"keep_last": 1, "keep_every": 20}, [20, 40, 50]),
            ([10, 15, 20, 30], {"keep_last": 1, "keep_every": 15}, [15, 30]),
        ],
    )
    def test_the_newest_the_last_regular_ones_and_every_so_many_steps(
        self, store: CheckpointStore, saved: list[int], policy: dict[str, int], kept: list[int]
    ) -> None:
        for step in saved:
            put(store, 1, step)
        deleted = retain(store, Retention(every_steps=10, **policy))
        assert steps(store.live()) == kept
        assert steps(deleted) == sorted(set(saved) - set(kept))
        assert folders(store.root) == {f"{ref.name}-0123abcd" for ref in store.live()} | {"commits"}

    @pytest.mark.parametrize(
        ("mode", "more", "kept"),
        [
            ("min", {}, [20, 40]),
            ("max", {}, [10, 40]),
            ("min", {"keep_best": 2}, [20, 30, 40]),
            ("min", {"keep_every": 20}, [20, 30, 40]),
        ],
    )
    def test_the_best_by_a_metric(
        self, store: CheckpointStore, mode: str, more: dict[str, int], kept: list[int]
    ) -> None:
        """The best beside those that are kept for good; an irregular one is never among them."""
        for step, loss in ((10, 3.0), (15, 0.1 if mode == "min" else 9.0), (20, 0.5), (30, 2.0), (40, 2.5)):
            put(store, 1, step, loss=loss, other=-loss)
        retain(store, Retention(keep_last=1, every_steps=10, metric="loss", mode=mode, **{"keep_best": 1} | more))
        assert steps(store.live()) == kept

    @pytest.mark.parametrize("losses", permutations([math.nan, 2.0, 0.5]), ids=str)
    @pytest.mark.parametrize(("mode", "best"), [("min", 0.5), ("max", 2.0)])
    def test_a_metric_that_is_no_number_never_pushes_out_the_best(
        self, store: CheckpointStore, losses: tuple[float, ...], mode: str, best: float
    ) -> None:
        """Nor does one without it."""
        for step, loss in enumerate((*losses, None, math.nan), start=1):
            put(store, 1, step, **({} if loss is None else {"loss": loss}))
        retain(store, Retention(keep_last=1, keep_best=1, metric="loss", mode=mode))
        assert steps(store.live()) == [losses.index(best) + 1, 5]

    @pytest.mark.parametrize("unreadable", [10, 20, 30])
    def test_one_that_cannot_be_compared_stays_and_the_rest_goes(
        self, store: CheckpointStore, unreadable: int, caplog: pytest.LogCaptureFixture
    ) -> None:
        refs = {step: put(store, 1, step, loss=loss) for step, loss in ((10, 0.5), (20, 2.0), (30, 1.0), (40, 3.0))}
        S3Store().write(refs[unreadable].marker, b"{}")
        deleted = retain(store, Retention(keep_last=1, keep_best=1, metric="loss"))
        best = 10 if unreadable != 10 else 30
        assert steps(store.live()) == sorted({best, unreadable, 40})
        assert set(steps(deleted)) == {10, 20, 30} - {best, unreadable}
        (warning,) = caplog.messages
        assert warning.startswith(f"a checkpoint that cannot be compared stays: {refs[unreadable].marker}: not a")

    def test_what_was_given_up_neither_counts_nor_goes(self, store: CheckpointStore) -> None:
        for step in (10, 20, 30, 40):
            put(store, 1, step)
        store.give_up(2, 20)
        assert retain(store, Retention(keep_last=2)) == []
        put(store, 2, 25)
        assert steps(retain(store, Retention(keep_last=2))) == [10]
        assert [(ref.attempt, ref.step) for ref in store.committed()] == [(2, 25), (1, 40), (1, 30), (1, 20)]

    @settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @example(losses=[2.0, 1.0, 3.0, 3.0, 2.0], interrupted=[True] * 5, last=1, best=2, every=3)
    @given(
        losses=st.lists(st.sampled_from([1.0, 2.0, 3.0, math.nan]), min_size=1, max_size=6),
        interrupted=st.lists(st.booleans(), min_size=6, max_size=6),
        last=st.integers(1, 3),
        best=st.integers(0, 2),
        every=st.none() | st.integers(2, 3),
    )
    def test_interruptions_change_nothing_of_what_is_kept_of_the_regular_ones(
        self, s3: str, losses: list[float], interrupted: list[bool], last: int, best: int, every: int | None
    ) -> None:
        policy = Retention(
            keep_last=last,
            keep_best=best,
            keep_every=every and 10 * every,
            every_steps=10,
            metric="loss",
        )
        calm, shaken = (CheckpointStore(s3, f"{name}-{uuid4().hex}") for name in ("calm", "shaken"))
        attempt = 1
        for number, (loss, interrupt) in enumerate(zip(losses, interrupted, strict=False), start=1):
            for store in (calm, shaken):
                put(store, attempt if store is shaken else 1, 10 * number, loss=loss)
                retain(store, policy)
            if interrupt:
                put(shaken, attempt, 10 * number + 5, loss=loss)
                retain(shaken, policy)
                attempt += 1
        assert [step for step in steps(shaken.live()) if step % 10 == 0] == steps(calm.live())

    def test_the_marker_goes_first(self, store: CheckpointStore, proxy: Proxy) -> None:
        refs = [put(store, 1, step) for step in (10, 20)]
        with proxy.injecting():
            assert retain(store, Retention(keep_last=1)) == refs[:1]
        deleted = [line.split("/", 2)[2] for line in proxy.lines if line.startswith("DELETE ")]
        assert deleted == [refs[0].marker.key, f"checkpoints/run/{refs[0].name}-0123abcd/rank-00000.bin"]

    @pytest.mark.parametrize(("what", "left"), [("commits/.*step-000000020", [20, 40]), ("step-000000020-", [40])])
    def test_one_that_cannot_be_deleted_does_not_stop_the_rest(
        self, store: CheckpointStore, proxy: Proxy, caplog: pytest.LogCaptureFixture, what: str, left: list[int]
    ) -> None:
        for step in (10, 20, 30, 40):
            put(store, 1, step)
        with proxy.injecting(Fault(Kind.DENIED, f"^DELETE .*{what}", times=None)):
            assert steps(retain(store, Retention(keep_last=1))) == [10, 30]
        assert steps(store.live()) == left
        (warning,) = caplog.messages
        assert warning.startswith("a checkpoint beyond retention stays: cannot delete s3://")
        assert "permission denied" in warning

    def test_s3_that_fails_fails_no_run(
        self, store: CheckpointStore, proxy: Proxy, caplog: pytest.LogCaptureFixture
    ) -> None:
        for step in (10, 20):
            put(store, 1, step)
        with proxy.injecting(Fault(Kind.DENIED, "^GET .*list-type", times=None)):
            assert retain(store, Retention(keep_last=1)) == []
        assert steps(store.live()) == [10, 20]
        assert "checkpoints beyond retention stay: cannot list" in caplog.text


def make_old(place: S3Location, age: timedelta = timedelta(days=2)) -> None:
    """Everything below a place, or the object that it is, written so long ago."""
    store = S3Store()
    for location in list(store.list(place)) or [place]:
        s3_client().put_object(
            Bucket=location.bucket,
            Key=location.key,
            Body=store.read(location),
            Metadata={"mtime": str(time() - age.total_seconds())},
        )


def leave_an_upload(location: S3Location, num_bytes: int = 100) -> None:
    """As a writer that was killed leaves it."""
    where = {"Bucket": location.bucket, "Key": location.key}
    begun = s3_client().create_multipart_upload(**where)
    s3_client().upload_part(**where, UploadId=begun["UploadId"], PartNumber=1, Body=bytes(num_bytes))


def reasons(garbage: Iterable[Garbage]) -> dict[str, str]:
    return {f"{one.folder.parent.name}/{one.folder.name}": one.reason for one in garbage}


@pytest.fixture
def orphan(store: CheckpointStore) -> Callable[..., S3Location]:
    """A folder without a marker, as a save leaves it that did not get to its commit."""

    def make(name: str = "attempt-001-step-000000030-00000001", old: bool = True) -> S3Location:
        place = store.root / name
        for file in ("rank-00000.bin", "rank-00000.json", "manifest.json"):
            S3Store().write(place / file, b"123")
        if old:
            make_old(place)
        return place

    return make


class TestCollect:
    def test_what_nobody_will_use_goes_and_the_rest_stays_whole(
        self, store: CheckpointStore, orphan: Callable[..., S3Location]
    ) -> None:
        uri, tensors = str(store.root.parent), {"model.weight": torch.arange(9.0)}
        kept = commit(uri, "run", tensors, step=10)
        given_up = commit(uri, "run", tensors, step=20)
        store.give_up(2, 10)
        names = [
            orphan("attempt-001-step-000000030-00000001").name,
            # Lost to another writer of the same step.
            orphan("attempt-001-step-000000010-00000002").name,
            folder(given_up).name,
        ]
        make_old(store.root)
        orphan("attempt-001-step-000000030-00000003", old=False)
        before, gone = objects(uri), {f"{store.root}/{name}/" for name in names} | {str(given_up.marker)}
        would = collect(find_runs(uri), DAY, dry_run=True)
        assert objects(uri) == before
        done = collect(find_runs(uri), DAY)
        assert done == would
        assert reasons(done) == {
            f"run/{names[0]}": "never committed",
            f"run/{names[1]}": "never committed",
            f"run/{names[2]}": "given up",
        }
        assert [one.size for one in done if one.reason == "never committed"] == [9, 9]
        assert objects(uri) == {name for name in before if not any(name.startswith(place) for place in gone)}
        assert list(store.committed()) == [kept]
        assert sum(verify(kept.uri)) == 36
        assert collect(find_runs(uri), DAY) == []

    @pytest.mark.parametrize(("given_up_ago", "goes"), [(timedelta(hours=23), False), (timedelta(hours=25), True)])
    def test_the_grace_of_what_was_given_up_counts_from_then(
        self, store: CheckpointStore, given_up_ago: timedelta, goes: bool
    ) -> None:
        """However old it was: a rollback by mistake can be seen, and the checkpoint taken by its URI."""
        put(store, 1, 20)
        store.give_up(2, 10)
        store.give_up(3, 15)
        make_old(store.root, timedelta(days=9))
        make_old(store.root / "tombstones/attempt-002-step-000000010", given_up_ago)
        make_old(store.root / "tombstones/attempt-003-step-000000015", timedelta(0))
        assert bool(collect([store.root], DAY)) == goes

    @pytest.mark.parametrize("moment", ["between two parts", "before the commit"])
    def test_a_running_save_is_left_alone(self, store: CheckpointStore, moment: str) -> None:
        found: list[list[Garbage]] = []

        class Slow(Pace):
            def take(self, num_bytes: int, *others: Any) -> None:
                super().take(num_bytes, *others)
                if moment == "between two parts":
                    look()

        def look() -> None:
            if len(found) < 3:
                found.append(collect(find_runs(str(store.root.parent)), timedelta(hours=1)))

        saver = Saver(store, pace=Slow())
        saver.begin(
            {"model.weight": torch.ones(5 * 2**20)},
            attempt=1,
            step=10,
            training_digest="",
            state={},
            metrics={},
            before_report=look,
        )
        saver.close()
        assert found
        assert not any(found)
        assert sum(verify(next(store.live()).uri)) == 20 * 2**20

    def test_an_old_object_beside_an_upload_that_goes_on_is_a_slow_save(
        self, store: CheckpointStore, orphan: Callable[..., S3Location]
    ) -> None:
        place = orphan()
        leave_an_upload(place / "rank-00001.bin")
        before = objects(store.root)
        assert collect([store.root], timedelta(hours=1)) == []
        assert objects(store.root) == before
        (garbage,) = collect([store.root], EVERYTHING_IS_OLD)
        assert (garbage.reason, garbage.size) == ("never committed", 109)
        assert objects(store.root) == set()
        assert list(S3Store().uploads(store.root)) == []

    def test_abandoned_uploads_are_aborted_also_in_the_folder_of_a_checkpoint(self, store: CheckpointStore) -> None:
        ref = commit(str(store.root.parent), "run", {"model.weight": torch.arange(9.0)})
        empty = store.root / "attempt-001-step-000000020-00000001"
        leave_an_upload(folder(ref) / "rank-00000.bin", 70)
        leave_an_upload(empty / "rank-00000.bin")
        assert collect([store.root], timedelta(hours=1)) == []
        found = collect([store.root], EVERYTHING_IS_OLD)
        assert [(one.folder, one.reason, one.size) for one in found] == [
            (folder(ref), "abandoned upload", 70),
            (empty, "abandoned upload", 100),
        ]
        assert list(S3Store().uploads(store.root)) == []
        assert sum(verify(ref.uri)) == 36

    def test_folders_that_a_damaged_marker_may_name_stay(
        self, store: CheckpointStore, orphan: Callable[..., S3Location], caplog: pytest.LogCaptureFixture
    ) -> None:
        ref = put(store, 1, 30)
        orphan()
        S3Store().write(ref.marker, b"{}")
        make_old(store.root)
        before = objects(store.root)
        assert collect([store.root], DAY) == []
        assert objects(store.root) == before
        assert "folders that a damaged marker may name stay" in caplog.text

    @pytest.mark.parametrize("name", ["rank-00000.bin", "commits/"])
    def test_one_that_cannot_be_deleted_is_told_and_the_rest_goes(
        self, store: CheckpointStore, orphan: Callable[..., S3Location], proxy: Proxy, name: str
    ) -> None:
        ref = put(store, 1, 20)
        store.give_up(2, 10)
        make_old(store.root)
        orphan()
        with proxy.injecting(Fault(Kind.DENIED, f"^DELETE .*{name}", times=None)):
            found = {one.reason: one.problem for one in collect([store.root], DAY)}
        assert "permission denied" in found["given up"]
        left = {location.key.rpartition("/")[2] for location in S3Store().list(store.root)}
        if name == "commits/":
            assert found["never committed"] == ""
            assert left == {"rank-00000.bin", ref.marker.name, "attempt-002-step-000000010"}
        else:
            assert "permission denied" in found["never committed"]
            assert left == {"rank-00000.bin", "attempt-002-step-000000010"}

    def test_nothing_but_folders_of_checkpoints_is_touched(self, s3: str) -> None:
        """All of a storage root below one prefix: no other folder is taken for a run's."""
        for key in ("runs/r/trace/steps/a.parquet", "ledger/e/m/d/x/start.json", "champions/commits/champion.json"):
            S3Store().write(S3Location.parse(f"{s3}/{key}"), b"{}")
        S3Store().write(S3Location.parse(f"{s3}/run/attempt-001-step-000000010/manifest.json"), b"an older version's")
        S3Store().write(S3Location.parse(f"{s3}/run/attempt-001-step-000000010-0000000g/manifest.json"), b"no nonce")
        S3Store().write(S3Location.parse(f"{s3}/run/commits/notes.txt"), b"somebody's")
        make_old(S3Location.parse(s3))
        before = objects(s3)
        assert collect(find_runs(s3), DAY) == []
        assert objects(s3) == before

    def test_releases_are_never_collected(self, s3: str) -> None:
        """Also where the checkpoints of runs stand beside them, and a model is called as the folder of one."""
        tensors = {"model.weight": torch.arange(9.0)}
        ref = commit(s3, "run", tensors)
        digest = read_manifest(ref.uri)[1]
        places = [
            S3Location.parse(f"{s3}/releases/{model}/{run}")
            for model in ("digits", "attempt-001-step-000000010-00000001")
            for run in ("run", "attempt-001-step-000000010-00000002")
        ]
        for place in places:
            copy_checkpoint(ref.uri, digest, place)
        make_old(S3Location.parse(s3))
        before = objects(f"{s3}/releases")
        for uri in (s3, f"{s3}/releases", f"{s3}/releases/digits"):
            for root in find_runs(uri):
                if "releases" in str(root):
                    with pytest.raises(UserError, match="below `releases`, where promoted checkpoints stand"):
                        collect([root], DAY)
                else:
                    collect([root], DAY)
        retain(CheckpointStore(s3, "run"), Retention(keep_last=1))
        assert objects(f"{s3}/releases") == before
        for location in list(S3Store().list(ref.root)):
            S3Store().delete(location)
        assert torch.equal(load_model_state(str(places[0]), digest)["weight"], tensors["model.weight"])


def test_runs_are_found_at_their_root_and_one_folder_above(s3: str, store: CheckpointStore) -> None:
    put(store, 1, 10)
    CheckpointStore(f"{s3}/checkpoints", "begun").give_up(1, 0)
    S3Store().write(S3Location.parse(f"{s3}/checkpoints/torn/attempt-001-step-000000010-00000001/rank-00000.bin"), b"1")
    S3Store().write(S3Location.parse(f"{s3}/checkpoints/notes/readme.txt"), b"1")

    def names(uri: str) -> list[str]:
        return [root.name for root in find_runs(uri)]

    assert names(f"{s3}/checkpoints") == ["begun", "run", "torn"]
    assert names(f"{s3}/checkpoints/run") == ["run"]
    assert names(s3) == names(f"{s3}/checkpoints/notes") == names(f"{s3}/nothing") == []

"""S3 against real servers: what is written comes back, what must not be overwritten is not, and errors say why."""

import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from threading import Barrier
from uuid import uuid4

import pytest
from convergate.components.storage import (
    BucketNotFoundError,
    ObjectExistsError,
    S3Error,
    S3Location,
    S3NotFoundError,
    S3Store,
)
from convergate.components.storage import s3 as s3_room
from convergate.components.storage.client import s3_client
from hypothesis import given
from hypothesis import strategies as st
from proxy import Fault, Kind, Proxy


@pytest.fixture(params=["s3", "moto"])
def root(request: pytest.FixtureRequest) -> S3Location:
    """A fresh bucket on rclone and on moto."""
    return S3Location.parse(request.getfixturevalue(request.param))


buckets = st.text("abz09-.", min_size=3, max_size=8)
keys = st.text("ab/ ü%?#", max_size=12)


@given(buckets, keys)
def test_a_location_is_what_its_uri_says(bucket: str, key: str) -> None:
    location = S3Location.parse(f"s3://{bucket}/{key}")
    assert (location.bucket, location.key) == (bucket, key.strip("/"))
    assert S3Location.parse(str(location)) == location
    assert not str(location).endswith("/")


@given(buckets, keys, keys, keys)
def test_parts_are_joined_by_one_slash(bucket: str, key: str, one: str, two: str) -> None:
    location = S3Location.parse(f"s3://{bucket}/{key}")
    assert location / "" == location / "/" == location
    pieces = [piece for piece in (location.key, one.strip("/"), two.strip("/")) if piece]
    assert location / one / two == S3Location(bucket, "/".join(pieces))


@pytest.mark.parametrize("uri", ["", "s3://", "s3:///key", "bucket/key", "S3://bucket", "https://bucket", "s3:/b/k"])
def test_what_is_no_s3_uri_is_refused(uri: str) -> None:
    with pytest.raises(S3Error) as caught:
        S3Location.parse(uri)
    assert str(caught.value) == f"{uri!r}: not an S3 URI → s3://bucket/prefix"


KEYS = [
    *("a b/c d", "ü/日本/ß.json", "a+b", "a%20b", "a=b&c?d#e", "quote'\"x", "~tilde", "back\\slash", "a:b*c|d<e>"),
    *("tab\tx", "ends in a space ", ".dot/..x", "UPPER/lower", "x" * 200),
]


def test_any_key_is_written_listed_and_read_back(root: S3Location) -> None:
    store = S3Store()
    for number, key in enumerate(KEYS):
        store.write(root / key, str(number).encode())
    assert sorted(location.key for location in store.list(root)) == sorted(KEYS)
    for number, key in enumerate(KEYS):
        assert store.read(root / key) == str(number).encode()
        assert store.exists(root / key)
        store.delete(root / key)
        assert not store.exists(root / key)
    assert list(store.list(root)) == []


@pytest.mark.parametrize("data", [b"", b"\0", bytes(range(256)) * 4096], ids=["empty", "zero", "1 MiB"])
def test_bytes_come_back_as_they_were_also_over_older_ones(root: S3Location, data: bytes) -> None:
    store = S3Store()
    store.write(root / "object", b"something older and longer" * 10)
    store.write(root / "object", data)
    assert store.read(root / "object") == data


def test_more_objects_than_a_page_holds_are_all_listed_in_order(s3: str) -> None:
    root, store = S3Location.parse(s3), S3Store()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: store.write(root / f"many/{number:04}", b""), range(1001)))
    store.write(root / "many-others/1", b"")
    assert [location.key for location in store.list(root / "many")] == [f"many/{number:04}" for number in range(1001)]


def test_a_prefix_is_a_folder_and_no_beginning_of_a_name(root: S3Location) -> None:
    store = S3Store()
    for key in ("run/a", "run/b/c", "run-2/a", "runs"):
        store.write(root / key, b"")
    assert [location.key for location in store.list(root / "run")] == ["run/a", "run/b/c"]
    assert not store.exists(root / "run")
    assert list(store.list(root / "none")) == []
    assert list(store.list(S3Location("no-such-bucket-here", "run"))) == []


def test_create_never_overwrites(root: S3Location) -> None:
    store = S3Store()
    store.create(root / "once", b"first")
    with pytest.raises(ObjectExistsError, match=r"once exists already, and is never overwritten"):
        store.create(root / "once", b"second")
    assert store.read(root / "once") == b"first"


def test_replace_swaps_the_version_that_was_read(root: S3Location) -> None:
    store, place = S3Store(), root / "record"
    store.create(place, b"0")
    data, etag = store.read_versioned(place)
    assert data == b"0"
    store.replace(place, b"1", etag)
    with pytest.raises(ObjectExistsError, match="record was changed by somebody else meanwhile"):
        store.replace(place, b"2", etag)
    assert store.read(place) == b"1"


def winners(act: Callable[[int], None]) -> list[int]:
    """Which of eight writers succeed that begin at the same time."""
    barrier, won = Barrier(8), []

    def write(number: int) -> None:
        barrier.wait()
        try:
            act(number)
        except ObjectExistsError:
            return
        won.append(number)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(8)))
    return won


def test_of_many_writers_one_wins(moto: str) -> None:
    store, place = S3Store(), S3Location.parse(moto) / "record"
    created = winners(lambda number: store.create(place, f"created by {number}".encode()))
    data, etag = store.read_versioned(place)
    assert [data] == [f"created by {number}".encode() for number in created]
    replaced = winners(lambda number: store.replace(place, f"replaced by {number}".encode(), etag))
    assert [store.read(place)] == [f"replaced by {number}".encode() for number in replaced]


class Overtaken(S3Store):
    """Somebody else writes between our look and our write."""

    def exists(self, location: S3Location) -> bool:
        found = super().exists(location)
        self.write(location, b"theirs")
        return found

    def read_versioned(self, location: S3Location) -> tuple[bytes, str]:
        found = super().read_versioned(location)
        self.write(location, b"theirs")
        return found


def test_looking_first_is_not_what_decides_where_writes_are_conditional(moto: str) -> None:
    root = S3Location.parse(moto)
    with pytest.raises(ObjectExistsError, match=r"cannot create s3://.*/new: it exists, or was changed meanwhile"):
        Overtaken().create(root / "new", b"ours")
    S3Store().create(root / "record", b"0")
    etag = S3Store().read_versioned(root / "record")[1]
    with pytest.raises(ObjectExistsError, match=r"cannot replace s3://.*/record: it exists, or was changed meanwhile"):
        Overtaken().replace(root / "record", b"ours", etag)
    assert {S3Store().read(root / name) for name in ("new", "record")} == {b"theirs"}


@pytest.mark.parametrize("server", ["s3", "moto"])
def test_many_may_ensure_the_same_bucket_at_once(server: str, request: pytest.FixtureRequest) -> None:
    request.getfixturevalue(server)
    bucket = S3Location(f"shared-{uuid4().hex[:12]}")
    assert len(winners(lambda _: S3Store().ensure_bucket(bucket))) == 8
    S3Store().write(bucket / "object", b"")


def test_a_bucket_is_made_in_the_region_that_is_configured(
    moto: str, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A region of boto3's own chain counts too, here that of a profile."""
    profile = tmp_path_factory.mktemp("aws") / "config"
    profile.write_text("[default]\nregion = eu-central-1\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(profile))
    for number, region in enumerate(["eu-west-1", "us-east-1", None]):
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", f"of-another-client-{number}")
        monkeypatch.delenv("AWS_REGION") if region is None else monkeypatch.setenv("AWS_REGION", region)
        bucket = S3Location(f"regional-{uuid4().hex[:12]}")
        S3Store().ensure_bucket(bucket)
        found = s3_client().get_bucket_location(Bucket=bucket.bucket)["LocationConstraint"]
        assert found == {"eu-west-1": "eu-west-1", "us-east-1": None, None: "eu-central-1"}[region]


def test_a_listing_tells_size_and_age_and_may_be_cut(root: S3Location) -> None:
    store, begun = S3Store(), datetime.now(UTC) - timedelta(seconds=2)
    for number in range(5):
        store.write(root / f"run/{number}", bytes(number))
    store.write(root / "run-2", b"")
    entries = list(store.entries(root / "run"))
    assert [(entry.location, entry.size) for entry in entries] == [(root / f"run/{n}", n) for n in range(5)]
    assert all(begun <= entry.modified <= datetime.now(UTC) for entry in entries)
    for limit in (1, 3, 5, 9):
        assert list(store.entries(root / "run", limit)) == entries[:limit]


def test_one_entry_costs_one_request_however_many_there_are(s3: str, through_proxy: Callable[[], Proxy]) -> None:
    root, store = S3Location.parse(s3), S3Store()
    for number in range(5):
        store.write(root / f"run/{number}", b"")
    proxy = through_proxy()
    with proxy.injecting():
        next(store.entries(root / "run", 1))
        assert len(proxy.lines) == 1


def test_folders_are_what_lies_right_below(root: S3Location) -> None:
    store = S3Store()
    for key in ("run/a/1", "run/a/2", "run/b/c/d", "run/file", "run-2/a/1"):
        store.write(root / key, b"")
    assert list(store.folders(root / "run")) == [root / "run/a", root / "run/b"]
    assert set(store.folders(root)) == {root / "run", root / "run-2"}
    assert list(store.folders(root / "none")) == []


def begin_upload(location: S3Location, *parts: bytes) -> None:
    """A multipart upload that nobody completes."""
    of = {"Bucket": location.bucket, "Key": location.key}
    upload_id = s3_client().create_multipart_upload(**of)["UploadId"]
    for number, part in enumerate(parts, start=1):
        s3_client().upload_part(**of, UploadId=upload_id, PartNumber=number, Body=part)


def test_a_pending_upload_is_listed_with_its_parts_until_it_is_aborted(root: S3Location) -> None:
    store, begun = S3Store(), datetime.now(UTC) - timedelta(seconds=2)
    assert list(store.uploads(root / "run")) == []
    begin_upload(root / "run/a", b"one", b"three")
    begin_upload(root / "run-2/a")
    [pending] = store.uploads(root / "run")
    assert pending.location == root / "run/a"
    assert pending.initiated.tzinfo is not None
    parts = list(store.parts(pending))
    assert [part.size for part in parts] == [3, 5]
    assert all(begun <= part.modified <= datetime.now(UTC) for part in parts)
    for _ in range(2):
        store.abort(pending)
        assert list(store.uploads(root / "run")) == []
        assert list(store.parts(pending)) == []
    assert len(list(store.uploads(root))) == 1


@pytest.mark.parametrize("list_it", ["entries", "folders", "uploads"])
@pytest.mark.parametrize("server", ["s3", "moto"])
def test_a_bucket_that_is_missing_is_not_an_empty_one(
    server: str, list_it: str, request: pytest.FixtureRequest
) -> None:
    request.getfixturevalue(server)
    with pytest.raises(BucketNotFoundError, match="no such bucket"):
        list(getattr(S3Store(), list_it)(S3Location("no-such-bucket-here", "run")))


@pytest.mark.parametrize(("server", "size"), [("s3", 0), ("s3", 11 * 2**20), ("moto", 0), ("moto", 11 * 2**20)])
def test_a_copy_is_the_same_bytes_also_in_parts(
    server: str, size: int, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = S3Location.parse(request.getfixturevalue(server))
    for name in ("COPY_BYTES", "COPY_PART_BYTES") if server == "moto" else ():  # rclone copies whole objects only
        monkeypatch.setattr(s3_room, name, 5 * 2**20)
    data = random.Random(size).randbytes(size)
    S3Store().write(root / "from", data)
    S3Store().copy(root / "from", root / "to/there")
    assert S3Store().read(root / "to/there") == data
    with pytest.raises(S3NotFoundError, match="none does not exist"):
        S3Store().copy(root / "none", root / "to/nowhere")


def test_what_was_written_although_its_answer_got_lost_is_ours(
    moto: str, through_proxy: Callable[[], Proxy], quick: None
) -> None:
    place, store, proxy = S3Location.parse(moto) / "record", S3Store(), through_proxy()
    with proxy.injecting(fault := Fault(Kind.LOST_ANSWER, "PUT")):
        store.create(place, b"0")
    assert fault.met == 1
    with proxy.injecting(fault := Fault(Kind.LOST_ANSWER, "PUT")):
        store.replace(place, b"1", store.read_versioned(place)[1])
    assert fault.met == 1
    assert store.read(place) == b"1"


def test_what_somebody_else_wrote_while_our_answer_got_lost_is_theirs(
    moto: str, through_proxy: Callable[[], Proxy], quick: None
) -> None:
    place, proxy = S3Location.parse(moto) / "record", through_proxy()
    theirs = Fault(Kind.INSTEAD, "PUT", happens=lambda: S3Store().write(place, b"theirs"))
    with proxy.injecting(theirs), pytest.raises(ObjectExistsError, match="it exists, or was changed meanwhile"):
        S3Store().create(place, b"ours")
    assert S3Store().read(place) == b"theirs"


@pytest.mark.parametrize("kind", [Kind.TRUNCATED, Kind.RESET, Kind.SLOW_DOWN])
def test_an_object_that_comes_in_part_is_read_again(
    s3: str, through_proxy: Callable[[], Proxy], quick: None, kind: Kind
) -> None:
    place, proxy = S3Location.parse(s3) / "object", through_proxy()
    S3Store().write(place, b"0123456789")
    with proxy.injecting(fault := Fault(kind, "GET", times=2)):
        assert S3Store().read(place) == b"0123456789"
    assert fault.met == 2


def test_an_object_that_always_comes_in_part_is_an_error_in_a_line(
    s3: str, through_proxy: Callable[[], Proxy], quick: None
) -> None:
    place, proxy = S3Location.parse(s3) / "object", through_proxy()
    S3Store().write(place, b"0123456789")
    with proxy.injecting(Fault(Kind.TRUNCATED, "GET", times=None)), pytest.raises(S3Error) as caught:
        S3Store().read(place)
    cause = "the answer broke off (ResponseStreaming) → check the network"
    assert str(caught.value) == f"cannot read {place}: {cause}"

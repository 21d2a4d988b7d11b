"""S3 against real servers: what is written comes back, what must not be overwritten is not, and errors say why."""

import io
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from uuid import uuid4

import pytest
from convergate.components.storage import ObjectExistsError, S3Error, S3Location, S3Store
from convergate.components.storage import s3 as s3_room
from hypothesis import given
from hypothesis import strategies as st


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


def test_a_large_stream_goes_up_in_parts(s3: str) -> None:
    data = bytes(range(256)) * (33 * 2**12)
    assert len(data) == 33 * 2**20
    place = S3Location.parse(s3) / "large"
    s3_room.upload(place, io.BytesIO(data))
    assert S3Store().read(place) == data


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
        found = s3_room.s3_client().get_bucket_location(Bucket=bucket.bucket)["LocationConstraint"]
        assert found == {"eu-west-1": "eu-west-1", "us-east-1": None, None: "eu-central-1"}[region]

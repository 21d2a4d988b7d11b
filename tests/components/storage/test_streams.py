"""Streams against real servers: bytes arrive as they were or not at all, whatever the network does to them."""

import hashlib
import random
import re
import tracemalloc
from collections.abc import Callable

import pytest
from awscrt.checksums import crc64nvme
from convergate.components.storage import (
    BucketNotFoundError,
    DamagedError,
    S3Error,
    S3Location,
    S3NotFoundError,
    S3Store,
    streams,
    transfer,
)
from convergate.components.storage.errors import BrokenOffError, S3DeniedError
from convergate.components.storage.streams import Fetch, Pace, Part, Uploaded, allowed_seconds, download, upload
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from proxy import Fault, Kind, Proxy

SMALL = 64 * 2**10
VERIFIED = {"s3": "read back", "moto": "read back", "sink": "by the server"}
ThroughProxy = Callable[[], Proxy]


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of 64 KiB, which rclone and the sink take too."""
    monkeypatch.setattr(streams, "PART_BYTES", SMALL)


@pytest.fixture(params=["s3", "sink"])
def server(request: pytest.FixtureRequest) -> str:
    """One that compares no checksums, and one that does."""
    return str(request.param)


@pytest.fixture
def root(server: str, request: pytest.FixtureRequest) -> S3Location:
    """A fresh place there."""
    return S3Location.parse(request.getfixturevalue(server)) / "folder"


def some_bytes(size: int) -> memoryview:
    return memoryview(random.Random(size).randbytes(size))


def fetches(location: S3Location, done: Uploaded, target: memoryview) -> list[Fetch]:
    starts = [number * done.part_bytes for number in range(len(done.parts))]
    return [
        Fetch(location, start, target[start : start + done.part_bytes], part)
        for start, part in zip(starts, done.parts, strict=True)
    ]


def read_back(location: S3Location, done: Uploaded) -> bytes:
    target = memoryview(bytearray(done.size))
    download(fetches(location, done, target))
    return bytes(target)


def names(root: S3Location) -> list[str]:
    return [location.key.rpartition("/")[2] for location in S3Store().list(root)]


sizes = st.one_of(st.integers(0, 200), st.integers(-1, 1).map(lambda d: 2 * SMALL + d), st.integers(0, 5 * SMALL))


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(size=sizes, sealed=st.booleans())
def test_bytes_come_back_as_they_were_with_their_checksums(
    server: str, root: S3Location, small_parts: None, size: int, sealed: bool
) -> None:
    data = some_bytes(size)
    done = upload(root / "object", data, sealed=sealed)
    pieces = [data[start : start + SMALL] for start in range(0, size, SMALL)] or [data]
    assert done == Uploaded(
        size=size,
        part_bytes=SMALL,
        crc64nvme=f"{crc64nvme(data):016x}",
        parts=tuple(Part.of(piece, sealed=sealed) for piece in pieces),
        verified=VERIFIED[server],
    )
    assert read_back(root / "object", done) == data
    assert names(root) == ["object"]


def test_checksums_are_the_published_ones() -> None:
    """The check value of CRC-64/NVME (Rocksoft) and the SHA-256 of `abc` of FIPS 180-2."""
    assert Part.of(memoryview(b"123456789"), sealed=False) == Part("ae8b14860a799888", "")
    sealed = Part.of(memoryview(b"abc"), sealed=True)
    assert sealed.sha256 == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


@pytest.mark.parametrize("server", ["s3", "moto", "sink"], indirect=True)
def test_parts_as_large_as_s3_wants_them(server: str, root: S3Location) -> None:
    data = some_bytes(streams.PART_BYTES + 1)
    done = upload(root / "object", data)
    assert [done.size, done.part_bytes, len(done.parts)] == [2**24 + 1, 2**24, 2]
    assert done.verified == VERIFIED[server]
    assert S3Store().read(root / "object") == data


def test_an_older_object_is_written_over(root: S3Location) -> None:
    upload(root / "object", some_bytes(300))
    done = upload(root / "object", some_bytes(200))
    assert read_back(root / "object", done) == some_bytes(200)


@pytest.mark.parametrize("kind", ["typed", "read-only", "part of another"])
def test_any_contiguous_memory_goes_up(root: S3Location, kind: str) -> None:
    raw = some_bytes(800)
    data = {"typed": raw.cast("d"), "read-only": memoryview(bytes(raw)), "part of another": raw[:800]}[kind]
    assert read_back(root / "object", upload(root / "object", data)) == raw


def test_parts_grow_where_there_would_be_too_many(
    root: S3Location, small_parts: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "MAX_PARTS", 3)
    data = some_bytes(4 * SMALL + 1)
    done = upload(root / "object", data)
    # Still a multiple of what is usual: where a tensor begins in an object it begins in a part, too.
    assert (done.part_bytes, len(done.parts)) == (2 * SMALL, 3)
    assert read_back(root / "object", done) == data


def test_memory_is_not_copied(sink: str) -> None:
    """Of 48 MiB each way, less than a part is ever held besides."""
    data, target = memoryview(bytearray(3 * 2**24)), memoryview(bytearray(3 * 2**24))
    place = S3Location.parse(sink) / "object"
    upload(place, data[:9])
    tracemalloc.start()
    try:
        done = upload(place, data)
        download(fetches(place, done, target))
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()


PASSING = [Kind.RESET, Kind.SLOW_DOWN, Kind.LOST_ANSWER, Kind.CORRUPT_UPLOAD]
REQUESTS = {
    "the object": (100, "PUT .*/object"),
    "a part": (3 * SMALL, "partNumber=2"),
    "the beginning": (3 * SMALL, "POST .*uploads"),
    "the completion": (3 * SMALL, "POST .*uploadId="),
}
requests = pytest.mark.parametrize(("size", "pattern"), REQUESTS.values(), ids=REQUESTS.keys())


@requests
@pytest.mark.parametrize("kind", PASSING)
def test_what_passes_costs_time_only(
    s3: str, through_proxy: ThroughProxy, small_parts: None, quick: None, kind: Kind, size: int, pattern: str
) -> None:
    place, data = S3Location.parse(s3) / "object", some_bytes(size)
    proxy = through_proxy()
    with proxy.injecting(fault := Fault(kind, pattern)):
        done = upload(place, data)
        assert fault.met == 1
        assert read_back(place, done) == data
    assert names(S3Location.parse(s3)) == ["object"]


def test_wrong_bytes_that_the_server_refuses_are_sent_again(
    sink: str, through_proxy: ThroughProxy, small_parts: None, quick: None
) -> None:
    place, data = S3Location.parse(sink) / "object", some_bytes(3 * SMALL)
    proxy = through_proxy()
    with proxy.injecting(Fault(Kind.CORRUPT_UPLOAD, "partNumber=2", times=2)):
        done = upload(place, data)
        assert done.verified == "by the server"
        assert [bool(re.search("partNumber=2", line)) for line in proxy.lines].count(True) == 3
    assert read_back(place, done) == data


def test_an_upload_that_somebody_aborts_is_begun_again(
    s3: str, through_proxy: ThroughProxy, small_parts: None, quick: None
) -> None:
    place, data, store = S3Location.parse(s3) / "folder/object", some_bytes(3 * SMALL), S3Store()
    proxy = through_proxy()

    def abort() -> None:
        for pending in store.uploads(S3Location.parse(s3)):
            store.abort(pending)

    with proxy.injecting(fault := Fault(Kind.BEFORE, "partNumber=3", happens=abort)):
        done = upload(place, data)
    assert fault.met == 1
    assert read_back(place, done) == data


LASTING = {
    Kind.DENIED: (S3DeniedError, r"cannot upload {place}: permission denied \(AccessDenied\) → check .*"),
    Kind.NO_BUCKET: (BucketNotFoundError, r"{place} does not exist \(no such bucket\) → create it, or check the URI"),
    Kind.SLOW_DOWN: (S3Error, r"cannot upload {place}: http://127.0.0.1:\d+ answered 503 SlowDown → see its log"),
    Kind.RESET: (S3Error, r"cannot upload {place}: http://127.0.0.1:\d+ does not answer \(.*"),
}


@requests
@pytest.mark.parametrize("kind", LASTING)
def test_what_lasts_is_an_error_in_a_line_and_leaves_no_upload(
    s3: str,
    through_proxy: ThroughProxy,
    small_parts: None,
    quick: None,
    kind: Kind,
    size: int,
    pattern: str,
) -> None:
    place = S3Location.parse(s3) / "object"
    proxy = through_proxy()
    error, text = LASTING[kind]
    with proxy.injecting(Fault(kind, pattern, times=None)), pytest.raises(error) as caught:
        upload(place, some_bytes(size))
    assert re.fullmatch(text.format(place=place), str(caught.value))
    assert list(S3Store().uploads(S3Location.parse(s3))) == []
    assert not S3Store().exists(place)


@pytest.mark.parametrize(("server", "error"), [("s3", DamagedError), ("sink", S3Error)], indirect=["server"])
def test_bytes_that_never_arrive_right_are_never_done(
    root: S3Location, through_proxy: ThroughProxy, small_parts: None, quick: None, error: type[S3Error]
) -> None:
    proxy = through_proxy()
    with proxy.injecting(Fault(Kind.CORRUPT_UPLOAD, "partNumber=2", times=None)), pytest.raises(error):
        upload(root / "object", some_bytes(3 * SMALL))


def test_the_first_error_ends_the_other_parts(s3: str, through_proxy: ThroughProxy, small_parts: None) -> None:
    proxy = through_proxy()
    with proxy.injecting(Fault(Kind.DENIED, "partNumber", times=None)), pytest.raises(S3Error):
        upload(S3Location.parse(s3) / "object", some_bytes(100 * SMALL))
    assert sum("partNumber" in line for line in proxy.lines) < 50


@pytest.fixture
def uploaded(s3: str, small_parts: None) -> tuple[S3Location, Uploaded]:
    """An object of three sealed parts on rclone."""
    place = S3Location.parse(s3) / "object"
    return place, upload(place, some_bytes(3 * SMALL), sealed=True)


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("kind", [Kind.CORRUPT_ANSWER, Kind.TRUNCATED, Kind.RESET, Kind.SLOW_DOWN, Kind.TRICKLE])
def test_what_comes_wrong_is_read_again(
    uploaded: tuple[S3Location, Uploaded], through_proxy: ThroughProxy, quick: None, kind: Kind, times: int
) -> None:
    proxy = through_proxy()
    with proxy.injecting(fault := Fault(kind, "GET .*/object", times=times)):
        assert read_back(*uploaded) == some_bytes(3 * SMALL)
    assert fault.met == times


@pytest.mark.parametrize(
    ("kind", "error", "text"),
    [
        (Kind.CORRUPT_ANSWER, DamagedError, r"{place}: bytes 0 to 65536 are not those that were written"),
        (
            Kind.TRUNCATED,
            BrokenOffError,
            r"cannot read {place}: the answer broke off \(too short\) → check the network",
        ),
        (Kind.DENIED, S3DeniedError, r"cannot read {place}: permission denied \(AccessDenied\) → check .*"),
        (
            Kind.NO_BUCKET,
            BucketNotFoundError,
            r"{place} does not exist \(no such bucket\) → create it, or check the URI",
        ),
        (Kind.SLOW_DOWN, S3Error, r"cannot read {place}: http://127.0.0.1:\d+ answered 503 SlowDown → see its log"),
    ],
)
def test_what_stays_wrong_is_told_apart(
    uploaded: tuple[S3Location, Uploaded],
    through_proxy: ThroughProxy,
    quick: None,
    kind: Kind,
    error: type[S3Error],
    text: str,
) -> None:
    place, done = uploaded
    proxy = through_proxy()
    target = memoryview(bytearray(done.size))
    with proxy.injecting(Fault(kind, "GET .*/object", times=None)), pytest.raises(S3Error) as caught:
        download(fetches(place, done, target)[:1])
    assert type(caught.value) is error
    assert re.fullmatch(text.format(place=place), str(caught.value))


def test_an_object_that_is_missing_or_too_short_is_told(uploaded: tuple[S3Location, Uploaded], quick: None) -> None:
    place, done = uploaded
    target = memoryview(bytearray(done.size))
    for size in (0, SMALL, 2 * SMALL + 1):
        S3Store().write(place, bytes(some_bytes(3 * SMALL)[:size]))
        with pytest.raises(DamagedError, match="object is shorter than it should be"):
            download(fetches(place, done, target))
    S3Store().delete(place)
    with pytest.raises(S3NotFoundError, match="object does not exist"):
        download(fetches(place, done, target))


def test_other_bytes_with_the_same_crc_are_found_where_it_is_sealed(
    uploaded: tuple[S3Location, Uploaded], quick: None
) -> None:
    place, done = uploaded
    target = memoryview(bytearray(SMALL))
    sha256 = hashlib.sha256(b"something else").hexdigest()
    with pytest.raises(DamagedError, match="bytes 0 to 65536 are not those that were written"):
        download([Fetch(place, 0, target, done.parts[0]._replace(sha256=sha256))])
    download([Fetch(place, 0, target, done.parts[0])])


def test_nothing_to_read_asks_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    download([])
    download([Fetch(S3Location("bucket", "object"), 5, memoryview(b""), Part("0" * 16))])


def test_any_part_is_read_alone(uploaded: tuple[S3Location, Uploaded]) -> None:
    place, done = uploaded
    target = memoryview(bytearray(done.size))
    download([fetches(place, done, target)[1]])
    assert target[SMALL : 2 * SMALL] == some_bytes(3 * SMALL)[SMALL : 2 * SMALL]
    assert target[:SMALL] == target[2 * SMALL :] == bytes(SMALL)


def test_how_long_a_transfer_may_take() -> None:
    assert [allowed_seconds(size) for size in (0, 2**20, 600 * 2**20)] == [60, 61, 660]


def test_an_upload_that_stands_still_ends(s3: str, small_parts: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "BASE_SECONDS", 0.3)
    place = S3Location.parse(s3) / "object"
    with pytest.raises(S3Error) as caught:
        upload(place, some_bytes(3 * SMALL), pace=Pace(0))
    assert str(caught.value) == f"cannot upload {place}: not done after 0 s → check the network and the server"
    assert list(S3Store().uploads(S3Location.parse(s3))) == []


def test_a_download_that_trickles_ends(
    uploaded: tuple[S3Location, Uploaded], through_proxy: ThroughProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "BASE_SECONDS", 0.1)
    proxy = through_proxy()
    with proxy.injecting(Fault(Kind.TRICKLE, "GET", times=None)), pytest.raises(S3Error, match="not done after 0 s"):
        read_back(*uploaded)


class Clock:
    """A clock that goes on where somebody naps."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(transfer, "monotonic", lambda: self.now)

    def nap(self, seconds: float) -> None:
        assert 0 < seconds <= 0.1
        self.now += seconds


@given(rate=st.floats(1e3, 1e9), taken=st.lists(st.integers(1, 2**20), min_size=1, max_size=5))
def test_a_pace_is_kept(rate: float, taken: list[int]) -> None:
    """What was taken is paid for before more is: the last of it is not waited for."""
    with pytest.MonkeyPatch.context() as patch:
        clock, seconds = Clock(patch), min(1, 10 * rate / sum(taken))
        pace = Pace(rate)
        for size in taken:
            pace.take(int(size * seconds) + 1, clock.nap)
        expected = sum(int(size * seconds) + 1 for size in taken[:-1]) / rate
        assert clock.now == pytest.approx(expected, rel=1e-6, abs=len(taken) / rate)
        assert pace.taken == sum(int(size * seconds) + 1 for size in taken)


def test_a_pace_may_change_while_somebody_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    pace = Pace(0)

    def nap(seconds: float) -> None:
        clock.nap(seconds)
        if clock.now > 5:
            pace.rate = 1000.0

    pace.take(500, nap)
    assert clock.now == pytest.approx(5.1)
    pace.take(1, nap)
    assert clock.now == pytest.approx(5.6)
    Pace().take(2**60, nap)
    assert clock.now == pytest.approx(5.6)


def test_trying_again_draws_nothing_from_the_random_state_of_a_training(
    uploaded: tuple[S3Location, Uploaded], through_proxy: ThroughProxy, quick: None
) -> None:
    proxy = through_proxy()
    data = some_bytes(3 * SMALL)
    before = random.getstate()
    with proxy.injecting(Fault(Kind.CORRUPT_ANSWER, "GET", times=2), Fault(Kind.SLOW_DOWN, "PUT .*/object", times=2)):
        upload(uploaded[0], data)
    assert random.getstate() == before

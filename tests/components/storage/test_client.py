"""The clients that everything goes by, and what the environment says in them."""

import os
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from urllib.parse import parse_qs, urlsplit

import pytest
from convergate.components.errors import ExitCode, UserError
from convergate.components.storage import S3Location, S3Store, client, streams
from convergate.components.storage.client import s3_client, stream_client
from proxy import Fault, Kind, Proxy

SMALL = 5 * 2**20
"""The smallest part that moto takes."""


def url(bucket: str = "bucket") -> str:
    """Where a client would ask for an object, signed."""
    return s3_client().generate_presigned_url("get_object", Params={"Bucket": bucket, "Key": "key"})


@pytest.fixture
def somebody(monkeypatch: pytest.MonkeyPatch) -> None:
    """Credentials of no server's."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "somebody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")


@pytest.mark.parametrize(
    ("addressing", "endpoint", "host_and_path"),
    [
        (None, "http://s3.example.org:9000", ("s3.example.org:9000", "/bucket/key")),
        ("path", "http://s3.example.org:9000", ("s3.example.org:9000", "/bucket/key")),
        ("virtual", "http://s3.example.org:9000", ("bucket.s3.example.org:9000", "/key")),
        (None, None, ("bucket.s3.amazonaws.com", "/key")),
        ("path", None, ("s3.amazonaws.com", "/bucket/key")),
        ("auto", None, ("bucket.s3.amazonaws.com", "/key")),
    ],
)
def test_a_bucket_is_in_the_path_or_in_the_host(
    somebody: None,
    monkeypatch: pytest.MonkeyPatch,
    addressing: str | None,
    endpoint: str | None,
    host_and_path: tuple[str, str],
) -> None:
    for name, value in {"CONVERGATE_S3_ADDRESSING": addressing, "AWS_ENDPOINT_URL": endpoint}.items():
        if value:
            monkeypatch.setenv(name, value)
    parts = urlsplit(url())
    assert (parts.netloc, parts.path) == host_and_path


def test_a_profile_gives_credentials_region_and_style(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config, credentials = tmp_path / "config", tmp_path / "credentials"
    config.write_text("[profile team]\nregion = eu-central-1\ns3 =\n    addressing_style = path\n")
    credentials.write_text("[team]\naws_access_key_id = OFTHETEAM\naws_secret_access_key = secret\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(credentials))
    monkeypatch.setenv("AWS_PROFILE", "team")
    parts = urlsplit(url())
    assert (parts.netloc, parts.path) == ("s3.eu-central-1.amazonaws.com", "/bucket/key")
    assert parse_qs(parts.query)["X-Amz-Credential"][0].startswith("OFTHETEAM/")


@pytest.mark.parametrize(
    ("environment", "text"),
    [
        (
            {"CONVERGATE_S3_SSE": "aes256"},
            "CONVERGATE_S3_SSE='aes256' is unknown → AES256 or aws:kms",
        ),
        (
            {"CONVERGATE_S3_ADDRESSING": "host"},
            "CONVERGATE_S3_ADDRESSING='host' is unknown → path, virtual or auto",
        ),
        (
            {"CONVERGATE_S3_SSE_KMS_KEY_ID": "key"},
            "CONVERGATE_S3_SSE_KMS_KEY_ID is set without its encryption → CONVERGATE_S3_SSE=aws:kms",
        ),
        (
            {"CONVERGATE_S3_SSE_KMS_KEY_ID": "key", "CONVERGATE_S3_SSE": "AES256"},
            "CONVERGATE_S3_SSE_KMS_KEY_ID is set without its encryption → CONVERGATE_S3_SSE=aws:kms",
        ),
    ],
)
def test_a_wrong_value_is_the_users(
    moto: str, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], text: str
) -> None:
    place = S3Location.parse(moto) / "object"
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    for act in (lambda: S3Store().read(place), lambda: streams.upload(place, memoryview(b"x"))):
        with pytest.raises(UserError) as caught:
            act()
        assert (str(caught.value), caught.value.exit_code) == (text, ExitCode.USAGE)


ENCRYPTIONS = {
    "none": ({}, (None, None)),
    "AES256": ({"CONVERGATE_S3_SSE": "AES256"}, ("AES256", None)),
    "aws:kms": ({"CONVERGATE_S3_SSE": "aws:kms"}, ("aws:kms", None)),
    "own key": ({"CONVERGATE_S3_SSE": "aws:kms", "CONVERGATE_S3_SSE_KMS_KEY_ID": "key-1"}, ("aws:kms", "key-1")),
}
WRITERS: dict[str, Callable[[S3Location], object]] = {
    "write": lambda place: S3Store().write(place, b"x"),
    "create": lambda place: S3Store().create(place, b"x"),
    "upload": lambda place: streams.upload(place, memoryview(b"x")),
    "upload in parts": lambda place: streams.upload(place, memoryview(bytes(SMALL + 1))),
    "copy": lambda place: S3Store().copy(plain(place), place),
}


def plain(place: S3Location) -> S3Location:
    """An object beside it."""
    S3Store().write(place / "plain", b"x")
    return place / "plain"


@pytest.mark.parametrize(("environment", "expected"), ENCRYPTIONS.values(), ids=ENCRYPTIONS.keys())
@pytest.mark.parametrize("act", WRITERS.values(), ids=WRITERS.keys())
def test_every_object_asks_for_the_encryption_that_is_set(
    moto: str,
    monkeypatch: pytest.MonkeyPatch,
    act: Callable[[S3Location], object],
    environment: dict[str, str],
    expected: tuple[str | None, str | None],
) -> None:
    monkeypatch.setattr(streams, "PART_BYTES", SMALL)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    place = S3Location.parse(moto) / "object"
    act(place)
    head = s3_client().head_object(Bucket=place.bucket, Key=place.key)
    assert (head.get("ServerSideEncryption"), head.get("SSEKMSKeyId")) == expected


def test_streams_sign_no_payload_and_have_their_own_client(moto: str) -> None:
    signed: list[bytes] = []
    both = (s3_client(), stream_client())
    assert both[0] is not both[1]
    for one in both:
        one.meta.events.register_first(
            "before-send.s3.PutObject", lambda request, **_: signed.append(request.headers["X-Amz-Content-SHA256"])
        )
    place = S3Location.parse(moto) / "object"
    S3Store().write(place, b"x")
    streams.upload(place, memoryview(b"x"))
    *_, written, _probe, uploaded = signed
    assert (len(written), uploaded) == (64, b"UNSIGNED-PAYLOAD")


def test_threads_that_begin_together_share_a_client_that_draws_no_random_number_of_the_trainings(
    s3: str, through_proxy: Callable[[], Proxy], monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = through_proxy()
    monkeypatch.setenv("CONVERGATE_S3_ADDRESSING", "auto")
    barrier = Barrier(4)

    def begin(_: int) -> object:
        barrier.wait()
        return s3_client()

    with ThreadPoolExecutor(4) as pool:
        assert len(set(map(id, pool.map(begin, range(4))))) == 1
    before = random.getstate()
    with proxy.injecting(Fault(Kind.SLOW_DOWN, "PUT", times=2)):
        S3Store().write(S3Location.parse(s3) / "object", b"x")
    assert random.getstate() == before


def test_a_fork_makes_a_client_of_its_own(somebody: None) -> None:
    ours = id(s3_client())
    process = os.fork()
    if process == 0:
        os._exit(int(id(s3_client()) == ours))
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0


def test_no_credential_is_shown(somebody: None) -> None:
    shown = repr(client._Options.from_environment())
    assert not any(word in shown for word in ("somebody", "secret"))

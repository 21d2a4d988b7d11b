"""Errors of S3: each names the thing, the cause and the fix in one line, in bounded time, without a credential."""

import http.server
import random
import socket
import threading
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from convergate.components.errors import ExitCode, UserError
from convergate.components.storage import S3Error, S3Location, S3NotFoundError, S3Store, client, streams

SECRET = "wJalrXUtnFEMI-K7MDENG-bPxRfiCYEXAMPLEKEY"
PART = streams.Part("0" * 16)
ACTIONS: dict[str, tuple[str, Callable[[S3Location], Any]]] = {
    "read": ("read", S3Store().read),
    "write": ("write", lambda place: S3Store().write(place, b"x")),
    "create": ("look up", lambda place: S3Store().create(place, b"x")),
    "replace": ("read", lambda place: S3Store().replace(place, b"x", "etag")),
    "delete": ("delete", S3Store().delete),
    "exists": ("look up", S3Store().exists),
    "list": ("list", lambda place: list(S3Store().list(place))),
    "ensure_bucket": ("look up", S3Store().ensure_bucket),
    "upload": ("upload", lambda place: streams.upload(place, memoryview(b"x"))),
    "download": ("read", lambda place: streams.download([streams.Fetch(place, 0, memoryview(bytearray(5)), PART)])),
}
actions = pytest.mark.parametrize(("words", "act"), ACTIONS.values(), ids=ACTIONS.keys())


def failure(act: Callable[[S3Location], Any], place: S3Location) -> str:
    """The text of the error, with what holds of every error."""
    with pytest.raises(S3Error) as caught:
        act(place)
    assert caught.value.exit_code == ExitCode.OUTSIDE
    text = str(caught.value)
    assert "\n" not in text
    assert SECRET not in text
    return text


@pytest.fixture
def closed(monkeypatch: pytest.MonkeyPatch) -> str:
    """An endpoint where nobody listens, with credentials for it."""
    monkeypatch.setattr(client, "MAX_ATTEMPTS", 1)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "somebody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    endpoint = "http://127.0.0.1:9"
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    return endpoint


@pytest.mark.parametrize("name", [name for name in ACTIONS if name != "ensure_bucket"])
def test_permission_denied_is_never_taken_for_not_found(s3: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    words, act = ACTIONS[name]
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    place = S3Location.parse(s3) / "object"
    text = failure(act, place)
    assert text.startswith(f"cannot {words} {place}: permission denied (")
    assert text.endswith(") → check the credentials and the policy")


def test_a_bucket_that_may_not_be_looked_at_is_not_made(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys for some prefixes of a bucket only: whether it is there is told by what is written next."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    place = S3Location.parse(s3) / "object"
    S3Store().ensure_bucket(place)
    assert "permission denied" in failure(ACTIONS["write"][1], place)


@pytest.mark.parametrize("server", ["s3", "moto"])
@pytest.mark.parametrize("name", ["write", "read", "replace", "upload"])
def test_a_missing_bucket_is_said(server: str, name: str, request: pytest.FixtureRequest) -> None:
    request.getfixturevalue(server)
    place = S3Location("no-such-bucket-here", "object")
    expected = f"{place} does not exist (no such bucket) → create it, or check the URI"
    assert failure(ACTIONS[name][1], place) == expected


@pytest.mark.parametrize("server", ["s3", "moto"])
def test_a_missing_object_is_said(server: str, request: pytest.FixtureRequest) -> None:
    place = S3Location.parse(request.getfixturevalue(server)) / "none"
    with pytest.raises(S3NotFoundError) as caught:
        S3Store().read(place)
    assert str(caught.value) == f"{place} does not exist"
    S3Store().delete(place)


@actions
def test_an_endpoint_where_nobody_listens_is_named(closed: str, words: str, act: Callable[[S3Location], Any]) -> None:
    place = S3Location("bucket", "object")
    assert failure(act, place) == (
        f"cannot {words} {place}: {closed} does not answer (EndpointConnection)"
        " → check AWS_ENDPOINT_URL and the network"
    )


@pytest.fixture
def silent() -> Iterator[str]:
    """An endpoint that takes connections and never answers."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(16)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def test_a_server_that_never_answers_is_given_up_after_its_attempts(
    closed: str, silent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "READ_TIMEOUT_S", 0.1)
    monkeypatch.setenv("AWS_ENDPOINT_URL", silent)
    text = failure(S3Store().read, S3Location("bucket", "object"))
    assert f"{silent} does not answer (ReadTimeout)" in text


def test_how_long_s3_is_waited_for(s3: str) -> None:
    """Three attempts and, between them, a backoff of at most 1 and 2 s: 12 s where nothing connects, else 72 s."""
    config = client.s3_client().meta.config
    assert config.retries == {"total_max_attempts": 3, "mode": "standard"}
    assert 3 * config.connect_timeout + 3 == 12
    assert 3 * (config.connect_timeout + config.read_timeout) + 3 == 72


class WebServer(http.server.BaseHTTPRequestHandler):
    """Something that is a web server and no S3."""

    status, page = 503, b"<html>closed for maintenance</html>"

    def do_GET(self) -> None:
        page = self.page
        self.send_response(self.status)
        self.send_header("Content-Length", str(len(page)))
        self.end_headers()
        self.wfile.write(page)

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.parametrize(
    ("status", "page", "name", "cause"),
    [
        (503, b"<html>closed for maintenance</html>", "read", "answered 503 → see its log"),
        (
            200,
            b"<List><Contents><Key>a</Key><Size>many</Size></Contents></List>",
            "list",
            "gave an answer that makes no sense → check that it is an S3 server, and the network",
        ),
        (200, b"0123456789", "download", "gave 10 bytes for a range of 5 → see its log"),
    ],
)
def test_a_server_that_is_no_s3_is_named(
    closed: str, monkeypatch: pytest.MonkeyPatch, status: int, page: bytes, name: str, cause: str
) -> None:
    place = S3Location("bucket", "object")
    monkeypatch.setattr(WebServer, "status", status)
    monkeypatch.setattr(WebServer, "page", page)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), WebServer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        endpoint = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        words, act = ACTIONS[name]
        assert failure(act, place) == f"cannot {words} {place}: {endpoint} {cause}"
        server.shutdown()


def test_trying_again_draws_nothing_from_the_random_state_of_a_training(
    closed: str, silent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "MAX_ATTEMPTS", 3)
    monkeypatch.setattr(client, "READ_TIMEOUT_S", 0.1)
    monkeypatch.setenv("AWS_ENDPOINT_URL", silent)
    before = random.getstate()
    failure(S3Store().read, S3Location("bucket", "object"))
    assert random.getstate() == before


@pytest.mark.parametrize(
    ("endpoint", "shown"),
    [
        ("localhost:9000", "localhost:9000"),
        ("http://a b", "http://a b"),
    ],
)
def test_an_endpoint_that_is_no_url_is_said(
    closed: str, endpoint: str, shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    text = failure(S3Store().read, S3Location("bucket", "object"))
    assert text == f"the S3 endpoint {shown} is no URL → AWS_ENDPOINT_URL=https://host:port"


@pytest.mark.parametrize("user", ["somebody", f"somebody:{SECRET}", f"some/body:{SECRET}/x"])
@pytest.mark.parametrize("scheme", ["http://", ""])
def test_an_endpoint_with_a_password_is_refused_and_not_shown(
    user: str, scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"{scheme}{user}@127.0.0.1:9")
    with pytest.raises(UserError, match="holds a user or a password") as caught:
        S3Store().read(S3Location("bucket", "object"))
    shown = "".join(traceback.format_exception(caught.value))
    assert SECRET not in shown
    assert "127.0.0.1" not in shown


@pytest.mark.parametrize(
    ("environment", "cause"),
    [
        ({"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}, "Unable to locate credentials"),
        (
            {"AWS_ACCESS_KEY_ID": "half", "AWS_SECRET_ACCESS_KEY": ""},
            "Partial credentials found in env, missing: AWS_SECRET_ACCESS_KEY",
        ),
        ({"AWS_PROFILE": "nobodys"}, "The config profile (nobodys) could not be found"),
    ],
    ids=["none", "half", "profile"],
)
def test_credentials_that_are_missing_are_said(
    closed: str, environment: dict[str, str], cause: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name)
    text = failure(S3Store().read, S3Location("bucket", "object"))
    assert text == (f"cannot read s3://bucket/object: {cause} → check the credentials, AWS_ENDPOINT_URL and the URI")


def test_a_name_that_no_bucket_can_have_is_said(closed: str) -> None:
    text = failure(S3Store().read, S3Location("bad bucket", "object"))
    assert text.startswith("cannot read s3://bad bucket/object: Parameter validation failed: Invalid bucket name")


@pytest.mark.parametrize("name", ["S3_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"])
def test_the_endpoint_of_s3_alone_comes_first(closed: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    other = "http://127.0.0.1:7"
    monkeypatch.setenv(name, other)
    assert f"{other} does not answer" in failure(S3Store().read, S3Location("bucket", "object"))

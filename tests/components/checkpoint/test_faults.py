"""A sample of the trials of `make chaos`, through its own command; and that what they hold to can be missed."""

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from unittest import mock

import boto3
import pytest
import trials
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from cases import CASES, drawn_case
from convergate.components.checkpoint import CheckpointStore
from convergate.components.storage import S3Error, S3Location, S3Store
from proxy import Fault, Kind, Proxy, running_proxy
from scene import RCLONE, Scene, scene
from story import Story, Writer, state_at

BODY = bytes(range(256)) * 400


@pytest.mark.timeout(600)  # fourteen processes, beside other tests
def test_a_sample_of_trials_is_survived(tmp_path: Path) -> None:
    kept = tmp_path / "faults.json"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    command = [sys.executable, trials.__file__, "--trials", "16", "--seed", "8", "--workers", "2", "--keep", str(kept)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    *cases, everything = json.loads(kept.read_text())["faults"]
    assert (everything["trials"], everything["survived"]) == (16, 16)
    assert [row["trials"] for row in cases] == [1] * 16


def test_every_case_comes_as_often_as_any_other() -> None:
    drawn = [drawn_case(number, seed=1).name for number in range(3 * len(CASES))]
    assert Counter(drawn) == {case.name: 3 for case in CASES}
    assert drawn[: len(CASES)] != drawn[len(CASES) : 2 * len(CASES)]
    assert drawn == [drawn_case(number, seed=1).name for number in range(3 * len(CASES))]


def test_a_failure_is_told_with_the_command_that_repeats_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    met = [trials.Outcome(0, "one", 1.0), trials.Outcome(1, "two", 2.0, ["step 20 is not what was saved"])]
    monkeypatch.setattr(trials.Workers, "outcomes", lambda *_: iter(met))
    arguments = ["trials.py", "--trials", "2", "--seed", "5", "--keep", str(tmp_path / "kept.json")]
    monkeypatch.setattr(sys, "argv", arguments)
    assert trials.main() == 1
    said = capsys.readouterr().out
    assert "trial 1, two: NOT survived\n    step 20 is not what was saved\n" in said
    assert f"again: {sys.executable} {' '.join(arguments)} --trial 1\n" in said


@pytest.mark.parametrize(("in_ci", "code"), [("true", 1), ("", 0)])
def test_what_cannot_be_tried_fails_only_in_ci(
    in_ci: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    met = [trials.Outcome(0, "disk full", skipped="unshare: Operation not permitted")]
    monkeypatch.setattr(trials.Workers, "outcomes", lambda *_: iter(met))
    monkeypatch.setattr(sys, "argv", ["trials.py", "--keep", str(tmp_path / "kept.json")])
    monkeypatch.setenv("CI", in_ci)
    assert trials.main() == code


@pytest.fixture
def proxy(s3: str) -> Iterator[Proxy]:
    """A proxy in front of rclone."""
    with running_proxy(int(os.environ["AWS_ENDPOINT_URL"].rpartition(":")[2])) as running:
        yield running


@pytest.mark.parametrize(
    ("kind", "written", "stored", "read"),
    [
        (Kind.SLOW_DOWN, "SlowDown", None, "SlowDown"),
        (Kind.DENIED, "AccessDenied", None, "AccessDenied"),
        (Kind.NO_BUCKET, "NoSuchBucket", None, "NoSuchBucket"),
        (Kind.RESET, "ConnectionClosedError", None, "ConnectionClosedError"),
        (Kind.BLACK_HOLE, "ReadTimeoutError", None, "ReadTimeoutError"),
        (Kind.LOST_ANSWER, "ConnectionClosedError", "same", "ConnectionClosedError"),
        (Kind.TRUNCATED, "done", "same", "ResponseStreamingError"),
        (Kind.CORRUPT_ANSWER, "done", "same", "one bit differs"),
        (Kind.CORRUPT_UPLOAD, "done", "one bit differs", "same"),
        (Kind.TRICKLE, "done", "same", "same"),
    ],
)
def test_the_proxy_does_what_a_fault_says(
    kind: Kind, written: str, stored: str | None, read: str, proxy: Proxy, s3: str
) -> None:
    config = Config(retries={"total_max_attempts": 1}, read_timeout=0.5, request_checksum_calculation="when_required")
    client = boto3.client("s3", endpoint_url=proxy.url, config=config, region_name="us-east-1")
    place, store = S3Location.parse(s3) / "written", S3Store()
    with proxy.injecting(Fault(kind, r"^PUT \S+/written$")):
        assert _told(lambda: client.put_object(Bucket=place.bucket, Key=place.key, Body=BODY) and "done") == written
        assert proxy.lines == [f"PUT /{place.bucket}/written"]
    assert (_compared(store.read(place)) if store.exists(place) else None) == stored
    store.write(place, BODY)
    with proxy.injecting(Fault(kind, r"^GET \S+/written$")):
        got = _told(lambda: _compared(client.get_object(Bucket=place.bucket, Key=place.key)["Body"].read()))
        assert got == read
        again = client.get_object(Bucket=place.bucket, Key=place.key)["Body"].read()
        assert again == BODY, "a fault meets one request"


def _told(act: Callable[[], str]) -> str:
    try:
        return act()
    except ClientError as error:
        return str(error.response["Error"]["Code"])
    except BotoCoreError as error:
        return type(error).__name__


def _compared(data: bytes) -> str:
    differing = sum((one ^ other).bit_count() for one, other in zip(data, BODY, strict=True))
    return {0: "same", 1: "one bit differs"}[differing]


@pytest.mark.parametrize(
    ("nth", "times", "met"), [(1, 1, [0]), (2, 1, [1]), (2, 2, [1, 2]), (3, None, [2, 3, 4]), (6, None, [])]
)
def test_a_fault_meets_the_requests_that_it_names(nth: int, times: int | None, met: list[int]) -> None:
    fault = Fault(Kind.RESET, r"^PUT \S+/marker", nth, times)
    assert [number for number in range(5) if fault.meets(f"PUT /bucket/{number}/marker")] == met
    assert not fault.meets("GET /bucket/1/marker")
    assert fault.met == len(met)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Scene]:
    """A scene of its own, asked through its proxy."""
    with scene(RCLONE, tmp_path) as found, found.proxied():
        yield found


def test_the_server_comes_back_with_its_data_and_its_keys(place: Scene) -> None:
    story = Story(place, "a-bucket", Random(1))
    story.save_well(story.writer(), 10)
    command = place.server.kill()
    with pytest.raises(S3Error, match="does not answer"):
        story.read()
    place.start_server(command)
    assert story.read() == story.newest
    assert story.problems == []


class _Wrong(Writer):
    """Saves another step's state."""

    def begin(self, step: int, num_bytes: int) -> None:
        with mock.patch("story.state_at", lambda at, size: state_at(at + 1, size)):
            super().begin(step, num_bytes)


def test_a_story_without_faults_has_no_problems_and_each_promise_can_be_broken(place: Scene) -> None:
    story = Story(place, "a-bucket", Random(1))
    writer = story.writer()
    story.save_well(writer, 10, 20)
    assert story.judge() == story.newest
    assert story.problems == []

    story.judge(damaged=(story.newest,))
    assert _problems(story) == ["attempt-001-step-000000020 was damaged, and is loaded"]

    story.log.append(f"key={place.secret}")
    story.judge()
    assert _problems(story) == ["the secret key is in the log"]
    story.log.clear()

    story.save_well(_Wrong(story.uri, writer.attempt, keep_last=3), 30)
    story.judge()
    assert _problems(story) == [
        "attempt-001-step-000000030 is not, bit for bit, what was saved",
        "attempt-001-step-000000030 is not what was saved",
    ]

    lost, store = story.newest, CheckpointStore(story.uri, "run")
    store.delete(lost)
    story.judge()
    assert _problems(story) == ["attempt-001-step-000000030 was reported done, attempt-001-step-000000020 is found"]
    story.judge(damaged=(lost,))
    assert story.problems == []
    for ref in list(store.committed()):
        store.delete(ref)
    story.judge(damaged=(lost,))
    assert _problems(story) == ["attempt-001-step-000000030 was reported done, nothing is found"]


def _problems(story: Story) -> list[str]:
    """Those since the last look."""
    found, story.problems = story.problems, []
    return found

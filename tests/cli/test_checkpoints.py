"""checkpoints list, verify, gc, over real checkpoints on a real S3 server."""

import json
import math
import os
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from time import time
from typing import Any
from urllib.parse import urlsplit

import pytest
import torch
from convergate.cli.tables import age
from convergate.components.checkpoint import CheckpointRef, CheckpointStore, copy_checkpoint
from convergate.components.checkpoint.reading import read_manifest
from convergate.components.storage import S3Location, S3Store
from convergate.components.storage.client import s3_client
from hypothesis import given
from hypothesis import strategies as st
from proxy import Fault, Kind, Proxy, running_proxy

from ..checkpoints import blob, commit, folder
from .conftest import Convergate

TENSORS = {"model.weight": torch.arange(300.0)}
SIZE = 1200
FORTY_DAYS = 40 * 86_400


@pytest.fixture
def uri(s3: str) -> str:
    """What `checkpoint.uri` is: a folder a run."""
    return f"{s3}/checkpoints"


@pytest.fixture
def proxy(s3: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """In front of the S3 server, for faults."""
    with running_proxy(urlsplit(os.environ["AWS_ENDPOINT_URL"]).port or 0) as running:
        monkeypatch.setenv("AWS_ENDPOINT_URL", running.url)
        yield running


def rows(out: str) -> list[list[str]]:
    """The cells of every line; two blanks at least are between them."""
    return [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in out.splitlines()]


def make_old(place: S3Location, seconds: float = FORTY_DAYS) -> None:
    for location in list(S3Store().list(place)):
        where = {"Bucket": location.bucket, "Key": location.key}
        s3_client().put_object(**where, Body=S3Store().read(location), Metadata={"mtime": str(time() - seconds)})


class TestList:
    def test_each_run_has_a_table_with_the_newest_first(self, convergate: Convergate, uri: str) -> None:
        commit(uri, "run-1", TENSORS, step=100, metrics={"accuracy": 0.9, "loss": 0.5})
        commit(uri, "run-1", TENSORS, attempt=2, step=50, metrics={"accuracy": 0.98765, "loss": math.nan})
        commit(uri, "run-2", TENSORS, step=7)
        answer = convergate("checkpoints", "list", uri)
        assert answer.code == 0
        heading = ["step", "attempt", "size", "age", "verified", "accuracy", "loss"]
        told = [[cell if not cell.endswith(" s") else "age" for cell in row] for row in rows(answer.out)]
        assert told == [
            ["run-1"],
            heading,
            ["50", "2", "1.2 kB", "age", "read back", "0.9877", "nan"],
            ["100", "1", "1.2 kB", "age", "read back", "0.9", "0.5"],
            [],
            ["run-2"],
            heading,
            ["7", "1", "1.2 kB", "age", "read back", "–", "–"],
        ]
        assert "\x1b" not in answer.out

    def test_json_has_all_that_the_markers_say(self, convergate: Convergate, uri: str) -> None:
        ref = commit(uri, "run-1", TENSORS, step=100, metrics={"accuracy": 0.9, "loss": math.nan})
        answer = convergate("checkpoints", "list", f"{uri}/run-1/", "--json")

        def refuse(constant: str) -> None:
            raise AssertionError(f"{constant} is no JSON")

        (row,) = json.loads(answer.out, parse_constant=refuse)
        assert row.pop("created").startswith("20")
        assert row == {
            "run": "run-1",
            "step": 100,
            "attempt": 1,
            "uri": ref.uri,
            "given_up": False,
            "size": SIZE,
            "metrics": {"accuracy": 0.9, "loss": "NaN"},
            "verified": "read back",
            "signed": False,
            "problem": "",
        }

    def test_a_checkpoint_of_its_own_and_a_metric_of_its_own(self, convergate: Convergate, uri: str) -> None:
        refs = [commit(uri, "run-1", TENSORS, step=step, metrics={"a": step, "b": 1.0}) for step in (10, 20)]
        answer = convergate("checkpoints", "list", refs[0].uri, "--metric", "a", "--json")
        assert [(row["step"], row["metrics"]) for row in answer.json] == [(10, {"a": 10.0})]
        told = convergate("checkpoints", "list", refs[0].uri, "--metric", "c").out
        assert [row[-1] for row in rows(told)[1:]] == ["c", "–"]

    def test_what_was_given_up_or_cannot_be_read_is_told(self, convergate: Convergate, uri: str) -> None:
        for step in (10, 20, 30):
            commit(uri, "run-1", TENSORS, step=step)
        CheckpointStore(uri, "run-1").give_up(2, 20)
        S3Store().write(CheckpointRef(1, 10, S3Location.parse(f"{uri}/run-1")).marker, b"{}")
        answer = convergate("checkpoints", "list", uri)
        assert answer.code == 0
        assert [(row[0], row[-1]) for row in rows(answer.out)[2:]] == [
            ("30", "given up"),
            ("20", "read back"),
            ("10", "unreadable"),
        ]
        told = convergate("checkpoints", "list", uri, "--json").json
        assert [row["given_up"] for row in told] == [True, False, False]
        assert "not a checkpoint marker" in told[2]["problem"]

    def test_the_newest_so_many_of_each_run(self, convergate: Convergate, uri: str) -> None:
        for step in (10, 20, 30):
            commit(uri, "run-1", TENSORS, step=step)
        commit(uri, "run-2", TENSORS, step=10)
        told = convergate("checkpoints", "list", uri, "--limit", "2").out
        assert [row[0] for row in rows(told) if row] == [
            *("run-1", "step", "30", "20"),
            *("run-2", "step", "10", "Older ones are not shown: only the newest 2 of a run → --limit"),
        ]
        assert "Older" not in convergate("checkpoints", "list", uri, "--limit", "3").out
        assert len(convergate("checkpoints", "list", uri, "--limit", "1", "--json").json) == 2


@pytest.mark.parametrize("command", ["list", "verify", "gc"])
class TestEvery:
    @pytest.mark.parametrize("place", ["{}/nothing", "{}/run/attempt-001-step-000000010"])
    def test_nothing_there_is_bad_usage(self, convergate: Convergate, s3: str, command: str, place: str) -> None:
        where = place.format(s3)
        answer = convergate("checkpoints", command, where)
        assert answer.code == 2
        assert answer.error.startswith(f"there are no {'runs' if command == 'gc' else 'checkpoints'} at {where} → ")

    def test_a_bucket_that_is_not_there_is_named(self, convergate: Convergate, s3: str, command: str) -> None:
        answer = convergate("checkpoints", command, "s3://no-such-bucket-here/x")
        assert answer.code == 4
        assert "no such bucket" in answer.error

    def test_s3_that_refuses_is_not_taken_for_nothing_there(
        self, convergate: Convergate, s3: str, monkeypatch: pytest.MonkeyPatch, command: str
    ) -> None:
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
        answer = convergate("checkpoints", command, s3)
        assert answer.code == 4
        assert "permission denied" in answer.error

    def test_what_is_no_uri_is_bad_usage(self, convergate: Convergate, command: str) -> None:
        answer = convergate("checkpoints", command, "here")
        assert answer.code == 2
        assert "not an S3 URI → s3://bucket/prefix" in answer.error


def flip(ref: CheckpointRef) -> S3Location:
    data = bytearray(S3Store().read(blob(ref)))
    data[700] ^= 4
    S3Store().write(blob(ref), bytes(data))
    return blob(ref)


def cut(ref: CheckpointRef) -> S3Location:
    S3Store().write(blob(ref), S3Store().read(blob(ref))[:-1])
    return blob(ref)


def remove(ref: CheckpointRef) -> S3Location:
    S3Store().delete(blob(ref))
    return blob(ref)


def remove_manifest(ref: CheckpointRef) -> S3Location:
    place = folder(ref) / "manifest.json"
    S3Store().delete(place)
    return place


def change_manifest(ref: CheckpointRef) -> S3Location:
    place = folder(ref) / "manifest.json"
    S3Store().write(place, S3Store().read(place).replace(b'"world_size": 1', b'"world_size": 2'))
    return place


def garble_marker(ref: CheckpointRef) -> S3Location:
    S3Store().write(ref.marker, b"{}")
    return ref.marker


class TestVerify:
    def test_all_of_a_run_or_of_several_or_one(self, convergate: Convergate, uri: str) -> None:
        refs = [commit(uri, f"run-{run}", TENSORS, step=step) for run in (1, 2) for step in (20, 10)]
        for place, expected in ((uri, refs), (f"{uri}/run-2", refs[2:]), (refs[0].uri, refs[:1])):
            answer = convergate("checkpoints", "verify", place, "--json")
            assert answer.code == 0
            assert answer.json == [{"uri": ref.uri, "size": SIZE, "damage": ""} for ref in expected]
        answer = convergate("checkpoints", "verify", f"{uri}/run-1")
        assert answer.out.splitlines() == [
            "✓ run-1/attempt-001-step-000000020  1.2 kB",
            "✓ run-1/attempt-001-step-000000010  1.2 kB",
            "2 checkpoints, every byte as it was saved",
        ]
        assert answer.err == ""

    @pytest.mark.parametrize("damage", [flip, cut, remove, remove_manifest, change_manifest, garble_marker])
    def test_the_damaged_object_is_named_and_the_others_are_verified(
        self, convergate: Convergate, uri: str, damage: Callable[[CheckpointRef], S3Location]
    ) -> None:
        refs = [commit(uri, "run", TENSORS, step=step) for step in (30, 20, 10)]
        damaged = damage(refs[1])
        answer = convergate("checkpoints", "verify", uri)
        assert answer.code == 1
        first, second, cause, third, summary = answer.out.splitlines()
        assert (first[0], second, third[0]) == ("✓", "✗ run/attempt-001-step-000000020", "✓")
        assert str(damaged) in cause
        assert summary == "1 of 3 checkpoints damaged"
        read = convergate("checkpoints", "verify", uri, "--json")
        assert read.code == 1
        assert [(row["uri"], str(damaged) in row["damage"]) for row in read.json] == [
            (refs[0].uri, False),
            (refs[1].uri, True),
            (refs[2].uri, False),
        ]

    def test_what_was_given_up_is_left_out_unless_it_is_named(self, convergate: Convergate, uri: str) -> None:
        refs = [commit(uri, "run", TENSORS, step=step) for step in (20, 10)]
        CheckpointStore(uri, "run").give_up(2, 10)
        flip(refs[0])
        assert [row["uri"] for row in convergate("checkpoints", "verify", uri, "--json").json] == [refs[1].uri]
        assert convergate("checkpoints", "verify", refs[0].uri).code == 1
        CheckpointStore(uri, "run").give_up(3, 0)
        answer = convergate("checkpoints", "verify", uri)
        assert answer.code == 2
        assert answer.error.startswith(f"there is no checkpoint at {uri} that counts → ")

    def test_a_release(self, convergate: Convergate, s3: str, uri: str) -> None:
        ref = commit(uri, "run", TENSORS)
        release = S3Location.parse(s3) / "releases/digits/run"
        copy_checkpoint(ref.uri, read_manifest(ref.uri)[1], release)
        assert convergate("checkpoints", "verify", str(release)).out.startswith("✓ digits/run  1.2 kB\n1 checkpoint, ")
        S3Store().delete(release / "rank-00000.bin")
        answer = convergate("checkpoints", "verify", str(release), "--json")
        assert answer.code == 1
        assert f"{release}/rank-00000.bin" in answer.json[0]["damage"]

    @pytest.mark.parametrize(
        ("command", "asked"), [("verify", r"step-000000010-\w+/rank-"), ("list", "commits/.*0010.json")]
    )
    def test_what_retention_deletes_meanwhile_is_no_damage(
        self, convergate: Convergate, uri: str, proxy: Proxy, command: str, asked: str
    ) -> None:
        refs = [commit(uri, "run", TENSORS, step=step) for step in (20, 10)]
        store = CheckpointStore(uri, "run")
        deletion = Fault(Kind.BEFORE, f"^GET .*{asked}", happens=lambda: store.delete(refs[1]))
        with proxy.injecting(deletion):
            answer = convergate("checkpoints", command, uri, "--json")
        assert deletion.met == 1
        assert (answer.code, [row["uri"] for row in answer.json]) == (0, [refs[0].uri])

    def test_s3_that_fails_in_the_middle_is_no_damage(self, convergate: Convergate, uri: str, proxy: Proxy) -> None:
        for step in (10, 20):
            commit(uri, "run", TENSORS, step=step)
        with proxy.injecting(Fault(Kind.DENIED, r"^GET .*step-000000010-\w+/rank-", times=None)):
            answer = convergate("checkpoints", "verify", uri, "--json")
        assert answer.code == 4
        assert "permission denied" in answer.error


class TestGc:
    @pytest.fixture
    def garbage(self, uri: str) -> dict[str, Any]:
        """A run with a checkpoint, one that was given up, and the folder of a save that broke off."""
        kept = commit(uri, "run", TENSORS, step=10)
        given_up = commit(uri, "run", TENSORS, step=20)
        CheckpointStore(uri, "run").give_up(2, 10)
        broken = kept.root / "attempt-001-step-000000030-00000001"
        S3Store().write(broken / "rank-00000.bin", bytes(5000))
        whole = [folder(given_up), broken]
        size = sum(entry.size for place in whole for entry in S3Store().entries(place))
        make_old(kept.root)
        return {"root": kept.root, "folders": whole, "size": size}

    def test_a_dry_run_shows_what_would_go_and_then_it_goes(
        self, convergate: Convergate, uri: str, garbage: dict[str, Any]
    ) -> None:
        names = [place.name for place in garbage["folders"]]
        dry = convergate("checkpoints", "gc", uri, "--dry-run", "--json")
        assert dry.code == 0
        assert [(row["run"], row["what"], row["uri"], row["problem"]) for row in dry.json] == [
            ("run", "given up", f"{uri}/run/{names[0]}", ""),
            ("run", "never committed", f"{uri}/run/{names[1]}", ""),
        ]
        assert sum(row["size"] for row in dry.json) == garbage["size"]
        told = convergate("checkpoints", "gc", uri, "--dry-run")
        assert [row[:2] for row in rows(told.out)[:-1]] == [
            ["run"],
            ["what", "folder"],
            ["given up", names[0]],
            ["never committed", names[1]],
        ]
        assert rows(told.out)[3][2:] == ["5.0 kB", "40 d"]
        assert told.out.splitlines()[-1].startswith("would delete 2 things, ")
        assert {place.name for place in S3Store().folders(garbage["root"])} >= set(names)
        done = convergate("checkpoints", "gc", f"{uri}/run")
        assert done.code == 0
        assert done.out == told.out.replace("would delete", "deleted").replace(": a dry run", "")
        assert not {place.name for place in S3Store().folders(garbage["root"])} & set(names)
        again = convergate("checkpoints", "gc", uri)
        assert (again.code, again.out) == (0, "deleted 0 things, 0 bytes\n")
        assert convergate("checkpoints", "gc", uri, "--json").json == []
        assert convergate("checkpoints", "verify", uri).code == 0

    @pytest.mark.parametrize(("grace", "count"), [("39d", 2), ("959h", 2), ("961h", 0), ("57660m", 0)])
    def test_the_grace_is_asked_for(
        self, convergate: Convergate, uri: str, garbage: dict[str, Any], grace: str, count: int
    ) -> None:
        assert len(convergate("checkpoints", "gc", uri, "--dry-run", "--grace", grace, "--json").json) == count

    @pytest.mark.parametrize(
        ("grace", "why"),
        [
            ("59m", "59m is less than 1h: what a save is writing now might be deleted"),
            ("0h", "0h is less than 1h"),
            ("24", "'24' is no duration → 90m, 24h or 7d"),
            ("-1h", "'-1h' is no duration"),
        ],
    )
    def test_a_grace_that_a_running_save_may_outlast_is_refused(
        self, convergate: Convergate, uri: str, grace: str, why: str
    ) -> None:
        answer = convergate("checkpoints", "gc", uri, f"--grace={grace}")
        assert answer.code == 2
        assert answer.error.startswith(f"Invalid value for '--grace': {why}")

    def test_what_cannot_be_deleted_is_told(
        self, convergate: Convergate, uri: str, garbage: dict[str, Any], proxy: Proxy
    ) -> None:
        with proxy.injecting(Fault(Kind.DENIED, "^DELETE .*step-000000030-", times=None)):
            answer = convergate("checkpoints", "gc", uri)
        assert answer.code == 4
        assert "deleted 1 thing, " in answer.out
        assert answer.err.startswith(f"not deleted: cannot delete {garbage['folders'][1]}/rank-00000.bin: permission")
        assert [place.name for place in S3Store().folders(garbage["root"])][1:] == [
            garbage["folders"][1].name,
            "commits",
            "tombstones",
        ]

    def test_releases_are_refused(self, convergate: Convergate, s3: str) -> None:
        S3Store().write(S3Location.parse(f"{s3}/releases/m/attempt-001-step-000000010-00000001/manifest.json"), b"{}")
        answer = convergate("checkpoints", "gc", f"{s3}/releases/m")
        assert answer.code == 2
        assert answer.error.endswith("where promoted checkpoints stand → nothing is collected there")


def test_without_a_command_it_shows_its_help(convergate: Convergate) -> None:
    answer = convergate("checkpoints")
    assert answer.code == 2
    assert answer.out.startswith("Usage: convergate checkpoints ")


@given(st.integers(0, 10**9))
def test_an_age_is_told_in_its_largest_whole_unit(seconds: int) -> None:
    number, unit = age((datetime.now(UTC) - timedelta(seconds=seconds)).isoformat()).split()
    length = {"s": 1, "m": 60, "h": 3600, "d": 86_400}[unit]
    assert int(number) in (seconds // length, (seconds + 2) // length)

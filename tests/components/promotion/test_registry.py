"""MLflow: bounded waiting, and the mirror of a run."""

import socket
from contextlib import suppress
from itertools import pairwise
from threading import Thread
from time import monotonic
from uuid import uuid4

import pytest
from convergate.components.errors import OutsideError
from convergate.components.promotion.registry import (
    downsample,
    find_or_create_run,
    flatten,
    mirror_run,
    mlflow_client,
    tracking_uri,
    wait_for_mlflow,
)
from hypothesis import given
from hypothesis import strategies as st


@given(length=st.integers(0, 3000), most=st.integers(2, 600))
def test_a_series_is_thinned_evenly_and_keeps_its_ends(length: int, most: int) -> None:
    points = [(step, float(step)) for step in range(length)]
    kept = downsample(points, most)
    assert len(kept) <= most
    assert set(kept) <= set(points)
    assert kept == sorted(kept)
    if length <= most:
        assert kept == points
    else:
        assert (kept[0], kept[-1]) == (points[0], points[-1])
        gaps = {b[0] - a[0] for a, b in pairwise(kept[:-1])}
        assert len(gaps) <= 1


def test_sections_are_flattened() -> None:
    assert dict(flatten({"a": {"b": {"c": 1}, "d": [2]}, "e": None})) == {"a.b.c": 1, "a.d": [2], "e": None}


def test_no_server_configured_says_what_to_set() -> None:
    with pytest.raises(OutsideError, match="set MLFLOW_TRACKING_URI"):
        tracking_uri()


def test_a_server_that_is_not_there_is_named_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    started = monotonic()
    with (
        pytest.raises(OutsideError, match=r"127\.0\.0\.1:9 does not answer within 1 s"),
        mlflow_client(1),
    ):
        pass
    assert monotonic() - started < 60  # MLflow's own retries would take minutes


@pytest.mark.parametrize(
    ("answer", "there"),
    [
        (b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n", True),
        (b"HTTP/1.1 503 Unavailable\r\nContent-Length: 0\r\n\r\n", False),
        (b"SSH-2.0-OpenSSH_9.2\r\n", False),
        (b"HTTP/1.1 200 OK\r\n" + b"x" * 70_000, False),
        (b"", False),
    ],
    ids=["refuses", "gateway", "no HTTP", "endless header", "hangs up"],
)
def test_a_server_that_refuses_us_is_there_and_what_does_not_speak_for_one_is_not(
    monkeypatch: pytest.MonkeyPatch, answer: bytes, there: bool
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection, suppress(OSError):
                    connection.recv(4096)
                    connection.sendall(answer)

        Thread(target=serve, daemon=True).start()
        uri = f"http://127.0.0.1:{listener.getsockname()[1]}"
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        if there:
            assert wait_for_mlflow(1) == uri
        else:
            with pytest.raises(OutsideError, match="does not answer"):
                wait_for_mlflow(1)
        listener.shutdown(socket.SHUT_RDWR)


def test_what_mlflow_raises_is_one_line_with_its_uri(mlflow_server: str) -> None:
    with pytest.raises(OutsideError) as caught, mlflow_client() as client:
        client.get_run("0" * 32)
    assert str(caught.value).startswith(f"MLflow at {mlflow_server}: ")
    assert "\n" not in str(caught.value)


def test_a_run_is_mirrored_and_mirroring_it_again_adds_nothing(mlflow_server: str) -> None:
    experiment = f"mirror-{uuid4().hex[:8]}"
    loss = [(step, 1.0 / (step + 1)) for step in range(1200)]
    for _ in range(2):
        mirror_run(
            experiment,
            "run-1",
            params={f"section.key_{i}": i for i in range(150)} | {"section.long": "x" * 9000},
            tags={"convergate.class": "converged", "convergate.reason": "y" * 9000},
            series={"loss": loss, "diverged": [(0, 1.0), (1, float("nan"))], "none": []},
            finished=True,
        )
    with mlflow_client() as client:
        assert find_or_create_run(client, experiment, "run-1") == find_or_create_run(client, experiment, "run-1")
        run = client.get_run(find_or_create_run(client, experiment, "run-1"))
        history = client.get_metric_history(run.info.run_id, "loss")
    assert run.info.status == "FINISHED"
    assert len(run.data.params) == 151
    assert run.data.params["section.key_149"] == "149"
    assert run.data.tags["convergate.run_id"] == "run-1"
    assert run.data.tags["convergate.class"] == "converged"
    assert sorted((metric.step, metric.value) for metric in history) == downsample(loss)
    assert len(history) == 401  # every third of 1,200, and the last


def test_another_run_is_another_one(mlflow_server: str) -> None:
    experiment = f"mirror-{uuid4().hex[:8]}"
    with mlflow_client() as client:
        assert find_or_create_run(client, experiment, "a") != find_or_create_run(client, experiment, "b")

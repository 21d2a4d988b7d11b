"""A stand-in of a cluster, for the tests of the TrainJob launcher."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from kubernetes_api import scene


@pytest.fixture
def cluster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, require_tool: Callable[[str], Path]
) -> Iterator[scene.Cluster]:
    require_tool("kubectl")
    with scene.cluster(tmp_path) as running:
        scene.enter(running, monkeypatch)
        yield running

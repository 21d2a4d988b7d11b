"""What is generated is what would be generated, and says what it should."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from convergate.components.access import ACCESS, policy
from convergate.components.config import parse_config

from .conftest import MANIFESTS, Build, of_kind


def test_generated_files_are_up_to_date() -> None:
    command = [sys.executable, str(MANIFESTS / "generate.py"), "--check"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (answer.returncode, answer.stderr) == (0, "")


def test_policies_for_another_place_go_to_a_folder(tmp_path: Path) -> None:
    command = [sys.executable, str(MANIFESTS / "generate.py"), "--storage", "s3://models/a", "--into", str(tmp_path)]
    subprocess.run(command, check=True, timeout=60)
    assert {path.stem for path in tmp_path.iterdir()} == set(ACCESS)
    assert json.loads((tmp_path / "train.json").read_text()) == policy("train", "s3://models/a")


def test_a_run_config_is_immutable_and_named_by_the_digest_of_its_text(build: Build) -> None:
    configs = [one for one in of_kind(build("base"), "ConfigMap") if "config.yaml" in one["data"]]
    texts = {path.read_text() for path in (MANIFESTS / "configs").glob("*.yaml")}
    assert {one["data"]["config.yaml"] for one in configs} == texts
    for one in configs:
        text = one["data"]["config.yaml"]
        digest = hashlib.sha256(text.encode()).hexdigest()
        assert one["metadata"]["name"] == f"convergate-config-{digest[:16]}"
        assert one["immutable"] is True
        assert one["metadata"]["labels"]["convergate.io/experiment"] == parse_config(text).experiment
        assert one["metadata"]["labels"]["workflows.argoproj.io/configmap-type"] == "Parameter"


def _statements() -> Iterator[tuple[str, dict[str, Any]]]:
    for kind in ACCESS:
        document = json.loads((MANIFESTS / "s3" / f"{kind}.json").read_text())
        assert document["Version"] == "2012-10-17"
        assert len({statement["Sid"] for statement in document["Statement"]}) == len(document["Statement"])
        yield from ((kind, statement) for statement in document["Statement"])


def test_a_policy_allows_known_actions_on_named_places() -> None:
    for kind, statement in _statements():
        assert statement["Effect"] == "Allow", kind
        (action,) = statement["Action"]
        assert action in {
            "s3:ListBucket",
            "s3:GetObject",
            "s3:PutObject",
            "s3:DeleteObject",
            "s3:AbortMultipartUpload",
        }
        for resource in statement["Resource"]:
            bucket, _, pattern = resource.removeprefix("arn:aws:s3:::").partition("/")
            assert bucket == "convergate"
            assert bool(pattern) == (action != "s3:ListBucket")
            assert not pattern.startswith("*")

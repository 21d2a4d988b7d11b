"""The compiled retrain pipeline, each step in a container of its own under kfp's DockerRunner.

S3 and MLflow stand outside, on the host. The containers are what a restricted pod is: nobody's user, a read-only root
file system, no rights.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import yaml
from built_images import built_images, docker
from convergate.components.config.plan import RunPlan
from convergate.components.slo.ledger import find_run
from convergate.components.storage import RunStore, S3Location, S3Store
from convergate.pipelines.compiling import compile_pipeline

pytestmark = pytest.mark.timeout(900)
SECONDS = 800
USER = 65532
RUNNER = """
import json, sys
from kfp import components, local
ir, root, inputs = sys.argv[1:]
given = json.loads(inputs)
runner = local.DockerRunner(**given["container"])
local.init(runner=runner, pipeline_root=root, raise_on_error=True, enable_caching=False)
components.load_component_from_file(ir)(**given["arguments"])
"""


@dataclass
class Cluster:
    """What runs pipelines in containers, and the root of its storage."""

    root: str
    folder: Path
    container: dict[str, Any]
    plain: str
    """A config without its storage."""

    def run(self, config: str, run_id: str) -> int:
        ir = compile_pipeline("retrain", self.folder / "retrain.yaml")
        artifacts = self.folder / "artifacts"
        artifacts.mkdir(exist_ok=True)
        artifacts.chmod(0o777)
        given = {"container": self.container, "arguments": {"config": config, "run_id": run_id, "submitter": "e2e"}}
        command = [sys.executable, "-u", "-c", RUNNER, str(ir), str(artifacts), json.dumps(given)]
        with self.log.open("wb") as log:
            return subprocess.run(
                command, stdout=log, stderr=subprocess.STDOUT, check=False, timeout=SECONDS
            ).returncode

    @property
    def log(self) -> Path:
        return self.folder / "pipeline.log"

    def executed(self) -> list[str]:
        """The tasks that ran to an end; KFP numbers the ones of one component, `stop-3`."""
        plain = re.sub(r"\x1b\[\d*m", "", self.log.read_text())
        return re.findall(r"Task '([\w-]+?)(?:-\d+)?' finished with status", plain)

    def config(self, **sections: dict[str, Any]) -> str:
        config: dict[str, Any] = yaml.safe_load(self.plain)
        config["storage"] = {"uri": self.root}
        config["checkpoint"]["uri"] = f"{self.root}/checkpoints"
        for name, section in sections.items():
            config[name] |= section
        return yaml.safe_dump(config)


@pytest.fixture
def cluster(
    s3: str,
    mlflow_server: str,
    rclone_environment: dict[str, str],
    require_tool: Callable[[str], Path],
    folder: Any,
    tmp_path: Path,
) -> Iterator[Cluster]:
    require_tool("docker")
    built_images()
    label = f"convergate-test-{uuid4().hex}"
    variables = {**rclone_environment, "MLFLOW_TRACKING_URI": mlflow_server}
    container = {
        "environment": variables,
        "network_mode": "host",
        "user": f"{USER}:{USER}",
        "read_only": True,
        "tmpfs": {"/tmp": ""},  # noqa: S108 - in the container
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges"],
        "labels": [label],
    }
    try:
        yield Cluster(s3, tmp_path, container, (folder.path / folder.config()).read_text())
    finally:
        left = docker("ps", "--all", "--quiet", "--filter", f"label={label}").stdout.split()
        if left:
            docker("rm", "--force", *left)


def test_a_model_is_registered_by_steps_that_may_do_nothing_else(cluster: Cluster, mlflow_server: str) -> None:
    from mlflow import MlflowClient

    model, run_id = f"digits-{uuid4().hex[:8]}", f"containers-{uuid4().hex[:8]}"
    assert cluster.run(cluster.config(promotion={"model": model}), run_id) == 0, cluster.log.read_text()[-4000:]

    run = find_run(cluster.root, run_id)
    assert run is not None
    assert (run.run_class, run.end and run.end.decision) == ("converged", "CHALLENGER")
    page = S3Store().read(S3Location.parse(cluster.root) / f"runs/{run_id}/report.html").decode()
    assert "challenger" in page
    assert "<svg" in page
    version = MlflowClient(mlflow_server).get_model_version_by_alias(model, "challenger")
    assert version.tags["convergate.run_id"] == run_id

    plan = RunStore(cluster.root, run_id).get("plan", RunPlan)
    assert plan.image == built_images()[0]
    assert plan.commit
    owners = {os.lstat(path).st_uid for path in (cluster.folder / "artifacts").rglob("*") if path.is_file()}
    assert owners == {USER}


def test_a_config_that_is_none_ends_the_run_red(cluster: Cluster) -> None:
    run_id = f"containers-{uuid4().hex[:8]}"
    cluster.run(cluster.config(schedule={"warmup": {"steps": 500}}), run_id)
    # Whether a container that ended at once has failed, DockerRunner does not always know: its log does.
    assert "convergate: stopped: " in cluster.log.read_text()
    assert sorted(cluster.executed()) == ["close-run", "open-run", "stop", "validate-config"]
    run = find_run(cluster.root, run_id)
    assert run is not None
    assert run.run_class == "rejected"

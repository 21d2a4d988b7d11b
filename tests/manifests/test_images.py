"""The images of the steps, as docker sees them and as a restricted pod runs them."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from built_images import built_images, docker, run_in
from convergate import __version__
from convergate.components.config import parse_config
from convergate.components.data.report import data_digest
from convergate.components.task.digits import DigitsTask

ROOT = Path(__file__).parents[2]
DIGITS = ROOT / "manifests/configs/digits.yaml"
LIMITS_MB = {"steps-python": 500, "train-python": 1500}
"""What an image may add to its base, in 10⁶ bytes."""
FACES = """
import importlib, pkgutil, sys
import convergate
for module in pkgutil.walk_packages(convergate.__path__, "convergate."):
    if module.name.rsplit(".")[-1] != "__main__":
        importlib.import_module(module.name)
print(sys.prefix)
"""
LIGHT_STEPS = """
import json, sys
import convergate.components.promotion.champion, convergate.components.slo.gate, convergate.pipelines.closing
from convergate.components.config import parse_config
from convergate.components.data.validate import validate_table
from convergate.components.task import load_task
found = {}
for text in json.load(sys.stdin):
    task = load_task(parse_config(text).task)
    report = validate_table(task.table(), task.table_spec(), "run")
    found[type(task).__name__] = [report.verdict, report.data_digest]
print(json.dumps(found))
"""
PINNED = """
import re
from importlib.metadata import distributions
for found in distributions():
    print(re.sub("[-_.]+", "-", found.name).lower(), found.version)
"""


@pytest.fixture(params=[0, 1], ids=list(LIMITS_MB))
def image(request: pytest.FixtureRequest, require_tool: Callable[[str], Path]) -> str:
    require_tool("docker")
    return built_images()[request.param]


@pytest.fixture
def described(image: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(_docker("image", "inspect", image))[0]
    return found


def test_it_is_nobodys_user_and_says_what_it_is_made_of(described: dict[str, Any], image: str) -> None:
    config, labels = described["Config"], described["Config"]["Labels"]
    variables = dict(entry.split("=", 1) for entry in config["Env"])
    assert config["User"] == "65532:65532"
    assert labels["org.opencontainers.image.version"] == __version__
    assert labels["io.convergate.config-schema"] == str(parse_config(DIGITS.read_text()).schema_version)
    assert labels["org.opencontainers.image.title"].endswith(image.rpartition("/")[2].partition(":")[0])
    commit = labels["org.opencontainers.image.revision"]
    assert re.fullmatch(r"[0-9a-f]{40}(-dirty)?", commit)
    assert (variables["CONVERGATE_COMMIT"], variables["CONVERGATE_IMAGE"]) == (commit, image)


def test_it_is_small(described: dict[str, Any], image: str) -> None:
    base = described["Config"]["Labels"]["org.opencontainers.image.base.name"]
    below = int(_docker("image", "inspect", "--format", "{{.Size}}", base))
    limit = next(limit for name, limit in LIMITS_MB.items() if name in image)
    assert (described["Size"] - below) / 1e6 < limit


def test_neither_indexes_nor_secrets_are_in_its_history(image: str) -> None:
    """What the builders were told stays with them: a mirror's address may hold a password."""
    history = _docker("history", "--no-trunc", "--format", "{{.CreatedBy}}", image)
    assert "pip" not in history
    assert not re.search(r"(?i)index|password|secret|token", history)


def test_every_package_is_pinned(image: str) -> None:
    pins = dict(re.findall(r"^([A-Za-z0-9._-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    wanted = {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in pins.items()}
    found = dict(line.split() for line in _output(image, "python", "-I", "-c", PINNED).splitlines())
    assert found.pop("convergate") == __version__
    assert {name: version.partition("+")[0] for name, version in found.items()} == {
        name: wanted.get(name, "not in constraints.txt") for name in found
    }


def test_it_runs_unprivileged_and_compiles_nothing(image: str) -> None:
    """`--read-only`, no network, no rights: the command line, and no compiler or pip in the environment of Python."""
    assert "validate" in _output(image, "convergate", "--help")
    tools = _output(image, "sh", "-c", "command -v cc gcc c++ ld strip; ls /opt/venv/bin/pip* 2>/dev/null; id -u")
    assert tools == "65532\n"


def test_it_validates_a_config(image: str) -> None:
    done = run_in(
        image, "sh", "-c", "cat >/tmp/digits.yaml && convergate validate /tmp/digits.yaml", stdin=DIGITS.read_text()
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_light_one_validates_the_data_of_every_shipped_task(require_tool: Callable[[str], Path]) -> None:
    """There is no torch in it, and the data's digest is the one that is found here."""
    require_tool("docker")
    light = built_images()[0]
    assert "No module named 'torch'" in run_in(light, "python", "-c", "import torch").stderr
    configs = json.dumps([path.read_text() for path in sorted(DIGITS.parent.glob("*.yaml"))])
    done = run_in(light, "python", "-c", LIGHT_STEPS, stdin=configs)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert {verdict for verdict, _ in found.values()} == {"PASS"}
    assert found["DigitsTask"][1] == data_digest(DigitsTask().table())


def test_the_other_one_imports_all_of_the_package(require_tool: Callable[[str], Path]) -> None:
    require_tool("docker")
    assert _output(built_images()[1], "python", "-c", FACES) == "/opt/venv\n"


def _output(image: str, *command: str) -> str:
    done = run_in(image, *command)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _docker(*arguments: str) -> str:
    done = docker(*arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout

"""The components' READMEs are what the generator writes, and say what a person needs who wants only that component."""

import json
import re
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from convergate.components.config.plan import RunPlan
from convergate.components.storage import RunStore
from kfp import compiler, dsl
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).resolve().parents[2]
ROOMS = sorted(path.parent for path in [*ROOT.glob("components/*/component.py"), ROOT / "canary/component.py"])
KEYS = ["name", "stability", "dependencies", "tags", "lastVerified", "ci"]


def blocks(room: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (room / "README.md").read_text(), re.DOTALL)


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: room.name)
def test_a_readme_is_what_the_generator_writes(generate: ModuleType, room: Path) -> None:
    assert (room / "README.md").read_text() == generate.page(room), "→ make docs"


def test_every_room_with_a_component_is_written_about(generate: ModuleType) -> None:
    assert generate.rooms() == ROOMS
    assert len(ROOMS) == 7


def test_drift_fails_the_check_and_is_mended(
    generate: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    room = tmp_path / "components" / "slo"
    room.mkdir(parents=True)
    for name in ("metadata.yaml", "README.md"):
        (room / name).write_text((ROOT / "components" / "slo" / name).read_text())
    monkeypatch.setattr(generate, "ROOT", tmp_path)
    monkeypatch.setattr(generate, "rooms", lambda: [room])
    monkeypatch.setattr(generate, "maker", lambda artifact: generate.components(room)[0])
    generate.main(check=False)
    assert generate.main(check=True) == 0
    metadata = (room / "metadata.yaml").read_text()
    (room / "metadata.yaml").write_text(metadata.replace("stability: alpha", "stability: beta"))
    capsys.readouterr()
    assert generate.main(check=True) == 1
    assert capsys.readouterr().out == "components/slo/README.md is not what docs/generate.py writes → make docs\n"
    assert "| stability | beta |" not in (room / "README.md").read_text()
    assert generate.main(check=False) == 0
    assert "| stability | beta |" in (room / "README.md").read_text()


@pytest.mark.parametrize("key", KEYS)
def test_metadata_that_lacks_a_key_is_refused(generate: ModuleType, tmp_path: Path, key: str) -> None:
    found = yaml.safe_load((ROOT / "components/slo/metadata.yaml").read_text())
    del found[key]
    (tmp_path / "metadata.yaml").write_text(yaml.safe_dump(found, sort_keys=False))
    with pytest.raises(SystemExit, match=rf"{tmp_path.name}/metadata\.yaml has the keys .* → {', '.join(KEYS)}"):
        generate.metadata(tmp_path)


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: room.name)
def test_metadata_is_of_the_shape_that_pipelines_components_has(generate: ModuleType, room: Path) -> None:
    found = generate.metadata(room)
    assert found["name"] == room.name
    assert found["stability"] in ("alpha", "beta", "stable")
    kubeflow = {each["name"]: SpecifierSet(each["version"]) for each in found["dependencies"]["kubeflow"]}
    assert kubeflow["Pipelines"].contains("2.17.0")
    assert {each["name"] for each in found["dependencies"]["external_services"]} <= {"S3", "MLflow"}
    assert found["tags"]
    assert all(isinstance(tag, str) and re.fullmatch(r"[a-z_]+", tag) for tag in found["tags"])
    assert isinstance(found["lastVerified"], datetime)
    assert found["ci"] == {"skip_dependency_probe": False}


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: room.name)
def test_every_example_compiles(room: Path, tmp_path: Path) -> None:
    *examples, run_here = blocks(room)
    assert examples
    assert "local.init" in run_here
    for number, text in enumerate(examples):
        names: dict[str, object] = {}
        exec(text, names)  # noqa: S102 - our own page
        compiler.Compiler().compile(names["example"], str(tmp_path / f"{number}.yaml"))
        ir = next(yaml.safe_load_all((tmp_path / f"{number}.yaml").read_text()))
        assert ir["root"]["dag"]["tasks"]


def test_an_example_runs_as_its_page_says(s3: str, tmp_path: Path) -> None:
    digits = (ROOT / "manifests/configs/digits.yaml").read_text()
    (tmp_path / "manifests/configs").mkdir(parents=True)
    (tmp_path / "manifests/configs/digits.yaml").write_text(f"{digits}storage: {{uri: {json.dumps(s3)}}}\n")
    (tmp_path / "try_it.py").write_text("\n".join(blocks(ROOT / "components/config")))
    done = subprocess.run(
        [sys.executable, "try_it.py"], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    plan = RunStore(s3, "example-1").get("plan", RunPlan)
    assert (plan.verdict, plan.experiment, plan.total_steps) == ("PASS", "digits", 400)


def test_the_pages_need_only_the_package_and_kfp() -> None:
    """Whoever writes a pipeline of our components needs none of what their steps need."""
    script = f"""
import importlib, sys
for name in ("torch", "numpy", "pandas", "scipy", "sklearn", "mlflow", "great_expectations", "matplotlib", "pyarrow"):
    sys.modules[name] = None
for name in {[".".join(("convergate", *room.relative_to(ROOT).parts, "component")) for room in ROOMS]}:
    importlib.import_module(name)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@dsl.component
def _undescribed(config: str, rate: float) -> str:
    """Do something.

    Args:
        config: The run config.
    """
    return f"{config}{rate}"


def test_an_input_without_a_description_is_refused(generate: ModuleType) -> None:
    with pytest.raises(SystemExit, match="_undescribed: its docstring does not describe `rate`"):
        generate.section(_undescribed)

"""compile: the pipelines as files."""

from pathlib import Path

import pytest

from .conftest import Convergate


def test_every_pipeline_is_written_where_it_is_wanted(convergate: Convergate, tmp_path: Path) -> None:
    answer = convergate("compile")
    assert (answer.code, answer.err) == (0, "")
    assert answer.out.startswith("out/retrain.yaml\nout/canary.yaml\nout/components/canary.yaml\n")
    assert all((tmp_path / line).stat().st_size > 0 for line in answer.out.splitlines())
    asked = convergate("compile", "-o", "a/b", "--json")
    assert asked.json == [line.replace("out/", "a/b/", 1) for line in answer.out.splitlines()]
    assert (tmp_path / "a" / "b" / "retrain.yaml").read_bytes() == (tmp_path / "out" / "retrain.yaml").read_bytes()


def test_a_folder_that_is_a_file(convergate: Convergate, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    answer = convergate("compile", "-o", "out")
    assert answer.code == 2
    assert answer.error == "out: File exists"
    assert (tmp_path / "out").read_text() == "mine"


def test_where_the_steps_run_is_written_into_the_file(convergate: Convergate, tmp_path: Path) -> None:
    options = ("--launcher", "trainjob", "--toleration", "gpu=yes:NoSchedule", "--node-selector", "pool=a100")
    options = (*options, "--train-hours", "100")
    assert convergate("compile", *options, "--gpus", "2", "--image-pull-secret", "registry").code == 0
    text = (tmp_path / "out" / "retrain.yaml").read_text()
    for written in (
        "value: trainjob",
        "effect: NoSchedule",
        "pool: a100",
        "secretName: registry",
        "metadata.namespace",
        "activeDeadlineSeconds: '360000'",
    ):
        assert written in text


@pytest.mark.parametrize("argo", [(), ("--argo",)])
def test_a_gpu_that_has_no_name(convergate: Convergate, argo: tuple[str, ...]) -> None:
    answer = convergate("compile", *argo, "--gpu-type", "")
    assert (answer.code, answer.error) == (
        2, "--gpu-type '': not a resource of a node → nvidia.com/gpu, or another's name",
    )  # fmt: skip


def test_a_taint_that_is_none(convergate: Convergate) -> None:
    answer = convergate("compile", "--toleration", "gpu=yes:Never")
    assert answer.code == 2
    assert answer.error.startswith("--toleration gpu=yes:Never: not a taint → key=value:effect")

"""compile: the pipelines as files."""

from pathlib import Path

from .conftest import Convergate


def test_every_pipeline_is_written_where_it_is_wanted(convergate: Convergate, tmp_path: Path) -> None:
    answer = convergate("compile")
    assert (answer.code, answer.out, answer.err) == (0, "out/retrain.yaml\n", "")
    assert (tmp_path / "out" / "retrain.yaml").stat().st_size > 0
    asked = convergate("compile", "-o", "a/b", "--json")
    assert asked.json == ["a/b/retrain.yaml"]
    assert (tmp_path / "a" / "b" / "retrain.yaml").read_bytes() == (tmp_path / "out" / "retrain.yaml").read_bytes()


def test_a_folder_that_is_a_file(convergate: Convergate, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    answer = convergate("compile", "-o", "out")
    assert answer.code == 2
    assert answer.error == "out: File exists"
    assert (tmp_path / "out").read_text() == "mine"

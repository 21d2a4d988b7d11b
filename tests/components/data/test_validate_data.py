"""The data of a config's task: validated, reported on S3, and refused in a line where the task gives none."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from convergate.components.config import parse_config
from convergate.components.data import DataReport
from convergate.components.data.validate import validate_data
from convergate.components.storage import RunStore, S3Error

from .conftest import failures, good_table

CONFIG: dict[str, Any] = {
    "schema_version": 1,
    "experiment": "tables",
    "schedule": {"lr0": 0.1, "total_steps": 20},
    "training": {"batch_size": 8},
    "evaluation": {"metric": "loss", "mode": "min", "target": 1.0},
    "promotion": {"model": "tables"},
}
TASK = '''
from pathlib import Path
from convergate.components.task import TableSpec
from convergate.components.task.digits import DigitsTask

class Table(DigitsTask):
    """A table from a file."""
    def table(self):
        import pandas as pd
        return pd.read_pickle(Path(__file__).with_name("table.pickle"))
    def table_spec(self):
        return TableSpec(features=("f0", "f1", "f2", "f3"), minimum=0.0, maximum=1.0, classes=(0, 1, 2))

class Failing(Table):
    def table(self):
        raise OSError("the share is not mounted\\nretry later")

class Unreachable(Table):
    def table(self):
        from convergate.components.storage import S3Location, S3Store
        return S3Store().read(S3Location("no-such-bucket-17", "table.parquet"))

class Nothing(Table):
    def table(self):
        return {"f0": [1]}

class NoSpec(Table):
    def table_spec(self):
        return None
'''


@pytest.fixture
def run(s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., DataReport]:
    """Validate a table as a config's task gives it."""
    module = f"table_tasks_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{module}.py").write_text(TASK)
    monkeypatch.chdir(tmp_path)

    def validated(table: pd.DataFrame | None = None, name: str = "Table", **changes: Any) -> DataReport:
        if table is not None:
            table.to_pickle(tmp_path / "table.pickle")
        config = copy.deepcopy(CONFIG) | {"task": {"factory": f"{module}:{name}"}, "storage": {"uri": s3}} | changes
        report = validate_data(parse_config(yaml.safe_dump(config)), "run-1")
        assert RunStore(s3, "run-1").get("data", DataReport) == report
        return report

    return validated


def test_the_task_of_a_config_is_validated_and_its_report_stored(run: Callable[..., DataReport]) -> None:
    report = run(good_table())
    assert (report.verdict, report.run_id, report.num_rows) == ("PASS", "run-1", 108)
    assert report.seconds > 0
    broken = good_table()
    broken["f2"] = broken["f2"].astype(str)
    assert run(broken).reason == "columns and types: columns are not numeric: f2 is str"


def test_a_config_that_does_not_fit_the_data_fails_here(run: Callable[..., DataReport]) -> None:
    report = run(good_table(), training={"batch_size": 40})
    assert failures(report) == {"training.batch_size": []}
    assert "36 samples" in report.reason
    assert report.summary.startswith("108 rows, 14 expectations, 1 failed: training.batch_size: ")
    untouched = run(good_table().drop(columns="split"), training={"batch_size": 40})
    assert failures(untouched) == {"columns and types": []}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Failing", "table() failed: OSError: the share is not mounted retry later"),
        ("Nothing", "table() gave a dict → return a DataFrame"),
        ("NoSpec", "table_spec() gave a NoneType → return a TableSpec"),
    ],
)
def test_a_task_that_gives_no_table_fails_in_a_line(run: Callable[..., DataReport], name: str, message: str) -> None:
    report = run(good_table(), name)
    assert (report.verdict, report.num_rows, report.data_digest) == ("FAIL", 0, "")
    (expectation,) = report.expectations
    assert expectation.reason.endswith(f":{name}: {message}")
    assert report.reason == f"the task gives a table: {expectation.reason}"
    assert report.summary == f"no table: {expectation.reason}"
    assert "\n" not in report.summary
    assert "digest" not in report.to_markdown()
    assert report.seconds > 0


def test_a_task_that_cannot_be_imported_fails_too(run: Callable[..., DataReport]) -> None:
    report = run(task={"factory": "nowhere_to_be_found:Task"})
    assert report.verdict == "FAIL"
    assert "task.factory = nowhere_to_be_found:Task: there is no module nowhere_to_be_found" in report.reason


def test_what_is_outside_is_no_verdict_over_the_data(run: Callable[..., DataReport], s3: str) -> None:
    """It is raised, and the step is tried again."""
    with pytest.raises(S3Error, match="no-such-bucket-17"):
        run(good_table(), "Unreachable")
    assert RunStore(s3, "run-1").find("data", DataReport) is None

"""Hold a table against the suite with Great Expectations, and say which rows fail."""

import contextlib
import logging
import os
import warnings
from collections.abc import Iterator
from time import perf_counter
from typing import TYPE_CHECKING, Any

from ..config import RunConfig
from ..config.preflight import Facts, preflight
from ..errors import UserError
from ..storage import RunStore
from ..task import TableSpec, load_task
from .expectations import Expectation, derive, suite
from .report import DataReport, ExpectationResult, data_digest

if TYPE_CHECKING:
    import pandas as pd

SHOWN_ROWS = 10


def validate_data(config: RunConfig, run_id: str) -> DataReport:
    """Validate the table of the config's task; stores and returns the report.

    Preflight is repeated here, where the number of training samples is known.

    Raises:
        UserError: when the task cannot be loaded, or gives no table.
    """
    started = perf_counter()
    task = load_task(config.task)
    try:
        table = task.table()
    except Exception as error:
        raise UserError(
            f"task.factory = {config.task.factory}: table() failed: {type(error).__name__}: {error}"
        ) from error
    report = validate_table(table, task.table_spec(), run_id, config.data.snapshot)
    size = _size_problems(config, report)
    report = report.model_copy(
        update={
            "expectations": [*report.expectations, *size],
            "verdict": "FAIL" if size else report.verdict,
            "seconds": perf_counter() - started,
        }
    )
    RunStore(config.storage.uri, run_id).put("data", report)
    return report


def validate_table(table: "pd.DataFrame", spec: TableSpec, run_id: str, snapshot: str | None = None) -> DataReport:
    """Validate a table; a table of the wrong shape fails its first expectation and is looked at no further."""
    shape = _shape(table, spec)
    results = [shape]
    if shape.passed:
        results += _run_suite(derive(table, spec), suite(spec))
    digest = data_digest(table)
    if snapshot is not None:
        results.append(_snapshot(digest, snapshot))
    failed = [result for result in results if not result.passed]
    summary = f"{len(table):,} rows, {len(results)} expectations"
    if failed:
        summary += f", {len(failed)} failed: {failed[0].name}: {failed[0].reason}"
    return DataReport(
        run_id=run_id,
        summary=summary,
        verdict="FAIL" if failed else "PASS",
        expectations=results,
        num_rows=len(table),
        rows_by_split=_counts(table, spec.split),
        classes_by_split=_classes(table, spec),
        data_digest=digest,
        snapshot=snapshot,
    )


def _shape(table: "pd.DataFrame", spec: TableSpec) -> ExpectationResult:
    """Columns are there and features are numbers: what every other expectation needs."""
    wanted = [*spec.features, spec.label, spec.split]
    missing = [name for name in wanted if name not in table.columns]
    present = [name for name in spec.features if name in table.columns]
    text = [name for name in present if table[name].dtype.kind not in "biuf"]
    reason = ""
    if missing:
        reason = f"columns are missing: {', '.join(missing[:SHOWN_ROWS])}"
    elif text:
        reason = f"columns are not numeric: {', '.join(f'{name} is {table[name].dtype}' for name in text[:SHOWN_ROWS])}"
    elif table.empty:
        reason = "the table is empty"
    return ExpectationResult(
        name="columns and types", passed=not reason, observed=f"{len(table.columns)} columns", reason=reason
    )


def _run_suite(derived: "pd.DataFrame", expectations: list[Expectation]) -> list[ExpectationResult]:
    with _quiet():
        import great_expectations as gx

        context = gx.get_context(mode="ephemeral")
        context.variables.progress_bars = {"globally": False}  # type: ignore[assignment]
        asset = context.data_sources.add_pandas("table").add_dataframe_asset("table")
        definition = asset.add_batch_definition_whole_dataframe("all")
        built = gx.ExpectationSuite(name="default")
        for expectation in expectations:
            column = {"column": expectation.column} if expectation.column else {}
            built.add_expectation(getattr(gx.expectations, expectation.type)(**column, **expectation.arguments))
        validation = gx.ValidationDefinition(name="table", data=definition, suite=context.suites.add(built))
        answer = context.validation_definitions.add(validation).run(
            batch_parameters={"dataframe": derived}, result_format={"result_format": "COMPLETE"}
        )
    by_key = {_key(result.expectation_config): result for result in answer.results}
    return [_result(expectation, by_key[expectation.type, expectation.column]) for expectation in expectations]


def _key(configuration: Any) -> tuple[str, str]:
    camel = "".join(part.capitalize() for part in configuration.type.split("_"))
    return camel, configuration.kwargs.get("column", "")


def _result(expectation: Expectation, answer: Any) -> ExpectationResult:
    result = answer.result
    rows = [int(row) for row in result.get("unexpected_index_list") or []]
    count = int(result.get("unexpected_count") or 0)
    observed = (
        f"{count} of {result['element_count']} rows" if "element_count" in result else str(result.get("observed_value"))
    )
    reason = ""
    if not answer.success:
        reason = expectation.reason
        if rows:
            shown = ", ".join(map(str, rows[:SHOWN_ROWS]))
            reason += f" in {count} rows: {shown}{', …' if count > SHOWN_ROWS else ''}"
    return ExpectationResult(
        name=expectation.name,
        passed=bool(answer.success),
        observed=observed,
        rows=rows[:SHOWN_ROWS],
        num_rows=count,
        reason=reason,
    )


def _snapshot(digest: str, snapshot: str) -> ExpectationResult:
    same = digest == snapshot.removeprefix("sha256:")
    reason = "" if same else f"the data's digest is {digest}, data.snapshot pins {snapshot}: the data changed"
    return ExpectationResult(name="pinned snapshot", passed=same, observed=f"{digest[:12]}…", reason=reason)


def _size_problems(config: RunConfig, report: DataReport) -> list[ExpectationResult]:
    """Preflight's errors that only the data's size shows."""
    found = preflight(config, Facts(num_train_samples=report.rows_by_split.get("train", 0)))
    return [
        ExpectationResult(
            name=problem.path,
            passed=False,
            observed=problem.value,
            reason=f"{problem.reason} → {problem.fix}",
        )
        for problem in found.errors
    ]


def _counts(table: "pd.DataFrame", column: str) -> dict[str, int]:
    if column not in table.columns:
        return {}
    return {str(name): int(count) for name, count in table[column].value_counts().items()}


def _classes(table: "pd.DataFrame", spec: TableSpec) -> dict[str, dict[str, int]]:
    if not spec.classes or spec.label not in table.columns or spec.split not in table.columns:
        return {}
    return {str(split): _counts(rows, spec.label) for split, rows in table.groupby(spec.split)}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Great Expectations without its analytics, progress bars and warnings."""
    os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)

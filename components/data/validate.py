"""Hold a table against the suite with Great Expectations, and say which rows fail."""

import contextlib
import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from textwrap import shorten
from time import perf_counter
from typing import TYPE_CHECKING, Any

from ..config import RunConfig
from ..config.preflight import Facts, preflight
from ..errors import OutsideError, UserError
from ..storage import RunStore
from ..task import TableSpec, load_task
from .expectations import Expectation, derive, suite
from .report import DataReport, ExpectationResult, data_digest

if TYPE_CHECKING:
    import pandas as pd

SHOWN_ROWS = 10
SHOWN_CHARACTERS = 300


def validate_data(config: RunConfig, run_id: str) -> DataReport:
    """Validate the table of the config's task; stores and returns the report.

    Preflight is repeated here, where the number of training samples is known. A task that cannot be loaded or gives
    no table fails the report's only expectation.

    Raises:
        OutsideError: when S3 cannot be reached, also by the task.
    """
    started = perf_counter()
    try:
        table, spec = _table(config)
    except UserError as error:
        report = _without_table(run_id, config, str(error))
    else:
        report = validate_table(table, spec, run_id, config.data.snapshot)
        problems = _size_problems(config, report)
        report = report.model_copy(update=_conclusion(len(table), [*report.expectations, *problems]))
    report = report.model_copy(update={"seconds": perf_counter() - started})
    RunStore(config.storage.uri, run_id).put("data", report)
    return report


def _table(config: RunConfig) -> "tuple[pd.DataFrame, TableSpec]":
    """What the task gives, refused where it is something else."""
    import pandas as pd

    task, where = load_task(config.task), f"task.factory = {config.task.factory}"
    found: list[Any] = []
    for method, kind in ((task.table, pd.DataFrame), (task.table_spec, TableSpec)):
        try:
            answer = method()
        except OutsideError:
            raise
        except Exception as error:
            cause = shorten(f"{type(error).__name__}: {error}", SHOWN_CHARACTERS, placeholder=" …")
            raise UserError(f"{where}: {method.__name__}() failed: {cause}") from error
        if not isinstance(answer, kind):
            raise UserError(f"{where}: {method.__name__}() gave a {type(answer).__name__} → return a {kind.__name__}")
        found.append(answer)
    return found[0], found[1]


def _without_table(run_id: str, config: RunConfig, reason: str) -> DataReport:
    return DataReport(
        run_id=run_id,
        summary=f"no table: {reason}",
        verdict="FAIL",
        expectations=[ExpectationResult(name="the task gives a table", passed=False, observed="none", reason=reason)],
        num_rows=0,
        rows_by_split={},
        classes_by_split={},
        data_digest="",
        snapshot=config.data.snapshot,
    )


def validate_table(table: "pd.DataFrame", spec: TableSpec, run_id: str, snapshot: str | None = None) -> DataReport:
    """Validate a table; a table of the wrong shape fails its first expectation and is looked at no further."""
    shape = _shape(table, spec)
    results = [shape]
    if shape.passed:
        results += _run_suite(derive(table, spec), suite(spec))
    digest = data_digest(table)
    if snapshot is not None:
        results.append(_snapshot(digest, snapshot))
    return DataReport(
        run_id=run_id,
        **_conclusion(len(table), results),
        num_rows=len(table),
        rows_by_split=_counts(table[spec.split]) if shape.passed else {},
        classes_by_split=_classes(table, spec) if shape.passed and spec.classes else {},
        data_digest=digest,
        snapshot=snapshot,
    )


def _conclusion(num_rows: int, results: list[ExpectationResult]) -> dict[str, Any]:
    """The expectations with the verdict and summary over them all."""
    failed = [result for result in results if not result.passed]
    summary = f"{num_rows:,} rows, {len(results)} expectations"
    if failed:
        summary += f", {len(failed)} failed: {failed[0].name}: {failed[0].reason}"
    return {"expectations": results, "verdict": "FAIL" if failed else "PASS", "summary": summary}


def _shape(table: "pd.DataFrame", spec: TableSpec) -> ExpectationResult:
    """Columns are there and features are numbers: what every other expectation needs."""
    numeric = [*spec.features, spec.label]
    wanted = [*numeric, spec.split]
    missing = [name for name in wanted if name not in table.columns]
    repeated = list(table.columns[table.columns.duplicated()].unique().intersection(wanted))
    reason = ""
    if not spec.features:
        reason = "table_spec() names no features"
    elif missing:
        reason = f"columns are missing: {_some(missing)}"
    elif repeated:
        reason = f"columns stand more than once: {_some(repeated)}"
    elif text := [f"{name} is {table[name].dtype}" for name in numeric if table[name].dtype.kind not in "biuf"]:
        reason = f"columns are not numeric: {_some(text)}"
    elif table.empty:
        reason = "the table is empty"
    return ExpectationResult(
        name="columns and types", passed=not reason, observed=f"{len(table.columns)} columns", reason=reason
    )


def _some(things: Sequence[object]) -> str:
    """The first of them, with an ellipsis for the rest."""
    return ", ".join(map(str, things[:SHOWN_ROWS])) + (", …" if len(things) > SHOWN_ROWS else "")


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
    """An answer in our words: about rows, about values that are missing, or about the whole table."""
    result = answer.result
    rows, absent = result.get("unexpected_index_list") or [], result.get("partial_missing_list")
    count = int(result.get("unexpected_count") or 0)
    reason = "" if answer.success else expectation.reason
    if "element_count" in result:
        observed = f"{count} of {result['element_count']} rows"
        reason += f" in {count} row{'s' if count > 1 else ''}: {_some(rows)}" if reason else ""
    elif absent is not None:
        observed = f"{result['missing_count']} missing"
        reason += f": {_some(sorted(absent))}" if reason else ""
    else:
        observed = str(result["observed_value"])
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
    """Preflight's errors that only the data's size shows; none where the training split itself is missing."""
    found = preflight(config, Facts(num_train_samples=report.rows_by_split.get("train")))
    return [
        ExpectationResult(
            name=problem.path,
            passed=False,
            observed=problem.value,
            reason=f"{problem.reason} → {problem.fix}",
        )
        for problem in found.errors
    ]


def _counts(column: "pd.Series[Any]") -> dict[str, int]:
    return {str(name): int(count) for name, count in column.value_counts().items()}


def _classes(table: "pd.DataFrame", spec: TableSpec) -> dict[str, dict[str, int]]:
    return {str(split): _counts(rows[spec.label]) for split, rows in table.groupby(spec.split)}


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

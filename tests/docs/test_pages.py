"""The pages say what the code does: each figure of slo.md, each thing reported, each field of a record on S3."""

import math
import re
import tomllib
from datetime import timedelta
from pathlib import Path
from typing import get_args

import pandas as pd
import pytest
import yaml
from convergate.canary import checks
from convergate.cli.checkpoints import LEAST_GRACE, gc_command
from convergate.components.checkpoint import Manifest
from convergate.components.checkpoint.retention import RELEASES
from convergate.components.config.models import RunConfig, SloConfig
from convergate.components.data.expectations import suite
from convergate.components.promotion import ChampionRecord
from convergate.components.schedule.events import EventKind
from convergate.components.slo.ledger import DEADLINE, EndRecord, RunClass, StartRecord
from convergate.components.slo.standing import ONE_EXCUSED_IN, allowed_failures
from convergate.components.slo.statistics import (
    ALARM_E_VALUE,
    BURN_RULES,
    ceiling_verdict,
    e_value,
    rate_verdict,
)
from convergate.components.storage.client import CONNECT_TIMEOUT_S, MAX_ATTEMPTS, READ_TIMEOUT_S
from convergate.components.storage.streams import PART_BYTES
from convergate.components.storage.transfer import TRIES, allowed_seconds
from convergate.components.task import TableSpec
from convergate.components.telemetry import StepRecord, detect
from convergate.components.training.sync_guard import StopKind
from pydantic import BaseModel
from scipy.stats import binom

ROOT = Path(__file__).resolve().parents[2]


def table(page: str, first_column: str) -> list[list[str]]:
    """The rows of the table whose first heading is `first_column`, without heading and rule."""
    text = (ROOT / "docs" / page).read_text()
    lines = text[text.index(f"| {first_column} |") :].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in lines]


def section(page: str, heading: str) -> str:
    """The text under a heading, up to the next of any depth."""
    text = (ROOT / "docs" / page).read_text()
    found = re.search(rf"^#+ {re.escape(heading)}\n(.*?)(?=^#|\Z)", text, re.DOTALL | re.MULTILINE)
    assert found, f"{page} has no section {heading}"
    return found[1]


# slo.md


@pytest.mark.parametrize(("runs", "good", "bad"), table("slo.md", "runs"))
def test_the_table_of_bounds(runs: str, good: str, bad: str) -> None:
    verdicts = [rate_verdict(count, int(runs), SloConfig().convergence_rate) for count in range(int(runs) + 1)]
    proven = [count for count, verdict in enumerate(verdicts) if verdict == "PASS"]
    breached = [count for count, verdict in enumerate(verdicts) if verdict == "FAIL"]
    assert (str(min(proven)) if proven else "–", str(max(breached))) == (good, bad)


@pytest.mark.parametrize(("events", "runs"), table("slo.md", "events"))
def test_the_table_of_anomalous_runs(events: str, runs: str) -> None:
    limit = SloConfig().anomalous_rate
    assert ceiling_verdict(int(events), int(runs), limit) == "PASS"
    assert ceiling_verdict(int(events), int(runs) - 1, limit) == "INSUFFICIENT"


def test_what_breaches_the_anomalous_rate() -> None:
    (line,) = re.findall(r"breached from (.*?)\. An LR", section("slo.md", "Proven, breached, or neither"))
    pairs = [tuple(map(int, pair.split(" of "))) for pair in line.split(", ")]
    assert len(pairs) == 4
    for events, runs in pairs:
        assert ceiling_verdict(events, runs, SloConfig().anomalous_rate) == "FAIL"
        assert ceiling_verdict(events - 1, runs, SloConfig().anomalous_rate) == "INSUFFICIENT"


def test_the_chances_that_the_page_tells() -> None:
    text = " ".join(section("slo.md", "Proven, breached, or neither").split())
    assert f"at 10 runs in {binom.sf(7, 10, 0.7):.0%} of cases".replace("%", " %") in text
    assert f"with 50 runs in {binom.sf(44, 50, 0.9):.0%} of cases".replace("%", " %") in text


@pytest.mark.parametrize(("seen", "converged"), table("slo.md", "runs seen"))
def test_where_the_alarm_rings(seen: str, converged: str) -> None:
    assert e_value(int(converged), int(seen), 0.8) >= ALARM_E_VALUE > e_value(int(converged) + 1, int(seen), 0.8)


def test_the_burn_windows() -> None:
    rows = [(severity, int(failures), int(last)) for severity, failures, last in table("slo.md", "severity")]
    assert rows == list(BURN_RULES)


def test_the_defaults_of_the_policy() -> None:
    policy, text = SloConfig(), " ".join((ROOT / "docs/slo.md").read_text().split())
    assert f"`slo.window_runs` runs ({policy.window_runs})" in text
    assert f"`slo.min_runs` runs ({policy.min_runs})" in text
    assert f"{allowed_failures(policy)} of {policy.window_runs}. The run" in text
    assert f"no end {DEADLINE.total_seconds() / 3600:.0f} hours and the training's budget" in text
    assert ONE_EXCUSED_IN == 10
    keys = {row[1].partition(",")[0].strip("`"): row[1].partition(", ")[2] for row in table("slo.md", "SLI")}
    for key, default in keys.items():
        value = getattr(policy, key)
        assert default == "none" if value is None else float(default) == value
    assert {row[0].strip("`") for row in table("slo.md", "class")} == set(get_args(RunClass))


# runbook.md


def kinds() -> set[str]:
    """Whatever the detectors can name, each on a record that it must see."""
    calm = [StepRecord(step, 0.1, 0.1, 1.0, 1.0, 0.1, 8) for step in range(20)]
    trouble = [
        StepRecord(20, 0.1, 0.1, math.nan, 1.0, 0.1, 8),
        StepRecord(21, 0.1, 0.1, 1.0, 1000.0, 0.1, 8),
        StepRecord(22, 0.2, 0.1, 1.0, 1.0, 0.1, 8),
    ]
    return {detection.kind for detection in detect([*calm, *trouble])}


PLATEAU_EVENTS = set(get_args(EventKind)) - {"rollback"}
"""Told by their own names; a rollback as `rolled_back`."""


def events_of_a_training() -> set[str]:
    """The kinds that the code of the training names, but for that of a result without one, which tells its reason."""
    code = "\n".join(file.read_text() for file in (ROOT / "components/training").glob("*.py"))
    found = set(re.findall(r'Detection\([\w.]+, "(\w+)"|Event\(step=[\w.]+, kind="(\w+)"', code))
    return {kind for pair in found for kind in pair if kind} - {"failed"}


def test_every_kind_of_event_has_a_section() -> None:
    of_the_loop = {"update_skipped", "early_stopped", "rolled_back", "save_skipped"}
    assert events_of_a_training() == of_the_loop | {"resumed", "checkpoint_damaged"}
    assert kinds() == {"non_finite_loss", "exploding_gradient", "lr_off_plan"}
    both = {"restart": "restart and reduce", "reduce": "restart and reduce"}
    for kind in kinds() | events_of_a_training() | PLATEAU_EVENTS | {"lr_sync_error", "interrupted"}:
        assert "**Means.**" in section("runbook.md", both.get(kind, kind))
    assert set(get_args(StopKind)) == {"diverged", "lr_sync_error", "interrupted", "budget"}
    assert "`status: diverged`" in section("runbook.md", "non_finite_loss")
    assert "budget.max_gpu_hours" in section("runbook.md", "over budget")


def test_every_section_says_what_it_means_how_to_look_and_what_to_do() -> None:
    headings = re.findall(r"^## (.*)$", (ROOT / "docs/runbook.md").read_text(), re.MULTILINE)
    assert headings[0] == "First look"
    for heading in headings[1:]:
        text = section("runbook.md", heading)
        assert re.search(r"\*\*Means\.\*\*.*\*\*Look\.\*\*.*\*\*Do(\.\*\*|\*\*,)", text, re.DOTALL), heading


def test_every_message_that_the_runbook_quotes_is_one_of_ours() -> None:
    files = [file for room in ("components", "canary", "pipelines", "cli") for file in (ROOT / room).rglob("*.py")]
    code = re.sub(r'"\s*\n\s*f?"', "", "\n".join(file.read_text() for file in files))
    text = " ".join((ROOT / "docs/runbook.md").read_text().split())
    quotes = re.findall(r"(?<![\w`])'([^'`|]{12,}?)'(?!\w)", text)
    assert len(quotes) >= 10
    parts = {part.strip(" ,:") for quote in quotes for part in re.split(r"…|\bN\b", quote)}
    assert {part for part in parts if part not in code} == set()


def test_every_canary_check_is_in_the_runbook() -> None:
    columns = ["rank", "step", "lr", "lr_planned", "loss", "grad_norm", "applied"]
    trace = pd.DataFrame([(0, 0, 0.1, 0.1, 1.0, 1.0, True)], columns=columns)
    found = [
        *(checks.finite(trace, "first steps"), checks.falling_loss(trace), checks.bounded_gradient(trace)),
        *(checks.on_plan(trace, "first steps"), checks.on_plan(trace, "compressed schedule")),
        *(checks.whole_schedule(trace, 1), checks.ranks_agree(trace, 1)),
        *(checks.restored(trace, trace, None, 1), checks.within_budget(1.0, 1.0)),
    ]
    known = {row[0].strip("`") for row in table("runbook.md", "check")}
    assert known == {check.name for check in found} | {"workers run"}


def test_every_expectation_is_in_the_runbook() -> None:
    spec = TableSpec(features=("a", "b"), minimum=0, maximum=1, classes=(0, 1))
    names = {each.name for each in suite(spec)} | {"the task gives a table", "columns and types", "pinned snapshot"}
    rows = {name for row in table("runbook.md", "expectation") for name in re.findall(r"`([^`]+)`", row[0])}
    assert rows == names


# architecture.md


def test_the_floors_are_those_that_are_checked() -> None:
    contract = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"][0]
    floors = [layer.replace("convergate.", "").replace(".", "/").split(" | ") for layer in contract["layers"]]
    rows = [re.findall(r"`([\w/.]+?)/?`", rooms) for _, rooms in table("architecture.md", "floor, from the top")]
    assert [[room.removesuffix(".py") for room in row] for row in rows] == floors


@pytest.mark.parametrize(
    ("heading", "model"),
    [
        ("`start.json`", StartRecord),
        ("`end.json`", EndRecord),
        ("`champion.json`", ChampionRecord),
        ("`manifest.json`", Manifest),
    ],
)
def test_every_field_of_a_record_is_described(heading: str, model: type[BaseModel]) -> None:
    cells = re.findall(r"^\| (`.*?) \|", section("architecture.md", heading), re.MULTILINE)
    assert {name for cell in cells for name in re.findall(r"`(\w+)`", cell)} == set(model.model_fields)


# training.md


@pytest.mark.parametrize(("key", "default"), [row[:2] for row in table("training.md", "key")])
def test_the_keys_of_training(key: str, default: str) -> None:
    section, name = key.strip("`").split(".")
    annotation = RunConfig.model_fields[section].annotation
    assert annotation is not None
    field = annotation.model_fields[name]
    assert field.is_required() if default == "" else field.default == yaml.safe_load(default.strip("`"))


# checkpoints.md


def test_the_figures_of_the_checkpoints_page() -> None:
    text = " ".join((ROOT / "docs/checkpoints.md").read_text().split())
    assert f"Each {PART_BYTES // 2**20} MiB part carries its CRC64-NVME" in text
    assert (
        f"{CONNECT_TIMEOUT_S} s to connect ({READ_TIMEOUT_S} s for large bodies) and {READ_TIMEOUT_S} s for each"
        in text
    )
    assert f"the whole upload has {allowed_seconds(0):.0f} s and a second for each MiB" in text
    assert allowed_seconds(2**20) - allowed_seconds(0) == 1
    words = {3: "three"}
    assert f"the request is repeated, {words[MAX_ATTEMPTS]} times in all" in text
    assert f"the part is read again, {words[TRIES]} times in all" in text
    grace = next(option for option in gc_command.params if option.name == "grace")
    assert f"for `--grace`, {str(grace.default).removesuffix('h')} hours by default, an hour at least" in text
    assert timedelta(hours=1) == LEAST_GRACE
    assert f"<storage.uri>/{RELEASES}/<model>/<run_id>" in text


def test_every_variable_of_the_checkpoints_page_is_read() -> None:
    code = "\n".join(file.read_text() for file in (ROOT / "components").rglob("*.py"))
    names = [name for row in table("checkpoints.md", "variable") for name in re.findall(r"`(\w+)`", row[0])]
    assert set(re.findall(r"CONVERGATE_(?:S3|CHECKPOINT)\w+", code)) == {
        name for name in names if name.startswith("CONVERGATE_")
    }
    assert all(name in code for name in names)

"""The page on schedules: every kind in its table with a config that runs, and code that runs."""

import re
from pathlib import Path
from typing import get_args

import yaml
from convergate.components.config.optimizer import OptimizerConfig
from convergate.components.schedule import MomentumCycle, ScheduleConfig, build_schedule, build_watch
from convergate.components.schedule.torch_adapter import ScheduleLR

PAGE = (Path(__file__).resolve().parents[2] / "docs/schedules.md").read_text()
ROWS = re.findall(r"^\| `(\w+)` \| `(\{.*?\})` \|", PAGE, re.MULTILINE)


def test_every_kind_is_in_the_table_with_a_schedule_that_runs() -> None:
    assert tuple(kind for kind, _ in ROWS) == get_args(ScheduleConfig.model_fields["kind"].annotation)
    for kind, text in ROWS:
        config = ScheduleConfig.model_validate(yaml.safe_load(text) | {"total_steps": 400})
        schedule = build_schedule(config, total_steps=400, batch_size=64)
        assert config.kind == kind
        assert schedule.lr(config.warmup.steps) == config.lr0
        assert schedule.lr(400) == (config.lr0 if kind == "constant" else config.lr_min)


def test_the_sections_that_it_shows_are_read() -> None:
    optimizer = yaml.safe_load(re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)[1])["optimizer"]
    groups = OptimizerConfig.model_validate(optimizer).groups
    assert [(group.match, group.lr_scale, group.weight_decay) for group in groups] == [
        ("head.*", 10.0, None),
        (".*bias", 1.0, 0.0),
    ]
    restarts = yaml.safe_load(re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)[0])["schedule"]
    assert build_watch(ScheduleConfig.model_validate(restarts), batch_size=64) is not None
    for text in re.findall(r"^- `(\{.*?\})`", PAGE, re.MULTILINE):
        ScheduleConfig.model_validate({"lr0": 0.1, "total_steps": 400, "momentum": yaml.safe_load(text)})


def test_its_code_runs() -> None:
    names: dict[str, object] = {}
    exec(re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)[0], names)  # noqa: S102 - the code of our own page
    scheduler = names["scheduler"]
    assert isinstance(scheduler, ScheduleLR)
    assert isinstance(scheduler.momentum, MomentumCycle)
    scheduler.step(120)
    assert scheduler.get_last_lr() == [0.1, 0.2]
    assert [group["momentum"] for group in scheduler.optimizer.param_groups] == [0.85] * 2

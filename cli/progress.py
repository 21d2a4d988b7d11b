"""The terminal view of a run: a line a step as it ends, then the decision."""

import sys
from typing import Self

import click

from ..components.config import RunConfig, config_digests, derive_seed
from ..components.config.models import StorageConfig
from ..components.report import RunPage
from ..pipelines.closing import steps as steps_of
from ..pipelines.here import RunOutcome

STEPS = ("validate config", "validate data", "canary", "train", "evaluate", "gate", "promote")


class RunProgress:
    """Prints each finished step once; while a step runs, a terminal shows which, inside the `with` block."""

    def __init__(self, config: RunConfig, run_id: str, *, quiet: bool) -> None:
        self._quiet, self._shown = quiet, 0
        self._live = None
        root = config.storage.uri
        self._root_option = "" if root == StorageConfig().uri else f" --root {root}"
        if quiet:
            return
        seed, processes = derive_seed(config, run_id), config.distributed.world_size
        digests = config_digests(config)
        click.echo(f"{config.experiment} · {run_id} · seed {seed} · config {digests.short} · {processes} processes")
        if sys.stdout.isatty():
            from rich.console import Console

            self._live = Console().status("starting")

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Give the terminal back its cursor, also after Ctrl-C."""
        if self._live is not None:
            self._live.stop()

    def __call__(self, page: RunPage) -> None:
        """Show the steps that ended since the last call."""
        steps = steps_of(page)
        if self._quiet:
            return
        for name, verdict, seconds, summary in steps[self._shown :]:
            mark = {"PASS": "✓", "FAIL": "✗"}.get(verdict, "◦")
            if name != "gate":
                click.echo(f" {mark} {name:<16}{seconds:>6.1f} s   {summary}")
            elif page.decision is not None:
                click.echo(f" {mark} {name:<16}{seconds:>6.1f} s   {page.decision.decision}")
                for line in page.decision.lines():
                    click.echo(f"     {line}")
        self._shown = max(self._shown, len(steps))
        if self._live is not None:
            following = STEPS[self._shown] if self._shown < len(STEPS) and not page.end else "close run"
            self._live.update(following)

    def finish(self, outcome: RunOutcome) -> None:
        """Where the time went, where the page is, and why, last."""
        steps = sum(outcome.step_seconds.values())
        click.echo(
            f"   {outcome.seconds:.1f} s in all: {steps:.1f} s in steps, the rest starting processes and servers"
        )
        click.echo(f"   Report: {outcome.report}")
        if outcome.alias == "challenger":
            approval = f'{outcome.run_id}{self._root_option} --approve --reason "…" --key FILE'
            click.echo(f"   Next: run it again, or `convergate promote {approval}`")
        click.echo(outcome.sentence if not outcome.reason else f"{outcome.sentence}\n{outcome.reason}")

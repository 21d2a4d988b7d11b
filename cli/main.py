"""`convergate`: the entry point, and what every command shares: late loading, one-line errors, exit codes."""

import importlib
import io
import os
import sys

import click

from .. import __version__
from ..components.errors import ConvergateError, ExitCode, TerminatedError

COMMANDS = {
    "validate": ("configs", "Schema and preflight of a config; prints its digest."),
    "schedule": ("configs", "The learning rate over the run, step by step."),
    "sign": ("configs", "Sign a config's digests."),
    "verify": ("configs", "Verify a config's signature."),
    "canary": ("running", "The canary alone."),
    "train": ("running", "The training alone; continues where it was interrupted."),
    "retrain": ("running", "The whole DAG, from validation to the alias."),
    "recurring": ("recurring", "A pipeline on a schedule, on Kubeflow Pipelines."),
    "compile": ("compiling", "Every pipeline as KFP IR YAML."),
    "slo": ("ledger", "Where the convergence SLO stands."),
    "runs": ("ledger", "What ran, and how it ended."),
    "report": ("ledger", "A run's page."),
    "gate": ("ledger", "Decide over a run again."),
    "checkpoints": ("checkpoints", "What stands on S3: list it, verify it, clean it up."),
    "promote": ("promotion", "A person's approval of a challenger."),
    "rollback": ("promotion", "Back to the previous champion."),
    "doctor": ("doctor", "Can this machine, or this cluster, run it; each check with the fix."),
}
"""Command: (its module, its line in the help)."""
BROKEN_PIPE = 141
"""128 + SIGPIPE, as of every program whose reader has had enough; neither a verdict nor a failure."""


class _LateGroup(click.Group):
    """A group that imports a command's module when the command is used, and not for the list of them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f".{COMMANDS[cmd_name][0]}", __package__)
        command: click.Command = getattr(module, f"{cmd_name}_command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])


@click.group(
    cls=_LateGroup,
    invoke_without_command=True,
    epilog="\b\nExit codes: 0 done and positive, 1 a negative verdict, 2 bad usage or config, 3 nobody can tell yet,\n"
    "4 something outside failed, 130/143 interrupted.",
)
@click.version_option(__version__, prog_name="convergate")
@click.option("--debug", is_flag=True, help="Show the trace of an error.")
@click.pass_context
def cli(context: click.Context, debug: bool) -> None:  # noqa: ARG001 - `main` takes --debug wherever it stands
    """Retrain a PyTorch model, and promote it only when its schedule, its run and the convergence SLO say so.

    \b
    Examples:
      convergate validate manifests/configs/digits.yaml
      convergate retrain manifests/configs/digits.yaml
      convergate slo manifests/configs/digits.yaml --json
    """  # noqa: D301 - click's own mark
    if context.invoked_subcommand is None:
        click.echo(context.get_help())
        context.exit(ExitCode.USAGE)


def main() -> None:
    """Run the command line; ends the process."""
    debug = "--debug" in sys.argv
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal without `✓` gets a `?`, and no trace
    try:
        # Not cli.main(): that ends the process with 1, a negative verdict, when a pipe breaks.
        with cli.make_context("convergate", arguments) as context:
            code = cli.invoke(context)
    except Exception as error:
        if debug and not isinstance(error, click.exceptions.Exit):
            raise
        code = _explain(error)
    except KeyboardInterrupt:
        click.echo("convergate: interrupted", err=True)
        code = ExitCode.INTERRUPTED
    except TerminatedError as error:
        click.echo(f"convergate: {error}", err=True)
        code = error.exit_code
    sys.exit(int(code or 0))


def _explain(error: Exception) -> int:
    """One line for what a user can cause or mend, and its exit code; anything else goes on as it is."""
    if isinstance(error, click.exceptions.Exit):
        return error.exit_code
    if isinstance(error, click.ClickException):
        context = getattr(error, "ctx", None)
        shown = " ".join(error.format_message().split()).rstrip(".")
        line, code = f"{shown} → {context.command_path if context else 'convergate'} --help", ExitCode.USAGE
    elif isinstance(error, ConvergateError):
        line, code = str(error), error.exit_code
    elif isinstance(error, ModuleNotFoundError) and not (error.name or "").startswith("convergate"):
        line, code = f"{error.name} is not installed → pip install 'convergate[all]'", ExitCode.USAGE
    elif isinstance(error, OSError):
        _drop_unwritable_output()
        if isinstance(error, BrokenPipeError):
            return BROKEN_PIPE
        line = f"{error.filename or 'the system'}: {error.strerror or error}"
        code = ExitCode.USAGE if error.filename else ExitCode.OUTSIDE
    else:
        raise error
    click.echo(f"convergate: {line}", err=True)
    return code


def _drop_unwritable_output() -> None:
    """What nobody takes is not offered again when the interpreter ends."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()

"""`convergate`: the entry point, and what every command shares: late loading, one-line errors, exit codes."""

import importlib
import sys

import click

from .. import __version__
from ..components.errors import ConvergateError, ExitCode

COMMANDS = {
    "validate": ("configs", "Schema and preflight of a config; prints its digest."),
    "schedule": ("configs", "The learning rate over the run, step by step."),
    "sign": ("configs", "Sign a config's digests."),
    "verify": ("configs", "Verify a config's signature."),
    "canary": ("running", "The canary alone."),
    "train": ("running", "The training alone; continues where it was interrupted."),
    "retrain": ("running", "The whole DAG, from validation to the alias."),
    "compile": ("compiling", "Every pipeline as KFP IR YAML."),
    "slo": ("ledger", "Where the convergence SLO stands."),
    "runs": ("ledger", "What ran, and how it ended."),
    "report": ("ledger", "A run's page."),
    "gate": ("ledger", "Decide over a run again."),
    "promote": ("promotion", "A person's approval of a challenger."),
    "rollback": ("promotion", "Back to the previous champion."),
}
"""Command: (its module, its line in the help)."""


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
    epilog="\b\nExit codes: 0 done and positive, 1 a negative verdict, 2 bad usage or config, 3 nobody can tell yet,\n"
    "4 something outside failed, 130/143 interrupted.",
)
@click.version_option(__version__, prog_name="convergate")
@click.option("--debug", is_flag=True, help="Show the trace of an error.")
def cli(debug: bool) -> None:
    """Retrain a PyTorch model, and promote it only when its schedule, its run and the convergence SLO say so.

    \b
    Examples:
      convergate validate manifests/configs/digits.yaml
      convergate retrain manifests/configs/digits.yaml
      convergate slo manifests/configs/digits.yaml --json
    """  # noqa: D301 - click's own mark


def main() -> None:
    """Run the command line; ends the process."""
    debug = "--debug" in sys.argv
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    try:
        code = cli.main(arguments, standalone_mode=False)
    except click.exceptions.Abort:
        code = ExitCode.INTERRUPTED
    except click.exceptions.Exit as ended:
        code = ended.exit_code
    except click.ClickException as error:
        error.show()
        code = ExitCode.USAGE
    except ConvergateError as error:
        if debug:
            raise
        click.echo(f"convergate: {error}", err=True)
        code = error.exit_code
    except KeyboardInterrupt:
        click.echo("convergate: interrupted", err=True)
        code = ExitCode.INTERRUPTED
    except OSError as error:
        if debug:
            raise
        click.echo(f"convergate: {error.filename or 'the system'}: {error.strerror or error}", err=True)
        code = ExitCode.OUTSIDE
    sys.exit(int(code or 0))


if __name__ == "__main__":
    main()

"""A room's steps as commands, made of their KFP components: `python -m convergate.components.<room> STEP --help`.

For Argo, and for a person who runs one step by hand. The options are the inputs and outputs of the KFP component
itself, the help is its docstring: a step has one face. Documents travel as `s3://…#sha256=…`, where the step that wrote
one tells its digest, and the step that takes it checks it.
"""

import contextlib
import hashlib
import inspect
import json
import re
import signal
import sys
import tempfile
import textwrap
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any, NoReturn

import click

from .errors import ConvergateError, ExitCode, UserError

OUTPUTS = "/tmp/outputs"  # noqa: S108 - the writable folder of a step's container
DIGEST_MARK = "#sha256="
STORAGE_SCHEME = "storage:"
"""What stands after it is a key below the config's `storage.uri`."""
ARGO_STOPPED = ("workflow shutdown with strategy", "Stopped with strategy")
"""Argo's words for a workflow that a person stopped, in the failures that it tells an exit handler: of a step that ran
or was to start, and of one that waited for its next attempt."""
_ARGO_BRACES = re.compile(r"\{(?=\{)")
"""Argo fills in `{{…}}`, and computes `{{=…}}`, in the values that it takes from one step to another as well."""


def main(faces: ModuleType) -> NoReturn:
    """Run the step of a module that the command line asks for; ends the process.

    Exit codes are those of errors: 2 bad usage or config, 4 something outside failed, 130 and 143 interrupted. A
    negative verdict is a value and ends with 0; `stop` ends with 1.

    Args:
        faces: The module with the KFP components.
    """
    debug = "--debug" in sys.argv
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    signal.signal(signal.SIGTERM, _terminate)
    try:
        command, arguments = _command(faces, arguments)
        code = command.main(arguments, prog_name=command.name, standalone_mode=False) or 0
    except (ConvergateError, click.ClickException) as error:
        if debug:
            raise
        code = _explain(error)
    except (KeyboardInterrupt, click.Abort):
        code = ExitCode.INTERRUPTED
    sys.exit(int(code))


def _terminate(_signum: int, _frame: FrameType | None) -> NoReturn:
    """SIGTERM; not as an Exception, which boto would take for a lost connection and try again."""
    click.echo("convergate: the step was told to end (SIGTERM)", err=True)
    raise SystemExit(ExitCode.TERMINATED)


def _explain(error: ConvergateError | click.ClickException) -> int:
    if isinstance(error, ConvergateError):
        line, code = str(error), error.exit_code
    else:
        context = getattr(error, "ctx", None)
        line = " ".join(error.format_message().split()).rstrip(".")
        line, code = f"{line} → {context.command_path if context else 'python -m …'} --help", ExitCode.USAGE
    click.echo(f"convergate: {line}", err=True)
    return code


def _command(faces: ModuleType, arguments: list[str]) -> tuple[click.Command, list[str]]:
    """The command for these arguments, and what it takes; where a room has one step, its name may be left out."""
    from kfp.dsl.python_component import PythonComponent

    program = f"python -m {faces.__package__}"
    steps = [_step(value) for value in vars(faces).values() if isinstance(value, PythonComponent)]
    if len(steps) > 1 or arguments[:1] == [steps[0].name]:
        by_name: dict[str, click.Command] = {str(step.name): step for step in steps}
        group = click.Group(program, by_name, no_args_is_help=False, help="The steps of this room, as commands.")
        return group, arguments
    steps[0].name = program
    return steps[0], arguments


def _step(component: Any) -> click.Command:
    """The command of one component."""
    from docstring_parser import parse

    function = component.python_func
    told = parse(function.__doc__)
    texts = {parameter.arg_name: parameter.description for parameter in told.params}
    parameters = inspect.signature(function).parameters
    outputs = component.component_spec.outputs or {}
    returned = {name: spec.description for name, spec in outputs.items() if not spec.type.startswith("system.")}
    if list(returned) == ["Output"] and told.returns is not None:
        returned = {"Output": told.returns.description}

    def run(outputs: str, **values: str | None) -> None:
        _run(function, list(returned), {name: values[name] for name in parameters}, Path(outputs))

    return click.Command(
        function.__name__,
        callback=run,
        params=[
            *(_option(name, _kind(parameter), parameter, texts.get(name)) for name, parameter in parameters.items()),
            click.Option(
                ["--outputs"], default=OUTPUTS, show_default=True, metavar="FOLDER", help="For what it returns."
            ),
            click.Option(["--debug"], is_flag=True, expose_value=False, help="Show the trace of an error."),
        ],
        help="\n\n".join(filter(None, [told.short_description, told.long_description])),
        epilog="\n\n".join(_epilog(returned)),
    )


def _epilog(returned: Mapping[str, str | None]) -> Iterator[str]:
    yield (
        f"A text may be @FILE. A DOCUMENT is a file or s3://…, with {DIGEST_MARK}… behind it where it is to be checked."
        f" A PLACE is a file, s3://… or {STORAGE_SCHEME}KEY, a key below the config's storage.uri; by default a file in"
        " --outputs."
    )
    if returned:
        lines = (textwrap.fill(f"{name}: {text}", 76, subsequent_indent="  ") for name, text in returned.items())
        yield "\b\nReturned, each as a file in --outputs, and together as a line of JSON:\n" + "\n".join(lines)


class _Kind(typing.NamedTuple):
    """What an annotation says: the class, and whether it is a document that goes in, or one that comes out."""

    type: Any
    goes_in: bool
    comes_out: bool


def _kind(parameter: inspect.Parameter) -> _Kind:
    from kfp.dsl.types.type_annotations import InputAnnotation, OutputAnnotation

    if not typing.get_args(parameter.annotation):
        return _Kind(parameter.annotation, False, False)
    of, mark = typing.get_args(parameter.annotation)
    return _Kind(of, mark is InputAnnotation, mark is OutputAnnotation)


def _option(name: str, kind: _Kind, parameter: inspect.Parameter, text: str | None) -> click.Option:
    metavar = "PLACE" if kind.comes_out else "DOCUMENT" if kind.goes_in else "TEXT"
    required = parameter.default is inspect.Parameter.empty and not kind.comes_out
    return click.Option([f"--{name.replace('_', '-')}"], metavar=metavar, required=required, help=text)


def _run(function: Any, returned: list[str], values: Mapping[str, str | None], outputs: Path) -> None:
    """Call the step with what the options say, put its documents where they go, and tell what it returned."""
    kinds = {name: _kind(parameter) for name, parameter in inspect.signature(function).parameters.items()}
    with _writing(outputs):
        outputs.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="convergate-step-") as folder:
        given = {name: _given(name, kind, values[name], Path(folder)) for name, kind in kinds.items()}
        result = function(**given)
        told = dict(zip(returned, result if isinstance(result, tuple) else (result,), strict=False)) if returned else {}
        for name, kind in kinds.items():
            if kind.comes_out:
                reference = _put(given[name], values[name] or str(outputs / name), given.get("config"))
                told |= {name: reference} if reference else {}
    for name, value in told.items():
        _write(outputs / name, _ARGO_BRACES.sub("{ ", str(value)).encode())
    if told:
        click.echo(json.dumps(told, ensure_ascii=False))


def _given(name: str, kind: _Kind, value: str | None, folder: Path) -> Any:
    """The argument of the step's function that an option's value stands for."""
    if kind.comes_out:
        return kind.type(name=name, uri=str(folder / name))
    if value is None:
        return None
    if kind.goes_in:
        return kind.type(name=name, uri=str(_take(value, folder / name)))
    if kind.type is str:
        return _text(name, value)
    stopped = any(words in value for words in ARGO_STOPPED)
    return kind.type("CANCELLED" if stopped else value.partition(" ")[0].upper(), "", "", None, None)


def _text(name: str, value: str) -> str:
    """A text as it is, or that of a file after `@`."""
    if not value.startswith("@"):
        return value
    option = f"--{name.replace('_', '-')}"
    try:
        return _read(Path(value[1:]), option).decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{option} {value[1:]}: byte {error.start} is no UTF-8 → a text file in UTF-8") from error


def _read(path: Path, what: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{what} {path}: {error.strerror} → the path of a file that the step can read") from error


def _write(path: Path, data: bytes) -> None:
    with _writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """A place that cannot be written is whoever's who named it."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{error.filename or path}: {error.strerror} → --outputs, or a place, that the step can write"
        ) from error


def _take(value: str, target: Path) -> Path:
    """Fetch a document to a local file, and check its digest where the value names one."""
    place, _, digest = value.partition(DIGEST_MARK)
    if place.startswith("s3://"):
        from .storage import S3Location, S3Store

        data = S3Store().read(S3Location.parse(place))
    else:
        data = _read(Path(place), "document")
    found = hashlib.sha256(data).hexdigest()
    if digest and found != digest:
        from .storage.errors import DamagedError

        raise DamagedError(
            f"{place}: not what the step before wrote: SHA-256 {found[:12]}…, not {digest[:12]}…"
            " → see who wrote it since, and start a new run"
        )
    target.write_bytes(data)
    return target


def _put(artifact: Any, place: str, config: str | None) -> str | None:
    """Write what a step put out to its place; where that is on S3, returns its URI with its digest."""
    path = Path(artifact.path)
    # Metrics are not a file but what was logged.
    data = path.read_bytes() if path.exists() else json.dumps(artifact.metadata).encode()
    if place.startswith(STORAGE_SCHEME):
        place = f"{_root(place, config)}/{place.removeprefix(STORAGE_SCHEME)}"
    if not place.startswith("s3://"):
        _write(Path(place), data)
        return None
    from .storage import S3Location, S3NotFoundError, S3Store

    store, location = S3Store(), S3Location.parse(place)
    try:
        stands = store.read(location) == data  # the step itself has stored it, mostly
    except S3NotFoundError:
        stands = False
    if not stands:
        store.write(location, data, "application/json")
    return f"{location}{DIGEST_MARK}{hashlib.sha256(data).hexdigest()}"


def _root(place: str, config: str | None) -> str:
    """The `storage.uri` of the step's config."""
    if config is None:
        raise UserError(f"{place}: the step has no --config that says where storage is → an s3:// URI or a file")
    from .config.identity import identity

    return identity(config).root.rstrip("/")

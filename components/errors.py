"""What can go wrong outside our code, by exit code: one line that names the thing, the cause and the fix."""

from enum import IntEnum


class ExitCode(IntEnum):
    """Exit codes of the command line; fixed, others rely on them."""

    POSITIVE = 0
    NEGATIVE = 1
    USAGE = 2
    UNDECIDED = 3
    OUTSIDE = 4
    INTERRUPTED = 130
    TERMINATED = 143


class ConvergateError(Exception):
    """An error that a user or operator can act upon; its text is one line without a trace."""

    exit_code: ExitCode = ExitCode.NEGATIVE


class UserError(ConvergateError):
    """A wrong config, argument or task: the caller mends it."""

    exit_code = ExitCode.USAGE


class OutsideError(ConvergateError):
    """S3, MLflow or the cluster failed, or refused."""

    exit_code = ExitCode.OUTSIDE


class NotFoundError(ConvergateError):
    """An object, run or checkpoint that was asked for does not exist."""

    exit_code = ExitCode.USAGE


class TerminatedError(BaseException):
    """SIGTERM. No Exception: boto would take one for a lost connection, and try again."""

    exit_code = ExitCode.TERMINATED

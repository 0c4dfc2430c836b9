"""The command as a whole: its commands, and what becomes of what they raise."""

import os
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress

import click
import rich  # noqa: F401  # which some commands need in the midst of their work

from sandai.op.client import OperatorError

from . import _signals
from ._batch import batch
from ._commands import Failure, Finished
from ._doctor import doctor
from ._errors import MEANINGS, Exit, code_of, described
from ._health import desc, ping, probe, queues
from ._output import Output, Unwritable
from ._run import run as run_command

_CODES = "\n".join(f"  {code.value:<4} {meaning}" for code, meaning in MEANINGS.items())


@click.group(
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="\b\nExit codes:\n" + _CODES,
)
@click.version_option(package_name="sandai-op-client")
def root() -> None:
    """
    Hand tasks to operators, and see how they are.

    Every command takes the operator's NAME and VERSION, the client's settings as flags or
    as SANDAI_OPERATOR_* variables, and --json for one JSON document.
    """


for _command in (run_command, batch, desc, ping, probe, queues, doctor):
    root.add_command(_command)


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    arguments = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    # Whatever a command prints: before its flags are parsed, errors must know.
    output = Output(as_json="--json" in arguments)
    _signals.catch()
    closed = _open_what_is_closed()
    if "stdout" in closed:
        output.note("Error: the standard output is closed", colour="red")
        return Exit.UNWRITABLE
    stdout, code = sys.stdout, Exit.CLOSED_PIPE
    try:
        return _run(arguments, output)
    except BrokenPipeError:
        pass
    except Unwritable as error:
        code = Exit.UNWRITABLE
        with suppress(Unwritable, BrokenPipeError):
            output.note(f"Error: the output cannot be written: {error.__cause__}", colour="red")
    except SystemExit:
        if sys.stdout is stdout:
            raise
        # So click tells of a closed pipe, and puts something in its place.
        sys.stdout = stdout
    # The interpreter would flush once more.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return code


def _open_what_is_closed() -> list[str]:
    """Put something in the place of standard streams that are closed; return which those are."""
    closed = [name for name in ("stdin", "stdout", "stderr") if getattr(sys, name) is None]
    for name in closed:
        nothing = os.open(os.devnull, os.O_RDWR)  # for good
        mode = "r" if name == "stdin" else "w"
        setattr(sys, name, os.fdopen(nothing, mode, encoding="utf-8", closefd=False))
    return closed


def _run(arguments: Sequence[str], output: Output) -> int:
    try:
        root.main(list(arguments), prog_name="sandai-op", standalone_mode=False)
        return Exit.OK
    except Finished as finished:
        return finished.code
    except click.exceptions.Exit as done:
        return done.exit_code
    except click.ClickException as error:
        return _usage(error, output)
    except Failure as failure:
        return _failed(failure, output)
    except OperatorError as error:
        return _failed(Failure(error, {}), output)
    except (BrokenPipeError, Unwritable):
        raise
    except (KeyboardInterrupt, click.Abort):
        return _ended(output, Exit.INTERRUPTED, "interrupted")
    except _signals.Terminated:
        return _ended(output, Exit.TERMINATED, "terminated")
    except Exception as error:
        if output.as_json:
            output.document({"error": described(error)})
        traceback.print_exc()
        output.note("sandai-op: this is a bug of the command; please report it")
        return Exit.BUG


def _failed(failure: Failure, output: Output) -> int:
    if output.as_json:
        output.document({**failure.context, "error": described(failure.error)})
    else:
        output.note(f"Error: {failure.said}", colour="red")
    return code_of(failure.error)


def _usage(error: click.ClickException, output: Output) -> int:
    if output.as_json:
        output.document({"error": {"type": "UsageError", "message": error.format_message()}})
        return Exit.USAGE
    context = getattr(error, "ctx", None)
    if context is not None:
        output.note(f"Try '{context.command_path} --help'.")
    output.note(f"Error: {error.format_message()}", colour="red")
    return Exit.USAGE


def _ended(output: Output, code: Exit, how: str) -> int:
    if output.as_json:
        output.document({"error": {"type": how.capitalize(), "message": how}})
    else:
        output.note(how)
    return code

"""What an error is to a caller of the command: a code, a document, a sentence."""

from enum import IntEnum
from typing import Any

import attrs

from sandai.op.client import (
    ClientPoolTimeoutError,
    ConfigurationError,
    InvalidPriorityError,
    InvalidResultFormatError,
    InvalidTaskError,
    InvalidTaskStatusError,
    OperatorConnectionError,
    TaskCancelledError,
    TaskDeadlineExceededError,
    TaskTimeoutError,
)
from sandai.op.models import redact

from ._ledger import LedgerError


class Exit(IntEnum):
    """The codes that the command exits with."""

    OK = 0
    FAILED = 1
    USAGE = 2
    NO_CONNECTION = 3
    TIMEOUT = 4
    NOT_UNDERSTOOD = 5
    CANCELLED = 6
    BUG = 70
    UNWRITABLE = 74
    INTERRUPTED = 130
    CLOSED_PIPE = 141
    TERMINATED = 143


MEANINGS = {
    Exit.OK: "done; healthy",
    Exit.FAILED: "the operator reported a failure; unhealthy; a batch has failed lines",
    Exit.USAGE: "wrong usage or configuration; nothing was sent",
    Exit.NO_CONNECTION: "broker or backend cannot be reached, or refuses",
    Exit.TIMEOUT: "no answer in time",
    Exit.NOT_UNDERSTOOD: "the operator's answer was not understood",
    Exit.CANCELLED: "the task was cancelled",
    Exit.BUG: "a bug in this command",
    Exit.UNWRITABLE: "the output cannot be written, as on a full disk",
    Exit.INTERRUPTED: "interrupted (Ctrl-C)",
    Exit.CLOSED_PIPE: "whoever read the output has gone",
    Exit.TERMINATED: "terminated (SIGTERM)",
}

_CODES: dict[type[Exception] | tuple[type[Exception], ...], Exit] = {
    (ConfigurationError, InvalidPriorityError, InvalidTaskError, LedgerError): Exit.USAGE,
    (OperatorConnectionError, ClientPoolTimeoutError): Exit.NO_CONNECTION,
    (TaskTimeoutError, TaskDeadlineExceededError): Exit.TIMEOUT,
    (InvalidTaskStatusError, InvalidResultFormatError): Exit.NOT_UNDERSTOOD,
    TaskCancelledError: Exit.CANCELLED,
}


def code_of(error: BaseException) -> Exit:
    """Return the code for an error."""
    for kinds, code in _CODES.items():
        if isinstance(error, kinds):
            return code
    return Exit.FAILED


def described(error: BaseException) -> dict[str, Any]:
    """Return an error as a document: ``type``, ``message``, and its fields."""
    kind: type = type(error)
    names = [field.name for field in attrs.fields(kind)] if attrs.has(kind) else []
    told = {"type": type(error).__name__, "message": str(error)}
    return told | {name: redact(getattr(error, name)) for name in names}

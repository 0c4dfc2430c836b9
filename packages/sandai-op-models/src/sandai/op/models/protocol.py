"""
The wire protocol, both ways: what goes into a task, what comes out of a reply.

Nothing here does I/O or knows of threads or loops.
"""

import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NoReturn

from ._errors import (
    ConfigurationError,
    InvalidResultFormatError,
    InvalidTaskError,
    InvalidTaskStatusError,
    OperatorError,
    TaskCancelledError,
    TaskDeadlineExceededError,
    TaskExecutionError,
)
from ._results import OperatorDescription, TaskResult
from ._tasks import DESCRIPTION_TASK_TYPE, PERSISTENT_OUTPUT, PROBE_OPTIONS
from ._text import short, text, type_name

__all__ = [
    "DESCRIPTION_KWARGS",
    "PROBE_OPTIONS",
    "build_kwargs",
    "check_cancel_key",
    "check_task_id",
    "check_timeout",
    "decode_description",
    "decode_reply",
    "describe_error",
    "failure_error",
    "probe_verdict",
    "raise_reported",
    "shown",
    "wait_limit",
]

#: kwargs of a description task.
DESCRIPTION_KWARGS: Mapping[str, Any] = {"task_type": DESCRIPTION_TASK_TYPE}

_UNKNOWN_TYPE = "UnknownError"
_UNKNOWN_MESSAGE = "Unknown error"


def check_timeout(value: object, *, setting: str = "timeout") -> float | None:
    """
    Return a timeout in seconds, or ``None``.

    Longer than Python can wait (``inf`` above all) is without limit. Raises
    :class:`ConfigurationError` unless *value* is ``None`` or a number of at
    least 0.
    """
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigurationError(setting, value, "must be a number of seconds, or None")
    if not value >= 0:  # NaN, too
        raise ConfigurationError(setting, value, "must be at least 0 seconds")
    return None if value > threading.TIMEOUT_MAX else value


def check_cancel_key(value: object) -> str | None:
    """Return a cancel key, ``None`` for an empty one, or raise :class:`InvalidTaskError`."""
    if not value:
        return None
    if not isinstance(value, str):
        raise InvalidTaskError("cancel_key", f"a string was expected, not {type_name(value)}")
    return value


def check_task_id(value: object) -> str:
    """Return a task's id, or raise :class:`InvalidTaskError` for what can be none."""
    if not isinstance(value, str):
        raise InvalidTaskError("task_id", f"a task's id was expected, not {type_name(value)}")
    if not value:
        raise InvalidTaskError("task_id", "must be a task's id, not an empty string")
    if text(value) != value:
        raise InvalidTaskError("task_id", f"{shown(value)} is no text that UTF-8 can encode")
    return value


def check_several(path: str, value: object, expected: str) -> Iterable[Any]:
    """
    Return what several things are given as.

    Raises :class:`InvalidTaskError` at *path* for one alone, which a string is, too:
    *expected* says what was.
    """
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
        raise InvalidTaskError(path, f"a list of {expected} was expected, not {type_name(value)}")
    return value


def wait_limit(timeout: float | None, default: float | None) -> float | None:
    """
    Return how long a call waits, in seconds; ``None`` is without limit.

    A call's own timeout wins, and its 0 means one look. Without one the
    client's holds, and there ``None`` or 0 mean no limit.
    """
    own = check_timeout(timeout)
    if timeout is not None:
        return own
    return default or None


def build_kwargs(
    input_artifacts: Sequence[Mapping[str, Any]],
    options: Mapping[str, Any],
    *,
    deadline: float | None = None,
    cancel_key: str | None = None,
    persistent_output: bool = False,
    tracing: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """
    Return a task's keyword arguments.

    *deadline* is Unix seconds. Raises :class:`InvalidTaskError`, which names
    the path of what has the wrong shape (``input_artifacts[0].uri``).
    """
    kwargs: dict[str, Any] = {
        "meta": {PERSISTENT_OUTPUT: bool(persistent_output)},
        "artifacts": _check_artifacts(input_artifacts),
        "options": _check_object(options, "options"),
    }
    if deadline is not None:
        kwargs["deadline"] = deadline
    if cancel_key := check_cancel_key(cancel_key):
        kwargs["cancel_key"] = cancel_key
    if tracing:
        kwargs["_tracing"] = dict(tracing)
    return kwargs


def _check_artifacts(value: object) -> list[dict[str, Any]]:
    if not isinstance(value, list | tuple):
        raise InvalidTaskError(
            "input_artifacts", f"a list of objects was expected, not {type_name(value)}"
        )
    artifacts = []
    for index, item in enumerate(value):
        path = f"input_artifacts[{index}]"
        artifact = _check_object(item, path)
        for key in ("uri", "slot"):
            if key in artifact and not isinstance(artifact[key], str):
                raise InvalidTaskError(
                    f"{path}.{key}", f"a string was expected, not {type_name(artifact[key])}"
                )
        if artifact.get("meta") is not None:
            _check_object(artifact["meta"], f"{path}.meta")
        artifacts.append(artifact)
    return artifacts


def _check_object(value: object, path: str) -> dict[str, Any]:
    if type(value) is dict:
        given = value
    elif isinstance(value, Mapping):
        try:
            given = dict(value)
        except Exception as error:  # whatever a class of the caller's own does
            reason = f"{type_name(value)} cannot be read ({describe_error(error)})"
            raise InvalidTaskError(path, reason) from error
    else:
        raise InvalidTaskError(path, f"an object was expected, not {type_name(value)}")
    for key in given:
        if not isinstance(key, str):
            raise InvalidTaskError(path, f"the key {shown(key)} is {type_name(key)}, not a string")
    return given


def decode_reply(task_id: str, reply: object) -> TaskResult:
    """
    Return the result in a reply envelope, or raise the error that it tells of.

    Raises :class:`TaskExecutionError`, :class:`TaskDeadlineExceededError`,
    :class:`TaskCancelledError`, :class:`InvalidTaskStatusError` or
    :class:`InvalidResultFormatError`.
    """
    envelope = _successful(task_id, reply)
    artifacts, results = envelope.get("artifacts"), envelope.get("results")
    if artifacts is None:
        artifacts = []
    if results is None:
        results = {}
    if not isinstance(artifacts, list | tuple):
        raise InvalidResultFormatError(
            task_id, reply, f"its artifacts are no list but {type_name(artifacts)}"
        )
    if type(results) is not dict and not isinstance(results, Mapping):
        raise InvalidResultFormatError(
            task_id, reply, f"its results are no object but {type_name(results)}"
        )
    return TaskResult(
        artifacts if type(artifacts) is list else list(artifacts),
        results if type(results) is dict else dict(results),
    )


def decode_description(task_id: str, reply: object) -> OperatorDescription:
    """Return an operator's description; raises as :func:`decode_reply` does."""
    envelope = _successful(task_id, reply)
    return OperatorDescription(
        envelope.get("doc"), envelope.get("options_schema"), envelope.get("results_schema")
    )


def probe_verdict(task_id: str, reply: object) -> tuple[bool, str | None]:
    """
    Return whether a probe's reply is one that an operator gives, and its error.

    An error envelope is a sign of life: ``(True, its message)``.
    """
    try:
        _successful(task_id, reply)
    except (InvalidResultFormatError, InvalidTaskStatusError) as error:
        return False, str(error)
    except OperatorError as error:
        return True, str(error)
    return True, None


def _successful(task_id: str, reply: object) -> Mapping[str, Any]:
    if type(reply) is not dict and not isinstance(reply, Mapping):
        raise InvalidResultFormatError(task_id, reply)
    status = reply.get("status", "unknown")
    if status == "success":
        return reply
    if status == "error":
        raise_reported(task_id, reply.get("error"))
    raise InvalidTaskStatusError(task_id, text(status))


def raise_reported(task_id: str, error: object) -> NoReturn:
    """Raise the typed error for the ``error`` part of a reply, whatever its shape."""
    if not isinstance(error, Mapping):
        raise TaskExecutionError(task_id, text(error) if error else _UNKNOWN_MESSAGE)
    details = error.get("error_details")
    if details is None:
        details = {}
    elif not isinstance(details, dict):
        details = {"raw_error_details": details}
    kind = text(error.get("error_type") or _UNKNOWN_TYPE)
    if kind == "TaskDeadlineExceededError":
        raise TaskDeadlineExceededError(
            task_id, _number(details.get("deadline")), _number(details.get("current_time"))
        )
    if kind == "TaskCancelledError":
        raise TaskCancelledError(task_id, text(details.get("cancel_key") or ""))
    message = error.get("error_message")
    said = "" if message is None else text(message)
    raise TaskExecutionError(task_id, said or _UNKNOWN_MESSAGE, details, kind)


def failure_error(task_id: str, failure: object, traceback: object = None) -> TaskExecutionError:
    """
    Return the error for a Celery task that itself failed.

    *failure* is the ``result`` of a FAILURE document, ``{"exc_type",
    "exc_module", "exc_message"}``, or in an accepted pickle the exception
    itself. Nothing that it names is imported.
    """
    details: dict[str, Any] = {"exception_type": _UNKNOWN_TYPE}
    message = text(failure) if failure else _UNKNOWN_MESSAGE
    if isinstance(failure, BaseException):
        details["exception_type"] = type(failure).__name__
        details["exception_module"] = type(failure).__module__
        message = text(failure) or details["exception_type"]
    if isinstance(failure, Mapping):
        details["exception_type"] = text(failure.get("exc_type") or _UNKNOWN_TYPE)
        if failure.get("exc_module"):
            details["exception_module"] = text(failure["exc_module"])
        said = failure.get("exc_message")
        parts = said if isinstance(said, list | tuple) else [said]
        message = ", ".join(text(part) for part in parts if part is not None)
        message = message or details["exception_type"]
    if isinstance(traceback, str) and traceback:
        details["traceback"] = traceback
    return TaskExecutionError(task_id, message, details, details["exception_type"])


def describe_error(error: BaseException) -> str:
    """Return the class and the first 200 characters of what an error says, if it can say it."""
    said = short(error)
    return f"{type_name(error)}: {said}" if said else type_name(error)


def shown(value: object) -> str:
    """Return the first 200 characters of a value's ``repr``, if it has one."""
    return short(value, repr)


def _number(value: object) -> float:
    try:
        return float(value) if isinstance(value, int | float) else 0.0
    except OverflowError:  # JSON's integers have no bounds
        return 0.0

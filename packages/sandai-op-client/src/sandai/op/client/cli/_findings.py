"""What a check found: how it stands, what is so, and what to do about it."""

import threading
from collections.abc import Callable
from enum import StrEnum
from typing import Any, TypeVar

from attrs import frozen

T = TypeVar("T")


class State(StrEnum):
    """How a thing stands."""

    OK = "ok"
    #: It works, and may not for long or not as well as it could.
    WARNING = "warning"
    FAILED = "failed"
    #: It could not be checked.
    UNKNOWN = "unknown"


@frozen
class Finding:
    """One line of the doctor's."""

    subject: str
    state: State
    said: str
    #: What to do, where there is something.
    advice: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        return {
            "subject": self.subject,
            "state": self.state.value,
            "said": self.said,
            "advice": self.advice,
        }


def ok(subject: str, said: str) -> Finding:
    """All is well."""
    return Finding(subject, State.OK, said)


def warning(subject: str, said: str, advice: str) -> Finding:
    """It works for now."""
    return Finding(subject, State.WARNING, said, advice)


def failed(subject: str, said: str, advice: str | None = None) -> Finding:
    """It does not work."""
    return Finding(subject, State.FAILED, said, advice)


def unknown(subject: str, said: str, advice: str | None = None) -> Finding:
    """It could not be checked."""
    return Finding(subject, State.UNKNOWN, said, advice)


def within(seconds: float, call: Callable[[], T]) -> T:
    """
    Return what *call* returns, or raise what it raises, or :class:`TimeoutError`.

    In a thread, which is left alone when it is late: a system's resolver knows no timeout.
    """
    done: list[T] = []
    failures: list[Exception] = []

    def work() -> None:
        try:
            done.append(call())
        except Exception as error:
            failures.append(error)

    thread = threading.Thread(target=work, name="sandai-op-check", daemon=True)
    thread.start()
    thread.join(seconds)
    if failures:
        raise failures[0]
    if not done:
        raise TimeoutError
    return done[0]

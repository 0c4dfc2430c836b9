"""The two ways in which a command is told to end; the second time it ends where it stands."""

import signal
from types import FrameType
from typing import NoReturn


class Terminated(BaseException):
    """A SIGTERM came."""


def catch() -> None:
    """Have the first SIGTERM raise :class:`Terminated`, as Ctrl-C raises KeyboardInterrupt."""
    signal.signal(signal.SIGTERM, _terminate)


def give_way() -> None:
    """Have whatever signal comes now end the process."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _terminate(signum: int, frame: FrameType | None) -> NoReturn:
    raise Terminated

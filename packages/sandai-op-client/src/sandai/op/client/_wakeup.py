"""A pipe that wakes a thread from its selector."""

import os


class Wakeup:
    """
    ``set()`` makes the descriptor readable, ``clear()`` reads it empty.

    A pipe, not a socket pair: dropped in a forked child or at the interpreter's
    exit it is closed without a ``ResourceWarning``.
    """

    _receiver = _sender = -1  # no pipe to be had: nothing to close

    def __init__(self) -> None:
        self._receiver, self._sender = os.pipe()
        os.set_blocking(self._receiver, False)
        os.set_blocking(self._sender, False)

    def fileno(self) -> int:
        """Return the descriptor to wait for."""
        return self._receiver

    def set(self) -> None:
        """Wake whoever waits; never blocks."""
        try:
            os.write(self._sender, b"\0")
        except BlockingIOError:
            return  # it has been woken often enough already

    def clear(self) -> None:
        """Forget that it was woken."""
        try:
            os.read(self._receiver, 4096)
        except BlockingIOError:
            return

    def __del__(self) -> None:
        if self._receiver >= 0:
            os.close(self._receiver)
            os.close(self._sender)

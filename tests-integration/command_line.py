"""The command ``sandai-op`` in a process of its own: piped, or in a terminal that is looked at."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pexpect
import pyte
from attrs import frozen

from celery_worker import without_celery_variables

COMMAND = [sys.executable, "-W", "error", "-m", "sandai.op.client"]
TIMEOUT = 50.0
ESCAPE = "\x1b"


def environment(url: str | None = None, **more: str) -> dict[str, str]:
    """Return an environment in which the command finds its broker, and no terminal's wishes."""
    found = {
        name: value
        for name, value in without_celery_variables(os.environ).items()
        if not name.startswith("SANDAI_OPERATOR_") and name not in ("NO_COLOR", "COLUMNS", "LINES")
    }
    if url is not None:
        found["SANDAI_OPERATOR_CELERY_BROKER_URL"] = url
    return found | more


@frozen
class Done:
    """What a command did."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """Its one JSON document."""
        assert self.out.count("\n") == 1, self.out + self.err
        return json.loads(self.out)


def sandai_op(*arguments: object, url: str | None = None, **more: str) -> Done:
    """Run the command without a terminal, and wait for it."""
    done = subprocess.run(
        [*COMMAND, *map(str, arguments)],
        env=environment(url, **more),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    return Done(done.returncode, done.stdout, done.stderr)


def started(*arguments: object, url: str | None = None) -> subprocess.Popen[bytes]:
    """Start the command without a terminal."""
    return subprocess.Popen(
        [*COMMAND, *map(str, arguments)],
        env=environment(url),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


class Terminal:
    """A terminal with the command in it, and what a person sees there."""

    def __init__(self, child: Any, columns: int, rows: int) -> None:
        self._child = child
        self._screen = pyte.HistoryScreen(columns, rows, history=1000)
        self._stream = pyte.ByteStream(self._screen)
        self.columns = columns
        #: Everything that was written, escape codes and all.
        self.raw = b""
        #: Every line that was on the screen at any time.
        self.seen: set[str] = set()

    @property
    def lines(self) -> list[str]:
        """What is on the screen now, and what has left it at the top."""
        above = [
            "".join(row[column].data for column in range(self.columns))
            for row in self._screen.history.top
        ]
        return [line.rstrip() for line in (*above, *self._screen.display)]

    @property
    def text(self) -> str:
        """All of that."""
        return "\n".join(line for line in self.lines if line)

    def until(self, condition: Callable[[], object]) -> None:
        """Read until something holds."""
        while not condition():
            try:
                self._feed(self._child.read_nonblocking(65536, timeout=TIMEOUT))
            except pexpect.EOF:
                assert condition(), self.text
                return

    def until_text(self, pattern: str) -> None:
        """Read until a pattern is on the screen."""
        self.until(lambda: re.search(pattern, self.text))

    def type(self, text: str) -> None:
        """Type."""
        self._child.send(text)

    def end(self) -> int:
        """Read to the end; return the exit code, or the negative number of a signal."""
        self._drain()
        self._child.close()
        if self._child.exitstatus is not None:
            return int(self._child.exitstatus)
        return -int(self._child.signalstatus)

    @property
    def cursor_is_shown(self) -> bool:
        """Whether the terminal was left as it was."""
        return not self._screen.cursor.hidden

    def _drain(self) -> None:
        while True:
            try:
                self._feed(self._child.read_nonblocking(65536, timeout=TIMEOUT))
            except pexpect.EOF:
                return

    def _feed(self, data: bytes) -> None:
        self.raw += data
        self._stream.feed(data)
        self.seen.update(self.lines)


@contextmanager
def terminal(
    *arguments: object,
    url: str | None = None,
    columns: int = 100,
    rows: int = 40,
    cwd: Path | None = None,
    **more: str,
) -> Iterator[Terminal]:
    """Run the command in a terminal of that size."""
    command: Sequence[str] = [*COMMAND, *map(str, arguments)]
    variables = environment(url, TERM="xterm-256color", **more)
    child = pexpect.spawn(
        command[0],
        list(command[1:]),
        env=variables,
        dimensions=(rows, columns),
        timeout=TIMEOUT,
        cwd=None if cwd is None else str(cwd),
    )
    try:
        yield Terminal(child, columns, rows)
    finally:
        child.close(force=True)

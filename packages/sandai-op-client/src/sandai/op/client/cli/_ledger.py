"""
What a batch has written down: which lines are done, and which tasks are out.

Two files grow by whole lines. The *output* has one line for each result. The *ledger* has
one for each task, written before the task is sent, and one for each group of results that
have been deleted. Whatever moment a process was killed at, and even in the middle of a
line, the two tell what is left to do. Nothing here does I/O.
"""

import json
import re
from array import array
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

from attrs import define, field, frozen

from sandai.op.models import OperatorError

from ._json import dumps

VERSION = 1
_NO_RESULT = 0
_MOST_UNFORGOTTEN = 10_000


class LedgerError(OperatorError):
    """Files that a batch cannot be resumed from; the text says why, and what to do."""


@frozen
class Header:
    """What a ledger is about: the operator, and the input it was made for."""

    operator: str
    version: str
    #: Bytes, and the SHA-256 of the input file.
    size: int
    sha256: str

    def line(self) -> bytes:
        """Return the ledger's first line."""
        return _line(
            {
                "ledger": VERSION,
                "operator": self.operator,
                "version": self.version,
                "size": self.size,
                "sha256": self.sha256,
            }
        )

    @classmethod
    def parse(cls, line: bytes) -> "Header":
        """Read a ledger's first line; raises :class:`LedgerError`."""
        try:
            told = json.loads(line)
            if told["ledger"] == VERSION:
                texts = (str(told["operator"]), str(told["version"]))
                return cls(*texts, int(told["size"]), str(told["sha256"]))
        except (ValueError, KeyError, TypeError):
            pass
        raise LedgerError("the ledger's first line is not one that this version writes")


@frozen
class Sent:
    """A task that went out, or was about to: its line, which attempt, its id, Unix seconds."""

    line: int
    attempt: int
    task_id: str
    time: float

    def text(self) -> bytes:
        """Return the ledger's line."""
        return _line(["sent", self.line, self.attempt, self.task_id, self.time])


def forgot_line(offset: int) -> bytes:
    """Return the ledger's line that the results in the output's first *offset* bytes are gone."""
    return _line(["forgot", offset])


def result_line(
    line: int, attempt: int, task_id: str | None, success: bool, rest: dict[str, Any]
) -> bytes:
    """Return the output's line of a result; the first fields are those that are read again."""
    known = {"line": line, "attempt": attempt, "task_id": task_id, "success": success}
    return _line({**known, **rest})


def whole_lines(data: bytes) -> int:
    """Return how many bytes of a file's end are whole lines; what follows was torn."""
    return data.rfind(b"\n") + 1


# As `result_line` writes them: a result may be large, and need not be parsed to be counted.
_RESULT = re.compile(
    rb'\{"line": (?P<line>\d+), "attempt": (?P<attempt>\d+), '
    rb'"task_id": (?P<id>null|"(?:[^"\\]|\\.)*"), "success": (?P<success>true|false)[,}]'
)


@define
class Account:
    """
    Which lines of the input have a result, and which have a task that is out.

    Three bytes for each line, whatever its result is.
    """

    #: For each line the attempt whose result was recorded last; 0 is none.
    _recorded: "array[int]" = field(factory=lambda: array("H"), init=False)
    _failed: bytearray = field(factory=bytearray, init=False)
    #: Line -> its task that has no result yet.
    pending: dict[int, Sent] = field(factory=dict, init=False)
    #: Tasks whose results are recorded and may still be stored; of many, the last ones.
    unforgotten: deque[str] = field(factory=lambda: deque(maxlen=_MOST_UNFORGOTTEN), init=False)
    #: Lines with a result, and those of them with a failure.
    done: int = field(default=0, init=False)
    failures: int = field(default=0, init=False)
    #: Results in the output that a later one of the same line replaces.
    replaced: int = field(default=0, init=False)

    def attempts(self, line: int) -> int:
        """Return how many attempts of a line have a result."""
        return self._recorded[line - 1] if line <= len(self._recorded) else _NO_RESULT

    def has_failed(self, line: int) -> bool:
        """Return whether a line's last result is a failure."""
        return line <= len(self._failed) and bool(self._failed[line - 1])

    def wants(self, line: int, *, retry_failed: bool) -> bool:
        """Return whether a line is to be done, now."""
        if line in self.pending or not self.attempts(line):
            return True
        return retry_failed and self.has_failed(line)

    def record(self, line: int, attempt: int, success: bool) -> None:
        """Note that a result has been recorded."""
        if (missing := line - len(self._recorded)) > 0:
            self._recorded.extend([0] * missing)
            self._failed.extend(bytes(missing))
        if self._recorded[line - 1]:
            self.replaced += 1
            self.failures -= self._failed[line - 1]
        else:
            self.done += 1
        self._recorded[line - 1] = min(attempt, 0xFFFF)
        self._failed[line - 1] = not success
        self.failures += not success
        sent = self.pending.get(line)
        if sent is not None and sent.attempt <= attempt:
            del self.pending[line]

    def read_output(self, lines: Iterable[bytes], forgotten: int) -> None:
        """
        Take the output's lines.

        *forgotten* are the bytes at its beginning whose results are deleted already.
        Raises :class:`LedgerError`.
        """
        offset = 0
        for number, line in enumerate(lines, 1):
            match = _RESULT.match(line)
            if match is None or match["line"] == b"0" or match["attempt"] == b"0":
                raise LedgerError(f"line {number} of the output is not one that a batch writes")
            self.record(int(match["line"]), int(match["attempt"]), match["success"] == b"true")
            if offset >= forgotten and match["id"] != b"null":
                self.unforgotten.append(json.loads(match["id"]))
            offset += len(line)

    def read_ledger(self, records: Iterable["Sent | int"]) -> None:
        """Take the ledger's lines, after the output's."""
        for record in records:
            if isinstance(record, Sent) and record.attempt > self.attempts(record.line):
                self.pending[record.line] = record

    def replaces(self, line: bytes) -> bool:
        """Return whether a line of the output is the last word on its line of the input."""
        match = _RESULT.match(line)
        assert match is not None
        return int(match["attempt"]) == self.attempts(int(match["line"]))


def records(lines: Iterable[bytes]) -> Iterator[Sent | int]:
    """
    Yield what a ledger's lines after the first say: tasks, and offsets of what was forgotten.

    Raises :class:`LedgerError`.
    """
    for number, line in enumerate(lines, 2):
        try:
            match json.loads(line):
                case ["sent", int(which), int(attempt), str(task_id), int(time) | float(time)]:
                    if which > 0 and attempt > 0:
                        yield Sent(which, attempt, task_id, float(time))
                        continue
                case ["forgot", int(offset)]:
                    yield offset
                    continue
        except ValueError:
            pass
        raise LedgerError(f"line {number} of the ledger is damaged")


def last_forgotten(found: Iterable[Sent | int]) -> int:
    """Return how many bytes of the output are those of results that have been deleted."""
    offset = 0
    for record in found:
        if not isinstance(record, Sent):
            offset = record
    return offset


def _line(value: object) -> bytes:
    return dumps(value).encode() + b"\n"

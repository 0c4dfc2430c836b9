"""A batch's files: opened, locked, repaired, written to and brought to the disk."""

import fcntl
import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

from attrs import frozen

from . import _ledger
from ._ledger import Account, Header, LedgerError, Sent

_CHUNK = 1 << 20


class Journal:
    """
    Write results, and tasks before they are sent, so that a killed process loses neither.

    What has been written is the kernel's: it is there when the process is killed.
    :meth:`sync` brings it to the disk: it is there when the machine fails.
    """

    def __init__(self, output: int, ledger: int | None, account: Account, size: int) -> None:
        self._output = output
        self._ledger = ledger
        self._size = size
        self._closed = False
        self.account = account

    def send(self, line: int, task_id: str) -> Sent:
        """Note that a line's task is about to be sent."""
        sent = Sent(line, self.account.attempts(line) + 1, task_id, time.time())
        if self._ledger is not None:
            _write(self._ledger, sent.text())
        return sent

    def record(self, line: int, attempt: int, success: bool, text: bytes) -> None:
        """Write a result."""
        _write(self._output, text)
        self._size += len(text)
        self.account.record(line, attempt, success)

    def sync(self) -> None:
        """Bring to the disk what has been written."""
        if self._ledger is not None:
            os.fsync(self._output)
            os.fsync(self._ledger)

    def forgot(self) -> None:
        """Note that the results recorded so far have been deleted where they were stored."""
        if self._ledger is not None:
            _write(self._ledger, _ledger.forgot_line(self._size))

    def close(self) -> None:
        """Close the files; a second call does nothing."""
        if not self._closed:
            self._closed = True
            os.close(self._output)
            if self._ledger is not None:
                os.close(self._ledger)


@frozen
class Files:
    """Where a batch writes."""

    output: Path
    ledger: Path

    def begin(self, header: Header, *, force: bool) -> Journal:
        """
        Begin a batch.

        Raises :class:`LedgerError` when there are files of another one and they are not to be
        overwritten, and :class:`OSError`.
        """
        if not force:
            for path in (self.output, self.ledger):
                if path.exists() and path.stat().st_size:
                    raise LedgerError(
                        f"{path} exists: go on with --resume, start over with --force, "
                        "or name another file"
                    )
        with ExitStack() as stack:
            # The ledger first: without it nobody takes the old output for this batch's.
            ledger = _opened(self.ledger, stack)
            os.ftruncate(ledger, 0)
            output = _opened(self.output, stack)
            os.ftruncate(output, 0)
            _write(ledger, header.line())
            _sync_folders(self.output, self.ledger)
            stack.pop_all()
        return Journal(output, ledger, Account(), 0)

    def resume(self, header: Header) -> Journal:
        """
        Go on with a batch; without any files, begin it.

        Raises :class:`LedgerError` when the files are no batch's, another one's, or in use,
        and :class:`OSError`.
        """
        if not self.ledger.exists() or not self.ledger.stat().st_size:
            if self.output.exists() and self.output.stat().st_size:
                raise LedgerError(
                    f"there is no ledger {self.ledger} beside {self.output}: "
                    "it cannot be resumed, only started over with --force"
                )
            return self.begin(header, force=True)
        with ExitStack() as stack:
            ledger = _opened(self.ledger, stack)
            self._check(header)  # before anything is cut off: it may be no ledger at all
            if not _repair(ledger):
                # Killed before its first line was whole: nothing was sent.
                _write(ledger, header.line())
            output = _opened(self.output, stack)
            account = self._account()
            journal = Journal(output, ledger, account, _repair(output))
            stack.pop_all()
        return journal

    def tidy(self, journal: Journal) -> None:
        """
        Leave one line for each line of the input in the output of a batch that is done.

        The file is replaced in one step.
        """
        if not journal.account.replaced:
            return
        output = self.output.resolve()  # not a link to it
        rewritten = output.with_name(f"{output.name}.ledger.tmp")
        with output.open("rb") as old, rewritten.open("wb") as new:
            new.writelines(line for line in old if journal.account.replaces(line))
            new.flush()
            os.fsync(new.fileno())
            size = new.tell()
        shutil.copymode(output, rewritten)
        rewritten.replace(output)
        _sync_folders(output)
        journal.close()
        with self.ledger.open("ab") as ledger:
            ledger.write(_ledger.forgot_line(size))

    def _check(self, header: Header) -> None:
        with self.ledger.open("rb") as ledger:
            line = ledger.readline(_CHUNK)
        if header.line().startswith(line) and not line.endswith(b"\n"):
            return  # torn, and that of this batch as far as it goes
        found = Header.parse(line)
        if (found.operator, found.version) != (header.operator, header.version):
            raise LedgerError(
                f"{self.ledger} is of a batch for {found.operator} {found.version}, "
                f"not for {header.operator} {header.version}"
            )
        if found != header:
            raise LedgerError(
                f"the input is not the one that {self.ledger} was written for "
                f"({found.size} bytes then, {header.size} now): a batch is resumed with the "
                "same file, or started over with --force"
            )

    def _account(self) -> Account:
        account = Account()
        forgotten = _ledger.last_forgotten(self._records())
        with self.output.open("rb") as output:
            # What is torn is cut off next.
            whole = (line for line in output if line.endswith(b"\n"))
            account.read_output(whole, forgotten)
        account.read_ledger(self._records())
        return account

    def _records(self) -> Iterator[Sent | int]:
        with self.ledger.open("rb") as ledger:
            ledger.readline()
            yield from _ledger.records(ledger)


def to_stdout() -> Journal:
    """Return a journal whose output is the standard output: nothing can be resumed."""
    # A descriptor of our own, which is closed like a file's.
    return Journal(os.dup(sys.stdout.fileno()), None, Account(), 0)


def without_ledger(output: Path, *, force: bool) -> Journal:
    """Return a journal for an input that cannot be read again; raises as :meth:`Files.begin`."""
    if output.exists() and not output.is_file():  # a pipe, a device
        return Journal(os.open(output, os.O_WRONLY | os.O_CLOEXEC), None, Account(), 0)
    if not force and output.exists() and output.stat().st_size:
        raise LedgerError(f"{output} exists: overwrite it with --force, or name another file")
    with ExitStack() as stack:
        opened = _opened(output, stack)
        os.ftruncate(opened, 0)
        stack.pop_all()
    return Journal(opened, None, Account(), 0)


def _opened(path: Path, stack: ExitStack) -> int:
    opened = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
    stack.callback(os.close, opened)
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise LedgerError(f"{path} is in use: another batch writes to it") from error
    except OSError:
        pass  # not every file system has locks
    return opened


def _repair(opened: int) -> int:
    """Cut off what was torn at a file's end; return its size."""
    size = os.fstat(opened).st_size
    end = size
    while end:
        start = max(0, end - _CHUNK)
        if whole := _ledger.whole_lines(os.pread(opened, end - start, start)):
            end = start + whole
            break
        end = start
    if end != size:
        os.ftruncate(opened, end)
    return end


def _write(opened: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(opened, view) :]


def _sync_folders(*paths: Path) -> None:
    for folder in {path.absolute().parent for path in paths}:
        # Not every file system can.
        with suppress(OSError):
            opened = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(opened)
            finally:
                os.close(opened)

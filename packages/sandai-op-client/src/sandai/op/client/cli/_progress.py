"""How a batch is getting on: a bar on a terminal, else a line now and then."""

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from attrs import define, frozen

from ._ledger import Account
from ._output import in_colour, width_of

#: Seconds between two lines where there is no terminal.
EVERY = 10.0
_REFRESHED = 0.1
#: Columns that are left free at the end of a line, and that a bar has.
_SPARE, _SHORTEST_BAR = 4, 10


@frozen
class Count:
    """A batch at one moment; ``total`` is unknown for an input that is no file."""

    done: int
    failures: int
    total: int | None
    #: Of this run alone: results, and seconds.
    recent: int
    seconds: float

    @property
    def rate(self) -> float:
        """Results a second, in this run."""
        return self.recent / self.seconds if self.seconds > 0 else 0.0

    @property
    def left(self) -> float | None:
        """Seconds until all is done, at this rate; ``None`` if unknown."""
        if self.total is None or not self.recent:
            return None
        return max(0, self.total - self.done) / self.rate

    def summary(self) -> str:
        """Say how it ended."""
        total = "" if self.total is None else f" of {self.total}"
        return f"{self.done}{total} lines have a result, {self.failures} of them a failure"

    def sentence(self) -> str:
        """Say it in a line."""
        total = "" if self.total is None else f"/{self.total}"
        left = "" if self.left is None else f", {clock(self.left)} left"
        return f"{self.done}{total} done, {self.failures} failed, {self.rate:.0f}/s{left}"


def clock(seconds: float) -> str:
    """Return hours, minutes and seconds."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


@define
class Meter:
    """Count a run."""

    account: Account
    total: int | None
    _began: float
    _before: int

    @classmethod
    def of(cls, account: Account, total: int | None) -> "Meter":
        """Begin to count."""
        return cls(account, total, time.monotonic(), account.done + account.replaced)

    def count(self) -> Count:
        """Return how far it is."""
        account = self.account
        recent = account.done + account.replaced - self._before
        seconds = time.monotonic() - self._began
        return Count(account.done, account.failures, self.total, recent, seconds)


@contextmanager
def shown(meter: Meter, *, quiet: bool) -> Iterator[Callable[[Exception | None], None]]:
    """Show a batch's progress on the standard error; yields what is called after each result."""
    if quiet:
        yield lambda error: None
    elif width_of(sys.stderr) is None or os.environ.get("TERM") == "dumb":
        with _lines(meter) as told:
            yield told
    else:
        with _bar(meter) as told:
            yield told


@contextmanager
def _lines(meter: Meter) -> Iterator[Callable[[Exception | None], None]]:
    ended = threading.Event()
    waited: list[str] = []

    def tell() -> None:
        while not ended.wait(EVERY):
            sys.stderr.write(f"{meter.count().sentence()}\n")
            sys.stderr.flush()

    def told(error: Exception | None) -> None:
        if error is None:
            waited.clear()
        elif not waited:
            waited.append(str(error))
            sys.stderr.write(f"waiting: {error}\n")
            sys.stderr.flush()

    thread = threading.Thread(target=tell, name="sandai-op-progress", daemon=True)
    thread.start()
    try:
        yield told
    finally:
        ended.set()
        thread.join()


@contextmanager
def _bar(meter: Meter) -> Iterator[Callable[[Exception | None], None]]:
    from rich.console import Console
    from rich.progress import Progress, ProgressColumn, Task
    from rich.text import Text

    console = Console(stderr=True, no_color=not in_colour(sys.stderr))
    full = "#" if console.options.ascii_only else "\u2501"

    class Line(ProgressColumn):
        """The bar, where there is room for one, and the sentence."""

        max_refresh = _REFRESHED

        def render(self, task: Task) -> Text:
            waiting: str | None = task.fields["waiting"]
            count = meter.count()
            said = count.sentence() if waiting is None else f"waiting: {waiting}"
            # A line that is full would be broken by a Ctrl-C, which shows as "^C".
            room = console.width - _SPARE
            line = Text()
            if count.total and (bar := room - len(said) - 1) >= _SHORTEST_BAR:
                done = bar * min(count.done, count.total) // count.total
                line.append(full * done, "green")
                line.append(full * (bar - done) if full != "#" else "-" * (bar - done), "dim")
                line.append(" ")
            line.append(said)
            line.truncate(room, overflow="ellipsis")
            return line

    with Progress(Line(), console=console) as progress:
        task = progress.add_task("", total=None, waiting=None)
        due = 0.0

        def told(error: Exception | None) -> None:
            nonlocal due
            # Ten thousand results a second need not all be told.
            now = time.monotonic()
            if error is None and now < due:
                return
            progress.update(task, waiting=None if error is None else str(error))
            due = 0.0 if error is not None else now + _REFRESHED

        yield told
        progress.update(task, waiting=None)

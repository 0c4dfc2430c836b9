"""``sandai-op batch``: a file of tasks in, a file of results out."""

import sys
from contextlib import ExitStack, closing
from pathlib import Path
from typing import IO, Any

import click
from attrs import frozen

from sandai.op.client import OperatorClient, OperatorError

from ._batch_run import BatchRun, Plan, Stopped
from ._commands import Finished, Target, operator_command
from ._errors import Exit, code_of, described
from ._journal import Files, Journal, to_stdout, without_ledger
from ._ledger import Header
from ._output import Output
from ._progress import Count, Meter, shown
from ._settings import Seconds
from ._signals import Terminated, give_way
from ._source import Survey, wanted_lines

STANDARD = "-"
_CODES = {
    "interrupted": Exit.INTERRUPTED,
    "terminated": Exit.TERMINATED,
}


@operator_command
@click.argument("tasks", metavar="TASKS.jsonl")
@click.option(
    "--output", "-o", "results", required=True, metavar="FILE", help="Results, as JSON lines."
)
@click.option("--resume", is_flag=True, help="Go on where an earlier run ended, however it did.")
@click.option("--retry-failed", is_flag=True, help="With --resume: do failed lines again.")
@click.option("--force", is_flag=True, help="Start over, and overwrite what there is.")
@click.option(
    "--max-in-flight",
    type=click.IntRange(min=1),
    default=256,
    show_default=True,
    help="Most tasks that are out at a time.",
)
@click.option(
    "--patience",
    type=Seconds(min=0),
    default=60.0,
    show_default=True,
    help="Seconds to wait for a broker that is away, before the batch stops.",
)
@click.option("--ledger", metavar="FILE", help="What is written down to resume; FILE.ledger.")
@click.option("--quiet", "-q", is_flag=True, help="Show no progress.")
def batch(
    target: Target,
    output: Output,
    tasks: str,
    results: str,
    resume: bool,
    retry_failed: bool,
    force: bool,
    max_in_flight: int,
    patience: float,
    ledger: str | None,
    quiet: bool,
) -> None:
    """
    Hand over a file of tasks, and write one of results.

    The file may be of any size. Each line of TASKS.jsonl is
    {"artifacts": [{"uri": …, "slot": …}], "options": {…}}, with an "id" of your own if you
    like. Each line of the output has the number of its line and its result, or its error, in
    the order in which they come. "-" is the standard input or output.

    A run that was ended, by whatever, goes on with --resume: nothing is lost, and what has
    been sent is not sent again.
    """
    if retry_failed and not resume:
        raise click.UsageError("--retry-failed goes with --resume")
    if resume and force:
        raise click.UsageError("--resume goes on, and --force starts over: use one of them")
    if resume and not (_is_file(tasks) and _is_file(results)):
        raise click.UsageError("--resume needs files: what streams is read and written only once")
    forget = target.config().auto_forget_result
    with ExitStack() as stack:
        try:
            source = sys.stdin.buffer
            if tasks != STANDARD:
                source = stack.enter_context(Path(tasks).open("rb"))
            ways = _Ways.open(target, tasks, results, ledger, resume=resume, force=force)
        except OSError as error:
            raise click.UsageError(f"{error.filename or results}: {error.strerror}") from error
        stack.enter_context(closing(ways.journal))
        client = stack.enter_context(target.client(auto_forget_result=False))
        plan = Plan(
            max_in_flight,
            retry_failed,
            patience,
            taken_once=client._transport.broker.takes_once,
            kept=not client.result_backend.startswith("rpc:"),
            forget=forget,
        )
        _perform(client, source, ways, plan, output, quiet=quiet or output.as_json)


def _is_file(name: str) -> bool:
    """Return whether it is, or can become, a file that can be read again."""
    return name != STANDARD and (Path(name).is_file() or not Path(name).exists())


def _same(one: Path, other: Path) -> bool:
    """Return whether two names lead to one file, which need not be there yet."""
    if one.exists() and other.exists():
        return one.samefile(other)
    return one.resolve() == other.resolve()


@frozen
class _Ways:
    """Where the results go to, and what is known of where the tasks come from."""

    journal: Journal
    #: The output; ``None`` for the standard output.
    path: Path | None
    #: Lines of the input, and where to resume from, if these are files.
    total: int | None = None
    files: Files | None = None

    @classmethod
    def open(
        cls,
        target: Target,
        tasks: str,
        results: str,
        ledger: str | None,
        *,
        resume: bool,
        force: bool,
    ) -> "_Ways":
        """Open them; raises :class:`LedgerError` and :class:`OSError`."""
        if results == STANDARD:
            return cls(to_stdout(), None)
        path = Path(results)
        if not (_is_file(tasks) and _is_file(results)):
            return cls(without_ledger(path, force=force), path)
        if _same(path, Path(tasks)):
            raise click.UsageError("--output is the file of the tasks: name another one")
        files = Files(path, Path(ledger or f"{results}.ledger"))
        # By what the names lead to: a ledger is written to, and emptied by --force.
        if _same(files.ledger, path) or _same(files.ledger, Path(tasks)):
            raise click.UsageError("--ledger is a file of its own: name another one")
        survey = Survey.of(Path(tasks))
        header = Header(target.name, target.version, survey.size, survey.sha256)
        journal = files.resume(header) if resume else files.begin(header, force=force)
        return cls(journal, path, survey.lines, files)


def _perform(
    client: OperatorClient,
    source: IO[bytes],
    ways: _Ways,
    plan: Plan,
    output: Output,
    *,
    quiet: bool,
) -> None:
    account = ways.journal.account
    meter = Meter.of(account, ways.total)
    ended, cause, code = "done", None, Exit.OK
    try:
        with shown(meter, quiet=quiet) as told:
            BatchRun(client, ways.journal, plan, told).run(wanted_lines(source))
        if ways.files is not None:
            ways.files.tidy(ways.journal)
    except (KeyboardInterrupt, Terminated) as signal:
        give_way()
        ended = "interrupted" if isinstance(signal, KeyboardInterrupt) else "terminated"
        code = _CODES[ended]
    except Stopped as stopped:
        ended, cause = "stopped", stopped.__cause__
        code = Exit.FAILED if cause is None else code_of(cause)
    except OSError as error:
        if isinstance(error, OperatorError | BrokenPipeError):
            raise
        ended, cause, code = "stopped", error, Exit.UNWRITABLE  # a full disk
    _report(ways, meter.count(), output, ended, cause)
    if code is Exit.OK and account.failures:
        code = Exit.FAILED
    if code is not Exit.OK:
        raise Finished(code)


def _report(
    ways: _Ways, count: Count, output: Output, ended: str, cause: BaseException | None
) -> None:
    if output.as_json:
        told: dict[str, Any] = {
            "ended": ended,
            "lines": ways.total,
            "succeeded": count.done - count.failures,
            "failed": count.failures,
            "seconds": round(count.seconds, 3),
            "output": None if ways.path is None else str(ways.path),
        }
        if cause is not None:
            told["error"] = described(cause)
        # The standard output has the results, perhaps.
        output.document(told, beside=ways.path is None)
        return
    if cause is not None:
        output.note(f"Error: {cause}", colour="red")
    output.note(f"{ended}: {count.summary()}", colour="green" if ended == "done" else "yellow")
    if ended != "done":
        if ways.files is not None:
            output.note("What has been sent goes on. The same command with --resume goes on here.")
        else:
            output.note("It cannot be resumed: that needs files.")
    elif count.failures and ways.files is not None:
        output.note("The failed lines are done again with --resume --retry-failed.")

"""``sandai-op desc``, ``ping``, ``probe`` and ``queues``."""

import time

import attrs
import click

from sandai.op.client import ClientPoolTimeoutError, OperatorClient
from sandai.op.transport import TransportError

from ._commands import Failure, Finished, Target, operator_command
from ._errors import Exit
from ._output import Output
from ._settings import Seconds

_PATIENCE = 30.0
#: Where no timeout is given, or 0: a variable says that for tasks.
_PROBE = 10.0


@operator_command
def desc(target: Target, output: Output) -> None:
    """
    Ask an operator what it does.

    And for the schemas of its options and results. Waits for --timeout seconds, 30 unless told.
    """
    timeout = _PATIENCE if target.timeout is None else target.timeout
    with (
        target.client(timeout=timeout) as client,
        output.waiting(f"asking {target.name} {target.version}"),
    ):
        told = client.desc
    if output.as_json:
        output.document({**target.described, **told})
        return
    output.heading(f"{target.name} {target.version}")
    for line in str(told.get("doc") or "(no description)").strip().splitlines():
        output.line(line)
    for name in ("options_schema", "results_schema"):
        if told.get(name):
            output.heading(name, "cyan")
            output.value(told[name])


@operator_command
def ping(target: Target, output: Output) -> None:
    """
    Ask whether a task could be submitted.

    Waits for no worker, and leaves nothing behind. Asks for --timeout seconds, 10 unless told.
    """
    timeout = target.timeout or _PROBE
    with target.client() as client:
        try:
            client._submitter.ping(timeout)
        except TransportError as error:
            failure = error.for_operator(target.name, target.version)
            raise Failure(failure, _answer(target, False)) from error
        except ClientPoolTimeoutError as error:
            raise Failure(error, _answer(target, False)) from error
    if output.as_json:
        output.document(_answer(target, True))
    else:
        output.heading(f"{target.name} {target.version}: a task could be submitted")


def _answer(target: Target, ok: bool) -> dict[str, object]:
    return {**target.described, "ok": ok}


@operator_command
def probe(target: Target, output: Output) -> None:
    """
    Have a worker answer a probe task.

    Exits with 0 if it does, else with 1, and tells which step failed. Waits for --timeout
    seconds, 10 unless told.
    """
    timeout = target.timeout or _PROBE
    with target.client() as client, output.waiting(f"probing {target.name} {target.version}"):
        found = client.probe(timeout)
    healthy = found.submit_ok and found.retrieval_ok and found.response_ok
    if output.as_json:
        output.document(
            {
                **target.described,
                "healthy": healthy,
                "submit_ok": found.submit_ok,
                "retrieval_ok": found.retrieval_ok,
                "response_ok": found.response_ok,
                "task_id": found.task_id,
                "message": found.error,
            }
        )
    else:
        steps = (
            ("submitted", found.submit_ok),
            ("answered", found.retrieval_ok),
            ("understood", found.response_ok),
        )
        verdict, colour = ("healthy", "green") if healthy else ("not healthy", "red")
        output.heading(f"{target.name} {target.version}: {verdict}", colour)
        for step, ok in steps:
            output.item("ok" if ok else "--", step, colour="green" if ok else "red")
            if not ok:
                break
        if found.error:
            output.line(found.error)
    if not healthy:
        raise Finished(Exit.FAILED)


@operator_command
@click.option("--watch", type=Seconds(min=0.1), metavar="SECONDS", help="Again and again.")
def queues(target: Target, output: Output, watch: float | None) -> None:
    """
    Tell how many messages wait in each queue.

    Those that workers have fetched are not among them.
    """
    with target.client() as client:
        while True:
            _tell_depths(target, client, output)
            if watch is None:
                return
            time.sleep(watch)


def _tell_depths(target: Target, client: OperatorClient, output: Output) -> None:
    names, config = client.queue_names, client.config
    patience = target.timeout or _PROBE
    try:
        depths = client._transport.broker.depths(
            list(names.values()),
            acquire_timeout=min(config.pool_acquire_timeout, patience),
            timeout=patience,
        )
    except TransportError as error:
        failure = error.for_operator(target.name, target.version)
        raise Failure(failure, target.described) from error
    by_priority = dict(zip(names, depths, strict=True))
    if output.as_json:
        told = {priority: attrs.asdict(depth) for priority, depth in by_priority.items()}
        output.document({**target.described, "queues": told})
        return
    for priority, depth in by_priority.items():
        waiting = depth.problem if depth.messages is None else str(depth.messages)
        output.line(f"{priority:<9} {waiting}")

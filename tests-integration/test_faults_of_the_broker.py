"""Both clients and a broker that is gone, silent, full, closed to them: submitting ends in time."""

from __future__ import annotations

import re
import socketserver
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
from attrs import frozen

from fault_rig import ACQUIRE, Rig, in_time
from light_operator import LightOperator
from local_redis import HOST
from sandai.op.models import ClientPoolTimeoutError, OperatorConnectionError
from scenarios import ClientView, at_once
from tcp_proxy import Cut, Entry, Way
from watching import connections, eventually


@frozen
class Fault:
    """
    What is done to a broker, how it is undone, and what is said meanwhile.

    `doubtful` says that a call that finds a connection open cannot know what became of its task.
    """

    name: str
    strike: Callable[[Rig], object]
    mend: Callable[[Rig], object]
    said: str
    doubtful: bool = False


def refuse(rig: Rig) -> None:
    """Leave nobody in."""
    rig.broker.entry = Entry.REFUSED
    rig.broker.cut()


def keep_silent(rig: Rig) -> None:
    """Accept and say nothing."""
    rig.broker.entry = Entry.SILENT
    rig.broker.cut(Cut.FIN)


def swallow(rig: Rig) -> None:
    """Swallow what comes, on the connections that are open too."""
    rig.broker.entry = Entry.SILENT
    rig.broker.black_hole()


def kill(rig: Rig) -> None:
    """End; and have everybody know who is connected."""
    rig.server.kill()
    rig.broker.cut()


def want_password(rig: Rig) -> None:
    """Want a password from everybody, those who are connected too."""
    rig.redis.config_set("requirepass", "open-sesame")
    rig.broker.cut()


def no_password(rig: Rig) -> None:
    """Want none."""
    rig.redis.config_set("requirepass", "")


def fill(rig: Rig) -> None:
    """Have no memory left."""
    rig.redis.config_set("maxmemory-policy", "noeviction")
    rig.redis.config_set("maxmemory", "1")


FAULTS = [
    Fault("refused", refuse, lambda rig: rig.broker.heal(), "refused"),
    Fault("silent", keep_silent, lambda rig: rig.broker.heal(), "(?i)time"),
    Fault(
        "frozen",
        lambda rig: rig.server.pause(),
        lambda rig: rig.server.resume(),
        "(?i)time",
        doubtful=True,
    ),
    Fault(
        "swallowed",
        swallow,
        lambda rig: rig.broker.heal(),
        "(?i)time",
        doubtful=True,
    ),
    Fault(
        "killed",
        kill,
        lambda rig: rig.server.start(),
        # The proxy accepts, and finds nobody behind it.
        "(?i)closed|reset|lost",
    ),
    Fault("full", fill, lambda rig: rig.redis.config_set("maxmemory", "0"), "OOM|OutOfMemory"),
    Fault(
        "replica",
        lambda rig: rig.redis.replicaof(HOST, 1),
        lambda rig: rig.redis.replicaof("NO", "ONE"),
        "READONLY|ReadOnly",
    ),
    Fault("NOAUTH", want_password, no_password, "NOAUTH|Authentication"),
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_submitting(rig: Rig, fault: Fault) -> None:
    """Every call says in time why it submits nothing, the next ones too; then all is well."""
    with LightOperator(rig.server.url):
        client = rig.client(io_timeout=0.2)
        assert client.sync([], {"n": 1}) == ([], {"n": 1})
        fault.strike(rig)
        doubted = assert_unavailable(client, fault.said)
        assert bool(doubted) is fault.doubtful
        fault.mend(rig)
        with in_time(1.0):
            assert client.ping()
        assert client.sync([], {"n": 2}) == ([], {"n": 2})
        assert client.batch_sync([([], {"n": n}) for n in range(3)])[2] == ([], {"n": 2})


def assert_unavailable(client: ClientView, said: str) -> list[str]:
    """Check what every call says, one after the other; return the tasks whose fate is unknown."""
    doubted: list[str | None] = []
    calls: list[Callable[[], Any]] = [
        lambda: client.async_call([], {}),
        lambda: client.async_call([], {}),
        lambda: client.sync([], {}),
        client.desc,
    ]
    for call in calls:
        with in_time(), pytest.raises(OperatorConnectionError, match=said) as caught:
            call()
        doubted.append(caught.value.task_id)
    for _ in range(2):
        with in_time():
            submissions = client.batch_submit([([], {}), ([], {})])
        for submission in submissions:
            assert not submission.submitted
            assert isinstance(submission.error, OperatorConnectionError)
            assert re.search(said, str(submission.error))
            doubted.append(submission.task_id)
    with in_time():
        assert client.ping() is False
    with in_time():
        health = client.probe()
    assert not health.submit_ok
    assert re.search(said, str(health.error))
    return [task_id for task_id in doubted if task_id is not None]


WRONG: dict[str, tuple[Callable[[str], str], str]] = {
    "WRONGPASS": (lambda url: url.replace("redis://", "redis://:wrong@"), "WRONGPASS|invalid"),
    "NOAUTH": (lambda url: url, "NOAUTH|Authentication"),
    "database": (
        lambda url: url.replace("redis://", "redis://:right@").replace("/0", "/99"),
        "DB index|out of range|invalid DB",
    ),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_url_that_is_refused(rig: Rig, wrong: str) -> None:
    """A wrong password, none, a database that does not exist: told as the server tells it."""
    change, said = WRONG[wrong]
    rig.redis.config_set("requirepass", "right")
    client = rig.client(broker_url=change(rig.broker.url))
    assert assert_unavailable(client, said) == []
    rig.redis.config_set("requirepass", "")
    assert rig.redis.dbsize() == 0


@pytest.mark.parametrize("how", [Cut.RESET, Cut.FIN])
def test_cut_in_the_middle_of_a_command(rig: Rig, how: Cut) -> None:
    """A submission of which a part was sent is in doubt, at once, and the server has no task."""
    client = rig.client()
    for _ in range(2):
        assert client.ping()
        rig.broker.cut_after(100, Way.REQUESTS, how)
        with in_time(0), pytest.raises(OperatorConnectionError) as caught:
            client.async_call([], {"long": "x" * 1000})
        assert caught.value.task_id is not None
        assert rig.queued() == {}
    handle = client.async_call([], {})
    assert rig.queued() == {handle.task_id: 1}


def test_killed_in_the_middle_of_a_command(rig: Rig) -> None:
    """A server that dies with the command ends the call at once, in doubt; the next one works."""
    client = rig.client(io_timeout=10)
    for _ in range(2):
        assert client.ping()
        rig.server.pause()
        with ThreadPoolExecutor(1) as pool:
            asked = rig.broker.round_trips + 1
            call = pool.submit(client.async_call, [], {})
            eventually(partial(rig.asked, asked), within=2)
            rig.server.kill()
            with in_time(0), pytest.raises(OperatorConnectionError) as caught:
                call.result()
        assert caught.value.task_id is not None
        rig.server.start()
        handle = client.async_call([], {})
        assert rig.queued() == {handle.task_id: 1}


class Loading(socketserver.StreamRequestHandler):
    """A Redis that loads its data: it lets clients connect, and executes nothing."""

    def handle(self) -> None:
        """Answer each command."""
        while head := self.rfile.readline():
            command = [self._word() for _ in range(int(head[1:]))]
            queues = command[0] in (b"LPUSH", b"EVAL")
            self.wfile.write(b"-LOADING Redis is loading\r\n" if queues else b"+OK\r\n")

    def _word(self) -> bytes:
        return self.rfile.read(int(self.rfile.readline()[1:]) + 2)[:-2]


@pytest.mark.parametrize("retries", [0, 1])
def test_a_server_that_is_loading(rig: Rig, retries: int) -> None:
    """What it answers so was not queued: no task is in doubt."""
    with socketserver.ThreadingTCPServer((HOST, 0), Loading) as server:
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        rig.broker.target = (HOST, server.server_address[1])
        client = rig.client(submit_retries=retries)
        for call in (client.async_call, client.sync):
            with pytest.raises(OperatorConnectionError, match="loading") as caught:
                call([], {})
            assert caught.value.task_id is None
        for submission in client.batch_submit([([], {}), ([], {})]):
            assert submission.task_id is None
        client.close()
        server.shutdown()
        serving.join()


def test_restarted_empty(rig: Rig) -> None:
    """A server that came back without its data gets the next task as if nothing had been."""
    client = rig.client()
    for _ in range(3):
        handles = [client.async_call([], {}) for _ in range(3)]
        assert rig.queued() == {handle.task_id: 1 for handle in handles}
        rig.server.restart()
        assert rig.queued() == {}


def test_more_callers_than_connections(rig: Rig) -> None:
    """Of fifty callers and two connections to a frozen server each is told, in time, by whom."""
    client = rig.client(broker_pool_limit=2)
    assert client.ping()
    rig.server.pause()
    with in_time(), at_once(50, lambda n: client.async_call([], {"n": n})) as calls:
        errors = [call.exception() for call in calls]
    rig.server.resume()
    doubted = set()
    for error in errors:
        if isinstance(error, ClientPoolTimeoutError):
            assert (error.pool_name, error.limit, error.timeout) == ("broker", 2, ACQUIRE)
            assert "2" in str(error)
        else:
            assert isinstance(error, OperatorConnectionError)
            doubted.add(error.task_id)
    eventually(lambda: rig.queued() == dict.fromkeys(doubted - {None}, 1), within=2)
    broker = client.statistics()[0].connections
    assert (broker.in_use, broker.waiting) == (0, 0)
    assert client.ping()


def test_connections_that_the_server_closes_when_idle(rig: Rig) -> None:
    """A server that closes what idles for a second costs no call an error."""
    rig.redis.config_set("timeout", "1")
    with LightOperator(rig.server.url):
        client = rig.client()
        assert not client.attach("unknown").ready()
        assert client.sync([], {"n": 1}) == ([], {"n": 1})
        # Gone at the server: the client would look in three seconds, or when it needs one.
        eventually(lambda: connections(rig.redis)["broker"] == 0, within=2.9)
        assert client.sync([], {"n": 2}) == ([], {"n": 2})
        assert not client.attach("unknown").ready()
        assert rig.broker.accepted == 2

"""Redis users with few permissions: the fewest that do, and what is said of one too few."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from conftest import CreateClient, MakeClient
from light_operator import LightOperator
from local_redis import LocalRedis
from sandai.op.models import OperatorConnectionError, OperatorError, TaskTimeoutError
from scenarios import ClientView
from thread_world import ThreadClientView
from watching import eventually, open_redis

CONNECT = ["+client|setname", "+select"]
"""Names a connection; chooses the database, where the URL names another than 0."""
BROKER = ["+lpush", "+lrem", "+multi", "+exec"]
"""Submits; the last three are for ping(), which takes its message out again."""
BACKEND = ["+mget", "+del", "+subscribe", "+unsubscribe", "+ping"]
"""Looks, deletes what was read, is pushed results."""
PLACES = [
    "~high.bench.v1",
    "~normal.bench.v1",
    "~low.bench.v1",
    "~very_low.bench.v1",
    "~celery-task-meta-*",
    "&celery-task-meta-*",
]
"""An operator's four queues; the results, as keys and as channels."""
RETRIES = ["+eval", "+set", "~sandai-op:submitted:*"]
"""What `submit_retries` needs besides: a script, and the markers that it sets."""
DEPTHS = "+llen"
"""Counts the messages in the queues, for inspect() and for a timeout that says what is known."""
COMMANDS = [*CONNECT, *BROKER, *BACKEND]
"""
Everything that a client asks of Redis, 6.2 and 7, besides AUTH and HELLO, which all may call.
Behind Sentinel also ``+role``.
"""


class Guarded:
    """A Redis whose user ``app`` may do what the rules say."""

    def __init__(self, server: LocalRedis, admin: Any) -> None:
        self.server = server
        self.admin = admin
        self.operator_url = server.url.removesuffix("0") + "3"
        self.url = self.operator_url.replace("redis://", "redis://app:pw@")

    def allow(self, *rules: str) -> None:
        """Let the user do this and nothing else, and forget what was refused so far."""
        clean = ["reset", "on", ">pw", "resetchannels"]
        self.admin.execute_command("ACL", "SETUSER", "app", *clean, *rules)
        self.admin.execute_command("ACL", "LOG", "RESET")

    def refused(self) -> list[str]:
        """Return the commands that were refused."""
        return [entry["object"] for entry in self.admin.acl_log()]


@pytest.fixture
def guarded(redis_binary: str) -> Iterator[Guarded]:
    """Run one of each version."""
    with LocalRedis(server=redis_binary) as server, open_redis(server.url) as admin:
        yield Guarded(server, admin)


def everything(client: ClientView) -> Iterator[Callable[[], Any]]:
    """Yield every call once."""
    yield lambda: client.sync([], {"n": 1})
    yield lambda: client.ping(timeout=1.0)
    for priority in ("high", "low", "very_low"):
        yield partial(client.sync, [], {}, priority=priority)
    # More than are looked at where they are subscribed to.
    yield lambda: client.batch_sync_detailed([([], {"n": n}) for n in range(300)])


def use_handle(client: ClientView) -> None:
    """Submit, look, wait and delete."""
    handle = client.async_call([], {"n": 2}, priority="high")
    assert handle.get(timeout=5)["results"] == {"n": 2}
    assert handle.ready()
    assert handle.state() == "SUCCESS"
    handle.forget()


@pytest.mark.parametrize("publish", [True, False], ids=["pushed", "swept"])
def test_the_fewest_permissions(guarded: Guarded, make_client: MakeClient, publish: bool) -> None:
    """With these and no others everything works, and Redis has refused nothing."""
    guarded.allow(*COMMANDS, *PLACES)
    with LightOperator(guarded.operator_url, publish=publish):
        client = make_client(guarded.url, timeout=10)
        assert client.ping()
        assert client.sync([], {"n": 1}) == ([], {"n": 1})
        assert client.desc()["doc"] == "light"
        assert client.probe().response_ok
        results = client.batch_sync_detailed([([], {"n": n}) for n in range(300)])
        assert [result.results for result in results] == [{"n": n} for n in range(300)]
        use_handle(client)
        eventually(lambda: not guarded.admin.pubsub_channels(), within=2)
    assert guarded.refused() == []
    with open_redis(guarded.operator_url) as admin:
        assert admin.dbsize() == 0


def test_submit_retries(guarded: Guarded, make_client: MakeClient) -> None:
    """They need a script and its markers, and say so where these are forbidden."""
    with LightOperator(guarded.operator_url):
        guarded.allow(*COMMANDS, *PLACES, *RETRIES)
        client = make_client(guarded.url, timeout=10, submit_retries=1)
        assert client.sync([], {"n": 1}) == ([], {"n": 1})
        results = client.batch_sync_detailed([([], {"n": n}) for n in range(300)])
        assert [result.results for result in results] == [{"n": n} for n in range(300)]
        assert guarded.refused() == []
        for missing in RETRIES:
            guarded.allow(*COMMANDS, *PLACES, *(rule for rule in RETRIES if rule != missing))
            with pytest.raises(OperatorConnectionError, match="refused"):
                client.async_call([], {})
            assert guarded.refused()
            with open_redis(guarded.operator_url) as admin:
                assert admin.dbsize() == 0


def test_none_too_many(guarded: Guarded, create_client: CreateClient) -> None:
    """Each of the permissions is used: without it something is refused."""
    with LightOperator(guarded.operator_url):
        for rule in [*COMMANDS, *PLACES]:
            guarded.allow(*[other for other in (*COMMANDS, *PLACES) if other != rule])
            with create_client("bench", "v1", broker_url=guarded.url, timeout=1.0) as client:
                for call in everything(ThreadClientView(client)):
                    with suppress(OperatorError):
                        call()
                    if guarded.refused():
                        break
                else:
                    pytest.fail(f"{rule} is not used")


def test_no_lpush(guarded: Guarded, make_client: MakeClient) -> None:
    """Who may not push hears which permission is missing, and that nothing was queued."""
    guarded.allow(*[rule for rule in COMMANDS if rule != "+lpush"], *PLACES)
    client = make_client(guarded.url)
    with pytest.raises(OperatorConnectionError, match=r"'lpush'.*broker_url") as caught:
        client.async_call([], {})
    assert caught.value.task_id is None
    [submission] = client.batch_submit([([], {})])
    assert "'lpush'" in str(submission.error)
    assert client.ping() is False
    assert "'lpush'" in str(client.probe().error)


@pytest.mark.parametrize("missing", ["+subscribe", "&celery-task-meta-*"])
def test_no_subscribe(
    guarded: Guarded, make_client: MakeClient, caplog: pytest.LogCaptureFixture, missing: str
) -> None:
    """Who may not subscribe is polled for, and the log says so once."""
    guarded.allow(*[rule for rule in (*COMMANDS, *PLACES) if rule != missing])
    with LightOperator(guarded.operator_url, delay=0.05):
        client = make_client(guarded.url)
        for n in range(5):
            assert client.sync([], {"n": n}) == ([], {"n": n})
        results = client.batch_sync([([], {"n": n}) for n in range(20)])
        assert results == [([], {"n": n}) for n in range(20)]
    said = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert len(said) == 1
    assert "does not allow push" in said[0]


def test_no_llen(guarded: Guarded, make_client: MakeClient) -> None:
    """Who may not count messages gets timeouts as before, and inspect() says why."""
    for rules, state, depth in (([], "unknown", None), ([DEPTHS], "queued", 2)):
        guarded.allow(*COMMANDS, *PLACES, *rules)
        client = make_client(guarded.url)
        with pytest.raises(TaskTimeoutError) as caught:
            client.sync([], {}, timeout=0.3)
        assert (caught.value.state, caught.value.queue_depth) == (state, depth)
        assert guarded.refused() == ([] if rules else ["llen"])
        seen = client.inspect(timeout=1.0)
        assert seen.queues["normal"].messages == depth
        assert ("'llen'" in str(seen.queues["normal"].problem)) is (not rules)
        assert "permission" in str(seen.workers_problem)
        assert (seen.broker_problem, seen.backend_problem) == (None, None)


def test_no_mget(guarded: Guarded, make_client: MakeClient) -> None:
    """Who may not look is told which permission is missing, by a wait's error itself."""
    guarded.allow(*[rule for rule in COMMANDS if rule != "+mget"], *PLACES)
    client = make_client(guarded.url)
    with pytest.raises(TaskTimeoutError, match=r"'mget'.*result_backend"):
        client.async_call([], {}).get(timeout=0.5)


@pytest.mark.parametrize("push", [True, False], ids=["pushed", "polled"])
@pytest.mark.parametrize("why", ["no permission", "renamed", "MISCONF"])
def test_no_deletion(
    redis_binary: str,
    make_client: MakeClient,
    caplog: pytest.LogCaptureFixture,
    why: str,
    push: bool,
) -> None:
    """Where results cannot be deleted they are read all the same, without a reconnect each time."""
    arguments = ["--rename-command", "DEL", ""] if why == "renamed" else []
    with LocalRedis(*arguments, server=redis_binary) as server, open_redis(server.url) as admin:
        rules = ["~*", "+@all", "&*" if push else "resetchannels"]
        rules += ["-del"] if why == "no permission" else []
        admin.execute_command("ACL", "SETUSER", "app", "on", ">pw", *rules)
        url = server.url.replace("redis://", "redis://app:pw@")
        with LightOperator(server.url):
            client = make_client(url)
            if why == "MISCONF":
                # The operator may write no more than we: its answers are there before.
                submissions = client.batch_submit([([], {"n": n}) for n in range(10)])
                for submission in submissions:
                    assert submission.handle is not None
                    submission.handle.get(timeout=5)
                cannot_save(admin)
                results = client.batch_collect(submissions)
                assert [result.results for result in results] == [{"n": n} for n in range(10)]
                with pytest.raises(OperatorConnectionError, match=r"MISCONF|RDB"):
                    client.async_call([], {})
            else:
                for n in range(10):
                    assert client.sync([], {"n": n}, timeout=5) == ([], {"n": n})
            assert len(admin.keys("celery-task-meta-*")) == 10
            [hub] = client.client.statistics()[1].readers  # type: ignore[attr-defined]  # each view has it
            assert hub.push_connects == (1 if push else 0)
            said = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
            assert len([text for text in said if "delet" in text]) == 1
            assert len(said) == (1 if push else 2)
        admin.config_set("save", "")  # else it would try to save before it ends


def cannot_save(admin: Any) -> None:
    """Have Redis refuse writes, as it does when a snapshot has failed."""
    Path(admin.config_get("dir")["dir"], "dump.rdb", "in the way").mkdir(parents=True)
    admin.config_set("save", "3600 1")
    admin.bgsave()
    eventually(lambda: admin.info("persistence")["rdb_last_bgsave_status"] == "err", within=5)

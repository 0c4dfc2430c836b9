"""A push connection's conversation: what is sent for a change, what an answer means."""

import json
from typing import Any

import pytest
from redis.exceptions import ReadOnlyError, ResponseError

from sandai.op.transport import Changes, Health, PushRefused, PushSession, RedisBackend, resolve
from sandai.op.transport._push import Pushed

META = json.dumps({"status": "SUCCESS", "result": 1}).encode()


def opened(**settings: Any) -> RedisBackend:
    """Return a backend that is not connected."""
    return RedisBackend(resolve("clipper", "v1", env={}, **settings).backend_key)


@pytest.fixture
def session() -> PushSession:
    """Return a conversation that begins at 100 s."""
    return PushSession(opened(), 100.0)


def test_commands_for_changes(session: PushSession) -> None:
    """Unsubscribe, delete, subscribe, and only then look."""
    key = "celery-task-meta-"
    assert session.commands(Changes(["a"], ["b"], ["a", "c"])) == [
        ("UNSUBSCRIBE", f"{key}a"),
        ("DEL", f"{key}b"),
        ("SUBSCRIBE", f"{key}a", f"{key}c"),
        ("MGET", f"{key}a", f"{key}c"),
    ]
    assert session.commands(Changes([], [], ["d"]), look=False) == [("SUBSCRIBE", f"{key}d")]


def test_answers(session: PushSession) -> None:
    """Answers are told apart from what is pushed, and belong to their commands in order."""
    session.commands(Changes([], ["x"], ["a", "b"]))
    session.ping()
    assert session.receive(1, 101.0) == ([], False)
    for channels, task_id in enumerate((b"a", b"b"), 1):
        acknowledged = Pushed([b"subscribe", b"celery-task-meta-" + task_id, channels])
        assert session.receive(acknowledged, 101.0) == ([], True)
    pushed, was_pushed = session.receive(Pushed([b"message", b"celery-task-meta-b", META]), 101.0)
    assert was_pushed
    assert [document.task_id for document in pushed] == ["b"]
    looked_at, was_pushed = session.receive([None, META], 101.0)
    assert not was_pushed
    assert [(document.task_id, document.reply()) for document in looked_at] == [("b", 1)]
    assert session.awaiting
    assert session.receive(b"PONG", 101.0) == ([], False)
    assert not session.awaiting


def test_foreign_bytes_disturb_nobody(session: PushSession) -> None:
    """A document that cannot be read ends its own task's wait; the reader goes on."""
    [document], _ = session.receive(Pushed([b"message", b"celery-task-meta-\xff", b"\x80"]), 1.0)
    assert document.fault is not None


@pytest.mark.parametrize(
    ("said", "for_good"),
    [
        ("NOPERM this user has no permissions to run the 'subscribe' command", True),
        ("unknown command 'SUBSCRIBE'", True),
        ("max number of clients reached", False),
    ],
)
def test_refused(session: PushSession, said: str, for_good: bool) -> None:
    """A refusal says whether it is worth trying again."""
    with pytest.raises(PushRefused) as caught:
        session.receive(ResponseError(said), 1.0)
    assert caught.value.for_good is for_good


READ_ONLY = ReadOnlyError("You can't write against a read only replica.")
REFUSALS = [
    ResponseError("this user has no permissions to run the 'del' command"),
    ResponseError("unknown command `DEL`, with args beginning with: "),
    ResponseError("MISCONF Redis is configured to save RDB snapshots, but cannot"),
    READ_ONLY,
]


@pytest.mark.parametrize("refusal", REFUSALS, ids=["ACL", "renamed", "MISCONF", "READONLY"])
def test_refused_deletion(
    session: PushSession, caplog: pytest.LogCaptureFixture, refusal: ResponseError
) -> None:
    """Whyever nothing may be deleted, results are pushed all the same; the log says so once."""
    for _ in range(2):
        session.commands(Changes(["y"], ["x"], []))
        left = Pushed([b"unsubscribe", b"celery-task-meta-y", 0])
        assert session.receive(left, 1.0) == ([], True)
        assert session.receive(refusal, 1.0) == ([], False)
    assert not session.awaiting
    assert session.deleting() == []
    assert [record.name for record in caplog.records] == ["sandai.op.transport"]


def test_refused_subscription_before_a_deletion(session: PushSession) -> None:
    """An error belongs to the command whose turn it is, not to the deletion behind it."""
    session.commands(Changes([], [], ["a"]), look=False)
    session.commands(Changes([], ["x"], []))
    with pytest.raises(PushRefused):
        session.receive(ResponseError("OOM"), 1.0)
    assert session.deleting() == ["x"]


def test_a_demoted_primary_among_sentinels() -> None:
    """Where Sentinels know another primary, the push connection goes there, deletions too."""
    session = PushSession(
        opened(
            broker_url="sentinel://localhost",
            broker_transport_options={"master_name": "m"},
            result_backend_transport_options={"master_name": "m"},
        ),
        100.0,
    )
    session.commands(Changes([], ["x"], []))
    with pytest.raises(PushRefused) as caught:
        session.receive(READ_ONLY, 101.0)
    assert not caught.value.for_good
    assert session.deleting() == ["x"]


def test_health(session: PushSession) -> None:
    """An idle connection is asked for a sign of life; one that gives none is lost."""
    assert session.health(104.0) is Health.FINE
    assert session.health(106.0) is Health.ASK
    session.ping()
    session.sent(106.0)
    assert session.health(110.0) is Health.FINE
    session.sent(110.0)  # writing into a dead connection keeps it not alive
    assert session.health(112.0) is Health.LOST
    session.receive(b"PONG", 112.0)
    assert session.health(113.0) is Health.FINE


@pytest.mark.parametrize(
    ("prefix", "key"),
    [("p", "p_"), ("p:", "p:"), ("p_", "p_"), ("p-", "p-"), ("p.", "p."), ("", "")],
)
def test_result_keys(prefix: str, key: str) -> None:
    """Keys have the prefix as Celery's result backends join it."""
    backend = opened(result_backend_transport_options={"global_keyprefix": prefix})
    assert backend.key("id") == f"{key}celery-task-meta-id"
    assert backend.task_id(backend.key("id").encode()) == "id"


@pytest.mark.parametrize(
    ("limit", "concurrency", "commands", "push"),
    [(8, 4, 4, 4), (8, 20, 7, 1), (2, 4, 1, 1), (1, 4, 1, 0), (3, 1, 1, 2)],
)
def test_budgets(limit: int, concurrency: int, commands: int, push: int) -> None:
    """One permit is always kept for push when there are two; together they are the limit."""
    backend = opened(backend_pool_limit=limit, backend_poll_concurrency=concurrency)
    assert (backend.limiter.limit, backend.push_limiter.limit) == (commands, push)
    assert backend.look([], acquire_timeout=0) == []
    backend.delete([], acquire_timeout=0)

"""The fate of every message of a batch: queued, refused, in doubt, or certainly not sent."""

import socket
import threading
from collections.abc import Callable, Iterator

import pytest
from redis.exceptions import OutOfMemoryError, ReadOnlyError

from sandai.op.models import ClientPoolTimeoutError, InvalidTaskError
from sandai.op.transport import (
    RedisBroker,
    RedisConnector,
    TaskBuilder,
    TaskControls,
    TaskMessage,
    TransportError,
    _redis_envelope,
    _redis_push,
    resolve,
)
from sandai.op.transport._redis_push import PushPlan, Rendering, Write

Script = Callable[[list[bytes]], bytes | None]


class ScriptedRedis:
    """Answers each command with what the script returns; ``None`` hangs up."""

    def __init__(self) -> None:
        self.script: Script = lambda command: b"+OK\r\n"
        self.commands: list[list[bytes]] = []
        self.connections = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._open: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    @property
    def url(self) -> str:
        """The address as a client is given it."""
        return f"redis://127.0.0.1:{self.port}/0"

    def hang_up(self) -> None:
        """Hang up on everybody."""
        while self._open:
            try:
                self._open.pop().shutdown(socket.SHUT_RDWR)
            except OSError:
                continue

    def close(self) -> None:
        """Hang up and accept nobody any more."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.hang_up()
        for thread in self._threads:
            thread.join()

    def _accept(self) -> None:
        while True:
            try:
                accepted, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            self._open.append(accepted)
            thread = threading.Thread(target=self._serve, args=(accepted,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, accepted: socket.socket) -> None:
        with accepted, accepted.makefile("rb") as stream:
            while line := stream.readline():
                command = []
                for _ in range(int(line[1:])):
                    size = int(stream.readline()[1:])
                    command.append(stream.read(size + 2)[:-2])
                self.commands.append(command)
                answer = self.script(command)
                if answer is None:
                    return
                try:
                    accepted.sendall(answer)
                except OSError:
                    return


CONFIG = resolve("clipper", "v1", env={}, io_timeout=5.0)
BROKER = RedisBroker(CONFIG.broker_key)
BROKE = TransportError("it broke off", True)


def messages(count: int, priority: str = "normal") -> list[TaskMessage]:
    """Return messages for one queue."""
    builder = TaskBuilder(CONFIG)
    controls = TaskControls(priority)
    return [builder.task(BROKER.messages, "", [], {}, controls) for _ in range(count)]


def planned(*batch: TaskMessage) -> tuple[PushPlan, list[Write]]:
    """Return a plan for messages and its writes."""
    plan = PushPlan(BROKER.connector, rendered(BROKER, *batch).items)
    return plan, list(plan.writes())


def rendered(broker: RedisBroker, *batch: TaskMessage) -> Rendering:
    """Return messages as they go out."""
    rendering = Rendering(broker)
    for message in batch:
        rendering.add(message)
    return rendering


def fates(outcomes: list[object]) -> list[str]:
    """Return a word for each outcome."""
    words = []
    for outcome in outcomes:
        if outcome is None:
            words.append("queued")
        elif isinstance(outcome, TransportError):
            words.append("in doubt" if outcome.maybe_done else "not sent")
        else:
            words.append(type(outcome).__name__)
    return words


@pytest.fixture
def small_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have at most two messages in a write."""
    monkeypatch.setattr(_redis_push, "MESSAGES_PER_WRITE", 2)


def test_neighbours_share_a_command() -> None:
    """Messages for one queue go out in one LPUSH, in their order; another queue has its own."""
    batch = [*messages(2), *messages(1, "high"), *messages(1)]
    _, [write] = planned(*batch)
    assert [(command[0], command[1], len(command) - 2) for command in write.commands] == [
        ("LPUSH", "normal.clipper.v1", 2),
        ("LPUSH", "high.clipper.v1", 1),
        ("LPUSH", "normal.clipper.v1", 1),
    ]
    assert write.positions == [[0, 1], [2], [3]]
    for message, envelope in zip(batch[:2], write.commands[0][2:], strict=True):
        assert isinstance(envelope, bytes)
        assert message.task_id.encode() in envelope


def test_writes_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A write holds a bounded number of messages and, but for a single one, of bytes."""
    batch = messages(7)
    monkeypatch.setattr(_redis_push, "MESSAGES_PER_WRITE", 3)
    assert [len(write.positions[0]) for write in planned(*batch)[1]] == [3, 3, 1]
    size = len(BROKER.renderer.render(batch[0]))
    monkeypatch.setattr(_redis_push, "_BYTES_PER_WRITE", size * 2)
    assert [len(write.positions[0]) for write in planned(*batch)[1]] == [2, 2, 2, 1]
    monkeypatch.setattr(_redis_push, "_BYTES_PER_WRITE", 1)
    assert [len(write.positions[0]) for write in planned(*batch)[1]] == [1] * 7


def test_key_prefix() -> None:
    """The queue's list has the prefix that the operator's transport has."""
    options = {"global_keyprefix": "p:"}
    config = resolve("clipper", "v1", env={}, broker_transport_options=options)
    broker = RedisBroker(config.broker_key)
    [write] = PushPlan(broker.connector, rendered(broker, *messages(1)).items).writes()
    assert write.commands[0][1] == "p:normal.clipper.v1"


def test_all_answered(small_writes: None) -> None:
    """With every reply there, every message is queued."""
    plan, writes = planned(*messages(5))
    for write in writes:
        plan.answered(write, [2] * len(write.commands))
    assert fates(list(plan.finish())) == ["queued"] * 5


def test_error_reply() -> None:
    """An error reply is the certain outcome of its own command's messages alone."""
    plan, [write] = planned(*messages(2), *messages(1, "high"))
    plan.answered(write, [OutOfMemoryError("command not allowed"), 1])
    outcomes = plan.finish()
    assert fates(list(outcomes)) == ["not sent", "not sent", "queued"]
    assert "refused" in str(outcomes[0])


def test_read_only() -> None:
    """A server that is no master any more ends the batch there."""
    plan, [write] = planned(*messages(2))
    with pytest.raises(TransportError) as caught:
        plan.answered(write, [ReadOnlyError("You can't write against a read only replica.")])
    assert caught.value.maybe_done is False
    assert fates(list(plan.finish(caught.value))) == ["not sent"] * 2


def test_broke_off_in_the_middle(small_writes: None) -> None:
    """Answered ones stand, the rest of the write is in doubt, later writes were not sent."""
    plan, writes = planned(*messages(2), *messages(1), *messages(1, "high"), *messages(2))
    plan.answered(writes[0], [2])
    plan.broke_off(writes[1], [1], BROKE)
    outcomes = plan.finish(BROKE)
    assert fates(list(outcomes)) == ["queued"] * 3 + ["in doubt"] + ["not sent"] * 2
    assert str(outcomes[5]) == BROKE.reason


def test_too_large_disturbs_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """A message that is too large has its own error; the others go out."""
    small, large, other = messages(3)
    limit = len(BROKER.renderer.render(small))
    monkeypatch.setattr(_redis_envelope, "MAX_BYTES", limit)
    fat = TaskBuilder(CONFIG).task(BROKER.messages, "", [], {"a": "b" * 99}, TaskControls())
    rendering = rendered(BROKER, small, fat, other)
    plan = PushPlan(BROKER.connector, rendering.items)
    [write] = plan.writes()
    assert write.positions == [[0, 1]]
    plan.answered(write, [2])
    outcomes = rendering.outcomes(plan.finish())
    assert isinstance(outcomes[1], InvalidTaskError)
    assert (outcomes[0], outcomes[2]) == (None, None)
    assert large.task_id


def test_nothing_was_sent() -> None:
    """Without a connection nothing is in doubt."""
    plan, _ = planned(*messages(2))
    error = ClientPoolTimeoutError("broker", 1.0, 1)
    assert plan.finish(error) == [error, error]


# Over a socket.


@pytest.fixture
def scripted_redis() -> Iterator[ScriptedRedis]:
    """Yield a server that a test scripts."""
    server = ScriptedRedis()
    yield server
    server.close()


@pytest.fixture
def broker(scripted_redis: ScriptedRedis) -> Iterator[RedisBroker]:
    """Yield a broker at the scripted server."""
    config = resolve("clipper", "v1", env={}, broker_url=scripted_redis.url, broker_pool_limit=2)
    broker = RedisBroker(config.broker_key)
    yield broker
    broker.close()
    assert broker.statistics().connections.in_use == 0


def pushed(server: ScriptedRedis) -> list[list[bytes]]:
    """Return the LPUSH commands that arrived."""
    return [command for command in server.commands if command[0] == b"LPUSH"]


def test_sent(broker: RedisBroker, scripted_redis: ScriptedRedis) -> None:
    """A batch goes out over one connection, which stays for the next."""
    scripted_redis.script = lambda command: b":1\r\n" if command[0] == b"LPUSH" else b"+OK\r\n"
    for _ in range(2):
        assert broker.send(messages(3), acquire_timeout=1) == [None] * 3
    assert scripted_redis.connections == 1
    assert broker.statistics().sent == 6


def test_hang_up_in_the_middle(
    broker: RedisBroker, scripted_redis: ScriptedRedis, small_writes: None
) -> None:
    """A write that broke off is told as it is, and never repeated."""

    def script(command: list[bytes]) -> bytes | None:
        if command[0] != b"LPUSH":
            return b"+OK\r\n"
        return b":1\r\n" if len(pushed(scripted_redis)) == 1 else None

    scripted_redis.script = script
    outcomes = broker.send(messages(6), acquire_timeout=1)
    assert fates(list(outcomes)) == ["queued"] * 2 + ["in doubt"] * 2 + ["not sent"] * 2
    assert len(pushed(scripted_redis)) == 2
    assert broker.statistics().connections.idle == 0


def test_demoted_master_is_left(broker: RedisBroker, scripted_redis: ScriptedRedis) -> None:
    """After READONLY the connection is not used again: the next goes to the new master."""
    scripted_redis.script = lambda command: (
        b"-READONLY You can't write against a read only replica.\r\n"
        if command[0] == b"LPUSH"
        else b"+OK\r\n"
    )
    assert fates(list(broker.send(messages(1), acquire_timeout=1))) == ["not sent"]
    assert broker.statistics().connections.idle == 0
    scripted_redis.script = lambda command: b":1\r\n" if command[0] == b"LPUSH" else b"+OK\r\n"
    assert broker.send(messages(1), acquire_timeout=1) == [None]
    assert scripted_redis.connections == 2


def test_connection_that_was_closed_while_idle(
    broker: RedisBroker, scripted_redis: ScriptedRedis
) -> None:
    """A connection that the server closed is replaced before anything is written."""

    def hang_up_after_one(command: list[bytes]) -> bytes | None:
        return b":1\r\n" if command[0] == b"LPUSH" else b"+OK\r\n"

    scripted_redis.script = hang_up_after_one
    assert broker.send(messages(1), acquire_timeout=1) == [None]
    scripted_redis.hang_up()
    assert broker.send(messages(1), acquire_timeout=1) == [None]
    assert scripted_redis.connections == 2


def test_nobody_there() -> None:
    """A refused connection is certain: nothing was sent."""
    config = resolve("clipper", "v1", env={}, broker_url="redis://127.0.0.1:1/0")
    broker = RedisBroker(config.broker_key)
    assert fates(list(broker.send(messages(2), acquire_timeout=1))) == ["not sent"] * 2
    assert broker.statistics().connections.in_use == 0


def test_no_slot(broker: RedisBroker, scripted_redis: ScriptedRedis) -> None:
    """Without a slot in time every message has that error."""
    with broker.permit(0), broker.permit(0):
        outcomes = broker.send(messages(2), acquire_timeout=0)
    assert fates(list(outcomes)) == ["ClientPoolTimeoutError"] * 2
    assert scripted_redis.connections == 0


def test_ping(broker: RedisBroker, scripted_redis: ScriptedRedis) -> None:
    """A ping pushes and removes in one transaction; a refusal at any step is an error."""
    answers = {b"MULTI": b"+OK\r\n", b"EXEC": b"*2\r\n:1\r\n:1\r\n"}
    scripted_redis.script = lambda command: answers.get(
        command[0], b"+QUEUED\r\n" if command[0] in (b"LPUSH", b"LREM") else b"+OK\r\n"
    )
    [message] = messages(1)
    broker.ping(message, acquire_timeout=10, timeout=10)
    names = [command[0] for command in scripted_redis.commands][-4:]
    assert names == [b"MULTI", b"LPUSH", b"LREM", b"EXEC"]
    answers[b"EXEC"] = b"*2\r\n-OOM command not allowed\r\n:0\r\n"
    with pytest.raises(TransportError):
        broker.ping(message, acquire_timeout=10, timeout=10)


def test_hurried_ping_leaves_no_hurry_behind(
    broker: RedisBroker, scripted_redis: ScriptedRedis
) -> None:
    """A ping's own short timeout is not left on a connection for others."""
    scripted_redis.script = lambda command: b"+OK\r\n"
    broker.ping(messages(1)[0], acquire_timeout=0.5, timeout=0.5)
    assert broker.statistics().connections.idle == 0


def test_options_cannot_lift_the_io_timeout() -> None:
    """A transport option may shorten the time for I/O, not lengthen or remove it."""
    for options, expected in (
        ({"socket_timeout": 600}, 5.0),
        ({"socket_timeout": 0.5}, 0.5),
        ({"socket_timeout": None}, 5.0),
    ):
        config = resolve("clipper", "v1", env={}, broker_transport_options=options)
        connector: RedisConnector = RedisBroker(config.broker_key).connector
        assert connector.connection_kwargs(2, 5.0)["socket_timeout"] == expected
        assert connector.connection_kwargs(2, 0.1)["socket_timeout"] == 0.1


def test_forgotten_markers_go_with_the_next_write() -> None:
    """A task with an id of its own leaves a marker, until somebody forgets it."""
    broker = RedisBroker(CONFIG.broker_key)
    builder = TaskBuilder(CONFIG)
    own = builder.task(broker.messages, "", [], {}, TaskControls(), task_id="mine")
    [write] = broker.plan(rendered(broker, own).items).writes()
    assert write.commands[0][0] == "EVAL"
    assert "sandai-op:submitted:mine" in write.commands[0]
    broker.note_sent([own], [None])
    [write] = broker.plan(rendered(broker, *messages(1)).items).writes()
    assert [command[0] for command in write.commands] == ["LPUSH"]
    broker.forget(["mine"])
    [write] = broker.plan(rendered(broker, *messages(1)).items).writes()
    assert write.commands[0] == ("DEL", "sandai-op:submitted:mine")
    assert write.positions == [[], [0]]


def test_what_is_forgotten_can_be_queued_anew() -> None:
    """Its marker is deleted before it is looked for, though both go in one write."""
    broker = RedisBroker(CONFIG.broker_key)
    builder = TaskBuilder(CONFIG)
    own = builder.task(broker.messages, "", [], {}, TaskControls(), task_id="mine")
    broker.forget(["mine"])
    [write] = broker.plan(rendered(broker, own).items).writes()
    assert [command[0] for command in write.commands] == ["DEL", "EVAL"]

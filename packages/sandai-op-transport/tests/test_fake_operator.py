"""The operator in this process, as a client of the transport alone sees it."""

import json
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any
from uuid import uuid4

import pytest
from celery import Celery
from celery.exceptions import TaskRevokedError

from sandai.op.models import (
    Artifact,
    InvalidTaskError,
    OperatorDescription,
    TaskRequest,
    TaskResult,
    error_reply,
)
from sandai.op.transport import (
    RedisBackend,
    RedisBroker,
    ResultDocument,
    TaskBuilder,
    TaskControls,
    Transport,
    client_app,
    resolve,
)
from sandai.op.transport.testing import FakeOperator, FakeTask, Reply, World, world
from sandai.op.transport.testing._documents import document, failure, revoked
from sandai.op.transport.testing._world import forget

WAIT = 10.0
KEY = b"celery-task-meta-"


class Caller:
    """Submit tasks and wait for their documents."""

    def __init__(self, url: str, **settings: Any) -> None:
        self.config = resolve("clipper", "v1", env={}, broker_url=url, **settings)
        self._transport = Transport(self.config)
        assert isinstance(self._transport.broker, RedisBroker)
        assert isinstance(self._transport.backend, RedisBackend)
        self.broker, self.backend = self._transport.broker, self._transport.backend
        self._builder = TaskBuilder(self.config)
        self._pushes = self.backend.connector.open(protocol=3)

    def submit(
        self, options: dict[str, Any] | None = None, artifacts: Any = (), **controls: Any
    ) -> str:
        """Submit a task and return its id."""
        message = self._builder.task(
            self.broker.messages, "", artifacts, options or {}, TaskControls(**controls)
        )
        self.ask("SUBSCRIBE", self.backend.key(message.task_id))
        assert self.broker.send([message], acquire_timeout=WAIT) == [None]
        return message.task_id

    def ask(self, *command: Any) -> Any:
        """Send a command on the connection that is pushed results."""
        self._pushes.send_packed_command(self._pushes.pack_commands([command]))
        return self._pushes.read_response(push_request=True)

    def pushed(self, task_id: str, state: str | None = None) -> ResultDocument:
        """Return the next document of a task that is pushed, or the next in that state."""
        while True:
            kind, key, payload = self._pushes.read_response(push_request=True)
            assert (kind, key) == (b"message", KEY + task_id.encode())
            found = self.backend.decoder.decode(task_id, payload)
            if state in (None, found.state):
                return found

    def answer(self, *args: Any, **kwargs: Any) -> Any:
        """Submit a task and return the reply envelope, or raise."""
        return self.pushed(self.submit(*args, **kwargs)).reply()

    def look(self, task_id: str) -> ResultDocument | None:
        """Return what is stored of a task."""
        found = self.backend.look([task_id], acquire_timeout=WAIT)
        return found[0] if found else None

    def close(self) -> None:
        """Close."""
        self._pushes.disconnect()
        self._transport.release()


@pytest.fixture
def here() -> Iterator[World]:
    """Give a world of the test's own."""
    found = world(f"memory://{uuid4()}")
    yield found
    forget(found.name)


@pytest.fixture
def caller(here: World) -> Iterator[Caller]:
    """Give a client."""
    caller = Caller(here.url)
    yield caller
    caller.close()


Start = Callable[..., FakeOperator]


@pytest.fixture
def start(here: World) -> Iterator[Start]:
    """Start operators in the test's world."""
    operators: list[FakeOperator] = []

    def start(handler: Any = None, **kwargs: Any) -> FakeOperator:
        operators.append(FakeOperator("clipper", "v1", handler, url=here.url, **kwargs).start())
        return operators[-1]

    yield start
    for operator in operators:
        operator.close()


def test_without_a_handler_it_echoes(caller: Caller, start: Start) -> None:
    """The first answer costs no handler: artifacts and options come back."""
    start()
    artifact = {"uri": "file:///a", "slot": "video", "more": 1}
    assert caller.answer({"n": 1}, [artifact]) == {
        "status": "success",
        "artifacts": [artifact],
        "results": {"n": 1},
    }


def test_a_handler_answers_a_request(caller: Caller, start: Start) -> None:
    """A handler gets what an operator's author works with, and returns the same."""

    def handler(request: TaskRequest) -> TaskResult:
        assert request.persistent_output
        [video] = request.in_slot("video")
        return TaskResult([Artifact(video.uri, "clip")], {"id": request.task_id})

    operator = start(handler)
    task_id = caller.submit({}, [{"uri": "u", "slot": "video"}], persistent_output=True)
    reply = caller.pushed(task_id).reply()
    assert reply["artifacts"] == [{"uri": "u", "slot": "clip"}]
    assert reply["results"] == {"id": task_id}
    assert [task.task_id for task in operator.tasks] == [task_id]


def test_a_failed_assertion_reaches_the_caller(caller: Caller, start: Start) -> None:
    """pytest.fail() in a handler, which is no Exception, is the task's failure too."""
    start(lambda _: pytest.fail("not this one"))
    found = caller.pushed(caller.submit())
    assert found.meta["result"]["exc_message"] == ["not this one"]


@pytest.mark.parametrize(
    ("returned", "reply"),
    [
        (None, {"status": "success", "artifacts": [], "results": {}}),
        (TaskResult(), {"status": "success", "artifacts": [], "results": {}}),
        ({"status": "weird"}, {"status": "weird"}),
        ([1, 2], [1, 2]),
        (error_reply(ValueError("no")), error_reply(ValueError("no"))),
        (
            OperatorDescription("d"),
            {"status": "success", "doc": "d", "options_schema": None, "results_schema": None},
        ),
    ],
)
def test_what_a_handler_may_return(caller: Caller, start: Start, returned: Any, reply: Any) -> None:
    """Objects of the models become envelopes; anything else goes out as it is."""
    start(lambda _: returned)
    assert caller.answer() == reply


def test_an_error_of_the_models_is_an_envelope(caller: Caller, start: Start) -> None:
    """What an operator's author raises from the models is reported with its fields."""

    def handler(request: TaskRequest) -> TaskResult:
        raise InvalidTaskError("options.start", "must be a number")

    start(handler)
    error = caller.answer()["error"]
    assert error["error_type"] == "InvalidTaskError"
    assert error["error_details"]["path"] == "options.start"


def test_a_result_that_cannot_travel_is_an_envelope(caller: Caller, start: Start) -> None:
    """A TaskResult with what JSON cannot carry names it, as to_reply() does in a worker."""
    start(lambda _: TaskResult(results={"object": object()}))
    assert caller.answer()["error"]["error_details"]["path"] == "results.object"


def test_any_other_exception_fails_the_task(caller: Caller, start: Start) -> None:
    """A crash is what Celery makes of it: exception type, arguments and traceback."""

    def handler(request: TaskRequest) -> TaskResult:
        raise ValueError("broken", 42)

    start(handler)
    found = caller.pushed(caller.submit())
    assert found.state == "FAILURE"
    assert found.meta["result"] == {
        "exc_type": "ValueError",
        "exc_message": ["broken", 42],
        "exc_module": "builtins",
    }
    assert 'raise ValueError("broken", 42)' in found.meta["traceback"]


def test_a_reply_that_makes_no_sense_fails_the_task(caller: Caller, start: Start) -> None:
    """The caller hears of it, and the next task is answered."""
    operator = start(concurrency=1)
    wrong: Any = "soon"
    for reply in (lambda _: Reply(delay=wrong), lambda _: Reply(times=wrong)):
        operator.replies(reply)
        found = caller.pushed(caller.submit())
        assert found.meta["result"]["exc_type"] == "ValueError"
    assert caller.answer({"n": 1})["results"] == {"n": 1}


def test_a_raw_reply_that_cannot_be_encoded_fails_the_task(caller: Caller, start: Start) -> None:
    """A worker that cannot encode a result fails its task, and so does this."""
    start(lambda _: {"status": "success", "results": {"object": object()}})
    found = caller.pushed(caller.submit())
    assert found.state == "FAILURE"
    assert found.meta["result"]["exc_type"] == "EncodeError"


def test_priorities_are_served_in_order(caller: Caller, start: Start) -> None:
    """High before normal before low before very_low, each first come, first served."""
    expected: dict[str, list[str]] = {}
    for priority in ("very_low", "normal", "high", "low") * 2:
        expected.setdefault(priority, []).append(caller.submit({}, priority=priority))
    operator = start(concurrency=1)
    tasks = operator.wait_for(8)
    order = ("high", "normal", "low", "very_low")
    assert [task.priority for task in tasks] == [p for p in order for _ in range(2)]
    assert [task.task_id for task in tasks] == [t for p in order for t in expected[p]]
    assert tasks[0].queue == "high.clipper.v1"


def test_as_many_run_as_concurrency_says(caller: Caller, start: Start) -> None:
    """Three handlers meet, which takes three threads."""
    barrier = threading.Barrier(3)
    start(lambda _: barrier.wait(WAIT) and None, concurrency=3)
    ids = [caller.submit() for _ in range(3)]
    assert {caller._pushes.read_response(push_request=True)[1] for _ in ids} == {
        KEY + task_id.encode() for task_id in ids
    }


def test_a_description_is_answered_without_the_handler(caller: Caller, start: Start) -> None:
    """The description is the operator's own, and no script or handler is used up."""
    operator = start(description=OperatorDescription("cuts", {"type": "object"}))
    operator.replies({"status": "scripted"})
    message = caller._builder.description(caller.broker.messages, "")
    caller.ask("SUBSCRIBE", caller.backend.key(message.task_id))
    caller.broker.send([message], acquire_timeout=WAIT)
    assert caller.pushed(message.task_id).reply()["doc"] == "cuts"
    assert caller.answer({"test": True})["status"] == "success"
    assert caller.answer() == {"status": "scripted"}


def test_a_late_task_is_skipped(caller: Caller, start: Start) -> None:
    """After its deadline a task is not done, and the error says when that was."""
    operator = start(lambda _: pytest.fail("done"))
    message = caller._builder.task(caller.broker.messages, "", [], {}, TaskControls(timeout=1e-6))
    caller.ask("SUBSCRIBE", caller.backend.key(message.task_id))
    caller.broker.send([message], acquire_timeout=WAIT)
    error = caller.pushed(message.task_id).reply()["error"]
    assert error["error_type"] == "TaskDeadlineExceededError"
    assert error["error_details"]["deadline"] == operator.tasks[0].request.deadline


def test_a_cancelled_task_is_skipped(caller: Caller, start: Start) -> None:
    """A cancel key that the operator was told of is an error with that key."""
    operator = start()
    operator.cancelled.add("job-7")
    error = caller.answer({}, cancel_key="job-7")["error"]
    assert error["error_type"] == "TaskCancelledError"
    assert error["error_details"]["cancel_key"] == "job-7"
    assert caller.answer({}, cancel_key="job-8")["status"] == "success"


def test_scripted_replies_come_first(caller: Caller, start: Start) -> None:
    """Each scripted reply answers one task; then it is the handler's turn."""
    operator = start(lambda _: {"status": "handler"})
    operator.replies(
        {"status": "first"},
        ValueError("second"),
        KeyError,
        lambda request: {"status": request.options["n"]},
        Reply({"status": "last"}),
    )
    assert caller.answer() == {"status": "first"}
    for kind in ("ValueError", "KeyError"):
        assert caller.pushed(caller.submit()).meta["result"]["exc_type"] == kind
    assert caller.answer({"n": "called"}) == {"status": "called"}
    assert caller.answer() == {"status": "last"}
    assert caller.answer() == {"status": "handler"}


def test_a_reply_may_be_late(caller: Caller, start: Start) -> None:
    """A late reply is not there at once, and comes."""
    operator = start(concurrency=2)
    operator.replies(Reply.late(0.2, {"status": "late"}))
    late = caller.submit()
    operator.wait_for(1)
    assert caller.look(late) is None
    assert caller.pushed(late).reply() == {"status": "late"}


def test_a_result_may_be_lost(caller: Caller, start: Start) -> None:
    """A lost result is neither stored nor published."""
    operator = start(concurrency=1)
    operator.replies(Reply.lost())
    lost = caller.submit()
    assert caller.answer({"n": 1})["results"] == {"n": 1}  # pushed first: of the other, nothing
    assert caller.look(lost) is None


def test_a_publish_may_be_lost(caller: Caller, start: Start) -> None:
    """An unpublished result is stored, for a sweep to find."""
    operator = start(concurrency=1)
    operator.replies(Reply.unpublished({"status": "quiet"}))
    quiet = caller.submit()
    caller.answer({"n": 1})
    found = caller.look(quiet)
    assert found is not None
    assert found.reply() == {"status": "quiet"}


def test_a_result_may_come_twice(caller: Caller, start: Start) -> None:
    """A duplicate is published again."""
    start().replies(Reply.twice({"status": "again"}))
    task_id = caller.submit()
    assert [caller.pushed(task_id).reply() for _ in range(2)] == [{"status": "again"}] * 2


def test_a_task_may_be_started_and_no_more(caller: Caller, start: Start) -> None:
    """A task that is picked up and not answered has the state STARTED."""
    start().replies(Reply.started())
    found = caller.pushed(caller.submit())
    assert (found.state, found.ready) == ("STARTED", False)


def test_started_is_tracked_where_it_is_asked_for(caller: Caller, start: Start) -> None:
    """With track_started a task is STARTED before it is anything else."""
    start(track_started=True)
    task_id = caller.submit()
    assert [caller.pushed(task_id).state for _ in range(2)] == ["STARTED", "SUCCESS"]


def test_a_handler_may_report(caller: Caller, start: Start, here: World) -> None:
    """store() writes a state of the operator's own, from a handler."""

    def handler(request: TaskRequest) -> None:
        operator.store(request.task_id, "HALFWAY", {"progress": 0.5})

    operator = start(handler)
    task_id = caller.submit()
    assert here.awaited() == [task_id]
    found = caller.pushed(task_id)
    assert (found.state, found.meta["result"]) == ("HALFWAY", {"progress": 0.5})
    assert caller.pushed(task_id).state == "SUCCESS"


def test_results_expire(caller: Caller, start: Start, here: World) -> None:
    """A result that nobody reads is kept for the operator's time, as on Redis."""
    start(result_expires=3600)
    task_id = caller.submit()
    caller.pushed(task_id)
    with here.lock:
        here.store._clock = lambda: 1e12
        assert here.results() == []


def test_serializers(here: World, start: Start) -> None:
    """Tasks in JSON are read, and results written in msgpack."""
    start(result_serializer="msgpack")
    caller = Caller(here.url, task_serializer="json", result_serializer="msgpack")
    try:
        assert caller.answer({"n": "ü"})["results"] == {"n": "ü"}
    finally:
        caller.close()


def test_what_cannot_be_read_is_dropped(
    caller: Caller, start: Start, here: World, caplog: pytest.LogCaptureFixture
) -> None:
    """A message that makes no sense is logged and dropped, as by a worker; the next is served."""
    operator = start()
    here.push(b"normal.clipper.v1", [b"nonsense"])
    assert caller.answer({"n": 1})["results"] == {"n": 1}
    operator.close()
    assert "cannot read a message" in caplog.text


def test_wait_for_tells_what_came(caller: Caller, start: Start) -> None:
    """wait_for() returns the tasks, with what was sent, or says how many came."""
    operator = start()
    caller.submit({"n": 1}, cancel_key="key", priority="low")
    [task] = operator.wait_for(1)
    assert (task.request.options, task.request.cancel_key) == ({"n": 1}, "key")
    assert task.kwargs["options"] == {"n": 1}
    assert task.root_id == task.task_id
    with pytest.raises(TimeoutError, match=r"1 of 2 tasks came in 0\.01 s"):
        operator.wait_for(2, timeout=0.01)


def test_what_is_remembered_is_bounded(caller: Caller, start: Start) -> None:
    """A thousand tasks are remembered, and all are counted."""
    operator = start()
    messages = [
        caller._builder.task(caller.broker.messages, "", [], {"n": n}, TaskControls())
        for n in range(1500)
    ]
    caller.broker.send(messages, acquire_timeout=WAIT)
    assert len(operator.wait_for(1500)) == 1000
    assert operator.received == 1500
    forgetful = start(remember=2)
    operator.close()
    for _ in range(3):
        caller.answer()
    assert len(forgetful.wait_for(3)) == 2


def test_what_is_queued_can_be_looked_at(caller: Caller, here: World) -> None:
    """queued() shows the tasks that wait, the next one first, and takes none."""
    first, second = caller.submit({"n": 1}), caller.submit({"n": 2})
    for _ in range(2):
        assert [t.task_id for t in here.queued("normal.clipper.v1")] == [first, second]
    assert here.queued("high.clipper.v1") == []
    here.clear()
    assert here.queued("normal.clipper.v1") == []


def test_operators_share_the_work_of_a_name(caller: Caller, start: Start) -> None:
    """Two operators of one name serve one set of queues, each task once."""
    one, two = start(concurrency=1), start(concurrency=1)
    both = threading.Barrier(2)
    for operator in (one, two):
        operator.replies(lambda _: both.wait(WAIT) and None)
    ids = {caller.submit(), caller.submit()}
    one.wait_for(1)
    two.wait_for(1)
    assert {one.tasks[0].task_id, two.tasks[0].task_id} == ids


def test_a_closed_operator_takes_nothing(caller: Caller, start: Start, here: World) -> None:
    """After close() tasks stay in their queue, for the next one."""
    operator = start()
    operator.close()
    operator.close()
    task_id = caller.submit()
    assert [task.task_id for task in here.queued("normal.clipper.v1")] == [task_id]
    start()
    caller.pushed(task_id)
    with pytest.raises(RuntimeError, match="closed: make another one"):
        operator.start()


def test_an_operator_that_could_do_nothing(here: World) -> None:
    """It is refused, not started to let tasks wait for good."""
    with pytest.raises(ValueError, match="concurrency=0"):
        FakeOperator("clipper", "v1", url=here.url, concurrency=0)


@pytest.mark.parametrize("seconds", [3600, float("inf")])
def test_what_is_late_when_the_operator_closes_is_lost(
    caller: Caller, start: Start, seconds: float
) -> None:
    """Closing does not wait for a late reply, nor does it come early."""
    operator = start()
    operator.replies(Reply.late(seconds))
    task_id = caller.submit()
    operator.wait_for(1)
    operator.close()
    assert caller.look(task_id) is None


def test_close_tells_of_a_handler_that_does_not_end(
    caller: Caller, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A handler that hangs is told of, with its task, and keeps nobody from going on."""
    monkeypatch.setattr("sandai.op.transport.testing._operator._GRACE", 0.05)
    gate = threading.Event()
    operator = start(lambda _: gate.wait(WAIT) and None, concurrency=1)
    task_id = caller.submit()
    operator.wait_for(1)
    with pytest.warns(ResourceWarning, match=task_id):
        operator.close()
    gate.set()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        operator.close()


# Celery's control


def test_revoking_a_queued_task(caller: Caller, start: Start) -> None:
    """A queued task that is revoked is dropped with Celery's document; others stay."""
    gate = threading.Event()
    operator = start(lambda _: gate.wait(WAIT) and None, concurrency=1)
    caller.submit()
    operator.wait_for(1)
    unwanted, wanted = caller.submit(), caller.submit()
    app = client_app(caller.config)
    app.control.revoke(unwanted)
    found = caller.pushed(unwanted)
    assert found.state == "REVOKED"
    assert found.meta["result"]["exc_type"] == "TaskRevokedError"
    gate.set()
    tasks = operator.wait_for(2)
    assert [task.task_id for task in tasks[1:]] == [wanted]


def test_revoking_before_the_task_comes(caller: Caller, start: Start) -> None:
    """A worker remembers what was revoked and skips it when it comes."""
    operator = start(lambda _: pytest.fail("done"), concurrency=1)
    message = caller._builder.task(caller.broker.messages, "", [], {}, TaskControls())
    caller.ask("SUBSCRIBE", caller.backend.key(message.task_id))
    client_app(caller.config).control.revoke([message.task_id, "another"])
    caller.broker.send([message], acquire_timeout=WAIT)
    assert caller.pushed(message.task_id).state == "REVOKED"
    assert operator.revoked() == [message.task_id, "another"]


def test_a_running_task_is_terminated_only_on_demand(caller: Caller, start: Start) -> None:
    """revoke() leaves a task that runs; with terminate it is REVOKED and its answer dropped."""
    gate = threading.Event()
    operator = start(lambda _: gate.wait(WAIT) and None, concurrency=2)
    spared, ended = caller.submit(), caller.submit()
    operator.wait_for(2)
    control = client_app(caller.config).control
    control.revoke(spared)
    control.revoke(ended, terminate=True)
    found = caller.pushed(ended)
    assert found.state == "REVOKED"
    assert found.meta["result"]["exc_message"] == ["terminated"]
    assert caller.look(spared) is None
    gate.set()
    assert caller.pushed(spared).state == "SUCCESS"
    operator.close()
    found_later = caller.look(ended)
    assert found_later is not None
    assert found_later.state == "REVOKED"


def test_workers_answer_ping_and_inspect(caller: Caller, start: Start) -> None:
    """Every operator of the world answers, in Celery's shapes; another world's does not."""
    app = client_app(caller.config)
    assert app.control.ping() == []
    assert app.control.inspect().ping() is None
    gate = threading.Event()
    one = start(lambda _: gate.wait(WAIT) and None)
    two = FakeOperator("other", "v2", url=caller.config.broker_url).start()
    with FakeOperator("clipper", "v1", url="memory://elsewhere"):
        names = {one.hostname, two.hostname}
        assert {name for reply in app.control.ping() for name in reply} == names
        assert app.control.inspect().ping() == {name: {"ok": "pong"} for name in names}
        assert set(app.control.inspect([two.hostname]).ping()) == {two.hostname}
        assert app.control.inspect(two.hostname).ping() == {"ok": "pong"}
    task_id = caller.submit()
    one.wait_for(1)
    inspect = app.control.inspect()
    assert [task["id"] for task in inspect.active()[one.hostname]] == [task_id]
    assert [queue["name"] for queue in inspect.active_queues()[two.hostname]] == [
        f"{priority}.other.v2" for priority in ("high", "normal", "low", "very_low")
    ]
    assert inspect.registered()[one.hostname] == ["sandai_operator.clipper.v1.process_task"]
    assert inspect.stats()[one.hostname]["pool"] == {"max-concurrency": 4}
    gate.set()
    two.close()


# Documents


@pytest.fixture(scope="module")
def celery_backend() -> Any:
    """Return Celery's own way to make documents."""
    app = Celery("worker", broker="memory://", backend="cache+memory://", set_as_current=False)
    app.conf.result_serializer = "json"
    return app.backend


@pytest.mark.parametrize("parent", [None, "parent-id"])
@pytest.mark.parametrize("state", ["SUCCESS", "STARTED", "FAILURE", "REVOKED", "HALFWAY"])
def test_documents_are_celerys(celery_backend: Any, state: str, parent: str | None) -> None:
    """Every field is there that Celery's backend writes, in its form, and no other."""

    class Request:
        group = None
        parent_id = parent
        children: tuple[object, ...] = ()

    task = FakeTask("id", "queue", {}, parent_id=parent)
    error: Exception
    if state == "FAILURE":
        error = ValueError("broken", object)
        ours, result = failure(task, error), celery_backend.prepare_exception(error)
    elif state == "REVOKED":
        error = TaskRevokedError("revoked")
        ours, result = revoked(task, "revoked"), celery_backend.prepare_exception(error)
    else:
        result = {"n": [1, "ü"]}
        ours = document(task, state, result)
    meta = celery_backend._get_result_meta(result, state, None, Request())
    theirs = json.loads(celery_backend.encode(meta | {"task_id": "id"}))
    found = json.loads(ours)
    for field in ("date_done", "traceback"):
        assert type(found.pop(field)) in (type(theirs.pop(field)), str)
    assert found == theirs

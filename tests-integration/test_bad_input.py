"""Replies and stored results of every wrong shape: that task's error, nothing for the others."""

from __future__ import annotations

import json
import logging
import pickle
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import uuid4

import celery.backends.base
import msgpack
import pytest
from celery import Celery

from celery_worker import CeleryWorker
from conftest import CreateClient
from light_operator import LightOperator
from local_redis import LocalRedis
from sandai.op.client import OperatorClient
from sandai.op.models import (
    ConfigurationError,
    InvalidPriorityError,
    InvalidResultFormatError,
    InvalidTaskError,
    InvalidTaskStatusError,
    OperatorError,
    TaskExecutionError,
)
from watching import open_redis


@pytest.fixture
def client(
    redis_server: LocalRedis, scripted_worker: CeleryWorker, create_client: CreateClient
) -> OperatorClient:
    """Give a client of the scripted operator."""
    return create_client("scripted", "v1", broker_url=redis_server.url, timeout=20)


# What a real worker answers

NO_MAPPINGS: list[Any] = [
    None,
    True,
    0,
    3.5,
    "",
    "success",
    [],
    [1, {"status": "success"}],
    ["x"] * 9,
]
NO_STATUS: list[Any] = [
    {},
    {"artifacts": [], "results": {}},
    {"status": None},
    {"status": "SUCCESS"},
    {"status": "weird", "artifacts": []},
    {"status": 1},
    {"status": ["success"]},
    {"status": {"success": True}},
]
WRONG_PARTS: list[Any] = [
    {"status": "success", "artifacts": {"uri": "x"}},
    {"status": "success", "artifacts": "x"},
    {"status": "success", "artifacts": 1},
    {"status": "success", "results": []},
    {"status": "success", "results": "x"},
    {"status": "success", "results": 0.5},
]


def test_replies_of_wrong_shapes(client: OperatorClient) -> None:
    """Each wrong reply is its typed error in its own place of a batch, good ones are whole."""
    replies = [*NO_MAPPINGS, *NO_STATUS, *WRONG_PARTS]
    good = {"status": "success", "artifacts": [], "results": {"good": True}}
    tasks: list[Any] = [
        ([], {"do": "reply", "reply": reply}) for bad in replies for reply in (bad, good)
    ]
    results = client.batch_sync_detailed(tasks)
    assert all(result.success and result.results == {"good": True} for result in results[1::2])
    expected: list[type[OperatorError]] = [InvalidResultFormatError] * len(NO_MAPPINGS)
    expected += [InvalidTaskStatusError] * len(NO_STATUS)
    expected += [InvalidResultFormatError] * len(WRONG_PARTS)
    for result, reply, kind in zip(results[::2], replies, expected, strict=True):
        assert type(result.error) is kind, reply
        assert result.submitted
        assert not result.success
        assert vars(result.error)["task_id"] == result.task_id
        if isinstance(result.error, InvalidResultFormatError):
            assert result.error.result == reply


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (None, InvalidResultFormatError),
        ("text", InvalidResultFormatError),
        ({"status": "weird"}, InvalidTaskStatusError),
        ({}, InvalidTaskStatusError),
        (WRONG_PARTS[0], InvalidResultFormatError),
        (WRONG_PARTS[3], InvalidResultFormatError),
    ],
)
def test_sync_of_a_wrong_shape(
    client: OperatorClient, reply: Any, kind: type[OperatorError]
) -> None:
    """sync() raises the typed error; get() returns what came, whatever it is."""
    options = {"do": "reply", "reply": reply}
    with pytest.raises(kind) as caught:
        client.sync([], options)
    if isinstance(caught.value, InvalidTaskStatusError):
        assert caught.value.status == (reply.get("status") or "unknown")
    assert client.async_call([], options).get(timeout=10) == reply


def test_description_of_a_wrong_shape(redis_server: LocalRedis, client: OperatorClient) -> None:
    """A wrong reply to a description is a typed error that is not cached."""
    with open_redis(redis_server.url) as redis_client:
        redis_client.rpush("scripted:descriptions", "[1]", '{"status": "odd"}')
    with pytest.raises(InvalidResultFormatError):
        _ = client.desc
    with pytest.raises(InvalidTaskStatusError):
        _ = client.desc
    assert client.desc["doc"]


# What is stored in Redis


class Stored:
    """Results that the test writes itself, raw, while others are waited for."""

    def __init__(self, client: OperatorClient, redis_client: Any) -> None:
        self.client = client
        self._redis = redis_client
        self._pool = ThreadPoolExecutor(32)

    def wait(self) -> tuple[str, Any]:
        """Start a wait for a task in a thread."""
        task_id = str(uuid4())
        return task_id, self._pool.submit(self.client.attach(task_id).get, 15)

    def write(self, task_id: str, payload: bytes, *, publish: bool) -> None:
        """Store raw bytes, as an operator might."""
        key = f"celery-task-meta-{task_id}"
        self._redis.set(key, payload, ex=60)
        if publish:
            self._redis.publish(key, payload)

    def read(self, payload: bytes, *, how: str) -> Any:
        """Return the reply in a payload (or raise) by push, by a sweep, or by a look."""
        if how == "look":
            task_id = str(uuid4())
            self.write(task_id, payload, publish=False)
            return self.client.attach(task_id).get(timeout=0)
        task_id, future = self.wait()
        self.write(task_id, payload, publish=how == "push")
        return future.result(20)

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown()


@pytest.fixture
def stored(database: str, create_client: CreateClient) -> Iterator[Stored]:
    """Give waits of a client and raw results."""
    with open_redis(database) as redis_client:
        stored = Stored(create_client("manual", "v1", broker_url=database), redis_client)
        yield stored
        stored.close()


REPLY = {"status": "success", "artifacts": [], "results": {"n": 1, "ü": [None, 1.5, True]}}
META: dict[str, Any] = {"status": "SUCCESS", "result": REPLY, "traceback": None, "children": []}
JSON = json.dumps(META).encode()
HOW = ["push", "sweep", "look"]


class _Bomb:
    """Unpickling it leaves a file, so that it shows."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self._path,))


UNREADABLE: dict[str, bytes] = {
    "empty": b"",
    "text": b"OK",
    "truncated": JSON[:-20],
    "trailing": JSON + b"}",
    "not utf-8": b'{"status": "SUCCESS", "result": "\xff\xfe"}',
    "truncated msgpack": msgpack.packb(META)[:-4],
    "yaml": b"status: SUCCESS\nresult: {status: success}\n",
    "truncated compressed": b"\x00celery-compressed\x00application/x-gzip\x00"
    + b"\x1f\x8b\x08\x00",
    "unknown compression": b"\x00celery-compressed\x00application/x-nothing\x00" + JSON,
    "marker alone": b"\x00celery-compressed\x00",
    "a list": b"[1, 2]",
    "a number": b"7",
    "null": b"null",
    "no status": b'{"result": {"status": "success"}}',
    "a status that is no text": b'{"status": 1, "result": {}}',
    "unknown marker": b'{"status": "SUCCESS", "result": {"__type__": "nothing", "__value__": 1}}',
    "deep": b'{"status": "SUCCESS", "result": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "huge number": b'{"status": "SUCCESS", "result": ' + b"9" * 10_000 + b"}",
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_unreadable_results(stored: Stored, name: str) -> None:
    """What cannot be read is an InvalidResultFormatError that keeps the bytes, however it comes."""
    for how in HOW:
        with pytest.raises(InvalidResultFormatError) as caught:
            stored.read(UNREADABLE[name], how=how)
        assert caught.value.result == UNREADABLE[name]
        assert caught.value.reason
        assert len(str(caught.value)) < 1000
        assert stored.read(JSON, how=how) == REPLY


@pytest.mark.parametrize("how", HOW)
def test_pickled_results(stored: Stored, tmp_path: Path, how: str) -> None:
    """A pickled result is refused and not unpickled; neither is one in a compressed document."""
    bomb = pickle.dumps({"status": "SUCCESS", "result": _Bomb(tmp_path / "exploded")})
    packed = b"\x00celery-compressed\x00application/x-gzip\x00" + zlib.compress(bomb)
    for payload in (bomb, packed, pickle.dumps(META)):
        with pytest.raises(InvalidResultFormatError):
            stored.read(payload, how=how)
    assert not list(tmp_path.iterdir())


def test_pickled_results_where_listed(database: str, create_client: CreateClient) -> None:
    """Only a caller who lists pickle in accept_content gets a pickled result."""
    client = create_client(
        "manual",
        "v1",
        broker_url=database,
        accept_content=["json", "pickle", "msgpack"],
        result_serializer="json",
    )
    with open_redis(database) as redis_client:
        redis_client.set("celery-task-meta-pickled", pickle.dumps(META))
    assert client.attach("pickled").get(timeout=0) == REPLY


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize(
    ("module", "name", "message"),
    [
        ("os", "system", ["touch {path}"]),
        ("subprocess", "run", [["touch", "{path}"]]),
        ("pathlib", "Path", ["{path}"]),
        ("antigravity_of_ours", "Boom", "text"),
        ("builtins", "KeyboardInterrupt", []),
        ("celery.exceptions", "Ignore", None),
        (None, "SystemExit", [1]),
        (7, 8, {"x": 9}),
    ],
)
def test_failures_that_name_a_class(
    stored: Stored, tmp_path: Path, how: str, module: Any, name: Any, message: Any
) -> None:
    """A failure that names a class is a TaskExecutionError; nothing is imported or run."""
    said = json.loads(json.dumps(message).replace("{path}", str(tmp_path / "exploded")))
    (tmp_path / "none").mkdir()
    meta = {
        "status": "FAILURE",
        "result": {"exc_type": name, "exc_module": module, "exc_message": said},
        "traceback": "a traceback",
    }
    with pytest.raises(TaskExecutionError) as caught:
        stored.read(json.dumps(meta).encode(), how=how)
    assert caught.value.error_details["exception_type"] == str(name)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize(
    "result", [None, [], "text", 7, {}, {"exc_type": None}, {"exc_message": 1}]
)
def test_failures_of_any_shape(stored: Stored, result: Any) -> None:
    """A failure without the usual parts is a TaskExecutionError all the same."""
    meta = {"status": "FAILURE", "result": result, "traceback": 5}
    with pytest.raises(TaskExecutionError) as caught:
        stored.read(json.dumps(meta).encode(), how="push")
    assert caught.value.error_message


@pytest.mark.parametrize("how", HOW)
def test_other_accepted_serializers(stored: Stored, how: str) -> None:
    """A result in another accepted serializer is read with that one."""
    assert stored.read(msgpack.packb(META), how=how) == REPLY


def test_other_serializers_that_are_not_accepted(
    database: str, create_client: CreateClient
) -> None:
    """A result in a serializer that is not accepted is refused."""
    client = create_client(
        "manual", "v1", broker_url=database, accept_content=["json"], task_serializer="json"
    )
    with open_redis(database) as redis_client:
        redis_client.set("celery-task-meta-packed", msgpack.packb(META))
    with pytest.raises(InvalidResultFormatError):
        client.attach("packed").get(timeout=0)


@pytest.mark.filterwarnings("ignore:Call to deprecated setex")  # by Celery itself
@pytest.mark.parametrize("serializer", ["json", "msgpack"])
@pytest.mark.parametrize("compression", [None, "gzip", "bzip2"])
def test_results_of_celerys_own_backend(
    database: str, stored: Stored, serializer: str, compression: str | None
) -> None:
    """What Celery's own backend stores, compressed or not, is read: by push, sweep and look."""
    if compression is not None and not hasattr(celery.backends.base, "decompress_payload"):
        pytest.skip("this Celery does not compress results")
    app = Celery("store", broker=database, backend=database, set_as_current=False)
    app.conf.update(result_serializer=serializer, result_compression=compression)
    app.conf.accept_content = ["json", "msgpack"]
    reply = {**REPLY, "results": {"text": "é" * 50_000}}
    with open_redis(database) as redis_client:
        for waits in (True, False):
            task_id, future = stored.wait() if waits else (str(uuid4()), None)
            app.backend.store_result(task_id, reply, "SUCCESS")
            raw = redis_client.get(f"celery-task-meta-{task_id}")
            assert raw.startswith(b"\x00celery-compressed\x00") is (compression is not None)
            if future is not None:
                assert future.result(10) == reply
            assert stored.client.attach(task_id).get(timeout=0) == reply
        # A failure with an exception of Celery's own making.
        failed, future = stored.wait()
        app.backend.store_result(failed, KeyError("x"), "FAILURE", traceback="t")
        assert future is not None
        error = future.exception(10)
        assert isinstance(error, TaskExecutionError)
        assert error.error_details["exception_type"] == "KeyError"
    app.backend.client.connection_pool.disconnect()
    app.close()


@pytest.mark.parametrize("publish", [True, False])
def test_neighbours_are_not_disturbed(
    database: str,
    create_client: CreateClient,
    stored: Stored,
    caplog: pytest.LogCaptureFixture,
    publish: bool,
) -> None:
    """While a hundred tasks are under way, every unreadable result fails its own wait alone."""
    client = create_client("manual", "v1", broker_url=database, timeout=20)
    with (
        LightOperator(database, name="manual", delay=0.4, concurrency=256, publish=publish),
        ThreadPoolExecutor(8) as pool,
    ):
        batch = pool.submit(client.batch_sync_detailed, [([], {"n": n}) for n in range(100)])
        singles = [pool.submit(client.sync, [], {"n": n}) for n in range(7)]
        bad = []
        for payload in UNREADABLE.values():
            task_id, future = stored.wait()
            stored.write(task_id, payload, publish=publish)
            bad.append((payload, task_id, future))
        for payload, task_id, future in bad:
            error = future.exception(20)
            assert isinstance(error, InvalidResultFormatError)
            assert error.task_id == task_id
            assert error.result == payload
        assert [wait.result(20) for wait in singles] == [([], {"n": n}) for n in range(7)]
        results = batch.result(20)
        assert [result.results for result in results] == [{"n": n} for n in range(100)]
    # The connection that brought them is the same all the time.
    assert not [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


def test_a_batch_of_good_and_unreadable(database: str, create_client: CreateClient) -> None:
    """batch_collect() has an unreadable result's error in its own place."""
    client = create_client("manual", "v1", broker_url=database, timeout=10)
    submissions = client.batch_submit([([], {})] * len(UNREADABLE) * 2)
    with open_redis(database) as redis_client:
        for position, submission in enumerate(submissions):
            payload = JSON if position % 2 else list(UNREADABLE.values())[position // 2]
            redis_client.set(f"celery-task-meta-{submission.task_id}", payload)
        results = client.batch_collect(submissions)
        assert all(isinstance(r.error, InvalidResultFormatError) for r in results[::2])
        assert all(r.success for r in results[1::2])
        # An unreadable result is deleted as any other that was read.
        assert not redis_client.keys("celery-task-meta-*")


# What a caller gives

BAD_TASKS: list[tuple[Any, Any, str]] = [
    (None, {}, "input_artifacts"),
    ("file:///x", {}, "input_artifacts"),
    ({"uri": "x"}, {}, "input_artifacts"),
    (["x"], {}, "input_artifacts[0]"),
    ([{"uri": "a"}, None], {}, "input_artifacts[1]"),
    ([{"uri": b"x"}], {}, "input_artifacts[0].uri"),
    ([{"slot": 1}], {}, "input_artifacts[0].slot"),
    ([{1: 2}], {}, "input_artifacts[0]"),
    ([{"uri": "a", "meta": "x"}], {}, "input_artifacts[0].meta"),
    ([{"uri": "a", "meta": {"x": {1, 2}}}], {}, "input_artifacts[0].meta.x"),
    ([], None, "options"),
    ([], [], "options"),
    ([], "x", "options"),
    ([], {1: 2}, "options"),
    ([], {"a": {"b": [0, object()]}}, "options.a.b[1]"),
    ([], {"a": lambda: 0}, "options.a"),
]


@pytest.mark.parametrize("serializer", ["msgpack", "json"])
def test_bad_tasks(database: str, create_client: CreateClient, serializer: str) -> None:
    """A task that cannot be sent is an InvalidTaskError that names the place; nothing is queued."""
    client = create_client("manual", "v1", broker_url=database, task_serializer=serializer)
    for artifacts, options, path in BAD_TASKS:
        if serializer == "json" and path.endswith("meta.x"):
            continue  # kombu's JSON carries sets
        for call in (client.sync, client.async_call):
            with pytest.raises(InvalidTaskError) as caught:
                call(artifacts, options)
            assert caught.value.path == path
            assert path in str(caught.value)
        [submission] = client.batch_submit([(artifacts, options)])
        assert isinstance(submission.error, InvalidTaskError)
        assert submission.error.path == path
    for tasks in ("text", {"a": 1}, 7, None):
        bad: Any = tasks
        with pytest.raises(InvalidTaskError, match="tasks"):
            client.batch_submit(bad)
    with open_redis(database) as redis_client:
        assert redis_client.dbsize() == 0


BAD_SETTINGS: list[tuple[dict[str, Any], str]] = [
    ({"broker_url": "localhost:6379"}, "broker_url"),
    ({"broker_url": "nothing://localhost"}, "broker_url"),
    ({"broker_url": "http://localhost"}, "broker_url"),
    ({"broker_url": "redis://localhost:port/0"}, "broker_url"),
    ({"broker_url": "redis://localhost/database"}, "broker_url"),
    ({"broker_url": "redis+cluster://localhost"}, "broker_url"),
    ({"broker_url": 7}, "broker_url"),
    ({"broker_url": "redis://h", "result_backend": "nothing://h"}, "result_backend"),
    ({"broker_url": "redis://h", "result_backend": "db+sqlite:///x.db"}, "result_backend"),
    ({"broker_pool_limit": 0}, "broker_pool_limit"),
    ({"broker_pool_limit": -1}, "broker_pool_limit"),
    ({"broker_pool_limit": 1.5}, "broker_pool_limit"),
    ({"broker_pool_limit": True}, "broker_pool_limit"),
    ({"backend_pool_limit": 0}, "backend_pool_limit"),
    ({"backend_poll_concurrency": 0}, "backend_poll_concurrency"),
    ({"pool_acquire_timeout": -1}, "pool_acquire_timeout"),
    ({"pool_acquire_timeout": float("nan")}, "pool_acquire_timeout"),
    ({"io_timeout": 0}, "io_timeout"),
    ({"io_timeout": -1}, "io_timeout"),
    ({"timeout": -1}, "timeout"),
    ({"timeout": "10"}, "timeout"),
    ({"task_serializer": "nothing"}, "task_serializer"),
    ({"task_serializer": "pickle"}, "task_serializer"),
    ({"result_serializer": "yaml"}, "result_serializer"),
    ({"accept_content": []}, "accept_content"),
    ({"accept_content": ["nothing"]}, "accept_content"),
    ({"shared_transport_scope": "world"}, "shared_transport_scope"),
    ({"auto_forget_result": "perhaps"}, "auto_forget_result"),
    ({"broker_transport_options": 7}, "broker_transport_options"),
]


@pytest.mark.parametrize(("settings", "setting"), BAD_SETTINGS)
def test_bad_settings(settings: dict[str, Any], setting: str) -> None:
    """A setting that cannot be used is a ConfigurationError that names it."""
    with pytest.raises(ConfigurationError) as caught:
        OperatorClient("manual", "v1", **settings)
    assert caught.value.setting == setting
    assert setting in str(caught.value)
    assert isinstance(caught.value, ValueError)


BAD_VARIABLES = [
    ("CELERY_BROKER_URL", "localhost"),
    ("CELERY_RESULT_BACKEND", "nothing://x"),
    ("CELERY_TASK_SERIALIZER", "pickle"),
    ("CELERY_RESULT_SERIALIZER", "nothing"),
    ("AUTO_FORGET_RESULT", "perhaps"),
    ("BROKER_POOL_LIMIT", "many"),
    ("BROKER_POOL_LIMIT", "0"),
    ("BACKEND_POOL_LIMIT", "1.5"),
    ("BACKEND_POLL_CONCURRENCY", "-4"),
    ("POOL_ACQUIRE_TIMEOUT", "soon"),
    ("POOL_ACQUIRE_TIMEOUT", "nan"),
    ("SHARED_TRANSPORT_SCOPE", "world"),
]


@pytest.mark.parametrize(("variable", "value"), BAD_VARIABLES)
def test_bad_variables(monkeypatch: pytest.MonkeyPatch, variable: str, value: str) -> None:
    """An environment variable that cannot be used is a ConfigurationError that names it."""
    monkeypatch.setenv(f"SANDAI_OPERATOR_{variable}", value)
    with pytest.raises(ConfigurationError) as caught:
        OperatorClient("manual", "v1")
    assert caught.value.setting == f"SANDAI_OPERATOR_{variable}"


def test_bad_priority() -> None:
    """A client's unknown priority is an InvalidPriorityError that lists the known ones."""
    with pytest.raises(InvalidPriorityError, match="very_low"):
        OperatorClient("manual", "v1", priority="urgent")

"""
sandai-operator-client 0.4.7 beside ours: the same scripts, the same operators, the same answers.

``OLDER_CLIENT_PYTHON`` is the Python of an environment that holds it (it owns the file of our
façade, so it needs one); the session ``tests-integration`` makes it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import sandai.operator_client
from celery_worker import CeleryWorker, without_celery_variables
from light_operator import LightOperator
from local_redis import LocalRedis
from watching import eventually, open_redis

OLDER = os.environ.get("OLDER_CLIENT_PYTHON", "")
older_only = pytest.mark.skipif(not OLDER, reason="OLDER_CLIENT_PYTHON is not set")
BOTH = [
    pytest.param(sys.executable, id="ours"),
    pytest.param(OLDER, id="older", marks=older_only),
]


def run(python: str, script: str, url: str, *arguments: str) -> str:
    """Run a script against the operators at a URL; return what it prints."""
    environment = without_celery_variables(os.environ)
    environment["SANDAI_OPERATOR_CELERY_BROKER_URL"] = url
    if python == OLDER:
        # Our source folders, where they are on the path, must not hide the older package.
        environment.pop("PYTHONPATH", None)
    done = subprocess.run(
        [python, "-c", script, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


CLIPS = """
import json, sys
from sandai.operator_client import TaskExecutionError, create_client

uri = sys.argv[1]
video = [{"uri": uri, "slot": "video"}]
client = create_client("video-clipper", "v1", timeout=40)
out = {"desc": dict(client.desc), "queues": client.get_queue_info()}
health = client.probe(timeout=20)
out["probe"] = [health.submit_ok, health.retrieval_ok, health.response_ok, health.error]
artifacts, results = client.sync(input_artifacts=video, options={"clip_duration": 1})
out["sync"] = [[a["slot"] for a in artifacts], results]
artifacts, _ = client.sync(video, {"clip_duration": 1}, persistent_output=True)
out["persistent"] = "/persistent/" in artifacts[0]["uri"]
tasks = [(video, {"clip_duration": 1, "start": n}) for n in (0, 1)]
tasks.append(([{"uri": "file:///nowhere.mp4", "slot": "video"}], {"clip_duration": 1}))
detailed = client.batch_sync_detailed(tasks)
out["batch"] = [
    [r.index, r.submitted, r.success, type(r.error).__name__, r.results] for r in detailed
]
out["message"] = detailed[2].error.error_message
out["legacy"] = [[len(a), r] for a, r in client.batch_sync(tasks)]
handles = client.batch_async(tasks[:2])
out["handles"] = [h.get(timeout=30)["status"] for h in handles]
try:
    client.sync(video, {"clip_duration": -1})
except TaskExecutionError as error:
    out["error"] = [error.error_message, error.error_details]
client.close()
print(json.dumps(out, sort_keys=True))
"""


@pytest.mark.parametrize("python", BOTH)
def test_clipping(python: str, clipper_url: str, clipper_worker: CeleryWorker, video: Path) -> None:
    """The example operator serves the older client and ours alike."""
    out = json.loads(run(python, CLIPS, clipper_url, video.as_uri()))
    assert sorted(out["desc"]) == ["doc", "options_schema", "results_schema"]
    assert "clip_duration" in out["desc"]["options_schema"]["properties"]
    assert out["queues"]["very_low"] == "very_low.video-clipper.v1"
    assert out["probe"] == [True, True, True, None]
    slots, results = out["sync"]
    assert slots == ["clip"]
    assert 0.9 <= results["duration"] <= 1.1
    assert out["persistent"] is True
    assert [item[:4] for item in out["batch"]] == [
        [0, True, True, "NoneType"],
        [1, True, True, "NoneType"],
        [2, True, False, "TaskExecutionError"],
    ]
    assert "nowhere.mp4" in out["message"]
    assert [count for count, _ in out["legacy"]] == [1, 1, 0]
    assert out["legacy"][2] == [0, {}]
    assert out["handles"] == ["success", "success"]
    assert "clip_duration" in out["error"][0]
    with open_redis(clipper_url) as redis_client:
        # What sync() and the like read is gone; what handles read is left.
        eventually(lambda: len(redis_client.keys("celery-task-meta-*")) == 2, within=3)
        redis_client.delete(*redis_client.keys("celery-task-meta-*"))


ANSWERS = """
import json
import sandai.operator_client as sdk

client = sdk.create_client("scripted", "v1", timeout=20, cancel_key="key")
out = []
FIELDS = "error_message", "error_details", "deadline", "current_time", "cancel_key", "status"
def note(call):
    try:
        out.append(["returned", call()])
    except Exception as error:
        fields = {f: getattr(error, f) for f in FIELDS if hasattr(error, f)}
        out.append([type(error).__name__, fields])

def reply(value):
    return {"do": "reply", "reply": value}

def failed(**error):
    return reply({"status": "error", "error": error})

details = {"deadline": 1.5, "current_time": 2.5, "cancel_key": "abc"}
for options in (
    reply({"status": "success"}),
    reply({"status": "success", "artifacts": [{"uri": "a"}], "results": {"n": 1}}),
    reply({"status": "weird"}),
    reply({}),
    reply([1]),
    reply("text"),
    reply(None),
    reply({"status": "error", "error": "text"}),
    reply({"status": "error", "error": None}),
    reply({"status": "error"}),
    failed(error_type="E", error_message="m", error_details={"a": 1}),
    failed(error_type="E", error_message="m", error_details=[1]),
    failed(error_type="TaskDeadlineExceededError", error_message="m", error_details=details),
    failed(error_type="TaskCancelledError", error_message="m", error_details=details),
    {"do": "large", "size": 100000},
):
    note(lambda: client.sync([], options))
def seen(results):
    kwargs = dict(results["kwargs"])
    return [sorted(kwargs), kwargs["meta"], kwargs.get("cancel_key"), results["queue"]]
note(lambda: seen(client.sync([], {"x": 1}, priority="high", persistent_output=True)[1]))
note(lambda: seen(client.sync([], {"x": 1}, cancel_key="mine", priority="very_low")[1]))
note(lambda: client.sync([], {}, priority="urgent"))
note(lambda: client.desc)
note(lambda: client.ping())
note(lambda: client.batch_sync([([], reply({"status": "success"})), ([], reply("bad"))]))
note(lambda: client.batch_sync([]))
note(lambda: [h.get(timeout=20)["status"] for h in client.batch_async([([], {}), ([], {})])])
note(lambda: client.async_call([], {"do": "reply", "reply": "raw"}).get(timeout=20))
print(json.dumps(out, sort_keys=True))
"""


@older_only
def test_same_answers(redis_server: LocalRedis, scripted_worker: CeleryWorker) -> None:
    """Many answers, right and wrong, are the same to the older client and to ours."""
    ours, theirs = (
        json.loads(run(python, ANSWERS, redis_server.url)) for python in (sys.executable, OLDER)
    )
    assert ours == theirs
    assert len(ours) == 24
    with open_redis(redis_server.url) as redis_client:
        redis_client.flushdb()


SUBMITS = """
from sandai.operator_client import create_client

client = create_client("scripted", "v1", timeout=20)
print(client.async_call([], {"n": 7}).id)
"""


@older_only
def test_a_task_of_the_older_client(
    redis_server: LocalRedis, scripted_worker: CeleryWorker
) -> None:
    """Our client reads the result of a task that the older one submitted."""
    task_id = run(OLDER, SUBMITS, redis_server.url).strip()
    with sandai.operator_client.create_client(
        "scripted", "v1", broker_url=redis_server.url
    ) as client:
        reply = client.attach(task_id).get(timeout=10)
        assert reply["results"]["kwargs"]["options"] == {"n": 7}
        client.attach(task_id).forget()


# The snippets of the reference page, as they stand there

QUICK_START = """\
from sandai.operator_client import create_client

client = create_client("video-clipper", "v1")

artifacts, results = client.sync(
    input_artifacts=[{"uri": "file:///tmp/input.mp4", "slot": "video"}],
    options={"clip_duration": 10},
)
"""
LIMITS = """\
from sandai.operator_client import OperatorClient

client = OperatorClient(
    "video-clipper",
    "v1",
    broker_pool_limit=4,
    backend_pool_limit=6,
    backend_poll_concurrency=3,
    pool_acquire_timeout=10.0,
    shared_transport_scope="operator",
)
"""
ASYNC_USAGE = """\
import asyncio

from sandai.operator_client import create_async_client


async def main() -> None:
    async with create_async_client("video-clipper", "v1") as client:
        artifacts, results = await client.sync(
            input_artifacts=[{"uri": "file:///tmp/input.mp4", "slot": "video"}],
            options={"clip_duration": 10},
        )
        print(artifacts, results)


asyncio.run(main())
"""
SHOW_QUICK_START = """
import json
print(json.dumps([artifacts, results]))
"""
SHOW_LIMITS = """
import json
print(json.dumps([client.sync([], {"n": 1}), client.ping(), client.get_queue_info()["low"]]))
"""


@pytest.mark.parametrize("python", BOTH)
def test_snippets(python: str, database: str) -> None:
    """The page's snippets run unmodified, configured by the environment alone."""
    # The light operator echoes: no file of that name is needed.
    with LightOperator(database, name="video-clipper"):
        assert json.loads(run(python, QUICK_START + SHOW_QUICK_START, database)) == [
            [{"uri": "file:///tmp/input.mp4", "slot": "video"}],
            {"clip_duration": 10},
        ]
        assert run(python, ASYNC_USAGE, database).strip() == (
            "[{'uri': 'file:///tmp/input.mp4', 'slot': 'video'}] {'clip_duration': 10}"
        )
        assert json.loads(run(python, LIMITS + SHOW_LIMITS, database)) == [
            [[], {"n": 1}],
            True,
            "low.video-clipper.v1",
        ]


PUBLIC = """
import json
import sandai.operator_client as sdk
print(json.dumps(sorted(name for name in sdk.__all__)))
"""
NOT_OURS = {"CeleryConfig", "env_bool", "get_celery_config", "get_default_celery_config"}
NOT_OURS |= {"resolve_client_config"}
ASYNC = {"AsyncOperatorClient", "AsyncSubmittedTask", "AsyncTaskHandle", "create_async_client"}


@older_only
def test_older_names(database: str) -> None:
    """Every public name of the older package is one of our façade's, but for its own plumbing."""
    names = set(json.loads(run(OLDER, PUBLIC, database)))
    assert names - NOT_OURS - ASYNC <= set(sandai.operator_client.__all__)
    for name in {*sandai.operator_client.__all__, *ASYNC}:
        assert hasattr(sandai.operator_client, name)


def test_ignored_arguments_of_the_older_client(database: str) -> None:
    """The older constructors' arguments without a use any more are ignored, with a warning."""
    for make in (sandai.operator_client.create_client, sandai.operator_client.OperatorClient):
        arguments: dict[str, Any] = {"result_backend_max_connections": 5, "thread_safe_mode": True}
        with pytest.warns(DeprecationWarning, match="ignored") as warned:
            client = make("nobody", "v1", broker_url=database, **arguments)
        assert {w.filename for w in warned} == {__file__}
        with client:
            assert client.ping()

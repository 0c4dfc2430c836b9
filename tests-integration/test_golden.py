"""Our message on a Redis broker against the one that Celery's own ``send_task`` writes."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgpack
import pytest

from celery_worker import CeleryWorker, without_celery_variables
from conftest import CreateClient
from watching import open_redis

SENDS_OURS = """
import json, sys
from sandai.op.client import OperatorClient
url, serializer, calls = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
with OperatorClient("golden", "v1", url, timeout=None, task_serializer=serializer) as client:
    for how, arguments, controls in calls:
        if how == "sync":
            client.async_call(*arguments, **controls)
        elif how == "batch":
            assert all(s.submitted for s in client.batch_submit([arguments] * 2, **controls))
"""
SENDS_CELERYS = """
import base64, json, sys
from celery import Celery
url, serializer, queue, kwargs = sys.argv[1], sys.argv[2], sys.argv[3], json.loads(sys.argv[4])
app = Celery("reference", broker=url, backend=url)
app.conf.task_serializer = serializer
app.send_task("sandai_operator.golden.v1.process_task", kwargs=kwargs, queue=queue)
"""
HOSTILE = {
    "CELERY_BROKER_URL": "amqp://nobody@127.0.0.1:1//",
    "CELERY_BROKER_READ_URL": "amqp://nobody@127.0.0.1:1//",
    "CELERY_BROKER_WRITE_URL": "amqp://nobody@127.0.0.1:1//",
    "CELERY_RESULT_BACKEND": "cache+memory://",
    "CELERY_LOADER": "default",
    "CELERY_TASK_SERIALIZER": "pickle",
}
ARTIFACTS = [{"uri": "file:///tmp/ü.mp4", "slot": "video", "meta": {"fps": 25.5}, "more": [None]}]
OPTIONS = {"clip_duration": 10, "flags": [True, None, "é"], "nested": {"a": {"b": 2**40}}}
OUR_OWN = {"id", "root_id", "origin", "kwargsrepr"}


def run(
    script: str,
    *arguments: str,
    environment: dict[str, str] | None = None,
    python: str = sys.executable,
) -> None:
    """Run a script in a Python of its own, with exactly these of Celery's variables."""
    done = subprocess.run(
        [python, "-W", "error::ResourceWarning", "-c", script, *arguments],
        env=without_celery_variables(os.environ) | (environment or {}),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def take(redis_client: Any, queue: str) -> list[dict[str, Any]]:
    """Take the envelopes out of a queue, oldest first."""
    found = [json.loads(message) for message in reversed(redis_client.lrange(queue, 0, -1))]
    redis_client.flushdb()
    return found


def body(envelope: dict[str, Any]) -> Any:
    """Decode a message's body."""
    raw = base64.b64decode(envelope["body"])
    is_json = envelope["content-type"] == "application/json"
    return json.loads(raw) if is_json else msgpack.unpackb(raw)


def compare(ours: dict[str, Any], celerys: dict[str, Any]) -> None:
    """Compare two envelopes key by key; ids and what tells of the sender's process aside."""
    assert list(ours) == list(celerys)
    for key in ("body", "content-type", "content-encoding"):
        assert ours[key] == celerys[key], key
    assert sorted(ours["headers"]) == sorted(celerys["headers"])
    for key in celerys["headers"].keys() - OUR_OWN - {"ignore_result"}:
        assert ours["headers"][key] == celerys["headers"][key], key
    # Null leaves it to the operator. Recent Celery says so too; 5.5 says false.
    assert ours["headers"]["ignore_result"] is None
    assert not celerys["headers"]["ignore_result"]
    assert sorted(ours["properties"]) == sorted(celerys["properties"])
    for key in celerys["properties"].keys() - {"correlation_id", "reply_to", "delivery_tag"}:
        assert ours["properties"][key] == celerys["properties"][key], key
    for envelope in (ours, celerys):
        headers, properties = envelope["headers"], envelope["properties"]
        assert headers["id"] == headers["root_id"] == properties["correlation_id"]
        assert len({headers["id"], properties["reply_to"], properties["delivery_tag"]}) == 3
        assert all(isinstance(headers[key], str) for key in OUR_OWN)
        assert headers["origin"].count("@") == 1


@pytest.mark.parametrize("variables", [{}, HOSTILE], ids=["clean", "celery variables"])
@pytest.mark.parametrize("serializer", ["msgpack", "json"])
def test_envelope(database: str, serializer: str, variables: dict[str, str]) -> None:
    """Our envelope of a call, of a batch and with every control is the one of send_task."""
    controls = {"timeout": 60, "cancel_key": "key", "persistent_output": True, "priority": "low"}
    calls = [
        ("sync", [[], {}], {}),
        ("sync", [ARTIFACTS, OPTIONS], {}),
        ("batch", [ARTIFACTS, OPTIONS], {}),
        ("sync", [ARTIFACTS, OPTIONS], controls),
    ]
    with open_redis(database) as redis_client:
        run(SENDS_OURS, database, serializer, json.dumps(calls), environment=variables)
        # Celery's transport writes bindings too, which nobody needs.
        assert set(redis_client.keys()) == {b"normal.golden.v1", b"low.golden.v1"}
        low = [json.loads(redis_client.lindex("low.golden.v1", 0))]
        ours = take(redis_client, "normal.golden.v1") + low
        assert len(ours) == 5
        for envelope in ours[1:]:
            queue = envelope["properties"]["delivery_info"]["routing_key"]
            args, kwargs, embed = body(envelope)
            assert args == []
            assert embed == {"callbacks": None, "errbacks": None, "chain": None, "chord": None}
            assert kwargs["artifacts"] == ARTIFACTS
            assert kwargs["options"] == OPTIONS
            run(SENDS_CELERYS, database, serializer, queue, json.dumps(kwargs))
            [celerys] = take(redis_client, queue)
            compare(envelope, celerys)
        assert set(body(low[0])[1]) == {
            "meta",
            "artifacts",
            "options",
            "deadline",
            "cancel_key",
        }


@pytest.mark.parametrize("module", ["no_such_module", "hostile_settings"])
def test_no_configuration_module(database: str, tmp_path: Path, module: str) -> None:
    """The application's CELERY_CONFIG_MODULE is not loaded, and so changes nothing."""
    (tmp_path / "hostile_settings.py").write_text(
        "task_default_delivery_mode = 1\n"
        "task_protocol = 1\n"
        "task_compression = 'gzip'\n"
        "task_ignore_result = True\n"
        "broker_transport_options = {'global_keyprefix': 'hostile:'}\n"
    )
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    variables = {"CELERY_CONFIG_MODULE": module, "PYTHONPATH": path}
    with open_redis(database) as redis_client:
        run(SENDS_OURS, database, "json", '[["sync", [[], {}], {}]]', environment=variables)
        [ours] = take(redis_client, "normal.golden.v1")
        kwargs = json.dumps(body(ours)[1])
        run(SENDS_CELERYS, database, "json", "normal.golden.v1", kwargs)
        [celerys] = take(redis_client, "normal.golden.v1")
        compare(ours, celerys)


def test_nothing_of_the_arguments_shows(database: str, create_client: CreateClient) -> None:
    """The representation in the headers names options and counts artifacts, no value."""
    client = create_client("golden", "v1", broker_url=database)
    client.async_call([{"uri": "s3://secret-bucket/x", "slot": "video"}], {"api_token": "canary-1"})
    with open_redis(database) as redis_client:
        [envelope] = take(redis_client, "normal.golden.v1")
    shown = json.dumps(envelope["headers"])
    assert "api_token" in shown
    assert "canary-1" not in shown
    assert "secret-bucket" not in shown


CLIPS = """
import sys
from sandai.op.client import OperatorClient
url, serializer, uri = sys.argv[1:]
with OperatorClient("video-clipper", "v1", url, timeout=40, task_serializer=serializer) as client:
    artifacts, results = client.sync([{"uri": uri, "slot": "video"}], {"clip_duration": 1})
    assert artifacts[0]["slot"] == "clip" and 0.5 < results["duration"] < 1.5, (artifacts, results)
"""


@pytest.mark.parametrize("variables", [{}, HOSTILE], ids=["clean", "celery variables"])
@pytest.mark.parametrize("serializer", ["msgpack", "json"])
def test_the_example_operator_takes_it(
    clipper_url: str,
    clipper_worker: CeleryWorker,
    video: Path,
    serializer: str,
    variables: dict[str, str],
) -> None:
    """The worker of the example operator takes our message and clips the video."""
    run(CLIPS, clipper_url, serializer, video.as_uri(), environment=variables)

"""validate_options: options are checked against the operator's own schema before they are sent."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

import scripted_operator
from conftest import CreateClient
from fault_rig import SLACK
from sandai.op.models import (
    ConfigurationError,
    InvalidPriorityError,
    InvalidTaskError,
    TaskTimeoutError,
)
from sandai.op.transport import LOOK_SECONDS
from scenarios import World, at_once, queued, sleeping

SCHEMA = {
    "type": "object",
    "properties": {
        "segments": {
            "type": "array",
            "items": {"type": "object", "properties": {"end": {"type": "number"}}},
        }
    },
}
WRONG = {"segments": [{"end": 1}, {"end": 2}, {"end": "soon"}]}


def describe(world: World, schema: Any) -> None:
    """Have the operator answer the next description with this schema."""
    description = {"status": "success", "doc": "d", "options_schema": schema}
    world.redis.rpush(scripted_operator.DESCRIPTIONS, json.dumps(description))


def descriptions(world: World) -> int:
    """Count the description tasks that came."""
    return int(world.redis.get(scripted_operator.DESCRIBED) or 0)


def test_a_wrong_option(world: World) -> None:
    """The path is the option's, nothing is queued, and the schema is asked for once."""
    describe(world, SCHEMA)
    client = world.client(validate_options=True)
    for call in (client.sync, client.async_call):
        with pytest.raises(InvalidTaskError) as caught:
            call([], WRONG)
        assert caught.value.path == "options.segments[2].end"
        assert "'number'" in caught.value.reason
    assert client.statistics()[0].sent == 1  # the description's task
    _, results = client.sync([], {"segments": [{"end": 3}]})
    assert results["kwargs"]["options"] == {"segments": [{"end": 3}]}
    assert client.desc()["options_schema"] == SCHEMA
    assert descriptions(world) == 1
    assert client.probe().response_ok
    assert client.ping()


def test_a_batch(world: World) -> None:
    """Each wrong item has its own error, and the others go."""
    describe(world, SCHEMA)
    client = world.client(validate_options=True)
    results = client.batch_sync_detailed([([], {"n": 1}), ([], WRONG), ([], {"n": 2})])
    assert [result.success for result in results] == [True, False, True]
    assert isinstance(results[1].error, InvalidTaskError)
    assert results[1].error.path == "options.segments[2].end"
    submissions = client.batch_submit([([], WRONG), ([], {})])
    assert [submission.submitted for submission in submissions] == [False, True]
    assert client.batch_collect(submissions)[1].success
    assert descriptions(world) == 1


def test_many_at_once(world: World) -> None:
    """However many call at a time, the operator describes itself once."""
    describe(world, SCHEMA)
    client = world.client(validate_options=True)
    with at_once(8, lambda number: client.sync([], {"n": number})) as calls:
        assert [call.result()[1]["kwargs"]["options"]["n"] for call in calls] == list(range(8))
    assert descriptions(world) == 1


def test_no_worker(world: World) -> None:
    """The question counts against the call's own timeout, and its failure is told as desc's."""
    client = world.client("nobody", validate_options=True)
    began = time.monotonic()
    with pytest.raises(TaskTimeoutError) as caught:
        client.sync([], {}, timeout=0.5)
    assert time.monotonic() - began < 0.5 + LOOK_SECONDS + SLACK
    assert caught.value.timeout == 0.5
    assert (caught.value.state, caught.value.queue) == ("queued", "high.nobody.v1")
    assert queued(world, "normal.nobody.v1") == []
    with at_once(3, lambda number: client.sync([], {}, timeout=0.3 + 0.3 * number)) as calls:
        errors = [call.exception() for call in calls]
    assert all(isinstance(error, TaskTimeoutError) for error in errors)
    assert time.monotonic() - began < 0.5 + 0.9 + 2 * (LOOK_SECONDS + SLACK)
    assert queued(world, "normal.nobody.v1") == []
    with pytest.raises(InvalidPriorityError):
        client.sync([], {}, priority="urgent")


def test_the_deadline_is_the_calls(world: World) -> None:
    """What the question took is not added to the deadline on the wire."""
    describe(world, SCHEMA)
    client = world.client(validate_options=True)
    before = time.time()
    _, results = client.sync([], {}, timeout=5)
    assert before + 4.5 < results["kwargs"]["deadline"] <= before + 5.1
    _, results = client.sync([], {}, timeout=5)
    assert results["kwargs"]["deadline"] > before + 5.1  # the question took 0.2 s


def test_a_single_look(world: World) -> None:
    """A timeout of 0 sends no deadline, checked or not."""
    describe(world, SCHEMA)
    client = world.client(validate_options=True)
    with pytest.raises(TaskTimeoutError):
        client.sync([], sleeping(0.5), timeout=0)
    handle = client.async_call([], {"n": 2}, timeout=0)
    assert "deadline" not in handle.get(timeout=10)["results"]["kwargs"]


@pytest.mark.parametrize("schema", [None, {}])
def test_an_operator_without_a_schema(world: World, schema: Any) -> None:
    """It takes everything."""
    describe(world, schema)
    client = world.client(validate_options=True)
    assert client.sync([], WRONG)[1]["kwargs"]["options"] == WRONG


def test_a_schema_that_is_none(world: World) -> None:
    """It is the operator's fault, and says so; nothing is sent unchecked."""
    describe(world, {"type": "objct"})
    client = world.client(validate_options=True)
    for _ in range(2):
        with pytest.raises(ConfigurationError, match="options_schema"):
            client.sync([], {})
    assert descriptions(world) == 1
    assert client.statistics()[0].sent == 1


def test_off(world: World) -> None:
    """Without the setting nobody asks."""
    client = world.client()
    client.sync([], WRONG)
    assert descriptions(world) == 0


def test_by_environment(
    world: World, create_client: CreateClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The variable switches it on."""
    monkeypatch.setenv("SANDAI_OPERATOR_VALIDATE_OPTIONS", "on")
    client = create_client("scripted", "v1", broker_url="redis://127.0.0.1:1/0")
    assert client.config.validate_options

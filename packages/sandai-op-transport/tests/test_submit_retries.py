"""Which messages are sent again, and what is known of each in the end."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from sandai.op.models import ClientPoolTimeoutError, ConfigurationError, InvalidTaskError
from sandai.op.transport import (
    Attempts,
    Outcome,
    RedisBroker,
    TaskBuilder,
    TaskControls,
    TaskMessage,
    TransportError,
    resolve,
)
from sandai.op.transport._redis_push import Rendering

REFUSED, LOST = TransportError("refused"), TransportError("lost", True)
NO_SLOT = ClientPoolTimeoutError("broker", 1.0, 8)


def made(count: int, **settings: Any) -> tuple[RedisBroker, list[TaskMessage]]:
    """Make a broker that nothing connects to, and messages."""
    settings = {"submit_retries": 2} | settings
    config = resolve("op", "v1", env={}, broker_url="redis://localhost:1/0", **settings)
    broker = RedisBroker(config.broker_key)
    builder = TaskBuilder(config)
    controls = TaskControls()
    return broker, [
        builder.task(broker.messages, "reply", [], {"n": n}, controls) for n in range(count)
    ]


def told(count: int, retries: int, rounds: Sequence[Sequence[Outcome]]) -> tuple[list[int], Any]:
    """Report the outcomes of each round; return how many were sent each time, and the end."""
    broker, messages = made(count)
    attempts = Attempts(broker, messages, retries)
    sent = []
    for number, outcomes in enumerate(rounds):
        sent.append(len(attempts.messages))
        assert {message.attempt for message in attempts.messages} == {number + 1}
        pause = attempts.settle(outcomes)
        assert (pause is None) == (number == len(rounds) - 1)
        assert pause is None or 0 < pause <= 1.25
    return sent, attempts.outcomes


def test_what_was_queued_is_not_sent_again() -> None:
    """Only what failed is, under the same ids, until that is queued too."""
    sent, outcomes = told(3, 5, [[None, LOST, REFUSED], [REFUSED, None], [None]])
    assert sent == [3, 2, 1]
    assert outcomes == [None, None, None]


def test_the_last_word() -> None:
    """When no attempt is left, the errors are what is known."""
    sent, outcomes = told(2, 1, [[REFUSED, LOST], [REFUSED, LOST]])
    assert sent == [2, 2]
    assert outcomes == [REFUSED, LOST]


@pytest.mark.parametrize("last", [REFUSED, NO_SLOT])
def test_a_doubt_remains(last: Outcome) -> None:
    """What an earlier attempt may have queued is in doubt, however the last one ended."""
    _, [outcome] = told(1, 1, [[LOST], [last]])
    assert isinstance(outcome, TransportError)
    assert outcome.maybe_done
    assert outcome.__cause__ is last
    error = outcome.for_operator("op", "v1", "the id")
    assert error.task_id == "the id"


def test_what_is_not_the_brokers_fault_is_not_sent_again() -> None:
    """Neither a task that cannot be sent nor one for which there was no connection in time."""
    bad = InvalidTaskError("options", "is bad")
    sent, outcomes = told(2, 5, [[bad, NO_SLOT]])
    assert sent == [2]
    assert outcomes == [bad, NO_SLOT]


def test_a_broker_that_may_take_twice() -> None:
    """There, what may have been queued is not sent again; what certainly was not, is."""
    _, messages = made(2)
    broker: Any = SimpleNamespace(takes_once=False)
    attempts = Attempts(broker, messages, 3)
    assert attempts.settle([LOST, REFUSED]) is not None
    assert [message.task_id for message in attempts.messages] == [messages[1].task_id]
    assert attempts.settle([None]) is None
    assert attempts.outcomes == [LOST, None]


def test_pauses_grow() -> None:
    """Pauses double from a twentieth of a second to a second, with some spread."""
    broker, messages = made(1)
    attempts = Attempts(broker, messages, 8)
    pauses = [attempts.settle([REFUSED]) for _ in range(8)]
    for pause, middle in zip(pauses, [0.05, 0.1, 0.2, 0.4, 0.8, 1, 1, 1], strict=True):
        assert pause is not None
        assert 0.75 * middle <= pause <= 1.25 * middle
    assert attempts.settle([REFUSED]) is None


def test_the_commands() -> None:
    """Without retries it is LPUSH; with them a script that is given each message's marker."""
    for retries, command in ((0, "LPUSH"), (1, "EVAL")):
        broker, messages = made(2, submit_retries=retries)
        rendering = Rendering(broker)
        for message in messages:
            rendering.add(message)
        [write] = broker.plan(rendering.items).writes()
        [sent] = write.commands
        assert sent[0] == command
        assert sent[-2:] == tuple(envelope for _, envelope, _ in rendering.items)
        if retries:
            assert sent[2:6] == (
                3,
                "normal.op.v1",
                *(f"sandai-op:submitted:{message.task_id}" for message in messages),
            )


def test_both_kinds_in_one_write() -> None:
    """Clients with and without retries share a broker, and their tasks a write."""
    broker, messages = made(1)
    _, plain = made(1, submit_retries=0)
    rendering = Rendering(broker)
    for message in (*messages, *plain, *messages):
        rendering.add(message)
    [write] = broker.plan(rendering.items).writes()
    assert [command[0] for command in write.commands] == ["EVAL", "LPUSH", "EVAL"]
    assert write.positions == [[0], [1], [2]]


def test_markers_are_taken_away_with_the_next_write() -> None:
    """Those of tasks queued at the first attempt; a copy of the others may be on its way yet."""
    broker, messages = made(3)
    attempts = Attempts(broker, messages[1:], 1)
    attempts.settle([LOST, None])
    broker.note_sent([messages[0], *attempts.messages], [None, None])
    item = ("queue", b"envelope", "")
    [write] = broker.plan([item]).writes()
    assert write.commands == [
        ("DEL", f"sandai-op:submitted:{messages[0].task_id}"),
        ("LPUSH", "queue", b"envelope"),
    ]
    [write] = broker.plan([item]).writes()
    assert len(write.commands) == 1


@pytest.mark.parametrize("value", [-1, 101, 1.5, True, "many"])
def test_settings_that_make_no_sense(value: Any) -> None:
    """They are named, as arguments and as variables."""
    with pytest.raises(ConfigurationError, match="submit_retries"):
        resolve("op", "v1", env={}, submit_retries=value)
    with pytest.raises(ConfigurationError, match="SANDAI_OPERATOR_SUBMIT_RETRIES"):
        resolve("op", "v1", env={"SANDAI_OPERATOR_SUBMIT_RETRIES": str(value)})


def test_the_variable() -> None:
    """The environment may say it; it is in no sharing key."""
    config = resolve("op", "v1", env={"SANDAI_OPERATOR_SUBMIT_RETRIES": "3"})
    assert config.submit_retries == 3
    assert config.broker_key == resolve("op", "v1", env={}).broker_key

"""What workers may answer to an inspection, and what becomes of questions."""

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from sandai.op.models import ConfigurationError
from sandai.op.transport import Inspection, QueueDepth, Transport, client_app, inspect, resolve
from sandai.op.transport._inspecting import _ask, _consumed

KNOWN = {"high.x.v1", "low.x.v1"}


@pytest.mark.parametrize(
    ("answer", "consumed"),
    [
        ({"w@h": [{"name": "low.x.v1"}, {"name": "else"}]}, {"w@h": ("low.x.v1",)}),
        ({"w@h": [{"name": "low.x.v1"}, {"name": "low.x.v1"}]}, {"w@h": ("low.x.v1",)}),
        ({"w@h": []}, {"w@h": ()}),
        ({"w@h": None}, {"w@h": ()}),
        ({"w@h": {"error": "no"}}, {"w@h": ()}),
        ({"w@h": [None, 7, {}, {"name": ["low.x.v1"]}]}, {"w@h": ()}),
        ({1: [{"name": "high.x.v1"}]}, {"1": ("high.x.v1",)}),
        ([], {}),
        ("w@h", {}),
    ],
)
def test_answers(answer: Any, consumed: dict[str, tuple[str, ...]]) -> None:
    """A worker that answers is alive, whatever it says; queues are known ones only."""
    assert _consumed(answer, KNOWN) == consumed


def test_each_question_has_its_own_end() -> None:
    """One that fails and one that is late do not keep the others' answers away."""
    never = threading.Event()

    def fail() -> None:
        raise ValueError("redis://user:secret@host is broken")

    began = time.monotonic()
    answers, problems = _ask({"good": lambda: 7, "bad": fail, "late": lambda: never.wait(5)}, 0.2)
    assert time.monotonic() - began < 3
    never.set()
    assert answers == {"good": 7}
    assert problems["late"] == "no answer within 0.2 s"
    assert "ValueError" in problems["bad"]
    assert "secret" not in problems["bad"]


def inspected(timeout: Any = 1.0, **urls: Any) -> Inspection:
    """Inspect an operator by a transport of our own."""
    config = resolve("x", "v1", env={}, **urls)
    transport = Transport(config)
    try:
        return inspect(config, transport, lambda: client_app(config), timeout)
    finally:
        transport.release()


def test_without_servers(tmp_path: Path) -> None:
    """On kombu's filesystem transport everything is answered, and nobody works there."""
    folder = str(tmp_path)
    options = {"data_folder_in": folder, "data_folder_out": folder, "control_folder": folder}
    seen = inspected(
        broker_url="filesystem://",
        broker_transport_options=options,
        result_backend="cache+memory://",
    )
    assert seen.queues["low"] == QueueDepth("low.x.v1", 0)
    assert seen.messages == 0
    assert (seen.workers, seen.consumers) == ((), ())
    assert seen.broker_problem is seen.workers_problem is seen.backend_problem is None
    assert seen.backend.push is None
    assert (seen.pending, seen.pushing, seen.pushed, seen.swept, seen.sweeps) == (0, False, 0, 0, 0)
    plain = seen.to_dict()
    assert json.loads(json.dumps(plain)) == plain


def test_urls_are_redacted() -> None:
    """Neither the value nor its dictionary holds a password."""
    url = "redis://user:secret@127.0.0.1:1/0"
    seen = inspected(broker_url=url)
    assert "secret" not in repr(seen)
    assert "secret" not in json.dumps(seen.to_dict())
    assert seen.broker_problem
    assert seen.backend_problem


@pytest.mark.parametrize("timeout", [0, -1, None, "soon", float("inf"), True])
def test_timeouts(timeout: Any) -> None:
    """What is no number of seconds is refused."""
    with pytest.raises(ConfigurationError, match="timeout"):
        inspected(timeout, result_backend="cache+memory://")

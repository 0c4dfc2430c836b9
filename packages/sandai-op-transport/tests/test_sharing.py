"""Who shares what: the contract's table and the reference page's examples."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from sandai.op.transport import Transport, resolve, statistics

BASE: dict[str, Any] = {
    "operator_name": "clipper",
    "operator_version": "v1",
    "broker_url": "redis://broker/0",
    "result_backend": "redis://backend/0",
}


@contextmanager
def transports(*settings: dict[str, Any]) -> Iterator[list[Transport]]:
    """Yield the transports of clients with these settings; none connects."""
    with ExitStack() as stack:
        opened = []
        for own in settings:
            opened.append(Transport(resolve(**BASE | own, env={})))
            stack.callback(opened[-1].release)
        yield opened


def shared(one: dict[str, Any], other: dict[str, Any]) -> tuple[bool, bool]:
    """Return whether two clients share the broker, and the backend."""
    with transports(one, other) as (first, second):
        return first.broker is second.broker, first.backend is second.backend


ROWS: list[tuple[str, object, bool, bool]] = [
    ("shared_transport_scope", "process", False, False),
    ("operator_name", "other", False, False),
    ("operator_version", "v2", False, False),
    ("broker_url", "redis://broker/1", False, True),
    ("task_serializer", "json", False, True),
    ("broker_pool_limit", 5, False, True),
    ("result_backend", "redis://backend/1", True, False),
    ("result_serializer", "msgpack", True, False),
    ("backend_pool_limit", 5, True, False),
    ("backend_poll_concurrency", 2, True, False),
    ("accept_content", ["json", "msgpack", "pickle"], False, False),
    ("broker_transport_options", {"global_keyprefix": "p"}, False, True),
    ("result_backend_transport_options", {"global_keyprefix": "p"}, True, False),
    ("io_timeout", 1.0, False, False),
]


@pytest.mark.parametrize(("setting", "value", "broker", "backend"), ROWS)
@pytest.mark.parametrize("swapped", [False, True])
def test_table(setting: str, value: object, broker: bool, backend: bool, swapped: bool) -> None:
    """Two clients that differ in one setting share just the side it does not belong to."""
    pair: list[dict[str, Any]] = [{}, {setting: value}]
    if swapped:
        pair.reverse()
    assert shared(*pair) == (broker, backend)


@pytest.mark.parametrize(("setting", "value", "broker", "backend"), ROWS)
def test_table_same(setting: str, value: object, broker: bool, backend: bool) -> None:
    """Two clients with the same unusual setting share both sides."""
    assert shared({setting: value}, {setting: value}) == (True, True)


@pytest.mark.parametrize("part", ["operator_name", "operator_version"])
def test_process_scope_ignores_the_operator(part: str) -> None:
    """With the process scope name and version are no part of the keys."""
    process = {"shared_transport_scope": "process"}
    assert shared(process, process | {part: "other"}) == (True, True)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("timeout", 5),
        ("debug", True),
        ("priority", "high"),
        ("cancel_key", "key"),
        ("auto_forget_result", False),
        ("pool_acquire_timeout", 1.0),
        ("accept_content", ["msgpack", "json"]),
    ],
)
def test_not_in_any_key(setting: str, value: object) -> None:
    """What concerns one client's calls alone, or an order, prevents no sharing."""
    assert shared({}, {setting: value}) == (True, True)


def test_rpc_results_belong_to_their_broker() -> None:
    """Replies over ``rpc://`` come through the broker, so its key counts for them."""
    rpc = {"broker_url": "memory://", "result_backend": "rpc://"}
    assert shared(rpc, rpc) == (True, True)
    assert shared(rpc, rpc | {"broker_pool_limit": 3}) == (False, False)


# The reference page's practical examples.


def test_example_same_everything() -> None:
    """Same operator, addresses and pool settings: shared."""
    assert shared({}, {}) == (True, True)


def test_example_poll_concurrency() -> None:
    """A different backend_poll_concurrency: no for the backend."""
    assert shared({}, {"backend_poll_concurrency": 3})[1] is False


def test_example_broker_pool_limit() -> None:
    """Same backend, a different broker_pool_limit: no for the broker."""
    assert shared({}, {"broker_pool_limit": 4}) == (False, True)


def test_example_different_operators() -> None:
    """Different operators, same addresses, default scope: no."""
    assert shared({}, {"operator_name": "other"}) == (False, False)


def test_example_process_scope() -> None:
    """Different operators, the process scope, same settings: yes."""
    process = {"shared_transport_scope": "process"}
    assert shared(process, process | {"operator_name": "other"}) == (True, True)


def test_statistics_follow_the_leases() -> None:
    """What is leased is in the statistics, and only that."""
    with transports({}, {}, {"operator_name": "other"}) as (first, _, _):
        now = statistics()
        assert (len(now.brokers), len(now.backends)) == (2, 2)
        assert first.broker.statistics() in now.brokers.values()
    assert (statistics().brokers, statistics().backends) == ({}, {})

"""
Metrics, by OpenTelemetry's API; imported only where they are switched on.

The instruments are the process's, as the pools are: what is observed of these are all that
are open, whichever client asked for metrics.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from opentelemetry import metrics
from opentelemetry.metrics import CallbackOptions, Meter, Observation

from . import _limiter
from ._limiter import Limiter, LimiterStatistics
from ._peer import labels_of
from ._readers import HubStatistics
from ._registry import statistics
from ._tracing import SCHEMA_URL, SCOPE, scope_version

#: Seconds; those of the conventions, and beyond, for operators that take their time.
_DURATIONS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)
_LONG = (30, 60, 300, 1800)
_WAITS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10, 30)

Observed = Iterator[tuple[dict[str, Any], int]]


class Metrics:
    """The instruments that calls report to."""

    def __init__(self, meter: Meter) -> None:
        self._duration = meter.create_histogram(
            "messaging.client.operation.duration",
            "s",
            "How long submissions, and calls that wait for an answer, took",
            explicit_bucket_boundaries_advisory=[*_DURATIONS, *_LONG],
        )
        self._sent = meter.create_counter(
            "messaging.client.sent.messages", "{message}", "Tasks that were sent to the broker"
        )
        self._waited = meter.create_histogram(
            "sandai.op.pool.wait_time",
            "s",
            "How long callers that found no free connection waited for one",
            explicit_bucket_boundaries_advisory=list(_WAITS),
        )
        for name, unit, text, observe in _OBSERVED:
            meter.create_observable_up_down_counter(name, [observe], unit, text)

    def took(self, attributes: Mapping[str, Any], seconds: float, error_type: str | None) -> None:
        """Record an operation that ended."""
        self._duration.record(seconds, _with_error(attributes, error_type))

    def sent(self, attributes: Mapping[str, Any], error_type: str | None) -> None:
        """Count a message that was handed to the broker."""
        self._sent.add(1, _with_error(attributes, error_type))

    def waited(self, limiter: Limiter, seconds: float, granted: bool) -> None:
        """Record that a caller waited for a connection, in vain unless *granted*."""
        own = {**labels_of(limiter.key), "sandai.op.pool.name": limiter.name}
        self._waited.record(seconds, {**own, "sandai.op.pool.granted": granted})


_metrics: Metrics | None = None


def metrics_of_this_process() -> Metrics:
    """Return the instruments, made the first time."""
    global _metrics
    if _metrics is None:
        # Two threads may both make them: the SDK takes the second ones for the first.
        meter = metrics.get_meter(SCOPE, scope_version(), schema_url=SCHEMA_URL)
        _metrics = Metrics(meter)
        _limiter.on_wait = _metrics.waited
    return _metrics


def _with_error(attributes: Mapping[str, Any], error_type: str | None) -> Mapping[str, Any]:
    return attributes if error_type is None else {**attributes, "error.type": error_type}


# What is open at the moment.


def _pools() -> Iterator[tuple[dict[str, Any], LimiterStatistics]]:
    now = statistics()
    for broker_key, broker in now.brokers.items():
        yield labels_of(broker_key), broker.connections
    for backend_key, backend in now.backends.items():
        yield labels_of(backend_key), backend.commands
        if backend.push is not None:
            yield labels_of(backend_key), backend.push


def _connections() -> Observed:
    for labels, pool in _pools():
        named = {**labels, "sandai.op.pool.name": pool.name}
        yield {**named, "sandai.op.pool.state": "used"}, pool.in_use
        yield {**named, "sandai.op.pool.state": "idle"}, pool.idle


def _most() -> Observed:
    for labels, pool in _pools():
        yield {**labels, "sandai.op.pool.name": pool.name}, pool.limit


def _queued() -> Observed:
    for labels, pool in _pools():
        yield {**labels, "sandai.op.pool.name": pool.name}, pool.waiting


def _pending() -> Observed:
    for key, backend in statistics().backends.items():
        readers = [reader for reader in backend.readers if isinstance(reader, HubStatistics)]
        yield labels_of(key), sum(reader.pending for reader in readers)


def _summed(observe: Callable[[], Observed]) -> Callable[[CallbackOptions], Iterable[Observation]]:
    def report(_: CallbackOptions) -> Iterable[Observation]:
        # Pools may differ in settings that no attribute shows; they are one to whoever looks.
        sums: Counter[tuple[tuple[str, Any], ...]] = Counter()
        for labels, value in observe():
            sums[tuple(sorted(labels.items()))] += value
        return [Observation(value, dict(labels)) for labels, value in sums.items()]

    return report


_OBSERVED = (
    (
        "sandai.op.pool.connections",
        "{connection}",
        "Connections that are open, used or idle",
        _summed(_connections),
    ),
    (
        "sandai.op.pool.connections.max",
        "{connection}",
        "Connections that may be open at most",
        _summed(_most),
    ),
    (
        "sandai.op.pool.pending_requests",
        "{request}",
        "Callers that are queued for a connection",
        _summed(_queued),
    ),
    ("sandai.op.tasks.pending", "{task}", "Tasks whose result is waited for", _summed(_pending)),
)

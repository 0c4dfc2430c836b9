"""
What a client tells OpenTelemetry of its calls; ``None`` where nothing is switched on.

Spans and metrics follow the messaging conventions, version 1.44.0 (in development then,
https://github.com/open-telemetry/semantic-conventions/tree/v1.44.0/docs/messaging). The
library is imported with the first client that asks for it, never before.

A submission is a ``send`` span of kind PRODUCER, whose context travels as ``_tracing``. A
batch is one such span without "Create" spans, as the conventions have it for those who
switch them off: at thousands of messages a second, a span for each costs more than sending
it. A call that waits for its answer is a span of kind CLIENT around that.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from ._config import Config
from ._operations import Operation, Request, Sending
from ._peer import address_of, operator_labels, system_of

if TYPE_CHECKING:
    from ._metrics import Metrics
    from ._tracing import Tracing


class Unobserved:
    """Instead of an operation, where there is no telemetry: ``with`` this nothing happens."""

    # Static: a bound method would be kept by each of a hundred thousand who wait.
    @staticmethod
    def __enter__() -> None:
        pass

    @staticmethod
    def __exit__(*_: object) -> None:
        pass


UNOBSERVED = Unobserved()


def telemetry_of(config: Config) -> "Telemetry | None":
    """Return what *config* switches on, ``None`` for nothing."""
    if not config.tracing and not config.metrics:
        return None
    from ._metrics import metrics_of_this_process
    from ._tracing import Tracing

    return Telemetry(
        config,
        Tracing() if config.tracing else None,
        metrics_of_this_process() if config.metrics else None,
    )


class Telemetry:
    """Begin the operations of one client; ``with`` them, in the caller's context."""

    def __init__(
        self, config: Config, tracing: "Tracing | None", metrics: "Metrics | None"
    ) -> None:
        self.tracing = tracing
        self.metrics = metrics
        self._queues = config.queue_names
        self._priority = config.priority
        self._shared: dict[str, Any] = {
            "messaging.system": system_of(config.broker_url),
            **address_of(config.broker_url),
            **operator_labels(config.operator_name, config.operator_version),
        }

    def submission(self, priority: object, within: Request | None = None) -> Sending:
        """Begin to submit one task."""
        return Sending(self, self._attributes("send", "send", priority), within=within)

    def batch(self, priority: object) -> Sending:
        """Begin to submit many tasks, in one span."""
        return Sending(self, self._attributes("send", "send", priority), batch=True)

    def request(self, name: str, priority: object) -> Request:
        """Begin a call that submits and waits for the answer; *name* is its method's."""
        return Request(self, self._attributes(name, None, priority), priority)

    def collection(self, links: Iterable[object], count: int) -> Operation:
        """Begin to wait for *count* tasks; *links* lead to what they were submitted in."""
        attributes = self._attributes("batch_collect", "receive", None)
        return Operation(self, attributes, count=count, links=links)

    def _attributes(self, name: str, kind: str | None, priority: object) -> dict[str, Any]:
        attributes = {**self._shared, "messaging.operation.name": name}
        if kind is not None:
            attributes["messaging.operation.type"] = kind
        if kind != "receive":
            chosen = self._priority if priority is None else priority
            queue = self._queues.get(chosen) if isinstance(chosen, str) else None
            if queue is not None:
                attributes["messaging.destination.name"] = queue
        return attributes

"""What there is to see of an operator and of the way to it, at one moment."""

from typing import Any

from attrs import asdict, field, frozen

from sandai.op.models import redact

from ._backend import BackendStatistics
from ._broker import BrokerStatistics, QueueDepth


@frozen
class Worker:
    """
    A Celery worker that answered.

    ``queues`` are those of this operator's queues that it consumes: none, if it works
    for other operators of the same broker.
    """

    name: str
    queues: tuple[str, ...]


@frozen
class Inspection:
    """
    An operator's queues and workers, and what this client holds open.

    ``queues`` is by priority. ``workers`` are all that answered on the broker, whoever
    they work for; see :attr:`consumers`. What could not be found out is missing, and
    ``broker_problem``, ``workers_problem`` and ``backend_problem`` say why. ``broker``
    and ``backend`` are what ``client.statistics()`` tells; clients that share a broker
    or a backend share these. URLs are without passwords.
    """

    operator_name: str
    operator_version: str
    broker_url: str = field(converter=redact)
    result_backend: str = field(converter=redact)
    queues: dict[str, QueueDepth]
    workers: tuple[Worker, ...]
    broker: BrokerStatistics
    backend: BackendStatistics
    broker_problem: str | None = None
    workers_problem: str | None = None
    backend_problem: str | None = None

    @property
    def consumers(self) -> tuple[Worker, ...]:
        """The workers that answered and consume at least one of this operator's queues."""
        return tuple(worker for worker in self.workers if worker.queues)

    @property
    def messages(self) -> int | None:
        """How many messages wait in all the queues; ``None`` if none of them can be read."""
        read = [depth.messages for depth in self.queues.values() if depth.messages is not None]
        return sum(read) if read else None

    @property
    def pending(self) -> int:
        """How many tasks are waited for in this process, by all who share the backend."""
        return sum(reader.pending for reader in self.backend.readers)

    @property
    def pushing(self) -> bool:
        """Whether results are pushed to any reader now; there is none when nobody waits."""
        return any(reader.pushing for reader in self.backend.readers)

    @property
    def pushed(self) -> int:
        """How many results were pushed."""
        return sum(reader.pushed for reader in self.backend.readers)

    @property
    def swept(self) -> int:
        """How many results a sweep found."""
        return sum(reader.swept for reader in self.backend.readers)

    @property
    def sweeps(self) -> int:
        """How many sweeps were made."""
        return sum(reader.sweeps for reader in self.backend.readers)

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data, for JSON."""
        return {
            "operator": {"name": self.operator_name, "version": self.operator_version},
            "queues": {priority: asdict(depth) for priority, depth in self.queues.items()},
            "workers": {
                "answered": [
                    {"name": worker.name, "queues": list(worker.queues)} for worker in self.workers
                ],
                "problem": self.workers_problem,
            },
            "broker": {
                "url": self.broker_url,
                "problem": self.broker_problem,
                **asdict(self.broker),
            },
            "backend": {
                "url": self.result_backend,
                "problem": self.backend_problem,
                "pending": self.pending,
                "pushing": self.pushing,
                "pushed": self.pushed,
                "swept": self.swept,
                "sweeps": self.sweeps,
                **asdict(self.backend),
                "readers": [asdict(reader) for reader in self.backend.readers],
            },
        }

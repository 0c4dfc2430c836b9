"""The calls that ask how an operator, and the way to it, are."""

from sandai.op.models import (
    ClientClosedError,
    ClientPoolTimeoutError,
    HealthCheckResult,
    OperatorError,
    Priority,
    protocol,
)
from sandai.op.transport import (
    UNOBSERVED,
    BackendStatistics,
    BrokerStatistics,
    Config,
    Inspection,
    Request,
    ResultDocument,
    Steps,
    Telemetry,
    Transport,
    TransportError,
    inspect,
)

from ._results import ResultReader
from ._submitter import Submitter


class HealthCalls:
    """What a client tells of its operator, and of itself."""

    config: Config
    _transport: Transport
    _submitter: Submitter
    _results: ResultReader
    _steps: Steps | None
    _telemetry: Telemetry | None

    def _wait(
        self, task_id: str, timeout: float | None, deadline: float, *, queue: str
    ) -> ResultDocument:
        raise NotImplementedError

    def ping(self, timeout: float = 10) -> bool:
        """
        Return whether a task could be submitted within *timeout* seconds.

        Waits for no worker, and leaves nothing in queue or backend.
        """
        self._results.check_open()
        try:
            self._submitter.ping(timeout)
        except (TransportError, ClientPoolTimeoutError) as error:
            if self._steps is not None:
                self._steps.unreachable("ping", error)
            return False
        return True

    def probe(self, timeout: float = 10) -> HealthCheckResult:
        """
        Send a probe task and wait *timeout* seconds for its answer.

        Never raises for an unhealthy operator: the result says how far it came.
        """
        self._results.check_open()
        telemetry = self._telemetry
        asked = Priority.LOW
        with UNOBSERVED if telemetry is None else telemetry.request("probe", asked) as observed:
            result = self._probe(timeout, observed)
            if observed is not None and not result.response_ok:
                observed.fail("unhealthy", result.error or "")
            return result

    def _probe(self, timeout: float, observed: Request | None) -> HealthCheckResult:
        deadline = self._results.deadline(timeout)
        message = self._submitter.probe(timeout, observed)
        task_id = message.task_id
        try:
            self._submitter.send(message)
        except OperatorError as error:
            return HealthCheckResult(
                False, False, False, getattr(error, "task_id", None), str(error)
            )
        try:
            reply = self._wait(task_id, timeout, deadline, queue=message.queue).reply()
        except ClientClosedError:
            raise
        except OperatorError as error:
            return HealthCheckResult(True, False, False, task_id, str(error))
        response_ok, fault = protocol.probe_verdict(task_id, reply)
        return HealthCheckResult(True, True, response_ok, task_id, fault)

    def statistics(self) -> tuple[BrokerStatistics, BackendStatistics]:
        """Return what this client's broker and backend look like now."""
        self._results.check_open()
        return self._transport.broker.statistics(), self._transport.backend.statistics()

    def inspect(self, timeout: float = 2.0) -> Inspection:
        """
        Return what there is to see: queues, workers, budgets, waits, outages.

        Asks broker, workers and backend for *timeout* seconds at most; takes about a
        second. Raises :class:`ConfigurationError` for a timeout that is none, and never
        for a server: the part that failed says why.
        """
        self._results.check_open()
        return inspect(self.config, self._transport, lambda: self._results.app, timeout)

"""The doctor's checks, in the order in which a person would make them."""

from collections.abc import Iterator
from uuid import uuid4

from redis.exceptions import RedisError, ResponseError

from sandai.op.client import ClientPoolTimeoutError, OperatorClient, OperatorError
from sandai.op.models import redact
from sandai.op.transport import (
    Inspection,
    RedisBackend,
    RedisBroker,
    TransportError,
    read_reply,
)

from ._findings import Finding, State, failed, ok, unknown, warning
from ._redis_checks import Redis

_ACL = "grant it (ACL SETUSER), see docs/security.md"
_UNSAFE = {"pickle", "yaml"}


class Checkup:
    """Everything about one operator and the way to it; waits *patience* seconds for a worker."""

    def __init__(self, client: OperatorClient, patience: float) -> None:
        self._client = client
        self._broker = client._transport.broker
        self._backend = client._transport.backend
        self._patience = patience
        self._away: set[str] = set()

    def run(self) -> Iterator[Finding]:
        """Make every check that can be made."""
        yield from self._settings()
        for finding in self._servers():
            yield finding
            if finding.state is State.FAILED:
                # "broker", "backend", or "broker and backend", and what of it
                self._away.update({"broker", "backend"}.intersection(finding.subject.split()))
        if "backend" in self._away:
            yield unknown("results", "not looked at: the backend cannot be used")
        else:
            yield from self._backend_access()
        if "broker" in self._away:
            yield unknown("workers", "not asked: the broker cannot be used")
            yield unknown("queues", "not asked: the broker cannot be used")
            return
        submitting = self._submitting()
        yield submitting
        yield from self._markers()
        yield from self._inspection(self._client.inspect(min(self._patience, 3.0)))
        if submitting.state is State.OK:
            yield self._probe()

    def _settings(self) -> Iterator[Finding]:
        config = self._client.config
        yield ok("broker URL", redact(config.broker_url))
        yield ok("backend URL", redact(config.result_backend))
        said = (
            f"tasks as {config.task_serializer}, results as {config.result_serializer}, "
            f"accepted {', '.join(config.accept_content)}"
        )
        if unsafe := _UNSAFE.intersection(config.accept_content):
            advice = f"whoever can write to the backend can run code here: drop {min(unsafe)}"
            yield warning("serializers", said, advice)
        else:
            yield ok("serializers", said)

    def _servers(self) -> Iterator[Finding]:
        broker, backend = self._broker, self._backend
        servers = []
        same = self._client.broker_url == self._client.result_backend
        if same and isinstance(broker, RedisBroker) and isinstance(backend, RedisBackend):
            servers.append(Redis("broker and backend", broker.connector))
        else:
            if isinstance(broker, RedisBroker):
                servers.append(Redis("broker", broker.connector))
            else:
                yield unknown("broker", "no Redis: its TLS, memory and clock are not looked at")
            if isinstance(backend, RedisBackend):
                servers.append(Redis("backend", backend.connector))
            else:
                yield unknown("backend", "no Redis: results are polled, not pushed")
        for server in servers:
            try:
                yield from server.check()
            finally:
                server.close()

    def _submitting(self) -> Finding:
        try:
            self._client._submitter.ping(self._patience)
        except (TransportError, ClientPoolTimeoutError) as error:
            return failed("submitting", str(error))
        return ok("submitting", "a task could be queued")

    def _markers(self) -> Iterator[Finding]:
        if not isinstance(self._broker, RedisBroker):
            yield warning(
                "submitting once",
                "this broker cannot tell a task that is submitted twice",
                "sandai-op batch waits, when resumed, for tasks that may not have been queued",
            )
            return
        server = Redis("submitting once", self._broker.connector)
        key = f"{self._broker.connector.address.key_prefix}sandai-op:submitted:{uuid4()}"
        script = "return redis.call('SET', KEYS[1], '', 'PX', 1, 'NX')"
        try:
            server.connection = self._broker.connector.open()
            [reply] = server.ask(("EVAL", script, 1, key))
        except TransportError as error:
            yield failed("submitting once", str(error))
            return
        finally:
            server.close()
        if isinstance(reply, ResponseError):
            said = f"submit_retries and sandai-op batch will not work: {reply}"
            yield warning("submitting once", said, _ACL)
        else:
            yield ok("submitting once", "scripts are permitted")

    def _backend_access(self) -> Iterator[Finding]:
        nobody, patience = [str(uuid4())], self._client.config.pool_acquire_timeout
        try:
            self._backend.look(nobody, acquire_timeout=patience)
        except (TransportError, ClientPoolTimeoutError) as error:
            yield failed("reading results", str(error))
            return
        yield ok("reading results", "a result could be read")
        try:
            self._backend.delete(nobody, acquire_timeout=patience)
        except (TransportError, ClientPoolTimeoutError) as error:
            yield warning("deleting results", str(error), "read results stay until they expire")
        if isinstance(self._backend, RedisBackend):
            yield self._push(self._backend, nobody[0])

    def _push(self, backend: RedisBackend, task_id: str) -> Finding:
        slower = "nothing must be done: results are polled, and come a tenth of a second later"
        try:
            connection = backend.connector.open(protocol=3)
        except TransportError as error:
            return warning("push", str(error), slower)
        try:
            command = ("SUBSCRIBE", backend.key(task_id))
            connection.send_packed_command(connection.pack_commands([command]))
            reply = read_reply(connection, push_request=True)
        except (RedisError, OSError) as error:
            return warning("push", str(error), slower)
        finally:
            connection.disconnect()
        if isinstance(reply, ResponseError):
            return warning("push", f"SUBSCRIBE is refused: {reply}", f"{_ACL}; or {slower}")
        return ok("push", "results are pushed")

    def _inspection(self, seen: Inspection) -> Iterator[Finding]:
        yield from self._workers(seen)
        for priority, depth in seen.queues.items():
            subject = f"queue {priority}"
            if depth.messages is None:
                yield unknown(subject, depth.problem or "cannot be read")
            elif depth.messages and not seen.consumers and not depth.consumers:
                advice = "start a worker on this queue"
                yield warning(subject, f"{depth.messages} messages, and nobody seen", advice)
            else:
                yield ok(subject, f"{depth.messages} messages")
        config = self._client.config
        said = (
            f"at most {config.broker_pool_limit} connections to the broker and "
            f"{config.backend_pool_limit} to the backend, for each process"
        )
        yield ok("budget", said)

    def _workers(self, seen: Inspection) -> Iterator[Finding]:
        queues = set(self._client.queue_names.values())
        if seen.consumers:
            names = ", ".join(worker.name for worker in seen.consumers)
            yield ok("workers", f"{len(seen.consumers)} alive: {names}")
            consumed = {queue for worker in seen.consumers for queue in worker.queues}
            if missing := sorted(queues - consumed):
                advice = "start a worker with -Q and all four queues"
                yield warning("workers", f"none consumes {', '.join(missing)}", advice)
        elif seen.workers_problem:
            yield unknown("workers", seen.workers_problem)
        else:
            others = f"; {len(seen.workers)} of other operators did" if seen.workers else ""
            yield unknown("workers", f"none of this operator's answered{others}; see the probe")

    def _probe(self) -> Finding:
        try:
            found = self._client.probe(self._patience)
        except OperatorError as error:
            return failed("probe", str(error))
        if found.response_ok:
            return ok("probe", "a worker answered a probe task")
        if found.retrieval_ok:
            return failed("probe", f"answered: {found.error}", "see the operator's log")
        queue = self._client.queue_names["low"]
        return failed(
            "probe",
            f"no answer within {self._patience:g} s",
            f"start a worker that consumes {queue}; is it the operator's backend that is read?",
        )

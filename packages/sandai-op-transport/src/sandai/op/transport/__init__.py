"""The road between a client and an operator: keyed, shared, bounded, fair."""

from ._app import OperatorApp, client_app
from ._backend import Backend, BackendStatistics, Reader
from ._batch_submission import BatchOutcomes, BatchSubmission
from ._broker import Broker, BrokerStatistics, Outcome, QueueDepth
from ._config import DEFAULT_TIMEOUT, DEFAULT_URL, BackendKey, BrokerKey, Config, resolve
from ._documents import PENDING, READY_STATES, DocumentDecoder, ResultDocument, pending
from ._errors import TransportError
from ._evidence import LOOK_SECONDS, MOST_LOOKED_AT, Evidence
from ._group_commit import Posting
from ._inheritance import close_in_child
from ._inspecting import inspect
from ._inspection import Inspection, Worker
from ._janitor import Tended, watch
from ._limiter import Limiter, LimiterStatistics
from ._message import MessageFactory, TaskMessage
from ._operations import Operation, Request, Sending
from ._outage import Outage
from ._pool import IDLE_SECONDS, ConnectionPool
from ._push import Health, PushRefused, PushSession, ready_responses
from ._push_policy import PushPolicy
from ._readers import HubStatistics
from ._redis import Command, RedisConnection, RedisConnector, last_reply, read_reply
from ._redis_backend import RedisBackend
from ._redis_broker import RedisBroker
from ._redis_push import MESSAGES_PER_WRITE, TAKEN_ONCE_SECONDS, Item, Rendering, interrupted
from ._registry import Transport, TransportStatistics, statistics
from ._revoking import Revoker, check_signal
from ._settings import ClientArguments, ConfiguredClient
from ._steps import Steps, steps_of
from ._submission import TaskBuilder, TaskControls
from ._submit_retries import Attempts
from ._sweeping import SHORTEST, YOUNG, SweepSchedule
from ._telemetry import UNOBSERVED, Telemetry, telemetry_of
from ._waiters import Changes, Waiter, WaiterTable

__all__ = [
    "DEFAULT_TIMEOUT",
    "DEFAULT_URL",
    "IDLE_SECONDS",
    "LOOK_SECONDS",
    "MESSAGES_PER_WRITE",
    "MOST_LOOKED_AT",
    "PENDING",
    "READY_STATES",
    "SHORTEST",
    "TAKEN_ONCE_SECONDS",
    "UNOBSERVED",
    "YOUNG",
    "Attempts",
    "Backend",
    "BackendKey",
    "BackendStatistics",
    "BatchOutcomes",
    "BatchSubmission",
    "Broker",
    "BrokerKey",
    "BrokerStatistics",
    "Changes",
    "ClientArguments",
    "Command",
    "Config",
    "ConfiguredClient",
    "ConnectionPool",
    "DocumentDecoder",
    "Evidence",
    "Health",
    "HubStatistics",
    "Inspection",
    "Item",
    "Limiter",
    "LimiterStatistics",
    "MessageFactory",
    "Operation",
    "OperatorApp",
    "Outage",
    "Outcome",
    "Posting",
    "PushPolicy",
    "PushRefused",
    "PushSession",
    "QueueDepth",
    "Reader",
    "RedisBackend",
    "RedisBroker",
    "RedisConnection",
    "RedisConnector",
    "Rendering",
    "Request",
    "ResultDocument",
    "Revoker",
    "Sending",
    "Steps",
    "SweepSchedule",
    "TaskBuilder",
    "TaskControls",
    "TaskMessage",
    "Telemetry",
    "Tended",
    "Transport",
    "TransportError",
    "TransportStatistics",
    "Waiter",
    "WaiterTable",
    "Worker",
    "check_signal",
    "client_app",
    "close_in_child",
    "inspect",
    "interrupted",
    "last_reply",
    "pending",
    "read_reply",
    "ready_responses",
    "resolve",
    "statistics",
    "steps_of",
    "telemetry_of",
    "watch",
]

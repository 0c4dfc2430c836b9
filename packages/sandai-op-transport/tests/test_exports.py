"""The public surface is a decision: what is exported, and that nothing more is needed."""

import importlib.util
import pkgutil
import types

import sandai.op.transport as transport

EXPORTS = """
    Attempts Backend BackendKey BackendStatistics BatchSubmission Broker BrokerKey BrokerStatistics
    Changes ClientArguments Command Config ConfiguredClient ConnectionPool DEFAULT_TIMEOUT
    DEFAULT_URL DocumentDecoder Health HubStatistics IDLE_SECONDS Item Limiter LimiterStatistics
    MESSAGES_PER_WRITE MessageFactory OperatorApp Outage Outcome PENDING Posting PushPolicy
    PushRefused PushSession READY_STATES Reader RedisBackend RedisBroker RedisConnection
    RedisConnector Rendering ResultDocument SHORTEST SweepSchedule TaskBuilder TaskControls
    TaskMessage Tended Transport TransportError TransportStatistics Waiter WaiterTable YOUNG
    client_app close_in_child interrupted last_reply pending read_reply ready_responses resolve
    statistics watch
    BatchOutcomes Operation Request Steps Sending Telemetry UNOBSERVED steps_of telemetry_of
"""


def test_all() -> None:
    """What is exported is what clients are built on."""
    assert set(transport.__all__) == set(EXPORTS.split())
    assert len(set(transport.__all__)) == len(transport.__all__)


def test_exports_exist_and_are_documented() -> None:
    """Every exported class and function has a docstring."""
    for name in transport.__all__:
        exported = getattr(transport, name)
        if isinstance(exported, type | types.FunctionType):
            assert exported.__doc__, name


def test_nothing_else_is_public() -> None:
    """Every module is private, and every public name is exported."""
    assert all(module.name.startswith("_") for module in pkgutil.iter_modules(transport.__path__))
    public = {
        name
        for name, value in vars(transport).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType)
    }
    assert public == set(transport.__all__)


def test_namespaces() -> None:
    """``sandai`` and ``sandai.op`` belong to no distribution."""
    for name in ("sandai", "sandai.op"):
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.origin is None

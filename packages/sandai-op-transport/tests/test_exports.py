"""The public surface is a decision: what is exported, and that nothing more is needed."""

import importlib.util
import pkgutil
import types

import sandai.op.transport as transport
from sandai.op.transport import testing

EXPORTS = """
    Attempts Backend BackendKey BackendStatistics BatchOutcomes BatchSubmission Broker BrokerKey
    BrokerStatistics Changes check_signal client_app ClientArguments close_in_child Command Config
    ConfiguredClient ConnectionPool DEFAULT_TIMEOUT DEFAULT_URL DocumentDecoder Evidence Health
    HubStatistics IDLE_SECONDS inspect Inspection interrupted Item last_reply Limiter
    LimiterStatistics LOOK_SECONDS MessageFactory MESSAGES_PER_WRITE MOST_LOOKED_AT Operation
    OperatorApp Outage Outcome PENDING pending Posting PushPolicy PushRefused PushSession QueueDepth
    read_reply Reader ready_responses READY_STATES RedisBackend RedisBroker RedisConnection
    RedisConnector Rendering Request resolve ResultDocument Revoker Sending SHORTEST statistics
    Steps steps_of SweepSchedule TAKEN_ONCE_SECONDS TaskBuilder TaskControls TaskMessage Telemetry
    telemetry_of Tended Transport TransportError TransportStatistics UNOBSERVED Waiter WaiterTable
    watch Worker YOUNG
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
    """Every module is private but ``testing``, and every public name is exported."""
    modules = {module.name for module in pkgutil.iter_modules(transport.__path__)}
    assert {name for name in modules if not name.startswith("_")} == {"testing"}
    public = {
        name
        for name, value in vars(transport).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType)
    }
    assert public == set(transport.__all__)


def test_testing() -> None:
    """What tests of an application are written with, and that it is documented."""
    assert sorted(testing.__all__) == testing.__all__
    assert testing.__all__ == [
        "FakeOperator",
        "FakeOperators",
        "FakeTask",
        "Reply",
        "World",
        "world",
    ]
    for name in testing.__all__:
        exported = getattr(testing, name)
        members = vars(exported).items() if isinstance(exported, type) else ()
        public = [value for key, value in members if not key.startswith("_")]
        for each in [exported, *(value for value in public if callable(value))]:
            assert each.__doc__, (name, each)
    modules = {module.name for module in pkgutil.iter_modules(testing.__path__)}
    assert all(name.startswith("_") for name in modules)


def test_namespaces() -> None:
    """``sandai`` and ``sandai.op`` belong to no distribution."""
    for name in ("sandai", "sandai.op"):
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.origin is None

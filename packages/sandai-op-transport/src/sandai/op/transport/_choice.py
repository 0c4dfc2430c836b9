"""
Which broker and which result backend serve a URL.

All kinds are imported here, not when the first is wanted: a child that is forked while
another thread imports a module would wait for that for good.
"""

from ._backend import Backend
from ._broker import Broker
from ._celery_backend import CeleryBackend
from ._config import BackendKey, BrokerKey
from ._kombu_broker import KombuBroker
from ._memory import is_memory
from ._redis_backend import RedisBackend
from ._redis_broker import RedisBroker
from ._rpc_backend import RpcBackend
from ._url import is_redis


def open_broker(key: BrokerKey) -> Broker:
    """Return a broker for a sharing key; nothing is connected yet."""
    return (RedisBroker if key.in_process or is_redis(key.broker_url) else KombuBroker)(key)


def open_backend(key: BackendKey) -> Backend:
    """Return a backend for a sharing key; nothing is connected yet."""
    if is_memory(key.result_backend) or is_redis(key.result_backend):
        return RedisBackend(key)
    return CeleryBackend(key) if key.broker is None else RpcBackend(key)

"""What telemetry calls a broker or a backend: its system, its address; never a password."""

from typing import Any

from kombu.utils.url import url_to_parts

from ._config import BackendKey, BrokerKey
from ._url import REDIS_SCHEMES
from ._url_parts import scheme_of

#: ``messaging.system`` by scheme, where OpenTelemetry has a name for it.
_SYSTEMS = {
    "amqp": "rabbitmq",
    "amqps": "rabbitmq",
    "pyamqp": "rabbitmq",
    "sqs": "aws_sqs",
    "gcpubsub": "gcp_pubsub",
    "azureservicebus": "servicebus",
    "confluentkafka": "kafka",
}
_PORTS = {"redis": 6379, "rediss": 6379, "amqp": 5672, "pyamqp": 5672, "amqps": 5671}


def system_of(url: str) -> str:
    """Return the messaging system that a URL leads to, in OpenTelemetry's words."""
    scheme = scheme_of(url)
    if scheme in REDIS_SCHEMES:
        return "redis"
    kind = scheme.partition("+")[0]
    return _SYSTEMS.get(kind, kind)


def address_of(url: str) -> dict[str, Any]:
    """
    Return ``server.address`` and ``server.port`` of a URL, as far as it tells.

    Behind Sentinels the server may be another one each time, so there are none.
    """
    scheme = scheme_of(url)
    if scheme in ("sentinel", "memory"):
        return {}
    try:
        parts = url_to_parts(url.partition(";")[0].replace("redis+socket://", "socket://", 1))
    except (ValueError, KeyError):
        return {}
    if scheme == "redis+socket":
        return {"server.address": f"/{parts.path}"} if parts.path else {}
    port = parts.port or _PORTS.get(scheme)
    host = parts.hostname or ("localhost" if scheme in _PORTS else None)
    if host is None:
        return {}
    return {"server.address": host} | ({"server.port": int(port)} if port else {})


def labels_of(key: object) -> dict[str, Any]:
    """Return the attributes of whatever a sharing key stands for."""
    if not isinstance(key, BrokerKey | BackendKey):
        return {}
    url = key.broker_url if isinstance(key, BrokerKey) else key.result_backend
    return {**operator_labels(*key.scope), **address_of(url)}


def operator_labels(name: str | None = None, version: str | None = None) -> dict[str, Any]:
    """Return the attributes of an operator; none for what all operators share."""
    if name is None:
        return {}
    return {"sandai.op.operator.name": name, "sandai.op.operator.version": version}

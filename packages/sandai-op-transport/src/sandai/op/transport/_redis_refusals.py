"""Why a Redis cannot serve us, and what to do about it: a sentence for whoever reads the error."""

from collections.abc import Sequence
from typing import Any

from redis.exceptions import (
    AskError,
    AuthenticationError,
    ClusterCrossSlotError,
    ClusterDownError,
    MovedError,
    NoPermissionError,
    ReadOnlyError,
    RedisError,
)

_CLUSTER_ERRORS = (AskError, ClusterCrossSlotError, ClusterDownError, MovedError)
_IS_CLUSTER = (
    "is a Redis Cluster, which Celery's transport does not support; use one Redis, or Sentinel"
)
_IS_SENTINEL = "is a Sentinel; write sentinel://host:port, and the option master_name"
_NO_MASTER = "is no master, though the Sentinels named it (failing over?)"


class UnfitServer(RedisError):
    """The server is of a kind that cannot serve; the text goes on after its name."""


def advice(error: BaseException, setting: str) -> str:
    """Return what to do about an error of the server in *setting*; ``""`` if that is all."""
    said = str(error)
    if isinstance(error, AuthenticationError):
        return f"check the user and the password in {setting}"
    if isinstance(error, NoPermissionError):
        return f"the user in {setting} needs that permission (ACL SETUSER)"
    if isinstance(error, _CLUSTER_ERRORS) or "cluster mode" in said:
        return f"it {_IS_CLUSTER}"
    if "DB index is out of range" in said:
        return f"the database in {setting} must be less than the server's setting 'databases'"
    if "mismatch" in said and "certificate" in said:
        return f"the host in {setting} must be one that the certificate is for"
    if "CERTIFICATE_VERIFY_FAILED" in said or "certificate verify failed" in said:
        return f"name the authority's file: {setting} with ?ssl_ca_certs=/path/to/ca.pem"
    return ""


def is_demoted(error: object) -> bool:
    """
    Return whether an error reply tells of a primary that is, or is about to be, none any more.

    One that has lost its replicas (``min-replicas-to-write``) may have lost them to another.
    """
    return isinstance(error, ReadOnlyError) or str(error).startswith("NOREPLICAS")


def check_role(reply: Any) -> None:
    """Raise :class:`UnfitServer` unless ROLE's reply is a master's."""
    if not isinstance(reply, list) or reply[0] not in (b"master", "master"):
        raise UnfitServer(_NO_MASTER)


def check_mode(reply: Any) -> None:
    """
    Raise :class:`UnfitServer` unless HELLO's reply is a plain server's.

    One node of a Cluster would take tasks that no worker can take out: Celery's workers
    pop from several queues at once. A server too old for the question is no Cluster of ours.
    """
    if isinstance(reply, Sequence) and not isinstance(reply, str | bytes):
        reply = dict(zip(reply[::2], reply[1::2], strict=False))
    if not isinstance(reply, dict):
        return
    mode = reply.get(b"mode", reply.get("mode"))
    if mode in (b"cluster", "cluster"):
        raise UnfitServer(_IS_CLUSTER)
    if mode in (b"sentinel", "sentinel"):
        raise UnfitServer(_IS_SENTINEL)

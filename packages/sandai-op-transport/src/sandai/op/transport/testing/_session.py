"""One connection as a Redis server has it: its protocol, transaction and subscriptions."""

from collections.abc import Callable
from typing import Protocol

from ._commands import COMMANDS, Command, Keyspace
from ._resp import OK, QUEUED, Failure, Pushed, Reply, Status, encode
from ._store import WrongType

_PONG = Status("PONG")
_SILENT = Status("")
_NO_PASSWORD = Failure(
    "ERR AUTH <password> called without any password configured for the default user. "
    "Are you sure your configuration is correct?"
)
_IN_RESP2_SUBSCRIBED = frozenset({b"SUBSCRIBE", b"UNSUBSCRIBE", b"PING", b"QUIT"})


class Surroundings(Keyspace, Protocol):
    """What a session is part of."""

    def refusal(self, side: str, command: bytes) -> str | None: ...
    def join(self, channel: bytes, session: "Session") -> None: ...
    def leave(self, channel: bytes, session: "Session") -> None: ...


class Session:
    """
    Execute one connection's commands; its world is locked meanwhile.

    :attr:`out` holds what is to be sent.
    """

    def __init__(self, world: Surroundings, side: str, told: Callable[[], object]) -> None:
        self.side = side
        self.out = bytearray()
        #: Whether the client said goodbye.
        self.ended = False
        self.subscriptions: set[bytes] = set()
        self._world = world
        self._told = told
        self._protocol = 2
        self._queued: list[Command] | None = None
        self._queued_wrong = False

    def receive(self, command: Command) -> None:
        """Execute a command, or queue it in a transaction."""
        name = command[0].upper()
        refusal = self._refusal(name, len(command))
        reply: Reply
        if refusal is not None:
            self._queued_wrong = True
            reply = refusal
        elif self._queued is not None and name in COMMANDS:
            self._queued.append(command)
            reply = QUEUED
        elif name in COMMANDS:
            reply = self._execute(command)
        else:
            reply = _OWN[name][0](self, command)
        if reply is not _SILENT:
            self.out += encode(reply, self._protocol)

    def publish(self, channel: bytes, payload: bytes) -> None:
        """Send what was published on a channel that this connection has subscribed to."""
        self.out += encode(Pushed((b"message", channel, payload)), self._protocol)
        self._told()

    def end(self) -> None:
        """Leave every channel."""
        for channel in self.subscriptions:
            self._world.leave(channel, self)
        self.subscriptions.clear()

    def _execute(self, command: Command) -> Reply:
        try:
            return COMMANDS[command[0].upper()][0](self._world, command)
        except WrongType as error:
            return Failure(str(error))
        except ValueError:
            return Failure("ERR value is not an integer or out of range")

    def _refusal(self, name: bytes, words: int) -> Failure | None:
        if (said := self._world.refusal(self.side, name)) is not None:
            return Failure(said)
        shown = name.decode("utf-8", "replace").lower()
        known = COMMANDS.get(name) or _OWN.get(name)
        if known is None:
            return Failure(f"ERR unknown command '{shown}'")
        if words < known[1]:
            return Failure(f"ERR wrong number of arguments for '{shown}' command")
        if self._protocol == 2 and self.subscriptions and name not in _IN_RESP2_SUBSCRIBED:
            return Failure(f"ERR Can't execute '{shown}': this connection has subscribed")
        return None

    def _hello(self, command: Command) -> Reply:
        if len(command) > 1:
            if command[1] not in (b"2", b"3"):
                return Failure("NOPROTO unsupported protocol version")
            self._protocol = int(command[1])
        return {
            "server": "redis",
            "version": "7.0.0",
            "proto": self._protocol,
            "id": 1,
            "mode": "standalone",
            "role": "master",
            "modules": (),
        }

    def _client(self, command: Command) -> Reply:
        if command[1].upper() == b"SETNAME" and len(command) == 3:
            return OK
        return Failure("ERR unknown subcommand")

    def _select(self, command: Command) -> Reply:
        return OK if command[1] == b"0" else Failure("ERR DB index is out of range")

    def _auth(self, _: Command) -> Reply:
        return _NO_PASSWORD

    def _ping(self, command: Command) -> Reply:
        if self._protocol == 2 and self.subscriptions:
            return (b"pong", command[1] if len(command) > 1 else b"")
        return command[1] if len(command) > 1 else _PONG

    def _quit(self, _: Command) -> Reply:
        self.ended = True
        return OK

    def _role(self, _: Command) -> Reply:
        return (b"master", 0, ())

    def _info(self, _: Command) -> Reply:
        return "# Server\r\nredis_version:7.0.0\r\nredis_mode:standalone\r\n"

    def _multi(self, _: Command) -> Reply:
        if self._queued is not None:
            return Failure("ERR MULTI calls can not be nested")
        self._queued, self._queued_wrong = [], False
        return OK

    def _discard(self, _: Command) -> Reply:
        if self._queued is None:
            return Failure("ERR DISCARD without MULTI")
        self._queued = None
        return OK

    def _exec(self, _: Command) -> Reply:
        if self._queued is None:
            return Failure("ERR EXEC without MULTI")
        queued, self._queued = self._queued, None
        if self._queued_wrong:
            return Failure("EXECABORT Transaction discarded because of previous errors.")
        return [self._execute(command) for command in queued]

    def _subscribe(self, command: Command) -> Reply:
        for channel in command[1:]:
            self.subscriptions.add(channel)
            self._world.join(channel, self)
            self._acknowledge(b"subscribe", channel)
        return _SILENT

    def _unsubscribe(self, command: Command) -> Reply:
        channels = command[1:] or sorted(self.subscriptions)
        for channel in channels:
            if channel in self.subscriptions:
                self.subscriptions.remove(channel)
                self._world.leave(channel, self)
            self._acknowledge(b"unsubscribe", channel)
        if not channels:
            self._acknowledge(b"unsubscribe", None)
        return _SILENT

    def _acknowledge(self, kind: bytes, channel: bytes | None) -> None:
        self.out += encode(Pushed((kind, channel, len(self.subscriptions))), self._protocol)


#: Commands about the connection, each with the fewest words that it takes.
_OWN: dict[bytes, tuple[Callable[[Session, Command], Reply], int]] = {
    b"AUTH": (Session._auth, 2),
    b"CLIENT": (Session._client, 2),
    b"DISCARD": (Session._discard, 1),
    b"EXEC": (Session._exec, 1),
    b"HELLO": (Session._hello, 1),
    b"INFO": (Session._info, 1),
    b"MULTI": (Session._multi, 1),
    b"PING": (Session._ping, 1),
    b"QUIT": (Session._quit, 1),
    b"ROLE": (Session._role, 1),
    b"SELECT": (Session._select, 2),
    b"SUBSCRIBE": (Session._subscribe, 2),
    b"UNSUBSCRIBE": (Session._unsubscribe, 1),
}

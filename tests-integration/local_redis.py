"""A Redis server for the tests, the demo and the benchmarks, its data in a temporary folder."""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from freezing import freeze

HOST = "127.0.0.1"
STOP_TIMEOUT = 5.0
"""Seconds that a server has to end by itself before it is killed."""


class LocalRedis:
    """
    Run a Redis server of one's own on a free loopback port.

    The binary is `server`, else ``$REDIS_SERVER``, else ``redis-server`` on the PATH;
    `arguments` are added to its command line (``"--maxmemory", "10mb"``). It keeps nothing on
    disk, so whatever stops it empties it, unless the arguments say otherwise. The port stays the
    same through `stop`, `kill`, `start` and `restart`.

    Entering raises `RuntimeError`, with the end of the server's log, when there is no binary or
    it does not answer within `start_timeout` seconds.
    """

    def __init__(
        self, *arguments: str, server: str | None = None, start_timeout: float = 10.0
    ) -> None:
        self._arguments = arguments
        self._server = server
        self._start_timeout = start_timeout
        self._port: int | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._paused = False
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> Self:
        self._folder = tempfile.TemporaryDirectory(prefix="local-redis-")
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def port(self) -> int:
        """The port, on the loopback address, also while the server is stopped."""
        if self._port is None:
            raise RuntimeError("the Redis server has not been started")
        return self._port

    @property
    def url(self) -> str:
        """The URL of database 0."""
        return f"redis://{HOST}:{self.port}/0"

    @property
    def pid(self) -> int:
        """The process id of the running server."""
        return self._running().pid

    def start(self) -> None:
        """Start the server, if it is stopped, and wait until it answers."""
        if self._process is not None and self._process.poll() is None:
            return
        if self._folder is None:
            raise RuntimeError("use LocalRedis in a with statement")
        binary = self._binary()
        if self._port is not None:
            self._launch(binary, self._port)
            return
        # Somebody may take a free port before the server does: the first start tries others.
        for attempt in range(3):
            port = free_port()
            try:
                self._launch(binary, port)
            except RuntimeError:
                if attempt == 2 or "in use" not in self._log():
                    raise
            else:
                self._port = port
                return

    def stop(self) -> None:
        """Ask the server to end, and wait until it has; kill it if it takes too long."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End the server at once, as a crash would."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        """Stop the server and start it on the same port."""
        self.stop()
        self.start()

    def pause(self) -> None:
        """Freeze the server: its sockets stay open and nothing answers."""
        freeze(self._running().pid)
        self._paused = True

    def resume(self) -> None:
        """Let a paused server go on."""
        self._running().send_signal(signal.SIGCONT)
        self._paused = False

    def close(self) -> None:
        """Stop the server and remove its folder; leaving the ``with`` statement does it."""
        try:
            self.stop()
        finally:
            if self._folder is not None:
                self._folder.cleanup()
                self._folder = None

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise RuntimeError("the Redis server is not running")
        return self._process

    def _binary(self) -> str:
        name = self._server or os.environ.get("REDIS_SERVER") or "redis-server"
        binary = shutil.which(name)
        if binary is None:
            raise RuntimeError(
                f"no Redis server: cannot run {name!r}; put redis-server on the PATH, or the path "
                "of one into REDIS_SERVER"
            )
        return binary

    def _launch(self, binary: str, port: int) -> None:
        assert self._folder is not None
        command = [binary, "--bind", HOST, "--port", str(port), "--dir", self._folder.name]
        command += ["--save", "", "--appendonly", "no", "--daemonize", "no", *self._arguments]
        with Path(self._folder.name, "server.log").open("wb") as log:
            # A session of its own: Ctrl-C reaches whoever uses the server, and they stop it last.
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            self._wait(self._process, port)
        except BaseException:
            self.kill()
            raise

    def _wait(self, process: subprocess.Popen[bytes], port: int) -> None:
        deadline = time.monotonic() + self._start_timeout
        while time.monotonic() < deadline:
            if process.poll() is not None:
                raise RuntimeError(
                    f"the Redis server ended with code {process.returncode}:\n{self._log()}"
                )
            if _answers(port):
                return
            time.sleep(0.01)  # it tells nobody when it is ready
        raise RuntimeError(
            f"the Redis server did not answer in {self._start_timeout:g} s:\n{self._log()}"
        )

    def _end(self, how: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        try:
            process.send_signal(how)
            if self._paused:
                process.send_signal(signal.SIGCONT)  # a frozen process does not take a SIGTERM
            process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            pass
        finally:
            self._paused = False
            process.kill()
            process.wait()

    def _log(self) -> str:
        assert self._folder is not None
        lines = Path(self._folder.name, "server.log").read_text("utf-8", "replace").splitlines()
        return "\n".join(lines[-20:])


def free_port() -> int:
    """
    Pick a port below the range from which systems take the ports of outgoing connections.

    In that range a client that retries while the server is down can connect to itself, and any
    connection can take the port before the server is back.
    """
    while True:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as probe:
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
            return port


def _answers(port: int) -> bool:
    try:
        with socket.create_connection((HOST, port), timeout=0.5) as connection:
            connection.sendall(b"PING\r\n")
            # A server that wants a password or TLS is up too.
            return connection.recv(64).startswith((b"+PONG", b"-NOAUTH"))
    except OSError:
        return False

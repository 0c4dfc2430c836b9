"""A RabbitMQ node for the tests, alone in its Erlang world, its data in a temporary folder."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import trustme

from freezing import freeze
from local_redis import HOST, free_port

START_TIMEOUT = 50.0
STOP_TIMEOUT = 15.0
#: Debian's command on the PATH is for root alone; the one it hands over to is for everybody.
FOLDERS = ("/usr/lib/rabbitmq/bin", "/usr/sbin", "/usr/local/sbin")
MAX_MESSAGE_SIZE = 16 * 1024 * 1024
"""Bytes that a message may have."""


def find(command: str) -> str | None:
    """Return the path of one of RabbitMQ's commands, ``None`` where it is not installed."""
    return shutil.which(command, path=os.pathsep.join((*FOLDERS, os.environ.get("PATH", ""))))


class LocalRabbitMQ:
    """
    Run a RabbitMQ node on free loopback ports, with an ``epmd`` and a cookie of its own.

    It keeps its durable queues through `stop`, `kill`, `start` and `restart`, and its port.
    Entering raises `RuntimeError`, with the end of the node's log, when it does not answer in
    time.
    """

    def __init__(self) -> None:
        self._port, self._distribution_port, self._epmd_port = 0, 0, 0
        self._tls_port = 0
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._epmd: subprocess.Popen[bytes] | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._paused = False

    def __enter__(self) -> Self:
        self._folder = tempfile.TemporaryDirectory(prefix="local-rabbitmq-")
        self._port, self._distribution_port, self._epmd_port = (free_port() for _ in range(3))
        self._tls_port = free_port()
        self._configure()
        try:
            # In the foreground: an epmd that a node starts outlives the node.
            self._epmd = self._popen(["epmd", "-port", str(self._epmd_port), "-address", HOST])
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
        """The port for AMQP, on the loopback address, also while the node is down."""
        return self._port

    @property
    def url(self) -> str:
        """The URL of the default virtual host."""
        return self.url_through(self.port)

    def url_through(self, port: int) -> str:
        """Return the URL for clients that connect to another port, a proxy's."""
        return f"amqp://guest:guest@{HOST}:{port}//"

    @property
    def tls_port(self) -> int:
        """The port for AMQP over TLS; the certificate is for the loopback address."""
        return self._tls_port

    @property
    def authority(self) -> str:
        """The path of the certificate of who vouches for the node."""
        return str(self._path("authority.pem"))

    def start(self) -> None:
        """Start the node, if it is down, and wait until it answers."""
        if self._process is not None:
            return
        server = find("rabbitmq-server")
        if server is None:
            raise RuntimeError("no RabbitMQ: install rabbitmq-server")
        self._process = self._popen([server])
        try:
            self._wait(self._process)
        except BaseException:
            self.kill()
            raise

    def stop(self) -> None:
        """Ask the node to end, and wait until it has; kill it if it takes too long."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End the node at once, as a crash would."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        """Stop the node and start it on the same port."""
        self.stop()
        self.start()

    def pause(self) -> None:
        """Freeze the node: its sockets stay open and nothing answers."""
        assert self._process is not None
        freeze(self._process.pid)
        self._paused = True

    def resume(self) -> None:
        """Let a paused node go on."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)
        self._paused = False

    def control(self, *arguments: str) -> str:
        """Return what ``rabbitmqctl`` prints."""
        command = find("rabbitmqctl")
        assert command is not None
        done = subprocess.run(
            [command, "--quiet", *arguments],
            env=self._environment(),
            cwd=self._path(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"rabbitmqctl {' '.join(arguments)} failed: {done.stderr}")
        return done.stdout

    def close(self) -> None:
        """Stop node and epmd and remove the folder; leaving the ``with`` statement does it."""
        try:
            self.stop()
        finally:
            if self._epmd is not None:
                self._epmd.kill()
                self._epmd.wait()
                self._epmd = None
            if self._folder is not None:
                self._folder.cleanup()
                self._folder = None

    def _configure(self) -> None:
        authority = trustme.CA()
        issued = authority.issue_cert(HOST)
        authority.cert_pem.write_to_path(self.authority)
        issued.cert_chain_pems[0].write_to_path(str(self._path("certificate.pem")))
        issued.private_key_pem.write_to_path(str(self._path("key.pem")))
        settings = {
            "max_message_size": MAX_MESSAGE_SIZE,
            "listeners.ssl.1": f"{HOST}:{self._tls_port}",
            "ssl_options.cacertfile": self.authority,
            "ssl_options.certfile": self._path("certificate.pem"),
            "ssl_options.keyfile": self._path("key.pem"),
        }
        lines = [f"{name} = {value}\n" for name, value in settings.items()]
        self._path("rabbitmq.conf").write_text("".join(lines))
        self._path("enabled_plugins").write_text("[].\n")

    def _path(self, name: str = "") -> Path:
        assert self._folder is not None
        return Path(self._folder.name, name)

    def _environment(self) -> dict[str, str]:
        others = {
            name: value for name, value in os.environ.items() if not name.startswith("RABBITMQ_")
        }
        return others | {
            "HOME": str(self._path()),  # where the cookie is
            "ERL_EPMD_PORT": str(self._epmd_port),
            "ERL_EPMD_ADDRESS": HOST,
            "RABBITMQ_NODENAME": f"tests-{self._port}@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": HOST,
            "RABBITMQ_NODE_PORT": str(self._port),
            "RABBITMQ_DIST_PORT": str(self._distribution_port),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": (
                f"-kernel inet_dist_use_interface {{{HOST.replace('.', ',')}}}"
            ),
            "RABBITMQ_MNESIA_BASE": str(self._path("data")),
            "RABBITMQ_LOGS": "-",
            "RABBITMQ_CONFIG_FILE": str(self._path("rabbitmq.conf")),
            "RABBITMQ_CONF_ENV_FILE": str(self._path("no-such-file")),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(self._path("no-such-file")),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self._path("enabled_plugins")),
            # So the script becomes the node, instead of a parent that translates signals.
            "RUNNING_UNDER_SYSTEMD": "true",
        }

    def _popen(self, command: list[str]) -> subprocess.Popen[bytes]:
        with self._path("server.log").open("ab") as log:
            # A session of its own: Ctrl-C reaches whoever uses the node, and they stop it last.
            return subprocess.Popen(
                command,
                env=self._environment(),
                cwd=self._path(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _wait(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + START_TIMEOUT
        while process.poll() is None and time.monotonic() < deadline:
            if _answers(self._port):
                return
            time.sleep(0.05)  # it tells nobody when it is ready
        raise RuntimeError(f"RabbitMQ does not start:\n{self._log()}")

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
            # With the small processes that Erlang starts beside itself.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def _log(self) -> str:
        lines = self._path("server.log").read_text("utf-8", "replace").splitlines()
        return "\n".join(lines[-20:])


def _answers(port: int) -> bool:
    try:
        with socket.create_connection((HOST, port), timeout=0.5) as connection:
            connection.sendall(b"AMQP\x00\x00\x09\x01")
            return bool(connection.recv(7))  # the beginning of connection.start
    except OSError:
        return False

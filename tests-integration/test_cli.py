"""``sandai-op`` against real servers and workers: in a pipe, in terminals wide and narrow."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from celery_worker import CeleryWorker
from command_line import COMMAND, ESCAPE, environment, sandai_op, terminal
from light_operator import LightOperator
from local_rabbitmq import LocalRabbitMQ
from local_redis import HOST, LocalRedis, free_port
from tcp_proxy import Entry, TcpProxy
from watching import open_redis

SCRIPTED = ("scripted", "v1")
CLIPPER = ("video-clipper", "v1")
BENCH = ("bench", "v1")


@pytest.fixture
def light(database: str) -> Iterator[str]:
    """Run a light operator; give its URL."""
    with LightOperator(database):
        yield database


def test_run(redis_server: LocalRedis, scripted_worker: CeleryWorker) -> None:
    """One task with a real worker: nothing but its answer, and nothing for a terminal."""
    url = redis_server.url
    typed = ("run", *SCRIPTED, "-i", "file:///a.mp4:video", "-o", "n=1", "--timeout", "20")
    done = sandai_op(*typed, url=url)
    assert done.code == 0, done.err
    assert done.err == ""
    assert "file:///a.mp4" in done.out
    assert ESCAPE not in done.out
    told = sandai_op(*typed, "--json", url=url).document
    assert told["artifacts"][0]["slot"] == "video"


def test_health(redis_server: LocalRedis, scripted_worker: CeleryWorker) -> None:
    """A worker that is well: probe, ping, desc, queues and doctor agree, each in one document."""
    url = redis_server.url
    assert sandai_op("ping", *SCRIPTED, "--json", url=url).document["ok"]
    assert sandai_op("probe", *SCRIPTED, "--json", url=url).document["healthy"]
    assert sandai_op("desc", *SCRIPTED, "--json", url=url).document["doc"] == "Does as it is told."
    queues = sandai_op("queues", *SCRIPTED, "--json", url=url).document["queues"]
    assert {depth["messages"] for depth in queues.values()} == {0}
    doctor = sandai_op("doctor", *SCRIPTED, "--json", url=url)
    assert doctor.code == 0, doctor.out
    checks = {check["subject"]: check for check in doctor.document["checks"]}
    assert {check["state"] for check in checks.values()} == {"ok"}
    assert "1 alive: scripted@" in checks["workers"]["said"]
    assert checks["push"]["said"] == "results are pushed"


def test_a_probe_is_quick(light: str) -> None:
    """An exec probe is there in a second or so: most of it is Python's own start."""
    best = min(_seconds("probe", *BENCH, url=light) for _ in range(3))
    plain = min(_seconds("--version", url=light) for _ in range(3))
    assert best - plain < 0.5, (best, plain)
    assert best < 5


def _seconds(*arguments: str, url: str) -> float:
    began = time.monotonic()
    assert sandai_op(*arguments, url=url).code == 0
    return time.monotonic() - began


def test_queues(database: str) -> None:
    """Depths are those of the lists, again and again if asked."""
    with open_redis(database) as redis:
        redis.lpush("normal.bench.v1", "a", "b")
        redis.lpush("very_low.bench.v1", "c")
    done = sandai_op("queues", *BENCH, url=database)
    assert done.out.split() == ["high", "0", "normal", "2", "low", "0", "very_low", "1"]
    with terminal("queues", *BENCH, "--watch", "0.1", url=database) as shown:
        shown.until(lambda: shown.text.count("very_low  1") >= 3)
        shown.type("\x03")
        assert shown.end() == 130
        assert shown.lines[-1] == "" or "interrupted" in shown.text


@pytest.mark.parametrize("columns", [40, 100])
def test_a_spinner(database: str, columns: int) -> None:
    """While a task is out it turns, on one line; what stays is the answer, as it was."""
    uri = f"file:///{'long/' * 20}a.mp4"
    with (
        LightOperator(database, delay=0.7),
        terminal("run", *BENCH, "-i", f"{uri}:video", url=database, columns=columns) as shown,
    ):
        shown.until_text("waiting for bench v1")
        assert shown.end() == 0
    assert shown.cursor_is_shown
    assert "waiting" not in shown.text
    assert "bench v1: done" in shown.text
    spinning = {line for line in shown.seen if "waiting for" in line}
    assert all(len(line) <= columns for line in spinning)
    assert len({line.rstrip()[-8:] for line in spinning}) == 1
    # The terminal folds the long line itself: joined, it is what it was.
    assert f'"uri": "{uri}"' in "".join(shown.lines)


def test_colours(database: str) -> None:
    """A terminal gets some; with NO_COLOR, or as a dumb one, none; JSON never."""
    with LightOperator(database):
        for wish, coloured in (("", True), ("1", False)):
            with terminal("probe", *BENCH, url=database, NO_COLOR=wish) as shown:
                assert shown.end() == 0
            assert "ok understood" in shown.text
            assert (b"\x1b[32m" in shown.raw) is coloured
            assert (b"\x1b[3" in shown.raw) is coloured
        with terminal("probe", *BENCH, "--json", url=database) as shown:
            assert shown.end() == 0
        assert ESCAPE.encode() not in shown.raw


def test_interrupted(database: str) -> None:
    """Ctrl-C ends the wait at once, says so, and leaves the terminal in order."""
    with terminal("run", *BENCH, url=database) as shown:
        shown.until_text("waiting for bench v1")
        began = time.monotonic()
        shown.type("\x03")
        assert shown.end() == 130
        assert time.monotonic() - began < 3
    assert "interrupted" in shown.text
    assert "Traceback" not in shown.text
    assert shown.cursor_is_shown


@pytest.mark.parametrize("columns", [40, 100])
def test_doctor_in_a_terminal(database: str, columns: int) -> None:
    """Long sentences are folded at words, under each other."""
    with terminal(
        "doctor", *BENCH, "--timeout", "1", url=database, columns=columns, rows=200
    ) as shown:
        assert shown.end() == 1
    assert "XX probe: no answer within 1 s" in shown.text
    words = " ".join(shown.text.split())
    assert "-> start a worker that consumes low.bench.v1;" in words
    for line in shown.lines:
        assert len(line) < columns
    beginnings = {line[:2] for line in shown.lines if line}
    assert beginnings <= {"ok", "XX", "!!", "??", "  ", "1 "}


def test_doctor_sees_what_is_wrong(database: str, tmp_path: Path) -> None:
    """Messages that nobody takes, a replica, memory that may be taken away, a missing right."""
    with open_redis(database) as redis:
        redis.lpush("normal.bench.v1", "a")
    told = sandai_op("doctor", *BENCH, "--timeout", "1", "--json", url=database).document
    checks = {check["subject"]: check for check in told["checks"]}
    assert checks["queue normal"]["state"] == "warning"
    assert checks["probe"]["state"] == "failed"
    with LocalRedis("--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru") as server:
        port = server.port
        with LocalRedis("--replicaof", HOST, str(port)) as replica:
            for url, subject, state in (
                (server.url, "broker and backend memory", "warning"),
                (replica.url, "broker and backend role", "failed"),
            ):
                told = sandai_op("doctor", *BENCH, "--timeout", "1", "--json", url=url).document
                checks = {check["subject"]: check for check in told["checks"]}
                assert checks[subject]["state"] == state, told
                assert checks[subject]["advice"]


def test_doctor_and_permissions() -> None:
    """Each right that is missing is named, and what works without it goes on."""
    rules = ["+client|setname", "+select", "+ping", "+mget", "+del", "+lpush", "+lrem", "+multi"]
    places = ["+exec", "~*.bench.v1", "~celery-task-meta-*"]
    with LocalRedis() as server, open_redis(server.url) as admin:
        admin.execute_command("ACL", "SETUSER", "app", "on", ">pw", *rules, *places)
        url = server.url.replace("redis://", "redis://app:pw@")
        told = sandai_op("doctor", *BENCH, "--timeout", "1", "--json", url=url).document
        checks = {check["subject"]: check for check in told["checks"]}
        states = {name: check["state"] for name, check in checks.items()}
        assert states["submitting"] == states["reading results"] == "ok"
        assert states["push"] == states["submitting once"] == "warning"
        assert states["broker and backend role"] == "unknown"
        assert "SUBSCRIBE" in checks["push"]["said"]
        wrong = url.replace("pw", "wr0ng")
        done = sandai_op("doctor", *BENCH, "--timeout", "1", "--debug", url=wrong)
        assert done.code == 1
        assert "check the user and the password in" in done.out
        assert "wr0ng" not in done.out + done.err


def test_doctor_of_tls(tls_binary: str, tmp_path: Path) -> None:
    """It tells the protocol and the certificate, and what to do about an unknown authority."""
    authority = trustme.CA()
    issued = authority.issue_cert(HOST)
    files = {kind: tmp_path / f"{kind}.pem" for kind in ("ca", "cert", "key")}
    authority.cert_pem.write_to_path(str(files["ca"]))
    issued.cert_chain_pems[0].write_to_path(str(files["cert"]))
    issued.private_key_pem.write_to_path(str(files["key"]))
    port = free_port()
    arguments = ["--tls-port", str(port), "--tls-auth-clients", "no"]
    for option, kind in (("cert-file", "cert"), ("key-file", "key"), ("ca-cert-file", "ca")):
        arguments += [f"--tls-{option}", str(files[kind])]
    with LocalRedis(*arguments, server=tls_binary) as server:
        url = f"rediss://{HOST}:{port}/0"
        with LightOperator(server.url):
            known = sandai_op("doctor", *BENCH, url=f"{url}?ssl_ca_certs={files['ca']}")
            assert known.code == 0, known.out
            assert "broker and backend TLS: TLSv1.3, certificate until " in known.out
            unverified = sandai_op("doctor", *BENCH, url=f"{url}?ssl_cert_reqs=none")
            assert "!! broker and backend TLS: TLSv1.3, and the certificate" in unverified.out
            unknown = sandai_op("doctor", *BENCH, url=url)
        assert unknown.code == 1
        assert "ssl_ca_certs=" in unknown.out


def test_doctor_of_a_server_that_is_silent(database: str) -> None:
    """It says so within the I/O timeout, and goes on with the other server."""
    with TcpProxy(HOST, 1) as proxy:
        proxy.entry = Entry.SILENT
        began = time.monotonic()
        done = sandai_op(
            "doctor", *BENCH, "--broker-url", proxy.url, "--result-backend", database,
            "--io-timeout", "1", "--json",
        )  # fmt: skip
        assert time.monotonic() - began < 8
    states = {check["subject"]: check["state"] for check in done.document["checks"]}
    assert states["broker"] == "failed"
    assert states["backend"] == states["push"] == "ok"
    assert states["workers"] == "unknown"


def test_rabbitmq(rabbitmq: LocalRabbitMQ) -> None:
    """Without Redis the commands work, too, and the doctor says what it cannot see."""
    arguments = (*BENCH, "--broker-url", rabbitmq.url, "--result-backend", "rpc://")
    assert sandai_op("ping", *arguments).code == 0
    done = sandai_op("doctor", *arguments, "--timeout", "1", "--json")
    assert done.code == 1
    checks = {check["subject"]: check for check in done.document["checks"]}
    assert checks["broker"]["state"] == checks["backend"]["state"] == "unknown"
    assert checks["submitting"]["state"] == "ok"
    assert checks["probe"]["state"] == "failed"
    assert "guest:guest" not in done.out


@pytest.mark.parametrize("command", ["run", "ping", "probe", "desc", "queues", "doctor"])
def test_nothing_tells_a_password(command: str) -> None:
    """Neither what is said, nor the log of each step."""
    url = "redis://user:pa55word@127.0.0.1:1/0"
    arguments = (command, *BENCH, "--io-timeout", "1", "--timeout", "1", "--debug")
    for more in ((), ("--json",)):
        done = sandai_op(*arguments, *more, url=url)
        assert done.code in (1, 3)
        assert "pa55" not in done.out + done.err
        if more:
            json.loads(done.out)


def test_completion(tmp_path: Path) -> None:
    """Click's completion knows the commands and their flags."""
    script = shutil.which("sandai-op", path=str(Path(COMMAND[0]).parent))
    assert script is not None
    done = subprocess.run(
        [script],
        env=environment(
            _SANDAI_OP_COMPLETE="bash_complete", COMP_WORDS="sandai-op ba", COMP_CWORD="1"
        ),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.stdout.splitlines() == ["plain,batch"]
    source = subprocess.run(
        [script],
        env=environment(_SANDAI_OP_COMPLETE="zsh_source"),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert "compdef" in source.stdout

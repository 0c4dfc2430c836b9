"""The commands, run in this process against a real operator: what they print, and their codes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from attrs import frozen

from sandai.op.client import (
    ClientClosedError,
    ClientPoolTimeoutError,
    ConfigurationError,
    InvalidPriorityError,
    InvalidResultFormatError,
    InvalidTaskError,
    InvalidTaskStatusError,
    OperatorConnectionError,
    OperatorError,
    TaskCancelledError,
    TaskDeadlineExceededError,
    TaskExecutionError,
    TaskTimeoutError,
    cli,
)
from sandai.op.client.cli import _main, _signals
from sandai.op.client.cli._batch_run import BatchRun
from sandai.op.client.cli._errors import MEANINGS, Exit, code_of, described
from sandai.op.client.cli._ledger import Account, LedgerError
from sandai.op.client.cli._output import dumped
from sandai.op.client.cli._progress import Count, Meter, clock

if TYPE_CHECKING:
    from conftest import World

NOBODY = "redis://user:pa55word@127.0.0.1:1/0"
DEAD = ["nobody", "v1", "--broker-url", NOBODY, "--io-timeout", "1"]


@frozen
class Done:
    """What a command did."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """Its one JSON document."""
        assert self.out.count("\n") == 1
        return json.loads(self.out)


Command = Callable[..., Done]


@pytest.fixture
def command(capfd: pytest.CaptureFixture[str]) -> Iterator[Command]:
    """Run a command in this process."""

    def run(*arguments: str) -> Done:
        code = _main.run([str(argument) for argument in arguments])
        out, err = capfd.readouterr()
        return Done(code, out, err)

    with ExitStack() as stack:
        for which in (signal.SIGTERM, signal.SIGINT):
            stack.callback(signal.signal, which, signal.getsignal(which))
        yield run


@pytest.fixture
def operator(world: World) -> list[str]:
    """Name the operator, and how to reach it."""
    with world.client() as client:
        urls = ["--broker-url", client.broker_url, "--result-backend", client.result_backend]
    return [world.name, world.version, *urls, "--timeout", "10"]


def by_line(path: Path) -> dict[int, dict[str, Any]]:
    """Return an output's records."""
    records = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    assert len({record["line"] for record in records}) == len(records)
    return {record["line"]: record for record in records}


def test_run(command: Command, operator: list[str]) -> None:
    """One task: its artifacts and results, for a person and for a program."""
    typed = ["-i", "file:///a.mp4:video", "-o", "start=1.5", "-o", "codec=h264"]
    done = command("run", *operator, *typed, "--json")
    assert done.code == 0
    told = done.document
    assert told["artifacts"] == [{"uri": "file:///a.mp4", "slot": "video"}]
    assert told["results"] == {"start": 1.5, "codec": "h264"}
    assert told["success"] is True
    assert told["task_id"]
    done = command("run", *operator, *typed)
    assert done.code == 0
    assert "mem v1: done" in done.out
    assert '"uri": "file:///a.mp4"' in done.out
    assert "\x1b" not in done.out + done.err


def test_a_task_that_fails(command: Command, operator: list[str]) -> None:
    """The operator's error, with its fields and the task's id."""
    reply = {"status": "error", "error": {"error_type": "Sad", "error_message": "no\x1b[2J"}}
    typed = ["-o", f"reply={json.dumps(reply)}"]
    done = command("run", *operator, *typed, "--json")
    assert done.code == 1
    told = done.document
    assert told["success"] is False
    assert told["error"]["type"] == "TaskExecutionError"
    assert told["error"]["error_type"] == "Sad"
    assert told["error"]["task_id"] == told["task_id"]
    done = command("run", *operator, *typed)
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith("Error: task ")
    assert "\x1b" not in done.err


def test_a_reply_that_is_none(command: Command, operator: list[str]) -> None:
    """An answer that is not understood has a code of its own."""
    assert command("run", *operator, "-o", "reply=[1]", "--json").code == Exit.NOT_UNDERSTOOD


def test_no_answer_in_time(command: Command, operator: list[str], world: World) -> None:
    """The last --timeout counts."""
    done = command("run", *operator, "-o", "wait=true", "--timeout", "0.2", "--json")
    world.gate.set()
    assert done.code == Exit.TIMEOUT
    assert done.document["error"]["timeout"] == 0.2


def test_desc(command: Command, operator: list[str]) -> None:
    """What the operator says of itself."""
    assert command("desc", *operator, "--json").document["options_schema"] == {"type": "object"}
    assert "doc" in command("desc", *operator).out


def test_ping_and_probe(command: Command, operator: list[str]) -> None:
    """A healthy operator."""
    assert command("ping", *operator, "--json").document["ok"] is True
    assert "could be submitted" in command("ping", *operator).out
    done = command("probe", *operator, "--json")
    assert done.code == 0
    assert done.document["healthy"] is True
    assert "ok understood" in command("probe", *operator).out


def test_health_without_a_limit(command: Command, operator: list[str]) -> None:
    """A variable that takes the limit from tasks does not take the time from a probe."""
    for name in ("ping", "probe", "queues"):
        assert command(name, *operator, "--timeout", "0").code == 0


def test_batch(command: Command, operator: list[str], tmp_path: Path) -> None:
    """A file in, a file out; then resumed, then its failure again."""
    tasks, results = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    boom = '{"options": {"boom": true}, "id": "b"}\n'
    tasks.write_text('{"artifacts": [{"uri": "a", "slot": "s"}], "options": {"n": 1}}\n\n' + boom)
    arguments = ["batch", *operator, str(tasks), "-o", str(results)]
    done = command(*arguments)
    assert (done.code, done.out) == (1, "")
    assert "2 of 2 lines have a result, 1 of them a failure" in done.err
    records = by_line(results)
    assert records[1]["artifacts"] == [{"uri": "a", "slot": "s"}]
    assert records[1]["results"] == {"n": 1}
    assert records[3]["error"]["error_details"]["exception_type"] == "RuntimeError"
    assert records[3]["id"] == "b"
    done = command(*arguments)
    assert done.code == Exit.USAGE
    assert "--resume" in done.err
    done = command(*arguments, "--resume", "--json")
    assert done.code == 1
    told = done.document
    assert (told["ended"], told["succeeded"], told["failed"]) == ("done", 1, 1)
    assert command(*arguments, "--resume", "--retry-failed", "--json").code == 1
    again = by_line(results)
    assert again[1] == records[1]
    assert again[3]["attempt"] == 2
    tasks.write_text("{}\n")
    done = command(*arguments, "--resume", "--json")
    assert done.code == Exit.USAGE
    assert done.document["error"]["type"] == "LedgerError"
    assert command(*arguments, "--force", "--quiet").code == 0
    assert len(results.read_text().splitlines()) == 1


@pytest.mark.parametrize(
    ("ending", "code", "said"),
    [
        (KeyboardInterrupt, Exit.INTERRUPTED, "interrupted"),
        (_signals.Terminated, Exit.TERMINATED, "terminated"),
    ],
)
def test_the_second_signal_ends_it(
    command: Command,
    operator: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    ending: type[BaseException],
    code: Exit,
    said: str,
) -> None:
    """After the first nothing catches signals any more; the document says how it ended."""

    def end(*_: object) -> None:
        raise ending

    monkeypatch.setattr(BatchRun, "run", end)
    (tmp_path / "in").write_text("{}")
    done = command("batch", *operator, tmp_path / "in", "-o", tmp_path / "out", "--json")
    assert done.code == code
    assert done.document["ended"] == said
    assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_batch_in_a_pipe(
    command: Command, operator: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Standard input and output; the summary is beside them."""
    (tmp_path / "in").write_bytes(b'{"options": {"n": 1}}\n{"options": {"n": 2}}')
    with (tmp_path / "in").open() as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        done = command("batch", *operator, "-", "-o", "-", "--json")
    assert done.code == 0
    records = [json.loads(line) for line in done.out.splitlines()]
    assert sorted(record["results"]["n"] for record in records) == [1, 2]
    assert json.loads(done.err)["succeeded"] == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["no-such-file", "-o", "out"], "no-such-file"),
        (["{here}", "-o", "no/such/folder/out"], "no/such/folder/out"),
        (["{here}", "-o", "{here}"], "--output is the file of the tasks"),
        (["{here}", "-o", "out", "--ledger", "./out"], "--ledger is a file of its own"),
        (["{here}", "-o", "out", "--ledger", "folder/../in", "--force"], "--ledger is a file"),
        (["{here}", "-o", "out", "--ledger", "link", "--force"], "--ledger is a file of its own"),
        (["{here}", "-o", "out", "--ledger", "hard", "--resume"], "--ledger is a file of its own"),
        (["{here}", "-o", "out", "--retry-failed"], "--retry-failed goes with --resume"),
        (["{here}", "-o", "out", "--resume", "--force"], "--force starts over"),
        (["-", "-o", "out", "--resume"], "--resume needs files"),
        (["{here}", "-o", "/dev/null", "--resume"], "--resume needs files"),
        (["{here}"], "--output"),
        (["{here}", "-o", "out", "--max-in-flight", "0"], "--max-in-flight"),
        (["{here}", "-o", "out", "--patience", "nan"], "--patience"),
    ],
)
def test_batches_that_cannot_be(
    command: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    said: str,
) -> None:
    """They are usage errors, and leave no file behind."""
    monkeypatch.chdir(tmp_path)
    here = tmp_path / "in"
    here.write_text("{}")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(here)
    (tmp_path / "hard").hardlink_to(here)
    done = command("batch", *DEAD, *(each.format(here=here) for each in arguments))
    assert done.code == Exit.USAGE
    assert said in done.err
    assert {path.name for path in tmp_path.iterdir()} == {"in", "folder", "link", "hard"}
    assert here.read_text() == "{}"


@pytest.mark.parametrize("name", ["run", "ping", "queues"])
def test_nobody_there(command: Command, name: str) -> None:
    """No connection has a code, and no password."""
    done = command(name, *DEAD, "--json")
    assert done.code == Exit.NO_CONNECTION
    assert done.document["error"]["type"] == "OperatorConnectionError"
    said = command(name, *DEAD)
    assert said.code == Exit.NO_CONNECTION
    assert "127.0.0.1:1" in said.err
    assert "pa55" not in done.out + done.err + said.out + said.err


def test_probe_of_nobody(command: Command) -> None:
    """Unhealthy is 1, and says which step failed."""
    done = command("probe", *DEAD, "--timeout", "1", "--json")
    assert done.code == 1
    assert done.document["submit_ok"] is False
    assert "Connection refused" in done.document["message"]
    said = command("probe", *DEAD, "--timeout", "1").out
    assert "-- submitted" in said
    assert "answered" not in said


def test_doctor_of_nobody(command: Command) -> None:
    """It says what is wrong, goes on with what it can, and tells no password."""
    done = command("doctor", *DEAD)
    assert done.code == 1
    assert "XX broker and backend: 127.0.0.1:1: Connection refused" in done.out
    assert "-> start the server there, or correct broker_url" in done.out
    assert "?? queues: not asked" in done.out
    assert "redis://user:**@127.0.0.1:1/0" in done.out
    assert "pa55" not in done.out + done.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--pool-acquire-timeout", "-1"], "--pool-acquire-timeout -1.0: must be at least 0"),
        (["--broker-url", "gopher://u:pa55@x"], "--broker-url 'gopher://u:**@x'"),
        (["--task-serializer", "pickle"], "--task-serializer 'pickle'"),
    ],
)
def test_settings_that_cannot_be(command: Command, arguments: list[str], said: str) -> None:
    """They are named by the flag that was typed."""
    done = command("ping", "a", "v1", *arguments)
    assert done.code == Exit.USAGE
    assert said in done.err
    done = command("ping", "a", "v1", *arguments, "--json")
    assert done.document["error"]["type"] == "ConfigurationError"
    assert "pa55" not in done.out


def test_variables_that_cannot_be(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are named by the variable."""
    monkeypatch.setenv("SANDAI_OPERATOR_BROKER_POOL_LIMIT", "many")
    done = command("ping", "a", "v1")
    assert done.code == Exit.USAGE
    assert "SANDAI_OPERATOR_BROKER_POOL_LIMIT='many'" in done.err


def test_usage(command: Command) -> None:
    """No such command, flag or argument."""
    for arguments in (
        ["nap"],
        ["run"],
        ["run", "a", "v1", "--nap"],
        ["run", "a", "v1", "-o", "x"],
        ["queues", "a", "v1", "--watch", "inf"],
    ):
        assert command(*arguments).code == Exit.USAGE
        done = command(*arguments, "--json")
        assert done.document["error"]["type"] == "UsageError"


def test_help_and_version(command: Command) -> None:
    """Every command has help, and the whole tells every code."""
    done = command("--help")
    assert done.code == 0
    for code, meaning in MEANINGS.items():
        assert f"{code.value:<4} {meaning}" in done.out
    for name in _main.root.commands:
        assert command(name, "--help").code == 0
        assert len(_main.root.commands[name].get_short_help_str(200)) < 60
    assert command().out == done.out
    assert re.match(r"sandai-op, version \d", command("--version").out)


CODES = {
    TaskExecutionError("t", "m"): Exit.FAILED,
    OperatorError("x"): Exit.FAILED,
    ClientClosedError("o", "v"): Exit.FAILED,
    ConfigurationError("a", "b", "c"): Exit.USAGE,
    InvalidPriorityError("x"): Exit.USAGE,
    InvalidTaskError("p", "r"): Exit.USAGE,
    LedgerError("x"): Exit.USAGE,
    OperatorConnectionError("o", "v"): Exit.NO_CONNECTION,
    ClientPoolTimeoutError("p", 1.0, 1): Exit.NO_CONNECTION,
    TaskTimeoutError("t", 1.0): Exit.TIMEOUT,
    TaskDeadlineExceededError("t"): Exit.TIMEOUT,
    InvalidTaskStatusError("t", "s"): Exit.NOT_UNDERSTOOD,
    InvalidResultFormatError("t", b"\xff"): Exit.NOT_UNDERSTOOD,
    TaskCancelledError("t"): Exit.CANCELLED,
}


@pytest.mark.parametrize("error", CODES, ids=lambda error: type(error).__name__)
def test_codes(error: OperatorError) -> None:
    """Every error has its code, and is JSON."""
    assert code_of(error) is CODES[error]
    told = json.loads(dumped(described(error)))
    assert told["type"] == type(error).__name__
    assert told["message"] == str(error)
    assert set(told) >= {name for name in vars(error) if not name.startswith("_")}


def test_every_code_has_a_meaning() -> None:
    """None is undocumented."""
    assert set(MEANINGS) == set(Exit)


def test_secrets_in_errors() -> None:
    """What an operator put into its error is masked like everything else."""
    error = TaskExecutionError("t", "m", {"url": "redis://u:pa55@h", "password": "pa55", "n": {1}})
    assert "pa55" not in dumped(described(error))


def test_a_bug(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told as such, with where it happened, and has a code of its own."""

    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("sandai.op.client.cli._commands.OperatorClient", broken)
    done = command("ping", "a", "v1", "--json")
    assert done.code == Exit.BUG
    assert done.document["error"] == {"type": "ZeroDivisionError", "message": "a bug"}
    assert "Traceback" in done.err


@pytest.mark.parametrize("missing", ["click", "rich"])
def test_without_the_extra(missing: str) -> None:
    """It says what to install, rather than where it broke."""
    code = (
        "import sys\n"
        "import sandai.op.client\n"  # since Celery has click, too
        f"sys.modules[{missing!r}] = None\n"
        "from sandai.op.client.cli import main\n"
        "main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "sandai-op needs click and rich: pip install 'sandai-op-client[cli]'"
    ]


def test_nobody_else_imports_click() -> None:
    """The client alone brings in no rich, and no click but for Celery."""
    code = "import sys, sandai.op.client\nsys.exit('rich' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], timeout=30, check=True)
    importing = re.compile(r"^\s*(?:import|from) (?:click|rich)\b", re.MULTILINE)
    folder = Path(cli.__file__).parents[1]
    found = [path for path in folder.rglob("*.py") if importing.search(path.read_text("utf-8"))]
    assert {path.parent.name for path in found} == {"cli"}


def test_modules() -> None:
    """The command is two modules, too."""
    for module in ("sandai.op.client", "sandai.op.client.cli"):
        done = subprocess.run(
            [sys.executable, "-m", module, "--version"],
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        )
        assert done.stdout.startswith("sandai-op, version ")


def test_whoever_read_has_gone(world: World, operator: list[str]) -> None:
    """A pipe that is closed ends the command without a word."""
    command = [sys.executable, "-m", "sandai.op.client", "--help"]
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as output:
        done = subprocess.run(
            command, stdout=output, stderr=subprocess.PIPE, timeout=30, check=False
        )
    assert done.returncode == Exit.CLOSED_PIPE
    assert done.stderr == b""


@pytest.mark.parametrize(
    ("redirected", "code", "said"),
    [
        (">/dev/full", Exit.UNWRITABLE, "cannot be written: [Errno 28]"),
        (">&-", Exit.UNWRITABLE, "the standard output is closed"),
        ("2>/dev/full", Exit.UNWRITABLE, ""),
        ("2>&-", Exit.NO_CONNECTION, ""),
        ("<&-", Exit.NO_CONNECTION, "Error: operator nobody v1"),
    ],
)
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no such device here")
def test_streams_that_take_nothing(redirected: str, code: Exit, said: str) -> None:
    """Told where that can be, and by the code; never as a bug."""
    command = [sys.executable, "-W", "error", "-m", "sandai.op.client", "ping", *DEAD]
    if redirected.startswith(">"):
        command.append("--json")
    done = subprocess.run(
        ["sh", "-c", f'exec "$@" {redirected}', "-", *command],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == code, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


def test_dumped() -> None:
    """JSON is as it was, in every script, and moves no cursor."""
    value = {"text": "\u4f60\u597d \u00fc \x1b[2J \x9b \u202e \ud800 \U0001f600"}
    text = dumped(value)
    assert json.loads(text)["text"].startswith("\u4f60\u597d \u00fc \x1b[2J \x9b \u202e")
    assert "\u4f60\u597d \u00fc" in text
    assert text.isprintable()


def test_what_json_cannot_say() -> None:
    """It is said all the same: an operator that answers in msgpack may answer anything."""
    deep: list[Any] = []
    for _ in range(5000):
        deep = [deep]
    value = {"a": b"\xff", "b": float("nan"), 3: {1}, (1, 2): None, b"k": 1.5, "deep": deep}
    told = json.loads(dumped(value))
    assert told.pop("deep")
    assert told == {"a": "\\xff", "b": "nan", "3": [1], "[1, 2]": None, "k": 1.5}


def test_counting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rate and time are those of this run; what earlier ones did is done."""
    now = [100.0]
    clock = SimpleNamespace(monotonic=lambda: now[0])
    monkeypatch.setattr("sandai.op.client.cli._progress.time", clock)
    account = Account()
    for line in range(1, 11):
        account.record(line, 1, line != 5)
    meter = Meter.of(account, 40)
    assert meter.count().sentence() == "10/40 done, 1 failed, 0/s"
    for line in range(11, 21):
        account.record(line, 1, True)
    now[0] += 5
    assert meter.count() == Count(20, 1, 40, 10, 5.0)
    assert meter.count().sentence() == "20/40 done, 1 failed, 2/s, 0:10 left"
    account.record(5, 2, True)
    assert meter.count().failures == 0
    assert meter.count().recent == 11
    assert Meter.of(account, None).count().left is None


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0:00"), (61, "1:01"), (3661, "1:01:01")])
def test_clock(seconds: float, text: str) -> None:
    """Hours, minutes and seconds."""
    assert clock(seconds) == text

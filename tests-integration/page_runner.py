"""Do what a page says: write its files, start its workers, run its blocks and its commands."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from celery_worker import CeleryWorker, without_celery_variables
from snippets import Block, Command, Page, agrees, read

ROOT = Path(__file__).parents[1]
HERE = Path(__file__).parent
STATED = "redis://localhost:6379/0"
"""The URL that pages say, and the default."""

RUN = {"cat", "celery", "cp", "echo", "eval", "head", "ls", "mkdir", "pytest", "python"}
RUN |= {"sandai-op", "wc"}
NOT_RUN = {
    ".venv/bin/nox",
    ".venv/bin/pip",
    "apt",
    "brew",
    "docker",
    "git",
    "gunicorn",
    "kubectl",
    "nox",
    "pip",
    "python3",
    "rabbitmqctl",
    "redis-cli",
    "redis-server",
    "source",
    "sudo",
}
"""What would install something, or asks servers that are not there."""

_ENDS_WITH = re.compile(r"  # exits with (?P<code>\d+)$")


class Child:
    """A fresh process for a page's Python blocks, in which warnings are errors."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        program = f"import sys; sys.path.insert(1, {str(HERE)!r}); import snippet_child; "
        program += "del sys.path[1], sys; snippet_child.serve()"
        self._errors = folder.parent / f"{folder.name}.stderr"
        with self._errors.open("wb") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-W", "error", "-c", program],
                cwd=folder,
                env=dict(environment),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._process.kill()
        with suppress(OSError), self._process:
            pass

    def run(self, page: Path, line: int, code: str) -> tuple[str, str | None]:
        """Run a block; return what it printed, and the traceback of what it raised."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([str(page), line, code]) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            return "", f"the process ended:\n{self._errors.read_text('utf-8', 'replace')}"
        printed, error = json.loads(answer)
        return printed, error

    def end(self) -> str:
        """Let the process end as a program does; return what is wrong with that."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        code = self._process.wait(20)
        said = self._errors.read_text("utf-8", "replace")
        if code or "Exception ignored" in said or "Exception in thread" in said:
            return f"the program ended with {code}:\n{said}"
        return ""


class PageWorker(CeleryWorker):
    """The worker that a page's ``celery … worker`` starts, as it stands."""

    def __init__(self, arguments: list[str], folder: Path, environment: Mapping[str, str]) -> None:
        super().__init__("", "", "", environment=environment, folders=[folder])
        self._command = [sys.executable, "-m", *arguments]
        self._command += ["--without-gossip", "--without-mingle", "--without-heartbeat"]
        if not {"-l", "--loglevel"} & set(arguments):
            self._command += ["--loglevel=INFO"]  # says when it is ready

    def close(self) -> None:
        """Kill it: it has nothing left to do, and a warm shutdown takes seconds."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
        super().close()


class Runner:
    """
    Run one page in a folder of its own, against the broker at *url*.

    *url* stands for the one that the page says. In the folder there is the clone, as `sandai-op`.
    """

    def __init__(self, page: Page, folder: Path, url: str) -> None:
        self.page = page
        self._folder = folder
        self._url = url
        programs = str(Path(sys.executable).parent)
        modules = [str(folder), os.environ.get("PYTHONPATH")]
        self.environment = without_celery_variables(os.environ) | {
            "SANDAI_OPERATOR_CELERY_BROKER_URL": url,
            "PATH": os.pathsep.join([programs, os.environ.get("PATH", "")]),
            "PYTHONPATH": os.pathsep.join(filter(None, modules)),
        }
        self._files: dict[str, Block] = {}
        self._run = ""

    def run(self) -> None:
        """Run the page; fail where something does, or prints something else."""
        (self._folder / "sandai-op").symlink_to(ROOT)
        with ExitStack() as stack:
            for setting in sorted(self.page.settings):
                name, _, value = setting.partition("=")
                path = (self.page.path.parent / value).resolve()
                if name == "with":
                    self._borrow(read(path), stack)
                elif name == "link":
                    (self._folder / path.name).symlink_to(path)
                else:
                    assert setting == "redis", f"{self.page.path} asks for {setting}"
            child = stack.enter_context(Child(self._folder, self.environment))
            for block in self.page.blocks:
                self._do(block, child, stack)
            assert not (wrong := child.end()), wrong
        idle = [name for name in self._files if not re.search(rf"\b{Path(name).stem}\b", self._run)]
        assert not idle, f"nothing on the page uses {idle}"

    def _borrow(self, page: Page, stack: ExitStack) -> None:
        """Take another page's files and workers."""
        for block in page.blocks:
            if block.file:
                self._write(block.file, block)
                self._run += f" {Path(block.file).stem}"
            elif block.language == "console":
                for command in block.commands():
                    if is_worker(words := shlex.split(command.text)):
                        stack.enter_context(PageWorker(words, self._folder, self.environment))

    def _do(self, block: Block, child: Child, stack: ExitStack) -> None:
        if block.file:
            self._files[block.file] = block
            self._write(block.file, block)
        elif block.language == "python":
            self._run += block.text
            code = block.text.replace(STATED, self._url)
            printed, error = child.run(self.page.path, block.line, code)
            assert error is None, self._at(block, error or "")
            self._check(block, block.shown, printed)
        elif block.language == "console":
            for command in block.commands():
                self._command(block, command, stack)

    def _write(self, name: str, block: Block) -> None:
        path = self._folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(block.text.replace(STATED, self._url), "utf-8")

    def _command(self, block: Block, command: Command, stack: ExitStack) -> None:
        words = shlex.split(command.text)
        while words and re.fullmatch(r"\w+=.*", words[0]):
            del words[0]
        text = command.text.replace(STATED, self._url)
        if is_worker(words):
            stack.enter_context(PageWorker(words, self._folder, self.environment))
        elif words[0] == "export":
            for word in shlex.split(text)[1:]:
                name, _, value = word.partition("=")
                self.environment[name] = value
        elif words[0] in RUN:
            done = subprocess.run(
                ["bash", "-o", "pipefail", "-c", text],
                cwd=self._folder,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=50,
                check=False,
            )
            stated = _ENDS_WITH.search(command.text)
            assert done.returncode == (int(stated["code"]) if stated else 0), self._at(
                block, f"{command.text}\nended with {done.returncode}\n{done.stdout}"
            )
            self._check(block, command.shown, done.stdout)
        else:
            assert words[0] in NOT_RUN, self._at(block, f"is {words[0]} to be run? see RUN")
            return
        self._run += command.text + "\n"

    def _check(self, block: Block, shown: str | None, printed: str) -> None:
        if self._url.startswith("redis:"):  # errors name its host, port and database alone
            printed = printed.replace(self._url.removeprefix("redis://"), "localhost:6379/0")
        if shown is not None and not agrees(shown, printed):
            raise AssertionError(self._at(block, f"shown:\n{shown}\n\nprinted:\n{printed}"))

    def _at(self, block: Block, what: str) -> str:
        return f"{self.page.path}:{block.line}: {what}"


def is_worker(words: list[str]) -> bool:
    """Say whether a command starts a Celery worker."""
    return words[:1] == ["celery"] and "worker" in words

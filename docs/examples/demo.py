"""
The Quick Start on a machine that has nothing: a real Redis, a real worker, a real video.

``nox -s demo`` runs it. It stops everything that it started, also on Ctrl-C and when it fails;
the clips stay in a temporary folder, which it names.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any
from urllib.parse import unquote, urlsplit

from imageio_ffmpeg import get_ffmpeg_exe

from local_redis import LocalRedis
from sandai.op.client import OperatorClient, SubmittedTask, create_client
from sandai.op.models import OperatorError

NAME, VERSION = "video-clipper", "v1"
STARTING = 60.0  # seconds that the worker has to answer its first probe
STOPPING = 5.0  # seconds that it has to end by itself

Task = tuple[list[dict[str, Any]], dict[str, Any]]


# The Quick Start


def quick_start(client: OperatorClient, folder: Path, worker: subprocess.Popen[bytes]) -> None:
    """Describe, probe, clip once, clip eight times."""
    video = [{"uri": (folder / "video.mp4").as_uri(), "slot": "video"}]
    text = [{"uri": (folder / "notes.txt").as_uri(), "slot": "video"}]

    heading("What is this operator?", "client.desc")
    say(client.desc["doc"])
    for option, schema in client.desc["options_schema"]["properties"].items():
        say(f"option {option}: {schema['type']}, {schema['description']}")

    heading("Is it well?", "client.probe()")
    health = client.probe(timeout=10)
    expect(health.response_ok and not health.error, f"the probe found: {health.error}")
    say("Yes: a task was submitted, its answer came back and was understood.")

    heading("Clip a video", "client.sync(video, {'clip_duration': 2})")
    artifacts, results = client.sync(video, {"clip_duration": 2}, timeout=60)
    print(f"  {local_path(artifacts[0])}", flush=True)
    say(f"{results['duration']:g} s, {results['frames']} frames")
    expect(local_path(artifacts[0]).stat().st_size > 0, "the clip is empty")

    heading("Eight at once, the sixth no video", "client.batch_submit(), .batch_collect()")
    tasks: list[Task] = [(video, {"clip_duration": 1, "start": n * 0.6}) for n in range(8)]
    tasks[5] = (text, {"clip_duration": 1})
    submissions = client.batch_submit(tasks, timeout=60)
    watch(submissions, worker, timeout=60)
    batch = client.batch_collect(submissions, timeout=60)
    for item in batch:
        if item.success:
            clip = local_path(item.artifacts[0]).relative_to(folder)
            say(f"{item.index + 1}  {clip}  {item.results['duration']:g} s", indent="     ")
        else:
            say(f"{item.index + 1}  {type(item.error).__name__}: {item.error}", indent="     ")
    failed = [item.index for item in batch if not item.success]
    expect(failed == [5], f"tasks {failed} failed, where task [5] alone should have")


def watch(
    submissions: Sequence[SubmittedTask], worker: subprocess.Popen[bytes], *, timeout: float
) -> None:
    """Show how many tasks have ended, until all have or *timeout* seconds are over."""
    began, total, shown = time.monotonic(), len(submissions), -1
    waiting = [task.async_result for task in submissions if task.async_result is not None]
    while True:
        waiting = [result for result in waiting if not result.ready()]
        done, spent = total - len(waiting), time.monotonic() - began
        line = f"  [{'#' * (20 * done // total):<20}] {done} of {total} ended, {spent:.1f} s"
        if sys.stdout.isatty():
            print(f"\r{line}", end="" if waiting else "\n", flush=True)
        elif done != shown:
            print(line, flush=True)
        shown = done
        if not waiting or spent > timeout:
            return
        expect(worker.poll() is None, f"the worker ended with code {worker.returncode}")
        time.sleep(0.1)


def local_path(artifact: dict[str, Any]) -> Path:
    """Return the path in an artifact's ``file://`` URI."""
    return Path(unquote(urlsplit(artifact["uri"]).path))


# What it needs


def main() -> int:
    """Run the demo; return its exit code."""
    signals = Signals()
    folder = Path(tempfile.mkdtemp(prefix="sandai-op-demo-")).resolve()
    log = folder / "worker.log"
    print("A video clipper: your code, Redis, a Celery worker, ffmpeg.", flush=True)
    try:
        with ExitStack() as stack:
            try:
                heading("Starting")
                with signals.held():
                    redis = stack.enter_context(LocalRedis())
                say(f"Redis on port {redis.port}")
                with signals.held():
                    make_inputs(folder)
                say("video.mp4: 6 s, 320x180; notes.txt: no video")
                with signals.held():
                    worker = stack.enter_context(running_worker(redis.url, log, signals))
                with create_client(
                    NAME, VERSION, broker_url=redis.url, result_backend=redis.url
                ) as client:
                    took = wait_until_it_answers(client, worker)
                    say(f"The worker answers, after {took:.1f} s.")
                    quick_start(client, folder, worker)
            finally:
                signals.hold()  # nothing interrupts stopping what was started
    except KeyboardInterrupt:
        code = 128 + (signals.received or signal.SIGINT)
        shutil.rmtree(folder, ignore_errors=True)
        print("\nInterrupted; everything is stopped.", file=sys.stderr)
    except Exception as error:
        code = 1
        report(error, log)
    else:
        code = 0
        heading("Done; Redis and the worker are stopped")
        say("The video, the clips and the worker's log are kept for you to look at:")
        print(f"  {folder}")
    return code


class Signals:
    """
    Turn SIGINT and SIGTERM into a ``KeyboardInterrupt``, but several within a second into one.

    While they are held (a process is being started, or stopped), it waits.
    """

    _NUMBERS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.received: int | None = None
        self._time = float("-inf")
        self._held = False
        for number in self._NUMBERS:
            signal.signal(number, self._handle)

    def hold(self) -> None:
        """Interrupt nothing any more."""
        self._held = True
        for number in self._NUMBERS:
            signal.signal(number, signal.SIG_IGN)  # Python's own shutdown leaves this alone

    @contextmanager
    def held(self) -> Iterator[None]:
        """Interrupt nothing until the block is left."""
        self._held = True
        try:
            yield
        finally:
            self._held = False
            if self.received is not None:
                raise KeyboardInterrupt

    def _handle(self, number: int, frame: FrameType | None) -> None:
        before, self._time = self._time, time.monotonic()
        if self._time - before > 1:  # else stopping, where nothing must interrupt, has just begun
            self.received = number
            if not self._held:
                raise KeyboardInterrupt


def make_inputs(folder: Path) -> None:
    """Make a small video, and a file that is none."""
    source = ["-f", "lavfi", "-i", "testsrc=duration=6:size=320x180:rate=25"]
    command = [get_ffmpeg_exe(), "-v", "error", *source, "-pix_fmt", "yuv420p", "video.mp4"]
    made = subprocess.run(
        command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, check=False
    )
    expect(made.returncode == 0, f"ffmpeg made no video: {made.stderr.decode(errors='replace')}")
    (folder / "notes.txt").write_text("This is no video.\n")


@contextmanager
def running_worker(url: str, log: Path, signals: Signals) -> Iterator[subprocess.Popen[bytes]]:
    """Run the example operator, its output in *log*."""
    # Celery's own variables would lead it elsewhere.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("CELERY_")}
    environment |= {
        "SANDAI_OPERATOR_CELERY_BROKER_URL": url,
        "SANDAI_OPERATOR_CELERY_RESULT_BACKEND": url,
        "VIDEO_CLIPPER_WORK_DIR": str(log.parent / "clips"),
    }
    command = [sys.executable, "-m", "celery", "--app=video_clipper.worker", "worker"]
    command += ["--pool=threads", "--concurrency=4", "--loglevel=INFO"]
    command += ["--without-gossip", "--without-mingle", "--without-heartbeat"]
    with log.open("wb") as output:
        # A session of its own: Ctrl-C reaches the demo alone, and the group has its ffmpegs too.
        worker = subprocess.Popen(
            command,
            cwd=Path(__file__).parent,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield worker
    finally:
        if signals.received is None:
            worker.terminate()
            with suppress(subprocess.TimeoutExpired):
                worker.wait(STOPPING)
        with suppress(ProcessLookupError):
            os.killpg(worker.pid, signal.SIGKILL)
        worker.wait()


def wait_until_it_answers(client: OperatorClient, worker: subprocess.Popen[bytes]) -> float:
    """Probe the operator until it answers; return how many seconds that took."""
    began = time.monotonic()
    while not (health := client.probe(timeout=1)).response_ok:
        expect(worker.poll() is None, f"the worker ended with code {worker.returncode}")
        expect(time.monotonic() - began < STARTING, f"the worker does not answer: {health.error}")
        time.sleep(0.1)
    return time.monotonic() - began


# What it prints


class DemoError(Exception):
    """What the demo expected did not happen."""


def expect(fact: bool, otherwise: str) -> None:
    """Raise :class:`DemoError` where *fact* does not hold."""
    if not fact:
        raise DemoError(otherwise)


def heading(title: str, call: str = "") -> None:
    """Print a step's title, and the call that it shows."""
    print(f"\n{title}{call:>{79 - len(title)}}".rstrip(" "), flush=True)


def say(text: str, *, indent: str = "  ") -> None:
    """Print indented lines of at most 79 columns, where the words allow it."""
    wrapper = textwrap.TextWrapper(79, initial_indent="  ", subsequent_indent=indent)
    wrapper.break_long_words = wrapper.break_on_hyphens = False  # a path stays whole
    print(wrapper.fill(text), flush=True)


def report(error: Exception, log: Path) -> None:
    """Print what failed, and the end of the worker's log."""
    if not isinstance(error, DemoError | OperatorError | RuntimeError):
        traceback.print_exception(error)
    print(f"\nThe demo failed: {error}", file=sys.stderr)
    if log.exists():
        tail = log.read_text("utf-8", "replace").splitlines()[-20:]
        print(f"The end of {log}:", *tail, sep="\n  ", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())

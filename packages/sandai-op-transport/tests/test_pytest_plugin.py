"""The pytest plugin, in runs of pytest of its own."""

import os
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

PLUGIN = "sandai.op.pytest_plugin"


def run(folder: Path, code: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Run pytest on a file in a process of its own, with the plugin and warnings as errors."""
    (folder / "test_app.py").write_text(code)
    command = [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", PLUGIN]
    command += ["-p", "no:cacheprovider", *options, "test_app.py"]
    return subprocess.run(
        command,
        cwd=folder,
        # Without whatever else is installed.
        env=os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )


def test_pytest_finds_it() -> None:
    """The distribution announces the plugin to pytest."""
    [found] = [each for each in entry_points(group="pytest11") if each.value == PLUGIN]
    assert found.load().__name__ == PLUGIN


def test_each_test_has_a_world_and_the_environment_names_it(tmp_path: Path) -> None:
    """An app that takes its URLs from the environment works, and tests share nothing."""
    code = """
import os
from sandai.op.transport import RedisBroker, TaskBuilder, TaskControls, Transport, resolve

urls = []

def submit():
    config = resolve("clipper", "v1", env=os.environ)
    transport = Transport(config)
    message = TaskBuilder(config).task(transport.broker.messages, "", [], {}, TaskControls())
    assert transport.broker.send([message], acquire_timeout=5) == [None]
    transport.release()
    return config

def test_one(fake_operator):
    operator = fake_operator("clipper", "v1")
    config = submit()
    assert config.broker_url == config.result_backend == fake_operator.url
    assert len(operator.wait_for(1)) == 1
    urls.append(fake_operator.url)

def test_two(fake_operator):
    submit()
    assert len(fake_operator.world.queued("normal.clipper.v1")) == 1
    urls.append(fake_operator.url)

def test_three():
    import threading
    assert len(set(urls)) == 2
    assert "SANDAI_OPERATOR_CELERY_BROKER_URL" not in os.environ
    assert not [t.name for t in threading.enumerate() if "fake" in t.name]
    from sandai.op.transport.testing._world import _worlds
    assert not _worlds._worlds
"""
    done = run(tmp_path, code)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 passed" in done.stdout


def test_it_costs_other_suites_nothing(tmp_path: Path) -> None:
    """A suite that does not use the fixture loads nothing of ours but the plugin's module."""
    code = """
import sys

def test_modules():
    loaded = {name for name in sys.modules if name.startswith("sandai")}
    assert loaded == {"sandai", "sandai.op", "sandai.op.pytest_plugin"}
    assert not {"celery", "kombu", "redis", "attrs", "cattrs"} & set(sys.modules)
"""
    done = run(tmp_path, code)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_fixture_tells_what_it_is(tmp_path: Path) -> None:
    """``pytest --fixtures`` explains it."""
    done = run(tmp_path, "", "--fixtures")
    assert "fake_operator" in done.stdout
    assert "Start operators without Redis" in done.stdout


def test_an_operator_ends_with_its_test(tmp_path: Path) -> None:
    """Also when the test fails."""
    code = """
import threading

def test_fails(fake_operator):
    fake_operator("clipper", "v1")
    raise RuntimeError("on purpose")

def test_after():
    assert not [t.name for t in threading.enumerate() if "fake" in t.name]
"""
    done = run(tmp_path, code)
    assert "1 failed, 1 passed" in done.stdout


@pytest.mark.parametrize("kind", ["refused", "stalled"])
def test_outages_end_with_their_block(tmp_path: Path, kind: str) -> None:
    """What was broken in one test is whole after the block, for the same client."""
    code = f"""
import pytest
from sandai.op.transport import Transport, TransportError, resolve

def test_outage(fake_operator):
    transport = Transport(resolve("op", "v1", env={{}}, broker_url=fake_operator.url,
                                  io_timeout=0.2))
    with fake_operator.world.outage({kind!r}), pytest.raises(TransportError):
        transport.backend.look(["id"], acquire_timeout=5)
    assert transport.backend.look(["id"], acquire_timeout=5) == []
    transport.release()
"""
    done = run(tmp_path, code)
    assert done.returncode == 0, done.stdout + done.stderr

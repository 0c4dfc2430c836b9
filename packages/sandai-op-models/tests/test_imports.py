"""What an import costs and brings in."""

import json
import statistics
import subprocess
import sys
from importlib import import_module
from pathlib import Path

from sandai.op import models

#: What an operator's code must not get with this package.
FOREIGN = ["celery", "kombu", "redis", "msgpack", "billiard", "amqp", "vine"]
#: Runs of each side; the median is compared.
RUNS = 9
LIMIT = 0.040
"""Seconds."""


def run(code: str) -> str:
    """Run *code* in a Python of its own, which finds this package where this one does."""
    source = Path(models.__file__).parents[3]
    setup = f"import sys; sys.path.append({str(source)!r})\n"
    done = subprocess.run(
        [sys.executable, "-c", setup + code], capture_output=True, text=True, timeout=30, check=True
    )
    return done.stdout


def seconds(module: str) -> float:
    """Measure the import of *module* in a fresh Python."""
    code = (
        "from time import perf_counter\n"
        "start = perf_counter()\n"
        f"import {module}\n"
        "print(perf_counter() - start)"
    )
    return float(run(code))


def test_the_import_is_cheap() -> None:
    """It costs at most 40 ms more than cattrs alone, measured in turns."""
    ours, theirs = [], []
    for _ in range(RUNS):
        theirs.append(seconds("cattrs"))
        ours.append(seconds("sandai.op.models"))
    assert statistics.median(ours) - statistics.median(theirs) <= LIMIT


def test_the_import_brings_in_nothing_foreign() -> None:
    """Neither Celery nor Redis nor msgpack comes along, even once everything was used."""
    code = f"""
import json
from sandai.op.models import *
from sandai.op.models import Artifact, TaskRequest, TaskResult, error_reply, protocol
before = [name for name in {FOREIGN} if name in sys.modules]
TaskRequest.from_kwargs(protocol.build_kwargs([{{"uri": "a", "slot": "s"}}], {{}})).to_kwargs()
TaskResult([Artifact()]).to_reply()
error_reply(ValueError())
print(json.dumps(before + [name for name in {FOREIGN} if name in sys.modules]))
"""
    assert json.loads(run(code)) == []


def test_the_namespaces_are_nobodys() -> None:
    """``sandai`` and ``sandai.op`` are PEP 420 namespaces: no module, no marker of types."""
    for name in ("sandai", "sandai.op"):
        namespace = import_module(name)
        assert getattr(namespace, "__file__", None) is None
        for folder in namespace.__path__:
            assert not [*Path(folder).glob("__init__.*"), *Path(folder).glob("py.typed")]


def test_the_package_says_that_it_is_typed() -> None:
    """The marker of PEP 561 is in the package itself."""
    assert Path(models.__file__).with_name("py.typed").is_file()

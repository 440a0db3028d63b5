"""What several areas test with: the golden run, and a way to call the command line."""

from __future__ import annotations

import gc
import importlib.util
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

from megacode.base import child_processes
from tests import forked
from tests.limits import HANG

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = ROOT / "tests" / "golden" / "golden.yaml"

forked.install()
# Tests and what they import stay until the end: garbage collections while they are read cost a third of the time.
gc.disable()


# Folders whose tests share something costly or the only one of its kind: a SLURM cluster, trained exports.
TOGETHER = ("slurm", "convert")
# Folders whose every test is long, and has nothing in common with the next.
APART = ("releases",)
# Folders of long tests. They go first: a long file that begins last would keep one worker busy and the other idle.
LONG = ("slurm", "releases", "train", "mcore", "study_runs", "house", "replay", "convert", "study_report")


class WholeFiles(LoadScopeScheduling):
    """Give each worker whole files, so that what a file sets up is set up once.

    Some folders go to one worker whole, and of some each test goes alone.
    """

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.split("::")[0]
        folder = file.split("/")[1]
        return folder if folder in TOGETHER else nodeid if folder in APART else file


# xdist's own groups (`--dist loadgroup`) do nothing under pytest 9.2: they rename tests, which it no longer allows.
@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> WholeFiles:
    """Return what divides tests among the workers of pytest-xdist."""
    return WholeFiles(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put long tests first."""
    items.sort(key=lambda item: LONG.index(_folder(item)) if _folder(item) in LONG else len(LONG))


def pytest_collection_finish() -> None:
    """Collect garbage from here on."""
    gc.enable()


def _folder(item: pytest.Item) -> str:
    return item.path.relative_to(ROOT / "tests").parts[0]


class Unfinished:
    """Names the tests that run when pytest is stopped from outside: a limit of CI tells nobody which one hung."""

    def __init__(self) -> None:
        self.since: dict[str, float] = {}
        signal.signal(signal.SIGTERM, self.tell)

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.since[nodeid] = time.monotonic()

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        self.since.pop(nodeid, None)

    def tell(self, *_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # some send it to a process and to its group
        for nodeid, start in self.since.items():
            print(f"\nstopped after {time.monotonic() - start:.0f} s: {nodeid}", flush=True)
        raise KeyboardInterrupt  # pytest then ends its workers and prints its summary


def pytest_configure(config: pytest.Config) -> None:
    """Watch the workers from the process that starts them."""
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Unfinished())


@pytest.fixture(scope="module", autouse=True)
def frozen_imports() -> None:
    """Keep what was imported out of garbage collections: each end of a run in this process makes a full one.

    A worker has imported all tests and their libraries, and would spend half a second of each.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def signal_handlers() -> Iterator[None]:
    """Put back the handlers of a run that trained in this process, which would ignore the end of pytest."""
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
    before = {number: signal.getsignal(number) for number in numbers}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def compare_losses() -> ModuleType:
    """The tool tools/compare_losses.py as a module."""
    spec = importlib.util.spec_from_file_location("compare_losses", ROOT / "tools" / "compare_losses.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def golden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compare_losses: ModuleType) -> Path:
    """The golden run's config, in a working directory that holds its data sets."""
    compare_losses.write_golden_data(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    return GOLDEN


@pytest.fixture
def foreign_modules() -> Iterator[Callable[[Path], None]]:
    """Fill a directory with modules that end every program that imports one of them from there.

    They have the names of modules that all commands import, that only ranks import, and of megacode itself. A fork
    has imported its own before, so the test's commands are new processes.
    """
    names = ("random.py", "typer.py", "torch.py", "lm_eval.py", "megacode/__init__.py", "megacode/cli/__init__.py")

    def fill(folder: Path) -> None:
        for name in names:
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"raise SystemExit('imported {name} of the working directory')\n")

    with forked.real_processes():
        yield fill


@pytest.fixture
def megacode(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Call `megacode ARGUMENTS` in the test's directory, without importing from there; returns the finished process."""

    def call(*arguments: object, timeout: float = HANG) -> subprocess.CompletedProcess[str]:
        command = child_processes.command([*map(str, arguments)])
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=timeout, check=False)

    return call

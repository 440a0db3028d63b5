"""A real SLURM of three emulated nodes on this machine, started once, and how tests talk to it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import yaml

from megacode.base.files import RunDir, read_jsonl
from megacode.launch import slurm
from megacode.metrics.reader import read_events, read_metrics
from tests.limits import HANG

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "tests" / "slurm" / "cluster.sh"
NEEDED = ("slurmctld", "slurmd", "munged", "sbatch")
ABSENT = [name for name in NEEDED if not shutil.which(name, path=os.environ["PATH"] + ":/usr/sbin")]
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
NODES = ("n0", "n1", "n2")


def await_that(condition: Callable[[], Any], seconds: float, what: Callable[[], str]) -> Any:
    """Return a condition's first true value, or fail and say what was there instead."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = condition()
        if found:
            return found
        time.sleep(0.3)
    raise AssertionError(f"not within {seconds} s: {what()}")


class Cluster:
    """The cluster, from a login node.

    Attributes:
        environment: of commands that speak to it; node names do not resolve, so rank 0 is at 127.0.0.1.
    """

    def __init__(self, folder: Path) -> None:
        self.environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf"), "MASTER_ADDR": "127.0.0.1"}

    def ask(self, *command: object) -> str:
        """Run a command and return what it prints."""
        done = subprocess.run(
            [str(part) for part in command],
            cwd=ROOT, env=self.environment, capture_output=True, text=True, timeout=HANG, check=False,
        )  # fmt: skip
        assert done.returncode == 0, (command, done.stdout, done.stderr)
        return done.stdout

    def facts(self, job: str) -> dict[str, str]:
        """Return what SLURM says of a job."""
        with patch.dict(os.environ, self.environment):
            found = slurm.show_job(job)
        assert found, f"SLURM does not know job {job}"
        return found

    def set_memory(self, seconds: int) -> None:
        """Have the controller forget jobs so many seconds after their end (MinJobAge)."""
        path = Path(self.environment["SLURM_CONF"])
        path.write_text(re.sub(r"MinJobAge=\d+", f"MinJobAge={seconds}", path.read_text()))
        self.ask("scontrol", "reconfigure")

    def has_forgotten(self, job: str) -> bool:
        """Return whether SLURM knows nothing of a job any more."""
        with patch.dict(os.environ, self.environment):
            return not slurm.show_job(job)

    def await_state(self, job: str, *states: str, seconds: float = HANG) -> str:
        """Wait until a job is in one of some states, and return it."""

        def state() -> str | None:
            found = self.facts(job)["JobState"]
            return found if found in states else None

        return await_that(state, seconds, lambda: self.ask("scontrol", "show", "job", job))

    def wait(self, job: str, seconds: float = HANG) -> str:
        """Return the state in which a job ended."""
        return self.await_state(job, *ENDED, seconds=seconds)


class Run:
    """A run of slurm/pretrain_470m.sh on the golden model, as long as a test likes.

    Attributes:
        directory: where it is written.
        log: what its jobs print, one after the other.
    """

    def __init__(self, cluster: Cluster, config: dict[str, Any], folder: Path) -> None:
        self._cluster, self._config, self._folder = cluster, config, folder
        self.directory, self.log = RunDir(folder / "run"), folder / "job.log"
        self.config = folder / "config.yaml"
        self.last_until(None)

    def last_until(self, iteration: int | None) -> None:
        """Write the config: one endless phase, or one that is left after an iteration."""
        [phase] = self._config["phases"]
        length = {} if iteration is None else {"until": f"{iteration} iterations"}
        self.config.write_text(yaml.safe_dump({**self._config, "phases": [{**phase, **length}]}))

    def submit(
        self, *overrides: str, nodes: int = 1, ranks: int = 1, flags: tuple[str, ...] = (), **variables: str
    ) -> str:
        """Submit it on so many nodes, with so many ranks on each, and return the job's number."""
        environment = {"CONFIG": self.config, "RUN_DIR": self.directory.path, "VENV": sys.prefix, **variables}
        settings = [f"{name}={value}" for name, value in environment.items()]
        options = [
            f"--nodes={nodes}",
            f"--ntasks-per-node={ranks}",
            "--cpus-per-task=1",
            "--gpus-per-node=0",
            "--time=10",
        ]
        command = ["sbatch", "--parsable", *options, f"--output={self.log}", "--job-name=test", *flags]
        return self._cluster.ask("env", *settings, *command, "slurm/pretrain_470m.sh", *overrides).strip()

    def lines(self, event: str) -> list[dict[str, Any]]:
        """Return the lines of one kind in attempts.jsonl."""
        return [line for line in read_jsonl(self.directory.attempts) if line["event"] == event]

    def await_iteration(self, number: int, attempt: int = 1, seconds: float = HANG) -> None:
        """Wait until an attempt has begun and the run has got so far."""

        def there() -> bool:
            trained = [line for line in read_metrics(self.directory.metrics) if line["kind"] == "train"]
            starts = [line for line in read_events(self.directory) if line["event"] in ("start", "resume")]
            return len(starts) >= attempt and bool(trained) and trained[-1]["iteration"] >= number

        self._await(there, seconds)

    def await_line(self, event: str, count: int, seconds: float = HANG) -> dict[str, Any]:
        """Wait for the so manieth line of a kind, and return it."""
        return self._await(lambda: self.lines(event)[count - 1 : count], seconds)[0]

    def _await(self, condition: Callable[[], Any], seconds: float) -> Any:
        def true_or_possible() -> Any:
            # Asked first: what the last job wrote before it ended counts.
            idle = not self._cluster.ask("squeue", "--noheader")
            found = condition()
            assert found or not idle, f"no job is left: {self.tail()}"
            return found

        return await_that(true_or_possible, seconds, self.tail)

    def newest(self) -> int:
        """Return the iteration of the newest checkpoint."""
        return int(self.directory.latest.read_text().strip().removeprefix("iter_"))

    def tail(self) -> str:
        """Return the end of the log."""
        return self.log.read_text()[-6000:] if self.log.exists() else "there is no log"


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A running cluster of three nodes; skipped where there can be none."""
    if ABSENT:
        pytest.skip(f"SLURM is not installed here ({', '.join(ABSENT)} absent)")
    if os.geteuid() != 0:
        pytest.skip("a throw-away SLURM needs root")
    folder = tmp_path_factory.mktemp("slurm")
    # A port of its own: what an earlier cluster that was torn down has left running must not speak to this one.
    ports = {"CLUSTER_PORT": str(10000 + os.getpid() % 1000 * 8), **os.environ}
    subprocess.run([SCRIPT, "up", folder, str(len(NODES))], env=ports, check=True, timeout=HANG)
    yield Cluster(folder)
    subprocess.run([SCRIPT, "down", folder], check=True, timeout=HANG)


@pytest.fixture
def forgetful(cluster: Cluster) -> Iterator[Cluster]:
    """The cluster, which forgets jobs as soon as it can; the default is 300 seconds."""
    cluster.set_memory(2)
    yield cluster
    cluster.set_memory(300)


@pytest.fixture
def run(cluster: Cluster, golden: Path, tmp_path: Path) -> Iterator[Run]:
    """A run of the golden model whose one phase is endless; what is left of its jobs is cancelled afterwards."""
    config = yaml.safe_load(golden.read_text())
    for name, source in config["sources"].items():
        source["path"] = str(tmp_path / "data" / name)
    config["phases"] = [{**config["phases"][0], "iterations": 100_000}]
    config["validation"]["fraction"] = 0
    yield Run(cluster, config, tmp_path)
    cluster.ask("scancel", "--name=test")
    await_that(lambda: not cluster.ask("squeue", "--noheader"), HANG, lambda: cluster.ask("squeue"))


@pytest.fixture
def saboteur(tmp_path: Path) -> Callable[[str], str]:
    """Write a program that stands before megacode as a container would, and spoils what a shell snippet says."""

    def write(snippet: str) -> str:
        program = tmp_path / "saboteur.sh"
        program.write_text(f'#!/bin/bash\n{snippet}\nexec "$@"\n')
        program.chmod(0o755)
        return str(program)

    return write

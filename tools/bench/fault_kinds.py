"""A run under fire, and what can be done to it: kills, requests to stop, damaged checkpoints, a full disk."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from megacode.base.files import RunDir

ROOT = Path(__file__).resolve().parents[2]
SAVE_EVERY = 5
PATIENCE = 180.0  # seconds without an iteration, or until a process has ended
ORPHANS = 30.0  # seconds after which ranks must have followed their parent
FULL = 20.0  # seconds for which the disk stays full, at most


class BrokenRunError(Exception):
    """The run did not go on by itself, or ended as it should not."""


@dataclass
class Run:
    """A run under fire.

    Attributes:
        folder: its working directory, with config and data.
        path: the run directory.
        asynchronous: whether checkpoints are written in the background.
        nproc: ranks.
        parallel: their layout, as the config has it.
        full: a file that fills the run directory's disk; None where that disk is everybody's.
        process: the parent of its ranks.
    """

    folder: Path
    path: Path
    asynchronous: bool
    nproc: int = 2
    parallel: str = "{}"
    full: Path | None = None
    process: subprocess.Popen[bytes] | None = None

    @property
    def files(self) -> RunDir:
        """Its files."""
        return RunDir(self.path)

    @property
    def log(self) -> Path:
        """What it says."""
        return self.folder / f"{self.path.name}.log"

    @property
    def iteration(self) -> int:
        """The last iteration in metrics.jsonl."""
        try:
            with self.files.metrics.open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - 16384))
                # What follows the last newline may be half a line. The first one may be cut too, and is skipped below.
                lines = file.read().split(b"\n")[:-1]
        except FileNotFoundError:
            return 0
        for line in reversed(lines):
            with contextlib.suppress(ValueError):
                return int(json.loads(line)["iteration"])
        return 0

    @property
    def last_iteration(self) -> int:
        """The last iteration in its log, which lies on a disk with room."""
        iterations = re.findall(r" iteration (\d+)/", self.log.read_text(errors="replace")[-16384:])
        return int(iterations[-1]) if iterations else 0

    @property
    def ranks(self) -> list[int]:
        """Process numbers of the ranks that live."""
        assert self.process is not None
        try:
            # Linux lists children by the thread that started them.
            tasks = list(Path(f"/proc/{self.process.pid}/task").iterdir())
            return [int(pid) for task in tasks for pid in (task / "children").read_text().split()]
        except OSError:
            return []

    @property
    def overrides(self) -> list[str]:
        """What its command line says beside the config's path."""
        saves = f"checkpoint.async={str(self.asynchronous).lower()}"
        return [f"run_dir={self.path}", saves, f"parallel={self.parallel}"]

    def start(self, *more: str) -> None:
        """Start it, or start it again; `more` are overrides of this start alone."""
        command = [sys.executable, "-m", "megacode.cli", "train", "run.yaml", *self.overrides, *more]
        command += ["--nproc", str(self.nproc)]
        # The caller's PYTHONPATH wins, so another checkout can be tested too.
        environment = {"PYTHONPATH": str(ROOT), **os.environ, "OMP_NUM_THREADS": "1"}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, cwd=self.folder, env=environment, stdout=log, stderr=log)

    def reach(self, iteration: int) -> None:
        """Wait until an iteration is done."""
        assert self.process is not None
        deadline = time.monotonic() + PATIENCE
        while self.iteration < iteration:
            if self.process.poll() is not None:
                raise self.broken(f"it ended with {self.process.returncode} before iteration {iteration}")
            if time.monotonic() > deadline:
                raise self.broken(f"it did not reach iteration {iteration} in {PATIENCE:.0f} s")
            # Short against an iteration, or faults would always come at the same place in it.
            time.sleep(0.005)

    def ended(self, expected: tuple[int, ...], patience: float = PATIENCE) -> None:
        """Wait until it has ended, with one of the expected exit codes."""
        assert self.process is not None
        try:
            code = self.process.wait(patience)
        except subprocess.TimeoutExpired:
            raise self.broken(f"it did not end in {patience:.0f} s") from None
        if code not in expected:
            raise self.broken(f"it ended with {code}, not with {' or '.join(map(str, expected))}")

    def broken(self, message: str) -> BrokenRunError:
        """Return an error with the last of what the run said."""
        last_lines = self.log.read_text(errors="replace").splitlines()[-25:] if self.log.exists() else []
        return BrokenRunError("\n    ".join([message, *last_lines]))

    def kill(self) -> None:
        """Kill every process of it at once."""
        assert self.process is not None
        _send(self.process.pid, signal.SIGSTOP)  # or it might start another rank meanwhile
        for pid in [*self.ranks, self.process.pid]:
            _send(pid, signal.SIGKILL)


def _send(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


Strike = Callable[[Run, random.Random], None]


def kill_rank(run: Run, chance: random.Random) -> None:
    """Kill one rank; its parent ends the others."""
    deadline = time.monotonic() + PATIENCE
    while not run.ranks:
        if time.monotonic() > deadline:
            raise run.broken("it has no ranks")
        time.sleep(0.02)
    _send(chance.choice(run.ranks), signal.SIGKILL)


def kill_parent(run: Run, chance: random.Random) -> None:
    """Kill the parent; the ranks must follow, or the next start would be refused."""
    assert run.process is not None
    ranks = run.ranks
    _send(run.process.pid, signal.SIGKILL)
    run.process.wait()
    deadline = time.monotonic() + ORPHANS
    while any(_lives(pid) for pid in ranks):
        if time.monotonic() > deadline:
            for pid in ranks:
                _send(pid, signal.SIGKILL)
            raise run.broken(f"its ranks outlived their parent by {ORPHANS:.0f} s")
        time.sleep(0.02)


def _lives(pid: int) -> bool:
    try:
        # A name may hold brackets, so the last one ends it. A zombie (Z) is dead already.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def kill_all(run: Run, chance: random.Random) -> None:
    """Kill parent and ranks at once, as a machine does that goes down."""
    run.kill()


def kill_in_save(run: Run, chance: random.Random) -> None:
    """Kill all while a checkpoint is being written."""
    assert run.process is not None
    deadline = time.monotonic() + PATIENCE
    while not list(run.files.checkpoints.glob(".iter_*")):
        if time.monotonic() > deadline or run.process.poll() is not None:
            raise run.broken("no save was seen")
        # A save of this small model is short, and must not end unseen.
        time.sleep(0.0005)
    time.sleep(chance.uniform(0, 0.02))
    run.kill()


def terminate(run: Run, chance: random.Random) -> None:
    """Ask it to stop, as SLURM does."""
    assert run.process is not None
    run.process.send_signal(signal.SIGTERM)


def touch_stop(run: Run, chance: random.Random) -> None:
    """Ask it to stop by the file `stop`."""
    run.files.stop_request.touch()


def fill_disk(run: Run, chance: random.Random) -> None:
    """Fill the disk for some seconds, while it trains and saves."""
    assert run.full is not None
    assert run.process is not None
    with contextlib.suppress(OSError), run.full.open("wb", buffering=0) as file:
        # Large blocks are fast. Small ones then fill what is left, up to 4 KiB.
        for size in (1 << 20, 1 << 12):
            with contextlib.suppress(OSError):
                while file.write(b"\0" * size):
                    pass
    # By the log, which is on another disk: metrics.jsonl cannot grow now.
    until, aim = time.monotonic() + FULL, run.last_iteration + 2 * SAVE_EVERY
    while time.monotonic() < until and run.last_iteration < aim and run.process.poll() is None:
        time.sleep(0.01)
    run.full.unlink()


def truncate(run: Run, chance: random.Random) -> None:
    """Cut a file of the newest checkpoint short."""
    path = _some_file(run, chance)
    os.truncate(path, chance.randrange(path.stat().st_size))


def flip(run: Run, chance: random.Random) -> None:
    """Change one bit of a file of the newest checkpoint."""
    path = _some_file(run, chance)
    content = bytearray(path.read_bytes())
    content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    path.write_bytes(content)


def remove_file(run: Run, chance: random.Random) -> None:
    """Remove a file of the newest checkpoint."""
    _some_file(run, chance).unlink()


def empty_state(run: Run, chance: random.Random) -> None:
    """Empty the newest checkpoint's megacode.json."""
    os.truncate(_newest(run) / "megacode.json", 0)


def remove_latest(run: Run, chance: random.Random) -> None:
    """Remove `latest`."""
    run.files.latest.unlink()


def wrong_latest(run: Run, chance: random.Random) -> None:
    """Let `latest` name a checkpoint that is not there."""
    run.files.latest.write_text("iter_9999999\n")


def _newest(run: Run) -> Path:
    return run.files.checkpoint(run.files.iterations()[-1])


def _some_file(run: Run, chance: random.Random) -> Path:
    # megacode.json has a fault of its own, `empty_state`.
    files = [path for path in _newest(run).iterdir() if path.name != "megacode.json" and path.stat().st_size]
    return chance.choice(sorted(files))


KILLS: dict[str, Strike] = {strike.__name__: strike for strike in (kill_rank, kill_parent, kill_all, kill_in_save)}
STOPS: dict[str, Strike] = {strike.__name__: strike for strike in (terminate, touch_stop)}
DAMAGES: dict[str, Strike] = {
    strike.__name__: strike for strike in (truncate, flip, remove_file, empty_state, remove_latest, wrong_latest)
}

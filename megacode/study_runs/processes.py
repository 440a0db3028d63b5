"""Start the jobs of a study as child processes: as many at once as there is room for, the most urgent first."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from megacode.base import child_processes, cores, lock
from megacode.base.errors import EXIT_FAILURE, EXIT_INPUT, EXIT_RESUMABLE
from megacode.study.places import StudyDir
from megacode.study_runs.jobs import StudyJob, is_published
from megacode.study_runs.outcomes import note_attempt

POLL_SECONDS = 0.2
_KILLED_TWICE = 2  # a process that was killed is started again this often, if it had saved something
_SAME_MISTAKE = 3  # so many first runs with wrong input, before any iteration, mean that all have it


class Watcher(Protocol):
    """Is told what happens."""

    def started(self, job: StudyJob) -> None:
        """A process was started."""

    def ended(self, job: StudyJob, result: str, seconds: float, error: str) -> None:
        """A process ended: `done`, `failed` or `interrupted`."""

    def stopping(self) -> None:
        """All processes were asked to save and end."""

    def tick(self, running: Sequence[StudyJob]) -> None:
        """Time has passed."""


@dataclass
class _Process:
    job: StudyJob
    popen: subprocess.Popen[bytes]
    log: Path
    began: float
    saved: int
    slot: int


@dataclass
class JobResults:
    """How jobs ended, by name.

    Attributes:
        done: they made what they should.
        failed: with the error.
        interrupted: stopped or killed; the next call resumes them.
        waiting: never started, since something that they need was not made; with the name of its job.
        missing: of those, the checkpoints that no job makes.
    """

    done: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    interrupted: list[str] = field(default_factory=list)
    waiting: dict[str, str] = field(default_factory=dict)
    missing: dict[str, Path] = field(default_factory=dict)
    stopped: bool = False
    same_mistake: bool = False

    @property
    def exit_code(self) -> int:
        """0: all done; 75: the next call resumes; 1: something failed."""
        if self.stopped:
            return EXIT_RESUMABLE
        if self.failed or self.missing:
            return EXIT_FAILURE
        return EXIT_RESUMABLE if self.interrupted or self.waiting else 0


class Room:
    """How many jobs run at once, and what each of them gets.

    Args:
        ranks: of a job.
        parallel: jobs at once; None: as many as the devices, or else the cores, have room for.
    """

    def __init__(self, ranks: int, parallel: int | None) -> None:
        self._ranks, self._devices = ranks, _devices()
        # Cores that this process may use: a container or SLURM may grant fewer than there are.
        room = len(self._devices) // ranks if self._devices else cores.usable() // ranks
        self.jobs = parallel or max(1, room)

    def environment(self, slot: int) -> dict[str, str]:
        """Return the environment of the job in a slot: its share of cores and devices."""
        # torch takes all cores in each process by default, and several at once would slow each other down.
        threads = max(1, cores.usable() // (self.jobs * self._ranks))
        # Before the environment: a user's own number of threads wins.
        environment = {"OMP_NUM_THREADS": str(threads), **os.environ}
        if self._devices:
            first = slot * self._ranks
            chosen = [self._devices[number % len(self._devices)] for number in range(first, first + self._ranks)]
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(dict.fromkeys(chosen))
        return environment


def _devices() -> list[str]:
    """Return the GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name.strip() for name in visible.split(",") if name.strip() not in ("", "-1")]
    return [str(number) for number, _ in enumerate(Path("/proc/driver/nvidia/gpus").glob("*"))]


class Processes:
    """Runs jobs to their end.

    Args:
        jobs: the most urgent first.
        place: of the study.
        room: for them.
        watcher: is told what happens.
        heartbeat: called often; returns False if this process must stop.
    """

    def __init__(
        self, jobs: Sequence[StudyJob], place: StudyDir, room: Room, watcher: Watcher, heartbeat: Callable[[], bool]
    ) -> None:
        self._place, self._room, self._watcher, self._heartbeat = place, room, watcher, heartbeat
        self._jobs = {job.name: job for job in jobs}
        self._waiting = list(jobs)
        self._running: list[_Process] = []
        self._signals: list[int] = []
        self._killed: dict[str, int] = {}
        self._mistakes = 0
        self._trained = False
        self.results = JobResults()

    def run(self) -> JobResults:
        """Run all jobs that can be run, and wait for them.

        SIGINT and SIGTERM, and the study's file `stop`, make all jobs save and end.
        """
        # Put back at the end: this runs inside tests and other programs, too.
        handlers = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            while self._step():
                time.sleep(POLL_SECONDS)
        finally:
            self._stop()
            for number, handler in handlers.items():
                signal.signal(number, handler)
        self._explain_waiting()
        return self.results

    def _note(self, number: int, frame: object) -> None:
        # A handler only notes it: whatever else it did could interrupt a write.
        self._signals.append(number)

    def _step(self) -> bool:
        """Do what is due; return whether anything is left to wait for."""
        for process in [one for one in self._running if one.popen.poll() is not None]:
            self._running.remove(process)
            self._collect(process)
        if not self._heartbeat() or self._place.stop_request.exists():
            self._signals.append(signal.SIGTERM)
        if self._signals:
            self._stop()
            return False
        if not self.results.same_mistake:
            while len(self._running) < self._room.jobs and (job := self._next()) is not None:
                self._start(job)
        self._watcher.tick([one.job for one in self._running])
        return bool(self._running) or any(self._may_still_start(job) for job in self._waiting)

    def _next(self) -> StudyJob | None:
        for job in list(self._waiting):
            if _busy(job) or not job.is_ready:
                continue
            self._waiting.remove(job)
            # Made meanwhile by somebody else.
            if job.is_done or job.skip():
                self.results.done.append(job.name)
                continue
            return job
        return None

    def _may_still_start(self, job: StudyJob) -> bool:
        """Return whether waiting for a job makes sense while no process of ours runs."""
        # A process of an earlier call may still be saving; or a job of a cluster trains there.
        return not self.results.same_mistake and (
            job.is_ready or any(_busy(other) for other in self._waiting if {*other.makes} & {*job.needs})
        )

    def _start(self, job: StudyJob) -> None:
        log = self._place.log(job.name)
        log.parent.mkdir(parents=True, exist_ok=True)
        # The lowest free one, so that two jobs never share devices while others are idle.
        slot = min(set(range(self._room.jobs)) - {one.slot for one in self._running})
        command = child_processes.command(job.arguments)
        with log.open("ab") as output:
            output.write(f"\n$ megacode {shlex.join(job.arguments)}\n".encode())
            output.flush()
            # A process group of its own: a terminal's Ctrl-C reaches only this process, which passes it on once.
            popen = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, process_group=0,
                env=self._room.environment(slot), preexec_fn=child_processes.follow_parent(),
            )  # fmt: skip
        self._running.append(_Process(job, popen, log, time.monotonic(), _saved(job), slot))
        self._watcher.started(job)

    def _collect(self, process: _Process) -> None:
        job, code = process.job, process.popen.returncode
        # What was saved is the measure of progress: iterations since the last checkpoint are lost.
        new = _saved(job) - process.saved
        self._trained |= new > 0 or bool(job.run is not None and code == 0)
        # Somebody else was faster; what it refused is no mistake of the input.
        if code == EXIT_INPUT and _busy(job):
            self._waiting.insert(0, job)
            return
        # Stopped just after its last checkpoint.
        code = 0 if code == EXIT_RESUMABLE and job.is_done else code
        missing = [path for path in job.makes if code == 0 and not is_published(path)]
        error = f"it ended well, but did not make {missing[0]}" if missing else ""
        code = EXIT_FAILURE if missing else code
        line = note_attempt(self._place, job.name, code, process.log, job.config, new, error)
        result = self._result(job, int(line["code"]), new, str(line["error"]))
        self._watcher.ended(job, result, time.monotonic() - process.began, str(line["error"]))

    def _result(self, job: StudyJob, code: int, new: int, error: str) -> str:
        if code == 0:
            self.results.done.append(job.name)
            return "done"
        if code == EXIT_RESUMABLE or code < 0:
            # Killed, not stopped: by a full memory, perhaps. While it gets further, trying again makes sense.
            tries = self._killed[job.name] = self._killed.get(job.name, 0) + 1
            if code < 0 and new > 0 and tries <= _KILLED_TWICE and not self._signals:
                self._waiting.insert(0, job)
            else:
                self.results.interrupted.append(job.name)
            return "interrupted"
        self.results.failed[job.name] = error
        if job.kind == "train" and code == EXIT_INPUT and not self._trained:
            self._mistakes += 1
            self.results.same_mistake = self._mistakes >= _SAME_MISTAKE
        return "failed"

    def _stop(self) -> None:
        """Ask all processes to save and end, and wait for them; each further signal asks again."""
        asked = -1
        while self._running:
            self.results.stopped |= bool(self._signals)
            if asked < len(self._signals):
                asked = len(self._signals)
                self._watcher.stopping()
                for process in self._running:
                    process.popen.terminate()
            self._heartbeat()
            for process in [one for one in self._running if one.popen.poll() is not None]:
                self._running.remove(process)
                self._collect(process)
            time.sleep(POLL_SECONDS / 4)
        self.results.stopped |= bool(self._signals)

    def _explain_waiting(self) -> None:
        for job in self._waiting:
            # Up to the job that did not make what all others lack.
            name = job.name
            while (lacking := self._lacking(name)) is not None:
                name = lacking
            self.results.waiting[job.name] = name if name != job.name else ""
            missing = next((need for need in self._jobs[name].needs if not is_published(need)), None)
            if missing is not None and not self.results.stopped:
                self.results.missing[name] = missing

    def _lacking(self, name: str) -> str | None:
        """Return the name of the job that has not made what a job needs, or None."""
        missing = [need for need in self._jobs[name].needs if not is_published(need)]
        return next((other.name for other in self._jobs.values() for need in missing if need in other.makes), None)


def _busy(job: StudyJob) -> bool:
    """Return whether another process trains in a job's directory."""
    return job.run is not None and job.run.lock.exists() and lock.owner(job.run) is not None


def _saved(job: StudyJob) -> int:
    """Return the iteration of the newest checkpoint of a job's run."""
    try:
        return max(job.run.iterations(), default=0) if job.run is not None else 0
    except OSError:
        # Unreadable, or a file in its place: the process itself will say so.
        return 0

"""The layout of a study's directory of runs. Below it lies one run directory for each stretch that is trained."""

from __future__ import annotations

from pathlib import Path

from megacode.base.files import RunDir


class StudyDir:
    """The files of a study beside its runs.

    Args:
        path: the study's `runs`.

    Attributes:
        configs: one resolved config for each run, which `megacode train` takes as well.
        logs: output of the processes that train and score, one file for each run and each score.
        attempts: how each process of `study run` ended, one JSON object each.
        jobs: what was submitted to SLURM, one JSON object each.
        history: the versions of the study that were run, one JSON object each.
        items: the questions that all arms answer, where a suite makes them from held-out documents.
        lock: the process that runs the study.
        stop_request: touch it to make `study run` stop; all runs save before they end.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).absolute()
        self.configs = self.path / "configs"
        self.logs = self.path / "logs"
        self.attempts = self.path / "attempts.jsonl"
        self.jobs = self.path / "jobs.jsonl"
        self.history = self.path / "study.jsonl"
        self.items = self.path / "items"
        self.lock = self.path / "study.lock"
        self.stop_request = self.path / "stop"

    @property
    def is_scored(self) -> bool:
        """Whether any model was scored, also of an arm that was removed since."""
        return any(self.path.glob("*/eval/*@iter_*.json"))

    @property
    def as_run(self) -> RunDir:
        """A run directory in name only, whose lock is the study's; see `base.lock`."""
        run = RunDir(self.path)
        run.lock = self.lock
        return run

    def run(self, name: str) -> RunDir:
        """Return the directory of a run."""
        return RunDir(self.path / name)

    def config(self, name: str) -> Path:
        """Return the config file of a run."""
        return self.configs / f"{name}.yaml"

    def log(self, name: str) -> Path:
        """Return the log of a run's process, or of a score's."""
        return self.logs / f"{name}.log"

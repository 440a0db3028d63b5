"""Scores while training: which checkpoints are exported and scored beside the run, with what, and where."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from megacode.base.units import parse_seconds
from megacode.config.quantity import Frozen, Length

SHIPPED_SUITES = ("demo", "to-code")
SUITE_FILES = (".yaml", ".yml")
DEMO_SOURCES = ("text", "code", "markup")


def _read_wait(value: Any) -> float:
    """Read a duration; 0 is one too."""
    return 0.0 if value in (0, "0") else parse_seconds(value)


SecondsOrNone = Annotated[float, BeforeValidator(_read_wait)]


class Evaluate(Frozen):
    """Which checkpoints get scores, and how; they are saved for it, whatever `checkpoint` says.

    Attributes:
        every: how often; absent: at phase ends only.
        at_phase_ends: at every phase's end too.
        suite: `demo`, `to-code`, or the path of a suite's YAML file.
        limit: items per task, at most.
        without: tasks to leave out.
        run_generated_code: run the code that the model writes, in a sandbox; otherwise tasks that need it are left out.
        where: `local`: a process on the node of rank 0; `slurm`: a job for each checkpoint.
        device: what the model runs on; absent: the CPU locally, what is there in a job.
        threads: CPU threads of a local process, at most.
        sbatch: options of `sbatch` for the jobs, such as `--partition=debug`.
        keep_exports: keep the exported models; otherwise they are removed once they have their scores.
        wait: how long a finished run waits for scores that local processes still owe.
    """

    every: Length | None = None
    at_phase_ends: bool = True
    suite: str = Field(default="demo", min_length=1)
    limit: int | None = Field(default=None, ge=1)
    without: tuple[str, ...] = ()
    run_generated_code: bool = False
    where: Literal["local", "slurm"] = "local"
    device: str | None = Field(default=None, pattern=r"^(cpu|cuda(:\d+)?)$")
    threads: int = Field(default=4, ge=1)
    sbatch: tuple[str, ...] = ()
    keep_exports: bool = False
    wait: SecondsOrNone = 300.0

    @property
    def suite_is_a_file(self) -> bool:
        """Whether the suite is a user's own file, not one that ships with megacode."""
        return self.suite.endswith(SUITE_FILES)

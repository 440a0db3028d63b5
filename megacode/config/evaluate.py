"""The `evaluate` section: which checkpoints are scored during training, with what suite, and where."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from megacode.base.units import parse_seconds
from megacode.config.quantity import Frozen, Length

# Names only: the suites themselves live in eval/, above this floor.
SHIPPED_SUITES = (
    "demo", "heldout", "to-code", "to-code-gold", "reasoning", "reasoning-gold", "code-plus", "code-plus-gold",
    "to-code-plus", "to-code-plus-gold",
)  # fmt: skip
MADE_SUITES = ("demo", "heldout")  # their items are made from held-out documents
SUITE_FILES = (".yaml", ".yml")
DEMO_SOURCES = ("text", "code", "markup")
Backend = Literal["hf", "vllm"]


def _read_wait(value: Any) -> float:
    """Read a duration, or 0."""
    # `parse_seconds` refuses 0, which is a mistake in every other duration.
    return 0.0 if value in (0, "0") else parse_seconds(value)


SecondsOrNone = Annotated[float, BeforeValidator(_read_wait)]


class Evaluate(Frozen):
    """Which checkpoints are scored, and how. They are saved for this, whatever `checkpoint` says.

    Attributes:
        every: how often; absent: at phase ends only.
        at_phase_ends: also at the end of every phase.
        suite: a shipped suite's name, such as `demo`, `heldout` or `to-code`, or the path of a suite's YAML file.
        limit: the most items per task.
        without: tasks to leave out.
        run_generated_code: run the code that the model writes, in a sandbox; otherwise tasks that need it are left out.
        where: `local`: a process on the node of rank 0; `slurm`: a job for each checkpoint.
        backend: what runs the model: transformers (`hf`), or vLLM, which needs `where: slurm`; scores are never mixed.
        device: what the model runs on; absent: the CPU in a local process, a GPU if there is one in a job.
        threads: the most CPU threads of a local process.
        sbatch: options of `sbatch` for the jobs, such as `--partition=debug`.
        keep_exports: keep the exported models; otherwise each is deleted after scoring.
        wait: how long to wait after training for local scoring to finish. All ranks stay allocated meanwhile.
    """

    every: Length | None = None
    at_phase_ends: bool = True
    suite: str = Field(default="demo", min_length=1)
    limit: int | None = Field(default=None, ge=1)
    without: tuple[str, ...] = ()
    run_generated_code: bool = False
    where: Literal["local", "slurm"] = "local"
    backend: Backend = "hf"
    device: str | None = Field(default=None, pattern=r"^(cpu|cuda(:\d+)?)$")
    threads: int = Field(default=4, ge=1)
    sbatch: tuple[str, ...] = ()
    keep_exports: bool = False
    # 0 on many GPUs: every rank would idle for it.
    wait: SecondsOrNone = 300.0

    @property
    def suite_is_a_file(self) -> bool:
        """Whether the suite is a user's own file, not one that ships with megacode."""
        # As `load_suite` decides it: a user's file may have the name of a shipped suite.
        return self.suite.endswith(SUITE_FILES)

"""The lines that `megacode train` logs for a person: at its start, at its end, and when nothing is left to do.

Needs no torch, so the first lines appear before the slow imports.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Literal

from megacode.base.files import RunDir
from megacode.base.units import format_count, format_seconds
from megacode.capacity.costs import parameter_counts
from megacode.checkpoint.state import TrainState
from megacode.checkpoint.store import latest
from megacode.config.training import Parallel
from megacode.plan.batch import BatchSchedule
from megacode.planning.run_plan import Plan
from megacode.planning.suite import suite_name
from megacode.train.origin import Origin, find_origin

StopReason = Literal["finished", "signal", "time_limit", "stop_file", "spikes", "save_failed"]

_ENDS: dict[StopReason, str] = {
    "finished": "finished",
    "signal": "stopped by a signal",
    "time_limit": "stopped by the time limit",
    "stop_file": "stopped by the file `stop`",
    "spikes": "stopped after too many spikes or non-finite losses in a row",
    "save_failed": "stopped",  # `closing_lines` adds what was not saved
}


def opening_lines(plan: Plan, origin: Origin, ranks: int) -> list[str]:
    """Return what a start is about to do: model, length, ranks, layout, run directory, and what it starts from."""
    config, batches = plan.config, plan.batches
    parameters = parameter_counts(config.model, plan.vocab_size).total
    tokens = plan.schedule.total_samples * plan.schedule.seq_length
    names = ", ".join(phase.name for phase in plan.schedule.phases)
    return [
        f"{config.name}: {format_count(parameters)} parameters, {format_count(tokens)} tokens in "
        f"{batches.total_iterations:,} iterations, phases {names}",
        f"{ranks} {'rank' if ranks == 1 else 'ranks'}: {_layout(config.parallel, ranks)}",
        f"run directory: {config.directory}",
        *(origin.log_lines() or ["starting from random weights"]),
    ]


def _layout(parallel: Parallel, ranks: int) -> str:
    sizes = {"tensor": parallel.tensor, "pipeline": parallel.pipeline, "context": parallel.context}
    factors = [f"{name} {size}" for name, size in sizes.items() if size > 1]
    return " x ".join([*factors, f"data {max(1, ranks // parallel.model_size)}"]) + " parallel"


def is_finished(plan: Plan, accept_changed_past: bool = False) -> bool:
    """Return whether a run has trained all its samples, has saved that state, and has all its scores.

    Reads the newest checkpoint's state and the sizes of its files; nothing is hashed.

    Raises:
        CheckpointError: the config changes what the run has read, and that is not accepted.
    """
    # Nothing slow: a chain of jobs asks this at every start, before it loads torch.
    run = RunDir(plan.config.directory)
    newest = latest(run)
    if newest is None or RunDir.iteration_of(newest) < plan.batches.total_iterations:
        return False
    state = find_origin(plan, newest, accept_changed_past).state
    # A checkpoint may have lost a file after the run had finished: then the run must train again.
    whole = all((newest / name).is_file() and (newest / name).stat().st_size == facts["bytes"]
                for name, facts in state.files.items())  # fmt: skip
    # Scores too: a job that was stopped before they were made is started again for them.
    return state.consumed_samples == plan.schedule.total_samples and whole and not _scores_missing(plan, run)


def _scores_missing(plan: Plan, run: RunDir) -> bool:
    if plan.config.evaluate is None:
        return False
    suite = suite_name(plan.config.evaluate)
    return any(not run.score(suite, number).exists() for number in run.iterations() if number in plan.scored())


def finished_lines(plan: Plan) -> list[str]:
    """Return the lines for a run that has nothing left to train."""
    run, last = RunDir(plan.config.directory), plan.batches.total_iterations
    return [
        f"{plan.config.name} is finished: {last:,} iterations, saved as {run.checkpoint(last)}; nothing to train",
        next_steps(run.path),
    ]


def next_steps(run: Path) -> str:
    """Return what to do with a finished run."""
    # Quoted, since the line is there to be copied into a shell.
    path = shlex.quote(str(run))
    return f"next: megacode convert to-hf {path} OUT, megacode report {path}; to train on, add a phase to the config"


def closing_lines(
    reason: StopReason, run: RunDir, state: TrainState, batches: BatchSchedule, first: int, seconds: float
) -> list[str]:
    """Return what a start did, and what comes next.

    Args:
        reason: why it ends.
        run: the run directory.
        state: the run's, at its last iteration.
        batches: the whole run's.
        first: the iteration that this start began at.
        seconds: duration of this start.
    """
    head = f"{_ENDS[reason]} at iteration {state.iteration:,} of {batches.total_iterations:,}"
    head += f" after {state.iteration - first:,} in {format_seconds(seconds)}"
    saved = run.checkpoint(state.iteration)
    resume = "next: the same command resumes from the newest checkpoint"
    # The disk is asked, not the saver: the next start will find what is there.
    if not saved.exists():
        head += f"; iteration {state.iteration:,} could NOT be saved"
        return [head, f"{resume}; first free space on the disk of {run.path}, or see above why it could not be saved"]
    return [f"{head}; saved as {saved}", next_steps(run.path) if reason == "finished" else resume]

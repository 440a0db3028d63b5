"""Score a checkpoint in a SLURM job while the run continues: submit the job once, find it by name, wait for it.

A process beside the trainer waits for the job (`megacode job score`). When the run stops, that process ends and the
job continues. The next start's process finds it by name, pending or running, and submits no second one.
"""

from __future__ import annotations

import json
import logging
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from megacode.base import child_processes
from megacode.base.errors import EXIT_FAILURE, LaunchError
from megacode.base.files import RunDir, digest
from megacode.checkpoint.state import TrainState
from megacode.config.evaluate import Evaluate
from megacode.launch import slurm
from megacode.launch.submission import STUDY, default_site, launch_command
from megacode.planning.suite import suite_name

log = logging.getLogger(__name__)

_SCRIPT = Path(__file__).resolve().parents[2] / "slurm" / "score.sh"
_POLL_SECONDS = 15.0
_SILENT_POLLS = 8  # SLURM forgets a job minutes after its end; but it may also be unreachable for a moment
_TAIL_BYTES = 2000  # of a failed job's log, copied to this process's


def score_by_job(checkpoint: Path, suite: str, arguments: Sequence[str], options: Sequence[str]) -> int:
    """Score a checkpoint in a job, and wait for its end.

    Args:
        checkpoint: `RUN/checkpoints/iter_N`.
        suite: as for `megacode evaluate`.
        arguments: further arguments of `megacode evaluate`.
        options: of sbatch.

    Returns:
        The job's exit code. If SLURM has forgotten the job, its score file decides.

    Raises:
        LaunchError: SLURM refuses the job, or is not installed.
        ConfigError: the suite cannot be read.
        CheckpointError: there is no such checkpoint.
    """
    place = checkpoint.resolve()
    state = TrainState.read(place)
    scores = RunDir(place.parent.parent).score(suite_name(Evaluate(suite=suite)), state.iteration)
    arguments = ["--suite", suite, *arguments]
    # The name identifies checkpoint and arguments, so that the next start of the run finds the job again.
    name = f"scores-{place.name}-{digest(str(place), *arguments)[:8]}"
    output = RunDir(place.parent.parent).eval / "logs" / f"{name}.log"
    number = _job(name, "PENDING,RUNNING,COMPLETING,SUSPENDED")
    # The caller saw no scores, but the job of an earlier start may have ended since.
    if number is None and (done := _job(name, "COMPLETED")) is not None and _scored(state, scores):
        log.info("job %s (%s) has just made the scores", done, name)
        return 0
    if number is None:
        number = submit_scoring(name, output, [str(place), *arguments], options)
        log.info("submitted job %s (%s); it writes to %s", number, name, output)
    else:
        log.info("job %s (%s) already exists; waiting for it", number, name)
    code = _wait(number)
    if code is None:
        code = 0 if _scored(state, scores) else EXIT_FAILURE
        presence = "are in" if code == 0 else "are not in"
        log.warning("SLURM no longer knows job %s; the checkpoint's scores %s %s", number, presence, scores)
    if code:
        sys.stderr.write(_tail(output))
    return code


def _job(name: str, states: str) -> str | None:
    """Return the number of a job of this name in one of these states, if there is one."""
    # SLURM knows an ended job for some minutes (MinJobAge).
    numbers = slurm.ask("squeue", "--noheader", f"--states={states}", f"--name={name}", "--format=%A").split()
    return numbers[0] if numbers else None


def submit_scoring(
    name: str,
    output: Path,
    arguments: Sequence[str],
    options: Sequence[str],
    more: Mapping[str, str] | None = None,
    command: Sequence[str] = ("evaluate",),
) -> str:
    """Submit a job of one process, such as `megacode evaluate`, and return its number.

    Args:
        name: of the job.
        output: its log.
        arguments: of the command.
        options: of sbatch.
        more: variables of the job, beside those that it needs.
        command: words after `megacode`.

    Raises:
        LaunchError: SLURM refuses the job, or is not installed.
    """
    if not _SCRIPT.exists():
        message, fix = "there is no such file", "install megacode from its repository: pip install --editable ."
        raise LaunchError(message, str(_SCRIPT), fix)
    site = default_site()
    flags = [*options, f"--job-name={name}", f"--output={output}"]  # sbatch takes the last of equal options
    # The job runs this very megacode, not the one that its shell, the site file or the working directory would find.
    variables = {
        "MEGACODE": shlex.join(child_processes.command([])),
        "MEGACODE_ROOT": str(_SCRIPT.parents[1]),
        "MEGACODE_COMMAND": shlex.join(command),
        **({"SITE": str(site)} if site is not None else {}),
        STUDY: "",  # a study's run may submit this job, and its end is not that of the run
        **(more or {}),
    }
    return slurm.submit([*launch_command(site), *flags, str(_SCRIPT), *arguments], variables)


def _wait(number: str) -> int | None:
    """Wait for a job's end, and return its exit code; None if SLURM has forgotten the job."""
    silent = 0
    while silent < _SILENT_POLLS:
        facts = slurm.show_job(number)
        silent = 0 if facts else silent + 1
        state = facts.get("JobState", "")
        if state in slurm.ENDED:
            code = facts.get("ExitCode", "").partition(":")[0]
            log.info("job %s: %s", number, state)
            # A job that was killed or timed out has exit code 0, and has failed all the same.
            return 0 if state == "COMPLETED" else int(code) if code.isdigit() and int(code) else EXIT_FAILURE
        time.sleep(_POLL_SECONDS)
    return None


def _scored(state: TrainState, scores: Path) -> bool:
    """Return whether a score file belongs to this very checkpoint, by its seal."""
    try:
        facts = json.loads(scores.read_text(encoding="utf-8"))["model"]["megacode"]
        return bool(facts["checkpoint_seal"] == state.seal)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _tail(output: Path) -> str:
    try:
        # Bytes, since the cut may fall into a character.
        return output.read_bytes()[-_TAIL_BYTES:].decode("utf-8", errors="replace")
    except OSError:
        return ""

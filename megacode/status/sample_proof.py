"""Prove that a run read what was planned: compare the digest of every iteration's samples with the plan's.

The plan is rebuilt from `run.yaml` and the sizes in `plan.json`; no data set is opened. Every training step records a
digest of the sample numbers that all ranks were given, and their counts by source. Both are compared.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from megacode.base.errors import ConfigError, VerificationError
from megacode.base.files import Json, RunDir, read_json
from megacode.config.config_file import load_config
from megacode.metrics.reader import read_events, read_metrics
from megacode.plan.batch import samples_digest
from megacode.plan.phases import Schedule, SourceSize, build_schedule

_SHOWN = 5


def prove_samples(path: Path) -> Json:
    """Compare what every iteration of a run read with the plan.

    Args:
        path: the run directory.

    Returns:
        `iterations`: number in metrics.jsonl; `equal`: number that read exactly the planned samples; `complete`:
        whether they reach the plan's end; `differing`: `iteration` and `what` of each difference, in order.

    Raises:
        ConfigError: if run.yaml or plan.json cannot be read.
        VerificationError: if run.yaml and plan.json describe different orders.
    """
    run = RunDir(path)
    damaged: list[str] = []
    repeated: list[int] = []
    needed = ("iteration", "consumed_samples", "batch_size", "samples_digest", "samples_by_source")
    records = read_metrics(run.metrics, "train", damaged=damaged, repeated=repeated)
    # Only what is compared: a long run has a million lines, each with dozens of numbers.
    lines: list[Json] = [{name: line.get(name) for name in needed} for line in records]
    schedule = _schedule(run)
    begun = next((event for event in read_events(run, damaged) if event.get("event") == "start"), {})
    # A branch starts at its trunk's iteration and clock, any other run at 0.
    first = (int(begun.get("iteration") or 0), int(begun.get("consumed_samples") or 0))
    # Three kinds of difference: a line that does not match the plan, an iteration twice, a line that cannot be read.
    differing = list(_differing(lines, schedule, *first))
    differing += [{"iteration": number, "what": f"comes after iteration {number} as well"} for number in repeated]
    differing += [{"iteration": None, "what": f"a line is damaged: {where}"} for where in damaged]
    wrong = {row["iteration"] for row in differing if row["iteration"] is not None}
    clock = int(lines[-1]["consumed_samples"] or 0) if lines else 0
    return {
        "iterations": len(lines),
        "equal": sum(line.get("iteration") not in wrong for line in lines),
        "consumed_samples": clock,
        "complete": clock == schedule.total_samples,
        "differing": differing,
    }


def differing_error(proof: Json, path: Path) -> VerificationError:
    """Return the error that names the first iterations that did not read the planned samples."""
    rows = proof["differing"]
    shown = [
        row["what"] if row["iteration"] is None else f"iteration {row['iteration']}: {row['what']}" for row in rows
    ]
    if len(rows) > _SHOWN:
        shown[_SHOWN:] = [f"and {len(rows) - _SHOWN:,} more"]
    message = f"{proof['equal']:,} of {proof['iterations']:,} iterations read exactly the planned samples"
    fix = "metrics.jsonl or run.yaml was changed; each checkpoint's megacode.json holds the config it was saved with"
    return VerificationError(f"{message}; {'; '.join(shown)}", str(RunDir(path).metrics), fix)


def _schedule(run: RunDir) -> Schedule:
    """Rebuild the run's order, and prove by its fingerprints that the run was started with it."""
    plan = read_json(run.plan)
    if not plan.get("sources"):
        fix = "it is written when the run starts: try again later, or resume the run"
        raise ConfigError("there is no plan to compare with", str(run.plan), fix)
    fields = ("tokens", "documents", "validation_tokens", "identity")
    sizes = {
        name: SourceSize(name, **{key: row[key] for key in fields}, form=row.get("form"))
        for name, row in plan["sources"].items()
    }
    schedule = build_schedule(load_config(run.config), sizes)
    if schedule.fingerprints() != plan.get("fingerprints"):
        fix = "resume the run: `megacode train` rewrites both, and refuses a changed past"
        raise VerificationError("run.yaml and plan.json describe different orders of samples", str(run.path), fix)
    return schedule


def _differing(lines: list[Json], schedule: Schedule, iteration: int, clock: int) -> Iterator[Json]:
    """Yield a row for each difference from the plan, in the file's order.

    Args:
        lines: the records.
        schedule: of the run.
        iteration, clock: at which the run began.
    """
    for line in lines:
        if line["consumed_samples"] is None or line["batch_size"] is None:
            yield {"iteration": line["iteration"], "what": "its record does not say which samples it read"}
            continue
        # First: does this line follow the one before, without a gap or an overlap?
        before, after = int(line["consumed_samples"]) - int(line["batch_size"]), int(line["consumed_samples"])
        if line["iteration"] != iteration + 1:
            yield {"iteration": line["iteration"], "what": f"comes after iteration {iteration}"}
        if before != clock:
            message = f"begins with sample {before:,}, but the previous iteration ended with {clock - 1:,}"
            yield {"iteration": line["iteration"], "what": message}
        # Then: did it read these samples?
        message = _compare(line, before, after, schedule)
        if message:
            yield {"iteration": line["iteration"], "what": message}
        iteration, clock = line["iteration"], after


def _compare(line: Json, before: int, after: int, schedule: Schedule) -> str:
    """Return how one iteration differs from the plan; empty if it does not."""
    if not 0 <= before < after <= schedule.total_samples:
        return f"samples {before:,} to {after - 1:,} are not part of the plan"
    if line.get("samples_digest") is None:
        return "its record has no digest of its samples"
    # The digest decides; the counts below only say whether the record splits the same samples by source as the plan.
    planned = float(samples_digest(np.arange(before, after)).sum())
    if float(line["samples_digest"]) != planned:
        return f"the digest of its samples is {line['samples_digest']}, the plan's is {planned}"
    low, high = schedule.counts_at(before), schedule.counts_at(after)
    counts = {name: count - low[name] for name, count in high.items() if count > low[name]}
    if line["samples_by_source"] != counts:
        return f"it read {line['samples_by_source']} by source, planned were {counts}"
    return ""

"""The chain that proves a run's past unchanged.

Each phase has a link: the facts that its order depends on, and a hash of those facts and of the link before. Names of
phases, learning rates, sources that are not drawn, and all later phases are no such facts. A checkpoint carries the
chain; whoever resumes compares it with that of their config, up to the phase in which the clock stands.

Where a phase is left early is no fact of its own order, but of every later one: so a checkpoint inside a trunk belongs
to the trunk and to each branch that leaves it behind that checkpoint, and one inside a branch belongs to no other.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from megacode.base.errors import CheckpointError, Problem
from megacode.base.files import digest
from megacode.plan.phase_plan import PhasePlan
from megacode.plan.sources import SourceSize

Link = Mapping[str, Any]
ACCEPT = "--accept-changed-past"
_LAW = "megacode order 1"
_LABELS = {
    "samples": "gave {old:,} samples to it and now gives {new:,}",
    "first_index": "started in it at its sample {old:,} and now starts at {new:,}",
    "tokens": "had {old:,} training tokens and now has {new:,}",
    "identity": "had the content hash {old:.12} and now has {new:.12}",
}
_FIXES = {
    "samples": "set the blend, the lengths and the caps back to what they were up to this phase",
    "first_index": "set repeat and the blends of earlier phases back to what they were",
    "tokens": "put the former data set back, or set validation.fraction or sources.{source}.take back to what it was",
    "identity": "put the former data set back at sources.{source}.path",
}


class Chained(Protocol):
    """What has a chain: a schedule."""

    def fingerprints(self) -> list[dict[str, Any]]:
        """Return one link a phase."""


def chain(
    phases: Sequence[PhasePlan], sizes: Mapping[str, SourceSize], seq_length: int, seed: int
) -> list[dict[str, Any]]:
    """Return the links of a schedule, plain values for JSON.

    Each has `phase`, `first_sample`, `read` (after how many samples it is left), `fingerprint`, and the facts:
    `samples` of its full length, `seq_length`, `seed`, and by name of each source drawn `samples`, `first_index`,
    `tokens`, `identity`.

    Args:
        phases: of the schedule.
        sizes: of the sources that they draw from.
        seq_length: tokens a sample trains on.
        seed: of the run.
    """
    links: list[dict[str, Any]] = []
    before = _LAW
    for phase in phases:
        counts = phase.tree.counts(phase.full_samples)
        facts = {
            "samples": phase.full_samples,
            "seq_length": seq_length,
            "seed": seed,
            "sources": {
                name: {
                    "samples": count,
                    "first_index": phase.first_index[name],
                    "tokens": sizes[name].tokens,
                    "identity": sizes[name].identity,
                }
                for name, count in sorted(counts.items())
                if count
            },
        }
        clock = {"phase": phase.name, "first_sample": phase.first_sample, "read": phase.samples}
        fingerprint = digest(before, json.dumps(facts, sort_keys=True))
        links.append({**clock, "fingerprint": fingerprint, **facts})
        before = digest(fingerprint, f"left after {phase.samples}") if phase.left_early else fingerprint
    return links


def prove_past(schedule: Chained, former: Sequence[Link], consumed_samples: int) -> None:
    """Prove that a schedule agrees with a former chain on every phase that has begun.

    Args:
        schedule: of the config to go on with.
        former: the chain that the checkpoint carries.
        consumed_samples: its clock.

    Raises:
        CheckpointError: with the differences in the first phase that has any.
    """
    links = schedule.fingerprints()
    for number, old in enumerate(former):
        if old["first_sample"] >= consumed_samples:
            return
        if number >= len(links):
            what = f"the run has read from phase {old['phase']!r}, which the config no longer has"
            fix = f"add it back with samples: {old['samples']}"
            raise CheckpointError(what, f"phases[{number}]", _or_anew(fix))
        if links[number]["fingerprint"] != old["fingerprint"]:
            found = list(_differences(number, old, links[number]))
            raise CheckpointError(problems=found or [_another_law(number, old)])
        _prove_cut(number, old, links[number], consumed_samples)


def _prove_cut(number: int, old: Link, new: Link, consumed_samples: int) -> None:
    """Refuse a phase of the same order that is left elsewhere than where the run left it, or before the clock."""
    done, read, where = consumed_samples - old["first_sample"], new["read"], f"phases[{number}].until"
    if done <= old["read"]:
        if done > read:
            what = (
                f"the checkpoint has read {done:,} samples of phase {old['phase']!r}, "
                f"and the config leaves it after {read:,}"
            )
            fix = f"start from a checkpoint of sample {new['first_sample'] + read} or before"
            raise CheckpointError(what, where, f"{fix}, or raise until to {done} samples or more")
    elif read != old["read"]:
        what = (
            f"the run left phase {old['phase']!r} after {old['read']:,} samples, and the config leaves it after "
            f"{read:,}"
        )
        raise CheckpointError(what, where, _or_anew(f"set until: {old['read']} samples"))


def _differences(number: int, old: Link, new: Link) -> Iterator[Problem]:
    said = f"the run has read from phase {old['phase']!r}"
    for key, where in (("seed", "seed"), ("seq_length", "train.seq_length")):
        if old[key] != new[key]:
            yield Problem(
                f"{said} with {key} {old[key]} and it is now {new[key]}", where, _or_anew(f"set {key}: {old[key]}")
            )
    if old["samples"] != new["samples"]:
        what = f"{said} as one of {old['samples']:,} samples and it now has {new['samples']:,}"
        yield Problem(what, f"phases[{number}]", _or_anew(f"give it samples: {old['samples']} in place of its length"))
    for source in sorted({*old["sources"], *new["sources"]}):
        yield from _source_differences(number, source, old, new)


def _source_differences(number: int, source: str, old: Link, new: Link) -> Iterator[Problem]:
    absent = {"samples": 0}
    was, now = old["sources"].get(source, absent), new["sources"].get(source, absent)
    for key, label in _LABELS.items():
        same_length = old["samples"] == new["samples"]
        if key not in was or key not in now or was[key] == now[key] or (key == "samples" and not same_length):
            continue
        what = f"the run has read from phase {old['phase']!r}: {source!r} {label.format(old=was[key], new=now[key])}"
        part = {"samples": f"phases[{number}].blend", "first_index": f"phases[{number}].repeat"}.get(key, "sources")
        yield Problem(what, f"{part}.{source}", _or_anew(_FIXES[key].format(source=source)))


def _another_law(number: int, old: Link) -> Problem:
    what = f"phase {old['phase']!r} was ordered by another version's law, or the checkpoint's chain is damaged"
    return Problem(what, f"phases[{number}]", "resume with the version of megacode that wrote the checkpoint")


def _or_anew(fix: str) -> str:
    return f"{fix}, start a new run from the checkpoint's weights (init.from), or go on with {ACCEPT} at a known loss"

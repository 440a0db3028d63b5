"""The chain that proves a run's past unchanged.

Each phase has a link: the facts that its order depends on, and a hash of those facts and of the link before. Names of
phases, learning rates, sources that are not drawn, and all later phases are no such facts. A checkpoint carries the
chain; whoever resumes compares it with that of their config, up to the phase in which the clock stands.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from megacode.base.errors import CheckpointError, Problem
from megacode.base.files import digest

if TYPE_CHECKING:
    from megacode.plan.phases import Schedule

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
    "tokens": "put the former data set back, or set validation.fraction back to what it was",
    "identity": "put the former data set back at sources.{source}.path",
}


def chain(schedule: Schedule) -> list[dict[str, Any]]:
    """Return the links of a schedule, plain values for JSON.

    Each has `phase`, `first_sample`, `fingerprint`, and the facts: `samples`, `seq_length`, `seed`, and by name of each
    source drawn `samples`, `first_index`, `tokens`, `identity`.
    """
    links: list[dict[str, Any]] = []
    before = _LAW
    for phase in schedule.phases:
        facts = {
            "samples": phase.samples,
            "seq_length": schedule.seq_length,
            "seed": schedule.seed,
            "sources": {
                name: {
                    "samples": count,
                    "first_index": phase.first_index[name],
                    "tokens": schedule.sizes[name].tokens,
                    "identity": schedule.sizes[name].identity,
                }
                for name, count in sorted(phase.counts.items())
                if count
            },
        }
        before = digest(before, json.dumps(facts, sort_keys=True))
        links.append({"phase": phase.name, "first_sample": phase.first_sample, "fingerprint": before, **facts})
    return links


def prove_past(schedule: Schedule, former: Sequence[Mapping[str, Any]], consumed_samples: int) -> None:
    """Prove that a schedule agrees with a former chain on every phase that has begun.

    Args:
        schedule: of the config to go on with.
        former: the chain that the checkpoint carries.
        consumed_samples: its clock.

    Raises:
        CheckpointError: with the differences in the first phase that has any.
    """
    links = chain(schedule)
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


def _differences(number: int, old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[Problem]:
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


def _source_differences(number: int, source: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[Problem]:
    absent = {"samples": 0}
    was, now = old["sources"].get(source, absent), new["sources"].get(source, absent)
    for key, label in _LABELS.items():
        same_length = old["samples"] == new["samples"]
        if key not in was or key not in now or was[key] == now[key] or (key == "samples" and not same_length):
            continue
        what = f"the run has read from phase {old['phase']!r}: {source!r} {label.format(old=was[key], new=now[key])}"
        part = {"samples": f"phases[{number}].blend", "first_index": f"phases[{number}].repeat"}.get(key, "sources")
        yield Problem(what, f"{part}.{source}", _or_anew(_FIXES[key].format(source=source)))


def _another_law(number: int, old: Mapping[str, Any]) -> Problem:
    what = f"phase {old['phase']!r} was ordered by another version's law, or the checkpoint's chain is damaged"
    return Problem(what, f"phases[{number}]", "resume with the version of megacode that wrote the checkpoint")


def _or_anew(fix: str) -> str:
    return f"{fix}, or start a new run from the checkpoint's weights (init.from)"

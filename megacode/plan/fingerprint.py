"""A hash chain that proves that the past of a run is unchanged.

Each phase has a link: the facts that its order depends on, and a hash of those facts and of the previous link. Names of
phases, learning rates, sources that are not drawn, and all later phases are not among these facts. A checkpoint carries
the chain. A resume compares it with the chain of the config, up to the phase that contains the clock.

Where a phase ends early does not affect its own order, but that of every later phase. So a checkpoint inside a trunk
belongs to the trunk and to each branch that leaves it after that checkpoint. One inside a branch belongs only to it.
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
# Part of every hash. Change it if the order of samples ever changes: old checkpoints are then refused.
_LAW = "megacode order 1"
_LABELS = {
    "samples": "gave it {old:,} samples and would now give {new:,}",
    "first_index": "started in it at its sample {old:,} and would now start at {new:,}",
    "tokens": "had {old:,} training tokens and now has {new:,}",
    "identity": "had the content hash {old:.12} and now has {new:.12}",
    "form": "was read {old} and would now be read {new}",
}
_FIXES = {
    "samples": "restore the blends, lengths and caps up to this phase",
    "first_index": "restore repeat and the blends of earlier phases",
    "tokens": "restore the former data set, or the former validation.fraction or sources.{source}.take",
    "identity": "restore the former data set at sources.{source}.path",
    "form": "restore sources.{source}.fim_rate, fim_spm_rate, loss and its loss mask, and the tokens of tokenizer.fim",
}


class Chained(Protocol):
    """Anything that has a chain, such as a schedule."""

    def fingerprints(self) -> list[dict[str, Any]]:
        """Return one link per phase."""


def chain(
    phases: Sequence[PhasePlan], sizes: Mapping[str, SourceSize], seq_length: int, seed: int
) -> list[dict[str, Any]]:
    """Return the links of a schedule, as plain values for JSON.

    Each has `phase`, `first_sample`, `read` (samples after which the phase ends), `fingerprint`, and the facts:
    `samples` of its full length, `seq_length`, `seed`, and for each source drawn `samples`, `first_index`, `tokens`,
    `identity`, and `form` where its documents are not read as stored.

    Args:
        phases: of the schedule.
        sizes: of the sources that are drawn.
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
                    # Only where there is one: chains of runs without it stay the same.
                    **({"form": sizes[name].form} if sizes[name].form else {}),
                }
                for name, count in sorted(counts.items())
                if count
            },
        }
        clock = {"phase": phase.name, "first_sample": phase.first_sample, "read": phase.samples}
        # JSON with sorted keys: the same bytes on every machine and Python version.
        fingerprint = digest(before, json.dumps(facts, sort_keys=True))
        links.append({**clock, "fingerprint": fingerprint, **facts})
        # A full phase hashes as if `until` did not exist, so chains of runs without it stay the same.
        before = digest(fingerprint, f"left after {phase.samples}") if phase.left_early else fingerprint
    return links


def prove_past(schedule: Chained, former: Sequence[Link], consumed_samples: int) -> None:
    """Prove that a schedule agrees with a checkpoint's chain on every phase that has begun.

    Args:
        schedule: of the config to resume with.
        former: the checkpoint's chain.
        consumed_samples: its clock.

    Raises:
        CheckpointError: lists the differences in the first phase that has any.
    """
    links = schedule.fingerprints()
    for number, old in enumerate(former):
        # Phases that have not begun may be changed freely.
        if old["first_sample"] >= consumed_samples:
            return
        if number >= len(links):
            what = f"the run has already read from phase {old['phase']!r}, which the config no longer has"
            fix = f"add it back with samples: {old['samples']}"
            raise CheckpointError(what, f"phases[{number}]", _or_start_new(fix))
        if links[number]["fingerprint"] != old["fingerprint"]:
            problems = list(_differences(number, old, links[number]))
            raise CheckpointError(problems=problems or [_another_law(number, old)])
        _prove_cut(number, old, links[number], consumed_samples)


def _prove_cut(number: int, old: Link, new: Link, consumed_samples: int) -> None:
    """Refuse a phase of the same order that ends at another point than the run left it at, or before the clock."""
    done, read, where = consumed_samples - old["first_sample"], new["read"], f"phases[{number}].until"
    if done <= old["read"]:
        if done > read:
            what = (
                f"the checkpoint has read {done:,} samples of phase {old['phase']!r}, "
                f"and the config ends it after {read:,}"
            )
            fix = f"start from a checkpoint of sample {new['first_sample'] + read} or earlier"
            raise CheckpointError(what, where, f"{fix}, or raise until to {done} samples or more")
    elif read != old["read"]:
        what = (
            f"the run left phase {old['phase']!r} after {old['read']:,} samples, and the config ends it after {read:,}"
        )
        raise CheckpointError(what, where, _or_start_new(f"set until: {old['read']} samples"))


def _differences(number: int, old: Link, new: Link) -> Iterator[Problem]:
    begun = f"the run has already read from phase {old['phase']!r}"
    for key, where in (("seed", "seed"), ("seq_length", "train.seq_length")):
        if old[key] != new[key]:
            yield Problem(
                f"{begun} with {key} {old[key]}, which is now {new[key]}",
                where,
                _or_start_new(f"set {key}: {old[key]}"),
            )
    if old["samples"] != new["samples"]:
        what = f"{begun} with a length of {old['samples']:,} samples, which is now {new['samples']:,}"
        yield Problem(what, f"phases[{number}]", _or_start_new(f"set its length to samples: {old['samples']}"))
    for source in sorted({*old["sources"], *new["sources"]}):
        yield from _source_differences(number, source, old, new)


def _source_differences(number: int, source: str, old: Link, new: Link) -> Iterator[Problem]:
    absent = {"samples": 0}
    was, now = old["sources"].get(source, absent), new["sources"].get(source, absent)
    if "tokens" in was and "tokens" in now:  # both draw it
        was, now = ({**facts, "form": _form(facts.get("form"))} for facts in (was, now))
    for key, label in _LABELS.items():
        # Another length changes every count; saying so once (above) is enough.
        same_length = old["samples"] == new["samples"]
        if key not in was or key not in now or was[key] == now[key] or (key == "samples" and not same_length):
            continue
        change = label.format(old=was[key], new=now[key])
        what = f"the run has already read from phase {old['phase']!r}: {source!r} {change}"
        setting = {"samples": f"phases[{number}].blend", "first_index": f"phases[{number}].repeat"}.get(key, "sources")
        yield Problem(what, f"{setting}.{source}", _or_start_new(_FIXES[key].format(source=source)))


def _form(form: Mapping[str, Any] | None) -> str:
    """Return how documents are read, for people."""
    if form is None:
        return "as stored"
    if "rate" not in form:
        windows = [f"in packed windows of {form['packed']:,} tokens"] if "packed" in form else []
        return " ".join([*windows, *([f"with the loss mask {form['mask']:.12}"] if "mask" in form else [])])
    ids = ", ".join(map(str, form["sentinels"])) if form["sentinels"] else "not known"
    return f"with fim_rate {form['rate']:g}, fim_spm_rate {form['spm_rate']:g} and sentinels {ids}"


def _another_law(number: int, old: Link) -> Problem:
    what = f"phase {old['phase']!r} was ordered by another version of megacode, or the checkpoint's chain is damaged"
    return Problem(what, f"phases[{number}]", "resume with the version of megacode that wrote the checkpoint")


def _or_start_new(fix: str) -> str:
    """Add the two other ways out: a new run, or a changed past whose cost is reported."""
    accept = f"resume with {ACCEPT}, which reports repeated and lost windows"
    return f"{fix}, start a new run from the checkpoint's weights (init.from), or {accept}"

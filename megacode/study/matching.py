"""Proofs that arms have in common what they claim, and what would make them match.

A source's stream is a fixed sequence of windows, which a run reads from its beginning on. So arms that give a source
equally many samples, with one seed, one data set, one `seq_length` and without `restart`, read the same windows of it;
only the order among sources differs. Counts do not depend on the seed, so one seed proves all.

An arm with `init` has learned from the runs before it, too. Each of them reads every source from its beginning.

What would match is found by changing as little as possible. Each source's difference goes to the phase that reads most
of it, which is then given in samples. If the blend cannot give those counts, the blend is given in samples, too: as
weights, they are exact.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from megacode.base.errors import MegacodeError, Problem
from megacode.config.data import Phase
from megacode.config.run import RunConfig
from megacode.plan.phases import PhasePlan, Schedule, build_schedule
from megacode.study.grid import Cell, Grid
from megacode.study.identity import mark_of, rate_facts
from megacode.study.schema import Match, Study

_ROUNDS = 8  # of changing lengths and looking again
Counts = dict[str, int]


@dataclass(frozen=True)
class Proof:
    """The result of checking one claim at one combination of levels.

    Attributes:
        claim: the claim.
        cells: of its arms, with the first seed.
        samples_by_source: by name of the arm: over the whole run, or in the last phase.
        problems: why the claim does not hold; empty if it is proven.
    """

    claim: Match
    cells: list[Cell]
    samples_by_source: dict[str, Counts]
    problems: list[Problem]

    @property
    def equal(self) -> bool:
        """Whether the claim is proven."""
        return not self.problems


def prove(grid: Grid) -> list[Proof]:
    """Check every claim of a study at every combination of levels where two or more of its arms are trained."""
    found = []
    for number, claim in enumerate(grid.study.match):
        groups: dict[tuple[str, ...], list[Cell]] = {}
        for arm in claim.arms:
            # Arms are compared at one scale: another one has other lengths.
            for cell in grid.of(arm):
                groups.setdefault(cell.place, []).append(cell)
        for cells in groups.values():
            if len(cells) > 1:
                found.append(_proof(grid.study, claim, cells, f"match[{number}]"))
    return found


def exposure(schedule: Schedule) -> Counts:
    """Return how many samples of each source a run reads, sources without any left out."""
    return {name: count for name, count in schedule.counts_at(schedule.total_samples).items() if count}


def learned(cell: Cell) -> Counts:
    """Return how many samples of each source an arm has learned from, those of the arms that `init` names included."""
    return {name: sum(counts) for name, counts in _by_training(cell).items()}


def _by_training(cell: Cell) -> dict[str, list[int]]:
    """Return by source how many samples each training reads from its beginning, sorted."""
    found: dict[str, list[int]] = {}
    for training in cell.trainings:
        for name, count in exposure(training.plan.schedule).items():
            found.setdefault(name, []).append(count)
    return {name: sorted(counts) for name, counts in found.items()}


def _proof(study: Study, claim: Match, cells: list[Cell], where: str) -> Proof:
    problems: list[Problem] = []
    counts: dict[str, Counts] = {}
    # Phases that a level adds come after the ends that are claimed to be alike.
    if claim.end is not None and study.uses(cells[0].arm) == study.uses(cells[0].arm, cells[0].levels):
        counts = {cell.name: _last_counts(cell) for cell in cells}
        for cell in cells:
            problems += _end_problems(study, cells[0], cell, claim.end, f"{where}.end")
    if claim.exposure is not None:
        counts = {cell.name: learned(cell) for cell in cells}
        for cell in cells:
            problems += _exposure_problems(study, cells[0], cell, f"{where}.exposure")
    return Proof(claim, cells, counts, problems)


def _last_counts(cell: Cell) -> Counts:
    return {name: count for name, count in cell.plan.schedule.phases[-1].counts.items() if count}


def _end_problems(study: Study, first: Cell, cell: Cell, end: str, where: str) -> Iterator[Problem]:
    # In a run's config the second use of a phase has a name of its own: `cooldown-2`.
    named = study.uses(cell.arm, cell.levels)[-1].phase
    if named != end:
        fix = f"end {cell.arm!r} with {end!r}, or leave it out of the claim"
        yield Problem(f"{cell.name!r} ends with {named!r}, not with {end!r}", where, fix)
        return
    if other_length := list(_length_problems(first, cell, where)):
        yield from other_length
        return
    ours, theirs = _last_counts(first), _last_counts(cell)
    if ours != theirs:
        what = f"{cell.name!r} ends with {_listed(theirs)}, {first.name!r} with {_listed(ours)}"
        yield Problem(what, where, f"in arm {cell.arm!r} {_as_counts(end, ours)}")
    else:
        yield from _stream_problems(first, cell, ours, where)
    rates = [rate_facts(one.plan.rates.phases[-1], one.plan.schedule.phases[-1].samples) for one in (first, cell)]
    if rates[0] != rates[1]:
        said = " and ".join(f"{one.name!r} {rate['start']:.3g}" for one, rate in zip((first, cell), rates, strict=True))
        # Without `peak` a phase takes over the rate of the phase before, which blends do not show.
        fix = "let the phases before it end at the same rate, or give it a peak"
        yield Problem(f"the learning rate of {end!r} differs: it starts in {said}", where, fix)


def _exposure_problems(study: Study, first: Cell, cell: Cell, where: str) -> Iterator[Problem]:
    for training in cell.trainings:
        yield from _restarts(training, where)
    starts = [one.trainings[0].past.start for one in (first, cell)]
    # What a checkpoint has learned from is not in the study.
    if starts[0] != starts[1]:
        what = f"{cell.name!r} starts from {starts[1]}, {first.name!r} from {starts[0]}"
        yield Problem(what, where, "start both from random weights, or from one checkpoint")
        return
    if other_length := [one for training in cell.trainings for one in _length_problems(first, training, where)]:
        yield from other_length
        return
    # 1. As many samples of each source ...
    ours, theirs = learned(first), learned(cell)
    if ours != theirs:
        changed = [name for name in sorted({*ours, *theirs}) if ours.get(name, 0) != theirs.get(name, 0)]
        said = ", ".join(f"{name} {theirs.get(name, 0):,} in place of {ours.get(name, 0):,}" for name in changed)
        what = f"{cell.name!r} does not read as many samples as {first.name!r}: {said}"
        yield Problem(what, where, _fix(study, cell, ours))
        return
    # 2. ... in trainings that begin alike ...
    ours_each, theirs_each = _by_training(first), _by_training(cell)
    for name in (name for name in ours if ours_each[name] != theirs_each[name]):
        what = f"{cell.name!r} reads other windows of {name!r} than {first.name!r}: "
        what += "after `init` a source is read from its beginning again"
        yield Problem(what, where, "give both arms an init with the same samples, or none")
    # 3. ... from one stream, and so the same windows.
    for one, other in product(first.trainings, cell.trainings):
        both = [name for name in exposure(one.plan.schedule) if name in exposure(other.plan.schedule)]
        yield from _stream_problems(one, other, both, where)


def _length_problems(first: Cell, cell: Cell, where: str) -> Iterator[Problem]:
    one, other = first.plan.schedule.seq_length, cell.plan.schedule.seq_length
    if one != other:
        what = f"samples of {first.name!r} have {one:,} tokens, those of {cell.name!r} {other:,}"
        yield Problem(what, where, "use the same train.seq_length")


def _stream_problems(first: Cell, cell: Cell, names: Iterable[str], where: str) -> Iterator[Problem]:
    one, other = first.plan.schedule, cell.plan.schedule
    for name in names:
        marks = mark_of(first.plan, name), mark_of(cell.plan, name)
        if marks[0] != marks[1] or one.sizes[name].tokens != other.sizes[name].tokens:
            what = f"{cell.name!r} reads other windows of {name!r} than {first.name!r}: "
            what += "its data set, take or held-out part differs"
            fix = "use the same data set, take and validation.fraction"
            yield Problem(what, f"{where}: sources.{name}", fix)


def _restarts(cell: Cell, where: str) -> Iterator[Problem]:
    for phase in cell.plan.schedule.phases:
        if phase.restarted:
            what = f"{cell.name!r} reads {', '.join(phase.restarted)} from its beginning again in {phase.name!r}"
            yield Problem(what, where, "remove repeat: restart, so that arms read the same windows")


def _fix(study: Study, cell: Cell, wanted: Counts) -> str:
    """Return what to write so that an arm reads as many samples of each source as another."""
    # What was read before is read; only the last training can be changed without changing another arm.
    before = learned(cell.init) if cell.init else {}
    missing = {name: count for name, count in _missing(wanted, before).items() if count}
    found = matched(cell.plan.config, cell.plan.schedule, missing)
    if found is None:
        return f"no lengths of the phases of {cell.arm!r} give these: change their blends"
    # Second names are left out: they would make each phase of their arm look shared.
    uses = [use.phase for arm in study.arms.values() if arm.same_as is None for use in arm.named_phases]
    changes = []
    for phase, was, use in zip(found, cell.plan.config.phases, study.uses(cell.arm, cell.levels), strict=True):
        if phase != was:
            blend = "" if phase.blend == was.blend else f", blend: {_flow(phase.blend)}"
            # A phase that others use must stay as it is for them.
            own = (
                f"give phase {use.phase!r}" if uses.count(use.phase) == 1 else f"use a copy of phase {use.phase!r} with"
            )
            changes.append(f"{own} samples: {phase.samples}{blend}")
    return f"in arm {cell.arm!r} " + ", and ".join(changes)


def matched(config: RunConfig, schedule: Schedule, wanted: Counts) -> tuple[Phase, ...] | None:
    """Return phases of a config that read given numbers of samples in all, changed as little as possible.

    Args:
        config: to be changed.
        schedule: what it reads now.
        wanted: samples by source over the whole run.

    Returns:
        the phases, or None where no lengths and blends of its phases' own sources give these numbers.
    """
    # Lengths first: they keep the blends as they are written.
    for by_blend in (False, True):
        tried, now = config, schedule
        # What a phase leaves over is carried into the next one, so one change may call for another.
        for _ in range(_ROUNDS):
            counts = exposure(now)
            if counts == wanted:
                return tried.phases
            phases = _moved(tried, now.phases, _missing(wanted, counts), by_blend)
            # No other round would help: the sources or the cut stand in the way, not the numbers.
            if phases is None:
                return None
            tried = tried.model_copy(update={"phases": phases})
            try:
                now = build_schedule(tried, schedule.sizes)
            except MegacodeError:
                break
    return None


def _missing(wanted: Counts, counts: Counts) -> Counts:
    names = sorted({*wanted, *counts})
    return {name: wanted.get(name, 0) - counts.get(name, 0) for name in names}


def _moved(config: RunConfig, plans: Sequence[PhasePlan], missing: Counts, by_blend: bool) -> tuple[Phase, ...] | None:
    """Return the phases with the missing samples added to the phase that reads most of each source."""
    targets = [dict(plan.counts) for plan in plans]
    for name, more in missing.items():
        if not more:
            continue
        holder = max(targets, key=lambda counts: counts.get(name, 0))
        # A phase that does not read a source cannot be made to by its length.
        if holder.get(name, 0) + more < 0 or not holder.get(name, 0):
            return None
        holder[name] += more
    changed = []
    for phase, plan, target in zip(config.phases, plans, targets, strict=True):
        if target == dict(plan.counts) and not (by_blend and phase.samples is not None):
            changed.append(phase)
        elif plan.left_early:
            return None  # its order is that of its full length, which no count of what is read decides
        else:
            changed.append(exact_phase(phase, target) if by_blend else _lengthened(phase, sum(target.values())))
    return tuple(changed)


def exact_phase(phase: Phase, counts: Mapping[str, int]) -> Phase:
    """Return a phase that reads exactly so many samples of each source, if none is owed from the phases before."""
    blend = {name: float(count) for name, count in counts.items() if count}
    return _lengthened(phase, sum(counts.values())).model_copy(update={"blend": blend})


def _lengthened(phase: Phase, samples: int) -> Phase:
    return phase.model_copy(update={"tokens": None, "iterations": None, "samples": samples})


def _as_counts(name: str, counts: Counts) -> str:
    return f"use a copy of phase {name!r} with samples: {sum(counts.values())}, blend: {_flow(counts)}"


def _flow(blend: Mapping[str, float]) -> str:
    return "{" + ", ".join(f"{name}: {weight:.15g}" for name, weight in blend.items()) + "}"


def _listed(counts: Counts) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items()) + " samples"

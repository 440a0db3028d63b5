"""Arms of equal exposure from one arm: some sources early, late or uniform, every sample of them placed, none added.

The clock stays: as many phases, each as long in samples and with the learning rate that it had. What changes is which
samples come in which phase. With q the samples of the placed sources that a phase gives: `early` sorts the phases'
shares downwards, `late` upwards, and `uniform` gives all phases one share. Where all shares are equal already, they are
spread first, by two thirds around the mean, as far as phases have room. A phase alone is cut into halves.

Blends are written as counts, which are exact as weights; so all arms read each source equally often, to the sample.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import yaml

from megacode.base.errors import ConfigError
from megacode.config.data import Phase
from megacode.config.suggestions import did_you_mean
from megacode.plan.blend import apportion
from megacode.plan.phases import build_schedule
from megacode.study.grid import Cell, Grid
from megacode.study.matching import Counts, exact_phase, exposure
from megacode.study.schema import StudyArm
from megacode.study.settings import free_name

PLACES = ("early", "late", "uniform")
# Far enough apart to show an effect of order, and no phase is without the placed sources.
_SPREAD = Fraction(2, 3)
_ROUNDING = 4  # samples by which equal shares of two phases may differ


@dataclass(frozen=True)
class Placed:
    """One arm with its samples placed.

    Attributes:
        place: `early`, `late` or `uniform`.
        phases: all phases of the arm, those at the end that stay among them.
        samples_by_source: over the whole run.
        phase_counts: by phase.
    """

    place: str
    phases: tuple[Phase, ...]
    samples_by_source: Counts
    phase_counts: list[Counts]


def place_arms(
    grid: Grid, arm: str, places: Sequence[str], sources: Collection[str] = (), keep: Collection[str] = ()
) -> list[Placed]:
    """Return arms that read what an arm reads, in other orders.

    Args:
        grid: of the study.
        arm: whose samples are placed.
        places: any of `PLACES`.
        sources: those to place; absent: all but the one with most samples.
        keep: phases at the arm's end that stay as they are, such as a cooldown.

    Raises:
        ConfigError: the arm, a source or a phase is not there, or the arm cannot be placed.
    """
    cell = _cell(grid, arm)
    placed = _Placer(cell, sources, keep)
    return [placed.arm(place) for place in places]


def _cell(grid: Grid, arm: str) -> Cell:
    if arm not in grid.study.arms:
        raise ConfigError(f"there is no arm {arm!r}", "--from", did_you_mean(arm, list(grid.study.arms)))
    return grid.of(arm)[0]


class _Placer:
    def __init__(self, cell: Cell, sources: Collection[str], keep: Collection[str]) -> None:
        self.cell, self.schedule = cell, cell.plan.schedule
        config = cell.plan.config
        count = self._placeable(keep)
        # 1. What stays: a cooldown has the same place in every arm.
        self.kept = list(zip(config.phases[count:], self.schedule.phases[count:], strict=True))
        # 2. What is placed: phases with their lengths, and the samples of each source in all of them.
        self.phases, self.lengths = _halves(
            config.phases[:count], [plan.samples for plan in self.schedule.phases[:count]]
        )
        plans = self.schedule.phases[:count]
        self.total: Counts = {}
        for plan in plans:
            for name, samples in plan.counts.items():
                self.total[name] = self.total.get(name, 0) + samples
        # 3. The placed sources, and the share of them that each phase has now.
        self.sources = self._sources(sources)
        self.shares = [_share(plan.counts, self.sources) for plan in plans]

    def _placeable(self, keep: Collection[str]) -> int:
        """Return how many phases are placed: all before those that stay."""
        names = [phase.name for phase in self.cell.plan.config.phases]
        for name in keep:
            if name not in names:
                raise ConfigError(f"{self.cell.arm!r} has no phase {name!r}", "--keep", did_you_mean(name, names))
        count = len(names) - len(set(keep))
        if set(names[count:]) != set(keep):
            what = f"only phases at the end can stay as they are; those of {self.cell.arm!r} are {', '.join(names)}"
            raise ConfigError(what, "--keep", f"name {names[-1]!r}, or the last ones")
        if not count:
            raise ConfigError("no phase is left to place samples in", "--keep", f"leave out {names[0]!r}")
        plans = self.schedule.phases
        # Its counts are those of its full length, or its windows are read twice: neither can be moved around.
        moved = next((plan for plan in plans if plan.left_early or plan.restarted), None)
        if moved is not None:
            what = f"phase {moved.name!r} ends early, or reads a source from its beginning again"
            raise ConfigError(what, "--from", "give it its real length, and repeat: continue")
        return count

    def _sources(self, sources: Collection[str]) -> list[str]:
        for name in sources:
            if name not in self.total:
                what = f"{self.cell.arm!r} reads no {name!r} in the phases that are placed"
                raise ConfigError(what, "--source", did_you_mean(name, list(self.total)))
        # What is asked is usually when code comes, beside a lot of text.
        heaviest = max(self.total, key=lambda name: self.total[name])
        chosen = sorted(sources or {*self.total} - {heaviest})
        if not chosen or len(chosen) == len(self.total):
            what = f"{self.cell.arm!r} reads {', '.join(sorted(self.total))}: nothing is left to place against"
            raise ConfigError(what, "--source", "name some of its sources, not all; it needs two or more")
        return chosen

    def arm(self, place: str) -> Placed:
        """Return the arm of one place."""
        wanted = sum(self.total[name] for name in self.sources)
        placed = self._quotas(place, wanted)
        others = [name for name in self.total if name not in self.sources]
        # Each phase takes its quota from what is left, by what is left: the last one then fits exactly.
        left = dict(self.total)
        phases: list[Phase] = []
        for phase, length, quota in zip(self.phases, self.lengths, placed, strict=True):
            counts = {**_divided(left, self.sources, quota), **_divided(left, others, length - quota)}
            for name, samples in counts.items():
                left[name] -= samples
            phases.append(exact_phase(phase, counts))
        assert not any(left.values()), left
        return self._with_kept(place, phases)

    def _quotas(self, place: str, wanted: int) -> list[int]:
        """Return how many samples of the placed sources each phase gives, `wanted` in all."""
        mean = Fraction(wanted, sum(self.lengths))
        shares = [mean] * len(self.lengths)
        if place != "uniform":
            # Shares are of whole samples: equal blends differ by a few.
            # Sorting equal shares would give the arm itself.
            alike = max(self.shares) - min(self.shares) <= Fraction(_ROUNDING, min(self.lengths))
            shares = _spread(mean, len(self.lengths)) if alike else sorted(self.shares, reverse=True)
            shares = shares if place == "early" else shares[::-1]
        quotas = [min(length, round(share * length)) for share, length in zip(shares, self.lengths, strict=True)]
        # Lengths that differ, and rounding: what is missing is added where it belongs first, what is too much is taken
        # from the other end.
        order = range(len(quotas))
        for number in order if (sum(quotas) < wanted) == (place != "late") else reversed(order):
            more = wanted - sum(quotas)
            quotas[number] = min(self.lengths[number], max(0, quotas[number] + more))
        assert sum(quotas) == wanted, (quotas, wanted)
        return quotas

    def _with_kept(self, place: str, phases: list[Phase]) -> Placed:
        """Add the phases that stay: as they are written if they read the same, else by their counts."""
        # The placed phases owe nothing to the kept ones, while those of the arm may: a sample more or less.
        for exact in (False, True):
            ends = [exact_phase(phase, plan.counts) if exact else phase for phase, plan in self.kept]
            config = self.cell.plan.config.model_copy(update={"phases": (*phases, *ends)})
            schedule = build_schedule(config, self.schedule.sizes)
            counts = exposure(schedule)
            if counts == exposure(self.schedule):
                return Placed(place, config.phases, counts, [_present(plan.counts) for plan in schedule.phases])
        raise AssertionError(f"{place}: {counts} for {exposure(self.schedule)}")


def _halves(phases: Sequence[Phase], lengths: list[int]) -> tuple[list[Phase], list[int]]:
    """Return phases and their lengths; one alone as two halves, where its learning rate stays the same by the clock."""
    if len(phases) > 1:
        return list(phases), lengths
    (phase,), (length,) = phases, lengths
    if phase.learning_rate.schedule != "constant":
        what = f"phase {phase.name!r} stands alone, and a {phase.learning_rate.schedule} rate cannot be cut in two"
        raise ConfigError(what, "--from", "give the arm two phases or more, or this one schedule: constant")
    # Goes on at the rate that the first half ends with.
    later = phase.learning_rate.model_copy(update={"peak": None, "warmup": None})
    # Only a constant rate can be cut without changing it: the second half needs no state of the first but its rate.
    second = phase.model_copy(update={"name": f"{phase.name}-2", "learning_rate": later})
    return [phase, second], [length - length // 2, length // 2]


def _present(counts: Mapping[str, int]) -> Counts:
    return {name: count for name, count in counts.items() if count}


def _share(counts: Mapping[str, int], names: Collection[str]) -> Fraction:
    return Fraction(sum(counts.get(name, 0) for name in names), sum(counts.values()))


def _spread(mean: Fraction, phases: int) -> list[Fraction]:
    """Return shares that fall evenly around a mean, from phase to phase."""
    reach = min(_SPREAD, (1 - mean) / mean)
    return [mean * (1 + reach * (phases - 1 - 2 * number) / (phases - 1)) for number in range(phases)]


def _divided(left: Counts, names: Collection[str], samples: int) -> Counts:
    """Divide samples among sources by what each has left."""
    weights = {name: Fraction(left[name]) for name in names if left[name]}
    if not samples:
        return {}
    counts, _ = apportion(weights, samples, {}, {name: left[name] for name in weights})
    return counts


def check_places(places: Sequence[str]) -> list[str]:
    """Return places, each once.

    Raises:
        ConfigError: one is none.
    """
    for place in places:
        if place not in PLACES:
            raise ConfigError(f"there is no place {place!r}", "--place", did_you_mean(place, list(PLACES)))
    return list(dict.fromkeys(places))


def placed_document(grid: Grid, arm: str, found: Sequence[Placed]) -> dict[str, Any]:
    """Return arms as plain values: `phases`, `arms` and `match` to add to the study, and places `unchanged`.

    Args:
        grid: of the study.
        arm: whose samples were placed.
        found: of `place_arms`.
    """
    cell = grid.of(arm)[0]
    document: dict[str, Any] = {"phases": {}, "arms": {}, "match": [], "unchanged": []}
    # The phases as the run has them, and as the study names them: `text-2` may be the second use of `text`.
    known = list(zip(cell.plan.config.phases, grid.study.uses(arm, cell.levels), strict=True))
    for one in found:
        # Blends that are already sorted this way; the same training under a second name would be refused.
        if one.phase_counts == [_present(plan.counts) for plan in cell.plan.schedule.phases]:
            document["unchanged"].append(one.place)
            continue
        name = free_name(f"{arm}-{one.place}", [*grid.study.arms, *document["arms"]])
        uses: list[str] = []
        for number, phase in enumerate(one.phases):
            use = next((use for other, use in known if other == phase), None)
            if use is not None:
                uses.append(use.phase)
                continue
            uses.append(free_name(f"{name}-{number + 1}", [*grid.study.phases, *document["phases"]]))
            document["phases"][uses[-1]] = _document(phase)
        document["arms"][name] = _like(grid.study.arms[cell.original], uses)
    if document["arms"]:
        document["match"] = [{"arms": [arm, *document["arms"]], "exposure": "samples"}]
    return document


def written(grid: Grid, arm: str, found: Sequence[Placed]) -> str:
    """Return arms as YAML to be pasted into the study."""
    document = placed_document(grid, arm, found)
    text = "".join(f"# {place}: {arm} itself\n" for place in document.pop("unchanged"))
    text += "# to be added under the study's own keys of these names\n" if document["arms"] else ""
    parts = ({key: value} for key, value in document.items() if value)
    return text + "".join(
        yaml.dump(part, Dumper=_Plain, sort_keys=False, width=120, default_flow_style=None) for part in parts
    )


def _like(arm: StudyArm, uses: list[str]) -> list[str] | dict[str, Any]:
    """Return an arm of other phases that has everything else of an arm; its changes of phases stand in these."""
    kept = {key: value for key, value in arm.set.items() if not key.startswith("phases.") or key.split(".")[1] in uses}
    own = {"table": arm.table, "set": kept, "init": arm.init and arm.init.model_dump(by_alias=True, exclude_none=True)}
    if arm.anneal is not None:
        merge = arm.anneal.merge
        over = {"last": merge.last} if merge.over is None else {"over": str(merge.over)}
        own["anneal"] = {"merge": {"decay": merge.decay, **over}}
    more = {key: value for key, value in own.items() if value}
    return {"phases": uses, **more} if more else uses


class _Plain(yaml.SafeDumper):
    """YAML without anchors: what is pasted in parts must not refer to other parts."""

    def ignore_aliases(self, data: Any) -> bool:
        """Write every value out."""
        return True


def _document(phase: Phase) -> dict[str, Any]:
    rate = phase.learning_rate.model_dump(mode="json", exclude_none=True)
    for key in ("warmup", "decay"):
        if isinstance(rate.get(key), dict):
            rate[key] = f"{rate[key]['count']} {rate[key]['unit']}"
    blend = {name: int(weight) if weight == int(weight) else weight for name, weight in phase.blend.items()}
    document: dict[str, Any] = {"samples": phase.samples, "blend": blend, "learning_rate": rate}
    if phase.fp8 is not None:
        document["fp8"] = phase.model_dump(mode="json", exclude_none=True)["fp8"]
    if phase.optimizer is not None:
        document["optimizer"] = phase.optimizer
    return document

"""The run that a blend is for: its sources, their sizes, the caps on their passes, and what the user asks of it.

Sources that were always read in one ratio may be joined (`code+markup`). The law then has one share for them, which is
spread over them by that ratio where passes are counted and where a blend is written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from megacode.base.errors import ConfigError
from megacode.base.units import parse_count
from megacode.config.suggestions import did_you_mean
from megacode.mixture.proposals import PULL, BlendLimits
from megacode.study_report.next_points import Point

_Json = dict[str, Any]
MOST_PASSES = 4.0  # up to it a repeated token is worth 0.93 of a fresh one on average
_SAME_RATIO = 0.005  # by which the parts of joined sources may differ between arms


@dataclass(frozen=True)
class Wanted:
    """What a blend is chosen for.

    Attributes:
        weights: by metric; empty: the study's primary metrics, with equal weights.
        budget: tokens of the target's stretch; None: that of the full run of the points.
        max_passes: over each source at the target.
        arms: informative arms wanted.
        like: an arm whose end is one of the points; None: the largest group.
        target: a level that the blend is for; None: that of the points.
        pull: toward the natural blend.
        sources: arms that read any other are left out; empty: all are used.
        join: sources that count as one, each group by itself.
    """

    weights: Mapping[str, float] = field(default_factory=dict)
    budget: int | None = None
    max_passes: float = MOST_PASSES
    arms: int = 0
    like: str | None = None
    target: str | None = None
    pull: float = PULL
    sources: Sequence[str] = ()
    join: Sequence[Sequence[str]] = ()


def read_weights(metrics: Sequence[str], text: str | None) -> dict[str, float]:
    """Return weights by metric from a command line.

    Args:
        metrics: those that count alike.
        text: `METRIC=1,METRIC=0.5`; it wins over `metrics`.

    Raises:
        ConfigError: the text is not of this form.
    """
    weights = dict.fromkeys(metrics, 1.0)
    for part in (text or "").split(","):
        name, _, number = part.rpartition("=")
        try:
            if part.strip():
                weights[name.strip()] = float(number)
        except ValueError:
            name = ""
        if part.strip() and not (name.strip() and 0 <= weights.get(name.strip(), -1) < float("inf")):
            raise ConfigError(f"{part!r} is not a weight", "--weights", "write METRIC=1,METRIC=0.5, none negative")
    return weights


def read_joins(texts: Sequence[str]) -> list[list[str]]:
    """Return groups of sources from a command line, each `code+markup`.

    Raises:
        ConfigError: a group has fewer than two sources, or two groups share one.
    """
    groups = [[name.strip() for name in text.split("+")] for text in texts]
    for text, group in zip(texts, groups, strict=True):
        if len(group) < 2 or not all(group):
            raise ConfigError(f"{text!r} joins nothing", "--join", "write two sources or more, such as code+markup")
    names = [name for group in groups for name in group]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ConfigError(f"{twice[0]!r} stands in two groups", "--join", "name each source once")
    return groups


def read_budget(text: str | None) -> int | None:
    """Return a number of tokens from a command line.

    Raises:
        ConfigError: it is none.
    """
    try:
        count = None if text is None else parse_count(text)
        if count is not None and count < 1:
            raise ValueError("a budget is at least one token")
    except ValueError as error:
        raise ConfigError(str(error), "--budget", "write for example 200B") from None
    return count


class TargetRun:
    """The run that a blend is for: its sources, their sizes and caps.

    Args:
        like: one of the points.
        points: all of them.
        wanted: budget and caps.

    Attributes:
        sources: their names, in the order of all arrays of sources.
        shares: names of what the law has shares of: sources, or joined ones.
        parts: float64[shares, sources], how a share is divided among its sources.
        tokens: float64[sources], size of each.
        budget: tokens of the stretch that is blended.
        read: float64[sources], tokens read before the stretch.
        most: float64[sources], the most passes over each.
        left: float64[sources], tokens that these passes leave.
        limits: of the shares, for the proposer.
    """

    def __init__(self, like: Point, points: Sequence[Point], wanted: Wanted) -> None:
        cell = like.cell
        plan = cell.full or cell.plan
        schedule = plan.schedule
        self.sources = sorted({name for point in points for name in point.counts})
        self.shares, self.parts = _joined(self.sources, points, wanted.join)
        # A source that only other arms read has its size from their plan.
        sizes = {
            name: size.tokens
            for point in points
            for name, size in (point.cell.full or point.cell.plan).schedule.sizes.items()
        }
        self.tokens = np.array([float(sizes[name]) for name in self.sources])
        self.budget = wanted.budget or schedule.phases[like.phase].samples * schedule.seq_length
        # Earlier phases of the target have used up some of the passes.
        before = [
            ((one.full or one.plan).schedule, phase)
            for one in cell.trainings
            for phase in (one.full or one.plan).schedule.phases[: like.phase if one is cell else None]
        ]
        self.read = np.array([
            float(sum(phase.counts.get(name, 0) * own.seq_length for own, phase in before)) for name in self.sources
        ])  # fmt: skip
        # A twin's own `max_epochs` has room for rounding; the full run's is the real one.
        config = {name: point.cell.plan.config.sources[name] for point in points for name in point.counts}
        full = {
            name: source
            for point in points
            if point.cell.full
            for name, source in point.cell.full.config.sources.items()
        }
        own_caps = [({**config, **full}[name].max_epochs or np.inf) for name in self.sources]
        # The study's own cap counts too: a blend above it could not be trained.
        self.most = np.minimum(own_caps, wanted.max_passes)
        self.left = np.maximum(self.most * self.tokens - self.read, 0)
        # A joined share is at its cap as soon as one of its sources is.
        own = np.where(self.parts > 0, self.left / self.budget / np.maximum(self.parts, 1e-12), np.inf)
        natural = (self.parts > 0) @ self.tokens / self.tokens.sum()
        self.limits = BlendLimits(natural, own.min(axis=1), wanted.pull)

    def blend_of(self, point: Point) -> np.ndarray:
        """Return float64[shares], the blend of a point."""
        return np.asarray((self.parts > 0) @ point.shares(self.sources))

    def spread(self, blend: np.ndarray) -> dict[str, float]:
        """Return the share of each source in float64[shares]."""
        return {name: round(float(value), 6) for name, value in zip(self.sources, blend @ self.parts, strict=True)}

    def passes(self, blend: np.ndarray) -> np.ndarray:
        """Return float64[sources], passes over each source at the end of the target, of float64[shares]."""
        return np.asarray((self.read + blend @ self.parts * self.budget) / self.tokens)

    def above(self, passes: np.ndarray) -> list[str]:
        """Return the sources that float64[sources] passes read more often than they may."""
        rows = zip(self.sources, passes, self.most, strict=True)
        return [name for name, own, most in rows if own > most * (1 + 1e-6)]

    def named(self, values: np.ndarray) -> dict[str, float]:
        """Return values of sources by name."""
        return {name: float(value) for name, value in zip(self.sources, values, strict=True)}

    def rows(self) -> _Json:
        """Return what is known of each source."""
        caps = self.left / self.budget
        rows = zip(self.sources, self.tokens, self.tokens / self.tokens.sum(), caps, self.read, strict=True)
        return {
            name: {
                "tokens": int(tokens),
                "natural": float(share),
                "largest_share": float(min(cap, 1)),
                "read_before": int(read),
            }
            for name, tokens, share, cap, read in rows
        }


def _joined(
    sources: Sequence[str], points: Sequence[Point], join: Sequence[Sequence[str]]
) -> tuple[list[str], np.ndarray]:
    """Return the names of shares, and how each is divided among the sources, float64[shares, sources]."""
    groups = [tuple(name for name in sources if name in group) for group in join]
    taken = {name for group in groups for name in group}
    groups = [group for group in groups if group] + [(name,) for name in sources if name not in taken]
    groups.sort()
    parts = np.zeros((len(groups), len(sources)))
    for row, group in zip(parts, groups, strict=True):
        columns = [sources.index(name) for name in group]
        own = np.array([point.shares(group) for point in points])
        # Over all arms, so that rounding to whole samples averages out.
        row[columns] = own.sum(axis=0) / own.sum()
    return ["+".join(group) for group in groups], parts


def usable(points: Sequence[Point], wanted: Wanted) -> tuple[list[Point], dict[str, str]]:
    """Return the points that read what the user names, in the ratio that joined sources have, and why others do not.

    Args:
        points: comparable and scored.
        wanted: `sources` and `join`.

    Raises:
        ConfigError: no point reads a source that is named.
    """
    known = sorted({name for point in points for name in point.counts})
    for option, names in (("--source", wanted.sources), *(("--join", group) for group in wanted.join)):
        for name in names:
            if name not in known:
                raise ConfigError(f"no scored arm reads {name!r}", option, did_you_mean(name, known))
    left_out: dict[str, str] = {}
    for point in points:
        others = [name for name in point.counts if wanted.sources and name not in wanted.sources]
        if others:
            left_out[point.name] = f"it reads {', '.join(sorted(others))}"
    chosen = [point for point in points if point.name not in left_out]
    for group in wanted.join:
        left_out |= _odd_ratios([point for point in chosen if point.name not in left_out], group)
    return [point for point in points if point.name not in left_out], left_out


def _odd_ratios(points: Sequence[Point], group: Sequence[str]) -> dict[str, str]:
    shares = {point.name: point.shares(group) for point in points}
    ratios = {name: own / own.sum() for name, own in shares.items() if own.sum() > 0}
    usual = np.median(list(ratios.values()), axis=0) if ratios else np.zeros(len(group))
    reason = f"{' and '.join(group)} are read in another ratio than in other arms"
    return {name: reason for name, own in ratios.items() if np.abs(own - usual).max() > _SAME_RATIO}

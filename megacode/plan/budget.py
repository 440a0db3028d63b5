"""How many samples each source gives to each phase: blends, carry-over, and caps on repetition.

A cap (`max_epochs`) counts everything drawn from a source over the whole run, restarts included. Where it is exceeded:
  - `error`: the plan is refused, with what to change;
  - `spread`: the source gives what it has left. The rest of its share goes to the other sources of the phase by their
    weights, which may exhaust another source. A phase uses what earlier phases left and never looks ahead, so adding
    phases changes nothing before them.

A phase that ends early (`until`) is divided as if it were read to its end, because its order must be that of the full
length. Caps count only what is read of it. So under `error` a cap may be exceeded after the cut.

Source: clipping and redistribution: UniMax, Chung et al. (2023), section 3, algorithm 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import ceil, floor

from megacode.base.errors import PlanError, Problem
from megacode.config.data import Phase
from megacode.config.run import RunConfig
from megacode.plan.blend import QuotaTree, apportion, exact, owed
from megacode.plan.ramp import Extent

_PREFIX_ERROR = 2  # samples by which a source may be ahead of its share at a cut (`blend`)


@dataclass(frozen=True)
class Allotment:
    """The samples of one phase.

    Attributes:
        counts: samples read of each source with a positive weight, sorted by name.
        whole: the same over the full length of the phase; equal to `counts` unless it ends early.
        weights: the blend as given in the config, normalised to 1.
        clipped: sources whose share is reduced by a cap (`spread`).
    """

    counts: dict[str, int]
    whole: dict[str, int]
    weights: dict[str, float]
    clipped: tuple[str, ...] = ()


def allot(config: RunConfig, extents: Sequence[Extent], windows: Mapping[str, int]) -> list[Allotment]:
    """Divide every phase among its sources.

    Args:
        config: blends, caps and the policy where a cap is exceeded.
        extents: samples of each phase, whole and read.
        windows: windows per epoch of each source that is drawn.

    Raises:
        PlanError: if a cap is exceeded under `error`, or the sources of a phase have too little left under `spread`.
    """
    return _Budget(config, extents, windows).run()


class _Budget:
    def __init__(self, config: RunConfig, extents: Sequence[Extent], windows: Mapping[str, int]) -> None:
        self.config, self.extents, self.windows = config, extents, windows
        self.drawn = dict.fromkeys(windows, 0)
        # Fractions of samples that a source is owed: without them, many short phases would never read a rare source.
        self.carry: dict[str, Fraction] = {}
        self.limits: dict[str, int] = {}
        for name, count in windows.items():
            cap = config.sources[name].max_epochs
            if cap is not None:
                # Exact: in floats, 0.29 epochs of 100 windows would be 28.
                self.limits[name] = floor(exact(cap) * count)

    def run(self) -> list[Allotment]:
        allotments, problems = [], []
        for number, (phase, extent) in enumerate(zip(self.config.phases, self.extents, strict=True)):
            # Sorted by name: the order of keys in the YAML must not decide ties.
            asked = {name: exact(weight) for name, weight in sorted(phase.blend.items()) if weight > 0}
            limits = self._room(asked)
            shares: dict[str, Fraction] = asked
            clipped: tuple[str, ...] = ()
            over: list[str] = []
            if self.config.caps == "spread":
                shares, clipped = self._spread(number, asked, limits)
            else:
                over = self._over(number, asked, limits)
                # Go on without the exceeded caps, so that all phases are checked and all problems reported.
                limits = {name: room for name, room in limits.items() if name not in over}
            whole, _ = apportion(shares, extent.whole, self.carry, limits)
            # At a cut the tree decides what was read: up to 2 samples off the shares.
            counts = whole if extent.read == extent.whole else QuotaTree(whole).counts(extent.read)
            counts, whole = dict.fromkeys(asked, 0) | counts, dict.fromkeys(asked, 0) | whole
            problems += self._refusals(number, asked, over, whole, counts)
            self.carry = owed(shares, extent.read, self.carry, counts)
            for name, count in counts.items():
                self.drawn[name] += count
            total = sum(asked.values())
            weights = {name: float(weight / total) for name, weight in asked.items()}
            allotments.append(Allotment(counts, whole, weights, clipped))
        if problems:
            raise PlanError(problems=problems)
        return allotments

    def _room(self, names: Mapping[str, Fraction]) -> dict[str, int]:
        """Return how many samples each capped source has left."""
        return {name: self.limits[name] - self.drawn[name] for name in names if name in self.limits}

    def _spread(
        self, number: int, asked: dict[str, Fraction], room: dict[str, int]
    ) -> tuple[dict[str, Fraction], tuple[str, ...]]:
        """Return the target samples of each source, and the sources that get fewer than the blend asks for."""
        left, open_sources = Fraction(self.extents[number].whole), dict(asked)
        wanted = left / sum(asked.values())
        shares: dict[str, Fraction] = {}
        while open_sources:
            # UniMax: give the exhausted sources what they have, then share the rest; repeat until none is exceeded.
            unit = left / sum(open_sources.values())
            clipped = [name for name, weight in open_sources.items() if name in room and weight * unit > room[name]]
            if not clipped:
                fewer = tuple(sorted(name for name, share in shares.items() if share < asked[name] * wanted))
                return shares | {name: weight * unit for name, weight in open_sources.items()}, fewer
            for name in clipped:
                shares[name] = Fraction(room[name])
                left -= room[name]
                del open_sources[name]
        raise PlanError(problems=[self._exhausted(number, room)])

    def _exhausted(self, number: int, room: dict[str, int]) -> Problem:
        phase, samples, left = self.config.phases[number], self.extents[number].whole, sum(room.values())
        remaining = ", ".join(f"{name} {count:,}" for name, count in room.items())
        message = f"phase {phase.name!r} needs {samples:,} samples, but its sources have {left:,} left ({remaining})"
        widest = max(room, key=lambda name: self.windows[name])
        epochs = _round_up(Fraction(self.limits[widest] + samples - left, self.windows[widest]))
        shorter = f"shorten the phase to samples: {left}, " if left else ""
        fix = f"{shorter}raise sources.{widest}.max_epochs to {epochs}, or add a source without max_epochs"
        return Problem(message, f"phases[{number}]", fix)

    def _over(self, number: int, asked: dict[str, Fraction], room: dict[str, int]) -> list[str]:
        """Return the sources that would exceed their cap if the phase were read to its end."""
        samples, target = self.extents[number].whole, self._targets(number, asked)
        # Largest remainder may round a target up, so only a whole sample above the cap is certain.
        over = [name for name in room if target[name] >= room[name] + 1]
        if not over and len(room) == len(asked) and sum(room.values()) < samples:
            over = list(room)
        return over

    def _targets(self, number: int, asked: dict[str, Fraction]) -> dict[str, Fraction]:
        samples, total = self.extents[number].whole, sum(asked.values())
        return {name: asked[name] * samples / total + self.carry.get(name, 0) for name in asked}

    def _refusals(
        self, number: int, asked: dict[str, Fraction], over: list[str], whole: dict[str, int], counts: dict[str, int]
    ) -> list[Problem]:
        """Return a problem for each source that exceeds its cap in what is read, and lift that cap for later phases."""
        # Under a cut, a cap that only the unread part would exceed is no problem.
        room, extent = self._room(asked), self.extents[number]
        if extent.read < extent.whole:
            over = [name for name in over if counts[name] > room[name]]
            problems = [self._cut_refusal(number, name, room[name], whole, counts) for name in over]
        else:
            target = self._targets(number, asked)
            problems = [self._refusal(number, name, asked, target[name], room[name]) for name in over]
        for name in over:
            del self.limits[name]
        return problems

    def _cut_refusal(self, number: int, name: str, room: int, whole: dict[str, int], counts: dict[str, int]) -> Problem:
        """Return the problem of a cap that is exceeded in a phase that ends early, with a fix."""
        phase, cap = self.config.phases[number], self.config.sources[name].max_epochs
        now = Fraction(self.drawn[name] + counts[name], self.windows[name])
        times, end = f"{float(now):.2f} times", f"the point where phase {phase.name!r} ends early"
        message = f"source {name!r} would be read {times} by {end}"
        raised = f"raise sources.{name}.max_epochs to {_round_up(max(now, self._epochs_wanted(name)))}"
        earlier = f"until: {QuotaTree(whole).position(name, room)} samples"
        fix = f"end the phase earlier ({earlier}), or {raised}" if room else f"{raised}, or remove it from the blend"
        return Problem(f"{message}, more than its max_epochs {cap:g}", f"phases[{number}].blend.{name}", fix)

    def _refusal(self, number: int, name: str, asked: dict[str, Fraction], target: Fraction, room: int) -> Problem:
        phase, cap = self.config.phases[number], self.config.sources[name].max_epochs
        wanted = float((self.drawn[name] + target) / self.windows[name])
        message = f"source {name!r} would be read {wanted:.2f} times by the end of phase {phase.name!r}"
        # The fix that keeps the experiment closest comes first.
        fixes = [
            self._lower(number, name, asked, room),
            f"raise sources.{name}.max_epochs to {_round_up(self._epochs_wanted(name))}",
        ]
        if len(asked) > 1:
            fixes.append("set caps: spread to give its share to the others")
        fix = f"{', '.join(fixes[:-1])}, or {fixes[-1]}"
        return Problem(f"{message}, more than its max_epochs {cap:g}", f"phases[{number}].blend.{name}", fix)

    def _lower(self, number: int, name: str, asked: dict[str, Fraction], room: int) -> str:
        """Return the largest weight, or length, that stays under the cap, as text."""
        carry, samples = self.carry.get(name, Fraction(0)), self.extents[number].whole
        others = sum(asked.values()) - asked[name]
        if not others:
            return f"shorten the phase to samples: {room}" if room > 0 else "remove the phase"
        share = (room - carry) / samples
        if share <= 0:
            return f"remove {name!r} from this blend"
        weight = _round_down(share * others / (1 - share))
        later = any(later.blend.get(name, 0) > 0 for later in self.config.phases[number + 1 :])
        return f"lower its weight to {weight}" + (" and remove it from later phases" if later else "")

    def _epochs_wanted(self, name: str) -> Fraction:
        """Return how often a source would be read over the whole run if nothing capped it."""
        drawn = Fraction(0)
        for phase, extent in zip(self.config.phases, self.extents, strict=True):
            drawn += extent.read * _share(phase, name)
            # At a cut a source may be ahead of its share by the tree's error bound.
            drawn += _PREFIX_ERROR if extent.read < extent.whole and _share(phase, name) else 0
        return drawn / self.windows[name]


def _share(phase: Phase, name: str) -> Fraction:
    total = sum((exact(weight) for weight in phase.blend.values()), Fraction(0))
    return exact(phase.blend.get(name, 0)) / total


def _round_up(value: Fraction) -> str:
    """Return `value` rounded up to two decimals."""
    return f"{ceil(value * 100) / 100:.2f}".rstrip("0").rstrip(".")


def _round_down(value: Fraction) -> str:
    """Return `value` rounded down to three significant digits."""
    digits = 3
    while value * 10**digits < 100:
        digits += 1
    return f"{floor(value * 10**digits) / 10**digits:.{digits}f}".rstrip("0").rstrip(".")

"""One phase of a schedule, as integers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from megacode.plan.blend import QuotaTree


@dataclass(frozen=True)
class PhasePlan:
    """One phase of a schedule.

    Attributes:
        name: as in the config.
        index: number of the phase, from 0.
        first_sample: clock at which it starts.
        samples: how many of it are read.
        counts: samples read of each source with a positive weight, by name in order.
        first_index: of each of them, the number of its first sample in the source's stream.
        tree: the order of the sources over the phase's full length, which may be longer than what is read.
        weights: the blend as asked for, normalised.
        clipped: sources whose share a cap has cut.
        restarted: sources that start again here although they were read before.
    """

    name: str
    index: int
    first_sample: int
    samples: int
    counts: Mapping[str, int]
    first_index: Mapping[str, int]
    tree: QuotaTree
    weights: Mapping[str, float]
    clipped: tuple[str, ...] = ()
    restarted: tuple[str, ...] = ()

    @property
    def last_sample(self) -> int:
        """Clock at which it is left: that of the first sample behind it."""
        return self.first_sample + self.samples

    @property
    def full_samples(self) -> int:
        """Samples of its full length, by which its order and its learning rate are laid out."""
        return self.tree.samples

    @property
    def full_end(self) -> int:
        """Clock at which its full length would end."""
        return self.first_sample + self.full_samples

    @property
    def left_early(self) -> bool:
        """Whether it is left before its full length is read."""
        return self.samples < self.full_samples

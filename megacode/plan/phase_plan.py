"""`PhasePlan`: one phase of a schedule, as integers."""

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
        samples: how many samples of it are read.
        counts: samples read of each source with a positive weight, sorted by name.
        first_index: for each of them, the index of its first sample in the source's stream.
        tree: the order of the sources over the full length of the phase, which may be longer than what is read.
        weights: the blend as given in the config, normalised.
        clipped: sources whose share is reduced by a cap.
        restarted: sources that start again here although they were read before.
    """

    name: str
    index: int
    first_sample: int
    samples: int
    counts: Mapping[str, int]
    first_index: Mapping[str, int]
    # Rebuilt from the counts at every start, in microseconds; nothing of it is saved.
    tree: QuotaTree
    weights: Mapping[str, float]
    clipped: tuple[str, ...] = ()
    restarted: tuple[str, ...] = ()

    @property
    def last_sample(self) -> int:
        """Clock at which it ends: that of the first sample after it."""
        return self.first_sample + self.samples

    @property
    def full_samples(self) -> int:
        """Samples of its full length, which determines its order and its learning rate."""
        return self.tree.samples

    @property
    def full_end(self) -> int:
        """Clock at which its full length would end."""
        return self.first_sample + self.full_samples

    @property
    def left_early(self) -> bool:
        """Whether it ends before its full length is read."""
        return self.samples < self.full_samples

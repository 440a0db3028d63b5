"""Sources, phases and held-out data: which tokens, how much of each, and when."""

from __future__ import annotations

from math import fsum, isclose
from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag

from megacode.config.quantity import UNITS, Blend, Count, Frozen, Length, LengthOrShare, Quantity, Share
from megacode.config.training import Fp8OrNone, OptimizerName


class Source(Frozen):
    """One indexed data set.

    Attributes:
        path: prefix of its `.bin` and `.idx`, relative to the working directory; or in object storage, such as
            `s3://bucket/prefix` (also `gs://` and `az://`).
        max_epochs: the most epochs that may be read of it over the whole run; absent: no limit.
        tokens: its declared size, so that `plan` works before the data set exists.
        take: how many of its training tokens are used, the first ones; absent: all. Documents are shuffled when a data
            set is made, so this is a sample of it, and no data are copied.
        fim_rate: share of its documents that are read as prefix, suffix, middle (fill in the middle).
        loss: what a model learns to predict of it: `all` tokens, or the `answers` that the data set's loss mask marks.
        fim_spm_rate: share of these whose suffix comes first (SPM); the others begin with the prefix (PSM).
    """

    path: str
    max_epochs: float | None = Field(default=None, gt=0)
    tokens: Count | None = Field(default=None, ge=2)
    take: Count | None = Field(default=None, ge=2)
    fim_rate: Share = Field(default=0.0, ge=0, le=1)
    fim_spm_rate: Share = Field(default=0.5, ge=0, le=1)
    loss: Literal["all", "answers"] = "all"


class Validation(Frozen):
    """Held-out documents: the last ones of every source, never trained on.

    Attributes:
        fraction: share of each source's tokens that is held out, cut at a document boundary; 0: none.
        every: how often their loss is measured; it always is at the end of a phase. Absent: only there.
        samples: the most windows measured per source.
    """

    # Cut per source at a document boundary: no document is half held out.
    fraction: Share = Field(default=0.005, ge=0, lt=1)
    every: Length | None = None
    samples: int = Field(default=512, ge=1)


class LearningRate(Frozen):
    """The learning rate inside one phase, as a function of the clock (consumed samples).

    Attributes:
        schedule: its form. `wsd` is warmup, constant, then a linear decay over `decay`.
        peak: the value after the warmup; absent: the value at which the last phase ended.
        final: the value at the phase's end; for `constant` absent, for `inverse_sqrt` a lower bound.
        warmup: length of the linear rise from the last phase's end (0 at the run's start) to `peak`.
        decay: `wsd` only: length of the decay, as a quantity or a share of the phase.
    """

    schedule: Literal["constant", "cosine", "linear", "wsd", "inverse_sqrt"]
    peak: float | None = Field(default=None, gt=0)
    final: float | None = Field(default=None, ge=0)
    warmup: Length | None = None
    decay: LengthOrShare | None = None


_WHOLES = (1, 100)
_ROUNDING = 1e-6  # of weights such as 0.333333

Restart = Literal["continue", "restart"]
Repeat = Annotated[
    Annotated[Restart, Tag("as-one")] | Annotated[dict[str, Restart], Tag("as-each")],
    # Explicit tags, so that pydantic reports errors of the form that was written, not of both.
    Discriminator(lambda value: "as-each" if isinstance(value, dict) else "as-one"),
]


class Phase(Frozen):
    """A part of the run with one blend and one learning-rate schedule.

    Attributes:
        name: its name in plans, logs and pages.
        tokens, samples, iterations: its length; exactly one of them. Tokens are rounded to whole global batches.
        until: end the phase early at this point. Data order and learning rate are still those of the full length, so a
            branch may leave a trunk anywhere. Absent: it runs to its end.
        blend: weight of each source: shares that sum to 1, or percentages that sum to 100; other sums are normalised,
            and the plan says so. 0 means none.
        learning_rate: the schedule inside the phase.
        repeat: whether a source continues where it stopped (`continue`) or starts again (`restart`), for all or each.
        fp8: FP8 recipe of this phase, or `none`; absent: that of `precision.fp8`.
        optimizer: of this phase; absent: `train.optimizer`. State that only the new optimizer keeps starts at zero.
    """

    name: str = Field(min_length=1)
    tokens: Count | None = Field(default=None, ge=1)
    samples: Count | None = Field(default=None, ge=1)
    iterations: Count | None = Field(default=None, ge=1)
    until: Length | None = None
    blend: Blend
    learning_rate: LearningRate
    # `continue` is the default, since it reads no window twice before the source is exhausted.
    repeat: Repeat = "continue"
    fp8: Fp8OrNone | None = None
    optimizer: OptimizerName | None = None

    @property
    def length(self) -> Quantity:
        """The length, in the unit it was given in."""
        # Exactly one is set: `a_phase_has_one_length` has checked it.
        given = {"tokens": self.tokens, "samples": self.samples, "iterations": self.iterations}
        (length,) = [Quantity(count=given[unit] or 0, unit=unit) for unit in UNITS if given[unit] is not None]
        return length

    @property
    def total_weight(self) -> float:
        """Sum of the weights of the blend."""
        return fsum(self.blend.values())

    @property
    def sums_to(self) -> int | None:
        """1 or 100 if the blend sums to it, up to the rounding of decimals; otherwise None."""
        return next((whole for whole in _WHOLES if isclose(self.total_weight, whole, rel_tol=_ROUNDING)), None)

    def restarts(self, source: str) -> bool:
        """Return whether a source starts again in this phase."""
        rule = self.repeat if isinstance(self.repeat, str) else self.repeat.get(source, "continue")
        return rule == "restart"

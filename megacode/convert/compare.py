"""Measure how far two models differ at the same point of their forward passes.

Both sides compute in fp32 from the same weights and, at every step, from the same input (see `lockstep`), so they
differ only by the order of summation: about 1e-6 of the values' size. A wrong weight shows at its own point, and at no
other.

Differences are measured against the largest value of their own point and channel. Early in training, attention is
tiny relative to the residual stream, and a permuted head would hide in it. Trained models have a few channels with
values a thousand times those of the others, and an error elsewhere would hide behind those. A channel with small values
counts as if it had those of the median channel: it is rounded as the others are.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# A hundred times the usual rounding, and far below what any wrong layout causes.
TOLERANCE = 1e-4


@dataclass(frozen=True)
class PointDifference:
    """The difference of two models at one point.

    Attributes:
        point: where, such as `layer 3 attention`.
        largest: the absolute difference that is largest relative to its channel; infinite if the shapes differ or a value
            is not finite.
        mean: the mean absolute difference.
        scale: the largest absolute value of the reference in the channel of the largest relative difference.
    """

    point: str
    largest: float
    mean: float
    scale: float

    @property
    def relative(self) -> float:
        """The largest difference divided by the largest value."""
        return self.largest / self.scale if self.scale else self.largest


def difference(point: str, reference: Tensor, other: Tensor) -> PointDifference:
    """Compare what two models computed at one point."""
    # Different shapes are a result of the comparison, not a crash.
    if reference.shape != other.shape:
        return PointDifference(point, float("inf"), float("inf"), float(reference.abs().max()))
    gap = (reference.double() - other.double()).abs()
    # The reference sets the scale: a broken export must not hide behind its own large values.
    values = reference.double().abs().reshape(-1, reference.shape[-1]).amax(0)
    scales = torch.maximum(values, values.median())
    gaps = gap.reshape(-1, reference.shape[-1]).amax(0)
    # Where all values are zero the difference itself counts; NaN is the largest, and becomes infinite below.
    channel = int((gaps / torch.where(scales > 0, scales, 1.0)).argmax())
    return finite_difference(point, float(gaps[channel]), float(gap.mean()), float(scales[channel]))


def finite_difference(point: str, largest: float, mean: float, scale: float) -> PointDifference:
    """Return a difference; NaN becomes infinite."""
    finite = largest == largest and largest != float("inf")
    return PointDifference(point, largest if finite else float("inf"), mean if finite else float("inf"), scale)


def worst(same_point: Sequence[PointDifference]) -> PointDifference:
    """Combine the differences of several texts at one point: the largest, and the mean over the texts."""
    peak = max(same_point, key=lambda item: item.relative)
    # The worst text decides the verdict; the mean is only reported.
    mean = sum(item.mean for item in same_point) / len(same_point)
    return PointDifference(peak.point, peak.largest, mean, peak.scale)


def first_beyond(rows: Iterable[PointDifference], tolerance: float) -> PointDifference | None:
    """Return the first point at which two models differ by more than the tolerance."""
    # `not <=` instead of `>`: a comparison with NaN is false, and must count as a difference.
    return next((row for row in rows if not row.relative <= tolerance), None)


class Gaps:
    """The differences of logits, vocabulary slice by vocabulary slice.

    Args:
        point: the name of the differences.
        lengths: tokens of each text; the texts lie end to end.
    """

    def __init__(self, point: str, lengths: Sequence[int]) -> None:
        self._point, self._lengths, self._rows = point, list(lengths), 0
        # Three running figures per token; the logits themselves are never kept.
        self._peak, self._total, self._scale = torch.zeros(3, sum(lengths), dtype=torch.float64).unbind()

    def add(self, reference: Tensor, other: Tensor) -> None:
        """Add the logits of a slice of the vocabulary, [t, n] fp32 each."""
        gap = (reference.double() - other.double()).abs()
        self._peak = torch.maximum(self._peak, gap.amax(-1))
        self._total = self._total + gap.sum(-1)
        self._scale = torch.maximum(self._scale, reference.abs().amax(-1).double())
        self._rows += reference.shape[-1]

    def by_text(self) -> list[PointDifference]:
        """Return the difference of each text."""
        parts = zip(*(column.split(self._lengths) for column in (self._peak, self._total, self._scale)), strict=True)
        return [
            finite_difference(self._point, float(peak.max()), float(total.mean()) / self._rows, float(scale.max()))
            for peak, total, scale in parts
        ]


class NextTokens:
    """The greedy token at each position and the loss, from a model's logits, vocabulary slice by slice.

    Args:
        ids: of each text.
    """

    def __init__(self, ids: Sequence[tuple[int, ...]]) -> None:
        # The last token of each text has no label.
        self._labels = torch.cat([torch.tensor([*text[1:], -1]) for text in ids])
        count = len(self._labels)
        self.greedy = torch.zeros(count, dtype=torch.int64)
        self._best = torch.full((count,), float("-inf"))
        self._log_sum = torch.full((count,), float("-inf"), dtype=torch.float64)
        self._given = torch.zeros(count, dtype=torch.float64)

    def add(self, first: int, logits: Tensor) -> None:
        """Add the logits [t, n] fp32 of the vocabulary's tokens first .. first + n - 1."""
        best, token = logits.max(-1)
        self.greedy = torch.where(best > self._best, token + first, self.greedy)
        self._best = torch.maximum(best, self._best)
        # The log-sum-exp of slices adds up in fp64, so the slicing does not show in the loss.
        self._log_sum = torch.logaddexp(self._log_sum, logits.double().logsumexp(-1))
        inside = (self._labels >= first) & (self._labels < first + logits.shape[-1])
        # Each label lies in exactly one slice of the vocabulary, so its logit is found once.
        rows = inside.nonzero().squeeze(-1)
        self._given[rows] = logits[rows, self._labels[rows] - first].double()

    @property
    def loss(self) -> float:
        """Mean cross-entropy of the next token, nats."""
        return float((self._log_sum - self._given)[self._labels >= 0].mean())

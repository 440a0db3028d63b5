"""Two models on the same tokens: where do they part?

A trace holds what a model computed at each point of its forward pass: the embedding, in every layer the attention's
output, the MLP's output and the residual stream after both, the final norm, the logits. Both sides compute in fp32
from the same weights, so they differ only by the order in which sums are taken: some 1e-6 of the values' size. A wrong
weight shows at its own point first and spreads to all later ones, so the first point beyond the tolerance names it.

Differences are measured against the largest value of their own point. Relative to the residual stream a
young model's attention is tiny, and a permuted head would hide in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

TOLERANCE = 1e-4
LOGITS = "logits"

Trace = dict[str, Tensor]
Points = Mapping[str, nn.Module]


@dataclass(frozen=True)
class Difference:
    """How far two models are apart at one point.

    Attributes:
        point: where, such as `layer 3 attention`.
        largest: the largest absolute difference; infinite where the shapes differ or a value is not finite.
        mean: the mean absolute difference.
        scale: the largest absolute value of the reference there.
    """

    point: str
    largest: float
    mean: float
    scale: float

    @property
    def relative(self) -> float:
        """The largest difference against the largest value."""
        return self.largest / self.scale if self.scale else self.largest


@contextmanager
def recording(points: Points, *, sequence_first: bool) -> Iterator[Trace]:
    """Record the outputs of some modules while a model runs.

    Args:
        points: modules by the names of their points; the output, or the first of a tuple, is recorded.
        sequence_first: the outputs are [s, b, h], as in Megatron-core; they are recorded as [b, s, h].

    Yields:
        The trace, float32 on the CPU; it fills while the model runs.
    """
    trace: Trace = {}

    def hook(point: str) -> Callable[[nn.Module, object, object], None]:
        def record(_module: nn.Module, _inputs: object, output: object) -> None:
            value = output[0] if isinstance(output, tuple) else output
            assert isinstance(value, Tensor)
            value = value.detach().transpose(0, 1) if sequence_first else value.detach()
            trace[point] = value.to("cpu", torch.float32, copy=True)

        return record

    handles = [module.register_forward_hook(hook(point)) for point, module in points.items()]
    try:
        yield trace
    finally:
        for handle in handles:
            handle.remove()


def difference(point: str, reference: Tensor, other: Tensor) -> Difference:
    """Compare what two models computed at one point."""
    scale = float(reference.abs().max())
    if reference.shape != other.shape:
        return Difference(point, float("inf"), float("inf"), scale)
    gap = (reference.double() - other.double()).abs()
    largest = float(gap.max())
    finite = largest == largest and largest != float("inf")
    mean = float(gap.mean())
    return Difference(point, largest if finite else float("inf"), mean if finite else float("inf"), scale)


def differences(reference: Trace, other: Trace) -> list[Difference]:
    """Compare two traces point by point, in the order of the reference's forward pass."""
    assert reference.keys() == other.keys(), f"points {reference.keys() ^ other.keys()} are on one side only"
    return [difference(point, value, other[point]) for point, value in reference.items()]


def worst(rows: list[list[Difference]]) -> list[Difference]:
    """Combine the comparisons of several texts: the largest difference of each point, and the mean over the texts."""
    combined = []
    for same_point in zip(*rows, strict=True):
        peak = max(same_point, key=lambda item: item.relative)
        mean = sum(item.mean for item in same_point) / len(same_point)
        combined.append(Difference(peak.point, peak.largest, mean, peak.scale))
    return combined


def first_beyond(rows: list[Difference], tolerance: float) -> Difference | None:
    """Return the first point at which two models differ by more than the tolerance."""
    return next((row for row in rows if not row.relative <= tolerance), None)

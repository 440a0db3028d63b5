"""The shapes of what is measured over the whole training of an arm, as parts of `shapes.StudyReport`."""

from __future__ import annotations

from typing import TypedDict


class LossCurve(TypedDict):
    """Loss on held-out documents of a source, over the whole training of an arm."""

    arm: str
    seed: int
    source: str
    tokens: list[int]
    loss: list[float]  # nats per token
    borders: list[int]  # tokens at the ends of phases


class Forgetting(TypedDict):
    """How much worse a source is at a phase's end than the best before it; negative: it got better."""

    arm: str
    source: str
    phase: str
    value: float  # nats per token, mean over seeds
    by_seed: dict[str, float]


class TransferCurve(TypedDict):
    """What a step on a source does to the held-out loss of another, over the whole training of an arm."""

    arm: str
    seed: int
    step: str  # source of the step
    loss: str  # source whose held-out loss it changes
    tokens: list[int]
    share: list[float]  # of what a step on `loss` itself does; negative: its loss rises
    cosine: list[float | None]  # of the two gradients
    borders: list[int]  # tokens at the ends of phases


class PhaseTransfer(TypedDict):
    """The mean share of such a curve within a phase."""

    arm: str
    step: str
    loss: str
    phase: str
    value: float  # mean over seeds of the phase's mean
    by_seed: dict[str, float]
    low: float | None  # over seeds; None with one seed
    high: float | None
    first: float  # at the phase's first measurement, mean over seeds
    last: float  # at its last one
    measurements: int  # of each seed at least

"""Detect spikes of the loss or the gradient norm, and tell them from noise by robust statistics.

A value x is compared with the last `window` values of the same kind in the same phase by the robust z-score

    z = (x - median) / max(1.4826 MAD, 0.005 |median|, 0.001)

where MAD is the median absolute deviation, which for normal noise is the standard deviation / 1.4826. A few spikes in
the window move neither median nor MAD. The two floors prevent that noise counts as a spike when the window is flat: at
a threshold of 8, a spike is at least 4 % and at least 0.008 above the median (0.008 nats of loss; a gradient norm as
small as that is far below the clipping limit). Only increases count. The falling loss at a run's start widens the
deviation, and so makes the check only less sensitive.

Only iterations whose update was applied enter the windows, so a plateau of skipped spikes never becomes normal. The
limit on skips in a row ends a run that would otherwise skip for ever. A new phase reads other data at another level of
loss: its windows start empty, and nothing is checked until they are a quarter full and have 8 values.

Pure Python on numbers that are equal on all ranks: each rank comes to the same result by itself.
Source: for the median and MAD, Rousseeuw & Croux 1993, "Alternatives to the Median Absolute Deviation", section 1.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal

from megacode.config.health import Spikes

Kind = Literal["loss", "grad_norm"]

_NORMAL = 1.4826  # standard deviation / MAD of a normal distribution
_RELATIVE_FLOOR = 0.005
_ABSOLUTE_FLOOR = 0.001
_FEWEST = 8  # values below which a median absolute deviation means nothing


@dataclass(frozen=True)
class SpikeCheck:
    """The result of checking one iteration.

    Attributes:
        score: the larger of the two robust z-scores; 0 while nothing can be checked yet.
        which: what spiked (the one with the larger score, if both did); None for an ordinary iteration.
    """

    score: float = 0.0
    which: Kind | None = None

    @property
    def spike(self) -> bool:
        """Whether the loss or the gradient norm spiked."""
        return self.which is not None


class SpikeDetector:
    """Checks iterations, one after another.

    For each iteration: `enter` its phase, `check` it, then `accept` it if its update is applied, or `refuse` it if not.
    Iterations that the ledger withholds are neither checked nor accepted.

    Args:
        policy: window, threshold and limit.

    Attributes:
        rollbacks: iteration of the checkpoint of the last rollback, and the number of rollbacks to it in a row.
    """

    def __init__(self, policy: Spikes) -> None:
        self._policy = policy
        self._phase = ""
        self._windows: dict[Kind, deque[float]] = {kind: deque(maxlen=policy.window) for kind in ("loss", "grad_norm")}
        self._refused = 0
        self.rollbacks: tuple[int, int] = (-1, 0)

    def enter(self, phase: str) -> None:
        """Enter the phase of the next iteration; if it is a new one, the windows are cleared."""
        if phase != self._phase:
            self._phase = phase
            for window in self._windows.values():
                window.clear()

    def check(self, loss: float, grad_norm: float) -> SpikeCheck:
        """Return the result for an iteration; nothing changes.

        Args:
            loss: mean over its tokens, finite.
            grad_norm: before clipping, finite.
        """
        if len(self._windows["loss"]) < max(_FEWEST, self._policy.window / 4):
            return SpikeCheck()
        scores: dict[Kind, float] = {
            "loss": robust_score(loss, self._windows["loss"]),
            "grad_norm": robust_score(grad_norm, self._windows["grad_norm"]),
        }
        # One result per iteration: the kind with the larger score. A spike of both is counted once.
        largest: Kind = max(scores, key=lambda kind: scores[kind])
        return SpikeCheck(scores[largest], largest if scores[largest] > self._policy.threshold else None)

    def accept(self, loss: float, grad_norm: float) -> None:
        """Add an iteration whose update was applied to the windows, including a spike under policy `warn`."""
        self._windows["loss"].append(loss)
        self._windows["grad_norm"].append(grad_norm)
        self._refused = 0

    def refuse(self) -> None:
        """Count an iteration whose update was skipped because it spiked or was not finite."""
        self._refused += 1

    def rolled_back(self, iteration: int) -> None:
        """Count a rollback to the checkpoint of an iteration."""
        self.rollbacks = (iteration, self.rollbacks[1] + 1 if iteration == self.rollbacks[0] else 1)

    @property
    def exhausted(self) -> bool:
        """Whether the limit is reached: of refusals without an ordinary iteration between them, or of rollbacks."""
        return max(self._refused, self.rollbacks[1]) >= self._policy.limit

    def state(self) -> dict[str, Any]:
        """Return, as JSON, what a resumed run needs to give the same results as if it had not stopped."""
        windows: dict[str, Any] = {kind: list(values) for kind, values in self._windows.items()}
        return {"phase": self._phase, "refused": self._refused, **windows}

    def restore(self, state: dict[str, Any]) -> None:
        """Take over a checkpoint's `state()`, or an empty one at a run's start.

        The count of rollbacks is kept: it ends a run that rolls back to one checkpoint again and again, and that
        checkpoint, saved before them, cannot know it. If the window is shorter now, the oldest values are dropped, so
        the window may change when a run resumes.
        """
        self._phase, self._refused = state.get("phase", ""), state.get("refused", 0)
        for kind, window in self._windows.items():
            window.clear()
            window.extend(state.get(kind, ()))  # a full deque drops its oldest values


def robust_score(value: float, window: deque[float]) -> float:
    """Return the number of robust standard deviations by which a value exceeds the median of a non-empty window."""
    middle = median(window)
    # The floors also keep the divisor from being 0, when all values of the window are equal.
    deviation = _NORMAL * median(abs(other - middle) for other in window)
    return (value - middle) / max(deviation, _RELATIVE_FLOOR * abs(middle), _ABSOLUTE_FLOOR)

"""Spikes: leaps of the loss or the gradient norm, told from noise by robust statistics.

A value x is compared with the last `window` values of the same kind in the same phase by the robust z-score

    z = (x - median) / max(1.4826 MAD, 0.005 |median|, 0.001)

where MAD is the median absolute deviation, which for normal noise is the standard deviation / 1.4826. A few spikes in
the window move neither median nor MAD. The two floors keep a flat window from making noise a spike: at a threshold of
8 nothing less than 4 % above the median is one, and nothing less than 0.008 (of a loss in nats; a gradient norm as
small as that is far below what is clipped). Only leaps upwards count. The falling loss of a run's start widens the
deviation and so only makes the check milder.

Only iterations whose update was applied enter the windows, so that a plateau of skipped spikes never becomes the norm;
the limit on skips in a row ends a run that would otherwise skip for ever. A new phase reads other data at another level
of loss: its windows begin empty, and nothing is checked before they are a quarter full and hold 8 values.

Pure Python on numbers that every rank has alike: each rank comes to the same verdict by itself.
Source: for the median and MAD, Rousseeuw & Croux 1993, "Alternatives to the Median Absolute Deviation", section 1.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal

from megacode.config.health import Spikes

Kind = Literal["loss", "grad_norm"]

_NORMAL = 1.4826
_RELATIVE_FLOOR = 0.005
_ABSOLUTE_FLOOR = 0.001
_FEWEST = 8  # values that a median absolute deviation means anything of


@dataclass(frozen=True)
class SpikeCheck:
    """What is thought of one iteration.

    Attributes:
        score: the larger of the two robust z-scores; 0 while nothing can be checked yet.
        which: what leaped (that with the larger score, if both did); None for an ordinary iteration.
    """

    score: float = 0.0
    which: Kind | None = None

    @property
    def spike(self) -> bool:
        """Whether anything leaped."""
        return self.which is not None


class SpikeDetector:
    """Judges iterations, one after another.

    Each iteration: `enter` its phase, `check` it, then `accept` it if its update is applied, or `refuse` it if not.
    Iterations that the ledger withholds are none of its business: they are neither checked nor accepted.

    Args:
        policy: window, threshold and limit.

    Attributes:
        rollbacks: the checkpoint's iteration that the last rollback went back to, and how many in a row did.
    """

    def __init__(self, policy: Spikes) -> None:
        self._policy = policy
        self._phase = ""
        self._windows: dict[Kind, deque[float]] = {kind: deque(maxlen=policy.window) for kind in ("loss", "grad_norm")}
        self._refused = 0
        self.rollbacks: tuple[int, int] = (-1, 0)

    def enter(self, phase: str) -> None:
        """Say which phase the next iteration lies in; the windows of another one are forgotten."""
        if phase != self._phase:
            self._phase = phase
            for window in self._windows.values():
                window.clear()

    def check(self, loss: float, grad_norm: float) -> SpikeCheck:
        """Return what is thought of an iteration; nothing changes.

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
        largest: Kind = max(scores, key=lambda kind: scores[kind])
        return SpikeCheck(scores[largest], largest if scores[largest] > self._policy.threshold else None)

    def accept(self, loss: float, grad_norm: float) -> None:
        """Take an iteration whose update was applied into the windows. A spike that is only warned of is one too."""
        self._windows["loss"].append(loss)
        self._windows["grad_norm"].append(grad_norm)
        self._refused = 0

    def refuse(self) -> None:
        """Count an iteration whose update was left out because it leaped or was not finite."""
        self._refused += 1

    def rolled_back(self, iteration: int) -> None:
        """Count a rollback to the checkpoint of an iteration."""
        self.rollbacks = (iteration, self.rollbacks[1] + 1 if iteration == self.rollbacks[0] else 1)

    @property
    def exhausted(self) -> bool:
        """Whether the limit is reached: of refusals without an ordinary iteration between them, or of rollbacks."""
        return max(self._refused, self.rollbacks[1]) >= self._policy.limit

    def state(self) -> dict[str, Any]:
        """Return, as JSON, what a run must know to check on as if it had not stopped."""
        windows: dict[str, Any] = {kind: list(values) for kind, values in self._windows.items()}
        return {"phase": self._phase, "refused": self._refused, **windows}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint's `state()`, or from an empty one: that of a run's start.

        The count of rollbacks stays: it is what ends a run that comes back to one checkpoint again and again, and a
        checkpoint from before them cannot know it. Values beyond the present window are left out, so that the window
        may change when a run resumes.
        """
        self._phase, self._refused = state.get("phase", ""), state.get("refused", 0)
        for kind, window in self._windows.items():
            window.clear()
            window.extend(state.get(kind, ()))


def robust_score(value: float, window: deque[float]) -> float:
    """Return how many robust standard deviations a value lies above the median of a window that is not empty."""
    middle = median(window)
    deviation = _NORMAL * median(abs(other - middle) for other in window)
    return (value - middle) / max(deviation, _RELATIVE_FLOOR * abs(middle), _ABSOLUTE_FLOOR)

"""FP8 over a run: in which phases, what it costs in accuracy, and when the run goes on without it."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from typing import Any

from megacode.base.logs import OF_ALL_RANKS
from megacode.config.data import Phase
from megacode.config.health import Fp8Probe
from megacode.config.run import RunConfig
from megacode.config.training import Fp8
from megacode.mcore import precision, te
from megacode.mcore.fp8_calibration import calibrate
from megacode.mcore.fp8_probe import Comparison, compare
from megacode.mcore.micro_batch import MicroBatch
from megacode.mcore.rank_model import RankModel

log = logging.getLogger(__name__)


class Fp8Watch:
    """Sets the number format of each iteration, and probes it; all ranks call its methods in lockstep.

    Args:
        config: of the run.
        rank_model: this rank's.

    Attributes:
        fell_back: the run goes on without FP8.
        alarms: probes in a row that found too large a difference.
        calibrated: delayed scaling has scales to go by.
    """

    def __init__(self, config: RunConfig, rank_model: RankModel) -> None:
        self._config, self._rank_model, self._policy = config, rank_model, config.health.fp8_probe
        self._recipe: Fp8 | None = None
        self.fell_back, self.alarms, self.calibrated = False, 0, False

    def enter(self, phase: Phase, microbatches: Callable[[], Sequence[MicroBatch]], num_sources: int) -> None:
        """Compute as a phase asks from here on.

        Args:
            phase: of the next iteration.
            microbatches: gives this rank's of the next iteration, where they are needed to find first scales.
            num_sources: number of sources.
        """
        recipe = None if self.fell_back else self._config.fp8_in(phase)
        if recipe != self._recipe:
            log.info("phase %s: matrix products in %s", phase.name, self._described(recipe))
        self._recipe = recipe
        precision.use(self._rank_model, recipe)
        if recipe is not None and recipe.recipe == "delayed" and not self.calibrated:
            calibrate(self._rank_model, microbatches()[0], num_sources)
            self.calibrated = True

    def _described(self, recipe: Fp8 | None) -> str:
        if recipe is None:
            return f"{self._config.precision.dtype}, without FP8"
        return f"FP8, recipe {recipe.recipe}" + ("" if te.used(self._config) else ", emulated")

    @property
    def recipe(self) -> str | None:
        """Name of the recipe that computes the next iteration; None: without FP8."""
        return None if self._recipe is None else self._recipe.recipe

    def probe(self, microbatches: Sequence[MicroBatch], num_sources: int) -> dict[str, Any]:
        """Compare the first micro-batch of an iteration with itself without FP8, and act on what is found.

        Returns:
            What is measured, for the record: losses, differences, `alarm` (empty where there is none), `fell_back`.
        """
        assert self._recipe is not None
        found = compare(self._rank_model, microbatches[0], num_sources, self._recipe)
        alarm = alarm_of(found, self._policy)
        self.alarms = self.alarms + 1 if alarm else 0
        if alarm:
            log.warning("FP8: %s", alarm, extra=OF_ALL_RANKS)
        if self.alarms >= self._policy.patience and self._policy.policy == "fall_back":
            log.warning("FP8: %d alarms in a row; the run goes on without it", self.alarms, extra=OF_ALL_RANKS)
            self.fell_back, self._recipe = True, None
            precision.use(self._rank_model, None)
        return {
            "loss": found.loss,
            "loss_without_fp8": found.loss_without,
            "loss_difference": found.loss_difference,
            "gradient_difference": found.gradients,
            "alarm": alarm,
            "fell_back": self.fell_back,
        }

    def state(self) -> dict[str, Any]:
        """Return, as JSON, what a run must know to go on alike."""
        return {"fell_back": self.fell_back, "alarms": self.alarms, "calibrated": self.calibrated}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint's `state()`, or from an empty one: that of a run's start."""
        self.fell_back, self.alarms = state.get("fell_back", False), state.get("alarms", 0)
        self.roll_back(state)

    def roll_back(self, state: dict[str, Any]) -> None:
        """Know what a checkpoint's scales are good for, which are in use again; what was learned of FP8 stays."""
        self.calibrated = state.get("calibrated", False)


def alarm_of(found: Comparison, policy: Fp8Probe) -> str:
    """Return what lies too far apart; empty where nothing does."""
    far = []
    if not (math.isfinite(found.loss) and found.loss_difference <= policy.loss):
        far.append(f"the loss is {found.loss:.4f}, without FP8 {found.loss_without:.4f}")
    for kind, distance in found.gradients.items():
        if not distance <= policy.gradient:  # nan too
            far.append(f"gradient of {kind} is {distance:.0%} off")
    return "; ".join(far)

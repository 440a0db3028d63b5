"""Switch FP8 on and off by phase, probe what it costs in accuracy, and fall back when it costs too much."""

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
        fell_back: the run continues without FP8.
        alarms: number of probes in a row that were out of tolerance.
        calibrated: delayed scaling has its first scales.
    """

    def __init__(self, config: RunConfig, rank_model: RankModel) -> None:
        self._config, self._rank_model, self._policy = config, rank_model, config.health.fp8_probe
        self._recipe: Fp8 | None = None
        self.fell_back, self.alarms, self.calibrated = False, 0, False

    def enter(self, phase: Phase, microbatches: Callable[[], Sequence[MicroBatch]], num_sources: int) -> None:
        """Switch to a phase's number format.

        Args:
            phase: of the next iteration.
            microbatches: returns this rank's of the next iteration; called only if first scales must be found.
            num_sources: number of sources.
        """
        # A fallback holds for all later phases: the model that was unstable in FP8 is still the same model.
        recipe = None if self.fell_back else self._config.fp8_in(phase)
        if recipe != self._recipe:
            log.info("phase %s: matrix products in %s", phase.name, self._described(recipe))
        self._recipe = recipe
        precision.use(self._rank_model, recipe)
        if recipe is not None and recipe.recipe == "delayed" and not self.calibrated:  # costs one pass, once a run
            calibrate(self._rank_model, microbatches()[0], num_sources)
            self.calibrated = True

    def _described(self, recipe: Fp8 | None) -> str:
        if recipe is None:
            return f"{self._config.precision.dtype}, without FP8"
        return f"FP8, recipe {recipe.recipe}" + ("" if te.used(self._config) else ", emulated")

    @property
    def recipe(self) -> str | None:
        """Name of the recipe of the next iteration; None without FP8."""
        return None if self._recipe is None else self._recipe.recipe

    def probe(self, microbatches: Sequence[MicroBatch], num_sources: int) -> dict[str, Any]:
        """Compute the first micro-batch of an iteration with and without FP8, compare, and act on the difference.

        Returns:
            The measurements for the record: losses, differences, `alarm` (empty if there is none), `fell_back`.
        """
        assert self._recipe is not None
        comparison = compare(self._rank_model, microbatches[0], num_sources, self._recipe)
        alarm = alarm_of(comparison, self._policy)
        self.alarms = self.alarms + 1 if alarm else 0  # in a row: a single bad micro-batch is no reason to fall back
        if alarm:
            log.warning("FP8: %s", alarm, extra=OF_ALL_RANKS)
        if self.alarms >= self._policy.patience and self._policy.policy == "fall_back":
            log.warning("FP8: %d alarms in a row; the run continues without it", self.alarms, extra=OF_ALL_RANKS)
            self.fell_back, self._recipe = True, None
            precision.use(self._rank_model, None)
        return {
            "loss": comparison.loss,
            "loss_without_fp8": comparison.loss_without,
            "loss_difference": comparison.loss_difference,
            "gradient_difference": comparison.gradients,
            "alarm": alarm,
            "fell_back": self.fell_back,
        }

    def state(self) -> dict[str, Any]:
        """Return, as JSON, what a checkpoint must hold so that a resumed run behaves alike."""
        return {"fell_back": self.fell_back, "alarms": self.alarms, "calibrated": self.calibrated}

    def restore(self, state: dict[str, Any]) -> None:
        """Take over a checkpoint's `state()`, or an empty one at a run's start."""
        self.fell_back, self.alarms = state.get("fell_back", False), state.get("alarms", 0)
        self.roll_back(state)

    def roll_back(self, state: dict[str, Any]) -> None:
        """After a rollback: the checkpoint's scales are in use again, but alarms and a fallback stay."""
        # Otherwise the run would train the same iterations in FP8 again, and fall back again.
        self.calibrated = state.get("calibrated", False)


def alarm_of(comparison: Comparison, policy: Fp8Probe) -> str:
    """Return which differences are out of tolerance, in words; empty if none is."""
    alarms = []
    if not (math.isfinite(comparison.loss) and comparison.loss_difference <= policy.loss):
        alarms.append(f"the loss is {comparison.loss:.4f}, without FP8 {comparison.loss_without:.4f}")
    for kind, distance in comparison.gradients.items():
        if not distance <= policy.gradient:  # `not <=` is true for nan as well
            alarms.append(f"gradient of {kind} is {distance:.0%} off")
    return "; ".join(alarms)

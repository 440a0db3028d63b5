"""Rules of Muon: what it cannot be combined with."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from megacode.base.errors import Problem

if TYPE_CHECKING:
    from megacode.config.run import RunConfig


def muon_needs_whole_updates(config: RunConfig) -> Iterator[Problem]:
    """Muon makes a matrix's update from all of its gradient, after all gradients are there."""
    if not config.uses_muon:
        return
    where = "train.optimizer" if config.train.optimizer == "muon" else _first_phase(config)
    if config.parallel.overlap_param_gather:
        message = "overlap_param_gather gathers slices of weights, and Muon sends whole matrices after the step"
        yield Problem(message, where, "set parallel.overlap_param_gather: false, or use optimizer: adamw")
    if any(recipe.param_gather for recipe in config.fp8_recipes):
        message = "param_gather keeps matrices only in FP8, and Muon's owners send them in bf16"
        yield Problem(message, where, "set precision.fp8.param_gather: false, or use optimizer: adamw")


def _first_phase(config: RunConfig) -> str:
    number = next(number for number, phase in enumerate(config.phases) if phase.optimizer == "muon")
    return f"phases[{number}].optimizer"

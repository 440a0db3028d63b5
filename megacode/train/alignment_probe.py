"""Compare the gradients of the sources' held-out losses between two iterations, and write the record."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from megacode.mcore import alignment
from megacode.mcore.micro_batch import MicroBatch
from megacode.train.calendar import Iteration

if TYPE_CHECKING:
    from megacode.train.trainer import Trainer


def probe(trainer: Trainer, iteration: Iteration) -> None:
    """Compare the gradients of all sources after an iteration; called by all ranks.

    Weights, optimizer, order, random states and scales of FP8 stay as they are. The record is written before the
    checkpoint of the same iteration: a run that resumes from there does not make it again.
    """
    started, samples = time.perf_counter(), trainer.config.health.alignment_probe.samples
    names = trainer.schedule.source_names
    batches = {name: _batches(trainer, name, samples) for name in names}
    comparison = alignment.compare(trainer.rank_model, batches, len(names))
    seconds = time.perf_counter() - started
    phase = trainer.schedule.phase_at(iteration.before).name
    trainer.run_log.aligned(comparison, phase, samples, trainer.rates.at(iteration.after), seconds)
    trainer.limit.measured("alignment", seconds)


def _batches(trainer: Trainer, name: str, samples: int) -> Callable[[], list[MicroBatch]]:
    def made() -> list[MicroBatch]:
        # A beat per source: one may take as long as many iterations.
        trainer.watchdog.beat("comparing gradients", trainer.state.iteration, trainer.state.consumed_samples)
        return list(trainer.loader.validation_batches(name, samples))

    return made

"""The training loop: from the run's current iteration to its end, or to a reason to stop."""

from __future__ import annotations

from megacode.train import alignment_probe
from megacode.train.trainer import StopReason, Trainer


def train(trainer: Trainer) -> StopReason:
    """Train until all samples are consumed or a stop is requested; either way the last state is saved.

    Args:
        trainer: this rank's, at the run's first or at a resumed iteration.
    """
    # Every rank takes the same branches: each decision is a pure function of the clock, or was agreed on by all.
    iteration = trainer.begin()
    first = iteration.number
    while not trainer.finished:
        iteration = trainer.step()
        back_to = trainer.record(iteration)
        if back_to is not None and trainer.roll_back(iteration, back_to):
            continue  # at an earlier iteration: what is due after this one is due when it comes again
        if trainer.validation_due(iteration):
            trainer.validate("phase_end" if trainer.at_phase_end else "interval")
        if trainer.calendar.aligns(iteration):
            alignment_probe.probe(trainer, iteration)
        if trainer.save_due(iteration):
            trainer.save(iteration)
        reason = trainer.agree(iteration)
        if reason is not None:
            return trainer.end(reason, iteration, first)
    return trainer.end("finished", iteration, first)

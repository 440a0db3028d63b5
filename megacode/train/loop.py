"""The training loop: from where a run stands to its end, or to a reason to stop."""

from __future__ import annotations

from megacode.train.trainer import StopReason, Trainer


def train(trainer: Trainer) -> StopReason:
    """Train until the plan is fulfilled or something asks to stop; either way the last state is saved.

    Args:
        trainer: the parts of a run on this rank, standing at its first or at a resumed iteration.
    """
    iteration = trainer.begin()
    first = iteration.number
    while not trainer.finished:
        iteration = trainer.step()
        back_to = trainer.record(iteration)
        if back_to is not None and trainer.roll_back(iteration, back_to):
            continue
        if trainer.validation_due(iteration):
            trainer.validate("phase_end" if trainer.at_phase_end else "interval")
        if trainer.save_due(iteration):
            trainer.save(iteration)
        reason = trainer.agree(iteration)
        if reason is not None:
            return trainer.end(reason, iteration, first)
    return trainer.end("finished", iteration, first)

"""The training loop: from where a run stands to its end, or to a reason to stop."""

from __future__ import annotations

from megacode.train.trainer import StopReason, Trainer


def train(trainer: Trainer) -> StopReason:
    """Train until the plan is fulfilled or something asks to stop; either way the last state is saved.

    Args:
        trainer: the parts of a run on this rank, standing at its first or at a resumed iteration.
    """
    trainer.begin()
    while not trainer.finished:
        result = trainer.step()
        trainer.record(result)
        if trainer.must_roll_back and trainer.roll_back():
            continue
        if trainer.validation_due:
            trainer.validate("phase_end" if trainer.at_phase_end else "interval")
        if trainer.save_due:
            trainer.save()
        reason = trainer.agree()
        if reason is not None:
            return trainer.end(reason)
    return trainer.end("finished")

"""The training loop: from where a run stands to its end, or to a reason to stop."""

from __future__ import annotations

from typing import Literal

from megacode.train.trainer import Trainer

StopReason = Literal["finished", "signal"]


def train(trainer: Trainer) -> StopReason:
    """Train until the plan is fulfilled or a signal asks to stop; either way the last state is saved.

    Args:
        trainer: the parts of a run on this rank, standing at its first or at a resumed iteration.
    """
    trainer.begin()
    while not trainer.finished:
        result = trainer.step()
        trainer.record(result)
        if trainer.validation_due:
            trainer.validate("phase_end" if trainer.at_phase_end else "interval")
        if trainer.save_due:
            trainer.save()
        if trainer.stop_requested:
            trainer.save_unless_saved()
            trainer.end("signal")
            return "signal"
    trainer.save_unless_saved()
    trainer.end("finished")
    return "finished"

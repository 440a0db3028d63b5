"""`megacode train` on one rank."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from megacode.base.errors import EXIT_CHECK, EXIT_FAILURE, EXIT_RESUMABLE
from megacode.config.loading import load_config
from megacode.plan.document import notes
from megacode.train.loop import train
from megacode.train.planning import check_trainable, make_plan
from megacode.train.setup import build_trainer
from megacode.train.signals import StopSignal
from megacode.train.trainer import StopReason

log = logging.getLogger(__name__)

EXIT_CODES: dict[StopReason, int] = {
    "finished": 0,
    "signal": EXIT_RESUMABLE,
    "time_limit": EXIT_RESUMABLE,
    "stop_file": EXIT_RESUMABLE,
    "spikes": EXIT_CHECK,
    "save_failed": EXIT_FAILURE,
}


def run(path: Path, overrides: Sequence[str], *, accept_changed_past: bool = False) -> StopReason:
    """Train the run of a config file, from its start or from its newest whole checkpoint.

    Args:
        path: the config file.
        overrides: `key.path=value`.
        accept_changed_past: go on although the config would have read something else so far.

    Raises:
        MegacodeError: for every mistake of the user's, on every rank alike.
    """
    stop_signal = StopSignal()
    config = load_config(path, overrides)
    check_trainable(config)
    plan = make_plan(config)
    for note in notes(config, plan.schedule):
        log.info("%s", note)
    with ExitStack() as closing:
        trainer = build_trainer(plan, stop_signal, closing, accept_changed_past=accept_changed_past)
        try:
            return train(trainer)
        except Exception as error:
            trainer.note_error(error)
            raise

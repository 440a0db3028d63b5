"""`megacode train` on one rank: agree on the plan, build the trainer, train, clean up."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import yaml

from megacode.base.errors import EXIT_CHECK, EXIT_RESUMABLE
from megacode.config.config_file import dump_config, load_config
from megacode.config.health import Health
from megacode.config.run import RunConfig
from megacode.mcore import agreement, groups, layout_check
from megacode.planning.document import notes
from megacode.planning.run_plan import Plan, check_trainable, make_plan, read_sizes
from megacode.train.loop import train
from megacode.train.presence import finished_lines, is_finished
from megacode.train.setup import build_trainer
from megacode.train.signals import StopSignal
from megacode.train.trainer import StopReason

log = logging.getLogger(__name__)

# 75 tells a scheduler to start the run again. `spikes` needs a person first.
EXIT_CODES: dict[StopReason, int] = {
    "finished": 0,
    "signal": EXIT_RESUMABLE,
    "time_limit": EXIT_RESUMABLE,
    "stop_file": EXIT_RESUMABLE,
    "spikes": EXIT_CHECK,
    "save_failed": EXIT_RESUMABLE,  # usually a full disk; the previous checkpoint still exists
}


def run(
    path: Path,
    overrides: Sequence[str],
    *,
    accept_changed_past: bool = False,
    from_scratch: bool = False,
    stop_signal: StopSignal | None = None,
) -> StopReason:
    """Train the run of a config file, from its start or from its newest intact checkpoint.

    Args:
        path: the config file.
        overrides: `key.path=value`.
        accept_changed_past: resume although the config changes what was already read.
        from_scratch: start with random weights although the run has saved before, if no checkpoint can be used.
        stop_signal: catches signals to this process; None: a new one, from now on.

    Raises:
        MegacodeError: for every user error, on every rank alike.
        StoppedError: on every rank, if one received a signal before training began.
    """
    stop_signal = stop_signal or StopSignal()
    with ExitStack() as closing:
        closing.callback(groups.stop)
        plan = _agreed_plan(path, overrides, stop_signal)
        if agreement.decided(lambda: is_finished(plan, accept_changed_past)):
            for line in finished_lines(plan):
                log.info("%s", line)
            return "finished"
        trainer = build_trainer(
            plan, stop_signal, closing, accept_changed_past=accept_changed_past, from_scratch=from_scratch
        )
        stop_signal.training = True
        try:
            return train(trainer)
        except Exception as error:  # recorded, so that `status` and `job end` can say why the run ended
            trainer.note_error(error)
            raise


def _agreed_plan(path: Path, overrides: Sequence[str], stop_signal: StopSignal) -> Plan:
    """Join the other ranks and return the plan, proven equal on all; only rank 0 reads the data sets' sizes."""
    # A rank that exited over its config before joining would leave the others waiting: so join first, raise after.
    outcome = agreement.attempt(lambda: _trainable(path, overrides))
    patience = outcome.value.health.hang_timeout if outcome.value is not None else Health().hang_timeout
    groups.join(patience, lambda: stop_signal.name)
    config = agreement.all_succeeded(outcome)
    agreement.prove_equal({"config": yaml.safe_load(dump_config(config))})
    agreement.on_all(lambda: layout_check.check(config, groups.size()))
    sizes = agreement.decided(lambda: read_sizes(config))
    plan = agreement.on_all(lambda: make_plan(config, sizes))
    agreement.stop_together(stop_signal.name)
    for note in notes(config, plan.schedule):
        log.info("%s", note)
    return plan


def _trainable(path: Path, overrides: Sequence[str]) -> RunConfig:
    config = load_config(path, overrides)
    check_trainable(config)
    return config

"""`megacode train` on one rank."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from megacode.config.loading import load_config
from megacode.mcore import groups
from megacode.train.loop import StopReason, train
from megacode.train.planning import check_trainable, make_plan
from megacode.train.setup import build_trainer


def run(path: Path, overrides: Sequence[str]) -> StopReason:
    """Train the run of a config file, from its start or from its newest checkpoint.

    Args:
        path: the config file.
        overrides: `key.path=value`.

    Raises:
        MegacodeError: for every mistake of the user's, on every rank alike.
    """
    config = load_config(path, overrides)
    check_trainable(config)
    plan = make_plan(config)
    try:
        return train(build_trainer(plan))
    finally:
        groups.stop()

"""Telling a run of its models' scores, whoever had them made."""

from __future__ import annotations

import logging
from pathlib import Path

import yaml

from megacode.base.errors import CheckpointError, MegacodeError
from megacode.base.files import RunDir
from megacode.checkpoint.state import TrainState
from megacode.metrics.scores import merge
from megacode.plan.ledger import Ledger

log = logging.getLogger(__name__)


def tell_run(run: RunDir) -> None:
    """Add a run's scores to its metrics and to TensorBoard; a live run adds them itself within half a minute."""
    try:
        added = merge(run, _limit(run), Ledger.read(run).samples, lambda iteration: _seal(run, iteration))
    except (MegacodeError, OSError) as error:
        log.warning("the scores are not in %s yet: %s", run.metrics, " ".join(str(error).split()))
        return
    if added is None:
        log.info("the run is live: it records the scores itself within half a minute")


def _seal(run: RunDir, iteration: int) -> str:
    """Return the seal of a run's checkpoint; empty where there is none, or it lies behind `latest` and so is left."""
    try:
        newest = RunDir.iteration_of(Path(run.latest.read_text(encoding="utf-8").strip()))
        return TrainState.read(run.checkpoint(iteration)).seal if iteration <= newest else ""
    except (OSError, ValueError, CheckpointError):
        return ""


def _limit(run: RunDir) -> int | None:
    """Return the limit that the run's own evaluations have; its other settings need not be those of this version."""
    try:
        config = yaml.safe_load(run.config.read_text(encoding="utf-8"))
        limit = config["evaluate"]["limit"]
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError):
        return None
    return limit if isinstance(limit, int) else None

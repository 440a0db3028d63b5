"""Telling a run of its models' scores, whoever had them made."""

from __future__ import annotations

import logging
from pathlib import Path

import yaml

from megacode.base.errors import MegacodeError
from megacode.base.files import RunDir
from megacode.checkpoint.ledger import Ledger
from megacode.checkpoint.state import seal_of
from megacode.metrics.scores import merge

log = logging.getLogger(__name__)


def tell_run(run: RunDir) -> None:
    """Add a run's scores to its metrics and to TensorBoard; a live run adds them itself within half a minute."""
    try:
        withheld, newest = Ledger.read(run).samples, _newest(run)
        added = merge(run, _limit(run), withheld, lambda iteration: seal_of(run, iteration), newest)
    except (MegacodeError, OSError) as error:
        log.warning("the scores are not in %s yet: %s", run.metrics, " ".join(str(error).split()))
        return
    if added is None:
        log.info("the run is live: it records the scores itself within half a minute")


def _newest(run: RunDir) -> int | None:
    """Return the iteration that `latest` names; None where it names none."""
    try:
        return RunDir.iteration_of(Path(run.latest.read_text(encoding="utf-8").strip()))
    except (OSError, ValueError):
        return None


def _limit(run: RunDir) -> int | None:
    """Return the limit that the run's own evaluations have; its other settings need not be those of this version."""
    try:
        config = yaml.safe_load(run.config.read_text(encoding="utf-8"))
        limit = config["evaluate"]["limit"]
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError):
        return None
    return limit if isinstance(limit, int) else None

"""Append score files to a run's metrics.jsonl and TensorBoard."""

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
        log.warning("could not add the scores to %s yet: %s", run.metrics, " ".join(str(error).split()))
        return
    if added is None:
        log.info("the run is live: it records the scores itself within half a minute")


def _newest(run: RunDir) -> int | None:
    """Return the iteration that `latest` names; None if it names none."""
    try:
        return RunDir.iteration_of(Path(run.latest.read_text(encoding="utf-8").strip()))
    except (OSError, ValueError):
        return None


def _limit(run: RunDir) -> int | None:
    """Return the item limit of the run's own evaluations; the config may be of another megacode version."""
    try:
        # Read as plain YAML: a config that this version no longer accepts must not lose its scores.
        config = yaml.safe_load(run.config.read_text(encoding="utf-8"))
        limit = config["evaluate"]["limit"]
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError):
        return None
    return limit if isinstance(limit, int) else None

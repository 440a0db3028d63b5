"""Telling a run of its models' scores, whoever had them made."""

from __future__ import annotations

import logging

from megacode.base.errors import MegacodeError
from megacode.base.files import RunDir
from megacode.config.loading import load_config
from megacode.metrics.scores import merge
from megacode.plan.ledger import Ledger

log = logging.getLogger(__name__)


def tell_run(run: RunDir) -> None:
    """Add a run's scores to its metrics and to TensorBoard; a live run adds them itself within half a minute."""
    try:
        wanted = load_config(run.config).evaluate
        added = merge(run, wanted.limit if wanted is not None else None, Ledger.read(run).samples)
    except (MegacodeError, OSError) as error:
        log.warning("the scores are not in %s yet: %s", run.metrics, " ".join(str(error).split()))
        return
    if added is None:
        log.info("the run is live: it records the scores itself within half a minute")

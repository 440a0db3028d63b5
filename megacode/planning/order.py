"""What samples read, and which samples read a document, computed by the code that training uses.

Each row also has the reason why its sample was withheld from learning, if the ledger of the run directory lists it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache, partial
from typing import Any

import numpy as np

from megacode.base.errors import ConfigError
from megacode.base.files import RunDir
from megacode.checkpoint.ledger import Ledger
from megacode.config.run import RunConfig
from megacode.data.windows import SourceStream, open_source, source_sizes
from megacode.plan.phases import Schedule, build_schedule

Row = dict[str, Any]


def order_rows(config: RunConfig, first: int, count: int) -> list[Row]:
    """Return what samples `first` to `first + count - 1` read, one row each; fewer at the end of the run.

    Raises:
        ConfigError: if `first` lies outside the run.
        DataError: if a source or the run's ledger cannot be read.
    """
    schedule = build_schedule(config, source_sizes(config))
    if not 0 <= first < schedule.total_samples:
        what = f"sample {first} is not one of the run's {schedule.total_samples:,} samples"
        raise ConfigError(what, "--first", f"give a number from 0 to {schedule.total_samples - 1}")
    return _rows(config, schedule, range(first, min(first + count, schedule.total_samples)))


def seen_rows(config: RunConfig, source: str, document: int) -> list[Row]:
    """Return every sample of a run that reads any token of a document, in order; none for a held-out document.

    Raises:
        ConfigError: if the source or the document does not exist.
        DataError: if a source or the run's ledger cannot be read.
    """
    if source not in config.sources:
        known = ", ".join(sorted(config.sources))
        raise ConfigError(f"there is no source {source!r}", "--source", f"use one of {known}")
    stream = open_source(config, source)
    if not 0 <= document < stream.data.documents:
        what = f"there is no document {document} in {source!r}, which has {stream.data.documents:,} documents"
        raise ConfigError(what, "--document", f"give a number from 0 to {stream.data.documents - 1}")
    # Tokens first .. last of the stored stream, both inclusive.
    first, last = stream.data.document_bounds(document)
    # Held-out documents are the last ones of a source; no sample reads them.
    if document >= stream.train_documents or last < first:
        return []
    schedule = build_schedule(config, source_sizes(config))
    return _rows(config, schedule, schedule.samples_of(source, first, last))


def _rows(config: RunConfig, schedule: Schedule, samples: Iterable[int]) -> list[Row]:
    # Sources are opened once each, on first use.
    return sample_rows(schedule, samples, Ledger.read(RunDir(config.directory)), cache(partial(open_source, config)))


def sample_rows(
    schedule: Schedule, samples: Iterable[int], ledger: Ledger, stream_of: Callable[[str], SourceStream]
) -> list[Row]:
    """Return what some samples read, one row each, in the order given.

    Args:
        schedule: of the run.
        samples: numbers of the samples.
        ledger: the samples that the run has withheld.
        stream_of: returns an opened source by its name.
    """
    numbers = np.fromiter(samples, dtype=np.int64)
    # One vectorized draw, then plain integers, which JSON can hold.
    columns = (column.tolist() for column in (numbers, *schedule.draws(numbers)))
    rows: list[Row] = []
    for sample, source_id, epoch, window, first_token in zip(*columns, strict=True):
        name = schedule.source_names[source_id]
        # A window usually spans several documents.
        first, last = stream_of(name).documents_of(first_token)
        entry = ledger.withheld(sample, sample + 1)
        rows.append(
            {
                "sample": sample,
                "phase": schedule.phase_at(sample).name,
                "source": name,
                "epoch": epoch,
                "window": window,
                "first_document": first,
                "last_document": last,
                "withheld": entry.reason if entry else None,
            }
        )
    return rows

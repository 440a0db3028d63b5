"""What samples read, and which samples read a document, computed by the code that training uses.

Each row also has the reason why its sample was withheld from learning, if the ledger of the run directory lists it, and
the ids of its first and last document, if the source has ids.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cache, partial
from typing import Any

import numpy as np

from megacode.base.errors import ConfigError, DataError
from megacode.base.files import RunDir
from megacode.checkpoint.ledger import Ledger
from megacode.config.run import RunConfig
from megacode.data.document_ids import ids_path, open_ids
from megacode.data.source_stream import SourceStream
from megacode.data.windows import open_source, source_sizes
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
        message = f"sample {first} is not one of the run's {schedule.total_samples:,} samples"
        raise ConfigError(message, "--first", f"give a number from 0 to {schedule.total_samples - 1}")
    return _rows(config, schedule, range(first, min(first + count, schedule.total_samples)))


def seen_rows(config: RunConfig, source: str, document: int) -> list[Row]:
    """Return every sample of a run that reads any token of a document, in order; none for a held-out document.

    Raises:
        ConfigError: if the source or the document does not exist.
        DataError: if a source or the run's ledger cannot be read.
    """
    stream = _stream(config, source)
    if not 0 <= document < stream.data.documents:
        message = f"there is no document {document} in {source!r}, which has {stream.data.documents:,} documents"
        raise ConfigError(message, "--document", f"give a number from 0 to {stream.data.documents - 1}")
    return _seen(config, stream, [document])


def seen_rows_by_id(config: RunConfig, source: str, name: str) -> tuple[list[int], list[Row]]:
    """Return the documents that have an id, ascending, and every sample that reads any token of any of them.

    Raises:
        ConfigError: if the source or the id does not exist.
        DataError: if the source has no ids, or a source or the run's ledger cannot be read.
    """
    stream = _stream(config, source)
    ids = open_ids(stream.prefix, stream.data.documents)
    if ids is None:
        fix = "preprocess it again with --id-key, or give --document"
        raise DataError(f"the source {source!r} has no ids of documents", str(ids_path(stream.prefix)), fix)
    documents = ids.documents_of(name)
    if not documents:
        fix = f"ids of this source look like {ids[0]!r} and {ids[ids.documents - 1]!r}"
        raise ConfigError(f"there is no document with the id {name!r} in {source!r}", "--id", fix)
    return documents, _seen(config, stream, documents)


def _stream(config: RunConfig, source: str) -> SourceStream:
    if source not in config.sources:
        known = ", ".join(sorted(config.sources))
        raise ConfigError(f"there is no source {source!r}", "--source", f"use one of {known}")
    return open_source(config, source)


def _seen(config: RunConfig, stream: SourceStream, documents: Sequence[int]) -> list[Row]:
    # Tokens first .. last of the stored stream, both inclusive.
    bounds = [(document, *stream.data.document_bounds(document)) for document in documents]
    # Held-out documents are the last ones of a source; no sample reads them.
    read = [(first, last) for document, first, last in bounds if document < stream.train_documents and last >= first]
    if not read:
        return []
    schedule = build_schedule(config, source_sizes(config))
    # A set: a sample that reads two of the documents gives one row.
    samples = {int(sample) for first, last in read for sample in schedule.samples_of(stream.name, first, last)}
    return _rows(config, schedule, sorted(samples))


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
    ids_of = cache(lambda stream: open_ids(stream.prefix, stream.data.documents))  # opened once a source
    columns = (column.tolist() for column in (numbers, *schedule.draws(numbers)))
    rows: list[Row] = []
    for sample, source_id, epoch, window, first_token in zip(*columns, strict=True):
        name = schedule.source_names[source_id]
        # A window usually spans several documents.
        stream = stream_of(name)
        first, last = stream.documents_of(first_token)
        ids = ids_of(stream)
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
                "first_id": ids[first] if ids is not None else None,
                "last_id": ids[last] if ids is not None else None,
            }
        )
    return rows

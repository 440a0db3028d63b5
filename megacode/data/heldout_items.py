"""The demo suite's items of a run, made from the documents that no phase trains on."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from megacode.base.errors import ConfigError, DataError
from megacode.base.files import RunDir
from megacode.config.data import Source
from megacode.config.loading import load_config
from megacode.data.demo_items import SOURCES, build_demo_tasks
from megacode.data.indexed import IndexedDataset
from megacode.data.tokenizer import load_tokenizer
from megacode.data.windows import SourceStream


class Decoder(Protocol):
    """The part of a tokenizer that is needed here."""

    eod: int | None

    def decode(self, ids: list[int]) -> str:
        """Return the text of some ids."""


def heldout_documents(
    name: str, source: Source, validation_fraction: float, tokenizer: Decoder, limit: int | None = None
) -> list[str]:
    """Return the held-out documents of a source: those after the tokens that training may read.

    Args:
        name: the source's name.
        source: its section of the config; `path` is the prefix of its data set.
        validation_fraction: `validation.fraction` of the config, which sets where training's tokens end.
        tokenizer: decodes; its end-of-document token is dropped.
        limit: at most this many documents, the first ones.

    Raises:
        DataError: if the fraction leaves no document held out.
    """
    dataset = IndexedDataset(source.path)
    # The same cut as in training; a window of one token keeps short sources usable.
    stream = SourceStream(name, source.path, validation_fraction, seq_length=1)
    if stream.held_out_from >= dataset.tokens:
        raise DataError(
            f"validation.fraction {validation_fraction} holds out no document of this source",
            f"source {name} ({source.path})",
            "increase validation.fraction, or use more documents",
        )
    # The cut is at a document's border, so no document is half trained on.
    first = dataset.document_at(stream.held_out_from)
    assert dataset.document_bounds(first)[0] == stream.held_out_from, "training ends at a document's end"
    last = dataset.documents if limit is None else min(dataset.documents, first + limit)
    return [_text(dataset, document, tokenizer) for document in range(first, last)]


def build_run_items(run_dir: Path, items: Path) -> None:
    """Write the demo suite's items for a run, from the held-out documents of its sources text, code and markup.

    Args:
        run_dir: the run; its config names the data sets, which must still be there.
        items: the directory to write to.

    Raises:
        ConfigError: if the run has none of those sources, or no tokenizer.
        DataError: if its data sets are missing, or hold out too few documents.
    """
    where = RunDir(run_dir).config
    config = load_config(where)
    # Sources of other names have no tasks in the suite; they are skipped, not an error.
    sources = {name: source for name, source in config.sources.items() if name in SOURCES}
    if not sources or config.tokenizer is None:
        what = f"the demo suite needs a tokenizer and a source named {', '.join(SOURCES)}; this run lacks one of them"
        raise ConfigError(what, str(where), "use your own suite: --suite FILE.yaml")
    tokenizer, fraction = load_tokenizer(config.tokenizer), config.validation.fraction
    held_out = {name: heldout_documents(name, source, fraction, tokenizer) for name, source in sources.items()}
    build_demo_tasks(held_out, items, config.seed)


def _text(dataset: IndexedDataset, document: int, tokenizer: Decoder) -> str:
    first, last = dataset.document_bounds(document)
    # The end-of-document token would decode to a visible marker at the end of the text.
    ids = dataset.read(first, last + 1 - first).tolist()
    return tokenizer.decode(ids[:-1] if ids and ids[-1] == tokenizer.eod else ids)

"""Checks of a run's sources before it starts: which are incompatible, and what looks like a mistake.

Headers, manifests and the ends of a few documents are read; nothing here depends on the size of a data set.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from megacode.base.errors import Problem
from megacode.config.data import Source
from megacode.config.model import TokenizerConfig
from megacode.data.indexed import IndexedDataset
from megacode.data.manifest import Manifest
from megacode.data.tokenizer import load_tokenizer, newest_change

_LOOKED_AT = 16  # documents whose last token is read
_FAR_OFF = 0.05  # relative error of a declared size that is worth a warning
_Facts = Mapping[str, Any]


def tokenizer_facts(config: TokenizerConfig | None) -> dict[str, Any] | None:
    """Return `kind`, `hash`, `vocab_size` and `eod` of a run's tokenizer; None if it has none, or the file is missing.

    Raises:
        DataError: it cannot be read.
    """
    # A plan may be made before the tokenizer exists.
    if config is None or not Path(config.path).exists():
        return None
    return _read_facts(config, newest_change(Path(config.path)))


@lru_cache(maxsize=4)  # large vocabularies take a second to parse, and a plan asks several times
def _read_facts(config: TokenizerConfig, changed: int) -> dict[str, Any]:
    return load_tokenizer(config).facts()


def tokenizer_problems(made_by: Mapping[str, _Facts], run: _Facts | None) -> list[Problem]:
    """Return the problems of sources that were made with different tokenizers, or not with the run's.

    Args:
        made_by: the tokenizer of each source, by name, if its manifest records it.
        run: the run's own, where it is known.
    """
    fix = "preprocess them again with one tokenizer, and set it under tokenizer"
    if run is not None:
        return [
            Problem(
                f"it was made with tokenizer {facts['hash'][:12]}, but the run's tokenizer is {run['hash'][:12]}",
                f"sources.{name}",
                "set tokenizer.path to the tokenizer that made it, or preprocess it again with the run's",
            )
            for name, facts in made_by.items()
            if facts.get("hash") and facts["hash"] != run["hash"]
        ]
    makers = {name: str(facts["hash"]) for name, facts in made_by.items() if facts.get("hash")}
    if len(set(makers.values())) < 2:
        return []
    makers_text = ", ".join(f"{name} with {maker[:12]}" for name, maker in makers.items())
    return [Problem(f"they were made with different tokenizers: {makers_text}", "sources", fix)]


def template_problems(manifests: Mapping[str, Manifest]) -> list[Problem]:
    """Return the problem of sources whose conversations were written by different chat templates.

    Args:
        manifests: of the sources that have one, by name.
    """
    made_by = {name: str(one.chat["template_sha256"]) for name, one in manifests.items() if one.chat}
    if len(set(made_by.values())) < 2:
        return []
    text = ", ".join(f"{name} by {template[:12]}" for name, template in made_by.items())
    message = f"different chat templates wrote their conversations: {text}; a model is asked in one form"
    return [Problem(message, "sources", "make them again with one --chat-template (megacode data chat)")]


def notes(data: IndexedDataset, manifest: Manifest | None, source: Source, run: _Facts | None) -> tuple[str, ...]:
    """Return warnings about a source that is usable."""
    warnings = (_declared_size(data, source), _document_ends(data, manifest, run))
    return tuple(note for note in warnings if note)


def _declared_size(data: IndexedDataset, source: Source) -> str:
    declared = source.tokens
    if declared is None or abs(declared - data.tokens) <= _FAR_OFF * data.tokens:
        return ""
    return f"{declared:,} tokens are declared, but the data set has {data.tokens:,}; the plan uses the actual number"


def _document_ends(data: IndexedDataset, manifest: Manifest | None, run: _Facts | None) -> str:
    """Return a warning if documents follow each other without a token between them."""
    tokenizer = (manifest.tokenizer if manifest is not None else None) or run
    consequence = "the model cannot learn where texts end"
    # Conversations end with a token of their chat template; only a text has nothing else to end it.
    if manifest is not None and (manifest.append_eod or manifest.loss_mask is not None):
        return ""
    if tokenizer is None:
        return ""  # without a tokenizer the end token is unknown
    if tokenizer.get("eod") is None:
        return f"its tokenizer has no end-of-document token: {consequence}"
    sampled = _documents(data)
    ended = sum(int(data.read(last, 1)[0]) == tokenizer["eod"] for last in sampled)
    if ended == len(sampled):
        return ""
    which = "documents do" if not ended else f"{len(sampled) - ended} of {len(sampled)} sampled documents do"
    return f"{which} not end with the end-of-document token {tokenizer['eod']} (--append-eod): {consequence}"


def _documents(data: IndexedDataset) -> list[int]:
    """Return the last tokens of some documents, evenly spread; empty ones are left out."""
    count = min(_LOOKED_AT, data.documents)
    bounds = (data.document_bounds(data.documents * number // count) for number in range(count))
    return [last for first, last in bounds if first <= last]


def similar_data(prefix: str) -> str:
    """Return the data set that was probably meant, such as `data/code_text_document`; or an empty string."""
    path = Path(prefix)
    try:
        names = sorted(file.stem for file in path.parent.iterdir() if file.suffix == ".idx")
    except OSError:
        return ""
    # The usual slips: the `_text_document` that preprocessing adds is missing, or `.bin` was typed.
    longer = [name for name in names if name.startswith(path.name) or path.name.startswith(f"{name}.")]
    matches = longer or difflib.get_close_matches(path.name, names, n=1, cutoff=0.6)
    return str(path.with_name(matches[0])) if matches else ""

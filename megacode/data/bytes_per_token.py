"""Compare tokenizers by bytes of UTF-8 per token on held-out documents of several sources."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from megacode.data.text_draws import HELD_OUT, Drawn
from megacode.data.tokenizer import Tokenizer

TRAINING = "training.json"
_BATCH_CHARACTERS = 1 << 20
# Below this the fast encoder's start, and its comparison with the reference, cost more than they save.
_FAST_FROM_BYTES = 1_000_000


@dataclass(frozen=True)
class Measured:
    """A tokenizer, and what it makes of held-out documents.

    Attributes:
        tokenizer: it.
        tokens: of the held-out documents of each source, by its name, without control tokens and ends of documents.
        bytes_per_token: by source; None where no document is held out.
        weighted: bytes per token of a mixture in which the sources have their weights in bytes; None if it is unknown.
    """

    tokenizer: Tokenizer
    tokens: dict[str, int]
    bytes_per_token: dict[str, float | None]
    weighted: float | None


def measure(tokenizer: Tokenizer, drawn: Sequence[Drawn]) -> Measured:
    """Encode the held-out documents of all sources.

    Args:
        tokenizer: any.
        drawn: by `text_draws.draw`.
    """
    # In memory as a whole: `draw` has bounded the held-out text of each source.
    batches = {source.source.name: list(_batches(source)) for source in drawn}
    if sum(source.held_out_bytes for source in drawn) >= _FAST_FROM_BYTES:
        tokenizer.use_fast([text for of_source in batches.values() for batch in of_source for text in batch])
    tokens = {
        name: sum(len(tokenizer.encode_batch(batch)[0]) for batch in of_source) for name, of_source in batches.items()
    }
    rates = {
        source.source.name: source.held_out_bytes / tokens[source.source.name] if source.held_out_bytes else None
        for source in drawn
    }
    return Measured(tokenizer, tokens, rates, _weighted(drawn, rates))


def _batches(source: Drawn) -> Iterator[list[str]]:
    batch: list[str] = []
    size = 0
    for text in source.held_out:
        for part in text:
            batch.append(part.decode())
            size += len(part)
        if size >= _BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _weighted(drawn: Sequence[Drawn], rates: dict[str, float | None]) -> float | None:
    """Return the bytes of the mixture by its tokens: tokens per byte add up by weight, bytes per token do not."""
    total = sum((source.source.weight for source in drawn), Fraction(0))
    shares = {source.source.name: source.source.weight / total for source in drawn if source.source.weight}
    tokens = 0.0
    for name, share in shares.items():
        rate = rates[name]
        if rate is None:
            return None
        tokens += float(share) / rate
    return 1 / tokens if tokens else None


def training_record(tokenizer: Tokenizer) -> dict[str, Any] | None:
    """Return what megacode wrote beside a tokenizer about its training; None if it was made elsewhere."""
    try:
        record = json.loads(tokenizer.path.with_name(TRAINING).read_bytes())
    except (OSError, ValueError):
        return None
    # Others may write a file of this name too.
    return record if isinstance(record, dict) and "seed" in record else None


def may_have_seen(tokenizer: Tokenizer, seed: int, keys: Sequence[str]) -> str | None:
    """Return why a tokenizer may have been trained on documents that are held out here; None: it was not, or unknown.

    Args:
        tokenizer: trained by megacode, or elsewhere.
        seed: of the draw.
        keys: of the texts.
    """
    record = training_record(tokenizer)
    if record is None:
        return None
    # What is held out is chosen by a hash with the seed: another seed holds out other documents.
    if record["seed"] != seed:
        return f"it was trained with --seed {record['seed']}, so it may have seen documents that are held out here"
    if record.get("keys") != list(keys):
        return f"it was trained with --json-keys {' '.join(record.get('keys', []))}, so other documents were held out"
    return None


def as_json(drawn: Sequence[Drawn], measured: Sequence[Measured], seed: int) -> dict[str, Any]:
    """Return a comparison for `--json`."""
    sources = [
        {
            "name": source.source.name,
            "weight": float(source.source.weight),
            "documents": source.documents,
            "bytes": source.bytes,
            "held_out_documents": len(source.held_out),
            "held_out_bytes": source.held_out_bytes,
            "bad_lines": source.bad,
        }
        for source in drawn
    ]
    tokenizers = [
        {
            "path": str(one.tokenizer.path),
            **{key: value for key, value in one.tokenizer.facts().items() if key in ("kind", "hash", "vocab_size")},
            "tokens": one.tokens,
            "bytes_per_token": one.bytes_per_token,
            "weighted_bytes_per_token": one.weighted,
            "trained_with_seed": (training_record(one.tokenizer) or {}).get("seed"),
        }
        for one in measured
    ]
    return {"seed": seed, "held_out": float(HELD_OUT), "sources": sources, "tokenizers": tokenizers}

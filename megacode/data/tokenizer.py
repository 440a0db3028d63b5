"""Tokenizers: the ones that make the data sets, identified by a hash of everything that decides their ids."""

from __future__ import annotations

import json
import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from megacode.base.errors import DataError
from megacode.base.files import digest
from megacode.config.model import TokenizerConfig
from megacode.data.encoders import (
    Encoded,
    Encoder,
    GigatokenEncoder,
    HuggingFaceEncoder,
    Race,
    SentencePieceEncoder,
    sentencepiece_document,
)

_LOG = logging.getLogger(__name__)
_END_NAMES = ("<|endoftext|>", "</s>", "<|end_of_text|>", "<eos>", "<EOD>")
BEGIN_OF_TEXT: int | None = None
"""The token before each text: none. Decided here for data, checks, scores, answers and exports alike.

A text begins where the one before it ended, after its end-of-document token. Tokenizers that would add a token before
a text (Llama's do) are told not to: training never saw it there. A chat template may write any token.
"""
_DECIDES_IDS = ("model", "added_tokens", "normalizer", "pre_tokenizer")


class EncoderMismatch(Exception):  # noqa: N818 (a signal between parts of the library, never shown)
    """The fast encoder gave other ids than the reference, after it matched on the first texts."""


class Tokenizer(ABC):
    """A tokenizer that encodes in batches.

    Attributes:
        kind: `huggingface` or `sentencepiece`.
        path: the file it was read from.
        vocab_size: one more than the largest id, added tokens included.
        eod: id of the token that ends a document; None if it has none.
        specials: its special tokens, as text.
        added: all tokens that are matched in a text before it is split, special ones included.
        special_ids: ids of the special tokens, which no text can make, by their names.
    """

    kind: str
    path: Path
    vocab_size: int
    eod: int | None
    specials: tuple[str, ...]
    added: tuple[str, ...]
    special_ids: dict[str, int]

    def __init__(self) -> None:
        self._reference: Any = None
        self._encoder: Encoder | None = None
        self._race: Race | None = None

    @abstractmethod
    def _load_reference(self) -> Any:
        """Return the encoder that is correct by definition; it also decodes."""

    @abstractmethod
    def _load_fast(self) -> Encoder:
        """Return the fast encoder.

        Raises:
            Exception: any, if it does not support this tokenizer.
        """

    @property
    def reference(self) -> Any:
        """The reference encoder, loaded on first use."""
        # Loading takes up to a second for large vocabularies, and many callers need the hash only.
        if self._reference is None:
            self._reference = self._load_reference()
        return self._reference

    def encode_batch(self, texts: Sequence[str]) -> Encoded:
        """Encode texts; special tokens in them are plain text, and none are added.

        Args:
            texts: any number of texts.

        Returns:
            the ids of all texts, one after another, uint32; and int64 [texts + 1] offsets of where each begins.

        Raises:
            EncoderMismatch: if the fast encoder is in use and differs from the reference on a piece of this batch.
        """
        # A few KiB of every batch are encoded twice: a wrong id would poison a data set silently.
        if self._race is not None and texts and (piece := self._race.check(texts)) is not None:
            raise EncoderMismatch(f"the fast encoder differs from the reference on {piece[:60]!r}")
        return (self._encoder or self.reference).encode(texts)

    def encode(self, text: str) -> list[int]:
        """Encode one text."""
        return [int(token) for token in self.encode_batch([text])[0]]

    def encode_each(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each of some short texts, by the reference encoder and in the calling thread alone."""
        ids: list[list[int]] = self.reference.encode_each(texts)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of some ids."""
        return str(self.reference.decode([int(token) for token in ids]))

    @abstractmethod
    def id_of(self, token: str) -> int | None:
        """Return the id of a token by its name in the vocabulary; None: there is none."""

    def use_fast(self, sample: Sequence[str]) -> bool:
        """Encode with gigatoken from now on, if it gives the reference's ids on hard probes and on real texts.

        Args:
            sample: some of the texts that will come.
        """
        try:
            race = Race(self._load_fast(), self.reference)
            text = race.first_difference(sample, self.added)
        except BaseException as error:  # a panic of its Rust code is not an Exception
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
                raise
            _LOG.info("encoding with the reference library: gigatoken does not support this tokenizer (%s)", error)
            return False
        if text is not None:
            _LOG.warning("encoding with the reference library: gigatoken differs on %r", text[:60])
            return False
        self._race, self._encoder = race, race.fast
        return True

    def use_reference(self) -> None:
        """Encode with the reference library from now on."""
        self._race = self._encoder = None

    def limit_threads(self, threads: int) -> None:
        """Encode with this many threads; call it before the first text, which starts the libraries' pools."""
        # Rayon reads its variable once, at its first use in the process.
        os.environ["RAYON_NUM_THREADS"] = str(threads)
        os.environ["TOKENIZERS_PARALLELISM"] = "true" if threads > 1 else "false"
        self.reference.threads = threads

    @property
    @abstractmethod
    def hash(self) -> str:
        """SHA-256 of what decides its ids: equal for equal tokenizers wherever they are stored."""

    def facts(self) -> dict[str, Any]:
        """Return what a manifest records."""
        known = {"kind": self.kind, "hash": self.hash, "vocab_size": self.vocab_size, "eod": self.eod}
        return {**known, "begin_of_text": BEGIN_OF_TEXT}


class HuggingFaceTokenizer(Tokenizer):
    """A `tokenizer.json`, alone or in its directory.

    Raises:
        DataError: if it is missing or not one.
    """

    kind = "huggingface"

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        self.path = Path(path) / "tokenizer.json" if Path(path).is_dir() else Path(path)
        self._raw = _read(self.path, "give the directory that holds a tokenizer.json")
        self._document = _parse(self._raw, self.path)
        added: list[dict[str, Any]] = self._document.get("added_tokens") or []
        # Added tokens may be new ids or names for existing ones; the union has both.
        ids = _vocabulary(self._document) | {str(token["content"]): int(token["id"]) for token in added}
        # Ids may have gaps, so the largest one decides the size of the embedding, not their number.
        self._ids, self.vocab_size = ids, max(ids.values()) + 1
        self.special_ids = {str(token["content"]): int(token["id"]) for token in added if token.get("special")}
        self.specials = tuple(self.special_ids)
        self.added = tuple(str(token["content"]) for token in added)
        end = named_token(self.path.parent, "eos_token") or next((name for name in _END_NAMES if name in ids), "")
        self.eod = ids.get(end)

    def id_of(self, token: str) -> int | None:
        """See `Tokenizer.id_of`."""
        return self._ids.get(token)

    @property
    def document(self) -> dict[str, Any]:
        """The contents of its tokenizer.json."""
        return self._document

    def vocabulary(self) -> dict[str, int]:
        """Return the ids of all tokens by name."""
        return dict(self._ids)

    @cached_property
    def hash(self) -> str:
        """See `Tokenizer.hash`."""
        # Padding, truncation and template change no id here, and differ between copies of one tokenizer.
        deciding = {key: self._document.get(key) for key in _DECIDES_IDS}
        return digest(self.kind, json.dumps(deciding, sort_keys=True), str(self.eod))

    def _load_reference(self) -> HuggingFaceEncoder:
        try:
            return HuggingFaceEncoder(self._raw)
        except Exception as error:
            raise DataError(f"tokenizers cannot load it: {error}", str(self.path), "check the file") from None

    def _load_fast(self) -> Encoder:
        return GigatokenEncoder(self._document)


class SentencePieceTokenizer(Tokenizer):
    """A SentencePiece `.model`, alone or as `tokenizer.model` in its directory.

    Raises:
        DataError: if it is missing or not one.
    """

    kind = "sentencepiece"

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        self.path = Path(path) / "tokenizer.model" if Path(path).is_dir() else Path(path)
        self._raw = _read(self.path, "give a SentencePiece .model file")
        processor = self.reference.processor
        self.vocab_size = processor.get_piece_size()
        controls = [token for token in range(self.vocab_size) if processor.is_control(token)]
        self.special_ids = {processor.id_to_piece(token): token for token in controls}
        self.specials = (*self.special_ids, processor.id_to_piece(processor.unk_id()))
        self.added = self.specials
        self.eod = self._end(processor)

    @cached_property
    def hash(self) -> str:
        """See `Tokenizer.hash`."""
        return digest(self.kind, self._raw)

    def id_of(self, token: str) -> int | None:
        """See `Tokenizer.id_of`."""
        processor = self.reference.processor
        number = int(processor.piece_to_id(token))
        # piece_to_id returns the unknown token for names that do not exist.
        return number if processor.id_to_piece(number) == token else None

    @staticmethod
    def _end(processor: Any) -> int | None:
        if processor.eos_id() >= 0:
            return int(processor.eos_id())
        # piece_to_id returns the unknown token for names that do not exist.
        known = [processor.piece_to_id(name) for name in _END_NAMES]
        return next((token for token in known if token != processor.unk_id()), None)

    def _load_reference(self) -> SentencePieceEncoder:
        try:
            return SentencePieceEncoder(self._raw)
        except Exception:
            fix = "give a SentencePiece .model file"
            raise DataError("it is not a SentencePiece model", str(self.path), fix) from None

    def _load_fast(self) -> Encoder:
        return GigatokenEncoder(sentencepiece_document(self._raw))


def tokenizer_at(path: str) -> TokenizerConfig:
    """Return the config of the tokenizer at a path, of whichever kind it is."""
    place = Path(path)
    is_model = place.suffix == ".model" or (place / "tokenizer.model").exists()
    has_json = (place / "tokenizer.json").exists()  # a directory may hold both; transformers prefers this one
    return TokenizerConfig(kind="sentencepiece" if is_model and not has_json else "huggingface", path=path)


def load_tokenizer(config: TokenizerConfig) -> Tokenizer:
    """Load a run's tokenizer.

    Raises:
        DataError: if it is missing or invalid.
    """
    kinds: dict[str, type[HuggingFaceTokenizer] | type[SentencePieceTokenizer]] = {
        "huggingface": HuggingFaceTokenizer,
        "sentencepiece": SentencePieceTokenizer,
    }
    return kinds[config.kind](config.path)


def _read(path: Path, fix: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"the tokenizer cannot be read: {error.strerror}", str(path), fix) from None


def _parse(raw: bytes, path: Path) -> dict[str, Any]:
    try:
        document = json.loads(raw)
        if not _vocabulary(document):
            raise ValueError("its vocabulary is empty")
    except (ValueError, KeyError, TypeError) as error:
        fix = "give a tokenizer.json as the tokenizers library writes it"
        raise DataError(f"it is not a tokenizer.json: {error}", str(path), fix) from None
    return dict(document)


def _vocabulary(document: dict[str, Any]) -> dict[str, int]:
    """Return the ids of a tokenizer.json's model; Unigram keeps a list, the others a mapping."""
    vocab = document["model"]["vocab"]
    return {entry[0]: number for number, entry in enumerate(vocab)} if isinstance(vocab, list) else dict(vocab)


def newest_change(path: Path) -> int:
    """Return when a tokenizer's files last changed, for keys of caches: one replaced in place is read again."""
    files = [path, *path.glob("*")] if path.is_dir() else [path]
    return max(file.stat().st_mtime_ns for file in files)


def named_token(directory: Path, role: str) -> str:
    """Return the token that the files beside a tokenizer.json give a role, such as `eos_token`; empty if none."""
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        try:
            token = json.loads((directory / name).read_text(encoding="utf-8")).get(role)
        except FileNotFoundError:
            continue
        except (OSError, ValueError, AttributeError) as error:
            fix = "fetch the tokenizer again, or remove the file"
            raise DataError(f"it cannot be read: {error}", str(directory / name), fix) from None
        if token:
            return str(token.get("content", "") if isinstance(token, dict) else token)
    return ""

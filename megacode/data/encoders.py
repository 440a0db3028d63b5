"""Encoders: texts to token ids, in batches, by reference libraries and by a faster one that is checked against them.

The reference for a Hugging Face tokenizer is `tokenizers`, for a SentencePiece model `sentencepiece`. gigatoken gives
the same ids 10 to 100 times faster for the split patterns it knows. It is never trusted: `Race` compares both on
deliberately hard probes, on the first texts, and on pieces of every later batch.

Special tokens that occur in a text (`<|endoftext|>` in a tokenizer's documentation, `<s>` in HTML) are plain
text: no document can end itself or forge a control token. Megatron's tools turn them into the control token.
"""

from __future__ import annotations

import ctypes
import json
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Encoded = tuple[npt.NDArray[np.integer], npt.NDArray[np.int64]]

# Where tokenizers disagree: empty and white-space texts, contractions, combining marks, scripts without spaces, emoji
# of several code points, odd separators, control characters, runs of punctuation, literal special tokens.
PROBES = (
    "",
    " ",
    "  leading and trailing  ",
    "def f(x):\n\treturn  x\r\n\r\n        # 1234567890 3.14e-10\n\n\n",
    "I'm you're we'll they'd it's I'M YOU'RE 'tis 'quoted' ''",
    "caf\u00e9 cafe\u0301 \ufb01ne \u00bd \u00b2 \u0661\u0662\u0663 \u2167 \u01c5 \u00df \u0130",
    "\u4e2d\u6587\u5b57\u7b26 \u65e5\u672c\u8a9e\u306e\u30c6\u30b9\u30c8 \ud55c\uad6d\uc5b4",
    "\u0e44\u0e17\u0e22 \u0928\u092e\u0938\u094d\u0924\u0947",
    "\U0001f469\u200d\U0001f4bb \U0001f1e9\U0001f1ea \u2764\ufe0f \U0001d54f",
    "a\u00a0b\u2003c\u3000d\u200be\u2028f\u0085g\u000bh\u000ci",
    "\u0000\u0001\u007f \ufeff \ufffd \u2581 \u2581\u2581x",
    "<?php if ($a<=$b && !$c) { $d[\"x\"] .= '\\n'; } ?><!-- -->",
    "\t\t\t \t x \t\n \n  \n",
    "----====____****////\\\\\\\\....,,,,;;;;",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "<s>hi</s> <unk> <pad> <0x0A><0xFF> <|endoftext|><|im_start|> [INST] [/INST]",
)


class Encoder(Protocol):
    """Turns texts into token ids."""

    def encode(self, texts: Sequence[str]) -> Encoded:
        """Return the ids of all texts, one after another, and int64 [texts + 1] offsets of where each begins."""
        ...


class HuggingFaceEncoder:
    """The `tokenizers` library on a `tokenizer.json`; adds no special tokens."""

    def __init__(self, document: bytes) -> None:
        from tokenizers import Tokenizer

        self._tokenizer = Tokenizer.from_str(document.decode())
        self._tokenizer.encode_special_tokens = True  # special tokens in a text are text
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()

    def encode(self, texts: Sequence[str]) -> Encoded:
        """See `Encoder`."""
        # The fast variant leaves out character offsets, which nothing here needs.
        encoded = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return _flat([encoding.ids for encoding in encoded])

    def encode_each(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each text. It uses no threads, which a process that forks later must not have."""
        return [self._tokenizer.encode(text, add_special_tokens=False).ids for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of some ids, special tokens included."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=False))


class SentencePieceEncoder:
    """The `sentencepiece` library on a `.model`; control tokens are never made from text."""

    def __init__(self, model: bytes) -> None:
        from sentencepiece import SentencePieceProcessor

        self.processor = SentencePieceProcessor(model_proto=model)
        self.threads = -1  # all cores

    def encode(self, texts: Sequence[str]) -> Encoded:
        """See `Encoder`."""
        return _flat(self.processor.encode(list(texts), num_threads=self.threads))

    def encode_each(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each text, without threads."""
        return list(self.processor.encode(list(texts), num_threads=1))

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of some ids; control tokens have none."""
        return str(self.processor.decode([int(token) for token in ids]))


class GigatokenEncoder:
    """gigatoken on a `tokenizer.json` without its special tokens, so that it cannot find them in texts.

    It caches every word it has seen: 7 bytes of memory for each byte of random text. So it is created again (0.05 s)
    whenever the process has grown by 176 MiB.
    """

    growth_bytes = 176 << 20

    def __init__(self, document: dict[str, Any]) -> None:
        self._document = json.dumps(_without_specials(document))
        import psutil

        self._process = psutil.Process()
        self._tokenizer: Any = self._made()
        self._limit = self._process.memory_info().rss + self.growth_bytes

    def _made(self) -> Any:
        import gigatoken

        return gigatoken.Tokenizer.from_json(self._document)

    def _forget(self) -> None:
        """Create the tokenizer again; the C library keeps freed memory unless it is told to trim."""
        self._tokenizer = None
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
        self._tokenizer = self._made()
        # Memory that trimming cannot return raises the limit, or every batch would start over.
        self._limit = max(self._limit, self._process.memory_info().rss + self.growth_bytes // 2)

    def encode(self, texts: Sequence[str]) -> Encoded:
        """See `Encoder`."""
        layout = self._tokenizer.encode_batch(list(texts)).layout
        ids, offsets = np.asarray(layout.content.data), np.asarray(layout.offsets.data)
        # Reading the process's size costs microseconds, a batch milliseconds.
        if self._process.memory_info().rss > self._limit:
            self._forget()
        return ids, offsets.astype(np.int64, copy=False)


def _flat(ids: Sequence[Sequence[int]]) -> Encoded:
    offsets = np.zeros(len(ids) + 1, dtype=np.int64)
    np.cumsum([len(item) for item in ids], out=offsets[1:])
    # Filling one array avoids a list of all ids, which takes several times the memory.
    flat = np.empty(offsets[-1], dtype=np.uint32)
    for number, item in enumerate(ids):
        flat[offsets[number] : offsets[number + 1]] = item
    return flat, offsets


def _without_specials(document: dict[str, Any]) -> dict[str, Any]:
    # Added tokens that are not special (runs of spaces, say) are matched by the reference too, so they stay.
    added = [token for token in document.get("added_tokens") or [] if not token.get("special")]
    return {**document, "added_tokens": added}


def sentencepiece_document(model: bytes) -> dict[str, Any]:
    """Return the `tokenizer.json` of a SentencePiece BPE model with byte fallback.

    Control, unknown and byte pieces take no part in merges: sentencepiece never builds them from characters, while the
    merges that gigatoken recovers from the vocabulary would.

    Raises:
        ValueError: if the model is of another kind.
    """
    from gigatoken._load.sentencepiece import sentencepiece_to_tokenizer_json

    document: dict[str, Any] = json.loads(sentencepiece_to_tokenizer_json(model))
    processor = SentencePieceEncoder(model).processor

    kinds = (processor.is_control, processor.is_unknown, processor.is_byte)
    size = processor.get_piece_size()
    reserved = {processor.id_to_piece(token) for token in range(size) if any(kind(token) for kind in kinds)}
    bpe = document["model"]
    bpe["merges"] = [pair for pair in bpe["merges"] if reserved.isdisjoint((*pair, pair[0] + pair[1]))]
    return document


class Race:
    """A fast encoder beside the reference, compared repeatedly on the texts that are really encoded.

    Args:
        fast: the encoder to check.
        reference: the one that is correct by definition.
        sample_bytes: characters of the first texts that are compared.
        batch_bytes: characters compared in every later batch; 4 Ki of a 4 MiB batch cost 5 % of its time.
    """

    def __init__(
        self, fast: Encoder, reference: Encoder, sample_bytes: int = 1 << 18, batch_bytes: int = 1 << 12
    ) -> None:
        self.fast, self._reference = fast, reference
        self._sample_bytes, self._batch_bytes = sample_bytes, batch_bytes
        self._batches = 0

    def first_difference(self, texts: Sequence[str], added: Sequence[str] = ()) -> str | None:
        """Return a text on which the two differ, out of the probes, the added tokens, and the head of `texts`."""
        # No single text may use up the sample: an eighth each at most.
        probes = [*PROBES, *(probe for token in added for probe in probes_of(token))]
        return self._compare([*probes, *pieces(texts, self._sample_bytes, self._sample_bytes // 8)])

    def check(self, texts: Sequence[str]) -> str | None:
        """Return a piece of a batch on which the two differ; each batch is checked in different places."""
        self._batches += 1
        # A prime step visits different texts of each batch without a generator's state.
        start = self._batches * 7919 % max(1, len(texts))
        turned = [*texts[start : start + 64], *texts[: max(0, 64 - len(texts) + start)]]
        return self._compare(pieces(turned, self._batch_bytes, self._batch_bytes // 4, self._batches))

    def _compare(self, texts: Sequence[str]) -> str | None:
        ours, our_offsets = self.fast.encode(texts)
        theirs, their_offsets = self._reference.encode(texts)
        for number, text in enumerate(texts):
            # Compared text by text, so that the message can show the first one that differs.
            mine = ours[our_offsets[number] : our_offsets[number + 1]]
            if not np.array_equal(mine, theirs[their_offsets[number] : their_offsets[number + 1]]):
                return text
        return None


def probes_of(token: str) -> tuple[str, ...]:
    """Return texts that show how an added token is matched: in words, among white space, twice, in other case."""
    return (
        f"a{token} b{token}\n{token}",
        f"{token}{token} x  {token}  y",
        f"\t{token}\n {token}word.{token}",
        f"{token.upper()} a{token.lower()}b {token[:-1]} {token[1:]}",
    )


def pieces(texts: Sequence[str], total: int, longest: int, turn: int = 0) -> list[str]:
    """Return stretches of texts: `longest` characters of each at most, `total` in all; `turn` shifts the starts."""
    stretches: list[str] = []
    for text in texts:
        if total <= 0:
            break
        start = turn * 104729 % max(1, len(text) - longest + 1)
        stretches.append(text[start : start + min(longest, total)])
        total -= len(stretches[-1]) + 1
    return stretches

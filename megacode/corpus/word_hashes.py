"""Hashes of words and of runs of words, for many texts at a time: what signatures and decontamination share.

A word is a run of ASCII letters, digits, `_` and bytes above 127 of the text's UTF-8; ASCII letters are lower-cased.
A character from U+3000 to U+9FFF begins a word of its own, since Chinese and Japanese are written without spaces.

Words are hashed eight bytes at a time: each is padded with zeros to whole 64-bit lanes, and SplitMix64's finaliser
(a bijection) mixes lane after lane, so two words of up to eight bytes never collide. Longer ones than `_LANES` lanes
are rare and go to XXH3 one by one. A run of n words is Horner's polynomial of their hashes modulo 2^64, mixed again.

All hashes depend on the texts alone: not on the batch, the machine, or Python's own hash.

Source: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014 (the finaliser).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import xxhash

from megacode.data.hash_filter import polynomials

Hashes = npt.NDArray[np.uint64]

# Texts that are hashed together: larger batches fall out of the processor's cache and take several times as long.
BATCH_BYTES = 1 << 18
BATCH_TEXTS = 256
_LANES = 4
_MIX = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
_PAD = b"\0" * 8
_WORD = re.compile("[\u3000-\u9fff]?[0-9A-Za-z_\x80-\u2fff\ua000-\U0010ffff]+|[\u3000-\u9fff]")


def _word_bytes() -> bytes:
    kept = {*range(ord("a"), ord("z") + 1), *range(ord("0"), ord("9") + 1), ord("_"), *range(128, 256)}
    lower = bytes(range(256)).lower()
    return bytes(byte if byte in kept else 0 for byte in lower)


_TABLE = _word_bytes()
# _MASKS[k] keeps the first k bytes of a little-endian lane.
_MASKS = np.array([(1 << 8 * count) - 1 for count in range(9)], dtype=np.uint64)


@dataclass(frozen=True)
class Words:
    """The words of some texts, one text after another.

    Attributes:
        hashes: uint64 [words].
        firsts: the word at which each text begins, and the number of words, int64 [texts + 1].
    """

    hashes: Hashes
    firsts: npt.NDArray[np.int64]

    @property
    def counts(self) -> npt.NDArray[np.int64]:
        """Words of each text, int64 [texts]."""
        return np.diff(self.firsts)

    def ngrams(self, size: int) -> Hashes:
        """Return the hash of the run of `size` words at each word, uint64 [max(0, words - size + 1)].

        Runs across two texts are among them; `within` tells which.
        """
        return mixed(polynomials(self.hashes, size)) if len(self.hashes) >= size else np.zeros(0, np.uint64)

    def within(self, size: int) -> npt.NDArray[np.bool_]:
        """Return whether the run of `size` words at each word lies in one text, bool [max(0, words - size + 1)]."""
        inside = np.ones(max(0, len(self.hashes) - size + 1), dtype=bool)
        # The last size - 1 words in front of a text's end begin runs that reach into the next text.
        crossing = (self.firsts[1:-1, None] - np.arange(1, size)).ravel()
        inside[crossing[(crossing >= 0) & (crossing < len(inside))]] = False
        return inside

    def shingles(self, size: int) -> tuple[Hashes, npt.NDArray[np.uint64]]:
        """Return the runs of `size` words of each text, and where each text's begin, uint64 [texts + 1]."""
        counts = np.maximum(self.counts - size + 1, 0)
        return self.ngrams(size)[self.within(size)], np.concatenate([[0], np.cumsum(counts)]).astype(np.uint64)


def mixed(values: Hashes) -> Hashes:
    """Return SplitMix64's finaliser of each value; `values` is overwritten."""
    for shift, factor in zip((30, 27), _MIX, strict=True):
        values ^= values >> np.uint64(shift)
        values *= factor
    values ^= values >> np.uint64(31)
    return values


def encoded(texts: Sequence[str]) -> list[bytes]:
    """Return the UTF-8 of texts; lone surrogates, which JSON can hold, become three bytes each."""
    return [text.encode("utf-8", "surrogatepass") for text in texts]


def batches(texts: Sequence[str]) -> Iterator[slice]:
    """Yield stretches of texts that are best hashed together: about `BATCH_BYTES` and at most `BATCH_TEXTS`."""
    first, size = 0, 0
    for number, text in enumerate(texts):
        if number > first and (size + len(text) > BATCH_BYTES or number - first == BATCH_TEXTS):
            yield slice(first, number)
            first, size = number, 0
        size += len(text)
    if first < len(texts):
        yield slice(first, len(texts))


def hash_words(raws: Sequence[bytes]) -> Words:
    """Hash the words of texts in UTF-8."""
    # Words never cross a zero byte, so one stands between texts and one in front of the first.
    plain = b"\0".join([b"", *raws, _PAD]).translate(_TABLE)
    borders = np.cumsum([1, *(len(raw) + 1 for raw in raws)])
    firsts, hashes, characters, begin = np.zeros(len(borders), np.int64), [], 0, 0
    while begin < len(plain) - len(_PAD):
        # Long texts are cut between two words, so that memory does not grow with them.
        end = len(plain) - len(_PAD)
        if end - begin > 2 * BATCH_BYTES:
            cut = plain.find(b"\0", begin + BATCH_BYTES)
            end = min(end, cut if cut >= 0 else end)
        starts, part = _hash_piece(plain, begin, end)
        mine = slice(*np.searchsorted(borders, [begin + (begin > 0), end + 1]))
        firsts[mine] = characters + np.searchsorted(starts, borders[mine])
        hashes.append(part)
        characters, begin = characters + len(part), end
    firsts[-1] = characters
    return Words(np.concatenate([*hashes, np.zeros(0, np.uint64)]), firsts)


def _hash_piece(plain: bytes, begin: int, end: int) -> tuple[npt.NDArray[np.int64], Hashes]:
    """Return first byte and hash of the words between two zero bytes at `begin` and `end`."""
    data = np.frombuffer(plain, np.uint8)
    piece = data[begin : end + 1]
    letters = piece != 0
    edges = np.flatnonzero(letters[1:] != letters[:-1]) + 1 + begin
    starts, ends = edges[::2], edges[1::2]
    if not plain[begin:end].isascii():
        # These lead bytes begin three-byte characters from U+3000 to U+9FFF.
        wide = np.flatnonzero((piece[1:] >= 0xE3) & (piece[1:] <= 0xE9) & letters[:-1]) + 1 + begin
        starts, ends = (np.sort(np.concatenate([side, wide])) for side in (starts, ends))
    lengths = ends - starts
    # A view that begins at every byte: gathering from it reads unaligned lanes without copying the text.
    lanes = np.ndarray(len(plain) - 7, "<u8", data.data, strides=(1,))
    # Words hold no zero byte, so padding with zeros keeps different words different.
    hashes = mixed(lanes[starts] & _MASKS[np.minimum(lengths, 8)])
    for lane in range(1, _LANES):
        longer = np.flatnonzero(lengths > 8 * lane)
        if not len(longer):
            break
        more = lanes[starts[longer] + 8 * lane] & _MASKS[np.minimum(lengths[longer] - 8 * lane, 8)]
        hashes[longer] = mixed(hashes[longer] + more)
    for word in np.flatnonzero(lengths > 8 * _LANES).tolist():
        hashes[word] = xxhash.xxh3_64_intdigest(plain[starts[word] : ends[word]])
    return starts, hashes


def word_spans(text: str) -> list[tuple[int, int]]:
    """Return first character and end of each word of a text: for what is shown, one text at a time."""
    return [match.span() for match in _WORD.finditer(text)]

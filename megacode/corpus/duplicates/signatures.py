"""Signatures of documents: what finds exact and near-duplicates without the texts.

Two exact hashes: of the text's bytes, and of its bytes with ASCII letters in lower case and runs of white space as one
space. For near-duplicates MinHash: of all runs of `SHINGLE` words (see `word_hashes`), the smallest value under each
of `HASHES` hash functions. Two documents agree in one of these with probability J, the Jaccard similarity of their
sets of runs; so the share of equal values estimates J with a standard deviation of at most 0.03.

The values are cut to 16 bits when stored (b-bit MinHash), which raises the estimate by (1 - J) / 65,536. Documents that
agree in all `ROWS` values of one of `BANDS` bands are candidates: with 32 bands of 8, a pair of J = 0.8 is missed with
probability 0.002, one of J = 0.7 with 0.15.

A document of fewer words than a run has no such run: only the exact hashes are compared.

Source: Broder, "On the resemblance and containment of documents", 1997; Li and Koenig, "b-bit minwise hashing",
WWW 2010; Leskovec, Rajaraman, Ullman, Mining of Massive Datasets, section 3.4 (bands).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import rensa
import xxhash

from megacode.corpus.word_hashes import Hashes, batches, encoded, hash_words, mixed

SHINGLE = 5  # words
HASHES = 256
BANDS, ROWS = 32, 8
SEED = 1
_BASE = np.uint64(0x9E3779B97F4A7C15)
_SPACE = ord(" ")
_NORMAL = bytes(_SPACE if byte in b"\t\n\v\f\r" else byte for byte in bytes(range(256)).lower())


def method(shingle: int = SHINGLE) -> dict[str, int]:
    """Return what signatures depend on besides the text: those of another method cannot be compared."""
    version = int(rensa.RMinHash.ALGORITHM_VERSION)
    numbers = {"shingle_words": shingle, "hashes": HASHES, "bands": BANDS, "seed": SEED}
    return {"format": 1, **numbers, "rensa_algorithm": version}


@dataclass(frozen=True)
class Signatures:
    """The signatures of n documents.

    Attributes:
        exact: XXH3-128 of the text in UTF-8, high half first, uint64 [n, 2].
        normalised: the same of the lower-cased text with single spaces, uint64 [n, 2].
        bands: one key a band, 0 where a document is too short, uint64 [n, 32].
        hashes: the low 16 bits of each MinHash value, uint16 [n, 256].
        words: of the document, int32 [n].
    """

    exact: Hashes
    normalised: Hashes
    bands: Hashes
    hashes: npt.NDArray[np.uint16]
    words: npt.NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.words)


def signatures(texts: Sequence[str], shingle: int = SHINGLE) -> Signatures:
    """Return the signatures of some documents; they do not depend on which documents are together in a call."""
    parts = [_of_batch(texts[some], shingle) for some in batches(texts)] or [_of_batch([], shingle)]
    names = Signatures.__dataclass_fields__
    return Signatures(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


def _of_batch(texts: Sequence[str], shingle: int) -> Signatures:
    raws = encoded(texts)
    words = hash_words(raws)
    shingles, offsets = words.shingles(shingle)
    digests = rensa.RMinHash.digest_matrix_from_flat_token_hashes(shingles, offsets, HASHES, SEED)
    values = np.array(digests.to_rows(), dtype=np.uint32).reshape(len(texts), HASHES)
    # Without a shingle all values are the largest one: all short documents would be equal.
    bands = np.where((words.counts >= shingle)[:, None], _band_keys(values), np.uint64(0))
    return Signatures(
        exact=_xxh3(raws),
        normalised=_xxh3(_normalised(raws)),
        bands=bands,
        hashes=values.astype(np.uint16),
        words=words.counts.astype(np.int32),
    )


def _band_keys(values: npt.NDArray[np.uint32]) -> Hashes:
    """Return the hash of each band's values, uint64 [documents, 32]."""
    rows = values.astype(np.uint64).reshape(len(values), BANDS, ROWS)
    keys = rows[:, :, 0].copy()
    for row in range(1, ROWS):
        keys *= _BASE
        keys += rows[:, :, row]
    return mixed(keys)


def _xxh3(raws: Sequence[bytes]) -> Hashes:
    # High half first, as XXH3's canonical form has it: records sort by it alike on any machine.
    digests = b"".join(xxhash.xxh3_128_digest(raw) for raw in raws)
    return np.frombuffer(digests, ">u8").astype(np.uint64).reshape(len(raws), 2)


def _normalised(raws: Sequence[bytes]) -> list[bytes]:
    """Return texts with ASCII letters in lower case, and single spaces for white space, none at the ends."""
    plain = np.frombuffer(b"\0".join([*raws, b""]).translate(_NORMAL), np.uint8)
    kept = np.ones(len(plain), dtype=bool)
    spaces = plain == _SPACE
    np.logical_not(spaces[1:] & spaces[:-1], out=kept[1:])
    # Cut by the lengths that are left: a zero byte may stand inside a text.
    single, results, begin, place = plain[kept].tobytes(), [], 0, 0
    for raw in raws:
        length = int(np.count_nonzero(kept[begin : begin + len(raw)]))
        results.append(single[place : place + length].strip(b" "))
        begin, place = begin + len(raw) + 1, place + length + 1
    return results

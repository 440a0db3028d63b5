"""Whether two candidates are similar: by the estimate from their signatures, and exactly where that is not sure.

An estimate from 256 values has a standard deviation of at most 0.03. So a pair counts as similar where the estimate
lies `MARGIN` or more above the threshold, and as not similar where it lies as far below. Between the two the texts are
read again and their sets of runs compared.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from megacode.corpus.duplicates.clusters import unite
from megacode.corpus.duplicates.collection import Collection, Ranking, Ranks
from megacode.corpus.duplicates.signatures import HASHES
from megacode.corpus.word_hashes import encoded, hash_words

MARGIN = 0.05
# Pairs whose signatures are in memory together: 16 MB, and up to 128 MB of mapped pages.
_PAIRS = 1 << 14
_TEXTS = 256

Numbers = npt.NDArray[np.int64]
TextsOf = Callable[[Numbers], Sequence[str]]


def estimates(collection: Collection, first: Numbers, second: Numbers) -> npt.NDArray[np.float32]:
    """Return the estimated Jaccard similarity of pairs of documents, by number, float32 [pairs]."""
    shares = np.empty(len(first), np.float32)
    for begin in range(0, len(first), _PAIRS):
        some = slice(begin, begin + _PAIRS)
        # Each signature is read once, in the order of the files.
        numbers, places = np.unique(np.concatenate([first[some], second[some]]), return_inverse=True)
        rows, ends = collection.hashes(numbers), places.reshape(2, -1)
        shares[some] = (rows[ends[0]] == rows[ends[1]]).sum(axis=1) / np.float32(HASHES)
    return shares


class CandidateCheck:
    """Compares candidates by their estimates, and collects what it found.

    Args:
        collection: the documents.
        ranking: their ranks.
        threshold: Jaccard similarity from which two documents are duplicates.

    Attributes:
        similar: pairs of ranks that are duplicates, [2, pairs] each.
        unsure: pairs whose texts must be compared, first rank in the high half, uint64 [pairs] each.
        compared: number of pairs.
    """

    def __init__(self, collection: Collection, ranking: Ranking, threshold: float) -> None:
        self._collection, self._ranking, self._threshold = collection, ranking, threshold
        self.similar: list[Ranks] = []
        self.unsure: list[npt.NDArray[np.uint64]] = []
        self.compared = 0

    def __call__(self, first: Ranks, second: Ranks) -> npt.NDArray[np.bool_]:
        """Compare pairs of ranks; return which are duplicates for sure, bool [pairs]."""
        numbers = self._ranking.number_of
        shares = estimates(self._collection, numbers[first].astype(np.int64), numbers[second].astype(np.int64))
        sure = shares >= self._threshold + MARGIN
        near = ~sure & (shares > self._threshold - MARGIN)
        pairs = np.stack([first, second])
        self.similar.append(pairs[:, sure])
        self.unsure.append(packed(pairs[:, near]))
        self.compared += len(first)
        return sure


def packed(pairs: Ranks) -> npt.NDArray[np.uint64]:
    """Return pairs of ranks, [2, pairs], as one number each, uint64 [pairs]."""
    return pairs[0].astype(np.uint64) << np.uint64(32) | pairs[1]


def unpacked(pairs: npt.NDArray[np.uint64]) -> Ranks:
    """Return the two ranks of packed pairs, [2, pairs]."""
    return np.stack([pairs >> np.uint64(32), pairs & np.uint64(0xFFFFFFFF)]).astype(np.uint32)


def exact_similarities(texts: Sequence[str], pairs: npt.NDArray[np.int64], shingle: int) -> npt.NDArray[np.float64]:
    """Return the Jaccard similarity of the sets of runs of words, of pairs of texts, [2, pairs], float64 [pairs]."""
    return _similarities([_runs_of(text, shingle) for text in texts], pairs)


def _similarities(sets: Sequence[npt.NDArray[np.uint32]], pairs: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    results = np.zeros(pairs.shape[1])
    for place, (first, second) in enumerate(pairs.T.tolist()):
        common = len(np.intersect1d(sets[first], sets[second], assume_unique=True))
        union = len(sets[first]) + len(sets[second]) - common
        results[place] = common / union if union else 0.0
    return results


def _runs_of(text: str, shingle: int) -> npt.NDArray[np.uint32]:
    """Return the set of a text's runs. 32 bits do: of 1,000 runs of two texts 0.0002 would be equal by chance."""
    return np.unique(hash_words(encoded([text])).ngrams(shingle).astype(np.uint32))


def settle(
    pairs: Ranks, root: Ranks, collection: Collection, ranking: Ranking, threshold: float, texts_of: TextsOf
) -> int:
    """Compare the texts of unsure pairs, and join those that are duplicates.

    Args:
        pairs: of ranks, [2, pairs]; their texts are in memory together, as sets of 32-bit hashes.
        root: the clusters so far; changed. Pairs that are in one cluster already are not compared.
        collection, ranking: the documents.
        threshold: Jaccard similarity from which two documents are duplicates.
        texts_of: reads documents by number.

    Returns:
        How many pairs were compared.
    """
    # By now most pairs of a large cluster are joined through others; reading texts is the dearest step.
    pairs = pairs[:, root[pairs[0]] != root[pairs[1]]]
    numbers, places = np.unique(ranking.number_of[pairs], return_inverse=True)
    sets = []
    # Each document is read once, in the order of the files: neighbours often lie in one compressed frame.
    for begin in range(0, len(numbers), _TEXTS):
        some = numbers[begin : begin + _TEXTS].astype(np.int64)
        sets += [_runs_of(text, collection.shingle) for text in texts_of(some)]
    shares = _similarities(sets, places.reshape(2, -1))
    unite(root, *pairs[:, shares >= threshold])
    return pairs.shape[1]

"""How many samples each source gives to a phase, and in which order.

*How many.* In a phase of n samples with weights w, the share of source c is w_c n / sum(w), which is rarely a whole
number. The carry of a source is its deficit at the start of the phase: real-valued targets so far minus samples so far.
The target of the phase is then w_c n / sum(w) + carry_c. Each source of positive weight gets the floor of its target.
The remaining samples go one by one to the sources with the largest deficit (largest remainder; ties by name). A source
never gets less than 0 or more than its limit. Laws:
  - counts sum to n, carries sum to 0, and a source of weight 0 gets nothing and keeps its carry;
  - the carries of the active sources differ by at most 1 (unless 0 or a limit bound one of them). So while every source
    is active, the total of a source over all phases is within 1 of its real-valued target. While some are inactive,
    their carries sum to some -s, and those of the k active ones to s: each is then within 1 + |s|/k of its target;
  - nothing depends on a later phase, or on sources that have not been drawn.
A phase that ends early is divided as if it were full length; the carry at the cut follows from what was actually read.
Weights are exact fractions of the decimals that the user wrote, so all machines round alike.

*In which order.* A *quota tree* keeps the shares of a phase at every prefix. It is a binary tree whose leaves are the
sources. A node with M samples, A of them on the left, sends L(i) = (2iA + M) div 2M of its first i samples to the left:
iA/M, rounded. Sample i goes left if and only if L(i+1) > L(i), where it becomes sample L(i); else it goes right, where
it becomes sample i - L(i). So random access costs one division per level, and so does its inverse. The counts of all
sources in a prefix cost one division per source.

Error: a child's prefix count is within 1/2 of its share f of its parent's, so deviations obey d <= 1/2 + f d_parent.
With f <= 2/3 everywhere, d <= 1.5. A source heavier than 1/3 of its node is a leaf of its own; if it is heavier than
2/3, its sibling is light and only this leaf has f near 1: d <= 1/2 + 1.5 = 2. So every prefix of a phase holds every
source within 2 samples of its share. (A merge of arithmetic progressions, one a source, drifts by 28.)

Source: largest remainder: Hamilton's method, Balinski and Young, "Fair Representation" (1982), chapter 2.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

_LIMB_BITS = 20
_LARGEST = 1 << (2 * _LIMB_BITS)
_LEAF = -1


def exact(weight: float) -> Fraction:
    """Return a weight as the decimal fraction that was written, 0.1 as 1/10."""
    # str gives the shortest decimal that reads back as this float, which is what the user wrote.
    return Fraction(str(weight))


def apportion(
    weights: Mapping[str, Fraction],
    samples: int,
    carry: Mapping[str, Fraction],
    limits: Mapping[str, int] | None = None,
) -> tuple[dict[str, int], dict[str, Fraction]]:
    """Divide the samples of a phase among its sources.

    Args:
        weights: relative weight of each source, none negative, one positive.
        samples: samples of the phase.
        carry: deficit of each source from earlier phases, in samples; absent: 0.
        limits: the most samples that a source may give; absent: no limit. They must allow `samples` in total.

    Returns:
        The samples of each source of positive weight, sorted by name; and the carry after the phase.
    """
    # 1. Floors of the targets, inside 0 and the limits.
    target, limits = _targets(weights, samples, carry), limits or {}
    active = list(target)
    room = {name: limits.get(name, samples) for name in active}
    assert sum(room.values()) >= samples, (room, samples)
    counts = {name: min(max(0, target[name].__floor__()), room[name]) for name in active}
    # 2. The largest remainders get the rest. Where a carry is negative, floors at 0 may exceed n: then take back.
    missing = samples - sum(counts.values())
    while missing:
        step = 1 if missing > 0 else -1
        free = [name for name in active if (counts[name] < room[name] if step > 0 else counts[name] > 0)]
        chosen = max(free, key=lambda name: step * (target[name] - counts[name]))
        counts[chosen] += step
        missing -= step
    return counts, owed(weights, samples, carry, counts)


def owed(
    weights: Mapping[str, Fraction], samples: int, carry: Mapping[str, Fraction], counts: Mapping[str, int]
) -> dict[str, Fraction]:
    """Return the carry after some samples of a phase: target minus actual samples of each source.

    Args:
        weights: relative weight of each source.
        samples: read in the phase so far.
        carry: at the start of the phase.
        counts: samples given by each source of positive weight.
    """
    target = _targets(weights, samples, carry)
    return {**carry, **{name: target[name] - counts[name] for name in target}}


def _targets(weights: Mapping[str, Fraction], samples: int, carry: Mapping[str, Fraction]) -> dict[str, Fraction]:
    active = sorted(name for name, weight in weights.items() if weight > 0)
    total = sum(weights[name] for name in active)
    return {name: weights[name] * samples / total + carry.get(name, 0) for name in active}


class QuotaTree:
    """The order of a phase: which source gives sample i, and how many samples of each source come before it.

    Its shape depends only on counts and names.

    Args:
        counts: samples of each source; those with none are left out.

    Attributes:
        names: the sources, sorted by name; `many` returns indices into it.
        samples: number of samples, at most 2**40.
    """

    def __init__(self, counts: Mapping[str, int]) -> None:
        items = sorted(
            ((count, name) for name, count in counts.items() if count > 0), key=lambda item: (-item[0], item[1])
        )
        self.names = tuple(sorted(name for _, name in items))
        self.samples = sum(count for count, _ in items)
        assert 0 < self.samples <= _LARGEST, counts
        self._size: list[int] = []  # samples of each node; the root is node 0
        self._on_left: list[int] = []  # of them on the left
        self._left: list[int] = []  # left child, or _LEAF; the right child is `_right`
        self._right: list[int] = []
        self._parent: list[tuple[int, bool]] = []  # parent, and whether this is its left child
        self._source: list[int] = []  # of a leaf: index into `names`
        self._leaf: dict[str, int] = {}
        self._build(items)

    def _build(self, items: list[tuple[int, str]]) -> None:
        # A loop, not recursion: hundreds of equal sources are deep, and the order of nodes is fixed.
        waiting = [(items, (_LEAF, False))]
        while waiting:
            group, parent = waiting.pop()
            node = len(self._size)
            self._parent.append(parent)
            if parent[0] != _LEAF:
                (self._left if parent[1] else self._right)[parent[0]] = node
            self._size.append(sum(count for count, _ in group))
            left, right = _split(group)
            self._on_left.append(sum(count for count, _ in left))
            self._left.append(_LEAF)
            self._right.append(_LEAF)
            self._source.append(self.names.index(group[0][1]) if not right else _LEAF)
            if right:
                waiting += [(left, (node, True)), (right, (node, False))]
            else:
                self._leaf[group[0][1]] = node

    def _sent_left(self, node: int, i: int) -> int:
        size = self._size[node]
        return (2 * i * self._on_left[node] + size) // (2 * size)

    def at(self, i: int) -> tuple[str, int]:
        """Return the source of sample i, and its index among that source's samples of this phase."""
        assert 0 <= i < self.samples, (i, self.samples)
        node = 0
        while self._left[node] != _LEAF:
            before = self._sent_left(node, i)
            if self._sent_left(node, i + 1) > before:
                node, i = self._left[node], before
            else:
                node, i = self._right[node], i - before
        return self.names[self._source[node]], i

    def position(self, source: str, index: int) -> int:
        """Return the sample at `index` of a source: the inverse of `at`."""
        node, i = self._leaf[source], index
        assert 0 <= index < self._size[node], (source, index)
        while node:
            node, was_left = self._parent[node]
            size, on_left = self._size[node], self._on_left[node]
            if was_left:
                # The largest i with L(i) = index: invert the rounding exactly, in integers.
                i = -(-(2 * size * i + size) // (2 * on_left)) - 1
            else:
                i = (2 * size * i + size) // (2 * (size - on_left))
        return i

    def counts(self, i: int) -> dict[str, int]:
        """Return how many of the first i samples each source gives."""
        assert 0 <= i <= self.samples, (i, self.samples)
        result = dict.fromkeys(self.names, 0)
        reached = [i] * len(self._size)
        for node, count in enumerate(reached):  # parents come before their children
            if self._left[node] == _LEAF:
                result[self.names[self._source[node]]] = count
            else:
                before = self._sent_left(node, count)
                reached[self._left[node]], reached[self._right[node]] = before, count - before
        return result

    def many(self, samples: NDArray[np.int64]) -> tuple[NDArray[np.int16], NDArray[np.int64]]:
        """Return `at` of many samples.

        Args:
            samples: int64 [k], each in 0..samples-1.

        Returns:
            The source of each sample, int16 [k], as index into `names`; and its index in that source, int64 [k].
        """
        sources = np.empty(len(samples), dtype=np.int16)
        numbers = np.empty(len(samples), dtype=np.int64)
        for source, places, indices in self.by_source(samples):
            sources[places] = self.names.index(source)
            numbers[places] = indices
        return sources, numbers

    def by_source(self, samples: NDArray[np.int64]) -> Iterator[tuple[str, NDArray[np.intp], NDArray[np.int64]]]:
        """Group samples by source.

        Args:
            samples: int64 [k], each in 0..samples-1.

        Yields:
            A source; positions in `samples` of those it gives, [m]; and their indices in that source, int64 [m].
        """
        # The whole array walks down the tree at once: numpy's fixed cost is paid per node, not per sample.
        waiting = [(0, samples, np.arange(len(samples)))]
        while waiting:
            node, indices, places = waiting.pop()
            if self._left[node] == _LEAF:
                yield self.names[self._source[node]], places, indices
            elif len(indices):
                before, goes_left = _quotas(indices, self._on_left[node], self._size[node])
                left, right = np.flatnonzero(goes_left), np.flatnonzero(~goes_left)
                waiting.append((self._left[node], before[left], places[left]))
                waiting.append((self._right[node], (indices - before)[right], places[right]))


def _split(items: list[tuple[int, str]]) -> tuple[list[tuple[int, str]], list[tuple[int, str]]]:
    """Split sources, heaviest first, so that both sides hold at most 2/3, or the heaviest is alone on the left."""
    total = sum(count for count, _ in items)
    if 3 * items[0][0] >= total:
        return items[:1], items[1:]
    left: list[tuple[int, str]] = []
    right: list[tuple[int, str]] = []
    lead = 0  # left minus right; at most the heaviest source, which is below a third of the total
    for item in items:
        side, sign = (left, 1) if lead <= 0 else (right, -1)
        side.append(item)
        # Greedy, to the lighter side: the difference stays below the heaviest item.
        lead += sign * item[0]
    return left, right


def _quotas(i: NDArray[np.int64], on_left: int, size: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return L(i) and whether sample i goes left, for a node of `size` samples, in int64 without overflow."""
    # Up to 2**31 samples the products fit int64 as they are; that is nearly every run.
    if 2 * size * size + size < 1 << 63:
        doubled = i * (2 * on_left) + size
        before = doubled // (2 * size)
        return before, doubled - before * (2 * size) >= 2 * (size - on_left)
    high, low = i >> _LIMB_BITS, i & ((1 << _LIMB_BITS) - 1)  # long division with limbs of 20 bits
    whole, rest = np.divmod(high * on_left, size)
    more, rest = np.divmod((rest << _LIMB_BITS) + low * on_left, size)
    up = 2 * rest >= size
    before = (whole << _LIMB_BITS) + more + up
    return before, 2 * rest + size - up * (2 * size) >= 2 * (size - on_left)

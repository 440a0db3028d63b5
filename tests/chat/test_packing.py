"""Packing: every conversation once, whole, in one window, wherever and however often it is done."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megacode.chat.packing import in_order, pack

QUICK = settings(max_examples=200, deadline=None)


@st.composite
def jobs(draw: st.DrawFn) -> tuple[list[int], int]:
    # Sizes on both sides of a word of the two levels of bits.
    size = draw(st.sampled_from([2, 3, 7, 64, 1023, 1024, 1025, 5000]))
    lengths = draw(st.lists(st.integers(1, size) | st.integers(1, min(size, 9)), min_size=1, max_size=60))
    return lengths, size


def windows(lengths: list[int], size: int, seed: int = 0) -> list[list[int]]:
    packing = pack(np.array(lengths, np.int32), size, seed)
    return [packing.order[first:end].tolist() for first, end in pairwise([0, *packing.ends.tolist()])]


@QUICK
@given(job=jobs())
def test_every_conversation_is_once_and_whole_in_one_window(job):
    lengths, size = job
    found = windows(lengths, size)
    assert sorted(number for window in found for number in window) == list(range(len(lengths)))
    assert all(window and sum(lengths[number] for number in window) <= size for window in found)


@QUICK
@given(job=jobs())
def test_it_is_best_fit_decreasing(job):
    lengths, size = job
    # The textbook's way: look at all windows for each conversation.
    rooms: list[int] = []
    held: list[Counter[int]] = []
    for length in sorted(lengths, reverse=True):
        fitting = [room for room in rooms if room >= length]
        if not fitting:
            rooms.append(size)
            held.append(Counter())
        place = rooms.index(min(fitting, default=size))
        rooms[place] -= length
        held[place][length] += 1
    found = windows(lengths, size)
    # Which of several windows with the same room is taken does not matter to their number and rooms.
    assert len(found) == len(rooms)
    assert sorted(size - sum(lengths[number] for number in window) for window in found) == sorted(rooms)


@QUICK
@given(job=jobs(), seed=st.integers(0, 99))
def test_lengths_and_seed_alone_decide(job, seed):
    lengths, size = job
    assert windows(lengths, size, seed) == windows(list(lengths), size, seed)
    assert sorted(map(tuple, windows(lengths, size, seed))) == sorted(map(tuple, windows(lengths, size, seed + 1)))


def test_windows_are_shuffled_so_that_the_short_conversations_are_not_the_last():
    lengths = np.random.default_rng(0).integers(1, 100, 4000)
    packing = pack(lengths, 100, 7)
    firsts = lengths[packing.order[np.concatenate(([0], packing.ends[:-1]))]]
    half = packing.windows // 2
    assert firsts[:half].mean() == pytest.approx(firsts[half:].mean(), rel=0.1)
    assert [len(pack(lengths[:0], 8, 0).order), pack(lengths[:0], 8, 0).windows] == [0, 0]


def test_an_order_without_a_seed_is_the_inputs():
    assert in_order(5, None).tolist() == [0, 1, 2, 3, 4]
    assert sorted(in_order(500, 3).tolist()) == list(range(500)) != in_order(500, 3).tolist()

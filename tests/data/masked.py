"""Data sets with loss masks, made by hand: packed windows of conversations, and answers in running text."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from megacode.data import manifest as manifests
from megacode.data.indexed import IndexedDatasetWriter


def write_masked(prefix: Path, tokens: list[int], lengths: list[int], counted: list[bool]) -> str:
    """Write a data set with a loss mask and return its prefix."""
    with IndexedDatasetWriter(prefix, np.uint16, with_mask=True) as writer:
        writer.add(np.array(tokens), np.array(lengths), None, None, np.array(counted))
    manifests.write(prefix, manifests.describe(prefix))
    return str(prefix)


def write_packed(
    prefix: Path,
    windows: list[list[int]],
    length: int,
    seed: int = 0,
    share: float = 0.5,
    *,
    answers: bool = True,
    vocabulary: int = 1000,
) -> str:
    """Write packed windows of conversations of random tokens and return the prefix.

    Args:
        prefix: of the data set.
        windows: lengths of the conversations in each; what is left of the window is padding, in a document of its own.
        length: of a window.
        seed: of tokens and answers.
        share: of the tokens that are answers; the first token of a conversation never is.
        answers: False: all tokens but padding and the first ones count.
        vocabulary: tokens are below it; padding is 0.
    """
    random = np.random.default_rng(seed)
    tokens, lengths, counted, padding = [], [], [], 0
    for conversations in windows:
        left = length - sum(conversations)
        assert left >= 0
        for size in conversations:
            tokens += random.integers(1, vocabulary, size).tolist()
            counted += [False, *(random.random(size - 1) < (share if answers else 1.0)).tolist()]
        tokens, counted = tokens + [0] * left, counted + [False] * left
        lengths += [*conversations, *([left] if left else [])]
        padding += left
    with IndexedDatasetWriter(prefix, np.uint16, with_mask=True) as writer:
        writer.add(np.array(tokens), np.array(lengths), None, None, np.array(counted))
    packed = {"seq_length": length, "padding": padding}
    manifests.write(prefix, manifests.describe(prefix, packed=packed))
    return str(prefix)


def bits(prefix: str, tokens: int) -> list[int]:
    """Read a mask bit by bit."""
    raw = Path(f"{prefix}.mask").read_bytes()
    return [raw[i // 8] >> i % 8 & 1 for i in range(tokens)]

#!/usr/bin/env python3
"""Pack conversations into windows: time, memory, and padding beside filling windows as conversations come.

    tools/bench/packing.py [--conversations 1000000] [--sizes 2048 4096 8192 32768] [--seed 0] [--json]

Lengths are drawn from a log-normal distribution around 500 tokens, as in public instruction data, and cut at the
window. `bound` is the fewest windows that any packing can have: by tokens, or by conversations too long to share one
(Martello and Toth, Knapsack Problems, 1990, section 8.3.2, bound L2).
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from typing import Any

import numpy as np
import numpy.typing as npt

from megacode.chat.packing import pack

Lengths = npt.NDArray[np.int64]


def drawn(count: int, size: int, seed: int) -> Lengths:
    """Return lengths of conversations, int64 [count]."""
    lengths = np.random.default_rng(seed).lognormal(np.log(500), 0.9, count)
    return np.clip(lengths, 8, size).astype(np.int64)


def as_they_come(lengths: Lengths, size: int) -> int:
    """Return the number of windows where a conversation that does not fit begins the next one."""
    windows, room = 0, 0
    for length in lengths.tolist():
        if length > room:
            windows, room = windows + 1, size
        room -= length
    return windows


def lower_bound(lengths: Lengths, size: int) -> int:
    """Return a number of windows that no packing can be below."""
    counts = np.bincount(lengths, minlength=size + 1)
    tokens = counts * np.arange(size + 1)
    number, sums = np.concatenate(([0], np.cumsum(counts))), np.concatenate(([0], np.cumsum(tokens)))
    best = -(-int(sums[-1]) // size)
    for least in range(1, size // 2 + 1):
        # Longer than size - least: alone. Longer than half: one a window. The rest may fill what those leave.
        alone = int(number[-1] - number[size - least + 1])
        halves = int(number[size - least + 1] - number[size // 2 + 1])
        room = halves * size - int(sums[size - least + 1] - sums[size // 2 + 1])
        small = int(sums[size // 2 + 1] - sums[least])
        best = max(best, alone + halves + max(0, -(-(small - room) // size)))
    return best


def measured(count: int, size: int, seed: int) -> dict[str, Any]:
    """Return the figures of one size of window."""
    lengths = drawn(count, size, seed)
    start = time.process_time()
    windows = pack(lengths, size, seed).windows
    seconds = time.process_time() - start
    tokens = int(lengths.sum())
    share = {
        "padding": 1 - tokens / (windows * size),
        "padding_as_they_come": 1 - tokens / (as_they_come(lengths, size) * size),
        "above_bound": windows / lower_bound(lengths, size) - 1,
    }
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"size": size, "windows": windows, **share, "cpu_seconds": seconds, "peak_mib": peak}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--conversations", type=int, default=1_000_000)
    parser.add_argument("--sizes", type=int, nargs="+", default=[2048, 4096, 8192, 32768])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    rows = [measured(given.conversations, size, given.seed) for size in given.sizes]
    if given.json:
        json.dump(rows, sys.stdout)
        return
    print("window   windows  padding  as they come  above bound  CPU s  peak MiB")
    for row in rows:
        print(
            f"{row['size']:6,} {row['windows']:9,} {row['padding']:7.3%} {row['padding_as_they_come']:12.2%} "
            f"{row['above_bound']:12.3%} {row['cpu_seconds']:6.1f} {row['peak_mib']:9,.0f}"
        )


if __name__ == "__main__":
    main()

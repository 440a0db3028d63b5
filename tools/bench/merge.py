#!/usr/bin/env python3
"""Merging: tools/merge_datasets.py beside Megatron-core's own way, on data sets made here.

    tools/bench/merge.py [--documents 8M] [--tokens 250] [--shards 8]

Contenders, each a fresh process that pays for its imports, in turn and in the same run:

    megacode             tools/merge_datasets.py, in order and shuffled; it hashes what it reads and writes, checks it
                         against manifests, and flushes it to disk
    add_index            IndexedDatasetBuilder.add_index of each shard, then finalize (tools/merge_datasets.py of
                         Megatron-LM): no check; the files are flushed after it, for a fair clock

"peak" is the process's largest resident memory (VmHWM). All results but the shuffled are compared byte for byte.
"""

from __future__ import annotations

import argparse
import filecmp
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from megacode.base.units import parse_count
from megacode.data import manifest as manifests
from megacode.data.indexed import IndexedDatasetWriter

TOOLS = Path(__file__).parents[1]
BATCH = 100_000
# Not from getrusage, whose peak includes what the parent had when it started the process.
SHOW_PEAK = 'print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))'
OURS = f"""
import sys
sys.path.insert(0, {str(TOOLS)!r})
from merge_datasets import main
assert main(sys.argv[1:]) == 0
{SHOW_PEAK}
"""
THEIRS = f"""
import os, sys
import numpy as np
from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder
out, *inputs = sys.argv[1:]
builder = IndexedDatasetBuilder(out + ".bin", dtype=np.uint16)
for prefix in inputs:
    builder.add_index(prefix)
builder.finalize(out + ".idx")
for end in (".bin", ".idx"):
    os.fsync(os.open(out + end, os.O_RDONLY))
{SHOW_PEAK}
"""


def write_shard(prefix: Path, documents: int, tokens: int, seed: int) -> None:
    """Write a data set of random tokens, geometric lengths of mean `tokens`, with its manifest."""
    random = np.random.default_rng(seed)
    with IndexedDatasetWriter(prefix, np.uint16) as writer:
        for first in range(0, documents, BATCH):
            lengths = random.geometric(1 / tokens, min(BATCH, documents - first))
            writer.add(random.integers(0, 50_000, lengths.sum(), dtype=np.uint16), lengths)
    manifests.write(prefix, manifests.describe(prefix, writer.hashes, tokenizer={"hash": "bench"}))


def measure(label: str, size: int, program: str, *arguments: object) -> float:
    """Run a program in a process of its own, print what it took, and return its peak in MiB."""
    # Or what the contender before left unwritten would be flushed in this one's time.
    os.sync()
    start = time.monotonic()
    command = [sys.executable, "-W", "ignore", "-c", program, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    # The disk is most of it, so it varies: 321 to 382 and 86 to 181 MB/s in one run.
    seconds = time.monotonic() - start
    if done.returncode:
        raise SystemExit(f"{label}\n{done.stderr}")
    peak = int(done.stdout.split()[-1]) / 1024
    print(f"  {label:28s} {seconds:7.2f} s {size / seconds / 1e6:7.0f} MB/s   peak {peak:6.0f} MiB", flush=True)
    return peak


def main() -> None:
    """Run the benchmark."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--documents", type=parse_count, default="8M", help="in all shards together")
    arguments.add_argument("--tokens", type=int, default=250, help="of a document, in the mean")
    arguments.add_argument("--shards", type=int, default=8)
    arguments.add_argument("--directory", help="where the data sets lie meanwhile (default: the temporary directory)")
    args = arguments.parse_args()
    with tempfile.TemporaryDirectory(dir=args.directory) as name:
        directory = Path(name)
        shards = [directory / f"set{number:03d}" for number in range(args.shards)]
        for seed, prefix in enumerate(shards):
            write_shard(prefix, args.documents // args.shards, args.tokens, seed)
        size = sum(Path(f"{prefix}.{end}").stat().st_size for prefix in shards for end in ("bin", "idx"))
        print(f"{args.documents:,} documents in {args.shards} shards, {size / 1e9:.2f} GB")
        flags = ["--input", directory / "set???", "--output-prefix"]
        # Twice: the first to come may read shards that are not in the page cache.
        for turn in (1, 2):
            measure(f"add_index, round {turn}", size, THEIRS, directory / "theirs", *shards)
            measure(f"megacode, round {turn}", size, OURS, *flags, directory / "ours")
        for end in ("bin", "idx"):
            assert filecmp.cmp(directory / f"ours.{end}", directory / f"theirs.{end}", shallow=False)
        print("  the same bytes")
        # By itself, since Megatron-core's way cannot shuffle. It takes about four times as long.
        measure("megacode, shuffled", size, OURS, *flags, directory / "mixed", "--shuffle-seed", 1)


if __name__ == "__main__":
    main()

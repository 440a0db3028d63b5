#!/usr/bin/env python3
"""Batch assembly and start-up: megacode's loader beside megatron-core's GPTDataset with torch's DataLoader.

    tools/bench/loader.py [--micro-batches 300] [--rounds 5] [--startup-tokens 10e9]

Batch assembly: micro-batches of 4 x 8,192 tokens from two sources of 32M tokens in documents of about 500, in the page
cache; CPU time of the main process alone, the contenders taking turns. Megatron's attention mask is off (on, it takes
268 MB a micro-batch). Start-up: a fresh process opens 8 sources, builds the schedule and returns the first batch; the
`.bin` files are sparse and the sources share one `.idx` of 20M documents, so that 400 MB of disk are used, and removed.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from megacode.config.config_file import validate
from megacode.config.run import RunConfig
from megacode.data.indexed import HEADER, MAGIC, IndexedDatasetWriter

ROWS, LENGTH, MEAN_DOCUMENT, EOD = 4, 8192, 500, 0
STARTUP_SOURCES = 8
ONLY_TORCH = """
import time, torch, psutil
private = psutil.Process().memory_full_info().uss / 2**20
print(f"  import torch alone: {time.process_time():.2f} CPU-s, {private:.0f} MiB private")
"""


def config_of(sources: dict[str, str], samples: int, isolate: bool = False, batch: int = ROWS) -> RunConfig:
    """Return a run over some data sets, in two phases of different blends."""
    rate = {"schedule": "constant", "peak": 1e-3}
    blends = [dict.fromkeys(sources, 1.0), {name: float(k + 1) for k, name in enumerate(sources)}]
    phases = [
        {"name": f"phase {k}", "samples": samples // 2, "blend": blend, "learning_rate": rate}
        for k, blend in enumerate(blends)
    ]
    model = {"num_layers": 1, "hidden_size": 8, "ffn_hidden_size": 8, "num_attention_heads": 1, "vocab_size": 65536}
    raw = {
        "name": "bench",
        "model": model,
        "sources": {name: {"path": path} for name, path in sources.items()},
        "phases": phases,
        "train": {
            "seq_length": LENGTH,
            "global_batch_size": batch,
            "micro_batch_size": ROWS,
            "isolate_documents": isolate,
        },
    }
    return validate(raw, "bench")


def loader_of(config: RunConfig) -> Any:
    """Return megacode's loader of a run."""
    from megacode.data.loader import Loader
    from megacode.data.windows import open_streams, stream_sizes
    from megacode.plan.batch import BatchSchedule
    from megacode.plan.phases import build_schedule

    streams = open_streams(config)
    schedule = build_schedule(config, stream_sizes(streams))
    return Loader(config, schedule, BatchSchedule(config, schedule), streams)


def write_source(prefix: Path, tokens: int, seed: int) -> None:
    """Write a data set of random tokens in log-normal documents that end with `EOD`."""
    random = np.random.default_rng(seed)
    lengths = document_lengths(tokens // MEAN_DOCUMENT, random)
    # Token values cost neither loader anything. Lengths do: isolation looks for the ends of documents.
    flat = random.integers(1, 50_000, int(lengths.sum()), dtype=np.uint16)
    flat[np.cumsum(lengths) - 1] = EOD
    with IndexedDatasetWriter(prefix, np.uint16) as writer:
        writer.add(flat, lengths)


def document_lengths(count: int, random: np.random.Generator) -> np.ndarray:
    """Return log-normal lengths of mean about `MEAN_DOCUMENT`, median about half of it."""
    # Sigma 1.18 puts the mean at exp(1.18^2 / 2) = 2 medians, so most documents are short.
    return np.maximum(1, random.lognormal(np.log(MEAN_DOCUMENT / 2), 1.18, count)).astype(np.int64)


def megacode_batches(prefixes: list[Path], isolate: bool = False) -> Iterator[Any]:
    """Yield megacode's micro-batches."""
    sources = {prefix.name: str(prefix) for prefix in prefixes}
    config = config_of(sources, 80_000 // ROWS * ROWS, isolate)
    loader, clock = loader_of(config), 0
    while True:
        yield from loader.batch(clock)
        clock += ROWS


def megatron_batches(prefixes: list[Path], workers: int) -> Iterator[Any]:
    """Yield the micro-batches of megatron-core's blended GPTDataset."""
    import torch
    from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
    from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig

    config = GPTDatasetConfig(
        random_seed=1,
        sequence_length=LENGTH,
        blend=([str(prefix) for prefix in prefixes], [1.0] * len(prefixes)),
        split="99,1,0",
        # None: below the data set's own path, so that the temporary directory takes it along.
        path_to_cache=None,
        tokenizer=SimpleNamespace(eod=EOD, pad=50_001, vocab_size=50_002, unique_identifiers={"bench": "bench"}),
        # With these three off GPTDataset makes masks and positions once: its fastest setting.
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
        # On, each micro-batch fills a mask of 268 MB, which fused attention does not read.
        create_attention_mask=False,
    )
    train, *_ = BlendedMegatronDatasetBuilder(GPTDataset, [20_000, 10, 0], lambda: True, config).build()
    loader = torch.utils.data.DataLoader(train, batch_size=ROWS, num_workers=workers, pin_memory=False)
    while True:
        yield from loader


def cpu_per_item(items: Iterator[Any], count: int) -> float:
    """Return the main process' CPU time per item, in ms."""
    # Of the main process, which training waits for. Workers are not in it, so they look free here.
    start = time.process_time()
    for _ in range(count):
        next(items)
    return (time.process_time() - start) / count * 1e3


def bench_batches(directory: Path, count: int, rounds: int) -> None:
    """Measure batch assembly, the contenders taking turns."""
    import torch

    torch.set_num_threads(1)
    prefixes = [directory / "text", directory / "code"]
    for number, prefix in enumerate(prefixes):
        write_source(prefix, 32_000_000, number)
    contenders: dict[str, Callable[[], Iterator[Any]]] = {
        "megacode": lambda: megacode_batches(prefixes),
        "megacode, isolated documents": lambda: megacode_batches(prefixes, isolate=True),
        "GPTDataset, DataLoader w=0": lambda: megatron_batches(prefixes, 0),
        # A worker costs the main process more than it saves: 1.67 ms a micro-batch, 0.75 without one.
        "GPTDataset, DataLoader w=1": lambda: megatron_batches(prefixes, 1),
    }
    streams = {name: make() for name, make in contenders.items()}
    for items in streams.values():
        # The first items pay for imports and for pages that were never touched.
        cpu_per_item(items, 20)
    times_of = {name: [] for name in streams}
    for _ in range(rounds):
        for name, items in streams.items():
            # In turns. Over the rounds of one run megacode's own figure moved from 0.067 to 0.108 ms.
            times_of[name].append(cpu_per_item(items, count))
    best = statistics.median(times_of["megacode"])
    print(f"\nBatch assembly, {ROWS} x {LENGTH:,} tokens: main-process CPU per micro-batch, median of {rounds} rounds")
    for name, times in times_of.items():
        median = statistics.median(times)
        print(f"  {name:32s} {median:7.3f} ms   {median / best:5.1f}x   [{min(times):.3f} .. {max(times):.3f}]")


def write_sparse_sources(directory: Path, tokens: int) -> list[Path]:
    """Write data sets of zeros that take no disk, whose indices are one file of `tokens / 500` documents."""
    lengths = document_lengths(tokens // MEAN_DOCUMENT, np.random.default_rng(1))
    index = directory / "shared.idx"
    with index.open("wb") as file:
        file.write(HEADER.pack(MAGIC, 1, 8, len(lengths), len(lengths) + 1))
        file.write(lengths.astype(np.int32).data)
        file.write(((np.cumsum(lengths) - lengths) * 2).data)
        file.write(np.arange(len(lengths) + 1, dtype=np.int64).data)
    prefixes = [directory / f"source{number}" for number in range(STARTUP_SOURCES)]
    for prefix in prefixes:
        # Eight names of one file: 400 MB in place of 3.2 GB.
        os.link(index, prefix.with_suffix(".idx"))
        with prefix.with_suffix(".bin").open("wb") as file:
            # 20 GB by its length, and nothing on disk: no token of it is read but those of one batch.
            file.truncate(int(lengths.sum()) * 2)
    print(
        f"\nStart-up: {STARTUP_SOURCES} sources of {int(lengths.sum()) / 1e9:.1f}B tokens, "
        f"{len(lengths) / 1e6:.1f}M documents each"
    )
    return prefixes


def first_batch(directory: Path) -> None:
    """Return megacode's first batch in this process, and print what that took (the child of `bench_startup`)."""
    import psutil

    prefixes = sorted(path.with_suffix("") for path in directory.glob("source*.bin"))
    start = time.process_time()
    loader = loader_of(config_of({prefix.name: str(prefix) for prefix in prefixes}, 6_000_000))
    loader.batch(0)
    # Private memory is the honest figure. Resident memory includes mapped pages that the kernel can drop.
    memory = psutil.Process().memory_full_info()
    # Counted from the interpreter's start: `import torch` alone takes 1.0 to 1.1 s of the 1.5 to 2.8.
    cpu, own = time.process_time(), time.process_time() - start
    print(
        f"  megacode: {cpu:.2f} CPU-s from the interpreter's start, "
        f"{own:.2f} of them after its imports of numpy and pydantic"
    )
    print(f"            {memory.uss / 2**20:.0f} MiB private, {memory.rss / 2**20:.0f} MiB resident")


def bench_startup(directory: Path, tokens: int) -> None:
    """Measure the way to the first batch in a fresh process."""
    write_sparse_sources(directory, tokens)
    subprocess.run([sys.executable, __file__, "--first-batch", str(directory)], check=True)
    # The floor, in the same run: between runs torch's own memory moved from 145 to 204 MiB.
    subprocess.run([sys.executable, "-c", ONLY_TORCH], check=True)


def main() -> None:
    """Run the benchmarks."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--micro-batches", type=int, default=300, help="per contender and round")
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--startup-tokens", type=float, default=10e9, help="tokens of each of the 8 sources")
    arguments.add_argument("--first-batch", type=Path, help=argparse.SUPPRESS)
    args = arguments.parse_args()
    if args.first_batch:
        first_batch(args.first_batch)
        return
    with tempfile.TemporaryDirectory() as directory:
        bench_startup(Path(directory), int(args.startup_tokens))
    with tempfile.TemporaryDirectory() as directory:
        bench_batches(Path(directory), args.micro_batches, args.rounds)


if __name__ == "__main__":
    main()

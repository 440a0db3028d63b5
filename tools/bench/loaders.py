#!/usr/bin/env python3
"""The loaders side by side: how long training waits for an iteration's tensors on its device, and what that costs.

    tools/bench/loaders.py [--iterations 40] [--rounds 5] [--compute-ms 40] [--micro-batches 8] [--cold]

An iteration is 8 micro-batches of 4 x 8,192 tokens, of two sources in the page cache, as in `loader.py`. Every
contender is asked for the next iteration while the device computes nothing (alone), and between computations of a
fixed length (in training); they take turns. Where there is a GPU, the tensors end there; else on the CPU, where one
core computes and the thread that makes batches ahead has another, if there is one. DALI takes part where it is
installed. megacode's tools need nothing here but torch, numpy, pydantic, PyYAML, orjson and xxhash.

    alone      wall time until the tensors are on the device and usable; CPU is that of the whole process
    waits      wall time in which the loop that trains waits for them, its own copies to the device included; and
    mean       the same, a mean in place of the median
    iteration  wall time of the whole iteration less that of the computation by itself

With --cold each contender reads data sets of its own that are not in the page cache when it is asked for iterations
between computations; the kernel reads more than it is asked for, so give one round of a few iterations.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from loader import LENGTH, ROWS, config_of, write_source

from megacode.data import dali
from megacode.data.device_loader import DeviceLoader
from megacode.data.loader import Loader
from megacode.data.prefetch import Prefetch
from megacode.data.rank_windows import RowPlan
from megacode.data.windows import open_streams, stream_sizes
from megacode.mcore import device
from megacode.mcore.micro_batch import MicroBatch
from megacode.plan.batch import BatchSchedule, samples_digest
from megacode.plan.phases import build_schedule

Tensors = list[torch.Tensor]


def arguments_of(prefixes: list[Path], micro_batches: int, isolate: bool) -> tuple[Any, ...]:
    """Return what loaders are opened with."""
    rows = ROWS * micro_batches
    config = config_of({path.name: str(path) for path in prefixes}, rows * 10_000, isolate, rows)
    streams = open_streams(config)
    schedule = build_schedule(config, stream_sizes(streams))
    return config, schedule, BatchSchedule(config, schedule), streams, 0, 1


def iterations_of(loader: Any, rows: int) -> Iterator[Tensors]:
    """Yield each iteration's tensors of a loader, moved to the device as a training step moves them."""
    clock = 0
    while True:
        yield [tensor for batch in loader.batch(clock) for tensor in moved(batch)]
        clock += rows


def moved(batch: MicroBatch) -> Tensors:
    """Return what a training step reads of a micro-batch, on the device."""
    # A loader that brings no digests leaves them to the step, so they count here.
    digests = batch.digests if batch.digests is not None else torch.from_numpy(samples_digest(batch.samples.numpy()))
    read = batch.tokens, batch.labels, batch.loss_mask, batch.source_ids, digests
    return [device.to_device(tensor) for tensor in read]


class ParallelWindows:
    """The windows of an iteration by its number, read in a worker process of DALI's, which opens the sources itself."""

    def __init__(self, prefixes: list[Path], micro_batches: int) -> None:
        self._opened_with = prefixes, micro_batches, False
        self._rows = ROWS * micro_batches
        self._plan: RowPlan | None = None

    def __call__(self, iteration: int) -> list[np.ndarray]:
        """Return k windows, [S + 1] each."""
        # Opened on first use, in the worker: memory maps cannot be sent to another process.
        if self._plan is None:
            self._plan = RowPlan(*arguments_of(*self._opened_with))
        rows, _ = self._plan.at(iteration * self._rows)
        return [window.tokens for window in self._plan.windows(rows)]


def dali_parallel(prefixes: list[Path], micro_batches: int) -> Iterator[Tensors]:
    """Yield tokens, labels and mask of a DALI pipeline whose windows are read by a worker process."""
    from nvidia.dali import Pipeline, fn, types

    rows, gpu = ROWS * micro_batches, device.device().index if device.on_gpu() else None
    # A worker must not be forked from a process that uses CUDA, so it starts fresh.
    pipeline = Pipeline(rows, num_threads=1, device_id=gpu, py_num_workers=1, py_start_method="spawn")
    source = ParallelWindows(prefixes, micro_batches)
    with pipeline:
        windows = fn.external_source(source=source, batch=True, parallel=True, dtype=types.UINT16, ndim=1)
        windows = windows.gpu() if device.on_gpu() else windows
        parts = (fn.cast(part, dtype=types.INT64) for part in (windows[:-1], windows[1:]))
        pipeline.set_outputs(*parts)
    pipeline.build()
    mask = torch.ones(rows, LENGTH, device=device.device())
    while True:
        outputs = pipeline.run(torch.cuda.current_stream()) if device.on_gpu() else pipeline.run()
        yield [*(torch.from_dlpack(output.as_tensor()) for output in outputs), mask]


def contenders(micro_batches: int, isolate: bool, cold: bool) -> dict[str, Callable[[list[Path]], Iterator[Tensors]]]:
    """Return what is compared, each to be opened on data sets."""
    rows = ROWS * micro_batches

    def of(make: Callable[..., Any]) -> Callable[[list[Path]], Iterator[Tensors]]:
        return lambda prefixes: iterations_of(make(*arguments_of(prefixes, micro_batches, isolate)), rows)

    on_device = DeviceLoader if device.on_gpu() else Loader
    makers = {
        "default, made when asked": of(Loader),
        "default, made ahead": of(lambda *arguments: Prefetch(on_device(*arguments), 1)),
    }
    if dali.installed():
        makers["DALI, read in process"] = of(dali.DaliLoader)
        makers["DALI, made ahead"] = of(lambda *arguments: Prefetch(dali.DaliLoader(*arguments), 1))
        if not isolate and not cold:  # a worker opens the data sets later, and reads them whole to know them
            makers["DALI, read by a worker"] = lambda prefixes: dali_parallel(prefixes, micro_batches)
    return makers


def write_sources(directory: Path, tokens: int) -> list[Path]:
    """Write the data sets that a contender reads, unless they are there."""
    prefixes = [directory / "text", directory / "code"]
    if not directory.exists():
        directory.mkdir()
        for number, prefix in enumerate(prefixes):
            write_source(prefix, tokens, number)
    return prefixes


def evict(prefixes: list[Path]) -> None:
    """Take data sets out of the page cache, but for the few pages that were touched when they were opened."""
    for prefix in prefixes:
        with prefix.with_suffix(".bin").open("rb+") as file:
            # The kernel drops clean pages only.
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def check_equal(prefixes: list[Path], args: argparse.Namespace, isolate: bool) -> None:
    """Check that all contenders but the worker, which cuts no micro-batches, give the same bits on this device."""
    opened = {name: make(prefixes) for name, make in contenders(args.micro_batches, isolate, cold=True).items()}
    for _ in range(3):
        expected, *others = (next(iterations) for iterations in opened.values())
        for other in others:
            assert all(torch.equal(one, two) for one, two in zip(expected, other, strict=True))
    print(f"\nequal to the last bit on {device.name()}: {', '.join(opened)}")


def calibrated(milliseconds: float) -> Callable[[], None]:
    """Return a computation on the device that takes about so long and, like a training step, ends by waiting for it."""
    size = 4096 if device.on_gpu() else 256
    matrix = torch.randn(size, size, device=device.device())

    def compute(count: int) -> None:
        result = matrix
        for _ in range(count):
            # Scaled down, or the products would soon overflow.
            result = torch.mm(matrix, result).div_(size)
        result[0, 0].item()

    # The first products choose kernels and wake the device. Only the next 50 set the length.
    compute(20)
    started = time.perf_counter()
    compute(50)
    count = max(1, round(milliseconds / ((time.perf_counter() - started) / 50 * 1e3)))
    return lambda: compute(count)


def measure(contender: Iterator[Tensors], compute: Callable[[], None], count: int) -> tuple[float, ...]:
    """Return ms an iteration: alone (wall, CPU), waited for in training (median, mean), and whole ones in training."""
    waits, wholes = [], []
    for _ in range(count):
        asked = time.perf_counter()
        next(contender)
        # Without a wait for the device, as in training: copies may still run behind the computation.
        waits.append(time.perf_counter() - asked)
        compute()
        wholes.append(time.perf_counter() - asked)
    # CPU time of all threads: what is made ahead is not free.
    started, cpu = time.perf_counter(), time.process_time()
    for _ in range(count):
        next(contender)
        device.synchronize()
    alone, cpu = time.perf_counter() - started, time.process_time() - cpu
    # The median hides rare slow reads, and the mean shows them: read the mean with --cold.
    seconds = alone / count, cpu / count, statistics.median(waits), statistics.fmean(waits), statistics.median(wholes)
    return tuple(1e3 * value for value in seconds)


def computed(compute: Callable[[], None], count: int) -> float:
    """Return ms of the computation by itself, the median."""
    times = []
    for _ in range(count):
        started = time.perf_counter()
        compute()
        times.append(time.perf_counter() - started)
    return statistics.median(times) * 1e3


def bench(directory: Path, args: argparse.Namespace, isolate: bool) -> None:
    """Measure all contenders, taking turns, and print medians and ratios to the first."""
    compute = calibrated(args.compute_ms)
    opened: dict[str, Iterator[Tensors]] = {}
    for number, (name, make) in enumerate(contenders(args.micro_batches, isolate, args.cold).items()):
        # Data sets of its own: what one contender has read would be cached for the next.
        where, tokens = (f"cold{number}{isolate}", 128_000_000) if args.cold else ("warm", 32_000_000)
        prefixes = write_sources(directory / where, tokens)
        opened[name] = make(prefixes)
        if args.cold:
            evict(prefixes)
    rounds_of: dict[str, list[tuple[float, ...]]] = {name: [] for name in opened}
    bare: list[float] = []
    for _ in range(args.rounds):
        # Timed again in each round. Its own spread is printed: a smaller difference means nothing.
        bare.append(computed(compute, args.iterations))
        for name, contender in opened.items():
            rounds_of[name].append(measure(contender, compute, args.iterations))
    documents = f"documents {'isolated' if isolate else 'not isolated'}, {'cold' if args.cold else 'in the page cache'}"
    print(f"\n{args.micro_batches} x {ROWS} x {LENGTH:,} tokens on {device.name()}, {documents}; ms, medians of rounds")
    base = statistics.median(bare)
    print(f"the computation by itself: {base:.1f} ms [{min(bare):.1f} .. {max(bare):.1f}]")
    report(rounds_of, base, args)


def report(rounds_of: dict[str, list[tuple[float, ...]]], base: float, args: argparse.Namespace) -> None:
    """Print a table of the contenders, as a page has it."""
    line = "| {:26} | {:>15} | {:>6} | {:>16} | {:>8} | {:>9} | {:>8} |"
    print(line.format("", "alone, wall", "CPU", "waits", "mean", "iteration", "Mtoken/s"))
    print("|---|---|---|---|---|---|---|")
    first: list[float] = []
    for name, rounds in rounds_of.items():
        alone, cpu, waits, mean, whole = (statistics.median(column) for column in zip(*rounds, strict=True))
        first = first or [alone, waits]
        rate = args.micro_batches * ROWS * LENGTH / alone / 1e3
        wall, waited = f"{alone:.2f} ({alone / first[0]:.2f}x)", f"{waits:.3f} ({waits / first[1]:.2f}x)"
        print(line.format(name, wall, f"{cpu:.2f}", waited, f"{mean:.3f}", f"{whole - base:+.2f}", f"{rate:,.0f}"))


def main() -> None:
    """Run the benchmark."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--iterations", type=int, default=40, help="per contender and round")
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--micro-batches", type=int, default=8, help="of an iteration")
    arguments.add_argument("--compute-ms", type=float, default=40, help="length of the computation")
    arguments.add_argument("--cold", action="store_true", help="read from the disk; give few iterations and rounds")
    args = arguments.parse_args()
    # One core computes, so that another is free for the thread that makes batches ahead.
    torch.set_num_threads(1)
    # The usual temporary directory may be in memory, where no read is ever cold.
    with tempfile.TemporaryDirectory(dir=Path.cwd() if args.cold else None) as directory:
        for isolate in (False, True):
            check_equal(write_sources(Path(directory) / "warm", 32_000_000), args, isolate)
            bench(Path(directory), args, isolate)


if __name__ == "__main__":
    main()

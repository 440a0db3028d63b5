"""The order of a blend: megacode's schedule beside the index that megatron-core's C++ helper builds.

    python tools/bench/blend.py [--samples 100000000] [--draws 10000000] [--json FILE]

Both lay out one phase of 8 sources in one run. Reported are the time until the first sample can be read, the bytes
held, the time a sample when all are read in blocks, and the largest deviation of any source's count from its share
over all prefixes. Ratios are megatron-core's figure over megacode's (above 1: megacode is better).

The helper's arrays say which source gives a sample and which of the source's samples it is. megacode answers more: the
epoch, the window in its shuffled order, and the token. `order only` is its part that compares.
"""

from __future__ import annotations

import json
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray

from megacode.base.units import format_bytes, format_seconds
from megacode.config.run import RunConfig
from megacode.plan.phases import Schedule, SourceSize, build_schedule

WEIGHTS = {
    "web": 0.42,
    "code": 0.2,
    "books": 0.12,
    "markup": 0.1,
    "maths": 0.08,
    "forum": 0.05,
    "news": 0.02,
    "law": 0.01,
}
SEQ_LENGTH = 4096
# Large, so that Python's cost of a call is spread over many samples.
BLOCK = 1 << 16
Order = Callable[[int, int], NDArray[np.integer[Any]]]


def run_config(samples: int) -> RunConfig:
    """Return a run of one phase."""
    phase = {
        "name": "all",
        "samples": samples,
        "blend": WEIGHTS,
        "learning_rate": {"schedule": "constant", "peak": 1e-3},
    }
    model = {"num_layers": 1, "hidden_size": 64, "ffn_hidden_size": 64, "num_attention_heads": 1, "vocab_size": 256}
    return RunConfig.model_validate(
        {
            "name": "bench",
            "model": model,
            "sources": {name: {"path": name} for name in WEIGHTS},
            "phases": [phase],
            "train": {"seq_length": SEQ_LENGTH, "global_batch_size": 512},
        }
    )


def blocks(total: int, size: int = BLOCK) -> Iterator[tuple[int, int]]:
    """Yield first and last of consecutive blocks."""
    for first in range(0, total, size):
        yield first, min(total, first + size)


def best_of(rounds: int, work: Callable[[], object]) -> float:
    """Return the least seconds that some work takes."""
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    # The least: other load on the machine can only add.
    return min(seconds)


def largest_deviation(order: Order, total: int, shares: list[float]) -> float:
    """Return the largest distance of a source's count from its share over all prefixes.

    Args:
        order: from first and last sample to the sources, as indices into `shares`.
        total: samples.
        shares: of each source.
    """
    counts = np.zeros(len(shares))
    worst = 0.0
    for first, last in blocks(total, 1 << 20):
        sources, drawn = order(first, last), np.arange(first + 1, last + 1)
        for k, share in enumerate(shares):
            running = counts[k] + np.cumsum(sources == k)
            worst = max(worst, float(np.abs(running - drawn * share).max()))
            counts[k] = running[-1]
    return worst


def bench_megacode(samples: int, draws: int, deviations: bool) -> dict[str, Any]:
    """Return megacode's figures."""
    config = run_config(samples)
    # A quarter of the phase each, so that the largest source begins a second epoch.
    sizes = {name: SourceSize(name, samples // 4 * SEQ_LENGTH + 1) for name in WEIGHTS}
    build_schedule(config, sizes)  # imports and caches
    # Counts Python's and numpy's memory, and slows both: the time is taken in other calls.
    tracemalloc.start()
    schedule = build_schedule(config, sizes)
    peak = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    tree = schedule.phases[0].tree
    positions = {name: k for k, name in enumerate(WEIGHTS)}
    # The tree has an order of its own, and deviations are counted in that of WEIGHTS.
    renumber = np.array([positions[name] for name in tree.names])
    result = {
        "build_seconds": best_of(5, lambda: build_schedule(config, sizes)),
        "bytes": peak,
        "order_seconds_a_sample": _read(draws, lambda first, last: tree.many(np.arange(first, last))),
        "draw_seconds_a_sample": _read(draws, lambda first, last: schedule.draws(np.arange(first, last))),
        "one_draw_seconds": _one_draw(schedule),
        # What a resume asks for, in the middle of the phase.
        "counts_at_seconds": best_of(5, lambda: schedule.counts_at(samples // 3)),
    }
    if deviations:
        order = lambda first, last: renumber[tree.many(np.arange(first, last))[0]]  # noqa: E731
        result["deviation"] = largest_deviation(order, samples, list(WEIGHTS.values()))
    return result


def _read(draws: int, read: Callable[[int, int], object]) -> float:
    # Once: 10M samples take half a second to a second, which evens out short disturbances.
    start = time.perf_counter()
    for first, last in blocks(draws):
        read(first, last)
    return (time.perf_counter() - start) / draws


def _one_draw(schedule: Schedule) -> float:
    # Anywhere: neighbouring samples could share work.
    places = np.random.default_rng(0).integers(0, schedule.total_samples, 5000).tolist()
    return best_of(3, lambda: [schedule.draw(place) for place in places]) / len(places)


def bench_megatron(samples: int, draws: int, deviations: bool) -> dict[str, Any]:
    """Return the figures of megatron-core's helper: the time to fill two arrays, and to read them."""
    from megatron.core.datasets.helpers_cpp import build_blending_indices

    start = time.perf_counter()
    # 10 bytes a sample. The kernel hands out zeroed pages when the helper fills them, inside the clock.
    sources, numbers = np.zeros(samples, dtype=np.int16), np.zeros(samples, dtype=np.int64)
    build_blending_indices(sources, numbers, np.array(list(WEIGHTS.values())), len(WEIGHTS), samples, False)
    result = {
        "build_seconds": time.perf_counter() - start,
        "bytes": sources.nbytes + numbers.nbytes,
        # A slice alone would read nothing. Adding 0 makes a copy.
        "order_seconds_a_sample": _read(draws, lambda first, last: (sources[first:last] + 0, numbers[first:last] + 0)),
    }
    if deviations:
        order = lambda first, last: sources[first:last]  # noqa: E731
        result["deviation"] = largest_deviation(order, samples, list(WEIGHTS.values()))
    return result


def report(samples: int, ours: dict[str, Any], theirs: dict[str, Any]) -> Iterator[str]:
    """Yield the lines of the comparison."""
    yield f"8 sources, {samples:,} samples"
    yield f"{'':34}{'megacode':>14}{'megatron-core':>16}{'ratio':>12}"
    rows: tuple[tuple[str, str, Callable[[float], str]], ...] = (
        ("until the first sample", "build_seconds", _seconds),
        ("bytes", "bytes", format_bytes),
        ("a sample in blocks, order only", "order_seconds_a_sample", _nanoseconds),
        ("largest deviation, in samples", "deviation", "{:.2f}".format),
    )
    for label, key, shown in rows:
        if key in theirs:
            ratio = theirs[key] / ours[key]
            yield f"{label:34}{shown(ours[key]):>14}{shown(theirs[key]):>16}{ratio:>12,.2f}"
    yield f"{'a sample in blocks, whole draw':34}{_nanoseconds(ours['draw_seconds_a_sample']):>14}"
    yield f"{'one draw anywhere':34}{_nanoseconds(ours['one_draw_seconds']):>14}"
    yield f"{'counts of all sources at a clock':34}{_nanoseconds(ours['counts_at_seconds']):>14}"


def _nanoseconds(seconds: float) -> str:
    return f"{seconds * 1e9:,.0f} ns"


def _seconds(seconds: float) -> str:
    return format_seconds(seconds) if seconds >= 0.01 else f"{seconds * 1000:.2f} ms"


def main(
    samples: Annotated[int, typer.Option(min=1000, help="Samples of the phase.")] = 100_000_000,
    draws: Annotated[int, typer.Option(min=1, help="Samples that are read in blocks.")] = 10_000_000,
    deviations: Annotated[bool, typer.Option(help="Walk over every prefix (about a minute).")] = True,
    out: Annotated[Path | None, typer.Option("--json", help="Write the figures here.")] = None,
) -> None:
    """Compare megacode's schedule with megatron-core's blending index."""
    draws = min(draws, samples)
    ours = bench_megacode(samples, draws, deviations)
    theirs = bench_megatron(samples, draws, deviations)
    for line in report(samples, ours, theirs):
        typer.echo(line)
    if out is not None:
        document = {"samples": samples, "megacode": ours, "megatron_core": theirs}
        out.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)

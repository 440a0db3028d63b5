"""The alignment probe in a plan: whether its held-out windows exist, and what it costs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from megacode.base.errors import ConfigError, Problem
from megacode.base.units import format_bytes, format_count
from megacode.capacity.costs import padded_vocabulary, parameters
from megacode.capacity.optimizer import gradient_bytes
from megacode.config.quantity import Quantity
from megacode.config.run import RunConfig
from megacode.data.source_stream import SourceStream, any_counts
from megacode.data.windows import open_source
from megacode.plan.phases import Schedule, SourceSize

_Json = dict[str, Any]


def check_probe(config: RunConfig, schedule: Schedule) -> None:
    """Refuse a probe of more held-out windows than a source has.

    Raises:
        ConfigError: lists all such sources.
    """
    problems = list(_problems(config, schedule)) if config.health.alignment_probe.every is not None else []
    if problems:
        raise ConfigError(problems=problems)


def _problems(config: RunConfig, schedule: Schedule) -> Iterator[Problem]:
    wanted, length = config.health.alignment_probe.samples, schedule.seq_length
    for name, size in schedule.sizes.items():
        windows = size.held_out_windows(length)
        if windows < wanted:
            message = f"the probe reads {wanted} held-out windows of each source, and {name} has {windows}"
            fewer = f"set it to {windows} or less, or raise" if windows else "raise"
            fix = f"{fewer} validation.fraction: {name} needs {wanted * length + 1:,} held-out tokens"
            yield Problem(message, "health.alignment_probe.samples", fix)


def check_counted(config: RunConfig, sizes: Mapping[str, SourceSize]) -> None:
    """Refuse a probe whose held-out windows of a source have no token that counts: its gradient would be zero.

    Reads the loss masks of these windows, so one process should do it for all.

    Args:
        config: the run.
        sizes: of its sources; those without an identity are only declared so far, and have no mask to read.

    Raises:
        ConfigError: lists all such sources.
        DataError: a data set cannot be read.
    """
    if config.health.alignment_probe.every is None or not config.validation.fraction:
        return
    masked = [name for name, size in sizes.items() if config.sources[name].loss == "answers" and size.identity]
    problems = [problem for name in masked for problem in _uncounted(config, open_source(config, name))]
    if problems:
        raise ConfigError(problems=problems)


def _uncounted(config: RunConfig, stream: SourceStream) -> Iterator[Problem]:
    samples, isolate = config.health.alignment_probe.samples, config.train.isolate_documents
    used = min(samples, stream.held_out_windows)  # that there are too few is said elsewhere
    firsts = (stream.held_out_first_token(number, used) for number in range(used))
    if not any(any_counts(stream, first, isolate) for first in firsts):
        message = f"no token counts in the {used} held-out windows of {stream.name} that the probe reads"
        fix = f"raise it ({stream.name} has {stream.held_out_windows:,}), or remove the probe"
        yield Problem(message, "health.alignment_probe.samples", fix)


def probe_document(
    config: RunConfig, schedule: Schedule, probes: int, vocab_size: int, work: _Json, gpus: int | None
) -> _Json | None:
    """Return how often the sources are compared and what that costs, as plain values for JSON; None: never.

    Args:
        config: the run.
        schedule: its sources.
        probes: number of comparisons.
        vocab_size: size of the vocabulary, without padding.
        work: the plan's document, for `flops` and `flops_per_token`.
        gpus: number of GPUs; None: unknown.
    """
    probe, sources = config.health.alignment_probe, len(schedule.source_names)
    if probe.every is None:
        return None
    flops = probes * sources * probe.samples * schedule.seq_length * work["flops_per_token"]
    padded = padded_vocabulary(config.model, vocab_size, config.parallel.tensor)
    # All gradients but the last wait on the host, as the optimizer holds them: sharded, or whole for each copy.
    kept = (sources - 1) * gradient_bytes(config) * parameters(config.model, padded)
    layout = config.parallel
    sharing = gpus if layout.distributed_optimizer else layout.tensor * layout.pipeline
    return {
        "every": _interval(probe.every),
        "probes": probes,
        "sources": sources,
        "samples": probe.samples,
        "flops": flops,
        "share": flops / work["flops"] if work["flops"] else 0.0,
        "host_bytes": kept,
        "host_bytes_of_rank": kept // sharing if sharing else None,
    }


def _interval(every: Quantity) -> str:
    return f"{format_count(every.count) if every.unit == 'tokens' else f'{every.count:,}'} {every.unit}"


def probe_line(probe: _Json) -> str:
    """Return the plan's line on the probe."""
    often = f"compared every {probe['every']}, {probe['probes']:,} times"
    windows = f"on {probe['sources']} x {probe['samples']} windows"
    rank = probe["host_bytes_of_rank"]
    whose = "over all ranks of a copy" if rank is None else "a rank"
    memory = f"{format_bytes(probe['host_bytes'] if rank is None else rank)} of host memory {whose}"
    return f"{often}, {windows}: {probe['share']:.2%} of the FLOPs, {memory}"

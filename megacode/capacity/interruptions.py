"""Cost of checkpoints and failures of a run, and the best interval between checkpoints."""

from __future__ import annotations

import math
from typing import Any

from megacode.capacity.buffers import MOMENT_BYTES, MOMENTUM_BYTES
from megacode.capacity.costs import parameter_counts
from megacode.capacity.hardware import Hardware
from megacode.capacity.layout import Layout
from megacode.capacity.optimizer import saved_bytes
from megacode.config.quantity import Length
from megacode.config.run import RunConfig

_WEIGHT_BYTES = 4
_HOUR = 3600
_Json = dict[str, Any]


def checkpoint_bytes(config: RunConfig, vocab_size: int) -> int:
    """Return the size of a run's largest checkpoint: fp32 weights and optimizer state, without padding, each once."""
    counts = parameter_counts(config.model, vocab_size)
    # If all phases train with Muon, no checkpoint has two moments of the matrices.
    muon = all(config.optimizer_in(phase) == "muon" for phase in config.phases)
    saved = (MOMENT_BYTES - MOMENTUM_BYTES) * counts.in_layers if muon else 0
    return saved_bytes(config) * counts.total - saved


def weight_bytes(config: RunConfig, vocab_size: int) -> int:
    """Return the size of a checkpoint with weights alone."""
    return _WEIGHT_BYTES * parameter_counts(config.model, vocab_size).total


def checkpoint(place: Layout, hardware: Hardware) -> _Json:
    """Return size and times of a checkpoint."""
    size = checkpoint_bytes(place.config, place.vocab_size)
    nodes = -(-place.gpus // int(hardware["gpus_per_node"]))
    # The shared file system, or the nodes' own links to it, whichever is slower.
    seconds = size / min(hardware["disk_bandwidth"], nodes * hardware["node_disk_bandwidth"])
    # Asynchronous: training only waits for the copy from the GPU to host memory.
    copying = size / place.gpus / hardware["host_bandwidth"]
    return {
        "bytes": size,
        "write_seconds": seconds,
        "read_seconds": seconds,
        "held_up_seconds": copying if place.config.checkpoint.asynchronous else seconds,
    }


def failures(place: Layout, hardware: Hardware, seconds: float, phase_hours: list[float]) -> _Json:
    """Return the cost of failures: each loses half an interval between checkpoints, and a restart.

    The best interval between saves is sqrt(2 x cost of a save x time between failures). It is at least so long that
    saves keep the file system busy for only `disk_share` of the time.

    Source: Young, A First Order Approximation to the Optimum Checkpoint Interval (1974).

    Args:
        place: the run on its GPUs.
        hardware: how often they fail.
        seconds: per iteration.
        phase_hours: duration of each phase; without `checkpoint.every`, only the ends of phases are saved.
    """
    saved, between = checkpoint(place, hardware), hardware["gpu_hours_between"] / place.gpus * _HOUR
    held_up, hours, every = saved["held_up_seconds"], sum(phase_hours), place.config.checkpoint.every
    best = max(math.sqrt(2 * held_up * between), saved["write_seconds"] / hardware["disk_share"], seconds)
    interval = max(phase_hours) * _HOUR if every is None else _iterations(every, place.config) * seconds
    lost = (interval / 2 + hardware["restart_seconds"] + saved["read_seconds"]) / between
    # Above 1 the run would never finish: it loses more than it gains between failures.
    share = min(1.0, lost + held_up / interval)
    return {
        "hours_between": between / _HOUR,
        "expected": hours * _HOUR / between,
        "best_checkpoint_every_iterations": max(1, round(best / seconds)),
        "checkpoint_every_iterations": max(1, round(interval / seconds)),
        "lost_share": share,
        "hours_with_failures": hours / (1 - share) if share < 1 else None,
    }


def _iterations(length: Length, config: RunConfig) -> float:
    samples = config.train.global_batch_size
    per = {"iterations": 1.0, "samples": 1 / samples, "tokens": 1 / (samples * config.train.seq_length)}
    return length.count * per[length.unit]

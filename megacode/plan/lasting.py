"""What it takes for a run to last on its GPUs: checkpoints, and interruptions between them."""

from __future__ import annotations

import math
from typing import Any

from megacode.config.quantity import Length
from megacode.config.run import RunConfig
from megacode.plan.costs import parameters
from megacode.plan.hardware import Hardware
from megacode.plan.placement import Placement
from megacode.plan.speed import StepTime

_SAVED_BYTES = 12  # a parameter: fp32 weight and two moments
_HOUR = 3600
_Json = dict[str, Any]


def checkpoint(place: Placement, hardware: Hardware) -> _Json:
    """Return size and times of a checkpoint: fp32 weights and moments, without padding, each once."""
    size = _SAVED_BYTES * parameters(place.config.model, place.vocab_size)
    nodes = -(-place.gpus // int(hardware["gpus_per_node"]))
    seconds = size / min(hardware["disk_bandwidth"], nodes * hardware["node_disk_bandwidth"])
    copying = size / place.gpus / hardware["host_bandwidth"]
    return {
        "bytes": size,
        "write_seconds": seconds,
        "read_seconds": seconds,
        "held_up_seconds": copying if place.config.checkpoint.asynchronous else seconds,
    }


def failures(place: Placement, hardware: Hardware, time: StepTime, hours: float) -> _Json:
    """Return what interruptions cost: half an interval between checkpoints and a restart each.

    The best interval between saves is sqrt(2 x what a save costs x time between failures), but no shorter than a save
    takes to be written. Source: Young, A First Order Approximation to the Optimum Checkpoint Interval (1974).
    """
    saved, between = checkpoint(place, hardware), hardware["gpu_hours_between"] / place.gpus * _HOUR
    best = max(math.sqrt(2 * saved["held_up_seconds"] * between), saved["write_seconds"], time.total)
    every = place.config.checkpoint.every
    interval = (
        best if every is None else _samples(every, place.config) * time.total / place.config.train.global_batch_size
    )
    lost = (interval / 2 + hardware["restart_seconds"] + saved["read_seconds"]) / between
    share = min(1.0, lost + saved["held_up_seconds"] / interval)
    return {
        "hours_between": between / _HOUR,
        "expected": hours * _HOUR / between,
        "best_checkpoint_every_iterations": max(1, round(best / time.total)),
        "checkpoint_every_iterations": max(1, round(interval / time.total)),
        "lost_share": share,
        "hours_with_failures": hours / (1 - share) if share < 1 else None,
    }


def _samples(length: Length, config: RunConfig) -> float:
    per = {"iterations": config.train.global_batch_size, "samples": 1, "tokens": 1 / config.train.seq_length}
    return length.count * per[length.unit]

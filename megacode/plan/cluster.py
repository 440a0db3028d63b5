"""What a run needs on a number of GPUs, as one part of the plan's JSON document: `gpus`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megacode.base.errors import ConfigError, PlanError, Problem
from megacode.config.quantity import Length
from megacode.config.run import RunConfig
from megacode.plan.activations import Layers, head_tensors, layer_tensors
from megacode.plan.advice import Choice, choices
from megacode.plan.costs import parameters
from megacode.plan.hardware import GIB, Hardware, load_hardware
from megacode.plan.memory import Memory, fullest
from megacode.plan.placement import Placement
from megacode.plan.speed import StepTime, step_time

_SAVED_BYTES = 12  # a parameter: fp32 weight and two moments
_SHOWN = 5
_HOUR = 3600
_Json = dict[str, Any]


@dataclass(frozen=True)
class Cluster:
    """What to plan for.

    Attributes:
        gpus: how many to lay the config's own layout over; absent: none.
        scale: numbers of them to compare, each with the fastest layout that fits it.
        gpu: their kind, as `hardware.yaml` names it.
        layers: which layers they compute with.
        price: of one GPU for an hour, in any currency; absent: nothing is said of money.
        file: a table of constants of the user's own.
    """

    gpus: int | None = None
    scale: tuple[int, ...] = ()
    gpu: str = "H100"
    layers: Layers = "transformer_engine"
    price: float | None = None
    file: Path | None = None


def cluster_document(config: RunConfig, cluster: Cluster, vocab_size: int, work: _Json) -> _Json:
    """Return memory, time, checkpoints, failures and advice, as plain values for JSON: bytes, seconds, hours.

    Args:
        config: the run.
        cluster: the GPUs.
        vocab_size: tokens the model knows, without padding.
        work: the plan's document, for `flops`, `total_tokens` and `total_samples`.

    Raises:
        ConfigError: the GPUs are not known, or do not divide into whole copies of the model and whole micro-batches.
    """
    hardware = load_hardware(cluster.gpu, cluster.file)
    assert cluster.gpus is not None
    gpus = cluster.gpus
    place = Placement(config, gpus, vocab_size)
    place.check()
    if place.fp8 and not hardware["fp8_flops"]:
        raise ConfigError(
            f"{hardware.gpu} computes no FP8", "precision.fp8", "set it to none, or plan for another --gpu"
        )
    memory, time = fullest(place, hardware, cluster.layers), step_time(place, hardware, cluster.layers)
    hours, (rate, mfu) = run_hours(config, time, work), utilization(place, hardware, time, work)
    return {
        "gpus": gpus,
        "gpu": hardware.gpu,
        "layers": cluster.layers,
        "nodes": -(-gpus // int(hardware["gpus_per_node"])),
        "data_parallel": place.data,
        "micro_batches": place.micro_batches,
        "flops_per_gpu": work["flops"] / gpus,
        "memory": _memory(memory, hardware),
        "activations": _activations(place, cluster.layers),
        "step": {**vars(time), "seconds": time.total},
        "tokens_per_second": config.train.global_batch_size * config.train.seq_length / time.total,
        "model_flops_per_second_per_gpu": rate,
        "mfu": mfu,
        "hours": hours,
        "gpu_hours": hours * gpus,
        "cost": None if cluster.price is None else hours * gpus * cluster.price,
        "checkpoint": _checkpoint(place, hardware),
        "failures": _failures(place, hardware, time, hours),
        "advice": _advice(place, hardware, cluster.layers, time),
        "measured": hardware.measured,
    }


def run_hours(config: RunConfig, time: StepTime, work: _Json) -> float:
    """Return how long a whole run takes at the rate of full batches; a ramp's smaller ones are slower a sample."""
    return float(work["total_samples"] / config.train.global_batch_size * time.total / _HOUR)


def utilization(place: Placement, hardware: Hardware, time: StepTime, work: _Json) -> tuple[float, float]:
    """Return the model's operations a second and GPU, and their share of the peak: MFU."""
    config = place.config
    rate = work["flops"] / work["total_samples"] * config.train.global_batch_size / time.total / place.gpus
    return rate, rate / hardware.peak_flops(config.precision.dtype, place.fp8)


def check_feasible(document: _Json) -> None:
    """Refuse a plan that cannot be carried out on its GPUs; to be asked when it has been shown.

    Raises:
        PlanError: a rank does not fit its GPU, or a dry run built other than what is planned.
    """
    problems = []
    if "gpus" in document and not document["gpus"]["memory"]["fits"]:
        memory, advice = document["gpus"]["memory"], document["gpus"]["advice"]
        need, have = (f"{memory[key] / GIB:.1f} GiB" for key in ("total", "capacity"))
        fix = (
            "take more GPUs, or larger ones"
            if not advice["best"]
            else "use " + " ".join(advice["best"][0]["overrides"])
        )
        what = f"a rank of pipeline stage {memory['stage']} needs {need}; one {document['gpus']['gpu']} has {have}"
        problems.append(Problem(what, "--gpus", fix))
    for row in document.get("dry_run", []):
        for name, counts in row["unequal"].items():
            what = f"{name}: {counts['built']:,} were built, {counts['planned']:,} are planned"
            problems.append(Problem(what, f"rank {row['rank']}", "report it: the plan's arithmetic is wrong here"))
    if problems:
        raise PlanError(problems=problems)


def _memory(memory: Memory, hardware: Hardware) -> _Json:
    return {
        **vars(memory),
        "reserved": memory.reserved,
        "total": memory.total,
        "capacity": hardware.memory,
        "fits": memory.total <= hardware.memory,
        "tight": memory.total > hardware.memory_to_plan_with,
    }


def _activations(place: Placement, layers: Layers) -> list[_Json]:
    """Return what is kept of each token: by every layer, and after the last one."""
    recompute = place.config.parallel.recompute
    parts = (("layer", layer_tensors(place, layers)), ("head", head_tensors(place, layers)))
    return [
        {"of": part, "tensor": saved.name, "bytes_per_token": saved.bytes_per_token}
        for part, tensors in parts
        for saved in tensors
        if recompute in saved.recompute
    ]


def _checkpoint(place: Placement, hardware: Hardware) -> _Json:
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


def _failures(place: Placement, hardware: Hardware, time: StepTime, hours: float) -> _Json:
    """Return what interruptions cost: half an interval between checkpoints and a restart each.

    The best interval between saves is sqrt(2 x what a save costs x time between failures), but no shorter than a save
    takes to be written. Source: Young, A First Order Approximation to the Optimum Checkpoint Interval (1974).
    """
    saved, between = _checkpoint(place, hardware), hardware["gpu_hours_between"] / place.gpus * _HOUR
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


def _advice(place: Placement, hardware: Hardware, layers: Layers, time: StepTime) -> _Json:
    found = choices(place, hardware, layers)
    return {
        "tried_that_fit": len(found),
        "faster_than_this": sum(choice.time.total < time.total for choice in found),
        "best": [_choice(choice, time) for choice in found[:_SHOWN]],
    }


def _choice(choice: Choice, own: StepTime) -> _Json:
    config, parallel = choice.place.config, choice.place.config.parallel
    return {
        "tensor": parallel.tensor,
        "pipeline": parallel.pipeline,
        "virtual_pipeline": parallel.virtual_pipeline,
        "context": parallel.context,
        "data_parallel": choice.place.data,
        "micro_batch_size": config.train.micro_batch_size,
        "recompute": parallel.recompute,
        "memory": choice.memory.total,
        "seconds": choice.time.total,
        "time_of_this": choice.time.total / own.total,
        "overrides": choice.overrides,
    }

"""The `gpus` part of the plan's JSON document: memory, time, checkpoints and advice for a number of GPUs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from megacode.base.errors import ConfigError, PlanError, Problem
from megacode.capacity.activations import Layers, head_tensors, layer_tensors, layers_of
from megacode.capacity.advice import LayoutCandidate, choices, smaller_optimizer
from megacode.capacity.hardware import GIB, Hardware, load_hardware
from megacode.capacity.interruptions import checkpoint, failures
from megacode.capacity.layout import Layout
from megacode.capacity.memory import Memory, fullest
from megacode.capacity.speed import StepTime, step_time
from megacode.config.run import RunConfig

_SHOWN = 5
_HOUR = 3600
_Json = dict[str, Any]


@dataclass(frozen=True)
class Cluster:
    """The GPUs to plan for.

    Attributes:
        gpus: number of GPUs for the config's own layout; None: no such plan.
        scale: numbers of GPUs to compare, each with its fastest layout.
        gpu: kind of GPU, as named in `hardware.yaml`.
        price: of one GPU-hour, in any currency; None: no cost is given.
        file: a user's own table of constants.
    """

    gpus: int | None = None
    scale: tuple[int, ...] = ()
    gpu: str = "H100"
    price: float | None = None
    file: Path | None = None


def cluster_document(config: RunConfig, cluster: Cluster, vocab_size: int, work: _Json) -> _Json:
    """Return memory, time, checkpoints, failures and advice, as plain values for JSON: bytes, seconds, hours.

    Args:
        config: the run.
        cluster: the GPUs.
        vocab_size: size of the vocabulary, without padding.
        work: the plan's document, for `flops`, `total_samples` and `phases`.

    Raises:
        ConfigError: the GPU is unknown, or the number of GPUs does not give whole copies of the model and whole
            micro-batches.
    """
    assert cluster.gpus is not None
    gpus, hardware, layers = cluster.gpus, load_hardware(cluster.gpu, cluster.file), layers_of(config)
    # Phases may differ in FP8; memory is checked for all of them, time is shown for the longest.
    place = Layout(config, gpus, vocab_size, longest_phase(work))
    place.check()
    check_formats(config, hardware)
    memory, time = fullest(place, hardware, layers), step_time(place, hardware, layers)
    phases = phase_times(place, hardware, layers, work)
    # Without failures; `failures.hours_with_failures` adds them.
    hours, rate = sum(phase["hours"] for phase in phases), model_rate(place, time, work)
    return {
        "gpus": gpus,
        "gpu": hardware.gpu,
        "layers": layers,
        # A partly used node counts as one.
        "nodes": -(-gpus // int(hardware["gpus_per_node"])),
        "data_parallel": place.data,
        "micro_batches": place.micro_batches,
        "flops_per_gpu": work["flops"] / gpus,
        "memory": _memory(memory, hardware),
        "activations": _activations(place, layers),
        "step": {**vars(time), "seconds": time.total},
        "phases": phases,
        "tokens_per_second": config.train.global_batch_size * config.train.seq_length / time.total,
        "model_flops_per_second_per_gpu": rate,
        # Against the dense bf16 peak also in FP8, so that runs are comparable.
        "mfu": rate / hardware.peak_flops(config.precision.dtype),
        "hours": hours,
        "gpu_hours": hours * gpus,
        "cost": None if cluster.price is None else hours * gpus * cluster.price,
        "checkpoint": checkpoint(place, hardware),
        "failures": failures(place, hardware, time.total, [phase["hours"] for phase in phases]),
        "advice": _advice(place, hardware, layers, time),
        "measured": hardware.measured,
    }


def check_formats(config: RunConfig, hardware: Hardware) -> None:
    """Refuse number formats that a GPU does not support.

    Raises:
        ConfigError: FP8 is configured, and the GPU does not support it.
    """
    if config.fp8_recipes and not hardware["fp8_flops"]:
        fix = "set it to none, or plan for another --gpu"
        raise ConfigError(f"{hardware.gpu} does not support FP8", "precision.fp8", fix)


def longest_phase(work: _Json) -> int:
    """Return the number of the phase with most samples, which the step time is shown for."""
    samples = [phase["samples"] for phase in work["phases"]]
    return samples.index(max(samples))


def phase_times(place: Layout, hardware: Hardware, layers: Layers, work: _Json) -> list[_Json]:
    """Return the step time and total hours of each phase, with full batches."""
    config, rows = place.config, []
    for number, (phase, row) in enumerate(zip(config.phases, work["phases"], strict=True)):
        seconds = step_time(replace(place, phase=number), hardware, layers).total
        # A fraction of a batch counts as that fraction: ramps and short last batches are not modelled.
        iterations = row["samples"] / config.train.global_batch_size
        recipe = config.fp8_in(phase)
        rows.append(
            {
                "name": phase.name,
                "fp8": recipe.recipe if recipe else None,
                "seconds": seconds,
                "hours": iterations * seconds / _HOUR,
            }
        )
    return rows


def model_rate(place: Layout, time: StepTime, work: _Json) -> float:
    """Return model FLOP/s per GPU; divided by the peak of the run's dtype this is the MFU, also in FP8."""
    batch = place.config.train.global_batch_size
    return float(work["flops"] / work["total_samples"] * batch / time.total / place.gpus)


def check_feasible(document: _Json) -> None:
    """Refuse a plan that cannot run on its GPUs; to be called after the plan has been shown.

    Raises:
        PlanError: a rank does not fit its GPU, or a dry run differs from the plan.
    """
    problems = []
    if "gpus" in document and not document["gpus"]["memory"]["fits"]:
        memory, advice = document["gpus"]["memory"], document["gpus"]["advice"]
        need, have = (f"{memory[key] / GIB:.1f} GiB" for key in ("total", "capacity"))
        # The best layout that fits, ready to paste after the command.
        layout = advice["best"][0] if advice["best"] else advice["smaller_optimizer"]
        fix = "use " + " ".join(layout["overrides"]) if layout else "use more GPUs, or GPUs with more memory"
        message = f"a rank of pipeline stage {memory['stage']} needs {need}; a {document['gpus']['gpu']} has {have}"
        problems.append(Problem(message, "--gpus", fix))
    for row in document.get("dry_run", []):
        for name, counts in row["unequal"].items():
            message = f"{name}: the dry run has {counts['built']:,}, the plan {counts['planned']:,}"
            problems.append(
                Problem(message, f"rank {row['rank']}", "please report this: the plan's arithmetic is wrong here")
            )
    if problems:
        raise PlanError(problems=problems)


def _memory(memory: Memory, hardware: Hardware) -> _Json:
    return {
        **vars(memory),
        "reserved": memory.reserved,
        "total": memory.total,
        "capacity": hardware.memory,
        # `fits` is the hard limit; `tight` says that the model's error could still exceed it.
        "fits": memory.total <= hardware.memory,
        "tight": memory.total > hardware.memory_to_plan_with,
    }


def _activations(place: Layout, layers: Layers) -> list[_Json]:
    """Return the activations kept per token: by every layer, and after the last one."""
    recompute = place.config.parallel.recompute
    groups = (("layer", layer_tensors(place, layers)), ("head", head_tensors(place, layers)))
    return [
        {"of": group, "tensor": saved.name, "bytes_per_token": saved.bytes_per_token}
        for group, tensors in groups
        for saved in tensors
        if recompute in saved.recompute
    ]


def _advice(place: Layout, hardware: Hardware, layers: Layers, time: StepTime) -> _Json:
    fitting = choices(place, hardware, layers)
    return {
        "tried_that_fit": len(fitting),
        "faster_than_this": sum(choice.time.total < time.total for choice in fitting),
        "best": [_choice(choice, time) for choice in fitting[:_SHOWN]],
        "smaller_optimizer": None if fitting else _smaller(place, hardware, layers),
    }


def _smaller(place: Layout, hardware: Hardware, layers: Layers) -> _Json | None:
    """Return the settings of an optimizer with which a run fits that otherwise does not; None: there are none."""
    choice = smaller_optimizer(place, hardware, layers)
    if choice is None:
        return None
    memory, seconds = choice.best.memory.total, choice.best.time.total
    return {"settings": choice.settings, "memory": memory, "seconds": seconds, "overrides": choice.overrides}


def _choice(choice: LayoutCandidate, own: StepTime) -> _Json:
    return {
        **choice.place.sizes,
        "memory": choice.memory.total,
        "seconds": choice.time.total,
        "time_of_this": choice.time.total / own.total,
        "overrides": choice.overrides,
    }

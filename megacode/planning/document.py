"""The plan of a run as one JSON document: what `megacode plan --json` prints and `plan.json` holds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from megacode.capacity.cluster import Cluster, cluster_document
from megacode.capacity.costs import flops_per_token, padded_vocabulary, parameter_counts, parameters
from megacode.capacity.scaling import scaling_document
from megacode.config.data import Phase
from megacode.config.run import RunConfig
from megacode.plan.batch import BatchSchedule
from megacode.plan.learning_rate import LearningRateSchedule, PhaseRate
from megacode.plan.optimizers import optimizer_changes
from megacode.plan.phases import PhasePlan, Schedule

_USEFUL_EPOCHS = 4
_Json = dict[str, Any]


def plan_document(
    config: RunConfig,
    schedule: Schedule,
    batches: BatchSchedule,
    rates: LearningRateSchedule,
    vocab_size: int,
    cluster: Cluster | None = None,
) -> _Json:
    """Return the whole plan as plain values for JSON.

    Counts are exact integers; `share`, `weight` and `epochs_*` are ratios; clocks are in samples. Figures of a phase
    are of what is read; `full_samples` and `full_tokens` are its length without `until`.

    Args:
        config: the run.
        schedule: which tokens each sample reads.
        batches: how many samples each iteration reads.
        rates: the learning rate of each iteration.
        vocab_size: size of the vocabulary, without padding.
        cluster: the GPUs to plan for; None: without memory and time.

    Raises:
        ConfigError: the GPU is unknown, or the number of GPUs does not give whole copies of the model and whole
            micro-batches.
    """
    # FLOPs and parameters are of the real vocabulary; padding is waste, and listed apart.
    per_token = flops_per_token(config.model, vocab_size, schedule.seq_length)
    padded = padded_vocabulary(config.model, vocab_size, config.parallel.tensor)
    total_tokens = schedule.total_samples * schedule.seq_length
    counts = parameter_counts(config.model, vocab_size)
    document: _Json = {
        "name": config.name,
        "seed": config.seed,
        "seq_length": schedule.seq_length,
        "global_batch_size": config.train.global_batch_size,
        "phases": _phases(config, schedule, batches, rates, per_token),
        "sources": {name: _source(config, schedule, name) for name in schedule.source_names if name in schedule.sizes},
        "total_samples": schedule.total_samples,
        "total_tokens": total_tokens,
        "total_iterations": batches.total_iterations,
        "parameters": counts.total,
        "parameters_padded": parameters(config.model, padded),
        "parameters_by_component": dict(vars(counts)),
        "vocab_size": vocab_size,
        "vocab_size_padded": padded,
        "flops_per_token": per_token,
        "flops": per_token * total_tokens,
    }
    if cluster is not None and cluster.gpus is not None:
        document["gpus"] = cluster_document(config, cluster, vocab_size, document)
    if cluster is not None and cluster.scale:
        document["scale"] = scaling_document(config, cluster, vocab_size, document)
    document["warnings"] = list(_warnings(config, schedule, document))
    # Last, since it is long and of no use to people.
    document["fingerprints"] = schedule.fingerprints()
    return document


def _phases(
    config: RunConfig, schedule: Schedule, batches: BatchSchedule, rates: LearningRateSchedule, per_token: int
) -> list[_Json]:
    """Return the phases; the counters of the sources continue from one to the next."""
    drawn = dict.fromkeys(schedule.source_names, 0)
    reached = dict.fromkeys(schedule.source_names, 0)  # samples 0 .. reached - 1 of the stream have been read
    result = []
    for phase, rate in zip(schedule.phases, rates.phases, strict=True):
        sources = {}
        for name, count in phase.counts.items():
            sources[name] = _phase_source(schedule, phase, name, drawn[name], reached[name])
            drawn[name] += count
            # A restart does not lower what has been read: max, not assignment.
            reached[name] = max(reached[name], phase.first_index[name] + count)
        first_iteration = batches.iteration_at(phase.first_sample)
        iterations = batches.iterations(phase.first_sample, phase.last_sample)
        # No batch crosses the end of a phase, so the last one may be short.
        last_batch = phase.last_sample - batches.clock_after(first_iteration + iterations - 1)
        result.append(
            {
                "name": phase.name,
                "first_sample": phase.first_sample,
                "samples": phase.samples,
                "tokens": phase.samples * schedule.seq_length,
                "full_samples": phase.full_samples,
                "full_tokens": phase.full_samples * schedule.seq_length,
                "left_early": phase.left_early,
                "first_iteration": first_iteration,
                "iterations": iterations,
                "last_batch_size": last_batch,
                "last_batch_short": last_batch < batches.batch_size(batches.clock_after(first_iteration)),
                "learning_rate": _learning_rate(rate, phase.last_sample),
                "optimizer": config.optimizer_in(config.phases[phase.index]),
                "flops": phase.samples * schedule.seq_length * per_token,
                "sources": sources,
            }
        )
    return result


def _phase_source(schedule: Schedule, phase: PhasePlan, name: str, drawn: int, reached: int) -> _Json:
    count, order = phase.counts[name], schedule.orders.get(name)
    # A source without windows is not drawn: its counts are 0.
    windows = order.windows if order else 1
    repetition = _first_repeated_index(phase.first_index[name], count, windows, reached)
    first = None if repetition is None else phase.tree.position(name, repetition - phase.first_index[name])
    return {
        "samples": count,
        "tokens": count * schedule.seq_length,
        "counted_tokens": _counted(schedule, name, count),
        "weight": phase.weights[name],
        "share": count / phase.samples,
        "epochs_before": drawn / windows,
        "epochs_after": (drawn + count) / windows,
        "first_repetition_sample": None if first is None else phase.first_sample + first,
        "tail_unused_tokens": order.tail_tokens if order else 0,
        "restarted": name in phase.restarted,
        "clipped": name in phase.clipped,
    }


def _counted(schedule: Schedule, name: str, samples: int) -> int:
    """Return how many tokens of some samples count in the loss by the source's mask; exact after whole epochs."""
    size = schedule.sizes.get(name)
    return round(samples * schedule.seq_length * (size.counted if size else 1.0))


def _first_repeated_index(first: int, count: int, windows: int, reached: int) -> int | None:
    """Return the index of the first sample in a phase whose window was read before, or None."""
    if not count:
        return None
    # A restart reads from 0 again; beyond `windows` a new epoch has begun.
    if first < reached or first >= windows:
        return first
    return windows if first + count > windows else None


def _learning_rate(rate: PhaseRate, last_sample: int) -> _Json:
    return {
        "schedule": rate.rule,
        "start": rate.start,
        "peak": rate.peak,
        "end": rate.at(last_sample),
        "warmup_samples": rate.warmup,
    }


def _source(config: RunConfig, schedule: Schedule, name: str) -> _Json:
    size, order = schedule.sizes[name], schedule.orders.get(name)
    samples = sum(phase.counts.get(name, 0) for phase in schedule.phases)
    return {
        "tokens": size.tokens,
        "documents": size.documents,
        "validation_tokens": size.validation_tokens,
        "declared": not size.identity,
        "identity": size.identity,
        "max_epochs": config.sources[name].max_epochs,
        "take": config.sources[name].take,
        "form": size.form,
        # What is expected; pieces that are too short or hold control tokens are read as stored.
        "fim_tokens": round(samples * schedule.seq_length * config.sources[name].fim_rate),
        "counted_tokens": _counted(schedule, name, samples),
        "windows": order.windows if order else None,
        "tail_unused_tokens": order.tail_tokens if order else None,
        "samples": samples,
        "epochs": samples / order.windows if order else 0.0,
    }


def _warnings(config: RunConfig, schedule: Schedule, document: _Json) -> Iterator[str]:
    yield from notes(config, schedule)
    yield from optimizer_changes(config)
    yield from _source_warnings(schedule, document["sources"])
    yield from _phase_warnings(config, schedule, document["phases"])


def _source_warnings(schedule: Schedule, sources: _Json) -> Iterator[str]:
    # A declared size has no content hash, since no data was read.
    declared = [name for name, row in sources.items() if row["declared"] and row["samples"]]
    if declared:
        yield f"{_listed(declared)}: sizes are declared, not read from data; the real plan may differ"
    unused = [name for name in schedule.source_names if not sources.get(name, {}).get("samples")]
    if unused:
        yield f"{_listed(unused)}: in sources, but no phase draws from it"
    for name, row in sources.items():
        # A warning, not an error: repeating a small source may be what an experiment is about.
        if row["epochs"] > _USEFUL_EPOCHS:
            reason = f"more than about {_USEFUL_EPOCHS} epochs teach little (Muennighoff et al., 2023)"
            yield f"{name}: read {row['epochs']:.1f} times over the run; {reason}"


def notes(config: RunConfig, schedule: Schedule) -> list[str]:
    """Return remarks on the config: blends that were normalised, and notes on its sources."""
    blends = [_normalised(phase) for phase in config.phases if phase.sums_to is None]
    return [*blends, *(f"{name}: {note}" for name, size in schedule.sizes.items() for note in size.notes)]


def _normalised(phase: Phase) -> str:
    shares = (f"{name} {weight / phase.total_weight:.1%}" for name, weight in phase.blend.items())
    return f"{phase.name}: its blend sums to {phase.total_weight:.6g} and was normalised: {', '.join(shares)}"


def _phase_warnings(config: RunConfig, schedule: Schedule, phases: list[_Json]) -> Iterator[str]:
    end = 0.0
    for number, (phase, row) in enumerate(zip(config.phases, phases, strict=True)):
        rate, asked = row["learning_rate"], phase.length
        for name, source in row["sources"].items():
            if source["clipped"]:
                change = f"its share is {source['share']:.1%} instead of {source['weight']:.1%}"
                yield f"{phase.name}: {name} reaches max_epochs {config.sources[name].max_epochs:g}, so {change}"
        # Only tokens are rounded, and only a difference above 1 % is worth a warning.
        for length, tokens in ((asked, row["full_tokens"]), (phase.until, row["tokens"])):
            if length is not None and length.unit == "tokens" and abs(tokens - length.count) > length.count / 100:
                yield f"{phase.name}: {length.count:,} tokens requested, {tokens:,} in whole global batches"
        if row["last_batch_short"]:
            yield f"{phase.name}: its last batch has only {row['last_batch_size']} samples"
        # A jump without warmup is often a mistake, and a frequent cause of spikes.
        if number and rate["start"] > 1.5 * end:
            yield f"{phase.name}: the learning rate jumps from {end:.3g} to {rate['start']:.3g} without a warmup"
        end = rate["end"]


def _listed(names: list[str]) -> str:
    return ", ".join(names)

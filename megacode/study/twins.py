"""Twins: a small run that repeats each source, phase by phase, as often as the full run does.

A small proxy with the full data sets hardly repeats anything, and so ranks blends wrongly where the full run repeats.
A twin of share f reads f of the samples of each phase from f of the windows of each source (`sources.NAME.take`). Both
are rounded once, to whole samples and windows, so a source's passes agree up to one window. Lengths are exact in
samples, and the last batch of a phase may be short.

With another `seq_length` windows hold other numbers of tokens; shares are of tokens. Warmup, decay and batch ramp are
cut alike, unless the twin's own settings give them.

Source: repetition mismatch as the cause of misleading proxies: arXiv 2606.07597.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

from megacode.base.errors import ConfigError, Problem
from megacode.config.data import LearningRate, Phase, Source
from megacode.config.quantity import Quantity
from megacode.config.run import RunConfig
from megacode.config.training import Training
from megacode.plan.learning_rate import PhaseRate
from megacode.plan.phase_plan import PhasePlan
from megacode.plan.sources import windows
from megacode.planning.run_plan import Plan


def twin_of(full: Plan, config: RunConfig, share: Fraction, where: str) -> RunConfig:
    """Return the config of a twin.

    Args:
        full: the plan of the full run.
        config: the full run's config with the twin's own settings, not yet cut.
        share: tokens of the twin for each of the full run.
        where: what asks for the twin, for messages.

    Raises:
        ConfigError: a source would keep no window, or the full run does not have it.
    """
    # Of samples, which have another length in a twin with another seq_length.
    ratio = share * full.schedule.seq_length / config.train.seq_length
    _refuse_short(full, config, ratio, where)
    phases = tuple(
        _phase(phase, was, plan, rate, ratio)
        for phase, was, plan, rate in zip(
            config.phases, full.config.phases, full.schedule.phases, full.rates.phases, strict=True
        )
    )
    changes: dict[str, Any] = {"phases": phases, "train": _train(config.train, full.config.train, ratio)}
    return config.model_copy(update=changes | {"sources": _sources(full, config, ratio, where)})


def _refuse_short(full: Plan, config: RunConfig, ratio: Fraction, where: str) -> None:
    """Refuse a twin with a phase shorter than a global batch."""
    # Its only iteration would be a short batch, which is other training than the full run's.
    batch = config.train.global_batch_size
    for plan in full.schedule.phases:
        if _scaled(plan.samples, ratio) < batch:
            what = (
                f"phase {plan.name!r} would have {_scaled(plan.samples, ratio):,} samples, less than one global batch"
            )
            part = f"use a larger part, or set train.global_batch_size to at most {_scaled(plan.samples, ratio)}"
            raise ConfigError(f"{what} of {batch:,}", where, part)


def _phase(phase: Phase, was: Phase, plan: PhasePlan, rate: PhaseRate, ratio: Fraction) -> Phase:
    # In samples: tokens and iterations would be rounded again, to whole batches.
    lengths = {"tokens": None, "iterations": None, "samples": _scaled(plan.full_samples, ratio)}
    until = _length(plan.samples, ratio) if plan.left_early else None
    learning_rate = _learning_rate(phase.learning_rate, was.learning_rate, rate, ratio)
    return phase.model_copy(update={**lengths, "until": until, "learning_rate": learning_rate})


def _learning_rate(own: LearningRate, was: LearningRate, rate: PhaseRate, ratio: Fraction) -> LearningRate:
    changes: dict[str, Any] = {}
    # What differs from the full run's setting is the twin's own, and stays.
    if own.warmup is not None and own.warmup == was.warmup:
        changes["warmup"] = _length(rate.warmup, ratio)
    if isinstance(own.decay, Quantity) and own.decay == was.decay:
        changes["decay"] = _length(rate.decay, ratio)
    return own.model_copy(update=changes)


def _train(own: Training, was: Training, ratio: Fraction) -> Training:
    # A ramp of its own is the twin's decision; an inherited one would otherwise fill its whole run.
    if own.batch_ramp is None or own.batch_ramp != was.batch_ramp:
        return own
    ramp = own.batch_ramp.model_copy(update={"samples": _scaled(own.batch_ramp.samples, ratio)})
    return own.model_copy(update={"batch_ramp": ramp})


def _sources(full: Plan, config: RunConfig, ratio: Fraction, where: str) -> dict[str, Source]:
    length, found, problems = config.train.seq_length, {}, []
    for name, source in config.sources.items():
        if name not in full.schedule.sizes:
            what = f"source {name!r} is one of the twin alone, so there are no passes of a full run to repeat"
            problems.append(
                Problem(what, where, f"add {name!r} to the full run, or remove it from the twin's settings")
            )
            continue
        size = full.schedule.sizes[name]
        whole = windows(size.tokens, full.schedule.seq_length, size.packed)
        # By the source alone, not by what an arm reads of it: arms of one twin scale share their trunks.
        kept = round(whole * ratio)
        if kept < 1:
            what = f"source {name!r} has {whole:,} windows, and the twin would keep none of them"
            problems.append(Problem(what, where, "use a larger part of the full run, or a smaller train.seq_length"))
        # One token more than the windows hold: the last label, which packed windows do not have.
        take = kept * length + (not size.packed)
        found[name] = source.model_copy(update={"take": take, "max_epochs": _cap(config, name, kept)})
    if problems:
        raise ConfigError(problems=problems)
    return found


def _cap(config: RunConfig, name: str, windows_kept: int) -> float | None:
    """Return a source's `max_epochs`: where passing it is an error, with room for rounding to whole windows."""
    cap = config.sources[name].max_epochs
    # Under `spread` the full run is clipped at the cap, and so must be the twin.
    if cap is None or config.caps == "spread":
        return cap
    return cap + (cap + len(config.phases) + 2) / max(1, windows_kept)


def _scaled(samples: int, ratio: Fraction) -> int:
    return max(1, round(samples * ratio))


def _length(samples: int, ratio: Fraction) -> Quantity:
    return Quantity(count=_scaled(samples, ratio), unit="samples")

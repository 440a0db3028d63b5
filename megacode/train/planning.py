"""A run's plan from its config and its data sets, without torch: what `megacode plan` shows and training obeys."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from megacode.base.errors import CheckpointError, ConfigError, Problem
from megacode.checkpoint.state import TrainState
from megacode.checkpoint.store import find_checkpoint
from megacode.config.quantity import Quantity
from megacode.config.run import RunConfig
from megacode.data.windows import source_sizes, vocabulary_size
from megacode.plan.batch import BatchSchedule
from megacode.plan.cluster import Cluster
from megacode.plan.difference import Difference, compare_configs, compare_schedules, former_schedule
from megacode.plan.learning_rate import LearningRateSchedule
from megacode.plan.past import lost, unknown_loss
from megacode.plan.phases import Schedule, SourceSize, build_schedule, prove_past
from megacode.plan.table import plan_document
from megacode.train.scoring_process import check_scoring


@dataclass(frozen=True)
class Plan:
    """The pure functions of the clock that decide a run.

    Attributes:
        config: what they follow from.
        schedule: which tokens each sample reads.
        batches: how many samples each iteration reads.
        rates: the learning rate of each iteration.
        vocab_size: tokens the model knows, without padding.
    """

    config: RunConfig
    schedule: Schedule
    batches: BatchSchedule
    rates: LearningRateSchedule
    vocab_size: int

    def multiples(self, every: Quantity | None) -> list[int]:
        """Return the iterations at which a quantity is reached again, from the run's start."""
        if every is None:
            return []
        if every.unit == "iterations":
            return list(range(every.count, self.batches.total_iterations + 1, every.count))
        samples = -(-every.count // (self.schedule.seq_length if every.unit == "tokens" else 1))
        clocks = range(samples, self.schedule.total_samples + 1, samples)
        return [self.batches.iteration_at(clock) for clock in clocks]

    def phase_ends(self) -> set[int]:
        """Return the iterations that end a phase."""
        return {self.batches.iteration_at(phase.last_sample) for phase in self.schedule.phases}

    def scored(self) -> frozenset[int]:
        """Return the iterations whose checkpoints get scores while the run goes on."""
        wanted = self.config.evaluate
        if wanted is None:
            return frozenset()
        return frozenset(self.multiples(wanted.every)) | (self.phase_ends() if wanted.at_phase_ends else set())

    def document(self, cluster: Cluster | None = None) -> dict[str, Any]:
        """Return the plan as one JSON document; with memory and time where there are GPUs to lay it over."""
        return plan_document(self.config, self.schedule, self.batches, self.rates, self.vocab_size, cluster)


def crosses(every: Quantity | None, seq_length: int, iteration: int, before: int, after: int) -> bool:
    """Return whether an iteration that moves the clock from `before` to `after`, in samples, reaches a multiple."""
    if every is None:
        return False
    if every.unit == "iterations":
        return iteration % every.count == 0
    samples = -(-every.count // (seq_length if every.unit == "tokens" else 1))
    return after // samples > before // samples


def check_trainable(config: RunConfig) -> None:
    """Refuse settings that can be planned, but that this release does not train with.

    Raises:
        ConfigError: with all of them.
    """
    problems = []
    for name, source in config.sources.items():
        if source.fim_rate:
            what = f"fill in the middle ({source.fim_rate:g}) is not part of this release"
            problems.append(Problem(what, f"sources.{name}.fim_rate", "set it to 0"))
    if problems:
        raise ConfigError(problems=problems)
    check_scoring(config)


@dataclass(frozen=True)
class Sizes:
    """What a plan needs to know of files: the sizes of all sources, and how many tokens the model knows."""

    sources: dict[str, SourceSize]
    vocabulary: int


def read_sizes(config: RunConfig, *, allow_declared: bool = False) -> Sizes:
    """Read the sizes of a run's sources and vocabulary.

    Raises:
        DataError: if a data set is missing or damaged.
    """
    return Sizes(source_sizes(config, allow_declared=allow_declared), vocabulary_size(config))


def make_plan(config: RunConfig, sizes: Sizes | None = None, *, allow_declared: bool = False) -> Plan:
    """Derive the plan of a run.

    Args:
        config: the resolved config.
        sizes: as rank 0 has read them; absent: read here.
        allow_declared: let a source's declared `tokens` stand in for a data set that is not there yet.

    Raises:
        DataError: if a data set is missing or damaged.
        PlanError: if the plan cannot be carried out.
    """
    sizes = sizes or read_sizes(config, allow_declared=allow_declared)
    schedule = build_schedule(config, sizes.sources)
    batches = BatchSchedule(config, schedule)
    rates = LearningRateSchedule(config, schedule, batches)
    return Plan(config, schedule, batches, rates, sizes.vocabulary)


def judge(plan: Plan, state: TrainState, accept_changed_past: bool = False) -> Difference:
    """Prove that a plan agrees with what a checkpoint has read, and say what is different from there on.

    Args:
        plan: to go on with.
        state: of the checkpoint.
        accept_changed_past: report what a changed past repeats and loses in place of refusing it.

    Raises:
        CheckpointError: if the past has changed and that is not accepted.
    """
    clock, chain = state.consumed_samples, state.fingerprints
    former = former_schedule(state.config, chain, clock, plan.schedule.sizes)
    loss = None
    try:
        prove_past(plan.schedule, chain, clock)
    except CheckpointError:
        if not accept_changed_past:
            raise
        loss = unknown_loss(clock) if former is None else lost(former, plan.schedule, clock)
    changes = compare_configs(state.config, plan.config, chain, clock)
    return replace(compare_schedules(former, plan.schedule, clock), changes=changes, lost=loss)


def plan_run(
    config: RunConfig,
    against: Path | None = None,
    accept_changed_past: bool = False,
    cluster: Cluster | None = None,
) -> dict[str, Any]:
    """Return a run's plan as one document, and prove that the past of `against` stays as it was.

    Args:
        config: the run.
        against: a run directory or a checkpoint, or None.
        accept_changed_past: say what a changed past repeats and loses in place of refusing it.
        cluster: GPUs to lay the run over, or None.

    Raises:
        CheckpointError: if the config would change what that checkpoint has already read.
    """
    plan = make_plan(config, allow_declared=True)
    document = plan.document(cluster)
    if against is not None:
        state = TrainState.read(find_checkpoint(against))
        difference = judge(plan, state, accept_changed_past)
        clock = {"checkpoint": str(against), "consumed_samples": state.consumed_samples}
        document["against"] = clock | difference.document()
    return document

"""A run's plan from its config and its data sets, without torch: what `megacode plan` shows and training obeys."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from megacode.base.errors import CheckpointError, ConfigError, Problem
from megacode.base.files import RunDir
from megacode.capacity.cluster import Cluster
from megacode.checkpoint.files import saved_vocabulary
from megacode.checkpoint.state import TrainState
from megacode.checkpoint.store import find_checkpoint, latest
from megacode.config.quantity import Quantity
from megacode.config.run import RunConfig
from megacode.data.indexed import bin_path, idx_path
from megacode.data.source_checks import tokenizer_facts
from megacode.data.windows import open_streams, source_sizes, vocabulary_size
from megacode.plan.batch import BatchSchedule
from megacode.plan.difference import (
    Difference,
    compare_configs,
    compare_schedules,
    former_schedule,
    model_changes,
    shown,
)
from megacode.plan.learning_rate import LearningRateSchedule
from megacode.plan.past import lost, unknown_loss
from megacode.plan.phases import Schedule, SourceSize, build_schedule, prove_past
from megacode.planning.suite import check_scoring
from megacode.planning.tables import plan_document


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
    problems = _untrainable(config)
    if problems:
        raise ConfigError(problems=problems)


def _untrainable(config: RunConfig) -> list[Problem]:
    what = "fill in the middle ({:g}) is not part of this release"
    problems = [
        Problem(what.format(source.fim_rate), f"sources.{name}.fim_rate", "set it to 0")
        for name, source in config.sources.items()
        if source.fim_rate
    ]
    try:
        check_scoring(config)
    except ConfigError as error:
        problems += error.problems
    return problems


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


def prove_same_model(plan: Plan, state: TrainState, checkpoint: Path) -> None:
    """Refuse a checkpoint whose weights are not those of the config's model, naming every difference.

    Args:
        plan: to go on with.
        state: of the checkpoint.
        checkpoint: its directory.

    Raises:
        CheckpointError: a shape or what is computed differs, or the vocabulary's size.
    """
    fix = "use the model it was saved with, or another run_dir"
    problems = [
        Problem(f"the checkpoint has {shown(change.old)}, the config {shown(change.new)}", change.key, fix)
        for change in model_changes(state.config, plan.config)
    ]
    saved = saved_vocabulary(checkpoint)
    if saved not in (None, plan.vocab_size):
        what = f"the checkpoint has {saved:,} tokens, the config {plan.vocab_size:,}"
        problems.append(Problem(what, "model.vocab_size", fix))
    if problems:
        raise CheckpointError(problems=problems)


def prove_compatible(plan: Plan, checkpoint: Path, state: TrainState, accept_changed_past: bool = False) -> Difference:
    """Prove that a plan agrees with what a checkpoint is and has read, and say what is different from there on.

    `plan --against` and every start that resumes or branches ask here, so that they give one answer.

    Args:
        plan: to go on with.
        checkpoint: its directory.
        state: of the checkpoint.
        accept_changed_past: report what a changed past repeats and loses in place of refusing it.

    Raises:
        CheckpointError: the model is another one, or its tokenizer; or the past has changed and that is not accepted.
    """
    prove_same_model(plan, state, checkpoint)
    _prove_same_tokenizer(plan.config, state)
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


def _prove_same_tokenizer(config: RunConfig, state: TrainState) -> None:
    facts = tokenizer_facts(config.tokenizer)
    if facts is not None and state.tokenizer_hash and facts["hash"] != state.tokenizer_hash:
        what = f"the run was trained with tokenizer {state.tokenizer_hash[:12]}, this one is {facts['hash'][:12]}"
        fix = "name the tokenizer it was trained with, or start a new run from its weights (init.from)"
        raise CheckpointError(what, "tokenizer", fix)


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
        DataError: if a source that is there is damaged, or not of the run's tokenizer or vocabulary.
    """
    plan = make_plan(config, allow_declared=True)
    _check_present_sources(config)
    document = plan.document(cluster)
    document["warnings"] += [f"train refuses this run: {_on_one_line(problem)}" for problem in _untrainable(config)]
    document["warnings"] += _missing_yet(config)
    if against is not None:
        checkpoint = find_checkpoint(against)
        state = TrainState.read(checkpoint)
        difference = prove_compatible(plan, checkpoint, state, accept_changed_past)
        clock = {"checkpoint": str(against), "consumed_samples": state.consumed_samples}
        document["against"] = clock | difference.document()
    else:
        _check_start(plan)
    return document


def _check_present_sources(config: RunConfig) -> None:
    """Check the sources that are there as a start checks them: what cannot work is refused before it."""
    present = {
        name: source
        for name, source in config.sources.items()
        if bin_path(source.path).exists() or idx_path(source.path).exists()
    }
    known = config.tokenizer if tokenizer_facts(config.tokenizer) is not None else None
    open_streams(config.model_copy(update={"sources": present, "tokenizer": known}))


def _on_one_line(problem: Problem) -> str:
    return f"{problem.where}: {problem.what}; {problem.fix}"


def _missing_yet(config: RunConfig) -> list[str]:
    """Return what a start needs and a plan does not: it may come later."""
    missing = []
    if config.tokenizer is not None and not Path(config.tokenizer.path).exists():
        missing.append(f"the tokenizer is not there yet: {config.tokenizer.path}; model.vocab_size stands in for it")
    if config.init.from_ != "random" and _start(config) is None and latest(RunDir(config.directory)) is None:
        missing.append(f"init.from holds no checkpoint yet: {config.init.from_}")
    return missing


def _start(config: RunConfig) -> Path | None:
    """Return the checkpoint that `init.from` names, if it is there."""
    try:
        return find_checkpoint(Path(config.init.from_))
    except CheckpointError:
        return None


def _check_start(plan: Plan) -> None:
    """Check the weights that a run would start from, as its first start does; a run of its own goes on from its own."""
    init = plan.config.init
    checkpoint = None if init.from_ == "random" else _start(plan.config)
    if checkpoint is None or latest(RunDir(plan.config.directory)) is not None:
        return
    state = TrainState.read(checkpoint)
    if init.load == "weights":
        prove_same_model(plan, state, checkpoint)
    else:
        prove_compatible(plan, checkpoint, state)

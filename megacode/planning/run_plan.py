"""`Plan`: derive a run's plan from its config and data sets, without torch, for `megacode plan` and for training."""

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
    Change,
    Difference,
    adapts,
    compare_configs,
    compare_schedules,
    former_schedule,
    model_changes,
    render_changes,
    shown,
)
from megacode.plan.learning_rate import LearningRateSchedule
from megacode.plan.optimizers import prove_same_optimizer
from megacode.plan.past import lost, unknown_loss
from megacode.plan.phases import Schedule, SourceSize, build_schedule, prove_past
from megacode.planning.alignment import check_counted, check_probe, probe_document
from megacode.planning.mirrors import mirror_problems
from megacode.planning.suite import check_scoring
from megacode.planning.tables import plan_document


@dataclass(frozen=True)
class Plan:
    """Data order, batches and learning rate of a run, as pure functions of the clock.

    Attributes:
        config: the run.
        schedule: which tokens each sample reads.
        batches: how many samples each iteration reads.
        rates: the learning rate of each iteration.
        vocab_size: size of the vocabulary, without padding.
    """

    config: RunConfig
    schedule: Schedule
    batches: BatchSchedule
    rates: LearningRateSchedule
    vocab_size: int

    def multiples(self, every: Quantity | None) -> list[int]:
        """Return the iterations at which multiples of a quantity are reached."""
        if every is None:
            return []
        if every.unit == "iterations":
            return list(range(every.count, self.batches.total_iterations + 1, every.count))
        # Rounded up: a multiple in tokens is reached once all of them are read.
        samples = -(-every.count // (self.schedule.seq_length if every.unit == "tokens" else 1))
        # A multiple inside an iteration is reached by that iteration.
        clocks = range(samples, self.schedule.total_samples + 1, samples)
        return [self.batches.iteration_at(clock) for clock in clocks]

    def phase_ends(self) -> set[int]:
        """Return the iterations that end a phase."""
        return {self.batches.iteration_at(phase.last_sample) for phase in self.schedule.phases}

    def scored(self) -> frozenset[int]:
        """Return the iterations whose checkpoints are scored during training."""
        evaluate = self.config.evaluate
        if evaluate is None:
            return frozenset()
        return frozenset(self.multiples(evaluate.every)) | (self.phase_ends() if evaluate.at_phase_ends else set())

    def document(self, cluster: Cluster | None = None) -> dict[str, Any]:
        """Return the plan as one JSON document, with memory and time if GPUs are given."""
        document = plan_document(self.config, self.schedule, self.batches, self.rates, self.vocab_size, cluster)
        probes = len(self.multiples(self.config.health.alignment_probe.every))
        gpus = cluster.gpus if cluster is not None else None
        probe = probe_document(self.config, self.schedule, probes, self.vocab_size, document, gpus)
        return document if probe is None else {**document, "alignment_probe": probe}


def crosses(every: Quantity | None, seq_length: int, iteration: int, before: int, after: int) -> bool:
    """Return whether an iteration that moves the clock from `before` to `after`, in samples, reaches a multiple."""
    if every is None:
        return False
    if every.unit == "iterations":
        return iteration % every.count == 0
    # The same rounding as in `Plan.multiples`, or training would save at other iterations than planned.
    samples = -(-every.count // (seq_length if every.unit == "tokens" else 1))
    # Comparing quotients also works where an iteration jumps over the multiple.
    return after // samples > before // samples


def check_trainable(config: RunConfig) -> None:
    """Refuse settings that can be planned but not trained.

    Raises:
        ConfigError: lists all of them.
    """
    problems = _untrainable(config)
    if problems:
        raise ConfigError(problems=problems)


def _untrainable(config: RunConfig) -> list[Problem]:
    problems = list(mirror_problems(config))
    try:
        check_scoring(config)
    # All that would refuse the run, in one list: a user fixes it once.
    except ConfigError as error:
        problems += error.problems
    return problems


@dataclass(frozen=True)
class SourceSizes:
    """What a plan needs to know about files: the sizes of all sources and of the vocabulary."""

    sources: dict[str, SourceSize]
    vocabulary: int


def read_sizes(config: RunConfig, *, allow_declared: bool = False) -> SourceSizes:
    """Read the sizes of a run's sources and vocabulary.

    Raises:
        DataError: if a data set is missing or damaged.
        ConfigError: if no token counts in what the alignment probe reads of a source.
    """
    sizes = source_sizes(config, allow_declared=allow_declared)
    check_counted(config, sizes)
    return SourceSizes(sizes, vocabulary_size(config))


def make_plan(config: RunConfig, sizes: SourceSizes | None = None, *, allow_declared: bool = False) -> Plan:
    """Derive the plan of a run.

    Args:
        config: the resolved config.
        sizes: as read by rank 0; None: read here.
        allow_declared: use a source's declared `tokens` where its data set does not exist yet.

    Raises:
        DataError: if a data set is missing or damaged.
        PlanError: if a cap makes a phase infeasible.
        ConfigError: if a source has too few held-out windows for the alignment probe.
    """
    sizes = sizes or read_sizes(config, allow_declared=allow_declared)
    # Each follows from the ones before: order, then batches, then learning rates.
    schedule = build_schedule(config, sizes.sources)
    check_probe(config, schedule)
    batches = BatchSchedule(config, schedule)
    rates = LearningRateSchedule(config, schedule, batches)
    return Plan(config, schedule, batches, rates, sizes.vocabulary)


def prove_same_model(plan: Plan, state: TrainState, checkpoint: Path, *, weights_only: bool = False) -> list[Change]:
    """Refuse a checkpoint of another model than the config's, listing every difference.

    Args:
        plan: to resume or start with.
        state: of the checkpoint.
        checkpoint: its directory.
        weights_only: a new run starts from its weights; settings that they adapt to may differ (`difference.adapts`).

    Returns:
        These settings; none where the whole state is continued.

    Raises:
        CheckpointError: a shape, a setting of the forward pass or the size of the vocabulary differs.
    """
    fix = "use the model settings it was saved with, or another run_dir"
    changes = model_changes(state.config, plan.config)
    adapted = [change for change in changes if weights_only and adapts(change)]
    problems = [
        Problem(f"the checkpoint has {shown(change.old)}, the config {shown(change.new)}", change.key, fix)
        for change in changes
        if change not in adapted
    ]
    saved = saved_vocabulary(checkpoint)
    # Not a change of settings: the vocabulary may come from a tokenizer that was replaced at the same path.
    if saved not in (None, plan.vocab_size):
        message = f"the checkpoint has a vocabulary of {saved:,} tokens, the config {plan.vocab_size:,}"
        problems.append(Problem(message, "model.vocab_size", fix))
    if problems:
        raise CheckpointError(problems=problems)
    return adapted


def prove_compatible(plan: Plan, checkpoint: Path, state: TrainState, accept_changed_past: bool = False) -> Difference:
    """Prove that a plan agrees with a checkpoint's model and past, and return what changes after it.

    Used by `plan --against` and by every start that resumes or branches, so that all of them agree.

    Args:
        plan: to resume or branch with.
        checkpoint: its directory.
        state: of the checkpoint.
        accept_changed_past: report what a changed past repeats and loses instead of refusing it.

    Raises:
        CheckpointError: the checkpoint is a mean of others; the model or the tokenizer differs; or the past has
            changed and that is not accepted.
    """
    if state.merged:
        message = (
            f"it is a mean of {len(state.merged['of'])} checkpoints, without the state of an optimizer to resume from"
        )
        fix = "start a new run from its weights: init: {from: ..., load: weights}"
        raise CheckpointError(message, str(checkpoint), fix)
    prove_same_model(plan, state, checkpoint)
    _prove_same_tokenizer(plan.config, state)
    clock, chain = state.consumed_samples, state.fingerprints
    # Rebuilt from the checkpoint's own config; None if that is no longer possible.
    former = former_schedule(state.config, chain, clock, plan.schedule.sizes)
    loss = None
    try:
        prove_past(plan.schedule, chain, clock)
    except CheckpointError:
        if not accept_changed_past:
            raise
        # Accepted by the user: report the cost instead of refusing.
        loss = unknown_loss(clock) if former is None else lost(former, plan.schedule, clock)
    if chain:
        # The phase of the last sample that was read: at a border that is the one which has ended.
        phase = plan.schedule.phase_at(min(clock, plan.schedule.total_samples) - 1)
        over = clock >= phase.last_sample
        prove_same_optimizer(plan.config, phase.index, state.config, len(chain) - 1, str(checkpoint), over=over)
    changes = compare_configs(state.config, plan.config, chain, clock)
    return replace(compare_schedules(former, plan.schedule, clock), changes=changes, lost=loss)


def _prove_same_tokenizer(config: RunConfig, state: TrainState) -> None:
    facts = tokenizer_facts(config.tokenizer)
    if facts is not None and state.tokenizer_hash and facts["hash"] != state.tokenizer_hash:
        message = f"the run was trained with tokenizer {state.tokenizer_hash[:12]}, this one is {facts['hash'][:12]}"
        fix = "use the tokenizer it was trained with, or start a new run from its weights (init.from)"
        raise CheckpointError(message, "tokenizer", fix)


def plan_run(
    config: RunConfig,
    against: Path | None = None,
    accept_changed_past: bool = False,
    cluster: Cluster | None = None,
) -> dict[str, Any]:
    """Return a run's plan as one document, and prove that the past of `against` is unchanged.

    Args:
        config: the run.
        against: a run directory or a checkpoint, or None.
        accept_changed_past: report what a changed past repeats and loses instead of refusing it.
        cluster: GPUs to plan for, or None.

    Raises:
        CheckpointError: if the config would change what that checkpoint has already read.
        DataError: if an existing source is damaged, or has another tokenizer or vocabulary than the run.
    """
    plan = make_plan(config, allow_declared=True)
    _check_present_sources(config)
    document = plan.document(cluster)
    document["warnings"] += [
        f"`megacode train` will refuse this run: {_on_one_line(problem)}" for problem in _untrainable(config)
    ]
    # Planning before the data exists is allowed, so these are warnings.
    document["warnings"] += _missing_yet(config)
    if against is not None:
        checkpoint = find_checkpoint(against)
        state = TrainState.read(checkpoint)
        difference = prove_compatible(plan, checkpoint, state, accept_changed_past)
        clock = {"checkpoint": str(against), "consumed_samples": state.consumed_samples}
        document["against"] = clock | difference.document()
    else:
        document["warnings"] += [
            f"init.from: the weights were trained with another setting: {line}" for line in _check_start(plan)
        ]
    return document


def _check_present_sources(config: RunConfig) -> None:
    """Check the sources that exist, as a start of training does."""
    present = {
        name: source
        for name, source in config.sources.items()
        if bin_path(source.path).exists() or idx_path(source.path).exists()
    }
    # Without the tokenizer's files its hash cannot be compared with those of the data sets.
    known = config.tokenizer if tokenizer_facts(config.tokenizer) is not None else None
    open_streams(config.model_copy(update={"sources": present, "tokenizer": known}))


def _on_one_line(problem: Problem) -> str:
    return f"{problem.where}: {problem.what}; {problem.fix}"


def _missing_yet(config: RunConfig) -> list[str]:
    """Return what training needs but a plan does not: it may be created later."""
    missing = []
    if config.tokenizer is not None and not Path(config.tokenizer.path).exists():
        missing.append(f"the tokenizer does not exist yet: {config.tokenizer.path}; model.vocab_size is used instead")
    if config.init.from_ != "random" and _start(config) is None and latest(RunDir(config.directory)) is None:
        missing.append(f"init.from has no checkpoint yet: {config.init.from_}")
    return missing


def _start(config: RunConfig) -> Path | None:
    """Return the checkpoint that `init.from` names, or None."""
    try:
        return find_checkpoint(Path(config.init.from_))
    except CheckpointError:
        return None


def _check_start(plan: Plan) -> list[str]:
    """Check the weights that a run would start from, as its first start does; a run with checkpoints resumes.

    Returns:
        Settings of the model that differ from those the weights were trained with, as lines.
    """
    init = plan.config.init
    checkpoint = None if init.from_ == "random" else _start(plan.config)
    if checkpoint is None or latest(RunDir(plan.config.directory)) is not None:
        return []
    state = TrainState.read(checkpoint)
    # Weights alone have no past to prove; `all` continues the clock of the trunk.
    if init.load == "weights":
        return render_changes(prove_same_model(plan, state, checkpoint, weights_only=True))
    prove_compatible(plan, checkpoint, state)
    return []

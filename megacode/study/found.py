"""Find trained states by content: the state that each checkpoint below a directory holds.

A checkpoint carries its config, its fingerprints and its clock; they give the id of its state, wherever it lies and
whatever its run is called. There is no registry that could be wrong. A checkpoint whose run changed what it learns by,
when it was resumed, is the state of no arm.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from megacode.base.errors import MegacodeError
from megacode.base.files import Json
from megacode.checkpoint.files import saved_vocabulary
from megacode.checkpoint.state import FILE_NAME, TrainState
from megacode.checkpoint.store import find_checkpoint
from megacode.config.run import RunConfig
from megacode.plan.batch import BatchSchedule
from megacode.plan.difference import former_config, former_schedule
from megacode.plan.learning_rate import LearningRateSchedule
from megacode.planning.run_plan import Plan
from megacode.study.identity import RANDOM, LearnedPast, start_from
from megacode.study.merging import merged_state

_DEEPEST = 16  # checkpoints that start from each other


@dataclass(frozen=True)
class Found:
    """A state found on disk.

    Attributes:
        id: of the state.
        path: its checkpoint.
        seal: of the checkpoint.
        past: of the run that saved it.
        phase, read: the state's place in that run.
        merged: it is a mean; the place is that of the newest of its parts.
    """

    id: str
    path: Path
    seal: str
    past: LearnedPast
    phase: int
    read: int
    merged: bool = False


def find_states(directory: Path) -> dict[str, Found]:
    """Return the states below a directory by id; of several checkpoints of one state, the first by path.

    Checkpoints that cannot be read, or whose data order is by another version's rules, are skipped.
    """
    states: dict[str, Found] = {}
    for state in all_states(directory):
        states.setdefault(state.id, state)
    return states


def all_states(directory: Path) -> list[Found]:
    """Return the states of all checkpoints below a directory, by path; see `find_states`."""
    # Abandoned checkpoints lie a directory deeper and do not count.
    files = sorted(directory.glob(f"**/checkpoints/iter_*/{FILE_NAME}"))
    return [state for file in files for state in states_of(file.parent)]


def states_of(checkpoint: Path, depth: int = 0) -> list[Found]:
    """Return the state of a checkpoint, once for each way to name what it started from.

    Args:
        checkpoint: its directory.
        depth: of checkpoints that led here by `init`.
    """
    try:
        state = TrainState.read(checkpoint)
        return list(_merged(state, checkpoint, depth) if state.merged else _trained(state, checkpoint, depth))
    except MegacodeError:
        return []


def _trained(state: TrainState, checkpoint: Path, depth: int) -> Iterator[Found]:
    plan = _trained_plan(state, checkpoint, state.config, state.consumed_samples)
    if plan is None or not _trained_as_one(state, checkpoint, plan):
        return
    phase, read = place_of(plan, state.consumed_samples)
    # A branch carries the configs of its trunks, oldest first. So its start is known after the trunk was deleted.
    first = former_config(state.formers()[0][1]) if state.former_configs else plan.config
    for start in _recorded_starts(state, checkpoint, depth) or starts_of(first, depth):
        past = LearnedPast(plan, state.tokenizer_hash, start)
        yield Found(past.at(phase, read), checkpoint, state.seal, past, phase, read)


def _recorded_starts(state: TrainState, checkpoint: Path, depth: int) -> list[str]:
    """Return the names of the checkpoint whose weights a run began with, as it recorded them; empty for others."""
    recorded = state.started_from()
    if recorded is None or depth > _DEEPEST:
        return []
    seal, origin = recorded
    try:
        starts = list((_merged if origin.merged else _trained)(origin, checkpoint, depth + 1))
    except MegacodeError:
        # Of another version, or one that was never trained, such as a converted model.
        starts = []
    return [start_from("checkpoint", seal), *(start_from("state", start.id) for start in starts)]


def _merged(state: TrainState, checkpoint: Path, depth: int) -> Iterator[Found]:
    """Yield the state of a mean; it carries all that its parts are known by, so they need not be there any more."""
    weights = [weight for weight, _ in state.merged_from()]
    parts = [
        list((_merged if part.merged else _trained)(part, checkpoint, depth + 1)) for _, part in state.merged_from()
    ]
    # Parts of one trunk have as many names each, one for each name of the trunk's start.
    if depth > _DEEPEST or len({len(names) for names in parts}) != 1:
        return
    for names in zip(*parts, strict=True):
        newest = max(names, key=lambda one: (one.phase, one.read))
        id_ = merged_state((weight, one.id) for weight, one in zip(weights, names, strict=True))
        yield replace(newest, id=id_, seal=state.seal, merged=True)


def _trained_plan(state: TrainState, checkpoint: Path, text: str, clock: int) -> Plan | None:
    """Return the plan of a config that a checkpoint was trained with up to a clock; None where it proves another."""
    # The tensors know the vocabulary even where the config leaves it to the tokenizer.
    return proven_plan(text, state.fingerprints, clock, saved_vocabulary(checkpoint))


def proven_plan(text: str, fingerprints: Sequence[Json], clock: int, vocabulary: int | None) -> Plan | None:
    """Return the plan that a model was trained by up to a clock; None where its fingerprints prove another past.

    Args:
        text: its config, YAML.
        fingerprints: its chain, which holds the sizes of the sources that were read.
        clock: samples.
        vocabulary: its size; None: as the config says.
    """
    config = former_config(text)
    chain = [link for link in fingerprints if link["first_sample"] < clock]
    schedule = former_schedule(text, chain, clock, {})
    if schedule is None or not 0 < clock <= schedule.total_samples:
        return None
    # The same classes as in a plan: an id computed another way would find nothing.
    batches = BatchSchedule(config, schedule)
    rates = LearningRateSchedule(config, schedule, batches)
    return Plan(config, schedule, batches, rates, vocabulary or config.model.vocab_size or 0)


def _trained_as_one(state: TrainState, checkpoint: Path, plan: Plan) -> bool:
    """Return whether the configs that a checkpoint was trained with before teach the same as its last one."""
    past = LearnedPast(plan, state.tokenizer_hash)
    for clock, config in state.formers():
        other = _trained_plan(state, checkpoint, config, clock)
        # Its settings changed on the way, so it is the state of no arm.
        if other is None or LearnedPast(other, state.tokenizer_hash).at(*place_of(other, clock)) != past.at(
            *place_of(plan, clock)
        ):
            return False
    return True


def place_of(plan: Plan, clock: int) -> tuple[int, int]:
    """Return the number of the phase that ends at a clock or contains it, and the samples read of it."""
    # At a phase's end the clock belongs to the phase that is over.
    phase = plan.schedule.phase_at(clock - 1)
    return phase.index, clock - phase.first_sample


def starts_of(config: RunConfig, depth: int = 0) -> Iterator[str]:
    """Yield what a run's first phase may have started from; a branch with all of a trunk's state has its start."""
    if config.init.from_ == "random":
        yield RANDOM
        return
    try:
        origin = find_checkpoint(Path(config.init.from_))
        state = TrainState.read(origin)
        if depth > _DEEPEST:
            return
        if config.init.load == "all":
            yield from starts_of(former_config(state.config), depth + 1)
            return
    except MegacodeError:
        return
    # Nobody wrote down whether it was an arm's end or a checkpoint from elsewhere: both names are tried.
    # `init.load: weights`, not recorded in the checkpoint: the origin must still be there.
    yield start_from("checkpoint", state.seal)
    for earlier in states_of(origin, depth + 1):
        yield start_from("state", earlier.id)

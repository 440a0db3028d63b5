"""Find trained states by content: the state that each checkpoint below a directory holds.

A checkpoint carries its config, its fingerprints and its clock; they give the id of its state, wherever it lies and
whatever its run is called. There is no registry that could be wrong.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from megacode.base.errors import MegacodeError
from megacode.checkpoint.files import saved_vocabulary
from megacode.checkpoint.state import FILE_NAME, TrainState
from megacode.checkpoint.store import find_checkpoint
from megacode.config.run import RunConfig
from megacode.plan.batch import BatchSchedule
from megacode.plan.difference import former_config, former_schedule
from megacode.plan.learning_rate import LearningRateSchedule
from megacode.planning.run_plan import Plan
from megacode.study.identity import RANDOM, LearnedPast, start_from

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
    """

    id: str
    path: Path
    seal: str
    past: LearnedPast
    phase: int
    read: int


def find_states(directory: Path) -> dict[str, Found]:
    """Return the states below a directory by id; of several checkpoints of one state, the first by path.

    Checkpoints that cannot be read, or whose data order is by another version's rules, are skipped.
    """
    found: dict[str, Found] = {}
    # Abandoned checkpoints lie a directory deeper and do not count.
    for file in sorted(directory.glob(f"**/checkpoints/iter_*/{FILE_NAME}")):
        for state in states_of(file.parent):
            found.setdefault(state.id, state)
    return found


def states_of(checkpoint: Path, depth: int = 0) -> list[Found]:
    """Return the state of a checkpoint, once for each way to name what it started from.

    Args:
        checkpoint: its directory.
        depth: of checkpoints that led here by `init`.
    """
    try:
        state = TrainState.read(checkpoint)
        config = former_config(state.config)
        # Built from what the checkpoint carries, and proven against its own chain.
        schedule = former_schedule(state.config, state.fingerprints, state.consumed_samples, {})
        if schedule is None or not 0 < state.consumed_samples <= schedule.total_samples:
            return []
        # The same classes as in a plan: an id computed another way would find nothing.
        batches = BatchSchedule(config, schedule)
        rates = LearningRateSchedule(config, schedule, batches)
    except MegacodeError:
        return []
    # The tensors know it even where the config leaves it to the tokenizer.
    vocabulary = saved_vocabulary(checkpoint) or config.model.vocab_size or 0
    plan = Plan(config, schedule, batches, rates, vocabulary)
    # At a phase's end the clock belongs to the phase that is over.
    phase = schedule.phase_at(state.consumed_samples - 1)
    read = state.consumed_samples - phase.first_sample
    pasts = [LearnedPast(plan, state.tokenizer_hash, start) for start in _starts(config, depth)]
    return [Found(past.at(phase.index, read), checkpoint, state.seal, past, phase.index, read) for past in pasts]


def _starts(config: RunConfig, depth: int) -> Iterator[str]:
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
            yield from _starts(former_config(state.config), depth + 1)
            return
    except MegacodeError:
        return
    # Nobody wrote down whether it was an arm's end or a checkpoint from elsewhere: both names are tried.
    # `init.load: weights`. The origin must still be there: without its seal the start has no name.
    yield start_from("checkpoint", state.seal)
    for found in states_of(origin, depth + 1):
        yield start_from("state", found.id)

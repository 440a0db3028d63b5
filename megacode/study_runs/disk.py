"""What lies below a study's directory of runs: trained states, and run directories that stopped on their way.

Everything is found by content. A run directory counts for a stretch of training if its config leads through it. What it
is called, and which arms the study had when it was made, do not matter.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from megacode.base import lock
from megacode.base.errors import MegacodeError
from megacode.base.files import RunDir
from megacode.checkpoint.state import TrainState
from megacode.checkpoint.store import find_checkpoint, latest
from megacode.config.run import RunConfig
from megacode.data.source_checks import tokenizer_facts
from megacode.plan.difference import former_config
from megacode.planning.run_plan import make_plan
from megacode.study.found import Found, all_states, starts_of, states_of
from megacode.study.identity import LearnedPast
from megacode.study.tree import TreeNode

Place = tuple[int, int]  # number of a phase, and the samples read of it


@dataclass(frozen=True)
class DiskRun:
    """A run directory, and how far its run has come.

    Attributes:
        run: the directory.
        past: of its config.
        place: of its newest checkpoint; where it started if it has none.
        checkpoint: its newest one, or None.
    """

    run: RunDir
    past: LearnedPast
    place: Place
    checkpoint: Path | None

    @property
    def alive(self) -> bool:
        """Whether a process trains there now."""
        # The lock's file outlives a killed process; its owner does not.
        return self.run.lock.exists() and lock.owner(self.run) is not None

    @property
    def finished(self) -> bool:
        """Whether it has trained all that its config asks for."""
        phases = self.past.plan.schedule.phases
        return self.place == (len(phases) - 1, phases[-1].samples)

    def leads_through(self, node: TreeNode) -> bool:
        """Return whether its config trains a node, to its end."""
        phases = self.past.plan.schedule.phases
        # Ids cost hashes, so what cannot be there is told by numbers first.
        inside = node.phase < len(phases) and node.last <= phases[node.phase].samples
        return inside and self.past.at(node.phase, node.last) == node.id

    def is_at(self, node: TreeNode) -> bool:
        """Return whether its newest checkpoint lies at the start of a node that its config trains, or inside."""
        phase, read = self.place
        if phase == node.phase:
            return node.first <= read < node.last
        # At the end of a phase the clock belongs to the phase that is over.
        before, phases = node.phase - 1, self.past.plan.schedule.phases
        return node.first == 0 and 0 <= before < len(phases) and self.place == (before, phases[before].samples)


class Disk:
    """A study's directory of runs, read once.

    Args:
        directory: the study's `runs`.

    Attributes:
        states: the states there by id; of several checkpoints of one state, the first by path.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        # The slow part: it reads the state of every checkpoint, and rebuilds its plan.
        self._all = all_states(directory)
        self.states: dict[str, Found] = {}
        for state in self._all:
            self.states.setdefault(state.id, state)

    @cached_property
    def runs(self) -> list[DiskRun]:
        """The run directories, by name; one whose start has two names comes twice (see `found.states_of`)."""
        folders = sorted(path.parent for path in self._directory.glob(f"*/{RunDir('').config}"))
        by_path: dict[Path, list[Found]] = {}
        for state in self._all:
            by_path.setdefault(state.path, []).append(state)
        return [one for folder in folders for one in _disk_runs(RunDir(folder), by_path)]

    def inside(self, node: TreeNode) -> Found | None:
        """Return the furthest state between a node's start and its end, or None."""
        states = [
            state
            for state in self._all
            if state.phase == node.phase
            and node.first < state.read < node.last
            and node.cell.past.at(state.phase, state.read) == state.id
        ]
        # The furthest saves most; all of them are on the node's own way.
        return max(states, key=lambda state: state.read, default=None)


def _disk_runs(run: RunDir, by_path: dict[Path, list[Found]]) -> Iterator[DiskRun]:
    newest = latest(run)
    try:
        # A checkpoint at clock 0 has learned nothing, and names no state.
        started = newest is not None and TrainState.read(newest).consumed_samples > 0
        if newest is not None and started:
            # Empty where the run changed what it learns by: no arm may continue it.
            for state in by_path.get(newest, []):
                disk_run = DiskRun(run, state.past, (state.phase, state.read), newest)
                yield disk_run if disk_run.finished else replace(disk_run, past=_with_its_future(run, state))
        else:
            yield from _begun(run)
    except (MegacodeError, OSError):
        # Damaged, or of another version. `megacode train` says more if somebody starts it.
        return


def _with_its_future(run: RunDir, state: Found) -> LearnedPast:
    """Return the past of an unfinished run that also knows what it has not read yet.

    A checkpoint knows only the data sets that were read. Later phases of its run may read others, and without these a
    run that was stopped would not be recognised as leading to its arm's end.
    """
    try:
        past = _past_of(_config_of(run), state.past.start)
    except (MegacodeError, OSError):
        return state.past
    # Data that changed since, or another config: then only what the checkpoint proves counts.
    known = state.phase < len(past.ends) and past.at(state.phase, state.read) == state.id
    return past if known else state.past


def _config_of(run: RunDir) -> RunConfig:
    return former_config(run.config.read_text(encoding="utf-8"))


def _past_of(config: RunConfig, start: str) -> LearnedPast:
    facts = tokenizer_facts(config.tokenizer)
    return LearnedPast(make_plan(config, allow_declared=True), str(facts["hash"]) if facts else "", start)


def _begun(run: RunDir) -> Iterator[DiskRun]:
    """Yield a run directory that has saved nothing yet, at the place where its run started."""
    config = _config_of(run)
    place = (0, 0)
    if config.init.from_ != "random" and config.init.load == "all":
        states = states_of(find_checkpoint(Path(config.init.from_)))
        # The trunk's checkpoint is gone or damaged: where this run began is not known.
        if not states:
            return
        place = (states[0].phase, states[0].read)
    for start in starts_of(config):
        yield DiskRun(run, _past_of(config, start), place, None)

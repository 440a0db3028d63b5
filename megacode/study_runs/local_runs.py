"""`megacode study run`: train and score, on this machine, what a study still lacks."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from rich.console import Console

from megacode.base.errors import EXIT_RESUMABLE, ConfigError, LaunchError, PlanError, Problem
from megacode.base.files import atomic_path, remove
from megacode.base.lock import RunLock
from megacode.base.ownership import read
from megacode.base.units import counted
from megacode.capacity.layout import uneven_batches
from megacode.config.evaluate import MADE_SUITES
from megacode.config.run import RunConfig
from megacode.config.suggestions import did_you_mean
from megacode.eval.made_items import items_dir
from megacode.planning.run_plan import check_trainable
from megacode.study.matching import prove
from megacode.study.places import StudyDir
from megacode.study.planned_tree import planned_tree
from megacode.study.tree import Tree
from megacode.study.working_directory import advice_on
from megacode.study_runs.disk import Disk
from megacode.study_runs.history import accept
from megacode.study_runs.jobs import StudyJob, jobs_of, write_configs
from megacode.study_runs.processes import JobResults, Processes, Room
from megacode.study_runs.progress_table import ProgressTable
from megacode.study_runs.runs import StudyRun, chosen_nodes, needed_runs
from megacode.study_runs.scores import ScoreBoard
from megacode.study_runs.states import RunState, run_states

_ITEMS_SEED = 1234
MakeItems = Callable[[Sequence[RunConfig], str, Path], None]


@dataclass(frozen=True)
class Choices:
    """What the user asks for.

    Attributes:
        parallel: processes at once; None: as many as there is room for.
        nproc: ranks of a run; None: as few as its layout allows.
        only: names of arms; empty: all.
        scores: whether arms are scored.
        allow_code: let tasks run code that the model writes.
        retrain: arms that have changed may be trained again.
        retry: also try again what failed for good.
    """

    parallel: int | None = None
    nproc: int | None = None
    only: tuple[str, ...] = ()
    scores: bool = True
    allow_code: bool = False
    retrain: bool = False
    retry: bool = False


def run_study(path: Path, choices: Choices, make_items: MakeItems, console: Console) -> int:
    """Train and score what a study lacks; return the exit code.

    Args:
        path: of the study file.
        choices: what the user asks for.
        make_items: writes the items of a suite that is made from held-out documents, for all configs of the study.
        console: for what is shown.

    Returns:
        0: everything is there; 1: something failed; 75: stopped, and the next call resumes.

    Raises:
        ConfigError, DataError: the study is wrong, or has changed since it was run.
        PlanError: a claim of the study does not hold.
        LaunchError: the study is being run by another process.
    """
    tree = checked_tree(path)
    check_choices(tree, choices)
    place = StudyDir(tree.grid.study.directory)
    # From here on one process: two would train the same nodes.
    with _StudyLock(place) as lock:
        work = prepare(tree, place, choices, path.name, make_items)
        jobs = work.jobs(choices)
        if not jobs:
            return _report(console, JobResults(), work, choices, path)
        room = Room(max(choices.nproc or 1, *(run.ranks for run in work.runs), 1), choices.parallel)
        _announce(console, work, jobs, room)
        with ProgressTable(console, jobs) as table:
            results = Processes(jobs, place, room, table, lock.beat).run()
        return _report(console, results, work, choices, path)


def checked_tree(path: Path) -> Tree:
    """Return the tree of a study that can be trained as it is.

    Raises:
        ConfigError, DataError: the study is wrong, or its data are not there.
        PlanError: a claim does not hold, or a phase is infeasible.
    """
    _, grid, tree = planned_tree(path)
    problems = [problem for proof in prove(grid) for problem in proof.problems]
    if problems:
        raise PlanError(problems=problems)
    if grid.provisional:
        message = f"not there yet: {', '.join(grid.provisional)}"
        fixes = (fix for cell in grid.cells for fix in advice_on(cell.plan.config, path).values())
        fix = "make the data sets and the tokenizer first; `megacode study plan` needs none; relative paths are below "
        raise ConfigError(message, path.name, next(fixes, f"{fix}{Path.cwd()}"))
    return tree


def check_choices(tree: Tree, choices: Choices) -> None:
    """Refuse unknown arms, and runs that do not fit their number of ranks.

    Raises:
        ConfigError: with all of them.
    """
    known = {name for arm, _ in tree.paths for name in (arm, arm.split("@")[0])}
    problems = [
        Problem(f"there is no arm {name!r}", "--only", did_you_mean(name, sorted(known)))
        for name in choices.only
        if name not in known
    ]
    # Seeds and second names share configs, and each is checked once.
    for config in {id(cell.plan.config): cell.plan.config for cell in tree.grid.cells}.values():
        problems += _misfits(config, choices.nproc or config.parallel.model_size)
        check_trainable(config)
    if choices.scores and tree.grid.study.suites and find_spec("lm_eval") is None:
        problems.append(
            Problem("lm-eval is not installed", "suites", "pip install 'megacode[eval]', or add --no-scores")
        )
    if problems:
        raise ConfigError(problems=list(dict.fromkeys(problems)))


def _misfits(config: RunConfig, ranks: int) -> list[Problem]:
    size = config.parallel.model_size
    if ranks % size:
        message = f"{ranks} ranks are not divisible by tensor x pipeline x context parallel = {size}"
        return [Problem(message, "--nproc", f"give a multiple of {size}, or leave it out")]
    return uneven_batches(config, ranks)


@dataclass(frozen=True)
class Work:
    """What a study still lacks.

    Attributes:
        tree: of the study.
        runs: to be trained, and their states.
        board: its scores.
        disk: what exists.
        place: of the study.
    """

    tree: Tree
    runs: list[StudyRun]
    states: dict[str, RunState]
    board: ScoreBoard
    disk: Disk
    place: StudyDir

    def held(self, retry: bool) -> dict[str, RunState]:
        """Return the runs that are not started: they failed for good, or start from one that did."""
        return {} if retry else {name: state for name, state in self.states.items() if state.held}

    def jobs(self, choices: Choices) -> list[StudyJob]:
        """Return the jobs that are left, the most urgent first."""
        held_runs = self.held(choices.retry)
        runs = [run for run in self.runs if run.name not in held_runs]
        ends = self.ends(choices.only, {node.id for run in self.runs if run.name in held_runs for node in run.nodes})
        return jobs_of(runs, ends if choices.scores else {}, self.board, self.place, choices.nproc, choices.allow_code)

    def ends(self, only: Collection[str], held_nodes: Collection[str] = ()) -> dict[str, Path]:
        """Return the checkpoints at the ends of arms by node, those included that are still to be made.

        Args:
            only: names of arms; empty: all.
            held_nodes: nodes that are not to be made.
        """
        planned = {
            node.id: run.checkpoint(node) for run in self.runs for node in run.nodes if node.id not in held_nodes
        }
        known = planned | {state: on_disk.path for state, on_disk in self.disk.states.items()}
        chosen = chosen_nodes(self.tree, only)
        return {end: known[end] for end in self.board.of if end in chosen and end in known}


def prepare(tree: Tree, place: StudyDir, choices: Choices, where: str, make_items: MakeItems) -> Work:
    """Accept a study as it is now, make its items and configs, and return what it lacks.

    Args:
        tree: of the study.
        place: its directory of runs.
        choices: what the user asks for.
        where: name of the study's file, for messages.
        make_items: see `run_study`.

    Raises:
        ConfigError: the study has changed since it was run, and `choices.retrain` is not set.
    """
    disk = Disk(place.path)
    # Of removed arms, too: what was seen before the study changed is what its history must say.
    accept(tree, disk, place, where, place.is_scored, choices.retrain)
    if choices.scores:
        for suite in tree.grid.study.suites:
            if suite in MADE_SUITES:
                make_items(_for_items(tree), suite, place.items / suite)
    board = ScoreBoard(tree, disk, choices.allow_code)
    runs = needed_runs(tree, disk, choices.only, board.done(choices.retrain))
    write_configs(runs, place)
    _share_items(runs, place)
    return Work(tree, runs, run_states(runs, place), board, disk, place)


def _for_items(tree: Tree) -> list[RunConfig]:
    """Return all configs of a study, with one seed: another list of seeds must not change the items."""
    return [cell.plan.config.model_copy(update={"seed": _ITEMS_SEED}) for cell in tree.grid.cells]


def _share_items(runs: Sequence[StudyRun], place: StudyDir) -> None:
    """Give runs that are scored while they train the items of the study, before they make their own."""
    for run in runs:
        evaluate = run.config.evaluate
        shared = place.items / evaluate.suite if evaluate is not None and evaluate.suite in MADE_SUITES else None
        own = items_dir(run.run.path, evaluate.suite) if evaluate is not None else None
        if shared is not None and own is not None and shared.is_dir() and not own.exists():
            with atomic_path(own) as temporary:
                shutil.copytree(shared, temporary)


class _StudyLock:
    """This process's lock on a study."""

    def __init__(self, place: StudyDir) -> None:
        self._place, self._lock = place, RunLock(place.as_run)

    def __enter__(self) -> _StudyLock:
        try:
            self._lock.acquire()
        except LaunchError as error:
            message = f"this study is being run by {read(self._place.lock) or 'another process'}"
            fix = f"wait until it ends; `touch {self._place.stop_request}` makes it save and stop"
            raise LaunchError(message, str(self._place.lock), fix) from error
        remove(self._place.stop_request)
        return self

    def __exit__(self, *error: object) -> None:
        self._lock.release()
        remove(self._place.stop_request)

    def beat(self) -> bool:
        """Show that this process is alive; False if another one has taken the study."""
        return self._lock.beat()


def _announce(console: Console, work: Work, jobs: Sequence[StudyJob], room: Room) -> None:
    runs, merges = (sum(job.kind == kind for job in jobs) for kind in ("train", "merge"))
    merged = f", {counted(merges, 'merge')}" if merges else ""
    scores = counted(len(jobs) - runs - merges, "score")
    words = f"{counted(runs, 'run')}{merged} and {scores} to make, {room.jobs} at once; "
    words += f"logs in {work.place.logs}"
    console.print(words, highlight=False, soft_wrap=True)


def _report(console: Console, results: JobResults, work: Work, choices: Choices, path: Path) -> int:
    """Say how it ended and what to do next; return the exit code."""

    def say(line: str) -> None:
        console.print(line, highlight=False, markup=False, soft_wrap=True)

    held_runs = {name: state for name, state in work.held(False).items() if name not in results.done}
    for name, error in results.failed.items():
        say(f"failed: {name}: {error}")
        say(f"    log: {work.place.log(name)}")
    for name, state in held_runs.items():
        if name not in results.failed:
            say(f"not tried again: {name}: {state.state} {state.cause}".rstrip())
    for name, lacking in results.missing.items():
        say(f"not started: {name}: {lacking} is not there, and no run makes it")
    waiting = {name: maker for name, maker in results.waiting.items() if maker}
    if waiting and not results.stopped:
        verb = "waits" if len(waiting) == 1 else "wait"
        say(f"{counted(len(waiting), 'job')} {verb} for {', '.join(dict.fromkeys(waiting.values()))}")
    if results.same_mistake:
        say("the first runs all have wrong input, so no other was started")
    trained = {node.id for run in work.runs for node in run.nodes}
    lost = {end: why for end, why in work.board.lost().items() if end not in trained}
    for end, why in lost.items():
        name = f"{work.tree.nodes[end].arms[0]} seed {work.tree.nodes[end].cell.seed}"
        say(f"not scored again: {name}: {why}, and its checkpoint was deleted; --retrain-stale trains it again")
    name = shlex.quote(str(path))
    # What was not even tried is no success: scripts go by the code.
    code = results.exit_code or (1 if held_runs or lost else 0)
    if code == EXIT_RESUMABLE:
        say(f"stopped; the same command resumes: megacode study run {name}")
    elif code:
        say(f"fix the cause, and run it again (--retry if nothing changed in the study): megacode study run {name}")
    else:
        say(f"{_made(work, choices)} are there: megacode study status {name}")
    return code


def _made(work: Work, choices: Choices) -> str:
    """Return what a call that made everything has made."""
    scored = choices.scores and work.tree.grid.study.suites
    of = f" of {', '.join(choices.only)}" if choices.only else ""
    return f"all runs{' and scores' if scored else ''}{of}"

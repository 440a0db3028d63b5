"""`megacode study submit`: one SLURM job for each run and each score that a study still lacks.

With CONTINUITY=requeue a job keeps its number until its run is finished. So whatever starts from it is submitted at
once and waits (`afterok`); if the run fails, SLURM removes what waits for it. With `chain` the run ends in a job of
another number. Then only what can start now is submitted, and the last job of each run submits what it made ready.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from megacode.base import lock
from megacode.base.errors import ConfigError, LaunchError, Problem
from megacode.base.files import Json
from megacode.base.lock import RunLock
from megacode.capacity.layout import uneven_batches
from megacode.launch import slurm
from megacode.launch.continuity import settings
from megacode.launch.scoring_job import submit_scoring
from megacode.launch.submission import STUDY, Request, launch_command, render_script
from megacode.study.places import StudyDir
from megacode.study_runs.jobs import StudyJob, is_published, jobs_of
from megacode.study_runs.local_runs import Choices, MakeItems, Work, check_choices, checked_tree, prepare
from megacode.study_runs.slurm_jobs import (
    describe_end,
    locked,
    note_submission,
    queued_jobs,
    site_variable,
    slurm_name,
)

Fate = Literal["submitted", "queued", "running", "waits", "held", "refused"]
_STUCK = ("waits", "held", "refused")


@dataclass(frozen=True)
class Submission:
    """How jobs are submitted.

    Attributes:
        request: resources of a job that trains.
        flags: options of sbatch for all jobs.
        score_flags: options of sbatch for jobs that score.
        site: file of the cluster's settings; None: there is none.
        arguments: of `megacode study submit`, which the last job of a run repeats.
        after: submit only what starts from this run, or scores it; empty: everything.
    """

    request: Request
    flags: tuple[str, ...] = ()
    score_flags: tuple[str, ...] = ()
    site: Path | None = None
    arguments: tuple[str, ...] = ()
    after: str = ""


@dataclass(frozen=True)
class JobFate:
    """What became of a run or a score that the study lacks.

    Attributes:
        name: its name.
        kind: `train`, `merge` or `score`.
        fate: `submitted` now; `queued` before; `running` outside of SLURM; `waits` until another run's last job submits
            it; `held` because it failed for good, or starts from what did; `refused` by SLURM.
        job: its number; empty if there is none.
        after: numbers of the jobs that it waits for.
        why: why there is no job.
        cause: the name of the held one that it starts from.
    """

    name: str
    kind: str
    fate: Fate
    job: str = ""
    after: tuple[str, ...] = ()
    why: str = ""
    cause: str = ""

    def document(self) -> Json:
        """Return it as JSON."""
        return {**vars(self), "after": list(self.after)}


def submit_study(
    path: Path, choices: Choices, how: Submission, make_items: MakeItems, environment: Mapping[str, str]
) -> list[JobFate]:
    """Submit what a study lacks and what is not in the queue yet; return what became of each part.

    Args:
        path: of the study file.
        choices: what the user asks for.
        how: how jobs are submitted.
        make_items: see `running.run_study`.
        environment: of this process.

    Raises:
        ConfigError, DataError: the study is wrong, has changed since it was run, or does not fit the ranks.
        PlanError: a claim of the study does not hold.
        LaunchError: SLURM does not answer, or the study is being run by another process.
    """
    _refuse_words((*how.flags, *how.score_flags))
    tree = checked_tree(path)
    # The jobs' own lm-eval scores; a login node may have none.
    check_choices(tree, replace(choices, scores=False, nproc=None))
    place = StudyDir(tree.grid.study.directory)
    chains = settings({"CONTINUITY": site_variable(how.site, "CONTINUITY", environment)}).way == "chain"
    with locked(place) as run_lock:
        work = prepare(tree, place, choices, path.name, make_items)
        # Before the first job: half a study in the queue is worse than none.
        _refuse_misfits(work, how.request.nodes * how.request.ranks_per_node)
        # After the disk was read: a job that ends in between has made what the submitter looks for once more.
        return list(_Submitter(work, choices, how, queued_jobs(place), chains, run_lock).entries())


def _refuse_words(flags: Sequence[str]) -> None:
    for flag in flags:
        # A word without a dash would become the job's script.
        if not flag.startswith("-"):
            fix = "write it with `=`, for example -- --partition=gpu --account=my-project"
            raise ConfigError(f"{flag!r} is not an option of sbatch", "megacode study submit", fix)


def _refuse_misfits(work: Work, ranks: int) -> None:
    problems: list[Problem] = []
    for run in work.runs:
        size = run.config.parallel.model_size
        if ranks % size:
            message = f"{ranks} ranks are not divisible by tensor x pipeline x context parallel = {size}"
            fix = "change --nodes and --ranks-per-node; --only submits some arms, others may follow with other numbers"
            problems.append(Problem(message, f"run {run.name}", fix))
        else:
            problems += uneven_batches(run.config, ranks)
    if problems:
        raise ConfigError(problems=list(dict.fromkeys(problems)))


class _Submitter:
    def __init__(
        self,
        work: Work,
        choices: Choices,
        how: Submission,
        queued: Mapping[str, slurm.Queued],
        chains: bool,
        run_lock: RunLock,
    ) -> None:
        self.work, self.choices, self.how, self.queued, self.chains, self.lock = (
            work,
            choices,
            how,
            queued,
            chains,
            run_lock,
        )
        self.place = work.place
        # By checkpoint: the entry of the run that makes it.
        self.makers: dict[Path, JobFate] = {}

    def entries(self) -> Iterator[JobFate]:
        """Yield what becomes of each run, parents first, and of each score."""
        # SLURM starts no job whose log it cannot open, and says so nowhere.
        self.place.logs.mkdir(parents=True, exist_ok=True)
        order = {run.name: number for number, run in enumerate(self.work.runs)}
        ends = self.work.ends(self.choices.only) if self.choices.scores else {}
        jobs = jobs_of(self.work.runs, ends, self.work.board, self.place, None, self.choices.allow_code)
        for job in sorted(jobs, key=lambda job: order.get(job.name, len(order))):
            if job.is_done or (job.is_ready and job.skip()) or not self._follows(job):
                continue
            entry = self._entry(job)
            self.makers |= dict.fromkeys(job.makes, entry)
            yield entry
            # Hundreds of jobs take minutes; without it the lock would count as abandoned.
            self.lock.beat()

    def _follows(self, job: StudyJob) -> bool:
        """Return whether a job starts from the run that was named, if one was."""
        starts = [run.start for run in self.work.runs if run.name == job.name and run.start is not None]
        return not self.how.after or any(path.parents[1].name == self.how.after for path in (*starts, *job.needs))

    def _entry(self, job: StudyJob) -> JobFate:
        # The queue first: what is there is never submitted twice.
        queued = self.queued.get(job.name)
        if queued is not None:
            return JobFate(job.name, job.kind, "queued", queued.number)
        if job.run is not None and (owner := lock.owner(job.run)) is not None:
            return JobFate(job.name, job.kind, "running", why=str(owner))
        state = self.work.states.get(job.name)
        if state is not None and state.outcome is not None and state.outcome.final and not self.choices.retry:
            return JobFate(job.name, job.kind, "held", why=f"{state.state}: {state.cause}")
        needed = [self.makers[path] for path in job.needs if not is_published(path) and path in self.makers]
        # For example a trunk that `--only` leaves out.
        missing = next((path for path in job.needs if not is_published(path)), None)
        if missing is not None and not needed:
            return JobFate(job.name, job.kind, "held", why=f"{missing} is not there, and no run makes it")
        stuck = next((one for one in needed if one.fate in _STUCK and one.fate != "waits"), None)
        if stuck is not None:
            return JobFate(job.name, job.kind, "held", why=f"starts from {stuck.name}", cause=stuck.cause or stuck.name)
        late = next((one for one in needed if self.chains or not one.job), None)
        if late is not None:
            return JobFate(job.name, job.kind, "waits", why=f"until {late.name} has ended")
        return self._submit(job, tuple(one.job for one in needed))

    def _submit(self, job: StudyJob, after: tuple[str, ...]) -> JobFate:
        flags = list(self.how.flags)
        if after:
            # Without the second option a job would wait for ever for one that failed.
            flags += [f"--dependency=afterok:{':'.join(after)}", "--kill-on-invalid-dep=yes"]
        variables = {STUDY: describe_end(self.place, job.name, job.kind, self.how.arguments)}
        try:
            number = self._train(job, flags, variables) if job.kind == "train" else self._score(job, flags, variables)
        except LaunchError as error:
            return JobFate(job.name, job.kind, "refused", why=error.problems[0].what)
        note_submission(self.place, job.name, number, after)
        return JobFate(job.name, job.kind, "submitted", number, after)

    def _train(self, job: StudyJob, flags: list[str], variables: dict[str, str]) -> str:
        name = slurm_name(self.place, job.name)
        script = render_script(self.how.request, name, self.place.config(job.name), [])
        site = {"SITE": str(self.how.site)} if self.how.site is not None else {}
        # A directory or a chain of the shell's, or of the job that this one follows, is not this run's.
        cleared = dict.fromkeys(("RUN_DIR", "MEGACODE_CHAIN", "MEGACODE_CHAIN_BEFORE"), "")
        command = [*launch_command(self.how.site), f"--output={self.place.log(job.name)}", *flags]
        return slurm.submit(command, {**variables, **site, **cleared}, script)

    def _score(self, job: StudyJob, flags: list[str], variables: dict[str, str]) -> str:
        name, output = slurm_name(self.place, job.name), self.place.log(job.name)
        words = 2 if job.kind == "merge" else 1  # of the command's own name
        command, arguments = job.arguments[:words], job.arguments[words:]
        return submit_scoring(name, output, arguments, [*flags, *self.how.score_flags], variables, command)

"""Errors that users can fix: each says what is wrong, where, and how to fix it.

A user's mistake is a `MegacodeError`: the command ends with its `exit_code`, without a traceback. `assert` is only for
megacode's own invariants.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

# Scripts and SLURM jobs branch on these codes, so they never change. 75 is EX_TEMPFAIL of <sysexits.h>.
EXIT_FAILURE = 1
EXIT_INPUT = 2
EXIT_CHECK = 3
EXIT_RESUMABLE = 75


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong.

    Attributes:
        what: what is wrong, with the offending values.
        where: the place: `file:key`, a path, a command-line flag; empty where there is none.
        fix: what to do about it, with concrete numbers where there are any.
    """

    what: str
    where: str = ""
    fix: str = ""

    def render(self, indent: str = "  ") -> str:
        """Return the problem as one to three indented lines."""
        head = f"{self.where}: {self.what}" if self.where else self.what
        return indent + head + (f"\n{indent}    {self.fix}" if self.fix else "")


class MegacodeError(Exception):
    """A user's mistake, with a fix.

    Args:
        what: what is wrong, with the offending values.
        where: the place it is wrong at.
        fix: what to do about it.
        problems: several problems at once, in place of the three above.
    """

    title = "Error"
    exit_code = EXIT_INPUT
    of_all_ranks = False  # True where every rank raises the same error; then only rank 0 prints it

    def __init__(self, what: str = "", where: str = "", fix: str = "", *, problems: Sequence[Problem] = ()) -> None:
        self.problems: tuple[Problem, ...] = tuple(problems) or (Problem(what, where, fix),)
        super().__init__(self.render())

    def __str__(self) -> str:
        return (
            self.render()
        )  # not from `args`: ranks pickle errors to each other, and unpickling calls the class on `args`

    def render(self) -> str:
        """Return the message as shown to the user."""
        # One problem is printed on the title's line; several are listed below it.
        if len(self.problems) == 1:
            return f"{self.title}: " + self.problems[0].render(indent="").lstrip()
        body = "\n".join(problem.render() for problem in self.problems)
        return f"{self.title}: {len(self.problems)} problems\n{body}"


class ConfigError(MegacodeError):
    """The run's config, or a command's arguments, are wrong."""

    title = "Config error"


class DataError(MegacodeError):
    """A data set, a tokenizer or an input file is missing, damaged or unsuitable."""

    title = "Data error"


class CheckpointError(MegacodeError):
    """A checkpoint or an exported model is missing, damaged or does not belong to this run."""

    title = "Checkpoint error"


class LaunchError(MegacodeError):
    """The processes of a run cannot be started as asked."""

    title = "Launch error"


class MirrorError(MegacodeError):
    """A service does not take a run's measurements; they are all in metrics.jsonl, and can be sent later."""

    title = "Mirror error"
    exit_code = EXIT_FAILURE


class StoppedError(MegacodeError):
    """The run was asked to stop before it trained; it can be started again (exit code 75).

    Args:
        signal: name of what has asked.
    """

    title = "Stopped"
    exit_code = EXIT_RESUMABLE
    of_all_ranks = True

    def __init__(self, signal: str) -> None:
        super().__init__(f"{signal} came while the run was starting; nothing was trained", "", "start it again")


class PlanError(MegacodeError):
    """The plan cannot be carried out: a check failed (exit code 3)."""

    title = "Plan error"
    exit_code = EXIT_CHECK


class VerificationError(MegacodeError):
    """Two things that must be equal are not (exit code 3)."""

    title = "Verification failed"
    exit_code = EXIT_CHECK

"""The record of unfinished preprocessing: what is on the disk for certain, and which job it belongs to.

A job writes its temporary files to a directory `.NAME.partial` beside its output, and at every durable chunk a record
of how much of them counts. After a kill the same job cuts the files back to the record and resumes. Another job never
does: it is refused, or starts again if `--overwrite` is given.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from megacode.base.errors import EXIT_RESUMABLE, ConfigError, MegacodeError
from megacode.base.files import Json, read_json, remove, write_json

_FORMAT = 1


class UnfinishedError(MegacodeError):
    """A command was stopped, and the same command resumes where it was (exit code 75)."""

    title = "Stopped"
    exit_code = EXIT_RESUMABLE


class Journal:
    """The record of one job.

    Args:
        prefix: of the first data set that the job makes.
        facts: all that decides the bytes of the result, by names that a user knows.
        resumable: whether the input can be read again; if not, an attempt is never resumed.

    Attributes:
        directory: for the temporary files.
        path: of the record.
        facts: see the arguments.
        record: the last one that was written or read; None: there is none.
        resumable: see the arguments.
    """

    def __init__(self, prefix: Path, facts: Json, *, resumable: bool = True) -> None:
        # Beside the output, and so on its disk: publishing is then a rename, and copies nothing.
        self.directory = prefix.with_name(f".{prefix.name}.partial")
        self.record: Json | None = None
        self.path = self.directory / "record.json"
        # The format is a fact, too: records of an older layout are another job's.
        self.facts = {"format": _FORMAT, **facts}
        self.resumable = resumable

    def read(self, overwrite: bool, skip_bad_lines: bool) -> Json | None:
        """Return the record of this job's earlier attempt; None if there is none.

        Args:
            overwrite: whether the unfinished work of another job may be lost.
            skip_bad_lines: whether this job skips them. It may resume where none were skipped, and so may one that
                stopped at a bad line resume with skipping.

        Raises:
            ConfigError: if the directory holds the unfinished work of another job.
        """
        record = read_json(self.path)
        theirs = record.get("facts", {})
        # Names of both, so that a setting which only one of them has differs as well.
        differing = [name for name in {**theirs, **self.facts} if theirs.get(name) != self.facts.get(name)]
        # Lines that were skipped are not in the files, and this job must not leave any out.
        if record and record["place"]["bad_lines"] and not skip_bad_lines:
            differing.append("--skip-bad-lines")
        if record and not differing and self.resumable:
            self.record = record
        # Hours of work: only the user may give it up.
        elif record and not overwrite:
            message = f"there is unfinished work of another command, which differs in {_listed(differing or ['input'])}"
            fix = "run that command again to resume it, or give --overwrite to discard it and start again"
            raise ConfigError(message, f"--output-prefix ({self.directory})", fix)
        return self.record

    def begin(self) -> None:
        """Make the directory; without a record all that is in it is removed."""
        if self.record is None:
            # Without a record nobody knows how much of these files is whole.
            self.clear()
        self.directory.mkdir(parents=True, exist_ok=True)

    def write(self, record: Json) -> None:
        """Record what is on the disk by now."""
        self.record = {"facts": self.facts, **record}
        write_json(self.path, self.record)

    def clear(self) -> None:
        """Remove the directory with all temporary files, the record last."""
        self.record = None
        if self.directory.exists():
            for path in self.directory.iterdir():
                if path != self.path:
                    remove(path)
            remove(self.directory)


def _listed(names: Sequence[str]) -> str:
    return " and ".join(names) if len(names) < 3 else f"{', '.join(names[:-1])} and {names[-1]}"

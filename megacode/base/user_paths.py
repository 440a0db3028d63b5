"""Places that users name: refused before any work where nothing can be written, and explained where the system refuses.

Permission bits do not tell: a read-only file system refuses the superuser, too. So a file is really made, without a
name, and is gone at once.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

from megacode.base.errors import ConfigError, MegacodeError, Problem
from megacode.base.files import DISK_FULL
from megacode.base.units import format_bytes

_ANOTHER = "name a place where you may write"
_FIXES = {
    errno.EACCES: "check the permissions of it and of its directory, or name another place",
    errno.EPERM: "check the permissions of it and of its directory, or name another place",
    errno.EROFS: _ANOTHER,
    errno.EISDIR: "name a file",
    errno.ENOTDIR: "a part of this path is a file: name a directory",
    errno.ENOENT: "check the path; a directory on the way to it may be missing",
    errno.ENAMETOOLONG: "use a shorter name",
    errno.EEXIST: "name another place, or remove what is there",
    errno.ENOTEMPTY: "name another place, or remove what is there",
    errno.ELOOP: "its symbolic links lead in a circle: name the file itself",
    errno.ENXIO: "name a regular file",
}


class FileError(MegacodeError):
    """The system refuses a file or directory that a command was given."""

    title = "File error"


class DiskFullError(FileError):
    """There is no room left, which a person must see to (exit code 2)."""

    title = "Disk full"


def explained(error: OSError) -> FileError | None:
    """Return a system's refusal of a path as an error with a fix; None where it speaks of no path, or is no refusal."""
    where = os.fsdecode(error.filename) if isinstance(error.filename, (str, bytes, os.PathLike)) else ""
    said = (error.strerror or str(error)).lower()
    if error.errno in DISK_FULL:
        return DiskFullError(said, where, _make_room(where))
    if not where or error.errno not in _FIXES:
        return None
    return FileError(said, where, _FIXES[error.errno])


def _make_room(where: str) -> str:
    """Return what to do about a full disk: where to free some space, and how much there is."""
    again = "then give the same command again"
    there = next((item for item in Path(where).absolute().parents if item.is_dir()), None) if where else None
    if there is None:
        return f"free some space, {again}"
    free = format_bytes(shutil.disk_usage(there).free)
    return f"free some space on the disk of {there} ({free} free without it), or name a place on another one; {again}"


def refuse_unwritable(path: Path, where: str, directory: bool = False) -> None:
    """Refuse a place where a file, or a directory, could not be written; to be asked before the work is done.

    Args:
        path: what will be written; missing parents will be made.
        where: the option or setting that names it.
        directory: whether it will be a directory.

    Raises:
        ConfigError: it is of the other kind, lies inside a file, or nothing can be written there.
    """
    if path.exists() and path.is_dir() != directory:
        kind, wanted = ("directory", "file") if not directory else ("file", "directory")
        raise ConfigError(f"{path} is a {kind}", where, f"name a {wanted}")
    if directory and path.is_symlink() and not path.exists():
        raise ConfigError(f"{path} is a link to {os.readlink(path)}, which is not there", where, "make that directory")
    if path.exists() and not os.access(path, os.W_OK):
        raise ConfigError(f"{path} may not be written", where, _ANOTHER)
    place = path if directory else path.parent
    there = next(item for item in (place, *place.absolute().parents) if item.exists())
    if not there.is_dir():
        raise ConfigError(f"{there} is a file, so nothing can be written into it", where, "name a directory")
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        if error.errno in DISK_FULL:
            raise
        raise ConfigError(f"nothing can be written in {there}", where, _ANOTHER) from None


def refuse_existing(paths: Iterable[Path], overwrite: bool, where: str) -> None:
    """Refuse to write over what is there, unless that is asked for.

    Args:
        paths: what would be written.
        overwrite: whether `--overwrite` was given.
        where: the flag that names it, for the message.

    Raises:
        ConfigError: with everything that is there.
    """
    there = [] if overwrite else [path for path in paths if path.exists() or path.is_symlink()]
    if there:
        fix = "give --overwrite to replace it, or name another place"
        raise ConfigError(problems=[Problem(f"{path} is there already", where, fix) for path in there])

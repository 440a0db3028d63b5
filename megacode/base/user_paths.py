"""Check output paths before work starts, and explain errors of the operating system.

Permission bits are not enough: a read-only file system refuses even root. So an unnamed temporary file is created, and
disappears at once.
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
from megacode.base.urls import SCHEMES

_ANOTHER = "choose a path you can write to"
_FIXES = {
    errno.EACCES: "check the permissions of the file and its directory, or choose another path",
    errno.EPERM: "check the permissions of the file and its directory, or choose another path",
    errno.EROFS: _ANOTHER,
    errno.EISDIR: "give the path of a file",
    errno.ENOTDIR: "a component of this path is a file: give the path of a directory",
    errno.ENOENT: "check the path; one of its parent directories may be missing",
    errno.ENAMETOOLONG: "use a shorter name",
    errno.EEXIST: "choose another path, or remove what exists there",
    errno.ENOTEMPTY: "choose another path, or remove what exists there",
    errno.ELOOP: "its symbolic links form a loop: give the path of the file itself",
    errno.ENXIO: "give the path of a regular file",
}


class FileError(MegacodeError):
    """The operating system refuses a file or directory that a command was given."""

    title = "File error"


class DiskFullError(FileError):
    """The disk or quota is full: only a person can free space (exit code 2)."""

    title = "Disk full"


def explained(error: OSError) -> FileError | None:
    """Return an OSError about a path as an error with a fix; None where it names no path or has no known fix."""
    where = os.fsdecode(error.filename) if isinstance(error.filename, (str, bytes, os.PathLike)) else ""
    message = (error.strerror or str(error)).lower()
    if error.errno in DISK_FULL:
        return DiskFullError(message, where, _make_room(where))
    if not where or error.errno not in _FIXES:
        return None
    return FileError(message, where, _FIXES[error.errno])


def _make_room(where: str) -> str:
    """Return what to do about a full disk: where to free some space, and how much there is."""
    again = "then run the same command again"
    existing = next((item for item in Path(where).absolute().parents if item.is_dir()), None) if where else None
    if existing is None:
        return f"free some space, {again}"
    free = format_bytes(shutil.disk_usage(existing).free)
    return (
        f"free some space on the disk of {existing} ({free} free without it), or choose a path on another disk; {again}"
    )


def refuse_unwritable(path: Path, where: str, directory: bool = False) -> None:
    """Refuse a path where a file, or a directory, cannot be written; to be called before the work starts.

    Args:
        path: the file or directory to write; missing parents will be created.
        where: the option or setting that names it.
        directory: whether it will be a directory.

    Raises:
        ConfigError: it exists as the other kind, lies inside a file, cannot be written, or is a URL.
    """
    # As a path, s3://bucket would become a directory named `s3:`.
    if path.parts and path.parts[0].removesuffix(":") in SCHEMES and path.parts[0].endswith(":"):
        fix = "give a local path, and copy the result there; corpora and data sets can be written to object storage"
        raise ConfigError("this cannot be written to object storage", f"{where} {path}", fix)
    if path.exists() and path.is_dir() != directory:
        kind, wanted = ("directory", "file") if not directory else ("file", "directory")
        raise ConfigError(f"{path} is a {kind}", where, f"give the path of a {wanted}")
    # mkdir fails on a dangling link with a bare "File exists", so it is explained here.
    if directory and path.is_symlink() and not path.exists():
        raise ConfigError(
            f"{path} is a link to {os.readlink(path)}, which does not exist", where, "create that directory"
        )
    if path.exists() and not os.access(path, os.W_OK):
        raise ConfigError(f"{path} is not writable", where, _ANOTHER)
    place = path if directory else path.parent
    # The parents that are missing will be created, so the nearest existing one decides.
    nearest = next(item for item in (place, *place.absolute().parents) if item.exists())
    if not nearest.is_dir():
        raise ConfigError(f"{nearest} is a file, not a directory", where, "give a path inside a directory")
    try:
        # The only test that sees read-only mounts, ACLs, quotas and root squash alike.
        with tempfile.TemporaryFile(dir=nearest):
            pass
    except OSError as error:
        if error.errno in DISK_FULL:
            raise
        raise ConfigError(f"cannot write in {nearest}", where, _ANOTHER) from None


def refuse_existing(paths: Iterable[Path], overwrite: bool, where: str) -> None:
    """Refuse to overwrite existing files, unless `--overwrite` was given.

    Args:
        paths: the files or directories to write.
        overwrite: whether `--overwrite` was given.
        where: the flag that names them, for the message.

    Raises:
        ConfigError: lists every path that exists.
    """
    # A dangling link counts as existing: writing through it would create a file elsewhere.
    existing = [] if overwrite else [path for path in paths if path.exists() or path.is_symlink()]
    if existing:
        fix = "give --overwrite to replace it, or choose another path"
        raise ConfigError(problems=[Problem(f"{path} already exists", where, fix) for path in existing])

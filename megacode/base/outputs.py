"""Where results go: checked before the work, so that no hour of it is lost and nothing is overwritten unasked."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

from megacode.base.errors import ConfigError, Problem


def check_writable(path: Path, where: str) -> None:
    """Check that a file or directory could be written.

    Args:
        path: what is to be written; directories above it that are missing would be made.
        where: the flag or key that names it, for the message.

    Raises:
        ConfigError: it could not.
    """
    place = path.absolute()
    fix = "name a place that can be written"
    if path.exists() and not os.access(path, os.W_OK):
        raise ConfigError(f"{path} cannot be written: permission denied", where, fix)
    above = next(parent for parent in place.parents if parent.exists())
    if not above.is_dir():
        raise ConfigError(f"{path} cannot be written: {above} is not a directory", where, fix)
    try:
        # Only a try tells: root may everything but on read-only file systems, and /proc refuses even root.
        with tempfile.NamedTemporaryFile(dir=above, prefix=".megacode-"):
            pass
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror} ({above})", where, fix) from None


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

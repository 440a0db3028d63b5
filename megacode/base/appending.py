"""Files of one JSON object a line that several processes, or several starts of one, append to."""

from __future__ import annotations

import os
from pathlib import Path

from megacode.base.files import Json, to_json


def append_json(path: Path, document: Json) -> None:
    """Append an object as a line, and flush it to disk.

    A last line that was cut off, by a kill or a full disk, is closed first: else both lines would be lost.

    Args:
        path: the file; it is made if needed, with its directory.
        document: what to append.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as file:
        torn = file.seek(0, os.SEEK_END) > 0 and file.seek(-1, os.SEEK_END) >= 0 and file.read(1) != b"\n"
        file.write(b"\n" * torn + to_json(document).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())

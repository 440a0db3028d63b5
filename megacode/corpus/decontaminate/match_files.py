"""Matches on disk: one directory a shard.

matches.u32     [m, 3], little-endian: document of the shard, word, number of the run in the index
facts.json      the index' identity and the number of documents; written last
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from megacode.base.errors import DataError
from megacode.base.files import naming, read_json, write_json
from megacode.corpus.decontaminate.index import Index, Matches

_FILE, _FACTS = "matches.u32", "facts.json"


class MatchWriter:
    """Writes where items occur in one shard's documents.

    Args:
        path: the directory; it is made.
        index: the items.
    """

    def __init__(self, path: Path, index: Index) -> None:
        path.mkdir(parents=True, exist_ok=True)
        self._path, self._index, self._documents = path, index, 0
        self._file = (path / _FILE).open("wb")

    def add(self, texts: Sequence[str]) -> None:
        """Look at the next documents."""
        rows = self._index.matches(texts)
        # Of the shard, not of the batch; the reduce pass adds where the shard begins.
        rows[:, 0] += np.uint32(self._documents)
        with naming(self._path / _FILE):
            self._file.write(rows.astype("<u4").tobytes())
        self._documents += len(texts)

    def close(self) -> None:
        """Finish the files."""
        self._file.close()
        write_json(self._path / _FACTS, {"index": self._index.identity, "documents": self._documents})


def read_matches(path: Path, index: Index) -> tuple[Matches, int]:
    """Return the matches of a shard, and its number of documents.

    Raises:
        DataError: if they are missing, or of another index.
    """
    facts, again = read_json(path / _FACTS), "remove the directory, and run the map pass of this shard again"
    if not facts:
        raise DataError("there are no complete matches here", str(path), again)
    # Runs are stored by number: with other items the same number is another run.
    if facts["index"] != index.identity:
        raise DataError("its documents were searched for other benchmark items", str(path), again)
    return np.fromfile(path / _FILE, "<u4").reshape(-1, 3), int(facts["documents"])

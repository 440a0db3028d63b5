"""Documents of all shards, numbered from 0 in the order of the inputs, however many shards there are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from megacode.base.errors import DataError
from megacode.base.files import read_json
from megacode.corpus.document import Document
from megacode.corpus.framed import read_lines, read_some
from megacode.corpus.inputs import AGAINST
from megacode.corpus.layout import MapDir
from megacode.corpus.map_pass import HELD_OUT_BIT
from megacode.corpus.work import RecipeWork
from megacode.data.machine_files import Shard

# Tiers: of several duplicates the one of the lowest tier is kept. Documents of tier 0 are never dropped.
TIER_AGAINST, TIER_HELD_OUT, FIRST_TIER = 0, 1, 2


@dataclass(frozen=True)
class MappedShard:
    """One shard's result of the map pass.

    Attributes:
        place: its files.
        first: number of its first document.
        sources: number of each document's source plus one, with a bit for held-out ones, uint16 [documents].
    """

    place: MapDir
    first: int
    sources: npt.NDArray[np.uint16]

    @property
    def documents(self) -> int:
        """Number of documents."""
        return len(self.sources)

    @property
    def source(self) -> npt.NDArray[np.int64]:
        """Number of each document's source, int64 [documents]."""
        return (self.sources & (HELD_OUT_BIT - 1)).astype(np.int64) - 1

    @property
    def held_out(self) -> npt.NDArray[np.bool_]:
        """Whether each document is held out."""
        return (self.sources & HELD_OUT_BIT) != 0

    @cached_property
    def frames(self) -> npt.NDArray[np.int64]:
        """The index of the documents' file."""
        return np.asarray(np.load(self.place.array("frames")))

    def order(self) -> tuple[npt.NDArray[np.uint16], npt.NDArray[np.uint64]]:
        """Return what decides which of several duplicates is kept: tier and key of the id of each document."""
        # From source numbers, not stored: the order of sources is the recipe's, and the facts hold that.
        tiers = np.where(self.held_out, TIER_HELD_OUT, self.source + FIRST_TIER)
        tiers = np.where(self.source == AGAINST, TIER_AGAINST, tiers).astype(np.uint16)
        return tiers, np.asarray(np.load(self.place.array("keys")))

    def read(self) -> Iterator[list[Document]]:
        """Yield the documents, about a mebibyte at a time."""
        for lines in read_lines(self.place.documents, self.frames):
            yield [Document.of_line(line) for line in lines]

    def some(self, positions: npt.NDArray[np.int64]) -> list[Document]:
        """Return the documents at some positions."""
        return [Document.of_line(line) for line in read_some(self.place.documents, self.frames, positions.tolist())]

    def ids(self, positions: npt.NDArray[np.int64]) -> list[str]:
        """Return the ids of the documents at some positions."""
        # Ids apart from documents: naming the document that stays costs a seek, not a decompressed frame.
        ends = np.load(self.place.array("id_ends"), mmap_mode="r")
        with self.place.ids.open("rb") as file:
            ids = []
            for position in positions.tolist():
                file.seek(int(ends[position]))
                ids.append(file.read(int(ends[position + 1] - ends[position])).decode())
        return ids


def open_shards(work: RecipeWork) -> list[MappedShard]:
    """Open the results of all map passes.

    Raises:
        DataError: one is missing, or was made from other facts.
    """
    shards, first = [], 0
    # All at once: a user who has to start ten jobs again wants ten numbers, not one ten times.
    missing = [shard for shard in work.all_shards() if not work.out.mapped(shard).counts.exists()]
    if missing:
        raise _missing(work, missing)
    for shard in work.all_shards():
        place = work.out.mapped(shard)
        if read_json(place.counts).get("identity") != work.identity:
            fix = f"remove {place.path}, and run its map pass again"
            raise DataError("this shard was made from another recipe or other inputs", str(place.path), fix)
        # Mapped: every process of the apply pass opens all shards, and needs few of their pages.
        one = MappedShard(place, first, np.load(place.array("sources"), mmap_mode="r"))
        shards.append(one)
        first += one.documents
    return shards


def _missing(work: RecipeWork, missing: list[Shard]) -> DataError:
    names = ", ".join(f"{shard.index}/{shard.count}" for shard in missing[:5]) + (", ..." if len(missing) > 5 else "")
    message = f"the map pass of {len(missing)} of {work.shards} shards has not been done: {names}"
    return DataError(message, str(work.out.map), "run --pass map for these shards first, or the command without --pass")


class Numbered:
    """Documents by their number among all shards."""

    def __init__(self, shards: list[MappedShard]) -> None:
        self.shards = shards
        self.total = sum(shard.documents for shard in shards)
        self._firsts = np.array([shard.first for shard in shards], np.int64)

    def texts(self, numbers: npt.NDArray[np.int64]) -> list[str]:
        """Return the texts of some documents."""
        return [document.text for document in self.documents(numbers)]

    def tiers(self, numbers: npt.NDArray[np.int64]) -> npt.NDArray[np.uint16]:
        """Return the tiers of some documents, in the order asked for."""
        unique, places = np.unique(numbers, return_inverse=True)
        tiers = [shard.order()[0][positions] for shard, positions in self._by_shard(unique)]
        return np.concatenate([np.zeros(0, np.uint16), *tiers])[places]

    def documents(self, numbers: npt.NDArray[np.int64]) -> list[Document]:
        """Return some documents, in the order asked for."""
        # A number may be asked for twice; its frame is decompressed and parsed once.
        documents: dict[int, Document] = {}
        for shard, positions in self._by_shard(numbers):
            documents |= dict(zip((positions + shard.first).tolist(), shard.some(positions), strict=True))
        return [documents[number] for number in numbers.tolist()]

    def ids(self, numbers: npt.NDArray[np.int64]) -> dict[int, str]:
        """Return the ids of some documents by number."""
        ids: dict[int, str] = {}
        for shard, positions in self._by_shard(numbers):
            ids |= dict(zip((positions + shard.first).tolist(), shard.ids(positions), strict=True))
        return ids

    def _by_shard(self, numbers: npt.NDArray[np.int64]) -> Iterator[tuple[MappedShard, npt.NDArray[np.int64]]]:
        wanted = np.unique(numbers)
        # Several shards may begin at one number: those without documents.
        which = np.searchsorted(self._firsts, wanted, "right") - 1
        for shard in np.unique(which).tolist():
            yield self.shards[shard], wanted[which == shard] - self.shards[shard].first

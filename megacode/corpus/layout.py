"""The output directory of a recipe; the only place that knows its file names.

facts.json                    what the passes depend on: recipe, inputs, versions of rules, number of shards
collected/                    files of this machine, for sources of the kind `machine`
benchmarks.jsonl              the items that documents must not hold
map/shard_0003_of_0016/       the shard's documents and arrays; the directory appears when all of it is on disk
reduce/                       which documents are dropped, and why; `report.json` is written last
apply/shard_0003_of_0016.json the shard's counts and hashes of outputs, written last
corpus/SOURCE/                documents of the source, one .jsonl.zst a shard
corpus/SOURCE.held_out/       its held-out documents, where the recipe asks for them
corpus/manifest.json, corpus/card.html
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from megacode.data.machine_files import Shard
from megacode.data.recipe_output import HELD_OUT, MANIFEST


@dataclass(frozen=True)
class CorpusDir:
    """Paths inside a recipe's output directory.

    Attributes:
        path: the directory.
    """

    path: Path

    @property
    def facts(self) -> Path:
        """What the passes depend on."""
        return self.path / "facts.json"

    @property
    def collected(self) -> Path:
        """Files of this machine, for sources of the kind `machine`."""
        return self.path / "collected"

    @property
    def map(self) -> Path:
        """The directory of all shards' map passes."""
        return self.path / "map"

    def mapped(self, shard: Shard) -> MapDir:
        """Return the files of a shard's map pass."""
        # The number of shards is in the name: results of another number are never taken for these.
        return MapDir(self.map / name(shard))

    @property
    def reduce(self) -> Path:
        """The directory of the reduce pass."""
        return self.path / "reduce"

    @property
    def scratch(self) -> Path:
        """Where the search for near-duplicates keeps what it needs to resume."""
        return self.reduce / "scratch"

    @property
    def dropped(self) -> Path:
        """Why each document is dropped, uint8 [documents]; 0: it is kept."""
        return self.reduce / "dropped.npy"

    @property
    def roots(self) -> Path:
        """The document that is kept in place of each one, int64 [documents]; its own number where there is none."""
        return self.reduce / "roots.npy"

    @property
    def benchmarks(self) -> Path:
        """The items that documents must not hold, the same for all shards."""
        return self.path / "benchmarks.jsonl"

    def passages(self, shard: Shard) -> Path:
        """Return where passages of held-out documents occur in a shard."""
        return self.reduce / "passages" / name(shard)

    @property
    def report(self) -> Path:
        """The report of the reduce pass, written last."""
        return self.reduce / "report.json"

    @property
    def apply(self) -> Path:
        """The directory of all shards' apply passes."""
        return self.path / "apply"

    def applied(self, shard: Shard) -> Path:
        """Return the marker of a shard's apply pass, with its counts."""
        return self.apply / f"{name(shard)}.json"

    def dropped_list(self, shard: Shard) -> Path:
        """Return the list of a shard's dropped documents: id, reason, and the id of the one kept in its place."""
        return self.apply / f"{name(shard)}.dropped.jsonl.zst"

    @property
    def corpus(self) -> Path:
        """The directory of the result."""
        return self.path / "corpus"

    def output(self, source: str, shard: Shard, *, held_out: bool = False) -> Path:
        """Return a shard's file of a source."""
        # Directories, not prefixes of names: a glob over one source never finds its held-out documents.
        return self.corpus / (source + HELD_OUT * held_out) / f"{name(shard)}.jsonl.zst"

    @property
    def manifest(self) -> Path:
        """What the corpus is and what it was made from."""
        return self.corpus / MANIFEST

    @property
    def card(self) -> Path:
        """The page that describes the corpus."""
        return self.corpus / "card.html"


@dataclass(frozen=True)
class MapDir:
    """Files of one shard's map pass.

    Attributes:
        path: the directory; it exists once all files are complete.
    """

    path: Path

    @property
    def documents(self) -> Path:
        """The documents that passed the filters."""
        return self.path / "documents.jsonl.zst"

    def array(self, name: str) -> Path:
        """Return an array about the documents: `sources`, `keys`, `id_ends`, `frames`."""
        return self.path / f"{name}.npy"

    @property
    def ids(self) -> Path:
        """The ids, one after another, UTF-8."""
        return self.path / "ids.bin"

    @property
    def signatures(self) -> Path:
        """Hashes and signatures, as `duplicates` saves them."""
        return self.path / "signatures"

    @property
    def matches(self) -> Path:
        """Where items of benchmarks occur, as `decontaminate` saves it."""
        return self.path / "matches"

    @property
    def scratch(self) -> Path:
        """Temporary files of a kind; removed at the end."""
        return self.path / "scratch"

    @property
    def timing(self) -> Path:
        """What the pass cost; the only file that differs between two passes over the same inputs."""
        # In a file of its own, so that all others can be compared byte by byte.
        return self.path / "timing.json"

    @property
    def counts(self) -> Path:
        """What came in, and what each step dropped."""
        return self.path / "counts.json"


def name(shard: Shard) -> str:
    """Return the name of a shard's files."""
    return f"shard_{shard.index:04d}_of_{shard.count:04d}"

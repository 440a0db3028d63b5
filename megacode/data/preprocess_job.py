"""The settings of one preprocessing job, and which of them decide its result."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from megacode.base.files import Json
from megacode.base.urls import is_url
from megacode.config.model import TokenizerConfig
from megacode.data.jsonl import STANDARD_INPUT, cut_by
from megacode.data.machine_files import Shard
from megacode.data.objects import ObjectPath
from megacode.data.published_set import PublishedSet, published_set
from megacode.data.publishing import local_place
from megacode.data.tokenizer import Tokenizer

STATES = "the size, time or ETag of an input"


@dataclass(frozen=True)
class PreprocessJob:
    """The settings of one preprocessing job.

    Attributes:
        inputs: files, directories and globs as of `inputs.find_inputs`: JSON lines and Parquet; `-`: standard input.
        output_prefix: the data sets are `<output_prefix>_<key>_document`; a URL publishes them in object storage.
        tokenizer: what encodes them.
        keys: keys that hold text, nested ones as `a.b`; each makes a data set.
        id_key: key of a document's id, which is kept beside the data sets; None: no ids are kept.
        append_eod: end each document that is not empty with the tokenizer's end-of-document token.
        shuffle_seed: shuffle the documents; None: keep the input's order. A shard keeps it; merging shuffles.
        skip_bad_lines: skip and count lines that cannot be read, instead of stopping.
        dtype: `auto` (uint16 where the vocabulary allows), `uint16` or `int32`.
        workers: threads that encode; None: all cores.
        log_interval: documents between two log lines.
        command: the command line, for the manifest.
        shard: preprocess only this part of the input, into data sets for `merge` to join; None: all of it.
        overwrite: replace data sets that are there already.
        work_dir: where data sets are made that are published in object storage; None: `publishing.WORK_DIR`.
    """

    inputs: tuple[str, ...]
    output_prefix: str
    tokenizer: TokenizerConfig
    keys: tuple[str, ...] = ("text",)
    id_key: str | None = None
    append_eod: bool = False
    shuffle_seed: int | None = None
    skip_bad_lines: bool = False
    dtype: str = "auto"
    workers: int | None = None
    log_interval: int = 100_000
    command: str = ""
    shard: Shard | None = None
    overwrite: bool = False
    work_dir: str | None = None

    def prefix(self, key: str) -> Path:
        """Return the local prefix of a key's data set, named as by Megatron's tool; a shard's contains its number."""
        base = self.output_prefix
        return Path(self._named(str(local_place(base, self.work_dir)) if is_url(base) else base, key))

    def published(self, key: str) -> PublishedSet | None:
        """Return how a key's data set is published; None: its prefix is local."""
        return published_set(self.prefix(key), self._named(self.output_prefix, key))

    def _named(self, base: str, key: str) -> str:
        whole = f"{base}_{key}_document"
        return str(self.shard.prefix(whole)) if self.shard else whole


def states_of(inputs: list[Path]) -> list[list[int | str]]:
    """Return the size and the time of change (ns) or ETag of each input; none of standard input."""
    return [[] if path == STANDARD_INPUT else _state_of(path) for path in inputs]


def _state_of(path: Path) -> list[int | str]:
    facts = path.stat()
    return [facts.st_size, path.etag() if isinstance(path, ObjectPath) else facts.st_mtime_ns]


def deciding(job: PreprocessJob, tokenizer: Tokenizer, dtype: np.dtype, inputs: list[Path]) -> Json:
    """Return all that decides the bytes of a job's data sets, by the names that a user knows."""
    return {
        "--input": [str(path) for path in inputs],
        STATES: states_of(inputs),
        "the versions of the libraries that read compressed files": cut_by(inputs),
        "--json-keys": list(job.keys),
        "--id-key": job.id_key,
        "the tokenizer": tokenizer.hash,
        "--dtype": dtype.name,
        "--append-eod": job.append_eod,
        "--shuffle-seed": job.shuffle_seed,
        "--shard": asdict(job.shard) if job.shard else None,
    }

"""Which documents hold items of benchmarks, or passages of held-out documents."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from megacode.base.errors import ConfigError
from megacode.base.files import Json, digest, remove
from megacode.corpus.decontaminate import (
    Benchmark,
    Hit,
    Index,
    MatchWriter,
    contamination_report,
    detector_of,
    items_from_file,
    read_benchmarks,
    read_matches,
    write_benchmarks,
)
from megacode.corpus.inputs import AGAINST
from megacode.corpus.layout import CorpusDir
from megacode.corpus.reasons import DropReason
from megacode.corpus.recipe import Recipe
from megacode.corpus.shards import MappedShard, Numbered
from megacode.corpus.work import RecipeWork
from megacode.data.demo_items import passages
from megacode.data.items import Item

# Of a held-out document: stretches as long as the shortest items that are made from such documents.
PASSAGE_CHARACTERS = 224
HELD_OUT = "held-out documents"

SuiteItems = Callable[[str], Benchmark]
Mask = npt.NDArray[np.bool_]


def write_items(recipe: Recipe, suite_items: SuiteItems | None, *, again: bool) -> None:
    """Write down the items that a recipe's documents must not hold, unless an earlier call for this recipe did.

    Args:
        recipe: the recipe.
        suite_items: reads the items of a suite of lm-eval.
        again: write them although they are there: they may be those of another recipe.

    Raises:
        ConfigError: the recipe names a suite, and there is nothing to read it with.
        DataError: the items of a suite or file cannot be read.
    """
    out = CorpusDir(recipe.directory)
    rules, path = recipe.decontaminate, out.benchmarks
    if rules is None or not (rules.suites or rules.files):
        return
    # Without facts, items are left from a call that was killed, perhaps before the recipe was changed.
    if path.exists() and out.facts.exists() and not again:
        return
    if rules.suites and suite_items is None:
        raise ConfigError("suites cannot be read here", "decontaminate.suites", "name files instead")
    assert suite_items is not None or not rules.suites
    benchmarks = [suite_items(name) for name in rules.suites] if suite_items is not None else []
    write_benchmarks(path, [*benchmarks, *(items_from_file(Path(name)) for name in rules.files)])


def benchmark_index(work: RecipeWork) -> Index | None:
    """Return the index of the items that were written down; None: the recipe names none."""
    rules = work.recipe.decontaminate
    if rules is None or not (rules.suites or rules.files):
        return None
    return Index(read_benchmarks(work.out.benchmarks))


def decontaminate(work: RecipeWork, every: Numbered, reasons: npt.NDArray[np.uint8]) -> Json:
    """Mark the documents that hold items of benchmarks or passages of held-out documents.

    Args:
        work: what is done.
        every: the documents.
        reasons: why each one is dropped so far, uint8 [documents]; changed in place.

    Returns:
        The report, as `contamination_report` makes it.
    """
    rules = work.recipe.decontaminate
    if rules is None:
        return {}
    report: Json = {"documents": 0, "rule": {}, "suites": []}
    index = benchmark_index(work)
    if index is not None:
        paths = [shard.place.matches for shard in every.shards]
        _mark(index, paths, every, reasons, DropReason.BENCHMARK, report)
    if rules.held_out:
        _drop_passages(work, every, reasons, report)
    return report


def _drop_passages(work: RecipeWork, every: Numbered, reasons: npt.NDArray[np.uint8], report: Json) -> None:
    """Mark the training documents that hold a passage of a held-out one; each shard is read once more."""
    index = Index([_passages_of(work, every, reasons)])
    paths = []
    for shard, one in zip(work.all_shards(), every.shards, strict=True):
        path = work.out.passages(shard)
        # Of a pass that was killed; its items may have been others.
        remove(path)
        writer = MatchWriter(path, index)
        for documents in one.read():
            writer.add([document.text for document in documents])
        writer.close()
        paths.append(path)
    _mark(index, paths, every, reasons, DropReason.PASSAGE, report)
    remove(work.out.reduce / "passages")


def _passages_of(work: RecipeWork, every: Numbered, reasons: npt.NDArray[np.uint8]) -> Benchmark:
    """Return the held-out documents that are kept, cut into passages; the source is the task."""
    # All in memory, about ten bytes a byte of text with the index: what bounds the share that can be held out.
    texts: dict[str, list[str]] = {}
    for shard in every.shards:
        wanted = np.flatnonzero(shard.held_out & (_of(shard, reasons) == DropReason.KEPT))
        for source, document in zip(shard.source[wanted].tolist(), shard.some(wanted), strict=True):
            texts.setdefault(work.names[source], []).append(document.text)
    items = {
        source: [
            Item(source, number, passage.text)
            for number, passage in enumerate(passages(some, PASSAGE_CHARACTERS, "", whole=False))
        ]
        for source, some in texts.items()
    }
    digests = {source: digest(*(item.text for item in some)) for source, some in items.items()}
    return Benchmark(HELD_OUT, tuple(item for some in items.values() for item in some), digests)


def _mark(
    index: Index, paths: list[Path], every: Numbered, reasons: npt.NDArray[np.uint8], why: DropReason, report: Json
) -> None:
    """Mark the documents that hold items of an index, and add what was found to the report."""
    kept = [_candidates(shard, reasons, why) for shard in every.shards]
    judge = detector_of(paths, index, kept)
    hits: list[Hit] = []
    for path, shard, mine in zip(paths, every.shards, kept, strict=True):
        matches, _ = read_matches(path, index)
        hits += judge.hits(matches[mine[matches[:, 0]]], shard.first)
    reasons[np.unique([hit.document for hit in hits]).astype(np.int64)] = why
    part = contamination_report(judge, hits)
    report["documents"] += part["documents"]
    report["suites"] += part["suites"]
    report["rule"] = part["rule"]


def _candidates(shard: MappedShard, reasons: npt.NDArray[np.uint8], why: DropReason) -> Mask:
    """Return which documents of a shard can be dropped; held-out ones hold their own passages."""
    kept: Mask = (_of(shard, reasons) == DropReason.KEPT) & (shard.source != AGAINST)
    return kept & ~shard.held_out if why == DropReason.PASSAGE else kept


def _of(shard: MappedShard, values: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    return values[shard.first : shard.first + shard.documents]

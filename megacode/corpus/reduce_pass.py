"""The reduce pass: one process decides for the documents of all shards which are dropped, and why."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from megacode.base.claims import claimed, remove_drafts
from megacode.base.errors import DataError, Problem
from megacode.base.files import Json, atomic_path, read_json, write_json
from megacode.corpus.arrays import save_array
from megacode.corpus.contaminated import decontaminate
from megacode.corpus.document import Counts
from megacode.corpus.duplicates.collection import SignedShard
from megacode.corpus.duplicates.reduce import find_duplicates
from megacode.corpus.duplicates.report import duplicates_report
from megacode.corpus.reasons import DropReason
from megacode.corpus.shards import Numbered, open_shards
from megacode.corpus.work import RecipeWork


def reduce_all(work: RecipeWork) -> None:
    """Run the reduce pass, unless its result is there; what an earlier one finished before it was killed is kept.

    Args:
        work: what is to be done.

    Raises:
        DataError: a shard's map pass is missing, or no document of a source is left.
    """
    out = work.out
    if out.report.exists():
        # Left by a process that was killed after its report.
        shutil.rmtree(out.scratch, ignore_errors=True)
        return
    with claimed(out.reduce, "--pass reduce"):
        out.reduce.mkdir(parents=True, exist_ok=True)
        remove_drafts(out.dropped, out.roots, out.report)
        every = Numbered(open_shards(work))
        # Before hours of comparing: a recipe that drops everything is nearly always a mistake.
        _refuse_empty(work, every, np.ones(every.total, bool), "filters")
        reasons, roots, report = _duplicates(work, every)
        # After duplicates: a run of words counts as common by the documents that hold it, and copies are not several.
        contamination = decontaminate(work, every, reasons)
        _refuse_empty(work, every, reasons == DropReason.KEPT, "duplicates and decontamination")
        _save(out.dropped, reasons)
        _save(out.roots, roots)
        write_json(
            out.report,
            {
                "identity": work.identity,
                "documents": every.total,
                "duplicates": report,
                "contamination": contamination,
            },
        )
        # Not earlier: until the report is there, a killed pass resumes from it. Another process may see the report and
        # delete the same files.
        shutil.rmtree(out.scratch, ignore_errors=True)


def refuse_unreduced(work: RecipeWork) -> None:
    """Refuse to apply what is not decided yet.

    Raises:
        DataError: the reduce pass has not been done, or was done for other facts.
    """
    report = read_json(work.out.report)
    if not report:
        fix = "run --pass reduce first, or the command without --pass"
        raise DataError("the reduce pass has not been done", str(work.out.report), fix)
    if report.get("identity") != work.identity:
        fix = f"remove {work.out.reduce}, and run --pass reduce again"
        raise DataError("it was made from another recipe or other inputs", str(work.out.report), fix)


def _duplicates(work: RecipeWork, every: Numbered) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64], Json]:
    """Return why each document is dropped, the one that is kept in its place, and the report of clusters."""
    rules = work.recipe.duplicates
    if rules is None:
        return np.zeros(every.total, np.uint8), np.arange(every.total), {}
    parts = [SignedShard(shard.place.signatures, shard.order) for shard in every.shards]
    duplicates = find_duplicates(parts, every.texts, work.out.scratch, rules.threshold)
    report = duplicates_report(duplicates, rules.threshold, every.tiers, every.texts)
    named = every.ids(np.array([cluster["kept"] for cluster in report["largest"]], np.int64))
    report["largest"] = [{**cluster, "kept": named[cluster["kept"]]} for cluster in report["largest"]]
    return duplicates.why, duplicates.root.astype(np.int64), report


def _refuse_empty(work: RecipeWork, every: Numbered, kept: npt.NDArray[np.bool_], step: str) -> None:
    """Refuse to go on when nothing is left of a source.

    Raises:
        DataError: names each such source, and the reason that dropped most of it.
    """
    # Held-out documents do not count: a source of which only they are left would train nothing.
    left = np.zeros(len(work.names) + 1, np.int64)
    for shard in every.shards:
        here = shard.source[kept[shard.first : shard.first + shard.documents] & ~shard.held_out]
        left += np.bincount(here + 1, minlength=len(left))
    empty = [name for number, name in enumerate(work.names) if not left[number + 1]]
    if empty:
        raise DataError(problems=[_emptied(work, every, name, step) for name in empty])


def _emptied(work: RecipeWork, every: Numbered, name: str, step: str) -> Problem:
    counts, records, bad = Counts(), 0, 0
    for shard in every.shards:
        came = read_json(shard.place.counts)["sources"].get(name, {})
        records += came.get("records", 0)
        bad += came.get("bad", 0)
        for rows in came.get("steps", {}).values():
            counts.merge(Counts.of_json(rows))
    reasons = [f"{row['documents']:,} {reason!r}" for reason, row in list(counts.as_json().items())[:3]]
    where = f"sources.{name}"
    if bad and not records:
        return Problem(f"none of its {bad:,} records can be read", where, "leave out skip_bad to see what is wrong")
    if not records:
        return Problem("its inputs hold no record", where, "check that these are the files you mean")
    dropped = f" ({', '.join(reasons)})" if reasons else ""
    message = f"no document is left after {step}: all of {records:,} records were dropped{dropped}"
    return Problem(message, where, "loosen the rule that drops most, or check that the kind fits the files")


def _save(path: Path, array: npt.NDArray[Any]) -> None:
    with atomic_path(path) as temporary:
        save_array(temporary, array)

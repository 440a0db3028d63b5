"""Contamination: which of a suite's items occur in the data that the run has read, and exactly what was checked.

An item overlaps where 13 consecutive tokens, as the run's own tokenizer cuts them, occur verbatim in the training
data. With a vocabulary below 32,000 they must also hold 52 bytes (`ngram_runs`). Only windows that the schedule
gave the run before the model's clock are checked. Where they exceed a budget of tokens, an even sample of them is
checked, and the note says so: text outside a sample may still have been read.

Each item is tokenized as it stands and after a space, since tokens include the space before a word. Runs of tokens that
occur in many items of a task are its template, and are excluded.

Source: Brown et al., arXiv:2005.14165, appendix C (13-grams); Touvron et al., arXiv:2307.09288, appendix A.6 (tokens of
the model's own tokenizer, share of an item's tokens that overlap).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from megacode.base.errors import MegacodeError
from megacode.base.files import RunDir
from megacode.base.units import format_count
from megacode.config.config_file import load_config
from megacode.config.run import RunConfig
from megacode.data.items import Item
from megacode.data.ngram_runs import (
    BUDGET,
    LARGE_VOCABULARY,
    NGRAM,
    RUN_BYTES,
    Grams,
    Marker,
    covered,
    find_runs,
    take_out_templates,
    unmark_short,
)
from megacode.data.source_stream import SourceStream
from megacode.data.tokenizer import Tokenizer, load_tokenizer
from megacode.data.windows import open_source
from megacode.plan.phases import Schedule, build_schedule, prove_past
from megacode.plan.sources import SourceSize

MOSTLY = 0.8  # share of an item's tokens in overlaps, from Llama 2's "dirty" items
_LINK = {"phase", "first_sample", "samples", "read", "sources", "fingerprint"}
# A run in more than 10 items and more than a tenth of a task is the task's wording, not its content.
_TEMPLATE_ITEMS = 10
_TEMPLATE_SHARE = 0.1
_EXHAUSTIVE_SAMPLES = 4_000_000  # above this the draws alone take too much memory
_SHOWN = 10
_EXCERPT = 200


@dataclass
class _Past:
    """What a model has read.

    Attributes:
        config: its run's.
        schedule: proven to be the one that the model was trained with.
        clock: samples read.
        streams: the sources that are at hand, by name; absent: why the others are not.
    """

    config: RunConfig
    schedule: Schedule
    clock: int
    streams: dict[str, SourceStream]
    absent: dict[str, str]


class _NotKnownError(Exception):
    """Nothing can be checked; the message says why."""


def contamination(
    run_dir: Path | None, facts: Mapping[str, Any] | None, items: Sequence[Item], budget: int = BUDGET
) -> dict[str, Any]:
    """Return a note for a score file: how many items occur in what the model has read.

    Args:
        run_dir: the model's run, None where that is not known.
        facts: the model's `megacode.json`: `consumed_samples`, `fingerprints`.
        items: the items that were scored.
        budget: tokens to check, at most.

    Returns:
        `checked`: whether anything could be checked; if not, `why`. Otherwise: the rule, what was read and what
        was checked, in total and by source; by task the number of items, those too short to tell, those with an
        overlap and their share, those with four fifths of their tokens in overlaps; the worst examples.
    """
    start = time.perf_counter()
    try:
        past = _past(run_dir, facts)
        if not past.streams:
            return _unchecked("; ".join(f"{name}: {why}" for name, why in past.absent.items()))
        assert past.config.tokenizer is not None
        tokenizer = load_tokenizer(past.config.tokenizer)
    except (MegacodeError, _NotKnownError) as error:
        return _unchecked(" ".join(str(error).split()))
    # Items are few and data is large: hash the items once, then stream the data past them.
    grams = find_runs([item.text for item in items], tokenizer)
    numbers = {task: number for number, task in enumerate(dict.fromkeys(item.task for item in items))}
    templates = take_out_templates(grams, [numbers[item.task] for item in items], _TEMPLATE_ITEMS, _TEMPLATE_SHARE)
    seen = _look(past, grams, budget)
    tasks, worst = _assess(past, grams, items, tokenizer)
    return {
        "checked": True,
        "rule": _rule(tokenizer),
        **seen,
        "not_covered": _not_covered(past),
        "template_runs_left_out": templates,
        "tasks": tasks,
        "worst": worst,
        "seconds": round(time.perf_counter() - start, 3),
    }


def describe(note: Mapping[str, Any]) -> str:
    """Return a note as one line for the terminal."""
    if not note["checked"]:
        return f"contamination: not checked, {note['why']}"
    items, hits = (sum(task[key] for task in note["tasks"].values()) for key in ("items", "overlapping"))
    checked = f"{100 * note['share_checked']:.3g} % of the {format_count(note['tokens_read'])} tokens read were checked"
    return f"contamination: {hits} of {items} items overlap the data read ({NGRAM} tokens in a row); {checked}"


def _rule(tokenizer: Tokenizer) -> str:
    more = (
        "" if tokenizer.vocab_size >= LARGE_VOCABULARY else f", of {RUN_BYTES} bytes or more as its vocabulary is small"
    )
    return f"{NGRAM} tokens of the run's tokenizer in a row, verbatim{more}; the item's question with its true answer"


def _unchecked(why: str) -> dict[str, Any]:
    return {"checked": False, "why": why}


def _past(run_dir: Path | None, facts: Mapping[str, Any] | None) -> _Past:
    """Open what a model has read, and prove that its run's config still describes it."""
    if run_dir is None or not facts or "fingerprints" not in facts:
        raise _NotKnownError("the model's run is not known")
    if not all(link.keys() >= _LINK for link in facts["fingerprints"]):
        raise _NotKnownError("the model's chain of phases was written by another version: export the model again")
    config = load_config(RunDir(run_dir).config)
    if config.tokenizer is None:
        raise _NotKnownError("the run has no tokenizer")
    chain, clock = facts["fingerprints"], int(facts["consumed_samples"])
    if not clock:
        raise _NotKnownError("the model has consumed no samples yet")
    # The chain says what each source was when it was read; the config may have moved on since.
    read = {name: entry for link in chain for name, entry in link["sources"].items()}
    sizes = {
        name: SourceSize(name, entry["tokens"], identity=entry["identity"], form=entry.get("form"))
        for name, entry in read.items()
    }
    streams, absent = {}, {}
    for name, size in sizes.items():
        try:
            streams[name] = _same_source(config, size)
        except (MegacodeError, _NotKnownError) as error:
            absent[name] = " ".join(str(error).split())
    # Later phases may draw from sources that do not exist yet; only phases that have begun are rebuilt.
    begun = config.model_copy(update={"phases": config.phases[: len(chain)]})
    schedule = build_schedule(begun, sizes)
    prove_past(schedule, chain, clock)
    return _Past(config, schedule, clock, streams, absent)


def _same_source(config: RunConfig, size: SourceSize) -> SourceStream:
    if size.name not in config.sources:
        raise _NotKnownError("the run's config no longer lists this source")
    stream = open_source(config, size.name)
    now = stream.size()
    if (now.tokens, now.identity) != (size.tokens, size.identity):
        raise _NotKnownError("the data set has changed since the run read it")
    return stream


def _not_covered(past: _Past) -> list[str]:
    origin = past.config.init.from_
    start = [] if origin == "random" else [f"data that its initial weights had read before this run: {origin}"]
    return start + [f"source {name}: {why}" for name, why in past.absent.items()]


def _look(past: _Past, grams: Grams, budget: int) -> dict[str, Any]:
    """Scan the data that was read, mark the runs of tokens found there, and return what was checked."""
    length, read = past.schedule.seq_length, past.schedule.counts_at(past.clock)
    names = past.schedule.source_names
    numbers = _numbers(past, budget, read)
    draws = past.schedule.draws(numbers)
    sources: dict[str, dict[str, Any]] = {}
    mark = Marker(grams)
    for source in (name for name in names if read[name]):
        mine = draws.first_token[draws.source_id == names.index(source)]
        distinct = 0
        if source in past.streams:
            # Windows of several epochs overlap; each token is scanned once. A packed window has no label behind it.
            for first, last in _union(mine, length + (not past.schedule.sizes[source].packed)):
                distinct += last - first
                mark.scan(past.streams[source], names.index(source), first, last)
        sources[source] = {
            "samples_read": read[source],
            "samples_checked": len(mine) if source in past.streams else 0,
            "distinct_tokens_checked": distinct,
        }
    checked = sum(entry["samples_checked"] for entry in sources.values())
    return {
        "samples_read": past.clock,
        "samples_checked": checked,
        "tokens_read": past.clock * length,
        "tokens_checked": checked * length,
        "share_checked": checked / max(1, past.clock),
        "sources": sources,
    }


def _numbers(past: _Past, budget: int, read: Mapping[str, int]) -> npt.NDArray[np.int64]:
    """Return the samples to check: all, or one at random from each of equally many equal stretches of the run."""
    length = past.schedule.seq_length
    # Many epochs of a small source cost one scan, so the budget counts distinct tokens.
    distinct = sum(min(count * length, past.schedule.sizes[name].tokens) for name, count in read.items() if count)
    if past.clock * length <= budget or (distinct <= budget and past.clock <= _EXHAUSTIVE_SAMPLES):
        return np.arange(past.clock, dtype=np.int64)
    count = max(1, min(past.clock, budget // length))
    # Stratified: one random sample from each stretch, seeded by the run so that a repeat agrees.
    places = (np.arange(count) + np.random.default_rng(past.schedule.seed).random(count)) * (past.clock / count)
    return np.minimum(places.astype(np.int64), past.clock - 1)


def _union(first_tokens: npt.NDArray[np.int64], size: int) -> Iterator[tuple[int, int]]:
    """Yield the stretches that windows cover, each first token and end, ascending; neighbours become one."""
    if not len(first_tokens):
        return
    begins = np.unique(first_tokens)
    # A gap between one window's end and the next one's beginning starts a new stretch.
    cuts = np.flatnonzero(begins[1:] > begins[:-1] + size) + 1
    for part in np.split(begins, cuts):
        yield int(part[0]), int(part[-1]) + size


def _assess(
    past: _Past, grams: Grams, items: Sequence[Item], tokenizer: Tokenizer
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the figures of each task, and the items with the largest share of their tokens in overlaps."""
    marked = covered(grams)
    if tokenizer.vocab_size < LARGE_VOCABULARY:
        unmark_short(marked, grams, tokenizer)
    # Prefix sums give each text's number of overlapping tokens in one subtraction. Each item has two texts (with and
    # without the space); the worse one counts.
    sums = np.concatenate([[0], np.cumsum(marked)])
    lengths = np.diff(grams.starts)
    shares = ((sums[grams.starts[1:]] - sums[grams.starts[:-1]]) / np.maximum(1, lengths)).reshape(-1, 2)
    share, short = shares.max(1, initial=0), lengths.reshape(-1, 2).max(1, initial=0) < NGRAM
    tasks: dict[str, Any] = {}
    for task in dict.fromkeys(item.task for item in items):
        mine = np.array([item.task == task for item in items])
        overlaps, asked = int((share[mine] > 0).sum()), int(mine.sum())
        tasks[task] = {
            "items": asked,
            "too_short": int(short[mine].sum()),
            "overlapping": overlaps,
            "overlapping_share": overlaps / asked,
            "mostly_overlapping": int((share[mine] >= MOSTLY).sum()),
        }
    order = [int(number) for number in np.argsort(-share, kind="stable")[:_SHOWN] if share[number] > 0]
    texts = [2 * number + int(shares[number].argmax()) for number in order]
    worst = [
        {"task": items[number].task, "item": items[number].number, "share_of_tokens": round(float(share[number]), 4)}
        | _example(past, grams, marked, text, tokenizer)
        for number, text in zip(order, texts, strict=True)
    ]
    return tasks, worst


def _example(
    past: _Past, grams: Grams, marked: npt.NDArray[np.bool_], text: int, tokenizer: Tokenizer
) -> dict[str, Any]:
    """Return the first overlap of a text: its words, and the source and document in which they occur."""
    first, last = int(grams.starts[text]), int(grams.starts[text + 1])
    begin = first + int(np.flatnonzero(marked[first:last])[0])
    ends = np.flatnonzero(~marked[begin:last])
    end = begin + int(ends[0]) if len(ends) else last
    source, token = grams.where[grams.run_of[begin]]
    name = past.schedule.source_names[source]
    document = past.streams[name].data.document_at(int(token))
    words = tokenizer.decode(grams.ids[begin:end].tolist())
    return {"source": name, "document": document, "text": words[:_EXCERPT]}

"""Read the items of score files: which questions each task has, and one model's results on them.

Models of one study answer the same questions, so their items files differ in results alone. A line begins with what
identifies its question, in the order in which `megacode evaluate` writes it; results follow. A reader that has seen
the questions once compares these beginnings as bytes, and parses only what is new: five times as fast as parsing each
line as JSON. A file in any other form is parsed line by line.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from megacode.base.errors import DataError
from megacode.base.files import digest, parse_line

SCORE_AGAIN = "score the model again: megacode evaluate MODEL --overwrite"
_KNOWN = ("task", "item", "filter", "doc_hash", "metrics")
_MOST_BLOCKS = 200  # stretches of lines of one task; more mean that the lines are in an order of their own
_MOST_KEPT = 8  # forms: one for each suite of a study
_CLUSTER = b'"cluster": '  # where a line names its passage; inside other texts its quotes are escaped
_FEW = 64  # different results of a task, each of which is parsed once
Values = Mapping[str, list[Any]]  # by metric


@dataclass
class Questions:
    """The questions of one task, by one filter, in the order of the lines.

    Attributes:
        items: their numbers.
        hashes: of their documents.
        clusters: of the passages that they belong to; None: they stand alone.
    """

    items: list[int] = field(default_factory=list)
    hashes: list[str] = field(default_factory=list)
    clusters: list[str | None] = field(default_factory=list)

    @cached_property
    def order(self) -> np.ndarray | None:
        """The lines by item number; None if they are in that order."""
        order = np.argsort(self.items, kind="stable")
        return None if np.array_equal(order, np.arange(len(order))) else order

    @cached_property
    def once(self) -> bool:
        """Whether no item stands twice."""
        return len(set(self.items)) == len(self.items)

    @cached_property
    def marks(self) -> list[str]:
        """Number and document of each question, by item number."""
        return self.sorted([f"{item}:{mark}" for item, mark in zip(self.items, self.hashes, strict=True)])

    @cached_property
    def passages(self) -> tuple[np.ndarray | None, str]:
        """The number of each question's passage, by item number, or None if no two share one; and their digest."""
        clusters = self.sorted(self.clusters)
        names = [f"item {i}" if one is None else f"cluster {one}" for i, one in enumerate(clusters)]
        numbers = {name: i for i, name in enumerate(dict.fromkeys(names))}
        shared = np.array([numbers[name] for name in names]) if len(numbers) < len(names) else None
        return shared, digest(*map(str, clusters))

    def sorted(self, values: list[Any]) -> list[Any]:
        """Return values of the lines by item number."""
        return values if self.order is None else [values[i] for i in self.order]


@dataclass
class TaskQuestions:
    """The questions of a task: the same ones, once for each filter.

    Attributes:
        by_filter: in the order of the lines.
    """

    by_filter: dict[str, Questions] = field(default_factory=dict)

    @property
    def first(self) -> Questions:
        """Those of the first filter."""
        return next(iter(self.by_filter.values()))

    @cached_property
    def digest(self) -> str:
        """A digest of all of them; `eval.scores.questions_digest` gives the same."""
        return digest(*(mark for key in sorted(self.by_filter) for mark in self.by_filter[key].marks))


@dataclass(frozen=True)
class TaskItems:
    """One model's results in a task.

    Attributes:
        questions: of the task; models that were read together share them.
        values: by filter and metric, in the order of the lines.
    """

    questions: TaskQuestions
    values: Mapping[str, Values]


@dataclass(frozen=True)
class _Block:
    """A stretch of lines of one task and filter.

    Attributes:
        task, filter: whose lines they are.
        start, stop: numbers of the lines.
        metrics: in the order in which they are written.
        tail: the bytes between the results and the rest of a line.
    """

    task: str
    filter: str
    start: int
    stop: int
    metrics: tuple[str, ...]
    tail: bytes


@dataclass(frozen=True)
class _Form:
    """How the lines of a file begin."""

    heads: list[bytes]
    sizes: list[int]
    blocks: list[_Block]
    questions: dict[str, TaskQuestions]

    @cached_property
    def clusters(self) -> int:
        """How many lines name a passage."""
        return sum(_CLUSTER in head for head in self.heads)


class ItemsReader:
    """Reads items files; files with the same questions in the same order are read faster from the second one on."""

    def __init__(self) -> None:
        self._forms: list[_Form] = []

    def read(self, path: Path) -> dict[str, TaskItems]:
        """Return the results of a file by task.

        Raises:
            DataError: it is missing, or a line is damaged.
        """
        try:
            raw = path.read_bytes()
        except FileNotFoundError:
            fix = f"copy it to the score file's directory, or {SCORE_AGAIN}"
            raise DataError("the score file's items file is missing", str(path), fix) from None
        lines = raw.split(b"\n")
        # The last line ends with a newline, so nothing follows it; without one the writer may have been killed.
        if lines and not lines[-1]:
            lines.pop()
        clusters = raw.count(_CLUSTER)
        for form in self._forms:
            # A passage that is named behind the results would not be seen.
            fast_items = _read_as(form, lines) if form.clusters == clusters else None
            if fast_items is not None:
                return fast_items
        parsed = list(_parsed(path, lines))
        items = _collected(parsed)
        new = _form(lines, parsed, {task: one.questions for task, one in items.items()})
        if new is not None and new.clusters == clusters:
            self._forms = [*self._forms, new][-_MOST_KEPT:]
        return items


def _parsed(path: Path, lines: Sequence[bytes]) -> Iterator[dict[str, Any]]:
    for number, raw in enumerate(lines, 1):
        try:
            line = parse_line(raw)
            if missing := [key for key in _KNOWN if key not in line]:
                raise ValueError(f"{', '.join(missing)} is missing")
            if missing := [metric for metric in line["metrics"] if metric not in line]:
                raise ValueError(f"{', '.join(missing)} is missing")
            yield line
        except ValueError as error:
            # Deleting the line is no help: a score file knows how many it has.
            fix = f"restore the file from a backup, or {SCORE_AGAIN}"
            raise DataError(f"the line is damaged: {error}", f"{path}:{number}", fix) from None


def _collected(lines: Sequence[dict[str, Any]]) -> dict[str, TaskItems]:
    """Return parsed lines by task and filter."""
    items: dict[str, TaskItems] = {}
    for line in lines:
        task = items.setdefault(line["task"], TaskItems(TaskQuestions(), {}))
        questions = task.questions.by_filter.setdefault(line["filter"], Questions())
        questions.items.append(line["item"])
        questions.hashes.append(line["doc_hash"])
        questions.clusters.append(line.get("cluster"))
        values: Any = task.values
        for metric in line["metrics"]:
            values.setdefault(line["filter"], {}).setdefault(metric, []).append(line[metric])
    return items


def _form(
    lines: Sequence[bytes], parsed: Sequence[dict[str, Any]], questions: dict[str, TaskQuestions]
) -> _Form | None:
    """Return how the lines of a file begin; None if they are not written as `megacode evaluate` writes them."""
    heads: list[bytes] = []
    blocks: list[_Block] = []
    for number, (raw, line) in enumerate(zip(lines, parsed, strict=True)):
        metrics, keys = tuple(line["metrics"]), list(line)
        # Results stand between the question and the list of metrics.
        first = keys.index("metrics") - len(metrics)
        if not metrics or first < 0 or set(keys[first : keys.index("metrics")]) != set(metrics):
            return None
        size = raw.find(b'"' + keys[first].encode() + b'": ')
        tail = b', "metrics": ' + orjson.dumps(line["metrics"]).replace(b",", b", ") + b", "
        if size < 0 or raw.find(tail, size) < 0:
            return None
        heads.append(raw[:size])
        last = blocks[-1] if blocks else None
        block = (line["task"], line["filter"], tuple(keys[first : keys.index("metrics")]), tail)
        if last is not None and (last.task, last.filter, last.metrics, last.tail) == block:
            blocks[-1] = _Block(last.task, last.filter, last.start, number + 1, last.metrics, tail)
        elif len(blocks) == _MOST_BLOCKS:
            return None
        else:
            blocks.append(_Block(line["task"], line["filter"], number, number + 1, block[2], tail))
    return _Form(heads, [len(head) for head in heads], blocks, questions)


def _read_as(form: _Form, lines: Sequence[bytes]) -> dict[str, TaskItems] | None:
    """Return the results of lines that begin as those of a form; None if any differs."""
    heads = form.heads
    if len(lines) != len(heads) or not lines or not lines[0].startswith(heads[0]):
        return None
    # Loops inside `map`, since each step in Python would cost as much as parsing.
    if not all(map(bytes.startswith, lines, heads)) or not all(map(bytes.endswith, lines, [b"}"] * len(lines))):
        return None
    values: dict[str, dict[str, dict[str, list[Any]]]] = {task: {} for task in form.questions}
    for block in form.blocks:
        tail, sizes = block.tail, form.sizes[block.start : block.stop]
        own = lines[block.start : block.stop]
        parts = [line[size:].partition(tail) for line, size in zip(own, sizes, strict=True)]
        if not all(middle for _, middle, _ in parts):
            return None
        results_by_metric = _results([result for result, _, _ in parts], block.metrics)
        if results_by_metric is None:
            return None
        for metric, results in results_by_metric.items():
            values[block.task].setdefault(block.filter, {}).setdefault(metric, []).extend(results)
    return {task: TaskItems(questions, values[task]) for task, questions in form.questions.items()}


def _results(parts: list[bytes], metrics: tuple[str, ...]) -> dict[str, list[Any]] | None:
    """Return results by metric, of the bytes between question and metrics; None if they are of other metrics."""
    distinct = set(parts)
    # Right and wrong make two different lines of results, so parsing each once is enough.
    ordered = list(distinct) if len(distinct) <= _FEW else parts
    try:
        rows = orjson.loads(b"[{" + b"},{".join(ordered) + b"}]")
    except orjson.JSONDecodeError:
        return None
    if len(rows) != len(ordered) or any(tuple(row) != metrics for row in rows):
        return None
    if ordered is parts:
        return {metric: [row[metric] for row in rows] for metric in metrics}
    by_part = dict(zip(ordered, rows, strict=True))
    return {
        metric: list(map({part: row[metric] for part, row in by_part.items()}.__getitem__, parts)) for metric in metrics
    }

"""Benchmarks: the items that training documents must not contain, and where they come from.

Items of lm-eval's suites are read by `eval.suite_items`, since reading them takes lm-eval; here are those of the suites
`demo` and `heldout`, which are made by megacode itself, and those in a user's own files:

    {"text": "..."}                                  one item a line
    {"question": "...", "answer": "..."}             the question is also looked for by itself
    {"task": "algebra", ...}                         reports are by task; absent: the file's name
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from megacode.base.errors import DataError
from megacode.base.files import Json, atomic_path, parse_line, read_json, to_json
from megacode.data.demo_items import INDEX
from megacode.data.items import Item, rows_digest

_FIX = 'write one JSON object a line: {"text": "..."} or {"question": "...", "answer": "..."}'


@dataclass(frozen=True)
class Benchmark:
    """The items of one suite.

    Attributes:
        name: the suite, or the user's file.
        items: of all its tasks; those of one task together.
        digests: of each task's questions. Equal digests mean equal questions: a score file is compared by them.
    """

    name: str
    items: tuple[Item, ...]
    digests: Mapping[str, str]

    def facts(self) -> Json:
        """Return what a corpus' manifest says of the suite: its name, and the size and digest of each task."""
        sizes = {task: sum(1 for _ in items) for task, items in groupby(self.items, key=lambda item: item.task)}
        tasks = {task: {"items": sizes.get(task, 0), "sha256": value} for task, value in self.digests.items()}
        return {"suite": self.name, "tasks": tasks}


def items_from_file(path: Path) -> Benchmark:
    """Read a user's items, JSON lines.

    Raises:
        DataError: if the file is missing or empty, or a line is no item.
    """
    rows: list[tuple[int, Json]] = []
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    rows.append((number, parse_line(line)))
    except OSError as error:
        raise DataError(f"the items cannot be read: {error.strerror}", str(path), "give a file of JSON lines") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"the line is no JSON object: {error}", f"{path}:{number}", _FIX) from None
    if not rows:
        raise DataError("the file has no items", str(path), _FIX)
    # The sort is stable: a task's items stay in the order of the file.
    entries = sorted(((_item(row, path, number), row) for number, row in rows), key=lambda one: one[0].task)
    tasks = groupby(entries, key=lambda one: one[0].task)
    digests = {task: rows_digest(row for _, row in some) for task, some in tasks}
    return Benchmark(path.name, tuple(item for item, _ in entries), digests)


def _item(row: Json, path: Path, number: int) -> Item:
    text, question, answer = (row.get(key, "") for key in ("text", "question", "answer"))
    if not all(isinstance(part, str) for part in (text, question, answer)) or not (text or question):
        raise DataError("the line is no item", f"{path}:{number}", _FIX)
    # The line's number names the item in reports, so that a user can find it.
    return Item(str(row.get("task", path.stem)), number, text or _joined(question, answer), question)


def _joined(question: str, answer: str) -> str:
    # One space, which is lm-eval's default `target_delimiter`, unless one of the two brings white space.
    between = "" if not answer or question[-1:].isspace() or answer[:1].isspace() else " "
    return question + between + answer


def items_made_in(directory: Path, name: str) -> Benchmark:
    """Read the items of the suite `demo` or `heldout` from the directory where they were made.

    Raises:
        DataError: if they are missing or incomplete.
    """
    tasks = read_json(directory / INDEX).get("tasks", {})
    items: list[Item] = []
    digests = {}
    try:
        for task, facts in tasks.items():
            with (directory / facts["file"]).open("rb") as file:
                rows = [parse_line(line) for line in file]
            items += [Item(task, number, *_made_text(row)) for number, row in enumerate(rows)]
            # lm-eval reads the documents of `heldout` with the numbers of their lines.
            lines = [{"line": number, **row} if name == "heldout" else row for number, row in enumerate(rows, 1)]
            digests[task] = rows_digest(lines)
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        fix = "remove the directory: the items are then made again"
        raise DataError(f"its items cannot be read: {type(error).__name__}: {error}", str(directory), fix) from None
    if not items:
        raise DataError(f"there are no items of the suite {name} here", str(directory), "give the items' directory")
    return Benchmark(name, tuple(items), digests)


def _made_text(row: Mapping[str, Any]) -> tuple[str, str]:
    """Return the text of one of `demo_items`' items, and its question."""
    if "endings" in row:
        return row["context"] + row["endings"][row["answer"]], row["context"]
    if "word" in row:
        return f"{row['prompt']} {row['word']}", row["prompt"]
    return row["text"], ""


def write_benchmarks(path: Path, benchmarks: Sequence[Benchmark]) -> None:
    """Write benchmarks to one file, so that all shards of a job look for the same items."""
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for benchmark in benchmarks:
            file.write(to_json({"suite": benchmark.name, "digests": dict(benchmark.digests)}) + "\n")
            file.writelines(to_json(asdict(item)) + "\n" for item in benchmark.items)


def read_benchmarks(path: Path) -> list[Benchmark]:
    """Read what `write_benchmarks` wrote."""
    benchmarks: list[tuple[Json, list[Item]]] = []
    for row in _rows(path):
        # A line with `suite` begins a benchmark, and the lines after it are its items.
        if "suite" in row:
            benchmarks.append((row, []))
        else:
            benchmarks[-1][1].append(Item(**row))
    return [Benchmark(head["suite"], tuple(items), head["digests"]) for head, items in benchmarks]


def _rows(path: Path) -> Iterator[Json]:
    with path.open("rb") as file:
        yield from map(parse_line, file)

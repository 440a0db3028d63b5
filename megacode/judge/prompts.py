"""Prompts that two models answer: JSON lines `{"id": ..., "prompt": ..., "category": ...}`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from megacode.base.errors import DataError, Problem
from megacode.data.jsonl import parse_object, read_objects
from megacode.data.records import text_in

SHIPPED = Path(__file__).parent / "prompts.jsonl"
UNSORTED = "all"
_SHOWN = 20  # problems of one file; more would hide the first ones


@dataclass(frozen=True)
class Prompt:
    """One prompt of a prompt file.

    Attributes:
        id: unique in its file.
        text: the prompt for both models.
        category: results are also given by category; `all` if the file has none.
    """

    id: str
    text: str
    category: str = UNSORTED


def read_prompts(path: Path) -> list[Prompt]:
    """Read a prompt file.

    Raises:
        DataError: if it is missing, has no prompt, or has invalid lines, all of which are reported.
    """
    fix = f"give a JSON-lines file, or omit --prompts to use the shipped ones ({SHIPPED})"
    try:
        parsed = [_parse(line, f"{path}:{number}") for number, line in read_objects(path)]
    except DataError as error:
        raise DataError(error.problems[0].what, str(path), fix) from None
    problems = [item for item in parsed if isinstance(item, Problem)]
    prompts = [item for item in parsed if isinstance(item, Prompt)]
    # Results are joined by id, so a repeated one would mix two prompts.
    problems += _repeated(prompts, path)
    if problems:
        raise DataError(problems=problems[:_SHOWN])
    if not prompts:
        raise DataError("it contains no prompt", str(path), 'write lines such as {"id": "1", "prompt": "Why is ...?"}')
    return prompts


def _parse(line: bytes, where: str) -> Prompt | Problem:
    try:
        item = parse_object(line)
        for key in (key for key in ("prompt", "id", "category") if isinstance(item.get(key), str)):
            text_in(item, key)
    except ValueError as error:
        return Problem(str(error), where, 'write for example {"id": "1", "prompt": "Why is ...?"}')
    # Numbers are accepted as ids: many prompt files count their lines.
    identity, text, category = item.get("id"), item.get("prompt"), item.get("category", UNSORTED)
    # bool is a subclass of int in Python, and `true` is no id.
    if not isinstance(identity, (str, int)) or isinstance(identity, bool) or identity == "":
        return Problem(f"`id` is {identity!r}", where, "give each prompt a unique id")
    if not isinstance(text, str) or not text.strip():
        return Problem(f"`prompt` is {text!r}", where, "write the text of the prompt")
    if not isinstance(category, str) or not category:
        return Problem(f"`category` is {category!r}", where, "use a non-empty string, or omit it")
    return Prompt(str(identity), text, category)


def _repeated(prompts: Iterable[Prompt], path: Path) -> Iterator[Problem]:
    seen: set[str] = set()
    for prompt in prompts:
        if prompt.id in seen:
            yield Problem(f"the id {prompt.id!r} appears twice", str(path), "give each prompt a unique id")
        seen.add(prompt.id)

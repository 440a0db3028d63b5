"""The items of benchmarks as plain texts, to be searched for in training data."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from megacode.base.files import digest, to_json


@dataclass(frozen=True)
class Item:
    """One item of a suite.

    Attributes:
        task: its task.
        number: its place there.
        text: its question followed by the correct answer.
        question: without the answer; empty: not known apart.
    """

    task: str
    number: int
    text: str
    question: str = ""


def task_items(name: str, task: Any, limit: int | None = None) -> list[Item]:
    """Return the items of one of lm-eval's task objects, without a model: the first `limit`, or all.

    It builds the task's requests again, so call it before or after the task runs, not during.
    """
    # One rank of one: every rank looks for all items, whichever it scores.
    task.build_all_requests(limit=limit, rank=0, world_size=1)
    requests: dict[int, list[Any]] = defaultdict(list)
    for instance in task.instances:
        requests[instance.doc_id].append(instance)
    samples = (
        {
            "doc_id": number,
            "arguments": [one.args for one in sorted(instances, key=lambda one: one.idx)],
            "target": task.doc_to_target(instances[0].doc),
        }
        for number, instances in sorted(requests.items())
    )
    return items_of(name, samples)


def items_of(task: str, samples: Iterable[Mapping[str, Any]]) -> list[Item]:
    """Return a task's items from `doc_id`, `arguments` and `target` of each, as lm-eval names them.

    The text is the request followed by the correct answer; among several endings, the target one.
    """
    return [_item(task, sample) for sample in samples]


def _item(task: str, sample: Mapping[str, Any]) -> Item:
    text, question = _text(sample["arguments"], sample["target"]), str(next(iter(sample["arguments"][0])))
    return Item(task, int(sample["doc_id"]), text, question if text.startswith(question) else "")


def _text(arguments: Any, target: Any) -> str:
    requests = [tuple(argument) for argument in arguments]
    # lm-eval gives the target as an index, as a digit, as a text, or as a list of texts.
    if isinstance(target, str) and target.isdigit() and len(requests) > int(target):
        target = int(target)
    if isinstance(target, int) and not isinstance(target, bool) and target < len(requests):
        return "".join(part for part in requests[target] if isinstance(part, str))
    # All requests of an item begin with its question, so any of them tells it.
    question = str(requests[0][0])
    answers = [target] if isinstance(target, str) else list(target) if isinstance(target, (list, tuple)) else []
    answer = next((one for one in answers if isinstance(one, str)), "")
    if not answer or question.endswith(answer):
        return question
    return question + ("" if question[-1:].isspace() or answer[:1].isspace() else " ") + answer


def rows_digest(rows: Iterable[Mapping[str, Any]]) -> str:
    """Return a digest of a task's questions as its data set holds them: no prompt or number of examples changes it."""
    return digest(*(to_json(dict(sorted(row.items())), other=str) for row in rows))

"""The keys of a suite's file, and every mistake in one at once. Nothing here loads lm-eval."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from megacode.base.errors import Problem

KEYS: dict[str, type | tuple[type, ...]] = {
    "name": str, "tasks": list, "include_path": (str, list), "lm_eval": list, "defaults": bool, "offline": bool,
    "unsafe_code": bool, "bits_per_byte": dict, "categories": dict, "means": dict, "clusters": dict,
    "gold_answers": dict, "few_shot": dict, "samples": dict, "suites": list,
}  # fmt: skip
SAMPLING = {"n": 1, "k": [1], "temperature": 0.8, "top_p": 0.95}  # one answer would be greedy without all this


def suite_problems(
    document: Mapping[str, Any], path: Path, tasks: Collection[str] = (), categories: Collection[str] = ()
) -> Iterable[Problem]:
    """Yield the mistakes in a suite's file.

    Args:
        document: its contents.
        path: the file, for messages and for what is relative to it.
        tasks, categories: those of the suites that it joins.
    """
    for key, value in document.items():
        if key not in KEYS:
            close = get_close_matches(str(key), KEYS, n=1)
            fix = f"did you mean {close[0]!r}?" if close else f"the keys are {', '.join(KEYS)}"
            yield Problem(f"unknown key {key!r}", str(path), fix)
        # Types only; what the values mean is checked below.
        elif not isinstance(value, KEYS[key]):
            yield Problem(
                f"{value!r} is not a valid value for this key",
                f"{path}: {key}",
                "see the beginning of megacode/eval/suites.py",
            )
    own, texts = document.get("tasks"), document.get("bits_per_byte")
    if isinstance(texts, dict) and (list(texts) != ["files"] or not _are_words(texts["files"])):
        yield Problem("it lists no files", f"{path}: bits_per_byte", "write for example `{files: [books/*.txt]}`")
    if not _are_words(own) and not ((texts or document.get("suites")) and own is None):
        yield Problem("it lists no tasks", f"{path}: tasks", "write for example `tasks: [piqa, arc_easy]`")
    known = {*tasks, *(str(task) for task in own or ())} if _are_words(own) else {*tasks}
    yield from _category_problems(document, path, known, categories)
    yield from _example_problems(document, path)
    places = document.get("include_path", [])
    for place in [places] if isinstance(places, str) else places if isinstance(places, list) else []:
        if not (path.parent / str(place)).is_dir():
            yield Problem(f"there is no directory {place}", f"{path}: include_path", "it is relative to this file")


def joined_suites(document: Any, path: Path) -> list[str]:
    """Return the names and files of the suites that a suite joins; they are read before it is checked."""
    names = document.get("suites", [])
    return [str(name) for name in names] if _are_words(names) else []


def _are_words(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, str) for item in value)


def _category_problems(
    document: Mapping[str, Any], path: Path, tasks: Collection[str], others: Collection[str]
) -> Iterable[Problem]:
    categories, means, clusters = (document.get(key, {}) for key in ("categories", "means", "clusters"))
    if not all(isinstance(part, dict) for part in (categories, means, clusters)):
        return
    for name, metrics in categories.items():
        if not isinstance(metrics, dict) or not all(isinstance(metric, str) for metric in metrics.values()):
            yield Problem("a category maps tasks to metrics", f"{path}: categories.{name}", "write `{piqa: acc}`")
        elif unknown := [task for task in metrics if task not in tasks]:
            yield Problem(f"no such task: {unknown[0]}", f"{path}: categories.{name}", "add it under `tasks`")
    gold = document.get("gold_answers", {})
    examples = {"clusters": "{boolq: passage}", "gold_answers": '{nq_open: "{{answer[0]}}"}'}
    for key, entries in (("clusters", clusters), ("gold_answers", gold if isinstance(gold, dict) else {})):
        for task, value in entries.items():
            if task not in tasks or not isinstance(value, str):
                fix = f"write for example `{examples[key]}`, with a task of `tasks`"
                message = "it names no task and field" if key == "clusters" else "it names no task and template"
                yield Problem(message, f"{path}: {key}.{task}", fix)
    known = [*categories, *others]
    for name, parts in means.items():
        if not _are_words(parts) or any(part not in known for part in parts):
            yield Problem("a mean lists categories", f"{path}: means.{name}", f"the categories are {', '.join(known)}")


def _example_problems(document: Mapping[str, Any], path: Path) -> Iterable[Problem]:
    """Yield the mistakes in `few_shot` and `samples`; whether their tasks exist shows when tasks are loaded."""
    few_shot, samples = document.get("few_shot", {}), document.get("samples", {})
    for task, count in few_shot.items() if isinstance(few_shot, dict) else ():
        if not _is_count(count, least=0):
            fix = "write for example `{arc_challenge: 25}`; 0 asks without examples"
            yield Problem(f"{count!r} is no number of examples", f"{path}: few_shot.{task}", fix)
    if document.get("gold_answers") is not None and samples:
        fix = "remove one of the two: of true answers nothing is generated"
        yield Problem("answers are sampled in a suite of true answers", f"{path}: samples", fix)
    for task, wanted in samples.items() if isinstance(samples, dict) else ():
        where, fix = f"{path}: samples.{task}", "write for example `{n: 20, k: [1, 10], temperature: 0.8, top_p: 0.95}`"
        if not isinstance(wanted, dict) or not wanted.keys() <= SAMPLING.keys() or "n" not in wanted:
            yield Problem(f"{wanted!r} is no way to sample answers", where, fix)
            continue
        sampling = {**SAMPLING, **wanted}
        if not _is_count(sampling["n"], least=1):
            yield Problem(f"n is {sampling['n']!r}, not a number of answers", where, fix)
        elif not isinstance(sampling["k"], list) or not all(_is_count(k, 1, sampling["n"]) for k in sampling["k"]):
            yield Problem(f"k is {sampling['k']!r}, not a list of numbers from 1 to n = {sampling['n']}", where, fix)
        if not _is_number(sampling["temperature"], 2.0) or not _is_number(sampling["top_p"], 1.0):
            yield Problem("temperature is above 0 and up to 2, top_p above 0 and up to 1", where, fix)


def _is_count(value: Any, least: int, most: float = float("inf")) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _is_number(value: Any, most: float) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value <= most

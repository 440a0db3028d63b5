"""Read score files into arrays of items, and check that scores and items agree.

`megacode evaluate` writes two files: `NAME.json` with the scores and their settings, and `NAME.items.jsonl` with one
line per item and filter. An item is identified by its number and the hash of its document.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from megacode.base.errors import DataError
from megacode.base.files import RunDir
from megacode.statistics.items import SCORE_AGAIN, ItemsReader, TaskItems, TaskQuestions

ITEMS = ".items.jsonl"


@dataclass(frozen=True)
class Outcomes:
    """One model's results in one task, by one metric.

    Attributes:
        values: float64[items]; their mean is the score.
        sizes: float64[items] of mean 1, each item's weight in a ratio of sums (bits per byte); None: all are 1.
        higher_is_better: from the task's definition.
    """

    values: np.ndarray
    sizes: np.ndarray | None
    higher_is_better: bool


@dataclass(frozen=True)
class Task:
    """One model's results in one task, sorted by item number.

    Attributes:
        identity: what must be equal in two models' results so that they can be compared item by item.
        outcomes: by metric.
        clusters: int64[items], the passage that each item belongs to; None: items stand alone.
        count: items.
    """

    identity: Mapping[str, Any]
    outcomes: Mapping[str, Outcomes]
    clusters: np.ndarray | None
    count: int


@dataclass(frozen=True)
class Scores:
    """One model's score file.

    Attributes:
        path: of the file.
        tasks: by name.
        mean_parts: by name of a mean: its tasks with the metric that counts, or its categories.
        left_out: tasks of the suite that were not scored, with the reason.
        unpaired: `TASK/METRIC` of scores that are not means of their items, such as an F1 of labels.
        seed: of the order of data; None if the file does not have it.
        init_seed: of the first weights; None if it is not known, as in files of earlier versions.
        weights: hash of the model's weights; empty if unknown.
        conditions: what may change a score in its last digits: versions, device, dtype.
    """

    path: Path
    tasks: Mapping[str, Task]
    mean_parts: Mapping[str, Any] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)
    unpaired: Sequence[str] = ()
    seed: int | None = None
    weights: str = ""
    conditions: Mapping[str, Any] = field(default_factory=dict)
    init_seed: int | None = None


def find_scores(path: Path) -> Path:
    """Return the score file that a path stands for: itself, or the newest one of a run or of its `eval/`.

    Raises:
        DataError: if there is none, or the newest checkpoint has scores of several suites.
    """
    if not path.is_dir():
        return path
    place = Path(RunDir(path).eval) if Path(RunDir(path).eval).is_dir() else path
    files = [file for file in sorted(place.glob("*@iter_*.json")) if file.stem.rpartition("@iter_")[2].isdecimal()]
    if not files:
        fix = "give a score file that `megacode evaluate` wrote"
        raise DataError("there are no score files here", str(place), fix)
    last = max(int(file.stem.rpartition("@iter_")[2]) for file in files)
    newest = [file for file in files if int(file.stem.rpartition("@iter_")[2]) == last]
    if len(newest) > 1:
        names = ", ".join(file.name for file in newest)
        raise DataError(f"the newest model has scores of {len(newest)} suites: {names}", str(place), "give one of them")
    return newest[0]


def read_scores(path: Path, reader: ItemsReader | None = None) -> Scores:
    """Read a score file and its items.

    Args:
        path: of the score file.
        reader: of items; one for many files reads them faster.

    Raises:
        DataError: if one of them is missing or damaged, or they do not belong together.
    """
    document = read_document(path)
    # `_scores` reads a well-formed file without checking each type; a damaged one fails somewhere in it.
    try:
        return _scores(path, document, reader or ItemsReader())
    except (AttributeError, KeyError, TypeError, ValueError) as error:  # values of other types than a score file has
        message = f"the score file is damaged: {type(error).__name__}: {error}"
        raise DataError(message, str(path), SCORE_AGAIN) from None


def _scores(path: Path, document: Mapping[str, Any], reader: ItemsReader) -> Scores:
    items = path.parent / document.get("items_file", path.with_suffix(ITEMS).name)
    columns = reader.read(items)
    tasks: dict[str, Task] = {}
    unpaired: list[str] = []
    for name, scores in document["scores"].items():
        if name not in columns:
            raise DataError(f"it has no items of the task {name}", str(items), SCORE_AGAIN)
        tasks[name] = _task(document, name, scores, columns[name], items, unpaired)
    versions = {key: document["versions"].get(key) for key in ("transformers", "torch")}
    settings = {key: document["settings"].get(key) for key in ("device", "dtype")}
    return Scores(
        path, tasks, _mean_parts(document), dict(document.get("left_out", {})), unpaired, _seed(document),
        str(document["model"].get("weights_sha256", "")), versions | settings, _init_seed(document),
    )  # fmt: skip


def read_document(path: Path) -> dict[str, Any]:
    """Return a score file's contents, with all its parts there.

    Raises:
        DataError: if it is missing or damaged, or no score file.
    """
    fix = "give a score file that `megacode evaluate` wrote"
    try:
        document = orjson.loads(path.read_bytes())
    except FileNotFoundError:
        raise DataError("the score file does not exist", str(path), fix) from None
    except orjson.JSONDecodeError as error:
        message = f"the score file is damaged: line {error.lineno}, column {error.colno}: {error.msg}"
        raise DataError(message, str(path), SCORE_AGAIN) from None
    keys = ("scores", "tasks", "settings", "versions", "model")
    missing = [key for key in keys if not isinstance(document, dict) or not isinstance(document.get(key), dict)]
    if missing:
        raise DataError(f"this is not a score file: {', '.join(missing)} is missing", str(path), fix)
    if lost := [name for name in document["scores"] if not isinstance(document["tasks"].get(name), dict)]:
        raise DataError(f"the score file is damaged: it has no settings of the task {lost[0]}", str(path), SCORE_AGAIN)
    return dict(document)


def _mean_parts(document: Mapping[str, Any]) -> dict[str, Any]:
    # A mean is over tasks (a dict) or over categories, which are means of tasks. It never nests deeper.
    parts = dict(document.get("mean_parts", {}))
    for name, members in parts.items():
        if not isinstance(members, dict) and not all(isinstance(parts[category], dict) for category in members):
            raise ValueError(f"the mean {name} is not a mean of categories")
    return parts


def _seed(document: Mapping[str, Any]) -> int | None:
    """Return the seed of a model's first phase, since two cooldowns of one trunk are not two seeds."""
    chain = (document["model"].get("megacode") or {}).get("fingerprints") or [{}]
    seed = chain[0].get("seed")
    return seed if isinstance(seed, int) else None


def _init_seed(document: Mapping[str, Any]) -> int | None:
    seed = (document["model"].get("megacode") or {}).get("init_seed")
    return seed if isinstance(seed, int) else None


def _task(
    document: Mapping[str, Any], name: str, scores: Mapping[str, Any], items: TaskItems, path: Path, unpaired: list[str]
) -> Task:
    """Return a task's outcomes; names of scores that are not means of items are added to `unpaired`."""
    facts, questions = document["tasks"][name], items.questions
    _check_questions(facts, name, questions, path)
    outcomes: dict[str, Outcomes] = {}
    for metric, score in scores.items():
        if metric.endswith("_stderr") or not isinstance(score, (int, float)):
            continue
        # lm-eval names a score METRIC,FILTER. A score without a filter belongs to the first one.
        bare, _, chosen = metric.partition(",")
        key = chosen if chosen in questions.by_filter else next(iter(questions.by_filter))
        values = items.values.get(key, {}).get(bare)
        better = (facts.get("higher_is_better") or {}).get(bare, not bare.startswith("bits_per_byte"))
        # Lines may be in any order; results are paired by item number.
        ordered = None if values is None else questions.by_filter[key].sorted(values)
        result = None if ordered is None else _outcomes(ordered, float(score), bool(better))
        if result is not None:
            outcomes[metric] = result
        elif f"{metric}_stderr" in scores:  # written only if the score was the mean of the items
            message = f"{name}/{metric} is {score:g} in the score file, but its items have another mean"
            raise DataError(message, str(path), SCORE_AGAIN)
        else:
            unpaired.append(f"{name}/{metric}")
    passages, digested = questions.first.passages
    return Task(_identity(document, facts, digested), outcomes, passages, len(questions.first.items))


def _check_questions(facts: Mapping[str, Any], name: str, questions: TaskQuestions, path: Path) -> None:
    """Check that the items are those of the score file: all of them, and each once per filter."""
    # First the numbers, for a clear message; then the hash, which also covers documents and order.
    for one in questions.by_filter.values():
        if not one.once or len(one.items) != facts.get("items"):
            message = f"it has {len(one.items):,} lines of {name}, but the score file has {facts.get('items')} items"
            raise DataError(message, str(path), SCORE_AGAIN)
    if questions.digest != facts.get("questions_sha256"):
        raise DataError(f"its items of {name} differ from those of the score file", str(path), SCORE_AGAIN)


def _outcomes(values: Sequence[Any], score: float, higher_is_better: bool) -> Outcomes | None:
    """Return results as numbers whose mean is the score; None if the score is not their mean."""
    sizes = None
    # Pairs are (log-likelihood in nats, bytes): bits per byte is a ratio of sums, written as a mean of items here.
    if all(isinstance(value, list) and len(value) == 2 for value in values):
        try:
            pairs = np.array(values, dtype=np.float64)
        except (TypeError, ValueError):  # labels of other types
            return None
        if not pairs[:, 1].sum() > 0:
            return None
        sizes = pairs[:, 1] / pairs[:, 1].mean()
        numbers = -pairs[:, 0] / (math.log(2) * pairs[:, 1].mean())
    elif all(isinstance(value, (int, float)) for value in values):
        numbers = np.array(values, dtype=np.float64)
    else:
        return None
    if not math.isclose(float(numbers.mean()), score, rel_tol=1e-6, abs_tol=1e-9):
        return None
    return Outcomes(numbers, sizes, higher_is_better)


def _identity(document: Mapping[str, Any], facts: Mapping[str, Any], passages: str) -> dict[str, Any]:
    """Return what must be equal in two results; without a hash of the prompts, the suite's hash stands for them."""
    return {
        "items": facts["questions_sha256"],
        "prompts": facts.get("prompts_sha256") or document.get("suite_sha256"),
        "task version": facts.get("version"),
        "limit": document["settings"].get("limit"),
        "lm-eval version": document["versions"].get("lm_eval"),
        "backend": document["settings"].get("backend", "hf"),  # files of earlier versions have transformers' scores
        "cut": facts.get("cut"),
        "passages": passages,
    }

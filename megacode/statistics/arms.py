"""Arms: named models of one recipe, one score file a seed, and whether arms can be compared at all."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from megacode.base.errors import ConfigError, DataError, Problem
from megacode.statistics.reading import Scores, find_scores, read_scores

_ASK = "write NAME=SCORES[,SCORES...], one score file a seed"


@dataclass(frozen=True)
class Arm:
    """The models of one recipe.

    Attributes:
        name: as the user calls it.
        models: their score files, in order of the seeds where all are known and differ.
        seeds: what pairs a model with another arm's: `seed 1`, or its place where seeds are not known: `file 1`.
    """

    name: str
    models: tuple[Scores, ...]
    seeds: tuple[str, ...]


def make_arm(name: str, models: Sequence[Scores]) -> Arm:
    """Return an arm of some models.

    Raises:
        DataError: if two of them are the same model, or of one seed.
    """
    for one, other in combinations(models, 2):
        where = f"{name}: {one.path} and {other.path}"
        fix = "give one score file a seed; checkpoints and cooldowns of one trunk are not seeds"
        if one.weights and one.weights == other.weights:
            raise DataError("these are the same model, not two seeds", where, fix)
        if one.seed is not None and one.seed == other.seed:
            raise DataError(f"both have seed {one.seed}", where, fix)
    if any(model.seed is None for model in models):
        return Arm(name, tuple(models), tuple(f"file {number}" for number in range(1, len(models) + 1)))
    ordered = sorted(models, key=lambda model: model.seed or 0)
    return Arm(name, tuple(ordered), tuple(f"seed {model.seed}" for model in ordered))


def read_arms(words: Sequence[str], without: Sequence[str] = ()) -> list[Arm]:
    """Return the arms that a command line names, each file read once.

    Args:
        words: `NAME=SCORES[,SCORES...]`; SCORES is a score file, a run, or its `eval/`.
        without: tasks that are not compared.

    Raises:
        ConfigError: if the words do not name two arms or more, or a name is unfit.
        DataError: if a file is missing or damaged, or files cannot be compared.
    """
    named = [_split(word) for word in words]
    if problems := list(_name_problems([name for name, _ in named])):
        raise ConfigError(problems=problems)
    read: dict[Path, Scores] = {}
    arms = []
    for name, paths in named:
        for path in paths:
            read.setdefault(path, read_scores(path))
        arms.append(make_arm(name, [read[path] for path in paths]))
    check_comparable(arms, without)
    return arms


def _split(word: str) -> tuple[str, list[Path]]:
    name, equals, files = word.partition("=")
    paths = [find_scores(Path(part)) for part in files.split(",") if part]
    if not equals or not name or not paths:
        raise ConfigError(f"{word!r} does not name an arm and its scores", "megacode compare", _ASK)
    return name, paths


def _name_problems(names: Sequence[str]) -> Iterator[Problem]:
    where = "megacode compare"
    if len(names) < 2:
        yield Problem(f"{len(names)} arm cannot be compared" if names else "it has no arms", where, _ASK)
    for number, name in enumerate(names):
        if "/" in name:
            yield Problem(f"the name {name!r} holds a /", where, "write the name before the =, the path behind it")
        same = [other for other in names[:number] if other.casefold() == name.casefold()]
        if same and same[0] == name:
            yield Problem(f"two arms are named {name!r}", where, f"list the seeds of one arm as {name}=A.json,B.json")
        elif same:
            yield Problem(f"the names {same[0]!r} and {name!r} differ in case alone", where, "rename one of them")


def check_comparable(arms: Iterable[Arm], without: Sequence[str] = ()) -> None:
    """Check that all files ask the same: for each task they share, the items, prompts, limits and versions.

    Args:
        arms: all that are compared.
        without: tasks that are not compared.

    Raises:
        DataError: naming both files, the task, and what differs.
    """
    models = [model for arm in arms for model in arm.models]
    problems: list[Problem] = []
    for number, model in enumerate(models):
        for name in [name for name in model.tasks if name not in without]:
            earlier = next((other for other in models[:number] if name in other.tasks), None)
            if earlier is not None:
                problems += _differences(name, earlier, model)
        for name in model.mean_parts:
            earlier = next((other for other in models[:number] if name in other.mean_parts), model)
            if earlier.mean_parts[name] != model.mean_parts[name]:
                where, fix = f"{earlier.path} and {model.path}", "score both with the same suite"
                problems.append(Problem(f"mean/{name} is of other tasks", where, fix))
    if problems:
        raise DataError(problems=problems)


def _differences(task: str, one: Scores, other: Scores) -> Iterator[Problem]:
    """Yield why two files' results of a task cannot be compared item by item, as one problem."""
    a, b = one.tasks[task].identity, other.tasks[task].identity
    named = [_told(key, a[key], b[key]) for key in a if a[key] != b[key]]
    if named:
        fix = f"score both in the same way, or leave the task out: --without {task}"
        yield Problem(f"{task} was asked differently: {'; '.join(named)}", f"{one.path} and {other.path}", fix)


def _told(key: str, one: object, other: object) -> str:
    said = {
        "items": "other items",
        "prompts": "other prompts",
        "cut": "questions were cut to another context",
        "passages": "other passages",
    }
    return said.get(key) or f"{key} {'none' if one is None else one} and {'none' if other is None else other}"

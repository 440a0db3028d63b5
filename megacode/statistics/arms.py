"""Arms: the models of one recipe, one score file per seed, and the check that arms can be compared."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from megacode.base.errors import ConfigError, DataError, Problem
from megacode.config.suggestions import did_you_mean
from megacode.statistics.items import ItemsReader
from megacode.statistics.reading import Scores, find_scores, read_scores

_ASK = "write NAME=SCORES[,SCORES...], one score file per seed"


@dataclass(frozen=True)
class Arm:
    """The models of one recipe.

    Attributes:
        name: given by the user.
        models: their score files, sorted by seed if all seeds are known.
        seeds: labels that pair models of two arms: `seed 1`; `seed 1, first weights 2` where models of one order of
            data differ in their first weights; their position if seeds are not known: `file 1`.
        trunk: arms with the same one share most of their training at each seed, and so spread less; empty: unknown.
    """

    name: str
    models: tuple[Scores, ...]
    seeds: tuple[str, ...]
    trunk: str = ""


def make_arm(name: str, models: Sequence[Scores]) -> Arm:
    """Return an arm of some models.

    Raises:
        DataError: if two of them are the same model, or have the same seeds of data and of first weights.
    """
    # The weights catch what seeds cannot: two score files of one checkpoint would count as two seeds without spread.
    for one, other in combinations(models, 2):
        where = f"{name}: {one.path} and {other.path}"
        fix = "give one score file per seed; checkpoints and cooldowns of one trunk are not seeds"
        if one.weights and one.weights == other.weights:
            raise DataError("these are the same model, not two seeds", where, fix)
        if one.seed is not None and one.seed == other.seed and not _other_weights(one, other):
            raise DataError(f"both have seed {one.seed}", where, fix + _unknown(one, other))
    # One unknown seed spoils the order of all, so all are paired as given.
    if any(model.seed is None for model in models):
        return Arm(name, tuple(models), tuple(f"file {number}" for number in range(1, len(models) + 1)))
    ordered = sorted(models, key=lambda model: (model.seed or 0, model.init_seed or 0))
    # Two models of one order of data are told apart by their first weights, as in a study with `vary: weights`.
    twice = len({model.seed for model in models}) < len(models)
    labels = (f"seed {one.seed}" + (f", first weights {one.init_seed}" if twice else "") for one in ordered)
    return Arm(name, tuple(ordered), tuple(labels))


def _other_weights(one: Scores, other: Scores) -> bool:
    """Return whether two models are known to have begun with other random weights."""
    return None not in (one.init_seed, other.init_seed) and one.init_seed != other.init_seed


def _unknown(one: Scores, other: Scores) -> str:
    if None not in (one.init_seed, other.init_seed):
        return ""
    return "; if their first weights differ: score both again, since these files do not name the seed of the weights"


def read_arms(words: Sequence[str], without: Sequence[str] = ()) -> list[Arm]:
    """Return the arms given on a command line; each file is read once.

    Args:
        words: `NAME=SCORES[,SCORES...]`; SCORES is a score file, a run, or its `eval/`.
        without: tasks that are not compared.

    Raises:
        ConfigError: if fewer than two arms are given, or a name is not valid or not known.
        DataError: if a file is missing or damaged, or files cannot be compared.
    """
    named = [_split(word) for word in words]
    if problems := list(_name_problems([name for name, _ in named])):
        raise ConfigError(problems=problems)
    read, reader = dict[Path, Scores](), ItemsReader()
    arms = []
    for name, paths in named:
        for path in paths:
            read.setdefault(path, read_scores(path, reader))
        arms.append(make_arm(name, [read[path] for path in paths]))
    check_left_out(without, (task for model in read.values() for task in (*model.tasks, *model.left_out)))
    check_comparable(arms, without)
    return arms


def _split(word: str) -> tuple[str, list[Path]]:
    name, equals, files = word.partition("=")
    paths = [find_scores(Path(part)) for part in files.split(",") if part]
    if not equals or not name or not paths:
        raise ConfigError(f"{word!r} is not of the form NAME=SCORES", "megacode compare", _ASK)
    return name, paths


def _name_problems(names: Sequence[str]) -> Iterator[Problem]:
    where = "megacode compare"
    if len(names) < 2:
        yield Problem("there is only 1 arm; two or more can be compared" if names else "no arms are given", where, _ASK)
    for number, name in enumerate(names):
        if "/" in name:
            yield Problem(f"the name {name!r} contains a /", where, "write the name before the =, the path after it")
        # Names that differ only in case are rejected as well: readers would confuse them.
        same = [other for other in names[:number] if other.casefold() == name.casefold()]
        if same and same[0] == name:
            yield Problem(f"two arms are named {name!r}", where, f"list the seeds of one arm as {name}=A.json,B.json")
        elif same:
            yield Problem(f"the names {same[0]!r} and {name!r} differ only in case", where, "rename one of them")


def check_left_out(without: Sequence[str], tasks: Iterable[str]) -> None:
    """Refuse to leave out a task that no score file has: a misspelt one would stay in every mean.

    Raises:
        ConfigError: with every such name.
    """
    known = list(dict.fromkeys(tasks))
    problems = [
        Problem(f"no score file has a task {name!r}", "--without", did_you_mean(name, known))
        for name in without
        if name not in known
    ]
    if problems:
        raise ConfigError(problems=problems)


def check_comparable(arms: Iterable[Arm], without: Sequence[str] = ()) -> None:
    """Check that all files have the same items, prompts, limits and versions for each task they share.

    Args:
        arms: all that are compared.
        without: tasks that are not compared.

    Raises:
        DataError: names both files, the task, and what differs.
    """
    # Each file is compared with the first one that has the task; equality is transitive, so pairs are not needed.
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
                problems.append(Problem(f"mean/{name} is a mean of different tasks in each file", where, fix))
    if problems:
        raise DataError(problems=problems)


def _differences(task: str, one: Scores, other: Scores) -> Iterator[Problem]:
    """Yield one problem that lists why two files' results of a task cannot be compared item by item."""
    a, b = one.tasks[task].identity, other.tasks[task].identity
    reasons = [_reason(key, a[key], b[key]) for key in a if a[key] != b[key]]
    if reasons:
        fix = f"score both in the same way, or leave the task out: --without {task}"
        yield Problem(f"{task} was scored differently: {'; '.join(reasons)}", f"{one.path} and {other.path}", fix)


def _reason(key: str, one: object, other: object) -> str:
    # Values of these keys are hashes, which would tell a reader nothing.
    reasons = {
        "items": "different items",
        "prompts": "different prompts",
        "cut": "questions were truncated to different context lengths",
        "passages": "different passages",
    }
    return reasons.get(key) or f"{key} {'none' if one is None else one} and {'none' if other is None else other}"

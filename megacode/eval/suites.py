"""Suites: named lists of lm-eval tasks, and where their items lie.

`demo` ships with the project; its items are made for each run, from the documents which that run holds out, and lie in
the run directory. A user's own suite is a YAML file:

    name: paper                    # default: the file's name
    tasks: [piqa, my_task]         # tasks, groups or tags
    include_path: my_tasks/        # directories of task YAMLs, relative to this file; absent: lm-eval's own tasks
    defaults: true                 # lm-eval's own tasks as well (half a minute to index)
    offline: true                  # never ask the network; data sets come from the local cache
    unsafe_code: false             # let tasks run the code that the model writes
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from megacode.base.errors import ConfigError, Problem
from megacode.base.files import RunDir, tree_digest
from megacode.eval.demo_items import INDEX
from megacode.eval.heldout import build_run_items

SHIPPED = Path(__file__).parent / "tasks"
_KEYS: dict[str, type | tuple[type, ...]] = {
    "name": str, "tasks": list, "include_path": (str, list), "defaults": bool, "offline": bool, "unsafe_code": bool
}  # fmt: skip


@dataclass(frozen=True)
class Suite:
    """What to run.

    Attributes:
        name: stands in the score file's name.
        tasks: names of tasks, groups or tags.
        include_path: directories of task YAMLs.
        defaults: whether lm-eval's own tasks are known as well.
        offline: whether the network stays untouched.
        unsafe_code: whether tasks may run what the model wrote.
        items: directory of the items of a shipped suite; None for a user's own.
        chance: what guessing scores, per task, where that is known.
    """

    name: str
    tasks: tuple[str, ...]
    include_path: tuple[Path, ...]
    defaults: bool = False
    offline: bool = True
    unsafe_code: bool = False
    items: Path | None = None
    chance: dict[str, float] | None = None

    def files_digest(self) -> str:
        """Return one digest of the task files, and of the items where they are known: same digest, same questions."""
        files = [path for place in self.include_path for path in place.rglob("*") if path.is_file()]
        files = [path for path in files if "__pycache__" not in path.parts]
        return tree_digest([*files, *(self.items.glob("*.jsonl") if self.items else [])])


def load_suite(suite: str | Path, hf_dir: Path, tasks_dir: Path | None = None) -> Suite:
    """Return a suite by its name, or from a user's YAML file.

    Args:
        suite: `demo`, or the path of a YAML file.
        hf_dir: the model to score; its run holds the demo suite's items, made here the first time.
        tasks_dir: directory of the items, instead of the run's.

    Raises:
        ConfigError: if there is no such suite, its file is wrong, or its items are not found.
    """
    path = Path(suite)
    if path.suffix in (".yaml", ".yml"):
        return _read_suite(path)
    shipped = sorted(item.name for item in SHIPPED.iterdir() if item.is_dir())
    if str(suite) not in shipped:
        close = get_close_matches(str(suite), shipped, n=1)
        fix = f"did you mean {close[0]!r}?" if close else f"name one of {', '.join(shipped)}, or a suite's YAML file"
        raise ConfigError(f"there is no suite {str(suite)!r}", "--suite", fix)
    items = tasks_dir or _items_of(hf_dir, str(suite))
    index = _read_index(items)
    chance = {name: task["chance"] for name, task in index["tasks"].items() if "chance" in task}
    return Suite(str(suite), tuple(index["tasks"]), (SHIPPED / str(suite),), items=items, chance=chance)


def items_dir(run_dir: Path, suite: str = "demo") -> Path:
    """Return where a run keeps the items of a shipped suite."""
    return Path(RunDir(run_dir).eval) / "items" / suite


def run_of(hf_dir: Path) -> Path | None:
    """Return the run directory an exported model belongs to, or None.

    The model's `megacode.json` names it (`run_dir`, absolute or relative to the model's directory); failing that, a
    model that lies in `RUN/hf/` belongs to `RUN`.
    """
    try:
        named = json.loads((hf_dir / "megacode.json").read_text(encoding="utf-8")).get("run_dir")
    except (OSError, ValueError, AttributeError):
        named = None
    places = [hf_dir / named] if isinstance(named, str) else []
    if hf_dir.resolve().parent.name == "hf":
        places.append(hf_dir.resolve().parents[1])
    return next((place.resolve() for place in places if Path(RunDir(place).config).exists()), None)


def _items_of(hf_dir: Path, suite: str) -> Path:
    run = run_of(hf_dir)
    if run is None:
        raise ConfigError(
            f"the items of the suite {suite!r} are made for each run, and this model's run is not known",
            str(hf_dir),
            "name their directory with --tasks RUN/eval/items/demo, or score with a suite of your own",
        )
    items = items_dir(run, suite)
    if not (items / INDEX).exists():
        build_run_items(run, items)
    return items


def _read_index(items: Path) -> dict[str, Any]:
    """Return the index of a shipped suite's items, after a look at whether all its files are there."""
    try:
        index: dict[str, Any] = json.loads((items / INDEX).read_text(encoding="utf-8"))
        missing = [task["file"] for task in index["tasks"].values() if not (items / task["file"]).is_file()]
    except (OSError, ValueError, KeyError, TypeError) as error:
        what = f"there are no items of the suite here: {INDEX} is missing or damaged ({type(error).__name__})"
        raise ConfigError(
            what, str(items), "name another directory with --tasks, or remove it to have them made anew"
        ) from None
    if missing:
        raise ConfigError(
            f"items are missing: {', '.join(missing)}", str(items), f"remove {items}, and they are made anew"
        )
    return index


def _read_suite(path: Path) -> Suite:
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError("there is no such suite file", str(path), "name a YAML file, or `demo`") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"this is not YAML: {reason}", str(path), "mend it at the place named") from None
    if not isinstance(document, dict):
        raise ConfigError("a suite is a mapping", str(path), "write for example `tasks: [piqa]`")
    if problems := list(_problems(document, path)):
        raise ConfigError(problems=problems)
    given = document.get("include_path", [])
    places = tuple((path.parent / place).resolve() for place in ([given] if isinstance(given, str) else given))
    return Suite(
        name=document.get("name", path.stem),
        tasks=tuple(document["tasks"]),
        include_path=places,
        defaults=document.get("defaults", not places),
        offline=document.get("offline", True),
        unsafe_code=document.get("unsafe_code", False),
    )


def _problems(document: dict[str, Any], path: Path) -> Iterable[Problem]:
    for key, value in document.items():
        if key not in _KEYS:
            close = get_close_matches(str(key), _KEYS, n=1)
            fix = f"did you mean {close[0]!r}?" if close else f"the keys are {', '.join(_KEYS)}"
            yield Problem(f"unknown key {key!r}", str(path), fix)
        elif not isinstance(value, _KEYS[key]):
            yield Problem(f"{value!r} is no fit value", f"{path}: {key}", "see the head of megacode/eval/suites.py")
    tasks = document.get("tasks")
    if not tasks or not isinstance(tasks, list) or not all(isinstance(task, str) for task in tasks):
        yield Problem("it names no tasks", f"{path}: tasks", "write for example `tasks: [piqa, arc_easy]`")
    places = document.get("include_path", [])
    for place in [places] if isinstance(places, str) else places if isinstance(places, list) else []:
        if not (path.parent / str(place)).is_dir():
            yield Problem(f"there is no directory {place}", f"{path}: include_path", "it is relative to this file")

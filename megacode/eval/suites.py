"""Suites: named lists of lm-eval tasks, and where their items are stored.

The items of `demo` and `heldout` are made from held-out documents, for each run or once for a study; see `made_items`.
`to-code` and `to-code-gold` are shipped as files like a user's own:

    name: paper                    # default: the file's name
    tasks: [piqa, my_task]         # tasks, groups or tags
    include_path: my_tasks/        # directories of task YAMLs, relative to this file; absent: lm-eval's own tasks
    lm_eval: [piqa, super_glue/cb] # directories of lm-eval's own tasks: only these are indexed, which is quick
    defaults: true                 # all of lm-eval's own tasks (half a minute); false if one of the two above is set
    offline: true                  # never use the network; data sets come from the local cache
    unsafe_code: false             # let tasks run the code that the model writes
    bits_per_byte: {files: [a.txt, books/*.jsonl]}   # your own texts, relative to this file
    categories: {reasoning: {piqa: acc, copa: acc}}  # means of tasks, each with the metric that counts
    means: {total: [reasoning, code]}                # means of categories
    clusters: {boolq: passage}     # the field of a task's documents that items of one passage share
    gold_answers: {nq_open: "{{answer[0]}}"}         # bits per byte of true answers; templates where no choice
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from glob import glob
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from megacode.base.errors import ConfigError, Problem
from megacode.base.files import tree_digest
from megacode.config.evaluate import MADE_SUITES
from megacode.config.yaml_reader import parse_yaml
from megacode.eval.made_items import find_items, read_index

SHIPPED = Path(__file__).parent / "tasks"
METRIC = "bits_per_byte"
_KEYS: dict[str, type | tuple[type, ...]] = {
    "name": str, "tasks": list, "include_path": (str, list), "lm_eval": list, "defaults": bool, "offline": bool,
    "unsafe_code": bool, "bits_per_byte": dict, "categories": dict, "means": dict, "clusters": dict,
    "gold_answers": dict,
}  # fmt: skip


@dataclass(frozen=True)
class Suite:
    """A list of tasks and where to find them.

    Attributes:
        name: part of the score file's name.
        tasks: names of tasks, groups or tags.
        include_path: directories of task YAMLs.
        defaults: whether lm-eval's own tasks are available too.
        offline: whether the network is never used.
        unsafe_code: whether tasks may run code that the model wrote.
        items: directory of the items of a shipped suite; None for a user's own.
        chance: the score of guessing, per task, if known.
        lm_eval: directories of lm-eval's own tasks, relative to its `tasks`.
        texts: text files for bits per byte, by the task's name.
        categories: per category the metric that counts for each of its tasks.
        means: per mean the categories in it.
        clusters: per task the field of its documents that items of one passage share.
        gold_answers: None: each task is scored by its own metrics. Otherwise by bits per byte of the true answer:
            a template of it for each task that is no multiple choice.
    """

    name: str
    tasks: tuple[str, ...]
    include_path: tuple[Path, ...]
    defaults: bool = False
    offline: bool = True
    unsafe_code: bool = False
    items: Path | None = None
    chance: dict[str, float] | None = None
    lm_eval: tuple[str, ...] = ()
    texts: Mapping[str, Path] = field(default_factory=dict)
    categories: dict[str, dict[str, str]] = field(default_factory=dict)
    means: dict[str, list[str]] = field(default_factory=dict)
    clusters: dict[str, str] = field(default_factory=dict)
    gold_answers: dict[str, str] | None = None

    def places(self) -> list[Path]:
        """Return the directories of task YAMLs, including lm-eval's own; the suite's own come last and win.

        Raises:
            ConfigError: if lm-eval has no such directory.
        """
        places = []
        for name in self.lm_eval:
            package = find_spec("lm_eval")
            if package is None:
                fix = "pip install 'megacode[eval]'"
                raise ConfigError("lm-eval is not installed", f"suite {self.name}", fix)
            places.append(Path(next(iter(package.submodule_search_locations or []))) / "tasks" / name)
            if not places[-1].is_dir():
                fix = "use one of the directories there, or `defaults: true` for all"
                raise ConfigError(f"lm-eval has no tasks in {name}", str(places[-1].parent), fix)
        return [*places, *self.include_path]

    def with_texts(self, texts: Sequence[Path]) -> Suite:
        """Return the suite with more text files."""
        return replace(self, texts={**self.texts, **_text_tasks(texts)})

    def files_digest(self) -> str:
        """Return one digest of the task files, the texts, and the items if known."""
        files = [path for place in self.places() for path in place.rglob("*") if path.is_file()]
        # Compiled files change with the Python version, not with the tasks.
        files = [path for path in files if "__pycache__" not in path.parts]
        items = self.items.glob("*.jsonl") if self.items else []
        return tree_digest({*files, *self.texts.values(), *items})


def load_suite(suite: str | Path, hf_dir: Path | None, tasks_dir: Path | None = None) -> Suite:
    """Return a suite by its name, or from a user's YAML file.

    Args:
        suite: the name of a shipped one, or the path of a YAML file.
        hf_dir: the model to score; its run directory holds the items of `demo` and `heldout`, made on first use.
        tasks_dir: directory of the items, instead of the run's.

    Raises:
        ConfigError: if there is no such suite, its file is wrong, or its items are not found.
    """
    # A file ending decides: a user's file may have the name of a shipped suite.
    path = Path(suite)
    if path.suffix in (".yaml", ".yml"):
        return _read_suite(path)
    if (SHIPPED / f"{suite}.yaml").is_file():
        return _read_suite(SHIPPED / f"{suite}.yaml")
    shipped = sorted({*MADE_SUITES, *(item.stem for item in SHIPPED.glob("*.yaml"))})
    if str(suite) not in shipped:
        close = get_close_matches(str(suite), shipped, n=1)
        fix = f"did you mean {close[0]!r}?" if close else f"use one of {', '.join(shipped)}, or a suite's YAML file"
        raise ConfigError(f"there is no suite {str(suite)!r}", "--suite", fix)
    return _made_suite(str(suite), tasks_dir or find_items(hf_dir, str(suite)))


def _made_suite(name: str, items: Path) -> Suite:
    """Return the suite `demo` or `heldout` with the items of a directory."""
    tasks = read_index(items)["tasks"]
    if name == "heldout":
        scored = dict.fromkeys(tasks, METRIC)
        texts = {task: items / facts["file"] for task, facts in tasks.items()}
        return Suite(name, (), (), items=items, texts=texts, categories={METRIC: scored})
    chance = {task: facts["chance"] for task, facts in tasks.items() if "chance" in facts}
    clusters = dict.fromkeys(tasks, "document")
    return Suite(name, tuple(tasks), (SHIPPED / name,), items=items, chance=chance, clusters=clusters)


def _read_suite(path: Path) -> Suite:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError("there is no such suite file", str(path), "give a YAML file, or `demo`") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"it cannot be read: {error}", str(path), "give a suite's YAML file in UTF-8") from None
    document = parse_yaml(text, str(path))
    if not isinstance(document, dict):
        raise ConfigError("a suite is a mapping", str(path), "write for example `tasks: [piqa]`")
    # All mistakes at once: fixing a YAML file one error at a time is tedious.
    if problems := list(_problems(document, path)):
        raise ConfigError(problems=problems)
    given = document.get("include_path", [])
    places = tuple((path.parent / place).resolve() for place in ([given] if isinstance(given, str) else given))
    lm_eval, texts = tuple(document.get("lm_eval", ())), document.get("bits_per_byte", {}).get("files", ())
    return Suite(
        name=document.get("name", path.stem),
        tasks=tuple(document.get("tasks", ())),
        include_path=places,
        # Indexing all of lm-eval's tasks takes half a minute, so it is the last resort.
        defaults=document.get("defaults", not places and not lm_eval and "tasks" in document),
        offline=document.get("offline", True),
        unsafe_code=document.get("unsafe_code", False),
        lm_eval=lm_eval,
        texts=_text_tasks(find_texts(texts, path.parent, f"{path}: bits_per_byte") if texts else ()),
        categories=document.get("categories", {}),
        means=document.get("means", {}),
        clusters=document.get("clusters", {}),
        gold_answers=document.get("gold_answers"),
    )


def _text_tasks(files: Iterable[Path]) -> dict[str, Path]:
    return {f"{METRIC}_{path.name}": path for path in files}


def find_texts(patterns: Iterable[str], place: Path, where: str) -> tuple[Path, ...]:
    """Return the text files that paths or patterns match, each once.

    Args:
        patterns: paths, with `*` and `?`, relative to `place` or absolute.
        place: a directory.
        where: origin of the patterns, for messages.

    Raises:
        ConfigError: for a pattern without a match, an unsupported file, or two files with the same name.
    """
    files: dict[str, Path] = {}
    for pattern in patterns:
        matches = sorted(Path(name).resolve() for name in glob(str(place / pattern), recursive=True))
        if not matches:
            raise ConfigError(f"no file matches {pattern!r}", where, f"patterns are relative to {place.resolve()}")
        for path in matches:
            if path.suffix not in (".txt", ".jsonl"):
                fix = "a .txt file is one document; a .jsonl file has one per line, in the key `text`"
                raise ConfigError(f"{path} is neither .txt nor .jsonl", where, fix)
            # Two files of one name would overwrite each other's score.
            if files.setdefault(path.name, path) != path:
                fix = "rename one: scores are listed by file name"
                raise ConfigError(f"{path} and {files[path.name]} have the same name", where, fix)
    return tuple(files.values())


def _problems(document: dict[str, Any], path: Path) -> Iterable[Problem]:
    for key, value in document.items():
        if key not in _KEYS:
            close = get_close_matches(str(key), _KEYS, n=1)
            fix = f"did you mean {close[0]!r}?" if close else f"the keys are {', '.join(_KEYS)}"
            yield Problem(f"unknown key {key!r}", str(path), fix)
        # Types only; what the values mean is checked below.
        elif not isinstance(value, _KEYS[key]):
            yield Problem(
                f"{value!r} is not a valid value for this key",
                f"{path}: {key}",
                "see the beginning of megacode/eval/suites.py",
            )
    tasks, texts = document.get("tasks"), document.get("bits_per_byte")
    if isinstance(texts, dict) and (list(texts) != ["files"] or not _are_words(texts["files"])):
        yield Problem("it lists no files", f"{path}: bits_per_byte", "write for example `{files: [books/*.txt]}`")
    if not _are_words(tasks) and not (texts and tasks is None):
        yield Problem("it lists no tasks", f"{path}: tasks", "write for example `tasks: [piqa, arc_easy]`")
    yield from _category_problems(document, path)
    places = document.get("include_path", [])
    for place in [places] if isinstance(places, str) else places if isinstance(places, list) else []:
        if not (path.parent / str(place)).is_dir():
            yield Problem(f"there is no directory {place}", f"{path}: include_path", "it is relative to this file")


def _are_words(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, str) for item in value)


def _category_problems(document: dict[str, Any], path: Path) -> Iterable[Problem]:
    categories, means, clusters = (document.get(key, {}) for key in ("categories", "means", "clusters"))
    if not all(isinstance(part, dict) for part in (categories, means, clusters)):
        return
    for name, tasks in categories.items():
        if not isinstance(tasks, dict) or not all(isinstance(metric, str) for metric in tasks.values()):
            yield Problem("a category maps tasks to metrics", f"{path}: categories.{name}", "write `{piqa: acc}`")
        elif unknown := [task for task in tasks if task not in (document.get("tasks") or [])]:
            yield Problem(f"no such task: {unknown[0]}", f"{path}: categories.{name}", "add it under `tasks`")
    gold = document.get("gold_answers", {})
    examples = {"clusters": "{boolq: passage}", "gold_answers": '{nq_open: "{{answer[0]}}"}'}
    for key, entries in (("clusters", clusters), ("gold_answers", gold if isinstance(gold, dict) else {})):
        for task, value in entries.items():
            if task not in (document.get("tasks") or []) or not isinstance(value, str):
                fix = f"write for example `{examples[key]}`, with a task of `tasks`"
                what = "it names no task and field" if key == "clusters" else "it names no task and template"
                yield Problem(what, f"{path}: {key}.{task}", fix)
    for name, parts in means.items():
        if not _are_words(parts) or any(part not in categories for part in parts):
            yield Problem(
                "a mean lists categories", f"{path}: means.{name}", f"the categories are {', '.join(categories)}"
            )

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
    few_shot: {arc_challenge: 25, mmlu_*: 5}         # solved examples in the prompt; absent: the task's own number
    samples: {humaneval_plus: {n: 20, k: [1, 10]}}   # pass@k from n sampled answers instead of one greedy answer
    suites: [to-code, mine.yaml]   # everything in these suites too; categories and means may name theirs
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from glob import glob
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from megacode.base.errors import ConfigError
from megacode.base.files import tree_digest
from megacode.config.evaluate import MADE_SUITES
from megacode.config.yaml_reader import parse_yaml
from megacode.eval.made_items import find_items, read_index
from megacode.eval.suite_rules import SAMPLING, joined_suites, suite_problems

SHIPPED = Path(__file__).parent / "tasks"
METRIC = "bits_per_byte"


@dataclass(frozen=True)
class AnswerSampling:
    """How answers to a question are sampled, for pass@k.

    Attributes:
        n: answers to each question.
        k: numbers of tries of which one must pass, each at most n.
        temperature, top_p: of the sampling.
    """

    n: int
    k: tuple[int, ...]
    temperature: float
    top_p: float


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
        few_shot: per task, or per pattern of tasks' names, the solved examples in the prompt.
        samples: per task how many answers are sampled, and how.
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
    few_shot: dict[str, int] = field(default_factory=dict)
    samples: dict[str, AnswerSampling] = field(default_factory=dict)

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
            # `find_spec` does not import lm-eval, which takes seconds.
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
        # `heldout` has no task files: each of its files is a text whose bits per byte are measured.
        return Suite(name, (), (), items=items, texts=texts, categories={METRIC: scored})
    bits = {task: METRIC for task in tasks if "_bits_" in task}
    endings = {task: "acc" for task in tasks if "_endings_" in task}
    chance = {task: facts["chance"] for task, facts in tasks.items() if "chance" in facts}
    clusters = dict.fromkeys(tasks, "document")
    means = {name: parts for name, parts in ((METRIC, bits), ("endings", endings)) if parts}
    own: dict[str, Any] = {"chance": chance, "clusters": clusters, "categories": means}
    return Suite(name, tuple(tasks), (SHIPPED / name,), items=items, **own)


def _read_suite(path: Path, joining: tuple[Path, ...] = ()) -> Suite:
    """Return the suite of a file; `joining` are the files that join it, outermost first."""
    if path.resolve() in joining:
        fix = "remove it from one of the files: " + ", ".join(str(file) for file in joining)
        raise ConfigError("this suite joins itself", f"{path}: suites", fix)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError("there is no such suite file", str(path), "give a YAML file, or `demo`") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"it cannot be read: {error}", str(path), "give a suite's YAML file in UTF-8") from None
    document = parse_yaml(text, str(path))
    if not isinstance(document, dict):
        raise ConfigError("a suite is a mapping", str(path), "write for example `tasks: [piqa]`")
    parts = [_joined(name, path, (*joining, path.resolve())) for name in joined_suites(document, path)]
    tasks, categories = ([one for part in parts for one in getattr(part, key)] for key in ("tasks", "categories"))
    # All mistakes at once: fixing a YAML file one error at a time is tedious.
    if problems := list(suite_problems(document, path, tasks, categories)):
        raise ConfigError(problems=problems)
    own = _suite_of(document, path)
    return join(own, parts, path) if parts else own


def _joined(name: str, path: Path, joining: tuple[Path, ...]) -> Suite:
    """Return a suite that a file joins: a shipped one, or a file relative to it."""
    if name in MADE_SUITES:
        fix = "score it beside this suite, with its own --suite"
        raise ConfigError(f"the items of {name} are made for each run, so no file can join it", f"{path}: suites", fix)
    if Path(name).suffix in (".yaml", ".yml"):
        return _read_suite(path.parent / name, joining)
    return load_suite(name, None)


def _suite_of(document: dict[str, Any], path: Path) -> Suite:
    include = document.get("include_path", [])
    places = tuple((path.parent / place).resolve() for place in ([include] if isinstance(include, str) else include))
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
        few_shot=document.get("few_shot", {}),
        samples={task: _sampling(wanted) for task, wanted in document.get("samples", {}).items()},
    )


def _sampling(wanted: Mapping[str, Any]) -> AnswerSampling:
    whole = {**SAMPLING, **wanted}
    return AnswerSampling(whole["n"], tuple(whole["k"]), float(whole["temperature"]), float(whole["top_p"]))


def join(own: Suite, parts: Sequence[Suite], path: Path) -> Suite:
    """Return a suite with everything in others; its own name and switches stay.

    Args:
        own: the suite of a file.
        parts: the suites that it joins.
        path: the file, for messages.

    Raises:
        ConfigError: two of them define the same task, category, mean or text, or only some score true answers.
    """
    every, where = [*parts, own], f"{path}: suites"
    if len({part.gold_answers is None for part in every if part.tasks}) > 1:
        fix = "join suites of true answers only, or none (a file of true answers has `gold_answers: {}` at least)"
        raise ConfigError("some of these suites score true answers, others do not", where, fix)
    tables = ("categories", "means", "clusters", "few_shot", "samples", "texts")
    for key in ("tasks", *tables):
        names = [name for part in every for name in getattr(part, key)]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ConfigError(f"{key}: {twice[0]} is in two of these suites", where, "keep one of them")
    joined: dict[str, Any] = {
        key: {name: one for part in every for name, one in getattr(part, key).items()} for key in tables
    }
    gold = [part.gold_answers for part in every if part.gold_answers is not None]
    return replace(
        own,
        tasks=tuple(task for part in every for task in part.tasks),
        include_path=tuple(dict.fromkeys(place for part in every for place in part.include_path)),
        lm_eval=tuple(dict.fromkeys(place for part in every for place in part.lm_eval)),
        defaults=any(part.defaults for part in every),
        # Offline switches are environment variables of the whole process, so one part that needs the network decides.
        offline=all(part.offline for part in every),
        # Not `any`: joining another suite must not allow what its file did not ask for.
        unsafe_code=own.unsafe_code,
        gold_answers={task: text for part in gold for task, text in part.items()} if gold else None,
        **joined,
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

"""Read a run directory's files: they are the interface, and any of them may be missing so far.

Nothing here needs torch: a page can be written on a login node while the run continues elsewhere.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from megacode.base.errors import CheckpointError, ConfigError
from megacode.base.files import Json, RunDir, read_jsonl
from megacode.metrics.reader import read_events, read_metrics
from megacode.report.svg import Span

CORPUS = Path("corpus") / "corpus"  # beside a demo's run: its corpus, with manifest and data card


@dataclass(frozen=True)
class RunRecord:
    """A run's files, parsed.

    Attributes:
        path: the run directory.
        config: `run.yaml`.
        plan: `plan.json`.
        train: lines of kind `train`, one per iteration, in order; for an iteration repeated by a resume the last one.
        validation: lines of kind `validation`, likewise.
        probes: lines of kind `fp8_probe`, likewise.
        alignments: lines of kind `alignment`, likewise.
        events: lines of `events.jsonl` and `hangs.jsonl`, by time.
        scores: the files of `eval/`, each with `iteration` and `suite` filled in, in order of iteration.
        exports: `hf/*/megacode.json`, each with `iteration` and `directory` filled in, in order of iteration; for
            exports removed after scoring, the same from their score files, without a `directory`.
        samples: the files of `samples/`: text samples of exported models, in order of iteration.
        judgements: the files of `eval/judge/`, each with `file` filled in.
        corpus: for the demo, the manifest of the corpus beside the run.
    """

    path: Path
    config: Json = field(default_factory=dict)
    plan: Json = field(default_factory=dict)
    train: Sequence[Json] = ()
    validation: Sequence[Json] = ()
    probes: Sequence[Json] = ()
    alignments: Sequence[Json] = ()
    events: Sequence[Json] = ()
    scores: Sequence[Json] = ()
    exports: Sequence[Json] = ()
    samples: Sequence[Json] = ()
    judgements: Sequence[Json] = ()
    corpus: Json = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The run's name; the directory's name without a config."""
        return str(self.config.get("name") or self.path.resolve().name)

    @property
    def phases(self) -> list[Json]:
        """The planned phases."""
        return list(self.plan.get("phases") or [])

    @cached_property
    def sources(self) -> list[str]:
        """Names of the sources in the config's order, which is also their order in every chart."""
        names = dict.fromkeys(str(name) for name in self.config.get("sources") or {})
        names.update(dict.fromkeys(name for phase in self.phases for name in phase.get("sources") or {}))
        # A branch or an edited config may no longer list a source that was read.
        names.update(dict.fromkeys(name for line in self.train for name in line.get("samples_by_source") or {}))
        return list(names)

    @property
    def seq_length(self) -> int:
        """Tokens in a sample; 1 if unknown (the clock then counts samples)."""
        # The config first: without a plan there may still be metrics to draw.
        settings = self.config.get("train") or {}
        return int(settings.get("seq_length") or self.plan.get("seq_length") or 1)

    @property
    def last(self) -> Json:
        """The last iteration's line; empty before the first."""
        return self.train[-1] if self.train else {}

    @property
    def before(self) -> int:
        """Tokens read before the first measured iteration: by a branch's trunk, for example."""
        first = self.train[0] if self.train else {}
        own = sum(int(count) for count in (first.get("samples_by_source") or {}).values())
        return max(0, self.tokens(first) - int(first.get("batch_size") or own) * self.seq_length)

    @cached_property
    def tokens_read(self) -> dict[str, int]:
        """Tokens of each source that were read, those of a branch's trunk among them."""
        # The running counts include a trunk's tokens, which no line of this run has.
        told = self.last.get("tokens_by_source") or {}
        seen = {name: told[name].get("seen") for name in self.sources if isinstance(told.get(name), dict)}
        if any(isinstance(count, (int, float)) for count in seen.values()):
            return {name: int(seen.get(name) or 0) for name in self.sources}
        # Lines of another program may lack the running counts.
        counts = dict.fromkeys(self.sources, 0)
        for line in self.train:
            for name, count in (line.get("samples_by_source") or {}).items():
                counts[name] += int(count) * self.seq_length
        return counts

    def tokens(self, line: Json) -> int:
        """Return the clock of a line in tokens."""
        return int(line.get("consumed_tokens") or int(line.get("consumed_samples") or 0) * self.seq_length)

    @property
    def flops_per_token(self) -> float:
        """Training FLOPs per token, from the plan; 0 if unknown."""
        flops = self.plan.get("flops")
        return float(flops) / self.planned_tokens if isinstance(flops, (int, float)) and self.planned_tokens else 0.0

    @property
    def planned_tokens(self) -> int:
        """Tokens of the whole plan; without a plan, tokens read so far."""
        samples = int(self.plan.get("total_samples") or 0)
        return samples * self.seq_length if samples else self.tokens(self.last)

    @cached_property
    def spans(self) -> list[Span]:
        """The phases on the clock, in tokens; without a plan, from the measurements."""
        if self.phases:
            size = self.seq_length
            first = [(p, int(p.get("first_sample") or 0), int(p.get("samples") or 0)) for p in self.phases]
            return [Span(str(p.get("name")), f * size, (f + n) * size) for p, f, n in first if n]
        # No plan, so only phases that have begun are known.
        names = list(dict.fromkeys(str(line.get("phase")) for line in self.train))
        # The last line of each phase wins, so this is where the phase ended so far.
        ends = {str(line.get("phase")): self.tokens(line) for line in self.train}
        stops = [ends[name] for name in names]
        return [Span(n, a, b) for n, a, b in zip(names, [0, *stops], stops, strict=False)]


def read_run(path: Path) -> RunRecord:
    """Read a run directory.

    Raises:
        ConfigError: if it does not exist or is not a run directory.
        CheckpointError: if one of its files cannot be parsed.
        DataError: if a line of its metrics or events is invalid.
    """
    run = RunDir(path)
    if not path.is_dir():
        raise ConfigError("there is no such directory", str(path), "give a run directory, such as runs/demo")
    # Any one of them is enough: each chart says for itself what it misses.
    if not any(Path(item).exists() for item in (run.config, run.plan, run.metrics)):
        raise ConfigError(
            "this is not a run directory: it has no run.yaml, plan.json or metrics.jsonl", str(path),
            "give a directory that `megacode train` wrote (`run_dir` in the config, runs/<name> by default)",
        )  # fmt: skip
    metrics = list(read_metrics(run.metrics, "train", "validation", "fp8_probe", "alignment"))
    scores = _scores(Path(run.eval))
    return RunRecord(
        path=path,
        config=_mapping(Path(run.config), lambda file: yaml.safe_load(file.read_text(encoding="utf-8"))),
        plan=_mapping(Path(run.plan), _read_json),
        train=_lines(metrics, "train"),
        validation=_lines(metrics, "validation"),
        probes=_lines(metrics, "fp8_probe"),
        alignments=_lines(metrics, "alignment"),
        events=read_events(run),
        scores=scores,
        exports=_exports(Path(run.hf), _parsed(Path(run.exports), read_jsonl) or [], scores),
        samples=_documents(Path(run.samples), "iter_*.json"),
        judgements=_documents(Path(run.eval) / "judge", "*.json"),
        corpus=_mapping(path.resolve().parent / CORPUS / "manifest.json", _read_json),
    )


def _read_json(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


def _parsed(file: Path, parse: Callable[[Path], Any]) -> Any:
    """Return a file's contents, None if it does not exist."""
    try:
        return parse(file) if file.exists() else None
    # A missing file is normal in a young run; a broken one must not pass for a missing one.
    except (ValueError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"it cannot be read: {reason}", str(file), "restore the file, or move it away") from None


def _mapping(file: Path, parse: Callable[[Path], Any]) -> Json:
    document = _parsed(file, parse)
    if document is not None and not isinstance(document, dict):
        raise CheckpointError("it is not a mapping of names to values", str(file), "restore the file, or move it away")
    return document or {}


def _lines(metrics: Sequence[Json], kind: str) -> list[Json]:
    """Return the lines of one kind by iteration."""
    # By iteration, since a resume may have written lines of an earlier one later.
    return sorted((line for line in metrics if line["kind"] == kind), key=lambda line: int(line["iteration"]))


def iteration_of(name: str) -> int:
    """Return the iteration in `iter_0001000` or `suite@iter_0001000.json`; -1 if there is none."""
    # The last one: a suite's own name may hold `iter_`.
    digits = name.rpartition("iter_")[2].removesuffix(".json")
    return int(digits) if digits.isdigit() else -1


def _scores(directory: Path) -> list[Json]:
    documents = []
    for file in sorted(directory.glob("*.json")):
        # Scores made elsewhere with --out may have any name, and no iteration.
        suite = file.stem.partition("@")[0]
        documents.append({"suite": suite, "iteration": iteration_of(file.name), **_mapping(file, _read_json)})
    return sorted(documents, key=lambda score: (int(score["iteration"]), str(score["suite"])))


def _documents(directory: Path, pattern: str) -> list[Json]:
    """Return the files of a directory that match, by name, each with its name as `file`."""
    return [{**_mapping(file, _read_json), "file": file.stem} for file in sorted(directory.glob(pattern))]


def _exports(directory: Path, elsewhere: Sequence[Json], scores: Sequence[Json]) -> list[Json]:
    """Return the run's exports, one per iteration: those in `hf/`, those published elsewhere, those that were scored.

    An export that was made only for scoring is described by its score file.
    """
    exports: dict[int, Json] = {}
    for item in sorted(path for path in directory.glob("*") if path.is_dir() and not path.name.startswith(".")):
        facts = _mapping(item / "megacode.json", _read_json)
        exports[iteration_of(item.name)] = {**facts, "iteration": iteration_of(item.name), "directory": item.name}
    for line in reversed(elsewhere):  # the newest counts
        if isinstance(line.get("iteration"), int):
            exports.setdefault(line["iteration"], line)
    for document in scores:
        model, iteration = document.get("model"), document["iteration"]
        facts_of_model = model.get("megacode") if isinstance(model, dict) else None
        # A model from elsewhere has no card.
        if isinstance(facts_of_model, dict):
            exports.setdefault(iteration, {**facts_of_model, "iteration": iteration, "directory": None})
    return [exports[iteration] for iteration in sorted(exports)]

"""Scores exported models with lm-eval: offline, quietly, and with provenance.

What is scored is the exported Hugging Face model, through lm-eval's own `HFLM`: people run what was measured, and the
`lm_eval` command gives the same numbers for the same tasks. Importing lm-eval costs about 4 s of CPU time and loading
a small model a tenth of one, so several models are best scored in one process: `evaluate_many`.
"""

from __future__ import annotations

import json
import random
import time
import traceback
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import orjson

from megacode.base.errors import CheckpointError, ConfigError, DataError
from megacode.base.files import RunDir, atomic_path, write_json
from megacode.eval.scores import item_lines, model_facts, provenance, questions_digest, render_scores, task_scores
from megacode.eval.suites import Suite, load_suite, run_of
from megacode.eval.surroundings import surroundings
from megacode.metrics.sinks import append_scores

__all__ = ["default_out", "evaluate", "evaluate_many", "render_scores"]

BATCH_SIZE = 16
_SEED = 1234  # lm-eval's own


def evaluate(
    hf_dir: Path,
    suite: str | Path = "demo",
    out: Path | None = None,
    *,
    tasks_dir: Path | None = None,
    limit: int | None = None,
    batch_size: int = BATCH_SIZE,
    device: str | None = None,
    verbose: bool = False,
) -> dict[str, Any]:
    """Score an exported model and write the scores, with the results of every item in a `.items.jsonl` beside them.

    Args:
        hf_dir: the model: config.json, safetensors, tokenizer.
        suite: `demo`, or a suite's YAML file.
        out: the score file; absent: `default_out`.
        tasks_dir: directory of the demo suite's items; absent: those of the model's run.
        limit: items per task, at most.
        batch_size: sequences per forward pass.
        device: `cpu`, `cuda`, `cuda:1`; absent: CUDA where there is any.
        verbose: let lm-eval log and draw its bars.

    Returns:
        The score document.

    Raises:
        ConfigError: for an unknown suite or task, items that are not found, or without lm-eval.
        CheckpointError: if `hf_dir` is no model.
        DataError: if a task's data cannot be loaded.
    """
    return evaluate_many(
        [hf_dir], suite, [out],
        tasks_dir=tasks_dir, limit=limit, batch_size=batch_size, device=device, verbose=verbose,
    )[0]  # fmt: skip


def evaluate_many(
    hf_dirs: Sequence[Path],
    suite: str | Path = "demo",
    outs: Sequence[Path | None] | None = None,
    *,
    tasks_dir: Path | None = None,
    limit: int | None = None,
    batch_size: int = BATCH_SIZE,
    device: str | None = None,
    verbose: bool = False,
) -> list[dict[str, Any]]:
    """Score several models one after another in this process; see `evaluate`."""
    for hf_dir in hf_dirs:
        check_model(hf_dir)
    suites = [load_suite(suite, hf_dir, tasks_dir) for hf_dir in hf_dirs]
    outs = outs or [None] * len(suites)
    targets = [out or default_out(path, one.name) for path, one, out in zip(hf_dirs, suites, outs, strict=True)]
    documents = []
    with surroundings(suites[0].offline, suites[0].items is not None, verbose):
        _require_lm_eval()
        for hf_dir, one, target in zip(hf_dirs, suites, targets, strict=True):
            document, lines = _score(hf_dir, one, limit, batch_size, device or _default_device())
            _write(document, lines, target)
            if limit is None:
                _tell_the_run(hf_dir, target, document)
            documents.append(document)
    return documents


def _tell_the_run(hf_dir: Path, target: Path, document: Mapping[str, Any]) -> None:
    """Add the scores to the metrics of the model's run, if they lie among that run's scores."""
    run, facts = run_of(hf_dir), document["model"].get("megacode")
    if run is not None and facts and target.resolve().parent == RunDir(run).eval.resolve():
        append_scores(RunDir(run), document["suite"], facts, document["scores"])


def check_model(hf_dir: Path) -> None:
    """Check that a directory holds a Hugging Face model.

    Raises:
        CheckpointError: saying what is missing.
    """
    fix = "name a directory that `megacode convert to-hf` wrote"
    if not hf_dir.is_dir():
        raise CheckpointError("there is no such directory", str(hf_dir), fix)
    try:
        config = json.loads((hf_dir / "config.json").read_text(encoding="utf-8"))
        known = isinstance(config, dict) and "model_type" in config
    except (OSError, ValueError):
        known = False
    if not known:
        raise CheckpointError("config.json is missing or damaged, so this is no Hugging Face model", str(hf_dir), fix)
    if not any(hf_dir.glob("*.safetensors")):
        raise CheckpointError("it holds no weights (*.safetensors)", str(hf_dir), fix)
    if not any(hf_dir.glob("tokenizer*")):
        raise CheckpointError("it holds no tokenizer", str(hf_dir), "export the model together with its tokenizer")


def default_out(hf_dir: Path, suite: str) -> Path:
    """Return where scores go: `RUN/eval/SUITE@iter_N.json` for a model of a run, else `MODEL.SUITE.json` beside it."""
    run, place = run_of(hf_dir), hf_dir.resolve()
    if run is not None:
        return Path(RunDir(run).eval) / f"{suite}@{place.name}.json"
    return place.with_name(f"{place.name}.{suite}.json")


def _write(document: dict[str, Any], lines: Sequence[Mapping[str, Any]], out: Path) -> None:
    items = out.with_suffix(".items.jsonl")
    with atomic_path(items) as temporary, temporary.open("wb") as file:
        file.writelines(orjson.dumps(line, option=orjson.OPT_SERIALIZE_NUMPY) + b"\n" for line in lines)
    document["items_file"] = items.name
    write_json(out, document)


def _score(
    hf_dir: Path, suite: Suite, limit: int | None, batch_size: int, device: str
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Run a suite on one model; return the score document and the items' lines."""
    start = time.perf_counter()
    tasks, model = _load_tasks(suite), _load_model(hf_dir, batch_size, device)
    scores, facts, lines = {}, {}, []
    for name, task in tasks.items():
        task_start = time.perf_counter()
        results = _run_task(model, name, task, limit, suite.unsafe_code)
        samples = results["samples"][name]
        scores[name] = task_scores(results["results"][name], samples)
        answered = item_lines(name, samples)
        facts[name] = {
            "items": len({line["item"] for line in answered}),
            "seconds": round(time.perf_counter() - task_start, 3),
            "questions_sha256": questions_digest(answered),
            "higher_is_better": results["higher_is_better"].get(name, {}),
            "version": results["versions"].get(name),
        }
        lines += answered
    parameters = sum(parameter.numel() for parameter in model.model.parameters())
    document = {
        "suite": suite.name,
        "model": {**model_facts(hf_dir), "parameters": parameters},
        "scores": scores,
        "chance": {name: chance for name, chance in (suite.chance or {}).items() if name in scores},
        "tasks": facts,
        "suite_sha256": suite.files_digest(),
        "settings": {"limit": limit, "batch_size": batch_size, "device": device, "dtype": str(model.model.dtype)},
        "seconds": round(time.perf_counter() - start, 3),
        **provenance(),
    }
    return document, lines


def _load_tasks(suite: Suite) -> dict[str, Any]:
    """Return lm-eval's task objects of a suite by name, groups and tags unfolded."""
    from lm_eval.tasks import TaskManager

    metadata: Any = {"items": str(suite.items)} if suite.items else None
    places: Any = [str(place) for place in suite.include_path]
    manager = TaskManager(include_path=places, include_defaults=suite.defaults, metadata=metadata)
    for task in suite.tasks:
        if task not in manager.all_tasks and not Path(task).is_file():
            close = get_close_matches(task, manager.all_tasks, n=1)
            fix = f"did you mean {close[0]!r}?" if close else "name a task of lm-eval, or set include_path"
            raise ConfigError(f"there is no task {task!r}", f"suite {suite.name}", fix)
    try:
        tasks: dict[str, Any] = manager.load(list(suite.tasks))["tasks"]
    except OSError as error:  # the Hub's and datasets' errors, offline mode among them, are all of this kind
        what = f"a task's data cannot be loaded: {error}"
        fix = "fetch it once with `offline: false` in the suite" if suite.offline else "see whether the network works"
        raise DataError(what, f"suite {suite.name}", fix) from error
    for name, task in tasks.items():
        if getattr(task, "UNSAFE_CODE", False) and not suite.unsafe_code:
            fix = "set `unsafe_code: true` in the suite if this machine may run it"
            raise ConfigError(f"the task {name} runs code that the model writes", f"suite {suite.name}", fix)
        if task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=_SEED)
    return tasks


def _load_model(hf_dir: Path, batch_size: int, device: str) -> Any:
    """Return lm-eval's wrapper of a model: fp32 on CPU, the type it was saved in on a GPU."""
    from lm_eval.models.huggingface import HFLM
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer

    dtype = "float32" if device == "cpu" else "auto"
    try:
        model = AutoModelForCausalLM.from_pretrained(hf_dir, dtype=dtype, local_files_only=True)
        tokenizer = AutoTokenizer.from_pretrained(hf_dir, local_files_only=True)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:300]
        fix = "export it anew with `megacode convert to-hf`"
        raise CheckpointError(f"transformers cannot load it: {reason}", str(hf_dir), fix) from error
    return HFLM(pretrained=model.to(device).eval(), tokenizer=tokenizer, batch_size=batch_size, device=device)


def _run_task(model: Any, name: str, task: Any, limit: int | None, unsafe_code: bool) -> dict[str, Any]:
    """Run one task as lm-eval's `simple_evaluate` does, without its 2 s of gathering facts about the machine."""
    import numpy as np
    import torch
    from lm_eval.evaluator import evaluate as run

    random.seed(0)
    np.random.seed(_SEED)
    torch.manual_seed(_SEED)
    try:
        results = run(
            model, {"tasks": {name: task}}, limit=limit, bootstrap_iters=0, confirm_run_unsafe_code=unsafe_code
        )  # fmt: skip
    except AssertionError as error:
        if traceback.extract_tb(error.__traceback__)[-1].name != "_loglikelihood_tokens":
            raise
        what = f"an answer is longer than the model's context of {model.max_length} tokens"
        fix = "score a model with a longer train.seq_length, or leave the task out in a suite of your own"
        raise DataError(what, f"task {name}", fix) from error
    assert results is not None, "one process runs the tasks"
    return dict(results)


def _default_device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _require_lm_eval() -> None:
    try:
        import lm_eval.evaluator  # noqa: F401
    except ImportError as error:
        fix = "pip install 'megacode[eval]'"
        raise ConfigError(f"lm-eval is not installed here ({error})", "megacode evaluate", fix) from None

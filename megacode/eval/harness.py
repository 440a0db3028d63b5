"""Scores exported models with lm-eval: offline, quietly, and with provenance.

What is scored is the exported Hugging Face model, through lm-eval's own `HFLM`: people run what was measured, and the
`lm_eval` command gives the same numbers for the same tasks. Importing lm-eval costs about 4 s of CPU time and loading
a small model a tenth of one, so several models are best scored in one process: `evaluate_many`.

Every rank runs its share of a task's items by itself; rank 0 joins the items' results and takes the means over all of
them, so the scores do not depend on how many ranks there were. A task that is done is kept until the score file is.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megacode.base.claims import claimed
from megacode.base.errors import ConfigError
from megacode.base.files import RunDir, atomic_path, to_json, write_json
from megacode.base.imports import uncollected
from megacode.base.user_paths import refuse_existing, refuse_unwritable
from megacode.config.evaluate import Backend
from megacode.data.contamination import contamination
from megacode.data.items import task_items
from megacode.eval.categories import category_means
from megacode.eval.decontaminated import decontamination
from megacode.eval.finished_tasks import FinishedTask, Partial
from megacode.eval.generate import TextWriter
from megacode.eval.made_items import run_of
from megacode.eval.offline import surroundings
from megacode.eval.score_log import tell_run
from megacode.eval.scored_models import check_model, default_out, is_scored, refuse_other_backend
from megacode.eval.scores import model_facts, prompts_digest, provenance, questions_digest, render_scores, task_scores
from megacode.eval.scoring_ranks import ScoringRanks, scoring_ranks
from megacode.eval.suites import Suite, load_suite
from megacode.eval.task_loading import load_tasks, network_problem, prefetch
from megacode.eval.task_run import aggregate, load_model, run_items
from megacode.eval.truncation import cut_facts, describe_cut
from megacode.eval.vllm_model import check_vllm, load_vllm, saved_size
from megacode.eval.writing_samples import write_samples
from megacode.metrics.scores import read_score_file

__all__ = ["ScoringOptions", "evaluate", "evaluate_many", "prefetch_suite", "render_scores"]

BATCH_SIZE = 16
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ScoringOptions:
    """How a suite is run.

    Attributes:
        tasks_dir: directory of the demo suite's items; None: those of the model's run.
        limit: items per task, at most.
        batch_size: sequences per forward pass.
        device: `cpu`, `cuda`, `cuda:1`; None: CUDA where there is any, one GPU a rank.
        backend: what runs the model: transformers (`hf`), or vLLM, which has one process and chooses its device; None:
            nothing was asked for, and transformers does.
        verbose: let lm-eval log and draw its bars.
        run_code: run the code that the model writes; if not, tasks that need it are excluded.
        without: tasks to leave out.
        texts: text files for bits per byte, in addition to the suite's tasks.
        missing_only: skip models whose score file is complete.
        overwrite: replace an existing score file; if not, it is refused before anything is scored.
    """

    tasks_dir: Path | None = None
    limit: int | None = None
    batch_size: int = BATCH_SIZE
    device: str | None = None
    backend: Backend | None = None
    verbose: bool = False
    run_code: bool = False
    without: tuple[str, ...] = ()
    texts: tuple[Path, ...] = ()
    missing_only: bool = False
    overwrite: bool = True


def evaluate(
    hf_dir: Path, suite: str | Path | None = "demo", out: Path | None = None, choices: ScoringOptions | None = None
) -> dict[str, Any]:
    """Score an exported model and write the scores, with the results of every item in a `.items.jsonl` beside them.

    Args:
        hf_dir: the model: config.json, safetensors, tokenizer.
        suite: a shipped suite's name, or a suite's YAML file; None: the texts of `choices` only.
        out: the score file; absent: `default_out`.
        choices: how the suite is run.

    Returns:
        The score document, on every rank; with `missing_only` the one that is there, if it is complete.

    Raises:
        ConfigError: for an unknown suite or task, items that are not found, or without lm-eval; or if another process
            writes the score file.
        CheckpointError: if `hf_dir` is no model.
        DataError: if a task's data cannot be loaded.
    """
    choices = choices or ScoringOptions()
    documents = evaluate_many([hf_dir], suite, [out], choices)
    return (
        documents[0]
        if documents
        else read_score_file(out or default_out(hf_dir, suite_of(suite, hf_dir, choices).name))
    )


def evaluate_many(
    hf_dirs: Sequence[Path],
    suite: str | Path | None = "demo",
    outs: Sequence[Path | None] | None = None,
    choices: ScoringOptions | None = None,
) -> list[dict[str, Any]]:
    """Score several models one after another in this process; see `evaluate`.

    Returns:
        Their score documents; with `missing_only` only those that were made now.
    """
    choices = choices or ScoringOptions()
    # Whatever can be checked without lm-eval comes first: importing it takes seconds.
    check_device(choices.device)
    if choices.backend == "vllm":
        check_vllm(choices.device)
    for hf_dir in hf_dirs:
        check_model(hf_dir)
    outs = outs or [None] * len(hf_dirs)
    with scoring_ranks() as ranks:
        if choices.backend == "vllm" and ranks.world_size > 1:
            message = f"vLLM scores in one process, not on {ranks.world_size} ranks"
            raise ConfigError(message, "--backend vllm", "remove --nproc")
        # The first rank alone writes the demo's items; the others wait here, then read them.
        ranks.broadcast([suite_of(suite, hf_dir, choices) for hf_dir in hf_dirs] if ranks.first else None)
        suites = [suite_of(suite, hf_dir, choices) for hf_dir in hf_dirs]  # the first rank has made the items by now
        targets = [out or default_out(path, one.name) for path, one, out in zip(hf_dirs, suites, outs, strict=True)]
        if not (choices.overwrite or choices.missing_only):
            refuse_existing(targets, False, "--out")
        if not choices.overwrite:
            for target in targets:
                refuse_other_backend(target, choices.backend or "hf")
        if ranks.first:
            # Found out now and not after hours of scoring.
            for target in dict.fromkeys(path.parent for path in targets):
                refuse_unwritable(target / "scores.json", "--out")
        with surroundings(suites[0].offline, suites[0].items is not None, choices.verbose):
            _require_lm_eval()
            return _score_all(hf_dirs, suites, targets, choices, ranks)


def prefetch_suite(suite: str | Path, verbose: bool = False) -> list[str]:
    """Download the data of a suite's tasks into the cache, so that machines without network can run it.

    Returns:
        The tasks' names.

    Raises:
        ConfigError: for an unknown suite or task, or without lm-eval.
        DataError: naming every task whose data could not be downloaded.
    """
    wanted = load_suite(suite, None)
    no_network = network_problem()
    with surroundings(bool(no_network), False, verbose):
        _require_lm_eval()
        return prefetch(wanted, no_network)


def suite_of(suite: str | Path | None, hf_dir: Path, choices: ScoringOptions) -> Suite:
    """Return the suite to run on a model or a checkpoint, with the texts that were chosen."""
    loaded = Suite("texts", (), ()) if suite is None else load_suite(suite, hf_dir, choices.tasks_dir)
    return loaded.with_texts(choices.texts)


def _score_all(
    hf_dirs: Sequence[Path],
    suites: Sequence[Suite],
    targets: Sequence[Path],
    choices: ScoringOptions,
    ranks: ScoringRanks,
) -> list[dict[str, Any]]:
    documents, loaded, device = [], None, choices.device or _default_device(ranks)
    tasks: dict[str, Any] = {}
    left_out: dict[str, str] = {}
    for hf_dir, suite, target in zip(hf_dirs, suites, targets, strict=True):
        # Models of one suite share its tasks: loading them can take longer than scoring a small model.
        if suite != loaded:
            tasks, left_out = load_tasks(suite, choices.run_code or suite.unsafe_code, choices.without)
            loaded = suite
        # Two commands that write one score file would mix their results with each other's.
        with claimed(target, "--out") if ranks.first else nullcontext():
            # One rank decides for all: ranks that saw different files would wait for each other forever.
            if choices.missing_only and ranks.broadcast(ranks.first and is_scored(hf_dir, suite, target, left_out)):
                continue
            document, lines = _score(hf_dir, suite, tasks, choices, (device, target, ranks))
            document["left_out"] = left_out
            if ranks.first:
                items = [item for name, task in tasks.items() for item in task_items(name, task, choices.limit)]
                document["contamination"] = contamination(run_of(hf_dir), document["model"]["megacode"], items)
                document["decontaminated"] = decontamination(run_of(hf_dir), tasks)
                _write(document, lines, target)
                if (run := run_of(hf_dir)) is not None:
                    tell_run(RunDir(run))
        documents.append(ranks.broadcast(document))
    return documents


def _write(document: dict[str, Any], lines: Sequence[Mapping[str, Any]], out: Path) -> None:
    items = out.with_suffix(".items.jsonl")
    with atomic_path(items) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.writelines(to_json(line, other=str) + "\n" for line in lines)  # items may hold values of any type
    document["items_file"] = items.name
    write_json(out, document)
    # Last: until the score file is complete, the kept tasks are the only copy.
    Partial(out, {}).done()


def _score(
    hf_dir: Path, suite: Suite, tasks: Mapping[str, Any], choices: ScoringOptions, where: tuple[str, Path, ScoringRanks]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Run tasks on one model; return the score document and the items' lines, on rank 0 with all ranks' results."""
    start, (device, target, ranks) = time.perf_counter(), where
    model, parameters, dtype = _load(hf_dir, choices, device)
    facts = ranks.broadcast(model_facts(hf_dir) if ranks.first else None)
    # `cuda`, not `cuda:1`: a task that was kept on another GPU of the node is valid here. Batch size and number of
    # ranks are not in the identity either, since they change results by rounding at most.
    settings = {"limit": choices.limit, "device": device.partition(":")[0], "dtype": dtype}
    settings["backend"] = choices.backend or "hf"
    origin = provenance()
    # Results that were kept by an earlier, interrupted call count only under the same identity.
    identity = {"model": facts, "suite": suite.files_digest(), "settings": settings, "versions": origin["versions"]}
    identity["clusters"] = suite.clusters
    partial, parts = Partial(target, identity), {}
    for name, task in tasks.items():
        part = ranks.broadcast(partial.read(name) if ranks.first else None)
        if part is None:
            part = _run_task(model, (name, task, suite.clusters.get(name)), choices, ranks)
            if ranks.first:
                partial.keep(name, part)
        parts[name] = part
    # The report's sample texts are written with transformers' own model, which vLLM does not have.
    if ranks.first and choices.backend != "vllm":
        write_samples(TextWriter(model.model, model.tokenizer, hf_dir), run_of(hf_dir), facts)
    scores = {name: part["scores"] for name, part in parts.items()}
    document = {
        "suite": suite.name,
        "model": {**facts, "parameters": parameters},
        "scores": scores,
        "means": category_means(scores, suite.categories, suite.means),
        "mean_parts": {**suite.categories, **suite.means},
        "chance": {name: chance for name, chance in (suite.chance or {}).items() if name in scores},
        "tasks": {name: part["facts"] for name, part in parts.items()},
        "suite_sha256": suite.files_digest(),
        "settings": {**settings, "batch_size": choices.batch_size, "ranks": ranks.world_size},
        "seconds": round(time.perf_counter() - start, 3),
        **origin,
    }
    return document, [line for part in parts.values() for line in part["lines"]]


def _load(hf_dir: Path, choices: ScoringOptions, device: str) -> tuple[Any, int, str]:
    """Return lm-eval's wrapper of a model, its number of parameters, and its dtype as torch prints it."""
    if choices.backend == "vllm":
        return load_vllm(hf_dir, choices.batch_size), *saved_size(hf_dir)
    model = load_model(hf_dir, choices.batch_size, device)
    return model, sum(parameter.numel() for parameter in model.model.parameters()), str(model.model.dtype)


def _run_task(
    model: Any, job: tuple[str, Any, str | None], choices: ScoringOptions, ranks: ScoringRanks
) -> FinishedTask:
    """Run this rank's share of a task; return all ranks' results on rank 0, the same keys without numbers elsewhere."""
    (name, task, cluster), start = job, time.perf_counter()
    count = min(len(task.eval_docs), choices.limit or len(task.eval_docs))
    part = run_items(model, name, task, ranks.share(count), cluster)
    # Sorted by item, so that digests and means do not depend on the number of ranks.
    lines = sorted(ranks.gather(part), key=lambda line: (line["filter"], line["item"]))
    facts = {
        "items": len({line["item"] for line in lines}),
        "seconds": round(time.perf_counter() - start, 3),
        "questions_sha256": questions_digest(lines),
        "prompts_sha256": prompts_digest(lines),
        "higher_is_better": task.higher_is_better(),
        "version": task.VERSION,
        "cut": cut_facts(lines, model.max_length),
    }
    if facts["cut"] is not None and ranks.first:
        log.warning(describe_cut(name, facts))
    return {"scores": task_scores(aggregate(task, lines), lines), "facts": facts, "lines": lines}


def check_device(device: str | None) -> None:
    """Refuse a device that does not exist, or is not visible.

    Raises:
        ConfigError: saying which there are.
    """
    import torch

    if device is not None and not re.fullmatch(r"cpu|cuda(:\d+)?", device):
        raise ConfigError(f"{device!r} is not a device", "--device", "give cpu, cuda or cuda:N")
    if device is not None and device != "cpu" and not torch.cuda.is_available():
        raise ConfigError("no GPU is visible here", f"--device {device}", "give --device cpu, or leave it out")


def _default_device(ranks: ScoringRanks) -> str:
    import torch

    if not torch.cuda.is_available():
        return "cpu"
    # More ranks than GPUs share them in turn.
    return "cuda" if ranks.world_size == 1 else f"cuda:{ranks.local_rank % torch.cuda.device_count()}"


def _require_lm_eval() -> None:
    try:
        with uncollected():
            import lm_eval.evaluator
            import lm_eval.models.huggingface  # noqa: F401
    except ImportError as error:
        fix = "pip install 'megacode[eval]'"
        raise ConfigError(f"lm-eval is not installed here ({error})", "megacode evaluate", fix) from None

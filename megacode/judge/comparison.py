"""Win-rates: which of two models answers prompts better, as judged by a third model.

Answers are generated from the exported models; a judge behind an OpenAI-compatible server compares them in both orders.
Answers and verdicts are cached by everything they depend on. So a killed command resumes where it stopped, and running
it again costs nothing. Answers can be generated on a compute node without network, and judged elsewhere.
"""

from __future__ import annotations

import importlib.metadata
import json
import logging
import os
import platform
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import megacode
from megacode.base.claims import claimed
from megacode.base.errors import VerificationError
from megacode.base.files import RunDir, atomic_path, digest, file_digest, to_json, write_json
from megacode.base.progress import bar
from megacode.base.user_paths import refuse_existing, refuse_unwritable
from megacode.eval.made_items import run_of
from megacode.eval.offline import surroundings
from megacode.eval.scored_models import check_model
from megacode.judge.answers import PLAIN, AnswerCache, Generation, answers, model_identity
from megacode.judge.client import KEY_VARIABLE, JudgeClient, Patience
from megacode.judge.prompts import SHIPPED, Prompt, read_prompts
from megacode.judge.statistics import DRAWS, by_category, summarise
from megacode.judge.verdicts import REQUEST, SYSTEM, Question, Verdict, judge_question

log = logging.getLogger(__name__)

_PACKAGES = ("transformers", "torch", "tokenizers", "numpy")


@dataclass(frozen=True)
class JudgeSettings:
    """Settings of a comparison.

    Attributes:
        generation: settings for the models' answers.
        batch_size: prompts in one forward pass.
        device: of the models; None: CUDA if available.
        max_judge_tokens: maximum length of the judge's answers.
        threads: concurrent requests.
        patience: retries, timeouts, rate.
        key_variable: the environment variable with the API key.
        seed: of the bootstrap.
        cache: directory of answers and verdicts; None: `default_cache()`.
        overwrite: replace an earlier result.
    """

    generation: Generation = field(default_factory=Generation)
    batch_size: int = 8
    device: str | None = None
    max_judge_tokens: int = 512
    threads: int = 4
    patience: Patience = field(default_factory=Patience)
    key_variable: str = KEY_VARIABLE
    seed: int = 0
    cache: Path | None = None
    overwrite: bool = False


def default_cache() -> Path:
    """Return the cache directory of answers and verdicts: `$XDG_CACHE_HOME/megacode/judge`, else under `~/.cache`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "megacode" / "judge"


def default_out(hf_a: Path, hf_b: Path) -> Path:
    """Return where results go: `RUN/eval/judge/A-vs-B.json` in the run of model A, else beside that model."""
    name, run = f"{_label(hf_a)}-vs-{_label(hf_b)}.json", run_of(hf_a)
    return RunDir(run).eval / "judge" / name if run else hf_a.resolve().with_name(name)


def make_answers(
    hf_a: Path, hf_b: Path, prompts_file: Path = SHIPPED, out: Path | None = None, settings: JudgeSettings | None = None
) -> dict[str, Any]:
    """Let both models answer, and write the answers, one JSON line per prompt; no judge is asked.

    Returns:
        `answers_file`, and for both models how many answers were generated and how many came from the cache.

    Raises:
        CheckpointError: if one of them is not a model.
        DataError: if the prompts cannot be read, or are too long for a model.
    """
    settings, target = settings or JudgeSettings(), out or default_out(hf_a, hf_b).with_suffix(".answers.jsonl")
    _check_target([target], settings)
    prompts = read_prompts(prompts_file)
    questions, models = _questions(hf_a, hf_b, prompts, settings)
    _write_lines([_question_line(question) for question in questions], target)
    return {"answers_file": str(target), **models}


def judge(
    hf_a: Path,
    hf_b: Path,
    url: str,
    model: str | None = None,
    prompts_file: Path = SHIPPED,
    out: Path | None = None,
    settings: JudgeSettings | None = None,
) -> dict[str, Any]:
    """Compare two models, and write the result, with every prompt's answers and verdicts in `.items.jsonl` beside it.

    Args:
        hf_a: an exported model; wins and losses are its own.
        hf_b: the model it is compared with.
        url: of an OpenAI-compatible server, up to `/v1`.
        model: name of the judge; None: the server's only one.
        prompts_file: the prompts.
        out: the result's file; None: `default_out`.
        settings: everything else.

    Returns:
        The result document.

    Raises:
        CheckpointError: if one of them is not a model.
        ConfigError: if the address is invalid, the server refuses a request, or a result exists already.
        DataError: if the prompts cannot be read, or are too long for a model.
        JudgeError: if the judge does not answer.
        VerificationError: if none of its verdicts could be read; the files are written nevertheless.
    """
    settings, target = settings or JudgeSettings(), out or default_out(hf_a, hf_b)
    refuse_unwritable(target, "--out")
    with claimed(target, "--out"):
        return _judge(hf_a, hf_b, url, model, prompts_file, target, settings)


def _judge(
    hf_a: Path, hf_b: Path, url: str, model: str | None, prompts_file: Path, target: Path, settings: JudgeSettings
) -> dict[str, Any]:
    start = time.perf_counter()
    _check_target([target, target.with_name(f"{target.stem}.items.jsonl")], settings)
    prompts = read_prompts(prompts_file)
    for hf_dir in (hf_a, hf_b):
        check_model(hf_dir)
    cache = settings.cache or default_cache()
    client = JudgeClient(url, cache / "verdicts", settings.patience, settings.key_variable)
    # Asked before the answers are made: a wrong address fails in seconds, not after hours.
    model = model or client.only_model()
    questions, models = _questions(hf_a, hf_b, prompts, settings)
    # Both models are out of memory by now; only texts are left.
    verdicts = _verdicts(client, model, questions, settings)
    document = {
        **models,
        "prompts": {"file": str(prompts_file), "sha256": file_digest(prompts_file), "number": len(prompts)},
        "judge": {"url": client.url, "model": model, "instructions_sha256": digest(SYSTEM, REQUEST)},
        "settings": _settings(settings),
        "overall": summarise(verdicts, settings.seed),
        "categories": by_category(verdicts, settings.seed),
        "malformed_answers": sum(verdict.malformed for verdict in verdicts),
        "requests": {"sent": client.requests, "retries": client.retries, "from_cache": client.hits},
        "items_file": f"{target.stem}.items.jsonl",
        "seconds": round(time.perf_counter() - start, 3),
        **_provenance(),
    }
    _write_lines([_verdict_line(verdict) for verdict in verdicts], target.with_name(document["items_file"]))
    # The items come first: a result file always has its items.
    write_json(target, document)
    _check_any_valid(verdicts, client.url, target)
    return document


def _check_target(files: Sequence[Path], settings: JudgeSettings) -> None:
    """Refuse output files that exist or cannot be written, before anything is asked."""
    # Hours of generation and paid requests must not end at an existing file.
    refuse_existing(files, settings.overwrite, "--out")
    refuse_unwritable(files[0], "--out")
    refuse_unwritable((settings.cache or default_cache()) / "answers", "--cache", directory=True)


def _questions(
    hf_a: Path, hf_b: Path, prompts: Sequence[Prompt], settings: JudgeSettings
) -> tuple[list[Question], dict[str, Any]]:
    """Return every prompt with both answers, and what identifies the models `a` and `b`."""
    for hf_dir in (hf_a, hf_b):
        check_model(hf_dir)
    # One model after the other: two at once need the memory of both, for no gain in time.
    texts, cache = {}, settings.cache or default_cache()
    facts: dict[str, Any] = {}
    for side, hf_dir in (("a", hf_a), ("b", hf_b)):
        identity = model_identity(hf_dir)
        kept = AnswerCache(cache / "answers", identity, settings.generation)
        with surroundings(offline=True, own_cache=False, verbose=False):
            texts[side], generated = answers(
                hf_dir, prompts, settings.generation, kept, batch_size=settings.batch_size, device=settings.device
            )
        log.info("%s: %d answers generated, %d from the cache", _label(hf_dir), generated, len(prompts) - generated)
        counts = {"generated": generated, "from_cache": len(prompts) - generated}
        # Full hashes of both models, so that the result can be traced to its weights.
        facts[side] = {"name": _label(hf_dir), **identity, "answers": counts}
    return [Question(prompt, texts["a"][prompt.id], texts["b"][prompt.id]) for prompt in prompts], facts


def _verdicts(client: JudgeClient, model: str, questions: Sequence[Question], settings: JudgeSettings) -> list[Verdict]:
    """Judge all questions, several at a time; the first failure cancels those that have not begun."""
    with bar("judging questions", len(questions)) as advance, ThreadPoolExecutor(settings.threads) as pool:
        futures = [
            pool.submit(judge_question, client, model, question, settings.max_judge_tokens) for question in questions
        ]
        for future in futures:
            # The bar follows the requests as they finish, not their order.
            future.add_done_callback(lambda _: advance(1))
        try:
            return [future.result() for future in futures]
        except BaseException:
            # Ctrl-C too: threads that wait for their turn or a retry would keep the process alive for minutes.
            client.stop()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _check_any_valid(verdicts: Sequence[Verdict], url: str, target: Path) -> None:
    if not any(verdict.valid for verdict in verdicts):
        example = next((text for verdict in verdicts for text in verdict.replies if text), "no chat completion")
        message = f"none of the verdicts could be read; the judge says, for example, {example[-200:]!r}"
        raise VerificationError(message, url, f"use a judge that follows its instructions; its answers are in {target}")


def _label(hf_dir: Path) -> str:
    """Return a model's name: `RUN@DIRECTORY`, or the directory's name if its run is unknown."""
    try:
        name = json.loads((hf_dir / "megacode.json").read_text(encoding="utf-8"))["name"]
    except (OSError, ValueError, KeyError, TypeError):
        return hf_dir.resolve().name
    return f"{name}@{hf_dir.resolve().name}"


def _settings(settings: JudgeSettings) -> dict[str, Any]:
    patience, generation = asdict(settings.patience), asdict(settings.generation)
    # Recorded, though fixed: readers of the file need not know this version.
    judge_settings = {"temperature": 0, "max_tokens": settings.max_judge_tokens, "threads": settings.threads}
    bootstrap = {"seed": settings.seed, "draws": DRAWS}
    plain = {"prompt_form": PLAIN, "prompt_form_note": "models with a chat template are asked in that form"}
    return {"generation": {**generation, **plain}, "judge": {**judge_settings, **patience}, "bootstrap": bootstrap}


def _provenance() -> dict[str, Any]:
    versions = {name: importlib.metadata.version(name) for name in _PACKAGES}
    date = datetime.now(UTC).isoformat(timespec="seconds")
    return {
        "versions": {"megacode": megacode.__version__, "python": platform.python_version(), **versions},
        "date": date,
    }


def _question_line(question: Question) -> dict[str, Any]:
    prompt = question.prompt
    line = {"id": prompt.id, "category": prompt.category, "prompt": prompt.text}
    return {**line, "answer_a": question.answer_a, "answer_b": question.answer_b}


def _verdict_line(verdict: Verdict) -> dict[str, Any]:
    return {
        **_question_line(verdict.question),
        "outcome": verdict.outcome,
        "a_first": verdict.forward,
        "b_first": verdict.backward,
        "said_a_first": verdict.replies[0],
        "said_b_first": verdict.replies[1],
        "malformed": verdict.malformed,
    }


def _write_lines(lines: Sequence[Mapping[str, Any]], path: Path) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text("".join(to_json(line) + "\n" for line in lines), encoding="utf-8")

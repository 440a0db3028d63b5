"""Score documents: what was measured, how surely, of which model, with which questions.

lm-eval gives the scores; the standard errors are computed here from its per-item results, without a bootstrap:
the sample deviation over the square root of n for a mean, and for bits per byte, a ratio of sums b = L/B, the usual
linearisation s = sqrt(n/(n-1) * sum (l_i - b*B_i)^2) / B  (Cochran, Sampling Techniques, 3rd ed., section 6.4).
Items of one passage count together: their deviations are summed before they are squared, and n is the number of
passages. These are the errors of one arm in `statistics.variance`.
"""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from megacode.base.errors import ConfigError
from megacode.base.files import digest, file_digest, tree_digest
from megacode.base.tables import FigureTable
from megacode.base.units import format_count, format_seconds
from megacode.data.contamination import describe
from megacode.eval.decontaminated import describe_decontamination
from megacode.eval.truncation import describe_cut
from megacode.metrics.intervals import LEVEL, half_width
from megacode.metrics.published import SOURCE, measures, published_near

PACKAGES = ("lm_eval", "transformers", "torch", "tokenizers", "datasets")
_LOWER_IS_BETTER = ("bits_per_byte", "perplexity", "word_perplexity", "byte_perplexity")


def standard_error(values: Sequence[Any], score: float, clusters: Sequence[Any] | None = None) -> float | None:
    """Return the standard error of a score from its items' results.

    Args:
        values: one number an item, or one (log-likelihood in nats, bytes) an item for bits per byte.
        score: the score itself.
        clusters: the passage of each item; None: items stand alone.

    Returns:
        The standard error; None for fewer than two items or passages, or if the score is no mean and no bits per byte.
    """
    if len(values) < 2:
        return None
    deviations = _deviations(values, score)
    if deviations is None:
        return None
    # Items of one passage are right or wrong together: their deviations are summed before they are squared.
    sums: dict[Any, float] = {}
    for cluster, deviation in zip(clusters or range(len(values)), deviations, strict=True):
        sums[cluster] = sums.get(cluster, 0.0) + deviation
    count = len(sums)
    return math.sqrt(count / (count - 1) * sum(one**2 for one in sums.values())) if count > 1 else None


def _deviations(values: Sequence[Any], score: float) -> list[float] | None:
    """Return by how much each item moves a score; None if the score is no mean and no bits per byte."""
    if all(isinstance(value, (tuple, list)) and len(value) == 2 for value in values):
        bits, sizes = [-float(value[0]) / math.log(2) for value in values], [float(value[1]) for value in values]
        total = sum(sizes)
        if not total:  # pairs of another kind, such as labels for F1
            return None
        rate = sum(bits) / total
        # A score that the items do not give back has another formula, and this error would be wrong.
        known = math.isclose(rate, score, rel_tol=1e-6)
        return [(one - rate * size) / total for one, size in zip(bits, sizes, strict=True)] if known else None
    if not all(isinstance(value, (int, float)) for value in values):
        return None
    mean = sum(values) / len(values)
    known = math.isclose(mean, score, rel_tol=1e-6, abs_tol=1e-12)
    return [(value - mean) / len(values) for value in values] if known else None


def task_scores(results: Mapping[str, float], lines: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return a task's scores with their standard errors: `{"acc": 0.4, "acc_stderr": 0.02, ...}`.

    Args:
        results: the task's scores, keys such as `acc,none` or `exact_match,strict`.
        lines: `item_lines` of all items. A filter's name stays in the key only where there are several.
    """
    filters = {str(line["filter"]) for line in lines}
    scores: dict[str, float] = {}
    for key, value in results.items():
        metric, comma, name = key.partition(",")
        # lm-eval's results also hold the task's alias, which is no score.
        if not comma or not isinstance(value, (int, float)):
            continue
        shown = metric if len(filters) == 1 else key
        chosen = [line for line in lines if line["filter"] == name and metric in line]
        scores[shown] = float(value)
        # An item without a passage stands alone.
        passages = [line.get("cluster", number) for number, line in enumerate(chosen)]
        error = standard_error([line[metric] for line in chosen], float(value), passages)
        if error is not None:
            scores[f"{shown}_stderr"] = error
    return scores


def item_lines(
    task: str,
    samples: Sequence[Mapping[str, Any]],
    cuts: Sequence[int] | None = None,
    cluster: str | None = None,
) -> list[dict[str, Any]]:
    """Return one line an item for the file beside the scores: enough for paired statistics and for a look.

    Args:
        task: its name.
        samples: lm-eval's record of each item.
        cuts: tokens that each item lost to the model's context; None: nobody counted.
        cluster: the field of a task's documents that items of one passage share; None: items stand alone.

    Raises:
        ConfigError: if the documents have no such field.
    """
    lines = []
    for sample, cut in zip(samples, cuts or [0] * len(samples), strict=True):
        metrics = {metric: sample[metric] for metric in sample["metrics"]}
        answers = [answer if isinstance(answer, str) else list(answer) for answer in _flat(sample["filtered_resps"])]
        line = {"task": task, "item": sample["doc_id"], "filter": sample["filter"], "doc_hash": sample["doc_hash"]}
        # What the model was shown: with other examples or another template the same item is another prompt.
        line["prompt_hash"] = digest(json.dumps(sample["arguments"], sort_keys=True, default=str))[:16]
        if cluster is not None:
            line["cluster"] = _cluster_of(task, sample["doc"], cluster)
        names = {"metrics": sample["metrics"], "target": sample["target"], "answers": answers}
        lines.append({**line, **metrics, **names, **({"cut_tokens": cut} if cut else {})})
    return lines


def _cluster_of(task: str, document: Mapping[str, Any], field: str) -> str:
    if field not in document:
        fix = f"its fields are {', '.join(document)}"
        raise ConfigError(f"the task's documents have no field {field!r}", f"clusters.{task}", fix)
    # A passage can be long, and only whether two are equal counts.
    return digest(str(document[field]))[:16]


def _flat(responses: Iterable[Any]) -> list[Any]:
    return [response if isinstance(response, (str, tuple, list)) else [response] for response in responses]


def model_facts(hf_dir: Path) -> dict[str, Any]:
    """Return what identifies a model: hashes of its weights and tokenizer, its shape, and megacode's own facts."""
    config = json.loads((hf_dir / "config.json").read_text(encoding="utf-8"))
    tokenizer = [path for path in sorted(hf_dir.iterdir()) if path.name.startswith("tokenizer")]
    facts = hf_dir / "megacode.json"
    return {
        "path": str(hf_dir.resolve()),
        "weights_sha256": tree_digest(hf_dir.glob("*.safetensors")),
        "config_sha256": file_digest(hf_dir / "config.json"),
        "tokenizer_sha256": tree_digest(tokenizer),
        "architecture": (config.get("architectures") or ["unknown"])[0],
        "megacode": json.loads(facts.read_text(encoding="utf-8")) if facts.exists() else None,
    }


def is_export(hf_dir: Path) -> bool:
    """Return whether megacode exported a model: its texts then began as `BEGIN_OF_TEXT` says."""
    return (hf_dir / "megacode.json").is_file()


def beginning_of_texts(hf_dir: Path, tokenizer: Any) -> dict[str, Any]:
    """Return lm-eval's settings of how texts begin: as in a model's training, if megacode exported it."""
    if not is_export(hf_dir) or tokenizer.eos_token_id is None:
        return {}
    # As in training: no token is added, and a text follows the end of another document.
    return {"add_bos_token": False, "prefix_token_id": tokenizer.eos_token_id}


def provenance() -> dict[str, Any]:
    """Return versions, hardware and date."""
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    machine = {"machine": platform.machine(), "system": platform.platform(), "cpus": os.cpu_count()}
    date = datetime.now(UTC).isoformat(timespec="seconds")
    return {"versions": {"python": platform.python_version(), **versions}, "hardware": machine, "date": date}


def questions_digest(lines: Iterable[Mapping[str, Any]]) -> str:
    """Return a digest of the questions of a task: scores with the same one are comparable item by item."""
    return digest(*(f"{line['item']}:{line['doc_hash']}" for line in lines))


def prompts_digest(lines: Iterable[Mapping[str, Any]]) -> str:
    """Return a digest of what the model was asked: questions in another wording are other prompts."""
    return digest(*(f"{line['item']}:{line['prompt_hash']}" for line in lines))


def render_scores(document: Mapping[str, Any], console: Console) -> None:
    """Print a score document: each task's scores with 95 % intervals, what guessing gets, and the contamination."""
    title = f"{document['suite']}: {document['model']['path']}"
    console.print(Text(title, style="italic"), soft_wrap=True)
    console.print(_scores_table(document))
    if document["means"]:
        console.print(_means_table(document["means"]))
    for task, facts in document["tasks"].items():
        if facts.get("cut"):
            console.print(describe_cut(task, facts), style="yellow")
    for task, why in document["left_out"].items():
        console.print(Text(f"left out: {task}: {why}"))
    console.print(describe(document["contamination"]))
    if note := describe_decontamination(document):
        console.print(Text(note))
    console.print(f"{format_seconds(document['seconds'])} on {document['settings']['device']}")


def _scores_table(document: Mapping[str, Any]) -> FigureTable:
    """Return the tasks' table: scores, items that the model had read, and how well a task ranks corpora."""
    ranking = {
        task: near
        for task, scores in document["scores"].items()
        if any(map(measures, scores)) and (near := published_near(task, _parameters(document)))
    }
    figures = ("score", f"± {LEVEL}", "chance", "items", "overlap", *(["ranks"] if ranking else []))
    caption = "↓: less is better"
    if ranking:
        (size, _) = next(iter(ranking.values()))
        caption += f"\nranks: pairs of corpora that models of {size} order as models of 1B do, published ({SOURCE})"
    options: Any = {"caption": caption, "caption_justify": "left"}
    table = FigureTable("task", "metric", *figures, figures=figures, **options)
    overlaps = document["contamination"].get("tasks") or {}
    for task, scores in document["scores"].items():
        chance, hits = document["chance"].get(task), overlaps.get(task, {}).get("overlapping")
        tail = ["" if chance is None else f"{chance:.2f}", format_count(document["tasks"][task]["items"])]
        tail.append("" if hits is None else f"{hits:,}")
        for row, metric in enumerate(name for name in scores if not name.endswith("_stderr")):
            error = scores.get(f"{metric}_stderr")
            shown = [f"{scores[metric]:.3f}", "" if error is None else f"{half_width(error):.3f}"]
            arrow = " ↓" if metric.partition(",")[0] in _LOWER_IS_BETTER else ""
            known = task in ranking and measures(metric)
            ranks = [f"{100 * ranking[task][1]:.0f} %" if known else ""] if ranking else []
            table.add_row(task if row == 0 else "", metric + arrow, *shown, *(tail if row == 0 else [""] * 3), *ranks)
    return table


def _parameters(document: Mapping[str, Any]) -> float:
    return float(document["model"].get("parameters") or 1)


def _means_table(means: Mapping[str, Mapping[str, Any]]) -> FigureTable:
    table = FigureTable("mean", "score", f"± {LEVEL}", "of", "without", figures=("score", f"± {LEVEL}", "of"))
    for name, mean in means.items():
        shown = ["-" if mean["score"] is None else f"{mean['score']:.3f}"]
        shown.append("" if mean["stderr"] is None else f"{half_width(mean['stderr']):.3f}")
        table.add_row(name, *shown, str(mean["of"]), ", ".join(mean["missing"]))
    return table

"""A made-up report document, in the shapes of `megacode.study_report.shapes`, for the tests of its page."""

from __future__ import annotations

import math
import random
from typing import Any

# Arms with phases of (name, tokens in B, blend), and the paper's reasoning, knowledge and code.
HALF = {"text": 0.5, "code": 0.4, "markup": 0.1}
TENTH = {"text": 0.9, "code": 0.08, "markup": 0.02}
COOL = {"text": 0.8, "code": 0.2}
PURE = {"code": 0.8, "markup": 0.2}
RECIPES: dict[str, tuple[list[tuple[str, int, dict[str, float]]], tuple[float, float, float] | None]] = {
    "text-only": ([("text", 200, {"text": 1.0}), ("text-2", 200, {"text": 1.0})], (49.0, 9.5, 0.4)),
    "balanced-only": ([("balanced", 200, HALF), ("balanced-2", 200, HALF)], (51.8, 8.1, 9.0)),
    "balanced-to-text": ([("balanced", 200, HALF), ("mostly-text", 200, TENTH)], (53.0, 9.9, 4.8)),
    "code-to-text": ([("code", 200, PURE), ("mostly-text", 200, TENTH)], (53.3, 9.5, 4.1)),
    "code-25": ([("quarter", 200, {"text": 0.75, "code": 0.2, "markup": 0.05})], None),
    "code-75": ([("three-quarters", 200, {"text": 0.25, "code": 0.6, "markup": 0.15})], None),
    "code-90": ([("nine-tenths", 200, {"text": 0.1, "code": 0.72, "markup": 0.18})], None),
}
COOLED = {"text-only": (54.1, 11.1, 4.4), "balanced-only": (53.2, 11.1, 8.4), "balanced-to-text": (54.9, 10.9, 5.8),
          "code-to-text": (52.1, 10.3, 7.5)}  # fmt: skip
MEANS = ("total", "nl", "code", "reasoning", "knowledge")
TASKS = {
    "reasoning": ["boolq", "piqa", "sciq", "social_iqa", "quac", "cb", "copa", "storycloze", "hellaswag",
                  "winogrande", "arc_easy"],
    "knowledge": ["triviaqa", "nq_open"],
    "code": ["humaneval", "mbpp"],
}  # fmt: skip


def document(*, seeds: int = 3, level: str = "@470m", extra: int = 0, scored: bool = True) -> dict[str, Any]:
    """Return a report.

    Args:
        seeds: of each arm.
        level: the end of each arm's name.
        extra: further arms, for large studies.
        scored: whether there are scores.
    """
    draw = random.Random(7)
    arms, truth = _arms(level, extra, seeds, scored)
    scores = _scores(arms, truth, seeds, draw) if scored else []
    models = _models(arms, seeds, scored)
    comparisons = _comparisons(arms, scores, seeds, level) if scored else []
    return {
        "study": {"name": "to-code", "file": "studies/to-code.yaml", "runs": "runs/to-code", "suites": ["to-code"],
                  "primary": ["mean/total", "mean/nl", "mean/code"], "secondary": ["mean/reasoning", "mean/knowledge"],
                  "margin": 0.5, "seed_sd": None, "pairs": [], "factors": {"scale": ["470m"]}},
        "level": 0.95,
        "baseline": f"text-only{level}",
        "seeds": list(range(1, seeds + 1)),
        "complete": scored,
        "missing": [] if scored else ["no arm is scored yet"],
        "notes": ["torch 2.9.0 and 2.9.1 scored these arms; versions of torch may differ"],
        "left_out": {"cb/f1": "a score that is no mean of items"},
        "arms": arms,
        "models": models,
        "metrics": _metrics(),
        "scores": scores,
        "comparisons": comparisons,
        "survival": [],
        "headlines": _headlines(comparisons),
        "paper": _paper(level) if scored else [],
        "paper_notes": ["The paper compares arms before cooldown, and its four recipes read different amounts of code.",
                        "It has one seed and no intervals."],
        "proportion": [{"name": "share of code", "of": ["code", "markup"], "rest": "text", "points": [
            {"arm": f"{arm}{level}", "share": share, "tokens": 200 * 10**9}
            for arm, share in (("text-only", 0.0), ("code-25", 0.25), ("balanced-only", 0.5), ("code-75", 0.75),
                               ("code-90", 0.9))]}],
        "pareto": [{"place": level.strip("@"), "x": "mean/nl", "y": "mean/code",
                    "arms": [arm["name"] for arm in arms],
                    "arrows": [[f"{arm}{level}", f"{arm}+cooldown{level}"] for arm in COOLED]}],
        "waterfall": [_waterfall(arm, truth[arm["name"]], seeds) for arm in arms if len(arm["phases"]) > 1] if scored
                     else [],
        "loss_by_source": [curve for arm in arms[:6] for curve in _losses(arm, seeds, draw)] if scored else [],
        "forgetting": _forgetting(arms[:6], seeds, draw) if scored else [],
        "tree": _tree(arms, seeds, scored),
        "gain_per_flop": [{"arm": arm["name"], "metric": "mean/total", "flops": arm["flops"],
                           "difference": None, "score": _value(scores, arm["name"], "mean/total")}
                          for arm in arms] if scored else [],
        "heat_map": _heat(comparisons, draw) if scored else {"metrics": [], "cells": [], "shares": []},
        "exposure": _exposure(arms),
        "match": [{"arms": [f"balanced-only{level}", f"balanced-to-text{level}"], "equal": False, "exposure": "samples",
                   "end": None, "problems": ["code 48,828 in place of 40,000"], "samples_by_source": {
                       f"balanced-only{level}": {"text": 24414062, "code": 24414063},
                       f"balanced-to-text{level}": {"text": 34179687, "code": 14648438}}, "sources": {}}],
        "contamination": [{"arm": arm["name"], "task": task, "hits": 3 + 2 * number, "items": 500,
                           "share_checked": 0.5} for number, arm in enumerate(arms[:6]) for task in ("piqa", "copa")],
        "decision_accuracy": [{"metric": "mean/total", "places": ["470m", "2.8b"], "pairs": 6, "agree": 5 / 6}],
        "law": None,
        "forecasts": [],
        "limits": ["One suite, in English and Python.", "Three seeds: the spread over seeds is known to a third.",
                   "470M parameters: what holds here need not hold at 2.8B."],
        "history": None,
        "later_findings": [{"fact": "Replay", "numbers": "1.87x target efficiency at 150M", "source": "2603.04964"}],
        "provenance": {f"{model['arm']} seed {model['seed']}": model for model in models},
    }  # fmt: skip


def _arms(level: str, extra: int, seeds: int, scored: bool) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    rows, truth = [], {}
    for name, (phases, paper) in RECIPES.items():
        rows.append((name, phases))
        truth[f"{name}{level}"] = paper or (48.0 + len(name) / 3, 8.0, 9.0)
        if name in COOLED:
            rows.append((f"{name}+cooldown", [*phases, ("cooldown", 40, COOL)]))
            truth[f"{name}+cooldown{level}"] = COOLED[name]
    for number in range(extra):
        blend = {"text": 1 - number / (extra + 1), "code": number / (extra + 1)}
        rows.append((f"a-swarm-of-blends-{number:02}", [(f"blend-{number:02}", 200, blend)]))
        truth[f"a-swarm-of-blends-{number:02}{level}"] = (46 + 7 * math.sin(number), 8 + math.cos(number), 0.2 * number)
    arms = []
    for name, phases in rows:
        tokens = sum(length for _, length, _ in phases) * 10**9
        arms.append({
            "name": f"{name}{level}", "arm": name, "levels": {"scale": level.strip("@")}, "place": level.strip("@"),
            "table": "", "same_as": None, "is_baseline": name == "text-only",
            "phases": [{"name": phase, "tokens": length * 10**9, "blend": blend} for phase, length, blend in phases],
            "tokens": tokens, "flops": int(3.6e9 * tokens), "seeds": list(range(1, seeds + 1)),
            "scored_seeds": list(range(1, seeds + 1)) if scored else [], "state": "scored" if scored else "not trained",
            "flags": ["withheld 512 samples after a spike"] if name == "code-to-text" else [], "trunk": None,
        })  # fmt: skip
    return arms, truth


def _models(arms: list[dict[str, Any]], seeds: int, scored: bool) -> list[dict[str, Any]]:
    found = []
    for arm in arms:
        for seed in range(1, seeds + 1):
            run = f"runs/to-code/{arm['arm']}-s{seed}"
            found.append({
                "arm": arm["name"], "seed": seed, "state": arm["state"], "run": run if scored else None,
                "checkpoint": f"{run}/checkpoints/iter_0047684" if scored else None,
                "iteration": 47684 if scored else None, "seal": f"{hash_of(run)}" if scored else None,
                "scores": {"to-code": f"{run}/eval/to-code@iter_47684.json"} if scored else {}, "flags": arm["flags"],
            })  # fmt: skip
    return found


def hash_of(text: str) -> str:
    """Return 64 hex digits that depend on a text alone."""
    return f"{random.Random(text).getrandbits(256):064x}"


def _metrics() -> list[dict[str, Any]]:
    rows = [
        {"metric": f"mean/{name}", "title": f"{name} (mean)", "unit": "points", "higher_is_better": True,
         "family": "primary" if name in ("total", "nl", "code") else "secondary", "items": 20_000, "chance": None,
         "tasks": [f"{task}/acc" for group in _groups(name) for task in TASKS[group]], "missing": [],
         "reliability": None, "signal_to_noise": 8.1}
        for name in MEANS
    ]  # fmt: skip
    for task in [task for group in TASKS.values() for task in group]:
        accuracy = {"winogrande": 0.50, "boolq": 0.48, "hellaswag": 0.74}.get(task)
        known = accuracy and {
            "decision_accuracy": {"150M": accuracy, "750M": accuracy + 0.1}, "signal_to_noise": 37.0,
            "note": "a coin toss below 1B" if accuracy < 0.6 else "", "source": "allenai/signal-and-noise",
        }  # fmt: skip
        rows.append({"metric": f"{task}/acc", "title": f"{task}, accuracy", "unit": "points", "higher_is_better": True,
                     "family": "exploratory", "items": 1500, "chance": 0.25, "tasks": [f"{task}/acc"], "missing": [],
                     "reliability": known or None, "signal_to_noise": None})  # fmt: skip
    return rows


def _groups(name: str) -> list[str]:
    return {"total": list(TASKS), "nl": ["reasoning", "knowledge"]}.get(name, [name])


def _true(paper: tuple[float, float, float], metric: str) -> float:
    reasoning, knowledge, code = paper
    means = {"reasoning": reasoning, "knowledge": knowledge, "code": code, "nl": (reasoning + knowledge) / 2,
             "total": (reasoning + knowledge + code) / 3}  # fmt: skip
    return means[metric.removeprefix("mean/")] / 100


def _scores(arms: list[dict[str, Any]], truth: dict[str, Any], seeds: int, draw: random.Random) -> list[dict[str, Any]]:
    rows = []
    for arm in arms:
        for mean in MEANS:
            value = _true(truth[arm["name"]], mean)
            own = {str(seed): value + draw.gauss(0, 0.004) for seed in range(1, seeds + 1)}
            at = sum(own.values()) / seeds
            rows.append({"arm": arm["name"], "metric": f"mean/{mean}", "value": at, "by_seed": own,
                         "standard_error": 0.004, "low": at - 0.01, "high": at + 0.01,
                         "spread": 0.004 if seeds > 1 else None, "seeds": seeds, "items": 20_000,
                         "places": 1})  # fmt: skip
    return rows


def _value(scores: list[dict[str, Any]], arm: str, metric: str) -> float:
    return next(row["value"] for row in scores if row["arm"] == arm and row["metric"] == metric)


def _comparisons(arms: list[dict[str, Any]], scores: list[dict[str, Any]], seeds: int,
                 level: str) -> list[dict[str, Any]]:  # fmt: skip
    base = f"text-only{level}"
    cooled = f"text-only+cooldown{level}"
    rows = [_comparison(arm["name"], base, f"mean/{mean}", scores, seeds)
            for mean in MEANS for arm in arms if arm["name"] != base]  # fmt: skip
    rows += [_comparison(f"{arm}+cooldown{level}", cooled, f"mean/{mean}", scores, seeds) | {"declared_pair": True}
             for mean in MEANS for arm in COOLED if arm != "text-only"]  # fmt: skip
    return rows


def _comparison(arm: str, base: str, metric: str, scores: list[dict[str, Any]], seeds: int) -> dict[str, Any]:
    score, other = _value(scores, arm, metric), _value(scores, base, metric)
    d = score - other
    found = abs(d) > 0.018
    verdict = ("better" if d > 0 else "worse") if found else ""
    said = f"is {verdict} than {base} by {100 * abs(d):.1f} points" if found else f"and {base} are not distinguishable"
    return {
        "arm": arm, "baseline": base, "metric": metric, "difference": d, "low": d - 0.012, "high": d + 0.012,
        "simultaneous_low": d - 0.018, "simultaneous_high": d + 0.018, "degrees_of_freedom": 14.2, "seeds": seeds,
        "items": 20_000, "distinguishable": found, "relative": {"value": d / other, "low": -0.1, "high": 0.3},
        "score": score, "baseline_score": other, "unit": "points", "higher_is_better": True,
        "family": "primary" if metric[5:] in ("total", "nl", "code") else "secondary", "method": "t", "p": 0.01,
        "adjusted_p": 0.03, "standard_error": 0.006, "about": "recipes" if seeds > 1 else "models",
        "paired_seeds": True, "items_for": 900, "items_against": 700, "smallest_visible": 0.02,
        "seeds_could_move_by": None if seeds > 1 else 0.012, "seed_spread_from": "all arms" if seeds > 1 else "",
        "within_margin": False, "missing_tasks": [], "words": f"{metric}: {arm} {said} (+1.0 .. +5.2)",
        "place": "470m", "verdict": verdict, "declared_pair": False,
        "models": [f"{name} seed {seed}" for name in (arm, base) for seed in range(1, seeds + 1)],
    }  # fmt: skip


def _headlines(comparisons: list[dict[str, Any]]) -> list[dict[str, Any]]:
    keys = ("arm", "baseline", "metric", "verdict", "words")
    return [{key: one[key] for key in keys} for one in comparisons if one["metric"] == "mean/total"]


def _paper(level: str) -> list[dict[str, Any]]:
    rows = []
    named = {name: paper for name, (_, paper) in RECIPES.items() if paper}
    named |= {f"{name}+cooldown": paper for name, paper in COOLED.items()}
    for name, paper in named.items():
        for mean in MEANS:
            score, base = _true(paper, mean), _true(named["text-only"], mean)
            rows.append({"arm": f"{name}{level}", "paper_arm": name, "baseline": f"text-only{level}",
                         "metric": f"mean/{mean}", "score": score, "points": 100 * (score - base),
                         "relative": score / base - 1,
                         "stated": 0.082 if (name, mean) == ("balanced-to-text", "reasoning") else None,
                         "note": ""})  # fmt: skip
    return rows


def _waterfall(arm: dict[str, Any], paper: tuple[float, float, float], seeds: int) -> dict[str, Any]:
    steps, read = [], 0
    for number, phase in enumerate(arm["phases"]):
        read += phase["tokens"]
        behind = len(arm["phases"]) - 1 - number
        values = {f"mean/{mean}": _true(paper, mean) - 0.013 * behind * (1 if mean != "code" else -2) for mean in MEANS}
        node = f"{arm['arm'].removesuffix('+cooldown')}-{number}"
        steps.append({"phase": phase["name"], "node": node, "tokens": read, "values": values, "by_seed": {},
                      "files": {}})  # fmt: skip
    return {"arm": arm["name"], "steps": steps}


def _losses(arm: dict[str, Any], seeds: int, draw: random.Random) -> list[dict[str, Any]]:
    borders, read = [], 0
    for phase in arm["phases"]:
        read += phase["tokens"]
        borders.append(read)
    curves = []
    for source, best in (("text", 2.9), ("code", 1.4), ("markup", 1.8)):
        for seed in range(1, seeds + 1):
            tokens, loss, level, position = [], [], 7.0, 0
            for phase in arm["phases"]:
                aim = best + 1.2 * (1 - phase["blend"].get(source, 0.0)) ** 3
                for _ in range(10):
                    position += phase["tokens"] // 10
                    level += (aim - level) * 0.4
                    tokens.append(position)
                    loss.append(level + draw.gauss(0, 0.01))
            curves.append({"arm": arm["name"], "seed": seed, "source": source, "tokens": tokens, "loss": loss,
                           "borders": borders})  # fmt: skip
    return curves


def _forgetting(arms: list[dict[str, Any]], seeds: int, draw: random.Random) -> list[dict[str, Any]]:
    rows = []
    for arm in arms:
        for phase in arm["phases"][1:]:
            for source in ("text", "code", "markup"):
                value = draw.gauss(0.1, 0.2)
                rows.append({"arm": arm["name"], "source": source, "phase": phase["name"], "value": value,
                             "by_seed": {str(seed): value for seed in range(1, seeds + 1)}})  # fmt: skip
    return rows


def _tree(arms: list[dict[str, Any]], seeds: int, scored: bool) -> dict[str, Any]:
    nodes: dict[str, dict[str, Any]] = {}
    for seed in range(1, seeds + 1):
        for arm in arms:
            parent, read = None, 0
            for phase in arm["phases"]:
                key = hash_of(f"{parent}{phase['name']}{seed}")[:16]
                samples = phase["tokens"] // 8192
                node = nodes.setdefault(key, {
                    "id": key, "name": f"{phase['name']}-s{seed}-{key[:8]}", "parent": parent,
                    "resumes": parent is not None, "from": None, "tokens": phase["tokens"], "samples": samples,
                    "seed": seed, "levels": arm["levels"],
                    "phase": phase["name"], "first_sample": read, "last_sample": read + samples, "arms": [],
                    "run": key, "state": "trained" if scored else "planned", "checkpoint": None, "seal": None,
                    "flops": int(3.6e9 * phase["tokens"]), "trained_by": [],
                })  # fmt: skip
                read, parent = read + samples, key
            node["arms"].append(arm["name"])
    trained = sum(node["tokens"] for node in nodes.values())
    alone = seeds * sum(arm["tokens"] for arm in arms)
    return {"tokens": {"tree": trained, "rows": alone - 10**11, "alone": alone}, "flops": int(3.6e9 * trained),
            "nodes": list(nodes.values())}  # fmt: skip


def _heat(comparisons: list[dict[str, Any]], draw: random.Random) -> dict[str, Any]:
    arms = dict.fromkeys((one["arm"], one["baseline"]) for one in comparisons if not one["declared_pair"])
    tasks = [f"{task}/acc" for group in TASKS.values() for task in group]
    cells = []
    for task in tasks:
        for arm, base in arms:
            d = draw.gauss(0.01, 0.03)
            found = abs(d) > 0.035
            cells.append({"arm": arm, "baseline": base, "metric": task, "difference": d, "adjusted_p": 0.2,
                          "distinguishable": found,
                          "verdict": ("better" if d > 0 else "worse") if found else ""})  # fmt: skip
    shares = [{"place": "470m", "mean": f"mean/{group}", "metric": f"{task}/acc", "share": 1 / len(names)}
              for group, names in TASKS.items() for task in names]  # fmt: skip
    return {"metrics": tasks, "cells": cells, "shares": shares}


def _exposure(arms: list[dict[str, Any]]) -> list[dict[str, Any]]:
    rows = []
    sizes = {"text": 503, "code": 139, "markup": 180}
    for arm in arms:
        for source, size in sizes.items():
            by_phase = {p["name"]: round(p["tokens"] * p["blend"].get(source, 0.0) / 8192) for p in arm["phases"]}
            samples = sum(by_phase.values())
            if samples:
                passes = {name: count * 8192 / (size * 10**9) for name, count in by_phase.items()}
                rows.append({"arm": arm["name"], "source": source, "samples": samples, "by_phase": by_phase,
                             "passes": sum(passes.values()), "passes_by_phase": passes,
                             "rate_share": samples * 8192 / arm["tokens"], "mean_age": arm["tokens"] // 2})  # fmt: skip
    return rows

"""A study's status on a terminal, from its JSON document."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.text import Text

from megacode.base.files import Json
from megacode.base.tables import FigureTable
from megacode.base.units import format_count, format_measured

_SEEDS_ABREAST = 3  # states of more seeds would be cut at 80 columns
_STYLES = {"done": "green", "trained": "green", "failed": "red", "diverged": "red", "running": "yellow"}
# What a person must know more about than the word in the table.
_EXPLAINED = ("running", "queued", "interrupted", "failed", "diverged")


def render_status(document: Json, console: Console) -> None:
    """Print where a study is.

    Args:
        document: of `study_status`.
        console: to print on.
    """
    tokens = document["tokens"]
    share = f"{100 * tokens['done'] / tokens['total']:.0f} %" if tokens["total"] else ""
    done, total = format_count(tokens["done"]), format_count(tokens["total"])
    console.print(f"{document['name']}: {done} of {total} tokens trained ({share})", style="bold", highlight=False)
    seeds = list(dict.fromkeys(arm["seed"] for arm in document["arms"]))
    for first in range(0, len(seeds), _SEEDS_ABREAST):
        console.print()
        console.print(_arms(document, seeds[first : first + _SEEDS_ABREAST]))
    for line in (*_runs(document), *_scores(document), *_flags(document)):
        console.print(line, highlight=False, soft_wrap=True)
    console.print()
    console.print(f"next: {document['next']}", highlight=False, soft_wrap=True)


def _arms(document: Json, seeds: Sequence[int]) -> FigureTable:
    table = FigureTable("arm", *(f"seed {seed}" for seed in seeds), "tokens", figures=("tokens",))
    table.columns[0].min_width = 14
    by_name: dict[str, dict[int, Json]] = {}
    for arm in document["arms"]:
        by_name.setdefault(arm["name"], {})[arm["seed"]] = arm
    for name, arms in by_name.items():
        if not arms.keys() & {*seeds}:
            continue
        words = [_word(arms[seed]) if seed in arms else Text() for seed in seeds]
        table.add_row(name, *words, format_count(next(iter(arms.values()))["tokens"]))
    return table


def _word(arm: Json) -> Text:
    """Return a state in few letters; what it waits for is told below the table."""
    state, share = arm["state"], arm["tokens_done"] / arm["tokens"] if arm["tokens"] else 0
    word = f"{state} {arm['cause']}" if state == "scoring" else state
    if state == "waiting" and arm["cause"].startswith("failed "):
        word = "waits: failed"
    elif share and state not in ("done", "trained", "scoring"):
        word = f"{state} {100 * share:.0f} %"
    return Text(f"{word}{'*' if arm['flags'] else ''}", style=_STYLES.get(state, ""))


def _runs(document: Json) -> Iterator[str]:
    rows = [run for run in document["needed"] if run["state"] in _EXPLAINED]
    if rows:
        yield "\nruns"
    for run in rows:
        facts = [run["state"]]
        if run["iteration"]:
            facts.append(f"iteration {run['iteration']:,} of {run['iterations']:,}")
        if run["state"] == "running" and run["loss"] is not None:
            facts.append(f"loss {format_measured(run['loss'], 3)}")
        yield f"  {run['name']}: {', '.join(facts)}"
        if run["cause"]:
            yield f"      {run['cause']}"
        if run["final"]:
            yield "      not tried again until its config changes, or with --retry"
        if run["log"] and run["state"] in ("failed", "diverged"):
            yield f"      log: {run['log']}"


def _scores(document: Json) -> Iterator[str]:
    failed = [arm for arm in document["arms"] if arm["state"] == "failed" and arm["checkpoint"]]
    old = [arm for arm in document["arms"] if any(one["presence"] == "outdated" for one in arm["scores"])]
    if failed or old:
        yield "\nscores"
    for arm in failed:
        yield f"  {arm['name']}, seed {arm['seed']}: {arm['cause']}"
    for reason in dict.fromkeys(f"{one['suite']}: {one['why']}" for arm in old for one in arm["scores"] if one["why"]):
        count = sum(f"{one['suite']}: {one['why']}" == reason for arm in old for one in arm["scores"])
        yield f"  {count} to be made again, {reason}"


def _flags(document: Json) -> Iterator[str]:
    flagged = [arm for arm in document["arms"] if arm["flags"]]
    if flagged:
        yield "\n* flags"
    for arm in flagged:
        yield f"  {arm['name']}, seed {arm['seed']}: {'; '.join(arm['flags'])}"
    if document["former"]:
        yield "\nkept from earlier versions of the study"
    for one in document["former"]:
        tokens = format_count(one["tokens"])
        yield f"  {one['kind']}: {one['arm']}, seed {one['seed']}, {tokens} tokens: {one['checkpoints'][-1]}"
    if document["changed_after_scores"]:
        yield "\nchanged after the first score"
    for change in document["changed_after_scores"]:
        yield f"  {change['key']}: {change['before'] or '-'} -> {change['now'] or '-'}"

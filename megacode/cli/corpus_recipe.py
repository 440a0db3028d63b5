"""`data corpus RECIPE`: run a recipe or show its plan, and print the result."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Mapping
from typing import Any

from rich.console import Console

from megacode.base.errors import ConfigError
from megacode.base.files import Json
from megacode.base.tables import FigureTable
from megacode.base.units import format_bytes, format_count, format_seconds
from megacode.base.urls import is_url
from megacode.cli.options import print_json
from megacode.corpus.card_terminal import print_card
from megacode.corpus.decontaminate import Benchmark
from megacode.corpus.engine import PASSES, Pass, run_recipe
from megacode.corpus.estimate import plan_recipe
from megacode.corpus.layout import CorpusDir
from megacode.corpus.recipe import load_recipe
from megacode.corpus.work import MOST_SHOWN
from megacode.data.machine_files import Shard

log = logging.getLogger(__name__)


# Options that only collecting without a recipe has, and where a recipe has them.
_NOT_HERE = {"roots": "inputs", "limit": "settings.bytes", "seed": "seed"}


def run_with(options: Mapping[str, Any], console: Console) -> None:
    """Run a recipe, or show its plan.

    Args:
        options: the options of `data corpus`.
        console: where the card or the plan is printed.

    Raises:
        ConfigError: the recipe or an option is wrong, or the output was made from something else.
        DataError: an input is missing or damaged, or nothing is left of a source.
    """
    for name, key in _NOT_HERE.items():
        if options[name] not in (None, [], ()):
            raise ConfigError("this option does not go with a recipe", f"--{name}", f"set {key} in the recipe instead")
    recipe = load_recipe(options["recipe"])
    if options["output"] is not None:
        recipe = recipe.model_copy(update={"output": options["output"]})
    if options["work_dir"] is not None:
        recipe = recipe.model_copy(update={"work_dir": options["work_dir"]})
    shard = Shard.parse(options["shard"]) if options["shard"] else None
    if options["plan"]:
        plan = plan_recipe(recipe, shard)
        return print_json(plan) if options["json_"] else print_plan(plan, console)
    processes = options["processes"]
    if processes < 1:
        raise ConfigError(f"{processes} is not a valid number of processes", "--processes", "give 1 or more")
    # The command that makes the whole corpus: the manifest must not tell which shard ended last.
    output = f" --output {shlex.quote(options['output'])}" if options["output"] is not None else ""
    manifest = run_recipe(
        recipe,
        f"megacode data corpus {shlex.quote(str(options['recipe']))}{output}",
        shard=shard,
        task=Shard.parse(options["task"], "--task") if options["task"] else None,
        only=_pass(options["only"]),
        processes=processes,
        overwrite=options["overwrite"],
        suite_items=_suite_items,
    )
    if options["json_"]:
        print_json(manifest if manifest is not None else plan_recipe(recipe, shard)["done"])
    elif manifest is not None:
        print_card(manifest, console)
        card = f"{recipe.output.rstrip('/')}/card.html" if is_url(recipe.output) else CorpusDir(recipe.directory).card
        console.print(f"{card}: the same as a page", soft_wrap=True)
    else:
        log.info("%s", _progress(plan_recipe(recipe, shard)))


def _suite_items(name: str) -> Benchmark:
    # lm-eval takes seconds to import; most calls find the items written down already.
    from megacode.eval.suite_items import suite_items

    return suite_items(name)


def _pass(name: str) -> Pass | None:
    matching = [one for one in PASSES if one == name]
    if name and not matching:
        raise ConfigError(f"there is no pass {name!r}", "--pass", f"the passes are {', '.join(PASSES)}")
    return matching[0] if matching else None


def _progress(plan: Json) -> str:
    finished, shards = plan["done"], plan["shards"]
    reduced = "done" if finished["reduce"] else "not done"
    mapped, applied = finished["map"], finished["apply"]
    return f"map pass: {mapped} of {shards} shards; reduce pass: {reduced}; apply pass: {applied} of {shards}"


def print_plan(plan: Json, console: Console) -> None:
    """Print what a recipe will do."""
    table = FigureTable("source", "kind", "files", "on disk", "steps", figures=("files", "on disk"))
    if plan["against"]["files"]:
        against = plan["against"]
        table.add_row("(compared with)", "text", f"{against['files']:,}", format_bytes(against["bytes"]), "")
    for source in plan["sources"]:
        size = format_bytes(source["bytes"]) if source["collected"] else f"up to {format_bytes(source['bytes'])}"
        table.add_row(source["name"], source["kind"], f"{source['files']:,}", size, _steps(source))
    console.print(table)
    for name, value in _whole_steps(plan):
        console.print(f"{name}: {value}", soft_wrap=True)
    text = f"{format_bytes(plan['text_bytes'])} of text, about {format_count(plan['documents'])} documents"
    console.print(f"{text}; shards: {plan['shards']:,}", soft_wrap=True)
    costs = FigureTable("pass", "CPU time", "disk", figures=("CPU time", "disk"))
    for name, seconds in plan["cpu_seconds"].items():
        disk = plan["disk_bytes"].get("corpus" if name == "apply" else name, 0)
        costs.add_row(name, format_seconds(seconds), format_bytes(disk))
    console.print(costs)
    console.print("complete" if plan["done"]["complete"] else _progress(plan), soft_wrap=True)
    more = len(plan["changed"]) - MOST_SHOWN
    for difference in [*plan["changed"][:MOST_SHOWN], *([f"and {more:,} more differences"] if more > 0 else [])]:
        console.print(f"changed since the earlier call: {difference}", soft_wrap=True)


def _steps(source: Json) -> str:
    known = ("filters", "licences", "personal_data", "settings", "held_out", "skip_bad")
    return "; ".join(f"{step}: {_short(source[step])}" for step in known if step in source)


def _short(value: Any) -> str:
    if not isinstance(value, dict):
        return str(value)
    return ", ".join(f"{key} {_short(one)}" for key, one in value.items()) or "defaults"


def _whole_steps(plan: Json) -> list[tuple[str, str]]:
    rules = (("duplicates", plan["duplicates"]), ("decontaminate", plan["decontaminate"]))
    return [(name, _short(value)) for name, value in rules if value is not None]

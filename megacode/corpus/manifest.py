"""The manifest of a corpus: what it is, what it was made from, and what was dropped on the way."""

from __future__ import annotations

import megacode
from megacode.base.errors import DataError
from megacode.base.files import Json, read_json, write_json, write_text
from megacode.corpus.card_page import render_card
from megacode.corpus.document import Counts
from megacode.corpus.machine.source import collected_counts
from megacode.corpus.recipe import MACHINE
from megacode.corpus.tally import Tally
from megacode.corpus.tokens import card_tokenizer
from megacode.corpus.work import RecipeWork
from megacode.data.progress import tell_skipped
from megacode.data.recipe_output import HELD_OUT
from megacode.data.records import EXAMPLES

FORMAT = 1
# The funnel's steps, in the order in which a document meets them.
STEPS = ("kind", "filters", "licences", "duplicates", "decontamination")


def is_complete(work: RecipeWork) -> bool:
    """Return whether the corpus is there: its manifest was made from the same facts, and no file is missing."""
    manifest = read_json(work.out.manifest)
    try:
        # Sizes, no hashes: this is asked at each call, and the corpus may have terabytes.
        sizes = [(work.out.corpus / item["path"]).stat().st_size == item["file_bytes"] for item in manifest["outputs"]]
    except (OSError, KeyError, TypeError):
        return False
    return manifest.get("identity") == work.identity and all(sizes) and work.out.card.exists()


def write_manifest(work: RecipeWork) -> Json | None:
    """Write the manifest and the card once the apply passes of all shards are done; None: some are missing.

    Raises:
        DataError: the files of a shard were made from other facts, or are gone.
    """
    if not all(work.out.applied(shard).exists() for shard in work.all_shards()):
        return None
    manifest = _manifest(work)
    for name, facts in manifest["funnel"].items():
        if facts["bad"]:
            tell_skipped(f"sources.{name}: ", facts["bad"], facts["skipped"])
    # The manifest last: it is what tells the next call that all is there.
    write_text(work.out.card, render_card(manifest))
    write_json(work.out.manifest, manifest)
    return manifest


def write_tokens(work: RecipeWork, manifest: Json) -> Json:
    """Write the manifest and the card of a complete corpus again, with the tokens of all shards.

    The rest of the manifest stays, since the directories of the other passes may have been removed.
    """
    applied = [read_json(work.out.applied(shard)) for shard in work.all_shards()]
    tallies = {name: _tally(applied, name).as_json() for name in manifest["sources"]}
    manifest = {**manifest, "sources": tallies, "tokenizer": _tokenizer(work)}
    write_text(work.out.card, render_card(manifest))
    write_json(work.out.manifest, manifest)
    return manifest


def _tokenizer(work: RecipeWork) -> Json:
    encode = card_tokenizer(work.recipe.tokenizer)
    return {"path": work.recipe.tokenizer, "hash": encode.hash} if encode is not None else {}


def _manifest(work: RecipeWork) -> Json:
    applied = [read_json(work.out.applied(shard)) for shard in work.all_shards()]
    for shard, one in zip(work.all_shards(), applied, strict=True):
        if one.get("identity") != work.identity:
            marker = work.out.applied(shard)
            raise DataError("it was made from another recipe or other inputs", str(marker), f"remove {marker}")
    outputs = [item for one in applied for item in one["outputs"]]
    report = read_json(work.out.report)
    names = [name + end for name in work.names for end in ("", HELD_OUT)]
    tallies = {name: _tally(applied, name) for name in names}
    mapped = [read_json(work.out.mapped(shard).counts)["sources"] for shard in work.all_shards()]
    return {
        "format": FORMAT,
        "version": megacode.__version__,
        "name": work.recipe.name,
        "command": work.command,
        "identity": work.identity,
        "recipe": work.facts["recipe"],
        "rules": work.facts["rules"],
        "tokenizer": _tokenizer(work),
        "shards": work.shards,
        "inputs": [_input(work, item) for item in work.facts["inputs"]],
        "outputs": outputs,
        "sources": {name: tally.as_json() for name, tally in tallies.items() if tally.documents},
        "funnel": {name: _funnel(work, name, mapped, applied) for name in work.names},
        "replaced": {name: _replaced(name, mapped) for name in work.names},
        "duplicates": report["duplicates"],
        "contamination": report["contamination"],
    }


def _input(work: RecipeWork, item: Json) -> Json:
    name = work.names[item["source"]] if item["source"] >= 0 else "(compared with)"
    return {"source": name, **{key: item[key] for key in ("path", "bytes", "hash")}}


def _tally(applied: list[Json], name: str) -> Tally:
    total = Tally()
    for one in applied:
        if name in one["tallies"]:
            total.merge(Tally.of_json(one["tallies"][name]))
    return total


def _funnel(work: RecipeWork, name: str, mapped: list[Json], applied: list[Json]) -> Json:
    """Return what came in from a source, and what each step dropped, by reason."""
    shards = [one[name] for one in mapped if name in one]
    steps: dict[str, Counts] = {step: Counts() for step in STEPS}
    stages = [*(shard["steps"] for shard in shards), *(one["steps"].get(name, {}) for one in applied)]
    for rows in stages:
        for step, counts in rows.items():
            steps[step].merge(Counts.of_json(counts))
    before = Counts()
    if work.recipe.sources[name].kind == MACHINE:
        before = Counts.of_json(collected_counts(work.recipe, name))
        steps["kind"].merge(before)
    totals = {key: sum(shard[key] for shard in shards) for key in ("records", "bad", "documents", "bytes")}
    # Files that were looked at and not collected are records that did not become documents.
    totals["records"] += sum(entry.documents for entry in before.reasons.values())
    # Shards follow the order of the inputs: these are the first of all.
    skipped = [one for shard in shards for one in shard["skipped"]][:EXAMPLES]
    return {
        **totals,
        "skipped": skipped,
        "steps": {step: counts.as_json() for step, counts in steps.items() if counts.reasons},
    }


def _replaced(name: str, mapped: list[Json]) -> dict[str, int]:
    total: dict[str, int] = {}
    for one in mapped:
        for kind, count in one.get(name, {}).get("replaced", {}).items():
            total[kind] = total.get(kind, 0) + count
    return dict(sorted(total.items()))

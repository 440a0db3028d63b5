"""What a recipe will do and cost, before it does: inputs, steps, passes, CPU time, disk, and what is there already."""

from __future__ import annotations

from pathlib import Path

from megacode.base.files import Json, read_json
from megacode.corpus.inputs import AGAINST
from megacode.corpus.machine.source import collected_files, wanted_bytes
from megacode.corpus.manifest import is_complete
from megacode.corpus.published import PublishedCorpus, published_corpus
from megacode.corpus.recipe import MACHINE, Recipe
from megacode.corpus.work import RecipeWork, differences_of, prepare
from megacode.data.machine_files import Shard

# Bytes of text a byte on disk. Measured on code and prose.
EXPANSION = {".gz": 4.0, ".zst": 4.5, ".zstd": 4.5, ".parquet": 3.0}
# MB of text per CPU-second, and microseconds a document, measured with tools/bench/corpus.py on one core.
RATES = {
    "read": 280.0, "filters": 60.0, "signatures": 42.0, "decontamination": 40.0, "write": 94.0, "tokens": 1.5,
    "personal data": 65.0,
}  # fmt: skip
SOLUTION_SECONDS = 0.2  # of the kind `synthetic`: two programs each
REDUCE_MICROSECONDS = 30.0
_MEGA = 1e6
_SOLUTION_BYTES = 1_000  # of a record of the kind `synthetic`, assumed
_DOCUMENT_BYTES = 4_000  # of an average document, where none has been seen yet
_SIGNATURE_BYTES = 800  # of arrays a document in the map directory
_SCRATCH_BYTES = 40  # of the reduce pass a document
_COMPRESSION = 4.0  # of the documents that are written


def plan_recipe(recipe: Recipe, shard: Shard | None = None) -> Json:
    """Return what a recipe will do; nothing is written, and inputs are looked at but not read.

    Args:
        recipe: the recipe.
        shard: of an array; decides the number of shards.

    Raises:
        DataError: an input is missing.
    """
    collected = collected_files(recipe)
    published = published_corpus(recipe)
    shards = int(published.manifest().get("shards", 0)) if published is not None else 0
    work = prepare(recipe, shard.count if shard else None, "", collected, hashed=False, known_shards=shards)
    # A plan collects nothing: for the kind `machine` it can only say how much will be searched for.
    missing = {name: wanted_bytes(recipe, name) for name, path in collected.items() if not path.exists()}
    text_bytes = sum(_text_bytes(item.path, item.bytes) for item in work.inputs) + sum(missing.values())
    documents = _documents(work, text_bytes)
    earlier = read_json(work.out.facts)
    return {
        "name": recipe.name,
        "output": recipe.output,
        "shards": work.shards,
        "sources": [_source(work, recipe, name, missing) for name in recipe.sources],
        "against": _files(work, AGAINST),
        "duplicates": work.facts["recipe"]["duplicates"],
        "decontaminate": work.facts["recipe"]["decontaminate"],
        "text_bytes": text_bytes,
        "documents": documents,
        "cpu_seconds": _cpu_seconds(work, recipe, text_bytes, documents),
        "disk_bytes": _disk_bytes(recipe, text_bytes, documents),
        "done": _done(work, published),
        "changed": list(differences_of(earlier, work.facts)) if earlier else [],
    }


def _files(work: RecipeWork, source: int) -> Json:
    items = [item for item in work.inputs if item.source == source]
    return {"files": len(items), "bytes": sum(item.bytes for item in items)}


def _source(work: RecipeWork, recipe: Recipe, name: str, missing: dict[str, int]) -> Json:
    source = recipe.sources[name]
    steps = source.model_dump(mode="json", exclude={"inputs", "kind"}, exclude_defaults=True)
    size = {"files": 0, "bytes": missing[name]} if name in missing else _files(work, work.names.index(name))
    return {
        "name": name,
        "kind": source.kind,
        **size,
        "collected": source.kind != MACHINE or name not in missing,
        **steps,
    }


def _text_bytes(path: str, size: int) -> int:
    return int(size * EXPANSION.get(Path(path).suffix, 1.0))


def _documents(work: RecipeWork, text_bytes: int) -> int:
    """Return the number of documents, extrapolated from the shards that are done."""
    documents, done_bytes = 0, 0
    for shard in work.all_shards():
        for came in read_json(work.out.mapped(shard).counts).get("sources", {}).values():
            documents, done_bytes = documents + came["documents"], done_bytes + came["bytes"]
    return round(text_bytes * documents / done_bytes) if done_bytes else text_bytes // _DOCUMENT_BYTES


def _cpu_seconds(work: RecipeWork, recipe: Recipe, text_bytes: int, documents: int) -> dict[str, float]:
    """Return the CPU time of each pass; that of the map pass as the shards that are done measured it."""
    mega = text_bytes / _MEGA
    spent, spent_bytes = 0.0, 0
    for shard in work.all_shards():
        place = work.out.mapped(shard)
        if place.counts.exists():
            spent += float(read_json(place.timing).get("cpu_seconds", 0.0))
            spent_bytes += sum(came["bytes"] for came in read_json(place.counts)["sources"].values())
    mapped = text_bytes * spent / spent_bytes if spent_bytes else _map_seconds(work, recipe, mega)
    again = mega / RATES["decontamination"] if recipe.decontaminate and recipe.decontaminate.held_out else 0.0
    # At most 64 MB are tokenized, see `tally.is_tokenized`.
    tokens = min(mega, 64.0) / RATES["tokens"] if recipe.tokenizer else 0.0
    return {
        "map": mapped,
        "reduce": documents * REDUCE_MICROSECONDS / 1e6 if recipe.duplicates else 0.0,
        "apply": mega / RATES["read"] + mega / RATES["write"] + again + tokens,
    }


def _map_seconds(work: RecipeWork, recipe: Recipe, mega: float) -> float:
    """Return the CPU time of the map pass by measured rates, where no shard has been done."""
    steps = ["read", "write"]
    steps += ["signatures"] if recipe.duplicates else []
    steps += ["decontamination"] if recipe.decontaminate else []
    seconds = sum(mega / RATES[step] for step in steps)
    for number, source in enumerate(recipe.sources.values()):
        own = sum(_text_bytes(item.path, item.bytes) for item in work.inputs if item.source == number)
        seconds += own / _MEGA / RATES["filters"] if source.filters is not None else 0.0
        seconds += own / _MEGA / RATES["personal data"] if source.personal_data is not None else 0.0
        # Programs cost a thousand times more than all other steps: a plan without them would be no plan.
        seconds += own / _SOLUTION_BYTES * SOLUTION_SECONDS if source.kind == "synthetic" else 0.0
    return seconds


def _disk_bytes(recipe: Recipe, text_bytes: int, documents: int) -> dict[str, int]:
    # As if no document were dropped: too much disk is a better surprise than too little.
    stored = int(text_bytes / _COMPRESSION)
    arrays = documents * _SIGNATURE_BYTES if recipe.duplicates else 0
    scratch = documents * _SCRATCH_BYTES if recipe.duplicates else 0
    return {"map": stored + arrays, "reduce": scratch, "corpus": stored}


def _done(work: RecipeWork, published: PublishedCorpus | None) -> Json:
    shards = work.all_shards()
    if published is not None and published.made(work.identity) is not None:
        # The local results were removed then.
        return {"map": len(shards), "reduce": True, "apply": len(shards), "complete": True}
    return {
        "map": sum(work.out.mapped(shard).counts.exists() for shard in shards),
        "reduce": work.out.report.exists(),
        "apply": sum(work.out.applied(shard).exists() for shard in shards),
        "complete": published is None and is_complete(work),
    }

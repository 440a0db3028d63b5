"""What a recipe has to do in its output directory, and the proof that earlier passes did the same."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megacode.base.errors import ConfigError, Problem
from megacode.base.files import Json, digest, read_json, to_json, write_json
from megacode.corpus.inputs import AGAINST, Input, identify
from megacode.corpus.kinds import WHOLE_FILES
from megacode.corpus.layout import CorpusDir
from megacode.corpus.made_before import discard, refuse_foreign, refuse_own_files
from megacode.corpus.recipe import MACHINE, Recipe
from megacode.corpus.rules import rules
from megacode.data.compressed import is_compressed
from megacode.data.inputs import find_inputs
from megacode.data.machine_files import Shard

# The unit of work that a kill may cost.
SHARD_BYTES = 64 << 20
# Of a compressed file: its shards all read it from the beginning.
SHARDS_PER_FILE = 16
MOST_SHARDS = 10_000
MOST_SHOWN = 8  # differences to an earlier call


@dataclass(frozen=True)
class RecipeWork:
    """A recipe, its inputs and its output directory.

    Attributes:
        recipe: the recipe.
        out: the output directory.
        inputs: in the order of reading: documents to compare with first, then the sources in the recipe's order.
        shards: number of shards.
        facts: what the results depend on.
        command: the command line, for the manifest.
    """

    recipe: Recipe
    out: CorpusDir
    inputs: tuple[Input, ...]
    shards: int
    facts: Json
    command: str

    @property
    def identity(self) -> str:
        """A digest of the facts; each marker carries it."""
        # A file that was copied has a new time and the same contents.
        inputs = [{key: value for key, value in item.items() if key != "modified"} for item in self.facts["inputs"]]
        return digest(to_json({**self.facts, "inputs": inputs}))

    @property
    def names(self) -> list[str]:
        """The names of the sources."""
        return list(self.recipe.sources)

    def all_shards(self) -> list[Shard]:
        """Return all shards, in order."""
        return [Shard(index, self.shards) for index in range(self.shards)]

    def parts(self, shard: Shard) -> Iterator[tuple[int, Path, tuple[int, int]]]:
        """Yield the number of the source, the file, and the bytes of it, for each stretch of a shard."""
        for number, start, end in shard.parts([item.bytes for item in self.inputs]):
            yield self.inputs[number].source, self.inputs[number].place(), (start, end)

    def total_bytes(self) -> int:
        """Return the size of all inputs on disk."""
        return sum(item.bytes for item in self.inputs)


def prepare(
    recipe: Recipe,
    shards: int | None,
    command: str,
    collected: Mapping[str, Path],
    *,
    hashed: bool = True,
    known_shards: int = 0,
) -> RecipeWork:
    """Find and identify the inputs of a recipe.

    Args:
        recipe: the recipe.
        shards: number of shards; None: as in an earlier call, else by the size of the inputs.
        command: the command line.
        collected: for sources of kind `machine`, the files that hold their documents.
        hashed: read the inputs to hash them; otherwise only their sizes and times are looked at.
        known_shards: of the corpus that is published; 0: none is.

    Raises:
        ConfigError: an earlier call had another number of shards, or an input is listed twice.
        DataError: an input is missing or cannot be read.
    """
    out = CorpusDir(recipe.directory)
    # Hashes and the number of shards are kept: each of a thousand array tasks comes through here.
    earlier = read_json(out.facts)
    known = {item["path"]: item for item in earlier.get("inputs", [])}
    inputs = tuple(identify(list(_files(recipe, collected)), known, hashed=hashed))
    known_shards = int(earlier.get("shards", 0)) or known_shards
    count = shards or known_shards or shards_for([(item.path, item.bytes) for item in inputs])
    refuse_own_files(out, recipe.output, [item.path for item in inputs])
    facts = {
        "recipe": described(recipe),
        "inputs": [item.as_json() for item in inputs],
        "rules": rules(recipe),
        "shards": count,
    }
    return RecipeWork(recipe, out, inputs, count, facts, command)


def shards_for(files: list[tuple[str, int]]) -> int:
    """Return the number of shards for files of these paths and sizes in bytes."""
    by_size = -(-sum(size for _, size in files) // SHARD_BYTES)
    # A small file beside a large one adds nothing to what the large one can be divided into.
    most = sum(min(-(-size // SHARD_BYTES), _most_of(path)) for path, size in files)
    return max(1, min(by_size, most, MOST_SHARDS))


def _most_of(path: str) -> int:
    return SHARDS_PER_FILE if is_compressed(Path(path)) else MOST_SHARDS


def described(recipe: Recipe) -> Json:
    """Return the settings that results depend on."""
    document = recipe.model_dump(mode="json")
    # The directory may be moved, a name changes no document, and a tokenizer is often trained on the corpus itself.
    return {key: value for key, value in document.items() if key not in ("name", "output", "work_dir", "tokenizer")}


def _files(recipe: Recipe, collected: Mapping[str, Path]) -> Iterator[tuple[int, Path]]:
    if recipe.duplicates is not None and recipe.duplicates.against:
        for path in find_inputs(recipe.duplicates.against, "duplicates.against"):
            yield AGAINST, path
    for number, (name, source) in enumerate(recipe.sources.items()):
        if source.kind == MACHINE:
            yield from ((number, path) for path in [collected[name]] if path.exists())
        else:
            also = tuple(WHOLE_FILES.get(source.kind, ()))
            yield from ((number, path) for path in find_inputs(source.inputs, f"sources.{name}.inputs", also=also))


def settle(work: RecipeWork, overwrite: bool) -> None:
    """Write down what the passes depend on; refuse results that were made from something else.

    Args:
        work: what is to be done.
        overwrite: remove such results instead.

    Raises:
        ConfigError: names each recipe setting, input or version that differs from the earlier call; or the directory
            holds files that no recipe made.
    """
    out = work.out
    refuse_foreign(out)
    earlier = read_json(out.facts)
    differences = list(differences_of(earlier, work.facts)) if earlier else []
    if differences and not overwrite:
        # A directory that was moved changes every input: the first ones say what happened.
        more = [f"and {len(differences) - MOST_SHOWN:,} more differences"] if len(differences) > MOST_SHOWN else []
        raise ConfigError(problems=[_changed(out, difference) for difference in [*differences[:MOST_SHOWN], *more]])
    if differences:
        # The facts go last: a kill before that leaves a directory that still says what it was made from.
        for old in (out.map, out.reduce, out.apply, out.corpus, out.facts):
            discard(old)
    # Times of modification may have changed; the next call need not hash those files again.
    if work.facts != {key: value for key, value in earlier.items() if key != "identity"}:
        write_json(out.facts, {**work.facts, "identity": work.identity})


def refuse_changed_recipe(recipe: Recipe, overwrite: bool) -> None:
    """Refuse another recipe than the output directory was made from, before anything is collected for it.

    Raises:
        ConfigError: names each setting that differs.
    """
    out = CorpusDir(recipe.directory)
    earlier = read_json(out.facts).get("recipe")
    if earlier and not overwrite:
        differences = list(_setting_differences("recipe", earlier, described(recipe)))
        if differences:
            raise ConfigError(problems=[_changed(out, difference) for difference in differences])


def _changed(out: CorpusDir, difference: str) -> Problem:
    fix = "give --overwrite to make the corpus again from the start, or choose another output directory"
    return Problem(difference, str(out.path), fix)


def differences_of(earlier: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """Yield what has changed since the earlier call, in words."""
    yield from _setting_differences("recipe", earlier.get("recipe", {}), now["recipe"])
    yield from _setting_differences("rules", earlier.get("rules", {}), now["rules"])
    old_inputs = {(item["source"], item["path"]): item for item in earlier.get("inputs", [])}
    new_inputs = {(item["source"], item["path"]): item for item in now["inputs"]}
    for place, item in new_inputs.items():
        old = old_inputs.get(place)
        if old is None:
            yield f"there is a new input: {item['path']}"
        elif item["hash"] and old["hash"] != item["hash"]:
            yield f"the input {item['path']} has changed: {old['bytes']:,} bytes before, {item['bytes']:,} now"
    for _, path in old_inputs.keys() - new_inputs.keys():
        yield f"an input is no longer there: {path}"
    if list(old_inputs) != list(new_inputs) and old_inputs.keys() == new_inputs.keys():
        yield "the inputs are listed in another order"
    if earlier.get("shards") != now["shards"]:
        yield f"the earlier call had {earlier.get('shards')} shards, this one {now['shards']}"


def _setting_differences(subject: str, earlier: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    verb = "have" if subject.endswith("s") else "has"
    for key, old, new in _leaves("", earlier, now):
        yield f"the {subject} {verb} changed: {key} was {_short(old)}, now {_short(new)}"


def _leaves(key: str, old: Any, new: Any) -> Iterator[tuple[str, Any, Any]]:
    """Yield the settings in which two documents differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        for name in [*old, *(name for name in new if name not in old)]:
            yield from _leaves(f"{key}.{name}".lstrip("."), old.get(name), new.get(name))
    elif old != new:
        yield key, old, new


def _short(value: Any) -> str:
    text = "absent" if value is None else to_json(value)
    return text if len(text) <= 60 else text[:57] + "..."

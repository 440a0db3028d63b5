"""Run a recipe: prepare, map each shard, reduce, apply each shard. A pass whose result exists is skipped.

A call without a shard does all of it on this machine. On a cluster, each map and apply pass of a shard and the one
reduce pass are separate calls; their results are the same to the byte.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from contextlib import ExitStack, nullcontext, suppress
from pathlib import Path
from typing import Literal

from megacode.base.child_processes import end_with
from megacode.base.claims import claimed
from megacode.base.errors import ConfigError
from megacode.base.files import Json, read_json
from megacode.base.progress import bar
from megacode.base.user_paths import refuse_unwritable
from megacode.corpus.apply_pass import apply_shard, count_tokens, is_applied
from megacode.corpus.contaminated import SuiteItems, benchmark_index, write_items
from megacode.corpus.decontaminate.index import Index
from megacode.corpus.machine.source import collect_sources
from megacode.corpus.manifest import is_complete, write_manifest, write_tokens
from megacode.corpus.map_pass import map_shard
from megacode.corpus.published import PublishedCorpus, published_corpus
from megacode.corpus.recipe import Recipe
from megacode.corpus.reduce_pass import reduce_all, refuse_unreduced
from megacode.corpus.shards import Numbered, open_shards
from megacode.corpus.tokens import card_tokenizer
from megacode.corpus.work import RecipeWork, prepare, refuse_changed_recipe, settle
from megacode.data.machine_files import Shard

log = logging.getLogger(__name__)

Pass = Literal["prepare", "map", "reduce", "apply"]
PASSES: tuple[Pass, ...] = ("prepare", "map", "reduce", "apply")


def run_recipe(
    recipe: Recipe,
    command: str,
    *,
    shard: Shard | None = None,
    task: Shard | None = None,
    only: Pass | None = None,
    processes: int = 1,
    overwrite: bool = False,
    suite_items: SuiteItems | None = None,
) -> Json | None:
    """Run a recipe, or what is left of it.

    Args:
        recipe: the recipe.
        command: the command line, for the manifest.
        shard: run the map or apply pass of this one only; `count` is the number of shards.
        task: run the map or apply pass of every `count`-th shard only, from number `index` on.
        only: run one pass only; None: all that are possible.
        processes: shards that are worked on at the same time.
        overwrite: replace what an earlier call made from another recipe or other inputs.
        suite_items: reads the items of a suite of lm-eval; only called for suites that the recipe names.

    Returns:
        The manifest, once the corpus is complete; None before.

    Raises:
        ConfigError: the output cannot be written, was made from something else, or another process makes it.
        DataError: an input is missing or damaged, or nothing is left of a source.
    """
    _refuse_needless(shard, task, only)
    out, whole = recipe.directory, shard is None and task is None
    refuse_unwritable(out, "output", directory=True)
    published = published_corpus(recipe)
    # Commands for some shards run side by side: they claim their shards instead.
    with claimed(out, "output") if whole else nullcontext():
        work = _ready(recipe, shard, command, overwrite, whole, suite_items, published)
        if published is not None:
            if (published_manifest := published.made(work.identity)) is not None:
                _finish(work, published)
                _tell_uncounted(recipe, published_manifest)
                return published_manifest
            published.begin(overwrite)
        settle(work, overwrite)
        # Without this, removing map/ and reduce/ to free their space would make the next call start again.
        if is_complete(work):
            manifest = _counted(work, processes)
            return manifest if published is None else _deliver(work, published, whole)
        shards = [shard] if shard else work.all_shards()[task.index :: task.count] if task else work.all_shards()
        if only in (None, "map"):
            _each_shard(_map_one, work, [one for one in shards if not work.out.mapped(one).counts.exists()], processes)
        if only == "reduce" or (only is None and whole):
            reduce_all(work)
        if only == "apply" or (only is None and whole):
            _each_shard(_apply_one, work, [one for one in shards if not is_applied(work, one)], processes)
            return write_manifest(work) if published is None else _deliver(work, published, whole)
        return None


def _deliver(work: RecipeWork, published: PublishedCorpus, whole: bool) -> Json | None:
    """Upload a corpus whose shards are all done, and return its manifest; None: some are missing, or another does it.

    Args:
        work: what was done.
        published: where it goes.
        whole: whether this call is the only one; else, of the last tasks of an array, several may come here.
    """
    # Before the claim: whoever holds it must be one that finds all shards done, or nobody would upload.
    if not all(is_applied(work, shard) for shard in work.all_shards()) and not is_complete(work):
        return None
    with ExitStack() as stack:
        try:
            stack.enter_context(claimed(work.out.corpus, "output"))
        except ConfigError:
            if whole:
                raise
            log.info("another task uploads the corpus")
            return None
        manifest = published.made(work.identity)
        if manifest is None:
            manifest = read_json(work.out.manifest) if is_complete(work) else write_manifest(work)
            published.publish()
            published.finish()
        return manifest


def _finish(work: RecipeWork, published: PublishedCorpus) -> None:
    """Do what a call that was killed after its upload has left undone, unless another task is about to."""
    if published.is_unfinished:
        with suppress(ConfigError), claimed(work.out.corpus, "output"):
            published.finish()


def _tell_uncounted(recipe: Recipe, manifest: Json) -> None:
    """Warn where a published corpus does not have the tokens of the recipe's tokenizer: its documents are not here."""
    encode = card_tokenizer(recipe.tokenizer)
    if encode is not None and manifest["tokenizer"].get("hash") != encode.hash:
        message = (
            "%s is published, so its tokens are not counted with %s; `megacode data inspect --card` counts those of "
        )
        log.warning(message + "the data set that is made of it", recipe.output, recipe.tokenizer)


def _counted(work: RecipeWork, processes: int) -> Json:
    """Return the manifest of a complete corpus, once its tokens are counted with the recipe's tokenizer."""
    encode, manifest = card_tokenizer(work.recipe.tokenizer), read_json(work.out.manifest)
    if encode is None or manifest["tokenizer"].get("hash") == encode.hash:
        return manifest
    _each_shard(count_tokens, work, [one for one in work.all_shards() if not is_applied(work, one)], processes)
    return write_tokens(work, manifest)


def _ready(
    recipe: Recipe,
    shard: Shard | None,
    command: str,
    overwrite: bool,
    whole: bool,
    suite_items: SuiteItems | None,
    published: PublishedCorpus | None,
) -> RecipeWork:
    """Return what is to be done."""
    # First of all: collecting files and reading suites take minutes, which a refused recipe should not cost.
    refuse_changed_recipe(recipe, overwrite)
    collected = collect_sources(recipe, alone=whole)
    write_items(recipe, suite_items, again=overwrite)
    # The local facts may be gone since, and another number of shards would be another corpus.
    shards = int(published.manifest().get("shards", 0)) if published is not None else 0
    return prepare(recipe, shard.count if shard else None, command, collected, known_shards=shards)


def _refuse_needless(shard: Shard | None, task: Shard | None, only: Pass | None) -> None:
    if shard is not None and task is not None:
        raise ConfigError("a shard and a task cannot be given together", "--task", "give one of them")
    for flag, value in (("--shard", shard), ("--task", task)):
        if value is not None and only in ("prepare", "reduce"):
            raise ConfigError(f"the {only} pass is not done by shard", flag, "leave it out")


def _each_shard(
    one: Callable[[RecipeWork, Shard], None], work: RecipeWork, shards: list[Shard], processes: int
) -> None:
    """Run a pass for each shard, several at a time."""
    label = one.__name__.strip("_").removesuffix("_one")
    with bar(label, len(shards)) as advance:
        if processes == 1 or len(shards) <= 1:
            for shard in shards:
                one(work, shard)
                advance(1)
            return
        # Fresh interpreters: a fork would copy the threads' locks of the hashing libraries.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(min(processes, len(shards)), context, _in_pool, (os.getpid(),)) as pool:
            futures = [pool.submit(one, work, shard) for shard in shards]
            for future in futures:
                future.add_done_callback(lambda _: advance(1))
            try:
                # What stops one shard, such as a full disk, would stop the others too, hours later.
                done, _ = wait(futures, return_when=FIRST_EXCEPTION)
                for future in done:
                    future.result()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise


def _in_pool(parent: int) -> None:
    """Prepare a process of the pool: it ends with its parent, however that ends, and uses one core."""
    # The Rust libraries would start a thread for each core in each process.
    os.environ["RAYON_NUM_THREADS"] = "1"
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent gets it too, and ends the pool
    end_with(parent)


# What all shards of a recipe need, made once a process: by the identity of the work, and its directory.
_benchmarks_of: dict[str, Index | None] = {}
_documents_of: dict[tuple[str, Path], Numbered] = {}


def _map_one(work: RecipeWork, shard: Shard) -> None:
    if work.identity not in _benchmarks_of:
        _benchmarks_of[work.identity] = benchmark_index(work)
    map_shard(work, shard, _benchmarks_of[work.identity])


def _apply_one(work: RecipeWork, shard: Shard) -> None:
    place = work.identity, work.out.path
    if place not in _documents_of:
        refuse_unreduced(work)
        _documents_of[place] = Numbered(open_shards(work))
    apply_shard(work, shard, _documents_of[place], card_tokenizer(work.recipe.tokenizer))

"""The sources of a run: opened, checked against manifests and tokenizer, and their sizes for the plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction
from math import ceil

from megacode.base.errors import ConfigError, DataError, MegacodeError, Problem
from megacode.base.urls import is_url
from megacode.config.data import Source
from megacode.config.run import RunConfig
from megacode.data import manifest as manifests
from megacode.data import objects, source_checks
from megacode.data.document_form import fill_in_the_middle, form_of
from megacode.data.indexed import bin_path, idx_path
from megacode.data.manifest import Manifest
from megacode.data.source_checks import tokenizer_facts
from megacode.data.source_stream import SourceStream, check_take
from megacode.data.tokenizer import load_tokenizer
from megacode.plan.phases import SourceSize


def open_source(config: RunConfig, name: str) -> SourceStream:
    """Open one source of a run.

    Raises:
        ConfigError: fill in the middle is on, and the tokenizer has no sentinels; or see `SourceStream`.
        DataError: see `SourceStream`.
    """
    objects.use(config.objects)
    held = config.validation
    source, length = config.sources[name], config.train.seq_length
    fim = fill_in_the_middle(config, name)
    return SourceStream(name, source.path, held.fraction, length, held.samples, source.take, fim, source.loss)


def open_streams(config: RunConfig, *, check: bool = True) -> dict[str, SourceStream]:
    """Open all sources of a run; check that they are what their manifests say, and fit its tokenizer and vocabulary.

    Args:
        config: the run.
        check: read blocks of every source; False if another process of this node does.

    Raises:
        DataError: with the problems of all sources at once.
    """
    # Parsing a large tokenizer takes a second, so it happens once, not once a source.
    tokenizer_hash = load_tokenizer(config.tokenizer).hash if check and config.tokenizer else None
    vocab_size = vocabulary_size(config) if check else 0
    streams: dict[str, SourceStream] = {}
    problems: list[Problem] = []
    for name in sorted(config.sources):
        try:
            streams[name] = stream = open_source(config, name)
            if check:
                _check_stream(stream, tokenizer_hash, vocab_size)
            elif is_url(stream.prefix):
                # An object may be replaced between two ranks' first looks; the blocks are in this node's cache.
                manifests.check(stream.prefix)
        except MegacodeError as error:
            problems += error.problems
    if problems:
        raise DataError(problems=problems)
    return streams


def _check_stream(stream: SourceStream, tokenizer_hash: str | None, vocab_size: int) -> None:
    """Check that a source is what its manifest says, made with the run's tokenizer, and within its vocabulary."""
    manifest = manifests.check(stream.prefix)
    if tokenizer_hash is not None:
        manifests.check_tokenizer(stream.prefix, manifest, tokenizer_hash)
    stream.check_vocabulary(vocab_size)
    stream.check_fim()


def vocabulary_size(config: RunConfig) -> int:
    """Return the size of a run's vocabulary, without padding: `model.vocab_size`, else the tokenizer's.

    Raises:
        ConfigError: if the config has neither, or the first is smaller than the second.
        DataError: if the tokenizer cannot be read.
    """
    # The config may ask for more rows than the tokenizer has, never for fewer.
    given, facts = config.model.vocab_size, tokenizer_facts(config.tokenizer)
    if config.tokenizer is None:
        if given is None:
            fix = "set the tokenizer that made the data, or set model.vocab_size"
            raise ConfigError("the vocabulary size is unknown", "tokenizer", fix)
        return given
    if facts is None:
        needed = load_tokenizer(config.tokenizer).vocab_size if given is None else 0
    else:
        needed = int(facts["vocab_size"])
    if given is not None and given < needed:
        message = f"{given:,} is less than the {needed:,} tokens of the tokenizer"
        raise ConfigError(message, "model.vocab_size", f"set it to {needed} or more, or remove it")
    return given or needed


def stream_sizes(streams: Mapping[str, SourceStream]) -> dict[str, SourceSize]:
    """Return the sizes of opened sources."""
    return {name: stream.size() for name, stream in streams.items()}


def source_sizes(config: RunConfig, allow_declared: bool = False) -> dict[str, SourceSize]:
    """Return the sizes of all sources of a run, with warnings; reads headers, manifests and a few tokens.

    Args:
        config: the run.
        allow_declared: use the size declared in the config if a data set does not exist yet.

    Raises:
        DataError: with the problems of all sources at once; sources of different tokenizers are one.
    """
    objects.use(config.objects)
    sizes: dict[str, SourceSize] = {}
    problems: list[Problem] = []
    tokenizer = tokenizer_facts(config.tokenizer)
    described: dict[str, Manifest] = {}
    for name, source in sorted(config.sources.items()):
        try:
            # Only a data set that is wholly missing may be planned by its declared size; half of one is damage.
            absent = not bin_path(source.path).exists() and not idx_path(source.path).exists()
            if absent and allow_declared and source.tokens is not None:
                sizes[name] = _declared(name, source, config)
                continue
        except MegacodeError as error:  # also where object storage cannot be reached
            problems += error.problems
            continue
        try:
            stream, manifest = open_source(config, name), manifests.read(source.path)
            warnings = source_checks.notes(stream.data, manifest, source, tokenizer)
            size = stream.size()
            # Fill in the middle can be planned before the tokenizer is there; the stream then knows nothing of it.
            sizes[name] = replace(size, form=form_of(config, name) or size.form, notes=warnings)
            if manifest is not None:
                described[name] = manifest
        except MegacodeError as error:
            problems += [
                _with_hint(problem, source.path, name, allow_declared) if absent else problem
                for problem in error.problems
            ]
    made_by = {name: manifest.tokenizer for name, manifest in described.items() if manifest.tokenizer}
    problems += source_checks.tokenizer_problems(made_by, tokenizer)
    problems += source_checks.template_problems(described)
    if problems:
        raise DataError(problems=problems)
    return sizes


def _declared(name: str, source: Source, config: RunConfig) -> SourceSize:
    assert source.tokens is not None
    held_out = ceil(Fraction(str(config.validation.fraction)) * source.tokens)
    if source.take is not None:
        check_take(name, source.take, source.tokens - held_out, config.train.seq_length)
    tokens = source.take or source.tokens - held_out
    return SourceSize(name, tokens, 0, held_out, form=form_of(config, name))


def _with_hint(problem: Problem, path: str, name: str, allow_declared: bool) -> Problem:
    """Add the data set that was probably meant, and how to plan without it."""
    similar = source_checks.similar_data(path)
    fix = f"did you mean {similar}?" if similar else problem.fix
    declare = f"; to plan without it, declare its size: sources.{name}.tokens" if allow_declared else ""
    return Problem(problem.what, f"sources.{name}.path: {problem.where}", fix + declare)

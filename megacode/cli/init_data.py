"""Read the data sets and the tokenizer of a new config; refuse those that do not belong together."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass

from megacode.base.errors import ConfigError, DataError, MegacodeError, Problem
from megacode.config.model import TokenizerConfig
from megacode.data import manifest as manifests
from megacode.data.indexed import IndexedDataset, idx_path
from megacode.data.source_checks import similar_data
from megacode.data.source_stream import SourceStream
from megacode.data.tokenizer import Tokenizer, load_tokenizer

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")  # no dot: `sources.NAME.path=...` on a command line splits at dots
_FRACTIONS = (0.005, 0.02, 0.05, 0.1)  # held-out shares to try, smallest first
_HELD_OUT_WINDOWS = 16  # of each source; a loss averaged over fewer is too noisy


@dataclass(frozen=True)
class DataSet:
    """One source of the new config.

    Attributes:
        name: of the source.
        prefix: path of its files without .bin and .idx, as given.
        tokens: number of tokens.
        has_manifest: whether a manifest says which tokenizer made it.
    """

    name: str
    prefix: str
    tokens: int
    has_manifest: bool


def read_data_sets(given: Sequence[str], tokenizer: TokenizerConfig) -> tuple[list[DataSet], Tokenizer]:
    """Read the data sets of `--data NAME=PREFIX`, and their tokenizer.

    Raises:
        ConfigError: invalid names.
        DataError: data sets that are missing, damaged or made by another tokenizer, all at once.
    """
    named = _named(given)
    made_with = load_tokenizer(tokenizer)
    data_sets: list[DataSet] = []
    problems: list[Problem] = []
    for name, prefix in named.items():
        try:
            data, manifest = IndexedDataset(prefix), manifests.check(prefix)
            problems += _foreign(name, prefix, manifest, made_with)
            data_sets.append(DataSet(name, prefix, data.tokens, bool(manifest and manifest.tokenizer)))
        except MegacodeError as error:  # collected, so that all are reported at once
            problems += [_placed(problem, name, prefix) for problem in error.problems]
    if problems:
        raise DataError(problems=problems)
    return data_sets, made_with


def _foreign(name: str, prefix: str, manifest: manifests.Manifest | None, given: Tokenizer) -> list[Problem]:
    """Return a problem if another tokenizer made the data set; its token ids would mean other words."""
    try:
        manifests.check_tokenizer(prefix, manifest, given.hash)
    except DataError as error:
        fix = "give --tokenizer the one that made it, or preprocess it again with this one"
        return [Problem(problem.what, f"--data {name}={prefix}", fix) for problem in error.problems]
    return []


def _named(given: Sequence[str]) -> dict[str, str]:
    """Return prefixes by source name, from `NAME=PREFIX`."""
    problems: list[Problem] = []
    named: dict[str, str] = {}
    for text in given:
        name, equals, prefix = text.partition("=")
        where = f"--data {text}"
        if not equals or not prefix:
            problems.append(
                Problem("the value is not NAME=PREFIX", where, "write for example --data code=data/code_text_document")
            )
        elif not _NAME.fullmatch(name):
            legal = re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-_") or "text"
            what = f"the name {name!r} may only hold letters, digits, - and _"
            problems.append(Problem(what, where, f"write for example --data {legal}={prefix}"))
        elif name in named:
            problems.append(Problem(f"the name {name!r} is given twice", where, "give each data set a name of its own"))
        named[name] = os.path.expanduser(prefix)  # shells do not expand a ~ after NAME=
    if problems:
        raise ConfigError(problems=problems)
    return named


def _placed(problem: Problem, name: str, prefix: str) -> Problem:
    """Return the problem with the option that names the data set, and a suggestion if a similar path exists."""
    # A wrong path is mostly a typo. Damaged files do exist, and keep their own fix.
    similar = "" if idx_path(prefix).exists() else similar_data(prefix)
    where = f"--data {name}={prefix}"
    fix = f"did you mean --data {name}={similar}?" if similar else problem.fix
    if problem.where not in ("", prefix):
        where += f": {problem.where}"
    return Problem(problem.what, where, fix)


def open_streams(data_sets: Sequence[DataSet], seq_length: int) -> tuple[float, dict[str, SourceStream]]:
    """Return the smallest share that holds out enough windows of every source, and the sources without it.

    Raises:
        DataError: a data set is too short for any share.
    """
    # Whole documents are held out. So a small share of few long documents can hold out nothing: then try a larger one.
    for fraction in _FRACTIONS:
        try:
            streams = {data.name: SourceStream(data.name, data.prefix, fraction, seq_length) for data in data_sets}
        except DataError as error:
            if fraction == _FRACTIONS[-1]:
                fix = "give a smaller --seq-length, or a data set of more and shorter documents"
                problems = [Problem(problem.what, problem.where, fix) for problem in error.problems]
                raise DataError(problems=problems) from None
            continue
        fewest = min(stream.validation_windows for stream in streams.values())
        if fraction == _FRACTIONS[-1] or fewest >= _HELD_OUT_WINDOWS:
            break
    return fraction, streams

"""The data sets and the tokenizer of a new config: read, and refused where they do not belong together."""

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
from megacode.data.tokenizer import Tokenizer, load_tokenizer
from megacode.data.windows import SourceStream

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")  # no dot: `sources.NAME.path=...` on a command line splits at dots
_FRACTIONS = (0.005, 0.02, 0.05, 0.1)
_HELD_OUT_WINDOWS = 16  # of each source; a loss over fewer says little


@dataclass(frozen=True)
class DataSet:
    """One source of the new config.

    Attributes:
        name: of the source.
        prefix: path of its files without .bin and .idx, as given.
        tokens: it has.
        has_manifest: whether it is known which tokenizer made it.
    """

    name: str
    prefix: str
    tokens: int
    has_manifest: bool


def read_data_sets(given: Sequence[str], tokenizer: TokenizerConfig) -> tuple[list[DataSet], Tokenizer]:
    """Read the data sets of `--data NAME=PREFIX`, and their tokenizer.

    Raises:
        ConfigError: names that cannot be used.
        DataError: data sets that are missing, damaged or made by another tokenizer, all at once.
    """
    named = _named(given)
    made_with = load_tokenizer(tokenizer)
    found: list[DataSet] = []
    problems: list[Problem] = []
    for name, prefix in named.items():
        try:
            data, manifest = IndexedDataset(prefix), manifests.check(prefix)
            problems += _foreign(name, prefix, manifest, made_with)
            found.append(DataSet(name, prefix, data.tokens, bool(manifest and manifest.tokenizer)))
        except MegacodeError as error:
            problems += [_placed(problem, name, prefix) for problem in error.problems]
    if problems:
        raise DataError(problems=problems)
    return found, made_with


def _foreign(name: str, prefix: str, manifest: manifests.Manifest | None, given: Tokenizer) -> list[Problem]:
    """Return what is wrong with a data set that another tokenizer made."""
    try:
        manifests.check_tokenizer(prefix, manifest, given.hash)
    except DataError as error:
        fix = "give --tokenizer the one that made it, or preprocess it again with this one"
        return [Problem(one.what, f"--data {name}={prefix}", fix) for one in error.problems]
    return []


def _named(given: Sequence[str]) -> dict[str, str]:
    problems: list[Problem] = []
    named: dict[str, str] = {}
    for text in given:
        name, equals, prefix = text.partition("=")
        where = f"--data {text}"
        if not equals or not prefix:
            problems.append(
                Problem("it is not NAME=PREFIX", where, "write for example --data code=data/code_text_document")
            )
        elif not _NAME.fullmatch(name):
            legal = re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-_") or "text"
            what = f"the name {name!r} may only hold letters, digits, - and _"
            problems.append(Problem(what, where, f"write for example --data {legal}={prefix}"))
        elif name in named:
            problems.append(Problem(f"the name {name!r} is given twice", where, "give each data set a name of its own"))
        named[name] = os.path.expanduser(prefix)  # shells leave a ~ behind NAME= alone
    if problems:
        raise ConfigError(problems=problems)
    return named


def _placed(problem: Problem, name: str, prefix: str) -> Problem:
    """Say which option names a data set, and which one was probably meant."""
    similar = "" if idx_path(prefix).exists() else similar_data(prefix)
    where = f"--data {name}={prefix}"
    fix = f"did you mean --data {name}={similar}?" if similar else problem.fix
    if problem.where not in ("", prefix):
        where += f": {problem.where}"
    return Problem(problem.what, where, fix)


def open_streams(data_sets: Sequence[DataSet], seq_length: int) -> tuple[float, dict[str, SourceStream]]:
    """Return a share to hold out that gives every source a loss worth reading, and the sources without it.

    Raises:
        DataError: a data set is too short for any share.
    """
    for fraction in _FRACTIONS:
        try:
            streams = {one.name: SourceStream(one.name, one.prefix, fraction, seq_length) for one in data_sets}
        except DataError as error:
            if fraction == _FRACTIONS[-1]:
                fix = "give a smaller --seq-length, or a data set of more and shorter documents"
                raise DataError(problems=[Problem(one.what, one.where, fix) for one in error.problems]) from None
            continue
        if fraction == _FRACTIONS[-1] or min(one.validation_windows for one in streams.values()) >= _HELD_OUT_WINDOWS:
            break
    return fraction, streams

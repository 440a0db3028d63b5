"""The sources whose steps are asked about: their held-out windows, or those of any other data set."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from megacode.base.errors import ConfigError, DataError, MegacodeError, Problem
from megacode.config.run import RunConfig
from megacode.data import manifest as manifests
from megacode.data import objects
from megacode.data.source_masks import Loss
from megacode.data.source_stream import SourceStream, any_counts
from megacode.data.windows import open_source, vocabulary_size
from megacode.plan.sources import windows

log = logging.getLogger(__name__)

LEAST = 2  # windows; a single one says nothing about its spread


@dataclass(frozen=True)
class SourceWindows:
    """Some windows of a source.

    Attributes:
        name: of the source.
        stream: the opened data set.
        first_tokens: where the windows begin; evenly spread.
        held_out: whether they are held out by the run; otherwise the data set is not one of the run's sources.
    """

    name: str
    stream: SourceStream
    first_tokens: Sequence[int]
    held_out: bool


def open_windows(config: RunConfig, tokenizer_hash: str, asked: Sequence[str], samples: int) -> list[SourceWindows]:
    """Open the sources that are asked about.

    Args:
        config: of the run.
        tokenizer_hash: of its tokenizer.
        asked: names of the run's sources, or NAME=PREFIX of other data sets; empty: all sources of the run.
        samples: windows of each source; a source with fewer gives all that it has.

    Raises:
        ConfigError: an unknown source, one that holds out nothing, or one named twice.
        DataError: a data set cannot be read, is too short, or was made with another tokenizer; all at once.
    """
    names = [one.partition("=")[0].strip() for one in asked or sorted(config.sources)]
    if problems := list(_problems(config, asked, names)):
        raise ConfigError(problems=problems)
    objects.use(config.objects)
    found: list[SourceWindows] = []
    failed: list[Problem] = []
    vocabulary = vocabulary_size(config)
    for name, text in zip(names, asked or names, strict=True):
        prefix = text.partition("=")[2].strip()
        try:
            opened = _other(config, name, prefix, samples) if "=" in text else _held_out(config, name, samples)
            manifest = manifests.check(opened.stream.prefix)
            manifests.check_tokenizer(opened.stream.prefix, manifest, tokenizer_hash)
            opened.stream.check_vocabulary(vocabulary)
            found.append(opened)
        except MegacodeError as error:
            failed += error.problems
    if failed:
        raise DataError(problems=failed)
    for opened in found:
        if (count := len(opened.first_tokens)) < samples:
            what = "%s: measured on %d windows, not %d (--samples): it has no more, or no token counts in the rest"
            log.warning(what, opened.name, count, samples)
    return found


def _problems(config: RunConfig, asked: Sequence[str], names: Sequence[str]) -> list[Problem]:
    found = []
    for name in dict.fromkeys(name for name in names if names.count(name) > 1):
        found.append(Problem("this source is named twice", f"--sources {name}", "name each once"))
    for text, name in zip(asked or names, names, strict=True):
        where = f"--sources {text}"
        if "=" in text:
            if not name or not text.partition("=")[2].strip():
                fix = "write NAME=PREFIX, the path of PREFIX.bin without its ending"
                found.append(Problem("it names no data set", where, fix))
        elif name not in config.sources:
            close = get_close_matches(name, config.sources, n=1)
            known = f"did you mean {close[0]!r}?" if close else f"its sources are {', '.join(config.sources)};"
            fix = f"{known} NAME=PREFIX names another data set"
            found.append(Problem(f"the run has no source {name!r}", where, fix))
        elif config.validation.fraction == 0:
            fix = f"name it as a data set, whose windows training may have read: {name}={config.sources[name].path}"
            found.append(Problem("this source holds out nothing: validation.fraction is 0", where, fix))
    return found


def _held_out(config: RunConfig, name: str, samples: int) -> SourceWindows:
    stream = open_source(config, name)
    used = min(samples, stream.held_out_windows)
    firsts = [stream.held_out_first_token(number, used) for number in range(used)]
    return SourceWindows(name, stream, _counting(config, stream, firsts), True)


def _other(config: RunConfig, name: str, prefix: str, samples: int) -> SourceWindows:
    length = config.train.seq_length
    manifest = manifests.read(prefix)
    # Conversations are asked about as they would be trained on.
    loss: Loss = "answers" if manifest is not None and manifest.loss_mask is not None else "all"
    stream = SourceStream(name, prefix, 0.0, length, loss=loss)
    count = windows(stream.train_tokens, length, stream.packed)
    used = min(samples, count)
    firsts = [number * count // used * length for number in range(used)]
    return SourceWindows(name, stream, _counting(config, stream, firsts), False)


def _counting(config: RunConfig, stream: SourceStream, firsts: Sequence[int]) -> list[int]:
    """Return the first tokens of windows with a token that counts: others have no gradient.

    Raises:
        DataError: there are fewer than `LEAST`.
    """
    found = [first for first in firsts if any_counts(stream, first, config.train.isolate_documents)]
    if len(found) < LEAST:
        idle = f", and {len(firsts) - len(found)} in which no token counts" if len(firsts) > len(found) else ""
        what = f"it has {len(found)} windows to measure on{idle}; an interval needs at least {LEAST}"
        fix = "raise --samples, hold out more of it, or name a longer data set"
        raise DataError(what, f"source {stream.name} ({stream.prefix})", fix)
    return found

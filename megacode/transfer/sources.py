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
    # Sorted, so that columns have one order whatever the order in the config.
    names = [one.partition("=")[0].strip() for one in asked or sorted(config.sources)]
    if problems := list(_problems(config, asked, names)):
        raise ConfigError(problems=problems)
    objects.use(config.objects)
    sources: list[SourceWindows] = []
    failed: list[Problem] = []
    vocabulary = vocabulary_size(config)
    for name, text in zip(names, asked or names, strict=True):
        prefix = text.partition("=")[2].strip()
        # Every source is tried before an error is raised: one call shows all that is wrong.
        try:
            opened = _other(config, name, prefix, samples) if "=" in text else _held_out(config, name, samples)
            manifest = manifests.check(opened.stream.prefix)
            manifests.check_tokenizer(opened.stream.prefix, manifest, tokenizer_hash)
            # An id beyond the vocabulary would end as an illegal memory access on a GPU.
            opened.stream.check_vocabulary(vocabulary)
            sources.append(opened)
        except MegacodeError as error:
            failed += error.problems
    if failed:
        raise DataError(problems=failed)
    for opened in sources:
        if (count := len(opened.first_tokens)) < samples:
            message = "%s: measured on %d windows, not %d (--samples): it has no more, or no token counts in the rest"
            log.warning(message, opened.name, count, samples)
    return sources


def _problems(config: RunConfig, asked: Sequence[str], names: Sequence[str]) -> list[Problem]:
    problems = []
    for name in dict.fromkeys(name for name in names if names.count(name) > 1):
        problems.append(Problem("this source is named twice", f"--sources {name}", "name each once"))
    for text, name in zip(asked or names, names, strict=True):
        where = f"--sources {text}"
        if "=" in text:
            if not name or not text.partition("=")[2].strip():
                fix = "write NAME=PREFIX, the path of PREFIX.bin without its ending"
                problems.append(Problem("it names no data set", where, fix))
        elif name not in config.sources:
            close = get_close_matches(name, config.sources, n=1)
            known = f"did you mean {close[0]!r}?" if close else f"its sources are {', '.join(config.sources)};"
            fix = f"{known} NAME=PREFIX names another data set"
            problems.append(Problem(f"the run has no source {name!r}", where, fix))
        elif config.validation.fraction == 0:
            fix = f"name it as a data set, whose windows training may have read: {name}={config.sources[name].path}"
            problems.append(Problem("this source holds out nothing: validation.fraction is 0", where, fix))
    return problems


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
    # 0.0: no part of it is held out, so windows are spread over all of it.
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
    counting = [first for first in firsts if any_counts(stream, first, config.train.isolate_documents)]
    if len(counting) < LEAST:
        idle = f", and {len(firsts) - len(counting)} in which no token counts" if len(firsts) > len(counting) else ""
        message = f"it has {len(counting)} windows to measure on{idle}; an interval needs at least {LEAST}"
        fix = "raise --samples, hold out more of it, or name a longer data set"
        raise DataError(message, f"source {stream.name} ({stream.prefix})", fix)
    return counting

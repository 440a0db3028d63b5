"""Sources as training reads them: documents in stored order, the last ones held out, split into windows.

The held-out documents are the last ones of a data set that together hold at least the requested share of tokens.
Everything before them is the training stream. `plan` decides which window a sample reads; this module fetches it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from fractions import Fraction
from math import ceil

import numpy as np
import numpy.typing as npt

from megacode.base.errors import ConfigError, DataError, MegacodeError, Problem
from megacode.base.urls import is_url
from megacode.config.data import Source
from megacode.config.run import RunConfig
from megacode.data import manifest as manifests
from megacode.data import objects, source_checks
from megacode.data.document_form import fill_in_the_middle, form_of
from megacode.data.fim import FillInMiddle, WindowPiece, WindowTokens
from megacode.data.fim_tokens import check_stored
from megacode.data.indexed import IndexedDataset, bin_path, idx_path
from megacode.data.manifest import Manifest
from megacode.data.source_checks import tokenizer_facts
from megacode.data.tokenizer import load_tokenizer
from megacode.plan.phases import SourceSize

_CHECKED_BLOCKS = 16
_CHECKED_TOKENS = 4096


class SourceStream:
    """One source of a run, opened.

    Args:
        name: the source's name in the config.
        prefix: path of its data set without `.bin` and `.idx`.
        validation_fraction: share of its tokens to hold out; 0: none.
        seq_length: S; a window is S + 1 tokens.
        validation_samples: maximum number of held-out windows; they are spread over the held-out documents.
        take: training tokens that are used, the first ones; None: all.
        fim: rearranges documents of training windows; None: they are read as stored.

    Attributes:
        train_tokens: tokens of the training stream.
        train_documents: documents of the training stream, which are the first ones; `take` may end inside the last.
        held_out_from: the first held-out token.
        validation_tokens: tokens of the held-out documents.
        validation_windows: how many held-out windows `validation_window` gives.

    Raises:
        DataError: if the data set cannot be read, either part is shorter than one window, or it has less than `take`.
    """

    def __init__(
        self,
        name: str,
        prefix: str,
        validation_fraction: float,
        seq_length: int,
        validation_samples: int = 512,
        take: int | None = None,
        fim: FillInMiddle | None = None,
    ) -> None:
        self.fim = fim
        self.name, self.prefix, self.seq_length = name, prefix, seq_length
        self.data = IndexedDataset(prefix)
        self.train_documents = self._cut(validation_fraction)
        self.train_tokens = self.data.document_bounds(self.train_documents - 1)[1] + 1 if self.train_documents else 0
        self.held_out_from = self.train_tokens
        self.validation_tokens = self.data.tokens - self.train_tokens
        self._held_out_windows = max(0, self.validation_tokens - 1) // seq_length
        self.validation_windows = min(validation_samples, self._held_out_windows)
        self._check_lengths(validation_fraction)
        if take is not None:
            check_take(name, take, self.train_tokens, seq_length)
            self.train_tokens = take
            self.train_documents = self.data.document_at(take - 1) + 1

    def _cut(self, fraction: float) -> int:
        """Return the first held-out document."""
        # Fractions of the written decimal: 0.01 as a float would round differently for large data sets.
        wanted = ceil(Fraction(str(fraction)) * self.data.tokens)
        return self.data.document_at(self.data.tokens - wanted) if wanted else self.data.documents

    def _check_lengths(self, fraction: float) -> None:
        # The shortest usable source gives one window; each message says which part is too short.
        window, where = self.seq_length + 1, f"sources.{self.name} ({self.prefix})"
        if self.data.tokens < window:
            what = f"it has {self.data.tokens:,} tokens, less than one window of seq_length + 1 = {window:,}"
            raise DataError(what, where, "use a longer data set or a smaller train.seq_length")
        if self.train_tokens < window:
            what = (
                f"holding out {fraction:.3%} of its {self.data.tokens:,} tokens in whole documents leaves "
                f"{self.train_tokens:,} for training, less than one window of {window:,}"
            )
            raise DataError(what, where, "use a data set of more documents, or validation.fraction: 0")
        if fraction and not self.validation_windows:
            share = window / self.data.tokens
            what = f"its held-out documents have {self.validation_tokens:,} tokens, less than one window of {window:,}"
            fix = f"set validation.fraction to at least {ceil(share * 1e4) / 1e4:g}, or to 0 for no validation"
            raise DataError(what, where, fix)

    def size(self) -> SourceSize:
        """Return what the plan needs to know."""
        identity = manifests.identity(self.prefix)
        form = self.fim.form if self.fim else None
        return SourceSize(self.name, self.train_tokens, self.train_documents, self.validation_tokens, identity, form)

    def window(self, first_token: int) -> npt.NDArray[np.integer]:
        """Return the tokens of a window as stored, [S + 1]."""
        return self.data.read(first_token, self.seq_length + 1)

    def pieces(self, first_token: int) -> Iterator[WindowPiece]:
        """Yield the parts of documents that a window reads, in order; empty documents are left out."""
        document, last_token = self.data.document_at(first_token), first_token + self.seq_length
        last = -1
        while last < self.seq_length:
            begin, end = self.data.document_bounds(document)
            if begin <= end:
                first, last = last + 1, min(end, last_token) - first_token
                yield WindowPiece(document, first_token + first - begin, first, last, end <= last_token)
            document += 1

    def documents_of(self, first_token: int) -> tuple[int, int]:
        """Return the first and last document that a window reads."""
        return self.data.document_at(first_token), self.data.document_at(first_token + self.seq_length)

    def document_starts(self, first_token: int) -> npt.NDArray[np.int64]:
        """Return the positions 1 .. S of a window at which a new document begins, ascending."""
        return self.data.document_starts(first_token, first_token + self.seq_length) - first_token

    def validation_first_token(self, number: int) -> int:
        """Return where a held-out window begins; windows begin at fixed places and share no label."""
        assert 0 <= number < self.validation_windows
        # Integer division spreads the windows evenly; each starts at a multiple of S.
        return self.held_out_from + number * self._held_out_windows // self.validation_windows * self.seq_length

    def _sampled(self) -> Iterator[tuple[int, npt.NDArray[np.integer]]]:
        """Yield blocks of tokens, evenly spaced, and where they begin."""
        last = max(0, self.data.tokens - _CHECKED_TOKENS)
        for number in range(_CHECKED_BLOCKS):
            first = last * number // (_CHECKED_BLOCKS - 1)
            yield first, self.data.read(first, min(_CHECKED_TOKENS, self.data.tokens))

    def check_fim(self) -> None:
        """Check that the data set can be read with fill in the middle, if it is.

        Raises:
            DataError: see `fim_tokens.check_stored`.
        """
        if self.fim is not None:
            check_stored(self.name, self.fim.sentinels, self.data.dtype, (block for _, block in self._sampled()))

    def check_vocabulary(self, vocab_size: int) -> None:
        """Check that tokens sampled over the whole data set are ids of a vocabulary.

        Raises:
            DataError: if one is not; on a GPU it would end in an illegal memory access far from here.
        """
        for first, block in self._sampled():
            worst = int(block.max()) if int(block.min()) >= 0 else int(block.min())
            if not 0 <= worst < vocab_size:
                what = (
                    f"it contains token {worst} near position {first:,}, but the vocabulary has {vocab_size:,} tokens"
                )
                where = f"sources.{self.name} ({self.prefix})"
                raise DataError(what, where, "use the tokenizer that made it, or preprocess it again with the run's")


def open_source(config: RunConfig, name: str) -> SourceStream:
    """Open one source of a run.

    Raises:
        ConfigError: fill in the middle is on, and the tokenizer has no sentinels.
        DataError: see `SourceStream`.
    """
    objects.use(config.objects)
    held = config.validation
    source, length = config.sources[name], config.train.seq_length
    fim = fill_in_the_middle(config, name)
    return SourceStream(name, source.path, held.fraction, length, held.samples, source.take, fim)


def window_tokens(
    stream: SourceStream, first_token: int, epoch: int | None, isolate_documents: bool = False
) -> WindowTokens:
    """Return what training reads of a window: the one way for loaders, `order --decode`, replay and tests.

    Args:
        stream: of `open_source`.
        first_token, epoch: of a draw; without an epoch it is a held-out window, which is read as stored.
        isolate_documents: of `train`; the loss mask then leaves out the first token of each document.
    """
    found = WindowTokens(stream.window(first_token))
    if stream.fim is not None and epoch is not None:
        found = stream.fim.apply(found.tokens, list(stream.pieces(first_token)), epoch)
    if isolate_documents:
        mask = np.ones(stream.seq_length, dtype=np.float32) if found.loss_mask is None else found.loss_mask.copy()
        mask[stream.document_starts(first_token) - 1] = 0.0
        return replace(found, loss_mask=mask)
    return found


def check_take(name: str, take: int, train_tokens: int, seq_length: int) -> None:
    """Refuse to take more training tokens of a source than it has, or less than one window.

    Raises:
        DataError: with the numbers that fit.
    """
    where = f"sources.{name}.take"
    if take > train_tokens:
        what = f"{take:,} tokens are to be taken, and it has {train_tokens:,} for training"
        raise DataError(what, where, f"give at most {train_tokens}, or remove take")
    if take <= seq_length:
        what = f"{take:,} tokens are less than one window of seq_length + 1 = {seq_length + 1:,}"
        raise DataError(what, where, f"give at least {seq_length + 1}, or a smaller train.seq_length")


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
        what = f"{given:,} is less than the {needed:,} tokens of the tokenizer"
        raise ConfigError(what, "model.vocab_size", f"set it to {needed} or more, or remove it")
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
    tokenizer, made_by = tokenizer_facts(config.tokenizer), {}
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
            sizes[name] = replace(stream.size(), form=form_of(config, name), notes=warnings)
            if manifest is not None:
                described[name] = manifest
                if manifest.tokenizer:
                    made_by[name] = manifest.tokenizer
        except MegacodeError as error:
            problems += [
                _with_hint(problem, source.path, name, allow_declared) if absent else problem
                for problem in error.problems
            ]
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

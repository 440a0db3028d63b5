"""A source as training reads it: documents in stored order, the last ones held out, split into windows.

The held-out documents are the last ones of a data set that together hold at least the requested share of tokens.
Everything before them is the training stream. `plan` decides which window a sample reads; this module fetches it.

A *packed* data set was made of whole documents for one sequence length S: its window w is the tokens w S to
w S + S - 1, and has no label for its last input. Its documents are isolated, and its cut lies between two windows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from fractions import Fraction
from math import ceil

import numpy as np
import numpy.typing as npt

from megacode.base.errors import ConfigError, DataError
from megacode.data import manifest as manifests
from megacode.data.fim import FillInMiddle, WindowPiece, WindowTokens
from megacode.data.fim_tokens import check_stored
from megacode.data.indexed import IndexedDataset
from megacode.data.manifest import Manifest
from megacode.data.source_masks import Loss, source_mask
from megacode.plan.sources import SourceSize, windows

_CHECKED_BLOCKS = 16
_CHECKED_TOKENS = 4096


class SourceStream:
    """One source of a run, opened.

    Args:
        name: the source's name in the config.
        prefix: path of its data set without `.bin` and `.idx`.
        validation_fraction: share of its tokens to hold out; 0: none.
        seq_length: S; a window is S + 1 tokens. None: only where training ends is asked for, so windows are as short
            as they can be.
        validation_samples: maximum number of held-out windows; they are spread over the held-out documents.
        take: training tokens that are used, the first ones; None: all.
        fim: rearranges documents of training windows; None: they are read as stored.
        loss: what counts in the loss: `all`, or what the loss mask of the data set says.

    Attributes:
        packed: its windows were packed: no window cuts a document, and each is isolated.
        reads: tokens that a window reads: S + 1, or S of a packed one.
        train_tokens: tokens of the training stream.
        train_documents: documents of the training stream, which are the first ones; `take` may end inside the last.
        held_out_from: the first held-out token.
        validation_tokens: tokens of the held-out documents.
        held_out_windows: windows that the held-out documents give.
        validation_windows: how many of them validation measures.

    Raises:
        ConfigError: `seq_length`, `loss` or `fim` do not fit the data set, see `source_mask`.
        DataError: if the data set cannot be read, either part is shorter than one window, or it has less than `take`.
    """

    def __init__(
        self,
        name: str,
        prefix: str,
        validation_fraction: float,
        seq_length: int | None,
        validation_samples: int = 512,
        take: int | None = None,
        fim: FillInMiddle | None = None,
        loss: Loss = "all",
    ) -> None:
        self.fim = fim
        self.name, self.prefix = name, prefix
        self.data = IndexedDataset(prefix)
        manifest = manifests.read(prefix)
        self.packed = manifest is not None and manifest.packed is not None
        self.seq_length = self._length(manifest, seq_length)
        self._mask = source_mask(name, self.data, manifest, loss, fim is not None)
        self.reads = self.seq_length + (not self.packed)
        self.train_documents = self._cut(validation_fraction)
        self.train_tokens = self.data.document_bounds(self.train_documents - 1)[1] + 1 if self.train_documents else 0
        self.held_out_from = self.train_tokens
        self.validation_tokens = self.data.tokens - self.train_tokens
        self.held_out_windows = windows(self.validation_tokens, self.seq_length, self.packed)
        self.validation_windows = min(validation_samples, self.held_out_windows)
        self._check_lengths(validation_fraction)
        if take is not None:
            check_take(name, take, self.train_tokens, self.seq_length, self.packed)
            self.train_tokens = take
            self.train_documents = self.data.document_at(take - 1) + 1

    def _length(self, manifest: Manifest | None, seq_length: int | None) -> int:
        """Return S, after checking that the windows of a packed set are of it."""
        if not self.packed:
            return seq_length or 1
        assert manifest is not None
        assert manifest.packed is not None
        length = int(manifest.packed["seq_length"])
        if seq_length not in (None, length):
            message = (
                f"{self.prefix} was packed into windows of {length:,} tokens, but train.seq_length is {seq_length:,}"
            )
            fix = f"set train.seq_length: {length}, or pack it again: megacode data chat ... --pack {seq_length}"
            raise ConfigError(message, f"sources.{self.name}", fix)
        return length

    def _cut(self, fraction: float) -> int:
        """Return the first held-out document."""
        # Fractions of the written decimal: 0.01 as a float would round differently for large data sets.
        wanted = ceil(Fraction(str(fraction)) * self.data.tokens)
        if self.packed:
            # Whole windows, whose first token begins a document.
            wanted = -(-wanted // self.seq_length) * self.seq_length
        return self.data.document_at(self.data.tokens - wanted) if wanted else self.data.documents

    def _check_lengths(self, fraction: float) -> None:
        # The shortest usable source gives one window; each message says which part is too short.
        window, where = self.reads, f"sources.{self.name} ({self.prefix})"
        if self.data.tokens < window:
            size = "a packed window of" if self.packed else "one window of seq_length + 1 ="
            message = f"it has {self.data.tokens:,} tokens, less than {size} {window:,}"
            raise DataError(message, where, "use a longer data set or a smaller train.seq_length")
        if self.train_tokens < window:
            message = (
                f"holding out {fraction:.3%} of its {self.data.tokens:,} tokens in whole documents leaves "
                f"{self.train_tokens:,} for training, less than one window of {window:,}"
            )
            raise DataError(message, where, "use a data set of more documents, or validation.fraction: 0")
        if fraction and not self.validation_windows:
            share = window / self.data.tokens
            message = (
                f"its held-out documents have {self.validation_tokens:,} tokens, less than one window of {window:,}"
            )
            fix = f"set validation.fraction to at least {ceil(share * 1e4) / 1e4:g}, or to 0 for no validation"
            raise DataError(message, where, fix)

    def size(self) -> SourceSize:
        """Return what the plan needs to know."""
        identity = manifests.identity(self.prefix)
        form = self.fim.form if self.fim else self._mask.form
        counts = self.train_tokens, self.train_documents, self.validation_tokens
        return SourceSize(self.name, *counts, identity, form, counted=self._mask.share)

    def window(self, first_token: int) -> npt.NDArray[np.integer]:
        """Return the tokens of a window as stored, [S + 1]; of a packed one S, and the last of them once more."""
        stored = self.data.read(first_token, self.reads)
        return np.append(stored, stored[-1:]) if self.packed else stored

    def counted(self, first_token: int) -> npt.NDArray[np.float32] | None:
        """Return which labels of a window count by the loss mask, float32 [S]; None: all do."""
        return self._mask.labels(first_token, self.seq_length)

    def fetch_ahead(self, first_tokens: Iterable[int]) -> None:
        """Begin to fetch windows, if the data set is in object storage."""
        firsts = list(first_tokens)
        if self.data.remote is not None:
            self.data.remote.fetch_ahead(firsts, self.reads)
        if self._mask.mask is not None:
            self._mask.mask.fetch_ahead(firsts, self.reads)

    def pieces(self, first_token: int) -> Iterator[WindowPiece]:
        """Yield the parts of documents that a window reads, in order; empty documents are left out."""
        document, last_token = self.data.document_at(first_token), first_token + self.reads - 1
        last = -1
        while last < self.reads - 1:
            begin, end = self.data.document_bounds(document)
            if begin <= end:
                first, last = last + 1, min(end, last_token) - first_token
                yield WindowPiece(document, first_token + first - begin, first, last, end <= last_token)
            document += 1

    def documents_of(self, first_token: int) -> tuple[int, int]:
        """Return the first and last document that a window reads."""
        return self.data.document_at(first_token), self.data.document_at(first_token + self.reads - 1)

    def document_starts(self, first_token: int) -> npt.NDArray[np.int64]:
        """Return the positions 1 .. S of a window at which a new document begins, ascending."""
        return self.data.document_starts(first_token, first_token + self.reads - 1) - first_token

    def held_out_first_token(self, number: int, count: int) -> int:
        """Return where one of `count` held-out windows begins; they begin at fixed places and share no label."""
        assert 0 <= number < count <= self.held_out_windows
        # Integer division spreads the windows evenly; each starts at a multiple of S.
        return self.held_out_from + number * self.held_out_windows // count * self.seq_length

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
                message = (
                    f"it contains token {worst} near position {first:,}, but the vocabulary has {vocab_size:,} tokens"
                )
                where = f"sources.{self.name} ({self.prefix})"
                raise DataError(message, where, "use the tokenizer that made it, or preprocess it again with the run's")


def window_tokens(
    stream: SourceStream, first_token: int, epoch: int | None, isolate_documents: bool = False
) -> WindowTokens:
    """Return what training reads of a window: the one way for loaders, `order --decode`, replay and tests.

    Args:
        stream: of `open_source`.
        first_token, epoch: of a draw; without an epoch it is a held-out window, which is read as stored.
        isolate_documents: of `train`; the loss mask then leaves out the first token of each document. Those of packed
            sources are always isolated.
    """
    window = WindowTokens(stream.window(first_token), stream.counted(first_token))
    if stream.fim is not None and epoch is not None:
        window = stream.fim.apply(window.tokens, list(stream.pieces(first_token)), epoch)
    if isolate_documents or stream.packed:
        mask = np.ones(stream.seq_length, dtype=np.float32) if window.loss_mask is None else window.loss_mask.copy()
        mask[stream.document_starts(first_token) - 1] = 0.0
        return replace(window, loss_mask=mask)
    return window


def any_counts(stream: SourceStream, first_token: int, isolate_documents: bool) -> bool:
    """Return whether any label of a held-out window counts in the loss; arguments as of `window_tokens`."""
    mask = window_tokens(stream, first_token, None, isolate_documents).loss_mask
    return mask is None or bool(mask.any())


def check_take(name: str, take: int, train_tokens: int, seq_length: int, packed: bool = False) -> None:
    """Refuse to take more training tokens of a source than it has, or less than one window.

    Raises:
        DataError: with the numbers that fit.
    """
    where = f"sources.{name}.take"
    if take > train_tokens:
        message = f"{take:,} tokens are to be taken, and it has {train_tokens:,} for training"
        raise DataError(message, where, f"give at most {train_tokens}, or remove take")
    window = seq_length + (not packed)
    if take < window:
        size = "packed window of" if packed else "window of seq_length + 1 ="
        message = f"{take:,} tokens are less than one {size} {window:,}"
        raise DataError(message, where, f"give at least {window}, or a smaller train.seq_length")

"""Fill in the middle (FIM) at load time: documents of a window are rearranged into prefix, suffix and middle.

A document is chosen with probability `fim_rate`, by a keyed hash of (seed, source, document, epoch). The part of it
that a window reads, its *piece*, is divided at two characters drawn uniformly. With `fim_spm_rate` the suffix is first:

    PSM   <prefix> P <suffix> S <middle> M <end>          SPM   <prefix> <suffix> S <middle> P M <end>

A piece keeps its place and its number of tokens, so the order of data and all document borders stay as they are:

- The three sentinels and words that the cuts divide take more tokens. As many are removed from the end of the suffix,
  never from the middle or from the end token. If the suffix is shorter than that, other characters are drawn, at most
  three times; a piece for which none fit is read as stored.
- Where tokens are missing (dividing a word can save some), end tokens fill the place. They are never a label.
- A piece that begins inside a character keeps these tokens in front. One that ends inside a character loses them.
- A document over a border of windows gives two pieces. Both are rearranged or none is, each by cuts of its own. A
  middle that the window ends has no end token.
- A piece with control tokens inside is read as stored, since they divide its text. So are held-out windows.

Nothing depends on the batch, the rank or the past, so a sample reads the same on any layout and after any resume.

Source: Bavarian et al. (2022), https://arxiv.org/abs/2207.14255, sections 2 and 3; the SPM form is Megatron-LM's.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from megacode.base.files import digest
from megacode.data.fim_tokens import Sentinels
from megacode.data.part_encoders import PartEncoder

Tokens = npt.NDArray[np.integer]
_ATTEMPTS = 3
_SHORTEST = 8  # tokens of a piece: three sentinels, and something to learn
_WORD = 1 << 64


class WindowPiece(NamedTuple):
    """The part of a document that a window reads: positions first .. last of the window, inclusive.

    Attributes:
        document: its number in the source.
        offset: tokens of the document before the piece.
        first, last: positions in the window.
        ends: the document ends with it.
    """

    document: int
    offset: int
    first: int
    last: int
    ends: bool


@dataclass(frozen=True)
class WindowTokens:
    """What a sample reads.

    Attributes:
        tokens: [S + 1], read only.
        loss_mask: float32 [S], 0 where the label does not count; None: all count.
        fim_documents: documents that are read as prefix, suffix and middle.
        fim_tokens: tokens of their pieces.
    """

    tokens: Tokens
    loss_mask: npt.NDArray[np.float32] | None = None
    fim_documents: tuple[int, ...] = ()
    fim_tokens: int = 0


def form(rate: float, spm_rate: float, sentinels: Sentinels | None) -> dict[str, Any]:
    """Return what decides how documents are read, see `SourceSize.form`."""
    return {"rate": rate, "spm_rate": spm_rate, "sentinels": list(sentinels.marks) if sentinels else None}


class FillInMiddle:
    """How the documents of one source are rearranged.

    Args:
        rate, spm_rate: of the source.
        seed: of the run.
        source: its name.
        sentinels: of the run's tokenizer.
        make_encoder: returns what divides text by character; called at the first window that needs it.
    """

    def __init__(
        self,
        rate: float,
        spm_rate: float,
        seed: int,
        source: str,
        sentinels: Sentinels,
        make_encoder: Callable[[], PartEncoder],
    ) -> None:
        self.sentinels, self._rate, self._spm_rate = sentinels, rate, spm_rate
        # A source's name is in the key, so equal document numbers of two sources draw differently.
        self._key = bytes.fromhex(digest("fill in the middle", str(seed), source))
        self._make_encoder = make_encoder

    @property
    def form(self) -> dict[str, Any]:
        """What decides how documents are read, for `SourceSize.form`."""
        return form(self._rate, self._spm_rate, self.sentinels)

    @cached_property
    def _encoder(self) -> PartEncoder:
        return self._make_encoder()

    @cached_property
    def _control(self) -> npt.NDArray[np.bool_]:
        """Whether an id is a control token, bool [vocabulary]."""
        control = self._encoder.control.copy()
        control[list(self.sentinels)] = True
        return control

    def apply(self, tokens: Tokens, pieces: Sequence[WindowPiece], epoch: int) -> WindowTokens:
        """Return a window with the chosen documents rearranged.

        Args:
            tokens: of the window as stored, [S + 1].
            pieces: of the window, in order.
            epoch: of the source.
        """
        rearranged, fillers, documents, count = tokens, [], [], 0
        for piece in pieces:
            spm = self._choice(piece.document, epoch)
            span = slice(piece.first, piece.last + 1)
            new_piece = None if spm is None else self._rearranged(tokens[span], piece, epoch, spm)
            if new_piece is None:
                continue
            if rearranged is tokens:
                rearranged = tokens.copy()  # the window is a view of the file
            size = piece.last + 1 - piece.first
            rearranged[span] = [*new_piece, *[self.sentinels.eod] * (size - len(new_piece))]
            # One place earlier than the tokens: the mask is of labels, and a label is the next token.
            fillers.append(slice(piece.first + len(new_piece) - 1, piece.last))
            documents.append(piece.document)
            count += size
        mask = None
        if any(hidden.start < hidden.stop for hidden in fillers):
            mask = np.ones(len(tokens) - 1, dtype=np.float32)
            for hidden in fillers:
                mask[hidden] = 0.0
        return WindowTokens(rearranged, mask, tuple(documents), count)

    def _choice(self, document: int, epoch: int) -> bool | None:
        """Return whether a document is read as SPM; None: as stored."""
        # Without the offset: both pieces of a document over a border of windows get the same answer.
        chosen, form = self._drawn(2, document, epoch)
        return form < self._spm_rate * _WORD if chosen < self._rate * _WORD else None

    def _drawn(self, count: int, *place: int) -> tuple[int, ...]:
        """Return `count` keyed numbers below 2^64, at most 8."""
        raw = blake2b(struct.pack(f"<{len(place)}q", *place), key=self._key, digest_size=8 * count).digest()
        return struct.unpack(f"<{count}Q", raw)

    def _cuts(self, characters: int, piece: WindowPiece, epoch: int) -> Iterator[tuple[int, int]]:
        """Yield pairs of characters, ascending, each uniform in 0 .. characters."""
        drawn = [
            # A product and a shift in place of a remainder, which would favour small numbers.
            number * (characters + 1) >> 64
            for number in self._drawn(2 * _ATTEMPTS, piece.document, epoch, piece.offset)
        ]
        for number in range(0, len(drawn), 2):
            low, high = sorted(drawn[number : number + 2])
            yield low, high

    def _rearranged(self, stored: Tokens, piece: WindowPiece, epoch: int, spm: bool) -> list[int] | None:
        """Return a piece's tokens in their new order, at most as many; None: it is read as stored."""
        end = [self.sentinels.eod] if piece.ends and stored[-1] == self.sentinels.eod else []
        body = stored[: len(stored) - len(end)]
        # Ids beyond the vocabulary stand for no text, and the table does not have them.
        if len(body) < _SHORTEST or body.max() >= len(self._control) or self._control[body].any():
            return None
        text = self._encoder.divided(body, begins=piece.offset == 0, ends=piece.ends)
        if text is None:
            return None
        before, after, hole = self.sentinels.prefix, self.sentinels.suffix, self.sentinels.middle
        for low, high in self._cuts(text.characters, piece, epoch):
            try:
                prefix, middle, suffix = text.parts(low, high)
            except UnicodeDecodeError:  # stored by another tool
                return None
            # The middle is never shortened: it is what the model has to learn to end.
            room = len(body) - len(text.head) - 3 - len(prefix) - len(middle)
            if room < 0:
                continue
            if len(suffix) > room:
                suffix = suffix[: self._encoder.whole(suffix[:room])]
            if spm:
                return [*text.head, before, after, *suffix, hole, *prefix, *middle, *end]
            return [*text.head, before, *prefix, after, *suffix, hole, *middle, *end]
        return None

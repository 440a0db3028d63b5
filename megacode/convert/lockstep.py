"""Run two models step by step on the same texts: each step of the second gets the same input as the first's.

A forward pass is a chain: embedding, blocks, final norm, output layer. The export runs transformers' unchanged code on
two copies of the texts. The first copy runs freely, as users will run it. In the second copy, the input of each block
is compared with the input of megacode's own block, and replaced by it. So each link is checked by itself, together with
what transformers does between links. If every link gives equal outputs for equal inputs, the chains are equal. The free
copy shows how rounding accumulates over the whole model.

Neither side stores its activations: a point is compared as soon as both exist, and only the difference is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from megacode.base.progress import Advance, bar, steps
from megacode.convert.compare import Gaps, NextTokens, PointDifference, difference
from megacode.convert.exported import Exported
from megacode.convert.reference import Reference, Step

LOGITS, END_TO_END = "logits", "logits, end to end"
Ids = Sequence[tuple[int, ...]]
_SLICE = 1 << 24  # logits of one side in memory at once


@dataclass
class Walk:
    """The differences of two forward passes.

    Attributes:
        points: the differences of every point, in the order of the forward pass, the logits last; one for each text.
        end_to_end: the differences of the logits where the export ran free, one for each text.
        greedy_agreement: share of positions at which both choose the same token; the export ran free.
        loss: megacode's loss, nats a token.
        exported_loss: transformers' loss; the export ran free.
        rounding: largest change of a logit by the rounding of the weights; None if nothing was rounded.
    """

    points: list[list[PointDifference]] = field(default_factory=list)
    end_to_end: list[PointDifference] = field(default_factory=list)
    greedy_agreement: float = 0.0
    loss: float = 0.0
    exported_loss: float = 0.0
    rounding: float | None = None


def walk(reference: Reference, exported: Exported, ids: Ids, vocab: int, unrounded: Reference | None = None) -> Walk:
    """Run two models on texts, side by side.

    Args:
        reference: megacode's side.
        exported: transformers' side.
        ids: the token ids of each text.
        vocab: tokens of the vocabulary.
        unrounded: megacode's side with the checkpoint's unrounded weights, if the export's are rounded.
    """
    tokens = _padded(ids)
    with bar("comparing layers", reference.layers + 1) as advance:
        guide = _Guide(reference, tokens, [len(text) for text in ids], advance)
        # One pass for both copies: each block's weights are read once.
        arrived = exported.run(tokens.repeat(2, 1), guide)
    guide.compare("final norm", arrived)
    differences = _logits(reference, exported, _end_to_end(guide.hidden, ids), _end_to_end(arrived, ids), ids, vocab)
    differences.points = [*guide.points, *differences.points]
    # Costs one more forward pass of megacode's side.
    if unrounded is not None:
        pair = (reference, guide.hidden), (unrounded, unrounded.hidden(tokens))
        differences.rounding = _rounding([(side, _end_to_end(hidden, ids)) for side, hidden in pair], vocab)
    return differences


class _Guide:
    """Runs megacode's side a step ahead of the export, compares, and gives the export's second half the same input."""

    def __init__(self, reference: Reference, tokens: Tensor, lengths: list[int], advance: Advance) -> None:
        self._reference, self._lengths, self._advance = reference, lengths, advance
        self._step: Step | None = None
        self.points: list[list[PointDifference]] = []
        self.hidden = reference.embedding(tokens)

    def arrive(self, number: int, hidden: Tensor) -> Tensor:
        self.compare(f"layer {number - 1} output" if number else "embedding", hidden)
        # The free copy passes through; the second one gets megacode's own activations.
        joined = torch.cat([hidden[: len(self._lengths)], self.hidden])
        # The final norm arrives last, under the number after the last block.
        if number < self._reference.layers:
            self._step = self._reference.block(number, self.hidden)
            self.hidden = self._step.output
        else:
            self.hidden = self._reference.final_norm(self.hidden)
        self._advance(1)
        return joined

    def inside(self, number: int, kind: str, output: Tensor) -> None:
        assert self._step is not None
        self.points.append(self._compared(f"layer {number} {kind}", self._step.inside[kind], output))

    def compare(self, point: str, hidden: Tensor) -> None:
        """Compare megacode's latest output with the export's."""
        self.points.append(self._compared(point, self.hidden, hidden))

    def _compared(self, point: str, ours: Tensor, theirs: Tensor) -> list[PointDifference]:
        # Only the second copy had equal inputs, so only it is compared step by step.
        forced = theirs[len(self._lengths) :]
        # Text by text and without padding, so that no padded value counts.
        pairs = zip(ours, forced, self._lengths, strict=True)
        return [difference(point, our[:length], their[:length]) for our, their, length in pairs]


def _padded(ids: Ids) -> Tensor:
    """Return texts as one batch, [b, s] int64. Padding comes after all that counts, and attention is causal."""
    return torch.nn.utils.rnn.pad_sequence([torch.tensor(text) for text in ids], batch_first=True)


def _end_to_end(hidden: Tensor, ids: Ids) -> Tensor:
    """Return the texts of a batch, [b, s, h], end to end and unpadded, [t, h]; of a double batch, its first half."""
    return torch.cat([row[: len(text)] for row, text in zip(hidden, ids, strict=False)])


def _slices(positions: int, vocab: int) -> list[tuple[int, int]]:
    # Slices of the vocabulary bound memory, whatever the number of texts.
    step = max(1, _SLICE // positions)
    return [(first, min(vocab, first + step)) for first in range(0, vocab, step)]


def _logits(reference: Reference, exported: Exported, ours: Tensor, theirs: Tensor, ids: Ids, vocab: int) -> Walk:
    """Compare the output layers.

    Args:
        reference, exported: the sides.
        ours, theirs: the output layers' inputs, [t, h]; `theirs` of the free run.
        ids: of each text.
        vocab: tokens of the vocabulary.
    """
    lengths = [len(text) for text in ids]
    forced, free = Gaps(LOGITS, lengths), Gaps(END_TO_END, lengths)
    our_choices, their_choices = NextTokens(ids), NextTokens(ids)
    with steps(_slices(len(ours), vocab), "comparing logits") as counted:
        for first, last in counted:
            logits = reference.logits(ours, first, last)
            # Same input for both: this compares the output layers alone.
            forced.add(logits, exported.logits(ours, first, last))
            run_free = exported.logits(theirs, first, last)
            free.add(logits, run_free)
            our_choices.add(first, logits)
            their_choices.add(first, run_free)
    same = (our_choices.greedy == their_choices.greedy).double().mean()
    return Walk([forced.by_text()], free.by_text(), float(same), our_choices.loss, their_choices.loss)


def _rounding(sides: list[tuple[Reference, Tensor]], vocab: int) -> float:
    """Return the largest difference of two references' logits."""
    largest = 0.0
    for first, last in _slices(len(sides[0][1]), vocab):
        rounded, whole = (side.logits(hidden, first, last) for side, hidden in sides)
        largest = max(largest, float((rounded - whole).abs().max()))
    return largest

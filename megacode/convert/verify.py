"""Verify an export: the model that transformers reads back computes the same as megacode's.

Four checks, each with its own error. Earlier ones explain failures of later ones:

1. The config: config.json, the embedding and the tokenizer agree on the number of tokens. With a
   padded row too many, a model can generate a token that no tokenizer can decode. The config that transformers parses
   equals the checkpoint's, and so do the constants of the modules that it builds (see `read_back`).
2. The tokenizer: transformers' gives the same ids as the run's, on every text.
3. Every step of the forward pass gives equal outputs for equal inputs on real text (see `lockstep`), the logits last.
   The first step that does not is named. Logits, loss and greedy tokens of the export's whole forward pass are reported
   but not checked: a correct model may amplify float32 rounding.
4. The weights in the files, mapped back, are the checkpoint's bit for bit: texts do not use every row. All
   tensors of the files are compared, except those that transformers ignores by its own rules.

If the export's type is narrower than the checkpoint's, both sides use the rounded weights, so the tolerance stays the
same. The effect of rounding on the logits is measured and reported, not checked.

Memory is bounded by the largest tensor: neither model is ever in memory as a whole.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from megacode.base.errors import VerificationError
from megacode.base.progress import steps
from megacode.base.tables import FigureTable
from megacode.checkpoint.tensors import Weights
from megacode.config.run import RunConfig
from megacode.convert.architectures import family_of
from megacode.convert.compare import TOLERANCE, PointDifference, first_beyond, worst
from megacode.convert.exported import NOTHING_PUBLISHED, Exported
from megacode.convert.lockstep import Walk, walk
from megacode.convert.mapping import Sizes, from_hf, mcore_shapes
from megacode.convert.published import ignored, read_object
from megacode.convert.read_back import check_config, check_modules
from megacode.convert.reference import Reference, alone
from megacode.convert.safetensors_files import EMBEDDING, OUTPUT, SafetensorsFiles
from megacode.convert.texts import ProofText
from megacode.data.tokenizer import Tokenizer

TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_BLOCK = 1 << 22  # elements compared at once


@dataclass(frozen=True)
class Report:
    """The result of a verification.

    Attributes:
        source: the checkpoint, as `run@iter_0001000`.
        architecture: the class transformers built.
        dtype: type of the exported weights.
        verified: whether the export was verified; without, its card says so.
        tolerance: the largest difference allowed at any point, relative to the largest value there.
        texts: name and number of tokens of each text.
        points: largest and mean difference, and scale, at every point of the forward pass, with equal inputs
            on both sides; the last are the logits.
        end_to_end: the difference of the logits after the export's whole forward pass; None if not verified.
        greedy_agreement: share of positions at which both models choose the same token, end to end.
        loss: megacode's loss on the texts, in nats per token.
        exported_loss: transformers' loss on the same, end to end.
        tokenizer_ids: ids on which both tokenizers were compared.
        rounding: largest change of a logit by rounding the weights to `dtype`; None if nothing was rounded.
    """

    source: str
    architecture: str
    dtype: str
    verified: bool
    tolerance: float = TOLERANCE
    texts: tuple[tuple[str, int], ...] = ()
    points: tuple[PointDifference, ...] = ()
    end_to_end: PointDifference | None = None
    greedy_agreement: float = 0.0
    loss: float = 0.0
    exported_loss: float = 0.0
    tokenizer_ids: int = 0
    rounding: float | None = None

    @property
    def tokens(self) -> int:
        """Tokens compared."""
        return sum(count for _, count in self.texts)

    @property
    def logits(self) -> PointDifference:
        """The difference of the logits for equal inputs of the output layer."""
        return self.points[-1]

    def document(self) -> dict[str, Any]:
        """Return the report as a JSON document."""
        points = [{**asdict(point), "relative": point.relative} for point in self.points]
        return {**asdict(self), "tokens": self.tokens, "points": points, "texts": dict(self.texts)}


@dataclass(frozen=True)
class Claim:
    """A checkpoint, and what its export is verified on.

    Attributes:
        label: the checkpoint, as `run@iter_0001000`.
        config: the run's.
        checkpoint: its directory.
        tokenizer: the run's.
        texts: the texts to run both models on.
        dtype: type of the exported weights.
    """

    label: str
    config: RunConfig
    checkpoint: Path
    tokenizer: Tokenizer
    texts: Sequence[ProofText]
    dtype: torch.dtype

    @property
    def rows(self) -> int:
        """Rows of the exported embedding: all that take part in the softmax, without Megatron-core's padding."""
        # Published models often have more rows than their tokenizer has tokens; training keeps them in the softmax.
        return max(self.config.model.vocab_size or 0, self.tokenizer.vocab_size)

    def weights(self) -> Mapping[str, Tensor]:
        """Return the checkpoint's parameters, whole, by Megatron-core's plain names; each is read on access."""
        return Weights(self.checkpoint)


def prove(claim: Claim, export: Path, tolerance: float = TOLERANCE) -> Report:
    """Verify that an export computes the same as a checkpoint.

    Args:
        claim: the checkpoint, and the texts to run it on.
        export: the exported directory.
        tolerance: the largest difference allowed at any point, relative to the largest value there.

    Raises:
        VerificationError: it does not; the message names the first difference.
    """
    document = read_object(export / "config.json")
    _check_vocabulary(document, claim.rows, export)
    check_config(claim.config.model, export)
    compared = check_tokenizer(claim.tokenizer, export, claim.texts)
    walked = _walked(claim, export)
    points = differences(walked, [text.name for text in claim.texts], export, tolerance)
    check_weights(claim, export)
    return Report(
        source=claim.label,
        architecture=document["architectures"][0],
        dtype=str(claim.dtype).removeprefix("torch."),
        verified=True,
        tolerance=tolerance,
        texts=tuple((text.name, len(text.ids)) for text in claim.texts),
        points=tuple(points),
        end_to_end=worst(walked.end_to_end),
        greedy_agreement=walked.greedy_agreement,
        loss=walked.loss,
        exported_loss=walked.exported_loss,
        tokenizer_ids=compared,
        rounding=walked.rounding,
    )


def _walked(claim: Claim, export: Path) -> Walk:
    exported, ids = Exported(export), [text.ids for text in claim.texts]
    check_modules(claim.config.model, exported)
    with alone(claim.config) as (config, ranks):
        reference = Reference(config, ranks, claim.checkpoint, claim.dtype)
        exact = claim.dtype in (torch.float32, TYPES[claim.config.precision.dtype])
        unrounded = None if exact else Reference(config, ranks, claim.checkpoint, torch.float32)
        return walk(reference, exported, ids, claim.rows, unrounded)


def differences(walked: Walk, names: Sequence[str], export: Path, tolerance: float) -> list[PointDifference]:
    """Return the largest difference at each point.

    Raises:
        VerificationError: one exceeds the tolerance; the first in forward order is named.
    """
    combined = [worst(same_point) for same_point in walked.points]
    # Errors propagate forward, so the first point beyond the tolerance is nearest to the cause.
    bad = first_beyond(combined, tolerance)
    if bad is None:
        return combined
    at = walked.points[combined.index(bad)]
    text = next(name for name, row in zip(names, at, strict=True) if first_beyond([row], tolerance))
    message = (
        f"the export diverges from the checkpoint at {bad.point}: largest difference {bad.largest:.3g} with values "
        f"up to {bad.scale:.3g}, relative {bad.relative:.1e}; the tolerance is {tolerance:.0e} (first text: {text!r}; "
        f"end to end the logits differ by {worst(walked.end_to_end).largest:.3g})"
    )
    raise VerificationError(message, str(export), NOTHING_PUBLISHED)


def check_weights(claim: Claim, export: Path) -> None:
    """Map an export's files back, and compare every tensor with the checkpoint's.

    Raises:
        VerificationError: one is not equal bit for bit; its name in the checkpoint is given.
    """
    weights, sizes, model = claim.weights(), Sizes.of(claim.config.model, claim.rows), claim.config.model
    tied, everything = model.share_embeddings_and_output_weights, SafetensorsFiles(export)
    if tied and not same_output(everything):
        message = f"{OUTPUT} in the files differs from the embedding, but the checkpoint ties them"
        raise VerificationError(message, str(export), NOTHING_PUBLISHED)
    left_out = ignored(everything, family_of(model).architecture)
    mapped = from_hf(SafetensorsFiles(export, tied=tied, left_out=left_out), model, sizes)
    with steps(mapped, "comparing tensors", len(mcore_shapes(model, sizes))) as counted:
        for name, tensor in counted:
            if not _equal(tensor, weights[name][: len(tensor)], claim.dtype):
                raise VerificationError(
                    f"{name} in the files differs from the checkpoint", str(export), NOTHING_PUBLISHED
                )


def same_output(files: SafetensorsFiles) -> bool:
    """Tell whether the files' output layer, if any, equals the embedding bit for bit; some rows in memory."""
    if OUTPUT not in files or EMBEDDING not in files:
        return True
    # One row first: in files that differ it nearly always tells at once.
    rows, first = 1, 0
    while len(ours := files.rows(OUTPUT, first, first + rows)):
        if not torch.equal(ours, files.rows(EMBEDDING, first, first + rows)):
            return False
        rows, first = max(1, _BLOCK // ours.shape[-1]), first + len(ours)
    return True


def _equal(tensor: Tensor, kept: Tensor, dtype: torch.dtype) -> bool:
    """Compare with a checkpoint's tensor cast to another type, without a full copy."""
    pairs = zip(tensor.view(-1).split(_BLOCK), kept.reshape(-1).split(_BLOCK), strict=True)
    return all(torch.equal(ours, theirs.to(dtype)) for ours, theirs in pairs)


def check_tokenizer(tokenizer: Tokenizer, export: Path, texts: Sequence[ProofText]) -> int:
    """Return the number of ids compared between the exported tokenizer and the run's; all agree.

    Raises:
        VerificationError: transformers cannot load it, or it gives other ids; the first difference is shown.
    """
    from transformers import AutoTokenizer

    try:
        exported = AutoTokenizer.from_pretrained(export, local_files_only=True)
    except Exception as error:
        raise VerificationError(
            f"transformers cannot load the tokenizer: {error}", str(export), NOTHING_PUBLISHED
        ) from error
    if exported.eos_token_id != tokenizer.eod:
        message = f"the exported tokenizer's end token is {exported.eos_token_id}, but the run's is {tokenizer.eod}"
        raise VerificationError(message, str(export), NOTHING_PUBLISHED)
    compared = 0
    for text in texts:
        ours = tokenizer.encode(text.text)
        theirs = exported(text.text, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]
        if ours != theirs:
            # -1: one list is the other one's beginning, so they differ at the end only.
            at = next((i for i, pair in enumerate(zip(ours, theirs, strict=False)) if len(set(pair)) == 2), -1)
            around = tokenizer.decode(ours[max(0, at - 4) : at + 4]) if at >= 0 else "its end"
            message = f"the exported tokenizer gives different ids on {text.name!r}, near {around!r}"
            raise VerificationError(message, str(export), NOTHING_PUBLISHED)
        compared += len(ours)
    return compared


def _check_vocabulary(document: Mapping[str, Any], rows: int, export: Path) -> None:
    """Check config.json; transformers itself compares the weights' rows with it on loading."""
    if document["vocab_size"] != rows:
        message = f"config.json has {document['vocab_size']} tokens, but the checkpoint has {rows}"
        raise VerificationError(message, str(export / "config.json"), NOTHING_PUBLISHED)


def render_report(report: Report, console: Console) -> None:
    """Show a report as a table: one line per point, layers folded into the worst one."""
    if not report.verified:
        console.print(f"{report.source}: exported as {report.architecture}, not verified", markup=False)
        return
    figures = ("largest", "mean", "relative")
    table = FigureTable("point", *figures, figures=figures)
    console.print(f"{report.source} as {report.architecture} ({report.dtype})", markup=False, soft_wrap=True)
    for point in folded(report.points):
        table.add_row(point.point, f"{point.largest:.2e}", f"{point.mean:.2e}", f"{point.relative:.1e}")
    console.print(table)
    console.print(
        f"{report.tokens} tokens of {len(report.texts)} texts: loss {report.loss:.6f} and {report.exported_loss:.6f}, "
        f"greedy tokens equal at {report.greedy_agreement:.2%}, {report.tokenizer_ids} token ids equal"
    )
    if report.end_to_end is not None:
        console.print(
            f"each step got equal inputs; end to end the logits differ by {report.end_to_end.largest:.2e}, "
            f"{report.end_to_end.relative:.1e} of the largest"
        )
    if report.rounding is not None:
        console.print(f"rounding to {report.dtype} alone changes the logits by up to {report.rounding:.2g}")


def folded(points: Sequence[PointDifference]) -> list[PointDifference]:
    """Return the points with those of all layers folded into the worst layer of each kind."""
    kinds: dict[str, list[PointDifference]] = {}
    for point in points:
        kind = point.point.split()[-1] if point.point.startswith("layer ") else point.point
        kinds.setdefault(kind, []).append(point)
    return [max(same, key=lambda point: point.relative) for same in kinds.values()]

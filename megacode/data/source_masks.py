"""What of a source counts in the loss: everything, or what its loss mask says; and how its windows are packed.

A packed set is always read with its mask, whatever `loss` says, since its padding must never count. `loss: all` is
refused where that mask leaves out more than padding: which of the other tokens are padding is not known.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from megacode.base.errors import ConfigError, DataError
from megacode.data.indexed import IndexedDataset
from megacode.data.loss_masks import LossMask
from megacode.data.manifest import Manifest

Loss = Literal["all", "answers"]
_LOOKED_AT = 64  # windows of which the first token is looked up
_MAKE = "`megacode data chat`"


@dataclass(frozen=True)
class SourceMask:
    """What of a source counts in the loss.

    Attributes:
        mask: of its data set; None: all tokens count.
        packed: tokens of a packed window; None: windows are cut anywhere.
        share: of its tokens that count.
        form: what `SourceSize.form` says of it; None: nothing, as of all sources without a mask.
    """

    mask: LossMask | None = None
    packed: int | None = None
    share: float = 1.0
    form: dict[str, Any] | None = None

    def labels(self, first_token: int, seq_length: int) -> npt.NDArray[np.float32] | None:
        """Return whether the labels of a window count, float32 [S]; None: all do.

        The label at position i is token first_token + i + 1. The last input of a packed window has none.
        """
        if self.mask is None and self.packed is None:
            return None
        counted = np.ones(seq_length, dtype=np.float32)
        count = seq_length - (self.packed is not None)
        if self.mask is not None:
            counted[:count] = self.mask.read(first_token + 1, count)
        counted[count:] = 0.0
        return counted


def source_mask(name: str, data: IndexedDataset, manifest: Manifest | None, loss: Loss, fim: bool) -> SourceMask:
    """Return what of a source counts.

    Args:
        name: of the source.
        data: its data set.
        manifest: of the data set; None: it has none, and so no mask.
        loss: of the source.
        fim: whether its documents are rearranged.

    Raises:
        ConfigError: `loss` does not fit the data set, or fill in the middle would move tokens away from their bits.
        DataError: the mask is missing or does not fit its data, or packed windows cut documents.
    """
    described = manifest.loss_mask if manifest else None
    packed = manifest.packed if manifest else None
    if loss == "answers" and described is None:
        message = f"loss is answers, but {data.prefix} has no loss mask"
        raise ConfigError(message, f"sources.{name}.loss", f"make the data set with {_MAKE}, or set loss: all")
    if fim and (packed or loss == "answers"):
        message = "fill in the middle would move tokens away from their loss mask"
        raise ConfigError(message, f"sources.{name}.fim_rate", "set it to 0")
    if packed:
        assert manifest is not None
        _check_packed(name, data, manifest, loss)
    elif loss == "all":
        return SourceMask()
    mask = LossMask(data.prefix, data.tokens) if described else None
    share = described["counted"] / data.tokens if described else 1.0
    form = ({"packed": packed["seq_length"]} if packed else {}) | ({"mask": described["sha256"]} if described else {})
    return SourceMask(mask, packed["seq_length"] if packed else None, share, form)


def _check_packed(name: str, data: IndexedDataset, manifest: Manifest, loss: Loss) -> None:
    assert manifest.packed is not None
    length, padding = manifest.packed["seq_length"], manifest.packed["padding"]
    where, again = f"sources.{name} ({data.prefix})", f"make it again with {_MAKE}"
    if data.tokens % length:
        message = (
            f"its manifest says windows of {length:,} tokens, but its {data.tokens:,} tokens are no multiple of that"
        )
        raise DataError(message, where, again)
    total = data.tokens // length
    # Spread evenly, both ends among them.
    for window in sorted({number * (total - 1) // (_LOOKED_AT - 1) for number in range(_LOOKED_AT)}):
        document = data.document_at(window * length)
        if data.document_bounds(document)[0] != window * length:
            raise DataError(f"its packed window {window:,} begins inside document {document:,}", where, again)
    if manifest.loss_mask is None and padding:
        raise DataError(f"it has {padding:,} tokens of padding, and no loss mask that leaves them out", where, again)
    left_out = manifest.tokens - manifest.loss_mask["counted"] if manifest.loss_mask else 0
    # The first token of a document is predicted from nothing, so its bit may be either.
    if loss == "all" and left_out > padding + data.documents:
        message = (
            f"loss is all, but the mask of {data.prefix} leaves out {left_out - padding:,} tokens that are not padding"
        )
        fix = f"set loss: answers; or, to count all but padding, make the data set with {_MAKE} --loss all"
        raise ConfigError(message, f"sources.{name}.loss", fix)

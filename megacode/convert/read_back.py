"""Compare what transformers reads from an export with the checkpoint's model, where a forward pass does not show it.

A slightly wrong epsilon stays below the tolerance. Windows and the scaling of rotary positions change little or nothing
on texts of a few hundred tokens. So two things are compared exactly: config.json as transformers parses it, by the
family's table; and the constants of the modules that transformers builds from it, without the table.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from megacode.base.errors import VerificationError
from megacode.config.model import ModelConfig
from megacode.convert.architectures import family_of
from megacode.convert.exported import NOTHING_PUBLISHED, Exported

_TOLERANCE = 1e-5  # of cosines and sines, relative: both sides compute the frequencies in fp32


def check_config(model: ModelConfig, export: Path) -> None:
    """Compare what transformers reads from config.json, defaults included, with the checkpoint's config.

    Raises:
        VerificationError: a value differs; it is named.
    """
    from transformers import AutoConfig

    where = str(export / "config.json")
    try:
        parsed = AutoConfig.from_pretrained(export, local_files_only=True).to_dict()
    except Exception as error:  # its validators raise errors of many kinds
        message = f"transformers cannot read it: {' '.join(str(error).split())[:300]}"
        raise VerificationError(message, where, NOTHING_PUBLISHED) from None
    for field, setting in family_of(model).mismatches(model, parsed):
        message = (
            f"transformers reads another model.{field} than the checkpoint's {getattr(model, field)!r} "
            f"(it reads what you would get if you {setting})"
        )
        raise VerificationError(message, where, NOTHING_PUBLISHED)


def check_modules(model: ModelConfig, exported: Exported) -> None:
    """Compare the constants of the modules that transformers built with the checkpoint's model.

    Raises:
        VerificationError: one differs; it is named.
    """
    for name, theirs, ours in (*_epsilons(model, exported), *_windows(model, exported)):
        if theirs != ours:
            raise VerificationError(
                f"transformers' {name} is {theirs}, but the checkpoint's is {ours}", fix=NOTHING_PUBLISHED
            )
    for layer in range(model.num_layers):
        # One layer of each kind is enough, and usually there is one kind.
        if model.rotates(layer) and _first_of_its_kind(model, layer):
            _check_rotation(model, layer, exported)


def _epsilons(model: ModelConfig, exported: Exported) -> Iterator[tuple[str, float, float]]:
    for name, module in exported.modules():
        epsilon = getattr(module, "variance_epsilon", getattr(module, "eps", None))
        if epsilon is not None:
            yield f"epsilon of {name}", epsilon, model.layernorm_epsilon


def _windows(model: ModelConfig, exported: Exported) -> Iterator[tuple[str, int | None, int | None]]:
    for layer, window in enumerate(exported.windows()):
        yield f"window of layer {layer}", window, model.window(layer)


def _first_of_its_kind(model: ModelConfig, layer: int) -> bool:
    kinds = [(model.window(n) is None, model.scales(n)) for n in range(layer + 1) if model.rotates(n)]
    return kinds.index(kinds[-1]) == len(kinds) - 1


def _check_rotation(model: ModelConfig, layer: int, exported: Exported) -> None:
    """Compare the cosines and sines of one position: they determine all frequencies, and the factor of both."""
    from megacode.mcore.rotary import RotaryTable

    table: Any = RotaryTable(model, torch.float32)(2)
    # Where only some layers are scaled, the table has their rows second.
    rows = (table[int(model.scales(layer))] if table.dim() == 3 else table)[1].cpu().double()
    cos, _, _, sin = rows.chunk(4)
    theirs = exported.rotation(layer, 1)
    for name, ours, other in zip(("cosines", "sines"), (cos, sin), theirs, strict=True):
        if ours.shape != other.shape or not torch.allclose(ours, other.double(), rtol=_TOLERANCE, atol=0):
            message = f"transformers' rotary {name} in layer {layer} differ from the checkpoint's"
            raise VerificationError(message, fix=NOTHING_PUBLISHED)

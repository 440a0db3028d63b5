"""Rows for rotary positions: base, share of the channels, and scaling.

transformers 5 keeps them in `rope_parameters`. Earlier versions, and engines that follow them, read `rope_theta`,
`rope_scaling` and `partial_rotary_factor`, and would silently fall back to defaults. Exports have both spellings.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from megacode.config.model import ModelConfig, RotaryScaling
from megacode.convert.families.rows import ANOTHER, Document, Refused

# Settings of each kind of scaling: their names in config.json and in megacode's config.
SETTINGS: dict[str, dict[str, str]] = {
    "linear": {"factor": "factor"},
    "llama3": {
        "factor": "factor",
        "original_max_position_embeddings": "original_length",
        "low_freq_factor": "low_frequency_factor",
        "high_freq_factor": "high_frequency_factor",
    },
    "yarn": {
        "factor": "factor",
        "original_max_position_embeddings": "original_length",
        "beta_fast": "beta_fast",
        "beta_slow": "beta_slow",
        "attention_factor": "attention_factor",
    },
}
_NOT_SCALING = ("rope_type", "type", "rope_theta", "partial_rotary_factor")
_BY_KIND = ("full_attention", "sliding_attention")
_KEYS = ("rope_parameters", "rope_theta", "rope_scaling")


@dataclass(frozen=True)
class Rotary:
    """Rotary positions that are the same in every layer that has them; `partial`: some channels may not rotate."""

    partial: bool = False

    @property
    def keys(self) -> tuple[str, ...]:
        return (*_KEYS, "partial_rotary_factor")

    @property
    def fields(self) -> tuple[str, ...]:
        return ("rotary_base", "rotary_percent", "rotary_scaling")

    def read(self, document: Document) -> dict[str, Any]:
        rope = document["rope_parameters"]
        share = rope.get("partial_rotary_factor", 1.0)
        # Other classes use the key in some kinds of scaling and ignore it in the rest.
        if share != 1.0 and not self.partial:
            message = f"partial_rotary_factor is {share!r}, but megacode supports only 1.0 for this class"
            raise Refused("partial_rotary_factor", message)
        return {"rotary_base": rope["rope_theta"], "rotary_percent": share, "rotary_scaling": scaling_of(rope)}

    def write(self, model: ModelConfig) -> dict[str, Any]:
        scaling = None if model.rotary_scaling is None else written(model.rotary_scaling)
        share = {"partial_rotary_factor": model.rotary_percent} if self.partial else {}
        rope = {"rope_type": "default", **(scaling or {}), "rope_theta": model.rotary_base, **share}
        old = {} if scaling is None else {"rope_scaling": scaling}
        return {"rope_theta": model.rotary_base, **share, **old, "rope_parameters": rope}


@dataclass(frozen=True)
class RotaryByKind:
    """Rotary positions that may be scaled in the layers with full attention alone (OLMo 3)."""

    keys: tuple[str, ...] = _KEYS
    fields: tuple[str, ...] = ("rotary_base", "rotary_percent", "rotary_scaling")

    def read(self, document: Document) -> dict[str, Any]:
        parameters, fix = document["rope_parameters"], "give rope_parameters with full_attention and sliding_attention"
        others = [key for key in parameters if key not in _BY_KIND]
        if others:
            # Version 5.23 of transformers ignores them without a word.
            raise Refused(
                "rope_parameters", f"{others[0]} stands beside the kinds of layers, which have their own", fix
            )
        ropes = {kind: parameters.get(kind) or {} for kind in _BY_KIND if kind in document["layer_types"]}
        bases = {rope.get("rope_theta") for rope in ropes.values()}
        if len(bases) != 1:
            message = f"rope_theta differs between the kinds of layers: {sorted(map(str, bases))}"
            raise Refused("rope_parameters", message, f"{fix}, and the same rope_theta in both")
        scalings = {kind: scaling_of(rope) for kind, rope in ropes.items()}
        full, sliding = scalings.get("full_attention"), scalings.get("sliding_attention")
        if sliding is not None and sliding != full:
            message = "rotary positions are scaled in the sliding layers, and otherwise in the others"
            raise Refused("rope_parameters", message)
        if full is not None and sliding is None:
            full = full.model_copy(update={"layers": "full"})
        return {"rotary_base": bases.pop(), "rotary_percent": 1.0, "rotary_scaling": full}

    def write(self, model: ModelConfig) -> dict[str, Any]:
        scaling, plain = model.rotary_scaling, {"rope_type": "default", "rope_theta": model.rotary_base}
        scaled = plain if scaling is None else {**written(scaling), "rope_theta": model.rotary_base}
        everywhere = scaling is not None and scaling.layers == "all"
        kinds = {"full_attention": scaled, "sliding_attention": scaled if everywhere else plain}
        old = {} if scaling is None else {"rope_scaling": written(scaling)}
        return {"rope_theta": model.rotary_base, **old, "rope_parameters": kinds}


def scaling_of(rope: Mapping[str, Any]) -> RotaryScaling | None:
    """Return the scaling that one `rope_parameters` describes.

    Raises:
        Refused: megacode does not have its kind, or one of its settings.
    """
    # `type` is the older spelling of `rope_type`.
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind not in ("default", *SETTINGS):
        fix = f"megacode has {', '.join(SETTINGS)}; {ANOTHER}"
        raise Refused("rope_parameters", f"rotary positions are scaled ({kind}), which megacode does not support", fix)
    names = SETTINGS.get(kind, {})
    scaling = {key: value for key, value in rope.items() if key not in _NOT_SCALING and value is not None}
    # `truncate: true` is what transformers does without it.
    others = [key for key, value in scaling.items() if key not in names and (key, value) != ("truncate", True)]
    if others:
        message = f"{others[0]} is {scaling[others[0]]!r} in rotary scaling {kind}, which megacode does not have"
        raise Refused("rope_parameters", message)
    if kind == "default":
        return None
    settings = {names[key]: value for key, value in scaling.items() if key in names}
    if "factor" not in settings:
        raise Refused("rope_parameters", f"rotary scaling {kind} has no factor", "add factor")
    return RotaryScaling(kind=kind, **settings)


def written(scaling: RotaryScaling) -> dict[str, Any]:
    """Return a scaling as `rope_scaling` spells it."""
    settings = {key: getattr(scaling, name) for key, name in SETTINGS[scaling.kind].items()}
    return {"rope_type": scaling.kind, **{key: value for key, value in settings.items() if value is not None}}

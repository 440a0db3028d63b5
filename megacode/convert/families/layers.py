"""Rows for what differs between layers: sliding windows, and layers without rotary positions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from megacode.config.model import ModelConfig
from megacode.convert.families.rows import Document, Refused

T = TypeVar("T")
_KINDS = {"full_attention": "full", "sliding_attention": "sliding"}


def pattern_of(layers: Sequence[T]) -> tuple[T, ...]:
    """Return the shortest pattern that, repeated, gives the layers."""
    lengths = range(1, len(layers) + 1)
    # n need not divide the number of layers: a pattern may break off at the last one.
    length = next(n for n in lengths if all(kind == layers[i % n] for i, kind in enumerate(layers)))
    return tuple(layers[:length])


@dataclass(frozen=True)
class OneWindow:
    """One window for all layers, or none (Mistral)."""

    keys: tuple[str, ...] = ("sliding_window",)
    fields: tuple[str, ...] = ("attention_pattern", "sliding_window")

    def read(self, document: Document) -> dict[str, Any]:
        window = document.get("sliding_window")
        return {"attention_pattern": ("full",) if window is None else ("sliding",), "sliding_window": window}

    def write(self, model: ModelConfig) -> dict[str, Any]:
        return {"sliding_window": model.window(0)}


@dataclass(frozen=True)
class LayerTypes:
    """A kind for each layer and one window for all sliding ones.

    Attributes:
        switch: the class has `use_sliding_window`; it must agree with the layers' kinds.
        needs_window: the class makes the mask of sliding layers even where no layer is one.
    """

    switch: bool = False
    needs_window: bool = False

    @property
    def keys(self) -> tuple[str, ...]:
        return ("layer_types", "sliding_window", *(("use_sliding_window", "max_window_layers") if self.switch else ()))

    @property
    def fields(self) -> tuple[str, ...]:
        return ("attention_pattern", "sliding_window")

    def read(self, document: Document) -> dict[str, Any]:
        kinds, window = document["layer_types"], document.get("sliding_window")
        unknown = [kind for kind in kinds if kind not in _KINDS]
        if unknown:
            raise Refused("layer_types", f"layer_types has {unknown[0]!r}, which megacode does not have")
        if len(kinds) != document["num_hidden_layers"]:
            message = f"layer_types has {len(kinds)} entries, but the model {document['num_hidden_layers']} layers"
            raise Refused("layer_types", message, "give one entry a layer")
        slides = "sliding_attention" in kinds
        if slides and self.switch and not document.get("use_sliding_window"):
            message = "layer_types has sliding layers, but use_sliding_window is false"
            raise Refused("use_sliding_window", message, "set use_sliding_window: true, or remove layer_types")
        if window is None and (slides or self.needs_window):
            message = "sliding_window is missing, and transformers cannot run this class without it"
            raise Refused("sliding_window", message, "add sliding_window")
        pattern = pattern_of([_KINDS[kind] for kind in kinds])
        return {"attention_pattern": pattern, "sliding_window": window if slides else None}

    def write(self, model: ModelConfig) -> dict[str, Any]:
        windows = [model.window(layer) for layer in range(model.num_layers)]
        kinds = ["full_attention" if window is None else "sliding_attention" for window in windows]
        document: dict[str, Any] = {"layer_types": kinds, "sliding_window": next(filter(None, windows), None)}
        if self.switch:
            # Older versions derive the kinds from the number of full layers at the beginning.
            full = next((layer for layer, window in enumerate(windows) if window), model.num_layers)
            document |= {"use_sliding_window": any(windows), "max_window_layers": full}
        return document


@dataclass(frozen=True)
class RotatesWhereItSlides:
    """Sliding layers have rotary positions, layers with full attention have none (Cohere 2)."""

    keys: tuple[str, ...] = ()
    fields: tuple[str, ...] = ("rotary_pattern",)

    def read(self, document: Document) -> dict[str, Any]:
        slides = [kind == "sliding_attention" for kind in document["layer_types"]]
        return {"rotary_pattern": pattern_of(["rotary" if slide else "none" for slide in slides])}

    def write(self, model: ModelConfig) -> dict[str, Any]:
        return {}


@dataclass(frozen=True)
class NoRopeLayers:
    """A flag for each layer: 1 if it has rotary positions (SmolLM 3; the key's name says the opposite)."""

    keys: tuple[str, ...] = ("no_rope_layers", "no_rope_layer_interval")
    fields: tuple[str, ...] = ("rotary_pattern",)

    def read(self, document: Document) -> dict[str, Any]:
        flags, layers = document["no_rope_layers"], document["num_hidden_layers"]
        if len(flags) < layers:
            message = f"no_rope_layers has {len(flags)} entries, but the model {layers} layers"
            raise Refused("no_rope_layers", message, "give one entry a layer")
        # The class reads a flag by its layer's number: more flags than layers do nothing.
        return {"rotary_pattern": pattern_of(["rotary" if flag else "none" for flag in flags[:layers]])}

    def write(self, model: ModelConfig) -> dict[str, Any]:
        return {"no_rope_layers": [int(model.rotates(layer)) for layer in range(model.num_layers)]}

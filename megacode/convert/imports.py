"""Translate a Hugging Face config.json to megacode's model config, or list every reason why not. No torch here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from megacode.base.errors import CheckpointError, Problem
from megacode.config.model import ModelConfig
from megacode.convert.architectures import LAYOUTS, STABLELM, Architecture


def model_of(document: Mapping[str, Any], where: str) -> ModelConfig:
    """Return the model that a config.json describes.

    Args:
        document: of the file, as transformers parses it: absent keys have its class's defaults.
        where: its path, for messages.

    Raises:
        CheckpointError: with every setting that megacode does not support.
    """
    architecture = architecture_of(document)
    supported = [item for item in LAYOUTS.items() if item[1].architecture == architecture]
    if not supported:
        known = ", ".join(layout.architecture for layout in LAYOUTS.values())
        raise CheckpointError(f"megacode does not support {architecture}", where, f"choose a model of one of {known}")
    (block, norm), layout = supported[0]
    problems = list(_differences(document, layout, where))
    if problems:
        raise CheckpointError(problems=problems)
    heads, hidden = document["num_attention_heads"], document["hidden_size"]
    # Absent in configs of models whose heads fill hidden_size.
    head = document.get("head_dim") or hidden // heads
    return ModelConfig(
        num_layers=document["num_hidden_layers"],
        hidden_size=hidden,
        ffn_hidden_size=document["intermediate_size"],
        num_attention_heads=heads,
        num_query_groups=document.get("num_key_value_heads") or heads,
        kv_channels=None if head * heads == hidden else head,
        block=block,
        normalization=norm,
        layernorm_epsilon=document[layout.epsilon_key],
        rotary_base=document["rope_parameters"]["rope_theta"],
        share_embeddings_and_output_weights=document["tie_word_embeddings"],
        init_method_std=document["initializer_range"],
    )


def architecture_of(document: Mapping[str, Any]) -> str:
    """Return the class that a config.json names, or `none`."""
    # A list by convention, of which the first entry counts.
    named = document.get("architectures")
    return str(named[0]) if isinstance(named, list) and named else "none"


def _rope(document: Mapping[str, Any]) -> dict[str, Any]:
    return document.get("rope_parameters") or {}


def _differences(document: Mapping[str, Any], layout: Architecture, where: str) -> Iterator[Problem]:
    """Yield every setting by which the model computes something other than megacode."""
    rope = _rope(document)
    # transformers 5 moved this key into rope_parameters; constants name it without.
    given = {**document, **{key: rope[key] for key in ("partial_rotary_factor",) if key in rope}}
    for key, wanted in {**layout.constants, "hidden_act": "silu"}.items():
        if given.get(key) != wanted:
            fix = "choose a model without it"
            yield Problem(f"{key} is {given.get(key)!r}, but megacode supports only {wanted!r}", f"{where}: {key}", fix)
    # `type` is the older spelling of `rope_type`.
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        fix = "choose a model with unscaled rotary positions"
        yield Problem(
            f"rotary positions are scaled ({kind}), which megacode does not support", f"{where}: rope_parameters", fix
        )
    if layout is STABLELM and document.get("head_dim"):
        yield Problem(
            "head_dim is set, but StableLM ignores it: its heads fill hidden_size", f"{where}: head_dim", "remove it"
        )

"""From a Hugging Face config.json to megacode's model, or to every reason why there is none. No torch here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from megacode.base.errors import CheckpointError, Problem
from megacode.config.model import ModelConfig
from megacode.convert.layouts import LAYOUTS, STABLELM, Layout

# Where transformers' class would compute something else if a key that a config may leave out is absent.
_ABSENT: dict[str, Any] = {
    "attention_bias": False,
    "mlp_bias": False,
    "logit_scale": 0.0625,
    "use_qk_norm": False,
    "use_parallel_residual": False,
    "use_qkv_bias": False,
    "qk_layernorm": False,
    "hidden_dropout": 0.0,
    "partial_rotary_factor": 0.25,
    "hidden_act": "silu",
}
_TIED = {"cohere": True}  # by default, by the kind of model


def model_of(document: Mapping[str, Any], where: str) -> ModelConfig:
    """Return the model that a config.json describes.

    Args:
        document: of the file.
        where: its path, for messages.

    Raises:
        CheckpointError: with everything in it that megacode does not compute.
    """
    architecture = (document.get("architectures") or ["none"])[0]
    found = [item for item in LAYOUTS.items() if item[1].architecture == architecture]
    if not found:
        known = ", ".join(layout.architecture for layout in LAYOUTS.values())
        raise CheckpointError(f"megacode has no layout for {architecture}", where, f"convert one of {known}")
    (block, norm), layout = found[0]
    problems = list(_differences(document, layout, where))
    if problems:
        raise CheckpointError(problems=problems)
    heads, hidden = document["num_attention_heads"], document["hidden_size"]
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
        layernorm_epsilon=document.get(layout.epsilon_key, 1e-5),
        rotary_base=_rope(document).get("rope_theta", document.get("rope_theta", 10000.0)),
        share_embeddings_and_output_weights=document.get("tie_word_embeddings", _TIED.get(layout.model_type, False)),
        init_method_std=document.get("initializer_range", 0.02),
    )


def _rope(document: Mapping[str, Any]) -> dict[str, Any]:
    return document.get("rope_parameters") or document.get("rope_scaling") or {}


def _differences(document: Mapping[str, Any], layout: Layout, where: str) -> Iterator[Problem]:
    """Yield what the model computes otherwise than megacode."""
    rope = _rope(document)
    given = {
        **_ABSENT,
        **document,
        **({"partial_rotary_factor": rope["partial_rotary_factor"]} if "partial_rotary_factor" in rope else {}),
    }
    for key, wanted in {**layout.constants, "hidden_act": "silu"}.items():
        if given.get(key) != wanted:
            fix = "choose a model without it"
            yield Problem(f"{key} is {given.get(key)!r}, and megacode computes {wanted!r}", f"{where}: {key}", fix)
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        fix = "choose a model with plain rotary positions"
        yield Problem(f"rotary positions are scaled ({kind}), and megacode's are not", f"{where}: rope_parameters", fix)
    if layout is STABLELM and document.get("head_dim"):
        yield Problem("head_dim is set, and StableLM's heads fill hidden_size", f"{where}: head_dim", "remove it")

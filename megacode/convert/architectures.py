"""Choose the Hugging Face family that computes exactly what a megacode model computes.

A model's home is the first family whose config.json, read back, means the model itself. The export then needs no model
code: the weights are renamed and re-arranged, and the config does the rest. A model without a home is refused with the
families that are nearest, and what to set for each. No torch here: `megacode plan` may ask before a run starts.
"""

from __future__ import annotations

from typing import Any

from megacode.base.errors import ConfigError
from megacode.config.model import ModelConfig
from megacode.convert.families.family import Family
from megacode.convert.families.table import FAMILIES

_SHOWN = 3  # families of an error message


def family_of(model: ModelConfig) -> Family:
    """Return the family that computes what a model computes.

    Raises:
        ConfigError: there is none; the message says what to set.
    """
    nearest: list[tuple[Family, list[tuple[str, str]]]] = []
    for family in FAMILIES:
        mismatches = list(family.mismatches(model))
        if not mismatches:
            return family
        nearest.append((family, mismatches))
    fewest = min(len(mismatches) for _, mismatches in nearest)
    # Families that ask for the same changes are one way; the first of the table stands for them.
    ways: dict[str, tuple[Family, list[tuple[str, str]]]] = {}
    for family, mismatches in nearest:
        if len(mismatches) == fewest:
            ways.setdefault(", ".join(fix for _, fix in mismatches), (family, mismatches))
    near = list(ways.items())[:_SHOWN]
    names = ", ".join(f"{family.title} but for {_listed(differences)}" for _, (family, differences) in near)
    message = f"no Hugging Face model computes the same; nearest: {names}"
    fix = ", or ".join(f"{way} (exports as {family.title})" for way, (family, _) in near)
    raise ConfigError(message, f"model.{near[0][1][1][0][0]}", fix)


def _listed(mismatches: list[tuple[str, str]]) -> str:
    return " and ".join(field for field, _ in mismatches)


def hf_config(model: ModelConfig, vocab_size: int, seq_length: int, eod: int | None, dtype: str) -> dict[str, Any]:
    """Return the document of config.json.

    Args:
        model: the model's shape.
        vocab_size: rows of the embedding.
        seq_length: the sequence length of training.
        eod: the token between documents; None without a tokenizer.
        dtype: the exported weights' type, as torch names it.
    """
    family = family_of(model)
    return {
        "architectures": [family.architecture],
        "model_type": family.model_type,
        "vocab_size": vocab_size,
        **family.write(model),
        "max_position_embeddings": seq_length,
        # A document begins after another one's end, so one token serves for both.
        "bos_token_id": eod,
        "eos_token_id": eod,
        "pad_token_id": None,  # naming one would freeze that row of the embedding in fine-tuning
        "use_cache": True,
        "dtype": dtype,
    }

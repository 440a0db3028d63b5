"""Translate a Hugging Face config.json to megacode's model config, or list every reason why not. No torch here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import ValidationError

from megacode.base.errors import CheckpointError, Problem
from megacode.config.model import ModelConfig
from megacode.convert.families.family import Family
from megacode.convert.families.rows import ANOTHER
from megacode.convert.families.table import FAMILIES

# Keys whose meaning is known and that no family here has; every other unknown key has one general message.
_NOT_HERE = {
    "quantization_config": ("its weights are quantized", "choose the repository of the original weights"),
    "num_local_experts": ("it is a mixture of experts", "choose a dense model"),
    "num_experts": ("it is a mixture of experts", "choose a dense model"),
    "n_routed_experts": ("it is a mixture of experts", "choose a dense model"),
    "attn_logit_softcapping": ("its attention scores are capped", ANOTHER),
    "final_logit_softcapping": ("its logits are capped", ANOTHER),
}


def model_of(document: Mapping[str, Any], raw: Mapping[str, Any], where: str) -> ModelConfig:
    """Return the model that a config.json describes.

    Args:
        document: the config as transformers parses it: absent keys have its class's defaults.
        raw: the file's own object; each of its keys must be known.
        where: the file's path, for messages.

    Raises:
        CheckpointError: with every setting that megacode does not support, and every key that it does not know.
    """
    family = family_of_document(raw, where)
    fields, refusals = family.read(document)
    problems = [Problem(refused.what, f"{where}: {refused.key}", refused.fix) for refused in refusals]
    problems += _unknown(raw, family, where)
    if problems:
        raise CheckpointError(problems=problems)
    try:
        return ModelConfig(**fields)
    except ValidationError as error:
        # What the family has, megacode's own checks may still refuse; each field becomes a problem of its own.
        wrong = ((".".join(map(str, item["loc"])), item["msg"]) for item in error.errors())
        problems = [Problem(f"megacode's model.{field}: {message}", where, ANOTHER) for field, message in wrong]
        raise CheckpointError(problems=problems) from None


def family_of_document(raw: Mapping[str, Any], where: str) -> Family:
    """Return the family that a config.json names.

    Raises:
        CheckpointError: megacode has no table for its class, or the class and model_type do not belong together.
    """
    architecture, kind = architecture_of(raw), raw.get("model_type")
    family = next((family for family in FAMILIES if family.architecture == architecture), None)
    if family is None:
        known = ", ".join(family.architecture for family in FAMILIES)
        raise CheckpointError(f"megacode does not support {architecture}", where, f"choose a model of one of {known}")
    if family.model_type != kind:
        message = f"model_type is {kind!r}, but {architecture} has {family.model_type!r}"
        raise CheckpointError(message, f"{where}: model_type", "transformers goes by model_type: correct one of them")
    return family


def architecture_of(document: Mapping[str, Any]) -> str:
    """Return the class that a config.json names, or `none`."""
    # A list by convention, of which the first entry counts.
    named = document.get("architectures")
    return str(named[0]) if isinstance(named, list) and named else "none"


def _unknown(raw: Mapping[str, Any], family: Family, where: str) -> Iterator[Problem]:
    """Yield the keys that the family's table does not explain, whatever their values are."""
    fix = "remove the key if the model computes the same without it"
    # Refused even where it looks harmless: an unknown key may change what the model computes.
    for key in (key for key in raw if key not in family.keys):
        general = f"{key} is {raw[key]!r}, a key that megacode does not know for {family.title}", fix
        message, how = _NOT_HERE.get(key, general)
        yield Problem(message, f"{where}: {key}", how)

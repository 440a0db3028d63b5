"""A family of Hugging Face models: its table, and what megacode's model config says in its terms."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from megacode.config.model import ModelConfig
from megacode.convert.families.rows import Document, FamilyRow, Refused

# Fields that do not change what a trained model computes, or that an export takes from elsewhere.
_ELSEWHERE = {"preset", "vocab_size", "init_seed", "hidden_dropout", "make_vocab_size_divisible_by", "sliding_window"}


@dataclass(frozen=True)
class Tensors:
    """How a family's tensors differ from Llama's.

    Attributes:
        interleaved_rotary: rotary pairs are channels (2j, 2j+1) instead of (j, j + d/2).
        norms: the names of a block's norms, that of attention first.
        qk_norms: the names of the norms of queries and keys; with `{head}`, each head has a tensor of its own.
        norm_bias: the norms of the residual stream have a bias; zero where megacode's model has none.
    """

    interleaved_rotary: bool = False
    norms: tuple[str, str] = ("input_layernorm", "post_attention_layernorm")
    qk_norms: tuple[str, str] = ("q_norm", "k_norm")
    norm_bias: bool = False


@dataclass(frozen=True)
class Family:
    """One family: a class of transformers and its table.

    Attributes:
        title: as people call it.
        architecture: the class that transformers builds.
        model_type: its name in config.json.
        rows: what its keys mean.
        tensors: how its tensors are named and arranged.
        pre_tokenizer: the regular expression of the tokenizer that transformers reads beside its models, whatever
            their files say; None: it reads the files' own.
    """

    title: str
    architecture: str
    model_type: str
    rows: tuple[FamilyRow, ...]
    tensors: Tensors = Tensors()
    pre_tokenizer: str | None = None

    @property
    def keys(self) -> set[str]:
        """The keys of config.json that the table explains."""
        return {key for row in self.rows for key in row.keys}

    def read(self, document: Document) -> tuple[dict[str, Any], list[Refused]]:
        """Return the fields that a document means, and all that megacode does not compute."""
        fields: dict[str, Any] = {}
        refusals = []
        for row in self.rows:
            try:
                fields |= row.read(document)
            except Refused as refused:
                refusals.append(refused)
        return fields, refusals

    def write(self, model: ModelConfig) -> dict[str, Any]:
        """Return the keys for a model, the nearest that the family has."""
        document: dict[str, Any] = {}
        for row in self.rows:
            document |= row.write(model)
        return document

    def mismatches(self, model: ModelConfig, document: Document | None = None) -> Iterator[tuple[str, str]]:
        """Yield the fields by which a document means another model, each with what to set instead.

        Args:
            model: the model.
            document: the keys that are read; absent: the nearest that the family has, so that the fields are those
                by which the model is none of this family.
        """
        document, fields = self.write(model) if document is None else document, model.model_dump()
        for row in self.rows:
            try:
                fields |= row.read(document)
            except Refused as refused:
                field = refused.key if refused.key in fields else row.fields[-1]
                yield field, refused.fix.replace(refused.key, f"model.{field}")
        ours, theirs = _meaning(model), _meaning(ModelConfig(**fields))
        for field, value in theirs.items():
            # Biases of zero compute what no biases compute.
            zero = field == "norm_bias" and self.tensors.norm_bias
            if value != ours[field] and not zero:
                yield field, _set(field, fields[field])


def _meaning(model: ModelConfig) -> dict[str, Any]:
    """Return the fields by what they compute: patterns layer by layer, defaults filled in."""
    layers, scaling = range(model.num_layers), model.rotary_scaling
    return {
        **{name: value for name, value in model if name not in _ELSEWHERE},
        "num_query_groups": model.query_groups,
        "kv_channels": model.head_size,
        "attention_pattern": [model.window(layer) for layer in layers],
        "rotary_pattern": [model.rotates(layer) for layer in layers],
        "rotary_scaling": [scaling.model_copy(update={"layers": "all"}) if model.scales(n) else None for n in layers]
        if scaling
        else [None for _ in layers],
    }


def _set(field: str, value: Any) -> str:
    """Return what to do so that a field has a value, as YAML."""
    if value is None:
        return f"remove model.{field}"
    if isinstance(value, tuple):
        return f"set model.{field}: [{', '.join(value)}]"
    return f"set model.{field}: {str(value).lower() if isinstance(value, bool) else value}"

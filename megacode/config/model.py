"""The `model` and `tokenizer` sections."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from megacode.config.quantity import Count, Frozen


class ModelConfig(Frozen):
    """A decoder-only GPT with SwiGLU, rotary positions (rotating halves, as GPT-NeoX does), and no biases.

    Attributes:
        preset: a named shape; keys given inline win over it.
        num_layers: transformer blocks.
        hidden_size: width of the residual stream.
        ffn_hidden_size: width of the gated MLP, of the gate and of the up projection each.
        num_attention_heads: query heads.
        num_query_groups: key and value heads (GQA); absent: one for each query head.
        kv_channels: width of one head; absent: `hidden_size / num_attention_heads`.
        vocab_size: number of tokens; absent: that of the tokenizer.
        block: `sequential` (attention, then MLP) or `parallel` (both read the same norm, and their outputs are added).
        normalization: RMSNorm or LayerNorm, weights only.
        layernorm_epsilon: added to the variance.
        rotary_base: base of the rotary positions' wavelengths.
        share_embeddings_and_output_weights: tied input and output embeddings.
        init_method_std: standard deviation of the initial weights.
        init_seed: of the initial weights; absent: the run's `seed`, which orders the data.
        hidden_dropout, attention_dropout: probabilities.
        make_vocab_size_divisible_by: the embedding is padded to a multiple of this times the tensor-parallel size.
    """

    preset: str | None = None
    num_layers: int = Field(ge=1)
    hidden_size: Count = Field(ge=1)
    ffn_hidden_size: Count = Field(ge=1)
    num_attention_heads: int = Field(ge=1)
    num_query_groups: int | None = Field(default=None, ge=1)
    kv_channels: int | None = Field(default=None, ge=2)
    vocab_size: Count | None = Field(default=None, ge=2)
    block: Literal["sequential", "parallel"] = "sequential"
    normalization: Literal["RMSNorm", "LayerNorm"] = "RMSNorm"
    layernorm_epsilon: float = Field(default=1e-5, gt=0)
    rotary_base: float = Field(default=10000.0, gt=0)
    share_embeddings_and_output_weights: bool = False
    init_method_std: float = Field(default=0.02, gt=0)
    init_seed: int | None = Field(default=None, ge=0)
    # One epoch of pre-training hardly overfits, so dropout is off by default.
    hidden_dropout: float = Field(default=0.0, ge=0, lt=1)
    attention_dropout: float = Field(default=0.0, ge=0, lt=1)
    # A padded embedding keeps matrix products fast. Padding is never saved, so it may change at a resume.
    make_vocab_size_divisible_by: int = Field(default=128, ge=1)

    @property
    def query_groups(self) -> int:
        """Key and value heads."""
        # Absent means classic multi-head attention.
        return self.num_query_groups or self.num_attention_heads

    @property
    def head_size(self) -> int:
        """Width of one head."""
        return self.kv_channels or self.hidden_size // self.num_attention_heads


class FimTokens(Frozen):
    """The tokens that mark the parts of a document in fill in the middle.

    Attributes:
        prefix, middle, suffix: each stands before its part.
    """

    prefix: str = Field(min_length=1)
    middle: str = Field(min_length=1)
    suffix: str = Field(min_length=1)


class TokenizerConfig(Frozen):
    """The tokenizer of the data sets.

    Attributes:
        kind: `huggingface` (a directory with tokenizer.json) or `sentencepiece` (a `.model` file).
        path: that directory or file, relative to the working directory.
        fim: tokens for fill in the middle; absent: the first known family that the tokenizer has.
    """

    kind: Literal["huggingface", "sentencepiece"]
    path: str
    fim: FimTokens | None = None

"""The `model` and `tokenizer` sections."""

from __future__ import annotations

from fractions import Fraction
from typing import Literal

from pydantic import Field

from megacode.config.quantity import Count, Frozen

YARN_BETA_FAST, YARN_BETA_SLOW = 32.0, 1.0  # defaults of `yarn`, those of the paper for Llama
_LARGEST_SHARE = 4096  # denominator of a share of a head's channels


class RotaryScaling(Frozen):
    """Longer wavelengths of the rotary positions, for sequences longer than those of the first training.

    Attributes:
        kind: `linear` divides all frequencies by `factor`; `llama3` only low ones, with a smooth transition between
            two wavelengths (Llama 3.1); `yarn` between two numbers of rotations, and scales the cosines and sines
            (Peng et al., YaRN, 2023).
        factor: how many times longer the wavelengths are.
        original_length: `llama3` and `yarn`: tokens of the sequences that the wavelengths were made for.
        low_frequency_factor, high_frequency_factor: `llama3`: rotations in `original_length` up to which a frequency
            is scaled fully, and from which it is kept.
        beta_fast, beta_slow: `yarn`: rotations in `original_length` from which a frequency is kept, and up to which
            it is scaled fully; absent: 32 and 1. The border channels are rounded outwards to whole ones.
        attention_factor: `yarn`: factor of the cosines and sines; absent: `0.1 ln(factor) + 1`.
        layers: which layers have it: `all`, or only those with full attention (`full`); sliding ones are then as
            without it.
    """

    kind: Literal["llama3", "linear", "yarn"]
    factor: float = Field(ge=1)
    original_length: Count | None = Field(default=None, ge=1)
    low_frequency_factor: float | None = Field(default=None, gt=0)
    high_frequency_factor: float | None = Field(default=None, gt=0)
    beta_fast: float | None = Field(default=None, gt=0)
    beta_slow: float | None = Field(default=None, gt=0)
    attention_factor: float | None = Field(default=None, gt=0)
    layers: Literal["all", "full"] = "all"


class ModelConfig(Frozen):
    """A decoder-only GPT with a SwiGLU MLP and rotary positions (rotating halves, as GPT-NeoX does).

    Layers are numbered from 0. A pattern is repeated over them: layer i has entry i modulo the pattern's length.

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
        normalization: RMSNorm or LayerNorm, of every norm in the model.
        norm_bias: biases in the LayerNorms of the residual stream; norms of queries and keys have weights only.
        norm_placement: norms `before` attention and MLP, or `after` them: `x + norm(attention(x))`.
        layernorm_epsilon: added to the variance.
        qk_norm: norms of queries and keys before the rotation: `none`; `shared`: over a head's channels, one weight
            [head_size] for all heads; `per_head`: the same with a weight for each head; `across_heads`: over the
            channels of all heads. The last two have weights of [heads * head_size], keys of their own number of heads.
        qkv_bias: biases of the projections to queries, keys and values; no other matrix has one.
        attention_pattern: kind of each layer: `full`, or `sliding`, whose tokens see only the `sliding_window` last.
        sliding_window: keys that a token sees in a sliding layer, its own included.
        rotary_pattern: whether a layer has rotary positions (`rotary`) or no positions at all (`none`).
        rotary_base: base of the rotary positions' wavelengths.
        rotary_percent: share of a head's channels that rotate, the first ones.
        rotary_scaling: longer wavelengths; absent: none.
        logit_scale: the logits are multiplied by it, in training too.
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
    norm_bias: bool = False
    norm_placement: Literal["before", "after"] = "before"
    layernorm_epsilon: float = Field(default=1e-5, gt=0)
    qk_norm: Literal["none", "shared", "per_head", "across_heads"] = "none"
    qkv_bias: bool = False
    attention_pattern: tuple[Literal["full", "sliding"], ...] = Field(default=("full",), min_length=1)
    sliding_window: Count | None = Field(default=None, ge=1)
    rotary_pattern: tuple[Literal["rotary", "none"], ...] = Field(default=("rotary",), min_length=1)
    rotary_base: float = Field(default=10000.0, gt=0)
    rotary_percent: float = Field(default=1.0, gt=0, le=1)
    rotary_scaling: RotaryScaling | None = None
    logit_scale: float = Field(default=1.0, gt=0)
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

    @property
    def rotary_channels(self) -> int:
        """Channels of a head that rotate; the rules require an even number."""
        return int(self.head_size * self.rotary_share)

    @property
    def rotary_share(self) -> Fraction:
        """`rotary_percent` as a fraction: 0.3 of 80 channels is exactly 24."""
        # As a float, 0.29 * 100 is a little less than 29, and `int` would lose a channel.
        return Fraction(self.rotary_percent).limit_denominator(_LARGEST_SHARE)

    def window(self, layer: int) -> int | None:
        """Return how many keys a token sees in a layer, its own included; None: all before it."""
        kind = self.attention_pattern[layer % len(self.attention_pattern)]
        return self.sliding_window if kind == "sliding" else None

    def rotates(self, layer: int) -> bool:
        """Return whether a layer has rotary positions."""
        return self.rotary_pattern[layer % len(self.rotary_pattern)] == "rotary"

    def scales(self, layer: int) -> bool:
        """Return whether a layer's rotary positions are scaled."""
        scaling = self.rotary_scaling
        # A layer without positions has no wavelengths, whatever `layers` says.
        chosen = scaling is not None and (scaling.layers == "all" or self.window(layer) is None)
        return chosen and self.rotates(layer)


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

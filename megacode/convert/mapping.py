"""Map Megatron-core's parameters to Hugging Face's, bit for bit, in both directions.

Both sides hold the same numbers. Four things differ.

1. Names. A rule pairs one Megatron-core name with one or more Hugging Face names; `*` stands for the layer.
2. Fused tensors. Megatron-core keeps Q, K and V in one tensor, group by group, so that a tensor-parallel cut falls
   between groups; and gate and up in one, gate first. With n heads, g groups and r = n / g heads a group:

       linear_qkv [(n + 2g)d, h]  =  q0 .. q(r-1) k0 v0 | qr .. q(2r-1) k1 v1 | ...        each d rows
       linear_fc1 [2f, h]         =  gate [f, h] over up [f, h]

3. Rotary pairs. Rotating channels j and j + d/2 of a head (by halves) is rotating channels 2j and 2j+1 (interleaved)
   of the head with its rows permuted. Permuting Q and K alike leaves every product of a query with a key as it was:

       by halves    0 1 2 3 | 4 5 6 7      ->      interleaved    0 4 | 1 5 | 2 6 | 3 7

4. Rows. Megatron-core pads the vocabulary to a multiple of make_vocab_size_divisible_by times TP. No token has the
   number of a padded row, so a model with those rows would sample tokens that do not exist. They are dropped on export
   and zero on import, since they were never trained.

Shape suffixes: h hidden, f feed-forward, n heads, g groups, r heads per group, d head size, v vocabulary, p padded.

Everything is a stream over a `Mapping` that may read lazily: nothing here holds more than one fused tensor at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from megacode.base.errors import CheckpointError
from megacode.config.model import ModelConfig
from megacode.convert.architectures import Architecture, layout_of


@dataclass(frozen=True)
class Sizes:
    """The dimensions that the mapping needs.

    Attributes:
        layers, hidden, ffn, heads, groups, head_size: the model's shape.
        vocab: tokens of the tokenizer.
        padded: rows of Megatron-core's embedding.
    """

    layers: int
    hidden: int
    ffn: int
    heads: int
    groups: int
    head_size: int
    vocab: int
    padded: int

    @classmethod
    def of(cls, model: ModelConfig, vocab: int, padded: int | None = None) -> Sizes:
        """Return the sizes of a model; without `padded`, of one whose vocabulary has no padding."""
        shape = (model.num_layers, model.hidden_size, model.ffn_hidden_size, model.num_attention_heads)
        return cls(*shape, model.query_groups, model.head_size, vocab, padded or vocab)


VOCABULARY = ("embedding.word_embeddings.weight", "output_layer.weight")
Shapes = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Rule:
    """One Megatron-core tensor and the Hugging Face tensors that hold the same numbers.

    Attributes:
        mcore: its name, `*` for the layer.
        hf: their names.
        split: from the Megatron-core tensor to the Hugging Face ones, in the order of `hf`.
        join: the inverse of `split`.
        shapes: the shapes of the Hugging Face tensors.
        fused: the shape of the Megatron-core tensor.
    """

    mcore: str
    hf: tuple[str, ...]
    split: Callable[[Tensor, Sizes], tuple[Tensor, ...]]
    join: Callable[[tuple[Tensor, ...], Sizes], Tensor]
    shapes: Callable[[Sizes], Shapes]
    fused: Callable[[Sizes], tuple[int, ...]]


def interleave_rotary(weight: Tensor, head_size: int) -> Tensor:
    """Re-arrange the rows of each head [n*d, h] from rotary halves to rotary neighbours."""
    # [heads, half, pair, h] to [heads, pair, half, h]: a transposition of each head's rows.
    halves = weight.reshape(-1, 2, head_size // 2, weight.shape[-1])
    return halves.transpose(1, 2).reshape(weight.shape)


def deinterleave_rotary(weight: Tensor, head_size: int) -> Tensor:
    """Undo `interleave_rotary`."""
    neighbours = weight.reshape(-1, head_size // 2, 2, weight.shape[-1])
    return neighbours.transpose(1, 2).reshape(weight.shape)


def split_qkv(weight: Tensor, sizes: Sizes, *, interleaved: bool) -> tuple[Tensor, ...]:
    """Cut linear_qkv [(n+2g)d, h] into Q [nd, h], K [gd, h] and V [gd, h]."""
    # One axis for the groups, one for a group's r queries, key and value, one for the channels.
    rows = weight.reshape(sizes.groups, sizes.heads // sizes.groups + 2, sizes.head_size, sizes.hidden)
    parts = (rows[:, :-2], rows[:, -2], rows[:, -1])
    query, key, value = (part.reshape(-1, sizes.hidden) for part in parts)
    if interleaved:
        query, key = (interleave_rotary(part, sizes.head_size) for part in (query, key))
    return query, key, value


def join_qkv(parts: tuple[Tensor, ...], sizes: Sizes, *, interleaved: bool) -> Tensor:
    """Fuse Q [nd, h], K [gd, h] and V [gd, h] into linear_qkv [(n+2g)d, h]."""
    query, key, value = parts
    if interleaved:
        query, key = (deinterleave_rotary(part, sizes.head_size) for part in (query, key))
    # Back to one row block per group: its queries, then its key, then its value.
    groups = [part.reshape(sizes.groups, -1, sizes.head_size, sizes.hidden) for part in (query, key, value)]
    return torch.cat(groups, dim=1).reshape(-1, sizes.hidden)


def _same(name: str, hf: str, shape: Callable[[Sizes], tuple[int, ...]]) -> Rule:
    """A tensor that only changes its name."""
    return Rule(name, (hf,), lambda t, _: (t,), lambda ts, _: ts[0], lambda s: (shape(s),), shape)


def _vocabulary(name: str, hf: str) -> Rule:
    """A tensor with a row for each token [p, h], padded in Megatron-core only."""

    def pad(parts: tuple[Tensor, ...], sizes: Sizes) -> Tensor:
        rows = parts[0]
        if sizes.padded == sizes.vocab:  # no copy: this is the largest tensor of most models
            return rows
        return torch.cat([rows, rows.new_zeros(sizes.padded - sizes.vocab, sizes.hidden)])

    return Rule(
        name,
        (hf,),
        lambda weight, sizes: (weight[: sizes.vocab],),
        pad,
        lambda sizes: ((sizes.vocab, sizes.hidden),),
        lambda sizes: (sizes.padded, sizes.hidden),
    )


def _attention(*, interleaved: bool) -> Rule:
    prefix = "model.layers.*.self_attn."
    return Rule(
        "decoder.layers.*.self_attention.linear_qkv.weight",
        (prefix + "q_proj.weight", prefix + "k_proj.weight", prefix + "v_proj.weight"),
        partial(split_qkv, interleaved=interleaved),
        partial(join_qkv, interleaved=interleaved),
        lambda s: tuple((n * s.head_size, s.hidden) for n in (s.heads, s.groups, s.groups)),
        lambda s: ((s.heads + 2 * s.groups) * s.head_size, s.hidden),
    )


_GATED_MLP = Rule(
    "decoder.layers.*.mlp.linear_fc1.weight",
    ("model.layers.*.mlp.gate_proj.weight", "model.layers.*.mlp.up_proj.weight"),
    lambda weight, sizes: (weight[: sizes.ffn], weight[sizes.ffn :]),
    lambda parts, _: torch.cat(parts),
    lambda s: ((s.ffn, s.hidden), (s.ffn, s.hidden)),
    lambda s: (2 * s.ffn, s.hidden),
)


def rules_of(model: ModelConfig) -> tuple[Rule, ...]:
    """Return the rules of a model, in forward order.

    Raises:
        ConfigError: transformers has no architecture that computes the same.
    """
    layout = layout_of(model)
    layer, hf = "decoder.layers.*.", "model.layers.*."
    # A parallel block has one norm for attention and MLP, a sequential block one for each.
    second_norm = _same(layer + "pre_mlp_layernorm.weight", hf + "post_attention_layernorm.weight", _norm)
    embedding, output = VOCABULARY
    return (
        _vocabulary(embedding, "model.embed_tokens.weight"),
        _same(layer + "input_layernorm.weight", hf + "input_layernorm.weight", _norm),
        _attention(interleaved=layout.interleaved_rotary),
        _same(
            layer + "self_attention.linear_proj.weight",
            hf + "self_attn.o_proj.weight",
            lambda s: (s.hidden, s.heads * s.head_size),
        ),
        *([second_norm] if model.block == "sequential" else []),
        _GATED_MLP,
        # Output projections are not fused, so they only change their names.
        _same(layer + "mlp.linear_fc2.weight", hf + "mlp.down_proj.weight", lambda s: (s.hidden, s.ffn)),
        _same("decoder.final_layernorm.weight", "model.norm.weight", _norm),
        *([] if model.share_embeddings_and_output_weights else [_vocabulary(output, "lm_head.weight")]),
    )


def _norm(sizes: Sizes) -> tuple[int, ...]:
    return (sizes.hidden,)


def _applied(rules: tuple[Rule, ...], layers: int) -> Iterator[tuple[Rule, str, tuple[str, ...]]]:
    """Yield every rule with its names filled in: those of the layers layer by layer."""
    inner = [rule for rule in rules if "*" in rule.mcore]
    # Rules of layers are neighbours, so the others come before or after all layers.
    first = rules.index(inner[0])
    before, after = rules[:first], rules[first + len(inner) :]
    yield from ((rule, rule.mcore, rule.hf) for rule in before)
    for layer in range(layers):
        for rule in inner:
            yield rule, rule.mcore.replace("*", str(layer)), tuple(name.replace("*", str(layer)) for name in rule.hf)
    yield from ((rule, rule.mcore, rule.hf) for rule in after)


def _bias_of(layout: Architecture, hf_name: str) -> str | None:
    """Return the name of the zero bias that goes with a norm's weight in this layout."""
    # Both endings: the final norm is called model.norm, others end in layernorm.
    is_norm = hf_name.endswith(("norm.weight", "layernorm.weight"))
    return hf_name.removesuffix("weight") + "bias" if layout.norm_bias and is_norm else None


def mcore_shapes(model: ModelConfig, sizes: Sizes) -> dict[str, tuple[int, ...]]:
    """Return the shape of every Megatron-core parameter."""
    return {name: rule.fused(sizes) for rule, name, _ in _applied(rules_of(model), sizes.layers)}


def hf_shapes(model: ModelConfig, sizes: Sizes) -> dict[str, tuple[int, ...]]:
    """Return the shape of every Hugging Face parameter, in the order in which `to_hf` yields them."""
    layout, shapes = layout_of(model), {}
    for rule, _, names in _applied(rules_of(model), sizes.layers):
        for name, shape in zip(names, rule.shapes(sizes), strict=True):
            shapes[name] = shape
            if bias := _bias_of(layout, name):
                shapes[bias] = shape
    return shapes


def to_hf(weights: Mapping[str, Tensor], model: ModelConfig, sizes: Sizes) -> Iterator[tuple[str, Tensor]]:
    """Yield the Hugging Face tensors of a model, contiguous, in their own dtype.

    Args:
        weights: every Megatron-core parameter by its plain name, whole; each is asked for once, in forward order.
        model: the model's shape.
        sizes: the sizes; `padded` is what `weights` has.

    Raises:
        CheckpointError: a tensor is missing, surplus or of another shape.
    """
    layout = layout_of(model)
    # Names are checked before the first tensor is read: a wrong config fails in seconds.
    _check(dict.fromkeys(weights), dict.fromkeys(mcore_shapes(model, sizes)))
    for rule, mcore_name, names in _applied(rules_of(model), sizes.layers):
        weight = _shaped(mcore_name, weights[mcore_name], rule.fused(sizes))
        for name, part in zip(names, rule.split(weight, sizes), strict=True):
            # Splits are views into the fused tensor; the files need their bytes in a row.
            yield name, part.contiguous()
            if bias := _bias_of(layout, name):
                # StableLM requires the tensor; zero is what megacode's norm adds.
                yield bias, torch.zeros_like(part)


def from_hf(weights: Mapping[str, Tensor], model: ModelConfig, sizes: Sizes) -> Iterator[tuple[str, Tensor]]:
    """Yield the Megatron-core tensors of a Hugging Face model; rows of the padding are zero.

    Raises:
        CheckpointError: a tensor is missing, surplus or of another shape, or a bias that must be zero is not.
    """
    layout = layout_of(model)
    _check(dict.fromkeys(weights), dict.fromkeys(hf_shapes(model, sizes)))
    for rule, mcore_name, names in _applied(rules_of(model), sizes.layers):
        shapes = zip(names, rule.shapes(sizes), strict=True)
        parts = tuple(_shaped(name, weights[name], shape) for name, shape in shapes)
        for bias in filter(None, (_bias_of(layout, name) for name in names)):
            # A trained bias would be lost without a trace, so it is refused.
            if weights[bias].count_nonzero():
                raise CheckpointError(
                    f"the bias {bias} is not zero, and megacode's norms have no bias", fix="choose a model without it"
                )
        yield mcore_name, rule.join(parts, sizes).contiguous()


def _check(given: Mapping[str, None], expected: Mapping[str, None]) -> None:
    missing = [name for name in expected if name not in given]
    surplus = [name for name in given if name not in expected]
    counted = (("missing", missing), ("surplus", surplus))
    mismatches = [f"{len(names)} {word}, such as {names[0]}" for word, names in counted if names]
    if mismatches:
        what = f"the parameters do not match the config's model: {'; '.join(mismatches)}"
        raise CheckpointError(what, fix="use the config that the weights were trained with")


def _shaped(name: str, tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    if tuple(tensor.shape) != shape:
        raise CheckpointError(f"{name} has shape {list(tensor.shape)}, but by the config it is {list(shape)}")
    return tensor

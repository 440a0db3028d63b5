"""Map Megatron-core's parameters to Hugging Face's, bit for bit, in both directions.

Both sides hold the same numbers. Four things differ.

1. Names. A rule pairs one Megatron-core name with one or more Hugging Face names; `*` stands for the layer. Families
   differ in the names of norms (`families.family.Tensors`), and in which tensors a model has.
2. Fused tensors. Megatron-core keeps Q, K and V in one tensor, group by group, so that a tensor-parallel cut falls
   between groups; and gate and up in one, gate first. With n heads, g groups and r = n / g heads a group:

       linear_qkv [(n + 2g)d, h]  =  q0 .. q(r-1) k0 v0 | qr .. q(2r-1) k1 v1 | ...        each d rows
       linear_fc1 [2f, h]         =  gate [f, h] over up [f, h]

3. Rotary pairs. Rotating channels j and j + d/2 of a head (by halves) is rotating channels 2j and 2j+1 (interleaved)
   of the head with its rows permuted. Permuting Q and K alike, and the weights of their norms, leaves every product of
   a query with a key as it was:

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
from megacode.convert.architectures import family_of
from megacode.convert.families.family import Tensors


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


_NORMS = {
    "before": ("input_layernorm", "pre_mlp_layernorm"),
    "after": ("post_attention_layernorm", "post_mlp_layernorm"),
}
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
    """Re-arrange the rows of each head [n*d, ...] from rotary halves to rotary neighbours."""
    # [heads, half, pair, ...] to [heads, pair, half, ...]: a transposition of each head's rows.
    halves = weight.reshape(-1, 2, head_size // 2, *weight.shape[1:])
    return halves.transpose(1, 2).reshape(weight.shape)


def deinterleave_rotary(weight: Tensor, head_size: int) -> Tensor:
    """Undo `interleave_rotary`."""
    neighbours = weight.reshape(-1, head_size // 2, 2, *weight.shape[1:])
    return neighbours.transpose(1, 2).reshape(weight.shape)


def split_qkv(fused: Tensor, sizes: Sizes, *, interleaved: bool) -> tuple[Tensor, ...]:
    """Cut linear_qkv's weight [(n+2g)d, h] or bias [(n+2g)d] into those of Q [nd, ...], K [gd, ...] and V [gd, ...]."""
    # One axis for the groups, one for a group's r queries, key and value, one for the channels.
    rows = fused.reshape(sizes.groups, sizes.heads // sizes.groups + 2, sizes.head_size, *fused.shape[1:])
    parts = (rows[:, :-2], rows[:, -2], rows[:, -1])
    query, key, value = (part.reshape(-1, *fused.shape[1:]) for part in parts)
    if interleaved:
        query, key = (interleave_rotary(part, sizes.head_size) for part in (query, key))
    return query, key, value


def join_qkv(parts: tuple[Tensor, ...], sizes: Sizes, *, interleaved: bool) -> Tensor:
    """Fuse the weights or biases of Q, K and V into linear_qkv's; the inverse of `split_qkv`."""
    query, key, value = parts
    if interleaved:
        query, key = (deinterleave_rotary(part, sizes.head_size) for part in (query, key))
    # Back to one row block per group: its queries, then its key, then its value.
    groups = [part.reshape(sizes.groups, -1, sizes.head_size, *query.shape[1:]) for part in (query, key, value)]
    return torch.cat(groups, dim=1).reshape(-1, *query.shape[1:])


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


def _attention(kind: str, *, interleaved: bool) -> Rule:
    """The projections to queries, keys and values; `kind` is `weight` or `bias`."""
    row = (lambda s: (s.hidden,)) if kind == "weight" else (lambda _: ())
    return Rule(
        f"decoder.layers.*.self_attention.linear_qkv.{kind}",
        tuple(f"model.layers.*.self_attn.{name}_proj.{kind}" for name in "qkv"),
        partial(split_qkv, interleaved=interleaved),
        partial(join_qkv, interleaved=interleaved),
        lambda s: tuple((n * s.head_size, *row(s)) for n in (s.heads, s.groups, s.groups)),
        lambda s: ((s.heads + 2 * s.groups) * s.head_size, *row(s)),
    )


def _qk_norm(model: ModelConfig, tensors: Tensors, which: str) -> Rule:
    """The norm of the queries (`q`) or keys (`k`)."""
    mcore = f"decoder.layers.*.self_attention.{which}_layernorm.weight"
    name, heads, head = tensors.qk_norms["qk".index(which)], model.num_attention_heads, model.head_size
    heads = heads if which == "q" else model.query_groups
    hf = f"model.layers.*.self_attn.{name}.weight"
    if model.qk_norm != "per_head":
        return _same(mcore, hf, lambda _: (head,) if model.qk_norm == "shared" else (heads * head,))
    # One tensor for all heads, or one for each.
    alone = "{head}" in name

    def split(weight: Tensor, _: Sizes) -> tuple[Tensor, ...]:
        rows = (interleave_rotary(weight, head) if tensors.interleaved_rotary else weight).view(heads, head)
        return rows.unbind() if alone else (rows,)

    def join(parts: tuple[Tensor, ...], _: Sizes) -> Tensor:
        weight = torch.cat(parts).reshape(-1)
        return deinterleave_rotary(weight, head) if tensors.interleaved_rotary else weight

    names = tuple(hf.format(head=number) for number in range(heads)) if alone else (hf,)
    shapes = ((head,),) * heads if alone else ((heads, head),)
    return Rule(mcore, names, split, join, lambda _: shapes, lambda _: (heads * head,))


def _norm(model: ModelConfig, tensors: Tensors, mcore: str, hf: str) -> list[Rule]:
    """A norm of the residual stream, [h]: its weight, and its bias if either side has one."""
    weight = _same(f"{mcore}.weight", f"{hf}.weight", _width)
    if model.norm_bias:
        return [weight, _same(f"{mcore}.bias", f"{hf}.bias", _width)]
    if not tensors.norm_bias:
        return [weight]

    def without_bias(parts: tuple[Tensor, ...], _: Sizes) -> Tensor:
        if parts[1].count_nonzero():
            message = f"the bias {hf}.bias is not zero, and this model's norms have no bias"
            raise CheckpointError(message, fix="set model.norm_bias: true")
        return parts[0]

    # The class requires the tensor; zero is what a norm without a bias adds.
    pair = (f"{hf}.weight", f"{hf}.bias")
    split = lambda part, _: (part, torch.zeros_like(part))  # noqa: E731
    return [Rule(f"{mcore}.weight", pair, split, without_bias, lambda s: ((s.hidden,), (s.hidden,)), _width)]


def _width(sizes: Sizes) -> tuple[int, ...]:
    return (sizes.hidden,)


_GATED_MLP = Rule(
    "decoder.layers.*.mlp.linear_fc1.weight",
    ("model.layers.*.mlp.gate_proj.weight", "model.layers.*.mlp.up_proj.weight"),
    lambda weight, sizes: (weight[: sizes.ffn], weight[sizes.ffn :]),
    lambda parts, _: torch.cat(parts),
    lambda s: ((s.ffn, s.hidden), (s.ffn, s.hidden)),
    lambda s: (2 * s.ffn, s.hidden),
)


def rules_of(model: ModelConfig, tensors: Tensors) -> tuple[Rule, ...]:
    """Return the rules of a model, in forward order.

    Args:
        model: the model.
        tensors: the names and arrangement of the family's tensors.
    """
    layer, hf = "decoder.layers.*.", "model.layers.*."
    names = zip(_NORMS[model.norm_placement], tensors.norms, strict=True)
    first, second = (_norm(model, tensors, layer + mcore, hf + name) for mcore, name in names)
    embedding, output = VOCABULARY
    return (
        _vocabulary(embedding, "model.embed_tokens.weight"),
        *first,
        _attention("weight", interleaved=tensors.interleaved_rotary),
        *([_attention("bias", interleaved=tensors.interleaved_rotary)] if model.qkv_bias else []),
        *([] if model.qk_norm == "none" else [_qk_norm(model, tensors, which) for which in "qk"]),
        _same(
            layer + "self_attention.linear_proj.weight",
            hf + "self_attn.o_proj.weight",
            lambda s: (s.hidden, s.heads * s.head_size),
        ),
        # A parallel block has one norm for attention and MLP, a sequential block one for each.
        *(second if model.block == "sequential" else []),
        _GATED_MLP,
        # Output projections are not fused, so they only change their names.
        _same(layer + "mlp.linear_fc2.weight", hf + "mlp.down_proj.weight", lambda s: (s.hidden, s.ffn)),
        *_norm(model, tensors, "decoder.final_layernorm", "model.norm"),
        *([] if model.share_embeddings_and_output_weights else [_vocabulary(output, "lm_head.weight")]),
    )


def _rules(model: ModelConfig) -> tuple[Rule, ...]:
    return rules_of(model, family_of(model).tensors)


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


def mcore_shapes(model: ModelConfig, sizes: Sizes) -> dict[str, tuple[int, ...]]:
    """Return the shape of every Megatron-core parameter; the model need not have a Hugging Face family."""
    return {name: rule.fused(sizes) for rule, name, _ in _applied(rules_of(model, Tensors()), sizes.layers)}


def hf_shapes(model: ModelConfig, sizes: Sizes) -> dict[str, tuple[int, ...]]:
    """Return the shape of every Hugging Face parameter, in the order in which `to_hf` yields them."""
    shapes: dict[str, tuple[int, ...]] = {}
    for rule, _, names in _applied(_rules(model), sizes.layers):
        shapes |= zip(names, rule.shapes(sizes), strict=True)
    return shapes


def to_hf(weights: Mapping[str, Tensor], model: ModelConfig, sizes: Sizes) -> Iterator[tuple[str, Tensor]]:
    """Yield the Hugging Face tensors of a model, contiguous, in their own dtype.

    Args:
        weights: every Megatron-core parameter by its plain name, whole; each is asked for once, in forward order.
        model: the model's shape.
        sizes: the sizes; `padded` is what `weights` has.

    Raises:
        CheckpointError: a tensor is missing, surplus or of another shape.
        ConfigError: transformers has no class that computes the same.
    """
    # Names are checked before the first tensor is read: a wrong config fails in seconds.
    _check(dict.fromkeys(weights), dict.fromkeys(mcore_shapes(model, sizes)))
    for rule, mcore_name, names in _applied(_rules(model), sizes.layers):
        weight = _shaped(mcore_name, weights[mcore_name], rule.fused(sizes))
        for name, part in zip(names, rule.split(weight, sizes), strict=True):
            # Splits are views into the fused tensor; the files need their bytes in a row.
            yield name, part.contiguous()


def from_hf(weights: Mapping[str, Tensor], model: ModelConfig, sizes: Sizes) -> Iterator[tuple[str, Tensor]]:
    """Yield the Megatron-core tensors of a Hugging Face model; rows of the padding are zero.

    Raises:
        CheckpointError: a tensor is missing, surplus or of another shape, or a bias that must be zero is not.
    """
    _check(dict.fromkeys(weights), dict.fromkeys(hf_shapes(model, sizes)))
    for rule, mcore_name, names in _applied(_rules(model), sizes.layers):
        shapes = zip(names, rule.shapes(sizes), strict=True)
        parts = tuple(_shaped(name, weights[name], shape) for name, shape in shapes)
        yield mcore_name, rule.join(parts, sizes).contiguous()


def _check(actual: Mapping[str, None], expected: Mapping[str, None]) -> None:
    missing = [name for name in expected if name not in actual]
    surplus = [name for name in actual if name not in expected]
    counted = (("missing", missing), ("surplus", surplus))
    mismatches = [f"{len(names)} {word}, such as {names[0]}" for word, names in counted if names]
    if mismatches:
        message = f"the parameters do not match the config's model: {'; '.join(mismatches)}"
        raise CheckpointError(message, fix="use the config that the weights were trained with")


def _shaped(name: str, tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    if tuple(tensor.shape) != shape:
        raise CheckpointError(f"{name} has shape {list(tensor.shape)}, but by the config it is {list(shape)}")
    return tensor

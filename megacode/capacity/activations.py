"""Activations that are kept for the backward pass, tensor by tensor: the list to update when a kernel changes.

Bytes are those of one token of one micro-batch on one rank. Tensor parallelism splits a tensor by heads, by the width
of the MLP or by the vocabulary. Sequence parallelism splits others along the sequence (`sliced`); some are not split.
Under context parallelism a rank has fewer tokens, but keys and values are gathered: those of all tokens are kept.

There are two sets of layers. `transformer_engine`: the linear layers of the sequential block keep only this rank's
slice of a norm's output; attention's output needs no copy before its projection; SwiGLU keeps only its input; the loss
overwrites the logits with their gradient. `local`: megacode's own layers, which keep the gathered output of a norm,
silu(gate), and log-probabilities in fp32. Neither keeps anything of size S x S. Under FP8 each linear layer keeps its
input in one byte per element.

Recomputation keeps less: `selective` recomputes everything between attention's two projections, `full` everything in a
layer but its input.

Source: Korthikanti et al., Reducing Activation Recomputation in Large Transformer Models (2022), section 4, for the
method; the lists are those of the kernels in use.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from megacode.capacity.layout import Layout
from megacode.config.run import RunConfig

Layers = Literal["transformer_engine", "local"]
_FP32, _MASK, _FP8, _INDEX = 4, 1, 1, 8
_NONE, _SELECTIVE, _FULL = "none", "selective", "full"
_NOT_FULL = (_NONE, _SELECTIVE)
_ALWAYS = (_NONE, _SELECTIVE, _FULL)


@dataclass(frozen=True)
class Saved:
    """A tensor that is kept from the forward to the backward pass.

    Attributes:
        name: for people.
        bytes_per_token: on one rank.
        recompute: the settings (`none`, `selective`, `full`) under which it is kept.
    """

    name: str
    bytes_per_token: float
    recompute: tuple[str, ...] = _NOT_FULL


class _Widths:
    """Elements per token on one rank, by kind of tensor."""

    def __init__(self, place: Layout, layers: Layers) -> None:
        model, tensor = place.config.model, place.config.parallel.tensor
        self.hidden = model.hidden_size
        self.sliced = model.hidden_size / place.sequence_slices
        self.heads = model.num_attention_heads / tensor
        self.queries = model.num_attention_heads * model.head_size / tensor
        # GQA: fewer key and value heads than query heads.
        self.pairs = 2 * model.query_groups * model.head_size / tensor  # keys and values
        self.mlp = model.ffn_hidden_size / tensor
        self.vocabulary = place.vocabulary_rows
        # RMSNorm keeps one fp32 number per token, LayerNorm two.
        numbers = 1 if model.normalization == "RMSNorm" else 2
        self.statistics = numbers * _FP32 / place.sequence_slices
        # Of queries and keys: of each head, or of all together.
        heads = 2 if model.qk_norm == "across_heads" else self.heads + model.query_groups / tensor
        self.head_statistics = numbers * _FP32 * heads
        # The parallel block gathers the sequence once for both branches and keeps the gathered tensor, as local layers
        # do. In FP8 each branch keeps a copy of its own.
        parallel = model.block == "parallel"
        self.normed = self.hidden if layers == "local" or parallel else self.sliced
        self.fp8 = _FP8 * place.fp8_share
        self.linear_input = self.fp8 + (1 - place.fp8_share) * place.activation_bytes
        self.normed_bytes = self.normed * (self.linear_input + (self.fp8 if parallel else 0.0))


@lru_cache(maxsize=64)
def _widths(place: Layout, layers: Layers) -> _Widths:
    return _Widths(place, layers)


def layers_of(config: RunConfig) -> Layers:
    """Return the layers that a run uses on GPUs: Transformer Engine's, unless it selects megacode's own."""
    return "local" if config.precision.transformer_impl == "local" else "transformer_engine"


def output_in_fp8(place: Layout) -> bool:
    """Return whether the output layer computes in FP8."""
    return place.recipe is not None and place.recipe.output_layer


def layer_tensors(place: Layout, layers: Layers) -> list[Saved]:
    """Return the activations that one layer keeps."""
    return [*_attention(place, layers), *_mlp(place, layers), *_dropout(place)]


def _attention(place: Layout, layers: Layers) -> list[Saved]:
    width, size = _widths(place, layers), place.activation_bytes
    # Attention on parts of a sequence, and the local kernel with several sequences, write heads before tokens, so their
    # output is copied.
    copied = place.config.parallel.context > 1 or (layers == "local" and place.config.train.micro_batch_size > 1)
    own = copied or place.recipe is not None  # the projection keeps a different tensor than attention's kernel
    kept = (_NONE,) if own else _NOT_FULL
    # Norms of queries and keys keep their input; the rotation keeps nothing.
    normed = place.config.model.qk_norm != "none"
    after = place.config.model.norm_placement == "after"
    unrotated = (_NONE, _SELECTIVE) if normed else (_SELECTIVE,)
    tensors = [
        Saved("block input", size * width.sliced, (_FULL,) if after else _ALWAYS),
        *_norm(place, width, "attention"),
        # Under `selective` only the unrotated tensors are kept; rotation and attention run again.
        Saved("queries", size * width.queries, (_NONE,)),
        Saved("keys and values", size * width.pairs * place.config.parallel.context, (_NONE,)),
        Saved("queries, keys and values, unrotated", size * (width.queries + width.pairs), unrotated),
        Saved("attention output", size * width.queries, kept),
        Saved("softmax statistics", _FP32 * width.heads, (_NONE,)),
    ]
    if normed:
        tensors.append(Saved("statistics of queries and keys", width.head_statistics, (_NONE,)))
    # torch's kernels on a GPU know one weight for all heads: the product with each head's own keeps its input.
    if place.config.model.qk_norm == "per_head" and layers == "transformer_engine":
        tensors.append(Saved("queries and keys, normed", size * (width.queries + width.pairs / 2), (_NONE,)))
    if own:
        tensors.append(Saved("projection's input", (width.linear_input if copied else width.fp8) * width.queries))
    return tensors


def _mlp(place: Layout, layers: Layers) -> list[Saved]:
    width, size = _widths(place, layers), place.activation_bytes
    tensors = [
        Saved("gate and up", size * 2 * width.mlp),
        Saved("activated", width.linear_input * width.mlp),
    ]
    if layers == "local":
        tensors.append(Saved("silu of the gate", size * width.mlp))
    if place.config.model.block == "sequential":
        before = place.config.model.norm_placement == "before"
        tensors += [Saved("MLP input", size * width.sliced)] if before else []
        tensors += _norm(place, width, "the MLP")
    return tensors


def _norm(place: Layout, width: _Widths, of: str) -> list[Saved]:
    """Return what a norm before or after attention or the MLP keeps, and the first matrix as its input."""
    if place.config.model.norm_placement == "before":
        return [Saved("its norm's statistics", width.statistics), Saved("its norm's output", width.normed_bytes)]
    # The matrix then reads the residual stream itself, or a gathered or FP8 copy of it; nothing else keeps that.
    return [
        Saved(f"output of {of}, before its norm", place.activation_bytes * width.sliced),
        Saved("its norm's statistics", width.statistics),
        Saved(f"input of {of}", width.normed_bytes),
    ]


def _dropout(place: Layout) -> list[Saved]:
    model = place.config.model
    if not model.hidden_dropout:
        return []
    masks = 2 if model.block == "sequential" else 1
    return [Saved("dropout masks", masks * _MASK * model.hidden_size / place.sequence_slices)]


def head_tensors(place: Layout, layers: Layers) -> list[Saved]:
    """Return what the last pipeline stage keeps after its layers, for one micro-batch."""
    width, size = _widths(place, layers), place.activation_bytes
    # With a large vocabulary this single tensor outweighs several layers.
    loss = Saved("log-probabilities, fp32", _FP32 * width.vocabulary, _ALWAYS)
    if layers == "transformer_engine":
        loss = Saved("logits, then their gradient", size * width.vocabulary, _ALWAYS)
    output = _FP8 if output_in_fp8(place) else size
    return [
        Saved("last norm's input", size * width.sliced, _ALWAYS),
        Saved("its statistics", width.statistics, _ALWAYS),
        Saved("its output, gathered", output * width.hidden, _ALWAYS),
        Saved("labels", _INDEX, _ALWAYS),
        loss,
    ]


def beside_logits(place: Layout, layers: Layers) -> list[Saved]:
    """Return what is alive beside the loss's tensor of logits at the moment of peak memory.

    With our own layers: the logits before they are cast, at the end of the forward pass. With Transformer Engine: the
    results of the output layer's backward pass. In FP8 it needs the gradient of the logits twice, once transposed, at
    one byte per element.
    """
    width, size = _widths(place, layers), place.activation_bytes
    if layers == "local":
        return [Saved("logits, bf16", (size == 2) * size * width.vocabulary, _ALWAYS)]
    return [
        Saved("gradient of the output layer's input", size * width.hidden, _ALWAYS),
        Saved("logits' gradient in FP8", output_in_fp8(place) * 2 * _FP8 * width.vocabulary, _ALWAYS),
    ]


def working_tensors(place: Layout, layers: Layers) -> list[Saved]:
    """Return what is alive only while the backward pass of one layer runs."""
    width, size = _widths(place, layers), place.activation_bytes
    return [
        Saved("gradient of the block's output", size * width.sliced, _ALWAYS),
        Saved("gradient of gate and up", size * 2 * width.mlp, _ALWAYS),
        Saved("gradient of the activated", size * width.mlp, _ALWAYS),
        Saved("gradient of a norm's output", size * width.hidden, _ALWAYS),
    ]


def per_token(tensors: list[Saved], recompute: str) -> float:
    """Return the bytes per token of the tensors that are kept under a recompute setting."""
    return sum(tensor.bytes_per_token for tensor in tensors if recompute in tensor.recompute)

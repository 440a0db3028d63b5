"""What a forward pass keeps for the backward pass, tensor by tensor: the one list to correct where a kernel changes.

Bytes are those of one token of one micro-batch on one rank. A tensor is cut over the tensor-parallel ranks by heads,
by the width of the MLP or by the vocabulary (`_Widths.cut`), over the same ranks along the sequence where sequence
parallel is on (`sliced`), or not at all (`whole`). Under context parallel a rank has fewer tokens, but attention's keys
and values are gathered: those of all tokens are kept.

Two sets of layers are known. `transformer_engine`: the sequential block's linear layers keep a norm's output as this
rank's slice; attention's output needs no copy before its projection; SwiGLU keeps its input alone; the loss overwrites
the logits with their gradient. `local`: megacode's own layers, which keep the gathered output of a norm, silu(gate) and
log-probabilities in fp32. Neither keeps anything of size S x S. Under FP8 each linear layer keeps its input in bytes.

Recomputation keeps less: `selective` repeats what lies between attention's two projections, `full` all of a layer but
its input. Source: Korthikanti et al., Reducing Activation Recomputation in Large Transformer Models (2022), section 4,
for the method; the lists are those of the kernels in use.
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
        recompute: under which of `none`, `selective` and `full` it is kept.
    """

    name: str
    bytes_per_token: float
    recompute: tuple[str, ...] = _NOT_FULL


class _Widths:
    """Elements of one token on one rank, by what they are."""

    def __init__(self, place: Layout, layers: Layers) -> None:
        model, tensor = place.config.model, place.config.parallel.tensor
        self.hidden = model.hidden_size
        self.sliced = model.hidden_size / place.sequence_slices
        self.heads = model.num_attention_heads / tensor
        self.queries = model.num_attention_heads * model.head_size / tensor
        self.pairs = 2 * model.query_groups * model.head_size / tensor  # keys and values
        self.mlp = model.ffn_hidden_size / tensor
        self.vocabulary = place.vocabulary_rows
        self.statistics = (1 if model.normalization == "RMSNorm" else 2) * _FP32 / place.sequence_slices
        # The parallel block gathers the sequence once for both branches and keeps what it gathered, as local layers do;
        # in FP8 each branch keeps a copy of its own.
        parallel = model.block == "parallel"
        self.normed = self.hidden if layers == "local" or parallel else self.sliced
        self.fp8 = _FP8 * place.fp8_share
        self.linear_input = self.fp8 + (1 - place.fp8_share) * place.activation_bytes
        self.normed_bytes = self.normed * (self.linear_input + (self.fp8 if parallel else 0.0))


@lru_cache(maxsize=64)
def _widths(place: Layout, layers: Layers) -> _Widths:
    return _Widths(place, layers)


def layers_of(config: RunConfig) -> Layers:
    """Return which layers a run has on GPUs: Transformer Engine's, unless it asks for megacode's own."""
    return "local" if config.precision.transformer_impl == "local" else "transformer_engine"


def output_in_fp8(place: Layout) -> bool:
    """Return whether the output layer multiplies in FP8."""
    return place.recipe is not None and place.recipe.output_layer


def layer_tensors(place: Layout, layers: Layers) -> list[Saved]:
    """Return what one layer keeps."""
    return [*_attention(place, layers), *_mlp(place, layers), *_dropout(place)]


def _attention(place: Layout, layers: Layers) -> list[Saved]:
    width, size = _widths(place, layers), place.activation_bytes
    # Attention in pieces of a sequence, and the local kernel with several sequences, write heads before tokens.
    copied = place.config.parallel.context > 1 or (layers == "local" and place.config.train.micro_batch_size > 1)
    own = copied or place.recipe is not None  # the projection keeps another tensor than attention's kernel
    kept = (_NONE,) if own else _NOT_FULL
    found = [
        Saved("block input", size * width.sliced, _ALWAYS),
        Saved("its norm's statistics", width.statistics),
        Saved("its norm's output", width.normed_bytes),
        Saved("queries", size * width.queries, (_NONE,)),
        Saved("keys and values", size * width.pairs * place.config.parallel.context, (_NONE,)),
        Saved("queries, keys and values, unrotated", size * (width.queries + width.pairs), (_SELECTIVE,)),
        Saved("attention output", size * width.queries, kept),
        Saved("softmax statistics", _FP32 * width.heads, (_NONE,)),
    ]
    if own:
        found.append(Saved("projection's input", (width.linear_input if copied else width.fp8) * width.queries))
    return found


def _mlp(place: Layout, layers: Layers) -> list[Saved]:
    width, size = _widths(place, layers), place.activation_bytes
    found = [
        Saved("gate and up", size * 2 * width.mlp),
        Saved("activated", width.linear_input * width.mlp),
    ]
    if layers == "local":
        found.append(Saved("silu of the gate", size * width.mlp))
    if place.config.model.block == "sequential":
        found += [
            Saved("MLP input", size * width.sliced),
            Saved("its norm's statistics", width.statistics),
            Saved("its norm's output", width.normed_bytes),
        ]
    return found


def _dropout(place: Layout) -> list[Saved]:
    model = place.config.model
    if not model.hidden_dropout:
        return []
    masks = 2 if model.block == "sequential" else 1
    return [Saved("dropout masks", masks * _MASK * model.hidden_size / place.sequence_slices)]


def head_tensors(place: Layout, layers: Layers) -> list[Saved]:
    """Return what the last pipeline stage keeps after its layers, of one micro-batch."""
    width, size = _widths(place, layers), place.activation_bytes
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
    """Return what lives beside the loss's own tensor of logits at the moment of most memory.

    Our own layers': the logits before they are cast, where the forward pass ends. Transformer Engine's: what the output
    layer's backward pass makes, whose FP8 product needs the logits' gradient in a byte twice, once transposed.
    """
    width, size = _widths(place, layers), place.activation_bytes
    if layers == "local":
        return [Saved("logits, bf16", (size == 2) * size * width.vocabulary, _ALWAYS)]
    return [
        Saved("gradient of the output layer's input", size * width.hidden, _ALWAYS),
        Saved("logits' gradient in FP8", output_in_fp8(place) * 2 * _FP8 * width.vocabulary, _ALWAYS),
    ]


def working_tensors(place: Layout, layers: Layers) -> list[Saved]:
    """Return what lives while one layer's backward pass runs and no longer."""
    width, size = _widths(place, layers), place.activation_bytes
    return [
        Saved("gradient of the block's output", size * width.sliced, _ALWAYS),
        Saved("gradient of gate and up", size * 2 * width.mlp, _ALWAYS),
        Saved("gradient of the activated", size * width.mlp, _ALWAYS),
        Saved("gradient of a norm's output", size * width.hidden, _ALWAYS),
    ]


def per_token(tensors: list[Saved], recompute: str) -> float:
    """Return the bytes a token of what is kept under a way to recompute."""
    return sum(tensor.bytes_per_token for tensor in tensors if recompute in tensor.recompute)

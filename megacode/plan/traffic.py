"""Bytes that pass between a GPU and its memory outside the matrix products and attention: each a pass, counted."""

from __future__ import annotations

from megacode.plan.activations import Layers
from megacode.plan.placement import Placement


def layer_traffic(place: Placement) -> tuple[float, float]:
    """Return the bytes that a layer's elementwise operations read and write, forward and backward.

    Forward: a norm reads and writes its input; queries, keys and values are rotated; SwiGLU reads 2 f and writes f; the
    sums read two tensors and write one. Backward: a norm reads two and writes two, rotations as before, SwiGLU reads
    3 f and writes 2 f.
    """
    model, tensor, slices = place.config.model, place.config.parallel.tensor, place.sequence_slices
    hidden, mlp = model.hidden_size / slices, model.ffn_hidden_size / tensor
    heads = (model.num_attention_heads + 2 * model.query_groups) * model.head_size / tensor
    norms = 1 if model.block == "parallel" else 2
    forward = norms * 2 * hidden + 2 * heads + 3 * mlp + 2 * 3 * hidden
    backward = norms * 4 * hidden + 2 * heads + 5 * mlp + 2 * 3 * hidden
    size = place.activation_bytes
    return place.tokens * size * forward, place.tokens * size * backward


def casts(place: Placement) -> tuple[float, float]:
    """Return the bytes that FP8 adds in a layer, forward and backward.

    The inputs of the four products, and in the backward pass their gradients, are read in bf16 and written twice in a
    byte, once transposed; scales of tensors as they are read them once more.
    """
    if place.recipe is None:
        return 0.0, 0.0
    model, tensor = place.config.model, place.config.parallel.tensor
    queries = model.num_attention_heads * model.head_size
    pairs = 2 * model.query_groups * model.head_size
    inputs = 2 * model.hidden_size + (queries + model.ffn_hidden_size) / tensor
    gradients = 2 * model.hidden_size + (queries + pairs + 2 * model.ffn_hidden_size) / tensor
    each = place.tokens * place.fp8_share * (4 if place.recipe.recipe == "delayed" else 6)
    return each * inputs, each * gradients


def loss_passes(place: Placement, layers: Layers) -> tuple[int, int]:
    """Return the bytes that the loss reads and writes of each logit, forward and backward.

    Transformer Engine's kernel reads the logits twice and overwrites them with their gradient. Ours casts them to fp32,
    and reads and writes those for log-probabilities; backward the same for the gradient, which is cast back.
    """
    size = place.activation_bytes
    return (3 * size, 0) if layers == "transformer_engine" else (size + 4 + 8, 8 + 4 + size)

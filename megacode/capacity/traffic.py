"""Memory traffic of elementwise operations: bytes read and written outside matrix products and attention."""

from __future__ import annotations

from megacode.capacity.activations import Layers, output_in_fp8
from megacode.capacity.layout import Layout


def layer_traffic(place: Layout, layers: Layers) -> tuple[float, float]:
    """Return the bytes that a layer's elementwise operations read and write, forward and backward.

    Besides `_norms_and_sums`: queries, keys and values are rotated (one read, one write). SwiGLU reads 2 f and writes
    f; backward it reads 3 f and writes 2 f. Where SwiGLU itself rounds to FP8, it writes fewer bytes but is not faster
    (to-code-2.8b on an H200, 2026-11-27: 57 ms, 50 ms in bf16), so it is counted alike. Norms of queries and keys read
    and write these, backward they read twice as much; then queries, keys and values are copied into one tensor.
    """
    model, tensor = place.config.model, place.config.parallel.tensor
    mlp = model.ffn_hidden_size / tensor
    heads = (model.num_attention_heads + 2 * model.query_groups) * model.head_size / tensor
    forward, backward = _norms_and_sums(place, layers)
    if model.qk_norm != "none":
        normed = (model.num_attention_heads + model.query_groups) * model.head_size / tensor
        forward, backward = forward + 2 * normed + 2 * heads, backward + 3 * normed + 2 * heads
    # Elements to bytes of a micro-batch.
    each = place.tokens * place.activation_bytes
    return each * (forward + 2 * heads + 3 * mlp), each * (backward + 2 * heads + 5 * mlp)


def _norms_and_sums(place: Layout, layers: Layers) -> tuple[float, float]:
    """Return the elements per token that norms and residual sums read and write, forward and backward.

    A norm reads and writes h; backward it reads 2 h and writes h. A sum of two reads 2 h and writes h, as does the sum
    of their gradients. With Transformer Engine's layers, the parallel block adds the residual's gradient inside the
    norm's kernel (`te_kernels.Fork`). On one tensor-parallel rank without dropout it also adds the gradients of both
    branches there, and forward it adds residual and branches in one kernel (`te_kernels.Sum`).
    """
    model, hidden = place.config.model, place.config.model.hidden_size
    sliced = hidden / place.sequence_slices
    # Two norms and two residual sums, all on this rank's slice of the sequence.
    if model.block == "sequential":
        return 2 * 5 * sliced, 2 * 6 * sliced
    if layers == "local":
        return 5 * sliced + 3 * hidden, 6 * sliced + 3 * hidden
    if place.config.parallel.tensor > 1 or model.hidden_dropout:
        return 5 * sliced + 3 * hidden, 4 * sliced + 3 * hidden
    return 6 * hidden, 5 * hidden


def casts(place: Layout) -> tuple[float, float]:
    """Return the bytes that casts to FP8 add in a layer, forward and backward.

    The inputs of the four products, and in the backward pass the gradients of their outputs, are cast (`_cast_bytes`).
    With delayed scales SwiGLU itself rounds its output and the gradient of its input: only a transpose is left.
    """
    if place.recipe is None:
        return 0.0, 0.0
    model, tensor = place.config.model, place.config.parallel.tensor
    queries = model.num_attention_heads * model.head_size / tensor
    pairs = 2 * model.query_groups * model.head_size / tensor
    each = _cast_bytes(place.recipe.recipe)
    # Delayed: one read and one write of a byte, for the transpose alone.
    mlp = (2 if place.recipe.recipe == "delayed" else each) * model.ffn_hidden_size / tensor
    share = place.tokens * place.fp8_share
    inputs = each * (2 * model.hidden_size + queries) + mlp
    gradients = each * (2 * model.hidden_size + queries + pairs) + 2 * mlp
    return share * inputs, share * gradients


def output_casts(place: Layout) -> tuple[float, float]:
    """Return the bytes that casts of an FP8 output layer add, forward and backward; its scales are tensorwise."""
    each = _cast_bytes("tensorwise") * place.tokens * output_in_fp8(place)
    return each * place.config.model.hidden_size, each * place.vocabulary_rows


def _cast_bytes(recipe: str) -> int:
    """Return the bytes moved per element by a cast to FP8: a read in bf16, and two writes of one byte, one transposed.

    Tensorwise scales read each element once more, to find the maximum.
    """
    return 6 if recipe == "tensorwise" else 4


def loss_passes(place: Layout, layers: Layers) -> tuple[int, int]:
    """Return the bytes that the loss reads and writes per logit, forward and backward.

    With Transformer Engine's layers, our own kernel reads the logits twice and overwrites them with their gradient.
    Otherwise they are cast to fp32, read, and written as log-probabilities. Backward does the same for the gradient,
    which is cast back.
    """
    size = place.activation_bytes
    return (3 * size, 0) if layers == "transformer_engine" else (size + 4 + 8, 8 + 4 + size)

"""Parameters of a model by component, and floating-point operations per token.

Shapes: h hidden_size, f ffn_hidden_size, n heads of d channels, g query groups, L layers, V vocabulary. A gated MLP
(gate and up are one matrix of 2f rows), norms of h weights each (RMSNorm and LayerNorm alike; h more with biases): two
per layer in sequential blocks, one in parallel blocks, and one before the output.

A matrix of P weights costs 2P operations per token forward, and twice that backward. In attention, a token at position
p is multiplied with p + 1 keys and as many values: 4 n d (p + 1) operations forward, so 2 n d (S + 1) on average over a
sequence of S tokens. This is *causal* attention, half of what formulas for full attention count. In a sliding layer a
token sees at most its window. Savings from a mask of document boundaries are not subtracted. Norms, biases, rotary
positions, softmax and the optimizer, together below 1 %, are not counted.

Source: Narayanan et al., "Efficient Large-Scale Language Model Training on GPU Clusters" (2021), appendix; causal half:
Dao, FlashAttention-2 (2023), section 4.1.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from megacode.config.model import ModelConfig


@dataclass(frozen=True)
class ParameterCounts:
    """Parameters of a model, by component over all layers.

    Attributes:
        embedding: V h.
        attention_qkv: L h (n + 2g) d.
        attention_proj: L n d h.
        mlp_gate_up: L h 2f.
        mlp_down: L f h.
        norms: L h (parallel blocks) or 2 L h (sequential), and h for the last; twice that with biases. Norms of queries
            and keys: 2 L d if heads share them, else L (n + g) d.
        biases: of the projections to queries, keys and values, L (n + 2g) d; 0 without.
        output: V h, or 0 where it is tied to the embedding.
    """

    embedding: int
    attention_qkv: int
    attention_proj: int
    mlp_gate_up: int
    mlp_down: int
    norms: int
    biases: int
    output: int

    @property
    def total(self) -> int:
        """Sum of all components."""
        return sum(getattr(self, field.name) for field in fields(self))

    @property
    def in_layers(self) -> int:
        """Weights of the layers' matrices."""
        return self.attention_qkv + self.attention_proj + self.mlp_gate_up + self.mlp_down


def padded_vocabulary(model: ModelConfig, vocab_size: int, tensor: int = 1) -> int:
    """Return the rows of the embedding: the vocabulary, padded so that it splits into equal shards.

    Args:
        model: for `make_vocab_size_divisible_by`.
        vocab_size: of the tokenizer.
        tensor: tensor-parallel size.
    """
    # As Megatron pads, so the padding grows with the tensor-parallel size.
    multiple = model.make_vocab_size_divisible_by * tensor
    return -(-vocab_size // multiple) * multiple


def parameter_counts(model: ModelConfig, vocab_size: int) -> ParameterCounts:
    """Return the parameters of a model by component.

    Args:
        model: its shape.
        vocab_size: rows of the embedding: the vocabulary, or the padded one.
    """
    layers, hidden, heads = model.num_layers, model.hidden_size, model.num_attention_heads
    norms_per_layer = 1 if model.block == "parallel" else 2
    # Megatron's fused matrix: the rows of queries, keys and values.
    rows = (heads + 2 * model.query_groups) * model.head_size
    return ParameterCounts(
        embedding=vocab_size * hidden,
        attention_qkv=layers * hidden * rows,
        attention_proj=layers * heads * model.head_size * hidden,
        mlp_gate_up=layers * hidden * 2 * model.ffn_hidden_size,
        mlp_down=layers * model.ffn_hidden_size * hidden,
        norms=(layers * norms_per_layer + 1) * hidden * (1 + model.norm_bias) + layers * sum(head_norms(model)),
        biases=layers * rows * model.qkv_bias,
        # Tied weights are counted once, at the embedding.
        output=0 if model.share_embeddings_and_output_weights else vocab_size * hidden,
    )


def head_norms(model: ModelConfig, tensor: int = 1) -> tuple[int, ...]:
    """Return the weights of one layer's norms of queries and of keys, on a rank; empty without such norms.

    Args:
        model: its shape.
        tensor: tensor-parallel size.
    """
    if model.qk_norm == "none":
        return ()
    if model.qk_norm == "shared":
        return (model.head_size, model.head_size)
    # Tensor parallelism splits heads, and the weights of their norms with them; a shared norm is whole on every rank.
    return tuple(heads * model.head_size // tensor for heads in (model.num_attention_heads, model.query_groups))


def keys_seen(model: ModelConfig, seq_length: int) -> int:
    """Return how many keys the tokens of a sequence see, their own included, summed over tokens and layers."""
    total = 0
    for layer in range(model.num_layers):
        # The first tokens see all before them; from the window's length on, each sees a full window.
        window = min(model.window(layer) or seq_length, seq_length)
        total += window * (window + 1) // 2 + (seq_length - window) * window
    return total


def parameters(model: ModelConfig, vocab_size: int) -> int:
    """Return how many parameters a model has.

    Args:
        model: its shape.
        vocab_size: rows of the embedding: the vocabulary, or the padded one.
    """
    return parameter_counts(model, vocab_size).total


def flops_per_token(model: ModelConfig, vocab_size: int, seq_length: int) -> int:
    """Return the floating-point operations of one token's forward and backward pass, with causal attention and windows.

    Args:
        model: its shape.
        vocab_size: columns of the output matrix, which costs the same whether tied or not.
        seq_length: tokens per sequence.
    """
    # The embedding is a table look-up: it costs no operations.
    matrices = 2 * (parameter_counts(model, vocab_size).in_layers + vocab_size * model.hidden_size)
    attention = 4 * model.num_attention_heads * model.head_size * keys_seen(model, seq_length) // seq_length
    # The backward pass costs twice the forward pass: gradients of inputs and of weights.
    return 3 * (matrices + attention)

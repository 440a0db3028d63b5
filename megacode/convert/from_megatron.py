"""Convert Megatron-LM's checkpoints to megacode's.

    megacode convert from-megatron ITERATION TOKENIZER OUT

Names and fused tensors are Megatron-core's on both sides. Three things differ: layers may be stacked, Transformer
Engine's modules store the norm before a matrix under the matrix's name, and the vocabulary is padded. Arguments or
tensors that megacode does not support are listed, and nothing is written.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from megacode.base.claims import claimed
from megacode.base.errors import CheckpointError, VerificationError
from megacode.base.files import atomic_path
from megacode.base.progress import steps
from megacode.base.user_paths import refuse_unwritable
from megacode.checkpoint.tensors import Weights
from megacode.config.model import ModelConfig
from megacode.convert import initial_checkpoint
from megacode.convert.mapping import VOCABULARY, Sizes, mcore_shapes
from megacode.convert.megatron_arguments import model_of
from megacode.convert.torch_dist import TorchDist

_LAYERS = "decoder.layers."
_WITH_THE_MATRIX = {
    "input_layernorm.weight": "self_attention.linear_qkv.layer_norm_weight",
    "input_layernorm.bias": "self_attention.linear_qkv.layer_norm_bias",
    "pre_mlp_layernorm.weight": "mlp.linear_fc1.layer_norm_weight",
    "pre_mlp_layernorm.bias": "mlp.linear_fc1.layer_norm_bias",
}

# What mcore's HybridModel has in place of `decoder.final_layernorm.weight`, and the arguments that name its layers.
_HYBRID_NORM = "decoder.final_norm.weight"
_PATTERNS = ("hybrid_layer_pattern", "hybrid_override_pattern")


def from_megatron(checkpoint: Path, tokenizer: Path, out: Path) -> dict[str, Any]:
    """Convert a Megatron-LM checkpoint, and compare every written tensor with the one that was read.

    Args:
        checkpoint: the directory of an iteration.
        tokenizer: directory of the Hugging Face tokenizer that the model was trained with.
        out: the checkpoint to publish; it must not exist. Its `model.yaml` is a base for runs' configs.

    Returns:
        `parameters`, `tensors`, `vocab_size`, and the number of `padded_rows` that were dropped.

    Raises:
        CheckpointError: it is not one, megacode does not support its model, or `out` exists.
        VerificationError: a written tensor differs from the one read; nothing is published.
    """
    if not (tokenizer / "tokenizer.json").is_file():
        raise CheckpointError("there is no tokenizer.json", str(tokenizer), "give a Hugging Face tokenizer's directory")
    if out.exists():
        raise CheckpointError("it already exists", str(out), "choose a directory that does not exist")
    refuse_unwritable(out, "OUT", directory=True)
    stored = TorchDist(checkpoint)
    arguments = stored.arguments()
    _refuse_hybrid(stored, arguments, str(checkpoint))
    model = model_of(arguments, str(checkpoint))
    with claimed(out, "OUT", new=True), atomic_path(out) as hidden:
        hidden.mkdir(parents=True)
        initial_checkpoint.copy_tokenizer(tokenizer, hidden)
        vocab = _vocabulary(hidden / "tokenizer", stored, checkpoint)
        names = _names(model, vocab, stored, checkpoint)
        config = initial_checkpoint.config_of(model, vocab, arguments.get("seq_length") or 2048, checkpoint, hidden)
        initial_checkpoint.write((tensor for _, tensor in _tensors(stored, names, vocab)), config, hidden)
        parameters = _compare(Weights(hidden), _tensors(stored, names, vocab), hidden)
        initial_checkpoint.settle(config, hidden, out)
    # Reported, so that a wrong tokenizer shows as an odd number of dropped rows.
    padded = stored.shapes[VOCABULARY[0]][0] - vocab
    return {"parameters": parameters, "tensors": len(names), "vocab_size": vocab, "padded_rows": padded}


def _refuse_hybrid(stored: TorchDist, arguments: Mapping[str, Any], where: str) -> None:
    """Refuse a HybridModel, mcore's successor of GPTModel, by its final norm or its pattern of layers.

    It numbers attention and MLP of a block as two layers, and may have others, such as Mamba's.
    """
    pattern = next((arguments[key] for key in _PATTERNS if arguments.get(key)), None)
    if pattern is not None or _HYBRID_NORM in stored.shapes:
        of = f" of the layers {pattern}" if pattern else ""
        fix = "give a checkpoint of a GPTModel: of Megatron-LM's pretrain_gpt.py"
        raise CheckpointError(f"it is a HybridModel{of}, which megacode cannot convert", where, fix)


def _vocabulary(tokenizer: Path, stored: TorchDist, checkpoint: Path) -> int:
    from megacode.config.model import TokenizerConfig
    from megacode.data.tokenizer import load_tokenizer

    vocab = load_tokenizer(TokenizerConfig(kind="huggingface", path=str(tokenizer))).vocab_size
    rows = stored.shapes.get(VOCABULARY[0], (0,))[0]
    # More rows than tokens is padding; fewer means the wrong tokenizer.
    if vocab > rows:
        message = f"the tokenizer has {vocab} tokens, but the embedding only {rows} rows"
        raise CheckpointError(message, str(checkpoint), "give the tokenizer that the model was trained with")
    return vocab


def _names(model: ModelConfig, vocab: int, stored: TorchDist, checkpoint: Path) -> dict[str, tuple[str, int | None]]:
    """Return where each of megacode's tensors is stored: its name there, and its layer if layers are stacked.

    Raises:
        CheckpointError: a tensor is missing, surplus or of another shape.
    """
    shapes, places = mcore_shapes(model, Sizes.of(model, vocab)), {}
    for name, shape in shapes.items():
        stored_as = next((place for place in _candidates(name) if place[0] in stored.shapes), None)
        if stored_as is None:
            raise CheckpointError(
                f"it does not contain {name}", str(checkpoint), "check the arguments it was trained with"
            )
        # A stacked tensor has the layer as its first axis.
        depth = model.num_layers if stored_as[1] is None else stored.shapes[stored_as[0]][0]
        if depth != model.num_layers:
            message = f"it contains {depth} layers, but the arguments say {model.num_layers}"
            raise CheckpointError(message, str(checkpoint), "check the arguments it was trained with")
        stored_shape = stored.shapes[stored_as[0]][0 if stored_as[1] is None else 1 :]
        # Only the vocabulary's first axis may differ: it is padded for tensor parallelism.
        if stored_shape[1:] != shape[1:] or (stored_shape != shape and name not in VOCABULARY):
            message = f"{name} has shape {list(stored_shape)}, but by the arguments it is {list(shape)}"
            raise CheckpointError(message, str(checkpoint), "check the arguments it was trained with")
        places[name] = stored_as
    # A tensor without a counterpart (a bias, a router) means that the model computes something else.
    known = {name for name, _ in places.values()}
    surplus = [
        name for name in stored.shapes if name not in known and name.startswith(("embedding", "decoder", "output"))
    ]
    if surplus:
        message = f"it contains {min(surplus)}, which megacode's model does not have"
        raise CheckpointError(message, str(checkpoint), "only models that megacode's config describes can be converted")
    return places


def _candidates(name: str) -> Iterator[tuple[str, int | None]]:
    """Yield the places where a tensor may be: under its own name or its matrix's, layer by layer or stacked."""
    if not name.startswith(_LAYERS):
        yield name, None
        return
    layer, _, rest = name.removeprefix(_LAYERS).partition(".")
    # Local modules keep the norm by its own name, Transformer Engine fuses it into the matrix.
    for end in (rest, _WITH_THE_MATRIX.get(rest, rest)):
        yield f"{_LAYERS}{layer}.{end}", None
        yield f"{_LAYERS}{end}", int(layer)


def _tensors(
    stored: TorchDist, names: Mapping[str, tuple[str, int | None]], vocab: int
) -> Iterator[tuple[str, torch.Tensor]]:
    for name, (stored_name, layer) in names.items():
        tensor = stored.tensor(stored_name, layer)
        yield name, tensor[:vocab] if name in VOCABULARY else tensor


def _compare(written: Mapping[str, torch.Tensor], read: Iterator[tuple[str, torch.Tensor]], where: Path) -> int:
    """Compare every written tensor with the one that was read; return the number of parameters."""
    parameters = 0
    with steps(read, "comparing tensors", len(written)) as counted:
        for name, tensor in counted:
            if not torch.equal(written[name], tensor.float()):
                raise VerificationError(
                    f"{name} was not written as it was read", str(where), "nothing was published; try again"
                )
            parameters += tensor.numel()
    return parameters

"""The two models of a proof, each run once on the same tokens: Megatron-core's from the checkpoint, transformers' from
the export. One at a time is in memory, in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from megacode.base.errors import VerificationError
from megacode.config.run import RunConfig
from megacode.config.training import Parallel, Precision
from megacode.convert.compare import LOGITS, Points, Trace, recording

Ids = Sequence[tuple[int, ...]]
NOTHING_PUBLISHED = "nothing was published; the checkpoint is as it was"


def exported_traces(export: Path, ids: Ids) -> list[Trace]:
    """Run an export as transformers loads it.

    Args:
        export: its directory.
        ids: the token ids of each text.

    Returns:
        For each text the points of its forward pass.

    Raises:
        VerificationError: transformers cannot load it, or loads it with parameters missing or surplus.
    """
    model = _load(export)
    return _run(_hf_points(model), lambda tokens: model(tokens, use_cache=False).logits, ids, sequence_first=False)


def _load(export: Path) -> Any:
    from transformers import AutoModelForCausalLM

    try:
        with _without_progress_bar():
            model, info = AutoModelForCausalLM.from_pretrained(
                export, dtype=torch.float32, output_loading_info=True, local_files_only=True
            )
    except Exception as error:
        what = f"transformers cannot load the export: {str(error).strip()}"
        raise VerificationError(what, str(export), NOTHING_PUBLISHED) from error
    wrong = [f"{kind.replace('_', ' ')}: {min(map(str, names))}" for kind, names in info.items() if names]
    if wrong:
        what = f"transformers does not find the parameters it expects; {'; '.join(wrong)}"
        raise VerificationError(what, str(export), NOTHING_PUBLISHED)
    return model.eval()


@contextmanager
def _without_progress_bar() -> Iterator[None]:
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def reference_traces(config: RunConfig, checkpoint: Path, vocab: int, ids: Ids, dtype: torch.dtype) -> list[Trace]:
    """Run megacode's own model, in float32 and in this process alone.

    The model reads its checkpoint the way a resumed run does, not from the tensors that the export was made of, so
    that a mistake in either way shows.

    Args:
        config: the run's.
        checkpoint: its directory; any layout may have written it.
        vocab: tokens the tokenizer knows; further rows are padding and are left out.
        ids: the token ids of each text.
        dtype: the weights are rounded to this type first, as in the export; a layout is proven apart from rounding.

    Returns:
        For each text the points of its forward pass, in the order in which they are computed.
    """
    from megacode.mcore import device, groups

    alone = config.model_copy(update={"parallel": Parallel(), "precision": Precision(dtype="fp32")})
    joined = torch.distributed.is_initialized()
    ranks = groups.start(alone.parallel, alone.seed)
    try:
        model = _resumed(alone, checkpoint, ranks, dtype)

        def logits(tokens: Tensor) -> Tensor:
            tokens = tokens.to(device.device())
            positions = torch.arange(tokens.shape[1], device=tokens.device)[None]
            result: Tensor = model(tokens, positions, None)
            return result[..., :vocab]

        return _run(_mcore_points(model), logits, ids, sequence_first=True)
    finally:
        if not joined:
            groups.stop()


def _resumed(config: RunConfig, checkpoint: Path, ranks: Any, dtype: torch.dtype) -> Any:
    from megacode.checkpoint.tensors import load
    from megacode.data.windows import vocabulary_size
    from megacode.mcore import device
    from megacode.mcore.model import Model
    from megacode.mcore.parts import Parts
    from megacode.mcore.translate import padded_vocab_size, transformer_config

    vocab = vocabulary_size(config)
    model = Model(config, transformer_config(config), vocab, None).to(device.device())
    parts = Parts(config, ranks, [model], None, vocab, padded_vocab_size(config, vocab))
    load(parts, checkpoint, weights_only=True)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.to(dtype))
    return model.eval()


def _run(points: Points, logits: Callable[[Tensor], Tensor], ids: Ids, *, sequence_first: bool) -> list[Trace]:
    traces = []
    for text in ids:
        with torch.no_grad(), recording(points, sequence_first=sequence_first) as trace:
            result = logits(torch.tensor([text]))
        trace[LOGITS] = result.to("cpu", torch.float32)
        traces.append(trace)
    return traces


def _points(embedding: nn.Module, layers: Iterable[nn.Module], norm: nn.Module, attention: str, mlp: str) -> Points:
    points = {"embedding": embedding}
    for number, layer in enumerate(layers):
        points[f"layer {number} attention"] = layer.get_submodule(attention)
        points[f"layer {number} MLP"] = layer.get_submodule(mlp)
        points[f"layer {number} output"] = layer
    return points | {"final norm": norm}


def _mcore_points(model: Any) -> Points:
    decoder = model.decoder
    names = ("self_attention.linear_proj", "mlp.linear_fc2")
    return _points(model.embedding, decoder.layers, decoder.final_layernorm, *names)


def _hf_points(model: Any) -> Points:
    body = model.model
    return _points(body.embed_tokens, body.layers, body.norm, "self_attn.o_proj", "mlp.down_proj")

"""Run megacode's own model from a checkpoint, one block at a time: the checkpoint's side of a verification.

The model is on torch's meta device, where weights have shapes and no memory. Each block gets its weights when it runs
and releases them at once. Of the embedding only the rows of the texts' tokens are read, and the output layer runs on
slices of the vocabulary. So memory does not grow with the number of layers or the size of the vocabulary.

Weights are read as a resumed run reads them, by the names that Megatron-core gives them in this model. Nothing here
knows how the export's tensors were made, so a mistake there shows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from megacode.config.run import RunConfig
from megacode.config.training import Parallel, Precision
from megacode.mcore.checkpoint_pieces import Piece
from megacode.mcore.groups import Ranks


@dataclass(frozen=True)
class Step:
    """The outputs of one block, [b, s, h] fp32 on the CPU.

    Attributes:
        inside: what its attention and its MLP add to the residual stream, by `attention` and `MLP`.
        output: the residual stream after both.
    """

    inside: dict[str, Tensor]
    output: Tensor


@contextmanager
def alone(config: RunConfig) -> Iterator[tuple[RunConfig, Ranks]]:
    """Start a process group of one; yields the run's config for it, in float32, and its ranks."""
    from megacode.mcore import groups

    # One process in float32 without FP8, whatever layout and precision trained the checkpoint.
    changes = {
        "parallel": Parallel(),
        "precision": Precision(dtype="fp32", transformer_impl="local"),
        "phases": tuple(phase.model_copy(update={"fp8": None}) for phase in config.phases),
    }
    config = config.model_copy(update=changes)
    # Evaluation during training may have a group already; that one must stay open.
    joined = torch.distributed.is_initialized()
    try:
        yield config, groups.start(config.parallel, config.seed)
    finally:
        if not joined:
            groups.stop()


class Reference:
    """Megacode's own model on a checkpoint, in float32.

    Args:
        config: of `alone`.
        ranks: of `alone`.
        checkpoint: its directory; any layout may have written it.
        dtype: the weights are rounded to this type first, as in the export, so that rounding is no difference.
    """

    def __init__(self, config: RunConfig, ranks: Ranks, checkpoint: Path, dtype: torch.dtype) -> None:
        from megacode.checkpoint.reader import Reader
        from megacode.data.windows import vocabulary_size
        from megacode.mcore import device
        from megacode.mcore.rank_model import RankModel
        from megacode.mcore.translate import padded_vocab_size

        vocab = vocabulary_size(config)
        self._model = _without_memory(config, vocab).eval()
        self._rank_model = RankModel(config, ranks, [self._model], None, vocab, padded_vocab_size(config, vocab))
        self._reader, self._dtype, self._device = Reader(checkpoint), dtype, device.device()

    @property
    def layers(self) -> int:
        """Number of blocks."""
        return self._rank_model.config.model.num_layers

    @torch.no_grad()
    def embedding(self, tokens: Tensor) -> Tensor:
        """Return the embedding, [b, s, h] fp32, of tokens, [b, s] int64."""
        # Texts use a few hundred tokens: reading whole embeddings would dominate memory.
        rows: list[int] = tokens.unique().tolist()

        def of_rows(piece: Piece) -> Iterator[Piece]:
            for row in rows:
                yield replace(piece, offset=(row, 0), data=piece.data[row : row + 1])

        with self._holding(self._model.embedding, of_rows) as embedding:
            positions = torch.arange(tokens.shape[1], device=self._device)[None]
            return _batch_first(embedding(tokens.to(self._device), positions))

    @torch.no_grad()
    def block(self, number: int, hidden: Tensor) -> Step:
        """Run a block on the residual stream, [b, s, h] fp32."""
        inside: dict[str, Tensor] = {}

        def record(kind: str) -> Callable[[nn.Module, object, Any], None]:
            return lambda module, inputs, result: inside.__setitem__(kind, _batch_first(result[0]))

        with self._holding(self._model.decoder.layers[number]) as block:
            # The outputs that enter the residual stream, as on the other side.
            recorded = {"attention": block.self_attention.linear_proj, "MLP": block.mlp.linear_fc2}
            handles = [module.register_forward_hook(record(kind)) for kind, module in recorded.items()]
            table = self._model.rotary_pos_emb(hidden.shape[1])
            output, _ = block(self._sequence_first(hidden), None, rotary_pos_emb=table)
            for handle in handles:
                handle.remove()
        return Step(inside, _batch_first(output))

    @torch.no_grad()
    def final_norm(self, hidden: Tensor) -> Tensor:
        """Return the residual stream, [b, s, h] fp32, normed."""
        with self._holding(self._model.decoder.final_layernorm) as norm:
            return _batch_first(norm(self._sequence_first(hidden)))

    @torch.no_grad()
    def hidden(self, tokens: Tensor) -> Tensor:
        """Return the output layer's input for tokens, [b, s]: [b, s, h] fp32."""
        hidden = self.embedding(tokens)
        for number in range(self.layers):
            hidden = self.block(number, hidden).output
        return self.final_norm(hidden)

    @torch.no_grad()
    def logits(self, hidden: Tensor, first: int, last: int) -> Tensor:
        """Return the logits of tokens first .. last - 1 of the vocabulary, [t, last - first] fp32.

        Args:
            hidden: the output of `final_norm`, [t, h].
            first, last: the tokens.
        """
        from megacode.mcore import checkpoint_pieces

        tied = self._rank_model.config.model.share_embeddings_and_output_weights
        end = "word_embeddings.weight" if tied else "output_layer.weight"
        # The piece describes the whole matrix; only its offset and data are replaced.
        whole = next(piece for piece in checkpoint_pieces.weights(self._rank_model) if piece.name.endswith(end))
        slice_ = torch.empty(last - first, whole.shape[1], device=self._device)
        self._fill([replace(whole, offset=(first, 0), data=slice_)])
        return _batch_first(self._model.output_layer(hidden[:, None].to(self._device), slice_)[0])[0]

    @contextmanager
    def _holding(self, module: Any, cut: Callable[[Piece], Iterable[Piece]] | None = None) -> Iterator[Any]:
        """Load a module's weights, or pieces of them made by `cut`, until the block ends."""
        from megacode.mcore import checkpoint_pieces

        module.to_empty(device=self._device)
        # After to_empty only this module has memory, so only its pieces are not meta.
        materialized = [piece for piece in checkpoint_pieces.weights(self._rank_model) if not piece.whole().is_meta]
        # `cut` narrows what is read; the embedding's other rows stay uninitialised and unused.
        self._fill([part for piece in materialized for part in cut(piece)] if cut else materialized)
        yield module
        module.to_empty(device="meta")

    def _fill(self, pieces: list[Piece]) -> None:
        self._reader.fill(pieces)
        if self._dtype != torch.float32:
            for piece in pieces:
                piece.data.copy_(piece.whole().to(self._dtype))

    def _sequence_first(self, hidden: Tensor) -> Tensor:
        return hidden.transpose(0, 1).contiguous().to(self._device)


def _batch_first(hidden: Tensor) -> Tensor:
    # Megatron-core is sequence first, transformers batch first.
    return hidden.transpose(0, 1).contiguous().to("cpu", torch.float32)


def _without_memory(config: RunConfig, vocab: int) -> Any:
    """Return the model with all its weights on the meta device."""
    from megacode.mcore.model import Model
    from megacode.mcore.rotary import RotaryTable
    from megacode.mcore.translate import transformer_config

    # With these settings alone does mcore leave the choice of device to torch.
    mcore_config = replace(transformer_config(config), use_cpu_initialization=True, perform_initialization=False)
    with torch.device("meta"):
        model = Model(config, mcore_config, vocab, None)
    model.rotary_pos_emb = RotaryTable(config.model, torch.float32)
    return model

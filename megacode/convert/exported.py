"""Run transformers' own model on an export's files, one block at a time: the export's side of a verification.

transformers loads the export onto torch's meta device, where weights have shapes and no memory, and reports what is
missing. Then its own forward pass runs unchanged. Hooks load each module's weights from the files before it runs,
release them afterwards, and pass its inputs and outputs to a `Companion`.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from megacode.base.errors import VerificationError
from megacode.base.imports import uncollected
from megacode.convert.safetensors_files import SafetensorsFiles

NOTHING_PUBLISHED = "nothing was published; the checkpoint is unchanged"


class Companion(Protocol):
    """Observer of a forward pass; it may replace a block's input."""

    def arrive(self, number: int, hidden: Tensor) -> Tensor:
        """Receive the input of a block, [b, s, h] (or of the final norm, whose number is the number of blocks).

        Returns:
            The input to give to the block instead.
        """
        ...

    def inside(self, number: int, kind: str, output: Tensor) -> None:
        """Receive the output of a block's `attention` or `MLP`, [b, s, h]."""
        ...


class Exported:
    """An export as transformers loads it, in float32 on the CPU.

    Args:
        export: its directory.

    Raises:
        VerificationError: transformers cannot load it, or loads it with parameters missing or surplus.
    """

    def __init__(self, export: Path) -> None:
        self._model = _load(export)
        self._body = self._model.model
        config = self._model.config
        # Rotary angles are computed, not stored, and on the meta device they were never computed.
        self._body.rotary_emb = type(self._body.rotary_emb)(config=config)
        # With tied weights the file holds the embedding only.
        self._tied = config.tie_word_embeddings
        self._shards = SafetensorsFiles(export, tied=self._tied)
        leftover = [name for name, buffer in self._model.named_buffers() if buffer.is_meta]
        assert not leftover, f"{leftover} are in no file"

    def modules(self) -> Iterator[tuple[str, Any]]:
        """Yield all modules of the model, by name."""
        yield from self._model.named_modules()

    def windows(self) -> list[int | None]:
        """Return how many keys a token sees in each layer, its own included; None: all before it."""
        config = self._model.config
        # Most classes keep it in the layer; Mistral's reads it from the config.
        everywhere = getattr(config, "sliding_window", None)
        return [getattr(layer.self_attn, "sliding_window", everywhere) for layer in self._body.layers]

    @torch.no_grad()
    def rotation(self, layer: int, position: int) -> tuple[Tensor, Tensor]:
        """Return cosines and sines of a layer's angles at a position, one for each rotating pair of channels, fp32."""
        rotary = self._body.rotary_emb
        # OLMo 3 has other angles in sliding layers than in others.
        by_kind = "layer_type" in inspect.signature(type(rotary).forward).parameters
        keywords = {"layer_type": self._model.config.layer_types[layer]} if by_kind else {}
        both = rotary(torch.zeros(1, 1, 1), torch.tensor([[position]]), **keywords)
        cos, sin = (part[0, 0] for part in both)
        # A pair's angle appears twice: in neighbours, or in both halves.
        neighbours = len(sin) > 2 and bool(sin[0] == sin[1])
        pairs = slice(None, None, 2) if neighbours else slice(0, len(cos) // 2)
        return cos[pairs], sin[pairs]

    @torch.no_grad()
    def run(self, tokens: Tensor, companion: Companion) -> Tensor:
        """Run the forward pass up to the output layer.

        Args:
            tokens: [b, s] int64.
            companion: receives every point, in order.

        Returns:
            The input of the output layer, [b, s, h] fp32.
        """
        handles = self._watch(companion)
        with self._holding_embedding():
            hidden: Tensor = self._body(tokens, use_cache=False).last_hidden_state
        for handle in handles:
            handle.remove()
        return hidden

    def _watch(self, companion: Companion) -> list[Any]:
        layers = self._body.layers
        # Hooks at every block and at the final norm; their inputs are what gets compared.
        stations = [(layer, f"model.layers.{number}.") for number, layer in enumerate(layers)]
        handles = []
        for number, (module, prefix) in enumerate([*stations, (self._body.norm, "model.norm.")]):
            handles.append(module.register_forward_pre_hook(partial(self._before, companion, number, prefix)))
            # Weights return to the meta device at once: at most one block is in memory.
            handles.append(module.register_forward_hook(_give_back))
        for number, layer in enumerate(layers):
            # The last matrix of attention and MLP: its output is what enters the residual stream.
            for kind, module in (("attention", layer.self_attn.o_proj), ("MLP", layer.mlp.down_proj)):
                handles.append(module.register_forward_hook(partial(_inside, companion, number, kind)))
        return handles

    def _before(self, companion: Companion, number: int, prefix: str, module: Any, inputs: Any) -> Any:
        """Call the companion first: while it runs its own block, this one's weights are not in memory yet."""
        hidden = companion.arrive(number, inputs[0])
        names = list(module.state_dict())
        module.load_state_dict({name: self._shards[prefix + name].float() for name in names}, assign=True)
        return (hidden, *inputs[1:])

    @contextmanager
    def _holding_embedding(self) -> Iterator[None]:
        """Keep the embedding memory-mapped in the file's dtype; only its output is converted to float32."""
        embedding = self._body.embed_tokens
        embedding.load_state_dict({"weight": self._shards["model.embed_tokens.weight"]}, assign=True)
        handle = embedding.register_forward_hook(lambda module, inputs, output: output.float())
        yield
        handle.remove()
        _give_back(embedding)

    @torch.no_grad()
    def logits(self, hidden: Tensor, first: int, last: int) -> Tensor:
        """Return the logits of tokens first .. last - 1 of the vocabulary, [t, last - first] fp32.

        transformers' own forward pass computes them, with everything it does after the output layer. Only the body is
        skipped: it has run already.

        Args:
            hidden: the input of the output layer, [t, h].
            first, last: the tokens.
        """
        # A slice of the output layer at a time: for large vocabularies it is the largest tensor.
        rows = self._shards.rows("model.embed_tokens.weight" if self._tied else "lm_head.weight", first, last)
        self._model.lm_head.weight = nn.Parameter(rows.float(), requires_grad=False)
        # Swapping the body lets transformers' own code run from here to the logits.
        self._model.model = _Done()
        logits: Tensor = self._model(inputs_embeds=hidden[None], use_cache=False).logits[0]
        self._model.model = self._body
        return logits


class _Done(nn.Module):
    """A replacement for a body that has run: it returns its input."""

    def forward(self, inputs_embeds: Tensor, **unused: Any) -> Any:
        from transformers.modeling_outputs import BaseModelOutputWithPast

        return BaseModelOutputWithPast(last_hidden_state=inputs_embeds)


def _give_back(module: Any, *unused: Any) -> None:
    module.to_empty(device="meta")


def _inside(companion: Companion, number: int, kind: str, _module: Any, _given: Any, output: Tensor) -> None:
    companion.inside(number, kind, output)


def _load(export: Path) -> Any:
    with uncollected():
        from transformers import AutoModelForCausalLM

    try:
        with _without_progress_bar():
            model, info = AutoModelForCausalLM.from_pretrained(
                export, dtype=torch.float32, device_map="meta", output_loading_info=True, local_files_only=True
            )
    except Exception as error:
        message = f"transformers cannot load the export: {str(error).strip()}"
        raise VerificationError(message, str(export), NOTHING_PUBLISHED) from error
    wrong = [f"{kind.replace('_', ' ')}: {min(map(str, names))}" for kind, names in info.items() if names]
    if wrong:
        message = f"the export's parameters are not those that transformers expects; {'; '.join(wrong)}"
        raise VerificationError(message, str(export), NOTHING_PUBLISHED)
    return model.eval()


@contextmanager
def _without_progress_bar() -> Iterator[None]:
    from transformers.utils import logging

    # A global switch of transformers: restore what the caller had.
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()

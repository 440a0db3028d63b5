"""The other side of a proof: transformers' own model on an export's files, a block at a time.

transformers loads the export onto torch's meta device, where weights have shapes and no memory, and says what it
misses. Then its own forward pass runs, from the first line to the last; hooks give each module its weights from the
files when its turn comes, take them back after, and tell a `Companion` what arrives and what is computed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from megacode.base.errors import VerificationError
from megacode.convert.safetensors_files import SafetensorsFiles

NOTHING_PUBLISHED = "nothing was published; the checkpoint is as it was"


class Companion(Protocol):
    """Who goes along with a forward pass."""

    def arrive(self, number: int, hidden: Tensor) -> Tensor:
        """Take what arrives at a block, [b, s, h] (or at the final norm, whose number is that of the blocks).

        Returns:
            What the block shall be given in its place.
        """
        ...

    def inside(self, number: int, kind: str, output: Tensor) -> None:
        """Take what a block's `attention` or `MLP` computed, [b, s, h]."""
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
        # Angles are computed, not stored; on the meta device they were not.
        self._body.rotary_emb = type(self._body.rotary_emb)(config=config)
        self._tied = config.tie_word_embeddings
        self._shards = SafetensorsFiles(export, tied=self._tied)
        leftover = [name for name, buffer in self._model.named_buffers() if buffer.is_meta]
        assert not leftover, f"{leftover} are in no file"

    @torch.no_grad()
    def run(self, tokens: Tensor, companion: Companion) -> Tensor:
        """Run the forward pass up to the output layer.

        Args:
            tokens: [b, s] int64.
            companion: is told of every point, in order.

        Returns:
            What arrives at the output layer, [b, s, h] fp32.
        """
        handles = self._watch(companion)
        with self._holding_embedding():
            hidden: Tensor = self._body(tokens, use_cache=False).last_hidden_state
        for handle in handles:
            handle.remove()
        return hidden

    def _watch(self, companion: Companion) -> list[Any]:
        layers = self._body.layers
        stations = [(layer, f"model.layers.{number}.") for number, layer in enumerate(layers)]
        handles = []
        for number, (module, prefix) in enumerate([*stations, (self._body.norm, "model.norm.")]):
            handles.append(module.register_forward_pre_hook(partial(self._before, companion, number, prefix)))
            handles.append(module.register_forward_hook(_give_back))
        for number, layer in enumerate(layers):
            for kind, module in (("attention", layer.self_attn.o_proj), ("MLP", layer.mlp.down_proj)):
                handles.append(module.register_forward_hook(partial(_inside, companion, number, kind)))
        return handles

    def _before(self, companion: Companion, number: int, prefix: str, module: Any, given: Any) -> Any:
        """The companion first: while it computes its own block, this one's weights are not held yet."""
        hidden = companion.arrive(number, given[0])
        names = list(module.state_dict())
        module.load_state_dict({name: self._shards[prefix + name].float() for name in names}, assign=True)
        return (hidden, *given[1:])

    @contextmanager
    def _holding_embedding(self) -> Iterator[None]:
        """The embedding stays as the file has it, mapped, not copied; only what it gives is made float32."""
        embedding = self._body.embed_tokens
        embedding.load_state_dict({"weight": self._shards["model.embed_tokens.weight"]}, assign=True)
        handle = embedding.register_forward_hook(lambda module, given, output: output.float())
        yield
        handle.remove()
        _give_back(embedding)

    @torch.no_grad()
    def logits(self, hidden: Tensor, first: int, last: int) -> Tensor:
        """Return the logits of tokens first .. last - 1 of the vocabulary, [t, last - first] fp32.

        transformers' own forward pass computes them, with all that it does after the output layer; only the body is
        out of it, having run already.

        Args:
            hidden: what arrives at the output layer, [t, h].
            first, last: the tokens.
        """
        rows = self._shards.rows("model.embed_tokens.weight" if self._tied else "lm_head.weight", first, last)
        self._model.lm_head.weight = nn.Parameter(rows.float(), requires_grad=False)
        self._model.model = _Done()
        logits: Tensor = self._model(inputs_embeds=hidden[None], use_cache=False).logits[0]
        self._model.model = self._body
        return logits


class _Done(nn.Module):
    """A body that has run: what it is given is its result."""

    def forward(self, inputs_embeds: Tensor, **unused: Any) -> Any:
        from transformers.modeling_outputs import BaseModelOutputWithPast

        return BaseModelOutputWithPast(last_hidden_state=inputs_embeds)


def _give_back(module: Any, *unused: Any) -> None:
    module.to_empty(device="meta")


def _inside(companion: Companion, number: int, kind: str, _module: Any, _given: Any, output: Tensor) -> None:
    companion.inside(number, kind, output)


def _load(export: Path) -> Any:
    from transformers import AutoModelForCausalLM

    try:
        with _without_progress_bar():
            model, info = AutoModelForCausalLM.from_pretrained(
                export, dtype=torch.float32, device_map="meta", output_loading_info=True, local_files_only=True
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

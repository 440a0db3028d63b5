"""Text from an exported model, token by token: what `megacode generate` prints and the report page shows.

A text begins as in training: behind the token that ends a document, the only beginning an export has ever seen. Draws
come from a generator of their own on the CPU, so that a seed gives the same text on any device, up to rounding.

Source of the nucleus (`top_p`): Holtzman et al., arXiv:1904.09751, section 3.1.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megacode.base.errors import CheckpointError, ConfigError, DataError
from megacode.base.files import RunDir
from megacode.checkpoint.state import TrainState
from megacode.checkpoint.store import find_checkpoint
from megacode.eval.hf_model import end_ids, open_model
from megacode.eval.scored_models import check_model
from megacode.metrics.scores import read_score_file

log = logging.getLogger(__name__)

_CONTEXT_TOKENS = 8  # of the prompt, decoded with the first new ones: some tokenizers drop the first token's space
_CARD = "megacode.json"  # convert.card's; that module would load torch
_TORN = "\ufffd"  # the end of a text whose last character is not complete

Turns = Sequence[dict[str, str]]


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen.

    Attributes:
        max_new_tokens: length of a text, at most.
        temperature: 0 takes the likeliest token each time; above, tokens are drawn.
        top_p: draw only from the likeliest tokens that have this probability together.
        seed: of the first text's draws; each further text has the next one.
    """

    max_new_tokens: int = 128
    temperature: float = 0.8
    top_p: float = 0.95
    seed: int = 0


def model_of(place: Path) -> Path:
    """Return the exported model that a path means; the newest checkpoint of a run is exported if need be.

    Args:
        place: an exported model, a run directory, or a checkpoint in one.

    Raises:
        CheckpointError: it is none of these, or its export cannot be published.
        ConfigError: the checkpoint's model has no architecture in transformers.
        VerificationError: the export does not compute what the checkpoint computes.
    """
    if (place / "config.json").exists():
        check_model(place)
        return place
    checkpoint = _checkpoint_of(place).resolve()
    if checkpoint.parent.name != "checkpoints":
        fix = f"export it first: megacode convert to-hf {checkpoint} OUT, then megacode generate OUT"
        raise CheckpointError("this checkpoint does not lie in a run directory", str(checkpoint), fix)
    run, state = RunDir(checkpoint.parent.parent), TrainState.read(checkpoint)
    target = run.hf / run.iteration_name(state.iteration)
    if read_score_file(target / _CARD).get("checkpoint_seal") != state.seal:
        _export(checkpoint, target)
    check_model(target)
    return target


def _checkpoint_of(place: Path) -> Path:
    try:
        return find_checkpoint(place)
    except CheckpointError as error:
        if not place.is_dir() or RunDir(place).config.exists():
            raise
        what = "it is neither an exported model (no config.json) nor a run with a checkpoint"
        fix = "name a directory that `megacode convert to-hf` wrote, or a run directory"
        raise CheckpointError(what, str(place), fix) from error


def _export(checkpoint: Path, target: Path) -> None:
    from megacode.convert.hf import to_hf

    log.info("exporting %s to %s, with proof; this is done once", checkpoint, target)
    try:
        to_hf(checkpoint, target, force=target.exists())
    except (OSError, ConfigError) as error:
        if not checkpoint.exists():
            what, fix = "the checkpoint was deleted meanwhile: the run is live", "give the same command again"
            raise CheckpointError(what, str(checkpoint), fix) from error
        fix = f"export it elsewhere: megacode convert to-hf {checkpoint} OUT, then megacode generate OUT"
        why = error.strerror if isinstance(error, OSError) else error.problems[0].what
        raise CheckpointError(f"the export cannot be written: {why}", str(target), fix) from error


class Writer:
    """A loaded model that writes.

    Args:
        model: transformers' model.
        tokenizer: transformers' tokenizer.
        where: the model's directory, for messages and to see who exported it.
    """

    def __init__(self, model: Any, tokenizer: Any, where: Path) -> None:
        self._model, self._tokenizer, self._where = model, tokenizer, where
        self._ends = frozenset(end_ids(model, tokenizer))
        self.context: int | None = getattr(model.config, "max_position_embeddings", None)

    @classmethod
    def open(cls, hf_dir: Path, device: str | None = None) -> Writer:
        """Load an exported model.

        Args:
            hf_dir: its directory.
            device: `cpu`, `cuda`, `cuda:1`; absent: CUDA where there is any.

        Raises:
            CheckpointError: transformers cannot load it.
        """
        return cls(*open_model(hf_dir, device), hf_dir)

    def ids(self, prompt: str) -> list[int]:
        """Return a prompt's ids as the model was trained to see the beginning of a text.

        Raises:
            ConfigError: the prompt is empty, and the model has no token to begin a text with.
        """
        ids = list(self._tokenizer(prompt)["input_ids"])
        begin = self._tokenizer.bos_token_id
        ours = (self._where / _CARD).exists()
        if begin is not None and (ours or not ids) and ids[:1] != [begin]:
            ids = [begin, *ids]
        if not ids:
            what = "the prompt is empty, and this model has no token that begins a text"
            raise ConfigError(what, "--prompt", "give some text to go on from")
        return ids

    def chat_ids(self, turns: Turns) -> list[int]:
        """Return a conversation's ids in the model's own chat form, up to where it answers.

        Raises:
            ConfigError: the model has no chat template.
        """
        if not getattr(self._tokenizer, "chat_template", None):
            what = "this model has no chat template: it was trained on plain text, or its tokenizer lacks one"
            raise ConfigError(
                what, f"--chat with {self._where}", "leave out --chat: the model then goes on with a text"
            )
        ids = self._tokenizer.apply_chat_template(list(turns), add_generation_prompt=True, tokenize=True,
                                                  return_dict=False)  # fmt: skip
        return list(ids)

    def check(self, ids: Sequence[int]) -> None:
        """Check that a prompt leaves room for at least one token.

        Raises:
            DataError: it does not.
        """
        if self.context is not None and len(ids) >= self.context:
            what = f"the prompt has {len(ids)} tokens, the model's context only {self.context}"
            raise DataError(what, str(self._where), f"shorten the prompt to {self.context - 1} tokens or fewer")

    def write(self, ids: Sequence[int], sampling: Sampling, number: int = 0) -> Text:
        """Return a text that goes on from a prompt; its pieces come while they are generated.

        Args:
            ids: the prompt's, from `ids` or `chat_ids`.
            sampling: how tokens are chosen.
            number: of the text, from 0; each has draws of its own.

        Raises:
            DataError: the prompt fills the model's context.
        """
        self.check(ids)
        room = sampling.max_new_tokens if self.context is None else self.context - len(ids)
        return Text(self._model, self._tokenizer, self._ends, list(ids), room, sampling, sampling.seed + number)


class Text:
    """A text being generated: iterate over its pieces, then ask how it ended.

    Attributes:
        seed: of its draws.
        tokens: generated so far, without the one that ends the text.
        ended: `end of text`, `max_new_tokens` or `context`; empty while it goes on.
    """

    def __init__(self, model: Any, tokenizer: Any, ends: frozenset[int], ids: list[int], room: int, sampling: Sampling,
                 seed: int) -> None:  # fmt: skip
        self._model, self._tokenizer, self._ends, self._ids = model, tokenizer, ends, ids
        self._room, self._sampling, self.seed = room, sampling, seed
        self.tokens = 0
        self.ended = ""

    def __iter__(self) -> Iterator[str]:
        return pieces(self._tokenizer, self._ids[-_CONTEXT_TOKENS:], self._generate())

    def _generate(self) -> Iterator[int]:
        """Yield new ids; each forward pass sees one token, the rest is in the cache of keys and values."""
        import torch

        generator = torch.Generator().manual_seed(self.seed)
        given, cache = self._ids, None
        for _ in range(min(self._room, self._sampling.max_new_tokens)):
            with torch.inference_mode():
                ids = torch.tensor([given], device=self._model.device)
                output = self._model(ids, past_key_values=cache, use_cache=True)
            token = choose(output.logits[0, -1].float().cpu(), self._sampling, generator)
            if token in self._ends:
                self.ended = "end of text"
                return
            self.tokens += 1
            yield token
            given, cache = [token], output.past_key_values
        self.ended = "context" if self._room < self._sampling.max_new_tokens else "max_new_tokens"


def choose(logits: Any, sampling: Sampling, generator: Any) -> int:
    """Return the next token.

    Args:
        logits: [vocabulary] fp32 on the CPU.
        sampling: how it is chosen.
        generator: of the draws.

    Raises:
        CheckpointError: the logits are not numbers.
    """
    if logits.isnan().any():
        raise CheckpointError("the model computes NaN", fix="its weights are damaged: export another checkpoint")
    if sampling.temperature == 0:
        return int(logits.argmax())
    shares, order = (logits / sampling.temperature).softmax(-1).sort(descending=True)
    before = shares.cumsum(-1) - shares
    kept = shares.masked_fill(before >= sampling.top_p, 0.0)
    kept[0] = shares[0]  # the likeliest token stays whatever top_p is
    return int(order[kept.multinomial(1, generator=generator)])


def pieces(tokenizer: Any, before: Sequence[int], new: Iterable[int]) -> Iterator[str]:
    """Yield the text of new tokens as soon as its characters are complete.

    Args:
        tokenizer: transformers' tokenizer.
        before: the last ids before the new ones.
        new: the new ids.
    """
    ids, start, read = list(before), 0, len(before)

    def text(until: int | None = None) -> str:
        return str(tokenizer.decode(ids[start:until], skip_special_tokens=True))

    for token in new:
        ids.append(token)
        known, now = text(read), text()
        if len(now) > len(known) and not now.endswith(_TORN):
            yield now[len(known) :]
            start, read = read, len(ids)
    if read < len(ids):
        yield text()[len(text(read)) :]

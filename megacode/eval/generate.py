"""Generate text from an exported model, token by token, for `megacode generate` and the report page.

A text begins as in training, after the end-of-document token: the model has seen no other beginning. Sampling uses its
own generator on the CPU, so that a seed gives the same text on any device, up to rounding.

Source of the nucleus (`top_p`): Holtzman et al., arXiv:1904.09751, section 3.1.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from megacode.base.errors import CheckpointError, ConfigError, DataError
from megacode.base.files import RunDir
from megacode.checkpoint.state import TrainState
from megacode.checkpoint.store import find_checkpoint
from megacode.eval.chat_prompts import ChatPrompts, Turns, has_template
from megacode.eval.hf_model import end_ids, open_model
from megacode.eval.scored_models import check_model
from megacode.metrics.scores import read_score_file

log = logging.getLogger(__name__)

_CONTEXT_TOKENS = 8  # of the prompt, decoded with the first new ones: some tokenizers drop the first token's space
_CARD = "megacode.json"  # convert.card's; that module would load torch
_TORN = "\ufffd"  # decoders return it for an incomplete character


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen.

    Attributes:
        max_new_tokens: maximum length of a text.
        temperature: 0 takes the most likely token each time; above 0, tokens are sampled.
        top_p: sample only from the most likely tokens whose probabilities add up to this.
        seed: seed of the first text; each further text uses the next one.
    """

    max_new_tokens: int = 128
    temperature: float = 0.8
    top_p: float = 0.95
    seed: int = 0


def model_of(place: Path) -> Path:
    """Return the exported model for a path; the newest checkpoint of a run is exported if needed.

    Args:
        place: an exported model, a run directory, or a checkpoint in one.

    Raises:
        CheckpointError: it is none of these, or its export cannot be published.
        ConfigError: the checkpoint's model has no architecture in transformers.
        VerificationError: the export does not compute the same as the checkpoint.
    """
    if (place / "config.json").exists():
        check_model(place)
        return place
    # `latest` may point elsewhere a minute later, so it is resolved once.
    checkpoint = _checkpoint_of(place).resolve()
    if checkpoint.parent.name != "checkpoints":
        fix = f"export it first: megacode convert to-hf {checkpoint} OUT, then megacode generate OUT"
        raise CheckpointError("this checkpoint is not in a run directory", str(checkpoint), fix)
    run, state = RunDir(checkpoint.parent.parent), TrainState.read(checkpoint)
    target = run.hf / run.iteration_name(state.iteration)
    # The seal tells whether the export is of this very checkpoint, and not of an earlier run's.
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
        message = "it is neither an exported model (no config.json) nor a run with a checkpoint"
        fix = "give a directory that `megacode convert to-hf` wrote, or a run directory"
        raise CheckpointError(message, str(place), fix) from error


def _export(checkpoint: Path, target: Path) -> None:
    from megacode.convert.hf import to_hf

    log.info("exporting %s to %s and verifying it; this happens once", checkpoint, target)
    try:
        to_hf(checkpoint, target, force=target.exists())
    except (OSError, ConfigError) as error:
        if not checkpoint.exists():
            message, fix = "the live run deleted this checkpoint during the export", "run the same command again"
            raise CheckpointError(message, str(checkpoint), fix) from error
        fix = f"export it elsewhere: megacode convert to-hf {checkpoint} OUT, then megacode generate OUT"
        why = error.strerror if isinstance(error, OSError) else error.problems[0].what
        raise CheckpointError(f"the export cannot be written: {why}", str(target), fix) from error


class TextWriter:
    """A loaded model that generates text.

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
    def open(cls, hf_dir: Path, device: str | None = None) -> TextWriter:
        """Load an exported model.

        Args:
            hf_dir: its directory.
            device: `cpu`, `cuda`, `cuda:1`; absent: CUDA where there is any.

        Raises:
            CheckpointError: transformers cannot load it.
        """
        return cls(*open_model(hf_dir, device), hf_dir)

    def ids(self, prompt: str) -> list[int]:
        """Return a prompt's ids, with the beginning of a text as in training.

        Raises:
            ConfigError: the prompt is empty, and the model has no begin-of-text token.
        """
        ids = list(self._tokenizer(prompt)["input_ids"])
        begin = self._tokenizer.bos_token_id
        ours = (self._where / _CARD).exists()
        # Our exports have a begin token but do not add it by themselves.
        if begin is not None and (ours or not ids) and ids[:1] != [begin]:
            ids = [begin, *ids]
        if not ids:
            message = "the prompt is empty, and this model has no begin-of-text token"
            raise ConfigError(message, "--prompt", "give some text to continue")
        return ids

    def chat_ids(self, turns: Turns) -> list[int]:
        """Return a conversation's ids in the model's chat template, up to the start of its answer.

        Raises:
            ConfigError: the model has no chat template, or it refuses the conversation.
        """
        return self._chat.ids(turns)

    @cached_property
    def _chat(self) -> ChatPrompts:
        if not has_template(self._tokenizer):
            message = "this model has no chat template: it was trained on plain text, or its tokenizer lacks one"
            raise ConfigError(message, f"--chat with {self._where}", "omit --chat: the model then continues a text")
        fix = "omit --system, or --chat: the model then continues a text"
        return ChatPrompts(self._tokenizer, self._where, fix)

    def check(self, ids: Sequence[int]) -> None:
        """Check that a prompt leaves room for at least one token.

        Raises:
            DataError: it does not.
        """
        if self.context is not None and len(ids) >= self.context:
            message = f"the prompt has {len(ids)} tokens, but the model's context only {self.context}"
            raise DataError(message, str(self._where), f"shorten the prompt to {self.context - 1} tokens or fewer")

    def write(self, ids: Sequence[int], sampling: Sampling, number: int = 0, *, chat: bool = False) -> GeneratedText:
        """Return a text that continues a prompt; its pieces arrive as they are generated.

        Args:
            ids: the prompt's, from `ids` or `chat_ids`.
            sampling: how tokens are chosen.
            number: of the text, from 0; each has its own seed.
            chat: the ids are from `chat_ids`, and the end of a turn ends the text.

        Raises:
            DataError: the prompt fills the model's context.
        """
        self.check(ids)
        # Models without a stated context have no limit here.
        room = sampling.max_new_tokens if self.context is None else self.context - len(ids)
        ends = frozenset(self._chat.ends(self._ends)) if chat else self._ends
        return GeneratedText(self._model, self._tokenizer, ends, list(ids), room, sampling, sampling.seed + number)


class GeneratedText:
    """A text being generated: iterate over its pieces, then ask how it ended.

    Attributes:
        seed: of its sampling.
        tokens: generated so far, without the one that ends the text.
        ended: `end of text`, `max_new_tokens` or `context`; empty while it is being generated.
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
        """Yield new ids; each forward pass gets one token, the rest is in the key-value cache."""
        import torch

        generator = torch.Generator().manual_seed(self.seed)
        # The first pass reads the whole prompt, later ones a single token.
        new_ids, cache = self._ids, None
        for _ in range(min(self._room, self._sampling.max_new_tokens)):
            with torch.inference_mode():
                ids = torch.tensor([new_ids], device=self._model.device)
                output = self._model(ids, past_key_values=cache, use_cache=True)
            token = choose(output.logits[0, -1].float().cpu(), self._sampling, generator)
            if token in self._ends:
                self.ended = "end of text"
                return
            self.tokens += 1
            yield token
            new_ids, cache = [token], output.past_key_values
        # Which limit came first decides how the text is reported.
        self.ended = "context" if self._room < self._sampling.max_new_tokens else "max_new_tokens"


def choose(logits: Any, sampling: Sampling, generator: Any) -> int:
    """Return the next token.

    Args:
        logits: [vocabulary] fp32 on the CPU.
        sampling: the sampling settings.
        generator: torch's CPU generator.

    Raises:
        CheckpointError: the logits are not numbers.
    """
    if logits.isnan().any():
        raise CheckpointError("the model's logits are NaN", fix="its weights are corrupted: export another checkpoint")
    if sampling.temperature == 0:
        return int(logits.argmax())
    shares, order = (logits / sampling.temperature).softmax(-1).sort(descending=True)
    # Probability of all likelier tokens: the token that crosses top_p is still kept.
    before = shares.cumsum(-1) - shares
    kept = shares.masked_fill(before >= sampling.top_p, 0.0)
    kept[0] = shares[0]  # the most likely token is kept whatever top_p is
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
        # Decoding a window twice finds what the new tokens add, however the tokenizer joins pieces.
        known, now = text(read), text()
        if len(now) > len(known) and not now.endswith(_TORN):
            yield now[len(known) :]
            start, read = read, len(ids)
    # An incomplete character at the very end comes out as it is.
    if read < len(ids):
        yield text()[len(text(read)) :]

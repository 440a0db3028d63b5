"""Generate a model's answers to prompts in batches with transformers, cached by model, prompt and settings.

An answer depends on its prompt, the model and the settings, not on the other prompts of its batch (up to rounding):
each prompt has its own random generator. Sampling takes the token with the largest logit / temperature + g, with g from
the standard Gumbel distribution, which is a draw from the softmax.

Source: Gumbel, Statistical Theory of Extreme Values (1954), lecture 4; Maddison et al., arXiv:1411.0030, section 2.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from megacode.base.errors import DataError
from megacode.base.files import digest, tree_digest, write_json
from megacode.base.progress import steps
from megacode.eval.chat_prompts import ChatPrompts, has_template
from megacode.eval.hf_model import end_ids, open_model
from megacode.eval.scores import is_export, model_facts
from megacode.judge.prompts import Prompt

PLAIN = "### Instruction:\n{prompt}\n\n### Response:\n"
_STOP = "\n### "
_CHAT_FORM = 2  # counts changes of how models with a chat template are asked: answers of an earlier form are not used


@dataclass(frozen=True)
class Generation:
    """Settings for generating answers.

    Attributes:
        max_new_tokens: maximum length of an answer.
        temperature: 0 takes the most likely token each time; above 0, tokens are sampled.
        seed: of the sampling.
        plain: ask as `PLAIN`, even where the model has a chat template.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    seed: int = 0
    plain: bool = False


def model_identity(hf_dir: Path) -> dict[str, Any]:
    """Return a model's identity: `model_facts`, and a hash of its chat template and generation config."""
    forms = [hf_dir / name for name in ("chat_template.jinja", "generation_config.json")]
    return {**model_facts(hf_dir), "forms_sha256": tree_digest(path for path in forms if path.exists())}


class AnswerCache:
    """Answers of one model with some settings, one file each.

    Args:
        directory: directory of all models' answers.
        model: its `model_identity`.
        generation: generation settings.
    """

    def __init__(self, directory: Path, model: Mapping[str, Any], generation: Generation) -> None:
        # Everything that shapes an answer is in the name: a changed model never meets old answers.
        keys = ("weights_sha256", "config_sha256", "tokenizer_sha256", "forms_sha256")
        self._directory = directory
        self._name = digest(*(str(model[key]) for key in keys), PLAIN, str(_CHAT_FORM), json.dumps(asdict(generation)))

    def get(self, prompt: Prompt) -> str | None:
        """Return the answer to a prompt, None if it was not generated yet."""
        try:
            answer = json.loads(self._path(prompt).read_text(encoding="utf-8"))["answer"]
        # An unreadable file counts as missing: the answer is simply generated again.
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return str(answer)

    def put(self, prompt: Prompt, answer: str, made_on: str) -> None:
        """Keep an answer, with the device and dtype that made it: another device's answer may differ by rounding."""
        write_json(self._path(prompt), {"prompt": prompt.text, "answer": answer, "made_on": made_on})

    def _path(self, prompt: Prompt) -> Path:
        return self._directory / self._name[:16] / f"{digest(self._name, prompt.text)}.json"


def answers(
    hf_dir: Path,
    prompts: Sequence[Prompt],
    generation: Generation,
    cache: AnswerCache,
    *,
    batch_size: int = 8,
    device: str | None = None,
) -> tuple[dict[str, str], int]:
    """Return a model's answers by the prompts' ids, and how many were generated now.

    The model is loaded only if an answer is missing; each answer is cached as soon as its batch is done.

    Args:
        hf_dir: the exported model.
        prompts: the prompts to answer.
        generation: generation settings.
        cache: earlier answers.
        batch_size: prompts in one forward pass.
        device: `cpu`, `cuda`, `cuda:1`; absent: CUDA where there is any.

    Raises:
        CheckpointError: if transformers cannot load the model.
        DataError: if a prompt and its answer do not fit into the model's context.
    """
    texts = {prompt.id: cache.get(prompt) for prompt in prompts}
    missing = [prompt for prompt in prompts if texts[prompt.id] is None]
    if missing:
        model, tokenizer = open_model(hf_dir, device)
        made_on = f"{model.device}, {model.dtype}"
        generated = _generate(model, tokenizer, missing, generation, batch_size, str(hf_dir))
        with steps(generated, "writing answers", len(missing)) as counted:
            for prompt, answer in counted:
                cache.put(prompt, answer, made_on)
                texts[prompt.id] = answer
    return {identity: str(answer) for identity, answer in texts.items()}, len(missing)


def _generate(
    model: Any, tokenizer: Any, prompts: Sequence[Prompt], generation: Generation, batch_size: int, where: str
) -> Iterator[tuple[Prompt, str]]:
    """Yield prompts with their answers, longest prompts first, so that running out of memory happens at once."""
    chat = _chat(tokenizer, where, generation.plain)
    ends = end_ids(model, tokenizer) if chat is None else chat.ends(end_ids(model, tokenizer))
    exported = is_export(Path(where))
    asked = [(prompt, _ids(tokenizer, prompt.text, chat, exported)) for prompt in prompts]
    _check_lengths(asked, generation.max_new_tokens, model.config, where)
    asked.sort(key=lambda pair: len(pair[1]), reverse=True)
    for first in range(0, len(asked), batch_size):
        batch = asked[first : first + batch_size]
        rows = _continue(model, ends, [ids for _, ids in batch], [prompt for prompt, _ in batch], generation)
        for (prompt, _), ids in zip(batch, rows, strict=True):
            text = tokenizer.decode(ids, skip_special_tokens=True)
            # A base model continues with the next instruction. A chat model ends its turn, and may write headings.
            yield prompt, (text if chat else text.split(_STOP)[0]).strip()


def _chat(tokenizer: Any, where: str, plain: bool) -> ChatPrompts | None:
    """Return a model's chat template; None: it has none, or is to be asked as plain text."""
    if plain or not has_template(tokenizer):
        return None
    return ChatPrompts(tokenizer, Path(where), "ask as plain text: --plain")


def _ids(tokenizer: Any, text: str, chat: ChatPrompts | None, exported: bool) -> list[int]:
    """Return a prompt's ids: in the model's chat template, or as `PLAIN`."""
    if chat is not None:
        return chat.ids([{"role": "user", "content": text}])
    # As in training, exports get no token before a text; other models are asked as their own tokenizer does it.
    own = {"add_special_tokens": False} if exported else {}
    return list(tokenizer(PLAIN.format(prompt=text), **own)["input_ids"])


def _check_lengths(asked: Sequence[tuple[Prompt, list[int]]], new: int, config: Any, where: str) -> None:
    # Checked for all prompts before the first is generated.
    context = getattr(config, "max_position_embeddings", None)
    if context is None:
        return
    long = [(prompt, ids) for prompt, ids in asked if len(ids) + new > context]
    if not long:
        return
    prompt, ids = max(long, key=lambda pair: len(pair[1]))
    message = (
        f"{len(long)} of {len(asked)} prompts plus an answer of {new} tokens exceed the context of {context} tokens; "
        f"the longest, {prompt.id!r}, has {len(ids)}"
    )
    left = context - len(ids)
    raise DataError(message, where, f"--max-new-tokens {left} fits all" if left > 0 else "remove such prompts")


def _continue(
    model: Any, ends: Sequence[int], rows: Sequence[list[int]], prompts: Sequence[Prompt], generation: Generation
) -> list[list[int]]:
    """Return the new tokens of each row up to its end token."""
    import torch
    from transformers import GenerationConfig, LogitsProcessorList

    longest = max(map(len, rows))
    pad = ends[0] if ends else 0
    # Padding goes to the left, so that every row's last token is its prompt's last one.
    ids = torch.tensor([[pad] * (longest - len(row)) + row for row in rows], device=model.device)
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows], device=model.device)
    # An explicit config: the model's own might sample or penalise repetition.
    settings = GenerationConfig(
        max_new_tokens=generation.max_new_tokens, do_sample=False, pad_token_id=pad, eos_token_id=[*ends] or None
    )
    draws = [_draws(generation, prompts)] if generation.temperature else []
    with torch.inference_mode():
        out = model.generate(
            ids, attention_mask=mask, generation_config=settings, logits_processor=LogitsProcessorList(draws)
        )
    return [_cut(row, ends) for row in out[:, longest:].tolist()]


def _cut(ids: list[int], ends: Sequence[int]) -> list[int]:
    # Rows of a batch end at different places; what follows an end is padding.
    return next((ids[:place] for place, token in enumerate(ids) if token in ends), ids)


def _draws(generation: Generation, prompts: Sequence[Prompt]) -> Any:
    """Return a logits processor that turns greedy decoding into sampling, [rows, vocabulary]."""
    import torch

    # Seeded by the prompt's text: reordering or removing prompts changes no other answer.
    seeds = [int(digest(str(generation.seed), prompt.text)[:12], 16) for prompt in prompts]
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def draw(_: Any, logits: Any) -> Any:
        uniform = torch.stack([torch.rand(logits.shape[1], generator=generator) for generator in generators])
        # The clamp keeps both logarithms finite.
        noise = -torch.log(-torch.log(uniform.clamp(1e-20, 1 - 1e-7)))
        return logits.float() / generation.temperature + noise.to(logits.device)

    return draw

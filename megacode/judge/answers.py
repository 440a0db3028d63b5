"""What a model answers to prompts: generated in batches with transformers, and kept by model, prompt and settings.

An answer depends on its prompt, the model and the settings, not on which prompts stand beside it in a batch (up to
rounding): sampling draws from a generator of its own for each prompt. It takes the token with the largest
logit / temperature + g, with g from the standard Gumbel distribution, which is a draw from the softmax.

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
from megacode.eval.hf_model import end_ids, open_model
from megacode.eval.scores import is_export, model_facts
from megacode.judge.prompts import Prompt

PLAIN = "### Instruction:\n{prompt}\n\n### Response:\n"
_STOP = "\n### "


@dataclass(frozen=True)
class Generation:
    """How answers are made.

    Attributes:
        max_new_tokens: an answer's length, at most.
        temperature: 0 takes the likeliest token each time; above, answers are drawn.
        seed: of the draws.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    seed: int = 0


def model_identity(hf_dir: Path) -> dict[str, Any]:
    """Return what identifies a model that answers: `model_facts`, and a hash of its chat form and generation config."""
    forms = [hf_dir / name for name in ("chat_template.jinja", "generation_config.json")]
    return {**model_facts(hf_dir), "forms_sha256": tree_digest(path for path in forms if path.exists())}


class AnswerCache:
    """Answers of one model with some settings, one file each.

    Args:
        directory: of all models' answers.
        model: its `model_identity`.
        generation: how answers are made.
    """

    def __init__(self, directory: Path, model: Mapping[str, Any], generation: Generation) -> None:
        keys = ("weights_sha256", "config_sha256", "tokenizer_sha256", "forms_sha256")
        self._directory = directory
        self._name = digest(*(str(model[key]) for key in keys), PLAIN, json.dumps(asdict(generation)))

    def get(self, prompt: Prompt) -> str | None:
        """Return the answer to a prompt, None where it was not made yet."""
        try:
            answer = json.loads(self._path(prompt).read_text(encoding="utf-8"))["answer"]
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

    The model is loaded only if an answer is missing; each batch is kept as soon as it is there.

    Args:
        hf_dir: the exported model.
        prompts: what it is asked.
        generation: how answers are made.
        cache: answers that were made before.
        batch_size: prompts in one forward pass.
        device: `cpu`, `cuda`, `cuda:1`; absent: CUDA where there is any.

    Raises:
        CheckpointError: if transformers cannot load the model.
        DataError: if a prompt and its answer do not fit into the model's context.
    """
    found = {prompt.id: cache.get(prompt) for prompt in prompts}
    missing = [prompt for prompt in prompts if found[prompt.id] is None]
    if missing:
        model, tokenizer = open_model(hf_dir, device)
        made_on = f"{model.device}, {model.dtype}"
        made = _generate(model, tokenizer, missing, generation, batch_size, str(hf_dir))
        with steps(made, "writing answers", len(missing)) as counted:
            for prompt, answer in counted:
                cache.put(prompt, answer, made_on)
                found[prompt.id] = answer
    return {identity: str(answer) for identity, answer in found.items()}, len(missing)


def _generate(
    model: Any, tokenizer: Any, prompts: Sequence[Prompt], generation: Generation, batch_size: int, where: str
) -> Iterator[tuple[Prompt, str]]:
    """Yield prompts with their answers, longest prompts first: what does not fit in memory fails at once."""
    asked = [(prompt, _ids(tokenizer, prompt.text, is_export(Path(where)))) for prompt in prompts]
    _check_lengths(asked, generation.max_new_tokens, model.config, where)
    asked.sort(key=lambda pair: len(pair[1]), reverse=True)
    for first in range(0, len(asked), batch_size):
        batch = asked[first : first + batch_size]
        rows = _continue(model, tokenizer, [ids for _, ids in batch], [prompt for prompt, _ in batch], generation)
        for (prompt, _), ids in zip(batch, rows, strict=True):
            text = tokenizer.decode(ids, skip_special_tokens=True)
            yield prompt, text.split(_STOP)[0].strip()


def _ids(tokenizer: Any, text: str, exported: bool = False) -> list[int]:
    """Return a prompt as the model is given it: in its own chat form if it has one, else as `PLAIN`."""
    if getattr(tokenizer, "chat_template", None):
        turns = [{"role": "user", "content": text}]
        ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=True, return_dict=False)
        return list(ids)
    # As in training, nothing is put before a text; a model from elsewhere is asked as its own tokenizer says.
    own = {"add_special_tokens": False} if exported else {}
    return list(tokenizer(PLAIN.format(prompt=text), **own)["input_ids"])


def _check_lengths(asked: Sequence[tuple[Prompt, list[int]]], new: int, config: Any, where: str) -> None:
    context = getattr(config, "max_position_embeddings", None)
    if context is None:
        return
    long = [(prompt, ids) for prompt, ids in asked if len(ids) + new > context]
    if not long:
        return
    prompt, ids = max(long, key=lambda pair: len(pair[1]))
    what = (
        f"{len(long)} of {len(asked)} prompts with an answer of {new} tokens are longer than the context of {context}; "
        f"the longest, {prompt.id!r}, has {len(ids)}"
    )
    left = context - len(ids)
    raise DataError(what, where, f"--max-new-tokens {left} fits all" if left > 0 else "leave such prompts out")


def _continue(
    model: Any, tokenizer: Any, rows: Sequence[list[int]], prompts: Sequence[Prompt], generation: Generation
) -> list[list[int]]:
    """Return the new tokens of each row, without what follows its end."""
    import torch
    from transformers import GenerationConfig, LogitsProcessorList

    longest = max(map(len, rows))
    ends = end_ids(model, tokenizer)
    pad = ends[0] if ends else 0
    ids = torch.tensor([[pad] * (longest - len(row)) + row for row in rows], device=model.device)
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows], device=model.device)
    settings = GenerationConfig(
        max_new_tokens=generation.max_new_tokens, do_sample=False, pad_token_id=pad, eos_token_id=ends or None
    )
    draws = [_draws(generation, prompts)] if generation.temperature else []
    with torch.inference_mode():
        out = model.generate(
            ids, attention_mask=mask, generation_config=settings, logits_processor=LogitsProcessorList(draws)
        )
    return [_cut(row, ends) for row in out[:, longest:].tolist()]


def _cut(ids: list[int], ends: Sequence[int]) -> list[int]:
    return next((ids[:place] for place, token in enumerate(ids) if token in ends), ids)


def _draws(generation: Generation, prompts: Sequence[Prompt]) -> Any:
    """Return a logits processor that makes the likeliest token of each row a draw, [rows, vocabulary]."""
    import torch

    seeds = [int(digest(str(generation.seed), prompt.text)[:12], 16) for prompt in prompts]
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def draw(_: Any, logits: Any) -> Any:
        uniform = torch.stack([torch.rand(logits.shape[1], generator=generator) for generator in generators])
        noise = -torch.log(-torch.log(uniform.clamp(1e-20, 1 - 1e-7)))
        return logits.float() / generation.temperature + noise.to(logits.device)

    return draw

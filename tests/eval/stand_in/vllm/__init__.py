"""Stands in for vLLM, which needs a GPU: its interface as lm-eval's own class calls it, computed by transformers.

It tests the way from `--backend vllm` through lm-eval's class to a score file, not that vLLM computes the same.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


class SamplingParams:
    def __init__(self, **settings: Any) -> None:
        self.__dict__.update({"prompt_logprobs": None, "max_tokens": 16, "stop": (), **settings})


def TokensPrompt(prompt_token_ids: list[int]) -> dict[str, list[int]]:  # noqa: N802
    return {"prompt_token_ids": prompt_token_ids}


class LLM:
    def __init__(self, model: str, **settings: Any) -> None:
        self._model = AutoModelForCausalLM.from_pretrained(model, dtype="float32").eval()
        self._tokenizer = AutoTokenizer.from_pretrained(model)
        length = settings.get("max_model_len") or self._model.config.max_position_embeddings
        self.llm_engine = SimpleNamespace(model_config=SimpleNamespace(max_model_len=length))

    @torch.no_grad()
    def generate(self, prompts: list[Any], sampling_params: list[SamplingParams], **unused: Any) -> list[Any]:
        return [
            self._one(prompt["prompt_token_ids"], wanted)
            for prompt, wanted in zip(prompts, sampling_params, strict=True)
        ]

    def _one(self, ids: list[int], wanted: SamplingParams) -> Any:
        room = self.llm_engine.model_config.max_model_len
        assert len(ids) + 1 <= room, "vLLM refuses a prompt that leaves no room for a token"
        known = None
        if wanted.prompt_logprobs:
            shares = torch.log_softmax(self._model(torch.tensor([ids])).logits[0].float(), -1)
            best = shares.argmax(-1).tolist()
            # The best token and the given one, as vLLM returns them; the first token has nothing before it.
            known = [None] + [
                {token: SimpleNamespace(logprob=float(shares[place, token])) for token in {best[place], ids[place + 1]}}
                for place in range(len(ids) - 1)
            ]
        text = "" if wanted.prompt_logprobs else self._text(ids, wanted)
        return SimpleNamespace(prompt_logprobs=known, outputs=[SimpleNamespace(text=text)])

    def _text(self, ids: list[int], wanted: SamplingParams) -> str:
        made: list[int] = []
        for _ in range(wanted.max_tokens):
            made.append(int(self._model(torch.tensor([ids + made])).logits[0, -1].argmax()))
            text = str(self._tokenizer.decode(made))
            if stops := [text.index(stop) for stop in wanted.stop if stop in text]:
                return text[: min(stops)]
        return str(self._tokenizer.decode(made))

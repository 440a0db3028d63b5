"""Count what lm-eval truncates: questions longer than the model's context lose their beginning.

lm-eval only logs a warning per batch and scores what is left. A score of truncated questions must say so itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from typing import Any

from megacode.base.progress import Advance, bar
from megacode.config.evaluate import Backend

# lm-eval's own classes of models; vLLM's needs vLLM to be imported. The number: tokens of question and
# answer that fit beyond the context. transformers only predicts the last one; vLLM wants room for one more.
_CLASSES: dict[Backend, tuple[str, str, int]] = {
    "hf": ("lm_eval.models.huggingface", "HFLM", 1),
    "vllm": ("lm_eval.models.vllm_causallms", "VLLM", -1),
}


class _Counting:
    """Takes the place of lm-eval's answer cache, and counts answers."""

    def __init__(self, advance: Advance) -> None:
        self._advance = advance

    def add_partial(self, attr: str, req: Any, res: Any) -> None:
        self._advance(1)


@cache
def counting_cuts(backend: Backend) -> Any:
    """Return a subclass of lm-eval's class of a backend that records by how many tokens each request was truncated."""
    from lm_eval.models.utils import normalize_gen_kwargs

    module, name, beyond = _CLASSES[backend]
    model: Any = getattr(import_module(module), name)

    class CountingModel(model):
        cache_hook: Any

        def __init__(self, **settings: Any) -> None:
            super().__init__(**settings)
            self._cuts: dict[tuple[str, str], int] = {}

        def loglikelihood(self, requests: Any, disable_tqdm: bool = False) -> Any:
            with self._shown(requests):
                return super().loglikelihood(requests, disable_tqdm)

        def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> Any:
            with self._shown(requests):
                return super().loglikelihood_rolling(requests, disable_tqdm)

        def _loglikelihood_tokens(self, requests: Any, *args: Any, **settings: Any) -> Any:
            for texts, context, answer in requests:
                if texts is not None and texts[0] is not None:  # windows of rolling texts are never truncated
                    self._note((texts[0], texts[1]), len(context) + len(answer) - self.max_length - beyond)
            return super()._loglikelihood_tokens(requests, *args, **settings)

        def generate_until(self, requests: Any, disable_tqdm: bool = False) -> Any:
            for request in requests:
                context, settings = request.args
                # lm-eval reserves room for the longest answer and truncates the question to what is left.
                answer = normalize_gen_kwargs(dict(settings), self.max_gen_toks)["max_gen_toks"]
                self._note((context, ""), len(self.tok_encode(context)) + answer - self.max_length)
            with self._shown(requests):
                return super().generate_until(requests, disable_tqdm)

        @contextmanager
        def _shown(self, requests: Any) -> Iterator[None]:
            """Show the progress of a task's requests: lm-eval passes each answer to its cache hook."""
            # lm-eval may have installed a hook of its own.
            before = self.cache_hook
            with bar(f"scoring {requests[0].task_name}" if requests else "scoring", len(requests)) as advance:
                self.cache_hook = _Counting(advance)
                try:
                    yield
                finally:
                    self.cache_hook = before

        def _note(self, key: tuple[str, str], surplus: int) -> None:
            if surplus > 0:
                self._cuts[key] = surplus

        def cut_of(self, arguments: Iterable[Sequence[Any]]) -> int:
            """Return by how many tokens the longest request of an item was truncated; 0 if none was."""
            # An item has several requests, one per answer; the worst one counts.
            keys = [(args[0], args[1] if isinstance(args[1], str) else "") for args in arguments if len(args) == 2]
            return max((self._cuts.get(key, 0) for key in keys), default=0)

    return CountingModel


def cut_facts(lines: Iterable[Mapping[str, Any]], context: int) -> dict[str, int] | None:
    """Return a score file's record of a task's truncated items; None if there are none.

    Args:
        lines: `item_lines` of all items.
        context: tokens of the model's context.
    """
    cuts = {line["item"]: int(line.get("cut_tokens", 0)) for line in lines}
    cut = [tokens for tokens in cuts.values() if tokens]
    return {"items": len(cut), "most_tokens": max(cut), "context": context} if cut else None


def describe_cut(task: str, facts: Mapping[str, Any]) -> str:
    """Return the line under the score table for a task with truncated items."""
    cut = facts["cut"]
    return (
        f"truncated: {task}: {cut['items']} of {facts['items']} items exceed the context of {cut['context']} tokens; "
        f"up to {cut['most_tokens']} tokens at their beginning were cut"
    )

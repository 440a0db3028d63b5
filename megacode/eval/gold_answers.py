"""Bits per byte of the true answer to a task's questions, for models too small for its own metric.

The question is asked exactly as the task asks it. A multiple choice gives its true choice, other tasks the answer that
the suite's template names. Nothing is generated, so no code is run. Accuracy and pass@1 stay at chance and at 0
for models that already differ in how likely they find the answer; that is what this measures.

Source: Bhagia et al., arXiv:2412.04403 (bits per byte of the correct answer); Magnusson et al.,
arXiv:2504.11393 (such metrics rank corpora at small sizes).
"""

from __future__ import annotations

from functools import cache
from typing import Any

METRIC = "bits_per_byte"
# Part of a task's version: scores by another rule are not comparable.
_RULE = "gold 1"
_HIDDEN = ("-1", "-100")  # labels of choices that are not published


def gold_task(task: Any, template: str | None) -> Any:
    """Return a task that measures bits per byte of the true answers of another one.

    Args:
        task: lm-eval's task object with its data; it stays as it is.
        template: Jinja over a document's fields; None: the true choice, or else the task's target.

    Returns:
        A task with the one metric `bits_per_byte`: (log-likelihood in nats, UTF-8 bytes of the answer) an item.
    """
    return _gold_class()(task, template)


@cache
def _gold_class() -> Any:
    """Return the class of such tasks; importing lm-eval takes seconds."""
    from lm_eval.api.instance import Instance
    from lm_eval.api.metrics import bits_per_byte
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.filters import build_filter_ensemble
    from lm_eval.utils import apply_template

    class GoldTask(ConfigurableTask):
        def __init__(self, task: Any, template: str | None) -> None:
            # Not the base class's own: it would load the data again.
            self.__dict__.update(vars(task))
            self._template = template
            self.OUTPUT_TYPE, self.UNSAFE_CODE = "loglikelihood", False
            self.VERSION = f"{task.VERSION}, {_RULE}"
            self._filters: Any = [build_filter_ensemble("none", [("take_first", None)])]

        def doc_to_target(self, doc: Any, doc_to_target: Any = None) -> Any:
            # Few-shot examples name their target themselves; they keep the task's own.
            if doc_to_target is not None:
                return super().doc_to_target(doc, doc_to_target)
            if self._template is not None:
                return apply_template(self._template, doc)
            target = super().doc_to_target(doc)
            target = target[0] if isinstance(target, list) else target
            is_choice = isinstance(target, int) and self.config.doc_to_choice is not None
            # Test sets are published with such labels. As a number it would count from the end, as text be the answer.
            if str(target) in _HIDDEN and self.config.doc_to_choice is not None:
                raise ValueError("the true choice is hidden")
            return self.doc_to_choice(doc)[target] if is_choice else str(target)

        def construct_requests(self, doc: Any, ctx: Any, **kwargs: Any) -> Any:
            settings = {key: value for key, value in kwargs.items() if "chat_template" not in key}
            # A choice may be made between questions instead of answers (WinoGrande): the true question counts.
            question = ctx[int(self.doc_to_text(doc))] if self.multiple_input else ctx
            answer = f"{self.config.target_delimiter}{self.doc_to_target(doc)}"
            return Instance(request_type="loglikelihood", doc=doc, arguments=(question, answer), idx=0, **settings)

        def process_results(self, doc: Any, results: Any) -> dict[str, tuple[float, int]]:
            ((nats, _),) = results
            # What separates question and answer is predicted too, but is no part of it, as in lm-eval's `acc_bytes`.
            return {METRIC: (nats, len(self.doc_to_target(doc).encode()))}

        def aggregation(self) -> dict[str, Any]:
            return {METRIC: bits_per_byte}

        def higher_is_better(self) -> dict[str, bool]:
            return {METRIC: False}

    return GoldTask

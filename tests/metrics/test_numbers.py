"""What becomes a curve: every number of a record, and of matrices those of pairs."""

from __future__ import annotations

from typing import Any

from megacode.metrics.mirrors.otlp_service import _named
from megacode.metrics.numbers import numbers
from megacode.metrics.sinks import alignment_line

RECORD: dict[str, Any] = {
    "kind": "alignment",
    "iteration": 500,
    "consumed_samples": 4000,
    "phase": "text",
    "sources": ["code", "text"],
    "samples": 64,
    "learning_rate": 1e-3,
    "norms": {"code": 2.0, "text": 3.0},
    "cosines": [[1.0, 0.5], [0.5, None]],
    "transfer": [[0.4, 0.1], [-0.2, 0.6]],
    "cosines_by_kind": {"mlp": [[1.0, 0.5], [0.5, 1.0]]},
    "transfer_by_kind": {"mlp": [[0.4, 0.1], [-0.2, 0.6]]},
    "transfer_by_depth": [[[0.4, 0.1], [-0.2, 0.6]]],
    "seconds": 2.5,
}


def test_an_alignment_has_a_curve_for_each_pair_and_none_by_kind_or_depth() -> None:
    found = dict(numbers(RECORD))
    assert found["alignment", "transfer", "code", "text"] == 0.1
    assert found["alignment", "transfer", "text", "code"] == -0.2
    assert found["alignment", "norms", "text"] == 3.0
    assert ("alignment", "cosines", "text", "text") not in found, "it is not finite"
    assert {name[1] for name in found if len(name) > 2} == {"norms", "cosines", "transfer"}


def test_a_collector_gets_both_sources_of_a_pair_as_attributes() -> None:
    name = ("alignment", "transfer", "code", "text")
    assert _named(name) == ("megacode.alignment.transfer", {"step": "code", "loss": "text"})
    assert _named(("alignment", "norms", "code")) == ("megacode.alignment.norms", {"source": "code"})
    assert _named(("score", "demo", "piqa", "acc")) == ("megacode.score.acc", {"suite": "demo", "task": "piqa"})


def test_the_log_names_the_pair_that_helps_most_and_the_one_that_helps_least() -> None:
    line = alignment_line(RECORD)
    assert line == "gradients compared at iteration 500: code to text +0.1, text to code -0.2 nats a step"
    alone = RECORD | {"sources": ["code"], "transfer": [[0.4]]}
    assert alignment_line(alone) == "gradients compared at iteration 500: one source"

"""pass@1 of HumanEval and MBPP: the answer and its tests run in a sandboxed process of their own."""

from typing import Any

from megacode.base.sandbox import run_program


def humaneval_scores(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Return 1.0 where the completed function passes its tests."""
    return _passed([doc["prompt"] + results[0], doc["test"], f"check({doc['entry_point']})"])


def mbpp_scores(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Return 1.0 where the answer passes all tests, after the imports and set-up that they need."""
    return _passed([doc.get("test_setup_code") or "", results[0], *doc["test_list"]])


def _passed(parts: list[str]) -> dict[str, float]:
    return {"pass_at_1": float(run_program("\n".join(parts) + "\n").passed)}

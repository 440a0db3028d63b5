"""Whether an answer passes the tests of HumanEval+ and MBPP+: both run in a sandboxed process of their own."""

from typing import Any

from megacode.base.sandbox import run_program


def humaneval_plus_scores(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Return 1.0 where the completed function passes all tests."""
    return _passed([doc["prompt"] + results[0], doc["test"], f"check({doc['entry_point']})"])


def mbpp_plus_scores(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Return 1.0 where the answer passes all tests; `test` holds the added ones, `test_list` only the first three."""
    return _passed([*(doc.get("test_imports") or []), results[0], doc["test"]])


def _passed(parts: list[str]) -> dict[str, float]:
    return {"pass_at_1": float(run_program("\n".join(parts) + "\n").passed)}

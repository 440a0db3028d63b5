"""The numbers of a record with their names, for programs that draw curves."""

from __future__ import annotations

from typing import Any

Name = tuple[str, ...]


def numbers(record: dict[str, Any]) -> list[tuple[Name, float]]:
    """Return a record's numbers by path: `("train", "loss_by_source", "code")`.

    Those of scores are under suite and task: `("score", "demo", "demo_bits_code", "bits_per_byte")`.
    """
    if record["kind"] == "alignment":
        # Curves of pairs, by the source of the step and that of the loss; by kind and depth there would be too many.
        pairs = {key: _by_pair(record["sources"], record[key]) for key in ("cosines", "transfer")}
        return _below({**record, **pairs}, ("alignment",))
    if record["kind"] != "score":
        return _below(record, (record["kind"],))
    inner = {"means": record.get("means", {}), **record["scores"]}
    # Standard errors would double the number of curves.
    return [item for item in _below(inner, ("score", record["suite"])) if not item[0][-1].endswith("_stderr")]


def _by_pair(names: list[str], matrix: list[list[float]]) -> dict[str, dict[str, float]]:
    return {left: dict(zip(names, row, strict=True)) for left, row in zip(names, matrix, strict=True)}


def _below(document: dict[str, Any], above: Name) -> list[tuple[Name, float]]:
    found: list[tuple[Name, float]] = []
    for key, value in document.items():
        if isinstance(value, dict):
            found += _below(value, (*above, key))
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            found.append(((*above, key), float(value)))
    return found

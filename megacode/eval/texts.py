"""Bits per byte of a user's own text files: one task a file, one item a document."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from megacode.base.errors import DataError


def text_task(path: Path) -> dict[str, Any]:
    """Return lm-eval's description of the task `bits_per_byte_FILE`; the file is read when the task is loaded."""
    return {
        "task": f"bits_per_byte_{path.name}",
        "custom_dataset": _load,
        "dataset_kwargs": {"file": str(path)},
        "test_split": "test",
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "bits_per_byte", "aggregation": "bits_per_byte", "higher_is_better": False}],
        "metadata": {"version": 1.0},
    }


def read_texts(path: Path) -> list[dict[str, Any]]:
    """Return a file's documents as `{text, line}`; empty ones have no bytes to pay for and are left out.

    Args:
        path: a `.txt` is one document; each line of a `.jsonl` holds one in its key `text`.

    Raises:
        DataError: if it cannot be read, or holds no text.
    """
    try:
        texts = list(_lines(path)) if path.suffix == ".jsonl" else [(1, path.read_text(encoding="utf-8"))]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"it cannot be read: {error}", str(path), "texts are UTF-8 files") from None
    items = [{"text": text, "line": line} for line, text in texts if text]
    if not items:
        raise DataError("it holds no text", str(path), "leave it out")
    return items


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                text = json.loads(line)["text"]
            except (ValueError, KeyError, TypeError):
                text = None
            if not isinstance(text, str):
                fix = 'each line is a JSON object with the document in "text"'
                raise DataError("this line holds no text", f"{path}:{number}", fix)
            yield number, text


def _load(file: str, **_: object) -> dict[str, Any]:
    import datasets

    return {"test": datasets.Dataset.from_list(read_texts(Path(file)))}

"""Bits per byte of text files, a user's own or held-out documents: one task a file, one item a document."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from megacode.base.errors import DataError
from megacode.data.jsonl import parse_object, read_objects
from megacode.data.records import text_in


def text_task(name: str, path: Path) -> dict[str, Any]:
    """Return lm-eval's description of a task; its file is read when the task is loaded."""
    return {
        "task": name,
        "custom_dataset": _load,
        "dataset_kwargs": {"file": str(path)},
        "test_split": "test",
        # Long documents are scored in windows that together cover every byte once.
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "bits_per_byte", "aggregation": "bits_per_byte", "higher_is_better": False}],
        "metadata": {"version": 1.0},
    }


def read_texts(path: Path) -> list[dict[str, Any]]:
    """Return a file's documents as `{text, line}`; empty ones have no bytes to score and are skipped.

    Args:
        path: a `.txt` is one document; each line of a `.jsonl` has one in its key `text`.

    Raises:
        DataError: if it cannot be read, or contains no text.
    """
    try:
        # Bytes, not text mode, which would convert Windows line ends and so score a different text.
        texts = list(_lines(path)) if path.suffix == ".jsonl" else [(1, path.read_bytes().decode("utf-8"))]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"it cannot be read: {error}", str(path), "texts are UTF-8 files") from None
    items = [{"text": text, "line": line} for line, text in texts if text]
    if not items:
        raise DataError("it contains no text", str(path), "remove it from the list of files")
    return items


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    for number, line in read_objects(path):
        try:
            text = text_in(parse_object(line), "text")
        except ValueError as error:
            fix = 'each line is a JSON object with the document in "text"'
            raise DataError(str(error), f"{path}:{number}", fix) from None
        yield number, text


def _load(file: str, **_: object) -> dict[str, Any]:
    import datasets

    return {"test": datasets.Dataset.from_list(read_texts(Path(file)))}

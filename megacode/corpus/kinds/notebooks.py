"""Kind `notebooks`: Jupyter notebooks of versions 3 and 4, structured or as a script.

Source: Li et al. 2023 (StarCoder, arXiv 2305.06161), section 3.3. Structured: `<jupyter_start>`, then blocks of text,
code and output, each after its control token; equal neighbours are merged, and the last output of merged code is kept.
Pictures and other binary outputs are left out, so a notebook of 10 MB may give a document of 1 KB.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import orjson
from pydantic import Field

from megacode.base.errors import DataError
from megacode.corpus.document import Control, Counts, Document, Part
from megacode.corpus.kinds.records import FileRecord, RecordKeys, Row, drop, rows_of
from megacode.data.records import Records, field_of

NOTEBOOK = ".ipynb"  # files that are one notebook each
LONGEST_FILE = 1 << 28  # bytes; parsing takes several times as many
_TEXT, _CODE = "<jupyter_text>", "<jupyter_code>"


class NotebookSettings(RecordKeys):
    """Settings of the kind `notebooks`.

    Attributes:
        text: key of the notebook: its JSON as text, or as an object.
        form: `structured`: blocks of text, code and output; `script`: code, with the text as comments.
        languages: of the kernels that are kept, in lower case; empty: all.
        max_output: characters kept of one output; megacode's own limit.
    """

    form: Literal["structured", "script"] = "structured"
    languages: tuple[str, ...] = ("python",)
    max_output: int = Field(default=5_000, ge=0)


class NotebookCell:
    """One cell: `<jupyter_text>` or `<jupyter_code>`, its source, and the last output of code."""

    __slots__ = ("kind", "output", "source")

    def __init__(self, kind: str, source: str, output: str = "") -> None:
        self.kind, self.source, self.output = kind, source, output


def notebook_documents(batches: Iterator[Records], settings: NotebookSettings, counts: Counts) -> Iterator[Document]:
    """Yield a document for each notebook that can be read; its fields name the language."""
    for row in rows_of(batches, settings.id):
        notebook = _notebook(row, settings)
        if isinstance(notebook, str):
            drop(counts, notebook, row.record)
            continue
        language = language_of(notebook)
        if settings.languages and language not in settings.languages:
            drop(counts, "other language" if language else "unknown language", row.record)
            continue
        cells = merged(cells_of(notebook, settings.max_output))
        # A notebook of text alone is no code; its text is a matter for the kind `text`.
        if not any(cell.kind == _CODE for cell in cells):
            drop(counts, "no code", row.record)
            continue
        parts = structured(cells) if settings.form == "structured" else script(cells)
        # A record may be the notebook itself; its cells are no fields then.
        fields = {} if "cells" in row.record or "worksheets" in row.record else row.fields(settings.text, settings.id)
        text = "".join(part for part in parts if isinstance(part, str))
        yield Document(text, row.id, fields | {"language": language}, parts)


def notebook_file(path: Path) -> Records:
    """Return the record of a notebook's file; one that is no notebook, or too long, is dropped and counted later.

    Raises:
        DataError: it cannot be read.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            # The head alone is no JSON, so it is dropped as such.
            raw = file.read(LONGEST_FILE)
    except OSError as error:
        raise DataError(f"it cannot be read: {error.strerror}", str(path), "check its permissions") from None
    # Bytes that are no UTF-8 become halves of surrogate pairs, which no document may hold: it is dropped for them.
    text = raw.decode("utf-8-sig", "surrogateescape")
    return Records(path, 1, [FileRecord(str(path), text)], [1], size)


def _notebook(row: Row, settings: NotebookSettings) -> dict[str, Any] | str:
    """Return a record's notebook, or the reason why there is none."""
    notebook = row.record.text if isinstance(row.record, FileRecord) else field_of(row.record, settings.text)
    if notebook is None and ("cells" in row.record or "worksheets" in row.record):
        notebook = row.record
    if isinstance(notebook, str):
        notebook = _parsed(notebook)
    if notebook is None:
        return "not JSON"
    return notebook if isinstance(notebook, dict) else "not a notebook"


def _parsed(text: str) -> Any:
    try:
        return orjson.loads(text)
    except ValueError:
        pass
    # Python's own module accepts NaN, which notebooks hold; deep nesting ends its recursion.
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def language_of(notebook: dict[str, Any]) -> str:
    """Return the language of a notebook's kernel in lower case; empty if it does not say."""
    metadata = notebook.get("metadata")
    for keys in (("kernelspec", "language"), ("language_info", "name"), ("language",), ("kernelspec", "name")):
        value = metadata
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        if isinstance(value, str) and value:
            # Kernels are named python3 and the like.
            return value.lower().rstrip("0123456789.")
    # Version 3 names the language in each code cell.
    named = (cell.get("language") for cell in _raw_cells(notebook))
    return next((name.lower() for name in named if isinstance(name, str)), "")


def _raw_cells(notebook: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the cells of a notebook, which version 3 keeps in worksheets; what is not an object is left out."""
    sheets = notebook.get("worksheets")
    places = (
        [notebook, *(sheet for sheet in sheets if isinstance(sheet, dict))] if isinstance(sheets, list) else [notebook]
    )
    for place in places:
        cells = place.get("cells")
        if isinstance(cells, list):
            yield from (cell for cell in cells if isinstance(cell, dict))


def cells_of(notebook: dict[str, Any], max_output: int) -> Iterator[NotebookCell]:
    """Yield the cells with a text, in order.

    Args:
        notebook: of version 3 or 4.
        max_output: characters kept of an output.
    """
    for cell in _raw_cells(notebook):
        kind = cell.get("cell_type")
        source = _joined(cell.get("source", cell.get("input")))
        if not source.strip():
            continue
        if kind == "code":
            yield NotebookCell(_CODE, source, _last_output(cell.get("outputs"))[:max_output])
        elif kind == "heading":  # version 3
            level = cell.get("level")
            yield NotebookCell(_TEXT, "#" * (level if isinstance(level, int) and 0 < level < 7 else 1) + " " + source)
        elif kind == "markdown":
            yield NotebookCell(_TEXT, source)


def _joined(value: Any) -> str:
    """Return a text that the format lets be a string or a list of lines."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        return ""
    try:
        return "".join(value)
    except TypeError:  # something else between the lines
        return "".join(line for line in value if isinstance(line, str))


def _last_output(outputs: Any) -> str:
    """Return the last output that has a text."""
    for output in reversed(outputs) if isinstance(outputs, list) else ():
        if isinstance(output, dict) and (text := _output_text(output)).strip():
            return text
    return ""


def _output_text(output: dict[str, Any]) -> str:
    if output.get("output_type") in ("error", "pyerr"):
        # The traceback repeats the code, with colours as control characters.
        return f"{output.get('ename')}: {output.get('evalue')}"
    data = output.get("data")
    # Version 3 has no `data`: its text stands beside the pictures.
    return _joined(data.get("text/plain") if isinstance(data, dict) else output.get("text"))


def merged(cells: Iterator[NotebookCell]) -> list[NotebookCell]:
    """Return the cells with neighbours of one kind made one; its output is the last one that is not empty."""
    cells_out: list[NotebookCell] = []
    for kind, group in groupby(cells, key=lambda cell: cell.kind):
        block = list(group)
        output = next((cell.output for cell in reversed(block) if cell.output), "")
        cells_out.append(NotebookCell(kind, "\n".join(cell.source for cell in block), output))
    return cells_out


def structured(cells: list[NotebookCell]) -> tuple[Part, ...]:
    """Return the parts of a structured notebook."""
    parts: list[Part] = [Control("<jupyter_start>")]
    for cell in cells:
        parts += [Control(cell.kind), cell.source]
        if cell.kind == _CODE:
            parts.append(Control("<jupyter_output>"))
            parts.append(cell.output or Control("<empty_output>"))
    return tuple(parts)


def script(cells: list[NotebookCell]) -> tuple[Part, ...]:
    """Return the parts of a notebook as a script: code as it is, text as comments."""
    blocks = [
        cell.source if cell.kind == _CODE else "\n".join(f"# {line}".rstrip() for line in cell.source.splitlines())
        for cell in cells
    ]
    return Control("<jupyter_script>"), "\n\n".join(blocks) + "\n"

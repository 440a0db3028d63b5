from __future__ import annotations

import json
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from megacode.corpus.document import Control
from megacode.corpus.engine import run_recipe
from megacode.corpus.recipe import read_recipe
from megacode.data.machine_files import Shard
from tests.corpus.records import documents_of

START, TEXT, CODE, OUTPUT, EMPTY = (
    Control(f"<{name}>") for name in ("jupyter_start", "jupyter_text", "jupyter_code", "jupyter_output", "empty_output")
)
PYTHON = {"kernelspec": {"language": "python"}}
PICTURE = {"output_type": "display_data", "data": {"image/png": "iVBOR" * 10, "text/plain": ["<Figure>"]}}
V4 = {
    "nbformat": 4,
    "metadata": PYTHON,
    "cells": [
        {"cell_type": "markdown", "source": ["# Title\n", "Text"]},
        {"cell_type": "markdown", "source": "More"},
        {"cell_type": "code", "source": "x = 1", "outputs": []},
        {"cell_type": "code", "source": ["x\n", "+ 1"], "outputs": [{"output_type": "stream", "text": ["2\n"]}]},
        {"cell_type": "raw", "source": "raw"},
        {"cell_type": "markdown", "source": "End"},
        {"cell_type": "code", "source": "plot()", "outputs": [PICTURE]},
        {"cell_type": "markdown", "source": "Nothing"},
        {"cell_type": "code", "source": "pass"},
    ],
}
PARTS = (
    START, TEXT, "# Title\nText\nMore", CODE, "x = 1\nx\n+ 1", OUTPUT, "2\n", TEXT, "End", CODE, "plot()", OUTPUT,
    "<Figure>", TEXT, "Nothing", CODE, "pass", OUTPUT, EMPTY,
)  # fmt: skip


def row(notebook: object) -> dict[str, object]:
    return {"id": "n", "text": json.dumps(notebook)}


def test_a_notebook_is_blocks_of_text_code_and_last_output() -> None:
    documents, dropped = documents_of("notebooks", row(V4))
    assert not dropped
    assert documents[0].parts == PARTS
    assert documents[0].text == "".join(part for part in PARTS if isinstance(part, str))
    assert documents[0].fields == {"language": "python"}


def test_a_record_may_hold_the_notebook_as_an_object_or_be_it() -> None:
    for given_row in ({"text": V4}, V4):
        documents, _ = documents_of("notebooks", given_row)
        assert documents[0].parts == PARTS


def test_version_3_keeps_cells_in_worksheets() -> None:
    cells = [
        {"cell_type": "heading", "level": 2, "source": ["Head"]},
        {"cell_type": "code", "language": "python", "input": ["print 1"], "prompt_number": 1,
         "outputs": [{"output_type": "pyout", "text": ["1"], "png": "iVBOR"}]},
    ]  # fmt: skip
    documents, _ = documents_of("notebooks", row({"nbformat": 3, "metadata": {}, "worksheets": [{"cells": cells}]}))
    assert documents[0].parts == (START, TEXT, "## Head", CODE, "print 1", OUTPUT, "1")


def test_a_script_has_text_as_comments() -> None:
    documents, _ = documents_of("notebooks", row({**V4, "cells": V4["cells"][:3]}), form="script")
    assert documents[0].parts == (Control("<jupyter_script>"), "# # Title\n# Text\n# More\n\nx = 1\n")


def test_names_of_control_tokens_in_a_cell_stay_text() -> None:
    documents, _ = documents_of(
        "notebooks", row({**V4, "cells": [{"cell_type": "code", "source": "'<jupyter_text>'"}]})
    )
    assert documents[0].parts == (START, CODE, "'<jupyter_text>'", OUTPUT, EMPTY)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ('{"a":' * 100_000, "not JSON"),
        ("[1]", "not a notebook"),
        ("{}", "unknown language"),
        (json.dumps({**V4, "metadata": {"kernelspec": {"name": "ir", "language": "R"}}}), "other language"),
        (json.dumps({**V4, "cells": [{"cell_type": "markdown", "source": "x"}]}), "no code"),
        (json.dumps({**V4, "cells": {"cell_type": "code", "source": "x"}}), "no code"),
        (json.dumps({**V4, "cells": [[], "x", {"cell_type": "code", "source": {"a": 1}}]}), "no code"),
    ],
)
def test_what_is_no_notebook_is_counted(text: str, reason: str) -> None:
    assert documents_of("notebooks", {"text": text}) == ([], {reason: 1})


def test_nan_and_wrong_types_of_outputs_are_read() -> None:
    outputs = [
        None,
        3,
        {"output_type": "error", "ename": "E", "evalue": "v"},
        {"data": "x"},
        {"text": [1, None]},
        {"data": []},
    ]
    notebook = {**V4, "odd": float("nan"), "cells": [{"cell_type": "code", "source": "x", "outputs": outputs}]}
    documents, _ = documents_of("notebooks", row(notebook))
    assert documents[0].parts == (START, CODE, "x", OUTPUT, "E: v")


def test_ten_megabytes_of_base64_leave_a_small_document() -> None:
    picture = {"output_type": "display_data", "data": {"image/png": "iVBO" * 2_500_000}}
    notebook = {**V4, "cells": [{"cell_type": "code", "source": "plot()", "outputs": [picture]}]}
    documents, _ = documents_of("notebooks", row(notebook))
    assert documents[0].parts == (START, CODE, "plot()", OUTPUT, EMPTY)


def test_outputs_are_cut() -> None:
    output = {"output_type": "stream", "text": "x" * 100}
    notebook = {**V4, "cells": [{"cell_type": "code", "source": "f()", "outputs": [output]}]}
    documents, _ = documents_of("notebooks", row(notebook), max_output=7)
    assert documents[0].parts[-1] == "x" * 7


KEYS = st.sampled_from(
    ["cells", "worksheets", "cell_type", "source", "outputs", "data", "text", "metadata", "language"]
)
LEAVES = st.none() | st.booleans() | st.integers() | st.sampled_from(["code", "markdown", "python", "heading", "x"])
JSON = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=5))


@given(JSON)
def test_no_notebook_breaks_the_reader(notebook: object) -> None:
    documents, dropped = documents_of("notebooks", row(notebook), languages=[])
    assert len(documents) + sum(dropped.values()) == 1


@pytest.mark.parametrize("pattern", ["", "/**/*.ipynb"])
def test_files_of_notebooks_are_inputs_and_broken_ones_are_counted(pattern: str, tmp_path: Path) -> None:
    raw = tmp_path / "raw files"
    (raw / "deep").mkdir(parents=True)
    (raw / ".ipynb_checkpoints").mkdir()
    third = {"nbformat": 3, "metadata": {}, "worksheets": [{"cells": [
        {"cell_type": "code", "language": "python", "input": ["print 1"], "outputs": []}]}]}  # fmt: skip
    files = {
        "a.ipynb": b"\xef\xbb\xbf" + json.dumps(V4, indent=1).encode(), "deep/b.ipynb": json.dumps(third).encode(),
        "cut.ipynb": json.dumps(V4).encode()[:-9], "empty.ipynb": b"", "list.ipynb": b"[1]",
        "latin.ipynb": json.dumps(V4).replace("Title", "Titl\xe9").encode("latin-1"),
        ".ipynb_checkpoints/a.ipynb": json.dumps(V4).encode(),
    }  # fmt: skip
    for name, data in files.items():
        (raw / name).write_bytes(data)
    source = {"kind": "notebooks", "inputs": f"{raw}{pattern}"}
    for count in (1, 3):
        output = tmp_path / f"out {count}"
        recipe = read_recipe({"name": "n", "output": str(output), "sources": {"s": source}}, "r")
        for index in range(count):
            run_recipe(recipe, "c", shard=Shard(index, count), only="map")
        manifest = run_recipe(recipe, "c")
        assert manifest is not None
        lines = b"".join(
            zstandard.ZstdDecompressor().stream_reader(path.open("rb"), read_across_frames=True).read()
            for path in sorted(output.glob("corpus/s/*"))
        )
        documents = [json.loads(line) for line in lines.splitlines()]
        assert [one["id"] for one in documents] == [f"{raw}/a.ipynb", f"{raw}/deep/b.ipynb"]
        assert documents[0]["text"] == [part if isinstance(part, str) else {"token": part.token} for part in PARTS]
        funnel = manifest["funnel"]["s"]
        # An empty file holds no record.
        dropped = {reason: row["documents"] for reason, row in funnel["steps"]["kind"].items()}
        assert (funnel["records"], dropped.pop("not JSON"), dropped.pop("not a notebook")) == (5, 1, 1)
        assert list(dropped.values()) == [1]
        examples = [text for row in funnel["steps"]["kind"].values() for text in row["examples"].values()]
        assert any(text.startswith(f"{raw}/cut.ipynb: {{") for text in examples)

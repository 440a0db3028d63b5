from __future__ import annotations

import ast
import gzip
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megacode.base.errors import ConfigError, DataError
from megacode.corpus.machine.collect import collect, same_words_digest
from megacode.corpus.machine.document_files import default_roots, file_kind
from megacode.corpus.machine.extract import manual_page_text, package_description, split_docstrings

TOOL = Path(__file__).parents[2] / "tools" / "prepare_corpus.py"
PROSE = "A sentence about {} that is long enough to be worth keeping in a corpus of documents.\n"
LICENCE = "MIT License\n\nCopyright (c) {} {}\n\n" + "Permission is hereby granted to any person who asks for it.\n" * 6


def module(name: str) -> str:
    lines = "".join(f"    {name}_value_{i} = compute_{name}(argument, {i})\n" for i in range(9))
    doc = "".join(PROSE.format(f"{name} {word}") for word in ("one", "two", "three"))
    return f'"""{doc}"""\n\ndef {name}(argument):\n    """Says what {name} does."""\n{lines}    return argument\n'


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "machine"
    files = {
        "alpha/a.py": module("alpha"), "beta/b.py": module("beta"), "beta/copy_of_a.py": module("alpha"),
        "beta/broken.py": "def broken(:\n" * 40, "beta/page.md": "# Page\n\n" + PROSE.format("pages") * 5,
        "beta/data.json": json.dumps({f"key{i}": "a word" for i in range(40)}, indent=1),
        "alpha/LICENSE": LICENCE.format(2001, "Ann"), "beta/LICENSE": LICENCE.format(2024, "Bob and others"),
        "gamma/notes.txt": PROSE.format("notes") * 5, "gamma/changelog": PROSE.format("changes") * 5,
        "gamma-1.dist-info/METADATA": "Name: gamma\nVersion: 1\n\n" + PROSE.format("gamma the package") * 5,
    }  # fmt: skip
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    (root / "man1").mkdir()
    (root / "man1/tool.1.gz").write_bytes(
        gzip.compress(b".TH TOOL 1\n.SH NAME\n" + PROSE.format("manual pages").encode() * 5)
    )
    (root / "gamma/junk.txt").write_bytes(bytes(range(256)) * 4)
    (root / "gamma/broken.txt.gz").write_bytes(b"\x1f\x8b" + b"no gzip" * 50)
    (root / "gamma/link.txt").symlink_to(root / "gamma/notes.txt")
    return root


def read(output: Path, source: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in (output / f"{source}.jsonl").read_text().splitlines()]


def test_files_become_documents_of_their_source(tree, tmp_path):
    report = collect(tmp_path / "out", [tree])
    names = {
        source: sorted(os.path.relpath(item["path"], tree) for item in read(tmp_path / "out", source))
        for source in report["sources"]
    }
    assert len(names["code"]) == 2
    assert names["markup"] == ["beta/data.json", "beta/page.md"]
    prose = {"gamma-1.dist-info/METADATA", "gamma/notes.txt", "man1/tool.1.gz", "beta/b.py#docstrings"}
    assert prose < set(names["text"])
    assert not any("changelog" in name or "link" in name for name in names["text"])


def test_docstrings_are_text_and_no_longer_in_the_code(tree, tmp_path):
    collect(tmp_path / "out", [tree])
    assert not any('"""' in item["text"] for item in read(tmp_path / "out", "code"))
    docstrings = [item["text"] for item in read(tmp_path / "out", "text") if item["path"].endswith("b.py#docstrings")]
    assert docstrings[0].endswith("Says what beta does.")


def test_no_document_comes_twice_in_any_source(tree, tmp_path):
    report = collect(tmp_path / "out", [tree])
    digests = [same_words_digest(item["text"]) for s in report["sources"] for item in read(tmp_path / "out", s)]
    assert len(set(digests)) == len(digests)
    assert report["sources"]["code"]["dropped"] == {"duplicate": 1, "not this Python": 1}


def test_licences_that_differ_in_owner_and_year_are_one(tree, tmp_path):
    collect(tmp_path / "out", [tree])
    licences = [item for item in read(tmp_path / "out", "text") if item["path"].endswith("LICENSE")]
    assert len(licences) == 1


def test_what_was_dropped_is_counted_by_reason(tree, tmp_path):
    dropped = collect(tmp_path / "out", [tree])["sources"]["text"]["dropped"]
    assert dropped["not UTF-8"] == 1
    assert dropped["unreadable"] == 1
    assert dropped["duplicate"] == 1


def test_the_same_seed_gives_the_same_bytes_whatever_the_order_of_directories(tree, tmp_path, monkeypatch):
    first = collect(tmp_path / "first", [tree])
    walk = os.walk

    def reversed_walk(root):
        for here, names, files in walk(root):
            names.reverse()
            yield here, names, files[::-1]

    monkeypatch.setattr(os, "walk", reversed_walk)
    assert collect(tmp_path / "second", [tree]) == first
    other = collect(tmp_path / "third", [tree], seed=1)
    assert other["sources"]["text"]["sha256"] != first["sources"]["text"]["sha256"]


def test_the_same_call_again_does_no_work_and_other_limits_do(tree, tmp_path):
    output = tmp_path / "out"
    first = collect(output, [tree])
    stamp = (output / "text.jsonl").stat().st_mtime_ns
    assert collect(output, [tree]) == first
    assert (output / "text.jsonl").stat().st_mtime_ns == stamp
    (output / "text.jsonl").write_text("torn")
    with pytest.raises(ConfigError, match="give --overwrite"):
        collect(output, [tree])
    assert collect(output, [tree], overwrite=True) == first
    assert len(read(output, "text")) == first["sources"]["text"]["documents"]
    assert collect(output, [tree], {"text": 500}, overwrite=True)["sources"].keys() == {"text"}


def test_a_source_stops_at_its_limit_and_no_package_fills_it_while_others_are_left(tmp_path):
    root = tmp_path / "machine"
    for package, count in (("large", 60), ("small", 6), ("tiny", 6)):
        (root / package).mkdir(parents=True)
        for i in range(count):
            (root / package / f"{i}.txt").write_text(PROSE.format(package + "a" * (i + 1)) * 8)
    report = collect(tmp_path / "out", [root], {"text": 20_000})
    packages = [Path(item["path"]).parent.name for item in read(tmp_path / "out", "text")]
    assert 20_000 <= report["sources"]["text"]["bytes"] < 21_000
    assert min(packages.count("small"), packages.count("tiny")) >= 3
    assert packages.count("large") > packages.count("small")


def test_bad_arguments_say_how_to_mend_them(tree, tmp_path):
    with pytest.raises(ConfigError, match=r"unknown source 'cod'.*\n.*did you mean 'code'"):
        collect(tmp_path / "out", [tree], {"cod": 1})
    with pytest.raises(ConfigError, match="nowhere: no such directory"):
        collect(tmp_path / "out", [tmp_path / "nowhere"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no usable code file was found"):
        collect(tmp_path / "out", [tmp_path / "empty"])
    assert not (tmp_path / "out").exists()


def test_the_kind_of_a_file_follows_from_its_name():
    assert file_kind("ls.1.gz", "man1") == "manual"
    assert file_kind("x.py", "pkg") == "python"
    assert file_kind("x.pyx", "pkg") == "code"
    assert file_kind("index.html", "doc") == "markup"
    assert file_kind("README", "doc") == "prose"
    assert file_kind("SOURCES.txt", "x.egg-info") is None
    assert file_kind("lib.so", "pkg") is None
    assert file_kind("libtorch_cpu", "pkg") is None


def test_this_machine_has_default_roots():
    assert Path(os.__file__).resolve().parent in default_roots()


@pytest.mark.parametrize(
    ("source", "code"),
    [
        ('"""Doc."""\nx = 1\n', "x = 1\n"),
        ('def f():\n    """Doc."""\n    return 1\n', "def f():\n    return 1\n"),
        ('def f():\n    """Doc."""\n', "def f():\n    pass\n"),
        ('def f(): "doc"\n', "def f(): pass\n"),
        ('class A:\n    "a" "b"; x = 1\n', "class A:\n    pass; x = 1\n"),
        ('def f():\n    """Doc."""  # why\n    return 1\n', "def f():\n    pass  # why\n    return 1\n"),
        ('async def f():\n    (\n      "doc"\n    )\n    x = "é"\n', 'async def f():\n    x = "é"\n'),
        ('if x:\n    def é():\n        "döc"\n        return "é"\n', 'if x:\n    def é():\n        return "é"\n'),
        ("def f():\r\n    '''Doc.'''\r\n    return 1\r\n", "def f():\r\n    return 1\r\n"),
        ('x = """no docstring"""\n"nor this"\n', 'x = """no docstring"""\n"nor this"\n'),
    ],
)
def test_docstrings_are_cut_out_by_their_place(source, code):
    assert split_docstrings(source)[0] == code


def without_docstrings(tree: ast.AST) -> str:
    """The slow way: the same syntax tree with its docstrings replaced, positions left out."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and node.body:
            first = node.body[0]
            if isinstance(first, ast.Expr) and isinstance(getattr(first.value, "value", None), str):
                node.body[:1] = [] if len(node.body) > 1 or isinstance(node, ast.Module) else [ast.Pass()]
            node.body[:] = [item for item in node.body if not isinstance(item, ast.Pass)] or [ast.Pass()]
    return ast.dump(tree)


def test_code_without_docstrings_means_the_same_on_the_standard_library():
    paths = sorted(Path(os.__file__).parent.glob("*.py"))[:60]
    assert len(paths) == 60
    for path in paths:
        source = path.read_text("utf-8")
        code, docstrings = split_docstrings(source)
        assert without_docstrings(ast.parse(code)) == without_docstrings(ast.parse(source)), path
        expected = sum(ast.get_docstring(n) is not None for n in ast.walk(ast.parse(source))
                       if isinstance(n, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)))  # fmt: skip
        assert len(docstrings) == expected


@settings(max_examples=60, deadline=None)
@given(st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\x00"), max_size=80))
def test_any_docstring_is_taken_out_whole(text):
    source = f"def f():\n    {text!r}\n    return 1\n"
    assert split_docstrings(source)[0] == "def f():\n    return 1\n"


def test_a_manual_page_becomes_plain_text():
    page = textwrap.dedent(r"""
        .\" a comment
        .de Vb
        .ft CW
        ..
        .ie n \{\
        .ds -- \(*W-
        .\}
        .TH TOOL 1
        .SH NAME
        tool \- does \fIreal\fR work
        .SH OPTIONS
        .TP
        .BR \-v , " \-\-verbose"
        Say more \(aqthings\(aq.
        .TS
        a table
        .TE
        .PP
        The
        .B end
        of it.
        .nf
        one
          two
        .fi
    """).strip()
    text = "NAME\n\ntool - does real work\n\nOPTIONS\n\n-v, --verbose Say more 'things'.\n\nThe end of it. one\n  two"
    assert " ".join(manual_page_text(page).split()) == " ".join(text.split())
    assert "one\n  two" in manual_page_text(page)


def test_a_packages_description_stands_below_the_headers():
    assert package_description("Name: a\nVersion: 1\n\n# A\n\nProse.\n") == "# A\n\nProse."


def run_tool(*arguments: object) -> tuple[int, str]:
    done = subprocess.run([sys.executable, str(TOOL), *map(str, arguments)], capture_output=True, text=True)
    return done.returncode, done.stderr


def test_the_tool_collects_and_reports(tree, tmp_path):
    code, shown = run_tool("--output", tmp_path / "out", "--roots", tree, "--limit", "code=0", "--limit", "text=1k")
    assert code == 0
    assert "markup" in shown
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"text.jsonl", "markup.jsonl", "collect.json"}


@pytest.mark.parametrize("limit", ["code", "code=many", "cod=1M"])
def test_the_tool_refuses_a_bad_limit(tree, tmp_path, limit):
    code, shown = run_tool("--output", tmp_path / "out", "--roots", tree, "--limit", limit)
    assert code == 2
    assert "--limit" in shown
    assert "Traceback" not in shown

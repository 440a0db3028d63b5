#!/usr/bin/env python3
"""Measure filters and kinds; the figures of docs/corpus.md.

    tools/bench/corpus.py [--mb 20] [--peers PYTHON] [--part code markup text notebooks stackexchange personal ...]

Each row is MB of input a CPU-second beside another way to do the same, measured in the same run: the plain expressions
of StarCoder and the Stack v2 in Python, datatrove's Gopher filter, nbformat, or a regular expression a pattern. MB are
10^6 bytes; inputs are this machine's files, and notebooks and posts made of them. PYTHON is an interpreter that has
datatrove; without spaCy there, its words are split at white space. Slower ways run on a part of the input. The best of
three.
"""

from __future__ import annotations

import argparse
import base64
import html
import json
import random
import re
import resource
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path

import orjson

from megacode.base.sandbox import Sandbox
from megacode.corpus.document import Counts, Document
from megacode.corpus.filters import make_filters
from megacode.corpus.kinds import make_file_kind, make_kind
from megacode.corpus.kinds.synthetic import reason_to_drop
from megacode.corpus.personal_data import make_redactor
from megacode.data.records import Records

SUFFIXES = {
    "code": ("py", "js", "h", "hpp", "c", "cpp", "sh", "pyx"),
    "markup": ("html", "css", "md", "json", "yaml", "rst"),
    "text": ("txt", "rst", "md"),
}
SLOW_SHARE = 0.1  # of the input, for ways that are many times slower
ENCODED = (
    r"[a-zA-Z0-9+/\n=]{64,}", r"(?:\b(?:0x|\\x)?[0-9a-fA-F]{2}(?:,|\b\s*)){8,}", r"(?:\\u[0-9a-fA-F]{4}){8,}"
)  # fmt: skip
PEER = """
import json, sys, time
from datatrove.data import Document
from datatrove.pipeline.filters import GopherQualityFilter, gopher_quality_filter
try:
    import spacy
except ImportError:
    gopher_quality_filter.split_into_words = lambda text, language: text.split()  # in its favour: much faster
texts = [json.loads(line) for line in open(sys.argv[1])]
rule = GopherQualityFilter()
rule.filter(Document(text=texts[0], id="0"))
began = time.process_time()
for text in texts:
    rule.filter(Document(text=text, id="0"))
print(sum(len(text.encode()) for text in texts) / 1e6 / (time.process_time() - began))
"""


def real_files(suffixes: Sequence[str], megabytes: float) -> list[Document]:
    """Return files of this machine in a fixed random order, until they have so many MB."""
    roots = [Path(sysconfig.get_paths()[name]) for name in ("purelib", "stdlib")] + [
        Path("/usr/share"),
        Path("/usr/include"),
    ]
    # Sorted first: the order of a directory differs between file systems, and the draw with it.
    paths = sorted({path for root in roots for suffix in suffixes for path in root.rglob(f"*.{suffix}")})
    random.Random(0).shuffle(paths)
    documents, size = [], 0
    for path in paths:
        if size > megabytes * 1e6:
            break
        if path.is_file() and 100 < path.stat().st_size < 400_000:
            raw = path.read_bytes()
            try:
                documents.append(Document(raw.decode(), str(path), {"path": str(path)}))
            except UnicodeDecodeError:
                continue
            size += len(raw)
    return documents


def rate(work: Callable[[], object], size: float) -> float:
    """Return MB a CPU-second: the best of three."""
    best = float("inf")
    for _ in range(3):
        began = time.process_time()
        work()
        # CPU time varies too, with what else uses the caches. The least of three is the steadiest.
        best = min(best, time.process_time() - began)
    return size / 1e6 / best


def size_of(texts: Sequence[str]) -> int:
    """Return the bytes of some texts."""
    return sum(len(text.encode()) for text in texts)


def show(name: str, ours: float, other: str = "", theirs: float = 0.0) -> None:
    """Print a row."""
    beside = f"{other} {theirs:8.2f}   x{ours / theirs:.1f}" if theirs else ""
    print(f"{name:28s} {ours:8.1f} MB/CPU-s   {beside}", flush=True)


def part_of(texts: Sequence[str]) -> list[str]:
    """Return the first texts, for a slow way."""
    return list(texts[: max(1, int(len(texts) * SLOW_SHARE))])


def plain_code_filter(text: str) -> bool:
    """StarCoder's measures and the Stack's expressions, as they are defined."""
    lines = [len(line) for line in text.splitlines()]
    share = sum(map(str.isalnum, text)) / max(1, len(text))
    runs = [len(match.group()) for pattern in ENCODED for match in re.finditer(pattern, text)]
    return (
        max(lines, default=0) <= 1_000
        and sum(lines) <= 100 * len(lines)
        and share >= 0.25
        and max(runs, default=0) <= 1_024
        and sum(runs) <= 0.5 * len(text)
    )


def measure_filters(preset: str, megabytes: float, peers: Path | None) -> None:
    """Measure the filters of one preset."""
    documents = real_files(SUFFIXES[preset], megabytes)
    # Filters are made once, outside of the clock, as in a run.
    texts, keeps = [document.text for document in documents], make_filters({"preset": preset})
    ours = rate(lambda: [keeps(document) for document in documents], size_of(texts))
    some = part_of(texts)
    if preset != "text":
        theirs = rate(lambda: [plain_code_filter(text) for text in some], size_of(some))
        return show(f"filters, {preset}", ours, "plain Python", theirs)
    return show("filters, text", ours, "datatrove's Gopher", datatrove(some[:200], peers) if peers else 0.0)


def datatrove(texts: Sequence[str], python: Path) -> float:
    """Return the rate of datatrove's Gopher filter."""
    with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as file:
        file.writelines(json.dumps(text) + "\n" for text in texts)
        file.flush()
        done = subprocess.run([str(python), "-c", PEER, file.name], capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def notebooks_of(documents: Sequence[Document]) -> list[str]:
    """Return notebooks made of Python files: cells of code with an output, and text; one code cell in eight has a plot.

    A plot is 12 KB of base64; plots are most of the bytes, as in notebooks that people publish.
    """
    chance, notebooks = random.Random(0), []
    for document in documents:
        blocks, cells = document.text.split("\n\n"), []
        for first in range(0, len(blocks), 4):
            text = "\n\n".join(blocks[first : first + 3])
            outputs: list[dict[str, object]] = [{"output_type": "stream", "name": "stdout", "text": [text[:200]]}]
            if chance.random() < 1 / 8:
                plot = {"image/png": base64.b64encode(chance.randbytes(9_000)).decode(), "text/plain": ["<Figure>"]}
                outputs.append({"output_type": "display_data", "metadata": {}, "data": plot})
            code = {"cell_type": "code", "execution_count": 1, "metadata": {}, "outputs": outputs}
            cells.append({**code, "source": text.splitlines(True)})
            cells.append({"cell_type": "markdown", "metadata": {}, "source": ["".join(blocks[first + 3 : first + 4])]})
        metadata = {"kernelspec": {"name": "python3", "language": "python", "display_name": "Python 3"}}
        notebooks.append(json.dumps({"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 4}))
    return notebooks


def measure_notebooks(megabytes: float, peers: Path | None) -> None:
    """Measure notebooks, from their JSON to documents."""
    texts = notebooks_of(real_files(("py",), megabytes / 2))

    def read() -> list[Document]:
        rows = [{"id": str(number), "text": text} for number, text in enumerate(texts)]
        return list(make_kind("notebooks", {}, Counts())(iter([Records(Path("x"), 1, rows, [0] * len(rows), 0)])))

    # A kind that drops most of its input would be fast for nothing.
    assert len(read()) > 0.9 * len(texts)
    try:
        import nbformat
    except ImportError:
        return show("notebooks", rate(read, size_of(texts)))
    some = part_of(texts)
    theirs = rate(lambda: [nbformat.reads(text, 4) for text in some], size_of(some))
    return show("notebooks", rate(read, size_of(texts)), "nbformat, reading alone", theirs)


def posts_of(texts: Sequence[str], megabytes: float) -> Iterator[str]:
    """Yield the rows of a dump: two of five are questions; bodies are paragraphs, code and lists of real files."""
    chance, size, number, question = random.Random(0), 0, 0, 1

    def block() -> str:
        words = html.escape(chance.choice(texts)[: chance.randrange(100, 900)], quote=False)
        kinds = (
            f"<p>{words} <code>f()</code></p>",
            f"<pre><code>{words}\n</code></pre>",
            f"<ul>\n<li>{words}</li>\n</ul>",
        )
        return chance.choices(kinds, (5, 4, 1))[0] + "\n\n"

    while size < megabytes * 1e6:
        number += 1
        body = "".join(block() for _ in range(chance.randrange(1, 5)))
        # XML forbids these characters even as entities, and no dump has them.
        body = re.sub("[\x00-\x08\x0b-\x1f\ufffe\uffff]", "", body)
        if chance.random() < 0.4 or number == 1:
            question, kind = number, f'PostTypeId="1" AcceptedAnswerId="{number + 1}" Title="T" Tags="|a|b|"'
        else:
            kind = f'PostTypeId="2" ParentId="{question}"'
        # The second time: a dump holds HTML inside an attribute of XML.
        body = html.escape(body).replace("\n", "&#xA;")
        score = chance.randrange(12)
        row = f'  <row Id="{number}" {kind} Score="{score}" ViewCount="7" Body="{body}" OwnerUserId="1" />\n'
        size += len(row.encode())
        yield row


def measure_stackexchange(megabytes: float, peers: Path | None) -> None:
    """Measure a dump, from Posts.xml to JSON lines, and the peak memory of a process that does only this."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name, "site", "Posts.xml")
        path.parent.mkdir()
        texts = [document.text for document in real_files(("py", "rst", "txt"), 5)]
        path.write_text("<posts>\n" + "".join(posts_of(texts, megabytes)) + "</posts>\n", encoding="utf-8")
        child = [sys.executable, __file__, "--child", str(path)]
        figures = json.loads(subprocess.run(child, capture_output=True, text=True, check=True).stdout)
    # One reading only, in the child: compare it with a second run.
    show("StackExchange", figures["rate"])
    print(f"{'':28s} {figures['peak']:8.0f} MB of memory for {megabytes:.0f} MB", flush=True)


def stackexchange_child(path: Path) -> None:
    """Read a dump once and print its rate and this process's peak memory in MB."""
    began, scratch = time.process_time(), path.parent.parent / "scratch"
    with (path.parent / "out.jsonl").open("wb") as out:
        for document in make_file_kind("stackexchange", {}, Counts(), scratch)(path):
            out.write(document.line() + b"\n")
    seconds = time.process_time() - began
    # Not from getrusage, which counts what the parent had when it started this process.
    peak = int(re.search(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text())[1]) * 1024 / 1e6
    print(orjson.dumps({"rate": path.stat().st_size / 1e6 / seconds, "peak": peak}).decode())


def measure_personal(megabytes: float, peers: Path | None) -> None:
    """Measure the search for personal data."""
    texts, redactor = [document.text for document in real_files(SUFFIXES["code"], megabytes)], make_redactor({})
    # Far fewer than megacode looks for: the least that Python's expressions would cost.
    patterns = [
        re.compile(r"[\w.+-]+@[\w-]+\.[\w.-]+"), re.compile(r"(?:\d{1,3}\.){3}\d{1,3}"),
        re.compile(r"(?:AKIA|gh[pos]_|xox[bp]-|sk_live_|eyJ|AIza|npm_|glpat-|-----BEGIN )[\w-]{16,}"),
    ]  # fmt: skip
    some = part_of(texts)
    theirs = rate(lambda: [pattern.findall(text) for text in some for pattern in patterns], size_of(some))
    show(
        "personal data",
        rate(lambda: [redactor.redacted(text) for text in texts], size_of(texts)),
        "three patterns",
        theirs,
    )


def measure_synthetic(megabytes: float, peers: Path | None) -> None:
    """Measure the verification of a solution, which runs two programs: in one sandbox, and in a new one each."""
    solution, number = "def add(a, b):\n    return a + b\n", 50

    def used() -> float:
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        return time.process_time() + children.ru_utime + children.ru_stime

    def verify(sandbox: Sandbox) -> None:
        assert reason_to_drop(sandbox, solution, "assert add(1, 2) == 3") is None

    for name, one in (("synthetic, one sandbox", True), ("synthetic, a new one each", False)):
        wall, cpu = time.perf_counter(), used()
        # A server's CPU time is counted when it has ended.
        with Sandbox() as shared:
            for _ in range(number):
                with nullcontext(shared) if one else Sandbox() as sandbox:
                    verify(sandbox)
        wall, cpu = (time.perf_counter() - wall) / number * 1e3, (used() - cpu) / number * 1e3
        print(f"{name:28s} {wall:8.0f} ms a solution, {cpu:.0f} ms of CPU time", flush=True)


PARTS: dict[str, Callable[[float, Path | None], None]] = {
    # The default binds the name now. A plain lambda would see the last one of the loop.
    **{name: (lambda mb, peers, name=name: measure_filters(name, mb, peers)) for name in SUFFIXES},
    "notebooks": measure_notebooks,
    "stackexchange": measure_stackexchange,
    "personal": measure_personal,
    "synthetic": measure_synthetic,
}


def main() -> None:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mb", type=float, default=20.0, help="size of each input")
    parser.add_argument("--peers", type=Path, help="an interpreter that has datatrove")
    parser.add_argument("--part", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        return stackexchange_child(args.child)
    for name in args.part:
        PARTS[name](args.mb, args.peers)
    return None


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Preprocessing: tools/preprocess_data.py beside Megatron's way, on real files of this machine.

    tools/bench/preprocess.py [--megabytes 200] [--reference-megabytes 8] [--vocab-size 32000]

Every contender is a fresh process and pays for its imports; "net" takes off its own time on one document, as far
as that can be told. Contenders:

    megacode             tools/preprocess_data.py as it stands, in order and shuffled
    per document         what Megatron's preprocess_data.py does in a worker and in its parent, without the processes
                         between them: json.loads, the reference tokenizer on one document, IndexedDatasetBuilder
    whole file           what Megatron's preprocess_data_fast.py does: gigatoken's encode_files on the whole input, then
                         one insertion of all ends of documents

The slow ones run on the head of the file. All outputs of one tokenizer are compared byte for byte on the same input.
"""

from __future__ import annotations

import argparse
import filecmp
import json
import os
import subprocess
import sys
import sysconfig
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

TOOL = Path(__file__).parents[1] / "preprocess_data.py"
SUFFIXES = (".py", ".pyi", ".h", ".hpp", ".md", ".rst", ".txt", ".html", ".js", ".css")
LARGEST_FILE = 400_000


def write_corpus(path: Path, size: int) -> None:
    """Write JSON lines of the sources and documentation of this Python installation, each file once."""
    roots = [Path(sysconfig.get_paths()[name]) for name in ("purelib", "stdlib")] + [Path("/usr/share/doc")]
    written = 0
    with path.open("w", encoding="utf-8") as file:
        # Each file once: copies of a small corpus would flatter tokenizers that cache words.
        for place in sorted({item for root in roots for item in root.rglob("*") if item.suffix in SUFFIXES}):
            if not place.is_file() or not 50 < place.stat().st_size < LARGEST_FILE:
                continue
            try:
                line = json.dumps({"text": place.read_text(encoding="utf-8")}, ensure_ascii=False) + "\n"
            except UnicodeDecodeError:
                continue
            written += file.write(line)
            if written > size:
                return


def head(source: Path, target: Path, size: int) -> Path:
    """Write the first lines of a file."""
    with source.open("rb") as file, target.open("wb") as out:
        while out.tell() < size and (line := file.readline()):
            out.write(line)
    return target


@dataclass(frozen=True)
class Cost:
    """What a process took: CPU and wall time in seconds, peak resident memory in MiB."""

    cpu: float
    wall: float
    peak: float


def measure(command: list[str]) -> Cost:
    """Run a process and return what it took."""
    start = time.monotonic()
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stderr=log, stdout=log)
        # This child's usage and that of its own children. Usage of all children would add up over contenders.
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            log.seek(0)
            raise SystemExit(f"{' '.join(command)}\n{log.read().decode()}")
    # The memory is that of the largest single process, and not a sum over workers.
    return Cost(usage.ru_utime + usage.ru_stime, time.monotonic() - start, usage.ru_maxrss / 1024)


def per_document(kind: str, tokenizer: str, source: str, prefix: str) -> None:
    """Megatron's classic way, in one process (a child of this benchmark)."""
    import numpy as np
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    if kind == "huggingface":
        from transformers import AutoTokenizer

        reference = AutoTokenizer.from_pretrained(tokenizer)
        end = reference.eos_token_id

        def encode(text: str) -> list[int]:
            # As in the other contenders: special tokens in a text are text.
            return reference(text, split_special_tokens=True).input_ids
    else:
        from sentencepiece import SentencePieceProcessor

        processor = SentencePieceProcessor(model_file=f"{tokenizer}/tokenizer.model")
        encode, end = processor.encode, processor.eos_id()
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=np.uint16)
    with open(source, encoding="utf-8") as file:
        for line in file:
            ids = [*encode(json.loads(line)["text"]), end]
            # A list becomes an array for each document, which is part of that way's cost.
            builder.add_document(ids, [len(ids)])
    builder.finalize(f"{prefix}.idx")


def whole_file(tokenizer: str, source: str, prefix: str) -> None:
    """Megatron's fast way (a child of this benchmark): everything is encoded before the first byte is written."""
    import gigatoken
    import numpy as np
    from megatron.core.datasets.indexed_dataset import _IndexWriter

    document = json.loads(Path(tokenizer, "tokenizer.json").read_text(encoding="utf-8"))
    document["added_tokens"] = []  # as in the other contenders, special tokens in a text are text
    encoder = gigatoken.Tokenizer.from_json(json.dumps(document))
    layout = encoder.encode_files(gigatoken.JsonlFileSource([source], field="text")).layout
    offsets, flat = np.asarray(layout.offsets.data), np.asarray(layout.content.data)
    # A second copy of all tokens: the peak grows with the file, 1,118 MiB for 200 MB.
    tokens = np.insert(flat, offsets[1:], 0).astype(np.uint16)
    Path(f"{prefix}.bin").write_bytes(tokens.tobytes())
    lengths = np.diff(offsets) + 1
    with _IndexWriter(f"{prefix}.idx", np.uint16) as writer:
        writer.write(lengths.tolist(), None, list(range(len(lengths) + 1)))


class Bench:
    """The contenders on one corpus.

    Args:
        directory: for everything that is written.
        corpus: the whole input.
        small: its head, for the slow ones.
    """

    def __init__(self, directory: Path, corpus: Path, small: Path) -> None:
        self.directory, self.corpus, self.small = directory, corpus, small
        self.one = head(corpus, directory / "one.jsonl", 1)

    def tool(self, kind: str, source: Path, name: str, *more: str) -> Cost:
        """Run megacode's tool."""
        types = {"huggingface": "HuggingFaceTokenizer", "sentencepiece": "GPTSentencePieceTokenizer"}
        command = [sys.executable, str(TOOL), "--input", str(source), "--output-prefix", str(self.directory / name)]
        model = ["--tokenizer-type", types[kind], "--tokenizer-model", str(self.directory / kind), "--append-eod"]
        return measure([*command, *model, *more])

    def child(self, job: str, kind: str, source: Path, name: str) -> Cost:
        """Run one of the others in a process of its own."""
        prefix = self.directory / f"{name}_text_document"
        command = [sys.executable, "-W", "ignore", __file__, "--child", job, kind, str(self.directory / kind)]
        return measure([*command, str(source), str(prefix)])

    def same(self, left: str, right: str) -> str:
        """Say whether two outputs are the same bytes."""
        pairs = [[self.directory / f"{name}_text_document.{end}" for name in (left, right)] for end in ("bin", "idx")]
        return "identical bytes" if all(filecmp.cmp(*pair, shallow=False) for pair in pairs) else "DIFFERENT BYTES"

    def report(self, label: str, cost: Cost, floor: Cost, source: Path, note: str = "") -> float:
        """Print a line and return MB per CPU-second, the whole process counted."""
        # Net is a small difference of large times for slow ways: their ratio went from 22 to 49 over runs.
        size, net = source.stat().st_size / 1e6, max(cost.cpu - floor.cpu, 1e-3)
        print(
            f"  {label:26s} {size:7.0f} MB {cost.cpu:7.2f} CPU-s {cost.wall:7.2f} s {cost.peak:6.0f} MiB"
            f" {size / cost.cpu:7.1f} MB/CPU-s {size / net:7.1f} net   {note}",
            flush=True,
        )
        return size / cost.cpu

    def run(self, kind: str) -> None:
        """Measure all contenders on one kind of tokenizer."""
        print(f"\n{kind}")
        # What a start costs: imports, loading the tokenizer, and next to no text.
        floor = self.tool(kind, self.one, "one")
        ours = self.report("megacode", self.tool(kind, self.corpus, "ours"), floor, self.corpus)
        self.report(
            "megacode --shuffle-seed 1",
            self.tool(kind, self.corpus, "mixed", "--shuffle-seed", "1"),
            floor,
            self.corpus,
        )
        self.tool(kind, self.small, "ours_small")
        slow_floor = self.child("per_document", kind, self.one, "one")
        # On the head only: at 0.8 MB/CPU-s the whole file would take four minutes.
        slow = self.child("per_document", kind, self.small, "slow")
        net = self.small.stat().st_size / 1e6 / max(slow.cpu - slow_floor.cpu, 1e-3)
        self.report("per document", slow, slow_floor, self.small, self.same("ours_small", "slow"))
        if kind == "huggingface":
            fast_floor = self.child("whole_file", kind, self.one, "one")
            fast = self.child("whole_file", kind, self.corpus, "fast")
            theirs = self.report("whole file", fast, fast_floor, self.corpus, self.same("ours", "fast"))
            print(f"  megacode / whole file, whole processes: {ours / theirs:.2f}x")
        # The comparison that favours megacode least: its own start counts, theirs does not.
        print(f"  megacode (whole process) / per document (net): {ours / net:.1f}x")


def main() -> None:
    """Run the benchmark."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--megabytes", type=int, default=200)
    arguments.add_argument("--reference-megabytes", type=int, default=8)
    arguments.add_argument("--vocab-size", default="32000")
    arguments.add_argument("--child", nargs=5, help=argparse.SUPPRESS)
    args = arguments.parse_args()
    if args.child:
        job, kind, *places = args.child
        per_document(kind, *places) if job == "per_document" else whole_file(*places)
        return
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        write_corpus(directory / "corpus.jsonl", args.megabytes * 1_000_000)
        small = head(directory / "corpus.jsonl", directory / "small.jsonl", args.reference_megabytes * 1_000_000)
        for kind in ("huggingface", "sentencepiece"):
            train = [sys.executable, str(TOOL.with_name("train_tokenizer.py")), "--kind", kind, "--input", str(small)]
            measure([*train, "--vocab-size", args.vocab_size, "--output", str(directory / kind)])
        bench = Bench(directory, directory / "corpus.jsonl", small)
        for kind in ("huggingface", "sentencepiece"):
            bench.run(kind)


if __name__ == "__main__":
    main()

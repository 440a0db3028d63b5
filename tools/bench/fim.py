#!/usr/bin/env python3
"""Fill in the middle: CPU time of a token read, by rate, with local and with whole re-encoding.

    tools/bench/fim.py [--tokenizer DIR] [--characters 2000] [--windows 60] [--rounds 5] [--tokens-per-second 28000]

Windows of 8,192 tokens of this machine's Python files, cut into documents of --characters. CPU time of the reading
thread, the contenders taking turns; also the share of one core that a rank needs that reads so many tokens a second.
Both encoders must give the same windows, or the program ends with an error. Without --tokenizer one of 8,192 tokens is
trained first, which takes a minute.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

import numpy as np

from megacode.data.fim import FillInMiddle
from megacode.data.fim_tokens import find_sentinels
from megacode.data.indexed import IndexedDatasetWriter
from megacode.data.part_encoders import PartEncoder, WholeParts, part_encoder
from megacode.data.source_stream import SourceStream, window_tokens
from megacode.data.tokenizer import HuggingFaceTokenizer
from megacode.data.train_tokenizer import train_tokenizer

LENGTH = 8192


def texts(characters: int) -> list[str]:
    """Return this machine's Python files, cut to pieces."""
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).rglob("*.py"))
    found = [file.read_text(encoding="utf-8", errors="ignore") for file in files[::2]]
    # Short documents cost most: 0.35 us a token at 570 tokens each, 0.17 in whole files.
    return [text[k : k + characters] for text in found for k in range(0, len(text), characters)]


def write_source(tokenizer: HuggingFaceTokenizer, prefix: Path, characters: int) -> None:
    """Write the files as a data set."""
    documents = [[*tokenizer.encode(text), tokenizer.eod or 0] for text in texts(characters)]
    with IndexedDatasetWriter(prefix, np.int32) as writer:
        writer.add(np.concatenate(documents), np.array([len(document) for document in documents]))


def trained(directory: Path) -> HuggingFaceTokenizer:
    """Return a tokenizer trained on the files."""
    inputs = directory / "files.jsonl"
    inputs.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts(1 << 20)))
    train_tokenizer("huggingface", [str(inputs)], 8192, directory / "tokenizer", max_bytes=10_000_000)
    return HuggingFaceTokenizer(directory / "tokenizer")


def stream_of(prefix: Path, tokenizer: HuggingFaceTokenizer, rate: float, encoder: PartEncoder) -> SourceStream:
    """Return the data set, read with a rate."""
    fim = FillInMiddle(rate, 0.5, 1, "code", find_sentinels(tokenizer), lambda: encoder) if rate else None
    return SourceStream("code", str(prefix), 0.0, LENGTH, fim=fim)


def read(stream: SourceStream, windows: int) -> tuple[float, int, int]:
    """Read windows spread over a data set; return CPU seconds, documents and tokens of fill in the middle."""
    # The same windows in each round and for each contender, so their choice adds no noise.
    firsts = np.linspace(0, stream.train_tokens - LENGTH - 1, windows).astype(int).tolist()
    # This thread's CPU time, which the load of other processes hardly moves.
    start, documents, tokens = time.thread_time(), 0, 0
    for first in firsts:
        found = window_tokens(stream, first, 0)
        found.tokens.astype(np.int64)  # a loader's copy
        documents, tokens = documents + len(found.fim_documents), tokens + found.fim_tokens
    return time.thread_time() - start, documents, tokens


def prove_equal(one: SourceStream, other: SourceStream, windows: int) -> None:
    """End the program if two streams differ in a window."""
    for first in np.linspace(0, one.train_tokens - LENGTH - 1, windows).astype(int).tolist():
        left, right = (window_tokens(stream, first, 0) for stream in (one, other))
        if not np.array_equal(left.tokens, right.tokens):
            sys.exit(f"the window at token {first} differs between local and whole re-encoding")


def bench(prefix: Path, tokenizer: HuggingFaceTokenizer, given: argparse.Namespace) -> None:
    """Measure and print."""
    local, whole = part_encoder(tokenizer), WholeParts(tokenizer)
    contenders = {
        "as stored": stream_of(prefix, tokenizer, 0.0, local),
        f"rate 0.5, {type(local).__name__}": stream_of(prefix, tokenizer, 0.5, local),
        f"rate 1.0, {type(local).__name__}": stream_of(prefix, tokenizer, 1.0, local),
        # What other tokenizers get: three times the time, 1.05 against 0.35 us a token.
        "rate 0.5, WholeParts": stream_of(prefix, tokenizer, 0.5, whole),
    }
    # First the proof. A faster encoder with other tokens would be of no use.
    prove_equal(stream_of(prefix, tokenizer, 1.0, local), stream_of(prefix, tokenizer, 1.0, whole), given.windows)
    found: dict[str, list[float]] = {name: [] for name in contenders}
    # This pass also fills caches before the clock counts.
    counts = {name: read(stream, given.windows)[1:] for name, stream in contenders.items()}
    for _ in range(given.rounds):
        # In turns: a slow minute of the machine hits all contenders alike.
        for name, stream in contenders.items():
            found[name].append(read(stream, given.windows)[0])
    # A window has one token more than the sequence: the last label.
    tokens = given.windows * (LENGTH + 1)
    print(f"\n{given.windows} windows of {LENGTH:,} tokens, median of {given.rounds} rounds; both encoders agree")
    for name, times in found.items():
        # Loaders work ahead, so training waits for it only where it takes longer than a step.
        each = statistics.median(times) / tokens
        print(
            f"  {name:24s} {each * 1e6:7.3f} us a token   {each * given.tokens_per_second:7.2%} of a core at "
            f"{given.tokens_per_second:,} tokens/s   {counts[name][0]:,} documents, "
            f"{counts[name][1] / tokens:.0%} of the tokens"
        )


def main() -> None:
    """Run the benchmark."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--tokenizer", type=Path, help="directory with a tokenizer.json")
    arguments.add_argument("--characters", type=int, default=2000, help="of a document: 500 to 600 tokens")
    arguments.add_argument("--windows", type=int, default=60)
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--tokens-per-second", type=int, default=28_000)
    given = arguments.parse_args()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        tokenizer = HuggingFaceTokenizer(given.tokenizer) if given.tokenizer else trained(directory)
        write_source(tokenizer, directory / "code", given.characters)
        bench(directory / "code", tokenizer, given)


if __name__ == "__main__":
    main()

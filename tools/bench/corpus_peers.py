#!/usr/bin/env python3
"""Measure datatrove's and datasketch's MinHash signatures, for tools/bench/corpus_duplicates.py.

tools/bench/corpus_peers.py FILE.jsonl     run by an interpreter that has both; FILE holds {"text": ...} a line

Both are much slower, so they get the file's first documents only.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import re
import sys
import tempfile
import time
from pathlib import Path

# Both reach about 4 MB/CPU-s where megacode reaches 62, so a part of the file has to do.
DATASKETCH_DOCUMENTS, DATATROVE_DOCUMENTS = 400, 100
WORD = re.compile(r"\W+")


def texts_of(file: Path, count: int) -> list[str]:
    """Return the first documents."""
    with file.open(encoding="utf-8") as lines:
        return [json.loads(line)["text"] for line in itertools.islice(lines, count)]


def datasketch(file: Path) -> float:
    """Return MB of text per CPU-second of signatures with 256 hashes of runs of five words."""
    from datasketch import MinHash

    # The JSON is read inside the clock, as in megacode's row.
    began, size = time.process_time(), 0
    for text in texts_of(file, DATASKETCH_DOCUMENTS):
        words = [word.lower().encode() for word in WORD.split(text) if word]
        signature = MinHash(num_perm=256)
        # One call for all shingles of a document. One call for each would be an unfair rival.
        signature.update_batch([b" ".join(words[place : place + 5]) for place in range(len(words) - 4)] or [b""])
        size += len(text.encode())
    return size / 1e6 / (time.process_time() - began)


def datatrove(file: Path) -> tuple[str, float]:
    """Return the words used, and MB of text per CPU-second of datatrove's signature step, 14 x 8."""
    from datatrove.data import Document
    from datatrove.pipeline.dedup.minhash import MinhashDedupSignature
    from datatrove.utils.word_tokenizers import WordTokenizer

    class Split(WordTokenizer):
        def word_tokenize(self, text: str) -> list[str]:
            return text.split()

        def sent_tokenize(self, text: str) -> list[str]:
            return [text]

        def span_tokenize(self, text: str) -> list[tuple[int, int]]:
            return [(0, len(text))]

    # These texts are read before the clock starts, in datatrove's favour.
    texts = texts_of(file, DATATROVE_DOCUMENTS)
    with tempfile.TemporaryDirectory() as out:
        # Its default for English needs spaCy. Python's split is the fastest tokenizer it could have.
        words = "spaCy" if importlib.util.find_spec("spacy") else "white space"
        language = "eng" if words == "spaCy" else Split()
        step = MinhashDedupSignature(output_folder=out, language=language)
        # The first call loads models. A corpus pays for that once.
        step.run(iter([Document(text="a few words to load its models", id="0")]))
        began = time.process_time()
        step.run(Document(text=text, id=str(number)) for number, text in enumerate(texts))
        return words, sum(len(text.encode()) for text in texts) / 1e6 / (time.process_time() - began)


def main() -> None:
    """Print both rates."""
    file = Path(sys.argv[1])
    print(f"{'datasketch, JSON + 256 hashes, MB/CPU-s':48s}{datasketch(file):8.2f}", flush=True)
    words, rate = datatrove(file)
    print(f"{f'datatrove, 112 hashes, words by {words}, MB/CPU-s':48s}{rate:8.2f}")


if __name__ == "__main__":
    main()

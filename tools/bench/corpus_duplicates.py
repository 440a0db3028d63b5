#!/usr/bin/env python3
"""Measure duplicates and decontamination; the figures of docs/corpus.md.

tools/bench/corpus_duplicates.py speed [--mb 60] [--peers PYTHON]   MB of text per CPU-second, beside other tools
tools/bench/corpus_duplicates.py reduce [--documents 1000000]       CPU time and memory a document, made-up signatures
tools/bench/corpus_duplicates.py recall [--mb 30]                   planted copies of real files: found, and wrongly so
tools/bench/corpus_duplicates.py benchmarks [--mb 30]               planted items, and texts that only look like items

PYTHON is an interpreter with datatrove and datasketch. MB are 10^6 bytes of UTF-8; real files are this machine's Python
sources and documentation. CPU time is that of all threads.
"""

from __future__ import annotations

import argparse
import random
import resource
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import orjson
import xxhash

from megacode.base.files import write_json
from megacode.corpus.decontaminate import Benchmark, Detector, Index, MatchWriter, detector_of, read_matches
from megacode.corpus.duplicates import Duplicates, SignatureWriter, SignedShard, find_duplicates, method
from megacode.corpus.duplicates.signatures import HASHES, _band_keys
from megacode.corpus.duplicates.similarity import exact_similarities
from megacode.corpus.word_hashes import encoded, hash_words, word_spans
from megacode.data.items import Item

BATCH = 200
PEER = Path(__file__).with_name("corpus_peers.py")


def real_texts(megabytes: float) -> list[str]:
    """Return files of this machine, in the order of a hash of their paths, so that packages mix."""
    roots = [Path(sysconfig.get_paths()["purelib"]), Path(sysconfig.get_paths()["stdlib"]), Path("/usr/share/doc")]
    paths = {path for root in roots for suffix in ("py", "md", "rst", "txt") for path in root.rglob(f"*.{suffix}")}
    ordered = sorted(paths, key=lambda path: xxhash.xxh3_64_intdigest(str(path).encode()))
    texts, size = [], 0
    for path in ordered:
        if path.is_file() and 200 < path.stat().st_size < 1_000_000:
            text = path.read_text(encoding="utf-8", errors="replace")
            texts.append(text)
            size += len(text.encode())
            if size > megabytes * 1e6:
                break
    return texts


def batched(items: Sequence[str], size: int = BATCH) -> Iterator[Sequence[str]]:
    """Yield stretches of a list."""
    for first in range(0, len(items), size):
        yield items[first : first + size]


def peak_mb() -> float:
    """Return the largest memory of this process so far."""
    # In MB; Linux gives KiB. It never falls, so only a rise between two calls says something.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def rate(size: float, work: Callable[[], None]) -> float:
    """Return MB of text per CPU-second."""
    began = time.process_time()
    work()
    return size / 1e6 / (time.process_time() - began)


def speed(arguments: argparse.Namespace) -> None:
    """Print the rates of this and of other tools on one file of JSON lines."""
    texts = real_texts(arguments.mb)
    size = sum(len(text.encode()) for text in texts)
    with tempfile.TemporaryDirectory() as name:
        file = Path(name) / "texts.jsonl"
        file.write_bytes(b"".join(orjson.dumps({"text": text}) + b"\n" for text in texts))
        items = shuffled_items(texts, 20_000, random.Random(0))
        # The peak keeps them. What signing takes shows only as far as it exceeds their room.
        del texts
        index = Index([Benchmark("planted", tuple(items), {"planted": ""})])
        print(f"{size / 1e6:.0f} MB, {sum(1 for _ in file.open('rb'))} documents")
        print(f"{'memory before, MB':48s}{peak_mb():8.0f}")
        print(f"{'JSON + signatures (256 hashes), MB/CPU-s':48s}{rate(size, lambda: sign(file, Path(name))):8.1f}")
        print(f"{'memory after, MB':48s}{peak_mb():8.0f}")
        print(f"{'JSON + 20,000 items, MB/CPU-s':48s}{rate(size, lambda: search(file, index)):8.1f}", flush=True)
        if arguments.peers:
            subprocess.run([arguments.peers, str(PEER), str(file)], check=True)


def parsed(file: Path) -> Iterator[list[str]]:
    """Yield the texts of a file in batches."""
    lines = []
    with file.open("rb") as stream:
        for line in stream:
            lines.append(line)
            if len(lines) == BATCH:
                yield [orjson.loads(one)["text"] for one in lines]
                lines = []
    yield [orjson.loads(one)["text"] for one in lines]


def sign(file: Path, out: Path) -> None:
    """Read, hash and write signatures: what the map pass does."""
    writer = SignatureWriter(out / "signatures")
    for texts in parsed(file):
        writer.add(texts)
    writer.close()


def search(file: Path, index: Index) -> None:
    """Read texts and look for items."""
    for texts in parsed(file):
        index.matches(texts)


def reduce(arguments: argparse.Namespace) -> None:
    """Print what the reduce pass costs a document, on made-up signatures of which a fifth are copies."""
    per, count = 100_000, max(1, arguments.documents // 100_000)
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as name:
        subprocess.run([sys.executable, __file__, "make", "--documents", str(count * per), "--out", name], check=True)
        parts = [made_part(Path(name) / str(shard), shard, per) for shard in range(count)]
        rng = random.Random(0)
        # Fifty texts stand for all: texts are asked for only where pairs are compared.
        texts = [" ".join(f"w{rng.randrange(1000)}" for _ in range(500)) for _ in range(50)]
        before, began = peak_mb(), time.process_time()
        duplicates = find_duplicates(
            parts, lambda numbers: [texts[number % 50] for number in numbers], Path(name) / "scratch"
        )
        cost = (time.process_time() - began) / (count * per)
    print(f"documents {count * per:,}, dropped {len(duplicates.dropped):,}, pairs compared {duplicates.compared}")
    print(f"CPU time {cost * 1e6:.1f} us a document; memory {before:.0f} MB before, {peak_mb():.0f} MB at its peak")


def made_part(path: Path, shard: int, count: int) -> SignedShard:
    """Return a shard of made-up signatures."""
    keys = np.arange(shard * count, (shard + 1) * count, dtype=np.uint64)
    return SignedShard(path, lambda: (np.ones(count, np.uint16), keys))


def make(arguments: argparse.Namespace) -> None:
    """Write made-up signatures; in a process of its own, since it needs more memory than the pass that is measured."""
    rng, per = np.random.default_rng(0), 100_000
    for shard in range(arguments.documents // per):
        path = Path(arguments.out) / str(shard)
        path.mkdir(parents=True)
        values = rng.integers(0, 2**32, (per, HASHES), dtype=np.uint32)
        # The first document has none before it to copy.
        copies = np.flatnonzero(rng.random(per) < 0.2)[1:]
        # Always an earlier document, so copies of copies make larger clusters.
        origins = (rng.random(len(copies)) * copies).astype(np.int64)
        # Similarities of 0.6 to 1: on both sides of the threshold.
        kept = rng.random((len(copies), HASHES)) < rng.uniform(0.6, 1, len(copies))[:, None]
        values[copies] = np.where(kept, values[origins], values[copies])
        # No two are exact copies. That shortcut would hide what near ones cost.
        exact = rng.integers(0, 2**63, (per, 2), dtype=np.uint64)
        exact.tofile(path / "exact.u64")
        exact.tofile(path / "normalised.u64")
        np.ascontiguousarray(_band_keys(values).T).tofile(path / "bands.u64")
        values.astype(np.uint16).tofile(path / "hashes.u16")
        np.full(per, 500, np.int32).tofile(path / "words.i32")
        write_json(path / "method.json", {**method(), "documents": per})


def changed(text: str, share: float, rng: random.Random) -> str:
    """Return a text with a share of its words replaced by words of its own."""
    spans = word_spans(text)
    words = [text[first:last] for first, last in spans]
    pieces, end = [], 0
    for (first, last), word in zip(spans, words, strict=True):
        # With the x it is a word of no other text: a change breaks up to five runs of five words.
        pieces += [text[end:first], rng.choice(words) + "x" if rng.random() < share else word]
        end = last
    return "".join([*pieces, text[end:]])


def duplicates_of(texts: Sequence[str], out: Path) -> Duplicates:
    """Return the duplicates among some texts."""
    writer = SignatureWriter(out / "signatures")
    for some in batched(texts):
        writer.add(some)
    writer.close()
    order = np.ones(len(texts), np.uint16), np.arange(len(texts), dtype=np.uint64)
    part = SignedShard(out / "signatures", lambda: order)
    return find_duplicates([part], lambda numbers: [texts[number] for number in numbers], out / "scratch")


def recall(arguments: argparse.Namespace) -> None:
    """Print how many planted near-duplicates are found, by true similarity, and how many finds are true."""
    rng, texts = random.Random(0), real_texts(arguments.mb)
    texts = [text for text in texts if len(word_spans(text)) >= 60]
    origins = rng.sample(range(len(texts)), min(len(texts), 3000))
    # J is then about 0.36 to 0.95, on both sides of the threshold.
    copies = [changed(texts[origin], rng.uniform(0.005, 0.12), rng) for origin in origins]
    everything = [*texts, *copies]
    pairs = np.array([origins, range(len(texts), len(everything))])
    # By true similarity: a copy of a short file may be less alike than was planned.
    truth = exact_similarities(everything, pairs, 5)
    with tempfile.TemporaryDirectory() as name:
        duplicates = duplicates_of(everything, Path(name))
    # One cluster is enough, also by way of a third document.
    together = duplicates.root[pairs[0]] == duplicates.root[pairs[1]]
    for low, high in ((0.5, 0.6), (0.6, 0.65), (0.65, 0.7), (0.7, 0.75), (0.75, 0.8), (0.8, 0.9), (0.9, 1.01)):
        mine = (truth >= low) & (truth < high)
        print(f"J {low:.2f} to {min(high, 1):.2f}: {int(mine.sum()):5d} pairs, found {together[mine].mean():.3f}")
    print(f"J 0.80 and more: {together[truth >= 0.8].mean():.4f}; 0.70 to 0.75: ", end="")
    print(f"{together[(truth >= 0.7) & (truth < 0.75)].mean():.4f}")
    print(f"dropped {len(duplicates.dropped)} of {len(everything)}; precision {precision(duplicates, everything):.4f}")


def precision(duplicates: Duplicates, texts: Sequence[str]) -> float:
    """Return the share of near-duplicates that have a document with J >= 0.65 in their cluster."""
    clusters: dict[int, list[int]] = {}
    for number, root in enumerate(duplicates.root.tolist()):
        clusters.setdefault(root, []).append(number)
    right = total = 0
    # 3: near-duplicates. Exact ones need no proof.
    for number in np.flatnonzero(duplicates.why == 3).tolist():
        # The work grows with the square of a cluster's size.
        others = [one for one in clusters[duplicates.root[number]] if one != number]
        some = [texts[number], *(texts[other] for other in others)]
        pairs = np.array([[0] * len(others), range(1, len(some))])
        right += bool((exact_similarities(some, pairs, 5) >= 0.65).any())
        total += 1
    return right / max(1, total)


def shuffled_items(texts: Sequence[str], count: int, rng: random.Random) -> list[Item]:
    """Return items of 20 to 120 words from texts, in another order: like benchmarks, hardly any is in the texts."""
    items = []
    while len(items) < count:
        text = rng.choice(texts)
        spans = word_spans(text)
        size = rng.randint(20, 120)
        if len(spans) > size:
            begin = rng.randrange(len(spans) - size)
            words = [text[first:last] for first, last in spans[begin : begin + size]]
            rng.shuffle(words)
            items.append(Item("planted", len(items), " ".join(words)))
    return items


def benchmarks(arguments: argparse.Namespace) -> None:
    """Plant 300 made-up items in real files, and look whether they are found, and what else is."""
    rng, texts = random.Random(0), real_texts(arguments.mb)
    # Sorted: the order of a set of strings, and so the draws, would differ between processes.
    words = sorted({text[first:last] for text in texts[:500] for first, last in word_spans(text)})
    # Random words: no file holds them in this order, so a hit elsewhere is wrong.
    items = [Item("planted", number, " ".join(rng.choices(words, k=rng.randint(13, 100)))) for number in range(300)]
    places = rng.sample(range(len(texts)), 300)
    for place, item in zip(places, items, strict=True):
        half = len(texts[place]) // 2
        texts[place] = f"{texts[place][:half]}\n{item.text}\n{texts[place][half:]}"
    common = common_passages(texts, rng)
    index = Index([Benchmark("planted", (*items, *common), {"planted": "", "common": ""})])
    with tempfile.TemporaryDirectory() as name:
        writer = MatchWriter(Path(name), index)
        for some in batched(texts):
            writer.add(some)
        writer.close()
        detector: Detector = detector_of([Path(name)], index, [np.ones(len(texts), bool)])
        hits = detector.hits(read_matches(Path(name), index)[0])
    found_pairs = {(hit.item, hit.document) for hit in hits if hit.task == "planted"}
    wrong = [hit for hit in hits if hit.task == "common"]
    right = sum((number, place) in found_pairs for number, place in enumerate(places))
    print(f"planted items found {right} of 300, in other documents {len(found_pairs) - right}")
    print(f"items made of common passages {len(common)}, hits {len(wrong)}")


def common_passages(texts: Sequence[str], rng: random.Random) -> list[Item]:
    """Return passages that stand in many files as they are: licences and other boilerplate."""
    counts: dict[int, int] = {}
    for some in batched(texts):
        words = hash_words(encoded(some))
        grams, offsets = words.shingles(40)
        for first, last in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
            # Once a document: a table that repeats its rows is no common passage.
            for gram in np.unique(grams[first:last]).tolist():
                counts[gram] = counts.get(gram, 0) + 1
    least = max(5, 0.005 * len(texts))
    wanted = {gram for gram, count in counts.items() if count >= least}
    items: dict[int, Item] = {}
    for text in texts:
        grams = hash_words(encoded([text])).ngrams(40)
        spans = word_spans(text)
        # Every 20th place: neighbours are the same passage, moved by a word.
        for place in np.flatnonzero(np.isin(grams, np.array(list(wanted - items.keys()), np.uint64))).tolist()[::20]:
            passage = text[spans[place][0] : spans[place + 39][1]]
            items.setdefault(int(grams[place]), Item("common", len(items), passage))
    return rng.sample(list(items.values()), min(300, len(items)))


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    works = {"speed": speed, "reduce": reduce, "make": make, "recall": recall, "benchmarks": benchmarks}
    parser.add_argument("what", choices=works)
    parser.add_argument("--mb", type=float, default=30)
    parser.add_argument("--documents", type=int, default=1_000_000)
    parser.add_argument("--peers")
    parser.add_argument("--scratch", help="a directory for made-up signatures")
    parser.add_argument("--out", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    works[arguments.what](arguments)


if __name__ == "__main__":
    main()

"""Shards and their merging: what one process makes, to the byte, and what is refused."""

from __future__ import annotations

import gzip
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megacode.base.errors import ConfigError, DataError
from megacode.config.model import TokenizerConfig
from megacode.data import document_batches
from megacode.data import manifest as manifests
from megacode.data import merge as module
from megacode.data.indexed import IndexedDataset, IndexedDatasetWriter
from megacode.data.jsonl import read_chunks
from megacode.data.machine_files import Shard
from megacode.data.merge import merge
from megacode.data.preprocess import PreprocessJob, preprocess
from megacode.data.train_tokenizer import train_tokenizer

TOOLS = Path(__file__).parents[2] / "tools"
SHUFFLED = {"append_eod": True, "shuffle_seed": 7}


def pack(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".gz":
        data = gzip.compress(data)
    elif path.suffix == ".zst":
        data = zstandard.ZstdCompressor().compress(data)
    path.write_bytes(data)
    return path


def lines(rows: list[object]) -> bytes:
    return "".join(json.dumps({"text": row}) + "\n" for row in rows).encode()


def files(prefix: str | Path) -> list[bytes]:
    return [Path(f"{prefix}.{end}").read_bytes() for end in ("bin", "idx")]


def make_shards(count: int, inputs: list[Path], out: Path, tokenizer: TokenizerConfig, **settings: object) -> Path:
    for index in reversed(range(count)):
        job = PreprocessJob(
            tuple(map(str, inputs)), str(out), tokenizer, shard=Shard(index, count), overwrite=True, **settings
        )
        preprocess(job)
    return Path(f"{out}_text_document")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    contents=st.lists(
        st.tuples(
            st.sampled_from(["jsonl", "json", "jsonl.gz", "jsonl.zst"]),
            st.lists(st.binary(max_size=12).map(lambda raw: raw.replace(b"\n", b"")), max_size=12),
            st.booleans(),
        ),
        min_size=1,
        max_size=4,
    ),
    count=st.integers(1, 9),
    size=st.integers(1, 40),
)
def test_shards_are_consecutive_disjoint_and_complete(contents, count, size, tmp_path):
    paths, wholes = [], []
    for number, (ending, rows, is_ended) in enumerate(contents):
        data = b"\n".join(rows) + (b"\n" if is_ended else b"")
        paths.append(pack(tmp_path / f"{number}.{ending}", data))
        wholes.append(data)
    found = [b""] * len(paths)
    last = (0, 0)
    for index in range(count):
        for number, start, end in Shard(index, count).parts([path.stat().st_size for path in paths]):
            assert last <= (number, start)
            last = (number, end)
            for chunk in read_chunks(paths[number], size, start, end):
                first = chunk.place(chunk.first_line).removeprefix(f"{paths[number]}:")
                assert int(first) == found[number].count(b"\n") + 1
                found[number] += chunk.data
    assert found == wholes


@pytest.mark.parametrize("ending", ["gz", "zst"])
def test_a_large_compressed_file_is_cut_in_its_middle(ending, tmp_path):
    data = b"".join(os.urandom(40).hex().encode() + b"\n" for _ in range(60_000))
    path = pack(tmp_path / f"a.jsonl.{ending}", data)
    size = path.stat().st_size
    parts = [Shard(index, 4).parts([size]) for index in range(4)]
    shares = [b"".join(c.data for c in read_chunks(path, 1 << 14, *part[0][1:])) for part in parts]
    assert b"".join(shares) == data
    assert min(map(len, shares)) > len(data) // 8


INPUTS = {
    "plain": ["a.jsonl"],
    "gz": ["a.jsonl.gz"],
    "several": ["a.jsonl", "b.jsonl.zst", "c.json", "d.jsonl.gz"],
}


@pytest.mark.parametrize("settings", [{}, SHUFFLED], ids=["in order", "shuffled"])
@pytest.mark.parametrize("kind", INPUTS)
def test_merged_shards_are_what_one_process_makes(kind, settings, texts, huggingface, tmp_path):
    rows = [*texts[:30], "", ["one sentence.", "", "another."], [], "x", *texts[30:60], ""]
    each = -(-len(rows) // len(INPUTS[kind]))
    paths = [
        pack(tmp_path / name, lines(rows[turn * each : (turn + 1) * each])) for turn, name in enumerate(INPUTS[kind])
    ]
    one = preprocess(PreprocessJob(tuple(map(str, paths)), str(tmp_path / "one"), huggingface, **settings))["text"]
    whole = make_shards(5, paths, tmp_path / "many", huggingface, **settings)
    many = merge([f"{whole}.shard_*"], str(whole), command="merge them")
    assert files(whole) == files(tmp_path / "one_text_document")
    assert many == manifests.check(whole, whole=True)
    assert many == manifests.Manifest(**{**vars(one), "command": "merge them"})


def test_a_line_that_a_shards_border_cuts_belongs_to_one_shard(texts, huggingface, tmp_path):
    source = pack(tmp_path / "a.jsonl", lines([texts[0] * 5, "x", texts[1]]))
    preprocess(PreprocessJob((str(source),), str(tmp_path / "one"), huggingface))
    whole = make_shards(9, [source], tmp_path / "many", huggingface)
    documents = [manifests.read(Shard(index, 9).prefix(whole)).documents for index in range(9)]
    assert sorted(documents)[-3:] == [1, 1, 1] or sum(documents) == 3
    assert 0 in documents
    merge([f"{whole}.shard_*"], str(whole))
    assert files(whole) == files(tmp_path / "one_text_document")


def test_shards_without_a_token_count_their_empty_documents(texts, huggingface, tmp_path):
    source = pack(tmp_path / "a.jsonl", lines([texts[0], *[""] * 200, texts[1]]))
    one = preprocess(PreprocessJob((str(source),), str(tmp_path / "one"), huggingface))["text"]
    whole = make_shards(3, [source], tmp_path / "many", huggingface)
    middle = Shard(1, 3).prefix(whole)
    assert manifests.read(middle).tokens == 0
    assert not Path(f"{middle}.bin").exists()
    assert merge([f"{whole}.shard_*"], str(whole)).documents == one.documents == 202
    assert files(whole) == files(tmp_path / "one_text_document")


def test_a_shard_that_becomes_empty_leaves_nothing_old(texts, huggingface, tmp_path):
    source = pack(tmp_path / "a.jsonl", lines([texts[0]]))
    prefix = Shard(0, 1).prefix(make_shards(1, [source], tmp_path / "out", huggingface))
    assert files(prefix)
    pack(source, lines([""]))
    make_shards(1, [source], tmp_path / "out", huggingface)
    assert [path.name for path in tmp_path.iterdir() if path != source] == [f"{prefix.name}.manifest.json"]


def test_each_key_has_its_own_shards(texts, huggingface, tmp_path):
    rows = [{"title": text[:20], "text": text} for text in texts[:9]]
    source = tmp_path / "a.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    preprocess(PreprocessJob((str(source),), str(tmp_path / "one"), huggingface, keys=("title", "text")))
    make_shards(2, [source], tmp_path / "many", huggingface, keys=("title", "text"))
    for key in ("title", "text"):
        merge([f"{tmp_path}/many_{key}_document.shard_*"], f"{tmp_path}/many_{key}_document", remove_shards=True)
        assert files(tmp_path / f"many_{key}_document") == files(tmp_path / f"one_{key}_document")
    assert not list(tmp_path.glob("*.shard_*"))


def test_a_bad_line_is_named_by_its_number_in_the_file(texts, huggingface, tmp_path):
    source = pack(tmp_path / "a.jsonl", lines(texts[:20]) + b"{bad\n" + lines(texts[20:24]))
    with pytest.raises(DataError) as caught:
        make_shards(3, [source], tmp_path / "out", huggingface)
    assert caught.value.problems[0].where == f"{source}:21"
    whole = make_shards(3, [source], tmp_path / "out", huggingface, skip_bad_lines=True)
    assert merge([f"{whole}.shard_*"], str(whole)).bad_lines == 1


@pytest.fixture
def sharded(corpus, huggingface, tmp_path):
    return make_shards(3, [corpus], tmp_path / "out", huggingface, append_eod=True)


def refused(sharded: Path, error: type[Exception], message: str, **settings: object) -> Exception:
    before = sorted(sharded.parent.iterdir())
    with pytest.raises(error, match=message) as caught:
        merge([f"{sharded}.shard_*"], str(sharded), **settings)
    assert sorted(sharded.parent.iterdir()) == before
    return caught.value


def test_shards_that_are_missing_or_not_finished_are_named(sharded):
    for end in ("bin", "idx", "manifest.json"):
        Path(f"{sharded}.shard_0001_of_0003.{end}").unlink()
    Path(f"{sharded}.shard_0002_of_0003.manifest.json").unlink()
    shown = str(refused(sharded, DataError, "2 problems"))
    assert f"{sharded}.shard_0001_of_0003: shard 1 of 3 is missing" in shown
    assert f"{sharded}.shard_0002_of_0003: shard 2 of 3 is unfinished: it has no manifest" in shown
    assert "--shard 1/3" in shown


@pytest.mark.parametrize(("end", "place"), [("bin", 0), ("bin", 70_001), ("idx", 60)])
def test_a_shard_that_was_damaged_is_named(end, place, sharded):
    path = Path(f"{sharded}.shard_0001_of_0003.{end}")
    raw = bytearray(path.read_bytes())
    raw[place % len(raw)] ^= 1
    path.write_bytes(raw)
    shown = refused(sharded, DataError, "its contents do not match its manifest")
    assert shown.problems[0].where == str(path)


@pytest.mark.parametrize(("end", "seed"), [("bin", None), ("bin", 1), ("idx", None)])
def test_damage_between_the_sampled_blocks_is_found_too(end, seed, sharded, monkeypatch):
    path = Path(f"{sharded}.shard_0001_of_0003.{end}")
    raw = bytearray(path.read_bytes())
    raw[-4 if end == "idx" else 1000] ^= 1
    path.write_bytes(raw)
    monkeypatch.setattr(manifests, "check", lambda prefix: None)
    refused(sharded, DataError, "its contents do not match its manifest", shuffle_seed=seed)


def test_shards_come_in_their_order_whatever_order_they_are_named_in(sharded):
    first = merge([f"{sharded}.shard_*"], f"{sharded}_a")
    names = [str(Shard(index, 3).prefix(sharded)) for index in (2, 0, 1)]
    assert merge(names, f"{sharded}_b").identity == first.identity


def test_an_old_manifest_never_stands_beside_new_tokens(sharded, monkeypatch):
    merge([f"{sharded}.shard_*"], str(sharded))

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(manifests, "write", interrupt)
    with pytest.raises(ConfigError, match="already exists"):
        merge([f"{sharded}.shard_*"], str(sharded), shuffle_seed=2)
    with pytest.raises(KeyboardInterrupt):
        merge([f"{sharded}.shard_*"], str(sharded), shuffle_seed=2, overwrite=True)
    assert manifests.read(sharded) is None


def test_shards_of_different_makings_do_not_merge(sharded, corpus, huggingface, sentencepiece, tmp_path):
    def again(tokenizer=huggingface, **settings):
        settings = {"append_eod": True, "shard": Shard(2, 3), "overwrite": True, **settings}
        preprocess(PreprocessJob((str(corpus),), str(tmp_path / "out"), tokenizer, **settings))

    again(sentencepiece)
    refused(sharded, DataError, "different values of tokenizer")
    again(append_eod=False)
    refused(sharded, DataError, "different values of append_eod: it has False")
    again(shuffle_seed=1)
    refused(sharded, DataError, "different values of shard")
    again(dtype="int32")
    refused(sharded, DataError, "different token types: it has int32")
    again()
    Path(corpus).rename(tmp_path / "moved.jsonl")
    try:
        preprocess(PreprocessJob((str(tmp_path / "moved.jsonl"),), str(tmp_path / "out"), huggingface, append_eod=True,
                       overwrite=True, shard=Shard(2, 3)))  # fmt: skip
    finally:
        (tmp_path / "moved.jsonl").rename(corpus)
    refused(sharded, DataError, "different values of inputs")


def test_the_seed_of_the_merge_is_the_one_the_shards_were_made_for(corpus, huggingface, tmp_path):
    one = preprocess(PreprocessJob((str(corpus),), str(tmp_path / "one"), huggingface, shuffle_seed=3))["text"]
    whole = make_shards(2, [corpus], tmp_path / "many", huggingface)
    assert merge([f"{whole}.shard_*"], str(whole), shuffle_seed=3).identity == one.identity
    whole = make_shards(2, [corpus], tmp_path / "many", huggingface, shuffle_seed=3)
    with pytest.raises(ConfigError, match="the shards were made for shuffle seed 3"):
        merge([f"{whole}.shard_*"], str(whole), shuffle_seed=4)


def test_no_room_on_the_disk_is_said_before_a_byte_is_written(sharded, monkeypatch):
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    refused(sharded, DataError, "only 1000 B is free")


def test_other_data_sets_follow_each_other_as_they_are_named(corpus, huggingface, write_dataset, tmp_path):
    first, second = write_dataset([3, 0, 4], "first"), write_dataset([2, 5], "second")
    made = merge([second, first], str(tmp_path / "both"))
    assert (made.tokens, made.documents, made.tokenizer) == (14, 5, None)
    data = IndexedDataset(tmp_path / "both")
    data.verify()
    bounds = [data.document_bounds(number) for number in range(5)]
    assert [last + 1 - begin for begin, last in bounds] == [2, 5, 3, 0, 4]
    assert data.read(0, 14).tolist() == [0, 1, 2, 3, 4, 5, 6, 0, 1, 2, 3, 4, 5, 6]


def test_wrong_names_are_errors(write_dataset, tmp_path):
    first = write_dataset([3], "first")
    other = write_dataset([3], "other.shard_0000_of_0002")
    for names, error, message in [
        ([str(tmp_path / "none")], DataError, "there is no such data set"),
        ([first + ".bin"], DataError, "without .bin and .idx"),
        ([first, first], ConfigError, "the same data set is listed twice"),
        ([first, f"{tmp_path}/../{tmp_path.name}/first"], ConfigError, "the same data set is listed twice"),
        ([first, other], ConfigError, "they belong to different data sets: .*other in 2 shards; no shard"),
        ([first], ConfigError, "the output is one of the inputs"),
        ([f"{tmp_path}/../{tmp_path.name}/first"], ConfigError, "the output is one of the inputs"),
    ]:
        with pytest.raises(error, match=message):
            merge(names, first)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sets=st.lists(st.lists(st.lists(st.integers(1, 9), max_size=3), min_size=1, max_size=20).filter(any), min_size=1,
                  max_size=4),
    batch_bytes=st.sampled_from([8, 64, 1 << 20]),
    documents=st.integers(1, 30),
)  # fmt: skip
def test_merging_is_what_writing_all_at_once_is(sets, batch_bytes, documents, tmp_path, monkeypatch):
    monkeypatch.setattr(document_batches, "_BATCH_BYTES", batch_bytes)
    monkeypatch.setattr(document_batches, "_DOCUMENTS", documents)

    def write(name, some):
        lengths = np.array([length for document in some for length in document], dtype=np.int64)
        counts = np.array([len(document) for document in some])
        with IndexedDatasetWriter(tmp_path / name, np.int32) as writer:
            writer.add(np.arange(lengths.sum()), lengths, counts)
        return writer

    for number, one in enumerate(sets):
        write(f"set{number}", one)
    merge([str(tmp_path / f"set{number}") for number in range(len(sets))], str(tmp_path / "merged"), overwrite=True)
    tokens = np.concatenate([np.arange(sum(map(sum, one))) for one in sets])
    flat = [document for one in sets for document in one]
    write("all", flat)
    (tmp_path / "all.bin").write_bytes(tokens.astype(np.int32).tobytes())
    assert files(tmp_path / "merged") == files(tmp_path / "all")


@pytest.mark.parametrize(
    ("place", "message"),
    [
        (34 + 4 * 3 + 8, "a sequence after 0 does not begin where the previous one ends"),
        (34 + 12 * 3 + 8 + 1, "a document after 0 ends before it begins"),
    ],
    ids=["offset", "border"],
)
def test_an_index_that_does_not_fit_its_tokens_is_refused(place, message, write_dataset, tmp_path):
    prefix = write_dataset([3, 4, 5], "foreign")
    raw = bytearray(Path(f"{prefix}.idx").read_bytes())
    raw[place] ^= 2
    Path(f"{prefix}.idx").write_bytes(raw)
    with pytest.raises(DataError, match=message):
        merge([prefix], str(tmp_path / "out"))
    assert not list(tmp_path.glob("*out*"))


def load(name: str):
    spec = importlib.util.spec_from_file_location(name, TOOLS / f"{name}.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    return tool.main


def test_the_tools_do_it_and_say_what_is_wrong(corpus, huggingface, tmp_path, capsys):
    shard, whole = load("preprocess_data"), str(tmp_path / "out_text_document")
    flags = ["--input", str(corpus), "--output-prefix", str(tmp_path / "out"), "--tokenizer-type",
             "HuggingFaceTokenizer", "--tokenizer-model", huggingface.path, "--shuffle-seed", "1"]  # fmt: skip
    for wrong in ("2/2", "1", "-1/2", "a/b"):
        assert shard([*flags, f"--shard={wrong}"]) == 2
        assert "Config error: --shard" in capsys.readouterr().err
    assert shard([*flags, "--shard", "0/2"]) == 0
    merging = ["--input", f"{whole}.shard_*", "--output-prefix", whole, "--remove-shards"]
    assert load("merge_datasets")(merging) == 2
    assert "shard 1 of 2 is missing" in capsys.readouterr().err
    assert shard([*flags, "--shard", "1/2"]) == 0
    assert load("merge_datasets")(merging) == 0
    assert manifests.check(whole, whole=True).shuffle_seed == 1
    assert len(list(tmp_path.iterdir())) == 3


PEAK = """
import sys
sys.path.insert(0, sys.argv[1])
from merge_datasets import main
assert main(sys.argv[2:]) == 0
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
@pytest.mark.parametrize("seed", [[], ["--shuffle-seed", "1"]], ids=["in order", "shuffled"])
def test_memory_stays_below_what_the_data_sets_take(seed, tmp_path):
    lengths = np.full(500_000, 150)
    for number in range(3):
        with IndexedDatasetWriter(tmp_path / f"set{number}", np.uint16) as writer:
            writer.add(np.zeros(lengths.sum(), np.uint16), lengths)
    flags = ["--input", tmp_path / "set?", "--output-prefix", tmp_path / "out", *seed]
    done = subprocess.run([sys.executable, "-c", PEAK, TOOLS, *flags], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 300 * 1024 < (tmp_path / "out.bin").stat().st_size


def test_tokenizers_that_differ_are_told_apart_by_their_hash(corpus, huggingface, tmp_path):
    train_tokenizer("huggingface", [str(corpus)], 900, tmp_path / "tokenizer")
    for name, path in (("a", huggingface.path), ("b", str(tmp_path / "tokenizer"))):
        preprocess(PreprocessJob((str(corpus),), str(tmp_path / name), TokenizerConfig(kind="huggingface", path=path)))
    with pytest.raises(DataError, match="different values of tokenizer"):
        merge([str(tmp_path / f"{name}_text_document") for name in "ab"], str(tmp_path / "out"))

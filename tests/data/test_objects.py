"""Sources in object storage: the same samples as local files, whatever the network does, or a clear error."""

from __future__ import annotations

import io
import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from megacode import cli
from megacode.base.errors import ConfigError, DataError
from megacode.base.files import RunDir
from megacode.cli.data_inspect import inspect
from megacode.config.config_file import dump_config
from megacode.config.objects import Objects
from megacode.data import manifest as manifests
from megacode.data import objects
from megacode.data.block_cache import BLOCK_BYTES
from megacode.data.heldout_items import build_items
from megacode.data.indexed import IndexedDataset, IndexedDatasetWriter, bin_path, idx_path
from megacode.data.loader import Loader
from megacode.data.object_store import ObjectStore
from megacode.data.tokenizer import load_tokenizer
from megacode.data.windows import open_source, open_streams, source_sizes, stream_sizes
from megacode.eval.decontaminated import decontamination
from megacode.plan.batch import BatchSchedule
from megacode.plan.phases import build_schedule
from megacode.planning.order import order_rows, seen_rows
from tests.data.object_storage import BUCKET, Answer, client_of, proxy, random_set, server, upload
from tests.limits import HANG

__all__ = ["proxy", "server", "upload"]  # fixtures

PHASES = [
    {"name": "both", "samples": 50, "blend": {"text": 0.5, "code": 0.5}},
    {"name": "text", "samples": 37, "blend": {"text": 0.9, "code": 0.1}},
]


@pytest.fixture
def local(tmp_path: Path) -> str:
    return random_set(tmp_path / "local")


def replaced(server: tuple[str, int], url: str, ending: str, body: bytes) -> None:
    client_of(server).put_object(Bucket=BUCKET, Key=url.removeprefix(f"s3://{BUCKET}/") + ending, Body=body)


# The same as local files


@pytest.mark.parametrize("dtype", ["uint16", "int32"])
def test_every_stretch_of_tokens_is_that_of_the_local_file(proxy, upload, tmp_path, dtype) -> None:
    here = IndexedDataset(random_set(tmp_path / "a", dtype))
    there = IndexedDataset(upload(here.prefix))
    assert (there.tokens, there.documents, there.dtype) == (here.tokens, here.documents, here.dtype)
    edges = [0, 1, BLOCK_BYTES // here.dtype.itemsize, here.tokens - 1, here.tokens]

    @settings(max_examples=60, deadline=None)
    @given(st.data())
    def same(data: st.DataObject) -> None:
        place = st.sampled_from(edges) | st.integers(0, here.tokens)
        first, end = sorted((data.draw(place), data.draw(place)))
        assert np.array_equal(there.read(first, end - first), here.read(first, end - first))

    same()
    assert there.lengths().tolist() == here.lengths().tolist()
    there.verify()


def batches_of(config: Any, dp_rank: int = 0, dp_size: int = 1) -> list[list[Any]]:
    """All fields of all micro-batches of a rank, training and validation."""
    streams = open_streams(config)
    schedule = build_schedule(config, stream_sizes(streams))
    batches = BatchSchedule(config, schedule)
    loader = Loader(config, schedule, batches, streams, dp_rank, dp_size)
    clock: int | None = 0
    found = []
    while clock is not None:
        found += loader.batch(clock)
        clock = loader.after(clock)
    for name in config.sources:
        found += loader.validation_batches(name)
    assert len(found) > 10
    return [[None if one is None else one.tolist() for one in vars(batch).values()] for batch in found]


@pytest.mark.parametrize("isolate", [False, True])
def test_training_reads_the_same_micro_batches_on_every_rank(
    proxy, upload, make_config, write_dataset, tmp_path, isolate
) -> None:
    here = {name: write_dataset([19, 0, 3, 24, 11] * 9, name) for name in ("text", "code")}
    there = {name: upload(prefix) for name, prefix in here.items()}
    train = {"isolate_documents": isolate}
    for rank in range(2):
        expected = batches_of(make_config(here, phases=PHASES, train=train), rank, 2)
        objects_ = {"cache": str(tmp_path / "cache")}
        assert batches_of(make_config(there, phases=PHASES, train=train, objects=objects_), rank, 2) == expected
    assert len(proxy.gets("text.bin")) == 1, "the second rank finds the first one's block in the cache"


def test_plans_fingerprints_and_the_audit_are_those_of_local_files(proxy, upload, make_config, tmp_path) -> None:
    here = {name: random_set(tmp_path / name, seed=seed) for seed, name in enumerate(("text", "code"))}
    there = {name: upload(prefix) for name, prefix in here.items()}
    ours, theirs = make_config(here, phases=PHASES), make_config(there, phases=PHASES)
    assert theirs.sources["text"].path == there["text"], "a URL is not made absolute"
    sizes = source_sizes(theirs)
    assert sizes == source_sizes(ours)
    assert sizes["text"].identity
    assert order_rows(theirs, 0, 87) == order_rows(ours, 0, 87)
    document = order_rows(ours, 5, 1)[0]
    found = seen_rows(theirs, document["source"], document["first_document"])
    assert found == seen_rows(ours, document["source"], document["first_document"])
    assert found


def test_a_data_set_without_a_manifest_has_the_identity_of_its_local_copy(proxy, upload, write_dataset) -> None:
    here = write_dataset([50_000, 30_000])
    assert manifests.identity(upload(here)) == manifests.identity(here)


def test_a_whole_check_reads_everything_past_the_cache_and_finds_one_wrong_byte(
    server, proxy, upload, local, tmp_path
) -> None:
    there = upload(local)
    console = Console(file=io.StringIO())
    inspect(there, "", 0, True, console)
    cached = sum(path.stat().st_size for path in (tmp_path / "cache").rglob("*.block"))
    body = bytearray(bin_path(local).read_bytes())
    assert cached < 1000, "a pass over the file does not fill the cache"
    body[len(body) // 2 + 5] ^= 1
    replaced(server, there, ".bin", bytes(body))
    objects.forget()
    with pytest.raises(DataError, match="do not match its manifest"):
        inspect(there, "", 0, True, console)


# What is asked for


def test_the_windows_of_the_next_iterations_are_asked_for_before_they_are_needed(
    proxy, upload, make_config, tmp_path
) -> None:
    there = upload(random_set(tmp_path / "text", tokens=3_000_000))
    cache = {"cache": str(tmp_path / "cache"), "ahead": 3}
    config = make_config({"text": there}, objects=cache)
    streams = {"text": open_source(config, "text")}
    schedule = build_schedule(config, stream_sizes(streams))
    loader = Loader(config, schedule, BatchSchedule(config, schedule), streams)
    started = len(proxy.gets())
    loader.batch(0)
    source = objects.remote(bin_path(there))
    until(lambda: not source._coming)
    first = schedule.draws(np.arange(16)).first_token * 2
    for block in np.unique(first // BLOCK_BYTES).tolist():
        assert source._cache.has(source._key, block)
    asked = len(proxy.gets())
    assert 4 <= asked - started <= 16, "one request a window at most"
    for clock in (4, 8, 12):
        loader.batch(clock)
    until(lambda: not source._coming)
    assert len(proxy.gets()) <= asked + 12


def test_blocks_that_are_near_each_other_are_one_request() -> None:
    assert objects._runs([]) == []
    assert objects._runs([1, 2, 5, 9, 14]) == [(1, 9), (14, 14)]
    long = objects._runs(list(range(1000)))
    assert [number for first, last in long for number in range(first, last + 1)] == list(range(1000))
    assert max(last - first for first, last in long) < 64


def until(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + HANG
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# Faults


def unavailable(answer: Answer) -> None:
    answer.status, answer.body = 503, b"<Error><Code>SlowDown</Code></Error>"


def cut(answer: Answer) -> None:
    answer.cut = len(answer.body) // 2


def shifted(answer: Answer) -> None:
    answer.headers["Content-Range"] = (
        "bytes 1-" + str(len(answer.body)) + "/" + answer.headers["Content-Range"].partition("/")[2]
    )


def shortened(answer: Answer) -> None:
    answer.body = answer.body[:-7]


FAULTS: dict[str, Callable[[Answer], None]] = {
    "503": unavailable,
    "cut body": cut,
    "wrong range": shifted,
    "short body": shortened,
}


def faulty(fault: Callable[[Answer], None], times: int) -> Callable[..., None]:
    """A fault of the first answers with tokens."""
    left = [times]

    def change(method: str, path: str, asked: dict[str, str], answer: Answer) -> None:
        if method == "GET" and path.endswith(".bin") and left[0]:
            left[0] -= 1
            fault(answer)

    return change


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_that_passes_changes_no_token(proxy, upload, local, name) -> None:
    here, there = IndexedDataset(local), IndexedDataset(upload(local))
    proxy.fault = faulty(FAULTS[name], 2)
    assert np.array_equal(there.read(500, 40_000), here.read(500, 40_000))
    assert len(proxy.gets()) == 3


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_that_stays_is_an_error_after_the_attempts_that_were_set(proxy, upload, local, name) -> None:
    there = IndexedDataset(upload(local))
    proxy.fault = faulty(FAULTS[name], 1000)
    with pytest.raises(DataError, match="4 attempts failed; the last: ") as error:
        there.read(500, 4000)
    assert len(proxy.gets()) == 4
    assert "local.bin" in str(error.value)
    assert "objects.retries and objects.timeout" in str(error.value)
    proxy.fault = None
    assert len(there.read(500, 4000)) == 4000, "after the outage it is read again"


def test_an_object_that_is_replaced_stops_the_run(server, proxy, upload, local) -> None:
    url = upload(local)
    there = IndexedDataset(url)
    there.read(0, 100)
    replaced(server, url, ".bin", bytes(bin_path(local).stat().st_size))
    with pytest.raises(DataError, match="it was replaced while it was being read"):
        there.read(100_000, 100)


def test_a_server_that_ignores_if_match_is_noticed_by_the_etag(server, proxy, upload, local) -> None:
    url = upload(local)
    there = IndexedDataset(url)

    def of_another(method: str, path: str, asked: dict[str, str], answer: Answer) -> None:
        answer.headers["ETag"] = '"another"'

    proxy.fault = of_another
    with pytest.raises(DataError, match="it was replaced while it was being read"):
        there.read(100_000, 100)


def test_an_object_that_is_removed_stops_the_run(server, proxy, upload, local) -> None:
    url = upload(local)
    there = IndexedDataset(url)
    client_of(server).delete_object(Bucket=BUCKET, Key=url.removeprefix(f"s3://{BUCKET}/") + ".bin")
    with pytest.raises(DataError, match="it was removed while it was being read"):
        there.read(100_000, 100)


def test_an_index_that_changes_while_it_is_copied_leaves_no_copy(server, proxy, upload, local, tmp_path) -> None:
    url = upload(local)
    source = objects.remote(idx_path(url))
    replaced(server, url, ".idx", b"another")
    with pytest.raises(DataError, match="it was replaced"):
        source.whole()
    assert not list((tmp_path / "cache").rglob("whole*"))


# Mistakes


def denied(method: str, path: str, asked: dict[str, str], answer: Answer) -> None:
    answer.status, answer.body = 403, b"<Error><Code>AccessDenied</Code></Error>"


def without_etag(method: str, path: str, asked: dict[str, str], answer: Answer) -> None:
    answer.headers = {name: value for name, value in answer.headers.items() if name.lower() != "etag"}


@pytest.mark.parametrize(
    ("url", "fault", "message"),
    [
        (f"s3://{BUCKET}/nothing", None, "there is no such file"),
        ("s3://corporaa/local", None, "there is no bucket 'corporaa'"),
        (f"s3://{BUCKET}", None, "it names no object"),
        (f"S3://{BUCKET}/local", None, "use s3://, gs://, az://, or a local path"),
        ("az://container/local", None, "set AZURE_STORAGE_ACCOUNT_NAME"),
        (None, denied, "access is denied"),
        (None, without_etag, "the server gives it no ETag"),
    ],
)
def test_a_mistake_is_named_with_its_place_and_a_fix(proxy, upload, local, url, fault, message) -> None:
    prefix = url or upload(local)
    proxy.fault = fault
    with pytest.raises(DataError) as error:
        IndexedDataset(prefix)
    assert message in str(error.value)
    assert prefix in str(error.value)
    (problem,) = error.value.problems
    assert problem.fix


def test_an_endpoint_that_is_down_is_named_with_the_sources_and_the_others_mistakes(
    proxy, make_config, monkeypatch
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free.getsockname()[1]}")
    config = make_config({"text": f"s3://{BUCKET}/text", "code": "nothing/here"}, objects={"retries": 1})
    with pytest.raises(DataError) as error:
        source_sizes(config)
    assert "2 attempts failed" in str(error.value)
    assert "AWS_ENDPOINT_URL" in str(error.value)
    assert len(error.value.problems) == 2


@pytest.mark.parametrize(
    ("host", "url", "fix"),
    [("169.254.169.254", "s3://b/k", "AWS_ACCESS_KEY_ID"), ("metadata.google.internal", "gs://b/k", "GOOGLE_")],
)
def test_missing_credentials_are_named_at_once(proxy, monkeypatch, host, url, fix) -> None:
    store = ObjectStore(url, Objects(retries=5))
    asked = []

    def no_metadata(*_: object, **__: object) -> None:
        # A machine without credentials asks its cloud's metadata server; machines in a cloud would have some.
        asked.append(1)
        raise store.library.exceptions.GenericError(f"Error performing PUT http://{host}/token: timed out")

    with pytest.raises(DataError, match="there are no credentials") as error:
        store.asked(no_metadata)
    assert fix in str(error.value)
    assert len(asked) == 1


def test_without_obstore_the_error_says_what_to_install(proxy, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(DataError, match="pip install obstore"):
        IndexedDataset(f"s3://{BUCKET}/local")


def test_the_section_of_the_config_is_read_and_refused(make_config, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = make_config({"text": "s3://b/text"}, objects={"cache": "near", "cache_bytes": "64 MiB", "timeout": "5s"})
    assert config.objects == Objects(cache=str(tmp_path / "near"), cache_bytes=1 << 26, timeout=5.0)
    with pytest.raises(ConfigError, match=r"'many' is not a size in bytes\s+write for example 100GB"):
        make_config({"text": "s3://b/text"}, objects={"cache_bytes": "many"})


# Commands and processes


def test_a_plan_is_made_on_a_login_node_with_the_numbers_of_local_files(
    proxy, upload, local, tmp_path, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    documents = []
    for path in (local, upload(local)):
        config = {
            "name": "run",
            "model": {"num_layers": 1, "hidden_size": 8, "ffn_hidden_size": 8, "num_attention_heads": 1}
            | {"vocab_size": 1000},
            "sources": {"text": {"path": path}},
            "objects": {"cache": str(tmp_path / "cache")},
            "phases": [{"name": "all", "samples": 40, "blend": {"text": 1}}
                       | {"learning_rate": {"schedule": "constant", "peak": 0.001}}],
            "train": {"seq_length": 8, "global_batch_size": 4},
        }  # fmt: skip
        Path("run.yaml").write_text(json.dumps(config))
        monkeypatch.setattr(sys, "argv", ["megacode", "plan", "run.yaml", "--json"])
        with pytest.raises(SystemExit) as end:
            cli.main()
        assert not end.value.code
        documents.append(json.loads(capsys.readouterr().out))
    assert documents[0] == documents[1]
    assert documents[0]["sources"]["text"]["identity"]


READER = """
import sys
from megacode.config.objects import Objects
from megacode.data import objects
from megacode.data.indexed import IndexedDataset
objects.use(Objects(cache=sys.argv[1]))
data = IndexedDataset(sys.argv[2])
total = sum(int(data.read(first, 1000).sum()) for first in range(0, data.tokens - 1000, 1000))
print(total)
"""


def test_two_processes_share_a_cache_and_fetch_each_block_once(proxy, upload, local, tmp_path) -> None:
    url, here = upload(local), IndexedDataset(local)
    proxy.delay = 0.02  # so that both want a block that is under way
    command = [sys.executable, "-c", READER, str(tmp_path / "cache"), url]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    expected = sum(int(here.read(first, 1000).sum()) for first in range(0, here.tokens - 1000, 1000))
    assert [int(one.communicate(timeout=HANG)[0]) for one in both] == [expected] * 2
    gets = proxy.gets()
    assert len(gets) >= 6
    assert len(set(gets)) == len(gets)
    assert len(proxy.gets(".idx")) == 1


# Every place that opens a source honours the config


def test_items_of_held_out_documents_are_made_by_the_objects_section_of_each_run(
    server, proxy, upload, make_config, huggingface, texts, tmp_path
) -> None:
    tokenizer = load_tokenizer(huggingface)
    prefix = str(tmp_path / "prose")
    with IndexedDatasetWriter(prefix, "uint16") as writer:
        for text in texts[:60]:
            ids = np.array(tokenizer.encode(text), dtype=np.uint16)
            writer.add(ids, np.array([len(ids)]))
    manifests.write(prefix, manifests.describe(prefix))
    url = upload(prefix)
    facts = {"tokenizer": huggingface.model_dump(), "validation": {"fraction": 0.3}}
    caches = [tmp_path / "one", tmp_path / "two"]
    runs = [make_config({"prose": url}, objects={"cache": str(cache)}, **facts) for cache in caches]
    build_items([runs[0]], "heldout", tmp_path / "items")
    assert list(caches[0].rglob("whole")), "the index went to the cache of the run"
    assert not list((tmp_path / "cache").rglob("whole")), "and not to the one of this process"
    build_items([make_config({"prose": prefix}, **facts)], "heldout", tmp_path / "local")
    (items,) = (tmp_path / "items").glob("*.jsonl")
    assert items.read_bytes() == (tmp_path / "local" / items.name).read_bytes()
    # What a score file says of its run's sources reads their manifests.
    run = RunDir(tmp_path / "run").create()
    run.config.write_text(dump_config(runs[1]))
    assert decontamination(run.path, {"task": None})["known"]
    assert caches[1].exists()

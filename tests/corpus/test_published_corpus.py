"""Recipes read from object storage and publish there: the bytes of a local corpus, the manifest last, resumed."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from megacode.base.errors import ConfigError, DataError
from megacode.corpus.engine import run_recipe
from megacode.corpus.estimate import plan_recipe
from megacode.corpus.made_from import recipes_of
from megacode.corpus.recipe import Recipe, read_recipe
from megacode.data import objects
from megacode.data.inputs import find_inputs
from megacode.data.machine_files import Shard
from megacode.data.preprocess import PreprocessJob, preprocess
from megacode.data.publishing import Publication, local_place
from tests.data.conftest import corpus, huggingface, texts
from tests.data.object_storage import BUCKET, client_of, keys_below, proxy, server, upload_tree

__all__ = ["corpus", "huggingface", "proxy", "server", "texts"]  # fixtures


@pytest.fixture
def there(server: tuple[str, int], proxy: Any, inputs: Path, tmp_path: Path) -> str:
    """The inputs in object storage."""
    return upload_tree(server, inputs, f"{tmp_path.name}/raw")


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"s3://{BUCKET}/{tmp_path.name}/corpora/planted"


@pytest.fixture
def remote(recipe: Callable[..., Recipe], there: str, url: str, tmp_path: Path) -> Callable[..., Recipe]:
    """Returns the planted recipe with inputs and output in object storage."""

    def made(**changes: Any) -> Recipe:
        document = recipe("unused").model_dump(mode="json", exclude_defaults=True)
        document["sources"]["first"]["inputs"] = [f"{there}/0.jsonl"]
        document["sources"]["second"]["inputs"] = [f"{there}/[1-8].jsonl"]
        changed = {"output": url, "work_dir": str(tmp_path / "work dir"), **changes}
        return read_recipe({**document, **changed}, "recipe.yaml")

    return made


def published(server: tuple[str, int], url: str) -> dict[str, bytes]:
    return keys_below(server, url.removeprefix(f"s3://{BUCKET}/"))


def shards_in(output: Path) -> dict[str, bytes]:
    """The files of documents of a local corpus, by how they are named in object storage."""
    root = output / "corpus"
    return {f"/{path.relative_to(root)}": path.read_bytes() for path in sorted(root.glob("*/*.jsonl.zst"))}


def in_shards(recipe: Recipe, count: int) -> Any:
    run_recipe(recipe, "test", shard=Shard(0, count), only="map")
    for index in range(1, count):
        run_recipe(recipe, "test", shard=Shard(index, count), only="map")
    run_recipe(recipe, "test", only="reduce")
    return [run_recipe(recipe, "test", task=Shard(index, 2), only="apply") for index in range(2)][-1]


@pytest.mark.parametrize("count", [1, 3])
def test_a_published_corpus_has_the_bytes_of_the_local_one(server, recipe, remote, url, tmp_path, count) -> None:
    if count == 1:
        local, manifest = run_recipe(recipe("here"), "test"), run_recipe(remote(), "test")
    else:
        local, manifest = in_shards(recipe("here"), count), in_shards(remote(), count)
    found = published(server, url)
    expected = shards_in(tmp_path / "here")
    assert {path: raw for path, raw in found.items() if path.endswith(".zst")} == expected
    assert len(expected) > count
    assert set(found) - set(expected) == {"/manifest.json", "/card.html"}
    assert json.loads(found["/manifest.json"]) == manifest
    for key in ("outputs", "sources", "duplicates", "contamination", "funnel"):
        assert manifest[key] == local[key], key
    assert all(item["hash"].startswith("ETag ") for item in manifest["inputs"])
    work = tmp_path / "work dir" / url.replace("://", "/")
    assert sorted(path.name for path in work.iterdir()) == ["benchmarks.jsonl", "facts.json"]
    # As an input it is read as the local one is: its sources, without held-out documents, card and manifest.
    read = [str(path).removeprefix(url) for path in find_inputs([url])]
    assert read == [f"/{path.relative_to(tmp_path / 'here/corpus')}" for path in find_inputs([str(tmp_path / "here")])]
    assert any(".held_out/" in path for path in expected)


def test_a_second_call_does_nothing_and_neither_does_one_without_the_work_directory(
    server, proxy, remote, url, tmp_path
) -> None:
    made = in_shards(remote(), 3)
    for work in ("work dir", "of another machine"):
        proxy.requests.clear()
        recipe = remote(work_dir=str(tmp_path / work))
        assert run_recipe(recipe, "again") == made
        assert not [path for method, path, _ in proxy.requests if method == "PUT"]
    assert plan_recipe(remote())["done"]["complete"]


def test_the_manifest_comes_after_the_card_and_that_after_the_shards(proxy, remote, url) -> None:
    run_recipe(remote(), "test")
    name = url.removeprefix("s3:/")
    sent = [path.removeprefix(name) for method, path, _ in proxy.requests if method == "PUT"]
    assert sent[0] == ".uploading"
    assert sent[-2:] == ["/card.html", "/manifest.json"]
    assert all(path.endswith(".jsonl.zst") for path in sent[1:-2])


@pytest.mark.parametrize("ending", ["0000_of_0001.jsonl.zst", "card.html", "manifest.json"])
def test_an_upload_that_failed_is_resumed(server, proxy, recipe, remote, url, tmp_path, ending) -> None:
    proxy.refuse = lambda method, path: 503 if method == "PUT" and path.endswith(ending) else None
    with pytest.raises(DataError, match="failed"):
        run_recipe(remote(), "test")
    assert "/manifest.json" not in published(server, url)
    assert ".uploading" in published(server, url)
    with pytest.raises(ConfigError, match="is being made by process"):
        run_recipe(remote(work_dir=str(tmp_path / "of another machine")), "test")
    proxy.refuse = None
    proxy.requests.clear()
    manifest = run_recipe(remote(), "test")
    sent = [path for method, path, _ in proxy.requests if method == "PUT"]
    assert sent
    assert ending in sent[0]
    run_recipe(recipe("here"), "test")
    assert {p: raw for p, raw in published(server, url).items() if p.endswith("zst")} == shards_in(tmp_path / "here")
    assert json.loads(published(server, url)["/manifest.json"]) == manifest


def test_a_call_that_was_killed_after_its_upload_is_finished_by_the_next(
    server, proxy, remote, url, tmp_path, monkeypatch
) -> None:
    def killed(self: Publication) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Publication, "finish", killed)
        with pytest.raises(KeyboardInterrupt):
            run_recipe(remote(), "test")
    assert {".uploading", "/manifest.json"} <= set(published(server, url))
    run_recipe(remote(), "test")
    assert ".uploading" not in published(server, url)
    work = local_place(url, tmp_path / "work dir")
    assert not [path for path in work.iterdir() if path.name in ("map", "reduce", "apply", "corpus", "upload.jsonl")]


def test_a_tokenizer_that_comes_after_the_upload_is_not_ignored_silently(
    server, proxy, remote, url, huggingface, caplog
) -> None:
    made = run_recipe(remote(), "test")
    assert run_recipe(remote(tokenizer=huggingface.path), "test") == made
    assert "its tokens are not counted with" in caplog.text


def test_a_published_recipe_is_found_by_the_urls_of_its_shards(proxy, remote, url, caplog) -> None:
    made = run_recipe(remote(), "test")
    shards = [f"{url}/{item['path']}" for item in made["outputs"] if item["source"] == "first"]
    assert [list(one["funnel"]) for one in recipes_of(shards)] == [["first"]]
    assert recipes_of([f"{url}/raw.jsonl", f"s3://{BUCKET}/raw.jsonl"]) == []
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    proxy.refuse = lambda method, path: 403
    objects.forget()
    assert recipes_of(shards) == []
    assert "is unknown" in caplog.text


@pytest.mark.parametrize("bucket", ["s3://bucket", "s3://bucket/"])
def test_a_whole_bucket_is_no_place_for_a_corpus(recipe, bucket) -> None:
    with pytest.raises(ConfigError, match="is a whole bucket"):
        run_recipe(recipe("unused").model_copy(update={"output": bucket}), "test")


def test_another_corpus_is_refused_and_replaced_as_a_whole(server, proxy, remote, url, tmp_path) -> None:
    in_shards(remote(), 3)
    before = published(server, url)
    with pytest.raises(ConfigError, match="already exists"):
        run_recipe(remote(seed=1, work_dir=str(tmp_path / "of another machine")), "test")
    with pytest.raises(ConfigError, match="the recipe has changed: seed was 0, now 1"):
        run_recipe(remote(seed=1), "test")
    assert published(server, url) == before
    run_recipe(remote(seed=1, work_dir=str(tmp_path / "new")), "test", shard=None, overwrite=True)
    after = published(server, url)
    assert json.loads(after["/manifest.json"])["recipe"]["seed"] == 1
    listed = {f"/{item['path']}" for item in json.loads(after["/manifest.json"])["outputs"]}
    assert set(after) == {*listed, "/manifest.json", "/card.html"}, "no shard of the old corpus is left"


def test_objects_that_no_recipe_wrote_are_left_alone(server, proxy, remote, url) -> None:
    key = url.removeprefix(f"s3://{BUCKET}/")
    client_of(server).put_object(Bucket=BUCKET, Key=f"{key}/notes.txt", Body=b"mine")
    for overwrite in (False, True):
        with pytest.raises(ConfigError, match="no recipe made this") as error:
            run_recipe(remote(), "test", overwrite=overwrite)
        assert error.value.problems[0].where == f"{url}/notes.txt"
    assert published(server, url) == {"/notes.txt": b"mine"}


def test_an_input_that_changes_between_passes_stops_the_recipe(server, there, remote, tmp_path) -> None:
    run_recipe(remote(), "test", shard=Shard(0, 3), only="map")
    client = client_of(server)
    body = client.get_object(Bucket=BUCKET, Key=f"{tmp_path.name}/raw/1.jsonl")["Body"].read()
    client.put_object(Bucket=BUCKET, Key=f"{tmp_path.name}/raw/1.jsonl", Body=body.replace(b"w1", b"w2"))
    objects.forget()
    with pytest.raises(ConfigError, match=r"the input s3://\S+/raw/1.jsonl has changed"):
        run_recipe(remote(), "test", shard=Shard(1, 3), only="map")


def test_an_input_that_changes_after_it_was_identified_is_never_read(
    server, proxy, there, remote, tmp_path, monkeypatch
) -> None:
    from megacode.corpus import engine

    def late(*arguments: Any) -> None:
        client_of(server).put_object(Bucket=BUCKET, Key=f"{tmp_path.name}/raw/1.jsonl", Body=b'{"text": "other"}\n')
        original(*arguments)

    original = engine.settle
    monkeypatch.setattr(engine, "settle", late)
    with pytest.raises(DataError, match="it was replaced while it was being read"):
        run_recipe(remote(), "test")


def test_two_processes_read_the_version_that_was_identified(server, recipe, remote, url, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("megacode.corpus.work.SHARD_BYTES", 16 << 10)
    run_recipe(remote(), "test", processes=2)
    run_recipe(recipe("here"), "test")
    assert {p: raw for p, raw in published(server, url).items() if p.endswith("zst")} == shards_in(tmp_path / "here")


def test_a_corpus_cannot_be_its_own_input(proxy, remote, url) -> None:
    run_recipe(remote(), "test")
    sources = {"again": {"kind": "text", "inputs": [f"{url}/first/"]}}
    with pytest.raises(ConfigError, match="this input is a result of the recipe itself"):
        run_recipe(remote(sources=sources, decontaminate=None), "test", overwrite=True)


def test_without_permission_to_write_no_document_is_read(proxy, there, remote, url, tmp_path) -> None:
    proxy.refuse = lambda method, path: 403 if method == "PUT" else None
    with pytest.raises(DataError, match="access is denied"):
        run_recipe(remote(), "test")
    assert set(proxy.gets(".jsonl")) <= {"bytes=0-0"}, "only to see whether it is the bucket that is missing"


def test_the_command_writes_where_its_option_says_and_its_data_set_is_decontaminated(
    server, call, remote, url, tmp_path, huggingface, capsys, monkeypatch
) -> None:
    document = remote().model_dump(mode="json", exclude_defaults=True) | {"output": "not here"}
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(document))
    monkeypatch.chdir(tmp_path)
    assert call("data", "corpus", str(path), "--output", f"{url}/", "--work-dir", "my work") == 0
    assert f"{url}/card.html" in capsys.readouterr().out.replace("\n", "")
    assert (tmp_path / "my work").is_dir()
    job = PreprocessJob((f"{url}/first/*.jsonl.zst",), f"{url}-tokens", huggingface, id_key="id", append_eod=True)
    made = preprocess(job)["text"]
    assert made.decontaminated[0]["suite"] == "items.jsonl"
    assert {path.parent.name for path in find_inputs([url])} == {"first", "second"}, "nothing held out, no manifest"

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from megacode.base.errors import ConfigError, DataError
from megacode.config.config_file import validate
from megacode.config.run import RunConfig
from megacode.data.heldout_items import DOCUMENTS, build_items, heldout_documents
from megacode.data.indexed import IndexedDatasetWriter
from megacode.data.source_stream import SourceStream


class Letters:
    """One id a byte; id 0 ends a document."""

    eod = 0

    def decode(self, ids: list[int]) -> str:
        return bytes(ids).decode()


@pytest.fixture
def texts() -> list[str]:
    return [f"document {i} " + "é" * (i % 7) + "x" * (20 + i) for i in range(40)]


@pytest.fixture
def prefix(texts, tmp_path) -> str:
    prefix = str(tmp_path / "set")
    with IndexedDatasetWriter(prefix, np.uint16) as writer:
        for text in texts:
            ids = np.array([*text.encode(), 0], dtype=np.uint16)
            writer.add(ids, np.array([len(ids)]))
    return prefix


def heldout_texts(*arguments, **bounds) -> list[str]:
    return [text for _, text in heldout_documents(*arguments, **bounds)]


def test_heldout_documents_are_exactly_those_that_training_does_not_read(prefix, texts):
    found = heldout_texts("letters", prefix, 0.1, Letters())
    assert 0 < len(found) < 10
    assert texts[-len(found) :] == found
    stream = SourceStream("letters", prefix, 0.1, seq_length=8)
    assert stream.train_tokens == sum(len(text.encode()) + 1 for text in texts[: -len(found)])


def test_a_limit_takes_documents_at_even_distances(prefix):
    found = heldout_texts("letters", prefix, 0.5, Letters())
    assert len(found) > 12
    assert heldout_texts("letters", prefix, 0.5, Letters(), limit=2) == [found[0], found[len(found) // 2]]
    assert heldout_texts("letters", prefix, 0.5, Letters(), limit=99) == found


def test_nothing_held_out_is_an_error_that_says_what_to_change(prefix):
    with pytest.raises(
        DataError, match=r"source letters .*validation.fraction 0.* no document.*\n.*increase validation.fraction"
    ):
        heldout_texts("letters", prefix, 0.0, Letters())


def test_a_long_document_is_cut_and_no_half_character_stays(tmp_path):
    class Lenient(Letters):
        def decode(self, ids: list[int]) -> str:
            return bytes(ids).decode(errors="replace")

    prefix = str(tmp_path / "long")
    with IndexedDatasetWriter(prefix, np.uint16) as writer:
        for text in ("x" * 300, "aé" * 20):
            ids = np.array([*text.encode(), 0], dtype=np.uint16)
            writer.add(ids, np.array([len(ids)]))
    (whole,) = heldout_texts("long", prefix, 0.1, Lenient())
    assert whole == "aé" * 20
    assert heldout_texts("long", prefix, 0.1, Lenient(), longest=5) == ["aéa"]
    assert heldout_texts("long", prefix, 0.1, Lenient(), longest=6) == ["aéaé"]
    assert heldout_texts("long", prefix, 0.1, Lenient(), longest=61) == [whole]


def words(number: int) -> str:
    return " ".join(
        f"document {number} says that {word} number {number * 7 + i} is old" for i, word in enumerate("abcdefgh")
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Two data sets with a tokenizer of bytes, as `text` and `code`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    place = tmp_path_factory.mktemp("data")
    signs = ["<|endoftext|>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE(vocab={sign: i for i, sign in enumerate(signs)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>"])
    (place / "tokenizer").mkdir()
    tokenizer.save(str(place / "tokenizer/tokenizer.json"))
    for name, first in (("text", 0), ("code", 1000), ("code-2", 2000)):
        with IndexedDatasetWriter(str(place / name), np.uint16) as writer:
            for number in range(first, first + 400):
                ids = np.array([*tokenizer.encode(words(number)).ids, 0], dtype=np.uint16)
                writer.add(ids, np.array([len(ids)]))
    return place


def config(data: Path, fraction: float = 0.6, **sources: str) -> RunConfig:
    blend = {name: 1 / len(sources) for name in sources}
    document = {
        "name": "x", "seed": 3,
        "model": {"num_layers": 1, "hidden_size": 32, "num_attention_heads": 2, "ffn_hidden_size": 64},
        "tokenizer": {"kind": "huggingface", "path": str(data / "tokenizer")},
        "sources": {name: {"path": str(data / prefix)} for name, prefix in sources.items()},
        "validation": {"fraction": fraction},
        "phases": [{"name": "one", "tokens": 1000, "blend": blend,
                    "learning_rate": {"schedule": "constant", "peak": 1e-3}}],
        "train": {"seq_length": 64, "global_batch_size": 4, "micro_batch_size": 1},
    }  # fmt: skip
    return validate(document, "test.yaml")


def items(place: Path) -> dict[str, list[str]]:
    tasks = json.loads((place / "items.json").read_text())["tasks"]
    return {
        name: [json.loads(line)["text"] for line in (place / task["file"]).read_text().splitlines()]
        for name, task in tasks.items()
    }


def test_the_items_of_a_study_are_those_of_all_its_sources_and_the_same_for_any_order_of_runs(data, tmp_path):
    one, two = config(data, text="text"), config(data, 0.55, text="text", code="code")
    build_items([one, two], "heldout", tmp_path / "a")
    found = items(tmp_path / "a")
    assert list(found) == ["heldout_code", "heldout_text"]
    assert [len(texts) for texts in found.values()] == [DOCUMENTS, DOCUMENTS]
    # Held out in both: after the cut of the smaller fraction.
    stream = SourceStream("text", str(data / "text"), 0.55, seq_length=64)
    held_out = [words(number) for number in range(stream.train_documents, 400)]
    assert set(found["heldout_text"]) < set(held_out)
    assert found["heldout_text"][0] == held_out[0]
    build_items([two, one], "heldout", tmp_path / "b")
    assert items(tmp_path / "b") == found


def test_items_are_made_again_only_if_the_documents_have_changed(data, tmp_path):
    build_items([config(data, text="text", code="code")], "heldout", tmp_path)
    before = items(tmp_path)
    (tmp_path / "heldout_text.jsonl").write_text('{"text": "mark"}\n')
    build_items([config(data, code="code"), config(data, text="text")], "heldout", tmp_path)
    assert items(tmp_path)["heldout_text"] == ["mark"], "kept as they are"
    (tmp_path / "heldout_code.jsonl").unlink()
    build_items([config(data, text="text", code="code")], "heldout", tmp_path)
    assert items(tmp_path) == before
    build_items([config(data, text="text")], "heldout", tmp_path)
    assert items(tmp_path) == {"heldout_text": before["heldout_text"]}
    assert len(list(tmp_path.glob("*.jsonl"))) == 1


def test_two_data_sets_of_one_name_both_count_and_a_name_may_hold_a_slash(data, tmp_path):
    runs = [config(data, **{"web/code": prefix}) for prefix in ("code", "code-2")]
    build_items([*runs, runs[0]], "heldout", tmp_path)
    found = items(tmp_path)
    assert list(found) == ["heldout_web/code", "heldout_web/code#2"]
    assert not set(found["heldout_web/code"]) & set(found["heldout_web/code#2"])


def test_the_demo_suites_items_are_shared_between_arms_too(data, tmp_path):
    build_items([config(data, text="text", web="code-2"), config(data, code="code")], "demo", tmp_path)
    tasks = json.loads((tmp_path / "items.json").read_text())["tasks"]
    assert list(tasks) == [
        "demo_endings_code", "demo_bits_code", "demo_endings_text", "demo_bits_text", "demo_next_word_code"
    ]  # fmt: skip


def test_a_study_that_no_items_can_be_made_for_says_why(data, tmp_path):
    with pytest.raises(ConfigError, match="the demo suite needs a source named text, code, markup"):
        build_items([config(data, web="text")], "demo", tmp_path)
    without = config(data, text="text").model_copy(update={"tokenizer": None})
    with pytest.raises(ConfigError, match="'heldout' are made with the run's tokenizer, and it has none"):
        build_items([without], "heldout", tmp_path)
    with pytest.raises(DataError, match="holds out no document"):
        build_items([config(data, 0.0, text="text")], "heldout", tmp_path)
    assert not list(tmp_path.glob("*.jsonl"))


@pytest.mark.parametrize(("suite", "source"), [("heldout", "web"), ("demo", "code")])
def test_where_training_holds_all_of_it_the_items_overlap_and_a_warning_says_so(data, tmp_path, caplog, suite, source):
    with IndexedDatasetWriter(str(tmp_path / "copies"), np.uint16) as writer:
        for number in [*range(2000, 2100)] * 3:
            ids = np.array([*ids_of(data, words(number) + "\n"), 0], dtype=np.uint16)
            writer.add(ids, np.array([len(ids)]))
    build_items([config(data, 0.3, **{source: str(tmp_path / "copies")})], suite, tmp_path / "items")
    tasks = json.loads((tmp_path / "items/items.json").read_text())["tasks"]
    assert all(task["items"] >= 30 for task in tasks.values())
    assert f"{source}: most held-out" in caplog.text
    assert "are in the training data too" in caplog.text


def ids_of(data: Path, text: str) -> list[int]:
    from tokenizers import Tokenizer

    return list(Tokenizer.from_file(str(data / "tokenizer/tokenizer.json")).encode(text).ids)


def test_an_item_of_heldout_is_a_documents_longest_stretch_that_training_does_not_hold(data, tmp_path):
    shared = "this notice is in every document of the set, and says nothing about what else is in it\n"
    own = ["\n".join(f"{number} {words(number + line)}" for line in (0, 5000, 9000)) + "\n" for number in range(60)]
    with IndexedDatasetWriter(str(tmp_path / "notices"), np.uint16) as writer:
        for text in own:
            ids = np.array([*ids_of(data, shared + text), 0], dtype=np.uint16)
            writer.add(ids, np.array([len(ids)]))
    build_items([config(data, 0.3, web=str(tmp_path / "notices"))], "heldout", tmp_path / "items")
    found = items(tmp_path / "items")["heldout_web"]
    assert len(found) >= 10
    assert not any("notice" in text for text in found)
    assert all(any(text in whole for whole in own) for text in found)

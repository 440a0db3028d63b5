"""Control tokens in documents: single ids where they stand alone, text where a text holds the same characters."""

from __future__ import annotations

import json
from itertools import chain, pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megacode.base.errors import DataError
from megacode.config.model import TokenizerConfig
from megacode.data.indexed import IndexedDataset
from megacode.data.preprocess import PreprocessJob, preprocess
from megacode.data.texts import ControlToken, Texts, parts_of
from megacode.data.tokenizer import Tokenizer, load_tokenizer

NAMES = ("<commit_before>", "<commit_after>")


@pytest.fixture(scope="module")
def config(huggingface, tmp_path_factory: pytest.TempPathFactory) -> TokenizerConfig:
    """A tokenizer with two control tokens, and an added token that texts do become."""
    document = json.loads((Path(huggingface.path) / "tokenizer.json").read_text())
    first = load_tokenizer(huggingface).vocab_size
    for number, (name, special) in enumerate([(NAMES[0], True), (NAMES[1], True), ("<word>", False)]):
        flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        document["added_tokens"].append({"id": first + number, "content": name, "special": special, **flags})
    place = tmp_path_factory.mktemp("controls")
    (place / "tokenizer.json").write_text(json.dumps(document))
    return TokenizerConfig(kind="huggingface", path=str(place))


@pytest.fixture(scope="module")
def tokenizer(config: TokenizerConfig) -> Tokenizer:
    return load_tokenizer(config)


def encoded(value: object, tokenizer: Tokenizer) -> list[list[int]]:
    """Return the sequences of one document."""
    texts = Texts.of([parts_of(value, "text")])
    flat, offsets = texts.joined(*tokenizer.encode_batch(texts.texts), tokenizer.special_ids)
    return [flat[first:last].tolist() for first, last in pairwise(offsets)]


WORDS = st.sampled_from([*NAMES, "<|endoftext|>", "def f():\n", " ", "", "é", "<commit_", "before>"])
TEXTS = st.lists(WORDS, max_size=4).map("".join)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(parts=st.lists(TEXTS | st.sampled_from(NAMES).map(ControlToken), max_size=6))
def test_texts_stay_text_and_objects_become_one_id(parts, tokenizer) -> None:
    value = [part if isinstance(part, str) else {"token": part.name} for part in parts]
    controls = [part for part in parts if isinstance(part, ControlToken)]
    found = encoded(value, tokenizer)
    expected = [
        tokenizer.encode(part) if isinstance(part, str) else [tokenizer.special_ids[part.name]] for part in parts
    ]
    # One sequence with control tokens; without any, each text is a sequence.
    assert found == ([[*chain(*expected)]] if controls else expected)
    flat = [*chain(*found)]
    specials = set(tokenizer.special_ids.values())
    assert [token for token in flat if token in specials] == [tokenizer.special_ids[c.name] for c in controls]
    names = {number: name for name, number in tokenizer.special_ids.items()}
    said = "".join(names[t[0]] if len(t) == 1 and t[0] in names else tokenizer.decode(t) for t in expected if t)
    assert said == "".join(part if isinstance(part, str) else part.name for part in parts)


def write(path: Path, *values: object) -> str:
    path.write_text("".join(json.dumps({"text": value}) + "\n" for value in values))
    return str(path)


def test_a_document_with_control_tokens_is_one_sequence(config, tokenizer, tmp_path) -> None:
    mixed = ["x <commit_before>", {"token": "<commit_before>"}, "old", {"token": "<commit_after>"}, "new"]
    source = write(tmp_path / "in.jsonl", "plain", mixed, ["one.", "two."], [{"token": "<commit_after>"}])
    made = preprocess(PreprocessJob((source,), str(tmp_path / "out"), config, append_eod=True))["text"]
    data = IndexedDataset(tmp_path / "out_text_document")
    assert (made.documents, data.sequences) == (4, 5)
    first, last = data.document_bounds(1)
    before, after = (tokenizer.special_ids[name] for name in NAMES)
    texts = [tokenizer.encode(text) for text in ("x <commit_before>", "old", "new")]
    assert data.read(first, last + 1 - first).tolist() == [
        *texts[0],
        before,
        *texts[1],
        after,
        *texts[2],
        tokenizer.eod,
    ]
    first, last = data.document_bounds(3)
    assert data.read(first, last + 1 - first).tolist() == [after, tokenizer.eod]


@pytest.mark.parametrize("name", ["<commit_message>", "<word>", "def"])
@pytest.mark.parametrize("before", [1, 40_000])
def test_a_token_that_the_tokenizer_does_not_have_is_an_error(name, before, config, tokenizer, tmp_path) -> None:
    # Far behind the head of the file, which is looked at before the work starts, it is found as well.
    source = write(tmp_path / "in.jsonl", *["some more words of text"] * before, [{"token": name}, "x"])
    job = PreprocessJob((source,), str(tmp_path / "out"), config, skip_bad_lines=True)
    with pytest.raises(DataError, match=f"the control token '{name}', which is not a special token") as caught:
        preprocess(job)
    assert caught.value.exit_code == 2
    assert caught.value.problems[0].where == source
    assert str(tokenizer.path) in caught.value.problems[0].fix
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


@pytest.mark.parametrize(
    "item", [{"token": 3}, {"token": ""}, {"tokens": "<commit_before>"}, {"token": "<commit_before>", "x": 1}, {}]
)
def test_another_object_in_a_list_is_a_bad_line(item, config, tmp_path) -> None:
    source = write(tmp_path / "in.jsonl", "x", ["a", item])
    with pytest.raises(DataError, match="the list under the key 'text' holds") as caught:
        preprocess(PreprocessJob((source,), str(tmp_path / "out"), config))
    assert caught.value.problems[0].where == f"{source}:2"


def test_control_pieces_of_sentencepiece_work_too(sentencepiece, tmp_path) -> None:
    tokenizer = load_tokenizer(sentencepiece)
    name = next(iter(tokenizer.special_ids))
    source = write(tmp_path / "in.jsonl", [name, {"token": name}])
    preprocess(PreprocessJob((source,), str(tmp_path / "out"), sentencepiece))
    data = IndexedDataset(tmp_path / "out_text_document")
    assert data.read(0, data.tokens).tolist() == [*tokenizer.encode(name), tokenizer.special_ids[name]]
    assert data.read(0, data.tokens).tolist().count(tokenizer.special_ids[name]) == 1

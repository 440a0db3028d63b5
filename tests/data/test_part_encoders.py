"""Encoding only the words at the cuts gives what encoding whole parts gives, wherever that is used."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as Library

from megacode.data.part_encoders import LocalParts, WholeParts, has_proven_words, part_encoder
from megacode.data.tokenizer import HuggingFaceTokenizer, load_tokenizer

LLAMA = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
HARD = [
    "\u65e5\u672c\u8a9e\u306e\u30c6\u30ad\u30b9\u30c8\u3001\u6f22\u5b57 and caf\u00e9 \U0001f469\u200d\U0001f4bb text\n"
    * 9,
    "e\u0301 cafe\u0301 x\u0301\u0301 " * 25,
    "'s 'll don't I'M x's\n\n   \t foo\r\n\r\n    bar 1234567 3.14 " * 9,
    "a" * 90 + " " * 40 + "\n" * 9 + "b;" * 40 + "\u00a0\u2003\u3000x \x0by",
    "no white space at all".replace(" ", "") * 12,
]
STEPS = {
    "llama": [pre_tokenizers.Split(Regex(LLAMA), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)],
    "gpt2": [pre_tokenizers.ByteLevel(add_prefix_space=False)],
    "starcoder": [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)],
}


@pytest.fixture(scope="module")
def tokenizers(texts, huggingface, tmp_path_factory):
    """Tokenizers by family: megacode's own, and three that split words in other ways, one of them with NFC."""
    found = {"own": load_tokenizer(huggingface)}
    for name, steps in STEPS.items():
        library = Library(models.BPE())
        library.pre_tokenizer, library.decoder = pre_tokenizers.Sequence(steps), decoders.ByteLevel()
        if name == "llama":
            library.normalizer = normalizers.NFC()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=700, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
        )
        library.train_from_iterator(texts[:30], trainer)
        library.add_tokens(["    ", "<tool>"])  # not special, as in Qwen and Phi
        path = tmp_path_factory.mktemp(name) / "tokenizer.json"
        library.save(str(path))
        found[name] = HuggingFaceTokenizer(path)
    return found


def cut(random, count):
    return sorted(random.integers(0, count + 1, 2).tolist())


@pytest.mark.parametrize("name", ["own", *STEPS])
def test_parts_of_real_text_are_those_of_encoding_them_whole(name, tokenizers, texts):
    tokenizer, random = tokenizers[name], np.random.default_rng(7)
    local, whole = part_encoder(tokenizer), WholeParts(tokenizer)
    assert isinstance(local, LocalParts)
    compared = kept = 0
    for text in [*texts[::3], *HARD]:
        tokens = np.array(tokenizer.encode(text), dtype=np.uint16)
        for turn in range(4):
            first, last = cut(random, len(tokens))
            begins, ends = turn % 2 == 0, turn < 2
            piece = tokens[0 if begins else first : len(tokens) if ends else last]
            if len(piece) < 8:
                continue
            one, other = (encoder.divided(piece, begins=begins, ends=ends) for encoder in (local, whole))
            assert (one.head, one.characters) == (other.head, other.characters)
            places = cut(random, one.characters)
            assert one.parts(*places) == other.parts(*places), (name, text[:40], places)
            compared += 1
            kept += len(one._borders) > 2
    assert compared > 100
    assert kept > 70  # most of them keep stored tokens, so that this compares two ways


WRITTEN = st.text(st.sampled_from("abXY  \n\t'sr1.;(\u00e9\u4e2d\u0301\U0001f4bb\u00a0"), min_size=8, max_size=80)


@given(WRITTEN, st.data())
def test_parts_of_any_text_are_those_of_encoding_them_whole(tokenizers, text, data):
    for name in ("own", "gpt2", "starcoder"):
        tokenizer = tokenizers[name]
        low, high = sorted(data.draw(st.tuples(*[st.integers(0, len(text))] * 2), label="cuts"))
        divided = part_encoder(tokenizer).divided(np.array(tokenizer.encode(text)), begins=True, ends=True)
        assert divided.characters == len(text)
        parts = divided.parts(low, high)
        assert list(parts) == tokenizer.encode_each([text[:low], text[low:high], text[high:]])
        assert "".join(map(tokenizer.decode, parts)) == text


@given(WRITTEN, st.data())
def test_a_piece_that_begins_or_ends_inside_a_character_leaves_it_out(tokenizers, text, data):
    tokenizer = tokenizers["gpt2"]
    tokens = np.array(tokenizer.encode("\u4e2d" + text + "\U0001f4bb"))
    first = data.draw(st.integers(0, 2))
    last = len(tokens) - data.draw(st.integers(0, 3))
    for encoder in (part_encoder(tokenizer), WholeParts(tokenizer)):
        divided = encoder.divided(tokens[first:last], begins=False, ends=False)
        said = tokenizer.decode([token for part in divided.parts(2, 4) for token in part])
        assert "\ufffd" not in said
        assert text in said
        assert tokens[first : first + len(divided.head)].tolist() == divided.head


def test_other_tokenizers_are_encoded_whole(tokenizers, sentencepiece):
    document = tokenizers["starcoder"].document
    assert has_proven_words(document)
    changes = [
        ("normalizer", {"type": "NFKC"}),
        ("pre_tokenizer", None),
        ("pre_tokenizer", {"type": "ByteLevel", "add_prefix_space": True}),
        ("pre_tokenizer", {"type": "Split", "pattern": {"Regex": r"(?<=a) +"}, "behavior": "Isolated"}),
        ("model", {**document["model"], "dropout": 0.1}),
        ("model", {**document["model"], "end_of_word_suffix": "</w>"}),
        ("added_tokens", [{"content": "end of", "special": False}]),
        ("added_tokens", [{"content": "<x>", "special": False, "rstrip": True}]),
        ("decoder", {"type": "Metaspace"}),
    ]
    for key, value in changes:
        assert not has_proven_words({**copy.deepcopy(document), key: value}), (key, value)
    assert json.dumps(document) == json.dumps(tokenizers["starcoder"].document)
    tokenizer = load_tokenizer(sentencepiece)
    encoder = part_encoder(tokenizer)
    assert isinstance(encoder, WholeParts)
    text = "def f(x):\n    return x  # \u4e2d\u6587 caf\u00e9\n"
    divided = encoder.divided(np.array(tokenizer.encode(text)), begins=True, ends=True)
    assert "".join(map(tokenizer.decode, divided.parts(5, 31))) == text
    assert encoder.control[tokenizer.eod]


def test_text_that_another_tool_stored_damaged_is_not_divided(tokenizers):
    tokenizer = tokenizers["gpt2"]
    tokens = np.array(
        [*tokenizer.encode("one two "), *tokenizer.encode("\u4e2d")[:1], *tokenizer.encode("x three four")]
    )
    assert WholeParts(tokenizer).divided(tokens, begins=True, ends=True) is None
    with pytest.raises(UnicodeDecodeError):
        part_encoder(tokenizer).divided(tokens, begins=True, ends=True).parts(2, 9)

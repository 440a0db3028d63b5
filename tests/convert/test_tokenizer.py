"""Exported tokenizers give the ids of the run's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import sentencepiece
import tokenizers
from transformers import AutoTokenizer

from megacode.base.errors import DataError
from megacode.config.model import TokenizerConfig
from megacode.convert.texts import ProofText
from megacode.convert.tokenizer import export_tokenizer
from megacode.convert.verify import check_tokenizer
from megacode.data.fim_tokens import find_sentinels
from megacode.data.tokenizer import Tokenizer, load_tokenizer

HARD = [
    "",
    "  two spaces before, three after   ",
    "def f(x):\n\treturn  x\r\n        # 1234567890\n\n\n",
    "caf\u00e9 \u65e5\u672c\u8a9e \U0001f469\u200d\U0001f4bb \u2581 \u2581\u2581x \u00a0\u3000",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaa ============ ((((((((",
    "</s> <s> <unk> <0x0A><0xFF>",
]


def sentencepiece_of(path: Path, corpus: list[str], **settings: object) -> Tokenizer:
    (path / "corpus.txt").write_text("\n".join(corpus), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(path / "corpus.txt"), model_prefix=str(path / "made"), vocab_size=500, minloglevel=2, **settings
    )
    return load_tokenizer(TokenizerConfig(kind="sentencepiece", path=str(path / "made.model")))


def export(tokenizer: Tokenizer, out: Path, model_type: str = "llama") -> None:
    out.mkdir()
    (out / "config.json").write_text(json.dumps({"model_type": model_type}))
    export_tokenizer(tokenizer, out, 4096)


CODE = {"remove_extra_whitespaces": False, "normalization_rule_name": "identity", "allow_whitespace_only_pieces": True}


@pytest.mark.parametrize(
    "settings",
    [
        {**CODE, "add_dummy_prefix": False, "split_digits": True},
        {**CODE, "add_dummy_prefix": False, "user_defined_symbols": ["<fim>", "\u2581\u2581\u2581"]},
        {**CODE, "add_dummy_prefix": True},
        {"normalization_rule_name": "nmt_nfkc"},
    ],
)
@pytest.mark.parametrize("model_type", ["llama", "cohere"])
def test_a_sentencepiece_model_keeps_its_ids(settings, model_type, corpus, tmp_path) -> None:
    tokenizer = sentencepiece_of(tmp_path, corpus, model_type="bpe", byte_fallback=True, **settings)
    export(tokenizer, tmp_path / "hf", model_type)
    texts = [ProofText(str(number), text, ()) for number, text in enumerate([*HARD, *corpus])]
    assert check_tokenizer(tokenizer, tmp_path / "hf", texts) > 10_000


def test_a_sentencepiece_model_for_code_gives_texts_back(corpus, tmp_path) -> None:
    tokenizer = sentencepiece_of(tmp_path, corpus, model_type="bpe", byte_fallback=True, add_dummy_prefix=False, **CODE)
    export(tokenizer, tmp_path / "hf")
    loaded = AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert loaded.eos_token == loaded.pad_token == "</s>"
    assert loaded.model_max_length == 4096
    assert len(loaded) == tokenizer.vocab_size
    for text in [*HARD[:3], *corpus]:
        assert loaded.decode(loaded(text)["input_ids"]) == text


def test_a_unigram_model_is_refused(corpus, tmp_path) -> None:
    tokenizer = sentencepiece_of(tmp_path, corpus, model_type="unigram")
    with pytest.raises(DataError, match="only BPE models of SentencePiece can be exported"):
        export(tokenizer, tmp_path / "hf")


@pytest.mark.parametrize("model_type", ["llama", "cohere", "stablelm"])
def test_a_hugging_face_tokenizer_keeps_its_ids(model_type, tokenizer_dir, corpus, tmp_path) -> None:
    tokenizer = load_tokenizer(TokenizerConfig(kind="huggingface", path=str(tokenizer_dir)))
    export(tokenizer, tmp_path / "hf", model_type)
    texts = [ProofText(str(number), text, ()) for number, text in enumerate([*HARD, *corpus])]
    assert check_tokenizer(tokenizer, tmp_path / "hf", texts) > 10_000


def test_what_stands_beside_a_tokenizer_comes_along(tokenizer_dir, tmp_path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "tokenizer.json").write_bytes((tokenizer_dir / "tokenizer.json").read_bytes())
    (source / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer", "padding_side": "left"}')
    (source / "chat_template.jinja").write_text("{{ messages }}")
    export(load_tokenizer(TokenizerConfig(kind="huggingface", path=str(source))), tmp_path / "hf")
    loaded = AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert loaded.padding_side == "left"
    assert loaded.chat_template == "{{ messages }}"
    assert loaded("  x = 1")["input_ids"] == AutoTokenizer.from_pretrained(tmp_path / "hf").encode("  x = 1")


@pytest.mark.parametrize("kind", ["huggingface", "control", "user_defined"])
def test_the_sentinels_of_fill_in_the_middle_keep_their_ids(kind, tokenizer_dir, corpus, tmp_path) -> None:
    names = [f"<|fim_{role}|>" for role in ("prefix", "suffix", "middle")]
    if kind == "huggingface":
        made = tokenizers.Tokenizer.from_file(str(tokenizer_dir / "tokenizer.json"))
        made.add_special_tokens(names)
        (tmp_path / "run").mkdir()
        made.save(str(tmp_path / "run" / "tokenizer.json"))
        tokenizer = load_tokenizer(TokenizerConfig(kind="huggingface", path=str(tmp_path / "run")))
    else:
        symbols = {f"{kind}_symbols": names}
        tokenizer = sentencepiece_of(
            tmp_path, corpus, model_type="bpe", byte_fallback=True, add_dummy_prefix=False, **CODE, **symbols
        )
    sentinels = find_sentinels(tokenizer)
    export(tokenizer, tmp_path / "hf")
    exported = AutoTokenizer.from_pretrained(tmp_path / "hf")
    before, after, hole = sentinels.prefix, sentinels.suffix, sentinels.middle
    assert exported.convert_tokens_to_ids(names) == [before, after, hole]
    prefix, suffix = "def f(x):\n    ", "\n\n\nprint(f(2))\n"
    # What training reads before a middle is what a prompt of an editor becomes.
    prompt = f"{names[0]}{prefix}{names[1]}{suffix}{names[2]}"
    read = [before, *tokenizer.encode(prefix), after, *tokenizer.encode(suffix), hole]
    assert exported(prompt, add_special_tokens=False)["input_ids"] == read

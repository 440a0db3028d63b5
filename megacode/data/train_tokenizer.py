"""Train a tokenizer on JSON lines: byte-level BPE (Hugging Face) or BPE with byte fallback (SentencePiece).

Both split numbers into single digits, keep every white space, change no character, and decode to exactly the text that
was encoded (SentencePiece: all but a literal U+2581, its own sign for a space). The Hugging Face one uses the split
pattern of Qwen2, which the fast encoder knows. The same input gives the same tokenizer.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from megacode.base.claims import claimed
from megacode.base.errors import ConfigError, DataError, VerificationError
from megacode.base.files import atomic_path
from megacode.base.progress import bar
from megacode.base.user_paths import refuse_existing, refuse_unwritable
from megacode.data.encoders import pieces
from megacode.data.inputs import find_inputs, read_records, refuse_standard_input, sizes_of
from megacode.data.progress import PassProgress
from megacode.data.records import texts_of
from megacode.data.tokenizer import HuggingFaceTokenizer, SentencePieceTokenizer, Tokenizer

END = "<|endoftext|>"
FILL_IN = ("<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>")
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_WRITTEN = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "tokenizer.model")
DEFAULT_BYTES = 100_000_000
_BYTES_IN_VOCABULARY = 256
SMALLEST = _BYTES_IN_VOCABULARY + len(FILL_IN) + 4
_PROVEN_TEXTS = 64
_PROVEN_CHARACTERS = 1 << 17
_SPACE_SIGN = "\u2581"


def train_tokenizer(
    kind: str,
    inputs: Sequence[str],
    vocab_size: int,
    output: Path,
    keys: Sequence[str] = ("text",),
    max_bytes: int = DEFAULT_BYTES,
    overwrite: bool = False,
) -> Tokenizer:
    """Train a tokenizer and write it: `output/tokenizer.json` and its config, or `output/tokenizer.model`.

    Args:
        kind: `huggingface` or `sentencepiece`.
        inputs: paths and globs of JSON-lines files.
        vocab_size: tokens, special ones included.
        output: directory, written whole or not at all.
        keys: JSON keys that hold text.
        max_bytes: how much of the input to train on; a larger input is sampled evenly.
        overwrite: replace a tokenizer that is there already.

    Raises:
        ConfigError: if the vocabulary is too small for the 256 bytes, `output` holds a tokenizer or anything else, or
            cannot be written.
        DataError: if the input cannot be read, or is too small for the vocabulary.
        VerificationError: if encoding and decoding changes a text.
    """
    if vocab_size < SMALLEST:
        raise ConfigError(f"a vocabulary of {vocab_size} is too small", "--vocab-size", f"use {SMALLEST} or more")
    others = sorted(item.name for item in output.glob("*") if item.name not in _WRITTEN)
    if others or output.is_file():
        what = f"it exists and contains {', '.join(others[:3])}" if others else "it is a file"
        raise ConfigError(
            what, f"--output {output}", "give a directory that holds only the tokenizer; it is replaced as a whole"
        )
    refuse_unwritable(output, "--output", directory=True)
    with claimed(output, "--output"):
        refuse_existing([output / name for name in _WRITTEN], overwrite, "--output")
        files = find_inputs(inputs)
        refuse_standard_input(files, "standard input cannot be sampled evenly, as its size is unknown")
        with PassProgress("reading", sum(sizes_of(files))) as progress:
            texts = list(_thinned(files, keys, max_bytes, progress))
        if not any(texts):
            raise DataError("the input contains no text", " ".join(inputs), "check the input and its keys")
        with atomic_path(output) as directory, bar(f"training {vocab_size} tokens"):
            directory.mkdir()
            if kind == "huggingface":
                _write_huggingface(texts, vocab_size, directory)
            else:
                _write_sentencepiece(texts, vocab_size, directory)
            _prove(_load(kind, directory), texts, vocab_size)
    return _load(kind, output)


def _load(kind: str, directory: Path) -> Tokenizer:
    return HuggingFaceTokenizer(directory) if kind == "huggingface" else SentencePieceTokenizer(directory)


def _thinned(files: Sequence[Path], keys: Sequence[str], max_bytes: int, progress: PassProgress) -> Iterator[str]:
    """Yield every text, or as many evenly spaced texts as the limit allows."""
    total = max(1, sum(sizes_of(files)))
    wanted, number = min(max_bytes, total), 0
    for path in files:
        for records in read_records(path, columns=keys):
            columns = texts_of(records, keys)[0].values()
            progress.advance(max(column.documents for column in columns), records.read_bytes)
            for column in columns:
                for text in column.texts:
                    number += 1
                    # Integer arithmetic spaces the texts evenly without knowing their number.
                    if number * wanted // total > (number - 1) * wanted // total:
                        yield text


def _write_huggingface(texts: list[str], vocab_size: int, directory: Path) -> None:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            # The pattern cuts first; the byte-level step then only maps bytes to characters.
            pre_tokenizers.Split(Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END, *FILL_IN],
        # All 256 bytes, so that no text is ever unknown, whatever the training input lacked.
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer, length=len(texts))
    tokenizer.save(str(directory / "tokenizer.json"))
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **dict.fromkeys(("bos_token", "eos_token", "pad_token"), END),
        "additional_special_tokens": list(FILL_IN),
        "clean_up_tokenization_spaces": False,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _write_sentencepiece(texts: list[str], vocab_size: int, directory: Path) -> None:
    import sentencepiece

    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            byte_fallback=True,
            split_digits=True,
            allow_whitespace_only_pieces=True,
            remove_extra_whitespaces=False,
            add_dummy_prefix=False,
            normalization_rule_name="identity",
            control_symbols=list(FILL_IN),
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=-1,
            max_sentence_length=1 << 30,  # longer documents would be skipped
            # With more threads the result could depend on their timing.
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        fix = "use a smaller --vocab-size, or more text"
        raise DataError(f"sentencepiece cannot learn {vocab_size} tokens: {error}", "--vocab-size", fix) from None
    (directory / "tokenizer.model").write_bytes(model.getvalue())


def _prove(tokenizer: Tokenizer, texts: list[str], vocab_size: int) -> None:
    """Check the size, and that decoding returns each text."""
    if tokenizer.vocab_size != vocab_size:
        what = f"the input yields {tokenizer.vocab_size} tokens, not {vocab_size}"
        smaller = f"use --vocab-size {tokenizer.vocab_size}, or more text"
        fix = smaller if tokenizer.vocab_size >= SMALLEST else "give more text, or more varied text"
        raise DataError(what, "--vocab-size", fix)
    step = max(1, len(texts) // _PROVEN_TEXTS)
    proven = islice(pieces(texts[::step], _PROVEN_CHARACTERS, _PROVEN_CHARACTERS // _PROVEN_TEXTS), None)
    for text in proven:
        # A literal U+2581 is sentencepiece's own sign for a space, and decodes to one.
        if tokenizer.decode(tokenizer.encode(text)) != text and _SPACE_SIGN not in text:
            raise VerificationError(f"encoding and decoding changes the text {text[:60]!r}", str(tokenizer.path))

"""Train byte-level BPE (Hugging Face) or BPE with byte fallback (SentencePiece) on texts that were drawn.

Both split numbers into single digits, keep every white space, change no character, and decode to exactly the text that
was encoded (SentencePiece: all but a literal U+2581, its own sign for a space). The Hugging Face one uses the split
pattern of Qwen2, which the fast encoder knows.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from megacode.base.errors import DataError
from megacode.base.files import Json, write_json
from megacode.data.reserved_tokens import END
from megacode.data.text_draws import Text

SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_BYTES = 256
_UNKNOWN_SIGN = "\u2585"


def train_huggingface(texts: Sequence[Text], directories: Mapping[int, Path], reserved: Sequence[str]) -> None:
    """Write `tokenizer.json` and `tokenizer_config.json`; the end of document is id 0, then come the reserved tokens.

    Args:
        texts: to train on. The result does not depend on their order.
        directories: to write to, by the vocabulary size wanted; there are fewer tokens if the texts do not yield them.
        reserved: control tokens.
    """
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
        vocab_size=max(directories),
        special_tokens=[END, *reserved],
        # All 256 bytes, so that no text is ever unknown, whatever the training input lacked.
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_decoded(texts), trainer)
    # BPE is greedy: a smaller vocabulary is made of the first merges of a larger one, so counting words once is enough.
    whole = json.loads(tokenizer.to_str())
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **dict.fromkeys(("bos_token", "eos_token", "pad_token"), END),
        "additional_special_tokens": list(reserved),
        "clean_up_tokenization_spaces": False,
    }
    for vocab_size, directory in directories.items():
        Tokenizer.from_str(json.dumps(_first_tokens(whole, vocab_size))).save(str(directory / "tokenizer.json"))
        write_json(directory / "tokenizer_config.json", config)


def _first_tokens(whole: Json, vocab_size: int) -> Json:
    """Return a BPE tokenizer's document with its first tokens, as training with this size would have ended."""
    model = whole["model"]
    vocabulary = {token: number for token, number in model["vocab"].items() if number < vocab_size}
    # Ids are given in order: control tokens, the 256 bytes, then what the merges make.
    known = {token for token, number in model["vocab"].items() if number < len(whole["added_tokens"]) + _BYTES}
    merges = []
    for first, second in model["merges"]:
        # Two merges may make one token, so merges are not counted but what they make.
        if len(known) >= vocab_size:
            break
        known.add(first + second)
        merges.append([first, second])
    return {**whole, "model": {**model, "vocab": vocabulary, "merges": merges}}


def train_sentencepiece(texts: Sequence[Text], directories: Mapping[int, Path], reserved: Sequence[str]) -> None:
    """Write `tokenizer.model`; unknown, begin and end are ids 0 to 2, then come the reserved tokens.

    Args:
        texts: to train on. The result does not depend on their order.
        directories: to write to, by the vocabulary size wanted.
        reserved: control tokens.

    Raises:
        DataError: the texts do not yield as many tokens.
    """
    # Single characters come last in these models, so a smaller vocabulary is not the head of a larger one.
    for vocab_size, directory in directories.items():
        (directory / "tokenizer.model").write_bytes(_sentencepiece(texts, vocab_size, reserved))


def _sentencepiece(texts: Sequence[Text], vocab_size: int, reserved: Sequence[str]) -> bytes:
    import sentencepiece

    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_without_unknown_sign(_decoded(texts)),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            byte_fallback=True,
            split_digits=True,
            allow_whitespace_only_pieces=True,
            remove_extra_whitespaces=False,
            add_dummy_prefix=False,
            normalization_rule_name="identity",
            control_symbols=list(reserved),
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
    return model.getvalue()


def _decoded(texts: Iterable[Text]) -> Iterator[str]:
    # One at a time: all of them as strings would take up to four times the bytes.
    return (part.decode() for part in chain.from_iterable(texts))


def _without_unknown_sign(texts: Iterable[str]) -> Iterator[str]:
    """Yield what stands between signs U+2585: sentencepiece silently skips texts that have one."""
    return (part for text in texts for part in text.split(_UNKNOWN_SIGN) if part)

"""The run's tokenizer, as files that transformers loads and that give the same ids.

A Hugging Face tokenizer is copied; only `tokenizer_config.json` is written anew, because without a class in it
transformers picks the one usual for the architecture, which re-builds the tokenizer with its own pre-tokenizer and so
gives other ids. A SentencePiece model becomes a `tokenizer.json`:

- Its BPE joins the two neighbours whose union is the best piece, whatever they were made from. So every cut of a
  piece into two pieces is a merge, in the order of the pieces' scores. Joining never makes a control or byte piece.
- A character without a piece becomes its UTF-8 bytes.
- White space is the letter U+2581; nothing splits the text beforehand.

One difference is wanted: preprocessing reads a literal `</s>` in a text as characters, transformers as the token,
so that prompts can hold special tokens.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from megacode.base.errors import DataError
from megacode.base.files import write_json

SPACE = "\u2581"
_COPIED = ("tokenizer.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja")
_UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE = 2, 3, 4, 6
_BPE = 2


def export_tokenizer(kind: str, path: Path, out: Path, *, eod: int, max_length: int) -> None:
    """Write a run's tokenizer into an export.

    Args:
        kind: `huggingface` (`path` is a directory with tokenizer.json) or `sentencepiece` (a `.model` file).
        path: where the run has it.
        out: the export, which exists.
        eod: the token between documents; it becomes eos, bos and padding.
        max_length: tokens the model was trained to see at once.

    Raises:
        DataError: the tokenizer is not there, or is of a kind that cannot be written so.
    """
    settings = _copy_huggingface(path, out) if kind == "huggingface" else _write_sentencepiece(path, out)
    end = token_of(out / "tokenizer.json", eod)
    settings |= {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    settings |= {"eos_token": end, "bos_token": end, "pad_token": end, "model_max_length": max_length}
    write_json(out / "tokenizer_config.json", settings)


def token_of(tokenizer_json: Path, token_id: int) -> str:
    """Return the text of a token of a tokenizer.json.

    Raises:
        DataError: it has no such token.
    """
    from tokenizers import Tokenizer

    token = Tokenizer.from_file(str(tokenizer_json)).id_to_token(token_id)
    if token is None:
        raise DataError(f"the tokenizer has no token {token_id}", str(tokenizer_json), "use the tokenizer of the run")
    return str(token)


def _copy_huggingface(path: Path, out: Path) -> dict[str, Any]:
    folder = path if path.is_dir() else path.parent
    if not (folder / "tokenizer.json").is_file():
        raise DataError("no tokenizer.json here", str(folder), "put the run's tokenizer back, or train it again")
    for name in _COPIED:
        if (folder / name).is_file():
            shutil.copyfile(folder / name, out / name)
    config = folder / "tokenizer_config.json"
    settings: dict[str, Any] = json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {}
    return settings


def _write_sentencepiece(path: Path, out: Path) -> dict[str, Any]:
    from sentencepiece import sentencepiece_model_pb2
    from tokenizers import AddedToken

    if not path.is_file():
        raise DataError("no SentencePiece model here", str(path), "put the run's tokenizer back, or train it again")
    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(path.read_bytes())
    tokenizer = _model(proto, path)
    tokenizer.normalizer = _normalizer(proto.normalizer_spec)
    tokenizer.decoder = _decoder(proto.normalizer_spec)
    special = [piece.piece for piece in proto.pieces if piece.type in (_UNKNOWN, _CONTROL)]
    tokenizer.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in special])
    wanted = [piece.piece for piece in proto.pieces if piece.type == _USER_DEFINED]
    tokenizer.add_tokens([AddedToken(text, normalized=True, special=False) for text in wanted])
    tokenizer.save(str(out / "tokenizer.json"))
    return {"unk_token": proto.trainer_spec.unk_piece}


def _model(proto: Any, path: Path) -> Any:
    from tokenizers import Tokenizer, models

    spec = proto.trainer_spec
    if spec.model_type != _BPE:  # a unigram model breaks ties its own way: some words would get other ids
        raise DataError("only BPE models can be exported", str(path), "train one with tools/train_tokenizer.py")
    vocabulary = {piece.piece: number for number, piece in enumerate(proto.pieces)}
    return Tokenizer(
        models.BPE(
            vocabulary, bpe_merges(proto), unk_token=spec.unk_piece, fuse_unk=True, byte_fallback=spec.byte_fallback
        )
    )


def bpe_merges(proto: Any) -> list[tuple[str, str]]:
    """Return the merges that join the same neighbours in the same order as a SentencePiece BPE model does."""
    joined = [piece for piece in proto.pieces if piece.type not in (_UNKNOWN, _CONTROL, _BYTE)]
    known = {piece.piece for piece in joined}
    merges = []
    for piece in sorted(joined, key=lambda piece: -piece.score):
        text = piece.piece
        cuts = ((text[:cut], text[cut:]) for cut in range(1, len(text)))
        merges += [(left, right) for left, right in cuts if left in known and right in known]
    return merges


def _normalizer(spec: Any) -> Any:
    from tokenizers import Regex, normalizers

    steps: list[Any] = []
    if spec.precompiled_charsmap:
        steps.append(normalizers.Precompiled(spec.precompiled_charsmap))
    if spec.remove_extra_whitespaces:
        steps += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    if spec.add_dummy_prefix:
        steps.append(normalizers.Prepend(SPACE))
    return normalizers.Sequence([*steps, normalizers.Replace(" ", SPACE)])


def _decoder(spec: Any) -> Any:
    from tokenizers import decoders

    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    return decoders.Sequence(steps + ([decoders.Strip(" ", 1, 0)] if spec.add_dummy_prefix else []))

"""Export the run's tokenizer as files that transformers loads and that give the same ids.

A Hugging Face tokenizer is copied; only `tokenizer_config.json` is written again, because without a class in it
transformers picks the architecture's usual one. That class rebuilds the tokenizer with its own pre-tokenizer, and so
gives other ids. A SentencePiece model becomes a `tokenizer.json`:

- Its BPE joins the two neighbours whose union is the best piece, whatever they were made from. So every cut of a
  piece into two pieces is a merge, in the order of the pieces' scores. Joining never makes a control or byte piece.
- A character without a piece becomes its UTF-8 bytes.
- White space is the character U+2581; nothing splits the text beforehand.

One difference is intended: preprocessing reads a literal `</s>` in a text as characters, transformers as the token,
so that prompts can hold special tokens.
"""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import Regex, decoders, normalizers

from megacode.base.errors import DataError
from megacode.base.files import write_json
from megacode.chat.templates import ChatTemplate
from megacode.convert.chat_form import write_template
from megacode.convert.exportable import tokenizer_problems
from megacode.convert.published import read_object
from megacode.data.tokenizer import Tokenizer, named_token

log = logging.getLogger(__name__)

SPACE = "\u2581"
_BESIDE = ("special_tokens_map.json", "chat_template.jinja")
_ROLES = ("bos_token", "pad_token", "unk_token")
_UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE = 2, 3, 4, 6


def export_tokenizer(tokenizer: Tokenizer, out: Path, max_length: int, template: ChatTemplate | None = None) -> None:
    """Write a run's tokenizer into an export.

    Args:
        tokenizer: the run's; its end-of-document token becomes eos, and also bos and padding unless others are named.
        out: the export, which exists.
        max_length: the sequence length of training.
        template: the chat template that training has seen; None: the tokenizer's own, if it has one.

    Raises:
        DataError: the tokenizer cannot be exported.
    """
    if problems := tokenizer_problems(tokenizer):
        raise DataError(problems=problems)
    write = _copy_huggingface if tokenizer.kind == "huggingface" else _write_sentencepiece
    settings = write(tokenizer.path, out)
    if template is not None:
        settings = write_template(template, out, settings)
    assert tokenizer.eod is not None, "an export needs a token to end texts with"
    # Read back from the written file, so that name and id agree there.
    end = tokenizers.Tokenizer.from_file(str(out / "tokenizer.json")).id_to_token(tokenizer.eod)
    settings |= {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    settings |= {"eos_token": end, "model_max_length": max_length}
    # An imported tokenizer keeps its own tokens.
    settings |= {role: settings.get(role) or end for role in ("bos_token", "pad_token")}
    # Training never saw a token added before or after a text.
    settings |= {role: False for role in ("add_bos_token", "add_eos_token") if role in settings}
    write_json(out / "tokenizer_config.json", settings)


def named_id(tokenizer: Tokenizer, role: str) -> int | None:
    """Return the id of the token with a role in a Hugging Face tokenizer's files; None if there is none."""
    if tokenizer.kind != "huggingface" or not (name := named_token(tokenizer.path.parent, role)):
        return None
    token: int | None = tokenizers.Tokenizer.from_file(str(tokenizer.path)).token_to_id(name)
    return token


def _copy_huggingface(path: Path, out: Path) -> dict[str, Any]:
    document = json.loads(path.read_bytes())
    added = tokenizers.Tokenizer.from_file(str(path)).encode("").tokens
    if added:  # training data has none of them, see BEGIN_OF_TEXT
        log.warning(
            "the exported tokenizer does not add %s to texts, since the training data has none", ", ".join(added)
        )
        # The post-processor is what adds tokens; everything else is copied unchanged.
        document["post_processor"] = None
        (out / "tokenizer.json").write_text(json.dumps(document, ensure_ascii=False, indent=2), encoding="utf-8")
    else:
        shutil.copyfile(path, out / "tokenizer.json")
    for name in _BESIDE:
        if (path.parent / name).is_file():
            shutil.copyfile(path.parent / name, out / name)
    config = path.with_name("tokenizer_config.json")
    settings = read_object(config) if config.is_file() else {}
    return {**settings, **{role: name for role in _ROLES if (name := named_token(path.parent, role))}}


def _write_sentencepiece(path: Path, out: Path) -> dict[str, Any]:
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(path.read_bytes())
    tokenizer = _model(proto)
    tokenizer.normalizer = _normalizer(proto.normalizer_spec)
    tokenizer.decoder = _decoder(proto.normalizer_spec)
    # Special tokens are matched before normalization, user-defined ones after it, as in sentencepiece.
    special = [piece.piece for piece in proto.pieces if piece.type in (_UNKNOWN, _CONTROL)]
    tokenizer.add_special_tokens([tokenizers.AddedToken(text, normalized=False, special=True) for text in special])
    wanted = [piece.piece for piece in proto.pieces if piece.type == _USER_DEFINED]
    tokenizer.add_tokens([tokenizers.AddedToken(text, normalized=True, special=False) for text in wanted])
    tokenizer.save(str(out / "tokenizer.json"))
    return {"unk_token": proto.trainer_spec.unk_piece}


def _model(proto: Any) -> Any:
    spec = proto.trainer_spec
    vocabulary = {piece.piece: number for number, piece in enumerate(proto.pieces)}
    return tokenizers.Tokenizer(
        tokenizers.models.BPE(
            vocabulary, bpe_merges(proto), unk_token=spec.unk_piece, fuse_unk=True, byte_fallback=spec.byte_fallback
        )
    )


def bpe_merges(proto: Any) -> list[tuple[str, str]]:
    """Return merges that join the same neighbours in the same order as a SentencePiece BPE model."""
    joined = [piece for piece in proto.pieces if piece.type not in (_UNKNOWN, _CONTROL, _BYTE)]
    known = {piece.piece for piece in joined}
    merges = []
    for piece in sorted(joined, key=lambda piece: -piece.score):
        text = piece.piece
        # All ways to build a piece from two known ones, the best pieces first.
        cuts = ((text[:cut], text[cut:]) for cut in range(1, len(text)))
        merges += [(left, right) for left, right in cuts if left in known and right in known]
    return merges


def _normalizer(spec: Any) -> Any:
    steps: list[Any] = []
    if spec.precompiled_charsmap:
        steps.append(normalizers.Precompiled(spec.precompiled_charsmap))
    # The order is sentencepiece's: characters first, then white space, then the leading space.
    if spec.remove_extra_whitespaces:
        steps += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    if spec.add_dummy_prefix:
        steps.append(normalizers.Prepend(SPACE))
    return normalizers.Sequence([*steps, normalizers.Replace(" ", SPACE)])


def _decoder(spec: Any) -> Any:
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    return decoders.Sequence(steps + ([decoders.Strip(" ", 1, 0)] if spec.add_dummy_prefix else []))

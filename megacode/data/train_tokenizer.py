"""Train a tokenizer on documents drawn by weight from several sources, check it, and measure it on held-out documents.

The same documents give the same files, in whatever order and division: the draw depends on the documents alone, and
texts are sorted by their keys. (Measured: `tokenizers` and `sentencepiece` give the same result in any order anyway.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from megacode.base.claims import claimed
from megacode.base.errors import ConfigError, DataError, VerificationError
from megacode.base.files import atomic_path, write_json
from megacode.base.progress import bar
from megacode.base.user_paths import refuse_existing, refuse_unwritable
from megacode.data.bytes_per_token import TRAINING, Measured, measure
from megacode.data.encoders import pieces
from megacode.data.reserved_tokens import reserved_tokens
from megacode.data.text_draws import Drawn, Text, TextSource, draw, files_of, sources_of
from megacode.data.tokenizer import HuggingFaceTokenizer, SentencePieceTokenizer, Tokenizer
from megacode.data.tokenizer_trainers import train_huggingface, train_sentencepiece

_WRITTEN = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "tokenizer.model", TRAINING)
DEFAULT_BYTES = 100_000_000
_BYTES_IN_VOCABULARY = 256
_OTHERS = 4  # end of document; or unknown, begin, end, and one character
_PROVEN_TEXTS = 64
_PROVEN_CHARACTERS = 1 << 17
_SPACE_SIGN = "\u2581"


@dataclass(frozen=True)
class TrainedTokenizer:
    """A tokenizer that was trained.

    Attributes:
        tokenizer: it, loaded from its output.
        drawn: what it was trained and measured on, by source.
        measured: bytes per token on the held-out documents.
    """

    tokenizer: Tokenizer
    drawn: list[Drawn]
    measured: Measured


def train_tokenizer(
    kind: str,
    inputs: Sequence[str] | Sequence[TextSource],
    vocab_size: int,
    output: Path,
    keys: Sequence[str] = ("text",),
    max_bytes: int = DEFAULT_BYTES,
    overwrite: bool = False,
    *,
    seed: int = 0,
    reserve: Sequence[str] = ("fim",),
    skip_bad: bool = False,
) -> TrainedTokenizer:
    """Train a tokenizer of one size; arguments and errors as of `train_tokenizers`."""
    sizes = {vocab_size: output}
    return train_tokenizers(
        kind, inputs, sizes, keys, max_bytes, overwrite, seed=seed, reserve=reserve, skip_bad=skip_bad
    )[0]


def train_tokenizers(
    kind: str,
    inputs: Sequence[str] | Sequence[TextSource],
    outputs: Mapping[int, Path],
    keys: Sequence[str] = ("text",),
    max_bytes: int = DEFAULT_BYTES,
    overwrite: bool = False,
    *,
    seed: int = 0,
    reserve: Sequence[str] = ("fim",),
    skip_bad: bool = False,
) -> list[TrainedTokenizer]:
    """Train tokenizers of several sizes on the same texts, and write them: `tokenizer.json`, or `tokenizer.model`.

    The input is read once. Each tokenizer has the bytes that it would have if it were trained alone.

    Args:
        kind: `huggingface` or `sentencepiece`.
        inputs: paths and globs, which are one source; or several sources.
        outputs: directories by the number of tokens, special ones included; all are written whole, or none is.
        keys: of records, that hold text.
        max_bytes: of text to train on, of all sources together.
        overwrite: replace tokenizers that are there already.
        seed: decides which documents are drawn and held out.
        reserve: groups of control tokens, and tokens.
        skip_bad: skip and count records that cannot be read.

    Raises:
        ConfigError: if a vocabulary is too small for the 256 bytes, all weights are 0, an output holds a tokenizer or
            anything else, lies inside an input or another output, or cannot be written.
        DataError: if an input cannot be read, a source has no text, or all are too small for the vocabulary.
        VerificationError: if encoding and decoding changes a text.
    """
    sources = [item for item in inputs if isinstance(item, TextSource)]
    sources = sources or sources_of([str(item) for item in inputs], [])
    reserved = reserved_tokens(reserve)
    for vocab_size, output in outputs.items():
        _check(sources, vocab_size, len(reserved), max_bytes, output)
    _refuse_nested(list(outputs.values()))
    with ExitStack() as stack:
        # Sorted, so that two commands never wait for each other.
        for output in sorted(outputs.values()):
            stack.enter_context(claimed(output, "--output"))
        refuse_existing([output / name for output in outputs.values() for name in _WRITTEN], overwrite, "--output")
        drawn = draw(sources, keys, max_bytes, seed, skip_bad=skip_bad)
        facts = {"seed": seed, "keys": list(keys), "max_bytes": max_bytes, "reserved": list(reserved)}
        trained = _train(kind, drawn, outputs, facts)
    return trained


def _train(kind: str, drawn: list[Drawn], outputs: Mapping[int, Path], facts: dict[str, Any]) -> list[TrainedTokenizer]:
    """Train on what was drawn, check and measure each tokenizer, and publish all of them at the end."""
    texts = [text for source in drawn for text in source.training]
    train = train_huggingface if kind == "huggingface" else train_sentencepiece
    measurements = []
    with ExitStack() as stack:
        directories = {size: stack.enter_context(atomic_path(output)) for size, output in outputs.items()}
        stack.enter_context(bar(f"training {', '.join(map(str, outputs))} tokens"))
        for directory in directories.values():
            directory.mkdir()
        train(texts, directories, facts["reserved"])
        for vocab_size, directory in directories.items():
            tokenizer = _load(kind, directory)
            _prove(tokenizer, texts, vocab_size, len(facts["reserved"]))
            measured = measure(tokenizer, drawn)
            write_json(directory / TRAINING, _record(facts, measured, drawn))
            measurements.append(measured)
    loaded = [_load(kind, output) for output in outputs.values()]
    return [
        TrainedTokenizer(one, drawn, replace(measured, tokenizer=one))
        for one, measured in zip(loaded, measurements, strict=True)
    ]


def _refuse_nested(outputs: Sequence[Path]) -> None:
    """Refuse one directory for two tokenizers, or one inside another: each is replaced as a whole."""
    places = [output.resolve() for output in outputs]
    for number, place in enumerate(places):
        others = places[:number] + places[number + 1 :]
        if any(other in (place, *place.parents) for other in others):
            message = f"{outputs[number]} is, or lies in, the directory of another tokenizer"
            raise ConfigError(message, "--output", "give each vocabulary size a directory of its own")


def _check(sources: Sequence[TextSource], vocab_size: int, reserved: int, max_bytes: int, output: Path) -> None:
    smallest = _smallest(reserved)
    if vocab_size < smallest:
        raise ConfigError(f"a vocabulary of {vocab_size} is too small", "--vocab-size", f"use {smallest} or more")
    if max_bytes < 1:
        raise ConfigError("there is nothing to train on", f"--max-bytes {max_bytes}", "give 1M or more")
    if not any(source.weight for source in sources):
        raise ConfigError("all weights are 0", "--source", "give the sources to train on a weight above 0")
    others = sorted(item.name for item in output.glob("*") if item.name not in _WRITTEN)
    if others or output.is_file():
        message = f"it exists and contains {', '.join(others[:3])}" if others else "it is a file"
        raise ConfigError(
            message, f"--output {output}", "give a directory that holds only the tokenizer; it is replaced as a whole"
        )
    _refuse_output_among_inputs(sources, output)
    refuse_unwritable(output, "--output", directory=True)


def _refuse_output_among_inputs(sources: Sequence[TextSource], output: Path) -> None:
    """Refuse an output that would be read by the next call, or that replaces what is read."""
    place = output.resolve()
    for path in (path for paths in files_of(sources) for path in paths):
        if place in path.resolve().parents:
            fix = "choose another directory: this one is replaced as a whole"
            raise ConfigError(f"the input {path} lies in it", f"--output {output}", fix)
    directories = [Path(pattern) for source in sources for pattern in source.patterns if Path(pattern).is_dir()]
    for directory in directories:
        if directory.resolve() in (place, *place.parents):
            fix = "choose a directory elsewhere, or give the input as a glob of its files"
            message = f"it lies in the input {directory}, and would be read as text the next time"
            raise ConfigError(message, f"--output {output}", fix)


def _smallest(reserved: int) -> int:
    return _BYTES_IN_VOCABULARY + reserved + _OTHERS


def _load(kind: str, directory: Path) -> Tokenizer:
    return HuggingFaceTokenizer(directory) if kind == "huggingface" else SentencePieceTokenizer(directory)


def _record(facts: dict[str, Any], measured: Measured, drawn: Sequence[Drawn]) -> dict[str, Any]:
    """Return what is written beside the tokenizer: no paths, which differ between machines and divisions into files."""
    tokenizer = measured.tokenizer
    library = "tokenizers" if tokenizer.kind == "huggingface" else "sentencepiece"
    sources = [
        {
            "name": source.source.name,
            "weight": float(source.source.weight),
            "documents": source.documents,
            "bytes": source.bytes,
            "trained_documents": len(source.training),
            "trained_bytes": source.trained_bytes,
            "held_out_documents": len(source.held_out),
            "held_out_bytes": source.held_out_bytes,
            "bytes_per_token": measured.bytes_per_token[source.source.name],
        }
        for source in drawn
    ]
    facts_of_tokenizer = {"kind": tokenizer.kind, "vocab_size": tokenizer.vocab_size, "hash": tokenizer.hash}
    return {**facts_of_tokenizer, **facts, "library": {library: version(library)}, "sources": sources}


def _prove(tokenizer: Tokenizer, texts: Sequence[Text], vocab_size: int, reserved: int) -> None:
    """Check the size, and that decoding returns each text."""
    if tokenizer.vocab_size != vocab_size:
        message = f"the input yields {tokenizer.vocab_size} tokens, not {vocab_size}"
        smaller = f"use --vocab-size {tokenizer.vocab_size}, or more text"
        enough = tokenizer.vocab_size >= _smallest(reserved)
        raise DataError(message, "--vocab-size", smaller if enough else "give more text, or more varied text")
    step = max(1, len(texts) // _PROVEN_TEXTS)
    some = [part.decode() for text in texts[::step] for part in text]
    for text in pieces(some, _PROVEN_CHARACTERS, _PROVEN_CHARACTERS // _PROVEN_TEXTS):
        # A literal U+2581 is sentencepiece's own sign for a space, and decodes to one.
        if tokenizer.decode(tokenizer.encode(text)) != text and _SPACE_SIGN not in text:
            raise VerificationError(f"encoding and decoding changes the text {text[:60]!r}", str(tokenizer.path))

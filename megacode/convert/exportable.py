"""Check before training whether a run's model can be exported to Hugging Face. No torch here.

`convert to-hf` refuses some models and tokenizers. `plan` and `train` report this at the start, not after weeks of
training. A run with evaluation during training is refused, since each score needs an export.
"""

from __future__ import annotations

from collections.abc import Iterator

from megacode.base.errors import ConfigError, MegacodeError, Problem
from megacode.config.run import RunConfig
from megacode.convert.architectures import family_of
from megacode.convert.families.family import Family
from megacode.convert.published import read_object
from megacode.data.tokenizer import Tokenizer, load_tokenizer

_BPE = 2  # sentencepiece's number for it


def export_problems(config: RunConfig) -> list[Problem]:
    """Return all reasons why an export of this run would be refused.

    Args:
        config: the run's.

    Raises:
        ConfigError: there are some, and the run's evaluation needs exports.
    """
    problems: list[Problem] = []
    family: Family | None = None
    try:
        family = family_of(config.model)
    except MegacodeError as error:
        problems += error.problems
    # A missing data tokenizer is reported elsewhere; here only export matters.
    if config.tokenizer is not None:
        try:
            tokenizer = load_tokenizer(config.tokenizer)
            problems += tokenizer_problems(tokenizer)
            problems += [] if family is None else _replaced(tokenizer, family)
        except MegacodeError as error:
            problems += error.problems
    if problems and config.evaluate is not None:
        message = "evaluation during training needs exports, and this run cannot be exported"
        raise ConfigError(problems=[Problem(message, "evaluate", "remove evaluate, or fix the following:"), *problems])
    return problems


def tokenizer_problems(tokenizer: Tokenizer) -> list[Problem]:
    """Return the reasons why `export_tokenizer` would refuse a tokenizer."""
    where, problems = str(tokenizer.path), []
    if tokenizer.eod is None:
        fix = "name one as eos_token in its tokenizer_config.json, or train a tokenizer that has one"
        problems.append(Problem("the tokenizer has no end-of-document token: generation would never end", where, fix))
    if tokenizer.kind == "sentencepiece" and _model_type(tokenizer) != _BPE:
        # A unigram model breaks ties differently from tokenizers' own: some words would get other ids.
        fix = "train one with `megacode data tokenizer`"
        problems.append(Problem("only BPE models of SentencePiece can be exported", where, fix))
    return problems


def _replaced(tokenizer: Tokenizer, family: Family) -> Iterator[Problem]:
    """Yield a problem if transformers reads this tokenizer, beside a model of the family, as another one."""
    if family.pre_tokenizer is None:
        return
    # SentencePiece models become a tokenizer.json without any of the two.
    document = read_object(tokenizer.path) if tokenizer.kind == "huggingface" else {}
    normalizer, cuts = document.get("normalizer") or {}, document.get("pre_tokenizer") or {}
    steps = cuts.get("pretokenizers", [cuts])
    patterns = [(step.get("pattern") or {}).get("Regex") for step in steps]
    if normalizer.get("type") == "NFC" and family.pre_tokenizer in patterns:
        return
    message = (
        f"transformers reads a tokenizer beside {family.title} as {family.title}'s own, which gives texts other ids"
    )
    fix = f"use a tokenizer with the normalizer and pre-tokenizer of {family.title}, or a model of another family"
    yield Problem(message, str(tokenizer.path), fix)


def _model_type(tokenizer: Tokenizer) -> int:
    from sentencepiece import sentencepiece_model_pb2

    # The processor does not tell the model type; the file does.
    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(tokenizer.path.read_bytes())
    kind: int = proto.trainer_spec.model_type
    return kind


def warnings_of(config: RunConfig) -> list[str]:
    """Return the problems as one line each, for a plan's warnings and a log."""
    lines = ("; ".join(part for part in (problem.what, problem.fix) if part) for problem in export_problems(config))
    return [f"no export: {line}" for line in lines]

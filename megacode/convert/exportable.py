"""Whether a run's model can become a Hugging Face model, known before anything is trained. No torch here.

`convert to-hf` refuses some models and tokenizers for good. What it would say after weeks of training, `plan` and
`train` say at the start; a run that is to be scored as it trains is refused, since each score needs an export.
"""

from __future__ import annotations

from megacode.base.errors import ConfigError, MegacodeError, Problem
from megacode.config.run import RunConfig
from megacode.convert.architectures import check_exportable
from megacode.data.tokenizer import Tokenizer, load_tokenizer

_BPE = 2  # sentencepiece's number for it


def export_problems(config: RunConfig) -> list[Problem]:
    """Return everything for which an export of this run would be refused.

    Args:
        config: the run's.

    Raises:
        ConfigError: there are some, and the run's own scores need exports.
    """
    problems: list[Problem] = []
    try:
        check_exportable(config.model)
    except MegacodeError as error:
        problems += error.problems
    if config.tokenizer is not None:
        try:
            problems += tokenizer_problems(load_tokenizer(config.tokenizer))
        except MegacodeError as error:
            problems += error.problems
    if problems and config.evaluate is not None:
        what = "the run is to be scored while it trains, and scores need exports, which are impossible"
        raise ConfigError(problems=[Problem(what, "evaluate", "remove evaluate, or see to this:"), *problems])
    return problems


def tokenizer_problems(tokenizer: Tokenizer) -> list[Problem]:
    """Return why a tokenizer cannot be exported; what `export_tokenizer` refuses."""
    where, problems = str(tokenizer.path), []
    if tokenizer.eod is None:
        fix = "name one as eos_token in its tokenizer_config.json, or train a tokenizer that has one"
        problems.append(Problem("the tokenizer has no end-of-document token: generation would never end", where, fix))
    if tokenizer.kind == "sentencepiece" and _model_type(tokenizer) != _BPE:
        # A unigram model breaks ties its own way: some words would get other ids.
        fix = "train one with tools/train_tokenizer.py"
        problems.append(Problem("of SentencePiece models only BPE can be exported", where, fix))
    return problems


def _model_type(tokenizer: Tokenizer) -> int:
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(tokenizer.path.read_bytes())
    kind: int = proto.trainer_spec.model_type
    return kind


def warnings_of(config: RunConfig) -> list[str]:
    """Return the problems as one line each, for a plan's warnings and a log."""
    lines = ("; ".join(part for part in (problem.what, problem.fix) if part) for problem in export_problems(config))
    return [f"no export: {line}" for line in lines]

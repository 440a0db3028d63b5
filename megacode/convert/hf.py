"""Export a checkpoint as a Hugging Face model: write it beside its final place, verify it, publish it by one rename.

If the directory exists, transformers has read the model back and computed the same as megacode. In memory at a time:
one tensor while writing; one tensor or one block while verifying (see `verify`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megacode.base.claims import claimed
from megacode.base.errors import CheckpointError, ConfigError, Problem, VerificationError
from megacode.base.files import atomic_path, write_json
from megacode.base.user_paths import refuse_unwritable
from megacode.chat.templates import ChatTemplate
from megacode.convert import push
from megacode.convert.architectures import family_of, hf_config
from megacode.convert.card import FILE_NAME, note_elsewhere, write_card
from megacode.convert.chat_form import chat_form, with_end_of_turn
from megacode.convert.mapping import VOCABULARY, Sizes, hf_shapes
from megacode.convert.mapping import to_hf as mapped
from megacode.convert.opened_checkpoint import OpenedCheckpoint
from megacode.convert.published import read_object
from megacode.convert.safetensors_files import write_shards
from megacode.convert.texts import texts_of
from megacode.convert.tokenizer import export_tokenizer, named_id
from megacode.convert.verify import TYPES, Claim, Report, prove
from megacode.data.tokenizer import Tokenizer


def to_hf(
    checkpoint: Path,
    out: Path,
    *,
    dtype: str | None = None,
    max_shard_size: int | str = "5GB",
    verify: bool = True,
    text: Sequence[str] | None = None,
    force: bool = False,
    push_to: str | None = None,
) -> Report:
    """Export a checkpoint, verify the export, and publish it.

    Args:
        checkpoint: a checkpoint's directory, or a run's, whose newest checkpoint is used.
        out: the directory to publish; it must not exist, or be empty.
        dtype: `fp32`, `bf16` or `fp16`; None: the checkpoint's type.
        max_shard_size: bytes of a weights file, or such as "5GB".
        verify: verify the export; without, its card says that it is not verified.
        text: texts to verify it on; None: held-out windows of the run's sources and shipped texts.
        force: replace an earlier export of the same checkpoint.
        push_to: a repository on the Hugging Face hub to push the export to, once it is verified and published.

    Returns:
        The result of the verification.

    Raises:
        CheckpointError: there is no such checkpoint, its tokenizer is not the run's, or `out` is in use.
        ConfigError: transformers has no architecture for this model, `dtype` is unknown, or pushing is impossible.
        VerificationError: the export does not compute the same as the checkpoint; nothing is published.
    """
    if dtype is not None and dtype not in TYPES:
        raise ConfigError(f"{dtype!r} is not a supported dtype", "--dtype", f"use one of {', '.join(TYPES)}")
    if push_to is not None:
        push.check(push_to)
    source = OpenedCheckpoint.open(checkpoint)
    family_of(source.config.model)
    _check_out(out, source, force)
    refuse_unwritable(out, "OUT", directory=True)
    # Before any weight is written: a bad text would otherwise fail after minutes.
    texts = texts_of(source, text)
    kind = TYPES[dtype or source.config.precision.dtype]
    claim = Claim(source.label, source.config, source.path, source.tokenizer, texts, kind)
    with claimed(out, "OUT"), atomic_path(out) as hidden:
        _check_out(out, source, force)  # again: another process may have made it since
        hidden.mkdir()
        parameters = write_model(claim, hidden, max_shard_size, chat_form(source))
        report = _proven(claim, hidden, out) if verify else _unproven(claim)
        card = write_card(source, report, parameters, hidden)
    note_elsewhere(source.run, out, card)
    if push_to is not None:
        push.push(report, out, push_to)
    return report


def write_model(
    claim: Claim, out: Path, max_shard_size: int | str = "5GB", template: ChatTemplate | None = None
) -> int:
    """Write weights, configs and tokenizer into a directory that exists, and return the number of parameters.

    Args:
        claim: the model.
        out: the directory.
        max_shard_size: see `to_hf`.
        template: the chat template that training has seen.

    Raises:
        CheckpointError: the weights are not those of the config's model, or have fewer rows than the tokenizer ids.
    """
    model, train, tokenizer = claim.config.model, claim.config.train, claim.tokenizer
    vocab, weights = claim.rows, claim.weights()
    # Padding depends on the run's tensor parallelism, so the file's own size counts.
    padded = len(weights[VOCABULARY[0]])
    if vocab > padded:
        message = f"the model has {vocab} tokens, but the embedding only {padded} rows"
        raise CheckpointError(message, claim.label, "use the run's tokenizer")
    sizes = Sizes.of(model, vocab, padded)
    tensors = mapped(weights, model, sizes)
    parameters = write_shards(tensors, hf_shapes(model, sizes), claim.dtype, out, max_shard_size)
    dtype = str(claim.dtype).removeprefix("torch.")
    document = hf_config(model, vocab, train.seq_length, tokenizer.eod, dtype)
    # An imported model keeps the begin token that its users know.
    if (own := named_id(tokenizer, "bos_token")) is not None:
        document["bos_token_id"] = own
    write_json(out / "config.json", document)
    write_json(out / "generation_config.json", with_end_of_turn(_generation(tokenizer), template, tokenizer))
    export_tokenizer(tokenizer, out, train.seq_length, template)
    return parameters


def _generation(tokenizer: Tokenizer) -> dict[str, Any]:
    """Return the generation config: an imported model's own, else one that starts after the end of a document.

    A text begins where another ended: the end-of-document token is the only begin marker that training showed.
    """
    own, eod = tokenizer.path.with_name("generation_config.json"), tokenizer.eod
    if own.is_file():
        return read_object(own)
    return {"bos_token_id": eod, "eos_token_id": eod, "pad_token_id": eod, "do_sample": False}


def _proven(claim: Claim, hidden: Path, out: Path) -> Report:
    """Verify an export in its temporary directory; errors name its final path, since this one is removed then."""
    try:
        return prove(claim, hidden)
    except VerificationError as error:
        # Only the paths in the messages change.
        named = [
            Problem(*(part.replace(str(hidden), str(out)) for part in (problem.what, problem.where, problem.fix)))
            for problem in error.problems
        ]
        raise VerificationError(problems=named) from error


def _unproven(claim: Claim) -> Report:
    architecture = family_of(claim.config.model).architecture
    return Report(claim.label, architecture, str(claim.dtype).removeprefix("torch."), verified=False)


def _check_out(out: Path, source: OpenedCheckpoint, force: bool) -> None:
    """Refuse a directory that is not empty; with force, an earlier export of the same checkpoint is replaced."""
    # An empty directory may be replaced: schedulers and users create them in advance.
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    card = out / FILE_NAME
    document = read_object(card) if card.is_file() else {}
    # Only what megacode.json identifies as the same checkpoint may be replaced, never foreign files.
    if document.get("checkpoint") != source.identity():
        message = f"it is not empty, and does not contain an export of {source.label}"
        raise CheckpointError(message, str(out), "choose a directory that does not exist, or remove this one")
    if not force:
        raise CheckpointError("it contains an earlier export of this checkpoint", str(out), "add --force to replace it")

"""Make a data set of conversations: encode all of them, decide about their order, and write them.

Encoding spools to a directory beside the output, since packing needs all lengths first. Nothing appears under the
prefix before the end. A kill leaves only that directory, which the next call removes; the work is then made again.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from megacode.base.claims import claimed
from megacode.base.errors import DataError
from megacode.base.files import remove
from megacode.base.units import format_count
from megacode.base.user_paths import refuse_existing, refuse_unwritable
from megacode.chat.answers import end_of_turn
from megacode.chat.arrangement import Arrangement, arrange
from megacode.chat.encoded_spool import EncodedSpool
from megacode.chat.job import ChatJob
from megacode.chat.reading import ReadConversations, read_conversations
from megacode.chat.templates import ChatTemplate, find_template, padding_token
from megacode.data import manifest as manifests
from megacode.data.indexed import IndexedDatasetWriter, bin_path
from megacode.data.inputs import find_inputs, sizes_of
from megacode.data.manifest import Manifest
from megacode.data.preprocess import choose_dtype
from megacode.data.progress import tell_skipped
from megacode.data.publishing import WORK_DIR
from megacode.data.tokenizer import Tokenizer, load_tokenizer

_LOG = logging.getLogger(__name__)
_BATCH_TOKENS = 4 << 20  # that are written at once
_LOOKS_SPECIAL = re.compile(r"<\|[^|<>\s]{1,40}\|>|<(?:start|end)_of_turn>|\[/?INST\]")


def make_chat(job: ChatJob) -> Manifest:
    """Make the data set of a job, its loss mask and its manifest; on an error nothing is left behind.

    Raises:
        ConfigError: the settings contradict each other, there is no chat template or it does not mark answers, or the
            data set exists already or cannot be written.
        DataError: the input cannot be read, has lines that cannot be used or conversations that are too long, or the
            tokenizer does not fit.
    """
    job.check()
    tokenizer = load_tokenizer(job.tokenizer)
    dtype, template = choose_dtype(job.dtype, tokenizer), find_template(tokenizer, job.chat_template)
    if job.append_eod and tokenizer.eod is None:
        fix = "name one as eos_token in its tokenizer_config.json, or omit --append-eod"
        raise DataError("the tokenizer has no end-of-document token", str(tokenizer.path), fix)
    pad = padding_token(tokenizer) if job.pack is not None else 0
    turn = end_of_turn(template, tokenizer.specials)  # also refuses a template that is not valid
    prefix, published = job.prefix, job.published
    refuse_unwritable(bin_path(prefix), "--output-prefix")
    with claimed(prefix, "--output-prefix"):
        inputs = find_inputs(job.inputs)
        refuse_existing(manifests.files_of([prefix]), job.overwrite or published is not None, "--output-prefix")
        with published.making(job.overwrite) if published else nullcontext(), _scratch(prefix) as scratch:
            spool = EncodedSpool(scratch, bin_path(prefix), dtype)
            try:
                read = read_conversations(job, inputs, template, spool)
            finally:
                # Only writing ends here: the files are mapped, and read until the data set is written.
                spool.close()
            arranged = arrange(job, spool, read.longest)
            facts = {**_chat_facts(job, template, turn, arranged), **_facts(job, tokenizer, inputs, read, arranged)}
            made = _write(job, spool, arranged, dtype, pad, scratch, facts)
            if published is not None:
                published.publish()
                published.finish()
    if published is not None:
        published.clean(Path(job.work_dir or WORK_DIR))
    _tell(job, tokenizer, template, made, read)
    return made


@contextmanager
def _scratch(prefix: Path) -> Iterator[Path]:
    """Yield an empty directory beside a data set, which is removed at the end; also what a kill has left of it."""
    # Not in /tmp: it becomes as large as the data set, and belongs on the disk chosen for that.
    directory = prefix.with_name(f".{prefix.name}.chat")
    remove(directory)
    directory.mkdir(parents=True)
    try:
        yield directory
    finally:
        remove(directory)


def _chat_facts(job: ChatJob, template: ChatTemplate, turn: str | None, arranged: Arrangement) -> dict[str, Any]:
    chat = {
        "template": template.text,
        "template_sha256": template.hash,
        "end_of_turn": turn,
        "loss": job.loss,
        "max_length": job.limit,
        "truncated": arranged.truncated,
        "dropped_long": arranged.dropped_long,
        "dropped_without_answer": arranged.dropped_without_answer,
    }
    packed = None if job.pack is None else {"seq_length": job.pack, "padding": int(arranged.padding.sum())}
    return {"chat": chat, "packed": packed}


def _facts(
    job: ChatJob, tokenizer: Tokenizer, inputs: Sequence[Path], read: ReadConversations, arranged: Arrangement
) -> dict[str, Any]:
    return {
        "tokenizer": tokenizer.facts(),
        "append_eod": job.append_eod,
        "shuffle_seed": job.shuffle_seed if job.pack is None else job.shuffle_seed or 0,
        "bad_lines": read.bad_lines,
        "inputs": tuple({"path": str(path), "bytes": sizes_of([path])[0]} for path in inputs),
        "command": job.command,
    }


def _write(
    job: ChatJob,
    spool: EncodedSpool,
    arranged: Arrangement,
    dtype: np.dtype,
    pad: int,
    scratch: Path,
    facts: dict[str, Any],
) -> Manifest:
    prefix, with_ids = job.prefix, spool.has_ids
    writer = IndexedDatasetWriter(prefix, dtype, with_ids=with_ids, with_mask=True, scratch=scratch)
    with ExitStack() as stack:
        stack.callback(writer.close)
        writer.open()
        for first, end in _batches(arranged):
            _add(writer, spool, arranged, slice(first, end), pad)
        writer.finish()
        # The old manifest goes before the new files are published: they never contradict each other.
        remove(manifests.manifest_path(prefix))
        writer.publish()
    made = manifests.describe(prefix, writer.hashes, **facts)
    manifests.write(prefix, made)
    return made


def _batches(arranged: Arrangement) -> Iterator[tuple[int, int]]:
    """Yield ranges of conversations of some million tokens each."""
    ends = np.cumsum(arranged.lengths + arranged.padding)
    first = 0
    while first < len(ends):
        before = int(ends[first - 1]) if first else 0
        # At least one, however long it is: else the loop would never get past one of more tokens.
        end = max(first + 1, int(np.searchsorted(ends, before + _BATCH_TOKENS, side="right")))
        yield first, end
        first = end


def _add(writer: IndexedDatasetWriter, spool: EncodedSpool, arranged: Arrangement, some: slice, pad: int) -> None:
    """Write some conversations; padding is a sequence of its own in the document of the conversation before it."""
    numbers, lengths, padding = arranged.numbers[some], arranged.lengths[some], arranged.padding[some]
    tokens: list[Any] = []
    counted: list[Any] = []
    for number, length, empty in zip(numbers.tolist(), lengths.tolist(), padding.tolist(), strict=True):
        tokens += [spool.tokens(number, length), np.full(empty, pad, writer.dtype)]
        counted += [spool.counted(number, length), np.zeros(empty, dtype=bool)]
    both = np.stack((lengths, padding), axis=1).ravel()
    counts = 1 + (padding > 0).astype(np.int64)
    ids = spool.ids(numbers) if spool.has_ids else None
    writer.add(np.concatenate(tokens), both[both > 0], counts, ids, np.concatenate(counted))


def _tell(job: ChatJob, tokenizer: Tokenizer, template: ChatTemplate, made: Manifest, read: ReadConversations) -> None:
    """Log what was made, and what was left out."""
    assert made.loss_mask is not None
    assert made.chat is not None
    counted, tokens = made.loss_mask["counted"], made.tokens
    _LOG.info(
        "%s: %s conversations, %s tokens as %s, of which %s count in the loss (%.1f %%)",
        job.output_prefix, format_count(made.documents), format_count(tokens), made.dtype, format_count(counted),
        100 * counted / tokens,
    )  # fmt: skip
    if made.packed is not None:
        windows, padding = tokens // made.packed["seq_length"], made.packed["padding"]
        share = 100 * padding / tokens
        _LOG.info("packed into %s windows of %d tokens, %.2f %% padding", format_count(windows), job.pack, share)
    # All three, so that a user who looks for one sees that it did not happen.
    left_out = [made.chat[name] for name in ("truncated", "dropped_long", "dropped_without_answer")]
    if any(left_out):
        message = (
            "%s conversations were truncated to %s tokens, %s dropped as too long, %s dropped as no answer was left"
        )
        _LOG.warning(message, f"{left_out[0]:,}", f"{job.limit:,}", f"{left_out[1]:,}", f"{left_out[2]:,}")
    if read.bad_lines:
        tell_skipped("", read.bad_lines, read.examples)
    _warn_of_template(tokenizer, template, made)


def _warn_of_template(tokenizer: Tokenizer, template: ChatTemplate, made: Manifest) -> None:
    unknown = sorted(set(_LOOKS_SPECIAL.findall(template.text)) - set(tokenizer.added))
    if unknown:
        message = "the chat template writes %s, which are no tokens of the tokenizer: each is several tokens of text"
        _LOG.warning(message, ", ".join(unknown))
    assert made.chat is not None
    if made.chat["end_of_turn"] is None and not made.append_eod:
        _LOG.warning("no special token ends an answer: programs that generate need another sign to stop at")

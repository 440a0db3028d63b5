"""The settings of one job that makes a data set of conversations."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from megacode.base.errors import ConfigError
from megacode.base.urls import is_url
from megacode.chat.encoding import Loss
from megacode.config.model import TokenizerConfig
from megacode.data.published_set import PublishedSet, published_set
from megacode.data.publishing import local_place


@dataclass(frozen=True)
class ChatJob:
    """The settings of one job.

    Attributes:
        inputs: files, directories and globs as of `inputs.find_inputs`; `-`: standard input.
        output_prefix: prefix of the data set; a URL publishes it in object storage.
        tokenizer: what encodes the conversations.
        chat_template: file of the template; None: the tokenizer's own.
        loss: `answers` counts what the model has to write, `all` all tokens of conversations.
        pack: tokens of a window that whole conversations are packed into; None: they follow each other.
        max_length: tokens of a conversation at most; None: `pack`, or no limit.
        truncate, drop_long: what becomes of longer ones; neither: they are refused.
        id_key: key of a conversation's id; None: `id`, where every conversation has one.
        append_eod: end each conversation with the tokenizer's end-of-document token.
        shuffle_seed: of the order of conversations or packed windows; None: the input's order, and 0 for windows.
        skip_bad_lines: skip and count lines that cannot be used, instead of stopping.
        dtype: `auto` (uint16 where the vocabulary allows), `uint16` or `int32`.
        workers: processes that encode; None: one for each core.
        log_interval: conversations between two log lines.
        command: the command line, for the manifest.
        overwrite: replace a data set that is there already.
        work_dir: where a data set is made that is published in object storage.
    """

    inputs: tuple[str, ...]
    output_prefix: str
    tokenizer: TokenizerConfig
    chat_template: str | None = None
    loss: Loss = "answers"
    pack: int | None = None
    max_length: int | None = None
    truncate: bool = False
    drop_long: bool = False
    id_key: str | None = None
    append_eod: bool = False
    shuffle_seed: int | None = None
    skip_bad_lines: bool = False
    dtype: str = "auto"
    workers: int | None = None
    log_interval: int = 100_000
    command: str = ""
    overwrite: bool = False
    work_dir: str | None = None

    @property
    def prefix(self) -> Path:
        """The local prefix of the data set."""
        base = self.output_prefix
        return local_place(base, self.work_dir) if is_url(base) else Path(base)

    @property
    def published(self) -> PublishedSet | None:
        """How the data set is published; None: its prefix is local."""
        return published_set(self.prefix, self.output_prefix)

    @property
    def limit(self) -> int | None:
        """Tokens that a conversation may have; None: any number."""
        given = [length for length in (self.pack, self.max_length) if length is not None]
        return min(given) if given else None

    def check(self) -> None:
        """Check the settings against each other.

        Raises:
            ConfigError: two of them contradict each other, or a number makes no sense.
        """
        for option, value in (("--pack", self.pack), ("--max-length", self.max_length), ("--workers", self.workers)):
            # A single token has no token before it to be predicted from.
            least = 1 if option == "--workers" else 2
            if value is not None and value < least:
                raise ConfigError(f"{value} is too small", option, f"give {least} or more")
        if self.truncate and self.drop_long:
            fix = "give one of them"
            raise ConfigError("conversations are either truncated or dropped", "--truncate --drop-long", fix)
        if (self.truncate or self.drop_long) and self.limit is None:
            option = "--truncate" if self.truncate else "--drop-long"
            raise ConfigError("no length is given", option, "give --max-length N or --pack SEQ_LENGTH as well")
        if self.pack is not None and self.max_length is not None and self.max_length > self.pack:
            message = f"{self.max_length:,} tokens do not fit into a window of {self.pack:,}"
            raise ConfigError(message, "--max-length", "give --pack or less, or leave it out")

"""`data chat`: conversations, through a chat template, to a data set with a loss mask."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import typer

from megacode.base.errors import ConfigError
from megacode.base.logs import setup_logging
from megacode.cli.data_options import IdKey, Inputs, Overwrite, SkipBadLines, WorkDir, command_line
from megacode.data.tool_exit import run_tool

Template = Annotated[
    str | None,
    typer.Option("--chat-template", metavar="FILE", help="Jinja file of the template; default: the tokenizer's own."),
]


def chat(
    ctx: typer.Context,
    input_files: Inputs,
    output_prefix: Annotated[str, typer.Option(help="Prefix of the data set to make; may be a URL.")],
    tokenizer: Annotated[str, typer.Option(help="Directory with a tokenizer.json, or a SentencePiece .model.")],
    # What is made of a conversation.
    chat_template: Template = None,
    loss: Annotated[
        Literal["answers", "all"], typer.Option(help="Tokens that count in the loss: the assistant's, or all.")
    ] = "answers",
    append_eod: Annotated[
        bool, typer.Option("--append-eod", help="End each conversation with the end-of-document token.")
    ] = False,
    pack: Annotated[
        int | None,
        typer.Option(metavar="SEQ_LENGTH", help="Fit whole conversations into windows of this many tokens."),
    ] = None,
    max_length: Annotated[
        int | None, typer.Option(metavar="TOKENS", help="Longest conversation; default: --pack, or no limit.")
    ] = None,
    truncate: Annotated[bool, typer.Option("--truncate", help="Cut longer conversations at their end.")] = False,
    drop_long: Annotated[bool, typer.Option("--drop-long", help="Leave longer conversations out.")] = False,
    # How the work is done.
    id_key: IdKey = None,
    shuffle_seed: Annotated[
        int | None,
        typer.Option(help="Shuffle conversations; default: keep their order. Packed windows: default 0."),
    ] = None,
    skip_bad_lines: SkipBadLines = False,
    workers: Annotated[int | None, typer.Option(help="Encoding processes; default: all cores.")] = None,
    log_interval: Annotated[int, typer.Option(help="Conversations between two log lines.")] = 100_000,
    dtype: Annotated[Literal["auto", "uint16", "int32"], typer.Option(help="Dtype of a token on disk.")] = "auto",
    overwrite: Overwrite = False,
    work_dir: WorkDir = None,
) -> None:
    """Turn conversations into Megatron's .bin and .idx with a loss mask.

    \b
    megacode data chat --input 'raw/chat*.jsonl.zst' --output-prefix data/chat
        --tokenizer tokenizer/ --pack 4096 --drop-long

    Each record has messages (role and content), or prompt and completion. The tokenizer's chat template writes them;
    only what the assistant says counts in the loss, with the token that ends its turn (docs/fine_tuning.md).
    Writes data/chat.bin, .idx, .mask and .manifest.json. Interrupted, it starts again.
    """
    setup_logging()

    # The slow import too: a signal while it lasts ends the command as one during the work does.
    def work() -> None:
        from megacode.chat.making import make_chat

        make_chat(_job(ctx.params, command_line(ctx)))

    raise typer.Exit(run_tool(work))


def _job(given: dict[str, Any], command: str) -> Any:
    """Return what to make, from the options of `chat`.

    Raises:
        ConfigError: an option's value is invalid.
    """
    from megacode.chat.job import ChatJob
    from megacode.data.tokenizer import tokenizer_at

    if not given["tokenizer"]:
        raise ConfigError("it is empty", "--tokenizer", "give the directory of the tokenizer")
    # All other options have the names of the job's fields.
    same = {name: value for name, value in given.items() if name not in ("input_files", "tokenizer")}
    return ChatJob(
        inputs=tuple(given["input_files"]), tokenizer=tokenizer_at(given["tokenizer"]), command=command, **same
    )

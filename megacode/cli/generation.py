"""`generate`: text from a trained model, for one prompt or interactively."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from megacode.base.errors import ConfigError, DataError
from megacode.base.logs import setup_logging
from megacode.cli.options import Json, float_option, print_json

if TYPE_CHECKING:
    from megacode.eval.generate import GeneratedText, Sampling, TextWriter

log = logging.getLogger(__name__)
app = typer.Typer()


@app.command()
def generate(
    model: Annotated[
        Path, typer.Argument(help="An exported model, or a run: its newest checkpoint.", show_default=False)
    ],
    # The prompt; without one it is read from standard input, or asked for at a terminal.
    prompt: Annotated[str | None, typer.Option(help="The text to continue; '' starts from nothing.")] = None,
    prompt_file: Annotated[Path | None, typer.Option(help="A UTF-8 file with the prompt.")] = None,
    chat: Annotated[
        bool, typer.Option("--chat", help="Ask in the model's chat template; the end of its turn ends the text.")
    ] = False,
    system: Annotated[str | None, typer.Option(help="With --chat: a system message before the prompt.")] = None,
    # Sampling.
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Maximum number of generated tokens.")] = 128,
    temperature: Annotated[float, float_option("Sampling temperature; 0: greedy decoding.", min=0)] = 0.8,
    top_p: Annotated[
        float, float_option("Sample from the most likely tokens with this total probability.", min=1e-6, max=1)
    ] = 0.95,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the first text; each further text uses the next one.")] = 0,
    count: Annotated[int, typer.Option(min=1, help="Number of texts.")] = 1,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or cuda:N; default: CUDA if available.")] = None,
    as_json: Json = False,
) -> None:
    """Generate text with a trained model: from --prompt, from standard input, or interactively at a terminal."""
    setup_logging()
    asked = _prompt(prompt, prompt_file)
    if asked is None and (as_json or count > 1):
        where, fix = "--json" if as_json else "--count", "give --prompt or --prompt-file, or pipe the prompt in"
        raise ConfigError("there is no prompt", where, fix)
    if system is not None and not chat:
        raise ConfigError("only a conversation has a system message", "--system", "give --chat as well, or omit it")
    if count > 1 and temperature == 0:
        fix = "leave it out, or give a --temperature above 0"
        raise ConfigError("at temperature 0 all texts are equal", f"--count {count}", fix)
    # Everything that needs no model is checked by now: these imports load torch and transformers.
    from megacode.eval.generate import Sampling, TextWriter, model_of
    from megacode.eval.harness import check_device
    from megacode.eval.offline import surroundings

    check_device(device)
    hf_dir, sampling = model_of(model), Sampling(max_new_tokens, temperature, top_p, seed)
    before = [] if system is None else [{"role": "system", "content": system}]
    with surroundings(offline=True, own_cache=False, verbose=False):
        writer = TextWriter.open(hf_dir, device)
        if asked is None:
            _converse(writer, sampling, before if chat else None)
            return
        ids = writer.chat_ids([*before, {"role": "user", "content": asked}]) if chat else writer.ids(asked)
        texts = [writer.write(ids, sampling, number, chat=chat) for number in range(count)]
        if as_json:
            settings = {
                "max_new_tokens": max_new_tokens, "temperature": temperature, "top_p": top_p,
                "chat": chat, "system": system,
            }  # fmt: skip
            print_json({"model": str(hf_dir), "prompt": asked, "settings": settings, "texts": [*map(_document, texts)]})
        else:
            _stream_all(texts)


def _prompt(prompt: str | None, file: Path | None) -> str | None:
    """Return the prompt; None if it is to be read line by line from a terminal.

    The final line end of a file or a pipe is not part of the prompt.

    Raises:
        ConfigError: two prompts are given, or standard input is empty.
        DataError: the prompt cannot be read.
    """
    if prompt is not None and file is not None:
        raise ConfigError("two prompts are given", "--prompt and --prompt-file", "give one of them")
    if prompt is not None:
        return prompt
    if file is None and sys.stdin is not None and sys.stdin.isatty():
        return None
    where = str(file) if file else "standard input"
    # Decoded here, not by Python's text layer: a locale such as C would read UTF-8 as something else.
    try:
        raw = file.read_bytes() if file else sys.stdin.buffer.read() if sys.stdin is not None else b""
        text = raw.decode("utf-8")
    except OSError as error:
        raise DataError(f"the prompt cannot be read: {error.strerror}", where, "name a text file") from error
    except UnicodeDecodeError as error:
        raise DataError("the prompt is not UTF-8", where, "convert it, for example with iconv") from error
    if not text and file is None:
        fix = "give one; '' starts a text from nothing"
        raise ConfigError("there is no prompt: standard input is empty", "--prompt", fix)
    return text.removesuffix("\n").removesuffix("\r")


def _document(text: GeneratedText) -> dict[str, Any]:
    written = "".join(text)
    return {"text": written, "tokens": text.tokens, "ended": text.ended, "seed": text.seed}


def _stream_all(texts: Sequence[GeneratedText]) -> None:
    for number, text in enumerate(texts, 1):
        if len(texts) > 1:
            typer.echo(f"--- {number} of {len(texts)}, seed {text.seed} ---")
        _stream(text)


def _stream(text: GeneratedText, printed: list[str] | None = None) -> None:
    """Print a text while it is generated, collect it in `printed`, and log why it was cut, if it was."""
    for piece in text:
        typer.echo(piece, nl=False)
        sys.stdout.flush()
        if printed is not None:  # piece by piece: Ctrl-C must not lose what is on the screen already
            printed.append(piece)
    typer.echo()
    if text.ended == "context":
        log.info("cut after %d tokens: the model's context is full", text.tokens)
    elif text.ended == "max_new_tokens":
        log.info("cut after %d tokens (--max-new-tokens)", text.tokens)


def _converse(writer: TextWriter, sampling: Sampling, before: list[dict[str, str]] | None) -> None:
    """Answer prompts typed at a terminal, one line each; Ctrl-C stops a text, Ctrl-D quits.

    Args:
        writer: of the model.
        sampling: how tokens are chosen.
        before: messages before the first prompt of a conversation; None: each prompt is a text to continue.
    """
    chat, turns = before is not None, list(before or [])
    if chat:
        # A model without a template, or one that refuses a system message, is refused before typing.
        writer.chat_ids([*turns, {"role": "user", "content": "Hello"}])
    typer.echo("Type a prompt. Ctrl-C stops a text, Ctrl-D quits.", err=True)
    for number, line in enumerate(_lines()):
        turns.append({"role": "user", "content": line})
        try:
            ids = _chat_ids(writer, turns) if chat else writer.ids(line)
            text = writer.write(ids, sampling, number, chat=chat)
        except (ConfigError, DataError) as error:
            typer.echo(str(error), err=True)
            turns.pop()  # a refused prompt must not stay in the conversation
            continue
        printed: list[str] = []
        with suppress(KeyboardInterrupt):
            _stream(text, printed)
        turns.append({"role": "assistant", "content": "".join(printed)})


def _chat_ids(writer: TextWriter, turns: list[dict[str, str]]) -> list[int]:
    """Return a conversation's ids; drop its oldest turns (from `turns` too) until it fits the context."""
    ids, kept = writer.chat_ids(turns), int(turns[0]["role"] == "system")
    while writer.context is not None and len(ids) >= writer.context and len(turns) > kept + 1:
        log.info("the context is full: the oldest question and its answer are dropped")
        del turns[kept : kept + 2]  # in pairs: templates refuse a conversation that starts with an answer
        ids = writer.chat_ids(turns)
    return ids


def _lines() -> Iterator[str]:
    with suppress(ImportError):
        import readline  # noqa: F401  (gives `input` line editing)
    while True:
        try:
            line = input("> ")
        except KeyboardInterrupt:  # discards the line, as a shell does
            typer.echo(err=True)
            continue
        except EOFError:
            typer.echo(err=True)
            return
        if line:
            yield line

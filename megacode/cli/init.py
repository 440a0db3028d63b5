"""`init`: write a first config for the user's own data sets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from megacode.base.errors import ConfigError
from megacode.base.user_paths import refuse_existing, refuse_unwritable
from megacode.cli.data_options import Overwrite

app = typer.Typer()


@app.command()
def init(
    data: Annotated[
        list[str],
        typer.Option(
            metavar="NAME=PREFIX", help="A data set: a name, and its path without .bin and .idx; may be repeated."
        ),
    ],
    tokenizer: Annotated[
        str, typer.Option(metavar="PATH", help="Its tokenizer: a directory with a tokenizer.json, or a .model file.")
    ],
    out: Annotated[Path, typer.Argument(help="The config to write.")] = Path("run.yaml"),
    # Without these, a choice is made and explained in the file.
    model: Annotated[
        str, typer.Option(metavar="PRESET", help="Model preset, such as llama-1b; default: chosen by the data's size.")
    ] = "",
    tokens: Annotated[
        str,
        typer.Option(
            help="How long to train, such as 20B; default: one pass over the data, at most 20 tokens per parameter."
        ),
    ] = "",
    seq_length: Annotated[
        int | None, typer.Option(min=16, help="Sequence length in tokens; default: chosen by model and data.")
    ] = None,
    name: Annotated[str, typer.Option(help="Name of the run; default: the file's name.")] = "",
    overwrite: Overwrite = False,
) -> None:
    """Write a run.yaml for your own data sets.

    \b
    megacode init --data text=data/text_text_document --data code=data/code_text_document
        --tokenizer tokenizer/

    Reads the sizes of the data sets and blends in proportion. Every choice is explained in the file.
    """
    if out.suffix not in (".yaml", ".yml"):  # `--data a=x b=y` would end up here, with b=y as the file
        fix = "name a file such as run.yaml, and give --data before each data set"
        raise ConfigError(f"{out} is not a .yaml file", "OUT", fix)
    refuse_existing([out], overwrite, "OUT")
    refuse_unwritable(out, "OUT")
    from megacode.base.files import write_text
    from megacode.cli.init_config import InitOptions, compose
    from megacode.cli.init_text import next_steps, render

    # Composed and planned in memory: a config that `megacode plan` would refuse is never written.
    config = compose(InitOptions(out, name or out.stem, tuple(data), tokenizer, model, tokens, seq_length))
    write_text(out, render(config))
    for line in next_steps(config, out):
        typer.echo(line)

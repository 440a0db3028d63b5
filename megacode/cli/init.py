"""A first config for one's own data sets: `init`."""

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
        typer.Option(metavar="NAME=PREFIX", help="A data set, path without .bin and .idx; may be repeated."),
    ],
    tokenizer: Annotated[
        str, typer.Option(metavar="PATH", help="Its tokenizer: a directory with a tokenizer.json, or a .model file.")
    ],
    out: Annotated[Path, typer.Argument(help="The config to write.")] = Path("run.yaml"),
    model: Annotated[
        str, typer.Option(metavar="PRESET", help="A named model, such as llama-1b; absent: what fits the data.")
    ] = "",
    tokens: Annotated[
        str, typer.Option(help="How long to train, such as 20B; absent: one pass, or 20 tokens a parameter if less.")
    ] = "",
    seq_length: Annotated[int | None, typer.Option(min=16, help="Tokens a sequence; absent: by the model.")] = None,
    name: Annotated[str, typer.Option(help="Name of the run; absent: that of the file.")] = "",
    overwrite: Overwrite = False,
) -> None:
    """Write a run.yaml for your own data sets.

    \b
    megacode init --data text=data/text_text_document --data code=data/code_text_document
        --tokenizer tokenizer/

    Sizes are read from the data sets. The blend follows them, and every choice is explained in the file.
    """
    if out.suffix not in (".yaml", ".yml"):  # `--data a=x b=y` would end up here, with b=y as the file
        fix = "name a file such as run.yaml, and give --data before each data set"
        raise ConfigError(f"{out} is not a .yaml file", "OUT", fix)
    refuse_existing([out], overwrite, "OUT")
    refuse_unwritable(out, "OUT")
    from megacode.base.files import write_text
    from megacode.cli.init_config import InitOptions, compose
    from megacode.cli.init_text import next_steps, render

    config = compose(InitOptions(out, name or out.stem, tuple(data), tokenizer, model, tokens, seq_length))
    write_text(out, render(config))
    for line in next_steps(config, out):
        typer.echo(line)

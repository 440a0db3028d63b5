"""Command lines of the data tools, both as commands of megacode and as the scripts in `tools/`.

Megatron-LM's flags take several values after one flag (`--json-keys title text`), which click does not support.
"""

from __future__ import annotations

import shlex
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

if TYPE_CHECKING:
    pass

_GIVEN = "megacode.data.arguments"  # key of the command line in click's context; click asks for a name with a package

Inputs = Annotated[
    list[str],
    typer.Option("--input", metavar="FILE...", help="JSON-lines or Parquet files, directories, quoted globs, or -."),
]
JsonKeys = Annotated[
    list[str], typer.Option(metavar="KEY...", help="Keys that hold text; a.b is the key b of the object under a.")
]
IdKey = Annotated[
    str | None, typer.Option(help="Key of the documents' ids, kept in PREFIX_KEY_document.ids; default: none.")
]
SkipBadLines = Annotated[bool, typer.Option("--skip-bad-lines", help="Skip and count lines that cannot be read.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace existing output.")]
WorkDir = Annotated[
    str | None,
    typer.Option(help="Local directory where output for object storage is made; default: megacode-work."),
]


class ToolCommand(TyperCommand):
    """A command whose list options take one or more values each, and which keeps its command line for manifests."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Keep the arguments as given, and repeat flags before each of their values, as click wants them."""
        ctx.meta[_GIVEN] = list(args)
        lists = {flag for param in self.params if getattr(param, "multiple", False) for flag in param.opts}
        spread, bare = _spread(args, lists)
        if bare and "--help" not in args:
            ctx.fail(f"Option '{bare}' requires an argument.")  # click's own wording
        return super().parse_args(ctx, spread)


def _spread(arguments: Sequence[str], lists: Collection[str]) -> tuple[list[str], str]:
    """Turn `--input a b` into `--input a --input b`; return that, and the first flag without a value, or ''."""
    spread: list[str] = []
    flag, waits, bare = "", False, ""  # the current list flag; whether its first value is still to come
    for argument in arguments:
        if argument.startswith("-") and argument != "-":  # `-` is standard input
            bare = bare or (flag if waits else "")
            name, has_value, _ = argument.partition("=")
            flag = name if name in lists else ""
            waits = bool(flag) and not has_value
        elif flag and not waits:  # a second value, or one after `--input=a`
            spread.append(flag)
        else:
            waits = False
        spread.append(argument)
    return spread, bare or (flag if waits else "")


def command_line(ctx: typer.Context) -> str:
    """Return the command line as given: of `megacode`, however it was started, or of a script."""
    # A script's command has no parent context. A manifest must name what can be typed again.
    program = ctx.info_name if ctx.parent is None else f"megacode {ctx.parent.info_name} {ctx.info_name}"
    return f"{program} {shlex.join(ctx.meta[_GIVEN])}"


def run_as_script(app: typer.Typer, name: str, script: str, arguments: Sequence[str] | None) -> int:
    """Run one command of an app as a program of its own.

    Args:
        app: the commands.
        name: the command to run.
        script: the program's name in usage and manifests.
        arguments: its command line; None: this process's.

    Returns:
        The exit code.
    """
    group = typer.main.get_command(app)
    assert isinstance(group, TyperGroup)
    try:
        # click ends a program by SystemExit, with or without an error.
        group.commands[name].main(args=None if arguments is None else [*arguments], prog_name=script)
    except SystemExit as end:
        return int(end.code or 0)
    return 0

#!/usr/bin/env python3
"""Train a tokenizer on JSON lines.

    tools/train_tokenizer.py --kind huggingface --input 'corpus/*.jsonl' --vocab-size 32000 --output tokenizer/

writes a directory that transformers' AutoTokenizer loads (huggingface) or one with a tokenizer.model (sentencepiece).
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from megacode.base.errors import ConfigError
from megacode.base.logs import setup_logging
from megacode.base.units import parse_count
from megacode.data.tool_exit import run_tool
from megacode.data.train_tokenizer import DEFAULT_BYTES, train_tokenizer


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = arguments.add_argument
    add("--kind", choices=("huggingface", "sentencepiece"), default="huggingface", help="library it is for")
    add("--input", nargs="+", required=True, help="JSON-lines files or globs: .jsonl, .json, .gz, .zst")
    add("--json-keys", nargs="+", default=["text"], help="keys that hold text")
    add("--vocab-size", required=True, help="tokens, special ones included, for example 32000 or 32k")
    add("--output", type=Path, required=True, help="directory to write")
    add("--max-bytes", default=str(DEFAULT_BYTES), help="learn from so much of the input, taken evenly")
    add("--overwrite", action="store_true", help="replace what is there already")
    return arguments


def train(arguments: argparse.Namespace) -> None:
    """Train as the command line says."""
    sizes = {flag: _count(flag, getattr(arguments, flag)) for flag in ("vocab_size", "max_bytes")}
    made = train_tokenizer(
        arguments.kind,
        arguments.input,
        sizes["vocab_size"],
        arguments.output,
        arguments.json_keys,
        sizes["max_bytes"],
        arguments.overwrite,
    )
    logging.getLogger("megacode").info("%s: %d tokens, hash %s", made.path, made.vocab_size, made.hash[:12])


def _count(flag: str, text: str) -> int:
    try:
        return parse_count(text)
    except ValueError as error:
        raise ConfigError(str(error), f"--{flag.replace('_', '-')}", "write for example 32000 or 32k") from None


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool and return its exit code."""
    arguments = parser().parse_args(argv)
    setup_logging()
    return run_tool(lambda: train(arguments))


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python3
"""Several .bin/.idx data sets into one, streamed: less than 300 MB of memory, whatever their size.

    tools/merge_datasets.py --input 'data/web_text_document.shard_*_of_0016' --output-prefix data/web_text_document

Shards of tools/preprocess_data.py --shard become what one process makes of the whole input, to the byte; made with
--shuffle-seed, they are shuffled here. Other data sets follow each other in the order given. They must have one
tokenizer and one token type; a shard that is missing, not finished or damaged is named, and nothing is written.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence

from megacode.base.logs import setup_logging
from megacode.data.merge import merge
from megacode.data.tool_exit import run_tool


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = arguments.add_argument
    add("--input", nargs="+", required=True, help="prefixes without .bin and .idx, or quoted globs of them")
    add("--output-prefix", required=True, help="prefix of the data set to make")
    add("--shuffle-seed", type=int, help="shuffle the documents (default: as the shards were made to be, or not)")
    add("--remove-shards", action="store_true", help="remove shards once the whole is on disk")
    add("--overwrite", action="store_true", help="replace what is there already")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool and return its exit code."""
    given = parser().parse_args(argv)
    setup_logging()
    command = shlex.join(["tools/merge_datasets.py", *(sys.argv[1:] if argv is None else argv)])
    return run_tool(
        lambda: merge(
            given.input,
            given.output_prefix,
            given.shuffle_seed,
            remove_shards=given.remove_shards,
            command=command,
            overwrite=given.overwrite,
        )
    )


if __name__ == "__main__":
    sys.exit(main())

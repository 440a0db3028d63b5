#!/usr/bin/env python3
"""JSON lines to Megatron's .bin/.idx, with Megatron-LM's flags and its bytes.

    tools/preprocess_data.py --input 'raw/*.jsonl.zst' --output-prefix data/web --tokenizer-type HuggingFaceTokenizer \
        --tokenizer-model tokenizer/ --append-eod --shuffle-seed 1234

writes data/web_text_document.bin, .idx and .manifest.json. Several processes or machines share the work with
--shard 0/16 to --shard 15/16; of their shards tools/merge_datasets.py makes what one process makes, to the byte.
slurm/preprocess.sh does both.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence

from megacode.base.errors import ConfigError
from megacode.base.logs import setup_logging
from megacode.config.model import TokenizerConfig
from megacode.data.machine_files import Shard
from megacode.data.preprocess import Job, preprocess
from megacode.data.tool_exit import run_tool

TOKENIZER_KINDS = {
    "HuggingFaceTokenizer": "huggingface",
    "SentencePieceTokenizer": "sentencepiece",
    "GPTSentencePieceTokenizer": "sentencepiece",
    "Llama2Tokenizer": "sentencepiece",
}
REFUSED = {
    "split_sentences": "split them beforehand: a list of texts under a key becomes a document of several sequences",
    "find_optimal_num_workers": "--workers is the number of threads; the number of cores is the best",
    "vocab_file": "make a tokenizer.json of it and give --tokenizer-type HuggingFaceTokenizer --tokenizer-model DIR",
    "merge_file": "make a tokenizer.json of it and give --tokenizer-type HuggingFaceTokenizer --tokenizer-model DIR",
}


def parser() -> argparse.ArgumentParser:
    """Return the command line: Megatron-LM's flags and megacode's own."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = arguments.add_argument
    add("--input", nargs="+", required=True, help="JSON-lines files or globs: .jsonl, .json, .gz, .zst")
    add("--json-keys", nargs="+", default=["text"], help="keys that hold text; each makes a data set")
    add("--output-prefix", required=True, help="data sets are PREFIX_KEY_document.bin and .idx")
    add("--tokenizer-type", required=True, help=f"one of {', '.join(TOKENIZER_KINDS)}")
    add("--tokenizer-model", required=True, help="directory with a tokenizer.json, or a SentencePiece .model")
    add("--append-eod", action="store_true", help="end each document with the end-of-document token")
    add("--workers", type=int, help="threads that encode (default: all cores)")
    add("--log-interval", type=int, default=100_000, help="documents between two lines of the log")
    add("--shuffle-seed", type=int, help="shuffle the documents: a run reads them as stored (default: keep order)")
    add("--shard", metavar="I/N", help="only part I of N of the input, I from 0 as in an array 0-15; then merge")
    add("--skip-bad-lines", action="store_true", help="leave out and count lines that cannot be read")
    add("--dtype", choices=("auto", "uint16", "int32"), default="auto", help="type of a token on disk")
    add("--overwrite", action="store_true", help="replace what is there already")
    add("--partitions", type=int, default=1, help="accepted; one process with threads does the work, order is kept")
    add("--keep-sequential-samples", action="store_true", help="accepted; the order is always kept")
    for name in ("split-sentences", "find-optimal-num-workers"):
        add(f"--{name}", action="store_true", help=argparse.SUPPRESS)
    for name in ("vocab-file", "merge-file"):
        add(f"--{name}", help=argparse.SUPPRESS)
    return arguments


def job(arguments: argparse.Namespace, command: str) -> Job:
    """Turn the command line into a job.

    Raises:
        ConfigError: if it asks for what this tool does not do.
    """
    for name, fix in REFUSED.items():
        if getattr(arguments, name):
            raise ConfigError("this flag of Megatron-LM is not supported", f"--{name.replace('_', '-')}", fix)
    if arguments.tokenizer_type not in TOKENIZER_KINDS:
        what = f"the tokenizer type {arguments.tokenizer_type!r} is not supported"
        raise ConfigError(what, "--tokenizer-type", f"give one of {', '.join(TOKENIZER_KINDS)}")
    if arguments.workers is not None and arguments.workers < 1:
        raise ConfigError(f"{arguments.workers} threads cannot work", "--workers", "give 1 or more, or leave it out")
    return Job(
        inputs=tuple(arguments.input),
        output_prefix=arguments.output_prefix,
        tokenizer=TokenizerConfig(kind=TOKENIZER_KINDS[arguments.tokenizer_type], path=arguments.tokenizer_model),
        keys=tuple(arguments.json_keys),
        append_eod=arguments.append_eod,
        shuffle_seed=arguments.shuffle_seed,
        skip_bad_lines=arguments.skip_bad_lines,
        dtype=arguments.dtype,
        workers=arguments.workers,
        log_interval=arguments.log_interval,
        command=command,
        shard=Shard.parse(arguments.shard) if arguments.shard else None,
        overwrite=arguments.overwrite,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool and return its exit code."""
    arguments = parser().parse_args(argv)
    setup_logging()
    command = shlex.join(["tools/preprocess_data.py", *(sys.argv[1:] if argv is None else argv)])
    return run_tool(lambda: preprocess(job(arguments, command)))


if __name__ == "__main__":
    sys.exit(main())

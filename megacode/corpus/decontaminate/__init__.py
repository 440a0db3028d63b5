"""Decontamination: documents that hold items of benchmarks.

The map pass writes where runs of words of the items occur (`MatchWriter`). The reduce pass counts how common each run
is in the corpus (`detector_of`), decides which documents hold an item (`Detector.hits`), and reports it by task before
anything is dropped (`contamination_report`).
"""

from megacode.corpus.decontaminate.benchmarks import (
    Benchmark,
    items_from_file,
    items_made_in,
    read_benchmarks,
    write_benchmarks,
)
from megacode.corpus.decontaminate.detector import Detector, Hit, detector_of
from megacode.corpus.decontaminate.index import Index
from megacode.corpus.decontaminate.match_files import MatchWriter, read_matches
from megacode.corpus.decontaminate.report import contamination_report, contamination_table

__all__ = [
    "Benchmark",
    "Detector",
    "Hit",
    "Index",
    "MatchWriter",
    "contamination_report",
    "contamination_table",
    "detector_of",
    "items_from_file",
    "items_made_in",
    "read_benchmarks",
    "read_matches",
    "write_benchmarks",
]  # fmt: skip

"""Duplicates: exact and near ones, across sources and against held-out documents, in bounded memory.

The map pass writes the signatures of its documents (`SignatureWriter`), the reduce pass finds the duplicates among the
documents of all shards (`find_duplicates`) and reports them (`duplicates_report`).
"""

from megacode.corpus.duplicates.collection import SignedShard
from megacode.corpus.duplicates.reduce import REASONS, Duplicates, find_duplicates
from megacode.corpus.duplicates.report import duplicates_report, duplicates_table
from megacode.corpus.duplicates.signature_files import SignatureWriter
from megacode.corpus.duplicates.signatures import method

__all__ = [
    "REASONS",
    "Duplicates",
    "SignatureWriter",
    "SignedShard",
    "duplicates_report",
    "duplicates_table",
    "find_duplicates",
    "method",
]

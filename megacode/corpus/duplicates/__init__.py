"""Duplicates: exact and near ones, across sources and against held-out documents, in bounded memory."""

from megacode.corpus.duplicates.signature_files import SignatureFiles, SignatureWriter
from megacode.corpus.duplicates.signatures import Signatures, method, signatures

__all__ = ["SignatureFiles", "SignatureWriter", "Signatures", "method", "signatures"]

"""Kinds: how records of raw dumps become documents. What a kind cannot use it counts, with the reason."""

from megacode.corpus.kinds.registry import FILE_KINDS, KINDS, PARSERS, VERSIONS, WHOLE_FILES, make_file_kind, make_kind

__all__ = ["FILE_KINDS", "KINDS", "PARSERS", "VERSIONS", "WHOLE_FILES", "make_file_kind", "make_kind"]

"""Places in object storage, written as URLs."""

from __future__ import annotations

import os
import re

SCHEMES = ("s3", "gs", "az")
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


def is_url(path: str | os.PathLike[str]) -> bool:
    """Return whether a path is a URL such as `s3://bucket/prefix`, and no local path."""
    return _URL.match(os.fspath(path)) is not None


def absolute(path: str) -> str:
    """Return a local path as an absolute one; a URL is returned as it is."""
    return path if is_url(path) else os.path.abspath(path)

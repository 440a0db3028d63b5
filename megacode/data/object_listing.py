"""Which objects a URL names: one object, all below a directory, or those that match a glob.

Object storage has no directories: keys with one beginning, up to a slash, are called one here. A list gives sizes and
ETags too, so the objects are pinned by it, and no request for each of 100,000 inputs is needed.
"""

from __future__ import annotations

import fnmatch
import re
from concurrent.futures import ThreadPoolExecutor

from megacode.base.errors import DataError
from megacode.data import objects
from megacode.data.object_requests import Requests
from megacode.data.objects import ObjectPath

_MAGIC = re.compile(r"[*?[]")
_PAGE = 1000  # keys a request, which is S3's limit


def matching(pattern: str) -> tuple[list[ObjectPath], list[ObjectPath]]:
    """Return what a URL or a glob of URLs names; `**` stands for any directories.

    Returns:
        the objects, sorted by their keys; and those below directories that it names, without hidden ones.

    Raises:
        DataError: the bucket does not exist, or cannot be read.
    """
    rest, exact = pattern.partition("://")[2], ObjectPath(pattern)
    if "/" in rest.strip("/") and not pattern.endswith("/") and exact.exists():
        return [exact], []
    magic = _MAGIC.search(pattern)
    like = rest.strip("/").split("/")
    objects_found, inside = [], []
    for path in below(pattern[: magic.start()].rpartition("/")[0] if magic else pattern):
        names = str(path).partition("://")[2].split("/")
        if _fits(names, like):
            objects_found.append(path)
        elif any(_fits(names[:n], like) and not _hidden(names[n:]) for n in range(1, len(names))):
            inside.append(path)
    return objects_found, inside


def _hidden(names: list[str]) -> bool:
    return any(name.startswith(".") for name in names)


def _fits(names: list[str], like: list[str]) -> bool:
    """Tell whether the names in a key match those of a glob: as in a shell, `*` matches no slash and no first dot."""
    if not like:
        return not names
    if like[0] == "**":
        return _fits(names, like[1:]) or (bool(names) and not _hidden(names[:1]) and _fits(names[1:], like))
    if not names or (_hidden(names[:1]) and not like[0].startswith(".")):
        return False
    return fnmatch.fnmatchcase(names[0], like[0]) and _fits(names[1:], like[1:])


def below(directory: str) -> list[ObjectPath]:
    """Return all objects below a directory or bucket, sorted by their keys.

    Raises:
        DataError: the bucket does not exist, or cannot be read.
    """
    asked = Requests(directory, objects.settings())

    def pages() -> list[dict[str, object]]:
        stream = asked.library.list(asked.store, prefix=asked.key or None, chunk_size=_PAGE)
        # Consoles mark an empty directory by an object without bytes.
        return [row for page in stream for row in page if row["size"] or "." in row["path"].rpartition("/")[2]]

    scheme = directory.partition("://")[0]
    rows = sorted(asked.asked(pages), key=lambda row: str(row["path"]))
    urls = [f"{scheme}://{asked.bucket}/{row['path']}" for row in rows]
    if scheme == "s3":
        facts = ((url, row["size"], row["e_tag"]) for url, row in zip(urls, rows, strict=True))
        return [_pinned(url, size, etag) for url, size, etag in facts]
    # Azure's list writes ETags in another way than its other answers do, and they would not be equal.
    paths = [ObjectPath(url) for url in urls]
    with ThreadPoolExecutor(objects.settings().requests) as threads:
        list(threads.map(ObjectPath.exists, paths))
    return paths


def _pinned(url: str, size: object, etag: object) -> ObjectPath:
    if not etag:
        message = "the server gives it no ETag, so that a change could not be noticed"
        raise DataError(message, url, "use storage that gives ETags, or copy it to a local disk")
    return objects.pinned(url, int(str(size)), str(etag))

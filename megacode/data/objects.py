"""Files of data sets in object storage, read as if they were local.

`place` turns a prefix into the path of a file: a `Path`, or an `ObjectPath` for a URL. An `ObjectPath` can be asked
whether it exists and how large it is, and it can be opened. Indexes are copied whole into the cache and mapped; all
other files are read in blocks, through the cache. Reads in order (a raw input, a hash of a whole file) go past the
cache, see `object_reader`.

A process sees one version of an object: the one that was there when it first looked (see `object_store.Pin`).
"""

from __future__ import annotations

import functools
import io
import os
import threading
from collections.abc import Iterable
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from pathlib import Path, PosixPath
from typing import Any, BinaryIO, NamedTuple

import xxhash

from megacode.base.urls import is_url
from megacode.config.objects import Objects
from megacode.data.block_cache import BLOCK_BYTES, BlockCache, default_directory
from megacode.data.object_reader import CHUNK_BYTES, ObjectReader
from megacode.data.object_requests import forget_connections
from megacode.data.object_store import ObjectStore, Pin
from megacode.data.object_writer import ObjectWriter

_GAP_BLOCKS = 4  # closer ranges are one request: 256 KiB cost less than a request of its own
_RUN_BLOCKS = 64  # of a request at most, 4 MiB: it bounds memory and what a failure repeats
_MAPPED = (".idx", ".ids")

_settings = Objects()
_opened: dict[str, RemoteObject] = {}
_lock = threading.Lock()


def use(settings: Objects) -> None:
    """Set how object storage is read from now on by this process: commands without a config use the defaults."""
    global _settings
    # Readers that are open stay as they are; the next ones connect with the new settings.
    if settings != _settings:
        forget()
        _settings = settings


def settings() -> Objects:
    """Return how object storage is read."""
    return _settings


def forget() -> None:
    """Let the next reader of an object look at it again; those that are open keep the version they have."""
    with _lock:
        _opened.clear()
    forget_connections()


def place(path: str) -> Path:
    """Return the path of a file; of a URL, one that reads object storage."""
    return ObjectPath(path) if is_url(path) else Path(path)


def remote(path: str | os.PathLike[str]) -> RemoteObject:
    """Return an object, pinned.

    Raises:
        FileNotFoundError: there is no such object.
        DataError: it cannot be reached.
    """
    url = os.fspath(path)
    with _lock:
        known = _opened.get(url)
    if known is not None:
        return known
    # Outside of the lock: many objects may be looked at side by side.
    store = ObjectStore(url, _settings)
    pin = store.pin()
    if pin is None:
        raise FileNotFoundError(2, "there is no such object", url)
    return _keep(url, RemoteObject(store, pin, _settings))


def _keep(url: str, newcomer: RemoteObject) -> RemoteObject:
    with _lock:
        # The first of several that looked at the same time wins, so that all threads see one version.
        return _opened.setdefault(url, newcomer)


def pinned(url: str, size: int, etag: str) -> ObjectPath:
    """Return the path of an object whose version is known: from a list, or from an earlier process.

    Nothing is asked for. If the object is another one by now, reading it is an error.
    """
    _keep(url, RemoteObject(ObjectStore(url, _settings), Pin(size, etag), _settings))
    return ObjectPath(url)


def etags(paths: Iterable[Path]) -> dict[str, str]:
    """Return, by URL, the ETags of those paths that are objects."""
    return {str(path): path.etag() for path in paths if isinstance(path, ObjectPath)}


class ObjectPath(PosixPath):
    """The path of an object: what readers of data sets ask of a path, over the network.

    Paths drop one of the slashes of `s3://`; the text of this one has both.
    """

    def __str__(self) -> str:
        return super().__str__().replace(":/", "://", 1)

    def __fspath__(self) -> str:
        return str(self)

    def resolve(self, strict: bool = False) -> ObjectPath:
        """Return the path itself: URLs are absolute, and objects are no links."""
        return self

    def absolute(self) -> ObjectPath:
        """Return the path itself."""
        return self

    def etag(self) -> str:
        """Return the ETag of the version that this process sees."""
        return remote(self).etag

    def unlink(self, missing_ok: bool = False) -> None:
        """Remove the object."""
        ObjectWriter(str(self), _settings).delete()
        with _lock:
            _opened.pop(str(self), None)

    def exists(self, **_: Any) -> bool:
        """Return whether there is such an object."""
        try:
            return bool(remote(self))
        except FileNotFoundError:
            return False

    def stat(self, **_: Any) -> os.stat_result:
        """Return a result that holds the size alone."""
        return os.stat_result((0o100444, 0, 0, 1, 0, 0, remote(self).size, 0, 0, 0))

    def open(self, mode: str = "r", buffering: int = -1, encoding: str | None = None, *_: Any, **__: Any) -> Any:
        """Open it for reading, as bytes (`rb`) or text (`r`)."""
        assert mode in ("r", "rb")
        if self.suffix in _MAPPED:
            return remote(self).whole()
        raw = ObjectReader(remote(self), str(self))
        if buffering == 0:
            return raw
        buffered = io.BufferedReader(raw, BLOCK_BYTES)
        return buffered if mode == "rb" else io.TextIOWrapper(buffered, encoding=encoding or "utf-8")


class _Run(NamedTuple):
    """Consecutive blocks, first and last, that one request fetches."""

    first: int
    last: int


class RemoteObject:
    """One version of an object, its blocks in the cache, and those that are on their way.

    Args:
        store: the object.
        pin: the version.
        settings: the cache, and how many requests there may be at a time.

    Attributes:
        size: bytes.
        etag: of the version.
    """

    def __init__(self, store: ObjectStore, pin: Pin, settings: Objects) -> None:
        self._store, self._pin, self.size, self.etag = store, pin, pin.size, pin.etag
        self._cache = _cache(settings.cache, settings.cache_bytes)
        self._pool = _pool(settings.requests)
        self._key = xxhash.xxh3_128_hexdigest(f"{store.url}\0{pin.etag}\0{pin.size}".encode())
        self._coming: dict[int, Future[dict[int, memoryview]]] = {}
        self._lock = threading.Lock()
        self._held: BinaryIO | None = None

    def read(self, first: int, end: int) -> bytearray:
        """Return the bytes `first` to `end - 1`, from the cache where it has them.

        Raises:
            DataError: the object has changed, or cannot be reached.
        """
        numbers = range(first // BLOCK_BYTES, -(-end // BLOCK_BYTES))
        blocks = self._blocks(numbers)
        data = bytearray(end - first)
        for number in numbers:
            start = number * BLOCK_BYTES
            low, high = max(first, start), min(end, start + BLOCK_BYTES)
            data[low - first : high - first] = blocks[number][low - start : high - start]
        return data

    def _blocks(self, numbers: Iterable[int]) -> dict[int, memoryview]:
        blocks: dict[int, memoryview] = {}
        missing: list[int] = []
        for number in numbers:
            with self._lock:
                coming = self._coming.get(number)
            # What failed ahead of time is tried again now: an outage may have passed.
            if coming is not None and coming.exception() is None:
                blocks.update(coming.result())
            elif (block := self._cache.get(self._key, number)) is not None:
                blocks[number] = block
            else:
                missing.append(number)
        runs = _runs(missing)
        # One request is made here; only several are worth the way through the pool, behind those made ahead.
        parts = [self._fetch(runs[0])] if len(runs) == 1 else list(self._pool.map(self._fetch, runs))
        for part in parts:
            blocks.update(part)
        return blocks

    def fetch_ahead(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Begin to fetch ranges of bytes (first, end) into the cache; errors show when they are read."""
        wanted = {n for first, end in ranges for n in range(first // BLOCK_BYTES, -(-end // BLOCK_BYTES))}
        with self._lock:
            wanted -= self._coming.keys()
        for run in _runs(sorted(n for n in wanted if not self._cache.has(self._key, n))):
            future = self._pool.submit(self._fetch, run)
            with self._lock:
                self._coming.update(dict.fromkeys(range(run.first, run.last + 1), future))
            future.add_done_callback(functools.partial(self._arrived, run))

    def _arrived(self, run: _Run, future: Future[dict[int, memoryview]]) -> None:
        # What has arrived is in the cache; kept here, it would fill the memory.
        with self._lock:
            for number in range(run.first, run.last + 1):
                if self._coming.get(number) is future:
                    del self._coming[number]

    def _fetch(self, run: _Run) -> dict[int, memoryview]:
        """Return the blocks of a run; those that are not in the cache come in one request, and go there."""
        with self._cache.fetching(self._key, run.first):
            cached = {n: self._cache.get(self._key, n) for n in range(run.first, run.last + 1)}
            blocks = {n: block for n, block in cached.items() if block is not None}
            missing = [n for n, block in cached.items() if block is None]
            if missing:
                start = missing[0] * BLOCK_BYTES
                body = self.direct(start, min(self.size, (missing[-1] + 1) * BLOCK_BYTES))
                for number in range(missing[0], missing[-1] + 1):
                    offset = number * BLOCK_BYTES - start
                    blocks[number] = body[offset : offset + BLOCK_BYTES]
                    self._cache.put(self._key, number, blocks[number])
        return blocks

    def direct(self, first: int, end: int) -> memoryview:
        """Return the bytes `first` to `end - 1`, past the cache."""
        return self._store.get(first, end, self._pin)

    def direct_soon(self, first: int, end: int) -> Future[memoryview]:
        """Return what will be the bytes `first` to `end - 1`, past the cache."""
        return self._pool.submit(self.direct, first, end)

    def whole(self) -> BinaryIO:
        """Return a local copy, opened; it stays on the disk until this process ends.

        Raises:
            DataError: the object has changed, or cannot be reached; or there is no room in the cache.
        """
        if self._held is None:
            self._held = self._cache.whole(self._key, self.size, self._copy)
        return open(self._held.name, "rb")

    def _copy(self, file: BinaryIO) -> None:
        def part(first: int) -> None:
            body = self.direct(first, min(self.size, first + CHUNK_BYTES))
            os.pwrite(file.fileno(), body, first)

        # The pool bounds the memory: each worker holds one chunk.
        parts = [self._pool.submit(part, first) for first in range(0, self.size, CHUNK_BYTES)]
        failed = [one for one in wait(parts, return_when=FIRST_EXCEPTION).done if one.exception() is not None]
        for one in parts if failed else ():
            one.cancel()
        wait(parts)  # nothing may write once the file is closed
        for one in failed:
            one.result()


def _runs(numbers: list[int]) -> list[_Run]:
    """Join ascending block numbers with small gaps between them, up to the size of a request."""
    runs: list[_Run] = []
    for number in numbers:
        if runs and number - runs[-1].last <= _GAP_BLOCKS and number - runs[-1].first < _RUN_BLOCKS:
            runs[-1] = _Run(runs[-1].first, number)
        else:
            runs.append(_Run(number, number))
    return runs


@functools.lru_cache(maxsize=8)
def _cache(directory: str | None, limit: int) -> BlockCache:
    return BlockCache(Path(directory) if directory else default_directory(), limit)


@functools.lru_cache(maxsize=8)  # one for all objects: a process makes so many requests at a time
def _pool(requests: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(requests, "megacode-objects")

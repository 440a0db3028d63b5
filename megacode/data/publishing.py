"""What is made in a local directory is published in object storage when it is complete.

Object storage has no rename, and journals need a disk. So work is done below a local work directory, with its journal,
and uploaded at the end: the manifest last. Without a manifest the result is not there.

While something is made, an object `NAME.uploading` holds its place: it is written only if there is none, and it names
the process and a token that a file beside the local work holds too. So two commands never mix their files, a missing
permission to write shows before the work, and whoever has the work directory can resume. Uploaded objects are recorded
one by one, and those that arrived are not sent again.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import orjson

from megacode.base import ownership
from megacode.base.appending import append_json
from megacode.base.errors import ConfigError, Problem
from megacode.base.files import Json, read_jsonl, remove, to_json
from megacode.base.progress import bar
from megacode.base.units import format_bytes
from megacode.data import objects
from megacode.data.object_writer import ObjectWriter, expected_etag

_LOG = logging.getLogger(__name__)
WORK_DIR = Path("megacode-work")
_SIDE_BY_SIDE = 4  # uploads; each sends several parts at a time

Upload = tuple[Path, str]


def local_place(url: str, work_dir: str | Path | None) -> Path:
    """Return where what a URL names is made: `WORK_DIR/s3/bucket/key`."""
    scheme, _, rest = url.partition("://")
    return Path(work_dir or WORK_DIR) / scheme / rest.strip("/")


class Publication:
    """One result on its way to object storage.

    Args:
        name: URL of the result, for messages.
        claim: URL of the object that holds its place.
        local: the local work, for messages.
        record: local file with the token, and a line for each object that was uploaded.
        where: the option or setting that names the URL.
    """

    def __init__(self, name: str, claim: str, local: Path, record: Path, where: str) -> None:
        self._name, self._local, self._where = name, local, where
        self._claim, self._path = ObjectWriter(claim, objects.settings()), record
        self._token, self._done = "", dict[str, Json]()
        self._lock = threading.Lock()

    def begin(self, existing: Callable[[], Iterable[str]], overwrite: bool) -> None:
        """Claim the place, or find that an earlier call with the same work directory has.

        Args:
            existing: finds the URLs of what is there and would be replaced.
            overwrite: whether that may be replaced, and another command's claim taken over.

        Raises:
            ConfigError: something is there, or another command makes it.
            DataError: the storage cannot be written.
        """
        # Only now: the caller holds the local work, so nobody else changes the record.
        self._token, self._done = _read_record(self._path)
        held = self._claim.fetch()
        if held is not None and self._is_ours(held.content):
            return
        if held is not None and not overwrite:
            raise self._taken(held.content)
        urls = [] if overwrite else list(existing())
        if urls:
            fix = "give --overwrite to replace it, or choose another place"
            raise ConfigError(problems=[Problem(f"{url} already exists", self._where, fix) for url in urls[:8]])
        owner = ownership.this_process()
        if not self._token:
            # The token first: a claim that nobody can recognise as his own would lock its owner out.
            append_json(self._path, {"token": owner.token})
            # Of calls for several shards that begin together, all take the first one's.
            self._token, self._done = _read_record(self._path)
        claim = {"token": self._token, "by": str(owner), "work": str(self._local.absolute())}
        content = to_json(claim).encode()
        taken = self._claim.create(content) if held is None else self._claim.replace(content, held.etag)
        now = None if taken else self._claim.fetch()
        if not taken and not (now and self._is_ours(now.content)):
            raise self._taken(now.content if now else b"{}")

    def _is_ours(self, claim: bytes) -> bool:
        return bool(self._token) and _read_claim(claim).get("token") == self._token

    def _taken(self, claim: bytes) -> ConfigError:
        facts = _read_claim(claim)
        message = f"{self._name} is being made by {facts.get('by', 'another command')}"
        work = f" in {facts['work']}" if "work" in facts else ""
        fix = f"wait for it, or run the same command there to resume it{work}; --overwrite discards its work"
        return ConfigError(message, self._where, fix)

    def withdraw(self) -> None:
        """Give the place back, unless something was uploaded: the work has failed, and nothing of it is kept."""
        if self._token and not self._done:
            self._give_back()

    def publish(self, groups: Sequence[Sequence[Upload]], manifest: Upload, stale: Iterable[str]) -> None:
        """Upload files, the manifest last; what an earlier call has uploaded is kept.

        The place stays claimed until `finish`, so that whoever publishes several results resumes all of them.

        Args:
            groups: files and their URLs; a group begins when all of the one before it is there.
            manifest: the file that makes the result complete, and its URL.
            stale: URLs that must not be there beside these files: parts of what is replaced.

        Raises:
            ConfigError: another command has taken over the place.
            DataError: an upload failed, or differs from its file.
        """
        self._refuse_lost()
        if not self._arrived(manifest):
            # First of all: what is replaced counts as gone before the first of its files changes.
            _delete(manifest[1])
            for url in stale:
                if url not in self._done:
                    _delete(url)
        size = sum(path.stat().st_size for group in groups for path, _ in group)
        _LOG.info("uploading %s to %s", format_bytes(size), self._name)
        with bar("upload", size, size=True) as advance:
            for group in groups:
                for path, _ in _side_by_side(self._upload, group):
                    advance(path.stat().st_size)
        self._refuse_lost()
        content = manifest[0].read_bytes()
        writer = ObjectWriter(manifest[1], objects.settings())
        if not writer.create(content):
            raise ConfigError(f"{manifest[1]} was written by another program", self._where, "choose another place")
        self._note(manifest, writer.check(manifest[0]).etag)
        objects.forget()  # this process may have looked at what was there before
        _LOG.info("%s is published", self._name)

    @property
    def is_unfinished(self) -> bool:
        """Whether there is a record of an earlier call, which was ended before `finish`."""
        return self._path.exists()

    def finish(self) -> None:
        """Give the place back: all that belongs to the result is published."""
        self._token, self._done = _read_record(self._path)
        self._give_back()

    def _refuse_lost(self) -> None:
        """Refuse to change anything once --overwrite of another command has taken over the place."""
        held = self._claim.fetch()
        if held is None or not self._is_ours(held.content):
            by = _read_claim(held.content).get("by") if held else "another command, which has ended"
            fix = "give --overwrite to replace what it made, or choose another place"
            raise ConfigError(f"{self._name} was taken over by {by}", self._where, fix)

    def _give_back(self) -> None:
        held = self._claim.fetch()
        if held is not None and self._is_ours(held.content):
            self._claim.delete()
        self._token, self._done = "", {}
        remove(self._path)

    def _upload(self, one: Upload) -> None:
        if not self._arrived(one):
            self._note(one, ObjectWriter(one[1], objects.settings()).upload(one[0]).etag)

    def _arrived(self, one: Upload) -> bool:
        """Tell whether a file is there, by the record of an earlier call and by what is there now."""
        known = self._done.get(one[1])
        there = ObjectWriter(one[1], objects.settings()).look() if known else None
        if known is None or there is None or there.etag != known["etag"]:
            return False
        # A file that was made again has another time, and may have the same bytes.
        return known["file"] == _facts(one[0]) or there.etag.strip('"') == expected_etag(one[0])

    def _note(self, one: Upload, etag: str) -> None:
        facts = {"url": one[1], "etag": etag, "file": _facts(one[0])}
        with self._lock:
            self._done[one[1]] = facts
            append_json(self._path, facts)


def _side_by_side(work: Callable[[Upload], None], items: Sequence[Upload]) -> Iterator[Upload]:
    """Do some work for each item, several at a time, and yield the items that are done.

    Raises:
        Exception: the first error of the work, after what was under way has ended.
    """
    waiting, done = deque(items), SimpleQueue[tuple[Upload, BaseException | None]]()

    def run() -> None:
        with suppress(IndexError):
            while True:
                item, error = waiting.popleft(), None
                try:
                    work(item)
                except BaseException as raised:
                    error = raised
                    waiting.clear()
                done.put((item, error))

    # Daemons: a request cannot be interrupted, and Ctrl-C must not wait for the hours that a large file takes.
    threads = [threading.Thread(target=run, daemon=True) for _ in range(min(_SIDE_BY_SIDE, len(items)))]
    for thread in threads:
        thread.start()
    for _ in items:
        item, error = done.get()
        if error is not None:
            for thread in threads:
                thread.join()
            raise error
        yield item


def _read_record(path: Path) -> tuple[str, dict[str, Json]]:
    """Return the token, empty if there is none, and what was uploaded by URL."""
    rows = read_jsonl(path, [])  # a line that was cut off is an upload that is made again
    token = next((str(row["token"]) for row in rows if "token" in row), "")
    return token, {row["url"]: row for row in rows if "url" in row}


def _facts(path: Path) -> list[int]:
    about = path.stat()
    return [about.st_size, about.st_mtime_ns]


def _delete(url: str) -> None:
    ObjectWriter(url, objects.settings()).delete()


def _read_claim(content: bytes) -> dict[str, Any]:
    try:
        facts = orjson.loads(content)
    except ValueError:
        return {}
    return facts if isinstance(facts, dict) else {}

"""One object in object storage, read in ranges: pinned and checked.

A `Pin` is an object's size and ETag when it was first seen. Every later request carries the ETag (If-Match), and every
answer is checked: its ETag, its range and its length. So an object that is replaced is an error, never a mix of two.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

from megacode.base.errors import DataError
from megacode.config.objects import Objects
from megacode.data.object_requests import Requests, WrongAnswerError

_NO_PREFIX = "give the prefix of a data set, such as s3://bucket/data/code_text_document"


@dataclass(frozen=True)
class Pin:
    """What an object was when it was first seen: its size in bytes and its ETag."""

    size: int
    etag: str


class ObjectStore(Requests):
    """One object, and how it is asked for.

    Args:
        url: `s3://bucket/key`, `gs://bucket/key` or `az://container/key`.
        settings: retries and time limit.

    Raises:
        DataError: see `Requests`; or the URL names no object.
    """

    def __init__(self, url: str, settings: Objects) -> None:
        super().__init__(url, settings)
        if not self.key:
            raise DataError("it names no object", url, _NO_PREFIX)

    def pin(self) -> Pin | None:
        """Ask for the object's size and ETag; None: there is no such object.

        Raises:
            DataError: the bucket does not exist, access is denied, or the server does not answer.
        """
        try:
            about = self.asked(lambda: self.library.head(self.store, self.key))
        except FileNotFoundError:
            # The answer to HEAD has no body, which would name a missing bucket.
            with suppress(FileNotFoundError):
                self.asked(lambda: self.library.get(self.store, self.key, options={"range": (0, 1)}))
            return None
        if not about["e_tag"]:
            message = "the server gives it no ETag, so that a change could not be noticed"
            raise DataError(message, self.url, "use storage that gives ETags, or copy the data set to a local disk")
        return Pin(about["size"], about["e_tag"])

    def get(self, first: int, end: int, pin: Pin) -> memoryview:
        """Return the bytes `first` to `end - 1`.

        Raises:
            DataError: the object was changed or removed, access is denied, or no attempt gave these bytes.
        """
        try:
            return self.asked(lambda: self._got(first, end, pin))
        except FileNotFoundError:
            raise self._changed("it was removed while it was being read") from None

    def _got(self, first: int, end: int, pin: Pin) -> memoryview:
        # The server itself refuses another version, before it sends a byte of it.
        options = {"range": (first, end), "if_match": pin.etag}
        try:
            answer = self.library.get(self.store, self.key, options=options)
        except self.errors("PreconditionError"):
            raise self._changed("it was replaced while it was being read") from None
        # Some servers and proxies do not know If-Match, or answer a range with another one.
        if (answer.meta["e_tag"], answer.meta["size"]) != (pin.etag, pin.size):
            raise self._changed("it was replaced while it was being read")
        if tuple(answer.range) != (first, end):
            raise WrongAnswerError(f"bytes {first} to {end} were asked for, and {answer.range} were sent")
        body = memoryview(answer.bytes())
        if len(body) != end - first:
            raise WrongAnswerError(f"{end - first} bytes were asked for, and {len(body)} were sent")
        return body

    def _changed(self, message: str) -> DataError:
        return DataError(message, self.url, "restore the object, or start again with the new one; nothing was mixed")

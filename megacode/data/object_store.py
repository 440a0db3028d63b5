"""Requests to object storage (S3, Google Cloud Storage, Azure), made through obstore: pinned, checked and retried.

A `Pin` is an object's size and ETag when it was first seen. Every later request carries the ETag (If-Match), and every
answer is checked: its ETag, its range and its length. So an object that is replaced is an error, never a mix of two.

Credentials and endpoints come from the environment variables of each vendor. Requests are retried here and not by
obstore, so that one setting bounds the attempts and one place writes the messages.
"""

from __future__ import annotations

import functools
import logging
import os
import random
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

from megacode.base.errors import DataError
from megacode.base.units import counted
from megacode.base.urls import SCHEMES
from megacode.config.objects import Objects

_LOG = logging.getLogger(__name__)
_FIRST_PAUSE, _LONGEST_PAUSE = 0.2, 10.0  # seconds
_CONNECT = timedelta(seconds=5)
_STATUS = re.compile(r"status code: (\d+)")
_PASSING = (408, 425, 429)  # besides 5xx; other answers of 4xx stay what they are
_METADATA = ("169.254.169.254", "169.254.170.2", "metadata.google.internal")
_SHOWN = 300  # characters of a library's message
_CREDENTIALS = {
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (AWS_SKIP_SIGNATURE=true for a public bucket)",
    "gs": "set GOOGLE_APPLICATION_CREDENTIALS to a key file",
    "az": "set AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY (or a SAS token)",
}
_ENDPOINT = {"s3": "AWS_ENDPOINT_URL and AWS_REGION", "gs": "the network", "az": "AZURE_STORAGE_ENDPOINT"}
_NO_PREFIX = "give the prefix of a data set, such as s3://bucket/data/code_text_document"
_T = TypeVar("_T")


@dataclass(frozen=True)
class Pin:
    """What an object was when it was first seen: its size in bytes and its ETag."""

    size: int
    etag: str


class _WrongAnswerError(Exception):
    """The server has not sent what was asked for; asking again may help."""


class ObjectStore:
    """One object, and how it is asked for.

    Args:
        url: `s3://bucket/key`, `gs://bucket/key` or `az://container/key`.
        settings: retries and time limit.

    Raises:
        DataError: the URL is not one of these, obstore is missing, or its settings in the environment are wrong.
    """

    def __init__(self, url: str, settings: Objects) -> None:
        self.url, self._retries = url, settings.retries
        self._scheme, self._bucket, self._key = _split(url)
        self._obstore = _library(url)
        try:
            self._store = _opened(f"{self._scheme}://{self._bucket}", settings.timeout)
        except (ValueError, *self._errors("BaseError")) as error:
            fix = f"check the URL; {_CREDENTIALS[self._scheme]}"
            raise DataError(f"it cannot be opened: {_short(error)}", url, fix) from None

    def pin(self) -> Pin | None:
        """Ask for the object's size and ETag; None: there is no such object.

        Raises:
            DataError: the bucket does not exist, access is denied, or the server does not answer.
        """
        try:
            about = self._asked(lambda: self._obstore.head(self._store, self._key))
        except FileNotFoundError:
            self._refuse_missing_bucket()
            return None
        if not about["e_tag"]:
            what = "the server gives it no ETag, so that a change could not be noticed"
            raise DataError(what, self.url, "use storage that gives ETags, or copy the data set to a local disk")
        return Pin(about["size"], about["e_tag"])

    def _refuse_missing_bucket(self) -> None:
        """Raise if it is the bucket that is missing; the answer to HEAD has no body, and does not say."""
        try:
            self._asked(lambda: self._obstore.get(self._store, self._key, options={"range": (0, 1)}))
        except FileNotFoundError as error:
            if "NoSuchBucket" in str(error) or "ContainerNotFound" in str(error):
                what = f"there is no bucket {self._bucket!r}"
                fix = f"check its name, and {_ENDPOINT[self._scheme]}"
                raise DataError(what, self.url, fix) from None

    def get(self, first: int, end: int, pin: Pin) -> memoryview:
        """Return the bytes `first` to `end - 1`.

        Raises:
            DataError: the object was changed or removed, access is denied, or no attempt gave these bytes.
        """
        try:
            return self._asked(lambda: self._got(first, end, pin))
        except FileNotFoundError:
            raise self._changed("it was removed while it was being read") from None

    def _got(self, first: int, end: int, pin: Pin) -> memoryview:
        options = {"range": (first, end), "if_match": pin.etag}
        try:
            answer = self._obstore.get(self._store, self._key, options=options)
        except self._errors("PreconditionError"):
            raise self._changed("it was replaced while it was being read") from None
        # Some servers and proxies do not know If-Match, or answer a range with another one.
        if (answer.meta["e_tag"], answer.meta["size"]) != (pin.etag, pin.size):
            raise self._changed("it was replaced while it was being read")
        if tuple(answer.range) != (first, end):
            raise _WrongAnswerError(f"bytes {first} to {end} were asked for, and {answer.range} were sent")
        body = memoryview(answer.bytes())
        if len(body) != end - first:
            raise _WrongAnswerError(f"{end - first} bytes were asked for, and {len(body)} were sent")
        return body

    def _changed(self, what: str) -> DataError:
        return DataError(what, self.url, "restore the object, or start again with the new one; nothing was mixed")

    def _asked(self, request: Callable[[], _T]) -> _T:
        """Make a request, again after errors that may pass.

        Raises:
            FileNotFoundError: there is no such object or bucket.
            DataError: for every other error that does not pass.
        """
        for attempt in range(self._retries + 1):
            try:
                return request()
            except (FileNotFoundError, DataError):
                raise
            except self._errors("PermissionDeniedError", "UnauthenticatedError") as error:
                raise self._denied(error) from None
            except (_WrongAnswerError, OSError, *self._errors("BaseError")) as error:
                if attempt == self._retries or not _may_pass(error):
                    raise self._failed(error, attempt + 1) from None
                _LOG.debug("%s: attempt %d failed: %s", self.url, attempt + 1, _short(error))
            # Random pauses keep thousands of ranks from asking again at the same moment.
            time.sleep(min(_LONGEST_PAUSE, _FIRST_PAUSE * 2**attempt) * random.uniform(0.5, 1.0))
        raise AssertionError("the last attempt returns or raises")

    def _errors(self, *names: str) -> Any:
        return tuple(getattr(self._obstore.exceptions, name) for name in names)

    def _denied(self, error: Exception) -> DataError:
        what = f"access is denied: {_short(error)}"
        # S3 answers a missing key with 403 to whoever may not list the bucket.
        fix = f"check the key and the rights of your credentials; {_CREDENTIALS[self._scheme]}"
        return DataError(what, self.url, fix)

    def _failed(self, error: Exception, attempts: int) -> DataError:
        if any(host in str(error) for host in _METADATA):
            return DataError("there are no credentials", self.url, _CREDENTIALS[self._scheme])
        what = f"{counted(attempts, 'attempt')} failed; the last: {_short(error)}"
        fix = f"check {_ENDPOINT[self._scheme]}; objects.retries and objects.timeout set how long is tried"
        return DataError(what, self.url, fix)


def _split(url: str) -> tuple[str, str, str]:
    scheme, _, rest = url.partition("://")
    bucket, _, key = rest.partition("/")
    if scheme not in SCHEMES:
        known = ", ".join(f"{name}://" for name in SCHEMES)
        raise DataError(f"there is no storage {scheme}://", url, f"use {known}, or a local path")
    if not bucket or not key.strip("/"):
        raise DataError("it names no object", url, _NO_PREFIX)
    return scheme, bucket, key


def _library(url: str) -> Any:
    try:
        import obstore
        import obstore.store
    except ImportError:
        what = "object storage is read with the package obstore, which is not installed"
        raise DataError(what, url, "pip install obstore, or copy the data set to a local disk") from None
    return obstore


@functools.lru_cache(maxsize=64)  # one for all objects of a bucket: they share connections
def _opened(bucket: str, timeout: float) -> Any:
    import obstore.store

    open_store: Any = obstore.store.from_url
    client: dict[str, Any] = {"timeout": timedelta(seconds=timeout), "connect_timeout": _CONNECT}
    endpoint = next(
        (os.environ[name] for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL") if name in os.environ), ""
    )
    # Whoever names an endpoint with http:// means it.
    client["allow_http"] = endpoint.startswith("http://")
    named = {"endpoint": endpoint} if endpoint and bucket.startswith("s3:") else {}
    return open_store(bucket, client_options=client, retry_config={"max_retries": 0}, **named)


def forget_connections() -> None:
    """Read credentials and endpoints again for whatever is opened next."""
    _opened.cache_clear()


def _may_pass(error: Exception) -> bool:
    status = _STATUS.search(str(error))
    if any(host in str(error) for host in _METADATA):
        return False
    return status is None or int(status[1]) >= 500 or int(status[1]) in _PASSING


def _short(error: Exception) -> str:
    """Return a library's message on one line, without its debugging output."""
    text = " ".join(str(error).partition("\n\nDebug source")[0].split())
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]} ..."

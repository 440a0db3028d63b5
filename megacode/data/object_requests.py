"""Requests to object storage (S3, Google Cloud Storage, Azure), made through obstore: retried, with errors explained.

Credentials and endpoints come from the environment variables of each vendor. Reads are retried here and not by
obstore, so that one setting bounds the attempts and one place writes the messages. Parts of an upload are retried by
obstore: only it knows which of them have arrived.
"""

from __future__ import annotations

import functools
import logging
import os
import random
import re
import time
from collections.abc import Callable
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
_NO_BUCKET = ("NoSuchBucket", "ContainerNotFound")
_SHOWN = 300  # characters of a library's message
_CREDENTIALS = {
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (AWS_SKIP_SIGNATURE=true for a public bucket)",
    "gs": "set GOOGLE_APPLICATION_CREDENTIALS to a key file",
    "az": "set AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY (or a SAS token)",
}
_ENDPOINT = {"s3": "AWS_ENDPOINT_URL and AWS_REGION", "gs": "the network", "az": "AZURE_STORAGE_ENDPOINT"}
_T = TypeVar("_T")


class WrongAnswerError(Exception):
    """The server has not sent what was asked for; asking again may help."""


class Requests:
    """One object, or a folder of them, and how it is asked for.

    Args:
        url: `s3://bucket/key`, `gs://bucket/key` or `az://container/key`; for a folder the key may be empty.
        settings: retries and time limit.
        writes: whether parts of uploads are retried by obstore.

    Attributes:
        url: see the arguments.
        bucket, key: its parts.
        library: the module obstore.
        store: what its functions take.

    Raises:
        DataError: the URL is not one of these, obstore is missing, or its settings in the environment are wrong.
    """

    def __init__(self, url: str, settings: Objects, *, writes: bool = False) -> None:
        self.url, self._retries = url, settings.retries
        self._scheme, self.bucket, self.key = _split(url)
        self.library = _library(url)
        try:
            retries = settings.retries if writes else 0
            self.store = _opened(f"{self._scheme}://{self.bucket}", settings.timeout, retries)
        except (ValueError, *self.errors("BaseError")) as error:
            fix = f"check the URL; {_CREDENTIALS[self._scheme]}"
            raise DataError(f"it cannot be opened: {_short(error)}", url, fix) from None

    def asked(self, request: Callable[[], _T], *, again: bool = True) -> _T:
        """Make a request, again after errors that may pass.

        Args:
            request: makes it.
            again: False where it must not be made twice.

        Raises:
            FileNotFoundError: there is no such object.
            DataError: there is no such bucket, access is denied, or another error did not pass.
        """
        last = self._retries if again else 0
        for attempt in range(last + 1):
            try:
                return request()
            except DataError:
                raise
            except self.errors("PermissionDeniedError", "UnauthenticatedError") as error:
                raise self._denied(error) from None
            except (WrongAnswerError, OSError, *self.errors("BaseError")) as error:
                if any(code in str(error) for code in _NO_BUCKET):
                    raise self._no_bucket() from None
                if isinstance(error, (FileNotFoundError, *self.errors("AlreadyExistsError"))):
                    raise
                if attempt == last or not _may_pass(error):
                    raise self._failed(error, attempt + 1) from None
                _LOG.debug("%s: attempt %d failed: %s", self.url, attempt + 1, _short(error))
            # Random pauses keep thousands of ranks from asking again at the same moment.
            time.sleep(min(_LONGEST_PAUSE, _FIRST_PAUSE * 2**attempt) * random.uniform(0.5, 1.0))
        raise AssertionError("the last attempt returns or raises")

    def errors(self, *names: str) -> Any:
        """Return exceptions of obstore by their names."""
        return tuple(getattr(self.library.exceptions, name) for name in names)

    def _no_bucket(self) -> DataError:
        fix = f"check its name, and {_ENDPOINT[self._scheme]}"
        return DataError(f"there is no bucket {self.bucket!r}", self.url, fix)

    def _denied(self, error: Exception) -> DataError:
        message = f"access is denied: {_short(error)}"
        # S3 answers a missing key with 403 to whoever may not list the bucket.
        fix = f"check the key and the rights of your credentials; {_CREDENTIALS[self._scheme]}"
        return DataError(message, self.url, fix)

    def _failed(self, error: Exception, attempts: int) -> DataError:
        if any(host in str(error) for host in _METADATA):
            return DataError("there are no credentials", self.url, _CREDENTIALS[self._scheme])
        message = f"{counted(attempts, 'attempt')} failed; the last: {_short(error)}"
        fix = f"check {_ENDPOINT[self._scheme]}; objects.retries and objects.timeout set how long is tried"
        return DataError(message, self.url, fix)


def _split(url: str) -> tuple[str, str, str]:
    scheme, _, rest = url.partition("://")
    bucket, _, key = rest.partition("/")
    if scheme not in SCHEMES:
        known = ", ".join(f"{name}://" for name in SCHEMES)
        raise DataError(f"there is no storage {scheme}://", url, f"use {known}, or a local path")
    if not bucket:
        raise DataError("it names no bucket", url, f"write {scheme}://bucket/directory/name")
    return scheme, bucket, key.strip("/")


def _library(url: str) -> Any:
    try:
        import obstore
        import obstore.store
    except ImportError:
        message = "object storage is read with the package obstore, which is not installed"
        raise DataError(message, url, "pip install obstore, or copy the data set to a local disk") from None
    return obstore


@functools.lru_cache(maxsize=64)  # one for all objects of a bucket: they share connections
def _opened(bucket: str, timeout: float, retries: int) -> Any:
    import obstore.store

    open_store: Any = obstore.store.from_url
    client: dict[str, Any] = {"timeout": timedelta(seconds=timeout), "connect_timeout": _CONNECT}
    endpoint = next(
        (os.environ[name] for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL") if name in os.environ), ""
    )
    # Whoever names an endpoint with http:// means it.
    client["allow_http"] = endpoint.startswith("http://")
    named = {"endpoint": endpoint} if endpoint and bucket.startswith("s3:") else {}
    return open_store(bucket, client_options=client, retry_config={"max_retries": retries}, **named)


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

"""Reading data sets from object storage: where blocks are cached, and how patiently requests are made."""

from __future__ import annotations

from pydantic import Field

from megacode.config.quantity import Bytes, Frozen, Seconds


class Objects(Frozen):
    """How sources under `s3://`, `gs://` or `az://` are read; nothing here changes what is learned.

    Attributes:
        cache: directory of the block cache, on a disk of this machine, which its processes share; absent: a directory
            of this user below the system's temporary directory.
        cache_bytes: the most that the cache holds; the least recently used blocks are deleted.
        ahead: iterations whose windows are fetched before they are needed; 0: none.
        requests: the most requests of a process at a time.
        retries: further attempts of a request that fails for a reason that may pass; pauses between them double.
        timeout: time limit of one request.
    """

    cache: str | None = None
    cache_bytes: Bytes = Field(default=100 * 10**9, ge=1 << 20)
    ahead: int = Field(default=4, ge=0, le=64)
    requests: int = Field(default=48, ge=1, le=256)
    retries: int = Field(default=8, ge=0)
    timeout: Seconds = 60.0

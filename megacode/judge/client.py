"""An HTTP client for OpenAI-compatible chat completions that copes with slow, busy and faulty servers.

A request is identified by the hash of its address and body, and its reply is stored on disk under that name before it
is used. A second run sends no requests, and a killed one resumes. The API key comes from the environment, goes into one
header, and is removed from server messages. Redirects are not followed: they would send the key to another host.
"""

from __future__ import annotations

import email.utils
import http.client
import json
import logging
import os
import random
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import megacode
from megacode.base.errors import EXIT_RESUMABLE, ConfigError, MegacodeError
from megacode.base.files import digest, write_json

log = logging.getLogger(__name__)

KEY_VARIABLE = "MEGACODE_JUDGE_API_KEY"
_BUSY = (408, 409, 425, 429, 500, 502, 503, 504, 529)  # worth a retry; 529 is "overloaded" at some providers
_LARGEST_REPLY = 4 << 20  # a faulty server must not fill memory
_PIECE = 1 << 16


class JudgeError(MegacodeError):
    """The judge does not answer; earlier answers are kept, and the same command resumes (exit code 75)."""

    title = "Judge error"
    exit_code = EXIT_RESUMABLE


@dataclass(frozen=True)
class Patience:
    """Timeouts, retries and rate limit for a server.

    Attributes:
        timeout: seconds a request may take, from its start to the last byte of its reply.
        tries: how often a request is sent before giving up.
        first_wait: seconds before the second try, doubled each time, then reduced at random by up to half.
        longest_wait: maximum seconds between two tries; a server that asks for more ends the run.
        requests_per_minute: maximum number of requests per minute; None: no limit.
    """

    timeout: float = 120.0
    tries: int = 6
    first_wait: float = 1.0
    longest_wait: float = 120.0
    requests_per_minute: float | None = None


class RequestPace:
    """Rate limiter for all threads together."""

    def __init__(self, requests_per_minute: float | None) -> None:
        self.stopped = threading.Event()
        self._gap = 60.0 / requests_per_minute if requests_per_minute else 0.0
        self._next = 0.0
        self._lock = threading.Lock()

    def wait(self) -> None:
        """Reserve the next time slot, and sleep until it begins."""
        with self._lock:
            now = time.monotonic()
            turn = max(now, self._next)  # slots are handed out under the lock, the sleep is outside
            self._next = turn + self._gap
        self.rest(turn - now)

    def rest(self, seconds: float) -> None:
        """Sleep, unless the client is stopped.

        Raises:
            JudgeError: if it is stopped.
        """
        if self.stopped.wait(seconds):
            raise JudgeError("stopped", "", "run the same command again: earlier answers are kept")

    def hold(self, seconds: float) -> None:
        """Delay all requests by some seconds, as the server asked."""
        with self._lock:
            self._next = max(self._next, time.monotonic() + seconds)


class _NoRedirection(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        """Treat a redirect as an error."""


class _AgainError(Exception):
    """A failed try that may succeed later: after `wait` seconds if the server gave a time."""

    def __init__(self, message: str, wait: float | None = None) -> None:
        super().__init__(message)
        self.wait = wait


class JudgeClient:
    """Asks one server; may be used by several threads.

    Args:
        url: its address up to `/v1`, or up to `/chat/completions`.
        cache: directory of stored replies.
        patience: retries, timeouts, rate.
        key_variable: the environment variable with the API key; may be unset.

    Attributes:
        url: the address without `/chat/completions`.
        requests: number of requests sent, each try counted.
        retries: how many of them were retries.
        hits: replies that came from the cache.

    Raises:
        ConfigError: for an invalid address, or one that contains a secret.
    """

    def __init__(
        self, url: str, cache: Path, patience: Patience | None = None, key_variable: str = KEY_VARIABLE
    ) -> None:
        self.url = _checked(url)
        self._cache, self._patience = cache, patience or Patience()
        self._key, self._key_variable = _key(key_variable), key_variable
        if self._key and not _private(self.url):
            log.warning("judge: the API key is sent unencrypted over http to %s", self.url)
        self._pace = RequestPace(self._patience.requests_per_minute)
        self._opener = urllib.request.build_opener(_NoRedirection)  # no cookies, and no redirects that leak the key
        self._lock = threading.Lock()
        self._asking: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
        self.requests = self.retries = self.hits = 0

    def stop(self) -> None:
        """End threads that wait for their next request, and start none."""
        self._pace.stopped.set()

    def only_model(self) -> str:
        """Return the name of the server's model, if it has just one.

        Raises:
            ConfigError: if it has none or several.
            JudgeError: if it does not answer.
        """
        document = self._send("/models", None)  # never cached: a server may change its model
        entries = document.get("data") if isinstance(document, dict) else None
        names = [str(entry["id"]) for entry in entries or [] if isinstance(entry, dict) and "id" in entry]
        if len(names) != 1:
            known = f"it offers {', '.join(sorted(names)[:10])}" if names else "it lists no model"
            raise ConfigError(f"the judge's model is not clear: {known}", self.url, "choose it with --model")
        return names[0]

    def chat(self, body: Mapping[str, Any], turn: int = 0) -> Any:
        """Return the server's reply to a chat completion, from the cache if it was asked before.

        Args:
            body: the request.
            turn: number of the attempt; each has its own cache entry.

        Returns:
            The reply as JSON; None if it is not JSON or not a chat completion, which is not cached.

        Raises:
            ConfigError: if the server refuses the request.
            JudgeError: if it does not answer.
        """
        name = digest(self.url, json.dumps(body, sort_keys=True), str(turn))
        with self._lock:
            asking = self._asking[name]
        with asking:  # two threads with the same request ask once
            return self._kept_or_sent(self._cache / name[:2] / f"{name}.json", body)

    def _kept_or_sent(self, kept: Path, body: Mapping[str, Any]) -> Any:
        if (reply := _read(kept)) is not None:
            with self._lock:
                self.hits += 1
            return reply
        reply = self._send("/chat/completions", body)
        if not isinstance(reply, dict) or not isinstance(reply.get("choices"), list):
            return None
        write_json(kept, reply)  # before anyone uses it: paid for once
        return reply

    def _send(self, path: str, body: Mapping[str, Any] | None) -> Any:
        """Send a request until it is answered; return the reply, None if it is not JSON."""
        for number in range(self._patience.tries):
            self._pace.wait()
            with self._lock:
                self.requests += 1
                self.retries += number > 0
            try:
                return _json(self._clean(self._try(path, body)))
            except _AgainError as error:
                wait, reason = self._wait_after(number, error), str(error)
            if number + 1 < self._patience.tries:
                log.warning("judge: %s; retrying in %.1f s", reason, wait)
                self._pace.rest(wait)
        fix = "check that the server is running, then run the same command again: earlier answers are kept"
        raise JudgeError(f"no answer after {self._patience.tries} tries: {reason}", self.url + path, fix)

    def _wait_after(self, number: int, error: _AgainError) -> float:
        """Return how long to wait after a failed try."""
        patience = self._patience
        own = min(patience.longest_wait, patience.first_wait * 2**number) * random.uniform(0.5, 1.0)  # spread
        if error.wait is None:
            return own
        if error.wait > patience.longest_wait:
            fix = "run the same command again then: earlier answers are kept"
            raise JudgeError(f"{error}; the server asks to wait {error.wait:.0f} s", self.url, fix)
        self._pace.hold(error.wait)  # all threads wait: the limit is the server's, not the request's
        return error.wait

    def _try(self, path: str, body: Mapping[str, Any] | None) -> str:
        """Send a request once and return the reply's text."""
        headers = {"Accept": "application/json", "User-Agent": f"megacode/{megacode.__version__}"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        data = None if body is None else json.dumps(body).encode()
        if data is not None:
            headers["Content-Type"] = "application/json"
        request = urllib.request.Request(self.url + path, data=data, headers=headers)
        deadline = time.monotonic() + self._patience.timeout
        try:
            with self._opener.open(request, timeout=self._patience.timeout) as response:  # timeout of one read
                return _read_body(response, deadline)
        except urllib.error.HTTPError as error:
            with error:
                raise self._refusal(error, path) from None
        except (OSError, http.client.HTTPException) as error:  # URLError and timeouts are OSErrors
            reason = getattr(error, "reason", error)
            late = isinstance(reason, TimeoutError)
            message = f"no answer within {self._patience.timeout:g} s" if late else f"{type(error).__name__}: {reason}"
            raise _AgainError(message) from None

    def _refusal(self, error: urllib.error.HTTPError, path: str) -> Exception:
        """Return the exception for an error reply: retry, or the user's mistake."""
        try:
            reply_text = " ".join(self._clean(error.read(_PIECE).decode(errors="replace")).split())[:300]
        except (OSError, http.client.HTTPException):
            reply_text = ""
        message = f"the server answers {error.code} {error.reason}" + (f": {reply_text}" if reply_text else "")
        if error.code in _BUSY:
            return _AgainError(message, _retry_after(error.headers.get("Retry-After")))
        fixes = {
            401: f"put the API key into the environment variable {self._key_variable}",
            403: f"check whether the API key in {self._key_variable} may use this model",
            404: "check the address (it usually ends in /v1) and --model",
        }
        fix = fixes.get(error.code, "check the address, --model and the prompts' length")
        if 300 <= error.code < 400:
            fix = f"it redirects to {error.headers.get('Location')}: use that address directly, if you trust it"
        return ConfigError(self._clean(message), self.url + path, self._clean(fix))

    def _clean(self, text: str) -> str:
        return text.replace(self._key, "***") if self._key else text  # some servers echo headers in errors


def message_of(reply: Any) -> str | None:
    """Return the text of a chat completion's first choice; None if there is none."""
    try:
        text = reply["choices"][0]["message"]["content"]
    except (KeyError, IndexError, TypeError):
        return None
    return text if isinstance(text, str) else None


def _checked(url: str) -> str:
    """Return an address without `/chat/completions`, after validating it."""
    parts = urllib.parse.urlsplit(url)
    fix = "write for example --judge http://127.0.0.1:8000/v1"
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"{url!r} is not a valid address", "--judge", fix)
    if parts.username or parts.password or parts.query or parts.fragment:
        message = "the address contains a user name, query or fragment, which would be written to the results"
        raise ConfigError(message, "--judge", f"remove it; put an API key into the variable {KEY_VARIABLE}")
    return url.rstrip("/").removesuffix("/chat/completions").rstrip("/")


def _private(url: str) -> bool:
    parts = urllib.parse.urlsplit(url)
    return parts.scheme == "https" or parts.hostname in ("localhost", "127.0.0.1", "::1")


def _key(variable: str) -> str:
    key = os.environ.get(variable, "").strip()
    if not key.isascii() or not key.isprintable() or " " in key:
        raise ConfigError("the API key contains invalid characters", f"variable {variable}", "set it again")
    return key


def _read_body(response: Any, deadline: float) -> str:
    """Read a reply by the deadline, even if the server sends single bytes slowly."""
    pieces, size = [], 0
    # A socket timeout starts again with each byte, so only the loop itself can keep to the deadline.
    while piece := response.read1(_PIECE):
        pieces.append(piece)
        size += len(piece)
        if size > _LARGEST_REPLY:
            raise _AgainError(f"the reply is longer than {_LARGEST_REPLY:,} bytes")
        if time.monotonic() > deadline:
            raise TimeoutError
    if response.length:  # bytes of Content-Length that did not arrive
        raise http.client.IncompleteRead(b"".join(pieces), response.length)
    return b"".join(pieces).decode("utf-8", errors="replace")


def _json(text: str) -> Any:
    """Return a reply's JSON, or None; an unpaired surrogate becomes U+FFFD, so that it can be stored."""
    try:
        return _with_whole_characters(json.loads(text))
    except (ValueError, RecursionError):
        return None


def _with_whole_characters(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, dict):
        return {_with_whole_characters(key): _with_whole_characters(item) for key, item in value.items()}
    return [_with_whole_characters(item) for item in value] if isinstance(value, list) else value


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _retry_after(value: str | None) -> float | None:
    """Return the seconds of a `Retry-After` header, which is a number or a date."""
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None

"""An HTTP client for chat completions in OpenAI's form, made for servers that are slow, busy or wrong.

A request is known by the hash of its address and body, and its reply is kept on disk under that name before anyone
reads it: a second run asks nothing, and a killed one goes on. The API key comes from the environment, goes into one
header, and is cut out of whatever the server says. Redirections are not followed: they would carry the key elsewhere.
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
_BUSY = (408, 409, 425, 429, 500, 502, 503, 504, 529)
_LARGEST_REPLY = 4 << 20
_PIECE = 1 << 16


class JudgeError(MegacodeError):
    """The judge does not answer; what it has answered so far is kept, and the same command goes on (exit code 75)."""

    title = "Judge error"
    exit_code = EXIT_RESUMABLE


@dataclass(frozen=True)
class Patience:
    """How a server is treated.

    Attributes:
        timeout: seconds a request may take, from its start to the last byte of its reply.
        tries: how often a request is sent before it is given up.
        first_wait: seconds before the second try, doubled with each further one, less up to half at random.
        longest_wait: seconds between two tries, at most; a server that asks for more ends the run.
        requests_per_minute: requests that begin within a minute, at most; None: no limit.
    """

    timeout: float = 120.0
    tries: int = 6
    first_wait: float = 1.0
    longest_wait: float = 120.0
    requests_per_minute: float | None = None


class Pace:
    """When the next request may begin, for all threads together."""

    def __init__(self, requests_per_minute: float | None) -> None:
        self.stopped = threading.Event()
        self._gap = 60.0 / requests_per_minute if requests_per_minute else 0.0
        self._next = 0.0
        self._lock = threading.Lock()

    def wait(self) -> None:
        """Take the next place in the row, and sleep until it comes."""
        with self._lock:
            now = time.monotonic()
            turn = max(now, self._next)
            self._next = turn + self._gap
        self.rest(turn - now)

    def rest(self, seconds: float) -> None:
        """Sleep, unless all is to end.

        Raises:
            JudgeError: if it is.
        """
        if self.stopped.wait(seconds):
            raise JudgeError("stopped", "", "give the same command again: what was answered is kept")

    def hold(self, seconds: float) -> None:
        """Let nobody begin for some seconds: the server asked for it."""
        with self._lock:
            self._next = max(self._next, time.monotonic() + seconds)


class _NoRedirection(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        """Let a redirection stand as the error it is here."""


class _AgainError(Exception):
    """A try that may succeed when it is repeated, after `wait` seconds if the server named a time."""

    def __init__(self, what: str, wait: float | None = None) -> None:
        super().__init__(what)
        self.wait = wait


class JudgeClient:
    """Asks one server; may be used by several threads.

    Args:
        url: its address up to `/v1`, or up to `/chat/completions`.
        cache: directory that keeps replies.
        patience: retries, timeouts, rate.
        key_variable: the environment variable with the API key; a server that needs none gets none.

    Attributes:
        url: the address without `/chat/completions`.
        requests: how often a request was sent, tries counted singly.
        retries: how many of them were repetitions.
        hits: replies that came from the cache.

    Raises:
        ConfigError: for an address that is none, or carries a secret.
    """

    def __init__(
        self, url: str, cache: Path, patience: Patience | None = None, key_variable: str = KEY_VARIABLE
    ) -> None:
        self.url = _checked(url)
        self._cache, self._patience = cache, patience or Patience()
        self._key, self._key_variable = _key(key_variable), key_variable
        if self._key and not _private(self.url):
            log.warning("judge: the API key goes over plain http to %s: whoever listens can read it", self.url)
        self._pace = Pace(self._patience.requests_per_minute)
        self._opener = urllib.request.build_opener(_NoRedirection)
        self._lock = threading.Lock()
        self._asking: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
        self.requests = self.retries = self.hits = 0

    def stop(self) -> None:
        """Let threads that wait for their next request end now, and begin none."""
        self._pace.stopped.set()

    def only_model(self) -> str:
        """Return the name of the server's model, if it has just one.

        Raises:
            ConfigError: if it has none or several.
            JudgeError: if it does not answer.
        """
        document = self._send("/models", None)
        entries = document.get("data") if isinstance(document, dict) else None
        names = [str(entry["id"]) for entry in entries or [] if isinstance(entry, dict) and "id" in entry]
        if len(names) != 1:
            known = f"it has {', '.join(sorted(names)[:10])}" if names else "it names no model"
            raise ConfigError(f"which model is to judge? {known}", self.url, "name it with --model")
        return names[0]

    def chat(self, body: Mapping[str, Any], turn: int = 0) -> Any:
        """Return the server's reply to a chat completion, from the cache if it was asked before.

        Args:
            body: the request.
            turn: asks the same thing anew: another turn is another entry of the cache.

        Returns:
            The reply as JSON; None if it is none, or no chat completion: that is not kept.

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
        write_json(kept, reply)
        return reply

    def _send(self, path: str, body: Mapping[str, Any] | None) -> Any:
        """Send a request until it is answered; return the reply, None if it is no JSON."""
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
                log.warning("judge: %s; asking again in %.1f s", reason, wait)
                self._pace.rest(wait)
        fix = "see whether the server runs, then give the same command again: what was answered is kept"
        raise JudgeError(f"no answer after {self._patience.tries} tries: {reason}", self.url + path, fix)

    def _wait_after(self, number: int, error: _AgainError) -> float:
        """Return how long to wait after a failed try."""
        patience = self._patience
        own = min(patience.longest_wait, patience.first_wait * 2**number) * random.uniform(0.5, 1.0)
        if error.wait is None:
            return own
        if error.wait > patience.longest_wait:
            fix = "give the same command again then: what was answered is kept"
            raise JudgeError(f"{error}, and asks to wait {error.wait:.0f} s", self.url, fix)
        self._pace.hold(error.wait)
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
            with self._opener.open(request, timeout=self._patience.timeout) as response:
                return _read_body(response, deadline)
        except urllib.error.HTTPError as error:
            with error:
                raise self._refusal(error, path) from None
        except (OSError, http.client.HTTPException) as error:  # URLError and timeouts are OSErrors
            reason = getattr(error, "reason", error)
            late = isinstance(reason, TimeoutError)
            what = f"no answer within {self._patience.timeout:g} s" if late else f"{type(error).__name__}: {reason}"
            raise _AgainError(what) from None

    def _refusal(self, error: urllib.error.HTTPError, path: str) -> Exception:
        """Return what a reply that is an error means: try again, or the user's mistake."""
        try:
            said = " ".join(self._clean(error.read(_PIECE).decode(errors="replace")).split())[:300]
        except (OSError, http.client.HTTPException):
            said = ""
        what = f"the server answers {error.code} {error.reason}" + (f": {said}" if said else "")
        if error.code in _BUSY:
            return _AgainError(what, _retry_after(error.headers.get("Retry-After")))
        fixes = {
            401: f"put the API key into the environment variable {self._key_variable}",
            403: f"see whether the API key in {self._key_variable} may use this model",
            404: "check the address (it mostly ends in /v1) and --model",
        }
        fix = fixes.get(error.code, "check the address, --model and the prompts' length")
        if 300 <= error.code < 400:
            fix = f"it redirects to {error.headers.get('Location')}: give the final address, if you trust it"
        return ConfigError(self._clean(what), self.url + path, self._clean(fix))

    def _clean(self, text: str) -> str:
        return text.replace(self._key, "***") if self._key else text


def message_of(reply: Any) -> str | None:
    """Return the text of a chat completion's first choice; None if there is none."""
    try:
        text = reply["choices"][0]["message"]["content"]
    except (KeyError, IndexError, TypeError):
        return None
    return text if isinstance(text, str) else None


def _checked(url: str) -> str:
    """Return an address without `/chat/completions`, after a look at whether it is one."""
    parts = urllib.parse.urlsplit(url)
    fix = "write for example --judge http://127.0.0.1:8000/v1"
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"{url!r} is not an address", "--judge", fix)
    if parts.username or parts.password or parts.query or parts.fragment:
        what = "the address carries a user name, a query or a fragment, which would be written to the results"
        raise ConfigError(what, "--judge", f"leave it out; a key belongs into the variable {KEY_VARIABLE}")
    return url.rstrip("/").removesuffix("/chat/completions").rstrip("/")


def _private(url: str) -> bool:
    parts = urllib.parse.urlsplit(url)
    return parts.scheme == "https" or parts.hostname in ("localhost", "127.0.0.1", "::1")


def _key(variable: str) -> str:
    key = os.environ.get(variable, "").strip()
    if not key.isascii() or not key.isprintable() or " " in key:
        raise ConfigError("the API key holds characters that no key has", f"variable {variable}", "set it again")
    return key


def _read_body(response: Any, deadline: float) -> str:
    """Read a reply; a server that sends a byte now and then is late all the same."""
    pieces, size = [], 0
    while piece := response.read1(_PIECE):
        pieces.append(piece)
        size += len(piece)
        if size > _LARGEST_REPLY:
            raise _AgainError(f"the reply is longer than {_LARGEST_REPLY:,} bytes")
        if time.monotonic() > deadline:
            raise TimeoutError
    if response.length:  # what Content-Length promised and did not come
        raise http.client.IncompleteRead(b"".join(pieces), response.length)
    return b"".join(pieces).decode("utf-8", errors="replace")


def _json(text: str) -> Any:
    """Return a reply's JSON, None if it is none; half a surrogate pair in it becomes U+FFFD, so that it can be kept."""
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
    """Return the seconds that a `Retry-After` header names, as a number or as a date."""
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

"""Personal data and secrets in texts, replaced by fixed markers: e-mail addresses, IPv4 addresses, keys.

Exact patterns cost 30 MB a second each. So a search for literal beginnings, `@` and runs of digits and dots comes
first, and patterns look only where it finds something. Names of people are not found: that takes a model.

Source of the markers: bigcode-dataset's redaction (`<EMAIL>`, `<KEY>`, `<IP_ADDRESS>`).
"""

from __future__ import annotations

import ipaddress
import re
import string
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from ahocorasick_rs import AhoCorasick, MatchKind

from megacode.config.quantity import Frozen
from megacode.corpus.document import Document
from megacode.corpus.settings import read_settings

EMAIL, ADDRESS, KEY = "<EMAIL>", "<IP_ADDRESS>", "<KEY>"

Span = tuple[int, int, str]  # first character, end, marker

# Literal beginnings, and what must follow each. Lengths are bounded, so that hostile texts cost no quadratic time.
_SECRETS = {
    **dict.fromkeys(("AKIA", "ASIA"), r"[A-Z2-7]{16}(?![A-Za-z0-9])"),
    **dict.fromkeys(("ghp_", "gho_", "ghs_", "ghu_", "ghr_", "npm_"), r"[A-Za-z0-9]{36}(?![A-Za-z0-9])"),
    "github_pat_": r"[A-Za-z0-9_]{60,90}",
    **dict.fromkeys(("xoxb-", "xoxp-", "xoxa-", "xoxr-", "xoxs-"), r"[A-Za-z0-9-]{20,200}"),
    **dict.fromkeys(("sk_live_", "rk_live_"), r"[A-Za-z0-9]{20,200}"),
    "eyJ": r"[\w-]{10,1000}\.eyJ[\w-]{10,8000}\.[\w-]{10,1000}",
    "AIza": r"[A-Za-z0-9_-]{35}(?![A-Za-z0-9_-])",
    **dict.fromkeys(("sk-proj-", "sk-ant-"), r"[A-Za-z0-9_-]{40,200}"),
    "glpat-": r"[A-Za-z0-9_-]{20,200}",
    "hf_": r"[A-Za-z]{34}(?![A-Za-z0-9])",
    "-----BEGIN ": r"(?:[A-Z0-9]{1,20} ){0,4}PRIVATE KEY(?: BLOCK)?-----[^-]{40,20000}-----END [A-Z0-9 ]{1,40}-----",
}
_PREFIXES = list(_SECRETS)
_PATTERNS = [re.compile(re.escape(prefix) + rest, re.ASCII) for prefix, rest in _SECRETS.items()]
_FEWEST_CHARACTERS = 8  # different ones; placeholders such as ghp_xxxxxxxx have fewer

_LOCAL = string.ascii_letters + string.digits + "._%+-"
_DOMAIN = re.compile(r"(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.)+([A-Za-z]{2,})(?![A-Za-z0-9_-])", re.ASCII)
# Two letters are a country; `x@layer.weight` in code and `icon@2x.png` are no addresses.
_TOP_LEVEL = frozenset({
    "com", "net", "org", "edu", "gov", "mil", "int", "info", "biz", "name", "pro", "dev", "app", "cloud", "tech",
})  # fmt: skip
_NOT_COUNTRIES = frozenset({"js", "py", "rs", "md", "sh"})  # of them, endings of file names
_RESERVED = re.compile(r"(?:^|\.)(?:example\.(?:com|net|org)|test|invalid|localhost|local)$", re.IGNORECASE)
_LONGEST_LOCAL = 64

_DIGITS_AND_DOTS = bytes(byte in b"0123456789." for byte in range(256))
_SHORTEST_ADDRESS = 7
_ADDRESS = re.compile(r"(?<![\w.:-])(?:\d{1,3}\.){3}\d{1,3}(?![\w-]|\.\d)", re.ASCII)
# A single `=` or `>` is no sign of a version: `HOST=` and `<td>` stand before addresses.
_VERSION_BEFORE = re.compile(r"(?:version\W{0,5}|release\W{0,5}|(?:[<>=~!]=|~>|[~^])\s?|\bv\s?)$", re.IGNORECASE)
_SMALL = 20  # four numbers below this look like a version
_NAME_SERVERS = frozenset({"8.8.8.8", "8.8.4.4", "1.1.1.1", "1.0.0.1", "9.9.9.9", "208.67.222.222", "208.67.220.220"})


class PersonalDataSettings(Frozen):
    """A recipe's `personal_data:` section; without the section nothing is replaced.

    Attributes:
        emails: replace e-mail addresses, but for reserved domains such as example.com.
        addresses: replace public IPv4 addresses, but for well-known name servers and what looks like a version.
        secrets: replace keys and tokens of common services, and private keys.
    """

    emails: bool = True
    addresses: bool = True
    secrets: bool = True


class Redactor:
    """Replaces personal data in documents.

    Attributes:
        replaced: how many of each marker were put in.
    """

    def __init__(self, settings: PersonalDataSettings) -> None:
        self.replaced: Counter[str] = Counter()
        self._searches = [
            search
            for search, wanted in (
                (_secrets, settings.secrets),
                (_emails, settings.emails),
                (_addresses, settings.addresses),
            )
            if wanted
        ]

    def __call__(self, document: Document) -> Document:
        """Return the document with markers in place of personal data; control tokens stay."""
        if document.parts is None:
            document.text = self.redacted(document.text)
        else:
            document.parts = tuple(self.redacted(part) if isinstance(part, str) else part for part in document.parts)
            document.text = "".join(part for part in document.parts if isinstance(part, str))
        return document

    def redacted(self, text: str) -> str:
        """Return a text with markers in place of personal data."""
        spans = sorted(span for search in self._searches for span in search(text))
        if not spans:
            return text
        pieces, end = [], 0
        for start, stop, marker in spans:
            if start < end:  # inside a longer one, such as an address in a key
                continue
            pieces += [text[end:start], marker]
            self.replaced[marker] += 1
            end = stop
        return "".join((*pieces, text[end:]))


def make_redactor(settings: Mapping[str, Any] | PersonalDataSettings, where: str = "personal_data") -> Redactor:
    """Return what replaces personal data in documents, and counts it.

    Raises:
        ConfigError: with every mistake in the settings.
    """
    return Redactor(read_settings(PersonalDataSettings, settings, where))


_BEGINNINGS = AhoCorasick(_PREFIXES, matchkind=MatchKind.LeftmostLongest)


def _secrets(text: str) -> Iterator[Span]:
    for number, start, _ in _BEGINNINGS.find_matches_as_indexes(text):
        # The pattern is anchored here, so it costs nothing where the beginning is part of a word.
        if start and (text[start - 1].isalnum() or text[start - 1] == "_"):
            continue
        match = _PATTERNS[number].match(text, start)
        if match is None or match.group().endswith("EXAMPLE"):
            continue
        if len(set(match.group()[len(_PREFIXES[number]) :])) >= _FEWEST_CHARACTERS:
            yield start, match.end(), KEY


def _emails(text: str) -> Iterator[Span]:
    at = text.find("@")
    while at >= 0:
        before = text[max(0, at - _LONGEST_LOCAL) : at]
        local = before[len(before.rstrip(_LOCAL)) :].lstrip(".")
        if local:
            match = _DOMAIN.match(text, at + 1)
            if match and _is_email(text, local, match):
                yield at - len(local), match.end(), EMAIL
        at = text.find("@", at + 1)


def _is_email(text: str, local: str, domain: re.Match[str]) -> bool:
    ending, after = domain[1].lower(), text[domain.end() : domain.end() + 1]
    if not (ending in _TOP_LEVEL or (len(ending) == 2 and ending not in _NOT_COUNTRIES)):
        return False
    # `git@host.com:path` is a remote, `a@b.to(...)` code.
    return (
        after not in ("(", "[", "=")
        and not (local == "git" and after in (":", "/"))
        and not _RESERVED.search(domain[0])
    )


def _addresses(text: str) -> Iterator[Span]:
    raw = text.encode("utf-8", "surrogatepass").translate(_DIGITS_AND_DOTS)
    member = np.frombuffer(raw, np.uint8)
    # Seven such characters in a row, found by shifting the text over itself; few texts have them.
    for step in (1, 2, 3):
        member = member[step:] & member[: max(0, len(member) - step)]
    if not member.any():
        return
    for match in _ADDRESS.finditer(text):
        if _is_public(match.group()) and not _VERSION_BEFORE.search(text[max(0, match.start() - 16) : match.start()]):
            yield match.start(), match.end(), ADDRESS


def _is_public(written: str) -> bool:
    try:
        address = ipaddress.IPv4Address(written)
    except ValueError:
        return False
    # Private, documentation, loopback and reserved ranges are not global.
    return address.is_global and written not in _NAME_SERVERS and max(address.packed) >= _SMALL

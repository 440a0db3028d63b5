"""Which files of a machine may hold documents, of which kind, in an order independent of directory order."""

from __future__ import annotations

import os
import re
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from megacode.base.files import digest

_PYTHON = re.compile(r"\.pyi?")
_CODE = re.compile(
    r"\.(pyx|pxd|pxi|c|h|cc|cpp|hpp|cu|cuh|js|mjs|cjs|ts|tsx|java|go|rs|rb|php|lua|scala|kt|swift|cs|sql|sh|bash|pl|pm|r)"
)
_MARKUP = re.compile(r"\.(md|markdown|rst|html|htm|xhtml|css|scss|json|yaml|yml|toml|svg|xml)")
_PROSE_NAME = re.compile(r"^(readme|news|faq|todo|authors|thanks|install|copying|licen[cs]e|notice|bugs|hacking)", re.I)
_NO_PROSE = frozenset({"sources.txt", "top_level.txt", "entry_points.txt", "installed-files.txt", "requirements.txt"})


@dataclass(frozen=True)
class Candidate:
    """A file that may hold documents: its path, the package it belongs to, and how to read it.

    Attributes:
        kind: `python`, `code`, `markup`, `prose`, `manual`, `metadata`.
    """

    path: str
    package: str
    kind: str
    key: str

    @property
    def sources(self) -> tuple[str, ...]:
        """The sources that a file of this kind can give documents to."""
        return {"python": ("code", "text"), "code": ("code",), "markup": ("markup",)}.get(self.kind, ("text",))


def default_roots() -> list[Path]:
    """Return the usual directories with code, prose and markup: Python's libraries and the system's."""
    paths = sysconfig.get_paths()
    # Documentation and scripts that most distributions install; what is missing is skipped.
    system = ["/usr/lib/python3", "/usr/share/perl", "/usr/share/perl5", "/usr/lib/node_modules", "/usr/share/doc"]
    system += ["/usr/share/man", "/usr/share/common-licenses", "/usr/share/javascript"]
    roots = [Path(path) for path in (paths["purelib"], paths["platlib"], paths["stdlib"], *system)]
    return sorted({path.resolve() for path in roots if path.is_dir()})


def candidates(roots: Sequence[Path], seed: int) -> list[Candidate]:
    """Return the files below some roots that may hold documents, each once, in the order of their keyed hash."""
    by_path = {item.path: item for root in roots for item in _walk(root, {str(other) for other in roots}, seed)}
    return sorted(by_path.values(), key=lambda item: (item.key, item.path))


def _walk(root: Path, roots: set[str], seed: int) -> Iterator[Candidate]:
    """Yield the candidates below one root; links and roots inside it are left to their own."""
    for folder, names, files in os.walk(root):
        # Assigning in place tells os.walk not to descend into the others.
        names[:] = [name for name in names if name != "__pycache__" and os.path.join(folder, name) not in roots]
        relative_folder, directory = os.path.relpath(folder, root), os.path.basename(folder)
        for name in files:
            kind, path = file_kind(name, directory), os.path.join(folder, name)
            if kind is None or os.path.islink(path):
                continue
            relative = os.path.normpath(os.path.join(relative_folder, name))
            package = f"{root.name}/{relative.split(os.sep, 1)[0]}"
            # The key hashes the path below the root: the same corpus comes out wherever the root is mounted.
            yield Candidate(path, package, kind, digest(str(seed), root.name, relative))


def file_kind(name: str, directory: str) -> str | None:
    """Return how to read a file by its name and the name of its directory, or None for what is not wanted."""
    bare = name.removesuffix(".gz")
    suffix = os.path.splitext(bare)[1].lower()
    # Manual pages have no common suffix, so their directory (man1, man5, ...) decides.
    if re.fullmatch(r"man\d", directory):
        return "manual"
    if directory.endswith((".dist-info", ".egg-info")) and bare in ("METADATA", "PKG-INFO"):
        return "metadata"
    if _PYTHON.fullmatch(suffix):
        return "python"
    if _CODE.fullmatch(suffix):
        return "code"
    if _MARKUP.fullmatch(suffix):
        return "markup"
    # Change logs repeat names and numbers; lists of packaged files are no prose either.
    if bare.lower() in _NO_PROSE or bare.lower().startswith("changelog"):
        return None
    prose = suffix == ".txt" or _PROSE_NAME.match(bare) or directory == "common-licenses"
    return "prose" if prose and suffix not in (".pdf", ".png", ".so", ".pyc") else None

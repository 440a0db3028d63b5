"""Text extracted from files: Python code without docstrings, manual pages as plain text, a package's description."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from typing import TypeGuard

_Holder = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
_BLOCKS = ("body", "orelse", "finalbody", "handlers", "cases")


def split_docstrings(source: str) -> tuple[str, list[str]]:
    """Take the docstrings out of a Python module.

    The code is unchanged to the byte except for the docstrings. Lines that hold nothing else are removed; a docstring
    that is a whole body, or shares its line, becomes `pass`.

    Args:
        source: the text of the module.

    Returns:
        The code, and the docstrings without their indentation, in the order of the file.

    Raises:
        SyntaxError, ValueError, RecursionError: if this Python cannot parse it.
    """
    # ast counts columns in UTF-8 bytes, so all cutting is done on bytes.
    lines = source.encode().splitlines(keepends=True)
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line))
    raw, pieces, docstrings, copied = b"".join(lines), [], [], 0
    for statement, alone in sorted(_docstrings(ast.parse(source)), key=lambda pair: pair[0].lineno):
        first, last, replacement = _cut(raw, starts, statement, alone)
        pieces += [raw[copied:first], replacement]
        docstrings.append(inspect.cleandoc(statement.value.value))  # type: ignore[attr-defined]
        copied = last
    return b"".join([*pieces, raw[copied:]]).decode(), docstrings


def _docstrings(tree: ast.Module) -> Iterator[tuple[ast.Expr, bool]]:
    """Yield each docstring's statement and whether its body would be empty without it."""
    # A stack, not recursion: generated code nests deeper than Python's limit.
    stack: list[ast.AST] = [tree]
    while stack:
        node = stack.pop()
        if isinstance(node, _Holder) and node.body and _is_string(node.body[0]):
            yield node.body[0], len(node.body) == 1 and not isinstance(node, ast.Module)
        for block in _BLOCKS:
            stack.extend(getattr(node, block, ()))


def _is_string(statement: ast.stmt) -> TypeGuard[ast.Expr]:
    value = statement.value if isinstance(statement, ast.Expr) else None
    return isinstance(value, ast.Constant) and isinstance(value.value, str)


def _cut(raw: bytes, starts: list[int], statement: ast.Expr, alone: bool) -> tuple[int, int, bytes]:
    """Return the first and last byte to take out for a docstring, and what to put there."""
    assert statement.end_lineno is not None
    assert statement.end_col_offset is not None
    line_first, line_last = starts[statement.lineno - 1], starts[statement.end_lineno]
    first = line_first + statement.col_offset
    last = starts[statement.end_lineno - 1] + statement.end_col_offset
    # `class A: "text"` and `"text"; x = 1` must stay valid Python.
    if alone or raw[line_first:first].strip() or raw[last:line_last].strip():
        return first, last, b"pass"
    return line_first, line_last, b""


def package_description(metadata: str) -> str:
    """Return the long description of a package from its METADATA file: all that stands below the headers."""
    return metadata.partition("\n\n")[2].strip()


# roff: the few escapes and macros that manual pages use; unknown ones are dropped.
_ESCAPES = {"-": "-", "e": "\\", "\\": "\\", " ": " ", "~": " ", "0": " ", "t": " ", "'": "'", "`": "`", ".": "."}
_ESCAPES |= {"(aq": "'", "(oq": "'", "(cq": "'", "(dq": '"', "(lq": '"', "(rq": '"', "(bu": "*", "(em": "-"}
_ESCAPES |= {"(en": "-", "(hy": "-", "(ti": "~", "(ha": "^", "(ga": "`", "(rs": "\\", "(co": "(c)", "(>=": ">="}
_ESCAPE = re.compile(
    r"""\\(\*\(..|\*\[[^]]*\]|\*.|f\(..|f\[[^]]*\]|f.|s[-+]?\d+|[mMF]\[[^]]*\]|[hv]'[^']*'|\(..|\[[^]]*\]|.)"""
)
_STRINGS = {'*(L"': '"', '*(R"': '"', "*(C`": "", "*(C'": "", "*(--": "-", "*(Aq": "'"}
_ARGUMENT = re.compile(r'"((?:[^"]|"")*)"?|(\S+)')
_HEADINGS = frozenset({"SH", "SS", "Sh", "Ss"})
_BREAKS = frozenset(
    {"PP", "P", "LP", "Pp", "TP", "IP", "HP", "RS", "RE", "sp", "It", "Bl", "El", "TQ", "EX", "EE", "nf", "fi"}
)
_JOINED = frozenset({"BR", "RB", "BI", "IB", "IR", "RI"})
_SPACED = frozenset({"B", "I", "SB", "SM", "Nm", "Nd", "Ar", "Cm", "Xr", "Dv", "Va", "Pa", "Em", "Sy", "Li", "MR"})
_SHOWN = _JOINED | _SPACED | {"IP"}
_SKIPPED = {"TS": "TE", "de": ".", "de1": ".", "ig": ".", "am": ".", "EQ": "EN", "PS": "PE"}


def manual_page_text(roff: str) -> str:
    """Return a manual page as plain text: headings, and one line a paragraph; tables and macro definitions left out."""
    paragraphs, words, verbatim = list[str](), list[str](), False
    for line in _content_lines(roff):
        name, arguments = _macro(line)
        # A paragraph ends at each of these; its lines are joined unless they are verbatim.
        if name in _BREAKS or name in _HEADINGS or not line.strip():
            paragraphs.append(("\n" if verbatim else " ").join(words))
            words = []
        if name in _HEADINGS:
            paragraphs.append(arguments)
        elif name is None or name in _SHOWN:
            words += [arguments.rstrip() if verbatim else arguments.strip()] if arguments.strip() else []
        verbatim = name in ("nf", "EX") or (verbatim and name not in ("fi", "EE"))
    return "\n\n".join(paragraph for paragraph in [*paragraphs, " ".join(words)] if paragraph.strip())


def _content_lines(roff: str) -> Iterator[str]:
    """Yield the lines of a page without comments, definitions, tables and conditional blocks."""
    skipped_until, depth = "", 0
    for line in roff.split("\n"):
        control = line[1:].strip() if line[:1] in (".", "'") else ""
        word = control.split(None, 1)[0] if control else ""
        if skipped_until:
            skipped_until = "" if word == skipped_until else skipped_until
        # Conditional blocks hold output for other printers; braces tell where they end.
        elif depth or word in ("if", "ie", "el"):
            depth = max(0, depth + line.count("\\{") - line.count("\\}"))
        elif word in _SKIPPED:
            skipped_until = _SKIPPED[word]
        elif not control.startswith('\\"'):
            yield line


def _macro(line: str) -> tuple[str | None, str]:
    """Return the macro of a line (None for a line of text) and the plain text it shows."""
    if line[:1] not in (".", "'"):
        return None, _plain(line)
    name, _, rest = line[1:].strip().partition(" ")
    arguments = [quoted.replace('""', '"') or bare for quoted, bare in _ARGUMENT.findall(rest)]
    if name == "IP":
        arguments = arguments[:1]  # the second argument is the indentation
    return name, _plain(("" if name in _JOINED else " ").join(arguments))


def _plain(text: str) -> str:
    """Return a line of roff without its escapes: fonts, sizes and motions go, special characters stay."""
    return _ESCAPE.sub(_character, text) if "\\" in text else text


def _character(match: re.Match[str]) -> str:
    escape = match[1]
    if escape.startswith("["):
        escape = "(" + escape[1:-1]
    # A comment: the rest of the line is not text.
    if escape[0] == '"':
        return ""
    return _STRINGS.get(escape, _ESCAPES.get(escape, ""))

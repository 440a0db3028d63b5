"""Tokenizers can reserve every control token that recipes write."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import megacode.corpus.kinds
from megacode.corpus.kinds.registry import KINDS
from megacode.data.reserved_tokens import GROUPS

# Names in angle brackets that are no control tokens: of an XML element, and of a source file.
OTHERS = {"<posts>", "<solution>"}


def test_every_control_token_of_a_kind_is_in_a_group() -> None:
    used = set()
    for path in Path(megacode.corpus.kinds.__path__[0]).glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                used |= {node.value} if re.fullmatch(r"<[a-z_|]+>", node.value) else set()
    assert len(used) > 10
    reserved = {token for group, tokens in GROUPS.items() if group != "fim" for token in tokens}
    assert used - OTHERS == reserved
    assert {*GROUPS} - {"fim"} <= {*KINDS}

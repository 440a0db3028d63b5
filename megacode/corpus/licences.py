"""Licences: which documents are under a permissive one, by the SPDX expression in a field of the input.

The list of permissive licences is a dated file of the package, `permissive_licences.json`. Nothing here looks into a
document: detecting licences in files is the work of other tools, whose result a dump carries as a field.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from license_expression import AND, OR, ExpressionError, Licensing, get_spdx_licensing

from megacode.config.quantity import Frozen
from megacode.corpus.document import Document
from megacode.corpus.settings import read_settings
from megacode.data.records import field_of

LIST = Path(__file__).with_name("permissive_licences.json")
# What tools write where they found no licence.
_NONE = frozenset({"", "none", "noassertion", "no license", "no_license", "unknown", "null"})


class LicenceSettings(Frozen):
    """A recipe's `licences:` section.

    Attributes:
        field: of the record that holds an SPDX expression, or a list of them, all of which apply.
        unlicensed: what happens to documents without a licence: they are counted apart, or kept with the field
            `license_type` = `no_license`.
        lowest_rating: of the Blue Oak Council's list; `lead` takes the whole list.
        also: further identifiers that are kept.
        never: identifiers that are dropped although the list has them.
    """

    field: str = "license"
    unlicensed: Literal["drop", "keep"] = "drop"
    lowest_rating: Literal["gold", "silver", "bronze", "lead"] = "lead"
    also: tuple[str, ...] = ()
    never: tuple[str, ...] = ()


def make_licence_filter(
    settings: Mapping[str, Any] | LicenceSettings, where: str = "licences"
) -> Callable[[Document], str | None]:
    """Return a filter that drops documents by their licence.

    The reasons are `no licence`, `not permissive`, and `licence not in SPDX` for expressions that cannot be read.
    Documents that pass get the field `license_type`: `permissive` or `no_license`.

    Raises:
        ConfigError: with every mistake in the settings.
    """
    checked = read_settings(LicenceSettings, settings, where)
    permissive = permissive_identifiers(checked)
    licensing = get_spdx_licensing()

    @lru_cache(maxsize=100_000)
    def reason_of(expression: str) -> str | None:
        return _reason(expression, permissive, licensing)

    def reason_to_drop(document: Document) -> str | None:
        value = field_of(document.fields, checked.field)
        expressions = [value] if isinstance(value, str) else value if isinstance(value, list) else []
        named = [
            expression
            for expression in expressions
            if isinstance(expression, str) and expression.strip().lower() not in _NONE
        ]
        if not named:
            document.fields["license_type"] = "no_license"
            return "no licence" if checked.unlicensed == "drop" else None
        document.fields["license_type"] = "permissive"
        # A list is what a scanner found in several files: all of them apply, whatever the dump meant by it.
        return next((reason for one in named if (reason := reason_of(one))), None)

    return reason_to_drop


def permissive_identifiers(settings: LicenceSettings) -> frozenset[str]:
    """Return the SPDX identifiers that count as permissive, in lower case."""
    ratings: dict[str, list[str]] = json.loads(LIST.read_text(encoding="utf-8"))["ratings"]
    names = list(ratings)  # the best first
    listed = [name for rating in names[: names.index(settings.lowest_rating) + 1] for name in ratings[rating]]
    never = {name.lower() for name in settings.never}
    return frozenset(name.lower() for name in (*listed, *settings.also)) - never


def _reason(expression: str, permissive: frozenset[str], licensing: Licensing) -> str | None:
    try:
        parsed = licensing.parse(expression)
    except (ExpressionError, RecursionError):
        # Plain identifiers that SPDX does not know, which a recipe may have named.
        return None if expression.strip().lower() in permissive else "licence not in SPDX"
    return None if _is_permissive(parsed, permissive) else "not permissive"


def _is_permissive(node: Any, permissive: frozenset[str]) -> bool:
    """Tell whether a parsed expression allows permissive use: all parts of AND, any part of OR."""
    if isinstance(node, AND):
        return all(_is_permissive(part, permissive) for part in node.args)
    if isinstance(node, OR):
        return any(_is_permissive(part, permissive) for part in node.args)
    # An exception only adds permissions: the licence before WITH decides.
    licence = getattr(node, "license_symbol", node)
    return str(licence.key).lower().removesuffix("+") in permissive

"""Validate a document and report every mistake in it at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from megacode.base.errors import ConfigError, Problem
from megacode.config.placeholders import LENIENT, while_known
from megacode.config.problems import problems_of

Schema = TypeVar("Schema", bound=BaseModel)


def checked(schema: type[Schema], raw: Mapping[str, Any]) -> tuple[Schema, list[Problem]]:
    """Validate types and bounds of single settings.

    Args:
        schema: of the document.
        raw: the document.

    Returns:
        the settings, with placeholders for the invalid ones, so that rules can check all the others; and the problems.
    """
    try:
        return schema.model_validate(raw), []
    except ValidationError as error:
        return schema.model_validate(raw, context=LENIENT), problems_of(error, schema)


def validated(
    schema: type[Schema], raw: Mapping[str, Any], rules: Iterable[Callable[[Schema], Iterable[Problem]]], where: str
) -> Schema:
    """Validate a document of one file: single settings, then rules across them.

    Args:
        schema: of the document.
        raw: the document.
        rules: each yields the problems that it finds.
        where: the file's name, for messages.

    Raises:
        ConfigError: with every mistake: a file with three of them should be refused once, not three times.
    """
    document, problems = checked(schema, raw)
    for rule in rules:
        problems += while_known(rule(document))
    if problems:
        placed = (Problem(one.what, f"{where}: {one.where}", one.fix) for one in dict.fromkeys(problems))
        raise ConfigError(problems=list(placed))
    return document

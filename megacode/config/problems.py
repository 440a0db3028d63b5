"""Translate pydantic's validation errors into problems: what is wrong, where, and how to fix it."""

from __future__ import annotations

import typing
from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel, ValidationError

from megacode.base.errors import Problem
from megacode.config.run import RunConfig
from megacode.config.suggestions import did_you_mean

# pydantic's error types, and a fix for each. Other types show pydantic's own message.
_BOUNDS = {
    "greater_than": "give more than {gt}",
    "greater_than_equal": "give at least {ge}",
    "less_than": "give less than {lt}",
    "less_than_equal": "give at most {le}",
    "literal_error": "use one of {expected}",
    "too_short": "give at least {min_length}",
    "string_too_short": "give a name",
    "string_pattern_mismatch": "use letters, digits, '.', '_' and '-' only",
    "bool_parsing": "use true or false",
    "bool_type": "use true or false",
    "int_parsing": "give a whole number",
    "int_type": "give a whole number",
    "int_from_float": "give a whole number",
    "float_parsing": "give a number",
    "float_type": "give a number",
    "finite_number": "give a finite number",
    "string_type": "give text (in quotes if it looks like a number)",
    "dict_type": "give keys and values",
    "model_type": "give keys and values",
    "tuple_type": "give a list",
}


def problems_of(error: ValidationError, schema: type[BaseModel] = RunConfig) -> list[Problem]:
    """Translate every error of one validation.

    Args:
        error: raised by pydantic.
        schema: what was validated; misspelt settings are compared with its own.
    """
    items = error.errors()
    # pydantic also reports a list with invalid items as too short.
    inside = {item["loc"][:end] for item in items for end in range(len(item["loc"]))}
    return [
        _translate(dict(item), schema) for item in items if item["loc"] not in inside or item["type"] != "too_short"
    ]


def _translate(item: dict[str, Any], root: type[BaseModel]) -> Problem:
    location = _in_document(item["loc"])
    where, kind = _dotted(location), item["type"]
    if kind == "extra_forbidden":
        return Problem(f"{location[-1]!s} is not a setting", where, _suggest(location, root))
    if kind == "missing":
        return Problem("required setting is missing", where, f"add {location[-1]}")
    message = str(item["msg"]).removeprefix("Value error, ")
    if kind == "value_error":
        # Our own validators write "WHAT; FIX" (`quantity`).
        problem, _, fix = message.partition("; ")
        return Problem(problem, where, fix or "write for example 200B, 1.5M, 64Ki or 4096")
    shown = repr(item["input"])
    # A whole section given in place of a number would fill the screen.
    shown = shown if len(shown) <= 60 else shown[:57] + "..."
    fix = _BOUNDS.get(kind, message).format(**item.get("ctx", {}))
    return Problem(f"{shown} is not a valid value", where, fix)


def _in_document(location: Iterable[Any]) -> list[Any]:
    """Return the steps of a pydantic location that are keys of the document; tags of unions are dropped."""
    return [part for part in location if not str(part).startswith("as-")]


def _dotted(location: list[Any]) -> str:
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else (f".{part}" if text else str(part))
    return text


def _suggest(location: list[Any], root: type[BaseModel]) -> str:
    schema = _schema_at(root, location[:-1])
    if schema is None:
        return "remove it"
    known = [field.alias or name for name, field in schema.model_fields.items()]
    # A phase's length is written in one of three units; `length` is what the code reads.
    if schema.__name__ == "Phase":
        known = [*(name for name in known if name != "length"), "tokens", "samples", "iterations"]
    return did_you_mean(str(location[-1]), known)


def _schema_at(schema: Any, location: list[Any]) -> type[BaseModel] | None:
    """Return the schema class that validates the dict at a location."""
    for part in location:
        # An index steps into the items of a list, a dict's key into its values: look inside the annotation.
        if isinstance(part, int) or not (isinstance(schema, type) and issubclass(schema, BaseModel)):
            schema = _model_in(schema)
        elif part in schema.model_fields:
            schema = schema.model_fields[part].annotation
        else:
            return None
    return _model_in(schema)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in typing.get_args(annotation):
        model = _model_in(argument)
        if model is not None:
            return model
    return None

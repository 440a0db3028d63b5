"""Sections of a recipe as validated settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import ValidationError

from megacode.base.errors import ConfigError, Problem
from megacode.config.problems import problems_of
from megacode.config.quantity import Frozen

Section = TypeVar("Section", bound=Frozen)


def read_settings(schema: type[Section], settings: Mapping[str, Any] | Section, where: str) -> Section:
    """Validate one section of a recipe.

    Args:
        schema: of the section.
        settings: what the recipe says, or validated settings, which are returned as they are.
        where: the section's name, for messages.

    Raises:
        ConfigError: with every mistake.
    """
    # The recipe is validated once as a whole; kinds and filters then get their section ready-made.
    if isinstance(settings, schema):
        return settings
    try:
        return schema.model_validate(settings)
    except ValidationError as error:
        problems = problems_of(error, schema)
        raise ConfigError(
            problems=[Problem(problem.what, f"{where}.{problem.where}", problem.fix) for problem in problems]
        ) from None

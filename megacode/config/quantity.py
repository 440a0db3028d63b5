"""Quantities with their unit, and the YAML types that read them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag

from megacode.base.units import format_count, parse_count, parse_fraction, parse_seconds

Unit = Literal["tokens", "samples", "iterations"]
UNITS: tuple[Unit, ...] = ("tokens", "samples", "iterations")


class Frozen(BaseModel):
    """Base of every schema class: unknown keys are errors, and nothing changes after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class Quantity(Frozen):
    """A length of training.

    Attributes:
        count: how many, at least one.
        unit: of what.
    """

    count: int = Field(ge=1)
    unit: Unit

    def __str__(self) -> str:
        return f"{self.count} {self.unit if self.count != 1 else self.unit[:-1]}"

    def short(self) -> str:
        """Return it for people: `200B tokens`."""
        return f"{format_count(self.count)} {self.unit}"


def read_quantity(value: Any) -> Any:
    """Read `500 iterations`, `2B tokens` or `64 samples`; pydantic reports what is raised here."""
    if not isinstance(value, str):
        if isinstance(value, (int, float)):
            raise ValueError(f"{value} has no unit; write '{value} iterations', '{value} samples' or '{value} tokens'")
        return value
    number, _, unit = value.strip().rpartition(" ")
    for known in UNITS:
        if number and unit.lower() in (known, known[:-1]):
            return {"count": parse_count(number), "unit": known}
    raise ValueError(f"{value!r} is not a quantity; write for example '500 iterations', '2B tokens' or '64 samples'")


Count = Annotated[int, BeforeValidator(parse_count)]
Share = Annotated[float, BeforeValidator(parse_fraction)]
Seconds = Annotated[float, BeforeValidator(parse_seconds)]
Length = Annotated[Quantity, BeforeValidator(read_quantity)]


def read_length_or_share(value: Any) -> Any:
    """Read a quantity (`10B tokens`) or a share of the phase (`10%`, `0.1`)."""
    if isinstance(value, str) and not value.strip().endswith("%") and " " in value.strip():
        return read_quantity(value)
    return value if isinstance(value, (Quantity, dict)) else parse_fraction(value)


LengthOrShare = Annotated[
    Annotated[Quantity, Tag("as-length")] | Annotated[float, Tag("as-share")],
    Discriminator(lambda value: "as-share" if isinstance(value, float) else "as-length"),
    BeforeValidator(read_length_or_share),
]

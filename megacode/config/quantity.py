"""Quantities with their unit, and the pydantic types that parse them from YAML."""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    field_validator,
    model_validator,
)

from megacode.base.units import format_count, parse_bytes, parse_count, parse_fraction, parse_seconds
from megacode.config.placeholders import LENIENT, UNKNOWN

Unit = Literal["tokens", "samples", "iterations"]
# Weights become exact fractions; absurd ones would make their arithmetic slow.
_LARGEST_WEIGHT = 1e12
UNITS: tuple[Unit, ...] = ("tokens", "samples", "iterations")


class Frozen(BaseModel):
    """Base of every schema class: unknown keys are errors, and instances are immutable."""

    # Forbidden extras catch typos, which would otherwise train with a default for days.
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, raw: Any, info: ValidationInfo) -> Any:
        """In the second validation (`placeholders`), drop unknown keys, and fill in missing ones as UNKNOWN."""
        if info.context is not LENIENT or not isinstance(raw, dict):
            return raw
        names = {key: field.alias or key for key, field in cls.model_fields.items()}
        known = {key: value for key, value in raw.items() if key in names or key in names.values()}
        needed = [(key, name) for key, name in names.items() if cls.model_fields[key].is_required()]
        # Required settings that are missing become UNKNOWN; pydantic has reported them in the first pass.
        return {name: UNKNOWN for key, name in needed if key not in raw and name not in raw} | known

    @field_validator("*", mode="wrap")
    @classmethod
    def _or_unknown(cls, value: Any, handler: ValidatorFunctionWrapHandler, info: ValidationInfo) -> Any:
        """In the second validation, replace an invalid value by UNKNOWN."""
        if value is UNKNOWN:
            return value
        try:
            return handler(value)
        except ValidationError:
            if info.context is LENIENT:
                return UNKNOWN
            raise


class Quantity(Frozen):
    """A length of training.

    Attributes:
        count: at least one.
        unit: tokens, samples or iterations.
    """

    count: int = Field(ge=1)
    unit: Unit

    def __str__(self) -> str:
        return f"{self.count} {self.unit if self.count != 1 else self.unit[:-1]}"

    def short(self) -> str:
        """Return it in short form: `200B tokens`."""
        return f"{format_count(self.count)} {self.unit}"


def read_quantity(value: Any) -> Any:
    """Read `500 iterations`, `2B tokens` or `64 samples`; pydantic reports a ValueError raised here."""
    if not isinstance(value, str):
        # A plain number could mean any of the three, and they differ by factors of thousands.
        if isinstance(value, (int, float)):
            raise ValueError(f"{value} has no unit; write '{value} iterations', '{value} samples' or '{value} tokens'")
        return value
    number, _, unit = value.strip().rpartition(" ")
    for known in UNITS:
        # Singular is accepted too: `1 iteration`.
        if number and unit.lower() in (known, known[:-1]):
            count = parse_count(number)
            if count < 1:
                raise ValueError(f"{value!r} is not a length; give at least 1 {known[:-1]}")
            return {"count": count, "unit": known}
    raise ValueError(f"{value!r} is not a quantity; write for example '500 iterations', '2B tokens' or '64 samples'")


Count = Annotated[int, BeforeValidator(parse_count)]
Bytes = Annotated[int, BeforeValidator(parse_bytes)]
Share = Annotated[float, BeforeValidator(parse_fraction)]
Seconds = Annotated[float, BeforeValidator(parse_seconds)]
Length = Annotated[Quantity, BeforeValidator(read_quantity)]


def read_weight(value: Any, handler: ValidatorFunctionWrapHandler, info: ValidationInfo) -> Any:
    """Read one weight of a blend: `0.5`, or `50%`, which is the share 0.5."""
    try:
        if isinstance(value, bool):
            raise ValueError
        if isinstance(value, str) and value.strip().endswith("%"):
            value = float(Decimal(value.strip()[:-1].strip()) / 100)  # in decimals: 33.3% is 0.333
        weight = float(value)
        if not 0 <= weight <= _LARGEST_WEIGHT:
            raise ValueError
    except (ValueError, TypeError, ArithmeticError):
        if info.context is LENIENT:
            return UNKNOWN
        raise ValueError(f"{value!r} is not a weight; give a share such as 0.5 or 50%, or 0") from None
    return handler(weight)


def read_blend(value: Any, handler: ValidatorFunctionWrapHandler, info: ValidationInfo) -> Any:
    """Read a blend; weights with and without a percent sign must not be mixed."""
    blend = handler(value)
    marked = [name for name, weight in value.items() if isinstance(weight, str) and weight.strip().endswith("%")]
    # A plain 0 means the same either way, so it is not a mixture.
    bare = [name for name, weight in blend.items() if name not in marked and (weight is UNKNOWN or weight)]
    if marked and bare and info.context is not LENIENT:
        example = f"{marked[0]} {value[marked[0]]} beside {bare[0]} {value[bare[0]]}"
        raise ValueError(f"the blend mixes percentages and plain numbers: {example}; write all of them in one form")
    return blend


Weight = Annotated[float, WrapValidator(read_weight)]
Blend = Annotated[dict[str, Weight], WrapValidator(read_blend)]


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

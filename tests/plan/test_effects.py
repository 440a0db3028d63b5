"""Every setting of a run says what it decides, once, in one table."""

from __future__ import annotations

import typing
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel

from megacode.config.model import RotaryScaling
from megacode.config.quantity import Quantity
from megacode.config.run import RunConfig
from megacode.config.training import Fp8
from megacode.plan import effects
from megacode.plan.effects import EFFECTS, effect_of, flat

LEAVES = (Quantity, Fp8, RotaryScaling)  # sections that are compared as one value


def sections_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [] if annotation in LEAVES else [annotation]
    return [found for argument in typing.get_args(annotation) for found in sections_in(argument)]


def settings(schema: type[BaseModel], above: str = "") -> Iterator[str]:
    """The dotted names of all settings below a section; names that users choose are `*`."""
    for name, field in schema.model_fields.items():
        key = above + (field.alias or name)
        inside = sections_in(field.annotation)
        many = typing.get_origin(field.annotation) in (dict, tuple)
        if inside:
            yield from settings(inside[0], f"{key}.*." if many else f"{key}.")
        else:
            yield key


def test_every_setting_of_the_config_stands_in_the_table_and_no_other() -> None:
    known = set(settings(RunConfig))
    assert len(known) > 100
    assert known == set(EFFECTS), "a new setting needs an effect in plan/effects.py"


def test_no_setting_stands_twice() -> None:
    keys = [key for text in effects._TABLE.values() for key in text.split()]
    assert len(keys) == len(EFFECTS)


def test_every_effect_is_known_in_one_way() -> None:
    ways = (effects.IN_FINGERPRINT, effects.FUNCTIONS_OF_THE_CLOCK, effects.LEARNED, effects.OUTSIDE)
    found = [effect for way in ways for effect in way]
    assert sorted(found) == sorted(effects._TABLE)


@pytest.mark.parametrize(
    ("key", "effect"),
    [
        ("train.clip_grad", "optimizer"),
        ("sources.text.take", "future data"),
        ("phases[3].learning_rate.peak", "learning rate"),
        ("phases[0].blend.text", "future data"),
        ("phases[0].fp8", "number formats"),
        ("precision.fp8.recipe", "number formats"),
        ("train.batch_ramp", "batch size"),
        ("tokenizer", "tokenizer, document form"),
        ("sources.code.fim_rate", "document form"),
        ("sources.code.loss", "document form"),
        ("evaluate", "measurement"),
        ("sources.text", "future data, document form"),
        ("health.hang_timeout", "bookkeeping"),
        ("health.spikes.policy", "withheld samples"),
        ("gone", "other"),
    ],
)
def test_a_setting_a_part_of_one_and_a_section_have_effects(key: str, effect: str) -> None:
    assert effect_of(key) == effect


def test_a_document_is_laid_flat() -> None:
    document = {"a": {"b": 1, "c": {"d": [1, 2]}}, "e": {}, "f": None}
    assert list(flat(document)) == [("a.b", 1), ("a.c.d", [1, 2]), ("e", {}), ("f", None)]

"""Placeholders for invalid settings, so that rules can check all the others.

A config with mistakes is validated a second time, where every invalid or missing setting becomes `UNKNOWN`. Any use of
it by a rule raises `Unknown` and ends that rule: what depends on an invalid value cannot be checked. So one mistake
gives one problem, and hides no other.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NoReturn, TypeVar

LENIENT = {"lenient": True}  # the context of the second validation

Item = TypeVar("Item")


class Unknown(Exception):  # noqa: N818 (a signal between rules and their caller, never shown)
    """A rule has used a setting that is invalid."""


class _UnknownValue:
    """A value that raises `Unknown` when it is compared, computed with, called or inspected."""

    def _refuse(self, *_: Any) -> NoReturn:
        raise Unknown

    # Python looks special methods up on the class, so each must be assigned; `__getattr__` is not enough.
    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = __bool__ = __hash__ = _refuse
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __mod__ = __rmod__ = _refuse
    __floordiv__ = __rfloordiv__ = __truediv__ = __rtruediv__ = __neg__ = __int__ = __index__ = __float__ = _refuse
    __iter__ = __len__ = __contains__ = __getitem__ = __getattr__ = __str__ = __format__ = _refuse

    # Except for repr, which pydantic and debuggers call.
    def __repr__(self) -> str:
        return "UNKNOWN"


UNKNOWN: Any = _UnknownValue()


def while_known(problems: Iterable[Item]) -> Iterator[Item]:
    """Yield the problems that a rule finds, until it uses an invalid setting."""
    try:
        yield from problems
    except Unknown:
        return

"""Stand-ins for settings that are wrong, so that rules can check all the others.

A config with mistakes is read a second time in which every wrong or missing setting becomes `UNKNOWN`. Whatever a rule
does with it raises `Unknown` and ends that rule there: what depends on a wrong value is neither right nor wrong. So one
mistake gives one problem, and hides no other.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NoReturn, TypeVar

LENIENT = {"lenient": True}  # the validation context of the second reading

Item = TypeVar("Item")


class Unknown(Exception):  # noqa: N818 (a signal between rules and their caller, never shown)
    """A rule has asked for a setting that is wrong."""


class _UnknownValue:
    """What cannot be compared, counted, called or looked into."""

    def _refuse(self, *_: Any) -> NoReturn:
        raise Unknown

    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = __bool__ = __hash__ = _refuse
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __mod__ = __rmod__ = _refuse
    __floordiv__ = __rfloordiv__ = __truediv__ = __rtruediv__ = __neg__ = __int__ = __index__ = __float__ = _refuse
    __iter__ = __len__ = __contains__ = __getitem__ = __getattr__ = __str__ = __format__ = _refuse

    def __repr__(self) -> str:
        return "UNKNOWN"


UNKNOWN: Any = _UnknownValue()


def while_known(found: Iterable[Item]) -> Iterator[Item]:
    """Yield what a rule finds, up to the first setting that is wrong."""
    try:
        yield from found
    except Unknown:
        return

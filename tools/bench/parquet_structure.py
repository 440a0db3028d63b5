"""Change Parquet files where their structure is: the numbers and lengths of the footer and of page headers.

A file is `PAR1`, pages (each behind a header), the footer, four bytes with its length, and `PAR1`. Headers and footer
are Thrift structs in the compact protocol. A byte that is changed anywhere breaks that protocol nearly always, and
pyarrow refuses the file at once. Changes made here keep the protocol, so they reach what lies behind it.

Source: the format's own description, `parquet.thrift`, and Thrift's compact protocol.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field

MAGIC = b"PAR1"
_BOOLEANS, _BYTE, _INTEGERS, _DOUBLE, _BINARY, _LISTS, _MAP, _STRUCT = (1, 2), 3, (4, 5, 6), 7, 8, (9, 10), 11, 12
_DEEPEST = 60
_WIDEST = 10  # bytes of a 64-bit number
_ODD = (0, 1, 2, 3, 7, 8, 127, 128, 255, 1 << 15, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, (1 << 63) - 1, (1 << 64) - 1)


class BrokenError(ValueError):
    """The bytes are no struct of the compact protocol."""


@dataclass
class Struct:
    """Where the changeable parts of a struct are.

    Attributes:
        end: behind the struct.
        numbers: begin and end of each number, the lengths of texts and of long lists among them.
        lists: place of each byte that holds the length of a short list, and the type of its elements.
        texts: begin and end of each text.
        fields: values of the numbers at the top level, by the field's number.
    """

    end: int = 0
    numbers: list[tuple[int, int]] = field(default_factory=list)
    lists: list[int] = field(default_factory=list)
    texts: list[tuple[int, int]] = field(default_factory=list)
    fields: dict[int, int] = field(default_factory=dict)


def read_struct(data: bytes, start: int) -> Struct:
    """Return the parts of the struct that begins at a place.

    Raises:
        BrokenError: there is none, or it goes beyond the data.
    """
    reader = _Reader(data, start)
    reader.struct(0)
    reader.found.end = reader.place
    return reader.found


class _Reader:
    def __init__(self, data: bytes, start: int) -> None:
        self._data, self.place, self.found = data, start, Struct()

    def struct(self, depth: int) -> None:
        number = 0
        while head := self._byte():
            kind, step = head & 15, head >> 4
            number = number + step if step else _signed(self._number())
            if kind in _INTEGERS and depth == 0:
                self.found.fields[number] = _signed(self._number())
            elif kind not in _BOOLEANS:
                self._value(kind, depth + 1)

    def _value(self, kind: int, depth: int) -> None:
        if depth > _DEEPEST:
            raise BrokenError("nested too deeply")
        if kind in _INTEGERS:
            self._number()
        elif kind in (_BYTE, *_BOOLEANS):
            self._byte()
        elif kind == _DOUBLE:
            self._pass(8)
        elif kind == _BINARY:
            size = self._number()
            self.found.texts.append((self.place, self.place + size))
            self._pass(size)
        elif kind == _STRUCT:
            self.struct(depth)
        elif kind in _LISTS:
            self._list(depth)
        elif kind != _MAP or self._number():
            # Parquet's structs have no maps but empty ones.
            raise BrokenError(f"type {kind}")

    def _list(self, depth: int) -> None:
        self.found.lists.append(self.place)
        head = self._byte()
        for _ in range(self._number() if head >> 4 == 15 else head >> 4):
            self._value(head & 15, depth + 1)

    def _number(self) -> int:
        begin, value = self.place, 0
        while (part := self._byte()) >= 128:
            value |= (part & 127) << 7 * (self.place - begin - 1)
            if self.place - begin > _WIDEST:
                raise BrokenError("a number without an end")
        self.found.numbers.append((begin, self.place))
        return value | part << 7 * (self.place - begin - 1)

    def _byte(self) -> int:
        self._pass(1)
        return self._data[self.place - 1]

    def _pass(self, size: int) -> None:
        self.place += size
        if self.place > len(self._data):
            raise BrokenError("beyond the end")


def _signed(value: int) -> int:
    return (value >> 1) ^ -(value & 1)


def footer_of(data: bytes) -> tuple[int, Struct]:
    """Return where a file's footer begins, and its parts.

    Raises:
        BrokenError: there is no footer.
    """
    begin = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    if data[-4:] != MAGIC or begin < len(MAGIC):
        raise BrokenError("no footer")
    return begin, read_struct(data, begin)


def page_headers(data: bytes, end: int) -> Iterator[Struct]:
    """Yield the headers of the pages that follow each other from the beginning of a file, before some byte."""
    place = len(MAGIC)
    while place < end:
        try:
            header = read_struct(data, place)
        except BrokenError:
            return
        yield header
        # Field 3 is the size of the page behind its header, as it is in the file.
        place = header.end + max(0, header.fields.get(3, 0))


def changed(data: bytes, rng: random.Random) -> bytes:
    """Return a file with one to three changes of its structure; one without a footer comes back as it is."""
    for _ in range(rng.choice((1, 1, 2, 3))):
        try:
            begin, footer = footer_of(data)
        except BrokenError:
            return data
        headers = [header for header in page_headers(data, begin) if header.numbers]
        if not footer.numbers:
            return data
        if headers and rng.random() < 0.5:
            data = _in_header(data, rng.choice(headers), rng)
        else:
            data = _in_footer(data, begin, footer, rng)
    return data


def _in_footer(data: bytes, begin: int, footer: Struct, rng: random.Random) -> bytes:
    """Change the footer; its length is set to what it has become, or in rare cases to something else."""
    old, base = data[begin:-8], begin
    kind = rng.randrange(8)
    if kind == 0 and footer.lists:
        place = rng.choice(footer.lists) - base
        # The length and the type of a list: one element more or less than there is, or another reading of them.
        new = old[:place] + bytes([old[place] ^ rng.choice((0x10, 0x20, 0x80, 0x03, 0x0D))]) + old[place + 1 :]
    elif kind == 1 and footer.texts:
        first, last = rng.choice(footer.texts)
        text = bytearray(old[first - base : last - base])
        for _ in range(min(len(text), 2)):
            text[rng.randrange(len(text))] = rng.choice((0, 0x80, 0xFF, ord("."), rng.randrange(256)))
        new = old[: first - base] + bytes(text) + old[last - base :]
    else:
        first, last = rng.choice(footer.numbers)
        value = _number(_odd(old, first - base, last - base, rng))
        new = old[: first - base] + value + old[last - base :]
    size = len(new) if rng.random() < 0.95 else rng.choice((0, len(new) - 1, len(new) + 1, len(data), 1 << 31))
    return data[:begin] + new + size.to_bytes(4, "little") + MAGIC


def _in_header(data: bytes, header: Struct, rng: random.Random) -> bytes:
    """Change a number of a page's header in place: what comes behind it must stay where the footer says it is."""
    first, last = rng.choice(header.numbers)
    value = _odd(data, first, last, rng) & ((1 << 7 * (last - first)) - 1)
    return data[:first] + _number(value, last - first) + data[last:]


def _odd(data: bytes, first: int, last: int, rng: random.Random) -> int:
    """Return a number to put in the place of one: near it, a limit of some type, or any."""
    value = sum((part & 127) << 7 * place for place, part in enumerate(data[first:last]))
    choice = rng.randrange(4)
    if choice == 0:
        return rng.choice(_ODD)
    if choice == 1:
        return rng.getrandbits(rng.choice((3, 8, 16, 31, 40)))
    return (value + rng.choice((-2, -1, 1, 2, value, 64, -value))) % (1 << 64)


def _number(value: int, width: int = 1) -> bytes:
    """Return a number in the compact protocol, in at least so many bytes."""
    encoded = bytearray()
    while value >= 128 or len(encoded) < width - 1:
        encoded.append(value & 127 | 128)
        value >>= 7
    return bytes([*encoded, value])

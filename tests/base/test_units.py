"""Quantities are read as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megacode.base.units import (
    format_bytes,
    format_count,
    format_rate,
    format_seconds,
    parse_bytes,
    parse_count,
    parse_fraction,
)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("200B", 200 * 10**9),
        ("1.5M", 1_500_000),
        ("64Ki", 65536),
        ("1_000", 1000),
        ("2e9", 2 * 10**9),
        (4096, 4096),
        ("15T", 15 * 10**12),
        (1e3, 1000),
    ],
)
def test_counts_carry_a_suffix(text: str | int | float, value: int) -> None:
    assert parse_count(text) == value


@pytest.mark.parametrize("text", ["", "many", "1.5", "3 apples", True, "1.0000001k", float("nan"), float("inf"), "-3"])
def test_what_is_no_whole_number_is_refused(text: object) -> None:
    with pytest.raises(ValueError, match=r"not a|unknown suffix"):
        parse_count(text)  # type: ignore[arg-type]


@given(st.integers(0, 10**15))
def test_whole_numbers_are_read_exactly(value: int) -> None:
    assert parse_count(str(value)) == value
    assert parse_count(f"{value}k") == value * 1000


def test_shares_are_percentages_or_fractions() -> None:
    assert parse_fraction("10%") == pytest.approx(0.1)
    assert parse_fraction("0.005") == parse_fraction(0.005) == 0.005
    with pytest.raises(ValueError, match="share"):
        parse_fraction("a tenth")


def test_numbers_are_shown_with_three_digits() -> None:
    assert [format_count(n) for n in (7, 12_345, 200 * 10**9, 999_999)] == ["7", "12.3k", "200B", "1000k"]
    assert format_rate(107.2e9, "FLOP/s") == "107 GFLOP/s"
    assert [format_bytes(n) for n in (512, 1536, 3 * 2**30)] == ["512 B", "1.5 KiB", "3 GiB"]
    assert [format_seconds(s) for s in (0.25, 12.34, 245, 11520, 792000)] == [
        "250 ms",
        "12.3 s",
        "4 min 05 s",
        "3 h 12 min",
        "9 d 4 h",
    ]


@pytest.mark.parametrize(
    ("text", "size"),
    [("100GB", 10**11), ("64 MiB", 1 << 26), ("64Mi", 1 << 26), ("1.5t", 15 * 10**11), ("7", 7), (12, 12)],
)
def test_a_size_in_bytes_is_read_with_and_without_its_b(text: str | int, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "GB", "many", "1.5", True, "3 XB"])
def test_what_is_no_size_in_bytes_is_refused(text: str | bool) -> None:
    with pytest.raises(ValueError, match="is not a size in bytes; write for example 100GB or 64 MiB"):
        parse_bytes(text)

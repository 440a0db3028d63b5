"""A test whose every check stands in a loop says that the loop ran: an empty file passes such a test else."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent, indent

import pytest

from tests.house.loops import unproven

TESTS = Path(__file__).resolve().parents[1]


def test_no_test_passes_because_its_loops_never_ran() -> None:
    files = sorted(TESTS.rglob("test_*.py"))
    assert len(files) > 100
    found = [
        f"{path.relative_to(TESTS.parent)}:{line} {name}" for path in files for line, name in unproven(path.read_text())
    ]
    assert not found, "assert that the loop ran (a length, what it covered):\n" + "\n".join(found)


@pytest.mark.parametrize(
    "body",
    [
        "for one, other in zip(read(), read(), strict=True):\n    assert one == other",
        "assert all(x > 0 for x in read())",
        "assert not any(x > 0 for x in read())",
        "assert not [x for x in read() if x]",
        "assert [x.a for x in read()] == [x.a for x in read()]",
        "wrong = []\nfor x in read():\n    wrong.append(x)\nassert not wrong",
        "wrong = []\nfor x in read():\n    wrong.append(x)\nassert wrong == []",
        "for x in ():\n    assert x",
        "for x in range(count()):\n    assert x < 3",
        "for x in range(3, 3):\n    assert x",
        "while waiting():\n    assert alive()",
        "for x in read():\n    with pytest.raises(ValueError):\n        parse(x)",
        "for x in read():\n    torch.testing.assert_close(x, x)",
        "for x in read():\n    check(x)",
        "check_each(read())",
        "for x in (1, 2):\n    for y in read(x):\n        assert y",
        "for x in sorted(given):\n    assert x",
    ],
)
def test_checks_that_an_empty_input_skips_are_found(body: str) -> None:
    assert unproven(_file(body)) == [(10, "test_it")]


@pytest.mark.parametrize(
    "body",
    [
        "for one, other in zip(read(), [1, 2], strict=True):\n    assert one == other",
        "found = read()\nassert found\nfor x in found:\n    assert x",
        "found = read()\nassert len(found) == 3\nassert all(x > 0 for x in found)",
        "assert {x for x in read()} == {1, 2}",
        "wrong = [x for x in read()]\nassert wrong == [1]",
        "for name in (*NAMES, *read()):\n    assert name",
        "for number, name in enumerate(sorted(NAMES)):\n    assert name",
        "for x in range(3):\n    assert x < 3",
        "cases = {'a': 1}\nfor name, value in cases.items():\n    assert value",
        "assert all(len(read(name)) for name in NAMES)",
        "first, second = read()\nfor x in (first, second):\n    assert x",
        "with pytest.raises(ValueError):\n    read()",
        "check(read())",
        "read()",
    ],
)
def test_checks_that_are_surely_made_are_enough(body: str) -> None:
    assert unproven(_file(body)) == []


def test_what_a_test_is_given_counts_as_it_is_written() -> None:
    text = """
        SIZES = [1, 2]
        @pytest.mark.parametrize("size", SIZES)
        def test_constants(size):
            for rank in range(size):
                assert rank < 2
        @pytest.mark.parametrize(("size", "name"), [(1, "a"), (0, "b")])
        def test_zero_is_one_of_them(size, name):
            for rank in range(size):
                assert rank < 2
        @given(st.integers(), st.lists(st.integers(), min_size=1))
        def test_never_empty(number, drawn):
            for x in drawn:
                assert x < number
        @given(drawn=st.lists(st.integers()))
        def test_may_be_empty(drawn):
            for x in drawn:
                assert x
        """
    assert [name for _, name in unproven(dedent(text))] == ["test_zero_is_one_of_them", "test_may_be_empty"]


def _file(body: str) -> str:
    helpers = """\
        NAMES = ("a", "b")
        def check(x):
            assert x
        def check_each(xs):
            for x in xs:
                assert x
        def unused():
            assert True

        def test_it(given):
        """
    return dedent(helpers) + indent(body, "    ") + "\n"

"""Lines of conversations, damaged at random: an answer in known roles and texts, or a ValueError that says why."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megacode.chat.conversations import ROLES, messages_of
from megacode.data.jsonl import parse_object

LINES = (
    b'{"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}, {"role": "tool", "content": ""}]}',
    b'{"prompt": "a", "completion": [{"role": "assistant", "content": "b", "name": "c"}], "id": 1}',
    b'{"messages": [{"role": "assistant", "content": null, "tool_calls": [{}]}], "tools": []}',
)


@settings(max_examples=500, deadline=None)
@given(line=st.sampled_from(LINES), changes=st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)), max_size=4))
def test_a_damaged_line_is_used_or_refused(line, changes):
    damaged = bytearray(line)
    for place, byte in changes:
        damaged[place % len(damaged)] = byte
    try:
        found, why = messages_of(parse_object(bytes(damaged))), ""
    except ValueError as error:
        found, why = [], str(error)
    assert bool(found) != bool(why)
    assert {message["role"] for message in found} <= set(ROLES)
    assert bool(b"".join(value.encode() for message in found for value in message.values())) == bool(found)


def test_a_value_that_is_nested_too_deeply_is_refused():
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(ValueError, match="a value nested too deeply"):
        messages_of({"messages": {"a": deep}})


def test_what_templates_read_besides_is_passed_on_and_texts_are_joined():
    first, second = messages_of(parse_object(LINES[0]))
    assert (first, second) == ({"role": "user", "content": "a"}, {"role": "tool", "content": ""})
    assert messages_of(parse_object(LINES[1]))[1] == {"role": "assistant", "content": "b", "name": "c"}
    with pytest.raises(ValueError, match="has tool_calls"):
        messages_of(parse_object(LINES[2]))

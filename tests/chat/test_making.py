"""`megacode data chat`: what is on the disk, read back with numpy alone; and what bad input gets."""

from __future__ import annotations

import gzip
import hashlib
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megacode.base.errors import ConfigError, DataError, MegacodeError
from megacode.chat import making, row_encoding
from megacode.chat.job import ChatJob
from megacode.chat.making import make_chat
from megacode.data import manifest as manifests
from megacode.data.document_ids import DocumentIds
from megacode.data.merge import merge
from megacode.data.tokenizer import load_tokenizer
from tests.chat.conftest import CHATML, chatml

Make = Callable[..., dict[str, Any]]


def conversation(*texts: str, **more: Any) -> dict[str, Any]:
    roles = ("user", "assistant") * len(texts)
    return {"messages": [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)], **more}


def lines(path: Path, *rows: object) -> Path:
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


def read_back(prefix: Path) -> dict[str, Any]:
    """Read a data set by the formats of its files, without megacode."""
    index = (prefix.parent / f"{prefix.name}.idx").read_bytes()
    assert index[:9] == b"MMIDIDX\x00\x00"
    code, sequences, borders = index[17], *np.frombuffer(index, "<i8", 2, 18)
    dtype = {4: np.int32, 8: np.uint16}[code]
    lengths = np.frombuffer(index, "<i4", sequences, 34)
    firsts = np.frombuffer(index, "<i8", borders, 34 + 12 * sequences)
    tokens = np.fromfile(prefix.parent / f"{prefix.name}.bin", dtype)
    raw = np.fromfile(prefix.parent / f"{prefix.name}.mask", np.uint8)
    assert len(raw) == -(-len(tokens) // 8)
    bits = np.array([raw[n // 8] >> (n % 8) & 1 for n in range(len(tokens))], dtype=bool)
    ends = np.cumsum(lengths)
    documents = [(lengths[first:last], ends[first] - lengths[first]) for first, last in pairwise(firsts)]
    return {"tokens": tokens, "counted": bits, "documents": documents}


@pytest.fixture
def make(tokenizer, tmp_path: Path) -> Make:
    """Make a data set of rows with the ChatML form: `make(rows, pack=64, ...)`; returns what `read_back` does."""
    (tmp_path / "form.jinja").write_text(CHATML)

    def run(rows: list[Any], name: str = "set", **options: Any) -> dict[str, Any]:
        source = lines(tmp_path / f"{name}.jsonl", *rows)
        prefix = tmp_path / name
        form = options.pop("chat_template", str(tmp_path / "form.jinja"))
        made = make_chat(ChatJob((str(source),), str(prefix), tokenizer, form, **options))
        assert made == manifests.check(prefix, whole=True)
        return {"manifest": made, "prefix": prefix, **read_back(prefix)}

    return run


def left_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir() if path.suffix not in (".jsonl", ".jinja"))


def refusal(work: Callable[[], object], kind: type[MegacodeError] = DataError) -> str:
    with pytest.raises(kind) as error:
        work()
    assert error.value.exit_code == 2
    return str(error.value)


ROWS = [
    conversation("Hi", "Hello there"),
    {"prompt": "What is 2 + 2?", "completion": "4"},
    conversation("a", "b", "c", "d"),
    {"prompt": [{"role": "system", "content": ""}, {"role": "user", "content": "x"}],
     "completion": [{"role": "assistant", "content": "y"}]},
    {"messages": [{"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": " two"}]},
                  {"role": "assistant", "content": "three", "tool_calls": None}]},
]  # fmt: skip
TURNS = [
    ROWS[0]["messages"],
    [{"role": "user", "content": "What is 2 + 2?"}, {"role": "assistant", "content": "4"}],
    ROWS[2]["messages"],
    [{"role": "system", "content": ""}, {"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}],
    [{"role": "user", "content": "one two"}, {"role": "assistant", "content": "three"}],
]


def test_conversations_are_documents_in_the_order_of_the_input(make, tokenizer):
    found, decode = make(ROWS), load_tokenizer(tokenizer).decode
    assert len(found["documents"]) == len(ROWS)
    for turns, (lengths, first) in zip(TURNS, found["documents"], strict=True):
        [length] = lengths
        tokens, counted = found["tokens"][first : first + length], found["counted"][first : first + length]
        assert decode(tokens) == "".join(text for text, _ in chatml(turns))
        assert decode(tokens[counted]) == "".join(text for text, counts in chatml(turns) if counts)
    manifest = found["manifest"]
    assert manifest.loss_mask["counted"] == found["counted"].sum()
    assert manifest.packed is None
    assert manifest.chat["template"] == CHATML
    assert manifest.chat["template_sha256"] == hashlib.sha256(CHATML.encode()).hexdigest()
    assert manifest.chat["end_of_turn"] == "<|im_end|>"


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sizes=st.lists(st.tuples(st.integers(1, 12), st.integers(1, 30)), min_size=1, max_size=25),
    seed=st.sampled_from([None, 0, 5]),
    eod=st.booleans(),
)
def test_packed_windows_hold_whole_conversations_and_padding_that_never_counts(make, tokenizer, sizes, seed, eod):
    rows = [conversation("q " * asked, "w " * told, id=f"c{n}") for n, (asked, told) in enumerate(sizes)]
    found = make(rows, pack=64, shuffle_seed=seed, append_eod=eod, overwrite=True, drop_long=True)
    plain = make(rows, name="plain", append_eod=eod, overwrite=True)
    wanted = {}
    for number, (lengths, first) in enumerate(plain["documents"]):
        stretch = slice(first, first + lengths[0])
        wanted[f"c{number}"] = plain["tokens"][stretch].tolist(), plain["counted"][stretch].tolist()
    short = {name for name, (tokens, _) in wanted.items() if len(tokens) <= 64}
    ids, padding = DocumentIds(found["prefix"]), 0
    names = [ids[number] for number in range(ids.documents)]
    assert sorted(names) == sorted(short)
    for name, (lengths, first) in zip(names, found["documents"], strict=True):
        tokens, counted = wanted[name]
        assert first // 64 == (first + len(tokens) - 1) // 64, "in one window"
        assert found["tokens"][first : first + len(tokens)].tolist() == tokens
        assert found["counted"][first : first + len(tokens)].tolist() == counted
        empty = slice(first + len(tokens), first + lengths.sum())
        assert not found["counted"][empty].any()
        assert (found["tokens"][empty] == load_tokenizer(tokenizer).id_of("<pad>")).all()
        assert lengths[0] == len(tokens)
        padding += lengths[1:].sum()
    assert len(found["tokens"]) % 64 == 0
    # The label behind the last position of a window is the first token of the next.
    assert not found["counted"][::64].any()
    assert found["manifest"].packed == {"seq_length": 64, "padding": padding}
    assert found["manifest"].chat["dropped_long"] == len(wanted) - len(short)


def test_loss_on_all_counts_all_but_padding(make):
    found = make(ROWS, pack=64, loss="all")
    manifest = found["manifest"]
    assert manifest.loss_mask["counted"] + manifest.packed["padding"] == manifest.tokens == len(found["tokens"])
    assert make([{"messages": [{"role": "user", "content": "a"}]}], name="asked", loss="all")["counted"].all()


def test_several_processes_and_files_make_the_same_bytes(make, tokenizer, tmp_path, monkeypatch):
    rows = [conversation(f"q{n}", "w " * (n % 40 + 1)) for n in range(300)]
    monkeypatch.setattr(row_encoding, "_ROWS", 32)
    make(rows, pack=128)
    for half, name in ((rows[:150], "a.jsonl.gz"), (rows[150:], "b.jsonl.gz")):
        (tmp_path / name).write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in half).encode()))
    form = str(tmp_path / "form.jinja")
    inputs = (str(tmp_path / "*.gz"),)
    make_chat(ChatJob(inputs, str(tmp_path / "two"), tokenizer, form, pack=128, workers=2))
    for end in ("bin", "idx", "mask"):
        assert (tmp_path / f"two.{end}").read_bytes() == (tmp_path / f"set.{end}").read_bytes()


@pytest.mark.slow
def test_a_process_that_is_killed_is_said_and_leaves_nothing(make, tmp_path, monkeypatch):
    begun = row_encoding.ProcessPoolExecutor

    class Killed(begun):
        """A pool whose first process is killed when it has its first work."""

        def submit(self, *work: Any) -> Any:
            future = super().submit(*work)
            next(iter(self._processes.values())).kill()
            return future

    monkeypatch.setattr(row_encoding, "ProcessPoolExecutor", Killed)
    assert "ended from outside" in refusal(lambda: make(ROWS, workers=1 + 1))
    assert left_in(tmp_path) == []


def test_parquet_is_read_as_lines_are(make, tokenizer, tmp_path):
    import pyarrow
    from pyarrow import parquet

    rows = [conversation("Hi", "Hello"), conversation("a", "b", "c", "d")]
    make(rows)
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "in.parquet")
    form = str(tmp_path / "form.jinja")
    make_chat(ChatJob((str(tmp_path / "in.parquet"),), str(tmp_path / "other"), tokenizer, form))
    assert (tmp_path / "other.mask").read_bytes() == (tmp_path / "set.mask").read_bytes()
    assert (tmp_path / "other.bin").read_bytes() == (tmp_path / "set.bin").read_bytes()


LONG = conversation("q " * 60, "w " * 5)
LONG_ANSWER = conversation("q", "w " * 90)


def test_long_conversations_are_counted_and_refused_without_a_flag(make, tmp_path, caplog):
    rows = [*ROWS, LONG, LONG_ANSWER]
    told = refusal(lambda: make(rows, pack=32))
    assert "2 of 7 conversations are longer than 32 tokens; the longest has " in told
    assert "set.jsonl:6" in told
    assert "--truncate" in told
    assert "--drop-long" in told
    assert left_in(tmp_path) == []
    with caplog.at_level(logging.INFO):
        dropped = make(rows, pack=32, drop_long=True)["manifest"]
    assert "0 conversations were truncated to 32 tokens, 2 dropped as too long, 0 dropped as no answer" in caplog.text
    assert (dropped.documents, dropped.chat["dropped_long"]) == (5, 2)
    cut = make(rows, max_length=32, truncate=True, overwrite=True)
    # Of the first one nothing that counts is left.
    assert [cut["manifest"].chat[name] for name in ("truncated", "dropped_long", "dropped_without_answer")] == [1, 0, 1]
    assert cut["documents"][-1][0] == [32]
    assert "no conversation is left" in refusal(lambda: make([LONG], max_length=32, drop_long=True, overwrite=True))


def bad(message: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "a"}, message]}


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ('{"messages": [', "the line is not JSON"),
        ("[1]", "the line is a JSON list, not an object"),
        ({"text": "a"}, "it has no messages, and no prompt and no completion"),
        ({"prompt": "a"}, "it has no messages, and no completion"),
        ({"messages": []}, "the list is empty"),
        ({"messages": "a"}, 'messages is "a", not a list of messages'),
        ({"messages": ["a"]}, 'message 1 of messages is "a", not an object with role and content'),
        ({**bad({}), "prompt": "x"}, "it has messages, and a prompt or completion as well"),
        ({**bad({}), "tools": [{}]}, "it has tools, which are not supported"),
        (bad({"role": "bot", "content": "a"}), 'message 2 of messages has the role "bot"; the roles are system, user'),
        (bad({"content": "a"}), "message 2 of messages has the role null"),
        (bad({"role": "assistant"}), "message 2 of messages has no content"),
        (bad({"role": "assistant", "content": " "}), "message 2 of messages is empty"),
        (bad({"role": "assistant", "content": 3}), "content' holds 3, not a string"),
        (bad({"role": "assistant", "content": "\ud800"}), "unpaired surrogate"),
        (bad({"role": "assistant", "content": "a", "tool_calls": [{}]}), "has tool_calls, which is not supported"),
        (bad({"role": "assistant", "content": "a", "weight": 1}), "has weight, which is not supported"),
        (bad({"role": "assistant", "content": [{"type": "image", "url": "x"}]}), 'part 1 of message 2 of messages has '
         'the type "image"; only parts of the type \'text\''),
        (bad({"role": "assistant", "content": ["a"]}), 'part 1 of message 2 of messages is "a"'),
        (bad({"role": "user", "content": "b"}), "it has no message of the assistant"),
    ],
)  # fmt: skip
def test_a_bad_line_is_named_and_can_be_skipped(make, tmp_path, row, what, caplog):
    rows = [ROWS[0], row, ROWS[1]]
    told = refusal(lambda: make(rows))
    assert what in told
    assert "set.jsonl:2" in told
    assert "--skip-bad-lines" in told
    assert left_in(tmp_path) == []
    found = make(rows, skip_bad_lines=True)["manifest"]
    assert (found.documents, found.bad_lines) == (2, 1)
    assert "skipped 1 bad records" in caplog.text
    assert what in caplog.text


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(
        st.recursive(
            st.none() | st.integers() | st.sampled_from(["user", "assistant", "system", "text", "hello"]),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(
                    st.sampled_from(
                        ["messages", "role", "content", "prompt", "completion", "type", "text", "id", "tools"]
                    ),
                    inner,
                    max_size=5,
                )
            ),
            max_leaves=12,
        ),
        max_size=6,
    )
)
def test_whatever_a_line_holds_it_is_used_or_named(make, rows):
    found = make([ROWS[0], *rows], skip_bad_lines=True, overwrite=True)["manifest"]
    assert found.documents + found.bad_lines == 1 + len(rows)


def test_ids_are_kept_where_all_conversations_have_one(make, tmp_path):
    make([{**ROWS[0], "id": "a"}, {**ROWS[1], "id": 7}], name="both")
    ids = DocumentIds(tmp_path / "both")
    assert [ids[0], ids[1]] == ["a", "7"]
    make([{**ROWS[0], "id": "a"}, ROWS[1]], name="one")
    assert not (tmp_path / "one.ids").exists()
    told = refusal(lambda: make([{**ROWS[0], "key": "a"}, ROWS[1]], name="keyed", id_key="key"))
    assert "'key'" in told
    assert "keyed.jsonl:2" in told


def test_nothing_is_replaced_unasked(make, tmp_path):
    make(ROWS)
    before = (tmp_path / "set.bin").read_bytes()
    assert "already exists" in refusal(lambda: make(ROWS[:2]), ConfigError)
    assert (tmp_path / "set.bin").read_bytes() == before
    assert make(ROWS[:2], overwrite=True)["manifest"].documents == 2


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"truncate": True}, "no length is given"),
        ({"drop_long": True, "truncate": True, "pack": 8}, "either truncated or dropped"),
        ({"pack": 8, "max_length": 9}, "9 tokens do not fit into a window of 8"),
        ({"pack": 1}, "1 is too small"),
        ({"chat_template": None}, "the tokenizer has no chat template"),
        ({"chat_template": "nowhere"}, "cannot be read"),
    ],
)
def test_options_that_contradict_each_other_are_refused(make, options, what):
    assert what in refusal(lambda: make(ROWS, **options), ConfigError)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("{% if %}", "the chat template is not valid"),
        ("{{ strftime_now('%Y') }}" + CHATML, "writes the date of the day"),
        (CHATML.replace("message.content", "message.content | upper"), "the chat template does not mark answers"),
        (CHATML.replace("<|im_end|>\\n", ""), "writes nothing that ends an answer"),
    ],
)
def test_a_template_that_cannot_be_used_is_named(make, tmp_path, text, what):
    (tmp_path / "other.jinja").write_text(text)
    told = refusal(lambda: make(ROWS, chat_template=str(tmp_path / "other.jinja")), ConfigError)
    assert what in told
    assert "other.jinja" in told
    assert left_in(tmp_path) == []


def test_data_sets_of_one_template_can_be_merged(make, tmp_path):
    one, two = make(ROWS, name="one", pack=64), make(ROWS[:2], name="two", pack=64)
    made = merge([str(tmp_path / "one"), str(tmp_path / "two")], str(tmp_path / "both"))
    assert made.chat == one["manifest"].chat
    assert read_back(tmp_path / "both")["counted"].tolist() == [*one["counted"], *two["counted"]]
    (tmp_path / "other.jinja").write_text(CHATML + "{# the same, in another file #}")
    make(ROWS, name="three", pack=64, chat_template=str(tmp_path / "other.jinja"))
    told = refusal(lambda: merge([str(tmp_path / "one"), str(tmp_path / "three")], str(tmp_path / "x")))
    assert "different values of chat" in told


KILLED = """
import os, signal, sys
from pathlib import Path
from megacode.chat.job import ChatJob
from megacode.chat.making import make_chat
from megacode.config.model import TokenizerConfig
source, prefix, tokenizer, form, at = sys.argv[1:]
seen = 0
def count(event, arguments):
    global seen
    if event in ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir") and prefix in str(arguments):
        seen += 1
        if seen == int(at):
            os.kill(os.getpid(), signal.SIGKILL)
job = ChatJob((source,), prefix, TokenizerConfig(kind="huggingface", path=tokenizer), form, pack=64)
sys.addaudithook(count)
make_chat(job)
print(seen)
"""


@pytest.mark.slow
def test_a_kill_leaves_no_data_set_that_can_be_read_and_the_next_call_makes_it(make, tokenizer, tmp_path):
    make(ROWS, pack=64)
    whole = {end: (tmp_path / f"set.{end}").read_bytes() for end in ("bin", "idx", "mask")}
    out = tmp_path / "out"
    out.mkdir()

    def attempt(at: int, name: str) -> subprocess.CompletedProcess[str]:
        given = (tmp_path / "set.jsonl", out / name, tokenizer.path, tmp_path / "form.jinja", at)
        return subprocess.run([sys.executable, "-c", KILLED, *map(str, given)], capture_output=True, text=True)

    events = int(attempt(0, "quiet").stdout)
    assert events > 10
    for at in np.linspace(2, events, 8).astype(int).tolist():
        name = f"killed{at}"
        assert attempt(at, name).returncode == -signal.SIGKILL
        if (out / f"{name}.idx").exists():
            # Killed behind the last file: what is there is whole.
            assert {end: (out / f"{name}.{end}").read_bytes() for end in whole} == whole
        job = ChatJob((str(tmp_path / "set.jsonl"),), str(out / name), tokenizer, str(tmp_path / "form.jinja"), pack=64,
                      overwrite=True)  # fmt: skip
        make_chat(job)
        assert {end: (out / f"{name}.{end}").read_bytes() for end in whole} == whole
        assert not (out / f".{name}.chat").exists()


def test_a_full_disk_leaves_nothing(make, tmp_path, monkeypatch):
    def full(*_: object, **__: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(making, "_add", full)
    with pytest.raises(OSError, match="No space"):
        make(ROWS)
    assert left_in(tmp_path) == []

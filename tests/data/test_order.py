from __future__ import annotations

import json
import sys
from itertools import pairwise

import pytest
import yaml

from megacode import cli
from megacode.base.errors import ConfigError, DataError
from megacode.base.files import RunDir
from megacode.checkpoint.ledger import Ledger
from megacode.cli.plans import _show_samples, _show_texts
from megacode.config.config_file import validate
from megacode.data.preprocess import PreprocessJob, preprocess
from megacode.data.source_stream import window_tokens
from megacode.data.tokenizer import load_tokenizer
from megacode.data.windows import open_source, source_sizes
from megacode.plan.phases import build_schedule
from megacode.planning.order import order_rows, seen_rows, seen_rows_by_id
from megacode.planning.sample_text import decoded, decoded_rows, shortened, visible


@pytest.fixture
def config(write_dataset, make_config, tmp_path):
    sources = {"text": write_dataset([30] * 20, "text"), "code": write_dataset([25] * 20, "code")}
    return make_config(sources, run_dir=str(tmp_path / "run"))


def withhold(config, first, last, reason):
    run = RunDir(config.directory).create()
    Ledger.read(run, writes=True).add(first, last, phase="first", iteration=first // 4 + 1, reason=reason)


def test_order_says_what_was_withheld_and_why(config):
    assert {row["withheld"] for row in order_rows(config, 0, 40)} == {None}
    withhold(config, 8, 12, "spike")
    withhold(config, 20, 24, "non-finite")
    reasons = {row["sample"]: row["withheld"] for row in order_rows(config, 4, 36) if row["withheld"]}
    assert reasons == dict.fromkeys(range(8, 12), "spike") | dict.fromkeys(range(20, 24), "non-finite")


def test_seen_says_that_a_document_was_read_but_not_learned_from(config):
    before = order_rows(config, 8, 1)[0]
    withhold(config, 8, 9, "rollback")
    found = seen_rows(config, before["source"], before["first_document"])
    assert {row["sample"] for row in found if row["withheld"]} == {8}
    assert next(row for row in found if row["sample"] == 8) == before | {"withheld": "rollback"}


def test_a_damaged_ledger_is_an_error_rather_than_an_answer(config):
    RunDir(config.directory).create().ledger.write_text("{}\n")
    with pytest.raises(DataError, match="ledger is damaged"):
        order_rows(config, 0, 4)


def test_the_table_has_a_column_for_it_only_where_something_was_withheld(config, capsys):
    _show_samples(order_rows(config, 0, 12), as_json=False)
    assert "withheld" not in capsys.readouterr().out
    withhold(config, 8, 12, "spike")
    _show_samples(order_rows(config, 0, 12), as_json=False)
    shown = capsys.readouterr().out
    assert "withheld" in shown
    assert shown.count("spike") == 4


TWICE = (3, 17)  # two documents with one id


@pytest.fixture
def decodable(texts, huggingface, make_config, tmp_path):
    """A run over real text with ids, whose documents hold what could be mistaken for the frame around it."""
    rows = [{"id": "twice" if n in TWICE else f"doc {n}", "text": text[:300]} for n, text in enumerate(texts[:60])]
    rows[5]["text"] = "a literal <|endoftext|>, \u200b, \u202e and \x1b[31m ⟦x⟧"
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    prefix = str(tmp_path / "code")
    preprocess(PreprocessJob((str(tmp_path / "in.jsonl"),), prefix, huggingface, id_key="id", append_eod=True))
    config = make_config(
        {"code": f"{prefix}_text_document"},
        run_dir=str(tmp_path / "run"),
        tokenizer=huggingface.model_dump(),
        train={"seq_length": 64},
    )
    return config, rows


def test_order_names_documents_by_their_ids_where_there_are_some(decodable, config, capsys):
    run, rows = decodable
    for row in order_rows(run, 0, 40):
        assert (row["first_id"], row["last_id"]) == tuple(
            rows[row[f"{end}_document"]]["id"] for end in ("first", "last")
        )
    _show_samples(order_rows(run, 0, 4), as_json=False)
    shown = capsys.readouterr().out
    assert "first id" in shown
    assert order_rows(run, 0, 1)[0]["last_id"] in shown
    assert {row["first_id"] for row in order_rows(config, 0, 40)} == {None}
    _show_samples(order_rows(config, 0, 4), as_json=False)
    assert "id" not in capsys.readouterr().out.split()


def test_seen_by_id_names_the_samples_of_all_documents_that_have_it(decodable, config):
    run, _ = decodable
    documents, rows = seen_rows_by_id(run, "code", "twice")
    assert documents == [*TWICE]
    both = [row for document in TWICE for row in seen_rows(run, "code", document)]
    assert rows == sorted({row["sample"]: row for row in both}.values(), key=lambda row: row["sample"])
    assert rows
    with pytest.raises(ConfigError, match="there is no document with the id 'doc 3' in 'code'") as caught:
        seen_rows_by_id(run, "code", "doc 3")
    assert "look like 'doc 0' and 'doc 59'" in caught.value.problems[0].fix
    assert caught.value.exit_code == 2
    with pytest.raises(DataError, match="the source 'text' has no ids of documents"):
        seen_rows_by_id(config, "text", "doc 3")


def test_decoded_samples_are_the_tokens_of_their_windows_with_borders(decodable):
    run, rows = decodable
    tokenizer = load_tokenizer(run.tokenizer)
    found = decoded_rows(run, 0, 40)
    assert len(found) == 40
    for row, pieces in found:
        assert [piece.document for piece in pieces] == list(range(row["first_document"], row["last_document"] + 1))
        assert sum(piece.tokens for piece in pieces) == 65
        for one, other in pairwise(pieces):
            assert one.ends
            assert other.begins
            assert one.text.endswith("⟦<|endoftext|>⟧")
            assert other.first_token == one.first_token + one.tokens
        for piece in pieces:
            assert piece.id == rows[piece.document]["id"]
            whole = visible(rows[piece.document]["text"]) + "⟦<|endoftext|>⟧"
            if piece.begins:
                assert whole.startswith(piece.text.rstrip("�"))
            if piece.ends:
                assert whole.endswith(piece.text.lstrip("�"))
    ids = tokenizer.encode(rows[5]["text"])
    assert decoded([*ids, tokenizer.eod], tokenizer) == (
        "a literal <|endoftext|>, ⟨U+200B⟩, ⟨U+202E⟩ and ⟨U+001B⟩[31m ⟨U+27E6⟩x⟨U+27E7⟩⟦<|endoftext|>⟧"
    )


def test_decoded_samples_are_rearranged_as_training_reads_them(decodable, capsys):
    run, _ = decodable
    document = run.model_dump(exclude_unset=True)
    document["sources"]["code"] |= {"fim_rate": 0.6, "fim_spm_rate": 0.5}
    run, tokenizer = validate(document, {}), load_tokenizer(run.tokenizer)
    schedule, stream = build_schedule(run, source_sizes(run)), open_source(run, "code")
    rearranged = 0
    for row, pieces in decoded_rows(run, 0, 40):
        draw = schedule.draw(row["sample"])
        read = window_tokens(stream, draw.first_token, draw.epoch)
        assert (draw.source, draw.epoch) == (row["source"], row["epoch"])
        for piece in pieces:
            tokens = read.tokens[piece.first_token : piece.first_token + piece.tokens].tolist()
            assert piece.text == decoded(tokens, tokenizer)
            assert piece.fim == (piece.document in read.fim_documents)
            assert piece.fim == ("⟦<|fim_prefix|>⟧" in piece.text)
            rearranged += piece.fim
    assert rearranged > 20
    _show_texts(run, 0, 4, as_json=False)
    assert ", fill in the middle" in capsys.readouterr().out


def test_long_texts_are_shortened_to_their_ends():
    assert shortened("short", 10) == "short"
    found = shortened("a" * 500 + "b" * 500, 100)
    assert found.startswith("a" * 75)
    assert found.endswith("b" * 25)
    assert "[... 900 characters ...]" in found


def test_decoding_needs_the_tokenizer_that_made_the_data(decodable, sentencepiece):
    run, _ = decodable
    with pytest.raises(ConfigError, match="the run has no tokenizer to decode with"):
        decoded_rows(run.model_copy(update={"tokenizer": None}), 0, 1)
    other = run.model_copy(update={"tokenizer": sentencepiece})
    with pytest.raises(DataError, match="tokenizer"):
        decoded_rows(other, 0, 1)


def test_the_commands_decode_and_look_up_ids(decodable, tmp_path, capsys, monkeypatch):
    run, _ = decodable
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(run.model_dump(mode="json", exclude_unset=True)))

    def call(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["megacode", *arguments])
        with pytest.raises(SystemExit) as end:
            cli.main()
        told = capsys.readouterr()
        return int(end.value.code or 0), told.out + told.err

    code, shown = call("order", str(path), "--count", "2", "--decode")
    assert (code, shown.count("sample ")) == (0, 2)
    assert "-- document " in shown
    assert "⟦<|endoftext|>⟧" in shown
    code, shown = call("order", str(path), "--count", "2", "--decode", "--json")
    assert [len(row["pieces"]) > 0 for row in json.loads(shown)["samples"]] == [True, True]
    code, shown = call("seen", str(path), "--source", "code", "--id", "twice")
    assert (code, "documents with this id: 3, 17" in shown) == (0, True)
    code, shown = call("seen", str(path), "--source", "code", "--id", "twice", "--json")
    assert json.loads(shown)["documents"] == [3, 17]
    for wrong in (["--id", "none"], [], ["--id", "twice", "--document", "3"]):
        code, shown = call("seen", str(path), "--source", "code", *wrong)
        assert (code, "--id" in shown) == (2, True)

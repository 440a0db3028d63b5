from __future__ import annotations

import pytest

from megacode.base.errors import DataError
from megacode.base.files import RunDir
from megacode.checkpoint.ledger import Ledger
from megacode.cli.plans import _show_samples
from megacode.planning.order import order_rows, seen_rows


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

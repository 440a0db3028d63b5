"""Every table of figures is whole at 80 columns, with names and figures as long as they get."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from megacode.base.tables import FigureTable
from megacode.capacity.cluster import Cluster
from megacode.config.config_file import load_config
from megacode.planning.run_plan import plan_run

ROOT = Path(__file__).resolve().parents[2]
LONG = "a-name-much-longer-than-any-column-of-80-would-like"
FIGURE = re.compile(r"\d[\d.,]*")
Show = Callable[[Console], object]


def printed(show: Show, width: int) -> str:
    console = Console(file=io.StringIO(), width=width, markup=False)
    show(console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def assert_whole(show: Show) -> None:
    narrow, wide = printed(show, 80), printed(show, 240)
    assert "…" not in narrow
    assert max(map(len, narrow.splitlines())) <= 80
    figures = FIGURE.findall(wide)
    assert len(figures) > 3
    joined = " ".join(FIGURE.findall(narrow))
    missing = [figure for figure in figures if figure.rstrip(".,") not in joined]
    assert not missing, narrow


def plan_of(config: str, *overrides: str, cluster: Cluster | None = None) -> dict[str, Any]:
    return plan_run(load_config(ROOT / "examples" / config, overrides), cluster=cluster)


def lengthened(document: dict[str, Any]) -> dict[str, Any]:
    """Return a plan whose first source has a long name and whose figures are large."""
    name = next(iter(document["sources"]))
    sources = {LONG if key == name else key: row for key, row in document["sources"].items()}
    sources[LONG] |= {"windows": 19_531_250_000, "samples": 123_456_789_012, "epochs": 98_765.0, "max_epochs": 99_999}
    phases = [
        phase | {"sources": {LONG if key == name else key: row for key, row in phase["sources"].items()}}
        for phase in document["phases"]
    ]
    row = phases[0]["sources"][LONG]
    row |= {"samples": 19_531_250_000, "epochs_before": 0.5, "epochs_after": 98_765.4}
    row |= {"first_repetition_sample": 19_531_249_999}
    return document | {"sources": sources, "phases": phases}


def test_plans_are_whole() -> None:
    from megacode.planning.tables import render_plan

    document = plan_of("wsd_web_code_math.yaml", cluster=Cluster(4, (4, 64, 4096), "H200", 2.5))
    assert_whole(lambda console: render_plan(document, console))
    long = lengthened(document)
    narrow = printed(lambda console: render_plan(long, console), 80)
    assert "…" not in narrow.replace("keys and values", "")
    for figure in ("19,531,250,000", "123,456,789,012", "19,531,249,999", "98,765"):
        assert figure in narrow


def judged(prompts: int) -> dict[str, Any]:
    return {
        "prompts": prompts, "wins": prompts, "ties": prompts, "losses": prompts, "win_loss": -0.123, "win_rate": 0.456,
        "win_loss_95": [-0.987, 0.986], "agreement": 0.789, "invalid": 321, "first_place": 0.5, "identical": 3,
    }  # fmt: skip


def test_judgements_are_whole() -> None:
    from megacode.judge.tables import render_judgement

    document = {
        "a": {"name": LONG}, "b": {"name": LONG}, "judge": {"model": LONG}, "overall": judged(1234),
        "categories": {LONG: judged(567), "code": judged(89)}, "requests": {"sent": 4321, "from_cache": 5},
        "malformed_answers": 6,
    }  # fmt: skip
    narrow = printed(lambda console: render_judgement(document, console), 80)
    assert "…" not in narrow
    for figure in ("1234", "567", "-98.7% .. +98.6%", "-12.3%", "45.6%", "78.9%", "321"):
        assert figure in narrow


def test_samples_and_checkpoints_are_whole(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from megacode.cli.plans import _show_samples

    monkeypatch.setenv("COLUMNS", "80")
    row = {"sample": 123_456_789_012, "phase": LONG, "source": LONG, "epoch": 98_765, "window": 19_531_250_000}
    row |= {"first_document": 9_876_543_210, "last_document": 9_876_543_219, "withheld": "spike"}
    _show_samples([row], as_json=False)
    said = capsys.readouterr().out
    assert "…" not in said
    for name in ("sample", "epoch", "window", "first_document", "last_document"):
        assert str(row[name]) in said


def test_starts_and_sources_of_a_run_are_whole() -> None:
    from megacode.status.tables import _sources, _starts

    starts = [{"number": 1234, "time": 1e9, "cause": "a cause of many words " * 3, "from_iteration": 1_234_567,
               "iterations": 1_234_568, "lost_iterations": 1_234_569, "ranks": 4096, "host": LONG}]  # fmt: skip
    assert_whole(lambda console: console.print(_starts(starts)))
    counts = dict(zip(("planned", "seen", "withheld", "learned"), range(440 * 10**9, 441 * 10**9, 10**8), strict=False))
    assert_whole(lambda console: console.print(_sources({LONG: counts | {"equal": False}})))


def test_scores_are_whole() -> None:
    from megacode.eval.scores import _means_table

    means = {LONG: {"score": 0.123, "stderr": 0.456, "of": 12, "missing": [LONG, LONG]}}
    assert_whole(lambda console: console.print(_means_table(means)))


def test_tables_of_figures_are_made_in_one_way() -> None:
    """Rich's own table cuts what does not fit; grids without headings are text."""
    makers = [
        path for path in (ROOT / "megacode").rglob("*.py")
        if re.search(r"(?<![A-Za-z])Table\((?!self)", path.read_text(encoding="utf-8")) and path.name != "tables.py"
    ]  # fmt: skip
    assert makers == []
    assert FigureTable("a").columns

"""The page of a run: whole, self-contained, true to the measurements, and never an error where a part is missing."""

from __future__ import annotations

import io
import json
import math
import re
import subprocess
import sys
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pytest

from megacode.base.errors import CheckpointError, ConfigError
from megacode.base.files import read_jsonl
from megacode.report import score_charts
from megacode.report.page import write_report
from megacode.report.run_record import read_run
from megacode.report.score_table import MOST_COLUMNS, table
from megacode.report.scores import collect

SECTIONS = ("data", "losses", "scores", "course", "plan", "order", "provenance")
VOID = {"meta", "link", "br", "img", "hr", "input", "source"}


class Page(HTMLParser):
    """A parsed page: elements, anchors, visible words, scripts; complains of elements closed out of order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str, str]] = []
        self.words: list[str] = []
        self.scripts: list[str] = []
        self.open: list[str] = []
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts.append(data)
        elif data.strip() and self.open[-1:] != ["style"]:
            self.words.append(" ".join(data.split()))

    @property
    def text(self) -> str:
        return " ".join(self.words)

    def values(self, name: str) -> set[str]:
        return {value for _, key, value in self.attributes if key == name}


def page_of(run: Path) -> Page:
    return Page(write_report(run).read_text(encoding="utf-8"))


@pytest.fixture
def run(build_run, tmp_path) -> Path:
    return build_run(tmp_path / "demo")


def test_the_page_of_a_whole_run_holds_every_section_and_every_chart(run):
    page = page_of(run)
    assert set(SECTIONS) <= page.values("id")
    charts = {"mixture", "loss", "rate", "throughput", "gradient", "passes", "score0", "score1", "score2", "score3"}
    assert charts <= page.values("id")
    # the mixture, the loss and the scores are drawn twice: for wide pages and for narrow ones
    assert page.tags["svg"] == len(charts) + 6
    assert "Finished: every planned sample was read." in page.text


def test_what_fp8_costs_is_drawn_where_it_was_probed(run):
    def probe(iteration, **distances):
        clock = {"iteration": iteration, "consumed_samples": 16 * (iteration - 1), "phase": "balanced"}
        return {"kind": "fp8_probe", **clock, "loss_difference": 0.0021, "gradient_difference": distances, "alarm": ""}

    assert "accuracy" not in page_of(run).values("id")
    probes = [probe(41, norms=0.02, linear_qkv=0.11), probe(81, norms=math.nan, linear_qkv=0.25)]
    with (run / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(line) + "\n" for line in probes)
    page = page_of(run)
    assert "accuracy" in page.values("id")
    values = json.loads(page.scripts[0])["values"]
    assert len(values["accuracy:0"]) == len(json.loads(page.scripts[0])["at"])
    assert list(dict.fromkeys(values["accuracy:0"])) == ["—", "11.00%", "25.00%"]
    assert set(values["accuracy:1"]) == {"—", "0.21%"}
    assert "before iteration 81: loss 0.21% off, gradients 25% (linear_qkv) to not finite (norms)" in page.text


def test_who_teaches_whom_is_drawn_and_tabled_where_it_was_measured(build_run, tmp_path):
    assert "transfer" not in page_of(build_run(tmp_path / "without")).values("id")
    run = build_run(tmp_path / "with", aligned=True)
    page = page_of(run)
    charts = {f"{kind}-{number}" for kind in ("transfer", "cosine") for number in range(3)}
    assert {"transfer", *charts} <= page.values("id")
    record = [line for line in read_jsonl(run / "metrics.jsonl") if line["kind"] == "alignment"][-1]
    names, transfer = record["sources"], record["transfer"]
    assert names == ["text", "code", "markup"]
    for step, loss in ((1, 0), (2, 0), (0, 1)):
        share, cosine = transfer[step][loss] / transfer[loss][loss], record["cosines"][step][loss]
        assert f"{names[step]}: {share:+.0%}" in page.text, "a dot says what it shows"
        assert f"nats, cosine {cosine:+.2f}" in page.text
    # The legend follows the pointer: at a slot it shows the last measurement up to there.
    values = json.loads(page.scripts[0])["values"]["transfer-0:0"]
    assert values[0] == "—"
    assert values[-1] == f"{transfer[1][0] / transfer[0][0]:+.0%}"


def test_a_measurement_that_is_not_finite_leaves_a_gap(build_run, tmp_path):
    run = build_run(tmp_path / "run", aligned=True)
    lines = read_jsonl(run / "metrics.jsonl")
    # At a learning rate of 0 no step lowers any loss.
    lines[-1]["transfer"] = [[0.0] * 3] * 3
    lines[-1]["cosines"] = [[None] * 3] * 3
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = page_of(run)
    assert "transfer" in page.values("id")
    assert not re.search(r"\bnan\b", page.text)
    assert f"At iteration {lines[-2]['iteration']}, on 4 held-out windows of each source" in page.text


def test_the_page_loads_nothing_from_anywhere(run):
    html = write_report(run).read_text(encoding="utf-8")
    page = Page(html)
    loads = [value for _, name, value in page.attributes if name in ("src", "href", "data", "action", "xlink:href")]
    assert all(value.startswith("#") for value in loads)
    assert not {"link", "img", "iframe", "object"} & set(page.tags)
    assert not re.search(r"@import|url\(|fetch\(|XMLHttpRequest|import\(", html)


def test_the_numbers_shown_are_those_measured(run):
    page, last = page_of(run), [line for line in read_jsonl(run / "metrics.jsonl") if line["kind"] == "train"][-1]
    checked = [line for line in read_jsonl(run / "metrics.jsonl") if line["kind"] == "validation"][-1]
    assert f"{checked['loss']:.3f}" in page.words
    assert f"{last['iteration']:,}" in page.words
    assert "7.35M" in page.words
    assert last["learning_rate"] == pytest.approx(1e-6)
    assert "1e-6" in page.words
    for source, tokens in last["tokens_by_source"].items():
        assert page.words.count(f"{tokens['seen']:,}") == 2, source
    assert page.words.count("equal") == len(last["tokens_by_source"]) + 1  # and the exports with the trainer
    assert "logits differ by 2.4e-6 at most" in page.text
    assert "45.0 ± 5.9" in page.text  # 1.96 standard errors of 3 %


def test_the_values_behind_the_pointer_are_the_measurements(run):
    data = json.loads(page_of(run).scripts[0])
    train = read_run(run).train
    assert data["at"][-1] == train[-1]["consumed_tokens"]
    assert all(len(values) == len(data["at"]) == len(data["clock"]) for values in data["values"].values())
    by_end = {line["consumed_tokens"]: line for line in train}
    for at, text in zip(data["at"], data["values"]["rate:0"], strict=True):
        assert float(text) == pytest.approx(by_end[at]["learning_rate"], rel=0.005)


def test_every_value_that_follows_the_pointer_has_its_series(run):
    page = page_of(run)
    assert page.values("data-values") <= set(json.loads(page.scripts[0])["values"])


def test_a_source_that_was_read_otherwise_than_planned_is_called_out(run):
    lines = read_jsonl(run / "metrics.jsonl")
    next(line for line in reversed(lines) if line["kind"] == "train")["tokens_by_source"]["code"]["seen"] -= 512
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = page_of(run)
    assert "differs" in page.words
    assert "-512" in page.words


@pytest.mark.parametrize(
    ("limit", "status"), [(0, "Not started"), (1, "Still running, or interrupted"), (250, "59.5 % of the planned")]
)
def test_a_run_that_is_not_done_has_a_page_that_says_so(build_run, tmp_path, limit, status):
    page = page_of(build_run(tmp_path / "demo", limit=limit, models=False))
    assert status in page.text
    assert "No scores yet." in page.text
    assert set(SECTIONS) <= page.values("id")


def test_a_run_that_was_stopped_says_why(build_run, tmp_path):
    run = build_run(tmp_path / "demo", limit=100)
    with (run / "events.jsonl").open("a") as file:
        file.write(json.dumps({"time": 1_795_000_099.0, "event": "stop", "reason": "signal"}) + "\n")
    assert "Stopped early (signal) after 23.8 %" in page_of(run).text


@pytest.mark.parametrize("missing", ["run.yaml", "plan.json", "metrics.jsonl", "events.jsonl"])
def test_any_file_may_be_missing(run, missing):
    (run / missing).unlink()
    assert set(SECTIONS) <= page_of(run).values("id")


@pytest.mark.parametrize("only", ["run.yaml", "plan.json", "metrics.jsonl"])
def test_any_file_alone_makes_a_page(run, tmp_path, only):
    lone = tmp_path / "lone"
    lone.mkdir()
    (run / only).rename(lone / only)
    assert set(SECTIONS) <= page_of(lone).values("id")


def test_losses_that_are_not_finite_are_left_out(run):
    lines = read_jsonl(run / "metrics.jsonl")
    for line in lines[50:60]:
        line |= {"loss": float("nan"), "grad_norm": float("inf"), "tokens_per_second": None}
        line["loss_by_source"] = dict.fromkeys(line["loss_by_source"], float("nan"))
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = page_of(run)
    drawn = [value for tag, name, value in page.attributes if tag == "path" and name == "d"]
    assert drawn
    assert not any("nan" in value or "inf" in value for value in drawn)


def test_a_torn_last_line_is_left_out(run):
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "iterat')
    assert "Finished" in page_of(run).text


def test_names_are_never_taken_for_markup(build_run, tmp_path):
    evil = "</script><script>alert(1)</script><img src=x onerror=alert(1)>"
    run = build_run(tmp_path / "demo", name=evil)
    for file in ("run.yaml", "plan.json", "metrics.jsonl", "eval/demo@iter_0000420.json"):
        text = (run / file).read_text()
        for name in ("markup", "cooldown"):
            text = re.sub(rf"\b{name}\b", name + evil, text)
        (run / file).write_text(text)
    page = page_of(run)
    assert page.tags["script"] == 2
    assert page.tags["img"] == 0
    assert not any(name.startswith("on") for _, name, _ in page.attributes)
    assert evil in page.text


def test_a_source_that_restarts_or_was_cut_says_so(run):
    plan = json.loads((run / "plan.json").read_text())
    plan["phases"][1]["sources"]["text"] |= {"restarted": True, "first_repetition_sample": 3200}
    plan["phases"][2]["sources"]["code"]["clipped"] = True
    (run / "plan.json").write_text(json.dumps(plan))
    assert {"restarts", "cut by max_epochs", "sample 3,200"} <= set(page_of(run).words)


def test_an_export_that_was_not_verified_is_called_out(run):
    file = run / "hf/iter_0000200/megacode.json"
    file.write_text(json.dumps({"parity": {"verified": False, "points": []}}))
    assert "1 of 4 exports not verified" in page_of(run).words


def test_a_demo_shows_what_its_corpus_holds_and_links_the_data_card(run):
    part = {"documents": 4321, "bytes": 3 << 20, "languages": {".py": 4000, ".c": 321}}
    steps = {"duplicates": {"exact duplicate": {"documents": 11}}, "kind": {"long": {"documents": 6}}}
    place = run.parent / "corpus" / "corpus"
    place.mkdir(parents=True)
    manifest = {"sources": {"code": part}, "funnel": {"code": {"steps": steps}}}
    manifest |= {"duplicates": {"dropped": {"exact": 3, "near": 1200}}, "contamination": {"documents": 45}}
    (place / "manifest.json").write_text(json.dumps(manifest))
    assert "../corpus/corpus/card.html" not in page_of(run).values("href")
    (place / "card.html").write_text("a card")
    page = page_of(run)
    assert {"4,321", "3 MiB", "17", ".py 4k, .c 321"} <= set(page.words)
    assert "1,203 duplicates were dropped, and 45 documents with a passage of a held-out one." in " ".join(page.words)
    assert "next" in page.values("id")
    assert "../corpus/corpus/card.html" in page.values("href")


def test_how_to_use_own_data_is_said_on_the_page_of_the_demo_only(run):
    page = page_of(run)
    assert "next" not in page.values("id")
    assert "#next" not in page.values("href")


def test_the_page_is_written_where_asked_and_the_same_twice(run, tmp_path):
    first = write_report(run, tmp_path / "pages" / "a.html")
    second = write_report(run, tmp_path / "pages" / "b.html")
    assert first == tmp_path / "pages" / "a.html"
    clock = re.compile(r" on \d{4}-\d\d-\d\d \d\d:\d\d UTC")
    assert clock.sub("", first.read_text()) == clock.sub("", second.read_text())


def test_a_directory_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"not a run directory: it has no run\.yaml") as refusal:
        write_report(tmp_path)
    assert str(tmp_path) in str(refusal.value)
    assert "megacode train" in str(refusal.value)
    with pytest.raises(ConfigError, match="no such directory"):
        write_report(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()


def test_a_damaged_file_is_named(run):
    (run / "plan.json").write_text('{"phases": [')
    with pytest.raises(CheckpointError, match=r"plan\.json: it cannot be read"):
        write_report(run)
    (run / "plan.json").write_text("[]")
    with pytest.raises(CheckpointError, match=r"plan\.json: it is not a mapping"):
        write_report(run)


def test_a_page_cannot_take_the_place_of_a_directory(run, tmp_path):
    with pytest.raises(ConfigError, match=r"the output is a directory"):
        write_report(run, tmp_path)


def test_the_page_of_a_long_run_of_many_sources_stays_small(build_run, tmp_path):
    run = build_run(tmp_path / "demo", models=False)
    lines = [line for line in read_jsonl(run / "metrics.jsonl") if line["kind"] == "train"]
    names = [f"source-{index}" for index in range(12)]
    many = [
        {**lines[i % 420], "iteration": i + 1, "phase": f"phase-{i // 500}", "consumed_tokens": (i + 1) * 8192,
         "samples_by_source": dict.fromkeys(names, 2), "loss_by_source": dict.fromkeys(names, 3.0)}
        for i in range(5000)
    ]  # fmt: skip
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in many))
    for file in ("run.yaml", "plan.json"):
        (run / file).unlink()
    assert write_report(run).stat().st_size < 600_000


def test_writing_a_page_loads_no_torch(run):
    program = (
        "import sys; from pathlib import Path; from megacode.report.page import write_report;"
        f"write_report(Path({str(run)!r}));"
        "print([name for name in ('torch', 'transformers', 'lm_eval', 'megatron') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_a_run_that_scores_often_has_a_table_of_some_checkpoints_and_charts_of_all(run):
    newest = max((run / "eval").glob("demo@iter_*.json")).read_text(encoding="utf-8")
    for iteration in range(10, 130, 10):
        (run / "eval" / f"demo@iter_{iteration:07d}.json").write_text(newest, encoding="utf-8")
    record = read_run(run)
    found = collect(record)
    shown = table(record, found)
    assert len(shown["columns"]) == MOST_COLUMNS < len(shown["checkpoints"])
    ends = [title for title in shown["columns"] if title.startswith("after")]
    assert len(ends) == len(record.phases)
    assert shown["columns"][0] == "before training"
    rows = [row for group in shown["groups"] for row in group["rows"]]
    assert len(rows) == 10
    assert all(len(row["cells"]) == MOST_COLUMNS for row in rows)
    assert f"The table shows {MOST_COLUMNS} of {len(shown['checkpoints'])} checkpoints" in page_of(run).text


def test_contamination_stands_in_a_tile_and_beside_each_score(run):
    page = page_of(run)
    assert "Contamination" in page.words
    assert "91 of 560" in page.words  # 10 to 16 of 80 questions of seven tasks
    assert page.words.count("10 of 80") == 1
    assert "questions overlap the data read, verbatim (16.2 %)" in page.words
    assert "13 tokens in a row" in page.text


def test_contamination_that_was_not_checked_says_why(run):
    for iteration in (200, 380, 420):
        (run / f"eval/demo@iter_{iteration:07d}.json").unlink()
    page = page_of(run)
    assert "not checked: the model has consumed no samples yet" in page.words
    assert "Overlap with the training data was not checked: the model has consumed no samples yet." in page.words


def test_the_page_and_the_terminal_show_the_same_interval(run):
    from rich.console import Console

    from megacode.eval.scores import render_scores

    document = json.loads((run / "eval/demo@iter_0000420.json").read_text())
    for task in document["scores"]:
        document["tasks"].setdefault(task, {"items": 80})["seconds"] = 1.0
    document |= {"model": {"path": "m"}, "means": {}, "left_out": {}, "seconds": 1.0, "settings": {"device": "cpu"}}
    console = Console(record=True, width=120, file=io.StringIO())
    render_scores(document, console)
    shown = console.export_text()
    assert re.search(r"0\.450 +0\.059", shown)
    assert "± 95 %" in shown
    assert "45.0 ± 5.9" in page_of(run).text


def test_restarts_spikes_and_rollbacks_are_marked_on_the_axis(run):
    facts = {"resume": {}, "spike": {"loss": 7.5, "grad_norm": 3.0}, "rollback": {"to_iteration": 150}}
    with (run / "events.jsonl").open("a") as file:
        for number, (event, more) in enumerate(facts.items()):
            clock = {"iteration": 160 + number, "consumed_samples": 16 * (160 + number)}
            file.write(json.dumps({"time": 1_795_000_300.0, "event": event, **clock, **more}) + "\n")
    page = page_of(run)
    assert {"event restart", "event spike", "event rollback"} <= page.values("class")
    assert "restart at iteration 160" in page.words
    assert "spike at iteration 161: loss 7.5, gradient norm 3.0" in page.words
    assert "rollback at iteration 162: back to iteration 150" in page.words
    assert {"1 restart", "1 spike", "1 rollback"} <= set(page.words)


def test_what_the_model_writes_is_shown_with_its_prompt(run):
    page = page_of(run)
    assert page.words.count("def f(") == 4
    assert "x): # of 420" in page.words
    assert "temperature 0.8, seed 0" in page.text


def test_a_text_with_control_characters_makes_no_broken_page(run):
    samples = [{"prompt": "a\x00b", "text": "\x1b[2J</pre><script>", "ended": "context"}]
    (run / "samples/iter_0000420.json").write_text(json.dumps({"iteration": 420, "samples": samples}))
    html = write_report(run).read_text(encoding="utf-8")
    assert not re.search(r"[\x00-\x08\x0b-\x1f]", html)
    assert "a·b" in Page(html).words
    assert Page(html).tags["script"] == 2


def test_what_a_judge_said_is_shown(run):
    overall = {"prompts": 40, "wins": 20, "ties": 10, "losses": 10, "win_rate": 0.625, "win_rate_95": [0.5, 0.75],
               "agreement": 0.9}  # fmt: skip
    document = {"a": {"name": "demo@420"}, "b": {"name": "other"}, "judge": {"model": "j"}, "overall": overall}
    (run / "eval" / "judge").mkdir()
    (run / "eval" / "judge" / "demo-vs-other.json").write_text(json.dumps(document))
    page = page_of(run)
    assert {"20 / 10 / 10", "62.5 %", "50.0 to 75.0 %", "90.0 %", "demo@420", "other"} <= set(page.words)


def test_an_export_that_lies_elsewhere_is_known(build_run, tmp_path):
    run = build_run(tmp_path / "demo", models=False)
    assert "no Hugging Face model yet: megacode convert to-hf" in page_of(run).words
    line = {"time": 1.0, "directory": "/models/x", "iteration": 420, "parity": {"end_to_end": {"largest": 3e-6}}}
    (run / "exports.jsonl").write_text(json.dumps(line) + "\n")
    assert "1 export read back by transformers; logits differ by 3e-6 at most" in page_of(run).words


def test_the_commit_that_ran_is_in_the_provenance(run):
    lines = read_jsonl(run / "events.jsonl")
    lines[0] |= {"git": {"commit": "a" * 40, "changed": True}, "pid": 7, "seconds": 9.335}
    (run / "events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = page_of(run)
    assert "a" * 40 + " with uncommitted changes" in page.words
    assert not {"pid", "seconds", "kind", "layers"} & set(page.words)


def test_the_commit_of_a_job_is_read_from_its_provenance(run):
    (run / "provenance" / "start_0001").mkdir(parents=True)
    (run / "provenance/start_0001/git.json").write_text(json.dumps({"commit": "b" * 40, "changed": False}))
    assert "b" * 40 in page_of(run).words


def test_the_axis_is_labelled_in_flops_too(run):
    page = page_of(run)
    assert "FLOPs spent on training" in page.words
    assert "1e14" in page.words
    plan = json.loads((run / "plan.json").read_text())
    del plan["flops"]
    (run / "plan.json").write_text(json.dumps(plan))
    assert "FLOPs spent on training" not in page_of(run).words


def test_a_file_that_is_no_page_is_not_replaced(run, tmp_path):
    notes = tmp_path / "notes.html"
    notes.write_text("<title>mine</title>")
    with pytest.raises(ConfigError, match="was not written by megacode"):
        write_report(run, notes)
    assert notes.read_text() == "<title>mine</title>"
    page = write_report(run, tmp_path / "page.html")
    assert write_report(run, page) == page


def test_a_place_where_nothing_may_be_written_is_refused(run, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="the page cannot be written") as refusal:
        write_report(run, tmp_path / "file" / "page.html")
    assert "--out" in str(refusal.value)


def test_of_many_models_the_newest_texts_are_shown_and_that_is_said(run):
    text = (run / "samples/iter_0000420.json").read_text()
    for iteration in range(10, 60, 10):
        (run / f"samples/iter_{iteration:07d}.json").write_text(text.replace("420", str(iteration)))
    page = page_of(run)
    assert page.words.count("def f(") == 6
    assert "These are the newest 6 of 9 models" in page.text


def benchmark(run: Path) -> None:
    """Give a run the scores of a suite of benchmarks in place of the demo's."""
    for file in (run / "eval").glob("*.json"):
        file.unlink()
    scores = {"piqa": {"acc": 0.6, "acc_stderr": 0.01}, "arc_easy": {"acc": 0.3, "acc_stderr": 0.02},
              "quac": {"f1": 0.2, "f1_stderr": 0.01}}  # fmt: skip
    means = {"reasoning": {"score": 0.37, "stderr": 0.01, "of": 4, "missing": ["copa"]},
             "code": {"score": None, "stderr": None, "of": 1, "missing": ["humaneval"]}}  # fmt: skip
    document = {"suite": "to-code", "scores": scores, "means": means, "chance": {"piqa": 0.5, "arc_easy": 0.25},
                "left_out": {"humaneval": "it runs code"}}  # fmt: skip
    (run / "eval/to-code@iter_0000420.json").write_text(json.dumps(document))


def test_a_suite_of_benchmarks_has_a_group_a_metric_its_means_and_what_was_left_out(run):
    benchmark(run)
    record = read_run(run)
    shown = table(record, collect(record))
    groups = {group["title"]: group for group in shown["groups"]}
    assert list(groups) == ["Means of tasks", "Accuracy", "F1"]
    assert [(row["task"], row["remark"]) for row in groups["Accuracy"]["rows"]] == [
        ("piqa", "chance 50 %"), ("arc_easy", "chance 25 %")
    ]  # fmt: skip
    assert [(row["task"], row["remark"]) for row in groups["Means of tasks"]["rows"]] == [("reasoning", "without copa")]
    assert groups["Means of tasks"]["rows"][0]["cells"] == [{"value": "37.0", "error": "± 2.0"}]
    page = page_of(run)
    assert "Left out: humaneval: it runs code." in page.words
    assert "mean “reasoning” of to-code, without copa" in page.words
    assert "37.0 %" in page.words
    assert {"score0", "score1", "score2"} <= page.values("id")


def test_means_in_bits_per_byte_stand_with_their_tasks_and_are_better_when_lower(run):
    scores = {"piqa": {"bits_per_byte": 1.5}, "mbpp": {"bits_per_byte": 0.5}}
    parts = {"reasoning": {"piqa": "bits_per_byte"}, "code": {"mbpp": "bits_per_byte"}, "total": ["reasoning", "code"]}
    means = {"total": {"score": 1.0, "stderr": 0.01, "of": 2, "missing": []}}
    document = {"suite": "to-code-gold", "scores": scores, "means": means, "mean_parts": parts}
    (run / "eval/to-code-gold@iter_0000420.json").write_text(json.dumps(document))
    record = read_run(run)
    found = {score.task: score for score in collect(record) if score.suite == "to-code-gold"}
    assert found["mean total"].lower
    assert found["mean total"].is_bits
    groups = {group["title"]: group for group in table(record, collect(record))["groups"]}
    rows = {row["task"]: row["cells"][-1] for row in groups["Bits per byte"]["rows"]}
    assert rows["mean total"] == {"value": "1.000", "error": "± 0.020"}
    # The tile shows held-out documents by source, not benchmarks.
    bits = [score.value for score in collect(record) if score.source and score.is_bits and score.iteration == 420]
    assert f"{sum(bits) / 3:.3f}" in page_of(run).words


def test_tasks_of_no_source_have_colours_of_their_own(run):
    benchmark(run)
    record = read_run(run)
    accuracy = next(figure for figure in score_charts.figures(record, collect(record)) if figure.title == "Accuracy")
    assert [entry.css for entry in accuracy.legend] == ["s0", "s1"]

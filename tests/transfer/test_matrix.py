"""`megacode transfer` on a real run: against autograd on the exported model, planted effects, and what is refused."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from megacode.base.errors import CheckpointError, ConfigError, DataError, MegacodeError
from megacode.base.files import RunDir
from megacode.checkpoint.copying import reshard
from megacode.checkpoint.reader import Reader
from megacode.config.objects import Objects
from megacode.config.run import RunConfig
from megacode.convert.hf import to_hf
from megacode.convert.mapping import Sizes
from megacode.convert.mapping import to_hf as mapped
from megacode.convert.opened_checkpoint import OpenedCheckpoint
from megacode.data import objects
from megacode.data.indexed import IndexedDataset
from megacode.mcore import groups
from megacode.statistics.student import t_quantile
from megacode.transfer import matrix
from megacode.transfer.matrix import TransferOptions, peak_rate, transfer_matrix
from megacode.transfer.sources import open_windows
from megacode.transfer.table import render_transfer
from tests.data.masked import write_masked
from tests.ranks import run_ranks
from tests.transfer.conftest import LANGUAGES, config_of, write_suite

PROGRAM = Path(__file__).with_name("layout_program.py")
SAMPLES, ITEMS, PEAK = 6, 5, 5e-3


@pytest.fixture(autouse=True)
def alone() -> Iterator[None]:
    yield
    groups.stop()


def options(place: Path, **changes: Any) -> TransferOptions:
    return TransferOptions(**{"suite": str(place / "languages.yaml"), "samples": SAMPLES, "items": ITEMS, **changes})


@pytest.fixture(scope="module")
def document(place: Path) -> dict[str, Any]:
    found = transfer_matrix(place / "run", options(place))
    groups.stop()
    return found


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail if a model is loaded."""

    def loaded(*_: Any) -> None:
        pytest.fail("a model was loaded")

    monkeypatch.setattr(matrix, "loaded", loaded)


class Direct:
    """The same by torch.autograd on the exported model: documents alone, one after another, in plain loops."""

    def __init__(self, place: Path, out: Path) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        to_hf(place / "run", out)
        self.place, source = place, OpenedCheckpoint.open(place / "run")
        self.model = AutoModelForCausalLM.from_pretrained(out, dtype="float32").double()
        self.tokenizer = AutoTokenizer.from_pretrained(out)
        self.parameters = [parameter for _, parameter in sorted(self.model.named_parameters())]
        self.steps, self.train = source.state.iteration, source.config.train
        reader = Reader(source.path)
        stem = "exp_avg_sq."
        seconds = {name.removeprefix(stem): reader.whole(name) for name in reader.tensors if name.startswith(stem)}
        # The vocabulary's padding is cut as in an export; moments are laid out as their weights are.
        rows = len(self.tokenizer)
        sizes = Sizes.of(source.config.model, rows, len(seconds["embedding.word_embeddings.weight"]))
        moments = dict(mapped(seconds, source.config.model, sizes))
        self.moments = [moments[name].double() for name, _ in sorted(self.model.named_parameters())]

    def gradient(self, loss: torch.Tensor) -> list[torch.Tensor]:
        return list(torch.autograd.grad(loss, self.parameters))

    def nats(self, ids: list[int]) -> torch.Tensor:
        """Return the loss of each token but the first."""
        logits = self.model(torch.tensor([ids[:-1]])).logits[0]
        return torch.nn.functional.cross_entropy(logits, torch.tensor(ids[1:]), reduction="none")

    def windows(self, name: str) -> list[tuple[list[torch.Tensor], int]]:
        """Return the gradient of the summed loss of each window, and its number of tokens."""
        data, length = IndexedDataset(self.place / name), self.train.seq_length
        # The last documents that hold a fifth of the tokens are held out.
        held = next(
            first for document in reversed(range(data.documents))
            if data.tokens - (first := data.document_bounds(document)[0]) >= 0.2 * data.tokens
        )  # fmt: skip
        count = (data.tokens - held - 1) // length
        found = []
        for number in range(SAMPLES):
            window = [int(token) for token in data.read(held + number * count // SAMPLES * length, length + 1)]
            parts: list[list[int]] = [[]]
            for token in window:
                parts[-1].append(token)
                if token == 0:  # the end of a document
                    parts.append([])
            losses = torch.cat([self.nats(part) for part in parts if len(part) > 1])
            found.append((self.gradient(losses.sum()), len(losses)))
        return found

    def items(self, name: str) -> list[tuple[list[torch.Tensor], int, float]]:
        lines = [json.loads(line) for line in (self.place / f"{name}.jsonl").read_text().splitlines()]
        found = []
        for number in range(ITEMS):
            item = lines[number * len(lines) // ITEMS]
            question = self.tokenizer(item["question"])["input_ids"]
            # The answer follows a space, by lm-eval's default and by the choice itself.
            whole = self.tokenizer(f"{item['question']} {item['choices'][1]}")["input_ids"]
            losses = self.nats(whole)[len(question) - 1 :]
            found.append((self.gradient(losses.sum()), len(losses), float(losses.detach().sum())))
        return found

    def step(self, windows: list[tuple[list[torch.Tensor], int]]) -> list[torch.Tensor]:
        count = sum(tokens for _, tokens in windows)
        mean = [sum(parts) / count for parts in zip(*(gradient for gradient, _ in windows), strict=True)]
        beta, made = self.train.adam_beta2, []
        for gradient, moment in zip(mean, self.moments, strict=True):
            second = (beta * moment + (1 - beta) * gradient**2) / (1 - beta ** (self.steps + 1))
            made.append(gradient / (second.sqrt() + self.train.adam_eps))
        return made


def inner(left: list[torch.Tensor], right: list[torch.Tensor]) -> float:
    return float(sum((one * other).sum() for one, other in zip(left, right, strict=True)))


@pytest.mark.slow
def test_the_matrix_is_that_of_autograd_on_the_exported_model(
    place: Path, document: dict[str, Any], tmp_path: Path
) -> None:
    direct = Direct(place, tmp_path / "hf")
    windows = {name: direct.windows(name) for name in LANGUAGES}
    assert len(document["tasks"]) == len(document["sources"]) == 2
    for row, language in zip(document["tasks"], LANGUAGES, strict=True):
        items = direct.items(language)
        tokens = np.array([count for _, count, _ in items], dtype=float)
        assert row["task"] == f"of_{language}"
        assert (row["items"], row["of_items"], row["tokens"]) == (ITEMS, 12, tokens.sum())
        assert row["loss"] == pytest.approx(sum(nats for *_, nats in items) / tokens.sum(), rel=1e-5)
        for name, own in windows.items():
            step, found = direct.step(own), row["transfer"][name]
            parts = np.array([PEAK * inner(step, gradient) for gradient, *_ in items])
            value = parts.sum() / tokens.sum()
            scale = abs(row["transfer"][language]["value"])
            assert found["value"] == pytest.approx(value, rel=2e-3, abs=2e-4 * scale)
            assert sum(found["by_kind"].values()) == pytest.approx(found["value"], rel=1e-6)
            # The formulas of the interval once more, with plain loops.
            deviations = parts - value * tokens
            of_items = ITEMS / (ITEMS - 1) * (deviations**2).sum() / tokens.sum() ** 2
            left_out = []
            for number in range(SAMPLES):
                rest = direct.step([one for place_, one in enumerate(own) if place_ != number])
                left_out.append(sum(PEAK * inner(rest, gradient) for gradient, *_ in items) / tokens.sum())
            of_windows = (SAMPLES - 1) * np.var(left_out)
            error = np.sqrt(of_items + of_windows)
            assert found["standard_error"] == pytest.approx(error, rel=2e-2)
            assert found["variance_of_items"] == pytest.approx(of_items / error**2, rel=5e-2)
            satterthwaite = error**4 / (of_items**2 / (ITEMS - 1) + of_windows**2 / (SAMPLES - 1))
            df = max(satterthwaite, min(ITEMS, SAMPLES) - 1)
            assert found["high"] - found["value"] == pytest.approx(float(t_quantile(0.975, df)) * error, rel=3e-2)


def test_items_of_a_source_s_own_text_are_helped_more_by_it_than_by_another(document: dict[str, Any]) -> None:
    for row, language in zip(document["tasks"], LANGUAGES, strict=True):
        (other,) = set(LANGUAGES) - {language}
        own = row["transfer"][language]
        assert own["verdict"] == "helps"
        assert own["low"] > max(0.0, row["transfer"][other]["high"])
        assert own["cosine"] > row["transfer"][other]["cosine"] + 0.1
    assert document["learning_rate"] == PEAK
    assert document["steps_along"] == "adamw"
    assert (document["iteration"], document["phase"]) == (20, "both")


def printed(document: dict[str, Any]) -> str:
    written = io.StringIO()
    render_transfer(document, Console(file=written, width=80, markup=False))
    return "\n".join(line.rstrip() for line in written.getvalue().splitlines())


def test_many_sources_with_long_names_fit_80_columns_with_every_number(document: dict[str, Any]) -> None:
    entry = document["tasks"][0]["transfer"]["north"]
    names = [f"a source with a long name {number}" for number in range(5)]
    entries = {name: {**entry, "verdict": "hurts"} for name in names}
    tasks = [{**document["tasks"][0], "task": "mmlu_high_school_european_history", "transfer": entries}]
    text = printed({**document, "sources": [{"source": name} for name in names], "tasks": tasks})
    assert max(map(len, text.splitlines())) <= 80
    half = 100 * (entry["high"] - entry["value"])
    assert " ".join(text.split()).count(f"{100 * entry['value']:+.1f} ± {half:.1f}") == 5
    assert f"hurt by {', '.join(names)}" in " ".join(text.split())


def test_a_matrix_fits_80_columns_and_says_what_helps(document: dict[str, Any]) -> None:
    text = printed(document)
    assert max(map(len, text.splitlines())) <= 80
    assert {"of_north: helped by north", "of_south: helped by south"} <= set(text.splitlines())
    assert "learning rate 0.005" in " ".join(text.split())
    assert "the 99.9% interval" in " ".join(printed({**document, "level": 0.999}).split())


def test_other_data_sets_and_the_plain_gradient_may_be_asked_about(place: Path, document: dict[str, Any]) -> None:
    asked = options(place, sources=["south", f"elsewhere={place / 'north'}"], plain=True, learning_rate=0.1)
    found = transfer_matrix(place / "run", asked)
    south, elsewhere = found["sources"]
    assert (south["held_out"], elsewhere["held_out"]) == (True, False)
    assert elsewhere["data"] == str(place / "north")
    assert (found["steps_along"], found["learning_rate"]) == ("gradient", 0.1)
    of_north = found["tasks"][0]["transfer"]
    assert of_north["elsewhere"]["value"] > of_north["south"]["value"]
    assert of_north["elsewhere"]["cosine"] > of_north["south"]["cosine"] + 0.1
    # The same windows: only the step differs from the first matrix, and the angle does not depend on it.
    assert of_north["south"]["cosine"] == pytest.approx(document["tasks"][0]["transfer"]["south"]["cosine"], abs=1e-6)


def test_a_file_is_written_whole_and_never_replaced_unasked(place: Path, tmp_path: Path) -> None:
    out = tmp_path / "some where" / "matrix.json"
    asked = options(place, sources=["north"], without=["of_south"], items=2, samples=2, out=out)
    found = transfer_matrix(place / "run", asked)
    assert json.loads(out.read_text()) == found
    before = out.read_bytes()
    with pytest.raises(ConfigError, match="exists"):
        transfer_matrix(place / "run", asked)
    assert out.read_bytes() == before
    assert [path.name for path in out.parent.iterdir()] == ["matrix.json"]


def test_passages_that_items_share_are_counted_once(place: Path, tmp_path: Path) -> None:
    suite = write_suite(tmp_path / "clustered", clusters={"of_north": "passage"})
    asked = options(place, suite=str(suite), sources=["north"], items=12, samples=2)
    rows = {row["task"]: row for row in transfer_matrix(place / "run", asked)["tasks"]}
    assert (rows["of_north"]["clusters"], rows["of_south"]["clusters"]) == (6, 12)


@pytest.mark.slow
def test_checkpoints_of_other_layouts_and_of_muon_are_read(
    place: Path, document: dict[str, Any], tmp_path: Path
) -> None:
    runs = {
        str(tmp_path / "tensor"): ["parallel={tensor: 2, sequence_parallel: true}"],
        str(tmp_path / "muon"): ["parallel={pipeline: 2}", "train.optimizer=muon"],
    }
    run_ranks(2, PROGRAM, "train_in", {"config": str(place / "run.yaml"), "runs": runs})
    tensor, muon = (transfer_matrix(Path(run), options(place)) for run in runs)
    for row, expected in zip(tensor["tasks"], document["tasks"], strict=True):
        assert row["loss"] == pytest.approx(expected["loss"], rel=1e-4)
        for name, entry in row["transfer"].items():
            # Twenty iterations of training round otherwise; the measurement itself is that of one process.
            largest = max(abs(one["value"]) for one in expected["transfer"].values())
            assert entry["value"] == pytest.approx(expected["transfer"][name]["value"], abs=2e-3 * largest)
    assert (tensor["steps_along"], muon["steps_along"]) == ("adamw", "muon")
    for row, language in zip(muon["tasks"], LANGUAGES, strict=True):
        assert max(row["transfer"], key=lambda name: row["transfer"][name]["value"]) == language


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"sources": ["nroth"]}, "the run has no source 'nroth'"),
        ({"sources": ["north", "north"]}, "named twice"),
        ({"sources": ["x="]}, "names no data set"),
        ({"sources": ["x=/nowhere/data"]}, "nowhere"),
        ({"suite": "to-cod"}, "there is no suite 'to-cod'"),
        ({"suite": "nowhere.yaml"}, "there is no such suite file"),
        ({"without": ["of_nroth"]}, "no task 'of_nroth'"),
    ],
)
def test_what_does_not_exist_is_refused_before_a_model_is_loaded(
    place: Path, changes: dict[str, Any], expected: str
) -> None:
    with pytest.raises(MegacodeError, match=expected) as caught:
        transfer_matrix(place / "run", options(place, **changes))
    assert caught.value.exit_code == 2


@pytest.mark.usefixtures("no_model")
def test_tasks_without_gold_answers_are_refused_and_named(place: Path, tmp_path: Path) -> None:
    suite = write_suite(tmp_path / "one")
    task = suite.parent / "tasks" / "north.yaml"
    written = task.read_text()
    kept = [line for line in written.splitlines() if not line.startswith("doc_to_choice")]
    task.write_text("\n".join(kept).replace("multiple_choice", "generate_until"))
    with pytest.raises(ConfigError, match="no gold answer") as caught:
        transfer_matrix(place / "run", options(place, suite=str(suite)))
    assert "--without of_north" in caught.value.problems[-1].fix


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(
    ("gold", "label", "expected"),
    [
        ("{{passage[:0]}}", 1, "5 of 5 items have no gold answer"),
        ("{{nothing}}", 1, "UndefinedError: 'nothing' is undefined"),
        (None, -1, "the true choice is hidden"),
    ],
)
def test_answers_that_are_empty_wrong_or_hidden_are_refused(
    place: Path, tmp_path: Path, gold: str | None, label: int, expected: str
) -> None:
    suite = write_suite(tmp_path / "one", **({"gold_answers": {"of_north": gold}} if gold else {}))
    items = suite.parent / "north.jsonl"
    items.write_text(items.read_text().replace('"label": 1', f'"label": {label}'))
    with pytest.raises(DataError, match=expected) as caught:
        transfer_matrix(place / "run", options(place, suite=str(suite)))
    assert "--without of_north" in caught.value.problems[0].fix


@pytest.mark.usefixtures("no_model")
def test_checkpoints_that_cannot_be_measured_are_refused(place: Path, tmp_path: Path) -> None:
    newest = max((place / "run" / "checkpoints").glob("iter_*"))
    reshard(newest, tmp_path / "weights", weights_only=True)
    with pytest.raises(CheckpointError, match="weights only") as caught:
        transfer_matrix(tmp_path / "weights", options(place))
    assert "--plain" in caught.value.problems[0].fix
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="Hugging Face model"):
        transfer_matrix(tmp_path / "hf", options(place))
    with pytest.raises(CheckpointError, match="no such directory"):
        transfer_matrix(tmp_path / "nothing", options(place))


def test_other_data_sets_are_read_with_the_run_s_settings_of_object_storage(place: Path) -> None:
    source = OpenedCheckpoint.open(place / "run")
    config = source.config.model_copy(update={"objects": Objects(cache=str(place / "cache"))})
    try:
        open_windows(config, source.tokenizer.hash, [f"other={place / 'north'}"], 2)
        assert objects.settings() == config.objects
    finally:
        objects.use(Objects())


def test_the_peak_is_the_phase_s_own_or_where_the_phase_before_it_ends(place: Path) -> None:
    def peak(*rates: dict[str, Any], phase: str = "last") -> float:
        phases = [
            {"name": name, "iterations": 9, "blend": {"north": 1.0}, "learning_rate": rate}
            for name, rate in zip(("first", "last"), rates, strict=True)
        ]
        return peak_rate(RunConfig.model_validate(config_of(place, phases=phases)), phase)

    falling = {"schedule": "cosine", "peak": 5e-3, "final": 1e-3}
    root, constant = {"schedule": "inverse_sqrt", "peak": 5e-3, "warmup": "3 iterations"}, {"schedule": "constant"}
    assert peak(falling, {"schedule": "constant", "peak": 2e-3}) == 2e-3
    assert peak(falling, constant) == 1e-3
    assert peak(root, constant, phase="first") == 5e-3
    with pytest.raises(ConfigError, match="last, starts at a learning rate of 0"):
        peak({**falling, "final": 0}, constant)
    with pytest.raises(ConfigError, match="last, has no peak and follows one of inverse_sqrt"):
        peak(root, constant)


@pytest.mark.usefixtures("no_model")
def test_windows_in_which_no_token_counts_are_left_out(
    place: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = OpenedCheckpoint.open(place / "run")
    for answers in ([], [100], [100, 700, 1000]):  # places of tokens that count, in windows of 64
        counted = [number in answers for number in range(1281)]
        prefix = write_masked(tmp_path / f"chat{len(answers)}", [5] * 1281, [1281], counted)
        asked = [source.config, source.tokenizer.hash, [f"chat={prefix}"], 20]
        if len(answers) < 2:
            what = f"it has {len(answers)} windows to measure on, and {20 - len(answers)} in which no token counts"
            with pytest.raises(DataError, match=what) as caught:
                open_windows(*asked)
            assert caught.value.exit_code == 2
    assert list(open_windows(*asked)[0].first_tokens) == [64, 640, 960]
    assert "chat: measured on 3 windows, not 20 (--samples)" in caplog.text


@pytest.mark.usefixtures("no_model")
def test_a_source_that_holds_out_nothing_and_a_missing_tokenizer_are_refused(place: Path, tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    shutil.copytree(place / "run", run.path)
    checkpoint = max(run.checkpoints.glob("iter_*"))
    opened = OpenedCheckpoint.open(checkpoint)
    changes = {"fraction: 0.2": "fraction: 0.0"}, {str(place / "tokenizer"): str(tmp_path / "lost")}
    for (old, new), expected in zip((next(iter(one.items())) for one in changes), ("holds out nothing", "lost"),
                                    strict=True):  # fmt: skip
        state = type(opened.state).read(max((place / "run" / "checkpoints").glob("iter_*")))
        assert old in state.config
        state.config = state.config.replace(old, new)
        state.write(checkpoint)
        with pytest.raises(MegacodeError, match=expected) as caught:
            transfer_matrix(checkpoint, options(place))
        assert caught.value.exit_code == 2

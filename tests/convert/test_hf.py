"""Checkpoints of real Megatron-core become Hugging Face models that compute the same, or nothing at all."""

from __future__ import annotations

import dataclasses
import io
import json
import shutil
from pathlib import Path

import pytest
import torch
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer

from megacode.base.errors import CheckpointError, ConfigError
from megacode.checkpoint.averaging import average
from megacode.checkpoint.state import TrainState
from megacode.convert.card import init_seed, phases_read
from megacode.convert.hf import to_hf
from megacode.convert.safetensors_files import SafetensorsFiles
from megacode.convert.verify import render_report


@pytest.mark.parametrize("name", ["llama", "cohere", "cohere-untied", "stablelm"])
def test_an_export_computes_what_megacode_computes(name, runs, out) -> None:
    report = to_hf(runs(name), out)
    assert report.verified
    assert max(point.relative for point in report.points) < 1e-5
    assert report.greedy_agreement == 1.0
    assert report.loss == pytest.approx(report.exported_loss, abs=1e-6)
    assert {text for text, _ in report.texts} >= {"prose", "code", "markup", "text (held out 0)"}
    assert report.tokenizer_ids > 1000
    assert report.rounding is None


def test_an_export_loads_and_generates(runs, out, corpus) -> None:
    to_hf(runs("cohere"), out)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    assert type(model).__name__ == "CohereForCausalLM"
    prompt = tokenizer("    return best", return_tensors="pt")
    made = model.generate(**prompt, max_new_tokens=5)
    assert made.shape[1] > prompt["input_ids"].shape[1]
    assert tokenizer.eos_token_id == model.generation_config.eos_token_id == model.generation_config.pad_token_id == 0
    assert all(tokenizer.decode(tokenizer(text)["input_ids"]) == text for text in corpus[:3])


def test_padded_rows_are_gone_and_the_padding_of_any_layout_is_understood(runs, out) -> None:
    to_hf(runs("llama"), out)
    assert SafetensorsFiles(out)["lm_head.weight"].shape == (300, 32)
    assert json.loads((out / "config.json").read_text())["vocab_size"] == 300


def test_large_models_are_written_in_several_files(runs, out) -> None:
    to_hf(runs("stablelm"), out, max_shard_size=40_000)
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 2
    assert index["metadata"]["total_parameters"] == json.loads((out / "megacode.json").read_text())["parameters"]
    assert {path.stat().st_mode & 0o777 for path in out.iterdir()} == {out.stat().st_mode & 0o666}
    assert AutoModelForCausalLM.from_pretrained(out).num_parameters() == index["metadata"]["total_parameters"]


def test_a_narrower_type_is_proven_and_its_rounding_measured(runs, out) -> None:
    report = to_hf(runs("llama"), out, dtype="bf16", text=["Some words of one's own, to compare on."])
    assert SafetensorsFiles(out)["model.norm.weight"].dtype is torch.bfloat16
    assert report.dtype == "bfloat16"
    assert 1e-4 < report.rounding < 1
    assert [name for name, _ in report.texts] == ["text 0"]
    assert "Rounding moved the logits" in (out / "README.md").read_text()


def test_the_card_states_phases_tokens_hashes_and_proof(runs, out) -> None:
    report = to_hf(runs("llama") / "checkpoints/iter_0000003", out)
    card, facts = (out / "README.md").read_text(), json.loads((out / "megacode.json").read_text())
    assert "| first | 8 | 512 | text 512 (100.0 %) |" in card
    assert "| second (unfinished) | 4 | 256 | text 256 (100.0 %) |" in card
    assert "| text | 768 | 100.00 % | 5000 | `c0ffee` |" in card
    assert f"{report.tokens}\ntokens of {len(report.texts)} texts" in card
    for known in facts["hashes"].values():
        assert f"`{known}`" in card
    assert facts["iteration"] == 3
    assert facts["consumed_tokens"] == 768
    assert facts["run_dir"] == str(runs("llama"))
    assert facts["init_seed"] == 1234
    assert facts["parity"]["points"][-1]["point"] == "logits"
    assert facts["checkpoint"] == {"run": "tiny-llama", "iteration": 3, "fingerprint": "second-fingerprint"}


def test_an_export_without_proof_says_so(runs, out) -> None:
    report = to_hf(runs("llama"), out, verify=False)
    assert not report.verified
    assert "exported without verification" in (out / "README.md").read_text()
    assert "not verified" in shown(report)


def test_the_report_is_shown_as_a_table(runs, out) -> None:
    text = shown(to_hf(runs("llama"), out))
    for word in ("embedding", "attention", "MLP", "logits", "greedy tokens equal at 100.00%", "token ids equal"):
        assert word in text


def shown(report) -> str:
    console = Console(file=io.StringIO(), width=120)
    render_report(report, console)
    return console.file.getvalue()


def test_a_directory_in_use_is_left_alone(runs, out) -> None:
    out.mkdir()
    (out / "thesis.tex").write_text("years of work")
    with pytest.raises(CheckpointError, match="does not contain an export of tiny-llama@iter_0000003"):
        to_hf(runs("llama"), out, force=True)
    assert (out / "thesis.tex").exists()


def test_an_earlier_export_is_replaced_only_by_force(runs, out) -> None:
    to_hf(runs("llama"), out, verify=False)
    with pytest.raises(CheckpointError, match="add --force"):
        to_hf(runs("llama"), out)
    assert to_hf(runs("llama"), out, force=True).verified
    with pytest.raises(CheckpointError, match="does not contain an export of tiny-cohere"):
        to_hf(runs("cohere"), out, force=True)


def test_an_unknown_type_is_refused(runs, out) -> None:
    with pytest.raises(ConfigError, match="use one of fp32, bf16, fp16"):
        to_hf(runs("llama"), out, dtype="int3")


def test_a_path_without_a_checkpoint_is_refused(tmp_path, out) -> None:
    with pytest.raises(CheckpointError, match="give a run directory"):
        to_hf(tmp_path, out)


def test_texts_too_short_to_compare_on_are_refused(runs, out) -> None:
    with pytest.raises(CheckpointError, match="give longer texts"):
        to_hf(runs("llama"), out, text=["a", ""])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokenizer_hash": "0123456789abcdef"}, "the run was trained with 0123456789ab"),
        ({"config": ("tokenizer:", "sources_of_old:")}, "the run has no tokenizer"),
        (
            {"config": ("block: sequential", "block: parallel")},
            "nearest: Llama but for block, Cohere but for normalization",
        ),
    ],
)
def test_a_checkpoint_that_cannot_be_exported_is_refused(change, message, runs, out, tmp_path) -> None:
    shutil.copytree(runs("llama") / "checkpoints/iter_0000003", tmp_path / "copy")
    state = TrainState.read(tmp_path / "copy")
    for key, value in change.items():
        setattr(state, key, _without_tokenizer(state.config, value) if isinstance(value, tuple) else value)
    state.write(tmp_path / "copy")
    with pytest.raises((CheckpointError, ConfigError), match=message) as caught:
        to_hf(tmp_path / "copy", out)
    assert caught.value.exit_code == 2
    assert not out.exists()


def _without_tokenizer(config: str, change: tuple[str, str]) -> str:
    import yaml

    if change[0] != "tokenizer:":
        return config.replace(*change)
    document = yaml.safe_load(config)
    del document["tokenizer"]
    return yaml.safe_dump({**document, "model": {**document["model"], "vocab_size": 300}})


def test_the_phase_under_way_counts_what_was_really_read() -> None:
    link = {"samples": 10, "sources": {"a": {"samples": 6}, "b": {"samples": 4}}}
    links = [{**link, "phase": "one", "first_sample": 0}, {**link, "phase": "two", "first_sample": 10}]
    state = TrainState(consumed_samples=15, samples_by_source={"a": 10, "b": 5}, fingerprints=links)
    first, second = phases_read(state, 100)
    assert first == {"name": "one", "samples": 10, "tokens": 1000, "sources": {"a": 600, "b": 400}, "complete": True}
    assert second == {"name": "two", "samples": 5, "tokens": 500, "sources": {"a": 400, "b": 100}, "complete": False}


def test_the_seed_of_the_first_weights_is_known_through_branches_and_through_other_models(runs) -> None:
    state = TrainState.read(next((runs("llama") / "checkpoints").iterdir()))
    assert init_seed(state) == 1234
    one = dataclasses.replace(state, config=state.config.replace("seed: 1234", "seed: 7"))
    assert init_seed(one) == 7
    # A branch with other settings began with its trunk's weights.
    branch = dataclasses.replace(one, former_configs=[])
    branch.continue_with(one.config.replace("from: random", "from: runs/trunk").replace("seed: 7", "seed: 8"))
    assert branch.former_configs
    assert init_seed(branch) == 7
    started = dataclasses.replace(branch, former_configs=[])
    assert init_seed(started) is None
    started.record_start(Path("runs/trunk"), one)
    assert init_seed(started) == 7
    started.record_start(Path("runs/converted"), dataclasses.replace(one, consumed_samples=0))
    assert init_seed(started) is None


def test_a_mean_of_checkpoints_is_exported_and_says_what_it_was_made_of(runs, out, tmp_path) -> None:
    shutil.copytree(runs("llama"), tmp_path / "other")
    average([runs("llama"), tmp_path / "other"], tmp_path / "merged/checkpoints/iter_0000003")
    report = to_hf(tmp_path / "merged", out)
    assert report.verified
    card, facts = (out / "README.md").read_text(), json.loads((out / "megacode.json").read_text())
    assert "Its weights are a mean of 2 checkpoints (weights: uniform)" in card
    assert f"- 0.500000 `{tmp_path / 'other/checkpoints/iter_0000003'}`" in card
    assert [one["weight"] for one in facts["merged"]["of"]] == [0.5, 0.5]
    assert facts["name"] == "tiny-llama-merged"
    to_hf(runs("llama"), tmp_path / "trained")
    assert json.loads((tmp_path / "trained/megacode.json").read_text())["merged"] is None
    first, second = (SafetensorsFiles(path)["model.norm.weight"] for path in (out, tmp_path / "trained"))
    assert torch.equal(first, second)

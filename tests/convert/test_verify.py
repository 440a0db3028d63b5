"""Every way of getting an export wrong is caught, named, and published nowhere."""

from __future__ import annotations

import json
from collections.abc import Callable
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from megacode.base.errors import CheckpointError, VerificationError
from megacode.convert import hf
from megacode.convert.compare import Gaps, NextTokens, difference, first_beyond, worst
from megacode.convert.opened_checkpoint import OpenedCheckpoint
from megacode.convert.reference import Reference, alone
from megacode.convert.safetensors_files import SafetensorsFiles
from megacode.convert.texts import ProofText, texts_of
from megacode.convert.verify import Claim, prove

Weights = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def claims(runs) -> Callable[[str], Claim]:
    """Return a function that opens the checkpoint of a layout."""
    opened: dict[str, Claim] = {}

    def claim_of(name: str) -> Claim:
        if name not in opened:
            source = OpenedCheckpoint.open(runs(name))
            texts = texts_of(source)[:3]
            opened[name] = Claim(source.label, source.config, source.path, source.tokenizer, texts, torch.float32)
        return opened[name]

    return claim_of


def change_weights(export: Path, change: Callable[[Weights], None]) -> None:
    weights = load_file(export / "model.safetensors")
    change(weights)
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, export / "model.safetensors")


def change_json(path: Path, **keys: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **keys}))


def permute_a_head(export: Path) -> None:
    def swap(weights: Weights) -> None:
        heads = weights["model.layers.1.self_attn.q_proj.weight"].reshape(4, -1, 32)
        weights["model.layers.1.self_attn.q_proj.weight"] = heads[[1, 0, 2, 3]].reshape(-1, 32)

    change_weights(export, swap)


def swap_gate_and_up(export: Path) -> None:
    def swap(weights: Weights) -> None:
        gate, up = (f"model.layers.2.mlp.{name}_proj.weight" for name in ("gate", "up"))
        weights[gate], weights[up] = weights[up], weights[gate]

    change_weights(export, swap)


def rotate_by_the_wrong_base(export: Path) -> None:
    change_json(export / "config.json", rope_theta=10000.0, rope_parameters={"rope_type": "default", "rope_theta": 1e4})


def forget_the_interleaving(export: Path) -> None:
    def undo(weights: Weights) -> None:
        for name in list(weights):
            if name.endswith(("q_proj.weight", "k_proj.weight")):
                heads = weights[name].reshape(4, 4, 2, 32)
                weights[name] = heads.transpose(1, 2).reshape(-1, 32)

    change_weights(export, undo)


def damage_the_last_norm(export: Path) -> None:
    change_weights(export, lambda weights: weights["model.norm.weight"].mul_(1.01))


def scale_the_logits(export: Path) -> None:
    change_json(export / "config.json", logit_scale=0.0625)


def with_rows(rows: int, declared: int) -> Callable[[Path], None]:
    def change(export: Path) -> None:
        def resize(weights: Weights) -> None:
            for name in ("model.embed_tokens.weight", "lm_head.weight"):
                weights[name] = torch.cat([weights[name], torch.zeros(1, 32)])[:rows]

        change_weights(export, resize)
        change_json(export / "config.json", vocab_size=declared)

    return change


def lose_a_tensor(export: Path) -> None:
    change_weights(export, lambda weights: weights.__delitem__("model.layers.1.mlp.down_proj.weight"))


def change_a_row_that_no_text_holds(export: Path) -> None:
    change_weights(export, lambda weights: weights["model.embed_tokens.weight"][0].add_(1.0))


def split_words_otherwise(export: Path) -> None:
    document = json.loads((export / "tokenizer.json").read_text())
    document["pre_tokenizer"] = {**document["pre_tokenizer"], "add_prefix_space": True}
    (export / "tokenizer.json").write_text(json.dumps(document))


def end_otherwise(export: Path) -> None:
    change_json(export / "tokenizer_config.json", eos_token="!")


def break_the_tokenizer(export: Path) -> None:
    (export / "tokenizer.json").write_text("{}")


FAULTS = [
    ("llama", permute_a_head, "diverges from the checkpoint at layer 1 attention"),
    ("stablelm", permute_a_head, "diverges from the checkpoint at layer 1 attention"),
    ("cohere", swap_gate_and_up, "diverges from the checkpoint at layer 2 MLP"),
    ("llama", swap_gate_and_up, "diverges from the checkpoint at layer 2 MLP"),
    ("llama", rotate_by_the_wrong_base, r"reads another model\.rotary_base than the checkpoint's 500\.0"),
    ("cohere", forget_the_interleaving, "diverges from the checkpoint at layer 0 attention"),
    ("cohere", scale_the_logits, r"reads another model\.logit_scale than the checkpoint's 1\.0"),
    ("llama", damage_the_last_norm, "diverges from the checkpoint at final norm"),
    ("llama", with_rows(299, 299), "config.json has 299 tokens, but the checkpoint has 300"),
    ("llama", with_rows(301, 301), "config.json has 301 tokens, but the checkpoint has 300"),
    ("llama", with_rows(299, 300), "transformers cannot load the export|the export's parameters are not those"),
    ("llama", with_rows(301, 300), "transformers cannot load the export|the export's parameters are not those"),
    ("llama", lose_a_tensor, "missing keys: model.layers.1.mlp.down_proj.weight"),
    ("llama", change_a_row_that_no_text_holds, "word_embeddings.weight in the files differs from the checkpoint"),
    ("llama", split_words_otherwise, "the exported tokenizer gives different ids on 'prose'"),
    ("llama", end_otherwise, "but the run's is 0"),
    ("llama", break_the_tokenizer, "transformers cannot load the tokenizer"),
]


@pytest.mark.parametrize(("name", "fault", "message"), FAULTS)
def test_a_wrong_export_is_caught_and_named(name, fault, message, claims, tmp_path) -> None:
    hf.write_model(claims(name), tmp_path)
    fault(tmp_path)
    with pytest.raises(VerificationError, match=message) as caught:
        prove(claims(name), tmp_path)
    assert caught.value.exit_code == 3
    assert "nothing was published" in str(caught.value)


def test_a_wrong_export_is_not_published(runs, out, monkeypatch) -> None:
    write = hf.write_model

    def write_wrong(claim: Claim, export: Path, *others: Any) -> int:
        parameters = write(claim, export, *others)
        permute_a_head(export)
        return parameters

    monkeypatch.setattr(hf, "write_model", write_wrong)
    with pytest.raises(VerificationError, match="layer 1 attention") as caught:
        hf.to_hf(runs("llama"), out)
    assert str(caught.value).startswith(f"Verification failed: {out}: the export diverges")
    assert not out.exists()


def test_an_embedding_smaller_than_the_tokenizer_is_refused(claims, tmp_path) -> None:
    larger = copy(claims("llama").tokenizer)
    larger.vocab_size = 500
    with pytest.raises(CheckpointError, match="the model has 500 tokens, but the embedding only 300 rows"):
        hf.write_model(replace(claims("llama"), tokenizer=larger), tmp_path)


def test_the_padding_of_another_layout_changes_nothing(claims, tmp_path) -> None:
    claim = claims("llama")
    model = claim.config.model.model_copy(update={"make_vocab_size_divisible_by": 512})
    other = replace(claim, config=claim.config.model_copy(update={"model": model}))
    hf.write_model(other, tmp_path)
    assert prove(other, tmp_path).verified
    assert SafetensorsFiles(tmp_path)["model.embed_tokens.weight"].shape == (300, 32)


@pytest.mark.parametrize("name", ["cohere", "llama"])
def test_megacode_s_side_is_what_training_computes(name, claims) -> None:
    from megacode.checkpoint import tensors
    from megacode.mcore import groups
    from megacode.mcore.build import build
    from megacode.mcore.step import logits

    claim = claims(name)
    ids = torch.tensor([claim.texts[0].ids])
    with alone(claim.config) as (config, ranks):
        side = Reference(config, ranks, claim.checkpoint, torch.float32)
        hidden = side.hidden(ids)[0]
        ours = torch.cat([side.logits(hidden, first, first + 100) for first in (0, 100, 200)], dim=-1)
    ranks = groups.start(claim.config.parallel, 1)
    try:
        built = build(claim.config, ranks, 300, with_optimizer=False)
        tensors.load(built, claim.checkpoint, weights_only=True)
        trained = logits(built, ids)[..., :300]
    finally:
        groups.stop()
    torch.testing.assert_close(ours, trained[0].float().cpu(), rtol=0, atol=1e-6)


def test_special_tokens_in_a_text_are_text_on_both_sides(claims, tmp_path) -> None:
    claim = claims("llama")
    hf.write_model(claim, tmp_path)
    text = "the <|endoftext|> of a text"
    ids = tuple(claim.tokenizer.encode(text))
    assert 0 not in ids
    assert prove(replace(claim, texts=[ProofText("odd", text, ids)]), tmp_path).tokenizer_ids == len(ids)


def test_the_first_point_beyond_the_tolerance_is_named() -> None:
    ones = torch.ones(2, 2)
    rows = [
        worst([difference(point, ones, ones), difference(point, ones, other)])
        for point, other in (("a", ones), ("b", ones + 1e-3), ("c", torch.zeros(2, 2)))
    ]
    assert first_beyond(rows, 1e-4).point == "b"
    assert first_beyond(rows, 1.5) is None
    assert rows[2].mean == 0.5


@pytest.mark.parametrize("bad", [torch.full((2, 2), float("nan")), torch.ones(2, 3), torch.full((2, 2), float("inf"))])
def test_values_that_cannot_be_compared_are_infinitely_far_apart(bad) -> None:
    row = difference("a", torch.ones(2, 2), bad)
    assert first_beyond([row], 1e9) is row


def test_an_error_does_not_hide_behind_another_channel_s_large_values() -> None:
    reference = torch.randn(6, 32, generator=torch.Generator().manual_seed(0))
    reference[:, 5] = 1000.0  # a massive activation, as trained models have
    wrong = reference.clone()
    wrong[2, 9] += 0.05
    found = difference("layer 1 MLP", reference, wrong)
    assert found.relative > 1e-2
    assert found.scale < 10
    rounded = reference * (1 + 1e-6)
    assert difference("layer 1 MLP", reference, rounded).relative < 2e-6
    quiet = reference.clone()
    quiet[:, 7] = 1e-7  # a channel that hardly speaks is rounded as the others are
    assert difference("layer 1 MLP", quiet, quiet + 1e-6).relative < 1e-5


def test_logits_in_slices_are_logits_at_once() -> None:
    ids = [tuple(range(5)), (3, 1, 4, 1)]
    ours, theirs = torch.randn(9, 40, generator=torch.Generator().manual_seed(1)), torch.zeros(9, 40)
    gaps, choices = Gaps("logits", [5, 4]), NextTokens(ids)
    for first in range(0, 40, 7):
        gaps.add(ours[:, first : first + 7], theirs[:, first : first + 7])
        choices.add(first, ours[:, first : first + 7])
    for row, text in zip(gaps.by_text(), ours.split([5, 4]), strict=True):
        assert row.largest == row.scale == float(text.abs().max())
        assert row.mean == pytest.approx(float(text.abs().mean()))
    assert torch.equal(choices.greedy, ours.argmax(-1))
    labels = torch.tensor([1, 2, 3, 4, 1, 4, 1])
    rows = ours[[0, 1, 2, 3, 5, 6, 7]]
    assert choices.loss == pytest.approx(float(torch.nn.functional.cross_entropy(rows, labels)), abs=1e-6)


def test_logits_that_are_no_numbers_are_infinitely_far_apart() -> None:
    gaps = Gaps("logits", [1])
    gaps.add(torch.ones(1, 2), torch.tensor([[1.0, float("nan")]]))
    gaps.add(torch.ones(1, 2), torch.ones(1, 2))
    assert gaps.by_text()[0].largest == float("inf")

"""Checkpoints that Megatron-core itself saved become megacode's, and compute what its own model computed."""

from __future__ import annotations

import json
import pickle
import shutil
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint import FileSystemReader
from typer.testing import CliRunner

from megacode.base.errors import CheckpointError, VerificationError
from megacode.cli import app
from megacode.convert import from_megatron as module
from megacode.convert.from_megatron import from_megatron
from megacode.convert.hf import to_hf
from megacode.convert.opened_checkpoint import OpenedCheckpoint
from megacode.convert.reference import Reference, alone
from megacode.convert.torch_dist import TorchDist
from tests.ranks import run_ranks

pytestmark = pytest.mark.slow

PROGRAM = Path(__file__).with_name("megatron_program.py")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return a function that gives the checkpoint of so many ranks and a variant, made on first use."""
    root = tmp_path_factory.mktemp("megatron")

    def of(ranks: int, variant: str = "plain") -> Path:
        path = root / f"{variant}{ranks}" / "iter_0000005"
        if not path.exists():
            assert all(run_ranks(ranks, PROGRAM, "save", {"directory": str(path), "variant": variant}))
        return path

    return of


@pytest.mark.parametrize(("ranks", "variant"), [(1, "plain"), (2, "plain"), (1, "decoder"), (1, "layernorm")])
def test_megacode_computes_what_megatron_computed(
    ranks: int, variant: str, saved: Callable[..., Path], tokenizer_dir: Path, tmp_path: Path
) -> None:
    checkpoint = saved(ranks, variant)
    arguments = ["convert", "from-megatron", str(checkpoint), str(tokenizer_dir), str(tmp_path / "out"), "--json"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert (found["vocab_size"], found["padded_rows"]) == (300, 84)
    expected = torch.load(checkpoint.with_suffix(".logits"))[:, :300]
    tokens = torch.arange(1, len(expected) + 1)[None]
    source = OpenedCheckpoint.open(tmp_path / "out")
    assert source.config.model.rotary_base == (1e6 if variant == "decoder" else 500)
    with alone(source.config) as (config, here):
        side = Reference(config, here, source.path, torch.float32)
        logits = side.logits(side.hidden(tokens)[0], 0, 300)
    assert expected.abs().max() > 1
    torch.testing.assert_close(logits, expected, rtol=0, atol=2e-5)


def test_it_goes_on_to_hugging_face(saved: Callable[..., Path], tokenizer_dir: Path, tmp_path: Path) -> None:
    from_megatron(saved(1), tokenizer_dir, tmp_path / "out")
    assert to_hf(tmp_path / "out", tmp_path / "hf", dtype="fp32").verified


def test_pieces_are_put_together_as_megatron_core_does(saved: Callable[..., Path]) -> None:
    import torch.distributed.checkpoint as dcp

    stored = TorchDist(saved(2))
    whole = {name: torch.empty(shape) for name, shape in stored.shapes.items()}
    dcp.load(whole, storage_reader=FileSystemReader(saved(2)), no_dist=True)
    assert any("layers" in name for name in whole)
    for name, tensor in whole.items():
        assert torch.equal(stored.tensor(name), tensor)
        if "layers" in name:
            assert torch.equal(stored.tensor(name, 1), tensor[1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"swiglu": False}, "swiglu is False, but megacode supports only True"),
        ({"use_mup": True}, "use_mup is True, but megacode supports only False"),
        ({"hidden_size": None, "num_layers": "3"}, "num_layers is no integer(.|\n)*its arguments have no hidden_size"),
        ({"group_query_attention": True, "num_query_groups": None}, "its arguments have no num_query_groups"),
        ({"num_experts": 8, "qk_l2_norm": True}, "qk_l2_norm is True(.|\n)*num_experts is 8"),
        ({"qk_layernorm": True}, r"does not contain decoder\.layers\.0\.self_attention\.q_layernorm\.weight"),
        ({"num_layers": 4}, "it contains 3 layers, but the arguments say 4"),
        ({"num_layers": 2}, "it contains 3 layers, but the arguments say 2"),
        (
            {"untie_embeddings_and_output_weights": False},
            r"it contains output_layer\.weight, which megacode's model does not have",
        ),
        ({"ffn_hidden_size": 64}, r"has shape \[96, 32\], but by the arguments it is \[128, 32\]"),
    ],
)
def test_what_megacode_does_not_compute_is_named(
    change: dict[str, Any], message: str, saved: Callable[..., Path], tokenizer_dir: Path, tmp_path: Path
) -> None:
    shutil.copytree(saved(1), tmp_path / "copy")
    arguments = {**TorchDist(saved(1)).arguments(), "attention_backend": None, **change}
    torch.save({"args": Namespace(**arguments)}, tmp_path / "copy" / "common.pt")
    with pytest.raises(CheckpointError, match=message) as caught:
        from_megatron(tmp_path / "copy", tokenizer_dir, tmp_path / "out")
    assert caught.value.exit_code == 2
    assert not (tmp_path / "out").exists()


def test_what_is_no_checkpoint_is_refused(saved: Callable[..., Path], tokenizer_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"there is no \.metadata"):
        from_megatron(tmp_path, tokenizer_dir, tmp_path / "out")
    with pytest.raises(CheckpointError, match=r"there is no tokenizer\.json"):
        from_megatron(saved(1), tmp_path, tmp_path / "out")
    (tmp_path / "there").mkdir()
    with pytest.raises(CheckpointError, match="it already exists"):
        from_megatron(saved(1), tokenizer_dir, tmp_path / "there")
    shutil.copytree(saved(1), tmp_path / "copy")
    torch.save({"iteration": 5}, tmp_path / "copy" / "common.pt")
    with pytest.raises(CheckpointError, match="it contains no Megatron-LM arguments"):
        from_megatron(tmp_path / "copy", tokenizer_dir, tmp_path / "out")


def test_a_tensor_that_was_written_wrong_is_named(
    saved: Callable[..., Path], tokenizer_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = module.initial_checkpoint.write

    def spoiled(tensors: Any, config: Any, hidden: Path) -> None:
        write((tensor.roll(1, 0) if tensor.shape == (64, 32) else tensor for tensor in tensors), config, hidden)

    monkeypatch.setattr(module.initial_checkpoint, "write", spoiled)
    with pytest.raises(VerificationError, match=r"linear_qkv\.weight was not written as it was read"):
        from_megatron(saved(1), tokenizer_dir, tmp_path / "out")
    assert not (tmp_path / "out").exists()


class Harmful:
    """What a pickle can do to its reader."""

    def __reduce__(self) -> Any:
        return pickle.loads, (b"not even looked at",)


def test_nothing_that_a_pickle_names_is_run(saved: Callable[..., Path], tmp_path: Path) -> None:
    shutil.copytree(saved(1), tmp_path / "copy")
    torch.save({"harm": Harmful(), "args": Namespace(num_layers=7)}, tmp_path / "copy" / "common.pt")
    assert TorchDist(tmp_path / "copy").arguments() == {"num_layers": 7}

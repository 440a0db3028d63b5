"""What is said of sources that look like a slip, and which cannot work together."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megacode.base.errors import DataError
from megacode.config.config_file import validate
from megacode.config.run import RunConfig
from megacode.data import manifest as manifests
from megacode.data.indexed import IndexedDatasetWriter
from megacode.data.windows import source_sizes
from megacode.planning.run_plan import plan_run

EOD = 7
ONE = {"kind": "huggingface", "hash": "a" * 64, "vocab_size": 100, "eod": EOD}
OTHER = ONE | {"hash": "b" * 64}
Write = Callable[..., None]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Write a data set of ten documents of 20 tokens, some ended by EOD, with or without a manifest."""
    monkeypatch.chdir(tmp_path)

    def make(name: str, ended: int = 10, **facts: Any) -> None:
        with IndexedDatasetWriter(tmp_path / name, np.uint16) as writer:
            for number in range(10):
                tokens = np.full(20, 3, dtype=np.uint16)
                tokens[-1] = EOD if number < ended else 3
                writer.add(tokens, np.array([20]))
        if facts:
            manifests.write(tmp_path / name, manifests.describe(tmp_path / name, **facts))

    return make


def config_of(**sources: dict[str, Any]) -> RunConfig:
    rate = {"schedule": "constant", "peak": 1e-3}
    raw = {
        "name": "t",
        "model": {"num_layers": 1, "hidden_size": 8, "ffn_hidden_size": 8, "num_attention_heads": 2, "vocab_size": 100},
        "sources": {name: {"path": name, **more} for name, more in sources.items()},
        "validation": {"fraction": 0},
        "phases": [{"name": "p", "samples": 4, "blend": dict.fromkeys(sources, 1), "learning_rate": rate}],
        "train": {"seq_length": 4, "global_batch_size": 2},
    }
    return validate(raw, "t.yaml")


def notes_of(**sources: dict[str, Any]) -> dict[str, tuple[str, ...]]:
    return {name: size.notes for name, size in source_sizes(config_of(**sources), allow_declared=True).items()}


def test_documents_without_an_end_are_said(write: Write) -> None:
    write("with", tokenizer=ONE, append_eod=True, ended=0)  # its manifest vouches for it
    write("ended", tokenizer=ONE)
    write("some", tokenizer=ONE, ended=4)
    write("none", tokenizer=ONE, ended=0)
    write("endless", tokenizer=ONE | {"eod": None})
    write("unknown", ended=0)
    names = ("with", "ended", "some", "none", "endless", "unknown")
    taught = "the model cannot learn where texts end"
    assert notes_of(**{name: {} for name in names}) == {
        "with": (),
        "ended": (),
        "some": (f"6 of 10 sampled documents do not end with the end-of-document token 7 (--append-eod): {taught}",),
        "none": (f"documents do not end with the end-of-document token 7 (--append-eod): {taught}",),
        "endless": (f"its tokenizer has no end-of-document token: {taught}",),
        "unknown": (),
    }


def test_a_declared_size_far_from_the_real_one_is_said(write: Write) -> None:
    write("text")
    assert notes_of(text={"tokens": 205}) == {"text": ()}
    said = "300 tokens are declared, but the data set has 200; the plan uses the actual number"
    assert notes_of(text={"tokens": 300}) == {"text": (said,)}
    assert f"text: {said}" in plan_run(config_of(text={"tokens": 300}))["warnings"]


def test_sources_of_different_tokenizers_are_refused_by_the_plan(write: Write) -> None:
    write("one", tokenizer=ONE, append_eod=True)
    write("same", tokenizer=ONE, append_eod=True)
    write("other", tokenizer=OTHER, append_eod=True)
    assert notes_of(one={}, same={}) == {"one": (), "same": ()}
    with pytest.raises(
        DataError, match="made with different tokenizers: one with aaaaaaaaaaaa, other with bbbbbbbbbbbb"
    ):
        plan_run(config_of(one={}, other={}))


def test_conversations_of_two_chat_templates_are_refused(write: Write) -> None:
    for name, template in (("one", "a" * 64), ("other", "a" * 64), ("third", "b" * 64)):
        write(name, ended=0, tokenizer=ONE, chat={"template_sha256": template})
    plan_run(config_of(one={}, other={}))
    with pytest.raises(
        DataError, match=r"different chat templates wrote .*: one by aaaaaaaaaaaa, third by bbbbbbbbbbbb"
    ):
        plan_run(config_of(one={}, third={}))


def test_what_a_start_would_refuse_of_the_data_is_refused_by_the_plan(write: Write, tmp_path: Path) -> None:
    write("text", tokenizer=ONE, append_eod=True)
    small = config_of(text={})
    small = small.model_copy(update={"model": small.model.model_copy(update={"vocab_size": 5})})
    with pytest.raises(DataError, match="it contains token 7 near position 0, but the vocabulary has 5"):
        plan_run(small)
    with (tmp_path / "text.bin").open("r+b") as file:
        file.write(b"\x09")
    with pytest.raises(DataError, match="its contents do not match its manifest"):
        plan_run(config_of(text={}))


def test_a_blend_that_was_normalised_is_said() -> None:
    config = config_of(a={"tokens": 1000}, b={"tokens": 1000})
    said = "p: its blend sums to 2 and was normalised: a 50.0%, b 50.0%"
    assert said in plan_run(config)["warnings"]


def test_the_neighbour_of_a_missing_data_set_is_suggested(write: Write, tmp_path: Path) -> None:
    write("code_text_document")
    for path in ("code", "code_text_documnt", "code_text_document.bin"):
        with pytest.raises(DataError, match=rf"did you mean {tmp_path}/code_text_document\?; to plan without it"):
            plan_run(config_of(code={"path": path}))
    with pytest.raises(DataError, match="check the path"):
        plan_run(config_of(code={"path": "elsewhere/entirely"}))

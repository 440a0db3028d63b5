"""An export speaks the chat form of its run's conversations, and ends where an answer ends."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer

from megacode.base.files import RunDir
from megacode.chat.job import ChatJob
from megacode.chat.making import make_chat
from megacode.chat.run_template import record_template, run_template
from megacode.chat.templates import ChatTemplate, template_variables
from megacode.config.model import TokenizerConfig
from megacode.convert.chat_form import with_end_of_turn
from megacode.convert.hf import to_hf
from megacode.data import manifest as manifests
from megacode.data.tokenizer import load_tokenizer
from tests.convert.conftest import config_of, save

FORM = "{% for m in messages %}{{ m.role + ': ' + m.content + '<|turn|>\\n' }}{% endfor %}" \
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"  # fmt: skip


@pytest.fixture
def chat_run(tokenizer_dir: Path, tmp_path: Path) -> Callable[[], Path]:
    """Make a run that read conversations, with a tokenizer that has another chat template of its own."""
    own = tmp_path / "tokenizer"
    own.mkdir()
    tokenizer = tokenizers.Tokenizer.from_file(str(tokenizer_dir / "tokenizer.json"))
    tokenizer.add_special_tokens(["<|turn|>"])
    tokenizer.save(str(own / "tokenizer.json"))
    (own / "tokenizer_config.json").write_text('{"chat_template": "{{ messages }}"}')
    (tmp_path / "form.jinja").write_text(FORM)
    rows = [{"prompt": f"Say {number}.", "completion": f"{number}. " * 9} for number in range(300)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = TokenizerConfig(kind="huggingface", path=str(own))
    make_chat(ChatJob((str(tmp_path / "in.jsonl"),), str(tmp_path / "chat"), config, str(tmp_path / "form.jinja")))
    return lambda: save(config_of("llama", tmp_path / "run", own, tmp_path / "chat"))


@pytest.mark.slow
def test_an_export_carries_the_template_that_training_has_seen(chat_run, out):
    to_hf(chat_run(), out)
    tokenizer, model = AutoTokenizer.from_pretrained(out), AutoModelForCausalLM.from_pretrained(out)
    assert tokenizer.chat_template == FORM
    assert "chat_template" not in json.loads((out / "tokenizer_config.json").read_text())
    assert model.generation_config.eos_token_id == [0, tokenizer.convert_tokens_to_ids("<|turn|>")]
    # Published models say so in the same way, and transformers' own generation stops there.
    assert tokenizer.eos_token == "<|endoftext|>"


def test_a_run_keeps_the_template_of_its_sources(chat_run, tmp_path, caplog):
    prefix, run = tmp_path / "chat", RunDir(tmp_path / "run")
    config = config_of("llama", run.path, tmp_path / "tokenizer", prefix)
    assert run_template(config, run) == FORM
    run.create()
    record_template(config, run)
    manifest = manifests.read(prefix)
    assert manifest is not None
    # A later start without conversations, or an export without data: the model has seen them nevertheless.
    manifests.write(prefix, replace(manifest, chat=None))
    record_template(config, run)
    assert run_template(config, run) == run.chat_template.read_text() == FORM
    other = RunDir(tmp_path / "other")
    assert run_template(config, other) is None
    manifests.manifest_path(prefix).write_text("{")
    with caplog.at_level(logging.WARNING):
        assert run_template(config, other) is None
    assert "whether the source text has a chat template is unknown" in caplog.text


def test_a_generation_config_names_each_end_once(chat_run, tmp_path):
    tokenizer = load_tokenizer(TokenizerConfig(kind="huggingface", path=str(tmp_path / "tokenizer")))
    form, turn = ChatTemplate(FORM, "", template_variables(tokenizer)), tokenizer.id_of("<|turn|>")
    assert with_end_of_turn({"eos_token_id": 0}, form, tokenizer) == {"eos_token_id": [0, turn]}
    assert with_end_of_turn({"eos_token_id": [0, turn]}, form, tokenizer) == {"eos_token_id": [0, turn]}
    assert with_end_of_turn({}, form, tokenizer) == {"eos_token_id": [turn]}
    assert with_end_of_turn({"eos_token_id": 0}, None, tokenizer) == {"eos_token_id": 0}

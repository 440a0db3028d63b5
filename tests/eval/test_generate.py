"""Text from an exported model: the same as a direct decoding, whole characters as they come, refusals at once."""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from megacode.base.errors import CheckpointError, ConfigError, DataError
from megacode.base.files import RunDir
from megacode.cli import app
from megacode.eval.generate import Sampling, TextWriter, choose, model_of, pieces
from megacode.eval.scores import model_facts
from megacode.eval.writing_samples import PROMPTS, write_samples

CONTEXT = 96
GREEDY = Sampling(max_new_tokens=20, temperature=0)
TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}{% if add_generation_prompt %}[a]{% endif %}"
)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A tiny Llama with a tokenizer of bytes, as `megacode convert to-hf` lays one out."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    path = tmp_path_factory.mktemp("hf") / "iter_0000004"
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<|endoftext|>": 0, **{letter: number for number, letter in enumerate(alphabet, 1)}}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=257, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=CONTEXT, bos_token_id=0, eos_token_id=0, initializer_range=0.3,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(path)
    end = "<|endoftext|>"
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=end, bos_token=end).save_pretrained(path)
    (path / "megacode.json").write_text(json.dumps({"iteration": 4}))
    return path


@pytest.fixture(scope="module")
def writer(model) -> TextWriter:
    return TextWriter.open(model, "cpu")


@pytest.fixture(autouse=True)
def _log(caplog):
    caplog.set_level(logging.INFO)


def run(*arguments: object, stdin: str | bytes | None = None):
    return CliRunner().invoke(app, ["generate", *map(str, arguments)], input=stdin)


def refusal(*arguments: object, stdin: str | bytes | None = None) -> str:
    result = run(*arguments, stdin=stdin)
    assert isinstance(result.exception, (ConfigError, DataError, CheckpointError)), result.output
    assert result.exception.exit_code == 2
    return str(result.exception)


def test_a_greedy_text_is_that_of_a_decoding_without_a_cache(model, writer):
    from transformers import AutoModelForCausalLM

    ids = writer.ids("Say why.")
    assert ids[0] == 0, "a text begins behind the token that ends a document, as in training"
    reference, expected = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32), list(ids)
    with torch.inference_mode():
        for _ in range(20):
            expected.append(int(reference(torch.tensor([expected])).logits[0, -1].argmax()))
    assert 0 not in expected[len(ids) :]
    text = writer.write(ids, GREEDY)
    assert "".join(text) == writer._tokenizer.decode(expected[len(ids) :])
    assert (text.tokens, text.ended) == (20, "max_new_tokens")


def test_a_seed_gives_the_same_text_again_and_the_next_text_has_another(writer):
    ids, drawn = writer.ids("Go on"), Sampling(max_new_tokens=16)
    first, again, second = ("".join(writer.write(ids, drawn, number)) for number in (0, 0, 1))
    assert first == again != second
    assert second == "".join(writer.write(ids, Sampling(max_new_tokens=16, seed=1)))


def test_tokens_are_drawn_by_their_shares_and_only_from_the_nucleus():
    generator, shares = torch.Generator().manual_seed(0), torch.tensor([0.05, 0.6, 0.05, 0.3])
    counts = Counter(choose(shares.log(), Sampling(temperature=1, top_p=1), generator) for _ in range(4000))
    for token, share in enumerate(shares.tolist()):
        assert counts[token] / 4000 == pytest.approx(share, abs=0.03)
    assert {choose(shares.log(), Sampling(temperature=1, top_p=0.7), generator) for _ in range(200)} == {1, 3}
    assert {choose(shares.log(), Sampling(temperature=1, top_p=1e-6), generator) for _ in range(20)} == {1}
    assert choose(shares.log(), Sampling(temperature=0), generator) == 1


def test_a_model_that_computes_nan_is_refused():
    with pytest.raises(CheckpointError, match="logits are NaN"):
        choose(torch.tensor([0.0, float("nan")]), GREEDY, torch.Generator())


def test_characters_of_several_tokens_come_whole(writer):
    text = "é and 日本 go"
    ids = writer.ids(text)[1:]
    assert len(ids) > len(text)
    found = list(pieces(writer._tokenizer, writer.ids("x"), ids))
    assert "".join(found) == text
    assert len(found) > 5
    assert not any("\ufffd" in piece for piece in found)


def test_a_text_ends_with_the_token_that_ends_it(model):
    writer = TextWriter.open(model, "cpu")
    text = writer.write(writer.ids("Go"), GREEDY)
    expected = list(text._generate())
    writer._ends = frozenset(expected[5:6])
    text = writer.write(writer.ids("Go"), GREEDY)
    assert list(text._generate()) == expected[: expected.index(expected[5])]
    assert text.ended == "end of text"


def test_a_text_is_cut_where_the_context_is_full_and_that_is_said(model):
    result = run(model, "--prompt", "a" * 80, "--temperature", 0, "--max-new-tokens", 500)
    assert result.exit_code == 0
    assert "cut after 15 tokens: the model's context is full" in result.stderr


def test_a_prompt_longer_than_the_context_is_refused(model):
    message = refusal(model, "--prompt", "a" * CONTEXT)
    assert f"the prompt has {CONTEXT + 1} tokens, but the model's context only {CONTEXT}" in message
    assert f"shorten the prompt to {CONTEXT - 1} tokens or fewer" in message


def test_a_chat_needs_a_template(model, tmp_path):
    assert "no chat template" in refusal(model, "--prompt", "a", "--chat")


def test_a_chat_is_asked_in_the_models_own_form(model):
    writer = TextWriter.open(model, "cpu")
    writer._tokenizer.chat_template = TEMPLATE
    turns = [{"role": "user", "content": "hi"}]
    assert writer._tokenizer.decode(writer.chat_ids(turns)) == "[user]hi[a]"


def test_a_special_token_in_a_message_is_text_as_in_training(model):
    writer = TextWriter.open(model, "cpu")
    tokenizer = writer._tokenizer
    end = tokenizer.eos_token
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}[a]"
    ids = writer.chat_ids([{"role": "user", "content": f"What is {end}?"}])
    assert ids.count(tokenizer.eos_token_id) == 1, "that of the template"
    assert tokenizer.decode(ids) == f"What is {end}?{end}[a]"
    as_text = tokenizer(f"What is {end}?", split_special_tokens=True)["input_ids"]
    assert ids[: ids.index(tokenizer.eos_token_id)] == as_text
    # A tokenizer without a document to rename tokens in cannot tell them apart.
    writer._chat.__dict__["_encoder"] = None
    assert writer.chat_ids([{"role": "user", "content": "hi"}]) == tokenizer(f"hi{end}[a]")["input_ids"]
    with pytest.raises(ConfigError, match=re.escape(f"the prompt holds {end!r}")):
        writer.chat_ids([{"role": "user", "content": f"What is {end}?"}])
    with pytest.raises(ConfigError, match="private planes"):
        writer.chat_ids([{"role": "user", "content": "\U000f0000"}])


def test_an_answer_ends_where_the_template_ends_a_turn(model):
    from transformers import AddedToken

    form = TEMPLATE.replace("[a]", "[assistant]")
    writer = TextWriter.open(model, "cpu")
    writer._tokenizer.chat_template = form
    ids = writer.chat_ids([{"role": "user", "content": "hi"}])
    expected = list(writer.write(ids, GREEDY)._generate())
    letter = writer._tokenizer.convert_ids_to_tokens(expected[5])
    writer._tokenizer.add_tokens([AddedToken(letter, special=True, normalized=False)], special_tokens=True)
    end = "{% if m.role == 'assistant' %}" + letter + "{% endif %}"
    writer._tokenizer.chat_template = form.replace("{{ m.content }}", "{{ m.content }}" + end)
    writer = TextWriter(writer._model, writer._tokenizer, model)
    text = writer.write(ids, GREEDY, chat=True)
    assert list(text._generate()) == expected[: expected.index(expected[5])]
    assert text.ended == "end of text"
    assert list(writer.write(ids, GREEDY)._generate()) == expected, "a text that is no answer goes past it"


def test_a_conversation_may_begin_with_a_system_message(model, tmp_path):
    own = tmp_path / "model"
    shutil.copytree(model, own)
    (own / "chat_template.jinja").write_text(TEMPLATE)
    asked = ("--prompt", "hi", "--temperature", 0, "--max-new-tokens", 4, "--json")
    answers = [run(own, *asked, "--chat", *more) for more in ((), ("--system", "Be brief."))]
    assert [json.loads(found.stdout)["settings"]["system"] for found in answers] == [None, "Be brief."]
    writer = TextWriter.open(own, "cpu")
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}]
    expected = "".join(writer.write(writer.chat_ids(turns), Sampling(4, 0), chat=True))
    assert json.loads(answers[1].stdout)["texts"][0]["text"] == expected
    assert "--chat" in refusal(own, "--prompt", "a", "--system", "b")
    refusing = "{% if messages[0].role == 'system' %}{{ raise_exception('no system message') }}{% endif %}"
    (own / "chat_template.jinja").write_text(refusing + TEMPLATE)
    assert "no system message" in refusal(own, "--prompt", "a", "--chat", "--system", "b")


def test_the_text_goes_to_standard_output_and_nothing_else(model, writer):
    result = run(model, "--prompt", "Say it", "--temperature", 0, "--max-new-tokens", 20, "--device", "cpu")
    expected = "".join(writer.write(writer.ids("Say it"), GREEDY))
    assert result.stdout == expected + "\n"


def test_a_prompt_may_come_from_a_file_or_a_pipe_without_its_last_line_end(model, tmp_path):
    (tmp_path / "a prompt.txt").write_bytes("Über\r\n".encode())
    options = ("--temperature", 0, "--max-new-tokens", 12)
    direct = run(model, "--prompt", "Über", *options)
    assert direct.exit_code == 0
    assert run(model, "--prompt-file", tmp_path / "a prompt.txt", *options).stdout == direct.stdout
    assert run(model, *options, stdin="Über\n").stdout == direct.stdout


def test_json_is_one_document(model):
    result = run(model, "--prompt", "Go", "--count", 2, "--max-new-tokens", 8, "--json")
    document = json.loads(result.stdout)
    assert document["prompt"] == "Go"
    assert [text["seed"] for text in document["texts"]] == [0, 1]
    assert all(text["tokens"] == 8 and text["ended"] == "max_new_tokens" for text in document["texts"])


def test_several_texts_are_told_apart(model):
    result = run(model, "--prompt", "Go", "--count", 2, "--max-new-tokens", 4)
    assert "--- 1 of 2, seed 0 ---" in result.stdout
    assert "--- 2 of 2, seed 1 ---" in result.stdout


def test_what_cannot_work_is_refused(model, tmp_path):
    (tmp_path / "latin.txt").write_bytes(b"\xe9")
    assert "two prompts are given" in refusal(model, "--prompt", "a", "--prompt-file", "b")
    assert "standard input is empty" in refusal(model, stdin="")
    assert "not UTF-8" in refusal(model, "--prompt-file", tmp_path / "latin.txt")
    assert "cannot be read: No such file" in refusal(model, "--prompt-file", tmp_path / "none.txt")
    assert "all texts are equal" in refusal(model, "--prompt", "a", "--count", 2, "--temperature", 0)
    assert "is not a device" in refusal(model, "--prompt", "a", "--device", "tpu")
    assert "neither an exported model" in refusal(tmp_path, "--prompt", "a")
    assert "no such directory" in refusal(tmp_path / "none", "--prompt", "a")
    assert run(model, "--prompt", "a", "--top-p", 0).exit_code == 2
    assert run(model, "--prompt", "a", "--max-new-tokens", 0).exit_code == 2


def test_a_closed_standard_input_is_an_empty_one(monkeypatch):
    import megacode.cli.generation as generation

    monkeypatch.setattr("sys.stdin", None)
    with pytest.raises(ConfigError, match="standard input is empty"):
        generation._prompt(None, None)
    assert generation._prompt("given", None) == "given"


def test_a_person_at_a_terminal_is_asked_line_by_line(model, monkeypatch):
    import megacode.cli.generation as generation

    monkeypatch.setattr(generation, "_prompt", lambda *_: None)
    result = run(model, "--max-new-tokens", 4, "--temperature", 0, stdin="a\n" + "b" * 200 + "\n\nc\n")
    assert result.exit_code == 0
    assert result.stdout.count("> ") == 5
    assert "the prompt has 201 tokens" in result.stderr
    assert "--json: there is no prompt" in refusal(model, "--json")
    assert "--count: there is no prompt" in refusal(model, "--count", 2)


def test_a_conversation_remembers_and_forgets_its_oldest_turns(model, caplog):
    import megacode.cli.generation as generation

    writer = TextWriter.open(model, "cpu")
    writer._tokenizer.chat_template = TEMPLATE
    turns = [{"role": role, "content": letter * 30} for role, letter in (("user", "a"), ("a", "b"), ("user", "c"))]
    ids = generation._chat_ids(writer, turns)
    assert writer._tokenizer.decode(ids) == "[user]" + "c" * 30 + "[a]"
    assert [turn["content"][0] for turn in turns] == ["c"]
    assert "are dropped" in caplog.text
    system = {"role": "system", "content": "s"}
    turns = [
        system,
        *({"role": role, "content": letter * 30} for role, letter in (("user", "a"), ("a", "b"), ("user", "c"))),
    ]
    generation._chat_ids(writer, turns)
    assert [turn["content"][0] for turn in turns] == ["s", "c"]


def test_a_checkpoint_outside_of_a_run_is_told_how(tmp_path):
    from megacode.checkpoint.state import TrainState

    TrainState(iteration=4, consumed_samples=32).write(tmp_path)
    with pytest.raises(CheckpointError, match=r"is not in a run directory") as refused:
        model_of(tmp_path)
    assert "megacode convert to-hf" in str(refused.value)


def test_samples_are_kept_in_the_run(model, writer, tmp_path):
    write_samples(writer, tmp_path, model_facts(model))
    document = json.loads((RunDir(tmp_path).samples / "iter_0000004.json").read_text())
    assert [one["prompt"] for one in document["samples"]] == list(PROMPTS.values())
    assert all(one["text"] and one["ended"] for one in document["samples"])


def test_samples_never_end_an_evaluation(model, writer, tmp_path, caplog):
    (tmp_path / "samples").write_text("in the way")
    write_samples(writer, tmp_path, model_facts(model))
    assert "no text samples for iteration 4" in caplog.text
    write_samples(writer, None, model_facts(model))

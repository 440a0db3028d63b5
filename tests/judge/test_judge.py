"""Win-rates, judged by a real server on loopback that can be slow, busy, biased or wrong."""

from __future__ import annotations

import email.utils
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from megacode.base.errors import ConfigError, DataError, VerificationError
from megacode.judge import client
from megacode.judge.answers import PLAIN, AnswerCache, Generation, _chat, _ids, answers, model_identity
from megacode.judge.client import JudgeClient, JudgeError, Patience, RequestPace, message_of
from megacode.judge.comparison import JudgeSettings, default_out, judge, make_answers
from megacode.judge.prompts import SHIPPED, Prompt, read_prompts
from megacode.judge.statistics import by_category, summarise
from megacode.judge.verdicts import Question, Verdict, judge_question, parse_verdict, request_body
from tests.limits import HANG

slow = pytest.mark.slow
QUICK = Patience(timeout=5, tries=4, first_wait=0.01, longest_wait=2)
KEY = "sk-very-secret-0123456789"
Answer = tuple[int, Any, dict[str, str]]


def chat(text: str) -> Answer:
    return 200, {"choices": [{"message": {"role": "assistant", "content": text}}]}, {}


class Server:
    """A judge on loopback; `behave(body, number)` returns status, document (or raw text) and headers."""

    def __init__(self) -> None:
        self.behave: Callable[[dict[str, Any], int], Answer] = lambda body, number: chat("Verdict: tie")
        self.models: list[str] = ["judge-1"]
        self.drip = 0.0  # seconds between two bytes of a reply
        self.seen: list[tuple[float, dict[str, Any], dict[str, str]]] = []
        self._lock = threading.Lock()
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                document = {"data": [{"id": name} for name in owner.models]}
                self.reply(200 if self.path == "/v1/models" else 404, document, {})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with owner._lock:
                    owner.seen.append((time.monotonic(), body, dict(self.headers)))
                    number = len(owner.seen)
                self.reply(*(owner.behave(body, number) if self.path == "/v1/chat/completions" else (404, {}, {})))

            def reply(self, status: int, document: Any, headers: dict[str, str]) -> None:
                raw = document.encode() if isinstance(document, str) else json.dumps(document).encode()
                self.send_response(status)
                for name, value in {"Content-Length": str(len(raw)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                for piece in [raw[i : i + 1] for i in range(len(raw))] if owner.drip else [raw]:
                    self.wfile.write(piece)
                    time.sleep(owner.drip)

            def log_message(self, *_: Any) -> None:
                """Say nothing."""

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.handle_error = lambda *_: None  # clients that hang up are part of the tests
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self.thread.start()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv(client.KEY_VARIABLE, raising=False)
    server = Server()
    yield server
    server.http.shutdown()
    server.http.server_close()


def places(body: dict[str, Any]) -> tuple[str, str]:
    """The answers that stand first and second in a request."""
    text = body["messages"][-1]["content"]
    first = text.split("[Answer A]\n")[1].split("\n[End of answer A]")[0]
    return first, text.split("[Answer B]\n")[1].split("\n[End of answer B]")[0]


def longer_wins(body: dict[str, Any], _: int) -> Answer:
    first, second = places(body)
    verdict = "tie" if len(first) == len(second) else "A" if len(first) > len(second) else "B"
    return chat(f"Because it is longer.\n\nVerdict: {verdict}")


def questions(number: int) -> list[Question]:
    return [Question(Prompt(str(i), f"question {i}", ["even", "odd"][i % 2]), "x" * 9, "y" * i) for i in range(number)]


def ask(server: Server, cache: Path, number: int = 1, patience: Patience = QUICK) -> tuple[list[Verdict], JudgeClient]:
    client = JudgeClient(server.url, cache, patience)
    return [judge_question(client, "judge-1", one, 64) for one in questions(number)], client


def test_both_orders_are_asked_and_a_fair_judge_is_believed(server, tmp_path):
    server.behave = longer_wins
    verdicts, client = ask(server, tmp_path, 12)
    assert [verdict.outcome for verdict in verdicts] == ["a"] * 9 + ["tie", "b", "b"]
    assert client.requests == len(server.seen) == 24
    assert places(server.seen[2][1]) == places(server.seen[3][1])[::-1] == ("x" * 9, "y")
    figures = summarise(verdicts, seed=0)
    assert (figures["wins"], figures["ties"], figures["losses"], figures["invalid"]) == (9, 1, 2, 0)
    assert figures["win_loss"] == pytest.approx(7 / 12)
    assert figures["win_rate"] == pytest.approx(9.5 / 12)
    assert figures["agreement"] == 1.0
    assert figures["first_place"] == 0.5


def test_a_judge_that_prefers_the_first_answer_gives_ties_and_no_agreement(server, tmp_path):
    server.behave = lambda body, number: chat("Verdict: A")
    verdicts, _ = ask(server, tmp_path, 6)
    figures = summarise(verdicts, seed=0)
    assert figures["ties"] == 6
    assert figures["agreement"] == 0.0
    assert figures["first_place"] == 1.0
    assert figures["win_loss"] == 0.0


def test_a_second_run_costs_nothing_and_another_judge_is_asked_anew(server, tmp_path):
    server.behave = longer_wins
    first, _ = ask(server, tmp_path, 5)
    again, client = ask(server, tmp_path, 5)
    assert again == first
    assert (client.requests, client.hits) == (0, 10)
    judge_question(client, "judge-2", questions(1)[0], 64)
    assert client.requests == 2


@pytest.mark.parametrize("status", [429, 500, 503])
def test_busy_servers_are_asked_again(server, tmp_path, status):
    server.behave = lambda body, number: (status, {"error": "busy"}, {}) if number in (1, 2) else chat("Verdict: A")
    verdicts, client = ask(server, tmp_path)
    assert verdicts[0].valid
    assert (client.requests, client.retries) == (4, 2)


@pytest.mark.parametrize("as_date", [False, True])
def test_retry_after_is_honoured(server, tmp_path, as_date):
    wait = email.utils.formatdate(time.time() + 2, usegmt=True) if as_date else "0.7"
    server.behave = lambda body, number: (429, {}, {"Retry-After": wait}) if number == 1 else chat("Verdict: A")
    ask(server, tmp_path)
    assert server.seen[1][0] - server.seen[0][0] >= (0.5 if as_date else 0.7)


def test_a_server_that_asks_to_wait_too_long_ends_the_run_resumably(server, tmp_path):
    server.behave = lambda body, number: (429, {}, {"Retry-After": "3600"})
    with pytest.raises(JudgeError, match=r"asks to wait 3600 s") as caught:
        ask(server, tmp_path)
    assert caught.value.exit_code == 75
    assert len(server.seen) == 1


def test_a_server_that_hangs_is_given_up_after_its_tries(server, tmp_path):
    release = threading.Event()
    server.behave = lambda body, number: (release.wait(20), chat("Verdict: A"))[1]
    start = time.monotonic()
    with pytest.raises(JudgeError, match=r"no answer after 2 tries: no answer within 0.3 s"):
        ask(server, tmp_path, patience=Patience(timeout=0.3, tries=2, first_wait=0.01))
    assert time.monotonic() - start < 5
    release.set()


def test_a_server_that_sends_a_byte_now_and_then_is_late_all_the_same(server, tmp_path):
    server.drip = 0.1
    start = time.monotonic()
    with pytest.raises(JudgeError, match=r"no answer within 0.5 s"):
        ask(server, tmp_path, patience=Patience(timeout=0.5, tries=1))
    assert time.monotonic() - start < 3


def test_an_endless_reply_is_cut_off(server, tmp_path, monkeypatch):
    monkeypatch.setattr(client, "_LARGEST_REPLY", 1000)
    server.behave = lambda body, number: chat("x" * 200_000)
    with pytest.raises(JudgeError, match=r"the reply is longer than 1,000 bytes"):
        ask(server, tmp_path, patience=Patience(tries=1))


def test_a_hang_at_the_first_try_only_is_survived(server, tmp_path):
    release = threading.Event()
    server.behave = lambda body, number: (number == 1 and release.wait(20), chat("Verdict: A"))[1]
    verdicts, client = ask(server, tmp_path, patience=Patience(timeout=0.3, tries=2, first_wait=0.01))
    assert verdicts[0].valid
    assert client.retries == 1
    release.set()


def test_a_connection_that_breaks_is_tried_again(server, tmp_path):
    broken = (200, "{}", {"Content-Length": "5000", "Connection": "close"})
    server.behave = lambda body, number: broken if number == 1 else chat("Verdict: A")
    verdicts, client = ask(server, tmp_path)
    assert verdicts[0].valid
    assert client.retries == 1


def test_a_server_that_is_not_there_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    client = JudgeClient("http://127.0.0.1:9/v1", tmp_path, Patience(tries=2, first_wait=0.01))
    with pytest.raises(JudgeError, match=r"127.0.0.1:9/v1/chat/completions: no answer after 2 tries.*\n.*are kept"):
        client.chat({"model": "m"})


def test_malformed_answers_are_asked_once_more_and_then_invalid(server, tmp_path):
    server.behave = lambda body, number: chat("I like A best") if number in (1, 3, 4) else chat("Verdict: A")
    verdicts, client = ask(server, tmp_path)
    assert (verdicts[0].forward, verdicts[0].backward, verdicts[0].outcome) == ("a", None, None)
    assert verdicts[0].malformed == 3
    assert summarise(verdicts, seed=0)["invalid"] == 1
    again, second = ask(server, tmp_path)
    assert again == verdicts
    assert (second.requests, second.hits) == (0, client.requests)


@pytest.mark.parametrize("reply", ["<html>login</html>", {"choices": []}, {"choices": [{"message": {}}]}, {}, []])
def test_what_is_no_chat_completion_is_invalid(server, tmp_path, reply):
    server.behave = lambda body, number: (200, reply, {})
    verdicts, _ = ask(server, tmp_path)
    assert (verdicts[0].outcome, verdicts[0].malformed) == (None, 4)
    kept = list(tmp_path.rglob("*.json"))
    assert bool(kept) == (isinstance(reply, dict) and "choices" in reply)


@pytest.mark.parametrize(
    ("text", "choice"),
    [
        ("Both fine.\nVerdict: A", "a"), ("Verdict: B\n", "b"), ("Verdict: tie", "tie"), ("  Verdict: A  ", "a"),
        ("Verdict: C", None), ("verdict: A", None), ("Verdict: A.", None), ("**Verdict: A**", None),
        ("Verdict: A\nbecause", None), ("Verdict: A\nVerdict: B", None), ("Verdict: Tie", None),
        ("The verdict: A", None), ("", None), (None, None), ("A", None),
    ],
)  # fmt: skip
def test_verdicts_are_read_strictly(text, choice):
    assert parse_verdict(text) == choice


def test_the_same_answer_twice_is_a_tie_without_asking(server, tmp_path):
    client = JudgeClient(server.url, tmp_path, QUICK)
    verdict = judge_question(client, "m", Question(Prompt("1", "?"), "same", "same"), 64)
    assert (verdict.outcome, client.requests) == ("tie", 0)
    figures = summarise([verdict], seed=0)
    assert (figures["identical"], figures["agreement"], figures["win_loss_95"]) == (1, None, None)


def test_intervals_are_those_of_a_bootstrap_over_prompts():
    import numpy as np

    outcomes = ["a"] * 22 + ["b"] * 10 + ["tie"] * 8
    question = questions(1)[0]
    figures = summarise([Verdict(question, one, one, ("", "")) for one in outcomes], seed=3)
    points = np.array([{"a": 1, "b": -1, "tie": 0}[one] for one in outcomes])
    draws = np.random.default_rng(0).integers(0, 40, (10_000, 40))
    low, high = np.quantile(points[draws].mean(1), [0.025, 0.975])
    assert figures["win_loss"] == pytest.approx(0.3)
    assert figures["win_loss_95"] == pytest.approx([low, high], abs=0.03)
    assert figures["win_rate_95"] == pytest.approx([(1 + low) / 2, (1 + high) / 2], abs=0.015)
    same = summarise([Verdict(question, one, one, ("", "")) for one in outcomes], seed=3)
    assert same == figures


def test_categories_are_told_apart(server, tmp_path):
    server.behave = longer_wins
    verdicts, _ = ask(server, tmp_path, 12)
    figures = by_category(verdicts, seed=0)
    assert list(figures) == ["even", "odd"]
    assert (figures["even"]["wins"], figures["even"]["losses"]) == (5, 1)
    assert (figures["odd"]["wins"], figures["odd"]["ties"]) == (4, 1)


def test_the_key_goes_into_the_header_and_nowhere_else(server, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv(client.KEY_VARIABLE, KEY)
    server.behave = lambda body, number: (503, KEY, {}) if number == 1 else chat(f"{KEY}\nVerdict: A")
    verdicts, _ = ask(server, tmp_path)
    assert all(headers["Authorization"] == f"Bearer {KEY}" for _, _, headers in server.seen)
    assert KEY not in json.dumps([body for _, body, _ in server.seen])
    kept = "".join(path.read_text() for path in tmp_path.rglob("*") if path.is_file())
    assert "***" in kept
    assert KEY not in kept + repr(verdicts) + caplog.text
    server.behave = lambda body, number: (401, f"wrong key {KEY}", {})
    with pytest.raises(ConfigError, match=r"401.*wrong key \*\*\*\n.*variable MEGACODE_JUDGE_API_KEY") as caught:
        JudgeClient(server.url, tmp_path / "other", QUICK).chat({"model": "m"})
    assert KEY not in str(caught.value)


def test_no_key_is_sent_where_none_is_set_and_a_damaged_one_is_refused(server, tmp_path, monkeypatch):
    ask(server, tmp_path)
    assert all("Authorization" not in headers for _, _, headers in server.seen)
    monkeypatch.setenv(client.KEY_VARIABLE, "two\nlines")
    with pytest.raises(ConfigError, match="the API key contains invalid characters"):
        JudgeClient(server.url, tmp_path)


def test_redirections_are_not_followed(server, tmp_path, monkeypatch):
    monkeypatch.setenv(client.KEY_VARIABLE, KEY)
    server.behave = lambda body, number: (302, {}, {"Location": server.url + "/elsewhere"})
    with pytest.raises(ConfigError, match=r"answers 302.*\n.*it redirects to .*/elsewhere"):
        JudgeClient(server.url, tmp_path, QUICK).chat({"model": "m"})
    assert len(server.seen) == 1


def test_a_request_that_the_server_refuses_is_not_repeated(server, tmp_path):
    server.behave = lambda body, number: (400, {"error": "context too long"}, {})
    with pytest.raises(ConfigError, match=r"answers 400.*context too long") as caught:
        ask(server, tmp_path)
    assert caught.value.exit_code == 2
    assert len(server.seen) == 1
    with pytest.raises(ConfigError, match=r"answers 404.*\n.*usually ends in /v1"):
        JudgeClient(server.url.removesuffix("/v1"), tmp_path, QUICK).chat({"model": "m"})


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://a/v1", "https://", ""])
def test_an_address_that_is_none_is_refused(url, tmp_path):
    with pytest.raises(ConfigError, match=r"is not a valid address\n.*--judge http://"):
        JudgeClient(url, tmp_path)


@pytest.mark.parametrize("url", ["https://me:pw@host/v1", "https://host/v1?key=secret"])
def test_an_address_with_a_secret_is_refused_without_repeating_it(url, tmp_path):
    with pytest.raises(ConfigError, match="contains a user name, query") as caught:
        JudgeClient(url, tmp_path)
    assert "pw" not in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_server_with_one_model_needs_no_name(server, tmp_path):
    client = JudgeClient(f"{server.url}/chat/completions/", tmp_path, QUICK)
    assert client.only_model() == "judge-1"
    server.models = ["x", "y"]
    with pytest.raises(ConfigError, match=r"the judge's model is not clear: it offers x, y\n.*--model"):
        client.only_model()


def test_requests_keep_their_pace_over_all_threads():
    pace, times = RequestPace(1200), []
    threads = [threading.Thread(target=lambda: (pace.wait(), times.append(time.monotonic()))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    times.sort()
    assert times[-1] - times[0] >= 5 * 0.05 * 0.9
    pace.hold(0.3)
    start = time.monotonic()
    pace.wait()
    assert time.monotonic() - start >= 0.29


def test_no_message_is_none():
    assert message_of({"choices": [{"message": {"content": None}}]}) is None
    assert message_of(None) is None


def test_the_shipped_prompts_are_forty_in_five_categories():
    prompts = read_prompts(SHIPPED)
    counts = [sum(prompt.category == name for prompt in prompts) for name in {p.category for p in prompts}]
    assert counts == [8] * 5
    assert len({prompt.text for prompt in prompts}) == 40


def test_all_wrong_lines_of_a_prompt_file_are_named_at_once(tmp_path):
    path = tmp_path / "p.jsonl"
    with pytest.raises(DataError, match=r"there is no such file.*\n.*omit --prompts"):
        read_prompts(path)
    path.write_text("\n")
    with pytest.raises(DataError, match="it contains no prompt"):
        read_prompts(path)
    path.write_text('{"id": 1, "prompt": "a"}\n{"id": "1", "prompt": "b"}\n[]\nnope\n{"prompt": "c"}\n{"id": "2"}\n'
                    '{"id": "3", "prompt": "d", "category": 4}\n')  # fmt: skip
    with pytest.raises(DataError) as caught:
        read_prompts(path)
    text = str(caught.value)
    assert "6 problems" in text
    for part in (":3: the line is a JSON list, not an object", ":4: the line is not JSON",
                 ":5: `id` is None", ":6: `prompt` is None",
                 ":7: `category` is 4", "the id '1' appears twice"):  # fmt: skip
        assert part in text


def test_half_a_surrogate_pair_in_a_prompt_is_a_wrong_line_and_in_a_reply_is_replaced(tmp_path):
    (tmp_path / "p.jsonl").write_text('{"id": "1", "prompt": "a"}\n{"id": "2", "prompt": "a\\ud800b"}\n')
    with pytest.raises(DataError, match=r"p\.jsonl:2: the key 'prompt' holds an unpaired surrogate"):
        read_prompts(tmp_path / "p.jsonl")
    reply = client._json('{"choices": [{"message": {"content": "Well \\ud800. \\ud83d\\ude00"}}]}')
    assert message_of(reply) == "Well \ufffd. \U0001f600"


PROMPTS = [
    Prompt("short", "Say it."),
    Prompt("long", "Say why the sky is blue, at some length."),
    Prompt("mid", "Go on"),
]


def save_model(path: Path, seed: int, context: int = 192) -> Path:
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<|endoftext|>": 0, **{letter: number for number, letter in enumerate(alphabet, 1)}}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=257, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=context, bos_token_id=None, eos_token_id=0, initializer_range=0.3,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(path)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>").save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def models_ab(tmp_path_factory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("models")
    return save_model(root / "a", 1), save_model(root / "b", 2)


@pytest.fixture
def prompts_file(tmp_path) -> Path:
    path = tmp_path / "prompts.jsonl"
    lines = [{"id": one.id, "prompt": one.text, "category": one.id[0]} for one in PROMPTS]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def kept(directory: Path, model: Path, generation: Generation) -> AnswerCache:
    return AnswerCache(directory, model_identity(model), generation)


@slow
def test_batched_greedy_answers_equal_a_direct_decoding(models_ab, tmp_path):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    generation = Generation(max_new_tokens=24)
    found, made = answers(models_ab[0], PROMPTS, generation, kept(tmp_path, models_ab[0], generation), device="cpu")
    assert made == 3
    model = AutoModelForCausalLM.from_pretrained(models_ab[0]).eval()
    tokenizer = AutoTokenizer.from_pretrained(models_ab[0])
    for prompt in PROMPTS:
        ids = tokenizer(PLAIN.format(prompt=prompt.text))["input_ids"]
        new: list[int] = []
        while len(new) < 24:
            with torch.no_grad():
                token = int(model(torch.tensor([ids + new])).logits[0, -1].argmax())
            if token == 0:
                break
            new.append(token)
        assert found[prompt.id] == tokenizer.decode(new).split("\n### ")[0].strip()
        assert found[prompt.id]


@slow
def test_drawn_answers_depend_on_seed_and_prompt_not_on_the_batch(models_ab, tmp_path):
    def drawn(name: str, prompts: list[Prompt], seed: int, batch_size: int) -> dict[str, str]:
        generation = Generation(16, temperature=0.8, seed=seed)
        cache = kept(tmp_path / name, models_ab[0], generation)
        return answers(models_ab[0], prompts, generation, cache, batch_size=batch_size, device="cpu")[0]

    first = drawn("1", PROMPTS, 0, 3)
    assert drawn("2", PROMPTS[::-1], 0, 1) == first
    assert drawn("3", PROMPTS[1:], 0, 2) == {one.id: first[one.id] for one in PROMPTS[1:]}
    assert drawn("4", PROMPTS, 1, 3) != first


@slow
def test_draws_have_the_models_distribution():
    import torch

    from megacode.judge.answers import _draws

    logits = torch.tensor([[0.0, 1.0, 2.0, -1.0]])
    draw = _draws(Generation(1, temperature=2.0), [Prompt("1", "p")])
    tokens = torch.stack([draw(None, logits).argmax(-1) for _ in range(20_000)]).flatten()
    shares = torch.bincount(tokens, minlength=4) / len(tokens)
    assert torch.allclose(shares, (logits[0] / 2).softmax(-1), atol=0.015)


@slow
def test_answers_are_kept_by_model_prompt_and_settings(models_ab, tmp_path):
    def made(model: Path, prompts: list[Prompt], generation: Generation) -> int:
        return answers(model, prompts, generation, kept(tmp_path, model, generation), device="cpu")[1]

    assert made(models_ab[0], PROMPTS[:2], Generation(4)) == 2
    assert made(models_ab[0], PROMPTS, Generation(4)) == 1
    assert made(models_ab[0], PROMPTS, Generation(5)) == 3
    assert made(models_ab[1], PROMPTS, Generation(4)) == 3
    assert made(models_ab[1], PROMPTS, Generation(4)) == 0


@slow
def test_what_does_not_fit_into_the_context_is_refused_with_the_length_that_does(models_ab, tmp_path):
    generation = Generation(max_new_tokens=150)
    with pytest.raises(
        DataError,
        match=r"1 of 3 prompts.* of 150 tokens.*context of 192 tokens; the longest, 'long', has 73\n.*tokens 119",
    ):
        answers(models_ab[0], PROMPTS, generation, kept(tmp_path, models_ab[0], generation), device="cpu")
    assert not list(tmp_path.rglob("*.json"))
    with pytest.raises(DataError, match=r"1 of 1 prompts.*\n.*remove such prompts"):
        answers(
            models_ab[0], [Prompt("1", "x" * 300)], generation, kept(tmp_path, models_ab[0], generation), device="cpu"
        )


def settings_in(tmp_path: Path) -> JudgeSettings:
    return JudgeSettings(
        Generation(max_new_tokens=8), device="cpu", patience=QUICK, cache=tmp_path / "cache", threads=3
    )


@slow
def test_a_killed_comparison_goes_on_and_a_finished_one_costs_nothing(server, models_ab, prompts_file, tmp_path):
    out, settings = tmp_path / "out.json", settings_in(tmp_path)
    server.behave = lambda body, number: longer_wins(body, number) if number < 4 else (500, {}, {})
    with pytest.raises(JudgeError):
        judge(*models_ab, server.url, "judge-1", prompts_file, out, settings)
    assert not out.exists()
    done = sum(1 for _ in (tmp_path / "cache/verdicts").rglob("*.json"))
    server.seen.clear()
    server.behave = longer_wins
    document = judge(*models_ab, server.url, None, prompts_file, out, settings)
    assert done == 3
    assert document["a"]["answers"] == {"generated": 0, "from_cache": 3}
    assert len(server.seen) == 6 - done
    with pytest.raises(ConfigError, match=r"out\.json already exists"):
        judge(*models_ab, server.url, "judge-1", prompts_file, out, settings)
    settings = replace(settings, overwrite=True)
    again = judge(*models_ab, server.url, "judge-1", prompts_file, out, settings)
    assert len(server.seen) == 6 - done
    assert again["requests"] == {"sent": 0, "retries": 0, "from_cache": 6}
    assert again["overall"] == document["overall"]
    assert json.loads(out.read_text()) == again


@slow
def test_the_result_says_who_was_compared_by_whom_on_what(server, models_ab, prompts_file, tmp_path):
    server.behave = longer_wins
    document = judge(*models_ab, server.url, None, prompts_file, tmp_path / "out.json", settings_in(tmp_path))
    assert document["a"]["weights_sha256"] != document["b"]["weights_sha256"]
    assert document["judge"]["url"] == server.url
    assert document["judge"]["model"] == "judge-1"
    assert document["prompts"]["number"] == 3
    assert len(document["prompts"]["sha256"]) == 64
    assert list(document["categories"]) == ["s", "l", "m"]
    assert document["settings"]["generation"]["max_new_tokens"] == 8
    assert document["versions"]["megacode"]
    lines = [json.loads(line) for line in (tmp_path / document["items_file"]).read_text().splitlines()]
    assert [line["id"] for line in lines] == ["short", "long", "mid"]
    for line in lines:
        assert line["a_first"] == line["b_first"] == line["outcome"]
        assert line["said_a_first"].startswith("Because") == (line["answer_a"] != line["answer_b"])


@slow
def test_a_judge_that_never_gives_a_verdict_is_a_failed_check(server, models_ab, prompts_file, tmp_path):
    server.behave = lambda body, number: chat("I cannot say.")
    with pytest.raises(VerificationError, match=r"none of the verdicts could be read.*'I cannot say.'") as caught:
        judge(*models_ab, server.url, None, prompts_file, tmp_path / "out.json", settings_in(tmp_path))
    assert caught.value.exit_code == 3
    assert json.loads((tmp_path / "out.json").read_text())["overall"]["invalid"] == 3


@slow
def test_the_command_makes_answers_first_and_judges_them_later_without_torch(server, models_ab, prompts_file, tmp_path):
    server.behave = longer_wins
    command = [*map(str, models_ab), "--prompts", str(prompts_file), "--cache", str(tmp_path / "cache")]
    command += ["--max-new-tokens", "8"]
    run = call("judge", *command, "--answers-only", "--device", "cpu", "--out", str(tmp_path / "answers.jsonl"))
    assert run.returncode == 0, run.stderr
    assert len((tmp_path / "answers.jsonl").read_text().splitlines()) == 3
    assert not server.seen
    command += ["--judge", server.url, "--out", str(tmp_path / "out.json")]
    run = call("judge", *command, program="import sys; sys.modules['torch'] = None; ")
    assert run.returncode == 0, run.stderr
    assert {"orders", "agree"} <= set(run.stdout.split())
    assert KEY not in run.stdout + run.stderr + (tmp_path / "out.json").read_text()
    run = call("judge", *command, "--json")
    assert run.returncode == 2
    assert "give --overwrite" in run.stderr
    run = call("judge", *command, "--json", "--overwrite")
    assert json.loads(run.stdout)["requests"]["sent"] == 1, "the list of models is asked, nothing else"
    run = call("judge", *command[:2])
    assert run.returncode == 2
    assert "no judge is named" in run.stderr


def call(*arguments: str, program: str = "") -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, client.KEY_VARIABLE: KEY, "no_proxy": "127.0.0.1", "COLUMNS": "160"}
    program += "from megacode.cli import main; main()"
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=HANG, check=False)


def test_results_lie_in_the_run_of_the_first_model(tmp_path):
    model = tmp_path / "run/hf/iter_0000010"
    model.mkdir(parents=True)
    (model / "megacode.json").write_text('{"name": "text"}')
    other = tmp_path / "other"
    assert default_out(model, other) == model.with_name("text@iter_0000010-vs-other.json")
    (tmp_path / "run/run.yaml").write_text("")
    assert default_out(model, other) == tmp_path / "run/eval/judge/text@iter_0000010-vs-other.json"


def test_requests_carry_both_answers_and_no_model_names():
    question = Question(Prompt("1", "why?"), "first", "second")
    body = request_body("judge-1", question, True, 64)
    assert places(body) == ("second", "first")
    assert body["model"] == "judge-1"


@slow
def test_answers_alone_need_no_judge(models_ab, prompts_file, tmp_path):
    told = make_answers(*models_ab, prompts_file, tmp_path / "x.jsonl", settings_in(tmp_path))
    assert told["b"]["answers"]["generated"] == 3
    assert json.loads((tmp_path / "x.jsonl").read_text().splitlines()[0])["answer_a"]


@slow
def test_a_model_with_a_chat_form_is_asked_in_it_and_another_form_is_another_model(models_ab, tmp_path):
    from transformers import AutoTokenizer

    model = tmp_path / "model"
    shutil.copytree(models_ab[0], model)
    before, generation = model_identity(model), Generation(4)
    assert answers(model, PROMPTS[:1], generation, kept(tmp_path, model, generation), device="cpu")[1] == 1
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<answer>"
    chat = _chat(tokenizer, str(model), plain=False)
    assert tokenizer.decode(_ids(tokenizer, "why?", chat, exported=True)) == "<user>why?<answer>"
    assert _chat(tokenizer, str(model), plain=True) is None
    assert tokenizer.decode(_ids(tokenizer, "why?", None, exported=True)) == PLAIN.format(prompt="why?")
    tokenizer.save_pretrained(model)
    assert model_identity(model) != before
    plain = Generation(4, plain=True)
    assert answers(model, PROMPTS[:1], plain, kept(tmp_path, model, plain), device="cpu")[1] == 1
    assert answers(model, PROMPTS[:1], generation, kept(tmp_path, model, generation), device="cpu")[1] == 1


@slow
def test_an_answer_in_a_chat_form_ends_where_its_turn_ends(models_ab, tmp_path):
    from transformers import AddedToken, AutoTokenizer

    model = tmp_path / "model"
    shutil.copytree(models_ab[0], model)
    tokenizer, generation = AutoTokenizer.from_pretrained(model), Generation(12)
    ask = "{% if add_generation_prompt %}<assistant>{% endif %}"
    form = "{% for m in messages %}<{{ m.role }}>{{ m.content }}END{% endfor %}" + ask
    tokenizer.chat_template = form.replace("END", "")
    tokenizer.save_pretrained(model)
    whole, _ = answers(model, PROMPTS[:1], generation, kept(tmp_path, model, generation), device="cpu")
    # The model writes this letter of itself: now it ends a turn.
    letter = next(letter for letter in whole[PROMPTS[0].id][1:] if "!" <= letter <= "~")
    tokenizer.add_tokens([AddedToken(letter, special=True, normalized=False)], special_tokens=True)
    tokenizer.chat_template = form.replace("END", "{% if m.role == 'assistant' %}" + letter + "{% endif %}")
    tokenizer.save_pretrained(model)
    cut, _ = answers(model, PROMPTS[:1], generation, kept(tmp_path, model, generation), device="cpu")
    text = whole[PROMPTS[0].id]
    assert cut[PROMPTS[0].id] == text[: text.index(letter)].strip()


@slow
def test_a_heading_ends_a_plain_answer_but_not_one_in_a_chat_form(models_ab, tmp_path, monkeypatch):
    from transformers import AutoTokenizer

    model = tmp_path / "model"
    shutil.copytree(models_ab[0], model)
    tokenizer, said = AutoTokenizer.from_pretrained(model), "Two steps.\n### First\nRead."
    tokenizer.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<answer>"
    tokenizer.save_pretrained(model)
    # A model that writes just this would have to be trained for it.
    monkeypatch.setattr("megacode.judge.answers._continue", lambda *_: [tokenizer(said)["input_ids"]])
    for generation, expected in ((Generation(4), said), (Generation(4, plain=True), "Two steps.")):
        found, _ = answers(model, PROMPTS[:1], generation, kept(tmp_path, model, generation), device="cpu")
        assert found == {PROMPTS[0].id: expected}


def test_waiting_threads_end_when_the_comparison_does(server, tmp_path):
    server.behave = lambda body, number: (503, {}, {"Retry-After": "30"})
    client = JudgeClient(server.url, tmp_path, Patience(longest_wait=60))
    threading.Timer(0.3, client.stop).start()
    start = time.monotonic()
    with pytest.raises(JudgeError, match="stopped"):
        client.chat({"model": "m"})
    assert time.monotonic() - start < 5


def test_a_key_over_plain_http_to_elsewhere_is_warned_of(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv(client.KEY_VARIABLE, KEY)
    JudgeClient("https://judge.example/v1", tmp_path)
    JudgeClient("http://127.0.0.1:1/v1", tmp_path)
    assert not caplog.records
    JudgeClient("http://judge.example/v1", tmp_path)
    assert "the API key is sent unencrypted over http to http://judge.example/v1" in caplog.text
    assert KEY not in caplog.text

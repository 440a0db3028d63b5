"""Training tokenizers: the same bytes in any division, reserved tokens that no text makes, and bytes per token."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from megacode.base.errors import ConfigError
from megacode.cli.data import script
from megacode.cli.data_tokenizer import show_comparison, show_training
from megacode.config.model import TokenizerConfig
from megacode.convert.tokenizer import export_tokenizer
from megacode.data.bytes_per_token import may_have_seen, measure
from megacode.data.fim_tokens import find_sentinels
from megacode.data.reserved_tokens import GROUPS, reserved_tokens
from megacode.data.text_draws import draw, sources_of
from megacode.data.tokenizer import Tokenizer, load_tokenizer
from megacode.data.train_tokenizer import train_tokenizer

KINDS = ["huggingface", "sentencepiece"]
OWN = "<my_token/2>"
RESERVED = (*reserved_tokens([*GROUPS]), OWN)
Write = Callable[[str, list[str]], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def make(name: str, texts: list[str]) -> Path:
        path = tmp_path / name
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
        return path

    return make


@pytest.fixture(scope="module", params=KINDS)
def hostile(request, texts, tmp_path_factory) -> Tokenizer:
    """A tokenizer trained on texts that are full of the names of its reserved tokens."""
    path = tmp_path_factory.mktemp("hostile")
    names = [f"{' '.join(RESERVED)} x{name}{name}y\n" for name in RESERVED] * 20
    file = path / "a.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in [*texts[:60], *names]))
    return train_tokenizer(request.param, [str(file)], 1200, path / "made", reserve=[OWN, *GROUPS]).tokenizer


def test_reserved_tokens_are_single_ids_that_no_text_makes(hostile) -> None:
    first = 1 if hostile.kind == "huggingface" else 3
    assert [hostile.special_ids[name] for name in RESERVED] == list(range(first, first + len(RESERVED)))
    assert len(RESERVED) > 15
    specials = set(hostile.special_ids.values())
    for text in [*(f"a {name}{name}b" for name in RESERVED), " ".join(RESERVED), "".join(RESERVED)]:
        ids = hostile.encode(text)
        assert specials.isdisjoint(ids)
        assert hostile.decode(ids) == text


def test_reserved_tokens_keep_their_ids_in_an_export(hostile, tmp_path) -> None:
    from transformers import AutoTokenizer

    export_tokenizer(hostile, tmp_path, 128)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert len(hostile.special_ids) > len(RESERVED)
    for name in RESERVED:
        assert theirs.encode(f"a{name}", add_special_tokens=False)[-1] == hostile.special_ids[name]
        assert theirs.decode([hostile.special_ids[name]], skip_special_tokens=True) == ""


def test_fill_in_the_middle_finds_the_reserved_sentinels(hostile) -> None:
    assert find_sentinels(hostile).marks == tuple(hostile.special_ids[name] for name in GROUPS["fim"])


def test_groups_come_in_a_fixed_order_and_once() -> None:
    assert reserved_tokens(["commits", OWN, "fim", OWN]) == (*GROUPS["fim"], *GROUPS["commits"], OWN)
    assert reserved_tokens(["markup", "code"]) == GROUPS["code"]
    assert reserved_tokens([]) == ()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("comits", "there is no group 'comits' of control tokens"),
        ("<|>", "is no name of a token"),
        ("<a b>", "is no name of a token"),
        ("<a>b>", "is no name of a token"),
        ("<unk>", "cannot be reserved"),
        ("</s>", "cannot be reserved"),
        ("<0x0A>", "cannot be reserved"),
        ("<|endoftext|>", "cannot be reserved"),
    ],
)
def test_what_cannot_be_reserved_is_refused(name, message) -> None:
    with pytest.raises(ConfigError, match=message.replace("|", r"\|")) as caught:
        reserved_tokens([name])
    assert caught.value.problems[0].where == "--reserve"


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_documents_give_the_same_files_in_any_order_and_division(kind, texts, write, tmp_path) -> None:
    code, text = texts[:60], texts[60:]
    write("code.jsonl", code)
    write("text.jsonl", text)
    for number in range(3):
        write(f"code_part{2 - number}.jsonl", code[::-1][number::3])
    made = []
    for name, glob in (("one", "code.jsonl"), ("two", "code_part*")):
        sources = sources_of([], [f"code=0.7:{tmp_path}/{glob}", f"text=0.3:{tmp_path}/text.jsonl"])
        train_tokenizer(kind, sources, 700, tmp_path / name, max_bytes=150_000, seed=4)
        made.append({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()})
    assert len(made[0]) >= 2
    assert made[0] == made[1]
    record = json.loads(made[0]["training.json"])
    assert [source["trained_bytes"] for source in record["sources"]] == [105_000, 45_000]


def test_weights_decide_what_is_learned(texts, write, tmp_path) -> None:
    write("code.jsonl", texts)
    write("odd.jsonl", [f"zebrafish {number}" for number in range(4000)])
    tokens = {}
    for weight in (0, 1):
        sources = sources_of([], [f"code=1:{tmp_path}/code.jsonl", f"odd={weight}:{tmp_path}/odd.jsonl"])
        made = train_tokenizer("huggingface", sources, 600, tmp_path / f"made{weight}", max_bytes=50_000)
        tokens[weight] = len(made.tokenizer.encode("zebrafish"))
        assert made.measured.bytes_per_token["odd"] is not None
    assert tokens[1] == 1 < tokens[0]


def test_sentencepiece_learns_from_texts_with_its_reserved_sign(write, tmp_path) -> None:
    texts = [f"wombat{number} \u2585 wombat quokka \u0000\t\n numbat " * 9 for number in range(60)]
    made = train_tokenizer("sentencepiece", [str(write("a.jsonl", texts))], 300, tmp_path / "made")
    assert len(made.tokenizer.encode(" wombat")) == 1
    assert made.tokenizer.decode(made.tokenizer.encode(texts[0])) == texts[0]


def test_bytes_per_token_are_those_of_the_held_out_texts(huggingface, sentencepiece, texts, write, tmp_path) -> None:
    write("a.jsonl", [text + "é" for text in texts])
    write("b.jsonl", [text[:500] for text in texts])
    drawn = draw(sources_of([], [f"a=1:{tmp_path}/a.jsonl", f"b=3:{tmp_path}/b.jsonl"]), ["text"], 0, 1)
    assert all(source.held_out for source in drawn)
    for config in (huggingface, sentencepiece):
        tokenizer = load_tokenizer(config)
        measured = measure(tokenizer, drawn)
        rates = {}
        for source in drawn:
            held_out = [b"".join(text).decode() for text in source.held_out]
            ids = sum(len(tokenizer.encode(text)) for text in held_out)
            assert measured.tokens[source.source.name] == ids
            rates[source.source.name] = sum(len(text.encode()) for text in held_out) / ids
        assert measured.bytes_per_token == pytest.approx(rates)
        assert measured.weighted == pytest.approx(1 / (0.25 / rates["a"] + 0.75 / rates["b"]))


def test_the_comparison_command_repeats_the_figures_of_training(corpus, huggingface, tmp_path, capfd) -> None:
    source = ["--source", f"code=1:{corpus}"]
    given = [*source, "--vocab-size", "500", "--output", str(tmp_path / "made"), "--seed", "3", "--json"]
    assert script("tokenizer", "tools/train_tokenizer.py", given) == 0
    trained = json.loads(capfd.readouterr().out)
    both = ["--tokenizer", str(tmp_path / "made"), huggingface.path, *source]
    assert script("compare-tokenizers", "compare", [*both, "--seed", "3", "--json"]) == 0
    printed = capfd.readouterr()
    compared = json.loads(printed.out)
    assert compared["sources"] == trained["sources"]
    assert compared["tokenizers"][0] == trained["tokenizers"][0]
    assert [one["trained_with_seed"] for one in compared["tokenizers"]] == [3, 0]
    assert "huggingface/tokenizer.json: it was trained with --seed 0" in printed.err
    assert script("compare-tokenizers", "compare", both) == 0
    shown = capfd.readouterr().out
    assert all(word in shown for word in ("#1", "#2", "code", "1,000", "500"))


def test_other_keys_than_those_of_training_are_told(huggingface, tmp_path) -> None:
    tokenizer = load_tokenizer(huggingface)
    assert may_have_seen(tokenizer, 0, ["text"]) is None
    assert "--json-keys text" in str(may_have_seen(tokenizer, 0, ["body"]))
    alone = tmp_path / "tokenizer.json"
    alone.write_bytes(Path(huggingface.path, "tokenizer.json").read_bytes())
    assert may_have_seen(load_tokenizer(TokenizerConfig(kind="huggingface", path=str(alone))), 9, []) is None


def test_tokenizers_are_trained_on_standard_input(corpus, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(corpus.read_bytes())))
    made = train_tokenizer("huggingface", ["-"], 600, tmp_path / "piped")
    again = train_tokenizer("huggingface", [str(corpus)], 600, tmp_path / "read")
    assert made.tokenizer.hash == again.tokenizer.hash


def test_outputs_among_inputs_and_empty_work_are_refused(corpus, tmp_path) -> None:
    inside = tmp_path / "in"
    inside.mkdir()
    (inside / "a.jsonl").write_bytes(corpus.read_bytes())
    cases = [
        ([str(inside)], inside / "tokenizer", {}, "it lies in the input"),
        ([str(inside / "training.json")], inside, {}, "it exists and contains a.jsonl"),
        ([str(inside / "a.jsonl")], tmp_path / "out", {"max_bytes": 0}, "there is nothing to train on"),
        (sources_of([], [f"a=0:{inside}"]), tmp_path / "out", {}, "all weights are 0"),
        ([str(inside / "a.jsonl")], inside / "a.jsonl" / "x", {}, "is a file, not a directory"),
        ([str(inside / "a.jsonl")], tmp_path / "out", {"reserve": ["nothing"]}, "there is no group"),
    ]
    for inputs, output, more, message in cases:
        with pytest.raises(ConfigError, match=message):
            train_tokenizer("huggingface", inputs, 500, output, **more)
    own = tmp_path / "own"
    own.mkdir()
    (own / "training.json").write_bytes(corpus.read_bytes())
    with pytest.raises(ConfigError, match=r"the input .*training\.json lies in it"):
        train_tokenizer("huggingface", [str(own / "training.json")], 500, own, overwrite=True)
    assert (own / "training.json").read_bytes() == corpus.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "own"]


def test_a_vocabulary_without_room_for_the_reserved_tokens_is_refused(corpus, tmp_path) -> None:
    with pytest.raises(ConfigError, match="a vocabulary of 270 is too small") as caught:
        train_tokenizer("huggingface", [str(corpus)], 270, tmp_path / "out", reserve=["notebooks", "commits", "code"])
    assert caught.value.problems[0].fix == "use 272 or more"


def test_tables_are_whole_at_80_columns(huggingface, corpus, tmp_path) -> None:
    long = "a-name-much-longer-than-any-column-of-80-would-like"
    (tmp_path / "b.jsonl").write_text('{"text": "alone here"}\n')
    drawn = draw(sources_of([], [f"{long}=0.333333333:{corpus}", f"b=1:{tmp_path}/b.jsonl"]), ["text"], 0, 0)
    measured = measure(load_tokenizer(huggingface), drawn)
    rate = f"{measured.bytes_per_token[long]:.3f}"

    def shown(show: Callable[[Console], None]) -> str:
        console = Console(file=io.StringIO(), width=80, markup=False)
        show(console)
        assert isinstance(console.file, io.StringIO)
        return console.file.getvalue()

    comparison = shown(lambda console: show_comparison(drawn, [measured] * 5, console))
    training = shown(lambda console: show_training(drawn, [measured], console))
    for page, times in ((comparison, 5), (training, 1)):
        assert max(map(len, page.splitlines())) <= 80
        assert "…" not in page
        assert page.count(rate) == times
        assert "0.333333" in page
        # Nothing of b is held out, so there is no mean either.
        assert [line.split().count("-") for line in page.splitlines()][-2:] == [times, times]
    assert "".join(huggingface.path.split("/")[-2:]) in comparison.replace("\n", "").replace("/", "")
    assert comparison.count("1,000") == 5

"""Fill in the middle: what a sample reads can be put together again, and depends on its place alone."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

from megacode.base.errors import CheckpointError, ConfigError, DataError
from megacode.config.config_file import dump_config, validate
from megacode.config.model import FimTokens, TokenizerConfig
from megacode.data import dali
from megacode.data.device_loader import DeviceLoader
from megacode.data.fim import FillInMiddle, WindowPiece
from megacode.data.fim_tokens import check_stored, find_sentinels
from megacode.data.indexed import IndexedDatasetWriter
from megacode.data.loader import Loader
from megacode.data.part_encoders import WholeParts, part_encoder
from megacode.data.prefetch import Prefetch
from megacode.data.source_stream import window_tokens
from megacode.data.tokenizer import load_tokenizer
from megacode.data.windows import open_source, open_streams, stream_sizes
from megacode.plan.batch import BatchSchedule
from megacode.plan.phases import build_schedule, prove_past
from megacode.planning.run_plan import plan_run

LENGTH = 256


@pytest.fixture(scope="module")
def tokenizer(huggingface):
    return load_tokenizer(huggingface)


@pytest.fixture(scope="module")
def encoder(tokenizer):
    return part_encoder(tokenizer)


def fim_of(tokenizer, encoder, rate=1.0, spm_rate=0.5, seed=1, source="code"):
    return FillInMiddle(rate, spm_rate, seed, source, find_sentinels(tokenizer), lambda: encoder)


def window_of(tokenizer, texts):
    """Return the tokens of texts, each with its end, and their pieces."""
    tokens, pieces = [], []
    for number, text in enumerate(texts):
        first = len(tokens)
        tokens += [*tokenizer.encode(text), tokenizer.eod]
        pieces.append(WindowPiece(number, 0, first, len(tokens) - 1, True))
    return np.array(tokens, dtype=np.uint16), pieces


def parse(tokenizer, tokens):
    """Return form, prefix, middle and suffix of a rearranged piece, as ids; None: it is as stored."""
    marks = find_sentinels(tokenizer)
    places = [[k for k, token in enumerate(tokens) if token == mark] for mark in marks.marks]
    if places == [[], [], []]:
        return None
    (prefix,), (middle,), (suffix,) = places
    if suffix == prefix + 1:
        return "spm", tokens[middle + 1 :], None, tokens[suffix + 1 : middle]
    return "psm", tokens[prefix + 1 : suffix], tokens[middle + 1 :], tokens[suffix + 1 : middle]


def read_text(tokenizer, piece):
    """Return what a piece says: its text up to the cut end of the suffix, and the suffix; None: it is as stored."""
    body = [int(token) for token in piece]
    end = body.index(tokenizer.eod)
    assert set(body[end:]) == {tokenizer.eod}, "after the end token there are only end tokens"
    parsed = parse(tokenizer, body[:end])
    if parsed is None:
        return None
    _, prefix, middle, suffix = parsed
    before = tokenizer.decode([*prefix, *(middle or [])])
    return before, tokenizer.decode(suffix)


TEXTS = st.lists(
    st.text(st.sampled_from("abcdef  \n\t.;=()1\u00e9\u4e2d\U0001f4bb"), min_size=1, max_size=200),
    min_size=1,
    max_size=6,
)


@given(TEXTS, st.sampled_from([0.0, 0.5, 1.0]), st.integers(0, 10_000))
def test_prefix_middle_and_suffix_are_the_piece_again_up_to_the_cut_end_of_the_suffix(
    tokenizer, encoder, texts, spm_rate, seed
):
    tokens, pieces = window_of(tokenizer, texts)
    read = fim_of(tokenizer, encoder, 1.0, spm_rate, seed).apply(tokens, pieces, 0)
    assert len(read.tokens) == len(tokens)
    for text, piece in zip(texts, pieces, strict=True):
        made = read.tokens[piece.first : piece.last + 1]
        parts = read_text(tokenizer, made)
        assert (parts is not None) == (piece.document in read.fim_documents)
        if parts is None:
            assert made.tolist() == tokens[piece.first : piece.last + 1].tolist()
            continue
        said = "".join(parts)
        assert text.startswith(said)
        assert len(tokenizer.encode(text[len(said) :])) <= 3 + 12, "more was cut than the sentinels and divided words"
        form, *_ = parse(tokenizer, made.tolist())
        # PSM without a prefix looks like SPM.
        assert form in {0.0: ("psm", "spm"), 1.0: ("spm",), 0.5: ("psm", "spm")}[spm_rate]
        fillers = Counter(made.tolist())[tokenizer.eod] - 1
        hidden = 0 if read.loss_mask is None else int((read.loss_mask[piece.first : piece.last] == 0).sum())
        assert fillers == hidden, "every filler, and nothing else, is no label"
    assert read.fim_tokens == sum(p.last + 1 - p.first for p in pieces if p.document in read.fim_documents)


def test_both_forms_by_hand(tokenizer, encoder):
    text = "def add(a, b):\n    return a + b\n\n\ndef sub(a, b):\n    return a - b\n"
    tokens, pieces = window_of(tokenizer, [text])
    before, hole, after = (tokenizer.id_of(f"<|fim_{role}|>") for role in ("prefix", "middle", "suffix"))
    found = {}
    for spm_rate, form in ((0.0, "psm"), (1.0, "spm")):
        made = fim_of(tokenizer, encoder, 1.0, spm_rate).apply(tokens, pieces, 0).tokens.tolist()
        found[form] = parse(tokenizer, made[: made.index(tokenizer.eod)])
        assert made[0] == before
    _, prefix, middle, suffix = found["psm"]
    assert (tokenizer.decode(prefix + middle) + tokenizer.decode(suffix)) in text
    assert found["spm"][1] == prefix + middle
    assert found["spm"][3] == suffix
    low = len(tokenizer.decode(prefix))
    assert middle == tokenizer.encode(text[low : low + len(tokenizer.decode(middle))])
    assert hole != after


def test_the_cuts_are_kept_from_release_to_release(tokenizer, encoder):
    fim = fim_of(tokenizer, encoder, 0.5, 0.5, seed=1234)
    chosen = [fim._choice(document, 0) for document in range(8)]
    assert chosen == [False, None, True, None, None, True, False, True]
    assert list(fim._cuts(1000, WindowPiece(3, 0, 0, 9, True), 1)) == [(348, 470), (819, 906), (625, 693)]


@pytest.mark.parametrize("rate", [0.0, 0.2, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("spm_rate", [0.0, 0.3, 1.0])
def test_rates_are_kept(tokenizer, encoder, rate, spm_rate):
    fim = fim_of(tokenizer, encoder, rate, spm_rate)
    forms = [fim._choice(document, epoch) for document in range(2000) for epoch in range(2)]
    chosen = [form for form in forms if form is not None]
    assert abs(len(chosen) / 4000 - rate) <= 0.025 * (0 < rate < 1)
    if chosen:
        assert abs(np.mean(chosen) - spm_rate) <= 0.06 * (0 < spm_rate < 1)


def test_cuts_are_uniform_in_characters(tokenizer, encoder):
    fim = fim_of(tokenizer, encoder)
    cuts = np.array(
        [cut for k in range(1000) for pair in fim._cuts(9, WindowPiece(k, 0, 0, 9, True), 0) for cut in pair]
    )
    shares = np.bincount(cuts, minlength=10) / len(cuts)
    assert len(shares) == 10
    assert abs(shares - 0.1).max() < 0.015


def test_the_choice_depends_on_seed_source_document_and_epoch(tokenizer, encoder):
    def choices(epoch=0, **changes):
        fim = fim_of(tokenizer, encoder, 0.5, **changes)
        return [fim._choice(document, epoch) for document in range(200)]

    others = [choices(), choices(1), choices(seed=2), choices(source="text")]
    assert choices() == others[0]
    assert all(one != other for one, other in pairwise(others))
    assert len({tuple(map(str, other)) for other in others}) == 4


def test_what_cannot_be_divided_is_read_as_stored(tokenizer, encoder):
    fim = fim_of(tokenizer, encoder)
    hole = tokenizer.id_of("<|fim_middle|>")
    tokens, pieces = window_of(tokenizer, ["x = 1\n" * 30, "short", "y = 2\n" * 30])
    for token in (hole, tokenizer.eod):
        changed = tokens.copy()
        changed[pieces[2].first + 5] = token
        read = fim.apply(changed, pieces, 0)
        assert read.fim_documents == (0,)
        assert read.tokens[pieces[1].first :].tolist() == changed[pieces[1].first :].tolist()
    assert fim.apply(tokens, pieces, 0).fim_documents == (0, 2)
    damaged = np.array([*[tokenizer.encode("\u4e2d")[0]] * 9, *tokenizer.encode("one two three four " * 9)], np.uint16)
    whole = fim_of(tokenizer, WholeParts(tokenizer))
    assert whole.apply(damaged, [WindowPiece(0, 0, 0, len(damaged) - 1, False)], 0).fim_documents == ()


def test_a_document_over_a_border_is_rearranged_on_both_sides_or_on_none(tokenizer, encoder):
    fim = fim_of(tokenizer, encoder, 0.5)
    body = np.array(tokenizer.encode("value = compute(value, 3)\n" * 40), dtype=np.uint16)
    middle = len(body) // 2
    forms, different = [], 0
    for document in range(60):
        left = fim.apply(body[:middle], [WindowPiece(document, 0, 0, middle - 1, False)], 0)
        right = fim.apply(body[middle:], [WindowPiece(document, middle, 0, len(body) - middle - 1, True)], 0)
        assert left.fim_documents == right.fim_documents
        forms.append(bool(left.fim_documents))
        if left.fim_documents:
            one, other = (parse(tokenizer, read.tokens.tolist()) for read in (left, right))
            assert one[0] == other[0]
            different += len(one[1]) != len(other[1])
    assert 15 < sum(forms) < 45
    assert different > 10, "each side has cuts of its own"


@pytest.fixture
def data(tokenizer, texts, tmp_path):
    """Two sources of real text; `code` has documents longer than a window, `text` has empty and short ones."""
    prefixes = {}
    for name, size in (("code", 4000), ("text", 300)):
        # Characters of several tokens: cutting one off whole leaves a place to fill.
        chosen = [text[:size] if k % 3 else "\u65e5\u672c\u8a9e x\n" * (size // 7) for k, text in enumerate(texts[:40])]
        documents = [[*tokenizer.encode(text), tokenizer.eod] for text in chosen]
        if name == "text":
            documents[3:3] = [[], [tokenizer.eod], []]
        prefixes[name] = str(tmp_path / name)
        with IndexedDatasetWriter(prefixes[name], np.uint16) as writer:
            writer.add(np.concatenate(documents), np.array([len(document) for document in documents]))
    return prefixes


@pytest.fixture
def run_of(data, huggingface, make_config):
    def make(fim_rate=0.5, isolate=False, **changes):
        train = {"seq_length": LENGTH, "isolate_documents": isolate, **changes.pop("train", {})}
        phases = [{"name": "p", "samples": 60, "blend": {"code": 0.5, "text": 0.5}}]
        config = make_config(data, phases=phases, train=train, tokenizer=huggingface.model_dump(exclude_none=True))
        code = config.sources["code"].model_copy(update={"fim_rate": fim_rate, **changes})
        return config.model_copy(update={"sources": {**config.sources, "code": code}})

    return make


def loader_of(config, kind="default", rank=0, size=1):
    streams = open_streams(config)
    schedule = build_schedule(config, stream_sizes(streams))
    arguments = (config, schedule, BatchSchedule(config, schedule), streams, rank, size)
    kinds = {
        "default": Loader, "device": DeviceLoader, "prefetch": lambda *all: Prefetch(Loader(*all), 3),
        "dali": lambda *all: dali.DaliLoader(*all, ahead=1),
    }  # fmt: skip
    return kinds[kind](*arguments), schedule, arguments[2]


def rows_of(config, kind="default", size=1, clocks=None):
    """Return tokens, labels, mask and count of each sample over all ranks."""
    rows = {}
    for rank in range(size):
        loader, schedule, batches = loader_of(config, kind, rank, size)
        walk = [0]
        while (after := batches.next(walk[-1])) < schedule.total_samples:
            walk.append(after)
        for clock in clocks or walk:
            for batch in loader.batch(clock):
                counts = torch.zeros(len(batch.samples)) if batch.fim_tokens is None else batch.fim_tokens
                for row, sample in enumerate(batch.samples.tolist()):
                    if sample >= 0:
                        parts = (batch.tokens[row], batch.labels[row], batch.loss_mask[row], counts[row])
                        rows[sample] = [part.tolist() for part in parts]
        loader.close()
    return rows


WITH_DALI = pytest.param("dali", marks=pytest.mark.skipif(not dali.installed(), reason="DALI is not installed"))


@pytest.mark.parametrize("isolate", [False, True])
@pytest.mark.parametrize("kind", ["default", "device", "prefetch", WITH_DALI])
def test_every_loader_on_any_layout_reads_what_window_tokens_says(kind, isolate, run_of):
    config = run_of(isolate=isolate)
    schedule = loader_of(config)[1]
    expected, transformed, fillers = {}, 0, 0
    for sample in range(60):
        draw = schedule.draw(sample)
        stream = open_source(config, draw.source)
        read = window_tokens(stream, draw.first_token, draw.epoch, isolate)
        mask = [1.0] * LENGTH if read.loss_mask is None else read.loss_mask.tolist()
        expected[sample] = [read.tokens[:-1].tolist(), read.tokens[1:].tolist(), mask, float(read.fim_tokens)]
        transformed += len(read.fim_documents)
        fillers += 0 if read.loss_mask is None or isolate else mask.count(0.0)
        stored = stream.window(draw.first_token)
        assert np.array_equal(stored, read.tokens) == (not read.fim_documents)
        assert draw.source == "code" or not read.fim_documents
    assert transformed > 10
    assert isolate or fillers > 3
    for size, micro in ((1, 2), (2, 1)) if kind != "default" else ((1, 4), (2, 2), (4, 1)):
        train = {"micro_batch_size": micro, "global_batch_size": 4}
        assert rows_of(run_of(isolate=isolate, train=train), kind, size) == expected
    assert rows_of(config, kind, clocks=[40, 8, 40]) == {k: expected[k] for k in [*range(8, 12), *range(40, 44)]}


def test_without_a_rate_windows_are_views_of_the_file(run_of):
    config = run_of(fim_rate=0.0)
    stream = open_source(config, "code")
    assert stream.fim is None
    read = window_tokens(stream, 5, 0)
    assert np.shares_memory(read.tokens, stream.data._data)
    assert (read.loss_mask, read.fim_documents, read.fim_tokens) == (None, (), 0)
    assert all(
        "form" not in facts for link in loader_of(config)[1].fingerprints() for facts in link["sources"].values()
    )


def test_held_out_windows_are_read_as_stored(run_of):
    config = run_of(fim_rate=1.0)
    loader, *_ = loader_of(config)
    stream = open_source(config, "code")
    batches = list(loader.validation_batches("code"))
    rows = [(batch, row) for batch in batches for row in range(len(batch.samples)) if batch.samples[row] >= 0]
    assert len(rows) == stream.validation_windows > 0
    for batch, row in rows:
        window = stream.window(stream.validation_first_token(int(batch.samples[row])))
        assert batch.labels[row].tolist() == window[1:].tolist()


def test_pieces_cover_a_window_once(run_of):
    looked_at = 0
    for name in ("code", "text"):
        stream = open_source(run_of(), name)
        firsts = range(0, stream.train_tokens - LENGTH, 97)
        assert len(firsts) > 5
        for first in firsts:
            pieces = list(stream.pieces(first))
            looked_at += len(pieces)
            assert [piece.first for piece in pieces[1:]] == [piece.last + 1 for piece in pieces[:-1]]
            assert (pieces[0].first, pieces[-1].last) == (0, LENGTH)
            for piece in pieces:
                begin, end = stream.data.document_bounds(piece.document)
                assert begin + piece.offset == first + piece.first
                assert piece.ends == (end == first + piece.last)
    assert looked_at > 2


def test_a_changed_rate_is_a_changed_past(run_of):
    def chain(**changes):
        return loader_of(run_of(**changes))[1]

    former = chain().fingerprints()
    prove_past(chain(), former, 4)
    for changes, now in (
        ({"fim_rate": 0.0}, "as stored"),
        ({"fim_rate": 0.6}, "with fim_rate 0.6, fim_spm_rate 0.5"),
        ({"fim_spm_rate": 0.1}, "with fim_rate 0.5, fim_spm_rate 0.1"),
    ):
        with pytest.raises(CheckpointError, match=r"'code' was read with fim_rate 0\.5, fim_spm_rate 0\.5") as caught:
            prove_past(chain(**changes), former, 4)
        assert f"would now be read {now}" in str(caught.value)
        assert "restore sources.code.fim_rate" in caught.value.problems[0].fix
        assert len(caught.value.problems) == 1


def test_other_sentinels_are_a_changed_past(run_of):
    config = run_of()
    swapped = FimTokens(prefix="<|fim_suffix|>", middle="<|fim_middle|>", suffix="<|fim_prefix|>")
    changed = config.model_copy(update={"tokenizer": config.tokenizer.model_copy(update={"fim": swapped})})
    with pytest.raises(CheckpointError, match=r"sentinels 1, 2, 3 and would now be read .* sentinels 3, 2, 1"):
        prove_past(loader_of(changed)[1], loader_of(config)[1].fingerprints(), 4)
    spelt = FimTokens(prefix="<|fim_prefix|>", middle="<|fim_middle|>", suffix="<|fim_suffix|>")
    same = config.model_copy(update={"tokenizer": config.tokenizer.model_copy(update={"fim": spelt})})
    assert loader_of(same)[1].fingerprints() == loader_of(config)[1].fingerprints()


def test_the_plan_says_what_is_expected(run_of):
    document = plan_run(run_of())
    row = document["sources"]["code"]
    assert row["form"] == {"rate": 0.5, "spm_rate": 0.5, "sentinels": [1, 2, 3]}
    assert row["fim_tokens"] == row["samples"] * LENGTH // 2
    assert document["sources"]["text"]["form"] is None
    assert not document["warnings"]


def test_a_data_set_that_holds_sentinels_is_refused(run_of, data, tokenizer):
    with IndexedDatasetWriter(data["code"], np.uint16) as writer:
        tokens = np.full(5000, 50)
        tokens[2500] = tokenizer.id_of("<|fim_suffix|>")
        writer.add(tokens, np.full(50, 100))
    with pytest.raises(DataError, match="already holds token 3, a sentinel") as caught:
        open_streams(run_of())
    assert caught.value.problems[0].where == "sources.code.fim_rate"
    assert open_streams(run_of(fim_rate=0.0))


def test_a_sentinel_must_fit_the_data_set(tokenizer):
    large = find_sentinels(tokenizer)._replace(middle=70_000)
    with pytest.raises(DataError, match="its tokens are uint16, which cannot hold the sentinel 70000"):
        check_stored("code", large, np.dtype("uint16"), iter(()))
    check_stored("code", large, np.dtype("int32"), iter([np.arange(4, 99)]))


def test_sentinels_are_found_or_named(tokenizer, huggingface, sentencepiece):
    found = find_sentinels(tokenizer)
    assert found.marks == (1, 2, 3)
    assert found.eod == tokenizer.eod == 0
    assert find_sentinels(load_tokenizer(sentencepiece)).marks
    named = FimTokens(prefix="<|fim_suffix|>", middle="<|fim_middle|>", suffix="<|fim_prefix|>")
    assert find_sentinels(tokenizer, named).marks == (3, 2, 1)


@pytest.mark.parametrize(
    ("names", "where", "what"),
    [
        (("<pre>", "<|fim_middle|>", "<|fim_suffix|>"), "tokenizer.fim.prefix", "'<pre>' is not a token of"),
        (("<|endoftext|>", "<|fim_middle|>", "<|fim_suffix|>"), "tokenizer.fim.prefix", "is the token that ends"),
        (("<|fim_middle|>", "<|fim_middle|>", "<|fim_suffix|>"), "tokenizer.fim", "are the same token"),
    ],
)
def test_sentinels_that_cannot_be_used_are_refused(tokenizer, names, where, what):
    named = FimTokens(**dict(zip(("prefix", "middle", "suffix"), names, strict=True)))
    with pytest.raises(ConfigError, match=what) as caught:
        find_sentinels(tokenizer, named)
    assert caught.value.problems[0].where == where


class Bare:
    """A tokenizer without sentinels or an end token, which puts a space before each text, as Llama's does."""

    path, eod = "bare", None

    def __init__(self, names=()):
        self.names = list(names)

    def id_of(self, token):
        return self.names.index(token) + 5 if token in self.names else None

    def encode(self, text):
        return [text]

    def decode(self, ids):
        return ids[0].removeprefix(" ")


def test_a_tokenizer_without_sentinels_end_or_faithful_parts_is_refused():
    with pytest.raises(ConfigError, match="has no tokens for fill in the middle of a known family") as caught:
        find_sentinels(Bare())
    assert "tokenizer.fim: {prefix:" in caught.value.problems[0].fix
    with pytest.raises(ConfigError, match="no end-of-document token") as caught:
        find_sentinels(Bare(["<fim_prefix>", "<fim_middle>", "<fim_suffix>"]))
    assert "does not give ' x' back" in str(caught.value)


def test_without_a_tokenizer_there_is_no_fill_in_the_middle(run_of):
    raw = yaml.safe_load(dump_config(run_of(fim_rate=0.0)))
    del raw["tokenizer"]
    assert validate(raw, "x").tokenizer is None
    raw["sources"]["code"]["fim_rate"] = 0.5
    with pytest.raises(ConfigError, match="fill in the middle needs a tokenizer") as caught:
        validate(raw, "x")
    assert caught.value.problems[0].where.endswith("sources.code.fim_rate")


def test_a_run_is_planned_before_its_tokenizer_is_there(run_of, tmp_path):
    absent = TokenizerConfig(kind="huggingface", path=str(tmp_path / "later"))
    document = plan_run(run_of().model_copy(update={"tokenizer": absent}))
    assert document["sources"]["code"]["form"] == {"rate": 0.5, "spm_rate": 0.5, "sentinels": None}

"""Sources with loss masks: which labels count at every border of a window, and the order of packed windows."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megacode.base.errors import CheckpointError, ConfigError, DataError
from megacode.config.config_file import validate
from megacode.data import dali
from megacode.data import manifest as manifests
from megacode.data.contamination import _look, _Past
from megacode.data.device_loader import DeviceLoader
from megacode.data.indexed import IndexedDatasetWriter
from megacode.data.loader import Loader
from megacode.data.ngram_runs import runs_of
from megacode.data.prefetch import Prefetch
from megacode.data.source_checks import notes
from megacode.data.source_stream import window_tokens
from megacode.data.windows import open_source, open_streams, source_sizes, stream_sizes
from megacode.plan.batch import BatchSchedule
from megacode.plan.phases import build_schedule, prove_past
from megacode.planning.order import order_rows, seen_rows
from megacode.planning.run_plan import make_plan
from tests.data.masked import bits, write_masked, write_packed

HERE = {"deadline": None, "suppress_health_check": [HealthCheck.function_scoped_fixture]}
SIZES = st.lists(st.lists(st.integers(1, 8), min_size=1, max_size=4), min_size=3, max_size=12)


def fitted(windows: list[list[int]], length: int) -> list[list[int]]:
    """Return conversations that fit their windows; what does not fit is left out."""
    found = []
    for sizes in windows:
        found.append([])
        for size in sizes:
            if sum(found[-1]) + size <= length:
                found[-1].append(size)
    return found


@settings(max_examples=15, **HERE)
@given(windows=SIZES, length=st.integers(8, 13), seed=st.integers(0, 99), held=st.sampled_from([0.0, 0.2, 0.4]))
def test_every_packed_window_is_read_once_an_epoch_and_no_conversation_is_cut(
    windows, length, seed, held, make_config, tmp_path
) -> None:
    prefix = write_packed(tmp_path / "chat", fitted(windows, length), length, seed)
    config = make_config(
        {"chat": {"path": prefix, "loss": "answers"}},
        seed=seed,
        validation={"fraction": held, "samples": 100},
        phases=[{"name": "p", "samples": 40, "blend": {"chat": 1}}],
        train={"seq_length": length, "global_batch_size": 1, "micro_batch_size": 1},
    )
    stream = open_source(config, "chat")
    schedule = build_schedule(config, source_sizes(config))
    total, order = len(windows), schedule.orders["chat"]
    stored = np.fromfile(f"{prefix}.bin", np.uint16)
    mask = bits(prefix, len(stored))
    # The held-out part is whole windows, at least as many as were asked for.
    assert stream.held_out_from == order.windows * length
    assert (total - order.windows) * length >= held * len(stored) > (total - order.windows - 1) * length - 1e-9
    assert stream.validation_windows == total - order.windows
    draws = [schedule.draw(sample) for sample in range(40)]
    epochs = Counter((draw.epoch, draw.window) for draw in draws)
    assert set(epochs.values()) == {1}
    for epoch in range(40 // order.windows):
        assert sorted(window for number, window in epochs if number == epoch) == list(range(order.windows))
    count = stream.validation_windows
    held_out = [(stream.held_out_first_token(k, count) // length, None) for k in range(count)]
    for window, epoch in [*((draw.window, draw.epoch) for draw in draws), *held_out]:
        first = window * length
        read = window_tokens(stream, first, epoch)
        assert read.tokens[:-1].tolist() == stored[first : first + length].tolist()
        starts = set(np.cumsum([0, *(size for size in fitted(windows, length)[window])]).tolist())
        expected = [mask[first + i + 1] * (i + 1 not in starts) for i in range(length - 1)]
        assert read.loss_mask.tolist() == [*expected, 0]
        # Whole documents: each begins and ends in the window.
        pieces = list(stream.pieces(first))
        assert all(piece.offset == 0 and piece.ends for piece in pieces)
        assert (pieces[0].first, pieces[-1].last) == (0, length - 1)
        assert stream.documents_of(first) == (pieces[0].document, pieces[-1].document)
    for draw in draws[:5]:
        document = stream.documents_of(draw.first_token)[0]
        seen = [row["sample"] for row in seen_rows(config, "chat", document)]
        assert seen == [other.sample for other in draws if other.window == draw.window]


@settings(max_examples=40, **HERE)
@given(lengths=st.lists(st.integers(1, 30), min_size=8, max_size=30), seed=st.integers(0, 99), isolate=st.booleans())
def test_a_label_counts_if_its_bit_is_set_wherever_the_window_begins(
    lengths, seed, isolate, make_config, tmp_path
) -> None:
    tokens = np.random.default_rng(seed).integers(0, 1000, sum(lengths)).tolist()
    counted = (np.random.default_rng(seed + 1).random(len(tokens)) < 0.3).tolist()
    prefix = write_masked(tmp_path / "set", tokens, lengths, counted)
    train = {"seq_length": 3, "isolate_documents": isolate}
    config = make_config(
        {"set": {"path": prefix, "loss": "answers"}},
        train=train,
        validation={"fraction": 0},
        phases=[{"name": "p", "samples": 40, "blend": {"set": 1}}],
    )
    stream, schedule = open_source(config, "set"), build_schedule(config, source_sizes(config))
    starts = set(np.cumsum([0, *lengths]).tolist())
    for sample in range(40):
        draw = schedule.draw(sample)
        read = window_tokens(stream, draw.first_token, draw.epoch, isolate)
        labels = range(draw.first_token + 1, draw.first_token + 4)
        assert read.tokens.tolist() == tokens[draw.first_token : draw.first_token + 4]
        assert read.loss_mask.tolist() == [counted[t] and not (isolate and t in starts) for t in labels]
    plain = config.model_copy(update={"sources": {"set": config.sources["set"].model_copy(update={"loss": "all"})}})
    assert window_tokens(open_source(plain, "set"), 0, 0).loss_mask is None
    assert build_schedule(plain, source_sizes(plain)).draws(np.arange(40)).first_token.tolist() == (
        schedule.draws(np.arange(40)).first_token.tolist()
    )


@pytest.fixture
def mixed(make_config, write_dataset, tmp_path):
    """A run whose last phases read packed conversations beside running text, and then alone."""
    windows = [[3, 5], [8], [2, 2, 2], [7], [4, 4], [1, 1, 5], [6], [8], [5, 3], [2, 6]]
    chat = write_packed(tmp_path / "chat", windows, 8, 5)
    text = write_dataset(np.random.default_rng(1).integers(1, 25, 40).tolist(), "text")

    def make(**changes):
        return make_config(
            {"chat": {"path": chat, "loss": "answers"}, "text": text},
            phases=[
                {"name": "text", "samples": 24, "blend": {"text": 1}},
                {"name": "cooldown", "samples": 16, "blend": {"text": 0.8, "chat": 0.2}},
                {"name": "tuning", "samples": 21, "blend": {"chat": 1}},
            ],
            train={"seq_length": 8, "global_batch_size": 8, "micro_batch_size": 2},
            **changes,
        )

    return make


def loader(config, kind=Loader, dp_rank=0, dp_size=1):
    streams = open_streams(config)
    schedule = build_schedule(config, stream_sizes(streams))
    return kind(config, schedule, BatchSchedule(config, schedule), streams, dp_rank, dp_size)


def test_documents_are_isolated_in_the_phases_that_read_packed_windows(mixed) -> None:
    rows = loader(mixed())
    assert all(batch.cu_seqlens is None for batch in rows.batch(0))
    for clock in (24, 40):
        batches = rows.batch(clock)
        assert all(batch.cu_seqlens is not None for batch in batches)
        for batch in batches:
            for row, source in enumerate(batch.source_ids.tolist()):
                if source == 1:  # text keeps its positions, as before
                    assert batch.position_ids[row].tolist() == list(range(8))
                    assert batch.loss_mask[row].tolist() == [1.0] * 8
                else:
                    assert batch.loss_mask[row, -1] == 0
    assert [batch.cu_seqlens is None for batch in rows.validation_batches("text")] == [True] * 2
    assert [batch.cu_seqlens is None for batch in rows.validation_batches("chat")] == [False]


@pytest.mark.parametrize(
    "kind",
    [
        "device",
        "prefetch",
        pytest.param("dali", marks=pytest.mark.skipif(not dali.installed(), reason="DALI is not installed")),
    ],
)
@pytest.mark.parametrize("size", [1, 2, 4])
def test_all_loaders_and_layouts_give_the_same_labels_and_masks(kind, size, mixed) -> None:
    config = mixed()
    make = {"device": DeviceLoader, "prefetch": lambda *a: Prefetch(Loader(*a), 1), "dali": dali.DaliLoader}[kind]
    one = loader(config)
    others = [loader(config, make, rank, size) for rank in range(size)]
    for clock in (0, 16, 24, 32, 40, 56):
        rows = [by_sample(batch) for batch in one.batch(clock)]
        found = [by_sample(batch) for other in others for batch in other.batch(clock)]
        expected = {sample: row for part in rows for sample, row in part.items()}
        assert {sample: row for part in found for sample, row in part.items()} == expected
    for other in others:
        other.close()


def by_sample(batch):
    """Return what each row of a micro-batch says, by its sample."""
    columns = (batch.tokens, batch.labels, batch.loss_mask, batch.position_ids)
    rows = zip(batch.samples.tolist(), *(column.cpu().tolist() for column in columns), strict=True)
    return {sample: row for sample, *row in rows if sample >= 0}


def test_the_chain_knows_the_mask_and_the_packing(mixed, tmp_path) -> None:
    config = mixed()
    schedule = build_schedule(config, source_sizes(config))
    chain = schedule.fingerprints()
    form = chain[1]["sources"]["chat"]["form"]
    assert form == {"packed": 8, "mask": manifests.read(tmp_path / "chat").loss_mask["sha256"]}
    assert "form" not in chain[1]["sources"]["text"]
    write_packed(tmp_path / "chat", [[8]] * 10, 8, 5)
    changed = build_schedule(config, source_sizes(config))
    prove_past(changed, chain, 20)  # that phase has not begun
    with pytest.raises(
        CheckpointError, match=r"'chat' was read in packed windows of 8 tokens with the loss mask"
    ) as it:
        prove_past(changed, chain, 40)
    assert any("loss and its loss mask" in problem.fix for problem in it.value.problems)


def test_the_plan_tells_tokens_that_count_from_tokens_read(mixed, tmp_path) -> None:
    document = make_plan(mixed()).document()
    mask = manifests.read(tmp_path / "chat").loss_mask
    row = document["phases"][2]["sources"]["chat"]
    assert row["tokens"] == 21 * 8
    assert row["counted_tokens"] == round(21 * 8 * mask["counted"] / mask["tokens"])
    text = document["sources"]["text"]
    assert text["counted_tokens"] == text["samples"] * 8
    assert order_rows(mixed(), 40, 2)[0]["source"] == "chat"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"loss": "answers", "path": "plain"}, "loss is answers, but .*plain has no loss mask"),
        (
            {"loss": "all", "path": "chat"},
            r"loss is all, but the mask of .*chat leaves out \d+ tokens that are not pad",
        ),
        ({"loss": "answers", "path": "other"}, "packed into windows of 9 tokens, but train.seq_length is 8"),
        ({"loss": "answers", "path": "cut"}, "its packed window 1 begins inside document 0"),
        ({"loss": "answers", "path": "odd"}, "windows of 8 tokens, but its 12 tokens are no multiple"),
        ({"loss": "all", "path": "unmasked"}, "3 tokens of padding, and no loss mask"),
        ({"loss": "answers", "path": "missing"}, "the loss mask is missing"),
        ({"loss": "answers", "path": "short"}, r"it has 1 bytes, but the loss mask of 40 tokens has 5"),
    ],
)
def test_a_source_that_does_not_fit_is_refused(change, message, make_config, write_dataset, tmp_path) -> None:
    write_dataset([30, 30], "plain")
    write_packed(tmp_path / "chat", [[3, 5], [8], [2, 2, 2]] * 3, 8)
    write_packed(tmp_path / "other", [[9]] * 3, 9)
    packed = {"seq_length": 8, "padding": 3}
    for name, lengths in (("cut", [12, 4]), ("odd", [8, 4]), ("unmasked", [8, 8, 8])):
        prefix = tmp_path / name
        with IndexedDatasetWriter(prefix, np.uint16, with_mask=name != "unmasked") as writer:
            counted = np.ones(sum(lengths), dtype=bool)
            writer.add(np.arange(sum(lengths)), np.array(lengths), None, None, counted)
        manifests.write(prefix, manifests.describe(prefix, packed=packed))
    for name in ("missing", "short"):
        write_masked(tmp_path / name, [5] * 40, [20, 20], [True] * 40)
    (tmp_path / "missing.mask").unlink()
    (tmp_path / "short.mask").write_bytes(b"\1")
    source = {**change, "path": str(tmp_path / change["path"])}
    config = make_config({"s": source}, validation={"fraction": 0})
    for read in (source_sizes, open_streams):
        with pytest.raises((ConfigError, DataError), match=message) as caught:
            read(config)
        assert caught.value.exit_code == 2


def test_a_mask_of_all_but_padding_may_be_read_with_loss_all(make_config, tmp_path) -> None:
    prefix = write_packed(tmp_path / "chat", [[3, 4], [8], [2, 2, 2]] * 3, 8, answers=False)
    masks = []
    for loss in ("all", "answers"):
        config = make_config({"c": {"path": prefix, "loss": loss}}, validation={"fraction": 0})
        masks.append(window_tokens(open_source(config, "c"), 0, 0).loss_mask.tolist())
    # Two conversations and one token of padding; the last input has no label.
    assert masks[0] == masks[1] == [1, 1, 0, 1, 1, 1, 0, 0]


def test_fill_in_the_middle_is_refused_with_a_mask(make_config) -> None:
    raw = make_config({"s": "x"}).model_dump(mode="json", by_alias=True, exclude_unset=True)
    raw["tokenizer"] = {"kind": "huggingface", "path": "nowhere"}
    raw["sources"]["s"] |= {"loss": "answers", "fim_rate": 0.5}
    with pytest.raises(ConfigError, match="fill in the middle would move tokens away from the loss mask"):
        validate(raw, "test.yaml")


def test_contamination_looks_at_each_token_of_packed_windows_once(mixed) -> None:
    config = mixed()
    schedule = build_schedule(config, source_sizes(config))
    grams = runs_of([np.arange(20)], 13)
    seen = _look(_Past(config, schedule, schedule.total_samples, open_streams(config), {}), grams, 10**6)
    # Nine of ten windows, each read twice and more; the tenth is held out.
    assert seen["sources"]["chat"]["distinct_tokens_checked"] == 9 * 8
    assert open_source(config, "chat").window(72).shape == (9,)


def test_texts_of_packed_windows_are_whole_conversations(mixed, monkeypatch) -> None:
    from megacode.planning.sample_text import _pieces

    class Numbers:
        """Decodes tokens to their numbers."""

        def decode(self, ids: list[int]) -> str:
            return " ".join(map(str, ids))

    monkeypatch.setattr("megacode.planning.sample_text.decoded", lambda ids, tokenizer: tokenizer.decode(ids))
    stream = open_source(mixed(), "chat")
    pieces = list(_pieces(stream, 16, 0, Numbers()))
    assert [piece.tokens for piece in pieces] == [2, 2, 2, 2]  # three conversations, and padding
    assert all(piece.begins and piece.ends for piece in pieces)
    assert " ".join(piece.text for piece in pieces) == " ".join(map(str, stream.data.read(16, 8).tolist()))


def test_conversations_are_not_expected_to_end_with_the_end_of_document_token(mixed, tmp_path) -> None:
    config, tokenizer = mixed(), {"eod": 999}
    made = manifests.read(tmp_path / "chat")
    data, source = open_source(config, "chat").data, config.sources["chat"]
    assert notes(data, made, source, tokenizer) == ()
    (warning,) = notes(data, replace(made, loss_mask=None), source, tokenizer)
    assert "the model cannot learn where texts end" in warning

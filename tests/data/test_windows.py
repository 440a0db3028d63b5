"""Sources: the validation cut, windows and documents, and what unfit data sets get."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from megacode.base.errors import ConfigError, DataError
from megacode.config.model import TokenizerConfig
from megacode.data import manifest as manifests
from megacode.data.indexed import IndexedDatasetWriter, bin_path
from megacode.data.source_stream import SourceStream
from megacode.data.tokenizer import load_tokenizer
from megacode.data.windows import open_streams, source_sizes, stream_sizes, vocabulary_size


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lengths=st.lists(st.integers(0, 9), min_size=2, max_size=40),
    fraction=st.sampled_from([0.0, 0.01, 0.1, 0.25, 0.5]),
    seq_length=st.integers(1, 6),
    samples=st.integers(1, 5),
)
def test_held_out_documents_are_the_last_that_hold_the_share(lengths, fraction, seq_length, samples, tmp_path):
    assume(sum(lengths) > 0)
    with IndexedDatasetWriter(tmp_path / "set", np.int32) as writer:
        writer.add(np.arange(sum(lengths)), np.array(lengths))
    try:
        stream = SourceStream("text", str(tmp_path / "set"), fraction, seq_length, samples)
    except DataError:
        return
    ends = np.cumsum(lengths)
    total = int(ends[-1])
    assert stream.train_tokens + stream.validation_tokens == total
    assert stream.train_tokens == (ends[stream.train_documents - 1])
    assert stream.train_tokens > seq_length
    assert stream.validation_tokens >= fraction * total
    later = [int(end) for end in ends if end > stream.train_tokens]
    assert not fraction or total - later[0] < fraction * total, "no smaller cut would do"
    assert bool(stream.validation_windows) == bool(fraction)
    places = [stream.validation_first_token(number) for number in range(stream.validation_windows)]
    assert len(places) == min(samples, (stream.validation_tokens - 1) // seq_length) if fraction else not places
    assert all(b - a >= seq_length for a, b in itertools.pairwise(places))
    for place in places:
        assert stream.train_tokens <= place <= total - seq_length - 1
    assert [stream.window(stream.validation_first_token(number))[0] for number in range(len(places))] == places


def test_a_window_knows_its_tokens_and_documents(write_dataset):
    stream = SourceStream("text", write_dataset([3, 0, 4, 1, 2, 50]), 0.0, 8)
    assert stream.window(1).tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert stream.documents_of(1) == (0, 4)
    assert stream.document_starts(1).tolist() == [2, 6, 7]
    assert stream.documents_of(3) == (2, 5)
    assert stream.document_starts(2).tolist() == [1, 5, 6, 8]


def test_sizes_are_what_the_plan_needs(write_dataset, make_config):
    prefix = write_dataset([10] * 10)
    config = make_config({"text": prefix})
    (size,) = source_sizes(config).values()
    assert (size.name, size.tokens, size.documents, size.validation_tokens) == ("text", 90, 9, 10)
    assert size.identity == manifests.identity(prefix)
    assert stream_sizes(open_streams(config)) == source_sizes(config)


@pytest.mark.parametrize(
    ("lengths", "fraction", "message", "fix"),
    [
        ([4, 4], 0.0, "8 tokens, less than one window of seq_length \\+ 1 = 9", "train.seq_length"),
        ([100], 0.1, "leaves 0 for training", "validation.fraction: 0"),
        ([5, 95], 0.1, "leaves 5 for training", "validation.fraction: 0"),
        ([95, 5], 0.01, "held-out documents have 5 tokens, less than one window of 9", "at least 0.09"),
    ],
)
def test_a_source_too_short_says_so_and_how_to_mend_it(lengths, fraction, message, fix, write_dataset):
    with pytest.raises(DataError, match=message) as caught:
        SourceStream("text", write_dataset(lengths), fraction, 8)
    (problem,) = caught.value.problems
    assert problem.where.startswith("sources.text (")
    assert fix in problem.fix
    assert caught.value.exit_code == 2


def test_the_fix_for_a_short_validation_set_works(write_dataset):
    SourceStream("text", write_dataset([86, 5, 9]), 0.09, 8)


def test_all_sources_are_checked_at_once(write_dataset, make_config):
    good, short = write_dataset([20] * 10, "good"), write_dataset([2], "short")
    config = make_config({"a": short, "b": good, "c": str(good) + "_missing"})
    for look in (source_sizes, open_streams):
        with pytest.raises(DataError, match="2 problems") as caught:
            look(config)
        assert "sources.a" in caught.value.problems[0].where
        assert "there is no such file" in caught.value.problems[1].what


def test_a_declared_size_stands_in_for_a_data_set_that_is_not_there(tmp_path, make_config):
    bare = make_config({"text": str(tmp_path / "none")})
    source = bare.sources["text"].model_copy(update={"tokens": 1_000_000})
    config = bare.model_copy(update={"sources": {"text": source}})
    size = source_sizes(config, allow_declared=True)["text"]
    assert (size.tokens, size.validation_tokens, size.identity) == (900_000, 100_000, "")
    with pytest.raises(DataError, match="there is no such file"):
        source_sizes(config)
    with pytest.raises(DataError) as caught:
        source_sizes(bare, allow_declared=True)
    assert "sources.text.tokens" in caught.value.problems[0].fix


def test_training_checks_manifest_tokenizer_and_vocabulary(write_dataset, make_config, huggingface, sentencepiece):
    prefix = write_dataset([20] * 10)
    facts = load_tokenizer(huggingface).facts()
    manifests.write(prefix, manifests.describe(prefix, tokenizer=facts))
    open_streams(make_config({"text": prefix}, tokenizer=huggingface.model_dump()))
    with pytest.raises(DataError, match="it was made with tokenizer"):
        open_streams(make_config({"text": prefix}, tokenizer=sentencepiece.model_dump()))
    small = make_config({"text": prefix})
    small = small.model_copy(update={"model": small.model.model_copy(update={"vocab_size": 150})})
    with pytest.raises(DataError, match=r"it contains token \d+ near position \d+, but the vocabulary has 150"):
        open_streams(small)
    raw = bytearray(bin_path(prefix).read_bytes())
    raw[100] ^= 1
    bin_path(prefix).write_bytes(raw)
    with pytest.raises(DataError, match="do not match its manifest"):
        open_streams(make_config({"text": prefix}))


def test_the_vocabulary_is_the_models_or_the_tokenizers(write_dataset, make_config, huggingface):
    config = make_config({"text": write_dataset([20] * 10)}, tokenizer=huggingface.model_dump())
    assert vocabulary_size(config) == 1000

    def of(vocab_size, tokenizer):
        model = config.model.model_copy(update={"vocab_size": vocab_size})
        return vocabulary_size(config.model_copy(update={"model": model, "tokenizer": tokenizer}))

    assert of(None, huggingface) == 1000
    assert of(1024, huggingface) == 1024
    assert of(512, None) == of(512, TokenizerConfig(kind="huggingface", path="/nowhere")) == 512
    with pytest.raises(ConfigError, match="512 is less than the 1,000 tokens of the tokenizer"):
        of(512, huggingface)
    with pytest.raises(ConfigError, match="the vocabulary size is unknown"):
        of(None, None)
    with pytest.raises(DataError, match="the tokenizer cannot be read"):
        of(None, TokenizerConfig(kind="huggingface", path="/nowhere"))

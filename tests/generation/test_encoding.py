"""Sources as token ids: truncated, unknown and empty sources, and the rows of a batch."""

import pytest

from hf_rnn_seq2seq import errors
from hf_rnn_seq2seq.data.tokenizer import build_tokenizer
from hf_rnn_seq2seq.generation.batches import length_batches
from hf_rnn_seq2seq.generation.encoding import encode_sources, source_problems
from hf_rnn_seq2seq.generation.translate import translate
from tests.helpers.checkpoints import tiny_tokenizer


def test_batches_hold_similar_lengths_within_the_token_budget() -> None:
    lengths = [3, 40, 0, 5, 4, 39, 1, 200]
    batches = length_batches(lengths, batch_size=3, max_tokens=160, beams=2)
    assert batches == [[7], [1, 5], [3, 4, 0], [6]]
    assert length_batches([0, 0], 4, 10) == []
    with pytest.raises(errors.ArgumentError, match=r"batch_size is 0, max_tokens is 5; both must be at least 1"):
        length_batches(lengths, 0, 5)


def test_features_without_a_word_are_no_source() -> None:
    tokenizer = build_tokenizer(["N;PL\tab"], ["abs"], algorithm="letter", min_frequency=1, joint=False)
    assert [len(ids) for ids in encode_sources(tokenizer, ["N;PL\tab", "N;PL\t", "ab", " "]).ids] == [5, 0, 3, 0]


def test_a_long_source_is_cut_keeps_its_end_and_is_reported(rnn, caplog: pytest.LogCaptureFixture) -> None:
    model, tokenizer = rnn
    long = " ".join(["three days ago"] * 60)
    encoded = encode_sources(tokenizer, ["2 kg", long])
    whole = tokenizer(long, verbose=False)["input_ids"]
    assert encoded.truncated == [1]
    assert encoded.ids[1] == [*whole[:63], tokenizer.eos_token_id]
    encoded = encode_sources(tokenizer, ["three days ago", ""], max_source_length=2)
    assert (len(encoded.ids[0]), encoded.ids[1], encoded.truncated) == (2, [], [0])
    translate(model, tokenizer, [long], progress=False)
    assert "1 of 1 sources are longer than the limit and were cut" in caplog.text


def test_cut_and_unknown_sources_are_counted() -> None:
    tokenizer = tiny_tokenizer("word")
    sources = ["three days ago", "never seen", "", "three strangers", "in an hour in an hour"]
    encoded = encode_sources(tokenizer, sources, max_source_length=6)
    assert (encoded.truncated, encoded.unknown) == ([4], [1])
    assert source_problems(encoded.counts() + encoded.counts()) == [
        "2 of 10 sources are longer than the limit and were cut",
        "2 of 10 sources hold nothing but unknown tokens",
    ]
    assert source_problems(encode_sources(tokenizer, ["three"]).counts()) == []


def test_sources_that_were_encoded_before_are_translated_alike_and_without_a_second_warning(
    rnn, caplog: pytest.LogCaptureFixture
) -> None:
    model, tokenizer = rnn
    sources = ["three days ago " * 60, "2 kg", ""]
    encoded = encode_sources(tokenizer, sources, 20)
    found = translate(model, tokenizer, encoded, progress=False)
    assert "cut" not in caplog.text
    assert found == translate(model, tokenizer, sources, max_source_length=20, progress=False)
    assert caplog.text.count("1 of 3 sources are longer than the limit and were cut") == 1

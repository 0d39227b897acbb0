"""Segmentations drawn in training: distributed as in the papers, fixed by seed, epoch and row, of the same text."""

import itertools
import json
import math
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from hf_rnn_seq2seq.data.arguments import TokenizerArguments
from hf_rnn_seq2seq.data.loader import BatchLoader
from hf_rnn_seq2seq.data.sampled_table import SampledPlan, SampledTable, build_sampler
from hf_rnn_seq2seq.data.subword_sampling import BytePairs, SubwordSampler, UnigramLattice
from hf_rnn_seq2seq.data.token_columns import encode
from hf_rnn_seq2seq.data.tokenizer import build_tokenizer
from hf_rnn_seq2seq.errors import ArgumentError, DataError
from hf_rnn_seq2seq.model.tokenization_rnn_seq2seq import RnnSeq2SeqTokenizer
from hf_rnn_seq2seq.options import parse_arguments
from hf_rnn_seq2seq.training.launch import build_accelerator
from tests.helpers.training_checks import assert_identical_states, copy_until
from tests.helpers.training_runs import (
    arguments,
    build_loop,
    letter_rows,
    log_lines,
    record,
    sampled_stream,
    sampled_table,
)
from tests.scripts.test_train import TINY, script

SOURCES = [
    "the lower the better",
    "newest and widest",
    "low lower lowest",
    "</s> is text, 🙂 too",
    "wide newer news",
] * 2
TARGETS = [
    "je tiefer desto besser",
    "das neueste",
    "tief tiefer am tiefsten",
    "</s> ist Text: 🙂",
    "weite neuere Welt",
] * 2
LIMITS = {"max_source_length": 99, "max_target_length": 99}


pytestmark = [pytest.mark.long, pytest.mark.usefixtures("fresh_accelerate")]


def tokenizer_of(algorithm: str, joint: bool = True) -> Any:
    sizes = {"vocab_size": 320, "min_frequency": 1, "model_max_length": 99}
    return build_tokenizer(
        SOURCES, TARGETS, algorithm=algorithm, joint=joint, separate_class=RnnSeq2SeqTokenizer, **sizes
    )


def texts(ids: range = range(10)) -> dict[str, list[Any]]:
    return {"id": list(ids), "source": [SOURCES[i] for i in ids], "target": [TARGETS[i] for i in ids]}


# ------------------------------------------------------------------------------------------------ distributions


def shares_of_bpe(pieces: tuple[str, ...], ranks: dict[tuple[str, str], int], p: float) -> Counter[tuple[str, ...]]:
    """Provilkov 2020, algorithm 1, followed through every set of merges that may be left out."""
    places = [i for i, pair in enumerate(itertools.pairwise(pieces)) if pair in ranks]
    found: Counter[tuple[str, ...]] = Counter()
    for kept in itertools.product([True, False], repeat=len(places)):
        probability = math.prod(1 - p if one else p for one in kept)
        left = [place for place, one in zip(places, kept, strict=True) if one]
        if not left:
            found[pieces] += probability
            continue
        best = min(left, key=lambda i: (ranks[pieces[i], pieces[i + 1]], i))
        merged = (*pieces[:best], pieces[best] + pieces[best + 1], *pieces[best + 2 :])
        for end, share in shares_of_bpe(merged, ranks, p).items():
            found[end] += probability * share
    return found


def segmentations(word: str) -> Iterator[list[str]]:
    for cuts in itertools.product([False, True], repeat=len(word) - 1):
        places = [0, *(i + 1 for i, cut in enumerate(cuts) if cut), len(word)]
        yield [word[a:b] for a, b in itertools.pairwise(places)]


def assert_drawn(words: Any, word: str, expected: dict[tuple[str, ...], float], times: int = 20_000) -> None:
    """Each segmentation as often as it should be, within four standard deviations."""
    draw = random.Random(0)
    counts = Counter(tuple(words.segment(word, draw)) for _ in range(times))
    assert set(counts) <= set(expected) and math.isclose(sum(expected.values()), 1)
    for pieces, share in expected.items():
        assert abs(counts[pieces] / times - share) < 4 * math.sqrt(share * (1 - share) / times) + 1e-9, pieces


MERGES = [("a", "b"), ("b", "c"), ("ab", "c"), ("a", "bc"), ("c", "a"), ("abc", "abc")]


@pytest.mark.parametrize("dropout", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("word", ["abc", "abcab", "aab"])
def test_bpe_dropout_is_the_papers(word: str, dropout: float) -> None:
    words = BytePairs({"vocab": {}, "merges": MERGES}, dropout)
    expected = shares_of_bpe(tuple(word), words.ranks, dropout)
    assert_drawn(words, word, {pieces: share for pieces, share in expected.items() if share})
    assert (
        tuple(words.segment(word, None))
        == max(shares_of_bpe(tuple(word), words.ranks, 0.0).items(), key=lambda x: x[1])[0]
    )


def test_bpe_dropout_by_hand() -> None:
    """`ab`, one merge: whole with 1 - p. `abc`, ab before bc: abc needs one merge of two to survive, then the last."""
    words = BytePairs({"vocab": {}, "merges": ["a b", "b c", "ab c"]}, 0.2)
    assert_drawn(words, "ab", {("ab",): 0.8, ("a", "b"): 0.2})
    ends = {("abc",): 0.8 * 0.8, ("ab", "c"): 0.8 * 0.2, ("a", "bc"): 0.2 * 0.8, ("a", "b", "c"): 0.2 * 0.2}
    assert_drawn(words, "abc", ends)


PIECES = [["</s>", 0.0], ["a", -1.0], ["b", -1.5], ["c", -2.5], ["ab", -1.2], ["bc", -2.0], ["abc", -4.0], ["ca", -1.1]]


@pytest.mark.parametrize("alpha", [0.1, 0.5, 1.0, 5.0])
@pytest.mark.parametrize("word", ["abc", "abcab", "cabca"])
def test_unigram_sampling_is_in_proportion_to_a_power_of_the_probability(word: str, alpha: float) -> None:
    words = UnigramLattice({"vocab": PIECES, "unk_id": None}, alpha, {"</s>"})
    scores = dict(map(tuple, PIECES))
    possible = [pieces for pieces in segmentations(word) if all(piece in scores for piece in pieces)]
    powers = {tuple(pieces): math.prod(math.exp(scores[piece]) ** alpha for piece in pieces) for pieces in possible}
    assert len(powers) > 3
    assert_drawn(words, word, {pieces: power / sum(powers.values()) for pieces, power in powers.items()})


def test_unigram_sampling_by_hand() -> None:
    """P(ab) = 1/2 and P(a) P(b) = 1/8: 4 to 1; of the square root, 2 to 1."""
    vocabulary = [["a", math.log(0.25)], ["b", math.log(0.5)], ["ab", math.log(0.5)]]
    for alpha, shares in ((1.0, (0.8, 0.2)), (0.5, (2 / 3, 1 / 3))):
        words = UnigramLattice({"vocab": vocabulary, "unk_id": None}, alpha, set())
        assert_drawn(words, "ab", {("ab",): shares[0], ("a", "b"): shares[1]})


# ------------------------------------------------------------------------------------------------ tokenizers


@pytest.mark.parametrize("joint", [True, False], ids=["joint", "separate"])
@pytest.mark.parametrize("options", [{"bpe_dropout": 0.4}, {"alpha": 0.2}], ids=str)
def test_what_is_drawn_is_the_same_text(options: dict[str, float], joint: bool) -> None:
    tokenizer = tokenizer_of("bpe" if "bpe_dropout" in options else "unigram", joint)
    usual = encode(texts(), tokenizer)
    sampler = SubwordSampler(tokenizer, **options, seed=1, **LIMITS)
    drawn = sampler.columns(texts(), 0)
    assert set(drawn) == set(usual) and drawn["id"] == usual["id"]
    for ids, labels, source, target in zip(drawn["input_ids"], drawn["labels"], SOURCES, TARGETS, strict=True):
        assert ids[-1] == labels[-1] == tokenizer.eos_token_id and 2 not in ids[:-1] and 2 not in labels[:-1]
        read = getattr(tokenizer, "decode_source", tokenizer.decode)
        assert read(ids[:-1]) == source and tokenizer.decode(labels[:-1]) == target
    assert drawn["source_length"] == list(map(len, drawn["input_ids"]))
    changed = [a != b for name in ("input_ids", "labels") for a, b in zip(drawn[name], usual[name], strict=True)]
    assert sum(changed) > 8 and sum(map(len, drawn["labels"])) > sum(map(len, usual["labels"]))


def test_almost_no_dropout_is_the_tokenizers_own_segmentation() -> None:
    tokenizer = tokenizer_of("bpe", joint=False)
    sampler = SubwordSampler(tokenizer, bpe_dropout=1e-15, seed=1, **LIMITS)
    assert sampler.columns(texts(), 0) == encode(texts(), tokenizer)
    # The tokenizer itself is left as it was, and may be padded or cut by others meanwhile.
    tokenizer(SOURCES, padding="max_length", truncation=True, max_length=5)
    assert sampler.columns(texts(), 0) == encode(texts(), tokenizer)


def test_seed_epoch_and_row_decide_what_is_drawn() -> None:
    tokenizer = tokenizer_of("bpe")
    options: dict[str, Any] = {"bpe_dropout": 0.4, **LIMITS}
    sampler = SubwordSampler(tokenizer, seed=1, **options)
    whole = sampler.columns(texts(), 3)
    part = SubwordSampler(tokenizer, seed=1, **options).columns(texts(range(4, 7)), 3)
    assert part == {name: values[4:7] for name, values in whole.items()}
    others = [sampler.columns(texts(), 4), SubwordSampler(tokenizer, seed=2, **options).columns(texts(), 3)]
    others.append(sampler.columns({**texts(), "id": list(range(50, 60))}, 3))
    for other in others:
        assert sum(a != b for a, b in zip(other["labels"], whole["labels"], strict=True)) > 7


def test_a_row_that_is_drawn_too_long_keeps_its_usual_pieces() -> None:
    tokenizer = tokenizer_of("bpe")
    usual = encode(texts(), tokenizer)
    longest = max(usual["source_length"])
    sampler = SubwordSampler(tokenizer, bpe_dropout=1.0, seed=1, max_source_length=longest, max_target_length=99)
    drawn = sampler.columns(texts(), 0)
    for ids, own, text in zip(drawn["input_ids"], usual["input_ids"], SOURCES, strict=True):
        assert len(ids) == len(text.encode()) + 1 or ids == own
    assert max(drawn["source_length"]) == longest and drawn["labels"] != usual["labels"]


def test_words_that_the_vocabulary_cannot_spell_stay_as_they_are() -> None:
    """An unknown character, a token that was added, and characters spelt in bytes, beside a word that is drawn."""
    names = ["<pad>", "<s>", "</s>", "<unk>", *"abc", "ab", "abc", "<0xC3>", "<0xA9>"]
    vocabulary = {name: number for number, name in enumerate(names)}
    for fallback, foreign in ((False, "é"), (True, "é")):
        model = models.BPE(vocabulary, [("a", "b"), ("ab", "c")], unk_token="<unk>", byte_fallback=fallback)
        backend = Tokenizer(model)
        backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        backend.add_tokens(["[x]"])
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="</s>")
        rows = {"id": [0], "source": [f"a{foreign}c [x] abc"], "target": ["c"]}
        ids = SubwordSampler(tokenizer, bpe_dropout=1.0, seed=0, **LIMITS).columns(rows, 0)["input_ids"][0]
        own = [vocabulary["<0xC3>"], vocabulary["<0xA9>"]] if fallback else [vocabulary["<unk>"]]
        assert ids == [vocabulary["a"], *own, vocabulary["c"], 11, *(vocabulary[one] for one in "abc")]


def marked(option: str) -> Any:
    parts = json.loads(tokenizer_of("bpe").backend_tokenizer.to_str())
    parts["model"][option] = "##"
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(parts)))


@pytest.mark.parametrize(
    ("tokenizer", "options", "message"),
    [
        (
            lambda: tokenizer_of("unigram"),
            {"bpe_dropout": 0.1},
            "bpe_dropout=0.1: the source tokenizer is a Unigram model; needs tokenizer_algorithm bpe",
        ),
        (
            lambda: tokenizer_of("wordpiece"),
            {"bpe_dropout": 0.1},
            "bpe_dropout=0.1: the source tokenizer is a WordPiece model; needs tokenizer_algorithm bpe",
        ),
        (
            lambda: tokenizer_of("char"),
            {"bpe_dropout": 0.1},
            "bpe_dropout=0.1: the source tokenizer is a BPE model without merges; needs tokenizer_algorithm bpe",
        ),
        (
            lambda: tokenizer_of("bpe"),
            {"subword_sampling_alpha": 0.2},
            "subword_sampling_alpha=0.2: the source tokenizer is a BPE model; needs tokenizer_algorithm unigram",
        ),
        (
            lambda: marked("end_of_word_suffix"),
            {"bpe_dropout": 0.1},
            "bpe_dropout=0.1: the source tokenizer marks its pieces (end_of_word_suffix '##')",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_tokenizers_of_another_kind_are_refused(tokenizer: Any, options: dict[str, float], message: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        build_sampler(tokenizer(), TokenizerArguments(**options), seed=0, **LIMITS)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bpe_dropout": 1.5}, "bpe_dropout=1.5: must be at least 0 and at most 1"),
        ({"subword_sampling_alpha": 0.0}, "subword_sampling_alpha=0.0: must be greater than 0"),
        (
            {"bpe_dropout": 0.1, "subword_sampling_alpha": 0.2},
            "bpe_dropout=0.1: is for byte-pair tokenizers, and subword_sampling_alpha=0.2 for unigram ones; give one "
            "of them",
        ),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        TokenizerArguments(**options)
    assert str(caught.value) == message


def test_without_the_options_nothing_is_sampled() -> None:
    assert build_sampler(None, TokenizerArguments(), seed=0, **LIMITS) is None


# ------------------------------------------------------------------------------------------------ training


def spelt(seen: list[Any], tokenizer: Any) -> list[tuple[str, str]]:
    return [tuple(tokenizer.decode(ids[:-1]).replace(" ", "") for ids in row) for row in seen]


@pytest.mark.parametrize("kind", ["table", "stream"])
def test_every_row_once_in_each_epoch_in_other_pieces(kind: str, tmp_path: Any) -> None:
    train = sampled_table(30) if kind == "table" else sampled_stream(30, 30)
    options = {"per_device_train_batch_size": 10, "max_steps": 6}
    loop = build_loop("rnn", arguments(tmp_path, **options), train=train)
    seen = record(loop)
    loop.run()
    tokenizer = letter_rows(30)[1]
    wanted = Counter((row["source"].replace(" ", ""), row["target"].replace(" ", "")) for row in letter_rows(30)[0])
    epochs = [seen[:30], seen[30:]]
    assert [Counter(spelt(epoch, tokenizer)) for epoch in epochs] == [wanted] * 2
    assert len({str(row) for row in seen}) > 50, "the second epoch has other pieces"
    tokens = sum(len(labels) for _, labels in seen)
    assert json.loads((tmp_path / "summary.json").read_text())["target_tokens"] == tokens


@pytest.mark.parametrize("kind", ["table", "stream"])
def test_a_stopped_run_goes_on_bit_for_bit_and_splits_change_nothing(kind: str, tmp_path: Any) -> None:
    def run(name: str, rows: int, parts: int, **more: Any) -> None:
        train = sampled_table(30) if kind == "table" else sampled_stream(30, 16)
        options = {"per_device_train_batch_size": rows, "gradient_accumulation_steps": parts, "max_steps": 7}
        build_loop("rnn", arguments(tmp_path / name, save_steps=1, **options, **more), train=train).run()

    run("whole", 6, 1)
    run("split", 2, 3)
    losses = [[line["loss"] for line in log_lines(tmp_path / name, "train")] for name in ("whole", "split")]
    assert losses[0] == pytest.approx(losses[1], abs=2e-5) and len(losses[0]) == 7
    copy_until(tmp_path / "whole", tmp_path / "resumed", step=3)
    run("resumed", 6, 1, resume_from_checkpoint="latest")
    assert_identical_states(tmp_path / "whole", tmp_path / "resumed", step=7)


def test_the_plan_knows_how_much_longer_rows_become() -> None:
    """On average; the tokens of an update are counted when they are read."""
    table = sampled_table(30)
    lengths = table.planned_lengths()
    for name, planned in zip(("source_length", "target_length"), lengths, strict=True):
        drawn = sum(sum(table.columns(range(30), epoch)[name]) for epoch in range(20)) / 20
        assert 1.2 * sum(table.rows[name]) < drawn and abs(planned.sum() / drawn - 1) < 0.1
    plan = SampledPlan(*lengths, batch_size=7, max_tokens=None, seed=1)
    updates = list(itertools.islice(plan.updates(), 5))
    assert sorted(row for update in updates for row in update.rows) == list(range(30))
    assert {(update.source_tokens, update.target_tokens) for update in updates} == {(None, None)}


def test_rows_that_cannot_be_drawn_are_refused() -> None:
    table = sampled_table(30)
    with pytest.raises(DataError, match="id 12: the tokenised row has no text of this id to draw from"):
        SampledTable(table.rows, table.texts.select([*range(12), *range(13, 30)]), table.sampler)
    marked = table.rows.add_column("alignment", [[0]] * 30)
    with pytest.raises(DataError, match="column 'alignment' of the training rows speaks of their usual segmentation"):
        SampledTable(marked, table.texts, table.sampler)
    shuffled = SampledTable(table.rows.select([5, 2]), table.texts.shuffle(seed=1), table.sampler)
    assert shuffled.columns([1, 0], 4) == table.columns([2, 5], 4)


@pytest.mark.parametrize("streaming", [False, True], ids=["table", "stream"])
def test_the_script_draws_the_pieces_of_training_rows_only(streaming: bool, tmp_path: Any) -> None:
    words = ["--output_dir", str(tmp_path), "--bpe_dropout", "0.5", "--streaming", str(streaming)]
    for name, value in TINY.items():
        words += [f"--{name}", str(value)]
    *groups, options = parse_arguments(words, script.GROUPS, script.model_options())
    loop, _ = script.build_loop(groups, options, build_accelerator(groups[-1]))
    update = next(loop.plan.updates())
    drawn = [loop.loader.columns(replace(update, epoch=epoch), update.rows)["labels"] for epoch in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    validation = loop.validator.loader
    assert type(validation) is BatchLoader and set(validation.dataset.column_names) >= {"labels", "target_length"}

"""Alignments of words become alignments of tokens, given or computed, and reach the model in its batches."""

import random

import pytest
import torch
from datasets import Dataset

from hf_rnn_seq2seq.data.arguments import DataArguments
from hf_rnn_seq2seq.data.batching import Collator
from hf_rnn_seq2seq.data.corpus import load_corpus
from hf_rnn_seq2seq.data.readers import parse_pharaoh
from hf_rnn_seq2seq.data.token_columns import tokenize_corpus
from hf_rnn_seq2seq.data.tokenizer import build_tokenizer
from hf_rnn_seq2seq.data.word_alignment import (
    Aligner,
    token_alignments,
    with_alignments,
    words_of_tokens,
)
from hf_rnn_seq2seq.errors import DataError

SOURCES = ["the house is small", "a small house", "", "日本 語"]
TARGETS = ["das haus ist klein", "ein kleines haus", "leer", "日本語"]
LINES = ["0-0 1-1 2-2 3-3", "0-0 2-2 1-1", "", "0-0 1-0"]


def pairs(flat: list[int]) -> set[tuple[int, int]]:
    return set(zip(flat[::2], flat[1::2], strict=True))


def test_pharaoh_lines() -> None:
    assert parse_pharaoh(" 0-0 12-3\t1-1 ", "x") == [(0, 0), (12, 3), (1, 1)]
    assert parse_pharaoh("", "x") == []
    for wrong in ("0", "0-", "a-1", "-1-0", "0-1-2", "0,1"):
        with pytest.raises(DataError, match=f"line 3: '{wrong}': must be source-target, such as 0-2"):
            parse_pharaoh(f"0-0 {wrong}", "line 3")


def test_the_last_character_of_a_token_decides_its_word() -> None:
    #  a token may begin with the space before its word; the end token has no characters
    assert words_of_tokens(" ab  cd", [(0, 2), (2, 3), (3, 6), (6, 7), (4, 5), (0, 0)]) == [0, 0, 1, 1, -1, -1]


@pytest.mark.parametrize("algorithm", ["bpe", "unigram", "wordpiece", "word", "char"])
def test_every_token_of_a_word_is_aligned_with_every_token_of_the_other(algorithm: str) -> None:
    tokenizer = build_tokenizer(SOURCES, TARGETS, algorithm=algorithm, vocab_size=300, min_frequency=1)
    batch = {"id": [4, 5, 6, 7], "source": SOURCES, "target": TARGETS, "alignment": LINES}
    found = token_alignments(batch, tokenizer, "word")
    for source, target, line, flat in zip(SOURCES, TARGETS, LINES, found, strict=True):
        sides = [tokenizer(source), tokenizer(text_target=target)]
        ids = [side["input_ids"] for side in sides]
        expected = {(len(ids[0]) - 1, len(ids[1]) - 1)}
        texts = [
            [tokenizer.decode(row[:end], skip_special_tokens=True).strip() for end in range(1, len(row))] for row in ids
        ]
        # The number of words in the text of the tokens so far is the number of the last one's word, plus 1.
        words = [[len(text.split()) - 1 for text in side] for side in texts]
        if algorithm in ("bpe", "word") and "日" not in source:
            for a, b in parse_pharaoh(line, ""):
                expected |= {(s, t) for s, x in enumerate(words[0]) for t, y in enumerate(words[1]) if (x, y) == (a, b)}
            assert pairs(flat) == expected
        assert pairs(flat) >= expected and len(pairs(flat)) >= len(line.split()) + 1


def test_alignments_between_tokens_and_beyond_the_end() -> None:
    tokenizer = build_tokenizer(SOURCES, TARGETS, algorithm="char", vocab_size=300, min_frequency=1)
    batch = {"id": [9], "source": ["is"], "target": ["ist"], "alignment": ["0-0 1-2"]}
    assert pairs(token_alignments(batch, tokenizer, "token")[0]) == {(0, 0), (1, 2), (2, 3)}
    for unit, message in (("token", "1-2, but there are 2 and 2 tokens"), ("word", "1-2, but there are 1 and 1 words")):
        with pytest.raises(DataError, match=f"alignment of training row 9: {message}"):
            token_alignments(batch | {"target": ["is"], "alignment": ["1-2"]}, tokenizer, unit)


FILES = {"tsv": "de\ten\ta\nein haus\ta house\t0-0 1-1\n\tx\t0-0\nhaus\thouse\t0-0\n"}


def test_a_file_and_a_column(tmp_path) -> None:
    """The file has one line for each row, also for rows that are not used."""
    (tmp_path / "t.tsv").write_text(FILES["tsv"])
    (tmp_path / "t.align").write_text("0-0 1-1\n0-0\n0-0\n")
    given = {"train_file": str(tmp_path / "t.tsv"), "source_lang": "de", "target_lang": "en"}
    for chosen in ({"alignment_file": str(tmp_path / "t.align")}, {"alignment_column": "a"}):
        corpus = load_corpus(DataArguments(**given, **chosen))
        assert corpus.splits["train"]["alignment"][:] == ["0-0 1-1", "0-0"] and corpus.skipped["train"] == {
            "empty_source": 1
        }
        assert corpus.description["fingerprint"] != load_corpus(DataArguments(**given)).description["fingerprint"]
        tokenizer = build_tokenizer(["ein haus"], ["a house"], algorithm="word", vocab_size=20, min_frequency=1)
        rows, _ = tokenize_corpus(corpus.splits["train"], tokenizer, max_source_length=9, max_target_length=9)
        assert rows["alignment"][:] == [[0, 0, 1, 1, 2, 2], [0, 0, 1, 1]]
        assert with_alignments(rows) is rows
    assert "alignment" not in load_corpus(DataArguments(**given)).splits["train"].column_names
    corpus.splits.save_to_disk(tmp_path / "saved")
    saved = load_corpus(DataArguments(dataset_name=str(tmp_path / "saved"), alignment_column="alignment"))
    assert saved.splits["train"]["alignment"][:] == ["0-0 1-1", "0-0"]


def test_bad_alignments_are_refused(tmp_path) -> None:
    (tmp_path / "t.tsv").write_text(FILES["tsv"])
    given = {"train_file": str(tmp_path / "t.tsv"), "source_lang": "de", "target_lang": "en"}
    for lines, message in (("0-0\n", "ends after 1 lines; there are more"), ("\n" * 4, r"has more lines than .*\(3\)")):
        (tmp_path / "t.align").write_text(lines)
        with pytest.raises(DataError, match=message):
            load_corpus(DataArguments(**given, alignment_file=str(tmp_path / "t.align")))
    with pytest.raises(DataError, match="no column 'b'"):
        load_corpus(DataArguments(**given, alignment_column="b"))
    with pytest.raises(DataError, match="alignment_file=.*none.align': does not exist"):
        load_corpus(DataArguments(**given, alignment_file=str(tmp_path / "none.align")))
    with pytest.raises(DataError, match="give one of them, a file with train_file, or a column"):
        load_corpus(DataArguments(**given, alignment_file="x", alignment_column="a"))
    with pytest.raises(DataError, match="give one of them"):
        load_corpus(DataArguments(dataset_name="cldr", dataset_config_name="en-fr", alignment_file="a"))
    with pytest.raises(DataError, match="alignment_column='a': the column of cldr is 'alignment'"):
        load_corpus(DataArguments(dataset_name="cldr", dataset_config_name="en-fr", alignment_column="a"))


def test_the_embedded_corpus_has_alignments_for_the_chosen_splits() -> None:
    given = {"dataset_name": "cldr", "dataset_config_name": "en-fr", "max_train_samples": 40, "max_eval_samples": 40}
    plain = load_corpus(DataArguments(**given), splits=("train", "validation")).splits
    assert all("alignment" not in rows.column_names for rows in plain.values())
    for chosen in (("train",), ("train", "validation")):
        found = load_corpus(
            DataArguments(**given, alignment_column="alignment"), splits=("train", "validation"), aligned_splits=chosen
        )
        assert {name for name, rows in found.splits.items() if "alignment" in rows.column_names} == {*chosen}
    tokenizer = build_tokenizer(plain["train"]["source"], plain["train"]["target"], algorithm="bpe", vocab_size=300)
    rows, _ = tokenize_corpus(found.splits["train"], tokenizer, max_source_length=96, max_target_length=96)
    assert with_alignments(rows) is rows and sum(len(flat) > 2 for flat in rows["alignment"]) > 20


def test_alignments_in_a_batch() -> None:
    rows = [
        {"input_ids": [5, 6, 2], "labels": [7, 2], "alignment": [0, 0, 1, 0, 2, 1]},
        {"input_ids": [5, 2], "labels": [8, 9, 2], "alignment": [1, 2]},
    ]
    batch = Collator()(rows)
    expected = torch.zeros(2, 3, 3, dtype=torch.bool)
    for row, target, source in ((0, 0, 0), (0, 0, 1), (0, 1, 2), (1, 2, 1)):
        expected[row, target, source] = True
    assert torch.equal(batch["alignments"], expected)


def test_computed_alignments_find_the_dictionary() -> None:
    """Word-for-word translations in another order, some with a word that has no source."""
    draw, table = random.Random(0), []
    for number in range(400):
        words = [draw.randrange(10, 40) for _ in range(draw.randrange(1, 8))]
        order = sorted(range(len(words)), key=lambda place: place + draw.choice([-1.5, 0, 1.5]))
        source, target = [*words, 2], [*(100 + words[place] for place in order), 2]
        if draw.random() < 0.5:
            target.insert(draw.randrange(len(target)), 5)
            order.insert(target.index(5), None)
        lengths = {"source_length": len(source), "target_length": len(target)}
        table.append({"id": number, "input_ids": source, "labels": target, **lengths, "order": order})
    rows = Dataset.from_list(table)
    aligned = with_alignments(rows.remove_columns("order"))
    right = total = 0
    for row, flat in zip(table, aligned["alignment"], strict=True):
        found = dict(zip(flat[1::2], flat[::2], strict=True))
        assert found.pop(len(row["labels"]) - 1) == len(row["input_ids"]) - 1
        for target, source in enumerate(row["order"]):
            word = None if source is None else row["input_ids"][source]
            got = None if target not in found else row["input_ids"][found[target]]
            right, total = right + (word == got), total + (source is not None)
            right -= source is None and got is None
    assert right / total > 0.97
    assert Aligner(rows).align([2], [7, 2]) == [0, 1] and Aligner(rows.select([])).align([5, 2], [7, 2]) == [1, 1]

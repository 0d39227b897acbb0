"""Rows with random stems: what differs between a word and its form is kept, and the other columns are."""

import gzip
from collections import Counter
from pathlib import Path

import pytest

from hf_rnn_seq2seq.data.hallucination import hallucinate, stems
from hf_rnn_seq2seq.errors import DataError
from tests.helpers.script_runs import run

PAIRS = [("walk", "walked"), ("translate", "retranslating"), ("go", "went"), ("ad hoc word", "ad hoc words")]


def test_a_stem_is_what_both_share() -> None:
    assert stems("walk", "walked") == [(0, 0, 4)]
    # Of a long one not the first and the last letter: `translat` without its t.
    assert stems("translate", "retranslating") == [(1, 3, 6)]
    assert stems("go", "went") == [] == stems("abxab", "abyab")
    assert stems("legen", "gelegt") == [(0, 2, 3)]
    assert stems("1800er", "1800ern") == [(1, 1, 4)] and stems("1800", "1800s") == [], "digits alone are no stem"


def test_only_shared_letters_are_replaced_by_the_same_ones() -> None:
    alphabet = {letter for pair in PAIRS for text in pair for letter in text} - {" "}
    made = list(hallucinate(PAIRS, 300, 1))
    assert Counter(number for number, *_ in made) == {0: 100, 1: 100, 3: 100}
    replaced = total = 0
    for number, source, target in made:
        olds = PAIRS[number]
        assert [len(source), len(target)] == list(map(len, olds))
        changed = [
            [place for place, (one, other) in enumerate(zip(old, new, strict=True)) if one != other]
            for old, new in zip(olds, (source, target), strict=True)
        ]
        assert [source[place] for place in changed[0]] == [target[place] for place in changed[1]]
        assert [olds[0][place] for place in changed[0]] == [olds[1][place] for place in changed[1]]
        allowed = {i + step for i, _, size in stems(*olds) for step in range(size) if olds[0][i + step] != " "}
        assert {*changed[0]} <= allowed and {source[place] for place in changed[0]} <= alphabet
        replaced, total = replaced + len(changed[0]), total + len(allowed)
    assert 0.4 < replaced / total < 0.5  # half of them, and a letter may be drawn again
    assert made == list(hallucinate(PAIRS, 300, 1)) != list(hallucinate(PAIRS, 300, 2))
    assert not {tuple(pair) for _, *pair in made} & {*PAIRS}, "a copy of a pair is none that is new"
    for pair in (("go", "went"), ("aaa", "aaaa")):
        with pytest.raises(DataError, match="none of 1 rows shares 3 letters in a row between source and target"):
            next(hallucinate([pair], 1, 0))


def test_the_script_adds_rows_and_keeps_the_other_columns(tmp_path: Path) -> None:
    rows = ["walk\twalked\tV;PST", "go\twent\tV;PST", "talk\ttalks\tV;PRS"]
    (tmp_path / "a.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    (tmp_path / "d.tsv").write_text("go\twent\n", encoding="utf-8")
    (tmp_path / "e.tsv").write_text("")
    (tmp_path / "b.tsv").write_text("id\tlemma\tform\n1\twalk\twalked\n", encoding="utf-8")
    options = ("--rows", 5, "--output_file", tmp_path / "out.tsv")
    done = run("hallucinate.py", tmp_path / "a.tsv", *options)
    assert done.returncode == 0 and b"3 rows of" in done.stdout and b"and 5 new ones" in done.stdout, done.stderr
    lines = (tmp_path / "out.tsv").read_text(encoding="utf-8").splitlines()
    assert lines[:3] == rows and len(lines) == 8
    for lemma, form, tags in (line.split("\t") for line in lines[3:]):
        assert (form, tags) in ((lemma + "ed", "V;PST"), (lemma + "s", "V;PRS"))
    named = ("--source_column", "lemma", "--target_column", "form", "--overwrite")
    assert run("hallucinate.py", tmp_path / "b.tsv", *options, *named).returncode == 0
    lines = (tmp_path / "out.tsv").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "id\tlemma\tform" and all(line.startswith("1\t") for line in lines[1:]) and len(lines) == 7
    for words, message in (
        (("a.tsv",), b"out.tsv': exists; choose another name, or --overwrite"),
        (("a.tsv", "--overwrite", "--target_column", "3"), b"target_column='3': "),
        (("b.tsv", "--overwrite", "--source_column", "word"), b"b.tsv has the columns id, lemma, form"),
        (("c.tsv",), b"c.tsv: no such file"),
        (("e.tsv", "--overwrite"), b"e.tsv: is empty; give a table of words and forms"),
        (("a.tsv", "--overwrite", "--feature_column", "1"), b"feature_column='1': is the target column too"),
        (("a.tsv", "--overwrite", "--feature_column", "2"), b"none of 3 rows gives a new combination of features"),
        (
            ("d.tsv", "--overwrite"),
            b"d.tsv: none of 1 rows shares 3 letters in a row between source and target; choose others with --source_c",
        ),
    ):
        refused = run("hallucinate.py", tmp_path / words[0], *options, *words[1:])
        assert refused.returncode == 2 and message in refused.stderr, refused.stderr


def test_an_archive_is_one_and_two_columns_are_two(tmp_path: Path) -> None:
    table = tmp_path / "words.tsv"
    table.write_text("walk\twalked\tV;PST\n" * 3)
    columns = ["--source_column", "0", "--target_column"]
    refused = run("hallucinate.py", table, "--rows", 2, *columns, "0", "--output_file", tmp_path / "x.tsv")
    assert b"target_column='0': is the source column too" in refused.stderr and not (tmp_path / "x.tsv").exists()
    done = run("hallucinate.py", table, "--rows", 2, *columns, "1", "--output_file", tmp_path / "more.tsv.gz")
    assert done.returncode == 0, done.stderr
    assert gzip.decompress((tmp_path / "more.tsv.gz").read_bytes()).count(b"\n") == 5
    refused = run("hallucinate.py", table, "--rows", 2, *columns, "1", "--output_file", tmp_path / "none" / "x.tsv")
    assert b"none/x.tsv': its folder does not exist; make it" in refused.stderr

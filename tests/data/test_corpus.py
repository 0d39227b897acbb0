"""Corpora of every kind become text and token columns; every bad row or file is counted or named."""

import csv
import gzip
import json
import os
import re
from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from hf_rnn_seq2seq.data.arguments import SPLITS, DataArguments
from hf_rnn_seq2seq.data.corpus import load_corpus
from hf_rnn_seq2seq.data.streaming import TextStream
from hf_rnn_seq2seq.data.token_columns import tokenize_corpus
from hf_rnn_seq2seq.data.tokenizer import build_tokenizer
from hf_rnn_seq2seq.errors import DataError, InputError

# What other readers get wrong: a missing value, a time stamp, quotes, commas, a line separator inside a line.
PAIRS = [
    ("null", "NA"),
    ("2026-03-12", "nan"),
    ('he said "yes"', "il dit « oui »"),
    ('"open', "a, b"),
    ("a\u2028b\x85c", "d\u000be"),
    ("日本", "😀"),
]
READ = {"source_column": "fra", "target_column": "eng"}


def write_table(folder: Path, kind: str, pairs=PAIRS, names=("fra", "eng")) -> str:
    path = folder / f"train.{kind}"
    plain = kind.removesuffix(".gz")
    records = [dict(zip(names, pair, strict=True)) for pair in pairs]
    if plain == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), path)
    elif plain == "csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([names, *pairs])
    elif plain == "tsv":
        path.write_text("".join("\t".join(row) + "\n" for row in [names, *pairs]), encoding="utf-8", newline="")
    elif plain == "json":
        path.write_text(json.dumps({"data": records}), encoding="utf-8")
    else:
        path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    if kind.endswith(".gz"):
        path.write_bytes(gzip.compress(path.read_bytes(), mtime=0))
    return str(path)


def write(path: Path, content: str | bytes) -> str:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def load(*, splits=SPLITS, **options):
    return load_corpus(DataArguments(**options), splits=splits)


def pairs_of(split):
    return list(zip(split["source"], split["target"], strict=True))


@pytest.mark.parametrize("packed", ["", ".gz"])
@pytest.mark.parametrize("kind", ["tsv", "csv", "jsonl", "json", "parquet"])
def test_a_table_is_read_exactly(kind, packed, tmp_path):
    corpus = load(train_file=write_table(tmp_path, kind + packed), **READ)
    assert pairs_of(corpus.splits["train"]) == PAIRS
    assert corpus.splits["train"]["id"][:] == list(range(len(PAIRS)))
    assert corpus.skipped == {"train": {}}
    assert corpus.description["rows"] == {"train": len(PAIRS)}
    languages = {"source_lang": "fra", "target_lang": "eng"}
    assert pairs_of(load(train_file=str(tmp_path / f"train.{kind}{packed}"), **languages).splits["train"]) == PAIRS


@pytest.mark.parametrize("packed", ["", ".gz"])
def test_two_text_files_are_parallel_lines(packed, tmp_path):
    names = [str(tmp_path / f"train.{side}{packed}") for side in ("fr", "en")]
    for name, lines in zip(names, zip(*PAIRS, strict=True), strict=True):
        content = "\ufeff" + "\r\n".join(lines) + "\n"
        write(Path(name), gzip.compress(content.encode(), mtime=0) if packed else content)
    assert pairs_of(load(train_file=",".join(names)).splits["train"]) == PAIRS


def test_a_translation_column_is_opened(tmp_path):
    lines = [json.dumps({"translation": {"fr": source, "en": target}}) for source, target in PAIRS]
    path = write(tmp_path / "train.jsonl", "\n".join(lines))
    assert pairs_of(load(train_file=path, source_lang="fr", target_lang="en").splits["train"]) == PAIRS
    swapped = load(train_file=path, source_lang="en", target_lang="fr").splits["train"]
    assert pairs_of(swapped) == [(target, source) for source, target in PAIRS]
    with pytest.raises(DataError, match="column 'translation': no column 'de'; it has 'fr', 'en'"):
        load(train_file=path, source_lang="de", target_lang="en")


def test_columns_without_names_are_numbered_from_0(tmp_path):
    path = write(tmp_path / "fra.tsv", "Go.\tVa !\tCC-BY\nHi.\tSalut !\tCC-BY\n")
    corpus = load(train_file=path, header=False, source_column="1", target_column="0")
    assert pairs_of(corpus.splits["train"]) == [("Va !", "Go."), ("Salut !", "Hi.")]
    with pytest.raises(DataError, match="no column 3; the first row has 3 fields"):
        load(train_file=path, header=False, source_column="3", target_column="0")


@pytest.mark.parametrize("suffix", [".tsv", ".csv"])
def test_a_header_is_never_guessed(suffix, tmp_path):
    """Names that are numbers are those of the header, or there is no such column."""
    lines = [["1", "0"], ["Va !", "Go."], ["Salut !", "Hi."]]
    table = "".join(("\t" if suffix == ".tsv" else ",").join(line) + "\n" for line in lines)
    path = write(tmp_path / f"numbers{suffix}", table)
    corpus = load(train_file=path, source_column="0", target_column="1")
    assert pairs_of(corpus.splits["train"]) == [("Go.", "Va !"), ("Hi.", "Salut !")]
    path = write(tmp_path / f"names{suffix}", table.replace("1", "fr", 1).replace("0", "en", 1))
    message = "no column '0'; it has 'fr', 'en' (choose with source_column and target_column, or header=false for a"
    with pytest.raises(DataError, match=re.escape(message)):
        load(train_file=path, source_column="0", target_column="1")


def test_a_table_without_header_is_read_from_its_first_row(tmp_path):
    """SIGMORPHON's tables have no header; the languages are not read as column names."""
    path = write(tmp_path / "x.tsv", "walk\twalked\tV;PST\ngo\twent\tV;PST\nox\toxen\t\n")
    options = {"train_file": path, "header": False, "source_lang": "en", "target_lang": "en"}
    assert pairs_of(load(**options).splits["train"])[0] == ("walk", "walked")
    named_otherwise = write(tmp_path / "x_large.train", (tmp_path / "x.tsv").read_text())
    assert pairs_of(load(**options | {"train_file": named_otherwise}).splits["train"])[2] == ("ox", "oxen")
    corpus = load(**options, feature_column="2")
    assert pairs_of(corpus.splits["train"]) == [("V;PST\twalk", "walked"), ("V;PST\tgo", "went"), ("ox", "oxen")]
    named = write(tmp_path / "n.jsonl", '{"source": "walk", "target": "walked", "tags": "V;PST"}\n')
    corpus = load(train_file=named, feature_column="tags")
    assert pairs_of(corpus.splits["train"]) == [("V;PST\twalk", "walked")]
    for more, message in (
        ({"source_column": "word"}, "source_column='word': a table without header has numbered columns"),
        ({"feature_column": "3"}, "no column 3; the first row has 3 fields"),
        ({"train_file": f"{path},{path}", "feature_column": "2"}, "feature_column='2': text files have no columns"),
        ({"file_format": "ipa", "feature_column": "2"}, "feature_column='2': a lexicon has no columns"),
        ({"train_file": f"{path},{path}", "file_format": "ipa"}, "file_format='ipa': a lexicon is one file"),
    ):
        with pytest.raises(InputError, match=message):
            load(**options | more)


def test_a_lexicon_is_a_corpus(tmp_path):
    """Each variant is a row, a comment is not, and a word without phones is counted."""
    lines = ";;; CMU\nREAD  R EH D\nREAD(2)  R IY D\nNOTHING\nEM  AH  M\n"
    path = write(tmp_path / "cmudict-0.7b", lines)
    corpus = load(train_file=path, file_format="cmudict")
    assert pairs_of(corpus.splits["train"]) == [("READ", "R EH D"), ("READ", "R IY D"), ("EM", "AH M")]
    assert corpus.skipped == {"train": {"empty_target": 1}}
    packed = tmp_path / "lexicon.gz"
    packed.write_bytes(gzip.compress(b"read r eh d\n"))
    again = load(train_file=str(packed), file_format="kaldi")
    assert pairs_of(again.splits["train"]) == [("read", "r eh d")]
    with pytest.raises(DataError, match="a lexicon, whose file_format the recipe names, or with header=false"):
        load(train_file=path)


def test_unusable_rows_are_counted_and_reported(tmp_path):
    rows = "source\ttarget\na\tb\n\tb\na\t \na\nb\tc\td\n\ne\tf\n"
    corpus = load(train_file=write(tmp_path / "x.tsv", rows))
    assert pairs_of(corpus.splits["train"]) == [("a", "b"), ("e", "f")]
    assert corpus.splits["train"]["id"][:] == [0, 1]
    assert corpus.skipped == {"train": {"empty_source": 1, "empty_target": 1, "wrong_field_count": 3}}
    again = load(train_file=str(tmp_path / "x.tsv"))
    assert again.skipped == corpus.skipped  # also when the rows come from the cache
    lines = '{"source": "a", "target": null}\n{"source": 3, "target": "b"}\n{"source": "a", "target": "b"}\n'
    corpus = load(train_file=write(tmp_path / "x.jsonl", lines))
    assert corpus.skipped == {"train": {"empty_target": 1, "not_text": 1}}


@pytest.mark.parametrize("streaming", [False, True])
def test_scored_rows_may_have_an_empty_side(tmp_path, streaming):
    path = write(tmp_path / "x.tsv", "source\ttarget\na\tb\n\tc\nd\t \ne\n \t\nf\tg\n")
    corpus = load(train_file=path, validation_file=path, test_file=path, streaming=streaming)
    kept = [(row["source"], row["target"]) for row in corpus.splits["train"]]
    assert kept == [("a", "b"), ("f", "g")]
    for split in ("validation", "test"):
        kept = [(row["source"], row["target"]) for row in corpus.splits[split]]
        assert kept == [("a", "b"), ("", "c"), ("d", ""), ("", ""), ("f", "g")]
        assert streaming or corpus.skipped[split] == {"wrong_field_count": 1}
    for side, rows in (("source", "\tc\n \td\n"), ("target", "c\t\nd\t \n")):
        path = write(tmp_path / "y.tsv", "source\ttarget\n" + rows)
        with pytest.raises(DataError, match=f"test: the {side} of all 2 rows is empty; there is nothing to score"):
            load(test_file=path)


@pytest.mark.parametrize(
    ("name", "content", "options", "message"),
    [
        ("x.tsv", "", {}, r"file .*x\.tsv holds no rows"),
        ("x.tsv", "source\ttarget\n", {}, r"file .*x\.tsv holds no rows"),
        ("x.jsonl", "", {}, r"file .*x\.jsonl holds no rows"),
        ("x.tsv", "source\ttarget\n\t\n", {}, "train: no usable row among 1 .1 empty_source"),
        (
            "x.tsv",
            "fra\teng\na\tb\n",
            {},
            r"x\.tsv: no column 'source'; it has 'fra', 'eng' .choose with source_column",
        ),
        ("x.tsv", "fra\teng\na\tb\n", {"source_column": "fra"}, "no column 'target'; it has 'fra', 'eng'"),
        ("x.csv", "fra\teng\na\tb\n", READ, r"no column 'fra'; it has 'fra\\teng'"),
        ("x.tsv", b"source\ttarget\na\tb\nc\t\xe9t\xe9\n", {}, r"x\.tsv, line 3, byte 20: not UTF-8"),
        ("x.tsv", "source\ttarget\n".encode("utf-16"), {}, r"x\.tsv, line 1, byte 0: not UTF-8"),
        ("x.jsonl", '{"source": "a", "target": "b"}\n{"source"\n', {}, r"x\.jsonl, line 2: not JSON"),
        ("x.jsonl", "[1, 2]\n", {}, r"x\.jsonl, line 1: an object is expected, got list"),
        ("x.json", "3", {}, r"x\.json, line 1: an object is expected, got int"),
        ("x.csv", 'source,target\n"a" b,c\n', {}, r"x\.csv: not a CSV table"),
        ("x.parquet", "no", {}, r"x\.parquet: not a Parquet file"),
        ("x.tsv.gz", "no", {}, r"x\.tsv\.gz: damaged gzip archive"),
        (
            "x.tsv.gz",
            gzip.compress(b"source\ttarget\na\tb\n" * 99, mtime=0)[:-9],
            {},
            r"x\.tsv\.gz: damaged gzip archive",
        ),
        (
            "x.tsv",
            gzip.compress(b"source\ttarget\na\tb\n", mtime=0),
            {},
            r"x\.tsv, line 1.*a gzip archive; name it with \.gz",
        ),
        ("x.tsv.gz", b"BZh91AY&SY", {}, r"x\.tsv\.gz: damaged gzip archive .it is a bzip2 archive; pack it"),
        (
            "x.tsv.gz",
            gzip.compress(b"source\ttarget\na\tb\n", mtime=0)[:-8] + bytes(8),
            {},
            r"x\.tsv\.gz: damaged gzip.*CRC",
        ),
        ("x.tsv.gz", "", {}, r"x\.tsv\.gz holds no rows"),
        ("x.jsonl", b"PK\x03\x04", {}, r"x\.jsonl, line 1.*a zip archive; unpack it"),
        ("x.tsv", "source\ttarget\r" + "a\tb\r" * 9, {}, "its lines end in carriage returns; convert it with `tr"),
        ("x.csv", "source,target\r" + "a,b\r" * 9, {}, "its lines end in carriage returns"),
        ("x.tsv", "source\ttarget\ttarget\na\tb\tc\n", {}, r"x\.tsv: 'target' names 2 columns; rename all but one"),
        ("x.csv", "source,source,target\na,b,c\n", {}, r"x\.csv: 'source' names 2 columns"),
        (
            "x.jsonl",
            '{"source": "a", "target": "b", "target": "c"}\n',
            {},
            "not JSON .the name 'target' occurs twice",
        ),
        ("x.csv", 'source,target\na,b\n"5 inch,c\nd,e\n', {}, "not a CSV table .*in the record that begins in line 3"),
        ("x.csv", "source,target\n" + '"' + "a,b\n" * 99_999, {}, "not a CSV table"),
        ("x.jsonl", "[" * 200_000 + "\n", {}, r"x\.jsonl, line 1: not JSON .*mend or remove the line"),
        ("x.json", '{"data": [{"source": ' + "1" * 5000 + "}]}", {}, r"x\.json: not JSON"),
        ("x.jsonl", '{"\\ud83d": "a", "target": "b"}\n', {}, r"no column 'source'; it has '\\ud83d', 'target'"),
        (
            "x.jsonl",
            '{"translation": {"target": "b"}}\n{"translation": null}\n',
            {},
            "no column 'source'; it has 'target'",
        ),
        ("x.tsv", "x" * 500_000 + "\n", {}, r"x\.tsv: no column 'source'; it has 'x"),
        ("x.txt", "a\n", {}, "kind '.txt' is not known; allowed: .tsv, .csv"),
        ("x", "a\n", {}, "kind 'without suffix' is not known"),
        (
            "x.tsv",
            "a\tb\n",
            {"source_column": "a", "target_column": "a"},
            "source_column='a': is the target",
        ),
    ],
)
def test_a_bad_file_is_named_in_one_line(name, content, options, message, tmp_path):
    path = write(tmp_path / name, content)
    with pytest.raises(DataError, match=message) as caught:
        load(train_file=path, **options)
    assert "\n" not in str(caught.value) and len(str(caught.value)) <= 1000


def test_the_damaged_one_of_two_files_is_named(tmp_path):
    whole = gzip.compress(b"a\n" * 999, mtime=0)
    left, right = write(tmp_path / "p.en.gz", whole), write(tmp_path / "p.fr.gz", whole[:-12])
    with pytest.raises(DataError, match=r"file .*p\.fr\.gz: damaged gzip archive after line \d+ .*; fetch or pack it"):
        load(train_file=f"{left},{right}")


SIDES = {"de": "a", "en": "b"}
DAMAGED = {
    "flat": ([SIDES, {"de": "a"}, {"de": "a", "en": None}, {"en": "b"}, {}], {"empty_source": 2, "empty_target": 2}),
    "a side first": ([{"de": "a"}, SIDES], {"empty_target": 1}),
    "nested": (
        [
            {"translation": row}
            for row in (None, SIDES, {"de": "a"}, {"de": None, "en": "b"}, [1], "a", {"de": 1, "en": "b"})
        ],
        {"empty_source": 2, "empty_target": 1, "not_text": 3},
    ),
    "half characters": (
        [SIDES, {"de": "a \ud83d", "en": "b"}, {"de": "a", "en": "\udc00", "\ud83d": ""}],
        {"not_text": 2},
    ),
    "half characters, nested": (
        [{"translation": row} for row in (SIDES, {"de": "\ud83d", "en": "b"})],
        {"not_text": 1},
    ),
    "another column": ([{**SIDES, "translation": "a text"}, {**SIDES, "translation": None}], {}),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_rows_that_lack_a_side_are_counted(name, tmp_path):
    rows, skipped = DAMAGED[name]
    path = write(tmp_path / "x.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    languages = {"source_lang": "de", "target_lang": "en"}
    corpus = load(train_file=path, **languages)
    assert corpus.skipped == {"train": skipped}
    assert pairs_of(corpus.splits["train"]) == [("a", "b")] * (len(rows) - sum(skipped.values()))
    stream = load(train_file=path, **languages, streaming=True).splits["train"]
    assert [(row["source"], row["target"]) for row in stream] == pairs_of(corpus.splits["train"])


def test_nested_rows_of_a_table_and_of_a_folder_may_be_missing(tmp_path):
    rows = {"translation": [SIDES, None, {"de": "a", "en": None}]}
    pyarrow.parquet.write_table(pyarrow.table(rows), tmp_path / "x.parquet")
    datasets.Dataset.from_dict(rows).save_to_disk(str(tmp_path / "folder"))
    languages = {"source_lang": "de", "target_lang": "en"}
    for where in ({"train_file": str(tmp_path / "x.parquet")}, {"dataset_name": str(tmp_path / "folder")}):
        corpus = load(**where, **languages)
        assert corpus.skipped == {"train": {"empty_source": 1, "empty_target": 1}}
        with pytest.raises(DataError, match="column 'translation': no column 'fr'; it has 'de', 'en'"):
            load(**where, source_lang="de", target_lang="fr")


def test_a_parquet_table_with_two_columns_of_one_name_is_refused(tmp_path):
    table = pyarrow.table([["a"], ["b"], ["c"]], names=["source", "target", "target"])
    pyarrow.parquet.write_table(table, tmp_path / "x.parquet")
    with pytest.raises(DataError, match=r"x\.parquet: 'target' names 2 columns"):
        load(train_file=str(tmp_path / "x.parquet"))


def test_rows_that_span_lines_are_counted_and_the_first_is_shown(tmp_path, caplog):
    rows = ["source,target", "a,b", '"5 inch nail,clou', "c,d", 'end",fin', "e,f", '"g', 'h",i']
    path = write(tmp_path / "x.csv", "\n".join(rows))
    corpus = load(train_file=path)
    assert len(corpus.splits["train"]) == 4
    assert corpus.left_out("train").startswith("left out: none; 2 rows span lines, the first lines 3 to 5; where that")
    list(load(train_file=path, streaming=True).splits["train"])
    assert [record.getMessage().split(";")[0] for record in caplog.records] == ["train: row 2 spans lines 3 to 5"]


def test_a_stream_warns_once_of_each_problem(tmp_path, caplog):
    path = write(tmp_path / "x.tsv", "source\ttarget\na\tb\n\tb\n\tc\nd\n")
    assert len(list(load(train_file=path, streaming=True).splits["train"])) == 1
    messages = [record.getMessage().split(" (")[0] for record in caplog.records]
    assert messages == ["train: row 2 is left out: empty_source", "train: row 4 is left out: wrong_field_count"]


def test_a_pipe_is_refused(tmp_path):
    os.mkfifo(tmp_path / "x.tsv")
    with pytest.raises(DataError, match=r"x\.tsv is a pipe or a device; a file is expected"):
        load(train_file=str(tmp_path / "x.tsv"))


def test_the_last_line_needs_no_line_feed_and_the_first_may_have_a_byte_order_mark(tmp_path):
    for name, content in (("x.tsv", "\ufeffsource\ttarget\r\na\tb"), ("x.csv", '\ufeff"source",target\r\na,b')):
        assert pairs_of(load(train_file=write(tmp_path / name, content)).splits["train"]) == [("a", "b")]


def test_parallel_files_of_different_length_are_named_with_both_counts(tmp_path):
    left, right = write(tmp_path / "a.de", "x\n" * 100), write(tmp_path / "a.en", "y\n" * 103)
    for files, counts in (
        (f"{left},{right}", "a.de has 100 .*a.en has 103"),
        (f"{right},{left}", "a.en has 103 .*a.de has 100"),
    ):
        with pytest.raises(DataError, match=f"differ in length: .*{counts}"):
            load(train_file=files)


def test_bad_options_are_named(tmp_path):
    table = write_table(tmp_path, "tsv")
    for options, message in (
        ({}, "dataset_name=None: name a data set"),
        ({"dataset_name": "cldr", "train_file": table}, "either dataset_name .'cldr'. or files, not both"),
        ({"dataset_name": "cldr", "test_file": table}, "test_file=.*: either dataset_name .'cldr'. or files, not both"),
        ({"train_file": str(tmp_path / "no.tsv")}, r"no\.tsv does not exist"),
        ({"train_file": f"{table},{tmp_path}/no.en"}, r"no\.en does not exist"),
        ({"train_file": ",".join([table] * 3)}, "got 3 files"),
        ({"train_file": str(tmp_path)}, "is a folder"),
        ({"dataset_name": str(tmp_path)}, ": is a folder, but not one that datasets' save_to_disk wrote"),
        ({"dataset_name": table}, ": is a file; give it as train_file"),
        ({"train_file": table, "max_train_samples": 0}, "max_train_samples=0: must be at least 1"),
        ({"dataset_name": "cldr"}, "dataset_config_name=None: cldr needs it, such as en-fr, or source_lang"),
        ({"dataset_name": "cldr", "dataset_config_name": "en-xx"}, "locale 'xx': not known"),
        (
            {"dataset_name": "cldr", "dataset_config_name": "en-fr", "target_lang": "de"},
            "target_lang='de': contradicts dataset_config_name='en-fr'",
        ),
    ):
        with pytest.raises(InputError, match=message):
            load(**options)
    for split, message in (
        ("dev", "splits='dev': must be among train, validation, test"),
        ("test", "splits=test: no file is given for them"),
    ):
        with pytest.raises(DataError, match=message):
            load(train_file=table, splits=(split,))


def test_the_cache_notices_a_changed_file(tmp_path):
    path = Path(write_table(tmp_path, "tsv", [("a", "b")]))
    first = load(train_file=str(path), **READ)
    stamp = path.stat()
    write_table(tmp_path, "tsv", [("a", "c")])
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    second = load(train_file=str(path), **READ)
    assert pairs_of(second.splits["train"]) == [("a", "c")]
    assert first.description["fingerprint"] != second.description["fingerprint"]


def test_a_saved_data_set_is_loaded_by_its_folder(tmp_path):
    rows = {"translation": [{"fr": source, "en": target} for source, target in [*PAIRS, ("", "x")]]}
    saved = datasets.DatasetDict({"train": datasets.Dataset.from_dict(rows), "dev": datasets.Dataset.from_dict(rows)})
    saved.save_to_disk(tmp_path / "both")
    corpus = load(dataset_name=str(tmp_path / "both"), source_lang="fr", target_lang="en", max_eval_samples=2)
    assert pairs_of(corpus.splits["train"]) == PAIRS
    assert pairs_of(corpus.splits["validation"]) == PAIRS[:2]
    assert corpus.skipped == {"train": {"empty_source": 1}, "validation": {}}  # what is scored counts every row
    assert corpus.description["lines"] == {"train": len(PAIRS) + 1, "validation": len(PAIRS) + 1}
    assert corpus.description["name"] == "both"
    columns = {"src": [s for s, _ in PAIRS], "tgt": [t for _, t in PAIRS]}
    datasets.Dataset.from_dict(columns).save_to_disk(tmp_path / "one")
    single = load(dataset_name=str(tmp_path / "one"), source_column="src", target_column="tgt")
    assert {split: pairs_of(rows) for split, rows in single.splits.items()} == {"train": PAIRS}
    with pytest.raises(DataError, match="no column 'source'; it has 'src', 'tgt'"):
        load(dataset_name=str(tmp_path / "one"))
    with pytest.raises(DataError, match="has none of the splits test; it has train, dev"):
        load(dataset_name=str(tmp_path / "both"), source_lang="fr", target_lang="en", splits=("test",))


def test_cldr_is_a_corpus_like_any_other():
    corpus = load(
        dataset_name="cldr",
        dataset_config_name="en-fr",
        max_train_samples=300,
        max_eval_samples=40,
        max_predict_samples=20,
    )
    assert corpus.description["rows"] == {"train": 300, "validation": 40, "test": 20}
    assert corpus.description["license"] == "Unicode-3.0"
    other = load(
        dataset_name="cldr", source_lang="en", target_lang="fr", max_predict_samples=20, data_seed=7, splits=("test",)
    )
    assert pairs_of(other.splits["test"]) == pairs_of(corpus.splits["test"])
    assert list(other.splits) == ["test"]


def test_streaming_gives_the_same_rows(tmp_path):
    path = write(tmp_path / "x.tsv", "source\ttarget\na\tb\n\tb\nc\td\n")
    streamed = load(train_file=path, streaming=True)
    assert [(row["source"], row["target"]) for row in streamed.splits["train"]] == [("a", "b"), ("c", "d")]
    options = {"dataset_name": "cldr", "dataset_config_name": "en-fr", "max_train_samples": 50}
    rows, stored = (
        load(**options, streaming=streaming, splits=("train",)).splits["train"] for streaming in (True, False)
    )
    assert list(rows) == list(stored)
    tokenizer = build_tokenizer(stored["source"], stored["target"], vocab_size=400)
    limits = {"max_source_length": 8, "max_target_length": 9}
    kept, counts = tokenize_corpus(stored, tokenizer, **limits)
    columns = TextStream(rows, tokenizer, **limits, buffer=9).tokenize(list(rows))
    assert [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)] == list(kept)
    assert 0 < len(kept) == 50 - sum(counts.values()) < 50


def test_tokens_are_cached_by_content_and_memory_mapped(tmp_path):
    split = load(dataset_name="cldr", dataset_config_name="en-fr", max_train_samples=200, splits=("train",)).splits[
        "train"
    ]
    tokenizer = build_tokenizer(split["source"], split["target"], vocab_size=400)
    limits = {"max_source_length": 64, "max_target_length": 64, "cache_dir": tmp_path}
    rows, counts = tokenize_corpus(split, tokenizer, **limits)
    assert counts == {} and len(rows) == 200
    assert [Path(file["filename"]).parent for file in rows.cache_files] == [tmp_path]
    row = rows[3]
    assert row["input_ids"] == tokenizer(split[3]["source"])["input_ids"] and row["input_ids"][-1] == 2
    assert tokenizer.decode(row["labels"], skip_special_tokens=True) == split[3]["target"]
    assert (row["id"], row["source_length"], row["target_length"]) == (3, len(row["input_ids"]), len(row["labels"]))
    written = sorted(tmp_path.iterdir())
    tokenizer(["padding", "changes the state of the back end"], padding=True, truncation=True, max_length=4)
    again, _ = tokenize_corpus(split, tokenizer, **limits)
    assert sorted(tmp_path.iterdir()) == written and again[:] == rows[:]
    other = build_tokenizer(split["source"], split["target"], vocab_size=300)
    assert tokenize_corpus(split, other, **limits)[0][3]["input_ids"] != row["input_ids"]
    assert len(list(tmp_path.iterdir())) == 2 * len(written)
    parallel, _ = tokenize_corpus(split, other, **{**limits, "cache_dir": tmp_path / "new"}, num_proc=2)
    assert parallel[:] == tokenize_corpus(split, other, **limits)[0][:]


def test_rows_that_are_too_long_are_left_out_and_counted():
    split = datasets.Dataset.from_dict(
        {"source": ["a", "a a a", "a", "a a a"], "target": ["b", "b", "b b b", "b b b"], "id": [0, 1, 2, 3]},
        split="train",
    )
    tokenizer = build_tokenizer(["a"] * 3, ["b"] * 3, algorithm="word")
    rows, counts = tokenize_corpus(split, tokenizer, max_source_length=3, max_target_length=3)
    assert rows["id"][:] == [0]
    assert counts == {"too_long_source": 2, "too_long_target": 1}
    with pytest.raises(DataError, match="train: none of its . rows is within max_source_length=2, max_t.*; raise"):
        tokenize_corpus(split.select([1, 3]), tokenizer, max_source_length=2, max_target_length=2)
    with pytest.raises(DataError, match="max_target_length=1: must be at least 2"):
        tokenize_corpus(split, tokenizer, max_source_length=2, max_target_length=1)


def test_the_real_corpora_are_read_completely(shared_data):
    tatoeba, multi30k = shared_data / "tatoeba-fra-eng", shared_data / "multi30k"
    sides = {"source_lang": "fra", "target_lang": "eng"}
    corpus = load(validation_file=tatoeba / "dev.tsv.gz", test_file=tatoeba / "test.tsv.gz", **sides)
    assert corpus.description["rows"] == {"validation": 1435, "test": 1458}
    files = {side: multi30k / f"test_2016_flickr.{side}.gz" for side in ("de", "en")}
    corpus = load(test_file=f"{files['de']},{files['en']}")
    assert corpus.description["rows"] == {"test": 1000} and corpus.skipped == {"test": {}}

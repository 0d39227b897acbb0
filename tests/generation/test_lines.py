"""Streams of lines, plain and gzip: any bytes are read, and no line is lost."""

import gzip
import os
from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from hf_rnn_seq2seq.data.readers import FOREIGN
from hf_rnn_seq2seq.errors import ArgumentError, DataError
from hf_rnn_seq2seq.generation.lines import DatasetReader, LineReader, LineWriter


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.lists(st.binary(max_size=8), max_size=6))
def test_any_bytes_keep_the_line_count(data: list[bytes], tmp_path: Path) -> None:
    content = b"\n".join(data)
    assume(not content.startswith(tuple(FOREIGN)))  # which are refused
    (tmp_path / "in.txt").write_bytes(content)
    reader = LineReader(str(tmp_path / "in.txt"))
    lines = list(reader)
    expected = content.count(b"\n") + (not content.endswith(b"\n") and content != b"")
    assert len(lines) == reader.count() == expected
    (tmp_path / "out.txt").unlink(missing_ok=True)
    with LineWriter(str(tmp_path / "out.txt")) as writer:
        writer.write(lines)
    assert (tmp_path / "out.txt").read_bytes().count(b"\n") == expected


def test_streams_refuse_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("x")
    (tmp_path / "a.jsonl").write_text('{"other": "x"}\n')
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"abc\n" * 1000)[:-20])
    with pytest.raises(DataError, match="no such file"):
        LineReader(str(tmp_path / "missing"))
    with pytest.raises(DataError, match="is a folder; give a file"):
        LineReader(str(tmp_path))
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match="is a pipe or a device; give a file, which is read more than once"):
        LineReader(str(tmp_path / "pipe"))
    with pytest.raises(DataError, match="tables are not read"):
        LineReader(str(tmp_path / "a.csv"))
    with pytest.raises(DataError, match="line 1 is not a JSON object with a text field 'source'"):
        list(LineReader(str(tmp_path / "a.jsonl")))
    with pytest.raises(DataError, match=r"a\.txt\.gz.*, line \d+: not a whole gzip file"):
        list(LineReader(str(tmp_path / "a.txt.gz")))
    with pytest.raises(ArgumentError, match="output_file='.*/no/out': its folder does not exist"):
        LineWriter(str(tmp_path / "no" / "out"))
    with pytest.raises(DataError, match=r"out\.txt\.gz': lines are not packed; leave out \.gz"):
        LineWriter(str(tmp_path / "out.txt.gz"))


def test_an_archive_is_known_by_its_suffix_in_any_case(tmp_path: Path) -> None:
    for name, text in (("IN.TXT.GZ", b"a\nb\n"), ("In.Jsonl.gZ", b'{"source": "a"}\n{"source": "b"}\n')):
        (tmp_path / name).write_bytes(gzip.compress(text))
        reader = LineReader(str(tmp_path / name))
        assert list(reader) == ["a", "b"] and reader.count() == 2 and not reader.warnings()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a\nb\n".encode("utf-16"), "it is UTF-16; convert it with `iconv -f UTF-16 -t UTF-8`"),
        (gzip.compress(b"a\n"), "it is a gzip archive; name it with .gz at the end"),
        (b"PAR1", "it is a Parquet file"),
    ],
    ids=["UTF-16", "gzip", "Parquet"],
)
def test_what_is_no_text_is_named(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_bytes(content)
    with pytest.raises(DataError, match=rf"input '.*/in.txt', line 1, byte 0: not UTF-8: {message}"):
        list(LineReader(str(tmp_path / "in.txt")))


def test_a_language_is_a_column_or_a_key(tmp_path: Path) -> None:
    for name, rows in (
        ("columns", [{"en": "a", "source": "x", "fr": "b"}]),
        ("pairs", [{"translation": {"en": "a", "fr": "b"}}]),
    ):
        Dataset.from_list(rows).save_to_disk(str(tmp_path / name))
        assert list(DatasetReader(str(tmp_path / name), language="en")) == ["a"]
    assert list(DatasetReader(str(tmp_path / "columns"))) == ["x"]
    with pytest.raises(DataError, match="has no column 'de'; it has en, source, fr"):
        DatasetReader(str(tmp_path / "columns"), language="de")
    english = next(iter(DatasetReader("cldr", "en-fr", language="en")))
    assert english == next(iter(DatasetReader("cldr", "en-fr")))
    with pytest.raises(DataError, match="source_lang='fr': contradicts dataset_config_name='en-fr'"):
        DatasetReader("cldr", "en-fr", language="fr")
    with pytest.raises(DataError, match="source_lang 'de': the data set .* has en, fr"):
        DatasetReader(str(tmp_path / "pairs"), language="de")


def test_a_split_is_found_as_in_training(tmp_path: Path) -> None:
    """By its other names too, and with the same words about folders that hold no data set."""
    rows = {name: Dataset.from_list([{"source": name}]) for name in ("dev", "extra")}
    DatasetDict(rows).save_to_disk(str(tmp_path / "data"))
    for split in ("validation", "dev"):
        assert list(DatasetReader(str(tmp_path / "data"), split=split)) == ["dev"]
    assert list(DatasetReader(str(tmp_path / "data"), split="extra")) == ["extra"]
    with pytest.raises(DataError, match="split 'test': the data set '.*data' has dev, extra"):
        DatasetReader(str(tmp_path / "data"))
    (tmp_path / "other").mkdir()
    with pytest.raises(DataError, match="is a folder, but not one that datasets' save_to_disk wrote"):
        DatasetReader(str(tmp_path / "other"))


def test_the_translation_of_a_json_row_is_opened(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text(
        '{"translation": {"en": "a", "fr": "b"}}\n{"en": "c", "translation": {"en": "d"}}\n{"translation": null}\n'
    )
    reader = LineReader(str(tmp_path / "in.jsonl"), "en")
    assert list(reader) == ["a", "c", ""] and reader.damaged == [3]

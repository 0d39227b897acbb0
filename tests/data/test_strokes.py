"""Files of strokes, the splits by writer, the points of a row, and the embedded fonts."""

import gzip
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hf_rnn_seq2seq.data import hershey, strokes
from hf_rnn_seq2seq.data.arguments import DataArguments
from hf_rnn_seq2seq.data.strokes import PenCollator, load_pen_corpus, read_writings
from hf_rnn_seq2seq.errors import ArgumentError, DataError
from hf_rnn_seq2seq.model.pen_points import to_points

LINE = [[0, 0], [3, 4], [6, 0]]


def row(text: str = "ab", writer: str = "anna", **fields: Any) -> dict[str, Any]:
    return {"text": text, "writer": writer, "contributor": "office", "strokes": [LINE], **fields}


def save(folder: Path, *rows: dict[str, Any] | str) -> str:
    lines = [line if isinstance(line, str) else json.dumps(line) for line in rows]
    (folder / "words.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(folder / "words.jsonl")


def load(folder: Path, *rows: dict[str, Any], tolerance: float = 0.0, **options: Any) -> strokes.PenCorpus:
    return load_pen_corpus(DataArguments(task="handwriting", train_file=save(folder, *rows), **options), tolerance)


def test_rows_are_read_as_documented(tmp_path: Path) -> None:
    """Also from a gzipped file; what may be missing may be missing, and texts are composed and stripped."""
    given = row(" e\u0301\t", strokes=[LINE, [], [[1, 2.5]]]), {"strokes": [LINE]}
    path = Path(save(tmp_path, *given, ""))
    zipped = tmp_path / "words.jsonl.gz"
    zipped.write_bytes(gzip.compress(path.read_bytes()))
    for file in (path, zipped):
        first, second = read_writings(file)
        assert (first.text, first.writer, first.contributor) == ("é", "anna", "office")
        assert first.strokes == [[(0.0, 0.0), (3.0, 4.0), (6.0, 0.0)], [(1.0, 2.5)]]
        assert (second.text, second.writer, second.contributor) == ("", "", "")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"words.jsonl, line 2: is not JSON \(.*each line must be an object with `text` and `strokes`"),
        ("[1]", "line 2: must be an object with `strokes`, a list of lists"),
        ({"text": "a"}, "line 2: must be an object with `strokes`"),
        (row(strokes=[[[1, 2], [3]]]), r"line 2: a stroke must be a list of \[x, y\], each two finite numbers"),
        (row(strokes=[[[1, "2"]]]), "line 2: a stroke must be"),
        (row(strokes=[[[1, True]]]), "line 2: a stroke must be"),
        ('{"strokes": [[[1, NaN]]]}', "line 2: a stroke must be"),
        (row(strokes=[[1, 2]]), "line 2: a stroke must be"),
        (row(strokes=[[]]), r"line 2: strokes=\[\] has no place of the pen"),
        (row(text=["a"]), r"line 2: text=\['a'\] must be a text"),
        (row(writer=7), "line 2: writer=7 must be a text"),
    ],
)
def test_a_damaged_row_is_named(line: dict[str, Any] | str, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        list(read_writings(Path(save(tmp_path, row(), line))))


def test_rows_that_cannot_be_used_are_counted(tmp_path: Path) -> None:
    rows = [row(), row(text=" "), row(strokes=[[[1, 1]] * 9]), row(strokes=[[[0, y % 2] for y in range(9)]])]
    corpus = load(tmp_path, *rows, {**row(), "strokes": [[[0, 1]], [[5, 9]]]}, max_target_length=6)
    assert corpus.splits["train"]["id"] == [0, 4]
    assert corpus.skipped["train"] == {"empty_text": 1, "too_many_points": 2}
    assert corpus.splits["train"]["target_length"] == [2, 2] and corpus.splits["train"]["source_length"] == [3, 3]


def test_offsets_are_counted_in_the_heights_of_a_writer(tmp_path: Path) -> None:
    """The median of the writer's rows; of an unknown writer the row's own."""
    wide = [[[10 * x, 10 * y] for x, y in LINE]]
    rows = [row(), row(), row(strokes=wide), row(writer="bob", strokes=wide), row(writer="", strokes=wide)]
    points = [np.reshape(one, (-1, 3)) for one in load(tmp_path, *rows).splits["train"]["points"]]
    for number, factor in enumerate((1, 1, 10, 1, 1)):
        np.testing.assert_allclose(points[number], [[0.75 * factor, factor, 0], [0.75 * factor, -factor, 1]])


def test_writers_are_held_out(tmp_path: Path) -> None:
    """By their own name or their contributor's; they are in no other split."""
    rows = [row(writer=name, text=name, contributor=firm) for name, firm in zip("abcd", "xxyz", strict=True)]
    corpus = load(tmp_path, *rows, validation_writers=["b"], test_writers=["y", "z"])
    assert {split: table["text"] for split, table in corpus.splits.items()} == {
        "train": ["a"],
        "validation": ["b"],
        "test": ["c", "d"],
    }
    assert corpus.description["test_writers"] == ["y", "z"]
    other = load(tmp_path, *rows, test_writers=["z"])
    assert corpus.description["fingerprint"] != other.description["fingerprint"]


def test_a_corpus_is_known_by_its_content(tmp_path: Path) -> None:
    folders = [tmp_path / "here", tmp_path / "there"]
    for folder in folders:
        folder.mkdir()
    prints = [load(folder, row("ab")).description["fingerprint"] for folder in folders]
    assert prints[0] == prints[1] != load(tmp_path, row("ba")).description["fingerprint"]


def test_what_is_known_of_the_training_split(tmp_path: Path) -> None:
    corpus = load(tmp_path, row("ba"), row("bz", strokes=[[[0, 0], [1, 4], [9, 4]]]), validation_writers=[])
    assert corpus.alphabet() == "abz"
    offsets = np.array([[0.75, 1], [0.75, -1], [0.25, 1], [2, 0]])
    np.testing.assert_allclose(corpus.deviation(), offsets.std(0), rtol=1e-5)
    left = corpus.written_with("ab")
    assert left.splits["train"]["text"] == ["ba"] and left.skipped["train"] == {"unknown_character": 1}
    level = load(tmp_path, row(strokes=[[[0, 0], [1, 0], [3, 0]]]))
    with pytest.raises(DataError, match="train: all offsets across or up are equal"):
        level.deviation()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"dataset_name": "cldr"}, ArgumentError, "dataset_name='cldr': task='handwriting' has `hershey`"),
        (
            {"dataset_name": "hershey", "test_writers": ["a"]},
            ArgumentError,
            "test_writers=a: dataset_name='hershey' has",
        ),
        ({"test_file": "FILE", "test_writers": ["a"]}, ArgumentError, "test_writers=a: test_file='.*' is that split"),
        (
            {"validation_writers": ["a"]},
            ArgumentError,
            "validation_writers=a: are rows of train_file, which is not given",
        ),
        ({"train_file": "nowhere.jsonl"}, DataError, "train_file='nowhere.jsonl': cannot be read"),
        (
            {"train_file": "FILE", "test_writers": ["unknown"]},
            DataError,
            "words.jsonl: has no row by unknown",
        ),
        (
            {"train_file": "FILE", "test_writers": ["anna", "ben"]},
            DataError,
            "words.jsonl: has no row but those by anna,ben, which are held out; name fewer of them in validation_writ",
        ),
        ({"train_file": "FILE", "max_target_length": 1}, DataError, "train: has no usable row; .* 2 to 1 points"),
    ],
)
def test_a_corpus_that_cannot_be_is_refused(
    options: dict[str, Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    file = save(tmp_path, row())
    options = {name: file if value == "FILE" else value for name, value in options.items()}
    with pytest.raises(error, match=message):
        load_pen_corpus(DataArguments(task="handwriting", **options), 0.0)


def test_strokes_are_for_handwriting() -> None:
    with pytest.raises(
        ArgumentError, match="dataset_name='hershey': has strokes of a pen; it is for task='handwriting'"
    ):
        DataArguments(dataset_name="hershey")


def test_batches_are_padded_and_divided() -> None:
    collate = PenCollator("ab", [0.5, 2.0])
    batch = collate({"text": ["a", "bab"], "points": [[1.0, 4.0, 1.0], [1.0, 2.0, 0.0, -1.0, 0.0, 1.0]]})
    nothing = [-100.0] * 3
    assert batch["labels"].tolist() == [[[2.0, 2.0, 1.0], nothing], [[2.0, 1.0, 0.0], [-2.0, 0.0, 1.0]]]
    assert batch["input_ids"].tolist() == [[1, 0, 0], [2, 1, 2]] and batch["labels"].dtype == torch.float32
    assert set(PenCollator("", [1, 1])({"text": ["?"], "points": [[0.0, 0.0, 1.0]]})) == {"labels"}


# ------------------------------------------------------------------------------------------------ fonts


def test_the_fonts_share_no_word_between_splits() -> None:
    assert len(hershey.words()) > 900 and all(word.isascii() and word.isalpha() for word in hershey.words())
    found = {split: {one.text for one in hershey.generate(split, 0, 150)} for split in hershey.SPLITS}
    assert not found["train"] & found["test"] and not found["validation"] & found["test"]
    assert {one.writer for one in hershey.generate("test", 0, 20)} == {"roman", "script"}


def test_the_fonts_are_drawn_alike_and_by_seed() -> None:
    first, again, other = (list(hershey.generate("train", seed, 5)) for seed in (0, 0, 1))
    assert first == again != other
    assert list(hershey.generate("test", 0, 5)) == list(hershey.generate("test", 1, 5))


@pytest.mark.parametrize("font", hershey.FONTS)
def test_every_letter_is_a_line_inside_its_box(font: str) -> None:
    for letter in "abcdefghijklmnopqrstuvwxyz":
        left, right, parts = hershey.glyph(letter, font)
        assert left < 0 < right and all(len(stroke) > 1 for stroke in parts)
        assert all(-13 <= y <= 21 and left - 8 <= x <= right + 8 for stroke in parts for x, y in stroke)
    (stem,) = hershey.letters("l", "roman")
    assert stem[0] == (4.0, 12.0) and stem[-1] == (4.0, -9.0)  # an l goes down
    assert max(math.dist(a, b) for a, b in zip(stem, stem[1:], strict=False)) < 5


def test_the_embedded_corpus_loads() -> None:
    data = DataArguments(task="handwriting", dataset_name="hershey", max_train_samples=30, max_eval_samples=4)
    corpus = load_pen_corpus(data, 0.03, splits=("train", "validation"))
    assert {split: len(rows) for split, rows in corpus.splits.items()} == {"train": 30, "validation": 4}
    one = next(hershey.generate("train", 0, 1))
    assert corpus.splits["train"][0]["text"] == one.text
    unit = 1.0  # only the number of points is compared, which does not depend on it
    assert corpus.splits["train"][0]["target_length"] <= len(to_points(one.strokes, unit, 0.0)) - 1
    assert set(corpus.alphabet()) <= set("abcdefghijklmnopqrstuvwxyz")

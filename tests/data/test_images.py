"""Pictures by name, captions in the form of Flickr8k, rows and batches, and the states of a frozen encoder."""

import gzip
import zipfile
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from hf_rnn_seq2seq.data.arguments import DataArguments
from hf_rnn_seq2seq.data.corpus import load_corpus
from hf_rnn_seq2seq.data.images import CaptionCollator, Pictures, PixelReader, StateReader, caption_rows
from hf_rnn_seq2seq.data.tokenizer import build_tokenizer
from hf_rnn_seq2seq.errors import ArgumentError, DataError
from hf_rnn_seq2seq.model.processing_rnn_seq2seq import RnnSeq2SeqProcessor

COLORS = {"red.png": (255, 0, 0), "green.png": (0, 255, 0), "gray.png": 128}
CAPTIONS = """\
red.png#0\tA red square 's corner .
red.png#1\tall is red
green.png#0\tA green square .
other.jpg#0\tNobody lists this .
gray.png#0\tgray
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Pictures of one color each, their captions, and two lists."""
    (tmp_path / "pictures").mkdir()
    for name, color in COLORS.items():
        mode = "L" if isinstance(color, int) else "RGB"
        Image.new(mode, (6, 4), color).save(tmp_path / "pictures" / name)
    with zipfile.ZipFile(tmp_path / "pictures.zip", "w") as archive:
        for name in COLORS:
            archive.write(tmp_path / "pictures" / name, name)
    with gzip.open(tmp_path / "captions.txt.gz", "wt", encoding="utf-8") as file:
        file.write(CAPTIONS)
    (tmp_path / "train.txt").write_text("red.png\n\ngreen.png\n", encoding="utf-8")
    (tmp_path / "test.txt").write_text("gray.png\n", encoding="utf-8")
    return tmp_path


def options(folder: Path, **changes: str | None) -> DataArguments:
    given = {"captions_file": "captions.txt.gz", "train_file": "train.txt", "test_file": "test.txt"} | changes
    paths = {name: value and str(folder / value) for name, value in given.items()}
    return DataArguments(task="captioning", **({"image_folder": str(folder / "pictures")} | paths))


def test_every_caption_of_a_listed_picture_is_a_row(folder: Path) -> None:
    corpus = load_corpus(options(folder))
    rows = [tuple(row.values()) for row in corpus.splits["train"].select_columns(["source", "target", "id"])]
    assert rows == [
        ("red.png", "a red square 's corner", 0),
        ("red.png", "all is red", 1),
        ("green.png", "a green square", 2),
    ]
    assert corpus.splits["test"]["target"][:] == ["gray"]
    table = folder / "table.tsv"
    table.write_text("image\tcaption\nred.png\tall is red\n", encoding="utf-8")
    plain = load_corpus(options(folder, captions_file=None, train_file="table.tsv", test_file=None))
    assert plain.splits["train"]["source"][:] == ["red.png"]


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("test.txt", "red.png\nblue.png\n", r"line 2: 'blue.png' has no caption"),
        ("test.txt", "\n", "lists no picture"),
        ("captions.txt", "red.png\tA red square\n", r"line 1: .* must be picture#number, a tab and a caption"),
        ("captions.txt", "\n", "holds no captions"),
    ],
)
def test_a_wrong_list_is_named(folder: Path, file: str, text: str, message: str) -> None:
    (folder / file).write_text(text, encoding="utf-8")
    changes = {"captions_file": file} if file == "captions.txt" else {}
    with pytest.raises(DataError, match=message):
        load_corpus(options(folder, train_file="test.txt", test_file=None, **changes))


def test_pictures_of_a_folder_and_of_a_zip_are_the_same(folder: Path) -> None:
    plain, packed = Pictures(folder / "pictures"), Pictures(folder / "pictures.zip")
    for name in COLORS:
        assert plain.open(name).mode == "RGB"
        assert plain.open(name).tobytes() == packed.open(name).tobytes()
    for shown in (plain, packed):
        shown.require(list(COLORS))
        with pytest.raises(DataError, match=r"1 of 2 pictures are not there \('blue.png'\)"):
            shown.require(["red.png", "blue.png"])
        with pytest.raises(DataError, match="picture 'blue.png' of .* cannot be read"):
            shown.open("blue.png")
    before = plain.content(["red.png"])
    assert before != plain.content(["green.png"]) and packed.content(["red.png"]) != packed.content(["green.png"])
    with pytest.raises(DataError, match="is no folder and no .zip"):
        Pictures(folder / "nowhere")
    with pytest.raises(DataError, match="image_folder .*train.txt.* cannot be read"):
        Pictures(folder / "train.txt")


def test_a_zip_may_hold_one_folder_with_everything(folder: Path) -> None:
    """As `zip -r pictures.zip pictures` writes it; the whole name is right too."""
    with zipfile.ZipFile(folder / "nested.zip", "w") as archive:
        archive.writestr("pictures/", "")
        archive.writestr("__MACOSX/pictures/._red.png", b"")
        for name in COLORS:
            archive.write(folder / "pictures" / name, f"pictures/{name}")
    nested, plain = Pictures(folder / "nested.zip"), Pictures(folder / "pictures")
    nested.require([*COLORS, "pictures/red.png"])
    assert nested.open("red.png").tobytes() == nested.open("pictures/red.png").tobytes()
    assert nested.open("green.png").tobytes() == plain.open("green.png").tobytes()
    assert nested.content(["red.png"]) == nested.content(["red.png"]) != nested.content(["green.png"])
    with zipfile.ZipFile(folder / "nested.zip", "a") as archive:
        archive.writestr("other/blue.png", b"")
    with pytest.raises(DataError, match="1 of 1 pictures are not there"):
        Pictures(folder / "nested.zip").require(["red.png"])


def test_pictures_of_every_kind_are_read_in_rgb(tmp_path: Path) -> None:
    """A column of dark, middle and light gray; a camera may be held sideways; transparency counts for nothing."""
    gray = np.array([[0], [128], [255]], dtype=np.uint8)
    kinds = {mode: Image.fromarray(gray).convert(mode) for mode in ("L", "RGB", "RGBA", "LA", "P", "CMYK")}
    kinds["I;16"] = Image.fromarray(gray.astype(np.uint16) * 257)
    clear = Image.fromarray(gray).convert("P")
    clear.info["transparency"] = bytes([0, 255])
    sideways = Image.fromarray(np.ascontiguousarray(gray.T))
    turned = Image.Exif()
    turned[0x0112] = 6  # the camera's right is up
    for mode, picture in kinds.items():
        picture.save(tmp_path / f"{mode}.tiff")
    clear.save(tmp_path / "clear.png")
    sideways.save(tmp_path / "sideways.png", exif=turned)
    shown = Pictures(tmp_path)
    for name in [*(f"{mode}.tiff" for mode in kinds), "clear.png", "sideways.png"]:
        found = shown.open(name)
        assert (found.mode, found.size) == ("RGB", (1, 3)), name
        assert np.abs(np.asarray(found)[:, 0].astype(int) - gray.astype(int)).max() <= 1, name


def test_a_damaged_picture_is_named(folder: Path) -> None:
    whole = folder / "whole.jpg"
    Image.new("RGB", (64, 64), (200, 10, 10)).save(whole)
    (folder / "pictures" / "cut.jpg").write_bytes(whole.read_bytes()[:-100])
    (folder / "pictures" / "empty.jpg").write_bytes(b"")
    (folder / "pictures" / "text.jpg").write_text("no picture", encoding="utf-8")
    for name in ("cut.jpg", "empty.jpg", "text.jpg"):
        with pytest.raises(DataError, match=f"picture '{name}' of .*pictures: cannot be read"):
            Pictures(folder / "pictures").open(name)


def test_a_list_may_name_a_picture_twice(folder: Path) -> None:
    (folder / "train.txt").write_text("red.png\ngreen.png\nred.png\n", encoding="utf-8")
    assert load_corpus(options(folder)).splits["train"]["source"][:] == ["red.png", "red.png", "green.png"]


@pytest.fixture
def saved(folder: Path) -> Path:
    """A data set whose column of pictures is in front of one caption, and of a list of captions."""
    names = list(COLORS)
    paths = [str(folder / "pictures" / name) for name in names]
    rows = {"image": paths, "caption": ["a red square", "  ", "gray"]}
    rows["all"] = [["all is red", "a square"], [], ["gray"]]
    features = {"image": datasets.Image(), "caption": datasets.Value("string")}
    features["all"] = datasets.List(datasets.Value("string"))
    train = datasets.Dataset.from_dict(rows, features=datasets.Features(features))
    datasets.DatasetDict({"train": train, "val": train.select([2])}).save_to_disk(folder / "saved")
    return folder / "saved"


def test_a_data_set_holds_its_pictures(folder: Path, saved: Path) -> None:
    """One caption, or a list; a row without any is counted. Both splits number their pictures from 0."""
    data = DataArguments(task="captioning", dataset_name=str(saved))
    corpus = load_corpus(data)
    train = corpus.splits["train"]
    assert train["source"][:] == ["train/0", "train/2"] and train["target"][:] == ["a red square", "gray"]
    assert corpus.skipped["train"] == {"empty_target": 1}
    assert corpus.splits["validation"]["source"][:] == ["val/0"]
    several = load_corpus(DataArguments(task="captioning", dataset_name=str(saved), target_column="all"))
    rows = several.splits["train"]
    assert rows["source"][:] == ["train/0", "train/0", "train/2"] and rows["id"][:] == [0, 1, 2]
    assert rows["target"][:] == ["all is red", "a square", "gray"]
    shown, plain = Pictures.of(data), Pictures(folder / "pictures")
    for name, same in {"train/0": "red.png", "train/1": "green.png", "val/0": "gray.png"}.items():
        assert shown.open(name).tobytes() == plain.open(same).tobytes()
    shown.require(train["source"][:])
    again = Pictures.of(data)
    assert shown.content(["train/0"]) == again.content(["train/0"]) != again.content(["train/1"])


def test_columns_of_a_data_set_that_hold_something_else_are_named(saved: Path) -> None:
    for changes, message in (
        ({"target_column": "text"}, r"no column 'text'; it has .*choose with source_column and target_column"),
        ({"source_column": "caption", "target_column": "all"}, r"column 'caption' holds no pictures; choose with"),
        ({"target_column": "image", "source_column": "all"}, r"column 'all' holds no pictures"),
    ):
        with pytest.raises(DataError, match=message):
            load_corpus(DataArguments(task="captioning", dataset_name=str(saved), **changes))


def test_rows_and_batches_of_captions(folder: Path) -> None:
    split = load_corpus(options(folder)).splits["train"]
    tokenizer = build_tokenizer((), split["target"], algorithm="word", min_frequency=1)
    names = ["green.png", "red.png"]
    rows, left_out = caption_rows(split, names, tokenizer, 5)
    assert left_out == {"too_long_target": 1}  # of five words and the end
    rows, left_out = caption_rows(split, names, tokenizer, 6)
    assert (left_out, rows["picture"][:], rows["source_length"][:]) == ({}, [1, 1, 0], [1, 1, 1])
    assert rows["target_length"][:] == [6, 4, 4]
    read = PixelReader(Pictures(folder / "pictures"), ViTImageProcessorPil(size={"height": 8, "width": 8}))
    batch = CaptionCollator(names, read, tokenizer.pad_token_id)(rows[[0, 1, 2]])
    assert batch["labels"].tolist()[1][4:] == [-100, -100]
    assert tokenizer.batch_decode([[i for i in row if i >= 0] for row in batch["labels"].tolist()]) == [
        "a red square 's corner </s>",
        "all is red </s>",
        "a green square </s>",
    ]
    assert batch["pixel_values"].shape == (3, 3, 8, 8)
    assert [channel.mean().item() for channel in batch["pixel_values"][2]] == [-1.0, 1.0, -1.0]
    with pytest.raises(DataError, match="none of its 3 captions is within max_target_length=2"):
        caption_rows(split, names, tokenizer, 2)


def test_states_of_a_frozen_encoder_are_computed_once_for_each_picture(folder: Path) -> None:
    names, seen = list(COLORS), []
    pixels = PixelReader(Pictures(folder / "pictures"), ViTImageProcessorPil(size={"height": 8, "width": 8}))

    def encode(values: torch.Tensor) -> torch.Tensor:
        """The four quarters of a picture as states of three numbers."""
        seen.append(len(values))
        return torch.nn.functional.avg_pool2d(values, 4).flatten(2).transpose(1, 2) / 3

    kept = StateReader(names, pixels, encode, f"weights of {folder}", batch_size=2)
    assert sum(seen) == len(names) + 1  # the first one twice, for the width
    states = kept(["gray.png", "red.png", "gray.png"])["inputs_embeds"]
    exact = encode(pixels(["gray.png", "red.png", "gray.png"])["pixel_values"])
    assert states.dtype == torch.float32 and states.shape == (3, 4, 3)
    assert np.array_equal(states.numpy(), exact.half().float().numpy())
    seen.clear()
    StateReader(names, pixels, encode, f"weights of {folder}")
    assert seen == [1], "another run of the same encoder reads the cache"
    tokenizer = build_tokenizer((), ["red"], algorithm="word", min_frequency=1)
    RnnSeq2SeqProcessor(pixels.image_processor, tokenizer).save_pretrained(folder / "saved")
    resumed = PixelReader(pixels.pictures, AutoImageProcessor.from_pretrained(folder / "saved"))
    assert "auto_map" in resumed.image_processor.to_dict()
    StateReader(names, resumed, encode, f"weights of {folder}")
    assert seen == [1, 1], "so does a run that is resumed"
    seen.clear()
    StateReader(names, pixels, encode, f"other weights of {folder}")
    assert sum(seen) == 1 + len(names)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"dataset_name": "cldr"}, "dataset_name='cldr': has no pictures"),
        ({"dataset_name": "shapes", "image_folder": "x"}, "image_folder='x': dataset_name='shapes' draws its pictures"),
        ({"train_file": "x.tsv"}, "image_folder=None: task='captioning' needs the folder or .zip"),
        ({"dataset_name": "a/b", "image_folder": "x", "captions_file": "c"}, "captions_file='c': goes with train_file"),
    ],
)
def test_options_of_pictures_fit_together(given: dict[str, str], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        DataArguments(task="captioning", **given)

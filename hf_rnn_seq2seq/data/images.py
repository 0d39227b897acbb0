"""Pictures by name, the rows of their captions, and the batches that a model reads.

A row has one caption and the number of its picture. A batch opens its pictures and prepares them as pixels; the states
of a frozen encoder are computed once for each picture and cached on disk, so that no epoch runs it again.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import datasets
import numpy as np
import torch
from datasets import Dataset, Features, List, Value, concatenate_datasets
from PIL import Image, ImageOps
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from hf_rnn_seq2seq.data.arguments import DataArguments
from hf_rnn_seq2seq.data.batching import Collator
from hf_rnn_seq2seq.data.corpus import open_named
from hf_rnn_seq2seq.errors import DataError, listed_names, reading
from hf_rnn_seq2seq.files import content_hash, digest
from hf_rnn_seq2seq.model.tokenization_rnn_seq2seq import target_ids
from hf_rnn_seq2seq.run_directory import tokenizer_hash

if TYPE_CHECKING:
    from transformers.image_processing_utils import BaseImageProcessor

# Pictures whose states are one file of the cache: an interrupted run loses no more.
_CHUNK = 1024
_ROWS = Features(
    {
        "id": Value("int64"),
        "picture": Value("int32"),
        "labels": List(Value("int32")),
        "source_length": Value("int32"),
        "target_length": Value("int32"),
    }
)

ReadPictures = Callable[[Sequence[str]], dict[str, Tensor]]
"""Names of pictures -> what the model reads: `pixel_values`, or `inputs_embeds` (states of a frozen encoder)."""


class Pictures:
    """Opens pictures by name: those of a folder, of a .zip or of a data set, or drawn ones.

    Args:
        folder: a folder, or a .zip that may have one folder around all pictures. None: they are
            drawn (`shapes`), or given by `tables`.
        tables: for each split its column of pictures, `datasets.Image(decode=False)`. A name is then `split/number`.

    Raises:
        DataError: there is no such folder, or it is no .zip.
    """

    def __init__(self, folder: str | Path | None, tables: Mapping[str, Dataset] | None = None) -> None:
        self.folder = None if folder is None else Path(folder)
        self.tables = tables
        self.archive: zipfile.ZipFile | None = None
        self.inside: dict[str, str] = {}  # name of a picture -> its place in the .zip
        if self.folder is not None and self.folder.is_file():
            with reading(f"image_folder {folder}", DataError):
                self.archive = zipfile.ZipFile(self.folder)
            self.inside = _places(self.archive.namelist())
        elif self.folder is not None and not self.folder.is_dir():
            raise DataError(f"image_folder {str(folder)!r}: is no folder and no .zip")

    @classmethod
    def of(cls, data: DataArguments) -> Pictures:
        """The pictures that the options describe.

        Raises:
            DataError: they cannot be read.
        """
        if data.dataset_name in (None, "shapes") or data.image_folder:
            return cls(None if data.dataset_name == "shapes" else data.image_folder)
        column = data.source_column or "image"
        raw = datasets.Image(decode=False)
        splits = open_named(data, data.dataset_name)
        return cls(None, {name: rows.select_columns(column).cast_column(column, raw) for name, rows in splits.items()})

    @property
    def drawn(self) -> bool:
        """Whether the pictures are those of `shapes`."""
        return self.folder is None and self.tables is None

    def open(self, name: str) -> Image.Image:
        """The picture in RGB.

        Raises:
            DataError: there is none of this name, or it cannot be read.
        """
        if self.tables is not None:
            split, _, number = name.rpartition("/")
            with reading(f"picture {name!r} of the data set", DataError):
                (held,) = self.tables[split][int(number)].values()
                with Image.open(io.BytesIO(held["bytes"]) if held["bytes"] else held["path"]) as picture:
                    return as_rgb(picture)
        if self.drawn:
            from hf_rnn_seq2seq.data import shapes

            return shapes.draw(name)
        with reading(f"picture {name!r} of {self.folder}", DataError):
            if self.archive is None:
                with Image.open(self.folder / name) as picture:
                    return as_rgb(picture)
            with self.archive.open(self.inside[name]) as file, Image.open(file) as picture:
                return as_rgb(picture)

    def require(self, names: Sequence[str]) -> None:
        """Raises DataError if pictures are missing; it says how many, and names the first."""
        if self.folder is None:
            return
        if self.archive is None:
            missing = [name for name in names if not (self.folder / name).is_file()]
        else:
            missing = [name for name in names if name not in self.inside]
        if missing:
            raise DataError(
                f"image_folder {str(self.folder)!r}: {len(missing)} of {len(names)} pictures are not there "
                f"({listed_names(missing[:3])}); name the folder that holds them"
            )

    def content(self, names: Sequence[str]) -> str:
        """Hash of the pictures; of files by name, size and time, so that gigabytes need not be read."""
        if self.tables is not None:
            return digest([{split: rows._fingerprint for split, rows in self.tables.items()}, *names])
        if self.folder is None:
            from hf_rnn_seq2seq.data import shapes

            return digest([shapes.generator_version(), *names])
        if self.archive is not None:
            return digest([[name, self.archive.getinfo(self.inside[name]).CRC] for name in names])
        stats = [(self.folder / name).stat() for name in names]
        return digest([[name, stat.st_size, stat.st_mtime_ns] for name, stat in zip(names, stats, strict=True)])


def _places(inside: Sequence[str]) -> dict[str, str]:
    """Name of a picture -> its place in a .zip: the same, or without the one folder that holds everything."""
    files = [name for name in inside if not name.endswith("/") and not name.startswith("__MACOSX/")]
    folders = {PurePosixPath(name).parts[0] for name in files}
    places = {name: name for name in files}
    if len(folders) == 1 and all("/" in name for name in files):
        places |= {name.split("/", 1)[1]: name for name in files}
    return places


def as_rgb(picture: Image.Image) -> Image.Image:
    """The picture in RGB, turned as its camera says; 16 bits of gray as 8, which Pillow would clip."""
    ImageOps.exif_transpose(picture, in_place=True)
    if picture.mode.startswith("I;16"):
        picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    if picture.mode == "P" and "transparency" in picture.info:
        picture = picture.convert("RGBA")
    return picture.convert("RGB")


def caption_rows(
    split: Dataset, names: Sequence[str], tokenizer: PreTrainedTokenizerBase, max_target_length: int
) -> tuple[Dataset, dict[str, int]]:
    """The rows of a split as token ids, cached by the content of the split and of the tokenizer.

    Args:
        split: text columns `source` (the name of a picture) and `target` (a caption), and `id`.
        names: the pictures, distinct.
        max_target_length: in tokens with the end token; longer captions are left out and counted.

    Returns:
        `id`, `picture` (position in `names`), `labels`, `source_length` (1: a picture), `target_length`; and the number
        of rows left out by reason.

    Raises:
        DataError: no caption is short enough.
    """
    places = {name: number for number, name in enumerate(names)}
    key = digest([split._fingerprint, tokenizer_hash(tokenizer), content_hash([Path(__file__)]), list(names)])[:32]

    def encode(batch: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
        labels = target_ids(tokenizer(text_target=batch["target"], verbose=False))
        return {
            "id": batch["id"],
            "picture": [places[name] for name in batch["source"]],
            "labels": labels,
            "source_length": [1] * len(labels),
            "target_length": list(map(len, labels)),
        }

    rows = split.map(
        encode,
        batched=True,
        remove_columns=split.column_names,
        features=_ROWS,
        new_fingerprint=key,
        cache_file_name=str(cache_folder() / f"captions-{key}.arrow"),
        desc="Tokenizing",
    )
    lengths = np.asarray(rows.with_format("numpy")["target_length"])
    short = np.flatnonzero(lengths <= max_target_length)
    if not len(short):
        raise DataError(
            f"{split.split or 'corpus'}: none of its {len(rows)} captions is within {max_target_length=}; raise it"
        )
    left_out = len(rows) - len(short)
    return (rows.select(short), {"too_long_target": left_out}) if left_out else (rows, {})


def cache_folder() -> Path:
    """Where rows and states are kept, beside the other corpora."""
    folder = Path(datasets.config.HF_DATASETS_CACHE) / "hf_rnn_seq2seq"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


class PixelReader:
    """Opens pictures and prepares them as an image processor says."""

    def __init__(self, pictures: Pictures, image_processor: BaseImageProcessor) -> None:
        self.pictures, self.image_processor = pictures, image_processor

    def __call__(self, names: Sequence[str]) -> dict[str, Tensor]:
        """`pixel_values`, (pictures, channels, height, width)."""
        opened = [self.pictures.open(name) for name in names]
        return {"pixel_values": self.image_processor(opened, return_tensors="pt")["pixel_values"]}

    def identity(self, names: Sequence[str]) -> str:
        """Hash of the pixels of these pictures."""
        settings = self.image_processor.to_dict()
        for name in ("auto_map", "processor_class"):  # how a checkpoint is loaded, which a new run does not have yet
            settings.pop(name, None)
        return digest([self.pictures.content(names), json.dumps(settings, sort_keys=True, default=str)])


class StateReader:
    """The states of a frozen encoder for pictures, each computed once and kept on disk in half precision.

    Args:
        names: the pictures that may be asked for, distinct.
        pixels: makes the input of `encode`.
        encode: pixels (pictures, channels, height, width) -> states (pictures, regions, width).
        encoder_hash: of the encoder's weights and settings.
        batch_size: pictures that are encoded together.
    """

    def __init__(
        self,
        names: Sequence[str],
        pixels: PixelReader,
        encode: Callable[[Tensor], Tensor],
        encoder_hash: str,
        batch_size: int = 32,
    ) -> None:
        self.places = {name: number for number, name in enumerate(names)}
        self.width = encode(pixels(names[:1])["pixel_values"]).shape[-1]

        def states(batch: Mapping[str, list[str]]) -> dict[str, list[bytes]]:
            with torch.no_grad():
                found = encode(pixels(batch["name"])["pixel_values"])
            # Bytes are mapped from disk as they are; nested lists of numbers would be built anew at each reading.
            return {"states": [row.tobytes() for row in found.to("cpu", torch.float16).numpy()]}

        chunks = []
        for start in range(0, len(names), _CHUNK):
            chunk = list(names[start : start + _CHUNK])
            key = digest([encoder_hash, pixels.identity(chunk), content_hash([Path(__file__)])])[:32]
            chunks.append(
                Dataset.from_dict({"name": chunk}).map(
                    states,
                    batched=True,
                    batch_size=batch_size,
                    remove_columns=["name"],
                    features=Features({"states": Value("large_binary")}),
                    new_fingerprint=key,
                    cache_file_name=str(cache_folder() / f"states-{key}.arrow"),
                    writer_batch_size=64,
                    desc=f"Encoding pictures {start + 1} to {start + len(chunk)} of {len(names)}",
                )
            )
        self.table = concatenate_datasets(chunks)

    def __call__(self, names: Sequence[str]) -> dict[str, Tensor]:
        """`inputs_embeds`, (pictures, regions, width) of float32."""
        kept = self.table[[self.places[name] for name in names]]["states"]
        states = [np.frombuffer(row, dtype=np.float16).reshape(-1, self.width) for row in kept]
        return {"inputs_embeds": torch.from_numpy(np.stack(states).astype(np.float32))}


class CaptionCollator:
    """Rows of `caption_rows` -> the model's inputs of their pictures, and `labels` padded with -100."""

    def __init__(self, names: Sequence[str], read: ReadPictures, pad_token_id: int) -> None:
        self.names, self.read, self.pads = list(names), read, Collator(pad_token_id)

    def __call__(self, columns: Mapping[str, Sequence[Any]]) -> dict[str, Tensor]:
        inputs = self.read([self.names[number] for number in columns["picture"]])
        return {**inputs, "labels": self.pads.labels(columns["labels"])}

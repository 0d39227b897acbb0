"""The task `captioning`: a picture is read, and a caption is written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import AutoImageProcessor, PreTrainedModel

from hf_rnn_seq2seq.data.images import CaptionCollator, Pictures, PixelReader, StateReader, caption_rows
from hf_rnn_seq2seq.data.tokenizer import target_vocabulary_size
from hf_rnn_seq2seq.errors import ArgumentError, reading
from hf_rnn_seq2seq.generation.encoding import PictureSources
from hf_rnn_seq2seq.generation.translate import translate
from hf_rnn_seq2seq.model.processing_rnn_seq2seq import RnnSeq2SeqProcessor
from hf_rnn_seq2seq.run_directory import tensors_hash
from hf_rnn_seq2seq.training.arguments import RunOptions
from hf_rnn_seq2seq.training.components import (
    Start,
    TaskParts,
    load_data,
    make_model,
    make_tokenizer,
    make_validator,
    train_tokenizer,
)

if TYPE_CHECKING:
    from transformers.image_processing_utils import BaseImageProcessor

SIDE = 224  # pixels of a picture, where neither an option nor the encoder says
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
PREPROCESSING = ("preprocessor_config.json", "processor_config.json")


def parts(start: Start) -> TaskParts:
    """Processor, rows of captions, model and scores of captions."""
    options, accelerator = start.options, start.accelerator
    corpus = load_data(options.data, accelerator)
    tokenizer = make_tokenizer(start, partial(train_tokenizer, options.tokenizer, options.data, corpus))
    model = make_model(options, tokenizer)
    if model.main_input_name != "pixel_values":
        raise ArgumentError(
            "encoder=None: task='captioning' needs an encoder that reads pictures, such as that of preset xu2015"
        )
    processor = RnnSeq2SeqProcessor(make_image_processor(options, start.checkpoint, model, start.log), tokenizer)
    names = list(dict.fromkeys(name for split in corpus.splits.values() for name in split["source"]))
    pictures = Pictures.of(options.data)
    pictures.require(names)
    rows, skipped = {}, {}
    with accelerator.local_main_process_first():
        for split, texts in corpus.splits.items():
            rows[split], more = caption_rows(texts, names, tokenizer, options.data.max_target_length)
            skipped[split] = {**corpus.skipped.get(split, {}), **more}
            start.log(
                f"{split}: {len(rows[split])} captions of {len(set(texts['source']))} pictures; "
                f"{corpus.left_out(split, more)}"
            )
        pixels = PixelReader(pictures, processor.image_processor)
        read = frozen_states(model, names, pixels, accelerator.device) or pixels
    collate = CaptionCollator(names, read, tokenizer.pad_token_id)

    def write(model: PreTrainedModel, names: Sequence[str], **search: Any) -> list[str]:
        return translate(model, tokenizer, PictureSources.of(model, names, read), **search)

    size = target_vocabulary_size(tokenizer)
    return TaskParts(
        corpus.description,
        model,
        rows["train"],
        collate,
        make_validator(start, corpus, rows.get("validation"), collate, write, several_references=True),
        processor.save_pretrained,
        (size, size),
        facts={
            "skipped": skipped,
            "decoder_recurrence": model.get_decoder().recurrence_path,
            "pictures": len(names),
        },
    )


def make_image_processor(
    options: RunOptions, checkpoint: Path | None, model: PreTrainedModel, log: Callable[[str], object]
) -> BaseImageProcessor:
    """That of the checkpoint, else of the pretrained encoder, else squares of pixels between -1 and 1.

    A pretrained encoder without settings of its own was trained on ImageNet's mean and deviation.
    """
    named = options.training.pretrained_encoder
    for folder in filter(None, (checkpoint, options.training.model_name_or_path, named)):
        if not Path(folder).is_dir() or any((Path(folder) / name).is_file() for name in PREPROCESSING):
            with reading(f"the image processor of {str(folder)!r}", ArgumentError):
                found = AutoImageProcessor.from_pretrained(str(folder))
            if options.data.image_size and checkpoint is None:
                found.size = {"height": options.data.image_size, "width": options.data.image_size}
            return found
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    side = options.data.image_size or getattr(model.config.encoder, "image_size", None) or SIDE
    settings = IMAGENET if named else {}
    if named:
        log(f"{named}: has no image processor; pictures are {side} x {side}, scaled as for ImageNet")
    return ViTImageProcessorPil(size={"height": side, "width": side}, **settings)


def frozen_states(
    model: PreTrainedModel, names: Sequence[str], pixels: PixelReader, device: torch.device
) -> StateReader | None:
    """The states of an encoder that is not trained, computed once; None for one that is."""
    encoder = model.get_encoder().foreign
    if not encoder.frozen:
        return None
    encoder.to(device)

    def encode(pixel_values: Tensor) -> Tensor:
        return encoder(pixel_values=pixel_values.to(device))

    return StateReader(names, pixels, encode, tensors_hash(encoder.state_dict(), [model.config.encoder.to_dict()]))

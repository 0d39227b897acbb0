"""The task `classification`: a text is read, and its class is named."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase

from hf_rnn_seq2seq import RnnClassifierConfig
from hf_rnn_seq2seq.data.corpus import Corpus
from hf_rnn_seq2seq.data.labeled_texts import (
    TextCollator,
    build_text_tokenizer,
    class_names,
    labeled_rows,
    sentence_token_id,
)
from hf_rnn_seq2seq.data.loader import BatchLoader
from hf_rnn_seq2seq.data.named_tokenizer import load_tokenizer
from hf_rnn_seq2seq.errors import ArgumentError, reading
from hf_rnn_seq2seq.evaluation.classification import class_scores
from hf_rnn_seq2seq.generation.batches import evaluation_mode
from hf_rnn_seq2seq.model.foreign_encoder import read_encoder
from hf_rnn_seq2seq.training.arguments import RunOptions
from hf_rnn_seq2seq.training.components import (
    Start,
    TaskParts,
    from_config,
    load_data,
    load_start,
    make_tokenizer,
    require_entries,
    with_frozen_states,
)
from hf_rnn_seq2seq.training.validation import Validator


def parts(start: Start) -> TaskParts:
    """Tokenizer, rows of texts with their class, model and scores of a classifier."""
    options, accelerator = start.options, start.accelerator
    corpus = load_data(options.data, accelerator)
    classes = class_names(corpus.splits)
    tokenizer = text_tokenizer(start, corpus)
    model = make_model(options, tokenizer, classes)
    rows, cut = {}, {}
    with accelerator.local_main_process_first():
        for split, texts in corpus.splits.items():
            limits = (options.data.max_source_length, options.data.preprocessing_num_workers)
            rows[split], cut[split] = labeled_rows(texts, tokenizer, classes, *limits)
            start.log(
                f"{split}: {len(rows[split])} texts of {len(set(texts['target']))} classes, {cut[split]} of them cut "
                f"at {options.data.max_source_length} tokens; {corpus.left_out(split)}"
            )
    collate = TextCollator(tokenizer.pad_token_id)
    if model.config.sentence_token_id is None:
        collate = with_frozen_states(collate, model.base_model.encoder, rows, start)
    validator = None
    if "validation" in rows:
        loader = BatchLoader(rows["validation"], collate, device=accelerator.device)
        validator = ClassValidator(loader, batch_size=options.training.per_device_eval_batch_size)
    return TaskParts(
        corpus.description,
        model,
        rows["train"],
        collate,
        validator,
        tokenizer.save_pretrained,
        (len(tokenizer), len(classes)),
        facts={"skipped": corpus.skipped, "classes": classes, "cut_texts": cut},
    )


def text_tokenizer(start: Start, corpus: Corpus) -> PreTrainedTokenizerBase:
    """See `make_tokenizer`; a new one reads the texts of the training split, and an encoder has its own."""
    given, encoder = start.options.tokenizer, start.options.training.pretrained_encoder
    of_encoder = None
    if encoder is not None:
        for option in ("tokenizer_name_or_path", "split_sentences"):
            if (value := getattr(given, option)) is not None:
                raise ArgumentError(f"{option}={value!r}: encoder={encoder!r} has its own tokenizer; leave it out")
        of_encoder = partial(load_tokenizer, encoder, partial(print, file=sys.stderr), option="encoder")
    new = partial(
        build_text_tokenizer,
        corpus.splits["train"]["source"],
        sentences=given.split_sentences,
        algorithm=given.tokenizer_algorithm,
        vocab_size=given.vocab_size,
        min_frequency=given.min_frequency,
        lowercase=given.lowercase,
    )
    tokenizer = make_tokenizer(start, new, of_encoder=of_encoder)
    tokenizer.model_max_length = start.options.data.max_source_length
    return tokenizer


def make_model(options: RunOptions, tokenizer: PreTrainedTokenizerBase, classes: Sequence[str]) -> PreTrainedModel:
    """A classifier that fits tokenizer and classes: of a checkpoint, of a preset, or of configuration fields."""
    training, names = options.training, dict(enumerate(classes))
    if training.model_name_or_path:
        return load_model(options, len(tokenizer), names)
    fields: dict[str, Any] = {**options.model, "id2label": names, "label2id": {name: n for n, name in names.items()}}
    preset, encoder = fields.pop("preset", None), training.encoder
    fields["sentence_token_id"] = sentence_token_id(tokenizer)
    if preset == "yang2016" and fields["sentence_token_id"] is None:
        raise ArgumentError("preset='yang2016': reads sentences; say where they end with split_sentences")
    if encoder is None or isinstance(encoder, dict):
        fields |= {"encoder": encoder, "pad_token_id": tokenizer.pad_token_id}
        if encoder is None:
            fields["vocab_size"] = len(tokenizer)
        else:
            fields["encoder"] = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id, **encoder}
    else:
        with reading(f"encoder={encoder!r}", ArgumentError):
            fields["encoder"] = read_encoder(encoder, levels=fields.get("encoder_levels"))
    config = RnnClassifierConfig.from_preset(preset, **fields) if preset else RnnClassifierConfig(**fields)
    return from_config(AutoModelForSequenceClassification, config, training, len(tokenizer))


def load_model(options: RunOptions, entries: int, names: Mapping[int, str]) -> PreTrainedModel:
    """The classifier of model_name_or_path, for the same classes and a vocabulary of `entries`."""
    name, model = options.training.model_name_or_path, load_start(options, AutoModelForSequenceClassification)
    if model.config.id2label != dict(names):
        raise ArgumentError(
            f"model_name_or_path={name!r}: its classes are {', '.join(model.config.id2label.values())}, those of the "
            f"data {', '.join(names.values())}"
        )
    require_entries(options, model, {"vocab_size": entries})
    return model


class ClassValidator(Validator):
    """Measures the loss, the accuracy and the macro F1 of the validation split in one pass."""

    def measure(self, step_module: nn.Module, model: nn.Module, accelerator: Accelerator) -> dict[str, float]:
        """`loss` (nats per text), `accuracy` and `macro_f1` (percent); arguments as in `Validator.measure`."""
        found, total = [], 0.0
        with evaluation_mode(model):
            for rows in self.batches[accelerator.process_index :: accelerator.num_processes]:
                inputs = self.loader.to_device(self.loader.read(rows))
                output = model(**inputs)
                total += float(output.loss) * len(rows)
                pairs = zip(output.logits.argmax(-1).tolist(), inputs["labels"].tolist(), strict=True)
                found += [(row, *map(str, pair)) for row, pair in zip(rows, pairs, strict=True)]
        if accelerator.num_processes > 1:
            found, total = gather_object(found), sum(gather_object([total]))
        found = sorted(set(found))
        loss = total / len(found) if found else math.nan
        return {"loss": loss, **class_scores([guess for _, guess, _ in found], [true for _, _, true in found])}

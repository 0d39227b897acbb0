"""What a task starts from and gives to the loop, and the parts that several tasks make alike."""

from __future__ import annotations

import dataclasses
import logging
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from datasets import Dataset, IterableDataset
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForSeq2SeqLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from hf_rnn_seq2seq import RnnSeq2SeqConfig
from hf_rnn_seq2seq.data.arguments import DataArguments, TokenizerArguments
from hf_rnn_seq2seq.data.contiguous import ContiguousText
from hf_rnn_seq2seq.data.corpus import Corpus, check_files, load_corpus
from hf_rnn_seq2seq.data.frozen_states import FrozenStates
from hf_rnn_seq2seq.data.loader import BatchLoader, Collate
from hf_rnn_seq2seq.data.named_tokenizer import load_tokenizer
from hf_rnn_seq2seq.data.paired_tokenizer import pair_tokenizer
from hf_rnn_seq2seq.data.streaming import TextStream
from hf_rnn_seq2seq.data.tokenizer import (
    build_tokenizer,
    feature_token_ids,
    source_vocabulary_size,
    target_vocabulary_size,
)
from hf_rnn_seq2seq.errors import ArgumentError, DataError, reading
from hf_rnn_seq2seq.evaluation.scores import OF_SYMBOLS, merged, score, why_blind
from hf_rnn_seq2seq.model.configuration_recurrence import RecurrenceFields
from hf_rnn_seq2seq.model.foreign_encoder import read_encoder
from hf_rnn_seq2seq.model.presets import PRESETS
from hf_rnn_seq2seq.model.tokenization_rnn_seq2seq import start_token_id
from hf_rnn_seq2seq.run_directory import read_tokenizer, recipe_options, require_finite, require_vocabulary
from hf_rnn_seq2seq.training.adaptation import grow_tables
from hf_rnn_seq2seq.training.arguments import OF_TRANSLATIONS, RunOptions, TrainingOptions
from hf_rnn_seq2seq.training.checkpoints import CheckpointStore, named_checkpoint, never_saved
from hf_rnn_seq2seq.training.validation import Validator

STREAMED_TOKENIZER_ROWS = 200_000
logger = logging.getLogger(__name__)


@dataclass
class Start:
    """What a task starts from."""

    options: RunOptions
    checkpoint: Path | None  # of the run that is resumed
    accelerator: Accelerator
    log: Callable[[str], object]  # prints on the main process


@dataclass
class TaskParts:
    """What a task gives to the loop: all that depends on what is read and written."""

    data: dict[str, Any]  # the description of the corpus, with its fingerprint
    model: PreTrainedModel
    train: Dataset | TextStream | ContiguousText
    collate: Collate
    validator: Validator | None
    save_processing: Callable[[Path], object]  # writes the tokenizer, or the processor, into a folder
    vocabulary: tuple[int, int]  # entries of source and target
    objective: nn.Module | None = None
    facts: dict[str, Any] = field(default_factory=dict)  # for the summary of the run


def load_data(data: DataArguments, accelerator: Accelerator) -> Corpus:
    """The training split and, if there is one, the validation split, which is held in memory even when streaming.

    The test split is read after the training; its file is looked at before.
    """
    check_files(data, ("test",))
    # One process of each machine writes the cache, the others read it.
    with accelerator.local_main_process_first():
        corpus = load_corpus(data, splits=("train", "validation"))
    if data.streaming and "validation" in corpus.splits:
        corpus.splits["validation"] = in_memory(corpus.splits["validation"])
    if "train" not in corpus.splits:
        raise ArgumentError("train_file=None: there is no training split to train on")
    return corpus


def in_memory(rows: IterableDataset) -> Dataset:
    """A streamed split as a table, for a validation split, which is read many times."""
    table = list(rows)
    if not table:
        raise DataError(f"{rows.split or 'corpus'}: no usable row")
    return Dataset.from_list(table, features=rows.features, split=rows.split)


def resumed_checkpoint(training: TrainingOptions) -> Path | None:
    """The newest complete checkpoint of the run to continue; its vocabulary is the vocabulary of the run."""
    if training.resume_from_checkpoint is None:
        return None
    if training.resume_from_checkpoint == "latest":
        return CheckpointStore(str(training.output_dir)).latest(lambda _: None)
    return named_checkpoint(str(training.output_dir), training.resume_from_checkpoint)


def make_tokenizer(
    start: Start,
    new: Callable[[], PreTrainedTokenizerBase],
    *,
    of_encoder: Callable[[], PreTrainedTokenizerBase] | None = None,
    load: Callable[[str], PreTrainedTokenizerBase] | None = None,
) -> PreTrainedTokenizerBase:
    """The tokenizer of the checkpoint, the encoder, tokenizer_name_or_path or model_name_or_path, else a new one.

    The main process makes it and sends it to the others.

    Args:
        start: of the run.
        new: trains one on the corpus.
        of_encoder: that of a pretrained encoder, if the run has one that reads text.
        load: opens tokenizer_name_or_path; None: `load_tokenizer`.
    """
    named, model = start.options.tokenizer.tokenizer_name_or_path, start.options.training.model_name_or_path
    if start.checkpoint is not None:
        require_same_tokenizer(start.options, start.checkpoint)
    elif (named or model) and (unused := _options_of_training(start.options.tokenizer)):
        start.log(f"{', '.join(unused)}: not used, the tokenizer is that of {named or model}")
    tokenizers: list[PreTrainedTokenizerBase | None] = [None]
    if start.accelerator.is_main_process:
        if start.checkpoint is None and of_encoder is not None:
            tokenizers = [of_encoder()]
        elif start.checkpoint is None and named is not None:
            tokenizers = [load(named) if load else load_tokenizer(named, start.log)]
        elif start.checkpoint is not None or model is not None:
            saved = str(start.checkpoint or model)
            with reading(f"the tokenizer of {saved!r}", ArgumentError):
                tokenizers = [read_tokenizer(saved)]
        else:
            tokenizers = [new()]
    if start.accelerator.num_processes > 1:
        broadcast_object_list(tokenizers)
    if model and named and start.checkpoint is None:
        require_vocabulary(model, tokenizers[0])
    return tokenizers[0]


def _options_of_training(tokenizer: TokenizerArguments) -> list[str]:
    """`vocab_size=100` for each given option that only the training of a tokenizer reads."""
    others = ("tokenizer_name_or_path", "bpe_dropout", "split_sentences")
    fields = [item for item in dataclasses.fields(tokenizer) if item.name not in others]
    values = [(item.name, getattr(tokenizer, item.name), item.default) for item in fields]
    return [f"{name}={value!r}" for name, value, default in values if value != default]


def require_same_tokenizer(options: RunOptions, checkpoint: Path) -> None:
    """Raises ArgumentError if the recipe of the run that is resumed describes another tokenizer."""
    stored, now = recipe_options(checkpoint.parent.parent), yaml.safe_load(options.recipe())
    if stored.get("tokenizer_name_or_path") or stored.get("model_name_or_path"):
        return  # the tokenizer was not trained for the run; its path may have changed
    for name in (item.name for item in dataclasses.fields(options.tokenizer) if item.name != "bpe_dropout"):
        if name in stored and stored[name] != now[name]:
            raise ArgumentError(
                f"{name}={now[name]!r}: the run was started with {stored[name]!r}; a resumed run keeps its tokenizer"
            )


def encoder_tokenizer(options: RunOptions, corpus: Corpus) -> PreTrainedTokenizerBase:
    """The encoder's own tokenizer for the source, and one trained on the training split for the target."""
    given, name = options.tokenizer, options.training.pretrained_encoder
    of_source = ("tokenizer_name_or_path", "source_tokenizer_algorithm", "source_vocab_size", "source_unicode_form")
    for option in of_source:
        if (value := getattr(given, option)) is not None:
            raise ArgumentError(
                f"{option}={value!r}: encoder={name!r} reads the source with its own tokenizer; leave it out"
            )
    rows = corpus.splits["train"]
    source = load_tokenizer(name, partial(print, file=sys.stderr), option="encoder")
    return pair_tokenizer(
        source,
        (rows.take(STREAMED_TOKENIZER_ROWS) if options.data.streaming else rows)["target"],
        algorithm=given.target_tokenizer_algorithm or given.tokenizer_algorithm,
        vocab_size=given.vocab_size,
        min_frequency=given.min_frequency,
        lowercase=given.lowercase,
        unicode_form=given.target_unicode_form,
        model_max_length=options.data.max_source_length,
    )


def train_tokenizer(options: TokenizerArguments, data: DataArguments, corpus: Corpus) -> PreTrainedTokenizerBase:
    """A tokenizer trained on the training split.

    Raises:
        ArgumentError: features, and an algorithm that would spell them.
    """
    algorithm = options.source_tokenizer_algorithm or options.tokenizer_algorithm
    if data.feature_column is not None and algorithm not in ("letter", "word"):
        raise ArgumentError(
            f"feature_column={data.feature_column!r}: features are tokens of the algorithm letter (of word they "
            f"are one), and {algorithm} would spell them; choose source_tokenizer_algorithm=letter"
        )
    rows = corpus.splits["train"]
    if data.streaming:
        rows = rows.take(STREAMED_TOKENIZER_ROWS)
    return build_tokenizer(
        rows["source"] if data.task == "translation" else (),  # else no text is read
        rows["target"],
        algorithm=options.tokenizer_algorithm,
        source_algorithm=options.source_tokenizer_algorithm,
        target_algorithm=options.target_tokenizer_algorithm,
        source_unicode_form=options.source_unicode_form,
        target_unicode_form=options.target_unicode_form,
        vocab_size=options.vocab_size,
        source_vocab_size=options.source_vocab_size,
        joint=options.joint_vocabulary,
        min_frequency=options.min_frequency,
        lowercase=options.lowercase,
        model_max_length=data.max_source_length,
    )


def make_model(options: RunOptions, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """A model that fits the tokenizer: of a checkpoint, of a preset, or of configuration fields."""
    sizes = {"vocab_size": target_vocabulary_size(tokenizer)}
    if options.data.task == "translation":  # else the source has no vocabulary of this tokenizer
        sizes["source_vocab_size"] = source_vocabulary_size(tokenizer)
    if options.model.get("copy_mechanism") and hasattr(tokenizer, "target_vocab_size"):
        # The check of the config compares sizes only, and a copied source id would be another target word.
        raise ArgumentError("copy_mechanism=True: source words are copied as target words; needs joint_vocabulary=True")
    if options.training.model_name_or_path:
        model = load_model(options, sizes)
    else:
        special = {name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
        special["decoder_start_token_id"] = start_token_id(tokenizer)
        entries = sizes.get("source_vocab_size", 0)
        if options.training.pretrained_encoder is not None:
            sizes.pop("source_vocab_size", None)  # the encoder has one
        if options.data.sum_features:
            special["feature_token_ids"] = require_features(tokenizer)
        config = model_config(options, **sizes, **special)
        model = from_config(AutoModelForSeq2SeqLM, config, options.training, entries)
    options.generation.set(model.generation_config, options.training.model_name_or_path)
    return model


def require_features(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens of sum_features; ArgumentError if the tokenizer has none."""
    if found := feature_token_ids(tokenizer):
        return found
    raise ArgumentError(
        "sum_features=True: the sources have no features; name their column with feature_column, and choose "
        "tokenizer_algorithm=letter"
    )


def model_config(options: RunOptions, **fields: Any) -> RnnSeq2SeqConfig:
    """The configuration that the options and further `fields` describe."""
    fields = {**options.model, **fields}
    if fields.get("attention_type") == "location":
        fields.setdefault("max_source_positions", options.data.max_source_length)
    preset = fields.pop("preset", None)
    encoder = options.training.encoder
    if isinstance(encoder, dict):
        of_preset = PRESETS[preset]().get("encoder", {}) if preset in PRESETS else {}
        fields["encoder"] = {**of_preset, **encoder}
    elif encoder is not None:
        with reading(f"encoder={encoder!r}", ArgumentError):
            fields["encoder"] = read_encoder(encoder, levels=fields.get("encoder_levels"))
    return RnnSeq2SeqConfig.from_preset(preset, **fields) if preset else RnnSeq2SeqConfig(**fields)


def from_config(auto_class: type, config: PreTrainedConfig, training: TrainingOptions, entries: int) -> PreTrainedModel:
    """A model with random weights over its pretrained encoder, if it has one, whose tokenizer has `entries`."""
    encoder = training.pretrained_encoder
    if entries > (config.source_vocab_size or 0):
        raise ArgumentError(
            f"encoder={training.encoder!r}: has {config.source_vocab_size} word vectors, its tokenizer has {entries}"
        )
    if config.freeze_encoder and encoder is None:
        raise ArgumentError("freeze_encoder=True: the encoder's weights are random; name a pretrained one with encoder")
    model = auto_class.from_config(config)
    if encoder is not None:
        with reading(f"encoder={encoder!r}", ArgumentError):
            model.base_model.encoder.foreign.load(encoder)
    return model


def load_start(options: RunOptions, auto_class: type) -> PreTrainedModel:
    """The model of model_name_or_path by its auto class; its weights are finite."""
    name, fields = options.training.model_name_or_path, dict(options.model)
    if "preset" in fields:
        raise ArgumentError(f"preset={fields['preset']!r}: model_name_or_path decides what the model is")
    with reading(f"model_name_or_path={name!r}", ArgumentError):
        config = AutoConfig.from_pretrained(name)
        own = isinstance(config, RecurrenceFields)
        if not own:
            require_known_fields(config, options)
            fields.pop("label_smoothing", None)  # of the objective
        model, found = auto_class.from_pretrained(
            name, use_safetensors=True, output_loading_info=True, ignore_mismatched_sizes=own, **fields
        )
    for weight, parameter in model.named_parameters():
        if weight in never_saved(model):  # its changes would be lost, but transformers 5.24 makes it trainable
            parameter.requires_grad_(False)
    if own:
        model.config.validate()  # fields were set one by one
        require_same_weights(auto_class, config, options, found)
    require_finite(model.state_dict().items(), f"model_name_or_path={name!r}: ")
    return model


def require_same_weights(
    auto_class: type, config: PreTrainedConfig, options: RunOptions, found: Mapping[str, Any]
) -> None:
    """Raises ArgumentError if a field leaves weights of the checkpoint unused, or if the checkpoint lacks weights.

    Weights that a field adds start at random; a warning names them.

    Args:
        config: of the checkpoint.
        found: the loading info of `from_pretrained`.
    """
    missing = sorted(found["missing_keys"])
    lost = sorted([*found["unexpected_keys"], *(key[0] for key in found["mismatched_keys"])])
    if not lost and not missing:
        return
    named, fields = f"model_name_or_path={options.training.model_name_or_path!r}", options.model

    def shapes(**changed: Any) -> dict[str, torch.Size] | None:
        try:
            with torch.device("meta"):
                model = auto_class.from_config(type(config).from_dict({**config.to_dict(), **changed}))
        except ValueError:  # the field fits no model that differs in nothing else
            return None
        return {key: tensor.shape for key, tensor in model.state_dict().items()}

    own = shapes()
    each = {field: shapes(**{field: value}) for field, value in fields.items()} if lost else {}
    wrong = [field for field, other in each.items() if other is not None and not own.items() <= other.items()]
    if wrong:
        given = ", ".join(f"{field}={fields[field]!r}" for field in wrong)
        known = ", ".join(f"{field}={getattr(config, field, None)!r}" for field in wrong)
        raise ArgumentError(f"{given}: {named} has the weights of {known}; leave it out, or give that")
    if broken := lost or [key for key in missing if key in own]:
        raise ArgumentError(f"{named}: does not hold the weights of its own config.json, such as {broken[0]}")
    logger.warning("%s: has no %s, which start at random", named, ", ".join(missing))


def require_known_fields(config: PreTrainedConfig, options: RunOptions) -> None:
    """Raises ArgumentError for each field of the model but two: a model of transformers decides everything else.

    `dropout` is allowed if the model has it, `label_smoothing` in translation.
    """
    allowed = ["dropout"] if hasattr(config, "dropout") else []
    allowed += ["label_smoothing"] if options.data.task == "translation" else []
    for name, value in options.model.items():
        if name not in allowed:
            raise ArgumentError(
                f"{name}={value!r}: model_name_or_path is a {config.model_type} of transformers and decides what the "
                f"model is; leave it out (allowed: {', '.join(allowed) or 'no field'})"
            )


def load_model(options: RunOptions, sizes: dict[str, int]) -> PreTrainedModel:
    """The model of model_name_or_path, with tables of at least `sizes`."""
    model = load_start(options, AutoModelForSeq2SeqLM)
    if options.training.extend_vocabulary:
        grow_tables(model, **sizes)
    if options.data.sum_features and not getattr(model.config, "feature_token_ids", None):
        raise ArgumentError(
            f"sum_features=True: model_name_or_path={options.training.model_name_or_path!r} reads features as tokens; "
            "leave it out"
        )
    require_entries(options, model, sizes)
    return model


def require_entries(options: RunOptions, model: PreTrainedModel, sizes: Mapping[str, int]) -> None:
    """Raises ArgumentError unless the tables of model_name_or_path have at least these sizes."""
    for table, needed in sizes.items():
        if (size := getattr(model.config, table, needed)) < needed:
            name = options.training.model_name_or_path
            raise ArgumentError(f"model_name_or_path={name!r}: {table} is {size}, the tokenizer has {needed} entries")


def with_frozen_states(collate: Collate, encoder: nn.Module, rows: Mapping[str, Any], start: Start) -> Collate:
    """`collate`, or with a frozen encoder one that gives its states, computed once, in place of the tokens."""
    foreign, device = getattr(encoder, "foreign", None), start.accelerator.device
    if foreign is None or not foreign.frozen:
        return collate
    foreign.to(device)
    states = FrozenStates(collate, lambda ids, mask: foreign(ids.to(device), mask.to(device)))
    for split in rows.values():
        if isinstance(split, Dataset) and not start.options.training.dry_run:
            states.read(split["input_ids"])
    return states


def make_validator(
    start: Start,
    corpus: Corpus,
    rows: Dataset | None,
    collate: Collate,
    write: Callable[..., list[str]],
    *,
    several_references: bool,
) -> Validator | None:
    """Measures the loss of the validation split and, with predict_with_generate, the scores of what the model writes.

    `write` takes a model, sources, and options of `translate`.
    """
    if rows is None:
        return None
    training, texts = start.options.training, None
    if training.predict_with_generate:
        texts = corpus.splits["validation"]
        if several_references:
            sources, references = merged(texts["source"], texts["target"])
            texts = Dataset.from_dict({"source": sources, "target": references})
        if problem := why_blind(training.best_metric, texts["target"]):
            start.log(f"warning: metric_for_best_model={training.best_metric!r}: {problem}")
    metrics = dict.fromkeys(["bleu", "chrf", *(OF_SYMBOLS if training.best_metric in OF_SYMBOLS else [])])
    if training.best_metric in OF_TRANSLATIONS:
        metrics[training.best_metric] = None
    search = {"num_beams": 1, "max_new_tokens": start.options.generation.max_new_tokens, "progress": False}
    search |= {"batch_size": training.per_device_eval_batch_size, "workers": torch.get_num_threads()}
    return Validator(
        BatchLoader(rows, collate, device=start.accelerator.device),
        batch_size=training.per_device_eval_batch_size,
        texts=texts,
        translate=partial(write, **search),
        score=partial(score, metrics=tuple(metrics)),
        max_translations=training.max_generate_samples,
    )

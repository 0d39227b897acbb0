"""From options to a training loop: data, tokenizer, model, alignments, loop, in this order."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, set_seed
from datasets import Dataset, IterableDataset
from transformers import AutoModelForSeq2SeqLM, PreTrainedModel, PreTrainedTokenizerBase

from hf_rnn_seq2seq import RnnSeq2SeqConfig
from hf_rnn_seq2seq.data.arguments import DataArguments, TokenizerArguments
from hf_rnn_seq2seq.data.batching import Collator
from hf_rnn_seq2seq.data.bpe_dropout import BpeDropout
from hf_rnn_seq2seq.data.corpus import Corpus, load_corpus
from hf_rnn_seq2seq.data.loader import BatchLoader
from hf_rnn_seq2seq.data.named_tokenizer import load_tokenizer, start_token_id
from hf_rnn_seq2seq.data.paired_tokenizer import pair_tokenizer
from hf_rnn_seq2seq.data.streaming import TextStream
from hf_rnn_seq2seq.data.token_columns import tokenize_corpus
from hf_rnn_seq2seq.data.tokenizer import build_tokenizer, source_vocabulary_size, target_vocabulary_size
from hf_rnn_seq2seq.data.word_alignment import with_alignments
from hf_rnn_seq2seq.errors import ArgumentError, DataError, reading
from hf_rnn_seq2seq.evaluation.scores import OF_SYMBOLS, merged, score, why_blind
from hf_rnn_seq2seq.generation.translate import translate
from hf_rnn_seq2seq.model.foreign_encoder import read_encoder
from hf_rnn_seq2seq.model.presets import PRESETS
from hf_rnn_seq2seq.run_directory import read_tokenizer, require_finite, require_vocabulary
from hf_rnn_seq2seq.training.adaptation import Adaptation, freeze, grow_tables
from hf_rnn_seq2seq.training.arguments import OF_TRANSLATIONS, RunOptions, TrainingOptions
from hf_rnn_seq2seq.training.checkpoints import CheckpointStore, named_checkpoint
from hf_rnn_seq2seq.training.loop import TrainingLoop
from hf_rnn_seq2seq.training.sequence_objectives import build_objective
from hf_rnn_seq2seq.training.state import TrainingState
from hf_rnn_seq2seq.training.validation import Validator

STREAMED_TOKENIZER_ROWS = 200_000


@dataclass
class Training:
    """A run that is ready to start, and the sizes of its vocabularies (source, target)."""

    loop: TrainingLoop
    vocabulary: tuple[int, int]


def build_training(
    options: RunOptions,
    accelerator: Accelerator,
    *,
    command: str = "",
    after_run: Callable[[Path], str] | None = None,
) -> Training:
    """Loads, makes and joins the parts of a run; `command` is for its summary, `after_run` for `TrainingLoop`."""
    set_seed(options.training.seed)
    log = partial(print, file=sys.stderr) if accelerator.is_main_process else lambda _: None
    corpus = load_data(options.data, accelerator)
    checkpoint = resumed_checkpoint(options.training)
    adaptation = Adaptation(options.training, resumed=checkpoint is not None, log=log)
    tokenizer = make_tokenizer(options, corpus, checkpoint, accelerator)
    adaptation.extend(tokenizer)
    rows, skipped = tokenize(options, corpus, tokenizer, accelerator)
    for split, counts in skipped.items():
        size = "streamed" if isinstance(rows[split], TextStream) else f"{len(rows[split])} rows"
        log(f"{split}: {size}; {corpus.left_out(split, counts)}")
    validator = make_validator(options, corpus, tokenizer, rows.get("validation"), accelerator, log)
    model = make_model(options, tokenizer)
    adaptation.fill(model, tokenizer, rows["train"])
    objective = build_objective(options.training, model, partial(tokenizer.batch_decode, skip_special_tokens=True))
    # An objective replaces every other loss, that of the alignments included.
    weight = getattr(model.config, "guided_alignment_weight", 0) if objective is None else 0
    redraw = make_redraw(options, tokenizer)
    if redraw is not None and weight:
        raise ArgumentError(
            f"bpe_dropout={options.tokenizer.bpe_dropout}: guided_alignment_weight={weight} aligns the usual pieces; "
            "set one of them to 0"
        )
    train = add_alignments(options.data, rows["train"], weight, accelerator)
    if redraw is not None and checkpoint is not None:
        log("bpe_dropout: the run continues with the same rows in the same order, but their pieces are drawn anew")
    if redraw is not None and not options.data.streaming:
        train = train.with_transform(redraw)
    adaptation.facts |= freeze(model, options.training.freeze, log)
    vocabulary = (source_vocabulary_size(tokenizer), target_vocabulary_size(tokenizer))
    loop = TrainingLoop(
        TrainingState(model, options.training, accelerator, objective),
        train,
        collate=Collator(tokenizer.pad_token_id),
        validator=validator,
        save_tokenizer=tokenizer.save_pretrained,
        after_run=after_run,
        recipe=options.recipe(),
        identity={
            "data": corpus.description.get("fingerprint"),
            "vocabulary": list(vocabulary),
            "freeze": options.training.freeze or None,
        },
        facts={
            "command": command,
            "data": corpus.description,
            "skipped": skipped,
            "source_vocab_size": vocabulary[0],
            "target_vocab_size": vocabulary[1],
            "seed": options.training.seed,
            "decoder_recurrence": model.get_decoder().recurrence_path,
            **adaptation.facts,
        },
    )
    return Training(loop, vocabulary)


def load_data(data: DataArguments, accelerator: Accelerator) -> Corpus:
    """The training split and, if there is one, the validation split, which is held in memory even when streaming."""
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
    options: RunOptions, corpus: Corpus, checkpoint: Path | None, accelerator: Accelerator
) -> PreTrainedTokenizerBase:
    """The tokenizer of the checkpoint, of tokenizer_name_or_path or of model_name_or_path, else a trained one."""
    named, start = options.tokenizer.tokenizer_name_or_path, options.training.model_name_or_path
    tokenizers: list[Any] = [None]
    if accelerator.is_main_process:
        if checkpoint is None and named is not None:
            tokenizers = [load_tokenizer(named, partial(print, file=sys.stderr))]
        elif checkpoint is None and options.training.pretrained_encoder is not None:
            tokenizers = [encoder_tokenizer(options, corpus)]
        elif checkpoint is not None or start is not None:
            saved = str(checkpoint or start)
            with reading(f"the tokenizer of {saved!r}", ArgumentError):
                tokenizers = [read_tokenizer(saved)]
        else:
            tokenizers = [train_tokenizer(options.tokenizer, options.data, corpus)]
    if accelerator.num_processes > 1:
        broadcast_object_list(tokenizers)
    if start and named and checkpoint is None:
        require_vocabulary(start, tokenizers[0])
    return tokenizers[0]


def encoder_tokenizer(options: RunOptions, corpus: Corpus) -> PreTrainedTokenizerBase:
    """The encoder's own tokenizer for the source, and one trained on the training split for the target."""
    given, name = options.tokenizer, options.training.pretrained_encoder
    of_source = ("tokenizer_name_or_path", "source_tokenizer_algorithm", "source_vocab_size", "source_unicode_form")
    for field in of_source:
        if (value := getattr(given, field)) is not None:
            raise ArgumentError(
                f"{field}={value!r}: encoder={name!r} reads the source with its own tokenizer; leave it out"
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
    """A tokenizer trained on the training split."""
    rows = corpus.splits["train"]
    if data.streaming:
        rows = rows.take(STREAMED_TOKENIZER_ROWS)
    return build_tokenizer(
        rows["source"],
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


def tokenize(
    options: RunOptions, corpus: Corpus, tokenizer: PreTrainedTokenizerBase, accelerator: Accelerator
) -> tuple[dict[str, Any], dict[str, dict[str, int]]]:
    """The rows of each split as token ids; and of each split, the numbers of rows that were left out, by reason."""
    data = options.data
    rows, skipped = {}, {split: dict(counts) for split, counts in corpus.skipped.items()}
    with accelerator.local_main_process_first():
        for split, texts in corpus.splits.items():
            if data.streaming and split == "train":
                window = {"buffer": data.streaming_buffer, "redraw": make_redraw(options, tokenizer)}
                rows[split] = TextStream(texts, tokenizer, **_limits(data), **window)
                continue
            workers = {"num_proc": data.preprocessing_num_workers, "alignment_unit": data.alignment_unit}
            keep_text = split == "train" and options.tokenizer.bpe_dropout > 0
            rows[split], counts = tokenize_corpus(texts, tokenizer, keep_text=keep_text, **_limits(data), **workers)
            skipped[split] = {**skipped.get(split, {}), **counts}
    return rows, skipped


def make_redraw(options: RunOptions, tokenizer: PreTrainedTokenizerBase) -> BpeDropout | None:
    """Splits training sentences anew in each epoch, if the options ask for it."""
    dropout = options.tokenizer.bpe_dropout
    return BpeDropout(tokenizer, dropout, **_limits(options.data)) if dropout else None


def _limits(data: DataArguments) -> dict[str, int]:
    return {"max_source_length": data.max_source_length, "max_target_length": data.max_target_length}


def make_model(options: RunOptions, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """A model that fits the tokenizer: of a checkpoint, of a preset, or of configuration fields."""
    sizes: dict[str, Any] = {
        "source_vocab_size": source_vocabulary_size(tokenizer),
        "vocab_size": target_vocabulary_size(tokenizer),
    }
    if options.model.get("copy_mechanism") and hasattr(tokenizer, "target_vocab_size"):
        # The check of the config compares sizes only, and a copied source id would be another target word.
        raise ArgumentError("copy_mechanism=True: source words are copied as target words; needs joint_vocabulary=True")
    if options.training.model_name_or_path:
        model = load_model(options, sizes)
    else:
        special = {name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
        special["decoder_start_token_id"] = start_token_id(tokenizer)
        encoder = options.training.pretrained_encoder
        if encoder is not None:
            sizes["encoder"] = read_pretrained(encoder, sizes.pop("source_vocab_size"))
        config = model_config(options, **sizes, **special)
        if config.freeze_encoder and encoder is None:
            raise ArgumentError(
                "freeze_encoder=True: the encoder's weights are random; name a pretrained one with encoder"
            )
        model = AutoModelForSeq2SeqLM.from_config(config)
        if encoder is not None:
            with reading(f"encoder={encoder!r}", ArgumentError):
                model.base_model.encoder.foreign.load(encoder)
    options.generation.set(model.generation_config, options.training.model_name_or_path)
    return model


def model_config(options: RunOptions, **fields: Any) -> RnnSeq2SeqConfig:
    """The configuration that the options and further `fields` describe."""
    fields = {**options.model, **fields}
    if fields.get("attention_type") == "location":
        fields.setdefault("max_source_positions", options.data.max_source_length)
    preset = fields.pop("preset", None)
    if isinstance(options.training.encoder, dict):
        of_preset = PRESETS[preset]().get("encoder", {}) if preset in PRESETS else {}
        fields["encoder"] = {**of_preset, **options.training.encoder}
    return RnnSeq2SeqConfig.from_preset(preset, **fields) if preset else RnnSeq2SeqConfig(**fields)


def read_pretrained(name: str, source_entries: int) -> dict[str, Any]:
    """The configuration of a pretrained encoder that reads words, whose tokenizer has `source_entries`."""
    with reading(f"encoder={name!r}", ArgumentError):
        fields = read_encoder(name)
    size = fields.get("vocab_size")
    if size is not None and source_entries > size:
        raise ArgumentError(f"encoder={name!r}: has {size} word vectors, its tokenizer {source_entries} entries")
    return fields


def load_model(options: RunOptions, sizes: dict[str, int]) -> PreTrainedModel:
    """The model of model_name_or_path, with tables of at least `sizes`."""
    name = options.training.model_name_or_path
    if "preset" in options.model:
        raise ArgumentError(f"preset={options.model['preset']!r}: model_name_or_path decides what the model is")
    with reading(f"model_name_or_path={name!r}", ArgumentError):
        model = AutoModelForSeq2SeqLM.from_pretrained(name, use_safetensors=True, **options.model)
    require_finite(model.state_dict().items(), f"model_name_or_path={name!r}: ")
    if options.training.extend_vocabulary:
        grow_tables(model, **sizes)
    for field, needed in sizes.items():
        size = getattr(model.config, field, needed)
        if size < needed:
            raise ArgumentError(f"model_name_or_path={name!r}: {field} is {size}, the tokenizer has {needed} entries")
    return model


def add_alignments(data: DataArguments, rows: Dataset | TextStream, weight: float, accelerator: Accelerator) -> Any:
    """The training rows, with word alignments (given or computed) if the model is guided by them."""
    for name in ("alignment_file", "alignment_column"):
        if getattr(data, name) is not None and not weight:
            value = getattr(data, name)
            raise ArgumentError(f"{name}={value!r}: needs guided_alignment_weight above 0 and objective='ml'")
    if not weight:
        return rows
    if data.streaming:
        raise ArgumentError(f"guided_alignment_weight={weight}: needs the whole training split, not streaming")
    with accelerator.local_main_process_first():
        return with_alignments(rows)


def make_validator(
    options: RunOptions,
    corpus: Corpus,
    tokenizer: PreTrainedTokenizerBase,
    rows: Any,
    accelerator: Accelerator,
    log: Callable[[str], Any],
) -> Validator | None:
    """Measures the loss of the validation split and, with predict_with_generate, the scores of its translations."""
    if rows is None:
        return None
    training = options.training
    texts = corpus.splits["validation"] if training.predict_with_generate else None
    if texts is not None and options.data.several_references:
        sources, references = merged(texts["source"], texts["target"])
        texts = Dataset.from_dict({"source": sources, "target": references})
    metrics = ["bleu", "chrf"]
    if training.best_metric in OF_SYMBOLS:
        metrics += OF_SYMBOLS
    elif training.best_metric in OF_TRANSLATIONS and training.best_metric not in metrics:
        metrics.append(training.best_metric)
    if texts is not None and (problem := why_blind(training.best_metric, texts["target"])):
        log(f"warning: metric_for_best_model={training.best_metric!r}: {problem}")
    search = {"num_beams": 1, "max_new_tokens": options.generation.max_new_tokens, "progress": False}
    search |= {"batch_size": training.per_device_eval_batch_size, "workers": torch.get_num_threads()}
    return Validator(
        BatchLoader(rows, Collator(tokenizer.pad_token_id), device=accelerator.device),
        batch_size=training.per_device_eval_batch_size,
        texts=texts,
        translate=lambda model, sources: translate(model, tokenizer, sources, **search),
        score=partial(score, metrics=tuple(metrics)),
        max_translations=training.max_generate_samples,
    )

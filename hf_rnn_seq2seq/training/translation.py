"""The task `translation`: a text is read, and a text is written."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from accelerate import Accelerator
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_rnn_seq2seq.data.arguments import DataArguments
from hf_rnn_seq2seq.data.batching import Collator
from hf_rnn_seq2seq.data.bpe_dropout import BpeDropout
from hf_rnn_seq2seq.data.corpus import Corpus
from hf_rnn_seq2seq.data.streaming import TextStream
from hf_rnn_seq2seq.data.token_columns import tokenize_corpus
from hf_rnn_seq2seq.data.tokenizer import source_vocabulary_size, target_vocabulary_size
from hf_rnn_seq2seq.data.word_alignment import with_alignments
from hf_rnn_seq2seq.errors import ArgumentError
from hf_rnn_seq2seq.generation.translate import translate
from hf_rnn_seq2seq.model.configuration_recurrence import RecurrenceFields
from hf_rnn_seq2seq.training.adaptation import Adaptation
from hf_rnn_seq2seq.training.arguments import RunOptions
from hf_rnn_seq2seq.training.components import (
    Start,
    TaskParts,
    encoder_tokenizer,
    load_data,
    make_model,
    make_tokenizer,
    make_validator,
    train_tokenizer,
    with_frozen_states,
)
from hf_rnn_seq2seq.training.label_smoothing import smoothed_objective
from hf_rnn_seq2seq.training.sequence_objectives import build_objective


def parts(start: Start) -> TaskParts:
    """Tokenizer, rows of token ids, model and scores of translations."""
    options, accelerator, log = start.options, start.accelerator, start.log
    corpus = load_data(options.data, accelerator)
    adaptation = Adaptation(options.training, resumed=start.checkpoint is not None, log=log)
    of_encoder = None if options.training.pretrained_encoder is None else partial(encoder_tokenizer, options, corpus)
    new = partial(train_tokenizer, options.tokenizer, options.data, corpus)
    tokenizer = make_tokenizer(start, new, of_encoder=of_encoder)
    adaptation.extend(tokenizer)
    rows, skipped = tokenize(options, corpus, tokenizer, accelerator)
    for split, counts in skipped.items():
        size = "streamed" if isinstance(rows[split], TextStream) else f"{len(rows[split])} rows"
        log(f"{split}: {size}; {corpus.left_out(split, counts)}")
    model = make_model(options, tokenizer)
    if accelerator.device.type == "cpu" and not isinstance(model.config, RecurrenceFields):
        # On a CPU, a step over short sentences takes a fifth less time with this attention than with the fused one.
        model.set_attn_implementation("eager")
    collate = Collator(tokenizer.pad_token_id)
    # Copying and the objectives on whole sentences read the words themselves.
    if not getattr(model.config, "copy_mechanism", False) and options.training.objective == "ml":
        collate = with_frozen_states(collate, model.get_encoder(), rows, start)

    def write(model: PreTrainedModel, sources: Sequence[str], **search: Any) -> list[str]:
        return translate(model, tokenizer, sources, **search)

    validator = make_validator(
        start, corpus, rows.get("validation"), collate, write, several_references=options.data.several_references
    )
    adaptation.fill(model, tokenizer, rows["train"])
    objective = build_objective(options.training, model, partial(tokenizer.batch_decode, skip_special_tokens=True))
    if objective is None:
        objective = smoothed_objective(model, options.model.get("label_smoothing"))
    # An objective replaces every other loss, that of the alignments included.
    weight = getattr(model.config, "guided_alignment_weight", 0) if objective is None else 0
    redraw = make_redraw(options, tokenizer)
    if redraw is not None and weight:
        raise ArgumentError(
            f"bpe_dropout={options.tokenizer.bpe_dropout}: guided_alignment_weight={weight} aligns the usual pieces; "
            "set one of them to 0"
        )
    train = add_alignments(options.data, rows["train"], weight, accelerator)
    if redraw is not None and start.checkpoint is not None:
        log("bpe_dropout: the run continues with the same rows in the same order, but their pieces are drawn anew")
    if redraw is not None and not options.data.streaming:
        train = train.with_transform(redraw)
    path = getattr(model.get_decoder(), "recurrence_path", None)  # a Transformer's has none
    return TaskParts(
        corpus.description,
        model,
        train,
        collate,
        validator,
        tokenizer.save_pretrained,
        (source_vocabulary_size(tokenizer), target_vocabulary_size(tokenizer)),
        objective,
        facts={"skipped": skipped, **({"decoder_recurrence": path} if path else {}), **adaptation.facts},
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


def add_alignments(
    data: DataArguments, rows: Dataset | TextStream, weight: float, accelerator: Accelerator
) -> Dataset | TextStream:
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

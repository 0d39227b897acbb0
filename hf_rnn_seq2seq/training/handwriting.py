"""The task `handwriting`: points of a pen are read and predicted, with a text (synthesis) or without."""

from __future__ import annotations

from typing import Any

from accelerate import Accelerator
from torch import nn
from transformers import AutoModel, PreTrainedModel

from hf_rnn_seq2seq import RnnForHandwriting, RnnHandwritingConfig
from hf_rnn_seq2seq.data.loader import BatchLoader
from hf_rnn_seq2seq.data.strokes import PenCollator, PenCorpus, first_writing, load_pen_corpus
from hf_rnn_seq2seq.errors import ArgumentError
from hf_rnn_seq2seq.training.arguments import RunOptions
from hf_rnn_seq2seq.training.components import Start, TaskParts, load_start
from hf_rnn_seq2seq.training.validation import Validator


def parts(start: Start) -> TaskParts:
    """Rows of points, model and loss; the alphabet and the deviation of the offsets are those of the training split."""
    options, accelerator = start.options, start.accelerator
    given = load_model(options) if options.training.model_name_or_path else None
    config = model_config(options) if given is None else given.config
    if options.data.test_file is not None:  # it is read after the training
        first_writing(options.data.test_file)
    # One process of each machine writes the cache, the others read it.
    with accelerator.local_main_process_first():
        corpus = load_pen_corpus(options.data, config.point_tolerance, splits=("train", "validation"))
    if "train" not in corpus.splits:
        raise ArgumentError("train_file=None: there is no training split to train on")
    if given is None:
        config = model_config(options, corpus)
    if config.reads_text:
        corpus = corpus.written_with(config.alphabet)
    for split, rows in corpus.splits.items():
        counts = ", ".join(f"{count} {reason}" for reason, count in corpus.skipped[split].items()) or "none"
        start.log(f"{split}: {len(rows)} rows, {sum(rows['target_length'])} points; left out: {counts}")
    if not all(map(len, corpus.splits.values())):
        raise ArgumentError(f"alphabet={config.alphabet!r:.40}: no row is written in it alone")
    collate = PenCollator(config.alphabet, config.offset_deviation)
    return TaskParts(
        corpus.description,
        given or RnnForHandwriting(config),
        corpus.splits["train"],
        collate,
        make_validator(options, corpus, collate, accelerator),
        lambda _: None,  # the configuration holds the alphabet
        (len(config.alphabet), 0),
        facts={"skipped": corpus.skipped},
    )


def model_config(options: RunOptions, corpus: PenCorpus | None = None) -> RnnHandwritingConfig:
    """The configuration that the options describe, for a corpus; without one only its `point_tolerance` is final.

    A text is read unless the preset is the prediction network or `window_components` is 0.
    """
    fields: dict[str, Any] = dict(options.model)
    preset = fields.pop("preset", None)
    predicts = fields.get("window_components") == 0 or (
        preset == "graves2013_handwriting" and not fields.get("window_components")
    )
    fields["alphabet"] = "" if predicts else corpus.alphabet() if corpus else "a"
    if predicts:
        fields["window_components"] = 0
    if corpus is not None:
        fields["offset_deviation"] = corpus.deviation()
    return RnnHandwritingConfig.from_preset(preset, **fields) if preset else RnnHandwritingConfig(**fields)


def load_model(options: RunOptions) -> RnnForHandwriting:
    """The model of model_name_or_path, which keeps its alphabet and its deviation of the offsets."""
    name, model = options.training.model_name_or_path, load_start(options, AutoModel)
    if not isinstance(model, RnnForHandwriting):
        raise ArgumentError(f"model_name_or_path={name!r}: is a {type(model).__name__}, which does not write by hand")
    return model


def make_validator(
    options: RunOptions, corpus: PenCorpus, collate: PenCollator, accelerator: Accelerator
) -> PenValidator | None:
    """Measures the loss of the validation split, if there is one."""
    if "validation" not in corpus.splits:
        return None
    loader = BatchLoader(corpus.splits["validation"], collate, device=accelerator.device)
    return PenValidator(loader, batch_size=options.training.per_device_eval_batch_size)


class PenValidator(Validator):
    """Measures densities, which have no perplexity: nats of a point, and of a row."""

    def measure(self, step_module: nn.Module, model: PreTrainedModel, accelerator: Accelerator) -> dict[str, float]:
        """`loss` (nats per point) and `nats_per_row`, the paper's sequence loss on average."""
        loss = super().measure(step_module, model, accelerator)["loss"]
        rows = self.loader.dataset
        return {"loss": loss, "nats_per_row": loss * sum(rows["target_length"]) / len(rows)}

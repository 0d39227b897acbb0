"""Models under transformers' own Trainer: a classifier learns, micro-batches change nothing, a text is measured."""

from pathlib import Path

import pytest
import torch
from datasets import Dataset
from transformers import (
    AutoModelForSequenceClassification,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
    set_seed,
)
from transformers.utils.generic import find_labels

from hf_rnn_seq2seq import (
    RnnCausalConfig,
    RnnClassifierConfig,
    RnnForCausalLM,
    RnnForHandwriting,
    RnnForSequenceClassification,
    RnnSeq2SeqForConditionalGeneration,
)
from hf_rnn_seq2seq.data.labeled_texts import build_text_tokenizer, sentence_token_id

TEXTS = ["good film\nfine end", "bad film\nend", "film\ngood", "film bad\nfine film"] * 8
LABELS = [1, 0, 1, 0] * 8


def train(folder: Path, batch: int, accumulation: int, steps: int) -> Trainer:
    set_seed(0)
    tokenizer = build_text_tokenizer(TEXTS, sentences="lines", algorithm="word", vocab_size=30)
    sizes = {"vocab_size": len(tokenizer), "embedding_size": 8, "hidden_size": 8}
    end = sentence_token_id(tokenizer)
    config = RnnClassifierConfig.from_preset("yang2016", **sizes, encoder_hidden_size=4, sentence_token_id=end)
    rows = Dataset.from_dict({**tokenizer(TEXTS), "labels": LABELS})
    options = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation, "max_steps": steps}
    options |= {"learning_rate": 0.03, "report_to": "none", "use_cpu": True, "disable_tqdm": True, "logging_steps": 1}
    trainer = Trainer(
        RnnForSequenceClassification(config),
        TrainingArguments(str(folder), save_strategy="no", seed=0, lr_scheduler_type="constant", **options),
        data_collator=DataCollatorWithPadding(tokenizer),
        train_dataset=rows,
        eval_dataset=rows,
        processing_class=tokenizer,
    )
    trainer.train()
    return trainer


def test_it_learns_and_is_saved(tmp_path: Path) -> None:
    trainer = train(tmp_path, 8, 1, 25)
    found = trainer.predict(trainer.eval_dataset)
    assert (found.predictions.argmax(-1) == LABELS).mean() == 1
    trainer.save_model(str(tmp_path / "saved"))
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved")
    for name, tensor in trainer.model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name


@pytest.mark.usefixtures("fresh_accelerate")
def test_an_update_of_micro_batches_is_the_update(tmp_path: Path) -> None:
    whole, parts = train(tmp_path / "whole", 8, 1, 1), train(tmp_path / "parts", 2, 4, 1)
    for history in zip(whole.state.log_history[:1], parts.state.log_history[:1], strict=True):
        assert history[0]["loss"] == pytest.approx(history[1]["loss"], abs=1e-5)
        assert history[0]["grad_norm"] == pytest.approx(history[1]["grad_norm"], abs=1e-4)


@pytest.mark.parametrize(
    "kind", [RnnForCausalLM, RnnSeq2SeqForConditionalGeneration, RnnForSequenceClassification, RnnForHandwriting]
)
def test_it_asks_for_labels_and_nothing_else(kind: type) -> None:
    assert find_labels(kind) == ["labels"]


def test_it_measures_and_smooths_a_language_model(tmp_path: Path) -> None:
    """Its smoothing scores the token after each position, as the configuration's does."""
    fields = {"vocab_size": 20, "embedding_size": 8, "hidden_size": 8}
    model = RnnForCausalLM(RnnCausalConfig(**fields))
    rows = [{"input_ids": [4, 5, 6, 7], "labels": [4, 5, 6, 7]}] * 4
    options = TrainingArguments(tmp_path, use_cpu=True, report_to="none", label_smoothing_factor=0.1)
    trainer = Trainer(model, options, eval_dataset=rows, compute_metrics=lambda found: {"rows": len(found.predictions)})
    measured = trainer.evaluate()
    assert measured["eval_rows"] == 4
    smoothed = RnnForCausalLM(RnnCausalConfig(**fields, label_smoothing=0.1)).train()
    smoothed.load_state_dict(model.state_dict())
    words = torch.tensor([[4, 5, 6, 7]])
    expected = smoothed(words, labels=words).loss
    torch.testing.assert_close(trainer.compute_loss(model, {"input_ids": words, "labels": words}), expected)
    assert measured["eval_loss"] == pytest.approx(expected.item(), abs=1e-5)

"""Hugging Face's own Seq2SeqTrainer trains, evaluates and resumes the model."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from hf_rnn_seq2seq.model.search_options import limit_length
from tests.helpers.hub import act_as, running_hub
from tests.helpers.hub_store import OWNER_TOKEN
from tests.helpers.models import PAD, SOURCES, tiny_model
from tests.helpers.models import TARGETS as RAGGED

pytest.importorskip("accelerate", reason="accelerate (of the extra `train`) is not installed")

ROWS = [
    {"input_ids": source, "attention_mask": [1] * len(source), "labels": target}
    for source, target in zip(SOURCES * 4, RAGGED * 4, strict=True)
]
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "label smoothing": {"label_smoothing_factor": 0.1},
    "gradient checkpointing": {"gradient_checkpointing": True},
    "accumulation": {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2},
    "bfloat16": {"bf16": True},
}


class Padding:
    """Pads at the right, labels with -100; like DataCollatorForSeq2Seq it asks the model for the decoder's input."""

    def __init__(self, model: Any = None) -> None:
        self.model = model

    def __call__(self, rows: list[dict[str, list[int]]]) -> dict[str, Tensor]:
        def column(name: str, value: int) -> Tensor:
            cells = [torch.tensor(row[name]) for row in rows]
            return torch.nn.utils.rnn.pad_sequence(cells, batch_first=True, padding_value=value)

        batch = {"input_ids": column("input_ids", PAD), "attention_mask": column("attention_mask", 0)}
        batch["labels"] = column("labels", -100)
        if self.model is not None:
            batch["decoder_input_ids"] = self.model.prepare_decoder_input_ids_from_labels(labels=batch["labels"])
        return batch


def trainer(folder: Path, seen: list[Any] | None = None, **options: Any) -> Any:
    """Two steps on a batch of four."""
    model = tiny_model(dtype=torch.float32, encoder_layers=2)
    model.generation_config.max_new_tokens = 6
    rest = {"per_device_train_batch_size": 4, "max_steps": 2, "learning_rate": 0.05} | options
    arguments = transformers.Seq2SeqTrainingArguments(
        output_dir=str(folder),
        predict_with_generate=True,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        save_steps=1,
        eval_steps=1,
        eval_strategy="steps",
        **rest,
    )

    def score(predicted: Any) -> dict[str, float]:
        seen.append(predicted)
        return {"words": float((predicted.predictions > PAD).sum())}

    return transformers.Seq2SeqTrainer(
        model=model,
        args=arguments,
        train_dataset=ROWS,
        eval_dataset=ROWS[:5],
        # Trainer's own label smoothing takes the labels away before the model sees them.
        data_collator=Padding(model if "label_smoothing_factor" in options else None),
        compute_metrics=None if seen is None else score,
    )


@pytest.mark.thinned(2)
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("options", OPTIONS)
def test_two_steps(options: str, tmp_path: Path) -> None:
    seen: list[Any] = []
    run = trainer(tmp_path, seen, **OPTIONS[options])
    before = {name: value.clone() for name, value in run.model.state_dict().items()}
    output = run.train()
    assert output.global_step == 2 and 0 < output.training_loss < 10
    moved = {name for name, value in run.model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == set(before)  # every parameter learns
    assert len(seen) == 2 and len(seen[0].predictions) == 5
    predicted = run.predict(ROWS[:3])
    found = run.model.eval().generate(**{k: v for k, v in Padding()(ROWS[:3]).items() if k != "labels"})
    width = min(found.shape[1], predicted.predictions.shape[1])
    assert predicted.predictions[:, :width].tolist() == found[:, :width].tolist()
    assert predicted.metrics["test_loss"] > 0


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_the_loss_it_reports_is_ours(tmp_path: Path) -> None:
    run = trainer(tmp_path, per_device_eval_batch_size=5)
    batch = Padding()(ROWS[:5])
    with torch.no_grad():
        expected = run.model.eval()(**batch).loss
    assert run.evaluate()["eval_loss"] == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_accumulated_steps_equal_one_large_step(tmp_path: Path) -> None:
    """The loss is a sum over the label words of the whole update, for any division into micro-batches."""
    ends = []
    for number, sizes in enumerate(({}, OPTIONS["accumulation"])):
        run = trainer(tmp_path / str(number), max_steps=1, optim="sgd", max_grad_norm=0.0, **sizes)
        run.train()
        ends.append({name: value.double() for name, value in run.model.state_dict().items()})
    torch.testing.assert_close(*ends, atol=1e-6, rtol=1e-5)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_resumed_it_ends_where_it_would_have(tmp_path: Path) -> None:
    whole = trainer(tmp_path / "whole")
    whole.train()
    again = trainer(tmp_path / "again")
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-1"))
    torch.testing.assert_close(again.model.state_dict(), whole.model.state_dict())


def test_label_smoothing_of_the_trainer_is_ours(tmp_path: Path) -> None:
    """Both label smoothings spread the same share over the vocabulary."""
    batch = Padding()(ROWS[:3])
    ours = tiny_model(label_smoothing=0.1, dtype=torch.float32).train()(**batch).loss
    output = tiny_model(dtype=torch.float32).train()(**batch, skip_logits=False)
    theirs = transformers.trainer_pt_utils.LabelSmoother(epsilon=0.1)({"logits": output.logits}, batch["labels"])
    torch.testing.assert_close(ours, theirs)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning")
def test_it_pushes_to_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with running_hub() as hub:
        api = act_as(OWNER_TOKEN, hub.url, monkeypatch)
        options = {"push_to_hub": True, "hub_model_id": "owner/trained", "hub_strategy": "end"}
        run = trainer(tmp_path / "run", max_steps=1, **options)
        run.train()
        run.push_to_hub()
        got = api.snapshot_download("owner/trained", cache_dir=tmp_path / "got")
    loaded = transformers.AutoModelForSeq2SeqLM.from_pretrained(got)
    torch.testing.assert_close(loaded.state_dict(), run.model.state_dict())
    assert (Path(got) / "modeling_rnn_seq2seq.py").is_file(), "the code travels with it"


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_generation_max_length_is_obeyed(tmp_path: Path) -> None:
    run = trainer(tmp_path, generation_max_length=4)
    limit_length(run.model.generation_config)
    run.model.lm_head.bias.data[2] = -50.0  # no sentence ends by itself
    assert (run.predict(ROWS[:3]).predictions[:, 4:] == PAD).all()
    assert (run.predict(ROWS[:3], max_length=6).predictions != PAD).sum(1).tolist() == [6, 6, 6]
    assert run.model.generation_config.max_new_tokens is None


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_a_loss_of_the_users_reads_the_logits(tmp_path: Path) -> None:
    """Logits are returned, and `compute_metrics` reads them, where nothing is generated."""

    class Own(transformers.Seq2SeqTrainer):
        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **others: Any) -> Any:
            outputs = model(**inputs)
            loss = torch.nn.functional.cross_entropy(outputs.logits.flatten(0, 1), inputs["labels"].flatten())
            return (loss, outputs) if return_outputs else loss

    run = trainer(tmp_path)
    run.args.predict_with_generate = False
    seen: list[Any] = []
    own = Own(
        model=run.model,
        args=run.args,
        train_dataset=ROWS,
        eval_dataset=ROWS[:5],
        data_collator=Padding(),
        compute_metrics=lambda output: seen.append(output.predictions) or {"words": 1.0},
    )
    assert 0 < own.train().training_loss < 10
    logits = seen[0][0] if isinstance(seen[0], tuple) else seen[0]
    assert logits.shape == (5, 5, 11)

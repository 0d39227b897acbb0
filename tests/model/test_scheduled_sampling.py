"""Scheduled sampling (Bengio 2015) and the tutorial's teacher-forcing ratio: what the decoder reads in training."""

import math
import re
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from hf_rnn_seq2seq import ConfigError, RnnSeq2SeqConfig, RnnSeq2SeqForConditionalGeneration
from hf_rnn_seq2seq.model.scheduled_sampling import draw_truth, mix_inputs, truth_probability
from tests.helpers.models import SOURCES, TARGETS, batch, decoder_inputs, pad, tiny_config, tiny_model

SYSTEMS: dict[str, dict[str, Any]] = {
    "input feeding": {},
    "before the cell": {"attention_order": "before_cell", "attention_type": "additive"},
    "initial state": {"context": "initial_state"},
    "no feeding": {"input_feeding": False},
}


def loss_and_gradients(model: RnnSeq2SeqForConditionalGeneration, **inputs: Tensor) -> list[Tensor]:
    model.zero_grad()
    output = model(**inputs)
    output.loss.backward()
    return [output.loss.detach(), *(parameter.grad.clone() for parameter in model.parameters())]


def same(left: list[Tensor], right: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


# ------------------------------------------------------------------------------------------------ schedules


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        # epsilon_i = max(epsilon, k - c i)
        (
            {"scheduled_sampling": "linear", "scheduled_sampling_decay": 0.01, "teacher_forcing_ratio": 0.9},
            [max(0.0, 0.9 - 0.01 * i) for i in range(0, 200, 7)],
        ),
        (
            {"scheduled_sampling": "linear", "scheduled_sampling_decay": 0.01, "scheduled_sampling_floor": 0.25},
            [max(0.25, 1.0 - 0.01 * i) for i in range(0, 200, 7)],
        ),
        # epsilon_i = k ** i
        (
            {"scheduled_sampling": "exponential", "scheduled_sampling_decay": 0.98},
            [0.98**i for i in range(0, 200, 7)],
        ),
        # epsilon_i = k / (k + exp(i / k))
        (
            {"scheduled_sampling": "inverse_sigmoid", "scheduled_sampling_decay": 20},
            [20 / (20 + math.exp(i / 20)) for i in range(0, 200, 7)],
        ),
        ({"teacher_forcing_ratio": 0.5}, [0.5] * 29),
    ],
)
def test_schedules_are_those_of_the_paper(options: dict[str, Any], expected: list[float]) -> None:
    config = tiny_config(**options)
    assert [truth_probability(config, step) for step in range(0, 200, 7)] == pytest.approx(expected, abs=1e-12)


def test_inverse_sigmoid_survives_a_long_run() -> None:
    config = tiny_config(scheduled_sampling="inverse_sigmoid", scheduled_sampling_decay=1.0)
    assert truth_probability(config, 10**9) == 0.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"teacher_forcing_ratio": 1.5}, "teacher_forcing_ratio=1.5: must be in [0, 1]"),
        ({"scheduled_sampling_floor": -0.1}, "scheduled_sampling_floor=-0.1: must be in [0, 1]"),
        ({"scheduled_sampling_decay": 0.1}, "scheduled_sampling_decay=0.1: only a schedule reads it"),
        ({"scheduled_sampling": "linear"}, "scheduled_sampling_decay=None: scheduled_sampling='linear' needs above 0"),
        ({"scheduled_sampling": "exponential", "scheduled_sampling_decay": 1.0}, "needs above 0 and below 1"),
        ({"scheduled_sampling": "inverse_sigmoid", "scheduled_sampling_decay": 0.5}, "needs 1 or more"),
        (
            {"scheduled_sampling": "exponential", "scheduled_sampling_decay": 0.9, "teacher_forcing_ratio": 0.5},
            "teacher_forcing_ratio=0.5: scheduled_sampling='exponential' decides the ratio itself",
        ),
    ],
)
def test_refusals(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        tiny_config(**options)


# ------------------------------------------------------------------------------------------------ the coin


def test_one_draw_per_token() -> None:
    torch.manual_seed(0)
    truth = draw_truth(torch.zeros(200, 50), 0.7, "token")
    assert truth[:, 0].all()
    assert truth[:, 1:].float().mean().item() == pytest.approx(0.7, abs=0.02)
    assert 0 < truth[0, 1:].sum() < 49


def test_one_draw_per_sentence() -> None:
    torch.manual_seed(0)
    truth = draw_truth(torch.zeros(2000, 5), 0.3, "sentence")
    assert truth[:, 0].all()
    assert (truth[:, 1:] == truth[:, 1:2]).all()
    assert truth[:, 1].float().mean().item() == pytest.approx(0.3, abs=0.03)


# ------------------------------------------------------------------------------------------------ the equation


def greedy_by_rows(model: RnnSeq2SeqForConditionalGeneration, source: list[int], words: list[int], truth: list[bool]):
    """One sentence; the model's word is the argmax after all words before it, read from the start."""
    read = [words[0]]
    for time in range(1, len(words)):
        logits = model(input_ids=torch.tensor([source]), decoder_input_ids=torch.tensor([read])).logits[0, -1]
        read.append(words[time] if truth[time] else int(logits.argmax()))
    return read


@pytest.mark.parametrize("options", SYSTEMS.values(), ids=SYSTEMS)
def test_inputs_are_the_truth_or_the_words_of_the_position_before(options: dict[str, Any]) -> None:
    model = tiny_model(dropout=0.4, **options).train()
    inputs = pad(decoder_inputs())
    generator = torch.Generator().manual_seed(5)
    truth = torch.rand(inputs.shape, generator=generator) < 0.4
    truth[:, 0] = True
    features = {key: value for key, value in batch().items() if key != "labels"}
    model.eval()
    encoded = model.get_encoder()(**features)
    model.train()
    mixed = mix_inputs(model, inputs, truth, None, encoded)
    assert model.model.decoder.training and model.model.decoder.readout.training
    model.eval()
    for row, (source, words) in enumerate(zip(SOURCES, decoder_inputs(), strict=True)):
        expected = greedy_by_rows(model, source, words, truth[row].tolist())
        assert mixed[row].tolist() == expected + [0] * (inputs.shape[1] - len(words))
    assert (mixed != inputs).any()


@pytest.mark.parametrize("options", SYSTEMS.values(), ids=SYSTEMS)
def test_step_equals_reading_the_mixture(options: dict[str, Any]) -> None:
    """Loss and gradients are those of the mixed words as inputs: no gradient passes through a choice."""
    model = tiny_model(teacher_forcing_ratio=0.0, **options).train()
    sampled = loss_and_gradients(model, **batch())
    features = {key: value for key, value in batch().items() if key != "labels"}
    inputs = pad(decoder_inputs())
    truth = torch.zeros_like(inputs, dtype=torch.bool)
    truth[:, 0] = True
    mixed = mix_inputs(model, inputs, truth, None, model.get_encoder()(**features))
    plain = tiny_model(**options).train()
    given = loss_and_gradients(plain, **batch(), decoder_input_ids=mixed)
    for left, right in zip(sampled, given, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("options", SYSTEMS.values(), ids=SYSTEMS)
def test_full_teacher_forcing_is_bit_identical(options: dict[str, Any]) -> None:
    """At probability 1 nothing is drawn, so dropout gets the same random numbers."""
    results = []
    for sampling in ({}, {"teacher_forcing_ratio": 1.0, "teacher_forcing_unit": "sentence"}):
        model = tiny_model(dropout=0.3, dtype=torch.float32, **options, **sampling).train()
        torch.manual_seed(1)
        results.append(loss_and_gradients(model, **batch()))
    assert same(*results)


def test_evaluation_reads_the_truth() -> None:
    with_ratio, without = tiny_model(teacher_forcing_ratio=0.0), tiny_model()
    assert torch.equal(with_ratio(**batch()).loss, without(**batch()).loss)


def test_words_can_be_sampled() -> None:
    model = tiny_model(teacher_forcing_ratio=0.0, scheduled_sampling_words="sample").train()
    inputs = pad(decoder_inputs())
    truth = torch.zeros_like(inputs, dtype=torch.bool)
    truth[:, 0] = True
    features = {key: value for key, value in batch().items() if key != "labels"}
    encoded = model.get_encoder()(**features)
    drawn = {tuple(mix_inputs(model, inputs, truth, None, encoded).flatten().tolist()) for _ in range(8)}
    assert len(drawn) > 1


def test_progress_moves_the_schedule() -> None:
    """With a linear schedule the ratio starts at 1 and falls to 0."""
    options = {"scheduled_sampling": "linear", "scheduled_sampling_decay": 0.1}
    scheduled, plain = tiny_model(**options).train(), tiny_model().train()
    own = tiny_model(teacher_forcing_ratio=0.0).train()
    truth = loss_and_gradients(plain, **batch())
    assert same(loss_and_gradients(scheduled, **batch()), truth)
    scheduled.set_training_progress(10)
    later = loss_and_gradients(scheduled, **batch())
    assert same(later, loss_and_gradients(own, **batch())) and not same(later, truth)


def test_progress_is_not_saved(tmp_path) -> None:
    model = tiny_model(scheduled_sampling="exponential", scheduled_sampling_decay=0.9)
    model.set_training_progress(77)
    model.save_pretrained(tmp_path)
    loaded = RnnSeq2SeqForConditionalGeneration.from_pretrained(tmp_path)
    assert loaded.training_progress == 0 and loaded.config.scheduled_sampling == "exponential"


def test_gradients_under_autocast() -> None:
    """Weights cast in the pass without gradients must not be reused in the pass with them."""
    model = tiny_model(dtype=torch.float32, teacher_forcing_ratio=0.0).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(**batch()).loss
    loss.backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.lm_head.parameters())


def test_masked_target_positions() -> None:
    """With a target that the decoder's mask pads on the left, the mixed words are those of the row alone."""
    model = tiny_model(teacher_forcing_ratio=0.0).train()
    words = decoder_inputs()
    alone = torch.tensor([words[1]])
    padded = torch.tensor([[0, 0, *words[1]]])
    mask = torch.tensor([[0, 0] + [1] * len(words[1])])
    source = batch([TARGETS[0]])["input_ids"]
    encoded = model.get_encoder()(source)

    def own(inputs: Tensor) -> Tensor:
        truth = inputs == 1
        return truth | (inputs == 0)

    left = mix_inputs(model, padded, own(padded), mask, encoded)
    right = mix_inputs(model, alone, own(alone), None, encoded)
    assert left[0, 2:].tolist() == right[0].tolist()


def test_seq2seq_trainer_drives_a_schedule(tmp_path) -> None:
    """A callback of four lines is enough for Seq2SeqTrainer."""
    pytest.importorskip("accelerate", reason="accelerate (of the extra `train`) is not installed")
    seen: list[int] = []

    class Progress(transformers.TrainerCallback):
        def on_step_begin(self, args, state, control, model=None, **kwargs):
            model.set_training_progress(state.global_step)
            seen.append(model.training_progress)

    model = tiny_model(dtype=torch.float32, scheduled_sampling="exponential", scheduled_sampling_decay=0.5)
    whole = batch()
    rows = [{key: value[row] for key, value in whole.items()} for row in range(3)]
    arguments = transformers.TrainingArguments(
        tmp_path, max_steps=3, report_to=[], save_strategy="no", use_cpu=True, disable_tqdm=True, logging_steps=1
    )
    trainer = transformers.Trainer(model, arguments, train_dataset=rows, callbacks=[Progress()])
    trainer.train()
    assert seen == [0, 1, 2]


def test_training_loop_drives_a_schedule_and_a_resumed_run_goes_on_with_it(tmp_path) -> None:
    from hf_rnn_seq2seq.training.arguments import TrainingOptions
    from tests.helpers.training_runs import SPECIAL, VOCABULARY, build_loop

    options = {"output_dir": str(tmp_path), "per_device_train_batch_size": 8, "predict_with_generate": False}
    options |= {"save_steps": 2, "eval_steps": None, "report_to": ["none"], "cpu_threads": 1}
    schedule = {"scheduled_sampling": "linear", "scheduled_sampling_decay": 0.3, "vocab_size": VOCABULARY}

    def run(**more: Any) -> RnnSeq2SeqForConditionalGeneration:
        model = RnnSeq2SeqForConditionalGeneration(
            RnnSeq2SeqConfig(embedding_size=4, hidden_size=4, **schedule, **SPECIAL)
        )
        build_loop("", TrainingOptions(**options, **more), model=model).run()
        return model

    assert run(max_steps=4).training_progress == 3
    resumed = run(max_steps=6, resume_from_checkpoint="latest")
    assert resumed.training_progress == 5
    assert truth_probability(resumed.config, resumed.training_progress) == 0.0

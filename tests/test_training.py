"""The training loop: what an update computes, how it is split, what is evaluated, kept, logged and stopped."""

import itertools
import json
import math
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from hf_rnn_seq2seq.arguments import ArgumentError, TrainingArguments
from hf_rnn_seq2seq.batching import Collator
from hf_rnn_seq2seq.dry_run import dry_run
from hf_rnn_seq2seq.finite_guard import TrainingError
from hf_rnn_seq2seq.optimization import LearningRate, WeightAverage, build_optimizer
from hf_rnn_seq2seq.run_control import build_accelerator, use_all_cores
from hf_rnn_seq2seq.updates import BatchLoader, Update, UpdatePlan
from hf_rnn_seq2seq.validation import Validator
from tests.training_runs import arguments, build_loop, build_model, corpus, log_lines

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def fresh_accelerate():
    """Accelerate keeps one state per process; each test starts without."""
    yield
    AcceleratorState._reset_state(True)
    PartialState._reset_state()
    GradientState._reset_state()


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def assert_same_weights(first: dict, second: dict, tolerance: float = 2e-5) -> None:
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        torch.testing.assert_close(tensor, second[name], atol=tolerance, rtol=0, msg=lambda m, n=name: f"{n}: {m}")


# --- how an update is split ---------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 5), st.integers(1, 5))
def test_parts_of_an_update_are_a_partition(rows, processes, accumulation):
    update = Update(epoch=0, index=0, updates_in_epoch=1, rows=tuple(range(rows)), source_tokens=1, target_tokens=1)
    parts = [update.parts(rank, processes, accumulation) for rank in range(processes)]
    assert len({len(part) for part in parts}) == 1, "every rank runs the same number of passes"
    assert len(parts[0]) <= accumulation
    seen = [row for part in parts for micro_batch in part for row in micro_batch]
    assert sorted(seen) == list(range(rows))
    sizes = [len(micro_batch) for part in parts for micro_batch in part if micro_batch]
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("limits", [{"batch_size": 8, "max_tokens": None}, {"batch_size": 8, "max_tokens": 60}])
def test_every_row_once_in_each_epoch(limits):
    rows = corpus(53)
    plan = UpdatePlan(rows["source_length"][:], rows["target_length"][:], seed=3, **limits)
    epochs = [list(group) for _, group in itertools.groupby(itertools.islice(plan.updates(), 40), lambda u: u.epoch)]
    for updates in epochs[:2]:
        assert sorted(row for update in updates for row in update.rows) == list(range(53))
        assert updates[-1].index + 1 == updates[-1].updates_in_epoch
        for update in updates:
            assert update.target_tokens == sum(rows[row]["target_length"] for row in update.rows)
    assert [u.rows for u in epochs[0]] != [u.rows for u in epochs[1]], "epochs have their own order"
    position = epochs[1][2]
    again = next(plan.updates(position.epoch, position.index))
    assert again == position, "a position is enough to continue"


def test_the_loader_gives_fillers_where_a_rank_is_short():
    rows = corpus(10)
    update = Update(epoch=0, index=0, updates_in_epoch=1, rows=(4, 7, 9), source_tokens=1, target_tokens=1)
    loaders = [BatchLoader(rows, Collator(), rank=rank, processes=2, accumulation=2) for rank in range(2)]
    first, second = (loader.load(update) for loader in loaders)
    assert [batch.target_tokens > 0 for batch in first] == [True, True]
    assert [batch.target_tokens > 0 for batch in second] == [True, False]
    assert sum(b.target_tokens for b in first + second) == sum(rows[row]["target_length"] for row in (4, 7, 9))


def test_an_error_in_the_loading_thread_reaches_the_loop():
    plan = UpdatePlan([3, 3], [3, 3], batch_size=2, max_tokens=None, seed=0)
    loader = BatchLoader([], Collator())
    with pytest.raises(TypeError):
        next(loader.stream(plan.updates()))


# --- what an update computes --------------------------------------------------------------------------------------


def plain_training(kind: str, steps: int) -> tuple[torch.nn.Module, list[float]]:
    """The same run as a tutorial would write it: the whole global batch at once, plain AdamW, no Accelerate."""
    model, rows = build_model(kind), corpus(70)
    plan = UpdatePlan(rows["source_length"][:], rows["target_length"][:], batch_size=8, max_tokens=None, seed=42)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.0)
    losses = []
    for step, update in enumerate(itertools.islice(plan.updates(), steps)):
        loss = model(**Collator()(rows[list(update.rows)])).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.param_groups[0]["lr"] = 0.01 * (1 - step / steps)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return model, losses


@pytest.mark.parametrize("kind", ["bart", "rnn", "rnn_tied"])
def test_the_loop_equals_plain_training_however_it_accumulates(kind, tmp_path):
    reference, losses = plain_training(kind, 12)
    for name, sizes in (("whole", (8, 1)), ("split", (1, 8)), ("uneven", (4, 2))):
        options = arguments(tmp_path / name, per_device_train_batch_size=sizes[0], gradient_accumulation_steps=sizes[1])
        assert build_loop(kind, options).run() == "max_steps"
        logged = [line["loss"] for line in log_lines(tmp_path / name, "train")]
        assert logged == pytest.approx(losses, abs=2e-5)
        kept = weights(tmp_path / name / "checkpoints" / "step-00000012")
        expected = reference.state_dict()
        assert_same_weights(kept, {key: expected[key] for key in kept})


def copy_until(run: Path, target: Path, step: int) -> None:
    """The run directory as it stood after a checkpoint."""
    import shutil

    name = f"checkpoints/step-{step:08d}"
    shutil.copytree(run / name, target / name)
    shutil.copy(run / "train_log.jsonl", target)


def assert_identical_states(first: Path, second: Path, step: int) -> None:
    folders = [run / "checkpoints" / f"step-{step:08d}" for run in (first, second)]
    for name in ("model.safetensors", "optimizer.safetensors"):
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes(), name
    states = [json.loads((folder / "state.json").read_text()) for folder in folders]
    for state in states:
        for name in [name for name in state["progress"] if name.endswith("seconds")]:
            del state["progress"][name]
    assert states[0] == states[1]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"ema_decay": 0.9, "train_batch_tokens": 80},
        {"optim": "sgd", "lr_scheduler_type": "halving"},
        {"optim": "adadelta", "gradient_accumulation_steps": 3},
        # No evaluation but the first gains that much: the rate is cut before the stop, and must still be after it.
        {"lr_scheduler_type": "plateau", "plateau_patience": 1, "early_stopping_threshold": 100},
    ],
    ids=lambda options: "-".join(map(str, options.values())) or "default",
)
def test_a_resumed_run_is_bit_identical(options, tmp_path):
    options = {"save_steps": 5, "eval_steps": 2, "logging_steps": 3, "save_total_limit": None, **options}
    build_loop("rnn_dropout", arguments(tmp_path / "whole", **options)).run()
    copy_until(tmp_path / "whole", tmp_path / "resumed", step=5)
    # Whatever drew random numbers in between does not matter.
    torch.rand(17), np.random.rand(3)
    resumed = build_loop("rnn_dropout", arguments(tmp_path / "resumed", resume_from_checkpoint="latest", **options))
    assert resumed.run() == "max_steps"
    assert resumed.state.progress.step == 12
    assert_identical_states(tmp_path / "whole", tmp_path / "resumed", step=12)
    lines = [log_lines(tmp_path / name, "train") for name in ("whole", "resumed")]
    assert [(line["step"], line["loss"]) for line in lines[0]] == [(line["step"], line["loss"]) for line in lines[1]]


def test_a_stop_in_the_middle_of_an_accumulation_is_taken_up_behind_it(tmp_path):
    """The signal comes in the second of the three passes of update 5: the update is finished, then saved."""
    options = {"gradient_accumulation_steps": 3, "per_device_train_batch_size": 3, "ema_decay": 0.9}
    build_loop("rnn_dropout", arguments(tmp_path / "whole", **options)).run()
    model = build_model("rnn_dropout")
    passes = itertools.count(1)

    def hook(module, inputs, output):
        if module.training and next(passes) == 4 * 3 + 2:
            os.kill(os.getpid(), signal.SIGTERM)

    model.register_forward_hook(hook)
    stopped = build_loop("rnn_dropout", arguments(tmp_path / "stopped", **options), model=model)
    assert stopped.run() == "SIGTERM" and stopped.state.progress.step == 5
    again = arguments(tmp_path / "stopped", resume_from_checkpoint="latest", **options)
    assert build_loop("rnn_dropout", again).run() == "max_steps"
    assert_identical_states(tmp_path / "whole", tmp_path / "stopped", step=12)


def test_a_truncated_newest_checkpoint_costs_only_its_own_steps(tmp_path, capsys):
    options = {"save_steps": 4}
    build_loop("rnn_dropout", arguments(tmp_path / "whole", **options)).run()
    for step in (4, 8):
        copy_until(tmp_path / "whole", tmp_path / "damaged", step=step)
    os.truncate(tmp_path / "damaged/checkpoints/step-00000008/optimizer.safetensors", 100)
    again = arguments(tmp_path / "damaged", resume_from_checkpoint="latest", **options)
    assert build_loop("rnn_dropout", again).run() == "max_steps"
    said = capsys.readouterr().err
    assert "step-00000008 is not used: optimizer.safetensors has 100 bytes" in said and "at step 4" in said
    assert_identical_states(tmp_path / "whole", tmp_path / "damaged", step=12)


def test_rows_are_neither_repeated_nor_left_out_by_a_stop(tmp_path):
    seen: list[int] = []

    def recording(rows):
        seen.extend(sum(ids) for ids in rows["input_ids"])
        return Collator()(rows)

    options = {"save_steps": 4, "max_steps": -1, "num_train_epochs": 1}
    build_loop("bart", arguments(tmp_path / "whole", **options)).run()
    copy_until(tmp_path / "whole", tmp_path / "resumed", step=4)
    resumed = build_loop("bart", arguments(tmp_path / "resumed", resume_from_checkpoint="latest", **options))
    resumed.loader.collate = recording
    assert resumed.run() == "num_train_epochs"
    rows = corpus(70)
    plan = UpdatePlan(rows["source_length"][:], rows["target_length"][:], batch_size=8, max_tokens=None, seed=42)
    expected = [sum(rows[row]["input_ids"]) for batch in plan.epoch(0)[4:] for row in batch]
    assert seen[: len(expected)] == expected


def test_bf16_changes_the_arithmetic_and_not_the_weights_kind(tmp_path):
    losses = {}
    for precision in ("no", "bf16"):
        AcceleratorState._reset_state(True)
        loop = build_loop("bart", arguments(tmp_path / precision, mixed_precision=precision))
        loop.run()
        losses[precision] = log_lines(tmp_path / precision, "train")[-1]["loss"]
        assert {tensor.dtype for tensor in weights(tmp_path / precision).values()} == {torch.float32}
    assert losses["no"] != losses["bf16"]
    assert losses["no"] == pytest.approx(losses["bf16"], abs=0.05)


@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU fp16 is allowed")
def test_fp16_is_refused_on_a_cpu():
    with pytest.raises(ArgumentError, match="mixed_precision='fp16': needs a GPU"):
        build_accelerator(arguments(None, mixed_precision="fp16"))


@pytest.mark.parametrize("sharding", ["FSDP", "DEEPSPEED"])
def test_sharded_models_are_refused_with_the_reason(sharding, monkeypatch):
    monkeypatch.setenv(f"ACCELERATE_USE_{sharding}", "true")
    with pytest.raises(ArgumentError, match=f"distributed_type={sharding}: .* hold whole models"):
        build_accelerator(arguments(None))


def test_a_tracker_that_nobody_knows_is_refused(tmp_path):
    with pytest.raises(ArgumentError, match="report_to='tensorbord': must be one of .*tensorboard.*wandb"):
        build_accelerator(arguments(tmp_path, report_to=["tensorbord"]))


# --- updates that are not finite ----------------------------------------------------------------------------------


def poison(model: torch.nn.Module, calls: range) -> None:
    """The loss is infinite in these forward passes of training."""
    counter = itertools.count()

    def hook(module, inputs, output):
        if module.training and next(counter) in calls:
            output.loss = output.loss + math.inf
        return output

    model.register_forward_hook(hook)


@pytest.mark.parametrize("optim", ["adamw", "sgd", "adadelta"])
def test_an_update_that_is_not_finite_is_skipped(optim, tmp_path):
    snapshots = {}
    for name, calls in (("healthy", range(0)), ("poisoned", range(2, 3))):
        model = build_model("bart")
        poison(model, calls)
        loop = build_loop("bart", arguments(tmp_path / name, max_steps=3, optim=optim, save_steps=1), model=model)
        loop.run()
        snapshots[name] = {step: weights(tmp_path / name / f"checkpoints/step-{step:08d}") for step in (2, 3)}
        assert loop.state.progress.skipped_updates == len(calls)
    assert_same_weights(snapshots["poisoned"][2], snapshots["healthy"][2], 0)
    assert_same_weights(snapshots["poisoned"][3], snapshots["healthy"][2], 0)
    assert any((snapshots["healthy"][3][key] != value).any() for key, value in snapshots["healthy"][2].items())
    kept = json.loads((tmp_path / "poisoned" / "nonfinite" / "step-00000003.json").read_text())
    assert len(kept["rows"]) == len(kept["input_ids"]) == len(kept["id"]) == 8
    assert not (tmp_path / "healthy" / "nonfinite").exists()


def test_training_stops_after_too_many_updates_that_are_not_finite(tmp_path):
    model = build_model("bart")
    poison(model, range(4, 100))
    with pytest.raises(TrainingError, match=r"step 7: .* not finite 3 times in a row.*nonfinite"):
        build_loop("bart", arguments(tmp_path, max_skipped_updates=3, save_steps=2), model=model).run()
    assert (tmp_path / "checkpoints" / "step-00000004" / "manifest.json").exists()


# --- optimizers and learning rates --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"lr_scheduler_type": "constant"}, [1, 1, 1, 1, 1]),
        ({"lr_scheduler_type": "linear"}, [1, 0.75, 0.5, 0.25, 0]),
        ({"lr_scheduler_type": "linear", "min_lr_ratio": 0.3}, [1, 0.75, 0.5, 0.3, 0.3]),
        ({"lr_scheduler_type": "cosine"}, [1, 0.5 + 0.5**1.5, 0.5, 0.5 - 0.5**1.5, 0]),
        ({"lr_scheduler_type": "cosine", "min_lr_ratio": 0.2}, [1, None, 0.6, None, 0.2]),
        ({"lr_scheduler_type": "halving", "halving_start": 0.5, "halving_times": 2}, [1, 1, 1, 0.5, 0.25]),
        # tensorflow/nmt luong10 and Luong 2015 (10 epochs, halved every epoch after the fifth)
        ({"lr_scheduler_type": "halving", "halving_times": 10}, [1, 1, 1, 2**-5, 2**-10]),
        ({"lr_scheduler_type": "halving", "halving_times": 5}, [1, 1, 1, 2**-2, 2**-5]),
        ({"lr_scheduler_type": "inverse_sqrt", "warmup_steps": 4}, [0.25, 0.5, 0.75, 1, math.sqrt(4 / 5)]),
        ({"lr_scheduler_type": "constant", "warmup_steps": 2}, [0.5, 1, 1, 1, 1]),
    ],
)
def test_course_of_the_learning_rate(options, expected):
    schedule = LearningRate(TrainingArguments(learning_rate=2.0, **options))
    rates = [schedule.at(step, step / 4) for step in range(5)]
    for rate, value in zip(rates, expected, strict=True):
        assert value is None or rate == pytest.approx(2 * value)


def test_plateau_cuts_after_evaluations_without_gain():
    schedule = LearningRate(TrainingArguments(learning_rate=1.0, lr_scheduler_type="plateau", plateau_patience=2))
    rates = []
    for gained in (True, False, True, False, False, False, False):
        schedule.observe(gained)
        rates.append(schedule.at(100, 0.5))
    assert rates == [1, 1, 1, 1, 0.5, 0.5, 0.25]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        # Two steps of rate 0.1 from 1.0 with gradients 0.5 and -0.25, by the formulas of the papers.
        ({"optim": "sgd"}, 1 - 0.1 * 0.5 + 0.1 * 0.25),
        # Kingma and Ba 2015: m/(1 - b1^t) over the root of v/(1 - b2^t); the first step is the rate itself.
        ({"optim": "adam", "adam_epsilon": 1e-12}, 0.9 - 0.1 * (0.02 / 0.19) / math.sqrt(0.00031225 / 0.001999)),
        # Loshchilov and Hutter 2019: each step first takes rate * decay of the weight away.
        (
            {"optim": "adamw", "adam_epsilon": 1e-12, "weight_decay": 0.5},
            (0.95 - 0.1) * 0.95 - 0.1 * (0.02 / 0.19) / math.sqrt(0.00031225 / 0.001999),
        ),
        # Zeiler 2012, with the rate as a factor: the root of (mean squared update + e) over that of (mean squared
        # gradient + e), e = 1e-6 and rho = 0.95 as in Bahdanau 2014.
        ({"optim": "adadelta", "adam_epsilon": 1e-6}, None),
    ],
    ids=lambda value: value["optim"] if isinstance(value, dict) else "",
)
def test_two_steps_of_an_optimizer_by_hand(options, expected):
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.ones_(model.weight)
    optimizer = build_optimizer(model, TrainingArguments(learning_rate=0.1, **options))
    if expected is None:
        expected, squares, updates = 1.0, 0.0, 0.0
        for gradient in (0.5, -0.25):
            squares = 0.95 * squares + 0.05 * gradient**2
            update = math.sqrt(updates + 1e-6) / math.sqrt(squares + 1e-6) * gradient
            updates = 0.95 * updates + 0.05 * update**2
            expected -= 0.1 * update
    for gradient in (0.5, -0.25):
        model.weight.grad = torch.full((1, 1), gradient)
        optimizer.step()
    assert model.weight.item() == pytest.approx(expected, abs=1e-6)


def test_weight_decay_spares_vectors_and_adam_is_fused():
    optimizer = build_optimizer(build_model("rnn"), TrainingArguments(weight_decay=0.1))
    for group in optimizer.param_groups:
        assert group["fused"]
        assert {parameter.ndim >= 2 for parameter in group["params"]} == {group["weight_decay"] > 0}


def test_the_average_of_the_weights_is_what_is_evaluated_and_kept(tmp_path):
    loop = build_loop("bart", arguments(tmp_path, ema_decay=0.5, save_steps=1))
    loop.run()
    expected: dict[str, torch.Tensor] = {key: value.clone() for key, value in build_model("bart").state_dict().items()}
    for step in range(12):
        decay = min(0.5, (1 + step) / (10 + step))
        for name, value in weights(tmp_path / f"checkpoints/step-{step + 1:08d}").items():
            expected[name] = decay * expected[name] + (1 - decay) * value
    published = weights(tmp_path)
    assert_same_weights(published, {name: expected[name] for name in published}, 1e-6)


def test_the_average_leaves_the_weights_as_they_were():
    model = torch.nn.Linear(2, 2)
    average = WeightAverage(model, 0.9)
    with torch.no_grad():
        model.weight += 1
    average.update(0)
    before = model.weight.clone()
    with average.applied():
        assert not torch.equal(model.weight, before)
    assert torch.equal(model.weight, before)


# --- evaluation, keeping the best, stopping -----------------------------------------------------------------------


def scripted_validator(values: list[float], seen: list[list[str]] | None = None, **options) -> Validator:
    """Translations are the sources in capitals, and BLEU comes from a list."""
    import datasets

    rows = corpus(15, seed=1)
    texts = datasets.Dataset.from_dict({"source": [f"s{n}" for n in range(15)], "target": [f"t{n}" for n in range(15)]})
    scores = iter(values)

    def score(hypotheses, references):
        assert [h.lower()[1:] for h in hypotheses] == [r[1:] for r in references]
        if seen is not None:
            seen.append(list(references))
        return {"bleu": next(scores), "signature": "none"}

    def translate(model, sources):
        assert not model.training
        return [source.upper() for source in sources]

    return Validator(
        BatchLoader(rows, Collator()), batch_size=4, texts=texts, translate=translate, score=score, **options
    )


def test_validation_loss_counts_every_token_once(tmp_path):
    loop = build_loop("bart", arguments(tmp_path, max_steps=1))
    loop.run()
    rows = corpus(15, seed=1)
    total = tokens = 0.0
    with torch.no_grad():
        for row in rows:
            count = row["target_length"]
            loop.model.eval()
            batch = Collator()({"input_ids": [row["input_ids"]], "labels": [row["labels"]]})
            total, tokens = total + loop.model(**batch).loss.item() * count, tokens + count
    line = log_lines(tmp_path, "eval")[-1]
    assert line["eval_loss"] == pytest.approx(total / tokens, abs=1e-5)
    assert line["eval_perplexity"] == pytest.approx(math.exp(total / tokens), rel=1e-4)


def test_translations_are_scored_and_the_best_weights_kept(tmp_path):
    seen: list[list[str]] = []
    validator = scripted_validator([10, 30, 20], seen, max_translations=5)
    options = arguments(tmp_path, max_steps=6, eval_steps=2, save_steps=2, predict_with_generate=True)
    build_loop("bart", options, validator=validator).run()
    assert seen[0] == ["t0", "t3", "t6", "t9", "t12"]
    best = weights(tmp_path / "checkpoints" / "step-00000004")
    assert_same_weights(weights(tmp_path), best, 0)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["best_step"], summary["best_metric"], summary["eval_bleu"]) == (4, 30, 20)
    assert [line["best"] for line in log_lines(tmp_path, "eval")] == [True, True, False]


def test_without_evaluation_the_last_weights_are_kept(tmp_path):
    loop = build_loop("rnn", arguments(tmp_path, max_steps=3, save_steps=1))
    loop.validator = None
    assert loop.run() == "max_steps"
    last, before = (weights(tmp_path / "checkpoints" / f"step-{step:08d}") for step in (3, 2))
    assert_same_weights(weights(tmp_path), last, 0)
    assert any((before[name] != tensor).any() for name, tensor in last.items())


def test_early_stopping(tmp_path):
    options = arguments(tmp_path, max_steps=100, eval_steps=1, predict_with_generate=True, early_stopping_patience=2)
    loop = build_loop("bart", options, validator=scripted_validator([5, 6, 4, 6, 9]))
    assert loop.run() == "early_stopping"
    assert loop.state.progress.step == 4


def test_evaluating_often_does_not_change_the_training(tmp_path):
    class DrawingValidator(Validator):
        def measure(self, *arguments):
            torch.rand(5)  # as a search that samples does
            return super().measure(*arguments)

    for name, steps in (("often", 1), ("never", None)):
        validator = DrawingValidator(BatchLoader(corpus(15, seed=1), Collator()), batch_size=15)
        build_loop("rnn_dropout", arguments(tmp_path / name, eval_steps=steps), validator=validator).run()
    last = "checkpoints/step-00000012"
    assert_same_weights(weights(tmp_path / "often" / last), weights(tmp_path / "never" / last), 0)


def test_the_time_budget_covers_evaluation_and_saving(tmp_path):
    class SlowValidator(Validator):
        def measure(self, *arguments):
            time.sleep(0.4)
            return super().measure(*arguments)

    validator = SlowValidator(BatchLoader(corpus(15, seed=1), Collator()), batch_size=15)
    options = arguments(tmp_path, max_steps=100_000, eval_steps=20, logging_steps=1000, max_train_seconds=3)
    started = time.perf_counter()
    loop = build_loop("bart", options, validator=validator)
    built = time.perf_counter()
    assert loop.run() == "max_train_seconds"
    assert time.perf_counter() - built < 4.5, "the picture and the start are not in the budget"
    assert loop.state.progress.elapsed_seconds == pytest.approx(3, abs=0.6)
    assert loop.state.progress.evaluated_step == loop.state.progress.step
    rates = [line["learning_rate"] for line in log_lines(tmp_path, "train")]
    assert not rates or rates[-1] < 0.01
    assert built >= started


def test_a_run_directory_explains_itself(tmp_path):
    options = arguments(tmp_path, eval_steps=6, report_to=["tensorboard"])
    loop = build_loop("bart", options, recipe="seed: 42\n", facts={"data": {"name": "synthetic"}})
    loop.run()
    assert (tmp_path / "recipe.yaml").read_text() == "seed: 42\n"
    assert list((tmp_path / "tensorboard").rglob("events.out.*"))
    assert (tmp_path / "learning_curve.png").stat().st_size > 1000
    assert [line["step"] for line in log_lines(tmp_path, "train")] == list(range(1, 13))
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["parameters"] == sum(p.numel() for p in build_model("bart").parameters())
    assert summary["data"] == {"name": "synthetic"} and summary["stop_reason"] == "max_steps"
    rows = corpus(70)
    plan = UpdatePlan(rows["source_length"][:], rows["target_length"][:], batch_size=8, max_tokens=None, seed=42)
    tokens = sum(update.target_tokens for update in itertools.islice(plan.updates(), 12))
    assert summary["target_tokens"] == tokens
    assert summary["target_tokens_per_second"] == pytest.approx(tokens / summary["update_seconds"])
    assert {"torch", "transformers", "accelerate"} <= summary["versions"].keys()


def test_an_existing_run_is_refused_and_a_finished_one_left_alone(tmp_path, capsys):
    build_loop("bart", arguments(tmp_path)).run()
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(ArgumentError, match="already holds a run.*--resume_from_checkpoint latest"):
        build_loop("bart", arguments(tmp_path)).run()
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    again = build_loop("bart", arguments(tmp_path, resume_from_checkpoint="latest"))
    assert again.run() == "already finished"
    assert "finished at step 12" in capsys.readouterr().err
    longer = build_loop("bart", arguments(tmp_path, resume_from_checkpoint="latest", max_steps=14))
    assert longer.run() == "max_steps" and longer.state.progress.step == 14


@pytest.mark.parametrize(
    ("change", "named"), [({"seed": 1}, "seed 42"), ({"per_device_train_batch_size": 3}, "sentences per update 8")]
)
def test_a_run_that_would_not_continue_the_same_is_refused(change, named, tmp_path):
    build_loop("bart", arguments(tmp_path, max_steps=2)).run()
    with pytest.raises(ArgumentError, match=f"was trained with {named}"):
        build_loop("bart", arguments(tmp_path, resume_from_checkpoint="latest", **change)).run()


def test_latest_without_a_checkpoint_starts_at_the_beginning(tmp_path, capsys):
    loop = build_loop("bart", arguments(tmp_path, resume_from_checkpoint="latest", max_steps=2))
    assert loop.run() == "max_steps"
    assert "training starts at step 0" in capsys.readouterr().err


def test_dry_run_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = dry_run(build_loop("bart", arguments(None, dry_run=True, max_steps=90)), (24, 24))
    assert f"{sum(p.numel() for p in build_model('bart').parameters()):,}" in text
    for piece in ("updates per epoch  9", "90 at most (10.00 epochs)", "tokens/s", "MiB"):
        assert piece in text
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("environment", "chosen", "expected"),
    [
        ({"OMP_NUM_THREADS": "1", "ACCELERATE_MIXED_PRECISION": "no"}, None, "all"),
        ({"OMP_NUM_THREADS": "1", "ACCELERATE_MIXED_PRECISION": "no", "LOCAL_WORLD_SIZE": "1000"}, None, 1),
        ({"OMP_NUM_THREADS": "1"}, None, 1),
        ({"OMP_NUM_THREADS": "3", "ACCELERATE_MIXED_PRECISION": "no"}, None, 3),
        ({"OMP_NUM_THREADS": "3"}, 2, 2),
        ({}, None, "all"),
    ],
)
def test_threads(environment, chosen, expected, monkeypatch):
    before = torch.get_num_threads()
    for name in ("OMP_NUM_THREADS", "ACCELERATE_MIXED_PRECISION", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    try:
        assert use_all_cores(chosen) == (len(os.sched_getaffinity(0)) if expected == "all" else expected)
    finally:
        torch.set_num_threads(before)

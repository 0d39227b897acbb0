"""The training loop: what an update computes, what is refused, and the contents of a run directory."""

import dataclasses
import itertools
import json
import math
import os
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate.state import AcceleratorState

from hf_rnn_seq2seq.data.batching import Collator
from hf_rnn_seq2seq.data.loader import BatchLoader, UpdatePlan
from hf_rnn_seq2seq.errors import ArgumentError, TrainingError
from hf_rnn_seq2seq.training.dry_run import dry_run
from hf_rnn_seq2seq.training.launch import (
    build_accelerator,
    has_bfloat16,
    largest,
    resolve_precision,
    summed,
    use_all_cores,
)
from hf_rnn_seq2seq.training.validation import Validator
from tests.helpers.training_checks import assert_same_weights, weights
from tests.helpers.training_runs import SIZES, arguments, build_loop, build_model, corpus, log_lines

pytestmark = pytest.mark.usefixtures("fresh_accelerate")


def plain_training(kind: str, steps: int) -> tuple[torch.nn.Module, list[float]]:
    """The same run as in a tutorial: the whole global batch at once, plain AdamW, no Accelerate."""
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
    for name, sizes in (("whole", (8, 1)), ("split", (1, 8)), ("uneven", (4, 2)))[: 3 if kind == "rnn" else 2]:
        options = arguments(tmp_path / name, per_device_train_batch_size=sizes[0], gradient_accumulation_steps=sizes[1])
        assert build_loop(kind, options).run() == "max_steps"
        logged = [line["loss"] for line in log_lines(tmp_path / name, "train")]
        assert logged == pytest.approx(losses, abs=2e-5)
        kept = weights(tmp_path / name / "checkpoints" / "step-00000012")
        expected = reference.state_dict()
        assert_same_weights(kept, {key: expected[key] for key in kept})


def test_bf16_changes_the_arithmetic_and_not_the_weights_kind(tmp_path):
    losses = {}
    for precision in ("no", "bf16"):
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


def test_auto_precision_follows_the_processor():
    AcceleratorState._reset_state(True)
    messages: list[str] = []
    expected = "bf16" if has_bfloat16() else "no"
    assert build_accelerator(arguments(None, mixed_precision="auto"), messages.append).mixed_precision == expected
    assert not messages
    assert resolve_precision("bf16", messages.append) == "bf16"
    assert bool(messages) == (not has_bfloat16())


def test_a_process_trains_in_one_precision_after_another():
    for precision in ("no", "bf16", "no"):
        assert build_accelerator(arguments(None, mixed_precision=precision)).mixed_precision == precision


@pytest.mark.parametrize("sharding", ["FSDP", "DEEPSPEED"])
def test_sharded_models_are_refused_with_the_reason(sharding, monkeypatch):
    monkeypatch.setenv(f"ACCELERATE_USE_{sharding}", "true")
    with pytest.raises(ArgumentError, match=f"distributed_type={sharding}: .* hold whole models"):
        build_accelerator(arguments(None))


def test_an_unknown_tracker_is_refused(tmp_path):
    with pytest.raises(ArgumentError, match="report_to='tensorbord': must be one of .*tensorboard.*wandb"):
        build_accelerator(arguments(tmp_path, report_to=["tensorbord"]))


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
    with pytest.raises(TrainingError, match=r"step 7: .* not finite 3 times in a row; the batches are in .*nonf"):
        build_loop("bart", arguments(tmp_path, max_skipped_updates=3, save_steps=2), model=model).run()
    poison(model := build_model("bart"), range(100))
    with pytest.raises(TrainingError, match=r"step 1: .* not finite 1 times in a row\. A lower"):
        dry_run(build_loop("bart", arguments(None, dry_run=True, max_skipped_updates=1), model=model, facts=SIZES))
    assert (tmp_path / "checkpoints" / "step-00000004" / "manifest.json").exists()


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


def test_the_time_left_holds_the_evaluations_and_saves_that_are_due(tmp_path):
    loop = build_loop("rnn", arguments(tmp_path, max_steps=20, eval_steps=4, save_steps=6))
    progress = loop.state.progress
    progress.step, progress.update_seconds, progress.elapsed_seconds = 8, 16.0, 100.0
    progress.evaluation_seconds, progress.saving_seconds = 10.0, 0.5
    assert loop._seconds_left() == 12 * 2 + 4 * 10 + 2 * 0.5  # evaluations at 8, which is next, 12, 16 and 20
    progress.step = 9
    assert loop._seconds_left() == 11 * 16 / 9 + 3 * 10 + 2 * 0.5
    loop.options = dataclasses.replace(loop.options, max_train_seconds=107.0)
    assert loop._seconds_left() == 7


def test_a_run_directory_explains_itself(tmp_path):
    options = arguments(tmp_path, eval_steps=6, report_to=["tensorboard"])
    ended: list[Path] = []
    after_run = lambda directory: ended.append(directory) or "drawn"  # noqa: E731
    loop = build_loop("bart", options, recipe="seed: 42\n", facts={"data": {"name": "synthetic"}}, after_run=after_run)
    loop.run()
    assert ended == [tmp_path]
    assert (tmp_path / "recipe.yaml").read_text() == "seed: 42\n"
    assert list((tmp_path / "tensorboard").rglob("events.out.*"))
    lines = log_lines(tmp_path, "train")
    assert [line["step"] for line in lines] == list(range(1, 13))
    for line in lines:
        assert line["perplexity"] == pytest.approx(math.exp(line["loss"]))
        assert min(line[f"{side}_tokens_per_second"] for side in ("source", "target")) > 0
        assert line["grad_norm"] > 0 and line["memory_mb"] > 50 and line["learning_rate"] > 0
        assert line["eta_seconds"] >= 0 and line["elapsed_seconds"] > 0
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["parameters"] == sum(p.numel() for p in build_model("bart").parameters())
    assert summary["data"] == {"name": "synthetic"} and summary["stop_reason"] == "max_steps"
    rows = corpus(70)
    plan = UpdatePlan(rows["source_length"][:], rows["target_length"][:], batch_size=8, max_tokens=None, seed=42)
    tokens = sum(update.target_tokens for update in itertools.islice(plan.updates(), 12))
    assert summary["target_tokens"] == tokens
    assert summary["target_tokens_per_second"] == pytest.approx(tokens / summary["update_seconds"])
    assert {"torch", "transformers", "accelerate"} <= summary["versions"].keys()


def test_dry_run_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = dry_run(build_loop("bart", arguments(None, dry_run=True, max_steps=90, num_seeds=3), facts=SIZES))
    assert f"{sum(p.numel() for p in build_model('bart').parameters()):,}" in text
    for piece in ("updates per epoch  9", "90 at most (10.00 epochs)", "tokens/s", "MiB", "3 such models"):
        assert piece in text
    assert not list(tmp_path.iterdir())


def test_dry_run_measures_the_largest_update_of_all(tmp_path):
    loop = build_loop("bart", arguments(None, dry_run=True, max_steps=90), rows=1200, facts=SIZES)
    every = list(itertools.islice(loop.plan.updates(), 150))
    assert loop.plan.updates_per_epoch == 150
    ran, run_update = [], loop.run_update
    loop.run_update = lambda update, batches: (ran.append(loop.plan.positions(update)), run_update(update, batches))
    dry_run(loop)
    assert ran[0] == max(map(loop.plan.positions, every)) > max(map(loop.plan.positions, every[:100]))


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


def test_processes_with_gpus_exchange_numbers_on_the_cpu():
    """As under Accelerate on several GPUs, the default group takes no tensor on the CPU."""
    torch.distributed.init_process_group("cuda:gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        with pytest.raises(RuntimeError, match="No backend type associated with device type cpu"):
            torch.distributed.all_reduce(torch.zeros(1))
        accelerator = SimpleNamespace(num_processes=2)
        assert largest([1.5, -2.0], accelerator) == [1.5, -2.0]
        assert summed([0.1], accelerator) == [0.1]
    finally:
        torch.distributed.destroy_process_group()


def test_each_update_takes_its_own_rate_of_the_schedule(tmp_path):
    loop = build_loop("rnn", arguments(tmp_path, logging_steps=1, warmup_steps=4, max_steps=8))
    loop.run()
    rates = [line["learning_rate"] for line in log_lines(tmp_path, "train")]
    assert rates == pytest.approx([loop.state.schedule.at(step, step / 8) for step in range(8)]) and len(set(rates)) > 5

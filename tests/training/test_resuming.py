"""Resumed runs: bit for bit equal, and refused where they would differ."""

import itertools
import json
import math
import os
import signal

import numpy as np
import pytest
import torch

from hf_rnn_seq2seq.data.batching import Collator
from hf_rnn_seq2seq.data.loader import UpdatePlan
from hf_rnn_seq2seq.errors import ArgumentError
from tests.helpers.training_checks import assert_identical_states, copy_until
from tests.helpers.training_runs import arguments, build_loop, build_model, corpus, log_lines

pytestmark = pytest.mark.usefixtures("fresh_accelerate")


@pytest.mark.thinned(2)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"ema_decay": 0.9, "train_batch_tokens": 80},
        pytest.param({"optim": "sgd", "lr_scheduler_type": "halving"}, marks=pytest.mark.long),
        {"optim": "adadelta", "gradient_accumulation_steps": 3},
        # No evaluation but the first gains that much: the rate is cut before the stop, and must still be after it.
        pytest.param(
            {"lr_scheduler_type": "plateau", "plateau_patience": 1, "early_stopping_threshold": 100},
            marks=pytest.mark.long,
        ),
        # The baseline of REINFORCE goes on too.
        {"kind": "rnn_sampled"},
    ],
    ids=lambda options: "-".join(map(str, options.values())) or "default",
)
def test_a_resumed_run_is_bit_identical(options, tmp_path):
    options = {"save_steps": 5, "eval_steps": 2, "logging_steps": 3, "save_total_limit": None, **options}
    kind = options.pop("kind", "rnn_dropout")
    build_loop(kind, arguments(tmp_path / "whole", **options)).run()
    copy_until(tmp_path / "whole", tmp_path / "resumed", step=5)
    # Whatever drew random numbers in between does not matter.
    torch.rand(17), np.random.rand(3)
    resumed = build_loop(kind, arguments(tmp_path / "resumed", resume_from_checkpoint="latest", **options))
    assert resumed.run() == "max_steps"
    assert resumed.state.progress.step == 12
    assert_identical_states(tmp_path / "whole", tmp_path / "resumed", step=12)
    lines = [log_lines(tmp_path / name, "train") for name in ("whole", "resumed")]
    assert [(line["step"], line["loss"]) for line in lines[0]] == [(line["step"], line["loss"]) for line in lines[1]]


def test_a_stop_within_an_accumulation_resumes_after_it(tmp_path):
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


def test_a_resumed_run_says_which_regularization_changed(tmp_path, capsys):
    build_loop("rnn_dropout", arguments(tmp_path, max_steps=2)).run()
    model = build_model("rnn_dropout")
    before = model.config.dropout
    model.config.dropout = before / 2
    capsys.readouterr()
    build_loop("rnn_dropout", arguments(tmp_path, max_steps=3, resume_from_checkpoint="latest"), model=model).run()
    assert f"dropout={before / 2}: the checkpoint has {before}" in capsys.readouterr().err


def test_a_truncated_newest_checkpoint_costs_only_its_own_steps(tmp_path, capsys):
    options = {"save_steps": 4}
    build_loop("rnn_dropout", arguments(tmp_path / "whole", **options)).run()
    for step in (4, 8):
        copy_until(tmp_path / "whole", tmp_path / "damaged", step=step)
    os.truncate(tmp_path / "damaged/checkpoints/step-00000008/optimizer.safetensors", 100)
    again = arguments(tmp_path / "damaged", resume_from_checkpoint="latest", **options)
    assert build_loop("rnn_dropout", again).run() == "max_steps"
    printed = capsys.readouterr().err
    assert "step-00000008 is not used: optimizer.safetensors has 100 bytes" in printed and "at step 4" in printed
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


def test_an_existing_run_is_refused_and_a_finished_one_left_alone(tmp_path, capsys):
    build_loop("bart", arguments(tmp_path)).run()
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(ArgumentError, match="already holds a run.*--resume_from_checkpoint latest"):
        build_loop("bart", arguments(tmp_path)).run()
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    again = build_loop("bart", arguments(tmp_path, resume_from_checkpoint="latest", learning_rate=0.5))
    again.recipe = "learning_rate: 0.5"
    assert again.run() == "already finished"
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert "finished at step 12" in capsys.readouterr().err
    longer = build_loop("bart", arguments(tmp_path, resume_from_checkpoint="latest", max_steps=14))
    assert longer.run() == "max_steps" and longer.state.progress.step == 14


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": 1}, "seed 42"),
        ({"per_device_train_batch_size": 3}, "sentences per update 8"),
        ({"ema_decay": 0.9}, "averaged weights"),
    ],
)
def test_a_run_that_would_not_continue_the_same_is_refused(change, named, tmp_path):
    build_loop("bart", arguments(tmp_path, max_steps=2)).run()
    with pytest.raises(ArgumentError, match=f"was trained with {named}"):
        build_loop("bart", arguments(tmp_path, resume_from_checkpoint="latest", **change)).run()


@pytest.mark.parametrize("ema_decay", [0.0, 0.5])
def test_another_branch_from_an_earlier_checkpoint(ema_decay, tmp_path, capsys):
    """`latest` follows the new branch, the old one is set aside, and the best weights are those of the new one."""
    options = {"save_steps": 2, "eval_steps": 2, "save_total_limit": None, "ema_decay": ema_decay}
    options |= {"learning_rate": 0.01, "lr_scheduler_type": "constant"}
    run, whole = tmp_path / "run", tmp_path / "whole"
    first = build_loop("bart", arguments(run, max_steps=8, **options))
    first.run()
    assert first.state.progress.best_step == 8  # each evaluation is better than the one before
    best = (run / "model.safetensors").read_bytes()
    options["learning_rate"] = 1e-9
    branch = {**options, "resume_from_checkpoint": "4", "eval_steps": 100}
    second = build_loop("bart", arguments(run, max_steps=5, **branch))
    second.validator = None
    second.run()
    assert second.state.progress.best_step == 4
    assert "step-00000008: set aside" in capsys.readouterr().err.replace("left-", "")
    names = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert names == ["left-step-00000006", "left-step-00000008"] + [f"step-0000000{step}" for step in (2, 4, 5)]
    build_loop("bart", arguments(whole, max_steps=4, **{**options, "learning_rate": 0.01})).run()
    assert (run / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    third = build_loop("bart", arguments(run, max_steps=6, **{**options, "resume_from_checkpoint": "latest"}))
    third.run()
    assert f"resuming from {run}/checkpoints/step-00000005" in capsys.readouterr().err
    # The branch that was left can be taken up again, with its own best weights.
    branch["resume_from_checkpoint"] = str(run / "checkpoints" / "left-step-00000008")
    fourth = build_loop("bart", arguments(run, max_steps=9, **branch))
    fourth.validator = None
    fourth.run()
    assert fourth.state.progress.best_step == 8 and (run / "model.safetensors").read_bytes() == best


def test_another_metric_chooses_the_best_weights(tmp_path, capsys):
    """Values of two metrics are never compared: the new one's value of the best is known, or the choice begins anew."""
    options = {"save_steps": 2, "eval_steps": 2, "learning_rate": 0.01}
    build_loop("bart", arguments(tmp_path, max_steps=4, **options)).run()
    options |= {"resume_from_checkpoint": "latest", "metric_for_best_model": "perplexity"}
    again = build_loop("bart", arguments(tmp_path, max_steps=6, **options))
    again.run()
    assert "perplexity chooses the best weights in place of loss: so far those of step 4" in capsys.readouterr().err
    best = again.state.progress
    assert best.best_step == 6 and best.best_value == pytest.approx(math.exp(best.best_loss))
    assert json.loads((tmp_path / "summary.json").read_text())["best_metric_name"] == "perplexity"
    best.evaluated_step = 7  # the evaluation of the best is not the last
    assert "among the evaluations from now on" in str(best.choose_by("bleu"))
    assert best.best_step is None and best.choose_by("loss") is None


def test_a_best_without_a_checkpoint_is_chosen_anew(tmp_path, capsys):
    """Also after a kill, and where the checkpoint is named by a link."""
    run, options = tmp_path / "run", {"save_steps": 4, "eval_steps": 3, "learning_rate": 0.01}
    build_loop("bart", arguments(run, max_steps=8, **options)).run()
    (tmp_path / "mark").symlink_to(run / "checkpoints" / "step-00000004")
    killed = build_loop("bart", arguments(run, resume_from_checkpoint=str(tmp_path / "mark"), **options))
    killed.plan = None
    with pytest.raises(AttributeError):
        killed.run()
    assert "the best weights, of step 3, are in no checkpoint" in capsys.readouterr().err
    assert not (run / "summary.json").exists(), "that of the branch that was left"
    again = build_loop("bart", arguments(run, resume_from_checkpoint="latest", max_steps=5, **options))
    again.validator = None
    again.run()
    assert again.state.progress.best_step is None and again.state.progress.step == 5
    assert (run / "model.safetensors").read_bytes() == (
        run / "checkpoints/step-00000005/model.safetensors"
    ).read_bytes()


def test_latest_without_a_checkpoint_starts_at_the_beginning(tmp_path, capsys):
    loop = build_loop("bart", arguments(tmp_path, resume_from_checkpoint="latest", max_steps=2))
    assert loop.run() == "max_steps"
    assert "training starts at step 0" in capsys.readouterr().err

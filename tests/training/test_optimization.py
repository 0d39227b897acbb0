"""Optimizers, learning rate schedules and the average of the weights, each against a computation by hand."""

import math

import pytest
import torch

from hf_rnn_seq2seq.training.arguments import TrainingOptions
from hf_rnn_seq2seq.training.optimization import LearningRate, WeightAverage, build_optimizer
from tests.helpers.training_checks import assert_same_weights, weights
from tests.helpers.training_runs import arguments, build_loop, build_model

pytestmark = pytest.mark.usefixtures("fresh_accelerate")


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
    schedule = LearningRate(TrainingOptions(learning_rate=2.0, **options))
    rates = [schedule.at(step, step / 4) for step in range(5)]
    for rate, value in zip(rates, expected, strict=True):
        assert value is None or rate == pytest.approx(2 * value)


def test_plateau_cuts_after_evaluations_without_gain():
    schedule = LearningRate(TrainingOptions(learning_rate=1.0, lr_scheduler_type="plateau", plateau_patience=2))
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
    optimizer = build_optimizer(model, TrainingOptions(learning_rate=0.1, **options))
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
    optimizer = build_optimizer(build_model("rnn"), TrainingOptions(weight_decay=0.1))
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

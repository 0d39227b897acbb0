"""What is evaluated, which weights are kept, and when a run stops."""

import json
import math

import pytest
import torch

from hf_rnn_seq2seq.data.batching import Collator
from hf_rnn_seq2seq.data.loader import BatchLoader
from hf_rnn_seq2seq.training.state import Progress
from hf_rnn_seq2seq.training.validation import Validator
from tests.helpers.training_checks import assert_same_weights, weights
from tests.helpers.training_runs import arguments, build_loop, corpus, log_lines

pytestmark = pytest.mark.usefixtures("fresh_accelerate")


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
            loop.state.model.eval()
            batch = Collator()({"input_ids": [row["input_ids"]], "labels": [row["labels"]]})
            total, tokens = total + loop.state.model(**batch).loss.item() * count, tokens + count
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
    loop = build_loop("bart", options, validator=scripted_validator([5, 6, 4, 5, 9]))
    assert loop.run() == "early_stopping"
    assert loop.state.progress.step == 4


BEST = {  # metric, (value, loss) of each evaluation -> the step that wins, evaluations without a gain
    "the better metric": ("bleu", [(5, 1.0), (6, 2.0), (4, 0.1)], 2, 1),
    "lower loss at a tie": ("bleu", [(0, 3.0), (0, 2.0), (0, 2.5)], 2, 1),
    "later at equal loss": ("bleu", [(0, 2.0), (0, 2.0), (0, 2.0)], 3, 2),
    "lower is better": ("perplexity", [(9, 2.2), (8, 2.1), (8.5, 2.1)], 2, 1),
    "later where the metric is the loss": ("loss", [(2.0, 2.0), (2.0, 2.0)], 2, 1),
    "nothing but finite numbers": ("bleu", [(math.nan, 1.0), (3, 2.0), (9, math.nan), (math.inf, 1.0), (3, 3.0)], 2, 3),
    "none": ("loss", [(math.nan, math.nan)], None, 1),
}


@pytest.mark.parametrize("case", BEST)
def test_the_best_evaluation(case):
    name, evaluations, best, waiting = BEST[case]
    progress = Progress()
    for step, (value, loss) in enumerate(evaluations, start=1):
        progress.step = step
        wins = progress.record_evaluation({"loss": loss, name: value}, name, 0.0)
        assert wins == (progress.best_step == step)
        # What a checkpoint stores is enough to go on.
        progress = Progress.from_state(json.loads(json.dumps(progress.state_dict())))
    assert (progress.best_step, progress.evaluations_without_gain) == (best, waiting)


def test_a_gain_below_the_threshold_does_not_count_but_its_weights_are_kept():
    progress = Progress()
    for step, value in enumerate((5.0, 5.5, 5.9), start=1):
        progress.step = step
        assert progress.record_evaluation({"loss": 1.0 / step, "bleu": value}, "bleu", 1.0)
    assert (progress.best_step, progress.evaluations_without_gain) == (3, 2)


def test_a_metric_that_ties_leaves_the_choice_to_the_loss(tmp_path):
    options = arguments(tmp_path, max_steps=6, eval_steps=2, predict_with_generate=True, early_stopping_patience=1)
    loop = build_loop("bart", options, validator=scripted_validator([0, 0, 0]))
    assert loop.run() == "max_steps"
    losses = {line["step"]: line["eval_loss"] for line in log_lines(tmp_path, "eval")}
    assert json.loads((tmp_path / "summary.json").read_text())["best_step"] == min(losses, key=losses.get) == 6
    assert_same_weights(weights(tmp_path), weights(tmp_path / "checkpoints" / "step-00000006"), 0)


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

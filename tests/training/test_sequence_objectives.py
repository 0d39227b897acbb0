"""Minimum risk training and REINFORCE: against sums over every target there is, and in runs of the training loop."""

import itertools
import json
import math
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import Tensor

from hf_rnn_seq2seq.errors import ArgumentError
from hf_rnn_seq2seq.evaluation.sentence_scores import gleu, sentence_metric
from hf_rnn_seq2seq.model.loss import IGNORED_LABEL
from hf_rnn_seq2seq.training.arguments import REWARDS, TrainingOptions
from hf_rnn_seq2seq.training.sequence_objectives import (
    Candidates,
    SequenceObjective,
    Source,
    draw,
    draw_words,
    log_probabilities,
    minimum_risk,
    policy_gradient,
)
from tests.helpers.models import END, SOURCES, START, batch, pad, tiny_model
from tests.helpers.training_checks import assert_identical_states, assert_same_weights, copy_until, weights
from tests.helpers.training_runs import arguments, build_loop, build_model, corpus, log_lines, text_of
from tests.scripts.test_train import TINY, train
from tests.training.test_several_processes import launch

pytestmark = pytest.mark.usefixtures("fresh_accelerate")

LONGEST = 3
WORDS = 5  # ids 0 to 4, of which END ends a sentence


def small_model(**options):
    return tiny_model(vocab_size=WORDS, deviation=0.4, **options)


def every_target() -> list[tuple[int, ...]]:
    """Every possible draw of at most LONGEST words: sentences that end, and sentences that are cut off."""
    others = [word for word in range(WORDS) if word != END]
    ended = [(*words, END) for size in range(LONGEST) for words in itertools.product(others, repeat=size)]
    return ended + list(itertools.product(others, repeat=LONGEST))


def slow_log_probability(model, source: list[int], target: tuple[int, ...]) -> Tensor:
    """The log-probability of one target, word by word; each prefix is read anew."""
    total = torch.zeros((), dtype=torch.float64)
    for position, word in enumerate(target):
        prefix = torch.tensor([[START, *target[:position]]])
        logits = model(input_ids=torch.tensor([source]), decoder_input_ids=prefix).logits[0, -1].double()
        total = total + logits.log_softmax(-1)[word]
    return total


def reward_of(target: tuple[int, ...], reference: tuple[int, ...]) -> float:
    return gleu([str(word) for word in target], [str(word) for word in reference])


def all_candidates(references: list[list[int]]) -> Candidates:
    """Every target of every sentence, each drawn once."""
    targets = pad([list(target) for target in every_target()], IGNORED_LABEL)
    return Candidates.of(pad(references, IGNORED_LABEL), targets.expand(len(references), -1, -1))


def rewards_of(candidates: Candidates, references: list[list[int]]) -> Tensor:
    rows = [tuple(word for word in row if word != IGNORED_LABEL) for row in candidates.labels.tolist()]
    pairs = zip(rows, candidates.sentence.tolist(), strict=True)
    return torch.tensor([reward_of(row, tuple(references[number])) for row, number in pairs], dtype=torch.float64)


def gradients(loss: Tensor, model) -> list[Tensor]:
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return list(torch.autograd.grad(loss, parameters))


def assert_close(found: list[Tensor], expected: list[Tensor], **tolerance: float) -> None:
    for left, right in zip(found, expected, strict=True):
        torch.testing.assert_close(left, right, **tolerance)
    assert any(tensor.abs().max() > 1e-3 for tensor in expected)


# ------------------------------------------------------------------------------------------------ the score


@pytest.mark.parametrize(
    ("candidate", "reference", "expected"),
    [
        ("a b c d", "a b c d", 1.0),
        ("a b c d e", "a b c d e", 1.0),
        ("a b c", "x y z", 0.0),
        # 1 + 1 of 2: n-grams a, b, ab against a, b, c, ab, bc, abc: 3 in common, 6 in the longer
        ("a b", "a b c", 3 / 6),
        ("a b c", "a b", 3 / 6),
        # each n-gram counts as often as both sides have it: a a a, aa aa, aaa against a, b, ab
        ("a a a", "a b", 1 / 6),
        # a c b against a b c: the words only
        ("a c b", "a b c", 3 / 6),
        # 5 words have 5 + 4 + 3 + 2 n-grams of up to 4; a b c d x shares a b c d (10) without ... and nothing with x
        ("a b c d x", "a b c d e", 10 / 14),
        ("", "a", 0.0),
        ("a", "", 0.0),
        ("", "", 1.0),
    ],
)
def test_gleu_by_hand(candidate: str, reference: str, expected: float) -> None:
    assert gleu(candidate.split(), reference.split()) == pytest.approx(expected)
    assert sentence_metric("gleu")(candidate, reference) == pytest.approx(expected)


def test_sentence_metrics_lie_between_nothing_and_one() -> None:
    for name in REWARDS:
        metric = sentence_metric(name)
        same, near, far = (metric(text, "The cat sat down.") for text in ("The cat sat down.", "The cat sat.", "xyz"))
        assert same == pytest.approx(1.0) and far == pytest.approx(0.0, abs=0.02) and near < same, name
        assert far < near or name == "sequence_error" and far == near == 0  # right or wrong, nothing between


# ------------------------------------------------------------------------------------------------ drawing and scoring


def test_probabilities_are_those_of_a_slow_loop_and_sum_to_one() -> None:
    model = small_model(attention_type="additive")
    inputs = batch()
    candidates = all_candidates([[4, END], [3, END], [4, 4, END]])
    source = Source.read(model, inputs["input_ids"], inputs["attention_mask"])
    found = log_probabilities(model, source, candidates.labels, candidates.sentence)
    assert found.dtype == torch.float64 and len(found) > 128
    sums = torch.zeros(3, dtype=torch.float64).index_add(0, candidates.sentence, found.exp())
    torch.testing.assert_close(sums, torch.ones_like(sums))
    for number in range(0, len(found), 37):
        target = tuple(word for word in candidates.labels[number].tolist() if word != IGNORED_LABEL)
        expected = slow_log_probability(model, SOURCES[int(candidates.sentence[number])], target)
        torch.testing.assert_close(found[number], expected)


@pytest.mark.parametrize("kind", ["bart", "rnn", "rnn_tied"])
def test_reference_has_the_loss_of_the_model(kind: str) -> None:
    """Label smoothing (of rnn_tied) does not change it."""
    model = build_model(kind).eval()
    inputs = batch()
    objective = SequenceObjective(
        model, text_of, sentence_metric("gleu"), kind="mrt", samples=2, alpha=1.0, ml_weight=0.0
    )
    _, figures = objective(**inputs)
    tokens = int((inputs["labels"] != IGNORED_LABEL).sum())
    assert figures[2].tolist() == pytest.approx([model(**inputs).loss.item() * tokens, tokens])


@pytest.mark.parametrize(("kind", "sharper"), [("bart", 8), ("rnn", 40)])
def test_draws_have_the_frequencies_of_the_model(kind: str, sharper: float) -> None:
    """Of targets of up to three words, cut or ended, in a batch whose draws end at different positions."""
    torch.manual_seed(3)
    model = build_model(kind).eval()
    inputs, samples = batch(), 6000
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(sharper)
        # A frequent word has the role of the end of the sentence.
        end = int(model(**inputs).logits[0, 0].topk(2).indices[1])
        model.generation_config.eos_token_id = end
        draws = draw(model, Source.read(model, inputs["input_ids"], inputs["attention_mask"]), samples, 3)
    assert draws.shape == (3, samples, 3)
    for number, rows in enumerate(draws.tolist()):
        found = Counter(tuple(word for word in row if word != IGNORED_LABEL) for row in rows)
        assert all(end not in target[:-1] and (target[-1] == end or len(target) == 3) for target in found)
        assert {len(target) for target in found} == {1, 2, 3}
        for target, count in found.most_common(8):
            with torch.no_grad():
                probability = math.exp(slow_log_probability(model, SOURCES[number], target))
            deviation = math.sqrt(probability * (1 - probability) / samples)
            assert count / samples == pytest.approx(probability, abs=4 * deviation), target
        assert found.most_common(1)[0][1] > samples / 20


def test_words_of_probability_zero_are_never_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    probabilities = torch.tensor([[0, 0.25, 0, 0.75, 0], [1, 0, 0, 0, 0], [0, 0, 0, 0.1, 0]])
    drawn = draw_words(probabilities, 4000)
    assert drawn.shape == (3, 4000) and set(drawn[0].tolist()) == {1, 3}
    assert (drawn[0] == 3).float().mean() == pytest.approx(0.75, abs=0.03)
    assert set(drawn[1].tolist()) == {0} and set(drawn[2].tolist()) == {3}
    ends = {0.0: [1, 0, 3], 1.0: [3, 0, 3], 1 - 2**-24: [3, 0, 3]}  # a product may be rounded up to the whole sum
    for number, words in ends.items():
        monkeypatch.setattr(torch, "rand", lambda *size, number=number, **kind: torch.full(size, number, **kind))
        assert draw_words(probabilities, 1)[:, 0].tolist() == words
    # A word all the same: the loss is not finite then, and the update is left out.
    assert 0 <= int(draw_words(torch.full((1, 5), math.nan), 1)) < 5


def test_each_candidate_occurs_once_with_its_count() -> None:
    labels = torch.tensor([[5, 2], [4, 2]])
    draws = torch.tensor([[[7, 2, -100], [5, 2, -100], [7, 2, -100]], [[6, 2, -100], [6, 6, 6], [2, -100, -100]]])
    found = Candidates.of(labels, draws)
    rows = [[word for word in row if word != IGNORED_LABEL] for row in found.labels.tolist()]
    assert rows == [[5, 2], [7, 2], [4, 2], [6, 2], [6, 6, 6], [2]]
    assert found.sentence.tolist() == [0, 0, 1, 1, 1, 1] and found.drawn.tolist() == [1, 2, 0, 1, 1, 1]
    assert found.is_reference.tolist() == [True, False, True, False, False, False]
    rewards = found.rewards(text_of, lambda candidate, reference: float(len(candidate) + 10 * len(reference)))
    assert rewards.tolist() == [11.0, 11.0, 11.0, 11.0, 15.0, 10.0]


# ------------------------------------------------------------------------------------------------ the objectives


def exact_expected_reward(model, sources, references) -> Tensor:
    """Sum over sentences and over every target of P x reward, each target computed by itself with its source."""
    total = torch.zeros((), dtype=torch.float64)
    for source, reference in zip(sources, references, strict=True):
        for target in every_target():
            reward = reward_of(target, tuple(reference))
            if reward:
                read = torch.tensor([[START, *target[:-1]]])
                logits = model(input_ids=torch.tensor([source]), decoder_input_ids=read).logits[0]
                total = total + logits.log_softmax(-1)[range(len(target)), target].sum().exp() * reward
    return total


REFERENCES = [[3, 4, END], [4, END]]


def test_risk_over_every_target_is_the_expected_risk() -> None:
    """With alpha = 1 and the whole space as candidates Q is P: value and gradient are those of the enumeration."""
    model = small_model()
    inputs = batch(SOURCES[:2], REFERENCES)
    candidates = all_candidates(REFERENCES)
    source = Source.read(model, inputs["input_ids"], inputs["attention_mask"])
    log_p = log_probabilities(model, source, candidates.labels, candidates.sentence)
    risk = minimum_risk(log_p, rewards_of(candidates, REFERENCES), candidates, alpha=1.0).sum()
    expected = 2 - exact_expected_reward(model, SOURCES[:2], REFERENCES)
    torch.testing.assert_close(risk, expected)
    assert_close(gradients(risk, model), gradients(expected, model))


def test_risk_of_some_candidates_by_a_slow_loop() -> None:
    """Sentences with different numbers of candidates, alpha far from 1."""
    candidates = Candidates.of(torch.tensor([[5, 2], [4, 2]]), torch.tensor([[[7, 2], [7, 2]], [[6, 2], [3, 3]]]))
    generator = torch.Generator().manual_seed(0)
    log_p = (-3 * torch.rand(5, generator=generator, dtype=torch.float64)).requires_grad_()
    rewards = torch.tensor([1.0, 0.25, 1.0, 0.5, 0.125], dtype=torch.float64)
    alpha = 0.3
    expected, slopes = [], []
    for rows in ([0, 1], [2, 3, 4]):
        powers = [math.exp(alpha * log_p[row].item()) for row in rows]
        weights = [power / sum(powers) for power in powers]
        risk = sum(weight * (1 - rewards[row].item()) for weight, row in zip(weights, rows, strict=True))
        expected.append(risk)
        # d risk / d log P(y) = alpha Q(y) (1 - reward(y) - risk)
        slopes += [alpha * weight * (1 - rewards[row].item() - risk) for weight, row in zip(weights, rows, strict=True)]
    found = minimum_risk(log_p, rewards, candidates, alpha)
    assert found.tolist() == pytest.approx(expected)
    assert torch.autograd.grad(found.sum(), log_p)[0].tolist() == pytest.approx(slopes)


def test_policy_gradient_of_given_draws_by_a_slow_loop() -> None:
    """Each draw contributes its reward minus the mean of the others', times the gradient of its log-probability."""
    draws = [[(7, 2), (5, 2), (7, 2), (6, 2)], [(6, 2), (3, 3), (2,), (3, 3)]]
    labels = torch.tensor([[5, 2], [4, 2]])
    table = torch.tensor([[[*row, *[IGNORED_LABEL] * (2 - len(row))] for row in rows] for rows in draws])
    candidates = Candidates.of(labels, table)
    log_p = torch.linspace(-2, -1, len(candidates.labels), dtype=torch.float64).requires_grad_()
    rewards = torch.tensor([1.0, 0.3, 0.2, 1.0, 0.6, 0.1, 0.0], dtype=torch.float64)
    rows = [tuple(word for word in row if word != IGNORED_LABEL) for row in candidates.labels.tolist()]
    place = {(number, row): n for n, (number, row) in enumerate(zip(candidates.sentence.tolist(), rows, strict=True))}
    expected = torch.zeros(())
    for number, targets in enumerate(draws):
        mine = [place[number, target] for target in targets]
        for index, chosen in enumerate(mine):
            others = [rewards[other] for position, other in enumerate(mine) if position != index]
            expected = expected - (rewards[chosen] - sum(others) / 3) * log_p[chosen] / 4
    found = policy_gradient(log_p, rewards, candidates, 4)
    torch.testing.assert_close(found.sum(), expected)
    slopes = [torch.autograd.grad(loss, log_p)[0] for loss in (found.sum(), expected)]
    torch.testing.assert_close(*slopes)
    assert slopes[0][3] == 0, "the reference of the second sentence was not drawn"


def test_many_draws_give_the_gradient_of_the_enumeration() -> None:
    model = small_model()
    inputs = batch(SOURCES[:2], REFERENCES)
    objective = SequenceObjective(
        model,
        lambda rows: [" ".join(map(str, row)) for row in rows],
        lambda candidate, reference: gleu(candidate.split(), reference.split()),
        kind="reinforce",
        samples=60_000,
        alpha=1.0,
        ml_weight=0.0,
    )
    model.generation_config.max_new_tokens = LONGEST
    torch.manual_seed(0)
    loss, figures = objective(**inputs)
    expected = exact_expected_reward(model, SOURCES[:2], REFERENCES)
    assert figures[0].tolist() == pytest.approx([expected.item(), 2], abs=0.005)
    assert figures[1].tolist() == pytest.approx([2 - expected.item(), 2], abs=0.005)
    found, exact = gradients(5 * loss, model), gradients(-expected, model)
    difference = sum((left - right).square().sum() for left, right in zip(found, exact, strict=True)).sqrt()
    length = sum(right.square().sum() for right in exact).sqrt()
    assert difference < 0.05 * length, (difference, length)


@pytest.mark.parametrize("kind", ["mrt", "reinforce"])
def test_loss_is_the_mixture_for_each_target_token(kind: str) -> None:
    """The numbers of a model that always draws one translation: its reward, and the cross entropy of the reference."""
    model, inputs = build_model("rnn_certain").eval(), batch()
    options = {"kind": kind, "samples": 4, "alpha": 0.0001}
    mixed = SequenceObjective(model, text_of, sentence_metric("gleu"), ml_weight=0.5, **options)
    alone = SequenceObjective(model, text_of, sentence_metric("gleu"), ml_weight=0.0, **options)
    (loss, figures), (pure, _) = mixed(**inputs), alone(**inputs)
    tokens = (inputs["labels"] != IGNORED_LABEL).sum()
    torch.testing.assert_close(loss - pure, 0.5 * model(**inputs).loss, rtol=1e-4, atol=1e-4)
    assert figures[:, 1].tolist() == [3, 3, tokens]
    if kind == "mrt":
        torch.testing.assert_close(pure.double() * tokens, figures[1, 0])


# ------------------------------------------------------------------------------------------------ the model's mode


def test_training_options_are_off_and_the_mode_is_restored() -> None:
    """No dropout, no label smoothing, and no scheduled sampling (a ratio of 0 would sample every input)."""
    acting = {"dropout": 0.5, "word_dropout": 0.3, "label_smoothing": 0.2, "teacher_forcing_ratio": 0.0}
    found = []
    for options in ({}, acting):
        model = tiny_model(**options).train()
        model.model.encoder.eval()
        torch.manual_seed(1)
        objective = SequenceObjective(
            model, text_of, sentence_metric("chrf"), kind="reinforce", samples=3, alpha=1.0, ml_weight=1.0
        )
        loss, _ = objective(**batch())
        found.append([loss, *gradients(loss, model)])
        assert model.training and model.model.decoder.training and not model.model.encoder.training
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))


def test_gradients_under_autocast() -> None:
    """Weights cast while drawing must not be reused in the pass with gradients."""
    model = tiny_model(dtype=torch.float32)
    objective = SequenceObjective(
        model, text_of, sentence_metric("gleu"), kind="mrt", samples=3, alpha=1.0, ml_weight=1.0
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, _ = objective(**batch())
    loss.backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.lm_head.parameters())


# ------------------------------------------------------------------------------------------------ runs


OPTIONS = {"model_name_or_path": "a checkpoint", "objective_samples": 4}


@pytest.mark.parametrize("objective", [pytest.param("mrt", marks=pytest.mark.long), "reinforce"])
def test_training_raises_the_reward(objective: str, tmp_path: Path) -> None:
    """The model learns to write two words that are always right."""
    rows = corpus(64).map(lambda row: {"labels": [5, 6, END], "target_length": 3})
    options = {**OPTIONS, "objective": objective, "objective_samples": 8, "max_steps": 25, "learning_rate": 0.03}
    options |= {"mrt_alpha": 1.0} if objective == "mrt" else {"ml_weight": 0.0}
    build_loop("rnn", arguments(tmp_path, **options), train=rows).run()
    lines = log_lines(tmp_path, "train")
    rewards = [line["reward"] for line in lines]
    assert 0 < 3 * sum(rewards[:4]) < sum(rewards[-4:]), rewards
    assert lines[-1]["perplexity"] == pytest.approx(math.exp(lines[-1]["ml_loss"]))
    assert log_lines(tmp_path, "eval")[-1]["eval_loss"] > 1, "evaluation keeps the cross entropy"
    if objective == "reinforce":
        assert [1 - line["reward"] for line in lines] == pytest.approx([line["risk"] for line in lines])


@pytest.mark.parametrize("objective", ["mrt", pytest.param("reinforce", marks=pytest.mark.long)])
def test_a_resumed_run_is_bit_identical(objective: str, tmp_path: Path) -> None:
    options = {**OPTIONS, "objective": objective, "save_steps": 5, "logging_steps": 3, "gradient_accumulation_steps": 2}
    build_loop("rnn_dropout", arguments(tmp_path / "whole", **options)).run()
    copy_until(tmp_path / "whole", tmp_path / "resumed", step=5)
    torch.rand(17)
    more = {**options, "resume_from_checkpoint": "latest"}
    build_loop("rnn_dropout", arguments(tmp_path / "resumed", **more)).run()
    assert_identical_states(tmp_path / "whole", tmp_path / "resumed", step=12)
    lines = [log_lines(tmp_path / name, "train") for name in ("whole", "resumed")]
    names = ("step", "loss", "reward", "risk", "ml_loss")
    assert [[line[name] for name in names] for line in lines[0]] == [
        [line[name] for name in names] for line in lines[1]
    ]
    other = {**more, "objective": {"mrt": "reinforce", "reinforce": "mrt"}[objective], "max_steps": 14}
    with pytest.raises(ArgumentError, match=f"was trained with objective '{objective}'"):
        build_loop("rnn_dropout", arguments(tmp_path / "resumed", **other)).run()


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["mrt", pytest.param("reinforce", marks=pytest.mark.long)])
def test_two_processes_equal_one(objective: str, tmp_path: Path) -> None:
    """With a model whose draws do not depend on chance; the single process takes two micro-batches."""
    more = {"mrt": {"mrt_alpha": 0.0001}, "reinforce": {"ml_weight": 0.5}}[objective]
    options = {**OPTIONS, "objective": objective, "per_device_train_batch_size": 4, "learning_rate": 0.001, **more}
    launch([{"model": "rnn_certain", "options": {"output_dir": str(tmp_path / "two"), **options}}], tmp_path)
    build_loop("rnn_certain", arguments(tmp_path / "one", **options, gradient_accumulation_steps=2)).run()
    lines = [log_lines(tmp_path / name, "train") for name in ("two", "one")]
    assert len(lines[0]) == 12
    for name in ("loss", "reward", "risk", "ml_loss"):
        values = [[line[name] for line in run] for run in lines]
        assert values[0] == pytest.approx(values[1], rel=1e-4), name
        assert len(set(values[0])) > 2, name
    last = [weights(tmp_path / name / "checkpoints" / "step-00000012") for name in ("two", "one")]
    assert_same_weights(*last, tolerance=5e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"objective": "mrt"}, "objective='mrt': needs model_name_or_path, the checkpoint"),
        ({"objective": "minimum"}, "objective='minimum': must be one of ml, mrt, reinforce"),
        ({"mrt_alpha": 0.1}, "mrt_alpha=0.1: has no effect with objective='ml'"),
        ({"objective": "reinforce", "mrt_alpha": 0.1}, "mrt_alpha=0.1: has no effect with objective='reinforce'"),
        ({"ml_weight": 0.1}, "ml_weight=0.1: has no effect with objective='ml'"),
        ({"objective_samples": 4}, "objective_samples=4: has no effect with objective='ml'"),
        ({"objective_metric": "bleu"}, "objective_metric='bleu': has no effect with objective='ml'"),
        ({"objective": "mrt", "objective_metric": "ter"}, "objective_metric='ter': must be one of gleu, bleu, chrf"),
        ({"objective": "mrt", "objective_samples": 1}, "objective_samples=1: must be at least 2"),
        ({"objective": "mrt", "mrt_alpha": 0.0}, "mrt_alpha=0.0: must be greater than 0"),
        (
            {"objective": "mrt", "model_name_or_path": "x", "gradient_checkpointing": True},
            "gradient_checkpointing=True: has no effect with objective='mrt'",
        ),
    ],
)
def test_refusals(options: dict, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        TrainingOptions(**options)


@pytest.mark.long
@pytest.mark.slow
def test_second_stage_by_the_script(tmp_path: Path) -> None:
    """From a checkpoint with two vocabularies; the run's own recipe continues it."""
    (tmp_path / "tiny.yaml").write_text(json.dumps(TINY))
    first, second = tmp_path / "first", tmp_path / "second"
    words = ["--joint_vocabulary", "false", "--source_vocab_size", 280]
    assert train(tmp_path / "tiny.yaml", "--output_dir", first, *words) == 0
    words = [
        "--model_name_or_path",
        first,
        "--objective",
        "mrt",
        "--objective_metric",
        "chrf",
        "--objective_samples",
        3,
    ]
    assert train(tmp_path / "tiny.yaml", "--output_dir", second, *words) == 0
    line = log_lines(second, "train")[-1]
    assert 0 <= line["reward"] <= 1 and 0 <= line["risk"] <= 1 and line["ml_loss"] > 1
    words = ["--output_dir", second, "--resume_from_checkpoint", "latest", "--max_steps", 6]
    assert train(second / "recipe.yaml", *words) == 0

"""Losses of the attention and their gradients by the equations; sparse weights; the figures of training about both."""

from typing import Any

import pytest
import torch
from torch import Tensor

from hf_rnn_seq2seq.model.entmax import SparseWeights, entmax
from hf_rnn_seq2seq.model.loss import doubly_stochastic_loss
from tests.helpers import attention_references
from tests.helpers.models import SOURCES, TARGETS, batch, tiny_config, tiny_model
from tests.model.test_model import gradients, nats

# Which source words stand for each label: one, several of different weight, none.
ALIGNMENTS = [
    [[1, 0, 0, 0], [0, 0.5, 2, 0], [0, 0, 0, 0], [0, 0, 0, 3]],
    [[0, 0, 1, 1, 0, 0], [0, 0, 0, 0, 0, 1]],
    [[0, 0], [1, 0], [0, 0], [1, 1], [0, 1]],
]
BOTH = {"coverage_loss": 0.7, "guided_alignment_weight": 0.3, "doubly_stochastic": 0.2}


def alignments() -> Tensor:
    """(batch, target, source); values at positions without a label must have no effect."""
    padded = torch.ones(3, 5, 6)
    for row, given in zip(padded, ALIGNMENTS, strict=True):
        row[: len(given)] = 0
        row[: len(given), : len(given[0])] = torch.tensor(given)
    return padded


def shares(model: Any) -> list[list[Tensor]]:
    """The attention of each sentence by itself: a vector for each label, the average over heads."""
    found = []
    for source, target in zip(SOURCES, TARGETS, strict=True):
        actual = model(input_ids=torch.tensor([source]), labels=torch.tensor([target]), output_attentions=True)
        found.append(list(actual.cross_attentions[0][0].mean(0)))
    return found


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"decoder_recurrence": "loop"},
        {"attention_type": "additive", "coverage": "sum"},
        {"attention_type": "multi_head", "num_attention_heads": 2, "input_feeding": False},
    ],
    ids=str,
)
def test_losses_and_gradients(options: dict[str, Any]) -> None:
    model = tiny_model(**BOTH, **options).train()
    words, read = sum(map(len, TARGETS)), shares(model.eval())
    covered = sum(map(attention_references.coverage_loss, read))
    guided = sum(map(attention_references.guided_alignment_loss, read, ALIGNMENTS))
    cross_entropy = nats(model, 0.0)
    uneven = sum(map(attention_references.doubly_stochastic_loss, read))
    expected = (cross_entropy + 0.7 * covered + 0.3 * guided + 0.2 * uneven) / words
    actual = model.train()(**batch(), alignments=alignments(), output_figures=True)
    torch.testing.assert_close(actual.loss.double(), expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(gradients(model, actual.loss), gradients(model, expected), rtol=1e-4, atol=1e-6)
    figures = dict(zip(model.training_figures, actual.figures.double(), strict=True))
    known = {
        "ml_loss": (cross_entropy, words),
        "attention_entropy": (sum(map(attention_references.entropy, read)), words),
        "coverage_loss": (covered, words),
        "doubly_stochastic_loss": (uneven, len(SOURCES)),
        "guided_alignment_loss": (guided, sum(any(row) for rows in ALIGNMENTS for row in rows)),
    }
    if "num_attention_heads" in options:  # the mean of the heads' entropies is not that of their mean
        assert figures.pop("attention_entropy")[0] < known.pop("attention_entropy")[0]
    for name, (total, count) in known.items():
        torch.testing.assert_close(
            figures[name], torch.tensor([torch.as_tensor(total).item(), count]).double(), rtol=1e-5, atol=1e-6
        )
    assert figures["ml_loss"].requires_grad is False and actual.cross_attentions is None


def test_the_doubly_stochastic_loss_on_hand_numbers() -> None:
    """Two words, three regions, and a third word and a fourth region that do not count."""
    weights = torch.tensor([[0.5, 0.5, 0.0, 0.0], [0.2, 0.3, 0.5, 0.0], [1.0, 0.0, 0.0, 0.0]]).double()
    weights = torch.stack([weights, weights]).requires_grad_()
    real = torch.tensor([[True, True, False], [False, False, False]])
    mask = torch.tensor([[True, True, True, False]]).expand(2, -1)
    loss = doubly_stochastic_loss(weights, real, mask)
    # The regions receive 0.7, 0.8 and 0.5.
    assert loss.item() == pytest.approx(0.3**2 + 0.2**2 + 0.5**2)
    (gradient,) = torch.autograd.grad(loss, weights)
    of_regions = torch.tensor([-2 * 0.3, -2 * 0.2, -2 * 0.5, 0.0]).double()
    torch.testing.assert_close(gradient[0, :2], torch.stack([of_regions, of_regions]))
    assert not gradient[0, 2].any() and not gradient[1].any()
    assert doubly_stochastic_loss(weights[:1], real[:1]).item() == pytest.approx(loss.item() + 1)


def test_evaluation_has_no_attention_losses() -> None:
    model, plain = tiny_model(**BOTH), tiny_model()
    assert torch.equal(model(**batch()).loss, plain(**batch()).loss)
    actual = model(**batch(), output_figures=True)
    assert model.training_figures == (
        "ml_loss",
        "attention_entropy",
        "coverage_loss",
        "doubly_stochastic_loss",
        "guided_alignment_loss",
    )
    assert actual.figures[4].tolist() == [0.0, 0.0] and actual.figures[2, 0] > 0
    assert plain.training_figures == ("attention_entropy",) and plain(**batch()).figures is None
    assert tiny_model(context="initial_state").training_figures == ()
    assert tiny_model(context="initial_state")(**batch(), output_figures=True).figures is None


def test_missing_or_misshaped_alignments_are_refused() -> None:
    model = tiny_model(guided_alignment_weight=0.5).train()
    with pytest.raises(ValueError, match=r"alignments=None: guided_alignment_weight=0.5 needs them in training"):
        model(**batch())
    with pytest.raises(ValueError, match=r"alignments of shape \(3, 5, 5\): must be .* = \(3, 5, 6\)"):
        model(**batch(), alignments=torch.zeros(3, 5, 5))


@pytest.mark.parametrize("window", ["global", "local_p"])
def test_losses_without_labels_or_alignments_are_zero_and_finite(window: str) -> None:
    """No label, no alignment, and a weight of exactly zero at an aligned word; gradients are finite too."""
    options = {"attention_window": window, "attention_window_size": 1, "attention_normalization": "sparsemax"}
    model = tiny_model(**BOTH, **options).train()
    given = batch() | {"labels": torch.full((3, 4), -100)}
    assert model(**given, alignments=torch.ones(3, 4, 6)).loss == 0
    loss = model(**batch(), alignments=torch.ones(3, 5, 6)).loss
    loss.backward()
    assert loss.isfinite()
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize(
    "options",
    [
        {"attention_type": "additive", "coverage": "sum"},
        {"attention_type": "additive", "coverage": "gru", "attention_order": "before_cell", "context_gate": "both"},
        {"attention_normalization": "entmax", "entmax_learned": True, "context_gate": "target"},
    ],
    ids=str,
)
def test_bfloat16_by_autocast_and_throughout(options: dict[str, Any]) -> None:
    """Products in 16 bits and states in 32, or everything in 16: the loss is close to that in float32."""
    exact = tiny_model(dtype=torch.float32, **options)
    expected = exact(**batch()).loss
    with torch.autocast("cpu", torch.bfloat16):
        loss = exact.train()(**batch()).loss
    loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in exact.parameters() if parameter.grad is not None)
    narrow = tiny_model(dtype=torch.bfloat16, **options)(**batch()).loss
    for found in (loss, narrow):
        torch.testing.assert_close(found.float(), expected, rtol=0.02, atol=0)


@pytest.mark.parametrize("alpha", [1.01, 1.2, 1.5, 1.75, 2, 2.5])
def test_entmax_and_its_jacobian(alpha: float) -> None:
    """By sorting if there is a closed form, else by bisection; with ties and with distant scores."""
    generator = torch.Generator().manual_seed(3)
    scores = 2 * torch.randn(6, 7, generator=generator, dtype=torch.float64)
    scores[0], scores[1, 2], scores[2, 0] = 1.5, 40.0, scores[2, 1]
    expected = torch.stack([torch.stack(attention_references.entmax(list(row), alpha)) for row in scores])
    for given in (alpha, torch.tensor(alpha, dtype=torch.float64)):
        torch.testing.assert_close(entmax(scores, given), expected)
    torch.testing.assert_close(entmax(scores.float(), alpha).double(), expected, rtol=1e-4, atol=1e-6)
    smooth = scores[3:].requires_grad_()
    assert torch.autograd.gradcheck(lambda given: entmax(given, alpha), (smooth,))
    free = torch.tensor(alpha, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(entmax, (smooth, free))


def test_between_softmax_and_sparsemax() -> None:
    scores = torch.tensor([[0.0, 0.5, 1.0, 3.0]], dtype=torch.float64)
    torch.testing.assert_close(entmax(scores, 1 + 1e-7), scores.softmax(-1), rtol=1e-4, atol=1e-6)
    assert entmax(scores, 2.0).tolist() == [[0.0, 0.0, 0.0, 1.0]]
    assert (entmax(scores, 1.5) > 0).sum() == 1 and (entmax(scores / 3, 1.5) > 0).sum() == 4
    # Martins and Astudillo 2016, figure 1: linear between two scores less than 1 apart.
    assert entmax(torch.tensor([[0.25, 0.0]]), 2.0).tolist() == [[0.625, 0.375]]


@pytest.mark.parametrize("options", [{"attention_normalization": "sparsemax"}, {"entmax_learned": True}], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_masked_scores_of_every_type(options: dict[str, Any], dtype: torch.dtype) -> None:
    config = tiny_config(**({"attention_normalization": "entmax"} | options))
    weigh = SparseWeights(config).to(dtype)
    low = torch.finfo(dtype).min / 2
    scores = torch.tensor([[9.0, 8.8, 5.0, 60000.0], [low, low, 0, 0], [1, 2, 3, 4]], dtype=dtype).view(1, 1, 3, 4)
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0], [0, 0, 0, 0]]).bool().view(1, 1, 3, 4)
    weights = weigh(scores, mask)
    assert weights.dtype == dtype and not weights[~mask].any() and not weights[..., 2, :].any()
    torch.testing.assert_close(weights.sum(-1).float(), torch.tensor([[[1.0, 1.0, 0.0]]]), rtol=0, atol=0.01)
    assert weights[0, 0, 0, 0] > weights[0, 0, 0, 1] > weights[0, 0, 0, 2] == 0 and weights[0, 0, 1, 0] == 0.5


def test_a_learned_alpha_starts_at_entmax_alpha_and_is_trained() -> None:
    options = {"attention_normalization": "entmax", "entmax_alpha": 1.25, "entmax_learned": True}
    heads = {"attention_type": "multi_head", "num_attention_heads": 2}
    from hf_rnn_seq2seq import RnnSeq2SeqForConditionalGeneration

    model = RnnSeq2SeqForConditionalGeneration(tiny_config(**options, **heads)).train()
    free = model.get_decoder().attention.sparse.free
    torch.testing.assert_close(1 + free.sigmoid(), torch.full((2,), 1.25))
    model(**batch()).loss.backward()
    assert free.grad.all() and free.grad[0] != free.grad[1]

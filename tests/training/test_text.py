"""The state that is carried from one update to the next."""

import math

import numpy as np
import pytest
import torch

from hf_rnn_seq2seq.data.contiguous import ContiguousLoader, ContiguousPlan, ContiguousText
from hf_rnn_seq2seq.training.text import CarriedState
from tests.model.test_causal import GRAVES, reference_logits, tiny_lm
from tests.model.test_model import gradients

TOKENS = np.random.default_rng(1).integers(3, 11, 31).astype(np.int32)


def read_epoch(carried: CarriedState, plan: ContiguousPlan, epoch: int, **split: int) -> list[torch.Tensor]:
    """The summed loss of each update of an epoch."""
    losses = []
    for index in range(plan.pieces):
        update = next(plan.updates(epoch, index))
        losses.append(torch.zeros((), dtype=torch.float64))
        for batch in ContiguousLoader(plan, **split).load(update):
            loss, figures = carried(**batch.inputs)
            losses[-1] = losses[-1] + loss * batch.target_tokens
            assert figures.shape == (1, 2)
    return losses


@pytest.mark.parametrize(("streams", "accumulation"), [(1, 1), (3, 1), (3, 2)])
def test_an_epoch_in_pieces_scores_the_text_as_if_read_at_once(streams: int, accumulation: int) -> None:
    """Two epochs: each begins anew, from the equations of the model on each stream."""
    model = tiny_lm(**GRAVES)
    plan = ContiguousPlan(ContiguousText(TOKENS, 4, start=1, pad=0), streams=streams, seed=0)
    carried = CarriedState(model, streams)
    for epoch in range(2):
        circle = np.roll(TOKENS, -plan.cut(epoch))
        expected = 0.0
        for first, end in zip(plan.bounds, plan.bounds[1:], strict=False):
            own = circle[first:end].tolist()
            logs = reference_logits(model, [1, *own[:-1]]).log_softmax(-1)
            expected = expected - sum(logs[place, token] for place, token in enumerate(own))
        found = sum(read_epoch(carried, plan, epoch, accumulation=accumulation))
        torch.testing.assert_close(found, expected)


def test_gradients_stop_at_the_beginning_of_a_piece() -> None:
    """The gradient of an update is that of its own piece, from a constant state."""
    model = tiny_lm(**GRAVES)
    plan = ContiguousPlan(ContiguousText(TOKENS, 10, start=1, pad=0), streams=1, seed=0)
    carried = CarriedState(model, 1)
    losses = read_epoch(carried, plan, 0)
    circle = torch.from_numpy(np.roll(TOKENS, -plan.cut(0)).astype(np.int64))[None]
    with torch.no_grad():
        before = model(torch.cat([torch.tensor([[1]]), circle[:, :9]], 1)).cache
    alone = model(circle[:, 9:19], cache=before, shift_labels=circle[:, 10:20], num_items_in_batch=1).loss
    torch.testing.assert_close(losses[1], alone)
    torch.testing.assert_close(gradients(model, losses[1]), gradients(model, alone))


def test_figures_are_bits_and_characters() -> None:
    carried = CarriedState(tiny_lm(), 2, characters_per_token=3.0)
    batch = {"input_ids": torch.tensor([[1, 4], [1, 5]]), "labels": torch.tensor([[4, 6], [5, -100]])}
    loss, figures = carried(**batch, streams=torch.tensor([0, 1]), begins=torch.tensor([True, True]))
    torch.testing.assert_close(figures, torch.tensor([[loss.item() * 3 / math.log(2), 9.0]], dtype=torch.float64))


def test_what_is_carried_is_restored_and_a_failed_update_changes_nothing() -> None:
    model = tiny_lm()
    plan = ContiguousPlan(ContiguousText(TOKENS, 4, start=1, pad=0), streams=3, seed=0)
    carried, other = CarriedState(model, 3), CarriedState(model, 3, main=False)
    first, second = (next(plan.updates(0, index)) for index in (0, 1))
    piece = ContiguousLoader(plan).load(first)[0].inputs
    carried(**piece)
    saved = {name: tensor.clone() for name, tensor in carried.carried().items()}
    assert all(tensor.abs().sum() for tensor in saved.values())
    other.restore(saved)
    assert not any(tensor.any() for tensor in other.carried().values()), "the main process answers for them"
    piece = ContiguousLoader(plan).load(second)[0].inputs
    expected = carried(**piece)[0]
    torch.testing.assert_close(other(**piece)[0], expected)
    torch.testing.assert_close(other.carried(), carried.carried())
    before = {name: tensor.clone() for name, tensor in carried.carried().items()}
    with torch.no_grad():
        model.lm_head.bias.fill_(torch.nan)
    loss, figures = carried(**piece)
    assert not loss.isfinite() and figures.isfinite().all()
    torch.testing.assert_close(carried.carried(), before)


def test_in_mixed_precision_states_keep_the_type_of_the_weights() -> None:
    model = tiny_lm(torch.float32, **GRAVES).train()
    plan = ContiguousPlan(ContiguousText(TOKENS, 4, start=1, pad=0), streams=3, seed=0)
    exact, carried = CarriedState(model, 3), CarriedState(model, 3)
    for index in (0, 1):
        piece = ContiguousLoader(plan).load(next(plan.updates(0, index)))[0].inputs
        with torch.autocast("cpu", torch.bfloat16):
            loss = carried(**piece)[0]
        torch.testing.assert_close(loss, exact(**piece)[0], rtol=0.05, atol=0.05)
    loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    assert {tensor.dtype for tensor in carried.carried().values()} == {torch.float32, torch.int64}


def test_processes_carry_their_own_streams() -> None:
    """The sum over the processes is what one process carries; a filler carries nothing on."""
    model = tiny_lm()
    plan = ContiguousPlan(ContiguousText(TOKENS, 4, start=1, pad=0), streams=3, seed=0)
    whole, parts = CarriedState(model, 3), [CarriedState(model, 3, main=not rank) for rank in range(4)]
    for index in (0, 1):  # behind the last piece a state means nothing
        update = next(plan.updates(0, index))
        whole(**ContiguousLoader(plan).load(update)[0].inputs)
        for rank, part in enumerate(parts):
            for batch in ContiguousLoader(plan, rank=rank, processes=4).load(update):
                part(**batch.inputs)
        for name, tensor in whole.carried().items():
            torch.testing.assert_close(sum(part.carried()[name] for part in parts), tensor)
        saved = {name: tensor.clone() for name, tensor in whole.carried().items()}
        for part in parts:  # as after a stop
            part.restore(saved)
        torch.testing.assert_close(sum(part.carried()["0"] for part in parts), saved["0"])

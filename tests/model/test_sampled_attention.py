"""Sampled attention (Xu 2015, section 4.1): draws, the gradient by enumeration, baseline and entropy; decoding."""

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from hf_rnn_seq2seq import ConfigError, RnnSeq2SeqConfig, RnnSeq2SeqForConditionalGeneration
from hf_rnn_seq2seq.model.attention import DotAttention
from hf_rnn_seq2seq.model.config_checks import REGISTERED
from hf_rnn_seq2seq.model.decoder_state import RnnSeq2SeqCache
from hf_rnn_seq2seq.model.hard_attention import SampledAttention
from tests.helpers.models import START, batch, tiny_config, tiny_model
from tests.model.test_model import gradients
from tests.model.test_search import inputs, wide_model

Model = RnnSeq2SeqForConditionalGeneration
SAMPLED = {"attention_alignment": "sampled"}
KINDS: dict[str, dict[str, Any]] = {
    "before the cell, gate beta": {
        "attention_type": "additive",
        "attention_order": "before_cell",
        "context_gate": "scalar",
        "cell_type": "gru",
    },
    "conditional GRU": {"attention_order": "before_cell", "decoder_transition_depth": 2, "cell_type": "gru"},
    "input feeding": {"input_feeding": True},
    "at once": {"input_feeding": False, "label_smoothing": 0.2},
    "sparse": {"input_feeding": False, "attention_normalization": "entmax"},
}
# Three regions, and two words with the end.
PAIR = {"input_ids": torch.tensor([[5, 7, 3]]), "labels": torch.tensor([[6, 2]])}


def small(**options: Any) -> Model:
    return tiny_model(**SAMPLED, bridge="zero", deviation=0.9, **options)


def script(model: Model, choices: tuple[int, ...]) -> RemovableHandle:
    """Position t of the target reads source position `choices[t]`; without choices the weights."""
    time = itertools.count()

    def chosen(_: SampledAttention, given: tuple[Tensor, ...], __: Tensor) -> Tensor:
        weights = given[0]
        if not choices:
            return weights
        read = torch.zeros_like(weights)
        for target in range(weights.shape[2]):
            read[:, :, target, choices[next(time)]] = 1
        return read

    return model.model.decoder.sampler.register_forward_hook(chosen)


def scripted(model: Model, choices: tuple[int, ...], **options: Any) -> Any:
    handle = script(model, choices)
    found = model(**PAIR, **options)
    handle.remove()
    return found


def one_at_a_time(model: Model, choices: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Logits and weights of soft attention that may see one position only, which is another one at each word."""
    cache, logits, weights = RnnSeq2SeqCache(), [], []
    for word, choice in zip([START, 6], choices, strict=True):
        given: dict[str, Any] = {"decoder_input_ids": torch.tensor([[word]]), "cache": cache, "use_cache": True}
        if not cache.is_initialized:
            source = model.model.encode(PAIR["input_ids"])
            model.model.start_cache(cache, source)
        memory, state, length = cache.memory, cache.state, cache.length
        weights.append(model(**given, output_attentions=True).cross_attentions[0])
        cache.state, cache.length = state, length
        alone = torch.zeros(1, 3, dtype=torch.bool)
        alone[0, choice] = True
        cache.memory = memory._replace(mask=alone)
        logits.append(model(**given).logits)
        cache.memory = memory
    return torch.cat(logits, 1), torch.cat(weights, 2)


@pytest.mark.parametrize("kind", KINDS)
def test_the_context_is_one_state(kind: str) -> None:
    """z_t is the state of the drawn position, and the weights are those of soft attention in the same state."""
    model = small(**KINDS[kind])
    soft = tiny_model(bridge="zero", **KINDS[kind])
    soft.load_state_dict({name: tensor for name, tensor in model.state_dict().items() if "sampler" not in name})
    for choices in [(0, 2), (1, 1), (2, 0)]:
        logits, weights = one_at_a_time(soft, choices)
        found = scripted(model, choices, output_attentions=True)
        torch.testing.assert_close(found.logits, logits)
        torch.testing.assert_close(found.cross_attentions[0], weights)


def bound(model: Model) -> Tensor:
    """L_s by its equation: the sum over the nine pairs of positions of p(s) log p(y | s), in this mode of the model."""
    total = torch.zeros((), dtype=torch.float64)
    smoothing = model.config.label_smoothing
    for choices in itertools.product(range(3), repeat=2):
        found = scripted(model, choices, output_attentions=True)
        weights, logs = found.cross_attentions[0][0, 0], found.logits[0].log_softmax(-1)
        chance = weights[0, choices[0]] * weights[1, choices[1]]
        label = logs[0, 6] + logs[1, 2]
        total = total + chance * ((1 - smoothing) * label + smoothing * logs.mean(-1).sum())
    return total


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("baseline", [0.0, -3.7])
def test_the_expected_gradient_is_that_of_the_bound(kind: str, baseline: float) -> None:
    """The gradients of all nine draws, times their probabilities; the baseline changes each, and not the sum."""
    model = small(**KINDS[kind])
    expected = bound(model)
    known = gradients(model, -expected / 2)
    model.train()
    value, found = torch.zeros((), dtype=torch.float64), {name: torch.zeros_like(one) for name, one in known.items()}
    alone: dict[str, Tensor] = {}
    for choices in itertools.product(range(3), repeat=2):
        model.model.decoder.sampler.baseline.fill_(baseline)
        run = scripted(model, choices, output_attentions=True, skip_logits=True)
        weights = run.cross_attentions[0].detach()[0, 0]
        chance = weights[0, choices[0]] * weights[1, choices[1]]
        value += chance * run.loss.detach()
        alone = gradients(model, run.loss)
        found = {name: found[name] + chance * one for name, one in alone.items()}
    torch.testing.assert_close(value, -expected / 2)
    torch.testing.assert_close(found, known)
    key = "model.decoder.attention.key.weight"
    assert not torch.allclose(alone[key], known[key])


def test_heads_draw_apart() -> None:
    """Of two heads each reads its own position: 81 draws of two words."""
    heads = {"attention_type": "multi_head", "num_attention_heads": 2, "input_feeding": False}
    model = small(**heads)
    value, found = 0.0, 0.0
    for positions in itertools.product(range(3), repeat=4):
        read = torch.nn.functional.one_hot(torch.tensor(positions), 3).view(1, 2, 2, 3).double()
        handle = model.model.decoder.sampler.register_forward_hook(lambda *_, read=read: read)
        run = model.eval()(**PAIR, output_attentions=True)
        chance = (run.cross_attentions[0] * read).sum(-1).prod()
        value = value - chance * run.loss
        model.model.decoder.sampler.baseline.zero_()
        one = model.train()(**PAIR).loss
        weight = model.model.decoder.attention.query.weight
        found = found + chance.detach() * torch.autograd.grad(one, weight)[0]
        handle.remove()
    (known,) = torch.autograd.grad(-value, weight)
    torch.testing.assert_close(found, known)


@pytest.mark.parametrize("kind", KINDS)
def test_a_sentence_that_reads_the_average(kind: str) -> None:
    """Loss and gradients are those of soft attention, whatever the baseline: REINFORCE adds nothing."""
    model, soft = small(**KINDS[kind]).train(), tiny_model(bridge="zero", **KINDS[kind])
    soft.load_state_dict({name: tensor for name, tensor in model.state_dict().items() if "sampler" not in name})
    model.model.decoder.sampler.baseline.fill_(-2.5)
    found, expected = scripted(model, ()).loss, soft.train()(**PAIR).loss
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(gradients(model, found), gradients(soft, expected), rtol=1e-5, atol=1e-7)


def test_soft_attention_is_the_expectation_where_the_readout_is_linear() -> None:
    options = {"input_feeding": False, "readout": "linear", "readout_size": 4, **SAMPLED}
    model = tiny_model(**options, bridge="zero")
    model.config.attention_alignment = "soft"
    soft = scripted(model, (), output_attentions=True)
    weights, expected = soft.cross_attentions[0][0, 0], torch.zeros(1, 2, 11, dtype=torch.float64)
    for position in range(3):
        logits = scripted(model, (position, position)).logits
        expected = expected + weights[:, position, None] * logits
    torch.testing.assert_close(soft.logits, expected)


# ------------------------------------------------------------------------------------------------ the draws


def test_draws_follow_the_weights_for_half_of_the_sentences() -> None:
    torch.manual_seed(0)
    sampler = SampledAttention(tiny_config(**SAMPLED)).train()
    weights = torch.tensor([[0.1, 0.6, 0.3, 0.0], [0.0, 0.0, 1.0, 0.0]]).repeat(10000, 1).view(20000, 1, 1, 4)
    rows = sampler.rows(weights)
    assert abs(rows.double().mean().item() - 0.5) < 0.02
    read = sampler(weights, rows)
    assert torch.equal(read[~rows.flatten()], weights[~rows.flatten()])
    drawn = read[rows.flatten()].flatten(1)
    assert torch.equal(drawn.sum(1), torch.ones(len(drawn))) and drawn.amax() == 1
    of_each = rows.flatten()[::2], rows.flatten()[1::2]
    first, second = read[::2][of_each[0]].flatten(1), read[1::2][of_each[1]].flatten(1)
    torch.testing.assert_close(first.mean(0), torch.tensor([0.1, 0.6, 0.3, 0.0]), rtol=0, atol=0.02)
    assert torch.equal(second.mean(0), torch.tensor([0.0, 0.0, 1.0, 0.0]))
    assert sampler.eval().rows(weights) is None
    most = sampler(torch.tensor([[[[0.2, 0.5, 0.3], [0.0, 0.0, 0.0]]]]), None)
    assert most.tolist() == [[[[0, 1, 0], [0, 0, 0]]]]


def test_the_loss_on_hand_numbers() -> None:
    """Two words of a sentence; a third position without a label, whose draw answers for nothing."""
    config = tiny_config(**SAMPLED, sampled_attention_reward=0.5, sampled_attention_entropy=0.2)
    sampler = SampledAttention(config).train()
    sampler.baseline.fill_(-1.0)
    weights = torch.tensor([[0.5, 0.5, 0.0], [0.2, 0.8, 0.0], [0.3, 0.3, 0.4]]).double().view(1, 1, 3, 3)
    weights.requires_grad_()
    read = torch.tensor([[0, 1, 0], [1, 0, 0], [0, 0, 1]]).double().view(1, 1, 3, 3)
    losses = torch.tensor([[2.0, 1.5, 7.0]]).double()
    loss = sampler.loss(weights, read, losses, torch.tensor([[True, True, False]]))
    # -lambda_e H; the words have log-probabilities -2 and -1.5, which are 1 and 0.5 below the baseline.
    entropies = -(2 * 0.5 * math.log(0.5)) - (0.2 * math.log(0.2) + 0.8 * math.log(0.8))
    assert loss.item() == pytest.approx(-0.2 * entropies)
    (gradient,) = torch.autograd.grad(loss, weights)
    expected = 0.2 * torch.tensor([[0.5, 0.5], [0.2, 0.8]]).log().add(1).double()
    expected[0, 1] += 0.5 * 1.5 / 0.5
    expected[1, 0] += 0.5 * 0.5 / 0.2
    torch.testing.assert_close(gradient[0, 0, :2, :2], expected, rtol=1e-6, atol=1e-6)
    assert not gradient[0, 0, 2].any()
    assert sampler.baseline.item() == pytest.approx(0.9 * -1.0 + 0.1 * -1.75)


def test_the_baseline_is_not_spoiled() -> None:
    sampler = SampledAttention(tiny_config(**SAMPLED)).train()
    sampler.baseline.fill_(-1.0)
    weights, read = torch.full((1, 1, 2, 2), 0.5), torch.eye(2).view(1, 1, 2, 2)
    for losses, real in [((1.0, 1.0), False), ((math.inf, 1.0), True), ((math.nan, 1.0), True)]:
        sampler.loss(weights, read, torch.tensor([losses]), torch.full((1, 2), real))
        assert sampler.baseline.item() == -1.0


# ------------------------------------------------------------------------------------------------ the model


def test_figures_and_evaluation() -> None:
    """The loss of training is that of the words plus the entropy's; evaluation has the words alone and no baseline."""
    model = tiny_model(**SAMPLED, sampled_attention_entropy=0.5).train()
    assert model.training_figures == ("ml_loss", "attention_entropy")
    torch.manual_seed(0)
    found = model(**batch(), output_figures=True)
    (nats, words), (entropy, _) = found.figures.double()
    assert found.loss.item() == pytest.approx(((nats - 0.5 * entropy) / words).item(), rel=1e-6)
    baseline = model.model.decoder.sampler.baseline
    assert baseline.item() == pytest.approx(-0.1 * (nats / words).item(), rel=1e-5)
    model.eval()
    assert model(**batch()).loss.item() == model(**batch()).loss.item()
    assert baseline.item() == pytest.approx(-0.1 * (nats / words).item(), rel=1e-5)


def test_chunks_of_logits() -> None:
    """A budget of one position gives the same loss, gradients and baseline."""
    losses, found, moved = [], [], []
    for budget in (512, 1):
        model = tiny_model(**SAMPLED, dropout=0.2, logits_memory_mb=budget).train()
        model.config.vocab_size *= 2**18 if budget == 1 else 1  # so that a MiB is less than one position
        torch.manual_seed(0)
        losses.append(model(**batch(), skip_logits=True).loss)
        found.append(gradients(model, losses[-1]))
        moved.append(model.model.decoder.sampler.baseline)
    torch.testing.assert_close(losses[0], losses[1])
    torch.testing.assert_close(found[0], found[1])
    torch.testing.assert_close(moved[0], moved[1])


@pytest.mark.parametrize("kind", KINDS)
def test_sixteen_bits_dropout_and_a_row_without_a_source(kind: str) -> None:
    model = tiny_model(dtype=torch.float32, dropout=0.3, **SAMPLED, **KINDS[kind]).train()
    given = batch()
    given["attention_mask"][2] = 0
    for autocast in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            loss = model(**given).loss
        loss.backward()
        assert loss.isfinite()
        assert all(one.grad.isfinite().all() for one in model.parameters() if one.grad is not None)


@pytest.mark.parametrize("kind", KINDS)
def test_search_equals_generate_and_scores(kind: str) -> None:
    """Each beam reads its most likely position; a model that was loaded decodes the same."""
    model = wide_model(**SAMPLED, **KINDS[kind])
    given = inputs(model)
    for options in ({}, {"num_beams": 3, "num_return_sequences": 2}):
        expected = model.generate(**given, max_new_tokens=8, **options)
        slow = model.generate(**given, max_new_tokens=8, use_cache=False, **options)
        assert torch.equal(model.search(**given, max_new_tokens=8, **options), expected)
        assert torch.equal(slow, expected)
    found = model.search(**given, num_beams=3, max_new_tokens=6, return_alignments=True)
    scored = model(**given, decoder_input_ids=found.sequences[:, :-1], output_attentions=True)
    logs = scored.logits.log_softmax(-1).gather(2, found.sequences[:, 1:, None])[..., 0]
    real = torch.arange(logs.shape[1]) < found.lengths[:, None]
    torch.testing.assert_close((logs * real).sum(1), found.log_probabilities)
    torch.testing.assert_close(found.alignments, scored.cross_attentions[0][:, 0] * real.unsqueeze(2))


def test_heads_in_beams() -> None:
    model = wide_model(**SAMPLED, attention_type="multi_head", num_attention_heads=2)
    given = inputs(model)
    expected = model.generate(**given, max_new_tokens=8, num_beams=3)
    assert torch.equal(model.search(**given, max_new_tokens=8, num_beams=3), expected)


def test_saving(tmp_path: Path) -> None:
    """The baseline is in the checkpoint; a model with soft attention can start one."""
    model = tiny_model(**SAMPLED)
    model.train()(**batch())
    model.eval().save_pretrained(tmp_path / "sampled")
    loaded = Model.from_pretrained(tmp_path / "sampled", dtype=torch.float64)
    torch.testing.assert_close(loaded(**batch()).logits, model(**batch()).logits)
    assert loaded.model.decoder.sampler.baseline.item() != 0
    torch.testing.assert_close(loaded.model.decoder.sampler.baseline, model.model.decoder.sampler.baseline)
    soft = tiny_model()
    soft.save_pretrained(tmp_path / "soft")
    started = Model.from_pretrained(tmp_path / "soft", **SAMPLED, dtype=torch.float64)
    assert started.config.samples_attention and started.model.decoder.sampler.baseline.item() == 0
    torch.testing.assert_close(started.lm_head.weight, soft.lm_head.weight)


def test_a_path_that_has_the_draw() -> None:
    paths = {"input feeding": "loop: attention_alignment='sampled'", "at once": "at once"}
    for kind, path in paths.items():
        assert tiny_model(**SAMPLED, **KINDS[kind]).get_decoder().recurrence_path == path


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"copy_mechanism": True, "source_vocab_size": 8000}, r"copy_mechanism=True: not with .*'sampled'"),
    ({"coverage": "sum", "attention_type": "additive"}, r"coverage='sum': not with .*'sampled'"),
    ({"attention_window": "local_p"}, r"attention_window='local_p': not with .*'sampled'.*'local_m'"),
    (
        {"context": "initial_state", "input_feeding": False},
        r"attention_alignment='sampled': only context='attention'",
    ),
    ({"sampled_attention_reward": -1.0}, r"sampled_attention_reward=-1.0: must be 0 or more"),
    ({"attention_alignment": "soft", "sampled_attention_entropy": 0.1}, r"entropy=0.1: only attention_alignment"),
    ({"attention_alignment": "hard", "sampled_attention_reward": 0.5}, r"reward=0.5: only attention_alignment"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED, ids=[str(options) for options, _ in REFUSED])
def test_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RnnSeq2SeqConfig(**{**SAMPLED, **options})


def test_an_attention_that_reads_in_a_way_of_its_own_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Reading(DotAttention):
        def forward(self, *given: Any) -> Any:
            return super().forward(*given)

    class Scoring(DotAttention):
        def score(self, *given: Any) -> Tensor:
            return 2 * super().score(*given)

    monkeypatch.setitem(REGISTERED, "reading", Reading)
    monkeypatch.setitem(REGISTERED, "scoring", Scoring)
    with pytest.raises(ConfigError, match=r"attention_type='reading': .* leave out forward\(\) of Reading"):
        tiny_model(**SAMPLED, attention_type="reading")
    assert tiny_model(**SAMPLED, attention_type="scoring")(**batch()).loss.isfinite()


@pytest.mark.parametrize("window", ["local_m", "global"])
def test_a_window_is_not_left(window: str) -> None:
    """No draw falls outside of the weights."""
    model = tiny_model(**SAMPLED, attention_window=window, attention_window_size=1, input_feeding=False).train()
    seen: list[tuple[Tensor, Tensor]] = []
    record: Callable[..., None] = lambda _, given, read: seen.append((given[0], read))  # noqa: E731
    model.model.decoder.sampler.register_forward_hook(record)
    for seed in range(5):
        torch.manual_seed(seed)
        model(**batch())
    assert all(not (read[weights == 0]).any() for weights, read in seen)

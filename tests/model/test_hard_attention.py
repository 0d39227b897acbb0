"""Hard attention: the sums over source positions equal an enumeration of all alignments, in every way of running."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from hf_rnn_seq2seq import ConfigError, RnnSeq2SeqConfig, RnnSeq2SeqForConditionalGeneration
from hf_rnn_seq2seq.model.attention import DotAttention
from hf_rnn_seq2seq.model.config_checks import REGISTERED
from hf_rnn_seq2seq.model.decoder_state import RnnSeq2SeqCache
from hf_rnn_seq2seq.model.fused_step import build_step
from hf_rnn_seq2seq.model.hard_attention import JUMPS, Marginal, marginal
from tests.helpers.models import PAD, START, batch, decoder_inputs, pad, tiny_model
from tests.model.test_search import inputs, wide_model

Model = RnnSeq2SeqForConditionalGeneration
HARD = {"attention_alignment": "hard"}
MONOTONIC = {"attention_alignment": "monotonic"}
FIRST_ORDER = MONOTONIC | {"alignment_order": 1}
KINDS: dict[str, dict[str, Any]] = {"hard": HARD, "monotonic": MONOTONIC, "first order": FIRST_ORDER}
# The parts around the alignment.
AROUND: dict[str, dict[str, Any]] = {
    "general": {},
    "additive, maxout": {"attention_type": "additive", "readout": "maxout", "readout_size": 3},
    "bottom of two, linear": {
        "decoder_layers": 2,
        "attention_layer": "bottom",
        "readout": "linear",
        "readout_size": 3,
        "output_bias": False,
        "cell_type": "gru",
    },
    "skips": {"decoder_layers": 2, "skip_connections": True},
}
# Rows of 3 and 2 source words and 3 and 2 target words.
PAIRS = {"sources": [[3, 4, 2], [4, 2]], "targets": [[3, 4, 2], [4, 2]]}
SMALL = {"vocab_size": 5, "source_vocab_size": 6}


def small(**options: Any) -> Model:
    return tiny_model(**SMALL, **options)


def pairs(*, left: bool = False) -> dict[str, Tensor]:
    return batch(**PAIRS, left=left)


def emissions(model: Model, states: Tensor, source: Tensor, words: Tensor) -> Tensor:
    """p(w | s_t, h_j) from the whole readout, (target, source, vocab)."""
    decoder = model.model.decoder
    size = (len(states), len(source), -1)
    parts = (states.unsqueeze(1).expand(size), source.unsqueeze(0).expand(size), words.unsqueeze(1).expand(size))
    return model.lm_head(decoder.readout(*parts)).softmax(-1)


def chance(model: Model, scores: Tensor, state: Tensor, source: Tensor, last: int, here: int) -> Tensor:
    """p(a_t = here | a_t-1 = last), from the scores (source,) of this target position."""
    if model.config.attention_alignment == "hard":
        return scores.softmax(0)[here]
    if here < last:
        return scores.new_zeros(())
    allowed = scores[last:]
    if model.config.alignment_order:
        jumps = model.model.decoder.jumps
        lengths = jumps.state(state) + jumps.source(source[last])
        allowed = allowed + torch.stack([lengths[min(step, JUMPS - 1)] for step in range(len(allowed))])
    return allowed.softmax(0)[here - last]


def enumerated(model: Model, row: int, left: bool = False) -> tuple[Tensor, Tensor]:
    """p(w | y_<t), (target, vocab), and p(a_t = j | y_<t), (target, source), of a row: sums over all alignments."""
    sources, targets = PAIRS["sources"][row], PAIRS["targets"][row]
    read = torch.tensor([[START, *targets[:-1]]])
    base = model.model(torch.tensor([sources]), decoder_input_ids=read, output_hidden_states=True)
    decoder, source = model.model.decoder, base.encoder_last_hidden_state[0]
    query = base.decoder_hidden_states[decoder.attended][0]
    states, words = base.decoder_hidden_states[-1][0], base.decoder_hidden_states[0][0]
    keys = decoder.attention.project_keys(source.unsqueeze(0))
    scores = decoder.attention.score(query.unsqueeze(0), keys, None)[0, 0]
    layers = base.decoder_hidden_states[1:] if model.config.skip_connections else base.decoder_hidden_states[-1:]
    produced = emissions(model, torch.cat([layer[0] for layer in layers], -1), source, words)
    shares, weights = [], []
    for time in range(len(targets)):
        share, weight, before = 0.0, scores.new_zeros(len(source)), 0.0
        for alignment in itertools.product(range(len(source)), repeat=time + 1):
            probability, last = torch.ones((), dtype=scores.dtype), 0
            for t, here in enumerate(alignment):
                probability = probability * chance(model, scores[t], states[t], source, last, here)
                if t < time:
                    probability = probability * produced[t, here, targets[t]]
                last = here
            share = share + probability * produced[time, last]
            weight = weight + probability * torch.nn.functional.one_hot(torch.tensor(last), len(source))
            before = before + probability  # p(y_<t)
        shares.append(share / before)
        weights.append(weight / before)
    return torch.stack(shares), torch.stack(weights)


def nats(model: Model, smoothing: float = 0.0) -> Tensor:
    """The smoothed cross entropy of the enumerated distributions, summed."""
    total = torch.zeros((), dtype=torch.float64)
    for row, targets in enumerate(PAIRS["targets"]):
        logs = enumerated(model, row)[0].log()
        total = total - (1 - smoothing) * sum(logs[t, word] for t, word in enumerate(targets))
        total = total - smoothing * logs.mean(-1).sum()
    return total


def gradients(model: Model, loss: Tensor) -> dict[str, Tensor]:
    named = dict(model.named_parameters())
    found = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    zeros = map(torch.zeros_like, named.values())
    return {name: zero if one is None else one for name, zero, one in zip(named, zeros, found, strict=True)}


@pytest.mark.parametrize("around", AROUND)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("left", [False, True])
def test_equals_the_enumeration(kind: str, around: str, left: bool) -> None:
    """Log-probabilities, alignment weights without any for padding, and the loss with its gradients."""
    model = small(**KINDS[kind], **AROUND[around])
    found = model(**pairs(left=left), output_attentions=True)
    for row, sources in enumerate(PAIRS["sources"]):
        shares, weights = enumerated(model, row)
        length = len(shares)
        torch.testing.assert_close(found.logits[row, :length], shares.log())
        place = slice(3 - len(sources), 3) if left else slice(len(sources))
        torch.testing.assert_close(found.cross_attentions[0][row, 0, :length, place], weights)
        padded = torch.ones(3, dtype=torch.bool)
        padded[place] = False
        assert not found.cross_attentions[0][row, 0][:, padded].any()
    torch.testing.assert_close(found.logits.exp().sum(-1), torch.ones(2, 3, dtype=torch.float64))
    expected = nats(model)
    torch.testing.assert_close(found.loss, expected / 5)
    known = gradients(model, expected)
    for options in ({}, {"skip_logits": True}, {"skip_logits": True, "use_cache": False}):
        loss = model(**pairs(left=left), num_items_in_batch=1, **options).loss
        torch.testing.assert_close(loss, expected)
        torch.testing.assert_close(gradients(model, loss), known)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("skip", [False, True])
def test_label_smoothing(kind: str, skip: bool) -> None:
    model = small(**KINDS[kind], label_smoothing=0.2).train()
    expected = nats(model, 0.2)
    loss = model(**pairs(), num_items_in_batch=1, skip_logits=skip).loss
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradients(model, loss), gradients(model, expected))


@pytest.mark.thinned(2)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("smoothing", [None, 0.0, 0.2])
@pytest.mark.parametrize(("budget", "calls"), [(3 * (5 + 4 + 3) * 8 * 2 * 2, 2), (1, 6)])
def test_chunks(kind: str, smoothing: float | None, budget: int, calls: int) -> None:
    """Chunks of two target positions, and of one row and one position: values and gradients as at once."""
    model = small(**KINDS[kind])
    given = pairs()
    options: dict[str, Any] = {} if smoothing is None else {"labels": given["labels"], "smoothing": smoothing}
    options["dropout"] = torch.rand(2, 3, 4, dtype=torch.float64)
    weighting = torch.rand(2, 3, 1, dtype=torch.float64)
    sizes: list[int] = []

    def run(budget: int) -> tuple[Marginal, dict[str, Tensor]]:
        outputs = model.model(
            given["input_ids"],
            given["attention_mask"],
            decoder_input_ids=pad(decoder_inputs(PAIRS["targets"]), PAD),
            use_cache=smoothing is None,
        )
        sizes.clear()
        found = marginal(outputs.alignment, model.model.decoder.readout, model.lm_head, budget, **options)
        total = (weighting * found.scores.view(2, 3, -1)).sum() + found.weights[..., 0].sum()
        return found, gradients(model, total)

    model.lm_head.register_forward_hook(
        lambda _, read, __: sizes.append(read[0].shape[:-1].numel()) if read[0].dim() == 4 else None
    )
    whole, known = run(2**20)
    assert sizes == [18]
    chunked, found = run(budget)
    # Once for the value, once for the gradient.
    assert len(sizes) == 2 * calls and max(sizes) == -(-18 // calls) + 3 * (calls == 2)
    assert (whole.after is None) == (smoothing is not None or kind == "hard")
    for one, other in zip(whole, chunked, strict=True):
        torch.testing.assert_close(other, one)
    torch.testing.assert_close(found, known)


# ------------------------------------------------------------------------------------------------ decoding


def forced(model: Model, words: Tensor, **options: Any) -> Any:
    given = batch()
    given.pop("labels")
    return model(**given, decoder_input_ids=words, output_attentions=True, **options)


@pytest.mark.thinned(2)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("parts", [[1, 1, 1, 1, 1], [2, 3], [1, 4]])
def test_word_by_word(kind: str, parts: list[int]) -> None:
    """Words that are read in parts, after rows were reordered, give the result of one pass."""
    model = tiny_model(**KINDS[kind])
    words = pad(decoder_inputs(), PAD)
    whole = forced(model, words, use_cache=False)
    cache, found, weights = RnnSeq2SeqCache(), [], []
    order = torch.tensor([0, 1, 2])
    for part in words.split(parts, 1):
        given = batch()
        given.pop("labels")
        out = model(
            **{name: tensor[order] for name, tensor in given.items()},
            decoder_input_ids=part[order],
            cache=cache,
            output_attentions=True,
        )
        back = order.argsort()
        found.append(out.logits[back])
        weights.append(out.cross_attentions[0][back])
        cache.reorder_cache(torch.tensor([2, 0, 1]))
        order = order[torch.tensor([2, 0, 1])]
    torch.testing.assert_close(torch.cat(found, 1), whole.logits)
    torch.testing.assert_close(torch.cat(weights, 2), whole.cross_attentions[0])


@pytest.mark.thinned(2)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("parts", [[6], [1, 5], [3, 3], [1] * 6])
def test_padding_in_the_target_changes_nothing(kind: str, parts: list[int]) -> None:
    """Padding before, between and after the words."""
    model = tiny_model(**KINDS[kind])
    whole = forced(model, torch.tensor([[START, 6, 4, 3]] * 3)).logits
    real = torch.tensor([[0, 1, 1, 0, 1, 1], [1, 0, 0, 1, 1, 1], [1, 1, 1, 1, 0, 0]]).bool()
    words = torch.full((3, 6), PAD).masked_scatter(real, torch.tensor([START, 6, 4, 3] * 3))
    cache, found = RnnSeq2SeqCache(), []
    given = batch()
    for start, end in itertools.pairwise([0, *itertools.accumulate(parts)]):
        out = model(
            given["input_ids"],
            given["attention_mask"],
            decoder_input_ids=words[:, start:end],
            decoder_attention_mask=real[:, :end].long(),
            cache=cache,
        )
        found.append(out.logits)
    torch.testing.assert_close(torch.cat(found, 1)[real], whole.flatten(0, 1))


@pytest.mark.parametrize("kind", KINDS)
def test_crop_takes_tokens_back(kind: str) -> None:
    model = tiny_model(**KINDS[kind])
    words = torch.tensor([[START, 6, 4, 3, 5]] * 3)
    cache = RnnSeq2SeqCache()
    cache.activate_past_recording()
    forced(model, words[:, :2], cache=cache)
    forced(model, torch.tensor([[9, 9, 9]] * 3), cache=cache)
    cache.crop(-4)
    found = forced(model, words[:, 1:], cache=cache).logits
    torch.testing.assert_close(found, forced(model, words).logits[:, 1:])


@pytest.mark.parametrize("kind", KINDS)
def test_search_equals_generate(kind: str) -> None:
    """Greedy and beam search, with and without the cache, and an ensemble of one model with itself."""
    model = wide_model(**KINDS[kind])
    assert model.search_path.startswith("general: attention_alignment=")
    given = inputs(model)
    calls: list[dict[str, Any]] = [{}, {"num_beams": 3, "num_return_sequences": 2}]
    for options in calls:
        expected = model.generate(**given, max_new_tokens=8, **options)
        slow = model.generate(**given, max_new_tokens=8, use_cache=False, **options)
        assert torch.equal(model.search(**given, max_new_tokens=8, **options), expected)
        assert torch.equal(slow, expected)
        both = model.search(**given, max_new_tokens=8, ensemble=[model], **options)
        assert torch.equal(both, expected)
        expected = model.double().generate(**given, max_new_tokens=8, **options)
        assert torch.equal(model.search(**given, max_new_tokens=8, **options), expected)
        model.float()


@pytest.mark.parametrize("kind", KINDS)
def test_search_scores_are_those_of_the_model(kind: str) -> None:
    model = wide_model(**KINDS[kind])
    given = inputs(model)
    found = model.search(**given, num_beams=3, max_new_tokens=6, return_alignments=True)
    scored = model(**given, decoder_input_ids=found.sequences[:, :-1], output_attentions=True)
    logs = scored.logits.gather(2, found.sequences[:, 1:, None])[..., 0]
    real = torch.arange(logs.shape[1]) < found.lengths[:, None]
    torch.testing.assert_close((logs * real).sum(1), found.log_probabilities)
    torch.testing.assert_close(found.alignments, scored.cross_attentions[0][:, 0] * real.unsqueeze(2))
    assert build_step(model).carries


def test_assisted_decoding_equals_greedy() -> None:
    """Several words are read in one pass, and rejected ones are removed from the cache."""
    model, assistant = wide_model(**MONOTONIC), wide_model(**MONOTONIC, seed=1)
    for row in range(3):
        given = {name: tensor[row : row + 1] for name, tensor in inputs(model).items()}
        expected = model.generate(**given, max_new_tokens=8)
        assert torch.equal(model.generate(**given, max_new_tokens=8, assistant_model=assistant), expected)


def test_saving(tmp_path: Any) -> None:
    model = tiny_model(**FIRST_ORDER)
    model.save_pretrained(tmp_path)
    loaded = Model.from_pretrained(tmp_path, dtype=torch.float64)
    torch.testing.assert_close(loaded(**batch()).logits, model(**batch()).logits)


# ------------------------------------------------------------------------------------------------ around it


@pytest.mark.parametrize("kind", KINDS)
def test_sixteen_bits_and_dropout(kind: str) -> None:
    model = tiny_model(dtype=torch.float32, dropout=0.3, **KINDS[kind]).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = model(**batch())
        alone = model(**batch(), skip_logits=True)
    torch.testing.assert_close(found.logits.exp().sum(-1), torch.ones(3, 5))
    (found.loss + alone.loss).backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    torch.manual_seed(0)
    one = model(**batch()).loss
    torch.manual_seed(0)
    torch.testing.assert_close(model(**batch(), skip_logits=True).loss, one)


def test_dropout_is_that_of_the_readout() -> None:
    """One mask for all source positions of a target position; drawn in training only."""
    model = small(**HARD, dropout=0.5)
    given = pairs()
    words = pad(decoder_inputs(PAIRS["targets"]), PAD)
    parts = model.model(given["input_ids"], given["attention_mask"], decoder_input_ids=words).alignment
    dropped = torch.tensor([0.0, 2.0]).double()[torch.randint(2, (2, 3, 4))]
    found = marginal(parts, model.model.decoder.readout, model.lm_head, 2**20, dropout=dropped).scores
    readout = torch.tanh(parts.target.unsqueeze(2) + parts.source.unsqueeze(1)) * dropped.unsqueeze(2)
    shares = (parts.weights.exp().unsqueeze(-1) * model.lm_head(readout).softmax(-1)).sum(2)
    torch.testing.assert_close(found, shares.log())
    drawn: list[Tensor] = []
    model.lm_head.register_forward_pre_hook(lambda _, read: drawn.append(read[0] == 0))
    model(**given)
    model.train()(**given)
    assert not drawn[0].any() and drawn[1].any()
    assert (drawn[1] == drawn[1][:, :, :1]).all()


@pytest.mark.parametrize("kind", KINDS)
def test_scheduled_sampling_reads_the_models_words(kind: str) -> None:
    """With no true word at all, the inputs are those of greedy decoding."""
    model = tiny_model(**KINDS[kind], teacher_forcing_ratio=0.0).train()
    model.config.eos_token_id = None
    given = batch(targets=[[6, 4, 3, 8, 2]] * 3)
    seen: list[Tensor] = []
    hook = model.model.decoder.embed_tokens.register_forward_hook(lambda _, read, __: seen.append(read[0]))
    model(**given)
    hook.remove()
    words = torch.full((3, 1), START)
    model.eval()
    while words.shape[1] < 5:
        given.pop("labels", None)
        words = torch.cat([words, model(**given, decoder_input_ids=words).logits[:, -1:].argmax(-1)], 1)
    assert torch.equal(seen[-1], words)
    # Its pass completes the cache of the base model.
    cache, found = RnnSeq2SeqCache(), []
    for word in words.split(1, 1):
        found.append(model.score_outputs(model.model(**given, decoder_input_ids=word, cache=cache, use_cache=True)))
    torch.testing.assert_close(torch.cat(found, 1), model(**given, decoder_input_ids=words).logits)


def test_guided_alignment_reads_the_weights() -> None:
    """The loss on the attention is one on p(a_t = j | y_<t)."""
    model = small(**MONOTONIC, guided_alignment_weight=0.5).train()
    alignments = torch.zeros(2, 3, 3, dtype=torch.float64)
    alignments[0, range(3), [0, 2, 1]] = 1
    alignments[1, range(2), [0, 1]] = 1
    weights = [enumerated(model, row)[1] for row in range(2)]
    guided = -(weights[0][range(3), [0, 2, 1]].log().sum() + weights[1][range(2), [0, 1]].log().sum())
    loss = model(**pairs(), alignments=alignments, num_items_in_batch=1, skip_logits=True).loss
    torch.testing.assert_close(loss, nats(model) + 0.5 * guided)


def test_adapters_on_the_products() -> None:
    """Hooks on the readout's projection and the output layer take effect, in the loss and in what is carried."""
    plain, hooked = (tiny_model(**MONOTONIC, readout="maxout", readout_size=4) for _ in range(2))
    with torch.no_grad():
        plain.model.decoder.readout.project.weight *= 2
        plain.model.decoder.readout.project.bias *= 2
        plain.lm_head.weight *= 3
        plain.lm_head.bias *= 3
    hooked.model.decoder.readout.project.register_forward_hook(lambda _, __, out: 2 * out)
    hooked.lm_head.register_forward_hook(lambda _, __, out: 3 * out)
    words = pad(decoder_inputs(), PAD)
    torch.testing.assert_close(forced(hooked, words).logits, forced(plain, words).logits)
    cache = RnnSeq2SeqCache()
    found = [forced(hooked, part, cache=cache).logits for part in words.split(2, 1)]
    torch.testing.assert_close(torch.cat(found, 1), forced(plain, words).logits)


def test_long_and_certain() -> None:
    """200 source positions, scores of a thousand, in float32: nothing overflows, no gradient is nan."""
    model = tiny_model(dtype=torch.float32, **FIRST_ORDER).train()
    with torch.no_grad():
        model.model.decoder.attention.key.weight *= 1e4
    draw = torch.Generator().manual_seed(0)
    sources = torch.randint(3, 13, (2, 200), generator=draw)
    real = torch.ones(2, 200, dtype=torch.long)
    real[0, 150:] = 0
    loss = model(sources, real, labels=torch.randint(3, 11, (2, 30), generator=draw)).loss
    loss.backward()
    assert loss.isfinite() and all(one.grad.isfinite().all() for one in model.parameters() if one.grad is not None)


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_without_a_source_word(kind: str) -> None:
    """A row without a source position has a distribution too, and the other rows do not change."""
    model = tiny_model(**KINDS[kind])
    given = batch()
    whole = model(**given)
    given["attention_mask"][2] = 0
    found = model(**given, output_attentions=True)
    torch.testing.assert_close(found.logits.exp().sum(-1), torch.ones(3, 5, dtype=torch.float64))
    torch.testing.assert_close(found.logits[:2], whole.logits[:2])
    assert not found.cross_attentions[0][2].any()


NOT_WITH = "not with attention_alignment='hard', "
REFUSED: list[tuple[dict[str, Any], str]] = [
    (
        {"attention_order": "before_cell"},
        "attention_order='before_cell': " + NOT_WITH + "the cell would need one context",
    ),
    ({"input_feeding": True}, "input_feeding=True: " + NOT_WITH + "there is no single context or attentional vector"),
    ({"copy_mechanism": True}, "copy_mechanism=True: " + NOT_WITH + "its gate reads one context; must be False"),
    ({"attention_type": "additive", "coverage": "sum"}, "coverage='sum': " + NOT_WITH),
    ({"attention_window": "local_m"}, "attention_window='local_m': " + NOT_WITH),
    ({"attention_normalization": "sparsemax"}, "attention_normalization='sparsemax': " + NOT_WITH),
    ({"context_gate": "both"}, "context_gate='both': " + NOT_WITH),
    (
        {"context_layers": "all", "attention_layer": "bottom", "decoder_layers": 2},
        "context_layers='all': " + NOT_WITH + "the layers would need one context",
    ),
    (
        {"attention_type": "multi_head"},
        "attention_type='multi_head': " + NOT_WITH + "whose word comes from one position",
    ),
    ({"readout": "linear"}, "attention_alignment='hard': needs a readout that projects; readout_size=None, set it"),
    ({"alignment_order": 1}, "alignment_order=1: needs attention_alignment='monotonic', not 'hard'"),
    ({"alignment_order": 2}, "alignment_order=2: must be 0 or 1"),
    ({"context": "every_step"}, "attention_alignment='hard': only context='attention' reads it"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED)
def test_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        RnnSeq2SeqConfig(**{**HARD, "vocab_size": 11, **options})
    assert str(error.value).startswith(message)


def test_what_would_be_left_out_is_refused() -> None:
    class Own(DotAttention):
        def context(self, weights: Tensor, values: Tensor) -> Tensor:
            return values[:, :1]

    REGISTERED["own"] = Own
    try:
        with pytest.raises(ConfigError, match=r"reads the score only, and would leave out context\(\) of Own"):
            tiny_model(attention_type="own", **HARD)
    finally:
        del REGISTERED["own"]
    model = tiny_model(**HARD)
    model.model.decoder.readout.register_forward_hook(lambda *_: None)
    with pytest.raises(ConfigError, match=r"computes decoder\.readout in parts, and would leave out a forward hook"):
        model(**batch())
    words = torch.zeros(3, 2, 5, dtype=torch.float64)
    with pytest.raises(ValueError, match="^decoder_inputs_embeds: attention_alignment='monotonic' reads the words"):
        tiny_model(**MONOTONIC)(batch()["input_ids"], decoder_inputs_embeds=words)

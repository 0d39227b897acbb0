"""The whole model equals the papers' equations: outputs, final states, loss and every gradient, in float64."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.modeling_outputs import Seq2SeqLMOutput

from hf_rnn_seq2seq import RnnSeq2SeqConfig, RnnSeq2SeqForConditionalGeneration
from tests.helpers import reference_model, references
from tests.helpers.model_cases import CASES, TWO_LAYERS
from tests.helpers.models import SOURCES, batch, decoder_inputs, mask, pad, tiny_model
from tests.helpers.models import TARGETS as RAGGED

# Of one length: the fused paths run where no target position is padding.
TARGETS = [[6, 4, 3, 9, 2], [9, 5, 5, 7, 2], [3, 3, 5, 10, 2]]


def reference(model: RnnSeq2SeqForConditionalGeneration) -> list[reference_model.Sentence]:
    """The sentences of the batch by the reference, one by one."""
    weights = model.state_dict(keep_vars=True)
    pairs = zip(SOURCES, decoder_inputs(TARGETS), strict=True)
    return [reference_model.translate(model.config, weights, source, target) for source, target in pairs]


def objective(logits: list[Tensor], states: list[Tensor]) -> Tensor:
    """A number that depends on every logit and every final state, each with another factor."""
    flat = torch.cat([tensor.flatten() for tensor in [*logits, *states]])
    return (torch.sin(torch.arange(len(flat), dtype=flat.dtype)) * flat).sum()


def gradients(model: torch.nn.Module, value: Tensor) -> dict[str, Tensor]:
    """Of every parameter; zeros where `value` does not depend on it."""
    names, parameters = zip(*model.named_parameters(), strict=True)
    found = torch.autograd.grad(value, parameters, allow_unused=True)
    return {
        name: torch.zeros_like(parameter) if gradient is None else gradient
        for name, parameter, gradient in zip(names, parameters, found, strict=True)
    }


def places(config: RnnSeq2SeqConfig) -> list[list[int]]:
    """The positions of each row that the encoder reads one after the other: all words but the features."""
    known = config.feature_token_ids or []
    return [[place for place, word in enumerate(source) if word not in known] for source in SOURCES]


@pytest.mark.parametrize("case", CASES)
def test_model_equals_the_equations(case: str) -> None:
    model = tiny_model(**(TWO_LAYERS | CASES[case]))
    expected = reference(model)
    wanted_logits = [torch.stack(sentence.logits) for sentence in expected]
    wanted_gradients = gradients(model, objective(wanted_logits, reference_ends(expected)))
    inputs = {"input_ids": pad(SOURCES), "attention_mask": mask(SOURCES)}
    shown = {"output_attentions": True, "output_hidden_states": True, "use_cache": True}
    # The fused path where there is one, and the time loop that restates the equations.
    for path in ("auto", "loop"):
        model.config.decoder_recurrence = path
        actual = model(**inputs, decoder_input_ids=pad(decoder_inputs(TARGETS)), **shown)
        torch.testing.assert_close(list(actual.logits), wanted_logits)
        torch.testing.assert_close(final_states(actual), reference_ends(expected))
        check_hidden_states(actual, expected, places(model.config))
        check_weights(actual, expected, places(model.config))
        found = gradients(model, objective(list(actual.logits), final_states(actual)))
        torch.testing.assert_close(found, wanted_gradients)
        if model.get_decoder().recurrence_path != "scan":
            break


def final_states(output: Seq2SeqLMOutput) -> list[Tensor]:
    """Every tensor of the decoder's last state."""
    state = output.cache.state
    return [tensor for layer in state.layers for tensor in layer] + [state.feed] * (state.feed is not None)


def reference_ends(expected: list[reference_model.Sentence]) -> list[Tensor]:
    """The same tensors of the reference, its rows stacked."""
    ends = [sentence.target.ends for sentence in expected]
    states = [
        torch.stack([row[layer][part] for row in ends])
        for layer in range(len(ends[0]))
        for part in range(len(ends[0][0]))
    ]
    fed = [sentence.target.feed for sentence in expected]
    return states if fed[0] is None else [*states, torch.stack(fed)]


def check_hidden_states(
    output: Seq2SeqLMOutput, expected: list[reference_model.Sentence], places: list[list[int]]
) -> None:
    """Word vectors and each layer's states, on both sides."""
    for number, states in enumerate(output.decoder_hidden_states):
        torch.testing.assert_close(list(states), [torch.stack(sentence.target.hidden[number]) for sentence in expected])
    for number, states in enumerate(output.encoder_hidden_states):
        alone = [torch.stack(sentence.source.hidden[number]) for sentence in expected]
        torch.testing.assert_close([row[read] for row, read in zip(states, places, strict=True)], alone)


def check_weights(output: Seq2SeqLMOutput, expected: list[reference_model.Sentence], places: list[list[int]]) -> None:
    """Attention weights (batch, heads, target, source), exactly zero at padding and at features."""
    if not expected[0].target.weights:
        assert output.cross_attentions is None
        return
    (weights,) = output.cross_attentions
    for row, sentence in enumerate(expected):
        heads = [torch.stack([torch.stack(head) for head in step]) for step in sentence.target.weights]
        torch.testing.assert_close(weights[row][..., places[row]], torch.stack(heads, 1))
        others = [place for place in range(weights.shape[-1]) if place not in places[row]]
        assert not weights[row][..., others].any()


def test_which_cases_take_the_fused_path() -> None:
    """The comparison above would pass without the fused path too."""
    paths = {case: tiny_model(**(TWO_LAYERS | CASES[case])).get_decoder().recurrence_path for case in CASES}
    fused = {case for case, path in paths.items() if path == "scan"}
    assert {"one layer", "deeper encoder", "bottom", "before, bottom, all", "GNMT"} <= fused
    assert {path.split(":")[0] for path in paths.values()} == {"scan", "loop", "at once"}


def nats(model: RnnSeq2SeqForConditionalGeneration, smoothing: float) -> Tensor:
    """Cross entropy of the batch, summed over its words."""
    weights = model.state_dict(keep_vars=True)
    total = torch.zeros((), dtype=torch.float64)
    for source, read, target in zip(SOURCES, decoder_inputs(), RAGGED, strict=True):
        logits = reference_model.translate(model.config, weights, source, read).logits
        total = total + references.cross_entropy(logits, target, smoothing)
    return total


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_loss(smoothing: float) -> None:
    """The mean over the words, or their sum divided by a given number; smoothed in training only; with gradients."""
    model = tiny_model(label_smoothing=smoothing)
    words = sum(map(len, RAGGED))
    for training in (False, True):
        model.train(training)
        expected = nats(model, smoothing if training else 0.0)
        torch.testing.assert_close(model(**batch()).loss.double(), expected / words, rtol=1e-6, atol=0)
        for items in (5, torch.tensor(5)):
            shared = model(**batch(), num_items_in_batch=items).loss
            torch.testing.assert_close(shared.double(), expected / 5, rtol=1e-6, atol=0)
        found, known = gradients(model, model(**batch()).loss), gradients(model, expected / words)
        torch.testing.assert_close(found, known, rtol=1e-4, atol=1e-6)


def test_logits_of_all_positions_of_some_or_of_none() -> None:
    model = tiny_model()
    whole = model(**batch())
    assert whole.logits.shape == (3, 5, 11) and whole.cache is None
    assert torch.equal(model(**batch(), logits_to_keep=2).logits, whole.logits[:, -2:])
    skipped = model(**batch(), skip_logits=True)
    assert skipped.logits is None
    torch.testing.assert_close(skipped.loss, whole.loss)
    assert model.train()(**batch()).logits.shape == (3, 5, 11)
    assert model(**batch(), skip_logits=True).logits is None
    inputs = {key: value for key, value in batch().items() if key != "labels"}
    assert model(**inputs, decoder_input_ids=pad(decoder_inputs()), skip_logits=True).logits is not None


@pytest.mark.parametrize("copying", [False, True], ids=["", "copying"])
@pytest.mark.parametrize("budget_mb", [512, 0.0001], ids=["at once", "in chunks"])
def test_outside_training_the_loss_is_a_function_of_the_logits(copying: bool, budget_mb: float) -> None:
    model = tiny_model(copy_mechanism=copying, label_smoothing=0.1)
    # Below a MiB, which the config refuses: the tiny logits must not fit.
    model.config.__dict__["logits_memory_mb"] = budget_mb
    given = batch()
    actual = model(**given)
    (found,) = torch.autograd.grad(actual.loss, actual.logits)
    real = given["labels"] != -100
    target = torch.nn.functional.one_hot(given["labels"].clamp(min=0), actual.logits.shape[-1])
    expected = (actual.logits.detach().softmax(-1) - target) / real.sum() * real.unsqueeze(-1)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(actual.loss, model(**given, skip_logits=True).loss)


def test_the_loss_of_a_batch_without_labels_is_zero() -> None:
    model = tiny_model().train()
    actual = model(**(batch() | {"labels": torch.full((3, 4), -100)}))
    assert actual.loss == 0
    actual.loss.backward()


def test_labels_are_shifted_right_after_the_start_token() -> None:
    model = tiny_model(decoder_start_token_id=9)
    labels = torch.tensor([[5, 6, 2], [7, 2, -100]])
    assert model.prepare_decoder_input_ids_from_labels(labels).tolist() == [[9, 5, 6], [9, 7, 2]]
    assert model.prepare_decoder_input_ids_from_labels(torch.tensor([[5, -100, -100]])).tolist() == [[9, 5, 0]]
    assert labels[1, 2] == -100
    with pytest.raises(ValueError, match="decoder_start_token_id=None, pad_token_id=0: both must be set"):
        tiny_model(decoder_start_token_id=None)(**batch())


def test_plain_tuples() -> None:
    model = tiny_model()
    actual = model(**batch(), output_attentions=True, output_hidden_states=True)
    plain = model(**batch(), output_attentions=True, output_hidden_states=True, return_dict=False)
    assert isinstance(plain, tuple) and len(plain) == len(actual.to_tuple())
    assert torch.equal(plain[0], actual.loss) and torch.equal(plain[1], actual.logits)
    read = model.get_encoder()(pad(SOURCES), return_dict=False)
    # Fields that are None are in the tuple too, so that a position always means the same field.
    for parts in (read, model.get_encoder()(pad(SOURCES), output_hidden_states=True).to_tuple(), list(read)):
        again = model(encoder_outputs=parts, labels=batch()["labels"])
        torch.testing.assert_close(again.loss, actual.loss)


def test_inputs_are_not_modified() -> None:
    model, given = tiny_model(dropout=0.5, word_dropout=0.5).train(), batch()
    model(**given).loss.backward()
    assert all(torch.equal(given[name], tensor) for name, tensor in batch().items())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"inputs_embeds": torch.zeros(3, 6, 5)}, "give exactly one of input_ids and inputs_embeds"),
        ({"input_ids": None}, "give exactly one of input_ids and inputs_embeds"),
        (
            {"attention_mask": torch.ones(3, 5)},
            r"attention_mask of shape \(3, 5\): must be \(batch, source\) = \(3, 6\)",
        ),
        (
            {"decoder_input_ids": torch.ones(3, 7).long()},
            r"labels of shape \(3, 5\): must be \(batch, target\) = \(3, 7\)",
        ),
        (
            {"decoder_input_ids": torch.ones(3, 5).long(), "decoder_inputs_embeds": torch.zeros(3, 5, 5)},
            "give only one of decoder_input_ids and decoder_inputs_embeds",
        ),
        (
            {"decoder_input_ids": torch.ones(2, 5).long()},
            r"decoder_input_ids of shape \(2, 5\): .* for each",
        ),
        ({"labels": torch.ones(3, 0).long()}, r"decoder_input_ids of shape \(3, 0\): .* and a position"),
        ({"logits_to_keep": -1}, "logits_to_keep=-1: must be a number of last positions, or 0 for all"),
        ({"labels": None}, "give decoder_input_ids or labels: .* the vocabularies have 13 and 11 words"),
        (
            {"labels": None, "inputs_embeds": torch.zeros(3, 6, 5).double(), "input_ids": None},
            "give decoder_input_ids, decoder_inputs_embeds or input_ids",
        ),
    ],
    ids=str,
)
def test_invalid_inputs_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_model()(**(batch() | given))


def test_target_word_vectors_in_place_of_words() -> None:
    model = tiny_model(embedding_activation="relu")
    inputs = {"input_ids": pad(SOURCES), "attention_mask": mask(SOURCES)}
    words = pad(decoder_inputs())
    vectors = torch.relu(model.get_decoder().embed_tokens(words))
    actual = model(**inputs, decoder_inputs_embeds=vectors)
    assert torch.equal(actual.logits, model(**inputs, decoder_input_ids=words).logits)


@pytest.mark.parametrize("in_place", [False, True], ids=["torch.compile(model)", "model.compile()"])
@pytest.mark.parametrize("options", [{}, {"layer_norm": True}, {"teacher_forcing_ratio": 0.5}], ids=str)
def test_a_compiled_model_computes_the_same_and_unrolls_nothing(options: dict[str, Any], in_place: bool) -> None:
    """Numbers, gradients and translations are those of the model; no graph is traced, so the first call is quick."""
    graphs = []
    model = tiny_model(dtype=torch.float32, **options)
    sources = {name: value for name, value in batch().items() if name != "labels"}
    search = {"num_beams": 2, "max_length": 6}
    written = model.generate(**sources, **search)

    def step(called: nn.Module) -> tuple[Tensor, list[Tensor]]:
        torch.manual_seed(1)
        loss = called.train()(**batch()).loss
        return loss, list(torch.autograd.grad(loss, list(model.parameters())))

    loss, gradients = step(model)
    backend = {"backend": lambda graph, _: graphs.append(graph) or graph.forward}
    if in_place:
        model.compile(**backend)
    compiled = model if in_place else torch.compile(model, **backend)
    again, same = step(compiled)
    assert torch.equal(loss, again) and all(map(torch.equal, gradients, same))
    for read in (compiled.eval().generate, compiled.search):
        assert read(**sources, **search).tolist() == written.tolist()
    assert not graphs

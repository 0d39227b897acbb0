"""The recurrent language model: its equations, its state, its loss, and what transformers does with it."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, GenerationConfig

from hf_rnn_seq2seq import ConfigError, RnnCausalConfig, RnnCausalModel, RnnForCausalLM, RnnSeq2SeqCache
from hf_rnn_seq2seq.model.presets import CAUSAL_PRESETS
from tests.helpers import reference_model, references
from tests.helpers.models import config_fields, mask, pad, randomize, tiny_model
from tests.model.test_model import gradients, objective

# Of one length, so that no position is padding.
TEXTS = [[1, 6, 4, 3, 9, 2], [1, 5, 5, 7, 2, 8], [4, 3, 3, 5, 10, 2]]
RAGGED = [[1, 6, 4, 3, 9, 2], [1, 5, 5], [4, 3, 3, 5]]
GRAVES = {"skip_connections": True, "decoder_layers": 3, "readout": "linear"}
KINDS: dict[str, dict[str, Any]] = {
    "one layer": {},
    "Graves": GRAVES,
    "Graves, gru": GRAVES | {"cell_type": "gru"},
    "residual": {"decoder_layers": 3, "residual_start": 2},
    "deep, normalized": {"decoder_transition_depth": 2, "layer_norm": True, "cell_type": "gru"},
    "zoneout": {"zoneout": 0.2, "decoder_layers": 2, "skip_connections": True},
    "maxout": {"readout": "maxout", "readout_size": 3, "cell_type": "rnn_tanh"},
    "tied": {"tie_word_embeddings": True, "readout_size": 5, "embedding_activation": "relu"},
}


def tiny_lm(dtype: torch.dtype = torch.float64, seed: int = 0, **options: Any) -> RnnForCausalLM:
    """A language model in eval mode whose parameters are all far from zero and from each other."""
    config = RnnCausalConfig(**{"vocab_size": 11, "embedding_size": 5, "hidden_size": 4, **options})
    model = RnnForCausalLM(config).to(dtype).eval()
    randomize(model, seed)
    return model


@pytest.fixture(params=KINDS, scope="module")
def model(request: pytest.FixtureRequest) -> RnnForCausalLM:
    return tiny_lm(**KINDS[request.param])


# ------------------------------------------------------------------------------------------------ equations


def reference(model: RnnForCausalLM, text: list[int]) -> reference_model.Target:
    """One text by the reference: from a zero state, token by token, one matrix-vector product at a time."""
    config, weights = model.config, model.state_dict(keep_vars=True)
    zero = torch.zeros(config.hidden_size, dtype=torch.float64)
    states = [(zero,) * (2 if config.cell_type == "lstm" else 1) for _ in range(config.decoder_layers)]
    words = [weights["model.decoder.embed_tokens.weight"][token] for token in text]
    if config.embedding_activation == "relu":
        words = [torch.clamp(word, min=0) for word in words]
    return reference_model.decode(config, references.under(weights, "model.decoder"), [], states, None, words)


def reference_logits(model: RnnForCausalLM, text: list[int]) -> Tensor:
    weights = model.state_dict(keep_vars=True)
    return torch.stack([references.affine(weights, "lm_head", readout) for readout in reference(model, text).readouts])


def test_the_model_equals_the_equations(model: RnnForCausalLM) -> None:
    """Logits, states of every layer, final states, every gradient (Graves 2013, equations 1 to 3)."""
    expected = [reference(model, text) for text in TEXTS]
    logits = [reference_logits(model, text) for text in TEXTS]
    ends = [
        torch.stack([target.ends[layer][part] for target in expected])
        for layer in range(model.config.decoder_layers)
        for part in range(len(expected[0].ends[0]))
    ]
    output = model(torch.tensor(TEXTS), output_hidden_states=True)
    found = [tensor for layer in output.cache.state.layers for tensor in layer]
    torch.testing.assert_close(list(output.logits), logits)
    torch.testing.assert_close(found, ends)
    for number, states in enumerate(output.hidden_states):
        torch.testing.assert_close(list(states), [torch.stack(target.hidden[number]) for target in expected])
    actual = gradients(model, objective(list(output.logits), found))
    torch.testing.assert_close(actual, gradients(model, objective(logits, ends)))


@pytest.mark.parametrize("skips", [False, True])
def test_one_layer_is_the_present_decoder(skips: bool) -> None:
    """A translation model that reads nothing of its source is the language model, whatever `skip_connections` says."""
    translator = tiny_model(context="initial_state", bridge="zero", skip_connections=skips)
    model = tiny_lm(skip_connections=skips)
    own = {name: value for name, value in translator.state_dict().items() if name in model.state_dict()}
    model.load_state_dict(own)
    words = torch.tensor(TEXTS)
    expected = translator(input_ids=torch.tensor([[3, 2]] * 3), decoder_input_ids=words).logits
    torch.testing.assert_close(model(words).logits, expected)


# ------------------------------------------------------------------------------------------------ state and padding


def test_a_text_in_pieces_is_the_text(model: RnnForCausalLM) -> None:
    words = torch.tensor(TEXTS)
    whole = model(words)
    for cuts in ([1] * 6, [2, 3, 1]):
        cache, parts = None, []
        for piece in words.split(cuts, 1):
            output = model(piece, cache=cache)
            cache, parts = output.cache, [*parts, output.logits]
        torch.testing.assert_close(torch.cat(parts, 1), whole.logits)
        torch.testing.assert_close(cache.states, whole.cache.states)
        assert cache.get_seq_length() == 6 and torch.equal(cache.state.position, torch.full((3,), 6))


@pytest.mark.parametrize("recording", [False, True])
@pytest.mark.parametrize("where", ["left", "right", "anywhere"])
def test_padding_changes_nothing(model: RnnForCausalLM, where: str, recording: bool) -> None:
    """Logits and final state of the real tokens are those of the text alone."""
    places = {
        "left": [[0, 1, 2, 3, 4, 5], [3, 4, 5], [2, 3, 4, 5]],
        "right": [[0, 1, 2, 3, 4, 5], [0, 1, 2], [0, 1, 2, 3]],
    }
    places["anywhere"] = [[0, 1, 2, 3, 4, 5], [0, 2, 5], [1, 2, 3, 5]]
    words, allowed = torch.full((3, 6), 7), torch.zeros(3, 6, dtype=torch.long)
    for row, real in enumerate(places[where]):
        words[row, real], allowed[row, real] = torch.tensor(RAGGED[row]), 1
    cache = RnnSeq2SeqCache()
    if recording:
        cache.activate_past_recording()
    output = model(words, attention_mask=allowed, cache=cache)
    without_state = model(words, attention_mask=allowed, use_cache=False).logits
    losses = []
    for row, real in enumerate(places[where]):
        alone = model(torch.tensor([RAGGED[row]]), labels=torch.tensor([RAGGED[row]]))
        losses.append(alone.loss * (len(real) - 1))
        torch.testing.assert_close(output.logits[row, real], alone.logits[0])
        torch.testing.assert_close(without_state[row, real], alone.logits[0])
        for actual, expected in zip(output.cache.states, alone.cache.states, strict=True):
            torch.testing.assert_close(actual[row], expected[0])
    labels = words.masked_fill(allowed == 0, -100)
    if where != "anywhere":
        loss = model(words, attention_mask=allowed, labels=labels).loss
        torch.testing.assert_close(loss, sum(losses) / sum(len(real) - 1 for real in places[where]))


@st.composite
def models(draw: st.DrawFn) -> RnnForCausalLM:
    """A language model of a random valid config; dropout is set and has no effect in evaluation."""
    options: dict[str, Any] = {
        "cell_type": draw(st.sampled_from(["lstm", "gru", "rnn_tanh", "rnn_relu"])),
        "decoder_layers": draw(st.integers(1, 3)),
        "skip_connections": draw(st.booleans()),
        "residual_start": draw(st.sampled_from([None, 2, 3])),
        "layer_norm": draw(st.booleans()),
        "decoder_transition_depth": draw(st.sampled_from([1, 1, 2])),
        "readout": draw(st.sampled_from(["linear", "tanh", "maxout"])),
        "readout_size": draw(st.sampled_from([None, 5])),
        "readout_embedding": draw(st.booleans()),
        "embedding_activation": draw(st.sampled_from(["none", "relu"])),
        "zoneout": draw(st.sampled_from([0.0, 0.2])),
        "dropout": 0.3,
        "recurrent_dropout": 0.2,
        "weight_drop": 0.2,
        "word_dropout": 0.1,
    }
    return tiny_lm(**options, seed=draw(st.integers(0, 99)))


tokens = st.lists(st.integers(1, 10), min_size=1, max_size=6)


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(models(), st.lists(tokens, min_size=1, max_size=3), st.integers(1, 5))
def test_whatever_the_options_a_padded_batch_in_pieces_is_each_text_alone(
    model: RnnForCausalLM, texts: list[list[int]], cut: int
) -> None:
    words, allowed = pad(texts, left=True), mask(texts, left=True)
    cache, parts = RnnSeq2SeqCache(), []
    for piece, real in zip(words.split(cut, 1), allowed.split(cut, 1), strict=True):
        parts.append(model(piece, attention_mask=real, cache=cache).logits)
    found = torch.cat(parts, 1)
    for row, text in enumerate(texts):
        alone = model(torch.tensor([text]))
        torch.testing.assert_close(found[row, -len(text) :], alone.logits[0])
        for actual, expected in zip(cache.states, alone.cache.states, strict=True):
            torch.testing.assert_close(actual[row], expected[0])
        torch.testing.assert_close(alone.logits[0], reference_logits(model, text))


def test_tokens_are_taken_back(model: RnnForCausalLM) -> None:
    cache = RnnSeq2SeqCache()
    cache.activate_past_recording()
    words = torch.tensor(TEXTS)
    model(words, cache=cache)
    cache.crop(-4)
    torch.testing.assert_close(cache.states, model(words[:, :2]).cache.states)


def test_vectors_in_the_place_of_tokens(model: RnnForCausalLM) -> None:
    words = torch.tensor(TEXTS)
    vectors = model.get_decoder().embed(words)
    torch.testing.assert_close(model(inputs_embeds=vectors).logits, model(words).logits)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "give one of input_ids and inputs_embeds"),
        ({"input_ids": torch.ones(1, 2).long(), "inputs_embeds": torch.ones(1, 2, 5)}, "give one of"),
        ({"input_ids": torch.ones(1, 2).long(), "past_key_values": 1}, "past_key_values: the argument is called cache"),
        ({"input_ids": torch.ones(1, 2).long(), "cache": {}}, "cache of type dict: must be an RnnSeq2SeqCache or None"),
        (
            {"input_ids": torch.ones(1, 3).long(), "attention_mask": torch.ones(1, 2)},
            r"attention_mask of shape \(1, 2\): must be \(batch, at least time\) = \(1, 3\)",
        ),
        (
            {"input_ids": torch.ones(1, 2).long(), "labels": torch.ones(1, 3).long()},
            r"labels of shape \(1, 3\): must be",
        ),
    ],
    ids=["nothing", "both", "old name", "other class", "short mask", "longer labels"],
)
def test_wrong_inputs_are_named(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_lm()(**given)


# ------------------------------------------------------------------------------------------------ loss


def nats(model: RnnForCausalLM, text: list[int], smoothing: float = 0.0) -> Tensor:
    return references.cross_entropy(list(reference_logits(model, text))[:-1], text[1:], smoothing)


@pytest.mark.parametrize("memory", [512, 1])
@pytest.mark.parametrize("skip_logits", [False, True])
def test_the_loss_is_the_cross_entropy_of_the_next_token(skip_logits: bool, memory: int) -> None:
    """Mean over the tokens that have one before them; value and gradients, ragged rows, whole and in chunks."""
    model = tiny_lm(**GRAVES, logits_memory_mb=memory, vocab_size=11)
    total, count = sum(nats(model, text) for text in RAGGED), sum(len(text) - 1 for text in RAGGED)
    words, allowed = pad(RAGGED), mask(RAGGED)
    labels = words.masked_fill(allowed == 0, -100)
    output = model(words, attention_mask=allowed, labels=labels, skip_logits=skip_logits)
    torch.testing.assert_close(output.loss, total / count)
    assert (output.logits is None) == skip_logits
    torch.testing.assert_close(gradients(model, output.loss), gradients(model, total / count))
    shifted = torch.cat([labels[:, 1:], torch.full((3, 1), -100)], 1)
    again = model(words, attention_mask=allowed, shift_labels=shifted, num_items_in_batch=7)
    torch.testing.assert_close(again.loss, total / 7)


def test_label_smoothing_is_for_training() -> None:
    model = tiny_lm(label_smoothing=0.1)
    words = torch.tensor(TEXTS)
    torch.testing.assert_close(model(words, labels=words).loss, sum(nats(model, text) for text in TEXTS) / 15)
    smoothed = model.train()(words, labels=words).loss
    torch.testing.assert_close(smoothed, sum(nats(model, text, 0.1) for text in TEXTS) / 15)


def test_dropout_is_drawn_in_training_only() -> None:
    model = tiny_lm(**GRAVES, dropout=0.5, recurrent_dropout=0.2, weight_drop=0.2, word_dropout=0.1)
    words = torch.tensor(TEXTS)
    assert torch.equal(model(words).logits, model(words).logits)
    model.train()
    assert not torch.equal(model(words).logits, model(words).logits)


# ------------------------------------------------------------------------------------------------ generate()

SEARCHES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "beams": {"num_beams": 3},
    "several": {"num_beams": 4, "num_return_sequences": 2},
    "sampling": {"do_sample": True, "top_k": 4},
    "sampled beams": {"do_sample": True, "num_beams": 2},
    "repetition": {"no_repeat_ngram_size": 2, "min_new_tokens": 3},
}


@pytest.mark.parametrize("search", SEARCHES)
def test_generation_with_and_without_the_cache(model: RnnForCausalLM, search: str) -> None:
    """Left-padded prompts of unequal length."""
    prompts = {"input_ids": pad(RAGGED, left=True), "attention_mask": mask(RAGGED, left=True)}
    found = []
    for use_cache in (True, False):
        torch.manual_seed(3)
        options = {"do_sample": False, **SEARCHES[search], "max_new_tokens": 7, "use_cache": use_cache}
        found.append(model.generate(**prompts, **options))
    assert torch.equal(*found)
    if search in ("greedy", "beams"):
        for row, prompt in enumerate(RAGGED):
            alone = model.generate(torch.tensor([prompt]), **options)[0, len(prompt) :]
            assert torch.equal(found[0][row, 6 : 6 + len(alone)], alone)


def test_assisted_decoding_is_greedy_decoding(model: RnnForCausalLM) -> None:
    """Wrong proposals are taken back, those of another model and those copied from the prompt."""
    prompt = torch.tensor([[1, 6, 4, 3, 6, 4]])
    greedy = model.generate(prompt, max_new_tokens=12, do_sample=False)
    assistant = tiny_lm(seed=5, **GRAVES)
    assistant.generation_config.assistant_confidence_threshold = 0.0
    for proposals in ({"assistant_model": assistant}, {"prompt_lookup_num_tokens": 3}):
        assert torch.equal(model.generate(prompt, max_new_tokens=12, do_sample=False, **proposals), greedy)
    # An assistant that is the model itself is always right, so that the model is called less often than once a token.
    twin, calls = copy.deepcopy(model), []
    twin.generation_config.assistant_confidence_threshold = 0.0
    with model.lm_head.register_forward_hook(lambda *_: calls.append(1)):
        again = model.generate(prompt, max_new_tokens=12, do_sample=False, assistant_model=twin)
    assert torch.equal(again, greedy) and len(calls) <= max(2, (greedy.shape[1] - 6) // 2)


def test_generation_goes_on_from_a_state(model: RnnForCausalLM) -> None:
    prompt = torch.tensor([[1, 6, 4, 3]])
    whole = model.generate(prompt, max_new_tokens=5, do_sample=False)
    cache = model(prompt[:, :3]).cache
    assert torch.equal(model.generate(prompt, cache=cache, max_new_tokens=5, do_sample=False), whole)
    assert torch.equal(  # the new tokens alone, under the mask of all
        model.generate(
            prompt[:, 3:],
            attention_mask=torch.ones(1, 4),
            cache=model(prompt[:, :3]).cache,
            max_new_tokens=5,
            do_sample=False,
        ),
        whole[:, 3:],
    )
    with pytest.raises(ValueError, match="input_ids of 2 tokens: the cache has read 3; pass the whole text"):
        model.generate(prompt[:, :2], cache=model(prompt[:, :3]).cache, max_new_tokens=5)
    vectors = model.get_input_embeddings()(prompt)
    if model.config.embedding_activation == "none":
        of_vectors = model.generate(inputs_embeds=vectors, max_new_tokens=5, do_sample=False)
        assert torch.equal(of_vectors, whole[:, 4:])


def test_the_longest_text_of_a_call_counts() -> None:
    """A `max_length` counts the prompt, and the model's own `max_new_tokens` does not overrule it."""
    model, prompt = tiny_lm(), torch.tensor([[1, 6, 4, 3]])
    for call, length in [
        ({}, 204),
        ({"max_length": 10}, 10),
        ({"generation_config": GenerationConfig(max_length=9, eos_token_id=-1, pad_token_id=0)}, 9),
        ({"max_length": 10, "max_new_tokens": 3}, 7),
        ({"generation_config": GenerationConfig(max_new_tokens=2, eos_token_id=-1, pad_token_id=0)}, 6),
    ]:
        ends = {} if "generation_config" in call else {"eos_token_id": None}
        assert model.generate(prompt, do_sample=False, **call, **ends).shape == (1, length)


def test_a_cache_that_is_given_stops_at_the_last_real_token() -> None:
    model = tiny_lm()
    words, allowed = pad(RAGGED), mask(RAGGED)
    expected = model(words, attention_mask=allowed, use_cache=True).cache.state.layers
    cache = RnnSeq2SeqCache()
    model(words, attention_mask=allowed, use_cache=False, cache=cache)
    torch.testing.assert_close(cache.state.layers, expected)


@pytest.mark.parametrize("options", [{}, {"layer_norm": True}], ids=str)
def test_a_cache_of_another_number_of_rows_is_refused(options: dict[str, Any]) -> None:
    model = tiny_lm(**options)
    cache = model(torch.tensor([[1, 5], [1, 6], [1, 7]])).cache
    with pytest.raises(ValueError, match=r"input_ids of shape \(1, 1\).*3 rows of the cache"):
        model(torch.tensor([[4]]), cache=cache)


def test_chosen_positions_are_scored() -> None:
    model, words = tiny_lm(), torch.tensor([[1, 6, 4, 3]])
    whole = model(words).logits
    torch.testing.assert_close(model(words, logits_to_keep=2).logits, whole[:, -2:])
    torch.testing.assert_close(model(words, logits_to_keep=torch.tensor([0, 2])).logits, whole[:, [0, 2]])


def test_continuous_batching_is_refused() -> None:
    with pytest.raises(NotImplementedError, match="generate_batch: needs a paged key-value cache"):
        tiny_lm().generate_batch([[1]])


def test_text_from_nothing_begins_with_the_start_token() -> None:
    output = tiny_lm().generate(max_new_tokens=4, do_sample=False)
    assert output.shape[1] <= 5 and output[0, 0] == 1


# ------------------------------------------------------------------------------------------------ saving, configuration


@pytest.mark.parametrize("kind", ["Graves", "tied"])
def test_a_saved_model_is_the_model(kind: str, tmp_path: Path) -> None:
    model = tiny_lm(torch.float32, **KINDS[kind])
    model.save_pretrained(tmp_path)
    words = torch.tensor(TEXTS)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(loaded) is RnnForCausalLM and torch.equal(loaded(words).logits, model(words).logits)
    base = AutoModel.from_pretrained(tmp_path)
    assert type(base) is RnnCausalModel
    assert torch.equal(base(words).last_hidden_state, model.model(words).last_hidden_state)
    config = AutoConfig.from_pretrained(tmp_path)
    fields = config_fields(RnnCausalConfig)
    assert {name: getattr(config, name) for name in fields} == {name: getattr(model.config, name) for name in fields}
    assert json.loads((tmp_path / "config.json").read_text())["auto_map"] == {
        "AutoConfig": "configuration_rnn_causal.RnnCausalConfig",
        "AutoModel": "modeling_rnn_causal.RnnCausalModel",
        "AutoModelForCausalLM": "modeling_rnn_causal.RnnForCausalLM",
    }
    assert "context" not in config.to_dict() and not config.is_encoder_decoder


@pytest.mark.parametrize("kind", ["Graves", "tied"])
def test_the_vocabulary_grows(kind: str) -> None:
    model = tiny_lm(torch.float32, **KINDS[kind])
    words = torch.tensor(TEXTS)
    before = model(words).logits
    model.resize_token_embeddings(13)
    assert model.config.vocab_size == 13 and model(words).logits.shape[2] == 13
    torch.testing.assert_close(model(words).logits[..., :11], before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attention_type": "dot"}, "'attention_type' is not a field of RnnCausalConfig"),
        ({"encoder_layers": 2}, "'encoder_layers' is not a field of RnnCausalConfig; did you mean 'decoder_layers'?"),
        ({"context": "attention"}, "'context' is not a field of RnnCausalConfig"),
        ({"source_vocab_size": 9}, "'source_vocab_size' is not a field of RnnCausalConfig"),
        ({"hidden_size": 0}, "hidden_size=0: must be greater than 0"),
        ({"dropout": 1.0}, r"dropout=1.0: must be in \[0, 1\)"),
        ({"gru_reset": "before"}, "gru_reset='before': only cell_type='gru' has a reset gate"),
        ({"residual_start": 1}, "residual_start=1: must be 2 or more"),
        ({"eos_token_id": 11}, r"eos_token_id=11: must be in \[0, vocab_size=11\)"),
        (
            {"tie_word_embeddings": True},
            "tie_word_embeddings=True: the readout .4 wide. must be as wide as embedding_size=5",
        ),
        ({"cell_type": "sru"}, "cell_type='sru': must be one of 'lstm', 'gru'"),
    ],
    ids=lambda value: "" if isinstance(value, str) else str(value),
)
def test_what_a_configuration_refuses(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tiny_lm(**options)


def test_the_preset_of_graves() -> None:
    config = RnnCausalConfig.from_preset("graves2013_text")
    assert (config.decoder_layers, config.hidden_size, config.skip_connections) == (7, 700, True)
    # Equation 3: the output layer reads every layer, without a product between.
    model = RnnForCausalLM(
        RnnCausalConfig.from_preset("graves2013_text", hidden_size=4, vocab_size=9, embedding_size=9)
    )
    assert model.lm_head.weight.shape == (9, 28) and model.get_decoder().readout.project is None
    assert model.get_decoder().layers[6].kernel.input_size == 13
    with pytest.raises(ConfigError, match="preset='bahdanau2014': must be one of graves2013_text"):
        RnnCausalConfig.from_preset("bahdanau2014")
    assert all(name in RnnCausalConfig.__doc__ for name in CAUSAL_PRESETS)

"""Random valid configs: every model of a valid config works on every path."""

import tempfile
from typing import Any

import torch
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st
from torch import Tensor

from hf_rnn_seq2seq import ConfigError, RnnSeq2SeqCache, RnnSeq2SeqForConditionalGeneration
from hf_rnn_seq2seq.training.adaptation import freeze, grow_tables
from hf_rnn_seq2seq.training.sequence_objectives import Candidates, Source, log_probabilities
from hf_rnn_seq2seq.training.sequence_objectives import draw as draw_targets
from tests.helpers.models import END, PAD, config_fields, mask, pad, tiny_config, tiny_model

Model = RnnSeq2SeqForConditionalGeneration
quickly = settings(
    # Many draws are refused by the config itself, which is what it is for.
    suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow],
)


@st.composite
def models(draw: st.DrawFn) -> Model:
    """A model of a random valid config; dropout is set and has no effect in evaluation."""
    options: dict[str, Any] = {
        "cell_type": draw(st.sampled_from(["lstm", "gru", "rnn_tanh", "rnn_relu"])),
        "encoder_layers": draw(st.integers(1, 3)),
        "decoder_layers": draw(st.integers(1, 3)),
        "bidirectional": draw(st.sampled_from(["all", "first", "none", "alternating"])),
        "residual_start": draw(st.sampled_from([None, None, 2, 3])),
        "skip_connections": draw(st.booleans()),
        "layer_norm": draw(st.booleans()),
        "encoder_transition_depth": draw(st.sampled_from([1, 1, 2])),
        "decoder_transition_depth": draw(st.sampled_from([1, 1, 2])),
        "decoder_upper_transition_depth": draw(st.sampled_from([None, 1, 2])),
        "context": draw(st.sampled_from(["attention", "attention", "every_step", "initial_state"])),
        "bridge": draw(st.sampled_from(["zero", "copy", "mean", "dense", "backward_tanh"])),
        "readout": draw(st.sampled_from(["linear", "tanh", "maxout"])),
        "readout_size": draw(st.sampled_from([None, 5])),
        "readout_embedding": draw(st.booleans()),
        "readout_context": draw(st.booleans()),
        "readout_state": draw(st.sampled_from(["current", "current", "previous"])),
        "output_bias": draw(st.booleans()),
        "tie_word_embeddings": draw(st.booleans()),
        "share_encoder_decoder_embeddings": draw(st.booleans()),
        "embedding_activation": draw(st.sampled_from(["none", "relu"])),
        "decoder_recurrence": draw(st.sampled_from(["auto", "auto", "loop"])),
        "dropout": 0.3,
        "recurrent_dropout": draw(st.sampled_from([0.0, 0.2])),
        "weight_drop": draw(st.sampled_from([0.0, 0.2])),
        "zoneout": draw(st.sampled_from([0.0, 0.0, 0.2])),
        "zoneout_cell": draw(st.sampled_from([None, None, 0.4])),
        "word_dropout": 0.1,
        "word_dropout_unit": draw(st.sampled_from(["token", "type"])),
        "variational_dropout": draw(st.booleans()),
        "feature_token_ids": draw(st.sampled_from([None, None, [4, 7]])),
    }
    if options["cell_type"] == "gru":
        options["gru_reset"] = draw(st.sampled_from(["after", "before"]))
    if options["bidirectional"] == "none":
        options["reverse_source"] = draw(st.booleans())
    if options["context"] == "every_step":
        options["context_size"] = draw(st.sampled_from([None, 3]))
        options["context_layers"] = draw(st.sampled_from(["first", "all"]))
    if options["context"] == "attention":
        options |= draw(attention(options["decoder_layers"]))
    while True:
        try:
            return tiny_model(tiny_config(**options), seed=draw(st.integers(0, 99)))
        except ConfigError as refused:
            # The message begins with a field that does not go with the others: it goes back to its default.
            field = str(refused).split("=")[0]
            if options.pop(field, None) is None:
                raise


@st.composite
def attention(draw: st.DrawFn, layers: int) -> dict[str, Any]:
    """Options that need attention."""
    kinds = ["additive", "dot", "general", "location", "multi_head", "multi_head_additive", "normed_additive"]
    options = {
        "attention_type": draw(st.sampled_from([*kinds, "scaled_dot"])),
        "attention_order": draw(st.sampled_from(["after_cell", "before_cell"])),
        "attention_layer": draw(st.sampled_from(["top", "bottom"])),
        "attention_window": draw(st.sampled_from(["global", "global", "local_m", "local_p"])),
        "attention_window_size": draw(st.integers(1, 3)),
        "context_layers": draw(st.sampled_from(["first", "all"])),
        "attention_normalization": draw(st.sampled_from(["softmax", "softmax", "sparsemax", "entmax"])),
        "attention_alignment": draw(st.sampled_from(["soft", "soft", "hard", "monotonic", "sampled"])),
        "context_gate": draw(st.sampled_from(["none", "none", "source", "target", "both", "scalar"])),
        "coverage_loss": draw(st.sampled_from([0.0, 0.0, 0.5])),
        "copy_mechanism": draw(st.booleans()),
    }
    if options["attention_type"].endswith("additive") and options["attention_type"] != "multi_head_additive":
        options["coverage"] = draw(st.sampled_from(["none", "sum", "gru"]))
    if options["attention_normalization"] == "entmax":
        options["entmax_learned"] = draw(st.booleans())
    if options["attention_type"].startswith("multi_head"):
        options["num_attention_heads"] = draw(st.sampled_from([1, 2]))
    if options["attention_type"] == "location":
        options["max_source_positions"] = 6
    if options["attention_order"] == "after_cell":
        options["input_feeding"] = draw(st.booleans())
    return options


sentence = st.lists(st.integers(3, 10), min_size=0, max_size=4).map(lambda words: [*words, END])
pairs = st.lists(st.tuples(sentence, sentence), min_size=1, max_size=3)
Pairs = list[tuple[list[int], list[int]]]


def inputs(rows: Pairs, *, left: bool = False) -> dict[str, Tensor]:
    sources, targets = zip(*rows, strict=True)
    return {
        "input_ids": pad(list(sources), left=left),
        "attention_mask": mask(list(sources), left=left),
        "decoder_input_ids": pad(list(targets)),
    }


@quickly
@given(models(), pairs)
def test_forward_and_backward(model: Model, rows: Pairs) -> None:
    """Finite, and in training mode with dropout too."""
    given_ = inputs(rows)
    labels = given_["decoder_input_ids"].masked_fill(given_["decoder_input_ids"] == PAD, -100)
    actual = model(input_ids=given_["input_ids"], attention_mask=given_["attention_mask"], labels=labels)
    assert actual.loss.isfinite() and actual.logits.isfinite().all()
    model.train()
    loss = model(input_ids=given_["input_ids"], attention_mask=given_["attention_mask"], labels=labels).loss
    loss.backward()
    assert loss.isfinite()
    found = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert all(gradient.isfinite().all() for gradient in found)
    assert model.lm_head.weight.grad is not None


@quickly
@given(models(), pairs)
def test_the_fused_path_equals_the_loop(model: Model, rows: Pairs) -> None:
    """Logits and every gradient, in training mode without dropout."""
    model.config.update(dict.fromkeys(("dropout", "recurrent_dropout", "word_dropout"), 0.0))
    for module in model.modules():
        if hasattr(module, "recurrent_dropout"):
            module.recurrent_dropout, module.weight_drop, module.zoneout = 0.0, 0.0, None
    actual = []
    for path in ("auto", "loop"):
        model.config.decoder_recurrence = path
        model.train().zero_grad()
        torch.manual_seed(0)  # a sampled attention draws
        logits = model(**inputs(rows)).logits
        (logits * torch.arange(logits.numel()).view_as(logits).sin()).sum().backward()
        gradients = {
            name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None and p.grad.any()
        }
        actual.append((logits, gradients))
    torch.testing.assert_close(actual[0], actual[1])


@quickly
@given(models(), pairs, st.integers(0, 2))
def test_frozen_weights_leave_the_other_gradients_alone(model: Model, rows: Pairs, third: int) -> None:
    actual = []
    for patterns in ([], [name for number, (name, _) in enumerate(model.named_parameters()) if number % 3 == third]):
        freeze(model, patterns)
        model.zero_grad()
        logits = model(**inputs(rows)).logits
        (logits * torch.arange(logits.numel()).view_as(logits).sin()).sum().backward()
        actual.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    assert not actual[1].keys() & set(patterns)
    torch.testing.assert_close(actual[1], {name: gradient for name, gradient in actual[0].items() if name in actual[1]})
    assert actual[0].keys() - set(patterns) == actual[1].keys()


@quickly
@given(models(), pairs)
def test_resizing_keeps_the_scores_of_old_words(model: Model, rows: Pairs) -> None:
    size = model.config.vocab_size

    def scores() -> tuple[Tensor, Any, Any]:
        """What the softmax reads, what a model that copies mixes with it, and what hard attention sums."""
        actual = model.model(**inputs(rows))
        read = actual.last_hidden_state
        if actual.alignment is not None:  # the output layer reads each source position in the place of the context
            read = torch.ones_like(model.lm_head.weight[:1])
        return model.lm_head(read)[..., :size], actual.copying, actual.alignment

    with torch.no_grad():
        before = scores()
        grow_tables(model, source_vocab_size=model.config.source_vocab_size + 2, vocab_size=size + 2)
        torch.testing.assert_close(scores(), before)


@quickly
@given(models(), pairs)
def test_word_by_word_equals_the_sentence(model: Model, rows: Pairs) -> None:
    """One step at a time with the state in a cache, as in `generate()`."""
    given_, cache, logits = inputs(rows), RnnSeq2SeqCache(), []
    whole = model(**given_, output_attentions=True)
    words = given_.pop("decoder_input_ids")
    for step in words.split(1, 1):
        logits.append(model(**given_, decoder_input_ids=step, cache=cache, use_cache=True).logits)
        given_ = {}
    torch.testing.assert_close(torch.cat(logits, 1), whole.logits)
    torch.testing.assert_close(cache.states, whole.cache.states)


@quickly
@given(models(), pairs)
def test_a_row_of_a_batch_equals_the_row_alone(model: Model, rows: Pairs) -> None:
    """With padding of the source at any place, and any words after the end of the target."""
    if model.config.attention_type == "location" and max(len(source) for source, _ in rows) > 6:
        reject()
    right, left = model(**inputs(rows)).logits, model(**inputs(rows, left=True)).logits
    for number, row in enumerate(rows):
        alone = model(**inputs([row])).logits[0]
        torch.testing.assert_close(right[number, : len(alone)], alone)
        torch.testing.assert_close(left[number, : len(alone)], alone)


@quickly
@given(models(), pairs)
def test_draws_of_a_sentence_score_as_each_alone(model: Model, rows: Pairs) -> None:
    """As in sequence objectives: samples share the encoder's output, and finished ones leave the batch."""
    given_ = inputs(rows)
    labels = given_["decoder_input_ids"].masked_fill(given_["decoder_input_ids"] == PAD, -100)
    source = Source.read(model, given_["input_ids"], given_["attention_mask"])
    candidates = Candidates.of(labels, draw_targets(model, source, 2, 4))
    actual = log_probabilities(model, source, candidates.labels, candidates.sentence)
    for number, sentence_ in enumerate(candidates.sentence.tolist()):
        expected = candidates.labels[number][candidates.labels[number] != -100].unsqueeze(0)
        alone = model(input_ids=torch.tensor([rows[sentence_][0]]), labels=expected).loss * expected.shape[1]
        torch.testing.assert_close(actual[number].to(alone.dtype), -alone)


@quickly
@given(models(), pairs)
def test_padding_of_the_target_keeps_the_state(model: Model, rows: Pairs) -> None:
    """On the left, as for prompts: scores and final state of each row are those of the row alone."""
    targets = [target for _, target in rows]
    given_ = inputs(rows) | {"decoder_input_ids": pad(targets, left=True)}
    actual = model(**given_, decoder_attention_mask=mask(targets, left=True))
    for number, row in enumerate(rows):
        alone = model(**inputs([row]))
        torch.testing.assert_close(actual.logits[number, -len(row[1]) :], alone.logits[0])
        for here, there in zip(actual.cache.state.tensors(), alone.cache.state.tensors(), strict=True):
            # Coverage has a place for each source word, padding included.
            real = tuple(slice(width) for width in there[0].shape)
            torch.testing.assert_close(here[number][real], there[0])


@quickly
@given(models(), pairs)
def test_generation_with_and_without_cache_and_beams(model: Model, rows: Pairs) -> None:
    given_ = {name: value for name, value in inputs(rows).items() if name != "decoder_input_ids"}
    for search in ({}, {"num_beams": 2}):
        cached = model.generate(**given_, **search, max_new_tokens=5)
        assert torch.equal(model.generate(**given_, **search, max_new_tokens=5, use_cache=False), cached)


@quickly
@given(models(), pairs)
def test_a_loaded_model_is_equal(model: Model, rows: Pairs) -> None:
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        loaded = Model.from_pretrained(folder, dtype=torch.float64)
    fields = config_fields()
    assert {name: getattr(loaded.config, name) for name in fields} == {
        name: getattr(model.config, name) for name in fields
    }
    torch.testing.assert_close(loaded.state_dict(), model.state_dict(), rtol=0, atol=0)
    # The address of a tensor decides how the last digits are rounded.
    torch.testing.assert_close(loaded(**inputs(rows)).logits, model(**inputs(rows)).logits)

"""Classifiers: the equations of Lin 2017 and Yang 2016, padding of words and sentences, saving, what is refused."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, BertConfig, BertModel, ViTConfig

from hf_rnn_seq2seq import ConfigError, RnnClassifierConfig, RnnClassifierModel, RnnForSequenceClassification
from hf_rnn_seq2seq.model.modeling_rnn_classifier import hop_penalty
from hf_rnn_seq2seq.model.presets import CLASSIFIER_PRESETS
from tests.helpers import classifier_reference
from tests.helpers.models import SMALL_BERT, mask, pad, randomize
from tests.model.test_remote_code import check_loaded_elsewhere

STOP = 9  # the token that ends a sentence
TEXTS = [[5, 7, 3, 2], [4, 6, 8, 3, 10, 2], [3, 2]]
# Three sentences; one that is empty between two; one without a token at its end; one that begins with an empty one.
DOCUMENTS = [[5, 7, STOP, 3, STOP, 2, 4, 6, STOP], [4, STOP, STOP, 6, 8], [3, 2, 5], [STOP, 3, STOP]]
KINDS: dict[str, dict[str, Any]] = {
    "one hop": {"cell_type": "gru"},
    "hops": {"attention_hops": 3, "classifier_size": 5, "encoder_layers": 2},
    "max": {"pooling": "max", "bidirectional": "first", "encoder_layers": 2},
    "mean": {"pooling": "mean", "bidirectional": "none", "reverse_source": True},
    "last": {"pooling": "last", "bidirectional": "alternating", "encoder_layers": 2},
    "last, one way": {"pooling": "last", "bidirectional": "none", "cell_type": "rnn_tanh"},
    "documents": {"sentence_token_id": STOP, "cell_type": "gru"},
    "documents, hops": {"sentence_token_id": STOP, "attention_hops": 2},
    "documents, last": {"sentence_token_id": STOP, "pooling": "last"},
}


def build(**options: Any) -> RnnForSequenceClassification:
    sizes = {"vocab_size": 11, "embedding_size": 5, "hidden_size": 4, "attention_size": 3, "num_labels": 3}
    if options.get("pooling", "attention") != "attention":
        del sizes["attention_size"]
    model = RnnForSequenceClassification(RnnClassifierConfig(**{**sizes, **options})).to(torch.float64).eval()
    randomize(model)
    return model


def texts_of(model: RnnForSequenceClassification) -> list[list[int]]:
    return TEXTS if model.config.sentence_token_id is None else DOCUMENTS


@pytest.mark.parametrize("kind", KINDS)
def test_outputs_and_gradients_equal_the_equations(kind: str) -> None:
    model = build(**KINDS[kind])
    texts = texts_of(model)
    actual = model(pad(texts), mask(texts), output_attentions=True)
    weights = {name: value.detach().clone().requires_grad_() for name, value in model.named_parameters()}
    found = [classifier_reference.classify(model.config, weights, text) for text in texts]
    torch.testing.assert_close(actual.logits, torch.stack([logits for logits, _, _ in found]))
    actual.logits.square().sum().backward()
    sum(logits.square().sum() for logits, _, _ in found).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, weights[name].grad, msg=lambda text, name=name: f"{name}: {text}")
    if model.config.pooling != "attention":
        assert actual.attentions is None
        return
    for number, (text, (_, words, above)) in enumerate(zip(texts, found, strict=True)):
        ends = [place for place, word in enumerate(text) if word == STOP and above]
        places = [place for place in range(len(text)) if place not in ends]
        expected = torch.zeros_like(actual.attentions[0][number])
        for hop in range(model.config.attention_hops):
            flat = list(itertools.chain(*(rows[hop] for rows in words)))
            expected[hop, places] = torch.stack(flat)
        torch.testing.assert_close(actual.attentions[0][number], expected)
        if above:
            parts = classifier_reference.sentences(text, STOP)
            expected = torch.zeros_like(actual.attentions[1][number])
            expected[:, [place for place, part in enumerate(parts) if part]] = torch.stack(
                [torch.stack(row) for row in above]
            )
            torch.testing.assert_close(actual.attentions[1][number], expected)


@pytest.mark.parametrize("kind", ["hops", "documents, hops"])
def test_the_penalty_is_in_the_loss_of_training_only(kind: str) -> None:
    model = build(**KINDS[kind], hop_penalty=0.7)
    texts, labels = texts_of(model), torch.tensor([2, 0, 1, 0])[: len(texts_of(model))]
    weights = {name: value.detach().clone().requires_grad_() for name, value in model.named_parameters()}
    found = [classifier_reference.classify(model.config, weights, text) for text in texts]
    levels = [rows for _, words, above in found for rows in (words, [above]) if rows and rows[0]]
    expected = sum(sum(map(classifier_reference.penalty, rows)) / len(rows) for rows in levels) / len(texts)
    cross_entropy = -torch.stack([x[0].log_softmax(0)[y] for x, y in zip(found, labels, strict=True)]).mean()
    torch.testing.assert_close(model(pad(texts), mask(texts), labels=labels).loss, cross_entropy)
    output = model.train()(pad(texts), mask(texts), labels=labels, output_figures=True)
    torch.testing.assert_close(output.loss, cross_entropy + 0.7 * expected)
    torch.testing.assert_close(
        output.figures, torch.stack([expected * len(texts), torch.tensor(1.0 * len(texts))])[None]
    )
    output.loss.backward()
    (cross_entropy + 0.7 * expected).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, weights[name].grad)


def test_the_penalty_by_hand() -> None:
    """0 where each hop has a word of its own, r (r - 1) where all have the same; nothing read counts 0."""
    apart, same = torch.eye(3, 5).unsqueeze(0), torch.eye(1, 5).expand(1, 3, 5)
    real, none = torch.ones(1, 5, dtype=torch.bool), torch.zeros(1, 5, dtype=torch.bool)
    assert hop_penalty(apart, real) == 0
    assert hop_penalty(same, real) == 3 * 2
    assert hop_penalty(torch.cat([apart, same]), torch.cat([real, real])) == 3, "the mean over the batch"
    assert hop_penalty(torch.cat([same, torch.zeros(1, 3, 5)]), torch.cat([real, none])) == 3
    # Two hops, each half on the same two words: A A^T is 0.5 everywhere, so 4 times 0.25.
    assert hop_penalty(torch.full((1, 2, 2), 0.5), torch.ones(1, 2, dtype=torch.bool)) == 1


def spread(text: list[int], width: int, seed: int) -> tuple[list[int], list[int]]:
    """A text with padding anywhere between its words, and its mask."""
    places = sorted(torch.randperm(width, generator=torch.Generator().manual_seed(seed))[: len(text)].tolist())
    ids, real = [0] * width, [0] * width
    for place, word in zip(places, text, strict=True):
        ids[place], real[place] = word, 1
    return ids, real


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_alone_is_the_text_in_a_batch_wherever_the_padding_is(kind: str) -> None:
    model = build(**KINDS[kind]).requires_grad_(False)
    texts = texts_of(model)
    holes = [spread(text, 12, seed) for seed, text in enumerate(texts)]
    batches = [(pad(texts), mask(texts)), (pad(texts, left=True), mask(texts, left=True))]
    batches += [(torch.tensor([ids for ids, _ in holes]), torch.tensor([real for _, real in holes]))]
    batches += [(batches[0][0], None)]
    for ids, real in batches:
        actual = model(ids, real, output_attentions=True)
        kept = ids > 0 if real is None else real.bool()
        for row, text in enumerate(texts):
            alone = model(torch.tensor([text]), output_attentions=True)
            torch.testing.assert_close(actual.logits[row], alone.logits[0])
            if actual.attentions is None:
                continue
            weights = actual.attentions[0][row]
            torch.testing.assert_close(weights[:, kept[row]], alone.attentions[0][0])
            assert not weights[:, ~kept[row]].any(), "exactly zero at padding"
            for here, there in zip(actual.attentions[1:], alone.attentions[1:], strict=True):
                count = there.shape[-1]
                torch.testing.assert_close(here[row, :, :count], there[0])
                assert not here[row, :, count:].any()


def test_a_document_is_its_sentences_alone_and_the_second_level() -> None:
    model = build(sentence_token_id=STOP, attention_hops=2).requires_grad_(False)
    for document in DOCUMENTS:
        parts = [part for part in classifier_reference.sentences(document, STOP) if part]
        vectors = [model.model.words(input_ids=torch.tensor([part]))[1] for part in parts]
        _, expected, _ = model.model.sentences(inputs_embeds=torch.stack(vectors, 1))
        actual = model.model(torch.tensor([document]), output_attentions=True)
        torch.testing.assert_close(actual.pooler_output, expected)
        words = actual.attentions[0][0].sum(-1)
        torch.testing.assert_close(words, torch.full_like(words, float(len(parts))), msg="each sentence sums to 1")
        torch.testing.assert_close(actual.attentions[1][0].sum(-1), torch.ones(2, dtype=torch.float64))


def test_the_order_of_sentences_matters_and_empty_ones_do_not() -> None:
    model = build(sentence_token_id=STOP).requires_grad_(False)
    first, second, third, fourth = (
        model(torch.tensor([ids])).logits
        for ids in ([5, 7, STOP, 3], [3, STOP, 5, 7], [STOP, 5, 7, STOP, STOP, 3, STOP, STOP], [5, 7, STOP, 3, STOP])
    )
    assert (first - second).abs().max() > 1e-3
    torch.testing.assert_close(first, third)
    torch.testing.assert_close(first, fourth)


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_without_words_has_the_vector_0(kind: str) -> None:
    model = build(**KINDS[kind])
    empty = [[0, 0, 0], [STOP, STOP, 0]] if model.config.sentence_token_id else [[0, 0, 0]]
    for rows in (empty, [*empty, [4, 6, 5]]):
        output = model.model(torch.tensor(rows), output_attentions=True)
        assert not output.pooler_output[: len(empty)].any()
        assert all(not weights[: len(empty)].any() for weights in output.attentions or ())
        output.pooler_output.sum().backward()
        assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("kind", ["hops", "documents", "raw", "raw documents"])
def test_over_an_encoder_of_transformers(kind: str, frozen: bool) -> None:
    raw = {"encoder_layers": 0, "hidden_size": None, "encoder_hidden_size": None}
    options = {**KINDS, "raw": raw, "raw documents": raw | {"sentence_token_id": STOP}}[kind]
    bert = BertConfig(vocab_size=12, **SMALL_BERT)
    model = build(**options, vocab_size=None, embedding_size=None, encoder=bert, freeze_encoder=frozen)
    assert model.config.vocab_size == 12 and model.config.embedding_size == 4
    plain = BertModel(bert, add_pooling_layer=False).double().eval()
    plain.load_state_dict(model.model.encoder.foreign.model.state_dict())
    model.train()
    output = model(pad(TEXTS), mask(TEXTS), labels=torch.tensor([0, 1, 2]))
    output.loss.backward()
    trained = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert any(".foreign." in name for name in trained) != frozen
    if not model.config.sentence_token_id:
        states = [plain(torch.tensor([text])).last_hidden_state[0] for text in TEXTS]
        stored = torch.nn.utils.rnn.pad_sequence(states, batch_first=True)
        whole = model.eval()(pad(TEXTS), mask(TEXTS)).logits
        torch.testing.assert_close(model(inputs_embeds=stored, attention_mask=mask(TEXTS)).logits, whole)
    else:
        with pytest.raises(ValueError, match="inputs_embeds: sentence_token_id is found in input_ids"):
            model(inputs_embeds=torch.zeros(1, 2, 4))


@pytest.mark.parametrize("kind", ["documents, hops", "an encoder of transformers"])
def test_identical_without_the_package(kind: str, tmp_path: Path) -> None:
    encoder = {"encoder": BertConfig(vocab_size=12, **SMALL_BERT), "vocab_size": None, "embedding_size": None}
    model = build(**{**KINDS, "an encoder of transformers": encoder}[kind]).float()
    given = {"input_ids": pad(DOCUMENTS), "attention_mask": mask(DOCUMENTS)}
    check_loaded_elsewhere("AutoModelForSequenceClassification", model, given, tmp_path)
    for folder in ("checkpoint", "again"):
        files = {path.name for path in (tmp_path / folder).glob("*.py")}
        assert "modeling_rnn_classifier.py" in files and len(files) <= 12, sorted(files)


@pytest.mark.parametrize("kind", KINDS)
def test_saved_and_loaded_by_the_auto_classes(kind: str, tmp_path: Path) -> None:
    model = build(**KINDS[kind], id2label={0: "dog", 1: "cat", 2: "cow"}, label2id={"dog": 0, "cat": 1, "cow": 2})
    model.save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    texts = texts_of(model)
    assert type(loaded) is RnnForSequenceClassification
    assert (
        loaded.config.id2label[2] == "cow" and loaded.config.to_dict() == AutoConfig.from_pretrained(tmp_path).to_dict()
    )
    torch.testing.assert_close(loaded(pad(texts)).logits, model(pad(texts)).logits)
    base = AutoModel.from_pretrained(tmp_path)
    torch.testing.assert_close(base(pad(texts)).pooler_output, model.model(pad(texts)).pooler_output)


@pytest.mark.parametrize("kind", [RnnForSequenceClassification, RnnClassifierModel])
def test_a_classifiers_vocabulary_grows(kind: type, tmp_path: Path) -> None:
    model = kind(RnnClassifierConfig(encoder=BertConfig(vocab_size=12, **SMALL_BERT))).eval()
    model.resize_token_embeddings(15)
    model.save_pretrained(tmp_path)
    again = kind.from_pretrained(tmp_path)
    ids = torch.tensor([[3, 14, 13]])
    torch.testing.assert_close(again(ids)[0], model(ids)[0])


def test_texts_that_do_not_count_are_left_out_of_the_loss() -> None:
    model = build()
    ids = torch.tensor([[4, 5, 6], [7, 8, 3]])
    labels = torch.tensor([1, -100])
    expected = model(ids[:1], labels=labels[:1]).loss
    torch.testing.assert_close(model(ids, labels=labels).loss, expected)
    loss = model(ids, labels=torch.tensor([-100, -100])).loss
    loss.backward()
    assert loss.item() == 0


def test_losses_of_other_problems() -> None:
    number, several = build(num_labels=1), build()
    with torch.no_grad():
        targets = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)
        expected = (number(pad(TEXTS)).logits[:, 0] - targets).square().mean()
        torch.testing.assert_close(number(pad(TEXTS), labels=targets).loss, expected)
        targets = torch.tensor([[1.0, 0, 1], [0, 0, 0], [1, 1, 1]], dtype=torch.float64)
        p = several(pad(TEXTS)).logits.sigmoid()
        expected = -(targets * p.log() + (1 - targets) * (1 - p).log()).mean()
        torch.testing.assert_close(several(pad(TEXTS), labels=targets).loss, expected)
    assert several.config.problem_type is None, "the configuration is left as it was"


REFUSED = [
    (
        {"pooling": "max", "attention_hops": 2},
        "attention_hops=2: only pooling='attention' reads it; must be 1",
    ),
    (
        {"pooling": "mean", "hop_penalty": 1.0},
        "hop_penalty=1.0: only pooling='attention' reads it; must be 0",
    ),
    (
        {"pooling": "last", "attention_size": 7},
        "attention_size=7: only pooling='attention' reads it; must be None",
    ),
    ({"hop_penalty": -1}, "hop_penalty=-1: must be 0 or more"),
    ({"attention_hops": 0}, "attention_hops=0: must be greater than 0"),
    ({"classifier_size": 0}, "classifier_size=0: must be greater than 0"),
    ({"sentence_token_id": 0}, "sentence_token_id=0: is pad_token_id; must be another token"),
    ({"sentence_token_id": 8000}, "sentence_token_id=8000: must be in [0, vocab_size=8000)"),
    (
        {"hidden_size": 100, "encoder_hidden_size": 30},
        "hidden_size=100: must be 60, encoder_hidden_size=30 times 2 directions; leave it out",
    ),
    ({"num_beams": 4}, "'num_beams' is not a field of RnnClassifierConfig"),
    (
        {"attention_type": "dot"},
        "'attention_type' is not a field of RnnClassifierConfig; did you mean 'attention_size'?",
    ),
    ({"encoder_layers": 0}, "encoder_layers=0: must be greater than 0"),
    ({"encoder": BertConfig(), "vocab_size": 9}, "vocab_size=9: that of encoder='bert' is 30522; leave it out"),
    ({"encoder": BertConfig(), "embedding_size": 9}, "embedding_size=9: that of encoder='bert' is 768; leave it out"),
    ({"encoder": BertConfig(), "pad_token_id": 3}, "pad_token_id=3: that of encoder='bert' is 0; leave it out"),
    (
        {"encoder": BertConfig(), "word_dropout": 0.1},
        "word_dropout=0.1: not with encoder='bert', its words are its own; must be 0",
    ),
    (
        {"encoder": ViTConfig()},
        "encoder='vit': reads pictures; a classifier of texts needs an encoder that reads token ids",
    ),
    (
        {"encoder": BertConfig(), "encoder_layers": 0, "cell_type": "gru"},
        "cell_type='gru': encoder_layers=0 has no recurrent layer; must be 'lstm'",
    ),
    (
        {"encoder": BertConfig(), "encoder_layers": 0, "pooling": "last"},
        "pooling='last': encoder_layers=0 has no recurrent layer, whose last state this is",
    ),
    ({"pooling": "sum"}, "pooling='sum': must be one of 'attention', 'max', 'mean', 'last'"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED, ids=[message[:40] for _, message in REFUSED])
def test_what_cannot_work_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        RnnClassifierConfig(**options)
    assert str(caught.value) == message


def test_presets_have_the_sizes_of_the_papers() -> None:
    assert set(CLASSIFIER_PRESETS) == {"lin2017", "yang2016"}
    lin = RnnClassifierConfig.from_preset("lin2017", num_labels=5)
    assert (lin.hidden_size, lin.attention_size, lin.attention_hops, lin.classifier_size) == (600, 350, 30, 3000)
    assert (lin.hop_penalty, lin.num_labels, lin.cell_type) == (1.0, 5, "lstm")
    yang = RnnClassifierConfig.from_preset("yang2016", sentence_token_id=4, vocab_size=20)
    assert (yang.embedding_size, yang.hidden_size, yang.attention_size, yang.attention_hops) == (200, 100, 100, 1)
    with pytest.raises(ConfigError, match="preset='bahdanau2014': must be one of lin2017, yang2016"):
        RnnClassifierConfig.from_preset("bahdanau2014")
    for preset in CLASSIFIER_PRESETS.values():
        assert "Departs:" in preset.__doc__ and "from memory" in preset.__doc__
    over = RnnClassifierConfig.from_preset("lin2017", encoder=BertConfig(**SMALL_BERT))
    assert over.embedding_size == 4


@st.composite
def models(draw: st.DrawFn) -> RnnForSequenceClassification:
    """A model of a random valid config; dropout is set and has no effect in evaluation."""
    options: dict[str, Any] = {
        "cell_type": draw(st.sampled_from(["lstm", "gru", "rnn_tanh", "rnn_relu"])),
        "encoder_layers": draw(st.integers(1, 3)),
        "bidirectional": draw(st.sampled_from(["all", "first", "none", "alternating"])),
        "residual_start": draw(st.sampled_from([None, None, 3])),
        "layer_norm": draw(st.booleans()),
        "encoder_transition_depth": draw(st.sampled_from([1, 1, 2])),
        "pooling": draw(st.sampled_from(["attention", "attention", "max", "mean", "last"])),
        "classifier_size": draw(st.sampled_from([None, 5])),
        "sentence_token_id": draw(st.sampled_from([None, STOP])),
        "dropout": 0.3,
        "variational_dropout": draw(st.booleans()),
        "recurrent_dropout": draw(st.sampled_from([0.0, 0.2])),
        "weight_drop": draw(st.sampled_from([0.0, 0.2])),
        "zoneout": draw(st.sampled_from([0.0, 0.2])),
        "word_dropout": 0.1,
        "word_dropout_unit": draw(st.sampled_from(["token", "type"])),
    }
    if options["pooling"] == "attention":
        options |= {"attention_hops": draw(st.integers(1, 3)), "hop_penalty": draw(st.sampled_from([0.0, 0.5]))}
    if options["cell_type"] == "gru":
        options["gru_reset"] = draw(st.sampled_from(["after", "before"]))
    if options["bidirectional"] == "none":
        options["reverse_source"] = draw(st.booleans())
    return build(**options)


@settings(suppress_health_check=[HealthCheck.too_slow], max_examples=20)
@given(models(), st.lists(st.lists(st.sampled_from([3, 4, 7, STOP]), min_size=1, max_size=6), min_size=1, max_size=4))
def test_any_configuration_reads_a_text_alone_as_in_a_batch_and_learns(
    model: RnnForSequenceClassification, texts: list[list[int]]
) -> None:
    ids: Tensor = pad(texts, left=True)
    whole = model(ids, output_attentions=True, output_hidden_states=True)
    for row, text in enumerate(texts):
        torch.testing.assert_close(whole.logits[row], model(torch.tensor([text])).logits[0])
    output = model.train()(ids, labels=torch.zeros(len(texts), dtype=torch.long), output_figures=True)
    output.loss.backward()
    # A maximum of many draws takes every unit from somewhere; a document without words takes none.
    missing = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert not missing or all(set(text) <= {STOP} for text in texts), missing
    assert torch.isfinite(output.loss)

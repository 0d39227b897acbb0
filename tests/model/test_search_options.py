"""The options that only the search has: ensembles, alignments, prefixes, phrases, shortlists, weights; its errors."""

import dataclasses
import gc
import json
import logging
import math
import random
import re
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import GenerationConfig

from hf_rnn_seq2seq import RnnSeq2SeqForConditionalGeneration, SearchError, SearchOutput
from hf_rnn_seq2seq.errors import DataError
from hf_rnn_seq2seq.generation.shortlist import Shortlist
from hf_rnn_seq2seq.model import search, search_step
from hf_rnn_seq2seq.model.fused_step import build_step
from hf_rnn_seq2seq.model.search_options import OWN, SearchOptions
from hf_rnn_seq2seq.run_directory import vocabulary_hash
from tests.helpers.checkpoints import tiny_tokenizer
from tests.helpers.decoding import WORDS, call, inputs, sentence, trained, translation
from tests.helpers.models import START, tiny_model

ROWS = [sentence(random.Random(number)) for number in range(24)]
BEAMS = {"num_beams": 4, "max_new_tokens": 12}
SEARCHES = {
    "greedy": {"max_new_tokens": 12},
    "beam": BEAMS,
    "gnmt": BEAMS | {"gnmt_alpha": 0.8, "coverage_penalty": 0.2},
}


def detailed(model: Any, rows: list[list[int]], **options: Any) -> SearchOutput:
    return model.search(**inputs(rows), return_dict_in_generate=True, **options)


def test_help_names_each_option_and_its_default() -> None:
    defaults = {field.name: field.default for field in dataclasses.fields(SearchOptions)}
    actual = dict(re.findall(r"\* `(\w+)` \(default: (.*?)\):", RnnSeq2SeqForConditionalGeneration.search.__doc__))
    assert actual == {name: repr(defaults[name]) for name in OWN}


# ---------------------------------------------------------------- scores, alignments, GNMT


@pytest.mark.parametrize("options", [{}, {"num_beams": 4}, {"num_beams": 4, "num_return_sequences": 3}])
def test_log_probabilities_and_alignments_are_those_of_a_forward_pass(options: dict[str, Any]) -> None:
    model, copies = trained(), options.get("num_return_sequences", 1)
    found = detailed(model, ROWS, max_new_tokens=12, return_alignments=True, **options)
    for position, length in enumerate(found.lengths.tolist()):
        source, ids = ROWS[position // copies], found.sequences[position, 1 : 1 + length]
        actual = model(input_ids=torch.tensor([source]), labels=ids[None], output_attentions=True)
        chosen = actual.logits[0].log_softmax(-1).gather(-1, ids[:, None]).sum()
        torch.testing.assert_close(found.log_probabilities[position], chosen, atol=1e-4, rtol=0)
        torch.testing.assert_close(
            found.alignments[position, :length, : len(source)], actual.cross_attentions[0][0, 0], atol=1e-5, rtol=0
        )
        assert not found.alignments[position, length:].any()
        torch.testing.assert_close(found.sequences_scores[position], chosen / length, atol=1e-4, rtol=0)


def test_scores_of_gnmt_follow_from_log_probability_and_attention() -> None:
    options = BEAMS | {"num_return_sequences": 4, "return_alignments": True}
    found = detailed(trained(), ROWS, gnmt_alpha=0.7, coverage_penalty=0.3, **options)
    plain = detailed(trained(), ROWS, **options)
    assert found.sequences.shape != plain.sequences.shape or not torch.equal(found.sequences, plain.sequences)
    for position, length in enumerate(found.lengths.tolist()):
        received = found.alignments[position, :, : len(ROWS[position // 4])].sum(0)
        expected = found.log_probabilities[position] / ((5 + length) / 6) ** 0.7
        expected = expected + 0.3 * received.clamp(max=1).log().sum()
        torch.testing.assert_close(found.sequences_scores[position], expected, atol=1e-4, rtol=0)


# ---------------------------------------------------------------- batches


@given(st.lists(st.integers(0, len(ROWS) - 1), min_size=1, max_size=9), st.sampled_from(list(SEARCHES)))
def test_other_rows_of_a_batch_never_change_an_output(chosen: list[int], name: str) -> None:
    alone = {number: call(trained(), [ROWS[number]], **SEARCHES[name])[0] for number in set(chosen)}
    together = call(trained(), [ROWS[number] for number in chosen], **SEARCHES[name])
    assert together == [alone[number] for number in chosen]


@pytest.mark.parametrize("rows", [1, 5, 24, 100])
def test_parts_of_similar_length_come_back_in_order(rows: int) -> None:
    for options in (SEARCHES["greedy"], BEAMS | {"num_return_sequences": 2}):
        whole = detailed(trained(), ROWS, return_alignments=True, **options)
        parts = detailed(trained(), ROWS, return_alignments=True, rows_per_batch=rows, **options)
        assert whole.sequences.tolist() == parts.sequences.tolist()
        for name in ("sequences_scores", "lengths", "alignments"):
            torch.testing.assert_close(getattr(parts, name), getattr(whole, name), atol=1e-5, rtol=0)


def test_parts_need_no_mask_and_no_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids = trained(), torch.tensor([row[:4] for row in ROWS if len(row) >= 4])
    whole = model.search(ids, **BEAMS)
    sizes: list[int] = []
    search_batch = search._search_batch

    def counted(step: Any, source: Any, prompt: torch.Tensor, *rest: Any) -> Any:
        sizes.append(len(prompt))
        return search_batch(step, source, prompt, *rest)

    monkeypatch.setattr(search, "_search_batch", counted)
    vectors, states = model.get_input_embeddings()(ids), model.get_encoder()(ids)
    for source in ({"input_ids": ids}, {"inputs_embeds": vectors}, {"encoder_outputs": states}):
        sizes.clear()
        assert model.search(**source, rows_per_batch=2, **BEAMS).tolist() == whole.tolist()
        assert max(sizes) == 2 and sum(sizes) == len(ids)


def test_a_length_penalty_of_none_is_the_default() -> None:
    model, given = trained(), {**inputs(ROWS[:2]), "max_new_tokens": 3}
    assert model.search(**given, length_penalty=None).tolist() == model.search(**given).tolist()


def test_a_default_in_another_object_is_not_set() -> None:
    model = trained()
    for options in ({"coverage_penalty": float("0"), "ensemble": []}, {"gnmt_alpha": None, "rows_per_batch": None}):
        assert model.search(**inputs(ROWS[:2]), do_sample=True, top_k=1, max_new_tokens=3, **options).shape[0] == 2


def test_beams_share_one_copy_of_the_source() -> None:
    step = build_step(trained())
    source = step.read(**inputs(ROWS))
    one, five = step.start(source, 1), step.start(source, 5)
    shapes = [[tensor.shape for tensor in state.source if tensor is not None] for state in (one, five)]
    assert shapes[0] == shapes[1] and {shape[0] for shape in shapes[0]} == {len(ROWS)}
    assert len(five.rows[0]) == 5 * len(one.rows[0])


class LargestTensor(TorchDispatchMode):
    """Records how many elements the largest result of any operation had."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = operation(*args, **(kwargs or {}))
        results = result if isinstance(result, (tuple, list)) else [result]
        self.elements = max([self.elements, *(part.numel() for part in results if isinstance(part, torch.Tensor))])
        return result


SCORES = {
    "fused": {},
    "fused GRU": {"cell_type": "gru", "input_feeding": False},
    "two layers": {"decoder_layers": 2},
    "before the cell": {"attention_order": "before_cell"},
    "additive": {"attention_type": "additive"},
    "additive heads": {"attention_type": "multi_head_additive", "num_attention_heads": 2},
}


@pytest.mark.parametrize("name", SCORES)
def test_memory_does_not_grow_with_beams_times_source(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is as large as the states of one source for each beam, which `generate()` holds."""
    monkeypatch.setattr(search_step, "IN_ONE_PIECE", 1000)
    model = tiny_model(dtype=torch.float32, hidden_size=12, vocab_size=16, **SCORES[name])
    rows, source, beams = 2, 150, 6
    ids = torch.randint(3, model.config.source_vocab_size, (rows, source))
    states = rows * source * model.config.encoder_output_size
    largest, found = {}, {}
    for way, decode in (("search", model.search), ("generate", model.generate)):
        with LargestTensor() as mode:
            found[way] = decode(input_ids=ids, num_beams=beams, max_new_tokens=4).tolist()
        largest[way] = mode.elements
    # The encoder's gates are four times as wide as its states; what grows with beams is narrower still.
    assert largest["search"] < beams * states <= largest["generate"]
    assert found["search"] == found["generate"]


# ---------------------------------------------------------------- ensembles


def test_an_ensemble_of_one_twice_is_the_model() -> None:
    model = trained()
    for options in SEARCHES.values():
        assert call(model, ROWS, ensemble=[model], **options) == call(model, ROWS, **options)


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}])
def test_an_ensemble_averages_log_probabilities(options: dict[str, Any]) -> None:
    """Different cells, seeds and sizes; the sums are made by hand from two forward passes."""
    models = [trained(), trained("gru", False, 120, seed=1)]
    found = detailed(models[0], ROWS, max_new_tokens=12, ensemble=models[1:], **options)
    differs = 0
    for row, length in enumerate(found.lengths.tolist()):
        ids, source = found.sequences[row, 1 : 1 + length], torch.tensor([ROWS[row]])
        logs = [model(input_ids=source, labels=ids[None]).logits[0].log_softmax(-1) for model in models]
        average = (logs[0] + logs[1]) / 2
        torch.testing.assert_close(
            found.log_probabilities[row], average.gather(-1, ids[:, None]).sum(), atol=1e-4, rtol=0
        )
        if not options:
            assert average.argmax(-1).tolist() == ids.tolist()
        differs += ids.tolist() != call(models[0], [ROWS[row]], max_new_tokens=12, **options)[0]
    assert differs, "the second model never mattered"


def test_members_must_go_together() -> None:
    with pytest.raises(SearchError, match=r"ensemble: member 1 has vocab_size=11, the first model 24"):
        call(trained(), ROWS, ensemble=[tiny_model()], max_new_tokens=3)
    with pytest.raises(SearchError, match=r"ensemble: 1 member\(s\) in training mode"):
        call(trained(), ROWS, ensemble=[tiny_model().train()], max_new_tokens=3)


# ---------------------------------------------------------------- prefixes, phrases, shortlists


@pytest.mark.parametrize("name", SEARCHES)
def test_hypotheses_begin_with_their_prefix(name: str) -> None:
    prefixes = [[(5 * number) % 20 + 4] * (number % 4) for number in range(len(ROWS))]
    found = call(trained(), ROWS, prefix=prefixes, **SEARCHES[name])
    assert all(row[: len(prefix)] == prefix for row, prefix in zip(found, prefixes, strict=True))
    # A forced beginning read as a prompt leads to the same greedy continuation.
    if name == "greedy":
        for row, prefix, source in zip(found, prefixes, ROWS, strict=True):
            prompt = torch.tensor([[1, *prefix]])
            expected = trained().generate(**inputs([source]), decoder_input_ids=prompt, max_new_tokens=12 - len(prefix))
            assert row == [word for word in expected[0, 1:].tolist() if word]


def test_every_hypothesis_begins_with_a_prefix_that_is_as_long_as_it_may_be() -> None:
    found = trained().search(**inputs(ROWS[:1]), num_beams=3, num_return_sequences=3, prefix=[[5, 9]], max_new_tokens=2)
    assert found[:, 1:].tolist() == [[5, 9]] * 3


def test_a_prompt_is_continued_as_generate_does() -> None:
    prompt = torch.tensor([[1, 9, 5]]).expand(len(ROWS), -1)
    for options in ({"max_new_tokens": 6}, {"max_length": 8, "num_beams": 3}):
        for given_prompt in (prompt, prompt[:, 1:]):  # generate() puts the start token before it
            expected = trained().generate(**inputs(ROWS), decoder_input_ids=given_prompt, **options)
            found = trained().search(**inputs(ROWS), decoder_input_ids=given_prompt, **options)
            assert found.tolist() == expected.tolist()


def contains(row: list[int], phrase: list[int]) -> bool:
    return any(row[start : start + len(phrase)] == phrase for start in range(len(row)))


@pytest.mark.parametrize("returned", [1, 3])
def test_every_hypothesis_contains_the_phrases(returned: int) -> None:
    generator = random.Random(3)
    rows = ROWS[:8]
    phrases = [
        [
            [generator.randrange(4, WORDS) for _ in range(generator.randint(1, 3))]
            for _ in range(generator.randint(0, 3))
        ]
        for _ in rows
    ]
    options = {"num_beams": 3, "num_return_sequences": returned, "max_new_tokens": 14}
    found = detailed(trained(), rows, must_contain=phrases, **options)
    for position, length in enumerate(found.lengths.tolist()):
        row = found.sequences[position, 1 : 1 + length].tolist()
        assert row[-1] == 2 and 2 not in row[:-1], "it ends"
        assert all(contains(row, phrase) for phrase in phrases[position // returned]), (
            row,
            phrases[position // returned],
        )
    for row, own in enumerate(phrases):
        if not own and returned == 1:
            plain = call(trained(), [rows[row]], num_beams=3, max_new_tokens=14)
            assert found.sequences[row, 1 : 1 + int(found.lengths[row])].tolist() == plain[0]


def test_phrases_that_occur_anyway_change_nothing() -> None:
    rows = [row for row in ROWS if call(trained(), [row], **BEAMS)[0] == translation(row)][:6]
    assert rows, "the model has learned something"
    phrases = [[[word] for word in dict.fromkeys(translation(row)[:-1])] for row in rows]
    assert call(trained(), rows, must_contain=phrases, **BEAMS) == [translation(row) for row in rows]


@pytest.mark.parametrize("name", SEARCHES)
def test_a_shortlist_of_everything_changes_nothing_and_a_short_one_is_kept(name: str) -> None:
    model, options = trained(), SEARCHES[name]
    assert call(model, ROWS, shortlist=range(WORDS), **options) == call(model, ROWS, **options)
    lists = [[4 + (number + k) % 20 for k in range(9)] for number in range(len(ROWS))]
    found = call(model, ROWS, shortlist=lists, **options)
    assert all({*row} <= {*words, 2} for row, words in zip(found, lists, strict=True))
    for number in (0, 7):  # a sentence's own list counts, not what others may say
        assert call(model, [ROWS[number]], shortlist=lists[number], **options) == [found[number]]


@pytest.mark.parametrize("options", [{}, {"num_beams": 4}, {"num_beams": 4, "num_beam_groups": 2}])
def test_words_of_other_sentences_change_nothing(options: dict[str, Any]) -> None:
    """Neither their shortlists, which an ensemble would normalize over, nor the beginnings that they must have."""
    other = tiny_model(dtype=torch.float32, seed=5, vocab_size=24, source_vocab_size=24)
    lists = [[word for word in range(4, 24) if word % (2 + number % 3)] for number in range(6)]
    options = options | {"ensemble": [other], "max_new_tokens": 8}
    found = detailed(trained(), ROWS[:6], shortlist=lists, **options)
    prefixes = [[5], [], [7], [], [], []]
    begun = detailed(trained(), ROWS[:6], shortlist=range(8, 20), prefix=prefixes, **options)
    for number in range(6):
        alone = detailed(trained(), ROWS[number : number + 1], shortlist=lists[number : number + 1], **options)
        torch.testing.assert_close(found.log_probabilities[number], alone.log_probabilities[0])
        row = begun.sequences[number, 1:].tolist()
        assert row[: len(prefixes[number])] == prefixes[number]
        assert {*row[len(prefixes[number]) :]} <= {0, 2, *range(8, 20), *prefixes[number]}


def test_alignments_stand_at_the_columns_of_the_source() -> None:
    padded = torch.tensor([[0] * 4 + ROWS[0], [0] * (4 + len(ROWS[0]) - 2) + ROWS[1][:2]])
    given = {"input_ids": padded, "attention_mask": (padded != 0).long(), "return_alignments": True}
    whole, parts = (trained().search(**given, max_new_tokens=5, rows_per_batch=rows) for rows in (None, 1))
    assert parts.alignments.shape == (*whole.sequences[:, 1:].shape, padded.shape[1])
    torch.testing.assert_close(parts.alignments, whole.alignments)


def test_8_bit_weights_are_made_of_float32() -> None:
    model = tiny_model(dtype=torch.bfloat16)
    with pytest.raises(SearchError, match="weight_type='int8': the model is in torch.bfloat16"):
        model.search(torch.tensor([[5, 6, 2]]), weight_type="int8", max_new_tokens=3)


def test_a_shortlist_is_learned_from_pairs(tmp_path: Any) -> None:
    generator, tokenizer = random.Random(5), tiny_tokenizer("word")
    sources = [sentence(generator) for _ in range(400)]
    shortlist = Shortlist.learn(
        sources, [translation(row) for row in sources], per_word=3, frequent=1, vocabulary=vocabulary_hash(tokenizer)
    )
    for row in ROWS:
        assert {*translation(row)} <= {*shortlist.words(row), 2}
    assert len(shortlist.words([5, 2])) <= 7
    shortlist.save(tmp_path / "list.json")
    again = Shortlist.load(tmp_path / "list.json", tokenizer)
    assert again.always == shortlist.always and again.by_source == shortlist.by_source
    search = again.search(trained())
    rows = [row for row in ROWS if len(row) > 4]
    plain = trained().search(**inputs(rows), max_new_tokens=12)
    same = sum(map(torch.equal, search(**inputs(rows), max_new_tokens=12)[:, :4], plain[:, :4]))
    assert same > len(rows) // 2
    (tmp_path / "bad.json").write_text("[]")
    with pytest.raises(DataError, match="not a shortlist"):
        Shortlist.load(tmp_path / "bad.json", tokenizer)
    with pytest.raises(DataError, match="was made for another tokenizer; learn it again with learn_shortlist"):
        Shortlist.load(tmp_path / "list.json", tiny_tokenizer("word", joint=False))
    old = json.loads((tmp_path / "list.json").read_text())
    (tmp_path / "old.json").write_text(json.dumps({name: old[name] for name in ("always", "by_source")}))
    with pytest.raises(DataError, match="was made before shortlists named their tokenizer; learn it again"):
        Shortlist.load(tmp_path / "old.json", tokenizer)


@pytest.mark.parametrize("shape", [(0, 4), (2, 0), (0, 0)])
@pytest.mark.parametrize("options", [{}, BEAMS, {"do_sample": True}, {"ensemble": 1}])
def test_an_empty_batch_is_refused_by_its_shape(shape: tuple[int, int], options: dict[str, Any]) -> None:
    model, empty = trained(), torch.zeros(shape, dtype=torch.long)
    options = options | ({"ensemble": [model]} if "ensemble" in options else {})
    for decode in (model.search, *([] if "ensemble" in options else [model.generate])):
        with pytest.raises(ValueError, match=rf"input_ids of shape \({shape[0]}, {shape[1]}\): a batch needs at least"):
            decode(input_ids=empty, attention_mask=empty, **options)


def test_a_long_list_of_options_makes_no_long_message(caplog: pytest.LogCaptureFixture) -> None:
    trained().search(**inputs(ROWS[:1]), suppress_tokens=list(range(WORDS)) * 99, max_new_tokens=2)
    (message,) = [message for message in caplog.messages if "generate() decodes instead" in message]
    assert message.endswith("because of suppress_tokens=[0, 1, 2, 3, 4, 5, ...]") and len(message) < 300


# ---------------------------------------------------------------- weights


@pytest.mark.parametrize("weight_type", ["bfloat16", "int8"])
def test_other_weight_types_give_nearly_the_same(weight_type: str) -> None:
    for model in (trained(), trained("gru", False, 120, seed=1)):
        plain = detailed(model, ROWS, **BEAMS)
        found = detailed(model, ROWS, weight_type=weight_type, **BEAMS)
        assert (plain.sequences_scores - found.sequences_scores).abs().max() < 0.1
        assert not torch.equal(plain.sequences_scores, found.sequences_scores)
        width = min(plain.sequences.shape[1], found.sequences.shape[1])
        same = (plain.sequences[:, :width] == found.sequences[:, :width]).all(1).sum()
        assert same >= 0.75 * len(ROWS)


def test_8_bit_products_are_near_on_every_processor() -> None:
    # Saturated 16-bit sums, on processors without VNNI, are wrong by a tenth of the largest result.
    generator = torch.Generator().manual_seed(0)
    weight, rows = (torch.randn(*sizes, generator=generator) for sizes in ((40, 64), (32, 64)))
    exact = rows.tanh() @ weight.t()
    assert (search_step.Int8Product(weight, None)(rows.tanh()) - exact).abs().max() < 0.02 * exact.abs().max()


def test_a_model_is_freed_after_a_search() -> None:
    model = tiny_model(dtype=torch.float32, vocab_size=40)
    for weight_type in ("float32", "bfloat16", "int8"):
        model.search(torch.tensor([[3, 2]]), max_new_tokens=2, weight_type=weight_type)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


# ---------------------------------------------------------------- what generate() does instead


@pytest.mark.parametrize(
    "options",
    [
        {"no_repeat_ngram_size": 2},
        {"num_beams": 3, "bad_words_ids": [[5]]},
        {"output_scores": True, "return_dict_in_generate": True},
        {"min_new_tokens": 5},
        {"num_beams": 20},
        {"prefix_allowed_tokens_fn": lambda batch, ids: [2, 7, 9]},
    ],
)
def test_what_it_does_not_cover_is_decoded_by_generate_with_a_message(
    options: dict, caplog: pytest.LogCaptureFixture
) -> None:
    model = trained()
    from hf_rnn_seq2seq.model import search

    search._warn_once.cache_clear()
    with caplog.at_level(logging.WARNING):
        found = model.search(**inputs(ROWS), max_new_tokens=9, **options)
    expected = model.generate(**inputs(ROWS), max_new_tokens=9, **options)
    found, expected = (getattr(actual, "sequences", actual) for actual in (found, expected))
    assert found.tolist() == expected.tolist()
    assert (
        list(options)[-1 if "bad_words_ids" in options else 0] in caplog.text
        and "generate() decodes instead" in caplog.text
    )
    assert not model.search_covers(**options) and model.search_covers(num_beams=3, length_penalty=0.5)


def test_sampling_and_training_mode_use_generate() -> None:
    model = trained()
    torch.manual_seed(0)
    expected = model.generate(**inputs(ROWS), do_sample=True, max_new_tokens=9)
    torch.manual_seed(0)
    assert model.search(**inputs(ROWS), do_sample=True, max_new_tokens=9).tolist() == expected.tolist()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gnmt_alpha": -1}, r"gnmt_alpha=-1: must be 0 or more and finite, or None"),
        ({"coverage_penalty": -0.1}, r"coverage_penalty=-0.1: must be 0 or more"),
        ({"weight_type": "int4"}, r"weight_type='int4': must be one of float32, bfloat16, int8"),
        ({"rows_per_batch": 0}, r"rows_per_batch=0: must be a whole number of at least 1, or None"),
        ({"rows_per_batch": 1.5}, r"rows_per_batch=1.5: must be a whole number of at least 1, or None"),
        ({"gnmt_alpha": "x"}, r"gnmt_alpha='x': must be 0 or more and finite, or None"),
        ({"num_beams": 0}, r"num_beams=0: must be a whole number of at least 1"),
        ({"num_return_sequences": -1}, r"num_return_sequences=-1: must be a whole number of at least 1"),
        ({"length_penalty": math.nan}, r"length_penalty=nan: must be a finite number"),
        ({"early_stopping": "nevr"}, r"early_stopping='nevr': must be True, False or 'never'"),
        ({"ensemble": [1]}, r"ensemble: must be a list of models, and int is none"),
        ({"ensemble": trained()}, r"ensemble: must be a list of models, and RnnSeq2\w+ is none"),
        ({"prefix": [5, 6]}, r"prefix=\[5, 6\]: must have for each sentence a list of target ids"),
        ({"must_contain": [[5]]}, r"must_contain=\[\[5\]\]: must have for each sentence a list of phrases"),
        ({"shortlist": [5]}, r"shortlist of 2 ids from 2 to 5: needs at least 8 of the target ids 0 to 23"),
        ({"shortlist": [[5, 6]]}, r"shortlist for 1 sentences: there are 2"),
        ({"prefix": [[5]]}, r"prefix for 1 sentences: there are 2"),
        ({"prefix": [[5], [99]]}, r"prefix: must hold target ids from 0 to 23"),
        ({"must_contain": [[[5]]]}, r"must_contain for 1 sentences: there are 2"),
        (
            {"must_contain": [[[]], []]},
            r"a non-empty list of target ids \(0 to 23\) without eos_token_id",
        ),
        (
            {"must_contain": [[[2]], []]},
            r"a non-empty list of target ids \(0 to 23\) without eos_token_id",
        ),
        ({"must_contain": [[[5] * 12], []]}, r"12 tokens and an end do not fit max_new_tokens=12"),
        ({"must_contain": [[[5]], []], "prefix": [[], []]}, r"must_contain: cannot be combined with prefix"),
        (
            {"must_contain": [[[5]], []], "shortlist": torch.arange(9)},
            r"must_contain: cannot be combined with shortlist",
        ),
        ({"must_contain": [[[5]], []], "stop_at_top": True}, r"must_contain: cannot be combined with stop_at_top"),
        ({"num_beam_groups": 2, "stop_at_top": True}, r"stop_at_top=True: cannot be combined with num_beam_groups=2"),
        ({"gnmt_alpha": 1.0, "do_sample": True}, r"gnmt_alpha: cannot be combined with do_sample=True"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(SearchError, match=message):
        trained().search(**inputs(ROWS[:2]), **({"num_beams": 4, "max_new_tokens": 12} | options))


def test_attention_is_needed_where_it_is_read() -> None:
    model = tiny_model(dtype=torch.float32, context="initial_state", vocab_size=40)
    for options in ({"return_alignments": True}, {"coverage_penalty": 0.5}):
        with pytest.raises(SearchError, match=r"the model has no attention \(context='initial_state'\)"):
            model.search(torch.tensor([[3, 2]]), max_new_tokens=3, **options)


@pytest.mark.parametrize(
    ("call", "length"),
    [
        ({}, 129),
        ({"max_length": 7}, 7),
        ({"max_new_tokens": 4}, 5),
        ({"max_length": 7, "max_new_tokens": 4}, 5),
        ({"generation_config": GenerationConfig(max_length=6)}, 6),
        ({"generation_config": GenerationConfig(max_new_tokens=6)}, 7),
        ({"max_length": 7, "decoder_input_ids": torch.tensor([[START, 4, 5]] * 2)}, 7),
    ],
)
def test_lengths_are_limited_as_generate_limits_them(call: dict[str, Any], length: int) -> None:
    """`max_length` counts the start token, and gives way to `max_new_tokens`; the model's own gives way to both."""
    model = tiny_model(vocab_size=40)
    model.generation_config.eos_token_id = None
    given = {"input_ids": torch.tensor([[4, 5, 2], [6, 7, 2]]), **call}
    assert model.search(**given).shape == model.generate(**given).shape == (2, length)


def test_a_checkpoint_holds_one_limit_and_that_is_max_length(tmp_path: Path) -> None:
    """Also one that was saved with `max_new_tokens`, which would beat the max_length of a call."""
    model = tiny_model()
    model.generation_config.max_new_tokens = 9
    model.save_pretrained(tmp_path)
    assert model.generation_config.max_new_tokens == 9
    path = tmp_path / "generation_config.json"
    stored = json.loads(path.read_text())
    assert stored["max_length"] == 10 and "max_new_tokens" not in stored
    path.write_text(json.dumps({**stored, "max_length": None, "max_new_tokens": 9, "eos_token_id": None}))
    loaded = RnnSeq2SeqForConditionalGeneration.from_pretrained(tmp_path)
    ids = torch.tensor([[4, 5, 2]])
    for decode in (loaded.generate, loaded.search):
        assert (decode(ids).shape[1], decode(ids, max_length=4).shape[1]) == (10, 4)

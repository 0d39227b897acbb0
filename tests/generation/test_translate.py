"""Batches of sentences through a search: order, hypotheses, attention, workers."""

import math
import threading

import pytest
import torch
from transformers import GenerationConfig, pipeline

from hf_rnn_seq2seq import errors
from hf_rnn_seq2seq.data.lexicon import read_lexicon
from hf_rnn_seq2seq.evaluation.error_analysis import translate_with_attention
from hf_rnn_seq2seq.generation.attention import stack_layer
from hf_rnn_seq2seq.generation.encoding import encode_sources
from hf_rnn_seq2seq.generation.scoring import score_ids
from hf_rnn_seq2seq.generation.translate import MAX_WORKERS, Hypothesis, _map, translate, translate_n_best
from hf_rnn_seq2seq.generation.translate_lines import Request, lexicon_lines, most_probable
from tests.helpers.checkpoints import SOURCES, tiny_rnn, tiny_tokenizer


@pytest.mark.parametrize("beams", [1, 3])
def test_translate_equals_generate_one_by_one_in_the_order_given(pair, beams: int) -> None:
    model, tokenizer = pair
    sources = [*SOURCES, "", " \t ", *SOURCES[::-1]]
    found = translate(model, tokenizer, sources, batch_size=3, num_beams=beams, progress=False)
    for source, text in zip(sources, found, strict=True):
        if not source.strip():
            assert text == ""
            continue
        alone = model.generate(**tokenizer([source], return_tensors="pt"), num_beams=beams)
        assert text == tokenizer.batch_decode(alone, skip_special_tokens=True)[0]
    assert len(set(found)) > 4


def test_translate_without_options_follows_the_checkpoints_generation_config(rnn) -> None:
    model, tokenizer = rnn
    greedy = translate(model, tokenizer, SOURCES, progress=False)
    model.generation_config.num_beams = 4
    try:
        beam = translate(model, tokenizer, SOURCES, progress=False)
    finally:
        model.generation_config.num_beams = 1
    assert beam == translate(model, tokenizer, SOURCES, num_beams=4, progress=False) != greedy


def test_translate_restores_training_mode_and_uses_none_of_its_dropout(rnn) -> None:
    _, tokenizer = rnn
    model = tiny_rnn(tokenizer, dropout=0.9).train()
    first = translate(model, tokenizer, SOURCES, progress=False)
    assert model.training
    model.get_encoder().eval()
    assert first == translate(model, tokenizer, SOURCES, progress=False)
    assert model.training and not model.get_encoder().training


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def test_batches_of_several_workers_are_those_of_one(rnn, threads, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = rnn
    monkeypatch.setattr("hf_rnn_seq2seq.generation.translate.FEW_ROWS", 0)
    names: set[str] = set()
    search = model.search

    def watched(**options):
        names.add(threading.current_thread().name.split("_")[0])
        return search(**options)

    def translated(model, **options):
        names.clear()
        return translate(model, tokenizer, SOURCES * 4, batch_size=2, progress=False, **options)

    monkeypatch.setattr(model, "search", watched)
    alone = translated(model, num_beams=3)
    assert names == {"MainThread"}
    assert translated(model.train(), num_beams=3, workers=3) == alone
    assert names == {"translate"} and model.training and torch.get_num_threads() == 3
    model.eval()
    translated(model, do_sample=True, workers=3)
    assert names == {"MainThread"}  # samples are drawn in the order of the batches
    with pytest.raises(errors.ArgumentError, match="workers is 0; must be at least 1"):
        translated(model, workers=0)


def test_results_of_workers_keep_the_order_and_the_threads_are_shared_out(threads) -> None:
    together = threading.Barrier(3, timeout=60)  # passed only when three items are worked on at the same time

    def work(number: int) -> tuple[int, int]:
        together.wait()
        return number, torch.get_num_threads()

    assert list(_map(work, range(9), 3)) == [(number, 1) for number in range(9)]
    assert torch.get_num_threads() == 3
    torch.set_num_threads(4)
    assert list(_map(lambda _: torch.get_num_threads(), range(2), 4)) == [2, 2]
    assert list(_map(lambda _: torch.get_num_threads(), range(20), 1)) == [4] * 20
    torch.set_num_threads(4 * MAX_WORKERS)
    assert list(_map(lambda _: torch.get_num_threads(), range(20), 4 * MAX_WORKERS)) == [4] * 20


def test_a_second_caller_works_one_by_one(threads) -> None:
    first = _map(lambda _: torch.get_num_threads(), range(20), 3)
    assert next(first) == 1
    names = list(_map(lambda _: threading.current_thread().name, range(2), 3))
    assert names == [threading.main_thread().name] * 2
    first.close()
    assert torch.get_num_threads() == 3
    assert list(_map(lambda _: torch.get_num_threads(), range(3), 3)) == [1, 1, 1]


def test_workers_are_at_most_one_item_ahead(threads) -> None:
    begun: list[int] = []
    results = _map(lambda number: begun.append(number) or number, range(100), 3)
    assert next(results) == 0
    assert max(begun) <= 4
    results.close()
    assert torch.get_num_threads() == 3


def test_an_error_of_a_worker_is_raised_in_its_place(threads) -> None:
    def work(number: int) -> int:
        if number == 4:
            raise ValueError("number 4")
        return number

    results = _map(work, range(50), 3)
    assert [next(results) for _ in range(4)] == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="number 4"):
        next(results)
    assert torch.get_num_threads() == 3


def test_a_search_is_called_in_place_of_generate(rnn) -> None:
    model, tokenizer = rnn
    calls = []

    def search(input_ids, attention_mask, **generation):
        calls.append((tuple(input_ids.shape), attention_mask.sum(1).tolist(), generation))
        return torch.tensor([[1, *tokenizer("heure")["input_ids"]]] * len(input_ids))

    assert translate(model, tokenizer, SOURCES[:3], search=search, num_beams=2, progress=False) == ["heure"] * 3
    lengths = sorted((len(tokenizer(source)["input_ids"]) for source in SOURCES[:3]), reverse=True)
    assert calls == [((3, lengths[0]), lengths, {"num_beams": 2})]


@pytest.mark.parametrize("beams", [1, 4])
def test_attention_and_log_probability_equal_a_forced_pass(pair, beams: int) -> None:
    """The attention recorded during the search is that of one forward pass over the hypothesis."""
    model, tokenizer = pair
    n_best = min(beams, 3)
    found = translate_n_best(
        model, tokenizer, [*SOURCES, ""], n_best=n_best, num_beams=beams, attention=True, batch_size=3, progress=False
    )
    assert found[-1] == [Hypothesis("")]
    for hypotheses in found[:-1]:
        assert len(hypotheses) == n_best
        for hypothesis in hypotheses:
            source, labels = torch.tensor([hypothesis.source_ids]), torch.tensor([hypothesis.token_ids])
            with torch.no_grad():
                output = model(input_ids=source, labels=labels, output_attentions=True)
            expected = output.cross_attentions[-1][0]
            assert hypothesis.attention.shape == expected.shape
            torch.testing.assert_close(hypothesis.attention, expected, atol=2e-5, rtol=0)
            chosen = output.logits.log_softmax(-1)[0].gather(-1, labels[0, :, None]).sum()
            assert hypothesis.log_probability == pytest.approx(float(chosen), abs=1e-3)


def test_beams_are_followed_not_read_straight_down(rnn) -> None:
    """The test above passes without reordering if no beam moves; here beams move."""
    model, tokenizer = rnn
    output = model.generate(
        **tokenizer(SOURCES, return_tensors="pt", padding=True),
        num_beams=4,
        return_dict_in_generate=True,
        output_scores=True,
    )
    assert any(len(set(row[row >= 0].tolist())) > 1 for row in output.beam_indices)


def test_n_best_starts_with_the_translation_and_is_bounded(rnn) -> None:
    model, tokenizer = rnn
    best = [row[0].text for row in translate_n_best(model, tokenizer, SOURCES, num_beams=3, progress=False)]
    assert best == translate(model, tokenizer, SOURCES, num_beams=3, progress=False)
    with pytest.raises(errors.ArgumentError, match=r"n_best=4: must be from 1 to num_beams=3"):
        translate_n_best(model, tokenizer, SOURCES, n_best=4, num_beams=3)


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"do_sample": True, "top_k": 2}], ids=str)
def test_the_calls_own_end_and_the_models_own_scores(rnn, options: dict[str, object]) -> None:
    """What `generate()` wrote ends at the end token of the call and is scored by the model, without processors."""
    model, tokenizer = rnn
    ends = [*range(5, model.config.vocab_size, 5)]
    rules = {"eos_token_id": ends, "no_repeat_ngram_size": 3, "max_new_tokens": 8}
    found = {}
    for name, call in (("options", rules), ("config", {"generation_config": GenerationConfig(**rules)})):
        torch.manual_seed(2)
        found[name] = translate_n_best(model, tokenizer, SOURCES, batch_size=9, progress=False, **call, **options)
    assert found["options"] == found["config"]
    rows = [row for (row,) in found["options"]]
    assert any(row.token_ids[-1] in ends and 1 < len(row.token_ids) < 8 for row in rows)
    scores = score_ids(model, [row.source_ids for row in rows], [row.token_ids for row in rows])
    for row, score in zip(rows, scores, strict=True):
        assert not {*ends} & {*row.token_ids[:-1]}
        assert row.log_probability == pytest.approx(score.log_probability, abs=1e-4)


def test_options_in_a_generation_config_count(rnn) -> None:
    model, tokenizer = rnn
    config = GenerationConfig(num_beams=3, max_new_tokens=5)
    found = translate_n_best(model, tokenizer, SOURCES[:2], n_best=2, progress=False, generation_config=config)
    assert [len(rows) for rows in found] == [2, 2]


def test_texts_can_end_a_translation(rnn) -> None:
    model, tokenizer = rnn
    whole = translate(model, tokenizer, SOURCES, progress=False)
    end = next(text for text in whole if len(text) > 3)[1]
    found = translate(model, tokenizer, SOURCES, progress=False, stop_strings=[end])
    hypotheses = translate_n_best(model, tokenizer, SOURCES, progress=False, stop_strings=[end])
    assert found == [rows[0].text for rows in hypotheses] != whole
    assert all(end not in text[:-1] or len(text) < len(before) for text, before in zip(found, whole, strict=True))


def test_fewer_hypotheses_than_asked_for_are_a_shorter_list(rnn) -> None:
    """With one word to write and that word given there is one hypothesis; `search` fills the others up."""
    model, tokenizer = rnn
    given = {"num_beams": 3, "max_new_tokens": 2, "prefix": [[9, 8]]}
    (found,) = translate_n_best(model, tokenizer, SOURCES[:1], n_best=3, progress=False, **given)
    assert [one.token_ids for one in found] == [(9, 8)] and found[0].log_probability > -100
    rows = pipeline("rnn-translation", model=model, tokenizer=tokenizer)(SOURCES[0], n_best=3, **given)
    assert len(rows) == 1 and rows[0]["log_probability"] == pytest.approx(found[0].log_probability, abs=1e-4)


def test_options_of_the_search_go_with_attention_of_several_heads(rnn) -> None:
    """`generate()` knows none of them; the search averages heads."""
    tokenizer = rnn[1]
    model, other = (
        tiny_rnn(tokenizer, attention_type="multi_head", attention_size=8, num_attention_heads=2) for _ in range(2)
    )
    encoded = encode_sources(tokenizer, SOURCES)
    plain = translate_n_best(model, tokenizer, encoded, num_beams=2, attention=True)
    penalized = translate_n_best(model, tokenizer, encoded, num_beams=2, attention=True, gnmt_alpha=1.0)
    for one, two in zip(plain, penalized, strict=True):
        if one[0].token_ids == two[0].token_ids:
            torch.testing.assert_close(one[0].attention.mean(0, keepdim=True), two[0].attention, rtol=0, atol=1e-5)
    both = translate_n_best(model, tokenizer, encoded, attention=True, ensemble=[other])
    assert all(best[0].attention.shape[:2] == (1, len(best[0].token_ids)) for best in both)
    first = translate_n_best(model, tokenizer, encoded, attention=True, ensemble=[other], layer=0)
    assert [best[0].text for best in first] == [best[0].text for best in both]
    blind = tiny_rnn(tokenizer, context="initial_state")
    found = translate_with_attention(model, tokenizer, encoded, ensemble=[blind])
    assert all(one.attention is None and one.text for one in found)
    with pytest.raises(ValueError, match="ensemble: cannot be combined with .*, which only generate"):
        translate_n_best(model, tokenizer, encoded, n_best=1, ensemble=[other], do_sample=True)
    with pytest.raises(errors.ArgumentError, match="layer=1: a search with ensemble has attention in one layer only"):
        translate_n_best(model, tokenizer, encoded, attention=True, ensemble=[other], layer=1)


def test_a_lexicon_has_the_most_probable_of_all_beams(rnn) -> None:
    """Beams are ordered by log-probabilities per token, which favor long outputs; a lexicon by probabilities."""
    tokenizer = rnn[1]
    model = tiny_rnn(tokenizer)
    model.lm_head.bias.data[model.config.eos_token_id] += 3  # outputs end, at different lengths
    options = {"num_beams": 4, "length_penalty": 1.0, "max_new_tokens": 8}
    encoded = encode_sources(tokenizer, SOURCES)
    every = translate_n_best(model, tokenizer, encoded, n_best=4, **options)
    found = Request(options, n_best=2, output_format="cmudict").hypotheses(model, tokenizer, encoded)
    changed = 0
    for best, beams in zip(found, every, strict=True):
        assert best == most_probable(beams)[:2]
        changed += {beam.text for beam in best} != {beam.text for beam in beams[:2]}
    assert changed, "no source tells the two orders apart"


def test_hypotheses_of_the_same_text_are_one_of_a_lexicon() -> None:
    """Outputs that differ in special tokens alone are the same pronunciation; an empty one is none."""
    rows = [Hypothesis(text, log_probability=math.log(share)) for text, share in (("a", 0.3), ("b", 0.4), ("a", 0.2))]
    best = most_probable(rows)
    assert [one.text for one in best] == ["a", "b"]
    assert [math.exp(one.log_probability) for one in best] == pytest.approx([0.5, 0.4])
    rows.append(Hypothesis("", log_probability=0.0))
    fields = [{"text": one.text, "log_probability": one.log_probability} for one in rows]
    assert lexicon_lines("cmudict", "ab", fields) == "ab  a\nab(2)  b"
    known = Request(mass=1.0, n_best=1, lexicon=read_lexicon(["ab  a", "ab(2)  b"], "cmudict")).known("ab")
    assert [one.text for one in known] == ["a"]


def test_a_model_without_attention_is_reported() -> None:
    tokenizer = tiny_tokenizer()
    model = tiny_rnn(tokenizer, context="initial_state")
    with pytest.raises(errors.AttentionError, match="returned no cross_attentions"):
        translate_n_best(model, tokenizer, SOURCES[:1], attention=True, progress=False)
    with pytest.raises(errors.AttentionError, match=r"layer is 2; the model returned attention of 1 layer"):
        stack_layer([torch.ones(1, 1, 1, 1)], layer=2)

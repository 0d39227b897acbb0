"""Every mode of `generate()`, compared with a slower computation; generation/README.md names these tests."""

import re
from collections.abc import Callable
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    StoppingCriteria,
    SynthIDTextWatermarkingConfig,
    TextIteratorStreamer,
    TextStreamer,
    WatermarkDetector,
    WatermarkingConfig,
)

from hf_rnn_seq2seq import RnnSeq2SeqConfig, RnnSeq2SeqForConditionalGeneration
from hf_rnn_seq2seq.data.tokenizer import build_tokenizer
from tests.helpers.checkpoints import tiny_tokenizer
from tests.helpers.models import END, SOURCES, START, tiny_model
from tests.model.test_generation import KINDS, LENGTH, generator, next_word_scores, sources, words

ROOT = Path(__file__).resolve().parents[2]
ONE = [SOURCES[0]]


@pytest.fixture(scope="module")
def plain() -> RnnSeq2SeqForConditionalGeneration:
    return generator(**KINDS["input feeding"])


@pytest.fixture(scope="module")
def speaker() -> tuple[Any, Any]:
    """A model of text pieces, and its tokenizer."""
    tokenizer = tiny_tokenizer()
    return text_model(len(tokenizer), len(tokenizer), hidden_size=24), tokenizer


def text_model(vocab_size: int, source_vocab_size: int, hidden_size: int) -> RnnSeq2SeqForConditionalGeneration:
    config = RnnSeq2SeqConfig(
        vocab_size=vocab_size, source_vocab_size=source_vocab_size, embedding_size=16, hidden_size=hidden_size
    )
    return tiny_model(config, dtype=torch.float32).requires_grad_(False)


# ---------------------------------------------------------------- rules that a word must follow

Rule = Callable[[list[int], list[int], Tensor], Tensor]  # (source, target, scores) -> scores


def without(scores: Tensor, banned: list[int]) -> Tensor:
    scores = scores.clone()
    scores[banned] = -torch.inf
    return scores


def repeats(target: list[int], size: int, history: list[int]) -> list[int]:
    """The words that would complete an n-gram of `history`."""
    grams = [tuple(history[start : start + size]) for start in range(len(history) - size + 1)]
    return [gram[-1] for gram in grams if gram[:-1] == tuple(target[len(target) - size + 1 :])]


def repetition(source: list[int], target: list[int], scores: Tensor) -> Tensor:
    seen = torch.zeros(len(scores), dtype=torch.bool)
    seen[target] = True
    return torch.where(seen, torch.where(scores < 0, scores * 1.7, scores / 1.7), scores)


RULES: dict[str, tuple[Any, Rule]] = {
    "prefix_allowed_tokens_fn": (
        lambda row, ids: [2, 5, 7, 9] if len(ids) % 2 else [2, 4, 6],
        lambda s, t, x: without(x, sorted(set(range(11)) - set([2, 5, 7, 9] if len(t) % 2 else [2, 4, 6]))),
    ),
    "bad_words_ids": (
        [[5], [3, 3, 3]],
        lambda s, t, x: without(x, [5, *([3] if t[-2:] == [3, 3] else [])]),
    ),
    "no_repeat_ngram_size": (2, lambda s, t, x: without(x, repeats(t, 2, t))),
    "min_new_tokens": (6, lambda s, t, x: without(x, [END] if len(t) <= 6 else [])),
    "min_length": (8, lambda s, t, x: without(x, [END] if len(t) < 8 else [])),
    "forced_bos_token_id": (8, lambda s, t, x: without(x, [w for w in range(11) if w != 8 and len(t) == 1])),
    "forced_eos_token_id": (END, lambda s, t, x: without(x, [w for w in range(11) if w != END and len(t) == LENGTH])),
    "suppress_tokens": ([3, 10], lambda s, t, x: without(x, [3, 10])),
    "begin_suppress_tokens": ([3, 5], lambda s, t, x: without(x, [3, 5] if len(t) == 1 else [])),
    "sequence_bias": ([[[7], 2.5]], lambda s, t, x: x + 2.5 * (torch.arange(11) == 7)),
    "repetition_penalty": (1.7, repetition),
    "encoder_no_repeat_ngram_size": (1, lambda s, t, x: without(x, s)),
}


@pytest.mark.parametrize("name", RULES)
def test_a_rule_is_followed(plain: Any, name: str) -> None:
    """Greedy search under each rule is the likeliest word that the rule leaves, position by position."""
    option, rule = RULES[name]
    # Penalties that divide scores see logits in greedy search: log-probabilities differ from them by a constant.
    rows = SOURCES[:1] if name == "encoder_no_repeat_ngram_size" else SOURCES
    found = plain.generate(**sources(rows), **{name: option})
    for source, row in zip(rows, found, strict=True):
        target = [START]
        while len(target) <= LENGTH and target[-1] != END:
            actual = plain(input_ids=torch.tensor([source]), decoder_input_ids=torch.tensor([target]), use_cache=False)
            target.append(int(rule(source, target, actual.logits[0, -1]).argmax()))
        assert words(row) == target
    changed = [words(row) for row in plain.generate(**sources(rows))] != [words(row) for row in found]
    assert changed or name in ("forced_eos_token_id",), "the rule never mattered"


@pytest.mark.parametrize("name", RULES)
def test_a_rule_is_followed_by_beams_too(plain: Any, name: str) -> None:
    """Beams are equal with and without a cache, and contain nothing that a rule bans."""
    option, rule = RULES[name]
    call = {name: option, "num_beams": 3, "num_return_sequences": 3}
    rows = SOURCES[:1] if name == "encoder_no_repeat_ngram_size" else SOURCES
    found = plain.generate(**sources(rows), **call)
    assert torch.equal(found, plain.generate(**sources(rows), **call, use_cache=False))
    for number, row in enumerate(found):
        target = words(row)
        for place in range(1, len(target)):
            left = rule(rows[number // 3], target[:place], torch.zeros(11))
            assert left[target[place]] > -torch.inf


# ---------------------------------------------------------------- drawing


def test_drawn_words_have_the_frequencies_of_the_model(plain: Any) -> None:
    torch.manual_seed(0)
    draws = 4000
    call = {"do_sample": True, "num_return_sequences": draws, "max_new_tokens": 1}
    for options, sharpness, kept in (({}, 1.0, 11), ({"temperature": 0.5}, 2.0, 11), ({"top_k": 3}, 1.0, 3)):
        found = plain.generate(**sources(ONE), **({"top_k": 0} | call | options))[:, 1]
        expected = (next_word_scores(plain, SOURCES[0], [START]) * sharpness).softmax(-1)
        expected = expected.where(expected >= expected.topk(kept).values[-1], 0)
        expected = expected / expected.sum()
        spread = (expected * (1 - expected) / draws).sqrt()
        assert ((torch.bincount(found, minlength=11) / draws - expected).abs() <= 5 * spread).all()


@pytest.mark.parametrize("option", [{"top_p": 0.5}, {"min_p": 0.4}, {"typical_p": 0.5}, {"epsilon_cutoff": 0.15}])
def test_drawn_words_are_among_those_left(plain: Any, option: dict[str, float]) -> None:
    torch.manual_seed(0)
    found = plain.generate(
        **sources(ONE), do_sample=True, num_return_sequences=300, max_new_tokens=1, top_k=0, **option
    )[:, 1]
    chances = next_word_scores(plain, SOURCES[0], [START]).exp()
    order = chances.argsort(descending=True)
    left = {
        "top_p": order[: int((chances[order].cumsum(0) < 0.5).sum()) + 1],
        "min_p": (chances >= 0.4 * chances.max()).nonzero(),
        "epsilon_cutoff": (chances >= 0.15).nonzero(),
    }
    surprise = (-chances.log() + (chances * chances.log()).sum()).abs().argsort()
    left["typical_p"] = surprise[: int((chances[surprise].cumsum(0) < 0.5).sum()) + 1]
    assert set(found.tolist()) == set(left[next(iter(option))].flatten().tolist())


def test_the_best_sequences_are_returned_in_order(plain: Any) -> None:
    """With beams for all sequences of two words: the first five are the five best of an enumeration."""
    call = {"num_beams": 11, "num_return_sequences": 5, "max_new_tokens": 2, "length_penalty": 0.0}
    for source in SOURCES:
        first = next_word_scores(plain, source, [START])
        totals = {(START, END): float(first[END])}
        for word in set(range(11)) - {END}:
            second = next_word_scores(plain, source, [START, word])
            totals |= {(START, word, after): float(first[word] + second[after]) for after in range(11)}
        found = [tuple(words(row)) for row in plain.generate(**sources([source]), **call)]
        assert found == sorted(totals, key=totals.__getitem__, reverse=True)[:5]


# ---------------------------------------------------------------- stopping, streaming, outputs


class StopAt(StoppingCriteria):
    """Ends a sentence at a word."""

    def __init__(self, word: int) -> None:
        self.word = word

    def __call__(self, input_ids: Tensor, scores: Tensor, **_: Any) -> Tensor:
        return input_ids[:, -1] == self.word


def test_stopping_criteria_end_each_sentence(plain: Any) -> None:
    whole = [words(row) for row in plain.generate(**sources())]
    word = whole[0][2]
    for row, expected in zip(plain.generate(**sources(), stopping_criteria=[StopAt(word)]), whole, strict=True):
        ended = expected[: expected.index(word) + 1] if word in expected else expected
        assert row[: len(ended)].tolist() == ended and not row[len(ended) :].any()
    assert plain.generate(**sources(), max_time=0.0).shape[1] == 2


@pytest.mark.parametrize("beams", [1, 3])
def test_stop_strings_end_at_the_text(speaker: tuple[Any, Any], beams: int) -> None:
    """No hypothesis continues after the string; the greedy one equals the unrestricted one up to its last token."""
    model, tokenizer = speaker
    call = {**tokenizer(["three days ago"], return_tensors="pt"), "max_new_tokens": 12, "num_beams": beams}
    whole = model.generate(**call)[0]
    pieces = [tokenizer.decode(token) for token in whole]
    place = next(n for n, piece in enumerate(pieces) if n > 1 and len(piece.strip()) > 2 and pieces.index(piece) == n)
    stop = pieces[place].strip()[1:]
    found = model.generate(**call, stop_strings=[stop], tokenizer=tokenizer, num_return_sequences=beams)
    assert stop in tokenizer.decode(whole[:-1])
    for row in found:
        assert stop not in tokenizer.decode(words(row)[:-1])
    if beams == 1:
        assert torch.equal(found[0], whole[: place + 1])


@pytest.mark.parametrize("algorithm", ["bpe", "word"])
@pytest.mark.parametrize("beams", [1, 2])
def test_stop_strings_are_text_of_the_target(algorithm: str, beams: int) -> None:
    texts = (["three days ago", "five years ago"] * 4, ["il y a trois jours", "il y a cinq ans"] * 4)
    tokenizer = build_tokenizer(*texts, algorithm=algorithm, vocab_size=310, joint=False, min_frequency=1)
    model = text_model(tokenizer.target_vocab_size, len(tokenizer), hidden_size=8)
    said = tokenizer(text_target="il y a trois jours")["input_ids"]
    found = model.generate(
        **tokenizer(["three days ago"], return_tensors="pt"),
        prefix_allowed_tokens_fn=lambda _, words: [said[min(len(words) - 1, len(said) - 1)]],
        num_beams=beams,
        max_new_tokens=30,
        stop_strings=["trois", "quatre"],
        tokenizer=tokenizer,
    )
    assert tokenizer.decode(found[0], skip_special_tokens=True) == "il y a trois"


def test_text_is_streamed_while_it_is_generated(speaker: tuple[Any, Any], capsys: pytest.CaptureFixture[str]) -> None:
    model, tokenizer = speaker
    source = tokenizer(["three days ago"], return_tensors="pt")
    expected = tokenizer.decode(model.generate(**source, max_new_tokens=12)[0], skip_special_tokens=True)
    pieces = TextIteratorStreamer(tokenizer, skip_special_tokens=True)
    thread = Thread(target=model.generate, kwargs={**source, "max_new_tokens": 12, "streamer": pieces})
    thread.start()
    assert "".join(pieces) == expected
    thread.join()
    model.generate(**source, max_new_tokens=12, streamer=TextStreamer(tokenizer, skip_special_tokens=True))
    assert capsys.readouterr().out == expected + "\n"


def test_logits_and_scores_of_each_step(plain: Any) -> None:
    """Logits are the model's; scores are those after the processors, here without the banned words."""
    actual = plain.generate(
        **sources(), suppress_tokens=[6], output_logits=True, output_scores=True, return_dict_in_generate=True
    )
    whole = plain(**sources(), decoder_input_ids=actual.sequences[:, :-1])
    for step, (logits, scores) in enumerate(zip(actual.logits, actual.scores, strict=True)):
        torch.testing.assert_close(logits, whole.logits[:, step].float())
        assert (scores[:, 6] == -torch.inf).all()
        torch.testing.assert_close(scores[:, 7:], logits[:, 7:])


# ---------------------------------------------------------------- marks, assistants, caches


def test_a_watermark_is_found(plain: Any) -> None:
    mark = WatermarkingConfig(bias=6.0, greenlist_ratio=0.3, context_width=1)
    call = {"max_new_tokens": 60, "eos_token_id": -1, "do_sample": True, "top_k": 0}
    torch.manual_seed(0)
    marked, clean = plain.generate(**sources(), **call, watermarking_config=mark), plain.generate(**sources(), **call)
    detector = WatermarkDetector(model_config=plain.config, device="cpu", watermarking_config=mark)
    assert detector(marked).tolist() == [True] * 3
    assert not detector(clean).any()


def test_a_synthid_watermark_draws_among_the_same_words(plain: Any) -> None:
    mark = SynthIDTextWatermarkingConfig(keys=[3, 14, 15], ngram_len=3)

    def drawn(seed: int, **options: Any) -> torch.Tensor:
        torch.manual_seed(seed)
        return plain.generate(**sources(), do_sample=True, top_k=4, **options)

    found = [drawn(seed, watermarking_config=mark) for seed in (0, 0, 1, 2, 3)]
    assert torch.equal(*found[:2])
    assert any(marked.tolist() != drawn(seed).tolist() for seed, marked in enumerate(found[1:]))
    for source, row in zip(SOURCES, found[0], strict=True):
        target = words(row)
        for place in range(1, len(target)):
            assert target[place] in next_word_scores(plain, source, target[:place]).topk(4).indices


def test_an_assistant_with_another_target_vocabulary_helps(speaker: tuple[Any, Any]) -> None:
    """Universal assisted decoding. transformers gives the assistant the same source ids: it shares that vocabulary."""
    model, tokenizer = speaker
    other = tiny_tokenizer("unigram")
    assistant = text_model(len(other), len(tokenizer), hidden_size=8)
    call = {**tokenizer(["three days ago"], return_tensors="pt"), "max_new_tokens": 12}
    found = model.generate(**call, assistant_model=assistant, tokenizer=tokenizer, assistant_tokenizer=other)
    assert torch.equal(found, model.generate(**call))


@pytest.mark.parametrize("implementation", ["static", "dynamic", "offloaded", "quantized"])
def test_other_caches_are_not_taken(plain: Any, implementation: str) -> None:
    actual = plain.generate(**sources(), cache_implementation=implementation, return_dict_in_generate=True)
    assert type(actual.cache).__name__ == "RnnSeq2SeqCache"
    assert torch.equal(actual.sequences, plain.generate(**sources()))


# ---------------------------------------------------------------- what cannot work


def moved(name: str, repository: str) -> str:
    return rf"{name} requires `trust_remote_code=True`.*transformers-community/{repository}"


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "group beam search without the strategy": (
        {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5},
        moved("Group Beam Search", "group-beam-search"),
    ),
    "constrained beam search": (
        {"num_beams": 3, "force_words_ids": [[5]]},
        moved("Constrained Beam Search", "constrained-beam-search"),
    ),
    "contrastive search": (
        {"penalty_alpha": 0.6, "top_k": 4},
        moved("Contrastive Search", "contrastive-search"),
    ),
    "DoLa": ({"dola_layers": "low"}, moved("Dola Generation", "dola")),
    "guidance": ({"guidance_scale": 1.5}, r"guidance_scale=1.5: transformers supports it for decoder-only models"),
    "multi-token prediction": ({"use_mtp": True}, r"no associated mtp weights|not used by the model: \['use_mtp'\]"),
    "an assistant for a batch": ({"prompt_lookup_num_tokens": 2}, r"only supported for batch_size = 1"),
    "streaming of beams": ({"num_beams": 2, "streamer": object()}, r"`streamer` cannot be used with beam search"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_modes_that_cannot_work_are_refused(plain: Any, name: str) -> None:
    options, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        plain.generate(**sources(), **options)


def test_continuous_batching_is_refused(plain: Any) -> None:
    with pytest.raises(NotImplementedError, match=r"generate_batch: needs a paged key-value cache; use search"):
        plain.generate_batch(SOURCES)


# ---------------------------------------------------------------- the table


def test_every_row_of_the_readmes_table_names_a_test() -> None:
    readme = (ROOT / "hf_rnn_seq2seq" / "generation" / "README.md").read_text(encoding="utf-8")
    section = readme.split("## Every mode of `generate()`")[1].split("\n## ")[0]
    rows = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("|")][2:]
    assert len(rows) >= 20
    tests = {}
    for path in (ROOT / "tests").rglob("test_*.py"):
        text = path.read_text(encoding="utf-8")
        tests |= dict.fromkeys(re.findall(r"^def (test_\w+)\(", text, re.MULTILINE), text)
    for row in rows:
        named = re.findall(r"`(test_\w+)(?:\[([^\]]+)\])?`", row[-1])
        assert named, f"no test in the row {row[0]}"
        for name, case in named:
            assert name in tests, f"{name} of the row {row[0]} is no test"
            assert not case or case in tests[name], f"{name} has no case {case}"

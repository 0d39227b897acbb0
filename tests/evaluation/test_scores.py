"""Scores, significance, agreement with alignments, and what a summary stores of them."""

from pathlib import Path

import pytest
from sacrebleu.metrics import BLEU, CHRF
from sacrebleu.significance import PairedTest

from hf_rnn_seq2seq import errors
from hf_rnn_seq2seq.evaluation.attention_agreement import attention_agreement
from hf_rnn_seq2seq.evaluation.length_bins import score_by_length
from hf_rnn_seq2seq.evaluation.results import System, run_summary, score_system, score_table, summary_facts
from hf_rnn_seq2seq.evaluation.scores import external_metric, external_score, score
from hf_rnn_seq2seq.evaluation.significance import paired_table, paired_test
from hf_rnn_seq2seq.evaluation.test_set import TestSet, default_metrics
from hf_rnn_seq2seq.generation.attention import word_pairs
from hf_rnn_seq2seq.generation.scoring import forced_hypotheses
from tests.helpers.checkpoints import SOURCES, TARGETS, tiny_rnn, tiny_tokenizer


def test_agreement_counts_the_aligned_words_that_attend_most_to_a_word_they_come_from() -> None:
    tokenizer = tiny_tokenizer("word")
    model = tiny_rnn(tokenizer)
    sources, targets = SOURCES[:4], list(TARGETS[:4])
    hypotheses = forced_hypotheses(model, tokenizer, sources, targets)
    pairs = [word_pairs(tokenizer, source, found) for source, found in zip(sources, hypotheses, strict=True)]
    where = [{target: source for source, target in row} for row in pairs]
    assert where[0] and where[1]
    right = [" ".join(f"{source}-{target}" for target, source in row.items()) for row in where]
    total = sum(map(len, where))
    assert attention_agreement(model, tokenizer, sources, targets, right) == (total, total)
    # One of several words is enough; words and rows without alignment are not counted.
    wide = [f"{right[0]} 0-0 1-0", right[1], None, ""]
    counted = len(where[0] | {0: 0}) + len(where[1])
    assert attention_agreement(model, tokenizer, sources, targets, wide) == (counted, counted)
    # A word that attends most to the end token looks at no word, and so at none it comes from.
    places = range(len(targets[0].split()))
    wrong = [" ".join(f"{1 - min(where[0].get(target, 0), 1)}-{target}" for target in places), *[None] * 3]
    assert attention_agreement(model, tokenizer, sources, targets, wrong) == (0, len(places))
    assert attention_agreement(model, tokenizer, ["三天"], ["a"], ["0-0"]) == (0, 0)


def test_score_is_sacrebleus_and_needs_equal_sides() -> None:
    found = score(TARGETS, TARGETS[::-1], ("bleu", "chrf", "char_bleu"))
    assert found["bleu"] == pytest.approx(BLEU().corpus_score(TARGETS, [TARGETS[::-1]]).score, abs=1e-9)
    assert found["chrf"] == pytest.approx(CHRF().corpus_score(TARGETS, [TARGETS[::-1]]).score, abs=1e-9)
    assert found["signature"] == found["bleu_signature"]
    assert "tok:char" in found["char_bleu_signature"]
    assert score(TARGETS, TARGETS, n_bootstrap=5)["bleu_interval"] == 0
    with pytest.raises(errors.ArgumentError, match=r"6 hypotheses for 5 references"):
        score(TARGETS, TARGETS[:5])
    with pytest.raises(errors.ArgumentError, match=r"0 hypotheses for 0 references"):
        score([], [])


def test_paired_test_is_sacrebleus() -> None:
    worse = [text.replace("o", "x").replace("j", "x") for text in TARGETS] * 5
    better = [text.replace("j", "x") for text in TARGETS] * 5
    references = TARGETS * 5
    rows = paired_test({"a": worse, "b": better}, references, ("bleu", "char_bleu"), n_samples=200)
    _, theirs = PairedTest([("a", worse), ("b", better)], {"BLEU": BLEU(references=[references])}, None, "bs", 200)()
    assert [row.metric for row in rows] == ["bleu", "bleu", "char_bleu", "char_bleu"]
    assert rows[0].p_value is None
    assert (rows[1].score, rows[1].p_value) == (theirs["BLEU"][1].score, theirs["BLEU"][1].p_value)
    assert rows[1].score > rows[0].score
    assert "bs:200" in rows[1].signature and "tok:char" in rows[3].signature
    for bad, message in (
        ({"a": worse}, "at least 2 systems"),
        ({"a": worse, "b": better[1:]}, "b: 29 hypotheses for 30"),
    ):
        with pytest.raises(errors.ArgumentError, match=message):
            paired_test(bad, references)
    with pytest.raises(errors.ArgumentError, match="metric 'wer' has no paired test"):
        paired_test({"a": worse, "b": better}, references, ("wer",))


@pytest.mark.parametrize("test", ["bs", "ar"])
def test_equal_outputs_do_not_differ_significantly(test: str) -> None:
    worse = [text.replace("o", "x") for text in TARGETS]
    systems = {"a": worse, "b": worse, "c": TARGETS}
    rows = paired_test(systems, TARGETS, ("bleu", "chrf"), test=test, n_samples=100)
    assert [row.p_value for row in rows if row.system == "a"] == [None, None]
    assert [row.p_value for row in rows if row.system == "b"] == [1.0, 1.0]
    assert all(row.p_value < 1 for row in rows if row.system == "c")
    assert [cells[4] for cells in paired_table(rows)[1:3]] == ["baseline", "1.0000"]
    other = [[f"the cat sat on a mat {word}"] * 10 for word in "XYQ"]
    rows = paired_test({"a": other[0], "b": other[1]}, other[2], ("bleu", "ter"), test=test, n_samples=100)
    assert [row.p_value for row in rows] == [None, 1.0, None, 1.0], "other words, but the same scores"


def test_score_by_length_groups_by_words() -> None:
    sources = ["a b", "a b c d e f", "g h i j k l", "w " * 80]
    hypotheses = ["x y", "a b c d e f", "g h i j", "w"]
    references = ["x y", "a b c d e f", "g h i j k l", "w w"]
    bins = score_by_length(sources, hypotheses, references)
    assert [(one.low, one.high, one.sentences) for one in bins] == [(1, 5, 1), (6, 10, 2), (51, 80, 1)]
    both = BLEU(effective_order=True).corpus_score(hypotheses[1:3], [references[1:3]]).score
    assert bins[1].bleu == pytest.approx(both, abs=1e-9)
    assert bins[1].length_ratio == pytest.approx(10 / 12)
    several = [["no", reference] for reference in references]
    assert [one.length_ratio for one in score_by_length(sources, hypotheses, several)] == pytest.approx([1, 10 / 12, 1])


def test_a_metric_of_the_users_own_loads_by_path(tmp_path: Path) -> None:
    found = external_score(str(Path(__file__).parents[1] / "helpers" / "exact_metric.py"), ["a", "b"], ["a", "c"])
    assert found == {"exact": 0.5}
    with pytest.raises(errors.ArgumentError, match=r"exact_metric.py': fails on several references"):
        external_score(str(Path(__file__).parents[1] / "helpers" / "exact_metric.py"), ["a"], [["a", "c"]])
    with pytest.raises(errors.ArgumentError, match=r"metric .*missing.py.*could not load it"):
        external_metric(str(tmp_path / "missing.py"))


def test_samples_and_summary_facts_come_from_the_run() -> None:
    test_set = TestSet([f"s{i}" for i in range(50)], [f"r{i}" for i in range(50)], "test", True)
    system = System("run", "run", test_set, [f"r{i % 40}" for i in range(50)], 5, 2.0)
    score_system(system, ["ter"])
    facts = summary_facts(system)
    assert facts["num_beams"] == 5 and facts["test_sentences"] == 50 and facts["test_sentences_per_second"] == 25
    assert set(facts["signatures"]) == {"ter", "bleu", "chrf"}
    assert facts["samples"] == [
        {"source": f"s{i}", "reference": f"r{i}", "translation": f"r{i % 40}"} for i in (5, 15, 25, 35, 45)
    ]
    text = run_summary("run", {"parameters": 1234, "train_seconds": 125.2} | facts, {"model_type": "bart"})
    assert "1,234 parameters, trained for 2 min 05 s" in text
    assert f"BLEU {facts['bleu']:.2f}   {facts['signature']}" in text
    assert text.count("  source  ") == 5 and "beam 5" in text
    assert "TER" not in score_table([system]) and "ter ↓" in score_table([system])
    korean = TestSet(["a"], ["b"], "test", True, {"target_lang": "ko_KR"})
    assert default_metrics(korean) == ["bleu", "chrf", "char_bleu"]
    assert default_metrics(test_set) == ["bleu", "chrf"]
    for chosen, shown in (
        ("symbol_error", ["sequence_error", "symbol_error"]),
        ("exact_match", ["exact_match", "chrf"]),
    ):
        assert default_metrics(TestSet(["a"], ["b"], "test", True, best_metric=chosen)) == shown

"""Decoding of a set of sentences, attention of its hypotheses, scores, significance, and what a run keeps of them."""

import json
import threading
from pathlib import Path

import pytest
import torch
from sacrebleu.metrics import BLEU, CHRF
from sacrebleu.significance import PairedTest

from hf_rnn_seq2seq import errors, run_directory
from hf_rnn_seq2seq.evaluation import results as reporting
from hf_rnn_seq2seq.evaluation import significance as comparison
from hf_rnn_seq2seq.generation import attention as alignment
from hf_rnn_seq2seq.generation import translate as evaluation
from tests.helpers.checkpoints import SOURCES, TARGETS, save_checkpoint, tiny_bart, tiny_rnn, tiny_tokenizer


@pytest.fixture(scope="module", params=["rnn", "rnn, two vocabularies", "bart"])
def pair(request: pytest.FixtureRequest):
    tokenizer = tiny_tokenizer(joint=request.param != "rnn, two vocabularies")
    return (tiny_bart(tokenizer) if request.param == "bart" else tiny_rnn(tokenizer)), tokenizer


@pytest.fixture(scope="module")
def rnn():
    tokenizer = tiny_tokenizer()
    return tiny_rnn(tokenizer), tokenizer


@pytest.mark.parametrize("beams", [1, 3])
def test_translate_equals_generate_one_by_one_in_the_order_given(pair, beams: int) -> None:
    model, tokenizer = pair
    sources = [*SOURCES, "", " \t ", *SOURCES[::-1]]
    found = evaluation.translate(model, tokenizer, sources, batch_size=3, num_beams=beams, progress=False)
    for source, text in zip(sources, found, strict=True):
        if not source.strip():
            assert text == ""
            continue
        alone = model.generate(**tokenizer([source], return_tensors="pt"), num_beams=beams)
        assert text == tokenizer.batch_decode(alone, skip_special_tokens=True)[0]
    assert len(set(found)) > 4


def test_translate_without_options_follows_the_checkpoints_generation_config(rnn) -> None:
    model, tokenizer = rnn
    greedy = evaluation.translate(model, tokenizer, SOURCES, progress=False)
    model.generation_config.num_beams = 4
    try:
        beam = evaluation.translate(model, tokenizer, SOURCES, progress=False)
    finally:
        model.generation_config.num_beams = 1
    assert beam == evaluation.translate(model, tokenizer, SOURCES, num_beams=4, progress=False) != greedy


def test_translate_restores_training_mode_and_uses_none_of_its_dropout(rnn) -> None:
    _, tokenizer = rnn
    model = tiny_rnn(tokenizer, dropout=0.9).train()
    first = evaluation.translate(model, tokenizer, SOURCES, progress=False)
    assert model.training
    assert first == evaluation.translate(model, tokenizer, SOURCES, progress=False)


def test_batches_decoded_side_by_side_are_those_decoded_alone(rnn, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = rnn
    monkeypatch.setattr(evaluation, "FEW_ROWS", 0)
    names: set[str] = set()
    search = model.search

    def watched(**options):
        names.add(threading.current_thread().name.split("_")[0])
        return search(**options)

    def translated(model, **options):
        names.clear()
        return evaluation.translate(model, tokenizer, SOURCES * 4, batch_size=2, progress=False, **options)

    monkeypatch.setattr(model, "search", watched)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = translated(model, num_beams=3)
        assert names == {"MainThread"}
        torch.set_num_threads(3)
        assert translated(model.train(), num_beams=3) == alone
        assert names == {"side-by-side"} and model.training
        model.eval()
        translated(model, do_sample=True)
        assert names == {"MainThread"}  # samples are drawn in the order of the batches
    finally:
        torch.set_num_threads(before)


def test_a_search_is_called_in_place_of_generate(rnn) -> None:
    model, tokenizer = rnn
    calls = []

    def search(input_ids, attention_mask, **generation):
        calls.append((tuple(input_ids.shape), attention_mask.sum(1).tolist(), generation))
        return torch.tensor([[1, *tokenizer("heure")["input_ids"]]] * len(input_ids))

    assert (
        evaluation.translate(model, tokenizer, SOURCES[:3], search=search, num_beams=2, progress=False) == ["heure"] * 3
    )
    lengths = sorted((len(tokenizer(source)["input_ids"]) for source in SOURCES[:3]), reverse=True)
    assert calls == [((3, lengths[0]), lengths, {"num_beams": 2})]


def test_batches_hold_similar_lengths_within_the_token_budget() -> None:
    lengths = [3, 40, 0, 5, 4, 39, 1, 200]
    batches = evaluation.length_batches(lengths, batch_size=3, max_tokens=160, beams=2)
    assert batches == [[7], [1, 5], [3, 4, 0], [6]]
    assert evaluation.length_batches([0, 0], 4, 10) == []
    with pytest.raises(errors.EvaluationError, match=r"batch_size is 0, max_tokens is 5; both must be at least 1"):
        evaluation.length_batches(lengths, 0, 5)


def test_a_long_source_is_cut_keeps_its_end_and_is_reported(rnn, caplog: pytest.LogCaptureFixture) -> None:
    model, tokenizer = rnn
    long = " ".join(["three days ago"] * 60)
    encoded = evaluation.encode_sources(tokenizer, ["2 kg", long])
    whole = tokenizer(long, verbose=False)["input_ids"]
    assert encoded.truncated == [1]
    assert encoded.ids[1] == [*whole[:63], tokenizer.eos_token_id]
    encoded = evaluation.encode_sources(tokenizer, ["three days ago", ""], max_source_length=2)
    assert (len(encoded.ids[0]), encoded.ids[1], encoded.truncated) == (2, [], [0])
    evaluation.translate(model, tokenizer, [long], progress=False)
    assert "1 of 1 sources are longer than the limit and were cut" in caplog.text


def test_what_the_model_cannot_read_whole_is_counted() -> None:
    tokenizer = tiny_tokenizer("word")
    sources = ["three days ago", "never seen", "", "three strangers", "in an hour in an hour"]
    encoded = evaluation.encode_sources(tokenizer, sources, max_source_length=6)
    assert (encoded.truncated, encoded.unknown) == ([4], [1])
    assert evaluation.source_problems(encoded.counts() + encoded.counts()) == [
        "2 of 10 sources are longer than the limit and were cut",
        "2 of 10 sources hold nothing but unknown tokens",
    ]
    assert evaluation.source_problems(evaluation.encode_sources(tokenizer, ["three"]).counts()) == []


def test_sources_that_were_encoded_before_are_translated_alike_and_without_a_second_warning(
    rnn, caplog: pytest.LogCaptureFixture
) -> None:
    model, tokenizer = rnn
    sources = ["three days ago " * 60, "2 kg", ""]
    encoded = evaluation.encode_sources(tokenizer, sources, 20)
    found = evaluation.translate(model, tokenizer, encoded, progress=False)
    assert "cut" not in caplog.text
    assert found == evaluation.translate(model, tokenizer, sources, max_source_length=20, progress=False)
    assert caplog.text.count("1 of 3 sources are longer than the limit and were cut") == 1


@pytest.mark.parametrize("beams", [1, 4])
def test_attention_and_log_probability_equal_a_forced_pass(pair, beams: int) -> None:
    """What a hypothesis attended to while it was searched is what one forward pass over it attends to."""
    model, tokenizer = pair
    n_best = min(beams, 3)
    found = evaluation.translate_n_best(
        model, tokenizer, [*SOURCES, ""], n_best=n_best, num_beams=beams, attention=True, batch_size=3, progress=False
    )
    assert found[-1] == [evaluation.Hypothesis("")]
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
    """The test above would pass without following where no beam ever moved; here they do."""
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
    best = [row[0].text for row in evaluation.translate_n_best(model, tokenizer, SOURCES, num_beams=3, progress=False)]
    assert best == evaluation.translate(model, tokenizer, SOURCES, num_beams=3, progress=False)
    with pytest.raises(errors.EvaluationError, match=r"n_best is 4; allowed: 1 to the number of beams \(3\)"):
        evaluation.translate_n_best(model, tokenizer, SOURCES, n_best=4, num_beams=3)


def test_forced_hypothesis_equals_the_models_loss(pair) -> None:
    model, tokenizer = pair
    found = evaluation.forced_hypothesis(model, tokenizer, SOURCES[0], TARGETS[0])
    labels = torch.tensor([found.token_ids])
    loss = model(input_ids=torch.tensor([found.source_ids]), labels=labels).loss.detach()
    assert found.log_probability == pytest.approx(-float(loss) * labels.numel(), rel=1e-4)
    assert alignment.target_pieces(tokenizer, found.token_ids)[-1] == "</s>"
    assert "".join(alignment.target_pieces(tokenizer, found.token_ids)[:-1]) == TARGETS[0]
    with pytest.raises(errors.EvaluationError, match="must both hold text"):
        evaluation.forced_hypothesis(model, tokenizer, SOURCES[0], " ")


def test_many_forced_hypotheses_equal_each_alone(pair) -> None:
    model, tokenizer = pair
    sources, targets = SOURCES[: len(TARGETS)], list(TARGETS)
    together = evaluation.forced_hypotheses(model, tokenizer, sources, targets, batch_size=4)
    for found, source, target in zip(together, sources, targets, strict=True):
        alone = evaluation.forced_hypothesis(model, tokenizer, source, target)
        assert (found.text, found.token_ids, found.source_ids) == (target, alone.token_ids, alone.source_ids)
        assert found.log_probability == pytest.approx(alone.log_probability, abs=1e-4)
        torch.testing.assert_close(found.attention, alone.attention, atol=1e-5, rtol=0)


def test_agreement_counts_the_aligned_words_that_attend_most_to_a_word_they_come_from() -> None:
    tokenizer = tiny_tokenizer("word")
    model = tiny_rnn(tokenizer)
    sources, targets = SOURCES[:4], list(TARGETS[:4])
    said = evaluation.forced_hypotheses(model, tokenizer, sources, targets)
    pairs = [alignment.word_pairs(tokenizer, source, found) for source, found in zip(sources, said, strict=True)]
    where = [{target: source for source, target in row} for row in pairs]
    assert where[0] and where[1]
    right = [" ".join(f"{source}-{target}" for target, source in row.items()) for row in where]
    total = sum(map(len, where))
    assert evaluation.attention_agreement(model, tokenizer, sources, targets, right) == (total, total)
    # Any of several words will do; a word that is told of nothing is not counted, nor is a row without alignment.
    wide = [f"{right[0]} 0-0 1-0", right[1], None, ""]
    counted = len(where[0] | {0: 0}) + len(where[1])
    assert evaluation.attention_agreement(model, tokenizer, sources, targets, wide) == (counted, counted)
    # A word that attends most to the end token looks at no word, and so at none it comes from.
    asked = range(len(targets[0].split()))
    wrong = [" ".join(f"{1 - min(where[0].get(target, 0), 1)}-{target}" for target in asked), *[None] * 3]
    assert evaluation.attention_agreement(model, tokenizer, sources, targets, wrong) == (0, len(asked))
    assert evaluation.attention_agreement(model, tokenizer, ["三天"], ["a"], ["0-0"]) == (0, 0)


def test_a_model_without_attention_says_so() -> None:
    tokenizer = tiny_tokenizer()
    model = tiny_rnn(tokenizer, context="initial_state")
    with pytest.raises(errors.AttentionError, match="returned no cross_attentions"):
        evaluation.translate_n_best(model, tokenizer, SOURCES[:1], attention=True, progress=False)
    with pytest.raises(errors.AttentionError, match=r"layer is 2; the model returned attention of 1 layer"):
        alignment.stack_layer([torch.ones(1, 1, 1, 1)], layer=2)


@pytest.mark.parametrize("algorithm", ["bpe", "unigram", "wordpiece", "word", "char"])
@pytest.mark.parametrize("joint", [True, False])
def test_pieces_spell_the_sentence_on_both_sides(algorithm: str, joint: bool) -> None:
    tokenizer = tiny_tokenizer(algorithm, joint=joint)
    for source, target in zip(SOURCES, TARGETS, strict=False):
        source_ids = tokenizer(source)["input_ids"]
        pieces = alignment.source_pieces(tokenizer, source, len(source_ids))
        assert len(pieces) == len(source_ids)
        assert pieces[-1] == "</s>"
        assert "".join("".join(pieces[:-1]).split()) == "".join(source.split())
        encoding = tokenizer(text_target=target)
        target_ids = encoding["labels"] if "labels" in encoding else encoding["input_ids"]
        pieces = alignment.target_pieces(tokenizer, target_ids)
        assert len(pieces) == len(target_ids)
        assert "".join("".join(pieces[:-1]).split()) == "".join(target.split())


def test_words_are_merged_by_sum_over_source_and_mean_over_target() -> None:
    source, target = ["Thu", "rsday", ",", " 12", " ", "", "😀", "</s>"], ["jeu", "di", " 12", "</s>"]
    weights = torch.rand(2, 4, 8, generator=torch.Generator().manual_seed(0))
    merged, source_words, target_words = alignment.merge_words(weights, source, target)
    assert source_words == ["Thursday,", " 12", " 😀", "</s>"]
    assert target_words == ["jeudi", " 12", "</s>"]
    torch.testing.assert_close(merged[:, 0, 0], weights[:, :2, :3].sum(-1).mean(-1))
    torch.testing.assert_close(merged[:, 1, 2], weights[:, 2, 4:7].sum(-1))
    assert alignment.word_groups(["日", "本", "語", " is", " x", "y"]) == [[0], [1], [2], [3], [4, 5]]
    assert alignment.hard_alignment(torch.tensor([[0.1, 0.9], [0.8, 0.2]])) == [(1, 0), (0, 1)]


def test_score_is_sacrebleus_and_needs_equal_sides() -> None:
    found = evaluation.score(TARGETS, TARGETS[::-1], ("bleu", "chrf", "char_bleu"))
    assert found["bleu"] == pytest.approx(BLEU().corpus_score(TARGETS, [TARGETS[::-1]]).score, abs=1e-9)
    assert found["chrf"] == pytest.approx(CHRF().corpus_score(TARGETS, [TARGETS[::-1]]).score, abs=1e-9)
    assert found["signature"] == found["bleu_signature"]
    assert "tok:char" in found["char_bleu_signature"]
    assert evaluation.score(TARGETS, TARGETS, n_bootstrap=5)["bleu_interval"] == 0
    with pytest.raises(errors.EvaluationError, match=r"6 hypotheses for 5 references"):
        evaluation.score(TARGETS, TARGETS[:5])
    with pytest.raises(errors.EvaluationError, match=r"0 hypotheses for 0 references"):
        evaluation.score([], [])


def test_paired_test_is_sacrebleus() -> None:
    worse = [text.replace("o", "x").replace("j", "x") for text in TARGETS] * 5
    better = [text.replace("j", "x") for text in TARGETS] * 5
    references = TARGETS * 5
    rows = comparison.paired_test({"a": worse, "b": better}, references, ("bleu", "char_bleu"), n_samples=200)
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
        with pytest.raises(errors.EvaluationError, match=message):
            comparison.paired_test(bad, references)
    with pytest.raises(errors.EvaluationError, match="metric 'wer' has no paired test"):
        comparison.paired_test({"a": worse, "b": better}, references, ("wer",))


def test_score_by_length_groups_by_words() -> None:
    sources = ["a b", "a b c d e f", "g h i j k l", "w " * 80]
    hypotheses = ["x y", "a b c d e f", "g h i j", "w"]
    references = ["x y", "a b c d e f", "g h i j k l", "w w"]
    bins = comparison.score_by_length(sources, hypotheses, references)
    assert [(one.low, one.high, one.sentences) for one in bins] == [(1, 5, 1), (6, 10, 2), (51, 80, 1)]
    both = BLEU(effective_order=True).corpus_score(hypotheses[1:3], [references[1:3]]).score
    assert bins[1].bleu == pytest.approx(both, abs=1e-9)
    assert bins[1].length_ratio == pytest.approx(10 / 12)


def test_a_metric_of_the_users_own_loads_by_path(tmp_path: Path) -> None:
    found = comparison.external_score(
        str(Path(__file__).parents[1] / "helpers" / "exact_metric.py"), ["a", "b"], ["a", "c"]
    )
    assert found == {"exact": 0.5}
    with pytest.raises(errors.EvaluationError, match=r"metric .*missing.py.*could not load it"):
        comparison.external_metric(str(tmp_path / "missing.py"))


def test_summary_is_merged_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_directory.update_summary(tmp_path, {"train_seconds": 3, "bleu": 1})
    assert run_directory.update_summary(tmp_path, {"bleu": 2}) == {"train_seconds": 3, "bleu": 2}
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        run_directory.update_summary(tmp_path, {"bleu": 3})
    assert [path.name for path in tmp_path.iterdir()] == ["summary.json"]
    assert json.loads((tmp_path / "summary.json").read_text()) == {"train_seconds": 3, "bleu": 2}
    (tmp_path / "summary.json").write_text("[1]")
    with pytest.raises(errors.CheckpointError, match="expected a JSON object, found list"):
        run_directory.read_summary(tmp_path)


def test_checkpoints_that_cannot_be_used_are_named_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(errors.CheckpointError, match="no such directory"):
        run_directory.load_checkpoint(tmp_path / "missing")
    with pytest.raises(errors.CheckpointError, match="has no config.json"):
        run_directory.load_checkpoint(tmp_path)
    tokenizer = tiny_tokenizer()
    directory = save_checkpoint(tmp_path / "run", tiny_rnn(tokenizer), tiny_tokenizer("word"))
    run_directory.load_checkpoint(directory)
    tokenizer.add_tokens([f"new{index}" for index in range(9)])
    tokenizer.save_pretrained(directory)
    with pytest.raises(errors.CheckpointError, match=r"tokenizer has \d+ target tokens"):
        run_directory.load_checkpoint(directory)
    (directory / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(errors.CheckpointError, match="cannot be loaded") as caught:
        run_directory.load_checkpoint(directory)
    assert "\n" not in str(caught.value)


def test_data_options_of_a_run_flat_or_grouped(tmp_path: Path) -> None:
    assert run_directory.data_options(tmp_path) == {}
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("dataset_name: cldr\nlearning_rate: 0.1\ndata_seed: 4\nseed: 1\ntest_file: null\n")
    assert run_directory.data_options(tmp_path) == {"dataset_name": "cldr", "data_seed": 4}
    recipe.write_text("data:\n  train_file: a,b\n  source_lang: de\n")
    assert run_directory.data_options(tmp_path) == {"train_file": "a,b", "source_lang": "de"}
    recipe.write_text("a: [")
    with pytest.raises(errors.CheckpointError, match="not readable as YAML"):
        run_directory.data_options(tmp_path)


def test_samples_and_summary_facts_come_from_the_run() -> None:
    test_set = reporting.TestSet([f"s{i}" for i in range(50)], [f"r{i}" for i in range(50)], "test", True)
    system = reporting.System("run", "run", test_set, [f"r{i % 40}" for i in range(50)], 5, 2.0)
    reporting.score_system(system, ["ter"])
    facts = reporting.summary_facts(system)
    assert facts["num_beams"] == 5 and facts["test_sentences"] == 50 and facts["test_sentences_per_second"] == 25
    assert set(facts["signatures"]) == {"ter", "bleu", "chrf"}
    assert facts["samples"] == [
        {"source": f"s{i}", "reference": f"r{i}", "translation": f"r{i % 40}"} for i in (5, 15, 25, 35, 45)
    ]
    text = reporting.run_summary("run", {"parameters": 1234, "train_seconds": 125.2} | facts, {"model_type": "bart"})
    assert "1,234 parameters, trained for 2 min 05 s" in text
    assert f"BLEU {facts['bleu']:.2f}   {facts['signature']}" in text
    assert text.count("  source  ") == 5 and "beam 5" in text
    assert "TER" not in reporting.score_table([system]) and "ter ↓" in reporting.score_table([system])
    korean = reporting.TestSet(["a"], ["b"], "test", True, {"target_lang": "ko_KR"})
    assert reporting.default_metrics(korean) == ["bleu", "chrf", "char_bleu"]
    assert reporting.default_metrics(test_set) == ["bleu", "chrf"]

"""Scores of given translations, averaged checkpoints, words in place of unknown ones, and the pipeline."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, GenerationConfig, pipeline

from hf_rnn_seq2seq.errors import ArgumentError, CheckpointError
from hf_rnn_seq2seq.generation.pipeline import RnnTranslationPipeline
from hf_rnn_seq2seq.generation.scoring import score_ids, score_texts, summarize
from hf_rnn_seq2seq.generation.unknown_words import read_dictionary, replace_unknown
from hf_rnn_seq2seq.training.averaging import average_checkpoints
from hf_rnn_seq2seq.training.checkpoints import MANIFEST, STATE
from tests.helpers import script_runs
from tests.helpers.checkpoints import SOURCES, TARGETS, save_checkpoint, tiny_rnn, tiny_tokenizer

PAIRS = list(zip(SOURCES, TARGETS, strict=False))


@pytest.fixture(scope="module")
def loaded() -> tuple[Any, Any]:
    tokenizer = tiny_tokenizer()
    return tiny_rnn(tokenizer), tokenizer


@pytest.fixture(scope="module")
def checkpoint(loaded: tuple[Any, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("run") / "tiny", *loaded)


# ---------------------------------------------------------------- scores


def test_a_score_is_the_loss_of_its_pair_and_all_of_them_the_models_loss(loaded: tuple[Any, Any]) -> None:
    model, tokenizer = loaded
    scores = score_texts(model, tokenizer, *map(list, zip(*PAIRS, strict=True)), batch_size=4)
    total = tokens = 0.0
    for (source, target), score in zip(PAIRS, scores, strict=True):
        labels = tokenizer(text_target=[target], return_tensors="pt")["input_ids"]
        with torch.no_grad():
            loss = float(model(**tokenizer([source], return_tensors="pt"), labels=labels).loss)
        assert score.tokens == labels.shape[1] == len(score.per_token)
        assert score.log_probability == pytest.approx(-loss * score.tokens, rel=1e-5)
        assert score.log_probability == pytest.approx(sum(score.per_token), rel=1e-9)
        assert score.perplexity == pytest.approx(math.exp(loss), rel=1e-4)
        total, tokens = total + loss * score.tokens, tokens + score.tokens
    summary = summarize(scores)
    assert summary["loss"] == pytest.approx(total / tokens, rel=1e-5) and summary["tokens"] == tokens
    assert summary["perplexity"] == pytest.approx(math.exp(total / tokens), rel=1e-4)
    assert summary["sentences"] == len(PAIRS)


def test_what_the_search_says_of_its_hypotheses_is_their_score(loaded: tuple[Any, Any]) -> None:
    model, tokenizer = loaded
    ids = tokenizer(SOURCES, padding=True, return_tensors="pt")
    found = model.search(**ids, num_beams=3, max_new_tokens=8, return_dict_in_generate=True)
    targets = [row[:n] for row, n in zip(found.sequences[:, 1:].tolist(), found.lengths.tolist(), strict=True)]
    scores = score_ids(model, tokenizer(SOURCES)["input_ids"], targets)
    expected = [score.log_probability for score in scores]
    assert found.log_probabilities.tolist() == pytest.approx(expected, abs=1e-4)


def test_pairs_that_cannot_be_scored(loaded: tuple[Any, Any]) -> None:
    model, tokenizer = loaded
    with pytest.raises(ArgumentError, match="2 sources for 1 targets; both must have the same length"):
        score_ids(model, [[3, 2], [3, 2]], [[3, 2]])
    with pytest.raises(ArgumentError, match="pair 2: source and target must both hold text"):
        score_texts(model, tokenizer, ["a", "b"], ["x", " "])


def run(script: str, *arguments: object, stdin: str = "") -> tuple[int, str, str]:
    """Exit code, standard output and standard error of a script."""
    done = script_runs.run(script, *arguments, stdin=stdin.encode())
    return done.returncode, done.stdout.decode(), done.stderr.decode()


def test_score_script_reads_one_file_or_two(loaded: tuple[Any, Any], checkpoint: Path, tmp_path: Path) -> None:
    text = "".join(f"{source}\t{target}\n" for source, target in PAIRS)
    (tmp_path / "sources.txt").write_text("".join(f"{source}\n" for source, _ in PAIRS), encoding="utf-8")
    (tmp_path / "targets.txt").write_text("".join(f"{target}\n" for _, target in PAIRS), encoding="utf-8")
    code, out, err = run("score", checkpoint, "-", "--window", 4, stdin=text)
    assert code == 0, err
    expected = score_texts(*loaded, *map(list, zip(*PAIRS, strict=True)))
    for line, score in zip(out.splitlines(), expected, strict=True):
        log_probability, tokens, perplexity = line.split("\t")
        assert float(log_probability) == pytest.approx(score.log_probability, abs=1e-4)
        assert (int(tokens), float(perplexity)) == (score.tokens, pytest.approx(score.perplexity, rel=1e-3))
    assert f"loss {summarize(expected)['loss']:.4f}"[:10] in err
    two = run("score", checkpoint, tmp_path / "sources.txt", "--targets", tmp_path / "targets.txt")
    assert [line.split("\t")[1] for line in two[1].splitlines()] == [line.split("\t")[1] for line in out.splitlines()]
    for line, score in zip(two[1].splitlines(), expected, strict=True):
        assert float(line.split("\t")[0]) == pytest.approx(score.log_probability, abs=1e-4)
    (tmp_path / "pairs.tsv").write_text(text, encoding="utf-8")
    rows = run("score", checkpoint, tmp_path / "pairs.tsv", "--output_format", "jsonl")[1].splitlines()
    assert [len(json.loads(row)["per_token"]) for row in rows] == [score.tokens for score in expected]


def test_score_writes_a_line_for_each_line(checkpoint: Path, tmp_path: Path) -> None:
    lines = [b"3 days\xff ago\til y a 3 jours"] * 5
    lines[1], lines[3] = b"3 days ago\t", b"no tab " * 70
    lines[4] = b"ago " * 90 + b"\til y a"
    (tmp_path / "p.tsv").write_bytes(b"\n".join(lines))
    code, out, err = run("score", checkpoint, tmp_path / "p.tsv", "--window", 2)
    assert code == 0 and [bool(line) for line in out.split("\n")] == [True, False, True, False, True, False]
    assert "warning: 2 line(s) could not be read whole (first: line 1, 3)" in err
    assert "warning: 2 line(s) have an empty side and no score (first: line 2)" in err
    assert "warning: 1 of 3 sources are longer than the limit and were cut" in err
    assert "  3 of 5 lines" in err.splitlines()[-1]
    rows = run("score", checkpoint, tmp_path / "p.tsv", "--output_format", "jsonl")[1].splitlines()
    assert [json.loads(row)["tokens"] > 0 for row in rows] == [bool(line) for line in out.split("\n")[:-1]]
    code, out, err = run("score", checkpoint, "-", stdin="\n\t\n")
    assert (code, out) == (0, "\n\n") and "no score: 0 of 2 lines" in err
    assert run("score", checkpoint, "-")[:2] == (0, "")


def test_score_script_refuses_in_one_line(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("a\n")
    (tmp_path / "long.txt").write_text("a\nb\n")
    for arguments, stdin, message in (
        (("-",), "no tab\n", "line 1 has no tab between source and translation"),
        (
            (tmp_path / "short.txt", "--targets", tmp_path / "long.txt"),
            "",
            "short.txt: ends before line 2, where the other",
        ),
        ((tmp_path / "none.txt",), "", "no such file"),
    ):
        code, _, err = run("score", checkpoint, *arguments, stdin=stdin)
        assert code == 2 and err.splitlines()[-1].startswith("error: ") and message in err


# ---------------------------------------------------------------- averaging


def test_an_average_is_the_mean_and_loads(loaded: tuple[Any, Any], checkpoint: Path, tmp_path: Path) -> None:
    model, tokenizer = loaded
    others = []
    for number in range(2):
        other = AutoModelForSeq2SeqLM.from_pretrained(checkpoint)
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)))
        others.append(save_checkpoint(tmp_path / f"other{number}", other, tokenizer))
    # As `checkpoints/step-N` of a run: what describes this one is no part of the mean.
    first = shutil.copytree(checkpoint, tmp_path / "first")
    for name in (MANIFEST, STATE):
        (first / name).write_text("{}")
    code, out, err = run("average_checkpoints", first, *others, "--output_dir", tmp_path / "mean")
    assert code == 0 and "the mean of 3 checkpoints" in out, err
    weights = [load_file(folder / "model.safetensors") for folder in (checkpoint, *others)]
    mean = load_file(tmp_path / "mean" / "model.safetensors")
    left = {path.name for path in first.iterdir()} - {path.name for path in (tmp_path / "mean").iterdir()}
    assert {MANIFEST, STATE} <= left <= {MANIFEST, STATE, "summary.json"}
    assert mean.keys() == weights[0].keys()
    for name, tensor in mean.items():
        torch.testing.assert_close(tensor, sum(each[name].double() for each in weights).div(3).float())
    again = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "mean")
    assert again.generate(**AutoTokenizer.from_pretrained(tmp_path / "mean")(SOURCES[:1], return_tensors="pt")).numel()
    assert (tmp_path / "mean" / "custom_generate" / "generate.py").is_file()
    # The mean of a checkpoint with itself is itself.
    average_checkpoints([checkpoint, checkpoint], tmp_path / "same")
    assert (tmp_path / "same" / "model.safetensors").read_bytes() == (checkpoint / "model.safetensors").read_bytes()


def test_what_cannot_be_averaged(loaded: tuple[Any, Any], checkpoint: Path, tmp_path: Path) -> None:
    wide = save_checkpoint(tmp_path / "wide", tiny_rnn(loaded[1], hidden_size=32), loaded[1])
    deep = save_checkpoint(tmp_path / "deep", tiny_rnn(loaded[1], decoder_layers=2), loaded[1])
    other = save_checkpoint(tmp_path / "other", loaded[0], tiny_tokenizer("word"))
    (tmp_path / "empty").mkdir()
    for folders, output, message in (
        ([checkpoint], "out", "averaging needs at least 2"),
        ([checkpoint, tmp_path / "empty"], "out", "empty: has no model.safetensors"),
        ([checkpoint, wide], "out", "has the shape"),
        ([checkpoint, other], "out", "other: its vocabulary is not that of .*tiny; average runs of one tokenizer"),
        ([checkpoint, deep], "out", "differs from .* in which weights it has"),
        ([checkpoint, checkpoint], "wide", "wide exists"),
        ([checkpoint, checkpoint], "no/out", "its folder does not exist"),
    ):
        with pytest.raises(CheckpointError, match=message):
            average_checkpoints(folders, tmp_path / output)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["deep", "empty", "other", "wide"], (
        "nothing half-written"
    )


# ---------------------------------------------------------------- unknown words


def test_an_unknown_word_is_the_source_word_it_attends_to(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer("word")
    source = "three Xanthippe days"
    target = [*tokenizer("il y", add_special_tokens=False)["input_ids"], tokenizer.unk_token_id, tokenizer.eos_token_id]
    weights = torch.zeros(len(target), len(tokenizer(source)["input_ids"]))
    for row, column in enumerate((0, 0, 1, 3)):
        weights[row, column] = 1
    assert replace_unknown(tokenizer, source, target, weights) == "il y Xanthippe"
    (tmp_path / "words.tsv").write_text("xanthippe\tXanthippa\nthree\ttrois\nthree\tter\n", encoding="utf-8")
    dictionary = read_dictionary(str(tmp_path / "words.tsv"))
    assert dictionary == {"xanthippe": "Xanthippa", "three": "trois"}
    assert replace_unknown(tokenizer, source, target, weights, dictionary) == "il y Xanthippa"
    weights[2] = torch.tensor([0.0, 0.2, 0.0, 0.8])  # the end of sentence is no word
    assert replace_unknown(tokenizer, source, target, weights) == "il y Xanthippe"
    known = tokenizer("il y a")["input_ids"]
    assert replace_unknown(tokenizer, source, known, weights) == "il y a"
    (tmp_path / "bad.tsv").write_text("three trois\n")
    with pytest.raises(ValueError, match="line 1 has no tab between source and target word"):
        read_dictionary(str(tmp_path / "bad.tsv"))


# ---------------------------------------------------------------- the pipeline


def test_the_pipeline_gives_what_the_search_gives(loaded: tuple[Any, Any], checkpoint: Path) -> None:
    model, tokenizer = loaded
    translator = pipeline("rnn-translation", model=str(checkpoint), num_beams=3)
    assert isinstance(translator, RnnTranslationPipeline)
    texts = [*SOURCES[:4], " ", SOURCES[4]]
    found = translator(texts, batch_size=3, max_new_tokens=8)
    for text, row in zip(texts, found, strict=True):
        if not text.strip():
            assert row == {"translation_text": "", "score": 0.0, "log_probability": 0.0, "probability": 1.0}
            continue
        expected = model.generate(**tokenizer([text], return_tensors="pt"), num_beams=3, max_new_tokens=8)[0]
        assert row["translation_text"] == tokenizer.decode(expected, skip_special_tokens=True)
        assert row["score"] > row["log_probability"]
    alone = translator(texts[0], max_new_tokens=8)
    assert alone["translation_text"] == found[0]["translation_text"]
    # A product of one row and one of three round in their own ways.
    assert [alone[name] for name in ("score", "log_probability")] == pytest.approx(
        [found[0][name] for name in ("score", "log_probability")], rel=1e-5
    )


def test_a_saved_pipeline_is_a_checkpoint(checkpoint: Path, tmp_path: Path) -> None:
    translator = pipeline("rnn-translation", model=str(checkpoint))
    translator.save_pretrained(tmp_path / "saved")
    again = pipeline("rnn-translation", model=str(tmp_path / "saved"))
    assert again(SOURCES[:2]) == translator(SOURCES[:2])


def test_the_pipeline_returns_n_best_and_alignments(checkpoint: Path, loaded: tuple[Any, Any]) -> None:
    translator = pipeline("rnn-translation", model=str(checkpoint))
    options = {"num_beams": 3, "n_best": 2, "max_new_tokens": 8, "return_alignments": True}
    alone = [translator(text, **options) for text in SOURCES[:3]]
    together = translator(SOURCES[:3], batch_size=3, **options)
    empty = {"source_tokens": [], "target_tokens": [], "attention": [], "alignment": []}
    assert empty.items() <= translator(" ", **options)[0].items()
    for text, rows, again in zip(SOURCES, alone, together, strict=False):
        assert len(rows) == 2 and rows[0]["score"] >= rows[1]["score"]
        width = len(loaded[1](text)["input_ids"])
        for row, other in zip(rows, again, strict=True):
            assert row["translation_text"] == other["translation_text"] and row["alignment"] == other["alignment"]
            assert len(row["source_tokens"]) == width and len(row["attention"]) == len(row["target_tokens"])
            for weights, (source, _) in zip(row["attention"], row["alignment"], strict=True):
                assert sum(weights) == pytest.approx(1, abs=1e-4) and weights[source] == max(weights)


MODES: dict[str, dict[str, Any]] = {
    "n-grams": {"no_repeat_ngram_size": 2},
    "at least": {"min_new_tokens": 3},
    "repetition": {"repetition_penalty": 1.3},
    "bad words": {"bad_words_ids": [[5]]},
    "beams": {"num_beams": 3, "num_return_sequences": 2, "no_repeat_ngram_size": 2},
    "config": {"generation_config": GenerationConfig(max_new_tokens=4, suppress_tokens=[7])},
    "strings": {"stop_strings": ["e"]},
    "plain": {"return_dict_in_generate": False, "renormalize_logits": True},
}


@pytest.mark.parametrize("mode", MODES)
def test_the_pipeline_takes_the_options_of_generate(mode: str, checkpoint: Path, loaded: tuple[Any, Any]) -> None:
    model, tokenizer = loaded
    options = MODES[mode] if mode == "config" else {"max_new_tokens": 8, **MODES[mode]}
    own_options = {**options, "tokenizer": tokenizer} if mode == "strings" else options
    translator = pipeline("rnn-translation", model=str(checkpoint))
    found = translator([*SOURCES[:3], " "], batch_size=2, return_alignments=True, **options)
    for text, rows in zip(SOURCES[:3], found, strict=False):
        source = tokenizer([text], return_tensors="pt")
        sequences = model.generate(**source, **{**own_options, "return_dict_in_generate": False})
        assert isinstance(rows, list) == (len(sequences) > 1)
        for row, sequence in zip(rows if isinstance(rows, list) else [rows], sequences, strict=True):
            assert row["translation_text"] == tokenizer.decode(sequence, skip_special_tokens=True)
            length = len(row["target_tokens"])
            ids = sequence[1 : 1 + length]
            assert length == len(row["attention"]) and (sequence[1 + length :] == tokenizer.pad_token_id).all()
            loss = model(**source, labels=ids[None]).loss  # the model's own probability, whatever the options forbid
            assert row["log_probability"] == pytest.approx(-float(loss.detach()) * length, rel=1e-4)


def test_the_pipeline_draws_and_a_checkpoints_own_options_count(
    checkpoint: Path, loaded: tuple[Any, Any], tmp_path: Path
) -> None:
    own = shutil.copytree(checkpoint, tmp_path / "own")
    config = GenerationConfig.from_pretrained(own)
    config.update(no_repeat_ngram_size=2, max_new_tokens=6)
    config.save_pretrained(own)
    translator = pipeline("rnn-translation", model=str(own))
    expected = loaded[0].generate(
        **loaded[1](SOURCES[0], return_tensors="pt"), no_repeat_ngram_size=2, max_new_tokens=6
    )
    assert translator(SOURCES[0])["translation_text"] == loaded[1].decode(expected[0], skip_special_tokens=True)
    torch.manual_seed(3)
    drawn = translator(SOURCES[:2], do_sample=True, num_return_sequences=4)
    assert [len(rows) for rows in drawn] == [4, 4] and len({row["translation_text"] for row in drawn[0]}) > 1
    assert translator(SOURCES[0], return_tensors=True)["translation_token_ids"].tolist() == expected[0, 1:].tolist()
    with pytest.raises(ValueError, match="typo"):
        translator(SOURCES[0], typo=1)


def test_options_of_the_pipeline_hold_unless_a_call_overrides_them(checkpoint: Path) -> None:
    made = {"n_best": 2, "num_beams": 3, "max_new_tokens": 5, "return_alignments": True, "max_source_length": 3}
    translator = pipeline("rnn-translation", model=str(checkpoint), **made)
    rows = translator(SOURCES[1])
    assert len(rows) == 2 and len(rows[0]["source_tokens"]) == 3
    assert len(translator(SOURCES[1], n_best=1)) == 1


@pytest.mark.parametrize("name", ["n_best", "num_return_sequences"])
def test_the_pipeline_takes_as_many_beams_as_it_returns(name: str, checkpoint: Path) -> None:
    """Only an explicit `num_beams` is refused as too small: in the constructor, in a call, and with generate()."""
    options = {"max_new_tokens": 5, name: 3}
    expected = pipeline("rnn-translation", model=str(checkpoint))(SOURCES[0], num_beams=3, **options)
    assert len(expected) == 3
    assert pipeline("rnn-translation", model=str(checkpoint))(SOURCES[:2], **options)[0] == expected
    translator = pipeline("rnn-translation", model=str(checkpoint), **options)
    assert translator(SOURCES[0]) == expected
    assert len(translator(SOURCES[0], no_repeat_ngram_size=2)) == 3
    with pytest.raises(ValueError, match="num_return_sequences"):
        translator(SOURCES[0], num_beams=2)


def test_the_pipeline_names_inputs_that_are_not_text(checkpoint: Path) -> None:
    translator = pipeline("rnn-translation", model=str(checkpoint))
    assert translator([]) == [] == translator(())
    for given, kind in (
        ([["a"]], "list"),
        (None, "NoneType"),
        ([b"a"], "bytes"),
        ({"text": "a"}, "dict"),
        ([3], "int"),
    ):
        with pytest.raises(ValueError, match=f"input of type {kind}: must be a text or a list of texts"):
            translator(given)


def test_the_pipeline_tells_which_texts_were_not_read_whole(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = tiny_tokenizer("word")
    translator = pipeline("rnn-translation", model=tiny_rnn(tokenizer), tokenizer=tokenizer, max_new_tokens=3)
    texts = ["three", "qqq zzz", "three days ago in an hour", "qqq", " "]
    translator(texts, max_source_length=4)
    expected = [
        "2 of 5 sources hold nothing but unknown tokens (the first is text 2)",
        "1 of 5 sources are longer than the limit and were cut (the first is text 3)",
    ]
    assert caplog.messages == expected
    caplog.clear()
    assert len(list(translator((text for text in texts), max_source_length=4))) == 5
    assert caplog.messages == expected


def test_the_pipeline_without_this_package_name_in_the_checkpoint(checkpoint: Path, tmp_path: Path) -> None:
    """It needs the weights, the configuration and the tokenizer, and no other code."""
    bare = shutil.copytree(checkpoint, tmp_path / "bare", ignore=shutil.ignore_patterns("*.py", "custom_generate"))
    text = SOURCES[0]
    same = [pipeline("rnn-translation", model=str(folder))(text, max_new_tokens=5) for folder in (bare, checkpoint)]
    assert same[0] == same[1]

"""scripts/evaluate_bleu.py as a user runs it."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from hf_rnn_seq2seq.data.arguments import SPLITS, DataArguments
from hf_rnn_seq2seq.data.corpus import load_corpus
from hf_rnn_seq2seq.errors import DataError
from hf_rnn_seq2seq.evaluation.attention_agreement import attention_agreement
from hf_rnn_seq2seq.evaluation.scores import score
from hf_rnn_seq2seq.evaluation.test_set import read_test_set
from hf_rnn_seq2seq.generation.encoding import encode_sources
from hf_rnn_seq2seq.generation.translate import translate
from hf_rnn_seq2seq.run_directory import load_checkpoint
from tests.helpers.checkpoints import SOURCES, TARGETS, save_checkpoint
from tests.helpers.script_runs import ROOT, run

RECIPES = ROOT / "scripts" / "recipes"


def _pairs(path: Path) -> Path:
    path.write_text("".join(f"{source}\t{target}\n" for source, target in zip(SOURCES, TARGETS, strict=False)))
    return path


def test_evaluate_bleu_scores_a_run_on_its_own_test_split(checkpoint: Path, tmp_path: Path) -> None:
    directory = tmp_path / "run"
    model, tokenizer = load_checkpoint(checkpoint)
    save_checkpoint(directory, model, tokenizer)
    pairs = _pairs(tmp_path / "test.tsv")
    columns = "header: false\nsource_lang: en\ntarget_lang: fr\n"
    (directory / "recipe.yaml").write_text(f"train_file: {pairs}\ntest_file: {pairs}\n{columns}")
    (directory / "summary.json").write_text('{"train_seconds": 61.2, "parameters": 1000}')
    result = run("evaluate_bleu.py", directory, "--num_beams", 2, "--json", tmp_path / "all.json")
    assert result.returncode == 0, result.stderr
    summary = json.loads((directory / "summary.json").read_text())
    hypotheses = translate(model, tokenizer, SOURCES[: len(TARGETS)], num_beams=2, progress=False)
    scores = score(hypotheses, TARGETS)
    assert summary["bleu"] == pytest.approx(scores["bleu"], abs=1e-9)
    assert summary["signature"] == scores["signature"] and summary["num_beams"] == 2
    assert summary["train_seconds"] == 61.2 and len(summary["samples"]) == 5
    printed = result.stdout.decode()
    assert "1,000 parameters, trained for 1 min 01 s" in printed
    assert scores["signature"] in printed and f"{scores['bleu']:.2f}" in printed
    assert json.loads((tmp_path / "all.json").read_text())["systems"][0]["chrf"] == summary["chrf"]

    before = (directory / "summary.json").read_bytes()
    other = run("evaluate_bleu.py", directory, checkpoint, "--test_file", pairs, "--header", "false",
                "--paired", "bs", "--paired_samples", 20, "--bootstrap", 20,
                "--plot_by_length", tmp_path / "length.png", "--translations", tmp_path / "t.jsonl")  # fmt: skip
    assert other.returncode == 0, other.stderr
    assert (directory / "summary.json").read_bytes() == before
    assert "baseline" in other.stdout.decode() and "±" in other.stdout.decode()
    assert (tmp_path / "length.png").stat().st_size > 5000
    assert len((tmp_path / "t.jsonl").read_text().splitlines()) == len(TARGETS)


def test_evaluate_bleu_reports_the_attention_agreement(runs: Path, tmp_path: Path) -> None:
    """For any corpus with alignments and any model with attention; the run's own test split goes into the summary."""
    rows = [f"{source}\t{target}\t0-0" for source, target in zip(SOURCES, TARGETS, strict=False)]
    (tmp_path / "t.tsv").write_text("\n".join(["en\tfr\ta", *rows]) + "\n")
    data = f"train_file: {tmp_path / 't.tsv'}\ntest_file: {tmp_path / 't.tsv'}\nsource_lang: en\ntarget_lang: fr\n"
    cldr = "dataset_name: cldr\ndataset_config_name: en-fr\nmax_predict_samples: 20\n"
    given = DataArguments(**yaml.safe_load(cldr), alignment_column="alignment")
    lines = load_corpus(given, splits=("test",), aligned_splits=("test",)).splits["test"]["alignment"]
    aligned_words = sum(len({pair.split("-")[1] for pair in line.split()}) for line in lines)
    model, tokenizer = load_checkpoint(runs / "attention")
    agreement = attention_agreement(model, tokenizer, SOURCES[: len(TARGETS)], TARGETS, ["0-0"] * len(TARGETS))
    for recipe, options, words in (
        (data, ["--alignment_column", "a"], agreement[1]),
        (data + "alignment_column: a\n", [], agreement[1]),
        (data + "alignment_column: a\nalignment_unit: token\n", [], None),
        (data + "alignment_column: no\n", [], None),  # the training split may have had one
        (data, [], None),
        (cldr, [], aligned_words),
    ):
        for name in ("attention", "plain") if recipe == cldr else ("attention",):
            save_checkpoint(tmp_path / name, *load_checkpoint(runs / name))
            (tmp_path / name / "recipe.yaml").write_text(recipe)
            (tmp_path / name / "summary.json").unlink(missing_ok=True)
            result = run("evaluate_bleu.py", tmp_path / name, *options)
            assert result.returncode == 0, result.stderr
            summary = json.loads((tmp_path / name / "summary.json").read_text())
            assert summary.get("aligned_words") == (words if name == "attention" else None)
            if "aligned_words" in summary:
                share = summary["attention_agreement"]
                assert words != agreement[1] or share == 100 * agreement[0] / agreement[1]
                assert f"attention {share:.2f} %   of {words:,} aligned words" in result.stdout.decode()
            else:
                assert "aligned words" not in result.stdout.decode()
    refused = run("evaluate_bleu.py", tmp_path / "attention", "--alignment_column", "b")
    assert refused.returncode == 2 and b"'b'" in refused.stderr


@pytest.mark.long
def test_the_demo_learns_word_alignments(fresh_accelerate: None, tmp_path: Path) -> None:
    """With the demo's recipe, after a few updates, 95 % of the aligned words attend most to their source word."""
    sizes = {"embedding_size": 64, "hidden_size": 64, "vocab_size": 500, "max_train_samples": 2000, "dropout": 0}
    steps = {"max_steps": 200, "learning_rate": 1e-2, "warmup_steps": 20, "max_eval_samples": 20, "cpu_threads": 1}
    options = [word for name, value in (sizes | steps).items() for word in (f"--{name}", value)]
    trained = run("train.py", RECIPES / "cldr_en_fr.yaml", "--output_dir", tmp_path / "run", *options)
    assert trained.returncode == 0, trained.stderr
    result = run("evaluate_bleu.py", tmp_path / "run", "--split", "validation", "--json", tmp_path / "all.json",
                 "--max_predict_samples", 200)  # fmt: skip
    assert result.returncode == 0, result.stderr
    (found,) = json.loads((tmp_path / "all.json").read_text())["systems"]
    assert found["aligned_words"] > 500 and found["attention_agreement"] >= 95


def test_evaluate_bleu_names_an_uninformative_metric(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "words.tsv").write_text("en\tfr\n" + "un\tone\n" * 3)
    data = ("--test_file", tmp_path / "words.tsv", "--source_lang", "en", "--target_lang", "fr", "--no-summary")
    result = run("evaluate_bleu.py", checkpoint, *data, "--scores", "exact_match")
    assert result.returncode == 0 and b"warning" not in result.stderr, result.stderr
    assert "exact_match" in result.stdout.decode()
    lines = run("evaluate_bleu.py", checkpoint, *data).stderr.decode().splitlines()
    assert [line for line in lines if "warning: bleu counts runs of four words, and 3 of 3" in line]


def test_every_line_of_the_test_set_is_in_the_figures(checkpoint: Path, tmp_path: Path) -> None:
    sources, references = [*SOURCES[:2], "", SOURCES[2], " "], [*TARGETS[:2], "un deux", "", ""]
    for name, lines in (("t.en", sources), ("t.fr", references)):
        (tmp_path / name).write_text("".join(f"{line}\n" for line in lines))
    rows = [f"{source}\t{reference}" for source, reference in zip(sources, references, strict=True)]
    (tmp_path / "t.tsv").write_text("\n".join(["en\tfr", *rows, "no tab"]) + "\n")
    model, tokenizer = load_checkpoint(checkpoint)
    metrics = ("bleu", "char_bleu", "chrf", "chrf++", "gleu", "ter", "wer", "cer")
    for files, lines in ((f"{tmp_path / 't.en'},{tmp_path / 't.fr'}", 5), (tmp_path / "t.tsv", 6)):
        options = ("--source_lang", "en", "--target_lang", "fr", "--json", tmp_path / "all.json")
        options += ("--max_source_length", 5, "--scores", *metrics)
        result = run("evaluate_bleu.py", checkpoint, "--test_file", files, *options)
        (found,) = json.loads((tmp_path / "all.json").read_text())["systems"]
        cut = encode_sources(tokenizer, sources, 5)
        hypotheses = translate(model, tokenizer, cut, progress=False)
        expected = score(hypotheses, references, metrics)
        assert hypotheses[2] == hypotheses[4] == ""
        assert {name: found[name] for name in metrics} == {name: expected[name] for name in metrics}
        assert (found["test_sentences"], found["test_lines"]) == (5, lines)
        assert found["left_out"] == ({} if lines == 5 else {"wrong_field_count": 1})
        assert (found["empty_sources"], found["empty_references"]) == (2, 2)
        assert found["truncated_sources"] == len(cut.truncated) > 0
        printed = result.stdout.decode()
        assert "2 of 5 sources are empty and scored as they are" in printed
        assert "2 of 5 references are empty and scored as they are" in printed
        assert f"{len(cut.truncated)} of 5 sources are longer than the limit and were cut" in printed
        assert ("1 of 6 lines left out: wrong_field_count" in printed) == (lines == 6)


def _run(checkpoint: Path, folder: Path, **options: object) -> Path:
    """A copy of the checkpoint as a run with these data options."""
    save_checkpoint(folder / "run", *load_checkpoint(checkpoint))
    (folder / "run" / "recipe.yaml").write_text(yaml.safe_dump(options))
    return folder / "run"


def test_another_file_with_the_columns_of_the_run_needs_no_names(checkpoint: Path, tmp_path: Path) -> None:
    rows = list(zip(SOURCES, TARGETS, strict=False))
    text = "".join(f"{source}\t{target}\n" for source, target in rows)
    (tmp_path / "own.tsv").write_text("en\tfr\n" + text)
    (tmp_path / "other.tsv").write_text("source\ttarget\n" + text)
    (tmp_path / "own.jsonl").write_text("".join(json.dumps({"en": a, "fr": b}) + "\n" for a, b in rows))
    run_ = _run(checkpoint, tmp_path, train_file="train.tsv", source_lang="en", target_lang="fr")
    for name in ("own.tsv", "other.tsv", "own.jsonl"):
        found = read_test_set(run_, {"test_file": str(tmp_path / name)})
        assert (found.sources, found.references) == (SOURCES[: len(TARGETS)], TARGETS)
        assert found.description["target_lang"] == (None if name == "other.tsv" else "fr") and not found.own
    # The names of the run are none of a table without header.
    (tmp_path / "bare.tsv").write_text("a\tb\nc\td\n")
    named = _run(checkpoint, tmp_path, **{"test_file": str(tmp_path / "own.tsv"), "source_column": "en"})
    assert read_test_set(named, {"test_file": str(tmp_path / "bare.tsv"), "header": False}).sources == ["a", "c"]
    with pytest.raises(DataError, match="own.tsv: no column 'source'; it has 'en', 'fr'"):
        read_test_set(run_, {"test_file": str(tmp_path / "own.tsv"), "target_lang": "fr"})


def test_each_split_has_the_limit_of_the_run_or_the_one_given(checkpoint: Path, tmp_path: Path) -> None:
    for name, count in (("train", 6), ("validation", 5), ("test", 4)):
        (tmp_path / f"{name}.tsv").write_text("en\tfr\n" + "".join(f"a {row}\tb {row}\n" for row in range(count)))
    files = {f"{split}_file": str(tmp_path / f"{split}.tsv") for split in SPLITS}
    limits = {"max_train_samples": 5, "max_eval_samples": 3, "max_predict_samples": 2}
    run_ = _run(checkpoint, tmp_path, **files, **limits, source_lang="en", target_lang="fr")
    for split, own in (("train", 5), ("validation", 3), ("test", 2)):
        assert len(read_test_set(run_, {}, split).sources) == own
        assert len(read_test_set(run_, {"max_predict_samples": 1}, split).sources) == 1


def test_several_references_share_the_alignment_of_the_first(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "test.tsv").write_text("en\tfr\talign\na b\tx\t0-0\nc\ty\t0-0\na b\tz\t1-0\n")
    options = {"test_file": str(tmp_path / "test.tsv"), "source_lang": "en", "target_lang": "fr"}
    run_ = _run(checkpoint, tmp_path, **options, several_references=True, alignment_column="align")
    found = read_test_set(run_, {})
    assert found.sources == ["a b", "c"] and found.references == ["x", "y"] and found.alignments == ["0-0", "0-0"]
    done = run("evaluate_bleu.py", run_)
    assert done.returncode == 0, done.stderr.decode()


def test_a_run_without_a_test_file_says_what_to_give(checkpoint: Path, tmp_path: Path) -> None:
    files = {"train_file": "train.tsv", "source_lang": "en", "target_lang": "fr"}
    names = {"evaluate_bleu.py": (), "error_analysis.py": (), "report.py": ("--output_file", tmp_path / "page.html")}
    for validation, message in (("dev.tsv", "give --test_file, or --split validation"), (None, "give --test_file")):
        run_ = _run(checkpoint, tmp_path, **files, validation_file=validation)
        for script, words in names.items():
            done = run(script, run_, *words)
            error = f"error: test_file=None: {run_} names no test file; {message}"
            assert (done.returncode, done.stderr.decode().splitlines()[-1]) == (2, error)


def test_models_of_other_tasks_are_refused_before_any_work(checkpoint: Path, tmp_path: Path) -> None:
    """Their corpus is not looked for; of two systems none is evaluated alone."""
    other = shutil.copytree(checkpoint, tmp_path / "text")
    (other / "recipe.yaml").write_text("task: text\ndataset_name: pydoc\n")
    config = json.loads((other / "config.json").read_text()) | {"architectures": ["RnnForCausalLM"]}
    (other / "config.json").write_text(json.dumps(config))
    done = run("report.py", other, "--output_file", tmp_path / "page.html")
    assert done.returncode == 2 and b'the model continues a text; pipeline("text-generation") is for it' in done.stderr
    done = run("evaluate_bleu.py", checkpoint, other)
    assert (
        done.returncode == 2
        and b"this model continues a text, the first writes text; evaluate them apart" in done.stderr
    ), done.stderr


def test_evaluate_bleu_refuses_in_one_line(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr("requests.Session.request", unreachable)
    cases = {
        (): "has no recipe.yaml that says what it was trained on",
        ("--metric", "bleu"): "metric 'bleu': evaluate.load could not load it; a name needs network",
        ("--paired", "bs"): "--paired compares systems",
        ("--paired_samples", 9): "--paired_samples 9: needs --paired; leave it out",
        ("--scores", "blue"): "argument --scores: invalid choice: 'blue' (choose from 'bleu'",
        ("--dataset_name", "cldr", "--json", tmp_path / "no" / "x.json"): "its folder does not exist",
    }
    for arguments, message in cases.items():
        result = run("evaluate_bleu.py", checkpoint, *arguments)
        errors = result.stderr.decode()
        assert result.returncode == 2 and message in errors.splitlines()[-1], errors
        assert errors.splitlines()[-1].startswith("error: ") and "Traceback" not in errors

"""Pronunciation, inflection and transliteration by their recipes, from files in the form of the shared tasks."""

import json
import math
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import pipeline

from hf_rnn_seq2seq.errors import ArgumentError, CheckpointError, DataError
from hf_rnn_seq2seq.evaluation.test_set import read_test_set
from hf_rnn_seq2seq.generation.score_lines import PairReader
from hf_rnn_seq2seq.generation.translate_lines import lexicon_lines
from hf_rnn_seq2seq.training.arguments import RunOptions
from hf_rnn_seq2seq.training.averaging import average_checkpoints
from hf_rnn_seq2seq.training.seeds import check_seeds, train_seeds
from tests.helpers import warm
from tests.helpers.script_runs import run

ROOT = Path(__file__).resolve().parents[2]
RECIPES = ROOT / "scripts" / "recipes"
TOY = {"embedding_size": 16, "hidden_size": 32, "dropout": 0, "warmup_steps": 5, "cpu_threads": 1, "save_steps": 1000}
SOUNDS = {"a": "a", "e": "ɛ", "c": "k", "h": "ʃ", "o": "ɔ̃", "t": "t"}


def trained(folder: Path, recipe: str, *words: object, steps: int = 150) -> Path:
    options = [word for name, value in TOY.items() for word in (f"--{name}", value)]
    steps_of = (
        "--label_smoothing",
        0,
        "--max_steps",
        steps,
        "--eval_steps",
        steps,
        "--learning_rate",
        1e-2,
        "--output_dir",
        folder / "run",
    )
    done = run("train.py", RECIPES / f"{recipe}.yaml", *words, *options, *steps_of)
    assert done.returncode == 0, done.stderr.decode()
    assert "eval" in done.stderr.decode()
    return folder / "run"


def words() -> list[str]:
    return [a + b + c for a in SOUNDS for b in SOUNDS for c in SOUNDS]


@pytest.fixture(scope="module")
def g2p(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("g2p")
    rows = [f"{word}\t{' '.join(SOUNDS[letter] for letter in word)}\n" for word in words()]
    (folder / "train.tsv").write_text("".join(rows[::2] + rows[1::4]), encoding="utf-8")
    (folder / "dev.tsv").write_text("".join(rows[3::8]), encoding="utf-8")
    # A second pronunciation of the first test word is never said.
    (folder / "test.tsv").write_text("".join([*rows[7::8], f"{rows[7].partition(chr(9))[0]}\tt t t t\n"]), "utf-8")
    files = ("--train_file", "train.tsv", "--validation_file", "dev.tsv", "--test_file", "test.tsv")
    return trained(folder, "g2p", *(folder / word if word.endswith(".tsv") else word for word in files))


def test_the_recipe_learns_sounds_and_prints_both_errors(g2p: Path, tmp_path: Path) -> None:
    summary = json.loads((g2p / "summary.json").read_text())
    assert summary["best_metric_name"] == "sequence_error" and summary["eval_symbol_error"] <= 5
    done = run("evaluate_bleu.py", g2p, "--json", tmp_path / "all.json")
    assert done.returncode == 0, done.stderr.decode()
    assert "WER, whole outputs ↓  PER ↓" in done.stdout.decode()
    (found,) = json.loads((tmp_path / "all.json").read_text())["systems"]
    # Twenty-seven sources in twenty-eight rows.
    assert found["test_sentences"] == 27 and found["sequence_error"] <= 15 and found["symbol_error"] <= 5
    assert "references:nearest" in found["signatures"]["sequence_error"]


def test_another_test_file_is_read_as_the_runs_own(g2p: Path, tmp_path: Path) -> None:
    """Tables without header, with several references; `--scores` takes the same names."""
    (tmp_path / "two.tsv").write_text("ta\tx x\nta\tt a\n", encoding="utf-8")
    words = ("--test_file", tmp_path / "two.tsv", "--scores", "sequence_error", "wer", "--json", tmp_path / "a.json")
    refused = run("evaluate_bleu.py", g2p, *words)
    assert refused.returncode == 2 and b"scores='wer': takes one reference of each source" in refused.stderr
    paired = run("evaluate_bleu.py", g2p, g2p, *words[:2], "--paired", "bs")
    assert paired.returncode == 2 and b"paired: a source with several references has no paired test" in paired.stderr
    assert not paired.stdout, "refused before the translation"
    done = run("evaluate_bleu.py", g2p, *words[:4], *words[5:])
    assert done.returncode == 0, done.stderr.decode()
    (found,) = json.loads((tmp_path / "a.json").read_text())["systems"]
    assert (found["test_sentences"], found["sequence_error"]) in ((1, 0), (1, 100))
    # Where each source has one reference, as in most files of the recipe, there is nothing to refuse.
    (tmp_path / "one.tsv").write_text("hat\tʃ a t\ntac\tt a k\n", encoding="utf-8")
    words = ("--test_file", tmp_path / "one.tsv", "--json", tmp_path / "b.json")
    errors = run("evaluate_bleu.py", g2p, *words, "--scores", "wer", "cer", "symbol_error")
    assert errors.returncode == 0, errors.stderr.decode()
    (found,) = json.loads((tmp_path / "b.json").read_text())["systems"]
    assert found["wer"] == pytest.approx(found["symbol_error"]) and found["cer"] <= found["wer"]
    paired = run("evaluate_bleu.py", g2p, g2p, *words, "--paired", "bs", "--paired_samples", 20)
    assert paired.returncode == 0, paired.stderr.decode()
    rows = json.loads((tmp_path / "b.json").read_text())["paired"]
    assert [row["p_value"] for row in rows if row["system"] != str(g2p)] == [1, 1]


def test_the_nearest_of_several_references_is_shown(g2p: Path, tmp_path: Path) -> None:
    (tmp_path / "two.tsv").write_text("hat\tx x\nhat\tʃ a t\ntac\tt a k\n", encoding="utf-8")
    words = (g2p, "--test_file", tmp_path / "two.tsv")
    done = run(
        "evaluate_bleu.py", *words, "--translations", tmp_path / "a.jsonl", "--plot_by_length", tmp_path / "a.svg"
    )
    assert done.returncode == 0, done.stderr.decode()
    assert "reference  = ʃ a t" in done.stdout.decode() and "≠" not in done.stdout.decode()
    first, second = map(json.loads, (tmp_path / "a.jsonl").read_text(encoding="utf-8").splitlines())
    assert first["references"] == ["x x", "ʃ a t"] and second["references"] == ["t a k"]
    (tmp_path / "two.dict").write_text("hat  x x\nhat(2)  ʃ a t\ntac  t a k\n", encoding="utf-8")
    lexicon = ("--test_file", tmp_path / "two.dict", "--file_format", "cmudict")
    analyzed = run("error_analysis.py", g2p, *lexicon, "--output_file", tmp_path / "rows.jsonl")
    assert analyzed.returncode == 0, analyzed.stderr.decode()
    rows = list(map(json.loads, (tmp_path / "rows.jsonl").read_text(encoding="utf-8").splitlines()))
    assert [(row["reference"], row["chrf"]) for row in rows] == [("ʃ a t", 100), ("t a k", 100)]


def test_a_second_evaluation_leaves_no_score_of_the_first(g2p: Path, tmp_path: Path) -> None:
    again = shutil.copytree(g2p, tmp_path / "again")
    assert run("evaluate_bleu.py", again).returncode == 0
    assert "sequence_error" in json.loads((again / "summary.json").read_text())
    done = run("evaluate_bleu.py", again, "--scores", "exact_match", "--max_new_tokens", 1)
    assert done.returncode == 0 and "WER, whole outputs" not in done.stdout.decode()
    assert "\nexact_match 0.00   " in done.stdout.decode(), "the summary of the run names it too"
    summary = json.loads((again / "summary.json").read_text())
    assert summary["exact_match"] == 0 and not {"sequence_error", "symbol_error"} & {*summary}


def test_a_bare_word_goes_in_and_what_is_unknown_is_named(g2p: Path, caplog: pytest.LogCaptureFixture) -> None:
    done = run("translate.py", g2p, "--alignments", stdin="hat\ntaß\n".encode())
    first, second = done.stdout.decode().splitlines()
    phones, alignment = first.split("\t")
    assert phones == "ʃ a t"
    # Letters are what alignments count: one for each phone, in their range.
    pairs = [tuple(map(int, pair.split("-"))) for pair in alignment.split()]
    assert [target for _, target in pairs] == [*range(3)] and {source for source, _ in pairs} <= {*range(3)}
    assert len({source for source, _ in pairs}) > 1 and second
    assert "source 'taß': training never saw 'ß', which is read as unknown" in caplog.text
    assert "1 of 2 sources hold letters or features that training never saw" in done.stderr.decode()


def test_the_lexicon_is_asked_first_and_the_model_second(g2p: Path, tmp_path: Path) -> None:
    """In each format, with the variants that cover a probability; the written lexicon trains and answers again."""
    (tmp_path / "cmudict").write_text(";;; mine\nHAT  h æ t\nHAT(2)  a t\n", encoding="utf-8")
    words = ("--num_beams", 4, "--lexicon", tmp_path / "cmudict")
    done = run("translate.py", g2p, *words, "--n_best", 2, "--scores", stdin=b"hat\ntac\n\n")
    assert done.returncode == 0, done.stderr.decode()
    known, guessed, empty = done.stdout.decode().split("\n")[:3]
    assert known == "h æ t\t-0.6931\ta t\t-0.6931" and guessed.startswith("t a k\t-") and empty == ""
    lexicon = run(
        "translate.py", g2p, *words, "--mass", 0.4, "--output_format", "kaldi_probabilities", stdin=b"hat\ntac"
    )
    assert lexicon.stdout.decode().splitlines() == ["hat 1.0000 h æ t", "tac 1.0000 t a k"]
    every = run("translate.py", g2p, *words, "--mass", 1, "--output_format", "cmudict", stdin=b"hat\ntac")
    lines = every.stdout.decode().splitlines()
    assert lines[:3] == ["hat  h æ t", "hat(2)  a t", "tac  t a k"] and lines[-1].startswith("tac(4)  ")
    refused = run("translate.py", g2p, "--mass", 0.5, stdin=b"hat\n")
    assert refused.returncode == 2 and b"mass=0.5: one beam has one hypothesis" in refused.stderr


def test_a_lexicon_that_cannot_be_meant_is_refused(g2p: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.lex").write_text(";;; nothing\n")
    for words, message in (
        (("--mass", 0), b"--mass: '0' is not a finite number above 0"),
        (("--lexicon", tmp_path / "empty.lex"), b"holds no pronunciation in the format cmudict; choose another"),
        (("--output_format", "cmudict", "--scores"), b"--output_format cmudict: has no place for --scores"),
        (("--n_best", 9, "--num_beams", 3, "--output_file", tmp_path / "out.txt"), b"n_best"),
    ):
        refused = run("translate.py", g2p, "--text", "pa", *words)
        assert refused.returncode == 2 and message in refused.stderr, refused.stderr
    assert not list(tmp_path.glob("out*")), "nothing is left that would be in the way of the next command"
    refused = run("translate.py", g2p, "--text", "p a", "--output_format", "kaldi")
    assert b"ends a word at a space, and 'p a' has one; choose mfa or ipa" in refused.stderr
    for word in ("a(2)", ";;;a", "a  b"):
        refused = run("translate.py", g2p, "--output_format", "cmudict", stdin=f"hat\n{word}\n".encode())
        shown = " ".join(word.split())
        message = f"line 2: output_format='cmudict': the line of '{shown}' would mean something else; choose mfa or ipa"
        assert refused.returncode == 2 and message in refused.stderr.decode() and not refused.stdout
    with pytest.raises(DataError, match="the line of 'pa' would mean something else"):
        lexicon_lines("cmudict", "pa", [{"text": "a # b", "log_probability": 0.0}])
    speaker = pipeline("rnn-translation", model=str(g2p), device="cpu")
    for wrong in (0, 4):
        with pytest.raises(ValueError, match=f"^n_best={wrong}: must be at least 1 and at most num_beams=3"):
            speaker("hat", n_best=wrong, num_beams=3)


def test_columns_by_number_are_those_of_another_file_too(tmp_path: Path) -> None:
    """In the order lemma, features, form; with the answer as a feature nothing is trained."""
    rows = "".join(f"{word}\tV;PST\t{word}ed\n" for word in words()[:30])
    (tmp_path / "rows.tsv").write_text(rows, "utf-8")
    (tmp_path / "recipe.yaml").write_text(
        f"train_file: {tmp_path}/rows.tsv\nheader: false\nfeature_column: '1'\ntarget_column: '2'\n"
    )
    test_set = read_test_set(tmp_path, {"test_file": str(tmp_path / "rows.tsv")})
    assert test_set.sources[0] == f"V;PST\t{words()[0]}" and test_set.references[0] == f"{words()[0]}ed"
    given = ("--train_file", tmp_path / "rows.tsv", "--feature_column", 1, "--target_column", 1)
    refused = run("train.py", RECIPES / "inflection.yaml", *given, "--output_dir", tmp_path / "run")
    assert refused.returncode == 2 and b"feature_column='1': is the source or target column too" in refused.stderr


def test_features_without_a_word_have_no_score(g2p: Path, tmp_path: Path) -> None:
    (tmp_path / "source.txt").write_text("hat\nN;PL\t\n\ncat\n")
    (tmp_path / "target.txt").write_text("ʃ a t\nx\ny\n\n")
    done = run("score.py", g2p, tmp_path / "source.txt", "--targets", tmp_path / "target.txt")
    assert done.returncode == 0, done.stderr.decode()
    assert [bool(line) for line in done.stdout.decode().split("\n")[:4]] == [True, False, False, False]
    assert b"3 line(s) have an empty side and no score (first: line 2)" in done.stderr


def test_features_without_a_word_have_no_hypothesis(g2p: Path) -> None:
    """As a line without text; the lines around them are translated."""
    text = run("translate.py", g2p, "--scores", stdin=b"hat\nN;PL\t\n \ntac\n")
    assert text.returncode == 0, text.stderr.decode()
    assert [len(line.split("\t")) for line in text.stdout.decode().splitlines()] == [2, 1, 1, 2]
    assert text.stdout.decode().splitlines()[1:3] == ["", ""]
    rows = run("translate.py", g2p, "--output_format", "jsonl", stdin=b"hat\nN;PL\t\n \n")
    assert [len(json.loads(line)["translations"]) for line in rows.stdout.splitlines()] == [1, 0, 0]
    found = pipeline("rnn-translation", model=str(g2p), device="cpu")(["hat", "N;PL\t", " "])
    assert found[0]["translation_text"] and found[0]["log_probability"] < 0
    assert [(row["translation_text"], row["log_probability"]) for row in found[1:]] == [("", 0.0)] * 2


def test_the_last_tab_ends_a_source_with_features(tmp_path: Path) -> None:
    (tmp_path / "pairs.tsv").write_text("fre\tbonjour\tb O\n")
    pairs = PairReader(str(tmp_path / "pairs.tsv"))
    with pytest.raises(DataError, match="pairs.tsv: line 1 has 3 columns; give the source and the translation alone"):
        list(pairs)
    pairs = PairReader(str(tmp_path / "pairs.tsv"))
    pairs.features = True
    assert list(pairs) == [("fre\tbonjour", "b O")]
    hypotheses = [{"text": "b O", "log_probability": 0.0}]
    assert lexicon_lines("ipa", "fre\tbonjour", hypotheses) == "bonjour\tb O"


def test_seeds_are_an_ensemble(g2p: Path, tmp_path: Path) -> None:
    """Trained in parallel processes; evaluated, used and distilled as an ensemble, and resumed."""
    files = ("--train_file", g2p.parent / "train.tsv", "--validation_file", g2p.parent / "dev.tsv")
    words = (*files, "--test_file", g2p.parent / "test.tsv", "--output_dir", tmp_path / "two", "--num_seeds", 2)
    options = [word for name, value in TOY.items() for word in (f"--{name}", value)]
    command = [ROOT / "scripts" / "train.py", RECIPES / "g2p.yaml", *words, *options, "--max_steps", 20]
    command = [*warm.python(), *map(str, command)]
    for message in ("2 models; pipeline()", "seed-43: finished earlier"):
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0 and message in done.stderr, done.stderr
    assert {path.name for path in (tmp_path / "two").iterdir() if path.is_dir()} == {"seed-42", "seed-43", "logs"}
    names = [str(tmp_path / "two" / f"seed-{seed}") for seed in (42, 43)]
    # One was stopped and evaluated, the other was killed before its first checkpoint.
    summary = Path(names[0]) / "summary.json"
    summary.write_text('{"symbol_error": 9}')
    shutil.rmtree(Path(names[1]) / "checkpoints")
    (Path(names[1]) / "summary.json").unlink()
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and "earlier" not in done.stderr and "seed-43: done" in done.stderr, done.stderr
    assert all("stop_reason" in json.loads((Path(name) / "summary.json").read_text()) for name in names[1:])
    models = [load_file(Path(name) / "model.safetensors") for name in names]
    assert not torch.equal(models[0]["lm_head.weight"], models[1]["lm_head.weight"])
    both = run("translate.py", names[0], "--ensemble", names[1], "--scores", stdin=b"hat\ntac\n")
    assert run("translate.py", tmp_path / "two", "--scores", stdin=b"hat\ntac\n").stdout == both.stdout
    n_best = run("translate.py", tmp_path / "two", *("--n_best", 3, "--num_beams", 3, "--scores"), stdin=b"hat\n")
    texts = n_best.stdout.decode().rstrip("\n").split("\t")
    for model in (tmp_path / "two", str(tmp_path / "two")):
        rows = pipeline("rnn-translation", model=model, device="cpu")("hat", n_best=3)
        assert [row["translation_text"] for row in rows] == texts[::2]
        found = [row["log_probability"] for row in rows]
        assert found == pytest.approx([float(text) for text in texts[1::2]], abs=1e-3)
        assert [row["probability"] for row in rows] == pytest.approx([math.exp(value) for value in found])
    with pytest.raises(ValueError, match="holds an ensemble; save its models one by one"):
        pipeline("rnn-translation", model=tmp_path / "two", device="cpu").save_pretrained(tmp_path / "saved")
    for name in (tmp_path / "two", names[0]):
        done = run("evaluate_bleu.py", name, "--json", tmp_path / f"{Path(name).name}.json")
        assert done.returncode == 0, done.stderr.decode()
    scores = [json.loads((tmp_path / f"{name}.json").read_text())["systems"][0] for name in ("two", "seed-42")]
    assert scores[0]["symbol_error"] != scores[1]["symbol_error"]
    done = run("error_analysis.py", tmp_path / "two", names[0], "--output_file", tmp_path / "errors.jsonl")
    assert done.returncode == 0, done.stderr.decode()
    rows = [json.loads(line) for line in (tmp_path / "errors.jsonl").read_text("utf-8").splitlines()]
    entropies = {name: [row["entropy"] for row in rows if row["system"] == name] for name in ("two", "seed-42")}
    assert len(entropies["two"]) == len(entropies["seed-42"]) == len(rows) / 2 and all(entropies["two"])
    assert entropies["two"] != entropies["seed-42"]
    done = run("distill.py", tmp_path / "two", "--output_file", tmp_path / "distilled.tsv")
    assert done.returncode == 0, done.stderr.decode()
    distilled = (tmp_path / "distilled.tsv").read_text("utf-8").splitlines()
    sources = (g2p.parent / "train.tsv").read_text("utf-8").splitlines()
    assert [row.split("\t")[0] for row in distilled] == [row.split("\t")[0] for row in sources]  # no header here too
    refused = run("translate.py", tmp_path / "two", "--search", "generate", stdin=b"hat\n")
    assert refused.returncode == 2 and b"an ensemble decodes with the models' own search" in refused.stderr
    single = [*command[: command.index("--num_seeds")], *map(str, options), "--resume_from_checkpoint", "latest"]
    done = subprocess.run(single, capture_output=True, text=True)
    assert done.returncode == 2 and "two: is an ensemble; name one of its models: " in done.stderr, done.stderr
    with pytest.raises(CheckpointError, match="two: is an ensemble; name one of its models: "):
        average_checkpoints([names[0], tmp_path / "two"], tmp_path / "average")
    refused = run("train.py", RECIPES / "g2p.yaml", *words[:6], "--model_name_or_path", tmp_path / "two")
    assert refused.returncode == 2 and b"two: is an ensemble; name one of its models: " in refused.stderr
    refused = run("export_onnx.py", tmp_path / "two", "--output_dir", tmp_path / "out")
    assert refused.returncode == 2 and b"is an ensemble; name one of its models: " in refused.stderr
    (tmp_path / "two" / "ensemble.json").write_text("{}")
    refused = run("translate.py", tmp_path / "two", stdin=b"hat\n")
    assert refused.returncode == 2 and b"ensemble.json: not readable; expected" in refused.stderr


@pytest.mark.long
def test_a_signal_to_the_command_stops_all_seeds(g2p: Path, tmp_path: Path) -> None:
    files = ("--train_file", g2p.parent / "train.tsv", "--validation_file", g2p.parent / "dev.tsv")
    options = [word for name, value in TOY.items() for word in (f"--{name}", value)]
    command = [*warm.python(), ROOT / "scripts" / "train.py", RECIPES / "g2p.yaml", *files, *options]
    command += ["--max_steps", 10**6, "--num_train_epochs", 10**6, "--num_seeds", 2, "--cpu_threads", 1]
    command += ["--output_dir", tmp_path / "two"]
    child = subprocess.Popen([str(word) for word in command])
    logs = [tmp_path / "two" / f"seed-{seed}" / "train_log.jsonl" for seed in (42, 43)]
    deadline = time.monotonic() + 120
    while not any(log.is_file() and log.read_text() for log in logs) and time.monotonic() < deadline:
        time.sleep(0.1)
    child.send_signal(signal.SIGTERM)
    assert child.wait(120) == 128 + signal.SIGTERM
    begun = [log for log in logs if log.is_file() and log.read_text()]
    assert begun and all('"event": "stop"' in log.read_text() or '"event":"stop"' in log.read_text() for log in begun)
    assert all(any((log.parent / "checkpoints").iterdir()) for log in begun)


def test_seeds_are_checked_before_anything_is_written(g2p: Path, tmp_path: Path) -> None:
    words = ["--train_file", str(g2p.parent / "train.tsv"), "--num_seeds", "2"]
    out = ["--output_dir", str(tmp_path / "out")]
    check_seeds(RunOptions.parse([str(RECIPES / "g2p.yaml"), *words, *out]))  # no test file is needed
    for more, message in (
        (["--task", "classification", "--dataset_name", "documents", *out], "num_seeds=2: models that decode together"),
        (["--dataset_name", "cldr"], "num_seeds=2: needs output_dir"),
        (["--train_file", str(tmp_path / "none.tsv"), *out], "none.tsv"),
        (["--max_steps", "5", *out], "system 'seed 42': train_file=None: each system is trained; give --train_file"),
    ):
        for check in (check_seeds, train_seeds):
            with pytest.raises(ArgumentError, match=message):
                check(RunOptions.parse(["--num_seeds", "2", *more]))
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "model.safetensors").touch()
    for check in (check_seeds, train_seeds):
        with pytest.raises(ArgumentError, match=r"output_dir=.*already holds a run of one model \(model.safetensors\)"):
            check(RunOptions.parse([str(RECIPES / "g2p.yaml"), *words, *out]))
    assert len([*(tmp_path / "out").iterdir()]) == 1


@pytest.mark.parametrize("summed", [False, True])
def test_features_choose_the_form(summed: bool, tmp_path: Path) -> None:
    """A lemma has another form with other features, read before the lemma, or as a sum, which has no order."""
    rows = [f"{word}\t{word}{end}\t{tags}\n" for word in words() for end, tags in (("s", "N;PL"), ("", "N;SG"))]
    for name, part in (("train", rows[::2] + rows[1::2]), ("dev", rows[::9])):
        (tmp_path / f"{name}.tsv").write_text("".join(part), encoding="utf-8")
    files = ("--train_file", tmp_path / "train.tsv", "--validation_file", tmp_path / "dev.tsv")
    folder = trained(tmp_path, "inflection", *files, "--sum_features", summed)
    done = run("translate.py", folder, "--alignments", stdin=b"N;PL\ttache\nN;SG\ttache\nPL;N\ttache\n")
    plural, singular, turned = done.stdout.decode().splitlines()
    assert plural.split("\t")[0] == singular.split("\t")[0] + "s"
    if not summed:
        more = (*files, "--header", "false", "--feature_column", 2, "--output_dir", tmp_path / "more", "--sum_features")
        refused = run("train.py", *more, "--model_name_or_path", folder)
        assert refused.returncode == 2 and b"reads features as tokens; leave it out" in refused.stderr
        return
    assert turned == plural
    features = json.loads((folder / "config.json").read_text())["feature_token_ids"]
    assert len(features) == 3  # N, PL and SG, which the attention does not read
    assert {int(pair.split("-")[0]) for pair in plural.split("\t")[1].split()} <= {2, 3, 4, 5, 6, 7}
    for command, message in (
        (
            ("export_onnx.py", folder, "--format", "numpy", "--output_dir", tmp_path / "o"),
            "feature_token_ids=[",
        ),
        (
            ("plot_gradients.py", folder, "--split", "validation", "--output_file", tmp_path / "g.png"),
            "the sum of features has no distance to a word",
        ),
    ):
        refused = run(*command)
        assert refused.returncode == 2 and message.encode() in refused.stderr, refused.stderr.decode()


def test_features_that_are_not_there_cannot_be_summed(tmp_path: Path) -> None:
    (tmp_path / "train.tsv").write_text("walk\twalked\n", encoding="utf-8")
    words = ("--train_file", tmp_path / "train.tsv", "--header", "false", "--sum_features", "--max_steps", 1)
    done = run("train.py", *words, "--output_dir", tmp_path / "run")
    assert done.returncode == 2 and b"sum_features=True: the sources have no features" in done.stderr
    (tmp_path / "train.tsv").write_text("walk\twalked\tV;PST\n", encoding="utf-8")
    features = ("--feature_column", 2, "--tokenizer_algorithm", "char", "--output_dir", tmp_path / "run")
    done = run("train.py", *words[:4], "--max_steps", 1, *features)
    assert done.returncode == 2 and b"feature_column='2': features are tokens of the algorithm letter" in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.long
def test_letters_of_another_script(tmp_path: Path) -> None:
    rows = [f"{word}\t{''.join(chr(ord(letter) + 0x3F0) for letter in word)}\n" for word in words()]
    for name, part in (("train", rows), ("dev", rows[::9])):
        (tmp_path / f"{name}.tsv").write_text("".join(part), encoding="utf-8")
    files = ("--train_file", tmp_path / "train.tsv", "--validation_file", tmp_path / "dev.tsv")
    folder = trained(tmp_path, "transliteration", *files)
    assert json.loads((folder / "summary.json").read_text())["eval_exact_match"] >= 80

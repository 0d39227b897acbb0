"""Classifiers from the recipe to the page of shaded words: training, resuming, scores, `classify.py`, card."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertConfig, BertModel, pipeline

from hf_rnn_seq2seq.data.cldr_documents import document
from hf_rnn_seq2seq.evaluation.classification import pointing
from hf_rnn_seq2seq.generation.classify import classify
from hf_rnn_seq2seq.hub.model_card import read_facts, render
from hf_rnn_seq2seq.run_directory import load_as
from tests.helpers.script_runs import run, train
from tests.scripts.test_train import launch

ROOT = Path(__file__).resolve().parents[2]
RECIPE = ROOT / "scripts" / "recipes" / "documents.yaml"
TINY = {"max_train_samples": 96, "max_eval_samples": 16, "max_predict_samples": 24, "embedding_size": 8}
TINY |= {"encoder_hidden_size": 6, "attention_size": 8, "per_device_train_batch_size": 8, "learning_rate": 0.02}
TINY |= {"warmup_steps": 2, "cpu_threads": 1, "save_steps": 6, "eval_steps": 6, "logging_steps": 3}
TINY |= {"lr_scheduler_type": "constant"}
SENTENCES = {
    **{name: TINY[name] for name in ("cpu_threads", "save_steps", "eval_steps", "logging_steps")},
    "max_steps": 6,
}
WEIGHTS = "checkpoints/step-00000012/model.safetensors"


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve updates, from which little can be learned; what is tested is what is done with it."""
    folder = tmp_path_factory.mktemp("documents") / "run"
    assert "train: 96 texts of 8 classes, 0 of them cut at 160 tokens" in train(RECIPE, folder, **TINY, max_steps=12)
    return folder


def test_the_run_directory_is_that_of_every_task(reader: Path) -> None:
    names = {path.name for path in reader.iterdir()}
    assert {"model.safetensors", "tokenizer.json", "recipe.yaml", "summary.json", "learning_curve.png"} <= names
    assert len({name for name in names if name.endswith(".py")}) <= 12
    summary = json.loads((reader / "summary.json").read_text())
    assert summary["classes"] == ["de", "es", "fi", "fr", "hu", "it", "pl", "tr"]
    assert summary["target_tokens"] == 12 * 8, "a text has one class"
    assert 0 <= summary["eval_accuracy"] <= 100 and summary["best_metric_name"] == "accuracy"


def test_a_resumed_run_is_the_run(reader: Path, tmp_path: Path) -> None:
    train(RECIPE, tmp_path / "run", **TINY, max_steps=6)
    train(RECIPE, tmp_path / "run", "--resume_from_checkpoint", "latest", **TINY, max_steps=12)
    assert (reader / WEIGHTS).read_bytes() == (tmp_path / "run" / WEIGHTS).read_bytes()


@pytest.mark.long
def test_two_processes_count_every_text_once(tmp_path: Path) -> None:
    """Classes are gathered from both processes: loss and scores are those of one process."""
    given = {**TINY, "max_steps": 4, "dropout": 0, "max_eval_samples": 17}
    two = {"prefix": ["--multi_gpu", "--num_processes", "2", "--main_process_port", "0"]}
    words = [str(word) for name, value in given.items() for word in (f"--{name}", value)]
    half = ["--per_device_train_batch_size", "4", "--output_dir", str(tmp_path / "two")]
    done = launch(RECIPE, *words, *half, environment={"ACCELERATE_USE_CPU": "true"}, **two)
    assert done.returncode == 0, done.stderr[-3000:]
    train(RECIPE, tmp_path / "one", **given)
    one, both = (json.loads((tmp_path / name / "summary.json").read_text()) for name in ("one", "two"))
    assert both["processes"] == 2
    for fact in ("eval_loss", "eval_accuracy", "eval_macro_f1", "target_tokens"):
        assert both[fact] == pytest.approx(one[fact], abs=1e-4), fact


def test_scores_are_printed_beside_the_bag_of_words_and_kept(reader: Path, tmp_path: Path) -> None:
    done = run("evaluate_bleu.py", reader, "--json", tmp_path / "scores.json")
    assert done.returncode == 0, done.stderr.decode()
    printed, summary = done.stdout.decode(), json.loads((reader / "summary.json").read_text())
    assert f"bag of words and bigrams     {summary['bag_of_words']:.2f}" in re.sub(" {6,}", " " * 5, printed)
    assert f"{summary['sentence_pointing']:.2f} % of the texts have most weight on the sentence that decides" in printed
    assert f"the loss grows by {summary['deletion']['top']:.3f} nats without the sentence of most weight" in printed
    assert summary["test_texts"] == 24 and len(summary["samples"]) == 5
    (facts,) = json.loads((tmp_path / "scores.json").read_text())["systems"]
    assert facts["accuracy"] == summary["accuracy"]
    shown = run("evaluate_bleu.py", reader, "--split", "train", "--data_seed", "7", "--max_predict_samples", "40")
    model, tokenizer = load_as("SequenceClassification", str(reader))
    drawn = [document("train", 7, row) for row in range(40)]
    share = pointing(classify(model, tokenizer, [one.text for one in drawn]), [one.deciding for one in drawn])
    assert f"{share:.2f} % of the texts have most weight on the sentence that decides" in shown.stdout.decode()
    for words in (("--num_beams", "3"), ("--max_source_length", "5"), ("--length_penalty", "0"), ("--search", "x")):
        refused = run("evaluate_bleu.py", reader, *words)
        assert refused.returncode == 2 and f"{words[0]}: is for translations; a cl" in refused.stderr.decode(), words
    refused = run("evaluate_bleu.py", reader, "--bootstrap", "5")
    assert refused.returncode == 2 and b"--bootstrap: is for translations" in refused.stderr
    refused = run("evaluate_bleu.py", reader, "--dynamic_learning_rate", "0.1")
    assert refused.returncode == 2 and b"--dynamic_learning_rate: is for language models" in refused.stderr
    card = render(read_facts(reader, repo_id="ann/reader"))
    assert f"| accuracy | {summary['accuracy']:.2f} | test split | bag of words and bigrams: " in card
    assert "pipeline_tag: text-classification" in card and "It names one of 8 classes." in card
    assert 'classify = pipeline("text-classification", model="ann/reader")' in card
    assert "| text | class | true class |\n| --- | --- | --- |\n" in card
    assert "Its states become vectors of sentences by attention" in card
    assert f"grows by {summary['deletion']['top']:.3f} nats" in card
    sent = run("push_to_hub.py", reader, "ann/reader", "--dry_run").stdout.decode()
    assert all(name in sent for name in ("model.safetensors", "modeling_rnn_classifier.py", "README.md"))


@pytest.mark.long
def test_the_recipe_learns_and_its_attention_points(tmp_path: Path) -> None:
    """A third of the recipe's updates: the phrase that decides is found, which a bag of words cannot know."""
    train(RECIPE, tmp_path / "run", max_steps=900, eval_steps=900, save_steps=900, cpu_threads=1)
    done = run("evaluate_bleu.py", tmp_path / "run")
    assert done.returncode == 0, done.stderr.decode()
    print(done.stdout.decode())
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["accuracy"] > 85 and summary["sentence_pointing"] > 95 and summary["bag_of_words"] < 60
    assert summary["deletion"]["top"] > 5 * abs(summary["deletion"]["random"])


def test_a_text_is_classified_and_shaded(reader: Path, tmp_path: Path) -> None:
    text = document("test", 0, 0).text
    done = run("classify.py", reader, text.replace("\n", "\\n"), "--output_file", tmp_path / "words.html", "--all")
    assert done.returncode == 0, done.stderr.decode()
    shares = dict(part.split() for part in done.stdout.decode().split("\t"))
    page = (tmp_path / "words.html").read_text()
    assert len(shares) == 8 and page.count("<p style") == text.count("\n") + 1
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(reader), AutoTokenizer.from_pretrained(reader)
    (found,) = pipeline("text-classification", model=model, tokenizer=tokenizer, top_k=None)([text])
    assert {one["label"]: f"{one['score']:.4f}" for one in found} == shares
    # A line ends at a line feed alone, so each has one answer.
    done = run("classify.py", reader, stdin="3 days\u2028ago\nGer\x0cmany\r\n\u00e9".encode() + b"\xe9\n")
    assert done.stdout.count(b"\n") == 3 and b"warning: 1 line(s) could not be read whole" in done.stderr
    done = run("classify.py", reader, stdin=b"3 days ago\n \nGermany\n")
    assert done.returncode == 2 and b"line 2: is empty; give at least one word" in done.stderr
    assert run("classify.py", reader, stdin=b"").stderr.startswith(b"error: TEXT: is empty")


def test_without_its_training_texts_a_classifier_is_scored_alone(
    reader: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(reader, tmp_path / "moved")
    recipe = yaml.safe_load((reader / "recipe.yaml").read_text())
    recipe |= {"dataset_name": None, "train_file": str(tmp_path / "gone.tsv")}
    (tmp_path / "moved" / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    rows = [document("test", 0, row) for row in range(12)]
    lines = [json.dumps({"text": row.text, "label": row.label}) + "\n" for row in rows]
    (tmp_path / "test.jsonl").write_text("".join(lines))
    done = run("evaluate_bleu.py", tmp_path / "moved", "--test_file", tmp_path / "test.jsonl")
    assert done.returncode == 0 and b"bag of words" not in done.stdout, done.stderr.decode()
    assert "no bag of words for comparison: file" in caplog.text and b"on 12 texts" in done.stdout


def test_a_command_of_another_task_says_which_is_right(reader: Path, checkpoint: Path) -> None:
    done = run("translate.py", reader, stdin=b"3 days ago")
    assert done.returncode == 2 and b"the model names classes; hf-rnn classify is for it" in done.stderr
    done = run("classify.py", checkpoint, "3 days ago")
    assert done.returncode == 2 and b"the model writes text; hf-rnn translate is for it" in done.stderr
    done = run("classify.py", reader, " ")
    assert done.returncode == 2 and b"TEXT: is empty" in done.stderr


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Lines of a class and a text."""
    folder = tmp_path_factory.mktemp("lines")
    rows = [(f"{number % 2}", f"{('bad', 'good')[number % 2]} film number {number % 7} .") for number in range(40)]
    (folder / "rows.all").write_text("".join(f"{label} {text}\n" for label, text in rows))
    return folder / "rows.all"


@pytest.mark.parametrize("frozen", [True, False])
def test_over_a_pretrained_encoder_whose_states_are_read_once(
    frozen: bool, lines: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hf_rnn_seq2seq.data.labeled_texts import build_text_tokenizer

    texts = [line.partition(" ")[2] for line in lines.read_text().splitlines()]
    tokenizer = build_text_tokenizer(texts, algorithm="wordpiece", vocab_size=60)
    tokenizer.save_pretrained(tmp_path / "bert")
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    BertModel(BertConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(tmp_path / "bert")
    options = {"train_file": lines, "validation_file": lines, "test_file": lines, "file_format": "labeled"}
    options |= {"encoder": tmp_path / "bert", "freeze_encoder": frozen, "preset": "lin2017", "encoder_hidden_size": 4}
    options |= {"attention_size": 4, "attention_hops": 2, "classifier_size": 5, "task": "classification"}
    log = train(None, tmp_path / "run", **options, **SENTENCES)
    assert "train: 40 texts of 2 classes" in log
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    before = load_file(tmp_path / "bert" / "model.safetensors")
    after = load_file(tmp_path / "run" / "model.safetensors")
    name = "embeddings.word_embeddings.weight"
    same = torch.equal(before[name], after[f"model.words.encoder.foreign.model.{name}"])
    assert same == frozen and "eval_accuracy" in summary
    done = run("evaluate_bleu.py", tmp_path / "run")
    assert done.returncode == 0, done.stderr.decode()
    # Without its recipe the run is still a classifier; only its data must be named.
    alone = shutil.copytree(tmp_path / "run", tmp_path / "alone")
    (alone / "recipe.yaml").unlink()
    words = ("--test_file", lines, "--file_format", "labeled", "--json", tmp_path / "alone.json")
    shown = run("evaluate_bleu.py", alone, *words)
    assert shown.returncode == 0, shown.stderr.decode()
    (facts,) = json.loads((tmp_path / "alone.json").read_text())["systems"]
    assert facts["accuracy"] == json.loads((tmp_path / "run" / "summary.json").read_text())["accuracy"]
    assert b"nats without the token of most weight" in done.stdout


def test_what_is_for_translations_says_so(reader: Path, tmp_path: Path) -> None:
    done = run("compare.py", RECIPE, "--output_dir", tmp_path / "compared", "--seeds", "1")
    assert done.returncode == 2 and b"task='classification': compare scores translations" in done.stderr
    done = run("train_tokenizer.py", RECIPE, "--output_dir", tmp_path / "tokenizer")
    assert done.returncode == 2 and b"a tokenizer of this task is trained with its model, by train.py" in done.stderr
    planned = run("train.py", RECIPE, *(w for n, v in TINY.items() for w in (f"--{n}", v)), "--dry_run", "true")
    assert planned.returncode == 0 and b"source, 8 target" in planned.stdout, planned.stderr.decode()


REFUSED = [
    (("--preset", "yang2016"), "preset='yang2016': reads sentences; say where they end with split_sentences"),
    (("--metric_for_best_model", "bleu"), "metric_for_best_model='bleu': is not measured with task='classification'"),
    (("--attention_type", "dot"), "attention_type='dot': is not a field of the models of task='classification'"),
    (("--num_beams", "3"), "num_beams=3: has no effect with task='classification'"),
    (("--freeze_encoder", "true", "--encoder", "{model_type: bert}"), "freeze_encoder=True: the encoder's weights are"),
]


@pytest.mark.parametrize(("words", "message"), REFUSED, ids=[words[0] for words, _ in REFUSED])
def test_what_a_classifier_cannot_do_is_refused(words: tuple, message: str, lines: Path, tmp_path: Path) -> None:
    given = ["--task", "classification", "--train_file", lines, "--file_format", "labeled", "--cpu_threads", "1"]
    done = run("train.py", *given, *words, "--output_dir", tmp_path / "run")
    assert done.returncode == 2 and f"error: {message}" in done.stderr.decode(), done.stderr.decode()

"""Handwriting from the recipe to the pictures: training, resuming, nats, `write.py`, the Hub."""

import json
import random
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModel

from hf_rnn_seq2seq.data import hershey
from tests.helpers import script_runs
from tests.helpers.script_runs import run

ROOT = Path(__file__).resolve().parents[2]
RECIPE = ROOT / "scripts" / "recipes" / "hershey_handwriting.yaml"
TINY = {"max_train_samples": 40, "max_eval_samples": 6, "max_predict_samples": 5, "hidden_size": 12}
TINY |= {"mixture_components": 2, "window_components": 2, "per_device_train_batch_size": 8, "cpu_threads": 1}
TINY |= {"save_steps": 3, "eval_steps": 3, "logging_steps": 2, "warmup_steps": 1, "lr_scheduler_type": "constant"}
TINY |= {"max_target_length": 90, "point_tolerance": 0.06}
WEIGHTS = "checkpoints/step-00000006/model.safetensors"


def train(folder: Path, *words: object, **options: object) -> str:
    return script_runs.train(RECIPE, folder, *words, **{**TINY, **options})


@pytest.fixture(scope="module")
def writer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six updates, after which nothing is legible; what is tested is what is done with it."""
    folder = tmp_path_factory.mktemp("handwriting") / "run"
    assert "train: 40 rows, " in train(folder, max_steps=6)
    return folder


@pytest.fixture
def strokes(tmp_path: Path) -> Path:
    one = hershey.write("sea", "roman", random.Random(0))
    row = {"text": one.text, "strokes": one.strokes}
    (tmp_path / "mine.jsonl").write_text(json.dumps(row) + "\n")
    return tmp_path / "mine.jsonl"


def test_the_run_directory_is_that_of_every_task(writer: Path) -> None:
    names = {path.name for path in writer.iterdir()}
    assert {"model.safetensors", "config.json", "recipe.yaml", "summary.json", "learning_curve.png"} <= names
    summary = json.loads((writer / "summary.json").read_text())
    log = [json.loads(line) for line in (writer / "train_log.jsonl").read_text().splitlines()]
    assert summary["eval_nats_per_row"] > summary["eval_loss"] and "eval_perplexity" not in summary
    # Points are counted as targets, characters as sources.
    assert summary["target_tokens"] > 6 * 8 * 10 > summary["source_tokens"] > 0
    assert [row["eval_loss"] for row in log if row["event"] == "eval"][-1] == summary["eval_loss"]
    config = json.loads((writer / "config.json").read_text())
    assert config["model_type"] == "rnn_handwriting" and config["offset_deviation"] != [1.0, 1.0]


def test_a_resumed_run_is_the_run(writer: Path, tmp_path: Path) -> None:
    train(tmp_path / "run", max_steps=3)
    train(tmp_path / "run", "--resume_from_checkpoint", "latest", max_steps=6)
    whole, resumed = (load_file(folder / WEIGHTS) for folder in (writer, tmp_path / "run"))
    assert whole.keys() == resumed.keys() and all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_checkpoint_is_trained_further(writer: Path, tmp_path: Path) -> None:
    given = ["--task", "handwriting", "--dataset_name", "hershey", "--max_train_samples", 8, "--max_steps", 1]
    done = run(
        "train.py", *given, "--model_name_or_path", writer, "--output_dir", tmp_path / "more", "--cpu_threads", 1
    )
    assert done.returncode == 0, done.stderr.decode()
    before, after = (json.loads((folder / "config.json").read_text()) for folder in (writer, tmp_path / "more"))
    assert before["alphabet"] == after["alphabet"] and before["offset_deviation"] == after["offset_deviation"]


def test_a_test_split_is_measured(writer: Path) -> None:
    done = run("evaluate_bleu.py", writer)
    assert done.returncode == 0, done.stderr.decode()
    summary = json.loads((writer / "summary.json").read_text())
    assert summary["rows"] == 5 and 0 <= summary["finished"] <= 100
    assert summary["nats_per_row"] == pytest.approx(summary["nats_per_point"] * summary["points"] / 5)
    assert f"{summary['nats_per_row']:.2f}" in done.stdout.decode()
    refused = run("evaluate_bleu.py", writer, "--length_penalty", "0")
    assert refused.returncode == 2 and b"--length_penalty: has no effect on handwriting" in refused.stderr


def test_a_text_is_written_and_drawn(writer: Path, strokes: Path, tmp_path: Path) -> None:
    pictures = ["--window", tmp_path / "map.png", "--density", tmp_path / "density.png"]
    given = ["--prime", strokes, "--max_points", 12, "--bias", 0.5]
    done = run("write.py", writer, "sun", "--output_file", tmp_path / "hand.svg", *given, *pictures)
    assert done.returncode == 0, done.stderr.decode()
    line = (tmp_path / "hand.svg").read_text()
    assert line.startswith("<svg") and "<title>sun</title>" in line and line.count("<path") >= 2
    again = run("write.py", writer, "sun", "--output_file", tmp_path / "again.svg", *given)
    assert again.returncode == 0 and (tmp_path / "again.svg").read_text() == line
    for name in ("map.png", "density.png"):
        with Image.open(tmp_path / name) as picture:
            assert picture.width > 100
    done = run("write.py", writer, "sun", "sea", "--output_file", tmp_path / "sheet.png", "--max_points", 3)
    assert done.returncode == 0 and (tmp_path / "sheet.png").is_file()
    # The alphabet has no space: each word is written.
    for number, texts in enumerate((["sun", "sea"], [" sun  sea"])):
        done = run("write.py", writer, *texts, "--output_file", tmp_path / f"{number}.svg", "--max_points", 3)
        assert done.returncode == 0, done.stderr.decode()
    assert (tmp_path / "0.svg").read_text() == (tmp_path / "1.svg").read_text()
    done = run("write.py", writer, "sun", "--output_file", tmp_path / "one.png", "--max_points", 2)
    assert b"warning: 'sun' is not finished after 2 points" in done.stderr or done.stderr == b""


def test_a_hand_to_continue_needs_a_row(writer: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    done = run("write.py", writer, "sun", "--output_file", tmp_path / "hand.svg", "--prime", empty)
    assert done.returncode == 2 and f"file {empty}: has no row" in done.stderr.decode()


def test_tables_for_a_reader_are_written_whole(writer: Path, tmp_path: Path) -> None:
    given = [writer, "--output_dir", tmp_path / "tokens", "--rows", 2]
    done = run("pen_tokens.py", *given)
    assert done.returncode == 0, done.stderr.decode()
    rows = {path.stem: len(path.read_text().splitlines()) for path in (tmp_path / "tokens").iterdir()}
    assert {*rows} == {"train", "validation", "test", "written"} and rows["written"] == 2
    done = run("pen_tokens.py", *given)
    assert done.returncode == 2 and b"must be a new or an empty folder" in done.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["7up"], "the character '7' is not in the alphabet of this model: "),
        ([], "text=None: this network writes a given text"),
        (
            ["sun", "sea", "--window", "map.png"],
            "window='map.png': shows one writing; give one text, or one word of it",
        ),
        (["sun sea", "--density", "map.png"], "density='map.png': shows one writing; give one text, or one word of it"),
        (["sun", "--bias", "-1"], "--bias"),
        (["sun", "--output_file", "hand.gif"], "the suffix must be one of"),
    ],
)
def test_what_cannot_be_written_is_one_line(words: list[str], message: str, writer: Path, tmp_path: Path) -> None:
    given = words if "--output_file" in words else [*words, "--output_file", tmp_path / "hand.svg"]
    done = run("write.py", writer, *given)
    assert done.returncode == 2 and message in done.stderr.decode().splitlines()[-1], done.stderr.decode()
    assert not (tmp_path / "hand.svg").exists()


def test_a_push_is_tried(writer: Path) -> None:
    done = run("push_to_hub.py", writer, "ann/hand", "--dry_run")
    assert done.returncode == 0, done.stderr.decode()
    planned = done.stdout.decode()
    for name in ("modeling_rnn_handwriting.py", "window_attention.py", "mixture_density.py", "model.safetensors"):
        assert name in planned, name


def test_a_network_that_translates_does_not_write(checkpoint: Path, tmp_path: Path) -> None:
    done = run("write.py", checkpoint, "sun", "--output_file", tmp_path / "hand.svg")
    assert done.returncode == 2 and b"the model writes text; hf-rnn translate is for it" in done.stderr


def test_commands_for_texts_say_what_writes_by_hand(writer: Path) -> None:
    done = run("translate.py", writer, stdin=b"sea")
    assert done.returncode == 2 and b"the model writes by hand; hf-rnn write is for it" in done.stderr


def test_the_prediction_network_trains_and_writes(tmp_path: Path) -> None:
    train(tmp_path / "run", max_steps=2, preset="graves2013_handwriting", window_components=0)
    model = AutoModel.from_pretrained(tmp_path / "run")
    assert not model.config.reads_text and model.config.alphabet == ""
    done = run("write.py", tmp_path / "run", "--output_file", tmp_path / "hand.png", "--max_points", 9)
    assert done.returncode == 0, done.stderr.decode()
    done = run("evaluate_bleu.py", tmp_path / "run")
    assert done.returncode == 0 and b"nats a row" in done.stdout, done.stderr.decode()


@pytest.mark.parametrize(("text", "message"), [("", "has no row"), ("not JSON", "test.jsonl, line 1: is not JSON")])
def test_a_test_file_is_looked_at_before_the_training(text: str, message: str, strokes: Path, tmp_path: Path) -> None:
    (tmp_path / "test.jsonl").write_text(text)
    plan = {name: value for name, value in yaml.safe_load(RECIPE.read_text()).items() if name != "dataset_name"}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(plan))
    files = ["--train_file", strokes, "--test_file", tmp_path / "test.jsonl"]
    done = run("train.py", tmp_path / "mine.yaml", *files, "--output_dir", tmp_path / "run", "--dry_run")
    assert done.returncode == 2 and message in done.stderr.decode(), done.stderr.decode()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("num_beams", 3, "num_beams=3: has no effect with task='handwriting', it is for translation and captioning"),
        ("tokenizer_algorithm", "char", "tokenizer_algorithm='char': has no effect with task='handwriting'"),
        ("attention_type", "dot", "attention_type='dot': is not a field of the models of task='handwriting'"),
        ("metric_for_best_model", "bleu", "metric_for_best_model='bleu': is not measured with task='handwriting'"),
        ("preset", "luong2015", "preset='luong2015': is for task='translation'; give that, or one of graves2013_handw"),
        ("dataset_name", "cldr", "dataset_name='cldr': task='handwriting' has `hershey`"),
    ],
)
def test_options_without_effect_are_refused(name: str, value: object, message: str, tmp_path: Path) -> None:
    done = run("train.py", RECIPE, "--output_dir", tmp_path / "run", f"--{name}", value, "--max_train_samples", 8)
    assert done.returncode == 2 and message in done.stderr.decode(), done.stderr.decode()

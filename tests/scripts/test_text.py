"""Language models from the recipe to the picture of surprise: training, resuming, bits, sampling, card."""

import json
import math
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, pipeline

from hf_rnn_seq2seq.generation.surprise import score_text
from hf_rnn_seq2seq.hub.model_card import read_facts, render
from hf_rnn_seq2seq.run_directory import load_any, load_as
from tests.helpers import script_runs
from tests.helpers.script_runs import run
from tests.scripts.test_train import launch

ROOT = Path(__file__).resolve().parents[2]
RECIPE = ROOT / "scripts" / "recipes" / "tiny_shakespeare.yaml"
TINY = {"hidden_size": 8, "embedding_size": 6, "per_device_train_batch_size": 4, "max_target_length": 10}
TINY |= {"save_steps": 4, "eval_steps": 4, "logging_steps": 2, "lr_scheduler_type": "constant", "max_new_tokens": 12}
TINY |= {"cpu_threads": 1, "report_to": "none"}
LINES = [f"{name}: What, {number} times?\n" for number in range(30) for name in ("ROMEO", "JULIET")]
STEP = "checkpoints/step-00000012"


def train(text: Path, folder: Path, *words: object, **options: object) -> str:
    return script_runs.train(RECIPE, folder, *words, **(TINY | options | {"train_file": text}))


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "lines.txt"
    path.write_text("".join(LINES), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def writer(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve updates, from which little can be learned; what is tested is what is done with it."""
    folder = tmp_path_factory.mktemp("writer") / "run"
    log = train(text, folder, max_steps=12)
    assert "train: " in log and "bits_per_character" in log
    return folder


def test_the_run_directory_is_that_of_every_task(writer: Path) -> None:
    names = {path.name for path in writer.iterdir()}
    assert {"model.safetensors", "tokenizer.json", "recipe.yaml", "summary.json", "learning_curve.png"} <= names
    summary = json.loads((writer / "summary.json").read_text())
    assert summary["eval_bits_per_character"] == pytest.approx(summary["eval_loss"] / math.log(2))
    assert summary["best_metric_name"] == "loss" and summary["target_tokens"] > 12 * 4 * 9
    log = [json.loads(line) for line in (writer / "train_log.jsonl").read_text().splitlines()]
    evaluations = [line for line in log if line["event"] == "eval"]
    assert len(evaluations) == 3 and all(isinstance(line["sample"], str) for line in evaluations)
    trained = [line for line in log if line["event"] == "train"]
    assert all(line["bits_per_character"] == pytest.approx(line["loss"] / math.log(2), rel=2e-3) for line in trained)


def test_without_its_recipe_it_is_still_a_language_model(text: Path, writer: Path, tmp_path: Path) -> None:
    alone = shutil.copytree(writer, tmp_path / "alone", ignore=shutil.ignore_patterns("checkpoints"))
    (alone / "recipe.yaml").unlink()
    shown = run("evaluate_bleu.py", alone, "--test_file", text, "--dynamic_learning_rate", 0.1)
    assert shown.returncode == 0 and b" a character, perplexity " in shown.stdout, shown.stderr.decode()


def test_a_resumed_run_is_the_run_with_the_state_that_was_carried(text: Path, writer: Path, tmp_path: Path) -> None:
    train(text, tmp_path / "run", max_steps=4)
    train(text, tmp_path / "run", "--resume_from_checkpoint", "latest", max_steps=12)
    for file in ("model.safetensors", "carried.safetensors"):
        assert (writer / STEP / file).read_bytes() == (tmp_path / "run" / STEP / file).read_bytes(), file


@pytest.mark.long
def test_two_processes_carry_their_streams_and_resume(text: Path, writer: Path, tmp_path: Path) -> None:
    """Each has half of the streams: weights and carried states are those of one process, also over a stop."""

    def train_two(name: str, steps: int, *more: str) -> Path:
        given = TINY | {"max_steps": steps, "dropout": 0, "per_device_train_batch_size": 2, "train_file": text}
        words = [str(word) for option, value in given.items() for word in (f"--{option}", value)]
        two = {"prefix": ["--multi_gpu", "--num_processes", "2", "--main_process_port", "0"]}
        words += ["--output_dir", str(tmp_path / name), *more]
        done = launch(RECIPE, *words, environment={"ACCELERATE_USE_CPU": "true"}, **two)
        assert done.returncode == 0, done.stderr[-3000:]
        return tmp_path / name / "checkpoints" / "step-00000008"

    whole = train_two("two", 8)
    train_two("stopped", 4)
    resumed = train_two("stopped", 8, "--resume_from_checkpoint", "latest")
    train(text, tmp_path / "one", max_steps=8, dropout=0)
    for file in ("model.safetensors", "carried.safetensors"):
        one = load_file(tmp_path / "one" / "checkpoints" / "step-00000008" / file)
        both, again = load_file(whole / file), load_file(resumed / file)
        for name, tensor in one.items():
            torch.testing.assert_close(both[name], tensor, rtol=1e-4, atol=1e-5)
            assert torch.equal(both[name], again[name]), name


def test_bits_are_those_of_the_test_text_and_kept(writer: Path, tmp_path: Path) -> None:
    done = run("evaluate_bleu.py", writer, "--json", tmp_path / "bits.json")
    assert done.returncode == 0, done.stderr.decode()
    summary = json.loads((writer / "summary.json").read_text())
    whole = "".join(LINES)
    held_out = whole[-round(0.1 * len(whole)) :]
    model, tokenizer = load_as("CausalLM", writer)
    figures = score_text(model, tokenizer, [held_out]).figures()
    assert summary["bits_per_character"] == pytest.approx(figures["bits_per_character"])
    assert summary["test_characters"] == len(held_out) and summary["split"] == "test"
    printed = done.stdout.decode()
    assert f"{figures['bits_per_character']:.4f} bits" in printed and "the state carried over all of them" in printed
    (facts,) = json.loads((tmp_path / "bits.json").read_text())["systems"]
    assert facts["nats_per_character"] == summary["nats_per_character"]
    refused = run("evaluate_bleu.py", writer, "--bootstrap", "5")
    assert refused.returncode == 2 and b"--bootstrap: is for translations; a language model has bits" in refused.stderr
    refused = run("evaluate_bleu.py", writer, "--max_new_tokens", "5")
    assert refused.returncode == 2 and b"--max_new_tokens: is for translations" in refused.stderr
    refused = run("evaluate_bleu.py", writer, "--max_predict_samples", "5")
    assert refused.returncode == 2
    assert b"error: max_predict_samples=5: has no effect with task='text'; leave it out" in refused.stderr
    (tmp_path / "other.txt").write_text("ROMEO\n" * 20, encoding="utf-8")
    other = run("evaluate_bleu.py", writer, "--test_file", tmp_path / "other.txt", "--dynamic_learning_rate", "0.5")
    assert b"on 120 characters of the test split" in other.stdout
    static, dynamic = map(float, re.findall(r"([\d.]+) bits \(", other.stdout.decode()))
    assert dynamic < static and b"learning the text as it goes (rate 0.5)" in other.stdout
    assert json.loads((writer / "summary.json").read_text())["test_characters"] == len(held_out)
    card = render(read_facts(writer, repo_id="ann/writer"))
    assert f"| bits per character | {summary['bits_per_character']:.3f} | test split | state carried" in card
    assert "pipeline_tag: text-generation" in card and "It continues a text." in card
    assert 'write = pipeline("text-generation", model="ann/writer")' in card
    assert "2-layer LSTM decoder of width 8 with skip connections" in card and "Sampled from nothing:" in card
    pushed = run("push_to_hub.py", writer, "ann/writer", "--dry_run")
    assert pushed.returncode == 0 and b"modeling_rnn_causal.py" in pushed.stdout, pushed.stderr.decode()
    before = (writer / "summary.json").read_text()
    assert run("evaluate_bleu.py", writer, "--split", "validation").returncode == 0
    assert (writer / "summary.json").read_text() == before


def test_the_pipeline_continues_a_text(writer: Path) -> None:
    """A padded batch gives what each prompt gives alone, and a prompt may be empty."""
    write = pipeline("text-generation", model=str(writer))
    prompts = ["ROMEO: What", "JUL"]
    options = {"max_new_tokens": 6, "do_sample": False}
    batch = [one[0]["generated_text"] for one in write(prompts, batch_size=2, **options)]
    assert batch == [write(prompt, **options)[0]["generated_text"] for prompt in prompts]
    assert all(found.startswith(prompt) for found, prompt in zip(batch, prompts, strict=True))
    assert isinstance(write("", max_new_tokens=5)[0]["generated_text"], str)
    model = AutoModelForCausalLM.from_pretrained(writer)
    assert model.generation_config.do_sample and model.generation_config.max_new_tokens == 12


def test_the_surprise_of_each_character_is_drawn(writer: Path, tmp_path: Path) -> None:
    done = run("plot_surprise.py", writer, "ROMEO: <b>&\\n", "--output_file", tmp_path / "bits.html")
    assert done.returncode == 0, done.stderr.decode()
    page = (tmp_path / "bits.html").read_text()
    assert page.count("<span") == 12 and ">&lt;</span>" in page and ">&amp;</span>" in page
    model, tokenizer = load_as("CausalLM", writer)
    bits = score_text(model, tokenizer, ["ROMEO: <b>&\n"]).nats / math.log(2)
    assert done.stdout.decode() == f"{bits:.2f} bits for 12 characters, {bits / 12:.3f} a character\n"
    drawn = run("plot_surprise.py", writer, "--output_file", tmp_path / "bits.png", stdin=b"ROMEO:\n\tWh\xe9t")
    assert drawn.returncode == 0 and (tmp_path / "bits.png").read_bytes()[:4] == b"\x89PNG"
    for words, message in (
        (("", "--output_file", tmp_path / "s.html"), "text '': is empty"),
        (("a", "--output_file", tmp_path / "s.txt"), "the suffix must be one of .html"),
    ):
        refused = run("plot_surprise.py", writer, *words)
        assert refused.returncode == 2 and message in refused.stderr.decode()


def test_a_model_is_trained_further_with_its_tokenizer(writer: Path, text: Path, tmp_path: Path) -> None:
    given = [word for name, value in TINY.items() for word in (f"--{name}", value) if "_size" not in name]
    words = ["--task", "text", "--train_file", text, "--model_name_or_path", writer, "--max_steps", 2, *given]
    done = run("train.py", *words, "--output_dir", tmp_path / "run")
    assert done.returncode == 0, done.stderr.decode()
    assert (tmp_path / "run" / "tokenizer.json").read_text() == (writer / "tokenizer.json").read_text()
    model, _ = load_any(tmp_path / "run")
    assert model.config.hidden_size == 8


def test_pieces_of_several_characters(text: Path, tmp_path: Path) -> None:
    options = {"tokenizer_algorithm": "bpe", "vocab_size": 280, "max_steps": 2, "eval_steps": 2}
    train(text, tmp_path / "run", **options)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["characters_per_token"] > 1.2
    assert summary["eval_bits_per_character"] < summary["eval_loss"] / math.log(2)


def test_a_command_of_another_task_says_which_is_right(writer: Path, checkpoint: Path, tmp_path: Path) -> None:
    done = run("translate.py", writer, stdin=b"3 days ago")
    assert done.returncode == 2
    assert b'the model continues a text; pipeline("text-generation") is for it' in done.stderr
    done = run("plot_surprise.py", checkpoint, "3 days ago", "--output_file", tmp_path / "s.html")
    assert done.returncode == 2 and b"the model writes text; hf-rnn translate is for it" in done.stderr


REFUSED = [
    (("--attention_type", "dot"), "attention_type='dot': is not a field of the models of task='text'"),
    (("--encoder_layers", "2"), "encoder_layers=2: is not a field of the models of task='text'"),
    (("--preset", "luong2015"), "preset='luong2015': is for task='translation'; give that, or one of graves2013_text"),
    (("--metric_for_best_model", "bleu"), "metric_for_best_model='bleu': is not measured with task='text'"),
    (("--num_beams", "3"), "num_beams=3: has no effect with task='text'"),
    (("--max_train_samples", "3"), "max_train_samples=3: has no effect with task='text'"),
    (("--gradient_checkpointing", "true"), "gradient_checkpointing=True: has no effect with task='text'"),
    (("--tokenizer_algorithm", "word"), "tokenizer_algorithm='word': loses spaces and line ends"),
    (("--per_device_train_batch_size", "9999"), "per_device_train_batch_size: 9999 streams of a text of"),
    (("--validation_fraction", "1"), "validation_fraction=1.0: must be at least 0 and less than 1"),
]


@pytest.mark.parametrize(("words", "message"), REFUSED, ids=[words[0] for words, _ in REFUSED])
def test_what_a_language_model_cannot_do_is_refused(words: tuple, message: str, text: Path, tmp_path: Path) -> None:
    given = ["--task", "text", "--train_file", text, "--cpu_threads", "1", "--tokenizer_algorithm", "letter"]
    done = run("train.py", *given, *words, "--output_dir", tmp_path / "run")
    assert done.returncode == 2 and f"error: {message}" in done.stderr.decode(), done.stderr.decode()

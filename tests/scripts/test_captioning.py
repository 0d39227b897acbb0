"""Captions of drawn shapes from the recipe to the pictures: training, resuming, scores, `caption.py`, the pipeline."""

import json
import subprocess
from pathlib import Path

import datasets
import pytest
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, pipeline

from hf_rnn_seq2seq.data import shapes
from hf_rnn_seq2seq.evaluation.scores import score
from hf_rnn_seq2seq.model.processing_rnn_seq2seq import RnnSeq2SeqProcessor
from hf_rnn_seq2seq.run_directory import load_any
from tests.helpers import script_runs, warm
from tests.helpers.script_runs import run

ROOT = Path(__file__).resolve().parents[2]
RECIPE = ROOT / "scripts" / "recipes" / "shapes_captions.yaml"
TINY = {"max_train_samples": 64, "max_eval_samples": 8, "max_predict_samples": 12, "image_size": 32}
TINY |= {"embedding_size": 8, "hidden_size": 16, "attention_size": 8, "per_device_train_batch_size": 8}
TINY |= {"warmup_steps": 2, "cpu_threads": 1, "save_steps": 6, "eval_steps": 6, "logging_steps": 3}
TINY |= {"lr_scheduler_type": "constant", "mixed_precision": "no", "learning_rate": 0.02}
TINY["encoder"] = "{model_type: resnet, layer_type: basic, embedding_size: 4, hidden_sizes: [6, 8], depths: [1, 1]}"
WEIGHTS = "checkpoints/step-00000012/model.safetensors"


def train(folder: Path, *words: object, **options: object) -> str:
    return script_runs.train(RECIPE, folder, *words, **{**TINY, **options})


@pytest.fixture(scope="module")
def captioner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve updates, from which little can be read; what is tested is what is done with it."""
    folder = tmp_path_factory.mktemp("captions") / "run"
    assert "train: 64 captions of 64 pictures" in train(folder, max_steps=12)
    return folder


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    shapes.draw("shapes/test/0/3").save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


def test_the_run_directory_is_that_of_every_task(captioner: Path) -> None:
    names = {path.name for path in captioner.iterdir()}
    assert {"model.safetensors", "tokenizer.json", "processor_config.json", "recipe.yaml", "summary.json"} <= names
    assert "learning_curve.png" in names
    summary = json.loads((captioner / "summary.json").read_text())
    assert summary["source_tokens"] == 12 * 8, "a picture counts as one"
    assert summary["pictures"] == 72 and summary["eval_bleu"] >= 0 and summary["decoder_recurrence"] == "scan"


def test_a_resumed_run_is_the_run(captioner: Path, tmp_path: Path) -> None:
    train(tmp_path / "run", max_steps=6)
    train(tmp_path / "run", "--resume_from_checkpoint", "latest", max_steps=12)
    assert (captioner / WEIGHTS).read_bytes() == (tmp_path / "run" / WEIGHTS).read_bytes()


def test_scores_and_pointing_are_printed_and_kept(captioner: Path) -> None:
    done = run("evaluate_bleu.py", captioner)
    assert done.returncode == 0, done.stderr.decode()
    summary = json.loads((captioner / "summary.json").read_text())
    assert summary["test_sentences"] == 12 and 0 <= summary["pointing"] <= 100
    again = run("evaluate_bleu.py", captioner, "--translations", captioner.parent / "written.jsonl")
    rows = [json.loads(line) for line in (captioner.parent / "written.jsonl").read_text().splitlines()]
    assert again.returncode == 0 and len(rows) == 12
    outputs, references = [list(row["translations"].values())[0] for row in rows], [row["references"] for row in rows]
    assert score(outputs, references)["bleu"] == pytest.approx(summary["bleu"], abs=0.005)
    assert "A resnet encoder and a 1-layer LSTM decoder of width 16." in done.stdout.decode()
    assert f"pointing {summary['pointing']:.2f} %   of {summary['pointing_words']} words" in done.stdout.decode()


def test_a_data_set_of_pictures_is_trained_on_and_scored(tmp_path: Path) -> None:
    """The pictures and a list of captions for each are columns, as on the Hub."""
    names = [f"shapes/train/0/{number}" for number in range(12)]
    pictures = [shapes.draw(name) for name in names]
    captions = [[shapes.caption(name), "a shape"] for name in names]
    rows = datasets.Dataset.from_dict({"image": pictures, "captions": captions}).cast_column("image", datasets.Image())
    datasets.DatasetDict({"train": rows, "test": rows.select(range(4))}).save_to_disk(tmp_path / "drawn")
    given = {"dataset_name": tmp_path / "drawn", "target_column": "captions", "eval_steps": 4, "save_steps": 4}
    shown = train(tmp_path / "run", max_steps=4, **given)
    assert "train: 24 captions of 12 pictures; left out: none" in shown
    done = run("evaluate_bleu.py", tmp_path / "run")
    assert done.returncode == 0 and b"on 4 sentences of the test split" in done.stdout, done.stderr.decode()


def test_a_picture_is_described_and_drawn(captioner: Path, picture: Path, tmp_path: Path) -> None:
    done = run("caption.py", captioner, picture, "--output_file", tmp_path / "where.png", "--num_beams", 2)
    assert done.returncode == 0, done.stderr.decode()
    caption = done.stdout.decode().strip()
    with Image.open(tmp_path / "where.png") as drawn:
        assert caption and drawn.width > 200
    several = run("caption.py", captioner, picture, picture, "--num_beams", 2).stdout.decode().splitlines()
    assert several == [caption, caption]


def test_a_picture_that_is_not_there_is_named(captioner: Path, tmp_path: Path) -> None:
    done = run("caption.py", captioner, tmp_path / "nowhere.png")
    assert done.returncode == 2 and b"nowhere.png': no such file" in done.stderr


def test_a_command_for_texts_says_what_is_for_pictures(captioner: Path, picture: Path, checkpoint: Path) -> None:
    done = run("translate.py", captioner, stdin=b"a small red circle")
    assert done.returncode == 2 and b"reads pictures, not text; hf-rnn caption is for it" in done.stderr
    assert load_any(captioner)[0].main_input_name == "pixel_values", "the API loads what any run directory holds"
    done = run("caption.py", checkpoint, picture)
    assert done.returncode == 2 and b"reads text, not pictures; hf-rnn translate is for it" in done.stderr


def test_transformers_loads_processor_model_and_pipeline(captioner: Path, picture: Path) -> None:
    processor = AutoProcessor.from_pretrained(captioner)
    model = AutoModelForImageTextToText.from_pretrained(captioner)
    with Image.open(picture) as opened:
        inputs = processor(images=opened)
        assert inputs["pixel_values"].shape == (1, 3, 32, 32)
        found = processor.batch_decode(model.generate(**inputs, max_new_tokens=12), skip_special_tokens=True)
        pipe = pipeline("image-text-to-text", model=str(captioner))
        (described,) = pipe(images=opened, text="", max_new_tokens=12)
    assert described["generated_text"] == found[0]
    assert run("caption.py", captioner, picture, "--max_new_tokens", 12).stdout.decode().strip() == found[0]


def test_the_processor_of_a_translator_is_its_tokenizer(checkpoint: Path) -> None:
    assert AutoProcessor.from_pretrained(checkpoint)("2 kg")["input_ids"]


def test_a_processor_is_saved_alone_and_gives_prompts(captioner: Path, tmp_path: Path) -> None:
    AutoProcessor.from_pretrained(captioner).save_pretrained(tmp_path / "alone")
    processor = RnnSeq2SeqProcessor.from_pretrained(tmp_path / "alone")
    drawn = [shapes.draw("shapes/test/0/3"), shapes.draw("shapes/test/0/4")]
    inputs = processor(images=drawn, text=["a small", ""])
    tokenizer = processor.tokenizer
    start, words = tokenizer.bos_token_id, tokenizer("a small")["input_ids"][:-1]
    assert inputs["decoder_input_ids"].tolist() == [[start, *words], [tokenizer.pad_token_id] * 2 + [start]]
    assert inputs["decoder_attention_mask"].tolist() == [[1, 1, 1], [0, 0, 1]]
    assert inputs["pixel_values"].shape == (2, 3, 32, 32)
    assert processor(images=drawn)["decoder_input_ids"].tolist() == [[start], [start]]
    with pytest.raises(ValueError, match="3 texts for 2 pictures"):
        processor(images=drawn, text=["a", "b", "c"])


CLEAN = """
import sys
sys.modules["hf_rnn_seq2seq"] = None  # importing it is an error: the checkpoint's own code must do
from transformers import pipeline
pipe = pipeline("image-text-to-text", model=sys.argv[1], trust_remote_code=True)
print(pipe(images=sys.argv[2], text="", max_new_tokens=12)[0]["generated_text"])
"""


def test_the_pipeline_needs_no_package_where_its_code_is_trusted(captioner: Path, picture: Path) -> None:
    expected = run("caption.py", captioner, picture, "--max_new_tokens", 12).stdout.decode().strip()
    words = [*warm.python(package=False), "-c", CLEAN, str(captioner), str(picture)]
    done = subprocess.run(words, capture_output=True, text=True, cwd=picture.parent)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().splitlines()[-1] == expected


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--bpe_dropout", 0.1], "bpe_dropout=0.1: has no effect with task='captioning', it is for translation"),
        (["--guided_alignment_weight", 1], "guided_alignment_weight=1: has no effect with task='captioning'"),
        (["--task", "translation"], "image_size=64: has no effect with task='translation', it is for captioning"),
        (["--task", "poetry"], "task='poetry': must be one of translation, captioning"),
        (["--freeze_encoder"], "freeze_encoder=True: the encoder's weights are random; name a pretrained one"),
        (["--encoder", "none", "--encoder_layers", 1], "encoder=None: task='captioning' needs an encoder"),
    ],
    ids=str,
)
def test_options_that_do_not_fit_the_task_are_refused(words: list[object], message: str, tmp_path: Path) -> None:
    done = run("train.py", RECIPE, *words, "--output_dir", tmp_path / "run", "--max_train_samples", 8)
    assert done.returncode == 2 and message in done.stderr.decode(), done.stderr.decode()

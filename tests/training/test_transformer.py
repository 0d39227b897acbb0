"""A Transformer of random weights in the place of a recurrent model: the same loop, tokenizer and options."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForSeq2SeqLM

from hf_rnn_seq2seq.errors import ArgumentError
from hf_rnn_seq2seq.run_directory import load_checkpoint, read_summary
from hf_rnn_seq2seq.training.label_smoothing import SmoothedCrossEntropy, smoothed_objective
from tests.helpers.checkpoints import SOURCES, TARGETS, tiny_bart, tiny_rnn, tiny_tokenizer
from tests.helpers.script_runs import run, train

DATA = {
    "dataset_name": "cldr",
    "source_lang": "en",
    "target_lang": "fr",
    "max_train_samples": 64,
    "max_eval_samples": 8,
}
TINY = ["--d_model", 16, "--layers", 1, "--heads", 2, "--ffn_dim", 24]


def options(data: dict[str, object]) -> list[object]:
    return [word for name, value in data.items() for word in (f"--{name}", value)]


@pytest.fixture(scope="module", params=[True, False], ids=["one vocabulary", "two vocabularies"])
def start(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Transformer of random weights with a tokenizer of the corpus."""
    folder = tmp_path_factory.mktemp("transformer")
    sizes = {"vocab_size": 300, "source_vocab_size": 280, "joint_vocabulary": "false"}
    sizes = {"vocab_size": 300} if request.param else sizes
    made = run("train_tokenizer.py", *options(DATA | sizes), "--output_dir", folder / "tokenizer")
    assert made.returncode == 0, made.stderr
    made = run("benchmarks/peers/transformer.py", folder / "tokenizer", *TINY, "--output_dir", folder / "random")
    assert made.returncode == 0, made.stderr
    model = AutoModelForSeq2SeqLM.from_pretrained(folder / "random")
    count = sum(one.numel() for name, one in model.named_parameters() if "embed_positions" not in name)
    assert f"{count:,} trained parameters" in made.stdout.decode()
    assert (model.model.encoder.embed_tokens.weight is model.lm_head.weight) == request.param
    return folder / "random"


def test_it_is_trained_and_translates(start: Path, tmp_path: Path) -> None:
    given = DATA | {"model_name_or_path": start, "label_smoothing": 0.1, "dropout": 0.2, "max_new_tokens": 12}
    given |= {
        "max_steps": 6,
        "eval_steps": 3,
        "save_steps": 3,
        "per_device_train_batch_size": 16,
        "learning_rate": 3e-3,
    }
    given |= {"logging_steps": 1, "cpu_threads": 1, "report_to": "none"}
    train(None, tmp_path / "run", **given)
    log = [json.loads(line) for line in (tmp_path / "run" / "train_log.jsonl").read_text().splitlines()]
    evaluated = [line["eval_loss"] for line in log if line["event"] == "eval"]
    smoothed = [line["loss"] for line in log if line["event"] == "train"]
    assert evaluated[-1] < evaluated[0] and smoothed[-1] < smoothed[0]
    model, _ = load_checkpoint(tmp_path / "run")
    assert (model.config.model_type, model.config.dropout) == ("marian", 0.2)
    assert "decoder_recurrence" not in read_summary(tmp_path / "run")
    scored = run("evaluate_bleu.py", tmp_path / "run", "--max_predict_samples", 8)
    assert scored.returncode == 0 and b"MarianMTModel" in scored.stdout, scored.stderr
    # Resumed, it ends where it ended: the positions, which checkpoints lack, are constants and not trained.
    train(None, tmp_path / "run", **given, resume_from_checkpoint=tmp_path / "run" / "checkpoints" / "step-00000003")
    again, _ = load_checkpoint(tmp_path / "run")
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name]), name
    further = given | {"max_steps": 7, "label_smoothing": 0.0}  # regularization may change
    train(None, tmp_path / "run", **further, resume_from_checkpoint="latest")


def test_options_of_recurrent_models_are_refused(start: Path, tmp_path: Path) -> None:
    """Also those that it has under the same name, which would change its sizes."""
    for name, value in (("attention_type", "general"), ("encoder_layers", 2), ("hidden_size", 16)):
        given = options(DATA | {"model_name_or_path": start, name: value, "output_dir": tmp_path / "run"})
        refused = run("train.py", *given)
        shown = f"{name}={value!r}: model_name_or_path is a marian of transformers and decides what the model is; "
        assert refused.returncode == 2 and shown.encode() in refused.stderr, refused.stderr
        assert b"(allowed: dropout, label_smoothing)" in refused.stderr and not (tmp_path / "run").exists()


def test_an_existing_folder_and_odd_heads_are_refused(start: Path) -> None:
    again = run("benchmarks/peers/transformer.py", start, *TINY, "--output_dir", start)
    assert again.returncode == 2 and b"exists and is not an empty folder" in again.stderr
    odd = run("benchmarks/peers/transformer.py", start, "--d_model", 10, "--heads", 4, "--output_dir", "x")
    assert odd.returncode == 2 and b"--d_model 10: must be even, and a multiple of --heads 4" in odd.stderr


def test_smoothed_labels_have_the_loss_of_the_definition() -> None:
    """Szegedy 2016, section 7: (1 - e) of the loss of the label and e of the mean over all words, label by label."""
    tokenizer = tiny_tokenizer()
    model = tiny_bart(tokenizer)
    batch = tokenizer(SOURCES[:3], text_target=TARGETS[:3], padding=True, return_tensors="pt")
    batch["labels"][batch["labels"] == tokenizer.pad_token_id] = -100
    loss, figures = smoothed_objective(model, 0.3)(**batch)
    log_p = model(**batch).logits.log_softmax(-1)
    sums = []
    for row, labels in enumerate(batch["labels"].tolist()):
        for place, label in enumerate(labels):
            if label != -100:
                here = -log_p[row, place]
                sums.append(0.7 * here[label] + 0.3 * here.mean())
    expected = torch.stack(sums).mean()
    assert figures is None
    torch.testing.assert_close(loss, expected)
    weight = model.get_output_embeddings().weight
    torch.testing.assert_close(*(torch.autograd.grad(one, weight)[0] for one in (loss, expected)))


def test_who_smooths_and_what_cannot() -> None:
    tokenizer = tiny_tokenizer()
    bart = tiny_bart(tokenizer)
    assert smoothed_objective(bart, None) is None and smoothed_objective(bart, 0.0) is None
    assert smoothed_objective(tiny_rnn(tokenizer), 0.1) is None  # its own loss does
    assert isinstance(smoothed_objective(bart, 0.1), SmoothedCrossEntropy)
    with pytest.raises(ArgumentError, match=r"label_smoothing=1.5: must be at least 0 and below 1"):
        smoothed_objective(bart, 1.5)
    sizes = {"vocab_size": 20, "d_model": 8, "encoder_layers": 1, "decoder_layers": 1, "max_position_embeddings": 16}
    sizes |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 8, "decoder_ffn_dim": 8}
    other = AutoModelForSeq2SeqLM.from_config(AutoConfig.for_model("blenderbot-small", **sizes))
    with pytest.raises(
        ArgumentError, match="label_smoothing=0.1: a blenderbot-small does not name its decoder's input"
    ):
        smoothed_objective(other, 0.1)

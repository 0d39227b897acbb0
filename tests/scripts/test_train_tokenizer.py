"""The script that trains only a tokenizer."""

import subprocess
from pathlib import Path

import pytest
from transformers import AutoTokenizer

import hf_rnn_seq2seq  # noqa: F401 - AutoTokenizer knows its class
from tests.helpers import warm

ROOT = Path(__file__).resolve().parents[2]
DATA = ["--dataset_name", "cldr", "--dataset_config_name", "en-fr", "--max_train_samples", "300"]


def run(*words):
    command = [*warm.python(), str(ROOT / "scripts" / "train_tokenizer.py"), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)


@pytest.mark.parametrize("joint", ["true", "false"])
def test_it_writes_what_auto_tokenizer_loads(joint, tmp_path):
    folder = tmp_path / "new" / "tokenizer"
    options = ["--vocab_size", "500", "--joint_vocabulary", joint, "--max_source_length", "77", "--output_dir", folder]
    result = run("scripts/recipes/cldr_en_fr.yaml", *DATA, *options)
    assert result.returncode == 0, result.stderr
    assert "trained on 300 rows; left out: none" in result.stdout
    tokenizer = AutoTokenizer.from_pretrained(folder)
    encoded = tokenizer("3 kilometers", text_target="3 kilomètres")
    assert tokenizer.decode(encoded["labels"], skip_special_tokens=True) == "3 kilomètres"
    assert tokenizer.model_max_length == 77 and len(tokenizer) <= 500
    assert (type(tokenizer).__name__ == "RnnSeq2SeqTokenizer") == (joint == "false")
    assert [path.name for path in folder.parent.iterdir()] == ["tokenizer"]


def test_it_names_the_algorithm_of_each_side(tmp_path):
    sides = ["--source_tokenizer_algorithm", "letter", "--target_tokenizer_algorithm", "word"]
    sides += ["--joint_vocabulary", "false"]
    result = run("scripts/recipes/cldr_en_fr.yaml", *DATA, *sides, "--output_dir", tmp_path / "tokenizer")
    assert ": letter and word, " in result.stdout, result.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (DATA, "error: output_dir=None"),
        (
            [*DATA, "--output_dir", "hf_rnn_seq2seq"],
            "error: output_dir='hf_rnn_seq2seq': must be a new or an empty",
        ),
        ([*DATA, "--vocab_size", "100", "--output_dir", "{new}"], "error: vocab_size=100: bpe needs at least 260"),
        (["--train_file", "no.tsv", "--output_dir", "{new}"], "error: file no.tsv does not exist"),
        ([*DATA, "--vocab_sise", "100", "--output_dir", "{new}"], "vocab_size"),
        ([*DATA, "--dropout", "0.1", "--output_dir", "{new}"], "error: dropout: is for training, no tokenizer depends"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(words, message, tmp_path):
    result = run(*(word.format(new=tmp_path / "new") for word in words))
    assert result.returncode == 2
    assert message in result.stderr and "Traceback" not in result.stderr
    assert not list(tmp_path.iterdir())

"""What a run directory stores: the checkpoint, the data options, the summary."""

import json
from pathlib import Path

import pytest

from hf_rnn_seq2seq import errors, run_directory
from tests.helpers.checkpoints import save_checkpoint, tiny_rnn, tiny_tokenizer
from tests.helpers.script_runs import run


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


def test_an_ensemble_names_its_models_where_one_is_wanted(tmp_path: Path) -> None:
    (tmp_path / "seeds").mkdir()
    (tmp_path / "seeds" / "ensemble.json").write_text('{"members": ["seed1", "seed2"]}')
    for script, *words in (
        ("push_to_hub.py", "user/name", "--dry_run"),
        ("plot_learning_curve.py", "--output_file", tmp_path / "curve.png"),
        ("classify.py", "text"),
    ):
        done = run(script, tmp_path / "seeds", *words)
        folder = tmp_path / "seeds"
        message = f"{folder}: is an ensemble; name one of its models: {folder}/seed1, {folder}/seed2"
        assert (done.returncode, done.stderr.decode()) == (2, f"error: {message}\n"), script


def test_data_options_of_a_run(tmp_path: Path) -> None:
    assert run_directory.data_options(tmp_path) == {}
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("dataset_name: cldr\nlearning_rate: 0.1\ndata_seed: 4\nseed: 1\ntest_file: null\n")
    assert run_directory.data_options(tmp_path) == {"dataset_name": "cldr", "data_seed": 4}
    recipe.write_text("train_file: a,b\nencoder:\n  model_type: bert\n  vocab_size: 391\nvocab_size: 1000\n")
    assert run_directory.data_options(tmp_path) == {"train_file": "a,b"}
    assert run_directory.recipe_options(tmp_path)["vocab_size"] == 1000, "a field of the encoder is no option"
    recipe.write_text("a: [")
    with pytest.raises(errors.CheckpointError, match="not readable as YAML"):
        run_directory.data_options(tmp_path)

"""The benchmark runs at toy size, and what it compares is the same computation."""

import json
import subprocess
from pathlib import Path

import pytest
import torch
from benchmarks.measure import training_flops
from torch.utils.flop_counter import FlopCounterMode

from hf_rnn_seq2seq.model.recurrence import RecurrentLayer
from tests.helpers import warm
from tests.helpers.models import tiny_model

SCRIPT = Path(__file__).parents[2] / "scripts" / "benchmark.py"
TOY = ["--vocab_size=40", "--embedding_size=8", "--hidden_size=12", "--batch_size=3", "--rounds=1", "--target_length=6"]


def run(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([*warm.python(), str(SCRIPT), *arguments], capture_output=True, text=True, check=False)


@pytest.mark.long
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_the_forms_of_a_training_step_have_one_loss(tmp_path: Path, cell: str) -> None:
    done = run("train", *TOY, "--cell_type", cell, "--json", str(tmp_path / "a.json"), "--device", "cpu")
    assert done.returncode == 0, done.stderr
    rows = {row["variant"]: row for row in json.loads((tmp_path / "a.json").read_text())}
    forms = ["tutorial", "loop", "loop bf16", "scan", "scan bf16", "no feeding", "no feeding bf16"]
    assert list(rows) == forms
    assert rows["tutorial"]["value"] == pytest.approx(rows["loop"]["value"], abs=1e-5)
    assert rows["scan"]["value"] == pytest.approx(rows["loop"]["value"], abs=1e-5)
    assert rows["no feeding"]["value"] != pytest.approx(rows["loop"]["value"], abs=1e-5)
    assert rows["tutorial"]["ratio_to_reference"] == 1
    for row in rows.values():
        assert row["tokens_per_s"] > 0 and row["cpu_s"] > 0 and row["peak_mb"] > 50 and 0 < row["share_of_peak"] < 1


@pytest.mark.long
def test_a_checkpoint_of_the_users_own_is_measured(tmp_path: Path) -> None:
    """Any checkpoint can be measured: here one that the scan does not cover."""
    tiny_model(layer_norm=True).float().save_pretrained(tmp_path / "model")
    sizes = ["--batch_size=2", "--target_length=3", "--rounds=1", "--no_memory"]
    done = run("train", "--model", str(tmp_path / "model"), *sizes, "--json", str(tmp_path / "a.json"))
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "a.json").read_text())
    assert [row["variant"] for row in rows] == ["loop", "loop bf16"]
    assert all(row["peak_mb"] is None for row in rows)


def test_growth_measures_each_size_by_itself(tmp_path: Path) -> None:
    # With this batch and vocabulary beams cost a multiple of greedy search, so noise does not change their order.
    options = ("--only", "decoder_layers", "processes", "--rounds=3", "--vocab_size=4000", "--batch_size=32")
    done = run("growth", *TOY, *options, "--json", str(tmp_path / "a.json"))
    assert done.returncode == 0, done.stderr
    rows = {row["variant"]: row for row in json.loads((tmp_path / "a.json").read_text())}
    assert list(rows) == ["decoder_layers=1", "decoder_layers=2", "decoder_layers=4", "processes=1", "processes=2"]
    sizes = [rows[f"decoder_layers={layers}"]["parameters"] for layers in (1, 2, 4)]
    assert sizes[2] - sizes[1] == 2 * (sizes[1] - sizes[0]) > 0
    assert all(row["peak_mb"] > 50 and row["cpu_us_per_token"] > 0 for row in rows.values())
    searched = [row for row in rows.values() if "greedy_cpu_us_per_token" in row]
    assert len(searched) == 4, "not with two processes"
    assert all(row["beams_cpu_us_per_token"] > row["greedy_cpu_us_per_token"] > 0 for row in searched)
    assert run("growth", "--only", "width").stderr.startswith("error: --only width: must be among length, vocab_size")


def test_products_are_counted_as_they_are_made() -> None:
    """The operations that torch counts in the loss and its gradient, where every word is real and has its product."""
    for options in ({}, {"attention_type": "additive"}, {"decoder_layers": 2, "encoder_layers": 2}):
        model = tiny_model(**options, decoder_recurrence="loop").float().train()
        source, labels = torch.randint(4, 11, (3, 6)), torch.randint(4, 11, (3, 5))
        # The kernel of nn.LSTM is one operation to the counter: the encoder runs as a loop over positions.
        layers = [layer for layer in model.modules() if isinstance(layer, RecurrentLayer)]
        for layer in layers:
            layer.recurrent_dropout = 1e-12
        with FlopCounterMode(display=False) as counted:
            model(input_ids=source, labels=labels).loss.backward()
        # Torch skips a few: the encoder's first states are constants, without a gradient.
        assert counted.get_total_flops() == pytest.approx(training_flops(model, source, labels), rel=0.1)


def test_decoding_takes_every_step_asked_for(tmp_path: Path) -> None:
    done = run("decode", *TOY, "--json", str(tmp_path / "a.json"))
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "a.json").read_text())
    kinds = ("", " search", " search bf16", " search int8")
    assert [row["variant"] for row in rows] == [name + kind for name in ("greedy", "beam 5") for kind in kinds]
    assert {row["value"] for row in rows} == {6}
    assert [row["ratio_to_reference"] == 1 for row in rows] == [True, False, False, False] * 2
    assert all(row["sentences_per_s"] > 0 and row["cpu_s"] > 0 for row in rows)


def test_a_device_that_is_not_there_is_one_clear_line() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    done = run("train", "--device", "cuda")
    assert (done.returncode, done.stderr) == (2, "error: --device cuda: torch finds no CUDA device; must be cpu\n")
    done = run("growth", "--device", "cuda")
    expected = "error: --device cuda: growth measures processes on a CPU; must be cpu\n"
    assert (done.returncode, done.stderr) == (2, expected)


def test_a_bad_size_is_one_clear_line() -> None:
    done = run("train", "--batch_size", "0")
    assert done.returncode == 2 and done.stderr == (
        "error: argument --batch_size: '0' is not a whole number of at least 1\n"
    )

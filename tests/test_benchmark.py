"""The benchmark runs at toy size, and what it compares is the same computation."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "scripts" / "benchmark.py"
TOY = ["--vocab_size=40", "--embedding_size=8", "--hidden_size=12", "--batch_size=3", "--rounds=1", "--target_length=6"]


def run(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_the_forms_of_a_training_step_have_one_loss(tmp_path: Path, cell: str) -> None:
    done = run("train", *TOY, "--cell_type", cell, "--json", str(tmp_path / "a.json"))
    assert done.returncode == 0, done.stderr
    rows = {row["variant"]: row for row in json.loads((tmp_path / "a.json").read_text())}
    assert rows["tutorial"]["value"] == pytest.approx(rows["loop"]["value"], abs=1e-5)
    assert rows["scan"]["value"] == pytest.approx(rows["loop"]["value"], abs=1e-5)
    assert rows["no feeding"]["value"] != pytest.approx(rows["loop"]["value"], abs=1e-5)
    assert rows["tutorial"]["ratio_to_reference"] == 1 and rows["scan"]["tokens_per_s"] > 0


def test_decoding_takes_every_step_asked_for(tmp_path: Path) -> None:
    done = run("decode", *TOY, "--json", str(tmp_path / "a.json"))
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "a.json").read_text())
    kinds = ("", " search", " search bf16", " search int8")
    assert [row["variant"] for row in rows] == [name + kind for name in ("greedy", "beam 5") for kind in kinds]
    assert {row["value"] for row in rows} == {6}
    assert [row["ratio_to_reference"] == 1 for row in rows] == [True, False, False, False] * 2
    assert all(row["sentences_per_s"] > 0 and row["cpu_s"] > 0 for row in rows)


def test_a_bad_size_is_one_clear_line() -> None:
    done = run("train", "--batch_size", "0")
    assert done.returncode == 2 and done.stderr == (
        "error: argument --batch_size: '0' is not a whole number of at least 1\n"
    )

"""Several systems with one budget: the runs, their order, and the table of results."""

import json
import os
import re
import runpy
import subprocess
from pathlib import Path

import datasets
import pytest
import yaml

from hf_rnn_seq2seq import RnnSeq2SeqConfig
from hf_rnn_seq2seq.errors import ArgumentError
from hf_rnn_seq2seq.model.presets import PRESETS
from hf_rnn_seq2seq.training.comparison_table import markdown, shared_budget, table_rows
from hf_rnn_seq2seq.training.experiments import check_options, files_hash, plan_runs, read_systems
from tests.helpers import warm

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "compare.py"
NAMES = ["seminar", "luong2015"]


def experiment(folder: Path, text: str) -> str:
    file = folder / "experiment.yaml"
    file.write_text(text, encoding="utf-8")
    return str(file)


# ------------------------------------------------------------------------------------------------ the plan


def test_systems_are_presets_recipes_and_experiments(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("hidden_size: 8\n")
    steps = experiment(
        tmp_path, "options: {dropout: 0.1, seed: 3}\nsystems:\n  a: {preset: seminar}\n  b: {dropout: 0.2}\n"
    )
    assert read_systems(["seminar", str(recipe), steps], NAMES) == {
        "seminar": {"preset": "seminar"},
        "mine": {"hidden_size": 8},
        "a": {"dropout": 0.1, "seed": 3, "preset": "seminar"},
        "b": {"dropout": 0.2, "seed": 3},
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("systems: {}\n", "systems of at least one name"),
        ("systems: {a: 3}\n", "system 'a' must be a mapping of options"),
        ("systems: {a: {}}\nhidden_size: 3\n", "'hidden_size': unknown key; allowed are options, systems"),
        ("options: 3\nsystems: {a: {}}\n", "must be mappings"),
    ],
)
def test_experiments_of_another_form_are_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        read_systems([experiment(tmp_path, text)], NAMES)


def test_unknown_and_doubled_names_are_refused() -> None:
    with pytest.raises(ArgumentError, match="'luong': neither a preset \\(seminar, luong2015\\) nor a .yaml file"):
        read_systems(["luong"], NAMES)
    with pytest.raises(ArgumentError, match="'seminar': two systems have this name"):
        read_systems(["seminar", "seminar"], NAMES)


def test_the_old_folder_of_the_experiments_is_answered_with_the_new_one() -> None:
    with pytest.raises(ArgumentError, match="called experiments now; name scripts/experiments/tatoeba.yaml$"):
        read_systems(["scripts/ladders/tatoeba.yaml"], NAMES)


def test_every_system_comes_before_the_second_seed() -> None:
    runs = plan_runs({"a b": {"dropout": 0.1}, "c": {}}, [1, 2])
    assert [(run.system, run.seed, run.folder) for run in runs] == [
        ("a b", 1, "a-b-seed1"),
        ("c", 1, "c-seed1"),
        ("a b", 2, "a-b-seed2"),
        ("c", 2, "c-seed2"),
    ]
    assert runs[0].options == {"dropout": 0.1, "seed": 1}
    assert [run.folder for run in plan_runs({"c": {}}, [7])] == ["c"]


def test_plans_that_would_mix_runs_are_refused() -> None:
    with pytest.raises(ArgumentError, match="each only once"):
        plan_runs({"a": {}}, [1, 1])
    with pytest.raises(ArgumentError, match="make the same directory"):
        plan_runs({"a b": {}, "a-b": {}}, [1])


def test_experiments_and_recipes_of_the_repository_build() -> None:
    """Every system of scripts/experiments, and a recipe for every preset."""
    found = 0
    for file in sorted((ROOT / "scripts" / "experiments").glob("*.yaml")):
        for options in read_systems([str(file)], list(PRESETS)).values():
            known = {key: value for key, value in options.items() if key in RnnSeq2SeqConfig.__dataclass_fields__}
            if isinstance(known.get("encoder"), str):  # a pretrained one, which may not be there
                known["encoder"] = {"model_type": "bert", "num_hidden_layers": 1}
            if "preset" in options:
                RnnSeq2SeqConfig.from_preset(options["preset"], **known)
            else:
                RnnSeq2SeqConfig(**known)
            found += 1
    assert found == 9 + 15 + 2 + 5 + 2 + 3
    recipes = {}
    for file in (ROOT / "scripts" / "recipes").glob("paper_*.yaml"):
        recipes[file.stem.removeprefix("paper_")] = yaml.safe_load(file.read_text())["preset"]
    assert recipes == {name: name for name in PRESETS}


# ------------------------------------------------------------------------------------------------ the table


def test_table_has_means_spreads_and_failures() -> None:
    one = {"bleu": 20.0, "chrf": 40.0, "parameters": 1000, "steps": 5}
    rows = table_rows({"a": [one, {**one, "bleu": 23.0}], "b": [one], "c": []})
    assert [row["bleu"] for row in rows] == [21.5, 20.0, None]
    assert [row["bleu_spread"] for row in rows] == [[20.0, 23.0], [20.0, 20.0], None]
    lines = markdown(rows, {"seeds": "1, 2"}).splitlines()
    assert lines[0].startswith("| system | BLEU | chrF |")
    assert lines[2].startswith("| a | 21.50 (20.00 to 23.00) | 40.00 |  | 1,000 | 5 |")
    assert lines[3].startswith("| b | 20.00 | 40.00 |")
    assert lines[4].startswith("| c | failed |")
    assert lines[-1] == "* seeds: 1, 2"
    assert len({line.count("|") for line in lines[:5]}) == 1


def test_the_budget_is_what_all_runs_share() -> None:
    one = {"max_steps": 100, "per_device_train_batch_size": 8, "max_train_seconds": None, "num_train_epochs": -1}
    assert shared_budget([one]) == {"max_steps": 100, "per_device_train_batch_size": 8}
    assert shared_budget([one, {**one, "max_steps": 200}]) == {"per_device_train_batch_size": 8}
    assert shared_budget([one, {**one, "max_train_seconds": 60}]) == shared_budget([one])


# ------------------------------------------------------------------------------------------------ the script


DATA = """--dataset_name cldr --source_lang en --target_lang fr --max_train_samples 60 --max_eval_samples 6
--max_predict_samples 12 --max_steps 4 --eval_steps 4 --save_steps none --report_to none --vocab_size 300"""
TOY = """
options: {preset: seminar, embedding_size: 12, hidden_size: 16, max_source_length: 48, max_target_length: 48}
systems:
  plain: {}
  with attention: {preset: seminar_attention}
  broken: {tokenizer_name_or_path: nowhere/at-all}
"""


def compare(*words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    return subprocess.run([*warm.python(), str(SCRIPT), *words], capture_output=True, text=True, env=environment)


def test_compare_trains_scores_draws_and_continues(tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = [experiment(tmp_path, TOY), "--output_dir", str(out), *DATA.split()]
    done = compare(*words)
    assert done.returncode == 1, done.stderr  # one system cannot be trained, the others are compared
    assert "broken: FAILED with exit code 2: error:" in done.stderr
    content = json.loads((out / "table.json").read_text())
    assert [(row["system"], row["runs"]) for row in content["rows"]] == [
        ("plain", 1),
        ("with attention", 1),
        ("broken", 0),
    ]
    assert all(row["steps"] == 4 and row["bleu"] is not None for row in content["rows"][:2])
    assert content["rows"][1]["parameters"] > content["rows"][0]["parameters"]
    assert set(content["bleu_by_length"]) == {"plain", "with attention"}
    assert (out / "table.md").read_text().strip() == done.stdout.strip()
    for picture in ("bleu_by_length.png", "learning_curves.png"):
        assert (out / picture).read_bytes().startswith(b"\x89PNG")

    weights = (out / "plain" / "model.safetensors").stat().st_mtime_ns
    again = compare(*words)
    assert "plain: finished earlier" in again.stderr
    assert (out / "plain" / "model.safetensors").stat().st_mtime_ns == weights

    main = runpy.run_path(str(SCRIPT))["main"]
    with pytest.raises(ArgumentError, match="its run plain has other options"):
        main([*words, "--dropout", "0.3"])
    recipe = out / "logs" / "plain.yaml"
    recorded = recipe.read_text()
    recipe.write_text(recorded.replace("# files ", "# files 0"))
    with pytest.raises(ArgumentError, match="its run plain was trained on other files than those that the options"):
        main(words)
    recipe.write_text(recorded.rpartition("# files ")[0])
    with pytest.raises(ArgumentError, match="its run plain does not say on which files it was trained"):
        main(words)


def test_a_data_set_without_a_test_split_is_refused_before_training(tmp_path: Path) -> None:
    rows = datasets.Dataset.from_list([{"en": "a", "fr": "b"}])
    datasets.DatasetDict({"train": rows, "dev": rows}).save_to_disk(str(tmp_path / "saved"))
    options = {"dataset_name": str(tmp_path / "saved"), "source_lang": "en", "target_lang": "fr"}
    runs = plan_runs({"plain": options}, [1])
    with pytest.raises(ArgumentError, match="system 'plain': dataset_name='.*': has no test split; it has train, dev"):
        check_options(runs, (), scored=True)
    check_options(runs, (), scored=False)
    check_options(plan_runs({"plain": {"dataset_name": "cldr"}}, [1]), (), scored=True)


def test_files_that_options_name_are_known_by_their_content(tmp_path: Path) -> None:
    for name in ("a.tsv", "b.en", "b.fr"):
        (tmp_path / name).write_text("x")
    (run,) = plan_runs({"plain": {"train_file": str(tmp_path / "a.tsv")}}, [1])
    common = [f"--test_file={tmp_path / 'b.en'},{tmp_path / 'b.fr'}", "--dropout", "0.1"]
    before = files_hash(run, common)
    assert before == files_hash(run, common)
    for name in ("a.tsv", "b.en", "b.fr"):
        (tmp_path / name).write_text("y")
        assert files_hash(run, common) != before
        (tmp_path / name).write_text("x")
    assert before == files_hash(run, common)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--output_dir", "x"], "no system: name presets"),
        (["seminar"], "output_dir=None: must name the directory"),
        (["seminar", "--output_dir", "x", "--seeds", "one"], "seeds='one': must be whole numbers"),
        (["seminar", "--output_dir", "x", "--seed", "3"], "seed: compare.py decides it"),
        (
            ["seminar", "--output_dir", "x", "--hiden_size", "3"],
            "hiden_size: no such option; the nearest is hidden_size",
        ),
        (["seminar", "--output_dir", "x", "--lr", "1"], "lr: no such option; here it is called learning_rate"),
        (["--output_dir"], "output_dir: needs a value, text"),
        (["seminar", "--output_dir", "x", "--dropout", "3"], "dropout=3"),
        (["seminar", "--output_dir", "x", "--dropout", "3", "--dry-run"], "dropout=3"),
        (["seminar", "--output_dir", "x"], "train_file=None: each system is trained and tested; give --train_file"),
        (["seminar", "--output_dir", "x", "--train_file", "x.tsv"], "test_file=None: each system is trained and tes"),
        (
            ["seminar", "--output_dir", "x", "--train_file", "x.tsv", "--test_file", "y.tsv", "--dry_run"],
            "y.tsv does not exist",
        ),
        (
            ["seminar", "--output_dir", "x", "--train_file", "x.tsv", "--test_file", "x.tsv", "--source_lang", "de"],
            "x.tsv: no column 'de'; it has 'source', 'target'",
        ),
        (["graves2013_text", "--output_dir", "x"], "task='text': compare scores translations"),
    ],
)
def test_bad_input_is_found_before_training(tmp_path: Path, words: list[str], message: str) -> None:
    (tmp_path / "x.tsv").write_text("source\ttarget\na\tb\n")
    words = [str(tmp_path / word) if word in ("x", "x.tsv") else word for word in words]
    with pytest.raises(ArgumentError, match=re.escape(message)):
        runpy.run_path(str(SCRIPT))["main"](words)


def test_a_dry_run_prints_the_runs_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    words = [experiment(tmp_path, TOY), "--output_dir", str(out), "--seeds", "1,2", "--dry_run", *DATA.split()]
    assert runpy.run_path(str(SCRIPT))["main"]([*words, "--hidden_size", "8"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines[::2]] == ["plain-seed1", "broken-seed1", "with-attention-seed2"]
    assert all("hidden_size=8," in line and "max_steps=4" in line for line in lines), "the common options win"
    assert "preset=seminar, embedding_size=12" in lines[0] and "seed=1" in lines[0] and "seed=2" in lines[-1]
    assert not out.exists()


def test_bad_input_is_one_line() -> None:
    done = compare("seminar", "luong", "--output_dir", "x")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: 'luong': neither a preset")

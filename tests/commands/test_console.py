"""`hf-rnn`: its commands, their imports, names of options, help, the launcher, and `train` from Python."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from accelerate.commands.launch import launch_command_parser

import hf_rnn_seq2seq
from hf_rnn_seq2seq import option_parser
from hf_rnn_seq2seq.__main__ import COMMANDS, main
from hf_rnn_seq2seq.commands import launch
from hf_rnn_seq2seq.commands.launch import launcher_names, split_words
from hf_rnn_seq2seq.errors import ArgumentError
from hf_rnn_seq2seq.option_parser import find_recipe, read_recipe
from hf_rnn_seq2seq.training import train
from hf_rnn_seq2seq.training.arguments import GROUPS
from hf_rnn_seq2seq.training.model_fields import CONFIGS, model_fields
from tests.helpers import warm
from tests.helpers.checkpoints import save_checkpoint, tiny_rnn, tiny_tokenizer
from tests.helpers.models import config_fields
from tests.helpers.toy import TOY, TOY_OPTIONS

ROOT = Path(__file__).resolve().parents[2]
MODULES = {module for module, _ in COMMANDS.values()}


def test_every_command_has_a_module_and_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    files = {path.stem for path in (ROOT / "hf_rnn_seq2seq" / "commands").glob("*.py")} - {"__init__", "train"}
    assert files == MODULES
    assert main([]) == 0
    listed = capsys.readouterr().out
    for name, (module, text) in COMMANDS.items():
        assert callable(importlib.import_module(f"hf_rnn_seq2seq.commands.{module}").main)
        assert f"  {name} " in listed and text in listed
    for words, hint in (
        (["trian"], "trian: no such command; the nearest is train"),
        (["plot"], "plot: no such command; choose from plot attention, plot beam_tree, plot gradients, plot su"),
        (["plot", "atention"], "plot atention: no such command; choose from plot attention, "),
    ):
        with pytest.raises(ArgumentError, match=hint):
            main(words)
    assert main(["--version"]) == 0 and capsys.readouterr().out.startswith("hf_rnn_seq2seq 0.")


@pytest.mark.parametrize(
    ("words", "status", "printed"),
    [
        (["-m", "hf_rnn_seq2seq", "train", "--help"], 0, "--learning_rate X"),
        (["-m", "hf_rnn_seq2seq", "train", "cldr_en_fr", "--lr", "1"], 2, "lr: no such option; here it is called le"),
        (["-m", "hf_rnn_seq2seq", "recipes"], 0, "cldr_en_fr"),
        (["scripts/translate.py", "--help", "all"], 0, "--num_beams N"),
        (["scripts/evaluate_bleu.py", "DIR", "--beam_size", "3"], 2, "--beam_size: no such option; here it is called"),
        (["scripts/train_tokenizer.py", "--vocabsize", "3"], 2, "the nearest is vocab_size"),
    ],
)  # fmt: skip
def test_help_and_a_wrong_option_load_no_torch(words: list[str], status: int, printed: str) -> None:
    command = [sys.executable, "-X", "importtime", *words]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == status, done.stderr[-2000:]
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert "argparse" in loaded and not loaded & {"torch", "transformers", "numpy", "datasets", "accelerate"}
    assert printed in done.stdout + "".join(line for line in done.stderr.splitlines() if line.startswith("error: "))


@pytest.mark.parametrize(
    ("line", "module"),
    [
        ("python -m hf_rnn_seq2seq train --num_beams 3", "hf_rnn_seq2seq"),
        ("python -X importtime -Im hf_rnn_seq2seq", "hf_rnn_seq2seq"),
        ("python -mpackage.train hf_rnn_seq2seq", "package.train"),
        ("python", ""),
    ],
)
def test_the_module_that_python_runs_is_known(line: str, module: str) -> None:
    assert hf_rnn_seq2seq._module_to_run(line.split()) == module


def test_a_command_loads_the_libraries_itself() -> None:
    """Nothing is registered before: without it, transformers would offer to run the code of a checkpoint."""
    files = {path.stem: path for path in (ROOT / "hf_rnn_seq2seq" / "commands").glob("*.py")}
    files |= {"benchmark": ROOT / "scripts" / "benchmark.py"}
    without = {name for name, path in files.items() if "command_line.load_libraries()" not in path.read_text("utf-8")}
    assert without == {"__init__", "hallucinate", "launch", "plot_learning_curve", "recipes"}, "these load no model"


def test_translation_needs_no_extra(tmp_path: Path) -> None:
    """Without accelerate, datasets and the libraries of metrics and figures, to standard output and to a file."""
    tokenizer = tiny_tokenizer()
    folder = save_checkpoint(tmp_path / "model", tiny_rnn(tokenizer), tokenizer)
    code = """
import runpy, sys
for name in ("accelerate", "datasets", "evaluate", "sacrebleu", "jiwer", "rapidfuzz", "matplotlib", "tensorboard"):
    sys.modules[name] = None
sys.argv[0] = "hf-rnn"
runpy.run_module("hf_rnn_seq2seq", run_name="__main__")
"""
    words = [*warm.python(), "-c", code, "translate", str(folder), "--max_new_tokens", "3"]
    given = {
        "input": "one line\n",
        "capture_output": True,
        "text": True,
        "env": {**os.environ, "PYTHONPATH": str(ROOT)},
    }
    for more in ([], ["--output_file", str(tmp_path / "out.txt")]):
        done = subprocess.run([*words, *more], **given)
        assert done.returncode == 0, done.stderr
        assert more or done.stdout.count("\n") == 1
    assert (tmp_path / "out.txt").read_text("utf-8").count("\n") == 1


# ------------------------------------------------------------------------------------------------ names and help


def test_fields_of_the_model_are_read_as_they_are() -> None:
    """Names, types and defaults of the options are those of the class, which is not imported for them."""
    for task, name in CONFIGS.items():
        config, fields = getattr(hf_rnn_seq2seq, name), dict(model_fields(task))
        hints = config_fields(config)
        assert fields.pop("preset").hint is str
        for name, field in fields.items():
            assert field.hint == hints[name], name
            assert field.default == getattr(config, name), name
            assert 0 < len(field.help) < 200, name
        left_out = set(hints) - set(fields) - {"vocab_size", "source_vocab_size"} - SET_ELSEWHERE
        assert all(name.endswith(("_token_id", "_token_ids")) for name in left_out)


SET_ELSEWHERE = {"encoder", "use_cache", "is_encoder_decoder", "transformers_version", "alphabet", "offset_deviation"}


def test_help_of_training_is_a_screen_and_all_of_it_a_line_for_each(capsys: pytest.CaptureFixture[str]) -> None:
    texts = []
    for more in ([], ["all"]):
        with pytest.raises(SystemExit):
            option_parser.parse_arguments(["--help", *more], GROUPS, model_fields(), description="Trains.\n\nMore.")
        texts.append(capsys.readouterr().out)
    assert len(texts[0].splitlines()) <= 40 and "more options: --help all" in texts[0]
    for name, field in model_fields().items():
        (line,) = (line for line in texts[1].splitlines() if line.startswith(f"  --{name} "))
        assert field.default in (None, "") or f"(default: {field.default})" in line or "(default" in line


@pytest.mark.parametrize("module", sorted(MODULES - {"launch"}))
def test_help_of_a_command_names_it_and_its_options(module: str, capsys: pytest.CaptureFixture[str]) -> None:
    texts = []
    for more in ([], ["all"]):
        with pytest.raises(SystemExit) as ended:
            importlib.import_module(f"hf_rnn_seq2seq.commands.{module}").main(["--help", *more])
        assert not ended.value.code
        texts.append(capsys.readouterr().out)
    assert len(texts[0].splitlines()) <= 40 and len(texts[1]) >= len(texts[0])
    assert "usage: " in texts[0] and "--import " in texts[1] and "--version" not in texts[0]


def test_names_of_other_toolkits_lead_to_names_that_exist() -> None:
    known = {field for group in GROUPS for field in group.__dataclass_fields__} | set(model_fields())
    known |= launcher_names_without_dashes() | {"batch_size", "device", "dtype", "input_file", "model", "n_best"}
    known |= {"num_beams", "output_file"}
    for name, meant in option_parser._ELSEWHERE.items():
        assert set(meant) <= known, name
    assert option_parser.suggestion("bf16", known) == "; here it is called mixed_precision or dtype"
    assert option_parser.suggestion("do_train", known).startswith("; the command itself says what is done")


def launcher_names_without_dashes() -> set[str]:
    return {name.lstrip("-") for name in launcher_names()}


def test_old_spellings_are_read_with_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    parse = importlib.import_module("hf_rnn_seq2seq.commands.translate").parse
    found = parse(["--model_name_or_path", "runs/demo", "--input", "a.txt"])
    assert (found.model, found.input_file) == ("runs/demo", "a.txt")
    printed = capsys.readouterr().err
    assert printed == "warning: --input is called --input_file now; the old name ends with the next release\n"
    with pytest.raises(SystemExit):
        parse(["runs/demo", "--text", "a", "--input_file", "b"])
    assert "--text, --input_file and --dataset_name: give one of them" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------ training


def test_words_of_the_launcher_and_of_training_are_separated() -> None:
    launcher = launch_command_parser()
    assert {name for name in launcher._option_string_actions if name.startswith("--")} <= launcher_names() | {"--help"}
    words = ["--num_processes", "2", "--multi_gpu", "mine.yaml", "--mixed_precision", "bf16", "--config_file=c.yaml"]
    theirs, ours = split_words([*words, "--output_dir", "runs/a"], launcher)
    assert theirs == ["--num_processes", "2", "--multi_gpu", "--config_file=c.yaml"]
    assert ours == ["mine.yaml", "--mixed_precision", "bf16", "--output_dir", "runs/a"]


@pytest.mark.thinned(2)
@pytest.mark.parametrize(
    ("launcher", "processes"),
    [([], 1), pytest.param(["--num_processes", "2", "--multi_gpu", "--main_process_port", "0"], 2)],
)
def test_the_command_trains_a_recipe_by_its_name(launcher: list[str], processes: int, tmp_path: Path) -> None:
    words = ["-m", "hf_rnn_seq2seq", "train", *launcher, "cldr_en_fr", "--output_dir", "run", *TOY_OPTIONS]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run([*warm.python(), *words], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "step 2" in done.stderr and "\r" not in done.stdout + done.stderr
    summary = yaml.safe_load((tmp_path / "run" / "summary.json").read_text())
    assert (summary["processes"], summary["steps"]) == (processes, TOY["max_steps"])
    assert summary["command"].startswith("hf-rnn train cldr_en_fr --output_dir run") or processes == 2


@pytest.mark.parametrize("more", [["--cpu"], []])
def test_several_processes_are_never_one(more: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `accelerate launch` makes of them on a machine without GPUs."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    words = ["--num_processes", "2", *more, "cldr_en_fr", "--output_dir", str(tmp_path / "run"), *TOY_OPTIONS]
    form = "`ACCELERATE_USE_CPU=true hf-rnn train --multi_gpu --num_processes 2 ...`"
    with pytest.raises(ArgumentError, match=f"num_processes=2: a single process would start; on CPUs write {form}"):
        launch.main(words)
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("fresh_accelerate")
def test_train_from_python(tmp_path: Path) -> None:
    run = train("cldr_en_fr", output_dir=tmp_path / "run", **TOY)
    assert run.directory == tmp_path / "run" and run.summary["steps"] == TOY["max_steps"]
    model, tokenizer = run.load()
    assert model.config.vocab_size == len(tokenizer)
    assert run.summary["command"].startswith("train('cldr_en_fr', output_dir=")
    with pytest.raises(ArgumentError, match="learning_rat: no such option; the nearest is learning_rate"):
        train(learning_rat=1)
    with pytest.raises(ArgumentError, match="push_to_hub=True: is for the command"):
        train("cldr_en_fr", output_dir=tmp_path / "b", push_to_hub=True, hub_model_id="a/b", **TOY)


def test_a_recipe_is_found_by_name_or_path(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert find_recipe("cldr_en_fr") == ROOT / "scripts" / "recipes" / "cldr_en_fr.yaml"
    (tmp_path / "mine.yaml").write_text("hidden_size: 3\n")
    assert read_recipe(tmp_path / "mine.yaml") == {"hidden_size": 3}
    with pytest.raises(ArgumentError, match="recipe='cldr_en_fx': cannot be read"):
        read_recipe("cldr_en_fx")
    recipes = importlib.import_module("hf_rnn_seq2seq.commands.recipes")
    assert recipes.main(["cldr_en_fr"]) == 0
    assert capsys.readouterr().out == (ROOT / "scripts" / "recipes" / "cldr_en_fr.yaml").read_text("utf-8")
    with pytest.raises(SystemExit):
        recipes.main(["nothing"])
    assert capsys.readouterr().err == "error: name='nothing': no such recipe; `hf-rnn recipes` lists them\n"

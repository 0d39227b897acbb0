"""Options: recipes, command lines and keyword arguments, and the messages of refusals."""

import argparse
import dataclasses
import importlib
import math
import re
from dataclasses import dataclass
from typing import Literal, get_args, get_type_hints

import pytest
import yaml

from hf_rnn_seq2seq import RnnClassifierConfig, RnnHandwritingConfig, RnnSeq2SeqConfig
from hf_rnn_seq2seq.data.arguments import OF_TASKS, TASKS, DataArguments, TokenizerArguments
from hf_rnn_seq2seq.errors import ArgumentError
from hf_rnn_seq2seq.model.config_checks import ConfigError
from hf_rnn_seq2seq.option_parser import parse_arguments, read_recipe
from hf_rnn_seq2seq.options import OptionGroup, convert, option
from hf_rnn_seq2seq.training.arguments import GenerationArguments, RunOptions, TrainingOptions, dump_recipe
from hf_rnn_seq2seq.training.model_fields import model_fields
from tests.helpers.models import config_fields
from tests.helpers.script_runs import ROOT

GROUPS = (DataArguments, TokenizerArguments, GenerationArguments, TrainingOptions)
MODEL = {
    "cell_type": Literal["lstm", "gru"],
    "dropout": float | int,
    "hidden_size": int,
    "readout_size": int | None,
    "tie_word_embeddings": bool,
    "input_feeding": bool | None,
    "vocab_size": int,
}


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "recipe.yaml"
    lines = ["learning_rate: 1e-3", "max_steps: 7", "mixed_precision: no", "lowercase: true"]
    lines += ["hidden_size: 32", "source_lang: no", "report_to: [tensorboard]"]
    path.write_text("\n".join(lines))
    return str(path)


def test_the_command_line_wins_over_the_recipe_and_that_over_defaults(recipe):
    words = [recipe, "--max_steps", "9", "--dropout=0.2", "--cell-type", "gru", "--tie_word_embeddings"]
    data, tokenizer, generation, training, model = parse_arguments(words, GROUPS, MODEL)
    assert training.mixed_precision == "no" and tokenizer.lowercase is True
    assert (training.max_steps, training.learning_rate, training.seed) == (9, 0.001, 42)
    assert generation.max_new_tokens == 128
    assert model == {"hidden_size": 32, "dropout": 0.2, "cell_type": "gru", "tie_word_embeddings": True}
    assert data.source_lang == "no", "Norwegian is a language, whatever YAML 1.1 says"


def test_a_name_of_a_group_is_not_a_model_option():
    _, tokenizer, _, _, model = parse_arguments(["--vocab_size", "500"], GROUPS, MODEL)
    assert tokenizer.vocab_size == 500 and model == {}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--learning_rat", "1"], "learning_rat: no such option; the nearest is learning_rate"),
        (["--hiden_size", "3"], "hiden_size: no such option; the nearest is hidden_size"),
        (["--device", "cpu"], "device: no such option; the environment decides it: ACCELERATE_USE_CPU=true, or CUDA"),
        (["--use_cpu"], "use_cpu: no such option; the environment decides it: ACCELERATE_USE_CPU=true"),
        (["--lexicon", "x"], "lexicon: no such option; here it is called file_format"),
        (["--cpus", "3"], "cpus: no such option; --help all lists the options"),
        (["--zzzzzz", "3"], "zzzzzz: no such option; --help all lists the options"),
        (["--subword_sampling_alpha", "0.2"], "subword_sampling_alpha: was removed in version 0.2.0; leave it out"),
        (["--max_steps"], "max_steps: needs a value, a whole number"),
        (["--max_steps", "--seed", "1"], "max_steps: needs a value"),
        (["--max_steps", "many"], "max_steps='many': must be a whole number"),
        (["--max_steps", "1.5"], "max_steps='1.5': must be a whole number"),
        (["--max_steps", "0"], "max_steps=0: must be at least 1, or -1"),
        (["--max_steps", "-2"], "max_steps=-2: must be at least -1"),
        (["--learning_rate", "nan"], "learning_rate='nan': must be a finite number"),
        (["--learning_rate", "-1"], "learning_rate=-1.0: must be at least 0"),
        (["--num_train_epochs", "0"], "num_train_epochs=0.0: must be greater than 0"),
        (["--ema_decay", "1"], "ema_decay=1.0: must be at least 0 and less than 1"),
        (["--mixed_precision", "fp8"], "mixed_precision='fp8': must be one of no, bf16, fp16, auto"),
        (["--optim", "rmsprop"], "optim='rmsprop': must be one of adamw, adam, sgd, adadelta"),
        (["--lowercase", "maybe"], "'maybe': one recipe only|lowercase='maybe': must be true or false|cannot be read"),
        (["--lowercase=maybe"], "lowercase='maybe': must be true or false"),
        (["--cell_type", "lstn"], "cell_type='lstn': must be one of lstm, gru"),
        (["--dropout", "x"], "dropout='x': must be a whole number or a finite number"),
        (["--dataset_name", "cldr", "--train_file", "a.tsv"], "train_file='a.tsv': either dataset_name"),
        (
            ["--predict_with_generate", "false", "--metric_for_best_model", "bleu"],
            "metric_for_best_model='bleu': needs predict_with_generate",
        ),
        (
            ["--feature_column", "2", "--header", "false", "--alignment_column", "3"],
            r"alignment_column='3': counts the words of a source without features; leave out feature_column \('2'\)",
        ),
        (["missing.yaml"], "recipe='missing.yaml': cannot be read"),
        (["a.yaml", "b.yaml"], "'b.yaml': one recipe only"),
    ],
)
def test_what_cannot_be_used_is_named(words, message):
    with pytest.raises(ArgumentError, match=message) as caught:
        parse_arguments(words, GROUPS, MODEL)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--validation_writers", "anna"], r"validation_writers=\['anna'\]: has no effect with task='translation'"),
        (["--task", "classification", "--file_format", "labeled"], "dataset_name='cldr': has no classes"),
        (["--dataset_name", "pydoc"], "dataset_name='pydoc': has running text; it is for task='text'"),
    ],
)
def test_options_of_another_task_are_refused(words, message):
    with pytest.raises(ArgumentError, match=message):
        RunOptions.parse(["--dataset_name", "cldr", *words])


def test_a_recipe_of_an_older_version_may_hold_a_removed_option_at_its_default(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("seed: 3\nsubword_sampling_alpha: null\ncuda_graphs: false\n")
    assert parse_arguments([str(recipe)], GROUPS, MODEL)[3].seed == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("subword_sampling_alpha: 0.2", "subword_sampling_alpha: was removed in version 0.2.0; leave it out"),
        ("max_step: 3", "max_step: no such option; the nearest is max_steps"),
        ("seed: 1\nseed: 2", "seed set twice"),
        ("- seed", "must be lines of `option: value`"),
        ("seed: [", "is not YAML"),
        ("seed: null", "seed=None: must be a whole number"),
        ("max_steps: true", "max_steps=True: must be a whole number"),
        ("max_steps: {a: 1}", "must be a whole number"),
    ],
)
def test_recipes_that_cannot_be_used(text, message, tmp_path):
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(ArgumentError, match=message):
        parse_arguments([str(tmp_path / "r.yaml")], GROUPS, MODEL)


def test_a_recipe_that_is_not_text_is_named(tmp_path):
    (tmp_path / "r.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ArgumentError, match="is not YAML"):
        read_recipe(tmp_path / "r.yaml")


@pytest.mark.parametrize(
    ("value", "annotation", "expected"),
    [
        ("1e4", int, 10000),
        (10**17 + 1, int, 10**17 + 1),
        ("1e-3", float, 0.001),
        ("none", int | None, None),
        ("None", str | None, None),
        ("false", bool | None, False),
        ("3", int | None, 3),
        ("0.5", float | int, 0.5),
        ("2", float | int, 2),
        (5, str, "5"),
        ("a, b", list[str], ["a", "b"]),
        ("[1, 2]", list[int], None),
        ("1,2", list[int], [1, 2]),
        ("{a: 1}", dict | None, {"a": 1}),
        ("2", int | list[int], 2),
        ("2,3", int | list[int], [2, 3]),
        ("b", Literal["a", "b"] | None, "b"),
    ],
)
def test_conversion(value, annotation, expected):
    if expected is None and "none" not in str(value).lower():
        with pytest.raises(ArgumentError):
            convert("x", value, annotation)
        return
    converted = convert("x", value, annotation)
    assert converted == expected and type(converted) is type(expected)


def test_groups_check_keyword_arguments_too():
    with pytest.raises(ArgumentError, match="per_device_train_batch_size=0: must be at least 1"):
        TrainingOptions(per_device_train_batch_size=0)
    assert TrainingOptions(report_to="none").report_to == []
    assert TrainingOptions().report_to is not TrainingOptions().report_to


def test_the_written_recipe_repeats_the_run_from_anywhere(tmp_path, monkeypatch):
    (tmp_path / "a.de").write_text("x")
    (tmp_path / "a.en").write_text("x")
    monkeypatch.chdir(tmp_path)
    words = ["--train_file", "a.de,a.en", "--max_steps", "3", "--output_dir", "out", "--hidden_size", "8", "--dry_run"]
    *groups, model = parse_arguments(words, GROUPS, MODEL)
    text = dump_recipe(groups, model)
    (tmp_path / "recipe.yaml").write_text(text)
    monkeypatch.chdir("/")
    data, tokenizer, generation, training, again = parse_arguments([str(tmp_path / "recipe.yaml")], GROUPS, MODEL)
    assert data.train_file == f"{tmp_path / 'a.de'},{tmp_path / 'a.en'}"
    assert again == {"hidden_size": 8} and (tokenizer, generation) == (groups[1], groups[2])
    assert training == dataclasses.replace(groups[3], output_dir=None, dry_run=False)
    assert "output_dir" not in yaml.safe_load(text)


@pytest.mark.parametrize("recipe", sorted((ROOT / "scripts" / "recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_written_recipe_of_every_recipe_is_a_recipe(recipe, tmp_path):
    options = RunOptions.parse([str(recipe)])
    written = tmp_path / "recipe.yaml"
    written.write_text(options.recipe())
    again = RunOptions.parse([str(written)])
    assert again == options and again.recipe() == options.recipe()


def test_help_lists_every_option_with_its_default(capsys):
    with pytest.raises(SystemExit) as stopped:
        parse_arguments(["--help", "all"], GROUPS, MODEL)
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    for group in GROUPS:
        for field in dataclasses.fields(group):
            name = {"imports": "import"}.get(field.name, field.name)
            assert f"--{name} " in text and field.metadata["help"] in text
    assert "--cell_type lstm|gru" in text and text.count("--vocab_size") == 1
    for name, field in model_fields().items():
        assert field.help.count("(") == field.help.count(")") and len(field.help.split()) > 2, (
            f"{name}: half a sentence"
        )


def test_the_metric_that_decides():
    assert TrainingOptions().best_metric == "bleu"
    assert TrainingOptions(predict_with_generate=False).best_metric == "loss"
    assert TrainingOptions(metric_for_best_model="perplexity").best_metric == "perplexity"


def test_limits_are_checked_on_each_item_of_a_list():
    @dataclass
    class Group(OptionGroup):
        sizes: list[int] = option([1], "sizes", at_least=1)

    assert Group(sizes="2,3").sizes == [2, 3]
    with pytest.raises(ArgumentError, match=r"sizes=0: must be at least 1"):
        Group(sizes=[1, 0])


NEGATIVE = {"max_steps", "length_penalty", "layer", "gate_bias"}  # -1 means something


def numeric_options():
    for group in GROUPS:
        for name, hint in get_type_hints(group).items():
            if {int, float} & {hint, *get_args(hint)}:
                yield group, name


def test_no_option_takes_what_is_not_a_finite_number_or_negative():
    seen = 0
    for group, name in numeric_options():
        for value in ("nan", "inf", "-inf", "1e999", math.nan, math.inf, *([] if name in NEGATIVE else ["-1", -1])):
            with pytest.raises(ArgumentError, match=rf"^{name}={value!r}: must be|^{name}=-1(\.0)?: must be"):
                group(**{name: value})
            seen += 1
    assert seen > 250


@pytest.mark.parametrize(
    ("config", "least"), [(RnnSeq2SeqConfig, 35), (RnnClassifierConfig, 15), (RnnHandwritingConfig, 15)]
)
def test_no_field_of_a_model_takes_what_is_not_a_finite_number_or_negative(config, least):
    numeric = [name for name, hint in config_fields(config).items() if {int, float} & {hint, *get_args(hint)}]
    assert len(numeric) > least
    for name in numeric:
        for value in (math.nan, math.inf, -math.inf, -1, -1.0):
            with pytest.raises(ConfigError, match=name):
                config(**{name: value})


@pytest.mark.parametrize("script", sorted(path.stem for path in (ROOT / "scripts").glob("*.py")))
def test_no_script_takes_what_is_not_a_finite_number_or_negative(script, monkeypatch):
    found = []

    def parse(parser, *_):
        found.append(parser)
        raise SystemExit

    monkeypatch.setattr(argparse.ArgumentParser, "parse_known_args", parse)
    with pytest.raises((SystemExit, ArgumentError)):
        importlib.import_module(script).main(["x"])
    for action in (action for parser in found for action in parser._actions if action.type is not None):
        for text in ("nan", "inf", "-inf", "1e999", *([] if action.dest in NEGATIVE else ["-1"])):
            with pytest.raises((argparse.ArgumentTypeError, ValueError)):
                action.type(text)


def test_paths_are_what_a_shell_would_make_of_them(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home-me")
    monkeypatch.setenv("DATA", "/data")
    lines = ["train_file: ~/a.en, $DATA/a.fr", "output_dir: ${DATA}/run", "model_name_or_path: user/name"]
    (tmp_path / "r.yaml").write_text("\n".join([*lines, "validation_file: dev.tsv"]))
    data, _, _, training = parse_arguments([str(tmp_path / "r.yaml"), "--extend_vocabulary=~/v"], GROUPS)[:4]
    assert (data.train_file, data.validation_file) == ("/home-me/a.en,/data/a.fr", "dev.tsv")
    assert (training.output_dir, training.extend_vocabulary) == ("/data/run", "/home-me/v")
    assert training.model_name_or_path == "user/name"
    with pytest.raises(ArgumentError, match=r"^test_file='\$NOWHERE/x': \$NOWHERE is not set in the environment"):
        DataArguments(test_file="$NOWHERE/x")


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("true", "latest"), ("True", "latest"), (True, "latest"), ("yes", "latest"), ("Latest", "latest"), ("false", None)]
    + [(None, None), ("2", "2"), (2, "2"), ("a/b", "a/b")],
)
def test_resuming_as_people_type_it(typed, meant):
    assert TrainingOptions(resume_from_checkpoint=typed).resume_from_checkpoint == meant


@pytest.mark.parametrize(
    ("task", "preset", "message"),
    [
        ("translation", "xu2015", "preset='xu2015': reads pictures; give task='captioning', or another preset"),
        ("translation", "graves2013_text", "preset='graves2013_text': is for task='text'; give that, or one of suts"),
        ("translation", "yang2016", "preset='yang2016': is for task='classification'; give that, or one of sutskever"),
        ("text", "luong2015", "preset='luong2015': is for task='translation'; give that, or one of graves2013_text"),
        ("classification", "xu2015", "preset='xu2015': reads pictures; give task='captioning', or another preset"),
    ],
)
def test_a_preset_of_another_task_says_which(task: str, preset: str, message: str) -> None:
    with pytest.raises(ArgumentError, match=f"^{message}"):
        RunOptions.parse(["--task", task, "--preset", preset])
    assert RunOptions.parse(["--preset", "xu2015", "--encoder", "some/encoder"]).model == {"preset": "xu2015"}


def test_every_task_is_a_module_and_its_options_are_options() -> None:
    for task in TASKS:
        assert callable(importlib.import_module(f"hf_rnn_seq2seq.training.{task}").parts)
    known = {field.name for group in GROUPS for field in dataclasses.fields(group)} | model_fields().keys()
    assert OF_TASKS.keys() <= known
    assert all(set(tasks) < set(TASKS) for tasks in OF_TASKS.values())


def test_an_option_of_another_task_is_refused() -> None:
    message = "alignment_unit='token': has no effect with task='captioning', it is for translation"
    with pytest.raises(ArgumentError, match=re.escape(message)):
        RunOptions.parse(["--task", "captioning", "--dataset_name", "shapes", "--alignment_unit", "token"])
    with pytest.raises(
        ArgumentError, match="image_size=32: has no effect with task='translation', it is for captioning"
    ):
        RunOptions.parse(["--dataset_name", "cldr", "--image_size", "32"])
    # What a finished run writes down holds every option, with its default where it was not given.
    read = yaml.safe_load(RunOptions.parse(["--task", "captioning", "--dataset_name", "shapes"]).recipe())
    assert read["task"] == "captioning" and read["alignment_unit"] == "word"

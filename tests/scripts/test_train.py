"""`scripts/train.py`: recipe to run directory, as a user starts it, at toy size."""

import importlib.util
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, BertConfig

from hf_rnn_seq2seq import RnnCausalConfig, RnnClassifierConfig
from hf_rnn_seq2seq.data.arguments import TASKS
from hf_rnn_seq2seq.data.corpus import load_corpus
from hf_rnn_seq2seq.errors import ArgumentError, DataError
from hf_rnn_seq2seq.training import handwriting
from hf_rnn_seq2seq.training.arguments import RunOptions, model_fields
from hf_rnn_seq2seq.training.components import model_config
from tests.helpers import script_runs, warm
from tests.helpers.checkpoints import save_encoder
from tests.helpers.models import SMALL_BERT

pytestmark = pytest.mark.usefixtures("fresh_accelerate")

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "scripts" / "recipes").glob("*.yaml"))
TINY = {
    "dataset_name": "cldr",
    "source_lang": "en",
    "target_lang": "fr",
    "max_train_samples": 60,
    "max_eval_samples": 9,
    "vocab_size": 300,
    "embedding_size": 12,
    "hidden_size": 12,
    "max_new_tokens": 12,
    "max_steps": 4,
    "eval_steps": 4,
    "per_device_train_batch_size": 8,
    "logging_steps": 4,
    "cpu_threads": 1,
    "report_to": "none",
}


def load_script():
    spec = importlib.util.spec_from_file_location("train_script", ROOT / "hf_rnn_seq2seq" / "commands" / "train.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


script = load_script()


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY))
    return str(path)


def train(*words) -> int:
    threads = torch.get_num_threads()
    try:
        return script.main([*map(str, words)])
    finally:
        torch.set_num_threads(threads)


def launch(*words, prefix=(), environment=None) -> subprocess.CompletedProcess:
    command = [*warm.python(), "-m", "accelerate.commands.launch", "--num_machines", "1", "--mixed_precision", "no"]
    command += ["--dynamo_backend", "no", *prefix, str(ROOT / "scripts" / "train.py"), *map(str, words)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **(environment or {})}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


def test_recipes_hold_only_options_and_fit_the_model():
    tasks = Counter()
    for path in RECIPES:
        options = RunOptions.parse([str(path)])
        task, metric, fields = options.data.task, options.training.best_metric, dict(options.model)
        tasks[task] += 1
        if task == "handwriting":
            assert handwriting.model_config(options).reads_text
        elif task == "text":
            config = RnnCausalConfig.from_preset(fields.pop("preset"), vocab_size=70, **fields)
            assert config.skip_connections and metric == "loss"
        elif task == "classification":
            given = {"encoder": BertConfig(**SMALL_BERT)} if fields.get("freeze_encoder") else {}
            given |= {"sentence_token_id": 4} if options.tokenizer.split_sentences else {}
            config = RnnClassifierConfig.from_preset(fields.pop("preset"), **given, **fields)
            assert config.pooling == "attention" and metric == "accuracy"
        else:
            assert metric in ("bleu", "chrf", "loss", "exact_match", "sequence_error")
            assert model_config(options, vocab_size=300).vocab_size == 300
    assert set(tasks) == set(TASKS) and tasks["classification"] == 3 and tasks["text"] == 2


@pytest.mark.parametrize(
    ("chosen", "expected"), [({}, "2000"), ({"OMP_WAIT_POLICY": "ACTIVE"}, None), ({"GOMP_SPINCOUNT": "7"}, "7")]
)
def test_threads_spin_briefly_unless_the_user_sets_otherwise(chosen, expected, monkeypatch):
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        # Set first, so that what the script sets is taken back after the test.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    for name, value in chosen.items():
        monkeypatch.setenv(name, value)
    load_script()
    assert os.environ.get("GOMP_SPINCOUNT") == expected
    assert os.environ.get("OMP_WAIT_POLICY") == chosen.get("OMP_WAIT_POLICY")


@pytest.mark.parametrize("chosen", [None, "0"])
@pytest.mark.parametrize(
    ("name", "default"), [("THP_MEM_ALLOC_ENABLE", "1"), ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "16384")]
)
def test_memory_of_the_libraries_is_set_unless_the_user_sets_otherwise(name, default, chosen, monkeypatch):
    monkeypatch.setenv(name, chosen or "")
    if chosen is None:
        monkeypatch.delenv(name)
    load_script()
    assert os.environ[name] == (chosen or default)


HUGE_PAGES = """
import hf_rnn_seq2seq.commands.train, torch
kept = [torch.zeros(4_000_000) for _ in range(10)]
lines = [line.split() for line in open("/proc/self/smaps") if line.startswith("AnonHugePages")]
print(sum(int(line[1]) for line in lines) // 1024)
"""


def test_the_memory_of_large_tensors_is_in_huge_pages():
    state = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if not state.is_file() or "[never]" in state.read_text(encoding="utf-8"):
        pytest.skip("the kernel gives no huge pages")
    environment = {name: value for name, value in os.environ.items() if name != "THP_MEM_ALLOC_ENABLE"}
    found = subprocess.run(
        [sys.executable, "-c", HUGE_PAGES], env=environment, capture_output=True, text=True, check=True
    )
    assert int(found.stdout) >= 80  # MiB, of 153; the kernel may lack whole pages for some


def test_every_field_of_the_model_is_an_option():
    assert {"preset", "cell_type", "attention_type", "dropout", "label_smoothing"} <= model_fields().keys()
    with pytest.raises(ArgumentError, match="atention_type: no such option; the nearest is attention_type"):
        train("--atention_type", "dot")


def test_a_run_from_recipe_to_loadable_checkpoint(recipe, tmp_path):
    run = tmp_path / "run"
    assert train(recipe, "--output_dir", run, "--attention_type", "dot", "--num_beams", "2") == 0
    model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(run), AutoTokenizer.from_pretrained(run)
    assert (model.config.attention_type, model.config.vocab_size) == ("dot", len(tokenizer))
    assert (model.generation_config.num_beams, model.generation_config.max_length) == (2, 13)
    assert model.generation_config.decoder_start_token_id == tokenizer.bos_token_id == 1
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["steps"], summary["data"]["rows"]) == (4, {"train": 60, "validation": 9})
    assert summary["skipped"] == {"train": {}, "validation": {}} and "eval_bleu" in summary
    saved = yaml.safe_load((run / "recipe.yaml").read_text())
    assert (saved["attention_type"], saved["source_lang"], saved["max_steps"]) == ("dot", "en", 4)

    before = (run / "model.safetensors").read_bytes()
    with pytest.raises(ArgumentError, match="already holds a run"):
        train(recipe, "--output_dir", run)
    assert (run / "model.safetensors").read_bytes() == before
    # The run's own recipe continues it: the tokenizer is the saved one, nothing has to be given again.
    more = ["--output_dir", run, "--resume_from_checkpoint", "latest", "--max_steps", 6]
    assert train(run / "recipe.yaml", *more) == 0
    assert json.loads((run / "summary.json").read_text())["steps"] == 6
    with pytest.raises(ArgumentError, match="was trained with data"):
        train(run / "recipe.yaml", *more[:-1], 8, "--target_lang", "de")


@pytest.mark.long
def test_separate_vocabularies_a_preset_and_a_second_training(recipe, tmp_path):
    first = tmp_path / "first"
    words = ["--joint_vocabulary", "false", "--source_vocab_size", 280, "--preset", "bahdanau2014"]
    assert train(recipe, "--output_dir", first, *words) == 0
    model = AutoModelForSeq2SeqLM.from_pretrained(first)
    assert model.config.source_vocab_size == 280 and model.config.attention_type == "additive"
    words = ["--model_name_or_path", first, "--max_steps", 1, "--learning_rate", 0]
    assert train(recipe, "--output_dir", tmp_path / "second", *words) == 0
    again = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "second")
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name])


def test_fields_that_the_weights_of_a_checkpoint_do_not_fit(recipe, tmp_path, caplog):
    first = tmp_path / "first"
    assert train(recipe, "--output_dir", first, "--max_steps", 1) == 0
    again = [recipe, "--model_name_or_path", first, "--output_dir", tmp_path / "second"]
    named = f"model_name_or_path={str(first)!r}"
    with pytest.raises(ArgumentError) as refused:
        train(*again, "--hidden_size", 24, "--dropout", 0.25)
    size = AutoModelForSeq2SeqLM.from_pretrained(first).config.hidden_size
    assert (
        str(refused.value)
        == f"hidden_size=24: {named} has the weights of hidden_size={size}; leave it out, or give that"
    )
    with pytest.raises(ArgumentError, match=r"^cell_type='gru': .* has the weights of cell_type='lstm'; leave it out"):
        train(*again, "--cell_type", "gru")
    assert train(*again, "--copy_mechanism", "true", "--max_steps", 1) == 0, "what is added starts at random"
    assert any(f"{named}: has no " in record.message for record in caplog.records)
    weights = load_file(first / "model.safetensors")
    weights.pop("lm_head.bias")
    save_file(weights, first / "model.safetensors", {"format": "pt"})
    with pytest.raises(ArgumentError, match=r"does not hold the weights of its own config.json, such as lm_head.bias$"):
        train(*again, "--output_dir", tmp_path / "third")


def test_copying_needs_one_vocabulary(recipe, tmp_path):
    words = ["--copy_mechanism", "true", "--joint_vocabulary", "false", "--output_dir", tmp_path / "run"]
    with pytest.raises(ArgumentError, match="^copy_mechanism=True: .* needs joint_vocabulary=True$"):
        train(recipe, *words)


def test_files_with_rows_that_cannot_be_used(recipe, tmp_path, capsys):
    lines = ["source\ttarget", *(f"a {n} b\tc {n} d" for n in range(30)), "lonely\t", f"{'very ' * 60}long\tx"]
    (tmp_path / "train.tsv").write_text("\n".join(lines) + "\n")
    words = [
        "--dataset_name",
        "none",
        "--train_file",
        tmp_path / "train.tsv",
        "--validation_file",
        tmp_path / "train.tsv",
    ]
    words += ["--source_column", "source", "--target_column", "target", "--max_source_length", 20]
    assert train(recipe, "--output_dir", tmp_path / "run", *words, "--tokenizer_algorithm", "word") == 0
    skipped = json.loads((tmp_path / "run" / "summary.json").read_text())["skipped"]["train"]
    assert skipped == {"empty_target": 1, "too_long_source": 1}
    assert "train: 30 rows; left out: 1 empty_target, 1 too_long_source" in capsys.readouterr().err


def test_a_streamed_run_resumes_and_a_finished_one_is_reported(recipe, tmp_path, capsys):
    run = tmp_path / "run"
    words = [recipe, "--streaming", "--streaming_buffer", 20, "--max_eval_samples", 5, "--output_dir", run]
    assert train(*words, "--max_steps", 2) == 0
    assert "train: streamed; left out: not counted while streaming" in capsys.readouterr().err
    again = [*words, "--resume_from_checkpoint", "latest", "--max_steps", 5]
    kept = (run / "recipe.yaml").read_bytes()
    with pytest.raises(ArgumentError, match="lowercase=True: the run was started with False; a resumed run"):
        train(*again, "--lowercase", "true")
    assert (run / "recipe.yaml").read_bytes() == kept
    assert train(*again) == 0
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["steps"], summary["data"]["streaming"]) == (5, True) and "eval_bleu" in summary
    # Windows of 20 make updates of 8, 8 and 4 sentences: the fifth is the second of the second window.
    state = json.loads((run / "checkpoints" / "step-00000005" / "state.json").read_text())
    assert (state["progress"]["stream"]["window"], state["progress"]["stream"]["batch"]) == (1, 2)
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*.safetensors")}
    assert train(*again) == 0
    assert "finished at step 5; there is nothing left to do" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*.safetensors")} == before


def test_a_run_that_asks_something_of_its_attention(recipe, tmp_path):
    """Alignments are computed, the log has the attention's figures, and contradictory options are refused."""
    run = tmp_path / "run"
    assert train(recipe, "--output_dir", run, "--guided_alignment_weight", 0.5, "--coverage_loss", 1) == 0
    lines = [json.loads(line) for line in (run / "train_log.jsonl").read_text().splitlines()]
    for line in (line for line in lines if line["event"] == "train"):
        assert 0 < line["attention_entropy"] < 4 and line["coverage_loss"] > 0
        extra = line["loss"] - line["ml_loss"]
        # The guided loss is the mean over the words that stand for something.
        assert line["coverage_loss"] < extra <= line["coverage_loss"] + 0.5 * line["guided_alignment_loss"] + 1e-6
    for words, message in (
        (["--alignment_column", "a"], "alignment_column='a': the column of cldr is 'alignment'"),
        (["--alignment_column", "alignment"], "alignment_column='alignment': needs guided_alignment_weight above 0"),
        (["--streaming", "--guided_alignment_weight", 0.5], "guided_alignment_weight=0.5: needs the whole training"),
    ):
        with pytest.raises(ValueError, match=message):
            train(recipe, "--output_dir", tmp_path / "other", *words)
    table = tmp_path / "t.tsv"
    table.write_text("en\tfr\n" + "a b\tc d\n" * 3)
    (tmp_path / "a.txt").write_text("0-0\n" * 3)
    files = ["--dataset_name", "none", "--train_file", table, "--alignment_file", tmp_path / "a.txt"]
    whole_sequences = ["--model_name_or_path", run, "--objective", "mrt"]
    for words in (files, files + whole_sequences):
        with pytest.raises(ArgumentError, match="alignment_file='.*a.txt': needs guided_alignment_weight above 0"):
            train(recipe, "--output_dir", tmp_path / "other", *words)


def test_dry_run_prints_the_plan_and_writes_nothing(recipe, tmp_path, capsys):
    before = set(tmp_path.iterdir())
    assert train(recipe, "--dry_run") == 0
    plan = capsys.readouterr().out
    assert "updates per epoch  8" in plan and "4 at most" in plan
    assert set(tmp_path.iterdir()) == before


def test_the_learning_curve_is_drawn_or_a_line_says_why_not(tmp_path, monkeypatch):
    log, picture = tmp_path / "train_log.jsonl", tmp_path / "learning_curve.png"
    log.write_text('{"event": "train", "step": 1, "loss": 2.0}\n')
    assert script.draw_learning_curve(tmp_path) == "no learning_curve.png: nothing was logged twice"
    log.write_text(log.read_text() + '{"event": "train", "step": 2, "loss": 1.0}\n')
    assert script.draw_learning_curve(tmp_path) == f"learning curve in {picture}"
    assert picture.stat().st_size > 1000
    picture.unlink()
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert "pip install 'hf_rnn_seq2seq[plot]'" in script.draw_learning_curve(tmp_path)
    assert not picture.exists()


@pytest.mark.slow
def test_two_workers_as_the_readme_starts_them(recipe, tmp_path):
    """Translations are gathered from both processes: the scores are those of one process."""
    two = {"prefix": ["--multi_gpu", "--num_processes", "2", "--main_process_port", "0"]}
    result = launch(recipe, "--output_dir", tmp_path / "two", environment={"ACCELERATE_USE_CPU": "true"}, **two)
    assert result.returncode == 0, result.stderr[-3000:]
    summary = json.loads((tmp_path / "two" / "summary.json").read_text())
    assert (summary["processes"], summary["steps"], summary["threads"]) == (2, 4, 1)
    words = ["--per_device_train_batch_size", 16, "--output_dir", tmp_path / "one"]
    assert train(recipe, *words) == 0
    one = json.loads((tmp_path / "one" / "summary.json").read_text())
    for fact in ("eval_loss", "eval_bleu", "eval_chrf", "target_tokens"):
        assert summary[fact] == pytest.approx(one[fact], abs=1e-4), fact


@pytest.mark.slow
def test_bad_input_ends_in_one_line(recipe, tmp_path):
    command = [*warm.python(), str(ROOT / "scripts" / "train.py"), recipe, "--output_dir", str(tmp_path / "run")]
    result = subprocess.run(
        [*command, "--mixed_precision", "fp16"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": "."},
    )
    assert result.returncode == 2 and not (tmp_path / "run").exists()
    assert result.stderr.strip() == "error: mixed_precision='fp16': needs a GPU; on a CPU bf16 or no"


def test_an_uninformative_metric_is_named_with_better_ones(tmp_path, recipe, capsys):
    words = "en\tfr\n" + "".join(f"w{number % 7}\tm{number % 7}\n" for number in range(40))
    for name in ("train", "dev"):
        (tmp_path / f"{name}.tsv").write_text(words)
    plan = yaml.safe_load(Path(recipe).read_text())
    del plan["dataset_name"], plan["max_train_samples"]
    plan |= {"train_file": str(tmp_path / "train.tsv"), "validation_file": str(tmp_path / "dev.tsv")}
    plan |= {"min_frequency": 1, "eval_steps": 2, "learning_rate": 0.01}
    Path(recipe).write_text(yaml.safe_dump(plan))
    assert train(recipe, "--output_dir", tmp_path / "bleu") == 0
    printed = capsys.readouterr().err
    assert printed.count("warning: metric_for_best_model='bleu': bleu counts runs of four words, and 9 of 9 ref") == 1
    assert "choose exact_match, sequence_error or chrf" in printed
    best = ("--metric_for_best_model", "exact_match")
    assert train(recipe, *best, "--output_dir", tmp_path / "exact") == 0
    assert "warning" not in capsys.readouterr().err
    summary = json.loads((tmp_path / "exact" / "summary.json").read_text())
    assert summary["best_metric_name"] == "exact_match" and "eval_exact_match" in summary


def test_what_could_not_be_saved_is_refused_before_the_first_update(tmp_path, recipe):
    def refused(*words) -> str:
        with pytest.raises(ArgumentError) as caught:
            train(recipe, *words)
        return str(caught.value)

    for more in ((), ("--dry_run",)):
        printed = refused("--length_penalty", 0.6, "--output_dir", tmp_path / "run", *more)
        assert printed.startswith("length_penalty=0.6, num_beams=1: cannot be saved together"), printed
    assert refused("--num_beams", 1, "--length_penalty", 2, "--dry_run").startswith("length_penalty=2.0, num_beams=1")
    (tmp_path / "file").write_text("")
    assert "/file is a file; must be a directory" in refused("--output_dir", tmp_path / "file" / "run")
    assert not (tmp_path / "run").exists()


def test_a_test_file_is_looked_at_before_the_training(tmp_path, recipe):
    plan = yaml.safe_load(Path(recipe).read_text())
    del plan["dataset_name"], plan["max_train_samples"]
    (tmp_path / "train.tsv").write_text("en\tfr\n" + "a b\tc d\n" * 40)
    (tmp_path / "other.tsv").write_text("fra\teng\na\tb\n")
    (tmp_path / "other.jsonl").write_text('{"fra": "a", "eng": "b"}\n')
    Path(recipe).write_text(yaml.safe_dump(plan | {"train_file": str(tmp_path / "train.tsv")}))
    for name, message in (
        ("nowhere.tsv", "nowhere.tsv does not exist"),
        ("other.tsv", "other.tsv: no column 'en'; it has 'fra', 'eng' (choose with source_column and target_column)"),
        ("other.jsonl", "other.jsonl: no column 'en'; it has 'fra', 'eng'"),
    ):
        for more in ((), ("--dry_run",)):
            with pytest.raises(DataError) as caught:
                train(recipe, "--test_file", tmp_path / name, "--output_dir", tmp_path / "run", *more)
            assert message in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.long
def test_the_generation_options_of_a_checkpoint_are_carried_over(tmp_path, recipe):
    teacher = tmp_path / "teacher"
    assert train(recipe, "--num_beams", 2, "--length_penalty", 0.6, "--output_dir", teacher) == 0
    tuned = (recipe, "--model_name_or_path", teacher)
    with pytest.raises(
        ArgumentError, match=r"^length_penalty=0.6, num_beams=1: cannot be saved in the generation conf"
    ):
        train(*tuned, "--num_beams", 1, "--dry_run")
    assert train(*tuned, "--output_dir", tmp_path / "a") == 0
    assert train(*tuned, "--num_beams", 1, "--length_penalty", 1, "--output_dir", tmp_path / "b") == 0
    configs = [json.loads((tmp_path / run / "generation_config.json").read_text()) for run in ("a", "b")]
    assert [config.get("num_beams") for config in configs] == [2, 1]
    assert [config.get("length_penalty") for config in configs] == [0.6, None]


def test_a_directory_that_another_process_writes_is_refused(tmp_path, recipe):
    code = "import sys, time\nfrom hf_rnn_seq2seq.files import only_writer\n"
    code += "with only_writer(sys.argv[1]):\n    print(flush=True)\n    time.sleep(600)"
    command = [*warm.python(), "-c", code, str(tmp_path / "run")]
    with subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE) as holder:
        holder.stdout.readline()
        for more in ((), ("--resume_from_checkpoint", "latest")):
            with pytest.raises(ValueError, match=r"run': another process .* is writing this directory; wait until"):
                train(recipe, "--output_dir", tmp_path / "run", *more)
        holder.terminate()
    assert train(recipe, "--output_dir", tmp_path / "run", "--resume_from_checkpoint", "latest") == 0
    assert not (tmp_path / "run" / ".lock").exists()


@pytest.mark.long
def test_a_checkpoint_is_named_by_its_step_or_folder(tmp_path, recipe, monkeypatch):
    run = tmp_path / "run"
    assert train(recipe, "--save_steps", 2, "--output_dir", run) == 0
    again = (recipe, "--output_dir", run, "--max_steps", 5, "--save_total_limit", "none")
    for typed in ("2", "step-00000002", run / "checkpoints" / "step-00000002"):
        assert train(*again, "--resume_from_checkpoint", typed) == 0
        resumed = [json.loads(line) for line in (run / "train_log.jsonl").read_text().splitlines()]
        assert [line["step"] for line in resumed if line["event"] == "resume"][-1] == 2
    with pytest.raises(
        ArgumentError, match=r"resume_from_checkpoint='9': no such checkpoint; .*: step-00000002, step-0"
    ):
        train(*again, "--resume_from_checkpoint", 9)
    with pytest.raises(ValueError, match=r"(^|; )hidden_size=10: the checkpoint has 12;") as caught:
        train(*again, "--hidden_size", 10, "--encoder_hidden_size", 6, "--resume_from_checkpoint", "true")
    assert len(str(caught.value)) < 700 and "bridge" not in str(caught.value)


@pytest.fixture(scope="module")
def pretrained_encoder(tmp_path_factory):
    """The folder of an encoder that has read the words of the corpus."""
    folder = tmp_path_factory.mktemp("bert")
    corpus = load_corpus(RunOptions.parse([f"--{k}={v}" for k, v in TINY.items()]).data, splits=("train",))
    save_encoder(folder, list(corpus.splits["train"]["source"]))
    return folder


def test_a_run_over_a_pretrained_encoder(recipe, pretrained_encoder, tmp_path):
    """It keeps the encoder's weights and tokenizer, continues, and is translated with as any other."""
    run, before = tmp_path / "run", load_file(pretrained_encoder / "model.safetensors")
    levels = ["--encoder_levels", "0,-1"]
    assert train(recipe, "--encoder", pretrained_encoder, "--freeze_encoder", *levels, "--output_dir", run) == 0
    more = ["--output_dir", run, "--resume_from_checkpoint", "latest", "--max_steps", 6]
    assert train(run / "recipe.yaml", *more) == 0
    model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(run), AutoTokenizer.from_pretrained(run)
    assert model.config.freeze_encoder and model.config.encoder.model_type == "bert"
    assert model.config.encoder_levels == [0, -1]
    own = AutoTokenizer.from_pretrained(pretrained_encoder)
    line = "10 days ago"
    assert tokenizer(line)["input_ids"] == own(line)["input_ids"]
    assert model.config.vocab_size == tokenizer.target_vocab_size == 300
    assert model.config.source_vocab_size == len(own) + 3
    after = model.model.encoder.foreign.model.state_dict()
    assert after.keys() and all(torch.equal(after[name], before[name]) for name in after)
    assert json.loads((run / "summary.json").read_text())["frozen_parameters"] == sum(map(torch.numel, after.values()))
    assert yaml.safe_load((run / "recipe.yaml").read_text())["encoder"] == str(pretrained_encoder)
    translated = script_runs.run("translate.py", run, "--num_beams", 2, stdin=f"{line}\n\n{line}\n".encode())
    assert translated.returncode == 0, translated.stderr
    lines = translated.stdout.decode().split("\n")
    assert len(lines) == 4 and lines[0] == lines[2] and lines[1] == ""
    scored = script_runs.run("evaluate_bleu.py", run, "--max_predict_samples", 3)
    assert scored.returncode == 0, scored.stderr


def test_a_run_over_an_encoder_that_starts_at_random(recipe, tmp_path):
    run = tmp_path / "run"
    encoder = (
        "{d_model: 8, encoder_layers: 1, encoder_attention_heads: 2, encoder_ffn_dim: 8, decoder_attention_heads: 2}"
    )
    words = ["--preset", "transformer_encoder", "--encoder", encoder, "--num_attention_heads", 2, "--attention_size", 8]
    assert train(recipe, *words, "--output_dir", run) == 0
    config = AutoModelForSeq2SeqLM.from_pretrained(run).config
    assert (config.encoder.d_model, config.encoder.scale_embedding, config.encoder.vocab_size) == (8, True, 300)
    assert yaml.safe_load((run / "recipe.yaml").read_text())["encoder"]["encoder_ffn_dim"] == 8


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--freeze_encoder"], "freeze_encoder=True: there is no encoder to freeze"),
        (["--encoder", "{model_type: brt}"], "encoder.model_type='brt': must be a model of transformers itself"),
        (
            ["--encoder", "{model_type: bert, hidden_size: 12}", "--freeze_encoder"],
            "freeze_encoder=True: the encoder's weights are random; name a pretrained one",
        ),
        (["--encoder", "FOLDER", "--source_vocab_size", "99"], "source_vocab_size=99: encoder=.* leave it out"),
        (["--encoder", "FOLDER", "--tokenizer_name_or_path", "FOLDER"], "tokenizer_name_or_path=.* leave it out"),
        (["--encoder", "FOLDER", "--model_name_or_path", "FOLDER"], "model_name_or_path=.* leave out one of them"),
        (
            ["--encoder", "FOLDER", "--source_vectors", "x.vec"],
            "source_vectors='x.vec' changes the source's word vectors",
        ),
        (["--encoder", "/no/such/folder"], "encoder='/no/such/folder': cannot be loaded"),
        (["--encoder", "FOLDER", "--encoder_layers", "0"], "bridge='dense': reads the final states"),
    ],
)
def test_encoders_that_cannot_be_used_are_refused(words, message, recipe, pretrained_encoder, tmp_path):
    words = [str(pretrained_encoder) if word == "FOLDER" else word for word in words]
    with pytest.raises(ValueError, match=message):
        train(recipe, *words, "--output_dir", tmp_path / "run")
    assert not (tmp_path / "run" / "model.safetensors").exists()

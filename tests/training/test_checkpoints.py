"""Checkpoints are complete or absent, verified, and never lost; and what a run does when it is stopped."""

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import time
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSeq2SeqLM

from hf_rnn_seq2seq.errors import ArgumentError, CheckpointError
from hf_rnn_seq2seq.training.arguments import TrainingOptions
from hf_rnn_seq2seq.training.checkpoints import (
    CheckpointStore,
    damage,
    load_optimizer,
    load_weights,
    named_checkpoint,
    publish,
    random_state,
    restore_random_state,
    save_optimizer,
)
from hf_rnn_seq2seq.training.experiments import OF_ANOTHER_COMMAND
from hf_rnn_seq2seq.training.log import RunLog
from hf_rnn_seq2seq.training.optimization import build_optimizer
from tests.helpers import warm
from tests.helpers.training_runs import arguments, build_loop, build_model, log_lines

pytestmark = pytest.mark.usefixtures("fresh_accelerate")

ROOT = Path(__file__).parents[2]


def write_text(text: str = "weights"):
    def write(folder: Path) -> None:
        (folder / "model.safetensors").write_text(text)
        (folder / "state.json").write_text("{}")

    return write


def names(store: CheckpointStore) -> list[str]:
    return [path.name for path in store.all()]


# --- the store ----------------------------------------------------------------------------------------------------


def test_the_newest_are_kept_and_the_best_beside_them(tmp_path):
    store = CheckpointStore(tmp_path, limit=2)
    for step in (10, 20, 30, 40, 50):
        store.save(step, write_text(), best_step=20 if step >= 20 else None)
    assert names(store) == ["step-00000020", "step-00000040", "step-00000050"]
    everything = CheckpointStore(tmp_path / "all", limit=None)
    for step in (1, 2, 3):
        everything.save(step, write_text())
    assert len(everything.all()) == 3


def test_a_second_state_of_a_step_replaces_the_first_only_when_it_is_whole(tmp_path):
    store = CheckpointStore(tmp_path, limit=1)
    first = store.save(5, write_text("first"))

    def fail(folder: Path) -> None:
        assert first.is_dir()
        raise OSError("no space left")

    with pytest.raises(CheckpointError, match="step 5 cannot be written.*no space left"):
        store.save(5, fail)
    assert names(store) == ["step-00000005"] and damage(first) is None
    second = store.save(5, write_text("second"))
    assert names(store) == [second.name] and second.name == "step-00000005.1"
    assert store.latest() == second


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (lambda folder: os.truncate(folder / "model.safetensors", 3), "model.safetensors has 3 bytes instead of 7"),
        (lambda folder: (folder / "model.safetensors").write_text("weightz"), "model.safetensors has changed"),
        (lambda folder: (folder / "state.json").unlink(), "state.json is missing"),
        (lambda folder: (folder / "manifest.json").unlink(), "no readable manifest.json"),
        (lambda folder: os.truncate(folder / "manifest.json", 20), "no readable manifest.json"),
        (lambda folder: (folder / "manifest.json").write_text("[]"), "no readable manifest.json"),
    ],
)
def test_a_damaged_newest_checkpoint_is_passed_over(harm, reason, tmp_path):
    store = CheckpointStore(tmp_path)
    good, bad = store.save(1, write_text()), store.save(2, write_text())
    harm(bad)
    messages: list[str] = []
    assert store.latest(messages.append) == good
    assert len(messages) == 1 and reason in messages[0] and str(bad) in messages[0]
    assert store.latest(messages.append) == good and bad.is_dir(), "nothing is deleted by looking"


def test_leftovers_of_a_killed_process_are_deleted(tmp_path):
    store = CheckpointStore(tmp_path, limit=1)
    good = store.save(1, write_text())
    for name in (".writing-step-00000002", ".deleting-step-00000000", "step-junk", "notes"):
        (store.folder / name).mkdir()
    assert store.latest() == good
    newest = store.save(2, write_text())
    assert sorted(path.name for path in store.folder.iterdir()) == ["notes", newest.name, "step-junk"]
    assert CheckpointStore(tmp_path / "nothing").latest() is None


def test_a_full_disk_loses_nothing(tmp_path):
    """The kernel limits the size of files, which has the effect of a full disk."""
    store = CheckpointStore(tmp_path, limit=1)
    model, optimizer = build_model("rnn"), torch.optim.Adam(build_model("rnn").parameters())
    publish(tmp_path, model.save_pretrained)
    before = (tmp_path / "model.safetensors").read_bytes()
    store.save(1, model.save_pretrained)
    with torch.no_grad():
        model.lm_head.weight.zero_()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    try:
        with pytest.raises(CheckpointError, match="checkpoint of step 2 cannot be written"):
            store.save(2, lambda folder: (model.save_pretrained(folder), save_optimizer(optimizer, folder)))
        with pytest.raises(CheckpointError, match="the model cannot be written"):
            publish(tmp_path, model.save_pretrained)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert names(store) == ["step-00000001"] and store.latest() is not None
    assert (tmp_path / "model.safetensors").read_bytes() == before
    assert not [path for path in tmp_path.rglob(".writing*")]
    assert store.save(2, model.save_pretrained).name == "step-00000002"


def test_published_files_replace_the_old_and_are_readable_by_others(tmp_path):
    model = build_model("bart")
    publish(tmp_path, model.save_pretrained)
    with torch.no_grad():
        model.final_logits_bias += 1
        model.model.shared.weight += 1
    publish(tmp_path, model.save_pretrained)
    loaded = AutoModelForSeq2SeqLM.from_pretrained(tmp_path)
    assert torch.equal(loaded.model.shared.weight, model.model.shared.weight)
    mask = os.umask(0)
    os.umask(mask)
    assert (tmp_path / "model.safetensors").stat().st_mode & 0o777 == 0o666 & ~mask


# --- what a state holds -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["rnn_tied", "bart"])
def test_weights_return_exactly_ties_included(kind, tmp_path):
    model = build_model(kind)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    model.save_pretrained(tmp_path)
    other = build_model(kind)
    load_weights(other, tmp_path / "model.safetensors")
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name


def test_weights_of_another_model_are_refused(tmp_path):
    build_model("rnn").save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    with pytest.raises(CheckpointError, match="model_type='bart': the checkpoint has 'rnn_seq2seq'"):
        load_weights(build_model("bart"), file)
    stored = load_file(file)
    name = sorted(stored)[0]
    save_file({key: value for key, value in stored.items() if key != name}, file)
    with pytest.raises(CheckpointError, match=rf"lacks \['{name}'\]"):
        load_weights(build_model("rnn"), file)
    save_file({**stored, name: torch.zeros(1, 1)}, file)
    with pytest.raises(CheckpointError, match="size mismatch"):
        load_weights(build_model("rnn"), file)
    file.write_bytes(b"junk")
    with pytest.raises(CheckpointError, match="does not fit the model"):
        load_weights(build_model("rnn"), file)


def test_a_run_keeps_what_its_model_computes(tmp_path):
    """Another value with weights of the same shapes is refused, unless training alone reads it."""
    build_model("rnn").save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    other = build_model("rnn")
    other.config.update({"dropout": 0.4, "label_smoothing": 0.2, "scheduled_sampling": "linear"})
    load_weights(other, file)
    other.config.attention_window = "local_m"
    with pytest.raises(CheckpointError, match="attention_window='local_m': the checkpoint has 'global'"):
        load_weights(other, file)


@pytest.mark.parametrize("optim", ["adamw", "adam", "sgd", "adadelta"])
def test_an_optimizer_returns_exactly(optim, tmp_path):
    def step(optimizer, model):
        for number, parameter in enumerate(model.parameters()):
            parameter.grad = torch.full_like(parameter, 0.1 * (number % 3 + 1))
        optimizer.step()

    options = TrainingOptions(optim=optim, weight_decay=0.01)
    model, other = build_model("rnn"), build_model("rnn")
    optimizer, restored = build_optimizer(model, options), build_optimizer(other, options)
    step(optimizer, model)
    rest = json.loads(json.dumps(save_optimizer(optimizer, tmp_path)))
    other.load_state_dict(model.state_dict())
    load_optimizer(restored, tmp_path, rest)
    assert str(restored.state_dict()["param_groups"]) == str(optimizer.state_dict()["param_groups"])
    step(optimizer, model)
    step(restored, other)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    with pytest.raises(CheckpointError, match="does not fit this run"):
        load_optimizer(build_optimizer(build_model("bart"), options), tmp_path, rest)


def test_random_generators_return_exactly_through_json():
    def draw():
        return random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn(), torch.rand(3).tolist()

    draw()
    state = json.loads(json.dumps(random_state()))
    expected = draw()
    draw()
    restore_random_state(state)
    assert draw() == expected


def test_a_checkpoint_that_is_being_read_stays(tmp_path):
    store, reader = CheckpointStore(tmp_path, limit=1), Future()
    first = store.save(1, lambda folder: (folder / "file").write_text("1"))
    store.readers[first] = reader
    second = store.save(2, lambda folder: (folder / "file").write_text("2"))
    assert store.all() == [first, second]
    reader.set_result("read")
    assert store.save(3, lambda folder: (folder / "file").write_text("3")) in store.all()
    assert len(store.all()) == 1


def test_a_checkpoint_loads_by_itself_and_holds_no_pickle(tmp_path):
    build_loop("rnn", arguments(tmp_path, max_steps=2)).run()
    folder = tmp_path / "checkpoints" / "step-00000002"
    model = AutoModelForSeq2SeqLM.from_pretrained(folder)
    assert torch.equal(model.lm_head.weight, load_file(folder / "model.safetensors")["lm_head.weight"])
    suffixes = {path.suffix for path in tmp_path.rglob("*") if path.is_file()}
    assert suffixes <= {".safetensors", ".json", ".jsonl", ".yaml", ".py", ".png"}


# --- stopping and going on ----------------------------------------------------------------------------------------


def test_a_named_checkpoint_is_used_or_refused(tmp_path):
    build_loop("bart", arguments(tmp_path, max_steps=4, save_steps=2)).run()
    earlier = tmp_path / "checkpoints" / "step-00000002"
    again = build_loop("bart", arguments(tmp_path, max_steps=4, resume_from_checkpoint=str(earlier)))
    assert again.run() == "max_steps"
    assert [line["step"] for line in log_lines(tmp_path, "train")] == [1, 2, 3, 4], "nothing is logged twice"
    assert [line["step"] for line in log_lines(tmp_path, "resume")] == [2]
    second = shutil.copytree(earlier, earlier.with_name("step-00000002.1"))
    assert named_checkpoint(tmp_path, "step-00000002") == earlier and named_checkpoint(tmp_path, "2") == second
    with pytest.raises(ArgumentError, match="no such checkpoint; must be latest"):
        named_checkpoint(tmp_path, "step-00000002.2")
    os.truncate(earlier / "state.json", 10)
    with pytest.raises(ArgumentError, match=r"resume_from_checkpoint='.*step-00000002': state.json has 10 bytes"):
        build_loop("bart", arguments(tmp_path, resume_from_checkpoint=str(earlier))).run()
    with pytest.raises(ArgumentError, match="no such checkpoint; must be latest"):
        build_loop("bart", arguments(tmp_path, resume_from_checkpoint=str(tmp_path / "nowhere"))).run()


def start(folder: Path, **options) -> subprocess.Popen:
    run = {"model": "rnn_dropout", "options": {"output_dir": str(folder / "run"), **options}}
    file = folder / "runs.json"
    file.write_text(json.dumps([run]))
    command = [*warm.python(), str(ROOT / "tests" / "helpers" / "training_runs.py"), str(file)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_sigterm_finishes_the_step_saves_and_resumes_exactly(tmp_path):
    options = {"max_steps": 100_000, "lr_scheduler_type": "constant", "save_total_limit": 1}
    process = start(tmp_path, **options)
    log = tmp_path / "run" / "train_log.jsonl"
    deadline = time.monotonic() + 120
    while not (log.exists() and '"step": 5,' in log.read_text()):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 143, errors
    step = log_lines(tmp_path / "run", "stop")[-1]["step"]
    assert f"stopped by SIGTERM at step {step}" in errors and "--resume_from_checkpoint latest" in errors
    assert (tmp_path / "run" / "model.safetensors").exists() and not (tmp_path / "run" / "summary.json").exists()

    options = {**options, "max_steps": step + 4}
    torch.set_num_threads(1)
    resumed = arguments(tmp_path / "run", resume_from_checkpoint="latest", **options)
    assert build_loop("rnn_dropout", resumed).run() == "max_steps"
    build_loop("rnn_dropout", arguments(tmp_path / "whole", **options)).run()
    files = [tmp_path / run / f"checkpoints/step-{step + 4:08d}/model.safetensors" for run in ("run", "whole")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_second_signal_exits_at_once(tmp_path):
    """In a child process, since it ends without cleanup."""
    code = """
import os, signal, sys, time
from hf_rnn_seq2seq.training.experiments import OF_ANOTHER_COMMAND
from hf_rnn_seq2seq.training.launch import StopSignals
with StopSignals(lambda message: None) as signals:
    os.kill(os.getpid(), signal.SIGTERM); os.kill(os.getpid(), signal.SIGTERM)
    assert signals.check() == signal.SIGTERM, "twice within a second is one request"
    time.sleep(1.1)
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(5)
sys.exit(7)
"""
    result = subprocess.run([*warm.python(), "-c", code], cwd=ROOT, timeout=60)
    assert result.returncode == 128 + signal.SIGINT


@pytest.mark.parametrize("early", [False, True])
def test_a_run_of_another_command_stops_when_that_command_is_killed(early, tmp_path):
    """While the run trains, or already before it does."""
    code = f"""
import os, pathlib, time
started = os.pipe()
if os.fork():  # the command, which is killed
    os.read(started[0], 1)
    os._exit(0)
command = os.getppid()
os.environ["{OF_ANOTHER_COMMAND}"] = str(command)
if {early}:
    os.write(started[1], b"x")
    while os.getppid() == command:
        time.sleep(0.01)
from hf_rnn_seq2seq.training.launch import StopSignals
with StopSignals(lambda message: pathlib.Path("message").write_text(message)) as signals:
    assert {early} or not signals.check()
    os.write(started[1], b"x")
    deadline = time.monotonic() + 20
    while not signals.check() and time.monotonic() < deadline:
        time.sleep(0.01)
pathlib.Path("received").write_text(str(int(signals.received)))
"""
    subprocess.run([*warm.python(), "-c", code], cwd=tmp_path, timeout=60, check=True)
    deadline = time.monotonic() + 30
    while not (tmp_path / "received").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert (tmp_path / "received").read_text() == str(int(signal.SIGTERM))
    assert (tmp_path / "message").read_text() == "what started this run has ended: saving and stopping"


# --- the log ------------------------------------------------------------------------------------------------------


def test_a_resumed_log_drops_what_will_happen_again_and_a_torn_line(tmp_path):
    log = RunLog()
    log.write("train", step=0)
    log.open(tmp_path / "log.jsonl")
    for step in (1, 2, 3):
        log.write("train", step=step, loss=float("nan") if step == 2 else 1.5)
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"event": "train", "st')
    log.open(tmp_path / "log.jsonl", resumed_step=2)
    log.write("resume", step=2)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [(line["event"], line["step"]) for line in lines] == [("train", 1), ("train", 2), ("resume", 2)]
    assert lines[1]["loss"] is None

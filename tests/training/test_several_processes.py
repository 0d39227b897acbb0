"""Several processes, on one machine or two, through the launch commands of the README: gloo workers on the CPU."""

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from accelerate.commands.launch import launch_command_parser

from hf_rnn_seq2seq.training.checkpoints import CheckpointStore
from tests.helpers import warm
from tests.helpers.script_runs import free_port
from tests.helpers.training_checks import assert_identical_states, assert_same_weights, copy_until, weights
from tests.helpers.training_runs import (
    arguments,
    build_loop,
    build_model,
    corpus,
    letter_rows,
    log_lines,
    text_stream,
)

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("fresh_accelerate")]

ROOT = Path(__file__).parents[2]
PATIENCE = 900  # seconds until a test gives up, on a machine that is busy with other things
LAST = "checkpoints/step-00000012"
FROZEN = ["model.encoder.*", "lm_head.bias"]
RUNS = {
    "bart": {"save_steps": 5, "eval_steps": 5},
    "rnn": {"eval_steps": 5},
    "rnn_tied": {},
    "rnn_dropout": {"save_steps": 5},
}


def start(runs: list[dict], folder: Path, *words: str, python: Sequence[str] = ()) -> subprocess.Popen:
    file = folder / "runs.json"
    file.write_text(json.dumps(runs))
    command = [*(python or warm.python()), "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    command += ["--mixed_precision", "no", "--dynamo_backend", "no", *words]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command += [str(ROOT / "tests" / "helpers" / "training_runs.py"), str(file)]
    # Output to a file: a worker that outlived its launcher would hold a pipe open.
    with (folder / f"errors{len(list(folder.glob('errors*')))}.txt").open("w") as errors:
        return subprocess.Popen(command, env=environment, stdout=errors, stderr=errors, cwd=ROOT)


def launch(runs: list[dict], folder: Path) -> None:
    process = start(runs, folder, "--num_machines", "1", "--main_process_port", "0")
    assert process.wait(timeout=PATIENCE) == 0, error_output(folder)


def error_output(folder: Path) -> str:
    return "\n".join(path.read_text()[-3000:] for path in sorted(folder.glob("errors*")))


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """A folder of runs of two workers, one after the other in the same processes."""
    folder = tmp_path_factory.mktemp("two")

    def run(kind: str, name: str, **more):
        options = {"output_dir": str(folder / name), "per_device_train_batch_size": 4, **more.pop("options", {})}
        return {"model": kind, "options": options, **more}

    runs = [run(kind, kind, options=options) for kind, options in RUNS.items()]
    runs.append(run("rnn", "epoch", options={"max_steps": -1, "num_train_epochs": 1}))
    runs.append(run("rnn", "stream", buffer=30))
    runs.append(run("rnn", "frozen", options={"freeze": FROZEN}))
    runs.append(run("rnn", "bpe_dropout", bpe_dropout=True, options={"max_steps": 9}))
    parts = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    runs.append(run("rnn", "accumulated", options=parts))
    launch(runs, folder)
    return folder


@pytest.mark.parametrize("kind", ["bart", "rnn", "rnn_tied", "accumulated", "stream"])
def test_two_processes_equal_one(kind, two, tmp_path):
    """Tied and untied, with label smoothing (rnn_tied), in parts of 2, from a table and a stream.

    The recurrent models run by the fused scan: the gradients of its weights come from one backward pass, and
    DistributedDataParallel averages them.
    """
    assert kind == "bart" or build_model("rnn").train().get_decoder().recurrence_path == "scan"
    options = arguments(tmp_path, eval_steps=RUNS.get(kind, {}).get("eval_steps"))
    own = {"train": text_stream(70, 30)} if kind == "stream" else {}
    build_loop(kind if kind in RUNS else "rnn", options, **own).run()
    for event, number in (("train", "loss"), ("eval", "eval_loss")):
        values = [[line[number] for line in log_lines(run, event)] for run in (tmp_path, two / kind)]
        assert values[0] == pytest.approx(values[1], abs=2e-5) and len(values[0]) >= 1
    assert_same_weights(weights(tmp_path / LAST), weights(two / kind / LAST), tolerance=2e-4)


@pytest.mark.parametrize("name", ["epoch", "stream"])
def test_no_row_is_seen_twice_or_left_out_by_any_process(name, two):
    """70 rows in updates of 8: the last one of the epoch has 6 (of a stream: 6, 6 and 2 at the windows' ends)."""
    seen = [json.loads((two / name / f"seen{rank}of2.json").read_text()) for rank in range(2)]
    if name == "epoch":
        expected = Counter(str([row["input_ids"], row["labels"]]) for row in corpus(70))
        assert len(seen[0]) == len(seen[1]) == 35
    else:
        stream = text_stream(70, 30)
        columns = stream.tokenize(list(stream.rows))
        expected = Counter(str(list(pair)) for pair in zip(columns["input_ids"], columns["labels"], strict=True))
        # The other two of the twelve updates begin the next epoch.
        seen = [rows[:35] for rows in seen]
    assert Counter(map(str, seen[0] + seen[1])) == expected and expected.total() == 70


def test_processes_split_rows_apart_and_count_the_pieces_together(two):
    """With BPE dropout each process draws its pieces; loss and counters include the drawn pieces."""
    seen = [json.loads((two / "bpe_dropout" / f"seen{rank}of2.json").read_text()) for rank in range(2)]
    rows, tokenizer = letter_rows(70)
    spelled = [tokenizer.decode(source[:-1]).replace(" ", "") for source, _ in seen[0] + seen[1]]
    assert Counter(spelled) == Counter(row.replace(" ", "") for row in rows["source"])
    tokens = sum(len(labels) for _, labels in seen[0] + seen[1])
    summary = json.loads((two / "bpe_dropout" / "summary.json").read_text())
    assert summary["target_tokens"] == tokens > sum(len(tokenizer(row)["input_ids"]) for row in rows["target"])


def test_frozen_weights_stay_bit_for_bit_on_both_processes(two, tmp_path):
    build_loop("rnn", arguments(tmp_path, freeze=FROZEN)).run()
    first, last = build_model("rnn").state_dict(), weights(two / "frozen" / LAST)
    assert_same_weights(weights(tmp_path / LAST), last, tolerance=2e-4)
    frozen = {name for name in last if name.startswith("model.encoder.") or name == "lm_head.bias"}
    assert len(frozen) > 2 and {name for name in last if torch.equal(last[name], first[name])} == frozen


def test_two_processes_resume_bit_for_bit(two, tmp_path):
    """Stopped at step 5 of 12, in the middle of an epoch of 9 updates; with dropout, both generators must come back."""
    copy_until(two / "rnn_dropout", tmp_path / "resumed", step=5)
    again = {"output_dir": str(tmp_path / "resumed"), "per_device_train_batch_size": 4}
    launch([{"model": "rnn_dropout", "options": {**again, "resume_from_checkpoint": "latest"}}], tmp_path)
    assert_identical_states(two / "rnn_dropout", tmp_path / "resumed", step=12)


def test_one_process_resumes_a_run_of_two(two, tmp_path, capsys):
    """The same samples follow: losses and weights are those of two processes, up to rounding."""
    copy_until(two / "bart", tmp_path / "run", step=5)
    options = arguments(tmp_path / "run", eval_steps=5, resume_from_checkpoint="latest")
    assert build_loop("bart", options).run() == "max_steps"
    assert "the run had 2 processes and continues with 1" in capsys.readouterr().err
    losses = [[line["loss"] for line in log_lines(run, "train")] for run in (two / "bart", tmp_path / "run")]
    assert losses[0] == pytest.approx(losses[1], abs=2e-5) and len(losses[0]) == 12
    assert_same_weights(weights(two / "bart" / LAST), weights(tmp_path / "run" / LAST), tolerance=2e-4)


def workers(launcher: int) -> dict[str, int]:
    """Process ids of a launcher's workers by rank."""
    found = {}
    children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    for child in children:
        with contextlib.suppress(OSError):
            variables = Path(f"/proc/{child}/environ").read_bytes().decode().split("\0")
            found |= {line[5:]: int(child) for line in variables if line.startswith("RANK=")}
    return found


@pytest.mark.long
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="finds the workers in /proc")
@pytest.mark.parametrize("victim", ["0", "1"])
def test_a_worker_that_dies_ends_the_run_and_leaves_it_resumable(victim, tmp_path):
    run = tmp_path / "run"
    options = {"max_steps": 100_000, "lr_scheduler_type": "constant", "save_steps": 5, "save_total_limit": 2}
    options |= {"per_device_train_batch_size": 4}
    begun = [{"model": "rnn_dropout", "options": {"output_dir": str(run), **options}}]
    address = ("--num_machines", "1", "--main_process_port", "0")
    process = start(begun, tmp_path, *address, python=[sys.executable])  # whose children are the workers
    log, deadline = run / "train_log.jsonl", time.monotonic() + PATIENCE
    while not (log.exists() and '"event": "save"' in log.read_text()):
        assert process.poll() is None and time.monotonic() < deadline, error_output(tmp_path)
        time.sleep(0.05)
    os.kill(workers(process.pid)[victim], signal.SIGKILL)
    killed = time.monotonic()
    assert process.wait(timeout=PATIENCE) != 0
    assert time.monotonic() - killed < 60, "nobody waits for a process that is gone"
    survivor = 1 - int(victim)
    assert f"error: process {survivor} of 2: another process of this run has ended" in error_output(tmp_path)
    step = int(CheckpointStore(run).latest().name[5:13])
    assert step >= 5
    resumed = arguments(
        run, **{**options, "max_steps": step + 2, "per_device_train_batch_size": 8}, resume_from_checkpoint="latest"
    )
    loop = build_loop("rnn_dropout", resumed)
    assert loop.run() == "max_steps" and loop.state.progress.step == step + 2


@pytest.mark.long
def test_two_machines_equal_one(two, tmp_path):
    """Two launchers, as on two machines, connected by an address and a port."""
    address = ["--num_machines", "2", "--main_process_ip", "127.0.0.1", "--main_process_port", free_port()]
    options = {"output_dir": str(tmp_path / "run"), "per_device_train_batch_size": 4, "eval_steps": 5}
    runs = [{"model": "rnn", "options": options}]
    machines = [start(runs, tmp_path, *address, "--machine_rank", rank, "--same_network") for rank in ("0", "1")]
    assert [machine.wait(timeout=PATIENCE) for machine in machines] == [0, 0], error_output(tmp_path)
    assert_same_weights(weights(tmp_path / "run" / LAST), weights(two / "rnn" / LAST), tolerance=0)
    assert {path.name for path in (tmp_path / "run").glob("seen*")} == {"seen0of2.json", "seen1of2.json"}


def test_the_slurm_script_launches_what_the_readme_launches():
    """Without a scheduler here, accelerate's own parser reads the line that every machine runs."""
    text = (ROOT / "scripts" / "accelerate" / "slurm.sh").read_text().replace("\\\n", " ")
    assert subprocess.run(["bash", "-n", ROOT / "scripts" / "accelerate" / "slurm.sh"]).returncode == 0
    for name, value in {"$SLURM_NNODES": "2", "$PROCESSES": "8", "$SLURM_NODEID": "1"}.items():
        assert name in text
        text = text.replace(name, value)
    (line,) = [line for line in text.splitlines() if line.startswith("srun ")]
    command = shlex.split(line)
    assert command[-3:-1] == [command[-3], "train"], "bash -c 'text' name arguments"
    words = shlex.split(command[-3])
    parsed = launch_command_parser().parse_args(words[words.index("launch") + 1 :])
    assert parsed.training_script == "scripts/train.py" and (ROOT / parsed.config_file).is_file()
    assert (parsed.num_machines, parsed.num_processes, parsed.machine_rank) == (2, 8, 1)
    assert parsed.main_process_ip == "$MASTER" and parsed.training_script_args == ["$@"]

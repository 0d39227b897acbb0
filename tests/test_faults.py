"""Runs killed again and again (`make test-faults`): none may lose its last complete checkpoint or end differently.

A nursery process imports everything once and forks a child for each life of a run, so that a life costs what its
training costs. A child is killed at a random moment; every other one while it writes a checkpoint.
"""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hf_rnn_seq2seq.checkpointing import CheckpointStore, damage

pytestmark = pytest.mark.faults

ROOT = Path(__file__).parents[1]
KILLS = 60
STEPS = 150

NURSERY = """
import os, sys
import torch
from tests.training_runs import arguments, build_loop
torch.set_num_threads(1)
options = dict(max_steps=int(sys.argv[2]), save_steps=2, eval_steps=3, save_total_limit=2, logging_steps=5,
               resume_from_checkpoint="latest")
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        code = 1
        try:
            build_loop("rnn_dropout", arguments(sys.argv[1], **options)).run()
            code = 0
        finally:
            sys.stderr.flush()
            os._exit(code)
    print(child, flush=True)
    _, status = os.waitpid(child, 0)
    print(status, flush=True)
"""


@contextlib.contextmanager
def nursery(run: Path, errors):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, "-c", NURSERY, str(run), str(STEPS)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": errors}
    with subprocess.Popen(command, env=environment, cwd=ROOT, text=True, **pipes) as process:
        try:
            yield process
        finally:
            process.stdin.close()
            process.wait(timeout=60)


def life(process: subprocess.Popen, kill_when) -> int:
    """One child from birth to death; `kill_when(seconds)` says when it dies. Returns its wait status."""
    process.stdin.write("\n")
    process.stdin.flush()
    child = int(process.stdout.readline())
    born = time.monotonic()
    os.set_blocking(process.stdout.fileno(), False)
    try:
        while True:
            line = process.stdout.readline()
            if line:
                return int(line)
            if kill_when(time.monotonic() - born):
                os.kill(child, signal.SIGKILL)
                break
            time.sleep(0.0005)
    finally:
        os.set_blocking(process.stdout.fileno(), True)
    return int(process.stdout.readline())


def writing(folder: Path) -> bool:
    """Whether a checkpoint, or the best model, is being written at this moment."""
    return any((folder / "checkpoints").glob(".writing-*")) or (folder / ".writing-model").exists()


@pytest.mark.parametrize("seed", [0])
def test_a_run_killed_at_random_ends_like_one_that_was_left_alone(seed, tmp_path):
    draw = random.Random(seed)
    run, whole = tmp_path / "run", tmp_path / "whole"
    with (tmp_path / "errors.txt").open("w") as errors, contextlib.ExitStack() as lives:
        with nursery(whole, errors) as calm:
            assert life(calm, lambda seconds: False) == 0
        process = lives.enter_context(nursery(run, errors))
        kills = inside = regressions = 0
        newest = 0
        while kills < KILLS:
            moment = draw.uniform(0.05, 1.2)
            if kills % 2:
                # After this moment, as soon as a checkpoint is being written, and a little into it.
                delay = draw.uniform(0, 0.01)
                status = life(process, lambda s, m=moment, d=delay: s > m and writing(run) and not time.sleep(d))
            else:
                status = life(process, lambda s, m=moment: s > m)
            assert status in (0, signal.SIGKILL), (tmp_path / "errors.txt").read_text()[-3000:]
            if status == 0:
                # Finished before it could be killed: the same run once more, with the rest of the kills.
                assert_same_end(run, whole)
                (tmp_path / f"done{kills}").mkdir()
                os.rename(run, tmp_path / f"done{kills}" / "run")
                newest = 0
                continue
            kills += 1
            inside += writing(run)
            good = [path for path in CheckpointStore(run).all() if damage(path) is None]
            step = max((int(path.name[5:13]) for path in good), default=0)
            regressions += step < newest
            assert len(good) == len(CheckpointStore(run).all()), "a folder with a checkpoint's name is complete"
            newest = step
        assert life(process, lambda seconds: False) == 0
    assert regressions == 0, "a good checkpoint was lost"
    assert inside >= KILLS // 6, f"only {inside} kills hit a checkpoint being written"
    assert_same_end(run, whole)
    print(f"{kills} kills, {inside} of them inside a write, {regressions} checkpoints lost")


def assert_same_end(run: Path, whole: Path) -> None:
    for name in ("model.safetensors", f"checkpoints/step-{STEPS:08d}/optimizer.safetensors"):
        assert (run / name).read_bytes() == (whole / name).read_bytes(), name
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in (run, whole)]
    for fact in ("steps", "best_step", "best_metric", "eval_loss", "target_tokens"):
        assert summaries[0][fact] == summaries[1][fact]

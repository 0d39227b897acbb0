"""Hard faults (`make test-faults`): kills, a full disk, a large corpus.

Runs are killed again and again: none may lose its last complete checkpoint or end differently. A nursery imports
everything once and forks a child for each life of a run, so that a life costs what its training costs. A child is
killed at a random moment; every other one while it writes a checkpoint.
"""

import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hf_rnn_seq2seq.training.checkpoints import CheckpointStore, damage
from tests.helpers.script_runs import free_port

pytestmark = pytest.mark.faults

ROOT = Path(__file__).parents[2]
KILLS = 60
PAIR_KILLS = 24
STEPS = 150

NURSERY = """
import os, sys
import torch
from tests.helpers.training_runs import arguments, build_loop
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
def nursery(run: Path, errors, code: str = NURSERY):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, "-c", code, str(run), str(STEPS)]
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
    assert (run / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    # A run that is killed between its last checkpoint and its summary saves the same step again, under another name.
    ends = [CheckpointStore(folder).all()[-1] for folder in (run, whole)]
    assert [path.name[:13] for path in ends] == [f"step-{STEPS:08d}"] * 2
    assert len({(path / "optimizer.safetensors").read_bytes() for path in ends}) == 1
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in (run, whole)]
    for fact in ("steps", "best_step", "best_metric", "eval_loss", "target_tokens"):
        assert summaries[0][fact] == summaries[1][fact]


PAIR_NURSERY = """
import os, sys
import torch
from hf_rnn_seq2seq.training.nonfinite import TrainingError
from tests.helpers.training_runs import arguments, build_loop
torch.set_num_threads(1)
options = dict(max_steps=int(sys.argv[2]), save_steps=2, eval_steps=3, save_total_limit=2, logging_steps=5,
               per_device_train_batch_size=4, resume_from_checkpoint="latest")
for line in sys.stdin:
    children = []
    for rank in "01":
        child = os.fork()
        if child == 0:
            # What a launcher sets for its workers.
            places = dict(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE="2", LOCAL_WORLD_SIZE="2", MASTER_ADDR="127.0.0.1")
            os.environ.update(places, MASTER_PORT=line.strip(), ACCELERATE_USE_CPU="true")
            code = 1
            try:
                build_loop("rnn_dropout", arguments(sys.argv[1], **options)).run()
                code = 0
            except TrainingError as error:
                print(error, file=sys.stderr)
                code = 3
            finally:
                sys.stderr.flush()
                os._exit(code)
        children.append(child)
    print(*children, flush=True)
    print(*(os.waitpid(child, 0)[1] for child in children), flush=True)
"""


def life_of_two(process: subprocess.Popen, run: Path, victims, kill_when) -> list[int]:
    """Two workers from birth to death; `victims` of them are killed. Returns their wait statuses.

    `kill_when(seconds)` counts from the first line in the log: two that have not met yet have nothing to lose.
    """
    process.stdin.write(free_port() + "\n")
    process.stdin.flush()
    children = list(map(int, process.stdout.readline().split()))
    log, born = run / "train_log.jsonl", time.time()
    begun: float | None = None
    os.set_blocking(process.stdout.fileno(), False)
    try:
        while not (line := process.stdout.readline()):
            if begun is None and log.exists() and log.stat().st_mtime > born:
                begun = time.monotonic()
            if begun is not None and kill_when(time.monotonic() - begun):
                for victim in victims:
                    os.kill(children[victim], signal.SIGKILL)
                break
            time.sleep(0.0005)
    finally:
        os.set_blocking(process.stdout.fileno(), True)
    killed = time.monotonic()
    statuses = list(map(int, (line or process.stdout.readline()).split()))
    assert time.monotonic() - killed < 60, "a worker waits for one that is gone"
    return statuses


def test_two_workers_of_which_one_or_both_are_killed(tmp_path):
    """The other worker ends with the reason; the resumed run ends like an uninterrupted one, bit for bit."""
    draw, kills, inside, survivors = random.Random(1), 0, 0, 0
    run, whole = tmp_path / "run", tmp_path / "whole"
    with (tmp_path / "errors.txt").open("w") as errors:
        with nursery(whole, errors, PAIR_NURSERY) as calm:
            assert life_of_two(calm, whole, (), lambda seconds: False) == [0, 0]
        with nursery(run, errors, PAIR_NURSERY) as process:
            while kills < PAIR_KILLS:
                victims = draw.choice([(0,), (1,), (0, 1)])
                moment, aimed = draw.uniform(0, 1.2), kills % 2
                statuses = life_of_two(
                    process, run, victims, lambda s, m=moment, a=aimed: s > m and (not a or writing(run))
                )
                if statuses == [0, 0]:
                    assert_same_end(run, whole)
                    (tmp_path / f"done{kills}").mkdir()
                    os.rename(run, tmp_path / f"done{kills}" / "run")
                    continue
                kills += 1
                inside += writing(run)
                for rank in {0, 1} - set(victims):
                    # 3: it said that the other has gone; 0: it had finished just before.
                    assert os.waitstatus_to_exitcode(statuses[rank]) in (0, 3)
                    survivors += statuses[rank] != 0
                assert all(damage(path) is None for path in CheckpointStore(run).all())
            assert life_of_two(process, run, (), lambda seconds: False) == [0, 0]
    assert survivors >= PAIR_KILLS // 4
    assert_same_end(run, whole)
    print(f"{kills} kills of one or both of two workers, {inside} inside a write, {survivors} survivors said why")


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 700 KiB, to be had where file systems may be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=700k", "tmpfs", str(folder)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_plan_on_a_full_disk_is_an_error(small_disk):
    code = "import numpy as np; from hf_rnn_seq2seq.data.corpus import plan_batches\n"
    code += "plan_batches(*np.ones((2, 400_000)), batch_size=8)"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_DATASETS_CACHE": str(small_disk)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 1 and "No space left on device" in done.stderr
    assert not list(small_disk.iterdir())


def test_a_disk_that_fills_up_during_a_save(small_disk, tmp_path):
    """The run ends with the reason; with room again it goes on from its last whole checkpoint, to the same end."""
    errors = tmp_path / "errors.txt"

    def train(run: Path, steps: int) -> int:
        options = {"max_steps": steps, "lr_scheduler_type": "constant", "save_steps": 2, "output_dir": str(run)}
        options["resume_from_checkpoint"] = "latest"
        file = tmp_path / "runs.json"
        file.write_text(json.dumps([{"model": "rnn_dropout", "options": options}]))
        command = [sys.executable, str(ROOT / "tests" / "helpers" / "training_runs.py"), str(file)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        with errors.open("a") as output:
            return subprocess.run(command, env=environment, stderr=output, timeout=300).returncode

    assert train(small_disk / "run", 150) != 0
    assert re.search(r"(checkpoint of step \d+|the model) cannot be written", errors.read_text()[-3000:])
    store = CheckpointStore(small_disk / "run")
    assert store.all() and all(damage(path) is None for path in store.all()), "what was whole still is"
    assert not list(store.folder.glob(".writing-*"))
    step = int(store.all()[-1].name[5:13])
    subprocess.run(["mount", "-o", "remount,size=100m", str(small_disk)], check=True)
    assert train(small_disk / "run", step + 4) == 0
    assert train(tmp_path / "whole", step + 4) == 0
    last = f"checkpoints/step-{step + 4:08d}"
    for name in ("model.safetensors", "optimizer.safetensors"):
        assert (small_disk / "run" / last / name).read_bytes() == (tmp_path / "whole" / last / name).read_bytes()
    print(f"the disk was full behind step {step}")


MEMORY = """
import itertools, sys
from hf_rnn_seq2seq.data.arguments import DataArguments
from hf_rnn_seq2seq.data.batching import Collator
from hf_rnn_seq2seq.data.corpus import load_corpus
from hf_rnn_seq2seq.data.token_columns import tokenize_corpus
from hf_rnn_seq2seq.data.tokenizer import build_tokenizer
from hf_rnn_seq2seq.data.loader import BatchLoader, UpdatePlan, column

def resident():
    # Without the pages of mapped files, which the system takes back when it needs them.
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("RssAnon")) / 1024

data = DataArguments(dataset_name="cldr", dataset_config_name="en-fr", max_train_samples=int(sys.argv[1]))
train = load_corpus(data, splits=("train",)).splits["train"]
first = train.select(range(2000))
tokenizer = build_tokenizer(first["source"], first["target"], vocab_size=1000)
before = resident()
tokens, _ = tokenize_corpus(train, tokenizer, max_source_length=64, max_target_length=64, num_proc=2)
lengths = (column(tokens, "source_length"), column(tokens, "target_length"))
plan = UpdatePlan(*lengths, batch_size=64, max_tokens=None, seed=0)
loader = BatchLoader(tokens, Collator())
for update in itertools.islice(plan.updates(), 300):
    loader.load(update)
print(before, resident())
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads resident memory in /proc")
def test_a_million_pairs_take_no_more_memory_than_ten_thousand(tmp_path):
    grown = {}
    for rows in (10_000, 1_000_000):
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        environment["HF_DATASETS_CACHE"] = str(tmp_path / "cache")
        done = subprocess.run(
            [sys.executable, "-c", MEMORY, str(rows)], env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr[-2000:]
        before, after = map(float, done.stdout.split())
        grown[rows] = after - before
        print(f"{rows:,} pairs: {before:.0f} MiB resident before, {after:.0f} MiB after tokenising and 300 updates")
    # The text and the ids take 150 MiB on the disk, as lists of numbers more than a gigabyte. Lengths and order lie in
    # mapped files; what grows is what Arrow notes of each batch it mapped, 3 bytes a pair, and free pages of the heap.
    assert grown[1_000_000] - grown[10_000] < 15

"""Translators of other toolkits beside this package's, in turns.

Each system lives in a process with the Python of its own environment, and works only while it is asked. All read the
tokens of one run of this package. The recurrent ones have its sizes and weights too, so they compute the same function.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(place) for place in (ROOT, ROOT / "scripts") if str(place) not in sys.path]

from benchmarks.handover import prepare  # noqa: E402  the checkout's

from hf_rnn_seq2seq import command_line  # noqa: E402  the checkout's

LONGEST = 100  # tokens of an output
BATCH = 64
SETUP = "HF_RNN_SEQ2SEQ_PEER"  # in the environment of a system's process: JSON of what it is made of

Columns = tuple[tuple[str, int, int], ...]  # name, sentences of a batch, beams
DECODING: Columns = (
    ("greedy", BATCH, 1),
    ("5 beams", BATCH, 5),
    ("greedy, one by one", 1, 1),
    ("5 beams, one by one", 1, 5),
)


def install(environment: Path, packages: Sequence[str], needs: Sequence[str]) -> str:
    """The Python of an environment with `packages` and `needs` over the packages of this one, made by the first call.

    What the packages themselves ask for is not installed; `needs` lists it.
    """
    python = environment / "bin" / "python"
    if not (environment / "ready").is_file():
        subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
        (site,) = (environment / "lib").glob("python*/site-packages")
        (site / "of_this_environment.pth").write_text("\n".join(path for path in sys.path if path) + "\n")
        pip = [str(python), "-m", "pip", "install", "--quiet"]
        subprocess.run([*pip, "--no-deps", *packages], check=True)
        if needs:
            subprocess.run([*pip, *needs], check=True)
        (environment / "ready").touch()
    return str(python)


@dataclass(frozen=True)
class Peer:
    """A toolkit: the file that serves it, and what its environment needs."""

    name: str
    file: str
    packages: tuple[str, ...]  # without what they need, which is below
    needs: tuple[str, ...] = ()
    trains: bool = True
    weights: bool = True  # whether it computes with those of the run, which must then be of a form that it knows
    options: Mapping[str, Any] = field(default_factory=dict)

    def python(self, environments: Path) -> str:
        """The Python of an environment with the toolkit over the packages of this one, made by the first call."""
        if not self.packages:
            return sys.executable
        return install(environments / Path(self.file).stem, self.packages, self.needs)


class Worker:
    """A system in a process of its own."""

    def __init__(self, peer: Peer, python: str, setup: Mapping[str, Any], log: Path) -> None:
        threads = str(setup["threads"])
        environment = os.environ | {SETUP: json.dumps(setup | dict(peer.options)), "PYTHONWARNINGS": "ignore"}
        environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "scripts")])
        environment |= {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "CUDA_VISIBLE_DEVICES": ""}
        environment.setdefault("GOMP_SPINCOUNT", "2000")  # as train.py; who waits for its turn takes no core
        for name, value in (("THP_MEM_ALLOC_ENABLE", "1"), ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "16384")):
            environment.setdefault(name, value)  # as train.py, here for every system
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": environment}
        self.peer, self.log = peer, log
        with log.open("w", encoding="utf-8") as errors:
            self.process = subprocess.Popen([python, peer.file, "serve"], stderr=errors, cwd=log.parent, **pipes)

    def ask(self, **request: Any) -> dict[str, Any]:
        """`value`, and the seconds (`wall_s`, `cpu_s`) and peak memory (`peak_mb`) it took."""
        print(json.dumps(request), file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        if not answer:
            print(lines := self.log.read_text(encoding="utf-8", errors="replace").strip(), file=sys.stderr)
            raise ValueError(f"{self.peer.name}: ended while asked for {request}: {lines.splitlines()[-1:]}")
        return json.loads(answer)

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


def serve(make: Callable[..., Any]) -> None:
    """Answers the requests on the standard input of a system's process: `do` is the method of what `make` makes."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    setup = json.loads(os.environ[SETUP])
    import torch

    torch.set_num_threads(setup["threads"])
    system = make(**setup)
    for line in sys.stdin:
        request = json.loads(line)
        wall, cpu = time.perf_counter(), time.process_time()
        value = getattr(system, request.pop("do"))(**request)
        answer = {"value": value, "wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}
        answer["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps(answer), file=answers, flush=True)


class ThisPackage:
    """The run itself: a new model of its recipe is trained, its best weights decode."""

    def __init__(self, run: str, folder: str, threads: int, precision: str, **_: Any) -> None:
        from hf_rnn_seq2seq.run_directory import load_checkpoint

        self.run, self.folder, self.threads, self.precision, self.loop = run, Path(folder), threads, precision, None
        self.model, self.tokenizer = load_checkpoint(run)

    def train(self, updates: int) -> int:
        """Trains, and returns the number of target tokens."""
        if self.loop is None:
            self.loop = self._make_loop()
            self.updates = self.loop.plan.updates()
            self.loop.state.step_module.train()
        progress = self.loop.state.progress
        before = progress.target_tokens
        for _ in range(updates):
            update = next(self.updates)
            self.loop.run_update(update, self.loop.loader.load(update))
            progress.step += 1
        return progress.target_tokens - before

    def _make_loop(self) -> Any:
        from hf_rnn_seq2seq.training.arguments import RunOptions
        from hf_rnn_seq2seq.training.launch import build_accelerator
        from hf_rnn_seq2seq.training.run import make_loop

        given = {"output_dir": self.folder / self.precision, "mixed_precision": self.precision, "dropout": 0.2}
        given |= {"cpu_threads": self.threads, "label_smoothing": 0.0, "per_device_train_batch_size": BATCH}
        given |= {"max_train_seconds": "none", "learning_rate": 1e-3, "lr_scheduler_type": "constant"}
        given |= {"warmup_steps": 0, "predict_with_generate": "false", "metric_for_best_model": "loss"}
        options = RunOptions.parse([f"{self.run}/recipe.yaml", *(f"--{name}={value}" for name, value in given.items())])
        return make_loop(options, build_accelerator(options.training))

    def decode(self, batch: int, beams: int, sentences: int) -> list[str]:
        """The best output of the first sentences of the test set, as tokens between spaces."""
        from hf_rnn_seq2seq.generation.translate import translate_ids

        lines = (self.folder / "test.src").read_text(encoding="utf-8").splitlines()[:sentences]
        sources = [self.tokenizer.convert_tokens_to_ids(line.split(" ")) for line in lines]
        kind = {"no": {}, "bf16": {"weight_type": "bfloat16"}, "int8": {"weight_type": "int8"}}[self.precision]
        search = {"num_beams": beams, "max_new_tokens": LONGEST, "batch_size": batch, "workers": self.threads}
        if beams > 1:
            search["stop_at_top"] = True  # the rule of the toolkits
        found = translate_ids(self.model, sources, progress=False, **search, **kind)
        special = set(self.tokenizer.all_special_ids)
        return [" ".join(self.tokenizer.convert_ids_to_tokens([i for i in row if i not in special])) for row in found]


PACKAGE = tuple(
    Peer(name, __file__, (), trains=precision != "int8", weights=False, options={"precision": precision})
    for name, precision in (("this package", "no"), ("this package, bf16", "bf16"), ("this package, int8", "int8"))
)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "run", metavar="DIR", help="a run of this package, for OpenNMT-py and Eole as the README has it"
    )
    parser.add_argument("--environments", default="~/.cache/hf_rnn_seq2seq/peers", metavar="DIR")
    parser.add_argument("--rounds", type=command_line.at_least(1), default=3)
    parser.add_argument("--updates", type=command_line.at_least(1), default=20, help="of a round (default: 20)")
    parser.add_argument("--sentences", type=command_line.at_least(1), default=1000, help="that are decoded")
    parser.add_argument("--one_by_one", type=command_line.at_least(1), default=100, metavar="N", help="sentences")
    parser.add_argument("--threads", type=command_line.at_least(1), default=os.cpu_count(), help="(default: all cores)")
    parser.add_argument("--json", metavar="FILE", help="write the results")


def run_turns(arguments: argparse.Namespace, peers: Sequence[Peer], folder: Path, **setup: Any) -> list[dict[str, Any]]:
    """Medians over the rounds, in which the systems take turns; the first round warms and is left out."""
    references = prepare(arguments.run, folder, weights=any(peer.weights for peer in peers))
    environments = Path(arguments.environments).expanduser()
    pythons = [peer.python(environments) for peer in peers]
    setup |= {"run": os.path.abspath(arguments.run), "folder": str(folder), "threads": arguments.threads}
    workers: list[Worker] = []
    try:
        for peer, python in zip(peers, pythons, strict=True):
            workers.append(Worker(peer, python, setup, folder / f"{Path(peer.file).stem}-{len(workers)}.log"))
        measured: dict[tuple[str, str], list[dict[str, Any]]] = {}
        outputs: dict[tuple[str, str], list[str]] = {}
        for number in range(arguments.rounds + 1):
            jobs: list[tuple[str, dict[str, Any]]] = [("training", {"do": "train", "updates": arguments.updates})]
            for name, batch, beams in DECODING:
                rows = arguments.sentences if batch > 1 else arguments.one_by_one
                rows = rows if number else min(rows, 10 * batch)
                jobs.append((name, {"do": "decode", "batch": batch, "beams": beams, "sentences": rows}))
            for name, request in jobs:
                for worker in workers:
                    if request["do"] == "train" and not worker.peer.trains:
                        continue
                    answer = worker.ask(**request)
                    value = answer.pop("value")
                    count = value if isinstance(value, int) else len(value)
                    if number:
                        measured.setdefault((worker.peer.name, name), []).append(answer | {"count": count})
                        outputs[worker.peer.name, name] = [] if isinstance(value, int) else value
                    speed = count / answer["wall_s"]
                    print(
                        f"round {number}  {worker.peer.name:<20}{name:<22}{speed:9.1f}/s", file=sys.stderr, flush=True
                    )
    finally:
        for worker in workers:
            worker.close()
    return report(peers, measured, outputs, references, arguments.run)


def report(
    peers: Sequence[Peer],
    measured: Mapping[tuple[str, str], Sequence[Mapping[str, float]]],
    outputs: Mapping[tuple[str, str], Sequence[str]],
    references: Sequence[str],
    run: str,
) -> list[dict[str, Any]]:
    """A row for each system and kind of work: speed by the clock and by CPU time, and what was decoded."""
    from hf_rnn_seq2seq.evaluation.scores import score
    from hf_rnn_seq2seq.run_directory import read_tokenizer

    tokenizer = read_tokenizer(run)
    rows = []
    for kind in ("training", *(name for name, _, _ in DECODING)):
        for peer in peers:
            rounds = measured.get((peer.name, kind))
            if not rounds:
                continue
            row: dict[str, Any] = {"system": peer.name, "work": kind}
            for name, seconds in (("per_s", "wall_s"), ("per_cpu_s", "cpu_s")):
                row[name] = statistics.median(one["count"] / one[seconds] for one in rounds)
            row["peak_mb"] = rounds[-1]["peak_mb"]
            if found := outputs[peer.name, kind]:
                ids = [tokenizer.convert_tokens_to_ids(line.split(" ")) if line else [] for line in found]
                texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
                row["bleu"] = score(texts, references[: len(texts)])["bleu"]
                same = outputs.get((PACKAGE[0].name, kind), ())
                row["same"] = sum(one == other for one, other in zip(found, same, strict=False))
            rows.append(row)
    return rows


def print_rows(rows: Sequence[Mapping[str, Any]]) -> None:
    """The table; the ratios are to the first system of each kind of work."""
    from hf_rnn_seq2seq.evaluation.results import format_table

    table = [["work", "system", "per second", "ratio", "per CPU s", "ratio", "BLEU", "same words", "peak MiB"]]
    first: dict[str, Mapping[str, Any]] = {}
    for row in rows:
        base = first.setdefault(row["work"], row)
        cells = [f"{row['per_s']:,.0f}", f"{row['per_s'] / base['per_s']:.2f}"]
        cells += [f"{row['per_cpu_s']:,.0f}", f"{row['per_cpu_s'] / base['per_cpu_s']:.2f}"]
        cells += [f"{row['bleu']:.2f}", str(row["same"])] if "bleu" in row else ["", ""]
        table.append([row["work"], row["system"], *cells, f"{row['peak_mb']:,.0f}"])
    print("target tokens (training) or sentences a second, by the clock and by CPU time\n" + format_table(table))


def measure(arguments: argparse.Namespace, peers: Sequence[Peer], **setup: Any) -> int:
    """Runs all in turns, and prints and writes the rows."""
    import tempfile

    command_line.load_libraries()
    with tempfile.TemporaryDirectory() as folder:
        rows = run_turns(arguments, [*peers, *PACKAGE], Path(folder), **setup)
    print_rows(rows)
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":  # of a process that `Worker` started
    serve(ThisPackage)

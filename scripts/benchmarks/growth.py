"""How cost and memory of a training step and of a search grow along each axis.

Each point is measured in processes of its own.
"""

import os
import statistics
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable
from functools import partial
from multiprocessing import get_context
from typing import Any

import torch.distributed as dist
from benchmarks.measure import in_child, random_batch, training_flops
from benchmarks.training import GROWTH, Build, build_model, model_loss, training_step
from torch import nn


def run(arguments: Namespace) -> list[dict[str, Any]]:
    """Measures each point and prints a table."""
    report = measure_growth(partial(build_model, arguments), arguments)
    print_growth(report)
    return report


def measure_growth(build: Build, arguments: Namespace) -> list[dict[str, Any]]:
    """Measures each value of each axis; all other sizes are those of the model `--sizes`.

    The vocabulary is measured twice: with all logits at once, and in chunks of at most 64 MiB.

    Args:
        build: builds a model; keyword arguments replace fields of its config.
        arguments: `batch_size`, `source_length`, `target_length`, `num_beams`, `rounds`, `threads`; `only`,
            axes or None.
    """
    report = []
    for axis, values in GROWTH.items():
        if arguments.only and axis not in arguments.only:
            continue
        for value in values:
            budgets = {"whole": {"logits_memory_mb": 2**20}, "chunks": {"logits_memory_mb": 64}}
            for name, fields in (budgets if axis == "vocab_size" else {"": {}}).items():
                point = _point(build, arguments, axis, value, fields)
                report.append({"variant": f"{axis}={value} {name}".strip(), **point})
    return report


def _point(build: Build, arguments: Namespace, axis: str, value: int, fields: dict[str, Any]) -> dict[str, float]:
    rows, source, target = arguments.batch_size, arguments.source_length, arguments.target_length
    processes = 1
    if axis == "length":
        source = target = value
    elif axis == "batch_size":
        rows = value
    elif axis == "processes":
        processes = value
    else:
        fields = {**fields, axis: value}
    shape = (max(1, rows // processes), source, target)
    if processes == 1:
        row = in_child(lambda: _measure(build(**fields), shape, arguments.rounds), arguments.threads)
        for name, beams in (("greedy", 1), ("beams", arguments.num_beams)):
            search = partial(_search, build, fields, shape, beams, arguments.rounds)
            row |= {f"{name}_{key}": value for key, value in in_child(search, arguments.threads).items()}
        return row
    return _in_parallel(lambda: build(**fields), shape, arguments.rounds, processes)


def _measure(model: nn.Module, shape: tuple[int, int, int], rounds: int, wrapper: nn.Module | None = None) -> dict:
    """Medians of one training step of `model`, called through `wrapper` if there is one."""
    vocabularies = model.config.source_vocab_size, model.config.vocab_size
    source, labels = random_batch(*shape, vocabularies)
    step = training_step(wrapper or model, model_loss, source, labels)
    step()
    wall, cpu = [], []
    for _ in range(rounds):
        started = time.perf_counter(), time.process_time()
        step()
        wall.append(time.perf_counter() - started[0])
        cpu.append(time.process_time() - started[1])
    words, cpu_s = int((labels != -100).sum()), statistics.median(cpu)
    return {
        "tokens_per_s": words / statistics.median(wall),
        "wall_s": statistics.median(wall),
        "cpu_s": cpu_s,
        "cpu_us_per_token": 1e6 * cpu_s / words,
        "gflops": training_flops(model, source, labels) / cpu_s / 1e9,
        "parameters": float(sum(parameter.numel() for parameter in model.parameters())),
    }


def _search(
    build: Build, fields: dict[str, Any], shape: tuple[int, int, int], beams: int, rounds: int
) -> dict[str, float]:
    """CPU time of `model.search` for each token, the median of the rounds. No row ends before the longest target."""
    model = build(**fields).eval()
    rows, length, tokens = shape
    source, _ = random_batch(rows, length, tokens, (model.config.source_vocab_size, model.config.vocab_size))
    inputs = {"input_ids": source, "attention_mask": (source != model.config.pad_token_id).long()}
    options = {"num_beams": beams, "max_new_tokens": tokens, "eos_token_id": None}
    cpu = []
    for _ in range(rounds + 1):  # the first warms up
        started = time.process_time()
        model.search(**inputs, **options)
        cpu.append(time.process_time() - started)
    return {"cpu_us_per_token": 1e6 * statistics.median(cpu[1:]) / (rows * tokens)}


def _in_parallel(
    build: Callable[[], nn.Module], shape: tuple[int, int, int], rounds: int, processes: int
) -> dict[str, float]:
    """Data-parallel processes, each with its part of the batch; tokens are summed, memory is that of one process."""
    context = get_context("fork")
    with tempfile.TemporaryDirectory() as folder:
        results = context.SimpleQueue()

        def work(rank: int) -> None:
            store = f"file://{os.path.join(folder, 'store')}"
            dist.init_process_group("gloo", init_method=store, rank=rank, world_size=processes)
            model = build()
            results.put(_in_this_process(model, shape, rounds))
            dist.destroy_process_group()

        workers = [context.Process(target=work, args=(rank,)) for rank in range(processes)]
        for worker in workers:
            worker.start()
        rows = [results.get() for _ in workers]
        for worker in workers:
            worker.join()
    return {**rows[0], "tokens_per_s": sum(row["tokens_per_s"] for row in rows)}


def _in_this_process(model: nn.Module, shape: tuple[int, int, int], rounds: int) -> dict[str, float]:
    """Measures one of several processes, with its peak memory."""
    import resource

    row = _measure(model, shape, rounds, nn.parallel.DistributedDataParallel(model))
    return {**row, "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def print_growth(report: list[dict[str, Any]]) -> None:
    """Prints the table of `measure_growth`."""
    from hf_rnn_seq2seq.evaluation.results import format_table

    rows = [["variant", "tokens/s", "CPU ms", "us/token", "GFLOP/s", "peak MB", "M params"]]
    rows[0] += ["greedy: us/token", "peak MB", "beams: us/token", "peak MB"]
    for row in report:
        cells = [row["variant"], f"{row['tokens_per_s']:.0f}", f"{1e3 * row['cpu_s']:.1f}"]
        cells += [f"{row['cpu_us_per_token']:.1f}", f"{row['gflops']:.1f}", f"{row['peak_mb']:.0f}"]
        cells += [f"{row['parameters'] / 1e6:.1f}"]
        searched = ("greedy_cpu_us_per_token", "greedy_peak_mb", "beams_cpu_us_per_token", "beams_peak_mb")
        rows.append([*cells, *(f"{row[name]:.0f}" if name in row else "" for name in searched)])
    print(format_table(rows))

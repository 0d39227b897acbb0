"""How a training step's cost and memory grow along each axis: one point at a time, each in processes of its own."""

import os
import statistics
import tempfile
import time
from argparse import Namespace
from multiprocessing import get_context
from typing import Any

import torch.distributed as dist
from benchmarks.measure import in_child, random_batch, training_flops
from benchmarks.training import GROWTH, Build, model_loss, training_step
from torch import nn


def measure_growth(build: Build, arguments: Namespace) -> list[dict[str, Any]]:
    """One row per axis and value; every other size is that of the named model.

    The vocabulary is measured twice: with its logits whole, and in chunks of at most 64 MiB.

    Args:
        build: makes a model, with fields of its config replaced by keyword arguments.
        arguments: `batch_size`, `source_length`, `target_length`, `rounds`, `threads`; `only`, axes or None.
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
        return in_child(lambda: _measure(build(**fields), shape, arguments.rounds), arguments.threads)
    return _together(lambda: build(**fields), shape, arguments.rounds, processes)


def _measure(model: nn.Module, shape: tuple[int, int, int], rounds: int, trained: nn.Module | None = None) -> dict:
    """Medians of one training step; `trained` is what is called where it is not the model itself."""
    vocabularies = model.config.source_vocab_size, model.config.vocab_size
    source, labels = random_batch(*shape, vocabularies)
    step = training_step(trained or model, model_loss, source, labels)
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


def _together(make: Any, shape: tuple[int, int, int], rounds: int, processes: int) -> dict[str, float]:
    """Processes that share an update, each with its part of the batch; tokens are added, memory is of one process."""
    context = get_context("fork")
    with tempfile.TemporaryDirectory() as folder:
        results = context.SimpleQueue()

        def work(rank: int) -> None:
            store = f"file://{os.path.join(folder, 'store')}"
            dist.init_process_group("gloo", init_method=store, rank=rank, world_size=processes)
            model = make()
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
    """What one of several processes measures, with its own peak memory."""
    import resource

    done = _measure(model, shape, rounds, nn.parallel.DistributedDataParallel(model))
    return {**done, "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def print_growth(report: list[dict[str, Any]]) -> None:
    """The table of `measure_growth`."""
    columns = ("tokens/s", "CPU ms", "us/token", "GFLOP/s", "peak MB", "M params")
    print(f"{'variant':26}" + "".join(f"{column:>11}" for column in columns))
    for row in report:
        print(
            f"{row['variant']:26}{row['tokens_per_s']:11.0f}{1e3 * row['cpu_s']:11.1f}{row['cpu_us_per_token']:11.1f}"
            f"{row['gflops']:11.1f}{row['peak_mb']:11.0f}{row['parameters'] / 1e6:11.1f}"
        )


__all__ = ["measure_growth", "print_growth"]

"""What a training step must compute, and how fast this machine multiplies: the two sides of "share of the peak"."""

import gc
import os
import statistics
import time
from collections.abc import Callable, Sequence
from multiprocessing import get_context
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

_GATES = {"lstm": 4, "gru": 3}


def training_flops(model: Any, source: Tensor, labels: Tensor) -> float:
    """Floating-point operations of the matrix products of one training step, real words only.

    A product of (m, k) and (k, n) counts 2 m k n; the backward pass makes two products for each of the forward pass.
    Embeddings, gates, softmax and optimizer are not counted.

    Args:
        model: an encoder-decoder of this package, with attention or without.
        source: ids (batch, source), padded with the config's pad token.
        labels: ids (batch, target), padded with -100.
    """
    config, decoder = model.config, model.get_decoder()
    reads, writes = (source != config.pad_token_id).sum(1), (labels != -100).sum(1)
    words, targets, pairs = int(reads.sum()), int(writes.sum()), int((reads * writes).sum())
    gates, hidden = _GATES.get(config.cell_type, 1), config.hidden_size
    total, below = 0.0, config.embedding_size
    for layer in range(1, config.encoder_layers + 1):
        directions, units = config.encoder_directions(layer), config.encoder_hidden_size
        total += words * directions * gates * units * (below + units)
        below = units * directions
    for layer in decoder.layers:
        total += targets * gates * hidden * (layer.kernel.input_size + hidden)
    if decoder.attention is not None:
        asked = {name: parameter for name, parameter in decoder.attention.named_parameters() if parameter.dim() == 2}
        at_source = sum(weight.numel() for name, weight in asked.items() if name.startswith(("key.", "value.")))
        at_target = sum(weight.numel() for name, weight in asked.items() if name.startswith(("query.", "output.")))
        score = hidden if "query.weight" not in asked else config.attention_size
        total += words * at_source + targets * at_target + pairs * (score + config.context_width)
    if decoder.readout.project is not None:
        total += targets * decoder.readout.project.weight.numel()
    total += targets * model.lm_head.weight.numel()
    return 6.0 * total


def clock(device: str) -> str:
    """What ratios compare: the CPU time, which other programs do not change, or the wall time where a device works."""
    return "cpu_s" if device == "cpu" else "wall_s"


def wait(device: str) -> None:
    """Returns when a device has computed everything it was given."""
    if device == "cuda":
        torch.cuda.synchronize()


def product_rate(dtype: torch.dtype, size: int | None = None, repeats: int = 3, device: str = "cpu") -> float:
    """Operations per second of one large matrix product: the best of `repeats` by each library in torch.

    Seconds are the CPU's own, or on a device those of the wall.
    """
    size = size or (2048 if device == "cpu" else 8192)
    seconds = time.process_time if device == "cpu" else time.perf_counter
    pairs = [torch.randn(2, size, size, device=device).to(dtype)]
    if device == "cpu" and dtype == torch.float32 and torch.backends.mkldnn.is_available():
        pairs.append([side.to_mkldnn() for side in pairs[0]])
    best = float("inf")
    for _ in range(repeats + 1):
        for left, right in pairs:
            wait(device)
            started = seconds()
            F.linear(left, right)
            wait(device)
            best = min(best, seconds() - started)
    return 2 * size**3 / best


def device_peak_mb(work: Callable[[], Any]) -> float:
    """The most memory of a CUDA device that tensors held during `work`, in MiB."""
    gc.collect()  # of the work before
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    work()
    wait("cuda")
    return torch.cuda.max_memory_allocated() / 2**20


def in_child(work: Callable[[], dict[str, float]], threads: int) -> dict[str, float]:
    """What `work` returns in a forked process of its own, with `peak_mb`, the most memory that process held, in MiB.

    Forked, so that the memory of a variant is not hidden by what the one before it left behind; where processes cannot
    be forked, the work is done here and `peak_mb` is 0. The threads of a pool do not survive a fork: call this before
    anything runs on several, and give their number here.
    """
    if not hasattr(os, "fork"):
        torch.set_num_threads(threads)
        return {**work(), "peak_mb": 0.0}
    context = get_context("fork")
    receiving, sending = context.Pipe(duplex=False)

    def child() -> None:
        import resource

        torch.set_num_threads(threads)
        done = work()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        sending.send({**done, "peak_mb": peak})

    process = context.Process(target=child)
    process.start()
    sending.close()
    try:
        return receiving.recv()
    except EOFError:
        raise RuntimeError("a measuring process ended without a result; is there enough memory?") from None
    finally:
        process.join()


def take_turns(
    variants: dict[str, Callable[[], float]], rounds: int, device: str = "cpu"
) -> dict[str, dict[str, float]]:
    """Median and least seconds of each variant, in turns, after one unmeasured turn whose value is kept."""
    from tqdm import tqdm

    values = {name: run() for name, run in variants.items()}
    wall: dict[str, list[float]] = {name: [] for name in variants}
    cpu: dict[str, list[float]] = {name: [] for name in variants}
    for _ in tqdm(range(rounds), desc="rounds"):
        for name, run in variants.items():
            wait(device)
            started = time.perf_counter(), time.process_time()
            run()
            wait(device)
            wall[name].append(time.perf_counter() - started[0])
            cpu[name].append(time.process_time() - started[1])
    return {
        name: {
            "value": values[name],
            "wall_s": statistics.median(wall[name]),
            "least_wall_s": min(wall[name]),
            "cpu_s": statistics.median(cpu[name]),
            "least_cpu_s": min(cpu[name]),
        }
        for name in variants
    }


def random_batch(
    rows: int, source: int, target: int, vocabularies: Sequence[int], full: bool = False
) -> tuple[Tensor, Tensor]:
    """Source ids padded with 0 and labels padded with -100, (rows, length); rows are three quarters to all of the
    longest, like bucketed text, or all `full`."""
    generator = torch.Generator().manual_seed(1)

    def side(longest: int, words: int, padding: int) -> Tensor:
        lengths = torch.randint(max(1, longest * 3 // 4), longest + 1, (rows,), generator=generator)
        lengths = torch.full_like(lengths, longest) if full else lengths
        lengths[0] = longest
        ids = torch.randint(4, words, (rows, longest), generator=generator)
        return ids.masked_fill(torch.arange(longest) >= lengths[:, None], padding)

    return side(source, vocabularies[0], 0), side(target, vocabularies[1], -100)


__all__ = [
    "clock",
    "device_peak_mb",
    "in_child",
    "product_rate",
    "random_batch",
    "take_turns",
    "training_flops",
]

"""Operations of a training step, speed of matrix products, time and memory."""

import gc
import os
import statistics
import time
from collections.abc import Callable, Sequence
from multiprocessing import get_context

import torch
from torch import Tensor
from torch.nn import functional as F

from hf_rnn_seq2seq import RnnSeq2SeqForConditionalGeneration

_GATES = {"lstm": 4, "gru": 3}


def training_flops(model: RnnSeq2SeqForConditionalGeneration, source: Tensor, labels: Tensor) -> float:
    """Floating-point operations of the matrix products of one training step, without padding.

    A product of (m, k) and (k, n) counts 2 m k n; the backward pass has two products for each of the forward pass.
    Embeddings, gates, softmax and optimizer are not counted.

    Args:
        model: with attention or without.
        source: ids (batch, source), padded with the config's pad token.
        labels: ids (batch, target), padded with -100.
    """
    config, decoder = model.config, model.get_decoder()
    source_lengths, target_lengths = (source != config.pad_token_id).sum(1), (labels != -100).sum(1)
    words, targets = int(source_lengths.sum()), int(target_lengths.sum())
    pairs = int((source_lengths * target_lengths).sum())
    gates, hidden = _GATES.get(config.cell_type, 1), config.hidden_size
    total, below = 0.0, config.embedding_size
    for layer in range(1, config.encoder_layers + 1):
        directions, units = config.encoder_directions(layer), config.encoder_hidden_size
        total += words * directions * gates * units * (below + units)
        below = units * directions
    for layer in decoder.layers:
        total += targets * gates * hidden * (layer.kernel.input_size + hidden)
    if decoder.attention is not None:
        matrices = {name: parameter for name, parameter in decoder.attention.named_parameters() if parameter.dim() == 2}
        at_source = sum(weight.numel() for name, weight in matrices.items() if name.startswith(("key.", "value.")))
        at_target = sum(weight.numel() for name, weight in matrices.items() if name.startswith(("query.", "output.")))
        score = hidden if "query.weight" not in matrices else config.attention_size
        total += words * at_source + targets * at_target + pairs * (score + config.context_width)
    if decoder.readout.project is not None:
        total += targets * decoder.readout.project.weight.numel()
    total += targets * model.lm_head.weight.numel()
    return 6.0 * total


def clock(device: str) -> str:
    """The time that ratios compare: CPU time, which other programs do not change, or wall time on a device."""
    return "cpu_s" if device == "cpu" else "wall_s"


def wait(device: str) -> None:
    """Waits until the device has finished its work."""
    if device == "cuda":
        torch.cuda.synchronize()


def product_rate(dtype: torch.dtype, device: str = "cpu") -> float:
    """Operations per second of a large matrix product: the best of three with each library of torch.

    Measured in CPU time, or in wall time on a device. The size doubles up to 2,048 on a CPU (8,192 on a device) while a
    product takes less than a tenth of a second: where a type is emulated, the largest would take many seconds.
    """
    size, largest = (512, 2048) if device == "cpu" else (8192, 8192)
    while True:
        seconds = _product_seconds(dtype, size, device)
        if seconds >= 0.1 or size == largest:
            return 2 * size**3 / seconds
        size *= 2


def _product_seconds(dtype: torch.dtype, size: int, device: str) -> float:
    seconds = time.process_time if device == "cpu" else time.perf_counter
    pairs = [torch.randn(2, size, size, device=device).to(dtype)]
    if device == "cpu" and dtype == torch.float32 and torch.backends.mkldnn.is_available():
        pairs.append([side.to_mkldnn() for side in pairs[0]])
    best = float("inf")
    for _ in range(4):  # the first warms up
        for left, right in pairs:
            wait(device)
            started = seconds()
            F.linear(left, right)
            wait(device)
            best = min(best, seconds() - started)
    return best


def device_peak_mb(work: Callable[[], object]) -> float:
    """The peak memory of tensors on the CUDA device during `work`, in MiB."""
    gc.collect()  # memory of earlier work
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    work()
    wait("cuda")
    return torch.cuda.max_memory_allocated() / 2**20


def in_child(work: Callable[[], dict[str, float]], threads: int) -> dict[str, float]:
    """Runs `work` in a forked process and returns its result with `peak_mb`, the peak memory of that process in MiB.

    A process for each variant keeps its peak apart from that of earlier variants. On platforms without fork, `work`
    runs here and `peak_mb` is 0. Threads do not survive a fork: call this before torch starts several.
    """
    if not hasattr(os, "fork"):
        torch.set_num_threads(threads)
        return {**work(), "peak_mb": 0.0}
    context = get_context("fork")
    receiving, sending = context.Pipe(duplex=False)

    def child() -> None:
        import resource

        torch.set_num_threads(threads)
        result = work()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        sending.send({**result, "peak_mb": peak})

    process = context.Process(target=child)
    process.start()
    sending.close()
    try:
        return receiving.recv()
    except EOFError:
        raise RuntimeError("a measuring process ended without a result; if memory ran out, reduce the sizes") from None
    finally:
        process.join()


def take_turns(
    variants: dict[str, Callable[[], float]], rounds: int, device: str = "cpu"
) -> dict[str, dict[str, float]]:
    """Median and minimum seconds of each variant, taking turns, and the value of a first turn that is not timed."""
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
    """Source ids padded with 0 and labels padded with -100, (rows, length).

    Lengths are drawn from 3/4 of the longest to the longest, as in bucketed text; with `full` all are the longest.
    """
    generator = torch.Generator().manual_seed(1)

    def side(longest: int, words: int, padding: int) -> Tensor:
        lengths = torch.randint(max(1, longest * 3 // 4), longest + 1, (rows,), generator=generator)
        lengths = torch.full_like(lengths, longest) if full else lengths
        lengths[0] = longest
        ids = torch.randint(4, words, (rows, longest), generator=generator)
        return ids.masked_fill(torch.arange(longest) >= lengths[:, None], padding)

    return side(source, vocabularies[0], 0), side(target, vocabularies[1], -100)

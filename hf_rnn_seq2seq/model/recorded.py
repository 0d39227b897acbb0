"""Functions of tensors that run as CUDA graphs: captured for each shape that comes twice, replayed from then on.

A graph launches its kernels in one call, on the addresses they were captured with; so a call copies its inputs into buffers
that stay, and hands out copies of what the graph wrote.
"""

import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

WIDTH = 8  # what is as wide as a sentence is padded to a multiple of this
SHAPES = 64  # captured of one function; each graph takes some megabytes of the device beside the memory that all share


def map_tensors(structure: Any, function: Callable[[Tensor], Any]) -> Any:
    """`function` applied to every tensor of nested tuples; what is neither stays."""
    if isinstance(structure, Tensor):
        return function(structure)
    if not isinstance(structure, (tuple, list)):
        return structure
    mapped = [map_tensors(part, function) for part in structure]
    return type(structure)(*mapped) if hasattr(structure, "_fields") else tuple(mapped)


def tensors_of(structure: Any) -> list[Tensor]:
    """Every tensor of nested tuples, in order."""
    found: list[Tensor] = []
    map_tensors(structure, found.append)
    return found


def like(structure: Any) -> Any:
    """Unset tensors of the same shapes, which may be written in and out of inference mode."""
    with torch.inference_mode(False):
        return map_tensors(structure, torch.empty_like)


class CudaGraphs:
    """Captures on a stream of its own, and runs there what is not captured.

    Running once before capturing loads kernels and takes workspaces, which a capture may not do; on the same stream,
    because the nodes that add up gradients belong to the stream they were made on.

    Args:
        device: a CUDA device.
    """

    def __init__(self, device: torch.device) -> None:
        self.stream = torch.cuda.Stream(device)
        # One for all graphs: a replay may overwrite what another graph has left, so nothing of theirs is handed out.
        self.pool = torch.cuda.graph_pool_handle()

    def run(self, function: Callable[[], Any]) -> Any:
        """What `function` returns, computed after what the current stream has been given, and before what comes next."""
        here = torch.cuda.current_stream(self.stream.device)
        self.stream.wait_stream(here)
        with torch.cuda.stream(self.stream):
            result = function()
        here.wait_stream(self.stream)
        return result

    def capture(self, function: Callable[[], Any]) -> Callable[[], Any]:
        """A call that launches what `function` would launch, and returns the tensors it writes; nothing is computed yet."""
        graph = torch.cuda.CUDAGraph()
        # Other threads, which read batches ahead, may go on taking memory meanwhile.
        with torch.cuda.graph(graph, pool=self.pool, stream=self.stream, capture_error_mode="thread_local"):
            result = function()

        def replay() -> Any:
            graph.replay()
            return result

        return replay


class Reruns:
    """The same contract where there are no graphs: a replay runs the function on the same buffers, and writes the same."""

    def run(self, function: Callable[[], Any]) -> Any:
        """What `function` returns."""
        return function()

    def capture(self, function: Callable[[], Any]) -> Callable[[], Any]:
        """A call that runs `function` and overwrites what the last call returned; nothing is computed yet."""
        held: list[Any] = []

        def replay() -> Any:
            result = function()
            if not held:
                held.append(like(result))
            for kept, new in zip(tensors_of(held[0]), tensors_of(result), strict=True):
                kept.copy_(new)
            return held[0]

        return replay


class _Recording(NamedTuple):
    """One shape of a function."""

    replay: Callable[[], Any]
    buffers: list[Tensor]
    last: list[Any]  # weak references to what each buffer was filled from


class Recorded:
    """A function of tensors, captured for each shape of its inputs that comes twice.

    The first call with a shape runs the function as it is, so nothing is ever computed twice or for warming up alone. The
    function must launch the same work whenever the shapes are the same: it may not read a value back, nor depend on
    anything in Python that changes. It may write into tensors of its own that stay (sums, gradients): what it adds to
    must exist after the first call. What it returns is copied out of the graphs' memory, and carries no gradient.

    An input that is the very tensor of the call before is taken to be unchanged, and is not copied again.

    Args:
        function: takes and returns nested tuples of tensors; other arguments are constants, a graph for each value.
        device: of the tensors; off CUDA a replay runs the function again.
        limit: shapes that are captured; others run as they are.
    """

    def __init__(self, function: Callable[..., Any], device: torch.device, limit: int = SHAPES) -> None:
        self.function, self.limit = function, limit
        self.graphs = CudaGraphs(device) if device.type == "cuda" else Reruns()
        self.captured = 0
        self._recordings: dict[Any, _Recording | None] = {}  # None: seen once

    def __call__(self, *inputs: Any) -> Any:
        """What the function returns for the same inputs."""
        shape = map_tensors(inputs, lambda tensor: (tensor.shape, tensor.dtype))
        recording = self._recordings.get(shape)
        if recording is None:
            if shape not in self._recordings or self.captured == self.limit:
                self._recordings[shape] = None
                return self.graphs.run(lambda: self.function(*inputs))
            recording = self._recordings[shape] = self._capture(inputs)
        for number, tensor in enumerate(tensors_of(inputs)):
            if recording.last[number]() is not tensor:
                recording.buffers[number].copy_(tensor)
                recording.last[number] = weakref.ref(tensor)
        return map_tensors(recording.replay(), torch.clone)

    def _capture(self, inputs: Any) -> _Recording:
        held = like(inputs)
        buffers = tensors_of(held)
        self.captured += 1
        return _Recording(self.graphs.capture(lambda: self.function(*held)), buffers, [lambda: None] * len(buffers))


__all__ = ["WIDTH", "Recorded", "map_tensors", "tensors_of"]

"""Triton kernels for the parts of the scan that are no matrix products: one launch where eager torch makes five to ten.

`decoder_recurrence="triton"` asks for them. Each class computes what its base computes, which is
its reference: tests compare the two in Triton's interpreter on a CPU. They have not run on a GPU yet, which is why no
default uses them. Arithmetic is in float32 inside a kernel, whatever the type of the tensors; products of matrices stay
with torch. Names starting with d_ are gradients.
"""

from typing import Any

import torch
from torch import Tensor

from .scan_cells import GruCell, LstmCell, ScanCell
from .scan_scores import AdditiveScore, DotScore, ProjectedDotScore, ScanScore

try:
    import triton
    import triton.language as tl
except ImportError as missing:
    raise ImportError("decoder_recurrence='triton' needs triton, which comes with torch for CUDA") from missing


def _launch(kernel: Any, programs: int, *arguments: Any, **constants: int) -> None:
    with torch.cuda.device_of(arguments[0]):
        kernel[(programs,)](*arguments, **constants)


# ---------------------------------------------------------------- cells: one element of the state in a lane

BLOCK = 256


@triton.jit
def _read(pointer, place, real):
    return tl.load(pointer + place, mask=real, other=0.0).to(tl.float32)


@triton.jit
def _tanh(x):
    return 2 * tl.sigmoid(2 * x) - 1


@triton.jit
def _lstm_forward(sums, cells, gates, cells_after, after, count, SIZE: tl.constexpr, BLOCK: tl.constexpr):
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    real = place < count
    at = place // SIZE * (4 * SIZE) + place % SIZE
    update = tl.sigmoid(_read(sums, at, real))
    forget = tl.sigmoid(_read(sums, at + SIZE, real))
    new = _tanh(_read(sums, at + 2 * SIZE, real))
    output = tl.sigmoid(_read(sums, at + 3 * SIZE, real))
    cell = forget * _read(cells, place, real) + update * new
    tl.store(gates + at, update, mask=real)
    tl.store(gates + at + SIZE, forget, mask=real)
    tl.store(gates + at + 2 * SIZE, new, mask=real)
    tl.store(gates + at + 3 * SIZE, output, mask=real)
    tl.store(cells_after + place, cell, mask=real)
    tl.store(after + place, output * _tanh(cell), mask=real)


@triton.jit
def _lstm_backward(
    gates, cells, cells_after, d_hidden, d_cell, d_gates, count, stride, SIZE: tl.constexpr, BLOCK: tl.constexpr
):
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    real = place < count
    at = place // SIZE * (4 * SIZE) + place % SIZE
    update, forget = _read(gates, at, real), _read(gates, at + SIZE, real)
    new, output = _read(gates, at + 2 * SIZE, real), _read(gates, at + 3 * SIZE, real)
    shown = _tanh(_read(cells_after, place, real))
    d = _read(d_hidden, place // SIZE * stride + place % SIZE, real)
    d_kept = _read(d_cell, place, real) + d * output * (1 - shown * shown)
    tl.store(d_gates + at, d_kept * new * update * (1 - update), mask=real)
    tl.store(d_gates + at + SIZE, d_kept * _read(cells, place, real) * forget * (1 - forget), mask=real)
    tl.store(d_gates + at + 2 * SIZE, d_kept * update * (1 - new * new), mask=real)
    tl.store(d_gates + at + 3 * SIZE, d * shown * output * (1 - output), mask=real)
    tl.store(d_cell + place, d_kept * forget, mask=real)


@triton.jit
def _gru_forward(sums, recurrent, before, gates, inner, after, count, SIZE: tl.constexpr, BLOCK: tl.constexpr):
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    real = place < count
    at = place // SIZE * (3 * SIZE) + place % SIZE
    reset = tl.sigmoid(_read(sums, at, real) + _read(recurrent, at, real))
    update = tl.sigmoid(_read(sums, at + SIZE, real) + _read(recurrent, at + SIZE, real))
    shown = _read(recurrent, at + 2 * SIZE, real)
    new = _tanh(_read(sums, at + 2 * SIZE, real) + reset * shown)
    tl.store(gates + at, reset, mask=real)
    tl.store(gates + at + SIZE, update, mask=real)
    tl.store(gates + at + 2 * SIZE, new, mask=real)
    tl.store(inner + place, shown, mask=real)
    tl.store(after + place, new + update * (_read(before, place, real) - new), mask=real)


@triton.jit
def _gru_backward(
    gates, inner, before, d_hidden, d_gates, d_recurrent, count, stride, SIZE: tl.constexpr, BLOCK: tl.constexpr
):
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    real = place < count
    at = place // SIZE * (3 * SIZE) + place % SIZE
    reset, update = _read(gates, at, real), _read(gates, at + SIZE, real)
    new = _read(gates, at + 2 * SIZE, real)
    d = _read(d_hidden, place // SIZE * stride + place % SIZE, real)
    d_new = d * (1 - update) * (1 - new * new)
    d_update = d * (_read(before, place, real) - new) * update * (1 - update)
    d_reset = d_new * _read(inner, place, real) * reset * (1 - reset)
    tl.store(d_gates + at, d_reset, mask=real)
    tl.store(d_gates + at + SIZE, d_update, mask=real)
    tl.store(d_gates + at + 2 * SIZE, d_new, mask=real)
    tl.store(d_recurrent + at, d_reset, mask=real)
    tl.store(d_recurrent + at + SIZE, d_update, mask=real)
    tl.store(d_recurrent + at + 2 * SIZE, d_new * reset, mask=real)


class TritonLstmCell(LstmCell):
    """`LstmCell` with one launch each way beside its products."""

    def activate(self, t: int, sums: Tensor, after: Tensor) -> None:
        cells, count = self.cells, after.numel()
        arguments = sums.contiguous(), cells[t], self.gates[t], cells[t + 1], after, count
        _launch(_lstm_forward, triton.cdiv(count, BLOCK), *arguments, SIZE=self.size, BLOCK=BLOCK)

    def gate_gradients(self, t: int, d_hidden: Tensor, d_cell: Tensor) -> None:
        cells, count = self.cells, d_cell.numel()
        arguments = self.gates[t], cells[t], cells[t + 1], d_hidden, d_cell, self.d_gates[t], count, d_hidden.stride(0)
        _launch(_lstm_backward, triton.cdiv(count, BLOCK), *arguments, SIZE=self.size, BLOCK=BLOCK)


class TritonGruCell(GruCell):
    """`GruCell` with one launch each way beside its products."""

    def activate(self, t: int, sums: Tensor, recurrent: Tensor, before: Tensor, after: Tensor) -> None:
        count = after.numel()
        arguments = sums.contiguous(), recurrent.contiguous(), before, self.gates[t], self.inner[t], after, count
        _launch(_gru_forward, triton.cdiv(count, BLOCK), *arguments, SIZE=self.size, BLOCK=BLOCK)

    def gate_gradients(self, t: int, d_hidden: Tensor, before: Tensor) -> None:
        count, d = before.numel(), (self.d_gates[t], self.d_recurrent[t])
        arguments = self.gates[t], self.inner[t], before, d_hidden, *d, count, d_hidden.stride(0)
        _launch(_gru_backward, triton.cdiv(count, BLOCK), *arguments, SIZE=self.size, BLOCK=BLOCK)


# ---------------------------------------------------------------- attention: one row of one head in a program

# Additive scores have an energy, dot scores have none: the two differ in a few lines. SOURCE is the number of source
# positions made a power of two; keys and values are read in tiles of (SOURCE, WIDTH).


@triton.jit
def _tile(matrix, row, source, width, start, SOURCE: tl.constexpr, WIDTH: tl.constexpr):
    s, w = tl.arange(0, SOURCE)[:, None], start + tl.arange(0, WIDTH)[None, :]
    place = (row * source + s) * width + w
    return tl.load(matrix + place, mask=(s < source) & (w < width), other=0.0).to(tl.float32)


@triton.jit
def _piece(vector, row, width, start, WIDTH: tl.constexpr):
    w = start + tl.arange(0, WIDTH)
    return tl.load(vector + row * width + w, mask=w < width, other=0.0).to(tl.float32)


@triton.jit
def _attend_forward(
    query, keys, values, energy, allowed, weights, read, source, score_width, read_width, heads,
    ADDITIVE: tl.constexpr, SOURCE: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    s = tl.arange(0, SOURCE)
    scores = tl.zeros([SOURCE], tl.float32)
    for start in range(0, score_width, WIDTH):
        tile = _tile(keys, row, source, score_width, start, SOURCE, WIDTH)
        asked = _piece(query, row, score_width, start, WIDTH)[None, :]
        if ADDITIVE:
            scores += tl.sum(_tanh(tile + asked) * _piece(energy, 0, score_width, start, WIDTH)[None, :], 1)
        else:
            scores += tl.sum(tile * asked, 1)
    real = s < source
    seen = tl.load(allowed + row // heads * source + s, mask=real, other=0) != 0
    largest = tl.max(tl.where(seen, scores, float("-inf")), 0)
    # A row that allows nothing reads nothing.
    share = tl.where(seen, tl.exp(tl.where(seen, scores - largest, 0.0)), 0.0)
    total = tl.sum(share, 0)
    share = share / tl.where(total == 0, 1.0, total)
    tl.store(weights + row * source + s, share, mask=real)
    for start in range(0, read_width, WIDTH):
        tile = _tile(values, row, source, read_width, start, SOURCE, WIDTH)
        w = start + tl.arange(0, WIDTH)
        tl.store(read + row * read_width + w, tl.sum(tile * share[:, None], 0), mask=w < read_width)


@triton.jit
def _attend_backward(
    query, keys, values, energy, weights, d_read, d_weights, d_scores, d_query, d_keys, d_energy,
    source, score_width, read_width,
    ADDITIVE: tl.constexpr, GIVEN: tl.constexpr, SOURCE: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    s = tl.arange(0, SOURCE)
    real = s < source
    d = tl.zeros([SOURCE], tl.float32)
    if GIVEN:
        d += _read(d_weights, row * source + s, real)
    for start in range(0, read_width, WIDTH):
        tile = _tile(values, row, source, read_width, start, SOURCE, WIDTH)
        d += tl.sum(tile * _piece(d_read, row, read_width, start, WIDTH)[None, :], 1)
    share = _read(weights, row * source + s, real)
    d = share * (d - tl.sum(d * share, 0))
    tl.store(d_scores + row * source + s, d, mask=real)
    for start in range(0, score_width, WIDTH):
        tile = _tile(keys, row, source, score_width, start, SOURCE, WIDTH)
        w = start + tl.arange(0, WIDTH)
        if ADDITIVE:
            combined = _tanh(tile + _piece(query, row, score_width, start, WIDTH)[None, :])
            of_energy, inside = d_energy + row * score_width + w, w < score_width
            tl.store(of_energy, tl.load(of_energy, mask=inside) + tl.sum(combined * d[:, None], 0), mask=inside)
            slope = (1 - combined * combined) * d[:, None]
            tile = slope * _piece(energy, 0, score_width, start, WIDTH)[None, :]
            of_keys = d_keys + (row * source + s[:, None]) * score_width + w[None, :]
            of_tile = real[:, None] & (w[None, :] < score_width)
            tl.store(of_keys, tl.load(of_keys, mask=of_tile) + tile, mask=of_tile)
        else:
            tile = tile * d[:, None]
        tl.store(d_query + row * score_width + w, tl.sum(tile, 0), mask=w < score_width)


class KernelReading(ScanScore):
    """The reading of a score by one launch each way; stands before the score among the bases of a class."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.keys, self.values = self.keys.contiguous(), self.values.contiguous()
        source = self.keys.shape[1]
        tall = triton.next_power_of_2(source)
        # A tile of keys stays in registers.
        self.tile = {"SOURCE": tall, "WIDTH": max(8, min(64, 8192 // tall))}
        self.widths = source, self.keys.shape[2], self.values.shape[2]
        self.additive = self.source.energy is not None
        self.energy = self.source.energy if self.additive else self.keys  # a pointer that is not read

    def allocate(self, mask: Tensor, steps: int) -> None:
        super().allocate(mask, steps)
        self.seen = mask.to(torch.uint8).contiguous()

    def read(self, t: int, asked: Tensor) -> Tensor:
        query = self.query(t, asked).contiguous()
        read = self.values.new_empty(self.batch, self.heads * self.values.shape[2])
        arguments = query, self.keys, self.values, self.energy, self.seen, self.weights[t], read
        constants = {"ADDITIVE": self.additive, **self.tile}
        _launch(_attend_forward, len(self.keys), *arguments, *self.widths, self.heads, **constants)
        return read

    def query_gradient(self, t: int, d_read: Tensor, d_weights: Tensor | None) -> Tensor:
        kept = self.saved[1:] == ("queries",)
        query = self.queries[t] if kept else self.keys
        d_query = self.d_queries[t] if kept else self.keys.new_empty(self.batch, self.keys.shape[2])
        sums = (self.d_keys, self.d_energy_rows) if self.additive else (self.keys, self.keys)
        given = self.weights[t] if d_weights is None else d_weights.contiguous()
        arguments = query, self.keys, self.values, self.energy, self.weights[t], d_read.contiguous(), given
        arguments = *arguments, self.d_scores[t], d_query, *sums, *self.widths
        constants = {"ADDITIVE": self.additive, "GIVEN": d_weights is not None, **self.tile}
        _launch(_attend_backward, len(self.keys), *arguments, **constants)
        return d_query


class TritonDotScore(KernelReading, DotScore):
    """`DotScore` by kernels."""


class TritonProjectedDotScore(KernelReading, ProjectedDotScore):
    """`ProjectedDotScore` by kernels."""


class TritonAdditiveScore(KernelReading, AdditiveScore):
    """`AdditiveScore` by kernels; every row sums its own part of the energy's gradient."""

    def start_backward(self) -> None:
        super().start_backward()
        self.d_energy_rows = self.d_energy.new_zeros(self.batch, len(self.d_energy))

    def score_gradients(self, asked: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        self.d_energy = self.d_energy_rows.sum(0)
        return super().score_gradients(asked)


_KERNELS: dict[type, type] = {
    LstmCell: TritonLstmCell,
    GruCell: TritonGruCell,
    DotScore: TritonDotScore,
    ProjectedDotScore: TritonProjectedDotScore,
    AdditiveScore: TritonAdditiveScore,
}


def with_kernels(kind: type[ScanCell] | type[ScanScore]) -> Any:
    """The class that computes the same by kernels; the class itself where there are none (the reset-before GRU)."""
    return _KERNELS.get(kind, kind)


__all__ = ["with_kernels"]

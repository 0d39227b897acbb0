"""Turns words into the symbols of a target with a small recurrent model; needs numpy and Python 3.10, no more.

    from g2p import G2p

    g2p = G2p()                   # reads g2p.npz beside this file; or G2p(path)
    g2p("word")                   # the likeliest symbol at each step: ["W", "ER1", "D"]
    g2p.batch(["word", "ward"])   # the same for many words, faster
    g2p.n_best("word", n=5)       # [(symbols, probability), ...], best first, by beam search

`hf-rnn export RUN --output_dir PACK --format numpy` of hf_rnn_seq2seq writes this file and the model. The model is an
encoder of LSTM or GRU layers and a decoder that attends to it. The results are those of `generate()`.

Axes: rows (words, or beams of one word), time, symbols, and the widths of vectors. Gates are in the order of the file:
LSTM input, forget, output, new; GRU reset, update, new. The weights of sigmoid gates have the other sign there, since
sigmoid(x) = 1 / (1 + exp(-x)), and those of the LSTM's new cell are times -2, since tanh(x) = 2 sigmoid(2 x) - 1: one
exponential for all gates is the fastest way of numpy.
"""

from __future__ import annotations

import json
import os
import re
import unicodedata
import warnings
from collections.abc import Iterable

import numpy as np

FILE = "g2p.npz"
ABOUT = "about"  # the entry of the file that holds everything but weights, as JSON in UTF-8
SCALE = ":scale"  # the entry with the scale of each row of a matrix in int8
FORMAT = 1
BEAMS = 5  # of n_best, for a model whose own setting is greedy search
NEVER = -1.0e9  # the score of a hypothesis that is not there, as in transformers


class PackError(ValueError):
    """The file is damaged, or it is not one that the export wrote."""


class G2p:
    """A model that was exported for numpy.

    Args:
        path: the file, or its folder; default: `g2p.npz` beside this module.

    Attributes:
        unknown: symbols of the words so far that the vocabulary does not have; the first one gives a warning.
        settings: the generation settings of the model, such as `max_new_tokens`.
        source_form, target_form: the Unicode form (NFC, NFD, NFKC, NFKD) that words, and results, are brought into;
            None: they stay as they are.

    Raises:
        FileNotFoundError: there is no such file.
        PackError: the file cannot be used.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None) -> None:
        path = os.path.dirname(os.path.abspath(__file__)) if path is None else os.fspath(path)
        path = os.path.join(path, FILE) if os.path.isdir(path) else path
        about, arrays = read(path)
        self.source, self.target, self.settings = about["source"], about["target"], about["settings"]
        self.source_form = next((step for step in reversed(self.source["steps"]) if step != "lowercase"), None)
        self.target_form = self.target["form"]
        self.network = Network(about, arrays)
        self.unknown: set[str] = set()
        special = {*self.source["special"]}
        self._ids = {name: number for number, name in enumerate(self.source["symbols"]) if number not in special}
        self._silent = {*self.target["special"]}
        self._byte_of = {number: byte for byte, number in enumerate(self.target["bytes"] or [])}

    def __call__(self, word: str) -> list[str]:
        """The symbols of one word by greedy search."""
        return self.batch([word])[0]

    def batch(self, words: Iterable[str], batch_size: int = 64) -> list[list[str]]:
        """The symbols of each word, in order; words of similar length are computed together."""
        if isinstance(words, str) or batch_size < 1:
            given = f"words={words!r}: must be a list of words" if isinstance(words, str) else f"{batch_size=}: below 1"
            raise ValueError(f"{given}; g2p(word) reads a single one")
        rows = [[] if self._is_empty(word) else self.ids(word) for word in words]
        results: list[list[str]] = [[] for _ in rows]
        # Nothing is made of a word without symbols.
        order = sorted((place for place, row in enumerate(rows) if row), key=lambda place: -len(rows[place]))
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            written = self._greedy([self._framed(rows[place]) for place in chosen])
            for place, ids in zip(chosen, written, strict=True):
                results[place] = self.symbols(ids)
        return results

    def n_best(self, word: str, n: int = 5, num_beams: int | None = None) -> list[tuple[list[str], float]]:
        """The best results of a beam search, each with its probability under the model.

        They are ordered by log-probability / length ** length_penalty. There are fewer than `n` only if the search
        finds no more.

        Args:
            num_beams: default: that of the generation settings, or 5 if they are greedy; at least n in any case.
        """
        if not all(isinstance(count, int) and count >= 1 for count in (n, 1 if num_beams is None else num_beams)):
            raise ValueError(f"n={n}, num_beams={num_beams}: must be whole numbers, at least 1")
        row = [] if self._is_empty(word) else self.ids(word)
        if not row:
            return [([], 1.0)]
        if num_beams is None:
            num_beams = self.settings["num_beams"] if self.settings["num_beams"] > 1 else BEAMS
        found = self._beams(self._framed(row), max(n, num_beams))
        return [(self.symbols(ids), float(np.exp(total))) for _, total, ids in found[:n]]

    # ---------------------------------------------------------------- text

    def _is_empty(self, word: str) -> bool:
        """Whether a word has no text: white space alone, or features and a tab with nothing after them."""
        if not isinstance(word, str):
            return False
        return not (word.rpartition("\t")[2] if self.source["split"] == "letters" else word).strip()

    def ids(self, word: str) -> list[int]:
        """The source symbols of a word, without those that begin and end every source."""
        if not isinstance(word, str):
            raise ValueError(f"word={word!r}: must be a string")
        ids, unknown = self._read(word)
        if unknown and not self.unknown:
            warnings.warn(
                f"word={word!r}: the vocabulary has no {unknown[0]!r}; it is read as unknown, here and later, and "
                "the attribute `unknown` lists all such symbols",
                stacklevel=4,
            )
        self.unknown.update(unknown)
        return ids

    def _read(self, text: str) -> tuple[list[int], list[str]]:
        """Ids, and the symbols that the vocabulary does not have."""
        for step in self.source["steps"]:
            # Character by character: a word does not end differently in lower case (the final sigma).
            text = "".join(map(str.lower, text)) if step == "lowercase" else unicodedata.normalize(step, text)
        ids: list[int] = []
        unknown: list[str] = []
        for symbol in split(text, self.source["split"]):
            number = self._ids.get(symbol)
            if number is not None:
                ids.append(number)
                continue
            unknown.append(symbol)
            if self.source["bytes"] is not None:
                ids += [self.source["bytes"][byte] for byte in symbol.encode("utf-8", "replace")]
            elif self.source["unknown"] is not None:
                ids.append(self.source["unknown"])
        return ids, unknown

    def _framed(self, ids: list[int]) -> list[int]:
        return [*self.source["before"], *ids, *self.source["after"]]

    def symbols(self, ids: list[int]) -> list[str]:
        """The symbols of target ids, without special ones; bytes are joined to characters."""
        names, found, run = self.target["symbols"], [], bytearray()
        for number in [*(number for number in ids if number not in self._silent), -1]:
            if number in self._byte_of:
                run.append(self._byte_of[number])
                continue
            if run:
                try:
                    found += run.decode("utf-8")
                except UnicodeDecodeError:
                    found += "\ufffd" * len(run)
                run.clear()
            if 0 <= number < len(names):
                found.append(names[number])
        if self.target_form is None or not found:
            return found
        gap = " " if self.target["split"] == "between spaces" else ""
        text = unicodedata.normalize(self.target_form, gap.join(found))
        return text.split(gap) if gap else list(text)

    # ---------------------------------------------------------------- search

    def _greedy(self, rows: list[list[int]]) -> list[list[int]]:
        """The likeliest symbol at each step; `rows` are longest first."""
        settings, network = self.settings, self.network
        state, memory = network.encode(rows)
        words = np.full(len(rows), settings["decoder_start_token_id"])
        # `live` are the rows that have not ended; the state keeps rows that have, until they are many.
        written: list[list[int]] = [[] for _ in rows]
        live = list(range(len(rows)))
        for _ in range(settings["max_new_tokens"]):
            logits, state = network.step(words, state, memory)
            words = logits.argmax(-1)
            stay = []
            for place, word in enumerate(words.tolist()):
                row = live[place]
                if row < 0:
                    continue
                if word in settings["eos_token_id"]:
                    live[place] = -1
                    continue
                written[row].append(word)
                stay.append(place)
            if not stay:
                break
            if len(stay) <= 0.9 * len(words):
                live, words = [live[place] for place in stay], words[stay]
                state, memory = state.rows(stay), memory and memory.rows(stay)
        return written

    def _beams(self, row: list[int], beams: int) -> list[tuple[float, float, list[int]]]:
        """Hypotheses of one word, best first: score, log-probability, ids without the end.

        As in transformers: of twice as many continuations as there are beams, those that end are kept apart.
        """
        settings, network = self.settings, self.network
        ends, limit, penalty = settings["eos_token_id"], settings["max_new_tokens"], settings["length_penalty"]
        early = settings["early_stopping"]
        state, memory = network.encode([row])
        running: list[tuple[float, list[int]]] = [(0.0, [])]
        finished: list[tuple[float, float, list[int]]] = []
        words = np.array([settings["decoder_start_token_id"]])
        for length in range(1, limit + 1):
            logits, state = network.step(words, state, memory)
            totals = log_softmax(logits) + np.array([[total] for total, _ in running], dtype=np.float32)
            best = totals.ravel()
            order = np.argsort(-best, kind="stable")[: max(2, 1 + len(ends)) * beams]
            parents: list[int] = []
            before, running = running, []
            for rank, place in enumerate(order.tolist()):
                parent, word = divmod(place, totals.shape[1])
                total, ids = float(best[place]), before[parent][1]
                if word in ends or length == limit:
                    if rank < beams:
                        ids = ids if word in ends else [*ids, word]
                        finished.append((total / length**penalty, total, ids))
                elif len(running) < beams:
                    running.append((total, [*ids, word]))
                    parents.append(parent)
            finished = sorted(finished, key=lambda each: -each[0])[:beams]
            if not running or (len(finished) == beams and early is True):
                break
            hope = running[0][0] / (limit if early == "never" and penalty > 0 else length) ** penalty
            if hope <= (finished[-1][0] if len(finished) == beams else NEVER):
                break
            words, state = np.array([ids[-1] for _, ids in running]), state.rows(parents)
        return finished


# ---------------------------------------------------------------- the model


class State:
    """What a decoder carries from step to step; every tensor begins with the axis of rows.

    Args:
        layers: for each layer h, and c of an LSTM, (rows, hidden).
        feed: the readout of the step before, or the product of its context, which the first layer reads; or None.
    """

    def __init__(self, layers: list[tuple[np.ndarray, ...]], feed: np.ndarray | None = None) -> None:
        self.layers, self.feed = layers, feed

    def rows(self, index: list[int]) -> State:
        """The state of some rows."""
        layers = [tuple(tensor[index] for tensor in layer) for layer in self.layers]
        return State(layers, None if self.feed is None else self.feed[index])


class Memory:
    """What a decoder reads of its sources at each step; beams of one word share theirs.

    Args:
        keys: (words, time, key).
        bias: (words, 1, time), 0 at symbols, very low at padding.
        contexts: by the name of what reads the context, the encoder's states times its weight: (words, time, width).
    """

    def __init__(self, keys: np.ndarray, bias: np.ndarray, contexts: dict[str, np.ndarray]) -> None:
        self.keys, self.bias, self.contexts = keys, bias, contexts

    def rows(self, index: list[int]) -> Memory:
        """The memory of some words."""
        return Memory(self.keys[index], self.bias[index], {name: part[index] for name, part in self.contexts.items()})


class Network:
    """The arithmetic of the model, in float32.

    Args:
        about: the description of the model.
        arrays: by name. A matrix is (outputs, inputs), as int8 with an entry for the scale of each row, or as float32.
    """

    def __init__(self, about: dict, arrays: dict[str, np.ndarray]) -> None:
        self.arrays, self.kind, self.attention = arrays, about["cell"], about["attention"]
        self.feeding, self.readout, self.bridge = about["feeding"], about["readout"], about["bridge"]
        self.encoder = [self._encoder_layer(number, ways) for number, ways in enumerate(about["encoder"])]
        self.decoder = [self._cell(f"decoder.{number}", number == 0) for number in range(about["decoder_layers"])]
        self.projections = [
            [(self._columns(f"{name}.weight"), self._vector(f"{name}.bias")) for name in names]
            for names in (
                [f"bridge.{layer}.{tensor}" for tensor in range(2 if self.kind == "lstm" else 1)]
                for layer in range(about["decoder_layers"])
            )
            if f"{names[0]}.weight" in arrays
        ]
        self.key, self.query = self._columns("attention.key.weight"), self._columns("attention.query.weight")
        self.key_bias, self.energy = self._vector("attention.key.bias"), self._vector("attention.energy")
        self.feed = self._columns("feed")
        self.mixes = {name: self._mix(name) for name in ("readout", "output") if f"{name}.state" in arrays}
        # Each reads the context through a weight of its own, which is applied to the source once.
        self.context_weights = {
            name: weight
            for name, weight in (
                ("feed", self.feed if self.feeding == "context" else None),
                ("readout", self._columns("readout.context")),
                ("output", self._columns("output.context")),
            )
            if weight is not None
        }
        del self.arrays  # the matrices are copies

    def _matrix(self, name: str) -> np.ndarray | None:
        if name not in self.arrays:
            return None
        matrix = self.arrays[name].astype(np.float32)
        return matrix * self.arrays[name + SCALE][:, None] if name + SCALE in self.arrays else matrix

    def _columns(self, name: str) -> np.ndarray | None:
        """A weight as (inputs, outputs)."""
        matrix = self._matrix(name)
        return None if matrix is None else np.ascontiguousarray(matrix.T)

    def _vector(self, name: str) -> np.ndarray | None:
        return self.arrays.get(name)

    def _table(self, name: str) -> np.ndarray | None:
        """The product of every symbol's vector with a weight, (symbols, outputs)."""
        vectors = self._matrix(f"{name}.vectors")
        return self._matrix(name) if vectors is None else vectors @ self._columns(f"{name}.weight")

    def _cell(self, name: str, is_first: bool) -> dict[str, np.ndarray | None]:
        below = self._table(f"{name}.below") if is_first else self._columns(f"{name}.below")
        bias = self._vector(f"{name}.bias")
        return {
            # Of the first layer the products of all symbols, bias included; else a weight.
            "below": below + bias if is_first else below,
            "bias": bias,
            "recurrent": self._columns(f"{name}.recurrent"),
            "recurrent_bias": self._vector(f"{name}.recurrent_bias"),
        }

    def _encoder_layer(self, number: int, ways: list[str]) -> dict:
        """The directions of a layer side by side: `recurrent` begins with their axis.

        `below` of the first layer is (directions x symbols, gates), of another one a weight for each direction.
        """
        cells = [self._cell(f"encoder.{number}.{way}", number == 0) for way in ways]
        layer: dict = {
            "ways": ways,
            "below": [cell["below"] for cell in cells],
            "bias": [cell["bias"] for cell in cells],
        }
        layer["below"] = layer["below"] if number else np.concatenate(layer["below"])
        layer["recurrent"] = np.stack([cell["recurrent"] for cell in cells])
        if self.kind == "gru":
            layer["recurrent_bias"] = np.stack([cell["recurrent_bias"] for cell in cells])[:, None]
        return layer

    def _mix(self, name: str) -> tuple[np.ndarray | None, np.ndarray | None, np.ndarray | None]:
        """The weight of the state, the products of all symbols, and the bias of a sum of what a step knows."""
        return self._columns(f"{name}.state"), self._table(f"{name}.words"), self._vector(f"{name}.bias")

    def _advance(
        self, inputs: np.ndarray, state: tuple, recurrent: np.ndarray | None, bias: np.ndarray | None
    ) -> tuple:
        """One step of a cell; states are (..., rows, hidden), inputs (..., rows, gates).

        Without a recurrent weight the state is zero.
        """
        size = state[0].shape[-1]
        both = np.zeros_like(inputs) if recurrent is None else state[0] @ recurrent
        if self.kind == "lstm":
            both += inputs
            sigmoid(both)
            new = both[..., 3 * size :]
            new *= 2
            new -= 1
            new *= both[..., :size]
            cell = both[..., size : 2 * size] * state[1]
            cell += new
            hidden = np.tanh(cell)
            hidden *= both[..., 2 * size : 3 * size]
            return hidden, cell
        gates = inputs[..., : 2 * size] + both[..., : 2 * size]
        sigmoid(gates)
        new = both[..., 2 * size :] + bias
        new *= gates[..., :size]
        new += inputs[..., 2 * size :]
        np.tanh(new, out=new)
        return (new + gates[..., size:] * (state[0] - new),)

    @np.errstate(over="ignore")  # 1 / (1 + inf) is 0
    def encode(self, rows: list[list[int]]) -> tuple[State, Memory]:
        """Symbols of each word, longest first and none empty -> the state before the first step, and the memory."""
        lengths = np.array([len(row) for row in rows])
        longest, count = len(rows[0]), len(rows)
        ids = np.zeros((longest, count), dtype=np.int64)
        for place, row in enumerate(rows):
            ids[: len(row), place] = row
        steps, places = np.arange(longest)[:, None], np.arange(count)
        real = steps < lengths
        # Where a word's symbols stand when they are read from the end.
        turned = np.where(real, lengths - 1 - steps, steps)
        live = real.sum(1).tolist()
        orders = {"forward": np.broadcast_to(steps, turned.shape), "backward": turned}
        states, ends = None, []
        for number, layer in enumerate(self.encoder):
            # A table of what the layer reads, and the row of it at each step, (time, directions, words).
            table, ways = layer["below"], layer["ways"]
            if number == 0:
                rows_of = [ids[orders[way], places] for way in ways]
            else:
                flat = states.reshape(longest * count, -1)
                table = np.empty((len(ways), len(flat), layer["recurrent"].shape[2]), dtype=np.float32)
                for place, bias in enumerate(layer["bias"]):
                    np.matmul(flat, layer["below"][place], out=table[place])
                    table[place] += bias
                table = table.reshape(-1, table.shape[2])
                rows_of = [orders[way] * count + places for way in ways]
            size = len(table) // len(ways)
            index = np.stack([each + place * size for place, each in enumerate(rows_of)], 1)
            states, end = self._over_time(table, index, layer, live)
            parts = [
                states[:, place] if way == "forward" else states[turned, place, places]
                for place, way in enumerate(ways)
            ]
            states = parts[0] if len(parts) == 1 else np.concatenate(parts, -1)
            ends.append(end)
        states = np.ascontiguousarray(states.transpose(1, 0, 2))
        return State(self._start(states, ends, lengths)), self._remember(states, real)

    def _over_time(
        self, table: np.ndarray, index: np.ndarray, layer: dict, live: list[int]
    ) -> tuple[np.ndarray, tuple]:
        """A layer over the rows `index` (time, directions, words) of a table, of which `live` are real at each step.

        Returns:
            states (time, directions, words, hidden), zero at padding, and the state of each word after its last symbol.
        """
        ways, words = index.shape[1:]
        size = layer["recurrent"].shape[1]
        states = np.zeros((len(index), ways, words, size), dtype=np.float32)
        state = tuple(np.zeros((ways, words, size), dtype=np.float32) for _ in range(2 if self.kind == "lstm" else 1))
        bias = layer.get("recurrent_bias")
        for time, rows in enumerate(index):
            count, recurrent = live[time], layer["recurrent"] if time else None
            if count == words:
                state = self._advance(table[rows], state, recurrent, bias)
            else:
                part = tuple(tensor[:, :count] for tensor in state)
                for tensor, new in zip(
                    state, self._advance(table[rows[:, :count]], part, recurrent, bias), strict=True
                ):
                    tensor[:, :count] = new
            states[time, :, :count] = state[0][:, :count]
        return states, state

    def _start(self, states: np.ndarray, ends: list[tuple], lengths: np.ndarray) -> list[tuple[np.ndarray, ...]]:
        """The decoder's first state: states (rows, time, width), ends (directions, rows, hidden) of each layer."""
        layers = []
        for layer, number in enumerate(self.bridge["layers"]):
            kind, size = self.bridge["kind"], self.decoder[layer]["recurrent"].shape[0]
            if kind == "zero":
                zeros = np.zeros((len(lengths), size), dtype=np.float32)
                layers.append((zeros,) * len(ends[0]))
                continue
            if kind == "mean":  # padding is zero
                mean = states.sum(1) / lengths[:, None].astype(np.float32)
                read = [mean] * len(ends[0])
            elif kind == "backward_tanh":
                read = [end[1] for end in ends[-1]]
            else:
                read = [np.concatenate(list(end), -1) for end in ends[number]]
            if kind != "copy":
                read = [
                    np.tanh(part @ weight + bias)
                    for part, (weight, bias) in zip(read, self.projections[layer], strict=True)
                ]
            layers.append(tuple(read))
        return layers

    def _remember(self, states: np.ndarray, real: np.ndarray) -> Memory | None:
        if self.attention is None:
            return None
        keys = states if self.key is None else product(states, self.key)
        keys = keys if self.key_bias is None else keys + self.key_bias
        bias = np.where(real.T, np.float32(0), np.float32(-1e30))[:, None]
        return Memory(keys, bias, {name: product(states, weight) for name, weight in self.context_weights.items()})

    def _attend(self, query: np.ndarray, memory: Memory) -> np.ndarray:
        """Weights (words, rows of a word, time) of the source symbols, from queries (rows, hidden)."""
        words = len(memory.keys)
        query = query if self.query is None else query @ self.query
        query = query.reshape(words, -1, query.shape[-1])
        if self.energy is None:
            scores = query @ memory.keys.transpose(0, 2, 1)
        else:
            scores = np.tanh(query[:, :, None] + memory.keys[:, None]) @ self.energy
        scores += memory.bias
        scores -= scores.max(-1, keepdims=True)
        np.exp(scores, out=scores)
        scores /= scores.sum(-1, keepdims=True)
        return scores

    @np.errstate(over="ignore")
    def step(self, words: np.ndarray, state: State, memory: Memory | None) -> tuple[np.ndarray, State]:
        """The last symbol of each row (rows,) -> logits (rows, symbols), and the state after it."""
        inputs, feed = self.decoder[0]["below"][words], state.feed
        weights = None
        if self.attention == "before_cell":
            weights = self._attend(state.layers[-1][0], memory)
            feed = self._context("feed", weights, memory)
        if feed is not None:
            inputs += feed @ self.feed if self.feeding == "readout" else feed
        after = []
        for number, (cell, before) in enumerate(zip(self.decoder, state.layers, strict=True)):
            if number:
                inputs = after[-1][0] @ cell["below"] + cell["bias"]
            after.append(self._advance(inputs, before, cell["recurrent"], cell["recurrent_bias"]))
        hidden = after[-1][0]
        if self.attention == "after_cell":
            weights = self._attend(hidden, memory)
        read = hidden
        if self.readout != "none":
            read = self._sum("readout", hidden, words, weights, memory)
            if self.readout == "tanh":
                np.tanh(read, out=read)
            elif self.readout == "maxout":
                read = read.reshape(len(read), -1, 2).max(-1)
        logits = self._sum("output", read, words, weights, memory)
        feed = None
        if self.feeding == "readout":
            feed = read
        elif self.feeding == "context" and self.attention == "after_cell":
            feed = self._context("feed", weights, memory)
        return logits, State(after, feed)

    def _sum(
        self, name: str, state: np.ndarray, words: np.ndarray, weights: np.ndarray | None, memory: Memory | None
    ) -> np.ndarray:
        """A layer that reads the state and, if it has weights for them, the context and the last symbol."""
        weight, table, bias = self.mixes[name]
        total = state @ weight
        if name in self.context_weights:
            total += self._context(name, weights, memory)
        if table is not None:
            total += table[words]
        if bias is not None:
            total += bias
        return total

    @staticmethod
    def _context(name: str, weights: np.ndarray, memory: Memory) -> np.ndarray:
        """The product of the context with the weight of `name`, (rows, width)."""
        context = weights @ memory.contexts[name]
        return context.reshape(-1, context.shape[-1])


def sigmoid(gates: np.ndarray) -> None:
    """In place, of gates with the other sign."""
    np.exp(gates, out=gates)
    gates += 1
    np.reciprocal(gates, out=gates)


def split(text: str, way: str) -> list[str]:
    """The symbols of a text.

    Args:
        way: `between spaces`, `characters`, or `letters`: characters, before which features may stand that a tab ends
            (`V;PST<tab>walk`); each of them, between `;` and `+`, is one symbol.
    """
    if way == "between spaces":
        return text.split()
    if way == "letters" and "\t" in text:
        text = re.sub(r"^\t+|(?<=\t)\t+", "", re.sub(r"[;+](?=[^\t]*\t)", "\t", text))
        return re.findall(r"[^\t]+\t|[^\t]", text)
    return list(text)


def product(states: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """(..., inputs) times (inputs, outputs), as one product of two matrices: several times as fast as numpy's many."""
    return (states.reshape(-1, states.shape[-1]) @ weight).reshape(*states.shape[:-1], weight.shape[1])


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Over the last axis."""
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


# ---------------------------------------------------------------- the file


def read(path: str) -> tuple[dict, dict[str, np.ndarray]]:
    """The description and the arrays of a file, which was written for this version of the module.

    Raises:
        FileNotFoundError: there is no such file.
        PackError: the file cannot be used.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"path={path!r}: no such file; `hf-rnn export RUN --format numpy` writes {FILE}")
    try:
        with open(path, "rb") as stream, np.load(stream, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        about = json.loads(arrays.pop(ABOUT).tobytes().decode("utf-8"))
        version, shapes = about["format"], about["arrays"] if about["format"] == FORMAT else {}
        found = {name: [str(array.dtype), *array.shape] for name, array in arrays.items()}
        wrong = sorted(name for name in {*shapes, *found} if shapes.get(name) != found.get(name))
    except Exception as error:  # numpy, zipfile, zlib and json each raise classes of their own
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise PackError(
            f"path={path!r}: damaged, or not a file of the export ({reason}); export the model again"
        ) from error
    if version != FORMAT:
        raise PackError(f"path={path!r}: has format {version}, this module reads {FORMAT}; use the g2p.py beside it")
    if wrong:
        raise PackError(f"path={path!r}: the array {wrong[0]!r} is not the one described; export the model again")
    return about, arrays

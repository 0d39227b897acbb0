"""Translates with the files of `export_onnx`, using only onnxruntime and numpy: greedy search and beam search.

Both return the token ids of `generate()` of transformers with the same settings.
"""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from hf_rnn_seq2seq.export.numpy_runtime import log_softmax

ENCODER, DECODER, SETTINGS = "encoder.onnx", "decoder.onnx", "decoding.json"
# The score of an impossible hypothesis, as in transformers.
WORST = np.float32(-1e9)

Tensors = dict[str, np.ndarray]


class OnnxTranslator:
    """An exported model; `generate` reads and returns token ids.

    Args:
        folder: the output of `scripts/export_onnx.py`.
        providers: the execution providers of onnxruntime; default: the CPU.
    """

    def __init__(self, folder: str | os.PathLike[str], providers: tuple[str, ...] = ("CPUExecutionProvider",)) -> None:
        from onnxruntime import InferenceSession

        folder = Path(folder)
        missing = [name for name in (ENCODER, DECODER, SETTINGS) if not (folder / name).is_file()]
        if missing:
            raise FileNotFoundError(f"{folder}: has no {missing[0]}; name a folder that export_onnx wrote")
        self.settings = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
        self.encoder = InferenceSession(str(folder / ENCODER), providers=list(providers))
        self.decoder = InferenceSession(str(folder / DECODER), providers=list(providers))
        self.outputs = [output.name for output in self.decoder.get_outputs()]
        self.state_names = [name.removeprefix("next_") for name in self.outputs if name.startswith("next_")]
        self.input_names = {each.name for each in self.decoder.get_inputs()}

    def encode(self, input_ids: np.ndarray, attention_mask: np.ndarray) -> tuple[Tensors, Tensors]:
        """Sources (batch, source) -> the first state and the memory of the decoder."""
        inputs = {"input_ids": input_ids.astype(np.int64), "attention_mask": attention_mask.astype(np.int64)}
        memory = dict(
            zip([each.name for each in self.encoder.get_outputs()], self.encoder.run(None, inputs), strict=True)
        )
        state = {name: memory.pop(name) for name in self.state_names}
        return state, memory

    def step(self, words: np.ndarray, state: Tensors, memory: Tensors) -> tuple[np.ndarray, np.ndarray | None, Tensors]:
        """The last word of each row (rows,) -> logits (rows, vocab), weights (rows, heads, source), next state."""
        inputs = {"words": words.astype(np.int64), **state, **memory}
        inputs = {name: tensor for name, tensor in inputs.items() if name in self.input_names}
        outputs = dict(zip(self.outputs, self.decoder.run(None, inputs), strict=True))
        return outputs["logits"], outputs.get("weights"), {name: outputs[f"next_{name}"] for name in self.state_names}

    def generate(
        self,
        input_ids: np.ndarray,
        attention_mask: np.ndarray | None = None,
        *,
        num_beams: int | None = None,
        max_new_tokens: int | None = None,
        length_penalty: float | None = None,
        early_stopping: bool | str | None = None,
    ) -> np.ndarray:
        """Token ids (batch, target), start token first; settings default to those of the model.

        Raises:
            ValueError: a setting out of range, or an empty batch.
        """
        options: dict[str, Any] = {"num_beams": num_beams, "max_new_tokens": max_new_tokens}
        options |= {"length_penalty": length_penalty, "early_stopping": early_stopping}
        options = {name: self.settings[name] if value is None else value for name, value in options.items()}
        for name in ("num_beams", "max_new_tokens"):
            if options[name] < 1:
                raise ValueError(f"{name}={options[name]}: must be at least 1")
        if options["early_stopping"] not in (True, False, "never"):
            raise ValueError(f"early_stopping={options['early_stopping']!r}: must be true, false or 'never'")
        input_ids = np.asarray(input_ids)
        if 0 in input_ids.shape:
            raise ValueError(
                f"input_ids of shape {input_ids.shape}: a batch needs at least one row and one token; remove empty "
                "sources, their translation is empty"
            )
        if attention_mask is None:
            attention_mask = input_ids != self.settings["pad_token_id"]
        state, memory = self.encode(input_ids, np.asarray(attention_mask))
        if options["num_beams"] == 1:
            return self._greedy(len(input_ids), state, memory, options["max_new_tokens"])
        return self._beams(len(input_ids), state, memory, **options)

    def _greedy(self, batch: int, state: Tensors, memory: Tensors, limit: int) -> np.ndarray:
        settings, ends = self.settings, self.settings["eos_token_id"]
        fill = settings["pad_token_id"] if settings["pad_token_id"] is not None else ends[0] if ends else -1
        written = np.full((batch, 1), settings["decoder_start_token_id"], dtype=np.int64)
        open_rows = np.ones(batch, dtype=bool)
        for _ in range(limit):
            logits, _, state = self.step(written[:, -1], state, memory)
            words = np.where(open_rows, logits.argmax(-1), fill)
            written = np.concatenate([written, words[:, None]], 1)
            open_rows &= ~np.isin(words, ends)
            if not open_rows.any():
                break
        return written

    def _beams(
        self,
        batch: int,
        state: Tensors,
        memory: Tensors,
        num_beams: int,
        max_new_tokens: int,
        length_penalty: float,
        early_stopping: bool | str,
    ) -> np.ndarray:
        """Beam search as in transformers: it keeps twice as many candidates as beams, since some of them end."""
        ends = self.settings["eos_token_id"]
        # As transformers pads short sentences: it takes a pad token of id 0 for none.
        fill = (self.settings["pad_token_id"] or ends[0]) if ends else -1
        candidates = max(2, 1 + len(ends)) * num_beams
        state, memory = ({k: np.repeat(v, num_beams, 0) for k, v in part.items()} for part in (state, memory))
        shape = (batch, num_beams)
        running = np.full((*shape, max_new_tokens + 1), fill, dtype=np.int64)
        running[:, :, 0] = self.settings["decoder_start_token_id"]
        results = running.copy()
        # At first all beams of a sentence are equal: one counts.
        scores = np.where(np.arange(num_beams) == 0, np.float32(0), WORST)[None].repeat(batch, 0).astype(np.float32)
        result_scores = np.full(shape, WORST, dtype=np.float32)
        is_finished = np.zeros(shape, dtype=bool)
        can_improve = np.ones((batch, 1), dtype=bool)
        offset = np.arange(batch)[:, None] * num_beams
        for length in range(1, max_new_tokens + 1):
            logits, _, state = self.step(running[:, :, length - 1].reshape(-1), state, memory)
            vocab = logits.shape[-1]
            total = log_softmax(logits).reshape(*shape, vocab) + scores[:, :, None]
            best, index = top(total.reshape(batch, -1), candidates)
            beam, word = index // vocab, index % vocab
            sequences = np.take_along_axis(running, beam[:, :, None], 1)
            sequences[:, :, length] = word
            ended = np.isin(word, ends) | (length == max_new_tokens)

            # The beams that continue
            scores, chosen = top(best + ended * WORST, num_beams)
            running = np.take_along_axis(sequences, chosen[:, :, None], 1)
            rows = (np.take_along_axis(beam, chosen, 1) + offset).reshape(-1)
            state = {name: tensor[rows] for name, tensor in state.items()}

            # Hypotheses that end here count if they are among the first `num_beams` and can improve the result
            just_ended = ended & (np.arange(candidates) < num_beams)
            ended_scores = best / np.float32(length**length_penalty)
            full = is_finished.all(-1, keepdims=True) & (early_stopping is True)
            ended_scores = ended_scores + full * WORST + ~can_improve * WORST + ~just_ended * WORST
            result_scores, chosen = top(np.concatenate([result_scores, ended_scores], 1).astype(np.float32), num_beams)
            results = np.take_along_axis(np.concatenate([results, sequences], 1), chosen[:, :, None], 1)
            is_finished = np.take_along_axis(np.concatenate([is_finished, just_ended], 1), chosen, 1)

            # Whether a running beam can still become better than the worst finished hypothesis
            reach = max_new_tokens if early_stopping == "never" and length_penalty > 0 else length
            worst = np.where(is_finished, result_scores.min(1, keepdims=True), WORST)
            can_improve &= (scores[:, :1] / np.float32(reach**length_penalty) > worst).any(-1, keepdims=True)
            if not can_improve.any() or (is_finished.all() and early_stopping is True) or ended.all():
                break
        return _without_empty_columns(results[:, 0], ends)


def _without_empty_columns(sequences: np.ndarray, ends: list[int]) -> np.ndarray:
    """Columns up to the end of the longest sentence (batch, target)."""
    longest = 0
    for row in sequences:
        stops = np.nonzero(np.isin(row[1:], ends))[0]
        longest = max(longest, int(stops[0]) + 2 if len(stops) else len(row))
    return sequences[:, :longest]


def top(values: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The `count` largest values of each row (rows, values), in descending order, and their positions."""
    count = min(count, values.shape[1])
    part = np.argpartition(-values, count - 1, axis=1)[:, :count] if count < values.shape[1] else None
    candidates = values if part is None else np.take_along_axis(values, part, 1)
    order = np.argsort(-candidates, axis=1, kind="stable")
    index = order if part is None else np.take_along_axis(part, order, 1)
    return np.take_along_axis(values, index, 1), index


__all__ = ["DECODER", "ENCODER", "SETTINGS", "OnnxTranslator"]

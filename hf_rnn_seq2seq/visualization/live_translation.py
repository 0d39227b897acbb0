"""Translation as it is made: the words so far, and what each of them attends to, after every step.

Works with any sequence-to-sequence model of transformers: each step reads the whole prefix again, which costs little
for a sentence and needs nothing of the model's cache.
"""

import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList

from hf_rnn_seq2seq.errors import AttentionError, EvaluationError
from hf_rnn_seq2seq.generation.attention import stack_layer
from hf_rnn_seq2seq.generation.translate import encoded_sources
from hf_rnn_seq2seq.model.search_options import longest_output
from hf_rnn_seq2seq.visualization.beam_tree import BeamRecorder


@dataclass(frozen=True)
class Step:
    """A translation under way, or finished."""

    text: str
    token_ids: tuple[int, ...]  # without the start token
    source_ids: tuple[int, ...]
    attention: Tensor | None  # (target, source), averaged over heads; None where the model has none
    log_probability: float  # natural logarithm, summed over token_ids, at temperature 1
    finished: bool = False


def stream_translation(
    model: Any,
    tokenizer: Any,
    source: str,
    *,
    num_beams: int = 1,
    temperature: float = 0.0,
    max_new_tokens: int | None = None,
    seed: int | None = None,
) -> Iterator[Step]:
    """Yields a `Step` after each produced token; the last one is `finished`.

    Temperature 0 searches: greedily, or with `num_beams` beams, where the beam that leads is shown and another one may
    take its place. Above 0 each token is drawn, `num_beams` then has no part in it.

    Raises:
        EvaluationError: no text, or an option out of range.
    """
    limit = max_new_tokens or longest_output(model.generation_config) or 128
    if temperature < 0 or num_beams < 1 or limit < 1:
        raise EvaluationError(
            f"temperature={temperature}, num_beams={num_beams}, max_new_tokens={limit}: "
            "must be at least 0, 1 and 1 in this order"
        )
    (ids,) = encoded_sources(tokenizer, [source]).ids
    if not ids:
        raise EvaluationError("source: must hold text")
    reader = _Reader(model.eval(), tokenizer, ids)
    if num_beams > 1 and temperature == 0:
        yield from _beams(reader, num_beams, limit)
    else:
        yield from _one_by_one(reader, temperature, limit, seed)


class _Reader:
    """A model that has read one source, and is asked about prefixes of its translation."""

    def __init__(self, model: Any, tokenizer: Any, ids: list[int]) -> None:
        self.model, self.tokenizer, self.ids = model, tokenizer, tuple(ids)
        self.inputs = torch.tensor([ids], device=model.device)
        self.mask = torch.ones_like(self.inputs)
        self.start = model.generation_config.decoder_start_token_id
        self.start = model.config.decoder_start_token_id if self.start is None else self.start
        ends = model.generation_config.eos_token_id
        self.ends = {ends} if isinstance(ends, int) else set(ends or ())
        with torch.no_grad():
            self.encoded = model.get_encoder()(self.inputs, attention_mask=self.mask)

    @torch.no_grad()
    def read(self, prefix: list[int]) -> tuple[Tensor, Tensor | None]:
        """Log-probabilities (position, vocab) of what follows each token of start + prefix, and their attention."""
        target = torch.tensor([[self.start, *prefix]], device=self.model.device)
        output = self.model(
            encoder_outputs=self.encoded,
            attention_mask=self.mask,
            decoder_input_ids=target,
            output_attentions=True,
            use_cache=False,
        )
        try:
            weights = stack_layer(output.cross_attentions)[0].float().mean(0).cpu()
        except AttentionError:
            weights = None
        return output.logits[0].float().log_softmax(-1).cpu(), weights

    def step(self, prefix: list[int], finished: bool = False) -> Step:
        """The prefix as it is shown."""
        log_probabilities, weights = self.read(prefix[:-1])
        total = float(log_probabilities.gather(1, torch.tensor(prefix).unsqueeze(1)).sum())
        text = self.tokenizer.decode(prefix, skip_special_tokens=True)
        return Step(text, tuple(prefix), self.ids, weights, total, finished)


def _one_by_one(reader: _Reader, temperature: float, limit: int, seed: int | None) -> Iterator[Step]:
    generator = torch.Generator().manual_seed(seed) if seed is not None else None
    prefix: list[int] = []
    total, finished = 0.0, False
    while not finished:
        log_probabilities, weights = reader.read(prefix)
        last = log_probabilities[-1]
        if temperature > 0:
            token = int(torch.multinomial((last / temperature).softmax(-1), 1, generator=generator))
        else:
            token = int(last.argmax())
        prefix.append(token)
        total += float(last[token])
        finished = token in reader.ends or len(prefix) == limit
        text = reader.tokenizer.decode(prefix, skip_special_tokens=True)
        yield Step(text, tuple(prefix), reader.ids, weights, total, finished)


class _Left(StoppingCriteria):
    """Ends a search whose reader has left."""

    def __init__(self) -> None:
        self.left = threading.Event()

    def __call__(self, input_ids: torch.LongTensor, scores: Any, **_: Any) -> torch.BoolTensor:
        return torch.full((len(input_ids),), self.left.is_set(), dtype=torch.bool, device=input_ids.device)


class _Announcer(BeamRecorder):
    """Hands each step's leading beam to the queue, and keeps nothing."""

    def __init__(self, steps: "queue.Queue[Any]") -> None:
        super().__init__()
        self.queue = steps

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        self.queue.put(input_ids[0].tolist())
        return scores


def _beams(reader: _Reader, num_beams: int, limit: int) -> Iterator[Step]:
    """`generate()` in a thread of its own, the beam that leads after each of its steps, then its result."""
    steps: queue.Queue[Any] = queue.Queue()
    left = _Left()

    def search() -> None:
        try:
            found = reader.model.generate(
                input_ids=reader.inputs,
                attention_mask=reader.mask,
                num_beams=num_beams,
                max_new_tokens=limit,
                do_sample=False,
                logits_processor=[_Announcer(steps)],
                stopping_criteria=StoppingCriteriaList([left]),
            )
            steps.put(("found", found[0].tolist()))
        except Exception as error:  # raised again where the steps are read
            steps.put(("failed", error))

    thread = threading.Thread(target=search, daemon=True)
    thread.start()
    try:
        while True:
            row = steps.get()
            if isinstance(row, tuple):
                break
            if len(row) > 1:
                yield reader.step(row[1:])
    finally:
        left.left.set()
        thread.join()
    kind, result = row
    if kind == "failed":
        raise result
    ids = result[1:]
    stop = next((place + 1 for place, token in enumerate(ids) if token in reader.ends), len(ids))
    yield reader.step(ids[:stop], finished=True)

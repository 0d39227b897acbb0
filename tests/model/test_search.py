"""The search finds what `generate()` finds, for every configuration, and its beams share one source."""

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

from hf_rnn_seq2seq.model.fused_step import FusedStep, build_step, fused_refusal
from hf_rnn_seq2seq.model.search_step import GeneralStep
from tests.helpers.model_cases import CASES, TWO_LAYERS
from tests.helpers.models import START, mask, pad, tiny_model

FUSED = {
    f"{cell}, {score}, {'' if feeding else 'no '}feeding": {
        "cell_type": cell,
        "attention_type": score,
        "input_feeding": feeding,
    }
    for cell in ("lstm", "gru")
    for score in ("general", "dot", "scaled_dot")
    for feeding in (True, False)
}
FUSED["relu word vectors"] = {"embedding_activation": "relu"}
FUSED["narrow readout"] = {"readout_size": 3}
for cell in ("lstm", "gru"):
    FUSED[f"copying, {cell}"] = {"copy_mechanism": True, "cell_type": cell, "input_feeding": cell == "lstm"}
FUSED["copying, relu word vectors"] = {"copy_mechanism": True, "embedding_activation": "relu"}
FUSED["zoneout, lstm"] = {"zoneout": 0.2, "zoneout_cell": 0.5}
FUSED["zoneout, gru"] = {"zoneout": 0.3, "cell_type": "gru"}
SOURCES = [[5, 7, 3, 2], [4, 6, 8, 9, 12, 2], [3, 2], [11, 10, 4, 2], [9, 9, 9, 5, 3, 2], [6, 2], [12, 5, 2], [8, 4, 2]]


def wide_model(end: float = 1.5, **options: Any) -> Any:
    """Float32, a vocabulary wide enough for beams, and `end` added to the logit of the end of sentence."""
    model = tiny_model(dtype=torch.float32, vocab_size=40, source_vocab_size=13, **options)
    with torch.no_grad():
        if model.lm_head.bias is not None:
            model.lm_head.bias[2] += end
    return model


def inputs(model: Any, sources: list[list[int]] = SOURCES) -> dict[str, Tensor]:
    rows = [[word % model.config.source_vocab_size for word in row] for row in sources]
    return {"input_ids": pad(rows), "attention_mask": mask(rows)}


def walk(step: GeneralStep, batch: dict[str, Tensor], targets: Tensor, beams: int) -> tuple[Tensor, Tensor | None]:
    """Logits and attention of forced targets (rows, target), position by position."""
    state = step.start(step.read(**batch), beams)
    logits, weights = [], []
    for column in targets.unbind(1):
        readout, shown, state = step(column, state, step.has_weights)
        logits.append(step.scores(readout))
        weights.append(shown)
    return torch.stack(logits, 1), torch.stack(weights, 1) if step.has_weights else None


@pytest.mark.thinned(2)
@pytest.mark.parametrize("case", [*CASES, *(f"fused: {name}" for name in FUSED)])
def test_step_equals_the_model(case: str) -> None:
    """Every configuration, with three different beams a sentence that share one source."""
    options = FUSED[case.removeprefix("fused: ")] if case.startswith("fused: ") else TWO_LAYERS | CASES[case]
    model, beams = tiny_model(**options), 3
    step = build_step(model)
    if case.startswith("fused: "):
        assert type(step) is FusedStep
    batch = inputs(model)
    torch.manual_seed(0)
    targets = torch.randint(3, 11, (len(SOURCES) * beams, 4))
    targets[:, 0] = START
    with torch.no_grad():
        logits, weights = walk(step, batch, targets, beams)
        wide = {name: tensor.repeat_interleave(beams, 0) for name, tensor in batch.items()}
        expected = model(**wide, decoder_input_ids=targets, output_attentions=True)
    torch.testing.assert_close(logits, expected.logits.float())
    if weights is not None:
        torch.testing.assert_close(weights, expected.cross_attentions[0].mean(1))


@pytest.mark.parametrize("early_stopping", [False, True, "never"])
@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 2.0, -0.5])
@pytest.mark.parametrize("options", [{}, {"cell_type": "gru", "attention_type": "additive", "decoder_layers": 2}])
def test_beam_search_equals_generate(options: dict, length_penalty: float, early_stopping: bool | str) -> None:
    model = wide_model(**options)
    for beams, returned in ((2, 1), (5, 5)):
        call = {"num_beams": beams, "num_return_sequences": returned, "max_new_tokens": 9}
        call |= {"early_stopping": early_stopping, "length_penalty": length_penalty}
        expected = model.generate(**inputs(model), **call, return_dict_in_generate=True, output_scores=True)
        found = model.search(**inputs(model), **call, return_dict_in_generate=True)
        assert found.sequences.tolist() == expected.sequences.tolist()
        torch.testing.assert_close(found.sequences_scores, expected.sequences_scores)


def test_the_first_position_has_one_beam_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[int] = []
    read = FusedStep.__call__

    def watched(self: FusedStep, tokens: Tensor, *others: Any) -> Any:
        rows.append(len(tokens))
        return read(self, tokens, *others)

    monkeypatch.setattr(FusedStep, "__call__", watched)
    model = wide_model()
    model.search(**inputs(model), num_beams=4, max_new_tokens=2, eos_token_id=None)
    assert rows == [len(SOURCES), 4 * len(SOURCES)]


def test_threads_share_one_step(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    make = FusedStep.__init__

    def slow(self: FusedStep, *arguments: Any) -> None:
        made.append(1)
        time.sleep(0.1)
        make(self, *arguments)

    monkeypatch.setattr(FusedStep, "__init__", slow)
    model = wide_model()
    with ThreadPoolExecutor(4) as pool:
        steps = list(pool.map(lambda _: build_step(model), range(8)))
    assert len(made) == 1 and all(step is steps[0] for step in steps)


@pytest.mark.parametrize("name", FUSED)
def test_greedy_search_equals_generate(name: str) -> None:
    model = wide_model(end=-10.0, **FUSED[name])
    assert fused_refusal(model) is None
    free = model.generate(**inputs(model), max_new_tokens=12)
    # A random model seldom ends a sentence: what few rows say is made an end.
    counts = [(len((free == word).any(1).nonzero()), word) for word in free[:, 1:].unique().tolist()]
    ends = [2, *(word for rows, word in sorted(counts) if rows <= 3)]
    for limit in (1, 3, 12):
        call = {"max_new_tokens": limit, "eos_token_id": ends}
        expected = model.generate(**inputs(model), **call)
        assert model.search(**inputs(model), **call).tolist() == expected.tolist()

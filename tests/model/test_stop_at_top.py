"""`stop_at_top` against a slow restatement of OpenNMT-py's rule 3.5 (`BeamSearchBase.beams_non_finished`)."""

import random
from typing import Any

import pytest
import torch

from tests.helpers.decoding import inputs
from tests.helpers.models import END, START, tiny_model

LIMIT, BEAMS = 8, 4
SOURCES = [random.Random(number).choices(range(4, 9), k=1 + number % 5) for number in range(12)]


def model() -> Any:
    model = tiny_model(deviation=1.0).requires_grad_(False)
    model.lm_head.bias[END] += 2.0
    return model


def slowly(model: Any, source: list[int], returned: int, power: float) -> list[tuple[float, tuple[int, ...]]]:
    """(score, words) of the hypotheses returned for one sentence; no tensors of beams, no cache."""
    running: list[tuple[float, tuple[int, ...]]] = [(0.0, ())]
    finished: list[tuple[float, tuple[int, ...]]] = []
    for length in range(1, LIMIT + 1):
        grown = []
        for total, target in running:
            words = torch.tensor([[START, *target]])
            actual = model(input_ids=torch.tensor([source]), decoder_input_ids=words, use_cache=False)
            scores = actual.logits[0, -1].log_softmax(-1).tolist()
            grown += [(total + score, (*target, word)) for word, score in enumerate(scores)]
        grown = sorted(grown, reverse=True)
        ended = [one for one in grown[:BEAMS] if one[1][-1] == END or length == LIMIT]
        finished = sorted(finished + [(total / length**power, words) for total, words in ended], reverse=True)
        if grown[0] in ended and len(finished) >= returned:
            break
        running = [one for one in grown if one[1][-1] != END][:BEAMS]
    return finished[:returned]


@pytest.mark.parametrize(("returned", "power"), [(1, 1.0), (3, 1.0), (1, 0.0)])
def test_a_sentence_ends_when_its_likeliest_continuation_does(returned: int, power: float) -> None:
    own = model()
    options = {"num_beams": BEAMS, "num_return_sequences": returned, "length_penalty": power, "max_new_tokens": LIMIT}
    found = own.search(**inputs(SOURCES), **options, stop_at_top=True, return_dict_in_generate=True)
    expected = [one for source in SOURCES for one in slowly(own, source, returned, power)]
    pairs = zip(found.sequences[:, 1:].tolist(), found.lengths.tolist(), strict=True)
    assert [tuple(row[:length]) for row, length in pairs] == [words for _, words in expected]
    torch.testing.assert_close(found.sequences_scores.tolist(), [score for score, _ in expected], atol=1e-5, rtol=0)
    usual = own.search(**inputs(SOURCES), **options, return_dict_in_generate=True)
    assert power == 0 or not torch.equal(usual.sequences_scores, found.sequences_scores)  # the rules differ here

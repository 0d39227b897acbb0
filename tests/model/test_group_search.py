"""Diverse beam search compared with a slow one, by `search` and by the checkpoint's `custom_generate`."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers.dynamic_module_utils
from torch import Tensor

from hf_rnn_seq2seq import RnnSeq2SeqForConditionalGeneration, SearchError
from tests.helpers.decoding import inputs
from tests.helpers.models import END, SOURCES, START, tiny_model

LIMIT = 6
CALLS: list[dict[str, Any]] = [
    {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.7},
    {"num_beams": 6, "num_beam_groups": 3, "diversity_penalty": 2.0, "length_penalty": 0.5},
    {"num_beams": 3, "num_beam_groups": 3, "diversity_penalty": 0.4},
]


@pytest.fixture(scope="module")
def model() -> RnnSeq2SeqForConditionalGeneration:
    model = tiny_model(deviation=1.0).requires_grad_(False)
    model.lm_head.bias[END] += 1.0
    return model


def next_words(model: Any, source: list[int], target: tuple[int, ...]) -> Tensor:
    actual = model(
        input_ids=torch.tensor([source]), decoder_input_ids=torch.tensor([[START, *target]]), use_cache=False
    )
    return actual.logits[0, -1].log_softmax(-1)


def slowly(model: Any, source: list[int], call: dict[str, Any]) -> list[tuple[float, float, tuple[int, ...]]]:
    """(score, log-probability, words) of every hypothesis kept, best first; no tensors of beams, no cache."""
    count, power = call["num_beam_groups"], call.get("length_penalty", 1.0)
    beams = call["num_beams"] // count
    running: list[list] = [[(0.0, 0.0, ())] for _ in range(count)]
    finished: list[list] = [[] for _ in range(count)]
    done = [False] * count
    for length in range(1, LIMIT + 1):
        chosen: Counter[int] = Counter()
        for group in range(count):
            if done[group]:
                continue
            grown = []
            for total, true, target in running[group]:
                for word, score in enumerate(next_words(model, source, target).tolist()):
                    cost = call["diversity_penalty"] * chosen[word]
                    grown.append((total + score - cost, true + score, (*target, word)))
            best = sorted(grown, reverse=True)[: 2 * beams]
            ended = [one for one in best[:beams] if one[2][-1] == END or length == LIMIT]
            finished[group] += [(total / length**power, true, target) for total, true, target in ended]
            finished[group] = sorted(finished[group], reverse=True)[:beams]
            running[group] = [one for one in best if one[2][-1] != END][:beams]
            chosen.update(one[2][-1] for one in running[group])
            if len(finished[group]) == beams:
                done[group] = running[group][0][0] / length**power <= finished[group][-1][0]
    return sorted((one for group in finished for one in group), reverse=True)


@pytest.mark.parametrize("call", CALLS, ids=lambda call: f"{call['num_beams']} in {call['num_beam_groups']}")
def test_groups_find_what_a_slow_search_finds(model: Any, call: dict[str, Any]) -> None:
    found = model.search(
        **inputs(SOURCES), **call, num_return_sequences=call["num_beams"], max_new_tokens=LIMIT, return_alignments=True
    )
    rows = found.sequences[:, 1:].tolist()
    for number, source in enumerate(SOURCES):
        expected = slowly(model, source, call)
        own = slice(number * call["num_beams"], (number + 1) * call["num_beams"])
        lengths = found.lengths[own].tolist()
        assert [tuple(row[:length]) for row, length in zip(rows[own], lengths, strict=True)] == [w[2] for w in expected]
        torch.testing.assert_close(found.sequences_scores[own].tolist(), [w[0] for w in expected], atol=1e-5, rtol=0)
        torch.testing.assert_close(found.log_probabilities[own].tolist(), [w[1] for w in expected], atol=1e-5, rtol=0)
    first, length = found.sequences[:1, 1:], int(found.lengths[0])
    actual = model(input_ids=torch.tensor(SOURCES[:1]), labels=first[:, :length], output_attentions=True)
    torch.testing.assert_close(
        found.alignments[0, :length, : len(SOURCES[0])].double(), actual.cross_attentions[0][0].mean(0)
    )


def test_groups_produce_different_hypotheses(model: Any) -> None:
    call = {"num_beams": 3, "num_beam_groups": 3, "num_return_sequences": 3, "max_new_tokens": LIMIT}
    alike = model.search(**inputs(SOURCES), **call).unflatten(0, (-1, 3))
    assert (alike == alike[:, :1]).all(), "without a penalty every group finds the same"
    apart = model.search(**inputs(SOURCES), **call, diversity_penalty=5.0).unflatten(0, (-1, 3))
    assert all(len(set(map(tuple, sentence))) == 3 for sentence in apart.tolist())


def test_group_beam_search_is_the_checkpoints_own_strategy(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers moved the mode to the Hub; generate() runs it from a folder of the checkpoint."""
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    model.save_pretrained(tmp_path / "checkpoint")
    found = model.generate(
        **inputs(SOURCES),
        **CALLS[0],
        max_new_tokens=LIMIT,
        custom_generate=str(tmp_path / "checkpoint"),
        trust_remote_code=True,
    )
    assert torch.equal(found, model.search(**inputs(SOURCES), **CALLS[0], max_new_tokens=LIMIT))
    gnmt = {"num_beams": 4, "gnmt_alpha": 0.6, "coverage_penalty": 0.2, "max_new_tokens": LIMIT}
    folder = {"custom_generate": str(tmp_path / "checkpoint"), "trust_remote_code": True}
    assert torch.equal(model.generate(**inputs(SOURCES), **gnmt, **folder), model.search(**inputs(SOURCES), **gnmt))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_beam_groups": 3}, "num_beam_groups=3: must divide num_beams=4"),
        ({"num_beam_groups": 2, "diversity_penalty": -1.0}, "diversity_penalty=-1.0: must be 0 or more"),
        ({"diversity_penalty": 1.0}, "needs num_beam_groups of at least 2"),
        (
            {"num_beam_groups": 2, "coverage_penalty": 0.5},
            "=2: cannot be combined with coverage_penalty",
        ),
        (
            {"num_beam_groups": 2, "must_contain": [[[5]]] * 3},
            "=2: cannot be combined with must_contain",
        ),
    ],
)
def test_invalid_groups_are_refused(model: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(SearchError, match=message):
        model.search(**inputs(SOURCES), num_beams=4, max_new_tokens=LIMIT, **options)

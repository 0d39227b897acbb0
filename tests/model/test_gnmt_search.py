"""The scores of GNMT (Wu 2016, equation 14), and beams for all hypotheses, compared with an enumeration."""

import pytest
import torch

from tests.helpers.decoding import exhaustive, gnmt_score
from tests.helpers.models import tiny_model

LIMIT, VOCABULARY = 4, 5
SOURCE = [3, 4, 3, 2]
# Every prefix that does not end, and every continuation of one, fits in so many beams.
WIDE = (VOCABULARY - 1) ** (LIMIT - 1) * 2

KINDS = {
    "fused": {},
    "additive": {"attention_type": "additive", "attention_order": "before_cell", "cell_type": "gru"},
    "two heads": {"attention_type": "multi_head", "num_attention_heads": 2},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("alpha", "beta"), [(0.0, 0.0), (0.6, 0.0), (1.0, 0.2), (0.2, 0.8)])
def test_best_hypotheses_are_those_of_an_enumeration(kind: str, alpha: float, beta: float) -> None:
    model = tiny_model(vocab_size=VOCABULARY, source_vocab_size=VOCABULARY, **KINDS[kind]).requires_grad_(False)
    ranked = sorted(
        ((gnmt_score(total, shown, alpha, beta), hypothesis) for hypothesis, total, shown in every(model)), reverse=True
    )
    returned = 6
    found = search(model, num_return_sequences=returned, gnmt_alpha=alpha, coverage_penalty=beta)
    hypotheses = [
        tuple(row[:length]) for row, length in zip(found.sequences[:, 1:].tolist(), found.lengths, strict=True)
    ]
    assert hypotheses == [hypothesis for _, hypothesis in ranked[:returned]]
    torch.testing.assert_close(
        found.sequences_scores.tolist(), [score for score, _ in ranked[:returned]], atol=1e-4, rtol=0
    )


@pytest.mark.parametrize("length_penalty", [0.0, 1.0, -1.0])
def test_a_wide_beam_is_exhaustive_under_the_length_penalty_of_transformers(length_penalty: float) -> None:
    model = tiny_model(vocab_size=VOCABULARY, source_vocab_size=VOCABULARY).requires_grad_(False)
    ranked = sorted(((total / len(h) ** length_penalty, h) for h, total, _ in every(model)), reverse=True)
    found = search(model, num_return_sequences=4, length_penalty=length_penalty)
    hypotheses = [
        tuple(row[:length]) for row, length in zip(found.sequences[:, 1:].tolist(), found.lengths, strict=True)
    ]
    assert hypotheses == [hypothesis for _, hypothesis in ranked[:4]]
    torch.testing.assert_close(found.sequences_scores.tolist(), [score for score, _ in ranked[:4]], atol=1e-4, rtol=0)


def every(model):
    return exhaustive(model, SOURCE, LIMIT)


def search(model, **options):
    """The beam search itself: `model.search` leaves a vocabulary smaller than the beam to generate()."""
    from hf_rnn_seq2seq.model.beam_search import beam_search
    from hf_rnn_seq2seq.model.fused_step import build_step
    from hf_rnn_seq2seq.model.search import SearchOutput
    from hf_rnn_seq2seq.model.search_options import NO_LIMITS, SearchOptions

    count = options.pop("num_return_sequences")
    fixed = {"max_new_tokens": LIMIT, "eos_token_ids": (2,), "pad_token_id": 0, "early_stopping": "never"}
    resolved = SearchOptions(num_beams=WIDE, num_return_sequences=count, **fixed, **options)
    step = build_step(model)
    source = step.read(torch.tensor([SOURCE]))
    start = torch.ones(WIDE, dtype=torch.long)
    mask = step.source_mask(source)
    found = beam_search(step, step.start(source, WIDE), start, resolved, NO_LIMITS, mask)
    sequences = torch.cat([start[:count, None], found.tokens], 1)
    return SearchOutput(sequences, found.scores, found.log_probabilities, found.lengths)

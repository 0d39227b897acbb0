"""The states of a frozen encoder in the place of the words: each sentence is read once."""

import torch
from torch import Tensor

from hf_rnn_seq2seq.data import frozen_states
from hf_rnn_seq2seq.data.batching import Collator
from hf_rnn_seq2seq.data.frozen_states import FrozenStates
from tests.helpers.models import SMALL_BERT, SOURCES, TARGETS, tiny_model

BERT = {"model_type": "bert", **SMALL_BERT}


def test_a_batch_of_states_has_the_loss_of_the_words(monkeypatch) -> None:
    model = tiny_model(encoder=BERT, freeze_encoder=True, dtype=torch.float32)
    foreign, read = model.get_encoder().foreign, []

    def encode(ids: Tensor, mask: Tensor) -> Tensor:
        read.extend(row[allowed].tolist() for row, allowed in zip(ids, mask, strict=True))
        return foreign(ids, mask)

    rows = {"input_ids": SOURCES, "labels": TARGETS}
    words, states = Collator(0), FrozenStates(Collator(0), encode)
    wanted = model(**words(rows)).loss
    states.read(SOURCES[:2])
    for _ in range(2):
        batch = states(rows)
        assert "input_ids" not in batch and batch["inputs_embeds"].shape == (*batch["attention_mask"].shape, 4)
        torch.testing.assert_close(model(**batch).loss, wanted, rtol=1e-3, atol=1e-3)
    assert read == sorted(SOURCES[:2], key=len) + SOURCES[2:]
    alone = states({"input_ids": SOURCES[:1], "labels": TARGETS[:1]})["inputs_embeds"]
    assert torch.equal(alone, batch["inputs_embeds"][:1, : alone.shape[1]])
    monkeypatch.setattr(frozen_states, "KEPT_BYTES", states.bytes)
    more = {"input_ids": [[7, 7, 2]], "labels": TARGETS[:1]}
    assert torch.equal(states(more)["inputs_embeds"], states(more)["inputs_embeds"])
    assert len(read) == len(SOURCES) + 2 and read[-2:] == [[7, 7, 2]] * 2
    # Where there is no room for a sentence, there is none for those that are no shorter.
    states.read([[7, 7, number, 2] for number in range(3, 9)], batch_size=2)
    assert len(read) == len(SOURCES) + 4

"""The pointer-generator: its loss, its limits, the source of its source words, and the words that only it can produce.

test_model.py compares its probabilities and gradients with the paper's equations, and test_search.py the steps of the
searches with the model.
"""

import random
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutput

from hf_rnn_seq2seq import RnnSeq2SeqConfig, RnnSeq2SeqForConditionalGeneration
from hf_rnn_seq2seq.model.copying import Copying, copy_loss, mixture
from hf_rnn_seq2seq.model.fused_step import FusedStep, build_step
from hf_rnn_seq2seq.model.scheduled_sampling import mix_inputs
from tests.helpers.decoding import inputs as sources_of
from tests.helpers.decoding import padded, strip
from tests.helpers.models import END, PAD, SOURCES, START, batch, decoder_inputs, pad, tiny_model
from tests.model.test_model import RAGGED, gradients, nats
from tests.model.test_search import inputs, wide_model

Model = RnnSeq2SeqForConditionalGeneration
# The two steps of the search: the fused one, and that of any model.
KINDS: dict[str, dict[str, Any]] = {
    "fused": {"copy_mechanism": True},
    "general": {"copy_mechanism": True, "attention_type": "additive", "attention_order": "before_cell"},
}
# See's whole model: what was read is carried from step to step, so each beam has a source of its own.
COVERED = {"copy_mechanism": True, "attention_type": "additive", "coverage": "sum"}


def sources() -> dict[str, Tensor]:
    given = batch()
    return {name: given[name] for name in ("input_ids", "attention_mask")}


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_loss(smoothing: float) -> None:
    """The cross entropy of the paper's probabilities and its gradient, in one chunk and in chunks of two positions."""
    model = tiny_model(copy_mechanism=True, label_smoothing=smoothing).train()
    expected = nats(model, smoothing)
    known = gradients(model, expected)
    words = sum(map(len, RAGGED))
    actual = model(**batch(), num_items_in_batch=1).loss
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(gradients(model, actual), known)
    torch.testing.assert_close(model(**batch()).loss, expected / words)
    sizes: list[int] = []
    model.lm_head.register_forward_hook(lambda _, given, __: sizes.append(len(given[0])))
    read = model.model(**sources(), decoder_input_ids=pad(decoder_inputs(), PAD))
    chunk = 2 * 11 * 8
    actual = copy_loss(read.last_hidden_state, model.lm_head, read.copying, batch()["labels"], smoothing, chunk)
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(gradients(model, actual), known)
    assert max(sizes) == 2 and sum(sizes) == 2 * words  # once for the value, once for the gradient


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("size", [1.0, 1e4])
def test_nothing_overflows(size: float, smoothing: float) -> None:
    """In float32: large gates and logits, weights of zero, labels that no source contains, rows without a source."""
    draw = torch.Generator().manual_seed(0)
    head = torch.nn.Linear(3, 7)
    readout, gate = (size * torch.randn(*shape, generator=draw) for shape in ((2, 4, 3), (2, 4)))
    weights = torch.tensor([[[1.0, 0.0, 0.0]] * 4, [[0.0] * 3] * 4]).requires_grad_()
    readout.requires_grad_()
    gate.requires_grad_()
    copying = Copying(gate, weights, torch.tensor([[5, 5, 2], [3, 4, 2]]))
    labels = torch.tensor([[5, 6, 2, -100], [3, 4, 0, 2]])
    loss = copy_loss(readout, head, copying, labels, smoothing, 2**20)
    loss.backward()
    assert loss.isfinite()
    assert all(tensor.grad.isfinite().all() for tensor in (readout, gate, weights, *head.parameters()))
    shares = mixture(head(readout), copying)
    torch.testing.assert_close(shares.exp().sum(-1), torch.ones(2, 4))
    # A row without a source generates.
    torch.testing.assert_close(shares[1], head(readout)[1].log_softmax(-1))
    flat = torch.nn.functional.cross_entropy(
        shares.flatten(0, 1), labels.flatten(), reduction="sum", label_smoothing=smoothing
    )
    torch.testing.assert_close(loss, flat)


def test_only_source_words_are_copied() -> None:
    """With p_gen = 0: words of the source, including its end mark, and never padding."""
    model = tiny_model(copy_mechanism=True)
    with torch.no_grad():
        model.model.decoder.copy_gate.project.bias -= 1000
        shares = model(**sources(), decoder_input_ids=torch.full((3, 2), START)).logits.exp()
    for row, source in enumerate(SOURCES):
        copied = torch.zeros(11, dtype=torch.bool)
        copied[source] = True
        assert (shares[row, :, copied] > 0).all() and not (shares[row][:, ~copied] > 1e-300).any()


@pytest.mark.parametrize("options", [*KINDS.values(), {"copy_mechanism": True, "input_feeding": False}], ids=str)
def test_sixteen_bits(options: dict[str, Any]) -> None:
    """Under autocast the mixture is computed in float32 of 16-bit products; the loss is close, its gradient finite."""
    model = tiny_model(dtype=torch.float32, label_smoothing=0.1, **options).train()
    exact = model(**batch()).loss
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = model(**batch(), skip_logits=False)
    assert actual.loss.dtype == actual.logits.dtype == torch.float32
    torch.testing.assert_close(actual.loss, exact, rtol=0.03, atol=0)
    torch.testing.assert_close(actual.logits.exp().sum(-1), torch.ones(3, 5))
    actual.loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


# ------------------------------------------------------------------------------------------------ decoding


@pytest.mark.parametrize("kind", [*KINDS, "covered"])
def test_search_equals_generate(kind: str) -> None:
    """Greedy and beam search, with and without cache; and `search_path` names the step that runs."""
    model = wide_model(**(KINDS | {"covered": COVERED})[kind])
    assert (type(build_step(model)) is FusedStep) == (kind == "fused")
    for beams in (1, 4):
        call = {"num_beams": beams, "num_return_sequences": beams, "max_new_tokens": 8}
        expected = model.generate(**inputs(model), **call)
        assert model.generate(**inputs(model), **call, use_cache=False).tolist() == expected.tolist()
        assert model.search(**inputs(model), **call).tolist() == expected.tolist()
        assert model.search(**inputs(model), **call, rows_per_batch=3).tolist() == expected.tolist()


def test_assisted_decoding_equals_greedy() -> None:
    """Several words are read in one pass, and rejected ones are removed from the cache."""
    model = wide_model(copy_mechanism=True)
    given = {name: tensor[4:5] for name, tensor in inputs(model).items()}
    expected = model.generate(**given, max_new_tokens=10)
    assert model.generate(**given, max_new_tokens=10, prompt_lookup_num_tokens=3).tolist() == expected.tolist()


def test_encoder_outputs_carry_the_source_ids() -> None:
    """As a dictionary and a tuple; those of other encoders also need `input_ids`, which `generate()` does not pass."""
    model = wide_model(copy_mechanism=True, bridge="mean")
    given, call = inputs(model), {"num_beams": 3, "max_new_tokens": 6}
    expected, read = model.generate(**given, **call), model.get_encoder()(**given)
    rest = {"attention_mask": given["attention_mask"]}
    assert model.generate(encoder_outputs=read, **rest, **call).tolist() == expected.tolist()
    assert model.search(encoder_outputs=read, **rest, **call).tolist() == expected.tolist()
    words = torch.full((len(given["input_ids"]), 1), START)
    logits = model(**given, decoder_input_ids=words).logits
    actual = model(encoder_outputs=read.to_tuple(), **rest, decoder_input_ids=words).logits
    torch.testing.assert_close(actual, logits)
    bare = BaseModelOutput(read.last_hidden_state)
    assert model(encoder_outputs=bare, **given, decoder_input_ids=words).logits.isfinite().all()
    vectors = model.get_encoder().embed_tokens(given["input_ids"])
    for unknown in ({"encoder_outputs": bare}, {"inputs_embeds": vectors}):
        for decode in (model.generate, model.search):
            with pytest.raises(ValueError, match="^copy_mechanism=True: copying needs the words of the source"):
                decode(**unknown, **rest, **call)
    with pytest.raises(ValueError, match=r"^source ids of shape \(8, 3\): must be \(batch, source\) = \(8, 6\)"):
        model(encoder_outputs=bare, **rest, input_ids=given["input_ids"][:, :3], decoder_input_ids=words)


@pytest.mark.parametrize("kind", KINDS)
def test_ensemble(kind: str) -> None:
    """The log-probabilities of a member that copies and of one that does not are averaged."""
    plain = {"share_encoder_decoder_embeddings": True, "output_bias": False, "deviation": 0.3}
    members = [wide_model(**KINDS[kind], seed=3), wide_model(**plain, seed=4)]
    with torch.no_grad():
        members[0].model.decoder.copy_gate.project.bias -= 5
    given = inputs(members[0])
    words = torch.full((len(given["input_ids"]), 1), START)
    for _ in range(4):
        actual = sum(member(**given, decoder_input_ids=words).logits.log_softmax(-1)[:, -1] for member in members)
        words = torch.cat([words, actual.argmax(-1, keepdim=True)], 1)
    found = members[0].search(**given, ensemble=[members[1]], max_new_tokens=4, eos_token_id=None)
    assert found.tolist() == words.tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_shortlist_and_narrow_weights(kind: str) -> None:
    """The mixture over a shortlist is that of its words; weights of 8 and 16 bits change it little."""
    model = wide_model(**KINDS[kind])
    given, allowed = inputs(model), [2, 5, 7, 9, 11, 20, 30]
    others = [word for word in range(40) if word not in allowed]
    for beams in (1, 3):
        expected = model.generate(**given, num_beams=beams, max_new_tokens=5, suppress_tokens=others)
        if beams == 1:  # with beams the search normalizes over the shortlist, and transformers over all words
            assert model.search(**given, max_new_tokens=5, shortlist=allowed).tolist() == expected.tolist()
        found = model.search(**given, num_beams=beams, max_new_tokens=5, shortlist=allowed)
        assert set(found[:, 1:].flatten().tolist()) <= {*allowed, PAD}
    shares = {}
    for kind_ in ("float32", "bfloat16", "int8"):
        step = build_step(model, kind_)
        state = step.start(step.read(**given), 1)
        shares[kind_] = step.scores(step(torch.full((8,), START), state).readout).exp()
        torch.testing.assert_close(shares[kind_].sum(-1), torch.ones(8))
    for narrow in ("bfloat16", "int8"):
        torch.testing.assert_close(shares[narrow], shares["float32"], rtol=0, atol=0.05)


# ------------------------------------------------------------------------------------------------ around it


def test_scheduled_sampling_reads_copied_words() -> None:
    model = wide_model(copy_mechanism=True, seed=2)
    read = model.get_encoder()(**inputs(model))
    expected = model.search(**inputs(model), max_new_tokens=4, eos_token_id=None)
    own = torch.zeros_like(expected, dtype=torch.bool)
    own[:, 0] = True
    assert mix_inputs(model, torch.full_like(expected, START), own, None, read).tolist() == expected.tolist()


def test_both_vocabularies_grow_together() -> None:
    model = tiny_model(copy_mechanism=True)
    model.resize_token_embeddings(14)
    assert (model.config.vocab_size, model.config.source_vocab_size) == (14, 14)
    actual = model(input_ids=torch.tensor([[13, 12, END]]), decoder_input_ids=torch.tensor([[START, 13]]))
    torch.testing.assert_close(actual.logits.exp().sum(-1), torch.ones(1, 2, dtype=torch.float64))
    with pytest.raises(ValueError, match="^copy_mechanism=True: call resize_token_embeddings"):
        model.resize_source_embeddings(15)


WORDS, KNOWN = 64, 44  # ids 4 to 43 stand in the training sentences, the others never


def repeated(copy_mechanism: bool) -> tuple[int, int]:
    """Of 100 sentences of known words, and of 100 of words never seen, how many are repeated after 60 updates."""
    torch.manual_seed(0)
    draw = random.Random(0)
    config = RnnSeq2SeqConfig(
        vocab_size=WORDS,
        embedding_size=32,
        hidden_size=48,
        cell_type="gru",
        attention_type="additive",
        attention_order="before_cell",
        copy_mechanism=copy_mechanism,
    )
    model = Model(config).train()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2, fused=True)

    def sentences(count: int, first: int, past: int) -> list[list[int]]:
        return [[draw.randrange(first, past) for _ in range(draw.randint(2, 6))] + [END] for _ in range(count)]

    for _ in range(60):
        rows = sentences(32, 4, KNOWN)
        model(**sources_of(rows), labels=padded(rows, -100)).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    right = []
    for rows in (sentences(100, 4, KNOWN), sentences(100, KNOWN, WORDS)):
        found = model.search(**sources_of(rows), max_new_tokens=8)[:, 1:].tolist()
        right.append(sum(strip(row) == source for row, source in zip(found, rows, strict=True)))
    return right[0], right[1]


def test_unseen_words_are_copied() -> None:
    """Only a model that copies produces a word that is in no training sentence."""
    known, new = repeated(True)
    assert known > 90 and new > 80
    known, new = repeated(False)
    assert known < 50 and new == 0

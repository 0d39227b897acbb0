"""A loaded checkpoint has the saved ties, types and sizes, on any device; new parameters are initialized.

`fixtures/checkpoint_0_1_0` was trained by scripts/train.py of version 0.1.0 with transformers 5.23; `expected.json` is
its outputs then.
"""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AutoModel, AutoModelForSeq2SeqLM, AutoTokenizer
from transformers.utils import logging

from hf_rnn_seq2seq import RnnSeq2SeqConfig, RnnSeq2SeqForConditionalGeneration, RnnSeq2SeqModel
from tests.helpers.models import batch, decoder_inputs, pad, tiny_config, tiny_model

SOURCE, TARGET, OUTPUT = (
    "model.encoder.embed_tokens.weight",
    "model.decoder.embed_tokens.weight",
    "lm_head.weight",
)
# What is shared, and which tables a checkpoint then holds.
TIES = {
    "none": ({}, {SOURCE, TARGET, OUTPUT}),
    "output": ({"tie_word_embeddings": True}, {SOURCE, TARGET}),
    "embeddings": ({"share_encoder_decoder_embeddings": True}, {SOURCE, OUTPUT}),
    "all": ({"tie_word_embeddings": True, "share_encoder_decoder_embeddings": True}, {SOURCE}),
}
WIDE = {"readout_size": 5}


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(**batch()).logits


def tables(model: RnnSeq2SeqForConditionalGeneration) -> set[int]:
    """The addresses of the embedding tables and of the output layer."""
    parts = model.model.encoder.embed_tokens, model.model.decoder.embed_tokens, model.lm_head
    return {part.weight.data_ptr() for part in parts}


@pytest.mark.parametrize("ties", TIES)
def test_ties_are_kept(ties: str, tmp_path: Path) -> None:
    options, stored = TIES[ties]
    model = tiny_model(**WIDE, **options, dtype=torch.float32)
    assert len(tables(model)) == len(stored)
    named = model._tied_weights_keys or {}
    assert not set(named) & set(named.values())  # each names the table that is stored, none another tied one
    model.save_pretrained(tmp_path)
    assert not list(tmp_path.glob("*.bin"))
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert set(file.keys()) & {SOURCE, TARGET, OUTPUT} == stored
        assert set(file.keys()) | {SOURCE, TARGET, OUTPUT} == set(model.state_dict())
    loaded = RnnSeq2SeqForConditionalGeneration.from_pretrained(tmp_path)
    assert len(tables(loaded)) == len(stored)
    assert torch.equal(logits(loaded), logits(model))
    # What is one table learns as one.
    with torch.no_grad():
        loaded.model.decoder.embed_tokens.weight[5] += 1.0
    moved = {
        SOURCE: not torch.equal(loaded.model.encoder.embed_tokens.weight, model.model.encoder.embed_tokens.weight),
        OUTPUT: not torch.equal(loaded.lm_head.weight, model.lm_head.weight),
    }
    assert moved == {SOURCE: TARGET not in stored, OUTPUT: OUTPUT not in stored}


@pytest.mark.parametrize("ties", TIES)
def test_the_base_model_and_the_whole_read_each_others_checkpoints(ties: str, tmp_path: Path) -> None:
    model = tiny_model(**WIDE, **TIES[ties][0], dtype=torch.float32)
    model.save_pretrained(tmp_path / "whole")
    base = RnnSeq2SeqModel.from_pretrained(tmp_path / "whole")
    given = {key: value for key, value in batch().items() if key != "labels"}
    given["decoder_input_ids"] = pad(decoder_inputs())
    with torch.no_grad():
        actual = base(**given).last_hidden_state
        assert torch.equal(actual, model.model(**given).last_hidden_state)
        base.save_pretrained(tmp_path / "base")
        assert torch.equal(RnnSeq2SeqModel.from_pretrained(tmp_path / "base")(**given).last_hidden_state, actual)
    with safe_open(tmp_path / "base" / "model.safetensors", "pt") as file:
        both = {SOURCE.removeprefix("model."), TARGET.removeprefix("model.")}
        assert len(set(file.keys()) & both) == (1 if "share_encoder_decoder_embeddings" in TIES[ties][0] else 2)


def test_auto_classes(tmp_path: Path) -> None:
    model = tiny_model(dtype=torch.float32)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForSeq2SeqLM.from_pretrained(tmp_path)
    assert type(loaded) is RnnSeq2SeqForConditionalGeneration and torch.equal(logits(loaded), logits(model))
    assert type(AutoModel.from_pretrained(tmp_path)) is RnnSeq2SeqModel
    assert type(AutoModelForSeq2SeqLM.from_config(tiny_config())) is RnnSeq2SeqForConditionalGeneration
    assert json.loads((tmp_path / "config.json").read_text())["auto_map"] == {
        "AutoConfig": "configuration_rnn_seq2seq.RnnSeq2SeqConfig",
        "AutoModel": "modeling_rnn_seq2seq.RnnSeq2SeqModel",
        "AutoModelForSeq2SeqLM": "modeling_rnn_seq2seq.RnnSeq2SeqForConditionalGeneration",
    }


@pytest.mark.parametrize("options", [{}, {"cell_type": "gru", "context": "every_step"}, {"layer_norm": True}], ids=str)
def test_bfloat16(options: dict[str, Any], tmp_path: Path) -> None:
    model = tiny_model(**options, dtype=torch.float32)
    model.save_pretrained(tmp_path)
    loaded = RnnSeq2SeqForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.bfloat16}
    actual = logits(loaded)
    assert actual.dtype == torch.bfloat16
    torch.testing.assert_close(actual.float(), logits(model), atol=0.15, rtol=0.05)
    loaded.train()(**batch()).loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in loaded.parameters())
    assert loaded.eval().generate(**{k: v for k, v in batch().items() if k != "labels"}, max_new_tokens=4).shape[1] <= 5
    loaded.save_pretrained(tmp_path / "half")
    again = RnnSeq2SeqForConditionalGeneration.from_pretrained(tmp_path / "half", dtype="auto")
    assert again.dtype == torch.bfloat16 and torch.equal(logits(again), actual)


@pytest.mark.parametrize("device_map", ["auto", "cpu", {"": "cpu"}], ids=str)
@pytest.mark.parametrize("ties", ["none", "all"])
def test_device_map(device_map: str | dict[str, str], ties: str, tmp_path: Path) -> None:
    pytest.importorskip("accelerate", reason="accelerate (of the extra `train`) is not installed")
    model = tiny_model(**WIDE, **TIES[ties][0], dtype=torch.float32)
    model.save_pretrained(tmp_path)
    loaded = RnnSeq2SeqForConditionalGeneration.from_pretrained(tmp_path, device_map=device_map)
    assert len(tables(loaded)) == len(tables(model))
    inputs = {key: value.to(loaded.device) for key, value in batch().items()}
    with torch.no_grad():
        torch.testing.assert_close(loaded(**inputs).logits.cpu(), logits(model), atol=1e-5, rtol=1e-4)


def test_a_model_dispatched_part_by_part_gives_the_same() -> None:
    """Accelerate's hooks move the inputs of a part; the cache must pass through them unchanged."""
    accelerate = pytest.importorskip("accelerate", reason="accelerate (of the extra `train`) is not installed")
    model = tiny_model(dtype=torch.float32, encoder_layers=2, decoder_layers=2).requires_grad_(False)
    inputs = {key: value for key, value in batch().items() if key != "labels"}
    expected, found = logits(model), model.generate(**inputs, max_new_tokens=6, num_beams=2)
    parts = {"model.encoder": "cpu", "model.bridge": "cpu", "model.decoder": "cpu", "lm_head": "cpu"}
    keys = model._skip_keys_device_placement
    model = accelerate.dispatch_model(model, parts, force_hooks=True, skip_keys=keys)
    # A part whose forward is replaced is called, where else its weights are read: the sums are rounded differently.
    torch.testing.assert_close(logits(model), expected)
    assert torch.equal(model.generate(**inputs, max_new_tokens=6, num_beams=2), found)


def test_shards(tmp_path: Path) -> None:
    model = tiny_model(**WIDE, dtype=torch.float32, tie_word_embeddings=True)
    model.save_pretrained(tmp_path, max_shard_size=500)
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert torch.equal(logits(RnnSeq2SeqForConditionalGeneration.from_pretrained(tmp_path)), logits(model))


CELLS = {
    "lstm": {"cell_type": "lstm"},
    "gru, normalized": {"cell_type": "gru", "layer_norm": True, "encoder_transition_depth": 2},
    "normed additive": {"attention_type": "normed_additive", "attention_window": "local_p"},
    "multi head": {"attention_type": "multi_head_additive", "num_attention_heads": 2},
    "every step": {"context": "every_step", "context_size": 3, "readout": "maxout"},
}


@pytest.mark.parametrize("kind", CELLS)
def test_parameters_missing_in_a_checkpoint_are_initialized(kind: str, tmp_path: Path) -> None:
    """Models are created without memory; a parameter that nothing fills would have random content."""
    config = tiny_config(**CELLS[kind])
    fresh = RnnSeq2SeqForConditionalGeneration(config)
    empty = tmp_path / "empty"
    fresh.save_pretrained(empty)
    save_file({"lm_head.bias": torch.full((11,), 7.0)}, empty / "model.safetensors", metadata={"format": "pt"})
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    loaded = RnnSeq2SeqForConditionalGeneration.from_pretrained(empty)
    logging.set_verbosity(verbosity)
    assert torch.equal(loaded.lm_head.bias, torch.full((11,), 7.0))
    for (name, parameter), expected in zip(loaded.named_parameters(), fresh.parameters(), strict=True):
        if name == "lm_head.bias":
            continue
        assert parameter.isfinite().all() and parameter.abs().max() < 6, name
        if name.endswith("gain") or "norm_" in name or re.search(r"transitions\.\d+\.bias$", name):
            assert torch.equal(parameter, expected), name
        else:
            assert len(parameter.unique()) > 1, name


def test_initialization_is_bounded_by_the_fan_in() -> None:
    model = RnnSeq2SeqForConditionalGeneration(RnnSeq2SeqConfig(vocab_size=500, hidden_size=64, embedding_size=100))
    model.requires_grad_(False)
    linear = model.model.decoder.readout.project.weight
    assert 0.9 * 128**-0.5 < linear.abs().max() <= 128**-0.5
    kernel = model.model.decoder.layers[0].kernel.weight_ih_l0
    assert 0.9 * 64**-0.5 < kernel.abs().max() <= 64**-0.5
    embedding = model.model.encoder.embed_tokens.weight
    assert embedding[0].eq(0).all() and abs(float(embedding[1:].std()) - 0.3) < 0.03
    narrow = RnnSeq2SeqForConditionalGeneration(tiny_config(initializer_range=0.08))
    for name, parameter in narrow.named_parameters():
        assert parameter.abs().max() <= 0.08, name


@pytest.mark.parametrize("ties", TIES)
@pytest.mark.parametrize("size", [20, 11, 8])
def test_resize_token_embeddings(ties: str, size: int, tmp_path: Path) -> None:
    """One vocabulary with each tying; with two vocabularies `size` is the target's."""
    model = tiny_model(**WIDE, **TIES[ties][0], dtype=torch.float32)
    before, shared = {name: value.clone() for name, value in model.state_dict().items()}, ties in ("embeddings", "all")
    source_size = model.config.source_vocab_size
    if shared:
        assert model.resize_token_embeddings(size, mean_resizing=False) is model.get_input_embeddings()
    else:
        assert model.resize_target_embeddings(size, mean_resizing=False) is model.model.decoder.embed_tokens
    assert model.config.vocab_size == model.vocab_size == size
    assert model.config.source_vocab_size == (size if shared else source_size)
    table = model.model.decoder.embed_tokens
    assert model.lm_head.weight.shape == (size, 5) and model.lm_head.bias.shape == (size,)
    assert (model.lm_head.out_features, table.num_embeddings, table.padding_idx) == (size, size, 0)
    assert len(tables(model)) == len(TIES[ties][1])
    kept = min(size, 11)
    for name in (SOURCE, TARGET, OUTPUT, "lm_head.bias"):
        rows = before[name].shape[0] if name == SOURCE and not shared else kept
        assert torch.equal(model.state_dict()[name][:rows], before[name][:rows]), name
    words = {key: value.clamp(max=size - 1) for key, value in batch().items()}
    actual = model(**words)
    assert actual.logits.shape[-1] == size and actual.loss.isfinite()
    assert model.generate(words["input_ids"], max_new_tokens=3).max() < size
    model.save_pretrained(tmp_path)
    again = RnnSeq2SeqForConditionalGeneration.from_pretrained(tmp_path)
    assert torch.equal(again(**words).logits, actual.logits)


@pytest.mark.parametrize("ties", TIES)
@pytest.mark.parametrize("sizes", [(11, 11), (13, 11), (9, 11)])
def test_tokens_added_as_transformers_documents_it(ties: str, sizes: tuple[int, int], tmp_path: Path) -> None:
    """`resize_token_embeddings(len(tokenizer))`, and both sides can read and write what was added."""
    model = tiny_model(**WIDE, **{"source_vocab_size": sizes[0], **TIES[ties][0]}, dtype=torch.float32)
    source, target = model.config.source_vocab_size, model.config.vocab_size
    words = {"input_ids": torch.tensor([[5, 7, 2]]), "max_new_tokens": 5}
    first = model.search(**words)
    model.lm_head.requires_grad_(False)
    assert model.resize_token_embeddings(source + 2).num_embeddings == source + 2
    assert (model.config.source_vocab_size, model.config.vocab_size) == (source + 2, target + 2)
    assert not model.lm_head.weight.requires_grad
    new = {"input_ids": torch.tensor([[source + 1, source, 2]]), "labels": torch.tensor([[target + 1, target, 2]])}
    assert model(**new).loss.isfinite()
    for options in ({}, {"num_beams": 3}, {"do_sample": True}):
        assert len(model.generate(new["input_ids"], **{**options, "max_new_tokens": 5})) == 1
    with torch.no_grad():
        model.lm_head.bias[target + 1] = 100.0
    found = model.search(**words)
    assert found.tolist() == model.generate(**words).tolist() != first.tolist() and found.max() == target + 1
    model.save_pretrained(tmp_path)
    again = RnnSeq2SeqForConditionalGeneration.from_pretrained(tmp_path)
    assert torch.equal(again(**new).logits, model(**new).logits)
    if source != target:
        with pytest.raises(ValueError, match=f"^new_num_tokens=8: two vocabularies, of {source + 2} and {target + 2} "):
            model.resize_token_embeddings(8)
    else:
        with pytest.raises(ValueError, match="^new_num_tokens=2: must be larger than eos_token_id=2"):
            model.resize_token_embeddings(2)


def test_resizing_to_a_multiple_and_to_nothing() -> None:
    model = tiny_model(dtype=torch.float32)
    assert model.resize_token_embeddings().num_embeddings == 13 and model.config.vocab_size == 11
    assert model.resize_token_embeddings(pad_to_multiple_of=8).num_embeddings == 16 == model.config.vocab_size
    assert model.resize_token_embeddings(17, pad_to_multiple_of=8).num_embeddings == 24 == model.lm_head.out_features
    assert model.resize_source_embeddings(20).num_embeddings == 20 == model.config.source_vocab_size
    assert model(input_ids=torch.tensor([[19, 3]]), labels=torch.tensor([[23, 2]])).loss.isfinite()
    with pytest.raises(ValueError, match="call resize_token_embeddings, there is one table"):
        tiny_model(share_encoder_decoder_embeddings=True).resize_source_embeddings(20)


@pytest.mark.parametrize("ties", TIES)
def test_the_base_model_resizes_both_tables(ties: str, tmp_path: Path) -> None:
    """`config.vocab_size` is the target's, which the default would set to the size of the source's table."""
    base = RnnSeq2SeqModel(tiny_config(**WIDE, **TIES[ties][0])).eval()
    source, target = base.config.source_vocab_size, base.config.vocab_size
    assert base.resize_token_embeddings(source + 4).num_embeddings == source + 4
    assert (base.config.source_vocab_size, base.config.vocab_size, base.vocab_size) == (source + 4, *[target + 4] * 2)
    words = {"input_ids": torch.tensor([[source + 3, 2]]), "decoder_input_ids": torch.tensor([[1, target + 3]])}
    with torch.no_grad():
        actual = base(**words).last_hidden_state
        base.save_pretrained(tmp_path)
        assert torch.equal(RnnSeq2SeqModel.from_pretrained(tmp_path)(**words).last_hidden_state, actual)


def test_input_embeddings_can_be_replaced() -> None:
    for share in (False, True):
        model = tiny_model(share_encoder_decoder_embeddings=share)
        table = torch.nn.Embedding(model.config.source_vocab_size, 5).double()
        model.set_input_embeddings(table)
        assert model.get_input_embeddings() is table is model.get_encoder().get_input_embeddings()
        assert (model.get_decoder().get_input_embeddings() is table) == share
    head = torch.nn.Linear(4, 11)
    model.set_output_embeddings(head)
    assert model.get_output_embeddings() is head


def test_a_checkpoint_of_version_0_1_0_translates_as_it_did() -> None:
    folder = Path(__file__).parents[1] / "fixtures" / "checkpoint_0_1_0"
    expected = json.loads((folder / "expected.json").read_text(encoding="utf-8"))
    model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    sources = tokenizer(expected["sources"], return_tensors="pt", padding=True)
    assert sources["input_ids"].tolist() == expected["input_ids"]
    written = model.generate(**sources, max_new_tokens=12)
    assert written.tolist() == expected["greedy"]
    assert model.search(**sources, max_new_tokens=12).tolist() == expected["greedy"]
    assert model.generate(**sources, max_new_tokens=12, num_beams=3).tolist() == expected["beams"]
    assert tokenizer.batch_decode(written, skip_special_tokens=True) == expected["translations"]
    with torch.no_grad():
        scores = model(**sources, labels=torch.tensor(expected["labels"])).logits
    torch.testing.assert_close(scores[1, 2], torch.tensor(expected["logits"]), atol=2e-5, rtol=1e-5)

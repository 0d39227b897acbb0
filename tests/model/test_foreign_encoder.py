"""Encoders of transformers in the place of the word vectors: under the recurrent layers, or read raw."""

import functools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSeq2SeqLM,
    BertConfig,
    BertForMaskedLM,
    BertModel,
    MarianMTModel,
    RobertaConfig,
)

from hf_rnn_seq2seq import ConfigError, RnnSeq2SeqConfig, RnnSeq2SeqForConditionalGeneration, RnnSeq2SeqModel
from hf_rnn_seq2seq.model.presets import PRESETS
from tests.helpers.models import batch, tiny_model

WIDTH, WORDS = 8, 13
_LAYERS = {"num_attention_heads": 2, "intermediate_size": 10, "hidden_size": WIDTH, "num_hidden_layers": 1}
_HALVES = {"d_model": WIDTH, "pad_token_id": 0, "decoder_start_token_id": 0}
_MARIAN = {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
TEXT: dict[str, dict[str, Any]] = {
    "bert": {**_LAYERS},
    "distilbert": {"dim": WIDTH, "n_heads": 2, "n_layers": 1, "hidden_dim": 10},
    "modernbert": {**_LAYERS, "pad_token_id": 0, "cls_token_id": 1, "sep_token_id": 2},
    "marian": {**_HALVES, **_MARIAN, "encoder_ffn_dim": 10, "decoder_ffn_dim": 10, "max_position_embeddings": 16},
    "t5": {**_HALVES, "d_kv": 4, "d_ff": 10, "num_layers": 1, "num_heads": 2},
}
PICTURES: dict[str, dict[str, Any]] = {
    "resnet": {"embedding_size": 4, "hidden_sizes": [4, WIDTH], "depths": [1, 1], "layer_type": "basic"},
    "mobilenet_v2": {"depth_multiplier": 0.1, "min_depth": 4, "depth_divisible_by": 4},
    "vit": {**_LAYERS, "image_size": 32, "patch_size": 16},
}
IDS = batch()["input_ids"]
MASK = batch()["attention_mask"]
PIXELS = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def inputs(kind: str) -> dict[str, Tensor]:
    return {"input_ids": IDS, "attention_mask": MASK} if kind in TEXT else {"pixel_values": PIXELS}


@functools.cache
def over(kind: str, layers: int = 1) -> RnnSeq2SeqForConditionalGeneration:
    """A model over a tiny encoder; tests do not change it."""
    raw = {} if layers else {"encoder_layers": 0, "bridge": "mean"}
    encoder = {"model_type": kind, **(TEXT | PICTURES)[kind]}
    more = {"source_vocab_size": None} if kind in PICTURES else {}
    torch.manual_seed(0)
    config = RnnSeq2SeqConfig(
        **{"vocab_size": 11, "source_vocab_size": WORDS, "embedding_size": 5, "hidden_size": 4, **raw, **more},
        encoder=encoder,
    )
    return RnnSeq2SeqForConditionalGeneration(config).eval()


def alone(model: RnnSeq2SeqForConditionalGeneration) -> torch.nn.Module:
    """The encoder as `AutoModel` makes it, with the same weights."""
    encoder = AutoModel.from_config(model.config.encoder).eval()
    encoder = encoder.get_encoder() if model.config.encoder.is_encoder_decoder else encoder
    found = encoder.load_state_dict(model.model.encoder.foreign.model.state_dict(), strict=False)
    assert not found.unexpected_keys and all("pooler" in name for name in found.missing_keys)
    return encoder


# ------------------------------------------------------------------------------------------------ states


@pytest.mark.parametrize("kind", TEXT)
def test_states_of_words_are_those_of_the_encoder_alone(kind: str) -> None:
    model = over(kind, layers=0)
    encoded = model.get_encoder()(IDS, MASK)
    for row, length in enumerate(MASK.sum(1).tolist()):
        wanted = alone(model)(input_ids=IDS[row : row + 1, :length]).last_hidden_state
        assert wanted.shape[2] == model.config.encoder_output_size == WIDTH
        torch.testing.assert_close(encoded.last_hidden_state[row, :length], wanted[0], rtol=1e-5, atol=1e-6)
        assert not encoded.last_hidden_state[row, length:].any()
    assert torch.equal(encoded.source_mask, MASK.bool()) and encoded.final_state is None


@pytest.mark.parametrize("levels", [[0], [0, -1], [1, 0, 2]])
@pytest.mark.parametrize("kind", ["bert", "distilbert", "marian", "t5"])
def test_several_levels_are_read_next_to_each_other(kind: str, levels: list[int], tmp_path: Path) -> None:
    fields = over(kind, layers=0).config.to_dict()
    layers = {"num_hidden_layers": 2, "n_layers": 2, "encoder_layers": 2, "num_layers": 2}
    fields["encoder"] |= {name: layers[name] for name in layers if name in (TEXT[kind])}
    config = RnnSeq2SeqConfig(**fields | {"encoder_levels": levels})
    model = RnnSeq2SeqForConditionalGeneration(config).eval()
    states = model.get_encoder()(IDS, MASK).last_hidden_state
    assert states.shape[2] == config.encoder_output_size == WIDTH * len(levels)
    for row, length in enumerate(MASK.sum(1).tolist()):
        words = IDS[row : row + 1, :length]
        hidden = alone(model)(input_ids=words, output_hidden_states=True).hidden_states
        wanted = torch.cat([hidden[level] for level in levels], 2)
        torch.testing.assert_close(states[row, :length], wanted[0], rtol=1e-5, atol=1e-6)
    model.save_pretrained(tmp_path)
    again = AutoModelForSeq2SeqLM.from_pretrained(tmp_path)
    assert torch.equal(again.get_encoder()(IDS, MASK).last_hidden_state, states)


@pytest.mark.parametrize("kind", PICTURES)
def test_regions_of_a_picture_are_the_positions_of_the_last_map_row_by_row(kind: str) -> None:
    model = over(kind, layers=0)
    states = model.get_encoder()(pixel_values=PIXELS, attention_mask=torch.ones(3, 3)).last_hidden_state
    wanted = alone(model)(pixel_values=PIXELS).last_hidden_state
    if wanted.dim() == 4:
        height, width = wanted.shape[2:]
        assert states.shape[1] == height * width
        for row in range(height):
            for column in range(width):
                assert torch.equal(states[:, width * row + column], wanted[:, :, row, column])
    else:
        assert torch.equal(states, wanted)
    assert model.main_input_name == model.model.main_input_name == model.get_encoder().main_input_name == "pixel_values"


@pytest.mark.parametrize("kind", ["bert", "marian", "resnet"])
def test_recurrent_layers_read_the_states_in_the_place_of_word_vectors(kind: str) -> None:
    """The encoder's output equals that of a model of the same weights that is given the states, also stored ones."""
    encoder = over(kind).get_encoder()
    read = encoder(**inputs(kind), output_hidden_states=True)
    given = encoder(inputs_embeds=read.hidden_states[0], attention_mask=read.source_mask)
    assert read.last_hidden_state.shape[2] == 4
    for name in ("last_hidden_state", "final_state", "final_cell"):
        torch.testing.assert_close(read[name], given[name], rtol=1e-6, atol=1e-7)
    assert not hasattr(encoder, "embed_tokens")
    half = encoder(inputs_embeds=read.hidden_states[0].half(), attention_mask=read.source_mask)
    torch.testing.assert_close(half.last_hidden_state, read.last_hidden_state, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("kind", ["bert", "t5"])
@pytest.mark.parametrize("layers", [0, 1])
def test_padding_anywhere_changes_nothing(kind: str, layers: int) -> None:
    encoder = over(kind, layers).get_encoder()
    words = [5, 7, 3, 2]
    wanted = encoder(torch.tensor([words]))
    places = {"right": [0, 1, 2, 3], "left": [3, 4, 5, 6], "holes": [0, 2, 3, 6]}
    for name, places_of_words in places.items():
        ids = torch.zeros(1, 7, dtype=torch.long)
        ids[0, places_of_words] = torch.tensor(words)
        found = encoder(ids, (ids != 0).long())
        states = found.last_hidden_state[:, places_of_words]
        torch.testing.assert_close(states, wanted.last_hidden_state, rtol=1e-5, atol=1e-6, msg=name)
        if layers:
            torch.testing.assert_close(found.final_state, wanted.final_state, rtol=1e-5, atol=1e-6)


def test_a_row_without_words_has_states_of_zero_and_finite_gradients() -> None:
    model = tiny_model(encoder={"model_type": "bert", **TEXT["bert"]}, dtype=torch.float32).train()
    given = batch()
    given["attention_mask"] = given["attention_mask"].clone().index_fill(0, torch.tensor([1]), 0)
    assert not model.get_encoder()(given["input_ids"], given["attention_mask"]).last_hidden_state[1].any()
    model(**given).loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_the_pad_token_of_the_source_is_the_encoders() -> None:
    """Here the target's is 0, which in the source is a word."""
    roberta = RobertaConfig(vocab_size=20, pad_token_id=1, max_position_embeddings=20, **_LAYERS)
    model = RnnSeq2SeqForConditionalGeneration(
        RnnSeq2SeqConfig(vocab_size=11, embedding_size=5, hidden_size=4, encoder=roberta)
    ).eval()
    ids = torch.tensor([[0, 5, 6, 2, 1, 1], [0, 7, 8, 9, 10, 2]])
    assert model.get_encoder()(ids).source_mask.tolist() == (ids != 1).tolist()
    given = (ids != 1).long()
    options = {"max_length": 6, "num_beams": 2, "return_dict_in_generate": True, "output_scores": True}
    wanted = model.generate(ids, attention_mask=given, **options).sequences_scores
    torch.testing.assert_close(model.generate(ids, **options).sequences_scores, wanted)
    del options["output_scores"]
    torch.testing.assert_close(model.search(ids, **options).sequences_scores, wanted)


def test_sinusoids_are_those_of_the_paper() -> None:
    """Vaswani 2017, section 3.5: sin and cos of position / 10000^(2i / width), here all sines before all cosines."""
    encoder = PRESETS["transformer_encoder"]()["encoder"]
    config = RnnSeq2SeqConfig.from_preset("transformer_encoder", vocab_size=11, encoder=small_transformer(), **SIZES)
    table = RnnSeq2SeqModel(config).encoder.foreign.model.embed_positions.weight
    width, length = SMALL_TRANSFORMER["d_model"], encoder["max_position_embeddings"]
    position, i = torch.arange(length, dtype=torch.float64).unsqueeze(1), torch.arange(width // 2)
    angles = position / 10000 ** (2 * i / width)
    torch.testing.assert_close(table.double(), torch.cat([angles.sin(), angles.cos()], 1), rtol=1e-5, atol=1e-6)
    assert not table.requires_grad


SMALL_TRANSFORMER = {"d_model": 8, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 10}
SIZES = {"embedding_size": 8, "hidden_size": 8, "attention_size": 8}


def small_transformer() -> dict[str, Any]:
    return PRESETS["transformer_encoder"]()["encoder"] | SMALL_TRANSFORMER | {"decoder_attention_heads": 2}


# ------------------------------------------------------------------------------------------------ training


@pytest.mark.parametrize("kind", ["distilbert", "t5", "resnet", "mobilenet_v2"])
def test_gradients_reach_the_encoder(kind: str) -> None:
    config = RnnSeq2SeqConfig.from_dict(over(kind).config.to_dict())
    model = RnnSeq2SeqForConditionalGeneration(config).train()
    model(**inputs(kind), labels=batch()["labels"]).loss.backward()
    missed = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert not missed
    assert any(part.training for part in model.model.encoder.foreign.modules())


def test_what_its_tokenizer_says_beside_the_ids_is_not_read() -> None:
    model, given = over("bert"), inputs("bert")
    call = {"max_new_tokens": 4, "num_beams": 2}
    expected = model.generate(**given, **call)
    types = {"token_type_ids": torch.ones_like(given["input_ids"])}
    assert torch.equal(model.generate(**given, **types, **call), expected)
    assert torch.equal(model.search(**given, **types, **call), expected)
    model.search(**given, **types, **call, prefix=[[5]] * len(expected))


@pytest.mark.parametrize("kind", ["bert", "resnet"])
def test_a_frozen_encoder_has_no_gradient_and_stays_in_evaluation(kind: str, tmp_path: Path) -> None:
    config = RnnSeq2SeqConfig.from_dict(over(kind).config.to_dict() | {"freeze_encoder": True})
    model = RnnSeq2SeqForConditionalGeneration(config)
    model.save_pretrained(tmp_path)
    for each in (model, AutoModelForSeq2SeqLM.from_pretrained(tmp_path)):
        foreign = each.train().model.encoder.foreign
        assert each.model.encoder.training and not any(part.training for part in foreign.modules())
        before = {name: tensor.clone() for name, tensor in foreign.state_dict().items()}
        first, second = (each.get_encoder()(**inputs(kind)).last_hidden_state for _ in range(2))
        assert torch.equal(first, second)
        each(**inputs(kind), labels=batch()["labels"]).loss.backward()
        assert all(p.grad is None and not p.requires_grad for p in foreign.parameters())
        assert all(p.grad is not None for name, p in each.named_parameters() if "foreign" not in name)
        assert all(torch.equal(before[name], tensor) for name, tensor in foreign.state_dict().items())


# ------------------------------------------------------------------------------------------------ decoding


@pytest.mark.parametrize("kind", ["bert", "marian", "vit"])
@pytest.mark.parametrize("layers", [0, 1])
def test_beams_and_search_equal_generate(kind: str, layers: int) -> None:
    model = tiny_model(over(kind, layers).config, dtype=torch.float32)
    given, main = inputs(kind), "input_ids" if kind in TEXT else "pixel_values"
    for options in ({}, {"num_beams": 3, "num_return_sequences": 2}):
        wanted = model.generate(**given, **options, max_length=7)
        assert torch.equal(model.search(**given, **options, max_length=7), wanted)
        assert torch.equal(model.search(**given, **options, max_length=7, rows_per_batch=2), wanted)
        assert torch.equal(model.generate(**given, **options, max_length=7, use_cache=False), wanted)
        encoded = model.get_encoder()(**given)
        assert torch.equal(model.search(encoder_outputs=encoded, **options, max_length=7), wanted)
    assert torch.equal(model.search(given[main], max_length=7), model.generate(given[main], max_length=7))
    assert model.search(**given, weight_type="bfloat16", max_length=7).shape[0] == 3
    ensemble = model.search(**given, ensemble=(model,), num_beams=3, max_length=7)
    assert torch.equal(ensemble, model.generate(**given, num_beams=3, max_length=7))
    weights = model(**given, decoder_input_ids=wanted[::2], output_attentions=True).cross_attentions[0]
    assert weights.shape[3] == encoded.last_hidden_state.shape[1]
    torch.testing.assert_close(weights.sum(3), torch.ones_like(weights[..., 0]))


# ------------------------------------------------------------------------------------------------ saving


@pytest.mark.parametrize("kind", [*TEXT, *PICTURES])
def test_saved_and_loaded(kind: str, tmp_path: Path) -> None:
    model = over(kind)
    model.save_pretrained(tmp_path)
    again = AutoModelForSeq2SeqLM.from_pretrained(tmp_path)
    assert type(again.config.encoder) is type(model.config.encoder)
    kept, wanted = (each.config.encoder.to_dict() | {"dtype": None} for each in (again, model))
    assert kept == wanted
    labels = batch()["labels"]
    assert torch.equal(again(**inputs(kind), labels=labels).logits, model(**inputs(kind), labels=labels).logits)


def test_the_configuration_is_a_sub_configuration() -> None:
    given = BertConfig(vocab_size=WORDS, **_LAYERS)
    before = given.to_dict()
    config = RnnSeq2SeqConfig(vocab_size=11, encoder=given)
    assert config.encoder is not given and given.to_dict() == before
    assert config.sub_configs == {"encoder": AutoConfig}
    assert config.source_vocab_size == WORDS and config.encoder_kind == ("input_ids", WIDTH)
    for stored in (config.to_dict(), config.to_diff_dict(), json.loads(config.to_json_string())):
        again = RnnSeq2SeqConfig(**stored)
        assert again.to_dict() == config.to_dict() and type(again.encoder) is BertConfig
    standard = RnnSeq2SeqConfig(vocab_size=11, encoder=BertConfig())
    assert RnnSeq2SeqConfig(**standard.to_diff_dict()).encoder.vocab_size == BertConfig().vocab_size == 30522
    assert RnnSeq2SeqConfig(vocab_size=11).to_dict()["encoder"] is None


def test_a_dict_without_a_vocabulary_has_that_of_the_source() -> None:
    encoder = {"model_type": "bert", **_LAYERS}
    config = RnnSeq2SeqConfig(vocab_size=11, source_vocab_size=7, pad_token_id=3, encoder=encoder)
    assert (config.encoder.vocab_size, config.encoder.pad_token_id) == (7, 3)
    assert RnnSeq2SeqConfig(vocab_size=11, encoder=encoder).encoder.vocab_size == 11


@pytest.mark.parametrize("saved", [BertModel, BertForMaskedLM, MarianMTModel])
def test_a_pretrained_encoder(saved: Any, tmp_path: Path) -> None:
    """With its weights, of a checkpoint with a head, a pooling layer or a decoder too, in the type of the new model."""
    kind = "marian" if saved is MarianMTModel else "bert"
    torch.manual_seed(1)
    whole = saved(AutoConfig.for_model(kind, vocab_size=WORDS, **TEXT[kind])).eval()
    half = torch.float32 if kind == "marian" else torch.float16  # sinusoids are not stored, and exact in the new model
    whole.to(half).save_pretrained(tmp_path)
    fields = {"vocab_size": 11, "embedding_size": 5, "hidden_size": 4, "freeze_encoder": True}
    model = RnnSeq2SeqForConditionalGeneration.from_encoder_pretrained(str(tmp_path), **fields)
    assert not model.training and model.dtype == torch.float32
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    base = whole.base_model if saved is not MarianMTModel else whole.get_encoder()
    base = base.float()
    found = model.model.encoder.foreign(IDS, MASK.bool())
    wanted = base(input_ids=IDS, attention_mask=MASK).last_hidden_state
    torch.testing.assert_close(found[MASK.bool()], wanted[MASK.bool()])
    assert not any(p.requires_grad for p in model.model.encoder.foreign.parameters())
    assert str(tmp_path) not in model.config.to_json_string()


@pytest.mark.parametrize(
    "kind, levels, layers", [("bert", [0], 1), ("bert", [2, 1], 2), ("bert", [-3], 4), ("t5", [0], 1), ("t5", [2], 3)]
)
def test_layers_above_the_levels_are_left_out(kind: str, levels: list[int], layers: int, tmp_path: Path) -> None:
    """The states stay those of the whole encoder, also where the last layer is normalized (T5) or one is needed."""
    count = "num_layers" if kind == "t5" else "num_hidden_layers"
    torch.manual_seed(1)
    whole = AutoModel.from_config(AutoConfig.for_model(kind, vocab_size=WORDS, **TEXT[kind] | {count: 4})).eval()
    whole.save_pretrained(tmp_path)
    fields = {"vocab_size": 11, "embedding_size": 5, "hidden_size": 4, "encoder_levels": levels}
    model = RnnSeq2SeqForConditionalGeneration.from_encoder_pretrained(str(tmp_path), **fields)
    assert getattr(model.config.encoder, count) == layers
    whole = whole.get_encoder() if kind == "t5" else whole
    wanted = whole(input_ids=IDS, attention_mask=MASK, output_hidden_states=True).hidden_states
    found = model.model.encoder.foreign(IDS, MASK.bool())
    rows = MASK.bool()
    torch.testing.assert_close(found[rows], torch.cat([wanted[level] for level in levels], -1)[rows], rtol=0, atol=0)
    for wrong in (0, ["a"], [9]):
        with pytest.raises(ConfigError, match="encoder_levels="):
            RnnSeq2SeqModel.from_encoder_pretrained(str(tmp_path), vocab_size=11, encoder_levels=wrong)


def test_a_preset_takes_the_pretrained_encoder(tmp_path: Path) -> None:
    BertModel(BertConfig(vocab_size=WORDS, **_LAYERS)).save_pretrained(tmp_path)
    model = RnnSeq2SeqModel.from_encoder_pretrained(str(tmp_path), preset="bert_encoder", vocab_size=11, hidden_size=8)
    assert model.config.encoder_kind.width == WIDTH and model.config.freeze_encoder
    assert model.config.source_vocab_size == WORDS and model.config.dropout == 0.2


# ------------------------------------------------------------------------------------------------ refusals


BERT = {"model_type": "bert", **_LAYERS}
RESNET = {"model_type": "resnet", **PICTURES["resnet"]}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "unknown": (
        {"encoder": {"model_type": "brt"}},
        r"encoder.model_type='brt': must be a model of transformers itself",
    ),
    "no type": ({"encoder": {"hidden_size": 8}}, r"encoder.model_type=None: must be"),
    "ours": ({"encoder": RnnSeq2SeqConfig()}, r"encoder.model_type='rnn_seq2seq': .* its code would not travel"),
    "sound": ({"encoder": {"model_type": "wav2vec2"}}, "encoder.model_type='wav2vec2': reads input_values; must be"),
    "no encoder": ({"freeze_encoder": True}, "freeze_encoder=True: there is no encoder to freeze"),
    "levels of no encoder": ({"encoder_levels": [0]}, r"encoder_levels=\[0\]: there is no encoder to read"),
    "no level": ({"encoder": BERT, "encoder_levels": []}, r"encoder_levels=\[\]: no state would be read"),
    "level": (
        {"encoder": BERT, "encoder_levels": [0, 2]},
        r"encoder_levels=\[0, 2\]: 2 is none of the 2 levels of encoder='bert'; must be between 0 .* and 1",
    ),
    "levels of pictures": ({"encoder": RESNET, "encoder_levels": [0]}, r"encoder_levels=\[0\]: .* reads pictures"),
    "no encoder, no layer": ({"encoder_layers": 0}, "encoder_layers=0: must be greater than 0"),
    "layers": ({"encoder": BERT, "encoder_layers": -1}, "encoder_layers=-1: must be 0 or more"),
    "shared": (
        {"encoder": BERT, "share_encoder_decoder_embeddings": True},
        "share_encoder_decoder_embeddings=True: not with encoder='bert', .* must be False",
    ),
    "word dropout": ({"encoder": BERT, "word_dropout": 0.1}, "word_dropout=0.1: not with encoder='bert'"),
    "vocabulary": (
        {"encoder": BERT | {"vocab_size": 12}, "source_vocab_size": 13},
        "source_vocab_size=13: encoder='bert' has a vocabulary of 12; leave it out",
    ),
    "copying": (
        {"encoder": BERT | {"vocab_size": 12}, "copy_mechanism": True},
        "copy_mechanism=True: needs one vocabulary for both sides, source_vocab_size=12",
    ),
    "copying pictures": ({"encoder": RESNET, "copy_mechanism": True}, "copy_mechanism=True: .* source_vocab_size=None"),
    "monotonic": (
        {"encoder": RESNET, "attention_alignment": "monotonic"},
        "attention_alignment='monotonic': not with .* no order .* must be 'soft' or 'hard'",
    ),
    "window": ({"encoder": RESNET, "attention_window": "local_p"}, "attention_window='local_p': not with"),
    "pictures have no words": ({"encoder": RESNET, "source_vocab_size": 9}, "source_vocab_size=9: .* leave it out"),
    "bridge": ({"encoder": BERT, "encoder_layers": 0}, "bridge='dense': .* must be 'mean' or 'zero'"),
    "copy bridge": ({"encoder": BERT, "encoder_layers": 0, "bridge": "copy"}, "bridge='copy': reads the final states"),
    "width": (
        {"encoder": BERT, "encoder_layers": 0, "bridge": "mean", "attention_type": "dot"},
        r"attention_type='dot': the encoder's states \(8 wide\) must be as wide as hidden_size=4",
    ),
    "every step": (
        {"encoder": BERT, "encoder_layers": 0, "bridge": "mean", "context": "every_step", "input_feeding": False},
        "context='every_step': is the final state .* set encoder_layers=1",
    ),
    **{
        name: (
            {"encoder": BERT, "encoder_layers": 0, "bridge": "mean", name: value},
            f"{name}={value!r}: encoder_layers=0 has no recurrent layer",
        )
        for name, value in {
            "encoder_hidden_size": 3,
            "bidirectional": "none",
            "encoder_transition_depth": 2,
        }.items()
    },
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_work_is_refused(case: str) -> None:
    fields, message = REFUSED[case]
    with pytest.raises(ConfigError, match=message):
        RnnSeq2SeqConfig(**{"vocab_size": 11, "embedding_size": 5, "hidden_size": 4, **fields})


def test_a_configuration_of_ones_own_class_is_refused() -> None:
    class Mine(BertConfig):
        pass

    with pytest.raises(ConfigError, match="a model with code of its own cannot be nested"):
        RnnSeq2SeqConfig(vocab_size=11, encoder=Mine())


def test_sources_that_the_encoder_does_not_read_are_refused() -> None:
    words, pictures = over("marian"), over("resnet")
    with pytest.raises(ValueError, match="pixel_values: this model's encoder reads input_ids"):
        words(pixel_values=PIXELS, labels=batch()["labels"])
    with pytest.raises(ValueError, match="input_ids: this model's encoder reads pixel_values"):
        pictures(input_ids=IDS, labels=batch()["labels"])
    with pytest.raises(ValueError, match="pixel_values: this model's encoder reads input_ids"):
        tiny_model()(pixel_values=PIXELS, labels=batch()["labels"])
    with pytest.raises(ValueError, match="give exactly one of pixel_values and inputs_embeds"):
        pictures.get_encoder()()
    with pytest.raises(ValueError, match=r"\(1, 17\): the encoder \(marian\) reads at most 16 tokens"):
        words.get_encoder()(torch.ones(1, 17, dtype=torch.long))
    with pytest.raises(ValueError, match="source ids are words of the encoder's own vocabulary"):
        words(input_ids=IDS)
    with pytest.raises(ConfigError, match="encoder='marian': has a source vocabulary of its own; call resize_target"):
        words.resize_token_embeddings(20)
    with pytest.raises(ConfigError, match="encoder='marian': has a source vocabulary of its own"):
        words.resize_source_embeddings(20)


def test_the_target_vocabulary_of_a_model_over_an_encoder_grows() -> None:
    model = tiny_model(encoder=BERT, dtype=torch.float32)
    model.resize_target_embeddings(15)
    assert model.config.vocab_size == 15 and model.config.source_vocab_size == WORDS
    assert model(input_ids=IDS, labels=batch()["labels"]).logits.shape[2] == 15

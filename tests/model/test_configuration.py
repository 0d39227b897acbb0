"""Checks of a config and their messages, defaults that follow from other fields, saving and loading."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from hf_rnn_seq2seq import Attention, ConfigError, RnnSeq2SeqConfig, register_attention
from hf_rnn_seq2seq.model.attention import build_attention
from hf_rnn_seq2seq.model.config_checks import ATTENTION_NAMES, REGISTERED
from tests.helpers.models import config_fields, tiny_config

BEFORE = {"attention_order": "before_cell"}
POSITIVE = (
    "vocab_size",
    "source_vocab_size",
    "embedding_size",
    "hidden_size",
    "encoder_hidden_size",
    "encoder_layers",
    "decoder_layers",
    "encoder_transition_depth",
    "decoder_transition_depth",
    "decoder_upper_transition_depth",
    "context_size",
    "attention_size",
    "num_attention_heads",
    "attention_window_size",
    "max_source_positions",
    "coverage_size",
    "residual_start",
    "readout_size",
    "logits_memory_mb",
)
RATES = ("dropout", "recurrent_dropout", "weight_drop", "zoneout", "zoneout_cell", "word_dropout", "label_smoothing")
CHOICES = {
    "cell_type": ("lstm", "gru", "rnn_tanh", "rnn_relu"),
    "gru_reset": ("after", "before"),
    "bidirectional": ("all", "first", "none", "alternating"),
    "context": ("initial_state", "every_step", "attention"),
    "context_layers": ("first", "all"),
    "attention_order": ("after_cell", "before_cell"),
    "attention_layer": ("top", "bottom"),
    "attention_window": ("global", "local_m", "local_p"),
    "attention_normalization": ("softmax", "sparsemax", "entmax"),
    "attention_alignment": ("soft", "hard", "monotonic", "sampled"),
    "coverage": ("none", "sum", "gru"),
    "context_gate": ("none", "source", "target", "both", "scalar"),
    "bridge": ("zero", "copy", "mean", "dense", "backward_tanh"),
    "readout": ("linear", "tanh", "maxout"),
    "readout_state": ("current", "previous"),
    "embedding_activation": ("none", "relu"),
    "teacher_forcing_unit": ("token", "sentence"),
    "scheduled_sampling": ("none", "linear", "exponential", "inverse_sigmoid"),
    "scheduled_sampling_words": ("argmax", "sample"),
    "word_dropout_unit": ("token", "type"),
    "decoder_recurrence": ("auto", "scan", "loop"),
}
# Options that cannot be combined, and the whole message.
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"pad_token_id": 11}, "pad_token_id=11: must be in [0, vocab_size=11)"),
    ({"bos_token_id": -1}, "bos_token_id=-1: must be in [0, vocab_size=11)"),
    ({"eos_token_id": 12}, "eos_token_id=12: must be in [0, vocab_size=11)"),
    ({"eos_token_id": [2, 12]}, "eos_token_id=[2, 12]: must be in [0, vocab_size=11)"),
    ({"decoder_start_token_id": 99}, "decoder_start_token_id=99: must be in [0, vocab_size=11)"),
    (
        {"pad_token_id": 6, "source_vocab_size": 5},
        "pad_token_id=6: must be in [0, source_vocab_size=5), both vocabularies share it",
    ),
    (
        {"reverse_source": True},
        "reverse_source=True: needs bidirectional='none', not 'all', which reads both ways",
    ),
    ({"gru_reset": "before"}, "gru_reset='before': only cell_type='gru' has a reset gate, not 'lstm'"),
    ({"residual_start": 1}, "residual_start=1: must be 2 or more; layer 1 reads word vectors"),
    (
        {"residual_start": 2, "bidirectional": "first", "encoder_layers": 2},
        "residual_start=2: with bidirectional='first' layer 2 reads two directions and writes one; must be 3 or more",
    ),
    (
        {"context": "every_step", "input_feeding": True},
        "input_feeding=True: only context='attention' reads it; must be False",
    ),
    (
        {"context": "initial_state", "context_layers": "all"},
        "context_layers='all': context='initial_state' gives the layers no context",
    ),
    (
        {"attention_type": "dot", "encoder_hidden_size": 3},
        "attention_type='dot': the encoder's states (6 wide: encoder_hidden_size times directions) must be as wide as "
        "hidden_size=4",
    ),
    (
        {"attention_type": "scaled_dot", "hidden_size": 5},
        "attention_type='scaled_dot': the encoder's states (4 wide: encoder_hidden_size times directions) must be as "
        "wide as hidden_size=5",
    ),
    (
        {"attention_type": "location"},
        "max_source_positions=None: attention_type='location' needs the longest source length",
    ),
    (
        {"attention_type": "multi_head", "num_attention_heads": 3},
        "num_attention_heads=3: must divide attention_size=4",
    ),
    ({"attention_type": "multi_head", "num_attention_heads": 0}, "num_attention_heads=0: must be greater than 0"),
    (
        {"num_attention_heads": 2},
        "num_attention_heads=2: attention_type='general' has one head; several need one of "
        "['multi_head', 'multi_head_additive']",
    ),
    (
        {"copy_mechanism": True, "source_vocab_size": 13},
        "copy_mechanism=True: needs one vocabulary for both sides, source_vocab_size=13 must equal vocab_size=11",
    ),
    (
        {"copy_mechanism": True, "source_vocab_size": 11, "context": "every_step"},
        "copy_mechanism=True: needs context='attention', whose weights are the copy distribution, not 'every_step'",
    ),
    (
        BEFORE | {"input_feeding": True},
        "input_feeding=True: with attention_order='before_cell' the context enters the cell already",
    ),
    (
        {"context_layers": "all"},
        "context_layers='all': attention after the top layer comes too late for the layers below",
    ),
    (
        BEFORE | {"decoder_layers": 2, "decoder_transition_depth": 2},
        "decoder_transition_depth=2: with attention_order='before_cell' the context enters the first layer's second "
        "cell, so attention_layer must be 'bottom', not 'top' of decoder_layers=2",
    ),
    (
        {"readout_state": "previous"},
        "readout_state='previous': attention_order='after_cell' reads the current state",
    ),
    (
        BEFORE | {"readout_state": "previous", "residual_start": 2, "decoder_layers": 2},
        "readout_state='previous': the previous state is not kept with a residual top layer",
    ),
    ({"context_size": 3}, "context_size=3: only context='every_step' projects the final state; must be None"),
    (
        {"bridge": "backward_tanh", "bidirectional": "first", "encoder_layers": 2},
        "bridge='backward_tanh': needs a bidirectional top layer, not 'first'",
    ),
    (
        {"bridge": "backward_tanh", "bidirectional": "alternating"},
        "bridge='backward_tanh': no stack of bidirectional='alternating' is the backward one",
    ),
    (
        {"bridge": "copy", "encoder_layers": 2},
        "bridge='copy': the encoder's layers (widths [4, 4]) must be those of the decoder (1 of width 4); "
        "bridge='dense' projects them",
    ),
    (
        {"bridge": "copy", "encoder_hidden_size": 3},
        "bridge='copy': the encoder's layers (widths [6]) must be those of the decoder (1 of width 4); "
        "bridge='dense' projects them",
    ),
    (
        {"share_encoder_decoder_embeddings": True, "source_vocab_size": 13},
        "share_encoder_decoder_embeddings=True: source_vocab_size=13 must equal vocab_size=11",
    ),
    (
        {"tie_word_embeddings": True},
        "tie_word_embeddings=True: the readout (4 wide) must be as wide as embedding_size=5; set readout_size=5",
    ),
    (
        {"tie_word_embeddings": True, "readout": "linear"},
        "tie_word_embeddings=True: the readout (8 wide) must be as wide as embedding_size=5; set readout_size=5",
    ),
    ({"teacher_forcing_ratio": 1.5}, "teacher_forcing_ratio=1.5: must be in [0, 1]"),
    ({"scheduled_sampling_floor": -0.1}, "scheduled_sampling_floor=-0.1: must be in [0, 1]"),
    (
        {"scheduled_sampling_decay": 0.1},
        "scheduled_sampling_decay=0.1: only a schedule reads it, and scheduled_sampling is 'none'; must be None",
    ),
    (
        {"scheduled_sampling_floor": 0.1},
        "scheduled_sampling_floor=0.1: only a schedule reads it, and scheduled_sampling is 'none'; must be 0",
    ),
    (
        {"scheduled_sampling": "linear"},
        "scheduled_sampling_decay=None: scheduled_sampling='linear' needs above 0",
    ),
    (
        {"scheduled_sampling": "exponential", "scheduled_sampling_decay": 1.0},
        "scheduled_sampling_decay=1.0: scheduled_sampling='exponential' needs above 0 and below 1",
    ),
    (
        {"scheduled_sampling": "inverse_sigmoid", "scheduled_sampling_decay": 0.5},
        "scheduled_sampling_decay=0.5: scheduled_sampling='inverse_sigmoid' needs 1 or more",
    ),
    (
        {"scheduled_sampling": "exponential", "scheduled_sampling_decay": 0.9, "teacher_forcing_ratio": 0.5},
        "teacher_forcing_ratio=0.5: scheduled_sampling='exponential' decides the ratio itself; must be 1.0",
    ),
    *(
        (
            {"context": "initial_state", field: value},
            f"{field}={value!r}: only context='attention' reads it; must be {default!r}",
        )
        for field, value, default in (
            ("attention_window", "local_m", "global"),
            ("attention_normalization", "sparsemax", "softmax"),
            ("attention_alignment", "hard", "soft"),
            ("coverage", "sum", "none"),
            ("context_gate", "both", "none"),
            ("coverage_loss", 1.0, 0),
            ("guided_alignment_weight", 0.5, 0),
        )
    ),
    ({"entmax_alpha": 1.2}, "entmax_alpha=1.2: only attention_normalization='entmax' reads it; must be 1.5"),
    (
        {"attention_normalization": "sparsemax", "entmax_learned": True},
        "entmax_learned=True: only attention_normalization='entmax' reads it; must be False",
    ),
    (
        {"attention_normalization": "entmax", "entmax_alpha": 1},
        "entmax_alpha=1: must be greater than 1, which would be softmax",
    ),
    (
        {"attention_normalization": "entmax", "entmax_alpha": 2.0, "entmax_learned": True},
        "entmax_alpha=2.0: entmax_learned=True keeps it between 1 and 2",
    ),
    (
        {"coverage": "sum"},
        "coverage='sum': enters an additive score; attention_type must be one of 'additive', 'normed_additive', "
        "not 'general'",
    ),
    ({"window_components": 3}, "window_components=3: only attention_type='window' reads it; must be 10"),
    ({"attention_type": "window", "window_components": 0}, "window_components=0: must be greater than 0"),
    *(
        (
            {"attention_type": "window", name: value},
            f"{name}={value!r}: not with attention_type='window', whose weights are no distribution; "
            f"must be {allowed!r}",
        )
        for name, value, allowed in (
            ("attention_window", "local_p", "global"),
            ("attention_normalization", "sparsemax", "softmax"),
            ("coverage_loss", 0.5, 0),
            ("guided_alignment_weight", 0.5, 0),
            ("doubly_stochastic", 0.5, 0),
        )
    ),
    (
        {"attention_type": "window", "copy_mechanism": True, "source_vocab_size": 11},
        "copy_mechanism=True: not with attention_type='window', whose weights are no distribution; must be False",
    ),
    ({"coverage_size": 3}, "coverage_size=3: only coverage='gru' reads it; must be 10"),
    (
        {"context_gate": "both", "attention_layer": "bottom", "context_layers": "all"},
        "context_gate='both': gates the context of one layer, not of context_layers='all'",
    ),
    (
        {"context_gate": "source", "readout": "linear"},
        "context_gate='source': with attention_order='after_cell' it gates the readout, which must read the context "
        "(readout_context=True) and project it (readout_size=None)",
    ),
    (
        BEFORE | {"context_gate": "target", "layer_norm": True},
        "context_gate='target': with attention_order='before_cell' it gates the products of a plain cell, without "
        "layer_norm, gru_reset='before' or a decoder_transition_depth above 1",
    ),
    ({"coverage_loss": -1}, "coverage_loss=-1: must be 0 or more"),
    ({"feature_token_ids": []}, "feature_token_ids=[]: names no token; leave it out"),
    ({"feature_token_ids": [4, 11]}, "feature_token_ids=[4, 11]: 11 must be in [0, source_vocab_size=11)"),
    ({"feature_token_ids": [5, 2]}, "feature_token_ids=[5, 2]: 2 is a special token; must be another one"),
    ({"feature_token_ids": 4}, "feature_token_ids=4: must be list[int] or None"),
    (
        {"feature_token_ids": [9], "encoder": {"model_type": "bert", "hidden_size": 4, "num_attention_heads": 1}},
        "feature_token_ids=[9]: not with encoder='bert', its words are its own",
    ),
    ({"guided_alignment_weight": float("nan")}, "guided_alignment_weight=nan: must be a finite number"),
    ({"initializer_range": 0.0}, "initializer_range=0.0: must be greater than 0"),
    (
        {"cell_type": "gru", "zoneout_cell": 0.5},
        "zoneout_cell=0.5: only cell_type='lstm' has a cell; must be None",
    ),
    # types
    ({"hidden_size": "512"}, "hidden_size='512': must be int"),
    ({"hidden_size": 4.0}, "hidden_size=4.0: must be int"),
    ({"encoder_layers": True}, "encoder_layers=True: must be int"),
    ({"layer_norm": "yes"}, "layer_norm='yes': must be bool"),
    ({"dropout": "0.1"}, "dropout='0.1': must be float or int"),
    ({"readout_size": 2.5}, "readout_size=2.5: must be int or None"),
    ({"eos_token_id": "2"}, "eos_token_id='2': must be int or list[int] or None"),
    ({"attention_type": None}, "attention_type=None: must be str"),
]


@pytest.mark.parametrize(
    ("options", "message"), REFUSED, ids=lambda value: "" if isinstance(value, str) else str(value)
)
def test_invalid_combinations_are_refused(options: dict[str, Any], message: str) -> None:
    vocabularies = {"vocab_size": 11, "embedding_size": 5, "hidden_size": 4}
    with pytest.raises(ConfigError) as caught:
        RnnSeq2SeqConfig(**(vocabularies | options))
    assert str(caught.value) == message


@pytest.mark.parametrize("field", POSITIVE)
@pytest.mark.parametrize("value", [0, -3])
def test_sizes_are_positive(field: str, value: int) -> None:
    with pytest.raises(ConfigError) as caught:
        RnnSeq2SeqConfig(**{field: value})
    assert str(caught.value) == f"{field}={value}: must be greater than 0"


@pytest.mark.parametrize("field", RATES)
@pytest.mark.parametrize("value", [-0.1, 1, 2.0, float("nan")])
def test_probabilities_are_below_one(field: str, value: float) -> None:
    with pytest.raises(ConfigError) as caught:
        RnnSeq2SeqConfig(**{field: value})
    allowed = "must be in [0, 1)" if value == value else "must be a finite number"
    assert str(caught.value) == f"{field}={value!r}: {allowed}"


@pytest.mark.parametrize("field", CHOICES)
def test_choices_are_named(field: str) -> None:
    message = f"{field}='unheard_of': must be one of {', '.join(map(repr, CHOICES[field]))}"
    with pytest.raises(ConfigError) as caught:
        RnnSeq2SeqConfig(**{field: "unheard_of"})
    assert str(caught.value) == message
    config = RnnSeq2SeqConfig()
    with pytest.raises(ConfigError) as caught:
        setattr(config, field, "unheard_of")
    assert str(caught.value) == message
    assert getattr(config, field) != "unheard_of"


def test_scores_are_named() -> None:
    with pytest.raises(ConfigError) as caught:
        RnnSeq2SeqConfig(attention_type="adative")
    assert str(caught.value) == (
        f"attention_type='adative': must be one of {sorted({*ATTENTION_NAMES, *REGISTERED})}, "
        "or be registered first with register_attention(name, cls), on the command line by --import FILE"
    )
    built_in = {"additive", "concat", "dot", "general", "location", "multi_head", "multi_head_additive"}
    assert built_in | {"normed_additive", "scaled_dot"} <= ATTENTION_NAMES


def test_every_choice_is_tried() -> None:
    own = config_fields()
    assert {name for name, annotation in own.items() if "Literal" in str(annotation)} == set(CHOICES)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("hiden_size", "; did you mean 'hidden_size'?"),
        ("attention_typ", "; did you mean 'attention_type'?"),
        ("zzz", ""),
    ],
)
def test_a_misspelled_field_is_refused(name: str, hint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        RnnSeq2SeqConfig(**{name: 3})
    assert str(caught.value) == f"{name!r} is not a field of RnnSeq2SeqConfig{hint}"


def test_a_file_with_a_misspelled_field_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "rnn_seq2seq", "hidden_sise": 4}')
    with pytest.raises(
        ConfigError, match="'hidden_sise' is not a field of RnnSeq2SeqConfig; did you mean 'hidden_size'"
    ):
        AutoConfig.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("options", "filled"),
    [
        ({}, {"encoder_hidden_size": 2, "source_vocab_size": 11, "attention_size": 4, "readout_size": 4}),
        ({}, {"input_feeding": True, "readout_embedding": False, "decoder_upper_transition_depth": 1}),
        ({"bidirectional": "none"}, {"encoder_hidden_size": 4}),
        ({"bidirectional": "first"}, {"encoder_hidden_size": 2}),
        ({"bidirectional": "first", "encoder_layers": 2}, {"encoder_hidden_size": 4}),
        ({"hidden_size": 1}, {"encoder_hidden_size": 1}),
        (BEFORE, {"input_feeding": False}),
        ({"context": "every_step"}, {"input_feeding": False}),
        ({"attention_alignment": "hard"}, {"input_feeding": False}),
        ({"readout": "linear"}, {"readout_size": None}),
        ({"readout": "maxout"}, {"readout_embedding": True, "readout_size": 4}),
        ({"decoder_transition_depth": 3}, {"decoder_upper_transition_depth": 3}),
        ({"attention_type": "concat"}, {"attention_type": "additive"}),
    ],
    ids=str,
)
def test_defaults_follow_from_other_fields(options: dict[str, Any], filled: dict[str, Any]) -> None:
    config = RnnSeq2SeqConfig(**({"vocab_size": 11, "hidden_size": 4} | options))
    assert {name: getattr(config, name) for name in filled} == filled


# Each field away from what the rest would fill in: nothing may be lost for being like the default of another config.
ODD: list[dict[str, Any]] = [
    {"hidden_size": 256, "encoder_hidden_size": 256},
    {"vocab_size": 11, "source_vocab_size": 8000},
    {"hidden_size": 256, "attention_size": 512},
    {"readout": "linear", "readout_size": 512},
    {"decoder_transition_depth": 2, "decoder_upper_transition_depth": 1},
    {"readout": "maxout", "readout_embedding": False},
    {"input_feeding": False, "use_cache": False, "eos_token_id": [2, 5], "pad_token_id": None},
    {"dropout": 0.25, "initializer_range": 0.08, "tie_word_embeddings": True, "readout_size": 256},
]


@pytest.mark.parametrize("options", ODD, ids=str)
def test_a_saved_config_loads_equal(options: dict[str, Any], tmp_path: Path) -> None:
    config = RnnSeq2SeqConfig(**options)
    config.save_pretrained(tmp_path)
    for loaded in (AutoConfig.from_pretrained(tmp_path), RnnSeq2SeqConfig.from_dict(config.to_dict())):
        fields = config_fields()
        assert {name: getattr(loaded, name) for name in fields} == {name: getattr(config, name) for name in fields}
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "rnn_seq2seq"


def test_a_config_made_invalid_later_is_not_saved(tmp_path: Path) -> None:
    config = RnnSeq2SeqConfig()
    config.dropout = 2.0
    with pytest.raises(ConfigError, match=r"dropout=2.0: must be in \[0, 1\)"):
        config.save_pretrained(tmp_path)
    assert not (tmp_path / "config.json").exists()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dropout": 2.0}, r"dropout=2.0: must be in \[0, 1\)"),
        ({"attention_order": "before_cell"}, "input_feeding=True: with attention_order='before_cell'"),
        ({"scheduled_sampling": "linear"}, "scheduled_sampling_decay=None"),
        ({"eos_token_id": 999}, "eos_token_id=999"),
    ],
)
def test_fields_that_replace_those_of_a_checkpoint_are_checked(
    fields: dict[str, Any], message: str, tmp_path: Path
) -> None:
    RnnSeq2SeqConfig(vocab_size=20).save_pretrained(tmp_path)
    for load in (RnnSeq2SeqConfig.from_pretrained, AutoConfig.from_pretrained):
        with pytest.raises(ConfigError, match=message):
            load(tmp_path, **fields)
        assert load(tmp_path, attention_type="concat", dropout=0.5).attention_type == "additive"


def test_names_that_transformers_reads() -> None:
    config = RnnSeq2SeqConfig(encoder_layers=3)
    assert config.num_hidden_layers == 3
    assert config.is_encoder_decoder
    assert config.keys_to_ignore_at_inference == ["cache"]


def test_an_unknown_preset_is_refused() -> None:
    with pytest.raises(ConfigError, match="preset='bahdanau2041': must be one of .*bahdanau2014"):
        RnnSeq2SeqConfig.from_preset("bahdanau2041")


class Uniform(Attention):
    """The same weight everywhere."""

    def score(self, query, keys, source_positions):
        return query.new_zeros(query.shape[0], 1, query.shape[1], keys.shape[1])


def test_register_attention() -> None:
    with pytest.raises(ConfigError, match=r"attention_type='uniform'.*register_attention\(name, cls\)"):
        tiny_config(attention_type="uniform")
    register_attention("uniform", Uniform)
    register_attention("uniform", Uniform)  # the same again, as a notebook cell does
    assert type(build_attention(tiny_config(attention_type="uniform"))) is Uniform
    with pytest.raises(ConfigError, match="'uniform'.*is taken by another score"):
        register_attention("uniform", type("Other", (Attention,), {}))
    for taken in ("general", "concat"):
        with pytest.raises(ConfigError, match=f"'{taken}'.*is taken by another score"):
            register_attention(taken, Uniform)
    with pytest.raises(ConfigError, match="must be a subclass of Attention"):
        register_attention("mine", dict)

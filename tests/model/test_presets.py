"""Every preset is its paper's system, and works: equations, training, generation, saving, remote code."""

import json
import re
import subprocess
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hf_rnn_seq2seq import ConfigError, RnnSeq2SeqConfig, RnnSeq2SeqForConditionalGeneration
from hf_rnn_seq2seq.model.presets import PRESETS
from tests.helpers import warm
from tests.helpers.models import SOURCES, TARGETS, batch, decoder_inputs, randomize
from tests.helpers.paper_systems import EQUATIONS, SIZES

NAMES = ["sutskever2014", "cho2014", "bahdanau2014", "luong2015", "gnmt2016", "rnmt_plus2018", "bideep2017"]
NAMES += ["seminar", "seminar_attention", "multi_head", "transformer_encoder", "bert_encoder", "xu2015"]
OF_TEXT = [name for name in NAMES if name != "xu2015"]
PICTURES = torch.randn(3, 3, 12, 12, generator=torch.Generator().manual_seed(1))
SMALL = {"vocab_size": 13, "embedding_size": 5, "hidden_size": 4}


def small_config(name: str, **options: Any) -> RnnSeq2SeqConfig:
    return RnnSeq2SeqConfig.from_preset(name, **{**SMALL, **SIZES[name], **options})


def small_model(name: str, *, dtype: torch.dtype = torch.float64, **options: Any) -> RnnSeq2SeqForConditionalGeneration:
    """In evaluation mode, every parameter far from zero."""
    model = RnnSeq2SeqForConditionalGeneration(small_config(name, **options)).to(dtype).eval()
    randomize(model)
    return model


def given(name: str) -> dict[str, Tensor]:
    """The batch that a preset's system reads, of texts or of pictures."""
    return batch() if name in OF_TEXT else {"pixel_values": PICTURES, "labels": batch()["labels"]}


def test_the_presets_are_those_of_the_table() -> None:
    assert list(PRESETS) == NAMES == list(EQUATIONS)


# ------------------------------------------------------------------------------------------------ the equations


WINDOWS = {"luong2015 local_m": {"attention_window": "local_m"}, "luong2015 local_p": {"attention_window": "local_p"}}


@pytest.mark.parametrize("case", [*NAMES, *WINDOWS])
def test_preset_equals_its_paper(case: str) -> None:
    """Scores and gradients of a ragged batch equal those of the paper's loops over each sentence."""
    name, options = case.split()[0], WINDOWS.get(case, {})
    equations = EQUATIONS[name]
    if options:
        equations = partial(equations, window=options["attention_window"])
    # Training without dropout is the same function, on the path that training takes.
    model = small_model(name, dropout=0.0, label_smoothing=0.0, **options).train()
    weights = model.state_dict(keep_vars=True)
    inputs, sources = given(name), SOURCES
    if name not in OF_TEXT:
        inputs["pixel_values"] = inputs["pixel_values"].double()
        sources = [list(regions) for regions in model.get_encoder().foreign(pixel_values=inputs["pixel_values"])]
        assert len(sources[0]) == 9
    expected = [torch.stack(equations(weights, s, t)) for s, t in zip(sources, decoder_inputs(), strict=True)]
    wanted = gradients(model, cross_entropy(expected))

    logits = model(**inputs, skip_logits=False).logits
    found_scores = [row[: len(labels)] for row, labels in zip(logits, TARGETS, strict=True)]
    torch.testing.assert_close(found_scores, expected, rtol=1e-9, atol=1e-10)
    found = gradients(model, cross_entropy(found_scores))
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-7, atol=1e-10, msg=lambda m, p=name: f"{p}: {m}")
    unused = [parameter for parameter, gradient in wanted.items() if not gradient.any()]
    assert not unused, f"the paper's equations do not read {unused}"


def cross_entropy(scores: list[Tensor]) -> Tensor:
    """Sum over the words of the batch; in float64, where the model's own loss is taken in float32."""
    return sum(
        F.cross_entropy(s, torch.tensor(labels), reduction="sum") for s, labels in zip(scores, TARGETS, strict=True)
    )


def gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    names, parameters = zip(*trained, strict=True)
    found = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    return {
        name: torch.zeros_like(parameter) if gradient is None else gradient
        for name, parameter, gradient in zip(names, parameters, found, strict=True)
    }


# ------------------------------------------------------------------------------------------------ the papers' numbers


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        # Section 3.4: 4 layers of 1000, words of 1000, 160,000 and 80,000 words, uniform in 0.08.
        ("sutskever2014", "4 4 1000 1000 1000 160000 80000 0.0 0.08"),
        # Section 4.1: 1000 units, rank 100, 15,000 words.
        ("cho2014", "1 1 1000 1000 100 15000 15000 0.0 None"),
        # Appendix A.2.3: 1000 units, m = 620, 30,000 words.
        ("bahdanau2014", "1 1 1000 1000 620 30000 30000 0.0 None"),
        # Section 4.1: 4 layers of 1000, words of 1000, 50,000 words, dropout 0.2, uniform in 0.1.
        ("luong2015", "4 4 1000 1000 1000 50000 50000 0.2 0.1"),
        # Figure 1 and section 8.3: 8 layers of 1024, 32,000 wordpieces, dropout 0.2, uniform in 0.04.
        ("gnmt2016", "8 8 1024 1024 1024 32000 32000 0.2 0.04"),
        # Section 4.1: 6 and 8 layers of 1024.
        ("rnmt_plus2018", "6 8 1024 1024 1024 32000 32000 0.2 0.04"),
        # The authors' script: 4 and 4 levels, dim 1024, dim_word 512, 90,000 subwords.
        ("bideep2017", "4 4 1024 1024 512 90000 90000 0.0 None"),
        # hidden_size = 256.
        ("seminar", "1 1 256 256 256 8000 8000 0.0 None"),
        ("seminar_attention", "1 1 256 256 256 8000 8000 0.0 None"),
        ("multi_head", "2 2 256 512 512 32000 32000 0.1 None"),
        ("transformer_encoder", "0 1 None 512 512 32000 32000 0.1 None"),
        ("bert_encoder", "1 1 256 512 256 30522 8000 0.2 None"),
        # Section 5: 10,000 words.
        ("xu2015", "0 1 None 1000 512 None 10000 0.5 None"),
    ],
)
def test_sizes_are_the_papers(name: str, sizes: str) -> None:
    c = RnnSeq2SeqConfig.from_preset(name)
    actual = [c.encoder_layers, c.decoder_layers, c.encoder_hidden_size, c.hidden_size, c.embedding_size]
    actual += [c.source_vocab_size, c.vocab_size, float(c.dropout), c.initializer_range]
    assert " ".join(map(str, actual)) == sizes


def test_every_docstring_says_where_it_departs_and_what_it_costs() -> None:
    for name, preset in PRESETS.items():
        for heading in ("Departs:", "Time loop:"):
            assert heading in preset.__doc__, f"{name}: no {heading}"


@pytest.mark.parametrize("name", ["sutskever2014", "luong2015"])
def test_weights_are_initialized_as_in_the_paper(name: str) -> None:
    model = RnnSeq2SeqForConditionalGeneration(small_config(name))
    width = model.config.initializer_range
    values = torch.cat([parameter.flatten() for parameter in model.parameters()])
    assert values.abs().max() <= width and values.abs().max() > 0.9 * width


# ------------------------------------------------------------------------------------------------ overrides, refusals


def test_one_vocabulary_size_sets_both() -> None:
    config = RnnSeq2SeqConfig.from_preset("sutskever2014", vocab_size=99)
    assert (config.source_vocab_size, config.vocab_size) == (99, 99)
    config = RnnSeq2SeqConfig.from_preset("sutskever2014", vocab_size=99, source_vocab_size=55)
    assert (config.source_vocab_size, config.vocab_size) == (55, 99)


def test_help_names_each_preset_and_its_paper() -> None:
    actual = " ".join(RnnSeq2SeqConfig.from_preset.__doc__.split())
    assert re.findall(r"\* `(\w+)`:", actual) == list(PRESETS)
    entries = dict(zip(PRESETS, re.split(r"\* `\w+`:", actual)[1:], strict=True))
    for name in NAMES[:7]:
        (paper,) = re.findall(r"\d{4}, [\w' -]+", " ".join(PRESETS[name].__doc__.split())[:150])[:1]
        assert paper in entries[name]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("bahdanau", {}, "preset='bahdanau': must be one of bahdanau2014, "),
        (
            "luong2015",
            {"hiden_size": 3},
            "'hiden_size' is not a field of RnnSeq2SeqConfig; did you mean 'hidden_size'?",
        ),
        ("sutskever2014", {"bidirectional": "all"}, "reverse_source=True: needs bidirectional='none'"),
        ("sutskever2014", {"decoder_layers": 3}, "bridge='copy': the encoder's layers"),
        (
            "sutskever2014",
            {"attention_window": "local_p"},
            "attention_window='local_p': only context='attention'",
        ),
        ("bahdanau2014", {"cell_type": "lstm"}, "gru_reset='before': only cell_type='gru' has a reset gate"),
        ("bahdanau2014", {"bidirectional": "none"}, "bridge='backward_tanh': needs a bidirectional top layer"),
        (
            "bahdanau2014",
            {"bidirectional": "alternating"},
            "no stack of bidirectional='alternating' is the backward one",
        ),
        ("bahdanau2014", {"input_feeding": True}, "input_feeding=True: with attention_order='before_cell'"),
        ("bahdanau2014", {"attention_order": "after_cell"}, "readout_state='previous': attention_order='after_cell'"),
        ("luong2015", {"attention_type": "location"}, "max_source_positions=None: attention_type='location'"),
        ("luong2015", {"encoder_hidden_size": 7}, "bridge='copy': the encoder's layers"),
        ("luong2015", {"readout_context": False}, "readout_context=False: with attention_order='after_cell' nothing"),
        ("luong2015", {"num_attention_heads": 4}, "attention_type='general' has one head"),
        (
            "gnmt2016",
            {"attention_order": "after_cell", "attention_layer": "top"},
            "context_layers='all': attention after",
        ),
        ("rnmt_plus2018", {"num_attention_heads": 3}, "num_attention_heads=3: must divide attention_size=1024"),
        ("bideep2017", {"attention_layer": "top"}, "decoder_transition_depth=4: with attention_order='before_cell'"),
        ("bideep2017", {"embedding_size": 64}, "tie_word_embeddings=True: the readout (512 wide)"),
        (
            "seminar_attention",
            {"encoder_hidden_size": 9, "bridge": "dense"},
            "attention_type='dot': the encoder's states",
        ),
    ],
)
def test_invalid_overrides_are_refused(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        RnnSeq2SeqConfig.from_preset(name, **options)


# ------------------------------------------------------------------------------------------------ it works


@pytest.mark.thinned(2)
@pytest.mark.parametrize("name", NAMES)
def test_preset_learns_and_generates(name: str) -> None:
    """The loss decreases, and each greedy word is the most probable one after the words before it."""
    torch.manual_seed(0)
    options = {"dropout": 0.0, "label_smoothing": 0.0, "initializer_range": 0.4}
    model = RnnSeq2SeqForConditionalGeneration(small_config(name, **options)).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
    losses = []
    for _ in range(15):
        loss = model(**given(name)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.85 * losses[0]
    model.eval()
    features = {key: value for key, value in given(name).items() if key != "labels"}
    written = model.generate(**features, max_new_tokens=6)
    best = model(**features, decoder_input_ids=written[:, :-1]).logits.argmax(-1)
    for words, chosen in zip(written[:, 1:].tolist(), best.tolist(), strict=True):
        length = words.index(2) + 1 if 2 in words else len(words)
        assert words[:length] == chosen[:length]
    assert model.generate(**features, num_beams=3, max_new_tokens=6).shape[0] == len(SOURCES)


@pytest.mark.parametrize("name", NAMES)
def test_with_its_own_dropout_and_smoothing_a_step_is_finite(name: str) -> None:
    torch.manual_seed(0)
    model = RnnSeq2SeqForConditionalGeneration(small_config(name)).train()
    model(**given(name)).loss.backward()
    assert all(torch.isfinite(p.grad).all() and p.grad.any() for p in model.parameters() if p.requires_grad)


LOADER = """
import json, sys, torch
sys.modules["hf_rnn_seq2seq"] = None  # importing it is an error: the checkpoint's own code must do
from transformers import AutoModelForSeq2SeqLM
told = {}
for folder in sys.argv[1:]:
    model = AutoModelForSeq2SeqLM.from_pretrained(folder, trust_remote_code=True).eval()
    ids = torch.tensor([[5, 7, 3, 2]])
    logits = model(input_ids=ids, decoder_input_ids=torch.tensor([[1, 6, 4]])).logits
    words = model.generate(ids, num_beams=2, max_new_tokens=5)
    told[folder] = [type(model).__module__, logits.tolist(), words.tolist()]
print(json.dumps(told))
"""


@pytest.mark.parametrize("names", [OF_TEXT[:2], pytest.param(OF_TEXT[2:], marks=pytest.mark.long)])
def test_presets_save_load_and_load_with_remote_code(names: list[str], tmp_path: Path) -> None:
    """A loaded checkpoint computes the same numbers and words, with the package and in a process without it."""
    expected: dict[str, list[Any]] = {}
    ids, read = torch.tensor([[5, 7, 3, 2]]), torch.tensor([[1, 6, 4]])
    for name in names:
        model = small_model(name, dtype=torch.float32)
        folder = str(tmp_path / name)
        model.save_pretrained(folder)
        loaded = RnnSeq2SeqForConditionalGeneration.from_pretrained(folder).eval()
        assert {**loaded.config.to_dict(), "_name_or_path": ""} == {**model.config.to_dict(), "_name_or_path": ""}
        with torch.no_grad():
            logits = model(input_ids=ids, decoder_input_ids=read).logits
            torch.testing.assert_close(loaded(input_ids=ids, decoder_input_ids=read).logits, logits)
        expected[folder] = [logits.tolist(), model.generate(ids, num_beams=2, max_new_tokens=5).tolist()]
    words = [*warm.python(package=False), "-c", LOADER, *expected]
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    actual = json.loads(done.stdout.splitlines()[-1])
    for folder, numbers in expected.items():
        assert actual[folder][0].startswith("transformers_modules.")
        torch.testing.assert_close(torch.tensor(actual[folder][1]), torch.tensor(numbers[0]))
        assert actual[folder][2] == numbers[1]

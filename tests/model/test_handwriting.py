"""The networks that write by hand: equations, writing, priming, bias, and the end by the window."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel

from hf_rnn_seq2seq import ConfigError, RnnForHandwriting, RnnHandwritingConfig
from hf_rnn_seq2seq.model.mixture_density import Mixture
from hf_rnn_seq2seq.model.pen_points import START, height, simplify, to_points, to_strokes
from tests.helpers import pen_references
from tests.helpers.models import config_fields, randomize
from tests.helpers.reference_model import decode
from tests.helpers.references import affine, under

ALPHABET = "abcé"
SMALL = {"hidden_size": 5, "decoder_layers": 3, "mixture_components": 2, "offset_deviation": [0.5, 0.25]}
TEXTS = ["cab", "é", "abba"]
HOOK = [[[0, 0], [10, 30], [20, 0]], [[25, 40]], [[30, 10], [31, 0]]]


def small_model(text: bool = True, *, dtype: torch.dtype = torch.float64, **options: Any) -> RnnForHandwriting:
    """In evaluation mode; every parameter is away from zero."""
    options = {**SMALL, **({"alphabet": ALPHABET, "window_components": 2} if text else {}), **options}
    model = RnnForHandwriting(RnnHandwritingConfig(**options)).to(dtype).eval()
    randomize(model, deviation=0.4)
    return model


def labels(lengths: tuple[int, ...] = (4, 2, 6), seed: int = 1) -> Tensor:
    """Points of rows of these lengths; -100 behind them."""
    generator = torch.Generator().manual_seed(seed)
    points = torch.full((len(lengths), max(lengths), 3), -100.0, dtype=torch.float64)
    for row, length in enumerate(lengths):
        points[row, :length] = torch.randn(length, 3, generator=generator, dtype=torch.float64)
        points[row, :length, 2] = (points[row, :length, 2] > 0).double()
    return points


def slowly(model: RnnForHandwriting, text: str | None, points: Tensor) -> list[Tensor]:
    """The outputs after the starting point and each point but the last, by the equations of sections 4.1 and 5.1."""
    config, weights = model.config, model.state_dict(keep_vars=True)
    zero = (points.new_zeros(config.hidden_size),) * 2
    characters = []
    if text is not None:
        characters = list(torch.eye(len(ALPHABET), dtype=torch.float64)[[ALPHABET.index(letter) for letter in text]])
    read = [points.new_tensor(START), *points[:-1]]
    target = decode(config, under(weights, "decoder"), characters, [zero] * config.decoder_layers, None, read)
    return [affine(weights, "density.project", readout) for readout in target.readouts]


@pytest.mark.parametrize("text", [True, False])
def test_loss_and_gradients_are_those_of_the_equations(text: bool) -> None:
    """Of a ragged batch; equations 1 to 3, 15 to 26, with a text 46 to 55."""
    model, given = small_model(text).train(), labels()
    expected = []
    for row, length in enumerate((4, 2, 6)):
        points = given[row, :length]
        for outputs, point in zip(slowly(model, TEXTS[row] if text else None, points), points, strict=True):
            each = outputs[1:].split([2, 4, 4, 2])
            density = outputs.new_zeros(())
            for number in range(2):
                m, s = each[1].view(2, 2)[number], torch.exp(each[2].view(2, 2)[number])
                rho = torch.tanh(each[3][number])
                a, b = (point[:2] - m) / s
                z = a**2 + b**2 - 2 * rho * a * b
                normal = torch.exp(-z / (2 * (1 - rho**2))) / (2 * math.pi * s[0] * s[1] * torch.sqrt(1 - rho**2))
                density = density + torch.exp(each[0][number]) / torch.exp(each[0]).sum() * normal
            e = 1 / (1 + torch.exp(outputs[0]))
            expected.append(-torch.log(density) - torch.log(e if point[2] == 1 else 1 - e))
    wanted = torch.stack(expected).mean()
    parameters = list(model.parameters())
    gradients = torch.autograd.grad(wanted, parameters)
    loss = model(labels=given, input_ids=model.characters(TEXTS) if text else None).loss
    torch.testing.assert_close(loss, wanted)
    torch.testing.assert_close(torch.autograd.grad(loss, parameters), gradients)
    assert all(gradient.any() for gradient in gradients)


def test_the_window_is_that_of_the_equations() -> None:
    """phi, w and kappa of several steps, and the derivatives of one (equations 46 to 51 and 56 to 60)."""
    model = small_model()
    window = model.decoder.attention.window_over_source
    query = torch.randn(1, 6, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    characters = torch.eye(4, dtype=torch.float64)[[2, 0, 1]]
    mask, center = torch.tensor([[False, True, True, False, True]]), window.start(torch.zeros(1, 5).double())
    kappa = [torch.zeros((), dtype=torch.float64)] * 2
    for time in range(6):
        parameters = (window.project(query[0, time]) + window.bias).detach().requires_grad_()
        before = [float(number) for number in kappa]
        read, phi, kappa = pen_references.window(parameters, kappa, list(characters))
        weights, center = window(query[:, time], mask, center)
        torch.testing.assert_close(weights[0, mask[0]], torch.stack(phi))
        torch.testing.assert_close(center[0], torch.stack(kappa))
        assert not weights[0, ~mask[0]].any()
        assert all(new > old for new, old in zip(kappa, before, strict=True))
        of_read = torch.tensor([0.3, -1.0, 0.2, 2.0], dtype=torch.float64)
        (found,) = torch.autograd.grad(of_read @ read, parameters)
        wanted = pen_references.window_gradient(parameters.detach(), before, characters, of_read)
        torch.testing.assert_close(found, torch.tensor(sum(wanted, []), dtype=torch.float64))
        kappa = [number.detach() for number in kappa]


def test_a_window_never_moves_back_and_stays_finite() -> None:
    """Also where the outputs of its layer are far out."""
    window = small_model(dtype=torch.float32).decoder.attention.window_over_source
    center, mask = window.start(torch.zeros(2, 3)), torch.ones(2, 3, dtype=torch.bool)
    for size in (1.0, 1e3, 1e9):
        query = size * torch.randn(2, 5, generator=torch.Generator().manual_seed(3))
        weights, after = window(query, mask, center)
        assert (after >= center).all() and weights.isfinite().all() and after.isfinite().all()
        center = after


def test_one_step_after_another_equals_all_at_once() -> None:
    model, given = small_model(), labels((6, 6, 6))
    whole = model(labels=given, input_ids=model.characters(TEXTS))
    points = torch.cat([torch.zeros(3, 1, 3), given[:, :-1]], 1)
    cache, parts = None, []
    for time in range(6):
        ids = None if cache else model.characters(TEXTS)
        output = model(points[:, time : time + 1], ids, cache=cache, use_cache=True)
        cache = output.cache
        parts.append(output)
    for number, tensor in enumerate(whole.mixture):
        torch.testing.assert_close(torch.cat([part.mixture[number] for part in parts], 1), tensor)
    torch.testing.assert_close(torch.cat([part.window for part in parts], 1), whole.window)


def test_a_row_in_a_batch_is_the_row_alone() -> None:
    model, given = small_model(), labels((5, 5, 5))
    together = model(labels=given, input_ids=model.characters(TEXTS))
    for row, text in enumerate(TEXTS):
        alone = model(labels=given[row : row + 1], input_ids=model.characters([text]))
        torch.testing.assert_close(together.mixture.mean[row], alone.mixture.mean[0])
        torch.testing.assert_close(together.window[row, :, : len(text) + 1], alone.window[0])
        assert not together.window[row, :, len(text) + 1 :].any()


# ------------------------------------------------------------------------------------------------ points


def test_strokes_become_points_and_strokes_again() -> None:
    points = to_points(HOOK, 10.0, 0.0)
    assert points[0] == START and [end for _, _, end in points] == [0, 0, 1, 1, 0, 1]
    back = to_strokes(points, 10.0)
    assert back == [[pytest.approx(tuple(map(float, place))) for place in stroke] for stroke in HOOK]


def test_a_first_dot_is_two_points() -> None:
    assert to_points([[[3, 4]], [[3, 5], [3, 6]]], 1.0, 0.0) == [(0, 0, 0), (0, 0, 1), (0, 1, 0), (0, 1, 1)]


def test_heights() -> None:
    assert (height(HOOK), height([[[1, 5], [4, 5]]]), height([[[2, 2]]])) == (40.0, 3.0, 1.0)


def test_places_near_the_line_are_left_out() -> None:
    """The line through those that stay is as near to each place as the tolerance."""
    wave = [(x / 10, math.sin(x / 10)) for x in range(100)]
    for tolerance in (0.0, 0.001, 0.02, 0.3):
        kept = simplify(wave, tolerance)
        assert (len(kept) == 100) == (tolerance == 0) and kept[0] == wave[0] and kept[-1] == wave[-1]
        for x, y in wave:
            distances = []
            for (x1, y1), (x2, y2) in zip(kept, kept[1:], strict=False):
                if x1 <= x <= x2:
                    distances.append(abs((x2 - x1) * (y1 - y) - (x1 - x) * (y2 - y1)) / math.hypot(x2 - x1, y2 - y1))
            assert min(distances) <= tolerance + 1e-9
    assert simplify([(0, 0), (5, 0), (0, 0)], 0.1) == [(0, 0), (5, 0), (0, 0)]  # there and back


# ------------------------------------------------------------------------------------------------ writing


@pytest.mark.parametrize("bias", [0.0, 0.5, 1.0, 5.0])
def test_writing_is_finite_and_repeatable(bias: float) -> None:
    model = small_model(dtype=torch.float32)
    first, again = (
        model.write(TEXTS, bias=bias, generator=torch.Generator().manual_seed(4), max_points=30) for _ in range(2)
    )
    assert [one.strokes for one in first] == [one.strokes for one in again]
    for one, text in zip(first, TEXTS, strict=True):
        assert one.text == text and one.points.isfinite().all() and 2 <= len(one.points) <= 31
        assert one.window.shape == (len(one.points), len(text) + 1)
        assert one.mixture.mean.shape == (len(one.points), 2, 2)
        assert sum(map(len, one.strokes)) == len(one.points)


def test_the_points_are_drawn_from_the_mixtures() -> None:
    """A large bias leaves the likeliest mean; window and densities are those of a pass over the points."""
    model = small_model()
    written = model.write("cab", bias=60.0, generator=torch.Generator().manual_seed(0), max_points=12)
    output = model(written.points[None], model.characters(["cab"]))
    torch.testing.assert_close(output.window[0], written.window)
    for time, point in enumerate(written.points[1:]):
        best = output.mixture.weight[0, time].argmax()
        torch.testing.assert_close(point[:2], output.mixture.mean[0, time, best])
    first, second = written.strokes[0][:2]
    offset = [(b - a) / d for a, b, d in zip(first, second, [0.5, 0.25], strict=True)]
    torch.testing.assert_close(torch.tensor(offset, dtype=torch.float64), written.points[1, :2])


def lift_pen(model: RnnForHandwriting, always: bool) -> None:
    """Each point ends a stroke, or none does."""
    with torch.no_grad():
        model.density.project.bias[0] = -1e3 if always else 1e3


def test_a_writing_ends_where_the_window_has_passed_the_text() -> None:
    """Section 5.3; the window is made to walk one character in three points."""
    model = small_model()
    lift_pen(model, always=True)
    window = model.decoder.attention.window_over_source
    with torch.no_grad():
        window.project.weight.zero_()
        window.bias.copy_(torch.tensor([0.0, 0.0, 2.0, 2.0, *[math.log(1 / 3)] * 2]))
    for text, written in zip(TEXTS, model.write(TEXTS), strict=True):
        # kappa is t / 3 and has passed U + 1/2, the middle between the last character and the place behind it.
        assert written.finished and len(written.points) == math.floor(3 * (len(text) + 0.5)) + 1
        *early, last = written.window.argmax(1).tolist()
        assert last == len(text) and max(early) < len(text) and early == sorted(early)
    for max_points in (5, 14):
        short = model.write("abba", max_points=max_points)
        assert short.finished == (max_points == 14)
    lift_pen(model, always=False)
    assert not model.write("abba", max_points=30).finished
    short = model.write("abba", max_points=5)
    assert not short.finished and len(short.points) == 6 and len(short.mixture.end) == len(short.window) == 6


def test_a_writing_finishes_its_stroke() -> None:
    """The window runs ahead of the pen: the first point that ends a stroke behind the text is the last one."""
    model = small_model()
    window = model.decoder.attention.window_over_source
    with torch.no_grad():
        window.project.weight.zero_()
        window.bias.copy_(torch.tensor([0.0, 0.0, 2.0, 2.0, *[math.log(1 / 3)] * 2]))
    written = model.write(["abba"] * 20, generator=torch.Generator().manual_seed(0))
    for one in written:
        passed = one.window.argmax(1) == 4
        ends = (passed & (one.points[:, 2] == 1)).nonzero().flatten().tolist()
        assert one.finished and ends == [len(one.points) - 1]
    assert len({len(one.points) for one in written}) > 1


def test_a_window_that_jumps_over_the_end_has_passed_it() -> None:
    """There every weight is 0, and none is the largest."""
    model = small_model()
    lift_pen(model, always=True)
    window = model.decoder.attention.window_over_source
    with torch.no_grad():
        window.project.weight.zero_()
        window.bias.copy_(torch.tensor([0.0, 0.0, 6.0, 6.0, 5.0, 5.0]))
    written = model.write("abba")
    assert written.finished and not written.window[-1].any() and len(written.points) == 2


def test_a_primed_writing_is_a_pass_whose_first_points_are_given() -> None:
    """Section 5.5: the text of the prime comes first, and the writing continues at its last place, in its unit."""
    model = small_model(point_tolerance=0.0)
    seed = torch.Generator().manual_seed(5)
    written = model.write("é", prime=(HOOK, "ab"), bias=80.0, generator=seed, max_points=4)
    given = torch.tensor(to_points(HOOK, 40.0, 0.0), dtype=torch.float64)
    given[:, :2] /= torch.tensor([0.5, 0.25], dtype=torch.float64)
    output = model(torch.cat([given, written.points[1:]])[None], model.characters(["abé"]))
    time = len(given) - 1
    torch.testing.assert_close(written.window, output.window[0, time:])
    best = output.mixture.weight[0, time].argmax()
    offset = output.mixture.mean[0, time, best] * torch.tensor([0.5, 0.25], dtype=torch.float64) * 40
    wanted = torch.tensor([31.0, 0.0], dtype=torch.float64) + offset
    torch.testing.assert_close(torch.tensor(written.strokes[0][0], dtype=torch.float64), wanted)
    assert sum(map(len, written.strokes)) == len(written.points) - 1


def test_prediction_writes_without_text() -> None:
    model = small_model(text=False)
    written = model.write(max_points=9, generator=torch.Generator().manual_seed(1))
    assert written.finished and written.window is None and written.text is None and len(written.points) == 10
    primed = model.write(prime=HOOK, max_points=9, generator=torch.Generator().manual_seed(1))
    assert len(primed.points) == 10 and primed.unit == 40.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"text": "cat"}, r"'cat': the character 't' is not in the alphabet of this model: abcé"),
        ({"text": ""}, r"text='': there is nothing to write"),
        ({"text": []}, r"text=\[\]: there is nothing to write"),
        ({"text": None}, "text=None: this network writes a given text"),
        ({"text": "a", "bias": -1.0}, "bias=-1.0: must be 0 or more"),
        ({"text": "a", "bias": math.nan}, "bias=nan: must be 0 or more"),
        ({"text": "a", "max_points": 0}, "max_points=0: must be 1 or more"),
        ({"text": "a", "prime": ([], "a")}, "prime: has no stroke, or an empty one"),
        ({"text": "a", "prime": (HOOK, "")}, "prime: give its strokes and the text that they write"),
    ],
)
def test_what_cannot_be_written_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small_model().write(**options)


def test_a_text_is_read_in_composed_form() -> None:
    model = small_model()
    assert torch.equal(model.characters(["e\u0301a"]), torch.tensor([[4, 1]]))
    assert torch.equal(model.characters(["ab", "c"]), torch.tensor([[1, 2], [3, 0]]))


def test_a_prediction_network_refuses_a_text() -> None:
    model = small_model(text=False)
    with pytest.raises(ValueError, match=r"text='a': this network reads no text \(window_components=0\)"):
        model.write("a")
    with pytest.raises(ValueError, match="reads no text; leave out input_ids"):
        model(labels=labels(), input_ids=torch.ones(3, 2, dtype=torch.long))
    with pytest.raises(ValueError, match="give input_ids, the text"):
        small_model()(labels=labels())


# ------------------------------------------------------------------------------------------------ the configuration


def test_presets_have_the_sizes_of_the_paper() -> None:
    """About 3.4 and 3.7 million weights (sections 4.2 and 5.2), without peephole connections."""
    prediction = RnnHandwritingConfig.from_preset("graves2013_handwriting")
    assert not prediction.reads_text
    synthesis = RnnHandwritingConfig.from_preset("graves2013_synthesis", alphabet="".join(map(chr, range(33, 90))))
    assert synthesis.reads_text and len(synthesis.alphabet) == 57
    counts = []
    for config in (prediction, synthesis):
        with torch.device("meta"):
            model = RnnForHandwriting(config)
        assert model.density.project.out_features == 121
        counts.append(sum(parameter.numel() for parameter in model.parameters()))
    assert 3.3e6 < counts[0] < 3.5e6 and 3.6e6 < counts[1] < 3.8e6
    assert model.decoder.attention.window_over_source.project.out_features == 30


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window_components": 2}, "alphabet='': window_components=2 reads a text; name its characters, or set 0"),
        ({"alphabet": "ab", "window_components": 0}, "alphabet='ab': window_components=0 reads no text"),
        ({"alphabet": "aba"}, "alphabet: has 'a' twice"),
        ({"alphabet": "e\u0301"}, "alphabet: must be in Unicode's composed form"),
        ({"window_components": -1}, "window_components=-1: must be 0 or more"),
        ({"mixture_components": 0}, "mixture_components=0: must be greater than 0"),
        ({"point_tolerance": -0.1}, "point_tolerance=-0.1: must be 0 or more"),
        ({"offset_deviation": [1.0]}, r"offset_deviation=\[1.0\]: must be two numbers"),
        ({"offset_deviation": [1.0, 0.0]}, r"offset_deviation=\[1.0, 0.0\]: must be two numbers greater than 0"),
        (
            {"alphabet": "ab", "decoder_layers": 1, "readout": "tanh"},
            "readout='tanh': with decoder_layers=1 it would be fed back in the place of the window",
        ),
        ({"word_dropout": 0.1}, "word_dropout=0.1: a pen has points and no words"),
        ({"hidden_sise": 3}, "'hidden_sise' is not a field of RnnHandwritingConfig; did you mean 'hidden_size'"),
        ({"vocab_size": 30}, "'vocab_size' is not a field"),
        ({"readout": "deep"}, "readout='deep': must be one of 'linear', 'tanh', 'maxout'"),
    ],
)
def test_settings_that_cannot_work_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RnnHandwritingConfig(**options)


def test_saved_and_loaded(tmp_path: Path) -> None:
    model = small_model(dtype=torch.float32)
    model.save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    assert all(getattr(config, name) == getattr(model.config, name) for name in config_fields(RnnHandwritingConfig))
    loaded = AutoModel.from_pretrained(tmp_path)
    assert type(loaded) is RnnForHandwriting
    one, other = (m.write("cab", generator=torch.Generator().manual_seed(0), max_points=9) for m in (model, loaded))
    torch.testing.assert_close(one.points, other.points)


@pytest.mark.parametrize(
    "options",
    [
        {"cell_type": "gru", "layer_norm": True},
        {"readout": "tanh", "readout_size": 4, "readout_embedding": True},
        {"decoder_layers": 1},
        {"decoder_layers": 1, "readout": "maxout", "readout_size": 3},
        {"skip_connections": False, "residual_start": 2},
        {"dropout": 0.2, "recurrent_dropout": 0.2, "variational_dropout": True},
        {"weight_drop": 0.3, "zoneout": 0.1},
        {"decoder_transition_depth": 2},
    ],
)
@pytest.mark.parametrize("text", [True, False])
def test_every_option_of_the_layers_trains(options: dict[str, Any], text: bool) -> None:
    model = small_model(text, **options).train()
    model(labels=labels(), input_ids=model.characters(TEXTS) if text else None).loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    assert model.eval().write("cab" if text else None, max_points=3).points.isfinite().all()


def test_a_new_window_waits() -> None:
    """Its components' weights sum to 1, and the first steps are small."""
    model = RnnForHandwriting(RnnHandwritingConfig(alphabet=ALPHABET, hidden_size=8, decoder_layers=1))
    output = model(labels=labels().float(), input_ids=model.characters(TEXTS))
    assert 0.2 < output.window[:, 0, 0].mean().item() < 1.0 and bool((output.window[:, :3].argmax(2) == 0).all())


def test_half_precision_keeps_the_centers() -> None:
    model = small_model(dtype=torch.bfloat16)
    output = model(labels=labels(), input_ids=model.characters(TEXTS), use_cache=True)
    assert output.loss.dtype == output.cache.state.attention.dtype == torch.float32 and output.loss.isfinite()
    assert isinstance(output.mixture, Mixture)

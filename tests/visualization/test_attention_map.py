"""Pictures: their values are the tensors, their labels the tokens, in any script; missing glyphs are reported."""

import importlib
import sys
import unicodedata
import warnings
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen

from hf_rnn_seq2seq import errors
from hf_rnn_seq2seq.data.pieces import target_pieces
from hf_rnn_seq2seq.data.tokenizer import build_tokenizer
from hf_rnn_seq2seq.generation.batches import until_end
from hf_rnn_seq2seq.visualization import attention_map as plotting
from hf_rnn_seq2seq.visualization import fonts
from hf_rnn_seq2seq.visualization.figure import save_figure
from hf_rnn_seq2seq.visualization.labels import printable_labels
from tests.helpers.checkpoints import SOURCES, save_checkpoint, tiny_bart, tiny_rnn, tiny_tokenizer

ROOT = Path(__file__).parents[2]
HEADS = {"attention_type": "multi_head", "num_attention_heads": 2}
sys.path.insert(0, str(ROOT / "scripts"))


def weights_of(*shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(*shape, generator=generator).softmax(-1)


def maps(figure: Any) -> list[Any]:
    return [ax for ax in figure.axes if ax.images and ax.get_xticklabels()]


def labels(ax: Any) -> tuple[list[str], list[str]]:
    return [one.get_text() for one in ax.get_xticklabels()], [one.get_text() for one in ax.get_yticklabels()]


def matplotlib_image(path: Path) -> Any:
    from matplotlib.image import imread

    return imread(path)


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
def test_values_and_labels_are_those_given_and_files_repeat(suffix: str, tmp_path: Path) -> None:
    weights = weights_of(3, 4)
    source, target = ["Thursday", ",", " März", "</s>"], ["$5", " $x$", "четверг"]
    figure = plotting.attention_heatmap(weights, source, target, output=tmp_path / f"a{suffix}", title="beam 1")
    (ax,) = maps(figure)
    numpy.testing.assert_array_equal(ax.images[0].get_array(), weights.double().numpy())
    assert labels(ax) == (["Thursday", ",", "März", "</s>"], ["$5", "$x$", "четверг"])
    assert ax.get_xlabel() == "" or "beam 1" in ax.get_xlabel()
    plotting.attention_heatmap(weights, source, target, output=tmp_path / f"b{suffix}", title="beam 1")
    assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"a{suffix}", f"b{suffix}"]


def test_panels_for_hypotheses_and_heads_share_one_scale() -> None:
    panels = [
        plotting.Panel(weights_of(2, 3, 4), "abc", "first"),
        plotting.Panel(weights_of(2, 5, 4), "vwxyz", "2"),
    ]
    figure = plotting.attention_panels(panels, list("stuv"))
    found = maps(figure)
    assert len(found) == 4
    for ax, (panel, head) in zip(found, [(0, 0), (0, 1), (1, 0), (1, 1)], strict=True):
        numpy.testing.assert_array_equal(ax.images[0].get_array(), panels[panel].weights[head].double().numpy())
    assert len({ax.images[0].get_clim() for ax in found}) == 1
    assert found[0].images[0].get_clim()[1] >= max(float(panel.weights.max()) for panel in panels)


def test_many_heads_continue_in_the_next_line(tmp_path: Path) -> None:
    figure = plotting.attention_heatmap(weights_of(8, 5, 30), [f"word{n}" for n in range(30)], "abcde")
    figure.savefig(tmp_path / "a.png")
    assert figure.get_size_inches()[0] < 16
    found = maps(figure)
    assert [ax.get_xlabel() for ax in found] == [f"head {n}" for n in range(1, 9)]
    boxes = [ax.get_tightbbox() for ax in found]
    lines = sorted({round(ax.get_position().y0, 3) for ax in found}, reverse=True)
    assert len(lines) > 2
    assert all(one.y0 >= other.y1 for one, other in zip(boxes[: -len(boxes) // len(lines)], boxes[2:], strict=False))


@pytest.mark.parametrize("letters", [4, 24])
def test_maps_below_each_other_keep_just_the_room_their_labels_take(letters: int, tmp_path: Path) -> None:
    panels = [plotting.Panel(weights_of(rows, 6), "abcdefghijkl"[:rows], "title") for rows in (12, 3, 7)]
    figure = plotting.attention_panels(panels, ["W" + "o" * (letters - 1)] * 6)
    figure.savefig(tmp_path / "a.png")
    upper, middle, lower = (ax.get_tightbbox() for ax in maps(figure))
    for gap in (upper.y0 - middle.y1, middle.y0 - lower.y1):
        assert 0 <= gap < 1.2 * figure.dpi


@pytest.mark.thinned(3)
@pytest.mark.parametrize("tokens", [1, 5, 30, 80])
def test_labels_stay_readable_and_apart(tokens: int, tmp_path: Path) -> None:
    names = [f"token{index}" for index in range(tokens)]
    figure = plotting.attention_heatmap(weights_of(tokens, tokens), names, names)
    figure.savefig(tmp_path / "a.png")
    (ax,) = maps(figure)
    boxes = [one.get_window_extent() for one in ax.get_yticklabels()]
    assert all(one.get_fontsize() >= 7 for one in (*ax.get_yticklabels(), *ax.get_xticklabels()))
    assert all(upper.y0 >= lower.y1 - 1 for upper, lower in zip(boxes, boxes[1:], strict=False))


def test_a_notebook_shows_pictures_without_pyplot(tmp_path: Path) -> None:
    figure = plotting.attention_heatmap(weights_of(3, 4), "abcd", "vwx", output=tmp_path / "a.png")
    content, shown = figure._repr_png_()
    assert content == (tmp_path / "a.png").read_bytes()
    height, width, _ = matplotlib_image(tmp_path / "a.png").shape
    assert shown == {"width": width * 100 // 160, "height": height * 100 // 160}


def test_axes_of_the_callers_own() -> None:
    from matplotlib.figure import Figure

    ax = Figure().subplots()
    assert plotting.attention_heatmap(weights_of(2, 2), "ab", "cd", ax=ax) is ax.figure
    with pytest.raises(errors.ArgumentError, match="weights of one head"):
        plotting.attention_heatmap(weights_of(2, 2, 2), "ab", "cd", ax=ax)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": weights_of(3, 3)}, r"weights have shape \(1, 3, 3\); 2 target and 3 source tokens"),
        ({"weights": -weights_of(2, 3)}, "some are negative"),
        ({"weights": weights_of(2, 3) * float("nan")}, "not a number"),
        ({"output": "a.gif"}, r"'a.gif': the suffix must be one of .png, .svg, .pdf"),
        ({"output": "no/such/a.png"}, r"output='no/such/a.png': its folder does not exist; make it"),
        ({"font_file": __file__}, "not a readable TrueType or OpenType font file"),
    ],
)
def test_what_cannot_be_drawn_is_refused(change: dict[str, Any], message: str) -> None:
    options = {"weights": weights_of(2, 3), "source_tokens": "abc", "target_tokens": "de"} | change
    with pytest.raises(ValueError, match=message):
        plotting.attention_heatmap(**options)


def font_with(characters: str, path: Path) -> Path:
    """A font of squares for `characters`."""
    pen = TTGlyphPen(None)
    pen.moveTo((0, 0))
    for point in ((0, 500), (500, 500), (500, 0)):
        pen.lineTo(point)
    pen.closePath()
    names = [".notdef", *(f"u{ord(character):X}" for character in characters)]
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder(names)
    builder.setupCharacterMap({ord(character): f"u{ord(character):X}" for character in characters})
    builder.setupGlyf(dict.fromkeys(names, pen.glyph()))
    builder.setupHorizontalMetrics(dict.fromkeys(names, (600, 0)))
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": f"Squares {path.stem}", "styleName": "Regular"})
    builder.setupOS2(sTypoAscender=800, usWinAscent=800, usWinDescent=200)
    builder.setupPost()
    builder.save(path)
    return path


def only_these_fonts(monkeypatch: pytest.MonkeyPatch, *paths: Path) -> None:
    from matplotlib import font_manager

    found = []
    for path in paths:
        font_manager.fontManager.addfont(str(path))
        found.append((font_manager.FontProperties(fname=str(path)).get_name(), str(path), 0))
    monkeypatch.setattr(fonts, "_installed", lambda: tuple(found))


def test_fonts_are_chosen_by_what_the_labels_need(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    only_these_fonts(monkeypatch, font_with("月", tmp_path / "one.ttf"), font_with("月日語", tmp_path / "most.ttf"))
    assert fonts.choose_fonts(["Thursday", "четверг", "γ", "שלום", "قبل", "😀"]) == ["DejaVu Sans"]
    assert fonts.choose_fonts(["3月", "é", "a\u200db\ufe0f"]) == ["DejaVu Sans", "Squares one"]
    assert fonts.choose_fonts(["12日"]) == ["DejaVu Sans", "Squares most"]
    chosen = fonts.choose_fonts(["月"], font_with("月", tmp_path / "mine.ttf"))
    assert chosen == ["Squares mine", "DejaVu Sans"]


def test_missing_glyphs_are_reported_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    only_these_fonts(monkeypatch, font_with("月", tmp_path / "one.ttf"))
    with pytest.warns(fonts.MissingGlyphWarning, match="3 of the characters.*か 日 목") as caught:
        figure = plotting.attention_heatmap(weights_of(2, 4), ["3", "月", "日", "か"], ["목", "x"])
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib's own "Glyph ... missing from font(s)" would end the test
        save_figure(figure, tmp_path / "a.png")


def test_any_script_is_drawn_with_the_installed_fonts(tmp_path: Path) -> None:
    """With the fonts of this machine, whichever they are."""
    texts = [
        "\ufffd\u0651",
        "e\u0301\u0951",
        "月曜日",
        "목요일",
        "星期四",
        "พฤหัส",
        "गुरुवार",
        "🎉",
        "ልደት",
        "ꦗꦮ",
        "\U0001f9ff",
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", fonts.MissingGlyphWarning)
        plotting.attention_heatmap(weights_of(2, len(texts)), texts, ["a", "b"], output=tmp_path / "a.png")


def test_right_to_left_sources_run_from_right_to_left() -> None:
    arabic = ["قبل", "ثلاثة", "أيام", "</s>"]
    ax = maps(plotting.attention_heatmap(weights_of(2, 4), arabic, "ab"))[0]
    assert ax.get_xlim()[0] > ax.get_xlim()[1]
    ax = maps(plotting.attention_heatmap(weights_of(4, 2), "ab", arabic))[0]
    assert ax.get_xlim()[0] < ax.get_xlim()[1]
    assert unicodedata.bidirectional(labels(ax)[1][0][0]) == "AL"


def test_a_title_may_contain_missing_glyphs(tmp_path: Path) -> None:
    figure = plotting.attention_heatmap(weights_of(1, 1), "a", "b", title="il\x11 y\na", output=tmp_path / "a.png")
    assert maps(figure)[0].get_xlabel() == "il\ufffd y a"


def test_labels_of_white_space_and_of_long_tokens() -> None:
    tokens = [" a", " ", "", "x" * 40, "a\nb", "a\x17"]
    assert printable_labels(tokens) == ["a", "␣", "·", "x" * 23 + "…", "a b", "a\ufffd"]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder, tokenizer = tmp_path_factory.mktemp("runs"), tiny_tokenizer()
    letters = build_tokenizer(SOURCES, SOURCES, algorithm="letter", vocab_size=300, min_frequency=1)
    return {
        "rnn": save_checkpoint(folder / "rnn", tiny_rnn(tokenizer), tokenizer),
        "heads": save_checkpoint(folder / "heads", tiny_rnn(tokenizer, **HEADS), tokenizer),
        "bart": save_checkpoint(folder / "bart", tiny_bart(tokenizer), tokenizer),
        "letters": save_checkpoint(folder / "letters", tiny_rnn(letters), letters),
        "plain": save_checkpoint(folder / "plain", tiny_rnn(tokenizer, context="initial_state"), tokenizer),
    }


def plot_attention(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> Any:
    """Run the script; returns the figure it saved."""
    figures = []
    save = plotting.save_figure
    monkeypatch.setattr(plotting, "save_figure", lambda figure, *rest: figures.append(figure) or save(figure, *rest))
    monkeypatch.setattr("hf_rnn_seq2seq.command_line.load_libraries", lambda: None)
    assert importlib.import_module("plot_attention").main([str(argument) for argument in arguments]) == 0
    return figures[-1]


@pytest.mark.thinned(2)
@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("kind", ["rnn", "heads", "bart"])
def test_the_picture_holds_the_models_cross_attentions(
    kind: str, beams: int, checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The map of each hypothesis is the attention of one forward pass over it."""
    directory, output = checkpoints[kind], tmp_path / "a.png"
    options = ("--num_beams", beams, "--n_best", beams, "--heads")
    figure = plot_attention(monkeypatch, directory, SOURCES[1], "--output_file", output, *options)
    tokenizer = tiny_tokenizer()
    model = tiny_bart(tokenizer) if kind == "bart" else tiny_rnn(tokenizer, **(HEADS if kind == "heads" else {}))
    inputs = tokenizer([SOURCES[1]], return_tensors="pt")
    sequences = model.generate(**inputs, num_beams=beams, num_return_sequences=beams)
    drawn = maps(figure)
    heads = len(drawn) // beams
    assert heads == {"rnn": 1, "heads": 2, "bart": 4}[kind]
    for row, sequence in enumerate(sequences):
        ids = until_end(sequence[1:].tolist(), 2)
        with torch.no_grad():
            output_ = model(**inputs, labels=torch.tensor([ids]), output_attentions=True)
        for head in range(heads):
            shown = drawn[row * heads + head].images[0].get_array()
            numpy.testing.assert_allclose(shown, output_.cross_attentions[-1][0, head], atol=2e-5)
        pieces = target_pieces(tokenizer, ids)
        assert labels(drawn[row * heads])[1] == printable_labels(pieces), "rows are the produced tokens"
    assert output.stat().st_size > 5000


def test_a_given_translation_and_words(
    checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "a.svg"
    given = ("--translation", "jeudi 12 mars 2026", "--words", "--title", "given")
    ax = maps(plot_attention(monkeypatch, checkpoints["rnn"], SOURCES[1], "--output_file", output, *given))[0]
    assert labels(ax) == (["Thursday,", "March", "12,", "2026", "</s>"], ["jeudi", "12", "mars", "2026", "</s>"])
    numpy.testing.assert_allclose(ax.images[0].get_array().sum(1), 1, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        ("plain", ("a", "--output_file", "OUT/a.png"), "the model returned no cross_attentions"),
        ("rnn", ("a", "--output_file", "OUT/a.bmp"), "the suffix must be one of"),
        ("rnn", (" ", "--output_file", "OUT/a.png"), "sentence is empty"),
        ("rnn", ("a", "--output_file", "OUT/a.png", "--layer", "3"), "layer is 3"),
        ("letters", ("N;PL\t", "--output_file", "OUT/a.png"), "holds no word that the model reads; give one"),
        (
            "rnn",
            ("a", "--output_file", "OUT/a.png", "--translation", "b", "--n_best", "2"),
            "--translation is drawn alone",
        ),
    ],
)
def test_plot_attention_refuses_in_one_line(
    kind: str,
    arguments: tuple[str, ...],
    message: str,
    checkpoints: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from hf_rnn_seq2seq import command_line

    monkeypatch.setattr(command_line, "load_libraries", lambda: None)
    script = importlib.import_module("plot_attention")
    argv = [str(checkpoints[kind]), *(one.replace("OUT", str(tmp_path)) for one in arguments)]
    with pytest.raises(SystemExit) as ended:
        command_line.run(lambda _: script.main(argv))
    error = capsys.readouterr().err.splitlines()[-1]
    assert ended.value.code == 2 and error.startswith("error: ") and message in error
    assert list(tmp_path.iterdir()) == []

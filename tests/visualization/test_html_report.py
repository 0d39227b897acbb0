"""The HTML report: its numbers are the tensors, its text is never markup, and it works in a real browser."""

import base64
import gzip
import importlib
import json
import random
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from hf_rnn_seq2seq import command_line
from hf_rnn_seq2seq.data.pieces import source_pieces, target_pieces
from hf_rnn_seq2seq.errors import ArgumentError
from hf_rnn_seq2seq.evaluation.error_analysis import AnalyzedSystem, analyze, analyze_systems
from hf_rnn_seq2seq.evaluation.test_set import TestSet
from hf_rnn_seq2seq.generation.attention import merge_words
from hf_rnn_seq2seq.generation.translate import Hypothesis
from hf_rnn_seq2seq.visualization.html_report import render_report, report_data
from tests.helpers.browser import open_page, wait_until
from tests.helpers.checkpoints import SOURCES, TARGETS, tiny_tokenizer

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "scripts"))
NASTY = '</script><img src=x onerror="window.hurt=1"> {{data}} & <b>\'\u2028'


def made_system(name: str, sources: list[str], texts: list[str], references: list[str], seed: int | None) -> Any:
    """A system that says `texts`, with random attention (`seed` None: without any)."""
    tokenizer = tiny_tokenizer()
    generator = torch.Generator().manual_seed(seed or 0)
    hypotheses = []
    source_ids = tokenizer(sources)["input_ids"]
    for ids, text in zip(source_ids, texts, strict=True):
        target = tokenizer(text)["input_ids"] if text else []
        weights = torch.rand(1, len(target), len(ids), generator=generator).mul(6).softmax(-1)
        known = None if seed is None or not target else weights
        hypotheses.append(Hypothesis(text, tuple(target), tuple(ids), -0.5 * len(target), known))
    reports = analyze(sources, references, hypotheses, tokenizer)
    return AnalyzedSystem(name, name, hypotheses, reports, tokenizer, 1, list(references))


@pytest.fixture(scope="module")
def made() -> tuple[TestSet, list[Any]]:
    sources = [*SOURCES[:6], NASTY, "قبل ثلاثة أيام"]
    references = [*TARGETS[:6], "il y a " + NASTY, "il y a trois jours"]
    description = {"source_lang": "en", "target_lang": "fr", "name": "made & so"}
    test_set = TestSet(sources, references, "test", True, description)
    first = ["il y a trois jours", "jeudi 12 12 mars", "", *references[3:]]
    return test_set, [
        made_system("first <b>", sources, first, references, 3),
        made_system("without attention", sources, ["jours"] * len(sources), references, None),
    ]


def test_attention_in_the_page_is_the_tensors(made: tuple[TestSet, list[Any]]) -> None:
    test_set, systems = made
    for words in (True, False):
        data = report_data(test_set, systems, words=words)
        column = data["systems"][0]
        stored = gzip.decompress(base64.b64decode(column["attention"]))
        for row, hypothesis in enumerate(systems[0].hypotheses):
            if hypothesis.attention is None:
                assert column["target"][row] == [] and not column["attended"][row]
                continue
            source = source_pieces(systems[0].tokenizer, test_set.sources[row], len(hypothesis.source_ids))
            matrix, target = hypothesis.attention[0], target_pieces(systems[0].tokenizer, hypothesis.token_ids)
            if words:
                matrix, source, target = merge_words(matrix, source, target, {"</s>"})
            assert (data["source"][row], column["target"][row]) == (source, target)
            own, stored = stored[: matrix.numel()], stored[matrix.numel() :]
            shown = torch.tensor(list(own)).view(matrix.shape) / 255
            torch.testing.assert_close(shown, matrix, atol=0.51 / 255, rtol=0)
        assert stored == b""
        assert data["systems"][1]["attention"] is None


def test_page_is_whole_and_its_data_is_no_markup(made: tuple[TestSet, list[Any]]) -> None:
    page = render_report(*made)
    assert page == render_report(*made)
    assert page.count("<script") == page.count("</script>") == 2 and "<img" not in page and "first <b>" not in page
    assert "{{" not in page.replace("{{data}}", "")  # which the data has
    data = json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1])
    assert data["reference"] == made[0].references
    assert not re.search(r'(src|href)="(?!#)', page) and "url(" not in page and "@import" not in page
    with pytest.raises(ArgumentError, match="nothing to show: 0 systems"):
        render_report(made[0], [])


def test_script_writes_the_translations_of_several_models(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command_line, "load_libraries", lambda: None)
    script = importlib.import_module("report")
    models = [str(runs / "attention"), str(runs / "plain")]
    data = ["--test_file", str(runs / "pairs.tsv"), "--source_lang", "en", "--target_lang", "fr"]
    output = tmp_path / "report.html"
    assert script.main([*models, *data, "--output_file", str(output), "--disable_tqdm", "--num_beams", "2"]) == 0
    assert "6 sentences" in capsys.readouterr().out
    shown = json.loads(re.search(r'id="data">(.*?)</script>', output.read_text("utf-8"), re.DOTALL)[1])
    chosen = {"test_file": str(runs / "pairs.tsv"), "source_lang": "en", "target_lang": "fr"}
    _, systems = analyze_systems(models, chosen, num_beams=2, progress=False)
    for column, system in zip(shown["systems"], systems, strict=True):
        assert column["text"] == [hypothesis.text for hypothesis in system.hypotheses]
    assert shown["systems"][0]["attention"] and shown["systems"][1]["attention"] is None
    assert list(tmp_path.iterdir()) == [output]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("MODEL", "--output_file", "a.txt"), "the suffix must be .html"),
        (("MODEL", "--output_file", "no/such/a.html"), "its folder does not exist"),
        (("missing", "--output_file", "a.html"), "no recipe.yaml that says what it was trained on"),
        (("MODEL", "--output_file", "a.html"), "no recipe.yaml that says what it was trained on"),
    ],
)
def test_script_refuses_in_one_line(
    arguments: tuple[str, ...], message: str, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(command_line, "load_libraries", lambda: None)
    monkeypatch.chdir(tmp_path)
    script = importlib.import_module("report")
    words = [str(runs / "attention") if word == "MODEL" else word for word in arguments]
    with pytest.raises(SystemExit) as ended:
        command_line.run(lambda _: script.main(words))
    assert ended.value.code == 2 and message in capsys.readouterr().err.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------- in the browser


@pytest.fixture(scope="module")
def page_file(made: tuple[TestSet, list[Any]], tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(render_report(*made), encoding="utf-8")
    return path.as_uri()


def ready(page: Any) -> Any:
    page.wait_for_selector("html[data-ready]")
    return page


def rows(page: Any) -> list[int]:
    return page.eval_on_selector_all("article", "all => all.map(one => Number(one.dataset.row))")


def weights_shown(page: Any, row: int) -> list[float]:
    """The weights that the source words of a sentence show now."""
    words = page.locator(f'article[data-row="{row}"] [data-kind="source"] .w')
    return words.evaluate_all("all => all.map(one => Number(one.style.getPropertyValue('--weight') || 'NaN'))")


@pytest.mark.slow
def test_hover_and_keys_show_the_attention(browser: Any, page_file: str, made: tuple[TestSet, list[Any]]) -> None:
    data = report_data(*made)
    system, hypothesis = made[1][0], made[1][0].hypotheses[0]
    pieces = source_pieces(system.tokenizer, made[0].sources[0], len(hypothesis.source_ids))
    written = target_pieces(system.tokenizer, hypothesis.token_ids)
    matrix, source, target = merge_words(hypothesis.attention[0], pieces, written, {"</s>"})
    with open_page(browser, page_file) as page:
        ready(page)
        line = page.locator('article[data-row="0"] [data-kind="target"][data-system="0"] .w')
        assert [text.strip() for text in line.all_text_contents()] == [word.strip() for word in target]
        assert "log-probability \u22120.50 a token" in page.text_content('article[data-row="0"] .facts')
        line.nth(2).hover()
        assert weights_shown(page, 0) == pytest.approx(matrix[2].tolist(), abs=0.004)
        page.locator('article[data-row="0"] [data-kind="source"] .w').nth(1).hover()
        shown = line.evaluate_all("all => all.map(one => Number(one.style.getPropertyValue('--weight')))")
        assert shown == pytest.approx(matrix[:, 1].tolist(), abs=0.004)
        page.mouse.move(1, 1)
        page.keyboard.press("j")
        page.keyboard.press("ArrowRight")
        assert weights_shown(page, 0) == pytest.approx(matrix[1].tolist(), abs=0.004)
        spoken = page.text_content("#spoken")
        likeliest = source[int(matrix[1].argmax())].strip()
        assert spoken.startswith(f"{target[1].strip()} attends to {likeliest} ")
        page.keyboard.press("m")
        cells = page.locator('article[data-row="0"] .map td').evaluate_all(
            "all => all.map(one => one.style.getPropertyValue('--weight')).filter(text => text).map(Number)"
        )
        assert cells == pytest.approx(matrix.flatten().tolist(), abs=0.004)
        page.keyboard.press("Escape")
        assert page.locator(".w.lit").count() == 0
        assert data["systems"][1]["attention"] is None
        page.locator('article[data-row="0"] [data-kind="target"][data-system="1"] .w').first.hover()
        assert page.locator(".w.lit").count() == 0  # that system has no attention to show


@pytest.mark.slow
def test_sort_filter_search_and_reset(browser: Any, page_file: str, made: tuple[TestSet, list[Any]]) -> None:
    test_set, (first, _) = made
    scores = [report.chrf for report in first.reports]
    everything = list(range(len(scores)))
    with open_page(browser, page_file) as page:
        ready(page)
        assert rows(page) == everything
        page.select_option("#sort", "chrf")
        wait_until(page, lambda: rows(page)[0] != 0)
        assert rows(page) == sorted(everything, key=lambda row: (round(scores[row], 1), row))
        page.click("#direction")
        assert rows(page) == sorted(everything, key=lambda row: (-round(scores[row], 1), row))
        page.select_option("#errors", "any")
        wait_until(page, lambda: len(rows(page)) < 8)
        assert sorted(rows(page)) == [row for row in everything if first.reports[row].errors]
        assert {1, 2} <= set(rows(page))
        page.click("button[type=reset]")
        wait_until(page, lambda: len(rows(page)) == len(scores))
        page.keyboard.press("/")
        page.keyboard.type("mars 12")
        wait_until(page, lambda: len(rows(page)) == 1)
        assert rows(page) == [1] and "1 of 8 sentences" in page.text_content("#status")
        page.fill("#query", "no such words")
        page.wait_for_selector(".empty")
        page.click("button[type=reset]")
        page.fill("#score_to", "60")
        wait_until(page, lambda: len(rows(page)) < 8)
        assert rows(page) == [row for row in everything if round(scores[row], 1) <= 60]


@pytest.mark.slow
def test_text_of_the_data_is_text(browser: Any, page_file: str) -> None:
    with open_page(browser, page_file) as page:
        ready(page)
        assert page.evaluate("window.hurt") is None
        assert NASTY.split()[0] in page.text_content('article[data-row="6"] [data-kind="source"]')
        arabic = page.locator('article[data-row="7"] [data-kind="source"]')
        assert arabic.evaluate("one => getComputedStyle(one).direction") == "rtl"


@pytest.mark.slow
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (400, "dark")])
def test_fits_the_window_and_stays_readable(browser: Any, page_file: str, width: int, scheme: str) -> None:
    with open_page(browser, page_file, width=width, scheme=scheme) as page:
        ready(page)
        page.locator("article .facts button").first.click()
        for element in page.locator("details").all():
            element.evaluate("one => { one.open = true; }")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        colors = page.evaluate(
            "[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]"
        )
        ink, paper = (sum(map(int, re.findall(r"\d+", color)[:3])) for color in colors)
        assert (ink < 200 and paper > 700) if scheme == "light" else (ink > 600 and paper < 150)


@pytest.mark.slow
def test_paper_shows_sentences_and_no_controls(browser: Any, page_file: str) -> None:
    with open_page(browser, page_file) as page:
        ready(page)
        page.emulate_media(media="print")
        assert not page.is_visible("#controls") and not page.is_visible("#next")
        assert page.is_visible('article[data-row="1"]')


@pytest.mark.long
def test_five_thousand_sentences(browser: Any, tmp_path: Path) -> None:
    draw = random.Random(1)
    words = [*TARGETS[0].split(), *TARGETS[1].split(), "café", "dans", "une", "heure"]
    count = 5000
    texts = [" ".join(draw.choices(words, k=draw.randint(5, 25))) for _ in range(2 * count)]
    sources, references = texts[:count], texts[count:]
    systems = []
    for number in range(1):
        hypotheses = [
            Hypothesis(text, tuple(ids), tuple(ids), -1.0, torch.rand(1, len(ids), len(ids)).softmax(-1))
            for text, ids in zip(sources, cheap_ids(sources), strict=True)
        ]
        reports = analyze(sources[:1], references[:1], hypotheses[:1], CheapTokenizer()) * count
        systems.append(AnalyzedSystem(f"s{number}", "", hypotheses, reports, CheapTokenizer(), 1, references))
    path = tmp_path / "large.html"
    path.write_text(render_report(TestSet(sources, references, "test", True), systems), encoding="utf-8")
    assert path.stat().st_size < 20_000_000
    with open_page(browser, path.as_uri()) as page:
        ready(page)
        assert "5,000 sentences, page 1 of 200" in page.text_content("#status")
        assert page.locator("article").count() == 25
        page.keyboard.press("n")
        assert rows(page)[0] == 25
        page.fill("#query", "jeudi")
        wait_until(page, lambda: "of 5,000" in page.text_content("#status"))
        seconds = page.evaluate(
            """() => { const start = performance.now(); document.getElementById("direction").click();
            return (performance.now() - start) / 1000; }"""
        )
        assert seconds < 5  # sorting and drawing; a fraction of a second where the machine is free


class CheapTokenizer:
    """A tokenizer of words, since tokenizing 10,000 sentences is not under test."""

    all_special_ids, all_special_tokens = (2,), ("</s>",)

    def __call__(self, text: str, **_: Any) -> dict[str, Any]:
        spans = [match.span() for match in re.finditer(r"\s?\S+", text)]
        return {"input_ids": [7] * len(spans) + [2], "offset_mapping": [*spans, (len(text), len(text))]}

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
        return ["</s>" if token == 2 else "mot" for token in ids]

    def decode(self, ids: Any, **_: Any) -> str:
        return " ".join("mot" for token in ids if token != 2)


def cheap_ids(texts: list[str]) -> list[list[int]]:
    return [CheapTokenizer()(text)["input_ids"] for text in texts]

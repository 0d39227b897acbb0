"""The demo: streamed translations equal those of generate(), the page works in a browser, the files of a Space run."""

import importlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from hf_rnn_seq2seq import command_line
from hf_rnn_seq2seq.errors import ArgumentError, CheckpointError
from hf_rnn_seq2seq.generation.scoring import forced_hypothesis
from hf_rnn_seq2seq.generation.translate import translate_n_best
from hf_rnn_seq2seq.visualization.demo_app import (
    LoadedSystem,
    example_sentences,
    load_systems,
    translate_live,
)
from hf_rnn_seq2seq.visualization.live_translation import stream_translation
from hf_rnn_seq2seq.visualization.pages import environment
from tests.helpers import warm
from tests.helpers.browser import open_page
from tests.helpers.checkpoints import SOURCES, tiny_bart, tiny_rnn, tiny_tokenizer
from tests.helpers.script_runs import free_port

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "scripts"))
BUILD = {"rnn": tiny_rnn, "bart": tiny_bart}


@pytest.mark.parametrize("kind", ["rnn", "bart"])
@pytest.mark.parametrize("beams", [1, 3])
def test_stream_ends_in_what_generate_finds(kind: str, beams: int) -> None:
    tokenizer = tiny_tokenizer()
    model = BUILD[kind](tokenizer)
    steps = list(stream_translation(model, tokenizer, SOURCES[1], num_beams=beams))
    (expected,) = translate_n_best(model, tokenizer, [SOURCES[1]], num_beams=beams, progress=False)
    last = steps[-1]
    assert (last.text, last.token_ids) == (expected[0].text, expected[0].token_ids)
    assert last.log_probability == pytest.approx(expected[0].log_probability, abs=1e-4)
    forced = forced_hypothesis(model, tokenizer, SOURCES[1], "jeudi")
    assert last.attention.shape == (1, len(last.token_ids), forced.attention.shape[2])
    if beams == 1:
        assert [len(step.token_ids) for step in steps] == list(range(1, len(steps) + 1))
        for step in steps:
            torch.testing.assert_close(step.attention, last.attention[:, : len(step.token_ids)])
    else:
        assert len(steps) == 1


def test_stream_draws_at_a_temperature_and_repeats_with_a_seed() -> None:
    tokenizer = tiny_tokenizer()
    model, drawn = tiny_rnn(tokenizer), []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(list(stream_translation(model, tokenizer, SOURCES[0], temperature=1.5))[-1].token_ids)
    assert drawn[0] == drawn[1] != drawn[2]
    plain = tiny_rnn(tokenizer, context="initial_state")
    assert all(step.attention is None for step in stream_translation(plain, tokenizer, "3 kg"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1.0}, "temperature=-1.0"),
        ({"num_beams": 0}, "num_beams=0"),
        ({"source": " "}, "must contain text"),
    ],
)
def test_stream_refuses(options: dict[str, Any], message: str) -> None:
    tokenizer = tiny_tokenizer()
    with pytest.raises(ArgumentError, match=message):
        list(stream_translation(tiny_rnn(tokenizer), tokenizer, **{"source": "a", **options}))


@pytest.fixture(scope="module")
def runs(runs: Path) -> Path:
    """The checkpoints, one with an example sentence."""
    (runs / "attention" / "summary.json").write_text('{"samples": [{"source": "three days ago"}]}')
    return runs


def test_panels_hold_every_system_and_escape_what_is_typed(runs: Path) -> None:
    systems = load_systems([str(runs / "attention"), str(runs / "plain")])
    assert 'dir="rtl"' in list(translate_live(systems, "قبل ثلاثة", 1, 0.0, 1, False))[-1]
    pages = list(translate_live(systems, "<b>3</b> & kg", 1, 0.0, 3, False))
    assert "<b>3" not in pages[-1] and pages[-1].count("<section>") == 2
    assert pages[-1].count("<li>") == 6 and pages[-1].count('<table class="map"') == 1
    assert "the best of 3 beams" in pages[-1] and "drawn" in list(translate_live(systems, "a", 1, 0.7, 2, True))[-1]
    assert "going" in pages[0] and "going" not in pages[-1]
    (hypotheses,) = translate_n_best(
        systems[0].model, systems[0].tokenizer, ["<b>3</b> & kg"], n_best=3, num_beams=3, progress=False
    )
    assert f"{hypotheses[2].log_probability:.2f}" in pages[-1]
    assert "Type a sentence" in next(translate_live(systems, "  ", 1, 0.0, 1, True))
    assert "Choose a model" in next(translate_live([], "a", 1, 0.0, 1, True))
    assert "the sentence was cut" in list(translate_live(systems[1:], "3 kg " * 300, 1, 0.0, 1, True))[-1]


def test_a_system_that_fails_shows_its_error_and_the_others_continue(runs: Path) -> None:
    tokenizer = tiny_tokenizer()
    short = tiny_rnn(tokenizer, attention_type="location", max_source_positions=3)
    systems = [LoadedSystem("short", short, tokenizer), *load_systems([str(runs / "attention")])]
    page = list(translate_live(systems, "three days ago in March", 1, 0.0, 1, True))[-1]
    assert 'class="error"' in page and page.count('<table class="map"') == 1


def test_attention_table_holds_the_weights() -> None:
    module = environment().get_template("demo.html").make_module({"special": {"</s>"}})
    table = module.attention_table([[0.9, 0.1], [0.03, 0.97]], ["a", "</s>"], ["<x>", "</s>"], "ltr")
    assert re.findall(r"--weight:([\d.]+)", table) == ["0.900", "0.100", "0.030", "0.970"]
    assert "&lt;x&gt;" in table and ">90<" in table and ">3<" not in table and 'dir="ltr"' in table


def test_names_and_examples(runs: Path) -> None:
    assert example_sentences([str(runs / "attention"), str(runs / "plain")]) == ["three days ago"]
    assert [system.name for system in load_systems([f"{runs}/plain/"])] == ["plain"]
    with pytest.raises(CheckpointError, match="each model may be given once"):
        load_systems([str(runs / "plain"), f"{runs}/plain/"])


@pytest.fixture(scope="module")
def address(runs: Path) -> Iterator[str]:
    """The address of the script, which serves two models on loopback only."""
    pytest.importorskip("gradio", reason="gradio (of the extra `app`) is not installed")
    port = int(free_port())
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    command = [*warm.python(), str(ROOT / "scripts" / "app.py"), str(runs / "attention"), str(runs / "plain")]
    process = subprocess.Popen(
        [*command, "--port", str(port)], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    printed = ""
    for line in process.stdout:
        printed += line
        if f"http://127.0.0.1:{port}" in line:
            break
    else:
        raise AssertionError(f"the app did not start:\n{printed}")
    yield f"http://127.0.0.1:{port}"
    process.terminate()  # not SIGINT, which a test run in the background may have told its children to ignore
    process.communicate(timeout=60)


@pytest.mark.thinned(2)
@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 400])
def test_type_and_translate_in_the_browser(width: int, address: str, browser: Any) -> None:
    with open_page(browser, address, width=width, allowed=address) as page:
        page.fill("#sentence textarea", "three days <b>ago</b>")
        page.click("#translate")
        page.wait_for_selector("#result section:nth-of-type(2) .said:not(.going)")
        assert page.locator("#result section").count() == 2
        assert page.locator("#result table.map").count() == 1
        assert page.locator("#result b").count() == 0
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        shown = page.locator("#result tbody td").first
        share = float(shown.evaluate("one => one.style.getPropertyValue('--weight')"))
        color = shown.evaluate("one => getComputedStyle(one).backgroundColor")
        assert float(re.findall(r"[\d.]+", color)[3]) == pytest.approx(share, abs=0.01)
        page.fill("#n_best input[type=number]", "3")
        page.fill("#sentence textarea", "2 kg")
        page.click("#translate")
        page.wait_for_selector("#result section:nth-of-type(2) li:nth-of-type(3)")


def test_app_listens_on_loopback_alone(address: str) -> None:
    port = int(address.rsplit(":", 1)[1])
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    bound = {
        fields[1].split(":")[0] for fields in lines if fields[3] == "0A" and int(fields[1].split(":")[1], 16) == port
    }
    assert bound == {"0100007F"}


# ---------------------------------------------------------------- a Space


@pytest.mark.long
@pytest.mark.slow
def test_space_files_run_without_this_checkout(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("gradio", reason="gradio (of the extra `app`) is not installed")
    monkeypatch.setattr(command_line, "load_libraries", lambda: None)
    script = importlib.import_module("app")
    space = tmp_path / "space"
    command = [str(runs / "attention"), str(runs / "plain"), "--space", str(space), "--title", 'Say "it"']
    assert script.main(command) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["space"]
    assert {"README.md", "app.py", "requirements.txt", "hf_rnn_seq2seq", "models"} == {p.name for p in space.iterdir()}
    import gradio
    import yaml

    card = yaml.safe_load((space / "README.md").read_text(encoding="utf-8").split("---\n")[1])
    assert card["sdk"] == "gradio" and card["app_file"] == "app.py" and card["title"] == 'Say "it"'
    assert card["sdk_version"] == gradio.__version__ and "license" not in card
    needed = (space / "requirements.txt").read_text().split()
    assert {re.match(r"[\w-]+", line)[0] for line in needed} == {"torch", "transformers", "huggingface-hub"}
    check = "import app, hf_rnn_seq2seq; print(hf_rnn_seq2seq.__file__, type(app.demo).__name__, app.EXAMPLES)"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", check], cwd=space, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.stdout.split("\n")[0] == f"{space}/hf_rnn_seq2seq/__init__.py Blocks ['three days ago']", done.stderr
    with pytest.raises(FileExistsError, match="space='.*': must be a new or an empty folder"):
        script.main(command)


def test_space_refuses_before_it_writes(runs: Path, tmp_path: Path) -> None:
    pytest.importorskip("gradio", reason="gradio (of the extra `app`) is not installed")
    from hf_rnn_seq2seq.hub.space import write_space

    with pytest.raises(CheckpointError, match="no such directory"):
        write_space(tmp_path / "space", [str(tmp_path / "missing")])
    with pytest.raises(CheckpointError, match="its folder does not exist"):
        write_space(tmp_path / "no" / "space", [str(runs / "plain")])
    with pytest.raises(CheckpointError, match="two models of a Space are called 'plain'"):
        write_space(tmp_path / "space", [str(runs / "plain"), str(runs / "plain")])
    assert list(tmp_path.iterdir()) == []
    space = write_space(tmp_path / "space", ["user/name", str(runs / "plain")], license="mit")
    assert 'MODELS = ["user/name", "models/plain"]' in (space / "app.py").read_text(encoding="utf-8")
    assert "license: mit\nmodels:\n- user/name\n" in (space / "README.md").read_text(encoding="utf-8")

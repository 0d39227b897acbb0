"""Cards: every number from the facts, metadata the Hub accepts, and the rendered cards match their facts."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard, constants

from hf_rnn_seq2seq import RnnHandwritingConfig, RnnSeq2SeqConfig
from hf_rnn_seq2seq.errors import CheckpointError
from hf_rnn_seq2seq.hub.model_card import read_facts, render, render_again, strip_local_paths
from tests.helpers.hub import Hub

CARDS = Path(__file__).resolve().parents[2] / "model_cards"
SUMMARY = {
    "bleu": 41.23456,
    "bleu_interval": 1.5,
    "chrf": 63.5,
    "signature": "nrefs:1|case:mixed|tok:13a",
    "signatures": {"bleu": "nrefs:1|case:mixed|tok:13a", "chrf": "nrefs:1|nc:6"},
    "split": "test",
    "num_beams": 5,
    "parameters": 1234567,
    "steps": 30,
    "epochs": 1.5,
    "train_seconds": 93.0,
    "target_tokens_per_second": 4321.0,
    "device": "cpu",
    "processes": 1,
    "threads": 2,
    "samples": [{"source": 'say "hi" | now', "translation": "dis | salut", "reference": "dis salut"}],
    "versions": {"torch": "2.13.0", "transformers": "5.23.0"},
}
RECIPE = {
    "dataset_name": "cldr",
    "dataset_config_name": "en-fr",
    "learning_rate": 0.002,
    "seed": 7,
    "preset": "luong2015",
}


def facts(**changes: Any) -> dict[str, Any]:
    config = RnnSeq2SeqConfig(vocab_size=50, attention_type="additive", cell_type="gru", attention_window="local_p")
    base = {"repo_id": "ann/clock", "config": config.to_dict(), "summary": SUMMARY, "recipe": RECIPE}
    return {**base, "pictures": ["attention.png", "learning_curve.png"], **changes}


def test_card_tells_the_facts() -> None:
    card = render(facts())
    for words in (
        "# clock",
        "1,234,567 parameters",
        "| BLEU | 41.23 ± 1.50 | test split | beam 5, `nrefs:1\\|case:mixed\\|tok:13a` |",
        "| chrF | 63.50 | test split | beam 5, `nrefs:1\\|nc:6` |",
        "1.6 minutes on cpu (1 process of 2 threads): 30 updates, 1.5 epochs, 4,321 target tokens/s.",
        "bidirectional GRU encoder",
        "additive, local-p windowed score",
        "Preset `luong2015`",
        "`cldr`, configuration `en-fr`",
        "| `learning_rate` | 0.002 |",
        'tokenizer("say \\"hi\\" | now", return_tensors="pt")',
        '| say "hi" \\| now | dis \\| salut | dis salut |',
        "![What each target word attends to](attention.png)",
        "![Loss and score over the updates](learning_curve.png)",
        "torch 2.13.0",
        "trust_remote_code=True",
    ):
        assert words in card, words
    assert "\n\n\n" not in card and "{{" not in card and "None" not in card


def test_card_metadata() -> None:
    assert "license:" not in render(facts()), "nobody decides it for the owner"
    data = yaml.safe_load(re.match(r"---\n(.*?)\n---\n", render(facts(license="apache-2.0")), re.DOTALL)[1])
    assert data["language"] == ["en", "fr"]
    assert (data["license"], data["library_name"], data["pipeline_tag"]) == (
        "apache-2.0",
        "transformers",
        "translation",
    )
    assert data["metrics"] == ["bleu", "chrf"] and "gru" in data["tags"]
    (model,) = data["model-index"]
    (result,) = model["results"]
    assert model["name"] == "clock" and result["dataset"] == {"name": "cldr en-fr", "type": "cldr", "split": "test"}
    assert [(metric["type"], metric["value"]) for metric in result["metrics"]] == [("bleu", 41.2346), ("chrf", 63.5)]
    assert "datasets" not in data, "cldr is no repository of the Hub"
    named = render(facts(recipe={"dataset_name": "someone/pairs"}))
    assert "datasets:\n- someone/pairs" in named


def test_card_of_pronunciations() -> None:
    rates = {"sequence_error": 6.667, "symbol_error": 1.439, "best_metric_name": "sequence_error"}
    data = {"name": None, "files": {"train": ["fre_train.tsv"]}}
    recipe = {"train_file": "fre_train.tsv", "tokenizer_algorithm": "bpe", "target_tokenizer_algorithm": "word"}
    words = render(
        facts(summary={**SUMMARY, **rates, "data": data}, recipe={**recipe, "source_tokenizer_algorithm": "letter"})
    )
    assert "parameters. It reads words letter by letter and writes symbols.\n" in words
    assert "| WER, whole outputs | 6.67 |" in words and "| PER | 1.44 |" in words and "BLEU" not in words
    assert "`source_tokenizer_algorithm` | letter" in words and "`tokenizer_algorithm`" not in words
    assert "Trained on `fre_train.tsv`; its license was not recorded." in words
    assert "Made for words of the kind it was trained on" in words and "Made for translating" not in words
    recipe |= {"source_tokenizer_algorithm": "letter", "feature_column": "2"}
    assert "and writes symbols. Features and a tab stand before each word.\n" in render(
        facts(recipe=recipe, summary={})
    )


@pytest.mark.parametrize("task", ["translation", "captioning"])
def test_code_of_a_card_is_python(task: str) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", render(facts(recipe={"task": task})), re.DOTALL)
    compile(block, "card", "exec")


def test_card_of_a_captioner(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    summary = SUMMARY | {"pictures": 72, "pointing": 83.5, "data": {"name": "shapes", "target_lang": "en"}}
    given = facts(recipe={"task": "captioning", "dataset_name": "shapes"}, summary=summary)
    given["config"] = given["config"] | {"attention_alignment": "sampled"}
    card = render(given)
    ModelCard(card).validate()
    for words in (
        "It describes pictures.",
        "The decoder attends to one position of the source, drawn in training, with the",
        "| words that look at what they name (%) | 83.50 | test split | beam 5 |",
        'AutoProcessor.from_pretrained("ann/clock")',
        "Made for describing the kind of pictures",
    ):
        assert words in card, words
    assert (
        "ranslat" not in card
        and "| picture | caption | reference |" in card
        and "\n\n\n" not in card
        and "None" not in card
    )
    data = yaml.safe_load(re.match(r"---\n(.*?)\n---\n", card, re.DOTALL)[1])
    assert (data["pipeline_tag"], data["language"]) == ("image-text-to-text", ["en"])
    (result,) = data["model-index"][0]["results"]
    assert result["task"] == {"type": "image-to-text", "name": "Image captioning"}


@pytest.mark.parametrize("alphabet", ["abc", ""])
def test_card_of_a_network_that_writes_by_hand(alphabet: str, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    config = RnnHandwritingConfig(alphabet=alphabet).to_dict()
    summary = {name: SUMMARY[name] for name in ("parameters", "train_seconds", "split")}
    summary |= {"nats_per_row": -20.5, "finished": 97.5}
    recipe = {"task": "handwriting", "dataset_name": "hershey", "learning_rate": 0.002, "tokenizer_algorithm": "bpe"}
    card = render(facts(config=config, recipe=recipe, summary=summary, pictures=[]))
    ModelCard(card).validate()
    (block,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    compile(block, "card", "exec")
    for words in (
        "Recurrent network (LSTM) over the points of a pen, 1,234,567 parameters. It writes",
        "| nats a row (lower is better) | -20.50 | test split |",
        "A 3-layer LSTM of width 400 over the points of a pen; the density of the next point has 20 components.",
        "| `learning_rate` | 0.002 |",
        'model.write("word", bias=0.5)' if alphabet else "model.write(bias=0.5)",
    ):
        assert words in card, words
    assert ("through a window of 10 components" in card) == bool(alphabet)
    for words in ("ranslat", "tokenizer", "None", "\n\n\n"):
        assert words not in card, words
    data = yaml.safe_load(re.match(r"---\n(.*?)\n---\n", card, re.DOTALL)[1])
    assert "pipeline_tag" not in data and data["tags"][:2] == ["handwriting", "rnn"]


@pytest.mark.parametrize("missing", ["summary", "recipe", "pictures"])
def test_facts_that_are_missing_are_left_out(hub: Hub, monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    card = render(facts(**{missing: {} if missing != "pictures" else []}))
    ModelCard(card).validate()
    assert "None" not in card and "\n\n\n" not in card
    if missing == "summary":
        assert "not measured" in card and "model-index" not in card


def test_hub_accepts_the_card(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    ModelCard(render(facts())).validate()
    with pytest.raises(ValueError, match="license"):
        ModelCard(render(facts(license="ask me"))).validate()


def test_read_facts(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        read_facts(tmp_path)
    RnnSeq2SeqConfig().save_pretrained(tmp_path)
    (tmp_path / "summary.json").write_text(json.dumps(SUMMARY))
    # Somebody's folders do not belong in a public card.
    somewhere = tmp_path / "private" / "train.fr"
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({"train_file": f"{somewhere},{somewhere}.gz", "seed": 1}))
    (tmp_path / "attention.png").touch()
    read = read_facts(tmp_path, repo_id="ann/clock")
    assert read["summary"]["bleu"] == SUMMARY["bleu"] and read["pictures"] == ["attention.png"]
    assert read["recipe"] == {"train_file": "train.fr,train.fr.gz", "seed": 1}
    assert "private" not in json.dumps(read) and "private" not in render(read)
    spaced = "/home/jane doe/secret project/train.fr"
    command = shlex.join(["python", "scripts/train.py", "--train_file", f"{spaced},{spaced}.gz", f"--imports={spaced}"])
    assert strip_local_paths({"train_file": f"{spaced},{spaced}.gz", "command": command, "lr": "and/or"}) == {
        "train_file": "train.fr,train.fr.gz",
        "command": "python scripts/train.py --train_file 'train.fr,train.fr.gz' '--imports=train.fr'",
        "lr": "and/or",
    }
    (tmp_path / "summary.json").write_text("[1")
    with pytest.raises(CheckpointError, match=r"summary\.json: not readable"):
        read_facts(tmp_path)
    with pytest.raises(CheckpointError, match="'config' is missing"):
        render({})


def test_rendered_cards_match_their_facts() -> None:
    cards = {path.stem for path in CARDS.glob("*.md")} - {"template", "README"}
    assert cards == {path.stem for path in CARDS.glob("*.json")}
    recipes = {path.stem for path in (CARDS.parent / "scripts" / "recipes").glob("*.yaml")}
    for name in cards:
        assert any(name == recipe or name.startswith(f"{recipe}_") for recipe in recipes), "the recipe of its run"
    for name in cards:
        recorded = json.loads((CARDS / f"{name}.json").read_text(encoding="utf-8"))
        assert (CARDS / f"{name}.md").read_text(encoding="utf-8") == render(recorded), f"render {name} again"


def test_cards_are_rendered_again_from_their_facts(tmp_path: Path) -> None:
    (tmp_path / "clock.json").write_text(json.dumps(facts()))
    (tmp_path / "clock.md").write_text("old")
    assert render_again(tmp_path) == [tmp_path / "clock.md"]
    assert (tmp_path / "clock.md").read_text(encoding="utf-8") == render(facts())
    (tmp_path / "clock.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"clock\.json: not readable"):
        render_again(tmp_path)

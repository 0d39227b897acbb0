"""Beam trees hold the hypotheses of generate()."""

import importlib
import math
import sys
from pathlib import Path

import pytest

from hf_rnn_seq2seq import command_line
from hf_rnn_seq2seq.errors import ArgumentError
from hf_rnn_seq2seq.visualization.beam_tree import beam_tree, plot_beam_tree
from tests.helpers.checkpoints import SOURCES, tiny_bart, tiny_rnn, tiny_tokenizer

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))


@pytest.mark.parametrize("kind", ["rnn", "bart"])
def test_beam_tree_holds_the_hypotheses_of_generate(kind: str, tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    model = tiny_rnn(tokenizer) if kind == "rnn" else tiny_bart(tokenizer)
    root = beam_tree(model, tokenizer, SOURCES[1], num_beams=3, max_new_tokens=8)
    inputs = tokenizer([SOURCES[1]], return_tensors="pt")
    found = model.generate(
        **inputs, num_beams=3, num_return_sequences=3, max_new_tokens=8, output_scores=True,
        return_dict_in_generate=True, length_penalty=0.0,
    )  # fmt: skip
    plain = model.generate(**inputs, num_beams=3, num_return_sequences=3, max_new_tokens=8)
    ranked = sorted((node for node in root.walk() if node.rank), key=lambda node: node.rank)
    assert len(ranked) == 3
    for node, row in zip(ranked, plain.tolist(), strict=True):
        assert list(node.token_ids) == row[1 : 1 + len(node.token_ids)]
    sums = {tuple(row[1:]): float(score) for row, score in zip(found.sequences.tolist(), found.sequences_scores)}  # noqa: B905
    shared = [node for node in ranked if node.token_ids in sums]
    for node in shared:
        assert node.log_probability == pytest.approx(sums[node.token_ids], abs=1e-4)
    assert shared
    for node in root.walk():
        for child in node.children:
            assert child.token_ids[:-1] == node.token_ids
            step = node.log_probability + math.log(max(child.probability, 1e-30))
            assert child.log_probability == pytest.approx(step, abs=1e-4)
    figure = plot_beam_tree(root, tmp_path / "tree.png", title=SOURCES[1])
    assert len(figure.axes[0].lines) == len(root.walk()) - 1
    shown = [text.get_text() for text in figure.axes[0].texts]
    assert f"1.  log-probability {ranked[0].log_probability:.2f}" in shown
    assert (tmp_path / "tree.png").stat().st_size > 5000


def test_a_beam_tree_ends_at_the_end_token_of_the_call() -> None:
    tokenizer = tiny_tokenizer()
    model = tiny_rnn(tokenizer)
    ends = [*range(5, model.config.vocab_size, 5)]
    root = beam_tree(model, tokenizer, SOURCES[1], num_beams=3, max_new_tokens=8, eos_token_id=ends)
    ranked = [node for node in root.walk() if node.rank]
    assert len(ranked) == 3
    assert any(node.token_ids[-1] in ends and len(node.token_ids) < 8 for node in ranked)
    assert not any({*ends} & {*node.token_ids[:-1]} for node in ranked)


def test_beam_tree_script_and_refusals(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command_line, "load_libraries", lambda: None)
    script = importlib.import_module("plot_beam_tree")
    model = str(runs / "attention")
    output = ["--output_file", str(tmp_path / "tree.svg")]
    assert script.main([model, "3 days", *output, "--num_beams", "2", "--max_new_tokens", "5"]) == 0
    assert capsys.readouterr().out.count("\n") == 2 and (tmp_path / "tree.svg").stat().st_size > 5000
    with pytest.raises(ArgumentError, match="num_beams=1: a beam tree needs at least 2"):
        script.main([model, "3 days", *output, "--num_beams", "1"])
    with pytest.raises(ArgumentError, match="suffix"):
        script.main([model, "3 days", "--output_file", "tree.gif"])

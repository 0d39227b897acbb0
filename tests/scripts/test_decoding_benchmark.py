"""The benchmark of decoding reports what was decoded."""

import json
import sys
from argparse import Namespace
from pathlib import Path

import pytest
from benchmarks.decoding import compare_decoding, decoding_variants, read_sentences

from hf_rnn_seq2seq.evaluation.scores import score
from hf_rnn_seq2seq.generation.shortlist import Shortlist
from hf_rnn_seq2seq.generation.translate import translate
from tests.helpers.checkpoints import SOURCES, TARGETS, save_checkpoint, tiny_rnn, tiny_tokenizer

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))
TEXTS = [*SOURCES[:6], ""]
REFERENCES = [*TARGETS, "x"]


@pytest.mark.parametrize("batch_size", [1, 3])
def test_the_variants_differ_where_they_say_so(batch_size: int) -> None:
    tokenizer = tiny_tokenizer()
    model = tiny_rnn(tokenizer)
    arguments = Namespace(model="tiny", batch_size=batch_size, num_beams=3, target_length=10, device="cpu")
    sentences = read_sentences(model, tokenizer, TEXTS, batch_size, REFERENCES)
    assert sentences.count == 6
    variants = decoding_variants(model, sentences, arguments, Shortlist(range(4, 40), {}))
    measured = {name: {"value": run(), "wall_s": 2.0, "cpu_s": 1.0 + number} for number, (name, run) in
                enumerate(variants.items())}  # fmt: skip
    report = {row["variant"]: row for row in compare_decoding(variants, measured, sentences, tokenizer, (2,))}
    kinds = ["", " sorted", " search", " search bf16", " search int8", " search shortlist"]
    kinds.remove(" sorted") if batch_size == 1 else None
    assert list(report) == [name + kind for name in ("greedy", "beam 3") for kind in kinds]
    for name, beams in (("greedy", 1), ("beam 3", 3)):
        texts = translate(model, tokenizer, TEXTS, num_beams=beams, max_new_tokens=10, progress=False)
        assert report[name]["bleu"] == pytest.approx(score(texts, REFERENCES)["bleu"])
        assert report[f"{name} search"]["bleu"] == report[name]["bleu"] and report[name]["ratio_to_reference"] == 1
        assert report[name]["different"] == report[f"{name} search"]["different"] == 0
        assert report[f"{name} search shortlist"]["different"] > 0
        row = report[f"{name} search"]
        assert (row["wall_ratio"], row["sentences_per_s"]) == (1, 3) and row["ratio_to_reference"] < 1
    with pytest.raises(ValueError, match="1 references for 7 sentences; the numbers must be equal"):
        read_sentences(model, tokenizer, TEXTS, 2, ["x"])


def test_on_a_device_8_bit_weights_are_left_out() -> None:
    """The variants on a GPU, and the times that are compared there."""
    model = tiny_rnn(tiny_tokenizer())
    sentences = read_sentences(model, tiny_tokenizer(), TEXTS, 3)
    arguments = Namespace(model="tiny", batch_size=1, num_beams=3, target_length=10, device="cuda")
    variants = decoding_variants(model, sentences, arguments)
    kinds = ["", " search", " search bf16"]
    assert list(variants) == [name + kind for name in ("greedy", "beam 3") for kind in kinds]
    assert variants["beam 3 search bf16"].options["weight_type"] == "bfloat16"
    chosen = {name: variants[name] for name in ("greedy", "greedy search")}
    measured = {"greedy": {"wall_s": 4.0, "cpu_s": 1.0}, "greedy search": {"wall_s": 1.0, "cpu_s": 1.0}}
    for device, ratio in (("cuda", 4), ("cpu", 1)):
        report = compare_decoding(chosen, measured, sentences, device=device)
        assert report[1]["ratio_to_reference"] == ratio and report[1]["wall_ratio"] == 4


def test_a_trained_model_is_measured_on_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from benchmark import main

    tokenizer = tiny_tokenizer()
    directory = save_checkpoint(tmp_path / "tiny", tiny_rnn(tokenizer), tokenizer)
    for name, lines in (("in.txt", TEXTS), ("out.txt", REFERENCES)):
        (tmp_path / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    files = ["--input", str(tmp_path / "in.txt"), "--references", str(tmp_path / "out.txt")]
    sizes = ["--batch_size", "2", "--rounds", "1", "--target_length", "4", "--json", str(tmp_path / "a.json")]
    main(["decode", "--model", str(directory), *files, *sizes])
    rows = {row["variant"]: row for row in json.loads((tmp_path / "a.json").read_text())}
    assert rows["beam 5 search"]["different"] == 0 and rows["greedy"]["value"] == 4
    shown = capsys.readouterr().out.splitlines()
    assert len(shown) == 3 + len(rows) and "BLEU" in shown[1]  # the title, the header, a line under it
    assert shown[0] == "6 sentences, batches of 2, threads: 1"
    main(["decode", "--model", str(directory), *files, *sizes[2:4], *sizes[6:], "--batch_sizes", "3", "1"])
    several = json.loads((tmp_path / "a.json").read_text())
    assert [row["batch_size"] for row in several] == [3] * 10 + [1] * 8
    assert several[0]["value"] > 4, "no limit but the checkpoint's own"
    with pytest.raises(SystemExit):
        main(["decode", *files])
    assert "error: " in capsys.readouterr().err

"""scripts/distill.py as a user runs it: order, sources, resuming, any teacher, ensembles, the choice by reference."""

import json
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from hf_rnn_seq2seq import command_line
from hf_rnn_seq2seq.data.arguments import DataArguments
from hf_rnn_seq2seq.data.corpus import load_corpus
from hf_rnn_seq2seq.data.readers import Columns, read_rows
from hf_rnn_seq2seq.data.tokenizer import build_tokenizer
from hf_rnn_seq2seq.errors import CheckpointError
from hf_rnn_seq2seq.evaluation.sentence_scores import sentence_metric
from hf_rnn_seq2seq.generation import translate as evaluation
from hf_rnn_seq2seq.generation.lines import LineWriter
from hf_rnn_seq2seq.run_directory import load_checkpoint, load_models
from hf_rnn_seq2seq.training.distillation import closest, column_names, column_places, corpus_options, write_distilled
from tests.helpers.checkpoints import SOURCES, TARGETS, save_checkpoint, tiny_bart, tiny_rnn, tiny_tokenizer
from tests.helpers.script_runs import run

ROWS = list(zip(SOURCES, [*TARGETS, "jours"], strict=True))


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory whose recipe names a training file: with a row that cannot be used, and a tab inside a source."""
    folder = tmp_path_factory.mktemp("teacher")
    rows = [{"en": source, "fr": target} for source, target in [*ROWS[:3], ("lonely", ""), *ROWS[3:], ("a\tb", "c")]]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokenizer = tiny_tokenizer()
    save_checkpoint(folder / "run", tiny_rnn(tokenizer), tokenizer)
    recipe = f"train_file: {folder}/train.jsonl\nsource_lang: en\ntarget_lang: fr\nlearning_rate: 0.1\n"
    (folder / "run" / "recipe.yaml").write_text(recipe)
    return folder / "run"


def table(path: Path) -> list[list[str]]:
    return [line.split("\t") for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


def translations(directory: Path, sources: list[str], **options: object) -> list[str]:
    model, tokenizer = load_checkpoint(directory)
    found = evaluation.translate(model, tokenizer, sources, progress=False, **options)
    return list(map(one_cell, found))


def one_cell(text: str) -> str:
    """A text as the cell of a table."""
    return "".join(" " if mark in "\t\r\n" else mark for mark in text)


def test_the_teachers_training_split_in_its_order(teacher: Path, tmp_path: Path) -> None:
    output = tmp_path / "distilled.tsv"
    result = run("distill.py", teacher, "--num_beams", 3, "--window", 3, "--output_file", output)
    assert result.returncode == 0, result.stderr
    header, *rows = table(output)
    sources = [source for source, _ in ROWS] + ["a\tb"]
    assert header == ["en", "fr"]
    assert [row[0] for row in rows] == [*sources[:-1], "a b"]
    assert [row[1] for row in rows] == translations(teacher, sources, num_beams=3)
    assert b"8 rows; left out: 1 empty_target" in result.stderr
    # What reads the corpus reads the table.
    read = list(read_rows([output], Columns("en", "fr")))
    assert [row.source for row in read if row.problem is None] == [row[0] for row in rows if row[1].strip()]
    again = run("distill.py", teacher, "--num_beams", 3, "--output_file", output)
    assert again.returncode == 2 and b"exists" in again.stderr


def test_an_interrupted_table_is_continued(teacher: Path, tmp_path: Path) -> None:
    from hf_rnn_seq2seq.commands.distill import identity, parse
    from hf_rnn_seq2seq.data.arguments import DataArguments
    from hf_rnn_seq2seq.data.corpus import load_corpus

    output = tmp_path / "distilled.tsv"
    words = [str(teacher), "--output_file", str(output)]
    assert run("distill.py", *words).returncode == 0
    whole = output.read_text().splitlines(keepends=True)
    output.unlink()
    arguments = parse(words)
    model, tokenizer = load_checkpoint(teacher)
    chosen = corpus_options(command_line.data_options(arguments, training=True), arguments.teachers[0])
    fingerprint = load_corpus(DataArguments(**chosen), splits=("train",)).description["fingerprint"]
    with (
        pytest.raises(KeyboardInterrupt),
        LineWriter(str(output), identity=identity(arguments, [fingerprint], [model], tokenizer)) as writer,
    ):
        writer.write([whole[0].rstrip("\n"), "marked\trow"])
        writer._file.write(b"half a ro")
        raise KeyboardInterrupt
    (tmp_path / "words.txt").write_text("days three")
    refused = run("distill.py", *words, "--resume", "--unlabeled_file", tmp_path / "words.txt")
    assert refused.returncode == 2 and b"was made with another corpus" in refused.stderr, refused.stderr
    refused = run("distill.py", *words, "--resume", "--num_beams", 2)
    assert refused.returncode == 2 and b"was made with another num_beams" in refused.stderr
    other = save_checkpoint(tmp_path / "other", tiny_rnn(tokenizer, cell_type="gru"), tokenizer)
    (other / "recipe.yaml").write_text((teacher / "recipe.yaml").read_text())
    refused = run("distill.py", other, *words[1:], "--resume")
    assert refused.returncode == 2 and b"was made with another teachers" in refused.stderr, refused.stderr
    assert run("distill.py", *words, "--resume").returncode == 0
    assert output.read_text() == whole[0] + "marked\trow\n" + "".join(whole[2:])


def test_interpolation_takes_the_hypothesis_closest_to_the_reference(teacher: Path, tmp_path: Path) -> None:
    """Kim and Rush 2016, section 3.3."""
    bleu = sentence_metric("bleu")
    best = ["il y a deux jours", "il y a trois jours", "trois jours"]
    assert closest(best, "il y a trois jours", bleu) == best[1]
    assert closest(["x", "z"], "il y a trois jours", bleu) == "x", "of equals the teacher's first"
    model, tokenizer = load_checkpoint(teacher)
    found = evaluation.translate_n_best(model, tokenizer, SOURCES, n_best=4, num_beams=4, progress=False)
    # People wrote what is the teacher's second, third, fourth or best hypothesis.
    references = [hypotheses[(row + 1) % 4].text for row, hypotheses in enumerate(found)]
    rows = [{"source": source, "target": target} for source, target in zip(SOURCES, references, strict=True)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    output = tmp_path / "distilled.tsv"
    words = ("--num_beams", 4, "--train_file", tmp_path / "train.jsonl", "--output_file", output)
    refused = run("distill.py", teacher, *words, "--interpolate", 5)
    assert refused.returncode == 2 and b"n_best=5: must be from 1 to num_beams=4" in refused.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"train.jsonl"}
    result = run("distill.py", teacher, *words, "--interpolate", 4)
    assert result.returncode == 0, result.stderr
    expected = []
    for hypotheses, reference in zip(found, references, strict=True):
        scores = [bleu(hypothesis.text, reference) for hypothesis in hypotheses]
        expected.append(one_cell(hypotheses[scores.index(max(scores))].text))
    header, *table_rows = table(output)
    assert header == ["source", "target"] and [row[1] for row in table_rows] == expected
    assert sum(map(str.__ne__, expected, translations(teacher, SOURCES, num_beams=4))) >= 3
    refused = run("distill.py", teacher, "--num_beams", 2, "--interpolate", 3, "--output_file", tmp_path / "x.tsv")
    assert refused.returncode == 2 and b"n_best=3: must be from 1 to num_beams=2" in refused.stderr


def test_sources_without_a_target_follow_the_corpus(teacher: Path, tmp_path: Path) -> None:
    """Each once, without blank lines and those of the corpus; --interpolate takes the teacher's best for them."""
    new, output = ["days three", "in days"], tmp_path / "more.tsv"
    (tmp_path / "words.txt").write_text("\n".join([new[0], SOURCES[0], "", new[1], new[0]]), encoding="utf-8")
    words = ("--num_beams", 3, "--unlabeled_file", tmp_path / "words.txt", "--output_file", output)
    assert run("distill.py", teacher, "--num_beams", 3, "--output_file", tmp_path / "few.tsv").returncode == 0
    for further in ((), ("--interpolate", 3, "--overwrite")):
        result = run("distill.py", teacher, *words, *further)
        assert result.returncode == 0 and b"8 rows and 2 unlabeled sources" in result.stderr, result.stderr
        assert table(output)[9:] == [
            list(row) for row in zip(new, translations(teacher, new, num_beams=3), strict=True)
        ]
        if not further:
            assert table(output)[:9] == table(tmp_path / "few.tsv")
    for text, message in (
        ("a\tb\n", b"words.txt': line 1 has a tab; give one source a line"),
        (f"{SOURCES[1]}\n\n", b"words.txt': holds no source that the corpus lacks"),
    ):
        (tmp_path / "words.txt").write_text(text)
        refused = run("distill.py", teacher, *words)
        assert refused.returncode == 2 and message in refused.stderr, refused.stderr


def test_ensembles_and_teachers_of_other_families(teacher: Path, tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    other = save_checkpoint(tmp_path / "other", tiny_rnn(tokenizer, cell_type="gru"), tokenizer)
    output = tmp_path / "both.tsv"
    result = run("distill.py", teacher, other, "--num_beams", 2, "--output_file", output)
    assert result.returncode == 0, result.stderr
    member = load_checkpoint(other)[0]
    assert [row[1] for row in table(output)[1:8]] == translations(teacher, SOURCES, num_beams=2, ensemble=[member])
    bart = save_checkpoint(tmp_path / "bart", tiny_bart(tokenizer), tokenizer)
    data = ("--train_file", teacher.parent / "train.jsonl", "--source_column", "en", "--target_column", "fr")
    output = tmp_path / "bart.tsv"
    result = run("distill.py", bart, *data, "--num_beams", 2, "--source_prefix", "fr: ", "--output_file", output)
    assert result.returncode == 0, result.stderr
    assert [row[0] for row in table(output)[1:4]] == SOURCES[:3]
    assert [row[1] for row in table(output)[1:8]] == translations(bart, [f"fr: {s}" for s in SOURCES], num_beams=2)
    for words, message in (
        ((bart, teacher, *data), b"an ensemble needs models of this package, not a BartForConditionalGeneration"),
        ((bart,), b"has no recipe.yaml that says what it was trained on; give --dataset_name or --train_file"),
        ((bart, *data, "--interpolate", 1), b"'1' is not a whole number of at least 2"),
    ):
        refused = run("distill.py", *words, "--output_file", tmp_path / "x.tsv")
        assert refused.returncode == 2 and message in refused.stderr.splitlines()[-1], refused.stderr
    refused = run("distill.py", bart, *data, "--output_file", tmp_path / "x.txt")
    assert refused.returncode == 2 and b"must end in .tsv" in refused.stderr


def test_an_ensemble_has_one_vocabulary(teacher: Path, tmp_path: Path) -> None:
    """Vocabularies may differ on either side: here the targets differ in one word."""
    saved = []
    for words in (["eins zwei"], ["eins drei"]):
        tokenizer = build_tokenizer(["one two"], words, algorithm="word", min_frequency=1, joint=False)
        saved.append(save_checkpoint(tmp_path / words[0], tiny_rnn(tokenizer), tokenizer))
    data = ("--train_file", teacher.parent / "train.jsonl", "--source_lang", "en", "--target_lang", "fr")
    refused = run("distill.py", *saved, *data, "--output_file", tmp_path / "x.tsv")
    assert refused.returncode == 2 and b"eins drei: its vocabulary is not that of" in refused.stderr, refused.stderr
    tokenizer = build_tokenizer(
        ["one two"], ["eins zwei"], algorithm="word", min_frequency=1, joint=False, lowercase=True
    )
    lower = save_checkpoint(tmp_path / "lower", tiny_rnn(tokenizer), tokenizer)
    with pytest.raises(CheckpointError, match="lower: its tokenizer reads texts otherwise than that of .*eins zwei"):
        load_models([saved[0], lower])


def test_another_file_with_the_columns_of_the_teacher_needs_no_names(teacher: Path, tmp_path: Path) -> None:
    given = dict.fromkeys(("dataset_name", "train_file", "source_lang", "target_lang", "source_column"))
    for header, names in (("en\tfr", {"source_lang": "en", "target_lang": "fr"}), ("source\ttarget", {})):
        (tmp_path / "more.tsv").write_text(f"{header}\nin an hour\tdans une heure\n")
        file = {"train_file": str(tmp_path / "more.tsv")}
        assert corpus_options(given | file, str(teacher)) == file | names


def test_columns_are_called_what_the_options_call_them() -> None:
    assert column_names({"source_lang": "de", "target_lang": "en"}, {}) == ("de", "en")
    assert column_names({"source_column": "a", "target_column": "b", "source_lang": "de"}, {}) == ("a", "b")
    assert column_names({"dataset_config_name": "en-fr"}, {"source_lang": "en", "target_lang": "fr"}) == ("en", "fr")
    assert column_names({"source_column": "0", "target_column": "1"}, {}) == ("0", "1"), "the same options read them"
    assert column_names({"source_column": "a", "source_lang": "de"}, {}) == ("a", "target")
    assert column_names({"header": False, "source_column": "0"}, {}) is None, "the same options read a pair there"
    assert column_names({}, {"source_lang": None, "target_lang": None}) == ("source", "target")
    assert column_names({"file_format": "cmudict"}, {}) is None, "a header would be a word"


@pytest.mark.parametrize(
    "options",
    [
        {"header": False, "target_column": "2"},
        {"file_format": "cmudict"},
        {"source_lang": "en", "target_lang": "fr"},
        {"source_column": "0", "target_column": "1"},
        {"source_column": "0"},
    ],
)
def test_the_options_that_read_the_corpus_read_the_table(options: dict[str, Any], tmp_path: Path) -> None:
    rows = Dataset.from_dict({"source": ["new york", "ab"], "target": ["", ""]})
    header = column_names(options, {})
    path = tmp_path / "distilled.tsv"
    with LineWriter(str(path), identity={}) as writer:
        places = column_places(options, header)
        list(write_distilled(writer, header, places, rows, lambda sources, _: [s.upper() for s in sources], 1))
    read = load_corpus(DataArguments(train_file=str(path), **options), splits=("train",)).splits["train"]
    assert (read["source"], read["target"]) == (["new york", "ab"], ["NEW YORK", "AB"])

"""Texts with a class: the embedded documents, sentences marked by the tokenizer, readers, rows and batches."""

import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from transformers import AutoTokenizer

from hf_rnn_seq2seq.data import cldr_documents
from hf_rnn_seq2seq.data.arguments import DataArguments
from hf_rnn_seq2seq.data.corpus import load_corpus
from hf_rnn_seq2seq.data.labeled_texts import (
    TextCollator,
    build_text_tokenizer,
    class_names,
    labeled_rows,
    sentence_token_id,
)
from hf_rnn_seq2seq.errors import ArgumentError, DataError

TEXTS = ["One two. Three four!\nFive<br /><br />six", "seven eight"]


def test_a_document_has_two_phrases_in_two_other_languages_and_the_first_decides() -> None:
    book = {language: set(cldr_documents._foreign("test")[language]) for language in cldr_documents.LANGUAGES}
    english = set(cldr_documents._english("test"))
    labels = Counter()
    for row in range(200):
        document = cldr_documents.document("test", 0, row)
        foreign = [place for place, phrase in enumerate(document.phrases) if phrase not in english]
        assert len(foreign) == 2 and document.deciding == foreign[0]
        assert 4 <= len(document.phrases) <= 10
        of = [{name for name, phrases in book.items() if document.phrases[place] in phrases} for place in foreign]
        assert of[0] == {document.label} and len(of[1]) == 1 and of[0] != of[1], "no phrase belongs to two languages"
        labels[document.label] += 1
    assert set(labels) == set(cldr_documents.LANGUAGES)


def test_documents_are_drawn_alike_and_the_test_split_has_no_phrase_of_training() -> None:
    rows = list(cldr_documents.generate("train", 3, 20))
    assert rows == list(cldr_documents.generate("train", 3, 30))[:20]
    assert rows != list(cldr_documents.generate("train", 4, 20))
    assert list(cldr_documents.generate("test", 3, 20)) == list(cldr_documents.generate("test", 4, 20))
    for language in cldr_documents.LANGUAGES:
        train, test = (set(cldr_documents._foreign(split)[language]) for split in ("train", "test"))
        assert not train & test


@pytest.mark.parametrize("algorithm", ["word", "wordpiece", "bpe", "unigram", "char"])
@pytest.mark.parametrize("sentences", ["lines", "punctuation"])
def test_sentences_end_with_their_token(algorithm: str, sentences: str, tmp_path: Path) -> None:
    tokenizer = build_text_tokenizer(TEXTS * 3, sentences=sentences, algorithm=algorithm, vocab_size=400)
    end = sentence_token_id(tokenizer)
    tokenizer.save_pretrained(tmp_path)
    for one in (tokenizer, AutoTokenizer.from_pretrained(tmp_path)):
        assert sentence_token_id(one) == end
        ids = one(TEXTS[0])["input_ids"]
        assert ids.count(end) == {"lines": 3, "punctuation": 4}[sentences] and ids[-1] == end
        assert one("\n\nseven eight ")["input_ids"].count(end) == 2
        assert one("")["input_ids"] == [end]
        # The words of a sentence are those of the sentence alone.
        if algorithm in ("word", "wordpiece"):
            place = ids.index(end)
            first = "One two. Three four!" if sentences == "lines" else "One two."
            assert ids[: place + 1] == one(first)["input_ids"][: place + 1]
    spans = tokenizer(TEXTS[0], return_offsets_mapping=True)["offset_mapping"]
    assert TEXTS[0][slice(*spans[0])].strip() in ("One", "O", "On")


def test_without_sentences_a_text_ends_with_its_end_token() -> None:
    tokenizer = build_text_tokenizer(TEXTS * 3, algorithm="word", vocab_size=50)
    assert sentence_token_id(tokenizer) is None
    assert tokenizer("seven eight")["input_ids"][-1] == tokenizer.eos_token_id


def write(folder: Path, kind: str) -> dict[str, str]:
    rows = [("1", "good , really good"), ("0", "bad"), ("1", "fine")]
    path = folder / f"rows.{kind}"
    if kind in ("all", "tabs"):
        mark = {"all": " ", "tabs": "\t"}[kind]
        path.write_text("".join(f"{label}{mark}{text}\n" for label, text in rows))
        return {"train_file": str(path), "file_format": "labeled"}
    if kind in ("jsonl", "floats"):
        number = {"jsonl": int, "floats": float}[kind]
        path = folder / "rows.jsonl"
        path.write_text("".join(json.dumps({"text": text, "label": number(label)}) + "\n" for label, text in rows))
        return {"train_file": str(path)}
    if kind == "saved":
        features = Features({"text": Value("string"), "label": ClassLabel(names=["0", "1"])})
        table = Dataset.from_list([{"text": text, "label": int(label)} for label, text in rows], features=features)
        DatasetDict({"train": table}).save_to_disk(str(folder / "saved"))
        return {"dataset_name": str(folder / "saved")}
    mark = "\t" if kind == "tsv" else ","
    lines = [mark.join(("label", "text")), *(f'{label}{mark}"{text}"' for label, text in rows)]
    path.write_text("\n".join(lines) + "\n")
    return {"train_file": str(path)}


@pytest.mark.parametrize("kind", ["all", "tabs", "jsonl", "floats", "csv", "saved"])
def test_classes_are_read_from_every_kind_of_file(kind: str, tmp_path: Path) -> None:
    corpus = load_corpus(DataArguments(task="classification", **write(tmp_path, kind)), splits=("train",))
    assert corpus.splits["train"]["target"] == ["1", "0", "1"]
    assert corpus.splits["train"]["source"] == ["good , really good", "bad", "fine"]


def test_hidden_classes_are_left_out_and_counted(tmp_path: Path) -> None:
    """-1 is no class, though it is a place in the list of names."""
    features = Features({"text": Value("string"), "label": ClassLabel(names=["bad", "good"])})
    rows = [{"text": text, "label": label} for text, label in (("a", 1), ("b", -1), ("c", 0))]
    splits = {"train": rows[:1] + rows[2:], "test": rows, "validation": rows[1:2]}
    tables = {name: Dataset.from_list(split, features=features) for name, split in splits.items()}
    DatasetDict(tables).save_to_disk(str(tmp_path / "saved"))
    arguments = DataArguments(task="classification", dataset_name=str(tmp_path / "saved"))
    corpus = load_corpus(arguments, splits=("train", "test"))
    assert corpus.splits["test"]["target"] == ["good", "bad"] and sum(corpus.skipped["test"].values()) == 1
    with pytest.raises(DataError, match="validation: no usable row among 1"):
        load_corpus(arguments, splits=("train", "validation"))


def test_a_table_without_header_has_numbered_columns(tmp_path: Path) -> None:
    (tmp_path / "rows.tsv").write_text("0\t3\tbad film\n1\t9\tgood film\n")
    options = {"header": False, "source_column": "2", "target_column": "0", "train_file": str(tmp_path / "rows.tsv")}
    rows = load_corpus(DataArguments(task="classification", **options), splits=("train",)).splits["train"]
    assert rows["target"] == ["0", "1"] and rows["source"] == ["bad film", "good film"]


def test_classes_are_those_of_the_training_split() -> None:
    def split(*names: str) -> Dataset:
        return Dataset.from_dict({"source": ["x"] * len(names), "target": list(names)})

    assert class_names({"train": split("10", "2", "2")}) == ["2", "10"]
    with pytest.raises(DataError, match="train: every row has the class 'a'"):
        class_names({"train": split("a", "a")})
    with pytest.raises(DataError, match="test: class 'c' is not in the training split, which has a, b"):
        class_names({"train": split("a", "b"), "test": split("b", "c")})


def test_rows_are_cut_counted_and_padded() -> None:
    tokenizer = build_text_tokenizer(["a b c d e"] * 3, algorithm="word", vocab_size=20)
    texts = Dataset.from_dict({"source": ["a b c d e", "b"], "target": ["y", "x"], "id": [0, 1]})
    rows, cut = labeled_rows(texts, tokenizer, ["x", "y"], 4)
    assert cut == 1 and rows["labels"] == [1, 0] and rows["source_length"] == [4, 2]
    batch = TextCollator(tokenizer.pad_token_id)(rows[[0, 1]])
    assert batch["input_ids"].shape == (2, 4) and batch["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert batch["input_ids"][1].tolist()[2:] == [tokenizer.pad_token_id] * 2
    assert torch.equal(batch["labels"], torch.tensor([1, 0]))


REFUSED = [
    ({"task": "classification", "dataset_name": "cldr"}, "dataset_name='cldr': has no classes"),
    ({"task": "classification", "file_format": "ipa"}, "file_format='ipa': has no classes"),
    ({"dataset_name": "documents"}, "dataset_name='documents': has classes; it is for task='classification'"),
    ({"file_format": "labeled"}, "file_format='labeled': has classes; it is for task='classification'"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED)
def test_a_corpus_of_another_task_is_refused(options: dict[str, str], message: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        DataArguments(**options)
    assert str(caught.value).startswith(message)
